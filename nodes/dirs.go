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

// pageSize is how many names a listing asks the KIM for at once.
const pageSize = 512

// rootDir is the mount's root.
type rootDir struct{ base }

func (n *rootDir) place() place { return place{t: n.t} }

func (n *rootDir) stat(context.Context) (stat, error) {
	return stat{kind: syscall.S_IFDIR, mode: 0755, uid: n.t.uid, gid: n.t.gid, changed: n.t.started, links: 4}, nil
}

func (n *rootDir) view(ctx context.Context) *view {
	return &view{ctx: ctx, t: n.t, uid: caller(ctx).Uid}
}

var _ = (fs.NodeLookuper)((*rootDir)(nil))

// Lookup is safe because names come from the table.
func (n *rootDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	r := find(rootRows, name)
	if r == nil || !r.shown(n.view(ctx)) {
		return nil, syscall.ENOENT
	}
	if r.kind == link {
		return n.t.entry(ctx, &n.Inode, n.t.symlink(inoOf(0, r.number), place{t: n.t, file: r.name}, linkTo{target: n.t.options.AuditPath, uid: n.t.uid, gid: n.t.gid, changed: n.t.started}), out)
	}
	switch r.number {
	case rowAliases:
		return n.t.entry(ctx, &n.Inode, n.t.aliases(), out)
	case rowProviders:
		return n.t.entry(ctx, &n.Inode, n.t.providers(), out)
	}
	return n.t.entry(ctx, &n.Inode, n.t.file(r, 0, nil, 0), out)
}

var _ = (fs.NodeReaddirer)((*rootDir)(nil))

// Readdir is safe because names come from the table.
func (n *rootDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	return fs.NewListDirStream(listRows(rootRows, n.view(ctx), 0)), 0
}

// listRows gives the entries of the rows that are shown, with slot directories beside their operations.
func listRows(rows []*row, v *view, number int64) []fuse.DirEntry {
	var list []fuse.DirEntry
	for _, r := range rows {
		if !r.shown(v) {
			continue
		}
		mode := uint32(syscall.S_IFREG)
		switch r.kind {
		case directory:
			mode = syscall.S_IFDIR
		case link:
			mode = syscall.S_IFLNK
		}
		list = append(list, fuse.DirEntry{Name: r.name, Mode: mode, Ino: inoOf(number, r.number)})
		if r.kind == transaction {
			list = append(list, fuse.DirEntry{Name: r.name + slotsSuffix, Mode: syscall.S_IFDIR, Ino: inoOf(number, r.number+slotsNumber)})
		}
	}
	return list
}

func inoOf(number int64, row uint64) uint64 { return uint64(number)*inoPerNumber + row }

// providersDir is providers/.
type providersDir struct{ base }

func (t *Tree) providers() *providersDir {
	n := &providersDir{base: t.base(inoOf(0, rowProviders))}
	n.self = n
	return n
}

func (n *providersDir) place() place { return place{t: n.t, file: "providers"} }

func (n *providersDir) stat(context.Context) (stat, error) {
	return stat{kind: syscall.S_IFDIR, mode: 0755, uid: n.t.uid, gid: n.t.gid, changed: n.t.started,
		links: uint32(2 + len(n.t.kim.Providers()))}, nil
}

const defaultName = "default"

var _ = (fs.NodeLookuper)((*providersDir)(nil))

// Lookup is safe because it shows configured providers only.
func (n *providersDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if name == defaultName {
		if p := n.t.kim.Default(); p != nil {
			return n.t.entry(ctx, &n.Inode, n.t.symlink(inoOf(0, rowDefault), place{t: n.t, file: "providers/default"}, linkTo{target: p.Name(), uid: n.t.uid, gid: n.t.gid, changed: n.t.started}), out)
		}
		return nil, syscall.ENOENT
	}
	p := n.t.kim.Provider(name)
	if p == nil {
		return nil, syscall.ENOENT
	}
	return n.t.entry(ctx, &n.Inode, n.t.provider(p), out)
}

var _ = (fs.NodeReaddirer)((*providersDir)(nil))

