package software

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"sync"
	"sync/atomic"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/secret"
)

type key struct {
	attributes psa.Attributes
	lines      []psa.Capability // those of the table about keys of this type and size, which each operation is looked up in
	public     []byte           // SubjectPublicKeyInfo, nil for symmetric keys
	verifier   crypto.PublicKey

	mu      sync.Mutex
	closed  bool
	private crypto.PrivateKey // nil for symmetric and public keys, and those of a scheme
	used    bool              // it has signed
	ecdh    *ecdh.PrivateKey  // the same for key agreement, once it was needed
	secret  []byte            // a symmetric key; PKCS#8 for export, where the usage has it, else nil
	ciphers                   // made of a symmetric key, once for all operations

	scheme    *scheme // of kinds that crypto/x509 does not know
	rawSecret []byte
	rawPublic []byte
}

// open reads a blob of the attributes' kind. What is computed from the key in memory is erased with the key.
func open(a psa.Attributes, b providers.Blob) (k *key, err error) {
	secret.Do(func() { k, err = read(a, b) })
	return k, err
}

func read(a psa.Attributes, b providers.Blob) (*key, error) {
	k := &key{attributes: a, scheme: schemeOf(a)}
	for _, c := range table {
		if c.Covers(a.Type, a.Bits, c.Algorithm) {
			k.lines = append(k.lines, c)
		}
	}
	var err error
	if k.scheme != nil {
		return k, k.openRaw(b)
	}
	switch {
	case !a.Type.IsAsymmetric():
		if err := checkLength(a, b.Secret); err != nil {
			return nil, err
		}
		if len(b.Public) != 0 {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "a %s key must have no public part", a.Type)
		}
		k.secret = secret.Clone(b.Secret)
		return k, nil
	case a.Type.IsPublicKey():
		if len(b.Secret) != 0 {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "a %s must have no secret part", a.Type)
		}
		if k.verifier, err = parsePublic(a, b.Public); err != nil {
			return nil, err
		}
	default:
		if k.private, err = parsePrivate(a, b.Secret); err != nil {
			return nil, err
		}
		k.verifier = publicOf(k.private)
		// The public part is not sealed, so somebody may have replaced it.
		public, err := publicDER(a, k.verifier)
		if err != nil || !bytes.Equal(public, b.Public) {
			wipe(k.private)
			return nil, psa.Errorf(psa.StatusInvalidArgument, "the public key does not belong to the private key")
		}
		if a.Usage&psa.UsageExport != 0 {
			k.secret = secret.Clone(b.Secret)
		}
	}
	k.public = bytes.Clone(b.Public)
	return k, nil
}

func (k *key) openRaw(b providers.Blob) (err error) {
	der := b.Secret
	if k.attributes.Type.IsPublicKey() {
		der = b.Public
		if len(b.Secret) != 0 {
			return psa.Errorf(psa.StatusInvalidArgument, "a %s must have no secret part", k.attributes.Type)
		}
	}
	raw, public, err := k.scheme.parseRaw(k.attributes, der)
	if err != nil {
		return err
	}
	k.rawPublic = public
	k.rawSecret = secret.Clone(raw)
	psa.Wipe(raw)
	// The public part is not sealed, so somebody may have replaced it.
	_, spki, err := rawParts(k.attributes, nil, k.rawPublic)
	if err != nil || !bytes.Equal(spki, b.Public) {
		secret.Free(k.rawSecret)
		return psa.Errorf(psa.StatusInvalidArgument, "the public key does not belong to the private key")
	}
	k.public = bytes.Clone(b.Public)
	if k.attributes.Usage&psa.UsageExport != 0 {
		k.secret = secret.Clone(b.Secret)
	}
	return nil
}

// beginRaw begins an operation of a key of a scheme. The run gets its own copy of the secret, since it can outlive the key,
// and wipes it.
func (k *key) beginRaw(op psa.Op) (psa.Run, error) {
	s, public, own := k.scheme, k.rawPublic, secret.Clone(k.rawSecret)
	var r psa.Run
	err := errUnsupported(op.Operation, k.attributes, op.Algorithm)
	switch {
	case op.Operation == psa.Sign && s.sign != nil:
		r, err = psa.MessageSignRun(op, func(m []byte) ([]byte, error) { return s.sign(own, m) })
	case op.Operation == psa.Verify && s.verify != nil:
		r, err = psa.MessageVerifyRun(op, func(m, signature []byte) bool { return s.verify(public, m, signature) })
	case op.Operation == psa.Agree && s.agree != nil:
		r, err = psa.DerivedRun(op, func(op psa.Op) (psa.Run, error) {
			return psa.RawAgreeRun(op, k.attributes.Type, k.attributes.Bits, func(peer []byte) ([]byte, error) { return s.agree(own, peer) })
		})
	case op.Operation == psa.Encapsulate && s.encapsulate != nil:
		r, err = psa.EncapsulateRun(op, func() ([]byte, []byte, error) { return s.encapsulate(public) })
	case op.Operation == psa.Decapsulate && s.decapsulate != nil:
		r, err = psa.DecapsulateRun(op, s.ciphertext, func(c []byte) ([]byte, error) { return s.decapsulate(own, c) })
	}
	return wiping(erased(r), own, err)
}

