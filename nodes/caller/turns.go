package caller

import "sync"

// Bounds of the looks that always come back. The kernel writes a status anew for each, and that of a thread in 65 536 groups is
// long: without turns, one user's threads take all processors.
const (
	turnsEach = 2
	turnsMost = 8
)

// turns lets users look in turn, a bounded number at a time. Nobody who holds a lock that others need may take one.
type turns struct {
	mu    sync.Mutex
	users map[uint32]*line
	ready []*line // of those who wait and have a turn left, the next one first
	taken int
}

// line is a user who looks or waits.
type line struct {
	uid     uint32
	taken   int
	waiting []chan struct{}
	ready   bool
}

// take waits for a turn of uid's; give must follow.
func (t *turns) take(uid uint32) (give func()) {
	t.mu.Lock()
	u := t.users[uid]
	if u == nil {
		u = &line{uid: uid}
		if t.users == nil {
			t.users = map[uint32]*line{}
		}
		t.users[uid] = u
	}
	turn := make(chan struct{})
	u.waiting = append(u.waiting, turn)
	t.queue(u)
	t.next()
	t.mu.Unlock()
	<-turn
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		u.taken--
		t.taken--
		if u.taken == 0 && len(u.waiting) == 0 {
			delete(t.users, uid)
		}
		t.queue(u)
		t.next()
	}
}

// queue has u wait for the next turn, behind the other users. The caller holds t.mu, as that of next.
func (t *turns) queue(u *line) {
	if !u.ready && len(u.waiting) > 0 && u.taken < turnsEach {
		u.ready = true
		t.ready = append(t.ready, u)
	}
}

// next gives out the turns that are free.
func (t *turns) next() {
	for t.taken < turnsMost && len(t.ready) > 0 {
		u := t.ready[0]
		t.ready = t.ready[1:]
		u.ready = false
		close(u.waiting[0])
		u.waiting = u.waiting[1:]
		u.taken++
		t.taken++
		t.queue(u)
	}
}
