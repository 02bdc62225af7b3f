package nodes

import (
	"context"
	"fmt"
	"hash"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// signatureMost bounds a signature that is read in front of a message: RSA-8192 has 1024 bytes, SLH-DSA 49 856.
const signatureMost = 64 << 10

// tagMost is how much longer a ciphertext may be than its plaintext.
const tagMost = 64

// phase of a request.
type phase int

const (
	collecting phase = iota
	computing
	answered
)

// request collects one request, runs its operation once and keeps the answer.
type request struct {
	t   *Tree
	at  place
	row *row
	uid uint32
	// parted: the inputs come by name, into the files of a directory slot
	parted bool

	mu       sync.Mutex
	phase    phase
	begun    bool // something was written, or an empty request was begun
	feed     *feed
	name     hash.Hash   // of the request's bytes, for the audit trail; nil without one
	by       fuse.Caller // who asked for the answer first
	held     int64       // bytes counted in the account
	poison   error       // every READ answers it
	outputs  map[string][]byte
	joined   []byte // the outputs as the plain file gives them
	err      error
	handed   bool // the whole answer, or its error, was given out
	dropped  bool // nobody will ask any more
	finished chan struct{}
	ended    atomic.Bool // what it came to is known; what comes later is wiped
}

func (t *Tree) newRequest(at place, r *row, uid uint32) *request {
	return &request{t: t, at: at, row: r, uid: uid, begun: r.bare(), finished: make(chan struct{})}
}

// write collects bytes for the named input; "" is the plain file's stream. The caller holds no lock of r.
func (r *request) write(ctx context.Context, name string, p []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped {
		return errDropped
	}
	if r.poison != nil {
		return r.poison
	}
	if r.phase != collecting {
		return refuse(syscall.EBUSY, "the answer to the last request was not read", "read it, or truncate to 0")
	}
	if err := r.prepare(ctx); err != nil {
		return r.poisonWith(err)
	}
	r.begun = true
	if r.name != nil {
		if name != "" {
			fmt.Fprintf(r.name, "%s\x00", name)
		}
		r.name.Write(p)
	}
	before := r.feed.holds()
	if err := r.feed.write(ctx, name, p); err != nil {
		return r.poisonWith(err)
	}
	grown := r.feed.holds() - before
	if err := r.t.account.change(r.uid, 0, grown); err != nil {
		return r.poisonWith(err)
	}
	r.held += grown
	return nil
}

// prepare looks the key up at the first byte.
func (r *request) prepare(ctx context.Context) error {
	if r.feed != nil {
		return nil
	}
	k, err := r.t.keyOf(ctx, r.at.key)
	if err != nil {
		return err
	}
	r.name = r.t.auditing.name()
	r.feed = &feed{r: r, key: k, attributes: k.Attributes, limit: r.t.options.BodyLimit, named: map[string][]byte{}}
	return nil
}

// gone turns the absence of a key that was open into what its holders are told.
func gone(err error) error {
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		return psa.Errorf(psa.StatusRevoked, "the key was destroyed")
	}
	return err
}

// empty begins a request without bytes.
func (r *request) empty() {
	r.mu.Lock()
	r.begun = true
	r.mu.Unlock()
}

// clear empties one input of a request that still collects.
func (r *request) clear(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.feed == nil || r.phase != collecting {
		return
	}
	before := r.feed.holds()
	if name == r.feed.main().name {
		wipe(r.feed.buf)
		r.feed.buf = nil
	} else {
		wipe(r.feed.named[name])
		delete(r.feed.named, name)
	}
	shrunk := before - r.feed.holds()
	_ = r.t.account.change(r.uid, 0, -shrunk)
	r.held -= shrunk
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
	_ = r.t.account.change(r.uid, 0, -r.held)
	r.held = 0
}

// state is what a channel must know to take or refuse a WRITE.
func (r *request) state() (p phase, handed, poisoned, begun bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.phase, r.handed, r.poison != nil, r.begun
}

