package nodes_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// uring is an io_uring of one request at a time (io_uring_setup(2), io_uring_enter(2)).
type uring struct {
	fd     int
	sq, cq []byte
	sqes   []byte
	params [120]byte
}

const (
	uringWritev = 2 // IORING_OP_WRITEV
	uringRead   = 22
	uringWrite  = 23
	uringAsync  = 1 << 4 // IOSQE_ASYNC
)

func newURing(t *testing.T) *uring {
	t.Helper()
	u := &uring{}
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&u.params)), 0)
	if errno != 0 {
		t.Fatalf("io_uring_setup: %v (sysctl kernel.io_uring_disabled=0)", errno)
	}
	u.fd = int(fd)
	t.Cleanup(func() { _ = unix.Close(u.fd) })
	for _, ring := range []struct {
		to     *[]byte
		offset int64
		length int
	}{{&u.sq, 0, 4096}, {&u.cq, 0x8000000, 4096}, {&u.sqes, 0x10000000, 4 * 64}} {
		b, err := unix.Mmap(u.fd, ring.offset, ring.length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			t.Fatal(err)
		}
		*ring.to = b
		t.Cleanup(func() { _ = unix.Munmap(b) })
	}
	return u
}

// word is a word of a ring whose place is in the parameters: sq_off begins at 40, cq_off at 80.
func (u *uring) word(ring []byte, param, at int) *uint32 {
	place := *(*uint32)(unsafe.Pointer(&u.params[param]))
	return (*uint32)(unsafe.Pointer(&ring[int(place)+at]))
}

// do asks for one READ or WRITE. off -1 is the file's own position.
func (u *uring) do(op, flags byte, f *os.File, b []byte, off int64) (int, error) {
	defer runtime.KeepAlive(b)
	return u.ask(op, flags, f, unsafe.Pointer(&b[0]), len(b), off)
}

// writev writes what lies in many places.
func (u *uring) writev(flags byte, f *os.File, list [][]byte, off int64) (int, error) {
	places := make([]unix.Iovec, len(list))
	for i, b := range list {
		places[i].Base = &b[0]
		places[i].SetLen(len(b))
	}
	defer runtime.KeepAlive(list)
	return u.ask(uringWritev, flags, f, unsafe.Pointer(&places[0]), len(places), off)
}

func (u *uring) ask(op, flags byte, f *os.File, at unsafe.Pointer, length int, off int64) (int, error) {
	tail := u.word(u.sq, 44, 0)
	i := *tail & *u.word(u.sq, 48, 0)
	sqe := u.sqes[i*64 : i*64+64]
	clear(sqe)
	sqe[0], sqe[1] = op, flags
	*(*int32)(unsafe.Pointer(&sqe[4])) = int32(f.Fd())
	*(*int64)(unsafe.Pointer(&sqe[8])) = off
	*(*uint64)(unsafe.Pointer(&sqe[16])) = uint64(uintptr(at))
	*(*uint32)(unsafe.Pointer(&sqe[24])) = uint32(length)
	*u.word(u.sq, 64, int(i)*4) = i
	atomic.AddUint32(tail, 1)
	for submit := uintptr(1); ; submit = 0 {
		_, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), submit, 1, 1, 0, 0)
		if errno != 0 && errno != syscall.EINTR {
			return 0, errno
		}
		head := u.word(u.cq, 80, 0)
		if *head == atomic.LoadUint32(u.word(u.cq, 84, 0)) {
			continue
		}
		cqe := int(*head&*u.word(u.cq, 88, 0)) * 16
		n := *(*int32)(unsafe.Pointer(u.word(u.cq, 100, cqe+8)))
		atomic.AddUint32(head, 1)
		if n < 0 {
			return 0, syscall.Errno(-n)
		}
		return int(n), nil
	}
}

