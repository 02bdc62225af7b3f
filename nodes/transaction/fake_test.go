package transaction

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// The limits of the tests are small, so that random steps meet them.
const (
	testBody    = 4 << 10
	testPerUser = 24
	testBytes   = 5 << 10
)

// shapes are specs of each kind that the table has. Their names are their operations'.
var shapes = map[string]*Spec{
	"streamed": {Inputs: []Input{{Name: "message"}}, Outputs: []Output{{Name: "signature", Encode: encodeTwice}}},
	"whole":    {Inputs: []Input{{Name: "hash", Whole: 64}}, Outputs: []Output{{Name: "signature"}}},
	"cut":      {Inputs: []Input{{Name: "signature", Required: required, Cut: cutCounted}, {Name: "message"}}, Outputs: []Output{{Name: "result"}}},
	"cutwhole": {Inputs: []Input{{Name: "signature", Required: required, Cut: cutCounted}, {Name: "hash", Whole: 64}}, Outputs: []Output{{Name: "result"}}},
	"named": {Inputs: []Input{{Name: "salt"}, {Name: "info"}, {Name: "peer", Required: required, Whole: 256}},
		Outputs: []Output{{Name: "secret"}, {Name: "public", SlotOnly: true}}},
	"both": {Inputs: []Input{{Name: "nonce"}, {Name: "additional_data", Long: true}, {Name: "plaintext"}},
		Outputs: []Output{{Name: "nonce"}, {Name: "ciphertext"}}},
	"bare":    {Outputs: []Output{{Name: "ciphertext"}, {Name: "secret"}}},
	"bareone": {Outputs: []Output{{Name: "secret"}}},
	"said":    {Inputs: []Input{{Name: "message"}}, Outputs: []Output{{Name: "result", Text: "valid\n"}}},
}

func required(psa.Attributes) bool { return true }

var errUncut = psa.Errorf(psa.StatusInvalidSignature, "this begins with no signature")

// cutCounted finds an input behind a byte that counts its own; none may be empty.
func cutCounted(_ psa.Attributes, b []byte, alone bool) (n int, value []byte, more bool, err error) {
	if len(b) == 0 {
		return 0, nil, true, errUncut
	}
	n = 1 + int(b[0])
	switch {
	case n == 1 || alone && len(b) != n:
		return 0, nil, false, errUncut
	case len(b) < n:
		return 0, nil, true, errUncut
	}
	return n, b[1:n], false, nil
}

func encodeTwice(_ psa.Attributes, b []byte) ([]byte, error) {
	return append(slices.Clone(b), b...), nil
}

// answers are the outputs to exactly these inputs.
func answers(spec *Spec, in map[string][]byte) map[string][]byte {
	h := sha256.New()
	for _, i := range spec.Inputs {
		if b := in[i.Name]; len(b) > 0 {
			fmt.Fprintf(h, "%s %d %s\n", i.Name, len(b), b)
		}
	}
	sum := hex.EncodeToString(h.Sum(nil))
	out := map[string][]byte{}
	for _, o := range spec.Outputs {
		out[o.Name] = []byte(o.Name + ":" + sum + "\n")
	}
	return out
}

// errnoOf is what a user sees of an error.
func errnoOf(t *testing.T, err error) syscall.Errno {
	t.Helper()
	if err == nil {
		return 0
	}
	var r *gate.Refusal
	if errors.As(err, &r) {
		return r.Errno
	}
	errno, ok := map[psa.Status]syscall.Errno{psa.StatusRevoked: syscall.EKEYREVOKED, psa.StatusTooLarge: syscall.EFBIG, psa.StatusInsufficientMemory: syscall.ENOMEM,
		psa.StatusInvalidSignature: syscall.EBADMSG, psa.StatusInvalidArgument: syscall.EINVAL, psa.StatusHardwareFailure: syscall.EIO, psa.StatusGenericError: syscall.EIO,
		psa.StatusNotPermitted: syscall.EACCES, psa.StatusProviderAbsent: syscall.ENODEV, psa.StatusStorageFailure: syscall.EIO}[psa.StatusOf(err)]
	if !ok {
		t.Fatalf("%v has no errno", err)
	}
	return errno
}

// faults are what goes wrong from now on.
type faults struct{ gone, refused, begin, write, finish, unready bool }