// Readdir is safe because it shows configured providers only.
func (n *providersDir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	var list []fuse.DirEntry
	if n.t.kim.Default() != nil {
		list = append(list, fuse.DirEntry{Name: defaultName, Mode: syscall.S_IFLNK, Ino: inoOf(0, rowDefault)})
	}
	for _, p := range n.t.kim.Providers() {
		list = append(list, fuse.DirEntry{Name: p.Name(), Mode: syscall.S_IFDIR, Ino: inoOf(p.Number(), 0)})
	}
	return fs.NewListDirStream(list), 0
}

// providerDir is providers/<name>/.
type providerDir struct {
	base
	p *kim.Provider
}

func (t *Tree) provider(p *kim.Provider) *providerDir {
	n := &providerDir{base: t.base(inoOf(p.Number(), 0)), p: p}
	n.self = n
	return n
}

func (n *providerDir) place() place { return place{t: n.t, provider: n.p} }

func (n *providerDir) stat(context.Context) (stat, error) {
	c := n.p.Config()
	return stat{kind: syscall.S_IFDIR, mode: c.Mode & 0777, uid: c.UID, gid: c.GID, changed: n.p.Started(), links: 4}, nil
}

func (n *providerDir) view(ctx context.Context) *view {
	return &view{ctx: ctx, t: n.t, provider: n.p, uid: caller(ctx).Uid}
}

var _ = (fs.NodeLookuper)((*providerDir)(nil))

// Lookup is safe because names come from the table.
func (n *providerDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	switch r := find(providerRows, name); {
	case r == nil || !r.shown(n.view(ctx)):
	case r.number == rowKeys:
		return n.t.entry(ctx, &n.Inode, n.t.keys(n.p), out)
	case r.number == rowHash:
		return n.t.entry(ctx, &n.Inode, n.t.hashes(n.p), out)
	}
	return n.t.child(ctx, &n.Inode, providerRows, name, n.view(ctx), out)
}

// child looks up a file of a table, or the slots of one; v has the provider and the key, if there is one.
func (t *Tree) child(ctx context.Context, parent *fs.Inode, rows []*row, name string, v *view, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	number := ownerOf(v.provider, v.key.Number)
	if r := find(rows, name); r != nil && r.shown(v) {
		return t.entry(ctx, parent, t.file(r, number, v.provider, v.key.Number), out)
	}
	if s := slotsRow(rows, name); s != nil && s.shown(v) {
		d := &slotsDir{base: t.base(inoOf(number, s.number+slotsNumber)), row: s, p: v.provider, key: v.key.Number}
		d.self = d
		return t.entry(ctx, parent, d, out)
	}
	return nil, syscall.ENOENT
}

// hashDir is providers/<name>/hash/.
type hashDir struct {
	base
	p *kim.Provider
}

func (t *Tree) hashes(p *kim.Provider) *hashDir {
	n := &hashDir{base: t.base(inoOf(p.Number(), rowHash)), p: p}
	n.self = n
	return n
}

func (n *hashDir) place() place { return place{t: n.t, provider: n.p, file: "hash"} }

func (n *hashDir) stat(context.Context) (stat, error) {
	return stat{kind: syscall.S_IFDIR, mode: 0555, uid: n.t.uid, gid: n.t.gid, changed: n.p.Started(), links: 2}, nil
}

func (n *hashDir) view(ctx context.Context) *view {
	return &view{ctx: ctx, t: n.t, provider: n.p, uid: caller(ctx).Uid}
}

var _ = (fs.NodeLookuper)((*hashDir)(nil))

// Lookup is safe because names come from the table, and a hash has no secret.
func (n *hashDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	return n.t.child(ctx, &n.Inode, hashRows, name, n.view(ctx), out)
}

var _ = (fs.NodeReaddirer)((*hashDir)(nil))

// Readdir is safe because names come from the table.
func (n *hashDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	return fs.NewListDirStream(listRows(hashRows, n.view(ctx), n.p.Number())), 0
}

var _ = (fs.NodeReaddirer)((*providerDir)(nil))

// Readdir is safe because names come from the table.
func (n *providerDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	return fs.NewListDirStream(listRows(providerRows, n.view(ctx), n.p.Number())), 0
}

// keysDir is providers/<name>/keys/.
type keysDir struct {
	base
	p *kim.Provider
}

