package nodes

import (
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// inUse counts the open files by which drafts become keys, so that none expires meanwhile.
type inUse struct {
	mu    sync.Mutex
	open  map[int64]int  // of each key
	going map[int64]bool // drafts that expire right now
}

// enter counts an open file of a key; leave must follow.
func (u *inUse) enter(key int64) (leave func(), err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.going[key] {
		return nil, gate.Refuse(syscall.EBUSY, "this draft was not used for so long that it expires now", "make another one with mkdir")
	}
	if u.open == nil {
		u.open = map[int64]int{}
	}
	u.open[key]++
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		if u.open[key]--; u.open[key] == 0 {
			delete(u.open, key)
		}
	}, nil
}

// expire keeps everybody from opening files of a draft that nobody has open; done must follow. false: somebody has,
// or it expires already.
func (u *inUse) expire(key int64) (done func(), unused bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.open[key] > 0 || u.going[key] {
		return nil, false
	}
	if u.going == nil {
		u.going = map[int64]bool{}
	}
	u.going[key] = true
	return func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		delete(u.going, key)
	}, true
}

// forgotten lets a draft expire that nobody has in use, as a deed of the daemon's own.
func (t *Tree) forgotten(p *kim.Provider, draft kim.Key, remove func() error) {
	end, err := t.machine.Begin()
	if err != nil {
		return // the mount goes away
	}
	defer end()
	daemon := caller.Caller{UID: t.uid, GID: t.gid, TID: uint32(os.Getpid())}
	if err := t.auditing.ready(daemon.UID, AuditDeed); err != nil {
		return
	}
	done, unused := t.drafts.expire(draft.Number)
	if !unused {
		return
	}
	defer done()
	at, begun := place{t: t, provider: p, file: draft.Path()}, time.Now()
	switch err := remove(); psa.StatusOf(err) {
	case psa.StatusBadState, psa.StatusDoesNotExist: // it was changed, or is gone
	case psa.StatusSuccess:
		t.forget(draft.Number)
		t.audit(daemon, AuditAttempt, at, "expire", begun, nil)
		t.log.Info("a forgotten draft expired", "path", at.path(), "uid", draft.UID)
	default:
		t.audit(daemon, AuditDeed, at, "expire", begun, err)
		t.log.Warn("cannot remove a forgotten draft", "path", at.path(), "err", err)
	}
}
