package caller

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process that is no other, also where another has its pid later: ID is its pidfd's inode number, or where the
// kernel has none its start time.
type Process struct {
	PID uint32
	ID  uint64
}

// Lineage is a process and its ancestors, as they were when it opened a file. It is read while the caller is blocked in open(2).
type Lineage struct {
	Chain   []Process // the process itself first
	Births  []uint64  // when they began, in ticks since boot, as far up as that is known
	Threads int       // of the process itself
}

const (
	// ancestorsMost bounds how far up a lineage goes; a longer one is unknown.
	ancestorsMost = 128
	// birthsTime bounds how long one asks when they began.
	birthsTime = 5 * time.Second
	// parentTries bounds how often in a row a process can change its parent while we look.
	parentTries = 8
)

// tick is what the kernel shows start times in, on every architecture (USER_HZ): 1/100 s.
const tick = 10_000_000 // ns

// Moment is a point in time as processes can be told apart by it: a tick, and the last pid that was given out by then.
type Moment struct {
	Tick uint64
	PID  uint32
}

// Now is this moment.
func Now() Moment {
	// without the last pid nobody of the same tick counts as born later
	m := Moment{PID: ^uint32(0)}
	// it is the last field (proc_loadavg(5))
	_ = readText("/proc/loadavg", func(b []byte) error {
		f := strings.Fields(string(b))
		if len(f) != 5 {
			return nil
		}
		if pid, err := strconv.ParseUint(f[4], 10, 32); err == nil {
			m.PID = uint32(pid)
		}
		return nil
	})
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		m.Tick = ^uint64(0)
		return m
	}
	m.Tick = uint64(ts.Nano()) / tick
	return m
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

// At gives the place of q in the chain, -1 where it is not.
func (l *Lineage) At(q Process) int {
	for i, p := range l.Chain {
		if p == q {
			return i
		}
	}
	return -1
}

// Self is the process itself; an empty lineage has none.
func (l *Lineage) Self() (Process, bool) {
	if len(l.Chain) == 0 {
		return Process{}, false
	}
	return l.Chain[0], true
}

// BornAfter says whether everybody in the chain below place i is known to have begun after m. Within a tick the pids tell:
// the kernel gives them out in a circle.
func (l *Lineage) BornAfter(i int, m Moment) bool {
	if i > len(l.Births) {
		return false
	}
	for k, start := range l.Births[:i] {
		if start < m.Tick || start == m.Tick && !follows(l.Chain[k].PID, m.PID, pidMax()) {
			return false
		}
	}
	return true
}

// Lineage reads the lineage of the caller. One that is not wholly known is empty, and claims nothing; births may be unknown
// from some ancestor on, and then nobody counts as born after anything there.
func (p *Procs) Lineage(c Caller) *Lineage { return p.lineage(c, true) }

// Writer is Lineage without births, which only a reader needs: it never waits where the kernel has pidfds that name processes.
func (p *Procs) Writer(c Caller) *Lineage { return p.lineage(c, false) }

func (p *Procs) lineage(c Caller, births bool) *Lineage {
	s, err := p.of(c, false)
	if err != nil || s.execs() { // who opens a file runs a program
		return &Lineage{}
	}
	l := &Lineage{Threads: int(s.threads)}
	h, err := p.open(&p.callers, c.UID, s.tgid)
	if err != nil {
		return &Lineage{}
	}
	at, until := &p.callers, time.Now().Add(birthsTime)
	for {
		l.Chain = append(l.Chain, h.Process)
		if births && time.Now().Before(until) {
			start, known := p.birth(at, c.UID, h)
			if births = known; known {
				l.Births = append(l.Births, start)
			}
		}
		up, err := p.parent(c.UID, h)
		h.close()
		if err != nil {
			return &Lineage{}
		}
		if up == nil {
			return l
		}
		at = &p.others
		if h = up; len(l.Chain) == ancestorsMost {
			h.close()
			return &Lineage{}
		}
	}
}

// held is a process that is looked at.
type held struct {
	Process
	fd     int    // its pidfd, -1 where the start time names it
	parent uint32 // as its stat said, where there is no pidfd
}

func (h *held) close() {
	if h.fd >= 0 {
		_ = unix.Close(h.fd)
	}
}

var errUnknown = errors.New("the process does not show its state")

// open finds a process for a request of uid.
func (p *Procs) open(at *looks, uid, pid uint32) (*held, error) {
	if !p.pidfs {
		s, k := p.stat(at, uid, pid)
		switch k {
		case absent:
			return nil, syscall.ESRCH
		case unknown:
			return nil, errUnknown
		}
		return &held{Process{pid, s.start}, -1, s.parent}, nil
	}
	fd, err := unix.PidfdOpen(int(pid), 0)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &held{Process{pid, st.Ino}, fd, 0}, nil
}

