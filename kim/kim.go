// Package kim is the Key Info Manager: it knows which keys there are, to whom they belong and what they may be used
// for, and it alone asks providers to make, use and destroy them.
//
// It has three parts. A Store keeps rows (store.go; it uses SQLite). The journal makes sure that a row and the provider's
// object are made and destroyed together, whatever crashes (journal.go, recover.go). And each provider has a queue, so that a
// device gets no more calls than it can handle, and nobody waits for ever (queue.go).
package kim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// ProviderConfig is one configured provider.
type ProviderConfig struct {
	Name, Type string
	UID, GID   uint32 // of its directory
	Mode       uint32 // of its directory
	// Open makes the instance; it must not wait for the device, whose identity is known, if it was ever seen. Files of its
	// own go below dir.
	Open func(ctx context.Context, dir, known string) (providers.Provider, error)
}

// Options of Open.
type Options struct {
	Dir              string // the state directory, 0700, held by flock
	Path             string // the SQLite file; "" is kim.sqlite3 in Dir
	Providers        []ProviderConfig
	Default          string        // core_settings.default_provider; "" keeps what the KIM has
	OperationTimeout time.Duration // of a call of a provider, its wait in the queue included; 0 is 30 s
	GenerateTimeout  time.Duration // of the making of a key; 0 is 5 min
	OpenKeys         int           // how many keys that nobody uses stay open; 0 is 1024
	QueueLength      int           // how many calls may wait for one provider; 0 is 256
	KeysPerUser      int           // keys and drafts per uid; 0 is 10000
	DraftExpiry      time.Duration // how long a draft stays that nobody changes; 0 is for ever. See OnForgotten
	// WrappingPIN gives the PIN that the data key is wrapped with, each time that it is needed; the KIM wipes it. nil: none.
	WrappingPIN func() ([]byte, error)
	Log         *slog.Logger
	// Step, if set, is called at each of Steps; tests end the process there.
	Step func(step string)
}

func (o Options) withDefaults() Options {
	set := func(v *int, to int) {
		if *v == 0 {
			*v = to
		}
	}
	set(&o.OpenKeys, 1024)
	set(&o.QueueLength, 256)
	set(&o.KeysPerUser, 10000)
	if o.OperationTimeout == 0 {
		o.OperationTimeout = 30 * time.Second
	}
	if o.GenerateTimeout == 0 {
		o.GenerateTimeout = 5 * time.Minute
	}
	if o.Path == "" {
		o.Path = filepath.Join(o.Dir, kimFile)
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	return o
}

// KIM is an open Key Info Manager. Its methods may be called at once from many goroutines. Errors are psa.Errors.
type KIM struct {
	o        Options
	dir      *Lock
	state    *heldDir // the same one
	store    Store
	sealer   *Sealer
	warnings []string

	providers []*Provider // by name
	byDefault *Provider   // nil where the default is not configured
	keys      *openKeys
	guesses   guesses

	// still is held in part by each journal entry, and as a whole by a backup.
	still *semaphore.Weighted
	// rewrapping is held while the data key's row or the files of wrapping keys are changed.
	rewrapping sync.Mutex
	inDoubt    bool // under rewrapping: whether the last rewrap is in the store is for the next Open to see
	legacy     bool // under rewrapping: the data key was recovered, and the store's rows have no MACs yet
	unwrapping sync.Mutex
	// sealing is read-locked to seal and unseal, and locked to change the data key.
	sealing sync.RWMutex

	pins pinTries
	// lostKey is why no secret can be read after the end; nil: the wrapping key is there.
	lostKey atomic.Pointer[error]

	mu       sync.Mutex
	jobs     map[int64]*job // what is under way, by the key's number
	closed   bool
	onUnlock func()        // see OnUnlock
	steps    chan struct{} // the generation's next one is due; nil where nothing counts

	ctx    context.Context // ends with the KIM
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// startWait is how long Open waits for the devices' identities. A slower device is degraded until it responds.
const startWait = 2 * time.Second

// Open opens the state directory, which it makes if it is missing, starts the configured providers, and recovers what a crash
// left behind. If another process has the directory, it is StatusBadState. A provider that does not respond stops nothing.
func Open(ctx context.Context, o Options) (*KIM, error) {
	o = o.withDefaults()
	k := &KIM{o: o, jobs: map[int64]*job{}, still: semaphore.NewWeighted(allOfIt), keys: newOpenKeys(o.OpenKeys)}
	k.ctx, k.cancel = context.WithCancel(context.Background())
	if err := k.open(ctx); err != nil {
		return nil, errors.Join(err, k.Close())
	}
	first := time.NewTimer(startWait)
	defer first.Stop()
	k.wg.Go(k.watchFiles)
	for _, p := range k.providers {
		k.wg.Go(p.monitor)
	}
	for _, p := range k.providers {
		select {
		case <-p.first:
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), k.Close())
		case <-first.C:
			first.Reset(0)
		}
		if err := p.trouble(); err != nil {
			k.warnings = append(k.warnings, fmt.Sprintf("provider %s is degraded: %v", p.Name(), err))
		}
	}
	// Last: a provider may have unwrapped the data key by now.
	if err := k.sealer.Err(); err != nil {
		k.warnings = append(k.warnings, fmt.Sprintf("%v; %s", err, psa.HintOf(err)))
	}
	return k, nil
}

