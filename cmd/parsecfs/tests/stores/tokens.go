package stores

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
)

// TokenProvider is the [[provider]] of a token in a configuration; more are further lines.
func TokenProvider(name string, k *pkcs11test.Token, more ...string) string {
	environment := make([]string, len(k.Env))
	for i, v := range k.Env {
		name, value, _ := strings.Cut(v, "=")
		environment[i] = fmt.Sprintf("%s = %q", name, value)
	}
	text := fmt.Sprintf("[[provider]]\nname = %q\nprovider_type = \"Pkcs11\"\nkey_info_manager = \"kim\"\nlibrary_path = %q\ntoken_label = %q\nenvironment = { %s }\n",
		name, k.Library, k.Label, strings.Join(environment, ", "))
	if k.InitArgs != "" {
		text += fmt.Sprintf("init_args = %q\n", k.InitArgs)
	}
	if !slices.ContainsFunc(more, func(line string) bool { return strings.Contains(line, "pin") }) {
		more = append(more, fmt.Sprintf("user_pin = %q", k.PIN))
	}
	return text + strings.Join(more, "\n") + "\n"
}

// Tokens are those that are not among All.
func Tokens() []Store {
	return []Store{
		{Name: "nss", Token: true, start: func(t *testing.T, s *Store) {
			k := pkcs11test.NSS(t)
			s.Config, s.Objects = KIM+TokenProvider("p", k), k.Objects
		}},
		{Name: "tpm2-pkcs11", Token: true, start: func(t *testing.T, s *Store) {
			k := pkcs11test.TPM2(t)
			s.Config, s.Objects = KIM+TokenProvider("p", k), func() []string {
				ours, _ := KeyObjects(t, k)
				return ours
			}
		}},
	}
}

// KeyObjects lists the private keys that were made here, which have a public one each, and the objects of all other keys.
func KeyObjects(t *testing.T, k *pkcs11test.Token) (ours, others []string) {
	t.Helper()
	parts := map[string]int{}
	for _, o := range k.Objects() {
		m := labelled.FindStringSubmatch(o)
		switch {
		case m == nil: // none of a key
		case strings.HasPrefix(m[2], "parsecfs "):
			parts[m[2]]++
			if m[1] == "Private" {
				ours = append(ours, m[2])
			}
		default:
			others = append(others, o)
		}
	}
	for label, n := range parts {
		if n != 2 {
			t.Errorf("%d objects are called %s", n, label)
		}
	}
	return ours, others
}

// softHSM is a store on a token that other programs use too: each key of theirs that is not as they left it is told.
func softHSM(t *testing.T, s *Store) {
	t.Helper()
	k := pkcs11test.SoftHSM(t, "crash")[0]
	ids := 0
	var theirs []string
	s.Objects = func() []string {
		ours, others := KeyObjects(t, k)
		if theirs != nil && !slices.Equal(theirs, others) {
			t.Fatalf("foreign objects were touched: %q; before: %q", others, theirs)
		}
		theirs = others
		return ours
	}
	s.Foreign = func(label string) string {
		s.Objects()
		ids++
		id := fmt.Sprintf("f%03x", ids)
		k.Generate("EC:prime256v1", id, label)
		theirs = nil
		s.Objects()
		return "id=" + id
	}
	s.Foreign(foreign)
	s.Config = KIM + TokenProvider("p", k)
}

// labelled finds class and label of a key that pkcs11-tool lists.
var labelled = regexp.MustCompile(`(?s)^(Private|Public|Secret) Key Object.*\n *label: *([^\n]*)\n`)
