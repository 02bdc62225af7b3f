package fs

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	auditName      = "audit.log"            // deeds
	operationsName = "audit-operations.log" // operations, and what is counted
	beforeName     = "audit-before.log"     // of the versions that had one file for both
	// auditLinger gathers events, or each of them would cost a wake-up and a write of its own.
	auditLinger = 5 * time.Millisecond
	// auditRetry is how long a disk that refused is left alone.
	auditRetry = time.Second
	// auditEnd is how long the end of the daemon waits for the disk.
	auditEnd = 10 * time.Second
	// countTime is what one line counts.
	countTime = time.Second
)

// trail is the audit trail: JSON lines in files of the daemon, rotated by size. Deeds have their own files, which nothing
// else can fill. What needs no right is only counted. Only the goroutine that writes waits for the disk.
type trail struct {
	deeds, operations journal
	shares            shares
	open, beyond      tally // what needs no right, and deeds beyond a user's share
	stop              bool  // at a queue's bound: else events are dropped and counted
	log               *slog.Logger
	dir               *os.File // the state directory
	wake              chan struct{}
	counting          chan struct{}
	ending, ended     chan struct{}
}

var _ nodes.Auditor = (*trail)(nil)

func openTrail(stateDir string, c Audit, log *slog.Logger) (*trail, error) {
	dir, err := openStateDir(stateDir)
	if err != nil {
		return nil, &Error{KindState, fmt.Errorf("the audit trail: %w", err), ""}
	}
	in := func(name string) (path, at string) {
		return filepath.Join(stateDir, name), filepath.Join(held(dir), name)
	}
	t := &trail{
		deeds: journal{bytes: c.MaxBytes, keep: c.Keep, keepFor: c.KeepFor},
		operations: journal{bytes: cmp.Or(c.OperationsMaxBytes, c.MaxBytes),
			keep: cmp.Or(c.OperationsKeep, c.Keep)},
		shares: newShares(c.MaxBytes*int64(c.Keep), c.KeepFor),
		stop:   c.Stop, log: log, dir: dir,
		wake: make(chan struct{}, 1), counting: make(chan struct{}, 1), ending: make(chan struct{}), ended: make(chan struct{}),
	}
	t.deeds.path, t.deeds.at = in(auditName)
	t.operations.path, t.operations.at = in(operationsName)
	t.open.most, t.beyond.most, t.beyond.byKey = openGroups, beyondGroups, true
	if err := t.openFiles(); err != nil {
		t.deeds.close()
		dir.Close()
		return nil, &Error{KindState, fmt.Errorf("the audit trail: %w", err), cmp.Or(psa.HintOf(err), "make room on that disk, or remove [audit] from the configuration")}
	}
	go t.write()
	return t, nil
}

func (t *trail) openFiles() error {
	if err := t.deeds.open(); err != nil {
		return err
	}
	moved, err := t.setAside(filepath.Join(held(t.dir), beforeName))
	if err != nil {
		return err
	}
	if moved {
		t.log.Warn("an earlier version wrote deeds and operations into one audit file; that file was renamed, and parsecfs never deletes it",
			"file", beforeName)
	}
	return t.operations.open()
}

// setAside renames the files of a version that kept everything in audit.log. Otherwise their lines would count as deeds
// that must not be deleted yet, and would leave no room for new ones.
func (t *trail) setAside(before string) (moved bool, err error) {
	for _, name := range []string{t.operations.at, before} {
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
	}
	if t.deeds.size == 0 {
		return false, nil
	}
	rotated, err := filepath.Glob(t.deeds.at + ".*")
	if err != nil {
		return false, err
	}
	for _, name := range append(rotated, t.deeds.at) { // the current file is last: once it is renamed, all are
		if err := os.Rename(name, before+strings.TrimPrefix(name, t.deeds.at)); err != nil {
			return false, err
		}
	}
	t.deeds.close()
	return true, t.deeds.open()
}

// trusted says whose deeds are always written in full: those of users who could delete the files anyway.
func trusted(uid uint32) bool { return uid == 0 || uid == uint32(os.Geteuid()) }

// Ready refuses an operation that could not be written to the trail, if the configuration asks for that. This is so while
// too many events of its user, or of all users, wait for the disk; and for deeds, while all files are too young to be
// deleted. What is only counted is never refused.
func (t *trail) Ready(uid uint32, class nodes.AuditClass) error {
	if !t.stop || class == nodes.AuditOpen {
		return nil
	}
	j, known := &t.operations, trusted(uid) || class == nodes.AuditCommand
	if class != nodes.AuditUse {
		if !known && !t.shares.left(uid, time.Now()) {
			return nil
		}
		if j = &t.deeds; j.young.Load() {
			return errYoung
		}
	}
	if j.full(uid, known) {
		return psa.Errorf(psa.StatusInsufficientStorage, "the audit trail cannot be written").
			WithHint("make room on the disk of " + j.path)
	}
	return nil
}

