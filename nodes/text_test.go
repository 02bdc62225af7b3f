package nodes_test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTextsAreFiles: a text is the same by read(2), a map, sendfile(2) and splice(2), and as long as stat(2) says.
func TestTextsAreFiles(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	_, err := os.ReadFile(m.path("k", "sign"))
	wantErrno(t, err, syscall.ENODATA) // so that there is a last_error
	provider := filepath.Join(m.dir, "providers/software")
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, path := range []string{filepath.Join(m.dir, "README"), filepath.Join(m.dir, "version"), filepath.Join(m.dir, "last_error"),
		filepath.Join(provider, "info"), filepath.Join(provider, "status"), filepath.Join(provider, "capabilities"),
		filepath.Join(provider, "capabilities.json"),
		m.path("k", "attributes"), m.path("k", "last_error"), m.path("k", "public.pem"), m.path("k", "public.der"), m.path("k", "public.ssh"),
		m.path("k", "public.jwk"), m.path("k", "capabilities")} {
		want := m.get(path)
		size := sizeOf(t, path)
		if size == 0 || size != int64(len(want)) {
			t.Errorf("%s shows %d bytes and has %d", path, size, len(want))
			continue
		}
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, flags := range []string{"MAP_SHARED", "MAP_PRIVATE"} {
			if got, err := mapped(path, flags); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s is mapped to %d bytes of %d, %v: %s", path, len(got), len(want), err, got)
			}
		}
		if err := out.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Seek(0, 0); err != nil {
			t.Fatal(err)
		}
		for {
			n, err := unix.Sendfile(int(out.Fd()), int(f.Fd()), nil, 1<<20)
			if err != nil {
				t.Fatalf("%s: sendfile: %v", path, err)
			}
			if n == 0 {
				break
			}
		}
		if sent := m.get(out.Name()); !bytes.Equal(sent, want) {
			t.Errorf("%s: sendfile gave %d bytes of %d", path, len(sent), len(want))
		}
		f.Close()
	}
	for _, walk := range []string{"git hash-object --no-filters $(find . -maxdepth 1 -type f -size +0 ! -name random)",
		"ag -c zzzz keys/k README || true", "rsync -a keys/k $0"} {
		cmd := exec.Command("bash", "-ec", walk, t.TempDir())
		cmd.Dir = provider
		if said, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", walk, err, said)
		}
	}
}

// mapped is what a program sees that maps a file: not this one, which would wait for itself.
func mapped(path, flags string) ([]byte, error) {
	return exec.Command("/usr/bin/python3", "-c", `
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
sys.stdout.buffer.write(mmap.mmap(fd, os.fstat(fd).st_size, getattr(mmap, sys.argv[2]), mmap.PROT_READ)[:])`, path, flags).CombinedOutput()
}

// TestTextsChange: who opens a text sees it as it is now, by whatever way and however long it was.
func TestTextsChange(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	attributes := m.path("k", "attributes")
	for i := range 8 {
		allow := fmt.Sprintf("allow_destroy = %v\n", i%2 == 0)
		m.put(attributes, allow)
		if got, err := mapped(attributes, "MAP_PRIVATE"); err != nil || !bytes.Contains(got, []byte(allow)) || bytes.IndexByte(got, 0) >= 0 {
			t.Fatalf("after %q the map shows %v\n%s", allow, err, got)
		}
		if got := m.get(attributes); !bytes.Contains(got, []byte(allow)) {
			t.Fatalf("after %q a read gives\n%s", allow, got)
		}
	}
	for _, name := range []string{"a-much-longer-name", "k"} {
		old := list(t, m.path())
		if err := os.Rename(m.path(old), m.path(name)); err != nil {
			t.Fatal(err)
		}
		if line := string(m.get(m.path(name, "public.ssh"))); !strings.HasSuffix(line, " "+name+"\n") {
			t.Errorf("public.ssh says %q", line)
		}
	}
}

// TestLastErrorIsItsReaders: by no way does somebody see another one's failures, whoever looks at the same time.
func TestLastErrorIsItsReaders(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	for _, path := range []string{filepath.Join(m.dir, "last_error"), m.path("k", "last_error")} {
		if err := os.Chmod(m.path("k", "sign"), 0666); err != nil {
			t.Fatal(err)
		}
		other := user(t, `
import mmap, threading
def fail():
    try:
        os.read(os.open(sys.argv[2], os.O_RDWR), 1)
    except OSError:
        pass
fail()
ended = []
wrong = [0]
looks = [0]
def look():
    while not ended:
        with open(sys.argv[1], "rb") as f:
            size = os.fstat(f.fileno()).st_size
            if size:
                with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as b:
                    wrong[0] += b"ROOT" in b[:] or b"sign" not in b[:]
            else:
                wrong[0] += 1
            text = f.read()
            wrong[0] += b"ROOT" in text or b"sign" not in text
            looks[0] += 1
t = threading.Thread(target=look)
t.start()
print(0, flush=True)
sys.stdin.readline()
ended.append(1)
t.join()
print(wrong[0] if looks[0] > 20 else 1000, flush=True)`, path, m.path("k", "sign"))
		other.line()
		// a failure of root's, of this key
		wantErrno(t, os.Remove(m.path("k", "attributes")), syscall.EPERM)
		if err := put(m.path("k", "attributes"), "units = \"ROOT\"\n"); err == nil {
			t.Fatal("that was taken")
		}
		for range 8 {
			for way, look := range map[string]func() ([]byte, error){
				"a map": func() ([]byte, error) { return mapped(path, "MAP_SHARED") }, "read(2)": func() ([]byte, error) { return os.ReadFile(path) }} {
				if b, err := look(); err != nil || !bytes.Contains(b, []byte("attributes")) || bytes.Contains(b, []byte("k/sign\t")) {
					t.Fatalf("root sees by %s, %v:\n%s", way, err, b)
				}
			}
		}
		_ = other.in.Close()
		if wrong := other.line(); wrong != 0 {
			t.Errorf("%s was wrong %d times for another user", path, wrong)
		}
		other.end()
	}
	// an O_PATH that was handed over leads to its opener's
	fd, err := unix.Open(filepath.Join(m.dir, "last_error"), unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "last_error")
	defer f.Close()
	cmd := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "cat", "/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{f}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "Stale") {
		t.Errorf("another user reads through O_PATH: %q, %v", out, err)
	}
}
