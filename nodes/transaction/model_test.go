package transaction

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
)

// TestModel takes random steps on plain files, slots and drop boxes of all shapes, with a device, a key and rights that come and
// go. A model that knows none of the machine's types says what each step must answer: these bytes, or this errno.
func TestModel(t *testing.T) {
	t.Parallel()
	who := another(t, 2003)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	rounds := uint64(200)
	if os.Getenv("PARSECFS_TEST_LONG") == "1" {
		rounds *= 20
	}
	for i := range rounds {
		m := newModel(t, who, seed+i)
		for range 500 {
			if m.step(); t.Failed() {
				t.Fatalf("seed %d: after\n%s", seed+i, strings.Join(m.said, "\n"))
			}
		}
		m.end()
		if t.Failed() {
			t.Fatalf("seed %d: after\n%s", seed+i, strings.Join(m.said, "\n"))
		}
	}
}

// model is what must be.
type model struct {
	t     *testing.T
	r     *rand.Rand
	f     *fake
	who   caller.Caller
	names []string // of shapes; one's inode is its place from 1
	ways  map[uint64]*fakeWay
	modes map[uint64]uint32 // of those, as others have them

	handles []*modelHandle
	slots   map[string]*modelSlot
	boxes   map[uint64][]*modelEntry
	live    map[*modelRequest]bool // which hold bytes
	held    []*modelRequest        // whose operation waits for the test
	count   int
	said    []string
}

type modelRequest struct {
	spec         *Spec
	parted       bool
	begun, fed   bool
	written      bool
	kept         []byte // what a call brought whose answer it did not get
	named        map[string][]byte
	buf          []byte // not yet given to the operation
	main         []byte // given
	started      bool
	rejected     bool
	poison       syscall.Errno
	computing    bool
	answered     bool
	err          syscall.Errno
	out          map[string][]byte
	handed       bool
	dropped      bool
	run          *fakeRun
	real         *request
	laterErr     syscall.Errno
	laterOutputs map[string][]byte
}

type modelCursor struct {
	set  bool
	next int64
}

type modelChannel struct {
	spec    *Spec
	parted  bool
	req     *modelRequest
	cursors map[string]modelCursor
	sealed  syscall.Errno
}

type modelHandle struct {
	h       *Handle
	ino     uint64
	name    string
	mode    Mode
	part    Part
	ch      *modelChannel
	claims  bool
	entry   *modelEntry
	slot    *modelSlot
	reply   *modelRequest
	base    int64
	next    int64 // where the last READ ended
	inside  bool  // an answer that goes on there
	told    bool  // that nothing was written
	deposit bool
}

type modelSlot struct {
	s       *Slot
	ino     uint64
	ch      *modelChannel
	opens   int
	removed bool
}

type modelEntry struct {
	real               *entry
	ino                uint64
	ch                 *modelChannel
	closed, mixed, out bool
}

func newModel(t *testing.T, who caller.Caller, seed uint64) *model {
	m := &model{t: t, r: rand.New(rand.NewPCG(seed, 0)), f: newFake(t), who: who, names: slices.Sorted(maps.Keys(shapes)), ways: map[uint64]*fakeWay{}, modes: map[uint64]uint32{},
		slots: map[string]*modelSlot{}, boxes: map[uint64][]*modelEntry{}, live: map[*modelRequest]bool{}}
	for i := range m.names {
		ino := uint64(i + 1)
		m.ways[ino], m.modes[ino] = &fakeWay{ino: ino, mode: 0666}, 0666
	}
	return m
}

func (m *model) say(format string, args ...any) {
	if m.said = append(m.said, fmt.Sprintf(format, args...)); len(m.said) > 60 {
		m.said = m.said[1:]
	}
}

// same compares an errno, and says whether the step succeeded.
func (m *model) same(what string, err error, want syscall.Errno) bool {
	m.t.Helper()
	got := errnoOf(m.t, err)
	m.say("%s: %v", what, got)
	if got != want {
		m.t.Errorf("%s: got %d (%v), want %d (%v)", what, got, err, want, want)
	}
	return got == 0
}

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

func (m *model) step() {
	switch n := m.r.IntN(100); {
	case n < 12 || len(m.handles) == 0:
		m.open()
	case n < 40:
		m.write(m.usable())
	case n < 64:
		m.read(m.usable())
	case n < 72:
		m.call(m.usable())
	case n < 76:
		m.truncate(pick(m.r, m.handles))
	case n < 82:
		m.close(m.r.IntN(len(m.handles)))
	case n < 85:
		m.flush(pick(m.r, m.handles))
	case n < 88:
		m.changeSlot()
	case n < 91:
		m.release()
	case n < 92:
		m.expire()
	case n < 93:
		m.drop()
	case n < 97:
		m.mishap()
	default:
		m.rights()
	}
}

