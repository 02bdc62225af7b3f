package main

import (
	"encoding/binary"
	"errors"
	"syscall"
	"unsafe"
)

// The ioctl that carries a request and its answer: _IOWR(0xC7, 1, struct { __u32 request_len, answer_len; __u8 bytes[N]; }).
const (
	callHeader = 8
	callNumber = 0xc7<<8 | 1
	callBoth   = 3 << 30 // the argument is read and written
)

// oneCall is a client's side of it.
type oneCall struct {
	arg     []byte
	message []byte
}

// newOneCall has room for the answer to a message, which is no longer than all that answers add.
func newOneCall(message []byte) *oneCall {
	return &oneCall{make([]byte, callHeader+max(len(message)+64, 320)), message}
}

// do returns how many bytes the answer has.
func (c *oneCall) do(fd int) (int, error) {
	binary.NativeEndian.PutUint32(c.arg, uint32(len(c.message)))
	copy(c.arg[callHeader:], c.message)
	number := callBoth | uintptr(len(c.arg))<<16 | callNumber
	if _, _, err := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), number, uintptr(unsafe.Pointer(&c.arg[0]))); err != 0 {
		return 0, err
	}
	return int(binary.NativeEndian.Uint32(c.arg[4:])), nil
}

// serveOneCall is the minimal handler's side.
func serveOneCall(number uint32, in, out []byte, compute func([]byte) ([]byte, error)) (int32, syscall.Errno) {
	if number&0xffff != callNumber || len(in) < callHeader || len(out) != len(in) {
		return 0, syscall.ENOTTY
	}
	n := binary.NativeEndian.Uint32(in)
	if int64(n) > int64(len(in)-callHeader) {
		return 0, syscall.EINVAL
	}
	answer, err := compute(in[callHeader:][:n])
	if err != nil || len(answer) > len(out)-callHeader {
		return 0, syscall.EIO
	}
	binary.NativeEndian.PutUint32(out, n)
	binary.NativeEndian.PutUint32(out[4:], uint32(len(answer)))
	copy(out[callHeader:], answer)
	return 0, 0
}

var errNoIoctl = errors.New("it has no such ioctl")

// answersIoctl says whether a file does; a file system that has no such ioctl is no failure.
func (t *target) answersIoctl() error {
	do, end, err := t.ioctl()
	if err != nil {
		return err
	}
	defer end()
	if err := do(); errors.Is(err, syscall.ENOTTY) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, syscall.EINVAL) {
		return errNoIoctl
	}
	return nil
}
