package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"

	"golang.org/x/sys/unix"
)

// SIGTERM, SIGINT and a lost terminal unmount and end with 0.
func TestSignals(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{unix.SIGTERM, unix.SIGINT, unix.SIGHUP} {
		t.Run(unix.SignalName(signal), func(t *testing.T) {
			t.Parallel()
			m := parsecfstest.Mount(t, parsecfstest.Options{})
			if !parsecfstest.IsMounted(t, m.Dir) {
				t.Fatal("said that it had mounted, but has not")
			}
			if err := m.Process().Signal(signal); err != nil {
				t.Fatal(err)
			}
			if code := m.Wait(); code != 0 {
				t.Errorf("ended with %d", code)
			}
			if parsecfstest.IsMounted(t, m.Dir) {
				t.Error("left its mount behind")
			}
		})
	}
}

// A file that is open when the daemon ends does not keep it: the mount is detached, and the file fails at once.
func TestStopWhileOpen(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	f, err := os.Open(filepath.Join(m.Dir, "version"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if code := m.Stop(); code != 0 {
		t.Errorf("ended with %d", code)
	}
	if parsecfstest.IsMounted(t, m.Dir) {
		t.Error("left its mount behind")
	}
	if _, err := unix.Pread(int(f.Fd()), make([]byte, 1), 0); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("reading on: %v", err)
	}
}

// A copy of the mount in another mount namespace, as containers have them, does not keep the daemon: the copy is dead when it
// has ended, and the state is free.
func TestStopWithACopyOfTheMount(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	// cat ends with its input, and so with the test.
	copied := exec.Command("unshare", "--mount", "--propagation", "private", "sh", "-c", "cat "+m.Dir+"/version && exec cat")
	input, err := copied.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	output, err := copied.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := copied.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		input.Close()
		copied.Wait()
	}()
	if n, err := output.Read(make([]byte, 64)); n == 0 {
		t.Skipf("this user can make no mount namespace: %v", err)
	}
	if code := m.Stop(); code != 0 {
		t.Errorf("ended with %d", code)
	}
	if parsecfstest.IsMounted(t, m.Dir) {
		t.Error("left its mount behind")
	}
	in := fmt.Sprintf("/proc/%d/root%s/version", copied.Process.Pid, m.Dir)
	if _, err := os.ReadFile(in); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("the copy is read: %v", err)
	}
	if err := m.Start(); err != nil {
		t.Error(err)
	}
}

// The service manager hears READY once the tree answers, and STOPPING when it ends.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	name := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	heard := func() string {
		l.SetReadDeadline(time.Now().Add(30 * time.Second))
		buf := make([]byte, 4096)
		n, err := l.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{Env: []string{"NOTIFY_SOCKET=" + name}})
	if got, want := heard(), "READY=1\nSTATUS=mounted on "+m.Dir; got != want {
		t.Errorf("heard %q, want %q", got, want)
	}
	m.Stop()
	if got := heard(); got != "STOPPING=1" {
		t.Errorf("heard %q", got)
	}
}

// An abort through fusectl ends the daemon with an error, so that a service manager starts it again, and leaves no
// dead mount.
func TestAbort(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	var st unix.Stat_t
	if err := unix.Stat(m.Dir, &st); err != nil {
		t.Fatal(err)
	}
	control := t.TempDir()
	if err := unix.Mount("fusectl", control, "fusectl", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(control, unix.MNT_DETACH)
	file := filepath.Join(control, strconv.Itoa(int(unix.Minor(st.Dev))), "abort")
	if err := os.WriteFile(file, []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	if code := m.Wait(); code != exitFUSE {
		t.Errorf("ended with %d, want %d:\n%s", code, exitFUSE, m.Log())
	}
	if parsecfstest.IsMounted(t, m.Dir) {
		t.Error("left its mount behind")
	}
}

// killed and restarted, the daemon is back on the same mountpoint.
func TestRestart(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	m.Kill()
	var st unix.Statfs_t
	if err := unix.Statfs(m.Dir, &st); !errors.Is(err, unix.ENOTCONN) {
		t.Errorf("a dead mount says %v", err)
	}
	m.Restart()
	if _, err := os.Stat(filepath.Join(m.Dir, "version")); err != nil {
		t.Error(err)
	}
}

// A kernel that limits requests gets no operation that takes longer. The limit here is one that disturbs no other test.
func TestRequestTimeout(t *testing.T) {
	parsecfstest.RequireFUSE(t)
	const sysctl = "/proc/sys/fs/fuse/max_request_timeout"
	before, err := os.ReadFile(sysctl)
	if errors.Is(err, os.ErrNotExist) {
		t.Skip("this kernel has no limit for requests")
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(sysctl, []byte("60000"), 0); err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile(sysctl, before, 0)
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: `
[core_settings]
generate_timeout = "24h"
[[key_manager]]
name = "kim"
manager_type = "SQLite"
[[provider]]
provider_type = "Software"
`})
	m.Stop()
	want := fmt.Sprintf("generate_timeout is lowered to %v", 59999*time.Second)
	if !strings.Contains(m.Log(), want) {
		t.Errorf("no %q in\n%s", want, m.Log())
	}
	if strings.Contains(m.Log(), "operation_timeout") {
		t.Errorf("operation_timeout is below the limit:\n%s", m.Log())
	}
}
