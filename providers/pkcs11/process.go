package pkcs11

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// launch is what a worker is started with.
type launch struct {
	library      string
	reserved     string   // C_Initialize's reserved argument
	environment  []string // NAME=value, beside what a worker gets of the program's own
	files        []string // that environment names, and the module reads
	user         *account // whose process the module is; nil: whose the program is
	capabilities []int    // that it keeps
	width        int      // calls at once
	lock         string   // a file that each worker has locked
}

// process is a worker, and the calls that are under way in it.
type process struct {
	cmd     *exec.Cmd
	sockets []*socket
	width   int
	stderr  *lines
	born    time.Time
	ended   chan struct{} // closed when no more answers come; err says why

	identity string // of the token that it has open
	mostKeys int    // that it may use, 0 any number

	mu       sync.Mutex
	next     uint64
	calls    map[uint64]*call
	answered time.Time // the last time
	answers  int
	retired  bool            // no new calls, and none left ends it
	keys     map[string]bool // that it used, where they are counted
	err      error
}

// call is one that waits for its answer.
type call struct {
	socket  *socket
	expects expectation
	answer  chan *response
	sent    time.Time
	release func() // of an abandoned one: called when it ends after all
}

// errNotSent is wrapped by the errors of calls that the worker never saw.
var errNotSent = errors.New("the module was not called")

// locked opens the file that workers have locked, and locks it as they do.
func (l launch) locked() (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(l.lock), 0o700); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(l.lock, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH); err != nil {
		_ = f.Close() // it was only opened
		return nil, &os.PathError{Op: "flock", Path: l.lock, Err: err}
	}
	return f, nil
}

// settle waits for the workers of a run of this program that was killed, which finish what they change on the token.
func (l launch) settle() error {
	f, err := l.locked()
	if err != nil {
		return err
	}
	defer f.Close()
	for deadline := time.Now().Add(closeTime + time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return nil
		} else if err != unix.EWOULDBLOCK {
			return &os.PathError{Op: "flock", Path: l.lock, Err: err}
		}
	}
	return nil // it hangs; what it changes is not known
}

// socket is our end of one of a worker's.
type socket struct {
	conn  net.Conn
	out   *sender
	calls int // under way, under the process's mu
}

// start runs this program again as a worker.
func (l launch) start(log *slog.Logger) (*process, error) {
	// Looked at each time: the module gets the PIN and uses the keys. One that is missing is the worker's to tell.
	if err := providers.CheckTrusted(l.library); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	lock, err := l.locked()
	if err != nil {
		return nil, err
	}
	defer lock.Close() // the worker has its own
	// Its memory is no other process's to read, whoever runs it: a worker without a user of its own is one of the same user.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	orders, err := json.Marshal(l.orders())
	if err != nil {
		return nil, err
	}
	p := &process{width: l.width, stderr: &lines{log: log}, born: time.Now(), ended: make(chan struct{}), calls: map[uint64]*call{}}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			_ = f.Close() // the worker has its own
		}
	}()
	for range min(runtime.NumCPU(), l.width) {
		s, other, err := newSocket()
		if err != nil {
			p.closeAll()
			return nil, err
		}
		p.sockets, theirs = append(p.sockets, s), append(theirs, other)
	}
	p.cmd = &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{workerName, l.library, l.reserved, strconv.Itoa(len(p.sockets)), strconv.Itoa(l.width)},
		Dir: "/", Env: []string{ordersName + "=" + string(orders), "GOTRACEBACK=none"}, ExtraFiles: append([]*os.File{lock}, theirs...),
		Stderr:    p.stderr,
		WaitDelay: closeTime, // what the module started may have the same stderr
	}
	if err := p.cmd.Start(); err != nil {
		p.closeAll()
		return nil, err
	}
	var readers sync.WaitGroup
	for _, s := range p.sockets {
		readers.Go(func() { p.receive(s) })
	}
	go p.wait(&readers)
	return p, nil
}

func newSocket() (*socket, *os.File, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "worker"), os.NewFile(uintptr(pair[1]), "worker")
	conn, err := net.FileConn(ours)
	_ = ours.Close() // FileConn has its own
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return &socket{conn: conn, out: &sender{to: patientWriter{conn, stallTime}, broken: func(error) { _ = conn.Close() }}}, theirs, nil
}

