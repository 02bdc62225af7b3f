package psa

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
)

func rsaKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	key, err := x509.ParsePKCS8PrivateKey(derOf(t, "rsa2048.pkcs8"))
	if err != nil {
		t.Fatal(err)
	}
	return key.(*rsa.PrivateKey)
}

func ecKey(t testing.TB, c elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// finish writes the parts and finishes.
func finish(t testing.TB, r Run, err error, parts ...[]byte) (map[string][]byte, error) {
	t.Helper()
	if err != nil {
		return nil, err
	}
	for _, p := range parts {
		if _, err := r.Write(p); err != nil {
			return nil, err
		}
	}
	res, err := r.Finish(context.Background())
	if _, again := r.Finish(context.Background()); StatusOf(again) != StatusBadState {
		t.Errorf("a second Finish gave %v", again)
	}
	if _, again := r.Write([]byte("x")); again == nil {
		t.Error("a Write after Finish is taken")
	}
	r.Abort()
	return res.Outputs, err
}

func TestSignVerify(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r, p256, p521 := rsaKey(t), ecKey(t, elliptic.P256()), ecKey(t, elliptic.P521())
	message := []byte(strings.Repeat("a message of many parts ", 100))
	for _, c := range []struct {
		key crypto.Signer
		alg Algorithm
	}{
		{r, RSAPKCS1v15Sign(SHA256)}, {r, RSAPKCS1v15Sign(SHA3_512)}, {r, RSAPSS(SHA384)}, {r, RSAPSS(SHA512)}, {r, RSAPSSAnySalt(SHA256)},
		{p256, ECDSA(SHA256)}, {p256, ECDSA(SHA512)}, {p256, ECDSA(SHA3_256)}, {p256, DeterministicECDSA(SHA256)}, {p521, ECDSA(SHA512)},
		{p521, DeterministicECDSA(SHA224)}, {ed, PureEdDSA}, {ed, Ed25519ph},
	} {
		t.Run(c.alg.String(), func(t *testing.T) {
			run, err := SignerRun(Op{Operation: Sign, Algorithm: c.alg}, c.key)
			out, err := finish(t, run, err, message[:7], message[7:])
			if err != nil {
				t.Fatal(err)
			}
			sig := out["signature"]
			signatures := [][]byte{sig}
			var digest []byte
			if h, ok := c.alg.CryptoHash(); ok {
				d := h.New()
				d.Write(message)
				digest = d.Sum(nil)
				run, err = SignerRun(Op{Operation: SignHash, Algorithm: c.alg}, c.key)
				out, err = finish(t, run, err, digest[:1], digest[1:])
				if err != nil {
					t.Fatal(err)
				}
				signatures = append(signatures, out["signature"])
				if deterministic := c.alg == DeterministicECDSA(c.alg.Hash()); deterministic && !bytes.Equal(sig, out["signature"]) {
					t.Error("deterministic signatures differ")
				}
			}
			for _, s := range signatures {
				verify := func(op Operation, in, sig []byte) error {
					run, err := VerifierRun(Op{Operation: op, Algorithm: c.alg, Inputs: map[string][]byte{"signature": sig}}, c.key.Public())
					out, err := finish(t, run, err, in)
					if len(out) != 0 {
						t.Errorf("verify gave %v", out)
					}
					return err
				}
				if err := verify(Verify, message, s); err != nil {
					t.Error(err)
				}
				if digest != nil {
					if err := verify(VerifyHash, digest, s); err != nil {
						t.Error(err)
					}
				}
				bent := bytes.Clone(s)
				bent[len(bent)-1] ^= 1
				for _, err := range []error{verify(Verify, message, bent), verify(Verify, message[1:], s), verify(Verify, message, s[1:]),
					verify(Verify, message, append([]byte{0}, s...)), verify(Verify, message, make([]byte, len(s)))} {
					if StatusOf(err) != StatusInvalidSignature {
						t.Errorf("a wrong signature: %v", err)
					}
				}
			}
		})
	}
}

// The signatures are those of the standard library's own functions, not only of these adapters.
func TestSignaturesAreStandard(t *testing.T) {
	r, ec := rsaKey(t), ecKey(t, elliptic.P256())
	message := []byte("hello")
	h := crypto.SHA256.New()
	h.Write(message)
	digest := h.Sum(nil)
	sign := func(alg Algorithm, key crypto.Signer) []byte {
		run, err := SignerRun(Op{Operation: Sign, Algorithm: alg}, key)
		out, err := finish(t, run, err, message)
		if err != nil {
			t.Fatal(err)
		}
		return out["signature"]
	}
	if err := rsa.VerifyPKCS1v15(&r.PublicKey, crypto.SHA256, digest, sign(RSAPKCS1v15Sign(SHA256), r)); err != nil {
		t.Error(err)
	}
	if err := rsa.VerifyPSS(&r.PublicKey, crypto.SHA256, digest, sign(RSAPSS(SHA256), r), &rsa.PSSOptions{SaltLength: 32}); err != nil {
		t.Error(err)
	}
	der, err := ECDSARawToDER(sign(ECDSA(SHA256), ec))
	if err != nil || !ecdsa.VerifyASN1(&ec.PublicKey, digest, der) {
		t.Error("ECDSA does not verify", err)
	}
	// a salt of another length is for ANY_SALT alone
	other, err := rsa.SignPSS(rand.Reader, r, crypto.SHA256, digest, &rsa.PSSOptions{SaltLength: 20})
	if err != nil {
		t.Fatal(err)
	}
	for alg, want := range map[Algorithm]Status{RSAPSS(SHA256): StatusInvalidSignature, RSAPSSAnySalt(SHA256): StatusSuccess} {
		run, err := VerifierRun(Op{Operation: Verify, Algorithm: alg, Inputs: map[string][]byte{"signature": other}}, &r.PublicKey)
		if _, err := finish(t, run, err, message); StatusOf(err) != want {
			t.Errorf("%s with a salt of 20 bytes: %v", alg, err)
		}
	}
}

func TestSignerRefuses(t *testing.T) {
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ec := ecKey(t, elliptic.P256())
	for _, c := range []struct {
		op     Op
		key    crypto.Signer
		in     int
		status Status
		text   string
	}{
		{Op{Operation: Encrypt, Algorithm: GCM}, ec, 0, StatusNotSupported, "encrypt does not work with a signing key"},
		{Op{Operation: Sign, Algorithm: RSAPSS(SHA256)}, ec, 0, StatusNotSupported,
			"sign with PSA_ALG_RSA_PSS(PSA_ALG_SHA_256) does not work with a *ecdsa.PublicKey"},
		{Op{Operation: Sign, Algorithm: ECDSA(AnyHash)}, ec, 0, StatusNotSupported, "the hash is not available"},
		{Op{Operation: Sign, Algorithm: ECDSA(MD5)}, ec, 0, StatusNotSupported, "the hash is not available"},
		{Op{Operation: Sign, Algorithm: ECDSAAny}, ec, 0, StatusInvalidArgument, "signs only hashes"},
		{Op{Operation: SignHash, Algorithm: PureEdDSA}, ed, 0, StatusInvalidArgument, "signs only messages"},
		{Op{Operation: SignHash, Algorithm: ECDSA(SHA256)}, ec, 31, StatusInvalidArgument, "the digest has fewer than the 32 bytes of PSA_ALG_SHA_256"},
		{Op{Operation: SignHash, Algorithm: ECDSA(SHA256)}, ec, 33, StatusInvalidArgument, "the digest has more than the 32 bytes"},
		{Op{Operation: Sign, Algorithm: PureEdDSA, Limit: 10}, ed, 11, StatusTooLarge, "the input has more than 10 bytes"},
		{Op{Operation: Sign, Algorithm: DeterministicECDSA(SHA256)}, opaque{ec}, 1, StatusNotSupported, "with a psa.opaque"},
	} {
		run, err := SignerRun(c.op, c.key)
		_, err = finish(t, run, err, make([]byte, c.in))
		checkError(t, err, c.status, c.text)
	}
	// a message in a streamed algorithm is of any length
	run, err := SignerRun(Op{Operation: Sign, Algorithm: ECDSA(SHA256), Limit: 1}, ec)
	if _, err := finish(t, run, err, make([]byte, 1<<20)); err != nil {
		t.Error(err)
	}
	run, err = VerifierRun(Op{Operation: Verify, Algorithm: PureEdDSA}, ed.Public())
	_, err = finish(t, run, err)
	checkError(t, err, StatusInsufficientData, "the signature is missing")
}

// opaque is a signer whose key is elsewhere.
type opaque struct{ crypto.Signer }

func TestRawHashes(t *testing.T) {
	digest := []byte("of any length")
	for alg, key := range map[Algorithm]crypto.Signer{RSAPKCS1v15SignRaw: rsaKey(t), ECDSAAny: ecKey(t, elliptic.P384())} {
		run, err := SignerRun(Op{Operation: SignHash, Algorithm: alg}, key)
		out, err := finish(t, run, err, digest)
		if err != nil {
			t.Fatal(alg, err)
		}
		run, err = VerifierRun(Op{Operation: VerifyHash, Algorithm: alg, Inputs: out}, key.Public())
		if _, err := finish(t, run, err, digest); err != nil {
			t.Error(alg, err)
		}
	}
	run, err := SignerRun(Op{Operation: SignHash, Algorithm: RSAPKCS1v15SignRaw}, rsaKey(t))
	_, err = finish(t, run, err, make([]byte, 300))
	checkError(t, err, StatusInvalidArgument, "the key is too small for the input")
}

func gcm(t testing.TB) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return aead
}

