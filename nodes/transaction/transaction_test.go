package transaction

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// self is the test's own process.
func self() caller.Caller {
	return caller.Caller{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), TID: uint32(os.Getpid())}
}

func (f *fake) access(t *testing.T, who caller.Caller, ino uint64) *gate.Access {
	t.Helper()
	a, err := f.gate.Open(t.Context(), who, &fakeWay{ino: ino, mode: 0666}, gate.ReadWrite, gate.Units{})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// slot makes a slot of a shape.
func (f *fake) slot(t *testing.T, who caller.Caller, shape string) *Slot {
	t.Helper()
	s, err := f.NewSlot(who, 7, shape, f.file(shape, 1), f.access(t, who, 1), func(n uint64) uint64 { return 1<<32 + n })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// part opens a part of a slot in its direction; "" is a file slot's own.
func part(t *testing.T, s *Slot, who caller.Caller, name string) *Handle {
	t.Helper()
	p, mode := Part{}, Mode{Read: true, Write: true}
	for _, q := range s.Spec.Parts() {
		if q.Name == name {
			p, mode = q, Mode{Read: q.Out, Write: q.In}
		}
	}
	h, err := s.Open(t.Context(), who, p, mode)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func write(t *testing.T, h *Handle, off int64, text string) {
	t.Helper()
	if err := lend(t, h, []byte(text), off); err != nil {
		t.Fatal(err)
	}
}

// lend writes bytes that are the kernel's again then.
func lend(t *testing.T, h *Handle, text []byte, off int64) error {
	p := slices.Clone(text)
	defer clear(p)
	return h.Write(t.Context(), p, off)
}

// TestRestOfAnAnswer: whoever is in the middle of an answer that another open of the slot replaces is told so. The beginning of
// the next answer never follows, as if it were the rest.
func TestRestOfAnAnswer(t *testing.T) {
	t.Parallel()
	f, who := newFake(t), self()
	read := func(h *Handle, off int64, want string) {
		t.Helper()
		b := make([]byte, 10)
		n, _, err := h.Read(t.Context(), who, b, off)
		if err != nil || string(b[:n]) != want {
			t.Fatalf("read %q, %v; want %q", b[:n], err, want)
		}
	}
	first := string(answers(shapes["whole"], map[string][]byte{"hash": []byte("one")})["signature"])
	second := string(answers(shapes["whole"], map[string][]byte{"hash": []byte("two")})["signature"])
	s := f.slot(t, who, "whole")
	reader, writer := part(t, s, who, ""), part(t, s, who, "")
	write(t, writer, 0, "one")
	read(reader, 0, first[:10])
	if err := writer.Truncate(0); err != nil {
		t.Fatal(err)
	}
	write(t, writer, 0, "two")
	if n, _, err := reader.Read(t.Context(), who, make([]byte, 10), 10); errnoOf(t, err) != syscall.EBUSY {
		t.Fatalf("the rest of an answer that is gone: %d bytes, %v", n, err)
	}
	read(reader, 10, second[:10]) // it was told
	read(reader, 0, second[:10])
	read(reader, 10, second[10:20])

	// one descriptor that begins anew itself reads its next answer where it stands
	if err := reader.Truncate(0); err != nil {
		t.Fatal(err)
	}
	write(t, reader, 20, "one")
	read(reader, 23, first[:10])
	if err := reader.Truncate(0); err != nil {
		t.Fatal(err)
	}
	read(reader, 33, string(answers(shapes["whole"], nil)["signature"])[:10])
	reader.Release()
	writer.Release()
	f.Close()
	f.empty(t)
}

// TestSlotIsItsCreators: nobody else comes in, root included, and parts have one direction for everybody.
func TestSlotIsItsCreators(t *testing.T) {
	t.Parallel()
	f, who := newFake(t), another(t, 2003)
	s := f.slot(t, who, "both")
	for _, other := range []caller.Caller{self(), {UID: 2004, GID: 2003, TID: who.TID}} {
		if _, err := s.Open(t.Context(), other, Part{}, Mode{Read: true}); errnoOf(t, err) != syscall.EACCES {
			t.Errorf("uid %d opens it: %v", other.UID, err)
		}
		if err := s.Truncate(t.Context(), other, Part{}, 0); errnoOf(t, err) != syscall.EACCES {
			t.Errorf("uid %d truncates it: %v", other.UID, err)
		}
	}
	for _, p := range s.Spec.Parts() {
		for _, mode := range []Mode{{Read: true}, {Write: true}, {Read: true, Write: true}} {
			want := syscall.Errno(0)
			if mode.Read && !p.Out || mode.Write && !p.In {
				want = syscall.EACCES
			}
			h, err := s.Open(t.Context(), who, p, mode)
			if errnoOf(t, err) != want {
				t.Errorf("%s %+v: %v", p.Name, mode, err)
			}
			if err == nil {
				h.Release()
			}
		}
	}
	if f.Slot(7, "both") != s || f.Slot(7, "other") != nil || f.Slot(8, "both") != nil {
		t.Error("the slot is not found where it is")
	}
	f.Close()
	f.empty(t)
}

// TestDrain: once Drain has returned nothing runs, and nothing begins.
func TestDrain(t *testing.T) {
	t.Parallel()
	for range 200 {
		f := newFake(t)
		var running atomic.Int32
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for {
					end, err := f.Begin()
					if err != nil {
						return
					}
					running.Add(1)
					running.Add(-1)
					end()
				}
			})
		}
		f.Drain(t.Context())
		if n := running.Load(); n != 0 {
			t.Fatalf("%d run after Drain", n)
		}
		all.Wait()
		if err := f.Perform(t.Context(), self(), func() string { return "" }, func(context.Context) error { return nil }); errnoOf(t, err) != syscall.ENODEV {
			t.Fatalf("something began after Drain: %v", err)
		}
		f.Close()
	}
}