// usable picks a handle, rarely one that only a truncation helps: that is done instead, most of the time.
func (m *model) usable() *modelHandle {
	h := pick(m.r, m.handles)
	for range 3 {
		if h.ch == nil || h.ch.req == nil || h.ch.req.poison == 0 {
			return h
		}
		if m.truncate(h); h.slot != nil && h.ch.parted {
			m.changeSlot()
		}
		h = pick(m.r, m.handles)
	}
	return h
}

// mishap makes something go wrong, or all go well again, which it does most of the time.
func (m *model) mishap() {
	m.f.set(func(f *faults) {
		*f = faults{}
		switch m.r.IntN(12) {
		case 0:
			f.gone = true
		case 1:
			f.refused = true
		case 2:
			f.begin = true
		case 3:
			f.write = true
		case 4:
			f.finish = true
		case 5:
			f.unready = true
		}
		m.say("faults %+v", *f)
	})
}

func (m *model) rights() {
	ino := uint64(1 + m.r.IntN(len(m.names)))
	old := m.modes[ino]
	m.modes[ino] = pick(m.r, []uint32{0600, 0644, 0666, 0666, 0666})
	m.say("chmod %o %s", m.modes[ino], m.names[ino-1])
	if m.ways[ino].chmod(m.modes[ino]); old&^m.modes[ino] != 0 {
		m.f.gate.Lost(ino)
	}
}

// may says whether the mode allows what is wanted.
func (m *model) may(ino uint64, want gate.Bits) bool { return uint32(want)&^m.modes[ino] == 0 }

// total is what the user holds.
func (m *model) total() (n int64) {
	for r := range m.live {
		n += r.holds()
	}
	return n
}

func (r *modelRequest) holds() int64 {
	if r.answered {
		n := 0
		for name, b := range r.out {
			if name != "" { // which joins the others
				n += len(b)
			}
		}
		return int64(n)
	}
	n := len(r.buf)
	for _, b := range r.named {
		n += len(b)
	}
	return int64(n)
}

func (m *model) request(c *modelChannel) *modelRequest {
	c.req = &modelRequest{spec: c.spec, parted: c.parted, begun: len(c.spec.Inputs) == 0, named: map[string][]byte{}}
	m.live[c.req] = true
	return c.req
}

func (m *model) reset(c *modelChannel) {
	if c.req != nil {
		c.req.dropped = true
		if !c.req.computing {
			delete(m.live, c.req)
		}
	}
	c.req, c.cursors = nil, map[string]modelCursor{}
}

func newModelChannel(spec *Spec, parted bool) *modelChannel {
	return &modelChannel{spec: spec, parted: parted, cursors: map[string]modelCursor{}}
}

// spoil is a poison: what was collected is gone.
func (r *modelRequest) spoil(e syscall.Errno) syscall.Errno {
	r.poison, r.buf, r.named, r.main = e, nil, map[string][]byte{}, nil
	return e
}

func (m *model) open() {
	ino := uint64(1 + m.r.IntN(len(m.names)))
	shape := m.names[ino-1]
	f := m.f.file(shape, ino)
	switch kind := m.r.IntN(10); {
	case kind < 4:
		m.openPlain(f, Mode{Read: true, Write: true, Append: m.r.IntN(4) == 0}, "plain "+shape)
	case kind == 4:
		ino = m.boxed()
		m.openDeposit(m.f.file(m.names[ino-1], ino), m.names[ino-1])
	case kind == 5:
		ino = m.boxed()
		f, shape = m.f.file(m.names[ino-1], ino), m.names[ino-1]
		h := &modelHandle{ino: ino, name: "claim " + shape, mode: Mode{Read: true}, claims: true}
		m.opened(h, func(a *gate.Access) (*Handle, error) { return m.f.Claim(m.who, f, h.mode, a) })
	default:
		m.openSlot(ino)
	}
}

// boxed is one of the few files whose drop boxes are used: requests are to meet there.
func (m *model) boxed() uint64 {
	return uint64(1 + slices.Index(m.names, pick(m.r, []string{"streamed", "cut"})))
}

