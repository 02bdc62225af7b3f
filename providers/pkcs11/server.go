package pkcs11

import (
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// server answers the requests of a few sockets, as many as there are processors. Each socket has a thread that reads, calls
// the module and writes, so that no request moves from one thread to another. If a call takes long, because it waits for a
// device or hangs, another thread takes the socket over.
type server struct {
	answer func(*request) *response // nil ends the worker
	ports  []*port
	done   chan struct{} // closed when nobody asks any more
	once   sync.Once

	waits    atomic.Bool  // calls take their time here: the next goes on before this one has begun
	slow     atomic.Int32 // such calls in a row
	quick    atomic.Int32 // the others in a row, meanwhile
	watching atomic.Bool
	called   atomic.Bool // since the watcher looked
	wake     chan struct{}
}

// port is a worker's end of a socket.
type port struct {
	s   *server
	in  *frames
	out *sender

	mu     sync.Mutex
	leader uint64    // who reads
	since  time.Time // when the leader began its call
}

const (
	// patience is how long a call may keep its socket's thread.
	patience = 10 * time.Millisecond
	// waiting is longer than a module computes, even if it gets its processor late, so a few such calls in a row mean that
	// calls wait for a device; computing is shorter than any such wait, so a few such calls in a row mean that they do not.
	waiting    = 2 * time.Millisecond
	slowCalls  = 4
	computing  = 500 * time.Microsecond
	quickCalls = 64
	// maxHeld is how many answers wait for one write while there are more requests to read.
	maxHeld = 4
)

// serve returns when the other side has ended.
func serve(sockets []io.ReadWriter, answer func(*request) *response) {
	s := &server{answer: answer, done: make(chan struct{}), wake: make(chan struct{}, 1)}
	for _, socket := range sockets {
		s.ports = append(s.ports, &port{s: s, in: newFrames(socket), out: &sender{to: socket, broken: func(error) { s.end() }}})
	}
	for _, p := range s.ports {
		go p.lead(0)
	}
	go s.watch()
	<-s.done
}

func (s *server) end() { s.once.Do(func() { close(s.done) }) }

// request reads the next request.
func (p *port) request() (*request, error) {
	content, err := p.in.next()
	if err != nil {
		return nil, err
	}
	r := &request{}
	return r, parse(content, func(c *codec) { c.request(r) })
}

// lead answers requests until another thread takes the socket over.
func (p *port) lead(me uint64) {
	s := p.s
	for {
		r, err := p.request()
		if err != nil {
			s.end()
			return
		}
		more := p.in.buffered()
		if s.waits.Load() {
			p.takeOver(me)
		} else {
			p.mu.Lock()
			p.since = time.Now()
			p.mu.Unlock()
			s.look()
		}
		begun := time.Now()
		a := s.answer(r)
		if a == nil {
			s.end()
			return
		}
		p.write(a, more)
		s.took(time.Since(begun))
		p.mu.Lock()
		mine := p.leader == me
		if mine {
			p.since = time.Time{}
		}
		p.mu.Unlock()
		if !mine {
			p.out.flush()
			return
		}
	}
}

// took records how long a call took.
func (s *server) took(d time.Duration) {
	switch waits := s.waits.Load(); {
	case d >= waiting:
		if s.quick.Store(0); s.slow.Add(1) >= slowCalls {
			s.waits.Store(true)
		}
	case d >= computing:
		s.quick.Store(0)
	case waits && s.quick.Add(1) > quickCalls:
		s.waits.Store(false)
		fallthrough
	case !waits:
		s.slow.Store(0)
	}
}

func (p *port) write(a *response, more bool) {
	held, err := p.out.add(func(c *codec) { c.response(a) })
	if err != nil {
		held, _ = p.out.add(func(c *codec) { c.response(&response{id: a.id, outcome: outcomeBad, what: err.Error()}) })
	}
	a.wipe()
	if !more || held >= maxHeld {
		p.out.flush()
	}
}

// takeOver lets another thread go on with the socket, if me still reads it.
func (p *port) takeOver(me uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.leader == me {
		p.leader++
		p.since = time.Time{}
		go p.lead(p.leader)
	}
}

// look lets the watcher watch a call.
func (s *server) look() {
	if s.called.Store(true); !s.watching.Load() {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// watch takes over sockets whose call takes long. It sleeps while there are none.
func (s *server) watch() {
	for {
		s.watching.Store(true)
		for rest := 0; rest < 10; rest++ {
			time.Sleep(patience)
			if s.called.Swap(false) {
				rest = 0
			}
			for _, p := range s.ports {
				p.mu.Lock()
				leader, late := p.leader, !p.since.IsZero() && time.Since(p.since) >= patience
				busy := !p.since.IsZero()
				p.mu.Unlock()
				if busy {
					rest = 0
				}
				if late {
					p.takeOver(leader)
					p.out.flush()
				}
			}
		}
		s.watching.Store(false)
		if !s.called.Load() {
			<-s.wake
		}
	}
}

// descriptor is read and written by system calls that wait.
type descriptor int

func (d descriptor) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(int(d), b)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return 0, os.NewSyscallError("read", err)
		case n == 0 && len(b) > 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

func (d descriptor) Write(b []byte) (done int, err error) {
	for done < len(b) {
		n, err := unix.Write(int(d), b[done:])
		if err != nil && err != unix.EINTR {
			return done, os.NewSyscallError("write", err)
		}
		done += max(n, 0)
	}
	return done, nil
}
