package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// conn is a connection to a TPM. If a response does not come in time, or not completely, the connection cannot be used again.
type conn interface {
	// exchange waits for the beginning of the response until ctx ends, but at least for grace and at most for most. It then
	// waits for the end of the response for drain.
	exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error)
	Close() error
}

const (
	dialTimeout  = 2 * time.Second
	responseMost = 64 << 10
	// drain is how long a response may take after its beginning: every kind of TPM has the whole response ready.
	drain = time.Second
	// grace is how long any command may take, so that a caller who leaves does not cost the others their connection.
	grace = time.Second
	// slice is how often a wait checks whether it should end.
	slice = 50 * time.Millisecond
	// headerSize is of a command's or a response's tag, size and code (TCG TPM 2.0, part 1, 18.3).
	headerSize = 10
)

var (
	errSlow = errors.New("the TPM did not answer in time")
	errCut  = errors.New("the TPM did not finish its answer")
)

// wait is how long an exchange may still take.
type wait struct {
	ctx   context.Context
	asked time.Time
	until time.Time
	begun bool // the response's first bytes are there
}

func newWait(ctx context.Context, most time.Duration) *wait {
	now := time.Now()
	return &wait{ctx: ctx, asked: now, until: now.Add(most)}
}

func (w *wait) over() error {
	now := time.Now()
	if w.ctx.Err() != nil && now.Sub(w.asked) > grace {
		return context.Cause(w.ctx)
	}
	if !now.After(w.until) {
		return nil
	}
	if w.begun {
		return errCut
	}
	return errSlow
}

// begin notes that the response has begun.
func (w *wait) begin() {
	if !w.begun {
		w.begun, w.until = true, time.Now().Add(drain)
	}
}

// socket is a descriptor that blocks for at most slice. With the Go runtime's poller each command would need a timer, and
// wake a thread.
type socket struct {
	fd  int
	buf []byte
}

func dialSocket(ctx context.Context, network, address string) (*socket, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(p uintptr) { fd, err = blocking(int(p)) }); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	return &socket{fd, make([]byte, responseMost)}, nil
}

// blocking returns a socket's descriptor that blocks for at most slice.
func blocking(socket int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	most := unix.NsecToTimeval(slice.Nanoseconds())
	err = errors.Join(unix.SetNonblock(fd, false),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &most),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &most))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func (s *socket) write(w *wait, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(s.fd, b)
		if n > 0 {
			b = b[n:]
		}
		if err != nil && err != unix.EINTR && err != unix.EAGAIN {
			return os.NewSyscallError("write", err)
		}
		if len(b) > 0 {
			if err := w.over(); err != nil {
				return err
			}
		}
	}
	return nil
}

// read returns what has arrived, at least one byte.
func (s *socket) read(w *wait, b []byte) (int, error) {
	for {
		n, err := unix.Read(s.fd, b)
		switch {
		case n > 0:
			w.begin()
			return n, nil
		case err == nil:
			return 0, io.ErrUnexpectedEOF
		case err != unix.EINTR && err != unix.EAGAIN:
			return 0, os.NewSyscallError("read", err)
		}
		if err := w.over(); err != nil {
			return 0, err
		}
	}
}

// fill fills b. A peer that sends single bytes gets no more time for that.
func (s *socket) fill(w *wait, b []byte) error {
	for n := 0; n < len(b); {
		more, err := s.read(w, b[n:])
		if err != nil {
			return err
		}
		if n += more; n < len(b) {
			if err := w.over(); err != nil {
				return err
			}
		}
	}
	return nil
}

// exchange is swtpm's data channel: the command alone, and the response alone.
func (s *socket) exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error) {
	w := newWait(ctx, most)
	if err := s.write(w, command); err != nil {
		return nil, err
	}
	return whole(s.buf, func(b []byte) (int, error) {
		n, err := s.read(w, b)
		if err == nil && n < len(b) && w.begun {
			return n, w.late()
		}
		return n, err
	})
}

// late is over for a response that has begun.
func (w *wait) late() error {
	if time.Now().After(w.until) {
		return errCut
	}
	return nil
}

// whole reads a response, as long as it says that it is.
func whole(buf []byte, read func([]byte) (int, error)) ([]byte, error) {
	n := 0
	for size := headerSize; n < size; {
		more, err := read(buf[n:])
		if n += more; n >= headerSize {
			size = int(binary.BigEndian.Uint32(buf[2:]))
			if size < headerSize || size > len(buf) || n > size {
				return nil, fmt.Errorf("the TPM's response has %d bytes but says %d", n, size)
			}
		}
		if err != nil && n < size {
			return nil, err
		}
	}
	b := bytes.Clone(buf[:n])
	psa.Wipe(buf[:n])
	return b, nil
}

