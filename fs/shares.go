package fs

import (
	"sync"
	"time"

	"github.com/parsecfs/parsecfs/nodes"
)

const (
	// One user's lines may take a 64th of the deeds' space at once, and those of all users of a pool an eighth; within
	// keep_for they may take as much again. Two pools that each take an eighth twice leave the other half to root.
	shareOfUser = 64
	shareOfPool = 8
	// subordinateFrom is where the second pool begins: one user can have 65 536 subordinate uids (subuid(5)).
	subordinateFrom = 1 << 16
	// shareUsers is how many users are remembered. Beyond it all are forgotten, and only the pools limit them.
	shareUsers = 16384
	// sharesLeast is the shortest time in which a share is refilled, if keep_for is shorter.
	sharesLeast = time.Hour
)

// share is what a user, or a pool, may still write, in bytes.
type share struct {
	left float64
	at   time.Time
}

// shares keeps users from filling the deeds' space with changes of their own keys, since no young line there is deleted.
type shares struct {
	user, pool float64
	per        time.Duration

	mu    sync.Mutex
	users map[uint32]share
	pools [2]share
}

func newShares(space int64, keepFor time.Duration) shares {
	return shares{user: float64(space) / shareOfUser, pool: float64(space) / shareOfPool, per: max(keepFor, sharesLeast)}
}

// left says whether a user's next deed is written in full, and not only counted.
func (s *shares) left(uid uint32, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	user, pool := s.of(uid, now)
	return user.left > 0 && pool.left > 0
}

// spend subtracts a line from a user's share. The last line may exceed it.
func (s *shares) spend(uid uint32, size int, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	user, pool := s.of(uid, now)
	user.left -= float64(size)
	pool.left -= float64(size)
	if _, known := s.users[uid]; s.users == nil || !known && len(s.users) >= shareUsers {
		s.users = map[uint32]share{}
	}
	s.users[uid], s.pools[poolOf(uid)] = user, pool
}

func (s *shares) of(uid uint32, now time.Time) (user, pool share) {
	return s.refill(s.users[uid], s.user, now), s.refill(s.pools[poolOf(uid)], s.pool, now)
}

func (s *shares) refill(x share, most float64, now time.Time) share {
	if x.at.IsZero() {
		return share{most, now}
	}
	return share{min(most, x.left+most*now.Sub(x.at).Seconds()/s.per.Seconds()), now}
}

func poolOf(uid uint32) int {
	if uid >= subordinateFrom {
		return 1
	}
	return 0
}

// lineSize estimates the length of an event's line, and never underestimates it.
func lineSize(e *nodes.AuditEvent) int {
	const names = 300 // of the fields, with numbers and times
	n := names
	for _, s := range []string{e.Exe, e.Unit, e.Provider, e.Key, e.UUID, e.File, e.Operation, e.Algorithm, e.Request, e.Status} {
		n += len(s)
	}
	return n
}
