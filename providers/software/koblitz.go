package software

import (
	"crypto"
	"io"

	"gitlab.com/yawning/secp256k1-voi/secec"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// koblitzBytes is the length of a scalar of secp256k1, and of a coordinate.
const koblitzBytes = 32

// koblitz is a private key on secp256k1. All computations with its scalar take constant time.
type koblitz struct {
	private *secec.PrivateKey
	public  *koblitzPublic
}

func newKoblitz() (*koblitz, error) {
	private, err := secec.GenerateKey()
	if err != nil {
		return nil, err
	}
	return &koblitz{private, &koblitzPublic{private.PublicKey()}}, nil
}

// koblitzPrivate is the key of a big-endian scalar, nil if it is not between 1 and the order.
func koblitzPrivate(scalar []byte) *koblitz {
	private, err := secec.NewPrivateKey(scalar)
	if err != nil {
		return nil
	}
	return &koblitz{private, &koblitzPublic{private.PublicKey()}}
}

func (k *koblitz) Public() crypto.PublicKey { return k.public }

// Sign returns a signature in ASN.1 whose s is in the lower half of the order, as Bitcoin requires.
func (k *koblitz) Sign(random io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	return k.private.Sign(random, integerOf(digest), nil)
}

// integerOf is a digest that is shorter than the order as the same integer in the order's length (SEC 1, 4.1.3, step 5); of a
// longer one the library takes the leftmost bits.
func integerOf(digest []byte) []byte {
	if len(digest) >= koblitzBytes {
		return digest
	}
	return append(make([]byte, koblitzBytes-len(digest), koblitzBytes), digest...)
}

// koblitzPublic is a public key on secp256k1, a psa.ECDSAVerifier.
type koblitzPublic struct{ key *secec.PublicKey }

var _ psa.ECDSAVerifier = (*koblitzPublic)(nil)

// koblitzPoint is the key of an uncompressed point (SEC 1, 2.3.3), nil if the point is not on the curve.
func koblitzPoint(point []byte) *koblitzPublic {
	if len(point) != 1+2*koblitzBytes {
		return nil
	}
	key, err := secec.NewPublicKey(point)
	if err != nil {
		return nil
	}
	return &koblitzPublic{key}
}

// BitSize is that of the curve.
func (k *koblitzPublic) BitSize() int { return 8 * koblitzBytes }

// VerifyASN1 accepts both values of s that a signature can have: only Bitcoin refuses the upper one.
func (k *koblitzPublic) VerifyASN1(digest, signature []byte) bool {
	return k.key.Verify(integerOf(digest), signature, nil)
}
