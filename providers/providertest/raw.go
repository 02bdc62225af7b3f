package providertest

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"testing"

	"github.com/cloudflare/circl/dh/x448"
	"github.com/cloudflare/circl/kem"
	kems "github.com/cloudflare/circl/kem/schemes"
	"github.com/cloudflare/circl/sign"
	"github.com/cloudflare/circl/sign/schemes"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// signScheme is the suite's own implementation of a signature with raw keys, nil if it has none.
func signScheme(t psa.KeyType, bits int) sign.Scheme {
	name := ""
	switch t.KeyPair() {
	case psa.ECCKeyPair(psa.TwistedEdwards):
		name = "Ed448"
	case psa.KeyTypeMLDSAKeyPair:
		name = fmt.Sprint("ML-DSA-", map[int]int{128: 44, 192: 65, 256: 87}[bits])
	case psa.SLHDSAKeyPair(psa.SLHDSASHA2S):
		name = fmt.Sprintf("SLH-DSA-SHA2-%ds", bits)
	case psa.SLHDSAKeyPair(psa.SLHDSASHA2F):
		name = fmt.Sprintf("SLH-DSA-SHA2-%df", bits)
	case psa.SLHDSAKeyPair(psa.SLHDSASHAKES):
		name = fmt.Sprintf("SLH-DSA-SHAKE-%ds", bits)
	case psa.SLHDSAKeyPair(psa.SLHDSASHAKEF):
		name = fmt.Sprintf("SLH-DSA-SHAKE-%df", bits)
	default:
		return nil
	}
	return schemes.ByName(name)
}

func kemScheme(bits int) kem.Scheme { return kems.ByName(fmt.Sprint("ML-KEM-", bits)) }

// RawPair makes a key that crypto/x509 does not know, with another implementation than a provider's: its PKCS #8 and
// its SubjectPublicKeyInfo.
func RawPair(t psa.KeyType, bits int) (private, public psa.RawKey, err error) {
	private, public = psa.RawKey{Type: t.KeyPair(), Bits: bits}, psa.RawKey{Type: t.PublicKey(), Bits: bits}
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b) // never fails
		return b
	}
	switch s := signScheme(t, bits); {
	case onCurve(t):
		return opensslPair(t, bits)
	case t.Family() == psa.Montgomery:
		var p, s x448.Key
		copy(s[:], random(len(s)))
		x448.KeyGen(&p, &s)
		private.Bytes, public.Bytes = s[:], p[:]
	case t.KeyPair() == psa.KeyTypeMLKEMKeyPair:
		private.Bytes = random(kemScheme(bits).SeedSize())
		pub, _ := kemScheme(bits).DeriveKeyPair(private.Bytes)
		public.Bytes, err = pub.MarshalBinary()
	case s == nil:
		err = fmt.Errorf("the suite makes no %s of %d bits", t, bits)
	default:
		private.Bytes = random(s.SeedSize())
		pub, sk := s.DeriveKey(private.Bytes)
		if !seeded(t) {
			private.Bytes, _ = sk.MarshalBinary() // fails for no such key
		}
		public.Bytes, err = pub.MarshalBinary()
	}
	return private, public, err
}

// seeded says whether the private key is the seed; SLH-DSA's is not.
func seeded(t psa.KeyType) bool {
	return t.KeyPair() == psa.KeyTypeMLDSAKeyPair || t.Family() == psa.TwistedEdwards
}

// RawSign signs as RawPair's implementation does.
func RawSign(private psa.RawKey, alg psa.Algorithm, message []byte) ([]byte, error) {
	if onCurve(private.Type) {
		return opensslSign(private, alg, message)
	}
	s := signScheme(private.Type, private.Bits)
	if s == nil {
		return nil, fmt.Errorf("the suite cannot sign with a %s", private.Type)
	}
	if seeded(private.Type) {
		_, sk := s.DeriveKey(private.Bytes)
		return s.Sign(sk, message, nil), nil
	}
	sk, err := s.UnmarshalBinaryPrivateKey(private.Bytes)
	if err != nil {
		return nil, err
	}
	return s.Sign(sk, message, nil), nil
}

// RawEncapsulate makes a secret for an ML-KEM key.
func RawEncapsulate(public psa.RawKey) (ciphertext, secret []byte, err error) {
	s := kemScheme(public.Bits)
	k, err := s.UnmarshalBinaryPublicKey(public.Bytes)
	if err != nil {
		return nil, nil, err
	}
	return s.Encapsulate(k)
}

// RawDecapsulate gives an ML-KEM ciphertext's secret.
func RawDecapsulate(private psa.RawKey, ciphertext []byte) ([]byte, error) {
	s := kemScheme(private.Bits)
	_, k := s.DeriveKeyPair(private.Bytes)
	return s.Decapsulate(k, ciphertext)
}

