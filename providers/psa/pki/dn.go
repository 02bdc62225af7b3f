package pki

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/go-ldap/ldap/v3"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// subjectTypes are the attribute types of RFC 4514, section 3, and two that certificates often have; others are
// written as object identifiers.
var subjectTypes = map[string]asn1.ObjectIdentifier{
	"CN": {2, 5, 4, 3}, "SERIALNUMBER": {2, 5, 4, 5}, "C": {2, 5, 4, 6}, "L": {2, 5, 4, 7}, "ST": {2, 5, 4, 8},
	"STREET": {2, 5, 4, 9}, "O": {2, 5, 4, 10}, "OU": {2, 5, 4, 11}, "UID": {0, 9, 2342, 19200300, 100, 1, 1},
	"DC": {0, 9, 2342, 19200300, 100, 1, 25}, "EMAILADDRESS": {1, 2, 840, 113549, 1, 9, 1},
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
