package psa

import (
	"encoding/asn1"
	"slices"
)

// RawKey is a key of a kind that crypto/x509 does not know: its bytes, as its own standard has them.
type RawKey struct {
	Type KeyType // a pair, or a public key
	Bits int
	// Bytes are the encoded public key, or of a pair the private key: Ed448's and X448's (RFC 8032, 7748), ML-DSA's
	// and ML-KEM's seeds (FIPS 204, 203), SLH-DSA's private key (FIPS 205), an uncompressed point and a scalar of
	// secp256k1 and the Brainpool curves (SEC 1, 2.3.3 and 2.3.7).
	Bytes []byte
	// Public is what Marshal writes beside a private key that has room for it (RFC 5915, 3); ParseRawKey does not trust
	// it.
	Public []byte
}

// rawForm is how PKCS #8 holds a private key.
type rawForm int

const (
	octetsInOctets rawForm = iota // CurvePrivateKey (RFC 8410, 7)
	seedChoice                    // a seed, an expanded key or both (RFC 9881, 6; RFC 9935, 6)
	bare                          // RFC 9909, 6
	ecPrivateKey                  // RFC 5915, 3
)

type rawKind struct {
	id      rawAlgorithm
	t       KeyType // of the pair
	bits    int
	private int // bytes
	public  int
	form    rawForm
}

// ecPublicKeyID is id-ecPublicKey (RFC 5480, 2.1.1).
var ecPublicKeyID = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}

var rawKinds = newRawKinds()

func newRawKinds() []rawKind {
	id := func(oid ...int) rawAlgorithm { return rawAlgorithm{OID: oid} }
	nist := func(arc, n int) rawAlgorithm { return id(2, 16, 840, 1, 101, 3, 4, arc, n) }
	kinds := []rawKind{
		{id(1, 3, 101, 113), ECCKeyPair(TwistedEdwards), 448, 57, 57, octetsInOctets},
		{id(1, 3, 101, 111), ECCKeyPair(Montgomery), 448, 56, 56, octetsInOctets},
		{nist(3, 17), KeyTypeMLDSAKeyPair, 128, 32, 1312, seedChoice},
		{nist(3, 18), KeyTypeMLDSAKeyPair, 192, 32, 1952, seedChoice},
		{nist(3, 19), KeyTypeMLDSAKeyPair, 256, 32, 2592, seedChoice},
		{nist(4, 2), KeyTypeMLKEMKeyPair, 768, 64, 1184, seedChoice},
		{nist(4, 3), KeyTypeMLKEMKeyPair, 1024, 64, 1568, seedChoice},
	}
	curve := func(f ECCFamily, bits int, oid ...int) {
		id := rawAlgorithm{ecPublicKeyID, oid}
		kinds = append(kinds, rawKind{id, ECCKeyPair(f), bits, bits / 8, 1 + bits/4, ecPrivateKey})
	}
	curve(SECPK1, 256, 1, 3, 132, 0, 10)                    // SEC 2, A.2.1
	curve(BrainpoolPR1, 256, 1, 3, 36, 3, 3, 2, 8, 1, 1, 7) // RFC 5639, 4.1
	curve(BrainpoolPR1, 384, 1, 3, 36, 3, 3, 2, 8, 1, 1, 11)
	curve(BrainpoolPR1, 512, 1, 3, 36, 3, 3, 2, 8, 1, 1, 13)
	n := 20 // id-slh-dsa-sha2-128s; then 128f, 192s, ..., and the same with SHAKE (RFC 9909, 3)
	for _, families := range [][2]SLHDSAFamily{{SLHDSASHA2S, SLHDSASHA2F}, {SLHDSASHAKES, SLHDSASHAKEF}} {
		for _, bits := range []int{128, 192, 256} {
			for _, f := range families {
				kinds = append(kinds, rawKind{nist(3, n), SLHDSAKeyPair(f), bits, bits / 2, bits / 4, bare})
				n++
			}
		}
	}
	return kinds
}

// IsRawKey says whether such keys are RawKeys.
func IsRawKey(t KeyType, bits int) bool { return rawKindOf(t, bits) != nil }

func rawKindOf(t KeyType, bits int) *rawKind {
	i := slices.IndexFunc(rawKinds, func(k rawKind) bool { return k.t == t.KeyPair() && k.bits == bits })
	if i < 0 {
		return nil
	}
	return &rawKinds[i]
}

// rawAlgorithm is an AlgorithmIdentifier (RFC 5280, 4.1.1.2) whose parameters are a named curve, or none.
type rawAlgorithm struct {
	OID   asn1.ObjectIdentifier
	Curve asn1.ObjectIdentifier `asn1:"optional"`
}

type rawSPKI struct {
	Algorithm rawAlgorithm
	Key       asn1.BitString
}

type rawPKCS8 struct {
	Version   int
	Algorithm rawAlgorithm
	Key       []byte
}

