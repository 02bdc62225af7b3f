package kim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// queue runs the calls of one provider, as many at once as its device takes, and lets uids take turns. If the queue is full, a
// uid with fewer calls takes the place of the newest call of the uid with the most.
type queue struct {
	width  int // calls at once; 0: any number
	length int // calls that may wait

	mu      sync.Mutex
	running int
	waiting int
	stuck   int                  // running, but nobody waits for their result any more
	turns   []uint32             // the uids that wait, the next first
	users   map[uint32][]*waiter // their calls, the oldest first

	calls map[*timed]struct{} // those that have an end, waiting and running
	alarm time.Time           // when timer looks at them; zero: never
	timer *time.Timer
}

// waiter is a call that waits.
type waiter struct {
	uid  uint32
	turn chan struct{} // closed when it may begin
	out  chan struct{} // closed when somebody else took its place
}

func (q *queue) setWidth(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.width = n
}

// share has n calls run at once, and all others wait: they have a caller each, who are counted where they come from.
func (q *queue) share(n int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.width, q.length = n, math.MaxInt
}

// free says whether a call would wait for nobody.
func (q *queue) free() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.width == 0 || q.running < q.width
}

// pass is enter of who does not wait.
func (q *queue) pass() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.width > 0 && q.running >= q.width {
		return false
	}
	q.running++
	return true
}

// enter waits for a turn. Unless it fails, the caller must call leave.
func (q *queue) enter(ctx context.Context, uid uint32) error {
	q.mu.Lock()
	if q.width == 0 || q.running < q.width {
		q.running++
		q.mu.Unlock()
		return nil
	}
	if q.waiting >= q.length && !q.makeRoom(uid) {
		q.mu.Unlock()
		return q.full()
	}
	if q.users == nil {
		q.users = map[uint32][]*waiter{}
	}
	p := &waiter{uid, make(chan struct{}), make(chan struct{})}
	if len(q.users[uid]) == 0 {
		q.turns = append(q.turns, uid)
	}
	q.users[uid] = append(q.users[uid], p)
	q.waiting++
	q.mu.Unlock()
	select {
	case <-p.turn:
		return nil
	case <-p.out:
		return q.full()
	case <-ctx.Done():
	}
	if !q.forget(p) {
		q.leave() // it got its turn meanwhile
	}
	return context.Cause(ctx)
}

func (q *queue) full() error {
	return psa.Errorf(psa.StatusQueueFull, "%d calls are already waiting for the provider", q.length).WithHint("try again")
}

// makeRoom ends the newest call of the uid with the most calls, if uid has at least two fewer. The caller holds q.mu.
func (q *queue) makeRoom(uid uint32) bool {
	var most []*waiter
	for _, places := range q.users {
		if len(places) > len(most) {
			most = places
		}
	}
	if len(most) <= len(q.users[uid])+1 {
		return false
	}
	last := most[len(most)-1]
	q.remove(last, len(most)-1)
	close(last.out)
	return true
}

// forget gives a place in the queue up. It returns false if the call has its turn already.
func (q *queue) forget(p *waiter) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	select {
	case <-p.out:
		return true
	default:
	}
	i := slices.Index(q.users[p.uid], p)
	if i >= 0 {
		q.remove(p, i)
	}
	return i >= 0
}

// remove takes p, its uid's call number i, out of the queue. The caller holds q.mu.
func (q *queue) remove(p *waiter, i int) {
	q.waiting--
	if q.users[p.uid] = slices.Delete(q.users[p.uid], i, i+1); len(q.users[p.uid]) == 0 {
		delete(q.users, p.uid)
		q.turns = slices.DeleteFunc(q.turns, func(uid uint32) bool { return uid == p.uid })
	}
}

// leave gives the place to the next uid's oldest call.
func (q *queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.turns) == 0 {
		q.running--
		return
	}
	uid := q.turns[0]
	q.turns = q.turns[1:]
	places := q.users[uid]
	if q.users[uid] = places[1:]; len(places) > 1 {
		q.turns = append(q.turns, uid)
	} else {
		delete(q.users, uid)
	}
	q.waiting--
	close(places[0].turn)
}

// timed is a call that somebody waits for until an end.
type timed struct {
	at      time.Time
	cancel  context.CancelCauseFunc // of what the provider was given
	tell    func()                  // runs where the wait ends before a call that has begun
	running bool
	over    bool // nobody waits any more
}

// watch records a call's deadline. One timer serves all calls: a timer for each call would wake a thread each time.
func (q *queue) watch(c *timed, timeout time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.at = time.Now().Add(timeout); q.calls == nil {
		q.calls = map[*timed]struct{}{}
	}
	q.calls[c] = struct{}{}
	if q.alarm.IsZero() || c.at.Before(q.alarm) {
		q.setAlarm(c.at)
	}
}

// setAlarm sets the time at which deadlines are checked. The caller holds q.mu.
func (q *queue) setAlarm(at time.Time) {
	if q.alarm = at; q.timer == nil {
		q.timer = time.AfterFunc(time.Until(at), q.ring)
		return
	}
	q.timer.Reset(time.Until(at))
}

// ring ends the wait for calls whose deadline has passed.
func (q *queue) ring() {
	q.mu.Lock()
	now := time.Now()
	var due []*timed
	var next time.Time
	for c := range q.calls {
		switch {
		case !c.at.After(now):
			due = append(due, c)
		case next.IsZero() || c.at.Before(next):
			next = c.at
		}
	}
	if q.alarm = next; !next.IsZero() {
		q.setAlarm(next)
	}
	q.mu.Unlock()
	for _, c := range due {
		go q.giveUp(c, context.DeadlineExceeded) // to be told may take time
	}
}