func (k *KIM) open(ctx context.Context) (err error) {
	if k.dir, err = LockDir(k.o.Dir); err != nil {
		return err
	}
	if k.state, err = holdDir(k.o.Dir); err != nil {
		return err
	}
	if k.store, err = OpenSQLite(ctx, k.o.Path); err != nil {
		return err
	}
	if k.sealer, err = OpenSealer(ctx, k.store, k.o.Dir); err != nil {
		return err
	}
	k.warnings = append(k.warnings, k.sealer.Warnings()...)
	for _, c := range k.o.Providers {
		row, err := k.store.EnsureProvider(ctx, c.Name, c.Type)
		if err != nil {
			return err
		}
		p, err := newProvider(ctx, k, row, c)
		if err != nil {
			return err
		}
		k.providers = append(k.providers, p)
	}
	slices.SortFunc(k.providers, func(a, b *Provider) int { return strings.Compare(a.Name(), b.Name()) })
	return k.checkProviders(ctx)
}

// checkProviders determines the default provider, and warns of known providers that are not configured.
func (k *KIM) checkProviders(ctx context.Context) error {
	rows, err := k.store.Providers(ctx)
	if err != nil {
		return err
	}
	fixed := ""
	for _, row := range rows {
		if row.Default {
			fixed = row.Name
		}
		if k.Provider(row.Name) != nil {
			continue
		}
		spaces, err := k.store.Spaces(ctx, row.Number, Shared-1, 1)
		if err != nil {
			return err
		}
		if len(spaces) > 0 {
			k.warnings = append(k.warnings, fmt.Sprintf("provider %q has keys in the KIM but is not configured; its keys are kept", row.Name))
		}
	}
	want := k.o.Default
	if want == "" {
		want = fixed
	}
	if want == "" && len(k.o.Providers) > 0 {
		want = k.o.Providers[0].Name
	}
	k.byDefault = k.Provider(want)
	switch {
	case k.byDefault == nil && k.o.Default != "":
		return psa.Errorf(psa.StatusInvalidArgument, "default_provider %q is not configured", k.o.Default)
	case k.byDefault == nil && want != "":
		k.warnings = append(k.warnings, fmt.Sprintf("the default provider %q is not configured, so providers/default is missing", want))
	case k.byDefault != nil && want != fixed:
		return k.store.SetDefaultProvider(ctx, k.byDefault.Number())
	}
	return nil
}

// RenameProvider gives a provider and its keys another name, in a state that no process has open (StatusBadState): it is
// the same provider still, and the configuration must name it so. See Store.
func RenameProvider(ctx context.Context, o Options, from, to string) (err error) {
	o = o.withDefaults()
	if _, err := os.Stat(o.Path); err != nil {
		return fileError(err, "there is no KIM")
	}
	dir, err := LockDir(o.Dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dir.Unlock()) }()
	s, err := OpenSQLite(ctx, o.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return s.RenameProvider(ctx, from, to)
}

// Close ends running calls, the providers and the store. The next Open undoes or finishes what a provider did not finish.
func (k *KIM) Close() error {
	k.mu.Lock()
	k.closed = true
	k.mu.Unlock()
	k.cancel()
	k.wg.Wait()
	err := k.keys.close()
	for _, p := range k.providers {
		err = errors.Join(err, p.close())
	}
	if k.sealer != nil {
		k.sealer.close()
	}
	if k.store != nil {
		err = errors.Join(err, k.store.Close())
	}
	if k.state != nil {
		k.state.close()
	}
	if k.dir != nil {
		err = errors.Join(err, k.dir.Unlock())
	}
	return err
}

// Warnings are what the user must know at a start: the wrapping key is beside the store, providers are missing.
func (k *KIM) Warnings() []string { return k.warnings }

// Providers lists the configured providers by name. Those that only the KIM knows are not listed.
func (k *KIM) Providers() []*Provider { return k.providers }

