package kim

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Provider is one configured provider.
type Provider struct {
	k       *KIM
	number  int64
	uuid    [16]byte
	config  ProviderConfig
	started time.Time
	log     *slog.Logger
	queue   queue
	slow    queue // of the calls that the provider calls slow; unused where it calls none so

	wake  chan struct{} // capacity 1: look at the device now
	first chan struct{} // closed after the first look
	once  sync.Once

	mu           sync.RWMutex
	impl         providers.Provider // nil while it cannot be opened
	weigher      providers.Weigher  // impl, if its queue lets others than slow calls pass; nil if not
	identity     string             // of the device that has the keys; "" before it was ever seen
	capabilities []psa.Capability
	fresh        bool  // the capabilities are those of the device as it is now
	down         error // why it is degraded
	unsettled    int   // keys whose fate recovery could not settle
	damaged      int   // keys whose rows were damaged when it was looked last
	looked       bool  // whether it was, since the rows can be proven
	damage       error // of its row: it stays degraded until the next start
}

const (
	// The device is checked after these times while it is away or has keys to settle.
	firstRetry = 250 * time.Millisecond
	lastRetry  = 15 * time.Second
	// statusWait is how long a reader of the status waits for the device's identity.
	statusWait = time.Second
	// daemonUID is the uid of the daemon's own calls in the queues.
	daemonUID = 0
)

var errNotSeen = psa.Errorf(psa.StatusProviderAbsent, "the device has not answered yet")

func newProvider(ctx context.Context, k *KIM, row ProviderRow, c ProviderConfig) (*Provider, error) {
	p := &Provider{k: k, number: row.Number, uuid: row.UUID, config: c, started: time.Now(), identity: row.Identity, down: errNotSeen, damage: row.Damage,
		log: k.o.Log.With("provider", c.Name), wake: make(chan struct{}, 1), first: make(chan struct{})}
	p.queue.length, p.slow.length = k.o.QueueLength, k.o.QueueLength
	for line := range strings.Lines(row.Capabilities) {
		c, err := psa.ParseCapability(strings.TrimSuffix(line, "\n"))
		if err != nil {
			p.log.Warn("a capability in the KIM cannot be parsed", "err", err)
			continue
		}
		p.capabilities = append(p.capabilities, c)
	}
	p.tryOpen(ctx)
	return p, p.hideJournal(ctx)
}

// tryOpen makes the instance if there is none yet.
func (p *Provider) tryOpen(ctx context.Context) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.damage != nil {
		p.down = p.damage
	}
	if p.impl != nil || p.damage != nil {
		return
	}
	impl, err := recovering(ctx, p, func(ctx context.Context) (providers.Provider, error) {
		return p.config.Open(ctx, p.k.state.at(), p.identity)
	})
	if err != nil {
		p.down = psa.Errorf(psa.StatusProviderAbsent, "the provider cannot be opened: %w", err)
		return
	}
	p.impl = impl
	limits := impl.Describe().Limits
	if limits.Parallel == 0 {
		p.weigher, _ = impl.(providers.Weigher)
	}
	if p.queue.setWidth(limits.Parallel); limits.Short > 0 {
		p.queue.share(limits.Short)
	}
	p.slow.setWidth(limits.Slow)
}

// lane is the queue for an operation on a key of these attributes: a slow one must not keep the others waiting.
func (p *Provider) lane(impl providers.Provider, op psa.Operation, a psa.Attributes) *queue {
	if w, ok := impl.(providers.Weigher); ok && w.Slow(op, a) {
		return &p.slow
	}
	return &p.queue
}

// Quick says whether an operation on a key of these attributes, or without a key, waits for nobody and takes about a millisecond
// at most (providers.Weigher): whoever asks for it need not give it a goroutine of its own.
func (p *Provider) Quick(op psa.Operation, a psa.Attributes) bool {
	p.mu.RLock()
	w := p.weigher
	p.mu.RUnlock()
	return w != nil && w.Quick(op, a)
}

// Free says whether a call would begin at once: fewer run than the provider takes. It may be otherwise a moment later.
func (p *Provider) Free() bool { return p.queue.free() }

