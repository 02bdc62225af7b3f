// Package audit attacks the audit trail: whoever has no right to a key must not push out of it what was done with keys.
package audit

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

const (
	owner    = 62001
	admin    = 62009
	stranger = 65534
)

// config is one software provider with a trail; settings are its own.
func config(settings string) string {
	return fmt.Sprintf(`
[authenticator]
auth_type = "UnixPeerCredentials"
admins = [{ name = "%d" }]
[audit]
%s
[[key_manager]]
name = "kim"
manager_type = "SQLite"
[[provider]]
name = "p"
provider_type = "Software"
`, admin, settings)
}

// small is a trail that a thousand lines fill.
const small = "max_bytes = 65536\nkeep = 2\n"

type line struct {
	Time           time.Time
	UID            int
	Operation, Key string
	File, Status   string
	Count          int
}

// read gives the lines of a file and of those it was rotated to.
func read(t *testing.T, m *parsecfstest.Mounted, name string) (lines []line) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(m.StateDir, name+"*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for one := range strings.Lines(string(text)) {
			var l line
			if err := json.Unmarshal([]byte(one), &l); err != nil {
				t.Fatalf("%s: %q: %v", file, one, err)
			}
			lines = append(lines, l)
		}
	}
	return lines
}

// sum counts the lines of a user and operation, counted ones by their count.
func sum(lines []line, uid int, operation string) (n int) {
	for _, l := range lines {
		if l.UID == uid && l.Operation == operation {
			n += max(l.Count, 1)
		}
	}
	return n
}

func run(t *testing.T, argv ...string) string {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	var complaint bytes.Buffer
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v: %s", argv, err, complaint.String())
	}
	return string(out)
}

// as runs a script of the shell as a user, in the provider's directory.
func as(t *testing.T, m *parsecfstest.Mounted, uid int, script string) string {
	t.Helper()
	id := strconv.Itoa(uid)
	return run(t, "setpriv", "--reuid="+id, "--regid="+id, "--clear-groups", "sh", "-euc", "cd "+m.Dir+"/providers/p; umask 022; "+script)
}

func stop(t *testing.T, m *parsecfstest.Mounted) {
	t.Helper()
	if code := m.Stop(); code != 0 {
		t.Fatalf("exit %d:\n%s", code, m.Log())
	}
}

func size(t *testing.T, m *parsecfstest.Mounted, name string) (n int64) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(m.StateDir, name+"*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		n += info.Size()
	}
	return n
}

// TestNobodyErasesTheTrail: hash, verify, random and the socket in a loop leave the deeds of before where they are, and all
// that they did is counted. The long form takes 120 s, with the trail that is the default.
func TestNobodyErasesTheTrail(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	settings, seconds, times := small, 0, 3000
	if parsecfstest.Long() {
		settings, seconds, times = "", 120, 0
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: config(settings)})
	as(t, m, owner, "mkdir keys/k; echo ecdsa-p256-sha256 >keys/k/generate; chmod 660 keys/k/sign")
	provider := m.Dir + "/providers/p"
	begun := time.Now()
	told := run(t, "/usr/bin/python3", "-B", "testdata/attack.py", strconv.Itoa(stranger), provider, provider+"/keys/k",
		m.StateDir+"/control.sock", strconv.Itoa(seconds), strconv.Itoa(times))
	took := int(time.Since(begun)/time.Second) + 2
	stop(t, m)
	deeds, operations := read(t, m, "audit.log"), read(t, m, "audit-operations.log")
	for _, operation := range []string{"mkdir", "generate", "setattr"} {
		if n := sum(deeds, owner, operation); n != 1 {
			t.Errorf("the owner's %s is there %d times", operation, n)
		}
	}
	var did map[string]int
	if err := json.Unmarshal([]byte(told), &did); err != nil {
		t.Fatalf("%v: %q", err, told)
	}
	for operation, n := range did {
		if counted := sum(operations, stranger, operation); counted != n {
			t.Errorf("%s: %d of %d are counted", operation, counted, n)
		}
	}
	if most := len(did) * took; len(operations) > most {
		t.Errorf("%d lines of operations in %d s", len(operations), took)
	}
	if refusals := strings.Count(m.Log(), "control socket: refused"); refusals > 2*took {
		t.Errorf("%d lines of the log in %d s", refusals, took)
	}
	t.Logf("%s in %d s: %d lines of operations, %d bytes; deeds: %d bytes; log: %d bytes", told, took, len(operations),
		size(t, m, "audit-operations.log"), size(t, m, "audit.log"), len(m.Log()))
}

