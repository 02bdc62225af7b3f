package caller

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// kernels are Procs as they are on this kernel, and as on older ones.
func kernels() map[string]*Procs {
	all := map[string]*Procs{"today's": New(), "without pidfs": {}}
	if p := New(); p.info {
		p.info = false
		all["without PIDFD_GET_INFO"] = p
	}
	return all
}

// own is this thread, which the test holds.
func own(t *testing.T) Caller {
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	return Caller{uint32(os.Geteuid()), uint32(os.Getegid()), uint32(syscall.Gettid())}
}

// child is a program that runs until the test ends, once it has said that it does.
type child struct {
	*exec.Cmd
	t     *testing.T
	in    io.WriteCloser
	words []string // its first line
}

func start(t *testing.T, name string, args ...string) *child {
	t.Helper()
	c := &child{Cmd: exec.Command(name, args...), t: t}
	c.Stderr = os.Stderr
	var err error
	if c.in, err = c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.end)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("%v said nothing: %v", c.Args, err)
	}
	c.words = strings.Fields(line)
	return c
}

func (c *child) end() {
	_ = c.in.Close()
	_ = c.Process.Kill()
	_ = c.Wait()
}

// pid is a number that it said.
func (c *child) pid(i int) uint32 {
	n, err := strconv.ParseUint(c.words[i], 10, 32)
	if err != nil {
		c.t.Fatal(err)
	}
	return uint32(n)
}

func pids(l *Lineage) []uint32 {
	var all []uint32
	for _, p := range l.Chain {
		all = append(all, p.PID)
	}
	return all
}

func TestOwnThread(t *testing.T) {
	t.Parallel()
	c := own(t)
	for kernel, p := range kernels() {
		l := p.Lineage(c)
		self, ok := l.Self()
		if !ok || self.PID != uint32(os.Getpid()) || !p.Alive(c, self) || l.Threads < 2 || l.At(self) != 0 {
			t.Errorf("%s: %+v", kernel, l)
		}
		if want := uint32(os.Getppid()); want > 1 && (len(l.Chain) < 2 || l.Chain[1].PID != want) {
			t.Errorf("%s: the parent %d is none in %+v", kernel, want, l)
		}
		if len(l.Births) != len(l.Chain) || l.Births[0] == 0 || l.Births[0] > Now().Tick || !slices.IsSortedFunc(l.Births, func(a, b uint64) int { return int(int64(b - a)) }) {
			t.Errorf("%s: births %v of %v", kernel, l.Births, l.Chain)
		}
		if w := p.Writer(c); !slices.Equal(w.Chain, l.Chain) {
			t.Errorf("%s: as a writer %+v, as a reader %+v", kernel, w, l)
		}
		if dying, seen := p.Dying(c); dying || !seen {
			t.Errorf("%s: a thread without pending signals is said to die", kernel)
		}
		if killed, busy := p.Killed(c); killed || busy {
			t.Errorf("%s: a living thread is said to be killed", kernel)
		}
		exe, err := os.Executable()
		if got := p.Program(c); err != nil || got.Exe != exe || got.PID != uint32(os.Getpid()) || got != p.Program(c) {
			t.Errorf("%s: %+v, not %s: %v", kernel, got, exe, err)
		}
		if i, err := p.Identity(c); err != nil || i.UID != c.UID || i.Groups[0] != c.GID {
			t.Errorf("%s: %+v, %v", kernel, i, err)
		}
	}
}

// TestUnknownCallers: who cannot be told is nobody.
func TestUnknownCallers(t *testing.T) {
	t.Parallel()
	c := own(t)
	gone := start(t, "sh", "-c", "echo; exec cat")
	gone.end()
	for kernel, p := range kernels() {
		for what, who := range map[string]Caller{
			"in another pid namespace": {c.UID, c.GID, 0},
			"with another uid":         {c.UID + 1, c.GID, c.TID},
			"with another gid":         {c.UID, c.GID + 1, c.TID},
			"that is gone":             {c.UID, c.GID, uint32(gone.Process.Pid)},
		} {
			if i, err := p.Identity(who); err == nil {
				t.Errorf("%s: a thread %s is %+v", kernel, what, i)
			}
			if unit, err := p.Unit(who); err == nil {
				t.Errorf("%s: a thread %s runs in %q", kernel, what, unit)
			}
			if l := p.Lineage(who); len(l.Chain) != 0 {
				t.Errorf("%s: a thread %s has a lineage %+v", kernel, what, l)
			}
			if got := p.Program(who); got != (Program{}) {
				t.Errorf("%s: a thread %s runs %+v", kernel, what, got)
			}
		}
		if _, err := p.Identity(Caller{c.UID + 1, c.GID, c.TID}); !errors.Is(err, errOther) {
			t.Errorf("%s: %v", kernel, err)
		}
	}
}

