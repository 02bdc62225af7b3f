// Package transport tests how requests come: by io_uring where the kernel offers it, and by /dev/fuse where it does not.
package transport

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/fs/uring"
)

// fellBack is the line that says so.
const fellBack = "requests come by /dev/fuse, not by io_uring"

func requireURing(t *testing.T) {
	t.Helper()
	parsecfstest.RequireFUSE(t)
	if err := uring.Offered(); err != nil {
		t.Skip(err)
	}
}

// refuse is a wrapper that has the kernel refuse a system call to the daemon.
func refuse(t *testing.T, call, errno string) []string {
	t.Helper()
	script, err := filepath.Abs("testdata/refuse.py")
	if err != nil {
		t.Fatal(err)
	}
	return []string{"python3", script, call, errno}
}

// sign makes a key and signs with it.
func sign(t *testing.T, m *parsecfstest.Mounted) {
	t.Helper()
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	parsecfstest.Generate(t, key, "ecdsa-p256-sha256")
	if _, err := parsecfstest.Ask(filepath.Join(key, "sign"), []byte("hello")); err != nil {
		t.Error(err)
	}
}

// transportOf is what parsecfs status says of how requests come.
func transportOf(t *testing.T, m *parsecfstest.Mounted) string {
	t.Helper()
	out, stderr, code := parsecfstest.Run(t, "status", "--json", "--state-dir", m.StateDir)
	var s struct{ Mountpoint, Transport string }
	if err := json.Unmarshal([]byte(out), &s); err != nil || code != 0 || s.Mountpoint != m.Dir {
		t.Fatalf("status: %v, exit status %d: %s%s", err, code, out, stderr)
	}
	plain, _, _ := parsecfstest.Run(t, "status", "--state-dir", m.StateDir)
	if want := "mountpoint\t" + m.Dir + "\ntransport\t" + s.Transport + "\nprovider\tsoftware\tready\n"; plain != want {
		t.Errorf("status says %q, not %q", plain, want)
	}
	return s.Transport
}

// Where io_uring is refused, at whatever point, a mount is by the device, with one line in the log, and nobody who was there before
// it was ready hangs.
func TestFallback(t *testing.T) {
	t.Parallel()
	requireURing(t)
	for _, refused := range [][2]string{{"io_uring_setup", "EPERM"}, {"io_uring_setup", "ENOSYS"}, {"io_uring_enter", "EPERM"}} {
		t.Run(refused[0]+" "+refused[1], func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(parsecfstest.TempDir(t), "mnt")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			stop := make(chan struct{})
			var clients sync.WaitGroup
			for range 4 {
				clients.Go(func() {
					for {
						var st unix.Stat_t
						_ = unix.Stat(filepath.Join(dir, "README"), &st)
						select {
						case <-stop:
							return
						default:
						}
					}
				})
			}
			m := parsecfstest.Mount(t, parsecfstest.Options{Dir: dir, Wrapper: refuse(t, refused[0], refused[1]),
				Args: []string{"-o", "transport=auto"}})
			close(stop)
			clients.Wait()
			sign(t, m)
			if got := transportOf(t, m); got != "device" {
				t.Errorf("status says %q", got)
			}
			if n := strings.Count(m.Log(), fellBack); n != 1 {
				t.Errorf("%d lines say that the mount is by the device:\n%s", n, m.Log())
			}
			if code := m.Stop(); code != 0 {
				t.Errorf("exit status %d", code)
			}
		})
	}
}

