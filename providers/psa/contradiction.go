package psa

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
)

// pkcs8 is OneAsymmetricKey (RFC 5958, 2).
type pkcs8 struct {
	Version    int
	Algorithm  pkix.AlgorithmIdentifier
	Key        []byte
	Attributes asn1.RawValue `asn1:"optional,tag:0"`
	Public     asn1.RawValue `asn1:"optional,tag:1"`
}

// sec1 is ECPrivateKey (RFC 5915, 3).
type sec1 struct {
	Version int
	Key     []byte
	Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	Public  asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

func errContradiction(what string) error {
	return Errorf(StatusInvalidArgument, "the private key's file contradicts itself: %s", what).
		WithHint("the file is damaged, or was made of two files: use a backup of it")
}

// contradiction refuses a private key whose file names another public key or curve than its own: crypto/x509 reads neither.
func contradiction(structure keyStructure, der []byte, key any) error {
	damaged := Errorf(StatusInvalidArgument, "a damaged private key")
	switch structure {
	case sec1Private:
		var ec sec1
		if rest, err := asn1.Unmarshal(der, &ec); err != nil || len(rest) > 0 {
			return damaged
		}
		return otherPublic(key, ec.Public.Bytes)
	case pkcs8Private:
	default:
		return nil
	}
	var p pkcs8
	if rest, err := asn1.Unmarshal(der, &p); err != nil || len(rest) > 0 || p.Version < 0 || p.Version > 1 {
		return damaged
	}
	public, err := implicitBits(p.Public)
	if err != nil {
		return err
	}
	if err := otherPublic(key, public); err != nil {
		return err
	}
	if _, isEC := key.(*ecdsa.PrivateKey); !isEC {
		return nil
	}
	var ec sec1
	if rest, err := asn1.Unmarshal(p.Key, &ec); err != nil || len(rest) > 0 || !hasParts(p.Key, 2) {
		return damaged
	}
	var outer asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(p.Algorithm.Parameters.FullBytes, &outer); err != nil {
		return damaged
	}
	if ec.Curve != nil && !ec.Curve.Equal(outer) {
		return errContradiction("it names two curves")
	}
	return otherPublic(key, ec.Public.Bytes)
}

// hasParts says whether a SEQUENCE has so many elements, then at most [0] and [1]: encoding/asn1 passes over what it does not
// expect, and a public key under a damaged tag would not be compared.
func hasParts(der []byte, fixed int) bool {
	var outer asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 {
		return false
	}
	least := 0
	for rest := outer.Bytes; len(rest) > 0; fixed-- {
		var v asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return false
		}
		if fixed > 0 {
			continue
		}
		if v.Class != asn1.ClassContextSpecific || v.Tag < least || v.Tag > 1 {
			return false
		}
		least = v.Tag + 1
	}
	return fixed <= 0
}

// otherPublic refuses a public key that stands beside a private one and is not its own; none is fine.
func otherPublic(key any, public []byte) error {
	if len(public) == 0 {
		return nil
	}
	var own []byte
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		own, _ = k.PublicKey.Bytes()
	case ed25519.PrivateKey:
		own = k.Public().(ed25519.PublicKey)
	case *ecdh.PrivateKey:
		own = k.PublicKey().Bytes()
	case *rsa.PrivateKey:
		own = x509.MarshalPKCS1PublicKey(&k.PublicKey)
	}
	if !samePublic(public, own) {
		return errContradiction("its public key belongs to another private key")
	}
	return nil
}

// samePublic compares a public key of a file with the derived one; a point may be compressed or hybrid (SEC 1, 2.3.3; X9.62).
func samePublic(claimed, own []byte) bool {
	if bytes.Equal(claimed, own) {
		return true
	}
	if len(own) < 3 || len(own)%2 == 0 || own[0] != 4 || len(claimed) == 0 {
		return false
	}
	half, odd := (len(own)-1)/2, own[len(own)-1]&1
	switch claimed[0] {
	case 2 + odd:
		return bytes.Equal(claimed[1:], own[1:1+half])
	case 6 + odd:
		return bytes.Equal(claimed[1:], own[1:])
	}
	return false
}

// implicitBits reads PKCS #8's public key: a BIT STRING whose tag is replaced or, as some libraries write it, wrapped.
func implicitBits(v asn1.RawValue) ([]byte, error) {
	if v.FullBytes == nil {
		return nil, nil
	}
	der := v.Bytes
	if !v.IsCompound {
		var err error
		if der, err = asn1.Marshal(asn1.RawValue{Tag: asn1.TagBitString, Bytes: v.Bytes}); err != nil {
			return nil, Errorf(StatusInvalidArgument, "a damaged private key: %w", err)
		}
	}
	var bits asn1.BitString
	if rest, err := asn1.Unmarshal(der, &bits); err != nil || len(rest) > 0 || bits.BitLength%8 != 0 {
		return nil, Errorf(StatusInvalidArgument, "the private key is damaged: its public key is not a bit string")
	}
	return bits.Bytes, nil
}

// hasExplicitCurve says whether an EC key has its curve's numbers in place of its name (RFC 3279, 2.3.5).
func hasExplicitCurve(der []byte) bool {
	var p8 struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
	}
	var spki struct{ Algorithm pkix.AlgorithmIdentifier }
	var ec struct {
		Version int
		Key     []byte
		Curve   asn1.RawValue `asn1:"optional,explicit,tag:0"`
	}
	written := func(id pkix.AlgorithmIdentifier) bool {
		return id.Algorithm.Equal(ecPublicKeyID) && id.Parameters.Tag == asn1.TagSequence
	}
	if _, err := asn1.Unmarshal(der, &p8); err == nil {
		return written(p8.Algorithm)
	}
	if _, err := asn1.Unmarshal(der, &spki); err == nil {
		return written(spki.Algorithm)
	}
	_, err := asn1.Unmarshal(der, &ec)
	return err == nil && ec.Curve.Tag == asn1.TagSequence
}

// parsePoint reads a public key on a NIST curve whose point is compressed or hybrid, as OpenSSL may write it; crypto/x509 reads
// uncompressed ones alone.
func parsePoint(der []byte) (*ecdsa.PublicKey, bool) {
	var spki struct {
		Algorithm rawAlgorithm
		Key       asn1.BitString
	}
	rest, err := asn1.Unmarshal(der, &spki)
	if err != nil || len(rest) > 0 || !spki.Algorithm.OID.Equal(ecPublicKeyID) || len(spki.Key.Bytes) == 0 || spki.Key.BitLength%8 != 0 {
		return nil, false
	}
	curve, point := nistCurves[spki.Algorithm.Curve.String()], bytes.Clone(spki.Key.Bytes)
	switch {
	case curve == nil:
		return nil, false
	case point[0] == 2 || point[0] == 3:
		x, y := elliptic.UnmarshalCompressed(curve, point)
		if x == nil {
			return nil, false
		}
		n := (curve.Params().BitSize + 7) / 8
		point = append(append([]byte{4}, x.FillBytes(make([]byte, n))...), y.FillBytes(make([]byte, n))...)
	default:
		point[0] = 4
	}
	key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
	return key, err == nil && samePublic(spki.Key.Bytes, point)
}

// nistCurves are those that crypto/x509 knows, by their object identifiers (RFC 5480, 2.1.1.1).
var nistCurves = map[string]elliptic.Curve{
	"1.3.132.0.33": elliptic.P224(), "1.2.840.10045.3.1.7": elliptic.P256(), "1.3.132.0.34": elliptic.P384(), "1.3.132.0.35": elliptic.P521(),
}