// panicking is an operation that panics.
type panicking struct{ fakeOperation }

func (o *panicking) Begin(context.Context, Inputs, int) (psa.Run, bool, error) { panic("a request") }

// TestPanic: a panic is the end of one request, and of nothing else.
func TestPanic(t *testing.T) {
	t.Parallel()
	f, who := newFake(t), self()
	file := f.file("named", 1)
	file.Make = func(context.Context, uint32) (Operation, error) {
		return &panicking{fakeOperation{f: f, spec: file.Spec}}, nil
	}
	h, err := f.Open(who, file, Mode{Read: true, Write: true}, f.access(t, who, 1))
	if err != nil {
		t.Fatal(err)
	}
	for i := range int64(3) {
		write(t, h, 4*i, "peer")
		if _, _, err := h.Read(t.Context(), who, make([]byte, 10), 4); errnoOf(t, err) != syscall.EIO {
			t.Fatalf("a panic: %v", err)
		}
		if err := h.Truncate(0); err != nil {
			t.Fatal(err)
		}
	}
	h.Release()
	if err := f.Perform(t.Context(), who, func() string { return "" }, func(context.Context) error { panic("a key") }); errnoOf(t, err) != syscall.EIO {
		t.Fatalf("a panic: %v", err)
	}
	f.Close()
	f.empty(t)
}

// TestManyUsersOfOneSlot: who shares a slot may be refused or read another's answer, but an answer is always that to one whole
// request, also where it is read in pieces.
func TestManyUsersOfOneSlot(t *testing.T) {
	t.Parallel()
	const users = 6
	rounds := 400
	if os.Getenv("PARSECFS_TEST_LONG") == "1" {
		rounds *= 100
	}
	text := func(user int) []byte { return fmt.Appendf(nil, "%c%0*d", user+1, user+1, user) } // the first byte counts the others
	for _, shape := range []string{"streamed", "whole", "named", "both", "cut"} {
		t.Run(shape, func(t *testing.T) {
			t.Parallel()
			f, who := newFake(t), self()
			f.account.most[handles] = 10 * users
			s := f.slot(t, who, shape)
			answered, size := map[string]bool{}, 0 // all answers to whole requests, and how long each of them is
			wholes := []map[string][]byte{{}}
			for _, in := range s.Spec.Inputs {
				more := slices.Clone(wholes)
				for _, w := range wholes {
					for user := range users {
						next := maps.Clone(w)
						if next[in.Name] = text(user); in.Cut != nil {
							next[in.Name] = next[in.Name][1:]
						}
						more = append(more, next)
					}
				}
				wholes = more
			}
			_, out := ends(s.Spec)
			for _, w := range wholes {
				b := answers(s.Spec, w)[out]
				if o := s.Spec.Outputs[slices.IndexFunc(s.Spec.Outputs, func(o Output) bool { return o.Name == out })]; o.Encode != nil {
					b, _ = o.Encode(psa.Attributes{}, b)
				}
				answered[string(b)], size = true, len(b)
			}
			var all sync.WaitGroup
			var got atomic.Int32
			for user := range users {
				all.Go(func() {
					for i := range rounds {
						if answer := use(t, s, who, text(user), i%3, size); answer != "" {
							got.Add(1)
							if !answered[answer] {
								t.Errorf("user %d got %q, which answers no whole request", user, answer)
								return
							}
						}
					}
				})
			}
			all.Wait()
			if got.Load() == 0 {
				t.Error("nobody got an answer")
			}
			t.Logf("%d answers", got.Load())
			f.Close()
			f.empty(t)
		})
	}
}

