package nodes

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
)

// slotsSuffix makes the name of an operation's directory of slots.
const slotsSuffix = ".d"

// slotTime is how long a slot stays after its last close.
const slotTime = 120 * time.Second

// slotFixed is why nobody else uses or changes a slot.
const slotFixed = "a slot is its creator's alone"

// slotsRow finds the operation of rows whose slots live under name.
func slotsRow(rows []*row, name string) *row {
	if len(name) <= len(slotsSuffix) || name[len(name)-len(slotsSuffix):] != slotsSuffix {
		return nil
	}
	r := find(rows, name[:len(name)-len(slotsSuffix)])
	if r == nil || r.kind != transaction {
		return nil
	}
	return r
}

// slotTable holds the slots of all operations. They outlive the kernel's memory of their inodes.
type slotTable struct {
	t    *Tree
	mu   sync.Mutex
	last uint64
	dirs map[uint64]map[string]*slot // by the inode of the .d directory
}

// slot is a private, named transaction: a file, or for several inputs a directory of them.
type slot struct {
	t        *Tree
	dir      uint64
	name     string
	ino      uint64
	uid, gid uint32
	made     time.Time
	at       place
	row      *row
	release  func()

	channel *channel       // of a file
	shared  *sharedRequest // of a directory

	mu    sync.Mutex
	opens int
	ended bool // removed: it ends with its last close, as any file does
	timer *time.Timer
}

func (t *slotTable) find(dir uint64, name string) *slot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dirs[dir][name]
}

// add makes a slot; an existing name is EEXIST.
func (t *slotTable) add(dir uint64, name string, r *row, at place, c fuse.Caller) (*slot, error) {
	if err := t.t.account.change(c.Uid, 1, 0); err != nil {
		return nil, err
	}
	release := sync.OnceFunc(func() { _ = t.t.account.change(c.Uid, -1, 0) })
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dirs[dir][name] != nil {
		release()
		return nil, refuse(syscall.EEXIST, "the slot exists", "choose another name")
	}
	t.last++
	at.file = r.path() + slotsSuffix + "/" + name
	s := &slot{t: t.t, dir: dir, name: name, ino: transientIno + t.last*inoPerNumber, uid: c.Uid, gid: c.Gid, made: time.Now(),
		at: at, row: r, release: release}
	fresh := func() *request {
		q := t.t.newRequest(at, r, c.Uid)
		q.parted = r.many()
		return q
	}
	if r.many() {
		s.shared = &sharedRequest{make: fresh, bare: r.bare()}
	} else {
		s.channel = &channel{t: t.t, ino: s.ino, make: fresh}
	}
	s.timer = time.AfterFunc(slotTime, func() { t.remove(s) })
	if t.dirs == nil {
		t.dirs = map[uint64]map[string]*slot{}
	}
	if t.dirs[dir] == nil {
		t.dirs[dir] = map[string]*slot{}
	}
	t.dirs[dir][name] = s
	return s, nil
}

// remove ends a slot: by rm or rmdir, by its key's end or by its time.
func (t *slotTable) remove(s *slot) {
	t.mu.Lock()
	if t.dirs[s.dir][s.name] == s {
		delete(t.dirs[s.dir], s.name)
		if len(t.dirs[s.dir]) == 0 {
			delete(t.dirs, s.dir)
		}
	}
	t.mu.Unlock()
	s.end()
}

func (t *slotTable) drop(match func(ino uint64) bool) {
	t.mu.Lock()
	var list []*slot
	for ino, dir := range t.dirs {
		if match(ino) {
			for _, s := range dir {
				list = append(list, s)
			}
		}
	}
	t.mu.Unlock()
	for _, s := range list {
		t.remove(s)
		s.mu.Lock()
		s.wipe()
		s.mu.Unlock()
	}
}

func (t *slotTable) clear() { t.drop(func(uint64) bool { return true }) }

