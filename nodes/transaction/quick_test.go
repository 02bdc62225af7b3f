package transaction

import (
	"context"
	"sync"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// quickOperation is one that runs where it is asked for, and does something when it begins or ends.
type quickOperation struct {
	fakeOperation
	begin, finish func()
}

func (o *quickOperation) Quick(caller.Caller) bool { return true }

func (o *quickOperation) Begin(ctx context.Context, in Inputs, length int) (psa.Run, bool, error) {
	if o.begin != nil {
		o.begin()
	}
	run, streams, err := o.fakeOperation.Begin(ctx, in, length)
	if err != nil {
		return nil, false, err
	}
	return &quickRun{run.(*fakeRun), o}, streams, nil
}

type quickRun struct {
	*fakeRun
	o *quickOperation
}

func (r *quickRun) Pass(ctx context.Context) (psa.Result, bool, error) {
	if r.o.finish != nil {
		defer r.over()
		r.o.finish()
	}
	return r.fakeRun.Pass(ctx)
}

// quickFile is a file whose operations are quick.
func (f *fake) quickFile(shape string, begin, finish func()) File {
	file := f.file(shape, 1)
	file.Make = func(context.Context, uint32) (Operation, error) {
		return &quickOperation{fakeOperation{f: f, spec: shapes[shape]}, begin, finish}, nil
	}
	return file
}

// answersOne writes a request and wants its answer.
func answersOne(t *testing.T, f *fake, h *Handle, who caller.Caller, off int64) {
	t.Helper()
	if err := h.Write(t.Context(), []byte("m"), off); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	n, more, err := h.Read(t.Context(), who, b, off+1)
	want := answers(shapes["whole"], map[string][]byte{"hash": []byte("m")})["signature"]
	if err != nil || more || string(b[:n]) != string(want) {
		t.Fatalf("%q, %v; want %q", b[:n], err, want)
	}
}

// TestQuickPanic: a panic where a request is asked for is the failure of that request, and of nothing else.
func TestQuickPanic(t *testing.T) {
	t.Parallel()
	fails := func() { panic("a bug") }
	for name, file := range map[string]func(f *fake) File{
		"begin":  func(f *fake) File { return f.quickFile("whole", fails, nil) },
		"finish": func(f *fake) File { return f.quickFile("whole", nil, fails) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, who := newFake(t), self()
			broken, err := f.Open(who, file(f), Mode{Read: true, Write: true}, f.access(t, who, 1))
			if err != nil {
				t.Fatal(err)
			}
			whole, err := f.Open(who, f.quickFile("whole", nil, nil), Mode{Read: true, Write: true}, f.access(t, who, 1))
			if err != nil {
				t.Fatal(err)
			}
			answersOne(t, f, whole, who, 0)
			if err := broken.Write(t.Context(), []byte("m"), 0); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, _, err := broken.Read(t.Context(), who, make([]byte, 10), 1); errnoOf(t, err) != syscall.EIO {
					t.Fatalf("the broken one: %v", err)
				}
			}
			answersOne(t, f, whole, who, 200)
			whole.Release()
			broken.Release()
			f.Close()
			f.empty(t)
		})
	}
}

// TestQuickInterrupted: whoever is interrupted, or dies, while a quick operation runs for them leaves nothing behind, and one
// that ended has its answer.
func TestQuickInterrupted(t *testing.T) {
	t.Parallel()
	f, who := newFake(t), self()
	h, err := f.Open(who, f.quickFile("whole", nil, nil), Mode{Read: true, Write: true}, f.access(t, who, 1))
	if err != nil {
		t.Fatal(err)
	}
	ctx, end := context.WithCancel(t.Context())
	end()
	if err := h.Write(ctx, []byte("m"), 0); err != nil {
		t.Fatal(err)
	}
	dying := caller.Caller{UID: who.UID, GID: who.GID} // nobody sees it any more
	b := make([]byte, 4096)
	n, _, err := h.Read(ctx, dying, b, 1)
	if want := answers(shapes["whole"], map[string][]byte{"hash": []byte("m")})["signature"]; err != nil || string(b[:n]) != string(want) {
		t.Errorf("%q, %v", b[:n], err)
	}
	f.track(h.channel)
	h.Release()
	f.Close()
	f.empty(t)
}

// TestQuickKeepsNobody: whoever's operation runs where it was asked for holds nothing that others need, nor that who reads the
// same file does.
func TestQuickKeepsNobody(t *testing.T) {
	t.Parallel()
	f, who, other := newFake(t), self(), another(t, 2003)
	runs, goOn := make(chan struct{}), make(chan struct{})
	file := f.quickFile("whole", nil, func() { close(runs); <-goOn })
	h, err := f.Open(who, file, Mode{Read: true, Write: true}, f.access(t, who, 1))
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Write(t.Context(), []byte("m"), 0); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		if _, _, err := h.Read(t.Context(), who, make([]byte, 10), 1); err != nil {
			t.Error(err)
		}
	})
	<-runs
	ctx, end := context.WithCancel(t.Context())
	end()
	if _, _, err := h.Read(ctx, caller.Caller{UID: who.UID, GID: who.GID}, make([]byte, 10), 1); errnoOf(t, err) != syscall.EINTR {
		t.Errorf("who reads it too and is killed: %v", err)
	}
	if err := h.Write(t.Context(), []byte("m"), 1); errnoOf(t, err) != syscall.EBUSY {
		t.Errorf("who writes into it: %v", err)
	}
	f.Size(1, who.UID)
	for range 2 {
		o, err := f.Open(other, f.quickFile("whole", nil, nil), Mode{Read: true, Write: true}, f.access(t, other, 1))
		if err != nil {
			t.Fatal(err)
		}
		answersOne(t, f, o, other, 0)
		o.Release()
	}
	close(goOn)
	all.Wait()
	h.Release()
	f.Close()
	f.empty(t)
}
