package nodes

import (
	"context"
	"encoding/binary"
	"fmt"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"

	"github.com/parsecfs/parsecfs/nodes/gate"
)

// An ioctl on an open operation file carries a request and its answer: _IOWR(0xC7, 1, struct { __u32 request_len, answer_len;
// __u8 bytes[N]; }), of any size that an ioctl can have (docs/ioctl.md). Another struct would have another number.
const (
	ioctlType   = 0xC7 // which no driver of the kernel has
	ioctlNumber = 1
	ioctlHeader = 8
)

// isCall says whether an ioctl is this one: read and write, the type and the number. Kernel and libc send others to any file.
func isCall(cmd uint32) bool { return cmd>>30 == 3 && cmd&0xffff == ioctlType<<8|ioctlNumber }

// parseCall gives the request in an ioctl's bytes. The kernel gave as many as the ioctl's number says, in and out.
func parseCall(input []byte, output int) ([]byte, error) {
	if len(input) < ioctlHeader || len(input) != output {
		return nil, gate.Refuse(syscall.EINVAL, fmt.Sprintf("an ioctl of %d bytes is too short", min(len(input), output)),
			"its size is that of the struct: 8 bytes and N")
	}
	n, room := binary.NativeEndian.Uint32(input), len(input)-ioctlHeader
	if uint64(n) > uint64(room) {
		return nil, gate.Refuse(syscall.EINVAL, fmt.Sprintf("request_len is %d, and bytes has %d", n, room),
			"give the ioctl the struct's real size, or use write(2) and read(2)")
	}
	return input[ioctlHeader : ioctlHeader+n], nil
}

var _ = (fs.FileIoctler)((*handle)(nil))

// Ioctl is a WRITE and a READ of one transaction, and safe as those are: the gate judges whoever calls now. What comes back is
// zero behind the answer: the buffer had others' bytes.
func (h *handle) Ioctl(ctx context.Context, cmd uint32, _ uint64, input, output []byte) (int32, syscall.Errno) {
	if !isCall(cmd) || !h.h.Whole() {
		return 0, syscall.ENOTTY
	}
	stays, err := h.call(ctx, input, output)
	if err == nil {
		return 0, 0
	}
	errno := h.t.fail(ctx, h.n.place(), "ioctl", err)
	if stays || errno == syscall.EINTR {
		h.t.sizes.hold(h, 0)
	}
	if stays {
		return -int32(errno), 0 // with the answer's length, which an error of the request would not carry
	}
	return 0, errno
}

// call fills output. stays: with the length of an answer that is too long for it, and waits to be read.
func (h *handle) call(ctx context.Context, input, output []byte) (stays bool, err error) {
	if !h.both {
		return false, gate.Refuse(syscall.EBADF, "the file is not open for reading and writing", "open it with O_RDWR")
	}
	request, err := parseCall(input, len(output))
	if err != nil {
		return false, err
	}
	bytes := output[ioctlHeader:]
	n, err := h.h.Call(ctx, callerOf(ctx), request, bytes)
	filled := n
	if err != nil {
		filled, stays = 0, n > 0
	}
	if err != nil && !stays {
		return false, err
	}
	clear(bytes[filled:])
	binary.NativeEndian.PutUint32(output, uint32(len(request)))
	binary.NativeEndian.PutUint32(output[4:], uint32(n))
	return stays, err
}
