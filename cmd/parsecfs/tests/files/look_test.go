package files

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// Users of the tests: the owner of the keys, and one who owns nothing.
const (
	owner  = 2001
	reader = 2003
)

// ways are all ways of testdata/look.c to look at a file.
var ways = []string{
	"stat", "fstat", "statx", "read", "read small", "read twice", "pread", "pread behind", "readv", "sendfile", "splice", "copy_file_range",
	"mmap private", "mmap shared", "mmap writable", "io_uring read", "io_uring read -1", "O_DIRECT",
	"O_PATH", "lseek SET", "lseek END", "lseek DATA", "lseek HOLE", "getdents twice", "seekdir", "fsync", "fdatasync", "fallocate",
	"flock", "fcntl lock", "utimensat 1600", "utimensat 2300", "chmod", "chown", "poll", "FIONREAD", "isatty", "ioctl", "readlink", "tar", "rsync -a", "cp -a",
	"write", "io_uring write", "io_uring write -1", "O_APPEND", // last, since they change the plain file
}

// kind is a file of the tree in one of its states.
type kind struct {
	name string
	uid  uint32
	path string // in the mount; of slots the directory that they are made in
	// before and how are look's: what is made first, and how the file is opened.
	before, how string
	part        string // of a slot
	mode        uint32 // of what before makes
	message     []byte
	signature   []byte
	answer      []byte // to message
	// holds is what the same file of a plain file system would hold, and plainly how it is opened there.
	holds   []byte
	plainly string
	asks    bool   // has written its request, so that nothing more is written
	first   string // a script of the owner's
}

// outcome of one look.
type outcome struct {
	says  string
	bytes []byte
}

func (o outcome) String() string {
	if len(o.bytes) > 60 {
		return fmt.Sprintf("%s, %d bytes %.30q...", o.says, len(o.bytes), o.bytes)
	}
	return fmt.Sprintf("%s, %q", o.says, o.bytes)
}

func (o outcome) is(p outcome) bool { return o.says == p.says && bytes.Equal(o.bytes, p.bytes) }

// config has drafts without an end: what attributes says of it changes with each touch.
const config = `
[core_settings]
draft_expiry = "0s"
[[key_manager]]
name = "kim"
manager_type = "SQLite"
[[provider]]
name = "software"
provider_type = "Software"
`

