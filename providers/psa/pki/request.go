package pki

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// MaxSubject bounds what asks for a certificate request, in bytes.
const MaxSubject = 64 << 10

// RequestRun makes a certificate request (PKCS #10, RFC 2986) in PEM, "csr", for the subject that is written to it: in the
// first line RFC 4514's, in further ones alternative names, key usages and a challenge password. The key's public part is
// spki, and sign signs messages with alg, in PSA's encoding.
func RequestRun(spki []byte, alg psa.Algorithm, sign func(ctx context.Context, message []byte) ([]byte, error)) psa.Run {
	return psa.WholeRun(MaxSubject, func(ctx context.Context, subject []byte) (map[string][]byte, error) {
		r, err := parseRequest(string(subject))
		if err != nil {
			return nil, err
		}
		if _, err := x509.ParsePKIXPublicKey(spki); err != nil {
			return nil, psa.Errorf(psa.StatusNotSupported, "X.509 does not know this kind of key: %w", err)
		}
		info, err := r.info(spki)
		if err != nil {
			return nil, err
		}
		id, err := signatureAlgorithm(alg)
		if err != nil {
			return nil, err
		}
		signature, err := sign(ctx, info)
		if err == nil && alg.IsECDSA() {
			signature, err = psa.ECDSARawToDER(signature)
		}
		if err != nil {
			return nil, err
		}
		der, err := asn1.Marshal(signedRequest{asn1.RawValue{FullBytes: info}, id,
			asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}})
		if err != nil {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "the certificate request: %w", err)
		}
		whole, err := x509.ParseCertificateRequest(der)
		if err == nil {
			err = whole.CheckSignature() // a device may sign anything
		}
		if err != nil {
			return nil, psa.Errorf(psa.StatusGenericError, "the certificate request is not valid: %w", err)
		}
		return map[string][]byte{"csr": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})}, nil
	})
}

// request is what somebody asks to be certified.
type request struct {
	subject   []byte // a Name in DER
	names     []asn1.RawValue
	usage     int // bits of KeyUsage (RFC 5280, 4.2.1.3), the first one the lowest
	purposes  []asn1.ObjectIdentifier
	challenge string
}

// requestInfo is CertificationRequestInfo (RFC 2986, 4.1).
type requestInfo struct {
	Version    int
	Subject    asn1.RawValue
	PublicKey  asn1.RawValue
	Attributes []requestAttribute `asn1:"tag:0,set"`
}

type requestAttribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

type signedRequest struct {
	Info      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
}

var (
	extensionRequestID  = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14} // RFC 2985, 5.4.2
	challengePasswordID = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}  // RFC 2985, 5.4.1
	alternativeNameID   = asn1.ObjectIdentifier{2, 5, 29, 17}
	keyUsageID          = asn1.ObjectIdentifier{2, 5, 29, 15}
	extendedKeyUsageID  = asn1.ObjectIdentifier{2, 5, 29, 37}
)

// info is what gets signed.
func (r *request) info(spki []byte) (der []byte, err error) {
	marshal := func(value any) (b []byte) {
		if err == nil {
			b, err = asn1.Marshal(value)
		}
		return b
	}
	var extensions []pkix.Extension
	if len(r.names) > 0 {
		// Where there is no other name, it is what the certificate is about (RFC 5280, 4.2.1.6).
		alone := len(r.subject) == 2
		extensions = append(extensions, pkix.Extension{Id: alternativeNameID, Critical: alone, Value: marshal(r.names)})
	}
	if r.usage != 0 {
		bits := asn1.BitString{Bytes: make([]byte, 2)}
		for i := range keyUsages {
			if r.usage&(1<<i) != 0 {
				bits.Bytes[i/8] |= 0x80 >> (i % 8)
				bits.BitLength = i + 1
			}
		}
		bits.Bytes = bits.Bytes[:(bits.BitLength+7)/8]
		extensions = append(extensions, pkix.Extension{Id: keyUsageID, Critical: true, Value: marshal(bits)})
	}
	if len(r.purposes) > 0 {
		extensions = append(extensions, pkix.Extension{Id: extendedKeyUsageID, Value: marshal(r.purposes)})
	}
	info := requestInfo{Subject: asn1.RawValue{FullBytes: r.subject}, PublicKey: asn1.RawValue{FullBytes: spki}}
	if r.challenge != "" {
		value := asn1.RawValue{Tag: asn1.TagUTF8String, Bytes: []byte(r.challenge)}
		if isPrintable(r.challenge) {
			value.Tag = asn1.TagPrintableString
		}
		info.Attributes = append(info.Attributes, requestAttribute{challengePasswordID, []asn1.RawValue{value}})
	}
	if len(extensions) > 0 {
		info.Attributes = append(info.Attributes, requestAttribute{extensionRequestID, []asn1.RawValue{{FullBytes: marshal(extensions)}}})
	}
	der = marshal(info)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the certificate request: %w", err)
	}
	return der, nil
}

