package kim

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// TestCertainTime: a clock that jumps ends nothing too early.
func TestCertainTime(t *testing.T) {
	begun := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		what string
		up   time.Duration
		now  time.Time
		want time.Duration // since begun
	}{
		{"it goes as it should", time.Hour, begun.Add(time.Hour), time.Hour},
		{"a jump of a hundred years ahead", time.Hour, begun.AddDate(100, 0, 0), time.Hour},
		{"a jump back", 2 * time.Hour, begun.Add(-time.Hour), -time.Hour},
		{"begun with a clock of 1970, which was set right", time.Hour, begun.AddDate(56, 0, 0), time.Hour},
		{"a clock that is a little slow", time.Hour, begun.Add(59 * time.Minute), 59 * time.Minute},
	} {
		if got := certainTime(begun, c.up, c.now).Sub(begun); got != c.want {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// TestSweep: forgotten drafts are offered, at most so many at once, and what is made a key meanwhile stays.
func TestSweep(t *testing.T) {
	ctx := context.Background()
	k, err := Open(ctx, Options{Dir: t.TempDir(), DraftExpiry: time.Hour, Providers: []ProviderConfig{{Name: "p", Type: "None",
		Open: func(context.Context, string, string) (providers.Provider, error) {
			return nil, errors.New("there is none")
		}}}})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	const all = expiredMost + 20
	var keys []Key
	for i := range all {
		d, err := k.Default().CreateDraft(ctx, Shared, fmt.Sprint(i), 1000, 1000, 0o700)
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, d)
	}
	expires, does, err := k.Expires(ctx, keys[0])
	if err != nil || !does || !expires.Equal(keys[0].Changed.Add(time.Hour)) {
		t.Errorf("a draft of %v expires at %v, %v, %v", keys[0].Changed, expires, does, err)
	}
	offered, removed := map[int64]int{}, 0
	busy := keys[3].Number
	f := func(p *Provider, d Key, remove func() error) {
		offered[d.Number]++
		if d.Number == busy {
			return
		}
		if err := remove(); err != nil {
			t.Error(err)
		}
		removed++
	}
	k.sweep(keys[0].Created.Add(-time.Second), f)
	if removed != 0 {
		t.Errorf("%d drafts expired that are younger", removed)
	}
	// somebody makes a key of it right now
	j := &job{kind: making, done: make(chan struct{})}
	working := keys[5].Number
	if k.claim(working, j) != j {
		t.Fatal("the draft is taken")
	}
	now := time.Now()
	k.sweep(now, func(p *Provider, d Key, remove func() error) {
		if d.Number != working {
			return
		}
		if err := remove(); psa.StatusOf(err) != psa.StatusBadState {
			t.Errorf("a draft that is being made a key expired: %v", err)
		}
	})
	k.disclaim(working)
	k.wg.Done()
	k.sweep(now, f)
	if removed != expiredMost {
		t.Errorf("%d drafts expired in one sweep", removed)
	}
	k.sweep(now, f)
	if removed != all-1 || offered[busy] != 2 {
		t.Errorf("%d drafts expired, and the one in use was offered %d times", removed, offered[busy])
	}
	if left, err := k.Default().List(ctx, Shared, "", 10); err != nil || len(left) != 1 || left[0].Number != busy {
		t.Errorf("left are %v, %v", left, err)
	}
}
