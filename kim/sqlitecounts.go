package kim

import (
	"context"

	"github.com/parsecfs/parsecfs/providers/psa"
)

func (s *sqliteStore) TakeNonces(ctx context.Context, number, n int64) (got int64, err error) {
	err = s.write(ctx, "cannot count nonces", func(t *tx) error {
		k, err := t.keyIn(number, Ready)
		if err != nil {
			return err
		}
		if got = min(n, MaxNonces-k.Nonces); got <= 0 {
			return psa.Errorf(psa.StatusNotPermitted, "key %s has no nonces left: with more random nonces, two could be equal", k.Name).
				WithHint("make a new key to encrypt with; this one still decrypts")
		}
		return t.store(k, set{"nonces", k.Nonces + got})
	})
	if err != nil {
		return 0, err
	}
	return got, nil
}

func (s *sqliteStore) AddFailure(ctx context.Context, number int64) error {
	return s.write(ctx, "cannot count a forgery", func(t *tx) error {
		k, err := t.keyIn(number, Ready)
		if err != nil || k.Failures >= MaxFailures {
			return err
		}
		return t.store(k, set{"failures", k.Failures + 1})
	})
}

func (s *sqliteStore) ResetFailures(ctx context.Context, number int64, root bool) error {
	return s.write(ctx, "cannot store failures", func(t *tx) error {
		k, err := t.keyIn(number, Ready)
		if err != nil {
			return err
		}
		if k.Copied && !root {
			return psa.Errorf(psa.StatusNotPermitted, "key %s is a copy: only root can reset its failures", k.Name).
				WithHint("ask root to write failures = 0 here, or make the copy again")
		}
		return t.store(k, set{"failures", 0})
	})
}

func (s *sqliteStore) ShareCounts(ctx context.Context, number, copied int64) error {
	return s.write(ctx, "cannot bind a copy", func(t *tx) error {
		k, err := t.keyIn(number, Creating)
		if err != nil {
			return err
		}
		source, err := t.keyIn(copied, Ready)
		if err != nil {
			return err
		}
		nonces, guesses := (MaxNonces-source.Nonces)/copyShare, (MaxFailures-source.Failures)/copyShare
		if err := t.store(source, set{"nonces", source.Nonces + nonces}, set{"failures", source.Failures + guesses}); err != nil {
			return err
		}
		return t.store(k, set{"nonces", MaxNonces - nonces}, set{"failures", MaxFailures - guesses}, set{"copied", true})
	})
}

// quotasWorth is how many users' quotas of keys there are over all. Beyond it whoever has an equal share or more makes no more:
// who has many uids, as each user has who may name 65 536 of them, does not have as many quotas.
const quotasWorth = 8

// quota refuses a draft of a user with as many keys as one may have, and, where there are too many over all, of one with an
// equal share or more. No key goes to make room.
func (t *tx) quota(d NewDraft) error {
	var own, all, users int64
	err := t.row("SELECT coalesce(max(CASE WHEN uid = ? THEN keys END), 0), coalesce(sum(keys), 0), count(*) FROM owners",
		[]any{int64(d.UID)}, &own, &all, &users)
	switch {
	case err != nil:
		return err
	case own >= int64(d.Quota):
		return psa.Errorf(psa.StatusQuota, "user %d has %d keys and drafts; allowed: up to %d", d.UID, own, d.Quota).
			WithHint("destroy some with rmdir, or raise core_settings.keys_per_user")
	case all < quotasWorth*int64(d.Quota) || own*users < all:
		return nil
	}
	return psa.Errorf(psa.StatusQuota, "all users together have too many keys and drafts, %d, and user %d has %d of them, which is not less than an equal share", all, d.UID, own).
		WithHint("destroy some with rmdir, or raise core_settings.keys_per_user")
}
