package psa

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"hash"
	"io"
)

// DefaultLimit is the Limit of an Op that names none, in bytes.
const DefaultLimit = 1 << 20

func (o Op) limit() int64 {
	if o.Limit <= 0 {
		return DefaultLimit
	}
	return o.Limit
}

// secret is a bounded buffer that leaves no copy behind when it grows.
type secret struct {
	b     []byte
	limit int64
	hint  string // for whoever goes beyond it
}

// held is a buffer for what cannot be streamed.
func (o Op) held() secret {
	return secret{limit: o.limit(), hint: "body_len_limit bounds what cannot be streamed"}
}

func (s *secret) add(p []byte) error {
	if int64(len(s.b))+int64(len(p)) > s.limit {
		return Errorf(StatusTooLarge, "the input has more than %d bytes", s.limit).WithHint(s.hint)
	}
	if need := len(s.b) + len(p); need > cap(s.b) {
		grown := make([]byte, len(s.b), max(need, 2*cap(s.b), 512))
		copy(grown, s.b)
		s.wipe()
		s.b = grown
	}
	s.b = append(s.b, p...)
	return nil
}

func (s *secret) wipe() {
	Wipe(s.b[:cap(s.b)])
	s.b = nil
}

// input is the main input of a Run: streamed through a hash, or held.
type input struct {
	h    hash.Hash // nil: held
	held secret
	done bool
}

func errDone() error { return Errorf(StatusBadState, "the operation has ended") }

