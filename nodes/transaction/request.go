package transaction

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// phase of a request.
type phase int

const (
	collecting phase = iota
	computing
	answered
)

// request collects one request, runs its operation once and keeps the answer.
type request struct {
	m    *Machine
	spec *Spec
	make Make
	uid  uint32
	// parted: the inputs come by name, into the files of a directory slot
	parted bool

	mu       sync.Mutex
	phase    phase
	begun    bool // something was written, or an empty request was begun
	whole    bool // one call brought all of it, and nothing may follow
	feed     *feed
	digest   hash.Hash     // of the request's bytes; nil without one
	by       caller.Caller // who asked for the answer first
	held     int64         // bytes counted in the account
	poison   error         // every READ answers it
	outputs  map[string][]byte
	joined   []byte // the outputs as the plain file gives them
	err      error
	handed   bool              // the whole answer, or its error, was given out
	kept     [sha256.Size]byte // of the bytes that a call brought whose answer it did not get; zero without
	dropped  bool              // nobody will ask any more
	finished chan struct{}     // closed once there is an answer; nil: nobody waits for it
	op       Operation         // once an answer was asked for
	written  atomic.Int64      // bytes of it so far
	ended    atomic.Bool       // what it came to is known; what comes later is wiped
	known    atomic.Bool       // there is an answer

	room feed // what feed points to
}

var (
	errDropped = gate.Refuse(syscall.EBUSY, "another request replaced this one", "use a slot or an open file for one request at a time")
	errBusy    = gate.Refuse(syscall.EBUSY, "the answer to the last request was not read", "read it, or truncate the file to 0")
	// ErrHole refuses a WRITE that leaves bytes out.
	ErrHole = gate.Refuse(syscall.EINVAL, "this WRITE does not follow the one before",
		"write a message from its beginning to its end, without holes")
	errOrder = gate.Refuse(syscall.EINVAL, "the pieces of this asynchronous write came out of their order",
		"open the file without O_APPEND, or write at most 64 KiB at once")
	errNothing = gate.Refuse(syscall.ENODATA, "nothing was written", "write the request first, through the same open file or a slot")
)

// write collects bytes for an input; nil is the plain file's stream. A signal must not spoil the request: nothing here is interrupted.
func (r *request) write(in *Input, p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped {
		return errDropped
	}
	if r.poison != nil {
		return r.poison
	}
	if r.phase != collecting {
		return errBusy
	}
	if err := r.prepare(context.Background()); err != nil {
		return r.poisonWith(err)
	}
	r.begun = true
	if r.digest != nil {
		if in != nil {
			fmt.Fprintf(r.digest, "%s\x00", in.Name)
		}
		r.digest.Write(p)
	}
	before := r.feed.holds()
	if err := r.feed.write(in, p); err != nil {
		return r.poisonWith(err)
	}
	grown := r.feed.holds() - before
	if err := r.m.account.take(r.uid, held, grown); err != nil {
		return r.poisonWith(err)
	}
	r.held += grown
	r.written.Add(int64(len(p)))
	return nil
}

// prepare makes the operation at the first byte.
func (r *request) prepare(ctx context.Context) error {
	if r.feed != nil {
		return nil
	}
	op, err := r.make(ctx, r.uid)
	if err != nil {
		return err
	}
	r.digest = op.Digest()
	r.room = feed{spec: r.spec, parted: r.parted, op: op, limit: r.m.o.BodyLimit}
	r.feed = &r.room
	return nil
}

// empty begins a request without bytes.
func (r *request) empty() {
	r.mu.Lock()
	r.begun = true
	r.mu.Unlock()
}

// clear empties one input of a request that still collects.
func (r *request) clear(in *Input) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.feed == nil || r.phase != collecting {
		return
	}
	before := r.feed.holds()
	r.feed.clear(in)
	shrunk := before - r.feed.holds()
	r.hold(r.held - shrunk)
}

