package nodes

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"hash"
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
	to  Auditor
	key func() []byte // nil while the data key is absent: then requests have no name
}

// digest begins the HMAC of a request.
func (a *auditing) digest() hash.Hash {
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
func (t *Tree) audit(c caller.Caller, at place, op string, begun time.Time, err error) {
	t.auditOperation(c, at, kim.Key{}, op, "", nil, begun, err)
}

// auditOperation is audit for an operation with a key, which its caller has read already.
func (t *Tree) auditOperation(c caller.Caller, at place, key kim.Key, op, algorithm string, request hash.Hash, begun time.Time, err error) {
	a := t.auditing
	if a == nil {
		return
	}
	e := AuditEvent{Time: begun, UID: c.UID, GID: c.GID, PID: c.TID, File: at.file, Operation: op, Algorithm: algorithm,
		Status: statusName(err), Micros: time.Since(begun).Microseconds()}
	who := t.procs.Program(c)
	e.Exe, e.Unit = who.Exe, who.Unit
	if who.PID != 0 {
		e.PID = who.PID
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
	t.audit(callerOf(ctx), at, op, begun, err)
	return t.remember(ctx, at, op, err)
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
