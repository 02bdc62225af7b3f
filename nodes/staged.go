package nodes

import (
	"bytes"
	"cmp"
	"context"
	"encoding/pem"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/pelletier/go-toml/v2"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// stageMost bounds what a staged file holds: an RSA-8192 key in PEM has 6.4 KiB.
const stageMost = 64 << 10

// budget is a number of bytes that can be taken once.
type budget struct{ taken atomic.Int64 }

func (b *budget) take(want int, most int64) int {
	for {
		t := b.taken.Load()
		n := min(int64(want), most-t)
		if n <= 0 || b.taken.CompareAndSwap(t, t+n) {
			return int(max(n, 0))
		}
	}
}

// stage reads what was written into a staged file so far.
type stage struct {
	// scan finds the first complete thing in b: where it ends and what it asks for. end 0 without an error is "not
	// yet". alone says that b came with one WRITE.
	scan func(b []byte, alone bool) (end int, apply func(ctx context.Context) error, err error)
	// most is how many bytes it may hold, stageMost if 0.
	most int
	// atClose: whether b takes effect at the end of the file alone: it cannot be taken back, and lines that follow may
	// take rights away (bash's printf sends each line by itself).
	atClose func(b []byte) bool
	// again: what comes after belongs to the same text, and the whole is read anew; else only white space and PEM
	// blocks that are no key may follow.
	again bool
}

// stagedFile is text that takes input.
type stagedFile struct{ fileNode }

var _ = (fs.NodeOpener)((*stagedFile)(nil))

// Open is safe because the stage is the handle's own, and nothing stored changes before it is complete.
func (n *stagedFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	b, err := n.render(ctx)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	if flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		return snapshot(b), fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
	}
	if err := n.t.admit(ctx, n.p, nil); err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	return &stagedHandle{n: n, flags: flags, opener: caller(ctx).Uid, text: b}, fuse.FOPEN_DIRECT_IO, 0
}

var _ = (fs.NodeSetattrer)((*stagedFile)(nil))

// Setattr is safe because truncation empties the stage of its own open file, and never what is stored.
func (n *stagedFile) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if size != 0 {
			return n.t.fail(ctx, n.place(), "truncate", refuse(syscall.EINVAL, "this file can be truncated to 0 only", ""))
		}
		if h, ok := fh.(*stagedHandle); ok {
			if _, byHandle := in.GetFh(); byHandle {
				h.empty()
			}
		}
	}
	return n.change(ctx, in, out)
}

// stagedHandle is one open staged file.
type stagedHandle struct {
	n      *stagedFile
	flags  uint32
	opener uint32
	text   snapshot

	mu     sync.Mutex
	buf    []byte
	writes int
	cursor cursor
	poison error
	done   bool // applied; only what may be ignored can follow
	left   int  // bytes that no effect has covered yet
	last   *application
	atEnd  func(context.Context) error // what FLUSH sets off
}

// application is an effect under way, and the WRITE that began it.
type application struct {
	off      int64
	data     []byte
	finished chan struct{}
	err      error
}

func (h *stagedHandle) empty() {
	h.mu.Lock()
	defer h.mu.Unlock()
	wipe(h.buf)
	h.buf, h.writes, h.cursor, h.poison, h.done, h.left, h.atEnd = nil, 0, cursor{}, nil, false, 0, nil
}

var _ = (fs.FileReader)((*stagedHandle)(nil))

// Read gives the stored text as it was at open.
func (h *stagedHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return h.text.Read(ctx, dest, off)
}

var _ = (fs.FileWriter)((*stagedHandle)(nil))

// Write parses the stage and applies it as soon as it is complete, so that a shell's echo sees the error: what FLUSH
// answers, shells throw away. It is safe because a stage that is not complete changes nothing.
func (h *stagedHandle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	h.mu.Lock()
	a, err := h.stage(ctx, data, off)
	h.mu.Unlock()
	if err == nil && a != nil {
		if err = wait(ctx, a.finished); err == nil {
			h.mu.Lock()
			err = h.settle(a)
			h.mu.Unlock()
		}
	}
	if err != nil {
		return 0, h.n.t.fail(ctx, h.n.place(), "write", err)
	}
	return uint32(len(data)), 0
}

