package nodes

import (
	"context"
	"math"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// permissions is what decides who may use an inode: the node's own stat with the KIM's changes.
type permissions struct {
	stat     stat
	stored   kim.Inode
	mode     uint32 // permission bits, with the sticky bit
	uid, gid uint32
	acl      gate.ACL // nil: the mode says all
	inherits gate.ACL // of a directory: the default ACL
}

// permissions asks the node and the KIM.
func (b *base) permissions(ctx context.Context) (permissions, error) {
	s, err := b.self.stat(ctx)
	p := permissions{stat: s, mode: s.mode, uid: s.uid, gid: s.gid, acl: s.acl}
	if err != nil || b.ino >= transientIno {
		return p, err
	}
	i, found, err := b.t.kim.Inode(calm(ctx), b.ino)
	p.stored = i
	p.stored.Ino = b.ino
	if err != nil || !found {
		return p, err
	}
	if i.Mode != nil {
		p.mode = *i.Mode
	}
	if i.UID != nil {
		p.uid = *i.UID
	}
	if i.GID != nil {
		p.gid = *i.GID
	}
	if p.acl, err = storedACL(i.ACL, p.acl); err != nil {
		return p, err
	}
	p.inherits, err = storedACL(i.DefaultACL, nil)
	return p, err
}

// storedACL reads an ACL of the KIM; one that is damaged must not read as none.
func storedACL(b []byte, none gate.ACL) (gate.ACL, error) {
	if len(b) == 0 {
		return none, nil
	}
	a, err := gate.ParseACL(b)
	if err != nil {
		return nil, psa.Errorf(psa.StatusDataCorrupt, "a stored ACL is damaged").WithHint("restore the KIM from a backup")
	}
	return a, nil
}

func (p permissions) rights() gate.Rights { return gate.RightsOf(p.uid, p.gid, p.mode, p.acl) }

var _ = (fs.NodeSetattrer)((*base)(nil))

// Setattr is safe because the kernel lets owners and root through only (setattr_prepare), and whoever loses a right
// by it is judged again. The kernel sends size 0 for O_TRUNC, which has nothing to empty here.
func (b *base) Setattr(ctx context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if _, ok := in.GetSize(); ok {
		return b.t.fail(ctx, b.self.place(), "truncate", gate.Refuse(syscall.EINVAL, "this file cannot be truncated", ""))
	}
	return b.change(ctx, in, out)
}

// change stores a new mode, owner, group or times. Times that come with a size are the kernel's own.
func (b *base) change(ctx context.Context, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	mode, setMode := in.GetMode()
	uid, setUID := in.GetUID()
	gid, setGID := in.GetGID()
	atime, setAtime := in.GetATime()
	mtime, setMtime := in.GetMTime()
	if _, size := in.GetSize(); size {
		setAtime, setMtime = false, false
	}
	owner := setMode || setUID || setGID
	if !owner && !setAtime && !setMtime {
		return b.Getattr(ctx, nil, out)
	}
	begun, at := time.Now(), b.self.place()
	s, err := b.self.stat(ctx)
	if err != nil {
		return b.t.audited(ctx, at, "setattr", begun, err)
	}
	if err := s.changeable(); err != nil {
		// cp -p and install set what is there, and a slot has no times worth keeping
		other := setMode && mode&07777 != s.mode || setUID && uid != s.uid || setGID && gid != s.gid
		if owner && other {
			return b.t.fail(ctx, at, "setattr", err)
		}
		return b.Getattr(ctx, nil, out)
	}
	owns := func(gate.Rights) error { return nil }
	if owner {
		if owns, err = b.owner(ctx); err != nil {
			return b.t.audited(ctx, at, "setattr", begun, err)
		}
	}
	err = b.update(ctx, func(p permissions, i *kim.Inode) error {
		if err := owns(p.rights()); err != nil {
			return err
		}
		if setMode {
			mode &= p.stat.settable
			i.Mode = &mode
			i.ACL = p.acl.Chmod(mode).Marshal()
		}
		if setUID {
			i.UID = &uid
		}
		if setGID {
			i.GID = &gid
		}
		if setAtime {
			i.Atime = clamped(atime)
		}
		if setMtime {
			i.Mtime = clamped(mtime)
		}
		return nil
	})
	if err != nil {
		return b.t.audited(ctx, at, "setattr", begun, err)
	}
	b.t.audit(callerOf(ctx), AuditDeed, at, "setattr", begun, nil)
	return b.Getattr(ctx, nil, out)
}

// The times that the KIM can keep, which counts nanoseconds in 64 bits.
var (
	firstTime = time.Unix(0, math.MinInt64)
	lastTime  = time.Unix(0, math.MaxInt64)
)

// clamped is the nearest time that can be kept, as on every file system.
func clamped(t time.Time) *time.Time {
	if t.Before(firstTime) {
		t = firstTime
	}
	if t.After(lastTime) {
		t = lastTime
	}
	return &t
}

// owner is the gate for whoever changes who may do what, before anything is locked.
func (b *base) owner(ctx context.Context) (judge func(gate.Rights) error, err error) {
	p, err := b.permissions(ctx)
	if err != nil {
		return nil, err
	}
	directory := b.ino - b.ino%inoPerNumber
	if n, ok := b.self.(*keysDir); ok && n.space != kim.Shared {
		directory = 0 // its number is no key's and no provider's
	}
	return b.t.gate.Owner(callerOf(ctx), [gate.Steps]uint64{directory, b.ino}, p.rights()), nil
}

// update changes what the KIM keeps of an inode, one change after the other, and notes rights that were taken away.
func (b *base) update(ctx context.Context, change func(permissions, *kim.Inode) error) error {
	if err := b.t.auditing.ready(callerOf(ctx).UID, AuditDeed); err != nil {
		return err
	}
	b.t.changing.Lock()
	defer b.t.changing.Unlock()
	before, err := b.permissions(ctx)
	if err != nil {
		return err
	}
	i := before.stored
	if err := change(before, &i); err != nil {
		return err
	}
	now := time.Now()
	i.Ctime = &now
	if err := b.t.kim.SetInode(deed(ctx), i); err != nil {
		return b.inDoubt(err)
	}
	after, err := b.permissions(ctx)
	if err != nil {
		return b.inDoubt(err)
	}
	if after.stat.answers {
		b.t.sizes.change(b.ino)
	}
	if !before.rights().OnlyAdds(after.rights()) {
		b.t.gate.Lost(b.ino)
	}
	return nil
}

// inDoubt is for a change that failed, and may be stored nevertheless: nobody goes on by what was before.
func (b *base) inDoubt(err error) error {
	b.t.gate.Lost(b.ino)
	if b.t.options.Lasting > 0 {
		_ = b.NotifyContent(attributesOnly, 0)
	}
	return err
}

const userLabel = "user."

// label refuses what is no label of the owner's; ctx tells the caller.
func (b *base) label(ctx context.Context, name string) error {
	other := gate.Refuse(syscall.EOPNOTSUPP, "only user.* attributes and ACLs are supported", "")
	if !strings.HasPrefix(name, userLabel) || len(name) == len(userLabel) {
		return other
	}
	p, err := b.permissions(ctx)
	if err != nil {
		return err
	}
	if p.stat.settable == 0 || p.stat.unlabelled {
		return other
	}
	if uid := callerOf(ctx).UID; uid != p.uid && uid != 0 {
		return gate.Refuse(syscall.EPERM, "only the owner can set labels", "")
	}
	return nil
}

var _ = (fs.NodeGetxattrer)((*base)(nil))

// Getxattr is safe because labels and ACLs are no secrets: whoever may look the file up sees them, as elsewhere. The
// kernel asks for ACLs at each access, and for security.capability at each first write
// (https://github.com/rfjakob/gocryptfs/issues/515).
func (b *base) Getxattr(ctx context.Context, name string, dest []byte) (uint32, syscall.Errno) {
	value, err := b.xattr(ctx, name)
	if psa.StatusOf(err) == psa.StatusDoesNotExist || err == nil && value == nil {
		return 0, syscall.ENODATA
	}
	if err != nil {
		return 0, errnoOf(err)
	}
	return fit(dest, value)
}

func fit(dest, value []byte) (uint32, syscall.Errno) {
	if len(dest) < len(value) {
		return uint32(len(value)), syscall.ERANGE
	}
	return uint32(copy(dest, value)), 0
}

func (b *base) xattr(ctx context.Context, name string) ([]byte, error) {
	switch {
	case name == gate.AccessACL || name == gate.DefaultACL:
		p, err := b.permissions(ctx)
		if name == gate.DefaultACL {
			return p.inherits.Marshal(), err
		}
		return p.acl.Marshal(), err
	case strings.HasPrefix(name, userLabel):
		s, err := b.self.stat(ctx)
		if err != nil || s.settable == 0 {
			return nil, err
		}
		value, err := b.t.kim.Xattr(calm(ctx), b.ino, name)
		if err != nil {
			return nil, err
		}
		return append([]byte{}, value...), nil // an empty label is not none
	}
	return nil, nil
}

var _ = (fs.NodeListxattrer)((*base)(nil))

// Listxattr is safe as Getxattr is.
func (b *base) Listxattr(ctx context.Context, dest []byte) (uint32, syscall.Errno) {
	p, err := b.permissions(ctx)
	if err != nil {
		return 0, errnoOf(err)
	}
	var names []string
	if p.stat.settable != 0 {
		if names, err = b.t.kim.Xattrs(calm(ctx), b.ino); err != nil {
			return 0, errnoOf(err)
		}
	}
	if p.acl != nil {
		names = append(names, gate.AccessACL)
	}
	if p.inherits != nil {
		names = append(names, gate.DefaultACL)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return fit(dest, list)
}

var _ = (fs.NodeSetxattrer)((*base)(nil))

// Setxattr is safe because the kernel lets only owners and root change an ACL, labels are judged here, and an ACL and
// its mode are always stored together: an ACL that is out of step would grant what ls does not show.
func (b *base) Setxattr(ctx context.Context, name string, value []byte, flags uint32) syscall.Errno {
	if name == gate.AccessACL || name == gate.DefaultACL {
		return b.t.audited(ctx, b.self.place(), "setxattr "+name, time.Now(), b.setACL(ctx, name, value))
	}
	if err := b.label(ctx, name); err != nil {
		return b.t.fail(ctx, b.self.place(), "setxattr", err)
	}
	err := b.t.kim.SetXattr(deed(ctx), b.ino, name, value, int(flags&3))
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		err = gate.Refuse(syscall.ENODATA, "there is no such label", "")
	}
	return b.t.fail(ctx, b.self.place(), "setxattr", err)
}

// maxUserACL bounds, in bytes, the ACLs of a directory that is there for every uid.
const maxUserACL = 4 + 32*8

func (b *base) setACL(ctx context.Context, name string, value []byte) error {
	s, err := b.self.stat(ctx)
	if err != nil {
		return err
	}
	if err := s.changeable(); err != nil {
		return err
	}
	if s.unlabelled && len(value) > maxUserACL {
		return gate.Refuse(syscall.ENOSPC, "the ACL of a user's directory can have at most 32 entries", "use a group")
	}
	a, err := gate.ParseACL(value)
	if err != nil {
		return err
	}
	owns, err := b.owner(ctx)
	if err != nil {
		return err
	}
	return b.update(ctx, func(p permissions, i *kim.Inode) error {
		if err := owns(p.rights()); err != nil {
			return err
		}
		switch {
		case name == gate.DefaultACL && p.stat.kind != syscall.S_IFDIR:
			return gate.Refuse(syscall.EACCES, "only a directory can have a default ACL", "")
		case name == gate.DefaultACL:
			i.DefaultACL = a.Marshal()
		case a == nil:
			i.ACL = nil
		default:
			// nothing that chmod could not give either; the mask keeps it from the other entries
			bits, _ := a.Mode()
			a = a.Chmod(bits & p.stat.settable)
			bits, more := a.Mode()
			mode := p.mode&^0777 | bits
			i.Mode, i.ACL = &mode, nil
			if more {
				i.ACL = a.Marshal()
			}
		}
		return nil
	})
}

// noACL is an ACL of version 2 without entries.
var noACL = []byte{2, 0, 0, 0}

var _ = (fs.NodeRemovexattrer)((*base)(nil))

// Removexattr is safe as Setxattr is. Without its ACL a file keeps its mode, whose group bits were the mask.
func (b *base) Removexattr(ctx context.Context, name string) syscall.Errno {
	if name == gate.AccessACL || name == gate.DefaultACL {
		return b.t.audited(ctx, b.self.place(), "removexattr "+name, time.Now(), b.setACL(ctx, name, noACL))
	}
	if err := b.label(ctx, name); err != nil {
		return b.t.fail(ctx, b.self.place(), "removexattr", err)
	}
	err := b.t.kim.RemoveXattr(deed(ctx), b.ino, name)
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		return syscall.ENODATA
	}
	return b.t.fail(ctx, b.self.place(), "removexattr", err)
}

// newborn gives what the files of a new key start with in a directory with the default ACL parent: number 0 is the
// key's own directory. The umask counts only where there is no default ACL, as everywhere.
func newborn(parent gate.ACL, mode, umask uint32) (dirMode uint32, files []kim.Inode) {
	if parent == nil {
		return mode &^ umask & keyBits, nil
	}
	a, bits := parent.Inherit(mode & keyBits)
	files = append(files, kim.Inode{Mode: &bits, ACL: a.Marshal(), DefaultACL: parent.Marshal()})
	for _, r := range keyRows {
		a, m := parent.Inherit(r.mode)
		files = append(files, kim.Inode{Ino: r.number, Mode: &m, ACL: a.Marshal()})
	}
	return bits, files
}
