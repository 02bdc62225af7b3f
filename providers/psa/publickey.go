package psa

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"math"
)

// ReadPublicKey reads a SubjectPublicKeyInfo in DER: a key of the standard library, or a RawKey. What is none is
// StatusInvalidArgument.
func ReadPublicKey(spki []byte) (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err == nil {
		return pub, nil
	}
	if raw, e := ParseRawKey(spki); e == nil && raw.Type.IsPublicKey() {
		return raw, nil
	}
	return nil, Errorf(StatusInvalidArgument, "the public key cannot be read: %w", err)
}

// PublicKey reads a SubjectPublicKeyInfo that must hold a key of the standard library of the attributes' type and size:
// anything else is StatusInvalidArgument.
func (a Attributes) PublicKey(spki []byte) (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err != nil {
		return nil, Errorf(StatusInvalidArgument, "the public key cannot be read: %w", err)
	}
	return pub, a.Describes(pub)
}

// Describes says whether a key of the standard library, private or public, is of the attributes' type and size, and whole:
// else it is StatusInvalidArgument.
func (a Attributes) Describes(key any) error {
	found, err := AttributesOf(key)
	if err != nil {
		return Errorf(StatusInvalidArgument, "%w", err)
	}
	if found.Type.KeyPair() != a.Type.KeyPair() || found.Bits != a.Bits {
		return Errorf(StatusInvalidArgument, "the key is a %s of %d bits, but the attributes say %s of %d bits", found.Type, found.Bits, a.Type,
			a.Bits).
			WithHint("use a template that has the key's type and size, or none")
	}
	// crypto/rsa would find out at the first use only
	if k, ok := key.(*rsa.PublicKey); ok && (k.N.Bit(0) == 0 || k.E&1 == 0 || k.E < 3 || k.E > math.MaxInt32) {
		return Errorf(StatusInvalidArgument, "the RSA key has an even modulus, or the wrong exponent %d", k.E)
	}
	return nil
}

// MarshalPublicKey writes a key of the standard library as SubjectPublicKeyInfo in DER.
func MarshalPublicKey(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, Errorf(StatusInvalidArgument, "the public key cannot be encoded: %w", err)
	}
	return der, nil
}
