package kim

import (
	"bytes"
	"context"
	"crypto/rand"
	"math"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// The steps of the journal that are passed to Options.Step: what was just done. The first step is before anything is done.
const (
	stepCreate         = "create:asked"
	stepCreating       = "create:creating"
	stepCreated        = "create:stored"
	stepCreatedReady   = "create:ready"
	stepImport         = "import:asked"
	stepImporting      = "import:creating"
	stepImported       = "import:stored"
	stepImportedReady  = "import:ready"
	stepAdopt          = "adopt:asked"
	stepAdopting       = "adopt:found"
	stepAdopted        = "adopt:ready"
	stepRename         = "rename:asked"
	stepRenamed        = "rename:renamed"
	stepDestroy        = "destroy:asked"
	stepDestroying     = "destroy:destroying"
	stepDestroyed      = "destroy:destroyed"
	stepDestroyedFully = "destroy:gone"
)

// Steps are the names of all steps of the journal, "operation:what was done".
var Steps = []string{
	stepCreate, stepCreating, stepCreated, stepCreatedReady,
	stepImport, stepImporting, stepImported, stepImportedReady,
	stepAdopt, stepAdopting, stepAdopted,
	stepRename, stepRenamed,
	stepDestroy, stepDestroying, stepDestroyed, stepDestroyedFully,
}

// allOfIt is the weight of a backup in KIM.still. A change of the journal has the weight 1.
const allOfIt = math.MaxInt32

// job is a running change of a key. Its caller may leave, and come back for the result.
type job struct {
	kind     jobKind
	template string
	attrs    psa.Attributes
	origin   string
	source   int64         // the key that is copied, else 0
	object   string        // names the key that is adopted, else empty
	material *psa.Material // a copy, wiped in the end

	done chan struct{}
	err  error // valid once done is closed
}

type jobKind int

const (
	making jobKind = iota
	destroying
	repairing
)

// asks says whether other requests the same as j.
func (j *job) asks(other *job) bool {
	if j.kind != other.kind || j.template != other.template || j.attrs != other.attrs || j.origin != other.origin || j.source != other.source || j.object != other.object || (j.material == nil) != (other.material == nil) {
		return false
	}
	return j.material == nil || j.material.Format == other.material.Format && bytes.Equal(j.material.Data, other.material.Data)
}

// claim makes j the only running job of a key. If another job is running, claim returns that one; if the KIM is closed, nil.
func (k *KIM) claim(number int64, j *job) *job {
	k.mu.Lock()
	defer k.mu.Unlock()
	if other := k.jobs[number]; other != nil {
		return other
	}
	if k.closed {
		return nil
	}
	k.jobs[number] = j
	k.wg.Add(1) // under the lock, so that Close waits for it
	return j
}

func (k *KIM) disclaim(number int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.jobs, number)
}

// run runs f for j and waits for it, or for a running job that does the same. The job goes on when ctx ends. f calls end when
// nothing of the job runs any more; if the provider is stuck, that may be after f has returned. Recovery soon looks at a job
// that is not settled then.
func (k *KIM) run(ctx context.Context, p *Provider, number int64, j *job, f func(end func(settled bool)) error) error {
	j.done = make(chan struct{})
	now := k.claim(number, j)
	if now != nil && now.kind == repairing {
		// Recovery looks at every row that was in the journal a moment ago, and lets go of what is settled.
		select {
		case <-now.done:
			now = k.claim(number, j)
		case <-ctx.Done():
		}
	}
	switch {
	case now == nil:
		j.material.Wipe()
		return psa.Errorf(psa.StatusBadState, "the key info manager is closed")
	case now != j:
		same := now.asks(j)
		j.material.Wipe()
		if !same {
			return psa.Errorf(psa.StatusBadState, "the key is being made, destroyed or recovered").WithHint("try again")
		}
		j = now
	default:
		go func() {
			defer k.wg.Done()
			j.err = f(func(settled bool) {
				j.material.Wipe()
				k.disclaim(number)
				if !settled {
					p.lookSoon()
				}
			})
			close(j.done)
		}()
	}
	select {
	case <-j.done:
		return j.err
	case <-ctx.Done():
		return psa.Errorf(psa.StatusTimeout,
			"the operation on the key is still running, but it took longer than the caller may wait: %w", ctx.Err())
	}
}