// end is the end of the name; who still holds the slot open goes on with it, as with any removed file.
func (s *slot) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer.Stop()
	if s.ended = true; s.opens == 0 {
		s.wipe()
	}
}

// wipe drops the request. The caller holds s.mu.
func (s *slot) wipe() {
	if s.channel != nil {
		s.channel.close()
	} else {
		s.shared.reset()
	}
	if s.opens == 0 {
		s.release()
	}
}

func (s *slot) opened() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens++
	s.timer.Stop()
}

func (s *slot) closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.opens--; {
	case s.opens > 0:
	case s.ended:
		s.wipe()
	default:
		s.timer.Reset(slotTime)
	}
}

// access is the right that a slot stands for: to read and write its operation's own file.
func (s *slot) access() *access { return s.t.accessTo(s.row, s.at.provider, s.at.key, syscall.O_RDWR) }

// mine refuses everybody but the slot's creator, root included: the kernel lets root in everywhere.
func (s *slot) mine(ctx context.Context) error {
	if caller(ctx).Uid != s.uid {
		return refuse(syscall.EACCES, slotFixed, "make one of your own")
	}
	k, err := s.t.keyOf(ctx, s.at.key)
	if err != nil {
		return err
	}
	return s.t.admit(ctx, s.at.provider, &k)
}

// slotsDir is <operation>.d/.
type slotsDir struct {
	base
	row *row
	p   *kim.Provider
	key int64
}

func (n *slotsDir) place() place {
	return place{t: n.t, provider: n.p, key: n.key, file: n.row.path() + slotsSuffix}
}

// stat follows the operation's own file: who may read and write X may make slots in X.d, and nobody may list them.
func (n *slotsDir) stat(ctx context.Context) (stat, error) {
	p, err := n.t.file(n.row, n.p, n.key).(*operationFile).permissions(ctx)
	if err != nil {
		return stat{}, err
	}
	a, mode := p.rights().slots()
	changed := p.stat.changed
	if p.stored.Ctime != nil {
		changed = *p.stored.Ctime
	}
	// the rights are asked for each time, because they are another file's
	return stat{kind: syscall.S_IFDIR, mode: syscall.S_ISVTX | mode, uid: p.uid, gid: p.gid, acl: a, changed: changed, links: 2,
		fixed: "the mode of a directory of slots follows its operation's own file", fleeting: true, fleetingName: true}, nil
}

func (n *slotsDir) node(s *slot) node {
	if s.shared != nil {
		d := &slotDir{base: n.t.base(s.ino), slot: s}
		d.self = d
		return d
	}
	f := &slotFile{base: n.t.base(s.ino), slot: s}
	f.self = f
	return f
}

var _ = (fs.NodeLookuper)((*slotsDir)(nil))

// Lookup is safe because a slot's node opens for its creator alone.
func (n *slotsDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	s := n.t.slots.find(n.ino, name)
	if s == nil {
		return nil, syscall.ENOENT
	}
	return n.t.entry(ctx, &n.Inode, n.node(s), out)
}

var _ = (fs.NodeReaddirer)((*slotsDir)(nil))

// Readdir shows nothing, to root either: slot names may be guessed from, and root has no business there.
func (n *slotsDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	return fs.NewListDirStream(nil), 0
}

// make judges a new slot's name, and that the operation is still there.
func (n *slotsDir) make(ctx context.Context, name string, directory bool) (*slot, error) {
	if err := ValidName(name); err != nil {
		return nil, err
	}
	if directory != n.row.many() {
		if directory {
			return nil, refuse(syscall.EPERM, n.row.name+" has one input: its slots are files", "create a file instead")
		}
		return nil, refuse(syscall.EPERM, n.row.name+" has several inputs: its slots are directories", "mkdir instead")
	}
	k, err := n.t.keyOf(ctx, n.key)
	if err != nil {
		return nil, err
	}
	if v := (&view{ctx: ctx, t: n.t, provider: n.p, key: k}); !n.row.shown(v) {
		return nil, gone(errAbsent)
	}
	if err := n.t.admit(ctx, n.p, &k); err != nil {
		return nil, err
	}
	return n.t.slots.add(n.ino, name, n.row, n.place(), caller(ctx))
}

