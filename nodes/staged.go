package nodes

import (
	"bytes"
	"cmp"
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/nodes/transaction"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	// stageMost bounds what a staged file holds: an RSA-8192 key in PEM has 6.4 KiB.
	stageMost = 64 << 10
	// scannedMost bounds how many bytes of one text are read over all its WRITEs, each of which reads it from its beginning.
	scannedMost = 128 << 20
)

// stage reads what was written into a staged file so far.
type stage struct {
	// scan finds the first complete thing in b: where it ends and what it asks for. end 0 without an error is "not
	// yet". alone says that b came with one WRITE.
	scan func(b []byte, alone bool) (end int, apply func(ctx context.Context) error, err error)
	// drop wipes what scan has found, where nothing comes of it; nil: there is no secret in it.
	drop func()
	// rest judges what follows what was complete: left bytes of it have begun something. nil: only white space may follow.
	rest func(b []byte) (left int, err error)
	// incomplete says what is wrong with b, which ended without being complete; nil: that it is not.
	incomplete func(b []byte) error
	// most is how many bytes it may hold, stageMost if 0.
	most int
	// atClose: whether b takes effect at the end of the file alone: it cannot be taken back, and lines that follow may
	// take rights away (bash's printf sends each line by itself).
	atClose func(b []byte) bool
	// again: what comes after belongs to the same text, and the whole is read anew.
	again bool
	// restore puts what was before something in its place again, where that took effect and more of the same text turns out
	// wrong: a file is closed after each command of a shell's group. nil: what took effect stays.
	restore func(ctx context.Context, now, before []byte) error
}

// undo is what a text has taken the place of, in perhaps several effects.
type undo struct {
	count func(bytes int) (release func()) // for whoever wrote it

	mu          sync.Mutex
	now, before []byte
	some        bool
	over        bool // nothing will be restored any more
	release     func()
}

func (h *stagedHandle) newUndo() *undo {
	return &undo{count: func(n int) func() { return h.n.t.machine.Add(h.opener, n) }, release: func() {}}
}

func (u *undo) replaced(before, now []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.over {
		return
	}
	if !u.some || !bytes.Equal(u.now, before) { // or somebody else has changed it between two effects
		u.release()
		u.before, u.release = before, u.count(len(before))
	}
	u.now, u.some = now, true
}

// take gives what is to be restored, once.
func (u *undo) take() (now, before []byte, some bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now, before, some = u.now, u.before, u.some
	u.release()
	u.now, u.before, u.some, u.release = nil, nil, false, func() {}
	return now, before, some
}

// end has everything stay as it is.
func (u *undo) end() {
	_, _, _ = u.take()
	u.mu.Lock()
	defer u.mu.Unlock()
	u.over = true
}

// stagedFile is text that takes input.
type stagedFile struct{ fileNode }

var _ = (fs.NodeOpener)((*stagedFile)(nil))

// Open is safe because the stage is the handle's own, nothing stored changes before it is complete, and the gate judges
// whoever writes.
func (n *stagedFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	mode := modeOf(flags)
	access, err := n.enter(ctx, mode.Want())
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	leave, err := n.t.drafts.enter(n.key)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	h, how, errno := n.open(ctx, mode, access, leave)
	if errno != 0 {
		leave()
	}
	return h, how, errno
}

// open makes the handle, which calls leave in the end.
func (n *stagedFile) open(ctx context.Context, mode transaction.Mode, access *gate.Access, leave func()) (fs.FileHandle, uint32, syscall.Errno) {
	if !mode.Write {
		h, how, errno := n.openText(ctx, access)
		if text, ok := h.(*textHandle); ok {
			text.release = both(text.release, leave)
		}
		return h, how, errno
	}
	b, err := n.render(ctx, justNow)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	release, err := n.t.machine.Hold(callerOf(ctx).UID, len(b)+stageMost)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	h := &stagedHandle{n: n, release: both(release, leave), appends: mode.Append, opener: callerOf(ctx).UID, access: access, text: b,
		counted: stageMost}
	h.undo = h.newUndo()
	return h, fuse.FOPEN_DIRECT_IO, 0
}

// both is two ends of an open file.
func both(a, b func()) func() { return func() { a(); b() } }

var _ = (fs.NodeSetattrer)((*stagedFile)(nil))

