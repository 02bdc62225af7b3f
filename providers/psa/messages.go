package psa

import (
	"bytes"
	"context"
)

// wholeRun holds its input and does everything in Finish.
type wholeRun struct {
	input
	do func(ctx context.Context, in []byte) (map[string][]byte, error)
}

func (r *wholeRun) Finish(ctx context.Context) (Result, error) {
	defer r.Abort()
	if err := r.take(ctx); err != nil {
		return Result{}, err
	}
	out, err := r.do(ctx, r.held.b)
	if err != nil {
		return Result{}, failed(err)
	}
	return Result{Outputs: out}, nil
}

// newHeldRun is newWholeRun for input of any length, as far as the configuration lets it.
func newHeldRun(op Op, do func(in []byte) (map[string][]byte, error)) Run {
	return &wholeRun{input{held: op.held()}, func(_ context.Context, in []byte) (map[string][]byte, error) { return do(in) }}
}

func newWholeRun(limit int64, do func(in []byte) (map[string][]byte, error)) Run {
	return WholeRun(limit, func(_ context.Context, in []byte) (map[string][]byte, error) { return do(in) })
}

// WholeRun holds its input of at most limit bytes, and has do make the outputs of it, on a device perhaps.
func WholeRun(limit int64, do func(ctx context.Context, in []byte) (map[string][]byte, error)) Run {
	return &wholeRun{input{held: secret{limit: limit}}, do}
}

// MessageSignRun signs messages that are held whole, up to op.Limit bytes. It gives "signature".
func MessageSignRun(op Op, sign func(message []byte) ([]byte, error)) (Run, error) {
	if op.Operation != Sign {
		return nil, Errorf(StatusNotSupported, "%s does not work with %s", op.Operation, op.Algorithm)
	}
	return newHeldRun(op, func(in []byte) (map[string][]byte, error) {
		signature, err := sign(in)
		return map[string][]byte{"signature": signature}, err
	}), nil
}

// MessageVerifyRun judges Inputs["signature"] of a message that is held whole. It gives nothing, or
// StatusInvalidSignature; a missing signature is StatusInsufficientData.
func MessageVerifyRun(op Op, verify func(message, signature []byte) bool) (Run, error) {
	signature := bytes.Clone(op.Inputs["signature"])
	switch {
	case op.Operation != Verify:
		return nil, Errorf(StatusNotSupported, "%s does not work with %s", op.Operation, op.Algorithm)
	case len(signature) == 0:
		return nil, Errorf(StatusInsufficientData, "the signature is missing")
	}
	return newHeldRun(op, func(in []byte) (map[string][]byte, error) {
		if !verify(in, signature) {
			return nil, Errorf(StatusInvalidSignature, "the signature is not valid for this key and input")
		}
		return nil, nil
	}), nil
}

// RawAgreeRun agrees with a peer whose public key is a RawKey of the same kind, in PEM, in DER or as its bytes. agree
// gives "secret"; its error is StatusInvalidArgument.
func RawAgreeRun(op Op, t KeyType, bits int, agree func(peer []byte) ([]byte, error)) (Run, error) {
	kind := rawKindOf(t, bits)
	if op.Operation != Agree || op.Algorithm != ECDH || kind == nil {
		return nil, Errorf(StatusNotSupported, "%s does not work with %s", op.Operation, op.Algorithm)
	}
	return newWholeRun(MaxPeer, func(in []byte) (map[string][]byte, error) {
		if len(in) == 0 {
			return nil, Errorf(StatusInsufficientData, "the peer's public key is missing")
		}
		peer := in
		if len(in) != kind.public {
			der, err := PublicDER(in)
			if err != nil {
				return nil, Errorf(StatusInvalidArgument, "wrong public key of the peer: %w", err)
			}
			k, err := ParseRawKey(der)
			if err != nil || k.Type != kind.t.PublicKey() || k.Bits != bits {
				return nil, Errorf(StatusInvalidArgument, "the peer's public key is not of this kind")
			}
			peer = k.Bytes
		}
		secret, err := agree(peer)
		if err != nil {
			return nil, Errorf(StatusInvalidArgument, "the key agreement failed with this peer's key: %w", err)
		}
		return map[string][]byte{"secret": secret}, nil
	}), nil
}

// EncapsulateRun makes a secret for a public key (PSA's psa_encapsulate); it takes no input and gives "ciphertext" and
// "secret".
func EncapsulateRun(op Op, encapsulate func() (ciphertext, secret []byte, err error)) (Run, error) {
	if op.Operation != Encapsulate {
		return nil, Errorf(StatusNotSupported, "%s does not work with %s", op.Operation, op.Algorithm)
	}
	return newWholeRun(1, func(in []byte) (map[string][]byte, error) {
		if len(in) > 0 {
			return nil, Errorf(StatusInvalidArgument, "encapsulate takes no input")
		}
		ciphertext, secret, err := encapsulate()
		return map[string][]byte{"ciphertext": ciphertext, "secret": secret}, err
	}), nil
}

// DecapsulateRun gives the "secret" of a ciphertext of size bytes; another length is StatusInvalidArgument.
func DecapsulateRun(op Op, size int, decapsulate func(ciphertext []byte) ([]byte, error)) (Run, error) {
	if op.Operation != Decapsulate {
		return nil, Errorf(StatusNotSupported, "%s does not work with %s", op.Operation, op.Algorithm)
	}
	return newWholeRun(int64(size)+1, func(in []byte) (map[string][]byte, error) {
		if len(in) != size {
			return nil, Errorf(StatusInvalidArgument, "the ciphertext has %d bytes; those of this kind have %d", len(in), size)
		}
		secret, err := decapsulate(in)
		return map[string][]byte{"secret": secret}, err
	}), nil
}
