package rights

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	ownerID = 61001
	thiefID = 61003
)

// subject is a key of a kind, with its owner and somebody who has the right to one of its files at a time.
type subject struct {
	t            *testing.T
	kind         kind
	keys, name   string // the provider's keys, and the key's own name
	capabilities []psa.Capability
	attributes   psa.Attributes
	owner, thief *user
	files        []string
	drafts       int
	made         map[string][]byte // what the owner made with the key, for attacks
}

// cell is one way from a right to another.
type cell struct {
	*subject
	from, to string
}

func (c *cell) errorf(format string, args ...any) {
	c.t.Helper()
	c.t.Errorf("%s: %s gives %s: %s", c.kind.name, c.from, c.to, fmt.Sprintf(format, args...))
}

// refused wants an errno of what the thief tries.
func (c *cell) refused(what string, o outcome, want ...syscall.Errno) {
	c.t.Helper()
	if !slices.Contains(want, o.Errno) {
		c.errorf("%s: %v, want %v", what, o.Errno, want)
	}
}

// TestNoRightGivesAnother tries, for each file of each kind of keys, to get by the right to that file alone what every
// other file gives.
func TestNoRightGivesAnother(t *testing.T) {
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	provider := filepath.Join(m.Dir, "providers/software")
	capabilities := readCapabilities(t, provider)
	var plainly, attacked, inherent, missing atomic.Int64
	t.Run("kinds", func(t *testing.T) {
		for i, k := range kinds {
			t.Run(k.name, func(t *testing.T) {
				t.Parallel()
				s := newSubject(t, k, filepath.Join(provider, "keys"), fmt.Sprint("k", i), capabilities)
				for _, from := range s.files {
					s.give(from, true)
					for _, to := range s.targets() {
						if from == to {
							continue
						}
						c := &cell{s, from, to}
						r := judge(k, from, to)
						if r == nil {
							c.errorf("nobody thought of it")
							missing.Add(1)
							continue
						}
						c.plainly(r)
						switch {
						case r.attack != nil:
							r.attack(c)
							attacked.Add(1)
						case r.inherent != "":
							inherent.Add(1)
						default:
							plainly.Add(1)
						}
					}
					s.give(from, false)
				}
			})
		}
	})
	t.Logf("%d kinds of keys, %d cells: in %d all plain ways fail, in %d an attack too, %d are inherent, %d have no verdict",
		len(kinds), plainly.Load()+attacked.Load()+inherent.Load()+missing.Load(), plainly.Load(), attacked.Load(), inherent.Load(), missing.Load())
}

// readCapabilities also checks that a kind covers each template.
func readCapabilities(t *testing.T, provider string) (lines []psa.Capability) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(provider, "capabilities"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		c, err := psa.ParseCapability(strings.TrimSuffix(line, "\n"))
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, c)
		if c.Template == "" || !c.Has(psa.Generate) {
			continue
		}
		covered := 0
		for _, k := range kinds {
			if k.covers != "" && regexp.MustCompile("^("+k.covers+")$").MatchString(c.Template) {
				covered++
			}
		}
		if covered != 1 {
			t.Errorf("%d kinds cover %s", covered, c.Template)
		}
	}
	return lines
}

func newSubject(t *testing.T, k kind, keys, name string, capabilities []psa.Capability) *subject {
	t.Helper()
	s := &subject{t: t, kind: k, keys: keys, name: name, capabilities: capabilities, owner: newUser(t, ownerID), thief: newUser(t, thiefID), made: map[string][]byte{}}
	switch {
	case k.family == draft:
		s.makeDraft(name, k.attributes)
	case k.attributes != "":
		s.makeDraft(name, k.attributes)
		s.owner.must(call{Verb: "write", Path: s.path("import"), Data: make([]byte, 32)})
	case k.public:
		pair := name + "-pair"
		template, _, _ := strings.Cut(k.name, " ")
		s.makeDraft(pair, "")
		s.owner.must(call{Verb: "write", Path: filepath.Join(keys, pair, "generate"), Data: []byte(template + "\n")})
		pem := s.owner.must(call{Verb: "read", Path: filepath.Join(keys, pair, "public.pem")}).Data
		s.makeDraft(name, fmt.Sprintf("template = %q\n", template))
		s.owner.must(call{Verb: "write", Path: s.path("import"), Data: pem})
		s.attributes = s.parse(template)
	default:
		s.attributes = s.parse(k.name)
		s.makeDraft(name, "")
		s.owner.must(call{Verb: "write", Path: s.path("generate"), Data: fmt.Appendf(nil, "template = %q\nusage = %q\n", k.name, usages(s.attributes, capabilities).String())})
	}
	// The thief's own draft, to copy into and to be hurt by nobody.
	s.thief.must(call{Verb: "mkdir", Path: s.own()})
	for file := range strings.Lines(string(s.owner.must(call{Verb: "list", Path: s.path("")}).Data)) {
		file = strings.TrimSuffix(file, "\n")
		if !strings.HasSuffix(file, ".d") {
			s.files = append(s.files, file)
			s.give(file, false)
		}
	}
	return s
}