// ends are the parts that a user of a slot writes, and the one to read.
func ends(spec *Spec) (in []string, out string) {
	if !spec.Parted() {
		return []string{""}, spec.Outputs[0].Name
	}
	for _, i := range spec.Inputs {
		in = append(in, i.Name)
	}
	return in, spec.Outputs[len(spec.Outputs)-1].Name
}

// use writes one text into each input, each in one WRITE, and reads an answer of a size in pieces; "" where somebody else was in
// the way.
func use(t *testing.T, s *Slot, who caller.Caller, text []byte, way, size int) string {
	in, out := ends(s.Spec)
	if !s.Parted() {
		out = ""
	}
	open := func(name string) *Handle {
		p, mode := Part{}, Mode{Read: true, Write: true}
		for _, q := range s.Spec.Parts() {
			if q.Name == name && s.Parted() {
				p, mode = q, Mode{Read: q.Out && name == out, Write: q.In && name != out}
			}
		}
		h, err := s.Open(t.Context(), who, p, mode)
		if err != nil {
			t.Error(err)
			return nil
		}
		return h
	}
	for _, name := range in {
		h := open(name)
		if h == nil {
			return ""
		}
		defer h.Release()
		if way > 0 {
			_ = s.Truncate(t.Context(), who, h.part, 0)
		}
		if err := lend(t, h, text, 0); err != nil {
			_ = s.Truncate(t.Context(), who, h.part, 0)
			return ""
		}
	}
	h := open(out)
	if h == nil {
		return ""
	}
	defer h.Release()
	var answer []byte
	for len(answer) < size {
		b := make([]byte, min(1+way*50, size-len(answer)))
		n, _, err := h.Read(t.Context(), who, b, int64(len(answer)))
		if err != nil || n == 0 {
			return ""
		}
		answer = append(answer, b[:n]...)
	}
	return string(answer)
}

// stuck is an operation whose device does not answer when it begins.
type stuck struct {
	fakeOperation
	begun, goOn chan struct{}
}

func (o *stuck) Begin(ctx context.Context, in Inputs, length int) (psa.Run, bool, error) {
	close(o.begun)
	<-o.goOn
	return o.fakeOperation.Begin(ctx, in, length)
}

// TestStuckWriteKeepsNobody: a reader that claims a request whose WRITE waits for a device waits with it, and nobody else does.
func TestStuckWriteKeepsNobody(t *testing.T) {
	t.Parallel()
	f, who, other := newFake(t), self(), another(t, 2003)
	file := f.file("streamed", 1)
	op := &stuck{fakeOperation{f: f, spec: file.Spec}, make(chan struct{}), make(chan struct{})}
	file.Make = func(context.Context, uint32) (Operation, error) { return op, nil }
	h, err := f.Deposit(who, file, Mode{Write: true}, f.access(t, who, 1))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() { _ = lend(t, h, []byte("m"), 0) })
	<-op.begun
	reader, err := f.Claim(who, file, Mode{Read: true}, f.access(t, who, 1))
	if err != nil {
		t.Fatal(err)
	}
	all.Go(func() {
		if _, _, err := reader.Read(t.Context(), who, make([]byte, 10), 0); errnoOf(t, err) != syscall.EBUSY {
			t.Errorf("a request that is still written: %v", err)
		}
	})
	for f.boxes.mu.TryLock() { // until the reader has taken it out, or holds the lock
		n := len(f.boxes.box)
		if f.boxes.mu.Unlock(); n == 0 {
			break
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h, err := f.Deposit(other, f.file("streamed", 2), Mode{Write: true}, f.access(t, other, 2))
		if err != nil {
			t.Error(err)
			return
		}
		f.Drop(func(ino uint64) bool { return ino == 2 })
		h.Release()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Error("another user's drop box waits for the device too")
	}
	close(op.goOn)
	all.Wait()
	<-done
	h.Release()
	reader.Release()
	f.Close()
	f.empty(t)
}