func (r *request) poisonWith(err error) error {
	if r.poison == nil {
		r.poison = err
		r.wipeInput()
	}
	return err
}

// fault makes every later READ answer err.
func (r *request) fault(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.phase == collecting {
		_ = r.poisonWith(err)
	}
}

func (r *request) wipeInput() {
	if r.feed != nil {
		r.feed.abort()
		r.feed = nil
	}
	r.hold(0)
}

// state is what a channel must know to take or refuse a WRITE. A request that one call brought counts as computing before it does.
func (r *request) state() (p phase, handed, poisoned bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p = r.phase; p == collecting && r.whole {
		p = computing
	}
	return p, r.handed, r.poison != nil
}

// answer runs the operation if it has not run, and waits for it as an interruptible system call should.
func (r *request) answer(ctx context.Context, who caller.Caller) error {
	op, begin, err := r.start(ctx, who)
	if err != nil {
		return err
	}
	if begin != nil {
		r.run(begin, who)
	}
	if !r.known.Load() {
		if err := r.m.Wait(ctx, who, r.over()); err != nil {
			return err
		}
	}
	if err := op.Present(ctx); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		r.handed = true
	}
	return r.err
}

// over is closed once there is an answer.
func (r *request) over() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.finished == nil {
		r.finished = make(chan struct{})
		if r.phase == answered {
			close(r.finished)
		}
	}
	return r.finished
}

// start sets the operation off, once: whoever gets what it was fed must run it.
func (r *request) start(ctx context.Context, who caller.Caller) (Operation, *feed, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.dropped:
		return nil, nil, errDropped
	case r.poison != nil:
		return nil, nil, r.poison
	case r.phase != collecting:
		return r.op, nil, nil
	case !r.begun:
		return nil, nil, errNothing
	}
	if err := r.prepare(ctx); err != nil {
		return nil, nil, r.poisonWith(err)
	}
	r.op = r.feed.op
	if err := r.op.Ready(who); err != nil {
		return nil, nil, err
	}
	if err := r.m.enter(); err != nil {
		return nil, nil, err
	}
	if err := r.feed.op.Authorize(ctx, who, r.feed.named); err != nil {
		r.m.running.Done()
		r.wipeInput()
		r.err, r.phase, r.handed = err, answered, true
		r.tell()
		return nil, nil, err
	}
	r.phase, r.by = computing, who
	return r.op, r.feed, nil
}

// tell lets whoever waits have the answer. The caller holds r.mu.
func (r *request) tell() {
	r.known.Store(true)
	if r.finished != nil {
		close(r.finished)
	}
}

// run runs the operation: at once where it is quick, which costs less than to hand it over, else in a goroutine of its own. The
// caller holds no lock.
func (r *request) run(f *feed, who caller.Caller) {
	begun := time.Now()
	switch outputs, passed, err := r.pass(f, who); {
	case err != nil:
		f.abort()
		r.end(f, begun, nil, err)
	case passed:
		r.end(f, begun, outputs, nil)
	default:
		r.m.workers.run(func() { r.compute(f, begun) })
	}
}

// pass runs what is quick; false: it is not.
func (r *request) pass(f *feed, who caller.Caller) (outputs map[string][]byte, passed bool, err error) {
	defer r.guard(f, &err)
	if !f.op.Quick(who) || f.holds() > quickMost {
		return nil, false, nil
	}
	return f.pass(context.Background())
}

// passes says whether a READ would be answered without a wait for anybody; false also where that cannot be told at once.
func (r *request) passes(who caller.Caller) bool {
	if r.known.Load() {
		return true
	}
	if !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	switch f := r.feed; {
	case r.phase != collecting:
		return r.phase == answered
	case r.dropped, r.poison != nil, !r.begun:
		return true
	case f == nil, f.parted: // what a slot names is looked up
		return false
	default:
		return f.op.Quick(who) && f.holds() <= quickMost && (f.run == nil && f.rejected == nil || f.quick())
	}
}