func (t *Tree) keys(p *kim.Provider) *keysDir {
	n := &keysDir{base: t.base(inoOf(p.Number(), rowKeys)), p: p}
	n.self = n
	return n
}

func (n *keysDir) place() place { return place{t: n.t, provider: n.p, file: "keys"} }

func (n *keysDir) stat(context.Context) (stat, error) {
	c := n.p.Config()
	return stat{kind: syscall.S_IFDIR, mode: 01777, uid: c.UID, gid: c.GID, changed: n.p.Started(), links: 2}, nil
}

var _ = (fs.NodeLookuper)((*keysDir)(nil))

// Lookup is safe because it shows a name to whoever may search the directory, as POSIX does. A key whose fate is
// unknown is EBUSY.
func (n *keysDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if ValidName(name) != nil {
		return nil, syscall.ENOENT
	}
	k, err := n.p.Lookup(calm(ctx), name)
	if err != nil {
		if psa.StatusOf(err) == psa.StatusDoesNotExist {
			return nil, syscall.ENOENT
		}
		return nil, n.t.fail(ctx, n.child(name), "lookup", err)
	}
	return n.t.entry(ctx, &n.Inode, n.t.key(n.p, k.Number), out)
}

func (n *keysDir) child(name string) place {
	return place{t: n.t, provider: n.p, file: "keys/" + oneLine(name)}
}

var _ = (fs.NodeReaddirer)((*keysDir)(nil))

// Readdir is safe because it shows names to whoever may read the directory; it holds one page of them.
func (n *keysDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	return &pages{next: func(after string) ([]fuse.DirEntry, string, error) {
		// the listing outlives the call that opened it, so it has no context of that call
		list, err := n.p.List(context.Background(), after, pageSize)
		var e []fuse.DirEntry
		for _, k := range list {
			e = append(e, fuse.DirEntry{Name: k.Name, Mode: syscall.S_IFDIR, Ino: inoOf(k.Number, 0)})
			after = k.Name
		}
		return e, after, err
	}}, 0
}

var _ = (fs.NodeMkdirer)((*keysDir)(nil))

// Mkdir is safe because the draft belongs to its caller, and nobody else may write in it: w is masked off for group
// and other. mode holds the umask too (Tree.Wrap).
func (n *keysDir) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if err := ValidName(name); err != nil {
		return nil, n.t.fail(ctx, n.child(name), "mkdir", err)
	}
	begun := time.Now()
	own, err := n.permissions(ctx)
	if err == nil {
		err = n.t.admit(ctx, n.p, nil)
	}
	if err == nil {
		err = n.t.auditing.ready()
	}
	if err != nil {
		return nil, n.t.fail(ctx, n.child(name), "mkdir", err)
	}
	c := caller(ctx)
	bits, files := newborn(own.inherits, mode&07777, mode>>umaskShift)
	k, err := n.p.CreateDraft(calm(ctx), name, c.Uid, c.Gid, bits, files...)
	if err != nil {
		return nil, n.t.audited(ctx, n.child(name), "mkdir", begun, err)
	}
	n.t.audit(c, place{t: n.t, provider: n.p, key: k.Number}, "mkdir", begun, nil)
	return n.t.entry(ctx, &n.Inode, n.t.key(n.p, k.Number), out)
}

var _ = (fs.NodeRmdirer)((*keysDir)(nil))

// Rmdir destroys the key; it is safe because the kernel judged the sticky directory, and the KIM journals.
func (n *keysDir) Rmdir(ctx context.Context, name string) syscall.Errno {
	k, err := n.p.Lookup(calm(ctx), name)
	if err != nil {
		return n.t.fail(ctx, n.child(name), "rmdir", err)
	}
	at := place{t: n.t, provider: n.p, key: k.Number}
	if k.KeepForever && k.Origin != kim.Adopted { // an adopted key is forgotten, and stays on its device
		return n.t.fail(ctx, at, "rmdir", refuse(syscall.EPERM, "allow_destroy is false for this key", "its owner can write allow_destroy = true into attributes"))
	}
	begun, uid := time.Now(), caller(ctx).Uid
	if err = n.t.admit(ctx, n.p, nil); err == nil {
		err = n.t.auditing.ready()
	}
	if err != nil {
		return n.t.fail(ctx, at, "rmdir", err)
	}
	err = n.t.perform(ctx, at, func(ctx context.Context) error {
		if err := n.t.kim.Destroy(ctx, k.Number, uid); err != nil {
			return err
		}
		n.t.forget(k.Number)
		return nil
	})
	// by its name: its number means nothing once it is gone
	n.t.audit(caller(ctx), n.child(name), "rmdir", begun, err)
	return n.t.remember(ctx, at, "rmdir", err)
}

