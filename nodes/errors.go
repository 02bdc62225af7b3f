package nodes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// errnos is the table of errors: PSA status to errno. ENOSYS never occurs: the kernel would remember it for the whole
// mount and never ask again.
var errnos = map[psa.Status]syscall.Errno{
	psa.StatusNotPermitted:         syscall.EACCES,
	psa.StatusNotSupported:         syscall.EOPNOTSUPP,
	psa.StatusDeprecated:           syscall.EOPNOTSUPP,
	psa.StatusInvalidArgument:      syscall.EINVAL,
	psa.StatusInsufficientData:     syscall.EINVAL,
	psa.StatusAlreadyExists:        syscall.EEXIST,
	psa.StatusDoesNotExist:         syscall.ENOENT,
	psa.StatusInvalidHandle:        syscall.ENOENT,
	psa.StatusBufferTooSmall:       syscall.EFBIG,
	psa.StatusTooLarge:             syscall.EFBIG,
	psa.StatusInsufficientStorage:  syscall.ENOSPC,
	psa.StatusInsufficientMemory:   syscall.ENOMEM,
	psa.StatusInvalidSignature:     syscall.EBADMSG,
	psa.StatusInvalidPadding:       syscall.EBADMSG,
	psa.StatusBadState:             syscall.EBUSY,
	psa.StatusGenericError:         syscall.EIO,
	psa.StatusCommunicationFailure: syscall.EIO,
	psa.StatusHardwareFailure:      syscall.EIO,
	psa.StatusStorageFailure:       syscall.EIO,
	psa.StatusCorruptionDetected:   syscall.EIO,
	psa.StatusDataCorrupt:          syscall.EIO,
	psa.StatusDataInvalid:          syscall.EIO,
	psa.StatusInsufficientEntropy:  syscall.EIO,
	psa.StatusProviderAbsent:       syscall.ENODEV,
	psa.StatusTimeout:              syscall.ETIMEDOUT,
	psa.StatusRevoked:              syscall.EKEYREVOKED,
	psa.StatusQuota:                syscall.EDQUOT,
	psa.StatusQueueFull:            syscall.EAGAIN,
}

// errnoOf is what the caller of a system call gets for err.
func errnoOf(err error) syscall.Errno {
	if err == nil {
		return 0
	}
	var r *gate.Refusal
	if errors.As(err, &r) {
		return r.Errno
	}
	if e, ok := errnos[psa.StatusOf(err)]; ok {
		return e
	}
	return syscall.EIO
}

// Bounds of the memory of failures.
const (
	failuresPerUser  = 32
	failureUsersMost = 1024
)

// failuresHeader names the columns of last_error.
const failuresHeader = "# time\tpid\tpath\toperation\terrno\tstatus\twords\thint\ttimes\tsince\n"

// failure is one line of last_error: what failed in the same way, once or several times in a row.
type failure struct {
	at, since time.Time // of the last and of the first time
	times     int
	pid       uint32
	key       int64
	path      string
	op        string
	errno     string
	status    string
	words     string
	hint      string
	kind      failureKind
	lost      lostLines
}

// lostLines are failures of the same kind with other files, which gave up their lines.
type lostLines struct {
	times int
	since time.Time
}

// same says whether y failed as x did, with the same file.
func (x *failure) same(y *failure) bool {
	return x.path == y.path && x.key == y.key && x.kind == y.kind
}

// failureKind is what failures have in common that a walk over many files meets: everything but the file.
type failureKind struct{ op, errno, status, words string }

// failures remembers, per uid, the last failures. It lives in memory only and is bounded.
type failures struct {
	mu    sync.Mutex
	users map[uint32][]failure // newest last
	// uids by the time of their first failure: those who had no key then, and those who had. Each has a bound of its own, so
	// that nobody with many uids pushes out who has keys.
	order [2][]uint32
}

func (f *failures) knows(uid uint32) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	_, known := f.users[uid]
	return known
}