// stage takes one WRITE; the application is what it set off, or the one that it asks for again after an EINTR.
func (h *stagedHandle) stage(ctx context.Context, data []byte, off int64) (*application, error) {
	if a := h.last; a != nil {
		if a.off == off && bytes.Equal(a.data, data) {
			return a, nil
		}
		select {
		case <-a.finished:
			if err := h.settle(a); err != nil {
				return nil, err
			}
		default:
			return nil, refuse(syscall.EBUSY, "the last WRITE is still taking effect", "write the same bytes again to wait for it")
		}
	}
	if h.poison != nil {
		return nil, h.poison
	}
	if !h.cursor.follows(off, h.flags) {
		return nil, h.spoil(errHole)
	}
	v, err := h.n.view(ctx)
	if err != nil {
		return nil, gone(err)
	}
	v.opener = h.opener
	s := h.n.row.stage(v)
	if most := cmp.Or(s.most, stageMost); len(h.buf)+len(data) > most {
		return nil, h.spoil(tooLarge(h.n.row.name, int64(most)))
	}
	h.buf = extend(h.buf, data)
	h.left += len(data)
	h.writes++
	h.cursor.advance(off, len(data))
	if h.done {
		return nil, h.rest()
	}
	h.atEnd = nil
	end, apply, err := s.scan(h.buf, h.writes == 1)
	if err != nil {
		return nil, h.spoil(err)
	}
	if end == 0 {
		return nil, nil
	}
	h.left = len(h.buf) - end
	if s.atClose != nil && s.atClose(h.buf[:end]) {
		h.atEnd = apply
		return nil, nil
	}
	if !s.again {
		h.done = true
		kept := append([]byte(nil), h.buf[end:]...)
		wipe(h.buf)
		h.buf = kept
		if err := h.rest(); err != nil {
			return nil, err
		}
	}
	return h.begin(ctx, &application{off: off, data: append([]byte(nil), data...)}, apply)
}

// begin sets an effect off.
func (h *stagedHandle) begin(ctx context.Context, a *application, apply func(context.Context) error) (*application, error) {
	if err := h.n.t.auditing.ready(); err != nil {
		return nil, h.spoil(err)
	}
	if !h.n.t.begin() {
		return nil, errLeaving
	}
	a.finished = make(chan struct{})
	h.last = a
	go h.run(a, caller(ctx), apply)
	return a, nil
}

// rest judges what follows a complete stage: white space, and PEM blocks that are no key. A block that has begun may
// go on in the next WRITE.
func (h *stagedHandle) rest() error {
	b := h.buf
	for {
		b = bytes.TrimLeft(b, " \t\r\n")
		block, after := pem.Decode(b)
		if block == nil {
			break
		}
		if strings.Contains(block.Type, "KEY") {
			wipe(block.Bytes)
			return h.spoil(psa.Errorf(psa.StatusInvalidArgument, "a second key follows the first"))
		}
		b = after
	}
	if h.left = len(b); h.left == 0 {
		return nil
	}
	const begin = "-----BEGIN "
	if n := min(len(b), len(begin)); string(b[:n]) == begin[:n] {
		return nil
	}
	return h.spoil(psa.Errorf(psa.StatusInvalidArgument, "something follows what was complete already"))
}

func (h *stagedHandle) spoil(err error) error {
	h.poison = err
	wipe(h.buf)
	h.buf, h.left = nil, 0
	return err
}

// run applies in a goroutine of its own: an interrupted WRITE must not end the creation of a key.
func (h *stagedHandle) run(a *application, by fuse.Caller, apply func(context.Context) error) {
	defer h.n.t.running.Done()
	defer close(a.finished)
	begun := time.Now()
	a.err = h.n.t.guard(h.n.place(), func() error { return apply(context.Background()) })
	h.n.t.audit(by, h.n.place(), h.n.row.name, begun, a.err)
}

// settle is the end of an application for the WRITE that waited.
func (h *stagedHandle) settle(a *application) error {
	if h.last == a {
		h.last = nil
		wipe(a.data)
	}
	if a.err != nil && h.poison == nil {
		_ = h.spoil(a.err)
	}
	return a.err
}

var _ = (fs.FileFlusher)((*stagedHandle)(nil))

