package psa

import (
	"bytes"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadPEM(t *testing.T) {
	const block = "-----BEGIN X-----\nAAAA\n-----END X-----\n"
	for in, want := range map[string]string{
		"":                          "",
		"text\n":                    "",
		block:                       "X",
		block + block:               "X X",
		bom + block + bom + block:   "X X",
		"K\xf6nig\nKönig\n" + block: "X", // Latin-1, UTF-8
		strings.ReplaceAll(block, "\n", "\r\n") + "text":                                        "X",
		"-----BEGIN X-----  \nAA\n\n \tAA \n-----END X----- \t\ntext\n":                         "X",
		"-----BEGIN X-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: a,b\n c\n\nAAAA\n-----END X-----": "X!",
		"-----BEGIN X-----\nComment: hi\n\nAAAA\n-----END X-----":                               "X",
		"-----\n--\n-----BEGINNING\n" + block:                                                   "X",
		"a -----BEGIN X-----\n":                                                                 "",
		"-----BEGIN X-----\nAAAA\n":                                                             "the block \"X\" has no END line",
		"-----BEGIN X-----\nAAAA\n" + block:                                                     "the block \"X\" has no END line",
		"-----BEGIN X":                                                                          "ends in a BEGIN line",
		"text\n-----BEG":                                                                        "ends in a BEGIN line",
		"-----BEGIN X-----":                                                                     "ends in a BEGIN line",
		"-----BEGIN -----\n":                                                                    "has no name",
		"-----BEGIN X---\n":                                                                     "does not end after its name",
		"-----BEGIN X----- AAAA\n":                                                              "does not end after its name",
		"-----BEGIN " + strings.Repeat("X", 65):                                                 "does not end after its name",
		"AAAA\n-----END X-----\n":                                                               "an END line has no BEGIN line",
		"-----BEGIN X-----\nAAAA\n-----END Y-----\n":                                            "the END line of another",
		"-----BEGIN X-----\nAA!A\n-----END X-----\n":                                            "not base64",
		"-----BEGIN X-----\nAA=A\n-----END X-----\n":                                            "not base64",
		"-----BEGIN X-----\nAAA\n-----END X-----\n":                                             "not base64",
		"-----BEGIN X-----\nAAAAAA==AAAA\n-----END X-----\n":                                    "not base64",
		"-----BEGIN X-----\n-----END X-----\n":                                                  "not base64",
		"-----BEGIN X-----\nAAAA\n----END X-----\n":                                             "not base64",
		"-----BEGIN X-----\nA: b\n-----END X-----\n":                                            "the headers of the block \"X\" do not end",
		"-----BEGIN X-----\nAAAA\nA: b\n-----END X-----":                                        "not base64",
		strings.TrimSpace(block) + "-----BEGIN X-----\n":                                        "after an END line",
		strings.TrimSpace(block) + "AAAA\n":                                                     "after an END line",
		"-----BEGIN X----------BEGIN X-----\n":                                                  "two lines are joined",
		"  " + block:                                                                            "does not start with five dashes",
		"> " + block:                                                                            "does not start with five dashes",
		"----BEGIN X-----\n":                                                                    "does not start with five dashes",
		"------BEGIN X-----\n":                                                                  "does not start with five dashes",
		"—–BEGIN X—–\n":                                                                         "does not start with five dashes",
		"----- BEGIN X -----\n":                                                                 "does not start with five dashes",
		"---- BEGIN SSH2 PUBLIC KEY ----\n":                                                     "SSH2",
		"\x00":                                                                                  "that are not text",
		block + "\x01\n":                                                                        "that are not text",
	} {
		blocks, err := ReadPEM([]byte(in))
		var labels []string
		for _, b := range blocks {
			if !bytes.Equal(b.Bytes, make([]byte, 3)) {
				t.Errorf("%q holds %x", in, b.Bytes)
			}
			labels = append(labels, b.Label+map[bool]string{true: "!"}[b.Encrypted])
		}
		if err != nil && (StatusOf(err) != StatusInvalidArgument || want == "" || !strings.Contains(err.Error(), want)) || err == nil &&
			strings.Join(labels, " ") != want {
			t.Errorf("%q: %v, %v; want %s", in, labels, err, want)
		}
	}
}

func FuzzReadPEM(f *testing.F) {
	files, err := filepath.Glob("testdata/keys/*.pem")
	if err != nil || len(files) == 0 {
		f.Fatal("no keys", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("-----BEGIN X-----\nA: b\n c\n\nAAAA\n-----END X-----\ntext"))
	f.Fuzz(func(t *testing.T, b []byte) {
		blocks, err := ReadPEM(b)
		if err != nil {
			if len(blocks) > 0 {
				t.Fatal("blocks beside an error")
			}
			return
		}
		// crypto's decoder finds the same blocks where it finds all of them
		rest := b
		for _, want := range blocks {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				return
			}
			if block.Type != want.Label || !bytes.Equal(block.Bytes, want.Bytes) {
				t.Fatalf("%q: %q, %x; crypto has %q, %x", b, want.Label, want.Bytes, block.Type, block.Bytes)
			}
		}
	})
}

// verdict writes an import in pieces, as a staged file takes them: the key, or what was refused.
func verdict(pieces [][]byte, draft Attributes) (key string, err error) {
	var buf []byte
	var m *Material
	rest := ScanBlank
	for _, p := range pieces {
		if buf = append(buf, p...); m != nil {
			if _, err := rest(buf); err != nil {
				return "", err
			}
			continue
		}
		end, found, _, err := ScanMaterial(buf, draft)
		if err != nil {
			return "", err
		}
		if end == 0 {
			continue
		}
		if m = found; InPEM(buf[:end]) {
			rest = ScanRest
		}
		buf = bytes.Clone(buf[end:])
		if _, err := rest(buf); err != nil {
			return "", err
		}
	}
	if m == nil {
		return "", Sniff(buf, draft)
	}
	if left, err := rest(buf); err != nil || left > 0 {
		return "", Errorf(StatusInvalidArgument, "%d bytes are left, %w", left, err)
	}
	return string(m.Data), nil
}

// TestEverySplit: whether a file is taken, and as which key, does not depend on the sizes of its writes.
func TestEverySplit(t *testing.T) {
	file := func(name string) string { return string(keyFile(t, name)) }
	key, cert := file("ed25519.pkcs8"), file("p256.certificate")
	der := string(derOf(t, "ed25519.pkcs8"))
	aes := template(t, "aes-128-gcm")
	for i, c := range []struct {
		text  string
		draft Attributes
		ok    bool
	}{
		{key, Attributes{}, true},
		{bom + key, Attributes{}, true},
		{strings.ReplaceAll(key, "\n", "\r\n"), Attributes{}, true},
		{strings.TrimSpace(key), Attributes{}, true},
		{cert + key, Attributes{}, true},
		{key + cert, Attributes{}, true},
		{key + "text after\n", Attributes{}, true},
		{"Bag Attributes\n    friendlyName: K\xf6nig\nKey Attributes: <No Attributes>\n" + key + "Bag Attributes\n" + cert, Attributes{}, true},
		{"Private-Key: (256 bit)\npriv:\n    0a:0b\n" + key, Attributes{}, true},
		{file("p256.params-sec1"), Attributes{}, true},
		{file("rsa2048.pkcs1pub"), Attributes{}, true},
		{file("openssh"), Attributes{}, true},
		{file("brainpoolp256r1.spki"), Attributes{}, true},
		{der, Attributes{}, true},
		{der + "\n", Attributes{}, true},
		{"0123456789abcdef", aes, true},
		{"0123456789abcdef\n", aes, true},
		{"-----BEGIN 12345", aes, false},
		{"0x: a text\n" + key, Attributes{}, true},
		{key + key, Attributes{}, false},
		{key + file("ed25519.spki"), Attributes{}, false},
		{key + cert[:100], Attributes{}, false},
		{key + "-----", Attributes{}, false},
		{strings.TrimSpace(key) + cert, Attributes{}, false},
		{key + "\x00", Attributes{}, false},
		{key[:80], Attributes{}, false},
		{key[:80] + key, Attributes{}, false},
		{strings.Replace(key, "MC4", "M*4", 1), Attributes{}, false},
		{"  " + strings.ReplaceAll(key, "\n", "\n  "), Attributes{}, false},
		{strings.Replace(cert, "MII", "MI*", 1) + key, Attributes{}, false},
		{key + strings.Replace(cert, "MII", "MI*", 1), Attributes{}, false},
		{key + strings.Replace(cert, "-----BEGIN", "----BEGIN", 1), Attributes{}, false},
		{cert, Attributes{}, false},
		{file("ed25519.encrypted"), Attributes{}, false},
		{der + "more", Attributes{}, false},
		{der[:20], Attributes{}, false},
		{"0123456789abcdef0", aes, false},
		{"0123456789abcde", aes, false},
		{key, aes, false},
		{"garbage\n", Attributes{}, false},
		{"", Attributes{}, false},
	} {
		want, err := verdict([][]byte{[]byte(c.text)}, c.draft)
		if c.ok != (err == nil) {
			t.Errorf("%d %.40q: %v", i, c.text, err)
			continue
		}
		same := func(how string, pieces ...[]byte) {
			t.Helper()
			if got, err := verdict(pieces, c.draft); got != want || c.ok != (err == nil) {
				t.Errorf("%d %.40q in %s: %v", i, c.text, how, err)
			}
		}
		for cut := range len(c.text) {
			same(fmt.Sprintf("%d bytes and the rest", cut), []byte(c.text[:cut]), []byte(c.text[cut:]))
		}
		var bytes [][]byte
		for j := range len(c.text) {
			bytes = append(bytes, []byte(c.text[j:j+1]))
		}
		same("single bytes", bytes...)
	}
}

// TestPublicDER: a peer, or an endorsement key, is one public key, whatever stands around it.
func TestPublicDER(t *testing.T) {
	text := string(keyFile(t, "ed25519.spki"))
	der := derOf(t, "ed25519.spki")
	for in, ok := range map[string]bool{
		text: true, string(der): true, bom + text: true, "text\n" + text + "more text": true, string(keyFile(t, "p256.certificate")) + text: true,
		text + text: false, string(keyFile(t, "ed25519.pkcs8")): false, text[:60]: false, string(keyFile(t, "p256.certificate")): false,
		strings.Replace(text, "MCo", "M*o", 1): false, strings.Replace(string(keyFile(t, "p256.certificate")), "MII", "M*I", 1) + text: false,
		string(keyFile(t, "rsa2048.pkcs1pub")): false,
	} {
		got, err := PublicDER([]byte(in))
		if ok != (err == nil) || ok && !bytes.Equal(got, der) || !ok && StatusOf(err) != StatusInvalidArgument {
			t.Errorf("%.40q: %x, %v", in, got, err)
		}
	}
}
