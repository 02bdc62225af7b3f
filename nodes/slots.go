package nodes

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/nodes/transaction"
)

// slotsSuffix makes the name of an operation's directory of slots.
const slotsSuffix = ".d"

// slotsRow finds the operation of rows whose slots live under name.
func slotsRow(rows []*row, name string) *row {
	if len(name) <= len(slotsSuffix) || name[len(name)-len(slotsSuffix):] != slotsSuffix {
		return nil
	}
	r := find(rows, name[:len(name)-len(slotsSuffix)])
	if r == nil || r.kind != request {
		return nil
	}
	return r
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

// operation is the file that this directory's slots are for.
func (n *slotsDir) operation() *operationFile { return n.t.file(n.row, n.p, n.key).(*operationFile) }

// stat follows the operation's own file: who may read and write X may make slots in X.d, and list their own.
func (n *slotsDir) stat(ctx context.Context) (stat, error) {
	p, err := n.operation().permissions(ctx)
	if err != nil {
		return stat{}, err
	}
	a, mode := p.rights().Slots()
	changed := p.stat.changed
	if p.stored.Ctime != nil {
		changed = *p.stored.Ctime
	}
	// the rights are asked for each time, because they are another file's
	return stat{kind: syscall.S_IFDIR, mode: syscall.S_ISVTX | mode, uid: p.uid, gid: p.gid, acl: a, changed: changed, links: 2,
		fixed: "the mode of this directory follows that of the operation's file", fleeting: true, fleetingName: true}, nil
}

// slot is the place of a slot.
func (n *slotsDir) slot(name string) place {
	at := n.place()
	at.file += "/" + name
	return at
}

func (n *slotsDir) node(name string, s *transaction.Slot) node {
	at := n.slot(name)
	ino := slotIno(s.Number)
	if s.Parted() {
		d := &slotDir{slotBase{base: n.t.base(ino), at: at, slot: s}}
		d.self = d
		return d
	}
	f := &slotFile{slotBase{base: n.t.base(ino), at: at, slot: s}}
	f.self = f
	return f
}

func slotIno(number uint64) uint64 { return transientIno + number*inoPerNumber }

var _ = (fs.NodeLookuper)((*slotsDir)(nil))

// Lookup is safe because a slot's node opens for its creator alone.
func (n *slotsDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	s := n.t.machine.Slot(n.ino, name)
	if s == nil {
		return nil, syscall.ENOENT
	}
	return n.t.entry(ctx, &n.Inode, n.node(name, s), out)
}

var _ = (fs.NodeReaddirer)((*slotsDir)(nil))

// Readdir is safe because it shows the caller's own slots alone, to root too: root has no business in others'.
func (n *slotsDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	return n.listed(ctx, func(ctx context.Context) (fs.DirStream, syscall.Errno) {
		var list []fuse.DirEntry
		for _, s := range n.t.machine.SlotsOf(n.ino, callerOf(ctx).UID) {
			kind := uint32(syscall.S_IFREG)
			if s.Parted() {
				kind = syscall.S_IFDIR
			}
			list = append(list, fuse.DirEntry{Name: s.Name, Mode: kind, Ino: slotIno(s.Number)})
		}
		return fs.NewListDirStream(list), 0
	})
}

// make makes a slot for whoever may open the operation's own file for reading and writing.
func (n *slotsDir) make(ctx context.Context, name string, directory bool) (*transaction.Slot, error) {
	if err := kim.ValidName(name); err != nil {
		return nil, err
	}
	if directory && !n.row.spec.Parted() {
		return nil, gate.Refuse(syscall.EPERM, n.row.name+" has one input, so its slots are files", "create a file instead")
	}
	if !directory && n.row.spec.Parted() {
		return nil, gate.Refuse(syscall.EPERM, n.row.name+" has several inputs, so its slots are directories", "use mkdir instead")
	}
	f := n.operation()
	access, err := f.enter(ctx, gate.ReadWrite)
	if err != nil {
		return nil, err
	}
	return n.t.machine.NewSlot(callerOf(ctx), n.ino, name, f.transactions(n.slot(name)), access, slotIno)
}

var _ = (fs.NodeCreater)((*slotsDir)(nil))

// Create makes a file slot. It is safe because the kernel asked for w and x on this directory, which follow rw on the
// operation, the gate for what the kernel could not, and the file is its creator's alone whatever mode was asked for.
func (n *slotsDir) Create(ctx context.Context, name string, flags, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	s, err := n.make(ctx, name, false)
	if err != nil {
		return nil, nil, 0, n.t.fail(ctx, n.place(), "create", err)
	}
	f := n.node(name, s).(*slotFile)
	in, errno := n.t.entry(ctx, &n.Inode, f, out)
	if errno != 0 {
		s.Remove()
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
	return n.t.entry(ctx, &n.Inode, n.node(name, s), out)
}

// take removes a slot for its creator.
func (n *slotsDir) take(name string, directory bool) syscall.Errno {
	s := n.t.machine.Slot(n.ino, name)
	switch {
	case s == nil:
		return syscall.ENOENT
	case directory && !s.Parted():
		return syscall.ENOTDIR
	case !directory && s.Parted():
		return syscall.EISDIR
	}
	s.Remove()
	return 0
}

var _ = (fs.NodeUnlinker)((*slotsDir)(nil))

// Unlink is safe because the directory is sticky: the kernel lets the slot's owner, the operation's and root through.
func (n *slotsDir) Unlink(_ context.Context, name string) syscall.Errno { return n.take(name, false) }

var _ = (fs.NodeRmdirer)((*slotsDir)(nil))

// Rmdir is safe as Unlink is.
func (n *slotsDir) Rmdir(_ context.Context, name string) syscall.Errno { return n.take(name, true) }

// slotBase is what the nodes of a slot share.
type slotBase struct {
	base
	at   place
	slot *transaction.Slot
}

func (n *slotBase) place() place { return n.at }

func (n *slotBase) own(kind, mode uint32) stat {
	return stat{kind: kind, mode: mode, uid: n.slot.UID, gid: n.slot.GID, changed: n.slot.Made, fixed: "only its creator can use a slot"}
}

// open is safe because the slot asks for its creator's uid itself, and opens by the slot's own access.
func (n *slotBase) open(ctx context.Context, self node, part transaction.Part, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, err := n.slot.Open(ctx, callerOf(ctx), part, modeOf(flags))
	if err != nil {
		return nil, 0, n.t.fail(ctx, self.place(), "open", err)
	}
	mode := modeOf(flags)
	mode.Read = mode.Read && !part.Input()
	return newHandle(self, n.t, h, mode), fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

// slotFile is a slot of an operation with one input.
type slotFile struct{ slotBase }

func (n *slotFile) stat(ctx context.Context) (stat, error) {
	s := n.own(syscall.S_IFREG, 0600)
	n.t.answering(ctx, n.ino, &s)
	return s, nil
}

var _ = (fs.NodeOpener)((*slotFile)(nil))

// Open is safe as slotBase.open says.
func (n *slotFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return n.open(ctx, n, transaction.Part{}, flags)
}

var _ = (fs.NodeSetattrer)((*slotFile)(nil))

// Setattr is safe because only the slot's creator can truncate it.
func (n *slotFile) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := n.truncate(ctx, fh, in, size); err != nil {
			return n.t.fail(ctx, n.place(), "truncate", err)
		}
	}
	return n.changed(ctx, in, out)
}

func (n *slotFile) truncate(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, size uint64) error {
	if in.Valid&fuse.FATTR_FH == 0 {
		return n.slot.Truncate(ctx, callerOf(ctx), transaction.Part{}, size)
	}
	if err := n.slot.Enter(ctx, callerOf(ctx)); err != nil {
		return err
	}
	return truncated(fh, in, size)
}

// slotDir is a slot of an operation with several inputs: a file for each input and output.
type slotDir struct{ slotBase }

func (n *slotDir) stat(context.Context) (stat, error) {
	s := n.own(syscall.S_IFDIR, 0700)
	s.links = 2
	return s, nil
}

var _ = (fs.NodeLookuper)((*slotDir)(nil))

// Lookup is safe because names come from the table.
func (n *slotDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	for _, p := range n.slot.Spec.Parts() {
		if p.Name != name {
			continue
		}
		at := n.at
		at.file += "/" + name
		f := &slotPart{slotBase: slotBase{base: n.t.base(n.ino + p.Number), at: at, slot: n.slot}, part: p}
		f.self = f
		return n.t.entry(ctx, &n.Inode, f, out)
	}
	return nil, syscall.ENOENT
}

var _ = (fs.NodeReaddirer)((*slotDir)(nil))

// Readdir is safe because names come from the table.
func (n *slotDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	return n.listed(ctx, func(context.Context) (fs.DirStream, syscall.Errno) {
		var list []fuse.DirEntry
		for _, p := range n.slot.Spec.Parts() {
			list = append(list, fuse.DirEntry{Name: p.Name, Mode: syscall.S_IFREG, Ino: n.ino + p.Number})
		}
		return fs.NewListDirStream(list), 0
	})
}

// slotPart is one input or output of a directory slot.
type slotPart struct {
	slotBase
	part transaction.Part
}

// stat is asked for each time: an output's size follows its inputs, which the kernel does not see here.
func (n *slotPart) stat(context.Context) (stat, error) {
	mode := uint32(0400) // inputs too: walks open what they find
	if n.part.In {
		mode |= 0200
	}
	s := n.own(syscall.S_IFREG, mode)
	s.fleeting, s.answers, s.never = true, n.part.Out, n.part.Out
	s.size = uint64(n.slot.Size(n.part))
	return s, nil
}

var _ = (fs.NodeOpener)((*slotPart)(nil))

// Open is safe as slotBase.open says; the slot asks for the part's direction too, which root could ignore.
func (n *slotPart) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return n.open(ctx, n, n.part, flags)
}

var _ = (fs.NodeSetattrer)((*slotPart)(nil))

// Setattr is safe because only the slot's creator can truncate; emptying one input of an answered request begins anew.
func (n *slotPart) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := n.slot.Truncate(ctx, callerOf(ctx), n.part, size); err != nil {
			return n.t.fail(ctx, n.place(), "truncate", err)
		}
	}
	return n.changed(ctx, in, out)
}