// forget ends what the tree holds for a key that is gone.
func (t *Tree) forget(number int64) {
	low, high := inoOf(number, 0), inoOf(number+1, 0)
	t.boxes.drop(func(ino uint64) bool { return ino >= low && ino < high })
	t.slots.drop(func(ino uint64) bool { return ino >= low && ino < high })
}

// Flags of renameat2(2).
const (
	renameNoReplace = 1
	renameExchange  = 2
)

var _ = (fs.NodeRenamer)((*keysDir)(nil))

// Rename is safe because it never replaces a key and never leaves its provider.
func (n *keysDir) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	at := n.child(name)
	to, ok := parent.(*keysDir)
	switch {
	case !ok || to.p != n.p:
		return n.t.fail(ctx, at, "rename", refuse(syscall.EPERM, "a key cannot leave its provider", "make a new key there"))
	case flags&^(renameNoReplace|renameExchange) != 0:
		return n.t.fail(ctx, at, "rename", refuse(syscall.EINVAL, "unknown flags of renameat2", ""))
	}
	if err := ValidName(newName); err != nil {
		return n.t.fail(ctx, n.child(newName), "rename", err)
	}
	begun := time.Now()
	k, err := n.p.Lookup(calm(ctx), name)
	if err == nil {
		err = n.t.admit(ctx, n.p, nil)
	}
	if err == nil {
		err = n.t.auditing.ready()
	}
	if err != nil {
		return n.t.fail(ctx, at, "rename", err)
	}
	if flags&renameExchange != 0 {
		var other kim.Key
		if other, err = n.p.Lookup(calm(ctx), newName); err == nil {
			err = n.t.kim.Exchange(calm(ctx), k.Number, other.Number)
		}
	} else {
		err = n.t.kim.Rename(calm(ctx), k.Number, newName)
	}
	n.t.audit(caller(ctx), place{t: n.t, provider: n.p, key: k.Number, file: at.file + " to " + n.child(newName).file}, "rename", begun, err)
	return n.t.remember(ctx, at, "rename", err)
}

// keyDir is a key.
type keyDir struct {
	base
	p   *kim.Provider
	key int64
}

func (t *Tree) key(p *kim.Provider, number int64) *keyDir {
	n := &keyDir{base: t.base(inoOf(number, 0)), p: p, key: number}
	n.self = n
	return n
}

func (n *keyDir) place() place { return place{t: n.t, provider: n.p, key: n.key} }

func (n *keyDir) stat(ctx context.Context) (stat, error) {
	k, err := n.t.kim.Key(calm(ctx), n.key)
	return stat{kind: syscall.S_IFDIR, mode: 0755, uid: k.UID, gid: k.GID, changed: k.Changed, links: 2}, err
}

func (n *keyDir) view(ctx context.Context) (*view, error) {
	k, err := n.t.kim.Key(calm(ctx), n.key)
	return &view{ctx: ctx, t: n.t, provider: n.p, key: k, uid: caller(ctx).Uid}, err
}

var _ = (fs.NodeLookuper)((*keyDir)(nil))

// Lookup is safe because names come from the table, and only those that the key's policy and provider allow.
func (n *keyDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	v, err := n.view(ctx)
	if err != nil {
		return nil, errnoOf(err)
	}
	return n.t.child(ctx, &n.Inode, keyRows, name, v, out)
}

var _ = (fs.NodeReaddirer)((*keyDir)(nil))

// Readdir is safe because names come from the table.
func (n *keyDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	v, err := n.view(ctx)
	if err != nil {
		return nil, errnoOf(err)
	}
	return fs.NewListDirStream(listRows(keyRows, v, n.key)), 0
}

