package transaction

import "sync/atomic"

// workers are goroutines that run one operation after the other: they keep the stack that a signature takes, which a
// new goroutine has to grow each time.
type workers struct {
	work chan func()
	quit chan struct{}
	idle atomic.Int32
}

// idleMost bounds the goroutines that wait for work.
const idleMost = 32

func newWorkers() *workers {
	return &workers{work: make(chan func()), quit: make(chan struct{})}
}

// run runs f, at once: in a goroutine that is idle, else in a new one.
func (w *workers) run(f func()) {
	select {
	case w.work <- f:
	default:
		go w.serve(f)
	}
}

func (w *workers) serve(f func()) {
	for {
		f()
		f = nil // it holds a request
		if w.idle.Add(1) > idleMost {
			w.idle.Add(-1)
			return
		}
		select {
		case f = <-w.work:
		case <-w.quit:
		}
		if w.idle.Add(-1); f == nil {
			return
		}
	}
}

// close ends the idle ones, and the others after what they do. run may still be called.
func (w *workers) close() { close(w.quit) }
