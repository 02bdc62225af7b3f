package kim

import (
	"context"
	"math"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// State of a key's row: the journal is the rows that are not at rest.
type State string

// The states of a key. Draft and Ready are at rest; Creating and Destroying are the journal.
const (
	Draft      State = "draft"
	Creating   State = "creating"
	Ready      State = "ready"
	Destroying State = "destroying"
)

// Key is a snapshot of one row.
type Key struct {
	Number      int64    // never reused; inode numbers are Number*256 + the file's own number
	ID          [16]byte // the key's uuid
	Provider    int64    // the provider's number
	Space       Space    // in which it has its name
	Name        string
	State       State
	Hidden      bool // an outcome is unknown: not listed, every use is EBUSY
	Handle      providers.Handle
	Attributes  psa.Attributes // of a draft: what is set so far
	Template    string
	Origin      string // see below; empty in a draft
	UID, GID    uint32 // the default owner of its files, in whose quota it counts: see Store
	Created     time.Time
	Changed     time.Time
	Public      []byte   // SubjectPublicKeyInfo in DER
	Sealed      bool     // has a secret in this KIM
	KeepForever bool     // allow_destroy = false
	Units       []string // systemd units that may use the key; empty: any
	Object      string   // the device's name of an adopted key, else empty
	CallerNonce bool     // encryption takes a nonce of the caller's choice
	NonceBound  bool     // a copy of a key without CallerNonce, which it never gets
	Nonces      int64    // made at random with the key, or reserved for that: see Store.TakeNonces
	Failures    int64    // of short tags: see Store.AddFailure
	Copied      bool     // a copy: its Failures are root's to reset
	// Damage is set where the row cannot be understood, or is not as it was stored (StatusDataCorrupt): then only Number,
	// Provider, Space and Name hold.
	Damage error

	files       fileSet // those that have a row of their own
	certificate []byte  // SHA-256 of the chain beside the key
	values      []any   // the row itself, for who changes it
}

// Name is a key's name, and its number.
type Name struct {
	Name   string
	Number int64
}

func (k Key) ino(file uint64) uint64 { return uint64(k.Number)*256 + file }

// Where a key came from, as Key.Origin says.
const (
	Generated = "generated"
	Imported  = "imported"
	Derived   = "derived"
	Adopted   = "adopted"
)

// Adoption is what Adopt makes of a draft.
type Adoption struct {
	Handle     providers.Handle // a new one
	Template   string
	Attributes psa.Attributes
	Device     string           // the identity of the device
	Object     string           // its name of the key
	Made       providers.Handle // the handle that the object has if it was made here, else zero
	Public     []byte
	Sealed     []byte
}

// KeptFiles are the numbers of the files, beside its directory (0), that a draft has and a key has still: attributes and
// last_error. The others of a draft go when it becomes a key, and the others of a key come into being with it.
var KeptFiles = [2]uint64{1, 7}

// CheckOwner refuses what is nobody: chown(2) means "unchanged" by it, so that no file can belong to it.
func CheckOwner(uid, gid uint32) error {
	if uid == math.MaxUint32 || gid == math.MaxUint32 {
		return psa.Errorf(psa.StatusInvalidArgument, "%d is not a uid or gid", uint32(math.MaxUint32))
	}
	return nil
}

// Standing is where a key stood, and who owned its directory, when somebody was allowed to destroy it.
type Standing struct {
	Space Space
	Name  string
	Owner uint32
}

// ErrMoved is for a key that was renamed or given away since somebody was allowed to destroy it.
var ErrMoved = psa.Errorf(psa.StatusInvalidHandle, "the key was renamed or given to another user meanwhile")

// Entry is a row of the journal: a key in Creating or Destroying.
type Entry struct {
	Key    Key
	Before State // what the row was before, and will be again if what was begun is undone
}

// ProviderRow is what the KIM knows of a provider, configured or not.
type ProviderRow struct {
	Number       int64    // from the sequence that keys take theirs from
	UUID         [16]byte // made at its first start, its identity for ever
	Name, Type   string
	Default      bool   // providers/default points to it; at most one has it
	Identity     string // of the device when it was last seen; empty before
	Capabilities string // the lines that it had then
	Created      time.Time
	Damage       error // as Key's: then only Number and Name hold

	files fileSet
	users fileSet // see usersTop
}

// NewDraft is what InsertDraft stores.
type NewDraft struct {
	Provider int64
	Space    Space
	Name     string
	UID, GID uint32
	// Inodes are stored with it. Their Ino is only the file's own number, below 256.
	Inodes []Inode
	// Quota is how many keys and drafts this uid may have in the whole KIM, this one included; 0 is no limit. Eight quotas
	// are for all users together: beyond them whoever has an equal share or more is refused.
	Quota int
}

// Inode is what differs from the table's default for one inode; a nil field is the default.
type Inode struct {
	Ino                 uint64
	Mode                *uint32 // permission bits
	UID, GID            *uint32
	ACL, DefaultACL     []byte
	Atime, Mtime, Ctime *time.Time
}

// Alias is a symbolic link in /keys.
type Alias struct {
	Name, Target string
	UID, GID     uint32
	Number       int64 // from the sequence that keys and providers take theirs from
	Changed      time.Time

	files fileSet
}

// Kinds of changes.
const (
	KeyChanged      = "key"
	InodeChanged    = "inode"
	AliasChanged    = "alias"
	ProviderChanged = "provider"
	// AllChanged is reported instead of the changes that a slow watcher left waiting: anything may have changed.
	AllChanged = "all"
)

// Change says that something in the store changed.
type Change struct {
	Provider, Key int64  // 0: none
	Ino           uint64 // 0: all of the key
	Kind          string // "key", "inode", "alias", "provider", "all"
}

// WrappedKey is the data key as the KIM stores it: encrypted by a wrapping key that lies elsewhere.
type WrappedKey struct {
	Kind       string   // of the wrapping key: "file", "tpm:PROVIDER" or "recovery"
	WrappingID [16]byte // which wrapping key
	Wrapped    []byte
	PCRs       psa.PCRs // of a TPM: what it is bound to
	// Before is the wrapping key file that this one took the place of, and that nobody needs any more; zero: none.
	Before [16]byte
	MAC    []byte // the store's, under the guard that comes of the data key; nil in a store of before there were any
}

// Rekeying is what Rekey does.
type Rekeying struct {
	Old [16]byte   // the id of the wrapping that the store has
	Row WrappedKey // takes its place
	// Recovery takes the place of the recovery key's row; nil leaves that one.
	Recovery *WrappedKey
	Guard    *RowKey // from now on
	// Reseal gives a key's secret as it is to be stored, sealed for the key and the provider with this UUID. nil leaves
	// all as they are; StatusDataCorrupt leaves this one, and its row damaged.
	Reseal func(k Key, provider [16]byte, sealed []byte) ([]byte, error)
}

// How SetXattr treats a label that is or is not there, as setxattr(2) has it.
const (
	XattrSet     = 0 // make or replace
	XattrCreate  = 1 // XATTR_CREATE: StatusAlreadyExists if it is there
	XattrReplace = 2 // XATTR_REPLACE: StatusDoesNotExist if it is not
)

// MaxXattrBytes bounds the labels of one inode: all names and values together.
const MaxXattrBytes = 64 << 10

// MaxPage bounds what one listing returns, whatever it was asked for.
const MaxPage = 4096

// Store keeps the KIM's rows. Every method is one transaction, durable when it returns
// without an error and without any trace when it returns one; a context that ends while a method waits for its turn
// ends it, one that has begun is finished. All methods may be called at once from many goroutines: those that change something
// may share a commit, where each has its own outcome, and users (ForUser) take turns.
//
// The store keeps the journal's rules, so that no order of calls can break them, and judges no names and no policy:
// those are its caller's. Errors are psa.Errors: StatusDoesNotExist for a number or name that is not there,
// StatusBadState for a row in another state than the method needs or that is hidden, StatusInsufficientStorage for a
// full disk (which stops no removal), StatusStorageFailure for any other trouble with it, StatusDataCorrupt for a row that cannot be
// understood (which stops that row alone), StatusInvalidArgument for an owner that is nobody (CheckOwner), StatusQueueFull
// where too many changes wait, but for those that make room or that the journal needs.
//
// A draft belongs to its maker, and counts in the maker's quota, also where its directory was given to somebody else.
// When it becomes a key, in the transaction that makes it ready, it becomes the key of whoever owns its directory then:
// their default files, their quota. Nothing is refused over the quota there, since only root gives directories away; the
// next draft is. Files that the draft had already (KeptFiles) keep their owners.
type Store interface {
	// Providers lists all that were ever started, sorted by name.
	Providers(ctx context.Context) ([]ProviderRow, error)
	// EnsureProvider finds the provider of this name, or makes it with a new number and UUID. Another type than it had
	// is StatusInvalidArgument.
	EnsureProvider(ctx context.Context, name, typ string) (ProviderRow, error)
	// SetProviderSeen stores what the device said when it was there.
	SetProviderSeen(ctx context.Context, number int64, identity, capabilities string) error
	// RenameProvider gives the provider, which stays the same one, another name, also where aliases and the data key's
	// wrapping have it. A provider that has that name already is StatusAlreadyExists where it has a key or wraps the
	// data key, and goes otherwise.
	RenameProvider(ctx context.Context, from, to string) error
	// SetDefaultProvider makes it the one and only default.
	SetDefaultProvider(ctx context.Context, number int64) error

	// Keys lists a provider's keys in a space that are not hidden, in the order of their names' bytes, from the first name
	// behind after, at most n (and never more than MaxPage). A row that cannot be understood is listed with its Damage.
	Keys(ctx context.Context, provider int64, space Space, after string, n int) ([]Key, error)
	// Names lists what Keys does, and reads no more of it: there may be very many.
	Names(ctx context.Context, provider int64, space Space, after string, n int) ([]Name, error)
	// Spaces lists the spaces behind after in which a provider has keys, hidden ones too, in their order, at most n.
	Spaces(ctx context.Context, provider int64, after Space, n int) ([]Space, error)
	// KeyByName finds a key, hidden ones too.
	KeyByName(ctx context.Context, provider int64, space Space, name string) (Key, error)
	KeyByNumber(ctx context.Context, number int64) (Key, error)
	// Secret is what FinishCreate stored sealed, nil if it stored nothing.
	Secret(ctx context.Context, number int64) ([]byte, error)
	// Count counts keys and drafts of all providers, hidden ones too.
	Count(ctx context.Context) (int64, error)
	// CountOf counts those of one user (Key.UID), which the quota is about.
	CountOf(ctx context.Context, uid uint32) (int64, error)

	// InsertDraft makes a draft. A name that is taken is StatusAlreadyExists, by a hidden key StatusBadState; one more
	// than the quota is StatusQuota.
	InsertDraft(ctx context.Context, d NewDraft) (Key, error)
	// UpdateDraft stores what is set so far of a draft.
	UpdateDraft(ctx context.Context, number int64, template string, a psa.Attributes) error
	// RemoveDraft removes a draft, with its inodes and labels, without a journal: no provider knows it. One that does not stand
	// as asked is ErrMoved; nil asks nothing.
	RemoveDraft(ctx context.Context, number int64, asked *Standing) error
	// Drafts lists the drafts of all providers whose rows did not change after a time, by number, from the first one behind
	// after, at most n. A row that cannot be understood is listed with its Damage.
	Drafts(ctx context.Context, since time.Time, after int64, n int) ([]Key, error)
	// ExpireDraft is RemoveDraft of a draft that did not change after a time, with its inodes; else it is StatusBadState.
	ExpireDraft(ctx context.Context, number int64, since time.Time) error
	// BeginCreate turns a draft into Creating, with what the key is to become. The handle must never have been used.
	BeginCreate(ctx context.Context, number int64, h providers.Handle, template string, a psa.Attributes, origin string) (Key, error)
	// FinishCreate turns Creating into Ready, for its directory's owner, and shows the key if it was hidden.
	FinishCreate(ctx context.Context, number int64, public, sealed []byte) error
	// AbortCreate turns Creating into the draft that it was before, and shows it if it was hidden.
	AbortCreate(ctx context.Context, number int64) error
	// Adopt turns a draft into Ready, for its directory's owner and with allow_destroy = false: the device has the key already, so there is nothing to
	// journal. An object that any row has is StatusAlreadyExists.
	Adopt(ctx context.Context, number int64, a Adoption) error
	// Holder is the key whose object this is, adopted or made here (then it has this handle): StatusDoesNotExist if
	// no row has it.
	Holder(ctx context.Context, device, object string, made providers.Handle) (Key, error)
	// Forget removes the row of a key in whatever state, hidden or not, whatever its device still has.
	Forget(ctx context.Context, number int64) error
	// BeginDestroy turns Draft or Ready into Destroying. KeepForever is StatusNotPermitted, asked as in RemoveDraft.
	BeginDestroy(ctx context.Context, number int64, asked *Standing) (Key, error)
	// FinishDestroy removes the row that is Destroying, with its inodes and labels.
	FinishDestroy(ctx context.Context, number int64) error
	// AbortDestroy turns Destroying into what it was before, and shows it if it was hidden.
	AbortDestroy(ctx context.Context, number int64) error
	// SetHidden hides a key in Creating or Destroying while its outcome is unknown, or shows it again.
	SetHidden(ctx context.Context, number int64, hidden bool) error
	// Journal lists a provider's keys in Creating or Destroying with numbers above after, by number, at most n.
	Journal(ctx context.Context, provider, after int64, n int) ([]Entry, error)

	// Rename gives a key another name, perhaps in another space. One that is taken there is StatusAlreadyExists, by a hidden
	// key StatusBadState; the key's own is no change.
	Rename(ctx context.Context, number int64, space Space, name string) error
	// Exchange swaps the names of two keys of one provider, with their spaces.
	Exchange(ctx context.Context, number, other int64) error
	SetAllowDestroy(ctx context.Context, number int64, allow bool) error
	// SetUnits stores the systemd units that may use the key; names hold no white space.
	SetUnits(ctx context.Context, number int64, units []string) error
	// SetCallerNonce stores whether encryption with the key takes a nonce of the caller's choice. True for a copy that
	// BindNonce bound is StatusNotPermitted.
	SetCallerNonce(ctx context.Context, number int64, allow bool) error
	// BindNonce binds a key in Creating to nonces that the provider makes, for ever once it is Ready.
	BindNonce(ctx context.Context, number int64) error
	// TakeNonces reserves up to n of the MaxNonces that may be made at random with a key that is Ready, and says how many it
	// got: none is StatusNotPermitted. What is reserved never comes back.
	TakeNonces(ctx context.Context, number, n int64) (int64, error)
	// AddFailure counts one more forgery that was refused by a key that is Ready, up to MaxFailures.
	AddFailure(ctx context.Context, number int64) error
	// ResetFailures makes a key's Failures 0; those of a copy for root alone, else StatusNotPermitted.
	ResetFailures(ctx context.Context, number int64, root bool) error
	// ShareCounts gives a copy that is Creating a share of what its source, which is Ready, has left of both bounds, so that
	// the two together have no more than the one had.
	ShareCounts(ctx context.Context, number, source int64) error
	// SetCertificate keeps a chain beside a key that is Ready; an empty one removes it. before is what it takes the place of.
	SetCertificate(ctx context.Context, number int64, chain []byte) (before []byte, err error)
	// RestoreCertificate puts what was before a chain in its place again, unless the chain is there no more.
	RestoreCertificate(ctx context.Context, number int64, chain, before []byte) error
	// Certificate is what SetCertificate kept, nil for nothing.
	Certificate(ctx context.Context, number int64) ([]byte, error)
	// SetOwner gives what belongs to the user from of a key and its inodes to uid and gid, quota included, and takes from
	// out of the ACLs of these inodes. What belongs to others stays as it is; where nothing is from's it is StatusDoesNotExist.
	// A key of from's among from's own names goes to those of uid; a name that is taken there is as in Rename, and nothing
	// changes.
	SetOwner(ctx context.Context, number int64, from, uid, gid uint32) error

	// Inode is what is stored of an inode; false: nothing, all is default.
	Inode(ctx context.Context, ino uint64) (Inode, bool, error)
	// SetInode replaces all that is stored of an inode. Whose Ino is no UserInode of a provider that is there, and whose
	// Ino/256 is neither 0 (the tree's own files) nor the number of a key, alias or provider, is StatusDoesNotExist.
	SetInode(ctx context.Context, i Inode) error
	// Xattr is the value of a label (user.*) of an inode.
	Xattr(ctx context.Context, ino uint64, name string) ([]byte, error)
	// Xattrs lists the names of an inode's labels, sorted.
	Xattrs(ctx context.Context, ino uint64) ([]string, error)
	// SetXattr stores a label; how is XattrSet, XattrCreate or XattrReplace. Over MaxXattrBytes is StatusQuota.
	SetXattr(ctx context.Context, ino uint64, name string, value []byte, how int) error
	RemoveXattr(ctx context.Context, ino uint64, name string) error

	// Aliases lists the links of /keys in the order of their names' bytes, from the first behind after, at most n.
	Aliases(ctx context.Context, after string, n int) ([]Alias, error)
	Alias(ctx context.Context, name string) (Alias, error)
	// CreateAlias stores a new link; Number and Changed are set by the store. A name that is taken is
	// StatusAlreadyExists.
	CreateAlias(ctx context.Context, a Alias) (Alias, error)
	// RenameAlias moves a link, over another one if `to` is taken, as rename(2) does.
	RenameAlias(ctx context.Context, from, to string) error
	RemoveAlias(ctx context.Context, name string) error

	// DataKey is the wrapped data key; false if there is none yet.
	DataKey(ctx context.Context) (WrappedKey, bool, error)
	// InitDataKey stores the first one, and guards the store from now on. If there is one it is StatusAlreadyExists, and stays.
	InitDataKey(ctx context.Context, w WrappedKey, guard *RowKey) error
	// Guard proves from now on each row that is written, and has each that is read proven: what is not as it was stored
	// is damaged. Before it nothing is proven, and what changes a key, an inode, a label or a link is
	// StatusProviderAbsent. StatusDataCorrupt says what of the store as a whole is damaged; it is guarded all the same.
	Guard(ctx context.Context, guard *RowKey) error
	// Unguard undoes Guard: the data key counts no more.
	Unguard()
	// Rekey changes the data key's row, and guards the store by another key, under which all rows are proven that are
	// now; a store that never was guarded is taken as it is. damaged counts the rows that stay damaged. Where the store's
	// wrapping is another one than Old it is StatusBadState, and nothing changes.
	Rekey(ctx context.Context, r Rekeying) (damaged int64, err error)
	// ReplaceDataKey stores the data key in another wrapping, in the place of the one with the id old. Where that is not
	// the store's any more it is StatusBadState, and nothing changes.
	ReplaceDataKey(ctx context.Context, old [16]byte, w WrappedKey) error
	// Generation is what SetGeneration stored; a reference of nil is none.
	Generation(ctx context.Context) (generation uint64, counter []byte, err error)
	// SetGeneration stores the generation of the store as a whole, and the reference of the counter that it is compared
	// with.
	SetGeneration(ctx context.Context, generation uint64, counter []byte) error
	// RecoveryKey is the data key wrapped by the recovery key, with the kind "recovery"; false if there is none.
	RecoveryKey(ctx context.Context) (WrappedKey, bool, error)
	// SetRecoveryKey stores the data key wrapped by a recovery key, the only one from now on.
	SetRecoveryKey(ctx context.Context, w WrappedKey) error

	// Watch calls f after each commit, from one goroutine, in the order of the commits; f may call the store. The
	// returned func ends it and waits until f has returned, so f must not call that one.
	Watch(f func(Change)) (stop func())

	// Lost says that what holds the rows was taken away, or replaced, while it was open (StatusStorageFailure): they can be
	// read and copied still, and each change is refused with this error.
	Lost() error
	// Schema is the version of the store's layout.
	Schema() int
	// Snapshot writes a consistent copy to a new file, 0600, durable when it returns; other calls go on meanwhile.
	Snapshot(ctx context.Context, path string) error

	// Close ends the watchers and the store. Calls under way are waited for.
	Close() error
}
