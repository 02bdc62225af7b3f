package pki

import (
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-ldap/ldap/v3"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// RFC 4514's own examples (4), and what else its readers and writers may do.
func TestSubjects(t *testing.T) {
	for subject, want := range map[string]string{
		"":                             "",
		"UID=jsmith,DC=example,DC=net": "DC=net,DC=example,UID=jsmith",
		"OU=Sales+CN=J.  Smith,DC=example,DC=net":        "DC=net,DC=example,OU=Sales+CN=J.  Smith",
		`CN=James \"Jim\" Smith\, III,DC=example,DC=net`: `DC=net,DC=example,CN=James "Jim" Smith, III`,
		`CN=Before\0dAfter,DC=example,DC=net`:            "DC=net,DC=example,CN=Before\rAfter",
		`CN=Lu\C4\8Di\C4\87`:                             "CN=Lučić",
		"CN=Lučić":                                       "CN=Lučić",
		"cn = web , o = Example GmbH ":                   "O=Example GmbH,CN=web",
		"CN=a;O=b":                                       "O=b,CN=a",
		`CN=\ a\ `:                                       "CN= a ",
		`CN=\  a \20 `:                                   "CN=  a  ",
		`CN=\#a`:                                         "CN=#a",
		"CN=a=b#c":                                       "CN=a=b#c",
		"2.5.4.3=#0c03776562":                            "CN=web",
		"CN=#1303776562+2.5.4.10=x":                      "O=x+CN=web",
	} {
		der, err := parseSubject(subject)
		var name pkix.RDNSequence
		if err == nil {
			_, err = asn1.Unmarshal(der, &name)
		}
		var rdns []string
		for _, rdn := range name {
			var values []string
			for _, a := range rdn {
				for short, id := range subjectTypes {
					if id.Equal(a.Type) {
						values = append(values, fmt.Sprintf("%s=%s", short, a.Value))
					}
				}
			}
			rdns = append(rdns, strings.Join(values, "+"))
		}
		if got := strings.Join(rdns, ","); err != nil || got != want {
			t.Errorf("%q is %q, not %q: %v", subject, got, want, err)
		}
	}
}

// What no reader may take, and what one reader would take for another name than the next one.
func TestNoSubject(t *testing.T) {
	for _, subject := range []string{
		"CN", "CN=", "CN=a,", "CN=a,,O=b", "=a", "C-N_=a", "WEB=a", "3.5.4.3=a", "2.5.04.3=a", "2=a", "2.5.4.99999999999=a",
		"CN=a\\", `CN=a\g`, `CN=a\4`, `CN=a\4g`, `CN=good.example\00.evil.example`, `CN=\FF`, "CN=a\xff",
		`CN="quoted, as in RFC 2253"`, "CN=a<b", "CN= #0c0161", "CN=#", "CN=#zz", "CN=#0c0161ff", "CN=#0c01", "CN=#0c03610062",
		"CN=#0c0100", "CN=#020101", "CN=#30030c0161", "DC=é", `EMAILADDRESS=a@\C3\A9`,
	} {
		if der, err := parseSubject(subject); psa.StatusOf(err) != psa.StatusInvalidArgument {
			t.Errorf("%q is taken: %x, %v", subject, der, err)
		}
	}
}

// What RFC 4514 lets a writer do with a value, a reader gets back.
func TestEscapes(t *testing.T) {
	r := rand.New(rand.NewPCG(4514, 16))
	for range 5000 {
		var want [][]attribute
		var parts []string
		for range 1 + r.IntN(4) {
			var rdn []attribute
			var written []string
			for range 1 + r.IntN(3) {
				text := randomText(r)
				rdn = append(rdn, attribute{name: "CN", text: text})
				written = append(written, "CN="+escape(r, text))
			}
			want = append(want, rdn)
			parts = append(parts, strings.Join(written, "+"))
		}
		s := strings.Join(parts, ",")
		got, err := parseDN(s)
		if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Fatalf("%q is %q, not %q: %v", s, got, want, err)
		}
	}
}

