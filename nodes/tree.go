package nodes

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/nodes/transaction"
)

// Defaults of Options.
const (
	DefaultBodyLimit           = 1 << 20
	DefaultTransactionsPerUser = 1024
	DefaultBufferPerUser       = 64 << 20
)

// Options of New. A zero number is the default.
type Options struct {
	KIM     *kim.KIM
	Version string
	// BodyLimit is the most bytes of an input that cannot be streamed; beyond it is EFBIG.
	BodyLimit int64
	// Dropbox allows an operation file to be written and read by separate opens.
	Dropbox bool
	// Lasting is how long the kernel may keep the names and attributes of directories in front of keys: names that are there as
	// long as the mount, and attributes that only the kernel's own requests change, or we, who tell it. Nobody but us may write
	// into the store then. 0: as long as other ones.
	Lasting time.Duration
	// TransactionsPerUser bounds open files and directories, slots and drop box requests of one uid; beyond it is EAGAIN.
	TransactionsPerUser int
	// BufferPerUser bounds the bytes that requests, answers and texts of one uid hold; beyond it is ENOMEM.
	BufferPerUser int64
	// OthersAllowed says whether users other than the mounter can come in.
	OthersAllowed bool
	// Audit takes the audit trail's events, and AuditPath is the file that log links to; nil and "" are none.
	Audit     Auditor
	AuditPath string
	// Units are the rules of the authenticator SystemdUnit; nil is without it.
	Units []gate.UnitRule
	// Admins are the uids that may adopt keys, beside root and the daemon's user.
	Admins []uint32
	Log    *slog.Logger
}

// Tree is the tree of one mount.
type Tree struct {
	kim      *kim.KIM
	options  Options
	log      *slog.Logger
	started  time.Time
	uid, gid uint32 // the daemon's, who owns what nobody else does
	root     *rowsDir
	tables   tables
	readme   []byte

	auditing   *auditing
	failures   failures
	renderings renderings
	recents    recents
	sizes      sizes
	strangers  strangers
	drafts     inUse
	procs      *caller.Procs
	gate       *gate.Gate
	machine    *transaction.Machine
	prompt     *Prompt    // nil: nobody asks
	changing   sync.Mutex // one change of permissions at a time
	admins     atomic.Pointer[[]uint32]
	kept       atomic.Bool // the kernel may keep attributes of lasting directories
}

// New makes the tree over an open KIM. Nothing is read from it before it is looked up.
func New(o Options) *Tree {
	o.BodyLimit = cmp.Or(o.BodyLimit, DefaultBodyLimit)
	o.TransactionsPerUser = cmp.Or(o.TransactionsPerUser, DefaultTransactionsPerUser)
	o.BufferPerUser = cmp.Or(o.BufferPerUser, DefaultBufferPerUser)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &Tree{
		kim: o.KIM, options: o, log: o.Log, started: time.Now(),
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), readme: readme(), procs: caller.New(),
		tables: tables{root: rootRows, provider: providerRows, hash: hashRows, key: keyRows},
	}
	if o.Audit != nil {
		t.auditing = &auditing{to: o.Audit, key: o.KIM.AuditKey}
	}
	t.gate = gate.New(t.procs, o.Units)
	// What let somebody in before the data key came was not proven.
	o.KIM.OnUnlock(t.unlocked)
	t.machine = transaction.New(transaction.Options{Procs: t.procs, BodyLimit: o.BodyLimit, PerUser: o.TransactionsPerUser,
		BytesPerUser: o.BufferPerUser, Log: o.Log})
	t.SetAdmins(o.Admins)
	t.root = t.top()
	o.KIM.OnForgotten(t.forgotten)
	return t
}

// Root is the node to mount.
func (t *Tree) Root() fs.InodeEmbedder { return t.root }

// RootIno is the inode number of the root directory.
const RootIno = rootIno

// Wrap hands the process's umask on to Mkdir, above the mode's own bits: with CAP_DONT_MASK, which default ACLs need,
// the kernel leaves it to us, and go-fuse's fs API has no place for it. What Create makes has a mode of its own.
func (t *Tree) Wrap(raw fuse.RawFileSystem) fuse.RawFileSystem {
	return &names{&moments{&masked{&pageReads{RawFileSystem: raw}}}}
}

type masked struct{ fuse.RawFileSystem }

func (m *masked) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	in.Mode = in.Mode&07777 | in.Umask&0777<<umaskShift
	return m.RawFileSystem.Mkdir(cancel, in, name, out)
}

// umaskShift is where Mkdir finds the umask in its mode.
const umaskShift = 16

// Drain waits until no operation runs, or ctx ends. New ones are refused from now on.
func (t *Tree) Drain(ctx context.Context) { t.machine.Drain(ctx) }

// Close wipes what slots and drop boxes still hold. The mount must be gone.
func (t *Tree) Close() { t.machine.Close() }

// SetUnitRules replaces the configuration's rules; nil is no authenticator of this kind. Who has something open is
// judged anew.
func (t *Tree) SetUnitRules(rules []gate.UnitRule) {
	directories := map[string]uint64{}
	for _, p := range t.kim.Providers() {
		directories[p.Name()] = inoOf(p.Number(), 0)
	}
	t.gate.SetUnitRules(rules, directories)
}

// SetAdmins replaces Options.Admins.
func (t *Tree) SetAdmins(uids []uint32) { t.admins.Store(&uids) }

// Admin says whether a user is one of them, root or the daemon's own.
func (t *Tree) Admin(uid uint32) bool {
	return uid == 0 || uid == t.uid || slices.Contains(*t.admins.Load(), uid)
}
