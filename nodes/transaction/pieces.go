package transaction

import (
	"cmp"
	"slices"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// The kernel cuts an asynchronous write (io_uring, AIO) into pieces and sends them side by side, so that they come here in any
// order. One that comes too early waits for those before it. Where they do not come, the next READ says so.

const (
	// piece is less than what the kernel cuts off an asynchronous read or write: 64 KiB, and up to a page less at its beginning.
	piece = 60 << 10
	// earlyMost is how far ahead of the others a piece may be: a write of this length has no piece that is refused.
	earlyMost = 4 << 20
	jumpsMost = 64
)

// early are bytes that came before those that they follow.
type early struct {
	off int64
	b   []byte
}

func (e early) end() int64 { return e.off + int64(len(e.b)) }

// mayWait says whether a WRITE can be a piece that is early: one or more whole pieces are missing between it and what is there.
func (c *inputCursor) mayWait(off int64, n int) (at int, ok bool) {
	at, _ = slices.BinarySearchFunc(c.early, off, func(e early, off int64) int { return cmp.Compare(e.off, off) })
	gap := func(n int64) bool { return n == 0 || n >= piece }
	switch {
	case c.set && (off-c.next < piece || off-c.next > earlyMost):
		return at, false
	case at > 0 && !gap(off-c.early[at-1].end()):
		return at, false
	case at < len(c.early):
		return at, n >= piece && gap(c.early[at].off-off-int64(n)) && c.early[len(c.early)-1].end()-off <= earlyMost
	}
	return at, true
}

// wait keeps a WRITE aside, which mayWait put at a place.
func (c *Channel) wait(cursor *inputCursor, at int, p []byte, off int64) error {
	if err := c.m.account.take(c.uid, held, int64(len(p))); err != nil {
		return err
	}
	if at > 0 && cursor.early[at-1].end() == off {
		cursor.early[at-1].b = Extend(cursor.early[at-1].b, p)
		return nil
	}
	cursor.early = slices.Insert(cursor.early, at, early{off, slices.Clone(p)})
	c.aside.Add(1)
	return nil
}

// follow hands on what waited for the WRITEs that are there now.
func (c *Channel) follow(cursor *inputCursor, r *request) error {
	for len(cursor.early) > 0 && cursor.early[0].off == cursor.next {
		b := cursor.early[0].b
		cursor.early = slices.Delete(cursor.early, 0, 1)
		c.aside.Add(-1)
		c.m.account.put(c.uid, held, -int64(len(b)))
		err := r.write(cursor.in, b)
		psa.Wipe(b)
		if err != nil {
			return err
		}
		cursor.Advance(cursor.next, len(b))
	}
	return nil
}

// beginAt is for a message of which no more can come from before what is there.
func (c *Channel) beginAt(cursor *inputCursor, r *request) error {
	if !cursor.set {
		cursor.set, cursor.next = true, cursor.early[0].off
	}
	return c.follow(cursor, r)
}

// settle is for whoever reads: nothing can come any more that a piece waits for.
func (c *Channel) settle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.cursors {
		cursor := &c.cursors[i]
		if len(cursor.early) == 0 {
			continue
		}
		// An error of it is the READ's too.
		_ = c.beginAt(cursor, c.req)
		if len(cursor.early) > 0 {
			c.req.fault(ErrHole)
			c.forget(cursor)
		}
	}
}

// forget wipes what waits.
func (c *Channel) forget(cursor *inputCursor) {
	for _, e := range cursor.early {
		psa.Wipe(e.b)
		c.m.account.put(c.uid, held, -int64(len(e.b)))
		c.aside.Add(-1)
	}
	cursor.early = nil
}

// jumps remembers where the kernel put the WRITEs of O_APPEND. It makes their offsets up, but those of one write's pieces follow
// each other: one that ends where another began that came before it is late.
type jumps struct {
	end    int64   // of the last WRITE
	starts []int64 // of those that did not follow the one before
	lost   int64   // the highest one that is not remembered any more
}

func (j *jumps) inOrder(off int64, n int) bool {
	if off < j.lost || slices.Contains(j.starts, off+int64(n)) {
		return false
	}
	if off != j.end || len(j.starts) == 0 {
		if len(j.starts) == jumpsMost {
			j.lost = max(j.lost, j.starts[0])
			j.starts = slices.Delete(j.starts, 0, 1)
		}
		j.starts = append(j.starts, off)
	}
	j.end = off + int64(n)
	return true
}
