package capabilities

import (
	"bytes"
	"crypto"
	_ "crypto/sha256"
	_ "crypto/sha512"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// line is one line of a mounted capabilities file, to be held to what it says.
type line struct {
	psa.Capability
	t         *testing.T
	dir       string // the key's directory
	temp      string // of the line's own
	materials *materials

	wrapped bool // it is exported in the device's own wrapping alone
}

// materials are keys that OpenSSL made, one of each type and size for all stores.
type materials struct {
	dir  string
	made sync.Map // of *sync.Once, by the key's file
}

// TestEveryLineOfCapabilities makes a key by every line and does all that the line names, with OpenSSL as the judge.
func TestEveryLineOfCapabilities(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	materials := &materials{dir: t.TempDir()}
	for _, store := range append(stores.All(), stores.Tokens()...) {
		t.Run(store.Name, func(t *testing.T) {
			t.Parallel()
			store.Begin(t)
			m := parsecfstest.Mount(t, parsecfstest.Options{Config: store.Config})
			provider := filepath.Join(m.Dir, "providers/p")
			lines := listedBy(t, provider)
			if lines[0] != psa.CapabilitiesHeader || len(lines) < 4 {
				t.Fatalf("%q", lines[0])
			}
			if !slices.IsSorted(lines[1:]) {
				t.Error("the lines are not sorted")
			}
			for i, text := range lines[1:] {
				t.Run(strings.ReplaceAll(strings.ReplaceAll(text, "\t", " "), "/", "-"), func(t *testing.T) {
					if store.Name == "software" { // the others have a device, which does one after the other
						t.Parallel()
					}
					c, err := psa.ParseCapability(text)
					if err != nil {
						t.Fatal(err)
					}
					if sizes := c.Sizes(); c.Most != 0 {
						c.Bits, c.Most = sizes[min(64, len(sizes)/2)], 0
						if parsecfstest.Long() {
							c.Bits = sizes[len(sizes)-1]
						}
					}
					l := &line{Capability: c, t: t, temp: t.TempDir(), materials: materials, dir: filepath.Join(provider, "keys", fmt.Sprint("line-", i)), wrapped: store.Name == "tpm"}
					if c.Has(psa.Random) {
						l.random(filepath.Join(provider, "random"))
						return
					}
					if c.Type == psa.KeyTypeNone && c.Has(psa.Attest) {
						l.device(provider)
						return
					}
					if c.Has(psa.Generate) && (parsecfstest.Long() || !c.Type.IsRSA() || generates(store, c)) {
						l.generate()
						l.operations(nil)
						l.remove()
					}
					if c.Has(psa.Import) {
						key := l.imported()
						l.operations(key)
						l.exported(key)
						l.remove()
					}
				})
			}
		})
	}
}

// listedBy are the lines of a provider's capabilities. At its first start a device may take long to be tried.
func listedBy(t *testing.T, provider string) []string {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(provider, "capabilities"))
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"); len(lines) > 1 || time.Now().After(deadline) {
			return lines
		}
	}
}

