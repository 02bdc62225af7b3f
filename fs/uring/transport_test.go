package uring

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// What 16 clients write they read again, whatever its size.
func TestEcho(t *testing.T) {
	for _, inline := range []bool{false, true} {
		t.Run(fmt.Sprintf("inline=%v", inline), func(t *testing.T) {
			m := mount(t, Options{}, inline)
			var wg sync.WaitGroup
			for client := range 16 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(1, uint64(client)))
					f, err := open(filepath.Join(m.dir, "echo"))
					if err != nil {
						t.Error(err)
						return
					}
					defer f.Close()
					sizes := []int{1, 127, 128, 4095, 4096, 4097, 8192, 65535, 65536, 65537, 200000}
					for i := range 300 {
						size := r.IntN(3000) + 1
						if i < len(sizes) {
							size = sizes[i]
						}
						data := bytes.Repeat([]byte{byte(i), byte(client)}, size)[:size]
						sum := sha256.Sum256(data)
						copy(data, sum[:])
						if _, err := f.WriteAt(data, 0); err != nil {
							t.Error(err)
							return
						}
						got := make([]byte, size)
						if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
							t.Errorf("client %d, %d bytes: %v, equal: %v", client, size, err, bytes.Equal(got, data))
							return
						}
					}
				})
			}
			wg.Wait()
		})
	}
}

// pinned runs f on a thread of its own on processor 0, as uid.
func pinned(uid int, f func()) {
	go func() {
		runtime.LockOSThread() // until it ends
		var set unix.CPUSet
		set.Set(0)
		_ = unix.SchedSetaffinity(0, &set)
		_, _, _ = syscall.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0))
		f()
	}()
}

// await waits for n values, or fails.
func await[T any](t *testing.T, from <-chan T, n int) (all []T) {
	t.Helper()
	timeout := time.After(30 * time.Second)
	for range n {
		select {
		case v := <-from:
			all = append(all, v)
		case <-timeout:
			t.Fatalf("%d of %d came", len(all), n)
		}
	}
	return all
}

// Whoever waits takes half of a processor's entries at most; the next user finds room, and what does not wait always gets through.
func TestWaiting(t *testing.T) {
	m := mount(t, Options{testOnlyDepth: 16}, false)
	crowd := func(uid int) (reads chan error) {
		opened, begin := make(chan error, 40), make(chan struct{})
		reads = make(chan error, 40)
		for range 40 {
			pinned(uid, func() {
				f, err := open(filepath.Join(m.dir, "wait"))
				for err == unix.EAGAIN {
					f, err = open(filepath.Join(m.dir, "wait"))
				}
				opened <- err
				<-begin
				if err == nil {
					defer f.Close()
					_, err = unix.Pread(int(f), make([]byte, 100), 0)
				}
				reads <- err
			})
		}
		await(t, opened, 40)
		close(begin)
		return reads
	}
	one := crowd(1)
	// 14 entries may wait: 8 of them are one's.
	for _, err := range await(t, one, 32) {
		if err != unix.EAGAIN {
			t.Errorf("too many READs: %v, not EAGAIN", err)
		}
	}
	m.root.until(t, 8, nil)
	two := crowd(2)
	await(t, two, 36)
	m.root.until(t, 12, nil)
	done := make(chan error, 1)
	pinned(3, func() {
		done <- func() error {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Join(m.dir, "echo"), &st); err != nil {
				return err
			}
			f, err := open(filepath.Join(m.dir, "echo"))
			if err != nil {
				return err
			}
			if _, err := f.WriteAt([]byte("hi"), 0); err != nil {
				return err
			}
			if _, err := f.ReadAt(make([]byte, 2), 0); err != nil {
				return err
			}
			return f.Close()
		}()
	})
	if err := await(t, done, 1)[0]; err != nil {
		t.Errorf("a third user: %v", err)
	}
	close(m.root.release)
	for _, err := range append(await(t, one, 8), await(t, two, 4)...) {
		if err != nil {
			t.Error(err)
		}
	}
	m.root.until(t, 0, nil)
}