func (p *Provider) close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.impl == nil {
		return nil
	}
	return p.impl.Close()
}

// Name is the provider's name in the configuration.
func (p *Provider) Name() string { return p.config.Name }

// Number is the provider's number in the KIM.
func (p *Provider) Number() int64 { return p.number }

// UUID is the provider's identity, made at its first start.
func (p *Provider) UUID() [16]byte { return p.uuid }

// Config is what Open was given, with what SetDirectory changed.
func (p *Provider) Config() ProviderConfig {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.config
}

// SetDirectory changes owner, group and mode of the provider's directory, and says whether anything is different.
func (p *Provider) SetDirectory(uid, gid, mode uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := &p.config
	if c.UID == uid && c.GID == gid && c.Mode == mode {
		return false
	}
	c.UID, c.GID, c.Mode = uid, gid, mode
	return true
}

// Started is when this run of the program began to use it.
func (p *Provider) Started() time.Time { return p.started }

// Describe is the provider's description, only its type while it cannot be opened.
func (p *Provider) Describe() providers.Description {
	impl, err := p.instance()
	if err != nil {
		return providers.Description{Type: p.config.Type}
	}
	return impl.Describe()
}

// Capabilities are those of the device when it was last seen, none before.
func (p *Provider) Capabilities() []psa.Capability {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.capabilities
}

// instance is the open provider, or the reason why there is none: always one of them, even if it comes and goes meanwhile.
func (p *Provider) instance() (providers.Provider, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.impl == nil {
		return nil, p.absent(cmp.Or(p.down, error(errNotSeen)))
	}
	return p.impl, nil
}

// absent is the error of everything that needs the device, with the reason why it is away.
func (p *Provider) absent(why error) error {
	return psa.Errorf(psa.StatusProviderAbsent, "provider %s: %w", p.Name(), why).
		WithHint("see the provider's status file; its keys are kept and work again when it is back")
}

// trouble is why the provider is degraded, nil if it is not.
func (p *Provider) trouble() error {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.down
}

// away is the error of an operation on a key while the device is away, or is another device. It is nil for a device that was
// not seen yet, which may be tried.
func (p *Provider) away() error {
	err := p.trouble()
	if err == nil || err == errNotSeen {
		return nil
	}
	return p.absent(err)
}

// Status is "ready", "ready; N stuck calls", or "degraded: <why>", and in a second line what to do about it, if anybody
// knows. It asks the device, but does not wait long.
func (p *Provider) Status(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, statusWait)
	defer cancel()
	if err := p.look(ctx, statusWait); err != nil && !begun(err) {
		p.log.Debug("the provider is too busy to be asked for its state", "err", err)
	}
	var notes []string
	if n := p.queue.stuckCalls() + p.slow.stuckCalls(); n > 0 {
		notes = append(notes, fmt.Sprintf("%d stuck calls", n))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.unsettled > 0 {
		notes = append(notes, fmt.Sprintf("%d keys whose last operation may have failed", p.unsettled))
	}
	if p.damaged > 0 {
		notes = append(notes, fmt.Sprintf("%d keys whose rows in the KIM are damaged", p.damaged))
	}
	state, hint := "ready", ""
	if err := cmp.Or(p.k.Lost(), p.down, p.k.sealer.Err()); err != nil {
		state = "degraded: " + err.Error()
		if hint = psa.HintOf(err); hint != "" {
			hint = "\nhint: " + hint
		}
	}
	return strings.Join(append([]string{state}, notes...), "; ") + hint
}

// Facts are the device's description of itself. A device that is away or busy gives none, since Facts does not wait long.
// If an answer comes too late, it is ready for the next call.
func (p *Provider) Facts(ctx context.Context, uid uint32) []providers.Fact {
	impl, err := p.instance()
	if err != nil || p.away() != nil {
		return nil
	}
	informer, ok := impl.(providers.Informer)
	if !ok {
		return nil
	}
	facts, err := call(ctx, p, uid, statusWait, informer.Facts, func([]providers.Fact, error) {})
	if err != nil {
		p.log.Debug("the device did not give all its facts", "err", err)
	}
	return facts
}

