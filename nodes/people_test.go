package nodes_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// failed is one line of last_error.
type failed struct {
	at, since                                   time.Time
	path, operation, errno, status, words, hint string
	times                                       int
}

// failures reads a last_error, whose header names its columns.
func (m *mounted) failures(path string) (list []failed) {
	m.t.Helper()
	lines := strings.Split(strings.TrimSuffix(string(m.get(path)), "\n"), "\n")
	if want := "# time\tpid\tpath\toperation\terrno\tstatus\twords\thint\ttimes\tsince"; lines[0] != want {
		m.t.Fatalf("%s begins with %q, want %q", path, lines[0], want)
	}
	for _, line := range lines[1:] {
		c := strings.Split(line, "\t")
		if len(c) != 10 {
			m.t.Fatalf("%d columns in %q", len(c), line)
		}
		at, err := time.Parse(time.RFC3339Nano, c[0])
		if err != nil {
			m.t.Fatal(err)
		}
		since, err := time.Parse(time.RFC3339Nano, c[9])
		if err != nil {
			m.t.Fatal(err)
		}
		times, err := strconv.Atoi(c[8])
		if err != nil {
			m.t.Fatal(err)
		}
		list = append(list, failed{at, since, c[2], c[3], c[4], c[5], c[6], c[7], times})
	}
	return list
}

// last is the newest failure of all.
func (m *mounted) last() failed {
	m.t.Helper()
	list := m.failures(filepath.Join(m.dir, "last_error"))
	return list[len(list)-1]
}

func TestLastError(t *testing.T) {
	m := mount(t, nil)
	if err := os.Mkdir(m.path("k"), 0777); err != nil {
		t.Fatal(err)
	}
	for _, template := range []string{"nonsense", "nonsense", "nonsense", "rubbish"} {
		wantErrno(t, put(m.path("k", "generate"), template+"\n"), syscall.EINVAL)
	}
	for _, path := range []string{m.path("k", "last_error"), filepath.Join(m.dir, "last_error")} {
		list := m.failures(path)
		if len(list) != 2 || list[0].times != 3 || list[1].times != 1 ||
			!strings.Contains(list[0].words, "nonsense") || !strings.Contains(list[1].words, "rubbish") {
			t.Fatalf("%s has %+v, want three of one kind in one line, and then the newest", path, list)
		}
		if !list[0].since.Before(list[0].at) || !list[0].at.Before(list[1].at) || !list[1].at.Equal(list[1].since) {
			t.Errorf("%s has the times %+v", path, list)
		}
		if x := list[0]; x.path != "providers/software/keys/k/generate" || x.operation != "write" || x.errno != "EINVAL" ||
			x.status != "PSA_ERROR_INVALID_ARGUMENT" {
			t.Errorf("%s has %+v", path, x)
		}
	}
	out, err := exec.Command("setpriv", "--reuid", "65534", "--clear-groups", "cat", filepath.Join(m.dir, "last_error")).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("another user sees %q, %v", out, err)
	}
}

// TestWalkKeepsFailures: whoever walks over many files and is refused at each keeps the failures from before.
func TestWalkKeepsFailures(t *testing.T) {
	m := mount(t, nil)
	for _, name := range []string{"a", "b", "c", "d"} {
		m.key(name, "ecdsa-p256-sha256")
	}
	if err := os.Mkdir(m.path("draft"), 0777); err != nil {
		t.Fatal(err)
	}
	const before = 24
	for i := range before {
		wantErrno(t, put(m.path("draft", "generate"), fmt.Sprintf("wrong-%02d\n", i)), syscall.EINVAL)
	}
	refused := 0
	for range 3 {
		for _, name := range []string{"a", "b", "c", "d"} {
			for _, file := range strings.Fields(list(t, m.path(name))) {
				if syscall.Unlink(m.path(name, file)) == syscall.EPERM {
					refused++
				}
				if f, err := os.OpenFile(m.path(name, file), os.O_RDWR, 0); err == nil {
					_, _ = f.Read(make([]byte, 1))
					f.Close()
				}
			}
		}
	}
	if refused < 100 {
		t.Fatalf("the walk was refused %d times", refused)
	}
	all := m.failures(filepath.Join(m.dir, "last_error"))
	for i := range before {
		if !slices.ContainsFunc(all, func(x failed) bool { return strings.Contains(x.words, fmt.Sprintf("wrong-%02d", i)) }) {
			t.Errorf("failure %d from before the walk is gone", i)
		}
	}
	unlinked := 0
	for _, x := range all {
		if x.operation == "unlink" {
			unlinked += x.times
		}
	}
	if len(all) > 32 || unlinked != refused {
		t.Errorf("%d lines tell of %d unlinks; there were %d", len(all), unlinked, refused)
	}
	// A key's own tells of it alone.
	for _, x := range m.failures(m.path("d", "last_error")) {
		if !strings.HasPrefix(x.path+"/", "providers/software/keys/d/") {
			t.Errorf("d/last_error tells of %s", x.path)
		}
	}
}

