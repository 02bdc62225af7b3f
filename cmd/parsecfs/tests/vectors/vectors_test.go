package vectors

import (
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// TestVectors runs testdata/vectors.txt through a mount: what deterministic algorithms must give, byte for byte.
func TestVectors(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	text, err := os.ReadFile("testdata/vectors.txt")
	if err != nil {
		t.Fatal(err)
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	provider := filepath.Join(m.Dir, "providers/software")
	w := &wycheproof{t: t, keys: filepath.Join(provider, "keys"), name: "k"}
	defer w.forget()
	tried := 0
	for line := range strings.Lines(string(text)) {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] == "#" {
			continue
		}
		tried++
		template, file := words[0], words[2]
		inputs := map[string][]byte{}
		var name string
		var value []byte
		for _, word := range words[3:] {
			var text string
			if name, text, _ = strings.Cut(word, "="); text != "" || name != "" {
				if value, err = hex.DecodeString(text); err != nil {
					t.Fatalf("%s: %v", line, err)
				}
			}
			inputs[name] = value
		}
		want := inputs[name]
		delete(inputs, name)
		if template == "-" {
			w.forget()
			w.key = provider
		} else if err := w.use(template, vectorKey(t, template, words[1])); err != nil {
			t.Fatalf("%s: %v", template, err)
		}
		var got []byte
		switch {
		case len(inputs) > 1:
			got, err = w.slot(file, name, inputs)
		case len(inputs["message"]) == 0 && inputs["message"] != nil:
			got, err = w.empty(file)
		default:
			for _, input := range inputs {
				got, err = w.ask(file, input)
			}
		}
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s %s: %x, %v; want %x", template, file, got, err, want)
		}
		if template == "-" {
			w.key = ""
		}
	}
	t.Logf("%d vectors tried", tried)
}