// guard turns a panic into the request's error, where it is deferred.
func (r *request) guard(f *feed, err *error) {
	if p := recover(); p != nil {
		*err = r.m.panicked(f.op.Path(), p)
	}
}

func (r *request) finish(f *feed, tell func(error)) (outputs map[string][]byte, err error) {
	defer r.guard(f, &err)
	return f.finish(context.Background(), tell)
}

// quickMost is how many bytes a quick operation may hold.
const quickMost = providers.QuickInput

// compute runs the operation to its end. In a goroutine of its own it is not ended by a signal that interrupts READ, or a client
// with a timer would start it anew for ever; and where the provider does not answer in time, the goroutine stays with it.
func (r *request) compute(f *feed, begun time.Time) {
	outputs, err := r.finish(f, func(err error) { r.end(f, begun, nil, err) })
	r.end(f, begun, outputs, err)
}

// end gives the answer to whoever waits for it, once.
func (r *request) end(f *feed, begun time.Time, outputs map[string][]byte, err error) {
	if r.ended.Swap(true) {
		wipeAll(outputs)
		return
	}
	defer r.m.running.Done()
	f.op.Ended(r.by, r.digest, begun, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.feed = nil
	r.outputs, r.err, r.phase = outputs, err, answered
	r.hold(sizeOf(outputs))
	if r.dropped {
		r.wipeAnswer()
	}
	r.tell()
}

// copyOut copies the answer from an offset into dest and marks it handed out at its end. The answer is the plain
// file's for part "", else the output of that name. more: it goes on. Only after answer returned nil.
func (r *request) copyOut(dest []byte, part string, from int64) (n int, more bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped {
		return 0, false, errDropped
	}
	b := r.outputs[part]
	if part == "" {
		b = r.plain()
	}
	if from < int64(len(b)) {
		n = copy(dest, b[from:])
	}
	if more = from+int64(n) < int64(len(b)); !more {
		r.handed = true
	}
	return n, more, nil
}

// plain joins the outputs as the plain file gives them.
func (r *request) plain() []byte {
	if len(r.spec.Outputs) == 1 {
		return r.outputs[r.spec.Outputs[0].Name]
	}
	if r.joined == nil {
		r.joined = make([]byte, 0, sizeOf(r.outputs))
		for _, o := range r.spec.Outputs {
			if !o.SlotOnly {
				r.joined = append(r.joined, r.outputs[o.Name]...)
			}
		}
		wipeAll(r.outputs) // nobody asks for them one by one
		r.outputs = nil
	}
	return r.joined
}

// length is how long its answer is for a part, or the plain file; false before there is one.
func (r *request) length(part string) (n int64, known bool) {
	if !r.known.Load() {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if part != "" {
		return int64(len(r.outputs[part])), true
	}
	if r.joined != nil || r.outputs == nil {
		return int64(len(r.joined)), true
	}
	for _, o := range r.spec.Outputs {
		if !o.SlotOnly {
			n += int64(len(r.outputs[o.Name]))
		}
	}
	return n, true
}

// hold has the request count for n bytes. An answer is counted whatever the bounds say: its request was, and what is refused is
// the next one.
func (r *request) hold(n int64) {
	r.m.account.put(r.uid, held, n-r.held)
	r.held = n
}

func sizeOf(outputs map[string][]byte) (n int64) {
	for _, b := range outputs {
		n += int64(len(b))
	}
	return n
}

// drop wipes what the request holds; an operation under way ends by itself and its answer is wiped then.
func (r *request) drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped {
		return
	}
	r.dropped = true
	switch r.phase {
	case collecting:
		r.wipeInput()
	case answered:
		r.wipeAnswer()
	}
}

func (r *request) wipeAnswer() {
	wipeAll(r.outputs)
	psa.Wipe(r.joined)
	r.outputs, r.joined = nil, nil
	r.hold(0)
}

func wipeAll(outputs map[string][]byte) {
	for _, b := range outputs {
		psa.Wipe(b)
	}
}
