//lint:file-ignore SA1019 there is no other way to use these curves with crypto/ecdsa

package software

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"maps"
	"math/big"
	"slices"

	"github.com/ProtonMail/go-crypto/brainpool"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// brainpools are the Brainpool curves (RFC 5639). They are computed with math/big, which is NOT constant-time, not even
// where it uses a private key.
var brainpools = map[kind]elliptic.Curve{
	{psa.ECCKeyPair(psa.BrainpoolPR1), 256}: brainpool.P256r1(),
	{psa.ECCKeyPair(psa.BrainpoolPR1), 384}: brainpool.P384r1(),
	{psa.ECCKeyPair(psa.BrainpoolPR1), 512}: brainpool.P512r1(),
}

// foreign are the kinds of ECDSA keys on curves that the standard library does not have. They are stored as psa.RawKeys and
// read as crypto.Signer. Their public keys are *koblitzPublic or *ecdsa.PublicKey.
func foreign() []kind {
	return append(slices.Collect(maps.Keys(brainpools)), kind{psa.ECCKeyPair(psa.SECPK1), 256})
}

func isKoblitz(a psa.Attributes) bool {
	return a.Type.KeyPair() == psa.ECCKeyPair(psa.SECPK1) && a.Bits == 256
}

// isForeign says whether keys are of a foreign kind.
func isForeign(a psa.Attributes) bool {
	return isKoblitz(a) || brainpools[kind{a.Type.KeyPair(), a.Bits}] != nil
}

// foreignPrivate is the key of a scalar, which is big-endian and as long as the order.
func foreignPrivate(a psa.Attributes, scalar []byte) (crypto.Signer, error) {
	outside := psa.Errorf(psa.StatusInvalidArgument, "the private key is not between 1 and the order of %s", a.CurveName())
	if isKoblitz(a) {
		if k := koblitzPrivate(scalar); k != nil {
			return k, nil
		}
		return nil, outside
	}
	curve := brainpools[kind{a.Type, a.Bits}]
	d := new(big.Int).SetBytes(scalar)
	if d.Sign() == 0 || d.Cmp(curve.Params().N) >= 0 {
		return nil, outside
	}
	private := &ecdsa.PrivateKey{D: d, PublicKey: ecdsa.PublicKey{Curve: curve}}
	private.X, private.Y = curve.ScalarBaseMult(scalar)
	return private, nil
}

// foreignPublic is the key of an uncompressed point (SEC 1, 2.3.3); one off the curve is StatusInvalidArgument.
func foreignPublic(a psa.Attributes, point []byte) (crypto.PublicKey, error) {
	off := psa.Errorf(psa.StatusInvalidArgument, "the public key is not a point on %s", a.CurveName())
	if isKoblitz(a) {
		if k := koblitzPoint(point); k != nil {
			return k, nil
		}
		return nil, off
	}
	curve, n := brainpools[kind{a.Type.KeyPair(), a.Bits}], a.Bits/8
	if len(point) != 1+2*n || point[0] != 4 {
		return nil, off
	}
	k := &ecdsa.PublicKey{Curve: curve, X: new(big.Int).SetBytes(point[1 : 1+n]), Y: new(big.Int).SetBytes(point[1+n:])}
	if p := curve.Params().P; k.X.Cmp(p) >= 0 || k.Y.Cmp(p) >= 0 || !curve.IsOnCurve(k.X, k.Y) {
		return nil, off
	}
	return k, nil
}

func newForeign(a psa.Attributes) (crypto.Signer, error) {
	if isKoblitz(a) {
		return newKoblitz()
	}
	return ecdsa.GenerateKey(brainpools[kind{a.Type, a.Bits}], rand.Reader)
}

// foreignParts writes a key as PKCS #8 and SubjectPublicKeyInfo.
func foreignParts(a psa.Attributes, private crypto.Signer) (pkcs8, spki []byte, err error) {
	var scalar []byte
	switch k := private.(type) {
	case *koblitz:
		scalar = k.private.Bytes()
	case *ecdsa.PrivateKey:
		scalar = k.D.FillBytes(make([]byte, a.Bits/8))
	}
	defer psa.Wipe(scalar)
	return rawParts(a, scalar, foreignPoint(a, private.Public()))
}

// foreignPoint is the uncompressed point of a public key.
func foreignPoint(a psa.Attributes, public crypto.PublicKey) []byte {
	if k, ok := public.(*koblitzPublic); ok {
		return k.key.Bytes()
	}
	k, n := public.(*ecdsa.PublicKey), a.Bits/8
	point := make([]byte, 1+2*n)
	point[0] = 4
	k.X.FillBytes(point[1 : 1+n])
	k.Y.FillBytes(point[1+n:])
	return point
}
