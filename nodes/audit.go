package nodes

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"hash"
	"strings"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// AuditEvent is one line of the audit trail: who did, or was refused, what. It holds no key material and no bytes of a
// request; Request tells equal requests from others to whoever has the store.
type AuditEvent struct {
	Class     AuditClass `json:"-"`
	KeyNumber int64      `json:"-"` // of the key's row, 0 without one

	Time      time.Time `json:"time"`
	UID       uint32    `json:"uid"`
	GID       uint32    `json:"gid"`
	PID       uint32    `json:"pid"`
	Exe       string    `json:"exe,omitempty"`
	Unit      string    `json:"unit,omitempty"`
	Provider  string    `json:"provider,omitempty"`
	Key       string    `json:"key,omitempty"`  // its name then
	User      *uint32   `json:"user,omitempty"` // among whose own names that is; none: among those that all share
	UUID      string    `json:"uuid,omitempty"` // of the key
	File      string    `json:"file,omitempty"`
	Operation string    `json:"operation"`
	Algorithm string    `json:"algorithm,omitempty"`
	Request   string    `json:"request,omitempty"` // HMAC-SHA-256 under the store's audit key
	Status    string    `json:"status"`            // PSA's, or the errno's name where the tree itself refused
	Micros    int64     `json:"us"`
}

// AuditClass says how much of an event must be kept.
type AuditClass int

const (
	// AuditOpen is what needs no right, or a refusal that anybody can provoke: it is counted.
	AuditOpen AuditClass = iota
	// AuditUse is an operation that took a right to a key.
	AuditUse
	// AuditDeed changes keys or who may use them, or lets a key out, or was an attempt at that.
	AuditDeed
	// AuditAttempt is a deed that came to nothing, or whose doer may not have meant it: others can have a setuid program
	// do that, so that not even root is trusted with the space.
	AuditAttempt
	// AuditCommand is a deed by a command that only root, the daemon's user and admins can give.
	AuditCommand
)

// Auditor takes events. Both of its methods return at once.
type Auditor interface {
	// Ready says why nothing of this class by this user may happen now: the trail is full and the configuration says to
	// stop then.
	Ready(uid uint32, class AuditClass) error
	// Record takes an event; tell fills in what is looked up, and is called at most once, before Record returns: what is
	// only counted costs no look.
	Record(e AuditEvent, tell func(*AuditEvent))
}

// auditing is what the tree keeps for its audit trail; nil is none.
type auditing struct {
	to  Auditor
	key func() []byte // nil while the data key is absent: then requests have no name
}

// digest begins the HMAC of a request; what is only counted has none.
func (a *auditing) digest(class AuditClass) hash.Hash {
	if a == nil || class == AuditOpen {
		return nil
	}
	key := a.key()
	if key == nil {
		return nil
	}
	return hmac.New(sha256.New, key)
}

// ready refuses what could not be recorded.
func (a *auditing) ready(uid uint32, class AuditClass) error {
	if a == nil {
		return nil
	}
	return a.to.Ready(uid, class)
}

// looksUp says whether whoever does something of a class is looked up for the audit trail.
func (t *Tree) looksUp(class AuditClass) bool { return t.auditing != nil && class != AuditOpen }

// audit records what a caller did at a place; begun is when.
func (t *Tree) audit(c caller.Caller, class AuditClass, at place, op string, begun time.Time, err error) {
	if t.auditing != nil {
		t.record(c, class, at, op, begun, err, func(e *AuditEvent) { t.name(e, kim.Key{}) })
	}
}

// record hands an event on; tell adds to it what only those need that are written in full.
func (t *Tree) record(c caller.Caller, class AuditClass, at place, op string, begun time.Time, err error, tell func(*AuditEvent)) {
	e := AuditEvent{Class: class, KeyNumber: at.key, Time: begun, UID: c.UID, GID: c.GID, PID: c.TID, File: at.file, Operation: op,
		Status: statusName(err), Micros: time.Since(begun).Microseconds()}
	if class == AuditDeed && err != nil {
		e.Class = AuditAttempt
	}
	if at.provider != nil {
		e.Provider = at.provider.Name()
	}
	t.auditing.to.Record(e, func(e *AuditEvent) {
		who := t.procs.Program(c)
		e.Exe, e.Unit = who.Exe, who.Unit
		if who.PID != 0 {
			e.PID = who.PID
		}
		tell(e)
	})
}

// name adds the key's name and uuid; a key that was read already need not be read again.
func (t *Tree) name(e *AuditEvent, key kim.Key) {
	if e.KeyNumber != 0 && key.Number == 0 {
		key, _ = t.kim.Key(context.Background(), e.KeyNumber) // one that is gone has no name
	}
	if key.Number != 0 {
		e.Key, e.UUID = key.Name, kim.UUID(key.ID)
		if uid, own := key.Space.User(); own {
			e.User = &uid
		}
	}
}

// audited records a change, as it came out, and gives its errno as fail does.
func (t *Tree) audited(ctx context.Context, at place, op string, begun time.Time, err error) syscall.Errno {
	t.audit(callerOf(ctx), AuditDeed, at, op, begun, err)
	return t.remember(ctx, at, op, err)
}

// attempt is the class of what somebody was kept from: a deed that failed, or one refusal among those that anybody can
// provoke.
func (t *Tree) attempt(at place, op string) AuditClass {
	switch op {
	case "mkdir", "rmdir", "rename", "setattr":
		return AuditDeed
	case "open", "read", "write", "ioctl", "close":
		file, _, _ := strings.Cut(at.file, slotsSuffix+"/")
		if r := find(t.tables.key, file); at.key != 0 && r != nil {
			return r.class()
		}
	}
	return AuditOpen
}

// class is what an event about the row's file is, where the file is not open to all.
func (r *row) class() AuditClass {
	if r.kind == staged || r.op == psa.Export {
		return AuditDeed
	}
	return AuditOpen
}

// denial says whether the tree itself has kept somebody out, which the kernel did not.
func denial(e syscall.Errno) bool {
	return e == syscall.EACCES || e == syscall.EPERM || e == syscall.EKEYREVOKED
}

// statusName is PSA's status in its notation, or the errno of a rule of the tree's own.
func statusName(err error) string {
	var r *gate.Refusal
	if errors.As(err, &r) {
		return errnoName(r.Errno)
	}
	return psa.StatusOf(err).String()
}