// Setattr is safe because truncation empties the stage of its own open file, and never what is stored.
func (n *stagedFile) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if size != 0 {
			return n.t.fail(ctx, n.place(), "truncate", gate.Refuse(syscall.EINVAL, "this file can only be truncated to 0", ""))
		}
		if h, ok := fh.(*stagedHandle); ok {
			if _, byHandle := in.GetFh(); byHandle {
				h.empty()
			}
		}
	}
	return n.change(ctx, in, out)
}

// stagedHandle is one open staged file.
type stagedHandle struct {
	n       *stagedFile
	appends bool
	opener  uint32
	access  *gate.Access
	text    snapshot
	release func()

	mu     sync.Mutex
	buf    []byte
	kind   stage // of the last WRITE
	total  int   // bytes written, also those that took effect
	writes int
	cursor transaction.Cursor
	writer uint32 // whose the stage is, once something was written
	poison error
	done   bool // applied; only what may be ignored can follow
	closed bool // applied when the file was closed
	left   int  // bytes that no effect has covered yet
	last   *application
	atEnd  func(context.Context) error // what FLUSH sets off

	undo    *undo         // of this text: an effect of the one before may still be under way
	by      caller.Caller // of the last effect
	counted int           // bytes that the account knows of
	scanned int
}

// application is an effect under way, and the WRITE that began it.
type application struct {
	off      int64
	data     []byte
	finished chan struct{}
	err      error
}

func (h *stagedHandle) empty() {
	h.mu.Lock()
	defer h.mu.Unlock()
	psa.Wipe(h.buf)
	h.buf, h.kind, h.total, h.writes, h.left = nil, stage{}, 0, 0, 0
	h.cursor, h.poison, h.done, h.closed, h.atEnd, h.scanned = transaction.Cursor{}, nil, false, false, nil, 0
	h.undo.end()
	h.undo = h.newUndo()
}

var _ = (fs.FileReader)((*stagedHandle)(nil))

// Read gives the stored text as it was at open.
func (h *stagedHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return h.text.Read(ctx, dest, off)
}

var _ = (fs.FileWriter)((*stagedHandle)(nil))

// Write parses the stage and applies it as soon as it is complete, so that a shell's echo sees the error: what FLUSH
// answers, shells throw away. It is safe because a stage that is not complete changes nothing.
func (h *stagedHandle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	err := h.write(ctx, data, off)
	psa.Wipe(data) // the request's buffer serves others next, and may hold a key
	if err != nil {
		return 0, h.n.t.fail(ctx, h.n.place(), "write", err)
	}
	return uint32(len(data)), 0
}

func (h *stagedHandle) write(ctx context.Context, data []byte, off int64) error {
	if err := h.access.Check(ctx, callerOf(ctx)); err != nil {
		h.lostAccess()
		return err
	}
	leave, err := h.n.t.machine.Affect(callerOf(ctx).UID)
	if err != nil {
		return err
	}
	defer leave()
	h.mu.Lock()
	a, err := h.stage(ctx, data, off)
	h.mu.Unlock()
	if err != nil || a == nil {
		return err
	}
	if err := h.n.t.machine.Wait(ctx, callerOf(ctx), a.finished); err != nil {
		return err
	}
	return h.finish(a)
}

// finish is the end of an application for who waited for it.
func (h *stagedHandle) finish(a *application) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.settle(a)
}

