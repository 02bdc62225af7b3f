package nodes

import (
	"context"
	"encoding/hex"
	"hash"
	"sync/atomic"
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

// operation is what one request asks of a key, or where there is none of a provider: the provider's own operation, unless
// its row makes another one of it.
type operation struct {
	t     *Tree
	row   *row
	at    place
	uid   uint32        // who opened the file, or made the slot
	key   kim.Key       // as it was at the first byte
	begun psa.Algorithm // for the audit trail
}

var _ transaction.Operation = (*operation)(nil)

// request makes the operations of requests that were written at a place: the file's own, or a slot's.
func (n *fileNode) request(at place) transaction.Make {
	return func(ctx context.Context, uid uint32) (transaction.Operation, error) {
		k, err := n.t.keyOf(ctx, n.key)
		if err != nil {
			return nil, err
		}
		o := operation{t: n.t, row: n.row, at: at, uid: uid, key: k}
		if n.row.make != nil {
			return n.row.make(o), nil
		}
		return &o, nil
	}
}

func (o *operation) Attributes() psa.Attributes { return o.key.Attributes }

func (o *operation) Authorize(context.Context, caller.Caller, transaction.Inputs) error { return nil }

func (o *operation) Quick(who caller.Caller) bool {
	p := o.at.provider
	return p != nil && p.Quick(o.row.op, o.key.Attributes) && p.Free() && (o.at.key == 0 || o.t.kim.Opened(o.at.key)) &&
		(!o.t.looksUp(o.class()) || o.t.procs.Knows(who))
}

func (o *operation) Present(ctx context.Context) error {
	_, err := o.t.keyOf(ctx, o.at.key)
	return err
}

func (o *operation) Ended(by caller.Caller, request hash.Hash, begun time.Time, err error) {
	if o.t.auditing == nil {
		return
	}
	o.t.record(by, o.class(), o.at, string(o.row.op), begun, err, func(e *AuditEvent) {
		o.t.name(e, o.key)
		e.Algorithm = o.algorithm()
		if request != nil {
			e.Request = hex.EncodeToString(request.Sum(nil))
		}
	})
}

// class is by the mode that the file has by itself: what all may do says nothing about a right to the key.
func (o *operation) class() AuditClass {
	switch v := (view{key: o.key}); {
	case o.row.class() == AuditDeed:
		return AuditDeed
	case o.row.modeFor(&v)&0002 != 0:
		return AuditOpen
	}
	return AuditUse
}

func (o *operation) Ready(who caller.Caller) error { return o.t.auditing.ready(who.UID, o.class()) }

func (o *operation) Digest() hash.Hash { return o.t.auditing.digest(o.class()) }

// algorithm is what was begun, where the operation has an algorithm.
func (o *operation) algorithm() string {
	if o.begun == psa.AlgNone || o.row.op.Usage() == 0 && o.row.op != psa.Hash {
		return ""
	}
	return o.begun.String()
}

func (o *operation) Path() string { return o.at.path() }

func (o *operation) Begin(ctx context.Context, in transaction.Inputs, length int) (psa.Run, bool, error) {
	op, err := o.resolve(in, length)
	if err != nil {
		return nil, false, err
	}
	run, err := o.begin(ctx, op)
	return run, op.Streams(), err
}

// resolve is the provider's operation with the algorithm that the policy, or the file itself, says.
func (o *operation) resolve(in transaction.Inputs, length int) (psa.Op, error) {
	a := o.row.alg
	if a == psa.AlgNone {
		var err error
		if a, err = o.key.Attributes.Resolve(o.row.op, length); err != nil {
			return psa.Op{}, err
		}
	}
	op := psa.Op{Operation: o.row.op, Algorithm: a, Inputs: in, Limit: o.t.options.BodyLimit}
	o.begun = a
	return op, nil
}

func (o *operation) begin(ctx context.Context, op psa.Op) (psa.Run, error) {
	if o.at.key == 0 {
		return o.at.provider.Begin(ctx, o.uid, op)
	}
	run, err := o.t.kim.Begin(ctx, o.at.key, o.uid, op)
	if err != nil {
		return nil, gone(err)
	}
	return run, nil
}

// keyOf is the key under a number that is open, none under 0.
func (t *Tree) keyOf(ctx context.Context, number int64) (kim.Key, error) {
	if number == 0 {
		return kim.Key{}, nil
	}
	k, err := t.kim.Key(calm(ctx), number)
	return k, gone(err)
}

// gone turns the absence of a key that was open into what its holders are told.
func gone(err error) error {
	if err != nil && psa.StatusOf(err) == psa.StatusDoesNotExist {
		return psa.Errorf(psa.StatusRevoked, "the key was destroyed")
	}
	return err
}

// calm is for what takes microseconds, and must not fail because of a signal (Go's own preemption signal is enough to interrupt a
// system call): without ctx's end, and without its caller, whom the KIM need not know.
func calm(context.Context) context.Context { return context.Background() }

// deed is calm for what its caller changes in the KIM, where users take turns.
func deed(ctx context.Context) context.Context { return kim.ForUser(calm(ctx), callerOf(ctx).UID) }

// A file is the last step of the way to it, behind its provider's directory and its key's.
var _ gate.Way = (*fileNode)(nil)

// Numbers has no step that the file's place does not have.
func (n *fileNode) Numbers() (numbers [gate.Steps]uint64, err error) {
	if n.p != nil {
		numbers[0] = inoOf(n.p.Number(), 0)
	}
	if n.key != 0 {
		space, err := n.t.spaceOf(context.Background(), n.key)
		if err != nil {
			return numbers, gone(err)
		}
		numbers = directories(n.p, space)
		numbers[3] = inoOf(n.key, 0)
	}
	numbers[4] = n.ino
	return numbers, nil
}

func (n *fileNode) step(ctx context.Context, i int) (*base, error) {
	switch i {
	case 0, 1, 2:
		space := kim.Shared
		if n.key != 0 {
			var err error
			if space, err = n.t.spaceOf(ctx, n.key); err != nil {
				return nil, err
			}
		}
		return n.t.keys(n.p, space).step(i), nil
	case 3:
		return &n.t.key(n.p, n.key).base, nil
	}
	return &n.base, nil
}

func (n *fileNode) Rights(ctx context.Context, step int) (gate.Rights, error) {
	b, err := n.step(ctx, step)
	if err != nil {
		return gate.Rights{}, gone(err)
	}
	p, err := b.permissions(ctx)
	return p.rights(), gone(err)
}

func (n *fileNode) Path(step int) string {
	b, err := n.step(context.Background(), step)
	if err != nil {
		return n.place().path()
	}
	return b.self.place().path()
}

// Units lets a key's own list decide over its operations alone: its owner may change it from anywhere.
func (n *fileNode) Units(ctx context.Context) (gate.Units, error) {
	k, err := n.t.keyOf(ctx, n.key)
	return n.units(k), err
}

func (n *fileNode) units(k kim.Key) gate.Units {
	u := gate.Units{Provider: n.p.Name()}
	if n.row.kind == request {
		u.Key = k.Units
	}
	return u
}

// modeOf is how a file is opened; flags are open(2)'s.
func modeOf(flags uint32) transaction.Mode {
	access := flags & syscall.O_ACCMODE
	return transaction.Mode{Read: access != syscall.O_WRONLY, Write: access != syscall.O_RDONLY, Append: flags&syscall.O_APPEND != 0,
		Walk: access == syscall.O_RDONLY && flags&syscall.O_NOFOLLOW != 0}
}

// enter is the gate for whoever opens the file now.
func (n *fileNode) enter(ctx context.Context, want gate.Bits) (*gate.Access, error) {
	if n.key != 0 && n.row.kind == request {
		// as below, without what is the same for every open of this key
		k, err := n.t.kim.Key(calm(ctx), n.key)
		if err != nil {
			return nil, err
		}
		if s := n.last.Load(); s.follows(&k, n.p.Capabilities()) && s.shown {
			return n.t.gate.Open(ctx, callerOf(ctx), n, want, n.units(k))
		}
	}
	v, err := n.view(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.present(v); err != nil {
		return nil, err
	}
	units := gate.Units{} // whoever only reads a text needs no unit
	if n.row.kind != text && (n.row.kind != staged || want&gate.Write != 0) {
		units = n.units(v.key)
	}
	return n.t.gate.Open(ctx, callerOf(ctx), n, want, units)
}

// operationFile is an operation of a key: request in, answer out.
type operationFile struct {
	fileNode
	itself atomic.Pointer[transaction.File]
}

func (n *operationFile) stat(ctx context.Context) (stat, error) {
	s, err := n.fileNode.stat(ctx)
	n.t.answering(ctx, n.ino, &s)
	return s, err
}

// answering has a file of transactions show what whoever asks has there, which the kernel must not show to anybody else.
func (t *Tree) answering(ctx context.Context, ino uint64, s *stat) {
	size, fixed := t.machine.Size(ino, callerOf(ctx).UID)
	s.size, s.answers, s.never = uint64(size), true, !fixed
}

// transactions is the file, or a slot of it at a place of its own, as the machine knows it.
func (n *operationFile) transactions(at place) transaction.File {
	return transaction.File{Ino: n.ino, Spec: &n.row.spec, Make: n.request(at)}
}

// whole is transactions of the file itself, made once.
func (n *operationFile) whole() *transaction.File {
	f := n.itself.Load()
	if f == nil {
		made := n.transactions(n.place())
		f = &made
		n.itself.Store(f)
	}
	return f
}

var _ = (fs.NodeOpener)((*operationFile)(nil))

// Open is safe because the kernel judged the file's mode, the gate whatever the kernel could not, and each open gets a
// channel of its own. Direct I/O, or two clients would read each other's bytes from the page cache.
func (n *operationFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	mode := modeOf(flags)
	h, fuseFlags, err := n.open(ctx, mode)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	x := newHandle(n, n.t, h, mode)
	fuseFlags |= fuse.FOPEN_DIRECT_IO
	if mode.Read && mode.Write && n.quick(ctx) {
		fuseFlags |= n.t.prompt.ticket(x)
	}
	return x, fuseFlags, 0
}

func (n *operationFile) open(ctx context.Context, mode transaction.Mode) (*transaction.Handle, uint32, error) {
	access, err := n.enter(ctx, mode.Want())
	if err != nil {
		return nil, 0, err
	}
	m, who, f := n.t.machine, callerOf(ctx), *n.whole()
	var h *transaction.Handle
	switch {
	case mode.Read && mode.Write || n.row.bare():
		// nothing here needs the flush: it saves a round trip; and WRITEs of other opens need not wait for this one's
		h, err = m.Open(who, f, mode, access)
		return h, fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES, err
	case !n.t.options.Dropbox && mode.Walk:
		h, err = m.Open(who, f, mode, access)
		return h, fuse.FOPEN_NOFLUSH, err
	case !n.t.options.Dropbox:
		return nil, 0, gate.Refuse(syscall.EOPNOTSUPP, "the drop box is off", "open the file for reading and writing, or use a slot in "+n.row.name+slotsSuffix)
	case mode.Write:
		h, err = m.Deposit(who, f, mode, access)
		return h, 0, err
	}
	h, err = m.Claim(who, f, mode, access)
	return h, fuse.FOPEN_NOFLUSH, err
}

var _ = (fs.NodeSetattrer)((*operationFile)(nil))

// Setattr is safe because truncation touches the transaction of its own open file alone. O_TRUNC arrives here
// without a handle, before the first WRITE, and has nothing to empty.
func (n *operationFile) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := truncated(fh, in, size); err != nil {
			return n.t.fail(ctx, n.place(), "truncate", err)
		}
	}
	return n.changed(ctx, in, out)
}