// checkLength checks a symmetric key's bytes.
func checkLength(a psa.Attributes, secret []byte) error {
	if len(secret)*8 != a.Bits {
		return psa.Errorf(psa.StatusInvalidArgument, "the key has %d bytes; a %s key of %d bits has %d", len(secret), a.Type, a.Bits, a.Bits/8)
	}
	return nil
}

// publicOf is the public part of a private key of the standard library's.
func publicOf(private crypto.PrivateKey) crypto.PublicKey {
	return private.(interface{ Public() crypto.PublicKey }).Public()
}

// parsePrivate reads PKCS#8 that must hold a key of the attributes' type and size.
func parsePrivate(a psa.Attributes, der []byte) (crypto.PrivateKey, error) {
	if isForeign(a) {
		scalar, err := rawBytes(a, der)
		if err != nil {
			return nil, err
		}
		return foreignPrivate(a, scalar)
	}
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the private key cannot be read: %w", err)
	}
	if err := a.Describes(publicOf(private)); err != nil {
		wipe(private)
		return nil, err
	}
	if k, ok := private.(*rsa.PrivateKey); ok {
		if len(k.Primes) != 2 {
			return nil, psa.Errorf(psa.StatusNotSupported, "the RSA key has %d primes; allowed: 2", len(k.Primes))
		}
		if err := k.Validate(); err != nil {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "the private key is damaged: %w", err)
		}
	}
	return private, nil
}

// parsePublic reads a SubjectPublicKeyInfo that must hold a key of the attributes' type and size.
func parsePublic(a psa.Attributes, der []byte) (crypto.PublicKey, error) {
	if isForeign(a) {
		point, err := rawBytes(a, der)
		if err != nil {
			return nil, err
		}
		return foreignPublic(a, point)
	}
	return a.PublicKey(der)
}

func (k *key) Attributes() psa.Attributes { return k.attributes }

func (k *key) Public() []byte { return bytes.Clone(k.public) }