type rawSEC1 struct {
	Version int
	Key     []byte
	Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	Public  asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

// Marshal writes PKCS #8, or SubjectPublicKeyInfo of a public key, in DER. Bytes of another length are
// StatusInvalidArgument.
func (k RawKey) Marshal() ([]byte, error) {
	kind := rawKindOf(k.Type, k.Bits)
	if kind == nil {
		return nil, Errorf(StatusNotSupported, "a %s of %d bits is not a raw key", k.Type, k.Bits)
	}
	want := kind.private
	if k.Type.IsPublicKey() {
		want = kind.public
	}
	if len(k.Bytes) != want {
		return nil, Errorf(StatusInvalidArgument, "the key has %d bytes; a %s of %d bits has %d", len(k.Bytes), k.Type, k.Bits, want)
	}
	var value any = rawSPKI{kind.id, asn1.BitString{Bytes: k.Bytes, BitLength: 8 * len(k.Bytes)}}
	if !k.Type.IsPublicKey() {
		inner := k.Bytes
		var err error
		switch kind.form {
		case octetsInOctets:
			inner, err = asn1.Marshal(k.Bytes)
		case seedChoice:
			inner, err = asn1.Marshal(asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: k.Bytes})
		case ecPrivateKey:
			inner, err = asn1.Marshal(rawSEC1{Version: 1, Key: k.Bytes, Public: asn1.BitString{Bytes: k.Public, BitLength: 8 * len(k.Public)}})
		}
		if err != nil {
			return nil, Errorf(StatusGenericError, "%w", err)
		}
		value = rawPKCS8{0, kind.id, inner}
	}
	der, err := asn1.Marshal(value)
	if err != nil {
		return nil, Errorf(StatusGenericError, "%w", err)
	}
	return der, nil
}

// ParseRawKey reads what Marshal writes, and an ML-DSA or ML-KEM key with its seed and its expanded form. A key of
// another kind is StatusNotSupported, one that is damaged StatusInvalidArgument.
func ParseRawKey(der []byte) (RawKey, error) {
	var spki rawSPKI
	if rest, err := asn1.Unmarshal(der, &spki); err == nil && len(rest) == 0 {
		kind, err := rawKindBy(spki.Algorithm)
		if err != nil {
			return RawKey{}, err
		}
		if len(spki.Key.Bytes) != kind.public || spki.Key.BitLength != 8*kind.public {
			return RawKey{}, Errorf(StatusInvalidArgument, "the public key has %d bits instead of %d", spki.Key.BitLength, 8*kind.public)
		}
		return RawKey{Type: kind.t.PublicKey(), Bits: kind.bits, Bytes: spki.Key.Bytes}, nil
	}
	var ec rawSEC1
	if rest, err := asn1.Unmarshal(der, &ec); err == nil && len(rest) == 0 && ec.Version == 1 && ec.Curve != nil {
		kind, err := rawKindBy(rawAlgorithm{ecPublicKeyID, ec.Curve})
		if err != nil {
			return RawKey{}, err
		}
		return kind.privateKey(ec.Key)
	}
	var p struct {
		Version    int
		Algorithm  rawAlgorithm
		Key        []byte
		Attributes asn1.RawValue `asn1:"optional,tag:0"`
		Public     asn1.RawValue `asn1:"optional,tag:1"`
	}
	if rest, err := asn1.Unmarshal(der, &p); err != nil || len(rest) > 0 {
		return RawKey{}, Errorf(StatusInvalidArgument, "the key is neither PKCS #8 nor SubjectPublicKeyInfo")
	}
	kind, err := rawKindBy(p.Algorithm)
	if err != nil {
		return RawKey{}, err
	}
	b, err := kind.unwrap(p.Key)
	if err != nil {
		return RawKey{}, err
	}
	return kind.privateKey(b)
}

func (k *rawKind) privateKey(b []byte) (RawKey, error) {
	if len(b) != k.private {
		return RawKey{}, Errorf(StatusInvalidArgument, "the private key has %d bytes instead of %d", len(b), k.private)
	}
	return RawKey{Type: k.t, Bits: k.bits, Bytes: b}, nil
}

func rawKindBy(id rawAlgorithm) (*rawKind, error) {
	i := slices.IndexFunc(rawKinds, func(k rawKind) bool { return k.id.OID.Equal(id.OID) && k.id.Curve.Equal(id.Curve) })
	if i < 0 {
		return nil, Errorf(StatusNotSupported, "the key has the unknown algorithm %v %v", id.OID, id.Curve)
	}
	return &rawKinds[i], nil
}

// unwrap takes the bytes out of PKCS #8's OCTET STRING.
func (k *rawKind) unwrap(b []byte) ([]byte, error) {
	damaged := Errorf(StatusInvalidArgument, "the private key is damaged")
	switch k.form {
	case bare:
		return b, nil
	case ecPrivateKey:
		var ec rawSEC1
		if rest, err := asn1.Unmarshal(b, &ec); err != nil || len(rest) > 0 || ec.Version != 1 || ec.Curve != nil && !ec.Curve.Equal(k.id.Curve) {
			return nil, damaged
		}
		return ec.Key, nil
	}
	var v asn1.RawValue
	if rest, err := asn1.Unmarshal(b, &v); err != nil || len(rest) > 0 {
		return nil, damaged
	}
	switch {
	case k.form == octetsInOctets && v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOctetString:
		return v.Bytes, nil
	case k.form == octetsInOctets:
		return nil, damaged
	case v.Class == asn1.ClassContextSpecific && v.Tag == 0 && !v.IsCompound:
		return v.Bytes, nil
	case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence:
		var both struct{ Seed, Expanded []byte }
		if rest, err := asn1.Unmarshal(b, &both); err != nil || len(rest) > 0 {
			return nil, damaged
		}
		return both.Seed, nil
	case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOctetString:
		return nil, Errorf(StatusNotSupported, "the private key is expanded and has no seed").WithHint("export it again, with its seed")
	}
	return nil, damaged
}