// suspect checks the error of a call. If the device may be away, it has the device checked.
func (p *Provider) suspect(err error) {
	switch psa.StatusOf(err) {
	case psa.StatusProviderAbsent, psa.StatusCommunicationFailure, psa.StatusHardwareFailure, psa.StatusTimeout:
		p.lookSoon()
	}
}

func (p *Provider) lookSoon() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// setDown records the state of the device. If the device just came back, it has the device checked.
func (p *Provider) setDown(err error) {
	p.mu.Lock()
	before := p.down
	p.down = err
	if err != nil {
		p.fresh = false
	}
	p.mu.Unlock()
	switch {
	case err == nil && before != nil:
		p.log.Info("the provider is ready")
		p.lookSoon()
	case err != nil && (before == nil || before == errNotSeen):
		p.log.Warn("the provider is degraded", "err", err)
		p.lookSoon()
	}
}

// look asks the device for its identity, which also checks that it responds. Errors are StatusProviderAbsent, StatusTimeout
// or StatusQueueFull; a device that does not have the keys counts as absent.
func (p *Provider) look(ctx context.Context, timeout time.Duration) error {
	p.tryOpen(ctx)
	impl, err := p.instance()
	if err != nil {
		return err
	}
	p.mu.Lock()
	known, damage := p.identity, p.damage // before the device says its own: it may be marked meanwhile
	p.mu.Unlock()
	if damage != nil {
		return p.absent(damage)
	}
	identity, err := call(ctx, p, daemonUID, timeout, impl.Identity, func(string, error) { p.lookSoon() })
	if err == nil && identity == "" {
		err = psa.Errorf(psa.StatusProviderAbsent, "the device has no identity")
	}
	if err != nil {
		if !begun(err) {
			return err // says nothing about the device
		}
		if psa.StatusOf(err) != psa.StatusTimeout {
			err = psa.Errorf(psa.StatusProviderAbsent, "the device does not respond: %w", err)
		}
		p.setDown(err)
		return err
	}
	same := known == "" || providers.SameDevice(known, identity)
	if same && identity != known {
		if err := p.seen(ctx, identity, p.Capabilities()); err != nil {
			return err
		}
		p.mu.Lock()
		p.identity = identity
		p.mu.Unlock()
	}
	if !same {
		err := psa.Errorf(psa.StatusProviderAbsent, "this is another device: it is %q, but the keys are on %q", identity, known).
			WithHint("connect the device that has the keys")
		p.setDown(err)
		return err
	}
	p.setDown(nil)
	return nil
}

// seen stores the device's identity and capabilities, unless nothing can be stored now.
func (p *Provider) seen(ctx context.Context, identity string, list []psa.Capability) error {
	if p.k.Err() != nil {
		return nil
	}
	return p.k.store.SetProviderSeen(ctx, p.number, identity, capabilityLines(list))
}

// setDamage stops the provider, because its row was changed.
func (p *Provider) setDamage(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.damage, p.down = err, err
}

func capabilityLines(list []psa.Capability) string {
	var text strings.Builder
	for _, c := range list {
		fmt.Fprintln(&text, c)
	}
	return text.String()
}

// monitor checks the device when there is a reason to, and settles keys while it is there.
func (p *Provider) monitor() {
	retry := firstRetry
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-p.k.ctx.Done():
			return
		case <-p.wake:
			retry = firstRetry
		case <-timer.C:
		}
		err := p.settle(p.k.ctx)
		p.once.Do(func() { close(p.first) })
		if err == nil {
			timer.Stop()
			continue
		}
		timer.Reset(retry)
		retry = min(2*retry, lastRetry)
	}
}

