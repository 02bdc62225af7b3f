package nodes

import (
	"bytes"
	"encoding/binary"
	"syscall"
	"testing"
)

// FuzzCall: what an ioctl's bytes say of their own lengths never reaches beyond them.
func FuzzCall(f *testing.F) {
	header := func(request, answer uint32, rest string) []byte {
		b := binary.NativeEndian.AppendUint32(nil, request)
		return append(binary.NativeEndian.AppendUint32(b, answer), rest...)
	}
	f.Add(header(5, 0, "hello"), 13)
	f.Add(header(6, 0, "hello"), 13)
	f.Add(header(0, 9, "hello"), 13)
	f.Add(header(1<<31, 0, "hello"), 13)
	f.Add(header(1<<32-1, 1<<32-1, "hello"), 13)
	f.Add(header(0, 0, ""), 8)
	f.Add(header(0, 0, "")[:7], 7)
	f.Add([]byte{}, 0)
	f.Add(header(5, 0, "hello"), 12)
	f.Add(header(16376, 0, string(make([]byte, 16375))), 16383)
	f.Fuzz(func(t *testing.T, input []byte, output int) {
		before := bytes.Clone(input)
		request, err := parseCall(input, output)
		if !bytes.Equal(before, input) {
			t.Error("it was changed")
		}
		if err != nil {
			if request != nil || errnoOf(err) != syscall.EINVAL {
				t.Errorf("%v, with %d bytes", err, len(request))
			}
			return
		}
		if len(input) != output || len(input) < 8 || uint32(len(request)) != binary.NativeEndian.Uint32(input) ||
			!bytes.Equal(request, input[8:8+len(request)]) {
			t.Errorf("%d bytes of %d, for %d", len(request), len(input), output)
		}
	})
}

// TestIsCall: no ioctl is taken for ours that a kernel or libc sends to any file.
func TestIsCall(t *testing.T) {
	t.Parallel()
	for _, size := range []uint32{0, 8, 256, 1<<14 - 1} {
		if !isCall(3<<30 | size<<16 | 0xC701) {
			t.Errorf("of %d bytes it is not known", size)
		}
		for _, cmd := range []uint32{0<<30 | size<<16 | 0xC701, 1<<30 | size<<16 | 0xC701, 2<<30 | size<<16 | 0xC701,
			3<<30 | size<<16 | 0xC700, 3<<30 | size<<16 | 0xC702, 3<<30 | size<<16 | 0xC601, 3<<30 | size<<16 | 0x0001} {
			if isCall(cmd) {
				t.Errorf("%#x is taken for it", cmd)
			}
		}
	}
}