// Whoever closes files that take long to be closed takes no more of a processor's entries than half of what may wait, and half of
// what is for that alone. Nothing stays of what those bring who find no place.
func TestWaitingToClose(t *testing.T) {
	m := mount(t, Options{testOnlyDepth: 64}, false)
	const closers = 100
	opened, begin, closed := make(chan error, closers), make(chan struct{}), make(chan error, closers)
	for range closers {
		pinned(1, func() {
			f, err := open(filepath.Join(m.dir, "flush"))
			for err == unix.EAGAIN {
				f, err = open(filepath.Join(m.dir, "flush"))
			}
			opened <- err
			<-begin
			if err == nil {
				err = f.Close()
			}
			closed <- err
		})
	}
	for _, err := range await(t, opened, closers) {
		if err != nil {
			t.Fatal(err)
		}
	}
	close(begin)
	// 56 entries may wait, of which 29 are one's, and 4 more are for FLUSHes, of which 3 are.
	for _, err := range await(t, closed, closers-32) {
		if err != unix.EAGAIN {
			t.Errorf("too many FLUSHes: %v, not EAGAIN", err)
		}
	}
	m.root.until(t, 32, nil)
	done, secret := make(chan error, 1), []byte("a secret that comes at a bad time")
	echo, err := open(filepath.Join(m.dir, "echo"))
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	pinned(1, func() {
		_, err := echo.WriteAt(secret, 0)
		done <- err
	})
	if err := await(t, done, 1)[0]; err != unix.EAGAIN {
		t.Errorf("a WRITE: %v, not EAGAIN", err)
	}
	for i := range m.t.queues[0].entries {
		e := &m.t.queues[0].entries[i]
		if bytes.Contains(e.payload, secret) {
			t.Errorf("entry %d still has what was refused", e.index)
		}
	}
	pinned(2, func() {
		var st unix.Stat_t
		done <- unix.Stat(filepath.Join(m.dir, "echo"), &st)
	})
	if err := await(t, done, 1)[0]; err != nil {
		t.Errorf("another user: %v", err)
	}
	close(m.root.release)
	for _, err := range await(t, closed, 32) {
		if err != nil {
			t.Error(err)
		}
	}
	m.root.until(t, 0, nil)
}

// Whoever asks with many threads at once for what the queue's own thread answers has another user wait for a few of those only.
func TestTurns(t *testing.T) {
	const threads, asks = 200, 20
	m := mount(t, Options{}, true)
	stop, ended := make(chan struct{}), make(chan error, threads)
	for range threads {
		pinned(1, func() {
			f, err := open(filepath.Join(m.dir, "work"))
			for err == nil {
				select {
				case <-stop:
					ended <- f.Close()
					return
				default:
					_, err = unix.Pread(int(f), make([]byte, 1), 0)
				}
			}
			ended <- err
		})
	}
	for m.root.worked.Load() < 3*threads {
		time.Sleep(time.Millisecond)
	}
	done, before := make(chan error, 1), int64(0)
	pinned(2, func() {
		before = m.root.worked.Load()
		for range asks {
			f, err := open(filepath.Join(m.dir, "echo"))
			if err == nil {
				err = f.Close()
			}
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	})
	if err := await(t, done, 1)[0]; err != nil {
		t.Error(err)
	}
	n := (m.root.worked.Load() - before) / asks
	if n > threads/2 {
		t.Errorf("another user's request waits for %d of %d", n, threads)
	}
	close(stop)
	for _, err := range await(t, ended, threads) {
		if err != nil {
			t.Error(err)
		}
	}
}

// A signal ends a READ that waits. One that comes while the kernel hands the request over is lost to it, and one that comes between
// the kernel's part and the handler's is not.
func TestInterrupt(t *testing.T) {
	m := mount(t, Options{}, false)
	began, ended := make(chan int, 1), make(chan error, 1)
	next := make(chan bool)
	defer close(next)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		f, err := open(filepath.Join(m.dir, "wait"))
		if err != nil {
			ended <- err
			return
		}
		defer f.Close()
		for range next {
			began <- unix.Gettid()
			_, err := unix.Pread(int(f), make([]byte, 10), 0)
			ended <- err
		}
	}()
	r := rand.New(rand.NewPCG(1, 1))
	lost := 0
	for i := range 200 {
		next <- true
		tid := <-began
		if i%2 == 0 {
			// Go's own signals interrupt too.
			if err, early := m.root.until(t, 1, ended); early {
				if err != unix.EINTR {
					t.Fatalf("round %d: %v, not EINTR", i, err)
				}
				continue
			}
			if err := unix.Tgkill(os.Getpid(), tid, unix.SIGURG); err != nil {
				t.Fatal(err)
			}
			if err := await(t, ended, 1)[0]; err != unix.EINTR {
				t.Fatalf("round %d: %v, not EINTR", i, err)
			}
			continue
		}
		for spin := r.IntN(20000); spin > 0; spin-- {
			runtime.KeepAlive(spin)
		}
		if err := unix.Tgkill(os.Getpid(), tid, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-ended:
			if err != unix.EINTR {
				t.Fatalf("round %d: %v, not EINTR", i, err)
			}
		case <-time.After(50 * time.Millisecond): // lost, or before READ
			lost++
			select {
			case m.root.release <- struct{}{}:
				if err := await(t, ended, 1)[0]; err != nil {
					t.Fatalf("round %d: %v", i, err)
				}
			case err := <-ended: // one of Go's own
				if err != unix.EINTR {
					t.Fatalf("round %d: %v, not EINTR", i, err)
				}
			}
		}
		m.root.until(t, 0, nil)
	}
	t.Logf("%d of 100 signals at any moment were told to nobody", lost)
}