// TestLineages: a drop box answers a process of the writer's own lineage that began after the request was complete, and nobody
// else.
func TestLineages(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	of := func(t *testing.T) caller.Caller {
		c := self()
		c.TID = sleeper(t, "env")
		return c
	}
	deposit := func(t *testing.T, f *fake, who caller.Caller, text string) *Handle {
		t.Helper()
		h, err := f.Deposit(who, f.file("streamed", 1), Mode{Write: true}, f.access(t, who, 1))
		if err != nil {
			t.Fatal(err)
		}
		if text != "" {
			write(t, h, 0, text)
			h.Flush(who)
		}
		return h
	}
	claim := func(t *testing.T, f *fake, who caller.Caller, want string, errno syscall.Errno) {
		t.Helper()
		h, err := f.Claim(who, f.file("streamed", 1), Mode{Read: true}, f.access(t, who, 1))
		if err != nil {
			t.Fatal(err)
		}
		defer h.Release()
		b := make([]byte, 4096)
		n, _, err := h.Read(t.Context(), who, b, 0)
		if errnoOf(t, err) != errno {
			t.Fatalf("claimed %q, %v; want %v", b[:n], err, errno)
		}
		if errno != 0 {
			return
		}
		answer := answers(shapes["streamed"], map[string][]byte{"message": []byte(want)})["signature"]
		if twice := string(answer) + string(answer); string(b[:n]) != twice {
			t.Fatalf("claimed %q, want %q", b[:n], twice)
		}
	}
	for name, run := range map[string]func(t *testing.T, f *fake){
		"itself": func(t *testing.T, f *fake) {
			w := of(t)
			deposit(t, f, w, "m").Release()
			claim(t, f, w, "m", 0)
			claim(t, f, w, "", syscall.ENODATA)
		},
		"a child that began later": func(t *testing.T, f *fake) {
			deposit(t, f, self(), "m").Release()
			claim(t, f, of(t), "m", 0)
		},
		"a child that began earlier": func(t *testing.T, f *fake) {
			early := of(t)
			deposit(t, f, self(), "m").Release()
			claim(t, f, early, "", syscall.ENODATA)
			claim(t, f, of(t), "m", 0)
		},
		"another user's": func(t *testing.T, f *fake) {
			deposit(t, f, self(), "m").Release()
			claim(t, f, another(t, 2003), "", syscall.ENODATA)
			claim(t, f, of(t), "m", 0)
		},
		"a sibling of one that lives": func(t *testing.T, f *fake) {
			w := of(t)
			deposit(t, f, w, "m").Release()
			claim(t, f, of(t), "", syscall.ENODATA)
			claim(t, f, self(), "", syscall.ENODATA)
			claim(t, f, w, "m", 0)
		},
		"a later sibling of one that has ended": func(t *testing.T, f *fake) {
			w := of(t)
			early := of(t)
			deposit(t, f, w, "m").Release()
			kill(t, w)
			claim(t, f, early, "", syscall.ENODATA)
			claim(t, f, of(t), "m", 0)
		},
		"two, of which a reader came too early for one": func(t *testing.T, f *fake) {
			a := of(t)
			deposit(t, f, a, "a").Release()
			reader, b := of(t), of(t)
			deposit(t, f, b, "b").Release()
			kill(t, a)
			kill(t, b)
			claim(t, f, reader, "", syscall.EBUSY)
			claim(t, f, of(t), "", syscall.EBUSY)
			claim(t, f, of(t), "", syscall.ENODATA)
		},
		"two at once": func(t *testing.T, f *fake) {
			a, b := of(t), of(t)
			deposit(t, f, a, "a").Release()
			deposit(t, f, b, "b").Release()
			claim(t, f, a, "a", 0) // their writers live
			claim(t, f, b, "b", 0)
			deposit(t, f, a, "a").Release()
			deposit(t, f, b, "b").Release()
			kill(t, a)
			kill(t, b)
			claim(t, f, of(t), "", syscall.EBUSY)
			claim(t, f, of(t), "", syscall.EBUSY)
			claim(t, f, of(t), "", syscall.ENODATA)
		},
		"one that changed its mind": func(t *testing.T, f *fake) {
			w := of(t)
			a := deposit(t, f, w, "a")
			b := deposit(t, f, w, "b")
			claim(t, f, w, "b", 0)
			if err := a.Write(t.Context(), []byte("more"), 1); errnoOf(t, err) != syscall.EBUSY {
				t.Errorf("what was replaced takes more: %v", err)
			}
			a.Release()
			b.Release()
		},
		"one that changed its mind about two": func(t *testing.T, f *fake) {
			w := of(t)
			a := deposit(t, f, w, "")
			b := deposit(t, f, w, "b")
			write(t, a, 0, "a")
			a.Flush(w)
			a.Release()
			b.Release()
			claim(t, f, w, "", syscall.EBUSY)
			deposit(t, f, w, "c").Release() // instead of one that may be another reader's
			claim(t, f, w, "", syscall.EBUSY)
			claim(t, f, w, "", syscall.ENODATA)
		},
		"before it is complete": func(t *testing.T, f *fake) {
			w := of(t)
			h := deposit(t, f, w, "m")
			write(t, h, 1, "ore")
			claim(t, f, w, "", syscall.EBUSY)
			if err := h.Write(t.Context(), []byte("more"), 4); errnoOf(t, err) != syscall.EBUSY {
				t.Errorf("its writer is told %v", err)
			}
			h.Release()
		},
		"of one that wrote nothing": func(t *testing.T, f *fake) {
			w := of(t)
			h := deposit(t, f, w, "")
			h.Flush(w)
			claim(t, f, w, "", syscall.ENODATA)
			h.Release()
		},
		"of one that cannot be seen": func(t *testing.T, f *fake) {
			deposit(t, f, caller.Caller{UID: self().UID, GID: self().GID}, "m").Release()
			claim(t, f, of(t), "", syscall.ENODATA)
			claim(t, f, caller.Caller{UID: self().UID, GID: self().GID}, "", syscall.ENODATA)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			run(t, f)
			f.Close()
			f.empty(t)
		})
	}
}

