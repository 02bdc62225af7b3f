package pkcs11

import (
	"encoding/binary"
	"errors"
	"io"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// method is what a request asks a worker for.
type method uint64

const (
	methodOpen       method = iota + 1 // find the token that selector means: token
	methodLogin                        // data is the PIN
	methodIdentify                     // the token as it is now: token
	methodMechanisms                   // what it lists: mechanisms
	methodCreate                       // an object of templates[0]: object
	methodGenerate                     // with mechanism, a key of templates[0], or with [1] a pair, the public one first: object, and of a pair its types
	methodDestroy                      // every object that object's ID names
	methodForget                       // destroy the one object of a handle
	methodRead                         // types of an object: objects, one
	methodList                         // types of all the token's objects of object's class: objects
	methodSign                         // data
	methodEncrypt                      // data
	methodDecrypt                      // data
	methodDerive                       // a secret of templates[0], whose value is the answer
	methodRandom                       // length bytes
	methodClose                        // C_Finalize
)

// outcome is how a request ended.
type outcome uint64

const (
	outcomeOK        outcome = iota
	outcomeRefused           // the module said rv to the call what
	outcomeLost              // so it did, and nothing happened: the session, the login or the token is gone
	outcomeGone              // as lost, but it may have happened
	outcomeNoToken           // no token is the selector's; what lists those that are there
	outcomeNotFound          // the token has no such object
	outcomeAmbiguous         // it has several
	outcomeReplaced          // it has another one of that name
	outcomeExists            // the ID is taken
	outcomeBad               // the request makes no sense
)

// selector says which token is meant: all that is set must fit.
type selector struct {
	label, serial, manufacturer, model string
	slot                               uint64 // its number
	bySlot                             bool
}

// object names an object on the token: by its handle, or by class and CKA_ID, CKA_LABEL or both. Another object can get the
// name later, so the name of a key pair comes with its modulus or public point, which no other key has.
type object struct {
	handle uint64
	class  uint64
	id     []byte
	label  string
	unique []byte
	of     *process // whose handle it is; stays here
}

// paramKind says what a mechanism's parameter is.
type paramKind uint64

const (
	paramBytes paramKind = iota // parameter, as it is; none if empty
	paramPSS                    // hash, mgf, length
	paramOAEP                   // hash, mgf, data: the label
	paramGCM                    // parameter: the IV, data: additional data, length: the tag's bits
	paramECDH                   // data: the point
)

// mechanism is a CK_MECHANISM without pointers.
type mechanism struct {
	number            uint64
	kind              paramKind
	parameter, data   []byte
	hash, mgf, length uint64
}

// attribute is a CK_ATTRIBUTE. It is missing if the object does not have it, or does not show it.
type attribute struct {
	number  uint64
	value   []byte
	missing bool
}

type request struct {
	id        uint64
	method    method
	selector  selector
	object    object
	mechanism mechanism
	templates [2][]attribute
	types     []uint64
	data      []byte
	length    uint64
}

// tokenInfo is of CK_TOKEN_INFO, CK_SLOT_INFO and CK_INFO.
type tokenInfo struct {
	label, serial, manufacturer, library string
	marker                               string // in hexadecimal; empty: the token has none
	flags                                uint64
	hardware                             bool
}

// mechanismInfo is CK_MECHANISM_INFO.
type mechanismInfo struct{ number, least, most, flags uint64 }

type response struct {
	id         uint64
	outcome    outcome
	rv         uint64
	what       string // the call that failed
	data       []byte
	token      tokenInfo
	object     uint64
	objects    [][]attribute
	mechanisms []mechanismInfo
	of         *process // who answered; stays here
}

// maxFrame is the maximum length of a request or response in bytes.
const maxFrame = 16 << 20

// maxList limits the elements of a list in a message, and maxElements those of all its lists, because an element takes more
// memory than it has bytes.
const (
	maxList     = 1 << 16
	maxElements = 1 << 19
)

var errFrame = errors.New("the frame is damaged")

// codec writes a message's fields in their order, or reads them: each message has one list of fields.
type codec struct {
	out     *buffer
	in      []byte // what is left to be read
	reading bool
	read    uint64 // elements of lists
	err     error
}

func (c *codec) fail() { c.in, c.err = nil, errFrame }

func (c *codec) uint(v *uint64) {
	if !c.reading {
		var b [binary.MaxVarintLen64]byte
		c.out.add(b[:binary.PutUvarint(b[:], *v)])
		return
	}
	value, n := binary.Uvarint(c.in)
	if n <= 0 {
		c.fail()
		return
	}
	*v, c.in = value, c.in[n:]
}

// bytes are not copied when they are read: they stay in the frame.
func (c *codec) bytes(v *[]byte) {
	n := uint64(len(*v))
	c.uint(&n)
	switch {
	case !c.reading:
		c.out.add(*v)
	case n > uint64(len(c.in)):
		c.fail()
	case n > 0:
		*v, c.in = c.in[:n:n], c.in[n:]
	}
}

func (c *codec) text(v *string) {
	b := []byte(*v)
	c.bytes(&b)
	if c.reading {
		*v = string(b)
	}
}

func (c *codec) flag(v *bool) {
	n := uint64(0)
	if *v {
		n = 1
	}
	c.uint(&n)
	if n > 1 {
		c.fail()
	}
	*v = n == 1
}

// list handles each element. An element has at least one byte, so the frame's length limits what is allocated.
func list[T any](c *codec, v *[]T, each func(*T)) {
	n := uint64(len(*v))
	c.uint(&n)
	if c.reading {
		if n > min(uint64(len(c.in)), maxList, maxElements-c.read) {
			c.fail()
			return
		}
		c.read += n
		*v = nil
		if n > 0 {
			*v = make([]T, n)
		}
	}
	for i := range *v {
		each(&(*v)[i])
	}
}

func (c *codec) attribute(a *attribute) {
	c.uint(&a.number)
	c.bytes(&a.value)
	c.flag(&a.missing)
}

func (c *codec) attributes(a *[]attribute) { list(c, a, c.attribute) }

func (c *codec) request(r *request) {
	c.uint(&r.id)
	c.uint((*uint64)(&r.method))
	s := &r.selector
	for _, text := range []*string{&s.label, &s.serial, &s.manufacturer, &s.model} {
		c.text(text)
	}
	c.uint(&s.slot)
	c.flag(&s.bySlot)
	c.uint(&r.object.handle)
	c.uint(&r.object.class)
	c.bytes(&r.object.id)
	c.text(&r.object.label)
	c.bytes(&r.object.unique)
	m := &r.mechanism
	c.uint(&m.number)
	c.uint((*uint64)(&m.kind))
	c.bytes(&m.parameter)
	c.bytes(&m.data)
	for _, n := range []*uint64{&m.hash, &m.mgf, &m.length} {
		c.uint(n)
	}
	c.attributes(&r.templates[0])
	c.attributes(&r.templates[1])
	list(c, &r.types, c.uint)
	c.bytes(&r.data)
	c.uint(&r.length)
}

func (c *codec) response(r *response) {
	c.uint(&r.id)
	c.uint((*uint64)(&r.outcome))
	c.uint(&r.rv)
	c.text(&r.what)
	c.bytes(&r.data)
	t := &r.token
	for _, text := range []*string{&t.label, &t.serial, &t.manufacturer, &t.library} {
		c.text(text)
	}
	c.uint(&t.flags)
	c.text(&t.marker)
	c.flag(&t.hardware)
	c.uint(&r.object)
	list(c, &r.objects, c.attributes)
	list(c, &r.mechanisms, func(m *mechanismInfo) {
		for _, n := range []*uint64{&m.number, &m.least, &m.most, &m.flags} {
			c.uint(n)
		}
	})
}

// buffer is a buffer that leaves no copy behind when it grows.
type buffer struct{ b []byte }

func (b *buffer) add(p []byte) {
	if need := len(b.b) + len(p); need > cap(b.b) {
		grown := make([]byte, len(b.b), max(need, 2*cap(b.b), 512))
		copy(grown, b.b)
		b.wipe()
		b.b = grown
	}
	b.b = append(b.b, p...)
}

// wipe empties it, and keeps its room.
func (b *buffer) wipe() {
	psa.Wipe(b.b)
	b.b = b.b[:0]
}

// frameHead is how many bytes say a frame's length, big endian.
const frameHead = 4

// frame appends a message. If the message is too long, it appends nothing.
func (b *buffer) frame(fields func(*codec)) error {
	start := len(b.b)
	b.add(make([]byte, frameHead))
	fields(&codec{out: b})
	n := len(b.b) - start - frameHead
	if n > maxFrame {
		psa.Wipe(b.b[start:])
		b.b = b.b[:start]
		return psa.Errorf(psa.StatusTooLarge, "the call has %d bytes; allowed: up to %d", n, maxFrame)
	}
	binary.BigEndian.PutUint32(b.b[start:], uint32(n))
	return nil
}

// parse reads a frame's content, which must be exactly one message.
func parse(content []byte, fields func(*codec)) error {
	c := &codec{in: content, reading: true}
	fields(c)
	if c.err == nil && len(c.in) > 0 {
		c.err = errFrame
	}
	return c.err
}

// frames splits what is read into frames. Its buffer is wiped as it is used.
type frames struct {
	from  io.Reader
	most  func() int // bytes that a frame may have, asked when one begins; nil: maxFrame
	room  []byte
	start int // what was read and not given yet: room[start:end]
	end   int
}

func newFrames(from io.Reader) *frames { return &frames{from: from, room: make([]byte, 64<<10)} }

// next is the next frame's content, which belongs to the caller. The end between two frames is io.EOF.
func (f *frames) next() ([]byte, error) {
	for f.end-f.start < frameHead {
		if err := f.fill(); err != nil {
			if f.end > f.start && err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	n, most := binary.BigEndian.Uint32(f.room[f.start:]), maxFrame
	if f.most != nil {
		most = f.most()
	}
	if int64(n) > int64(most) {
		return nil, errFrame
	}
	f.start += frameHead
	content := make([]byte, n)
	have := copy(content, f.room[f.start:f.end])
	psa.Wipe(f.room[f.start : f.start+have])
	if f.start += have; have == int(n) {
		return content, nil
	}
	if _, err := io.ReadFull(f.from, content[have:]); err != nil {
		psa.Wipe(content)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return content, nil
}

func (f *frames) fill() error {
	if f.start > 0 {
		n := copy(f.room, f.room[f.start:f.end])
		psa.Wipe(f.room[n:f.end])
		f.start, f.end = 0, n
	}
	n, err := f.from.Read(f.room[f.end:])
	f.end += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// buffered says whether a whole frame was read already.
func (f *frames) buffered() bool {
	have := f.end - f.start
	return have >= frameHead && uint32(have-frameHead) >= binary.BigEndian.Uint32(f.room[f.start:])
}

func (f *frames) wipe() { psa.Wipe(f.room) }