func TestAEAD(t *testing.T) {
	aead := gcm(t)
	for _, plaintext := range [][]byte{{}, []byte("hello"), bytes.Repeat([]byte("x"), 5000)} {
		for _, nonce := range [][]byte{nil, []byte("twelve bytes")} {
			ad := []byte("additional")
			run, err := AEADRun(Op{Operation: Encrypt, Algorithm: GCM, Inputs: map[string][]byte{"nonce": nonce, "additional_data": ad}, Limit: 5000}, aead, 12)
			out, err := finish(t, run, err, plaintext[:len(plaintext)/3], plaintext[len(plaintext)/3:])
			if err != nil {
				t.Fatal(err)
			}
			if nonce != nil && !bytes.Equal(out["nonce"], nonce) || len(out["nonce"]) != 12 || len(out["ciphertext"]) != len(plaintext)+16 {
				t.Errorf("nonce %x, %d bytes", out["nonce"], len(out["ciphertext"]))
			}
			if p, err := aead.Open(nil, out["nonce"], out["ciphertext"], ad); err != nil || !bytes.Equal(p, plaintext) {
				t.Error("the standard library does not decrypt it", err)
			}
			decrypt := func(nonce, ad, in []byte) ([]byte, error) {
				run, err := AEADRun(Op{Operation: Decrypt, Algorithm: GCM, Inputs: map[string][]byte{"nonce": nonce, "additional_data": ad}, Limit: 5000}, aead, 12)
				out, err := finish(t, run, err, in)
				return out["plaintext"], err
			}
			if p, err := decrypt(out["nonce"], ad, out["ciphertext"]); err != nil || p == nil || !bytes.Equal(p, plaintext) {
				t.Errorf("%q, %v", p, err)
			}
			bent := bytes.Clone(out["ciphertext"])
			bent[0] ^= 1
			_, err1 := decrypt(out["nonce"], ad, bent)
			_, err2 := decrypt(out["nonce"], nil, out["ciphertext"])
			_, err3 := decrypt(out["nonce"], ad, out["ciphertext"][:15])
			for _, err := range []error{err1, err2, err3} {
				checkError(t, err, StatusInvalidSignature, "not authentic")
			}
		}
	}
	for _, c := range []struct {
		op       Op
		nonceLen int
		in       int
		status   Status
		text     string
	}{
		{Op{Operation: Sign, Algorithm: GCM}, 12, 0, StatusNotSupported, "sign does not work with a key for PSA_ALG_GCM"},
		{Op{Operation: Encrypt, Algorithm: GCM}, 13, 0, StatusNotSupported, "a nonce of 13 bytes"},
		{Op{Operation: Encrypt, Algorithm: GCM, Inputs: map[string][]byte{"nonce": {1}}}, 12, 0, StatusInvalidArgument,
			"the nonce has 1 bytes; PSA_ALG_GCM needs 12"},
		{Op{Operation: Decrypt, Algorithm: GCM}, 12, 0, StatusInsufficientData, "the nonce of 12 bytes is missing"},
		{Op{Operation: Encrypt, Algorithm: GCM, Limit: 5}, 12, 6, StatusTooLarge, "the input has more than 5 bytes"},
		{Op{Operation: Encrypt, Algorithm: GCM}, 12, DefaultLimit + 1, StatusTooLarge, "the input has more than 1048576 bytes"},
	} {
		run, err := AEADRun(c.op, aead, c.nonceLen)
		_, err = finish(t, run, err, make([]byte, c.in))
		checkError(t, err, c.status, c.text)
	}
}