// Whoever insists on io_uring is told why it does not work, and nothing is mounted.
func TestInsist(t *testing.T) {
	t.Parallel()
	requireURing(t)
	for _, call := range []string{"io_uring_setup", "io_uring_enter"} {
		t.Run(call, func(t *testing.T) {
			t.Parallel()
			base := parsecfstest.TempDir(t)
			dir := filepath.Join(base, "mnt")
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			state := filepath.Join(base, "state")
			argv := append(refuse(t, call, "EPERM"), parsecfstest.Path(t), "mount", "--state-dir", state, "-o", "transport=uring", dir)
			out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() == 0 {
				t.Errorf("%v", err)
			}
			for _, want := range []string{"transport is uring, which does not work here", call, "hint: echo Y > " + uring.Parameter} {
				if !strings.Contains(string(out), want) {
					t.Errorf("it does not say %q:\n%s", want, out)
				}
			}
			if parsecfstest.IsMounted(t, dir) {
				t.Error("something is mounted")
			}
		})
	}
}

// A mount over io_uring ends as one by the device does, under load: by SIGTERM, by somebody's umount, by an abort, by kill -9.
func TestEnds(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	for _, transport := range []string{"device", "uring"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			if transport == "uring" {
				requireURing(t)
			}
			ends(t, transport)
		})
	}
}

func ends(t *testing.T, transport string) {
	for _, end := range []struct {
		name string
		do   func(t *testing.T, m *parsecfstest.Mounted) error
		code int
		says string
	}{
		{"SIGTERM", func(_ *testing.T, m *parsecfstest.Mounted) error { return m.Process().Signal(syscall.SIGTERM) }, 0, "draining"},
		{"umount -l", func(_ *testing.T, m *parsecfstest.Mounted) error { return unix.Unmount(m.Dir, unix.MNT_DETACH) }, 0,
			"another program unmounted"},
		{"abort", func(t *testing.T, m *parsecfstest.Mounted) error { return abort(t, m.Dir) }, 6, "the kernel aborted the connection"},
		{"SIGKILL", func(_ *testing.T, m *parsecfstest.Mounted) error { return m.Process().Kill() }, -1, ""},
	} {
		t.Run(end.name, func(t *testing.T) {
			t.Parallel()
			m := parsecfstest.Mount(t, parsecfstest.Options{Args: []string{"-o", "transport=" + transport}})
			key := filepath.Join(m.Dir, "providers/software/keys/k")
			parsecfstest.Generate(t, key, "ecdsa-p256-sha256")
			if got := transportOf(t, m); got != transport {
				t.Errorf("status says %q", got)
			}
			began, ended := make(chan error, 8), make(chan struct{}, 8)
			for range cap(ended) {
				go func() {
					defer func() { ended <- struct{}{} }()
					f, err := os.OpenFile(filepath.Join(key, "sign"), os.O_RDWR, 0)
					if err == nil {
						defer f.Close()
					}
					for first := true; err == nil; first = false {
						if _, err = f.WriteAt([]byte("hello"), 0); err == nil {
							_, err = f.ReadAt(make([]byte, 10), 0)
						}
						if first {
							began <- err
						}
					}
				}()
			}
			for range cap(began) {
				if err := <-began; err != nil {
					t.Fatal(err)
				}
			}
			if err := end.do(t, m); err != nil {
				t.Fatal(err)
			}
			if code := m.Wait(); code != end.code {
				t.Errorf("exit status %d, not %d:\n%s", code, end.code, m.Log())
			}
			if !strings.Contains(m.Log(), end.says) {
				t.Errorf("it does not say %q:\n%s", end.says, m.Log())
			}
			late := time.After(20 * time.Second)
			for i := range cap(ended) {
				select {
				case <-ended:
				case <-late:
					t.Fatalf("%d clients hang", cap(ended)-i)
				}
			}
		})
	}
}

// abort is what a user does with /sys/fs/fuse/connections.
func abort(t *testing.T, dir string) error {
	control := t.TempDir()
	if err := unix.Mount("none", control, "fusectl", 0, ""); err != nil {
		return err
	}
	defer func() { _ = unix.Unmount(control, unix.MNT_DETACH) }()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); f[4] == dir {
			_, minor, _ := strings.Cut(f[2], ":")
			return os.WriteFile(filepath.Join(control, minor, "abort"), []byte("1"), 0)
		}
	}
	return fmt.Errorf("%s is not mounted", dir)
}
