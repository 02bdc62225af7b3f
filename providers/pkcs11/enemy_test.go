package pkcs11_test

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/providers/pkcs11"
	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// folderOf makes a folder of a user's below one that all may pass.
func folderOf(t *testing.T, uid int) string {
	t.Helper()
	dir := pkcs11test.Folder(t)
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chown(dir, uid, -1)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// compile makes a module of a file in testdata.
func compile(t *testing.T, source string) (library string) {
	t.Helper()
	library = filepath.Join(folderOf(t, os.Geteuid()), strings.TrimSuffix(source, ".c")+".so")
	out, err := exec.Command("gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library,
		filepath.Join("testdata", source)).CombinedOutput()
	if err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	return library
}

// TestEnemy loads a module that tries what it can, as root without a user of its own, as another user, and as an ordinary
// user who has it run for themselves.
func TestEnemy(t *testing.T) {
	if dir := os.Getenv(enemyHome); dir != "" {
		enemy(t, os.Getenv("ENEMY_LIBRARY"), dir, "")
		return
	}
	library := compile(t, "enemy.c")
	t.Run("own", func(t *testing.T) { enemy(t, library, t.TempDir(), "") })
	requireRoot(t)
	t.Run("another's", func(t *testing.T) { enemy(t, library, folderOf(t, stranger), fmt.Sprintf("%d:%[1]d", stranger)) })
	t.Run("a user's", func(t *testing.T) {
		cmd := exec.Cmd{Path: "/proc/self/exe", Args: []string{os.Args[0], "-test.run=^TestEnemy$", "-test.v"}, Dir: "/",
			Env:         []string{enemyHome + "=" + folderOf(t, stranger), "ENEMY_LIBRARY=" + library},
			SysProcAttr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}}
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestEnemy") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// enemyHome names the folder of the test's process that is an ordinary user's.
const enemyHome = "PARSECFS_TEST_ENEMY"

// enemy checks what the module reports. A user who is empty is the test's own.
func enemy(t *testing.T, library, dir, user string) {
	for _, secret := range []string{"NOTIFY_SOCKET", "CREDENTIALS_DIRECTORY", "LISTEN_FDS", "PGPASSWORD"} {
		t.Setenv(secret, "a secret")
	}
	t.Setenv("SOFTHSM2_CONF", "/etc/passed-on")
	state := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(state, 0o700); err != nil {
		t.Fatal(err)
	}
	report := filepath.Join(dir, "report")
	// Its working directory is /: a path that is not absolute is not taken for a file that it must be able to read.
	settings := map[string]any{"library_path": library, "environment": map[string]any{"ENEMY_REPORT": report, "ENEMY_STATE": state[1:]}}
	if user != "" {
		settings["user"] = user
	}
	p, err := pkcs11.Type.New(t.Context(), config(t, state, settings))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Identity(t.Context()); err == nil {
		t.Error("a module without functions is a token")
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	got, variables := map[string]string{}, []string{}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		value = strings.TrimSpace(value)
		switch name {
		case "variable":
			variables = append(variables, value)
		case "descriptor":
			// The lock, the pairs' ends, what it says; what Go's runtime has open; and the report.
			if value != "/dev/null" && !strings.HasPrefix(value, "socket:") && !strings.HasPrefix(value, "pipe:") && value != report &&
				!strings.HasSuffix(value, "worker.lock") && !strings.HasPrefix(value, "/sys/fs/cgroup/") &&
				!strings.HasPrefix(value, "anon_inode:[event") && !strings.HasPrefix(value, "/proc/") {
				t.Errorf("it has %s open", value)
			}
		default:
			got[name] = value
		}
	}
	want := map[string]string{
		"process_vm_readv": "EPERM", "ptrace": "EPERM", "prlimit": "EPERM", "unshare": "EPERM", "clone": "EPERM", "clone3": "ENOSYS",
		"bpf": "EPERM", "io_uring": "EPERM", "setuid": "EPERM", "ambient": "EPERM", "a call of i386": "EPERM", "kill": "EPERM",
		"read the starter's memory": "EACCES", "write the starter's memory": "EACCES", "read the starter's environment": "EACCES",
		"open what the starter has open": "EACCES", "core": "0", "dumpable": "0", "NoNewPrivs": "1", "Seccomp": "2",
		"CapInh": noCapability, "CapPrm": noCapability, "CapEff": noCapability, "CapAmb": noCapability,
	}
	if os.Geteuid() == 0 {
		want["CapBnd"] = noCapability
	}
	if user != "" {
		want["open the state"] = "EACCES"
		id := fmt.Sprint(stranger)
		want["Uid"], want["Gid"], want["Groups"] = strings.Repeat("\t"+id, 4)[1:], strings.Repeat("\t"+id, 4)[1:], ""
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: %q, not %q", name, got[name], want[name])
		}
	}
	for _, name := range variables {
		if !slices.Contains([]string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "XDG_RUNTIME_DIR", "SOFTHSM2_CONF",
			"ENEMY_REPORT", "ENEMY_STATE", "GOTRACEBACK"}, name) && !strings.HasPrefix(name, "LC_") {
			t.Errorf("it has the variable %s", name)
		}
	}
	if !slices.Contains(variables, "SOFTHSM2_CONF") {
		t.Error("it has not SOFTHSM2_CONF")
	}
}

const noCapability = "0000000000000000"

// TestUserWithoutRights: what the module's user may not read is told with its name, and what to do.
func TestUserWithoutRights(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	conf := filepath.Join(t.TempDir(), "softhsm2.conf")
	if err := os.WriteFile(conf, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	p := open(t, map[string]any{"library_path": compile(t, "enemy.c"), "user": fmt.Sprintf("%d:%[1]d", stranger),
		"environment": map[string]any{"SOFTHSM2_CONF": conf}})
	defer p.Close()
	_, err := p.Identity(t.Context())
	if psa.StatusOf(err) != psa.StatusProviderAbsent || !strings.Contains(err.Error(), conf) || !strings.Contains(err.Error(), "2011") ||
		psa.HintOf(err) == "" {
		t.Errorf("%v (hint %q)", err, psa.HintOf(err))
	}
}

// TestUserOfAnother: an ordinary user has a module run for nobody else, and keeps no capabilities.
func TestUserOfAnother(t *testing.T) {
	const again = "PARSECFS_TEST_USER"
	if user := os.Getenv(again); user != "" {
		for name, settings := range map[string]map[string]any{
			"root": {"user": "0"}, "another": {"user": "2012:2012"}, "group": {"user": "2011:0"}, "capabilities": {"keep_capabilities": []any{"CAP_IPC_LOCK"}},
		} {
			settings["library_path"] = "/nowhere"
			if _, err := tryOpen(t, settings); psa.StatusOf(err) != psa.StatusNotPermitted || psa.HintOf(err) == "" {
				t.Errorf("%s: %v", name, err)
			}
		}
		p := open(t, map[string]any{"library_path": "/nowhere", "user": user})
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	requireRoot(t)
	cmd := exec.Cmd{Path: "/proc/self/exe", Args: []string{os.Args[0], "-test.run=^TestUserOfAnother$", "-test.v"}, Dir: "/",
		Env:         []string{again + "=2011:2011"},
		SysProcAttr: &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: stranger, Gid: stranger}}}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestUserOfAnother") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestUserSetting: what is no user, or no capability to keep, is refused.
func TestUserSetting(t *testing.T) {
	t.Parallel()
	for _, user := range []any{"", 5, "no such user", "4294967295:0", "0:4294967295", "2011", "2011:no such group", "-1:-1", ":", ":0"} {
		if _, err := tryOpen(t, map[string]any{"library_path": "/nowhere", "user": user}); psa.StatusOf(err) != psa.StatusInvalidArgument {
			t.Errorf("user %v: %v", user, err)
		}
	}
	for _, kept := range []any{"CAP_IPC_LOCK", []any{"CAP_SYS_PTRACE"}, []any{"CAP_SYS_ADMIN"}, []any{5}} {
		if _, err := tryOpen(t, map[string]any{"library_path": "/nowhere",
			"keep_capabilities": kept}); psa.StatusOf(err) != psa.StatusInvalidArgument {
			t.Errorf("keep_capabilities %v: %v", kept, err)
		}
	}
}

// TestKeptCapability: a capability that the configuration names outlives the change of the user, alone.
func TestKeptCapability(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	dir := folderOf(t, stranger)
	report := filepath.Join(dir, "report")
	p := open(t, map[string]any{"library_path": compile(t, "enemy.c"), "user": "2011:2011", "keep_capabilities": []any{"CAP_IPC_LOCK"},
		"environment": map[string]any{"ENEMY_REPORT": report, "ENEMY_STATE": dir}})
	_, _ = p.Identity(t.Context()) // it is no token
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []string{"CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		if !strings.Contains(string(text), set+":\t0000000000004000\n") {
			t.Errorf("%s is not CAP_IPC_LOCK:\n%s", set, text)
		}
	}
}