// Flush refuses an incomplete stage, and applies what waits for the end of the file, unless its writer is being killed
// in the middle of it. bash sends one before it wrote anything.
func (h *stagedHandle) Flush(ctx context.Context) syscall.Errno {
	h.mu.Lock()
	defer h.mu.Unlock()
	if apply := h.atEnd; apply != nil && h.left == 0 && h.poison == nil && !interruptedBy(caller(ctx).Pid) {
		h.atEnd, h.done = nil, true
		wipe(h.buf)
		h.buf = nil
		a, err := h.begin(ctx, &application{off: -1}, apply)
		if err == nil {
			h.mu.Unlock()
			err = wait(ctx, a.finished)
			h.mu.Lock()
		}
		if err == nil {
			err = h.settle(a)
		}
		if err != nil {
			return h.n.t.fail(ctx, h.n.place(), "close", err)
		}
		return 0
	}
	if h.poison == nil && h.left > 0 && len(bytes.TrimSpace(h.buf[len(h.buf)-h.left:])) > 0 {
		return h.n.t.fail(ctx, h.n.place(), "close", psa.Errorf(psa.StatusInvalidArgument, "the text is not complete").WithHint("end it with a newline"))
	}
	return 0
}

// interruptedBy says whether whoever closes the file does so in the middle of what is written: it is being killed, or it is
// a child that becomes another program.
func interruptedBy(tid uint32) bool {
	signaled, busy := killed(tid)
	return signaled || busy
}

var _ = (fs.FileFsyncer)((*stagedHandle)(nil))

// Fsync is safe because what took effect is on the disk already.
func (h *stagedHandle) Fsync(context.Context, uint32) syscall.Errno { return 0 }

var _ = (fs.FileReleaser)((*stagedHandle)(nil))

// Release wipes the stage.
func (h *stagedHandle) Release(context.Context) syscall.Errno {
	h.empty()
	return 0
}

// fleeting is the time that the kernel may keep what a WRITE elsewhere changes: the shortest that is not go-fuse's
// default. We tell the kernel nothing on our own: a notification waits for the directory's lock, which a client's
// rmdir may hold until we answer; a daemon that is killed in between never lets go of /dev/fuse, and all hang.
const fleeting = time.Nanosecond

// stat is true whenever it is asked, the size too; and a draft's files go when it is a key.
func (n *stagedFile) stat(ctx context.Context) (stat, error) {
	s, err := n.fileNode.stat(ctx)
	s.fleeting, s.fleetingName = true, n.row.present != nil
	return s, err
}

// attributesInput is what may be written into attributes and, as TOML, into generate. Fields that only tell are
// allowed, so that a text that was read can be written back.
type attributesInput struct {
	Template     *string   `toml:"template"`
	Type         *string   `toml:"key_type"`
	Bits         *int      `toml:"key_bits"`
	Algorithm    *string   `toml:"permitted_algorithm"`
	Usage        any       `toml:"usage"`
	PCRs         *[]int    `toml:"pcrs"`
	AllowDestroy *bool     `toml:"allow_destroy"`
	CallerNonce  *bool     `toml:"caller_nonce"`
	Units        *[]string `toml:"units"`

	Name         any `toml:"name"`
	State        any `toml:"state"`
	Origin       any `toml:"origin"`
	Object       any `toml:"object"`
	Provider     any `toml:"provider"`
	UUID         any `toml:"uuid"`
	Created      any `toml:"created"`
	Fingerprints any `toml:"fingerprints"`
}

var errIncomplete = errors.New("not complete")

// parseAttributes reads TOML that ends with a whole line. errIncomplete is a value that goes on in the next line.
func parseAttributes(b []byte) (attributesInput, error) {
	var x attributesInput
	err := toml.NewDecoder(bytes.NewReader(b)).DisallowUnknownFields().Decode(&x)
	if err == nil {
		return x, nil
	}
	var unknown *toml.StrictMissingError
	if errors.As(err, &unknown) && len(unknown.Errors) > 0 {
		return x, psa.Errorf(psa.StatusInvalidArgument, "line %d: unknown attribute %q", first(unknown.Errors[0].Position()), strings.Join(unknown.Errors[0].Key(), ".")).
			WithHint("known are template, key_type, key_bits, permitted_algorithm, usage, pcrs, allow_destroy, caller_nonce and units")
	}
	var wrong *toml.DecodeError
	if errors.As(err, &wrong) {
		line, _ := wrong.Position()
		if line > bytes.Count(b, []byte("\n")) {
			return x, errIncomplete
		}
		return x, psa.Errorf(psa.StatusInvalidArgument, "line %d: %s", line, strings.TrimPrefix(wrong.Error(), "toml: "))
	}
	return x, psa.Errorf(psa.StatusInvalidArgument, "%v", err)
}

func first(line, _ int) int { return line }