// settle checks the device, gets its capabilities, and recovers. nil: nothing is left to do.
func (p *Provider) settle(ctx context.Context) error {
	if err := p.look(ctx, p.k.o.OperationTimeout); err != nil {
		p.k.notUnwrapped(ctx, p, err)
		return err
	}
	sealed := p.k.unwrap(ctx, p) // it stops nothing of what follows
	if err := p.learn(ctx); err != nil {
		p.log.Warn("cannot get the provider's capabilities", "err", err)
		return err
	}
	left, err := p.recover(ctx)
	p.mu.Lock()
	p.unsettled = left
	p.mu.Unlock()
	if err := p.lookForDamage(ctx); err != nil {
		p.log.Warn("the keys' rows cannot be read", "err", err)
	}
	if err == nil && left > 0 {
		err = errors.New("some keys must still be recovered")
	}
	return errors.Join(err, sealed)
}

const (
	// lookedAtOnce is how many keys' rows are read before a provider is ready.
	lookedAtOnce = 512
	// lookRest is how much longer than it reads a page of the others the search for damage rests.
	lookRest = 9
)

// lookForDamage reads each key's row once, so that the status reports damage before anybody uses the key: the first ones now,
// and the others by and by, since there may be very many.
func (p *Provider) lookForDamage(ctx context.Context) error {
	p.mu.Lock()
	looked := p.looked
	p.looked = looked || p.k.Err() == nil
	p.mu.Unlock()
	if looked || p.k.Err() != nil {
		return nil
	}
	first, done := make(chan struct{}), make(chan error, 1)
	p.k.wg.Go(func() {
		err := p.lookAtRows(func() { close(first) })
		if err != nil && p.k.ctx.Err() == nil {
			p.log.Warn("the keys' rows cannot be read", "err", err)
		}
		done <- err
		if err != nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.looked = false
		}
	})
	select {
	case <-first:
	case <-done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// lookAtRows reads the rows of all keys. After the first ones it calls started, and is in no hurry any more.
func (p *Provider) lookAtRows(started func()) error {
	damaged, n, page := 0, 0, time.Now()
	return p.All(p.k.ctx, func(k Key) error {
		if p.stillDamaged(k) {
			damaged++
			p.log.Error("a key's row is damaged", "key", k.Number, "name", k.Path(), "err", k.Damage)
			p.mu.Lock()
			p.damaged = damaged
			p.mu.Unlock()
		}
		n++
		switch {
		case n < lookedAtOnce || n%lookedAtOnce != 0:
			return nil
		case n == lookedAtOnce:
			started()
		}
		select {
		case <-time.After(lookRest * time.Since(page)):
		case <-p.k.ctx.Done():
			return p.k.ctx.Err()
		}
		page = time.Now()
		return nil
	})
}

// stillDamaged asks once more about a row that was read as damaged: beside a change of the data key a page of rows may be proven
// by a key that was not theirs yet, or is not any more.
func (p *Provider) stillDamaged(k Key) bool {
	if k.Damage == nil || k.Number == 0 { // a number that is damaged leads nowhere
		return k.Damage != nil
	}
	_, err := p.k.store.KeyByNumber(p.k.ctx, k.Number)
	return psa.StatusOf(err) == psa.StatusDataCorrupt
}

// learn reads the capabilities of a device that was away.
func (p *Provider) learn(ctx context.Context) error {
	p.mu.Lock()
	fresh, impl := p.fresh, p.impl
	p.mu.Unlock()
	if fresh {
		return nil
	}
	list, err := call(ctx, p, daemonUID, p.k.o.OperationTimeout, impl.Capabilities, func([]psa.Capability, error) { p.lookSoon() })
	if err != nil {
		return err
	}
	list = slices.Clone(list)
	psa.SortCapabilities(list)
	p.mu.Lock()
	identity := p.identity
	p.mu.Unlock()
	if err := p.seen(ctx, identity, list); err != nil {
		return err
	}
	p.mu.Lock()
	p.capabilities, p.fresh = list, true
	p.mu.Unlock()
	return nil
}

// Random fills b from the provider's generator. A provider without one is StatusNotSupported.
func (p *Provider) Random(ctx context.Context, uid uint32, b []byte) error {
	impl, err := p.instance()
	if err != nil {
		return err
	}
	source, ok := impl.(providers.Random)
	if !ok {
		return psa.Errorf(psa.StatusNotSupported, "provider %s has no random number generator", p.Name())
	}
	if err := p.away(); err != nil {
		return err
	}
	// Its own buffer: a late answer must not reach into the caller's.
	got, err := call(ctx, p, uid, p.k.o.OperationTimeout, func(ctx context.Context) ([]byte, error) {
		got := make([]byte, len(b)+randomSpare)
		return got, source.Random(ctx, got)
	}, func(late []byte, _ error) { psa.Wipe(late) })
	defer psa.Wipe(got)
	if err != nil {
		return err
	}
	if bytes.Contains(got, make([]byte, randomSpare)) {
		return psa.Errorf(psa.StatusInsufficientEntropy, "provider %s returned fewer random bytes than it was asked for", p.Name()).
			WithHint("do not use its earlier output; its device or library is broken")
	}
	copy(b, got)
	return nil
}

// randomSpare is how many bytes more than needed a generator is asked for. A good generator returns that many zeros in a row
// once in 2^128, so a run of zeros means that it left bytes out. If it leaves out at most randomSpare bytes, only the spare
// bytes are missing; if it leaves out more, that many zeros show it.
const randomSpare = 16

// Begin begins an operation without a key for uid: a hash, or what the device itself attests. A provider that does not do
// it is StatusNotSupported.
func (p *Provider) Begin(ctx context.Context, uid uint32, op psa.Op) (Run, error) {
	impl, err := p.instance()
	if err != nil {
		return nil, err
	}
	var begin func(context.Context, psa.Op) (psa.Run, error)
	if op.Operation == psa.Hash {
		if h, ok := impl.(providers.Hasher); ok {
			begin = h.Hash
		}
	} else if a, ok := impl.(providers.Attester); ok {
		begin = a.Attest
	}
	if begin == nil {
		return nil, psa.Errorf(psa.StatusNotSupported, "provider %s cannot do %s without a key", p.Name(), op.Operation)
	}
	if err := p.away(); err != nil {
		return nil, err
	}
	run, err := recovering(ctx, p, func(ctx context.Context) (psa.Run, error) { return begin(ctx, op) })
	if err != nil {
		return nil, err
	}
	return &keylessRun{Run: run, p: p, uid: uid, quick: p.Quick(op.Operation, psa.Attributes{})}, nil
}

// keylessRun is a Run without a key whose Finish goes through the provider's queue.
type keylessRun struct {
	psa.Run
	p   *Provider
	uid uint32

	quick bool // its provider says so
}

func (r *keylessRun) Quick() bool { return r.quick && r.p.queue.free() }

func (r *keylessRun) Pass(ctx context.Context) (result psa.Result, passed bool, err error) {
	if !r.quick || !r.p.queue.pass() {
		return psa.Result{}, false, nil
	}
	result, err = r.p.pass(ctx, r.Run)
	return result, true, err
}

func (r *keylessRun) Finish(ctx context.Context) (psa.Result, error) {
	return r.ended(call(ctx, r.p, r.uid, r.p.k.o.OperationTimeout, r.Run.Finish, wipeLate))
}

func (r *keylessRun) FinishHere(ctx context.Context, tell func(error)) (psa.Result, error) {
	return r.ended(stay(ctx, r.p, r.uid, r.p.k.o.OperationTimeout, r.Run.Finish, wipeLate, tell))
}

func (r *keylessRun) ended(result psa.Result, err error) (psa.Result, error) {
	if err != nil && !begun(err) {
		r.Abort()
	}
	return result, err
}

func wipeLate(late psa.Result, _ error) { late.Wipe() }

// deviceID is the identity of the device that has the keys as it first was, "" before it was ever seen.
func (p *Provider) deviceID() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	id, _, _ := strings.Cut(p.identity, "#")
	return id
}

