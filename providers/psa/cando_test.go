package psa

import (
	"strings"
	"testing"
)

func FuzzParseQuestion(f *testing.F) {
	f.Add("generate ecdsa-p256-sha256")
	f.Add("use PSA_KEY_TYPE_AES 256 PSA_ALG_GCM PSA_KEY_USAGE_ENCRYPT|PSA_KEY_USAGE_DECRYPT")
	f.Add("hash sha256")
	f.Fuzz(func(t *testing.T, line string) {
		if strings.TrimSpace(line) == "" {
			return
		}
		q, err := parseQuestion(line)
		if err != nil {
			return
		}
		if err := q.answer(nil); err == nil {
			t.Fatalf("%q: a provider without capabilities can do it", line)
		}
	})
}

func TestAnswer(t *testing.T) {
	line, err := ParseCapability("aes-256-gcm\tPSA_KEY_TYPE_AES\t256\tPSA_ALG_GCM\tgenerate,encrypt,decrypt")
	if err != nil {
		t.Fatal(err)
	}
	lines := []Capability{line, {Algorithm: SHA256, Operations: []Operation{Hash}}}
	for asked, want := range map[string][]string{
		"generate aes-256-gcm\nencrypt aes-256-gcm\n":            {"yes", "yes", "sequence: yes"},
		"encrypt aes-256-gcm\ngenerate aes-256-gcm":              {"yes", "yes", "sequence: "},
		"sign aes-256-gcm\n\n":                                   {"no", "sequence: "},
		"import aes-256-gcm\nhash sha256":                        {"no", "yes", "sequence: "},
		"hash PSA_ALG_SHA_256\nhash sha512\nhash ":               {"yes", "no", "no", "sequence: "},
		"generate PSA_KEY_TYPE_AES 256 PSA_ALG_GCM":              {"yes", "sequence: yes"},
		"decrypt PSA_KEY_TYPE_AES 256 PSA_ALG_GCM 0":             {"no", "sequence: "},
		"frobnicate aes-256-gcm\x00" + strings.Repeat("x", 2000): {"no", "sequence: "},
	} {
		answers, err := Answer(lines, []byte(asked))
		if err != nil {
			t.Errorf("%q: %v", asked, err)
		}
		var have []string
		for line := range strings.Lines(string(answers)) {
			word, _, _ := strings.Cut(strings.TrimSpace(line), ": ")
			if word == "sequence" {
				word, _, _ = strings.Cut(strings.TrimSpace(line), "no: ")
			}
			have = append(have, word)
		}
		if strings.Join(have, ",") != strings.Join(want, ",") {
			t.Errorf("%q: %q, want %q", asked, answers, want)
		}
	}
	if _, err := Answer(lines, []byte(" \n")); StatusOf(err) != StatusInvalidArgument {
		t.Errorf("no question: %v", err)
	}
}

// TestManyWrongQuestions: a request of nothing but mistakes costs about what one of right questions does.
func TestManyWrongQuestions(t *testing.T) {
	var lines []Capability
	for _, bits := range []string{"128", "192", "256"} {
		for _, m := range aesModes {
			a, err := ParseTemplate("aes-" + bits + "-" + m.name)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, Capability{a.Template(), a.Type, a.Bits, 0, a.Algorithm, []Operation{Generate}})
		}
	}
	answers, err := Answer(lines, []byte(strings.Repeat("generate aes-256\n", 3000)))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(answers), "the nearest ones: aes-256-gcm"); n == 0 || n > 2*maxSuggested {
		t.Errorf("%d suggestions for 3000 wrong questions", n)
	}
}