// changed is change of a file from which somebody may read.
func (b *base) changed(ctx context.Context, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	errno := b.change(ctx, in, out)
	b.t.sizes.keep(b.ino, out)
	return errno
}

// truncated is ftruncate(2); by the file's name there is nothing to empty.
func truncated(fh fs.FileHandle, in *fuse.SetAttrIn, size uint64) error {
	if h, ok := fh.(*handle); ok && in.Valid&fuse.FATTR_FH != 0 {
		err := h.h.Truncate(size)
		if err == nil {
			h.t.sizes.hold(h, 0)
		}
		return err
	}
	if size != 0 {
		return transaction.ErrTruncate
	}
	return nil
}

// handle is one open file of a transaction: an operation's own, a slot, or a part of one.
type handle struct {
	n       node
	t       *Tree
	h       *transaction.Handle
	both    bool // it is open for reading and writing
	appends bool
	held    atomic.Bool // sizes hold it; changed under their lock
}

func newHandle(n node, t *Tree, h *transaction.Handle, mode transaction.Mode) *handle {
	x := &handle{n: n, t: t, h: h, both: mode.Read && mode.Write, appends: mode.Append}
	if mode.Read && !mode.Write && !h.Answered() {
		t.sizes.hold(x, 0)
	}
	return x
}