// answer runs the operation if it has not run, and waits for it as an interruptible system call should.
func (r *request) answer(ctx context.Context) error {
	r.mu.Lock()
	switch {
	case r.dropped:
		defer r.mu.Unlock()
		return errDropped
	case r.poison != nil:
		defer r.mu.Unlock()
		return r.poison
	case r.phase == collecting && !r.begun:
		defer r.mu.Unlock()
		return refuse(syscall.ENODATA, "nothing was written", "write the request first; one open file is one transaction")
	case r.phase == collecting:
		if !r.t.begin() {
			defer r.mu.Unlock()
			return errLeaving
		}
		if err := r.prepare(ctx); err != nil {
			r.t.running.Done()
			defer r.mu.Unlock()
			return r.poisonWith(err)
		}
		if err := r.t.auditing.ready(); err != nil {
			r.t.running.Done()
			defer r.mu.Unlock()
			return err
		}
		if r.row.names != nil {
			if err := r.row.names(ctx, r.feed); err != nil {
				r.t.running.Done()
				defer r.mu.Unlock()
				r.wipeInput()
				r.err, r.phase, r.handed = err, answered, true
				close(r.finished)
				return err
			}
		}
		r.phase, r.by = computing, caller(ctx)
		f := r.feed
		r.t.workers.run(func() { r.compute(f) })
	}
	r.mu.Unlock()
	if err := wait(ctx, r.finished); err != nil {
		return err
	}
	if _, err := r.t.keyOf(ctx, r.at.key); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		r.handed = true
	}
	return r.err
}

// compute runs the operation in a goroutine of its own: a signal that interrupts READ must not end it, or a client
// with a timer would start it anew for ever. Where the provider does not answer in time the goroutine stays with it.
func (r *request) compute(f *feed) {
	begun := time.Now()
	var outputs map[string][]byte
	err := r.t.guard(r.at, func() (err error) {
		outputs, err = f.finish(context.Background(), func(err error) { r.end(f, begun, nil, err) })
		return err
	})
	r.end(f, begun, outputs, err)
}

// end gives the answer to whoever waits for it, once.
func (r *request) end(f *feed, begun time.Time, outputs map[string][]byte, err error) {
	if r.ended.Swap(true) {
		wipeAll(outputs)
		return
	}
	defer r.t.running.Done()
	r.t.auditOperation(r.by, r.at, f.key, string(r.row.op), f.algorithm, r.name, begun, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.feed = nil
	_ = r.t.account.change(r.uid, 0, -r.held)
	r.held = 0
	r.outputs, r.err, r.phase = outputs, err, answered
	if r.dropped {
		r.wipeAnswer()
	}
	close(r.finished)
}

// copyOut copies the answer from an offset into dest and marks it handed out at its end. The answer is the plain
// file's for part "", else the output of that name. Only after answer returned nil.
func (r *request) copyOut(dest []byte, part string, from int64) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.dropped {
		return 0, errDropped
	}
	b := r.outputs[part]
	if part == "" {
		b = r.plain()
	}
	n := 0
	if from < int64(len(b)) {
		n = copy(dest, b[from:])
	}
	if from+int64(n) >= int64(len(b)) {
		r.handed = true
	}
	return n, nil
}

// plain joins the outputs as the plain file gives them.
func (r *request) plain() []byte {
	if len(r.row.outputs) == 1 {
		return r.outputs[r.row.outputs[0].name]
	}
	if r.joined == nil {
		for _, o := range r.row.outputs {
			if !o.slotOnly {
				r.joined = extend(r.joined, r.outputs[o.name])
			}
		}
	}
	return r.joined
}

// errDropped is for whoever still asks for a request that was replaced by another one.
var errDropped = refuse(syscall.EBUSY, "the request was given up for another one", "one user of a slot or open file at a time")

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
	wipe(r.joined)
	r.outputs, r.joined = nil, nil
}

func wipeAll(outputs map[string][]byte) {
	for _, b := range outputs {
		wipe(b)
	}
}