// providerOf is the open provider of a key.
func (k *KIM) providerOf(key Key) (*Provider, providers.Provider, error) {
	p := k.ProviderByNumber(key.Provider)
	if p == nil {
		return nil, nil, psa.Errorf(psa.StatusProviderAbsent, "the provider of %s is not configured", key.Name)
	}
	impl, err := p.instance()
	if err != nil {
		return nil, nil, err
	}
	return p, impl, nil
}

// Generate makes the draft a key of these attributes, imported where material is given, for uid. It goes on when ctx
// ends; the same call then waits for what is under way, another one is StatusBadState. Whatever fails leaves the draft
// as it was, or hidden where the provider may have the key (StatusTimeout, StatusCommunicationFailure, ...).
func (k *KIM) Generate(ctx context.Context, number int64, uid uint32, template string, a psa.Attributes, m *psa.Material) error {
	origin := Generated
	if m != nil {
		origin = Imported
	}
	return k.create(ctx, number, uid, template, a, m, origin)
}

// Derive makes the draft a key of a secret that was derived from another key; else as Generate.
func (k *KIM) Derive(ctx context.Context, number int64, uid uint32, template string, a psa.Attributes, m *psa.Material) error {
	return k.create(ctx, number, uid, template, a, m, Derived)
}

// Copy makes the draft a copy of a key of the same provider, whose attributes are psa.Attributes.Copied's; else as
// Generate. Its origin is the source's.
func (k *KIM) Copy(ctx context.Context, number int64, uid uint32, source int64) error {
	draft, err := k.Key(context.WithoutCancel(ctx), number)
	if err != nil {
		return err
	}
	from, err := k.Key(context.WithoutCancel(ctx), source)
	if err != nil {
		return err
	}
	switch {
	case from.State != Ready:
		return psa.Errorf(psa.StatusInvalidArgument, "%s is still a draft", from.Name)
	case from.Provider != draft.Provider:
		return psa.Errorf(psa.StatusNotSupported, "%s is a key of another provider", from.Name)
	}
	a, err := from.Attributes.Copied(draft.Attributes)
	if err != nil {
		return err
	}
	return k.start(ctx, draft, uid, &job{kind: making, template: a.Template(), attrs: a, origin: from.Origin, source: source})
}

// Adopt makes the draft a key that is already on its provider's device. The key gets the attributes a, or the defaults of its
// kind if a.Type is none. reference is that of providers.Adopter. Nothing changes on the device. An object that is already a
// key is StatusAlreadyExists; otherwise Adopt is like Generate.
func (k *KIM) Adopt(ctx context.Context, number int64, uid uint32, a psa.Attributes, reference string) error {
	draft, err := k.Key(context.WithoutCancel(ctx), number)
	if err != nil {
		return err
	}
	return k.start(ctx, draft, uid, &job{kind: making, attrs: a, origin: Adopted, object: reference})
}

func (k *KIM) create(ctx context.Context, number int64, uid uint32, template string, a psa.Attributes, m *psa.Material, origin string) error {
	key, err := k.Key(context.WithoutCancel(ctx), number)
	if err != nil {
		return err
	}
	j := &job{kind: making, template: template, attrs: a, origin: origin}
	if m != nil {
		j.material = &psa.Material{Format: m.Format, Data: bytes.Clone(m.Data)}
	}
	return k.start(ctx, key, uid, j)
}

