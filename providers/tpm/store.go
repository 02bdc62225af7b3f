package tpm

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"math/big"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// stored is a key as the KIM keeps it, in ASN.1: wrapped by the parent with that name, with its authorization. An adopted key
// is in the TPM with an empty authorization, and has none of these fields.
type stored struct {
	Version int
	Parent  []byte // TPM2B_NAME's contents
	Public  []byte // TPMT_PUBLIC
	Private []byte // TPM2B_PRIVATE's contents
	Auth    []byte
	Handle  int64 `asn1:"optional,explicit,tag:0"` // of an adopted key, else 0
}

const (
	storedVersion = 1
	authSize      = 32
)

// newAuth is a random authorization without a zero byte: TPMs cut zeros off the end (TCG TPM 2.0, part 1, 19.6.4.3), and
// go-tpm cuts at the first.
func newAuth() ([]byte, error) {
	auth := make([]byte, 0, authSize)
	b := make([]byte, authSize)
	defer psa.Wipe(b)
	for len(auth) < authSize {
		if _, err := rand.Read(b); err != nil {
			return nil, psa.Errorf(psa.StatusInsufficientEntropy, "cannot make a random authorization: %w", err)
		}
		for _, c := range b {
			if c != 0 && len(auth) < authSize {
				auth = append(auth, c)
			}
		}
	}
	return auth, nil
}

// textAuth is an authorization without a zero byte, for the same reason, from 24 bytes that were derived.
func textAuth(derived []byte) []byte {
	defer psa.Wipe(derived)
	return base64.RawStdEncoding.AppendEncode(nil, derived)
}

// derivedAuth is how many bytes textAuth takes: its text is as long as a digest, which bounds authorizations.
const derivedAuth = authSize / 4 * 3

func (s *stored) marshal() ([]byte, error) {
	s.Version = storedVersion
	b, err := asn1.Marshal(*s)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "the key cannot be encoded: %w", err)
	}
	return b, nil
}

func parseStored(b []byte) (*stored, error) {
	var s stored
	rest, err := asn1.Unmarshal(b, &s)
	wrapped := s.Handle == 0 && len(s.Auth) == authSize
	adopted := isPersistent(s.Handle) && len(s.Parent)+len(s.Private)+len(s.Auth) == 0
	if err != nil || len(rest) > 0 || s.Version != storedVersion || !wrapped && !adopted {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "it is not a wrapped key of version %d", storedVersion)
	}
	return &s, nil
}

// curveIDs are the TPM's curves (TCG Algorithm Registry, 6.4) of PSA_ECC_FAMILY_SECP_R1.
var curveIDs = map[int]tpm2.TPMECCCurve{256: tpm2.TPMECCNistP256, 384: tpm2.TPMECCNistP384, 521: tpm2.TPMECCNistP521}

var curves = map[int]elliptic.Curve{256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}

// hashIDs are the TPM's names of PSA's hashes.
var hashIDs = map[psa.Algorithm]tpm2.TPMAlgID{psa.SHA256: tpm2.TPMAlgSHA256, psa.SHA384: tpm2.TPMAlgSHA384, psa.SHA512: tpm2.TPMAlgSHA512}

// parameters are those of a key's public area.
func parameters(a psa.Attributes) (tpm2.TPMIAlgPublic, tpm2.TPMUPublicParms) {
	none := tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull}
	switch {
	case a.Type.IsRSA():
		return tpm2.TPMAlgRSA, tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{
			Symmetric: none, Scheme: tpm2.TPMTRSAScheme{Scheme: tpm2.TPMAlgNull}, KeyBits: tpm2.TPMKeyBits(a.Bits)})
	case a.Type.IsECC():
		return tpm2.TPMAlgECC, tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: none, Scheme: tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}, CurveID: curveIDs[a.Bits], KDF: tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull}})
	}
	return tpm2.TPMAlgKeyedHash, tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
		Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgHMAC,
			Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: hashIDs[a.Algorithm.Hash()]})}})
}

// template is a key's public area, with a policy or nil. A wrong authorization never locks the TPM (noDA), which is safe
// because ours are random.
func template(a psa.Attributes, imported bool, policy []byte) tpm2.TPMTPublic {
	kind, parms := parameters(a)
	decrypts := a.Algorithm.IsAsymmetricEncryption() || a.Algorithm.IsKeyAgreement()
	return tpm2.TPMTPublic{
		Type: kind, NameAlg: tpm2.TPMAlgSHA256, Parameters: parms, AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: !imported, FixedParent: !imported, SensitiveDataOrigin: !imported,
			UserWithAuth: policy == nil, NoDA: true, Decrypt: decrypts, SignEncrypt: !decrypts},
	}
}

// publicOf is the public key in a public area, and its SubjectPublicKeyInfo; nil of a symmetric key.
func publicOf(a psa.Attributes, area *tpm2.TPMTPublic) (crypto.PublicKey, []byte, error) {
	kind, parms := parameters(a)
	if area.Type != kind || !bytes.Equal(tpm2.Marshal(tpm2.TPMTPublicParms{Type: kind, Parameters: parms}),
		tpm2.Marshal(tpm2.TPMTPublicParms{Type: area.Type, Parameters: area.Parameters})) {
		return nil, nil, psa.Errorf(psa.StatusInvalidArgument, "the wrapped key is not a %s of %d bits", a.Type, a.Bits)
	}
	if bound := len(area.AuthPolicy.Buffer) > 0; bound != (a.PCRs != 0) || bound == area.ObjectAttributes.UserWithAuth {
		return nil, nil, psa.Errorf(psa.StatusInvalidArgument, "the wrapped key's policy is not that of the PCRs %v", a.PCRs.List())
	}
	key, err := publicIn(area)
	if err != nil || key == nil {
		return nil, nil, err
	}
	der, err := psa.MarshalPublicKey(key)
	return key, der, err
}

