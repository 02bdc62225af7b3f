package pkcs11

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	// workerName is a worker's argv[0], by which WorkerMain knows it; its arguments are the library, C_Initialize's
	// reserved argument, how many sockets there are, and how many calls may be under way at once.
	workerName = "parsecfs-pkcs11"
	// workerLock is a file that the worker keeps locked as long as it runs.
	workerLock = 3
	// firstSocket is the first of the sockets to the program that started it.
	firstSocket = workerLock + 1
	// exitRefused is a worker's exit status if C_Initialize failed: some modules need their token for it.
	exitRefused = 3
)

// WorkerMain does not return in a process that was started to hold a PKCS #11 module. Programs with this provider call
// it before anything else.
func WorkerMain() {
	if os.Args[0] != workerName || len(os.Args) != 5 {
		return
	}
	err := start(os.Args[1], os.Args[2], os.Args[3], os.Args[4])
	if err == nil {
		end() // does not return
	}
	fmt.Fprintln(os.Stderr, err)
	if _, denied := errors.AsType[*deniedError](err); denied {
		os.Exit(exitDenied)
	}
	if _, refused := errors.AsType[p11.Error](err); refused {
		os.Exit(exitRefused)
	}
	os.Exit(1)
}

func start(library, reserved, sockets, width string) error {
	count, err := strconv.Atoi(sockets)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(width)
	if err != nil {
		return err
	}
	if orders, ok := os.LookupEnv(ordersName); ok {
		return confine(orders, count)
	}
	return work(library, reserved, count, n)
}

func work(library, reserved string, count, n int) error {
	// The program that started this process ends it through the socket. A signal that a terminal or a service manager sends
	// to all processes must not end it.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if err := confined(); err != nil {
		return err
	}
	// Other processes of the same user must not read this one's memory.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	unix.CloseOnExec(workerLock) // what the module starts has no part in it
	go endWithStarter()
	// A thread that waits in the module, or in read(2), blocks no other goroutine, so the runtime need not watch it.
	runtime.GOMAXPROCS(n + count + 2)
	m, err := loadModule(library, reserved)
	if err != nil {
		return err
	}
	var all []io.ReadWriter
	for i := range count {
		unix.CloseOnExec(firstSocket + i) // what the module starts outlives nothing
		all = append(all, descriptor(firstSocket+i))
	}
	serve(all, func(r *request) *response {
		if r.method == methodClose {
			_ = m.ctx.Finalize() // the process ends all the same
			return nil
		}
		defer r.wipe()
		return m.answer(r)
	})
	return nil
}

// endWithStarter ends this process when the program that started it is gone, even while all threads wait in the module.
func endWithStarter() {
	for {
		poll := []unix.PollFd{{Fd: firstSocket, Events: unix.POLLRDHUP}}
		if _, err := unix.Poll(poll, -1); err == nil {
			end()
		} else if err != unix.EINTR {
			return // the end of the socket's bytes tells too
		}
	}
}

// ending is set when no more change of the token may begin.
var ending atomic.Bool

// changes is read-locked by calls that change the token. If the token cannot do anything else during a change, such calls
// lock it, and searches read-lock it.
var changes sync.RWMutex

func (m *module) changing() (done func()) {
	lock, done := changes.RLock, changes.RUnlock
	if m.alone.Load() {
		lock, done = changes.Lock, changes.Unlock
	}
	lock()
	if ending.Load() { // it waited for its turn, and nobody waits for it
		done()
		select {}
	}
	return done
}

// searching is called before m.search, except by calls that change the token.
func (m *module) searching() (done func()) {
	if m.alone.Load() {
		changes.RLock()
		return changes.RUnlock
	}
	return func() {}
}

// end ends this process when the running changes of the token are done, after at most closeTime. Otherwise some tokens would
// keep half a key that nobody can name.
func end() {
	go func() {
		time.Sleep(closeTime)
		os.Exit(0)
	}()
	ending.Store(true)
	changes.Lock()
	os.Exit(0)
}

// module is a loaded module with one of its tokens.
type module struct {
	ctx  *p11.Ctx
	info p11.Info
	// alone: no search may run during a change of its token.
	alone atomic.Bool

	mu      sync.Mutex
	open    bool
	slot    uint
	serial  string
	markMu  sync.Mutex // before the others
	marker  string     // that the token had, empty: none yet
	bare    bool       // the token refused one
	login   bool       // somebody must be logged in for what is done here
	idle    []session
	objects map[string]p11.ObjectHandle

	// held keeps the login and the session objects. It has one call at a time.
	heldMu sync.Mutex
	held   session
}

type session = p11.SessionHandle

func loadModule(library, reserved string) (*module, error) {
	ctx := p11.New(library)
	if ctx == nil {
		return nil, fmt.Errorf("%s cannot be loaded, or is not a PKCS #11 module", library)
	}
	var options []p11.InitializeOption
	if reserved != "" {
		text := append([]byte(reserved), 0)
		var pin runtime.Pinner
		defer pin.Unpin()
		pin.Pin(&text[0])
		options = append(options, p11.InitializeWithReserved(unsafe.Pointer(&text[0])))
	}
	if err := ctx.Initialize(options...); err != nil {
		return nil, fmt.Errorf("C_Initialize: %w", err)
	}
	info, err := ctx.GetInfo()
	if err != nil {
		return nil, fmt.Errorf("C_GetInfo: %w", err)
	}
	return &module{ctx: ctx, info: info, objects: map[string]p11.ObjectHandle{}}, nil
}

// wipe overwrites what may be secret in a request.
func (r *request) wipe() {
	psa.Wipe(r.data)
	for _, t := range r.templates {
		wipeAttributes(t)
	}
}

func wipeAttributes(list []attribute) {
	for _, a := range list {
		psa.Wipe(a.value)
	}
}