// Provider is the configured provider of this name, nil if there is none.
func (k *KIM) Provider(name string) *Provider {
	for _, p := range k.providers {
		if p.config.Name == name {
			return p
		}
	}
	return nil
}

// ProviderByNumber is the configured provider with this number in the KIM, nil if there is none.
func (k *KIM) ProviderByNumber(n int64) *Provider {
	for _, p := range k.providers {
		if p.number == n {
			return p
		}
	}
	return nil
}

// Default is what providers/default points to, nil if that provider is not configured.
func (k *KIM) Default() *Provider { return k.byDefault }

// Key finds a key by its number. One that is hidden is StatusBadState.
func (k *KIM) Key(ctx context.Context, number int64) (Key, error) {
	return visible(k.store.KeyByNumber(ctx, number))
}

func visible(key Key, err error) (Key, error) {
	if err == nil && key.Hidden {
		return Key{}, psa.Errorf(psa.StatusBadState, "it is not known whether the last operation on this key succeeded").
			WithHint("parsecfs keeps asking the provider; see its status file")
	}
	return key, err
}

// Rename gives a key or draft another name, perhaps in another space. One that is taken is StatusAlreadyExists.
func (k *KIM) Rename(ctx context.Context, number int64, space Space, name string) error {
	k.o.Step(stepRename)
	err := k.store.Rename(ctx, number, space, name)
	if err == nil {
		k.o.Step(stepRenamed)
	}
	return err
}

// Exchange swaps the names of two keys of one provider, with their spaces (RENAME_EXCHANGE).
func (k *KIM) Exchange(ctx context.Context, number, other int64) error {
	return k.store.Exchange(ctx, number, other)
}

// SetDraft stores what is set so far of a draft; on a key it is StatusBadState.
func (k *KIM) SetDraft(ctx context.Context, number int64, template string, a psa.Attributes) error {
	return k.store.UpdateDraft(ctx, number, template, a)
}

// SetAllowDestroy stores whether rmdir destroys the key.
func (k *KIM) SetAllowDestroy(ctx context.Context, number int64, allow bool) error {
	return k.store.SetAllowDestroy(ctx, number, allow)
}

// SetUnits stores the systemd units that may use the key; none is any.
func (k *KIM) SetUnits(ctx context.Context, number int64, units []string) error {
	return k.store.SetUnits(ctx, number, units)
}

// SetCallerNonce stores whether encryption with the key takes a nonce of the caller's choice: whoever chooses nonces can
// decrypt. A copy of a key that takes none is StatusNotPermitted.
func (k *KIM) SetCallerNonce(ctx context.Context, number int64, allow bool) error {
	return k.store.SetCallerNonce(ctx, number, allow)
}

// ResetFailures lets a key verify short tags again. Only root can do that for a copy.
func (k *KIM) ResetFailures(ctx context.Context, number int64, root bool) error {
	return k.store.ResetFailures(ctx, number, root)
}

// SetCertificate keeps a chain in PEM beside a key; an empty one removes it. before is what it takes the place of.
func (k *KIM) SetCertificate(ctx context.Context, number int64, chain []byte) (before []byte, err error) {
	return k.store.SetCertificate(ctx, number, chain)
}

// RestoreCertificate puts what was before a chain in its place again, unless the chain is there no more.
func (k *KIM) RestoreCertificate(ctx context.Context, number int64, chain, before []byte) error {
	return k.store.RestoreCertificate(ctx, number, chain, before)
}

// Certificate is the chain that is kept beside a key, nil if there is none.
func (k *KIM) Certificate(ctx context.Context, number int64) ([]byte, error) {
	if _, err := k.Key(ctx, number); err != nil {
		return nil, err // a key that is gone, or lost, is none without a chain
	}
	return k.store.Certificate(ctx, number)
}

// SetOwner gives what belongs to the user from of a key and its files to uid and gid, quota included; see Store.
func (k *KIM) SetOwner(ctx context.Context, number int64, from, uid, gid uint32) error {
	return k.store.SetOwner(ctx, number, from, uid, gid)
}

// Owner is the owner of a key: that of its directory, which may have changed since the key was made.
func (k *KIM) Owner(ctx context.Context, key Key) (uint32, error) {
	if key.Damage != nil {
		return key.UID, key.Damage
	}
	i, _, err := k.store.Inode(ctx, uint64(key.Number)*256)
	if err != nil || i.UID == nil {
		return key.UID, err
	}
	return *i.UID, nil
}

// Inode is what is stored of an inode; false: nothing, all is default.
func (k *KIM) Inode(ctx context.Context, ino uint64) (Inode, bool, error) {
	return k.store.Inode(ctx, ino)
}