// over puts the input over what is there: what is not named stays.
func (x attributesInput) over(a psa.Attributes) (psa.Attributes, error) {
	if x.Template != nil {
		t, err := psa.ParseTemplate(*x.Template)
		if err != nil {
			return a, err
		}
		a = t
	}
	var err error
	if x.Type != nil {
		if a.Type, err = psa.ParseKeyType(*x.Type); err != nil {
			return a, err
		}
	}
	if x.Bits != nil {
		a.Bits = *x.Bits
	}
	if x.Algorithm != nil {
		if a.Algorithm, err = psa.ParseAlgorithm(*x.Algorithm); err != nil {
			return a, err
		}
	}
	if x.Usage != nil {
		if a.Usage, err = usageOf(x.Usage); err != nil {
			return a, err
		}
	}
	if x.PCRs != nil {
		if a.PCRs, err = psa.NewPCRs(*x.PCRs); err != nil {
			return a, err
		}
	}
	return a, nil
}

// usageOf reads usage as a list of flags or as PSA writes them, joined by "|".
func usageOf(v any) (psa.Usage, error) {
	switch x := v.(type) {
	case string:
		return psa.ParseUsage(x)
	case []any:
		var u psa.Usage
		for _, e := range x {
			s, ok := e.(string)
			if !ok {
				return 0, psa.Errorf(psa.StatusInvalidArgument, "usage: %v is no string", e)
			}
			flag, err := psa.ParseUsage(s)
			if err != nil {
				return 0, err
			}
			u |= flag
		}
		return u, nil
	}
	return 0, psa.Errorf(psa.StatusInvalidArgument, "usage is a list of strings")
}

// wholeLines is the length of b up to its last newline.
func wholeLines(b []byte) int { return bytes.LastIndexByte(b, '\n') + 1 }

func attributesStage(v *view) stage {
	return stage{again: true, scan: func(b []byte, _ bool) (int, func(context.Context) error, error) {
		end := wholeLines(b)
		if len(bytes.TrimSpace(b[:end])) == 0 {
			return 0, nil, nil
		}
		x, err := parseAttributes(b[:end])
		if errors.Is(err, errIncomplete) {
			return 0, nil, nil
		}
		if err != nil {
			return 0, nil, err
		}
		return end, func(ctx context.Context) error { return v.setAttributes(ctx, x) }, nil
	}}
}

// setAttributes changes a draft, and of a key only what its owner may still decide: a policy never changes.
func (v *view) setAttributes(ctx context.Context, x attributesInput) error {
	k, err := v.t.kim.Key(ctx, v.key.Number)
	if err != nil {
		return gone(err)
	}
	a, err := x.over(k.Attributes)
	if err == nil {
		err = v.mayDecide(ctx, k, x)
	}
	if err != nil {
		return err
	}
	if a != k.Attributes {
		if k.State != kim.Draft {
			return psa.Errorf(psa.StatusNotPermitted, "the policy of a key cannot be changed").WithHint("make a new key")
		}
		if err := v.t.kim.SetDraft(ctx, k.Number, a.Template(), a); err != nil {
			return err
		}
	}
	return v.setOwners(ctx, k, x)
}

// decides says whether x changes what is a key's owner's to decide as long as the key lives.
func (x attributesInput) decides(k kim.Key) bool {
	return x.AllowDestroy != nil && *x.AllowDestroy == k.KeepForever ||
		x.CallerNonce != nil && *x.CallerNonce != k.CallerNonce ||
		x.Units != nil && !slices.Equal(*x.Units, k.Units)
}

// mayDecide refuses what is its owner's to decide to everybody else who may write here, before anything changes.
func (v *view) mayDecide(ctx context.Context, k kim.Key, x attributesInput) error {
	if !x.decides(k) {
		return nil
	}
	if err := validUnits(x.Units); err != nil {
		return err
	}
	owner, err := v.t.kim.Owner(ctx, k)
	if err != nil {
		return err
	}
	if v.uid != owner && v.uid != 0 {
		return refuse(syscall.EPERM, "allow_destroy, caller_nonce and units are the key's owner's to set", "")
	}
	return v.borrowed()
}

func validUnits(units *[]string) error {
	if units == nil {
		return nil
	}
	if len(*units) > UnitsMost {
		return psa.Errorf(psa.StatusInvalidArgument, "units: at most %d", UnitsMost)
	}
	for _, unit := range *units {
		if err := ValidUnit(unit); err != nil {
			return psa.Errorf(psa.StatusInvalidArgument, "units: %w", err)
		}
	}
	return nil
}