// fake is a machine over operations that answer with a digest of what they were given.
type fake struct {
	*Machine
	gate *gate.Gate

	mu      sync.Mutex
	faults  faults
	hold    bool              // Finish waits
	held    chan *fakeRun     // those that do
	secrets [][]byte          // what must be wiped at the end
	begun   map[*fakeRun]bool // and neither finished nor aborted
	ended   int
	made    int
}

func newFake(t *testing.T) *fake {
	f := &fake{held: make(chan *fakeRun, 1), begun: map[*fakeRun]bool{}}
	procs := caller.New()
	f.gate = gate.New(procs, nil)
	f.Machine = New(Options{Procs: procs, BodyLimit: testBody, PerUser: testPerUser, BytesPerUser: testBytes,
		Log: slog.New(slog.DiscardHandler)})
	return f
}

func (f *fake) now() faults {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.faults
}

func (f *fake) set(change func(*faults)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(&f.faults)
}

// secret notes a buffer of the machine, or one that it was lent.
func (f *fake) secret(b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.secrets = append(f.secrets, b)
}

// track notes what a channel's request holds.
func (f *fake) track(c *Channel) {
	if c == nil || c.req == nil {
		return
	}
	c.req.mu.Lock()
	defer c.req.mu.Unlock()
	f.secret(c.req.joined)
	if c.req.phase != collecting || c.req.feed == nil {
		return
	}
	f.secret(c.req.feed.buf)
	for _, b := range c.req.feed.named {
		f.secret(b)
	}
}

