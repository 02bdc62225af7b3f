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

// TestForgottenSizes: what the kernel believes of a file that is forgotten, since there are too many, is not what it is told when
// somebody reads from the file again: it must find that the file grows.
func TestForgottenSizes(t *testing.T) {
	t.Parallel()
	var s sizes
	held := func(ino uint64) (h *handle, r *reading) {
		h = &handle{n: &symlinkNode{base: base{ino: ino}}}
		r, _ = s.note(h, 0)
		return h, r
	}
	h, r := held(1)
	var told int64
	for range 5 {
		_, told, _ = s.next(r)
	}
	for i := range uint64(idleMost) {
		other, _ := held(2 + i)
		s.drop(other)
	}
	s.drop(h)
	if len(s.inodes) != idleMost {
		t.Fatalf("%d inodes are kept", len(s.inodes))
	}
	_, r = held(1)
	if _, again, _ := s.next(r); again <= told {
		t.Errorf("the file is to grow to %d, but has %d bytes", again, told)
	}
}
