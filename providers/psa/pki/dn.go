package pki

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// attribute is one attributeTypeAndValue of RFC 4514. A value that was written as #HEX has its DER, any other one its text.
type attribute struct {
	name, text string
	der        []byte
}

// parseDN reads the string form of a distinguished name (RFC 4514): its relative names in the order in which they are
// written. Beyond the grammar it takes spaces around names and values, and a semicolon for a comma, as RFC 2253 asks of
// readers; quoted values, which RFC 2253 had from its ancestors, it refuses. An empty string is the empty name.
func parseDN(s string) (dn [][]attribute, err error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	for rdn := []attribute(nil); ; {
		name, rest, ok := strings.Cut(s, "=")
		name = strings.Trim(name, " ")
		if !ok {
			return nil, fmt.Errorf("%q has no =", name)
		}
		if !isDescriptor(name) && !isOID(name) {
			return nil, fmt.Errorf("%q is not the name of an attribute", name)
		}
		end := valueEnd(rest)
		a := attribute{name: name}
		if a.text, a.der, err = parseValue(rest[:end]); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		rdn = append(rdn, a)
		if end == len(rest) {
			return append(dn, rdn), nil
		}
		if rest[end] != '+' {
			dn, rdn = append(dn, rdn), nil
		}
		s = rest[end+1:]
	}
}

// valueEnd is where the first separator stands that no backslash precedes.
func valueEnd(s string) int {
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case ',', ';', '+':
			return i
		}
	}
	return len(s)
}

func parseValue(s string) (text string, der []byte, err error) {
	if encoded, ok := strings.CutPrefix(s, "#"); ok {
		der, err = parseHexValue(encoded)
		return "", der, err
	}
	text, err = unescape(s)
	return text, nil, err
}

// parseHexValue takes the DER of one character string, which is all that a name's attributes are made of.
func parseHexValue(encoded string) ([]byte, error) {
	der, err := hex.DecodeString(encoded)
	if err != nil {
		return nil, errors.New("what follows # is not hexadecimal")
	}
	var value any
	rest, err := asn1.Unmarshal(der, &value)
	text, isText := value.(string)
	if err != nil || !isText || len(rest) > 0 {
		return nil, errors.New("what follows # is not the DER of one character string")
	}
	return der, checkText(text)
}

// unescape gives a value as it is meant: without the spaces around it, unless they are escaped.
func unescape(s string) (string, error) {
	s = strings.TrimLeft(s, " ")
	var out []byte
	kept := 0 // spaces behind it may be those at the end
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c == '"' || c == '<' || c == '>' || c == '#' && i == 0:
			return "", fmt.Errorf("%q needs a backslash before it", c)
		case c == ' ':
			out = append(out, c)
			continue
		case c != '\\':
			out = append(out, c)
		case i+1 < len(s) && strings.IndexByte(` "#+,;<=>\`, s[i+1]) >= 0:
			out = append(out, s[i+1])
			i++
		default:
			b, err := hex.DecodeString(s[i+1 : min(i+3, len(s))])
			if err != nil || len(b) == 0 {
				return "", errors.New("a backslash must be followed by a character that needs it, or by two hexadecimal digits")
			}
			out = append(out, b...)
			i += 2
		}
		kept = len(out)
	}
	return string(out[:kept]), checkText(string(out[:kept]))
}

// checkText refuses a NUL, behind which a reader in C would see nothing of the name.
func checkText(s string) error {
	if !utf8.ValidString(s) || strings.Contains(s, "\x00") {
		return errors.New("the value is not text")
	}
	return nil
}

// isDescriptor: keystring of RFC 4512, 1.4.
func isDescriptor(s string) bool {
	for i, c := range []byte(s) {
		isLetter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !isLetter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != ""
}

func isOID(s string) bool {
	_, err := parseOID(s)
	return err == nil
}

// parseOID reads the dotted form, numericoid of RFC 4512, 1.4.
func parseOID(s string) (asn1.ObjectIdentifier, error) {
	var id asn1.ObjectIdentifier
	for part := range strings.SplitSeq(s, ".") {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil || len(part) > 1 && part[0] == '0' {
			return nil, fmt.Errorf("%q is not an object identifier", s)
		}
		id = append(id, int(n))
	}
	if len(id) < 2 {
		return nil, fmt.Errorf("%q is not an object identifier", s)
	}
	return id, nil
}

// subjectTypes are the attribute types of RFC 4514, 3, and two that certificates often have; others are
// written as object identifiers.
var subjectTypes = map[string]asn1.ObjectIdentifier{
	"CN": {2, 5, 4, 3}, "SERIALNUMBER": {2, 5, 4, 5}, "C": {2, 5, 4, 6}, "L": {2, 5, 4, 7}, "ST": {2, 5, 4, 8},
	"STREET": {2, 5, 4, 9}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "UID": {0, 9, 2342, 19200300, 100, 1, 1},
	"DC": {0, 9, 2342, 19200300, 100, 1, 25}, "EMAILADDRESS": {1, 2, 840, 113549, 1, 9, 1},
}

// parseSubject gives the DER of a distinguished name. RFC 4514 writes it from the end.
func parseSubject(line string) ([]byte, error) {
	bad := func(err error) ([]byte, error) {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the subject is not a distinguished name (RFC 4514): %w", err).
			WithHint("write it as CN=web,O=Example,C=DE")
	}
	dn, err := parseDN(line)
	if err != nil {
		return bad(err)
	}
	slices.Reverse(dn)
	names := pkix.RDNSequence{}
	for _, rdn := range dn {
		var set pkix.RelativeDistinguishedNameSET
		for _, a := range rdn {
			v, err := a.pkix()
			if err != nil {
				return bad(err)
			}
			set = append(set, v)
		}
		names = append(names, set)
	}
	der, err := asn1.Marshal(names)
	if err != nil {
		return bad(err)
	}
	return der, nil
}

// pkix is the attribute in the form that asn1 writes.
func (a attribute) pkix() (pkix.AttributeTypeAndValue, error) {
	id, ok := subjectTypes[strings.ToUpper(a.name)]
	if !ok {
		var err error
		if id, err = parseOID(a.name); err != nil {
			return pkix.AttributeTypeAndValue{}, fmt.Errorf("unknown attribute %q", a.name)
		}
	}
	value := pkix.AttributeTypeAndValue{Type: id, Value: a.text}
	switch {
	case a.der != nil:
		value.Value = asn1.RawValue{FullBytes: a.der}
	case a.text == "":
		return value, fmt.Errorf("%s is empty", a.name)
	case id.Equal(subjectTypes["DC"]), id.Equal(subjectTypes["EMAILADDRESS"]): // RFC 4519, 2.4; RFC 5280, appendix A
		if strings.ContainsFunc(a.text, func(c rune) bool { return c >= utf8.RuneSelf }) {
			return value, fmt.Errorf("%s takes only ASCII", a.name)
		}
		value.Value = asn1.RawValue{Tag: asn1.TagIA5String, Bytes: []byte(a.text)}
	}
	return value, nil
}