// file makes the node of a row: number is that of the inode's owner, key 0 outside keys.
func (t *Tree) file(r *row, number int64, p *kim.Provider, key int64) tableNode {
	var n tableNode
	var f *fileNode
	switch r.kind {
	case transaction:
		o := &operationFile{}
		n, f = o, &o.fileNode
	case staged:
		s := &stagedFile{}
		n, f = s, &s.fileNode
	case stream:
		s := &randomFile{}
		n, f = s, &s.fileNode
	default:
		x := &textFile{}
		n, f = x, &x.fileNode
	}
	f.t, f.ino, f.self = t, inoOf(number, r.number), n
	f.row, f.p, f.key = r, p, key
	return n
}

// tableNode is a node of a file of the table.
type tableNode interface {
	node
	file() *fileNode
}

func (n *fileNode) file() *fileNode { return n }

// fileNode is what the files of the table share.
type fileNode struct {
	base
	row *row
	p   *kim.Provider
	key int64
}

func (n *fileNode) place() place { return place{t: n.t, provider: n.p, key: n.key, file: n.row.path()} }

func (n *fileNode) view(ctx context.Context) (*view, error) {
	v := &view{ctx: calm(ctx), t: n.t, provider: n.p, uid: caller(ctx).Uid}
	if n.key == 0 {
		return v, nil
	}
	k, err := n.t.kim.Key(calm(ctx), n.key)
	v.key = k
	return v, err
}

func (n *fileNode) stat(ctx context.Context) (stat, error) {
	v, err := n.view(ctx)
	if err != nil {
		return stat{}, err
	}
	s := stat{kind: syscall.S_IFREG, mode: n.row.modeFor(v), uid: n.t.uid, gid: n.t.gid, changed: n.t.started}
	if n.key != 0 {
		s.uid, s.gid, s.changed = v.key.UID, v.key.GID, v.key.Changed
	}
	if n.row.text != nil && !n.row.unsize {
		b, err := n.row.text(v)
		if err != nil {
			return stat{}, err
		}
		s.size = uint64(len(b))
	}
	return s, nil
}

// present is the row's own check at open: the kernel may still hold the name of a file that has gone.
func (n *fileNode) present(v *view) error {
	if !n.row.shown(v) {
		return psa.Errorf(psa.StatusDoesNotExist, "this key has no %s", n.row.name)
	}
	return nil
}

// pages is a listing that holds one page at a time.
type pages struct {
	next  func(after string) ([]fuse.DirEntry, string, error)
	list  []fuse.DirEntry
	after string
	err   error
	ended bool
}

// HasNext fetches the next page where the last one is used up.
func (p *pages) HasNext() bool {
	if len(p.list) == 0 && !p.ended {
		p.list, p.after, p.err = p.next(p.after)
		p.ended = p.err != nil || len(p.list) == 0
	}
	return len(p.list) > 0 || p.err != nil
}

// Next gives one entry, or the error that ended the listing, once.
func (p *pages) Next() (fuse.DirEntry, syscall.Errno) {
	if len(p.list) == 0 {
		e := errnoOf(p.err)
		p.err = nil
		return fuse.DirEntry{}, e
	}
	e := p.list[0]
	p.list = p.list[1:]
	return e, 0
}

// Close ends the listing.
func (p *pages) Close() { p.list, p.ended = nil, true }

// linkTo is what a symbolic link says.
type linkTo struct {
	target   string
	uid, gid uint32
	changed  time.Time
}

// symlink is a symbolic link of the tree. What it says never changes: the kernel keeps it.
type symlinkNode struct {
	base
	at place
	to linkTo
}

func (t *Tree) symlink(ino uint64, at place, to linkTo) *symlinkNode {
	n := &symlinkNode{base: t.base(ino), at: at, to: to}
	n.self = n
	return n
}

func (n *symlinkNode) place() place { return n.at }

func (n *symlinkNode) stat(context.Context) (stat, error) {
	return stat{kind: syscall.S_IFLNK, mode: 0777, uid: n.to.uid, gid: n.to.gid, size: uint64(len(n.to.target)), changed: n.to.changed}, nil
}

var _ = (fs.NodeReadlinker)((*symlinkNode)(nil))

// Readlink is safe because a link is a name; the kernel judges the way to its target.
func (n *symlinkNode) Readlink(context.Context) ([]byte, syscall.Errno) {
	return []byte(n.to.target), 0
}
