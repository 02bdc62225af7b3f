package kim

import (
	"container/list"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// openKeys keeps providers' keys open between operations: those in use, and a limited number of the most recent others.
type openKeys struct {
	bound int

	mu   sync.Mutex
	all  map[int64]*openKey
	idle *list.List // of *openKey, the most recently used first
}

// openKey is an open key. There is at most one for each number, so that a destroyed key is gone for all of its users.
type openKey struct {
	number   int64
	provider *Provider
	impl     providers.Provider
	once     sync.Once
	row      Key
	key      providers.Key
	err      error
	gone     atomic.Bool // destroyed
	nonces   nonces

	users int // under openKeys.mu, like what follows
	idle  *list.Element
}

func newOpenKeys(bound int) *openKeys {
	return &openKeys{bound: bound, all: map[int64]*openKey{}, idle: list.New()}
}

// use opens a key, or finds it open. Unless it fails, the caller must call release.
func (o *openKeys) use(number int64, open func(*openKey) error) (*openKey, error) {
	o.mu.Lock()
	e := o.all[number]
	if e == nil {
		e = &openKey{number: number}
		// It is in the map before its row is read, so that a destroyer finds it from now on.
		o.all[number] = e
	}
	e.users++
	if e.idle != nil {
		o.idle.Remove(e.idle)
		e.idle = nil
	}
	o.mu.Unlock()
	e.once.Do(func() {
		// A panic in between must leave an error, not a key without a provider.
		e.err = psa.Errorf(psa.StatusGenericError, "cannot open the key %d", number)
		e.err = open(e)
	})
	if e.err != nil {
		o.forget(e)
		o.release(e)
		return nil, e.err
	}
	return e, nil
}

func (o *openKeys) release(e *openKey) {
	o.mu.Lock()
	var closing []*openKey
	if e.users--; e.users == 0 {
		if o.all[e.number] == e {
			e.idle = o.idle.PushFront(e)
		} else {
			closing = append(closing, e)
		}
	}
	for o.idle.Len() > o.bound {
		last := o.idle.Remove(o.idle.Back()).(*openKey)
		last.idle = nil
		delete(o.all, last.number)
		closing = append(closing, last)
	}
	o.mu.Unlock()
	for _, c := range closing {
		if err := c.close(); err != nil {
			c.provider.log.Warn("closing a key", "key", c.number, "err", err)
		}
	}
}

// forget makes the next user open the key again.
func (o *openKeys) forget(e *openKey) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.all[e.number] == e {
		delete(o.all, e.number)
	}
}

// destroyed ends the use of a key: running operations fail at their Finish.
func (o *openKeys) destroyed(number int64) {
	o.mu.Lock()
	e := o.all[number]
	if e == nil {
		o.mu.Unlock()
		return
	}
	e.gone.Store(true)
	delete(o.all, number)
	if e.idle != nil {
		o.idle.Remove(e.idle)
		e.idle = nil
	}
	e.users++
	o.mu.Unlock()
	o.release(e)
}

func (o *openKeys) close() (err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for number, e := range o.all {
		if e.users == 0 {
			err = errors.Join(err, e.close())
		}
		delete(o.all, number)
	}
	o.idle.Init()
	return err
}

func (e *openKey) close() error {
	if e.key == nil {
		return nil
	}
	return e.key.Close()
}

// load reads the row of a key and opens it in its provider.
func (k *KIM) load(ctx context.Context, e *openKey) error {
	if err := k.Err(); err != nil {
		return err
	}
	row, err := k.Key(ctx, e.number)
	if err != nil {
		return err
	}
	if row.State != Ready {
		return psa.Errorf(psa.StatusBadState, "%s is not a key: it is still a draft, or is being destroyed", row.Name)
	}
	p := k.ProviderByNumber(row.Provider)
	if p == nil {
		return psa.Errorf(psa.StatusProviderAbsent, "the provider of %s is not configured", row.Name)
	}
	impl, err := p.instance()
	if err != nil {
		return err
	}
	blob, err := k.blob(ctx, p, row)
	if err != nil {
		return err
	}
	defer psa.Wipe(blob.Secret)
	e.row, e.provider, e.impl = row, p, impl
	e.key, err = recovering(ctx, p, func(ctx context.Context) (providers.Key, error) {
		return impl.Open(ctx, row.Handle, row.Attributes, blob)
	})
	return err
}