// TestWhatIsNotListedIsRefused: a template that capabilities does not name makes no key, and leaves the draft.
func TestWhatIsNotListedIsRefused(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	for _, store := range append(stores.All(), stores.Tokens()...) {
		t.Run(store.Name, func(t *testing.T) {
			t.Parallel()
			store.Begin(t)
			m := parsecfstest.Mount(t, parsecfstest.Options{Config: store.Config})
			provider := filepath.Join(m.Dir, "providers/p")
			listed := map[string]bool{}
			for _, text := range listedBy(t, provider) {
				name, _, _ := strings.Cut(text, "\t")
				listed[name] = true
			}
			draft := filepath.Join(provider, "keys/draft")
			if err := os.Mkdir(draft, 0o755); err != nil {
				t.Fatal(err)
			}
			refused := 0
			for _, template := range []string{
				"rsa-1024-pkcs1v15-sha256", "rsa-2048-pkcs1v15-sha256", "rsa-2048-pkcs1v15-sha1", "rsa-2048-pss-sha3-256", "rsa-2048-oaep-sha256",
				"rsa-2048-pkcs1v15-crypt", "rsa-8192-pss-sha256", "ecdsa-p224-sha256", "ecdsa-p256-sha3-256", "ecdsa-p384-sha384", "ecdsa-secp256k1-sha256",
				"ecdsa-brainpoolp256r1-sha256", "deterministic-ecdsa-p256-sha256", "ed448", "ecdh-p256", "x25519", "x448", "aes-128-gcm", "aes-256-ccm",
				"aes-256-ctr", "aes-256-cbc-pkcs7", "aes-256-cmac", "chacha20-poly1305", "hmac-sha256", "ml-dsa-65", "ml-kem-768", "slh-dsa-sha2-128s", "slh-dsa-shake-192s",
				"rsa-1024-oaep-sha256", "rsa-2560-pss-sha256", "rsa-2048-pss-sha512-256", "rsa-2048-oaep-any", "rsa-2048-oaep-sha1", "aes-192-xts",
				"aes-128-gcm-siv", "aes-512-gcm", "hmac-sha512-256", "hmac-sha1", "hmac-any", "ecdh-p224", "ecdsa-p192-sha256", "ecdsa-brainpoolp384r1-any",
				"chacha20", "ml-kem-512", "slh-dsa-shake-256s", "ecdsa-sect283k1-sha256",
				"ecdsa-brainpoolp320r1-sha256", "ecdsa-secp192k1-sha256", "hmac-md5", "rsa-3072-oaep-sha1", "aes-192-gcm-siv", "ecdsa-frp256v1-sha256",
				"", "-", "ecdsa", "ECDSA-P256-SHA256", "ecdsa-p256-sha256-", "rsa-2048", "rsa--pkcs1v15-sha256",
			} {
				if listed[template] {
					continue
				}
				refused++
				if err := parsecfstest.WriteOnce(filepath.Join(draft, "generate"), []byte(template+"\n")); err == nil {
					t.Errorf("%q made a key", template)
				}
				if _, err := os.Stat(filepath.Join(draft, "generate")); err != nil {
					t.Fatalf("after %q the draft is gone: %v", template, err)
				}
			}
			if refused < 25 {
				t.Errorf("only %d templates are not listed", refused)
			}
			if store.Objects != nil && len(store.Objects()) > 0 {
				t.Errorf("objects without a key: %v", store.Objects())
			}
			if err := parsecfstest.WriteOnce(filepath.Join(draft, "generate"), []byte("ecdsa-p256-sha256\n")); err != nil {
				t.Errorf("the draft does not become a key any more: %v", err)
			}
		})
	}
}

func (l *line) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *line) path(file string) string { return filepath.Join(l.dir, file) }

func (l *line) remove() {
	l.t.Helper()
	l.must(os.Remove(l.dir))
}

func (l *line) random(path string) {
	a, err := os.ReadFile(path)
	l.must(err)
	b, err := os.ReadFile(path)
	l.must(err)
	if len(a) != 64<<10 || bytes.Equal(a, b) {
		l.t.Errorf("random gave %d bytes, equal to the next: %v", len(a), bytes.Equal(a, b))
	}
}

func (l *line) generate() {
	l.t.Helper()
	l.must(os.Mkdir(l.dir, 0o755))
	l.must(parsecfstest.WriteOnce(l.path("generate"), []byte(l.Template+"\n")))
}

// imported brings in a key that OpenSSL made, and gives it.
func (l *line) imported() []byte {
	l.t.Helper()
	key := l.material()
	l.must(os.Mkdir(l.dir, 0o755))
	usage := l.Attributes().Usage
	if l.Has(psa.Export) {
		usage |= psa.UsageExport
	}
	if l.Has(psa.Copy) {
		usage |= psa.UsageCopy
	}
	attributes := fmt.Sprintf("key_type = %q\nkey_bits = %d\npermitted_algorithm = %q\nusage = [%s]\n", l.Type, l.Bits, l.Algorithm, quoted(usage.Names()))
	if template := l.template(); template != "" {
		attributes = fmt.Sprintf("template = %q\nkey_type = %q\nusage = [%s]\n", template, l.Type, quoted(usage.Names()))
	}
	l.must(parsecfstest.WriteOnce(l.path("attributes"), []byte(attributes)))
	l.must(parsecfstest.WriteOnce(l.path("import"), key))
	return key
}