func (p *process) closeAll() {
	for _, s := range p.sockets {
		_ = s.conn.Close() // nothing is buffered
	}
}

// kill ends the worker; wait says the rest.
func (p *process) kill() { _ = p.cmd.Process.Kill() }

// lines writes what a worker says to the log, a record for each line.
type lines struct {
	log *slog.Logger

	mu   sync.Mutex
	rest []byte
	last string // line that it said, or that says why it dies
	dies bool

	since   time.Time // the last time that room was made for more
	written int       // lines for which room was not made since
	unsaid  int
}

// maxLine bounds a line of a worker's.
const maxLine = 1 << 10

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rest = append(l.rest, b...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole && len(line) < maxLine {
			return len(b), nil
		}
		if text := strings.TrimSpace(string(line[:min(len(line), maxLine)])); text != "" {
			l.tell(text)
			dies := strings.HasPrefix(text, "SIG") || strings.HasPrefix(text, "fatal error:") || strings.HasPrefix(text, "panic:")
			if dies || !l.dies {
				l.last, l.dies = text, l.dies || dies
			}
		}
		l.rest = rest
	}
}

const (
	// A worker's words: so many lines at once, and one more for each pause, go into the log. What it says beyond is counted.
	maxLines  = 100
	linePause = time.Second
)

// tell writes a line to the log, where there is room for it. The caller holds l.mu.
func (l *lines) tell(text string) {
	now := time.Now()
	if l.since.IsZero() {
		l.since = now
	}
	more := int(now.Sub(l.since) / linePause)
	l.since = l.since.Add(time.Duration(more) * linePause)
	l.written = max(l.written-more, 0)
	if l.written >= maxLines {
		l.unsaid++
		return
	}
	l.written++
	if l.unsaid > 0 {
		l.log.Warn("the PKCS #11 module's process wrote more than the log takes", "lines", l.unsaid)
		l.unsaid = 0
	}
	l.log.Warn("the PKCS #11 module's process wrote", "text", text)
}

// note has said say something that is our own.
func (l *lines) note(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tell(text)
	l.last, l.dies = text, true
}

func (l *lines) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// receive gives a socket's answers to their calls, until there are no more.
func (p *process) receive(s *socket) {
	in := newFrames(s.conn)
	in.most = p.mostBytes
	defer in.wipe()
	for {
		content, err := in.next()
		if err != nil {
			break
		}
		a := &response{}
		if parse(content, func(c *codec) { c.response(a) }) != nil || !p.deliver(a) {
			break
		}
	}
	p.kill() // where it has not ended by itself
}

// wait notes how the worker ends.
func (p *process) wait(readers *sync.WaitGroup) {
	why := "it ended"
	if err := p.cmd.Wait(); err != nil {
		why = err.Error()
	}
	readers.Wait() // of the last answers
	p.closeAll()
	if said := p.stderr.said(); said != "" {
		why += ": " + said
	}
	p.mu.Lock()
	calls := p.calls
	p.calls, p.err = nil, errors.New(why)
	p.mu.Unlock()
	close(p.ended)
	for _, c := range calls {
		if c.release != nil {
			c.release()
		}
	}
}

// deliver is false where an answer is nobody's.
func (p *process) deliver(a *response) bool {
	p.mu.Lock()
	c, ok := p.calls[a.id]
	if ok && !c.expects.met(a) {
		p.mu.Unlock()
		a.wipe()
		p.stderr.note("its answer does not fit the request")
		return false
	}
	delete(p.calls, a.id)
	if ok {
		c.socket.calls--
	}
	p.answered = time.Now()
	p.answers++
	last := p.retired && len(p.calls) == 0
	p.mu.Unlock()
	if !ok {
		return false
	}
	if c.release != nil {
		a.wipe()
		c.release()
	} else {
		c.answer <- a
	}
	if last {
		p.finish()
	}
	return true
}

func (a *response) wipe() {
	psa.Wipe(a.data)
	for _, o := range a.objects {
		wipeAttributes(o)
	}
}

