package psa

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
)

type rsaCryptRun struct {
	input
	crypt func(in []byte) ([]byte, error)
	name  string
	fit   int // bytes of a plaintext
}

// RSAEncryptRun encrypts with PKCS #1 v1.5 or OAEP, whose label is Inputs["additional_data"]. It gives "ciphertext";
// a plaintext that does not fit is StatusInvalidArgument.
func RSAEncryptRun(op Op, pub *rsa.PublicKey) (Run, error) {
	label := bytes.Clone(op.Inputs["additional_data"])
	fit := pub.Size() - 11 // RFC 8017, 7.2.1
	if h, ok := op.Algorithm.CryptoHash(); op.Algorithm.IsRSAOAEP() && ok {
		fit = max(0, pub.Size()-2*h.Size()-2) // RFC 8017, 7.1.1
	}
	hint := fmt.Sprintf("at most %d bytes fit: encrypt a symmetric key with this key, and the data with the symmetric key", fit)
	r := &rsaCryptRun{input: input{held: secret{limit: int64(pub.Size()), hint: hint}}, name: "ciphertext", fit: fit}
	switch h, ok := op.Algorithm.CryptoHash(); {
	case op.Operation != Encrypt:
		return nil, Errorf(StatusNotSupported, "%s does not work with a public key", op.Operation)
	case op.Algorithm == RSAPKCS1v15Crypt && len(label) > 0:
		return nil, Errorf(StatusInvalidArgument, "%s takes no label", op.Algorithm)
	case op.Algorithm == RSAPKCS1v15Crypt:
		r.crypt = func(in []byte) ([]byte, error) {
			return rsa.EncryptPKCS1v15(rand.Reader, pub, in) //lint:ignore SA1019 a policy asked for it by its name
		}
	case op.Algorithm.IsRSAOAEP() && ok:
		r.crypt = func(in []byte) ([]byte, error) { return rsa.EncryptOAEP(h.New(), rand.Reader, pub, in, label) }
	default:
		return nil, Errorf(StatusNotSupported, "%s does not work with an RSA key", op.Algorithm)
	}
	return r, nil
}

// RSADecryptRun decrypts what RSAEncryptRun made. It gives "plaintext"; what is no such ciphertext is
// StatusInvalidPadding.
func RSADecryptRun(op Op, key crypto.Decrypter) (Run, error) {
	pub, ok := key.Public().(*rsa.PublicKey)
	if !ok || op.Operation != Decrypt {
		return nil, Errorf(StatusNotSupported, "%s does not work with a %T", op.Operation, key)
	}
	label := bytes.Clone(op.Inputs["additional_data"])
	var opts crypto.DecrypterOpts
	switch h, ok := op.Algorithm.CryptoHash(); {
	case op.Algorithm == RSAPKCS1v15Crypt && len(label) > 0:
		return nil, Errorf(StatusInvalidArgument, "%s takes no label", op.Algorithm)
	case op.Algorithm == RSAPKCS1v15Crypt:
	case op.Algorithm.IsRSAOAEP() && ok:
		opts = &rsa.OAEPOptions{Hash: h, Label: label}
	default:
		return nil, Errorf(StatusNotSupported, "%s does not work with an RSA key", op.Algorithm)
	}
	size := pub.Size()
	hint := fmt.Sprintf("a ciphertext of this key has %d bytes", size)
	return &rsaCryptRun{input: input{held: secret{limit: int64(size), hint: hint}}, name: "plaintext", crypt: func(in []byte) ([]byte, error) {
		if len(in) != size {
			return nil, Errorf(StatusInvalidArgument, "the ciphertext has %d bytes; those of this key have %d", len(in), size)
		}
		out, err := key.Decrypt(rand.Reader, in, opts)
		if errors.Is(err, rsa.ErrDecryption) {
			err = Errorf(StatusInvalidPadding, "this ciphertext was not made for this key: %w", err)
		}
		return out, err
	}}, nil
}

func (r *rsaCryptRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	if err := r.take(ctx); err != nil {
		return Result{}, err
	}
	if n := len(r.held.b); r.name == "ciphertext" && n > r.fit {
		return Result{}, Errorf(StatusInvalidArgument, "the plaintext has %d bytes; at most %d fit", n, r.fit).WithHint(r.held.hint)
	}
	out, err := r.crypt(r.held.b)
	if err != nil {
		return Result{}, failed(err)
	}
	if out == nil {
		out = []byte{} // an empty answer, and still one
	}
	return Result{Outputs: map[string][]byte{r.name: out}}, nil
}

// MaxPeer bounds a peer's public key in bytes.
const MaxPeer = 8 << 10

type agreeRun struct {
	input
	curve ecdh.Curve
	agree func(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error)
}

// AgreeRun is ECDH with the peer's public key as the main input: SubjectPublicKeyInfo in PEM or DER, or PSA's own
// format (an uncompressed point; X25519: 32 bytes). It gives "secret", the shared x coordinate, in the curve's own
// length (RFC 8422, 5.10; RFC 7748, 6). A point off the curve, of another curve, or one that gives the all-zero secret
// is StatusInvalidArgument.
func AgreeRun(op Op, key *ecdh.PrivateKey) (Run, error) {
	return DeviceAgreeRun(op, key.Curve(), func(_ context.Context, peer *ecdh.PublicKey) ([]byte, error) {
		secret, err := key.ECDH(peer)
		if err != nil {
			return nil, Errorf(StatusInvalidArgument, "the key agreement failed with this peer's key: %w", err)
		}
		return secret, nil
	})
}

// DeviceAgreeRun is AgreeRun with a device that agrees with a peer on the curve.
func DeviceAgreeRun(op Op, curve ecdh.Curve, agree func(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error)) (Run, error) {
	if op.Operation != Agree || op.Algorithm != ECDH {
		return nil, Errorf(StatusNotSupported, "%s with %s does not work with a key for ECDH", op.Operation, op.Algorithm)
	}
	return &agreeRun{input{held: secret{limit: MaxPeer}}, curve, agree}, nil
}

func (r *agreeRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	if err := r.take(ctx); err != nil {
		return Result{}, err
	}
	if len(r.held.b) == 0 {
		return Result{}, Errorf(StatusInsufficientData, "the peer's public key is missing")
	}
	peer, err := parsePeer(r.held.b, r.curve)
	if err != nil {
		return Result{}, err
	}
	secret, err := r.agree(ctx, peer)
	if err != nil {
		return Result{}, failed(err)
	}
	return Result{Outputs: map[string][]byte{"secret": secret}}, nil
}

func parsePeer(b []byte, curve ecdh.Curve) (*ecdh.PublicKey, error) {
	der, err := PublicDER(b)
	if err != nil {
		return nil, Errorf(StatusInvalidArgument, "wrong public key of the peer: %w", err)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		peer, e := curve.NewPublicKey(b)
		if e != nil {
			return nil, Errorf(StatusInvalidArgument, "the peer's public key is neither PEM nor DER, nor a point of %v: %w", curve, e)
		}
		return peer, nil
	}
	var peer *ecdh.PublicKey
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		peer, err = k.ECDH()
	case *ecdh.PublicKey:
		peer = k
	default:
		err = errors.New("not a key for ECDH")
	}
	if err != nil || peer.Curve() != curve {
		return nil, Errorf(StatusInvalidArgument, "the peer's public key is not of %v", curve)
	}
	return peer, nil
}
