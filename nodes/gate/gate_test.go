package gate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// steps have these inodes.
var numbers = [Steps]uint64{10, 11, 12, 13, 14}

// way is one whose rights the test changes. The directories are everybody's to search, and the file to read and write.
type way struct {
	mu      sync.Mutex
	numbers [Steps]uint64
	rights  [Steps]Rights
	units   Units
	gone    error
	unknown error // the way itself
	asked   int   // for rights
}

func newWay() *way {
	w := &way{numbers: numbers}
	for i := range w.rights {
		w.rights[i] = RightsOf(0, 0, 0777, nil)
	}
	return w
}

func (w *way) Numbers() ([Steps]uint64, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.numbers, w.unknown
}
func (w *way) Path(step int) string { return "step " + strconv.Itoa(step) }

func (w *way) Rights(_ context.Context, step int) (Rights, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	return w.rights[step], w.gone
}

func (w *way) Units(context.Context) (Units, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.units, w.gone
}

func (w *way) set(step int, r Rights) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.rights[step] = r
}

func (w *way) looks() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

// process starts a process that does nothing until the end of the test, by setpriv with these arguments.
func process(t *testing.T, args ...string) uint32 {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can start a process of another user")
	}
	// it says that it is what it is to be, and ends with its input
	c := exec.Command("setpriv", append(args, "sh", "-c", "echo; read end")...)
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = c.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	return uint32(c.Process.Pid)
}

// user starts a process of a user in its own group and those.
func user(t *testing.T, uid int, groups ...string) caller.Caller {
	t.Helper()
	id := strconv.Itoa(uid)
	group := "--clear-groups"
	if len(groups) > 0 {
		group = "--groups=" + strings.Join(groups, ",")
	}
	return caller.Caller{UID: uint32(uid), GID: uint32(uid), TID: process(t, "--reuid="+id, "--regid="+id, group)}
}

func root() caller.Caller { return caller.Caller{TID: uint32(os.Getpid())} }

