package transaction

import (
	"bytes"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// wide is a machine whose bounds are no hindrance.
func wide(t *testing.T) *fake {
	f := newFake(t)
	f.Machine = New(Options{Procs: f.o.Procs, BodyLimit: 16 << 20, PerUser: testPerUser, BytesPerUser: 64 << 20,
		Log: slog.New(slog.DiscardHandler)})
	return f
}

// cutAsTheKernelDoes gives where the pieces of a write of n bytes begin whose buffer does not begin at a page.
func cutAsTheKernelDoes(n, shift int) (at []int) {
	for i := 0; i < n; i += 64 << 10 {
		if at = append(at, i); i == 0 {
			i -= shift
		}
	}
	return append(at, n)
}

// TestPiecesInAnyOrder: an asynchronous write is one message, however its pieces come, also the next one on the same descriptor.
func TestPiecesInAnyOrder(t *testing.T) {
	t.Parallel()
	f, who := wide(t), self()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 15 {
		h := part(t, f.slot(t, who, "streamed"), who, "")
		position := int64(r.IntN(3)) * 7
		for range 3 {
			message := make([]byte, 1+r.IntN(600<<10))
			for i := range message {
				message[i] = byte(r.Uint32())
			}
			at := cutAsTheKernelDoes(len(message), r.IntN(2)*r.IntN(4096))
			order := r.Perm(len(at) - 1)
			one := func(i int) {
				if err := lend(t, h, message[at[i]:at[i+1]], position+int64(at[i])); err != nil {
					t.Errorf("piece %d of %d at %d, order %v: %v", i, len(order), position, order, err)
				}
			}
			if r.IntN(2) == 0 {
				for _, i := range order {
					one(i)
				}
			} else {
				var all sync.WaitGroup
				for _, i := range order {
					all.Go(func() { one(i) })
				}
				all.Wait()
			}
			position += int64(len(message))
			b := make([]byte, 4096)
			n, _, err := h.Read(t.Context(), who, b, position)
			want := answers(shapes["streamed"], map[string][]byte{"message": message})["signature"]
			if want = slices.Concat(want, want); err != nil || !bytes.Equal(b[:n], want) {
				t.Fatalf("%d bytes in the order %v: %q, %v; want %q", len(message), order, b[:n], err, want)
			}
			position += int64(n)
			if n, _, err := h.Read(t.Context(), who, b, position); n != 0 || err != nil {
				t.Fatalf("behind the answer: %d bytes, %v", n, err)
			}
		}
		h.Release()
		f.slots.drop(func(uint64) bool { return true })
	}
	f.Close()
	f.empty(t)
}

// TestPiecesThatMiss: what is no whole message is refused at the latest when it is read, and holds nothing afterwards.
func TestPiecesThatMiss(t *testing.T) {
	t.Parallel()
	who := self()
	const k64 = 64 << 10
	type w struct {
		off   int64
		n     int
		errno syscall.Errno
	}
	for name, c := range map[string]struct {
		writes []w
		read   syscall.Errno
	}{
		"a small hole":              {[]w{{0, 10, 0}, {20, 10, syscall.EINVAL}}, syscall.EINVAL},
		"back":                      {[]w{{100, 10, 0}, {0, 10, syscall.EINVAL}}, syscall.EINVAL},
		"a hole of a piece":         {[]w{{0, k64, 0}, {2 * k64, k64, 0}}, syscall.EINVAL},
		"one of them is filled":     {[]w{{0, k64, 0}, {4 * k64, 5, 0}, {2 * k64, k64, 0}, {1 * k64, k64, 0}}, syscall.EINVAL},
		"all are filled":            {[]w{{0, k64, 0}, {4 * k64, 5, 0}, {2 * k64, k64, 0}, {1 * k64, k64, 0}, {3 * k64, k64, 0}}, 0},
		"too far":                   {[]w{{0, k64, 0}, {k64 + earlyMost + 1, k64, syscall.EINVAL}}, syscall.EINVAL},
		"twice":                     {[]w{{0, k64, 0}, {2 * k64, k64, 0}, {2 * k64, k64, syscall.EINVAL}}, syscall.EINVAL},
		"over each other":           {[]w{{0, k64, 0}, {2 * k64, k64, 0}, {k64, k64 + 1, 0}}, syscall.EINVAL},
		"a short one in the middle": {[]w{{0, k64, 0}, {3 * k64, k64, 0}, {2 * k64, 10, syscall.EINVAL}}, syscall.EINVAL},
		"far from the beginning":    {[]w{{1 << 30, 10, 0}, {1<<30 + 10, 10, 0}}, 0},
		"far, and a small hole":     {[]w{{1 << 30, 10, 0}, {1<<30 + 11, 10, syscall.EINVAL}}, syscall.EINVAL},
		"far, and back":             {[]w{{1 << 30, 10, 0}, {1<<30 - 5, 10, syscall.EINVAL}}, syscall.EINVAL},
		"far, and the beginning":    {[]w{{1 << 30, 10, 0}, {0, 10, 0}}, syscall.EINVAL},
	} {
		f := wide(t)
		h := part(t, f.slot(t, who, "streamed"), who, "")
		for i, x := range c.writes {
			if err := lend(t, h, bytes.Repeat([]byte{1}, x.n), x.off); errnoOf(t, err) != x.errno {
				t.Errorf("%s, WRITE %d: %v, want %v", name, i, err, x.errno)
			}
		}
		if _, _, err := h.Read(t.Context(), who, make([]byte, 4096), 0); errnoOf(t, err) != c.read {
			t.Errorf("%s: READ says %v, want %v", name, err, c.read)
		}
		h.Release()
		f.Close()
		f.empty(t)
	}
	// A long message from anywhere does not wait for its reader.
	f := wide(t)
	h := part(t, f.slot(t, who, "streamed"), who, "")
	message := bytes.Repeat([]byte("0123456789abcdef"), 6<<20/16)
	for i := 0; i < len(message); i += k64 {
		if err := lend(t, h, message[i:i+k64], 1<<30+int64(i)); err != nil {
			t.Fatal(err)
		}
	}
	b := make([]byte, 4096)
	n, _, err := h.Read(t.Context(), who, b, 1<<30+int64(len(message)))
	want := answers(shapes["streamed"], map[string][]byte{"message": message})["signature"]
	if want = slices.Concat(want, want); err != nil || !bytes.Equal(b[:n], want) {
		t.Errorf("%q, %v", b[:n], err)
	}
	h.Release()
	f.Close()
	f.empty(t)
}

// TestPiecesOfAppending: whatever offsets the kernel makes up for O_APPEND, pieces are taken in their order or not at all.
func TestPiecesOfAppending(t *testing.T) {
	t.Parallel()
	f, who := wide(t), self()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	taken := 0
	for range 40 {
		s := f.slot(t, who, "streamed")
		h, err := s.Open(t.Context(), who, Part{}, Mode{Read: true, Write: true, Append: true})
		if err != nil {
			t.Fatal(err)
		}
		var whole []byte
		ordered := true
		for range 1 + r.IntN(3) {
			message := make([]byte, 1+r.IntN(300<<10))
			for i := range message {
				message[i] = byte(r.Uint32())
			}
			whole = append(whole, message...)
			size := int64(r.IntN(1 << 22))
			at := cutAsTheKernelDoes(len(message), r.IntN(4096))
			if r.IntN(2) == 0 { // from many places
				for at = []int{0}; at[len(at)-1] < len(message); {
					at = append(at, min(at[len(at)-1]+1+r.IntN(3000), len(message)))
				}
			}
			order := r.Perm(len(at) - 1)
			switch r.IntN(4) {
			case 0, 1:
				slices.Sort(order)
			case 2: // one is late
				slices.Sort(order)
				late := r.IntN(len(order))
				order = append(slices.Delete(order, late, late+1), late)
			}
			ordered = ordered && slices.IsSorted(order)
			for _, i := range order {
				_ = lend(t, h, message[at[i]:at[i+1]], size+int64(at[i]))
			}
		}
		b := make([]byte, 4096)
		n, _, err := h.Read(t.Context(), who, b, 0)
		want := answers(shapes["streamed"], map[string][]byte{"message": whole})["signature"]
		want = slices.Concat(want, want)
		switch {
		case err == nil && bytes.Equal(b[:n], want):
			taken++
		case ordered || errnoOf(t, err) != syscall.EINVAL:
			t.Fatalf("in order: %v; %q, %v", ordered, b[:n], err)
		}
		h.Release()
		f.slots.drop(func(uint64) bool { return true })
	}
	if taken < 4 {
		t.Errorf("%d were taken", taken)
	}
	// One that is very late is not forgotten.
	h, err := f.slot(t, who, "streamed").Open(t.Context(), who, Part{}, Mode{Read: true, Write: true, Append: true})
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(3 * jumpsMost) {
		if err := h.Write(t.Context(), []byte{0}, 1000+i<<22); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.Write(t.Context(), []byte{0}, 999); errnoOf(t, err) != syscall.EINVAL {
		t.Errorf("a late piece: %v", err)
	}
	h.Release()
	f.Close()
	f.empty(t)
}

// TestTruncatedByTheKernel: after an asynchronous write that failed the kernel truncates the file by itself. That is no request
// for an answer to nothing.
func TestTruncatedByTheKernel(t *testing.T) {
	t.Parallel()
	f, who := newFake(t), self()
	h := part(t, f.slot(t, who, "streamed"), who, "")
	f.set(func(x *faults) { x.begin = true })
	if err := h.Write(t.Context(), []byte("message"), 0); err == nil {
		t.Fatal("the fake's WRITE did not fail")
	}
	f.set(func(x *faults) { x.begin = false })
	if err := h.Truncate(0); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 4096)
	if n, _, err := h.Read(t.Context(), who, b, 0); errnoOf(t, err) != syscall.ENODATA {
		t.Errorf("an answer to nothing: %q, %v", b[:n], err)
	}
	// Who truncates again asks for it.
	if err := h.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if n, _, err := h.Read(t.Context(), who, b, 0); n == 0 || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	h.Release()
	f.Close()
	f.empty(t)
}