// opened opens a file by the gate.
func (m *model) opened(h *modelHandle, open func(*gate.Access) (*Handle, error)) bool {
	a, err := m.f.gate.Open(m.t.Context(), m.who, m.ways[h.ino], h.mode.Want(), gate.Units{})
	if !m.may(h.ino, h.mode.Want()) {
		return m.same("open "+h.name, err, syscall.EACCES)
	}
	if !m.same("open "+h.name, err, 0) {
		return false
	}
	want := syscall.Errno(0)
	if m.count+1 > testPerUser || h.deposit && m.count+2 > testPerUser {
		want = syscall.EAGAIN
	}
	h.h, err = open(a)
	if !m.same("open "+h.name, err, want) {
		return false
	}
	m.count++
	m.handles = append(m.handles, h)
	return true
}

func (m *model) openPlain(f File, mode Mode, name string) {
	h := &modelHandle{ino: f.Ino, name: name, mode: mode, ch: newModelChannel(f.Spec, false)}
	m.opened(h, func(a *gate.Access) (*Handle, error) { return m.f.Open(m.who, f, mode, a) })
}

func (m *model) openDeposit(f File, shape string) {
	h := &modelHandle{ino: f.Ino, name: "deposit " + shape, mode: Mode{Write: true}, ch: newModelChannel(f.Spec, false), deposit: true}
	if !m.opened(h, func(a *gate.Access) (*Handle, error) { return m.f.Deposit(m.who, f, h.mode, a) }) {
		return
	}
	e := &modelEntry{real: h.h.box, ino: f.Ino, ch: h.ch}
	m.count++
	for _, old := range m.boxes[f.Ino] {
		if old.closed { // of a process with one thread, which changed its mind
			e.mixed = old.mixed
			m.spend(old, syscall.EBUSY)
			m.reset(old.ch)
			break
		}
	}
	m.boxes[f.Ino] = append(m.boxes[f.Ino], e)
	h.entry = e
}

// spend takes an entry out of its box.
func (m *model) spend(e *modelEntry, sealed syscall.Errno) {
	m.boxes[e.ino] = slices.DeleteFunc(m.boxes[e.ino], func(x *modelEntry) bool { return x == e })
	e.out, e.ch.sealed = true, sealed
	m.count--
}

// openSlot makes a slot, or opens one.
func (m *model) openSlot(ino uint64) {
	name := fmt.Sprintf("%s.d/%d", m.names[ino-1], m.r.IntN(2))
	s := m.slots[name]
	if s == nil || m.r.IntN(20) == 0 {
		m.makeSlot(ino, name)
		return
	}
	h := &modelHandle{ino: ino, name: name, ch: s.ch, slot: s, mode: Mode{Read: true, Write: true, Append: m.r.IntN(4) == 0}}
	if s.ch.parted {
		h.part = pick(m.r, s.s.Spec.Parts())
		h.mode.Read, h.mode.Write = h.part.Out, h.part.In
		h.name += "/" + h.part.Name
	}
	want := syscall.Errno(0)
	switch {
	case !m.may(ino, gate.ReadWrite):
		want = syscall.EKEYREVOKED
	case m.count+1 > testPerUser:
		want = syscall.EAGAIN
	}
	var err error
	if h.h, err = s.s.Open(m.t.Context(), m.who, h.part, h.mode); !m.same("open "+h.name, err, want) {
		return
	}
	m.count++
	s.opens++
	m.handles = append(m.handles, h)
}

func (m *model) makeSlot(ino uint64, name string) {
	a, err := m.f.gate.Open(m.t.Context(), m.who, m.ways[ino], gate.ReadWrite, gate.Units{})
	if !m.may(ino, gate.ReadWrite) {
		m.same("make "+name, err, syscall.EACCES)
		return
	}
	if !m.same("make "+name, err, 0) {
		return
	}
	want := syscall.Errno(0)
	switch {
	case m.count+1 > testPerUser:
		want = syscall.EAGAIN
	case m.slots[name] != nil:
		want = syscall.EEXIST
	}
	f := m.f.file(m.names[ino-1], ino)
	s, err := m.f.NewSlot(m.who, 1000+ino, name, f, a, func(n uint64) uint64 { return 1<<32 + n })
	if !m.same("make "+name, err, want) {
		return
	}
	m.count++
	m.slots[name] = &modelSlot{s: s, ino: ino, ch: newModelChannel(f.Spec, f.Spec.Parted())}
}

