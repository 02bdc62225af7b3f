package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// asked is one kind of key, and what can_do says of it.
type asked struct {
	a         psa.Attributes
	imported  bool // or generated
	make, use bool
}

// contract lists every type, size and algorithm of Parsec's contract that PSA has a notation for, whether they fit each
// other or not, where the type and size exist.
func contract() (list []psa.Attributes) {
	hashes := []psa.Algorithm{psa.SHA224, psa.SHA256, psa.SHA384, psa.SHA512, psa.SHA512_256, psa.SHA3_224, psa.SHA3_256, psa.SHA3_384, psa.SHA3_512, psa.MD5, psa.SHA1, psa.RIPEMD160}
	algorithms := []psa.Algorithm{psa.AlgNone, psa.CMAC, psa.CBCMAC, psa.StreamCipher, psa.CTR, psa.CFB, psa.OFB, psa.XTS, psa.ECBNoPadding,
		psa.CBCNoPadding, psa.CBCPKCS7, psa.CCM, psa.GCM, psa.ChaCha20Poly1305, psa.AEADWithShortenedTag(psa.GCM, 12), psa.RSAPKCS1v15SignRaw,
		psa.ECDSAAny, psa.PureEdDSA, psa.Ed25519ph, psa.MLDSA, psa.MLKEM, psa.RSAPKCS1v15Crypt, psa.ECDH, psa.FFDH, psa.SHA256,
		psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA256)), psa.HKDF(psa.SHA256)}
	for _, h := range append(hashes, psa.AnyHash) {
		algorithms = append(algorithms, psa.RSAPKCS1v15Sign(h), psa.RSAPSS(h), psa.ECDSA(h), psa.DeterministicECDSA(h))
		if h != psa.AnyHash {
			algorithms = append(algorithms, psa.HMAC(h), psa.RSAOAEP(h))
		}
	}
	types := []struct {
		t    psa.KeyType
		bits []int
	}{
		{psa.KeyTypeRawData, []int{128}}, {psa.KeyTypeHMAC, []int{256, 512}}, {psa.KeyTypeDerive, []int{256}},
		{psa.KeyTypeAES, []int{128, 192, 256, 512}}, {psa.KeyTypeARIA, []int{128}}, {psa.KeyTypeCamellia, []int{256}}, {psa.KeyTypeDES, []int{64, 192}},
		{psa.KeyTypeChaCha20, []int{256}}, {psa.KeyTypeARC4, []int{128}},
		{psa.KeyTypeRSAKeyPair, []int{1024, 2048}}, {psa.KeyTypeRSAPublicKey, []int{2048}},
		{psa.ECCKeyPair(psa.SECPR1), []int{192, 224, 256, 384, 521}}, {psa.ECCPublicKey(psa.SECPR1), []int{256}}, {psa.ECCKeyPair(psa.SECPK1), []int{256}},
		{psa.ECCKeyPair(psa.BrainpoolPR1), []int{256}}, {psa.ECCKeyPair(psa.Montgomery), []int{255, 448}}, {psa.ECCKeyPair(psa.TwistedEdwards), []int{255, 448}},
		{psa.DHKeyPair(psa.RFC7919), []int{2048}}, {psa.KeyTypeMLDSAKeyPair, []int{192}}, {psa.KeyTypeMLKEMKeyPair, []int{768}},
	}
	for _, t := range types {
		for _, bits := range t.bits {
			for _, alg := range algorithms {
				list = append(list, psa.Attributes{Type: t.t, Bits: bits, Algorithm: alg})
			}
		}
	}
	return list
}

// usages are each flag by itself, and all that fit together.
func usages(a psa.Attributes) (list []psa.Usage) {
	var full psa.Usage
	for bit := range 16 {
		u := psa.Usage(1) << bit
		if len(u.Names()) == 1 && !strings.HasPrefix(u.Names()[0], "0x") {
			list = append(list, u)
			if with := (psa.Attributes{Type: a.Type, Bits: a.Bits, Algorithm: a.Algorithm, Usage: u}); with.Validate() == nil {
				full |= u
			}
		}
	}
	return append(list, full)
}