// calm is ctx without its end: what takes microseconds must not fail because of a signal (Go's own preemption signal
// is enough to interrupt a system call).
func calm(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

// guard turns a panic, which would end the daemon for everybody, into EIO for one request.
func (t *Tree) guard(at place, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			// only its type: the value may quote a request
			t.log.Error("panic in an operation: this is a bug in parsecfs", "path", at.path(), "panic", fmt.Sprintf("%T", p), "stack", string(debug.Stack()))
			err = psa.Errorf(psa.StatusGenericError, "the operation failed inside parsecfs")
		}
	}()
	return f()
}

// perform runs f to its end and waits for it as an interruptible system call should.
func (t *Tree) perform(ctx context.Context, at place, f func(context.Context) error) error {
	if !t.begin() {
		return errLeaving
	}
	var err error
	done := make(chan struct{})
	go func() {
		defer t.running.Done()
		defer close(done)
		err = t.guard(at, func() error { return f(context.Background()) })
	}()
	if e := wait(ctx, done); e != nil {
		return e
	}
	return err
}

var errLeaving = psa.Errorf(psa.StatusProviderAbsent, "the mount is going away")

// patience is how long an interrupted call keeps waiting: FUSE cannot restart a system call, and clients that do not
// expect EINTR (Go's own preemption signal is enough) would fail.
const patience = time.Second

// wait waits for done; after an interruption for at most a second more, and not at all where the signal is going to
// kill the client, which could not be killed before our answer.
func wait(ctx context.Context, done <-chan struct{}) error {
	select {
	case <-done:
		return nil
	case <-ctx.Done():
	}
	interrupted := refuse(syscall.EINTR, "interrupted", "")
	if dying(caller(ctx).Pid) {
		return interrupted
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-done:
		return nil
	case <-timer.C:
		return interrupted
	}
}

// harmless are the signals whose default action is not the end: CHLD, CONT, URG, WINCH.
const harmless = 1<<(syscall.SIGCHLD-1) | 1<<(syscall.SIGCONT-1) | 1<<(syscall.SIGURG-1) | 1<<(syscall.SIGWINCH-1)

// dying says whether a pending signal will end the thread tid: pending, and neither blocked, caught nor ignored.
func dying(tid uint32) bool {
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return true
	}
	mask := map[string]uint64{}
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && (strings.HasPrefix(name, "Sig") || name == "ShdPnd") {
			mask[name], _ = strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		}
	}
	return (mask["SigPnd"]|mask["ShdPnd"])&^(mask["SigBlk"]|mask["SigIgn"]|mask["SigCgt"]|harmless) != 0
}

// feed brings a request's bytes to its Run: it splits off the inputs that come first, waits where the operation needs
// an input whole, and streams the rest.
type feed struct {
	r          *request
	key        kim.Key // as it was at the first byte
	attributes psa.Attributes
	limit      int64
	named      map[string][]byte // inputs that are complete or were given by name
	buf        []byte            // the stream while it cannot be handed on
	run        psa.Run
	passed     int64   // bytes that the run was given
	streaming  bool    // the run keeps none of them
	algorithm  string  // that was begun
	into       kim.Key // the draft that the answer becomes, number 0 where it is given out
	signer     kim.Key // the key that signs an attestation, number 0 where the device's own does
	rejected   error   // the stream cannot be what it should be; told at READ
}

func (f *feed) main() *input {
	if f.r.row.bare() {
		return &input{}
	}
	return &f.r.row.inputs[len(f.r.row.inputs)-1]
}

// holds is how many bytes the request keeps in memory.
func (f *feed) holds() int64 {
	n := int64(len(f.buf))
	for _, b := range f.named {
		n += int64(len(b))
	}
	if f.run != nil && !f.streaming {
		n += f.passed
	}
	return n
}

func tooLarge(name string, most int64) error {
	return psa.Errorf(psa.StatusTooLarge, "the %s is longer than %d bytes", name, most).WithHint("core_settings.body_len_limit bounds what cannot be streamed")
}