// publicIn is the public key in a public area of any kind, nil of a symmetric key.
func publicIn(area *tpm2.TPMTPublic) (crypto.PublicKey, error) {
	switch area.Type {
	case tpm2.TPMAlgRSA:
		n, err := area.Unique.RSA()
		if err != nil {
			return nil, err
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(n.Buffer), E: 65537}, nil
	case tpm2.TPMAlgECC:
		parms, err := area.Parameters.ECCDetail()
		if err != nil {
			return nil, err
		}
		point, err := area.Unique.ECC()
		if err != nil {
			return nil, err
		}
		for bits, id := range curveIDs {
			if id == parms.CurveID {
				return pointOn(curves[bits], point)
			}
		}
		return nil, psa.Errorf(psa.StatusNotSupported, "the curve %v is not supported", parms.CurveID)
	}
	return nil, nil
}

func pointOn(curve elliptic.Curve, point *tpm2.TPMSECCPoint) (*ecdsa.PublicKey, error) {
	n := (curve.Params().BitSize + 7) / 8
	b := make([]byte, 1+2*n)
	b[0] = 4
	x, y := point.X.Buffer, point.Y.Buffer
	if len(x) > n || len(y) > n {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the coordinates of the point have %d and %d bytes, which is too many", len(x), len(y))
	}
	copy(b[1+n-len(x):], x)
	copy(b[1+2*n-len(y):], y)
	key, err := ecdsa.ParseUncompressedPublicKey(curve, b)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "wrong point in the wrapped key: %w", err)
	}
	return key, nil
}

// point is a public key as a TPM takes it.
func point(pub *ecdh.PublicKey) tpm2.TPMSECCPoint {
	b := pub.Bytes()[1:]
	n := len(b) / 2
	return tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: b[:n]}, Y: tpm2.TPM2BECCParameter{Buffer: b[n:]}}
}

// sensitive is an imported key in the TPM's form, with its unique field.
func sensitive(a psa.Attributes, m *psa.Material, auth []byte) (s tpm2.TPMTSensitive, unique tpm2.TPMUPublicID, err error) {
	s.AuthValue = tpm2.TPM2BAuth{Buffer: auth}
	if !a.Type.IsAsymmetric() {
		if m.Format != psa.FormatRaw || len(m.Data)*8 != a.Bits {
			return s, unique, psa.Errorf(psa.StatusInvalidArgument, "the material is %s of %d bytes; a %s key of %d bits has %d", m.Format,
				len(m.Data), a.Type, a.Bits, a.Bits/8)
		}
		seed := make([]byte, 32)
		if _, err := rand.Read(seed); err != nil {
			return s, unique, psa.Errorf(psa.StatusInsufficientEntropy, "cannot make a random seed: %w", err)
		}
		// TCG TPM 2.0, part 1, 27.5.3.2
		h := crypto.SHA256.New()
		h.Write(seed)
		h.Write(m.Data)
		s.SensitiveType, s.SeedValue = tpm2.TPMAlgKeyedHash, tpm2.TPM2BDigest{Buffer: seed}
		s.Sensitive = tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: m.Data})
		return s, tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: h.Sum(nil)}), nil
	}
	if m.Format != psa.FormatPKCS8 {
		return s, unique, psa.Errorf(psa.StatusInvalidArgument, "the material is %s, but a %s key needs %s", m.Format, a.Type, psa.FormatPKCS8)
	}
	key, err := x509.ParsePKCS8PrivateKey(m.Data)
	if err != nil {
		return s, unique, psa.Errorf(psa.StatusInvalidArgument, "the private key cannot be read: %w", err)
	}
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if !a.Type.IsRSA() || k.N.BitLen() != a.Bits {
			return s, unique, errOther(a)
		}
		if k.E != 65537 || len(k.Primes) != 2 || k.Primes[0].BitLen() != a.Bits/2 {
			return s, unique, psa.Errorf(psa.StatusNotSupported, "the RSA key has the exponent %d and %d primes; a TPM needs the exponent 65537 and two primes of equal length", k.E, len(k.Primes))
		}
		if err := k.Validate(); err != nil {
			return s, unique, psa.Errorf(psa.StatusInvalidArgument, "the private key is damaged: %w", err)
		}
		s.SensitiveType = tpm2.TPMAlgRSA
		s.Sensitive = tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgRSA, &tpm2.TPM2BPrivateKeyRSA{Buffer: k.Primes[0].FillBytes(make([]byte, a.Bits/16))})
		return s, tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.FillBytes(make([]byte, a.Bits/8))}), nil
	case *ecdsa.PrivateKey:
		if a.Type.Family() != psa.SECPR1 || k.Curve != curves[a.Bits] {
			return s, unique, errOther(a)
		}
		scalar, err := k.Bytes()
		if err != nil {
			return s, unique, psa.Errorf(psa.StatusInvalidArgument, "the private key is damaged: %w", err)
		}
		pub, err := k.PublicKey.ECDH()
		if err != nil {
			return s, unique, psa.Errorf(psa.StatusInvalidArgument, "the private key is damaged: %w", err)
		}
		p := point(pub)
		s.SensitiveType = tpm2.TPMAlgECC
		s.Sensitive = tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: scalar})
		return s, tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &p), nil
	}
	return s, unique, errOther(a)
}

func errOther(a psa.Attributes) error {
	return psa.Errorf(psa.StatusInvalidArgument, "the key is not a %s of %d bits", a.Type, a.Bits).
		WithHint("use a template that has the key's type and size, or none")
}