var _ = (fs.FileWriter)((*handle)(nil))

// Write only collects, and is safe because it never runs an operation: the kernel holds the inode's lock meanwhile.
func (h *handle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if off > farthest && !h.appends {
		return 0, h.t.fail(ctx, h.n.place(), "write", transaction.ErrHole)
	}
	if err := h.h.Write(ctx, data, off); err != nil {
		return 0, h.t.fail(ctx, h.n.place(), "write", err)
	}
	h.t.sizes.hold(h, off+int64(len(data)))
	return uint32(len(data)), 0
}

var _ = (fs.FileReader)((*handle)(nil))

// Read runs the operation, once, and is safe because the gate judges whoever reads, and the channel is this handle's own,
// its slot's, or was claimed by the rules of the drop box.
func (h *handle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, more, err := h.h.Read(ctx, callerOf(ctx), dest, off)
	if err != nil {
		return nil, h.t.fail(ctx, h.n.place(), "read", err)
	}
	if !more {
		h.t.sizes.drop(h)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

var _ = (fs.FileFlusher)((*handle)(nil))

// Flush is safe because it runs nothing: bash sends it before the first WRITE, and after each command of a group.
func (h *handle) Flush(ctx context.Context) syscall.Errno {
	h.h.Flush(callerOf(ctx))
	return 0
}

var _ = (fs.FileReleaser)((*handle)(nil))

// Release wipes. The kernel sends it late, as uid 0 and pid 0, and tells nobody what it answered.
func (h *handle) Release(context.Context) syscall.Errno {
	h.h.Release()
	h.t.sizes.drop(h)
	return 0
}