// bench is where the kinds are looked at.
type bench struct {
	t           *testing.T
	m           *parsecfstest.Mounted
	helper      string
	dir, plains string // a folder of the test's own, and a plain file system
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, m: parsecfstest.Mount(t, parsecfstest.Options{Config: config}), dir: parsecfstest.TempDir(t)}
	for _, uid := range []int{0, owner, reader} {
		home := b.home(uint32(uid))
		if err := os.Mkdir(home, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(home, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// compare makes the helper and the plain file system.
func (b *bench) compare() {
	t := b.t
	t.Helper()
	b.helper = filepath.Join(b.dir, "look")
	if out, err := exec.Command("gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", b.helper, "testdata/look.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	b.plains = filepath.Join(b.dir, "plain")
	if err := os.Mkdir(b.plains, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", b.plains, "tmpfs", 0, "mode=755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(b.plains, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func (b *bench) home(uid uint32) string { return filepath.Join(b.dir, fmt.Sprint("home-", uid)) }

// shell runs a script as a user, in its home, with MNT, P (the provider) and K (its keys); it has a minute.
func (b *bench) shell(uid uint32, script string, env ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p := filepath.Join(b.m.Dir, "providers/software")
	cmd := exec.CommandContext(ctx, "sh", "-c", script)
	cmd.Dir = b.home(uid)
	cmd.Env = append(append(os.Environ(), "HOME="+cmd.Dir, "MNT="+b.m.Dir, "P="+p, "K="+p+"/keys", "LC_ALL=C"), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with what it started
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// as is a command that a user runs.
func (b *bench) as(uid uint32, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = b.home(uid)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

func (b *bench) must(uid uint32, script string, env ...string) string {
	b.t.Helper()
	out, err := b.shell(uid, script, env...)
	if err != nil {
		b.t.Fatalf("%s: %v: %s", script, err, out)
	}
	return out
}

func (b *bench) at(path string) string { return filepath.Join(b.m.Dir, path) }

// file keeps bytes where the helper finds them.
func (b *bench) file(uid uint32, what []byte) string {
	b.t.Helper()
	f, err := os.CreateTemp(b.home(uid), "request-")
	if err != nil {
		b.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(what); err != nil {
		b.t.Fatal(err)
	}
	if err := f.Chmod(0o644); err != nil {
		b.t.Fatal(err)
	}
	return f.Name()
}

// look looks at a file in one way after the other.
func (b *bench) look(k kind, before, how, path string, ways []string) []outcome {
	b.t.Helper()
	looked, err := b.tryLook(k, before, how, path, ways)
	if err != nil {
		b.t.Fatalf("%s: %v", k.name, err)
	}
	return looked
}

func (b *bench) tryLook(k kind, before, how, path string, ways []string) (looked []outcome, err error) {
	var out, errOut bytes.Buffer
	cmd := b.as(k.uid, b.helper, append([]string{before, how, path}, ways...)...)
	cmd.Env = append(os.Environ(), "MESSAGE="+b.file(k.uid, k.message),
		"SIGNATURE="+b.file(k.uid, k.signature), "PART="+k.part, "ELSEWHERE="+b.home(k.uid))
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil || errOut.Len() > 0 {
		return nil, fmt.Errorf("the helper: %v: %s", err, errOut.String())
	}
	for r := bufio.NewReader(&out); ; {
		line, err := r.ReadString('\n')
		if err == io.EOF && len(looked) == len(ways) {
			return looked, nil
		}
		fields := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(fields) != 3 {
			return nil, fmt.Errorf("the helper says %q", line)
		}
		n, err := strconv.Atoi(fields[2])
		if err != nil {
			return nil, err
		}
		gave := make([]byte, n)
		if _, err := io.ReadFull(r, gave); err != nil {
			return nil, err
		}
		looked = append(looked, outcome{fields[1], gave})
	}
}

// plain makes what the kind would be on a plain file system.
func (b *bench) plain(k kind, name string) string {
	b.t.Helper()
	at, from := filepath.Join(b.plains, name), b.at(k.path)
	s := unix.Stat_t{Mode: syscall.S_IFREG | k.mode, Uid: k.uid, Gid: k.uid}
	if k.mode == 0 {
		if err := unix.Lstat(from, &s); err != nil {
			b.t.Fatal(err)
		}
	}
	var err error
	switch s.Mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		if err = os.Mkdir(at, 0o700); err != nil {
			break
		}
		for _, name := range strings.Fields(b.must(owner, `ls -A "$AT"`, "AT="+from)) {
			err = cmp.Or(err, os.WriteFile(filepath.Join(at, name), nil, 0o644))
		}
	case syscall.S_IFLNK:
		var to string
		if to, err = os.Readlink(from); err == nil {
			err = os.Symlink(to, at)
		}
	default:
		err = os.WriteFile(at, k.holds, 0o600)
	}
	err = cmp.Or(err, os.Lchown(at, int(s.Uid), int(s.Gid)))
	if s.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		err = cmp.Or(err, unix.Chmod(at, s.Mode&0o7777))
	}
	if err != nil {
		b.t.Fatal(err)
	}
	return at
}

// TestWaysToLook: however a program looks at a file of the tree, it finds what a plain file with the same bytes, owner and
// mode would show it, on a tmpfs beside, or one of the exceptions of the list, each with its reason; and it never hangs.
func TestWaysToLook(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	b := newBench(t)
	b.compare()
	used := make([]int, len(exceptions))
	looks, same, kinds := 0, 0, b.kinds()
	ran := 0
	for i, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			ran++
			b := *b
			b.t = t
			if k.first != "" {
				b.must(owner, k.first)
			}
			which := ways
			if k.asks {
				which = slices.DeleteFunc(slices.Clone(ways), func(w string) bool { return slices.Contains(writes, w) })
			}
			got := b.look(k, cmp.Or(k.before, "-"), k.how, b.at(k.path), which)
			want := b.look(k, "-", cmp.Or(k.plainly, k.how), b.plain(k, fmt.Sprint(i)), which)
			for j, way := range which {
				looks++
				at := slices.IndexFunc(exceptions, func(o otherwise) bool { return o.about(k, way) })
				switch g, w := got[j], want[j]; {
				case g.is(w):
					same++
				case at >= 0 && exceptions[at].is(k, g):
					used[at]++
				default:
					t.Errorf("%s: got %v, want %v", way, g, w)
				}
			}
		})
	}
	for i, o := range exceptions {
		if used[i] == 0 && ran == len(kinds) {
			t.Errorf("%s, %q: nothing is otherwise (%s)", o.kinds, o.ways, o.why)
		}
	}
	t.Logf("%d kinds, %d looks in %d ways: %d as at a plain file, %d otherwise, for %d reasons",
		ran, looks, len(ways), same, looks-same, len(exceptions))
}

// kinds makes what is looked at.
func (b *bench) kinds() []kind {
	b.t.Helper()
	const key, draft, long = "providers/software/keys/looked-at", "providers/software/keys/draft", "providers/software/keys/long"
	b.must(owner, `mkdir $K/looked-at $K/draft $K/long && echo ed25519 >$K/looked-at/generate && echo aes-256-ctr >$K/long/generate`)
	b.must(0, `ln -s ../providers/software/keys/looked-at $MNT/keys/alias`)
	b.must(owner, `cd $K && seq -f draft-%.0f 150 | xargs mkdir`) // more than the kernel asks for at once
	b.must(reader, `! cat $K/looked-at/verify`)                   // so that last_error says something
	message := []byte("what is signed, and is as long as no answer is: " + strings.Repeat("x", 100))
	ask := func(file string, request []byte) []byte {
		b.t.Helper()
		answer, err := parsecfstest.Ask(b.at(file), request)
		if err != nil {
			b.t.Fatal(err)
		}
		return answer
	}
	signature := ask(key+"/sign", message)
	plaintext := bytes.Repeat([]byte("0123456789abcdef"), 20000)
	ciphertext := ask(long+"/encrypt", plaintext)

	var kinds []kind
	for _, text := range []string{"README", "version", "providers/software/capabilities", "providers/software/capabilities.json",
		key + "/public.pem", key + "/public.der", key + "/public.ssh", key + "/public.jwk", key + "/capabilities"} {
		kinds = append(kinds, kind{name: "text, the same for all: " + filepath.Base(text), uid: owner, path: text, how: "read"})
	}
	for _, text := range []string{"last_error", "providers/software/info", "providers/software/status", key + "/last_error"} {
		kinds = append(kinds, kind{name: "text by reader: " + filepath.Base(text), uid: reader, path: text, how: "read"})
	}
	for _, staged := range []string{key + "/attributes", key + "/certificate", draft + "/attributes", draft + "/generate", draft + "/import"} {
		name := strings.TrimPrefix(staged, "providers/software/keys/")
		kinds = append(kinds, kind{name: "staged: " + name, uid: owner, path: staged, how: "read"},
			kind{name: "staged to write: " + name, uid: owner, path: staged, how: "read and write"})
	}
	for _, file := range []string{key + "/sign", key + "/attributes", draft + "/import", key + "/sign.d", draft} {
		kinds = append(kinds, kind{name: "somebody else's: " + filepath.Base(file), uid: reader, path: file, how: "read"},
			kind{name: "somebody else's to write: " + filepath.Base(file), uid: reader, path: file, how: "read and write"})
	}
	for i := range kinds {
		kinds[i].message = message
		kinds[i].holds = b.look(kinds[i], "-", "read", b.at(kinds[i].path), []string{"read"})[0].bytes
	}
	operations := []kind{
		{name: "idle", how: "read"},
		{name: "idle, walked over", how: "walk"},
		{name: "idle, to write", how: "read and write"},
		{name: "waiting", how: "wait", holds: signature, plainly: "read and write", asks: true},
		{name: "waiting, at its position", how: "wait here", holds: slices.Concat(message, signature), plainly: "plain here", asks: true},
		{name: "waiting in the drop box", before: "deposit", how: "read", holds: signature, mode: 0o600, asks: true},
		{name: "waiting in the drop box, walked over", before: "deposit", how: "walk", holds: signature, mode: 0o600, asks: true},
		{name: "answered", how: "ask", holds: signature, plainly: "read and write", asks: true},
		{name: "answered, at its position", how: "ask here", holds: slices.Concat(message, signature), plainly: "plain here", asks: true},
	}
	for _, o := range operations {
		o.path, o.uid, o.message, o.answer = key+"/sign", owner, message, signature
		kinds = append(kinds, o)
	}
	kinds = append(kinds,
		kind{name: "long, to write", how: "read and write", path: long + "/decrypt", uid: owner, message: ciphertext, answer: plaintext},
		kind{name: "long, answered", how: "ask", path: long + "/decrypt", uid: owner, message: ciphertext, answer: plaintext,
			holds: plaintext, plainly: "read and write", asks: true},
	)
	slots := []kind{
		{name: "slot, empty", before: "slot", how: "read"},
		{name: "slot, empty, to write", before: "slot", how: "read and write"},
		{name: "slot, written", before: "slot written", how: "read", holds: signature, asks: true},
		{name: "slot, answered", before: "slot written and answered", how: "read", holds: signature, asks: true},
	}
	for _, s := range slots {
		s.path, s.uid, s.mode, s.message, s.answer = key+"/sign.d", owner, 0o600, message, signature
		kinds = append(kinds, s)
	}
	parts := []kind{
		{name: "part, an input", before: "parts", how: "write", part: "message", mode: 0o600},
		{name: "part, an input, to read", before: "parts", how: "read", part: "message", mode: 0o600},
		{name: "part, an output, empty", before: "parts", how: "read", part: "result", mode: 0o400},
		{name: "part, an output, asked", before: "parts written", how: "read", part: "result", mode: 0o400,
			holds: []byte("valid\n"), asks: true},
		{name: "part, an output, answered", before: "parts written and answered", how: "read", part: "result", mode: 0o400,
			holds: []byte("valid\n"), asks: true},
	}
	for _, p := range parts {
		p.path, p.uid, p.message, p.signature, p.answer = key+"/verify.d", owner, message, signature, []byte("valid\n")
		kinds = append(kinds, p)
	}
	for _, dir := range []string{"", "providers/software", "providers/software/hash", key} {
		kinds = append(kinds, kind{name: "directory of rows: " + filepath.Base(dir), path: dir, uid: owner, how: "read"})
	}
	for _, dir := range []string{"keys", "providers", "providers/software/keys", key + "/sign.d", key + "/verify.d", key + "/verify.d/there"} {
		// slots end after two minutes
		kinds = append(kinds, kind{name: "directory of names: " + filepath.Base(dir), path: dir, uid: owner, how: "read",
			first: `mkdir -p $K/looked-at/verify.d/there && : >>$K/looked-at/sign.d/there`})
	}
	for _, link := range []string{"providers/default", "keys/alias"} {
		kinds = append(kinds, kind{name: "link: " + filepath.Base(link), path: link, uid: owner, how: "walk"})
	}
	for i := range kinds {
		if kinds[i].message == nil {
			kinds[i].message = message
		}
	}
	return kinds
}