// TestTemplates: the file has each word that generate takes, once, and begins with what most people want.
func TestTemplates(t *testing.T) {
	m := mount(t, nil)
	provider := filepath.Join(m.dir, "providers/software")
	want := map[string]bool{}
	for line := range strings.Lines(string(m.get(filepath.Join(provider, "capabilities")))) {
		c := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if slices.Contains(strings.Split(c[4], ","), "generate") && c[0] != "-" {
			want[c[0]] = true
		}
	}
	text := string(m.get(filepath.Join(provider, "templates")))
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if len(want) < 50 || len(lines) != len(want) || !strings.HasSuffix(text, "\n") ||
		lines[0] != "ecdsa-p256-sha256" || lines[1] != "ed25519" {
		t.Errorf("%d templates, want %d: %.200q", len(lines), len(want), text)
	}
	for _, line := range lines {
		if !want[line] {
			t.Errorf("%q is no template of capabilities, or there twice", line)
		}
		delete(want, line)
	}
	m.key("k", lines[0])
	if s, err := os.Stat(filepath.Join(provider, "templates")); err != nil || s.Size() != int64(len(text)) || s.Mode().Perm() != 0444 {
		t.Errorf("stat says %v, %v", s, err)
	}
}

// TestRefusalsNameTheirMistake: what somebody did wrong stands in last_error, with what to do instead.
func TestRefusalsNameTheirMistake(t *testing.T) {
	m := mount(t, nil)
	m.key("ready", "ecdsa-p256-sha256")
	m.key("cipher", "aes-256-gcm")
	for _, name := range []string{"draft", "other"} {
		if err := os.Mkdir(m.path(name), 0777); err != nil {
			t.Fatal(err)
		}
	}
	shell := func(path, text string) error { return write(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, text) }
	provider := filepath.Join(m.dir, "providers/software")
	for _, c := range []struct {
		what        string
		do          func() error
		errno       syscall.Errno
		words, hint string
	}{
		{"generate of a key", func() error { return shell(m.path("ready", "generate"), "ed25519\n") }, syscall.EPERM, "this is a key already; only a draft has generate", "make another draft with mkdir"},
		{"import of a key", func() error { return shell(m.path("ready", "import"), "x") }, syscall.EPERM, "this is a key already; only a draft has import", "make another draft with mkdir"},
		{"copy of a key", func() error { return shell(m.path("ready", "copy"), "cipher\n") }, syscall.EPERM, "this is a key already; only a draft has copy", ""},
		{"sign of a draft", func() error { return shell(m.path("draft", "sign"), "x") }, syscall.EPERM, "this is a draft, which has no sign before it is a key", "write a template into generate"},
		{"slots of a draft", func() error { return os.Mkdir(m.path("draft", "sign.d"), 0777) }, syscall.EPERM, "this is a draft, which has no sign before", ""},
		{"export without the flag", func() error { return shell(m.path("ready", "export"), "pkcs8\n") }, syscall.EPERM, "because its usage lacks PSA_KEY_USAGE_EXPORT", "make a new key, with the flag"},
		{"encrypt of a key that signs", func() error { return shell(m.path("ready", "encrypt"), "x") }, syscall.EPERM, "PSA_ALG_ECDSA(PSA_ALG_SHA_256) has no encrypt", "capabilities"},
		{"sign of a key that encrypts", func() error { return shell(m.path("cipher", "sign"), "x") }, syscall.EPERM, "PSA_ALG_GCM has no sign", "capabilities"},
		{"public.pem of a secret key", func() error { return shell(m.path("cipher", "public.pem"), "x") }, syscall.EPERM, "PSA_KEY_TYPE_AES key has no public.pem", ""},
		{"a typo", func() error { return shell(m.path("ready", "sing"), "x") }, syscall.EPERM, "there is no sing here", "the nearest is sign"},
		{"a typo in a directory", func() error { return os.Mkdir(m.path("ready", "vreify.d"), 0777) }, syscall.EPERM, "there is no vreify.d here", "the nearest is verify.d"},
		{"a typo in a provider", func() error { return shell(filepath.Join(provider, "candoo"), "x") }, syscall.EPERM, "there is no candoo here", "the nearest is can_do"},
		{"a hash that is none", func() error { return shell(filepath.Join(provider, "hash", "sha265"), "x") }, syscall.EPERM, "there is no sha265 here", "the nearest is sha256"},
		{"a file of one's own", func() error { return shell(m.path("ready", "my notes"), "x") }, syscall.EPERM, "no files can be made here", "mkdir in a provider's keys/"},
		{"a directory of one's own", func() error { return os.Mkdir(m.path("ready", "stuff"), 0777) }, syscall.EPERM, "no directories can be made here", ""},
		{"rm", func() error { return syscall.Unlink(m.path("ready", "sign")) }, syscall.EPERM, "files here come and go with their key", "rmdir destroys a key"},
		{"a link among keys", func() error { return os.Symlink("ready", m.path("link")) }, syscall.EPERM, "symbolic links cannot be made here", "only root can make aliases"},
		{"name", func() error { return put(m.path("draft", "attributes"), "name = \"x\"\n") }, syscall.EINVAL, "name cannot be set", "mv OLD NEW"},
		{"name of a key", func() error { return put(m.path("ready", "attributes"), "name = \"x\"\n") }, syscall.EINVAL, "name cannot be set", "mv OLD NEW"},
		{"name in generate", func() error { return put(m.path("draft", "generate"), "template = \"ed25519\"\nname = \"x\"\n") }, syscall.EINVAL, "name cannot be set", ""},
		{"state", func() error { return put(m.path("draft", "attributes"), "state = \"ready\"\n") }, syscall.EINVAL, "state cannot be set", "generate"},
		{"uuid", func() error { return put(m.path("ready", "attributes"), "uuid = \"x\"\n") }, syscall.EINVAL, "uuid cannot be set", "leave the line out"},
		{"provider", func() error { return put(m.path("draft", "attributes"), "provider = \"tpm\"\n") }, syscall.EINVAL, "provider cannot be set", "cannot leave"},
		{"created", func() error { return put(m.path("ready", "attributes"), "created = 2001-01-01T00:00:00Z\n") }, syscall.EINVAL, "created cannot be set", ""},
		{"nonces_left", func() error { return put(m.path("cipher", "attributes"), "nonces_left = 7\n") }, syscall.EINVAL, "nonces_left cannot be set", "make a new key"},
		{"fingerprints", func() error { return put(m.path("ready", "attributes"), "[fingerprints]\nssh = \"x\"\n") }, syscall.EINVAL, "fingerprints cannot be set", ""},
		{"rsa2048", func() error { return put(m.path("draft", "generate"), "rsa2048\n") }, syscall.EINVAL, "the nearest ones: rsa-2048-pkcs1v15-sha256, ", "templates file"},
		{"P-256", func() error { return put(m.path("draft", "generate"), "P-256\n") }, syscall.EINVAL, "the nearest ones: ecdsa-p256-sha256, ", ""},
		{"aes-256", func() error { return put(m.path("draft", "generate"), "aes-256\n") }, syscall.EINVAL, "the nearest ones: aes-256-gcm, ", ""},
		{"ED25519", func() error { return put(m.path("draft", "attributes"), "template = \"ED25519\"\n") }, syscall.EINVAL, "the nearest ones: ed25519", ""},
		{"in TOML", func() error { return put(m.path("draft", "generate"), "template = \"p384\"\n") }, syscall.EINVAL, "the nearest ones: ecdsa-p384-sha384, ", ""},
		{"a curve that is not here", func() error { return put(m.path("draft", "generate"), "ecdsa-p192-sha256\n") }, syscall.EOPNOTSUPP, "of 192 bits", "the nearest ones: ecdsa-p"},
		{"nothing like it", func() error { return put(m.path("draft", "generate"), "please\n") }, syscall.EINVAL, "\"please\": no template begins like this", "templates file"},
	} {
		err := c.do()
		for errors.Is(err, syscall.ENOENT) { // the kernel knows a draft's files for some milliseconds more
			err = c.do()
		}
		wantErrno(t, err, c.errno)
		if x := m.last(); !strings.Contains(x.words, c.words) || !strings.Contains(x.hint, c.hint) || len(x.words) > 250 {
			t.Errorf("%s: last_error says %q and %q, want %q and %q", c.what, x.words, x.hint, c.words, c.hint)
		}
	}
	if got := m.last().path; got != "providers/software/keys/draft/generate" {
		t.Errorf("the last refusal was at %s", got)
	}
	// What was read can be written back, also where it is older than what has changed since.
	for _, name := range []string{"ready", "cipher", "draft", "other"} {
		text := string(m.get(m.path(name, "attributes")))
		if name == "cipher" {
			f, err := os.OpenFile(m.path("cipher", "encrypt"), os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteString("x"); err != nil {
				t.Error(err)
			}
			if _, err := f.Read(make([]byte, 100)); err != nil {
				t.Error(err)
			}
			f.Close()
		}
		m.put(m.path(name, "attributes"), text)
	}
}