func (m *model) changeSlot() {
	if len(m.slots) == 0 {
		return
	}
	name := pick(m.r, slices.Sorted(maps.Keys(m.slots)))
	s := m.slots[name]
	if m.r.IntN(3) == 0 {
		m.say("rm %s", name)
		s.s.Remove()
		m.removed(name, s)
		return
	}
	part := Part{}
	if s.ch.parted {
		part = pick(m.r, s.s.Spec.Parts())
	}
	size := uint64(m.r.IntN(4) / 3 * 7)
	want := syscall.Errno(0)
	switch {
	case !m.may(s.ino, gate.ReadWrite):
		want = syscall.EKEYREVOKED
	case size != 0:
		want = syscall.EINVAL
	case !s.ch.parted:
		if want = m.begins(s.ch); want == 0 {
			m.reset(s.ch)
		}
	case part.In:
		want = m.empty(s.ch, part.Name)
	}
	m.same(fmt.Sprintf("truncate %s/%s to %d", name, part.Name, size), s.s.Truncate(m.t.Context(), m.who, part, size), want)
}

// begins says whether a truncation may begin anew.
func (m *model) begins(c *modelChannel) syscall.Errno {
	switch {
	case c.sealed != 0:
		return c.sealed
	case c.req != nil && c.req.computing:
		return syscall.EBUSY
	}
	return 0
}

func (m *model) empty(c *modelChannel, name string) syscall.Errno {
	r, errno := m.current(c)
	switch {
	case errno != 0:
		return errno
	case r.poison != 0:
		m.reset(c)
		return 0
	}
	delete(c.cursors, name)
	if name == c.spec.main().Name {
		r.buf = nil
	} else {
		delete(r.named, name)
	}
	return 0
}

func (m *model) removed(name string, s *modelSlot) {
	delete(m.slots, name)
	if s.removed = true; s.opens == 0 {
		m.reset(s.ch)
		m.count--
	}
}

// current is the request that a change belongs to.
func (m *model) current(c *modelChannel) (*modelRequest, syscall.Errno) {
	r := c.req
	switch {
	case r == nil:
		return m.request(c), 0
	case r.computing || r.answered && !r.handed && !c.parted:
		return nil, syscall.EBUSY
	case r.answered:
		m.reset(c)
		return m.request(c), 0
	}
	return r, 0
}

// bytes are some to write.
func (m *model) bytes() []byte {
	n := 1 + m.r.IntN(30)
	switch m.r.IntN(60) {
	case 0:
		n = 70 << 10
	case 1, 2, 3:
		n = 1 + m.r.IntN(testBody+200)
	}
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(1 + m.r.IntN(255))
	}
	p[0] = byte(m.r.IntN(20)) // of a leading input, how long it is
	return p
}

func (m *model) write(h *modelHandle) {
	if !h.mode.Write {
		return
	}
	p := m.bytes()
	off := m.r.Int64N(50)
	// What begins far from 0 may be a piece of more, and is tested by itself.
	far := func(off int64) bool { return off >= piece && (h.ch.req == nil || h.ch.req.answered) }
	if c := h.ch.cursors[h.part.Name]; c.set && !far(c.next) && m.r.IntN(12) > 0 {
		off = c.next
	}
	if h.mode.Append {
		off = m.r.Int64N(1 << 40) // which no WRITE meets by accident
	}
	want := m.writes(h, p, off)
	h.told = false
	err := h.h.Write(m.t.Context(), p, off)
	clear(p) // it is the kernel's again
	m.f.track(h.h.channel)
	m.same(fmt.Sprintf("write %d bytes at %d into %s", len(p), off, h.name), err, want)
}

func (m *model) writes(h *modelHandle, p []byte, off int64) syscall.Errno {
	c := h.ch
	if h.entry != nil {
		h.entry.closed = false
	}
	if c.sealed != 0 {
		return c.sealed
	}
	r, errno := m.current(c)
	if errno != 0 {
		return errno
	}
	at := c.cursors[h.part.Name]
	if r.poison == 0 && !h.mode.Append && at.set && off != at.next {
		return r.spoil(syscall.EINVAL)
	}
	if r.poison != 0 {
		return r.poison
	}
	if !r.fed && m.f.now().gone {
		return r.spoil(syscall.EKEYREVOKED)
	}
	r.fed, r.begun = true, true
	before := m.total()
	if errno := m.feed(r, h.part.Name, p); errno != 0 {
		return r.spoil(errno)
	}
	if now := m.total(); now > before && now > testBytes {
		return r.spoil(syscall.ENOMEM)
	}
	if !at.set {
		at = modelCursor{true, off}
	}
	at.next += int64(len(p))
	c.cursors[h.part.Name] = at
	r.written = true
	h.inside = false
	return 0
}

