package transaction

import (
	"cmp"
	"context"
	"errors"
	"sync"
	"syscall"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
)

var (
	errBefore = gate.Refuse(syscall.EINVAL, "this READ is before the beginning of the answer", "seek to 0 to read it again")
	errRound  = gate.Refuse(syscall.ENODATA, "this answer was read too often",
		"read on, to the end of the file; by io_uring, at offsets of your own")
)

// roundsMost is how often an answer's beginning and its end are read. Some programs would never end: libuv's copyfile waits for as many
// bytes as the file promised before there was an answer, and a position that the kernel keeps for io_uring does not move here.
const roundsMost = 1024

// Handle is one open file of a transaction.
type Handle struct {
	m       *Machine
	part    Part
	appends bool
	reads   bool // and does not write
	walks   bool // over files, and asks for nothing by it
	uid     uint32
	access  *gate.Access
	slot    *Slot
	box     *entry          // of an open for writing alone
	reader  *caller.Lineage // of one for reading alone, which claims from the drop box
	ino     uint64

	mu       sync.Mutex
	channel  *Channel     // nil until it is claimed
	deposit  *gate.Access // of whoever wrote what was claimed
	reply    replies
	wrote    uint64 // the number of the last WRITE
	told     bool   // by the last READ, and nothing was written since, that nothing was written
	rounds   int    // READs of the answer's beginning or end
	released bool
}

// Mode is how a file is opened.
type Mode struct {
	Read, Write bool
	Append      bool
	// Walk is how programs open what they find in a directory, for reading without following a link: what runs where somebody
	// asks for it does not run for them.
	Walk bool
}

// Want is what the mode asks for of the file's permissions.
func (m Mode) Want() gate.Bits {
	var want gate.Bits
	if m.Read {
		want |= gate.Read
	}
	if m.Write {
		want |= gate.Write
	}
	return want
}

func (m *Machine) handle(who caller.Caller, mode Mode, access *gate.Access) (*Handle, error) {
	h := &Handle{}
	return h, h.open(m, who, mode, access)
}

func (h *Handle) open(m *Machine, who caller.Caller, mode Mode, access *gate.Access) error {
	if err := m.account.take(who.UID, handles, 1); err != nil {
		return err
	}
	h.m, h.uid, h.access = m, who.UID, access
	h.appends, h.reads, h.walks = mode.Append, !mode.Write, mode.Walk && !mode.Write
	return nil
}

// release is the end of what open counted.
func (h *Handle) release() { h.m.account.put(h.uid, handles, -1) }

// opened is what most opens need, in one piece of memory. None of it is ever used again.
type opened struct {
	Handle
	own   Channel
	first request
}

// Open opens a file with a channel of its own.
func (m *Machine) Open(who caller.Caller, f File, mode Mode, access *gate.Access) (*Handle, error) {
	o := &opened{}
	if err := o.open(m, who, mode, access); err != nil {
		return nil, err
	}
	o.own.open(m, f, who.UID, false)
	o.own.room = &o.first
	o.channel = &o.own
	return &o.Handle, nil
}