// isPrintable says whether a PrintableString can hold s (X.680, 41.4).
func isPrintable(s string) bool {
	return !strings.ContainsFunc(s, func(c rune) bool { return !isAlphanumeric(c) && !strings.ContainsRune(" '()+,-./:=?", c) })
}

// signatureAlgorithm is how X.509 names an algorithm (RFC 4055, 5758, 8410).
func signatureAlgorithm(alg psa.Algorithm) (id pkix.AlgorithmIdentifier, err error) {
	if alg == psa.PureEdDSA {
		id.Algorithm = asn1.ObjectIdentifier{1, 3, 101, 112}
		return id, nil
	}
	n := map[psa.Algorithm]int{psa.SHA256: 0, psa.SHA384: 1, psa.SHA512: 2}
	i, ok := n[alg.Hash()]
	switch {
	case !ok:
	case alg.IsECDSA():
		id.Algorithm = asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2 + i}
		return id, nil
	case alg.IsRSAPKCS1v15Sign():
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11 + i}, Parameters: asn1.NullRawValue}, nil
	case alg.IsRSAPSS():
		return psa.PSSIdentifier(alg.Hash())
	}
	return id, psa.Errorf(psa.StatusNotSupported, "X.509 has no signatures with %s", alg)
}

// keyUsages are the names that RFC 5280, 4.2.1.3, and OpenSSL have for its bits, in their order.
var keyUsages = []string{"digitalSignature", "nonRepudiation", "keyEncipherment", "dataEncipherment", "keyAgreement", "keyCertSign",
	"cRLSign",
	"encipherOnly", "decipherOnly"}

// purposes are the names of RFC 5280, 4.2.1.12, and OpenSSL; others are written as object identifiers.
var purposes = map[string]asn1.ObjectIdentifier{
	"serverAuth": {1, 3, 6, 1, 5, 5, 7, 3, 1}, "clientAuth": {1, 3, 6, 1, 5, 5, 7, 3, 2}, "codeSigning": {1, 3, 6, 1, 5, 5, 7, 3, 3},
	"emailProtection": {1, 3, 6, 1, 5, 5, 7, 3, 4}, "timeStamping": {1, 3, 6, 1, 5, 5, 7, 3, 8}, "OCSPSigning": {1, 3, 6, 1, 5, 5, 7, 3, 9},
	"anyExtendedKeyUsage": {2, 5, 29, 37, 0},
}

// maxPurposes bounds the extended key usages of a request.
const maxPurposes = 32

// maxChallenge is pkcs-9-ub-challengePassword, in characters (RFC 2985, appendix A).
const maxChallenge = 255

const linesHint = "the first line is the subject (CN=web,O=Example), or empty; each further one is DNS:, IP:, URI: or email: and one name, " +
	"keyUsage: or extendedKeyUsage: and its names, or challengePassword: and a password"

// parseRequest reads a subject (RFC 4514) in the first line, and in each further one an alternative name (RFC 5280, 4.2.1.6),
// usages of the key, or a challenge password. Without a subject an alternative name is needed.
func parseRequest(text string) (*request, error) {
	if len(text) > MaxSubject || strings.ContainsRune(text, 0) || !utf8.ValidString(text) {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the subject is not text")
	}
	lines := strings.Split(strings.TrimRight(text, "\r\n \t"), "\n")
	first := strings.TrimSpace(lines[0])
	if kind, _, ok := strings.Cut(first, ":"); ok && lineKind(kind) != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the first line is the subject, not a %s", kind).
			WithHint("leave the first line empty if there is no subject")
	}
	r := &request{}
	var err error
	if r.subject, err = parseSubject(first); err != nil {
		return nil, err
	}
	if err := withinBounds(r.subject); err != nil {
		return nil, err
	}
	for i, line := range lines[1:] {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		kind, value, _ := strings.Cut(line, ":")
		read, err := lineKind(kind), errors.New("not a line of a certificate request")
		if read != nil {
			err = read(r, strings.TrimSpace(value))
		}
		if err != nil {
			if kind == "challengePassword" {
				line = kind + ":"
			}
			return nil, psa.Errorf(psa.StatusInvalidArgument, "line %d: %q is %w", i+2, psa.OneLine(line), err).WithHint(linesHint)
		}
	}
	if first == "" && len(r.names) == 0 {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "there is neither a subject nor an alternative name").
			WithHint("write the subject in the first line, as CN=web,O=Example")
	}
	return r, nil
}

