package nodes

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// aliasMost is the longest target of an alias, PATH_MAX.
const aliasMost = 4096

// aliasesDir is keys/ at the top: symbolic links kept in the KIM.
type aliasesDir struct{ namesDir }

func (v *view) aliasesDir(r *row) node {
	t := v.t
	n := &aliasesDir{namesDir{base: t.base(inoOf(0, r.number)), at: place{t: t, file: r.name}}}
	n.self = n
	n.says = func() stat { return t.dir(2) }
	n.find = func(ctx context.Context, name string) (node, syscall.Errno) {
		a, err := t.kim.Alias(calm(ctx), name)
		if err != nil {
			return nil, errnoOf(err)
		}
		return n.link(a), 0
	}
	n.list = func() fs.DirStream {
		return listing(t.kim.Aliases, func(a kim.Alias) fuse.DirEntry {
			return fuse.DirEntry{Name: a.Name, Mode: syscall.S_IFLNK, Ino: inoOf(a.Number, 0)}
		})
	}
	return n
}

// link makes the node of an alias. It is known by its number, so a rename does not change what it says.
func (n *aliasesDir) link(a kim.Alias) *symlinkNode {
	return n.t.symlink(inoOf(a.Number, 0), n.child(a.Name), linkTo{target: a.Target, uid: a.UID, gid: a.GID, changed: a.Changed})
}

var _ = (fs.NodeSymlinker)((*aliasesDir)(nil))

// Symlink is safe because the kernel judged who may write here, and a link gives no right to its target.
func (n *aliasesDir) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	at := n.child(name)
	if err := kim.ValidName(name); err != nil {
		return nil, n.t.fail(ctx, at, "symlink", err)
	}
	if len(target) > aliasMost {
		return nil, n.t.fail(ctx, at, "symlink", gate.Refuse(syscall.ENAMETOOLONG, "the target is too long", ""))
	}
	c := callerOf(ctx)
	a, err := n.t.kim.CreateAlias(deed(ctx), kim.Alias{Name: name, Target: target, UID: c.UID, GID: c.GID})
	if err != nil {
		return nil, n.t.audited(ctx, at, "symlink", time.Now(), err)
	}
	n.t.audit(c, AuditDeed, at, "symlink", time.Now(), nil)
	return n.t.entry(ctx, &n.Inode, n.link(a), out)
}

var _ = (fs.NodeUnlinker)((*aliasesDir)(nil))

// Unlink is safe because it takes a name away and no key.
func (n *aliasesDir) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.t.audited(ctx, n.child(name), "unlink", time.Now(), n.t.kim.RemoveAlias(deed(ctx), name))
}

var _ = (fs.NodeRenamer)((*aliasesDir)(nil))

// Rename replaces, as rename(2) does for links: ln -sfn rotates a key in one step.
func (n *aliasesDir) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	at, next := n.child(name), n.child(newName)
	if _, ok := parent.(*aliasesDir); !ok {
		return n.t.fail(ctx, at, "rename", gate.Refuse(syscall.EPERM, "an alias cannot leave keys/", ""))
	}
	if flags&^renameNoReplace != 0 {
		return n.t.fail(ctx, at, "rename", gate.Refuse(syscall.EINVAL, "aliases cannot be exchanged", "replace one with ln -sfn"))
	}
	if err := kim.ValidName(newName); err != nil {
		return n.t.fail(ctx, next, "rename", err)
	}
	if flags&renameNoReplace != 0 {
		if _, err := n.t.kim.Alias(calm(ctx), newName); psa.StatusOf(err) != psa.StatusDoesNotExist {
			return n.t.fail(ctx, at, "rename", gate.Refuse(syscall.EEXIST, "the new name is taken", ""))
		}
	}
	err := n.t.kim.RenameAlias(deed(ctx), name, newName)
	n.t.audit(callerOf(ctx), AuditDeed, place{t: n.t, file: at.file + " to " + next.file}, "rename", time.Now(), err)
	return n.t.remember(ctx, at, "rename", err)
}
