package pkcs11

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// token is a token and the worker that has it open, for all providers that mean this token. Each token has its own worker,
// also if several have the same module, so that trouble with one token does not affect the others.
type token struct {
	launch   launch
	selector selector // changed by the one start under way
	log      *slog.Logger
	key      string
	users    int // under tokensMu

	open context.Context // ends with the last user
	end  context.CancelFunc

	settled bool // launch.settle is done; of the one start under way

	slots chan struct{} // of the calls under way

	mu       sync.Mutex
	process  *process
	starting *starting
	failures int       // workers that died one after the other
	next     time.Time // the earliest next start
	last     error     // why the last start failed, or the last worker died
	identity string    // of the token that was there first: keys are on it alone
	closed   bool

	// of the one start under way
	refused   [sha256.Size]byte // the last PIN that the token refused
	oddLogins int               // one after the other, that failed otherwise

	hardware atomic.Bool // as the module says of the slot, once it was asked

	learning *learning
	known    atomic.Pointer[knowledge] // of the token, once it was asked
}

// starting is the start of a worker.
type starting struct {
	done    chan struct{}
	process *process
	err     error
}

var (
	tokensMu sync.Mutex
	tokens   = map[string]*token{}
)

// openToken returns the token for a configuration, and starts nothing. Providers with different PINs, or different sources
// of it, do not share a login.
func openToken(l launch, s selector, pin providers.PINSource, log *slog.Logger) *token {
	key := fmt.Sprintf("%q %q %q %+v %v %d %+v %x %q %q", l.library, l.reserved, l.environment, l.runsAs(), l.capabilities, l.width, s,
		sha256.Sum256(pin.Value), pin.File, pin.Credential)
	tokensMu.Lock()
	defer tokensMu.Unlock()
	t := tokens[key]
	if t == nil {
		t = &token{launch: l, selector: s, log: log, key: key, slots: make(chan struct{}, l.width)}
		t.open, t.end = context.WithCancel(context.Background())
		tokens[key] = t
	}
	t.users++
	return t
}

// close ends the worker with its last user.
func (t *token) close() {
	tokensMu.Lock()
	t.users--
	last := t.users == 0
	if last {
		delete(tokens, t.key)
	}
	tokensMu.Unlock()
	if !last {
		return
	}
	t.end()
	t.mu.Lock()
	t.closed = true
	s, p, l := t.starting, t.process, t.learning
	t.mu.Unlock()
	if s != nil {
		<-s.done
		p = s.process
	}
	if p != nil {
		p.retire()
		p.finish()
		<-p.ended
	}
	if l != nil {
		<-l.done
	}
}

const (
	// startTime is how long C_Initialize, finding the token and the login may take.
	startTime = 30 * time.Second
	// A worker that died is started again after these times, and one that finds no token after the first of them.
	firstPause = 100 * time.Millisecond
	lastPause  = 10 * time.Second
	// longestWait is how long a call waits for that. If it would take longer, the call fails at once.
	longestWait = time.Second
)

