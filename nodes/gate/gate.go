// Package gate is the one judge of who may: modes, ACLs, systemd units, rights that were taken away, and accesses.
//
// The kernel judges each system call by the modes that the tree gives it (default_permissions). Three things it cannot
// do are done here:
//
//   - It judges a file when it is opened, and never again. An Access remembers by which way and when a file was opened;
//     once a right was taken away on that way, whoever calls through the Access is judged anew, at each call, by who
//     they are at that moment. A verdict is about that call alone.
//   - It judges the directories on the way that a caller takes. A bind mount, a kept descriptor or /proc/self/fd takes
//     another one: so where a directory, or the file, has lost rights since the mount, a new open is judged by the
//     whole way here too.
//   - It knows nothing of names that are written instead of opened: Named judges those.
//
// No answer depends on how long ago something happened.
package gate

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Steps is how many inodes a way has at most: the provider's directory, users/, keys/ or a user's own directory, the key's
// directory, and the file.
const Steps = 5

// Way leads to a file: over the directories in front of it to the file itself, which is its last step.
type Way interface {
	// Numbers are the inodes' numbers now, 0 for a step that this way does not have; the last one is the file's. Where a key
	// is moved to another directory its way changes, which is a loss for the key's directory. An error says that the way is
	// not known: nobody may go it.
	Numbers() ([Steps]uint64, error)
	// Rights are those of a step now.
	Rights(ctx context.Context, step int) (Rights, error)
	// Path is a step's place in the mount, for messages.
	Path(step int) string
	// Units are the systemd units that may come this way now. An error says that the key is gone.
	Units(ctx context.Context) (Units, error)
}

// Gate judges.
type Gate struct {
	procs *caller.Procs
	units atomic.Pointer[[]UnitRule] // nil: no authenticator SystemdUnit

	count atomic.Uint64 // of losses
	mu    sync.Mutex
	lost  map[uint64]uint64 // the last loss of each inode
	all   uint64            // the last one that counts for every inode
}

// maxLosses bounds the inodes that are remembered; beyond it every inode counts as one that lost.
const maxLosses = 1 << 16

// New makes a gate that asks procs who callers are. rules are as SetUnitRules has them.
func New(procs *caller.Procs, rules []UnitRule) *Gate {
	g := &Gate{procs: procs}
	g.setRules(rules)
	return g
}

// Lost notes that somebody may have lost a right on an inode. It must follow the change itself: an access that is made
// in between is judged once more than it needs to be.
func (g *Gate) Lost(ino uint64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	now := g.count.Load() + 1
	if len(g.lost) >= maxLosses {
		g.all, g.lost = now, nil
	}
	if g.lost == nil {
		g.lost = map[uint64]uint64{}
	}
	g.lost[ino] = now
	g.count.Store(now) // last: who sees it must find the loss
}

// LostAll notes that somebody may have lost a right anywhere.
func (g *Gate) LostAll() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.all, g.lost = g.count.Load()+1, nil
	g.count.Store(g.all)
}

// Last is the last loss of any of the inodes, 0 where there was none.
func (g *Gate) Last(inos ...uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	last := g.all
	for _, ino := range inos {
		last = max(last, g.lost[ino])
	}
	return last
}

