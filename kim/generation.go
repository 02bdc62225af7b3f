package kim

import (
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// The generation. If somebody puts an old file back, keys and rights come back that were destroyed or taken away. So a TPM
// that wraps the data key also has a counter, and the store records the counter's value: a store that is behind its counter
// is an old copy. The counter advances at each start and after every generationStep changes. It does not advance at each
// change, because a device endures a limited number of writes. So a copy made since the last step is not noticed.

// generationStep is the number of changes after which the counter advances.
const generationStep = 1000

// counters is the device with the counter, and the counter's authorization, which is derived from the data key.
type counters struct {
	p    *Provider
	impl providers.Counters
	auth []byte
}

func (k *KIM) counters(p *Provider, dataKey []byte) (*counters, error) {
	impl, err := p.instance()
	if err != nil {
		return nil, err
	}
	c, ok := impl.(providers.Counters)
	if !ok {
		return nil, psa.Errorf(psa.StatusNotSupported, "provider %s has no counters", p.Name())
	}
	auth, err := hkdf.Key(sha256.New, dataKey, nil, "parsecfs counter 1", sha256.Size)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "cannot derive the counter's authorization: %w", err)
	}
	return &counters{p, c, auth}, nil
}

// ask calls the device on behalf of the daemon.
func ask[T any](ctx context.Context, c *counters, f func(context.Context) (T, error)) (T, error) {
	return call(ctx, c.p, daemonUID, c.p.k.o.OperationTimeout, f, func(T, error) {})
}

// made is a new counter.
type made struct {
	reference []byte
	value     uint64
}

// begin makes a counter for the store.
func (c *counters) begin(ctx context.Context, s Store) error {
	m, err := ask(ctx, c, func(ctx context.Context) (m made, err error) {
		m.reference, m.value, err = c.impl.NewCounter(ctx, c.auth)
		return m, err
	})
	if psa.StatusOf(err) == psa.StatusInsufficientStorage || psa.StatusOf(err) == psa.StatusNotSupported {
		c.p.log.Warn("the device has no room for a counter, so parsecfs cannot notice an old copy of the KIM", "err", err)
		return nil
	}
	if err != nil {
		return err
	}
	return s.SetGeneration(ctx, m.value, m.reference)
}

// advance advances the store's generation first and then the counter, so that the store is never behind if something fails
// in between.
func (c *counters) advance(ctx context.Context, s Store, value uint64, reference []byte) error {
	if err := s.SetGeneration(ctx, value+1, reference); err != nil {
		return err
	}
	_, err := ask(ctx, c, func(ctx context.Context) (uint64, error) { return c.impl.Advance(ctx, reference, c.auth) })
	return err
}

// checkGeneration compares the store with its counter, and advances both. A store that is behind is StatusProviderAbsent,
// unless that is accepted.
func (k *KIM) checkGeneration(ctx context.Context, p *Provider, dataKey []byte, accept bool) error {
	c, err := k.counters(p, dataKey)
	if psa.StatusOf(err) == psa.StatusNotSupported {
		return nil
	}
	if err != nil {
		return err
	}
	generation, reference, err := k.store.Generation(ctx)
	if err != nil {
		return err
	}
	if err := c.check(ctx, k.store, generation, reference, accept); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.steps == nil && !k.closed {
		k.steps = make(chan struct{}, 1)
		k.wg.Go(k.stepGenerations)
	}
	return nil
}

// check compares a store of this generation with its counter. If it has no counter, it makes one.
func (c *counters) check(ctx context.Context, s Store, generation uint64, reference []byte, accept bool) error {
	if reference == nil {
		return c.begin(ctx, s)
	}
	value, err := ask(ctx, c, func(ctx context.Context) (uint64, error) { return c.impl.Counter(ctx, reference, c.auth) })
	switch gone := psa.StatusOf(err) == psa.StatusDoesNotExist; {
	case gone && accept:
		return c.begin(ctx, s)
	case gone:
		return oldStore("the device has lost its counter: %w", err)
	case err != nil:
		return err
	case value > generation && !accept:
		return oldStore("this is an old copy: its generation is %d, but the device's counter is at %d", generation, value)
	}
	return c.advance(ctx, s, value, reference)
}

