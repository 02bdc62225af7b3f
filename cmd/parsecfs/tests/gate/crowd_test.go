package gate

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// deaf is a file of the attacker's own file system, whose FLUSH is answered when the test says.
type deaf struct {
	fs.Inode
	begun chan struct{} // a FLUSH came
	end   chan struct{}
}

func (f *deaf) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return f, fuse.FOPEN_DIRECT_IO, 0
}

func (f *deaf) Flush(context.Context) syscall.Errno {
	f.begun <- struct{}{}
	<-f.end
	return 0
}

// hanging mounts it.
func hanging(t *testing.T, f *deaf) (path string) {
	t.Helper()
	dir := filepath.Join(parsecfstest.TempDir(t), "deaf")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	top := &fs.Inode{}
	server, err := fs.Mount(dir, top, &fs.Options{
		MountOptions: fuse.MountOptions{AllowOther: true, DirectMountStrict: true},
		OnAdd: func(ctx context.Context) {
			top.AddChild("file", top.NewPersistentInode(ctx, f, fs.StableAttr{Mode: syscall.S_IFREG | 0o444}), true)
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "file")
}

// threads of a process, as the kernel counts them.
func threads(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "\nThreads:")
	line, _, _ := strings.Cut(rest, "\n")
	n, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// looks are the files of /proc that a process has open.
func looks(pid int) (n int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && strings.HasPrefix(to, "/proc/") {
			n++
		}
	}
	return n
}

// TestCrowdBelowAnExec lets a user with no right to anything open a file that is everybody's, from a thousand threads whose
// ancestors stay in execve(2) for as long as they like: whoever looks at those in /proc hangs with them. It runs alone, since
// it takes the processors from all others.
func TestCrowdBelowAnExec(t *testing.T) {
	for _, c := range []struct{ ancestors, children, threads int }{{1, 10, 100}, {200, 1, 5}} {
		t.Run(fmt.Sprintf("%d ancestors", c.ancestors), func(t *testing.T) { crowd(t, c.ancestors, c.children, c.threads) })
	}
}

func crowd(t *testing.T, ancestors, children, perChild int) {
	const most = 200 // threads, where each look that hangs would take one
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	o := newUser(t, maker)
	o.must("os.mkdir(%q)", key)
	o.must("put(%q, 'ecdsa-p256-sha256\\n')", key+"/generate")
	// somebody whose group must be looked up at each READ, and who is let in
	root(t, "sh", "-euc", `chgrp 62002 "$1" && chmod 660 "$1"`, "sh", key+"/sign")
	program := filepath.Join(parsecfstest.TempDir(t), "attack")
	root(t, "gcc", "-O1", "-pthread", "-o", program, "testdata/attack.c")
	f := &deaf{begun: make(chan struct{}, ancestors), end: make(chan struct{})}
	file := hanging(t, f)
	answer := sync.OnceFunc(func() { close(f.end) })
	t.Cleanup(answer)
	before := threads(t, m.Process().Pid)

	seconds := 10
	if parsecfstest.Long() {
		seconds = 60
	}
	argv := []string{"--reuid=61003", "--regid=61003", "--clear-groups", program, file, m.Dir + "/providers/software/hash/sha256"}
	for _, n := range []int{seconds, ancestors, children, perChild} {
		argv = append(argv, strconv.Itoa(n))
	}
	// A session of its own, as a login has it, between which the kernel shares the processors (sched(7), autogroups); else a
	// thousand threads take them from the daemon and from the others without its doing anything.
	attack := exec.Command("setsid", append([]string{"-w", "nice", "-n", "19", "setpriv"}, argv...)...)
	var said bytes.Buffer
	attack.Stdout, attack.Stderr = &said, &said // whose end is that of the last child
	begin, err := attack.StdinPipe()
	if err == nil {
		err = attack.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	for n := range ancestors {
		select {
		case <-f.begun:
		case <-time.After(time.Minute):
			t.Fatalf("%d of %d ancestors hang in execve(2)", n, ancestors)
		}
	}
	begin.Close()
	var others []*signer
	for _, gid := range []int{maker, group} {
		others = append(others, startSigner(t, gid, key+"/sign"))
	}
	over := time.After(time.Duration(seconds) * time.Second)
	look := time.NewTicker(100 * time.Millisecond)
	defer look.Stop()
	worst := 0
watching:
	for {
		select {
		case <-over:
			break watching
		case <-m.Done():
			t.Error("the daemon has ended")
			break watching
		case <-look.C:
			worst = max(worst, threads(t, m.Process().Pid))
		}
	}
	for _, s := range others {
		s.stop(t)
	}
	answer()
	left := make(chan error, 1)
	go func() { left <- attack.Wait() }()
	select {
	case err := <-left:
		if err != nil {
			t.Errorf("the crowd: %v: %s", err, said.String())
		}
	case <-time.After(2 * time.Minute):
		t.Fatal("somebody of the crowd still waits for the daemon")
	}
	t.Logf("threads: %d before, %d at most", before, worst)
	if worst >= most {
		t.Errorf("the daemon had %d threads, %d before", worst, before)
	}
	for end := time.Now().Add(time.Minute); looks(m.Process().Pid) > 0; <-look.C {
		if time.Now().After(end) {
			t.Fatalf("%d looks into /proc have not ended", looks(m.Process().Pid))
		}
	}
	// Nobody is kept out afterwards.
	newUser(t, attacker).want("ok", "signs(%q)", m.Dir+"/providers/software/hash/sha256")
}

// signer is another user, who signs meanwhile.
type signer struct {
	cmd            *exec.Cmd
	in             io.Closer
	told, complain bytes.Buffer
}

func startSigner(t *testing.T, gid int, sign string) *signer {
	t.Helper()
	uid := maker
	if gid != maker {
		uid = heir
	}
	s := &signer{cmd: exec.Command("/usr/bin/python3", "-B", "testdata/signer.py", strconv.Itoa(uid), strconv.Itoa(gid), sign)}
	s.cmd.Stdout, s.cmd.Stderr = &s.told, &s.complain
	in, err := s.cmd.StdinPipe()
	if err == nil {
		err = s.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.in = in
	return s
}

// stop ends it, and tells how it went.
func (s *signer) stop(t *testing.T) {
	t.Helper()
	s.in.Close()
	if err := s.cmd.Wait(); err != nil {
		t.Errorf("another user signs: %v: %s", err, s.complain.String())
		return
	}
	var uid, count, milliseconds int
	if _, err := fmt.Sscan(s.told.String(), &uid, &count, &milliseconds); err != nil {
		t.Errorf("another user signs: %q", s.told.String())
		return
	}
	t.Logf("user %d: %d signatures, the longest took %d ms", uid, count, milliseconds)
	if parsecfstest.Long() && milliseconds >= 1000 {
		t.Errorf("user %d waited %d ms for a signature", uid, milliseconds)
	}
}
