package nodes

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
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
	// AttrTimeout is how long the kernel may keep attributes, at most a second.
	AttrTimeout time.Duration
	// TransactionsPerUser bounds open operation files, slots and drop box requests of one uid; beyond it is EAGAIN.
	TransactionsPerUser int
	// BufferPerUser bounds the bytes that requests of one uid hold; beyond it is ENOMEM.
	BufferPerUser int64
	// OthersAllowed says whether users other than the mounter can come in.
	OthersAllowed bool
	// Audit takes the audit trail's events, and AuditPath is the file that log links to; nil and "" are none.
	Audit     Auditor
	AuditPath string
	// Units are the rules of the authenticator SystemdUnit; nil is without it.
	Units []UnitRule
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

	auditing *auditing
	failures failures
	account  account
	boxes    boxes
	slots    slotTable
	sizes    sizes
	running  sync.WaitGroup
	workers  *workers
	changing sync.Mutex // one change of permissions at a time

	revocations revocations
	units       atomic.Pointer[[]UnitRule] // nil: no authenticator SystemdUnit
	admins      atomic.Pointer[[]uint32]
	closed      atomic.Bool
}

// New makes the tree over an open KIM. Nothing is read from it before it is looked up.
func New(o Options) *Tree {
	if o.BodyLimit == 0 {
		o.BodyLimit = DefaultBodyLimit
	}
	if o.TransactionsPerUser == 0 {
		o.TransactionsPerUser = DefaultTransactionsPerUser
	}
	if o.BufferPerUser == 0 {
		o.BufferPerUser = DefaultBufferPerUser
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	t := &Tree{
		kim: o.KIM, options: o, log: o.Log, started: time.Now(),
		uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), readme: readme(), workers: newWorkers(),
		tables: tables{root: rootRows, provider: providerRows, hash: hashRows, key: keyRows},
	}
	t.account.transactionsMost, t.account.bytesMost = o.TransactionsPerUser, o.BufferPerUser
	t.boxes.t, t.slots.t = t, t
	if o.Audit != nil {
		t.auditing = &auditing{to: o.Audit, key: o.KIM.AuditKey}
	}
	t.SetUnitRules(o.Units)
	t.SetAdmins(o.Admins)
	t.root = t.top()
	return t
}

// Root is the node to mount.
func (t *Tree) Root() fs.InodeEmbedder { return t.root }

// RootIno is the inode number of the root directory.
const RootIno = rootIno

// Wrap hands the process's umask on to Mkdir, above the mode's own bits: with CAP_DONT_MASK, which default ACLs need,
// the kernel leaves it to us, and go-fuse's fs API has no place for it. What Create makes has a mode of its own.
func (t *Tree) Wrap(raw fuse.RawFileSystem) fuse.RawFileSystem { return &masked{&pageReads{raw}} }

type masked struct{ fuse.RawFileSystem }

func (m *masked) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	in.Mode = in.Mode&07777 | in.Umask&0777<<umaskShift
	return m.RawFileSystem.Mkdir(cancel, in, name, out)
}

// umaskShift is where Mkdir finds the umask in its mode.
const umaskShift = 16

// Drain waits until no operation runs, or ctx ends. New ones are refused from now on.
func (t *Tree) Drain(ctx context.Context) {
	t.closed.Store(true)
	done := make(chan struct{})
	go func() { t.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// Close wipes what slots and drop boxes still hold. The mount must be gone.
func (t *Tree) Close() {
	t.closed.Store(true)
	t.boxes.clear()
	t.slots.clear()
	t.workers.close()
}

// SetAdmins replaces Options.Admins.
func (t *Tree) SetAdmins(uids []uint32) { t.admins.Store(&uids) }

// Admin says whether a user is one of them, root or the daemon's own.
func (t *Tree) Admin(uid uint32) bool {
	return uid == 0 || uid == t.uid || slices.Contains(*t.admins.Load(), uid)
}

// begin counts an operation for Drain; it is false once the tree drains.
func (t *Tree) begin() bool {
	if t.closed.Load() {
		return false
	}
	t.running.Add(1)
	return true
}

// account counts what each uid holds open.
type account struct {
	mu               sync.Mutex
	transactionsMost int
	bytesMost        int64
	users            map[uint32]*holding
}

type holding struct {
	transactions int
	bytes        int64
}

func (a *account) change(uid uint32, transactions int, bytes int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.users == nil {
		a.users = map[uint32]*holding{}
	}
	h := a.users[uid]
	if h == nil {
		h = &holding{}
		a.users[uid] = h
	}
	switch {
	case transactions > 0 && h.transactions+transactions > a.transactionsMost:
		return refuse(syscall.EAGAIN, "too many open transactions of this user", "close some, or wait")
	case bytes > 0 && h.bytes+bytes > a.bytesMost:
		return psa.Errorf(psa.StatusInsufficientMemory, "the requests of this user hold too many bytes").WithHint("finish some of them first")
	}
	h.transactions += transactions
	h.bytes += bytes
	if h.transactions == 0 && h.bytes == 0 {
		delete(a.users, uid)
	}
	return nil
}