// kill ends a process of a test, which has waited for its end when it returns.
func kill(t *testing.T, c caller.Caller) {
	t.Helper()
	if err := syscall.Kill(int(c.TID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	procs := caller.New()
	// a process that nobody has waited for is there, and has ended
	for p, ok := procs.Writer(c).Self(); ok && procs.Alive(c, p); {
	}
}

// TestPiecesOfARead: a read that the kernel cuts into pieces gives the answer or an error, in whatever order they come.
func TestPiecesOfARead(t *testing.T) {
	t.Parallel()
	const size = 64 << 10
	orders := [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}}
	given := 0
	for _, length := range []int{71, size, 150_000} {
		answer := make([]byte, length)
		for i := range answer {
			answer[i] = byte(i * 7 >> 3)
		}
		for _, written := range []int64{0, 5, 70, size, size + 5, 10 * size} {
			for _, from := range []int64{0, written} {
				for _, first := range []int64{size, size - 16, size - 4080} { // as the buffer lies in its page
					for _, order := range orders {
						for _, before := range []bool{false, true} {
							r := &request{spec: shapes["bareone"], outputs: map[string][]byte{"secret": answer}}
							r.known.Store(true)
							p := replies{written: written}
							if before { // by read(2), some of it
								if _, _, err := p.read(r, "", make([]byte, 50), written); err != nil {
									t.Fatal(err)
								}
							}
							got, ok := pieces(&p, r, from, []int64{0, first, first + size, first + 2*size}, order)
							if ok && !bytes.Equal(got, answer) {
								t.Fatalf("written %d, read %d bytes of %d from %d, pieces %v after %d: wrong bytes, before %v", written, len(got), length, from, order, first, before)
							}
							if ok {
								given++
							} else if length < 100 && written < size {
								t.Fatalf("written %d, from %d, pieces %v: a short answer was refused", written, from, order)
							}
						}
					}
				}
			}
		}
	}
	if given < 800 {
		t.Errorf("only %d reads were answered", given)
	}
}

// pieces reads at once what lies between offsets, as the kernel does: the first short piece is the end, and an error all.
func pieces(p *replies, r *request, from int64, at []int64, order []int) (got []byte, ok bool) {
	end := at[len(at)-1]
	got = make([]byte, end)
	for _, i := range order {
		n, _, err := p.read(r, "", got[at[i]:at[i+1]], from+at[i])
		if err != nil {
			return nil, false
		}
		if at[i]+int64(n) < at[i+1] {
			end = min(end, at[i]+int64(n))
		}
	}
	return got[:end], true
}
