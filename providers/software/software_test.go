package software_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

var (
	message = []byte("attack at dawn")
	handle  = providers.Handle{1}
)

func newProvider(t *testing.T) providers.Provider {
	t.Helper()
	p, err := software.Type.New(t.Context(), providers.Config{Name: "software"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

func template(t *testing.T, s string) psa.Attributes {
	t.Helper()
	a, err := psa.ParseTemplate(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// publicOf are a pair's attributes for its public key alone.
func publicOf(a psa.Attributes) psa.Attributes {
	a.Type = a.Type.PublicKey()
	a.Usage &= psa.UsageVerifyMessage | psa.UsageVerifyHash
	return a
}

func create(t *testing.T, p providers.Provider, a psa.Attributes, m *psa.Material) providers.Blob {
	t.Helper()
	b, err := p.Create(t.Context(), handle, a, m)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func open(t *testing.T, p providers.Provider, a psa.Attributes, b providers.Blob) providers.Key {
	t.Helper()
	k, err := p.Open(t.Context(), handle, a, b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func generated(t *testing.T, p providers.Provider, a psa.Attributes) (providers.Key, providers.Blob) {
	t.Helper()
	b := create(t, p, a, nil)
	return open(t, p, a, b), b
}

func run(t *testing.T, k providers.Key, op psa.Op, input []byte) (map[string][]byte, error) {
	t.Helper()
	r, err := k.Begin(t.Context(), op)
	if err != nil {
		return nil, err
	}
	// In two parts, as a file is written.
	for _, part := range [][]byte{input[:len(input)/2], input[len(input)/2:]} {
		if _, err := r.Write(part); err != nil {
			r.Abort()
			return nil, err
		}
	}
	result, err := r.Finish(t.Context())
	return result.Outputs, err
}

func must(t *testing.T, k providers.Key, op psa.Op, input []byte) map[string][]byte {
	t.Helper()
	out, err := run(t, k, op, input)
	if err != nil {
		t.Fatalf("%s with %s: %v", op.Operation, op.Algorithm, err)
	}
	return out
}

func wantStatus(t *testing.T, what string, err error, want psa.Status) {
	t.Helper()
	if got := psa.StatusOf(err); got != want {
		t.Errorf("%s: %v, want %s", what, err, want)
	}
}

// openssl runs the command, with its working directory and files in dir.
func openssl(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	c := exec.Command("openssl", args...)
	c.Dir = dir
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func needOpenSSL(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("no openssl command")
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCapabilities(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	lines, err := p.Capabilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, line := range lines {
		back, err := psa.ParseCapability(line.String())
		if err != nil || back.String() != line.String() {
			t.Errorf("%v is read as %v, %v", line, back, err)
		}
		if line.Template == "" && line.Type != psa.KeyTypeNone && line.Most == 0 {
			t.Errorf("%v has no template", line)
		}
		if line.Has(psa.Generate) && line.Has(psa.Export) {
			t.Errorf("%v exports what a template alone does not let it", line)
		}
		text = append(text, line.String())
	}
	// Each has a pair or a secret, its export, and where it can do something a public key alone.
	short, other := 4+3+3, 3+3+3                     // RSA: the sizes to generate, the weak and the other ones to import; hashes too long for 1024 bits
	signing := 2*(4*short+5*other) + 4*2*9*3 + 4*4*3 // RSA: 2 schemes; 4 curves, 2 nonces, 8 hashes and any; 4 other curves, 3 hashes and any
	encryption := short + 4*short + 4*other          // PKCS #1 v1.5, and OAEP with 8 hashes
	agreement := 4 * 6 * 2                           // 3 curves and X25519; raw, and 5 key derivations
	ciphers := (3*(8+4+6) + 2 + 1) * 2               // AES: 3 sizes, 8 modes, shorter tags; XTS: 2 sizes; ChaCha20-Poly1305
	macs := 3*4*2 + 8*3 + 2*(5+6+10+14)*2            // CMAC: 3 sizes, 4 lengths; HMAC: 8 hashes, truncated ones
	raw := 3 + 6*2 + 3*3 + 2*3 + 6*3 + 5*3 + 1       // Ed448, X448, ML-DSA, ML-KEM, SLH-DSA, key derivations, raw data
	if want := raw + signing + encryption + agreement + ciphers + macs + 3 + 1 + 8; len(lines) != want {
		t.Errorf("%d lines, want %d", len(lines), want)
	}
	if !slices.IsSorted(text) || len(slices.Compact(slices.Clone(text))) != len(text) {
		t.Error("the lines are not sorted, or some stand there twice")
	}
	const ec = "(PSA_ECC_FAMILY_SECP_R1)\t384\tPSA_ALG_ECDSA(PSA_ALG_SHA_384)\t"
	const edwards = "(PSA_ECC_FAMILY_TWISTED_EDWARDS)\t255\tPSA_ALG_PURE_EDDSA\t"
	for _, want := range []string{
		"-\t-\t-\t-\trandom",
		"aes-256-gcm\tPSA_KEY_TYPE_AES\t256\tPSA_ALG_GCM\tgenerate,import,encrypt,decrypt",
		"aes-256-gcm\tPSA_KEY_TYPE_AES\t256\tPSA_ALG_GCM\timport,copy,export",
		"ecdsa-p384-sha384\tPSA_KEY_TYPE_ECC_KEY_PAIR" + ec + "generate,import,export_public,sign,sign_hash,verify,verify_hash",
		"ecdsa-p384-sha384\tPSA_KEY_TYPE_ECC_KEY_PAIR" + ec + "import,copy,export",
		"ecdsa-p384-sha384\tPSA_KEY_TYPE_ECC_PUBLIC_KEY" + ec + "import,export_public,verify,verify_hash",
		"ed25519\tPSA_KEY_TYPE_ECC_KEY_PAIR" + edwards + "generate,import,export_public,sign,verify",
		"ed25519\tPSA_KEY_TYPE_ECC_PUBLIC_KEY" + edwards + "import,export_public,verify",
		"rsa-4096-pss-any\tPSA_KEY_TYPE_RSA_KEY_PAIR\t4096\tPSA_ALG_RSA_PSS(PSA_ALG_ANY_HASH)\t" +
			"generate,import,export_public,sign,sign_hash,verify,verify_hash",
	} {
		if !slices.Contains(text, want) {
			t.Errorf("the line %q is missing", want)
		}
	}
	lines[len(lines)-1].Operations[0] = psa.Decrypt
	again, err := p.Capabilities(t.Context())
	if err != nil || again[len(again)-1].Operations[0] == psa.Decrypt {
		t.Error("a caller can change the table")
	}
}

// TestForeignPKCS8 imports PKCS#8 of the openssl command: the blob has the key and nothing that came beside it.
func TestForeignPKCS8(t *testing.T) {
	t.Parallel()
	needOpenSSL(t)
	p := newProvider(t)
	a := template(t, "ecdsa-p256-sha256")
	dir := t.TempDir()
	openssl(t, dir, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", "key.pem")
	openssl(t, dir, "pkcs8", "-topk8", "-nocrypt", "-in", "key.pem", "-outform", "DER", "-out", "key.der")
	foreign := append(read(t, dir, "key.der"), "rubbish"...)
	b := create(t, p, a, &psa.Material{Format: psa.FormatPKCS8, Data: foreign})
	if bytes.Contains(b.Secret, []byte("rubbish")) {
		t.Error("what stood behind the key came in with it")
	}
	open(t, p, a, b)
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func spki(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// damaged is a key whose private exponent does not fit.
func damaged(t *testing.T, k *rsa.PrivateKey) []byte {
	t.Helper()
	good := k.D.Bytes()
	der := pkcs8(t, k)
	at := bytes.Index(der, good)
	if at < 0 {
		t.Fatal("no private exponent in PKCS#8")
	}
	der[at+len(good)-2] ^= 0x10
	return der
}

// brainpoolKey is a public key on brainpoolP256r1 whose point was changed.
func brainpoolKey(t *testing.T, change func(point []byte)) []byte {
	t.Helper()
	a := template(t, "ecdsa-brainpoolp256r1-sha256")
	blob, err := newProvider(t).Create(t.Context(), handle, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	change(blob.Public[len(blob.Public)-65:])
	return blob.Public
}

// koblitzOrder is the order of secp256k1 (SEC 2, 2.4.1).
var koblitzOrder, _ = hex.DecodeString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141")

// koblitzKey is a private key for secp256k1.
func koblitzKey(t *testing.T, scalar []byte) []byte {
	t.Helper()
	der, err := psa.RawKey{Type: psa.ECCKeyPair(psa.SECPK1), Bits: 256, Bytes: scalar}.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func TestWrongMaterial(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x25519, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	offCurve := spki(t, &p256.PublicKey)
	offCurve[len(offCurve)-1] ^= 1
	even := spki(t, &rsa.PublicKey{N: new(big.Int).Sub(rsa2048.N, big.NewInt(1)), E: 65537})
	offBrainpool := brainpoolKey(t, func(point []byte) { point[len(point)-1] ^= 1 })
	infinity := brainpoolKey(t, func(point []byte) { clear(point[1:]) })
	zero, order := koblitzKey(t, make([]byte, 32)), koblitzKey(t, koblitzOrder)
	private, public, raw := psa.FormatPKCS8, psa.FormatSPKI, psa.FormatRaw
	for _, c := range []struct {
		what     string
		template string
		public   bool
		format   psa.MaterialFormat
		data     []byte
	}{
		{"no bytes", "ecdsa-p256-sha256", false, private, nil},
		{"text", "ecdsa-p256-sha256", false, private, []byte("ecdsa")},
		{"a cut key", "ecdsa-p256-sha256", false, private, pkcs8(t, p256)[:40]},
		{"another curve", "ecdsa-p384-sha384", false, private, pkcs8(t, p256)},
		{"a curve of no line", "ecdsa-p256-sha256", false, private, pkcs8(t, p224)},
		{"another family", "ecdsa-p256-sha256", false, private, pkcs8(t, ed)},
		{"X25519", "ed25519", false, private, pkcs8(t, x25519)},
		{"X25519's public key", "ed25519", true, public, spki(t, x25519.PublicKey())},
		{"EC for RSA", "rsa-2048-pss-sha256", false, private, pkcs8(t, p256)},
		{"another size of RSA", "rsa-3072-pss-sha256", false, private, pkcs8(t, rsa2048)},
		{"another size of a public RSA key", "rsa-4096-pss-any", true, public, spki(t, &rsa2048.PublicKey)},
		{"a damaged RSA key", "rsa-2048-pss-sha256", false, private, damaged(t, rsa2048)},
		{"an even modulus", "rsa-2048-pss-sha256", true, public, even},
		{"the exponent 1", "rsa-2048-pss-sha256", true, public, spki(t, &rsa.PublicKey{N: rsa2048.N, E: 1})},
		{"an even exponent", "rsa-2048-pss-sha256", true, public, spki(t, &rsa.PublicKey{N: rsa2048.N, E: 4})},
		{"a point off the curve", "ecdsa-p256-sha256", true, public, offCurve},
		{"a point off brainpoolP256r1", "ecdsa-brainpoolp256r1-sha256", true, public, offBrainpool},
		{"no point of brainpoolP256r1", "ecdsa-brainpoolp256r1-sha256", true, public, infinity},
		{"P-256 for brainpoolP256r1", "ecdsa-brainpoolp256r1-sha256", true, public, spki(t, &p256.PublicKey)},
		{"P-256 for secp256k1", "ecdsa-secp256k1-sha256", false, private, pkcs8(t, p256)},
		{"the private key 0", "ecdsa-secp256k1-sha256", false, private, zero},
		{"the order as a private key", "ecdsa-secp256k1-sha256", false, private, order},
		{"a public key for a pair", "ed25519", false, public, spki(t, edPublic)},
		{"a pair for a public key", "ed25519", true, private, pkcs8(t, ed)},
		{"a pair called a public key", "ed25519", true, public, pkcs8(t, ed)},
		{"a public key called a pair", "ed25519", false, private, spki(t, edPublic)},
		{"raw bytes for a pair", "ed25519", false, raw, ed},
		{"a pair for AES", "aes-256-gcm", false, private, make([]byte, 32)},
		{"a short AES key", "aes-256-gcm", false, raw, make([]byte, 16)},
		{"a long AES key", "aes-256-gcm", false, raw, make([]byte, 33)},
		{"no AES key", "aes-256-gcm", false, raw, nil},
		{"no format", "aes-256-gcm", false, 0, make([]byte, 32)},
	} {
		a := template(t, c.template)
		if c.public {
			a = publicOf(a)
		}
		b, err := p.Create(t.Context(), handle, a, &psa.Material{Format: c.format, Data: c.data})
		wantStatus(t, c.what, err, psa.StatusInvalidArgument)
		if b.Public != nil || b.Secret != nil {
			t.Errorf("%s: there is a blob", c.what)
		}
	}
}

func TestAttributesRefused(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	for _, name := range []string{
		"rsa-1024-pss-sha512", "rsa-2048-pss-sha512-256", "ecdsa-secp192k1-sha256",
		"ecdsa-brainpoolp320r1-sha256", "deterministic-ecdsa-brainpoolp256r1-sha256", "deterministic-ecdsa-secp256k1-sha256", "ecdh-p224", "aes-192-xts", "hmac-sha512-256", "slh-dsa-sha2-128s",
	} {
		a := template(t, name)
		_, err := p.Create(t.Context(), handle, a, nil)
		wantStatus(t, "generate "+name, err, psa.StatusNotSupported)
		_, err = p.Create(t.Context(), handle, a, &psa.Material{Format: psa.FormatRaw, Data: make([]byte, 32)})
		wantStatus(t, "import "+name, err, psa.StatusNotSupported)
		_, err = p.Open(t.Context(), handle, a, providers.Blob{Secret: make([]byte, 32)})
		wantStatus(t, "open "+name, err, psa.StatusNotSupported)
	}
	a := template(t, "aes-256-gcm")
	a.Usage |= psa.UsageSignHash
	_, err := p.Create(t.Context(), handle, a, nil)
	wantStatus(t, "a usage that does nothing", err, psa.StatusInvalidArgument)
	_, err = p.Create(t.Context(), handle, psa.Attributes{}, nil)
	wantStatus(t, "no attributes", err, psa.StatusInvalidArgument)
}

func TestPublicKeyAlone(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	for _, name := range []string{"rsa-2048-pkcs1v15-any", "ecdsa-p384-sha384", "ed25519"} {
		a := template(t, name)
		public := publicOf(a)
		_, err := p.Create(t.Context(), handle, public, nil)
		wantStatus(t, name+": generate", err, psa.StatusInvalidArgument)
		if psa.HintOf(err) == "" {
			t.Errorf("%s: no hint", name)
		}
		pair := create(t, p, a, nil)
		b := create(t, p, public, &psa.Material{Format: psa.FormatSPKI, Data: pair.Public})
		if len(b.Secret) != 0 || !bytes.Equal(b.Public, pair.Public) {
			t.Errorf("%s: the blob is not the public key", name)
		}
		k := open(t, p, public, b)
		alg := a.Algorithm.WithHash(psa.SHA384)
		for _, op := range psa.Operations() {
			_, err := k.Begin(t.Context(), psa.Op{Operation: op, Algorithm: alg, Inputs: map[string][]byte{"signature": {1}}})
			want := psa.StatusNotSupported
			if op == psa.ExportPublic || op == psa.Verify || op == psa.VerifyHash && alg.IsHashAndSign() {
				want = psa.StatusSuccess
			}
			wantStatus(t, name+": "+string(op), err, want)
		}
		_, err = p.Open(t.Context(), handle, public, pair)
		wantStatus(t, name+": a secret in a public key's blob", err, psa.StatusDataCorrupt)
	}
}

func TestBeginRefuses(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	sig := map[string][]byte{"signature": make([]byte, 64)}
	for _, c := range []struct {
		template string
		op       psa.Operation
		alg      psa.Algorithm
	}{
		{"ecdsa-p256-sha256", psa.Sign, psa.ECDSA(psa.SHA384)}, // the policy has one hash
		{"ecdsa-p256-sha256", psa.Verify, psa.ECDSA(psa.SHA384)},
		{"ecdsa-p256-sha256", psa.Sign, psa.ECDSA(psa.AnyHash)},
		{"ecdsa-p256-any", psa.Sign, psa.ECDSA(psa.AnyHash)}, // a policy, no algorithm
		{"ecdsa-p256-any", psa.SignHash, psa.ECDSA(psa.SHA512_256)},
		{"ecdsa-p256-any", psa.SignHash, psa.ECDSAAny},
		{"ecdsa-p256-any", psa.Sign, psa.DeterministicECDSA(psa.SHA256)},
		{"ecdsa-p256-any", psa.Sign, psa.RSAPSS(psa.SHA256)},
		{"ecdsa-p256-any", psa.Sign, psa.AlgNone},
		{"ecdsa-p256-any", psa.Generate, psa.ECDSA(psa.SHA256)},
		{"ecdsa-p256-any", psa.Import, psa.ECDSA(psa.SHA256)},
		{"ecdsa-p256-any", psa.Random, psa.ECDSA(psa.SHA256)},
		{"ecdsa-p256-any", psa.Encrypt, psa.ECDSA(psa.SHA256)},
		{"ecdsa-p256-any", "derive", psa.ECDSA(psa.SHA256)},
		{"rsa-2048-pss-any", psa.Sign, psa.RSAPKCS1v15Sign(psa.SHA256)},
		{"rsa-2048-pss-any", psa.Verify, psa.RSAPSSAnySalt(psa.SHA256)},
		{"rsa-2048-pkcs1v15-any", psa.SignHash, psa.RSAPKCS1v15SignRaw},
		{"ed25519", psa.SignHash, psa.PureEdDSA},
		{"ed25519", psa.VerifyHash, psa.PureEdDSA},
		{"ed25519", psa.SignHash, psa.Ed25519ph},
		{"aes-256-gcm", psa.Sign, psa.GCM},
		{"aes-256-gcm", psa.ExportPublic, psa.GCM},
		{"aes-256-gcm", psa.Encrypt, psa.CCM},
		{"aes-256-gcm", psa.Encrypt, psa.AEADWithShortenedTag(psa.GCM, 12)},
	} {
		k, _ := generated(t, p, template(t, c.template))
		_, err := k.Begin(t.Context(), psa.Op{Operation: c.op, Algorithm: c.alg, Inputs: sig})
		wantStatus(t, fmt.Sprintf("%s: %s with %s", c.template, c.op, c.alg), err, psa.StatusNotSupported)
	}
	for _, name := range []string{"aes-256-gcm", "ed25519"} {
		k, _ := generated(t, p, template(t, name))
		_, err := k.Begin(t.Context(), psa.Op{Operation: psa.Export})
		wantStatus(t, name+": export without EXPORT", err, psa.StatusNotPermitted)
	}
}

func TestAEAD(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := template(t, "aes-256-gcm")
	k, b := generated(t, p, a)
	if k.Public() != nil || b.Public != nil || len(b.Secret) != 32 {
		t.Errorf("the blob has a public key, or a secret of %d bytes", len(b.Secret))
	}
	ad := []byte("header")
	sealed := must(t, k, psa.Op{Operation: psa.Encrypt, Algorithm: psa.GCM, Inputs: map[string][]byte{"additional_data": ad}}, message)
	if len(sealed["nonce"]) != 12 || len(sealed["ciphertext"]) != len(message)+16 {
		t.Fatalf("nonce of %d bytes, ciphertext of %d", len(sealed["nonce"]), len(sealed["ciphertext"]))
	}
	flipped := func(b []byte, at int) []byte {
		c := bytes.Clone(b)
		c[at] ^= 1
		return c
	}
	other, _ := generated(t, p, a)
	nonce, ciphertext := sealed["nonce"], sealed["ciphertext"]
	for _, c := range []struct {
		what            string
		key             providers.Key
		nonce, ad, text []byte
		want            psa.Status
	}{
		{"untouched", k, nonce, ad, ciphertext, psa.StatusSuccess},
		{"ciphertext", k, nonce, ad, flipped(ciphertext, 0), psa.StatusInvalidSignature},
		{"tag", k, nonce, ad, flipped(ciphertext, len(ciphertext)-1), psa.StatusInvalidSignature},
		{"cut tag", k, nonce, ad, ciphertext[:len(ciphertext)-1], psa.StatusInvalidSignature},
		{"nothing", k, nonce, ad, nil, psa.StatusInvalidSignature},
		{"nonce", k, flipped(nonce, 3), ad, ciphertext, psa.StatusInvalidSignature},
		{"additional data", k, nonce, flipped(ad, 1), ciphertext, psa.StatusInvalidSignature},
		{"no additional data", k, nonce, nil, ciphertext, psa.StatusInvalidSignature},
		{"another key", other, nonce, ad, ciphertext, psa.StatusInvalidSignature},
		{"short nonce", k, nonce[:8], ad, ciphertext, psa.StatusInvalidArgument},
		{"no nonce", k, nil, ad, ciphertext, psa.StatusInsufficientData},
	} {
		in := map[string][]byte{"nonce": c.nonce, "additional_data": c.ad}
		out, err := run(t, c.key, psa.Op{Operation: psa.Decrypt, Algorithm: psa.GCM, Inputs: in}, c.text)
		wantStatus(t, c.what, err, c.want)
		if err != nil && out["plaintext"] != nil {
			t.Errorf("%s: there is plaintext", c.what)
		}
	}
	// NIST's GCM test case 16 (SP 800-38D, the GCM specification): the answer is GCM's, not only our own.
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	known := create(t, p, a, &psa.Material{Format: psa.FormatRaw,
		Data: unhex("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308")})
	out := must(t, open(t, p, a, known), psa.Op{Operation: psa.Encrypt, Algorithm: psa.GCM, Inputs: map[string][]byte{
		"nonce":           unhex("cafebabefacedbaddecaf888"),
		"additional_data": unhex("feedfacedeadbeeffeedfacedeadbeefabaddad2"),
	}}, unhex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"))
	want := unhex("522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662" +
		"76fc6ece0f4e1768cddf8853bb2d551b")
	if !bytes.Equal(out["ciphertext"], want) {
		t.Errorf("GCM gave %x", out["ciphertext"])
	}
}

func TestOpenRefusesOtherBlobs(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := template(t, "ecdsa-p256-sha256")
	mine, other := create(t, p, a, nil), create(t, p, a, nil)
	p384 := create(t, p, template(t, "ecdsa-p384-sha384"), nil)
	secret := create(t, p, template(t, "aes-256-gcm"), nil)
	for what, c := range map[string]struct {
		a psa.Attributes
		b providers.Blob
	}{
		"nothing":              {a, providers.Blob{}},
		"no secret":            {a, providers.Blob{Public: mine.Public}},
		"no public key":        {a, providers.Blob{Secret: mine.Secret}},
		"another public key":   {a, providers.Blob{Public: other.Public, Secret: mine.Secret}},
		"another curve":        {a, p384},
		"an AES key":           {a, secret},
		"a pair for AES":       {template(t, "aes-256-gcm"), mine},
		"AES, public":          {template(t, "aes-256-gcm"), providers.Blob{Public: mine.Public, Secret: secret.Secret}},
		"a cut AES key":        {template(t, "aes-256-gcm"), providers.Blob{Secret: secret.Secret[:31]}},
		"a cut public key":     {publicOf(a), providers.Blob{Public: mine.Public[:50]}},
		"a curve's public key": {publicOf(a), providers.Blob{Public: p384.Public}},
	} {
		_, err := p.Open(t.Context(), handle, c.a, c.b)
		wantStatus(t, what, err, psa.StatusDataCorrupt)
	}
}

// TestClose: runs that have begun stay valid, and no more begin.
func TestClose(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	for _, name := range []string{"rsa-2048-pss-sha256", "ecdsa-p256-sha256", "ed25519", "aes-256-gcm"} {
		a := template(t, name)
		a.Usage |= psa.UsageExport
		op := psa.Op{Operation: psa.Sign, Algorithm: a.Algorithm}
		if a.Type == psa.KeyTypeAES {
			op.Operation = psa.Encrypt
		}
		b := create(t, p, a, nil)
		before := bytes.Clone(b.Secret)
		k := open(t, p, a, b)
		use, err := k.Begin(t.Context(), op)
		if err != nil {
			t.Fatal(err)
		}
		export, err := k.Begin(t.Context(), psa.Op{Operation: psa.Export})
		if err != nil {
			t.Fatal(err)
		}
		aborted, err := k.Begin(t.Context(), op)
		if err != nil {
			t.Fatal(err)
		}
		aborted.Abort()
		for range 2 {
			if err := k.Close(); err != nil {
				t.Error(err)
			}
		}
		if !bytes.Equal(b.Secret, before) {
			t.Errorf("%s: Close wiped the caller's blob", name)
		}
		if _, err := use.Write(message); err != nil {
			t.Error(err)
		}
		result, err := use.Finish(t.Context())
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		again := open(t, p, a, b)
		if sig := result.Outputs["signature"]; sig != nil {
			must(t, again, psa.Op{Operation: psa.Verify, Algorithm: a.Algorithm, Inputs: map[string][]byte{"signature": sig}}, message)
		} else {
			in := map[string][]byte{"nonce": result.Outputs["nonce"]}
			must(t, again, psa.Op{Operation: psa.Decrypt, Algorithm: a.Algorithm, Inputs: in}, result.Outputs["ciphertext"])
		}
		result, err = export.Finish(t.Context())
		if err != nil || !bytes.Equal(result.Outputs["key"], before) {
			t.Errorf("%s: export after Close: another key, %v", name, err)
		}
		for _, run := range []psa.Run{use, export, aborted} {
			_, err := run.Finish(t.Context())
			wantStatus(t, name+": Finish again", err, psa.StatusBadState)
		}
		_, err = k.Begin(t.Context(), op)
		wantStatus(t, name+": Begin after Close", err, psa.StatusInvalidHandle)
		if k.Attributes() != a || !bytes.Equal(k.Public(), b.Public) {
			t.Errorf("%s: a closed key forgot what it was", name)
		}
	}
}

func TestAtOnce(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	for _, name := range []string{"rsa-2048-pkcs1v15-sha256", "ecdsa-p256-sha256", "ed25519"} {
		a := template(t, name)
		k, b := generated(t, p, a)
		check := open(t, p, a, b)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 20 {
					out, err := run(t, k, psa.Op{Operation: psa.Sign, Algorithm: a.Algorithm}, message)
					if psa.StatusOf(err) == psa.StatusInvalidHandle {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					in := map[string][]byte{"signature": out["signature"]}
					if _, err := run(t, check, psa.Op{Operation: psa.Verify, Algorithm: a.Algorithm, Inputs: in}, message); err != nil {
						t.Error(err)
					}
				}
			})
		}
		time.Sleep(5 * time.Millisecond)
		_ = k.Close()
		wg.Wait()
	}
}

func TestEndedContext(t *testing.T) {
	t.Parallel()
	p := newProvider(t)
	a := template(t, "ed25519")
	k, b := generated(t, p, a)
	begun, err := k.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: psa.PureEdDSA})
	if err != nil {
		t.Fatal(err)
	}
	late, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	for what, call := range map[string]func() error{
		"Identity":     func() error { _, err := p.Identity(late); return err },
		"Capabilities": func() error { _, err := p.Capabilities(late); return err },
		"Create":       func() error { _, err := p.Create(late, handle, a, nil); return err },
		"Open":         func() error { _, err := p.Open(late, handle, a, b); return err },
		"Begin":        func() error { _, err := k.Begin(late, psa.Op{Operation: psa.ExportPublic}); return err },
		"Finish":       func() error { _, err := begun.Finish(late); return err },
		"Random":       func() error { return p.(providers.Random).Random(late, make([]byte, 4)) },
	} {
		wantStatus(t, what, call(), psa.StatusTimeout)
	}
}

func TestProvider(t *testing.T) {
	t.Parallel()
	registry := providers.Registry{software.Type}
	for _, name := range []string{"Software", "MbedCrypto"} {
		if _, ok := registry.Lookup(name); !ok {
			t.Errorf("no type %s", name)
		}
	}
	p := newProvider(t)
	d := p.Describe()
	d.Description, d.Version = "", ""
	n := runtime.GOMAXPROCS(0)
	if want := (providers.Description{Type: "Software", TypeUUID: "1c1139dc-ad7c-47dc-ad6b-db6fdb466552", Vendor: "parsecfs",
		Location: "local",
		Limits:   providers.Limits{Slow: max(1, n-1), Short: n + (n+1)/2}}); d != want {
		t.Errorf("described as %+v", d)
	}
	if id, err := p.Identity(t.Context()); id != "software" || err != nil {
		t.Errorf("identity %q, %v", id, err)
	}
	if err := p.Destroy(t.Context(), providers.Handle{9}); err != nil {
		t.Error(err)
	}
	a, b := make([]byte, 32), make([]byte, 32)
	for _, buffer := range [][]byte{a, b, nil} {
		if err := p.(providers.Random).Random(t.Context(), buffer); err != nil {
			t.Error(err)
		}
	}
	if bytes.Equal(a, b) || bytes.Equal(a, make([]byte, 32)) {
		t.Error("not random")
	}
}
