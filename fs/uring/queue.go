package uring

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Commands to the connection, enum fuse_uring_cmd.
const (
	commandRegister       = 1
	commandCommitAndFetch = 2
)

// wakeUser marks the completion of the read of the eventfd; entries have their indices.
const wakeUser = 1 << 32

// queue is what one processor's requests come by: a ring, its thread, and the entries.
type queue struct {
	t       *Transport
	id      int
	memory  []byte
	entries []entry
	steps   chan step  // what the thread does next; closed to end it
	said    chan error // what came of it

	// The thread's own.
	ring     *ring
	live     int  // entries that the kernel can still use
	armed    bool // the ring reads the eventfd
	filled   []*entry
	left     []*entry // filled ones that wait for their turn
	answered []*entry
	scratch  []byte

	wakes  int // an eventfd
	woken  *[8]byte
	asleep atomic.Bool

	mu      sync.Mutex
	done    []*entry // answered by goroutines
	places  places
	flushes places         // what FLUSHes have beside those
	working sync.WaitGroup // the goroutines
}

// step is what a queue's thread is told to do.
type step int

const (
	register step = iota
	serve
)

// run is the thread: it makes the ring, which it alone may use.
func (q *queue) run() {
	defer q.t.threads.Done()
	// The goroutine never unlocks it: the thread, whose processor was chosen, ends with it.
	runtime.LockOSThread()
	pin(q.id)
	err := q.prepare()
	q.said <- err
	if err == nil {
		q.follow()
	}
	if q.ring != nil {
		q.ring.close()
	}
	q.t.rings.Done()
	q.working.Wait()
	if q.memory != nil {
		_ = unix.Munmap(q.memory)
	}
}

func (q *queue) follow() {
	for s := range q.steps {
		if s == register {
			q.said <- q.register()
			continue
		}
		if err := q.serve(); err != nil {
			q.t.fail(fmt.Errorf("processor %d: %w", q.id, err))
		}
		return
	}
}

// pin keeps the thread on the processor whose requests it answers, unless that is off, or not among those that we may use.
func pin(cpu int) {
	var set unix.CPUSet
	set.Set(cpu)
	_ = unix.SchedSetaffinity(0, &set)
}

// prepare takes from the system all that a queue needs, so that later nothing but the connection can fail.
func (q *queue) prepare() (err error) {
	depth := len(q.entries)
	if q.wakes, err = unix.Eventfd(0, unix.EFD_CLOEXEC); err != nil {
		return os.NewSyscallError("eventfd", err)
	}
	// Outside of Go's heap, where the race detector and the collector would look. A page is there from its first use on.
	q.memory, err = unix.Mmap(-1, 0, depth*(headerStride+q.t.payload)+minPayload, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return os.NewSyscallError("mmap", err)
	}
	// Headers lie together, so that an entry that is seldom used costs one page.
	q.woken = (*[8]byte)(q.memory)
	headers := q.memory[minPayload:]
	payloads := headers[depth*headerStride:]
	for i := range q.entries {
		q.entries[i].init(i, headers[i*headerStride:(i+1)*headerStride], payloads[i*q.t.payload:(i+1)*q.t.payload])
	}
	q.ring, err = newRing(depth + 1)
	return err
}

// register offers all entries to the connection. A refusal is there when the call returns. Requests are not: they arrive only
// while they are waited for, so that none is begun before every queue is ready.
func (q *queue) register() error {
	for i := range q.entries {
		e := &q.entries[i]
		vectors := len(e.vectors)
		if q.t.o.testOnlyRegister != nil {
			var err error
			if vectors, err = q.t.o.testOnlyRegister(q.id, i); err != nil {
				return err
			}
		}
		s := q.command(e, commandRegister)
		s.addr, s.length = uint64(uintptr(unsafe.Pointer(e.vectors))), uint32(vectors)
	}
	if err := q.ring.submit(); err != nil {
		return err
	}
	q.live = len(q.entries)
	return q.reap()
}

func (q *queue) command(e *entry, command uint32) *submission {
	s := q.ring.next()
	s.opcode, s.fd, s.command, s.queue, s.user = opCommand, int32(q.t.fd), command, uint16(q.id), uint64(e.index)
	return s
}

// reap takes the completions: entries that were filled, and those that are over.
func (q *queue) reap() error {
	for {
		c, ok := q.ring.take()
		if !ok {
			return nil
		}
		if c.user == wakeUser {
			q.armed = false
			continue
		}
		e := &q.entries[c.user]
		switch errno := unix.Errno(-c.result); {
		case c.result >= 0:
			e.filled = true
			q.filled = append(q.filled, e)
		case errno == unix.ENOTCONN || errno == unix.ECONNABORTED || errno == unix.ECANCELED: // the connection ends
			q.live--
		default:
			return fmt.Errorf("the kernel refuses entry %d: %w", c.user, errno)
		}
	}
}

