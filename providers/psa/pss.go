package psa

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"slices"
)

var (
	rsaEncryptionID = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	rsaPSSID        = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}
	mgf1ID          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
)

type pssHashID struct {
	id  asn1.ObjectIdentifier
	alg Algorithm
}

// pssHashes are the hashes that RFC 4055, 2.1, and NIST name.
var pssHashes = []pssHashID{
	{asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}, SHA1},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 4}, SHA224},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, SHA256},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, SHA384},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, SHA512},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 8}, SHA3_256},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 9}, SHA3_384},
	{asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 10}, SHA3_512},
}

// pssParameters are RSASSA-PSS-params (RFC 4055, 3.1).
type pssParameters struct {
	Hash    pkix.AlgorithmIdentifier `asn1:"optional,explicit,tag:0"`
	MGF     pkix.AlgorithmIdentifier `asn1:"optional,explicit,tag:1"`
	Salt    int                      `asn1:"optional,explicit,tag:2,default:20"`
	Trailer int                      `asn1:"optional,explicit,tag:3,default:1"`
}

// withoutPSS writes a key that is for RSASSA-PSS alone (RFC 4055, 1.2) as one for RSA; only is what it is for. Other keys stay
// as they are.
func withoutPSS(structure keyStructure, der []byte) (only Algorithm, plain []byte, err error) {
	switch structure {
	case pkcs8Private:
		return forRSA(der, func(p *pkcs8) *pkix.AlgorithmIdentifier { return &p.Algorithm })
	case spkiPublic:
		return forRSA(der, func(p *subjectPublicKeyInfo) *pkix.AlgorithmIdentifier { return &p.Algorithm })
	}
	return AlgNone, der, nil
}

// subjectPublicKeyInfo is that of RFC 5280, 4.1.
type subjectPublicKeyInfo struct {
	Algorithm pkix.AlgorithmIdentifier
	Key       asn1.BitString
}

// forRSA is withoutPSS for a structure T, whose algorithm id gives.
func forRSA[T any](der []byte, id func(*T) *pkix.AlgorithmIdentifier) (only Algorithm, plain []byte, err error) {
	var key T
	rest, err := asn1.Unmarshal(der, &key)
	if err != nil || !id(&key).Algorithm.Equal(rsaPSSID) {
		return AlgNone, der, nil
	}
	damaged := Errorf(StatusInvalidArgument, "the RSASSA-PSS key is damaged")
	if len(rest) > 0 {
		return AlgNone, nil, damaged
	}
	if only, err = pssAlgorithm(*id(&key)); err != nil {
		return AlgNone, nil, err
	}
	*id(&key) = pkix.AlgorithmIdentifier{Algorithm: rsaEncryptionID, Parameters: asn1.NullRawValue}
	if plain, err = asn1.Marshal(key); err != nil {
		return AlgNone, nil, damaged
	}
	return only, plain, nil
}

// PSSIdentifier is how X.509 names RSASSA-PSS with a hash, of which the mask is made too and which the salt is as long as
// (RFC 4055, 3.1). StatusNotSupported: the hash has no name there.
func PSSIdentifier(hash Algorithm) (id pkix.AlgorithmIdentifier, err error) {
	at := slices.IndexFunc(pssHashes, func(h pssHashID) bool { return h.alg == hash })
	if at < 0 {
		return id, Errorf(StatusNotSupported, "RSASSA-PSS has no name for the hash %s", hash)
	}
	p := pssParameters{Hash: pkix.AlgorithmIdentifier{Algorithm: pssHashes[at].id, Parameters: asn1.NullRawValue},
		MGF: pkix.AlgorithmIdentifier{Algorithm: mgf1ID}, Salt: hash.HashLength(), Trailer: 1}
	if p.MGF.Parameters.FullBytes, err = asn1.Marshal(p.Hash); err != nil {
		return id, Errorf(StatusGenericError, "%w", err)
	}
	id.Algorithm = rsaPSSID
	if id.Parameters.FullBytes, err = asn1.Marshal(p); err != nil {
		return id, Errorf(StatusGenericError, "%w", err)
	}
	return id, nil
}

// pssAlgorithm is what the parameters of an AlgorithmIdentifier let a key do; without parameters that is any hash.
func pssAlgorithm(id pkix.AlgorithmIdentifier) (Algorithm, error) {
	if len(id.Parameters.FullBytes) == 0 || id.Parameters.Tag == asn1.TagNull {
		return RSAPSS(AnyHash), nil
	}
	p := pssParameters{Hash: pkix.AlgorithmIdentifier{Algorithm: pssHashes[0].id}, Salt: 20, Trailer: 1}
	p.MGF = pkix.AlgorithmIdentifier{Algorithm: mgf1ID}
	if rest, err := asn1.Unmarshal(id.Parameters.FullBytes, &p); err != nil || len(rest) > 0 {
		return AlgNone, Errorf(StatusInvalidArgument, "the RSASSA-PSS parameters are damaged")
	}
	hash := pssHash(p.Hash.Algorithm)
	mgf := SHA1
	if len(p.MGF.Parameters.FullBytes) > 0 {
		var inner pkix.AlgorithmIdentifier
		if rest, err := asn1.Unmarshal(p.MGF.Parameters.FullBytes, &inner); err != nil || len(rest) > 0 {
			return AlgNone, Errorf(StatusInvalidArgument, "the RSASSA-PSS parameters are damaged")
		}
		mgf = pssHash(inner.Algorithm)
	}
	refused := func(format string, args ...any) (Algorithm, error) {
		return AlgNone, Errorf(StatusNotSupported, "an RSASSA-PSS key "+format+" is not supported", args...).
			WithHint("use one with the same hash for message and mask, and a salt that is at most as long")
	}
	switch {
	case hash == AlgNone:
		return refused("with the hash %v", p.Hash.Algorithm)
	case !p.MGF.Algorithm.Equal(mgf1ID) || mgf != hash:
		return refused("whose mask is not made with %s", hash)
	case p.Trailer != 1:
		return refused("with the trailer %d", p.Trailer)
	case p.Salt < 0 || p.Salt > hash.HashLength():
		return refused("whose salt has at least %d bytes (parsecfs makes %d)", p.Salt, hash.HashLength())
	}
	return RSAPSS(hash), nil
}

func pssHash(id asn1.ObjectIdentifier) Algorithm {
	for _, h := range pssHashes {
		if h.id.Equal(id) {
			return h.alg
		}
	}
	return AlgNone
}

// permits refuses a key whose file restricts it to an algorithm that the draft is not for.
func (draft Attributes) permits(only Algorithm) error {
	alg := draft.Algorithm
	if only == AlgNone || alg == AlgNone || alg == only || only == RSAPSS(AnyHash) && alg == RSAPSS(alg.Hash()) {
		return nil
	}
	return Errorf(StatusInvalidArgument, "the key is only for %s, but the draft is for %s", only, alg).
		WithHint("use the template rsa-BITS-pss-HASH with the key's own hash, or none")
}