func TestExportRun(t *testing.T) {
	out, err := finish(t, ExportRun(func() ([]byte, error) { return []byte("secret"), nil }), nil)
	if err != nil || string(out["key"]) != "secret" {
		t.Errorf("%q, %v", out, err)
	}
	_, err = finish(t, ExportRun(func() ([]byte, error) { return nil, errors.New("gone") }), nil)
	checkError(t, err, StatusGenericError, "gone")
	_, err = finish(t, ExportRun(nil), nil, []byte("pkcs8"))
	checkError(t, err, StatusInvalidArgument, "export takes no input")
}

// After its end a Run holds nothing of what it was given, and one that grew left no copy behind.
func TestRunsWipe(t *testing.T) {
	for name, end := range map[string]func(Run){
		"Abort":  func(r Run) { r.Abort() },
		"Finish": func(r Run) { _, _ = r.Finish(context.Background()) },
		"Finish without its caller": func(r Run) {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if _, err := r.Finish(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("finished: %v", err)
			}
		},
	} {
		run, err := AEADRun(Op{Operation: Encrypt, Algorithm: GCM}, gcm(t), 12)
		if err != nil {
			t.Fatal(err)
		}
		var seen [][]byte
		for range 4 {
			if _, err := run.Write(bytes.Repeat([]byte("secret"), 100)); err != nil {
				t.Fatal(err)
			}
			held := run.(*nonceRun).held.b
			seen = append(seen, held[:cap(held)])
		}
		end(run)
		for _, b := range seen {
			if len(bytes.Trim(b, "\x00")) != 0 {
				t.Errorf("%s leaves %q", name, b)
			}
		}
	}
}
