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
