package kim

import (
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

	mu    sync.Mutex
	all   map[int64]*openKey
	idle  openKey // the ring of those that nobody uses: behind it stands the most recently used one
	idles int
}

// openKey is an open key. There is at most one for each number, so that a destroyed key is gone for all of its users.
type openKey struct {
	number   int64
	provider *Provider
	impl     providers.Provider
	once     sync.Once
	opened   atomic.Bool // once is over
	row      Key
	key      providers.Key
	err      error
	gone     atomic.Bool // destroyed
	nonces   nonces
	permits  atomic.Pointer[[]permit] // what the policy was found to permit: it never changes

	users      int      // under openKeys.mu, like what follows
	next, last *openKey // in the ring of idle ones; nil outside it
}

// permit is an operation with an algorithm that a policy permits.
type permit struct {
	op  psa.Operation
	alg psa.Algorithm
}

// permitted asks the policy, once for each pair: there are as many as operations times hashes.
func (e *openKey) permitted(op psa.Operation, alg psa.Algorithm) error {
	var known []permit
	if p := e.permits.Load(); p != nil {
		known = *p
	}
	if slices.Contains(known, permit{op, alg}) {
		return nil
	}
	if err := e.row.Attributes.Permits(op, alg); err != nil {
		return err
	}
	more := append(slices.Clip(known), permit{op, alg})
	e.permits.Store(&more)
	return nil
}

func newOpenKeys(bound int) *openKeys {
	o := &openKeys{bound: bound, all: map[int64]*openKey{}}
	o.empty()
	return o
}

// empty forgets who is idle. The caller holds o.mu, as that of push and pull.
func (o *openKeys) empty() {
	o.idle.next, o.idle.last, o.idles = &o.idle, &o.idle, 0
}

// push makes e the most recent of the idle ones.
func (o *openKeys) push(e *openKey) {
	e.last, e.next = &o.idle, o.idle.next
	e.last.next, e.next.last = e, e
	o.idles++
}

// pull takes e out of the idle ones, if it is one.
func (o *openKeys) pull(e *openKey) {
	if e.next == nil {
		return
	}
	e.last.next, e.next.last = e.next, e.last
	e.last, e.next = nil, nil
	o.idles--
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
	o.pull(e)
	o.mu.Unlock()
	if !e.opened.Load() {
		e.open(open)
	}
	if e.err != nil {
		o.forget(e)
		o.release(e)
		return nil, e.err
	}
	return e, nil
}

// has says whether a key is open.
func (o *openKeys) has(number int64) bool {
	o.mu.Lock()
	e := o.all[number]
	o.mu.Unlock()
	return e != nil && e.opened.Load()
}

// open opens it, once, or waits until somebody has.
func (e *openKey) open(open func(*openKey) error) {
	e.once.Do(func() {
		// A panic in between must leave an error, not a key without a provider.
		e.err = psa.Errorf(psa.StatusGenericError, "cannot open the key %d", e.number)
		defer e.opened.Store(true)
		e.err = open(e)
	})
}