func errNoAdopter(p *Provider) error {
	return psa.Errorf(psa.StatusNotSupported, "provider %s cannot adopt keys", p.Name())
}

// Foreign is a key on a device, and the key here that uses it.
type Foreign struct {
	providers.Foreign
	Holder string // the key here (Key.Listed), in whatever provider; empty: it can be adopted
}

// Foreign lists the keys on the provider's device, also those of other programs. If the provider cannot have foreign keys, it
// is StatusNotSupported.
func (p *Provider) Foreign(ctx context.Context, uid uint32) ([]Foreign, error) {
	if err := p.look(ctx, p.k.o.OperationTimeout); err != nil {
		return nil, err
	}
	impl, err := p.instance()
	if err != nil {
		return nil, err
	}
	adopter, ok := impl.(providers.Adopter)
	if !ok {
		return nil, errNoAdopter(p)
	}
	list, err := call(ctx, p, uid, p.k.o.OperationTimeout, adopter.Foreign, func([]providers.Foreign, error) {})
	if err != nil {
		return nil, err
	}
	var all []Foreign
	for _, f := range list {
		key, err := p.k.store.Holder(ctx, p.deviceID(), f.Object, f.Handle)
		if err != nil && psa.StatusOf(err) != psa.StatusDoesNotExist {
			return nil, err
		}
		holder := ""
		if err == nil {
			holder = key.Listed()
		}
		all = append(all, Foreign{f, holder})
	}
	return all, nil
}