func (k *KIM) start(ctx context.Context, draft Key, uid uint32, j *job) error {
	err := j.attrs.Validate()
	if j.object != "" && j.attrs.Type == psa.KeyTypeNone {
		err = nil // the device says what it is
	}
	if err == nil {
		err = k.Lost()
	}
	if err == nil {
		var p *Provider
		var impl providers.Provider
		if p, impl, err = k.providerOf(draft); err == nil {
			make := k.make
			if j.object != "" {
				make = k.adopt
			}
			return k.run(ctx, p, draft.Number, j, func(end func(settled bool)) error { return make(p, impl, draft.Number, uid, j, end) })
		}
	}
	j.material.Wipe()
	return err
}

// makeSteps are the journal's steps of one way to make a key.
type makeSteps struct{ asked, creating, stored, ready string }

var (
	generateSteps = makeSteps{stepCreate, stepCreating, stepCreated, stepCreatedReady}
	importSteps   = makeSteps{stepImport, stepImporting, stepImported, stepImportedReady}
)

func (k *KIM) make(p *Provider, impl providers.Provider, number int64, uid uint32, j *job, end func(settled bool)) (err error) {
	defer func() {
		if !isStuck(err) {
			end(err == nil)
		}
	}()
	steps := generateSteps
	if j.material != nil || j.source != 0 {
		steps = importSteps
	}
	k.o.Step(steps.asked)
	if err := k.still.Acquire(k.ctx, 1); err != nil {
		return psa.Errorf(psa.StatusBadState, "the daemon is stopping: %w", err)
	}
	defer k.still.Release(1)
	// A key must not be made on another device than the one that has the others.
	if err := p.look(k.ctx, k.o.OperationTimeout); err != nil {
		return err
	}
	var h providers.Handle
	rand.Read(h[:])
	own := ForUser(context.Background(), uid)
	row, err := k.store.BeginCreate(own, number, h, j.template, j.attrs, j.origin)
	if err != nil {
		return err
	}
	if err := k.bindCopy(row, j.source); err != nil {
		k.settled(p, row, k.store.AbortCreate(own, number))
		return err
	}
	k.o.Step(steps.creating)
	op := psa.Generate
	if j.material != nil || j.source != 0 {
		op = psa.Import
	}
	blob, err := callIn(k.ctx, p, p.lane(impl, op, j.attrs), uid, k.o.GenerateTimeout, func(ctx context.Context) (providers.Blob, error) {
		if j.source != 0 {
			return k.copy(ctx, p, impl, h, j)
		}
		return impl.Create(ctx, h, j.attrs, j.material)
	}, func(late providers.Blob, err error) {
		psa.Wipe(late.Secret)
		if err != nil && !unknown(err) {
			k.settled(p, row, k.store.AbortCreate(own, number))
		}
		end(false)
	})
	if err != nil {
		if unknown(err) {
			k.hide(p, row)
		} else {
			k.settled(p, row, k.store.AbortCreate(own, number))
		}
		return err
	}
	defer psa.Wipe(blob.Secret)
	k.o.Step(steps.stored)
	k.sealing.RLock() // from the sealing until it is stored
	defer k.sealing.RUnlock()
	var sealed []byte
	if len(blob.Secret) > 0 {
		sealed, err = k.sealer.Seal(row, p.uuid, blob.Secret)
	}
	if err == nil {
		err = k.store.FinishCreate(own, number, blob.Public, sealed)
	}
	if err != nil {
		// The row must not become ready, so the object must go; recovery destroys it where this cannot be told now.
		k.hide(p, row)
		return err
	}
	k.o.Step(steps.ready)
	return nil
}

// bindCopy limits a copy to what its source allows: it cannot get caller_nonce if the source does not have it, and both
// together have no more nonces and guesses than one key.
func (k *KIM) bindCopy(row Key, source int64) error {
	if source == 0 {
		return nil
	}
	if err := k.store.ShareCounts(context.Background(), row.Number, source); err != nil {
		return err
	}
	from, err := k.Key(context.Background(), source)
	if err != nil || from.CallerNonce {
		return err
	}
	return k.store.BindNonce(context.Background(), row.Number)
}