// SetInode replaces all that is stored of an inode. An owner that is nobody (CheckOwner) is StatusInvalidArgument.
func (k *KIM) SetInode(ctx context.Context, i Inode) error {
	for _, id := range []*uint32{i.UID, i.GID} {
		if id == nil {
			continue
		}
		if err := CheckOwner(*id, *id); err != nil {
			return err
		}
	}
	return k.store.SetInode(ctx, i)
}

// Xattr is the value of a label (user.*) of an inode; StatusDoesNotExist if it has none.
func (k *KIM) Xattr(ctx context.Context, ino uint64, name string) ([]byte, error) {
	return k.store.Xattr(ctx, ino, name)
}

// Xattrs lists the names of an inode's labels, sorted.
func (k *KIM) Xattrs(ctx context.Context, ino uint64) ([]string, error) {
	return k.store.Xattrs(ctx, ino)
}

// SetXattr stores a label; how is XattrSet, XattrCreate or XattrReplace. Over MaxXattrBytes is StatusQuota.
func (k *KIM) SetXattr(ctx context.Context, ino uint64, name string, value []byte, how int) error {
	return k.store.SetXattr(ctx, ino, name, value, how)
}

// RemoveXattr removes a label; StatusDoesNotExist if there is none.
func (k *KIM) RemoveXattr(ctx context.Context, ino uint64, name string) error {
	return k.store.RemoveXattr(ctx, ino, name)
}

// Aliases lists the links of /keys by name, from the first behind after, at most n.
func (k *KIM) Aliases(ctx context.Context, after string, n int) ([]Alias, error) {
	return k.store.Aliases(ctx, after, n)
}

// Alias finds a link of /keys.
func (k *KIM) Alias(ctx context.Context, name string) (Alias, error) { return k.store.Alias(ctx, name) }

// CreateAlias stores a new link; a name that is taken is StatusAlreadyExists.
func (k *KIM) CreateAlias(ctx context.Context, a Alias) (Alias, error) {
	return k.store.CreateAlias(ctx, a)
}

// RenameAlias moves a link, over another one if `to` is taken, as rename(2) does.
func (k *KIM) RenameAlias(ctx context.Context, from, to string) error {
	return k.store.RenameAlias(ctx, from, to)
}

// RemoveAlias removes a link.
func (k *KIM) RemoveAlias(ctx context.Context, name string) error {
	return k.store.RemoveAlias(ctx, name)
}

// Err says why nothing in the KIM can be used or changed (StatusProviderAbsent): its data key is away, and with it the proof
// of what its rows say.
func (k *KIM) Err() error { return k.sealer.Err() }

// OnUnlock calls f when the data key becomes available. Before that, no row could be verified.
func (k *KIM) OnUnlock(f func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.onUnlock = f
}

func (k *KIM) unlocked() {
	rows, err := k.store.Providers(context.Background())
	if err != nil {
		k.o.Log.Error("the providers' rows cannot be read", "err", err)
	}
	for _, row := range rows {
		if p := k.ProviderByNumber(row.Number); p != nil && row.Damage != nil {
			p.setDamage(row.Damage)
		}
	}
	k.mu.Lock()
	f := k.onUnlock
	k.mu.Unlock()
	if f != nil {
		f()
	}
}

// AuditKey is the store's audit key, nil while its data key is absent.
func (k *KIM) AuditKey() []byte { return k.sealer.AuditKey() }

// Watch calls f after each change, from one goroutine, in order; the returned func ends it.
func (k *KIM) Watch(f func(Change)) (stop func()) { return k.store.Watch(f) }

// Quota is how many keys and drafts uid has, and how many it may have.
func (k *KIM) Quota(ctx context.Context, uid uint32) (used, most int64, err error) {
	used, err = k.store.CountOf(ctx, uid)
	return used, int64(k.o.KeysPerUser), err
}

// Backup writes a consistent copy of the store and the wrapping key, a tar that Restore reads. It waits for keys that
// are being made or destroyed: recovery in the restored copy would undo them on the device.
func (k *KIM) Backup(ctx context.Context, w io.Writer) error {
	if err := k.still.Acquire(ctx, allOfIt); err != nil {
		return psa.Errorf(psa.StatusTimeout, "a backup cannot start while keys are being made or destroyed: %w", err)
	}
	release := sync.OnceFunc(func() { k.still.Release(allOfIt) })
	defer release()
	return k.state.named(k.backup(ctx, stillStore{k.store, release}, w))
}

// stillStore holds KIM.still only for its snapshot, not while the copy is read.
type stillStore struct {
	Store
	release func()
}

func (s stillStore) Snapshot(ctx context.Context, path string) error {
	defer s.release()
	return s.Store.Snapshot(ctx, path)
}