// TestURing: what is read and written by io_uring is what read(2) and write(2) give.
func TestURing(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	m.key("a", "aes-256-gcm")
	u := newURing(t)
	provider := filepath.Join(m.dir, "providers/software")
	for _, path := range []string{filepath.Join(m.dir, "README"), filepath.Join(m.dir, "version"), filepath.Join(m.dir, "last_error"),
		filepath.Join(provider, "info"), filepath.Join(provider, "status"), filepath.Join(provider, "capabilities"),
		filepath.Join(provider, "capabilities.json"),
		m.path("k", "attributes"), m.path("k", "public.pem"), m.path("k", "capabilities")} {
		want := m.get(path)
		for _, own := range []bool{false, true} {
			for _, flags := range []byte{0, uringAsync} {
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				var got []byte
				b := make([]byte, 200_000)
				for {
					off := int64(len(got))
					if own {
						off = -1
					}
					n, err := u.do(uringRead, flags, f, b, off)
					if err != nil {
						t.Fatalf("%s: %v", path, err)
					}
					if got = append(got, b[:n]...); n == 0 || len(got) > len(want) {
						break
					}
				}
				f.Close()
				if !bytes.Equal(got, want) {
					t.Errorf("%s by io_uring has %d bytes, want %d; at its own position: %v", path, len(got), len(want), own)
				}
			}
		}
	}
	for i := range 50 {
		message := strings.Repeat("m", 1+i*40)
		flags := byte(i % 2 * uringAsync)
		f := m.open("k", "sign")
		if n, err := u.do(uringWrite, flags, f, []byte(message), 0); err != nil || n != len(message) {
			t.Fatalf("wrote %d bytes, %v", n, err)
		}
		b := make([]byte, 8192)
		n, err := u.do(uringRead, flags, f, b, 0)
		if err != nil || n != 64 {
			t.Fatalf("read %d bytes, %v", n, err)
		}
		want, err := signed(m.path("k", "sign"), message)
		if err != nil || !bytes.Equal(b[:n], want) {
			t.Fatalf("signature %x, want %x, %v", b[:n], want, err)
		}
		if n, err := u.do(uringRead, flags, f, b, int64(n)); err != nil || n != 0 {
			t.Fatalf("behind the end there are %d bytes, %v", n, err)
		}
		f.Close()
	}

	// What the kernel cuts into pieces comes in any order. With O_APPEND, whose offsets say little, it is right or refused.
	long := bytes.Repeat([]byte("0123456789abcde\n"), 1<<15)
	for i := range long {
		long[i] += byte(i >> 12)
	}
	hash := filepath.Join(provider, "hash/sha256")
	sum, err := signed(hash, string(long))
	if err != nil {
		t.Fatal(err)
	}
	answered, refused := 0, 0
	for i := range 80 {
		appends := i % 4 / 2 * os.O_APPEND
		f, err := os.OpenFile(hash, os.O_RDWR|appends, 0)
		if err != nil {
			t.Fatal(err)
		}
		n, err := u.do(uringWrite, byte(i%2*uringAsync), f, long, 0)
		b := make([]byte, 200_000)
		if err == nil && n == len(long) {
			n, err = u.do(uringRead, 0, f, b, int64(i/4%2*n))
		}
		switch {
		case appends != 0 && errors.Is(err, syscall.EINVAL):
			refused++
		case appends != 0 && err == nil && n == 0: // read where the message does not end
		case err != nil || !bytes.Equal(b[:n], sum):
			t.Fatalf("O_APPEND %v: %d bytes, %v", appends != 0, n, err)
		default:
			answered++
		}
		f.Close()
	}
	t.Logf("of writes in pieces %d were answered, %d refused", answered, refused)

	// From many places the pieces are short, and nothing tells them from holes: right or refused.
	var list [][]byte
	for i := range 200 {
		list = append(list, []byte(strings.Repeat(string(rune('a'+i%26)), 1+i)))
	}
	if sum, err = signed(hash, string(bytes.Join(list, nil))); err != nil {
		t.Fatal(err)
	}
	answered, refused = 0, 0
	for i := range 80 {
		f, err := os.OpenFile(hash, os.O_RDWR|i%2*os.O_APPEND, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = u.writev(byte(i/2%2*uringAsync), f, list, 0)
		b := make([]byte, 100)
		n := 0
		if err == nil {
			n, err = u.do(uringRead, 0, f, b, 0)
		}
		switch {
		case errors.Is(err, syscall.EINVAL):
			refused++
		case err != nil || !bytes.Equal(b[:n], sum):
			t.Fatalf("from many places, O_APPEND %v: %d bytes, %v", i%2 != 0, n, err)
		default:
			answered++
		}
		f.Close()
	}
	t.Logf("of writes from many places %d were answered, %d refused", answered, refused)
	slot := m.path("a", "encrypt.d", "x")
	if err := os.Mkdir(slot, 0700); err != nil {
		t.Fatal(err)
	}
	m.put(filepath.Join(slot, "plaintext"), string(long))
	want := m.get(filepath.Join(slot, "ciphertext"))
	for range 20 {
		f, err := os.Open(filepath.Join(slot, "ciphertext"))
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1<<20)
		if n, err := u.do(uringRead, 0, f, b, 0); err != nil || !bytes.Equal(b[:n], want) {
			t.Fatalf("read %d bytes of %d, %v", n, len(want), err)
		}
		f.Close()
	}
}

// signed is one transaction by read(2) and write(2).
func signed(path, message string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.WriteString(message); err != nil {
		return nil, err
	}
	return read(f)
}
