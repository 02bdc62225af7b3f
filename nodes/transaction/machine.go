// Package transaction is the machine behind operation files: what is written is a request, what is read is its answer.
//
// Four shapes make it up:
//
//   - a Request collects inputs, runs its Operation once, in a goroutine of its own, and keeps the answer;
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
	leaving sync.Mutex // nothing may begin once Drain waits for what runs
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
	m.leaving.Lock()
	defer m.leaving.Unlock()
	if m.closed {
		return nil, errLeaving
	}
	m.running.Add(1)
	return m.running.Done, nil
}

// Guard turns a panic in f, which would end the daemon for everybody, into EIO for one request.
func (m *Machine) Guard(path func() string, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// only its type: the value may quote a request
			m.o.Log.Error("panic in an operation: this is a bug in parsecfs", "path", path(), "panic", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = psa.Errorf(psa.StatusGenericError, "the operation failed inside parsecfs")
		}
	}()
	return f()
}

// Perform runs f to its end and waits for it as Wait does.
func (m *Machine) Perform(ctx context.Context, who caller.Caller, path func() string, f func(context.Context) error) error {
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
	if interrupted := m.Wait(ctx, who, done); interrupted != nil {
		return interrupted
	}
	return err
}

// patience is how long an interrupted call keeps waiting: FUSE cannot restart a system call, and clients that do not
// expect EINTR (Go's own preemption signal is enough) would fail.
const patience = time.Second

// Wait waits for done as an interruptible system call should: after an interruption for at most a second more, and not
// at all where the signal is going to kill the client, which could not be killed before our answer.
func (m *Machine) Wait(ctx context.Context, who caller.Caller, done <-chan struct{}) error {
	interrupted := gate.Refuse(syscall.EINTR, "interrupted", "")
	// A kernel that hands requests over by io_uring tells nobody of a signal that comes at that moment.
	look := time.NewTicker(patience)
	defer look.Stop()
	for waits := true; waits; {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			waits = false
		case <-look.C:
			if m.o.Procs.Doomed(who) {
				return interrupted
			}
		}
	}
	if m.o.Procs.Dying(who) {
		return interrupted
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return interrupted
	}
}