func (k *KIM) copy(ctx context.Context, p *Provider, impl providers.Provider, h providers.Handle, j *job) (providers.Blob, error) {
	copier, ok := impl.(providers.Copier)
	if !ok {
		return providers.Blob{}, psa.Errorf(psa.StatusNotSupported, "this provider cannot copy keys")
	}
	row, err := k.Key(ctx, j.source)
	if err == nil && row.State != Ready {
		err = psa.Errorf(psa.StatusDoesNotExist, "the key to copy is gone")
	}
	if err != nil {
		return providers.Blob{}, err
	}
	blob, err := k.blob(ctx, p, row)
	if err != nil {
		return providers.Blob{}, err
	}
	defer psa.Wipe(blob.Secret)
	return copier.Copy(ctx, h, j.attrs, providers.Source{Handle: row.Handle, Attributes: row.Attributes, Blob: blob})
}

// adopt needs no journal, because only the draft's row changes.
func (k *KIM) adopt(p *Provider, impl providers.Provider, number int64, uid uint32, j *job, end func(settled bool)) (err error) {
	defer func() {
		if !isStuck(err) {
			end(err == nil)
		}
	}()
	adopter, ok := impl.(providers.Adopter)
	if !ok {
		return errNoAdopter(p)
	}
	k.o.Step(stepAdopt)
	if err := k.still.Acquire(k.ctx, 1); err != nil {
		return psa.Errorf(psa.StatusBadState, "the daemon is stopping: %w", err)
	}
	defer k.still.Release(1)
	if err := p.look(k.ctx, k.o.OperationTimeout); err != nil {
		return err
	}
	type found struct {
		providers.Foreign
		blob providers.Blob
	}
	f, err := call(k.ctx, p, uid, k.o.OperationTimeout, func(ctx context.Context) (f found, err error) {
		f.Foreign, f.blob, err = adopter.Adopt(ctx, j.attrs, j.object)
		return f, err
	}, func(late found, _ error) {
		psa.Wipe(late.blob.Secret)
		end(false)
	})
	if err != nil {
		return err
	}
	defer psa.Wipe(f.blob.Secret)
	k.o.Step(stepAdopting)
	row, err := k.Key(context.Background(), number)
	if err != nil {
		return err
	}
	a := Adoption{Template: f.Attributes.Template(), Attributes: f.Attributes, Device: p.deviceID(), Object: f.Object, Made: f.Handle, Public: f.blob.Public}
	rand.Read(a.Handle[:])
	k.sealing.RLock()
	defer k.sealing.RUnlock()
	if row.Attributes = f.Attributes; len(f.blob.Secret) > 0 {
		if a.Sealed, err = k.sealer.Seal(row, p.uuid, f.blob.Secret); err != nil {
			return err
		}
	}
	if err := k.store.Adopt(ForUser(context.Background(), uid), number, a); err != nil {
		return err
	}
	k.o.Step(stepAdopted)
	return nil
}

// hide hides a key until recovery knows the outcome.
func (k *KIM) hide(p *Provider, row Key) {
	k.settled(p, row, k.store.SetHidden(context.Background(), row.Number, true))
	p.log.Warn("it is not known whether an operation on a key succeeded; the key is hidden until the provider can tell", "key", row.Number, "uuid", UUID(row.ID))
}

// settled logs that the journal could not be written. The row stays in the journal, and recovery comes back to it.
func (k *KIM) settled(p *Provider, row Key, err error) {
	if err != nil {
		p.log.Error("the journal cannot be written; parsecfs tries again", "key", row.Number, "uuid", UUID(row.ID), "err", err)
	}
}