func (f *failures) add(uid uint32, holder bool, x failure) {
	order := &f.order[0]
	if holder {
		order = &f.order[1]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.users == nil {
		f.users = map[uint32][]failure{}
	}
	list, known := f.users[uid]
	if !known {
		if len(*order) == failureUsersMost {
			delete(f.users, (*order)[0])
			*order = (*order)[1:]
		}
		*order = append(*order, uid)
	}
	x.times, x.since = 1, x.at
	if n := len(list); n > 0 && list[n-1].same(&x) {
		last := &list[n-1]
		last.at, last.pid, last.times = x.at, x.pid, last.times+1
		return
	}
	if list = append(list, x); len(list) > failuresPerUser {
		list = makeRoom(list)
	}
	f.users[uid] = list
}

// makeRoom takes one line away: the oldest of the kind that has most of them, so that a walk over many files, which meets one
// kind again and again, takes no line from anything else. The next line of that kind counts it.
func makeRoom(list []failure) []failure {
	count, most := map[failureKind]int{}, 0
	for i := range list {
		k := list[i].kind
		count[k]++
		most = max(most, count[k])
	}
	oldest := slices.IndexFunc(list, func(x failure) bool { return count[x.kind] == most })
	gone := list[oldest]
	for i := oldest + 1; i < len(list); i++ {
		heir := &list[i]
		if heir.kind != gone.kind {
			continue
		}
		if heir.same(&gone) {
			heir.times, heir.since = heir.times+gone.times, gone.since
			gone.times = 0
		}
		heir.lose(&gone)
		break
	}
	return slices.Delete(list, oldest, oldest+1)
}

// lose counts a line of the same kind that is no longer there.
func (x *failure) lose(gone *failure) {
	x.lost.times += gone.times + gone.lost.times
	for _, since := range []time.Time{gone.since, gone.lost.since} {
		if !since.IsZero() && (x.lost.since.IsZero() || since.Before(x.lost.since)) {
			x.lost.since = since
		}
	}
}

// foldedFrom is how many neighbours of one kind become one line.
const foldedFrom = 3

// text renders the failures of uid, oldest first, and nothing where there are none; key 0 is all of them.
func (f *failures) text(uid uint32, key int64) []byte {
	f.mu.Lock()
	list := slices.Clone(f.users[uid])
	f.mu.Unlock()
	if key != 0 {
		list = slices.DeleteFunc(list, func(x failure) bool { return x.key != key })
		for i := range list {
			list[i].lost = lostLines{} // of other keys too
		}
	}
	if len(list) == 0 {
		return nil
	}
	b := bytes.NewBufferString(failuresHeader)
	for len(list) > 0 {
		n := 1
		for n < len(list) && list[n].kind == list[0].kind {
			n++
		}
		if n < foldedFrom {
			n = 1
		}
		x := list[n-1]
		for i := range list[:n-1] {
			x.lose(&list[i])
		}
		x.line(b)
		list = list[n:]
	}
	return b.Bytes()
}

func (x *failure) line(b *bytes.Buffer) {
	words, since := x.words, x.since
	if x.lost.times > 0 {
		words += "; the same with other files"
		if x.lost.since.Before(since) {
			since = x.lost.since
		}
	}
	hint := "-"
	if x.hint != "" {
		hint = "hint: " + x.hint
	}
	fmt.Fprintf(b, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", x.at.Format(time.RFC3339Nano), x.pid, x.path, x.op, x.errno, x.status,
		words, hint, x.times+x.lost.times, since.Format(time.RFC3339Nano))
}

// newFailure is what last_error keeps of an error.
func newFailure(ctx context.Context, c caller.Caller, at place, op string, errno syscall.Errno, err error) failure {
	x := failure{at: time.Now(), pid: c.TID, key: at.key, path: at.pathFor(ctx, c), op: op, errno: errnoName(errno), status: "-",
		words: psa.OneLine(err.Error()), hint: psa.OneLine(psa.HintOf(err))}
	var r *gate.Refusal
	if errors.As(err, &r) {
		x.hint = psa.OneLine(r.Hint)
	} else {
		x.status = psa.StatusOf(err).String()
	}
	x.kind = failureKind{x.op, x.errno, x.status, strings.ReplaceAll(x.words, x.path, "")}
	return x
}

// callerOf is who sent the request that a handler answers.
func callerOf(ctx context.Context) caller.Caller {
	c, ok := fuse.FromContext(ctx)
	if !ok {
		return caller.Caller{}
	}
	return callerFrom(*c)
}

// callerFrom takes the thread id that the kernel calls a pid.
func callerFrom(c fuse.Caller) caller.Caller {
	return caller.Caller{UID: c.Uid, GID: c.Gid, TID: c.Pid}
}

// fail turns err into the errno of a system call and keeps it for the caller's last_error. Absent names are no
// failures: shells ask for them all day.
func (t *Tree) fail(ctx context.Context, at place, op string, err error) syscall.Errno {
	if denial(errnoOf(err)) {
		t.audit(callerOf(ctx), t.attempt(at, op), at, op, time.Now(), err)
	}
	return t.remember(ctx, at, op, err)
}

// remember is fail for what is in the audit trail already.
func (t *Tree) remember(ctx context.Context, at place, op string, err error) syscall.Errno {
	e := errnoOf(err)
	if e == 0 || e == syscall.EINTR {
		return e
	}
	c := callerOf(ctx)
	holder := false
	if !t.failures.knows(c.UID) {
		used, _, err := t.kim.Quota(calm(ctx), c.UID)
		holder = err == nil && used > 0
	}
	t.failures.add(c.UID, holder, newFailure(ctx, c, at, op, e, err))
	if e == syscall.EIO {
		t.log.Error("operation failed", "path", at.path(), "operation", op, "uid", c.UID, "error", err)
	} else {
		t.log.Debug("operation refused", "path", at.path(), "operation", op, "uid", c.UID, "errno", errnoName(e), "error", err)
	}
	return e
}