func TestLineageOfShells(t *testing.T) {
	t.Parallel()
	c := own(t)
	// a shell, a subshell of it, and cat, which is the last of the three to begin
	before := Now()
	shell := start(t, "sh", "-c", `(sh -c 'echo $1 $PPID $$; read x' x $$; :) 2> /dev/null; :`)
	chain := []uint32{shell.pid(2), shell.pid(1), shell.pid(0), uint32(os.Getpid())}
	cat := Caller{c.UID, c.GID, shell.pid(2)}
	after := Now()
	for kernel, p := range kernels() {
		l := p.Lineage(cat)
		if got := pids(l); len(got) < len(chain) || !slices.Equal(got[:len(chain)], chain) || l.Threads != 1 {
			t.Fatalf("%s: the lineage is %v, want %v and ours", kernel, got, chain)
		}
		if !l.BornAfter(3, before) || l.BornAfter(4, before) || l.BornAfter(1, after) || !l.BornAfter(0, after) {
			t.Errorf("%s: born %v, the shells between %v and %v", kernel, l.Births, before, after)
		}
		mine := p.Lineage(c)
		if self, _ := mine.Self(); l.At(self) != 3 {
			t.Errorf("%s: we are at %d of %+v", kernel, l.At(self), l)
		}
		if mine.At(l.Chain[0]) != -1 {
			t.Errorf("%s: a child is said to be an ancestor", kernel)
		}
		other := l.Chain[0]
		other.ID++
		if l.At(other) != -1 || p.Alive(c, other) || !p.Alive(c, l.Chain[0]) {
			t.Errorf("%s: another process under the pid %d is taken for it", kernel, other.PID)
		}
		if w := p.Writer(cat); !slices.Equal(w.Chain, l.Chain) || p.pidfs && (len(w.Births) != 0 || w.BornAfter(1, before)) {
			t.Errorf("%s: as a writer %+v", kernel, w)
		}
	}
	// the subshell ends, and what it began has another parent
	gone := map[string]Process{}
	all := kernels()
	for kernel, p := range all {
		gone[kernel] = p.Lineage(cat).Chain[1]
	}
	end, err := os.FindProcess(int(shell.pid(1)))
	if err != nil {
		t.Fatal(err)
	}
	if err := end.Kill(); err != nil {
		t.Fatal(err)
	}
	// the shell reaps it, and then ends too: nobody but init is left above cat
	waitForExit(t, shell.Process.Pid)
	for kernel, p := range all {
		l := p.Lineage(cat)
		if p.Alive(c, gone[kernel]) || l.At(gone[kernel]) != -1 || len(l.Chain) == 0 || l.Chain[0].PID != shell.pid(2) {
			t.Errorf("%s: the process %v ended, and %+v is left", kernel, gone[kernel], l)
		}
	}
}

// TestZombie: a process that has exited is not alive before its parent asks for its end.
func TestZombie(t *testing.T) {
	t.Parallel()
	c := own(t)
	z := start(t, "sh", "-c", "echo; read x")
	for kernel, p := range kernels() {
		one := p.Lineage(Caller{c.UID, c.GID, uint32(z.Process.Pid)})
		if self, ok := one.Self(); !ok || !p.Alive(c, self) {
			t.Fatalf("%s: %+v", kernel, one)
		}
	}
	all := map[*Procs]Process{}
	for _, p := range kernels() {
		all[p], _ = p.Lineage(Caller{c.UID, c.GID, uint32(z.Process.Pid)}).Self()
	}
	if err := z.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	waitForExit(t, z.Process.Pid)
	for p, self := range all {
		if p.Alive(c, self) {
			t.Errorf("pidfs %t: %v is alive", p.pidfs, self)
		}
	}
}