// quiet fails if a goroutine of the package is left.
func quiet(t *testing.T) {
	t.Helper()
	buf := make([]byte, 1<<20)
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		all := string(buf[:runtime.Stack(buf, true)])
		if !regexp.MustCompile(`uring\.\(\*(queue|Transport|workers)\)`).MatchString(all) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind:\n%s", all)
		}
	}
}

// Wherever the registration fails, whoever waits for the mount gets an error, and once it is mounted anew, without io_uring, an answer.
func TestRegistrationFails(t *testing.T) {
	require(t)
	cpus, err := possible()
	if err != nil {
		t.Fatal(err)
	}
	const depth = 2
	for k := range cpus * depth {
		for _, how := range []string{"refused by the kernel", "never asked for"} {
			t.Run(fmt.Sprintf("%d %s", k, how), func(t *testing.T) {
				m := &mounted{dir: mountpoint(t)}
				stop, answers := make(chan struct{}), make(chan error, 8)
				var began sync.WaitGroup
				for range cap(answers) {
					began.Add(1)
					go func() {
						began.Done()
						for {
							var st unix.Stat_t
							err := unix.Stat(filepath.Join(m.dir, "echo"), &st)
							select {
							case <-stop:
								answers <- err
								return
							default:
							}
						}
					}()
				}
				began.Wait()
				err := m.serve(t, Options{testOnlyDepth: depth, testOnlyRegister: func(cpu, entry int) (int, error) {
					if cpu*depth+entry != k {
						return 2, nil
					}
					if how == "never asked for" {
						return 0, errors.New("a test says so")
					}
					return 1, nil
				}})
				if err == nil {
					t.Fatal("it was served")
				}
				if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
					t.Fatal(err)
				}
				fd := attach(t, m.dir)
				raw, options := m.raw()
				server, err := fuse.NewServer(raw, fmt.Sprintf("/dev/fd/%d", fd), options)
				if err != nil {
					t.Fatal(err)
				}
				go server.Serve()
				close(stop)
				failed := 0
				for _, err := range await(t, answers, cap(answers)) {
					if err != nil {
						failed++
					}
				}
				var st unix.Stat_t
				if err := unix.Stat(filepath.Join(m.dir, "echo"), &st); err != nil {
					t.Errorf("after %d failed last: %v", failed, err)
				}
				if err := unix.Unmount(m.dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
				server.Wait()
				quiet(t)
			})
		}
	}
}