// file is a file of a shape.
func (f *fake) file(shape string, ino uint64) File {
	return File{Ino: ino, Spec: shapes[shape], Make: func(context.Context, uint32) (Operation, error) {
		if f.now().gone {
			return nil, errGone
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.made++
		return &fakeOperation{f: f, spec: shapes[shape], quick: f.made%2 == 0}, nil
	}}
}

type fakeOperation struct {
	f     *fake
	spec  *Spec
	quick bool
}

func (o *fakeOperation) Attributes() psa.Attributes { return psa.Attributes{} }
func (o *fakeOperation) Path() string               { return "providers/fake" }
func (o *fakeOperation) Digest() hash.Hash          { return nil }

func (o *fakeOperation) Ready(caller.Caller) error {
	if o.f.now().unready {
		return psa.Errorf(psa.StatusStorageFailure, "the trail cannot be written")
	}
	return nil
}

func (o *fakeOperation) Authorize(_ context.Context, _ caller.Caller, in Inputs) error {
	for _, b := range in {
		o.f.secret(b)
	}
	if o.f.now().refused {
		return psa.Errorf(psa.StatusNotPermitted, "a name that the caller may not use")
	}
	return nil
}

// Quick is every other operation, but none that waits.
func (o *fakeOperation) Quick(caller.Caller) bool {
	o.f.mu.Lock()
	defer o.f.mu.Unlock()
	return o.quick && !o.f.hold
}

func (o *fakeOperation) Present(context.Context) error {
	if o.f.now().gone {
		return errGone
	}
	return nil
}

func (o *fakeOperation) Ended(caller.Caller, hash.Hash, time.Time, error) {
	o.f.mu.Lock()
	defer o.f.mu.Unlock()
	o.f.ended++
}

var errBroken = psa.Errorf(psa.StatusHardwareFailure, "the device is broken")

func (o *fakeOperation) Begin(_ context.Context, in Inputs, length int) (psa.Run, bool, error) {
	if o.f.now().begin {
		return nil, false, errBroken
	}
	r := &fakeRun{f: o.f, spec: o.spec, in: map[string][]byte{}, length: length}
	for name, b := range in {
		if len(b) == 0 {
			return nil, false, errors.New("an empty input is named")
		}
		o.f.secret(b)
		r.in[name] = slices.Clone(b)
	}
	o.f.mu.Lock()
	defer o.f.mu.Unlock()
	o.f.begun[r] = true
	return r, len(o.spec.Inputs) > 0 && o.spec.main().Whole == 0, nil
}

// fakeRun is one operation.
type fakeRun struct {
	f      *fake
	spec   *Spec
	in     map[string][]byte
	main   []byte
	length int
	goOn   chan struct{}
}

func (r *fakeRun) Write(p []byte) (int, error) {
	r.f.secret(p)
	if r.f.now().write {
		return 0, errBroken
	}
	r.main = append(r.main, p...)
	return len(p), nil
}

func (r *fakeRun) Finish(context.Context) (psa.Result, error) {
	fails := r.f.now().finish
	r.f.mu.Lock()
	hold := r.f.hold
	r.f.hold = false
	r.f.mu.Unlock()
	if hold {
		r.goOn = make(chan struct{})
		r.f.held <- r
		<-r.goOn
	}
	r.over()
	if fails {
		return psa.Result{}, errBroken
	}
	if main := r.spec.main(); main.Name != "" {
		if main.Whole != 0 && r.length != len(r.main) {
			return psa.Result{}, errors.New("Begin was told another length")
		}
		r.in[main.Name] = r.main
	}
	out := answers(r.spec, r.in)
	for i, o := range r.spec.Outputs {
		if r.spec.Outputs[i].Encode == nil && r.spec.Outputs[i].Text == "" {
			r.f.secret(out[o.Name])
		}
	}
	return psa.Result{Outputs: out}, nil
}

func (r *fakeRun) FinishHere(ctx context.Context, _ func(error)) (psa.Result, error) {
	return r.Finish(ctx)
}

func (r *fakeRun) Quick() bool { return true }

func (r *fakeRun) Pass(ctx context.Context) (result psa.Result, passed bool, err error) {
	result, err = r.Finish(ctx)
	return result, true, err
}

func (r *fakeRun) Abort() { r.over() }

func (r *fakeRun) over() {
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	delete(r.f.begun, r)
}

// empty checks that a machine of which everything was closed holds nothing any more.
func (f *fake) empty(t *testing.T) {
	t.Helper()
	f.Drain(t.Context())
	f.account.mu.Lock()
	for uid, h := range f.account.users {
		t.Errorf("uid %d still holds %d handles, %d bytes, %d calls and %d effects", uid, h[handles], h[held], h[calls], h[effects])
	}
	f.account.mu.Unlock()
	f.slots.mu.Lock()
	if n := len(f.slots.dirs); n != 0 {
		t.Errorf("%d directories of slots are left", n)
	}
	f.slots.mu.Unlock()
	f.boxes.mu.Lock()
	if n := len(f.boxes.box); n != 0 {
		t.Errorf("%d drop boxes are left", n)
	}
	f.boxes.mu.Unlock()
	f.sizes.mu.Lock()
	if n := len(f.sizes.channels); n != 0 {
		t.Errorf("%d inodes have a size", n)
	}
	f.sizes.mu.Unlock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := len(f.begun); n != 0 {
		t.Errorf("%d operations were neither finished nor aborted", n)
	}
	unwiped := 0
	for _, b := range f.secrets {
		if slices.ContainsFunc(b, func(c byte) bool { return c != 0 }) {
			unwiped++
		}
	}
	if unwiped > 0 {
		t.Errorf("%d of %d buffers were not wiped", unwiped, len(f.secrets))
	}
}

// fakeWay is the way to a file that lies in no directory.
type fakeWay struct {
	ino  uint64
	mu   sync.Mutex
	mode uint32
}

func (w *fakeWay) Numbers() ([gate.Steps]uint64, error) {
	return [gate.Steps]uint64{gate.Steps - 1: w.ino}, nil
}

func (w *fakeWay) Path(int) string { return "providers/fake" }

func (w *fakeWay) Rights(context.Context, int) (gate.Rights, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return gate.RightsOf(0, 0, w.mode, nil), nil
}

func (w *fakeWay) Units(context.Context) (gate.Units, error) { return gate.Units{}, nil }

func (w *fakeWay) chmod(mode uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mode = mode
}

// another is a process of another user, which does nothing: what a test does for it is done as it.
func another(t *testing.T, uid int) caller.Caller {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	id := strconv.Itoa(uid)
	c := sleeper(t, "setpriv", "--reuid="+id, "--regid="+id, "--clear-groups")
	return caller.Caller{UID: uint32(uid), GID: uint32(uid), TID: c}
}

// sleeper starts a process that waits for the end of the test, by a command that becomes another one.
func sleeper(t *testing.T, by ...string) uint32 {
	t.Helper()
	// it says that it is what it is to be, and ends with its input
	c := exec.Command(by[0], append(by[1:], "sh", "-c", "echo; read end")...)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = c.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return uint32(c.Process.Pid)
}