func open(t *testing.T, g *Gate, who caller.Caller, w Way) *Access {
	t.Helper()
	units, err := w.Units(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	a, err := g.Open(t.Context(), who, w, ReadWrite, units)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// check wants an access to be good, or taken away.
func check(t *testing.T, a *Access, who caller.Caller, good bool) {
	t.Helper()
	err := a.Check(t.Context(), who)
	if good && err != nil {
		t.Errorf("uid %d: %v", who.UID, err)
	}
	if !good && psa.StatusOf(err) != psa.StatusRevoked {
		t.Errorf("uid %d: %v, want a revocation", who.UID, err)
	}
}

// denied wants an open to be refused, or not.
func wantDenied(t *testing.T, err error, denied bool) {
	t.Helper()
	var r *Refusal
	if !denied && err != nil || denied && (!errors.As(err, &r) || r.Errno != syscall.EACCES) {
		t.Errorf("%v; denied: %v", err, denied)
	}
}

// TestNoLoss: where nobody lost anything nobody is looked at, whoever they are: the kernel has judged.
func TestNoLoss(t *testing.T) {
	t.Parallel()
	g, w := New(caller.New(), nil), newWay()
	for i := range w.rights {
		w.rights[i] = RightsOf(0, 0, 0, nil)
	}
	for _, who := range []caller.Caller{{UID: 2003, GID: 2003}, {UID: 2003, GID: 2003, TID: 1}, {}} {
		a := open(t, g, who, w)
		g.Lost(99)
		for range 3 {
			check(t, a, who, true)
		}
		if err := a.Enter(t.Context(), who); err != nil {
			t.Error(err)
		}
	}
	if n := w.looks(); n != 0 {
		t.Errorf("rights were asked for %d times", n)
	}
}

// TestLossOnEachStep: a right to any step of the way that is lost ends an access and keeps a new one out, of whoever has no
// other right to it; with the right both come back. Others go on all the time.
func TestLossOnEachStep(t *testing.T) {
	t.Parallel()
	owner, named, grouped, other := user(t, 2001), user(t, 2002), user(t, 2003, "3000"), user(t, 2004)
	all := []caller.Caller{owner, named, grouped, other, root()}
	acl := ACL{{tagUserObj, 7, anyID}, {tagUser, 7, 2002}, {tagGroupObj, 0, anyID}, {tagGroup, 7, 3000}, {tagMask, 7, anyID}, {tagOther, 7, anyID}}
	without := func(tag uint16) ACL {
		a := acl.Chmod(0777)
		a.find(tag).perm = 0
		return a
	}
	mask := acl.Chmod(0777)
	mask.find(tagMask).perm = 0
	for name, loss := range map[string]struct {
		to   Rights
		lose []caller.Caller
	}{
		"the user's entry":  {RightsOf(2001, 2001, 0777, without(tagUser)), []caller.Caller{named}},
		"the group's entry": {RightsOf(2001, 2001, 0777, without(tagGroup)), []caller.Caller{grouped}},
		"the mask":          {RightsOf(2001, 2001, 0777, mask), []caller.Caller{named, grouped}},
		"others":            {RightsOf(2001, 2001, 0770, without(tagOther)), []caller.Caller{other}},
		"the owner's bits":  {RightsOf(2001, 2001, 0077, without(tagUserObj)), []caller.Caller{owner}},
		"chmod 0":           {RightsOf(2001, 2001, 0, nil), []caller.Caller{owner, named, grouped, other}},
		"chown":             {RightsOf(2005, 2005, 0700, nil), []caller.Caller{owner, named, grouped, other}},
	} {
		for step := range Steps {
			t.Run(fmt.Sprintf("%s of step %d", name, step), func(t *testing.T) {
				g, w := New(caller.New(), nil), newWay()
				full := RightsOf(2001, 2001, 0777, acl)
				w.set(step, full)
				opened := map[caller.Caller]*Access{}
				for _, who := range all {
					opened[who] = open(t, g, who, w)
				}
				if full.OnlyAdds(loss.to) {
					t.Fatal("nobody loses anything")
				}
				w.set(step, loss.to)
				g.Lost(numbers[step])
				loses := func(who caller.Caller) bool {
					for _, l := range loss.lose {
						if l == who {
							return true
						}
					}
					return false
				}
				for range 2 {
					for _, who := range all {
						check(t, opened[who], who, !loses(who))
						check(t, opened[other], who, !loses(who)) // the descriptor of another one
						err := opened[who].Enter(t.Context(), who)
						if (err != nil) != loses(who) {
							t.Errorf("uid %d enters: %v", who.UID, err)
						}
						_, err = g.Open(t.Context(), who, w, ReadWrite, Units{})
						wantDenied(t, err, loses(who))
						wantDenied(t, g.Named(t.Context(), who, w, ReadWrite), loses(who))
					}
				}
				w.set(step, full)
				for _, who := range all {
					check(t, opened[who], who, true)
					wantDenied(t, g.Named(t.Context(), who, w, ReadWrite), false)
					open(t, g, who, w)
				}
			})
		}
	}
}

// TestVerdictIsOneCallers: a good verdict, of root's or of whoever else holds the descriptor, frees nobody, and nothing later; a
// bad one condemns nobody else.
func TestVerdictIsOneCallers(t *testing.T) {
	t.Parallel()
	g, w := New(caller.New(), nil), newWay()
	loser, winner := user(t, 2003), user(t, 2002)
	a := open(t, g, loser, w)
	w.set(Steps-1, RightsOf(2002, 2002, 0600, nil))
	g.Lost(numbers[Steps-1])
	for range 3 {
		check(t, a, root(), true)
		check(t, a, winner, true)
		check(t, a, loser, false)
		g.Lost(99) // of somebody else's file
		check(t, a, winner, true)
		check(t, a, loser, false)
	}
	w.set(Steps-1, RightsOf(2002, 2002, 0666, nil))
	check(t, a, loser, true)
	w.set(Steps-1, RightsOf(2002, 2002, 0600, nil)) // without a word: it was lost once, and is judged for ever
	check(t, a, loser, false)
}

// TestWayThatChanges: where a key was moved, whoever came by the old way is judged by the new one, also by steps that the old
// one did not have, and is from then on.
func TestWayThatChanges(t *testing.T) {
	t.Parallel()
	g, w := New(caller.New(), nil), newWay()
	w.numbers = [Steps]uint64{10, 0, 12, 13, 14}
	who := user(t, 2003)
	a := open(t, g, who, w)
	w.mu.Lock()
	w.numbers = [Steps]uint64{10, 11, 15, 13, 14}
	w.mu.Unlock()
	g.Lost(13)
	check(t, a, who, true)
	for _, step := range []int{1, 2} { // which the old way did not have, and had as another inode
		w.set(step, RightsOf(0, 0, 0700, nil))
		g.Lost(w.numbers[step])
		check(t, a, who, false)
		check(t, a, root(), true)
		_, err := g.Open(t.Context(), who, w, ReadWrite, Units{})
		wantDenied(t, err, true)
		w.set(step, RightsOf(0, 0, 0711, nil))
		check(t, a, who, true)
	}
}

// TestUnknownWay: who would go a way that is not known goes none, neither with an open nor with what is open.
func TestUnknownWay(t *testing.T) {
	t.Parallel()
	g, w := New(caller.New(), nil), newWay()
	who := user(t, 2003)
	a := open(t, g, who, w)
	w.mu.Lock()
	w.unknown = errors.New("the store cannot be read")
	w.mu.Unlock()
	if _, err := g.Open(t.Context(), who, w, ReadWrite, Units{}); !errors.Is(err, w.unknown) {
		t.Errorf("an open: %v", err)
	}
	if err := g.Named(t.Context(), who, w, ReadWrite); err == nil {
		t.Error("a name in bytes: no error")
	}
	g.Lost(numbers[Steps-1])
	check(t, a, who, false)
}

// TestOpenAfterLoss: an open after a loss is judged by the whole way, however long ago it was; one of another way is not.
func TestOpenAfterLoss(t *testing.T) {
	t.Parallel()
	g, w, other := New(caller.New(), nil), newWay(), newWay()
	who := user(t, 2003)
	other.numbers = [Steps]uint64{10, 0, 0, 0, 20}
	w.set(2, RightsOf(0, 0, 0700, nil))
	other.set(2, RightsOf(0, 0, 0, nil)) // a step that it does not have
	open(t, g, who, w)                   // the kernel let it through
	g.Lost(numbers[2])
	for range 1000 {
		g.Lost(99)
	}
	_, err := g.Open(t.Context(), who, w, ReadWrite, Units{})
	wantDenied(t, err, true)
	open(t, g, root(), w)
	if open(t, g, who, other); other.looks() != 0 {
		t.Error("another way was judged")
	}
	g.Lost(numbers[0]) // of both
	open(t, g, who, other)
	if n := other.looks(); n != 2 {
		t.Errorf("%d steps of a way of 2 were judged", n)
	}
	// one that was let in goes on, and is judged after the next loss again
	w.set(2, RightsOf(0, 0, 0701, nil))
	a := open(t, g, who, w)
	looks := w.looks()
	check(t, a, who, true)
	if w.looks() != looks {
		t.Error("it was judged without a loss since it was opened")
	}
	w.set(2, RightsOf(0, 0, 0700, nil))
	g.Lost(numbers[2])
	check(t, a, who, false)
}

// TestLostWithoutItsNumber: a loss that names another inode, or none, counts too.
func TestLostWithoutItsNumber(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(g *Gate){
		// beyond the inodes that are remembered every one counts
		"too many": func(g *Gate) {
			for ino := range uint64(maxLosses + 1) {
				g.Lost(1000 + ino)
			}
		},
		"unit rules of its provider": func(g *Gate) {
			g.SetUnitRules([]UnitRule{{Provider: "p", Units: []string{"a.service"}}}, map[string]uint64{"p": numbers[0]})
		},
	} {
		t.Run(name, func(t *testing.T) {
			g, w := New(caller.New(), nil), newWay()
			who := user(t, 2003)
			a := open(t, g, who, w)
			w.set(1, RightsOf(0, 0, 0700, nil))
			check(t, a, who, true)
			lose(g)
			check(t, a, who, false)
			check(t, a, root(), true)
			_, err := g.Open(t.Context(), who, w, ReadWrite, Units{})
			wantDenied(t, err, true)
			g.mu.Lock()
			defer g.mu.Unlock()
			if len(g.lost) > maxLosses {
				t.Errorf("%d inodes are remembered", len(g.lost))
			}
		})
	}
}

// TestWhoCannotBeTold: a caller that cannot be seen, or is another one than its request, is refused wherever the header's ids do not
// decide alone; where they do nobody is looked at.
func TestWhoCannotBeTold(t *testing.T) {
	t.Parallel()
	w := newWay()
	who := user(t, 2003, "3000")
	unseen, changed, regrouped := who, who, who
	unseen.TID = 0
	changed.UID = 2001 // as a worker of io_uring that acts for another one
	regrouped.GID = 3000
	ended := user(t, 2003)
	if err := syscall.Kill(int(ended.TID), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(int(ended.TID), &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	unknown := map[string]caller.Caller{"unseen": unseen, "another uid": changed, "another gid": regrouped, "ended": ended}
	for name, c := range map[string]struct {
		rights Rights
		told   bool // to whoever can be told
		header map[string]bool
	}{
		"everybody's":     {RightsOf(0, 0, 0666, nil), true, map[string]bool{"unseen": true, "another uid": true, "another gid": true, "ended": true}},
		"a group's":       {RightsOf(0, 3000, 0660, nil), true, map[string]bool{"another gid": true}}, // by its header, as the kernel's check would be
		"its own group's": {RightsOf(0, 2003, 0660, nil), true, map[string]bool{"unseen": true, "another uid": true, "ended": true}},
		"the owner's":     {RightsOf(2003, 0, 0600, nil), true, map[string]bool{"unseen": true, "another gid": true, "ended": true}},
		"another owner's": {RightsOf(2001, 0, 0600, nil), false, map[string]bool{"another uid": true}},
		"nobody's":        {RightsOf(2005, 0, 0, nil), false, nil},
	} {
		t.Run(name, func(t *testing.T) {
			g := New(caller.New(), nil)
			a := open(t, g, who, w)
			w.set(Steps-1, c.rights)
			g.Lost(numbers[Steps-1])
			check(t, a, who, c.told)
			for name, u := range unknown {
				check(t, a, u, c.header[name])
				wantDenied(t, g.Named(t.Context(), u, w, ReadWrite), !c.header[name])
			}
		})
	}
	// root too, which is let in by its capabilities alone
	g := New(caller.New(), nil)
	w.set(Steps-1, RightsOf(2005, 2005, 0600, nil))
	g.Lost(numbers[Steps-1])
	wantDenied(t, g.Named(t.Context(), caller.Caller{}, w, ReadWrite), true)
	wantDenied(t, g.Named(t.Context(), root(), w, ReadWrite), false)
}

// TestThreadIsAsked: a thread of the test itself is who it is at the moment of asking.
func TestThreadIsAsked(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can become another user")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		g, w := New(caller.New(), nil), newWay()
		ids := func(uid, gid int) caller.Caller {
			// the raw calls are of this thread alone
			for _, c := range []struct{ call, id uintptr }{{unix.SYS_SETFSGID, uintptr(gid)}, {unix.SYS_SETFSUID, uintptr(uid)}} {
				if _, _, errno := unix.RawSyscall(c.call, c.id, 0, 0); errno != 0 {
					t.Error(errno)
				}
			}
			return caller.Caller{UID: uint32(uid), GID: uint32(gid), TID: uint32(unix.Gettid())}
		}
		w.set(Steps-1, RightsOf(2001, 3000, 0660, nil))
		g.Lost(numbers[Steps-1])
		as := func(uid, gid int, denied bool) {
			t.Helper()
			wantDenied(t, g.Named(t.Context(), ids(uid, gid), w, ReadWrite), denied)
		}
		as(0, 0, false)
		as(2001, 2001, false)
		as(2003, 3000, false)
		as(2003, 2003, true) // its capabilities went with its uid
		as(0, 0, false)
	}()
	<-done
}

// TestGone: a key that is gone is a revocation, for opens and accesses alike; what cannot be read is a refusal.
func TestGone(t *testing.T) {
	t.Parallel()
	g, w := New(caller.New(), nil), newWay()
	a := open(t, g, root(), w)
	g.Lost(numbers[2])
	w.gone = psa.Errorf(psa.StatusRevoked, "the key was destroyed")
	check(t, a, root(), false)
	if _, err := g.Open(t.Context(), root(), w, Read, Units{}); psa.StatusOf(err) != psa.StatusRevoked {
		t.Error(err)
	}
	if err := a.Enter(t.Context(), root()); psa.StatusOf(err) != psa.StatusRevoked {
		t.Error(err)
	}
	w.gone = psa.Errorf(psa.StatusStorageFailure, "the store is broken")
	check(t, a, root(), false)
	wantDenied(t, g.Named(t.Context(), root(), w, Read), true)
}

// TestUnitsJudge: units keep out whoever is in none that is known, root too, at an open and once rights were lost; without rules nobody.
func TestUnitsJudge(t *testing.T) {
	t.Parallel()
	who := user(t, 2003)
	unseen := caller.Caller{UID: 2003, GID: 2003}
	mine, err := caller.New().Unit(who)
	if err != nil {
		mine = "none.service"
		t.Log("the test runs in no unit, so whoever asks is kept out:", err)
	}
	in := err == nil
	for name, c := range map[string]struct {
		rules []UnitRule
		units Units
		in    bool // whoever is in the unit mine
		all   bool
	}{
		"no rules":                {nil, Units{Provider: "p"}, true, true},
		"no provider":             {[]UnitRule{{Units: []string{"else.service"}}}, Units{}, true, true},
		"its unit":                {[]UnitRule{{Provider: "p", Units: []string{mine}}}, Units{Provider: "p"}, in, false},
		"another unit":            {[]UnitRule{{Provider: "p", Units: []string{"else.service"}}}, Units{Provider: "p"}, false, false},
		"of every provider":       {[]UnitRule{{Units: []string{"else.service"}}}, Units{Provider: "p"}, false, false},
		"of another provider":     {[]UnitRule{{Provider: "q", Units: []string{"else.service"}}}, Units{Provider: "p"}, in, false},
		"the key's":               {nil, Units{Provider: "p", Key: []string{mine}}, in, false},
		"another key's":           {nil, Units{Provider: "p", Key: []string{"else.service"}}, false, false},
		"the rules', not the key": {[]UnitRule{{Provider: "p", Units: []string{mine}}}, Units{Provider: "p", Key: []string{"else.service"}}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			g, w := New(caller.New(), nil), newWay()
			a := open(t, g, who, w)
			unknown := open(t, g, unseen, w)
			w.units = c.units
			g.SetUnitRules(c.rules, nil)
			g.Lost(numbers[2])
			check(t, a, who, c.in)
			check(t, unknown, unseen, c.all)
			for _, g := range []*Gate{g, New(caller.New(), nil)} { // with losses and without
				g.SetUnitRules(c.rules, nil)
				_, err := g.Open(t.Context(), who, w, ReadWrite, c.units)
				wantDenied(t, err, !c.in)
				_, err = g.Open(t.Context(), unseen, w, ReadWrite, c.units)
				wantDenied(t, err, !c.all)
				wantDenied(t, g.Admit(who, c.units), !c.in)
			}
			// a slot is entered by its unit too
			if err := a.Enter(t.Context(), who); (err == nil) != c.in {
				t.Errorf("entered: %v", err)
			}
		})
	}
}

// TestRulesThatTakeNothing: a provider loses rights where some unit may no longer use it, and not where more may.
func TestRulesThatTakeNothing(t *testing.T) {
	t.Parallel()
	one, two := []UnitRule{{Provider: "p", Units: []string{"one.service"}}}, []UnitRule{{Provider: "p", Units: []string{"one.service", "two.service"}}}
	all := []UnitRule{{Units: []string{"one.service"}}}
	other := []UnitRule{{Provider: "q", Units: []string{"one.service"}}}
	for name, c := range map[string]struct {
		before, after []UnitRule
		lost          bool
	}{
		"the same": {one, one, false}, "one more": {one, two, false}, "one less": {two, one, true}, "of every provider": {one, all, false},
		"none for it": {one, other, false}, "the first for it": {other, one, true}, "the first of all": {nil, other, true}, "no authenticator": {one, nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			g := New(caller.New(), c.before)
			g.SetUnitRules(c.after, map[string]uint64{"p": 7})
			if lost, _ := g.since(0, [Steps]uint64{0: 7}); lost != c.lost {
				t.Errorf("lost: %v", lost)
			}
		})
	}
}

// TestLossBeforeCheck: whoever lost a right before they call is never let through, whatever happens beside it.
func TestLossBeforeCheck(t *testing.T) {
	t.Parallel()
	g, w := New(caller.New(), nil), newWay()
	who := user(t, 2003)
	rounds := 300
	if os.Getenv("PARSECFS_TEST_LONG") == "1" {
		rounds *= 100
	}
	var stop atomic.Bool
	var beside, all sync.WaitGroup
	beside.Go(func() {
		for ino := uint64(100); !stop.Load(); ino++ {
			g.Lost(ino % 300)
			runtime.Gosched()
		}
	})
	open, shut := RightsOf(0, 0, 0666, nil), RightsOf(0, 0, 0600, nil)
	for range rounds {
		w.set(Steps-1, open)
		a, err := g.Open(t.Context(), who, w, ReadWrite, Units{})
		if err != nil {
			t.Fatal(err)
		}
		var lost atomic.Bool
		for range 3 {
			all.Go(func() {
				for range 20 {
					before := lost.Load()
					if err := a.Check(t.Context(), who); before && err == nil {
						t.Error("an access was good after its loss")
					}
					before = lost.Load()
					if late, err := g.Open(t.Context(), who, w, ReadWrite, Units{}); err == nil {
						if before {
							t.Error("an open was let through after its loss")
						}
						if before = lost.Load(); before && late.Check(t.Context(), who) == nil {
							t.Error("an access that was made before its loss was good after it")
						}
					}
				}
			})
		}
		all.Go(func() {
			w.set(Steps-1, shut)
			g.Lost(numbers[Steps-1])
			lost.Store(true)
		})
		all.Wait()
		if err := a.Check(t.Context(), who); err == nil {
			t.Error("an access was good at the end")
		}
	}
	stop.Store(true)
	beside.Wait()
}
