package transaction

import (
	"sync"
	"testing"
	"time"
)

// TestWorkers: whatever is given to them runs at once, however much runs already; few of them stay, and none at the end.
func TestWorkers(t *testing.T) {
	w := newWorkers()
	for range 3 {
		const most = 4 * idleMost
		var all, running sync.WaitGroup
		release := make(chan struct{})
		running.Add(most)
		for range most {
			all.Add(1)
			w.run(func() {
				running.Done()
				<-release
				all.Done()
			})
		}
		running.Wait() // all of them at the same time
		close(release)
		all.Wait()
	}
	wait := func(n int32) {
		t.Helper()
		for deadline := time.Now().Add(10 * time.Second); w.idle.Load() != n; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("%d are idle, not %d", w.idle.Load(), n)
			}
		}
	}
	wait(idleMost)
	w.close()
	wait(0)
	done := make(chan struct{})
	w.run(func() { close(done) })
	<-done
}