// Deposit opens a file for writing alone: its request lies in the drop box once it is complete.
func (m *Machine) Deposit(who caller.Caller, f File, mode Mode, access *gate.Access) (*Handle, error) {
	h, err := m.Open(who, f, mode, access)
	if err != nil {
		return nil, err
	}
	if h.box, err = m.boxes.register(f.Ino, who, access, h.channel); err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// Claim opens a file for reading alone: its first READ claims a request from the drop box.
func (m *Machine) Claim(who caller.Caller, f File, mode Mode, access *gate.Access) (*Handle, error) {
	h, err := m.handle(who, mode, access)
	if err != nil {
		return nil, err
	}
	h.ino, h.reader = f.Ino, m.o.Procs.Lineage(who)
	return h, nil
}

// Write only collects: it never runs an operation.
func (h *Handle) Write(_ context.Context, p []byte, off int64) error {
	h.untold()
	if h.box != nil {
		h.m.boxes.reopen(h.box)
	}
	at, err := h.channel.write(h.part.input, p, off, h.appends, h.begins(off))
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	// The pieces of an asynchronous write can come here in another order than that in which they were taken.
	if at.number > h.wrote {
		h.wrote, h.reply.next, h.reply.written = at.number, 0, at.end
	}
	return nil
}

// begins says whether a message can begin at off: one that is farther on than where this handle read last may be a piece that is
// not the first.
func (h *Handle) begins(off int64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return off < piece || off == h.reply.last
}

// Read runs the operation, once, and copies its answer; more: it goes on. Whoever asks is judged where rights were taken away since the file
// was opened, or the slot made.
func (h *Handle) Read(ctx context.Context, who caller.Caller, dest []byte, off int64) (n int, more bool, err error) {
	if err := h.enter(ctx, who); err != nil {
		return 0, true, err
	}
	defer h.leave(who)
	r, err := h.ask(ctx, who)
	if errors.Is(err, errNothing) {
		return 0, true, h.nothing()
	}
	if err != nil {
		return 0, true, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.reply.req != r {
		h.rounds = 0
	}
	n, more, err = h.reply.read(r, h.part.Name, dest, off)
	h.channel.base.Store(h.reply.base)
	if err == nil && (n == 0 || off == h.reply.base) {
		h.rounds++
	}
	if h.rounds > roundsMost {
		return 0, true, errRound
	}
	return n, more, err
}

// Passes says whether Read would wait for nobody, neither for a device nor for what /proc says of somebody, and take about a
// millisecond at most; false also where that cannot be told at once. It changes nothing.
func (h *Handle) Passes(who caller.Caller) bool {
	if h.reader != nil || h.channel.aside.Load() > 0 || !h.access.Holds() {
		return false
	}
	r := h.channel.latest.Load()
	if r == nil {
		return !h.channel.spec.bare()
	}
	return r.passes(who)
}

// PassesCall says so of Call, where an operation of the file is quick.
func (h *Handle) PassesCall() bool {
	if h.reader != nil || h.box != nil || h.slot != nil || h.channel.aside.Load() > 0 || !h.access.Holds() {
		return false
	}
	r := h.channel.latest.Load()
	return r == nil || r.known.Load()
}

// enter judges whoever asks for an answer, and counts them until leave.
func (h *Handle) enter(ctx context.Context, who caller.Caller) error {
	if err := h.access.Check(ctx, who); err != nil {
		return err
	}
	return h.m.account.take(who.UID, calls, 1)
}

func (h *Handle) leave(who caller.Caller) { h.m.account.put(who.UID, calls, -1) }

// ask is the request that was answered.
func (h *Handle) ask(ctx context.Context, who caller.Caller) (*request, error) {
	c, err := h.source(ctx, who)
	if err != nil {
		return nil, err
	}
	if h.walks && (!c.begun() || h.part.Input()) {
		return nil, errNothing
	}
	return c.read(ctx, who)
}

// nothing says that nothing was written, and at the next READ that the file ends: programs that read on after an error
// (OpenSSL) end then.
func (h *Handle) nothing() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.walks {
		return nil
	}
	if h.told = !h.told; h.told {
		return errNothing
	}
	return nil
}

func (h *Handle) untold() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.told = false
}

// source is the channel to read from; a read-only open claims it at its first READ. The writer's right counts beside the
// reader's own: a request is an answer only to whoever could still write it.
func (h *Handle) source(ctx context.Context, who caller.Caller) (*Channel, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.channel == nil {
		c, deposit, err := h.m.boxes.claim(h.ino, h.uid, h.reader)
		if err != nil {
			return nil, cmp.Or(h.access.Enter(ctx, who), err) // nothing waits for a key that is gone
		}
		h.channel, h.deposit = c, deposit
	}
	if h.deposit != nil {
		if err := h.deposit.Check(ctx, who); err != nil {
			return nil, err
		}
	}
	return h.channel, nil
}

// Flush tells that the file is closed somewhere: a request in the drop box is complete at the flush that follows its last
// WRITE.
func (h *Handle) Flush(who caller.Caller) {
	if h.box == nil {
		return
	}
	killed, _ := h.m.o.Procs.Killed(who)
	h.m.boxes.complete(h.box, killed)
}

// Truncate is ftruncate(2) on this handle: to 0 it begins an empty request, any other size spoils the one under way.
func (h *Handle) Truncate(size uint64) error {
	if size != 0 {
		if c := h.own(); c != nil {
			c.fault(ErrHole)
		}
		return ErrTruncate
	}
	if h.reads {
		return gate.Refuse(syscall.EINVAL, "the file is not open for writing", "")
	}
	if err := h.channel.truncate(true); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.reply.anew()
	h.told = false
	return nil
}

// ErrTruncate refuses to make a transaction as long as somebody says.
var ErrTruncate = gate.Refuse(syscall.EINVAL, "a transaction can only be truncated to 0", "")

// Answered says whether a slot has an answer already: its length is what its only user sees, and so may the kernel.
func (h *Handle) Answered() bool {
	if h.slot == nil {
		return false
	}
	r := h.channel.latest.Load()
	if r == nil {
		return false
	}
	n, known := r.length(h.part.Name)
	return known && n > 0
}

func (h *Handle) own() *Channel {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.channel
}

// Release is the end of the open file. It wipes what is not a slot's.
func (h *Handle) Release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released {
		return
	}
	h.released = true
	switch {
	case h.box != nil:
		h.m.boxes.release(h.box)
	case h.slot == nil && h.channel != nil:
		h.channel.close()
	}
	h.reply = replies{}
	h.release()
	if h.slot != nil {
		h.slot.closed()
	}
}