// blob is what the KIM keeps of a key for its provider. The caller wipes its secret.
func (k *KIM) blob(ctx context.Context, p *Provider, row Key) (providers.Blob, error) {
	b := providers.Blob{Public: row.Public, Object: row.Object}
	if !row.Sealed {
		return b, nil
	}
	k.sealing.RLock()
	defer k.sealing.RUnlock()
	sealed, err := k.store.Secret(ctx, row.Number)
	if err == nil {
		b.Secret, err = k.sealer.Unseal(row, p.uuid, sealed)
	}
	return b, err
}

// Run is a psa.Run whose Finish waits for its turn and for the provider, at most OperationTimeout.
type Run interface {
	psa.Run
	// FinishHere is Finish in the caller's own goroutine: it returns only when the provider does. If OperationTimeout ends
	// first, it calls tell with the error that it will return.
	FinishHere(ctx context.Context, tell func(error)) (psa.Result, error)
	// Quick says whether FinishHere, called next, waits for nobody and takes about a millisecond at most; tell is then not
	// called.
	Quick() bool
}

// Begin begins an operation with a key for uid. If the key's policy does not permit it, it is StatusNotPermitted or the like;
// a draft is StatusBadState. The algorithm is concrete: the caller has resolved any-hash. Each Run must be finished or aborted.
func (k *KIM) Begin(ctx context.Context, number int64, uid uint32, op psa.Op) (Run, error) {
	e, err := k.hold(ctx, number)
	if err != nil {
		return nil, err
	}
	if err := k.permitsNonce(ctx, e, op); err != nil {
		k.keys.release(e)
		return nil, err
	}
	run, err := k.begin(ctx, e, op)
	if err != nil {
		k.keys.release(e)
		return nil, err
	}
	return k.queued(op, uid, run, e), nil
}

// Certify is Begin of psa.Attest with a signature by another key of the provider, whose policy permits psa.Sign.
func (k *KIM) Certify(ctx context.Context, number int64, uid uint32, op psa.Op, signer int64) (Run, error) {
	e, err := k.hold(ctx, number)
	if err != nil {
		return nil, err
	}
	by, err := k.hold(ctx, signer)
	if err != nil {
		k.keys.release(e)
		return nil, err
	}
	run, err := k.certify(ctx, e, by, op)
	if err != nil {
		k.keys.release(by)
		k.keys.release(e)
		return nil, err
	}
	return k.queued(op, uid, run, e, by), nil
}

// hold opens a key. Unless it fails, the caller must call release.
func (k *KIM) hold(ctx context.Context, number int64) (*openKey, error) {
	// Others may wait for the same opening.
	return k.keys.use(number, func(e *openKey) error { return k.load(context.WithoutCancel(ctx), e) })
}

// permitsNonce refuses a nonce that the caller chose for encryption, unless the key allows that: with a nonce that was used
// before, the right to encrypt is the right to decrypt.
func (k *KIM) permitsNonce(ctx context.Context, e *openKey, op psa.Op) error {
	if op.Operation != psa.Encrypt || len(op.Inputs["nonce"]) == 0 || e.row.Attributes.Type.IsAsymmetric() {
		return nil
	}
	// The row as it is now: that of an open key is as old as its opening.
	row, err := k.Key(ctx, e.number)
	if err != nil || row.CallerNonce {
		return err
	}
	return psa.Errorf(psa.StatusNotPermitted,
		"this key does not let the caller choose the nonce, because somebody who chooses nonces can decrypt").
		WithHint("leave nonce empty, and read it back; or ask the key's owner to write caller_nonce = true into attributes")
}

func (k *KIM) begin(ctx context.Context, e *openKey, op psa.Op) (psa.Run, error) {
	if err := e.row.Attributes.Permits(op.Operation, op.Algorithm); err != nil {
		return nil, err
	}
	if err := e.provider.away(); err != nil {
		return nil, err
	}
	return recovering(ctx, e.provider, func(ctx context.Context) (psa.Run, error) { return e.key.Begin(ctx, op) })
}

func (k *KIM) certify(ctx context.Context, e, by *openKey, op psa.Op) (psa.Run, error) {
	if err := e.row.Attributes.Permits(op.Operation, op.Algorithm); err != nil {
		return nil, err
	}
	alg, err := by.row.Attributes.Resolve(psa.Sign, 0)
	if err == nil {
		err = by.row.Attributes.Permits(psa.Sign, alg)
	}
	if err != nil {
		return nil, psa.Errorf(psa.StatusOf(err), "the signer %s: %w", by.row.Name, err)
	}
	certifier, ok := e.key.(providers.Certifier)
	if !ok || by.provider != e.provider {
		return nil, psa.Errorf(psa.StatusNotSupported, "%s cannot sign for a key of provider %s", by.row.Name, e.provider.Name())
	}
	if err := e.provider.away(); err != nil {
		return nil, err
	}
	return recovering(ctx, e.provider, func(ctx context.Context) (psa.Run, error) { return certifier.Certify(ctx, op, by.key) })
}