func (s *subject) parse(template string) psa.Attributes {
	s.t.Helper()
	a, err := psa.ParseTemplate(template)
	if err != nil {
		s.t.Fatal(err)
	}
	return a
}

func (s *subject) path(file string) string { return filepath.Join(s.keys, s.name, file) }

// own is a draft of the thief's.
func (s *subject) own() string { return filepath.Join(s.keys, s.name+"-thief") }

// makeDraft makes a draft of the owner's, of whose directory others see the files.
func (s *subject) makeDraft(name, attributes string) {
	s.t.Helper()
	s.owner.must(call{Verb: "mkdir", Path: filepath.Join(s.keys, name)})
	s.owner.must(call{Verb: "chmod", Path: filepath.Join(s.keys, name), Flags: 0o711})
	if attributes != "" {
		s.owner.must(call{Verb: "write", Path: filepath.Join(s.keys, name, "attributes"), Data: []byte(attributes)})
	}
}

// give lets everybody use a file, or its owner alone.
func (s *subject) give(file string, all bool) {
	s.t.Helper()
	mode := 0o600
	if all {
		mode = 0o606
	}
	s.owner.must(call{Verb: "chmod", Path: s.path(file), Flags: mode})
}

// targets are what a right could be to.
func (s *subject) targets() []string {
	list := slices.Concat(s.files, owners, directory)
	if s.kind.family == draft {
		return list
	}
	list = append(list, policy)
	if slices.ContainsFunc(s.files, func(f string) bool { return f == "agree" || f == "derive" }) {
		list = append(list, stored)
	}
	if psa.Supports(s.capabilities, psa.Copy, s.attributes.Type, s.attributes.Bits, s.attributes.Algorithm) {
		list = append(list, copied)
	}
	return list
}

// plainly tries the plain ways to what the cell wants: all must fail, unless the rule says that the right is to just
// that.
func (c *cell) plainly(r *rule) {
	c.t.Helper()
	const no, not = syscall.EACCES, syscall.EPERM
	switch c.to {
	case setDestroy, setNonce, setUnits, policy:
		if c.from != "attributes" {
			c.refused("writing attributes", c.thief.does(call{Verb: "write", Path: c.path("attributes"), Data: []byte("caller_nonce = true\n")}), no)
		}
	case removed:
		c.refused("rmdir", c.thief.does(call{Verb: "rmdir", Path: c.path("")}), no, not)
	case renamed:
		c.refused("rename", c.thief.does(call{Verb: "rename", Path: c.path(""), To: c.path("") + "-stolen"}), no, not)
	case copied:
		if c.from != "export" {
			c.refused("copying", c.thief.does(call{Verb: "write", Path: filepath.Join(c.own(), "copy"), Data: []byte(c.name + "\n")}), no)
		}
	case stored: // no plain way
	default:
		for _, flags := range []int{os.O_RDONLY, os.O_WRONLY, os.O_RDWR} {
			c.refused("open", c.thief.does(call{Verb: "open", Path: c.path(c.to), Flags: flags}), no)
		}
		c.refused("chmod", c.thief.does(call{Verb: "chmod", Path: c.path(c.to), Flags: 0o666}), not)
		if !slices.Contains(operations, c.to) {
			return
		}
		slot := c.path(c.to + ".d/slot")
		c.refused("a slot", c.thief.does(call{Verb: "mkdir", Path: slot}), no)
		c.refused("a slot", c.thief.does(call{Verb: "open", Path: slot, Flags: os.O_CREATE | os.O_RDWR}), no)
	}
}