var _ = (fs.NodeCreater)((*slotsDir)(nil))

// Create makes a file slot. It is safe because the kernel asked for w and x on this directory, which follow rw on the
// operation, and the file is its creator's alone whatever mode was asked for.
func (n *slotsDir) Create(ctx context.Context, name string, flags, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	s, err := n.make(ctx, name, false)
	if err != nil {
		return nil, nil, 0, n.t.fail(ctx, n.place(), "create", err)
	}
	f := n.node(s).(*slotFile)
	in, errno := n.t.entry(ctx, &n.Inode, f, out)
	if errno != 0 {
		n.t.slots.remove(s)
		return nil, nil, 0, errno
	}
	h, fuseFlags, errno := f.Open(ctx, flags)
	return in, h, fuseFlags, errno
}

var _ = (fs.NodeMkdirer)((*slotsDir)(nil))

// Mkdir makes a directory slot; safe as Create is.
func (n *slotsDir) Mkdir(ctx context.Context, name string, _ uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	s, err := n.make(ctx, name, true)
	if err != nil {
		return nil, n.t.fail(ctx, n.place(), "mkdir", err)
	}
	return n.t.entry(ctx, &n.Inode, n.node(s), out)
}

// take removes a slot for its creator.
func (n *slotsDir) take(ctx context.Context, name, op string, directory bool) syscall.Errno {
	s := n.t.slots.find(n.ino, name)
	switch {
	case s == nil:
		return syscall.ENOENT
	case directory && s.shared == nil:
		return syscall.ENOTDIR
	case !directory && s.shared != nil:
		return syscall.EISDIR
	}
	n.t.slots.remove(s)
	return 0
}

var _ = (fs.NodeUnlinker)((*slotsDir)(nil))

// Unlink is safe because the directory is sticky: the kernel lets the slot's owner, the operation's and root through.
func (n *slotsDir) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.take(ctx, name, "unlink", false)
}

var _ = (fs.NodeRmdirer)((*slotsDir)(nil))

// Rmdir is safe as Unlink is.
func (n *slotsDir) Rmdir(ctx context.Context, name string) syscall.Errno {
	return n.take(ctx, name, "rmdir", true)
}

// slotFile is a slot of an operation with one input.
type slotFile struct {
	base
	slot *slot
}

func (n *slotFile) place() place { return n.slot.at }

func (n *slotFile) stat(context.Context) (stat, error) {
	return stat{kind: syscall.S_IFREG, mode: 0600, uid: n.slot.uid, gid: n.slot.gid, changed: n.slot.made, size: n.t.sizes.size(n.ino),
		fixed: slotFixed}, nil
}

var _ = (fs.NodeOpener)((*slotFile)(nil))

// Open is safe because it asks for the creator's uid itself.
func (n *slotFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	err := n.slot.mine(ctx)
	var h *handle
	if err == nil {
		h, err = n.t.handle(n, ctx, flags, n.slot.access())
	}
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	n.slot.opened()
	count := h.release
	h.channel, h.shared = n.slot.channel, true
	h.release = func() { count(); n.slot.closed() }
	return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

var _ = (fs.NodeSetattrer)((*slotFile)(nil))

// Setattr is safe because only the slot's creator can truncate it.
func (n *slotFile) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		err := n.slot.mine(ctx)
		if err == nil {
			if err = truncated(fh, in, size); err == nil {
				if _, byHandle := in.GetFh(); !byHandle {
					err = n.slot.channel.truncate(false)
				}
			}
		}
		if err != nil {
			return n.t.fail(ctx, n.place(), "truncate", err)
		}
	}
	return n.change(ctx, in, out)
}