// queuedRun is a Run whose Finish goes through the provider's queue.
type queuedRun struct {
	k    *KIM
	keys []*openKey // that it uses, of one provider
	lane *queue
	uid  uint32
	run  psa.Run // nil after its end
	// quick: its provider says so; alone: it passes the queue, since nobody can give it up
	quick, alone bool
	counts
}

func (k *KIM) queued(op psa.Op, uid uint32, run psa.Run, keys ...*openKey) *queuedRun {
	e := keys[0]
	return &queuedRun{k: k, keys: keys, lane: e.provider.lane(e.impl, op.Operation, e.row.Attributes), uid: uid, run: run,
		quick: e.provider.Quick(op.Operation, e.row.Attributes), counts: countsOf(op, e.row.Attributes)}
}

func (r *queuedRun) release() {
	for _, e := range r.keys {
		r.k.keys.release(e)
	}
}

func (r *queuedRun) Write(p []byte) (int, error) {
	if r.run == nil {
		return 0, psa.Errorf(psa.StatusBadState, "the operation has ended")
	}
	return r.run.Write(p)
}

func (r *queuedRun) Abort() {
	if r.run != nil {
		r.run.Abort()
		r.run = nil
		r.release()
	}
}

func (r *queuedRun) Finish(ctx context.Context) (psa.Result, error) {
	return r.finish(func(f finisher, late func(psa.Result, error)) (psa.Result, error) {
		return callIn(ctx, r.keys[0].provider, r.lane, r.uid, r.k.o.OperationTimeout, f, late)
	})
}

// Quick is false where something must be stored first: a reservation of nonces, or whether a tag was guessed.
func (r *queuedRun) Quick() bool {
	if r.run == nil || !r.quick || r.guess || r.nonce && !r.keys[0].nonces.reserved() {
		return false
	}
	r.nonce, r.alone = false, true
	return true
}

func (r *queuedRun) FinishHere(ctx context.Context, tell func(error)) (psa.Result, error) {
	if r.alone {
		return r.finish(func(f finisher, _ func(psa.Result, error)) (psa.Result, error) {
			return pass(ctx, r.keys[0].provider, f)
		})
	}
	return r.finish(func(f finisher, late func(psa.Result, error)) (psa.Result, error) {
		return stayIn(ctx, r.keys[0].provider, r.lane, r.uid, r.k.o.OperationTimeout, f, late, tell)
	})
}

type finisher = func(context.Context) (psa.Result, error)

// finish asks the provider by call or stay.
func (r *queuedRun) finish(ask func(finisher, func(psa.Result, error)) (psa.Result, error)) (psa.Result, error) {
	if r.run == nil {
		return psa.Result{}, psa.Errorf(psa.StatusBadState, "the operation has ended")
	}
	if slices.ContainsFunc(r.keys, func(e *openKey) bool { return e.gone.Load() }) {
		r.Abort()
		return psa.Result{}, psa.Errorf(psa.StatusRevoked, "the key was destroyed")
	}
	if err := r.keys[0].provider.away(); err != nil {
		r.Abort()
		return psa.Result{}, err
	}
	guessed, err := r.k.count(r.keys[0], r.counts)
	if err != nil {
		r.Abort()
		return psa.Result{}, err
	}
	result, err := ask(r.run.Finish, func(late psa.Result, err error) {
		late.Wipe()
		if err := guessed(err); err != nil {
			r.keys[0].provider.log.Error("cannot count a forgery", "key", r.keys[0].number, "err", err)
		}
		r.release()
	})
	if !isStuck(err) {
		if failed := guessed(err); failed != nil {
			// Without a count there is no answer.
			result.Wipe()
			result, err = psa.Result{}, failed
		}
	}
	if err != nil && !begun(err) {
		r.Abort()
		return psa.Result{}, err
	}
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		// A device that was replaced or emptied does not have the key either, and its identity says more than that.
		if other := r.keys[0].provider.look(r.k.ctx, statusWait); psa.StatusOf(other) == psa.StatusProviderAbsent {
			err = other
		}
	}
	r.run = nil
	// A stuck call keeps the keys open until it returns.
	if !isStuck(err) {
		r.release()
	}
	return result, err
}
