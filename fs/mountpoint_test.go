package fs

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The topmost of several mounts is found, on a folder whose name the kernel's table escapes.
func TestMountAt(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a b\tc\nd\\134e#")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if m, err := mountAt(dir); m != nil || err != nil {
		t.Errorf("before: %+v, %v", m, err)
	}
	for _, source := range []string{"below", "on top"} {
		if err := unix.Mount(source, dir, "tmpfs", 0, "size=4k"); err != nil {
			t.Skipf("this user cannot mount: %v", err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		if m, err := mountAt(dir); err != nil || m == nil || m.Source != source || m.FSType != "tmpfs" || mounter(m) != "" {
			t.Errorf("%s: %+v, %v", source, m, err)
		}
	}
}

func TestResolveMountpoint(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	real := filepath.Join(dir, "real")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("real", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"real", "link", "real/../link/", "./real"} {
		if got, err := ResolveMountpoint(filepath.Join(dir, name)); err != nil || got != real {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	t.Chdir(dir)
	if got, err := ResolveMountpoint("real"); err != nil || got != real {
		t.Errorf("relative: %q, %v", got, err)
	}
	for _, name := range []string{"none", "none/below"} {
		_, err := ResolveMountpoint(name)
		if e, ok := errors.AsType[*Error](err); !ok || e.Kind != KindMountpoint || !strings.HasPrefix(e.Hint, "mkdir -p") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestClearMountpoint(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o755); err != nil {
		t.Fatal(err)
	}
	detached := func() { t.Error("something was detached") }
	for name, want := range map[string]string{file: "is not a directory", dir: "is not empty"} {
		if err := clearMountpoint(name, detached); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := clearMountpoint(empty, detached); err != nil {
		t.Error(err)
	}
}

func TestUserAllowOther(t *testing.T) {
	file := filepath.Join(t.TempDir(), "fuse.conf")
	if userAllowOther(file) {
		t.Error("a missing file allows")
	}
	for text, want := range map[string]bool{
		"#user_allow_other\n":                      false,
		"mount_max = 3\n user_allow_other \n# end": true,
		"user_allow_others":                        false,
		"":                                         false,
	} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := userAllowOther(file); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// The service manager hears the state, on a socket with a path and on an abstract one.
func TestNotify(t *testing.T) {
	for _, name := range []string{filepath.Join(t.TempDir(), "notify"), "@parsecfs-test-" + t.Name()} {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Setenv("NOTIFY_SOCKET", name)
		if err := notify("READY=1"); err != nil {
			t.Fatal(err)
		}
		l.SetDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 64)
		n, err := l.Read(buf)
		if err != nil || string(buf[:n]) != "READY=1" {
			t.Errorf("%s: %q, %v", name, buf[:n], err)
		}
		l.Close()
	}
	t.Setenv("NOTIFY_SOCKET", "/no/such/socket")
	if notify("READY=1") == nil {
		t.Error("no error without a listener")
	}
	t.Setenv("NOTIFY_SOCKET", "")
	if err := notify("READY=1"); err != nil {
		t.Error(err)
	}
}
