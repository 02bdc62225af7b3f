package caller

import (
	"bytes"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"sync"
	"syscall"
)

// status are the fields of /proc/<tid>/status (proc_pid_status(5)) that anybody here asks for.
type status struct {
	tgid, parent, threads uint32
	uid, gid              uint32   // the file system ids
	groups                []uint32 // supplementary ones
	caps                  uint64   // effective
	pending, kept         uint64   // signals that wait, of the thread and of its process; those that are blocked, ignored or caught
	memory                bool     // it has an address space: no thread that exits has
	code                  uint64   // kB of the address space that can be executed
}

// execs says whether the thread is in the middle of execve(2), after its old program is gone and before the new one is there.
func (s *status) execs() bool { return s.memory && s.code == 0 }

// exits says whether the thread closes its files at its end.
func (s *status) exits() bool { return !s.memory }

// procPath is a file of a process or thread.
func procPath(id uint32, name string) string {
	return "/proc/" + strconv.FormatUint(uint64(id), 10) + "/" + name
}

const (
	// textUsual is enough for the text of a thread in a few hundred groups.
	textUsual = 4 << 10
	// textMost is enough for one in as many groups as there can be (NGROUPS_MAX), and is kept by nobody.
	textMost = 1 << 20
)

var texts = sync.Pool{New: func() any { return new(make([]byte, textUsual)) }}

var errLong = errors.New("it is too long to come from the kernel")

// readText reads a file of /proc into a buffer that use must not keep.
func readText(path string, use func([]byte) error) error {
	buf := texts.Get().(*[]byte)
	defer texts.Put(buf)
	fd, err := open(path)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer syscall.Close(fd)
	b, n := *buf, 0
	for {
		if n == len(b) {
			if n >= textMost {
				return errLong
			}
			b = append(b, make([]byte, len(b))...)
		}
		m, err := syscall.Read(fd, b[n:])
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "read", Path: path, Err: err}
		}
		if m == 0 {
			return use(b[:n])
		}
		n += m
	}
}

func open(path string) (int, error) {
	for {
		fd, err := syscall.Open(path, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != syscall.EINTR {
			return fd, err
		}
	}
}

// status reads a thread's status for a request of uid, in turn.
func (p *Procs) status(uid, tid uint32, groups bool) (status, error) {
	defer p.turns.take(uid)()
	return readStatus(tid, groups)
}

// readStatus reads a thread's status, with its groups where they are asked for.
func readStatus(tid uint32, groups bool) (s status, err error) {
	err = readText(procPath(tid, "status"), func(b []byte) error {
		s, err = parseStatus(b, groups)
		return err
	})
	return s, err
}

// The lines that each status has.
const (
	seenTgid = 1 << iota
	seenParent
	seenThreads
	seenUID
	seenGID
	seenGroups
	seenCaps
	seenSigPnd
	seenShdPnd
	seenSigBlk
	seenSigIgn
	seenSigCgt
	seenAll = 1<<iota - 1
)

// parseStatus understands a status as a whole or not at all.
func parseStatus(b []byte, groups bool) (s status, err error) {
	seen := 0
	see := func(field int) {
		if seen&field != 0 {
			err = errors.New("its status has a line twice")
		}
		seen |= field
	}
	number := func(word []byte, base, bits int) (n uint64) {
		n, e := strconv.ParseUint(string(word), base, bits)
		if e != nil {
			err = fmt.Errorf("its status cannot be read: %w", e)
		}
		return n
	}
	for len(b) > 0 && err == nil {
		var line []byte
		line, b, _ = bytes.Cut(b, []byte("\n"))
		name, value, found := bytes.Cut(line, []byte(":"))
		if !found {
			continue
		}
		value = bytes.TrimSpace(value)
		switch string(name) {
		case "Tgid":
			see(seenTgid)
			s.tgid = uint32(number(value, 10, 32))
		case "PPid":
			see(seenParent)
			s.parent = uint32(number(value, 10, 32))
		case "Threads":
			see(seenThreads)
			s.threads = uint32(number(value, 10, 32))
		case "Uid":
			see(seenUID)
			s.uid = uint32(number(last(value), 10, 32))
		case "Gid":
			see(seenGID)
			s.gid = uint32(number(last(value), 10, 32))
		case "Groups":
			see(seenGroups)
			if !groups {
				continue
			}
			for word := range bytes.FieldsSeq(value) {
				s.groups = append(s.groups, uint32(number(word, 10, 32)))
			}
		case "CapEff":
			see(seenCaps)
			s.caps = number(value, 16, 64)
		case "SigPnd":
			see(seenSigPnd)
			s.pending |= number(value, 16, 64)
		case "ShdPnd":
			see(seenShdPnd)
			s.pending |= number(value, 16, 64)
		case "SigBlk":
			see(seenSigBlk)
			s.kept |= number(value, 16, 64)
		case "SigIgn":
			see(seenSigIgn)
			s.kept |= number(value, 16, 64)
		case "SigCgt":
			see(seenSigCgt)
			s.kept |= number(value, 16, 64)
		case "VmExe", "VmLib":
			s.memory = true
			kB, _, _ := bytes.Cut(value, []byte(" "))
			s.code += number(kB, 10, 63)
		}
	}
	if err == nil && seen != seenAll {
		err = fmt.Errorf("its status lacks %d of the lines with its identity", bits.OnesCount(uint(seenAll&^seen)))
	}
	return s, err
}

// last is the last of four ids, the file system's.
func last(ids []byte) []byte {
	words := bytes.Fields(ids)
	if len(words) != 4 {
		return nil
	}
	return words[3]
}

// harmless are the signals whose default action is not the end: CHLD, CONT, URG, WINCH, and those that stop.
const harmless = 1<<(syscall.SIGCHLD-1) | 1<<(syscall.SIGCONT-1) | 1<<(syscall.SIGURG-1) | 1<<(syscall.SIGWINCH-1) |
	1<<(syscall.SIGSTOP-1) | 1<<(syscall.SIGTSTP-1) | 1<<(syscall.SIGTTIN-1) | 1<<(syscall.SIGTTOU-1)

// dying says whether a pending signal will end the thread: pending, and neither blocked, caught nor ignored.
func (s *status) dying() bool { return s.pending&^(s.kept|harmless) != 0 }

// Doomed says that a pending signal will end the caller's thread; false also where nothing is known of it.
func (p *Procs) Doomed(c Caller) bool {
	s, err := p.status(c.UID, c.TID, false)
	return err == nil && s.dying()
}

// Dying says whether a pending signal will end the caller's thread, or has.
func (p *Procs) Dying(c Caller) bool {
	s, err := p.status(c.UID, c.TID, false)
	return err != nil || s.dying()
}