// A connection that is aborted, or unmounted under load, ends everything that belongs to it.
func TestEnd(t *testing.T) {
	for name, end := range map[string]func(*testing.T, string) error{
		"abort": func(t *testing.T, dir string) error {
			var st unix.Stat_t
			if err := unix.Stat(filepath.Dir(dir), &st); err != nil {
				return err
			}
			control := t.TempDir()
			if err := unix.Mount("none", control, "fusectl", 0, ""); err != nil {
				return err
			}
			defer func() { _ = unix.Unmount(control, unix.MNT_DETACH) }()
			id, err := connection(dir)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(control, id, "abort"), []byte("1"), 0)
		},
		"force": func(_ *testing.T, dir string) error { return unix.Unmount(dir, unix.MNT_FORCE|unix.MNT_DETACH) },
	} {
		t.Run(name, func(t *testing.T) {
			require(t)
			m := &mounted{dir: mountpoint(t)}
			if err := m.serve(t, Options{}); err != nil {
				t.Fatal(err)
			}
			waited, worked := make(chan error, 20), make(chan error, 4)
			for range cap(waited) {
				pinned(0, func() {
					f, err := open(filepath.Join(m.dir, "wait"))
					if err == nil {
						defer f.Close()
						_, err = unix.Pread(int(f), make([]byte, 10), 0)
					}
					waited <- err
				})
			}
			opened := make(chan struct{}, cap(worked))
			for range cap(worked) {
				go func() {
					f, err := open(filepath.Join(m.dir, "echo"))
					opened <- struct{}{}
					if err == nil {
						defer f.Close()
						for err == nil {
							_, err = f.WriteAt([]byte("hello"), 0)
						}
					}
					worked <- err
				}()
			}
			await(t, opened, cap(opened))
			m.root.until(t, cap(waited), nil)
			if err := end(t, m.dir); err != nil {
				t.Fatal(err)
			}
			for _, err := range append(await(t, waited, cap(waited)), await(t, worked, cap(worked))...) {
				if err != unix.ECONNABORTED && err != unix.ENOTCONN {
					t.Errorf("a client: %v", err)
				}
			}
			m.t.Wait()
			quiet(t)
		})
	}
}

// connection is the number under which fusectl knows a mount.
func connection(dir string) (string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); f[4] == dir {
			_, minor, _ := strings.Cut(f[2], ":")
			return minor, nil
		}
	}
	return "", fmt.Errorf("%s is not mounted", dir)
}

// A server that is killed leaves a dead mount, from which everybody comes back, and which another one can replace.
func TestKill(t *testing.T) {
	require(t)
	if dir := os.Getenv("PARSECFS_URING_SERVE"); dir != "" {
		m := &mounted{dir: dir}
		if err := m.serve(t, Options{}); err != nil {
			t.Fatal(err)
		}
		fmt.Println("mounted")
		m.t.Wait()
		return
	}
	dir := mountpoint(t)
	for range 3 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKill$")
		cmd.Env = append(os.Environ(), "PARSECFS_URING_SERVE="+dir)
		out, err := cmd.StdoutPipe()
		if err == nil {
			err = cmd.Start()
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		waited := make(chan error, 8)
		opened := make(chan struct{}, cap(waited))
		for range cap(waited) {
			go func() {
				f, err := open(filepath.Join(dir, "wait"))
				opened <- struct{}{}
				if err == nil {
					defer f.Close()
					_, err = unix.Pread(int(f), make([]byte, 10), 0)
				}
				waited <- err
			}()
		}
		await(t, opened, cap(opened))
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		for _, err := range await(t, waited, cap(waited)) {
			// ECANCELED is for a request that was on its way.
			if err != unix.ECONNABORTED && err != unix.ENOTCONN && err != unix.ECANCELED {
				t.Errorf("a client: %v", err)
			}
		}
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
	}
}

// What was written, and what was read, does not stay in the memory of the entries.
func TestWiped(t *testing.T) {
	for _, inline := range []bool{false, true} {
		t.Run(fmt.Sprintf("inline=%v", inline), func(t *testing.T) {
			m := mount(t, Options{}, inline)
			f, err := open(filepath.Join(m.dir, "echo"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			secret := []byte("nobody else may read this")
			message := bytes.Repeat(secret, 200)
			if _, err := f.WriteAt(message, 0); err != nil {
				t.Fatal(err)
			}
			if _, err := f.ReadAt(make([]byte, len(message)), 0); err != nil {
				t.Fatal(err)
			}
			// The client may have its answer before the thread that gave it goes on.
			for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
				left := 0
				for _, q := range m.t.queues {
					left += bytes.Count(q.memory, secret)
				}
				if left == 0 {
					return
				}
				if time.Now().After(deadline) {
					t.Fatalf("it is there %d times", left)
				}
			}
		})
	}
}
