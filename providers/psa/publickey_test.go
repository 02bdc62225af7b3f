package psa

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"math/big"
	"testing"
)

func TestPublicKey(t *testing.T) {
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := MarshalPublicKey(&p256.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if pub, err := template(t, "ecdsa-p256-sha256").PublicKey(spki); err != nil || !p256.PublicKey.Equal(pub) {
		t.Errorf("%v: %v", pub, err)
	}
	for _, other := range []string{"ecdsa-p384-sha384", "rsa-2048-pss-sha256", "ed25519", "ecdsa-secp256k1-sha256", "aes-256-gcm"} {
		if _, err := template(t, other).PublicKey(spki); StatusOf(err) != StatusInvalidArgument {
			t.Errorf("a P-256 key passes for %s: %v", other, err)
		}
	}
	for name, b := range map[string][]byte{"nothing": nil, "text": []byte("text"), "half a key": spki[:len(spki)/2]} {
		if _, err := template(t, "ecdsa-p256-sha256").PublicKey(b); StatusOf(err) != StatusInvalidArgument {
			t.Errorf("%s is a key: %v", name, err)
		}
		if _, err := ReadPublicKey(b); StatusOf(err) != StatusInvalidArgument {
			t.Errorf("%s is a key of some kind: %v", name, err)
		}
	}
	private := RawKey{Type: ECCKeyPair(TwistedEdwards), Bits: 448, Bytes: make([]byte, 57)}
	der, err := private.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if k, err := ReadPublicKey(der); err == nil {
		t.Errorf("a private key is read as the public %v", k)
	}
}

func TestDescribes(t *testing.T) {
	odd := new(big.Int).SetBit(big.NewInt(1), 2047, 1)
	even := new(big.Int).SetBit(new(big.Int), 2047, 1)
	a := template(t, "rsa-2048-pss-sha256")
	for _, c := range []struct {
		key  any
		fits bool
	}{
		{&rsa.PublicKey{N: odd, E: 65537}, true},
		{&rsa.PublicKey{N: even, E: 65537}, false},
		{&rsa.PublicKey{N: odd, E: 4}, false},
		{&rsa.PublicKey{N: odd, E: 1}, false},
		{&rsa.PublicKey{N: odd, E: 1<<31 + 1}, false},
		{ed25519.PublicKey(make([]byte, ed25519.PublicKeySize)), false},
		{"no key", false},
		{nil, false},
	} {
		if err := a.Describes(c.key); (err == nil) != c.fits || err != nil && StatusOf(err) != StatusInvalidArgument {
			t.Errorf("%v: %v", c.key, err)
		}
	}
}

// TestStores: a raw secret becomes a key for a derivation or a MAC alone.
func TestStores(t *testing.T) {
	for _, c := range []struct {
		template string
		alg      Algorithm
		stores   bool
	}{
		{"hmac-sha256", ECDH, false}, // of no size yet
		{"aes-256-gcm", ECDH, false},
		{"aes-256-gcm", KeyAgreement(ECDH, HKDF(SHA256)), true},
		{"ecdsa-p256-sha256", KeyAgreement(ECDH, HKDF(SHA256)), false},
	} {
		a := template(t, c.template)
		if c.template == "hmac-sha256" {
			a.Bits = 0
		}
		if err := a.Stores(c.alg); (err == nil) != c.stores {
			t.Errorf("%s of %s: %v", c.template, c.alg, err)
		}
	}
	hmac := template(t, "hmac-sha256")
	hmac.Bits = 256
	if err := hmac.Stores(ECDH); err != nil {
		t.Error(err)
	}
}
