package nodes

import (
	"context"
	"errors"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// pageSize is how many names a listing asks the KIM for at once.
const pageSize = 512

// What chmod can give. Files are never executed, and a key's directory is written in by nobody but its owner; w for
// others there would say what is not so.
const (
	fileBits = 0666
	dirBits  = 01777
	keyBits  = 0755
)

// rowsDir is a directory over the rows of a table: the root, a provider, its hash/, a key.
type rowsDir struct {
	base
	at   place
	rows []*row
	says func(v *view) stat
}

func (t *Tree) rowsDir(row uint64, at place, rows []*row, says func(v *view) stat) *rowsDir {
	n := &rowsDir{base: t.base(inoOf(ownerOf(at.provider, at.key), row)), at: at, rows: rows, says: says}
	n.self = n
	return n
}

// top is the mount's root.
func (t *Tree) top() *rowsDir {
	return t.rowsDir(rootIno, place{t: t}, t.tables.root, func(*view) stat { return t.dir(4) })
}

// dir is a directory that belongs to the daemon.
func (t *Tree) dir(links int) stat {
	return stat{kind: syscall.S_IFDIR, mode: 0755, uid: t.uid, gid: t.gid, changed: t.started, links: uint32(links), settable: dirBits,
		lasting: true}
}

// provider is providers/<name>/.
func (t *Tree) provider(p *kim.Provider) *rowsDir {
	return t.rowsDir(0, place{t: t, provider: p}, t.tables.provider, func(*view) stat {
		c := p.Config()
		return stat{kind: syscall.S_IFDIR, mode: c.Mode & 0777, uid: c.UID, gid: c.GID, changed: p.Started(), links: 5, lasting: true,
			fixed: "the configuration sets owner, group and mode of a provider's directory"}
	})
}

// hashDir is providers/<name>/hash/, where nothing is secret.
func (v *view) hashDir(r *row) node {
	return v.t.rowsDir(r.number, place{t: v.t, provider: v.provider, file: r.name}, v.t.tables.hash, func(v *view) stat {
		return stat{kind: syscall.S_IFDIR, mode: r.mode, uid: v.t.uid, gid: v.t.gid, changed: v.provider.Started(), links: 2,
			fixed: "everybody who can enter the provider's directory can use hash/"}
	})
}

// key is a key's own directory.
func (t *Tree) key(p *kim.Provider, number int64) *rowsDir {
	return t.rowsDir(0, place{t: t, provider: p, key: number}, t.tables.key, func(v *view) stat {
		return stat{kind: syscall.S_IFDIR, mode: 0755, uid: v.key.UID, gid: v.key.GID, changed: v.key.Changed, links: 2, settable: keyBits,
			fleeting: !ready(v)} // it becomes a key by what is written elsewhere
	})
}

func (n *rowsDir) place() place { return n.at }

func (n *rowsDir) stat(ctx context.Context) (stat, error) {
	v, err := n.at.view(ctx)
	if err != nil {
		return stat{}, err
	}
	return n.says(v), nil
}

var _ = (fs.NodeLookuper)((*rowsDir)(nil))

// Lookup is safe because names come from the table, and only those that the provider and a key's policy allow.
func (n *rowsDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	v, err := n.at.view(ctx)
	if err != nil {
		return nil, errnoOf(err)
	}
	if r := find(n.rows, name); r != nil && r.shown(v) {
		return n.t.entry(ctx, &n.Inode, v.node(r), out)
	}
	if r := slotsRow(n.rows, name); r != nil && r.shown(v) {
		return n.t.entry(ctx, &n.Inode, v.slots(r), out)
	}
	return nil, syscall.ENOENT
}

// node makes the node of a row.
func (v *view) node(r *row) node {
	if r.node != nil {
		return r.node(v, r)
	}
	n := v.t.file(r, v.provider, v.key.Number)
	if r.own {
		n.file().own, n.file().reader = true, v.uid
	}
	return n
}

// slots makes the directory of an operation's slots.
func (v *view) slots(r *row) node {
	n := &slotsDir{base: v.t.base(inoOf(ownerOf(v.provider, v.key.Number), r.number+slotsNumber)), row: r, p: v.provider, key: v.key.Number}
	n.self = n
	return n
}

var _ = (fs.NodeReaddirer)((*rowsDir)(nil))

// Readdir is safe because names come from the table. Slot directories stand beside their operations.
func (n *rowsDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	return n.listed(ctx, n.entries)
}

func (n *rowsDir) entries(ctx context.Context) (fs.DirStream, syscall.Errno) {
	v, err := n.at.view(ctx)
	if err != nil {
		return nil, errnoOf(err)
	}
	var list []fuse.DirEntry
	add := func(name string, kind uint32, row uint64) {
		list = append(list, fuse.DirEntry{Name: name, Mode: kind, Ino: inoOf(ownerOf(v.provider, v.key.Number), row)})
	}
	for _, r := range n.rows {
		if !r.shown(v) {
			continue
		}
		add(r.name, r.kind.bits(), r.number)
		if r.kind == request {
			add(r.name+slotsSuffix, syscall.S_IFDIR, r.number+slotsNumber)
		}
	}
	return fs.NewListDirStream(list), 0
}

// view is what the rows of a place are judged and rendered from, for whoever asks.
func (p place) view(ctx context.Context) (*view, error) {
	v := &view{ctx: context.WithoutCancel(ctx), t: p.t, provider: p.provider, uid: callerOf(ctx).UID}
	if p.key == 0 {
		return v, nil
	}
	k, err := p.t.kim.Key(v.ctx, p.key)
	v.key = k
	return v, err
}

func inoOf(number int64, row uint64) uint64 { return uint64(number)*inoPerNumber + row }

// ownerOf is the number that the inodes of a key's files have, of a provider's where key is 0, and of the root's
// without either.
func ownerOf(p *kim.Provider, key int64) int64 {
	switch {
	case key != 0:
		return key
	case p != nil:
		return p.Number()
	}
	return 0
}

// namesDir is a directory over names that come and go: keys, aliases, providers.
type namesDir struct {
	base
	at   place
	says func() stat
	find func(ctx context.Context, name string) (node, syscall.Errno)
	list func() fs.DirStream
}

func (n *namesDir) place() place { return n.at }

func (n *namesDir) child(name string) place {
	at := n.at
	at.file += "/" + psa.OneLine(name)
	return at
}

func (n *namesDir) stat(context.Context) (stat, error) { return n.says(), nil }

var _ = (fs.NodeLookuper)((*namesDir)(nil))

// Lookup is safe because it shows a name to whoever may search the directory, as POSIX does.
func (n *namesDir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	found, errno := n.find(ctx, name)
	if errno != 0 {
		return nil, errno
	}
	return n.t.entry(ctx, &n.Inode, found, out)
}

var _ = (fs.NodeReaddirer)((*namesDir)(nil))

// Readdir is safe because it shows names to whoever may read the directory.
func (n *namesDir) Readdir(ctx context.Context) (fs.DirStream, syscall.Errno) {
	return n.listed(ctx, func(context.Context) (fs.DirStream, syscall.Errno) { return n.list(), 0 })
}

// lister lists a directory as it is now.
type lister func(ctx context.Context) (fs.DirStream, syscall.Errno)

// listed counts an open directory for who reads it.
func (b *base) listed(ctx context.Context, list lister) (fs.DirStream, syscall.Errno) {
	release, err := b.t.machine.Hold(callerOf(ctx).UID, 0)
	if err != nil {
		return nil, b.t.fail(ctx, b.self.place(), "readdir", err)
	}
	s, errno := list(ctx)
	if errno != 0 {
		release()
		return nil, errno
	}
	return &listed{DirStream: s, list: list, ctx: context.WithoutCancel(ctx), release: release}, 0
}

// listed is an open directory that is counted for who reads it.
type listed struct {
	fs.DirStream
	list    lister
	ctx     context.Context // of who opened it
	some    bool            // a name was given
	ended   bool
	release func()
}

var _ = (fs.FileSeekdirer)((*listed)(nil))

// HasNext lists again what was empty: whoever rewinds to the beginning without having left it is not told apart from whoever
// reads on.
func (l *listed) HasNext() bool {
	if l.ended && !l.some {
		l.again(l.ctx)
	}
	l.ended = !l.DirStream.HasNext()
	l.some = l.some || !l.ended
	return !l.ended
}

// Seekdir goes back to the beginning, where the directory is read as it is now, or on behind a name that was given.
func (l *listed) Seekdir(ctx context.Context, off uint64) syscall.Errno {
	if off == 0 {
		return l.again(ctx)
	}
	s, ok := l.DirStream.(fs.FileSeekdirer)
	if !ok {
		return syscall.EINVAL
	}
	return s.Seekdir(ctx, off)
}

func (l *listed) again(ctx context.Context) syscall.Errno {
	s, errno := l.list(ctx)
	if errno != 0 {
		return errno
	}
	l.DirStream.Close()
	l.DirStream, l.some, l.ended = s, false, false
	return 0
}

func (l *listed) Close() {
	l.DirStream.Close()
	l.release()
}

const defaultName = "default"

// providersDir is providers/, which shows the configured ones.
func (v *view) providersDir(r *row) node {
	t := v.t
	n := &namesDir{base: t.base(inoOf(0, r.number)), at: place{t: t, file: r.name}}
	n.self = n
	n.says = func() stat { return t.dir(2 + len(t.kim.Providers())) }
	n.find = func(_ context.Context, name string) (node, syscall.Errno) {
		if p := t.kim.Default(); p != nil && name == defaultName {
			return t.link(rowDefault, r.name+"/"+defaultName, p.Name()), 0
		}
		if p := t.kim.Provider(name); p != nil {
			return t.provider(p), 0
		}
		return nil, syscall.ENOENT
	}
	n.list = func() fs.DirStream {
		var list []fuse.DirEntry
		if t.kim.Default() != nil {
			list = append(list, fuse.DirEntry{Name: defaultName, Mode: syscall.S_IFLNK, Ino: inoOf(0, rowDefault)})
		}
		for _, p := range t.kim.Providers() {
			list = append(list, fuse.DirEntry{Name: p.Name(), Mode: syscall.S_IFDIR, Ino: inoOf(p.Number(), 0)})
		}
		return fs.NewListDirStream(list)
	}
	return n
}

// keysDir is a directory of keys: providers/<name>/keys/, or one of users/.
type keysDir struct {
	namesDir
	space kim.Space
}

func (t *Tree) keys(p *kim.Provider, space kim.Space) *keysDir {
	uid, own := space.User()
	n := &keysDir{namesDir{base: t.base(directories(p, space)[2]), at: place{t: t, provider: p, file: space.String()}}, space}
	n.self = n
	n.says = func() stat {
		c := p.Config()
		s := stat{kind: syscall.S_IFDIR, mode: 01777, uid: c.UID, gid: c.GID, changed: p.Started(), links: 2, settable: dirBits, lasting: true}
		if own {
			// Which group is the user's nobody here knows, and another user's may have the uid's number.
			s.mode, s.uid, s.gid, s.unlabelled = 0700, uid, t.gid, true
		}
		return s
	}
	// a key whose fate is unknown is EBUSY
	n.find = func(ctx context.Context, name string) (node, syscall.Errno) {
		if kim.ValidName(name) != nil {
			return nil, syscall.ENOENT
		}
		k, err := p.Lookup(calm(ctx), space, name)
		switch {
		case psa.StatusOf(err) == psa.StatusDoesNotExist:
			return nil, syscall.ENOENT
		case err != nil:
			return nil, t.fail(ctx, n.child(name), "lookup", err)
		}
		return t.key(p, k.Number), 0
	}
	n.list = func() fs.DirStream {
		page := func(ctx context.Context, after string, most int) ([]kim.Name, error) {
			return p.Names(ctx, space, after, most)
		}
		return listing(page, func(k kim.Name) fuse.DirEntry {
			return fuse.DirEntry{Name: k.Name, Mode: syscall.S_IFDIR, Ino: inoOf(k.Number, 0)}
		})
	}
	return n
}

func (v *view) keysDir(*row) node { return v.t.keys(v.provider, kim.Shared) }

var _ = (fs.NodeMkdirer)((*keysDir)(nil))

// Mkdir is safe because the draft belongs to its caller, and nobody else may write in it: w is masked off for group
// and other. mode holds the umask too (Tree.Wrap).
func (n *keysDir) Mkdir(ctx context.Context, name string, mode uint32, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	at, p, begun := n.child(name), n.at.provider, time.Now()
	if err := kim.ValidName(name); err != nil {
		return nil, n.t.fail(ctx, at, "mkdir", err)
	}
	own, err := n.permissions(ctx)
	if err != nil {
		return nil, n.t.fail(ctx, at, "mkdir", err)
	}
	if err := n.enter(ctx); err != nil {
		return nil, n.t.fail(ctx, at, "mkdir", err)
	}
	c := callerOf(ctx)
	bits, files := newborn(own.inherits, mode&07777, mode>>umaskShift)
	k, err := p.CreateDraft(deed(ctx), n.space, name, c.UID, c.GID, bits, files...)
	if err != nil {
		return nil, n.t.audited(ctx, at, "mkdir", begun, err)
	}
	n.t.audit(c, AuditDeed, place{t: n.t, provider: p, key: k.Number}, "mkdir", begun, nil)
	return n.t.entry(ctx, &n.Inode, n.t.key(p, k.Number), out)
}

// A keys directory is the end of the way to its names, which is judged anew where it has lost rights.
var _ gate.Way = (*keysDir)(nil)

// directories are the first steps to a key of a space.
func directories(p *kim.Provider, space kim.Space) [gate.Steps]uint64 {
	if uid, own := space.User(); own {
		return [gate.Steps]uint64{inoOf(p.Number(), 0), inoOf(p.Number(), rowUsers), kim.UserInode(p.Number(), uid)}
	}
	return [gate.Steps]uint64{inoOf(p.Number(), 0), 0, inoOf(p.Number(), rowKeys)}
}

// Numbers are the directories' with this one at the end.
func (n *keysDir) Numbers() ([gate.Steps]uint64, error) {
	numbers := directories(n.at.provider, n.space)
	numbers[2], numbers[gate.Steps-1] = 0, n.ino
	return numbers, nil
}

func (n *keysDir) step(i int) *base {
	switch i {
	case 0:
		return &n.t.provider(n.at.provider).base
	case 1:
		return &n.t.users(n.at.provider).base
	}
	return &n.base
}

// Rights are those of a step now.
func (n *keysDir) Rights(ctx context.Context, step int) (gate.Rights, error) {
	p, err := n.step(step).permissions(ctx)
	return p.rights(), err
}

// Path is a step's place.
func (n *keysDir) Path(step int) string { return n.step(step).self.place().path() }

// Units are the provider's.
func (n *keysDir) Units(context.Context) (gate.Units, error) {
	return gate.Units{Provider: n.at.provider.Name()}, nil
}

// enter is the gate for whoever changes names here, which the audit trail must be able to take.
func (n *keysDir) enter(ctx context.Context) error {
	if _, err := n.t.gate.Open(ctx, callerOf(ctx), n, gate.Write|gate.Search, gate.Units{Provider: n.at.provider.Name()}); err != nil {
		return err
	}
	return n.t.auditing.ready(callerOf(ctx).UID, AuditDeed)
}

// errStale is for a name that the kernel has judged by another key than the one that it leads to. The kernel looks it up
// again, and asks once more.
var errStale error = syscall.ESTALE

// taken is the key that a name here leads to, as it stands.
type taken struct {
	kim.Key
	owner  uint32
	rights gate.Rights // of its directory
}

func (n *keysDir) take(ctx context.Context, name string) (taken, error) {
	k, err := n.at.provider.Lookup(calm(ctx), n.space, name)
	if err != nil {
		return taken{}, err
	}
	in := n.GetChild(name)
	if in == nil {
		return taken{}, errStale
	}
	if d, ok := in.Operations().(*rowsDir); !ok || d.at.key != k.Number {
		return taken{}, errStale
	}
	p, err := n.t.key(n.at.provider, k.Number).permissions(ctx)
	return taken{k, p.uid, p.rights()}, err
}

// taking is for whoever takes a name from a key, which the kernel allowed by what it knew of the key. now gives the key
// once nobody else can change it, and judges the sticky bit by whose it is then.
func (n *keysDir) taking(ctx context.Context, name string) (now func() (taken, error), err error) {
	before, err := n.take(ctx, name)
	if err != nil {
		return nil, err
	}
	dir, err := n.permissions(ctx)
	if err != nil {
		return nil, err
	}
	who := callerOf(ctx)
	owns := func(gate.Rights) error { return nil }
	if dir.mode&syscall.S_ISVTX != 0 && who.UID != dir.uid {
		owns = n.t.gate.Owner(who, [gate.Steps]uint64{inoOf(before.Number, 0)}, before.rights)
	}
	return func() (taken, error) {
		k, err := n.take(ctx, name)
		switch {
		case err != nil:
			return taken{}, err
		case k.Number != before.Number:
			return taken{}, errStale
		}
		return k, owns(k.rights)
	}, nil
}

var _ = (fs.NodeRmdirer)((*keysDir)(nil))

// Rmdir destroys the key; it is safe because the kernel judged the sticky directory, we do so again, what changes while the
// device is waited for ends it, and the KIM journals.
func (n *keysDir) Rmdir(ctx context.Context, name string) syscall.Errno {
	begun := time.Now()
	k, err := n.destructible(ctx, name)
	if err == errStale {
		return syscall.ESTALE
	}
	at := place{t: n.t, provider: n.at.provider, key: k.Number}
	if k.Number == 0 {
		at = n.child(name)
	}
	if err != nil {
		return n.t.fail(ctx, at, "rmdir", err)
	}
	uid := callerOf(ctx).UID
	err = n.t.machine.PerformOut(ctx, callerOf(ctx), at.path, func(ctx context.Context) error {
		standing := kim.Standing{Space: k.Space, Name: k.Name, Owner: k.owner}
		if err := n.t.kim.DestroyStanding(ctx, k.Number, standing, uid); err != nil {
			return err
		}
		n.t.forget(k.Number)
		return nil
	})
	// by its name: its number means nothing once it is gone
	n.t.audit(callerOf(ctx), AuditDeed, n.child(name), "rmdir", begun, err)
	if errors.Is(err, kim.ErrMoved) {
		return syscall.ESTALE
	}
	return n.t.remember(ctx, at, "rmdir", err)
}

// destructible is the key under a name here, for whoever destroys it.
func (n *keysDir) destructible(ctx context.Context, name string) (k taken, err error) {
	now, err := n.taking(ctx, name)
	if err != nil {
		return taken{}, err
	}
	if err := n.enter(ctx); err != nil {
		return taken{}, err
	}
	n.t.changing.Lock()
	defer n.t.changing.Unlock()
	if k, err = now(); err != nil {
		return k, err
	}
	if k.KeepForever && k.Origin != kim.Adopted { // an adopted key is forgotten, and stays on its device
		return k, gate.Refuse(syscall.EPERM, "allow_destroy is false for this key", "ask its owner to write allow_destroy = true into attributes")
	}
	return k, nil
}

// forget ends what the tree holds for a key that is gone.
func (t *Tree) forget(number int64) {
	low, high := inoOf(number, 0), inoOf(number+1, 0)
	t.machine.Drop(func(ino uint64) bool { return ino >= low && ino < high })
}

// Flags of renameat2(2).
const (
	renameNoReplace = 1
	renameExchange  = 2
)

var _ = (fs.NodeRenamer)((*keysDir)(nil))

// Rename is safe because it never replaces a key and never leaves its provider, and the kernel asked for w and x on both
// directories.
func (n *keysDir) Rename(ctx context.Context, name string, parent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	at, p := n.child(name), n.at.provider
	to, ok := parent.(*keysDir)
	switch {
	case !ok || to.at.provider != p:
		return n.t.fail(ctx, at, "rename", gate.Refuse(syscall.EPERM, "a key can only be in its provider's keys/ or in a user's directory there",
			"make a new key in the other provider"))
	case flags&^(renameNoReplace|renameExchange) != 0:
		return n.t.fail(ctx, at, "rename", gate.Refuse(syscall.EINVAL, "unknown flags of renameat2", ""))
	}
	next := to.child(newName)
	if err := kim.ValidName(newName); err != nil {
		return n.t.fail(ctx, next, "rename", err)
	}
	begun := time.Now()
	if err := n.enter(ctx); err != nil {
		return n.t.fail(ctx, at, "rename", err)
	}
	if err := to.enter(ctx); err != nil {
		return n.t.fail(ctx, next, "rename", err)
	}
	key, err := n.move(ctx, name, to, newName, flags&renameExchange != 0)
	switch {
	case err == errStale:
		return syscall.ESTALE
	case key == 0:
		return n.t.fail(ctx, at, "rename", err)
	}
	n.t.audit(callerOf(ctx), AuditDeed, place{t: n.t, provider: p, key: key, file: at.file + " to " + next.file}, "rename", begun, err)
	return n.t.remember(ctx, at, "rename", err)
}

// move gives a key another name, or the name of another key that gets its own. It is no change beside another one: keys chown
// could have moved what was found by its old name to its new owner's, from where this would take it back.
func (n *keysDir) move(ctx context.Context, from string, to *keysDir, name string, exchange bool) (key int64, err error) {
	taking, err := n.taking(ctx, from)
	if err != nil {
		return 0, err
	}
	other := func() (taken, error) { return taken{}, nil }
	if exchange {
		if other, err = to.taking(ctx, name); err != nil {
			return 0, err
		}
	}
	n.t.changing.Lock()
	defer n.t.changing.Unlock()
	k, err := taking()
	if err != nil {
		return k.Number, err
	}
	o, err := other()
	if err != nil {
		return k.Number, err
	}
	changed := []int64{k.Number}
	if exchange {
		changed = append(changed, o.Number)
		err = n.t.kim.Exchange(deed(ctx), k.Number, o.Number)
	} else {
		err = n.t.kim.Rename(deed(ctx), k.Number, to.space, name)
	}
	if err == nil && n.space != to.space {
		n.t.moved(changed...)
	}
	return k.Number, err
}

// file makes the node of a row that is a file; key is 0 outside keys.
func (t *Tree) file(r *row, p *kim.Provider, key int64) tableNode {
	var n tableNode
	var f *fileNode
	switch r.kind {
	case request:
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
	f.t, f.ino, f.self = t, inoOf(ownerOf(p, key), r.number), n
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
	row  *row
	p    *kim.Provider
	key  int64
	last atomic.Pointer[showing]
	// own: what it says is what its reader's view says; others have an inode of their own under the same name
	own    bool
	reader uint32
}

// generation tells the inodes of readers apart, which share their number.
func (n *fileNode) generation() uint64 {
	switch {
	case n.own:
		return uint64(n.reader) + 1
	case n.key != 0 && n.row.kind != request:
		// What whoever lost a right still has open is another inode, whose pages nobody fills again.
		return n.t.gate.Last(inoOf(n.key, 0), n.ino)
	}
	return 0
}

func (n *fileNode) place() place { return place{t: n.t, provider: n.p, key: n.key, file: n.row.path()} }

func (n *fileNode) view(ctx context.Context) (*view, error) {
	v, err := n.place().view(ctx)
	if n.own {
		v.uid = n.reader
	}
	return v, err
}

func (n *fileNode) stat(ctx context.Context) (stat, error) {
	v, err := n.view(ctx)
	if err != nil {
		return stat{}, err
	}
	s := stat{kind: syscall.S_IFREG, mode: n.row.modeFor(v), uid: n.t.uid, gid: n.t.gid, changed: n.t.started, settable: fileBits}
	if n.key != 0 {
		s.uid, s.gid, s.changed = v.key.UID, v.key.GID, v.key.Changed
	}
	if n.row.text == nil {
		return s, nil
	}
	b, changed, err := n.says(v, aMoment)
	if err != nil {
		return stat{}, err
	}
	s.size = uint64(len(b))
	if changed.After(s.changed) {
		s.changed = changed
	}
	s.fleeting, s.never, s.neverName = n.row.changes || n.row.asks, n.own, n.own
	return s, nil
}

// present is the row's own check at open: the kernel may still hold the name of a file that has gone.
func (n *fileNode) present(v *view) error {
	if !n.shown(v) {
		why, hint := v.unshown(n.row)
		return psa.Errorf(psa.StatusDoesNotExist, "%s", why).WithHint(hint)
	}
	return nil
}

// shown is the row's, remembered for a policy and the lines of a provider, which are many: an open asks each time.
func (n *fileNode) shown(v *view) bool {
	if n.row.kind != request {
		return n.row.shown(v)
	}
	s, lines := n.last.Load(), v.provider.Capabilities()
	if !s.follows(&v.key, lines) {
		s = &showing{v.key.State, v.key.Attributes, lines, n.row.shown(v)}
		n.last.Store(s)
	}
	return s.shown
}

// showing is whether a file is there, and what that follows from.
type showing struct {
	state      kim.State
	attributes psa.Attributes
	lines      []psa.Capability
	shown      bool
}

// follows says whether it follows from these; none does not.
func (s *showing) follows(k *kim.Key, lines []psa.Capability) bool {
	return s != nil && s.state == k.State && s.attributes == k.Attributes && same(s.lines, lines)
}

// same says whether a provider's lines are the same ones still: it gets new ones as a whole.
func same(a, b []psa.Capability) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// pages is a listing that holds one page at a time. The place behind a name is how many were given up to it.
type pages struct {
	next   func(after string) ([]fuse.DirEntry, error)
	list   []fuse.DirEntry
	after  string
	given  uint64
	most   uint64      // that was ever given
	recent []string    // names given last, at least recentNames of them where there were as many
	starts []pageStart // of the pages, in their order
	err    error
	ended  bool
}

// recentNames is behind how many names it is known for certain what follows, also where names before them have gone since.
const recentNames = 2 * pageSize

// pageStart is where a page begins.
type pageStart struct {
	given uint64
	after string
}

// listing lists what the KIM has in pages. It outlives the call that opened it, so it has no context of that call.
func listing[T any](page func(ctx context.Context, after string, most int) ([]T, error), entry func(T) fuse.DirEntry) *pages {
	return &pages{next: func(after string) (list []fuse.DirEntry, err error) {
		found, err := page(context.Background(), after, pageSize)
		for _, x := range found {
			list = append(list, entry(x))
		}
		return list, err
	}}
}

// HasNext fetches the next page where the last one is used up. Damaged names are left out: the kernel ends a listing with
// EIO at a name with a slash.
func (p *pages) HasNext() bool {
	for {
		for len(p.list) > 0 && kim.ValidName(p.list[0].Name) != nil {
			p.list, p.after = p.list[1:], p.list[0].Name
		}
		if len(p.list) > 0 || p.ended {
			return len(p.list) > 0 || p.err != nil
		}
		if n := len(p.starts); n == 0 || p.starts[n-1].given < p.given {
			p.starts = append(p.starts, pageStart{p.given, p.after})
		}
		p.list, p.err = p.next(p.after)
		p.ended = p.err != nil || len(p.list) == 0
	}
}

// Next gives one entry, or the error that ended the listing, once.
func (p *pages) Next() (fuse.DirEntry, syscall.Errno) {
	if len(p.list) == 0 {
		e := errnoOf(p.err)
		p.err = nil
		return fuse.DirEntry{}, e
	}
	e := p.list[0]
	p.list, p.after = p.list[1:], e.Name
	if p.recent = append(p.recent, e.Name); len(p.recent) == 2*recentNames {
		p.recent = slices.Delete(p.recent, 0, recentNames)
	}
	p.given++
	p.most = max(p.most, p.given)
	e.Off = p.given
	return e, 0
}

var _ = (fs.FileSeekdirer)((*pages)(nil))

// Seekdir goes to a place that Next gave: behind its name, or by the beginning of its page where that was given long ago.
func (p *pages) Seekdir(_ context.Context, off uint64) syscall.Errno {
	if off > p.most {
		return syscall.EINVAL
	}
	if back := p.given - off; off <= p.given && back < uint64(len(p.recent)) {
		p.recent = p.recent[:uint64(len(p.recent))-back]
		p.list, p.err, p.ended, p.given, p.after = nil, nil, false, off, p.recent[len(p.recent)-1]
		return 0
	}
	start := pageStart{}
	for _, s := range p.starts {
		if s.given > off {
			break
		}
		start = s
	}
	p.list, p.err, p.ended, p.given, p.after, p.recent = nil, nil, false, start.given, start.after, nil
	for p.given < off && p.HasNext() {
		if _, errno := p.Next(); errno != 0 {
			return errno
		}
	}
	if p.given != off { // names before it that have gone count as well
		p.given, p.recent = off, nil
	}
	return 0
}

// Close ends the listing.
func (p *pages) Close() { p.list, p.recent, p.ended = nil, nil, true }

// linkTo is what a symbolic link says.
type linkTo struct {
	target   string
	uid, gid uint32
	changed  time.Time
	lasting  bool
}

// symlinkNode is a symbolic link of the tree. What it says never changes.
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

// link is a symbolic link of the daemon's own.
func (t *Tree) link(row uint64, file, target string) *symlinkNode {
	return t.symlink(inoOf(0, row), place{t: t, file: file}, linkTo{target: target, uid: t.uid, gid: t.gid, changed: t.started, lasting: true})
}

func (n *symlinkNode) place() place { return n.at }

func (n *symlinkNode) stat(context.Context) (stat, error) {
	return stat{kind: syscall.S_IFLNK, mode: 0777, uid: n.to.uid, gid: n.to.gid, size: uint64(len(n.to.target)), changed: n.to.changed,
		settable: fileBits, lasting: n.to.lasting}, nil
}

var _ = (fs.NodeReadlinker)((*symlinkNode)(nil))

// Readlink is safe because a link is a name; the kernel judges the way to its target.
func (n *symlinkNode) Readlink(context.Context) ([]byte, syscall.Errno) {
	return []byte(n.to.target), 0
}