var errOldStore = errors.New("the KIM was replaced")

func oldStore(format string, args ...any) error {
	return psa.Errorf(psa.StatusProviderAbsent, "%w: %w", errOldStore, fmt.Errorf(format, args...)).
		WithHint("if you restored a backup, run parsecfs state accept-loss; keys that were destroyed since the backup, and rights that were taken away, are then back. If you did not, find out who replaced the KIM, and put the right one back")
}

// stepGenerations advances the counter while the KIM is open.
func (k *KIM) stepGenerations() {
	changes := 0
	stop := k.store.Watch(func(Change) {
		if changes++; changes >= generationStep {
			changes = 0
			select {
			case k.steps <- struct{}{}:
			default:
			}
		}
	})
	defer stop()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-k.steps:
		}
		if err := k.stepGeneration(k.ctx); err != nil {
			k.o.Log.Warn("cannot advance the counter in the device, so an old copy of the KIM is noticed later", "err", err)
		}
	}
}

func (k *KIM) stepGeneration(ctx context.Context) error {
	k.rewrapping.Lock()
	defer k.rewrapping.Unlock()
	row, _, err := k.store.DataKey(ctx)
	if err != nil {
		return err
	}
	name, ok := strings.CutPrefix(row.Kind, WrapProvider)
	p := k.Provider(name)
	if !ok || p == nil {
		return nil // a file wraps it meanwhile
	}
	key := k.sealer.dataKey()
	defer psa.Wipe(key)
	c, err := k.counters(p, key)
	if err != nil {
		return err
	}
	generation, reference, err := k.store.Generation(ctx)
	if err != nil || reference == nil {
		return err
	}
	return c.advance(ctx, k.store, generation, reference)
}

// moveGeneration follows a rewrap: it removes the counter of the old wrapping, and makes one for the new wrapping. The caller
// has the data keys of both.
func (k *KIM) moveGeneration(ctx context.Context, was, now WrappedKey, before, after []byte, reference []byte) error {
	old, byProvider := strings.CutPrefix(was.Kind, WrapProvider)
	next, stays := strings.CutPrefix(now.Kind, WrapProvider)
	same := byProvider && stays && old == next && string(before) == string(after)
	if p := k.Provider(old); byProvider && !same && p != nil && reference != nil {
		c, err := k.counters(p, before)
		if err == nil {
			_, err = ask(ctx, c, func(ctx context.Context) (struct{}, error) {
				return struct{}{}, c.impl.RemoveCounter(ctx, reference, c.auth)
			})
		}
		if err != nil {
			p.log.Warn("cannot remove an unused counter from the device", "err", err)
		}
	}
	if !same {
		if err := k.store.SetGeneration(ctx, 0, nil); err != nil {
			return err
		}
	}
	if p := k.Provider(next); stays && p != nil {
		return k.checkGeneration(ctx, p, after, true)
	}
	return nil
}

// AcceptLoss accepts a KIM that is behind its counter. It is an error if the KIM is not behind.
func (k *KIM) AcceptLoss(ctx context.Context) error {
	row, _, err := k.store.DataKey(ctx)
	if err != nil {
		return err
	}
	name, ok := strings.CutPrefix(row.Kind, WrapProvider)
	if !ok || k.Err() == nil {
		return psa.Errorf(psa.StatusBadState, "there is nothing to accept: the KIM is not an old copy")
	}
	p := k.Provider(name)
	if p == nil {
		return k.Err()
	}
	if err := p.look(ctx, k.o.OperationTimeout); err != nil {
		return err
	}
	return k.unwrapAs(ctx, p, true)
}
