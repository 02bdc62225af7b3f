package uring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// depthMost is how many requests of one processor can be under way; the kernel queues the others.
	depthMost = 512
	// entriesMost bounds that over all processors: an entry that was ever full holds 64 KiB.
	entriesMost = 16 << 10
	// reservePart of a queue's entries stays free of requests that may wait: an eighth.
	reservePart = 8
	// minPayload is the least that the kernel takes, FUSE_MIN_READ_BUFFER.
	minPayload = 8192
)

// Options of Prepare.
type Options struct {
	// MaxWrite is that of fuse.MountOptions, a whole number of pages.
	MaxWrite int
	Log      *slog.Logger

	testOnlyDepth int
	// testOnlyRegister is called for each entry before it is registered: with another number of vectors than 2 the kernel refuses it.
	testOnlyRegister func(cpu, entry int) (vectors int, err error)
}

// Prompter is a file system that knows beforehand which requests it answers without waiting for anything: for no device, disk,
// process or other request. Such a request is answered by the thread that found it, which is the fastest, and everybody else on that
// processor waits meanwhile. argument is what follows the header: fuse.OpenIn, fuse.ReadIn ... without it.
type Prompter interface {
	Prompt(head *fuse.InHeader, argument []byte) bool
}

// Transport answers a connection's requests. It is also what sends the kernel notifications (fs.ServerCallbacks).
type Transport struct {
	o       Options
	payload int
	queues  []*queue
	workers *workers
	server  *fuse.ProtocolServer
	raw     fuse.RawFileSystem
	prompt  Prompter                // nil: no request is known to be so
	file    atomic.Pointer[os.File] // /dev/fuse
	fd      int

	threads, rings sync.WaitGroup
	reader         sync.WaitGroup
	early          early
	dead           atomic.Bool // the connection has ended
	failed         atomic.Bool // we end it
	over           chan struct{}
}

// ErrNotOffered says that the kernel does not offer the connection what it was prepared for.
var ErrNotOffered = errors.New("the kernel does not offer io_uring for this mount")

// Parameter is the kernel's switch for FUSE over io_uring.
const Parameter = "/sys/module/fuse/parameters/enable_uring"

// Offered says whether the kernel will offer io_uring to a new mount.
func Offered() error {
	b, err := os.ReadFile(Parameter)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: it has no parameter %s", ErrNotOffered, Parameter)
	case err != nil:
		return err
	case strings.TrimSpace(string(b)) != "Y":
		return fmt.Errorf("%w: %s is N", ErrNotOffered, Parameter)
	}
	return nil
}

// Prepare takes from the system what a connection needs: a ring and a thread for each processor that there can be. Serve or Close
// must follow.
func Prepare(o Options) (*Transport, error) {
	cpus, err := possible()
	if err != nil {
		return nil, err
	}
	depth := max(16, min(depthMost, entriesMost/cpus))
	if o.testOnlyDepth > 0 {
		depth = o.testOnlyDepth
	}
	t := &Transport{o: o, payload: max(minPayload, o.MaxWrite), workers: newWorkers(), over: make(chan struct{})}
	reserve := (depth + reservePart - 1) / reservePart
	for id := range cpus {
		q := &queue{t: t, id: id, entries: make([]entry, depth), steps: make(chan step), said: make(chan error, 1), wakes: -1,
			places: places{most: depth - reserve}, flushes: places{most: max(1, reserve/2)}}
		t.queues = append(t.queues, q)
		t.threads.Add(1)
		t.rings.Add(1)
		go q.run()
	}
	if err := t.hear(); err != nil {
		t.Close()
		return nil, err
	}
	return t, nil
}

// hear waits for all threads.
func (t *Transport) hear() error {
	var errs []error
	for _, q := range t.queues {
		errs = append(errs, <-q.said)
	}
	return errors.Join(errs...)
}

