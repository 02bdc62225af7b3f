package kimtest

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// testCounts: what a key counts is there after another opening, is never more than its bound however many count at once, and
// a copy has no more than a part of what its source had left.
func testCounts(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	k := s.draft(p, "counting")
	_, err := s.TakeNonces(ctx, k.Number, 1)
	s.status(err, psa.StatusBadState)
	s.status(s.AddFailure(ctx, k.Number), psa.StatusBadState)
	k = s.ready(k, "public", "sealed")
	if k = s.key(k.Number); k.Nonces != 0 || k.Failures != 0 || k.Copied {
		t.Fatalf("a new key: %+v", k)
	}
	got, err := s.TakeNonces(ctx, k.Number, 1<<16)
	s.ok(err)
	s.ok(s.AddFailure(ctx, k.Number))
	s.start()
	if k = s.key(k.Number); got != 1<<16 || k.Nonces != 1<<16 || k.Failures != 1 {
		t.Fatalf("got %d; after another opening: %+v", got, k)
	}

	got, err = s.TakeNonces(ctx, k.Number, kim.MaxNonces-1<<17)
	s.ok(err)
	var took, refused atomic.Int64
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 3 {
				n, err := s.TakeNonces(ctx, k.Number, 5000)
				took.Add(n)
				if psa.StatusOf(err) == psa.StatusNotPermitted {
					refused.Add(1)
				} else if err != nil {
					t.Error(err)
				}
			}
			for range kim.MaxFailures / 4 {
				if err := s.AddFailure(ctx, k.Number); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if sum := 1<<16 + got + took.Load(); sum != kim.MaxNonces || refused.Load() == 0 {
		t.Errorf("%d nonces of %d, %d refusals", sum, int64(kim.MaxNonces), refused.Load())
	}
	if k = s.key(k.Number); k.Nonces != kim.MaxNonces || k.Failures != kim.MaxFailures {
		t.Errorf("at the bounds: %+v", k)
	}
	s.ok(s.ResetFailures(ctx, k.Number, false))
	if k = s.key(k.Number); k.Nonces != kim.MaxNonces || k.Failures != 0 {
		t.Errorf("after a reset: %+v", k)
	}

	source := s.ready(s.draft(p, "source"), "public", "sealed")
	_, err = s.TakeNonces(ctx, source.Number, 1000)
	s.ok(err)
	var nonces, guesses int64
	for i := range 40 {
		c, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: "copy" + string(rune('A'+i)), UID: 1000})
		s.ok(err)
		s.status(s.ShareCounts(ctx, c.Number, source.Number), psa.StatusBadState)
		_, err = s.BeginCreate(ctx, c.Number, newHandle(), "ed25519", ed25519, kim.Imported)
		s.ok(err)
		s.ok(s.ShareCounts(ctx, c.Number, source.Number))
		if i == 0 {
			s.ok(s.AbortCreate(ctx, c.Number))
			if c = s.key(c.Number); c.Nonces != 0 || c.Failures != 0 || c.Copied {
				t.Errorf("a draft that was to be a copy: %+v", c)
			}
			continue
		}
		s.ok(s.FinishCreate(ctx, c.Number, []byte("public"), []byte("sealed")))
		c = s.key(c.Number)
		nonces += kim.MaxNonces - c.Nonces
		guesses += kim.MaxFailures - c.Failures
		s.status(s.ResetFailures(ctx, c.Number, false), psa.StatusNotPermitted)
		if i == 1 {
			s.ok(s.ResetFailures(ctx, c.Number, true))
		}
	}
	source = s.key(source.Number)
	if all := nonces + kim.MaxNonces - source.Nonces + 1000; all > kim.MaxNonces {
		t.Errorf("a key and its copies have %d nonces together", all)
	}
	if all := guesses + kim.MaxFailures - source.Failures; all > kim.MaxFailures || guesses == 0 {
		t.Errorf("a key and its copies have %d guesses together, the copies %d", all, guesses)
	}
}

// testQuotaOverAll: many uids do not have as many quotas; whoever has most is refused first, and one who has none is let in.
func testQuotaOverAll(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	made := 0
	insert := func(uid uint32) error {
		made++
		_, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: fmt.Sprint("k", made), UID: uid, Quota: 4})
		return err
	}
	for range 4 {
		s.ok(insert(1000))
	}
	for uid := uint32(2000); uid < 2014; uid++ {
		for range 2 {
			s.ok(insert(uid))
		}
	}
	s.ok(insert(2000)) // it had less than an equal share
	s.status(insert(2000), psa.StatusQuota)
	s.ok(insert(3000))
}
