package kim

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers/psa"
)

func queued(width, length int) *Provider {
	return &Provider{config: ProviderConfig{Name: "p"}, log: slog.New(slog.DiscardHandler), wake: make(chan struct{}, 1), queue: queue{width: width, length: length}}
}

// waitFor is for states that have no event: it yields until the goroutine under test has come to its wait.
func waitFor(t *testing.T, q *queue, reached func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		q.mu.Lock()
		ok := reached()
		q.mu.Unlock()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal("the queue never came to the state")
		}
		time.Sleep(time.Millisecond)
	}
}

// TestQueueTakesTurns: a user with many calls does not keep another from its first.
func TestQueueTakesTurns(t *testing.T) {
	ctx := context.Background()
	p := queued(1, 100)
	if err := p.queue.enter(ctx, 9); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var order []uint32
	var wg sync.WaitGroup
	for i, uid := range []uint32{1, 1, 1, 1, 2, 2, 3} {
		wg.Go(func() {
			if err := p.queue.enter(ctx, uid); err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			order = append(order, uid)
			mu.Unlock()
			p.queue.leave()
		})
		waitFor(t, &p.queue, func() bool { return p.queue.waiting == i+1 })
	}
	p.queue.leave()
	wg.Wait()
	if want := []uint32{1, 2, 3, 1, 2, 1, 1}; !slices.Equal(order, want) {
		t.Errorf("turns: %v, want %v", order, want)
	}
	if q := &p.queue; q.running != 0 || q.waiting != 0 || len(q.turns) != 0 || len(q.users) != 0 {
		t.Errorf("left in the queue: %d %d %v %v", q.running, q.waiting, q.turns, q.users)
	}
}

// TestSharedQueueTakesAll: where processors are shared nobody is turned away, and the next turn is another user's.
func TestSharedQueueTakesAll(t *testing.T) {
	ctx := context.Background()
	p := queued(0, 1)
	p.queue.share(2)
	for range 2 {
		if err := p.queue.enter(ctx, 1); err != nil {
			t.Fatal(err)
		}
	}
	const many = 100
	var wg sync.WaitGroup
	var waited int // calls of the first user before the other's
	other := make(chan struct{})
	for i := range many {
		wg.Go(func() {
			if err := p.queue.enter(ctx, 1); err != nil {
				t.Error(err)
			}
			select {
			case <-other:
			default:
				p.queue.mu.Lock()
				waited++
				p.queue.mu.Unlock()
			}
			p.queue.leave()
		})
		waitFor(t, &p.queue, func() bool { return p.queue.waiting == i+1 })
	}
	wg.Go(func() {
		if err := p.queue.enter(ctx, 2); err != nil {
			t.Error(err)
		}
		close(other)
		p.queue.leave()
	})
	waitFor(t, &p.queue, func() bool { return p.queue.waiting == many+1 })
	p.queue.leave()
	<-other
	p.queue.leave()
	wg.Wait()
	if q := &p.queue; waited > 10 || q.running != 0 || q.waiting != 0 {
		t.Errorf("%d of %d came before another user's; left in the queue: %d %d", waited, many, q.running, q.waiting)
	}
}

func TestQueueIsBounded(t *testing.T) {
	p := queued(1, 2)
	if err := p.queue.enter(context.Background(), 1); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			if err := p.queue.enter(ctx, 1); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		waitFor(t, &p.queue, func() bool { return p.queue.waiting == i+1 })
	}
	if err := p.queue.enter(ctx, 1); psa.StatusOf(err) != psa.StatusQueueFull {
		t.Errorf("a third one: %v", err)
	}
	_, err := call(ctx, p, 1, time.Minute, func(context.Context) (int, error) { return 1, nil }, func(int, error) {})
	if psa.StatusOf(err) != psa.StatusQueueFull || begun(err) || unknown(err) {
		t.Errorf("a call: %v", err)
	}
	cancel()
	wg.Wait()
	p.queue.leave()
	if q := &p.queue; q.running != 0 || q.waiting != 0 {
		t.Errorf("left in the queue: %d %d", q.running, q.waiting)
	}
}