// Forget removes the row of a draft or key, with its name and sealed secret, and leaves its device alone. While a job of the
// key is running, it is StatusBadState.
func (k *KIM) Forget(ctx context.Context, number int64) error {
	j := &job{kind: destroying, done: make(chan struct{})}
	if k.claim(number, j) != j {
		return psa.Errorf(psa.StatusBadState, "the key is being made, destroyed or recovered").WithHint("try again")
	}
	defer func() {
		k.disclaim(number)
		close(j.done)
		k.wg.Done()
	}()
	err := k.store.Forget(ctx, number)
	if err == nil {
		k.keys.destroyed(number)
	}
	return err
}

// destroyIn destroys a row's key in its provider.
func destroyIn(ctx context.Context, impl providers.Provider, row Key) error {
	if row.Object == "" {
		return impl.Destroy(ctx, row.Handle)
	}
	adopter, ok := impl.(providers.Adopter)
	if !ok {
		return psa.Errorf(psa.StatusNotSupported, "this provider can no longer adopt keys")
	}
	return adopter.DestroyObject(ctx, row.Object, row.Public)
}

// Destroy destroys a key in its provider too, or removes a draft, for uid; an adopted key with allow_destroy = false is
// forgotten, and stays on its device. A device that is away is
// StatusProviderAbsent and changes nothing; an unknown outcome hides the key until the provider says. It goes on when
// ctx ends.
func (k *KIM) Destroy(ctx context.Context, number int64, uid uint32) error {
	return k.destroyAs(ctx, number, nil, uid)
}

// DestroyStanding is Destroy, and ErrMoved for a key that does not stand as asked when the device has been waited for.
func (k *KIM) DestroyStanding(ctx context.Context, number int64, asked Standing, uid uint32) error {
	return k.destroyAs(ctx, number, &asked, uid)
}

func (k *KIM) destroyAs(ctx context.Context, number int64, asked *Standing, uid uint32) error {
	key, err := k.Key(context.WithoutCancel(ctx), number)
	if err != nil {
		return err
	}
	if key.State == Draft {
		// In one transaction: if the draft has become a key meanwhile, it is StatusBadState.
		return k.store.RemoveDraft(ForUser(ctx, uid), number, asked)
	}
	if key.Origin == Adopted && key.KeepForever {
		return k.Forget(ctx, number)
	}
	p, impl, err := k.providerOf(key)
	if err != nil {
		return err
	}
	j := &job{kind: destroying}
	return k.run(ctx, p, number, j, func(end func(settled bool)) error { return k.destroy(p, impl, number, asked, uid, end) })
}

func (k *KIM) destroy(p *Provider, impl providers.Provider, number int64, asked *Standing, uid uint32, end func(settled bool)) (err error) {
	defer func() {
		if !isStuck(err) {
			end(err == nil)
		}
	}()
	k.o.Step(stepDestroy)
	if err := k.still.Acquire(k.ctx, 1); err != nil {
		return psa.Errorf(psa.StatusBadState, "the daemon is stopping: %w", err)
	}
	defer k.still.Release(1)
	if err := p.look(k.ctx, k.o.OperationTimeout); err != nil {
		return err
	}
	own := ForUser(context.Background(), uid)
	row, err := k.store.BeginDestroy(own, number, asked)
	if err != nil {
		return err
	}
	k.o.Step(stepDestroying)
	_, err = call(k.ctx, p, uid, k.o.OperationTimeout, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, destroyIn(ctx, impl, row)
	}, func(struct{}, error) { end(false) })
	switch {
	case err == nil:
		k.keys.destroyed(number)
	case unknown(err):
		k.keys.destroyed(number)
		k.hide(p, row)
		return err
	default:
		k.settled(p, row, k.store.AbortDestroy(own, number))
		return err
	}
	k.o.Step(stepDestroyed)
	if err := k.store.FinishDestroy(own, number); err != nil {
		k.hide(p, row)
		return err
	}
	k.o.Step(stepDestroyedFully)
	return nil
}
