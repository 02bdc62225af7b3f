package nodes_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// The two users of these tests.
const (
	anna = 2001
	bert = 2002
)

// asUser is Python as a user, who sees path and a second path. It says "ready" and waits for a line wherever it calls pause, and
// ends with a failed call's errno.
type asUser struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out io.ReadCloser
}

func python(t *testing.T, uid int, statement string, paths ...string) *asUser {
	t.Helper()
	// the system's: another one may be where the user cannot read
	args := append([]string{fmt.Sprintf("--reuid=%d", uid), fmt.Sprintf("--regid=%d", uid), "--clear-groups", "/usr/bin/python3", "-c",
		`import os, sys
path, *more = sys.argv[1:]
def pause():
	print("ready", flush=True)
	sys.stdin.readline()
try:
	` + statement + `
except OSError as e:
	os._exit(e.errno)
os._exit(0)
`}, paths...)
	u := &asUser{t: t, cmd: exec.Command("setpriv", args...)}
	u.cmd.Stderr = os.Stderr
	var err error
	if u.in, err = u.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if u.out, err = u.cmd.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := u.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = u.cmd.Process.Kill()
		_ = u.cmd.Wait()
	})
	return u
}

// paused waits until it pauses, resume lets it go on.
func (u *asUser) paused() {
	u.t.Helper()
	if _, err := io.ReadFull(u.out, make([]byte, len("ready\n"))); err != nil {
		u.t.Fatal(err)
	}
}

func (u *asUser) resume() { _, _ = io.WriteString(u.in, "\n") }

// ends gives the errno that it ended with.
func (u *asUser) ends() syscall.Errno {
	u.t.Helper()
	err := u.cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		u.t.Fatal(err)
	}
	return syscall.Errno(u.cmd.ProcessState.ExitCode())
}

// TestNameOfAnotherKey: who takes a name away takes it from the key that the kernel judged, and from no other that has got it
// since by a way that the kernel does not see.
func TestNameOfAnotherKey(t *testing.T) {
	for _, c := range []struct{ name, statement string }{
		{"rmdir", "os.stat(path); pause(); os.rmdir(path)"},
		{"rename", "os.stat(path); pause(); os.rename(path, more[0])"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var k *kim.KIM
			m := mount(t, func(o *nodes.Options) { k = o.KIM })
			ctx, p := t.Context(), k.Provider("software")
			old, err := p.CreateDraft(ctx, kim.Shared, "web", anna, anna, 0755)
			if err != nil {
				t.Fatal(err)
			}
			client := python(t, anna, c.statement, m.path("web"), m.path("moved"))
			client.paused()
			if err := k.Destroy(ctx, old.Number, 0); err != nil {
				t.Fatal(err)
			}
			other, err := p.CreateDraft(ctx, kim.Shared, "web", bert, bert, 0755)
			if err != nil {
				t.Fatal(err)
			}
			client.resume()
			if errno := client.ends(); errno != syscall.EPERM {
				t.Errorf("%s: %v, not %v", c.name, errno, syscall.EPERM)
			}
			standsAs(t, k, other, "web")
		})
	}
}

// TestGivenAwayMeanwhile: a key that is given away or renamed while an rmdir waits for the device stays.
func TestGivenAwayMeanwhile(t *testing.T) {
	for _, c := range []struct {
		name, as string
		change   func(ctx context.Context, k *kim.KIM, key kim.Key) error
		want     syscall.Errno
	}{
		{"given away", "web", func(ctx context.Context, k *kim.KIM, key kim.Key) error {
			return k.SetOwner(ctx, key.Number, anna, bert, bert)
		}, syscall.EPERM},
		{"renamed", "www", func(ctx context.Context, k *kim.KIM, key kim.Key) error {
			return k.Rename(ctx, key.Number, kim.Shared, "www")
		}, syscall.ENOENT},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			var k *kim.KIM
			m, device := mountSlow(t, func(o *nodes.Options) { k = o.KIM })
			m.key("web", "ecdsa-p256-sha256")
			if err := filepath.WalkDir(m.path("web"), func(path string, _ os.DirEntry, err error) error {
				return errors.Join(err, chownFile(path))
			}); err != nil {
				t.Fatal(err)
			}
			key, err := k.Provider("software").Lookup(t.Context(), kim.Shared, "web")
			if err != nil {
				t.Fatal(err)
			}
			release := device.hold(t)
			client := python(t, anna, "os.rmdir(path)", m.path("web"))
			<-device.waiting
			if err := c.change(t.Context(), k, key); err != nil {
				t.Fatal(err)
			}
			release()
			if errno := client.ends(); errno != c.want {
				t.Errorf("rmdir: %v, not %v", errno, c.want)
			}
			standsAs(t, k, key, c.as)
		})
	}
}

func chownFile(path string) error {
	err := os.Chown(path, anna, anna)
	if errors.Is(err, syscall.EPERM) { // a directory of slots
		return nil
	}
	return err
}

// standsAs checks that a name leads to a key.
func standsAs(t *testing.T, k *kim.KIM, key kim.Key, name string) {
	t.Helper()
	found, err := k.Provider("software").Lookup(context.Background(), kim.Shared, name)
	switch {
	case psa.StatusOf(err) == psa.StatusDoesNotExist:
		t.Errorf("the key is gone")
	case err != nil:
		t.Error(err)
	case found.Number != key.Number:
		t.Errorf("%s is key %d, not %d", name, found.Number, key.Number)
	}
}
