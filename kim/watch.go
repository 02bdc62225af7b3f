package kim

import (
	"slices"
	"sync"
)

// maxWaiting limits the changes that wait for one watcher.
const maxWaiting = 4096

// watchers are the watchers of a store.
type watchers struct {
	mu     sync.Mutex
	closed bool
	all    []*watcher
}

// watcher is a queue of changes, and the goroutine that empties it.
type watcher struct {
	mu      sync.Mutex
	waiting []Change
	wake    chan struct{} // capacity 1
	quit    chan struct{}
	once    sync.Once
	done    chan struct{}
}

// Watch is Store.Watch.
func (s *sqliteStore) Watch(f func(Change)) (stop func()) { return s.watchers.watch(f) }

func (ws *watchers) watch(f func(Change)) (stop func()) {
	w := &watcher{wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{})}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	if ws.closed {
		return func() {}
	}
	ws.all = append(ws.all, w)
	go w.run(f)
	return func() {
		ws.mu.Lock()
		ws.all = slices.DeleteFunc(ws.all, func(o *watcher) bool { return o == w })
		ws.mu.Unlock()
		w.stop()
	}
}

func (w *watcher) stop() {
	w.once.Do(func() { close(w.quit) })
	<-w.done
}

func (w *watcher) run(f func(Change)) {
	defer close(w.done)
	for {
		select {
		case <-w.quit:
			return
		case <-w.wake:
		}
		w.mu.Lock()
		changes := w.waiting
		w.waiting = nil
		w.mu.Unlock()
		for _, c := range changes {
			select {
			case <-w.quit:
				return
			default:
				f(c)
			}
		}
	}
}

// publish queues the changes of one commit; it never waits for a watcher.
func (ws *watchers) publish(changes []Change) {
	if len(changes) == 0 {
		return
	}
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for _, w := range ws.all {
		w.mu.Lock()
		if len(w.waiting)+len(changes) > maxWaiting {
			w.waiting = []Change{{Kind: AllChanged}}
		} else {
			w.waiting = append(w.waiting, changes...)
		}
		w.mu.Unlock()
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

func (ws *watchers) close() {
	ws.mu.Lock()
	ws.closed = true
	all := ws.all
	ws.all = nil
	ws.mu.Unlock()
	for _, w := range all {
		w.stop()
	}
}
