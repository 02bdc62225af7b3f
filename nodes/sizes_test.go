package nodes_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestNobodyMakesAFileLarger: what somebody writes, wherever, shows to nobody else, and to themselves within bounds.
func TestNobodyMakesAFileLarger(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	verify := m.path("k", "verify")
	other := user(t, `
fds = [os.open(sys.argv[1], os.O_RDWR | flags) for flags in (0, os.O_APPEND, 0)]
os.pwrite(fds[0], b"x", 0)
for _ in range(3):
    os.write(fds[1], b"x")
os.pwrite(fds[2], b"x", 1 << 50)
print(max(os.fstat(fd).st_size for fd in fds), flush=True)
sys.stdin.readline()`, verify)
	if size := other.line(); size > 1<<20 {
		t.Errorf("whoever wrote sees %d bytes", size)
	}
	for range 3 {
		if size := sizeOf(t, verify); size != 0 {
			t.Errorf("others see %d bytes", size)
		}
	}
	if out, err := exec.Command("prlimit", "--fsize=16777216", "tar", "-cf", filepath.Join(t.TempDir(), "tar"), "-C", m.path(),
		".").CombinedOutput(); err != nil {
		t.Errorf("tar: %v: %s", err, out)
	}
	other.end()
}

// TestSizesOfAnswers: an answer shows its true length to who asked for it, and to nobody else.
func TestSizesOfAnswers(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	m.key("a", "aes-256-gcm")
	sign, slot := m.path("k", "sign"), m.path("k", "sign.d", "x")
	if err := os.Chmod(sign, 0666); err != nil {
		t.Fatal(err)
	}
	want := func(path string, size int64) {
		t.Helper()
		if got := sizeOf(t, path); got != size {
			t.Errorf("%s shows %d bytes, want %d", path, got, size)
		}
		out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "stat", "-c%s", path).CombinedOutput()
		if err == nil && string(out) != "0\n" {
			t.Errorf("%s shows %s bytes to others", path, out)
		}
	}
	waits := func(path string) {
		t.Helper()
		if got := sizeOf(t, path); got < 1<<10 || got > 200<<10 {
			t.Errorf("%s shows %d bytes while it is not answered", path, got)
		}
	}
	want(sign, 0)
	f := m.open("k", "sign")
	for range 2 { // from a position further on, the second time
		if _, err := f.WriteString("message"); err != nil {
			t.Fatal(err)
		}
		waits(sign)
		if answer, err := read(f); err != nil || len(answer) != 64 {
			t.Fatal(len(answer), err)
		}
		want(sign, int64(len("message"))+64)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}

	if err := write(slot, os.O_WRONLY|os.O_CREATE, "message"); err != nil {
		t.Fatal(err)
	}
	waits(slot)
	if got := m.get(slot); len(got) != 64 {
		t.Fatal(len(got))
	}
	want(slot, 64)
	if out, err := exec.Command("wc", "-c", slot).CombinedOutput(); err != nil || !strings.HasPrefix(string(out), "64 ") {
		t.Errorf("wc -c: %s", out)
	}
	parts := m.path("a", "encrypt.d", "x")
	if err := os.Mkdir(parts, 0700); err != nil {
		t.Fatal(err)
	}
	want(filepath.Join(parts, "ciphertext"), 0)
	m.put(filepath.Join(parts, "plaintext"), strings.Repeat("p", 100<<10))
	want(filepath.Join(parts, "plaintext"), 0)
	waits(filepath.Join(parts, "ciphertext"))
	if got := m.get(filepath.Join(parts, "nonce")); len(got) != 12 {
		t.Fatal(len(got))
	}
	want(filepath.Join(parts, "nonce"), 12)
	want(filepath.Join(parts, "ciphertext"), 100<<10+16)
}

