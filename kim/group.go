package kim

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// Group commit. To bring a commit to the disk takes longer than to write what it has, and no disk does more of them at once.
// So whoever writes while others do shares their commit: one of them, the leader, takes the others' writes into its own
// transaction, each behind a savepoint, and commits for all. Nobody's call returns before that commit. A lone writer waits
// for nobody.

const (
	// batchWriters and batchTime bound what one commit takes in: whoever came first does not wait for a crowd.
	batchWriters = 64
	batchTime    = 5 * time.Millisecond
	// waitingWriters bounds those that wait over all, and waitingOfUser those of one user.
	waitingWriters = 4096
	waitingOfUser  = 1024
)

// writing is one call that writes.
type writing struct {
	what string
	f    func(*tx) error // may run several times
	// removes: it makes room, so that a full disk does not stop it while the reserve lasts.
	removes bool
	// alone, if set, runs instead of f, in no transaction, while nobody else writes.
	alone func() error
	uid   uint32 // for whom
	// owed says that it cannot be refused: without it the journal would be wrong.
	owed bool

	turn     chan struct{} // gets one where it is the leader
	done     chan struct{} // closed where another leader has written it
	changes  []Change
	refused  error // by f, behind others that are not committed yet
	err      error // valid once it is written, or refused
	panicked error
}

// errUnwritten is what a writer is told whose leader came to no end.
var errUnwritten = errors.New("the change was not written")

// group has the writers that wait.
type group struct {
	mu      sync.Mutex
	led     bool // somebody writes
	waiting int
	turns   []uint32              // the users that wait, the next first
	users   map[uint32][]*writing // what they wait with, the oldest first
}

// userKey is that of a context's user.
type userKey struct{}

// ForUser says for whom a call is made: users take turns in writing, and one cannot fill the queue for all.
func ForUser(ctx context.Context, uid uint32) context.Context {
	return context.WithValue(ctx, userKey{}, uid)
}

// userOf is the user of ForUser, and the daemon's own without it.
func userOf(ctx context.Context) uint32 {
	if uid, ok := ctx.Value(userKey{}).(uint32); ok {
		return uid
	}
	return daemonUID
}

// join makes w the leader (true), or has it wait.
func (g *group) join(w *writing) (leads bool, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.led {
		g.led = true
		return true, nil
	}
	own := len(g.users[w.uid])
	if !w.owed && (own >= waitingOfUser || g.waiting >= waitingWriters && !g.makeRoom(own)) {
		return false, errCrowded()
	}
	if g.users == nil {
		g.users = map[uint32][]*writing{}
	}
	if own == 0 {
		g.turns = append(g.turns, w.uid)
	}
	g.users[w.uid] = append(g.users[w.uid], w)
	g.waiting++
	return false, nil
}

func errCrowded() error {
	return psa.Errorf(psa.StatusQueueFull, "too many changes are already waiting for the KIM").WithHint("try again")
}

// makeRoom refuses the newest of the user who waits with most, where that has at least two more than own.
func (g *group) makeRoom(own int) bool {
	var most []*writing
	for _, all := range g.users {
		if len(all) > len(most) {
			most = all
		}
	}
	for i, w := range slices.Backward(most) {
		if i <= own {
			return false
		}
		if !w.owed {
			g.remove(w, i)
			w.err = errCrowded()
			close(w.done)
			return true
		}
	}
	return false
}

// remove takes w, its user's number i, out of those that wait.
func (g *group) remove(w *writing, i int) {
	g.waiting--
	if g.users[w.uid] = slices.Delete(g.users[w.uid], i, i+1); len(g.users[w.uid]) == 0 {
		delete(g.users, w.uid)
		g.turns = slices.DeleteFunc(g.turns, func(uid uint32) bool { return uid == w.uid })
	}
}

// giveUp takes w out; false: it has begun, or ended.
func (g *group) giveUp(w *writing) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.users[w.uid], w)
	if i >= 0 {
		g.remove(w, i)
	}
	return i >= 0
}

// next takes out the next user's oldest, nil if nobody waits. Where it must share a commit, one that runs alone stays.
func (g *group) next(shares bool) *writing {
	if len(g.turns) == 0 {
		return nil
	}
	uid := g.turns[0]
	w := g.users[uid][0]
	if shares && w.alone != nil {
		return nil
	}
	g.turns = append(slices.Delete(g.turns, 0, 1), uid) // to the end
	g.remove(w, 0)
	return w
}

// another is one more for the leader's commit.
func (g *group) another() *writing {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.next(true)
}

// pass makes the next one the leader.
func (g *group) pass() {
	g.mu.Lock()
	defer g.mu.Unlock()
	w := g.next(false)
	if w == nil {
		g.led = false
		return
	}
	w.turn <- struct{}{}
}

// submit has w written, and waits for that. A context that ends before w has begun ends it. The caller has entered.
func (s *sqliteStore) submit(ctx context.Context, w *writing) error {
	w.uid, w.turn, w.done, w.err = userOf(ctx), make(chan struct{}, 1), make(chan struct{}), errUnwritten
	leads, err := s.group.join(w)
	if err != nil {
		return err
	}
	if leads {
		w.turn <- struct{}{}
	}
	select {
	case <-w.turn:
		s.lead(w)
	case <-w.done:
	case <-ctx.Done():
		if s.group.giveUp(w) {
			return ctx.Err()
		}
		select {
		case <-w.turn:
			s.lead(w)
		case <-w.done:
		}
	}
	if w.panicked != nil {
		panic(w.panicked)
	}
	return w.err
}

