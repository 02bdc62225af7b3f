package gate

import (
	"io"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// TestThreadsOfOneProcess: threads of one process that are different users are judged as the users they are, at each READ,
// over descriptors of their own and over one that they share, and as io_uring's personalities too. A personality's groups and
// capabilities can be seen nowhere, and so let nobody in once a right was taken away: its ids alone do.
func TestThreadsOfOneProcess(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	o := newUser(t, maker)
	o.must("os.mkdir(%q)", key)
	o.must("put(%q, 'ed25519\\n')", key+"/generate")
	root(t, "setfacl", "-m", "u:61003:rw,g:61004:rw", key+"/sign")
	program := filepath.Join(parsecfstest.TempDir(t), "threads")
	root(t, "gcc", "-O1", "-pthread", "-o", program, "testdata/threads.c")
	in, lines := parsecfstest.Talk(t, exec.Command(program, key+"/sign"))
	const yes, shared, no = "yes yes", "EACCES yes", "EACCES EKEYREVOKED"
	groups := []string{"by group", "root as by group"}
	ownGroups := []string{"by its own group", "root as by its own group"}
	rings := false
	// step compares who may: first over a new descriptor, then over the shared one.
	step := func(name string, want map[string]string) {
		t.Helper()
		if _, err := io.WriteString(in, "\n"); err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			who, told, more := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			if !more {
				break
			}
			got[who] = told
		}
		for _, who := range slices.Sorted(maps.Keys(got)) {
			user, _, ring := strings.Cut(who, ", ")
			rings = rings || ring
			expected := want[user]
			if ring && name != "granted" && (slices.Contains(groups, user) || strings.Contains(user, "CAP_DAC_OVERRIDE")) {
				expected = no
			}
			if got[who] != expected {
				t.Errorf("%s: %s: %s, not %q", name, who, got[who], expected)
			}
		}
		if len(got) < len(want)/2 {
			t.Errorf("%s: %d answers", name, len(got))
		}
	}
	all := func(word string, who ...string) map[string]string {
		w := map[string]string{}
		for _, name := range []string{"root", "the owner", "root as the owner", "root as nobody with CAP_DAC_OVERRIDE"} {
			w[name] = yes
		}
		for _, name := range []string{"by name", "by group", "by its own group", "root as by name", "root as by group",
			"root as by its own group",
			"nobody", "root as nobody", "root without capabilities"} {
			w[name] = word
		}
		for _, name := range who {
			w[name] = yes
		}
		return w
	}
	step("granted", all(shared, slices.Concat(groups, ownGroups, []string{"by name", "root as by name"})...))
	root(t, "setfacl", "-x", "u:61003,g:61004", key+"/sign")
	step("taken away", all(no))
	root(t, "setfacl", "-m", "g:61004:rw", key+"/sign")
	step("the group's again", all(no, slices.Concat(groups, ownGroups)...))
	if !rings {
		t.Log("io_uring is off here: it was not tried")
	}
}
