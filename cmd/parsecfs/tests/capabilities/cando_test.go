package capabilities

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
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
	hashes := []psa.Algorithm{psa.MD2, psa.MD4, psa.SHA512_224, psa.SHA224, psa.SHA256, psa.SHA384, psa.SHA512, psa.SHA512_256, psa.SHA3_224, psa.SHA3_256, psa.SHA3_384, psa.SHA3_512, psa.MD5, psa.SHA1, psa.RIPEMD160}
	algorithms := []psa.Algorithm{psa.AlgNone, psa.CMAC, psa.CBCMAC, psa.StreamCipher, psa.CTR, psa.CFB, psa.OFB, psa.XTS, psa.ECBNoPadding,
		psa.CBCNoPadding, psa.CBCPKCS7, psa.CCM, psa.GCM, psa.ChaCha20Poly1305,
		psa.AEADWithShortenedTag(psa.GCM, 12), psa.AEADWithShortenedTag(psa.CCM, 4), psa.AEADWithShortenedTag(psa.ChaCha20Poly1305, 12), psa.TruncatedMAC(psa.CMAC, 8),
		psa.TruncatedMAC(psa.HMAC(psa.SHA256), 16), psa.KeyAgreement(psa.FFDH, psa.HKDF(psa.SHA256)), psa.KeyAgreement(psa.ECDH, psa.TLS12PRF(psa.SHA384)), psa.RSAPKCS1v15SignRaw,
		psa.ECDSAAny, psa.PureEdDSA, psa.Ed25519ph, psa.MLDSA, psa.MLKEM, psa.RSAPKCS1v15Crypt, psa.ECDH, psa.FFDH, psa.SHA256,
		psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA256))}
	for _, h := range append(hashes, psa.AnyHash) {
		algorithms = append(algorithms, psa.RSAPKCS1v15Sign(h), psa.RSAPSS(h), psa.ECDSA(h), psa.DeterministicECDSA(h))
		if h != psa.AnyHash {
			algorithms = append(algorithms, psa.HMAC(h), psa.RSAOAEP(h), psa.HKDF(h), psa.TLS12PRF(h))
		}
	}
	types := []struct {
		t    psa.KeyType
		bits []int
	}{
		{psa.KeyTypeRawData, []int{8, 128}}, {psa.KeyTypeHMAC, []int{8, 256, 512}}, {psa.KeyTypeDerive, []int{256, 384}},
		{psa.KeyTypeAES, []int{128, 192, 256, 384, 512}}, {psa.KeyTypeARIA, []int{128}}, {psa.KeyTypeCamellia, []int{128, 192, 256}},
		{psa.KeyTypeDES, []int{64, 128, 192}}, {psa.KeyTypeChaCha20, []int{256}}, {psa.KeyTypeARC4, []int{40, 128, 2048}},
		{psa.KeyTypeRSAKeyPair, []int{1024, 2048, 3072, 4096, 8192}}, {psa.KeyTypeRSAPublicKey, []int{2048, 3072, 4096}},
		{psa.ECCKeyPair(psa.SECPR1), []int{192, 224, 256, 384, 521}}, {psa.ECCPublicKey(psa.SECPR1), []int{224, 256, 384, 521}},
		{psa.ECCKeyPair(psa.SECPK1), []int{192, 225, 256}}, {psa.ECCKeyPair(psa.SECPR2), []int{160}},
		{psa.ECCKeyPair(psa.SECTK1), []int{163, 233, 239, 283, 409, 571}}, {psa.ECCKeyPair(psa.SECTR1), []int{163, 233, 283, 409, 571}},
		{psa.ECCKeyPair(psa.SECTR2), []int{163}}, {psa.ECCKeyPair(psa.BrainpoolPR1), []int{160, 192, 224, 256, 320, 384, 512}},
		{psa.ECCKeyPair(psa.FRP), []int{256}}, {psa.ECCKeyPair(psa.Montgomery), []int{255, 448}}, {psa.ECCKeyPair(psa.TwistedEdwards), []int{255, 448}},
		{psa.DHKeyPair(psa.RFC7919), []int{2048, 3072, 4096, 6144, 8192}}, {psa.KeyTypeMLDSAKeyPair, []int{192}}, {psa.KeyTypeMLKEMKeyPair, []int{768}},
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
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	provider := filepath.Join(m.Dir, "providers/software")
	var all []*asked
	for _, a := range contract() {
		if a.Type.IsRSA() && a.Bits > 3072 && !parsecfstest.Long() {
			continue
		}
		// Each new RSA key takes its time: the short form imports those that differ in their algorithm alone.
		// PSA_ALG_NONE is what a draft says that leaves it to the import.
		imported := a.Algorithm != psa.AlgNone && a.Type.IsRSA() && (a.Bits > 2048 || a.Algorithm.Hash() != psa.SHA256 && a.Algorithm != psa.RSAPKCS1v15Crypt) && !parsecfstest.Long()
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
		b, err := parsecfstest.Ask(filepath.Join(provider, "can_do"), []byte(questions.String()))
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
	var made, used atomic.Int64
	var wg sync.WaitGroup
	next := make(chan *asked)
	for i := range 4 {
		key := filepath.Join(provider, "keys", fmt.Sprint("k", i))
		if err := os.Mkdir(key, 0o700); err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			for q := range next {
				did, works := q.happens(t, key)
				if did {
					made.Add(1)
				}
				if works {
					used.Add(1)
				}
			}
		})
	}
	tried := 0
	for i, q := range all {
		if q.make || parsecfstest.Long() || i%5 == 0 { // the short form tries all that works, and a fifth of what does not
			next <- q
			tried++
		}
	}
	close(next)
	wg.Wait()
	t.Logf("%d kinds of keys asked about, %d tried: %d made, %d of them of use", len(all), tried, made.Load(), used.Load())
	if made.Load() < 500 || used.Load() < 200 {
		t.Error("too few to say something")
	}
}

