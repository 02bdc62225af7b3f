package fs

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	auditName = "audit.log"
	// auditQueue bounds the events that wait for the disk.
	auditQueue = 4096
	// auditBatch is about how many bytes are written at once.
	auditBatch = 1 << 20
	// auditLinger gathers events, or each of them would cost a wake-up and a write of its own.
	auditLinger = 5 * time.Millisecond
	// auditRetry is how long a disk that refused is left alone.
	auditRetry = time.Second
)

// trail is the audit trail: JSON lines in a file of the daemon's own, rotated by size. Nobody waits for its disk but
// the one goroutine that writes.
type trail struct {
	path    string
	bytes   int64 // at which a file is rotated
	keep    int   // rotated files
	stop    bool  // at the queue's bound: else events are dropped and counted
	log     *slog.Logger
	queue   chan nodes.AuditEvent
	dropped atomic.Int64
	ending  chan struct{}
	done    sync.WaitGroup

	// of the writer
	file *os.File
	size int64
}

var _ nodes.Auditor = (*trail)(nil)

func openTrail(stateDir string, c Audit, log *slog.Logger) (*trail, error) {
	t := &trail{path: filepath.Join(stateDir, auditName), bytes: c.MaxBytes, keep: c.Keep, stop: c.Stop, log: log,
		queue: make(chan nodes.AuditEvent, auditQueue), ending: make(chan struct{})}
	if err := t.open(); err != nil {
		return nil, &Error{KindState, fmt.Errorf("the audit trail: %w", err), cmp.Or(psa.HintOf(err), "make room there, or take [audit] out of the configuration")}
	}
	t.done.Go(t.write)
	return t, nil
}

// Ready refuses operations while the queue is full, where the configuration says so.
func (t *trail) Ready() error {
	if t.stop && len(t.queue) == cap(t.queue) {
		return psa.Errorf(psa.StatusInsufficientStorage, "the audit trail cannot be written").
			WithHint("make room on the disk of " + t.path)
	}
	return nil
}

// Record queues an event. Those that find the queue full, as operations that were under way may, are counted.
func (t *trail) Record(e nodes.AuditEvent) {
	select {
	case t.queue <- e:
	default:
		t.dropped.Add(1)
	}
}

// close writes what waits, as far as the disk lets it.
func (t *trail) close() error {
	close(t.ending)
	t.done.Wait()
	if n := len(t.queue); n > 0 || t.dropped.Load() > 0 {
		t.log.Error("the audit trail lost events", "waiting", n, "dropped", t.dropped.Load())
	}
	if t.file == nil {
		return nil
	}
	return errors.Join(t.file.Sync(), t.file.Close())
}

// lost is the line that stands where events were dropped.
type lost struct {
	Time    time.Time `json:"time"`
	Dropped int64     `json:"dropped"`
}

// write takes what waits in one go, so that a slow disk is asked seldom.
func (t *trail) write() {
	var lines bytes.Buffer
	out := json.NewEncoder(&lines)
	out.SetEscapeHTML(false)
	for {
		select {
		case e := <-t.queue:
			t.encode(out, e)
		case <-t.ending:
			if len(t.queue) == 0 {
				return
			}
		}
		select {
		case <-time.After(auditLinger):
		case <-t.ending:
		}
		for more := true; more && int64(lines.Len()) < min(auditBatch, t.bytes); {
			select {
			case e := <-t.queue:
				t.encode(out, e)
			default:
				more = false
			}
		}
		if n := t.dropped.Swap(0); n > 0 {
			t.encode(out, lost{time.Now(), n})
		}
		for lines.Len() > 0 {
			err := t.flush(&lines)
			if err == nil {
				break
			}
			t.log.Error("the audit trail cannot be written; it is tried again", "err", err)
			select {
			case <-time.After(auditRetry):
			case <-t.ending:
				return
			}
		}
	}
}

func (t *trail) encode(out *json.Encoder, v any) {
	if err := out.Encode(v); err != nil {
		t.log.Error("an audit event cannot be encoded", "err", err)
	}
}

// flush appends the lines, whole ones only: what a full disk cut is taken back.
func (t *trail) flush(lines *bytes.Buffer) error {
	if t.file == nil {
		if err := t.open(); err != nil {
			return err
		}
	}
	if t.size > 0 && t.size+int64(lines.Len()) > t.bytes {
		if err := t.rotate(); err != nil {
			return err
		}
	}
	if _, err := t.file.Write(lines.Bytes()); err != nil {
		return errors.Join(err, t.file.Truncate(t.size))
	}
	t.size += int64(lines.Len())
	lines.Reset()
	return nil
}

// OpenLog opens a file to append to, 0600 where it is a new one. What lies there must be our own user's: through a link
// others could have us write elsewhere, and a pipe or their file would give them what is written.
func OpenLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) { // a link, or a pipe or socket
		return nil, psa.Errorf(psa.StatusNotPermitted, "%s is no regular file", path).WithHint("move it away")
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		f.Close()
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || int(st.Uid) != os.Geteuid() || st.Mode&0o022 != 0 {
		f.Close()
		return nil, psa.Errorf(psa.StatusNotPermitted, "%s is no file that user %d alone may write (owner %d, mode %06o)",
			path, os.Geteuid(), st.Uid, st.Mode).WithHint("move it away")
	}
	return f, nil
}

func (t *trail) open() error {
	f, err := OpenLog(t.path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	t.file, t.size = f, info.Size()
	return nil
}

// rotate renames audit.log to audit.log.1, that to audit.log.2, and so on; the last one goes.
func (t *trail) rotate() error {
	name := func(n int) string { return fmt.Sprintf("%s.%d", t.path, n) }
	for n := t.keep - 1; n >= 1; n-- {
		if err := os.Rename(name(n), name(n+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := os.Rename(t.path, name(1)); err != nil {
		return err
	}
	err := errors.Join(t.file.Sync(), t.file.Close())
	t.file = nil
	return errors.Join(err, t.open())
}