func (f *feed) write(ctx context.Context, name string, p []byte) error {
	if name != "" && name != f.main().name {
		most := f.limit
		if name != "additional_data" {
			most = signatureMost
		}
		if int64(len(f.named[name])+len(p)) > most {
			return tooLarge(name, most)
		}
		f.named[name] = extend(f.named[name], p)
		return nil
	}
	if f.r.row.bare() && len(p) > 0 {
		return psa.Errorf(psa.StatusInvalidArgument, "%s takes no input", f.r.row.name).WithHint("open it for reading alone")
	}
	if f.rejected != nil {
		return nil
	}
	if f.run != nil {
		return f.pass(p)
	}
	most := f.limit + tagMost
	if whole := f.main().whole; whole != 0 {
		most = whole
		if f.r.row.inputs[0].lead && !f.r.parted {
			most += signatureMost
		}
	}
	// the bound is on what waits here; the run has its own
	wait := int64(len(f.buf) + len(p))
	if f.waits() && wait > most {
		return tooLarge(f.main().name, most)
	}
	f.buf = extend(f.buf, p)
	if f.waits() {
		return nil
	}
	return f.start(ctx, true)
}

// waits says whether the main input must be kept until READ: where the algorithm depends on its length, and in a
// directory slot, where other inputs may still come.
func (f *feed) waits() bool { return f.main().whole != 0 || f.r.parted }

// extend is append for bytes that may be secret: an array that became too small is wiped.
func extend(b, p []byte) []byte {
	if len(b)+len(p) <= cap(b) {
		return append(b, p...)
	}
	grown := append(make([]byte, 0, max(2*cap(b), len(b)+len(p))), b...)
	wipe(b)
	return append(grown, p...)
}

// start begins the operation as soon as the inputs in front of the stream are complete.
func (f *feed) start(ctx context.Context, plain bool) error {
	if plain && !f.split(false) {
		return nil
	}
	if f.rejected != nil {
		wipe(f.buf)
		f.buf = nil
		return nil
	}
	op := f.r.row.op
	a, err := f.attributes.Resolve(op, len(f.buf))
	if err != nil {
		return err
	}
	if f.r.row.alg != psa.AlgNone {
		a = f.r.row.alg
	}
	inputs := map[string][]byte{}
	for name, b := range f.named {
		if len(b) > 0 {
			inputs[name] = b
		}
	}
	if s := inputs["signature"]; s != nil && !plain && f.r.row.der && f.attributes.Algorithm.IsECDSA() {
		// in a slot the signature stands alone, and must be a whole one
		n, raw, ok, more := psa.SplitSignature(s, f.attributes)
		if !ok || more || n != len(s) {
			f.rejected = psa.Errorf(psa.StatusInvalidSignature, "this is no signature of this kind of key")
			return nil
		}
		inputs["signature"] = raw
	}
	what := psa.Op{Operation: op, Algorithm: a, Inputs: inputs, Limit: f.limit}
	if begin := f.r.row.begin; begin != nil {
		f.run, err = begin(calm(ctx), f, what)
	} else {
		f.run, err = f.r.t.kim.Begin(calm(ctx), f.r.at.key, f.r.uid, what)
	}
	if err != nil {
		return gone(err)
	}
	if f.algorithm == "" {
		f.algorithm = a.String()
	}
	if op.Usage() == 0 && op != psa.Hash || a == psa.AlgNone {
		f.algorithm = ""
	}
	f.streaming = a.IsMAC() || op == psa.Hash || a.IsHashAndSign() && (op == psa.Sign || op == psa.Verify)
	buf := f.buf
	f.buf = nil
	defer wipe(buf)
	return f.pass(buf)
}

func (f *feed) pass(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	f.passed += int64(len(p))
	_, err := f.run.Write(p)
	return err
}

