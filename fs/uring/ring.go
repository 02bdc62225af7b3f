package uring

import (
	"math/bits"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What io_uring_setup(2) and io_uring_enter(2) know, of which golang.org/x/sys/unix has the system calls' numbers alone.
const (
	opRead    = 22 // IORING_OP_READ
	opCommand = 46 // IORING_OP_URING_CMD

	setupSQE128       = 1 << 10 // IORING_SETUP_SQE128: FUSE's commands are long
	setupSingleIssuer = 1 << 12 // IORING_SETUP_SINGLE_ISSUER
	setupDeferTaskrun = 1 << 13 // IORING_SETUP_DEFER_TASKRUN
	setupSubmitAll    = 1 << 7  // IORING_SETUP_SUBMIT_ALL

	enterGetEvents = 1 // IORING_ENTER_GETEVENTS

	offsetSQ   = 0
	offsetCQ   = 0x8000000
	offsetSQEs = 0x10000000
)

// ringOffsets is struct io_sqring_offsets, and struct io_cqring_offsets, whose fields differ from the fifth on.
type ringOffsets struct {
	head, tail, mask, entries uint32
	flagsOrOverflow           uint32
	droppedOrCQEs             uint32
	arrayOrFlags              uint32
	_                         uint32
	_                         uint64
}

// ringParams is struct io_uring_params.
type ringParams struct {
	sqEntries, cqEntries, flags, _, _, features, _ uint32
	_                                              [3]uint32
	sq, cq                                         ringOffsets
}

// submission is struct io_uring_sqe of 128 bytes, with struct fuse_uring_cmd_req where it is FUSE's.
type submission struct {
	opcode, _ uint8
	_         uint16
	fd        int32
	command   uint32 // the lower half of off
	_         uint32
	addr      uint64
	length    uint32
	_         uint32
	user      uint64
	_         uint64
	_         uint64 // flags
	commit    uint64
	queue     uint16
	_         [62]byte
}

// completion is struct io_uring_cqe.
type completion struct {
	user   uint64
	result int32
	_      uint32
}

// ring is an io_uring. One thread makes it and uses it.
//
// IORING_SETUP_DEFER_TASKRUN has the kernel put requests into our memory only while that thread is in io_uring_enter(2) to
// wait for them. In between nothing changes there, so that the thread can wipe what it has just answered.
type ring struct {
	fd     int
	maps   [3][]byte
	sqes   []submission
	cqes   []completion
	sqTail *uint32
	cqHead *uint32
	cqTail *uint32
	tail   uint32 // behind the last that was prepared
	queued uint32 // submissions that the kernel has not taken
}

// newRing makes a ring for at most depth submissions at a time.
func newRing(depth int) (*ring, error) {
	p := ringParams{flags: setupSQE128 | setupSingleIssuer | setupDeferTaskrun | setupSubmitAll}
	entries := uintptr(1) << bits.Len(uint(depth-1))
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, entries, uintptr(unsafe.Pointer(&p)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("io_uring_setup", errno)
	}
	r := &ring{fd: int(fd)}
	for i, m := range []struct {
		offset int64
		size   uint32
	}{
		{offsetSQ, p.sq.arrayOrFlags + p.sqEntries*4},
		{offsetCQ, p.cq.droppedOrCQEs + p.cqEntries*uint32(unsafe.Sizeof(completion{}))},
		{offsetSQEs, p.sqEntries * uint32(unsafe.Sizeof(submission{}))},
	} {
		var err error
		r.maps[i], err = unix.Mmap(r.fd, m.offset, int(m.size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			r.close()
			return nil, os.NewSyscallError("mmap of an io_uring", err)
		}
	}
	sq, cq := r.maps[0], r.maps[1]
	r.sqTail, r.cqHead, r.cqTail = word(sq, p.sq.tail), word(cq, p.cq.head), word(cq, p.cq.tail)
	r.sqes = unsafe.Slice((*submission)(unsafe.Pointer(&r.maps[2][0])), p.sqEntries)
	r.cqes = unsafe.Slice((*completion)(unsafe.Pointer(&cq[p.cq.droppedOrCQEs])), p.cqEntries)
	// The kernel finds the submissions through an array of indices; each place always names its own.
	for i := range p.sqEntries {
		*word(sq, p.sq.arrayOrFlags+4*i) = i
	}
	return r, nil
}

func word(b []byte, at uint32) *uint32 { return (*uint32)(unsafe.Pointer(&b[at])) }

// next is an empty submission, which the next submit or wait hands to the kernel.
func (r *ring) next() *submission {
	s := &r.sqes[r.tail&uint32(len(r.sqes)-1)]
	*s = submission{}
	r.tail++
	r.queued++
	return s
}

// submit hands over what was prepared and comes back at once. No request arrives by it, but for entries that it commits.
func (r *ring) submit() error {
	for r.queued > 0 {
		if err := r.enter(0, 0); err != nil {
			return err
		}
	}
	return nil
}

// wait hands over what was prepared and waits for a completion.
func (r *ring) wait() error { return r.enter(1, enterGetEvents) }

// look hands over what was prepared and takes what is there.
func (r *ring) look() error { return r.enter(0, enterGetEvents) }

func (r *ring) enter(least, flags uintptr) error {
	// The kernel looks at submissions below the tail.
	atomic.StoreUint32(r.sqTail, r.tail)
	n, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), uintptr(r.queued), least, flags, 0, 0)
	switch errno {
	case 0:
		r.queued -= uint32(n)
	case unix.EINTR, unix.EAGAIN, unix.EBUSY: // nothing was taken; the caller comes back
	default:
		return os.NewSyscallError("io_uring_enter", errno)
	}
	return nil
}

// take gives the oldest completion.
func (r *ring) take() (c completion, ok bool) {
	head := *r.cqHead
	if head == atomic.LoadUint32(r.cqTail) {
		return completion{}, false
	}
	c = r.cqes[head&uint32(len(r.cqes)-1)]
	atomic.StoreUint32(r.cqHead, head+1)
	return c, true
}

// close has the kernel cancel what is under way: entries that are registered let go of the connection.
func (r *ring) close() {
	for _, m := range r.maps {
		if m != nil {
			_ = unix.Munmap(m)
		}
	}
	_ = unix.Close(r.fd)
}
