package pki

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/url"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// MaxSubject bounds what asks for a certificate request, in bytes.
const MaxSubject = 64 << 10

// RequestRun makes a certificate request (PKCS #10, RFC 2986) in PEM, "csr", for the subject that is written to it: in the
// first line RFC 4514's, in further ones alternative names. The key's public part is spki, and sign signs messages with
// alg, in PSA's encoding.
func RequestRun(spki []byte, alg psa.Algorithm, sign func(ctx context.Context, message []byte) ([]byte, error)) psa.Run {
	return psa.WholeRun(MaxSubject, func(ctx context.Context, subject []byte) (map[string][]byte, error) {
		template, err := parseRequest(string(subject))
		if err != nil {
			return nil, err
		}
		public, err := x509.ParsePKIXPublicKey(spki)
		if err != nil {
			return nil, psa.Errorf(psa.StatusNotSupported, "X.509 does not know this kind of key: %w", err)
		}
		template.SignatureAlgorithm = alg.X509()
		signer := &signer{ctx: ctx, alg: alg, public: public, sign: sign}
		der, err := x509.CreateCertificateRequest(rand.Reader, template, signer)
		if signer.err != nil {
			return nil, signer.err // x509 says less
		}
		if err != nil {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "the certificate request: %w", err)
		}
		return map[string][]byte{"csr": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}, nil
	})
}

// signer signs for crypto/x509: messages only, as the policies of keys have them.
type signer struct {
	ctx    context.Context
	alg    psa.Algorithm
	public crypto.PublicKey
	sign   func(ctx context.Context, message []byte) ([]byte, error)
	err    error
}

var _ crypto.MessageSigner = (*signer)(nil)

func (s *signer) Public() crypto.PublicKey { return s.public }

// Sign is never called: crypto.SignMessage prefers SignMessage.
func (s *signer) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("this key signs messages")
}

func (s *signer) SignMessage(_ io.Reader, message []byte, _ crypto.SignerOpts) (signature []byte, err error) {
	if signature, s.err = s.sign(s.ctx, message); s.err != nil || !s.alg.IsECDSA() {
		return signature, s.err
	}
	signature, s.err = psa.ECDSARawToDER(signature)
	return signature, s.err
}

// parseRequest reads a subject (RFC 4514) in the first line, and in each further one an alternative name (RFC 5280,
// 4.2.1.6): DNS:, IP:, URI: or email:. Without a subject an alternative name is needed.
func parseRequest(text string) (*x509.CertificateRequest, error) {
	if len(text) > MaxSubject || strings.ContainsRune(text, 0) || strings.ToValidUTF8(text, "") != text {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the subject is no text")
	}
	lines := strings.Split(strings.TrimRight(text, "\r\n \t"), "\n")
	r := &x509.CertificateRequest{}
	var err error
	if r.RawSubject, err = parseSubject(strings.TrimSpace(lines[0])); err != nil {
		return nil, err
	}
	named := strings.TrimSpace(lines[0]) != ""
	for i, line := range lines[1:] {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		kind, name, _ := strings.Cut(line, ":")
		bad := func(why string) (*x509.CertificateRequest, error) {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "line %d: %q is %s", i+2, line, why).
				WithHint("the first line is the subject (CN=web,O=Example); further ones are DNS:, IP:, URI: or email: and a name")
		}
		if name == "" || strings.ContainsFunc(name, func(c rune) bool { return c <= ' ' || c > '~' }) {
			return bad("no alternative name")
		}
		switch kind {
		case "DNS":
			r.DNSNames = append(r.DNSNames, name)
		case "IP":
			ip := net.ParseIP(name)
			if ip == nil {
				return bad("no IP address")
			}
			r.IPAddresses = append(r.IPAddresses, ip)
		case "URI":
			u, err := url.Parse(name)
			if err != nil || u.Scheme == "" {
				return bad("no URI")
			}
			r.URIs = append(r.URIs, u)
		case "email":
			if !strings.Contains(name, "@") {
				return bad("no mail address")
			}
			r.EmailAddresses = append(r.EmailAddresses, name)
		default:
			return bad("no alternative name")
		}
		named = true
	}
	if !named {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "there is neither a subject nor an alternative name").
			WithHint("write the subject in the first line, as CN=web,O=Example")
	}
	return r, nil
}