// TestStatsBesideReaders: whoever looks at a file all the time does not make anybody's sendfile(2) end with nothing, and what
// becomes of its attributes meanwhile holds.
func TestStatsBesideReaders(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	hash := filepath.Join(m.dir, "providers/software/hash/sha256")
	other := user(t, `
import threading
ended = []
def look():
    while not ended:
        os.stat(sys.argv[1])
        os.close(os.open(sys.argv[1], os.O_WRONLY | os.O_TRUNC))
t = threading.Thread(target=look)
t.start()
print(0, flush=True)
sys.stdin.readline()
ended.append(1)
t.join()`, hash)
	other.line()
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for i := range 300 {
		f, err := os.OpenFile(hash, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(strings.Repeat("x", 1+i)); err != nil {
			t.Fatal(err)
		}
		if n, err := unix.Sendfile(int(out.Fd()), int(f.Fd()), nil, 1<<20); err == nil || n > 0 {
			t.Fatalf("sendfile gave %d bytes, %v", n, err)
		}
		if answer, err := read(f); err != nil || len(answer) != 32 {
			t.Fatal(len(answer), err)
		}
		f.Close()
	}
	other.end()

	// an ACL that is set while a request waits
	waiting := m.open("k", "sign")
	if _, err := waiting.WriteString("message"); err != nil {
		t.Fatal(err)
	}
	sign := m.path("k", "sign")
	opens := func() error {
		return exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", ": <>"+sign).Run()
	}
	for range 3 {
		if opens() == nil {
			t.Fatal("another user opened sign")
		}
		if out, err := exec.Command("setfacl", "-m", "u:65534:rw", sign).CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
		if err := opens(); err != nil {
			t.Errorf("whom an ACL names may not open sign: %v", err)
		}
		if out, err := exec.Command("setfacl", "-b", sign).CombinedOutput(); err != nil {
			t.Fatal(string(out))
		}
	}
	if answer, err := read(waiting); err != nil || len(answer) != 64 {
		t.Fatal(len(answer), err)
	}
}

func sizeOf(t *testing.T, path string) int64 {
	t.Helper()
	var s syscall.Stat_t
	if err := syscall.Stat(path, &s); err != nil {
		t.Fatal(err)
	}
	return s.Size
}

// another is a program of another user.
type another struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Closer
	out *bufio.Reader
}

func user(t *testing.T, program string, args ...string) *another {
	t.Helper()
	cmd := exec.Command("setpriv", append([]string{"--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c",
		"import os, sys\n" + program}, args...)...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	u := &another{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(u.end)
	return u
}

// line waits for what the program says.
func (u *another) line() (n int64) {
	u.t.Helper()
	if _, err := fmt.Fscan(u.out, &n); err != nil {
		u.t.Fatal(err)
	}
	return n
}

func (u *another) end() {
	_ = u.in.Close()
	_ = u.cmd.Wait()
}

// TestFarWritesChangeNoOthersSize: where somebody writes beyond all that a file can hold, others still copy whole answers.
func TestFarWritesChangeNoOthersSize(t *testing.T) {
	t.Parallel()
	for name, open := range map[string]string{"both": "os.O_RDWR", "write alone": "os.O_WRONLY"} {
		for _, off := range []string{"1 << 50", "1 << 61", "(1 << 63) - 4096"} {
			t.Run(name+" "+off, func(t *testing.T) {
				m := mount(t, nil)
				hash := filepath.Join(m.dir, "providers/software/hash/sha256")
				other := user(t, "fd = os.open(sys.argv[1], "+open+")\ntry: os.pwrite(fd, b'x', "+off+")\nexcept OSError: pass\nprint(0, flush=True)\nsys.stdin.readline()", hash)
				other.line()
				for range 3 {
					sizeOf(t, hash)
					f, err := os.OpenFile(hash, os.O_RDWR, 0)
					if err != nil {
						t.Fatal(err)
					}
					if _, err := f.WriteString("message"); err != nil {
						t.Fatal(err)
					}
					r, w, err := os.Pipe()
					if err != nil {
						t.Fatal(err)
					}
					if n, err := unix.Sendfile(int(w.Fd()), int(f.Fd()), nil, 1<<16); n == 0 && err == nil {
						t.Error("sendfile ended well with nothing")
					}
					r.Close()
					w.Close()
					f.Close()
				}
				other.end()
			})
		}
	}
}

// TestEndOfASlot: SEEK_END is where the answer ends.
func TestEndOfASlot(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	slot := m.path("k", "sign.d", "x")
	if err := write(slot, os.O_WRONLY|os.O_CREATE, "message"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(slot); err != nil || len(b) != 64 {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	var end int64
	for deadline := time.Now().Add(5 * time.Second); end != 64 && time.Now().Before(deadline); {
		f, err := os.Open(slot) // the RELEASE of the one before comes after its close
		if err != nil {
			t.Fatal(err)
		}
		if end, err = f.Seek(0, io.SeekEnd); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	if end != 64 {
		t.Errorf("the end is at %d", end)
	}
}

// TestAgainAfterALongMessage: an answer is read again, and the next request begun, as after a short one.
func TestAgainAfterALongMessage(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	for what, again := range map[string]func(*os.File) error{
		"seek":     func(f *os.File) error { _, err := f.Seek(0, io.SeekStart); return err },
		"truncate": func(f *os.File) error { return f.Truncate(0) },
	} {
		f := m.open("k", "sign")
		if _, err := f.WriteString(strings.Repeat("m", 100_000)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if a, err := read(f); err != nil || len(a) != 64 {
				t.Errorf("%s: %d bytes, %v", what, len(a), err)
			}
			if err := again(f); err != nil {
				t.Fatal(err)
			}
		}
		f.Close()
	}
}
