package uring

import (
	"encoding/binary"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// struct fuse_uring_req_header, and what stands behind it in an entry's part of our memory.
const (
	inHeaderSize  = 40  // struct fuse_in_header, at 0
	outHeaderSize = 16  // struct fuse_out_header, at 0 too
	argumentsAt   = 128 // the first argument
	aboutAt       = 256 // struct fuse_uring_ent_in_out
	headerSize    = 288
	vectorsAt     = 320 // the two struct iovec by which it is registered
	headerStride  = 512
)

// opcodes of requests that are not like others.
const (
	opcodeForget      = 2
	opcodeRead        = 15
	opcodeWrite       = 16
	opcodeFlush       = 25
	opcodeInterrupt   = 36
	opcodeIoctl       = 39
	opcodeBatchForget = 42
)

// entry is one request at a time: the kernel puts it into its memory, and finds the answer there.
type entry struct {
	index   int
	header  []byte
	payload []byte
	vectors *[2]unix.Iovec

	// unique is the request's number until it is answered, else 0.
	unique atomic.Uint64
	// cut is the number of the last request that was interrupted.
	cut atomic.Uint64

	commit uint64 // the number by which the kernel knows the answer
	opcode uint32
	uid    uint32
	filled bool    // a request was put there, which the thread has not begun
	dirty  int     // bytes of the payload that an answer may have left
	place  *places // among which it is counted; nil: nowhere

	in  [3][]byte
	out [2][]byte
}

func (e *entry) init(index int, header, payload []byte) {
	e.index, e.header, e.payload = index, header[:vectorsAt], payload
	e.vectors = (*[2]unix.Iovec)(unsafe.Pointer(&header[vectorsAt]))
	e.vectors[0].Base, e.vectors[1].Base = &header[0], &payload[0]
	e.vectors[0].SetLen(headerSize)
	e.vectors[1].SetLen(len(payload))
}

func (e *entry) head() *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(&e.header[0])) }

// payloadSize is what the request brought beside its header and its first argument.
func (e *entry) payloadSize() int { return int(binary.NativeEndian.Uint32(e.header[aboutAt+16:])) }

// arguments is the first argument, whose length the kernel leaves to be counted.
func (e *entry) arguments() []byte {
	n := int(e.head().Length) - inHeaderSize - e.payloadSize()
	return e.header[argumentsAt : argumentsAt+max(0, min(n, aboutAt-argumentsAt))]
}

// asked is how much a request wants to read of what may be secret.
func (e *entry) asked() int {
	in := e.arguments()
	switch {
	case e.opcode == opcodeRead && len(in) >= 20: // struct fuse_read_in
		return int(binary.NativeEndian.Uint32(in[16:]))
	case e.opcode == opcodeIoctl && len(in) >= 32: // struct fuse_ioctl_in; an answer has struct fuse_ioctl_out in front
		return 16 + int(binary.NativeEndian.Uint32(in[28:]))
	}
	return 0
}

// begin notes what is asked.
func (e *entry) begin() {
	h := e.head()
	e.commit = binary.NativeEndian.Uint64(e.header[aboutAt+8:])
	e.opcode, e.uid = h.Opcode, h.Uid
	if n := e.payloadSize(); n < e.dirty {
		clear(e.payload[n:e.dirty])
	}
	e.dirty = 0
	e.unique.Store(h.Unique)
}

// handle has the request answered, in place. Scratch holds what was asked while the answer is written over it; it is given back
// wiped, perhaps longer.
func (e *entry) handle(server *fuse.ProtocolServer, scratch []byte) []byte {
	unique, size, asked := e.unique.Load(), e.payloadSize(), e.asked()
	e.in = [3][]byte{e.header[:inHeaderSize], e.arguments(), e.payload[:size]}
	copied := 0
	// WRITE's data is looked at before its answer is written; what others bring may be looked at later.
	if e.opcode != opcodeWrite && size > 0 {
		scratch = append(scratch[:0], e.payload[:size]...)
		e.in[2], copied = scratch, size
	}
	e.out = [2][]byte{e.header[:outHeaderSize], e.payload}
	n, status := server.HandleRequest(e.in[:], e.out[:])
	e.in, e.out = [3][]byte{}, [2][]byte{}
	clear(scratch[:copied])
	if !status.Ok() || n < outHeaderSize {
		n = e.refuse(unique, unix.EIO)
	}
	answer := n - outHeaderSize
	if answer < size {
		clear(e.payload[answer:size])
	}
	// What was read is somebody's alone: random bytes, a key. A handler may have written it, and failed then.
	if e.dirty = 0; asked > 0 {
		if e.dirty = answer; binary.NativeEndian.Uint32(e.header[4:]) != 0 {
			e.dirty = min(asked, len(e.payload))
		}
	}
	e.answer(answer)
	e.unique.Store(0)
	return scratch
}

// refuse writes the answer that is an error.
func (e *entry) refuse(unique uint64, errno unix.Errno) int {
	binary.NativeEndian.PutUint32(e.header, outHeaderSize)
	binary.NativeEndian.PutUint32(e.header[4:], uint32(-int32(errno)))
	binary.NativeEndian.PutUint64(e.header[8:], unique)
	return outHeaderSize
}

// turnAway answers a request that finds no place. What it brought may be secret, and is of no use any more.
func (e *entry) turnAway() {
	clear(e.payload[:e.payloadSize()])
	e.refuse(e.unique.Swap(0), unix.EAGAIN)
	e.answer(0)
}

// answer tells the kernel how much of the payload is the answer.
func (e *entry) answer(size int) {
	clear(e.header[aboutAt : aboutAt+8])
	binary.NativeEndian.PutUint32(e.header[aboutAt+16:], uint32(size))
}

// wipe erases what the last answer left. The kernel must have taken it, and have put no other request there.
func (e *entry) wipe() {
	clear(e.payload[:e.dirty])
	e.dirty = 0
}