// slotDir is a slot of an operation with several inputs: a file for each input and output.
type slotDir struct {
	base
	slot *slot
}

func (n *slotDir) place() place { return n.slot.at }

func (n *slotDir) stat(context.Context) (stat, error) {
	return stat{kind: syscall.S_IFDIR, mode: 0700, uid: n.slot.uid, gid: n.slot.gid, changed: n.slot.made, links: 2, fixed: slotFixed}, nil
}

// part is a file of a directory slot.
type part struct {
	name    string
	number  uint64
	in, out bool
}

// slotParts lists the files of a row's directory slots: inputs, then outputs; nonce can be both.
func slotParts(r *row) []part {
	var list []part
	for _, in := range r.inputs {
		list = append(list, part{name: in.name, number: uint64(len(list) + 1), in: true})
	}
outputs:
	for _, o := range r.outputs {
		for i := range list {
			if list[i].name == o.name {
				list[i].out = true
				continue outputs
			}
		}
		list = append(list, part{name: o.name, number: uint64(len(list) + 1), out: true})
	}
	return list
}

func (p part) mode() uint32 {
	var m uint32
	if p.in {
		m |= 0200
	}
	if p.out {
		m |= 0400
	}
	return m
}

var _ = (fs.NodeLookuper)((*slotDir)(nil))

// Lookup is safe because names come from the table.
func (n *slotDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	for _, p := range slotParts(n.slot.row) {
		if p.name == name {
			f := &slotPart{base: n.t.base(n.slot.ino + p.number), slot: n.slot, part: p}
			f.self = f
			return n.t.entry(ctx, &n.Inode, f, out)
		}
	}
	return nil, syscall.ENOENT
}

var _ = (fs.NodeReaddirer)((*slotDir)(nil))

// Readdir is safe because names come from the table.
func (n *slotDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	var list []fuse.DirEntry
	for _, p := range slotParts(n.slot.row) {
		list = append(list, fuse.DirEntry{Name: p.name, Mode: syscall.S_IFREG, Ino: n.slot.ino + p.number})
	}
	return fs.NewListDirStream(list), 0
}

// slotPart is one input or output of a directory slot.
type slotPart struct {
	base
	slot *slot
	part part
}

func (n *slotPart) place() place {
	p := n.slot.at
	p.file += "/" + n.part.name
	return p
}

func (n *slotPart) stat(context.Context) (stat, error) {
	// an output's size follows its inputs, which the kernel does not see here
	s := stat{kind: syscall.S_IFREG, mode: n.part.mode(), uid: n.slot.uid, gid: n.slot.gid, changed: n.slot.made,
		fixed: slotFixed, fleeting: true}
	if n.part.out && n.slot.shared.asked() {
		s.size = uint64(sizeFor(0))
	}
	return s, nil
}

var _ = (fs.NodeOpener)((*slotPart)(nil))

// Open is safe because it asks for the creator's uid itself, and for the part's direction, which root could ignore.
func (n *slotPart) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	err := n.slot.mine(ctx)
	access := flags & syscall.O_ACCMODE
	switch {
	case err != nil:
	case access != syscall.O_RDONLY && !n.part.in:
		err = refuse(syscall.EACCES, n.part.name+" is an output", "")
	case access != syscall.O_WRONLY && !n.part.out:
		err = refuse(syscall.EACCES, n.part.name+" is an input", "")
	}
	var count *handle
	if err == nil {
		count, err = n.t.handle(n, ctx, flags, n.slot.access())
	}
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	n.slot.opened()
	return &partHandle{n: n, flags: flags, access: count.access, release: func() { count.release(); n.slot.closed() }},
		fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

var _ = (fs.NodeSetattrer)((*slotPart)(nil))

