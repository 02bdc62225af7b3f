package transaction

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
)

// TestWaitForTheDead: whoever is to be ended by a signal of which the kernel told nobody is not kept until there is an answer.
func TestWaitForTheDead(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	// A stopped process keeps a signal pending, as one does that waits for an answer.
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if _, err := syscall.Wait4(cmd.Process.Pid, nil, syscall.WUNTRACED, nil); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m := New(Options{Procs: caller.New()})
	defer m.Close()
	who := caller.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), TID: uint32(cmd.Process.Pid)}
	told := make(chan error, 1)
	go func() { told <- m.Wait(context.Background(), who, make(chan struct{})) }()
	select {
	case err := <-told:
		var r *gate.Refusal
		if !errors.As(err, &r) || r.Errno != syscall.EINTR {
			t.Errorf("%v, not EINTR", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it waits on")
	}
}
