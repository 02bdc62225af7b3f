package kim

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	// MaxNonces is how many random nonces a key makes: SP 800-38D, 8.3 allows 2^32 for the 96 bits of GCM, and those of
	// ChaCha20-Poly1305 and CCM are as short or hardly longer. Then one key in 2^33 has two equal nonces.
	MaxNonces = 1 << 32
	// MaxFailures is how many forgeries of tags under 64 bits a key refuses before it verifies no more: 2^10 guesses find a
	// tag of 32 bits with a chance of 2^-22.
	MaxFailures = 1 << 10

	// The first reservation of an open key, and the largest. Each is twice the one before, so that closing and crashes lose
	// no more nonces than were made.
	leastNonces = 1 << 6
	mostNonces  = 1 << 16
	// A copy gets one of this many parts of what its source has left.
	copyShare = 16
)

// counts says what is counted at an operation.
type counts struct {
	nonce bool // it has a nonce made at random
	guess bool // it tells whether a short tag is right
}

func countsOf(op psa.Op, a psa.Attributes) counts {
	if a.Type.IsAsymmetric() {
		return counts{}
	}
	return counts{
		nonce: op.Operation == psa.Encrypt && op.Algorithm.BoundsNonces() && len(op.Inputs["nonce"]) == 0,
		guess: (op.Operation == psa.Decrypt || op.Operation == psa.VerifyMac) && op.Algorithm.HasShortTag(),
	}
}

// count counts an operation durably before it is done, or refuses it. The caller must call guessed once with the outcome,
// before anybody learns the outcome; if guessed fails, its error replaces the outcome.
func (k *KIM) count(e *openKey, c counts) (guessed func(error) error, err error) {
	// A reservation or a forgery is stored also for a caller who goes away.
	ctx := context.Background()
	if c.nonce {
		if err := e.nonces.take(func(n int64) (int64, error) { return k.store.TakeNonces(ctx, e.number, n) }); err != nil {
			return nil, err
		}
	}
	if !c.guess {
		return func(error) error { return nil }, nil
	}
	leave, err := k.guess(ctx, e.number)
	if err != nil {
		return nil, err
	}
	return func(err error) error {
		defer leave()
		if psa.StatusOf(err) != psa.StatusInvalidSignature {
			return nil
		}
		return k.store.AddFailure(ctx, e.number)
	}, nil
}

// nonces are those that an open key has reserved.
type nonces struct {
	left atomic.Int64 // who only looks waits for no reservation, which waits for the disk

	mu   sync.Mutex
	last int64 // how many the last reservation asked for
}

// some says whether any are reserved.
func (n *nonces) some() bool { return n.left.Load() > 0 }

// reserved takes one that is reserved already, and says whether there was one.
func (n *nonces) reserved() bool {
	for {
		left := n.left.Load()
		if left == 0 {
			return false
		}
		if n.left.CompareAndSwap(left, left-1) {
			return true
		}
	}
}

func (n *nonces) take(reserve func(int64) (int64, error)) error {
	if n.reserved() {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reserved() { // by who had the lock before
		return nil
	}
	ask := min(max(2*n.last, leastNonces), mostNonces)
	got, err := reserve(ask)
	if err != nil {
		return err
	}
	n.last = ask
	n.left.Store(got - 1)
	return nil
}

// guesses are the running guesses at short tags, for each key that has any.
type guesses struct {
	mu  sync.Mutex
	all map[int64]*guessing
}

type guessing struct {
	users int // under guesses.mu

	mu    sync.Mutex
	under int64
}

func (g *guesses) of(number int64) *guessing {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.all == nil {
		g.all = map[int64]*guessing{}
	}
	of := g.all[number]
	if of == nil {
		of = &guessing{}
		g.all[number] = of
	}
	of.users++
	return of
}

func (g *guesses) done(number int64, of *guessing) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if of.users--; of.users == 0 {
		delete(g.all, number)
	}
}

// guess admits no more guesses at once than may still fail. A failure is stored before its guess ends, so each failure is
// counted either in the row or among the running guesses.
func (k *KIM) guess(ctx context.Context, number int64) (leave func(), err error) {
	of := k.guesses.of(number)
	of.mu.Lock()
	defer of.mu.Unlock()
	row, err := k.Key(ctx, number)
	switch {
	case err != nil:
	case row.Failures >= MaxFailures:
		err = errTooManyFailures(row)
	case row.Failures+of.under >= MaxFailures:
		err = psa.Errorf(psa.StatusBadState, "key %s refused %d forgeries, and no more are tried at once than are left", row.Name, row.Failures).
			WithHint("ask again; or the key's owner can write failures = 0 into attributes")
	default:
		of.under++
		return func() {
			of.mu.Lock()
			of.under--
			of.mu.Unlock()
			k.guesses.done(number, of)
		}, nil
	}
	k.guesses.done(number, of)
	return nil, err
}

func errTooManyFailures(row Key) error {
	hint := "the key's owner can write failures = 0 into attributes; somebody who may use this file was guessing"
	if row.Copied {
		hint = "root can write failures = 0 into attributes of a copy; somebody who may use this file was guessing"
	}
	return psa.Errorf(psa.StatusNotPermitted, "key %s refused %d forgeries of its short tags, and verifies none any more", row.Name, row.Failures).
		WithHint(hint)
}