// failure is an error of a call.
type failure struct {
	what string
	err  error
	// begun is set if something may have changed on the token.
	begun bool
}

func (f *failure) Error() string { return f.what + ": " + f.err.Error() }

func (f *failure) Unwrap() error { return f.err }

// failed is the failure of a call that changes nothing when it fails.
func failed(what string, err error) error {
	if err == nil {
		return nil
	}
	return &failure{what: what, err: err}
}

// outcomeError ends a request without an error from the module.
type outcomeError struct {
	outcome outcome
	what    string
}

func (e *outcomeError) Error() string { return e.what }

func (m *module) answer(r *request) *response {
	a := &response{id: r.id}
	err := m.do(r, a)
	if err == nil {
		return a
	}
	if o, ok := errors.AsType[*outcomeError](err); ok {
		a.outcome, a.what = o.outcome, o.what
		if o.outcome == outcomeNotFound && !m.stillWell() {
			a.outcome = outcomeLost // a token that is away shows no objects
		}
		return a
	}
	rv, ok := errors.AsType[p11.Error](err)
	if !ok {
		a.outcome, a.what = outcomeBad, err.Error()
		return a
	}
	begun := false
	if f, ok := errors.AsType[*failure](err); ok {
		a.what, begun = f.what, f.begun
	}
	a.outcome, a.rv = outcomeRefused, uint64(rv)
	if r.method == methodOpen || r.method == methodLogin {
		return a
	}
	away := removed[rv] || suspicious[rv] && !m.stillWell()
	switch {
	case ended[rv], away && !begun:
		a.outcome = outcomeLost
	case away:
		a.outcome = outcomeGone
	}
	return a
}

type errorSet = map[p11.Error]bool

var (
	// ended are the errors of a session or login that ended before anything happened.
	ended = errorSet{p11.CKR_SESSION_HANDLE_INVALID: true, p11.CKR_SESSION_CLOSED: true, p11.CKR_USER_NOT_LOGGED_IN: true,
		p11.CKR_SLOT_ID_INVALID: true, p11.CKR_CRYPTOKI_NOT_INITIALIZED: true, p11.CKR_OPERATION_ACTIVE: true}
	// removed are the errors of a token that was removed.
	removed = errorSet{p11.CKR_DEVICE_REMOVED: true, p11.CKR_TOKEN_NOT_PRESENT: true, p11.CKR_TOKEN_NOT_RECOGNIZED: true}
	// suspicious are errors that may mean that the token was removed.
	suspicious = errorSet{p11.CKR_GENERAL_ERROR: true, p11.CKR_FUNCTION_FAILED: true, p11.CKR_DEVICE_ERROR: true, p11.CKR_DEVICE_MEMORY: true,
		p11.CKR_OBJECT_HANDLE_INVALID: true, p11.CKR_KEY_HANDLE_INVALID: true, p11.CKR_SESSION_COUNT: true, p11.CKR_HOST_MEMORY: true}
	// stale are the errors of an object's handle that is no longer valid.
	stale = errorSet{p11.CKR_OBJECT_HANDLE_INVALID: true, p11.CKR_KEY_HANDLE_INVALID: true}
)

func is(err error, set errorSet) bool {
	rv, ok := errors.AsType[p11.Error](err)
	return ok && set[rv]
}

func (m *module) stillWell() bool {
	defer m.searching()()
	return m.well()
}

// well says whether the token is still there and, if that is needed, logged in.
func (m *module) well() bool {
	m.mu.Lock()
	open, slot, serial, marker, login, held := m.open, m.slot, m.serial, m.marker, m.login, m.held
	m.mu.Unlock()
	if !open {
		return false
	}
	t, err := m.ctx.GetTokenInfo(slot)
	if err != nil || t.SerialNumber != serial {
		return false
	}
	s, err := m.ctx.GetSessionInfo(held)
	if err != nil || login && s.State != p11.CKS_RO_USER_FUNCTIONS && s.State != p11.CKS_RW_USER_FUNCTIONS {
		return false
	}
	if marker == "" {
		return true
	}
	now, err := m.findMarker()
	return err == nil && providers.SameDevice("#"+marker, "#"+now)
}

func (m *module) do(r *request, a *response) error {
	switch r.method {
	case methodOpen:
		return m.find(r, a)
	}
	if !m.isOpen() {
		return &outcomeError{outcomeBad, "no token is open"}
	}
	switch r.method {
	case methodLogin:
		return m.logIn(r)
	case methodIdentify:
		defer m.searching()()
		return m.identify(a)
	case methodMechanisms:
		return m.mechanisms(a)
	case methodCreate, methodGenerate:
		return m.make(r, a)
	case methodDestroy:
		defer m.changing()()
		return m.destroy(r)
	case methodForget:
		return m.onHeld(func(s session) error {
			return failed("C_DestroyObject", m.ctx.DestroyObject(s, p11.ObjectHandle(r.object.handle)))
		})
	case methodRead:
		return m.onObject(r, func(s session, o p11.ObjectHandle) error {
			list, err := m.read(s, o, r.types)
			a.objects = [][]attribute{list}
			return err
		})
	case methodList:
		defer m.searching()()
		return m.list(r, a)
	case methodSign, methodEncrypt, methodDecrypt, methodDerive:
		return m.onObject(r, func(s session, o p11.ObjectHandle) (err error) {
			a.data, err = m.use(r, s, o)
			return err
		})
	case methodRandom:
		return m.with(func(s session) (err error) {
			a.data, err = m.ctx.GenerateRandom(s, int(min(r.length, maxFrame/2)))
			return failed("C_GenerateRandom", err)
		})
	}
	return &outcomeError{outcomeBad, fmt.Sprintf("unknown method %d", r.method)}
}