// split takes the leading inputs from the buffer; false where more bytes are needed to do so. At the end of the
// stream what is not complete is rejected.
func (f *feed) split(ended bool) bool {
	for _, in := range f.r.row.inputs {
		if _, have := f.named[in.name]; !in.lead || have {
			continue
		}
		var n int
		var value []byte
		switch in.name {
		case "signature":
			size, raw, ok, more := f.signature()
			if more && !ended && len(f.buf) <= signatureMost {
				return false
			}
			if more || !ok {
				f.rejected = psa.Errorf(psa.StatusInvalidSignature, "the input does not begin with a signature of this kind of key").WithHint("write the signature, then the message")
				return true
			}
			n, value = size, raw
		case "mac":
			n = f.attributes.SignatureLength()
			if len(f.buf) < n {
				if !ended {
					return false
				}
				f.rejected = psa.Errorf(psa.StatusInvalidSignature, "the input is shorter than a MAC of %d bytes", n).WithHint("write the MAC, then the message")
				return true
			}
			value = f.buf[:n]
		case "nonce":
			n = f.attributes.Algorithm.NonceLength()
			if len(f.buf) < n {
				if !ended {
					return false
				}
				f.rejected = psa.Errorf(psa.StatusInvalidArgument, "the input is shorter than a nonce of %d bytes", n).WithHint("write nonce || ciphertext || tag")
				return true
			}
			value = f.buf[:n]
		}
		f.named[in.name] = append([]byte(nil), value...)
		rest := append([]byte(nil), f.buf[n:]...)
		wipe(f.buf)
		f.buf = rest
	}
	return true
}

// signature finds the one that the stream begins with: DER or r||s, or r||s alone where the row says so.
func (f *feed) signature() (n int, raw []byte, ok, more bool) {
	if f.r.row.der || !f.attributes.Algorithm.IsECDSA() {
		return psa.SplitSignature(f.buf, f.attributes)
	}
	if n = f.attributes.SignatureLength(); len(f.buf) < n {
		return 0, nil, false, true
	}
	return n, f.buf[:n], true, false
}

// finish completes the request and runs it. In a directory slot it is here that the operation begins. Where it is one
// call of the provider, tell gets the error of one that does not answer in time, which is returned when it does.
func (f *feed) finish(ctx context.Context, tell func(error)) (map[string][]byte, error) {
	defer f.abort()
	if f.run == nil && f.rejected == nil {
		plain := !f.r.parted
		if plain {
			f.split(true)
		} else if err := f.required(); err != nil {
			return nil, err
		}
		if f.rejected == nil {
			if err := f.start(ctx, plain); err != nil {
				return nil, err
			}
		}
	}
	if f.rejected != nil {
		return nil, f.rejected
	}
	run := f.run
	f.run = nil
	var result psa.Result
	var err error
	if one, ok := run.(kim.Run); ok {
		result, err = one.FinishHere(ctx, tell)
	} else {
		result, err = run.Finish(ctx)
	}
	if err != nil {
		return nil, err
	}
	return f.outputs(result.Outputs)
}

// required refuses a directory slot in which an input is missing that nobody can make up.
func (f *feed) required() error {
	for i, in := range f.r.row.inputs {
		b := f.named[in.name]
		if i == len(f.r.row.inputs)-1 {
			b = f.buf
		}
		// ciphertext stands without the nonce in a slot; where there is one, nothing can be decrypted without it
		needed := in.required && (in.name != "nonce" || f.attributes.Algorithm.NonceLength() > 0)
		if needed && len(b) == 0 {
			return refuse(syscall.ENODATA, "no "+in.name+" was written", "write it into "+in.name+" beside this file")
		}
	}
	return nil
}

// outputs brings a result into the row's shape.
func (f *feed) outputs(o map[string][]byte) (map[string][]byte, error) {
	row := f.r.row
	if s := o["signature"]; s != nil && row.der && f.attributes.Algorithm.IsECDSA() {
		der, err := psa.ECDSARawToDER(s)
		if err != nil {
			return nil, err
		}
		o["signature"] = der
	}
	if o == nil {
		o = map[string][]byte{}
	}
	for _, out := range row.outputs {
		if out.text != "" {
			o[out.name] = []byte(out.text)
		}
	}
	return o, nil
}

// abort wipes what the feed holds; safe to call twice.
func (f *feed) abort() {
	if f.run != nil {
		f.run.Abort()
		f.run = nil
	}
	wipe(f.buf)
	f.buf = nil
	for name, b := range f.named {
		wipe(b)
		delete(f.named, name)
	}
}