// since says whether a step of the way lost rights after the loss seen, and which was the last loss of all.
func (g *Gate) since(seen uint64, way [Steps]uint64) (lost bool, now uint64) {
	if now = g.count.Load(); now == seen {
		return false, now
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	now = g.count.Load()
	lost = g.all > seen
	for _, ino := range way {
		lost = lost || ino != 0 && g.lost[ino] > seen
	}
	return lost, now
}

// Access is the right by which a file was opened, or a slot made. It holds for as long as nothing on its way loses rights.
type Access struct {
	g       *Gate
	way     Way
	numbers [Steps]uint64
	want    Bits
	seen    atomic.Uint64 // the last loss that is known not to concern it
	lost    atomic.Bool   // one that does has come since
}

// Open is the access of whoever opens a file now, which the kernel has let through. Where its way ever lost rights since
// the mount it is judged again: the kernel did so earlier, and perhaps by another way. units are the way's as they are.
// A refusal is EACCES.
func (g *Gate) Open(ctx context.Context, who caller.Caller, way Way, want Bits, units Units) (*Access, error) {
	a := &Access{g: g, way: way, want: want}
	// Before the way is known and anything is judged: what is lost meanwhile is lost after this access was made.
	a.seen.Store(g.count.Load())
	var err error
	if a.numbers, err = way.Numbers(); err != nil {
		return nil, err
	}
	if lost, _ := g.since(0, a.numbers); lost {
		if err := denied(g.judge(ctx, who, way, want)); err != nil {
			return nil, err
		}
	}
	if err := g.Admit(who, units); err != nil {
		return nil, err
	}
	return a, nil
}

// Prompt says whether Open would let anybody in without asking who they are.
func (g *Gate) Prompt(way Way, units Units) bool {
	if units.Provider != "" && (g.units.Load() != nil || len(units.Key) > 0) {
		return false
	}
	numbers, err := way.Numbers()
	if err != nil {
		return false
	}
	lost, _ := g.since(0, numbers)
	return !lost
}

// Named judges whoever names a file in bytes, as if they opened it. A refusal is EACCES.
func (g *Gate) Named(ctx context.Context, who caller.Caller, way Way, want Bits) error {
	if err := g.judge(ctx, who, way, want); err != nil {
		return denied(err)
	}
	return g.admit(ctx, who, way)
}

// denied gives a refusal its errno; a key that is gone has its own.
func denied(err error) error {
	if err == nil || psa.StatusOf(err) == psa.StatusRevoked {
		return err
	}
	return Refuse(syscall.EACCES, err.Error(), hintOf(err))
}

func hintOf(err error) string {
	if r, ok := err.(*Refusal); ok {
		return r.Hint
	}
	return "ask the key's owner for access"
}

// Check judges whoever calls through the access, where its way has lost rights since it was made. A refusal is
// EKEYREVOKED.
func (a *Access) Check(ctx context.Context, who caller.Caller) error {
	if !a.lost.Load() {
		lost, now := a.g.since(a.seen.Load(), a.numbers)
		if !lost {
			a.seen.Store(now)
			return nil
		}
		a.lost.Store(true)
	}
	err := a.g.judge(ctx, who, a.way, a.want)
	if err == nil {
		err = a.g.admit(ctx, who, a.way)
	}
	if err == nil || psa.StatusOf(err) == psa.StatusRevoked {
		return err
	}
	return psa.Errorf(psa.StatusRevoked, "the right to use this file was taken away: %v", err).WithHint(hintOf(err))
}

// Holds says whether nothing on its way has lost rights since it was made, so that Check asks nobody.
func (a *Access) Holds() bool {
	lost, _ := a.g.since(a.seen.Load(), a.numbers)
	return !lost && !a.lost.Load()
}

// Enter judges whoever opens something again by an access that was made before: as Check does, and by their systemd unit.
func (a *Access) Enter(ctx context.Context, who caller.Caller) error {
	if err := a.Check(ctx, who); err != nil {
		return err
	}
	return a.g.admit(ctx, who, a.way)
}

// Owner judges whoever changes who may do what with an inode whose rights are now: the kernel asked whose it is before. The
// judge that it gives does the same once nobody else can change them, when the inode may have become somebody else's; it
// asks nobody, and so can be called under a lock. A refusal is EPERM.
func (g *Gate) Owner(who caller.Caller, way [Steps]uint64, now Rights) (judge func(now Rights) error) {
	if who.UID == now.uid {
		return func(now Rights) error { return owns(who.UID == now.uid) }
	}
	identity, err := g.procs.Identity(who)
	return func(now Rights) error {
		if err == nil {
			return owns(identity.Owns(now.uid, now.gid))
		}
		lost, _ := g.since(0, way)
		return owns(who.UID == now.uid || !lost)
	}
}

func owns(yes bool) error {
	if yes {
		return nil
	}
	return Refuse(syscall.EPERM, "this no longer belongs to the caller", "ask its owner")
}

// admit is Admit for the units of a way as they are now.
func (g *Gate) admit(ctx context.Context, who caller.Caller, way Way) error {
	units, err := way.Units(ctx)
	if err != nil {
		return err
	}
	return g.Admit(who, units)
}

// judge says why the caller may not go the way now; whoever cannot be told may not.
func (g *Gate) judge(ctx context.Context, who caller.Caller, way Way, want Bits) error {
	numbers, err := way.Numbers()
	if err != nil {
		return err
	}
	var identity *caller.Identity
	for step, ino := range numbers {
		if ino == 0 {
			continue
		}
		rights, err := way.Rights(ctx, step)
		if err != nil {
			return err
		}
		bits := Search
		if step == Steps-1 {
			bits = want
		}
		if allowed, sure := rights.decide(who.UID, who.GID, bits); sure && allowed {
			continue
		}
		if identity == nil {
			i, err := g.procs.Identity(who)
			if err != nil {
				return fmt.Errorf("the caller's identity is not known: %w", err)
			}
			identity = &i
		}
		if !rights.allow(*identity, bits) {
			return fmt.Errorf("uid %d has no access to %s", who.UID, way.Path(step))
		}
	}
	return nil
}