// ready returns a worker that has the token open. It starts one if necessary.
func (t *token) ready(ctx context.Context, pin pins) (*process, error) {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		return nil, psa.Errorf(psa.StatusBadState, "the provider is closed")
	}
	if p := t.process; p != nil && p.usable() {
		t.mu.Unlock()
		return p, nil
	}
	s := t.starting
	if s == nil {
		pause := time.Until(t.next)
		if pause > longestWait {
			defer t.mu.Unlock()
			e := psa.Errorf(psa.StatusProviderAbsent, "the PKCS #11 module is started again in %v", pause.Round(time.Millisecond)).
				WithHint("the daemon's log has the module's output")
			e.Device = psa.DeviceOf(t.last)
			return nil, e
		}
		s = &starting{done: make(chan struct{})}
		t.starting = s
		go t.start(s, pin, pause)
	}
	t.mu.Unlock()
	select {
	case <-s.done:
		return s.process, s.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// start starts a worker after a pause, to replace one that is gone.
func (t *token) start(s *starting, pin pins, pause time.Duration) {
	time.Sleep(max(pause, 0))
	ctx, cancel := context.WithTimeout(t.open, startTime)
	defer cancel()
	s.process, s.err = t.begin(ctx, pin)
	t.mu.Lock()
	defer t.mu.Unlock()
	defer close(s.done)
	t.starting = nil
	if s.err == nil {
		t.process, t.last = s.process, nil
		go t.watch(s.process)
		return
	}
	t.last = s.err
	t.next = time.Now().Add(firstPause)
	if psa.StatusOf(s.err) == psa.StatusCommunicationFailure {
		t.failed()
	}
}

// watch records how a worker ends.
func (t *token) watch(p *process) {
	<-p.ended
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.steady() {
		t.failures = 0
	}
	if p.died() {
		t.last = p.crashed()
		t.failed()
	}
}

// failed counts a worker that died. The caller holds t.mu.
func (t *token) failed() {
	t.failures++
	if t.failures > 1 { // once is an accident
		t.next = time.Now().Add(min(firstPause<<min(t.failures-2, 10), lastPause))
	}
	t.log.Warn("a PKCS #11 module's process died", "library", t.launch.library, "times", t.failures, "err", t.last)
}

// startWorker starts a worker.
func (t *token) startWorker() (*process, error) {
	if !t.settled {
		if err := t.launch.settle(); err != nil {
			return nil, err
		}
		t.settled = true
	}
	return t.launch.start(t.log)
}

// begin starts a worker, lets it find the token, and logs in.
func (t *token) begin(ctx context.Context, pin pins) (*process, error) {
	p, err := t.startWorker()
	if err != nil {
		return nil, psa.Errorf(psa.StatusCommunicationFailure, "the PKCS #11 module's process cannot be started: %w", err)
	}
	if err := t.enter(ctx, p, pin); err != nil {
		p.kill()
		<-p.ended
		return nil, err
	}
	return p, nil
}

func (t *token) enter(ctx context.Context, p *process, pin pins) error {
	a, err := p.do(ctx, &request{method: methodOpen, selector: t.selector}, func() {})
	if err != nil {
		if err == errNotSent { // it ended before it could be asked
			select {
			case <-p.ended:
			case <-ctx.Done():
			}
		}
		switch p.exit() {
		case exitDenied:
			e := psa.Errorf(psa.StatusProviderAbsent, "the PKCS #11 module cannot start: %s", p.stderr.said())
			return e.WithHint("let that user read it and the directories above it, or set another user in the configuration")
		case exitRefused:
			e := psa.Errorf(psa.StatusProviderAbsent, "the PKCS #11 module did not start").WithHint(hintAbsent + t.launch.hintUser())
			e.Device = p.stderr.said()
			return e
		}
		return began("C_Initialize", err)
	}
	switch a.outcome {
	case outcomeOK:
	case outcomeNoToken, outcomeAmbiguous:
		there := "there is no token"
		if a.what != "" {
			there = "there are " + a.what
		}
		which := "no token fits the configuration"
		if a.outcome == outcomeAmbiguous {
			which = "several tokens fit the configuration"
		}
		hint := "choose one with token_label, serial_number or uri in the configuration"
		if a.what == "" {
			hint += t.launch.hintUser()
		}
		return psa.Errorf(psa.StatusProviderAbsent, "%s; %s", which, there).WithHint(hint)
	default:
		return a.err("opening the token")
	}
	p.identity, p.mostKeys = identityOf(a.token), quirksOf(a.token).mostKeys
	t.hardware.Store(a.token.hardware)
	if t.selector.bySlot { // its number may be another's by the next time
		t.selector = selector{serial: a.token.serial, label: a.token.label}
	}
	return t.logIn(ctx, p, a.token, pin)
}

// began is the error of a start that failed.
func began(what string, err error) error {
	if _, abandoned := errors.AsType[*abandonedError](err); abandoned {
		return psa.Errorf(psa.StatusTimeout, "%s: the PKCS #11 module does not respond", what)
	}
	return err
}

// identityOf is what tells a token from others: its serial number, which need not be unique, and its marker if it has one.
func identityOf(t tokenInfo) string {
	id := t.serial
	if strings.Trim(t.serial, "0 ") == "" {
		id = t.label + "/" + t.serial
	}
	if id = strings.ReplaceAll(id, "#", "%23"); t.marker != "" {
		id += "#" + t.marker
	}
	return id
}

// pins is a provider's PIN, and the record of refused ones.
type pins struct {
	source  providers.PINSource
	refused refusals
}

// maxOddLogins is fewer than the number of tries that tokens allow.
const maxOddLogins = 2

// logIn logs in if the token requires it. It does not try a PIN again that the token refused, and tries none if that would
// be the last try.
func (t *token) logIn(ctx context.Context, p *process, token tokenInfo, own pins) error {
	flags := token.flags
	if flags&p11.CKF_LOGIN_REQUIRED == 0 {
		return nil
	}
	pin, err := own.source.Read()
	if err != nil {
		return err
	}
	defer psa.Wipe(pin)
	switch {
	case pin == nil:
		return psa.Errorf(psa.StatusNotPermitted, "the token needs a PIN").WithHint("set user_pin or pin_source")
	case flags&p11.CKF_USER_PIN_LOCKED != 0:
		return psa.Errorf(psa.StatusNotPermitted, "the token's PIN is locked").WithHint(hintLocked)
	case flags&p11.CKF_USER_PIN_FINAL_TRY != 0:
		return psa.Errorf(psa.StatusNotPermitted, "one more wrong PIN would lock the token, so no PIN is tried").
			WithHint("log in once with another program, with the right PIN")
	}
	counted, refused, err := own.refused.has(token.serial, pin)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(pin)
	// If the token had counted the wrong try and no longer shows it, somebody has logged in, or set a new PIN.
	if (refused || sum == t.refused) && (!counted || flags&p11.CKF_USER_PIN_COUNT_LOW != 0) {
		e := psa.Errorf(psa.StatusNotPermitted, "the token refused this PIN before").WithHint(hintPIN + "; or remove " + own.refused.file)
		e.Device = "C_Login: " + name(p11.CKR_PIN_INCORRECT)
		return e
	}
	if t.oddLogins >= maxOddLogins {
		return psa.Errorf(psa.StatusNotPermitted, "C_Login failed %d times, and the token may have counted wrong PINs", t.oddLogins).
			WithHint("restart parsecfs to try the PIN again")
	}
	a, err := p.do(ctx, &request{method: methodLogin, data: pin}, func() {})
	if err != nil {
		t.oddLogins++
		return began("C_Login", err)
	}
	if a.outcome == outcomeOK {
		t.oddLogins = 0
		return nil
	}
	failure := a.err("logging in")
	now, err := p.do(ctx, &request{method: methodIdentify}, func() {})
	there := err == nil && now.outcome == outcomeOK
	counted = there && now.token.flags&p11.CKF_USER_PIN_COUNT_LOW != 0
	switch p11.Error(a.rv) {
	case p11.CKR_PIN_INCORRECT, p11.CKR_PIN_INVALID, p11.CKR_PIN_LEN_RANGE, p11.CKR_PIN_LOCKED:
		t.oddLogins = 0
		t.refused = sum
		if err := own.refused.add(token.serial, pin, counted); err != nil {
			return psa.Errorf(psa.StatusNotPermitted, "%w; the refused PIN cannot be recorded, so the next start tries it again: %w", failure, err)
		}
	default:
		if there { // some modules say so little of a wrong PIN
			t.oddLogins++
		}
	}
	return failure
}

// do calls the token. At most as many calls run at once as it has sessions for us.
func (t *token) do(ctx context.Context, pin pins, what string, r *request) (*response, error) {
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	release := func() { <-t.slots }
	a, err := t.ask(ctx, pin, what, r, release)
	if _, abandoned := errors.AsType[*abandonedError](err); !abandoned {
		release()
	}
	return a, err
}

// tries is how often a call is repeated that had no effect.
const tries = 3

func (t *token) ask(ctx context.Context, pin pins, what string, r *request, release func()) (*response, error) {
	for n := 1; ; n++ {
		p, err := t.ready(ctx, pin)
		if err != nil {
			return nil, err
		}
		if err := t.same(p); err != nil && r.method != methodIdentify {
			return nil, err
		}
		if r.object.handle != 0 && r.object.of != p { // in another worker the number is another object's
			return nil, psa.Errorf(psa.StatusProviderAbsent, "%s: the session object is gone, because the module's process ended", what)
		}
		if p.full(r) {
			p.retire()
			continue
		}
		a, err := p.do(ctx, r, release)
		switch {
		case err == errNotSent && n < tries:
			continue
		case err == errNotSent:
			return nil, psa.Errorf(psa.StatusProviderAbsent, "%s: %w", what, err)
		case err != nil:
			return nil, err
		}
		if a.outcome == outcomeLost || a.outcome == outcomeGone {
			p.retire()
			if a.outcome == outcomeLost && n < tries {
				continue
			}
		}
		if n == 1 && r.method == methodDestroy && a.outcome == outcomeRefused && p11.Error(a.rv) == p11.CKR_FUNCTION_FAILED {
			p.retire() // a key with which something failed is in use for ever, to a tpm2-pkcs11 that goes on
			continue
		}
		a.of = p
		t.marked(p, a.token.marker)
		if err := a.err(what); err != nil {
			a.wipe()
			return a, err
		}
		return a, nil
	}
}

// marked records that the token has a marker now.
func (t *token) marked(p *process, marker string) {
	if marker == "" {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	base, _, _ := strings.Cut(p.identity, "#")
	p.identity = base + "#" + marker
}

// same says whether this is the token that was there first.
func (t *token) same(p *process) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.identity != "" && !providers.SameDevice(t.identity, p.identity) {
		return psa.Errorf(psa.StatusProviderAbsent, "this is another token: it is %q, but the keys are on %q", p.identity, t.identity).
			WithHint("connect the token that has the keys")
	}
	t.identity = p.identity
	return nil
}