// feeds is feed for a whole request, which may be empty.
func (m *model) feeds(r *modelRequest, in []byte) syscall.Errno {
	if len(in) == 0 && len(r.spec.Inputs) == 0 {
		return 0
	}
	return m.feed(r, "", in)
}

func (m *model) feed(r *modelRequest, name string, p []byte) syscall.Errno {
	main := r.spec.main()
	if name != "" && name != main.Name {
		most := 64 << 10
		for _, in := range r.spec.Inputs {
			if in.Name == name && in.Long {
				most = testBody
			}
		}
		if len(r.named[name])+len(p) > most {
			return syscall.EFBIG
		}
		r.named[name] = append(slices.Clone(r.named[name]), p...)
		return 0
	}
	if len(r.spec.Inputs) == 0 {
		return syscall.EINVAL
	}
	if r.rejected {
		return 0
	}
	if r.started {
		if m.f.now().write {
			return syscall.EIO
		}
		r.main = append(r.main, p...)
		return 0
	}
	waits := r.parted || main.Whole != 0
	most := int64(testBody + 64)
	if main.Whole != 0 {
		most = main.Whole
		if r.spec.Inputs[0].Cut != nil && !r.parted {
			most += 64 << 10
		}
	}
	if waits && int64(len(r.buf)+len(p)) > most {
		return syscall.EFBIG
	}
	r.buf = append(slices.Clone(r.buf), p...)
	if waits {
		return 0
	}
	if !m.cut(r, false) {
		return 0
	}
	return m.begin(r)
}

// cut takes leading inputs off the stream; false: the operation cannot begin yet, or not at all.
func (m *model) cut(r *modelRequest, ended bool) bool {
	for _, in := range r.spec.Inputs {
		if in.Cut == nil || r.named[in.Name] != nil {
			continue
		}
		n := 0
		if len(r.buf) > 0 {
			n = 1 + int(r.buf[0])
		}
		if !ended && len(r.buf) < max(n, 1) && n != 1 {
			return false
		}
		if n < 2 || len(r.buf) < n {
			r.rejected, r.buf = true, nil
			return false
		}
		r.named[in.Name] = slices.Clone(r.buf[1:n])
		r.buf = slices.Clone(r.buf[n:])
	}
	return true
}

func (m *model) begin(r *modelRequest) syscall.Errno {
	f := m.f.now()
	if f.begin || f.write && len(r.buf) > 0 {
		return syscall.EIO
	}
	r.started, r.main, r.buf = true, r.buf, nil
	return 0
}

// finishes says what a request comes to, and whether the operation is asked to finish.
func (m *model) finishes(r *modelRequest) (out map[string][]byte, errno syscall.Errno, asked bool) {
	q := *r
	q.named = maps.Clone(r.named)
	if !q.started && !q.rejected {
		if q.parted {
			for _, in := range q.spec.Inputs {
				b := q.named[in.Name]
				if in.Name == q.spec.main().Name {
					b = q.buf
				}
				if in.Required != nil && len(b) == 0 {
					return nil, syscall.ENODATA, false
				}
				if in.Cut == nil {
					continue
				}
				if len(b) != 1+int(b[0]) || len(b) == 1 {
					return nil, syscall.EBADMSG, false
				}
				q.named[in.Name] = b[1:]
			}
		} else {
			m.cut(&q, true)
		}
		if !q.rejected {
			if errno := m.begin(&q); errno != 0 {
				return nil, errno, false
			}
		}
	}
	switch {
	case q.rejected:
		return nil, syscall.EBADMSG, false
	case m.f.now().finish:
		return nil, syscall.EIO, true
	}
	q.named[q.spec.main().Name] = q.main
	out = answers(q.spec, q.named)
	var joined []byte
	for _, o := range q.spec.Outputs {
		if o.Text != "" {
			out[o.Name] = []byte(o.Text)
		}
		if o.Encode != nil {
			out[o.Name] = append(slices.Clone(out[o.Name]), out[o.Name]...)
		}
		if !o.SlotOnly {
			joined = append(joined, out[o.Name]...)
		}
	}
	out[""] = joined
	return out, 0, true
}

