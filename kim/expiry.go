package kim

import (
	"context"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	// expiredMost bounds the drafts that one sweep removes.
	expiredMost = 100
	// sweepSoonest and sweepLatest bound the time between two sweeps.
	sweepSoonest = 250 * time.Millisecond
	sweepLatest  = time.Hour
)

// Forgotten is told of each draft that expires. It calls remove, which removes it unless somebody has changed it meanwhile,
// or does not where the draft is in use.
type Forgotten func(p *Provider, draft Key, remove func() error)

// OnForgotten has drafts expire that nobody has changed for Options.DraftExpiry; where that is 0 they never do. Without it
// none expires: who opens the KIM for a moment removes nothing.
func (k *KIM) OnForgotten(f Forgotten) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.o.DraftExpiry > 0 && !k.closed {
		k.wg.Go(func() { k.expireDrafts(f) })
	}
}

// DraftExpiry is how long a draft stays that nobody changes, 0 for ever.
func (k *KIM) DraftExpiry() time.Duration { return k.o.DraftExpiry }

// Expires is when a draft expires unless it is changed; false: never.
func (k *KIM) Expires(ctx context.Context, draft Key) (time.Time, bool, error) {
	if k.o.DraftExpiry == 0 || draft.State != Draft || draft.KeepForever {
		return time.Time{}, false, nil
	}
	changed := draft.Changed
	for file := range draft.files.all() {
		i, _, err := k.store.Inode(ctx, draft.ino(file))
		if err != nil {
			return time.Time{}, false, err
		}
		changed = i.changedAfter(changed)
	}
	return changed.Add(k.o.DraftExpiry), true, nil
}

// changedAfter is the later one of a time and of the inode's own.
func (i Inode) changedAfter(t time.Time) time.Time {
	if i.Ctime != nil && i.Ctime.After(t) {
		return *i.Ctime
	}
	return t
}

func (k *KIM) expireDrafts(f Forgotten) {
	begun, started := time.Now(), uptime()
	// A clock that is set right after the start had a wrong time until then.
	grace := min(k.o.DraftExpiry, sweepLatest)
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-timer.C:
		}
		k.sweep(certainTime(begun, uptime()-started, time.Now()).Add(-k.o.DraftExpiry), f)
		timer.Reset(min(max(k.o.DraftExpiry/8, sweepSoonest), sweepLatest))
	}
}

// certainTime is a time that has been reached for certain: a clock that jumps ahead must not end what was begun a moment ago,
// and one that jumps back is believed.
func certainTime(begun time.Time, up time.Duration, now time.Time) time.Time {
	begun, now = begun.Round(0), now.Round(0)
	if steady := begun.Add(up); steady.Before(now) {
		return steady
	}
	return now
}

// uptime runs on while the machine sleeps, and nobody sets it.
func uptime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // no draft expires then
	}
	return time.Duration(t.Nano())
}

// sweep offers the drafts that nobody has changed since a time to f.
func (k *KIM) sweep(since time.Time, f Forgotten) {
	if k.Err() != nil {
		return
	}
	removed, after := 0, int64(0)
	for removed < expiredMost && k.ctx.Err() == nil {
		drafts, err := k.store.Drafts(k.ctx, since, after, expiredMost)
		if err != nil {
			k.o.Log.Warn("cannot list the forgotten drafts", "err", err)
			return
		}
		if len(drafts) == 0 {
			return
		}
		for _, draft := range drafts {
			after = draft.Number
			p := k.ProviderByNumber(draft.Provider)
			if p == nil || draft.Damage != nil || draft.KeepForever || removed == expiredMost {
				continue
			}
			f(p, draft, func() error {
				err := k.expire(draft.Number, since)
				if err == nil {
					removed++
				}
				return err
			})
		}
	}
}

// expire removes a draft to which nothing happens.
func (k *KIM) expire(number int64, since time.Time) error {
	j := &job{kind: destroying, done: make(chan struct{})}
	if k.claim(number, j) != j {
		return psa.Errorf(psa.StatusBadState, "the draft is being made a key")
	}
	defer func() {
		k.disclaim(number)
		close(j.done)
		k.wg.Done()
	}()
	return k.store.ExpireDraft(context.Background(), number, since)
}
