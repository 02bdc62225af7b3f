package transaction

import (
	"sync"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
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
//
// Everybody needs the lock, so nothing that may take long happens under it: whether a writer lives is asked before, since a look
// into /proc may take long, and a channel is sealed and closed after its entry is out of the box, since a WRITE that holds the
// channel may wait for a device.
type boxes struct {
	m   *Machine
	mu  sync.Mutex
	box map[uint64][]*entry
}

// entry is one request in a drop box.
type entry struct {
	ino     uint64
	uid     uint32
	writer  *caller.Lineage
	access  *gate.Access
	channel *Channel
	closed  bool
	since   caller.Moment // when it was registered or completed
	mixed   bool
	timer   *time.Timer
	out     bool // no longer in the box
	release func()
}

var (
	errClaimed   = gate.Refuse(syscall.EBUSY, "the answer is being read already", "write the whole message before you read")
	errExpired   = gate.Refuse(syscall.EBUSY, "nobody read the answer in time", "open the file again")
	errReplaced  = gate.Refuse(syscall.EBUSY, "this process has made another request", "open the file again")
	errUnwhole   = gate.Refuse(syscall.EBUSY, "the request is still being written", "close it before you read")
	errAmbiguous = gate.Refuse(syscall.EBUSY, "this process has more than one request waiting",
		"open the file once for writing and reading, or use a slot")
	errKilled = gate.Refuse(syscall.EINVAL, "the writer was killed before the end of its message", "write the message again")
	errGone   = psa.Errorf(psa.StatusRevoked, "the key, or this file of it, is gone")
)

// register puts the request of an open for writing into the box.
func (b *boxes) register(ino uint64, who caller.Caller, access *gate.Access, c *Channel) (*entry, error) {
	release, err := b.m.account.count(who.UID)
	if err != nil {
		return nil, err
	}
	w := b.m.o.Procs.Writer(who)
	e := &entry{ino: ino, uid: who.UID, writer: w, access: access, channel: c, since: caller.Now(), release: release}
	if old := b.add(e); old != nil {
		old.end(errReplaced)
	}
	return e, nil
}

// add gives the request that e replaces, nil where there is none.
func (b *boxes) add(e *entry) (old *entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.box == nil {
		b.box = map[uint64][]*entry{}
	}
	if self, ok := e.writer.Self(); ok && e.writer.Threads == 1 {
		old = b.replace(e, self)
	}
	b.box[e.ino] = append(b.box[e.ino], e)
	return old
}

// replace takes out the last request of the same process: one with one thread may change its mind, and a child that still
// wants the old answer was born too early for the new one. The caller holds b.mu.
func (b *boxes) replace(e *entry, self caller.Process) *entry {
	for _, old := range b.box[e.ino] {
		if o, ok := old.writer.Self(); ok && o == self && old.uid == e.uid && old.closed {
			e.mixed = old.mixed
			b.remove(old)
			return old
		}
	}
	return nil
}

// end gives up the request of an entry that is out of its box; why is for its writer.
func (e *entry) end(why error) {
	e.channel.seal(why)
	e.channel.close()
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
		e.channel.fault(errKilled)
	}
	at := caller.Now()
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
	if b.withdraw(e) {
		e.channel.close()
	}
}

// withdraw takes out a request that was never flushed: the kernel gave up on its writer.
func (b *boxes) withdraw(e *entry) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e.out || e.closed {
		return false
	}
	b.remove(e)
	return true
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

// living is what is known of writers; a process that has ended stays so.
type living map[caller.Process]bool

// settle calls plan with the lock held, and then what it plans; but where plan needs to know of a writer whether it lives,
// that is asked first, and plan is called again. false: the box changes faster than that.
func (b *boxes) settle(uid uint32, plan func(alive func(caller.Process) bool) (act func())) bool {
	known := living{}
	for range 8 {
		unknown := b.try(known, plan)
		if unknown == nil {
			return true
		}
		for _, p := range unknown {
			known[p] = b.m.o.Procs.Alive(caller.Caller{UID: uid}, p)
		}
	}
	return false
}

func (b *boxes) try(known living, plan func(alive func(caller.Process) bool) (act func())) (unknown []caller.Process) {
	b.mu.Lock()
	defer b.mu.Unlock()
	act := plan(func(p caller.Process) bool {
		lives, ok := known[p]
		if !ok {
			unknown = append(unknown, p)
		}
		return lives
	})
	if unknown == nil {
		act()
	}
	return unknown
}