// lead writes w, and what others wait with.
func (s *sqliteStore) lead(w *writing) {
	b := &batch{s: s}
	defer func() {
		if b.begun { // a panic
			b.rollback(s.newTx())
		}
		for _, other := range b.others {
			close(other.done)
		}
		s.group.pass()
	}()
	if w.alone != nil {
		w.err = w.protected(w.alone)
		return
	}
	b.write(w)
}

// protected runs f, whose panic is for who waits for w.
func (w *writing) protected(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			w.panicked = fmt.Errorf("%v\n%s", p, debug.Stack())
			err = w.panicked
		}
	}()
	return f()
}

// batch is what one leader writes.
type batch struct {
	s       *sqliteStore
	others  []*writing // beside the leader
	begun   bool       // a transaction
	written []*writing // in it, or refused by what it has, in their order: their outcome is that of the commit
	touched []int64    // by them; all: any row
	all     bool
	counts  map[uint32]int64 // theirs, of keys
}

// write writes w and the others. What was not in the commit with the rest is written by itself: an error of one, or of the
// disk with all of them together, is no error of the others.
func (b *batch) write(w *writing) {
	began := time.Now()
	if err := b.s.Lost(); err != nil {
		w.err = err
		return
	}
	var apart []*writing
	for n := 1; ; n++ {
		joined, whole := b.add(w)
		if !joined {
			apart = append(apart, w)
		}
		if !whole {
			apart = append(b.written, apart...)
			b.written = nil
			break
		}
		if n == batchWriters || time.Since(began) > b.s.batchTime || len(apart) > 0 {
			break
		}
		if w = b.s.group.another(); w == nil {
			break
		}
		b.others = append(b.others, w)
	}
	for _, w := range append(b.commit(), apart...) {
		w.err = b.s.single(w)
	}
}

// add puts w into the transaction, or rolls w alone back. joined is false where w has to be tried apart, whole where what was
// written before is gone.
func (b *batch) add(w *writing) (joined, whole bool) {
	s := b.s
	t := s.newTx()
	if !b.begun {
		if _, err := t.exec("BEGIN IMMEDIATE"); err != nil {
			w.err = s.failed(w.what, err)
			return psa.StatusOf(w.err) != psa.StatusInsufficientStorage || !w.removes, true
		}
		b.begun = true
	}
	t.before, t.allBefore, t.countsBefore = b.touched, b.all, b.counts
	first := len(b.written) == 0
	if !first {
		if _, err := t.exec("SAVEPOINT writer"); err != nil {
			return false, b.rollback(t)
		}
	}
	err := w.protected(func() error { return t.run(w.f) })
	switch {
	case err != nil && first:
		b.rollback(t)
	case err != nil:
		// Where SQLite has rolled back everything, there is no savepoint any more.
		if _, err := t.exec("ROLLBACK TO writer"); err != nil {
			return false, b.rollback(t)
		}
	}
	if !first {
		if _, err := t.exec("RELEASE writer"); err != nil {
			return false, b.rollback(t)
		}
	}
	if err != nil {
		err = s.failed(w.what, err)
		// A disk that is full of all of them may have room for one, and more for one that makes room.
		joined = psa.StatusOf(err) != psa.StatusInsufficientStorage || first && !w.removes
		switch {
		case first:
			w.err = err
		case joined: // perhaps by what the others wrote, which the commit may take away
			w.refused = err
			b.written = append(b.written, w)
		}
		return joined, true
	}
	w.changes, w.refused = t.changes, nil
	b.written = append(b.written, w)
	b.touched, b.all = append(b.touched, t.touched...), b.all || t.all
	for uid, more := range t.counts {
		if b.counts == nil {
			b.counts = map[uint32]int64{}
		}
		b.counts[uid] += more
	}
	return true, true
}

// rollback ends the transaction; it is false.
func (b *batch) rollback(t *tx) bool {
	// SQLite may have rolled back by itself (full disk); then this fails, which changes nothing.
	_, _ = t.exec("ROLLBACK")
	b.begun = false
	return false
}

// commit commits, and tells the watchers before another transaction can begin, which keeps them in the order of the commits.
// It gives those that are to be tried by themselves.
func (b *batch) commit() (apart []*writing) {
	if !b.begun {
		return nil
	}
	t := b.s.newTx()
	t.counts = b.counts
	err := t.countOwned()
	if err == nil {
		err = b.s.cache.commit(b.touched, b.all, func() error {
			_, err := t.exec("COMMIT")
			return err
		})
	}
	if err != nil {
		b.rollback(t)
		for _, w := range b.written {
			w.err = b.s.failed(w.what, err)
			// Nothing of it is on a disk that was full. With another error nobody knows, and who wrote is told so. Who was refused
			// by what is gone was not.
			if w.refused != nil || psa.StatusOf(w.err) == psa.StatusInsufficientStorage {
				apart = append(apart, w)
			}
		}
		return apart
	}
	b.begun = false
	fills := false
	for _, w := range b.written {
		if w.err = w.refused; w.err != nil {
			continue
		}
		b.s.watchers.publish(w.changes)
		fills = fills || !w.removes
	}
	if fills {
		b.s.reserve.refill()
	}
	return nil
}

// single writes w in a transaction of its own.
func (s *sqliteStore) single(w *writing) error {
	w.panicked = nil
	return w.protected(func() error {
		try := func() error { return s.transact(w.what, w.f) }
		if w.removes {
			return s.makeRoom(try(), try)
		}
		err := try()
		if err == nil {
			s.reserve.refill()
		}
		return err
	})
}
