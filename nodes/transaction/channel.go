package transaction

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/parsecfs/parsecfs/nodes/caller"
)

// Cursor keeps writers in line: the first WRITE sets the base and each next one must follow it.
type Cursor struct {
	set   bool
	next  int64
	jumps jumps // of O_APPEND
}

// Follows says whether a WRITE of n bytes at off continues the stream. appends: O_APPEND ignores offsets, since the kernel takes
// them from a size that it made up; pieces of one write that come out of their order are told all the same.
func (c *Cursor) Follows(off int64, n int, appends bool) bool {
	if appends {
		return c.jumps.inOrder(off, n)
	}
	return !c.set || off == c.next
}

// Advance is behind a WRITE of n bytes at off.
func (c *Cursor) Advance(off int64, n int) {
	if !c.set {
		c.set, c.next = true, off
	}
	c.next += int64(n)
}

// inputCursor is the cursor of one input; nil is the plain file's stream.
type inputCursor struct {
	in *Input
	Cursor
	early []early // by their offsets
}

// Channel is where requests follow each other, one at a time.
type Channel struct {
	m      *Machine
	spec   *Spec
	make   Make
	uid    uint32
	parted bool
	ino    uint64

	base   atomic.Int64            // where the last answer began for who read it
	latest atomic.Pointer[request] // req, for who must not wait for a WRITE
	aside  atomic.Int32            // pieces that wait for those before them

	mu      sync.Mutex
	req     *request // nil: nothing was begun
	cursors []inputCursor
	writes  uint64 // that were taken
	sealed  error  // why no more WRITEs are taken

	sized sized // under sizes.mu

	// Most channels have one request and one cursor, whose memory is here; what was used is not used again.
	room  *request
	stand [1]inputCursor
}

// File is what a channel is opened for.
type File struct {
	Ino  uint64
	Spec *Spec
	Make Make
}

func (m *Machine) channel(f File, uid uint32, parted bool) *Channel {
	c := &Channel{}
	c.open(m, f, uid, parted)
	return c
}

func (c *Channel) open(m *Machine, f File, uid uint32, parted bool) {
	c.m, c.spec, c.make, c.uid, c.parted, c.ino = m, f.Spec, f.Make, uid, parted, f.Ino
	c.cursors = c.stand[:0]
}

func (c *Channel) begin() *request {
	r := c.room
	if c.room = nil; r == nil {
		r = &request{}
	}
	r.m, r.spec, r.make, r.uid, r.parted, r.begun = c.m, c.spec, c.make, c.uid, c.parted, c.spec.bare()
	c.req = r
	c.latest.Store(c.req)
	c.m.sizes.add(c)
	return c.req
}

// current is the request that a change of an input belongs to. In the plain file one whose answer was handed out is over;
// in a slot one that was answered at all, so that no old input slips into a new request.
func (c *Channel) current() (*request, error) {
	if c.req == nil {
		return c.begin(), nil
	}
	switch phase, handed, poisoned := c.req.state(); {
	case phase == computing, phase == answered && !handed && !c.parted:
		return nil, errBusy
	case phase == answered && !poisoned:
		c.reset()
		return c.begin(), nil
	}
	return c.req, nil
}

// reset ends the request without a successor.
func (c *Channel) reset() {
	if c.req != nil {
		c.req.drop()
		c.latest.Store(nil)
		c.m.sizes.remove(c)
	}
	for i := range c.cursors {
		c.forget(&c.cursors[i])
	}
	c.req, c.cursors = nil, c.cursors[:0]
}

// placed is a WRITE that was taken.
type placed struct {
	number uint64 // of the WRITE
	end    int64  // of all that was written so far
}

// write takes one WRITE for an input; nil is the plain file's stream. due: a message can begin at its offset.
func (c *Channel) write(in *Input, p []byte, off int64, appends, due bool) (placed, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed != nil {
		return placed{}, c.sealed
	}
	r, err := c.current()
	if err != nil {
		return placed{}, err
	}
	cursor := c.cursor(in)
	end, err := c.take(r, cursor, p, off, appends, due)
	if err != nil {
		c.forget(cursor)
		return placed{}, err
	}
	c.writes++
	return placed{c.writes, end}, nil
}

