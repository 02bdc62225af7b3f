package providers_test

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const stranger = 61001

// TestTrusted: a file is trusted where nobody else owns it or may write it, nor anything on the way to it.
func TestTrusted(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes files of other users")
	}
	for _, c := range []struct {
		name  string
		spoil func(t *testing.T, dir string) // of dir/a/b/file
		path  string                         // below dir
		says  string                         // what is wrong; "" is nothing
	}{
		{"all is ours", func(*testing.T, string) {}, "a/b/file", ""},
		{"a file that all may read", func(t *testing.T, dir string) { chmod(t, dir+"/a/b/file", 0o644) }, "a/b/file", ""},
		{"a file of another", func(t *testing.T, dir string) { chown(t, dir+"/a/b/file", stranger) }, "a/b/file", "user 61001 owns "},
		{"a file that all may write", func(t *testing.T, dir string) { chmod(t, dir+"/a/b/file", 0o666) }, "a/b/file", "users other than its owner can write to "},
		{"a file that its group may write", func(t *testing.T, dir string) { chmod(t, dir+"/a/b/file", 0o660) }, "a/b/file", "users other than its owner can write to "},
		{"a file that one more may write", func(t *testing.T, dir string) { setfacl(t, "u:61001:rw", dir+"/a/b/file") }, "a/b/file", "users other than its owner can write to "},
		{"a file that one more may read", func(t *testing.T, dir string) { setfacl(t, "u:61001:r", dir+"/a/b/file") }, "a/b/file", ""},
		{"a directory of another", func(t *testing.T, dir string) { chown(t, dir+"/a/b", stranger) }, "a/b/file", "/a/b and could replace "},
		{"a directory above, of another", func(t *testing.T, dir string) { chown(t, dir+"/a", stranger) }, "a/b/file", "/a and could replace "},
		{"a directory that all may write in", func(t *testing.T, dir string) { chmod(t, dir+"/a/b", 0o777) }, "a/b/file", "users other than its owner can write to "},
		{"a directory above, that all may write in", func(t *testing.T, dir string) { chmod(t, dir+"/a", 0o777) }, "a/b/file", "users other than its owner can write to "},
		{"a sticky directory", func(t *testing.T, dir string) { chmod(t, dir+"/a/b", 0o777|fs.ModeSticky) }, "a/b/file", ""},
		{"a sticky directory itself", func(t *testing.T, dir string) { chmod(t, dir+"/a/b", 0o777|fs.ModeSticky) }, "a/b", "users other than its owner can write to "},
		{"a sticky directory of another", func(t *testing.T, dir string) {
			chmod(t, dir+"/a/b", 0o777|fs.ModeSticky)
			chown(t, dir+"/a/b", stranger)
		}, "a/b/file", "user 61001 owns "},
		{"another's file in a sticky directory", func(t *testing.T, dir string) {
			chmod(t, dir+"/a/b", 0o777|fs.ModeSticky)
			chown(t, dir+"/a/b/file", stranger)
		}, "a/b/file", "user 61001 owns "},
		{"a link", func(t *testing.T, dir string) { symlink(t, "a/../a/b/file", dir+"/link") }, "link", ""},
		{"a link with a whole path", func(t *testing.T, dir string) { symlink(t, dir+"/a/b", dir+"/link") }, "link/file", ""},
		{"another's link", func(t *testing.T, dir string) {
			symlink(t, "a/b/file", dir+"/link")
			if err := os.Lchown(dir+"/link", stranger, stranger); err != nil {
				t.Fatal(err)
			}
		}, "link", "user 61001 owns "},
		{"a link in a directory of another's", func(t *testing.T, dir string) {
			if err := os.Mkdir(dir+"/theirs", 0o755); err != nil {
				t.Fatal(err)
			}
			symlink(t, "../a/b/file", dir+"/theirs/link")
			chown(t, dir+"/theirs", stranger)
		}, "theirs/link", "/theirs and could replace "},
		{"a link to a directory of another's", func(t *testing.T, dir string) {
			symlink(t, "a/b/file", dir+"/link")
			chown(t, dir+"/a/b", stranger)
		}, "link", "/a/b and could replace "},
		{"links in a circle", func(t *testing.T, dir string) {
			symlink(t, "there", dir+"/here")
			symlink(t, "here", dir+"/there")
		}, "here", "too many levels of symbolic links"},
		{"a file as a directory", func(*testing.T, string) {}, "a/b/file/x", "not a directory"},
		{"a missing file", func(*testing.T, string) {}, "a/b/none", "no such file"},
		{"a missing file in a directory of another's", func(t *testing.T, dir string) { chown(t, dir+"/a/b", stranger) }, "a/b/none", "user 61001 owns "},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.MkdirAll(dir+"/a/b", 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dir+"/a/b/file", []byte("text"), 0o600); err != nil {
				t.Fatal(err)
			}
			c.spoil(t, dir)
			path := filepath.Join(dir, c.path)
			err := providers.CheckTrusted(path)
			if c.says == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Fatalf("%v, not %q", err, c.says)
			}
			if psa.StatusOf(err) == psa.StatusNotPermitted && psa.HintOf(err) == "" {
				t.Error("no hint: ", err)
			}
			f, opening := providers.OpenTrusted(path, os.O_RDONLY)
			if (opening == nil) != (err == nil) {
				t.Fatal("opening it says ", opening)
			}
			if opening != nil {
				return
			}
			defer f.Close()
			if text, err := io.ReadAll(f); string(text) != "text" {
				t.Fatal(string(text), err)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode fs.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

func symlink(t *testing.T, to, path string) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
}

func setfacl(t *testing.T, entry, path string) {
	t.Helper()
	if out, err := exec.Command("setfacl", "-m", entry, path).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

// TestTrustedPipe: what a shell's <(...) stands for can be read, where our own user made it.
func TestTrustedPipe(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		io.WriteString(w, "text")
		w.Close()
	}()
	f, err := providers.OpenTrusted("/proc/self/fd/"+strconv.Itoa(int(r.Fd())), os.O_RDONLY)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if text, err := io.ReadAll(f); string(text) != "text" {
		t.Fatal(string(text), err)
	}
}

// TestMakeTrustedDir: what is missing is made for us alone, and nothing is made below another's.
func TestMakeTrustedDir(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for range 2 {
		if err := providers.MakeTrustedDir(dir + "/x/y"); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"/x", "/x/y"} {
		info, err := os.Stat(dir + d)
		if err != nil || !info.IsDir() || info.Mode().Perm() != 0o700 {
			t.Errorf("%v, %v", info, err)
		}
	}
	if err := os.WriteFile(dir+"/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := providers.MakeTrustedDir(dir + "/file"); !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("the rest needs root: it makes files of other users")
	}
	chown(t, dir+"/x", stranger)
	for _, d := range []string{"/x", "/x/y", "/x/new"} {
		if err := providers.MakeTrustedDir(dir + d); psa.StatusOf(err) != psa.StatusNotPermitted {
			t.Errorf("%s: %v", d, err)
		}
	}
	if _, err := os.Stat(dir + "/x/new"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("a directory was made below another's: ", err)
	}
}
