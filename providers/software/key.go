package software

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"math"
	"sync"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

type key struct {
	attributes psa.Attributes
	public     []byte // SubjectPublicKeyInfo, nil for AES
	verifier   crypto.PublicKey

	mu     sync.Mutex
	closed bool
	signer crypto.Signer // nil for AES and public keys
	secret []byte        // an AES key; PKCS#8 for export, where the usage has it, else nil
}

// open reads a blob of the attributes' kind.
func open(a psa.Attributes, b providers.Blob) (*key, error) {
	k := &key{attributes: a}
	var err error
	switch {
	case !a.Type.IsAsymmetric():
		if err := checkLength(a, b.Secret); err != nil {
			return nil, err
		}
		if len(b.Public) != 0 {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "a %s key with a public key", a.Type)
		}
		k.secret = bytes.Clone(b.Secret)
		return k, nil
	case a.Type.IsPublicKey():
		if len(b.Secret) != 0 {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "a %s with a secret", a.Type)
		}
		if k.verifier, err = parsePublic(a, b.Public); err != nil {
			return nil, err
		}
	default:
		if k.signer, err = parsePrivate(a, b.Secret); err != nil {
			return nil, err
		}
		k.verifier = k.signer.Public()
		// The public part is not sealed: another one there must not pass for this key's.
		public, err := x509.MarshalPKIXPublicKey(k.verifier)
		if err != nil || !bytes.Equal(public, b.Public) {
			wipe(k.signer)
			return nil, psa.Errorf(psa.StatusInvalidArgument, "the public key is not the private key's")
		}
		if a.Usage&psa.UsageExport != 0 {
			k.secret = bytes.Clone(b.Secret)
		}
	}
	k.public = bytes.Clone(b.Public)
	return k, nil
}

// checkLength checks a symmetric key's bytes.
func checkLength(a psa.Attributes, secret []byte) error {
	if len(secret)*8 != a.Bits {
		return psa.Errorf(psa.StatusInvalidArgument, "%d bytes; a %s key of %d bits has %d", len(secret), a.Type, a.Bits, a.Bits/8)
	}
	return nil
}

// parsePrivate reads PKCS#8 that must hold a key of the attributes' type and size.
func parsePrivate(a psa.Attributes, der []byte) (crypto.Signer, error) {
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "a private key that cannot be read: %w", err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "a %T, which cannot sign", private)
	}
	if err := checkPublic(a, signer.Public()); err != nil {
		wipe(signer)
		return nil, err
	}
	if k, ok := signer.(*rsa.PrivateKey); ok {
		if len(k.Primes) != 2 {
			return nil, psa.Errorf(psa.StatusNotSupported, "an RSA key of %d primes; allowed: 2", len(k.Primes))
		}
		if err := k.Validate(); err != nil {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "a damaged private key: %w", err)
		}
	}
	return signer, nil
}

// parsePublic reads a SubjectPublicKeyInfo that must hold a key of the attributes' type and size.
func parsePublic(a psa.Attributes, der []byte) (crypto.PublicKey, error) {
	pub, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "a public key that cannot be read: %w", err)
	}
	return pub, checkPublic(a, pub)
}

// checkPublic says whether pub is the public part of a key of the attributes' type and size.
func checkPublic(a psa.Attributes, pub crypto.PublicKey) error {
	var t psa.KeyType
	var bits int
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		t, bits = psa.KeyTypeRSAPublicKey, pub.N.BitLen()
		// crypto/rsa would find out at the first use only.
		if pub.N.Bit(0) == 0 || pub.E < 3 || pub.E > math.MaxInt32 || pub.E&1 == 0 {
			return psa.Errorf(psa.StatusInvalidArgument, "an RSA key whose modulus is even or whose exponent is %d", pub.E)
		}
	case *ecdsa.PublicKey:
		t, bits = psa.ECCPublicKey(psa.SECPR1), pub.Curve.Params().BitSize
	case ed25519.PublicKey:
		t, bits = psa.ECCPublicKey(psa.TwistedEdwards), 255
	default:
		return psa.Errorf(psa.StatusInvalidArgument, "a %T; the attributes say %s", pub, a.Type)
	}
	if t != a.Type.PublicKey() || bits != a.Bits {
		return psa.Errorf(psa.StatusInvalidArgument, "the key is a %s of %d bits; the attributes say %s, %d bits", t, bits, a.Type, a.Bits).
			WithHint("give the template of the key's own type and size, or none")
	}
	return nil
}