// missing says whether an error of open means that there is no such process: pidfd_open(2) has its own words for a number that
// is a thread's alone.
func missing(err error) bool {
	return err == unix.ESRCH || err == unix.EINVAL || err == unix.ENOENT
}

// ended says whether all threads of the process have exited, or its end cannot be told.
func (h *held) ended() bool {
	for {
		fds := []unix.PollFd{{Fd: int32(h.fd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 0)
		if err != unix.EINTR {
			return err != nil || n != 0
		}
	}
}

// parentOf is the number of h's parent now; 0 is none that is seen from here.
func (p *Procs) parentOf(uid uint32, h *held) (uint32, error) {
	if h.fd < 0 {
		again, err := p.open(&p.others, uid, h.PID)
		if err != nil {
			return 0, err
		}
		if again.Process != h.Process {
			return 0, errUnknown
		}
		return again.parent, nil
	}
	if p.info {
		info := unix.PidfdInfo{Mask: unix.PIDFD_INFO_PID}
		if err := unix.IoctlPidfdInfo(h.fd, &info); err != nil {
			return 0, err
		}
		if info.Mask&unix.PIDFD_INFO_PID == 0 {
			return 0, errUnknown
		}
		return info.Ppid, nil
	}
	s, err := p.status(uid, h.PID, false)
	if err != nil {
		return 0, err
	}
	if h.ended() {
		return 0, errUnknown // the number may be another's by now
	}
	return s.parent, nil
}

// parent finds h's parent, nil where it has none but init. Nobody can be another process under a parent's number: h still
// has that parent after it was found.
func (p *Procs) parent(uid uint32, h *held) (*held, error) {
	pid, err := p.parentOf(uid, h)
	for range parentTries {
		if err != nil {
			return nil, err
		}
		if pid <= 1 {
			return nil, nil
		}
		up, openErr := p.open(&p.others, uid, pid)
		if openErr != nil && !missing(openErr) {
			return nil, openErr
		}
		var now uint32
		if now, err = p.parentOf(uid, h); err == nil && now == pid && openErr == nil {
			return up, nil
		}
		if openErr == nil {
			up.close()
		}
		pid = now
	}
	return nil, errUnknown
}

// birth is when a process began.
func (p *Procs) birth(at *looks, uid uint32, h *held) (uint64, bool) {
	if h.fd < 0 {
		return h.ID, true
	}
	if start, known := p.births.find(h.ID); known {
		return start, true
	}
	s, k := p.stat(at, uid, h.PID)
	if k != present || h.ended() {
		return 0, false // or what was read is of another process under its number
	}
	p.births.keep(h.ID, s.start)
	return s.start, true
}

// birthsMost bounds each half of what is remembered of births.
const birthsMost = 4096

// births are those of processes, by what names them. Who is asked for again outlives the others.
type births struct {
	mu       sync.Mutex
	now, old map[uint64]uint64
}

func (b *births) find(id uint64) (uint64, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if start, known := b.now[id]; known {
		return start, true
	}
	start, known := b.old[id]
	if known {
		b.put(id, start)
	}
	return start, known
}

func (b *births) keep(id, start uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.put(id, start)
}

func (b *births) put(id, start uint64) {
	if b.now == nil || len(b.now) >= birthsMost {
		b.now, b.old = map[uint64]uint64{}, b.now
	}
	b.now[id] = start
}

// Alive says whether a process has not exited; where that cannot be told it has not.
func (p *Procs) Alive(c Caller, q Process) bool {
	if !p.pidfs {
		s, k := p.stat(&p.others, c.UID, q.PID)
		return k == unknown || k == present && !s.ended() && s.start == q.ID
	}
	h, err := p.open(&p.others, c.UID, q.PID)
	if err != nil {
		return !missing(err)
	}
	defer h.close()
	return h.Process == q && !h.ended()
}

const pfSignaled = 0x400

// Killed says whether the caller is on its way out because of a signal (PF_SIGNALED): its descriptors are being closed in
// the middle of what it wrote. busy: they are closed by an execve(2), perhaps a child's while its parent writes, or why
// they are closed cannot be told now. Only a thread that exits, which cannot be in execve(2), is looked at.
func (p *Procs) Killed(c Caller) (killed, busy bool) {
	if c.TID == 0 {
		return false, false // nobody can ask this of it, and its files are closed like others'
	}
	st, err := p.status(c.UID, c.TID, false)
	if err != nil {
		return false, true // it waits for us, and so is there
	}
	if !st.exits() {
		return false, st.execs()
	}
	s, k := p.stat(&p.callers, c.UID, c.TID)
	return k == present && s.flags&pfSignaled != 0, k == unknown
}