// Setattr is safe because only the slot's creator can truncate; emptying one input of an answered request begins anew.
func (n *slotPart) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		err := n.slot.mine(ctx)
		switch {
		case err != nil:
		case size != 0:
			err = refuse(syscall.EINVAL, "an input can be truncated to 0 only", "")
		case n.part.in:
			err = n.slot.shared.truncate(n.part.name)
		}
		if err != nil {
			return n.t.fail(ctx, n.place(), "truncate", err)
		}
	}
	return n.change(ctx, in, out)
}

// sharedRequest is the request that the inputs of a directory slot make together, each with a cursor of its own.
type sharedRequest struct {
	make func() *request
	bare bool // to read is to ask

	mu      sync.Mutex
	req     *request
	cursors map[string]cursor
}

func (q *sharedRequest) reset() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.anew()
}

func (q *sharedRequest) anew() {
	if q.req != nil {
		q.req.drop()
	}
	q.req, q.cursors = nil, nil
}

// change gives the request that a change of an input belongs to: after a READ everything starts anew, so that no old
// input slips into a new request.
func (q *sharedRequest) change() (*request, error) {
	if q.req != nil {
		switch phase, _, _, _ := q.req.state(); phase {
		case computing:
			return nil, errBusy
		case answered:
			q.anew()
		}
	}
	if q.req == nil {
		q.req, q.cursors = q.make(), map[string]cursor{}
	}
	return q.req, nil
}

func (q *sharedRequest) write(ctx context.Context, name string, p []byte, off int64, flags uint32) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	r, err := q.change()
	if err != nil {
		return err
	}
	c := q.cursors[name]
	if !c.follows(off, flags) {
		r.fault(errHole)
		return errHole
	}
	if err := r.write(ctx, name, p); err != nil {
		return err
	}
	c.advance(off, len(p))
	q.cursors[name] = c
	return nil
}

// truncate empties one input; a poisoned request can only be begun anew.
func (q *sharedRequest) truncate(name string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	r, err := q.change()
	if err != nil {
		return err
	}
	if _, _, poisoned, _ := r.state(); poisoned {
		q.anew()
		return nil
	}
	delete(q.cursors, name)
	r.clear(name)
	return nil
}

func (q *sharedRequest) pending() *request {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.req == nil && q.bare {
		q.req = q.make()
	}
	return q.req
}

// asked says whether a READ would find something to answer.
func (q *sharedRequest) asked() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.bare || q.req != nil
}

// partHandle is one open part of a directory slot.
type partHandle struct {
	n       *slotPart
	flags   uint32
	access  *access
	release func()

	mu    sync.Mutex
	reply replies
}

var _ = (fs.FileWriter)((*partHandle)(nil))

// Write only collects one input.
func (h *partHandle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if err := h.n.slot.shared.write(ctx, h.n.part.name, data, off, h.flags); err != nil {
		return 0, h.n.t.fail(ctx, h.n.place(), "write", err)
	}
	return uint32(len(data)), 0
}

var _ = (fs.FileReader)((*partHandle)(nil))

// Read runs the operation over the inputs that this slot got, once.
func (h *partHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	r := h.n.slot.shared.pending()
	err := h.access.check(ctx)
	switch {
	case err != nil:
	case r == nil:
		err = errNothing
	default:
		err = r.answer(ctx)
	}
	if err == nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		var res fuse.ReadResult
		if res, err = h.reply.read(r, h.n.part.name, dest, off); err == nil {
			return res, 0
		}
	}
	return nil, h.n.t.fail(ctx, h.n.place(), "read", err)
}

var _ = (fs.FileFsyncer)((*partHandle)(nil))

// Fsync is safe because there is nothing to store.
func (h *partHandle) Fsync(context.Context, uint32) syscall.Errno { return 0 }

var _ = (fs.FileReleaser)((*partHandle)(nil))

// Release ends one open; the slot lives on for a while.
func (h *partHandle) Release(context.Context) syscall.Errno {
	h.release()
	return 0
}
