package caller

import (
	"bytes"
	"os"
	"strconv"
)

// stat are fields of /proc/<pid>/stat (proc_pid_stat(5)).
type stat struct {
	state   byte
	parent  uint32
	flags   uint64
	threads uint64
	start   uint64 // in ticks since boot
}

// parseStat skips the command's name, which may hold anything, by its last parenthesis.
func parseStat(b []byte) (stat, bool) {
	f := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(f) < 20 || len(f[0]) != 1 {
		return stat{}, false
	}
	parent, err1 := strconv.ParseUint(string(f[1]), 10, 32)
	flags, err2 := strconv.ParseUint(string(f[6]), 10, 64)
	threads, err3 := strconv.ParseUint(string(f[17]), 10, 64)
	start, err4 := strconv.ParseUint(string(f[19]), 10, 64)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
		return stat{}, false
	}
	return stat{state: f[0][0], parent: uint32(parent), flags: flags, threads: threads, start: start}, true
}

// ended says whether all threads of the process have exited: the first one may leave before the others.
func (s *stat) ended() bool { return s.state == 'X' || s.state == 'Z' && s.threads <= 1 }

// knowledge is what a look brought.
type knowledge int

const (
	unknown knowledge = iota // it hangs, or the bounds do not allow it
	absent
	present
)

// look runs read for a request of uid, once the process is not in the middle of execve(2): a caller was not when its status was
// read. read may go on after an unknown.
func (p *Procs) look(at *looks, uid, pid uint32, read func() bool) knowledge {
	if at == &p.others {
		if k := p.over(uid, pid); k != present {
			return k
		}
	}
	var found bool
	if !at.see(uid, pid, func() { found = read() }) {
		return unknown
	}
	if !found {
		return absent
	}
	return present
}

func (p *Procs) stat(at *looks, uid, pid uint32) (stat, knowledge) {
	s := new(stat)
	k := p.look(at, uid, pid, func() (ok bool) {
		err := readText(procPath(pid, "stat"), func(b []byte) error {
			*s, ok = parseStat(b)
			return nil
		})
		return ok && err == nil
	})
	if k != present {
		return stat{}, k
	}
	return *s, k
}

// exe is the program that the caller runs.
func (p *Procs) exe(c Caller) string {
	exe := new(string)
	k := p.look(&p.callers, c.UID, c.TID, func() bool {
		var err error
		*exe, err = os.Readlink(procPath(c.TID, "exe"))
		return err == nil
	})
	if k != present {
		return ""
	}
	return *exe
}