// lineKind is what reads a line that begins with that word, nil if nothing does.
func lineKind(word string) func(r *request, value string) error {
	named := func(read func(string) (asn1.RawValue, error)) func(*request, string) error {
		return func(r *request, value string) error {
			name, err := read(value)
			r.names = append(r.names, name)
			return err
		}
	}
	switch word {
	case "DNS":
		return named(dnsName)
	case "IP":
		return named(ipName)
	case "URI":
		return named(uriName)
	case "email":
		return named(mailName)
	case "keyUsage":
		return (*request).addUsages
	case "extendedKeyUsage":
		return (*request).addPurposes
	case "challengePassword":
		return (*request).setChallenge
	}
	return nil
}

// listOf splits the names of usages; OpenSSL's word for an extension that must be understood says nothing new.
func listOf(value string) []string {
	if rest, ok := strings.CutPrefix(value, "critical,"); ok {
		value = rest
	}
	list := strings.Split(value, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}

func (r *request) addUsages(value string) error {
	if r.usage != 0 {
		return errors.New("a second list of usages")
	}
	for _, name := range listOf(value) {
		if name == "contentCommitment" { // X.509's newer name
			name = "nonRepudiation"
		}
		i := slices.Index(keyUsages, name)
		if i < 0 {
			return errors.New("not a list of " + strings.Join(keyUsages, ", "))
		}
		r.usage |= 1 << i
	}
	return nil
}

func (r *request) addPurposes(value string) error {
	if r.purposes != nil {
		return errors.New("a second list of extended usages")
	}
	for _, name := range listOf(value) {
		id, ok := purposes[name]
		if !ok {
			var err error
			if id, err = asn1OID(name); err != nil {
				return errors.New("not a list of serverAuth, clientAuth, codeSigning, emailProtection, timeStamping, OCSPSigning, or object identifiers")
			}
		}
		if r.purposes = append(r.purposes, id); len(r.purposes) > maxPurposes {
			return errors.New("longer than 32 extended usages")
		}
	}
	return nil
}

func (r *request) setChallenge(value string) error {
	switch n := utf8.RuneCountInString(value); {
	case r.challenge != "":
		return errors.New("a second challenge password")
	case n == 0 || n > maxChallenge:
		return errors.New("not a password of 1 to 255 characters")
	}
	r.challenge = value
	return nil
}

// asn1OID reads an object identifier in dots that DER can hold and its readers take.
func asn1OID(s string) (id asn1.ObjectIdentifier, err error) {
	if id, err = parseOID(s); err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(id)
	if err == nil {
		_, err = asn1.Unmarshal(der, &id)
	}
	return id, err
}

// bounds are how many characters an attribute may have (RFC 5280, appendix A.1).
var bounds = []struct {
	name  string
	id    asn1.ObjectIdentifier
	least int
	most  int
}{
	{"CN", asn1.ObjectIdentifier{2, 5, 4, 3}, 1, 64},
	{"serialNumber", asn1.ObjectIdentifier{2, 5, 4, 5}, 1, 64},
	{"C", asn1.ObjectIdentifier{2, 5, 4, 6}, 2, 2},
	{"L", asn1.ObjectIdentifier{2, 5, 4, 7}, 1, 128},
	{"ST", asn1.ObjectIdentifier{2, 5, 4, 8}, 1, 128},
	{"O", asn1.ObjectIdentifier{2, 5, 4, 10}, 1, 64},
	{"OU", asn1.ObjectIdentifier{2, 5, 4, 11}, 1, 64},
	{"emailAddress", asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 1}, 1, maxMail},
}

// withinBounds refuses a subject that no certificate can have.
func withinBounds(subject []byte) error {
	var names pkix.RDNSequence
	if _, err := asn1.Unmarshal(subject, &names); err != nil {
		return psa.Errorf(psa.StatusInvalidArgument, "the subject is wrong: %w", err)
	}
	for _, rdn := range names {
		for _, a := range rdn {
			value, ok := a.Value.(string)
			if !ok {
				continue
			}
			for _, b := range bounds {
				if n := utf8.RuneCountInString(value); b.id.Equal(a.Type) && (n < b.least || n > b.most) {
					return psa.Errorf(psa.StatusInvalidArgument, "%s has %d characters; allowed: %d to %d", b.name, n, b.least, b.most).
						WithHint("write names of hosts as DNS: in lines of their own")
				}
			}
		}
	}
	return nil
}