func randomText(r *rand.Rand) string {
	alphabet := []rune(` ",+;<>\=#aZ09é漢🔑` + "\t\x7f")
	var text []rune
	for range r.IntN(8) {
		text = append(text, alphabet[r.IntN(len(alphabet))])
	}
	return string(text)
}

// escape writes a value as RFC 4514, 2.4, wants it, and at random what need not be escaped too.
func escape(r *rand.Rand, text string) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		c := text[i]
		special := strings.IndexByte(`"+,;<>\`, c) >= 0
		needed := special || c == ' ' && (i == 0 || i == len(text)-1) || c == '#' && i == 0
		switch {
		case (special || c == ' ' || c == '#' || c == '=') && (needed || r.IntN(4) == 0) && r.IntN(2) == 0:
			out.WriteString(`\` + string(rune(c)))
		case needed, c >= utf8.RuneSelf, r.IntN(8) == 0:
			fmt.Fprintf(&out, `\%02x`, c)
		default:
			out.WriteByte(c)
		}
	}
	return out.String()
}

// What we refuse and go-ldap takes: names with escapes, without a name, or that are no names; a # behind spaces, or
// before what is not the DER of a character string; and values that are no text.
var refusedHere = regexp.MustCompile(`(^|[,;+])[^=,;+]*\\|(^|[,;+])\s*=|= *#`)

// FuzzDN compares with go-ldap: what we take it takes too, and it has the same names and values.
func FuzzDN(f *testing.F) {
	f.Add("CN=web,O=Example,C=DE")
	f.Add(`OU=Sales+CN=J.  Smith\, III\ ;DC=example`)
	f.Add(`1.3.6.1.4.1.1466.0=#0c024869,CN=Lu\C4\8Di\C4\87`)
	f.Add(`CN= a\\ ,O=\20b\ `)
	f.Add(`CN=a\,,=b`)
	f.Fuzz(func(t *testing.T, s string) {
		if !utf8.ValidString(s) || strings.Contains(s, "\x00") {
			return // refused before
		}
		ours, err := parseDN(s)
		theirs, theirErr := ldap.ParseDN(s)
		if err != nil {
			if theirErr == nil && !refusedHere.MatchString(s) && areNames(theirs) {
				t.Fatalf("%q is refused: %v", s, err)
			}
			return
		}
		if theirErr != nil {
			t.Fatalf("%q is %q, and to go-ldap: %v", s, ours, theirErr)
		}
		if len(ours) != len(theirs.RDNs) {
			t.Fatalf("%q has %d parts, and to go-ldap %d", s, len(ours), len(theirs.RDNs))
		}
		for i, rdn := range ours {
			if len(rdn) != len(theirs.RDNs[i].Attributes) {
				t.Fatalf("%q: part %d has %d attributes, and to go-ldap %d", s, i, len(rdn), len(theirs.RDNs[i].Attributes))
			}
			for j, a := range rdn {
				value := a.text
				if a.der != nil {
					var raw asn1.RawValue
					if _, err := asn1.Unmarshal(a.der, &raw); err != nil {
						t.Fatalf("%q: %s: %v", s, hex.EncodeToString(a.der), err)
					}
					value = string(raw.Bytes)
				}
				if b := theirs.RDNs[i].Attributes[j]; a.name != b.Type || value != b.Value {
					t.Fatalf("%q: %q=%q, and to go-ldap %q=%q", s, a.name, value, b.Type, b.Value)
				}
			}
		}
	})
}

func areNames(dn *ldap.DN) bool {
	for _, rdn := range dn.RDNs {
		for _, a := range rdn.Attributes {
			if !isDescriptor(a.Type) && !isOID(a.Type) || checkText(a.Value) != nil {
				return false
			}
		}
	}
	return true
}
