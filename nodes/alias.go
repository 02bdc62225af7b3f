package nodes

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// aliasMost is the longest target of an alias, PATH_MAX.
const aliasMost = 4096

// aliasesDir is keys/ at the top: symbolic links kept in the KIM.
type aliasesDir struct{ base }

func (t *Tree) aliases() *aliasesDir {
	n := &aliasesDir{base: t.base(inoOf(0, rowAliases))}
	n.self = n
	return n
}

func (n *aliasesDir) place() place { return place{t: n.t, file: "keys"} }

func (n *aliasesDir) child(name string) place { return place{t: n.t, file: "keys/" + oneLine(name)} }

func (n *aliasesDir) stat(context.Context) (stat, error) {
	return stat{kind: syscall.S_IFDIR, mode: 0755, uid: n.t.uid, gid: n.t.gid, changed: n.t.started, links: 2}, nil
}

// link makes the node of an alias. It is known by its number, so a rename does not change what it says.
func (n *aliasesDir) link(a kim.Alias) *symlinkNode {
	return n.t.symlink(inoOf(a.Number, 0), n.child(a.Name), linkTo{target: a.Target, uid: a.UID, gid: a.GID, changed: a.Changed})
}

var _ = (fs.NodeLookuper)((*aliasesDir)(nil))

// Lookup is safe because an alias is a name only.
func (n *aliasesDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	a, err := n.t.kim.Alias(calm(ctx), name)
	if err != nil {
		return nil, errnoOf(err)
	}
	return n.t.entry(ctx, &n.Inode, n.link(a), out)
}

var _ = (fs.NodeReaddirer)((*aliasesDir)(nil))

// Readdir is safe because aliases are public names; it holds one page of them.
func (n *aliasesDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	return &pages{next: func(after string) ([]fuse.DirEntry, string, error) {
		list, err := n.t.kim.Aliases(context.Background(), after, pageSize)
		var e []fuse.DirEntry
		for _, a := range list {
			e = append(e, fuse.DirEntry{Name: a.Name, Mode: syscall.S_IFLNK, Ino: inoOf(a.Number, 0)})
			after = a.Name
		}
		return e, after, err
	}}, 0
}

var _ = (fs.NodeSymlinker)((*aliasesDir)(nil))

// Symlink is safe because the kernel judged who may write here, and a link gives no right to its target.
func (n *aliasesDir) Symlink(ctx context.Context, target, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if err := ValidName(name); err != nil {
		return nil, n.t.fail(ctx, n.child(name), "symlink", err)
	}
	if len(target) > aliasMost {
		return nil, n.t.fail(ctx, n.child(name), "symlink", refuse(syscall.ENAMETOOLONG, "the target is too long", ""))
	}
	c := caller(ctx)
	a, err := n.t.kim.CreateAlias(calm(ctx), kim.Alias{Name: name, Target: target, UID: c.Uid, GID: c.Gid})
	n.t.audit(c, n.child(name), "symlink", time.Now(), err)
	if err != nil {
		return nil, n.t.remember(ctx, n.child(name), "symlink", err)
	}
	return n.t.entry(ctx, &n.Inode, n.link(a), out)
}

var _ = (fs.NodeUnlinker)((*aliasesDir)(nil))

// Unlink is safe because it takes a name away and no key.
func (n *aliasesDir) Unlink(ctx context.Context, name string) syscall.Errno {
	return n.t.audited(ctx, n.child(name), "unlink", time.Now(), n.t.kim.RemoveAlias(calm(ctx), name))
}

var _ = (fs.NodeRenamer)((*aliasesDir)(nil))

// Rename replaces, as rename(2) does for links: ln -sfn rotates a key in one step.
func (n *aliasesDir) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	at := n.child(name)
	if _, ok := parent.(*aliasesDir); !ok {
		return n.t.fail(ctx, at, "rename", refuse(syscall.EPERM, "an alias stays in keys/", ""))
	}
	if flags&^renameNoReplace != 0 {
		return n.t.fail(ctx, at, "rename", refuse(syscall.EINVAL, "aliases cannot be exchanged", "ln -sfn replaces one"))
	}
	if err := ValidName(newName); err != nil {
		return n.t.fail(ctx, n.child(newName), "rename", err)
	}
	if flags&renameNoReplace != 0 {
		if _, err := n.t.kim.Alias(calm(ctx), newName); psa.StatusOf(err) != psa.StatusDoesNotExist {
			return n.t.fail(ctx, at, "rename", refuse(syscall.EEXIST, "the new name is taken", ""))
		}
	}
	err := n.t.kim.RenameAlias(calm(ctx), name, newName)
	n.t.audit(caller(ctx), place{t: n.t, file: at.file + " to " + n.child(newName).file}, "rename", time.Now(), err)
	return n.t.remember(ctx, at, "rename", err)
}