// TestFullQueueIsShared: whoever filled the queue gives places to those who have fewer, down to an equal share.
func TestFullQueueIsShared(t *testing.T) {
	p := queued(1, 4)
	ctx := context.Background()
	if err := p.queue.enter(ctx, 1); err != nil {
		t.Fatal(err)
	}
	type result struct {
		uid uint32
		err error
	}
	results := make(chan result, 8)
	enter := func(uid uint32) {
		err := p.queue.enter(ctx, uid)
		results <- result{uid, err}
		if err == nil {
			p.queue.leave()
		}
	}
	for i := range 4 {
		go enter(1)
		waitFor(t, &p.queue, func() bool { return p.queue.waiting == i+1 })
	}
	for i := range 2 {
		go enter(2)
		if r := <-results; r.uid != 1 || psa.StatusOf(r.err) != psa.StatusQueueFull {
			t.Fatalf("%+v", r)
		}
		waitFor(t, &p.queue, func() bool { return len(p.queue.users[2]) == i+1 })
	}
	for _, uid := range []uint32{1, 2} {
		if err := p.queue.enter(ctx, uid); psa.StatusOf(err) != psa.StatusQueueFull {
			t.Errorf("more than uid %d's share: %v", uid, err)
		}
	}
	p.queue.leave()
	answered := map[uint32]int{}
	for range 4 {
		r := <-results
		if r.err != nil {
			t.Error(r.err)
		}
		answered[r.uid]++
	}
	if answered[1] != 2 || answered[2] != 2 {
		t.Errorf("answered: %v", answered)
	}
	waitFor(t, &p.queue, func() bool { return p.queue.running == 0 })
	if q := &p.queue; q.waiting != 0 || len(q.turns) != 0 || len(q.users) != 0 {
		t.Errorf("left in the queue: %d %v %v", q.waiting, q.turns, q.users)
	}
}

// TestStuckCallKeepsItsPlace: who waits is told in time, the next one waits for the device all the same.
func TestStuckCallKeepsItsPlace(t *testing.T) {
	ctx := context.Background()
	p := queued(1, 10)
	release, late := make(chan struct{}), make(chan int, 1)
	_, err := call(ctx, p, 1, 10*time.Millisecond, func(context.Context) (int, error) {
		<-release
		return 7, nil
	}, func(v int, err error) { late <- v })
	if psa.StatusOf(err) != psa.StatusTimeout || !isStuck(err) || !unknown(err) || p.queue.stuckCalls() != 1 {
		t.Fatalf("%v, %d stuck", err, p.queue.stuckCalls())
	}
	_, err = call(ctx, p, 2, 10*time.Millisecond, func(context.Context) (int, error) { return 8, nil }, func(int, error) {})
	if psa.StatusOf(err) != psa.StatusTimeout || begun(err) || unknown(err) {
		t.Fatalf("a call behind a stuck one: %v", err)
	}
	close(release)
	if v := <-late; v != 7 || p.queue.stuckCalls() != 0 {
		t.Fatalf("late: %d, %d stuck", v, p.queue.stuckCalls())
	}
	if v, err := call(ctx, p, 2, time.Minute, func(context.Context) (int, error) { return 8, nil }, func(int, error) {}); v != 8 || err != nil {
		t.Fatalf("%d, %v", v, err)
	}
}

func TestPanicIsAnError(t *testing.T) {
	p := queued(0, 10)
	_, err := call(context.Background(), p, 1, time.Minute, func(context.Context) (int, error) { panic("secret") }, func(int, error) {})
	if psa.StatusOf(err) != psa.StatusGenericError || !unknown(err) || !begun(err) {
		t.Fatal(err)
	}
	if p.queue.running != 0 {
		t.Errorf("%d running", p.queue.running)
	}
}

// closing is a key that counts its closes.
type closing struct{ closed *int }

func (k closing) Attributes() psa.Attributes                     { return psa.Attributes{} }
func (k closing) Public() []byte                                 { return nil }
func (k closing) Begin(context.Context, psa.Op) (psa.Run, error) { return nil, errors.New("none") }
func (k closing) Close() error                                   { *k.closed++; return nil }

