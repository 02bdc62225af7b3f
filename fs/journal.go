package fs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	// auditQueue bounds the events that wait for the disk, auditQueueUsers those of all but root and the daemon's user, and
	// auditQueueUser those of one of them.
	auditQueue      = 16384
	auditQueueUsers = auditQueue * 3 / 4
	auditQueueUser  = 4096
	// auditBatch is about how many bytes are written at once.
	auditBatch = 1 << 20
)

// errYoung says that the trail is full and that no line may be deleted yet.
var errYoung = psa.Errorf(psa.StatusInsufficientStorage, "the audit trail is full, and none of it is older than keep_for").
	WithHint("move the oldest audit.log.N away, or set a larger max_bytes or keep, or a shorter keep_for, in [audit]")

// journal holds one kind of lines of the audit trail: a queue, and a file that is rotated.
type journal struct {
	path    string        // for people
	at      string        // of the same file in the state directory's descriptor, since that may be moved
	bytes   int64         // at which a file is rotated
	keep    int           // rotated files
	keepFor time.Duration // nothing younger is deleted

	young atomic.Bool // full, and nothing may be deleted yet

	mu      sync.Mutex
	waiting []nodes.AuditEvent
	users   map[uint32]int // how many events of each user wait, of those who are not trusted
	shared  int            // their sum
	dropped int64

	// of the writer
	lines  bytes.Buffer
	file   *os.File
	size   int64
	failed bool
	retry  time.Time
}

// full says whether a user has no room for another waiting event.
func (j *journal) full(uid uint32, trusted bool) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.bound(uid, trusted, 0)
}

func (j *journal) bound(uid uint32, trusted bool, slack int) bool {
	if trusted {
		return len(j.waiting) >= auditQueue+slack
	}
	return j.users[uid] >= auditQueueUser+slack || j.shared >= auditQueueUsers+slack
}

// put queues an event, or counts it as dropped. It says whether the writer must be woken.
func (j *journal) put(e nodes.AuditEvent, trusted bool, slack int) (first bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.bound(e.UID, trusted, slack) {
		j.dropped++
		return false
	}
	j.waiting = append(j.waiting, e)
	if !trusted {
		if j.users == nil {
			j.users = map[uint32]int{}
		}
		j.users[e.UID]++
		j.shared++
	}
	return len(j.waiting) == 1
}

// next is the event that has waited longest.
func (j *journal) next() (e nodes.AuditEvent, ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.waiting) == 0 {
		return e, false
	}
	e, j.waiting[0] = j.waiting[0], nodes.AuditEvent{}
	if j.waiting = j.waiting[1:]; len(j.waiting) == 0 {
		j.waiting = nil
	}
	if n := j.users[e.UID]; n > 0 {
		j.shared--
		if j.users[e.UID] = n - 1; n == 1 {
			delete(j.users, e.UID)
		}
	}
	return e, true
}

// lost is the line that is written in place of dropped events.
type lost struct {
	Time    time.Time `json:"time"`
	Dropped int64     `json:"dropped"`
}

// fill takes events until there is enough for a write, and says whether there is anything to write.
func (j *journal) fill() bool {
	for j.takes() {
		e, ok := j.next()
		if !ok {
			break
		}
		j.encode(e)
	}
	j.mu.Lock()
	n := j.dropped
	j.dropped = 0
	j.mu.Unlock()
	if n > 0 {
		j.encode(lost{time.Now(), n})
	}
	return j.lines.Len() > 0
}

// takes says whether the next write has room for more lines.
func (j *journal) takes() bool { return int64(j.lines.Len()) < min(auditBatch, j.bytes) }

func (j *journal) encode(v any) {
	out := json.NewEncoder(&j.lines)
	out.SetEscapeHTML(false)
	_ = out.Encode(v) // of numbers, strings and times, into memory
}

// left is what was not written.
func (j *journal) left() (waiting int, dropped int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	waiting = len(j.waiting) + bytes.Count(j.lines.Bytes(), []byte("\n"))
	return waiting, j.dropped
}

// append appends whole lines only: if a full disk cuts a write, the file is truncated again. If last is set, there is no
// later attempt, and lines beyond the limit are better than none.
func (j *journal) append(last bool) error {
	if j.file == nil {
		if err := j.open(); err != nil {
			return err
		}
	}
	if j.size > 0 && j.size+int64(j.lines.Len()) > j.bytes {
		if err := j.rotate(); err != nil && !(last && errors.Is(err, errYoung)) {
			return err
		}
	}
	if _, err := j.file.Write(j.lines.Bytes()); err != nil {
		return errors.Join(err, j.file.Truncate(j.size))
	}
	j.size += int64(j.lines.Len())
	j.lines.Reset()
	return nil
}

func (j *journal) open() error {
	f, err := openLog(j.at, j.path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	j.file, j.size = f, info.Size()
	return nil
}

func (j *journal) close() error {
	if j.file == nil {
		return nil
	}
	err := errors.Join(j.file.Sync(), j.file.Close())
	j.file = nil
	return err
}

func (j *journal) name(n int) string { return fmt.Sprintf("%s.%d", j.at, n) }

// rotate renames audit.log to audit.log.1, that to audit.log.2, and so on up to the first free number. If no number is
// free, the last file is replaced, unless it is too young.
func (j *journal) rotate() error {
	free := 1
	for ; free <= j.keep; free++ {
		info, err := os.Lstat(j.name(free))
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return err
		}
		if free == j.keep {
			if time.Since(info.ModTime()) < j.keepFor {
				return errYoung
			}
			break
		}
	}
	for n := free - 1; n >= 1; n-- {
		if err := os.Rename(j.name(n), j.name(n+1)); err != nil {
			return err
		}
	}
	if err := os.Rename(j.at, j.name(1)); err != nil {
		return err
	}
	return errors.Join(j.close(), j.open())
}

// shed deletes the oldest rotated file.
func (j *journal) shed() bool {
	for n := j.keep; n >= 1; n-- {
		if os.Remove(j.name(n)) == nil {
			return true
		}
	}
	return false
}
