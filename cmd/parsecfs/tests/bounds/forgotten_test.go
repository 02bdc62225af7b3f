package bounds

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// TestForgottenDrafts: a draft that nobody changes expires, whoever made it, and gives its name and its place in the quota
// back; none that somebody has open, or keeps, and no key.
func TestForgottenDrafts(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: `
[core_settings]
keys_per_user = 5
draft_expiry = "5s"
[audit]
[[key_manager]]
name = "kim"
manager_type = "SQLite"
[[provider]]
name = "software"
provider_type = "Software"
`})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	key := func(name string) string { return filepath.Join(keys, name) }
	must(t, owner, "cd "+keys+" && mkdir key kept && echo ed25519 > key/generate && echo 'allow_destroy = false' > kept/attributes && mkdir open")
	open, err := os.OpenFile(key("open")+"/generate", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	must(t, owner, "cd "+keys+" && mkdir forgotten moved && echo 'template = \"ed25519\"' > forgotten/attributes")
	must(t, stranger, "mkdir "+key("theirs"))
	expires := func(name string) time.Time {
		t.Helper()
		text := attribute(t, key(name), "expires")
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			t.Errorf("%s says expires = %q: %v", name, text, err)
		}
		return at
	}
	begun := time.Now()
	first := expires("moved")
	if first.After(begun.Add(5*time.Second)) || first.Before(begun.Add(-5*time.Second)) {
		t.Errorf("it is %v, and a new draft expires at %v", begun, first)
	}
	must(t, owner, "touch "+key("moved"))
	if again := expires("moved"); !again.After(first) {
		t.Errorf("touched, it expires at %v, and before at %v", again, first)
	}
	for _, name := range []string{"key", "kept"} {
		if text := attribute(t, key(name), "expires"); text != "" {
			t.Errorf("%s expires: %s", name, text)
		}
	}
	if out, err := as(owner, "mkdir "+key("sixth")); err == nil || !strings.Contains(out, "quota") {
		t.Errorf("a sixth one: %s", out)
	}
	out, err := as(owner, "echo 'expires = 2100-01-01T00:00:00Z' > "+key("moved")+"/attributes")
	if err == nil || !strings.Contains(out, "Invalid argument") && !strings.Contains(out, "I/O error") {
		t.Errorf("a time of one's own: %s", out)
	}
	gone := []string{"forgotten", "moved", "theirs"}
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) { // until the daemon says so
		if strings.Count(m.Log(), "a forgotten draft expired") == len(gone) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no draft expires")
		}
	}
	list := func() (names []string) {
		entries, err := os.ReadDir(keys)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	if got := list(); !slices.Equal(got, []string{"kept", "key", "open"}) {
		t.Errorf("left are %v", got)
	}
	must(t, owner, "mkdir "+key("forgotten")+" && rmdir "+key("forgotten"))
	if _, err := open.WriteString("ed25519\n"); err != nil {
		t.Errorf("the draft that was open: %v", err)
	}
	must(t, owner, "test -s "+key("open")+"/public.pem")
	m.Restart()
	if got := list(); !slices.Equal(got, []string{"kept", "key", "open"}) {
		t.Errorf("after kill -9 there are %v", got)
	}
	if code := m.Stop(); code != 0 {
		t.Errorf("the daemon ended with %d", code)
	}
	trail, err := os.ReadFile(filepath.Join(m.StateDir, "audit.log"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range gone {
		if !slices.ContainsFunc(strings.Split(string(trail), "\n"), func(line string) bool {
			return strings.Contains(line, `"uid":0,`) && strings.Contains(line, `"file":"keys/`+name+`"`) &&
				strings.Contains(line, `"operation":"expire","status":"PSA_SUCCESS"`)
		}) {
			t.Errorf("the audit trail does not tell that %s expired:\n%s", name, trail)
		}
	}
}
