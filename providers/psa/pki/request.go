package pki

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"io"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"

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

// subjectTypes are the attribute types of RFC 4514, section 3, and two that certificates often have; others are
// written as object identifiers.
var subjectTypes = map[string]asn1.ObjectIdentifier{
	"CN": {2, 5, 4, 3}, "SERIALNUMBER": {2, 5, 4, 5}, "C": {2, 5, 4, 6}, "L": {2, 5, 4, 7}, "ST": {2, 5, 4, 8},
	"STREET": {2, 5, 4, 9}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "UID": {0, 9, 2342, 19200300, 100, 1, 1},
	"DC": {0, 9, 2342, 19200300, 100, 1, 25}, "EMAILADDRESS": {1, 2, 840, 113549, 1, 9, 1},
}

// parseRequest reads a subject (RFC 4514) in the first line, and in each further one an alternative name (RFC 5280,
// 4.2.1.6): DNS:, IP:, URI: or email:. Without a subject an alternative name is needed.
func parseRequest(text string) (*x509.CertificateRequest, error) {
	if len(text) > MaxSubject || strings.ContainsRune(text, 0) || strings.ToValidUTF8(text, "") != text {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the subject is not text")
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

// parseSubject gives the DER of a distinguished name. RFC 4514 writes it from the end.
func parseSubject(line string) ([]byte, error) {
	bad := func(err error) ([]byte, error) {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the subject is none (RFC 4514): %w", err).WithHint("write it as CN=web,O=Example,C=DE")
	}
	dn, err := ldap.ParseDN(line)
	if err != nil {
		return bad(err)
	}
	slices.Reverse(dn.RDNs)
	names := pkix.RDNSequence{}
	for _, rdn := range dn.RDNs {
		var set pkix.RelativeDistinguishedNameSET
		for _, a := range rdn.Attributes {
			id, ok := subjectTypes[strings.ToUpper(a.Type)]
			if !ok {
				if id, err = parseOID(a.Type); err != nil {
					return bad(err)
				}
			}
			if a.Value == "" {
				return bad(errors.New(a.Type + " is empty"))
			}
			var value any = a.Value
			if id.Equal(subjectTypes["DC"]) || id.Equal(subjectTypes["EMAILADDRESS"]) { // RFC 4519, 2.4; RFC 5280, appendix A
				value = asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(a.Value)}
			}
			set = append(set, pkix.AttributeTypeAndValue{Type: id, Value: value})
		}
		names = append(names, set)
	}
	der, err := asn1.Marshal(names)
	if err != nil {
		return bad(err)
	}
	return der, nil
}

func parseOID(s string) (asn1.ObjectIdentifier, error) {
	var id asn1.ObjectIdentifier
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return nil, errors.New("unknown attribute " + strconv.Quote(s))
		}
		id = append(id, int(n))
	}
	if len(id) < 2 {
		return nil, errors.New("unknown attribute " + strconv.Quote(s))
	}
	return id, nil
}
