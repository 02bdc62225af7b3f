package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

const (
	fairRounds  = 5
	fairTime    = 400 * time.Millisecond // of a round's part
	fairWorkers = 64
	fairOne     = 65534
	fairCrowd   = 65533
)

// taken is how long one user's signatures took, in microseconds, and how many of the other user's came meanwhile. The first is what
// the user feels; the second says who was let pass, whatever else the machine does.
type taken struct{ P50, P99, Passed50, Passed99 float64 }

// fairness is one of the users, in a process of its own.
func fairness(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "one":
		return fairOneUser(args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "crowd":
		return fairCrowdOf(args[1], args[2], args[3], args[4])
	}
	return errors.New("usage: bench fairness one SIGN WAY COUNTER | bench fairness crowd SIGN WAY WORKERS COUNTER")
}

// fairBeside is fairRun beside the crowd, and how many signatures a second the crowd got.
func fairBeside(one, crowd, how, counter string) (t taken, rate float64, err error) {
	cmd := fairCommand(fairCrowd, "crowd", crowd, how, strconv.Itoa(fairWorkers), counter)
	stop, err := cmd.StdinPipe()
	if err != nil {
		return t, 0, err
	}
	said, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		return t, 0, err
	}
	_, err = said.Read(make([]byte, 1))
	if err == nil {
		t, err = fairRun(one, how, counter)
	}
	stop.Close()
	_, scanned := fmt.Fscan(said, &rate)
	return t, rate, cmp.Or(err, scanned, cmd.Wait())
}

func fairCommand(uid uint32, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", append([]string{"fairness"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	cmd.Stderr = os.Stderr
	return cmd
}

// fairKey is the operation of a user's key, which is made where it is not there.
func fairKey(keys, template string, uid uint32) (sign string, err error) {
	key := filepath.Join(keys, fmt.Sprint("fair-", uid, "-", template))
	cmd := exec.Command("sh", "-euc", `[ -e "$1/sign" ] || { mkdir "$1"; echo "$2" >"$1/generate"; }`, "sh", key, template)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return filepath.Join(key, "sign"), nil
}

func fairRun(sign, how, counter string) (t taken, err error) {
	b, err := fairCommand(fairOne, "one", sign, how, counter).Output()
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	return t, err
}

// fairWay is a way to sign, with what it has open.
func fairWay(sign, how string) (func() error, error) {
	switch how {
	case "fresh":
		do, _, err := fresh(sign)()
		return do, err
	case "kept":
		do, _, err := kept(sign)()
		return do, err
	case "ioctl":
		fd, err := syscall.Open(sign, syscall.O_RDWR, 0)
		return func() error { return callIoctl(fd) }, err
	}
	return nil, fmt.Errorf("no such way: %s", how)
}

func callIoctl(fd int) error {
	c := struct {
		request, answer uint32
		bytes           [504]byte
	}{request: uint32(len(message))}
	copy(c.bytes[:], message)
	number := 3<<30 | unsafe.Sizeof(c)<<16 | 0xC7<<8 | 1
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), number, uintptr(unsafe.Pointer(&c))); errno != 0 {
		return os.NewSyscallError("ioctl", errno)
	}
	return nil
}

// fairCounter makes the file that both users have mapped, in which the crowd counts.
func fairCounter() (string, error) {
	f, err := os.CreateTemp("", "fairness-")
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := f.Truncate(int64(os.Getpagesize())); err != nil {
		return f.Name(), err
	}
	return f.Name(), f.Chmod(0o666)
}

func fairMapped(counter string) (*atomic.Int64, error) {
	f, err := os.OpenFile(counter, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := syscall.Mmap(int(f.Fd()), 0, os.Getpagesize(), syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	return (*atomic.Int64)(unsafe.Pointer(&b[0])), nil
}

func fairOneUser(sign, how, counter string) error {
	do, err := fairWay(sign, how)
	if err != nil {
		return err
	}
	others, err := fairMapped(counter)
	if err != nil {
		return err
	}
	var took, passed []float64
	for begun := time.Now(); time.Since(begun) < fairTime; {
		at, before := time.Now(), others.Load()
		if err := do(); err != nil {
			return err
		}
		took, passed = append(took, float64(time.Since(at).Nanoseconds())/1000), append(passed, float64(others.Load()-before))
	}
	slices.Sort(took)
	slices.Sort(passed)
	n := len(took)
	return json.NewEncoder(os.Stdout).Encode(taken{took[n/2], took[n*99/100], passed[n/2], passed[n*99/100]})
}

// fairCrowdOf signs with many workers until its input ends, and says how often.
func fairCrowdOf(sign, how, workers, counter string) error {
	n, err := strconv.Atoi(workers)
	if err != nil {
		return err
	}
	count, err := fairMapped(counter)
	if err != nil {
		return err
	}
	var stopped atomic.Bool
	var all, ready sync.WaitGroup
	errs := make(chan error, n)
	ready.Add(n)
	for range n {
		all.Go(func() {
			do, err := fairWay(sign, how)
			for first := true; err == nil && !stopped.Load(); first = false {
				if err = do(); first {
					ready.Done()
				}
				count.Add(1)
			}
			if err != nil {
				errs <- err
			}
		})
	}
	ready.Wait()
	begun := time.Now()
	count.Store(0)
	fmt.Println()
	if _, err := io.Copy(io.Discard, os.Stdin); err != nil {
		return err
	}
	rate := float64(count.Load()) / time.Since(begun).Seconds()
	stopped.Store(true)
	all.Wait()
	close(errs)
	fmt.Println(rate)
	return <-errs
}