// vectorKey is a key of a vector as import takes it.
func vectorKey(t *testing.T, template, text string) []byte {
	t.Helper()
	a, err := psa.ParseTemplate(template)
	b, e := hex.DecodeString(text)
	if err := errors.Join(err, e); err != nil {
		t.Fatal(err)
	}
	var private any
	switch {
	case !a.Type.IsAsymmetric():
		return b
	case psa.IsRawKey(a.Type, a.Bits):
		der, err := psa.RawKey{Type: a.Type, Bits: a.Bits, Bytes: b}.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return der
	case a.Type.Family() == psa.TwistedEdwards:
		private = ed25519.NewKeyFromSeed(b)
	default:
		curve := map[int]elliptic.Curve{224: elliptic.P224(), 256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}[a.Bits]
		if private, err = ecdsa.ParseRawPrivateKey(curve, b); err != nil {
			t.Fatal(err)
		}
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// acvp is a file of NIST's ACVP server: prompts, or what is expected.
type acvp struct {
	TestGroups []struct {
		TgID                                      int
		ParameterSet, SignatureInterface, PreHash string
		Tests                                     []struct {
			TcID                                int
			Seed, SkSeed, SkPrf, PkSeed, Pk, Sk octets
			Message, Context, Signature         octets
			TestPassed                          bool
		}
	}
}

// readACVP reads a prompt and what is expected of it, from circl's module, which has NIST's own files.
func readACVP(t *testing.T, prompt, expected string) (asked, wanted acvp) {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/cloudflare/circl").Output()
	if err != nil {
		t.Fatalf("the vectors' module: %v", err)
	}
	for name, to := range map[string]*acvp{prompt: &asked, expected: &wanted} {
		f, err := os.Open(filepath.Join(strings.TrimSpace(string(out)), "sign", name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err == nil {
			err = json.NewDecoder(z).Decode(to)
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if len(asked.TestGroups) != len(wanted.TestGroups) {
		t.Fatalf("%s has %d groups, %s %d", prompt, len(asked.TestGroups), expected, len(wanted.TestGroups))
	}
	return asked, wanted
}

// TestACVP runs NIST's vectors for ML-DSA and SLH-DSA through a mount: keys from their seeds, and signatures. A
// signature of ours is randomised (FIPS 204, 3.4; FIPS 205, 9.2), so theirs are verified; Wycheproof has ML-DSA's.
func TestACVP(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	w := &wycheproof{t: t, keys: filepath.Join(m.Dir, "providers/software/keys"), name: "k"}
	defer w.forget()
	// of makes a key out of its bytes, private or public; false where no line of capabilities has that set.
	of := func(set string, public bool, b []byte) bool {
		t.Helper()
		a, err := psa.ParseTemplate(strings.ToLower(set))
		if err != nil {
			t.Fatal(err)
		}
		k := psa.RawKey{Type: a.Type, Bits: a.Bits, Bytes: b}
		if public {
			k.Type = a.Type.PublicKey()
		}
		der, err := k.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		err = w.use(a.Template(), der)
		if err != nil && err != errNotHere {
			t.Fatalf("%s: %v", set, err)
		}
		return err == nil
	}
	keys, verified := 0, 0
	generated := func(prompt, expected string, private func(seed, prf, public, pk octets) []byte) {
		asked, wanted := readACVP(t, prompt, expected)
		for i, g := range asked.TestGroups {
			for j, v := range g.Tests {
				want := wanted.TestGroups[i].Tests[j]
				if v.TcID != want.TcID {
					t.Fatalf("vectors %d and %d", v.TcID, want.TcID)
				}
				seed := v.Seed
				if seed == nil {
					seed = v.SkSeed
				}
				if !of(g.ParameterSet, false, private(seed, v.SkPrf, v.PkSeed, want.Pk)) {
					break
				}
				keys++
				der, err := os.ReadFile(filepath.Join(w.key, "public.der"))
				if err != nil {
					t.Fatal(err)
				}
				if k, err := psa.ParseRawKey(der); err != nil || !bytes.Equal(k.Bytes, want.Pk) {
					t.Errorf("%s, vector %d: another public key, %v", g.ParameterSet, v.TcID, err)
				}
			}
		}
	}
	generated("mldsa/testdata/ML-DSA-keyGen-FIPS204/prompt.json.gz", "mldsa/testdata/ML-DSA-keyGen-FIPS204/expectedResults.json.gz",
		func(seed, _, _, _ octets) []byte { return seed })
	generated("slhdsa/testdata/keyGen_prompt.json.gz", "slhdsa/testdata/keyGen_results.json.gz",
		func(seed, prf, public, pk octets) []byte { // FIPS 205, figure 15
			return bytes.Join([][]byte{seed, prf, public, pk[len(public):]}, nil)
		})
	asked, wanted := readACVP(t, "slhdsa/testdata/verify_prompt.json.gz", "slhdsa/testdata/verify_results.json.gz")
	for i, g := range asked.TestGroups {
		for j, v := range g.Tests {
			// What is signed here has no context.
			if g.SignatureInterface != "external" || g.PreHash != "pure" || len(v.Context) > 0 || !of(g.ParameterSet, true, v.Pk) {
				continue
			}
			verified++
			answer, err := w.ask("verify", v.Signature, v.Message)
			if good := wanted.TestGroups[i].Tests[j].TestPassed; good != (err == nil && string(answer) == string(valid)) {
				t.Errorf("%s, vector %d: valid is %v, and the answer %q, %v", g.ParameterSet, v.TcID, good, answer, err)
			}
		}
	}
	asked, wanted = readACVP(t, "slhdsa/testdata/sigGen_prompt.json.gz", "slhdsa/testdata/sigGen_results.json.gz")
	for i, g := range asked.TestGroups {
		for j, v := range g.Tests {
			if g.SignatureInterface != "external" || g.PreHash != "pure" || len(v.Context) > 0 || !of(g.ParameterSet, false, v.Sk) {
				continue
			}
			verified++
			if answer, err := w.ask("verify", wanted.TestGroups[i].Tests[j].Signature, v.Message); err != nil || string(answer) != string(valid) {
				t.Errorf("%s, vector %d: %q, %v", g.ParameterSet, v.TcID, answer, err)
			}
		}
	}
	t.Logf("%d keys, %d signatures", keys, verified)
	if keys < 75+6 || verified < 12 {
		t.Error("too few")
	}
}