// template is that of the pair, which takes a public key alone too.
func (l *line) template() string {
	if l.Template != "" {
		return l.Template
	}
	return psa.Attributes{Type: l.Type.KeyPair(), Bits: l.Bits, Algorithm: l.Algorithm}.Template()
}

func quoted(words []string) string {
	for i, w := range words {
		words[i] = fmt.Sprintf("%q", w)
	}
	return strings.Join(words, ", ")
}

// keyFile is the line's private or secret key as OpenSSL made it; the public one stands beside it.
func (l *line) keyFile() string {
	return filepath.Join(l.materials.dir, fmt.Sprintf("%x-%d.key", uint16(l.Type.KeyPair()), l.Bits))
}

// material is a key of the line's type, made once.
func (l *line) material() []byte {
	l.t.Helper()
	file := l.keyFile()
	once, _ := l.materials.made.LoadOrStore(file, new(sync.Once))
	once.(*sync.Once).Do(func() { l.makeMaterial(file) })
	if l.Type.IsPublicKey() {
		file += ".pub"
	}
	return l.read(file)
}

func (l *line) makeMaterial(file string) {
	l.t.Helper()
	switch {
	case l.Type.IsRSA():
		l.openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", fmt.Sprint("rsa_keygen_bits:", l.Bits), "-out", file)
	case l.Type.Family() == psa.TwistedEdwards || l.Type.Family() == psa.Montgomery:
		l.openssl("genpkey", "-algorithm", l.edwardsOrMontgomery(), "-out", file)
	case l.postQuantum():
		private, public, err := providertest.RawPair(l.Type, l.Bits)
		l.must(err)
		for name, k := range map[string]psa.RawKey{file: private, file + ".pub": public} {
			der, err := k.Marshal()
			l.must(err)
			l.must(os.WriteFile(name, der, 0o600))
		}
		return
	case l.Type.IsECC():
		l.openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:"+l.curve(), "-out", file)
	default:
		l.openssl("rand", "-out", file, fmt.Sprint(l.Bits/8))
		return
	}
	l.openssl("pkey", "-in", file, "-pubout", "-out", file+".pub")
}

// curve is OpenSSL's name of a curve for ECDSA.
func (l *line) curve() string {
	switch l.Type.Family() {
	case psa.SECPK1:
		return fmt.Sprintf("secp%dk1", l.Bits)
	case psa.BrainpoolPR1:
		return fmt.Sprintf("brainpoolP%dr1", l.Bits)
	}
	return fmt.Sprint("P-", l.Bits)
}

// edwardsOrMontgomery is OpenSSL's name of such a curve with its algorithm.
func (l *line) edwardsOrMontgomery() string {
	name := map[psa.ECCFamily]string{psa.TwistedEdwards: "ED", psa.Montgomery: "X"}[l.Type.Family()]
	return name + strings.Replace(fmt.Sprint(l.Bits), "255", "25519", 1)
}

// postQuantum says whether OpenSSL 3.0 does not know this type; another library is the judge then.
func (l *line) postQuantum() bool {
	return l.Type.IsAsymmetric() && !l.Type.IsRSA() && !l.Type.IsECC()
}

