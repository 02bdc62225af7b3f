package nodes

import (
	"cmp"
	"context"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
)

// Inode numbers: the number of the key, provider or alias times 256 plus the row's; the root's own number is 0. Those of
// users' directories are kim.UserInode's.
const (
	rootIno      = 1
	inoPerNumber = 256
	transientIno = 1 << 62 // slots: above every number that the KIM gives out
)

// stat is what a node says of itself before the KIM's changes.
type stat struct {
	kind     uint32 // S_IFREG, S_IFDIR, S_IFLNK
	mode     uint32 // permission bits
	uid, gid uint32
	size     uint64
	changed  time.Time
	links    uint32
	acl      gate.ACL // of nodes whose ACL follows another one's
	// settable are the bits that chmod can give. Without any, mode, owner, ACL and labels cannot be changed, and fixed
	// says why: what a new kind of node does not say cannot be changed.
	settable uint32
	fixed    string
	// unlabelled: of a directory that is there for every uid, whose labels nothing would bound
	unlabelled bool
	// fleeting and fleetingName: attributes, or the name, change with what happens elsewhere, which the kernel does not
	// see: it asks each time
	fleeting, fleetingName bool
	// never and neverName: attributes, or what the name leads to, depend on who asks, and the kernel keeps none
	never, neverName bool
	// lasting: the name is there as long as the mount, and attributes change only by what the kernel asks for, or is told of
	lasting bool
	// answers: what is read from it are answers to whoever reads
	answers bool
}

// keeps is how long the kernel may keep the attributes, 0 for go-fuse's default.
func (t *Tree) keeps(s stat) time.Duration {
	switch {
	case s.never:
		return never
	case s.fleeting:
		return fleeting
	case s.lasting:
		t.kept.Store(true)
		return t.options.Lasting
	}
	return 0
}

// changeable refuses what is fixed.
func (s stat) changeable() error {
	if s.settable == 0 {
		return gate.Refuse(syscall.EPERM, s.fixed, "")
	}
	return nil
}

// node is what each type of this package adds to base.
type node interface {
	fs.InodeEmbedder
	stat(ctx context.Context) (stat, error)
	place() place
	number() uint64
	generation() uint64
	attr(ctx context.Context, out *fuse.Attr) (stat, error)
}

// place says where a node stands, for messages.
type place struct {
	t        *Tree
	provider *kim.Provider
	key      int64
	file     string
}

// path is relative to the mount; a key's name is asked now, because keys are renamed.
func (p place) path() string {
	if p.key == 0 {
		return p.pathOf("")
	}
	k, err := p.t.kim.Key(context.Background(), p.key)
	if err != nil {
		k.Name = "?"
	}
	return p.pathOf(k.Path())
}

// pathFor is path for a user's own eyes: where they come by another way than the directory of a key, and may not search that,
// its name stays its owner's.
func (p place) pathFor(ctx context.Context, who caller.Caller) string {
	if p.key == 0 || who.UID == 0 {
		return p.path()
	}
	k, err := p.t.kim.Key(calm(ctx), p.key)
	if err != nil {
		return p.path()
	}
	uid, own := k.Space.User()
	if own && uid != who.UID && p.t.gate.Named(ctx, who, p.t.keys(p.provider, k.Space), gate.Search) != nil {
		k.Name = "?"
	}
	return p.pathOf(k.Path())
}

// pathOf is path with a key's own.
func (p place) pathOf(key string) string {
	var names []string
	if p.provider != nil {
		names = append(names, "providers", p.provider.Name())
	}
	if p.key != 0 {
		names = append(names, key)
	}
	if p.file != "" {
		names = append(names, p.file)
	}
	return cmp.Or(strings.Join(names, "/"), ".")
}

// base answers what is the same for every node: attributes from stat and KIM, and a refusal for whatever the tree does
// not do. go-fuse takes a missing Unlink or Rmdir for success, so both are always answered.
type base struct {
	fs.Inode
	t    *Tree
	ino  uint64
	self node
}

func (t *Tree) base(ino uint64) base { return base{t: t, ino: ino} }

func (b *base) number() uint64 { return b.ino }

func (b *base) generation() uint64 { return 0 }

// attr fills out with stat and the KIM's changes for this inode.
func (b *base) attr(ctx context.Context, out *fuse.Attr) (stat, error) {
	p, err := b.permissions(ctx)
	if err != nil {
		return stat{}, err
	}
	s := p.stat
	out.Ino, out.Mode, out.Size, out.Nlink = b.ino, s.kind|p.mode, s.size, max(s.links, 1)
	out.Uid, out.Gid = p.uid, p.gid
	out.Blksize = 4096
	out.Blocks = (s.size + 511) / 512
	out.SetTimes(&s.changed, &s.changed, &s.changed)
	out.SetTimes(p.stored.Atime, p.stored.Mtime, p.stored.Ctime)
	if s.answers {
		b.t.sizes.answer(b.ino)
	}
	return s, nil
}

var _ = (fs.NodeGetattrer)((*base)(nil))

// Getattr is safe because it says nothing secret: sizes of public texts only. The kernel hands it any open handle of
// the inode, so the handle is never asked.
func (b *base) Getattr(ctx context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	s, err := b.attr(ctx, &out.Attr)
	out.SetTimeout(b.t.keeps(s))
	return errnoOf(err)
}

var _ = (fs.NodeStatfser)((*base)(nil))