// happens makes a key out of a draft, or is refused, and compares that, and what the key then does, with the answers.
// The draft is there again after it.
func (q *asked) happens(t *testing.T, key string) (made, used bool) {
	text := fmt.Sprintf("key_type = %q\nkey_bits = %d\npermitted_algorithm = %q\nusage = %q\n", q.a.Type, q.a.Bits, q.a.Algorithm, q.a.Usage)
	var err error
	if q.imported {
		if err = parsecfstest.WriteOnce(filepath.Join(key, "attributes"), []byte(text)); err == nil {
			err = parsecfstest.WriteOnce(filepath.Join(key, "import"), rsaKey(t, q.a))
		}
	} else {
		err = parsecfstest.WriteOnce(filepath.Join(key, "generate"), []byte(text))
	}
	if (err == nil) != q.make {
		t.Errorf("make %s %d %s %s: can_do says %v, and what happens is %v", q.a.Type, q.a.Bits, q.a.Algorithm, q.a.Usage, q.make, err)
	}
	if err != nil {
		if q.imported { // what was set stays in the draft
			anew(t, key)
		}
		return false, false
	}
	works := usable(t, key, q.a)
	if works != q.use {
		t.Errorf("use %s %d %s %s: can_do says %v, the key's files %v", q.a.Type, q.a.Bits, q.a.Algorithm, q.a.Usage, q.use, works)
	}
	anew(t, key)
	return true, works
}

func anew(t *testing.T, key string) {
	t.Helper()
	if err := errors.Join(os.Remove(key), os.Mkdir(key, 0o700)); err != nil {
		t.Error(err)
	}
}

var (
	rsaMu   sync.Mutex
	rsaKeys = map[string][]byte{}
)

