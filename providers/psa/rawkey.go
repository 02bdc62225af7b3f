package psa

import (
	"bytes"
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
	// Public and Expanded are what a private key's file says of its public key and of the expanded form of its seed: whoever
	// can derive them compares (Contradicts).
	Public   []byte
	Expanded []byte
}

// Contradicts says whether the file of a private key says anything else of it than what follows from its bytes.
func (k RawKey) Contradicts(public, expanded []byte) error {
	if len(k.Public) > 0 && !samePublic(k.Public, public) {
		return errContradiction("its public key belongs to another private key")
	}
	if len(k.Expanded) > 0 && !bytes.Equal(k.Expanded, expanded) {
		return errContradiction("its seed and its expanded form are different keys")
	}
	return nil
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

// rawPKCS8v2 has the public key too (RFC 5958, 2).
type rawPKCS8v2 struct {
	Version   int
	Algorithm rawAlgorithm
	Key       []byte
	Public    asn1.BitString `asn1:"tag:1"`
}

type seedAndExpanded struct{ Seed, Expanded []byte }

type rawSEC1 struct {
	Version int
	Key     []byte
	Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	Public  asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

// Marshal writes PKCS #8, with Public and Expanded where they are set, or SubjectPublicKeyInfo of a public key, in DER. Bytes of
// another length are StatusInvalidArgument.
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
			var value any = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, Bytes: k.Bytes}
			if len(k.Expanded) > 0 {
				value = seedAndExpanded{k.Bytes, k.Expanded}
			}
			inner, err = asn1.Marshal(value)
		case ecPrivateKey:
			inner, err = asn1.Marshal(rawSEC1{Version: 1, Key: k.Bytes, Public: asn1.BitString{Bytes: k.Public, BitLength: 8 * len(k.Public)}})
		}
		if err != nil {
			return nil, Errorf(StatusGenericError, "%w", err)
		}
		if kind.form != bare { // else they are the caller's
			defer Wipe(inner)
		}
		value = rawPKCS8{0, kind.id, inner}
		if kind.form != ecPrivateKey && len(k.Public) > 0 {
			value = rawPKCS8v2{1, kind.id, inner, asn1.BitString{Bytes: k.Public, BitLength: 8 * len(k.Public)}}
		}
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
		return kind.privateKey(RawKey{Bytes: ec.Key, Public: ec.Public.Bytes})
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
	raw, err := kind.unwrap(p.Key)
	if err != nil {
		return RawKey{}, err
	}
	outer, err := implicitBits(p.Public)
	switch {
	case err != nil:
		return RawKey{}, err
	case len(outer) > 0 && len(raw.Public) > 0 && !samePublic(raw.Public, outer) && !samePublic(outer, raw.Public):
		return RawKey{}, errContradiction("it has two public keys")
	case len(raw.Public) == 0:
		raw.Public = outer
	}
	return kind.privateKey(raw)
}

func (k *rawKind) privateKey(raw RawKey) (RawKey, error) {
	if len(raw.Bytes) != k.private {
		return RawKey{}, Errorf(StatusInvalidArgument, "the private key has %d bytes instead of %d", len(raw.Bytes), k.private)
	}
	raw.Type, raw.Bits = k.t, k.bits
	return raw, nil
}

func rawKindBy(id rawAlgorithm) (*rawKind, error) {
	i := slices.IndexFunc(rawKinds, func(k rawKind) bool { return k.id.OID.Equal(id.OID) && k.id.Curve.Equal(id.Curve) })
	if i < 0 {
		return nil, Errorf(StatusNotSupported, "the key has the unknown algorithm %v %v", id.OID, id.Curve)
	}
	return &rawKinds[i], nil
}

// unwrap takes the key out of PKCS #8's OCTET STRING.
func (k *rawKind) unwrap(b []byte) (RawKey, error) {
	damaged := Errorf(StatusInvalidArgument, "the private key is damaged")
	switch k.form {
	case bare:
		return RawKey{Bytes: b}, nil
	case ecPrivateKey:
		var ec rawSEC1
		if rest, err := asn1.Unmarshal(b, &ec); err != nil || len(rest) > 0 || ec.Version != 1 || !hasParts(b, 2) {
			return RawKey{}, damaged
		}
		if ec.Curve != nil && !ec.Curve.Equal(k.id.Curve) {
			return RawKey{}, errContradiction("it names two curves")
		}
		return RawKey{Bytes: ec.Key, Public: ec.Public.Bytes}, nil
	}
	var v asn1.RawValue
	if rest, err := asn1.Unmarshal(b, &v); err != nil || len(rest) > 0 {
		return RawKey{}, damaged
	}
	switch {
	case k.form == octetsInOctets && v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOctetString:
		return RawKey{Bytes: v.Bytes}, nil
	case k.form == octetsInOctets:
		return RawKey{}, damaged
	case v.Class == asn1.ClassContextSpecific && v.Tag == 0 && !v.IsCompound:
		return RawKey{Bytes: v.Bytes}, nil
	case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagSequence:
		var both seedAndExpanded
		if rest, err := asn1.Unmarshal(b, &both); err != nil || len(rest) > 0 {
			return RawKey{}, damaged
		}
		return RawKey{Bytes: both.Seed, Expanded: both.Expanded}, nil
	case v.Class == asn1.ClassUniversal && v.Tag == asn1.TagOctetString:
		return RawKey{}, Errorf(StatusNotSupported, "the private key is expanded and has no seed").WithHint("export it again, with its seed")
	}
	return RawKey{}, damaged
}

// OnOtherCurve says whether a SubjectPublicKeyInfo is of an elliptic curve that crypto/x509 does not know.
func OnOtherCurve(spki []byte) bool {
	var p rawSPKI
	rest, err := asn1.Unmarshal(spki, &p)
	curve := p.Algorithm.Curve
	return err == nil && len(rest) == 0 && p.Algorithm.OID.Equal(ecPublicKeyID) && len(curve) > 0 && nistCurves[curve.String()] == nil
}

// isRawAlgorithm says whether a key in DER is of one of the kinds, damaged or not.
func isRawAlgorithm(der []byte) bool {
	var spki struct{ Algorithm rawAlgorithm }
	if _, err := asn1.Unmarshal(der, &spki); err == nil {
		_, err = rawKindBy(spki.Algorithm)
		return err == nil
	}
	var p8 struct {
		Version   int
		Algorithm rawAlgorithm
	}
	if _, err := asn1.Unmarshal(der, &p8); err == nil {
		_, err = rawKindBy(p8.Algorithm)
		return err == nil
	}
	var ec rawSEC1
	if _, err := asn1.Unmarshal(der, &ec); err != nil || ec.Curve == nil {
		return false
	}
	_, err := rawKindBy(rawAlgorithm{ecPublicKeyID, ec.Curve})
	return err == nil
}