// serve answers requests until the connection has ended, and every entry with it.
func (q *queue) serve() error {
	for q.live > 0 {
		q.beginSome()
		q.arm()
		q.collect()
		if err := q.hand(); err != nil {
			return err
		}
		if len(q.left) > 0 {
			// Who came meanwhile may have their turn before the rest.
			if err := q.ring.look(); err != nil {
				return err
			}
			if err := q.reap(); err != nil {
				return err
			}
			if q.t.failed.Load() {
				return nil
			}
			continue
		}
		// Handing over may have filled entries, ended the last one, or taken a signal that came late.
		if len(q.filled) > 0 || q.live == 0 || !q.armed || !q.sleep() {
			continue
		}
		err := q.ring.wait()
		q.asleep.Store(false)
		if err != nil {
			return err
		}
		if err := q.reap(); err != nil {
			return err
		}
		if q.t.failed.Load() {
			return nil
		}
	}
	return nil
}

// arm has the ring read the eventfd, by which a goroutine wakes the thread.
func (q *queue) arm() {
	if q.armed {
		return
	}
	q.armed = true
	s := q.ring.next()
	s.opcode, s.fd, s.user = opRead, int32(q.wakes), wakeUser
	s.addr, s.length = uint64(uintptr(unsafe.Pointer(q.woken))), uint32(len(q.woken))
}

// collect takes what goroutines have answered.
func (q *queue) collect() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.answered = append(q.answered, q.done...)
	q.done = q.done[:0]
}

// sleep says that the thread is about to. Whoever gives an entry back later wakes it; false: somebody was earlier.
func (q *queue) sleep() bool {
	q.asleep.Store(true)
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.done) == 0 {
		return true
	}
	q.asleep.Store(false)
	return false
}

// back gives an entry to the thread. A commit by any other would make that one the kernel's to work for.
func (q *queue) back(e *entry) {
	q.mu.Lock()
	q.done = append(q.done, e)
	if e.place != nil {
		e.place.leave(e.uid)
		e.place = nil
	}
	q.mu.Unlock()
	q.wake()
}

func (q *queue) wake() {
	if q.asleep.Swap(false) {
		_, _ = unix.Write(q.wakes, binary.NativeEndian.AppendUint64(nil, 1))
	}
}

// hand gives the answers to the kernel, and their entries with them. What an answer showed is wiped before the thread sleeps: the
// kernel has copied it, and no request can take its place meanwhile, but one that waited for an entry and came at once.
func (q *queue) hand() error {
	dirty := false
	for _, e := range q.answered {
		q.command(e, commandCommitAndFetch).commit = e.commit
		dirty = dirty || e.dirty > 0
	}
	if dirty {
		if err := q.ring.submit(); err != nil {
			return err
		}
		if err := q.reap(); err != nil {
			return err
		}
		for _, e := range q.answered {
			if !e.filled {
				e.wipe()
			}
		}
	}
	q.answered = q.answered[:0]
	return nil
}

const (
	// turnMost is how many requests are answered here before others are looked for, and turnUser how many of one user.
	turnMost = 16
	turnUser = turnMost / 2
)

// beginSome begins what was found, but for requests that are answered here: of many only some, so that those of others need not wait
// for all that one user has here.
func (q *queue) beginSome() {
	found := q.filled
	if len(q.left) > 0 {
		found = append(q.left, q.filled...)
		q.left = nil
	}
	if len(found) <= turnMost {
		for _, e := range found {
			q.begin(e)
		}
		q.filled = q.filled[:0]
		return
	}
	turn, users := 0, map[uint32]int{}
	for _, e := range found {
		uid := e.head().Uid
		if (turn == turnMost || users[uid] == turnUser) && q.isPrompt(e) {
			q.left = append(q.left, e)
			continue
		}
		if q.begin(e) {
			turn++
			users[uid]++
		}
	}
	q.filled = q.filled[:0]
}

func (q *queue) isPrompt(e *entry) bool {
	return q.t.prompt != nil && q.t.prompt.Prompt(e.head(), e.arguments())
}

// begin has a request answered: here if that waits for nothing, else by a goroutine.
func (q *queue) begin(e *entry) (here bool) {
	e.filled = false
	e.begin()
	q.t.late(e)
	if q.isPrompt(e) {
		q.scratch = e.handle(q.t.server, q.scratch)
		q.answered = append(q.answered, e)
		return true
	}
	if !q.place(e) {
		e.turnAway()
		q.answered = append(q.answered, e)
		return false
	}
	q.working.Add(1)
	q.t.workers.run(work{q, e})
	return false
}
