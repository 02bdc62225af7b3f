package nodes

import (
	"sync"
	"syscall"
	"time"
)

// boxTime is how long a complete request waits for its reader.
const boxTime = 5 * time.Second

// boxes are the drop boxes of all operation files: requests that were written through a write-only open and wait for
// a read-only open of the same process lineage.
//
// The rules are there so that nobody gets an answer to a request that was not its own, at the price of a refusal.
// Every open for writing is registered, also one that writes nothing: otherwise its job would read a sibling's
// answer. A reader may claim the requests of its uid whose writer is the reader or an ancestor of it, or has exited and
// whose parent is, if everybody between began after the request was complete: so two shells under one parent do not
// meet. One that is alone and was never seen together with another is delivered; otherwise all are marked, one is
// spent, and the reader is refused: then the marked ones are always as many as the readers that have yet to come.
type boxes struct {
	t   *Tree
	mu  sync.Mutex
	box map[uint64][]*entry
}

// entry is one request in a drop box.
type entry struct {
	ino     uint64
	uid     uint32
	writer  *lineage
	channel *channel
	closed  bool
	since   moment // when it was registered or completed
	mixed   bool
	timer   *time.Timer
	out     bool // no longer in the box
	release func()
}

// register puts the request of an open for writing into the box.
func (b *boxes) register(ino uint64, uid uint32, w *lineage, c *channel) (*entry, error) {
	if err := b.t.account.change(uid, 1, 0); err != nil {
		return nil, err
	}
	e := &entry{ino: ino, uid: uid, writer: w, channel: c, since: now(),
		release: sync.OnceFunc(func() { _ = b.t.account.change(uid, -1, 0) })}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.box == nil {
		b.box = map[uint64][]*entry{}
	}
	if self, ok := w.self(); ok && w.threads == 1 {
		// a process with one thread may change its mind; a child that still wants the old answer was born too early
		// for the new one
		for _, old := range b.box[ino] {
			if o, ok := old.writer.self(); ok && o == self && old.uid == uid && old.closed {
				e.mixed = old.mixed
				b.remove(old)
				old.channel.seal(errReplaced)
				old.channel.close()
				break
			}
		}
	}
	b.box[ino] = append(b.box[ino], e)
	return e, nil
}

// reopen takes completeness back: another WRITE came after a flush.
func (b *boxes) reopen(e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e.closed = false
	if e.timer != nil {
		e.timer.Stop()
	}
}

// complete marks the request as whole, unless its writer is being killed in the middle of it.
func (b *boxes) complete(e *entry, killed bool) {
	if killed {
		e.channel.fault(refuse(syscall.EINVAL, "the writer was killed before the end of its message", "write the message again"))
	}
	at := now()
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.out {
		return
	}
	e.closed, e.since = true, at
	if e.timer == nil {
		e.timer = time.AfterFunc(boxTime, func() { b.expire(e) })
		return
	}
	e.timer.Reset(boxTime)
}

// release is the end of the writer's handle.
func (b *boxes) release(e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.out || e.closed {
		return
	}
	// never flushed: the kernel gave up on the writer
	b.remove(e)
	e.channel.close()
}

// remove takes e out of its box. The caller holds b.mu.
func (b *boxes) remove(e *entry) {
	list := b.box[e.ino]
	for i, x := range list {
		if x == e {
			b.box[e.ino] = append(list[:i:i], list[i+1:]...)
			break
		}
	}
	if len(b.box[e.ino]) == 0 {
		delete(b.box, e.ino)
	}
	e.out = true
	if e.timer != nil {
		e.timer.Stop()
	}
	e.release()
}

// expire ends a request that nobody asked for. Whoever might ask for it now must not find another's instead.
func (b *boxes) expire(e *entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.out || !e.closed {
		return
	}
	b.remove(e)
	for _, x := range b.box[e.ino] {
		if x.uid == e.uid && related(e.writer, x.writer) {
			x.mixed = true
		}
	}
	e.channel.seal(errExpired)
	e.channel.close()
}

// related says whether some reader could claim requests of both writers.
func related(a, b *lineage) bool { return reaches(a, b) || reaches(b, a) }

// reaches says whether a writer's own process, or the parent of one that has exited, is among b and its ancestors.
func reaches(a, b *lineage) bool {
	for i := 0; i < 2 && i < len(a.chain); i++ {
		if i == 1 && a.chain[0].alive() {
			return false
		}
		if b.at(a.chain[i]) >= 0 {
			return true
		}
	}
	return false
}

// claimable says whether the reader is of e's lineage, and whether it began late enough to mean e.
func (e *entry) claimable(r *lineage) (related, late bool) {
	for i := 0; i < 2 && i < len(e.writer.chain); i++ {
		j := r.at(e.writer.chain[i])
		if j < 0 {
			continue
		}
		if i == 1 && e.writer.chain[0].alive() {
			return false, false // a living writer shares with its own descendants only
		}
		return true, r.bornAfter(j, e.since)
	}
	return false, false
}

// claim hands the one request that the reader's lineage made over to it.
func (b *boxes) claim(ino uint64, uid uint32, r *lineage) (*channel, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var group []*entry
	var e *entry
	for _, x := range b.box[ino] {
		if x.uid != uid {
			continue
		}
		// a request that the reader came too early for is not given to it, but makes the others doubtful
		related, late := x.claimable(r)
		if related {
			group = append(group, x)
		}
		if late && e == nil {
			e = x
		}
	}
	if e == nil {
		return nil, errNothing
	}
	alone := len(group) == 1 && !e.mixed
	if !alone {
		for _, x := range group {
			x.mixed = true
		}
	}
	b.remove(e)
	whole := e.closed
	begun := e.channel.seal(errClaimed)
	switch {
	case alone && whole && begun:
		return e.channel, nil
	case alone && !begun:
		return nil, errNothing
	}
	// dropped, so that a prefix is never signed and its writer is told
	e.channel.close()
	if alone {
		return nil, refuse(syscall.EBUSY, "the request is still being written", "close it before you read")
	}
	return nil, refuse(syscall.EBUSY, "more than one request waits here for this process", "open the file once for writing and reading, or use a slot")
}

var (
	errClaimed  = refuse(syscall.EBUSY, "somebody has begun to read the answer", "write the whole message before you read")
	errExpired  = refuse(syscall.EBUSY, "nobody asked for the answer in time", "open the file anew")
	errReplaced = refuse(syscall.EBUSY, "this process has begun another request", "open the file anew")
)

// seal refuses further WRITEs with why, and says whether anything was written.
func (c *channel) seal(why error) (begun bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sealed = why
	return c.req != nil
}

// drop ends the requests of the boxes that match.
func (b *boxes) drop(match func(ino uint64) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ino, list := range b.box {
		if !match(ino) {
			continue
		}
		for _, e := range append([]*entry(nil), list...) {
			b.remove(e)
			e.channel.seal(gone(errAbsent))
			e.channel.close()
		}
	}
}

func (b *boxes) clear() { b.drop(func(uint64) bool { return true }) }
