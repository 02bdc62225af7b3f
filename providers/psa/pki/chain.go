package pki

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// ParseChain reads the whole PEM blocks at the beginning of b, which must be certificates, the first of them one for
// the public key spki (SubjectPublicKeyInfo in DER). Text before a block is left out of the chain. end 0: no block is
// whole yet.
func ParseChain(b, spki []byte) (end int, chain []byte, err error) {
	for rest := b; ; {
		block, after := pem.Decode(rest)
		if block == nil {
			return end, chain, nil
		}
		if block.Type != "CERTIFICATE" {
			return 0, nil, psa.Errorf(psa.StatusInvalidArgument, "a PEM block %q among the certificates", psa.OneLine(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return 0, nil, psa.Errorf(psa.StatusInvalidArgument, "a certificate that cannot be read: %w", err)
		}
		if chain == nil && !bytes.Equal(c.RawSubjectPublicKeyInfo, spki) {
			return 0, nil, psa.Errorf(psa.StatusInvalidArgument, "the first certificate is for another key").
				WithHint("write this key's own certificate first, then those of its issuers")
		}
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})...)
		rest = after
		end = len(b) - len(after)
	}
}
