package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"

	"golang.org/x/crypto/ssh"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// Fingerprints of a public key: SHA-256 of its SubjectPublicKeyInfo in hex, OpenSSH's, and the JWK thumbprint of RFC 7638.
// A kind of key that SSH or JWK does not know has none of theirs.
type Fingerprints struct {
	SPKI string `toml:"spki_sha256,omitempty"`
	SSH  string `toml:"ssh,omitempty"`
	KID  string `toml:"kid,omitempty"`
}

// FingerprintsOf a SubjectPublicKeyInfo in DER.
func FingerprintsOf(spki []byte) *Fingerprints {
	sum := sha256.Sum256(spki)
	f := &Fingerprints{SPKI: hex.EncodeToString(sum[:])}
	if k, err := sshKey(spki); err == nil {
		f.SSH = ssh.FingerprintSHA256(k)
	}
	if k, err := jwk(spki); err == nil {
		f.KID = thumbprint(k)
	}
	return f
}

// SSH is a SubjectPublicKeyInfo as a line of authorized_keys has it (sshd(8)), without comment and newline. A kind of key
// that SSH does not know is StatusNotSupported.
func SSH(spki []byte) ([]byte, error) {
	k, err := sshKey(spki)
	if err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(ssh.MarshalAuthorizedKey(k), []byte("\n")), nil
}

func sshKey(spki []byte) (ssh.PublicKey, error) {
	pub, err := psa.ReadPublicKey(spki)
	if err != nil {
		return nil, err
	}
	k, err := ssh.NewPublicKey(pub)
	if err != nil {
		return nil, psa.Errorf(psa.StatusNotSupported, "SSH does not know this kind of key: %w", err)
	}
	return k, nil
}

// JWK is a SubjectPublicKeyInfo as a JSON Web Key (RFC 7517) with its thumbprint as "kid". A kind of key that JWK does not
// know is StatusNotSupported.
func JWK(spki []byte) ([]byte, error) {
	k, err := jwk(spki)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, "%s,\"kid\":%q}\n", bytes.TrimSuffix(k, []byte("}")), thumbprint(k)), nil
}

// jwk is a public JSON Web Key of the members alone that its thumbprint is made of, in their order.
func jwk(spki []byte) ([]byte, error) {
	pub, err := psa.ReadPublicKey(spki)
	if err != nil {
		return nil, err
	}
	members := jwkMembers(pub)
	if members == nil {
		return nil, psa.Errorf(psa.StatusNotSupported, "JWK does not know this kind of key")
	}
	text, err := json.Marshal(members)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "%w", err)
	}
	return text, nil
}

// thumbprint is RFC 7638, 3.2.
func thumbprint(jwk []byte) string {
	sum := sha256.Sum256(jwk)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// jwkMembers are those that a key needs (RFC 7518, 6; RFC 8037), sorted; nil for a kind of key that JWK does not know.
func jwkMembers(pub crypto.PublicKey) any {
	b64 := base64.RawURLEncoding.EncodeToString
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return struct {
			E   string `json:"e"`
			KTY string `json:"kty"`
			N   string `json:"n"`
		}{b64(big.NewInt(int64(k.E)).Bytes()), "RSA", b64(k.N.Bytes())}
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil || k.Params().BitSize < 256 { // RFC 7518 has no P-224
			return nil
		}
		n := (len(point) - 1) / 2
		return curveKey{k.Params().Name, "EC", b64(point[1 : 1+n]), b64(point[1+n:])}
	case ed25519.PublicKey:
		return octetKey{"Ed25519", "OKP", b64(k)}
	case *ecdh.PublicKey:
		return octetKey{"X25519", "OKP", b64(k.Bytes())}
	case psa.RawKey:
		if k.Type.Family() == psa.SECPK1 { // RFC 8812, 3.1
			n := (len(k.Bytes) - 1) / 2
			return curveKey{"secp256k1", "EC", b64(k.Bytes[1 : 1+n]), b64(k.Bytes[1+n:])}
		}
		if crv := map[psa.ECCFamily]string{psa.TwistedEdwards: "Ed448", psa.Montgomery: "X448"}[k.Type.Family()]; crv != "" {
			return octetKey{crv, "OKP", b64(k.Bytes)}
		}
	}
	return nil
}

type curveKey struct {
	CRV string `json:"crv"`
	KTY string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

type octetKey struct {
	CRV string `json:"crv"`
	KTY string `json:"kty"`
	X   string `json:"x"`
}
