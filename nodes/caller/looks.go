package caller

import (
	"bytes"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Bounds of the looks that can hang. Each has a thread of its own, which is counted until it really ends. Callers have places
// apart from their ancestors': who waits for our answer cannot be in execve(2), so that these places stay free whatever
// somebody's ancestors do.
const (
	looksEach = 2  // of one user's requests
	looksMost = 16 // over all
	// waitersEach is how many of one user's requests wait for one of these places.
	waitersEach = 1024
	// patience is how long a request waits for a place and its look.
	patience = 5 * time.Second
	// pollTime is how often one sees whether a process is still in the middle of execve(2), or lets a thread hang.
	pollTime = 20 * time.Millisecond
	// pollsHung in a row are too many for an execve(2) that does not wait for somebody: nobody else waits then.
	pollsHung = 2
	// pollsMost in a row end also the first one's wait: it may be for us, who answer a FLUSH meanwhile.
	pollsMost = 50
)

// looks are the looks under way. One process is looked at by one thread at a time, and one that lets a thread hang is looked
// at by no other until that one is back: whoever asks learns at once that nothing is known. A user whose looks all hang is
// answered so too, and so is everybody where all there may be do. While some of them are quick the others wait in turn.
type looks struct {
	mu    sync.Mutex // held for the tables alone, never during a look
	at    map[uint32]*look
	users map[uint32]*looker
	count int
	hung  int
}

// look is one under way.
type look struct {
	pid  uint32
	by   *looker
	done chan struct{} // closed when its thread is back
	hung chan struct{} // closed when it seems to hang
	is   bool          // hung, under looks.mu
}

// looker is a user who asks.
type looker struct {
	uid         uint32
	count, hung int
	waiters     []chan struct{}
}

// begin takes a place and a process' turn; nil where nothing can be known now.
func (t *looks) begin(uid, pid uint32, until <-chan time.Time) *look {
	for {
		t.mu.Lock()
		u := t.users[uid]
		if u == nil {
			u = &looker{uid: uid}
			if t.users == nil {
				t.users = map[uint32]*looker{}
			}
			t.users[uid] = u
		}
		if l := t.at[pid]; l != nil {
			t.pass(u)
			t.leave(u)
			t.mu.Unlock()
			select {
			case <-l.hung:
				return nil
			default:
			}
			select {
			case <-l.done:
				continue
			case <-l.hung:
			case <-until:
			}
			return nil
		}
		if t.free(u) {
			l := &look{pid: pid, by: u, done: make(chan struct{}), hung: make(chan struct{})}
			u.count++
			t.count++
			if t.at == nil {
				t.at = map[uint32]*look{}
			}
			t.at[pid] = l
			t.pass(u)
			t.mu.Unlock()
			return l
		}
		if u.hung == looksEach || t.hung == looksMost || len(u.waiters) == waitersEach {
			t.leave(u)
			t.mu.Unlock()
			return nil
		}
		turn := make(chan struct{})
		u.waiters = append(u.waiters, turn)
		t.mu.Unlock()
		select {
		case <-turn:
			continue
		case <-until:
		}
		t.mu.Lock()
		if i := slices.Index(u.waiters, turn); i >= 0 {
			u.waiters = slices.Delete(u.waiters, i, i+1)
		} else {
			t.pass(u) // the turn came too late for this one
		}
		t.leave(u)
		t.mu.Unlock()
		return nil
	}
}

// free says whether there is a place for u. The caller holds t.mu, as those of pass, leave, and wake.
func (t *looks) free(u *looker) bool { return u.count < looksEach && t.count < looksMost }

// pass gives the turn on to the next of u's who wait, where there is a place.
func (t *looks) pass(u *looker) {
	if t.free(u) && len(u.waiters) > 0 {
		close(u.waiters[0])
		u.waiters = u.waiters[1:]
	}
}

// wake lets all of u's who wait see that there is nothing to wait for.
func (t *looks) wake(u *looker) {
	for _, turn := range u.waiters {
		close(turn)
	}
	u.waiters = nil
}

// leave forgets a user who asks nothing.
func (t *looks) leave(u *looker) {
	if u.count == 0 && len(u.waiters) == 0 && t.users[u.uid] == u {
		delete(t.users, u.uid)
	}
}

// hang notes that a look hangs, unless it is back.
func (t *looks) hang(l *look) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l.is || t.at[l.pid] != l {
		return
	}
	l.is = true
	l.by.hung++
	t.hung++
	close(l.hung)
	if l.by.hung == looksEach {
		t.wake(l.by)
	}
	if t.hung == looksMost {
		for _, u := range t.users {
			t.wake(u)
		}
	}
}

// end gives the place back.
func (t *looks) end(l *look) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.at, l.pid)
	full := t.count == looksMost
	l.by.count--
	t.count--
	if l.is {
		l.by.hung--
		t.hung--
	}
	close(l.done)
	if !full {
		t.pass(l.by)
		t.leave(l.by)
		return
	}
	for _, u := range t.users {
		t.pass(u)
		t.leave(u)
	}
}

// see runs read, which looks at a process for a request of uid, on a thread of its own; known: it came back in time.
func (t *looks) see(uid, pid uint32, read func()) (known bool) {
	until := time.NewTimer(patience)
	defer until.Stop()
	l := t.begin(uid, pid, until.C)
	if l == nil {
		return false
	}
	var tid atomic.Int32
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer t.end(l)
		tid.Store(int32(unix.Gettid()))
		read()
	}()
	poll := time.NewTicker(pollTime)
	defer poll.Stop()
	for asleep := 0; ; {
		select {
		case <-l.done:
			return true
		case <-until.C:
			t.hang(l)
			return false
		case <-poll.C:
		}
		if !uninterruptible(tid.Load()) {
			asleep = 0
			continue
		}
		if asleep++; asleep == pollsHung {
			t.hang(l)
		}
		if asleep == pollsMost {
			return false
		}
	}
}

// uninterruptible says whether a thread of ours sleeps so; where the kernel does not tell, it does.
func uninterruptible(tid int32) bool {
	if tid == 0 {
		return false // it has not begun
	}
	asleep := true
	_ = readText("/proc/self/task/"+strconv.Itoa(int(tid))+"/status", func(b []byte) error {
		_, state, found := bytes.Cut(b, []byte("\nState:\t"))
		asleep = !found || bytes.HasPrefix(state, []byte("D"))
		return nil
	})
	return asleep
}

// execs are the processes that stay in execve(2): seen in their status, which costs no thread.
type execs struct {
	mu   sync.Mutex
	slow map[uint32]bool
}

// slowMost bounds the table; beyond it everything is forgotten.
const slowMost = 1024

// over waits until a process is not in the middle of execve(2). One request waits for one that stays there; the others learn at
// once that it does.
func (p *Procs) over(uid, pid uint32) knowledge {
	e := &p.execs
	mine := false
	for polls := 0; ; polls++ {
		s, err := p.status(uid, pid, false)
		if err != nil || !s.execs() {
			e.mu.Lock()
			delete(e.slow, pid)
			e.mu.Unlock()
			if err != nil {
				return absent
			}
			return present
		}
		if !mine {
			e.mu.Lock()
			known := e.slow[pid]
			if !known && polls >= pollsHung {
				if e.slow == nil || len(e.slow) >= slowMost {
					e.slow = map[uint32]bool{}
				}
				e.slow[pid], mine = true, true
			}
			e.mu.Unlock()
			if known {
				return unknown
			}
		}
		if polls == pollsMost {
			return unknown
		}
		time.Sleep(pollTime)
	}
}