// tell has all threads go on that have not ended.
func (t *Transport) tell(s step) {
	for _, q := range t.queues {
		q.steps <- s
	}
}

// Serve answers INIT on a new connection, whose descriptor it owns from here on, and has all processors' requests answered from
// here on. If it fails, the connection is closed and no request was begun: whoever waited on the mount gets an error, and the
// file system can be mounted again.
func (t *Transport) Serve(fd int, raw fuse.RawFileSystem, o *fuse.MountOptions) error {
	// Go's poller waits for the device, so that Close ends it.
	err := unix.SetNonblock(fd, true)
	t.fd = fd
	t.file.Store(os.NewFile(uintptr(fd), "/dev/fuse"))
	if err == nil {
		err = t.begin(raw, o)
	}
	if err != nil {
		t.Close()
		return err
	}
	t.reader.Add(1)
	go t.device()
	t.tell(serve)
	go t.end()
	return nil
}

func (t *Transport) begin(raw fuse.RawFileSystem, o *fuse.MountOptions) error {
	opts := *o
	opts.ExtraCapabilities |= fuse.CAP_OVER_IO_URING
	t.raw, t.server = raw, fuse.NewProtocolServer(raw, &opts)
	t.prompt, _ = raw.(Prompter)
	in, out := make([]byte, t.payload+4096), make([]byte, 4096)
	n, err := t.read(in)
	if err != nil {
		return fmt.Errorf("waiting for INIT: %w", err)
	}
	if !offers(in[:n]) {
		return ErrNotOffered
	}
	m, status := t.server.HandleRequest([][]byte{in[:n]}, [][]byte{out})
	if !status.Ok() {
		return fmt.Errorf("INIT: %v", status)
	}
	if _, err := t.file.Load().Write(out[:m]); err != nil {
		return fmt.Errorf("INIT: %w", err)
	}
	// From here on the kernel lets everybody wait until each queue has an entry.
	t.tell(register)
	return t.hear()
}

// offers says whether the kernel's INIT offers io_uring: flag 41, the tenth of the second word, which counts if flag 30 is set.
func offers(init []byte) bool {
	const flags, flags2 = inHeaderSize + 12, inHeaderSize + 16
	return len(init) >= flags2+4 && binary.NativeEndian.Uint32(init[flags:])&(1<<30) != 0 &&
		binary.NativeEndian.Uint32(init[flags2:])&(1<<(41-32)) != 0
}

// read reads one request from the device.
func (t *Transport) read(buf []byte) (int, error) {
	for {
		n, err := t.file.Load().Read(buf)
		// The request was interrupted before it was read, or is gone.
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINTR) {
			continue
		}
		return n, err
	}
}

// Close ends what Serve has not begun, and waits for it.
func (t *Transport) Close() {
	for _, q := range t.queues {
		close(q.steps)
	}
	t.rings.Wait()
	if f := t.file.Load(); f != nil {
		f.Close()
	}
	t.threads.Wait()
	t.release()
}

// end waits for the end of a connection.
func (t *Transport) end() {
	// The connection ends by itself, or with the last that refers to the device: the rings do too.
	t.rings.Wait()
	t.file.Load().Close()
	t.reader.Wait()
	t.threads.Wait()
	t.release()
	t.raw.OnUnmount()
	close(t.over)
}

func (t *Transport) release() {
	t.workers.close()
	for _, q := range t.queues {
		if q.wakes >= 0 {
			_ = unix.Close(q.wakes)
		}
	}
}

// Wait waits until the connection has ended, and all requests.
func (t *Transport) Wait() { <-t.over }

// fail ends the connection, since one of its queues has ended: who is on that processor would wait for ever.
func (t *Transport) fail(err error) {
	t.o.Log.Error("requests can no longer be answered: the mount ends", "err", err)
	t.failed.Store(true)
	for _, q := range t.queues {
		q.asleep.Store(true)
		q.wake()
	}
}