// stage takes one WRITE; the application is what it set off, or the one that it asks for again after an EINTR.
func (h *stagedHandle) stage(ctx context.Context, data []byte, off int64) (*application, error) {
	if a := h.last; a != nil {
		if a.off == off && bytes.Equal(a.data, data) {
			return a, nil
		}
		select {
		case <-a.finished:
			if err := h.settle(a); err != nil {
				return nil, err
			}
		default:
			return nil, gate.Refuse(syscall.EBUSY, "the last WRITE is still taking effect", "write the same bytes again to wait for it")
		}
	}
	if h.poison != nil {
		return nil, h.poison
	}
	who := callerOf(ctx).UID
	if h.writes > 0 && who != h.writer {
		return nil, gate.Refuse(syscall.EACCES, "another user opened this file", "open the file yourself")
	}
	h.writer = who
	if !h.cursor.Follows(off, len(data), h.appends) {
		return nil, h.spoil(transaction.ErrHole)
	}
	v, err := h.n.view(ctx)
	if err != nil {
		return nil, gone(err)
	}
	v.opener, v.undo = h.opener, h.undo
	s := h.n.row.stage(v)
	most := cmp.Or(s.most, stageMost)
	if h.total+len(data) > most {
		return nil, h.spoil(psa.Errorf(psa.StatusTooLarge, "the %s is longer than %d bytes", h.n.row.name, most))
	}
	// an array has room for up to twice its bytes, and what is found in it is as long again
	if err := h.count(3 * (len(h.buf) + len(data))); err != nil {
		return nil, err
	}
	if h.scanned += len(h.buf) + len(data); h.scanned > scannedMost {
		return nil, h.spoil(psa.Errorf(psa.StatusInvalidArgument, "the %s was written in too many pieces", h.n.row.name).
			WithHint("write it at once, as cat does"))
	}
	h.total += len(data)
	h.buf = transaction.Extend(h.buf, data)
	h.left += len(data)
	h.writes++
	h.cursor.Advance(off, len(data))
	if h.done {
		return nil, h.rest()
	}
	h.atEnd = nil
	end, apply, err := s.scan(h.buf, h.writes == 1)
	h.kind = s
	if err != nil {
		return nil, h.spoil(err)
	}
	if end == 0 {
		return nil, nil
	}
	h.left = len(h.buf) - end
	if s.atClose != nil && s.atClose(h.buf[:end]) {
		h.atEnd = apply
		return nil, nil
	}
	if !s.again {
		h.done = true
		kept := append([]byte(nil), h.buf[end:]...)
		psa.Wipe(h.buf)
		h.buf = kept
		err = h.rest()
	}
	var a *application
	if err == nil {
		a, err = h.begin(ctx, &application{off: off, data: append([]byte(nil), data...)}, apply)
	}
	if err != nil && s.drop != nil {
		s.drop()
	}
	return a, err
}

// count has the account know of n bytes, in steps.
func (h *stagedHandle) count(n int) error {
	n = (n + stageMost - 1) / stageMost * stageMost
	if n <= h.counted {
		return nil
	}
	more, err := h.n.t.machine.More(h.opener, n-h.counted)
	if err != nil {
		return err
	}
	h.counted, h.release = n, both(h.release, more)
	return nil
}

// begin sets an effect off.
func (h *stagedHandle) begin(ctx context.Context, a *application, apply func(context.Context) error) (*application, error) {
	err := h.n.t.auditing.ready(callerOf(ctx).UID, AuditDeed)
	if err != nil {
		err = h.spoil(err)
	}
	var end func()
	if err == nil {
		end, err = h.n.t.machine.Begin()
	}
	if err != nil {
		psa.Wipe(a.data)
		return nil, err
	}
	a.finished = make(chan struct{})
	h.last, h.by = a, callerOf(ctx)
	go h.run(a, callerOf(ctx), apply, end)
	return a, nil
}

// rest judges what follows a complete stage.
func (h *stagedHandle) rest() (err error) {
	judge := h.kind.rest
	if judge == nil {
		judge = psa.ScanBlank
	}
	if h.left, err = judge(h.buf); err == nil {
		return nil
	}
	if h.closed {
		err = psa.Errorf(psa.StatusInvalidArgument, "the %s took effect without this when the command before closed it", h.n.row.name).
			WithHint("write all of it with one command, such as cat A B >FILE; rmdir destroys the key that was made")
	}
	return h.spoil(err)
}

func (h *stagedHandle) spoil(err error) error {
	h.poison = err
	psa.Wipe(h.buf)
	h.buf, h.left = nil, 0
	h.takeBack()
	return err
}

// lostAccess has stay what somebody stored whose right was taken away: they change nothing any more.
func (h *stagedHandle) lostAccess() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.undo.end()
}

// takeBack restores what the beginning of a text took the place of, as nothing of one that is wrong may stay.
func (h *stagedHandle) takeBack() {
	now, before, some := h.undo.take()
	if !some {
		return
	}
	begun := time.Now()
	err := h.kind.restore(context.Background(), now, before)
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		return // the key is gone
	}
	h.n.t.audit(h.by, AuditDeed, h.n.place(), h.n.row.name+" taken back", begun, err)
	if err != nil {
		h.n.t.log.Error("what the beginning of a text changed could not be taken back", "path", h.n.place().path(), "error", err)
	}
}

// run applies in a goroutine of its own: an interrupted WRITE must not end the creation of a key.
func (h *stagedHandle) run(a *application, by caller.Caller, apply func(context.Context) error, end func()) {
	defer end()
	defer close(a.finished)
	begun := time.Now()
	a.err = h.n.t.machine.Guard(h.n.place().path, func() error { return apply(kim.ForUser(context.Background(), by.UID)) })
	class := AuditDeed
	if by.UID != h.opener {
		class = AuditAttempt
	}
	h.n.t.audit(by, class, h.n.place(), h.n.row.name, begun, a.err)
}

