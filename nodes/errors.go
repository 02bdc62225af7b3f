package nodes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
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

// failure is one line of last_error.
type failure struct {
	at    time.Time
	pid   uint32
	key   int64
	path  string
	op    string
	errno syscall.Errno
	err   error
}

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
	old, known := f.users[uid]
	if !known {
		if len(*order) == failureUsersMost {
			delete(f.users, (*order)[0])
			*order = (*order)[1:]
		}
		*order = append(*order, uid)
	}
	if len(old) == failuresPerUser {
		old = append(old[:0:0], old[1:]...)
	}
	f.users[uid] = append(old, x)
}

// text renders the failures of uid, newest first; key 0 is all of them.
func (f *failures) text(uid uint32, key int64) []byte {
	f.mu.Lock()
	list := append([]failure(nil), f.users[uid]...)
	f.mu.Unlock()
	var b bytes.Buffer
	for i := len(list) - 1; i >= 0; i-- {
		x := list[i]
		if key != 0 && x.key != key {
			continue
		}
		status := "-"
		hint := psa.HintOf(x.err)
		var r *gate.Refusal
		if errors.As(x.err, &r) {
			hint = r.Hint
		} else {
			status = psa.StatusOf(x.err).String()
		}
		line := fmt.Sprintf("%s\t%d\t%s\t%s\t%s\t%s\t%s", x.at.Format(time.RFC3339Nano), x.pid, x.path, x.op,
			errnoName(x.errno), status, psa.OneLine(x.err.Error()))
		if hint != "" {
			line += "\thint: " + psa.OneLine(hint)
		}
		b.WriteString(line)
		b.WriteByte('\n')
	}
	return b.Bytes()
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
	t.failures.add(c.UID, holder, failure{at: time.Now(), pid: c.TID, key: at.key, path: at.pathFor(ctx, c), op: op, errno: e, err: err})
	if e == syscall.EIO {
		t.log.Error("operation failed", "path", at.path(), "operation", op, "uid", c.UID, "error", err)
	} else {
		t.log.Debug("operation refused", "path", at.path(), "operation", op, "uid", c.UID, "errno", errnoName(e), "error", err)
	}
	return e
}