// Statfs is safe because it counts the caller's own keys: files are the quota, and df -i shows what is left of it.
func (b *base) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	used, most, err := b.t.kim.Quota(calm(ctx), callerOf(ctx).UID)
	if err != nil {
		return errnoOf(err)
	}
	out.Bsize, out.Frsize, out.NameLen = 4096, 4096, kim.MaxName
	out.Files, out.Ffree = uint64(max(most, used)), uint64(max(most-used, 0))
	return 0
}

var _ = (fs.NodeFsyncer)((*base)(nil))

// Fsync is safe because what took effect is on the disk already; go-fuse's default is a failure.
func (b *base) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno { return 0 }

var _ = (fs.NodeLseeker)((*base)(nil))

// Lseek answers SEEK_DATA and SEEK_HOLE: all is data, and there is no hole at the end of a file, where go-fuse's default finds one.
// It is safe because it says what stat(2) says.
func (b *base) Lseek(ctx context.Context, _ fs.FileHandle, off uint64, whence uint32) (uint64, syscall.Errno) {
	s, err := b.self.stat(ctx)
	if err != nil {
		return 0, errnoOf(err)
	}
	if off >= s.size {
		return 0, syscall.ENXIO
	}
	if whence == unix.SEEK_HOLE {
		return s.size, 0
	}
	return off, 0
}

func (b *base) denied(ctx context.Context, op, why, hint string) syscall.Errno {
	at, err := b.self.place(), gate.Refuse(syscall.EPERM, why, hint)
	b.t.audit(callerOf(ctx), AuditOpen, at, op, time.Now(), err) // nothing could have come of it
	return b.t.remember(ctx, at, op, err)
}

var _ = (fs.NodeUnlinker)((*base)(nil))

// Unlink is safe because it refuses: only rmdir ends a key.
func (b *base) Unlink(ctx context.Context, _ string) syscall.Errno {
	return b.denied(ctx, "unlink", "this file exists as long as its key", "destroy the key with rmdir")
}

var _ = (fs.NodeRmdirer)((*base)(nil))

// Rmdir is safe because it refuses.
func (b *base) Rmdir(ctx context.Context, _ string) syscall.Errno {
	return b.denied(ctx, "rmdir", "this directory is part of the tree", "")
}

var _ = (fs.NodeRenamer)((*base)(nil))

// Rename is safe because it refuses; EPERM and not EXDEV, which would start mv copying.
func (b *base) Rename(ctx context.Context, _ string, _ fs.InodeEmbedder, _ string, _ uint32) syscall.Errno {
	return b.denied(ctx, "rename", "this name is part of the tree", "")
}

var _ = (fs.NodeLinker)((*base)(nil))

// Link is safe because it refuses.
func (b *base) Link(ctx context.Context, _ fs.InodeEmbedder, _ string, _ *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, b.denied(ctx, "link", "hard links cannot be made here", aliasHint)
}

// aliasHint says whose aliases are, and why.
const aliasHint = "only root can make aliases (symbolic links in keys/ at the top of the mount), since other users' programs follow them"

var _ = (fs.NodeSymlinker)((*base)(nil))

// Symlink is safe because it refuses.
func (b *base) Symlink(ctx context.Context, _, _ string, _ *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, b.denied(ctx, "symlink", "symbolic links cannot be made here", aliasHint)
}

var _ = (fs.NodeMknoder)((*base)(nil))

// Mknod is safe because it refuses.
func (b *base) Mknod(ctx context.Context, _ string, _, _ uint32, _ *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, b.denied(ctx, "mknod", "device nodes, pipes and sockets cannot be made here", "")
}

var _ = (fs.NodeMkdirer)((*base)(nil))

// Mkdir is safe because it refuses.
func (b *base) Mkdir(ctx context.Context, _ string, _ uint32, _ *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return nil, b.denied(ctx, "mkdir", "directories cannot be made here", "make a key with mkdir in a provider's keys/ or mine/")
}

var _ = (fs.NodeCreater)((*base)(nil))

// Create is safe because it refuses.
func (b *base) Create(ctx context.Context, _ string, _, _ uint32, _ *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	return nil, nil, 0, b.denied(ctx, "create", "files cannot be made here",
		"make a key with mkdir in a provider's keys/ or mine/, and a slot in an operation's .d directory")
}

// entry gives the kernel a child: the inode that it already knows under this number, or n.
func (t *Tree) entry(ctx context.Context, parent *fs.Inode, n node, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	s, err := n.attr(ctx, &out.Attr)
	if err != nil {
		return nil, errnoOf(err)
	}
	out.SetAttrTimeout(t.keeps(s))
	switch {
	case s.neverName:
		out.SetEntryTimeout(never)
	case s.fleetingName:
		out.SetEntryTimeout(fleeting)
	case s.lasting:
		out.SetEntryTimeout(t.options.Lasting)
	}
	return parent.NewInode(ctx, n, fs.StableAttr{Mode: out.Attr.Mode & syscall.S_IFMT, Ino: n.number(), Gen: n.generation()}), 0
}

func errnoName(e syscall.Errno) string {
	if e == syscall.EOPNOTSUPP { // ENOTSUP is another name of it on Linux
		return "EOPNOTSUPP"
	}
	if n := unix.ErrnoName(e); n != "" {
		return n
	}
	return "errno " + e.Error()
}