// take hands a WRITE on, or has it wait for others.
func (c *Channel) take(
	r *request, cursor *inputCursor, p []byte, off int64, appends, due bool,
) (end int64, err error) {
	_, _, poisoned := r.state()
	waiting := len(cursor.early)
	if !cursor.set && waiting > 0 && off+int64(len(p))-cursor.early[0].off > earlyMost {
		if err := c.beginAt(cursor, r); err != nil {
			return 0, err
		}
	}
	due = due && !cursor.set && (waiting == 0 || off < cursor.early[0].off)
	if !poisoned && !appends && !due && (!cursor.set || off != cursor.next) {
		at, ok := cursor.mayWait(off, len(p))
		if !ok {
			r.fault(ErrHole)
			return 0, ErrHole
		}
		if err := c.wait(cursor, at, p, off); err != nil {
			r.fault(err)
			return 0, err
		}
		return cursor.early[len(cursor.early)-1].end(), nil
	}
	if !poisoned && !cursor.Follows(off, len(p), appends) {
		err := ErrHole
		if appends {
			err = errOrder
		}
		r.fault(err)
		return 0, err
	}
	if err := r.write(cursor.in, p); err != nil {
		return 0, err
	}
	cursor.Advance(off, len(p))
	if appends {
		return off + int64(len(p)), nil
	}
	return cursor.next, c.follow(cursor, r)
}

func (c *Channel) cursor(in *Input) *inputCursor {
	for i := range c.cursors {
		if c.cursors[i].in == in {
			return &c.cursors[i]
		}
	}
	c.cursors = append(c.cursors, inputCursor{in: in})
	return &c.cursors[len(c.cursors)-1]
}

// empty empties one input of a directory slot; a request that cannot go on begins anew.
func (c *Channel) empty(in *Input) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	r, err := c.current()
	if err != nil {
		return err
	}
	if _, _, poisoned := r.state(); poisoned {
		c.reset()
		return nil
	}
	cursor := c.cursor(in)
	c.forget(cursor)
	cursor.Cursor = Cursor{}
	r.clear(in)
	return nil
}

// truncate begins anew: with an empty request where an open handle asks for it, else with none. After an asynchronous write that
// failed the kernel truncates by itself, which asks for nothing.
func (c *Channel) truncate(empty bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed != nil {
		return c.sealed
	}
	if c.req != nil {
		phase, _, poisoned := c.req.state()
		if phase == computing {
			return errBusy
		}
		empty = empty && !poisoned
	}
	c.reset()
	if empty {
		c.begin().empty()
	}
	return nil
}

// pending is the request that a READ asks for, nil where there is none.
func (c *Channel) pending() *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.req == nil && c.spec.bare() {
		c.begin()
	}
	return c.req
}

// begun says whether a request is under way, or answered.
func (c *Channel) begun() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.req != nil
}

// fault poisons the request under way.
func (c *Channel) fault(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.req != nil {
		c.req.fault(err)
	}
}

// seal refuses further WRITEs with why, and says whether anything was written.
func (c *Channel) seal(why error) (begun bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sealed = why
	return c.req != nil
}

func (c *Channel) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset()
}

// replies brings READ offsets to offsets in the answer: the first READ sets the base, because a client that shares one
// position writes and reads on from there, and offset 0 sets it again.
//
// The kernel cuts an asynchronous read into pieces, which may come in any order: the first one that comes may be one further on.
type replies struct {
	req     *request
	written int64 // behind the last WRITE, where a client that shares the position reads; 0 without one
	base    int64
	next    int64 // where the last READ ended, if the answer goes on there
	last    int64 // where the last READ ended
	pieces  bool  // a READ was not what follows, and may be of an asynchronous one that begins elsewhere
}

func (p *replies) read(r *request, part string, dest []byte, off int64) (n int, more bool, err error) {
	if p.req != r && p.next != 0 && off == p.next {
		// the rest is gone, and the beginning of another answer must not follow this one's
		p.next = 0
		return 0, false, errDropped
	}
	if p.behind(r, part, off) {
		return 0, true, nil
	}
	if p.req != r {
		p.req, p.base, p.last, p.pieces = r, p.begin(off), -1, false
	}
	p.pieces = p.pieces || off >= piece && off != p.last && (off != p.written || off%page == 0)
	if off == 0 && p.base != 0 {
		if p.pieces {
			return 0, false, errBefore
		}
		p.base = 0
	}
	if off < p.base {
		return 0, false, errBefore
	}
	n, more, err = r.copyOut(dest, part, off-p.base)
	if p.next = 0; n > 0 {
		p.next = off + int64(n)
	}
	p.last = off + int64(n)
	return n, more, err
}

// behind says whether a piece lies behind the answer, wherever it began.
func (p *replies) behind(r *request, part string, off int64) bool {
	n, _ := r.length(part)
	return off >= piece && n > 0 && off >= n && off-p.written >= n
}

// begin is where an answer begins whose first READ is at off.
func (p *replies) begin(off int64) int64 {
	switch {
	case off-p.written >= piece:
		return p.written
	case off < p.written && off >= piece:
		return 0
	}
	return off
}

// anew is for whoever begins a request instead of reading on.
func (p *replies) anew() { p.next, p.written = 0, max(p.written, p.last) }

// read answers from c.
func (c *Channel) read(ctx context.Context, who caller.Caller) (*request, error) {
	c.settle()
	r := c.pending()
	if r == nil {
		return nil, errNothing
	}
	return r, r.answer(ctx, who)
}