// TestOpenKeysAreBounded: keys in use stay open whatever the bound, the others up to it; each is closed once.
func TestOpenKeysAreBounded(t *testing.T) {
	o := newOpenKeys(2)
	var opened, closed int
	p := queued(0, 1)
	use := func(n int64) *openKey {
		t.Helper()
		e, err := o.use(n, func(e *openKey) error {
			opened++
			e.key, e.provider = closing{&closed}, p
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	held := []*openKey{use(1), use(2), use(3), use(4)}
	if opened != 4 || closed != 0 {
		t.Fatalf("%d opened, %d closed", opened, closed)
	}
	for _, e := range held {
		o.release(e)
	}
	if closed != 2 {
		t.Fatalf("%d closed", closed)
	}
	o.release(use(4))
	if opened != 4 {
		t.Error("an open key was opened again")
	}
	a, b := use(4), use(4)
	o.destroyed(4)
	if !a.gone.Load() || closed != 2 {
		t.Fatalf("gone: %v, %d closed", a.gone.Load(), closed)
	}
	o.release(a)
	o.release(b)
	if closed != 3 {
		t.Fatalf("%d closed", closed)
	}
	if _, err := o.use(9, func(*openKey) error { return psa.Errorf(psa.StatusDoesNotExist, "no") }); err == nil {
		t.Fatal("a key that does not open was given")
	}
	if err := o.close(); err != nil || opened != closed || len(o.all) != 0 {
		t.Fatalf("%d opened, %d closed, %v", opened, closed, err)
	}
}

// TestStayTellsWhoWaits: the wait ends in time and once, the call itself when the provider returns; what it gave then
// is late.
func TestStayTellsWhoWaits(t *testing.T) {
	p := queued(1, 10)
	release, told, late := make(chan struct{}), make(chan error, 2), make(chan int, 1)
	returned := make(chan error)
	go func() {
		_, err := stay(context.Background(), p, 1, 10*time.Millisecond, func(ctx context.Context) (int, error) {
			<-ctx.Done() // the provider is told too, and does not obey
			<-release
			return 7, nil
		}, func(v int, _ error) { late <- v }, func(err error) { told <- err })
		returned <- err
	}()
	if err := <-told; psa.StatusOf(err) != psa.StatusTimeout || !isStuck(err) || !unknown(err) || p.queue.stuckCalls() != 1 {
		t.Fatalf("%v, %d stuck", err, p.queue.stuckCalls())
	}
	select {
	case err := <-returned:
		t.Fatalf("it returned before the provider: %v", err)
	default:
	}
	close(release)
	if err := <-returned; !isStuck(err) || p.queue.stuckCalls() != 0 || len(told) != 0 {
		t.Fatalf("%v, %d stuck, told %d times more", err, p.queue.stuckCalls(), len(told))
	}
	if v := <-late; v != 7 {
		t.Fatalf("late: %d", v)
	}
	v, err := stay(context.Background(), p, 1, time.Minute, func(context.Context) (int, error) { return 8, nil },
		func(int, error) { t.Error("late") }, func(error) { t.Error("told") })
	if v != 8 || err != nil {
		t.Fatalf("%d, %v", v, err)
	}
	if q := &p.queue; q.running != 0 || len(q.calls) != 0 {
		t.Errorf("left in the queue: %d %d", q.running, len(q.calls))
	}
}

// TestAlarmServesAll: each call has its own end, whatever the order in which they came.
func TestAlarmServesAll(t *testing.T) {
	p := queued(0, 10)
	release := make(chan struct{})
	hang := func(timeout time.Duration) (int, error) {
		return call(context.Background(), p, 1, timeout, func(context.Context) (int, error) { <-release; return 9, nil }, func(int, error) {})
	}
	errs := make(chan error)
	go func() {
		v, err := hang(time.Hour)
		if err == nil && v != 9 {
			err = fmt.Errorf("it gave %d", v)
		}
		errs <- err
	}()
	waitFor(t, &p.queue, func() bool { return p.queue.running == 1 })
	for range 2 {
		if _, err := hang(time.Millisecond); !isStuck(err) {
			t.Fatal(err)
		}
	}
	waitFor(t, &p.queue, func() bool { return p.queue.stuck == 2 && time.Until(p.queue.alarm) > time.Minute })
	close(release)
	if err := <-errs; err != nil {
		t.Error(err)
	}
	waitFor(t, &p.queue, func() bool { return p.queue.running == 0 && p.queue.stuck == 0 && len(p.queue.calls) == 0 })
}

// TestCallEndsWithItsContext: not begun where it still waits for its turn, stuck where it has begun.
func TestCallEndsWithItsContext(t *testing.T) {
	p := queued(1, 10)
	release := make(chan struct{})
	ctx, cancel := context.WithCancel(context.Background())
	errs := make(chan error)
	ask := func() {
		_, err := call(ctx, p, 1, time.Minute, func(context.Context) (int, error) { <-release; return 0, nil }, func(int, error) {})
		errs <- err
	}
	go ask()
	waitFor(t, &p.queue, func() bool { return p.queue.running == 1 })
	go ask()
	waitFor(t, &p.queue, func() bool { return p.queue.waiting == 1 })
	cancel()
	a, b := <-errs, <-errs
	if isStuck(b) {
		a, b = b, a
	}
	if !isStuck(a) || !begun(a) || begun(b) || psa.StatusOf(a) != psa.StatusTimeout || psa.StatusOf(b) != psa.StatusTimeout {
		t.Fatalf("%v; %v", a, b)
	}
	if _, err := call(ctx, p, 1, time.Minute, func(context.Context) (int, error) { t.Error("asked"); return 0, nil }, func(int, error) {}); begun(err) {
		t.Fatal(err)
	}
	close(release)
	waitFor(t, &p.queue, func() bool { return p.queue.running == 0 && p.queue.waiting == 0 })
}