func (m *model) read(h *modelHandle) {
	if !h.mode.Read {
		return
	}
	r, errno := m.asks(h)
	nothing := errno == syscall.ENODATA
	ctx, who := m.t.Context(), m.who
	if m.r.IntN(4) == 0 {
		// a signal that the client lives on after: what comes at once is answered all the same
		ended, end := context.WithCancel(ctx)
		end()
		ctx = ended
	}
	dest := make([]byte, 1+m.r.IntN(60))
	if m.r.IntN(2) == 0 {
		dest = make([]byte, 4096)
	}
	off := m.r.Int64N(40)
	switch {
	case h.reply != nil && m.r.IntN(2) == 0:
		off = h.next
	case m.r.IntN(3) == 0:
		off = 0
	}
	what := fmt.Sprintf("read %d bytes at %d of %s", len(dest), off, h.name)
	starts := errno == 0 && r != nil && !r.computing && !r.answered
	if starts {
		errno = m.starts(h.ch, r)
		starts = errno == 0 && r.computing
	}
	hold := starts && r.laterOutputs != nil && m.r.IntN(8) == 0
	if hold || errno == 0 && r.computing && !starts {
		// a signal that ends the client: nobody waits for it
		m.interrupted(h, r, hold, what, dest, off)
		return
	}
	if starts {
		m.ends(r)
	}
	var want []byte
	switch {
	case errno == 0:
		want, errno = m.copies(h, r, len(dest), off)
	case nothing:
		if h.told = !h.told; !h.told {
			errno = 0 // the end of the file
		}
	}
	n, _, err := h.h.Read(ctx, who, dest, off)
	m.f.track(h.h.channel)
	if m.same(what, err, errno) && !bytes.Equal(dest[:n], want) {
		m.t.Errorf("%s: got %q, want %q", what, dest[:n], want)
	}
}

// call is a whole request and its whole answer. Whatever it comes to, but for an answer that is still to be had, it leaves nothing.
func (m *model) call(h *modelHandle) {
	if !h.mode.Read || !h.mode.Write || !h.h.Whole() {
		return
	}
	in := m.bytes()
	switch r := h.ch.req; {
	case r != nil && r.kept != nil && m.r.IntN(2) == 0:
		in = slices.Clone(r.kept)
	case len(h.ch.spec.Inputs) == 0 && m.r.IntN(4) > 0, m.r.IntN(10) == 0:
		in = nil
	}
	dest := make([]byte, m.r.IntN(400))
	what := fmt.Sprintf("call with %d bytes for %d of %s", len(in), len(dest), h.name)
	r, errno := m.submits(h, in)
	switch {
	case errno != 0:
	case r.computing:
		m.calls(h, r, false, what, in, dest)
		return
	case !r.answered:
		if errno = m.starts(h.ch, r); errno == 0 && r.laterOutputs != nil && m.r.IntN(8) == 0 {
			m.calls(h, r, true, what, in, dest)
			return
		}
		if errno == 0 {
			m.ends(r)
		}
	}
	if r != nil && errno == 0 && m.f.now().gone {
		errno = syscall.EKEYREVOKED
	}
	if r != nil && errno == 0 {
		errno = r.err
	}
	var want []byte
	length := 0
	if r != nil && errno == 0 {
		if want, length = r.out[""], len(r.out[""]); length > len(dest) {
			errno, r.kept = syscall.EMSGSIZE, append([]byte{}, in...)
		}
	}
	if r != nil && errno != syscall.EMSGSIZE {
		m.reset(h.ch)
	}
	n, err := h.h.Call(m.t.Context(), m.who, in, dest)
	clear(in) // it is the kernel's again
	m.f.track(h.h.channel)
	if ok := m.same(what, err, errno); int(n) != length || ok && !bytes.Equal(dest[:n], want) {
		m.t.Errorf("%s: got %d bytes, want %d, %q", what, n, length, want)
	}
}

// submits is what a call finds or begins: nil where it is refused, and all is as it was.
func (m *model) submits(h *modelHandle, in []byte) (*modelRequest, syscall.Errno) {
	want := h.mode.Want()
	if h.slot != nil {
		want = gate.ReadWrite
	}
	if !m.may(h.ino, want) {
		return nil, syscall.EKEYREVOKED
	}
	if r := h.ch.req; r != nil && r.kept != nil && !r.handed && bytes.Equal(r.kept, in) {
		h.inside, h.told = false, false
		return r, 0
	}
	r, errno := m.current(h.ch)
	switch {
	case errno != 0:
		return nil, errno
	case r.poison != 0:
		return nil, r.poison
	case r.written:
		return nil, syscall.EBUSY
	}
	switch before := m.total(); {
	case !r.fed && m.f.now().gone:
		errno = syscall.EKEYREVOKED
	default:
		r.fed, r.begun = true, true
		if errno = m.feeds(r, in); errno == 0 && m.total() > before && m.total() > testBytes {
			errno = syscall.ENOMEM
		}
	}
	h.inside, h.told = false, false
	if errno != 0 {
		m.reset(h.ch)
		return nil, errno
	}
	return r, 0
}