func (o *openKeys) release(e *openKey) {
	o.mu.Lock()
	var closing []*openKey
	if e.users--; e.users == 0 {
		if o.all[e.number] == e {
			o.push(e)
		} else {
			closing = append(closing, e)
		}
	}
	for o.idles > o.bound {
		last := o.idle.last
		o.pull(last)
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
	o.pull(e)
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
	o.empty()
	return err
}

func (e *openKey) close() error {
	if e.key == nil {
		return nil
	}
	return e.key.Close()
}

// load reads the row of a key and opens it in its provider.
func (k *KIM) load(e *openKey) error {
	ctx := context.Background() // others may wait for the same opening
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
	// Quick says whether Pass would finish it now.
	Quick() bool
	// Pass is Finish of what waits for nobody and takes about a millisecond at most; false: this is no such run, or it is none any
	// more, and nothing has happened.
	Pass(ctx context.Context) (result psa.Result, passed bool, err error)
}

// Begin begins an operation with a key for uid. If the key's policy does not permit it, it is StatusNotPermitted or the like;
// a draft is StatusBadState. The algorithm is concrete: the caller has resolved any-hash. Each Run must be finished or aborted.
func (k *KIM) Begin(ctx context.Context, number int64, uid uint32, op psa.Op) (Run, error) {
	e, err := k.hold(number)
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
	return k.queued(op, uid, run, e, nil), nil
}

// Opened says whether a key is open, so that Begin need not read and unseal it, which takes long where it is large, and waits while the
// data key is changed. It may be otherwise a moment later.
func (k *KIM) Opened(number int64) bool { return k.keys.has(number) }

// Certify is Begin of psa.Attest with a signature by another key of the provider, whose policy permits psa.Sign.
func (k *KIM) Certify(ctx context.Context, number int64, uid uint32, op psa.Op, signer int64) (Run, error) {
	e, err := k.hold(number)
	if err != nil {
		return nil, err
	}
	by, err := k.hold(signer)
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
func (k *KIM) hold(number int64) (*openKey, error) {
	return k.keys.use(number, k.load)
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

func (k *KIM) begin(ctx context.Context, e *openKey, op psa.Op) (run psa.Run, err error) {
	if err := e.permitted(op.Operation, op.Algorithm); err != nil {
		return nil, err
	}
	if err := e.provider.away(); err != nil {
		return nil, err
	}
	defer e.provider.recovered(&err)
	return e.key.Begin(ctx, op)
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
	k      *KIM
	key    *openKey
	signer *openKey // of the same provider; nil: it uses no other key
	op     psa.Operation
	uid    uint32
	run    psa.Run // nil after its end
	quick  bool    // its provider says so
	counts
}

func (k *KIM) queued(op psa.Op, uid uint32, run psa.Run, e, signer *openKey) *queuedRun {
	return &queuedRun{k: k, key: e, signer: signer, op: op.Operation, uid: uid, run: run,
		quick: e.provider.Quick(op.Operation, e.row.Attributes), counts: countsOf(op, e.row.Attributes)}
}

func (r *queuedRun) release() {
	r.k.keys.release(r.key)
	if r.signer != nil {
		r.k.keys.release(r.signer)
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
		return callIn(ctx, r.key.provider, r.lane(), r.uid, r.k.o.OperationTimeout, f, late)
	})
}

// lane is the queue that it waits in.
func (r *queuedRun) lane() *queue { return r.key.provider.lane(r.key.impl, r.op, r.key.row.Attributes) }

// Quick is false where something must be stored first: a reservation of nonces, or whether a tag was guessed; and where others
// run, whose turn it is first.
func (r *queuedRun) Quick() bool {
	return r.run != nil && r.quick && !r.guess && (!r.nonce || r.key.nonces.some()) && r.key.provider.queue.free()
}

// Pass takes a free place in the queue for itself alone, since nobody can give it up.
func (r *queuedRun) Pass(ctx context.Context) (result psa.Result, passed bool, err error) {
	q := &r.key.provider.queue
	if !r.Quick() || !q.pass() {
		return psa.Result{}, false, nil
	}
	if r.nonce && !r.key.nonces.reserved() {
		q.leave()
		return psa.Result{}, false, nil
	}
	if err := r.ready(); err != nil {
		q.leave()
		return psa.Result{}, true, err
	}
	result, err = r.key.provider.pass(ctx, r.run)
	return result, true, r.ended(err)
}

func (r *queuedRun) FinishHere(ctx context.Context, tell func(error)) (psa.Result, error) {
	return r.finish(func(f finisher, late func(psa.Result, error)) (psa.Result, error) {
		return stayIn(ctx, r.key.provider, r.lane(), r.uid, r.k.o.OperationTimeout, f, late, tell)
	})
}

type finisher = func(context.Context) (psa.Result, error)

// ready says why it cannot finish, and aborts it then.
func (r *queuedRun) ready() error {
	if r.run == nil {
		return psa.Errorf(psa.StatusBadState, "the operation has ended")
	}
	if r.key.gone.Load() || r.signer != nil && r.signer.gone.Load() {
		r.Abort()
		return psa.Errorf(psa.StatusRevoked, "the key was destroyed")
	}
	if err := r.key.provider.away(); err != nil {
		r.Abort()
		return err
	}
	return nil
}

// finish asks the provider by call or stay.
func (r *queuedRun) finish(ask func(finisher, func(psa.Result, error)) (psa.Result, error)) (psa.Result, error) {
	if err := r.ready(); err != nil {
		return psa.Result{}, err
	}
	guessed, err := r.k.count(r.key, r.counts)
	if err != nil {
		r.Abort()
		return psa.Result{}, err
	}
	result, err := ask(r.run.Finish, func(late psa.Result, err error) {
		late.Wipe()
		if err := guessed(err); err != nil {
			r.key.provider.log.Error("cannot count a forgery", "key", r.key.number, "err", err)
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
	return result, r.ended(err)
}

// ended is the end of a Finish that has begun.
func (r *queuedRun) ended(err error) error {
	if err != nil && psa.StatusOf(err) == psa.StatusDoesNotExist {
		// A device that was replaced or emptied does not have the key either, and its identity says more than that.
		if other := r.key.provider.look(r.k.ctx, statusWait); psa.StatusOf(other) == psa.StatusProviderAbsent {
			err = other
		}
	}
	r.run = nil
	// A stuck call keeps the keys open until it returns.
	if err == nil || !isStuck(err) {
		r.release()
	}
	return err
}
