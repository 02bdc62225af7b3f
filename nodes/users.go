package nodes

import (
	"context"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
)

// usersDir is providers/<name>/users/: a directory of keys for every uid, which nobody makes.
type usersDir struct{ namesDir }

func (t *Tree) users(p *kim.Provider) *usersDir {
	n := &usersDir{namesDir{base: t.base(inoOf(p.Number(), rowUsers)), at: place{t: t, provider: p, file: "users"}}}
	n.self = n
	n.says = func() stat {
		return stat{kind: syscall.S_IFDIR, mode: 0711, uid: t.uid, gid: t.gid, changed: p.Started(), links: 2, settable: keyBits, lasting: true}
	}
	// Those without keys are not listed: there are as many as uids.
	n.list = func() fs.DirStream {
		page := func(ctx context.Context, after string, most int) ([]kim.Space, error) {
			last := kim.Shared
			if uid, ok := kim.ParseUser(after); ok {
				last = kim.OwnSpace(uid)
			}
			spaces, err := p.Spaces(ctx, last, most)
			// Those that a damaged row has come last, and are nobody's: their names would begin the listing again.
			return slices.DeleteFunc(spaces, func(s kim.Space) bool {
				uid, _ := s.User()
				return s != kim.OwnSpace(uid) || kim.CheckOwner(uid, 0) != nil
			}), err
		}
		return listing(page, func(s kim.Space) fuse.DirEntry {
			uid, _ := s.User()
			return fuse.DirEntry{Name: strconv.FormatUint(uint64(uid), 10), Mode: syscall.S_IFDIR, Ino: kim.UserInode(p.Number(), uid)}
		})
	}
	return n
}

func (v *view) usersDir(*row) node { return v.t.users(v.provider) }

// hasUsers says whether there are inodes for the directories of a provider's users.
func hasUsers(v *view) bool { return v.provider.Number() <= kim.MaxUsersProvider }

var _ = (fs.NodeLookuper)((*usersDir)(nil))

// Lookup is safe because a user's directory says nothing of its names, and the kernel lets nobody into it but its owner and
// whom its owner let in.
func (n *usersDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	uid, ok := kim.ParseUser(name)
	if !ok {
		return nil, syscall.ENOENT
	}
	d := n.t.keys(n.at.provider, kim.OwnSpace(uid))
	if n.GetChild(name) == nil && d.closedTo(ctx) && !n.t.strangers.add(d.ino) {
		return nil, syscall.EACCES // as for whatever they look for in it
	}
	in, errno := n.t.entry(ctx, &n.Inode, d, out)
	if errno != 0 {
		n.t.strangers.remove(d.ino)
	}
	return in, errno
}

// closedTo says whether the caller, neither root nor its owner, looks at a directory that is its owner's alone.
func (n *keysDir) closedTo(ctx context.Context) bool {
	c := callerOf(ctx)
	p, err := n.permissions(ctx)
	return err == nil && c.UID != 0 && c.UID != p.uid && p.mode&0077 == 0
}

// strangersMost bounds the directories that the kernel, and we, know because somebody looked for them who may do nothing
// there: there is one for each uid, so that whoever looks for all would fill the memory.
const strangersMost = 4096

// strangers are those directories, by their inodes.
type strangers struct {
	mu     sync.Mutex
	inodes map[uint64]struct{}
}

// add says whether there is room for one more.
func (s *strangers) add(ino uint64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.inodes) >= strangersMost {
		return false
	}
	if s.inodes == nil {
		s.inodes = map[uint64]struct{}{}
	}
	s.inodes[ino] = struct{}{}
	return true
}

func (s *strangers) remove(ino uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.inodes, ino)
}

var _ = (fs.NodeOnForgetter)((*keysDir)(nil))

// OnForget makes room for other directories that the kernel knows.
func (n *keysDir) OnForget() { n.t.strangers.remove(n.ino) }

// mineLink is providers/<name>/mine, which says something else to each user.
type mineLink struct {
	base
	at place
}

func (v *view) mine(r *row) node {
	n := &mineLink{base: v.t.base(inoOf(v.provider.Number(), r.number)), at: place{t: v.t, provider: v.provider, file: r.name}}
	n.self = n
	return n
}

func (n *mineLink) place() place { return n.at }

func target(uid uint32) string { return kim.OwnSpace(uid).String() }

func (n *mineLink) stat(ctx context.Context) (stat, error) {
	return stat{kind: syscall.S_IFLNK, mode: 0777, uid: n.t.uid, gid: n.t.gid, size: uint64(len(target(callerOf(ctx).UID))),
		changed: n.at.provider.Started(), fixed: "this link is part of the tree", never: true}, nil
}

var _ = (fs.NodeReadlinker)((*mineLink)(nil))

// Readlink is safe because a link is a name. The kernel must not keep it (EnableSymlinkCaching): it would for all users.
func (n *mineLink) Readlink(ctx context.Context) ([]byte, syscall.Errno) {
	return []byte(target(callerOf(ctx).UID)), 0
}

// named is the key that a caller named in bytes: refused as if it had opened the row's file there. A bare name is one in the
// directory from.
func (t *Tree) named(ctx context.Context, who caller.Caller, p *kim.Provider, from kim.Space, path string, r *row,
	want gate.Bits) (kim.Key, error) {
	if name, ok := strings.CutPrefix(path, "mine/"); ok {
		path = target(who.UID) + "/" + name
	}
	space, name, err := kim.SplitPath(from, path)
	if err == nil {
		err = kim.ValidName(name)
	}
	if err != nil {
		return kim.Key{}, err
	}
	// Before anything is looked up: whoever may not search a directory learns nothing of its names.
	if err := t.gate.Named(ctx, who, t.keys(p, space), gate.Search); err != nil {
		return kim.Key{}, err
	}
	k, err := p.Lookup(calm(ctx), space, name)
	if err != nil {
		return kim.Key{}, err
	}
	return k, t.gate.Named(ctx, who, t.file(r, p, k.Number).file(), want)
}

// spaceOf is where a key has its name now.
func (t *Tree) spaceOf(ctx context.Context, key int64) (kim.Space, error) {
	k, err := t.kim.Key(calm(ctx), key)
	return k.Space, err
}

// moved notes that a key stands in another directory: who came by the old one may not come by the new one.
func (t *Tree) moved(keys ...int64) {
	for _, key := range keys {
		t.gate.Lost(inoOf(key, 0))
	}
}

// directoryAlone says whether a name in bytes ends with its directory, so that a name must follow.
func directoryAlone(path string) bool {
	return strings.HasSuffix(path, "/") || strings.HasPrefix(path, "users/") && strings.Count(path, "/") == 1
}