// calls is a call whose operation does not come to an end, by a client whom a signal ends.
func (m *model) calls(h *modelHandle, r *modelRequest, hold bool, what string, in, dest []byte) {
	m.f.mu.Lock()
	m.f.hold = hold
	m.f.mu.Unlock()
	ctx, end := context.WithCancel(m.t.Context())
	end()
	r.kept = append([]byte{}, in...)
	_, err := h.h.Call(ctx, caller.Caller{UID: m.who.UID, GID: m.who.GID}, in, dest)
	clear(in)
	m.same(what+", interrupted", err, syscall.EINTR)
	if !hold || m.t.Failed() {
		return
	}
	r.run, r.real = <-m.f.held, h.h.channel.req
	m.held = append(m.held, r)
}

// asks is what a READ finds to ask for: nil where it is refused before.
func (m *model) asks(h *modelHandle) (*modelRequest, syscall.Errno) {
	want := h.mode.Want()
	if h.slot != nil {
		want = gate.ReadWrite
	}
	if !m.may(h.ino, want) {
		return nil, syscall.EKEYREVOKED
	}
	if h.ch == nil {
		if errno := m.claim(h); errno != 0 {
			return nil, errno
		}
	}
	if h.claims && !m.may(h.ino, gate.Write) { // as its writer could
		return nil, syscall.EKEYREVOKED
	}
	r := h.ch.req
	if r == nil {
		if len(h.ch.spec.Inputs) > 0 {
			return nil, syscall.ENODATA
		}
		r = m.request(h.ch)
	}
	switch {
	case r.poison != 0:
		return r, r.poison
	case !r.begun && !r.answered:
		return r, syscall.ENODATA
	}
	return r, 0
}

func (m *model) claim(h *modelHandle) syscall.Errno {
	group := slices.Clone(m.boxes[h.ino])
	if len(group) == 0 {
		return syscall.ENODATA
	}
	e := group[0]
	alone := len(group) == 1 && !e.mixed
	if !alone {
		for _, x := range group {
			x.mixed = true
		}
	}
	begun := e.ch.req != nil
	m.spend(e, syscall.EBUSY)
	switch {
	case alone && e.closed && begun:
		h.ch = e.ch
		return 0
	case alone && !begun:
		return syscall.ENODATA
	}
	m.reset(e.ch)
	return syscall.EBUSY
}

// starts sets a request off.
func (m *model) starts(c *modelChannel, r *modelRequest) syscall.Errno {
	f := m.f.now()
	if !r.fed && f.gone {
		return r.spoil(syscall.EKEYREVOKED)
	}
	r.fed = true
	switch {
	case f.unready:
		return syscall.EIO
	case f.refused:
		r.answered, r.handed, r.err = true, true, syscall.EACCES
		delete(m.live, r)
		return syscall.EACCES
	}
	r.computing = true
	out, errno, asked := m.finishes(r)
	r.laterErr, r.laterOutputs = errno, nil
	if asked {
		r.laterOutputs = map[string][]byte{}
		if out != nil {
			r.laterOutputs = out
		}
	}
	return 0
}

// ends gives an answer to a request.
func (m *model) ends(r *modelRequest) {
	r.computing, r.answered, r.err, r.out = false, true, r.laterErr, r.laterOutputs
	if r.dropped {
		delete(m.live, r)
	}
}

// interrupted is a READ of a request whose operation does not come to an end.
func (m *model) interrupted(h *modelHandle, r *modelRequest, hold bool, what string, dest []byte, off int64) {
	m.f.mu.Lock()
	m.f.hold = hold
	m.f.mu.Unlock()
	ctx, end := context.WithCancel(m.t.Context())
	end()
	_, _, err := h.h.Read(ctx, caller.Caller{UID: m.who.UID, GID: m.who.GID}, dest, off)
	m.same(what+", interrupted", err, syscall.EINTR)
	if !hold || m.t.Failed() {
		return
	}
	r.run, r.real = <-m.f.held, h.h.channel.req
	m.held = append(m.held, r)
}

