package uring

import "sync/atomic"

// workers are goroutines that answer one request after the other: they keep the stack that a signature takes, which a new one has
// to grow each time.
type workers struct {
	work chan work
	quit chan struct{}
	idle atomic.Int32
}

// work is a request for a goroutine.
type work struct {
	q *queue
	e *entry
}

const (
	// idleMost bounds the goroutines that wait for work.
	idleMost = 32
	// scratchMost is how much memory each of them keeps.
	scratchMost = 4 << 10
)

func newWorkers() *workers { return &workers{work: make(chan work), quit: make(chan struct{})} }

// run begins at once: in a goroutine that is idle, else in a new one.
func (w *workers) run(next work) {
	select {
	case w.work <- next:
	default:
		go w.serve(next)
	}
}

func (w *workers) serve(next work) {
	var scratch []byte
	for {
		if scratch = next.e.handle(next.q.t.server, scratch); cap(scratch) > scratchMost {
			scratch = nil
		}
		next.q.back(next.e)
		next.q.working.Done()
		next = work{}
		if w.idle.Add(1) > idleMost {
			w.idle.Add(-1)
			return
		}
		select {
		case next = <-w.work:
		case <-w.quit:
		}
		if w.idle.Add(-1); next.e == nil {
			return
		}
	}
}

// close ends the idle ones.
func (w *workers) close() { close(w.quit) }
