// Package transaction is the machine behind operation files: what is written is a request, what is read is its answer.
//
// Four shapes make it up:
//
//   - a Request collects inputs, runs its Operation once, where it is asked for or in a goroutine of its own, and keeps the answer;
//   - a Channel is where requests follow each other. It has a cursor for each input that can be written by itself: one
//     for the plain file's stream, or one for each file of a directory slot;
//   - a Handle is one open file on a channel: one of its own, a slot's, or one that it claims from the drop box;
//   - a Slot is a channel with a name, which outlives its opens.
//
// WRITE only collects and READ runs the operation: the kernel holds the inode's lock during WRITE, sends FLUSH early and
// often, and never tells anybody what RELEASE answered.
//
// The machine knows no operation: a Spec, which a table makes, says how inputs are cut off the stream and who begins.
// It knows no file system either: whoever has one hands it bytes, offsets and callers.
package transaction

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Options of New.
type Options struct {
	Procs *caller.Procs
	// BodyLimit is the most bytes of an input that cannot be streamed; beyond it is EFBIG.
	BodyLimit int64
	// PerUser bounds open handles, slots and drop box requests of one uid; beyond it is EAGAIN.
	PerUser int
	// BytesPerUser bounds the bytes that requests of one uid hold; beyond it is ENOMEM.
	BytesPerUser int64
	Log          *slog.Logger
}

// Machine is what the transactions of one tree share.
type Machine struct {
	o       Options
	account account
	boxes   boxes
	slots   slots
	sizes   sizes
	workers *workers
	running sync.WaitGroup
	leaving sync.RWMutex // nothing may begin once Drain waits for what runs
	closed  bool
}

// New makes a machine. Close ends it.
func New(o Options) *Machine {
	m := &Machine{o: o, workers: newWorkers()}
	m.account.most = amounts{handles: int64(o.PerUser), held: o.BytesPerUser, calls: int64(o.PerUser), effects: effectsMost}
	m.boxes.m, m.slots.m = m, m
	return m
}

// Drain waits until no operation runs, or ctx ends. New ones are refused from now on.
func (m *Machine) Drain(ctx context.Context) {
	m.leave()
	done := make(chan struct{})
	go func() { m.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Close wipes what slots and drop boxes still hold.
func (m *Machine) Close() {
	m.leave()
	m.Drop(func(uint64) bool { return true })
	m.workers.close()
}

func (m *Machine) leave() {
	m.leaving.Lock()
	defer m.leaving.Unlock()
	m.closed = true
}

// Drop ends the slots and the drop box requests of the inodes that match.
func (m *Machine) Drop(match func(ino uint64) bool) {
	m.boxes.drop(match)
	m.slots.drop(match)
}

var errLeaving = psa.Errorf(psa.StatusProviderAbsent, "the daemon is stopping")

// Begin counts something that Drain must wait for; end must follow.
func (m *Machine) Begin() (end func(), err error) {
	if err := m.enter(); err != nil {
		return nil, err
	}
	return m.running.Done, nil
}

// enter is Begin whose end is running.Done.
func (m *Machine) enter() error {
	m.leaving.RLock()
	defer m.leaving.RUnlock()
	if m.closed {
		return errLeaving
	}
	m.running.Add(1)
	return nil
}

// Guard turns a panic in f, which would end the daemon for everybody, into EIO for one request.
func (m *Machine) Guard(path func() string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = m.panicked(path(), p)
		}
	}()
	return f()
}

// panicked is the error of a request that ended with a panic. Only the panic's type is logged: its value may quote a request.
func (m *Machine) panicked(path string, p any) error {
	m.o.Log.Error("panic in an operation: this is a bug in parsecfs", "path", path, "panic", fmt.Sprintf("%T", p),
		"stack", string(debug.Stack()))
	return psa.Errorf(psa.StatusGenericError, "the operation failed inside parsecfs")
}

// Perform runs f to its end and waits for it as Wait does.
func (m *Machine) Perform(ctx context.Context, who caller.Caller, path func() string, f func(context.Context) error) error {
	return m.perform(ctx, who, path, f, m.Wait)
}

// PerformOut runs f to its end and waits for it as WaitOut does.
func (m *Machine) PerformOut(ctx context.Context, who caller.Caller, path func() string, f func(context.Context) error) error {
	return m.perform(ctx, who, path, f, m.WaitOut)
}

func (m *Machine) perform(ctx context.Context, who caller.Caller, path func() string, f func(context.Context) error,
	wait func(context.Context, caller.Caller, <-chan struct{}) error) error {
	leave, err := m.account.hold(who.UID, calls, 1)
	if err != nil {
		return err
	}
	defer leave()
	end, err := m.Begin()
	if err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer end()
		defer close(done)
		err = m.Guard(path, func() error { return f(context.Background()) })
	}()
	if interrupted := wait(ctx, who, done); interrupted != nil {
		return interrupted
	}
	return err
}

const (
	// patience is how long an interrupted call keeps waiting: FUSE cannot restart a system call, and clients that do not
	// expect EINTR (Go's own preemption signal is enough) would fail.
	patience = time.Second
	// unseen is the patience of WaitOut for a client of which nobody can tell whether it is being killed.
	unseen = 30 * time.Second
	// look is how often WaitOut looks whether an interrupted client is being killed.
	look = patience / 4
)

var errInterrupted = gate.Refuse(syscall.EINTR, "interrupted", "")

// Wait waits for done as a call that can be repeated: after an interruption for at most a second more, and not at all where
// the signal is going to kill the client, which could not be killed before our answer.
func (m *Machine) Wait(ctx context.Context, who caller.Caller, done <-chan struct{}) error {
	over, killed := m.untilInterrupted(ctx, who, done)
	if over {
		return nil
	}
	if killed {
		return errInterrupted
	}
	if dying, seen := m.o.Procs.Dying(who); dying || !seen {
		return errInterrupted
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return errInterrupted
	}
}

// untilInterrupted waits for done or a signal. A kernel that hands requests over by io_uring tells nobody of a signal that comes at
// that moment: so it looks now and then whether the client is being killed.
func (m *Machine) untilInterrupted(ctx context.Context, who caller.Caller, done <-chan struct{}) (over, killed bool) {
	ticker := time.NewTicker(patience)
	defer ticker.Stop()
	for {
		select {
		case <-done:
			return true, false
		case <-ctx.Done():
			return false, false
		case <-ticker.C:
			if dying, _ := m.o.Procs.Dying(who); dying {
				return false, true
			}
		}
	}
}

// WaitOut waits for done as a call that cannot be repeated, such as close(2), whose descriptor is gone: to the end, unless
// the client is being killed. FUSE tells only of the first interruption, and a kill may come later.
func (m *Machine) WaitOut(ctx context.Context, who caller.Caller, done <-chan struct{}) error {
	over, killed := m.untilInterrupted(ctx, who, done)
	if over {
		return nil
	}
	if killed {
		return errInterrupted
	}
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	for until := time.Now().Add(unseen); ; {
		if dying, seen := m.o.Procs.Dying(who); dying || !seen && time.Now().After(until) {
			return errInterrupted
		}
		select {
		case <-done:
			return nil
		case <-ticker.C:
		}
	}
}