// release lets an operation go on that was held.
func (m *model) release() {
	if len(m.held) == 0 {
		return
	}
	i := m.r.IntN(len(m.held))
	r := m.held[i]
	m.held = slices.Delete(m.held, i, i+1)
	m.say("an operation goes on")
	close(r.run.goOn)
	<-r.real.over()
	m.ends(r)
}

// copies is what a READ of an answer gives.
func (m *model) copies(h *modelHandle, r *modelRequest, size int, off int64) ([]byte, syscall.Errno) {
	if m.f.now().gone {
		return nil, syscall.EKEYREVOKED
	}
	if r.err != 0 {
		r.handed = true
		return nil, r.err
	}
	if h.reply != r && h.inside && off == h.next && off != 0 {
		h.inside = false
		return nil, syscall.EBUSY // the rest of an answer that is gone
	}
	if h.reply != r || off == 0 {
		h.reply, h.base = r, off
	}
	if off < h.base {
		return nil, syscall.EINVAL
	}
	b := r.out[h.part.Name]
	from := min(int(off-h.base), len(b))
	to := min(from+size, len(b))
	if int(off-h.base)+to-from >= len(b) {
		r.handed = true
	}
	h.next, h.inside = off+int64(to-from), to > from
	return b[from:to], 0
}

func (m *model) truncate(h *modelHandle) {
	if h.slot != nil && h.slot.ch.parted {
		return // by its slot alone
	}
	size := uint64(m.r.IntN(3) / 2 * 9)
	want := syscall.EINVAL
	switch {
	case size != 0:
		if h.ch != nil && h.ch.req != nil && !h.ch.req.computing && !h.ch.req.answered && h.ch.req.poison == 0 {
			h.ch.req.spoil(syscall.EINVAL)
		}
	case h.mode.Write:
		if want = m.begins(h.ch); want == 0 {
			poisoned := h.ch.req != nil && h.ch.req.poison != 0
			if m.reset(h.ch); !poisoned {
				m.request(h.ch).begun = true
			}
			h.inside, h.told = false, false
		}
	}
	m.same(fmt.Sprintf("truncate %s to %d", h.name, size), h.h.Truncate(size), want)
}

func (m *model) flush(h *modelHandle) {
	h.h.Flush(m.who)
	m.say("flush %s", h.name)
	if h.entry != nil && !h.entry.out {
		h.entry.closed = true
	}
}

func (m *model) close(i int) {
	h := m.handles[i]
	m.handles = slices.Delete(m.handles, i, i+1)
	if m.r.IntN(4) > 0 {
		m.flush(h)
	}
	h.h.Release()
	m.say("close %s", h.name)
	m.count--
	switch {
	case h.slot != nil:
		if h.slot.opens--; h.slot.removed && h.slot.opens == 0 {
			m.reset(h.slot.ch)
			m.count--
		}
	case h.entry != nil:
		if e := h.entry; !e.out && !e.closed {
			m.spend(e, 0)
			m.reset(e.ch)
		}
	case h.ch != nil:
		m.reset(h.ch)
	}
}

// expire ends a request that nobody asked for, as its time does.
func (m *model) expire() {
	for _, ino := range slices.Sorted(maps.Keys(m.boxes)) {
		if len(m.boxes[ino]) == 0 {
			continue
		}
		e := pick(m.r, m.boxes[ino])
		m.f.boxes.expire(e.real)
		m.say("expire a request to %s", m.names[ino-1])
		if !e.closed {
			return
		}
		m.spend(e, syscall.EBUSY)
		m.reset(e.ch)
		for _, x := range m.boxes[ino] {
			x.mixed = true
		}
		return
	}
}

// drop is the end of a key.
func (m *model) drop() {
	ino := uint64(1 + m.r.IntN(len(m.names)))
	m.say("drop %s", m.names[ino-1])
	m.f.Drop(func(i uint64) bool { return i%1000 == ino })
	for _, e := range slices.Clone(m.boxes[ino]) {
		m.spend(e, syscall.EKEYREVOKED)
		m.reset(e.ch)
	}
	for name, s := range m.slots {
		if s.ino == ino {
			m.removed(name, s)
			m.reset(s.ch)
		}
	}
}

// end closes all.
func (m *model) end() {
	m.f.set(func(f *faults) { *f = faults{} })
	for len(m.handles) > 0 {
		m.close(m.r.IntN(len(m.handles)))
	}
	for len(m.held) > 0 {
		m.release()
	}
	m.f.Close()
	m.f.empty(m.t)
}