func (l *line) openssl(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("openssl %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (l *line) ask(file string, request ...[]byte) []byte {
	l.t.Helper()
	b, err := parsecfstest.Ask(l.path(file), request...)
	if err != nil {
		l.t.Fatalf("%s: %v", file, err)
	}
	return b
}

// hash is the one that the line's keys sign messages with.
func (l *line) hash() (crypto.Hash, string) {
	a, err := l.Attributes().Resolve(psa.Sign, 0)
	l.must(err)
	h, _ := a.CryptoHash()
	return h, "-" + opensslHash(h)
}

// opensslHash is OpenSSL's name of a hash.
func opensslHash(h crypto.Hash) string {
	return map[crypto.Hash]string{crypto.SHA224: "sha224", crypto.SHA256: "sha256", crypto.SHA384: "sha384", crypto.SHA512: "sha512",
		crypto.SHA3_224: "sha3-224", crypto.SHA3_256: "sha3-256", crypto.SHA3_384: "sha3-384", crypto.SHA3_512: "sha3-512"}[h]
}

// operations does all that the line names beside generate, import and export. key is what was imported, nil where the
// provider made it.
func (l *line) operations(key []byte) {
	t := l.t
	t.Helper()
	message := []byte("a message that is longer than some blocks of a cipher, for " + l.String())
	for _, op := range l.Operations {
		switch op {
		case psa.ExportPublic:
			l.public()
		case psa.Sign:
			signature := l.ask("sign", message)
			l.opensslVerifies(message, signature)
			if again := l.ask("sign", message); l.Algorithm == psa.DeterministicECDSA(l.Algorithm.Hash()) && !bytes.Equal(signature, again) {
				t.Error("deterministic ECDSA made two signatures")
			}
		case psa.SignHash:
			l.opensslVerifies(message, l.ask("sign_hash", l.digest(message)))
		case psa.Verify:
			l.verifies("verify", message, message)
		case psa.VerifyHash:
			l.verifies("verify_hash", message, l.digest(message))
		case psa.Encrypt:
			if l.Algorithm.IsAsymmetricEncryption() {
				l.encrypts(message[:20])
			} else {
				l.encryptsBothWays(key, message[:64])
			}
		case psa.Mac:
			l.mac(key, message)
		case psa.Agree:
			l.agrees()
		case psa.Derive:
			l.derivesFrom(key)
		case psa.CSR:
			l.requests()
		case psa.Copy:
			l.copies(key)
		case psa.Encapsulate:
			l.encapsulates(key)
		case psa.Decapsulate:
			l.decapsulates()
		case psa.Attest:
			l.attest()
		case psa.ActivateCredential:
			l.activates()
		case psa.Generate, psa.Import, psa.Export, psa.Decrypt, psa.VerifyMac: // done by their callers, with Encrypt and with Mac
		default:
			t.Errorf("nothing here tries %s", op)
		}
	}
}

func (l *line) digest(message []byte) []byte {
	h, _ := l.hash()
	sum := h.New()
	sum.Write(message)
	return sum.Sum(nil)
}

// public is the key's own file with its public key.
func (l *line) public() string {
	l.t.Helper()
	b, err := os.ReadFile(l.path("public.pem"))
	l.must(err)
	block, _ := pem.Decode(b)
	if block == nil {
		l.t.Fatalf("public.pem holds %q", b)
	}
	if psa.IsRawKey(l.Type, l.Bits) {
		_, err = psa.ParseRawKey(block.Bytes)
	} else {
		_, err = x509.ParsePKIXPublicKey(block.Bytes)
	}
	l.must(err)
	der, err := os.ReadFile(l.path("public.der"))
	l.must(err)
	if !bytes.Equal(der, block.Bytes) {
		l.t.Error("public.der and public.pem differ")
	}
	l.otherForms(block.Bytes)
	return l.path("public.pem")
}

// rawPublic is the key's public part where crypto/x509 does not know it.
func (l *line) rawPublic() psa.RawKey {
	l.t.Helper()
	l.public()
	k, err := psa.ParseRawKey(l.read(l.path("public.der")))
	l.must(err)
	return k
}

func (l *line) read(path string) []byte {
	l.t.Helper()
	b, err := os.ReadFile(path)
	l.must(err)
	return b
}

func (l *line) file(name string, b []byte) string {
	l.t.Helper()
	path := filepath.Join(l.temp, name)
	l.must(os.WriteFile(path, b, 0o600))
	return path
}

// pss are the options of openssl dgst for PSS as PSA has it: the salt is as long as the hash.
func (l *line) pss() []string {
	if l.Algorithm.IsRSAPSS() {
		return []string{"-sigopt", "rsa_padding_mode:pss", "-sigopt", "rsa_pss_saltlen:digest"}
	}
	return nil
}

func (l *line) opensslVerifies(message, signature []byte) {
	l.t.Helper()
	if l.postQuantum() {
		l.must(providertest.RawVerify(l.rawPublic(), l.Algorithm, message, signature))
		return
	}
	m, s := l.file("message", message), l.file("signature", signature)
	if l.Algorithm == psa.PureEdDSA {
		l.openssl("pkeyutl", "-verify", "-pubin", "-inkey", l.public(), "-rawin", "-in", m, "-sigfile", s)
		return
	}
	_, name := l.hash()
	l.openssl(append(append([]string{"dgst", name}, l.pss()...), "-verify", l.public(), "-signature", s, m)...)
}

// verifies has the key judge a signature: its own, or OpenSSL's where it cannot sign.
func (l *line) verifies(file string, message, request []byte) {
	l.t.Helper()
	var signature []byte
	if l.Has(psa.Sign) {
		signature = l.ask("sign", message)
	} else if !l.Type.IsPublicKey() {
		l.t.Fatalf("the line verifies and does not sign: %s", l)
	} else {
		signature = l.opensslSigns(message)
	}
	if answer := l.ask(file, signature, request); string(answer) != "valid\n" {
		l.t.Errorf("%s said %q", file, answer)
	}
	request = slices.Clone(request)
	request[0] ^= 1
	if answer, err := parsecfstest.Ask(l.path(file), signature, request); err == nil || len(answer) > 0 {
		l.t.Errorf("%s of another message said %q", file, answer)
	}
}

func (l *line) opensslSigns(message []byte) []byte {
	l.t.Helper()
	key := l.keyFile()
	if l.postQuantum() {
		private, err := psa.ParseRawKey(l.read(key))
		l.must(err)
		signature, err := providertest.RawSign(private, l.Algorithm, message)
		l.must(err)
		return signature
	}
	m, s := l.file("message", message), filepath.Join(l.temp, "signature")
	if l.Algorithm == psa.PureEdDSA {
		l.openssl("pkeyutl", "-sign", "-inkey", key, "-rawin", "-in", m, "-out", s)
	} else {
		_, name := l.hash()
		l.openssl(append(append([]string{"dgst", name}, l.pss()...), "-sign", key, "-out", s, m)...)
	}
	b, err := os.ReadFile(s)
	l.must(err)
	return b
}

// exported compares what comes out with what went in; a key without the EXPORT flag has no such file.
func (l *line) exported(key []byte) {
	l.t.Helper()
	if !l.Has(psa.Export) {
		if _, err := os.Stat(l.path("export")); !errors.Is(err, os.ErrNotExist) {
			l.t.Errorf("export without the flag: %v", err)
		}
		return
	}
	if l.wrapped {
		if got := l.ask("export", []byte("tss2\n")); !bytes.HasPrefix(got, []byte("-----BEGIN TSS2 PRIVATE KEY-----")) {
			l.t.Errorf("export gave %q", got)
		}
		return
	}
	if !l.Type.IsAsymmetric() {
		if got := l.ask("export", []byte("raw")); !bytes.Equal(got, key) {
			l.t.Error("another key came out")
		}
		return
	}
	if l.postQuantum() {
		if !bytes.Equal(l.ask("export", []byte("pkcs8-der")), key) {
			l.t.Error("another key came out")
		}
		return
	}
	// The same key may be spelled in two ways, so OpenSSL spells both.
	spell := func(b []byte) []byte {
		path := l.file("spell", b)
		l.openssl("pkey", "-in", path, "-outform", "DER", "-out", path+".der")
		der, err := os.ReadFile(path + ".der")
		l.must(err)
		return der
	}
	if !bytes.Equal(spell(l.ask("export", []byte("pkcs8"))), spell(key)) {
		l.t.Error("another key came out")
	}
}

// generates says whether the short form makes an RSA key by a line: larger ones take seconds each, and are made for one
// hash of each scheme; a token that takes keys makes one alone.
func generates(s stores.Store, c psa.Capability) bool {
	if s.Token && c.Has(psa.Import) {
		return c.Bits == 2048 && c.Algorithm == psa.RSAPKCS1v15Sign(psa.SHA256)
	}
	return c.Bits <= 2048 || c.Algorithm.Hash() == psa.SHA256
}