func (in *input) Write(p []byte) (int, error) {
	if in.done {
		return 0, errDone()
	}
	if in.h != nil {
		return in.h.Write(p)
	}
	if err := in.held.add(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Abort ends the Run.
func (in *input) Abort() {
	in.done = true
	if in.h != nil {
		in.h.Reset()
	}
	in.held.wipe()
}

// take begins a Finish: once, and not where the caller has gone.
func (in *input) take(ctx context.Context) error {
	if in.done {
		return errDone()
	}
	if err := ctx.Err(); err != nil {
		in.Abort()
		return err
	}
	return nil
}

// digest is what is to be signed: the hash of the message, or the input itself.
func (in *input) digest() []byte {
	if in.h != nil {
		return in.h.Sum(nil)
	}
	return in.held.b
}

// ECDSAVerifier is a public key for ECDSA on a curve that crypto/ecdsa has not.
type ECDSAVerifier interface {
	BitSize() int
	// VerifyASN1 judges a signature in DER of a digest of any length, as ecdsa.VerifyASN1 does.
	VerifyASN1(digest, signature []byte) bool
}

// curveBits is the size of the curve of a public key for ECDSA, 0 of another.
func curveBits(pub crypto.PublicKey) int {
	switch pub := pub.(type) {
	case *ecdsa.PublicKey:
		return pub.Curve.Params().BitSize
	case ECDSAVerifier:
		return pub.BitSize()
	}
	return 0
}

// signing is what signing and verifying have in common: how the algorithm takes its input.
type signing struct {
	input
	alg  Algorithm
	opts crypto.SignerOpts
	// size is what a digest's length must be, 0 where it may be any.
	size int
}

// prepare sets up the input of sign and verify (message) or sign_hash and verify_hash, for a key of that public part.
func (s *signing) prepare(op Op, pub crypto.PublicKey, message bool) error {
	s.alg = op.Algorithm
	fits := false
	switch pub.(type) {
	case *rsa.PublicKey:
		fits = s.alg.IsRSAPKCS1v15Sign() || s.alg.IsRSAPSS()
	case *ecdsa.PublicKey, ECDSAVerifier:
		fits = s.alg.IsECDSA()
	case ed25519.PublicKey:
		fits = s.alg == PureEdDSA || s.alg == Ed25519ph
	}
	if !fits {
		return Errorf(StatusNotSupported, "%s with %s does not work with a %T", op.Operation, s.alg, pub)
	}
	s.held.limit = op.limit()
	if s.alg == PureEdDSA {
		s.opts = crypto.Hash(0)
		if !message {
			return Errorf(StatusInvalidArgument, "%s does not work with %s, which signs only messages", op.Operation, s.alg)
		}
		return nil
	}
	if s.alg == RSAPKCS1v15SignRaw || s.alg == ECDSAAny {
		s.opts = crypto.Hash(0)
		if message {
			return Errorf(StatusInvalidArgument, "%s does not work with %s, which signs only hashes", op.Operation, s.alg)
		}
		return nil
	}
	h, ok := s.alg.CryptoHash()
	if !ok || !h.Available() {
		return Errorf(StatusNotSupported, "%s with %s is not supported: the hash is not available", op.Operation, s.alg)
	}
	s.opts = h
	if s.alg.IsRSAPSS() {
		s.opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: h}
	}
	if message {
		s.h = h.New()
		return nil
	}
	s.size = h.Size()
	return nil
}

func (s *signing) Write(p []byte) (int, error) {
	if s.size != 0 && len(s.held.b)+len(p) > s.size {
		return 0, s.wrongSize("more")
	}
	return s.input.Write(p)
}

func (s *signing) wrongSize(than string) error {
	return Errorf(StatusInvalidArgument, "the digest has %s than the %d bytes of %s", than, s.size, s.alg.Hash()).
		WithHint("give the digest in binary: openssl dgst -binary")
}

func (s *signing) take(ctx context.Context) ([]byte, error) {
	if err := s.input.take(ctx); err != nil {
		return nil, err
	}
	digest := s.digest()
	if s.size != 0 && len(digest) != s.size {
		return nil, s.wrongSize("fewer")
	}
	return digest, nil
}

type signerRun struct {
	signing
	signer crypto.Signer
	bits   int // of an ECDSA curve
	random io.Reader
}

// SignerRun signs with s: sign streams the message through the algorithm's hash (PureEdDSA holds it, up to op.Limit
// bytes), sign_hash takes the digest. The output "signature" is in PSA's encoding. The salt of PSS is as long as the
// hash. Deterministic ECDSA needs an *ecdsa.PrivateKey. What s or the algorithm cannot do is StatusNotSupported or
// StatusInvalidArgument.
func SignerRun(op Op, s crypto.Signer) (Run, error) {
	if op.Operation != Sign && op.Operation != SignHash {
		return nil, Errorf(StatusNotSupported, "%s does not work with a signing key", op.Operation)
	}
	r := &signerRun{signer: s, random: rand.Reader}
	if err := r.prepare(op, s.Public(), op.Operation == Sign); err != nil {
		return nil, err
	}
	r.bits = curveBits(s.Public())
	if op.Algorithm == DeterministicECDSA(op.Algorithm.Hash()) {
		if _, ok := s.(*ecdsa.PrivateKey); !ok {
			return nil, Errorf(StatusNotSupported, "%s does not work with a %T", op.Algorithm, s)
		}
		r.random = nil // RFC 6979, in crypto/ecdsa's words
	}
	return r, nil
}

func (r *signerRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	digest, err := r.take(ctx)
	if err != nil {
		return Result{}, err
	}
	sig, err := r.signer.Sign(r.random, digest, r.opts)
	if err != nil {
		return Result{}, failed(err)
	}
	if r.bits != 0 {
		if sig, err = ECDSADERToRaw(sig, r.bits); err != nil {
			return Result{}, Errorf(StatusGenericError, "the signer returned a wrong signature: %w", err)
		}
	}
	return Result{Outputs: map[string][]byte{"signature": sig}}, nil
}

// failed gives an error of the standard library, or of somebody's signer, its status, if it has none yet.
func failed(err error) error {
	switch {
	case StatusOf(err) != StatusGenericError:
		return err
	case errors.Is(err, rsa.ErrMessageTooLong):
		return Errorf(StatusInvalidArgument, "the key is too small for the input: %w", err)
	}
	return Errorf(StatusGenericError, "%w", err)
}

type verifierRun struct {
	signing
	pub       crypto.PublicKey
	signature []byte
}

// VerifierRun verifies with an *rsa.PublicKey, an *ecdsa.PublicKey, an ECDSAVerifier or an ed25519.PublicKey: Inputs["signature"]
// is in PSA's encoding, the main input is the message (verify) or the digest (verify_hash). Finish gives no output, or
// StatusInvalidSignature. A missing signature is StatusInsufficientData.
func VerifierRun(op Op, pub crypto.PublicKey) (Run, error) {
	if op.Operation != Verify && op.Operation != VerifyHash {
		return nil, Errorf(StatusNotSupported, "%s does not work with a public key", op.Operation)
	}
	r := &verifierRun{pub: pub, signature: bytes.Clone(op.Inputs["signature"])}
	if err := r.prepare(op, pub, op.Operation == Verify); err != nil {
		return nil, err
	}
	if len(r.signature) == 0 {
		return nil, Errorf(StatusInsufficientData, "the signature is missing")
	}
	return r, nil
}

func (r *verifierRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	digest, err := r.take(ctx)
	if err != nil {
		return Result{}, err
	}
	if !r.valid(digest) {
		return Result{}, Errorf(StatusInvalidSignature, "the signature is not valid for this key and input")
	}
	return Result{}, nil
}

func (r *verifierRun) valid(digest []byte) bool {
	switch pub := r.pub.(type) {
	case *rsa.PublicKey:
		h := r.opts.HashFunc()
		if !r.alg.IsRSAPSS() {
			return rsa.VerifyPKCS1v15(pub, h, digest, r.signature) == nil
		}
		opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		if r.alg == RSAPSSAnySalt(r.alg.Hash()) {
			opts.SaltLength = rsa.PSSSaltLengthAuto
		}
		return rsa.VerifyPSS(pub, h, digest, r.signature, opts) == nil
	case *ecdsa.PublicKey:
		der, ok := r.der()
		return ok && ecdsa.VerifyASN1(pub, digest, der)
	case ECDSAVerifier:
		der, ok := r.der()
		return ok && pub.VerifyASN1(digest, der)
	case ed25519.PublicKey:
		opts := &ed25519.Options{Hash: r.opts.HashFunc()}
		return ed25519.VerifyWithOptions(pub, digest, r.signature, opts) == nil
	}
	return false
}

// der is an ECDSA signature as crypto/ecdsa takes it; false where it has another length than the curve's.
func (r *verifierRun) der() ([]byte, bool) {
	if len(r.signature) != 2*((curveBits(r.pub)+7)/8) {
		return nil, false
	}
	der, err := ECDSARawToDER(r.signature)
	return der, err == nil
}

type hashRun struct{ input }

// HashRun hashes the main input and gives "hash" (psa_hash_compute). A hash that is not here is StatusNotSupported.
func HashRun(op Op) (Run, error) {
	h, ok := op.Algorithm.CryptoHash()
	if op.Operation != Hash || !op.Algorithm.IsHash() || !ok || !h.Available() {
		return nil, Errorf(StatusNotSupported, "%s does not work with %s", op.Operation, op.Algorithm)
	}
	return &hashRun{input{h: h.New()}}, nil
}

func (r *hashRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	if err := r.take(ctx); err != nil {
		return Result{}, err
	}
	return Result{Outputs: map[string][]byte{"hash": r.h.Sum(nil)}}, nil
}

type exportRun struct {
	input
	export func() ([]byte, error)
}

// ExportRun gives what export returns as the output "key"; it takes no main input (StatusInvalidArgument).
func ExportRun(export func() ([]byte, error)) Run { return &exportRun{export: export} }

func (r *exportRun) Write(p []byte) (int, error) {
	if len(p) > 0 {
		return 0, Errorf(StatusInvalidArgument, "export takes no input")
	}
	return 0, nil
}

func (r *exportRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	if err := r.take(ctx); err != nil {
		return Result{}, err
	}
	key, err := r.export()
	if err != nil {
		return Result{}, failed(err)
	}
	return Result{Outputs: map[string][]byte{"key": key}}, nil
}
