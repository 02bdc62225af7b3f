package transaction

import (
	"context"
	"maps"
	"syscall"

	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// feed brings a request's bytes to its Run: it cuts off the inputs that come first, waits where the operation needs an
// input whole, and streams the rest.
type feed struct {
	spec     *Spec
	parted   bool
	op       Operation
	limit    int64
	named    map[string][]byte // inputs that are complete or were given by name
	buf      []byte            // the stream while it cannot be handed on
	run      psa.Run
	streams  bool  // the run keeps nothing of it
	passed   int64 // bytes that the run was given
	rejected error // the stream cannot be what it should be; told at READ
}

// holds is how many bytes the request keeps in memory.
func (f *feed) holds() int64 {
	n := int64(len(f.buf))
	for _, b := range f.named {
		n += int64(len(b))
	}
	if f.run != nil && !f.streams {
		n += f.passed
	}
	return n
}

// TooLarge refuses an input that is longer than a bound.
func TooLarge(name string, most int64) error {
	return psa.Errorf(psa.StatusTooLarge, "the %s is longer than %d bytes", name, most).
		WithHint("the operation cannot stream its input, so core_settings.body_len_limit limits it")
}

func (f *feed) write(in *Input, p []byte) error {
	main := f.spec.main()
	if in != nil && in != main {
		return f.add(in, p)
	}
	if f.spec.bare() && len(p) > 0 {
		return psa.Errorf(psa.StatusInvalidArgument, "this operation takes no input").WithHint("open the file only for reading")
	}
	if f.rejected != nil {
		return nil
	}
	if f.run != nil {
		return f.hand(p)
	}
	most := f.limit + maxTag
	if main.Whole != 0 {
		most = main.Whole
		if f.spec.leads() && !f.parted {
			most += maxNamed
		}
	}
	// the bound is on what waits here; the run has its own
	if f.waits() && int64(len(f.buf)+len(p)) > most {
		return TooLarge(main.Name, most)
	}
	if !f.waits() && !f.spec.cuts() {
		return f.start(p)
	}
	f.buf = Extend(f.buf, p)
	if f.waits() {
		return nil
	}
	return f.start(nil)
}

// add collects an input that is given by name.
func (f *feed) add(in *Input, p []byte) error {
	most := int64(maxNamed)
	if in.Long {
		most = f.limit
	}
	if int64(len(f.named[in.Name])+len(p)) > most {
		return TooLarge(in.Name, most)
	}
	f.name(in.Name, Extend(f.named[in.Name], p))
	return nil
}

func (f *feed) name(name string, value []byte) {
	if f.named == nil {
		f.named = map[string][]byte{}
	}
	f.named[name] = value
}

// clear empties an input.
func (f *feed) clear(in *Input) {
	if in == f.spec.main() {
		psa.Wipe(f.buf)
		f.buf = nil
		return
	}
	psa.Wipe(f.named[in.Name])
	delete(f.named, in.Name)
}

// waits says whether the main input must be kept until READ: where the operation depends on its length, and in a
// directory slot, where other inputs may still come.
func (f *feed) waits() bool { return f.spec.main().Whole != 0 || f.parted }

// Extend is append for bytes that may be secret: an array that became too small is wiped.
func Extend(b, p []byte) []byte {
	if len(b)+len(p) <= cap(b) {
		return append(b, p...)
	}
	grown := append(make([]byte, 0, max(2*cap(b), len(b)+len(p))), b...)
	psa.Wipe(b)
	return append(grown, p...)
}

// start begins the operation as soon as the inputs in front of the stream are complete; p comes behind what was kept.
func (f *feed) start(p []byte) error {
	if !f.parted && !f.cut(false) {
		return nil
	}
	if f.rejected != nil {
		psa.Wipe(f.buf)
		f.buf = nil
		return nil
	}
	inputs := maps.Clone(f.named)
	maps.DeleteFunc(inputs, func(_ string, b []byte) bool { return len(b) == 0 })
	run, streams, err := f.op.Begin(context.Background(), inputs, len(f.buf)+len(p))
	if err != nil {
		return err
	}
	f.run, f.streams = run, streams
	buf := f.buf
	f.buf = nil
	defer psa.Wipe(buf)
	if err := f.hand(buf); err != nil {
		return err
	}
	return f.hand(p)
}

func (f *feed) hand(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	f.passed += int64(len(p))
	_, err := f.run.Write(p)
	return err
}

// cut takes the leading inputs off the stream; false where more bytes are needed to do so. At the end of the stream what
// is not complete is rejected.
func (f *feed) cut(ended bool) bool {
	for _, in := range f.spec.Inputs {
		if _, have := f.named[in.Name]; in.Cut == nil || have {
			continue
		}
		n, value, more, err := in.Cut(f.op.Attributes(), f.buf, false)
		if more && !ended && len(f.buf) <= maxNamed {
			return false
		}
		if f.rejected = err; err != nil {
			return true
		}
		f.name(in.Name, append([]byte(nil), value...))
		rest := append([]byte(nil), f.buf[n:]...)
		psa.Wipe(f.buf)
		f.buf = rest
	}
	return true
}

// fits judges the inputs of a directory slot: none may be missing that nobody can make up, and what the plain file would
// cut off its stream stands alone.
func (f *feed) fits() error {
	main := f.spec.main()
	for i := range f.spec.Inputs {
		in := &f.spec.Inputs[i]
		b := f.named[in.Name]
		if in == main {
			b = f.buf
		}
		if len(b) == 0 && in.Required != nil && in.Required(f.op.Attributes()) {
			return gate.Refuse(syscall.ENODATA, "no "+in.Name+" was written", "write it into "+in.Name+" beside this file")
		}
		if in.Cut == nil || len(b) == 0 {
			continue
		}
		_, value, _, err := in.Cut(f.op.Attributes(), b, true)
		if err != nil {
			return err
		}
		f.name(in.Name, append([]byte(nil), value...))
		psa.Wipe(b)
	}
	return nil
}

// stayer is a Run whose Finish is one call of a provider, in the goroutine of whoever calls it. Quick ones can pass at once, and wait
// for nobody.
type stayer interface {
	FinishHere(ctx context.Context, tell func(error)) (psa.Result, error)
	Quick() bool
	Pass(ctx context.Context) (result psa.Result, passed bool, err error)
}

// begin begins an operation that has not begun.
func (f *feed) begin() error {
	if f.run != nil || f.rejected != nil {
		return nil
	}
	return f.complete()
}

// quick says whether pass would finish what has begun, without a wait.
func (f *feed) quick() bool {
	s, ok := f.run.(stayer)
	return f.rejected != nil || ok && s.Quick()
}

// pass is finish of what is quick; false: it is not, and is to be finished.
func (f *feed) pass(ctx context.Context) (outputs map[string][]byte, passed bool, err error) {
	if err := f.begin(); err != nil {
		f.abort()
		return nil, true, err
	}
	if f.rejected != nil {
		f.abort()
		return nil, true, f.rejected
	}
	s, ok := f.run.(stayer)
	if !ok {
		return nil, false, nil
	}
	result, passed, err := s.Pass(ctx)
	if !passed {
		return nil, false, nil
	}
	f.run = nil
	defer f.abort()
	if err != nil {
		return nil, true, err
	}
	outputs, err = f.encode(result.Outputs)
	return outputs, true, err
}

// finish completes the request and runs it. In a directory slot it is here that the operation begins. Where it is one
// call of the provider, tell gets the error of one that does not answer in time, which is returned when it does.
func (f *feed) finish(ctx context.Context, tell func(error)) (map[string][]byte, error) {
	defer f.abort()
	if err := f.begin(); err != nil {
		return nil, err
	}
	if f.rejected != nil {
		return nil, f.rejected
	}
	run := f.run
	f.run = nil
	var result psa.Result
	var err error
	if s, ok := run.(stayer); ok {
		result, err = s.FinishHere(ctx, tell)
	} else {
		result, err = run.Finish(ctx)
	}
	if err != nil {
		return nil, err
	}
	return f.encode(result.Outputs)
}

// complete begins an operation whose inputs are all there.
func (f *feed) complete() error {
	if f.parted {
		if err := f.fits(); err != nil {
			return err
		}
		return f.start(nil)
	}
	f.cut(true)
	return f.start(nil)
}

// encode brings a result into the file's shape.
func (f *feed) encode(o map[string][]byte) (map[string][]byte, error) {
	if o == nil {
		o = map[string][]byte{}
	}
	for _, out := range f.spec.Outputs {
		if out.Text != "" {
			o[out.Name] = []byte(out.Text)
		}
		if out.Encode == nil || o[out.Name] == nil {
			continue
		}
		b, err := out.Encode(f.op.Attributes(), o[out.Name])
		if err != nil {
			wipeAll(o)
			return nil, err
		}
		o[out.Name] = b
	}
	return o, nil
}

// abort wipes what the feed holds; safe to call twice.
func (f *feed) abort() {
	if f.run != nil {
		f.run.Abort()
		f.run = nil
	}
	psa.Wipe(f.buf)
	f.buf = nil
	for name, b := range f.named {
		psa.Wipe(b)
		delete(f.named, name)
	}
}