// setOwners changes what is its owner's to decide, which mayDecide allowed.
func (v *view) setOwners(ctx context.Context, k kim.Key, x attributesInput) error {
	if x.AllowDestroy != nil && *x.AllowDestroy == k.KeepForever {
		if err := v.t.kim.SetAllowDestroy(ctx, k.Number, *x.AllowDestroy); err != nil {
			return err
		}
	}
	if x.CallerNonce != nil && *x.CallerNonce != k.CallerNonce {
		if err := v.t.kim.SetCallerNonce(ctx, k.Number, *x.CallerNonce); err != nil {
			return err
		}
		if !*x.CallerNonce {
			v.t.revocations.note(inoOf(k.Number, 0))
		}
	}
	if x.Units == nil || slices.Equal(*x.Units, k.Units) {
		return nil
	}
	if err := v.t.kim.SetUnits(ctx, k.Number, *x.Units); err != nil {
		return err
	}
	v.t.revocations.note(inoOf(k.Number, 0))
	return nil
}

func generateStage(v *view) stage {
	create := func(a psa.Attributes, x attributesInput) func(context.Context) error {
		return func(ctx context.Context) error {
			k, err := v.t.kim.Key(ctx, v.key.Number)
			if err != nil {
				return gone(err)
			}
			if err := v.mayDecide(ctx, k, x); err != nil {
				return err
			}
			if err := v.setOwners(ctx, k, x); err != nil {
				return err
			}
			return v.t.kim.Generate(ctx, v.key.Number, v.uid, a.Template(), a, nil)
		}
	}
	return stage{atClose: isTOML, scan: func(b []byte, alone bool) (int, func(context.Context) error, error) {
		line, _, whole := bytes.Cut(b, []byte("\n"))
		if isTOML(b) {
			end := wholeLines(b)
			if end == 0 {
				return 0, nil, nil
			}
			x, err := parseAttributes(b[:end])
			if errors.Is(err, errIncomplete) {
				return 0, nil, nil
			}
			a := v.key.Attributes
			if err == nil {
				a, err = x.over(a)
			}
			if err != nil {
				return 0, nil, err
			}
			if a == (psa.Attributes{}) {
				return 0, nil, nil // comments only, as at the top of a capabilities file
			}
			return end, create(a, x), nil
		}
		words := strings.Fields(string(line))
		if len(words) == 0 {
			if !whole {
				return 0, nil, nil
			}
			if v.key.Attributes.Type == psa.KeyTypeNone {
				return 0, nil, psa.Errorf(psa.StatusInvalidArgument, "the attributes of this draft are empty").WithHint("write a template, such as ecdsa-p256-sha256")
			}
			return len(line) + 1, create(v.key.Attributes, attributesInput{}), nil
		}
		a, err := psa.ParseTemplate(words[0])
		switch {
		case whole && err != nil:
			return 0, nil, err
		case whole:
			return len(line) + 1, create(a, attributesInput{}), nil
		case alone && err == nil:
			return len(b), create(a, attributesInput{}), nil
		}
		return 0, nil, nil
	}}
}

// isTOML tells attributes from a template.
func isTOML(b []byte) bool {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	return bytes.ContainsRune(line, '=') || bytes.HasPrefix(bytes.TrimSpace(line), []byte("#"))
}

func importStage(v *view) stage {
	return stage{
		scan: func(b []byte, alone bool) (int, func(context.Context) error, error) {
			end, reference, more := scanReference(b, alone)
			if end > 0 {
				return end, v.adopt(reference), nil
			}
			if more && !v.rawIsWhole(len(b)) {
				return 0, nil, nil
			}
			end, m, a, err := psa.ScanMaterial(b, v.key.Attributes)
			if err != nil || end == 0 {
				return 0, nil, err
			}
			// Who has such a file need not be who may use the key in the TPM: root took it over, or does.
			if m.Format == psa.FormatTSS2 && (v.borrowed() != nil || v.uid != 0 && v.uid != v.t.uid) {
				m.Wipe()
				return 0, nil, psa.Errorf(psa.StatusNotPermitted, "keys that a TPM wrapped are taken over by root")
			}
			return end, func(ctx context.Context) error {
				defer m.Wipe()
				return v.t.kim.Generate(ctx, v.key.Number, v.uid, a.Template(), a, m)
			}, nil
		},
	}
}