// giveUp ends the wait for a call, unless the call has ended.
func (q *queue) giveUp(c *timed, cause error) {
	q.mu.Lock()
	_, waited := q.calls[c]
	if delete(q.calls, c); waited {
		if c.over = true; c.running {
			q.stuck++
		}
	}
	stuck := waited && c.running
	q.mu.Unlock()
	if stuck {
		c.tell()
	}
	if waited {
		c.cancel(cause)
	}
}

// begin records that a call has its turn. It returns false if nobody waits for the call any more.
func (q *queue) begin(c *timed) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	c.running = !c.over
	return c.running
}

// end records that a call has ended, and says whether somebody still waits for it.
func (q *queue) end(c *timed) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.calls, c)
	if c.over && c.running {
		q.stuck--
	}
	return !c.over
}

func (q *queue) stuckCalls() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.stuck
}

var (
	errNotBegun = errors.New("the operation was not started")
	errStuck    = errors.New("the operation is still running")
	errPanicked = errors.New("the operation failed with a panic: this is a bug")
)

// unknown says whether a call that failed with err may still have happened on the device.
func unknown(err error) bool {
	return !errors.Is(err, errNotBegun) && (psa.OutcomeUnknown(err) || errors.Is(err, errPanicked))
}

// begun says whether the provider was called at all, isStuck whether it has not returned yet.
func begun(err error) bool   { return !errors.Is(err, errNotBegun) }
func isStuck(err error) bool { return errors.Is(err, errStuck) }

// reply is the result of a call.
type reply[T any] struct {
	value T
	err   error
}

// call calls a provider through its queue. It waits for its turn and the result until ctx ends, and at most for timeout. If
// the wait ends first, the place stays taken until the provider returns, and late then gets the result.
func call[T any](ctx context.Context, p *Provider, uid uint32, timeout time.Duration, f func(context.Context) (T, error), late func(T, error)) (T, error) {
	return callIn(ctx, p, &p.queue, uid, timeout, f, late)
}

// callIn is call through one of the provider's queues.
func callIn[T any](ctx context.Context, p *Provider, q *queue, uid uint32, timeout time.Duration, f func(context.Context) (T, error), late func(T, error)) (T, error) {
	done := make(chan reply[T], 2) // the second one comes after tell, and is the same error
	go func() {
		value, err := stayIn(ctx, p, q, uid, timeout, f, late, func(err error) { done <- reply[T]{err: err} })
		done <- reply[T]{value, err}
	}()
	r := <-done
	return r.value, r.err
}

// stay is call in the caller's own goroutine, which saves two switches of goroutines. It returns only when the provider
// does. If the wait ends first, it calls tell with the error that it will return.
func stay[T any](ctx context.Context, p *Provider, uid uint32, timeout time.Duration, f func(context.Context) (T, error), late func(T, error), tell func(error)) (T, error) {
	return stayIn(ctx, p, &p.queue, uid, timeout, f, late, tell)
}

// stayIn is stay through one of the provider's queues.
func stayIn[T any](
	ctx context.Context, p *Provider, q *queue, uid uint32, timeout time.Duration, f func(context.Context) (T, error), late func(T, error), tell func(error),
) (T, error) {
	var none T
	outer := ctx
	if outer.Done() != nil {
		ctx = context.WithoutCancel(outer) // it ends after the wait has, so that a provider which obeys it comes too late
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c := &timed{cancel: cancel, tell: func() { tell(stuck(p)) }}
	q.watch(c, timeout)
	if outer.Done() != nil {
		defer context.AfterFunc(outer, func() { q.giveUp(c, context.Cause(outer)) })()
	}
	if err := q.enter(ctx, uid); err != nil {
		q.end(c)
		return none, notBegun(p, err)
	}
	if outer.Err() != nil || !q.begin(c) {
		q.leave()
		q.end(c)
		return none, notBegun(p, cmp.Or(context.Cause(outer), context.DeadlineExceeded))
	}
	value, err := recovering(ctx, p, f)
	q.leave()
	if q.end(c) {
		p.suspect(err)
		return value, err
	}
	p.log.Warn("a provider finished a call after its caller had given up", "err", err)
	late(value, err)
	return none, stuck(p)
}

// pass finishes a quick run, which has a place in the queue: nobody gives it up.
func (p *Provider) pass(ctx context.Context, run psa.Run) (result psa.Result, err error) {
	defer p.queue.leave()
	defer p.recovered(&err)
	if result, err = run.Finish(ctx); err != nil {
		p.suspect(err)
	}
	return result, err
}

func stuck(p *Provider) error {
	return psa.Errorf(psa.StatusTimeout, "provider %s did not respond in time: %w", p.Name(), errStuck).
		WithHint("the operation may still complete; the provider's status counts stuck calls")
}

func notBegun(p *Provider, err error) error {
	err = fmt.Errorf("%w: %w", errNotBegun, err)
	if psa.StatusOf(err) == psa.StatusQueueFull {
		return err
	}
	return psa.Errorf(psa.StatusTimeout, "provider %s is busy: %w", p.Name(), err).WithHint("try again")
}

// recovering is f whose panic is an error.
func recovering[T any](ctx context.Context, p *Provider, f func(context.Context) (T, error)) (value T, err error) {
	defer p.recovered(&err)
	return f(ctx)
}

// recovered turns a provider's panic into an error, where it is deferred. It does not log the panic's value, which may contain a
// request.
func (p *Provider) recovered(err *error) {
	if v := recover(); v != nil {
		p.log.Error("a provider failed with a panic: this is a bug in parsecfs", "panic", fmt.Sprintf("%T", v), "stack", string(debug.Stack()))
		*err = psa.Errorf(psa.StatusGenericError, "provider %s: %w", p.Name(), errPanicked)
	}
}
