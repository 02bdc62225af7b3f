package nodes

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// AuditEvent is one line of the audit trail: who did, or was refused, what. It holds no key material and no bytes of a
// request; Request tells equal requests from others to whoever has the store.
type AuditEvent struct {
	Time      time.Time `json:"time"`
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	PID       uint32    `json:"pid"`
	Exe       string    `json:"exe,omitempty"`
	Unit      string    `json:"unit,omitempty"`
	Provider  string    `json:"provider,omitempty"`
	Key       string    `json:"key,omitempty"`  // its name then
	UUID      string    `json:"uuid,omitempty"` // of the key
	File      string    `json:"file,omitempty"`
	Operation string    `json:"operation"`
	Algorithm string    `json:"algorithm,omitempty"`
	Request   string    `json:"request,omitempty"` // HMAC-SHA-256 under the store's audit key
	Status    string    `json:"status"`            // PSA's, or the errno's name where the tree itself refused
	Micros    int64     `json:"us"`
}

// Auditor takes events. Both of its methods return at once.
type Auditor interface {
	// Ready says why no operation may run now: the trail is full and the configuration says to stop then.
	Ready() error
	Record(AuditEvent)
}

// auditing is what the tree keeps for its audit trail; nil is none.
type auditing struct {
	to      Auditor
	key     func() []byte // nil while the data key is absent: then requests have no name
	callers callerCache
}

// name begins the HMAC of a request.
func (a *auditing) name() hash.Hash {
	if a == nil {
		return nil
	}
	key := a.key()
	if key == nil {
		return nil
	}
	return hmac.New(sha256.New, key)
}

// ready refuses what could not be recorded.
func (a *auditing) ready() error {
	if a == nil {
		return nil
	}
	return a.to.Ready()
}

// audit records what a caller did at a place; begun is when.
func (t *Tree) audit(c fuse.Caller, at place, op string, begun time.Time, err error) {
	t.auditOperation(c, at, kim.Key{}, op, "", nil, begun, err)
}

// auditOperation is audit for an operation with a key, which its caller has read already.
func (t *Tree) auditOperation(c fuse.Caller, at place, key kim.Key, op, algorithm string, request hash.Hash, begun time.Time, err error) {
	a := t.auditing
	if a == nil {
		return
	}
	e := AuditEvent{Time: begun, UID: c.Uid, GID: c.Gid, PID: c.Pid, File: at.file, Operation: op, Algorithm: algorithm,
		Status: statusName(err), Micros: time.Since(begun).Microseconds()}
	who := a.callers.find(c.Pid)
	e.Exe, e.Unit = who.exe, who.unit
	if who.pid != 0 {
		e.PID = who.pid
	}
	if at.provider != nil {
		e.Provider = at.provider.Name()
	}
	if at.key != 0 && key.Number == 0 {
		key, _ = t.kim.Key(context.Background(), at.key) // one that is gone has no name
	}
	if key.Number != 0 {
		e.Key, e.UUID = key.Name, hex.EncodeToString(key.ID[:])
	}
	if request != nil {
		e.Request = hex.EncodeToString(request.Sum(nil))
	}
	a.to.Record(e)
}

// audited records a change, as it came out, and gives its errno as fail does.
func (t *Tree) audited(ctx context.Context, at place, op string, begun time.Time, err error) syscall.Errno {
	t.audit(caller(ctx), at, op, begun, err)
	return t.remember(ctx, at, op, err)
}

// denial says whether the tree itself has kept somebody out, which the kernel did not.
func denial(e syscall.Errno) bool {
	return e == syscall.EACCES || e == syscall.EPERM || e == syscall.EKEYREVOKED
}

// statusName is PSA's status in its notation, or the errno of a rule of the tree's own.
func statusName(err error) string {
	var r *refusal
	if errors.As(err, &r) {
		return errnoName(r.errno)
	}
	return psa.StatusOf(err).String()
}

// program is what is known of a process.
type program struct {
	pid       uint32 // of the process, where the caller is one of its threads
	start     uint64
	seen      time.Time // when the start time was last read
	exe, unit string
}

// callerCache remembers processes by thread id; an entry holds as long as the thread's start time is the same.
type callerCache struct {
	mu  sync.Mutex
	all map[uint32]program
}

const (
	// callersMost bounds it; beyond it everything is forgotten.
	callersMost = 4096
	// pidsLast is less than it takes to give out all pids once, so that one comes back.
	pidsLast = 50 * time.Millisecond
)

func (c *callerCache) find(tid uint32) program {
	c.mu.Lock()
	p, known := c.all[tid]
	c.mu.Unlock()
	if known && time.Since(p.seen) < pidsLast {
		return p
	}
	now := time.Now()
	s, ok, _ := readStat(tid, execLooks)
	if !ok {
		return program{}
	}
	if known && p.start == s.start {
		p.seen = now
		c.keep(tid, p)
		return p
	}
	p = program{start: s.start, seen: now}
	proc := "/proc/" + strconv.FormatUint(uint64(tid), 10)
	if b, err := os.ReadFile(proc + "/status"); err == nil {
		p.pid = uint32(statusField(b, "Tgid:"))
	}
	p.exe, _ = os.Readlink(proc + "/exe")
	if b, err := os.ReadFile(proc + "/cgroup"); err == nil {
		p.unit = unitOf(string(b))
	}
	c.keep(tid, p)
	return p
}

func (c *callerCache) keep(tid uint32, p program) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil || len(c.all) >= callersMost {
		c.all = map[uint32]program{}
	}
	c.all[tid] = p
}
