package psa

import (
	"errors"
	"slices"
	"strings"
)

// commonTemplates are what most people look for, in the order in which Templates has them.
var commonTemplates = []string{
	"ecdsa-p256-sha256", "ed25519", "rsa-3072-pkcs1v15-sha256", "rsa-2048-pkcs1v15-sha256", "aes-256-gcm", "hmac-sha256",
	"ecdsa-p384-sha384", "rsa-3072-pss-sha256", "rsa-2048-pss-sha256", "rsa-3072-oaep-sha256", "rsa-2048-oaep-sha256",
	"rsa-4096-pkcs1v15-sha256", "rsa-4096-pss-sha256", "ecdh-p256", "x25519", "aes-128-gcm", "chacha20-poly1305", "aes-256-cbc-pkcs7",
	"aes-256-ctr", "aes-256-cmac", "ml-dsa-65", "ml-kem-768",
}

// Templates are what generate takes, once each: the common ones first, and those with a shortened tag last.
func Templates(lines []Capability) []string {
	var common, rest, tagged []string
	offered := map[string]bool{}
	for _, c := range lines {
		if c.Template == "" || offered[c.Template] || !c.Has(Generate) {
			continue
		}
		offered[c.Template] = true
		switch {
		case slices.Contains(commonTemplates, c.Template):
		case strings.Contains(c.Template, "-tag"):
			tagged = append(tagged, c.Template)
		default:
			rest = append(rest, c.Template)
		}
	}
	for _, t := range commonTemplates {
		if offered[t] {
			common = append(common, t)
		}
	}
	return slices.Concat(common, rest, tagged)
}

// UnknownTemplate is why a word is no template.
type UnknownTemplate struct {
	Template string
	What     string
	Allowed  []string // in the place that What is about
}

func (e *UnknownTemplate) Error() string {
	return "template " + quote(e.Template) + ": " + e.What + "; allowed: " + strings.Join(e.Allowed, ", ")
}

// nearestTemplates is how many a message names.
const nearestTemplates = 3

// SuggestTemplates is err, where it is about an unknown template, with the nearest ones of a provider's lines in place of all
// that are allowed anywhere.
func SuggestTemplates(err error, lines []Capability) error {
	var unknown *UnknownTemplate
	if !errors.As(err, &unknown) || len(lines) == 0 {
		return err
	}
	what := "template " + quote(unknown.Template) + ": " + unknown.What
	if near := Nearest(unknown.Template, Templates(lines), nearestTemplates); len(near) > 0 {
		what += "; the nearest ones: " + strings.Join(near, ", ")
	}
	return Errorf(StatusInvalidArgument, "%s", what).WithHint("see the provider's templates file")
}

// maxMeant bounds the words that Nearest looks at, in bytes.
const maxMeant = 64

// How others call templates, and curves, without capitals and punctuation.
var (
	otherTemplates = map[string]string{"es256": "ecdsap256sha256", "es384": "ecdsap384sha384", "es512": "ecdsap521sha512",
		"rs256": "rsa2048pkcs1v15sha256", "ps256": "rsa2048psssha256", "hs256": "hmacsha256", "eddsa": "ed25519"}
	otherCurves = strings.NewReplacer("prime256v1", "p256", "secp224r1", "p224", "secp256r1", "p256", "secp384r1", "p384",
		"secp521r1", "p521", "nistp", "p", "curve25519", "x25519")
)

// plain is a name without capitals and punctuation.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'A' && r <= 'Z':
			return r - 'A' + 'a'
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		}
		return -1
	}, s)
}

// Nearest are at most n of the names that s may have meant, the likeliest first, and else in the order of names.
func Nearest(s string, names []string, n int) []string {
	if len(s) > maxMeant {
		return nil
	}
	meant := otherCurves.Replace(plain(s))
	if other, ok := otherTemplates[meant]; ok {
		meant = other
	}
	if meant == "" {
		return nil
	}
	const exact, beginning, words, part, typo, most, head, first = 0, 1, 2, 3, 4, 2, 6, 7
	var ranks [first + 1][]string
	firstWord, lastWord := strings.IndexFunc(s, punctuation), strings.LastIndexFunc(s, punctuation)
	certain, mistakes := 0, min(most, max(1, len(meant)/3))
	for _, name := range names {
		whole := plain(name)
		switch {
		case whole == meant:
			ranks[exact] = append(ranks[exact], name)
		case strings.HasPrefix(whole, meant):
			ranks[beginning] = append(ranks[beginning], name)
		case hasWords(s, name):
			ranks[words] = append(ranks[words], name)
		case strings.Contains(whole, meant) && len(meant) > 1:
			ranks[part] = append(ranks[part], name)
		case certain >= n:
			continue
		default:
			if d := distance(meant, whole); d <= mistakes {
				ranks[typo+d-1] = append(ranks[typo+d-1], name)
			} else if beginsAs(whole, s, lastWord) {
				ranks[head] = append(ranks[head], name)
			} else if beginsAs(whole, s, firstWord) {
				ranks[first] = append(ranks[first], name)
			}
			continue
		}
		certain++
	}
	near := slices.Concat(ranks[:]...)
	return near[:min(n, len(near))]
}

// hasWords says whether s is of several words, and each of them begins one of the name's.
func hasWords(s, name string) bool {
	said, has := strings.FieldsFunc(strings.ToLower(s), punctuation), strings.FieldsFunc(strings.ToLower(name), punctuation)
	return len(said) > 1 && !slices.ContainsFunc(said, func(word string) bool {
		word = otherCurves.Replace(word)
		return len(word) == 1 || !slices.ContainsFunc(has, func(h string) bool { return strings.HasPrefix(h, word) })
	})
}

// beginsAs says whether a name, without punctuation, begins as s does up to end.
func beginsAs(whole, s string, end int) bool {
	if end < 0 {
		return false
	}
	head := plain(s[:end])
	return len(head) > 1 && strings.HasPrefix(whole, head)
}

func punctuation(r rune) bool { return plain(string(r)) == "" }

// distance is how many letters must be changed, added, taken away or swapped with their neighbours to make b of a.
func distance(a, b string) int {
	before, last := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row := make([]int, len(b)+1)
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := 1
			if a[i-1] == b[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last = last, row
	}
	return last[len(b)]
}
