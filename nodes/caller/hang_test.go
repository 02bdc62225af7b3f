package caller

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// server is a file system whose files do not answer before the test lets them: <n> waits at FLUSH, <n>r at READ.
type server struct {
	t       *testing.T
	dir     string
	asked   chan asked
	free    chan struct{}
	lets    atomic.Bool // it answers at once for now
	release func()
}

// asked is a request that waits.
type asked struct {
	by  Caller
	how string
}

type served struct {
	fs.Inode
	s *server
}

var (
	_ = (fs.NodeLookuper)((*served)(nil))
	_ = (fs.NodeOpener)((*served)(nil))
	_ = (fs.NodeGetattrer)((*served)(nil))
	_ = (fs.NodeSetattrer)((*served)(nil))
	_ = (fs.FileFlusher)((*opened)(nil))
	_ = (fs.FileReader)((*opened)(nil))
)

func (n *served) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	out.Mode = syscall.S_IFREG | 0666
	return n.NewInode(ctx, &served{s: n.s}, fs.StableAttr{Mode: syscall.S_IFREG}), 0
}

func (n *served) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0666
	if n.IsDir() {
		out.Mode = 0777
	}
	return 0
}

// Setattr is for O_TRUNC.
func (n *served) Setattr(ctx context.Context, f fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	return n.Getattr(ctx, f, out)
}

func (n *served) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return &opened{n.s}, fuse.FOPEN_DIRECT_IO, 0
}

type opened struct{ s *server }

func (o *opened) Flush(ctx context.Context) syscall.Errno { return o.wait(ctx, "flush", nil) }

func (o *opened) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	return fuse.ReadResultData(nil), o.wait(ctx, "read", ctx.Done())
}

// wait tells the test of a request, and where interrupted is not nil also when it was interrupted, and holds it.
func (o *opened) wait(ctx context.Context, how string, interrupted <-chan struct{}) syscall.Errno {
	if o.s.lets.Load() {
		return 0
	}
	c, _ := fuse.FromContext(ctx)
	if interrupted != nil {
		select {
		case o.s.asked <- asked{Caller{c.Uid, c.Gid, c.Pid}, "begun"}:
		case <-o.s.free:
		}
		select {
		case <-interrupted:
		case <-o.s.free:
		}
	}
	select {
	case o.s.asked <- asked{Caller{c.Uid, c.Gid, c.Pid}, how}:
	case <-o.s.free:
	}
	<-o.s.free
	return 0
}