// Record queues or counts an event. An operation that was already running may find the queue full: its event is counted.
func (t *trail) Record(e nodes.AuditEvent, tell func(*nodes.AuditEvent)) {
	known, slack := trusted(e.UID) && e.Class != nodes.AuditAttempt || e.Class == nodes.AuditCommand, 0
	if t.stop {
		slack = auditQueue // for events that already passed Ready
	}
	switch e.Class {
	case nodes.AuditOpen:
		t.count(&t.open, e, tell)
	case nodes.AuditUse:
		tell(&e)
		if t.operations.put(e, known, slack) {
			t.signal(t.wake)
		}
	default:
		if !known && !t.shares.left(e.UID, time.Now()) {
			t.count(&t.beyond, e, tell)
			return
		}
		tell(&e)
		if !known {
			t.shares.spend(e.UID, lineSize(&e), time.Now())
		}
		if t.deeds.put(e, known, slack) {
			t.signal(t.wake)
		}
	}
}

func (t *trail) count(in *tally, e nodes.AuditEvent, tell func(*nodes.AuditEvent)) {
	if in.add(e, tell) {
		t.signal(t.counting)
	}
}

func (t *trail) signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// close writes the waiting events if the disk allows. If the disk does not respond, it gives up after auditEnd.
func (t *trail) close() error {
	close(t.ending)
	select {
	case <-t.ended:
	case <-time.After(auditEnd):
		return fmt.Errorf("the disk of %s does not respond; the events that waited for it are lost", t.deeds.path)
	}
	for _, j := range []*journal{&t.deeds, &t.operations} {
		if waiting, dropped := j.left(); waiting > 0 || dropped > 0 {
			t.log.Error("the audit trail lost events", "file", j.path, "waiting", waiting, "dropped", dropped)
		}
	}
	return errors.Join(t.deeds.close(), t.operations.close(), t.dir.Close())
}

// write takes all waiting events at once, so that a slow disk gets few writes. Deeds come first.
func (t *trail) write() {
	defer close(t.ended)
	counted, retry := time.NewTimer(0), time.NewTimer(0)
	for last := false; !last; {
		select {
		case <-t.wake:
			select {
			case <-time.After(auditLinger):
			case <-t.ending:
			}
		case <-t.counting:
			counted.Reset(countTime)
			continue
		case <-counted.C:
			if t.operations.takes() {
				t.takeCounts()
			} else {
				counted.Reset(auditRetry)
			}
		case <-retry.C:
		case <-t.ending:
			last = true
			t.takeCounts()
		}
		for again := true; again; again = again && last {
			again = false
			for _, j := range []*journal{&t.deeds, &t.operations} {
				more, refused := t.flush(j, last)
				again = again || more
				if refused {
					retry.Reset(auditRetry)
				}
			}
			if again {
				t.signal(t.wake) // one batch of each at a time: neither starves the other, nor the counts
			}
		}
	}
}

// takeCounts turns the events that were counted into lines.
func (t *trail) takeCounts() {
	for _, from := range []*tally{&t.beyond, &t.open} {
		for _, line := range from.take() {
			t.operations.encode(line)
		}
	}
}

// flush writes a batch of a journal's waiting events. It says whether more may wait, and whether the disk refused. If last
// is set, there is no later attempt.
func (t *trail) flush(j *journal, last bool) (more, refused bool) {
	if !last && time.Now().Before(j.retry) {
		return false, true
	}
	if !j.fill() {
		return false, false
	}
	err := j.append(last)
	for errors.Is(err, unix.ENOSPC) && j == &t.deeds && t.operations.shed() {
		err = j.append(last) // the oldest operations make room
	}
	j.young.Store(errors.Is(err, errYoung))
	if err != nil {
		if !j.failed {
			t.log.Error("the audit trail cannot be written; parsecfs tries again every second", "file", j.path, "err", err)
		}
		j.failed, j.retry = true, time.Now().Add(auditRetry)
		return false, true
	}
	if j.failed {
		t.log.Info("the audit trail can be written again", "file", j.path)
	}
	j.failed = false
	return true, false
}

// OpenLog opens a file for appending, and creates it with mode 0600. An existing file must belong to our own user: a link
// of somebody else could lead to another file, and a pipe or file of theirs would show them what is written.
func OpenLog(path string) (*os.File, error) { return openLog(path, path) }

// openLog is OpenLog of a file that people know by another path.
func openLog(at, path string) (*os.File, error) {
	f, err := os.OpenFile(at, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) { // a link, or a pipe or socket
		return nil, psa.Errorf(psa.StatusNotPermitted, "%s is not a regular file", path).WithHint("move it away")
	}
	if e, ok := errors.AsType[*os.PathError](err); ok {
		e.Path = path
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
		return nil, psa.Errorf(psa.StatusNotPermitted, "%s must be a regular file that only user %d can write (owner %d, mode %06o)",
			path, os.Geteuid(), st.Uid, st.Mode).WithHint("move it away")
	}
	return f, nil
}
