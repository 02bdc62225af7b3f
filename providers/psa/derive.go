package psa

import (
	"context"
	"crypto/hkdf"
	"strconv"
	"strings"

	"github.com/pion/dtls/v3/pkg/crypto/prf"
)

// MaxDerived is the most bytes that one key derivation gives.
const MaxDerived = 8 << 10

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
		err = Errorf(StatusNotSupported, "%s is no key derivation that is here", a)
	}
	if err != nil {
		return AlgNone, Errorf(StatusOf(err), "%w", err).WithHint("a key derivation is named such as hkdf-sha256 or tls12-prf-sha256")
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

// DerivedRun brings the secret of a raw key agreement, which begin begins, into the key derivation of op's algorithm;
// a raw agreement's own Run is given as it is. Inputs are "salt" and "info" of HKDF (RFC 5869), which may be missing,
// or the seed and the label of the TLS 1.2 PRF (RFC 5246, 5) in their place, and "length", the number of bytes in
// decimal: the hash's length if it is missing. It gives "secret".
func DerivedRun(op Op, begin func(Op) (Run, error)) (Run, error) {
	kdf := op.Algorithm.Derivation()
	if kdf == AlgNone {
		for _, name := range []string{"salt", "info", "length"} {
			if len(op.Inputs[name]) > 0 {
				return nil, Errorf(StatusInvalidArgument, "%s has no %s", op.Algorithm, name).WithHint("name a key derivation, such as hkdf-sha256")
			}
		}
		return begin(op)
	}
	if _, known := kdf.CryptoHash(); !known || derivationName(kdf) == "" {
		return nil, Errorf(StatusNotSupported, "%s with %s", op.Operation, op.Algorithm)
	}
	d := &derivedRun{kdf: kdf, length: kdf.HashLength(), salt: op.Inputs["salt"], info: op.Inputs["info"]}
	most := MaxDerived
	if kdf == HKDF(kdf.Hash()) {
		most = min(most, 255*kdf.HashLength())
	} else if len(d.salt) == 0 || len(d.info) == 0 {
		return nil, Errorf(StatusInsufficientData, "the TLS 1.2 PRF needs a seed and a label").WithHint("the seed goes into salt, the label into info")
	}
	if s := strings.TrimSpace(string(op.Inputs["length"])); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > most {
			return nil, Errorf(StatusInvalidArgument, "length %s: %s gives 1 to %d bytes", quote(s), kdf, most)
		}
		d.length = n
	}
	op.Algorithm, op.Inputs = op.Algorithm.Raw(), nil
	var err error
	d.Run, err = begin(op)
	return d, err
}

type derivedRun struct {
	Run
	kdf        Algorithm
	salt, info []byte
	length     int
}

func (r *derivedRun) Finish(ctx context.Context) (Result, error) {
	result, err := r.Run.Finish(ctx)
	if err != nil {
		return Result{}, err
	}
	secret := result.Outputs["secret"]
	defer Wipe(secret)
	out, err := r.derive(secret)
	if err != nil {
		return Result{}, Errorf(StatusGenericError, "%s: %w", r.kdf, err)
	}
	return Result{Outputs: map[string][]byte{"secret": out}}, nil
}

func (r *derivedRun) derive(secret []byte) ([]byte, error) {
	h, _ := r.kdf.CryptoHash()
	if r.kdf == HKDF(r.kdf.Hash()) {
		return hkdf.Key(h.New, secret, r.salt, string(r.info), r.length)
	}
	return prf.PHash(secret, append(append([]byte(nil), r.info...), r.salt...), r.length, h.New)
}