// All gives all keys that are not hidden to each: those with shared names, then each user's.
func (p *Provider) All(ctx context.Context, each func(Key) error) error {
	spaces := []Space{Shared}
	for len(spaces) > 0 {
		for _, space := range spaces {
			for after := ""; ; {
				keys, err := p.List(ctx, space, after, allPage)
				if err != nil {
					return err
				}
				for _, key := range keys {
					if err := each(key); err != nil {
						return err
					}
				}
				if len(keys) == 0 {
					break
				}
				after = keys[len(keys)-1].Name
			}
		}
		next, err := p.Spaces(ctx, spaces[len(spaces)-1], allPage)
		if err != nil {
			return err
		}
		spaces = next
	}
	return nil
}

// allPage is how many keys All reads at once.
const allPage = 512

// Spaces gives the spaces behind one in which the provider has keys, at most n.
func (p *Provider) Spaces(ctx context.Context, after Space, n int) ([]Space, error) {
	return p.k.store.Spaces(ctx, p.number, after, n)
}

// List gives the keys of a space after a name, by name, at most n, hidden ones left out. A damaged one has its Damage, and
// may have a name that is none (ValidName).
func (p *Provider) List(ctx context.Context, space Space, after string, n int) ([]Key, error) {
	keys, err := p.k.store.Keys(ctx, p.number, space, after, n)
	for i, k := range keys {
		if bad := ValidName(k.Name); bad != nil && k.Damage == nil {
			bad = psa.Errorf(psa.StatusDataCorrupt, "the row of key %d in the KIM is damaged: %w", k.Number, bad)
			keys[i] = Key{Number: k.Number, Provider: k.Provider, Space: k.Space, Name: k.Name, Damage: bad}
		}
	}
	return keys, err
}

// Names is List of the names alone. One may be none (ValidName).
func (p *Provider) Names(ctx context.Context, space Space, after string, n int) ([]Name, error) {
	return p.k.store.Names(ctx, p.number, space, after, n)
}

// Named is Lookup that finds hidden ones too.
func (p *Provider) Named(ctx context.Context, space Space, name string) (Key, error) {
	return p.k.store.KeyByName(ctx, p.number, space, name)
}

// Lookup finds a key by its name: StatusDoesNotExist, or StatusBadState if it is hidden.
func (p *Provider) Lookup(ctx context.Context, space Space, name string) (Key, error) {
	return visible(p.k.store.KeyByName(ctx, p.number, space, name))
}

// CreateDraft makes a draft that belongs to uid and gid, whose directory has the permission bits mode. files is what
// else differs from the tables' defaults; their Ino is the file's own number, 0 the directory.
func (p *Provider) CreateDraft(ctx context.Context, space Space, name string, uid, gid, mode uint32, files ...Inode) (Key, error) {
	if len(files) == 0 {
		files = []Inode{{Mode: &mode}}
	}
	return p.k.store.InsertDraft(ctx, NewDraft{Provider: p.number, Space: space, Name: name, UID: uid, GID: gid, Inodes: files,
		Quota: p.k.o.KeysPerUser})
}