// TestCrowdIsCounted: so many users do not have as many lines.
func TestCrowdIsCounted(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	const users = 5000
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: config("")})
	begun := time.Now()
	run(t, "/usr/bin/python3", "-B", "testdata/crowd.py", m.Dir+"/providers/p/hash/sha256", "100000", strconv.Itoa(users))
	seconds := int(time.Since(begun)/time.Second) + 2
	stop(t, m)
	const linesOfASecond = 64 + 1
	lines, counted := read(t, m, "audit-operations.log"), 0
	for _, l := range lines {
		counted += l.Count
	}
	if counted != users {
		t.Errorf("%d of %d are counted", counted, users)
	}
	if len(lines) > seconds*linesOfASecond {
		t.Errorf("%d lines in %d s", len(lines), seconds)
	}
}

// TestOwnKeysPushOutNobody: whoever has a key of their own can change its mode for ever, and be refused for ever: others' deeds of
// before and after are there, nobody is refused for it, and each of the changes is counted.
func TestOwnKeysPushOutNobody(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	times := 1500
	if parsecfstest.Long() {
		times = 50000
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: config(small)})
	as(t, m, owner, "mkdir keys/k; echo ecdsa-p256-sha256 >keys/k/generate")
	users := []int{62002, 100002}
	for _, uid := range users {
		run(t, "/usr/bin/python3", "-B", "testdata/own.py", strconv.Itoa(uid), m.Dir+"/providers/p/keys", fmt.Sprint("of-", uid),
			strconv.Itoa(times))
	}
	as(t, m, owner, "chmod 660 keys/k/sign")
	as(t, m, 0, "chown 62003 keys/k")
	stop(t, m)
	deeds, operations := read(t, m, "audit.log"), read(t, m, "audit-operations.log")
	for _, want := range []struct {
		uid       int
		operation string
	}{{owner, "mkdir"}, {owner, "generate"}, {owner, "setattr"}, {0, "setattr"}} {
		if n := sum(deeds, want.uid, want.operation); n != 1 {
			t.Errorf("%s of user %d is there %d times", want.operation, want.uid, n)
		}
	}
	for _, uid := range users {
		for _, operation := range []string{"setattr", "rmdir"} {
			if n := sum(deeds, uid, operation) + sum(operations, uid, operation); n != times {
				t.Errorf("user %d: %d of %d %s", uid, n, times, operation)
			}
		}
	}
	if n := size(t, m, "audit.log"); n > 65536 {
		t.Errorf("the deeds have %d bytes", n)
	}
}

// TestSetuidProgramsFillNothing: what root does through files that somebody lent it takes no more of the space than a user may.
func TestSetuidProgramsFillNothing(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	const times = 1500
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: config(small)})
	as(t, m, owner, "mkdir keys/k; echo ecdsa-p256-sha256 >keys/k/generate")
	as(t, m, 62002, "mkdir keys/lent; echo ecdsa-p256-sha256 >keys/lent/generate")
	told := run(t, "/usr/bin/python3", "-B", "testdata/lent.py", "62002", m.Dir+"/providers/p/keys/lent", strconv.Itoa(times))
	as(t, m, 0, "chown 62003 keys/k")
	stop(t, m)
	deeds := read(t, m, "audit.log")
	for _, want := range []struct {
		uid       int
		operation string
	}{{owner, "mkdir"}, {owner, "generate"}, {0, "setattr"}} {
		if n := sum(deeds, want.uid, want.operation); n != 1 {
			t.Errorf("%s of user %d is there %d times", want.operation, want.uid, n)
		}
	}
	if n := size(t, m, "audit.log"); n > 65536/4 {
		t.Errorf("the deeds have %d bytes; root's writes: %s", n, told)
	}
}