// settle is the end of an application for the WRITE that waited.
func (h *stagedHandle) settle(a *application) error {
	if h.last == a {
		h.last = nil
		psa.Wipe(a.data)
	}
	if a.err != nil && h.poison == nil {
		_ = h.spoil(a.err)
	}
	return a.err
}

var _ = (fs.FileFlusher)((*stagedHandle)(nil))

// Flush refuses an incomplete stage, and applies what waits for the end of the file, unless its writer is being killed
// in the middle of it. bash sends one before it wrote anything.
func (h *stagedHandle) Flush(ctx context.Context) syscall.Errno {
	if err := h.judged(ctx); err != nil {
		return h.n.t.fail(ctx, h.n.place(), "close", err)
	}
	a, err := h.complete(ctx)
	if err == nil && a != nil {
		if err = h.n.t.machine.WaitOut(ctx, callerOf(ctx), a.finished); err == nil {
			err = h.finish(a)
		}
	}
	return h.n.t.fail(ctx, h.n.place(), "close", err)
}

// judged is the gate for whoever closes a file in which something was written, unless nothing can follow any more.
func (h *stagedHandle) judged(ctx context.Context) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.writes == 0 || h.done {
		return nil
	}
	if _, err := h.n.t.keyOf(ctx, h.n.key); err != nil {
		return err
	}
	err := h.access.Check(ctx, callerOf(ctx))
	if err != nil {
		h.undo.end()
	}
	return err
}

// complete sets off what waits for the end of the file, where its writer closes it: a program of somebody else closes what it
// does not know. In the middle of what is written nothing is completed, by a writer that is killed or a child that becomes
// another program.
func (h *stagedHandle) complete(ctx context.Context) (*application, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.atEnd == nil || h.left != 0 || h.poison != nil {
		err := h.whole()
		if err != nil {
			h.takeBack()
		}
		return nil, err
	}
	who := callerOf(ctx)
	if who.UID != h.writer {
		return nil, nil
	}
	if killed, busy := h.n.t.procs.Killed(who); killed || busy {
		return nil, nil
	}
	apply := h.atEnd
	h.atEnd = nil
	if !h.kind.again { // a shell's group closes the file after each of its commands: what follows may belong to the same text
		h.done, h.closed = true, true
		psa.Wipe(h.buf)
		h.buf = nil
	}
	return h.begin(ctx, &application{off: -1}, apply)
}

// whole refuses what was written and is not complete.
func (h *stagedHandle) whole() error {
	if h.poison != nil || h.left == 0 || len(bytes.TrimSpace(h.buf[len(h.buf)-h.left:])) == 0 {
		return nil
	}
	if !h.done && h.kind.incomplete != nil {
		return h.kind.incomplete(h.buf)
	}
	return psa.Errorf(psa.StatusInvalidArgument, "the text is not complete").WithHint("end it with a newline")
}

var _ = (fs.FileReleaser)((*stagedHandle)(nil))

// Release wipes the stage. Where its end has never been seen, nothing of it stays.
func (h *stagedHandle) Release(context.Context) syscall.Errno {
	h.mu.Lock()
	if h.atEnd != nil || h.whole() != nil {
		h.takeBack()
	}
	h.mu.Unlock()
	h.empty()
	h.mu.Lock()
	if h.last != nil {
		psa.Wipe(h.last.data)
		h.last = nil
	}
	h.mu.Unlock()
	h.release()
	return 0
}

// fleeting is the time that the kernel may keep what a WRITE elsewhere changes: the shortest that is not go-fuse's
// default. We tell the kernel nothing on our own: a notification waits for the directory's lock, which a client's
// rmdir may hold until we answer; a daemon that is killed in between never lets go of /dev/fuse, and all hang.
const fleeting = time.Nanosecond

// never is for what the kernel may not keep at all: it rounds fleeting up to some milliseconds.
const never = 2 * time.Nanosecond

// stat is true whenever it is asked, the size too; and a draft's files go when it is a key.
func (n *stagedFile) stat(ctx context.Context) (stat, error) {
	s, err := n.fileNode.stat(ctx)
	s.fleeting, s.fleetingName = true, n.row.present != nil
	return s, err
}
