package nodes

import (
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/nodes/gate"
)

// TestInUse: whoever opens a draft's file keeps it, or is told that it expires; never neither, however close they come.
func TestInUse(t *testing.T) {
	t.Parallel()
	var u inUse
	const key = 7
	var open, going atomic.Int32
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 2000 {
				leave, err := u.enter(key)
				var r *gate.Refusal
				if errors.As(err, &r) && r.Errno == syscall.EBUSY {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				open.Add(1)
				if going.Load() > 0 {
					t.Error("a file was opened of a draft that expires")
				}
				open.Add(-1)
				leave()
			}
		})
		all.Go(func() {
			for range 2000 {
				done, unused := u.expire(key)
				if !unused {
					continue
				}
				going.Add(1)
				if open.Load() > 0 {
					t.Error("a draft expires that somebody has open")
				}
				going.Add(-1)
				done()
			}
		})
	}
	all.Wait()
	if len(u.open) != 0 || len(u.going) != 0 {
		t.Errorf("%d and %d are left", len(u.open), len(u.going))
	}
}