// TestDeedsAreTogether: what lets a key out, and what root and admins command or are refused, is in the deeds' file.
func TestDeedsAreTogether(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: config("")})
	command := func(args string) string {
		return fmt.Sprintf("%s %s --config %s --state-dir %s", parsecfstest.Path(t), args, m.ConfigFile, m.StateDir)
	}
	as(t, m, owner, `mkdir keys/k
		printf 'template = "ecdsa-p256-sha256"\nusage = ["PSA_KEY_USAGE_SIGN_MESSAGE", "PSA_KEY_USAGE_EXPORT"]\n' >keys/k/generate`)
	as(t, m, owner, "exec 3<>keys/k/export; printf pkcs8 >&3; cat <&3 >/dev/null")
	as(t, m, owner, "exec 3<>keys/k/sign; printf hello >&3; cat <&3 >/dev/null")
	out := parsecfstest.TempDir(t)
	run(t, "chmod", "777", out)
	run(t, "chmod", "644", m.ConfigFile)
	as(t, m, admin, "! "+command("state backup "+out+"/none"))
	as(t, m, admin, command("keys chown --owner "+strconv.Itoa(owner)+" 62003"))
	as(t, m, 0, command("state backup "+out+"/backup.tar"))
	as(t, m, 0, command("keys destroy --owner 62003"))
	stop(t, m)
	deeds := read(t, m, "audit.log")
	for _, want := range []struct {
		uid               int
		operation, status string
	}{
		{owner, "export", "PSA_SUCCESS"}, {admin, "state backup", "EACCES"}, {admin, "keys chown", "PSA_SUCCESS"},
		{0, "state backup", "PSA_SUCCESS"}, {0, "keys destroy", "PSA_SUCCESS"},
	} {
		found := 0
		for _, l := range deeds {
			if l.UID == want.uid && l.Operation == want.operation && l.Status == want.status {
				found++
			}
		}
		if found != 1 {
			t.Errorf("%v is there %d times:\n%+v", want, found, deeds)
		}
	}
	if n := sum(deeds, owner, "sign"); n != 0 {
		t.Errorf("%d operations are among the deeds", n)
	}
}

// TestOldTrailStays: the files of a version with one file for both stay as they are, whatever comes, and count for nothing.
func TestOldTrailStays(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	state := filepath.Join(parsecfstest.TempDir(t), "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	old := map[string]string{}
	for i, suffix := range []string{"", ".1", ".2"} {
		text := fmt.Sprintf(`{"time":"2026-01-02T03:04:0%d.5Z","uid":62001,"gid":62001,"pid":7,"operation":"sign","status":"PSA_SUCCESS"}`+"\n", i)
		old[suffix] = strings.Repeat(text, 65536/len(text))
		if err := os.WriteFile(filepath.Join(state, "audit.log"+suffix), []byte(old[suffix]), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: config(small), StateDir: state})
	as(t, m, owner, "mkdir keys/k; echo ed25519 >keys/k/generate")
	stop(t, m)
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	as(t, m, owner, "exec 3<>keys/k/sign; printf hello >&3; cat <&3 >/dev/null; rm -r keys/k 2>/dev/null || rmdir keys/k")
	stop(t, m)
	for suffix, text := range old {
		now, err := os.ReadFile(filepath.Join(state, "audit-before.log"+suffix))
		if err != nil || string(now) != text {
			t.Errorf("audit-before.log%s: %d bytes, %v", suffix, len(now), err)
		}
	}
	deeds := read(t, m, "audit.log")
	for _, operation := range []string{"mkdir", "generate", "rmdir"} {
		if n := sum(deeds, owner, operation); n != 1 {
			t.Errorf("%s is there %d times", operation, n)
		}
	}
	if n := sum(read(t, m, "audit-operations.log"), owner, "sign"); n != 1 {
		t.Errorf("sign is there %d times", n)
	}
	if _, err := os.Lstat(filepath.Join(state, "audit.log.1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("audit.log.1: %v", err)
	}
}