// TestCanDoIsWhatHappens makes, or fails to make, a key of every type, size and algorithm of the contract with each usage
// flag and with all of them, and compares that and the operations of the key with what can_do said.
func TestCanDoIsWhatHappens(t *testing.T) {
	requireFUSE(t)
	m := mountParsecfs(t, mountOptions{})
	provider := filepath.Join(m.Dir, "providers/software")
	var all []*asked
	for _, a := range contract() {
		if a.Type.IsRSA() && a.Bits > 3072 && !long() {
			continue
		}
		// Each new RSA key takes its time: the short form imports those that differ in their algorithm alone.
		// PSA_ALG_NONE is what a draft says that leaves it to the import.
		imported := a.Algorithm != psa.AlgNone && a.Type.IsRSA() && a.Algorithm.Hash() != psa.SHA256 && a.Algorithm != psa.RSAPKCS1v15Crypt && !long()
		for _, u := range usages(a) {
			a.Usage = u
			all = append(all, &asked{a: a, imported: imported})
		}
	}
	const batch = 200
	for at := 0; at < len(all); at += batch {
		part := all[at:min(at+batch, len(all))]
		var questions strings.Builder
		for _, q := range part {
			words := fmt.Sprintf("%s %d %s %s\n", q.a.Type, q.a.Bits, q.a.Algorithm, q.a.Usage)
			check := "generate "
			if q.imported {
				check = "import "
			}
			questions.WriteString(check + words + "use " + words)
		}
		b, err := ask(filepath.Join(provider, "can_do"), []byte(questions.String()))
		if err != nil {
			t.Fatal(err)
		}
		answers := strings.Split(strings.TrimSpace(string(b)), "\n")
		if len(answers) != 2*len(part)+1 {
			t.Fatalf("%d answers to %d questions: %s", len(answers), 2*len(part), answers[len(answers)-1])
		}
		for i, q := range part {
			for j, to := range []*bool{&q.make, &q.use} {
				switch answer := answers[2*i+j]; {
				case answer == "yes":
					*to = true
				case !strings.HasPrefix(answer, "no: "):
					t.Fatalf("the answer %q", answer)
				}
			}
		}
	}
	key := filepath.Join(provider, "keys/k")
	made, used := 0, 0
	var err error
	if err = os.Mkdir(key, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, q := range all {
		text := fmt.Sprintf("key_type = %q\nkey_bits = %d\npermitted_algorithm = %q\nusage = %q\n", q.a.Type, q.a.Bits, q.a.Algorithm, q.a.Usage)
		var err error
		if q.imported {
			if err = writeOnce(filepath.Join(key, "attributes"), []byte(text)); err == nil {
				err = writeOnce(filepath.Join(key, "import"), rsaKey(t, q.a))
			}
		} else {
			err = writeOnce(filepath.Join(key, "generate"), []byte(text))
		}
		if (err == nil) != q.make {
			t.Errorf("make %+v: can_do says %v, and what happens is %v", q.a, q.make, err)
		}
		if err != nil {
			if q.imported { // what was set stays in the draft
				anew(t, key)
			}
			continue
		}
		made++
		works := usable(t, key, q.a)
		if works != q.use {
			t.Errorf("use %s %d %s %s: can_do says %v, the key's files %v", q.a.Type, q.a.Bits, q.a.Algorithm, q.a.Usage, q.use, works)
		}
		if works {
			used++
		}
		anew(t, key)
	}
	t.Logf("%d kinds of keys: %d made, %d of them of use", len(all), made, used)
	if made < 500 || used < 200 {
		t.Error("too few to say something")
	}
}

func anew(t *testing.T, key string) {
	t.Helper()
	if err := errors.Join(os.Remove(key), os.Mkdir(key, 0o700)); err != nil {
		t.Fatal(err)
	}
}

var rsaKeys = map[string][]byte{}

// rsaKey is a key of that type and size, made once.
func rsaKey(t *testing.T, a psa.Attributes) []byte {
	t.Helper()
	name := fmt.Sprint(a.Type, a.Bits)
	if rsaKeys[name] == nil {
		private, err := exec.Command("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", fmt.Sprint("rsa_keygen_bits:", a.Bits)).Output()
		if err == nil && a.Type.IsPublicKey() {
			cmd := exec.Command("openssl", "pkey", "-pubout")
			cmd.Stdin = bytes.NewReader(private)
			private, err = cmd.Output()
		}
		if err != nil {
			t.Fatal(err)
		}
		rsaKeys[name] = private
	}
	return rsaKeys[name]
}

// usable says whether all that the usage flags name works: there is something, and each has its file.
func usable(t *testing.T, key string, a psa.Attributes) bool {
	t.Helper()
	named := 0
	for op, files := range map[psa.Operation][]string{psa.Sign: {"sign"}, psa.SignHash: {"sign_hash"}, psa.Verify: {"verify"}, psa.VerifyHash: {"verify_hash"},
		psa.Encrypt: {"encrypt"}, psa.Decrypt: {"decrypt"}, psa.Mac: {"mac"}, psa.VerifyMac: {"verify_mac"}, psa.Agree: {"agree"}, psa.Derive: {"derive"}, psa.Export: {"export"},
		psa.Encapsulate: {"encapsulate"}, psa.Decapsulate: {"decapsulate"}} {
		if need := op.Usage(); a.Usage&need != need || !a.Can(op) {
			continue
		}
		named++
		for _, file := range files {
			_, err := os.Stat(filepath.Join(key, file))
			if errors.Is(err, os.ErrNotExist) {
				return false
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if a.Usage&psa.UsageCopy != 0 {
		named++
		other := key + "-copy"
		if err := os.Mkdir(other, 0o700); err != nil {
			t.Fatal(err)
		}
		err := writeOnce(filepath.Join(other, "copy"), []byte(filepath.Base(key)+"\n"))
		if e := os.Remove(other); e != nil {
			t.Fatal(e)
		}
		if err != nil {
			return false
		}
	}
	return named > 0
}

// TestHashes compares hash/ with OpenSSL.
func TestHashes(t *testing.T) {
	requireFUSE(t)
	m := mountParsecfs(t, mountOptions{})
	dir := filepath.Join(m.Dir, "providers/software/hash")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	tried := 0
	for _, e := range entries {
		if e.IsDir() { // slots
			continue
		}
		tried++
		message := strings.Repeat("a message ", 100_000)
		got, err := ask(filepath.Join(dir, e.Name()), []byte(message))
		if err != nil {
			t.Errorf("%s: %v", e.Name(), err)
			continue
		}
		cmd := exec.Command("openssl", "dgst", "-binary", "-"+e.Name())
		cmd.Stdin = strings.NewReader(message)
		if want, err := cmd.Output(); err != nil || string(got) != string(want) {
			t.Errorf("%s: %x; OpenSSL: %x, %v", e.Name(), got, want, err)
		}
		slot := filepath.Join(dir, e.Name()+".d/slot")
		if err := os.WriteFile(slot, []byte(message), 0o600); err != nil {
			t.Fatal(err)
		}
		if again, err := os.ReadFile(slot); err != nil || string(again) != string(got) {
			t.Errorf("%s in a slot: %x, %v", e.Name(), again, err)
		}
		if err := os.Remove(slot); err != nil {
			t.Error(err)
		}
	}
	if tried < 8 {
		t.Errorf("only %d hashes", tried)
	}
}
