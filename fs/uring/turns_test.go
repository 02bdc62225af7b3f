package uring

import "testing"

// TestTurnsOfQueue: who has one request waits for one of each other user at most, and everybody's own stay in their order.
func TestTurnsOfQueue(t *testing.T) {
	t.Parallel()
	var q turns
	entries := make([]entry, 7)
	for i, uid := range []uint32{1, 1, 1, 1, 2, 3, 1} {
		entries[i].header = make([]byte, headerStride)
		entries[i].index = i
		entries[i].head().Uid = uid
		q.add(&entries[i])
	}
	for i, want := range []int{0, 4, 5, 1, 2, 3, 6} {
		if e := q.next(); e == nil || e.index != want {
			t.Fatalf("turn %d is that of %+v; want entry %d", i, e, want)
		}
	}
	if e := q.next(); e != nil || q.n != 0 || len(q.of) != 0 {
		t.Errorf("%+v is left", e)
	}
}