// do asks the worker. Where ctx ends the wait the call goes on, and release is called when it has ended; its errors are
// the context's, then, or StatusCommunicationFailure where the worker died.
func (p *process) do(ctx context.Context, r *request, release func()) (*response, error) {
	c := &call{expects: r.expects(), answer: make(chan *response, 1), sent: time.Now()}
	p.mu.Lock()
	if p.calls == nil || p.retired {
		p.mu.Unlock()
		return nil, errNotSent
	}
	p.next++
	r.id = p.next
	p.calls[r.id] = c
	// The one with the fewest calls; of idle ones the first, whose thread is warm.
	c.socket = slices.MinFunc(p.sockets, func(a, b *socket) int { return cmp.Compare(a.calls, b.calls) })
	c.socket.calls++
	p.mu.Unlock()
	_, err := c.socket.out.add(func(c *codec) { c.request(r) })
	if err != nil {
		p.mu.Lock()
		delete(p.calls, r.id)
		c.socket.calls--
		p.mu.Unlock()
		if psa.StatusOf(err) == psa.StatusTooLarge {
			return nil, err
		}
		return nil, errNotSent
	}
	c.socket.out.flush()
	select {
	case a := <-c.answer:
		return a, nil
	case <-p.ended:
		select {
		case a := <-c.answer:
			return a, nil
		default:
		}
		return nil, p.crashed()
	case <-ctx.Done():
	}
	if !p.abandon(r.id, c, release) {
		select {
		case a := <-c.answer:
			return a, nil
		case <-p.ended:
			return nil, p.crashed()
		}
	}
	return nil, &abandonedError{ctx.Err()}
}

// abandonedError is of a call that goes on without its caller.
type abandonedError struct{ err error }

func (e *abandonedError) Error() string { return e.err.Error() }
func (e *abandonedError) Unwrap() error { return e.err }

func (p *process) crashed() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := psa.Errorf(psa.StatusCommunicationFailure, "the PKCS #11 module's process died").
		WithHint("the next operation starts it again; the daemon's log has its output")
	e.Device = p.err.Error()
	return e
}

// abandon leaves a call to itself; false: it has ended. A worker is ended with it where all of its calls are abandoned
// that it does at once, or where it hangs: two at least are, the oldest under way is one of them, and nothing was
// answered since that one was sent.
func (p *process) abandon(id uint64, c *call, release func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls[id] != c {
		return false
	}
	c.release = release
	abandoned, oldest := 0, c
	for _, other := range p.calls {
		if other.release != nil {
			abandoned++
		}
		if other.sent.Before(oldest.sent) {
			oldest = other
		}
	}
	hangs := abandoned >= 2 && oldest.release != nil && p.answered.Before(oldest.sent)
	if abandoned >= p.width || hangs {
		p.kill()
	}
	return true
}

// retire lets no new calls in. The last one under way ends the worker, or, where that hangs, time does.
func (p *process) retire() {
	p.mu.Lock()
	first, left := !p.retired && p.calls != nil, len(p.calls)
	p.retired = true
	p.mu.Unlock()
	switch {
	case first && left == 0:
		p.finish()
	case first:
		time.AfterFunc(retireTime, p.kill)
	}
}

// finish has the module finalized, which a worker outlives no longer than closeTime.
func (p *process) finish() {
	time.AfterFunc(closeTime, p.kill) // before the write, for which a worker that reads nothing has no room
	out := p.sockets[0].out
	if _, err := out.add(func(c *codec) { c.request(&request{method: methodClose}) }); err == nil {
		out.flush()
	}
}

const closeTime = 2 * time.Second

// retireTime is how long the calls under way have in a worker that was retired.
const retireTime = 2 * time.Minute

// usable says whether new calls may be sent.
func (p *process) usable() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls != nil && !p.retired
}

// full says whether the call would bring in a key more than the module can have.
func (p *process) full(r *request) bool {
	if p.mostKeys == 0 || r.object.key() == (&object{}).key() && r.method != methodGenerate {
		return false
	}
	name := r.object.key()
	if r.method == methodGenerate {
		name = fmt.Sprintf("new %p", r)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.keys[name] {
		return false
	}
	if len(p.keys) >= p.mostKeys {
		return true
	}
	if p.keys == nil {
		p.keys = map[string]bool{}
	}
	p.keys[name] = true
	return false
}

// died says whether it ended without being told to.
func (p *process) died() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.retired
}

// exit is its exit status, -1 while it runs or where a signal ended it.
func (p *process) exit() int {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.ExitCode()
	default:
		return -1
	}
}

// steady says whether it has shown that it works.
func (p *process) steady() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.answers > 1000 || time.Since(p.born) > 10*time.Second
}
