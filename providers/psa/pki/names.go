package pki

import (
	"encoding/asn1"
	"errors"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// The tags of GeneralName (RFC 5280, 4.2.1.6).
const (
	mailTag = 1
	dnsTag  = 2
	uriTag  = 6
	ipTag   = 7
)

const (
	maxDNS   = 253 // octets, without the dot at the end (RFC 1035, 3.1)
	maxLabel = 63
	maxMail  = 255  // ub-emailaddress-length
	maxURI   = 2048 // no standard has a bound
)

func generalName(tag int, b []byte) asn1.RawValue {
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: b}
}

func dnsName(s string) (asn1.RawValue, error) {
	if _, err := netip.ParseAddr(s); err == nil {
		return asn1.RawValue{}, errors.New("an IP address, which is written as IP:ADDRESS")
	}
	return generalName(dnsTag, []byte(s)), validHost(strings.TrimPrefix(s, "*."))
}

// validHost wants the preferred name syntax of RFC 1034, 3.5, as RFC 1123, 2.1, has it.
func validHost(s string) error {
	if len(s) > maxDNS {
		return errors.New("longer than 253 characters")
	}
	for label := range strings.SplitSeq(s, ".") {
		switch bad := strings.IndexFunc(label, func(c rune) bool { return !isAlphanumeric(c) && c != '-' }); {
		case label == "":
			return errors.New("a name with an empty part")
		case strings.ContainsRune(label, '*'):
			return errors.New("a name with a * that is not its whole first part")
		case strings.ContainsRune(label, ','):
			return errors.New("more than one name; write one name a line")
		case bad >= 0 && label[bad] >= 0x80:
			return errors.New("not in ASCII; write international names as they are in the DNS (xn--...)")
		case bad >= 0:
			return errors.New("a name with characters other than letters, digits and hyphens")
		case len(label) > maxLabel:
			return errors.New("a name with a part of more than 63 characters")
		case label[0] == '-' || label[len(label)-1] == '-':
			return errors.New("a name with a part that begins or ends with a hyphen")
		}
	}
	return nil
}

func isAlphanumeric(c rune) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

func ipName(s string) (asn1.RawValue, error) {
	ip, err := netip.ParseAddr(s)
	switch {
	case strings.ContainsRune(s, ','):
		return asn1.RawValue{}, errors.New("more than one name; write one name a line")
	case strings.ContainsRune(s, '/'):
		return asn1.RawValue{}, errors.New("a network; certificates are for addresses")
	case err != nil:
		return asn1.RawValue{}, errors.New("no IP address")
	case ip.Zone() != "":
		return asn1.RawValue{}, errors.New("an address with a zone, which means something only on one host")
	}
	return generalName(ipTag, ip.AsSlice()), nil
}

func uriName(s string) (asn1.RawValue, error) {
	u, err := url.Parse(s)
	switch {
	case len(s) > maxURI:
		return asn1.RawValue{}, errors.New("longer than 2048 characters")
	case err != nil || u.Scheme == "":
		return asn1.RawValue{}, errors.New("not an absolute URI")
	case u.Opaque == "" && u.Host == "" && u.Path == "":
		return asn1.RawValue{}, errors.New("a URI that has only a scheme")
	case looksLikeTwo(s):
		return asn1.RawValue{}, errors.New("more than one name; write one name a line")
	case strings.ContainsFunc(s, func(c rune) bool { return c <= ' ' || c > '~' || strings.ContainsRune("\"<>\\^`{|}", c) }):
		return asn1.RawValue{}, errors.New("a URI with characters that must be written as %XX")
	}
	// With an authority its host is a DNS name or an address (RFC 5280, 4.2.1.6).
	if u.Host != "" {
		if _, err := netip.ParseAddr(u.Hostname()); err != nil {
			if err := validHost(u.Hostname()); err != nil {
				return asn1.RawValue{}, err
			}
		}
	}
	return generalName(uriTag, []byte(s)), nil
}

// nameKinds are the words before alternative names that OpenSSL and others print and read, in small letters and without spaces.
var nameKinds = []string{"dns", "dnsname", "ip", "ipaddress", "uri", "email", "rfc822name", "rid", "registeredid", "dirname", "directoryname",
	"othername", "x400name", "edipartyname"}

// looksLikeTwo says whether a name goes on with another one: OpenSSL prints names behind each other, and a reader could not
// tell them apart (CVE-2021-44532).
func looksLikeTwo(s string) bool {
	for _, rest := range strings.Split(s, ",")[1:] {
		kind, _, ok := strings.Cut(rest, ":")
		if ok && slices.Contains(nameKinds, strings.ToLower(strings.Join(strings.Fields(kind), ""))) {
			return true
		}
	}
	return false
}

// mailName is an address of RFC 5321, 4.1.2, without quotes and literals.
func mailName(s string) (asn1.RawValue, error) {
	local, domain, ok := strings.Cut(s, "@")
	switch {
	case !ok || local == "":
		return asn1.RawValue{}, errors.New("no mail address")
	case len(s) > maxMail || len(local) > 64:
		return asn1.RawValue{}, errors.New("longer than a mail address can be")
	case strings.HasPrefix(local, ".") || strings.HasSuffix(local, ".") || strings.Contains(local, ".."):
		return asn1.RawValue{}, errors.New("a mail address with a dot in the wrong place")
	case strings.ContainsFunc(local, func(c rune) bool { return !isAlphanumeric(c) && !strings.ContainsRune(".!#$%&'*+/=?^_`{|}~-", c) }):
		return asn1.RawValue{}, errors.New("a mail address with characters that certificates do not allow")
	}
	return generalName(mailTag, []byte(s)), validHost(domain)
}