// TestWithoutFirstThread: a process whose first thread has exited lives on, and has a lineage.
func TestWithoutFirstThread(t *testing.T) {
	t.Parallel()
	c := own(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	one := start(t, "env", leaderless+"=1", exe)
	pid := uint32(one.Process.Pid)
	for {
		s, k := New().stat(&looks{}, c.UID, pid)
		if k != present {
			t.Fatal("it is gone")
		}
		if s.state == 'Z' {
			break
		}
		time.Sleep(time.Millisecond)
	}
	for kernel, p := range kernels() {
		l := p.Lineage(Caller{c.UID, c.GID, one.pid(0)})
		if self, ok := l.Self(); !ok || self.PID != pid || !p.Alive(c, self) || l.Threads < 2 || len(l.Births) != len(l.Chain) || l.Chain[1].PID != uint32(os.Getpid()) {
			t.Errorf("%s: %+v", kernel, l)
		}
	}
}

// TestDeepLineage: a lineage longer than anybody is looked up to is unknown, and no shorter one.
func TestDeepLineage(t *testing.T) {
	t.Parallel()
	c := own(t)
	mine := len(New().Lineage(c).Chain)
	deep := start(t, "sh", "-c", `f() { if [ "$1" = 0 ]; then sh -c 'echo $PPID; read x'; else (f $(($1 - 1)); :); fi; :; }; f `+strconv.Itoa(ancestorsMost-mine-1))
	at := deep.pid(0)
	for kernel, p := range kernels() {
		if l := p.Lineage(Caller{c.UID, c.GID, at}); len(l.Chain) != ancestorsMost {
			t.Errorf("%s: %d ancestors, want %d", kernel, len(l.Chain), ancestorsMost)
		}
		children, err := os.ReadFile("/proc/" + deep.words[0] + "/task/" + deep.words[0] + "/children")
		if err != nil {
			t.Fatal(err)
		}
		child, err := strconv.ParseUint(strings.TrimSpace(string(children)), 10, 32)
		if err != nil {
			t.Fatal(err)
		}
		if l := p.Lineage(Caller{c.UID, c.GID, uint32(child)}); len(l.Chain) != 0 {
			t.Errorf("%s: the child of the last has %d ancestors", kernel, len(l.Chain))
		}
	}
}

func TestIdentities(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("being other users needs root")
	}
	p := New()
	many := make([]string, 2000)
	for i := range many {
		many[i] = strconv.Itoa(100000 + i)
	}
	user := start(t, "setpriv", "--reuid=2001", "--regid=2002", "--groups="+strings.Join(many, ","), "sh", "-c", "echo; exec cat")
	i, err := p.Identity(Caller{2001, 2002, uint32(user.Process.Pid)})
	if err != nil || i.UID != 2001 || len(i.Groups) != 2001 || i.Groups[0] != 2002 || i.Groups[1] != 100000 || i.Groups[2000] != 101999 {
		t.Fatalf("%d of %d groups, %v", i.UID, len(i.Groups), err)
	}
	if i.Overrides(2001, 2002) || i.Reads(2001, 2002) {
		t.Error("a user without capabilities overrides permissions")
	}
	root := start(t, "sh", "-c", "echo; exec cat")
	if i, err := p.Identity(Caller{0, uint32(os.Getegid()), uint32(root.Process.Pid)}); err != nil || !i.Overrides(2001, 7) || !i.Reads(0, 0) {
		t.Errorf("root is %+v, %v", i, err)
	}
	reader := start(t, "setpriv", "--reuid=2001", "--regid=2001", "--clear-groups", "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", "sh", "-c", "echo; exec cat")
	if i, err := p.Identity(Caller{2001, 2001, uint32(reader.Process.Pid)}); err != nil || i.Overrides(2001, 2001) || !i.Reads(5, 5) {
		t.Errorf("who has CAP_DAC_READ_SEARCH alone is %+v, %v", i, err)
	}
}

// TestIdentityInNamespace: root of a user namespace of its own has every capability there, and there alone.
func TestIdentityInNamespace(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("being other users needs root")
	}
	as := []string{"--reuid=2001", "--regid=2001", "--clear-groups", "unshare", "--user", "--map-root-user"}
	if out, err := exec.Command("setpriv", append(as, "true")...).CombinedOutput(); err != nil {
		t.Skipf("user namespaces cannot be made here: %v: %s", err, out)
	}
	inside := start(t, "setpriv", append(as, "sh", "-c", "echo; exec cat")...)
	i, err := New().Identity(Caller{2001, 2001, uint32(inside.Process.Pid)})
	if err != nil || i.UID != 2001 || !i.Overrides(2001, 2001) || !i.Reads(2001, 2001) {
		t.Errorf("root of a namespace is %+v, %v", i, err)
	}
	for _, other := range [][2]uint32{{0, 0}, {2002, 2001}, {2001, 2002}, {2001, 0}} {
		if i.Overrides(other[0], other[1]) || i.Reads(other[0], other[1]) {
			t.Errorf("root of a namespace of uid 2001's overrides what is %v's", other)
		}
	}
}