func (k *key) Begin(ctx context.Context, op psa.Op) (psa.Run, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !k.attributes.Dispatches(k.lines, op) {
		return nil, errUnsupported(op.Operation, k.attributes, op.Algorithm)
	}
	if op.Operation == psa.Sign || op.Operation == psa.SignHash {
		if signer, first := k.signer(); signer != nil {
			return k.beginSign(op, signer, first)
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, errClosed()
	}
	switch op.Operation {
	case psa.ExportPublic:
		return psa.ExportRun(func() ([]byte, error) { return k.Public(), nil }), nil
	case psa.Export:
		return k.beginExport(op)
	}
	if k.scheme != nil {
		return k.beginRaw(op)
	}
	switch op.Operation {
	case psa.Sign, psa.SignHash:
		return k.beginEd25519(op)
	case psa.Verify, psa.VerifyHash:
		return psa.VerifierRun(op, k.verifier)
	case psa.Encrypt, psa.Decrypt:
		return k.beginCrypt(op)
	case psa.Mac, psa.VerifyMac:
		return k.beginMAC(op)
	case psa.Agree:
		return psa.DerivedRun(op, k.beginAgree)
	case psa.Derive:
		return k.beginDerive(op)
	}
	return nil, errUnsupported(op.Operation, k.attributes, op.Algorithm) // generate, import
}

func (k *key) beginExport(op psa.Op) (psa.Run, error) {
	if string(op.Inputs["format"]) == "tss2" {
		return nil, psa.Errorf(psa.StatusNotSupported, "this provider cannot export as \"tss2\", which only a TPM can")
	}
	if k.attributes.Usage&psa.UsageExport == 0 {
		return nil, psa.Errorf(psa.StatusNotPermitted, "export needs %s", psa.UsageExport)
	}
	own := secret.Clone(k.secret)
	return wiping(psa.ExportRun(func() ([]byte, error) { return bytes.Clone(own), nil }), own, nil)
}

func errClosed() error { return psa.Errorf(psa.StatusInvalidHandle, "the key is closed") }

// signer is what signs without a copy of the key, so that many who begin at once hold the lock for a moment only; nil where the
// key is closed or of another kind. first: the operation computes a new form of the key.
func (k *key) signer() (signer crypto.Signer, first bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, edwards := k.private.(ed25519.PrivateKey); edwards || k.closed {
		return nil, false
	}
	signer, _ = k.private.(crypto.Signer)
	// The standard library makes its own form of a key once, the others at each signature.
	return signer, !k.used || isForeign(k.attributes)
}

func (k *key) beginSign(op psa.Op, signer crypto.Signer, first bool) (psa.Run, error) {
	r, err := psa.SignerRun(op, signer)
	if err != nil || !first {
		return r, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.used = true
	return erased(r), nil
}

// beginEd25519 signs with a copy: Close wipes the key's slice. The library keeps what it computes from a key as long as that slice, on
// the heap.
func (k *key) beginEd25519(op psa.Op) (psa.Run, error) {
	private, ok := k.private.(ed25519.PrivateKey)
	if !ok {
		return nil, errUnsupported(op.Operation, k.attributes, op.Algorithm)
	}
	own := ed25519.PrivateKey(bytes.Clone(private))
	r, err := psa.SignerRun(op, own)
	return wiping(erased(r), own, err)
}

func (k *key) beginCrypt(op psa.Op) (psa.Run, error) {
	if pub, ok := k.verifier.(*rsa.PublicKey); ok {
		if op.Operation == psa.Encrypt {
			return psa.RSAEncryptRun(op, pub)
		}
		return psa.RSADecryptRun(op, k.private.(crypto.Decrypter))
	}
	if op.Algorithm == psa.XTS {
		return psa.XTSRun(op, k.half, k.secret)
	}
	if op.Algorithm.IsAEAD() && !op.Algorithm.IsCCM() {
		aead, err := k.aead(op.Algorithm)
		if err != nil {
			return nil, err
		}
		return psa.AEADRun(op, aead, op.Algorithm.NonceLength())
	}
	block, err := k.aes(0, 1)
	if err != nil {
		return nil, err
	}
	if !op.Algorithm.IsAEAD() { // the library copies the cipher into each stream
		r, err := psa.CipherRun(op, block)
		return erased(r), err
	}
	nonce := op.Algorithm.NonceLength()
	if n := len(op.Inputs["nonce"]); n > 0 { // it takes 7 to 13 bytes (SP 800-38C, A.1)
		nonce = n
	}
	aead, err := psa.NewCCM(block, nonce, op.Algorithm.TagLength())
	if err != nil {
		return nil, err
	}
	r, err := psa.AEADRun(op, aead, nonce) // it makes streams
	return erased(r), err
}

func (k *key) beginAgree(op psa.Op) (psa.Run, error) {
	if k.ecdh == nil {
		switch private := k.private.(type) {
		case *ecdh.PrivateKey:
			k.ecdh = private
		case *ecdsa.PrivateKey:
			var err error
			secret.Do(func() { k.ecdh, err = private.ECDH() })
			if err != nil {
				return nil, psa.Errorf(psa.StatusGenericError, "ECDH: %w", err)
			}
		default:
			return nil, errUnsupported(op.Operation, k.attributes, op.Algorithm)
		}
	}
	return psa.AgreeRun(op, k.ecdh)
}

func (k *key) beginDerive(op psa.Op) (psa.Run, error) {
	own := secret.Clone(k.secret) // Close wipes the key's
	r, err := psa.DeriveRun(op, own)
	return wiping(erased(r), own, err)
}

// Close wipes the bytes that the key holds, and drops its references to what cannot be wiped.
func (k *key) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil
	}
	k.closed = true
	wipe(k.private)
	secret.Free(k.secret)
	secret.Free(k.rawSecret)
	k.private, k.ecdh, k.secret, k.rawSecret, k.ciphers = nil, nil, nil, nil, ciphers{}
	secret.Dropped()
	return nil
}

// wipingRun is a Run with its own copy of the secret, so that it can outlive its key.
type wipingRun struct {
	psa.Run
	secret []byte
	ended  atomic.Bool // by whoever came first: the copy is not given back while a Finish computes with it
}

// wiping gives a run its copy to wipe. If there is no run, it wipes the copy now.
func wiping(r psa.Run, own []byte, err error) (psa.Run, error) {
	if err != nil {
		secret.Free(own)
		return nil, err
	}
	return &wipingRun{Run: r, secret: own}, nil
}

func (r *wipingRun) Finish(ctx context.Context) (psa.Result, error) {
	if !r.ended.CompareAndSwap(false, true) {
		return psa.Result{}, psa.Errorf(psa.StatusBadState, "the operation has ended")
	}
	defer secret.Free(r.secret)
	return r.Run.Finish(ctx)
}

func (r *wipingRun) Abort() {
	if r.ended.CompareAndSwap(false, true) {
		r.Run.Abort()
		secret.Free(r.secret)
	}
}

// erasedRun is a Run that computes new secrets from its key, and erases them at its end. Other Runs use what the key has
// already: they need no erasing, which takes as long as a signature.
type erasedRun struct{ psa.Run }

// erased wraps r so that its end is erased; nil stays nil.
func erased(r psa.Run) psa.Run {
	if r == nil || !secret.Erases {
		return r
	}
	return &erasedRun{r}
}

func (r *erasedRun) Finish(ctx context.Context) (result psa.Result, err error) {
	secret.Do(func() { result, err = r.Run.Finish(ctx) })
	return result, err
}
