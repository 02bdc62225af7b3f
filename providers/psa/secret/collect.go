package secret

import (
	"runtime"
	"sync/atomic"
	"time"
)

// collectAfter is how long secrets that were let go of wait for the collector at most: it takes a processor for a moment, and
// whoever destroys keys must not have it run all the time.
const collectAfter = 5 * time.Second

var collecting atomic.Bool

// Dropped says that a key was let go of: what Do allocated for it is erased soon, also where nothing else is going on.
func Dropped() {
	if !Erases || !collecting.CompareAndSwap(false, true) {
		return
	}
	time.AfterFunc(collectAfter, func() {
		collecting.Store(false)
		runtime.GC()
	})
}
