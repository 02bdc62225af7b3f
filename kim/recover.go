package kim

import (
	"context"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// journalPage is how many journal entries are read at once.
const journalPage = 256

// hideJournal hides what an earlier run left unfinished, until recovery has settled it.
func (p *Provider) hideJournal(ctx context.Context) error {
	return p.eachEntry(ctx, func(key Key) error {
		if key.Damage != nil || key.Hidden {
			return nil
		}
		return p.k.store.SetHidden(ctx, key.Number, true)
	})
}

// eachEntry calls f for each key in the journal, in pages.
func (p *Provider) eachEntry(ctx context.Context, f func(Key) error) error {
	for after := int64(0); ; {
		entries, err := p.k.store.Journal(ctx, p.number, after, journalPage)
		if err != nil || len(entries) == 0 {
			return err
		}
		for _, e := range entries {
			if err := f(e.Key); err != nil {
				return err
			}
			after = e.Key.Number
		}
	}
}

// recover undoes unfinished creations and finishes unfinished destructions. It only looks at the rows of the journal, by their
// handles, and never at other objects of the device. left is the number of rows that it could not settle.
func (p *Provider) recover(ctx context.Context) (left int, err error) {
	impl, err := p.instance()
	if err != nil {
		return 0, err
	}
	err = p.eachEntry(ctx, func(key Key) error {
		if key.Damage != nil {
			left++
			p.log.Error("a row of the journal cannot be read", "key", key.Number, "err", key.Damage)
			return nil
		}
		j := &job{kind: repairing, done: make(chan struct{})}
		if p.k.claim(key.Number, j) != j {
			return nil // it is under way, and settles itself or comes back here
		}
		defer p.k.wg.Done()
		stuck := false
		defer func() {
			if !stuck {
				p.k.disclaim(key.Number)
			}
			close(j.done)
		}()
		// Read again: it may have been settled since.
		key, err := p.k.store.KeyByNumber(ctx, key.Number)
		if psa.StatusOf(err) == psa.StatusDoesNotExist || err == nil && key.State != Creating && key.State != Destroying {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = call(ctx, p, daemonUID, p.k.o.OperationTimeout, func(ctx context.Context) (struct{}, error) {
			return struct{}{}, destroyIn(ctx, impl, key)
		}, func(struct{}, error) {
			p.k.disclaim(key.Number)
			p.lookSoon()
		})
		stuck = isStuck(err)
		if err == nil {
			p.k.keys.destroyed(key.Number)
			if key.State == Creating {
				err = p.k.store.AbortCreate(context.Background(), key.Number)
			} else {
				err = p.k.store.FinishDestroy(context.Background(), key.Number)
			}
		}
		if err == nil {
			p.log.Info("recovered a key", "key", key.Number, "uuid", UUID(key.ID), "was", string(key.State))
			return nil
		}
		left++
		p.log.Error("a key cannot be recovered yet; parsecfs tries again", "key", key.Number, "uuid", UUID(key.ID), "was", string(key.State),
			"err", err)
		if unknown(err) {
			return err // the device went away, so the others would fail too
		}
		return nil
	})
	return left, err
}
