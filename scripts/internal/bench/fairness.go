package main

import (
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

// taken is how long one user's signatures took, in microseconds, and how many of the other user's came meanwhile: the first says
// what the user feels, the second who was let pass, whatever else the machine does.
type taken struct {
	P50, P99         float64
	Passed, Passed99 float64
}

// fairness measures how much longer the signatures of one user's only worker take while another user has 64: the 99th percentile, and
// the median of the rounds' ratios. Both users are processes of their own, with keys of their own.
func (b *bench) fairness() error {
	for _, transport := range []string{transportDevice, transportUring} {
		d, err := b.mount("fairness", transport, softwareOnly)
		if err != nil && transport == transportUring {
			b.results.skip(over(serverOurs, transport)+", fairness", err)
			continue
		} else if err != nil {
			return err
		}
		keys := filepath.Join(d.dir, "providers/default/keys")
		ec, rsa := "ecdsa-p256-sha256", "rsa-2048-pss-sha256"
		for _, c := range []struct{ own, others string }{{ec, ec}, {rsa, rsa}, {ec, rsa}} {
			for _, how := range fairWays {
				if err := b.fairCase(transport, keys, c.own, c.others, how); err != nil {
					return fmt.Errorf("%s, %s, %s: %w", transport, c.own, how, err)
				}
			}
		}
	}
	return nil
}

var fairWays = []string{wayFresh, wayKept, wayIoctl}

// fairUser is one of the users, in a process of its own: one SIGN WAY COUNTER, or crowd SIGN WAY WORKERS COUNTER.
func fairUser(args []string) error {
	switch {
	case len(args) == 4 && args[0] == "one":
		return fairOneUser(args[1], args[2], args[3])
	case len(args) == 5 && args[0] == "crowd":
		return fairCrowdOf(args[1], args[2], args[3], args[4])
	}
	return errors.New("usage: bench fairness one SIGN WAY COUNTER | bench fairness crowd SIGN WAY WORKERS COUNTER")
}

func (b *bench) fairCase(transport, keys, own, others, how string) error {
	one, err := fairKey(keys, own, fairOne)
	if err != nil {
		return err
	}
	crowd, err := fairKey(keys, others, fairCrowd)
	if err != nil {
		return err
	}
	counter, err := fairCounter()
	if err != nil {
		return err
	}
	defer os.Remove(counter)
	var alone, beside []taken
	var ratios []float64
	rounds := fairRounds
	if b.short {
		rounds = 1
	}
	for range rounds {
		a, err := fairRun(one, how, counter)
		if err != nil {
			return err
		}
		cmd := fairCommand(fairCrowd, "crowd", crowd, how, strconv.Itoa(fairWorkers), counter)
		stop, err := cmd.StdinPipe()
		if err != nil {
			return err
		}
		said, err := cmd.StdoutPipe()
		if err != nil {
			return err
		}
		if err := cmd.Start(); err != nil {
			return err
		}
		if _, err := said.Read(make([]byte, 1)); err != nil {
			return fmt.Errorf("the crowd: %w", err)
		}
		t, err := fairRun(one, how, counter)
		err = errors.Join(err, stop.Close())
		_, scanErr := fmt.Fscan(said, new(float64))
		if err := errors.Join(err, scanErr, cmd.Wait()); err != nil {
			return err
		}
		alone, beside, ratios = append(alone, a), append(beside, t), append(ratios, t.P99/a.P99)
	}
	median := func(of func(taken) float64, list []taken) float64 {
		var v []float64
		for _, t := range list {
			v = append(v, of(t))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	p99 := func(t taken) float64 { return t.P99 }
	slices.Sort(ratios)
	of := fmt.Sprintf("%s, %s beside %s, %s", transport, own, others, how)
	b.results.figure(partFairness, "p99 alone", of, median(p99, alone), "us")
	b.results.figure(partFairness, "p99 beside 64 workers of another user", of, median(p99, beside), "us")
	b.results.figure(partFairness, "ratio, median of the rounds", of, ratios[len(ratios)/2], "times")
	b.results.figure(partFairness, "signatures of the other user between request and answer, median", of,
		median(func(t taken) float64 { return t.Passed }, beside), "")
	return nil
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
func fairWay(sign, how string) (do func() error, err error) {
	t := signs(sign)
	switch how {
	case wayFresh:
		do, _, err = t.fresh()
	case wayKept:
		do, _, err = t.kept()
	case wayIoctl:
		do, _, err = t.ioctl()
	default:
		err = fmt.Errorf("no such way: %s", how)
	}
	return do, err
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
