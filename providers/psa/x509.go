package psa

import (
	"crypto/x509"
	"slices"
)

// x509Algorithms are those with which X.509 knows a signature (RFC 3279, 4055, 5758, 8410).
var x509Algorithms = map[Algorithm]x509.SignatureAlgorithm{
	RSAPKCS1v15Sign(SHA256):    x509.SHA256WithRSA,
	RSAPKCS1v15Sign(SHA384):    x509.SHA384WithRSA,
	RSAPKCS1v15Sign(SHA512):    x509.SHA512WithRSA,
	RSAPSS(SHA256):             x509.SHA256WithRSAPSS,
	RSAPSS(SHA384):             x509.SHA384WithRSAPSS,
	RSAPSS(SHA512):             x509.SHA512WithRSAPSS,
	ECDSA(SHA256):              x509.ECDSAWithSHA256,
	ECDSA(SHA384):              x509.ECDSAWithSHA384,
	ECDSA(SHA512):              x509.ECDSAWithSHA512,
	DeterministicECDSA(SHA256): x509.ECDSAWithSHA256,
	DeterministicECDSA(SHA384): x509.ECDSAWithSHA384,
	DeterministicECDSA(SHA512): x509.ECDSAWithSHA512,
	PureEdDSA:                  x509.PureEd25519,
}

// X509 is the signature algorithm as X.509 knows it, x509.UnknownSignatureAlgorithm if it does not.
func (a Algorithm) X509() x509.SignatureAlgorithm { return x509Algorithms[a] }

// RequestsCertificates says whether a key that signs can sign a certificate request.
func (a Attributes) RequestsCertificates() bool {
	alg, err := a.Resolve(Sign, 0)
	return err == nil && a.Can(Sign) && alg.X509() != x509.UnknownSignatureAlgorithm && !IsRawKey(a.Type, a.Bits)
}

// WithCSR adds to the lines of a provider's own operations the one that is made of sign, and sorts them.
func WithCSR(lines []Capability) []Capability {
	lines = slices.Clone(lines)
	for i, c := range lines {
		if c.Has(Sign) && c.Attributes().RequestsCertificates() {
			lines[i].Operations = append(slices.Clone(c.Operations), CSR)
		}
	}
	SortCapabilities(lines)
	return lines
}