func serve(t *testing.T) *server {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting here needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no FUSE here")
	}
	dir, err := os.MkdirTemp("", "parsecfs-caller-")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{t: t, dir: dir, asked: make(chan asked), free: make(chan struct{})}
	s.release = sync.OnceFunc(func() { close(s.free) })
	// go-fuse opens a file of the mount for a moment, which no child that another test begins now may inherit
	syscall.ForkLock.RLock()
	m, err := fs.Mount(dir, &served{s: s}, &fs.Options{MountOptions: fuse.MountOptions{
		AllowOther: true, FsName: "parsecfs-caller", Name: "test", DirectMountStrict: true}})
	syscall.ForkLock.RUnlock()
	if err != nil {
		_ = os.Remove(dir)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.release()
		if err := m.Unmount(); err != nil {
			t.Error(err)
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	return s
}

// next is the next request that waits.
func (s *server) next(how string) Caller {
	s.t.Helper()
	a := <-s.asked
	if a.how != how {
		s.t.Fatalf("a %s came, not a %s", a.how, how)
	}
	return a.by
}

const leaderless = "PARSECFS_CALLER_TEST_LEADERLESS"

func init() {
	if os.Getenv(leaderless) != "" {
		runtime.LockOSThread() // so that TestMain runs on the first thread
	}
}

// TestMain is also two programs. One is held in execve(2): it begins a child, says both pids, and once it is told so becomes
// another program with a descriptor of a file that answers no FLUSH. The other goes on without its first thread.
func TestMain(m *testing.M) {
	if os.Getenv(leaderless) != "" {
		go func() {
			runtime.LockOSThread()
			fmt.Println(unix.Gettid())
			_, _ = os.Stdin.Read(make([]byte, 1))
			os.Exit(0)
		}()
		_, _, _ = syscall.Syscall(syscall.SYS_EXIT, 0, 0, 0) // gives its processor back, a raw one would not
	}
	file := os.Getenv("PARSECFS_CALLER_TEST_EXEC")
	if file == "" {
		os.Exit(m.Run())
	}
	if err := becomeAnother(file, os.Getenv("PARSECFS_CALLER_TEST_UID")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func becomeAnother(file, user string) error {
	uid, err := strconv.Atoi(user)
	if err != nil {
		return err
	}
	if err := errors.Join(syscall.Setgroups(nil), syscall.Setgid(uid), syscall.Setuid(uid)); err != nil {
		return err
	}
	cmd := exec.Command("sh", "-c", "read x; exec cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	fmt.Println(os.Getpid(), cmd.Process.Pid)
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		return err
	}
	// only now, so that the child has none
	if _, err := unix.Open(file, unix.O_WRONLY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	defer in.Close()
	return syscall.Exec("/bin/cat", []string{"cat"}, os.Environ())
}

// holder is a process that is held in execve(2), with a child.
type holder struct {
	*child
	pid, below uint32
}

func (s *server) holder(uid uint32) *holder {
	s.t.Helper()
	exe, err := os.Executable()
	if err != nil {
		s.t.Fatal(err)
	}
	h := &holder{child: start(s.t, "env", "PARSECFS_CALLER_TEST_EXEC="+filepath.Join(s.dir, "hangs"), fmt.Sprint("PARSECFS_CALLER_TEST_UID=", uid), exe)}
	h.pid, h.below = h.child.pid(0), h.child.pid(1)
	s.t.Cleanup(func() {
		s.release()
		_ = syscall.Kill(int(h.below), syscall.SIGKILL)
	})
	return h
}

// hold lets it begin its execve(2), and comes back once that hangs.
func (s *server) hold(h *holder) {
	s.t.Helper()
	if _, err := h.in.Write([]byte("x")); err != nil {
		s.t.Fatal(err)
	}
	if by := s.next("flush"); by.TID != h.pid {
		s.t.Fatalf("%d waits, not %d", by.TID, h.pid)
	}
}

// waitForExit waits until a child has exited, and leaves it a zombie.
func waitForExit(t *testing.T, pid int) {
	t.Helper()
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err == nil {
			return
		}
		if err != unix.EINTR {
			t.Fatal(err)
		}
	}
}

// sleepers counts our threads that cannot be woken.
func sleepers(t *testing.T) int {
	t.Helper()
	threads, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, one := range threads {
		if b, err := os.ReadFile("/proc/self/task/" + one.Name() + "/status"); err == nil && strings.Contains(string(b), "\nState:\tD") {
			n++
		}
	}
	return n
}

// TestHeldInExec: a process that stays in execve(2) takes no thread of ours, and what can be known of its children is.
func TestHeldInExec(t *testing.T) {
	s := serve(t)
	p := New()
	if !p.pidfs {
		t.Skip("this kernel has no pidfds that name processes: TestLooksThatHang has what is left")
	}
	before := Now()
	h, innocent := s.holder(2001), s.holder(2002)
	old := &Procs{}
	known := p.Lineage(Caller{2001, 2001, h.below}) // its births are remembered
	fresh := New()
	s.hold(h)
	below := Caller{2001, 2001, h.below}
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() {
			l := fresh.Lineage(below)
			if len(l.Chain) != len(known.Chain) || l.Chain[0] != known.Chain[0] || l.Chain[1].PID != h.pid || l.Chain[1] != known.Chain[1] {
				t.Errorf("the lineage is %+v, and was %+v", l, known)
			}
			if !l.BornAfter(1, before) || l.BornAfter(2, before) {
				t.Errorf("births %v: the child's must be known, the parent's not", l.Births)
			}
			if !fresh.Alive(below, l.Chain[1]) {
				t.Error("who is in execve(2) is not alive")
			}
			if killed, busy := fresh.Killed(Caller{2001, 2001, h.pid}); killed || !busy {
				t.Errorf("who is in execve(2): killed %t, busy %t", killed, busy)
			}
			if got := fresh.Program(Caller{2001, 2001, h.pid}); got.PID != h.pid || got.Exe != "" {
				t.Errorf("who is in execve(2) runs %+v", got)
			}
			if i, err := fresh.Identity(Caller{2001, 2001, h.pid}); err != nil || i.UID != 2001 {
				t.Errorf("who is in execve(2) is %+v, %v", i, err)
			}
			if l := old.Lineage(below); len(l.Chain) != 0 {
				t.Errorf("without pidfs the lineage is not wholly known, and is %+v", l)
			}
			if w := fresh.Writer(below); len(w.Chain) != len(known.Chain) {
				t.Errorf("as a writer %+v", w)
			}
			if l := fresh.Lineage(Caller{2002, 2002, innocent.below}); len(l.Births) < 2 || !l.BornAfter(2, before) {
				t.Errorf("another user's lineage is %+v", l)
			}
		})
	}
	all.Wait()
	if n := sleepers(t); n != 0 {
		t.Errorf("%d threads hang", n)
	}
	if l := p.Lineage(below); !l.BornAfter(2, before) {
		t.Errorf("births that were known are not any more: %+v", l)
	}
	s.release()
	for !fresh.Lineage(below).BornAfter(2, before) { // the process becomes the other program
		time.Sleep(time.Millisecond)
	}
}

// TestLooksThatHang: looks at processes that stay in execve(2) after all are bounded, for each user and over all, nobody
// waits for one that hangs, and the others look on.
func TestLooksThatHang(t *testing.T) {
	s := serve(t)
	var holders []*holder
	for range looksMost + 1 {
		holders = append(holders, s.holder(2001))
	}
	for _, h := range holders {
		s.hold(h)
	}
	looks := &looks{}
	see := func(uid, pid uint32) bool {
		return looks.see(uid, pid, func() { _, _ = os.ReadFile(procPath(pid, "stat")) })
	}
	uid := func(i int) uint32 { return uint32(3000 + i/looksEach) }
	var all sync.WaitGroup
	for i, h := range holders[:looksMost] {
		all.Go(func() {
			if see(uid(i), h.pid) {
				t.Errorf("%d is in execve(2) and said how it is", h.pid)
			}
		})
		if i == looksEach-1 {
			all.Wait()
			// this user's places hang, and nobody else's
			if l := looks.begin(uid(0), uint32(os.Getpid()), nil); l != nil {
				t.Error("a user has one place more")
			}
			if !see(4000, uint32(os.Getpid())) {
				t.Error("a user's looks that hang are in another's way")
			}
			// who asks for a process that lets a thread hang is told at once; nil never comes
			if l := looks.begin(4000, h.pid, nil); l != nil {
				t.Error("a process is looked at twice")
			}
		}
	}
	all.Wait()
	if l := looks.begin(4000, uint32(os.Getpid()), nil); l != nil {
		t.Error("there is one place more")
	}
	for range 1000 {
		all.Go(func() {
			if see(2001, holders[looksMost].pid) {
				t.Error("there is one place more")
			}
		})
	}
	all.Wait()
	if n := sleepers(t); n != looksMost {
		t.Errorf("%d threads hang, want %d", n, looksMost)
	}
	hanging := holders[0]
	looks.mu.Lock()
	back := looks.at[hanging.pid].done
	looks.mu.Unlock()
	s.release()
	<-back
	for !see(4000, hanging.pid) { // others may hang yet
		time.Sleep(time.Millisecond)
	}
	for len(looks.places()) != 0 {
		time.Sleep(time.Millisecond)
	}
	if looks.count != 0 || looks.hung != 0 || len(looks.users) != 0 {
		t.Errorf("%d looks, %d that hang, %d users are left", looks.count, looks.hung, len(looks.users))
	}
}

// places are the processes that are looked at.
func (t *looks) places() []uint32 {
	t.mu.Lock()
	defer t.mu.Unlock()
	var all []uint32
	for pid := range t.at {
		all = append(all, pid)
	}
	return all
}

// TestLooksInTurn: quick looks wait for each other, and none is refused.
func TestLooksInTurn(t *testing.T) {
	t.Parallel()
	looks := &looks{}
	var all sync.WaitGroup
	var mu sync.Mutex
	most, now, same := 0, 0, map[uint32]int{}
	for i := range 600 {
		uid, pid := uint32(i%20), uint32(i%7+1)
		all.Go(func() {
			if !looks.see(uid, pid, func() {
				mu.Lock()
				now++
				same[pid]++
				most = max(most, now)
				if same[pid] > 1 {
					t.Errorf("%d is looked at twice", pid)
				}
				mu.Unlock()
				_, _ = os.ReadFile("/proc/self/stat")
				mu.Lock()
				now--
				same[pid]--
				mu.Unlock()
			}) {
				t.Errorf("uid %d was refused", uid)
			}
		})
	}
	all.Wait()
	if most > looksMost {
		t.Errorf("%d looks at a time", most)
	}
	for len(looks.places()) != 0 {
		time.Sleep(time.Millisecond)
	}
	if looks.count != 0 || len(looks.users) != 0 {
		t.Errorf("%d looks and %d users are left", looks.count, len(looks.users))
	}
}

// TestWhyFilesAreClosed: killed in the middle, by the end of the program, by close(2), or by what becomes another program.
func TestWhyFilesAreClosed(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		script       string
		killed, busy bool
	}{
		{`exec 3> "$1"; echo; read x; exit 0`, false, false},
		{`exec 3> "$1"; echo; read x; exec 3>&-; read x`, false, false},
		{`exec 3> "$1"; echo; read x; kill -9 $$`, true, false},
		{`exec 3> "$1"; echo; read x; kill -15 $$; read x`, true, false},
		{`exec 3> "$1"; echo; read x; kill -SEGV $$; read x`, true, false},
	} {
		s := serve(t)
		s.lets.Store(true) // dash closes what it dups
		sh := start(t, "sh", "-c", c.script, "sh", filepath.Join(s.dir, "x"))
		t.Cleanup(s.release)
		s.lets.Store(false)
		if _, err := sh.in.Write([]byte("x\n")); err != nil {
			t.Fatal(err)
		}
		by := s.next("flush")
		for kernel, p := range kernels() {
			if killed, busy := p.Killed(by); killed != c.killed || busy != c.busy {
				t.Errorf("%s, %s: killed %t, busy %t", kernel, c.script, killed, busy)
			}
		}
		s.release()
		sh.end()
	}
	s := serve(t)
	h := s.holder(2001)
	s.hold(h)
	for kernel, p := range kernels() {
		if killed, busy := p.Killed(Caller{2001, 2001, h.pid}); killed || !busy {
			t.Errorf("%s, execve: killed %t, busy %t", kernel, killed, busy)
		}
	}
}

// TestDying: a reader is waited for, but not one that a signal will end.
func TestDying(t *testing.T) {
	t.Parallel()
	for signal, dying := range map[syscall.Signal]bool{syscall.SIGTERM: true, syscall.SIGKILL: true, syscall.SIGTSTP: false, syscall.SIGUSR1: true} {
		s := serve(t)
		cat := exec.Command("cat", filepath.Join(s.dir, "x"))
		if err := cat.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			s.release()
			_ = cat.Process.Kill()
			_ = cat.Wait()
		})
		s.next("begun")
		if err := cat.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		by := s.next("read")
		if got, seen := New().Dying(by); got != dying || !seen {
			t.Errorf("%v: dying %t, seen %t", signal, got, seen)
		}
	}
	if _, seen := New().Dying(Caller{}); seen {
		t.Error("a thread that cannot be seen is said to be seen")
	}
}
