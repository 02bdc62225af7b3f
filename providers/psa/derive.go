package psa

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"strconv"
	"strings"

	"github.com/pion/dtls/v3/pkg/crypto/prf"
)

// MaxDerived is the most bytes that one key derivation gives.
const MaxDerived = 16 << 10

// Raw is the key agreement that a is made of (PSA_ALG_KEY_AGREEMENT_GET_BASE), AlgNone for others.
func (a Algorithm) Raw() Algorithm {
	if !a.IsKeyAgreement() {
		return AlgNone
	}
	return a & agreementBits
}

// Derivation is what a key agreement's secret goes into (PSA_ALG_KEY_AGREEMENT_GET_KDF), AlgNone where it is given out
// as it is.
func (a Algorithm) Derivation() Algorithm {
	if !a.IsKeyAgreement() || a&^agreementBits == 0 {
		return AlgNone
	}
	return derivationCategory | a&derivationBits&^categoryBits
}

// ParseDerivation reads "hkdf-sha256", "tls12-prf-sha384", or PSA's own notation of one of these.
func ParseDerivation(s string) (Algorithm, error) {
	a, named, err := derivationNamed(s)
	if named {
		return a, err
	}
	a, err = ParseAlgorithm(s)
	if err == nil && derivationName(a) == "" {
		err = Errorf(StatusNotSupported, "key derivation %s is not supported", a)
	}
	if err != nil {
		return AlgNone, Errorf(StatusOf(err), "%w", err).WithHint("name a key derivation, such as hkdf-sha256 or tls12-prf-sha256")
	}
	return a, nil
}

// derivationNamed reads a derivation's name in templates; false where s begins like none.
func derivationNamed(s string) (a Algorithm, ok bool, err error) {
	for prefix, with := range derivations {
		if name, ok := strings.CutPrefix(s, prefix+"-"); ok {
			h, err := hashNamed(s, name, false)
			return with(h), true, err
		}
	}
	return AlgNone, false, nil
}

var derivations = map[string]func(Algorithm) Algorithm{"hkdf": HKDF, "tls12-prf": TLS12PRF}

// derivationName is a derivation's name in templates, "" if it has none.
func derivationName(a Algorithm) string {
	name := hashName(a.Hash())
	for prefix, with := range derivations {
		if name != "" && a == with(a.Hash()) {
			return prefix + "-" + name
		}
	}
	return ""
}

// derivation is one use of HKDF (RFC 5869), or of the TLS 1.2 PRF (RFC 5246, 5) with the seed as salt and the label as
// info.
type derivation struct {
	kdf        Algorithm
	salt, info []byte
	length     int
}

// newDerivation takes "salt", which HKDF may do without, and "length", the number of bytes in decimal: the hash's length
// if it is missing.
func newDerivation(kdf Algorithm, inputs map[string][]byte) (*derivation, error) {
	if _, known := kdf.CryptoHash(); !known || derivationName(kdf) == "" {
		return nil, Errorf(StatusNotSupported, "key derivation %s is not supported", kdf)
	}
	d := &derivation{kdf: kdf, length: kdf.HashLength(), salt: bytes.Clone(inputs["salt"])}
	most := MaxDerived
	if d.isHKDF() {
		most = min(most, 255*kdf.HashLength())
	}
	if s := strings.TrimSpace(string(inputs["length"])); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > most {
			return nil, Errorf(StatusInvalidArgument, "wrong length %s: %s derives 1 to %d bytes", quote(s), kdf, most)
		}
		d.length = n
	}
	return d, nil
}

func (d *derivation) isHKDF() bool { return d.kdf == HKDF(d.kdf.Hash()) }

func (d *derivation) derive(secret []byte) (map[string][]byte, error) {
	h, _ := d.kdf.CryptoHash()
	var out []byte
	var err error
	switch {
	case d.isHKDF():
		out, err = hkdf.Key(h.New, secret, d.salt, string(d.info), d.length)
	case len(d.salt) == 0 || len(d.info) == 0:
		return nil, Errorf(StatusInsufficientData, "the TLS 1.2 PRF needs a seed and a label").
			WithHint("write the seed into salt and the label into info")
	default:
		out, err = prf.PHash(secret, append(bytes.Clone(d.info), d.salt...), d.length, h.New)
	}
	if err != nil {
		return nil, Errorf(StatusGenericError, "%s: %w", d.kdf, err)
	}
	return map[string][]byte{"secret": out}, nil
}

// DeriveRun derives from a secret of a KeyTypeDerive; it is the Run's own, which wipes it. The main input is HKDF's info,
// or the TLS 1.2 PRF's label; Inputs are "salt" and "length" as newDerivation has them. It gives "secret".
func DeriveRun(op Op, secret []byte) (Run, error) {
	if op.Operation != Derive {
		return nil, Errorf(StatusNotSupported, "%s does not work with %s", op.Operation, op.Algorithm)
	}
	d, err := newDerivation(op.Algorithm, op.Inputs)
	if err != nil {
		return nil, err
	}
	return newWholeRun(MaxDerived, func(in []byte) (map[string][]byte, error) {
		d.info = bytes.Clone(in)
		return d.derive(secret)
	}), nil
}

// DerivedRun brings the secret of a raw key agreement, which begin begins, into the key derivation of op's algorithm;
// a raw agreement's own Run is given as it is. Inputs are "info" and those of newDerivation. It gives "secret".
func DerivedRun(op Op, begin func(Op) (Run, error)) (Run, error) {
	kdf := op.Algorithm.Derivation()
	if kdf == AlgNone {
		for _, name := range []string{"salt", "info", "length"} {
			if len(op.Inputs[name]) > 0 {
				return nil, Errorf(StatusInvalidArgument, "%s takes no %s", op.Algorithm, name).
					WithHint("write a key derivation into kdf, such as hkdf-sha256")
			}
		}
		return begin(op)
	}
	d, err := newDerivation(kdf, op.Inputs)
	if err != nil {
		return nil, err
	}
	d.info = bytes.Clone(op.Inputs["info"])
	op.Algorithm, op.Inputs = op.Algorithm.Raw(), nil
	run, err := begin(op)
	if err != nil {
		return nil, err
	}
	return &derivedRun{run, d}, nil
}

type derivedRun struct {
	Run
	d *derivation
}

func (r *derivedRun) Finish(ctx context.Context) (Result, error) {
	result, err := r.Run.Finish(ctx)
	if err != nil {
		return Result{}, err
	}
	secret := result.Outputs["secret"]
	defer Wipe(secret)
	out, err := r.d.derive(secret)
	return Result{Outputs: out}, err
}

// Stores says whether an agreement's secret can become a key of these attributes: a raw one has structure, and PSA
// lets it become a key for a derivation or a MAC alone (psa_key_agreement).
func (a Attributes) Stores(alg Algorithm) error {
	raw := a.Type == KeyTypeHMAC || a.Type == KeyTypeDerive || a.Type == KeyTypeRawData
	switch {
	case a.Type == KeyTypeNone || a.Type.IsAsymmetric() || a.Bits == 0:
		return Errorf(StatusInvalidArgument, "the draft must be for a symmetric key, and have a size").
			WithHint("write a template into its attributes, such as aes-256-gcm")
	case alg == ECDH && !raw:
		return Errorf(StatusInvalidArgument, "a raw secret cannot become a %s key", a.Type).
			WithHint("write a key derivation into kdf, such as hkdf-sha256")
	}
	return a.Validate()
}
