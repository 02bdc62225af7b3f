//lint:file-ignore SA1019 curves that the standard library has not have no other way into crypto/ecdsa

package software

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"io"
	"math/big"

	"github.com/ProtonMail/go-crypto/brainpool"
	"github.com/decred/dcrd/dcrec/secp256k1/v4"
	secp256k1ecdsa "github.com/decred/dcrd/dcrec/secp256k1/v4/ecdsa"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// foreign are the curves for ECDSA that the standard library has not: their keys are psa.RawKeys, and are *ecdsa.PublicKey
// and crypto.Signer once read. secp256k1 is constant-time where it touches a private key; the Brainpool curves (RFC
// 5639) are computed with math/big, and are NOT.
var foreign = map[kind]elliptic.Curve{
	{psa.ECCKeyPair(psa.SECPK1), 256}:       secp256k1.S256(),
	{psa.ECCKeyPair(psa.BrainpoolPR1), 256}: brainpool.P256r1(),
	{psa.ECCKeyPair(psa.BrainpoolPR1), 384}: brainpool.P384r1(),
	{psa.ECCKeyPair(psa.BrainpoolPR1), 512}: brainpool.P512r1(),
}

// foreignCurve is the foreign curve of such keys, or nil.
func foreignCurve(a psa.Attributes) elliptic.Curve { return foreign[kind{a.Type.KeyPair(), a.Bits}] }

// koblitz is a private key on secp256k1.
type koblitz struct {
	scalar []byte
	public *ecdsa.PublicKey
}

func (k *koblitz) Public() crypto.PublicKey { return k.public }

// Sign gives a signature in ASN.1 whose s is in the lower half of the order, as Bitcoin wants them.
func (k *koblitz) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	private := secp256k1.PrivKeyFromBytes(k.scalar)
	defer private.Zero()
	return secp256k1ecdsa.Sign(private, digest[:min(len(digest), 32)]).Serialize(), nil // SEC 1, 4.1.3: the leftmost bits
}

// foreignPrivate is the key of that scalar, in big-endian and of the order's length.
func foreignPrivate(a psa.Attributes, scalar []byte) (crypto.Signer, error) {
	curve := foreignCurve(a)
	d := new(big.Int).SetBytes(scalar)
	if d.Sign() == 0 || d.Cmp(curve.Params().N) >= 0 {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "a private key outside 1 to the order of %s", a.CurveName())
	}
	if a.Type.Family() == psa.SECPK1 {
		private := secp256k1.PrivKeyFromBytes(scalar)
		defer private.Zero()
		return &koblitz{append([]byte(nil), scalar...), private.PubKey().ToECDSA()}, nil
	}
	private := &ecdsa.PrivateKey{D: d, PublicKey: ecdsa.PublicKey{Curve: curve}}
	private.X, private.Y = curve.ScalarBaseMult(scalar)
	return private, nil
}

// foreignPublic is the key of an uncompressed point (SEC 1, 2.3.3); one off the curve is StatusInvalidArgument.
func foreignPublic(a psa.Attributes, point []byte) (*ecdsa.PublicKey, error) {
	curve, n := foreignCurve(a), a.Bits/8
	k := &ecdsa.PublicKey{Curve: curve}
	if len(point) == 1+2*n && point[0] == 4 {
		k.X, k.Y = new(big.Int).SetBytes(point[1:1+n]), new(big.Int).SetBytes(point[1+n:])
		if p := curve.Params().P; k.X.Cmp(p) < 0 && k.Y.Cmp(p) < 0 && curve.IsOnCurve(k.X, k.Y) {
			return k, nil
		}
	}
	return nil, psa.Errorf(psa.StatusInvalidArgument, "the public key is no point of %s", a.CurveName())
}

func newForeign(a psa.Attributes) (crypto.Signer, error) {
	k, err := ecdsa.GenerateKey(foreignCurve(a), rand.Reader)
	if err != nil {
		return nil, err
	}
	scalar := k.D.FillBytes(make([]byte, a.Bits/8))
	defer psa.Wipe(scalar)
	return foreignPrivate(a, scalar)
}

// foreignParts writes a key as PKCS #8 and SubjectPublicKeyInfo.
func foreignParts(a psa.Attributes, private crypto.Signer) (pkcs8, spki []byte, err error) {
	var scalar []byte
	switch k := private.(type) {
	case *koblitz:
		scalar = k.scalar
	case *ecdsa.PrivateKey:
		scalar = k.D.FillBytes(make([]byte, a.Bits/8))
		defer psa.Wipe(scalar)
	}
	return rawParts(a, scalar, foreignPoint(a, private.Public().(*ecdsa.PublicKey)))
}

func foreignPoint(a psa.Attributes, k *ecdsa.PublicKey) []byte {
	n := a.Bits / 8
	point := make([]byte, 1+2*n)
	point[0] = 4
	k.X.FillBytes(point[1 : 1+n])
	k.Y.FillBytes(point[1+n:])
	return point
}
