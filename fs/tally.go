package fs

import (
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/parsecfs/parsecfs/nodes"
)

const (
	// openGroups and beyondGroups limit the lines of one second's counts, groupsOfUser those of one user.
	openGroups   = 64
	beyondGroups = 256
	groupsOfUser = 8
	// countedExe is the longest name of a program in such a line: callers choose their program's path.
	countedExe = 256
)

// counted is a line for several events of one user that are alike. Its other fields describe the first of them.
type counted struct {
	nodes.AuditEvent
	Count int64 `json:"count"`
}

// others is the line for all events beyond the limits.
type others struct {
	Time      time.Time `json:"time"`
	Operation string    `json:"operation"`
	Count     int64     `json:"count"`
}

// group is what events must have in common to be counted together.
type group struct {
	uid               uint32
	key               int64
	operation, status string
}

// tally counts events, in bounded memory.
type tally struct {
	most  int  // groups
	byKey bool // keys are told apart

	mu     sync.Mutex
	groups map[group]*counted
	users  map[uint32]int // groups of each
	others others
}

// add counts an event, and says whether it is the first one since take. Only for the first one of a group it calls tell.
func (t *tally) add(e nodes.AuditEvent, tell func(*nodes.AuditEvent)) (first bool) {
	g := group{uid: e.UID, operation: e.Operation, status: e.Status}
	if t.byKey {
		g.key = e.KeyNumber
	}
	if t.again(g, e.Time) {
		return false
	}
	tell(&e) // reads /proc, so the lock is not held
	if len(e.Exe) > countedExe {
		e.Exe = ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.counts(g, e.Time) {
		return false
	}
	if t.users[g.uid] == groupsOfUser-1 { // the user's last group takes all other events
		g = group{uid: g.uid, operation: othersTogether}
		e = nodes.AuditEvent{Time: e.Time, UID: e.UID, GID: e.GID, PID: e.PID, Operation: othersTogether}
	}
	if t.groups == nil {
		t.groups, t.users = map[group]*counted{}, map[uint32]int{}
	}
	t.groups[g] = &counted{e, 1}
	t.users[g.uid]++
	return len(t.groups) == 1
}

func (t *tally) again(g group, at time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.counts(g, at)
}

// counts adds one to the line that counts a group. If there is no such line yet, it returns false.
func (t *tally) counts(g group, at time.Time) bool {
	c := t.groups[g]
	if c == nil && t.users[g.uid] >= groupsOfUser {
		c = t.groups[group{uid: g.uid, operation: othersTogether}]
	}
	switch {
	case c != nil:
		c.Count++
	case len(t.groups) >= t.most:
		if t.others.Count == 0 {
			t.others = others{Time: at, Operation: othersTogether}
		}
		t.others.Count++
	default:
		return false
	}
	return true
}

// take returns the lines, sorted by time, and clears the counts.
func (t *tally) take() (lines []any) {
	t.mu.Lock()
	groups, rest := t.groups, t.others
	t.groups, t.users, t.others = nil, nil, others{}
	t.mu.Unlock()
	sorted := slices.SortedFunc(maps.Values(groups), func(a, b *counted) int { return a.Time.Compare(b.Time) })
	for _, c := range sorted {
		lines = append(lines, c)
	}
	if rest.Count > 0 {
		lines = append(lines, rest)
	}
	return lines
}