func (k *key) Attributes() psa.Attributes { return k.attributes }

func (k *key) Public() []byte { return bytes.Clone(k.public) }

// permits says whether the key's policy has alg: itself, or any hash (PSA Crypto API, psa_set_key_algorithm).
func (k *key) permits(alg psa.Algorithm) bool {
	policy := k.attributes.Algorithm
	return !alg.IsWildcard() && (alg == policy || alg.WithHash(psa.AnyHash) == policy)
}

func (k *key) Begin(ctx context.Context, op psa.Op) (psa.Run, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	alg, permitted := op.Algorithm, k.permits(op.Algorithm)
	if op.Operation == psa.Export || op.Operation == psa.ExportPublic {
		alg, permitted = k.attributes.Algorithm, true // exporting has no algorithm
	}
	if !permitted || !supports(op.Operation, k.attributes.Type, k.attributes.Bits, alg) {
		return nil, errUnsupported(op.Operation, k.attributes, alg)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, psa.Errorf(psa.StatusInvalidHandle, "the key is closed")
	}
	switch op.Operation {
	case psa.ExportPublic:
		return psa.ExportRun(func() ([]byte, error) { return k.Public(), nil }), nil
	case psa.Export:
		return k.beginExport()
	case psa.Sign, psa.SignHash:
		return k.beginSign(op)
	case psa.Verify, psa.VerifyHash:
		return psa.VerifierRun(op, k.verifier)
	case psa.Encrypt, psa.Decrypt:
		return k.beginAEAD(op)
	}
	return nil, errUnsupported(op.Operation, k.attributes, alg) // generate, import
}

func (k *key) beginExport() (psa.Run, error) {
	if k.attributes.Usage&psa.UsageExport == 0 {
		return nil, psa.Errorf(psa.StatusNotPermitted, "export needs %s", psa.UsageExport)
	}
	secret := bytes.Clone(k.secret)
	return &wipingRun{psa.ExportRun(func() ([]byte, error) { return bytes.Clone(secret), nil }), secret}, nil
}

func (k *key) beginSign(op psa.Op) (psa.Run, error) {
	edwards, ok := k.signer.(ed25519.PrivateKey)
	if !ok {
		return psa.SignerRun(op, k.signer)
	}
	own := bytes.Clone(edwards) // Close wipes the key's
	r, err := psa.SignerRun(op, ed25519.PrivateKey(own))
	if err != nil {
		psa.Wipe(own)
		return nil, err
	}
	return &wipingRun{r, own}, nil
}

func (k *key) beginAEAD(op psa.Op) (psa.Run, error) {
	block, err := aes.NewCipher(k.secret)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "AES: %w", err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "GCM: %w", err)
	}
	return psa.AEADRun(op, gcm, op.Algorithm.NonceLength())
}

// Close wipes the bytes that the key holds, and lets go of what cannot be wiped.
func (k *key) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	wipe(k.signer)
	psa.Wipe(k.secret)
	k.signer, k.secret = nil, nil
	return nil
}

// wipingRun is a Run that has a copy of the secret, so that it outlives its key.
type wipingRun struct {
	psa.Run
	secret []byte
}

func (r *wipingRun) Finish(ctx context.Context) (psa.Result, error) {
	defer psa.Wipe(r.secret)
	return r.Run.Finish(ctx)
}

func (r *wipingRun) Abort() {
	r.Run.Abort()
	psa.Wipe(r.secret)
}
