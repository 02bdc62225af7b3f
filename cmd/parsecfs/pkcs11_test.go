package main

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
)

// tokenProvider is the [[provider]] of a token in a configuration; more are further lines.
func tokenProvider(name string, k *pkcs11test.Token, more ...string) string {
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

// tokens are those that TestKillAtEachStep leaves out.
var tokens = []store{
	{name: "nss", token: true, start: func(t *testing.T) (string, func() []string) {
		k := pkcs11test.NSS(t)
		return kimTable + tokenProvider("p", k), k.Objects
	}},
	{name: "tpm2-pkcs11", token: true, start: func(t *testing.T) (string, func() []string) {
		k := pkcs11test.TPM2(t)
		return kimTable + tokenProvider("p", k), func() []string {
			ours, _ := keyObjects(t, k)
			return ours
		}
	}},
}

// begin starts the device of a store that has none yet.
func (s *store) begin(t *testing.T) {
	t.Helper()
	if s.start != nil {
		s.config, s.objects = s.start(t)
	}
}

// keyObjects lists the private keys that were made here, which have a public one each, and the objects of all other keys.
func keyObjects(t *testing.T, k *pkcs11test.Token) (ours, others []string) {
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
func softHSM(t *testing.T) store {
	t.Helper()
	k := pkcs11test.SoftHSM(t, "crash")[0]
	ids := 0
	var theirs []string
	list := func() []string {
		ours, others := keyObjects(t, k)
		if theirs != nil && !slices.Equal(theirs, others) {
			t.Fatalf("foreign objects were touched: %q; before: %q", others, theirs)
		}
		theirs = others
		return ours
	}
	foreignKey := func(label string) string {
		list()
		ids++
		id := fmt.Sprintf("f%03x", ids)
		k.Generate("EC:prime256v1", id, label)
		theirs = nil
		list()
		return "id=" + id
	}
	foreignKey(foreign)
	return store{name: "softhsm", token: true, config: kimTable + tokenProvider("p", k), objects: list, foreign: foreignKey}
}

// labelled finds class and label of a key that pkcs11-tool lists.
var labelled = regexp.MustCompile(`(?s)^(Private|Public|Secret) Key Object.*\n *label: *([^\n]*)\n`)