func (s *socket) Close() error { return unix.Close(s.fd) }

// mssim speaks the protocol of Microsoft's simulator (TpmTcpProtocol.h): a channel for commands, and one that stands
// for the platform.
type mssim struct{ command, platform *socket }

const (
	simulatorSend    = 8
	simulatorPowerOn = 1
	simulatorNVOn    = 11
)

func dialSimulator(ctx context.Context, host string, port int) (*mssim, error) {
	command, err := dialSocket(ctx, "tcp", net.JoinHostPort(host, fmt.Sprint(port)))
	if err != nil {
		return nil, err
	}
	platform, err := dialSocket(ctx, "tcp", net.JoinHostPort(host, fmt.Sprint(port+1)))
	if err != nil {
		return nil, errors.Join(err, command.Close())
	}
	s := &mssim{command, platform}
	if err := errors.Join(s.signal(ctx, simulatorPowerOn), s.signal(ctx, simulatorNVOn)); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *mssim) signal(ctx context.Context, what uint32) error {
	w := newWait(ctx, dialTimeout)
	if err := s.platform.write(w, binary.BigEndian.AppendUint32(nil, what)); err != nil {
		return err
	}
	var result [4]byte
	if err := s.platform.fill(w, result[:]); err != nil {
		return err
	}
	if code := binary.BigEndian.Uint32(result[:]); code != 0 {
		return fmt.Errorf("the simulator answered %#[2]x to command %[1]d", what, code)
	}
	return nil
}

func (s *mssim) exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error) {
	w := newWait(ctx, most)
	head := append(binary.BigEndian.AppendUint32(nil, simulatorSend), 0) // locality 0
	head = binary.BigEndian.AppendUint32(head, uint32(len(command)))
	if err := s.command.write(w, append(head, command...)); err != nil {
		return nil, err
	}
	var word [4]byte
	if err := s.command.fill(w, word[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(word[:])
	if size < headerSize || size > responseMost {
		return nil, fmt.Errorf("the TPM's response has %d bytes, which is the wrong length", size)
	}
	b := make([]byte, size)
	if err := errors.Join(s.command.fill(w, b), s.command.fill(w, word[:])); err != nil {
		return nil, err
	}
	if said := binary.BigEndian.Uint32(b[2:]); said != size {
		return nil, fmt.Errorf("the TPM's response has %d bytes but says %d", size, said)
	}
	return b, nil
}

func (s *mssim) Close() error { return errors.Join(s.command.Close(), s.platform.Close()) }

// device is a character device of the kernel. Only its driver can end a command, and does so, if late. When nobody waits for
// a call any more, its goroutine is left behind to finish it.
type device struct {
	path string
	f    *os.File
	left bool // a call was left: it closes the file
}

// leftDevices are the devices with such a call. Another call would have to wait for it, and would be left behind too.
var leftDevices = struct {
	sync.Mutex
	paths map[string]bool
}{paths: map[string]bool{}}

func openDevice(path string) (*device, error) {
	leftDevices.Lock()
	busy := leftDevices.paths[path]
	leftDevices.Unlock()
	if busy {
		return nil, &os.PathError{Op: "open", Path: path, Err: errors.New("its driver still waits for the TPM's answer to an earlier command")}
	}
	// It blocks: without that, a read that comes too early returns nothing.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &device{path: path, f: os.NewFile(uintptr(fd), path)}, nil
}

func (d *device) exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error) {
	type reply struct {
		b   []byte
		err error
	}
	f, asked := d.f, bytes.Clone(command)
	done := make(chan reply, 1)
	go func() {
		defer psa.Wipe(asked)
		if _, err := f.Write(asked); err != nil {
			done <- reply{err: err}
			return
		}
		b, err := whole(make([]byte, responseMost), f.Read)
		done <- reply{b, err}
	}()
	least, longest := time.NewTimer(grace), time.NewTimer(most)
	defer least.Stop()
	defer longest.Stop()
	gone := ctx.Done()
	var patient <-chan time.Time // once the caller has gone
	err := errSlow
	for waiting := true; waiting; {
		select {
		case r := <-done:
			return r.b, r.err
		case <-gone:
			gone, patient = nil, least.C
		case <-patient:
			err, waiting = context.Cause(ctx), false
		case <-longest.C:
			waiting = false
		}
	}
	d.left = true
	leftDevices.Lock()
	leftDevices.paths[d.path] = true
	leftDevices.Unlock()
	go func() {
		r := <-done
		psa.Wipe(r.b)
		_ = f.Close() // there is nothing left to lose
		leftDevices.Lock()
		delete(leftDevices.paths, d.path)
		leftDevices.Unlock()
	}()
	return nil, err
}

func (d *device) Close() error {
	if d.left {
		return nil
	}
	return d.f.Close()
}
