// Package caller tells who calls: identity, lineage, systemd unit. It is the only code that reads /proc about others, and it
// does so within bounds.
//
// What a caller's process is doing decides how long the kernel takes to answer. A process in the middle of execve(2) whose
// close-on-exec descriptor waits for somebody's FLUSH holds its exec_update_lock: whoever reads its stat or its exe sleeps until
// then and cannot be woken. Its status, its cgroup and its id maps answer at once, and so does a pidfd, so these are asked first,
// and the rest only within the bounds of looks.go.
package caller

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Caller is who sent a request: the file system ids of its header, and the thread id, 0 where it cannot be seen from here.
type Caller struct{ UID, GID, TID uint32 }

// Procs answers questions about callers.
type Procs struct {
	callers  looks // at who calls
	others   looks // at ancestors, and at who called before
	execs    execs
	turns    turns
	births   births
	programs programs
	pidfs    bool // a pidfd's inode number names a process for ever (Linux 6.9)
	info     bool // a pidfd tells the parent (Linux 6.13)
}

// New finds out what the kernel offers.
func New() *Procs {
	p := &Procs{}
	fd, err := unix.PidfdOpen(unix.Getpid(), 0)
	if err != nil {
		return p
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	// on 32 bits the number is cut off
	p.pidfs = strconv.IntSize == 64 && unix.Fstatfs(fd, &fs) == nil && int64(fs.Type) == unix.PID_FS_MAGIC
	p.info = unix.IoctlPidfdInfo(fd, &unix.PidfdInfo{Mask: unix.PIDFD_INFO_PID}) == nil
	return p
}

var (
	errUnseen = errors.New("the caller is in a pid namespace that parsecfs cannot see")
	errOther  = errors.New("the caller's thread has changed its ids since the request")
)

// of reads the status of the caller's thread, which must still be who sent the request. Most callers are blocked in a call to us and
// cannot change, but an io_uring request outlives its thread, and a worker acts under ids that are not its own.
func (p *Procs) of(c Caller, groups bool) (status, error) {
	if c.TID == 0 {
		return status{}, errUnseen
	}
	s, err := p.status(c.UID, c.TID, groups)
	if err != nil {
		return status{}, err
	}
	if s.uid != c.UID || s.gid != c.GID {
		return status{}, fmt.Errorf("%w: uid %d and gid %d, not %d and %d", errOther, s.uid, s.gid, c.UID, c.GID)
	}
	return s, nil
}