// doubt marks all requests of a user in a box. It follows a settle that failed.
func (b *boxes) doubt(ino uint64, uid uint32) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, x := range b.box[ino] {
		x.mixed = x.mixed || x.uid == uid
	}
}

// expire ends a request that nobody asked for. Whoever might ask for it now must not find another's instead.
func (b *boxes) expire(e *entry) {
	expired := false
	settled := b.settle(e.uid, func(alive func(caller.Process) bool) func() {
		if e.out || !e.closed {
			return func() {}
		}
		var group []*entry
		for _, x := range b.box[e.ino] {
			if x != e && x.uid == e.uid && (reaches(e.writer, x.writer, alive) || reaches(x.writer, e.writer, alive)) {
				group = append(group, x)
			}
		}
		return func() {
			for _, x := range group {
				x.mixed = true
			}
			b.remove(e)
			expired = true
		}
	})
	if expired {
		e.end(errExpired)
	}
	if settled {
		return
	}
	b.doubt(e.ino, e.uid)
	b.mu.Lock()
	defer b.mu.Unlock()
	if !e.out && e.closed {
		e.timer.Reset(boxTime)
	}
}

// reaches says whether a writer's own process, or the parent of one that has exited, is among b and its ancestors: then
// some reader could claim requests of both.
func reaches(a, b *caller.Lineage, alive func(caller.Process) bool) bool {
	for i := 0; i < 2 && i < len(a.Chain); i++ {
		if b.At(a.Chain[i]) >= 0 {
			return i == 0 || !alive(a.Chain[0])
		}
	}
	return false
}

// claimable says whether the reader is of e's lineage, and whether it began late enough to mean e. A living writer shares
// with its own descendants only.
func (e *entry) claimable(r *caller.Lineage, alive func(caller.Process) bool) (related, late bool) {
	for i := 0; i < 2 && i < len(e.writer.Chain); i++ {
		j := r.At(e.writer.Chain[i])
		if j < 0 {
			continue
		}
		if i == 1 && alive(e.writer.Chain[0]) {
			return false, false
		}
		return true, r.BornAfter(j, e.since)
	}
	return false, false
}

// claim hands the one request that the reader's lineage made over to it, with its writer's access.
func (b *boxes) claim(ino uint64, uid uint32, r *caller.Lineage) (*Channel, *gate.Access, error) {
	var e *entry
	var alone bool
	settled := b.settle(uid, func(alive func(caller.Process) bool) func() {
		var group []*entry
		var first *entry
		for _, x := range b.box[ino] {
			if x.uid != uid {
				continue
			}
			// a request that the reader came too early for is not given to it, but makes the others doubtful
			related, late := x.claimable(r, alive)
			if related {
				group = append(group, x)
			}
			if late && first == nil {
				first = x
			}
		}
		return func() {
			if e = first; e != nil {
				alone = b.spend(e, group)
			}
		}
	})
	if !settled {
		b.doubt(ino, uid)
		return nil, nil, errAmbiguous
	}
	if e == nil {
		return nil, nil, errNothing
	}
	if err := b.deliver(e, alone); err != nil {
		return nil, nil, err
	}
	return e.channel, e.access, nil
}

// spend takes e, one of a group that a reader may mean, out of the box. alone: it cannot have meant another one. The caller
// holds b.mu.
func (b *boxes) spend(e *entry, group []*entry) (alone bool) {
	alone = len(group) == 1 && !e.mixed
	if !alone {
		for _, x := range group {
			x.mixed = true
		}
	}
	b.remove(e)
	return alone
}

// deliver says why a reader does not get the request that was spent for it. A WRITE that came before the seal has taken
// completeness back.
func (b *boxes) deliver(e *entry, alone bool) error {
	begun := e.channel.seal(errClaimed)
	whole := b.whole(e)
	if alone && whole && begun {
		return nil
	}
	if alone && !begun {
		return errNothing
	}
	// dropped, so that a prefix is never signed and its writer is told
	e.channel.close()
	if alone {
		return errUnwhole
	}
	return errAmbiguous
}

func (b *boxes) whole(e *entry) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return e.closed
}

// drop ends the requests of the boxes that match.
func (b *boxes) drop(match func(ino uint64) bool) {
	for _, e := range b.take(match) {
		e.end(errGone)
	}
}

func (b *boxes) take(match func(ino uint64) bool) (taken []*entry) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for ino, list := range b.box {
		if match(ino) {
			taken = append(taken, list...)
		}
	}
	for _, e := range taken {
		b.remove(e)
	}
	return taken
}
