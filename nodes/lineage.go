package nodes

import (
	"bytes"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// process is a pid with its start time in clock ticks since boot, so that a reused pid is another process.
type process struct {
	pid   uint32
	start uint64
}

// lineage is a process and its ancestors, as they were when it opened a file. It is read while the caller is blocked in
// open(2), so /proc is stable.
type lineage struct {
	chain   []process // the process itself first
	threads int
}

// ancestorsMost bounds how far up a lineage goes.
const ancestorsMost = 16

// clock ticks are 1/100 s in what the kernel shows to user space, on every architecture (USER_HZ).
const tick = 10_000_000 // ns

// moment is a point in time as processes can be told apart by it: a tick, and the last pid that was given out by then.
type moment struct {
	tick uint64
	pid  uint32
}

func now() moment {
	var m moment
	// the last field of /proc/loadavg (proc(5)); without it nobody of the same tick counts as born later
	m.pid = ^uint32(0)
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		if f := bytes.Fields(b); len(f) == 5 {
			if pid, err := strconv.ParseUint(string(f[4]), 10, 32); err == nil {
				m.pid = uint32(pid)
			}
		}
	}
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return moment{tick: ^uint64(0), pid: m.pid}
	}
	m.tick = uint64(ts.Nano()) / tick
	return m
}

// bornAfter says whether p began after m. Within a tick the pids tell: the kernel gives them out in a circle.
func (p process) bornAfter(m moment) bool {
	return p.start > m.tick || p.start == m.tick && follows(p.pid, m.pid, pidMax())
}

// follows says whether pid was given out after last, by the shorter way around a circle of most pids: in the 10 ms of
// a tick nobody makes half of them.
func follows(pid, last, most uint32) bool {
	if pid >= most || last >= most {
		return false
	}
	ahead := (pid + most - last) % most
	return ahead > 0 && ahead < most/2
}

// pidMax is pid_max (proc_sys_kernel(5)); unknown, it is the largest there can be, and nobody seems to have come around.
var pidMax = sync.OnceValue(func() uint32 {
	b, err := os.ReadFile("/proc/sys/kernel/pid_max")
	if err == nil {
		if most, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 31); err == nil && most > 0 {
			return uint32(most)
		}
	}
	return 1 << 22
})

// procStat are the fields of /proc/<pid>/stat after the command's name (proc(5)).
type procStat struct {
	state  byte
	parent uint32
	flags  uint64
	start  uint64
}

// A process in the middle of execve(2) does not say how it is before its descriptors are closed, and so before we have
// answered its FLUSH. The kernel holds whoever asks back in an uninterruptible sleep (do_task_stat and exec_update_lock),
// which tells it from one that gets no processor.
const (
	// execLook is how often such a thread is looked at.
	execLook = 20 * time.Millisecond
	// execLooks in a row that find it asleep are too many for an execve that does not wait for us.
	execLooks = 2
	// lineageLooks are for the ancestors of who opens a file: their FLUSH is answered meanwhile.
	lineageLooks = 250
)

// readStat reads a process' fields; busy: it is in the middle of execve(2), and was so the given number of looks long.
func readStat(pid uint32, looks int) (s procStat, ok, busy bool) {
	type answer struct {
		s  procStat
		ok bool
	}
	done := make(chan answer, 1)
	var tid atomic.Int32
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		tid.Store(int32(unix.Gettid()))
		b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(pid), 10) + "/stat")
		if err != nil {
			b = nil
		}
		s, ok := parseStat(b)
		done <- answer{s, ok}
	}()
	timer := time.NewTimer(execLook)
	defer timer.Stop()
	for asleep := 0; ; timer.Reset(execLook) {
		select {
		case a := <-done:
			return a.s, a.ok, false
		case <-timer.C:
		}
		if !uninterruptible(tid.Load()) {
			asleep = 0
		} else if asleep++; asleep >= looks {
			return procStat{}, false, true
		}
	}
}

// uninterruptible says whether a thread of ours sleeps so; where the kernel does not tell, it does.
func uninterruptible(tid int32) bool {
	if tid == 0 {
		return false // it has not begun
	}
	b, err := os.ReadFile("/proc/self/task/" + strconv.Itoa(int(tid)) + "/status")
	if err != nil {
		return true
	}
	_, state, _ := bytes.Cut(b, []byte("\nState:\t"))
	return len(state) == 0 || state[0] == 'D'
}

// parseStat skips the command's name, which may hold anything, by its last parenthesis.
func parseStat(b []byte) (procStat, bool) {
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return procStat{}, false
	}
	parent, err1 := strconv.ParseUint(string(f[1]), 10, 32)
	flags, err2 := strconv.ParseUint(string(f[6]), 10, 64)
	start, err3 := strconv.ParseUint(string(f[19]), 10, 64)
	if err1 != nil || err2 != nil || err3 != nil {
		return procStat{}, false
	}
	return procStat{state: f[0][0], parent: uint32(parent), flags: flags, start: start}, true
}

// lineageOf reads the lineage of the thread tid. An empty one claims nothing.
func lineageOf(tid uint32) *lineage {
	l := &lineage{}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return l
	}
	pid := uint32(statusField(b, "Tgid:"))
	l.threads = int(statusField(b, "Threads:"))
	for range ancestorsMost {
		if pid <= 1 {
			break
		}
		s, ok, _ := readStat(pid, lineageLooks)
		if !ok {
			break
		}
		if n := len(l.chain); n > 0 && s.start > l.chain[n-1].start {
			break // a parent younger than its child is another process under a reused pid
		}
		l.chain = append(l.chain, process{pid, s.start})
		pid = s.parent
	}
	return l
}

func statusField(b []byte, name string) uint64 {
	_, rest, ok := bytes.Cut(b, []byte("\n"+name))
	if !ok {
		return 0
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	n, _ := strconv.ParseUint(string(bytes.TrimSpace(line)), 10, 64)
	return n
}

func (p process) alive() bool {
	s, ok, busy := readStat(p.pid, execLooks)
	return busy || ok && s.state != 'Z' && s.state != 'X' && s.start == p.start
}

// killed says whether the thread is on its way out because of a signal (PF_SIGNALED): its descriptors are being
// closed in the middle of what it wrote. busy: they are closed by an execve(2), perhaps a child's while its parent writes.
func killed(tid uint32) (killed, busy bool) {
	const pfSignaled = 0x400
	s, ok, busy := readStat(tid, execLooks)
	return ok && s.flags&pfSignaled != 0, busy
}

// at gives the place of p in the chain, -1 where it is not.
func (l *lineage) at(p process) int {
	for i, q := range l.chain {
		if p == q {
			return i
		}
	}
	return -1
}

func (l *lineage) self() (process, bool) {
	if len(l.chain) == 0 {
		return process{}, false
	}
	return l.chain[0], true
}

// bornAfter says whether everybody in the chain below place i began after m.
func (l *lineage) bornAfter(i int, m moment) bool {
	for _, p := range l.chain[:i] {
		if !p.bornAfter(m) {
			return false
		}
	}
	return true
}