func makeRaw(t psa.KeyType, bits int) (*known, error) {
	private, public, err := RawPair(t, bits)
	if err != nil {
		return nil, err
	}
	k := &known{Material: psa.Material{Format: psa.FormatPKCS8}, rawPublic: public.Bytes}
	if onCurve(t) || signScheme(t, bits) != nil {
		k.sign = func(alg psa.Algorithm, message []byte) ([]byte, error) { return RawSign(private, alg, message) }
	}
	raw := private
	if t.IsPublicKey() {
		k.Format, raw = psa.FormatSPKI, public
	}
	k.Data, err = raw.Marshal()
	return k, err
}

// RawVerify judges a signature as RawPair's implementation does.
func RawVerify(pub psa.RawKey, alg psa.Algorithm, message, signature []byte) error {
	if onCurve(pub.Type) {
		return opensslVerify(pub, alg, message, signature)
	}
	s := signScheme(pub.Type, pub.Bits)
	if s == nil {
		return fmt.Errorf("the suite cannot verify with a %s", pub.Type)
	}
	k, err := s.UnmarshalBinaryPublicKey(pub.Bytes)
	if err != nil {
		return err
	}
	if !s.Verify(k, message, signature, nil) {
		return fmt.Errorf("the signature by a %s is not valid", pub.Type)
	}
	return nil
}

// agreeRaw tries the agreement of X448.
func (m *made) agreeRaw(t *testing.T, pub psa.RawKey) {
	call := func(peer []byte) ([]byte, error) {
		out, err := do(t.Context(), m.key, m.agreement(), peer)
		return out["secret"], err
	}
	var own, public, secret, shared x448.Key
	copy(own[:], pub.Bytes)
	_, _ = rand.Read(secret[:]) // never fails
	x448.KeyGen(&public, &secret)
	if !x448.Shared(&shared, &secret, &own) {
		t.Fatal("no secret")
	}
	m.derivations(t, public[:], shared[:])
	want := derived(t, m.attributes.Algorithm, shared[:])
	der, err := (psa.RawKey{Type: pub.Type, Bits: pub.Bits, Bytes: public[:]}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	for form, b := range map[string][]byte{"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "PSA's own": public[:]} {
		if got, err := call(b); err != nil || !bytes.Equal(got, want) {
			t.Errorf("agree with a peer in %s: %x, %v", form, got, err)
		}
	}
	for name, b := range map[string][]byte{
		"a point of small order": make([]byte, len(public)),
		"a short point":          public[1:],
		"another curve":          newKnown(t, psa.ECCPublicKey(psa.Montgomery), 255).Data,
		"text":                   []byte("a peer"),
	} {
		_, err := call(b)
		wantStatus(t, "agree with "+name, err, psa.StatusInvalidArgument)
	}
	_, err = call(nil)
	wantStatus(t, "agree with nobody", err, psa.StatusInsufficientData)
}

// kem tries encapsulate, and decapsulate of what the suite encapsulated.
func (m *made) kem(t *testing.T, pub crypto.PublicKey, op psa.Operation) {
	raw, ok := pub.(psa.RawKey)
	if !ok {
		t.Fatalf("the suite cannot encapsulate for a %T", pub)
	}
	s := kemScheme(raw.Bits)
	call := func(op psa.Operation, input []byte) (map[string][]byte, error) {
		return do(t.Context(), m.key, psa.Op{Operation: op, Algorithm: m.attributes.Algorithm}, input)
	}
	if op == psa.Encapsulate {
		out, err := call(op, nil)
		if err != nil || len(out["ciphertext"]) != s.CiphertextSize() || len(out["secret"]) != s.SharedKeySize() {
			t.Fatalf("encapsulate: %d and %d bytes, %v", len(out["ciphertext"]), len(out["secret"]), err)
		}
		if again, err := call(op, nil); err != nil || bytes.Equal(again["secret"], out["secret"]) {
			t.Errorf("encapsulate gave the same secret twice, or %v", err)
		}
		if m.known != nil && !m.attributes.Type.IsPublicKey() {
			seed, err := psa.ParseRawKey(m.known.Data)
			if err != nil {
				t.Fatal(err)
			}
			if back, err := RawDecapsulate(seed, out["ciphertext"]); err != nil || !bytes.Equal(back, out["secret"]) {
				t.Errorf("another implementation decapsulates to %x, %v", back, err)
			}
		}
		_, err = call(op, []byte("x"))
		wantStatus(t, "encapsulate with an input", err, psa.StatusInvalidArgument)
		return
	}
	ciphertext, secret, err := RawEncapsulate(raw)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := call(op, ciphertext); err != nil || !bytes.Equal(out["secret"], secret) {
		t.Errorf("decapsulate: %x, %v", out["secret"], err)
	}
	ciphertext[0] ^= 1 // implicit rejection (FIPS 203, 6.3)
	if out, err := call(op, ciphertext); err != nil || bytes.Equal(out["secret"], secret) || len(out["secret"]) != len(secret) {
		t.Errorf("decapsulate of a changed ciphertext: %x, %v", out["secret"], err)
	}
	_, err = call(op, ciphertext[1:])
	wantStatus(t, "a short ciphertext", err, psa.StatusInvalidArgument)
}
