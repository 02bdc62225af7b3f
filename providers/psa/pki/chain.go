package pki

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"time"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// ParseChain reads the PEM blocks in b, which must be certificates, the first of them one for the public key spki
// (SubjectPublicKeyInfo in DER). Text outside blocks is left out of the chain. whole false: b has no block yet, or ends in
// the middle of one.
func ParseChain(b, spki []byte) (chain []byte, whole bool, err error) {
	fail := func(err error) ([]byte, bool, error) { return nil, false, err }
	s := psa.NewPEMScanner(b)
	for {
		label, err := s.NextLabel()
		if err != nil {
			return fail(inDER(b, err))
		}
		if label == "" {
			return chain, len(chain) > 0 && s.Left() == 0, nil
		}
		if label != "CERTIFICATE" {
			return fail(psa.Errorf(psa.StatusInvalidArgument, "a PEM block %q among the certificates", psa.OneLine(label)))
		}
		block, complete, err := s.Block()
		if err != nil || !complete {
			return chain, false, err
		}
		own, err := certified(block.Bytes)
		if err != nil {
			return fail(psa.Errorf(psa.StatusInvalidArgument, "a certificate that cannot be read: %w", err))
		}
		if chain == nil && !bytes.Equal(own, spki) {
			return fail(psa.Errorf(psa.StatusInvalidArgument, "the first certificate is for another key").
				WithHint("write this key's own certificate first, then those of its issuers"))
		}
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: label, Bytes: block.Bytes})...)
	}
}

// certified is the SubjectPublicKeyInfo of a certificate. crypto/x509 reads none with a key on a curve that it does not know,
// which a key here may be on.
func certified(der []byte) ([]byte, error) {
	c, err := x509.ParseCertificate(der)
	if err == nil {
		return c.RawSubjectPublicKeyInfo, nil
	}
	var cert struct {
		TBS struct {
			Version   int `asn1:"optional,explicit,default:0,tag:0"`
			Serial    *big.Int
			Algorithm pkix.AlgorithmIdentifier
			Issuer    pkix.RDNSequence
			Validity  struct{ NotBefore, NotAfter time.Time }
			Subject   pkix.RDNSequence
			Key       asn1.RawValue
		}
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}
	rest, e := asn1.Unmarshal(der, &cert)
	if e != nil || len(rest) > 0 || !psa.OnOtherCurve(cert.TBS.Key.FullBytes) {
		return nil, err
	}
	return cert.TBS.Key.FullBytes, nil
}

// inDER tells somebody with certificates in binary how to convert them.
func inDER(b []byte, err error) error {
	switch {
	case len(b) < 2 || b[0] != 0x30 || b[1] < 0x80:
		return err
	case bytes.Contains(b[:min(len(b), 32)], []byte("\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07")):
		return psa.Errorf(psa.StatusInvalidArgument, "the certificates are in PKCS #7 or PKCS #12").
			WithHint("write them in PEM: openssl pkcs7 -inform DER -in FILE -print_certs, or openssl pkcs12 -in FILE -nokeys")
	}
	return psa.Errorf(psa.StatusInvalidArgument, "the certificate is in DER").WithHint("write it in PEM: openssl x509 -inform DER -in FILE")
}

// NoChain says what is wrong with b, which ended without being a whole chain.
func NoChain(b []byte) error {
	if bytes.Contains(b, []byte("-----BEGIN ")) {
		return psa.Errorf(psa.StatusInvalidArgument, "the chain ends in the middle of a certificate").
			WithHint("write the whole chain into one open file")
	}
	return psa.Errorf(psa.StatusInvalidArgument, "the text contains no certificate").
		WithHint("a certificate in PEM begins with a line -----BEGIN CERTIFICATE-----")
}