// rsaKey is a key of that type and size, made once.
func rsaKey(t *testing.T, a psa.Attributes) []byte {
	t.Helper()
	rsaMu.Lock()
	defer rsaMu.Unlock()
	name := fmt.Sprint(a.Type, a.Bits)
	if rsaKeys[name] == nil {
		private, err := exec.Command("openssl", "genpkey", "-algorithm", "RSA", "-pkeyopt", fmt.Sprint("rsa_keygen_bits:", a.Bits)).Output()
		if err == nil && a.Type.IsPublicKey() {
			cmd := exec.Command("openssl", "pkey", "-pubout")
			cmd.Stdin = bytes.NewReader(private)
			private, err = cmd.Output()
		}
		if err != nil {
			t.Error(err)
		}
		rsaKeys[name] = private
	}
	return rsaKeys[name]
}

// usable says whether all that the usage flags name works: there is something, and each is done, or refuses a
// signature, MAC or ciphertext that is none.
func usable(t *testing.T, key string, a psa.Attributes) bool {
	t.Helper()
	message := []byte("sixteen bytes, and sixteen more.")
	digest := make([]byte, 32)
	if n := a.Algorithm.HashLength(); n > 0 {
		digest = make([]byte, n)
	}
	none := make([]byte, a.SignatureLength())
	if a.Algorithm.IsECDSA() {
		none = []byte{0x30, 6, 2, 1, 1, 2, 1, 1} // r = s = 1 in ASN.1
	}
	ciphertext := make([]byte, a.Algorithm.NonceLength()+64)
	if a.Type.IsRSA() {
		ciphertext = make([]byte, a.Bits/8)
	}
	exported := "raw"
	var peer []byte
	if a.Type.IsAsymmetric() {
		exported = "pkcs8"
		var err error
		if peer, err = os.ReadFile(filepath.Join(key, "public.pem")); err != nil {
			t.Error(err)
		}
	}
	kem := make([]byte, map[int]int{768: 1088, 1024: 1568}[a.Bits])
	named := 0
	for op, request := range map[psa.Operation][][]byte{psa.Sign: {message}, psa.SignHash: {digest}, psa.Verify: {none, message}, psa.VerifyHash: {none, digest},
		psa.Encrypt: {message}, psa.Decrypt: {ciphertext}, psa.Mac: {message}, psa.VerifyMac: {none, message}, psa.Agree: {peer},
		psa.Derive: {message}, psa.Export: {[]byte(exported)}, psa.Encapsulate: nil, psa.Decapsulate: {kem}} {
		if need := op.Usage(); a.Usage&need != need || !a.Can(op) {
			continue
		}
		named++
		if _, err := os.Stat(filepath.Join(key, string(op))); errors.Is(err, os.ErrNotExist) {
			return false
		}
		if strings.Contains(a.Algorithm.String(), "TLS12_PRF") { // it wants a seed beside the label
			inputs := map[string][]byte{"salt": message, "info": message}
			if op == psa.Agree {
				inputs["peer"] = peer
			}
			if op == psa.Agree || op == psa.Derive {
				(&line{t: t, dir: key}).with(string(op), "secret", inputs)
				continue
			}
		}
		answer, err := parsecfstest.Ask(filepath.Join(key, string(op)), request...)
		switch {
		case errors.Is(err, syscall.EBADMSG) && (op == psa.Verify || op == psa.VerifyHash || op == psa.VerifyMac || op == psa.Decrypt):
		case err != nil || len(answer) == 0:
			t.Errorf("%s with %s %d %s %s: %q, %v", op, a.Type, a.Bits, a.Algorithm, a.Usage, answer, err)
		}
	}
	if a.Usage&psa.UsageCopy != 0 {
		named++
		other := key + "-copy"
		if err := os.Mkdir(other, 0o700); err != nil {
			t.Fatal(err)
		}
		err := parsecfstest.WriteOnce(filepath.Join(other, "copy"), []byte(filepath.Base(key)+"\n"))
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
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{})
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
		got, err := parsecfstest.Ask(filepath.Join(dir, e.Name()), []byte(message))
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
