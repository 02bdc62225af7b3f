package nodes_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is the ioctl of docs/ioctl.md with room for n bytes; raw is what came back.
func call(f *os.File, n int, request []byte) (answer, raw []byte, err error) {
	return callSaying(f, n, uint32(len(request)), request)
}

// callSaying is one that may say another length of its request.
func callSaying(f *os.File, n int, length uint32, request []byte) (answer, raw []byte, err error) {
	b := make([]byte, 8+n)
	binary.NativeEndian.PutUint32(b, length)
	binary.NativeEndian.PutUint32(b[4:], 0xffffffff) // it is not read
	copy(b[8:], request)
	errno := ioctl(f, callNumber(len(b)), b)
	if errno != 0 {
		return nil, b, errno
	}
	return b[8 : 8+binary.NativeEndian.Uint32(b[4:])], b, nil
}

func callNumber(size int) uint32 { return 3<<30 | uint32(size)<<16 | 0xC7<<8 | 1 }

func ioctl(f *os.File, cmd uint32, b []byte) syscall.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(cmd), uintptr(unsafe.Pointer(unsafe.SliceData(b))))
	return errno
}

func (m *mounted) opened(path string, flags int) *os.File {
	m.t.Helper()
	f, err := os.OpenFile(path, flags, 0600)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { f.Close() })
	return f
}

// TestIoctl: request and answer in one call, in each shape that operations have.
func TestIoctl(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ed25519")
	m.key("ec", "ecdsa-p256-sha256")
	m.key("aes", "aes-256-gcm")
	m.key("kem", "ml-kem-768")
	message := []byte("a message")
	sign := m.opened(m.path("k", "sign"), os.O_RDWR)
	signature, raw, err := call(sign, 100, message)
	if err != nil || len(signature) != 64 || binary.NativeEndian.Uint32(raw) != uint32(len(message)) {
		t.Fatalf("sign: %v, %x", err, raw)
	}
	if rest := raw[8+64:]; !bytes.Equal(rest, make([]byte, len(rest))) {
		t.Errorf("behind the answer: %x", rest)
	}
	again, err := ask(m.path("k", "sign"), message)
	if err != nil || !bytes.Equal(signature, again) {
		t.Errorf("by WRITE and READ: %v, %x, want %x", err, again, signature)
	}
	for n := range 3 { // any number of operations on one open file
		text := fmt.Appendf(nil, "message %d", n)
		if got, _, err := call(sign, 100, text); err != nil || !m.verifies("k", text, got) {
			t.Errorf("message %d: %v, %x", n, err, got)
		}
	}
	if got, _, err := call(sign, 64, nil); err != nil || !m.verifies("k", nil, got) {
		t.Errorf("an empty message: %v, %x", err, got)
	}

	// Several inputs in one stream, cut off as those of a WRITE are.
	verify := m.opened(m.path("k", "verify"), os.O_RDWR)
	for range 2 {
		if got, _, err := call(verify, 200, append(bytes.Clone(signature), message...)); err != nil || string(got) != "valid\n" {
			t.Errorf("verify: %v, %q", err, got)
		}
		if _, _, err := call(verify, 200, append(bytes.Clone(signature), 'x')); !errors.Is(err, syscall.EBADMSG) {
			t.Errorf("verify of another message: %v", err)
		}
	}
	encrypt, decrypt := m.opened(m.path("aes", "encrypt"), os.O_RDWR), m.opened(m.path("aes", "decrypt"), os.O_RDWR)
	for _, n := range []int{0, 1, 4096, 16375 - 28} {
		plaintext := bytes.Repeat([]byte("p"), n)
		ciphertext, _, err := call(encrypt, 16375, plaintext)
		if err != nil || len(ciphertext) != n+28 {
			t.Fatalf("encrypt %d bytes: %v, %d bytes", n, err, len(ciphertext))
		}
		if got, _, err := call(decrypt, n+28, ciphertext); err != nil || !bytes.Equal(got, plaintext) {
			t.Errorf("decrypt %d bytes: %v, %d bytes", n, err, len(got))
		}
	}
	// No input at all.
	encapsulate := m.opened(m.path("kem", "encapsulate"), os.O_RDWR)
	if got, _, err := call(encapsulate, 2000, nil); err != nil || len(got) != 1088+32 {
		t.Errorf("encapsulate: %v, %d bytes", err, len(got))
	}
	if _, _, err := call(encapsulate, 2000, message); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("encapsulate with an input: %v", err)
	}
	if got, _, err := call(encapsulate, 2000, nil); err != nil || len(got) != 1088+32 {
		t.Errorf("encapsulate again: %v, %d bytes", err, len(got))
	}
	// Without a key, and in a slot.
	digest := m.opened(filepath.Join(m.dir, "providers/software/hash/sha256"), os.O_RDWR)
	if got, _, err := call(digest, 32, message); err != nil || len(got) != 32 {
		t.Errorf("hash: %v, %x", err, got)
	}
	slot := m.opened(m.path("ec", "sign_raw.d/slot"), os.O_RDWR|os.O_CREATE)
	if got, _, err := call(slot, 100, message); err != nil || len(got) != 64 {
		t.Errorf("a slot: %v, %x", err, got)
	}
	if _, err := slot.Read(make([]byte, 10)); !errors.Is(err, syscall.ENODATA) {
		t.Errorf("a slot after its answer was handed out: %v", err)
	}
}

func (m *mounted) verifies(key string, message, signature []byte) bool {
	m.t.Helper()
	got, err := ask(m.path(key, "verify"), append(bytes.Clone(signature), message...))
	return err == nil && string(got) == "valid\n"
}

// ask is one transaction by WRITE and READ.
func ask(path string, request []byte) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Write(request); err != nil {
		return nil, err
	}
	b := make([]byte, 1<<16)
	n, err := f.Read(b)
	return b[:n], err
}

// TestIoctlInTheWay: on a handle that is in the middle of something an ioctl does nothing, and what is in the way stays.
func TestIoctlInTheWay(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ed25519")
	message := []byte("a message")
	open := func() *os.File { return m.opened(m.path("k", "sign"), os.O_RDWR) }
	refused := func(f *os.File, want syscall.Errno) {
		t.Helper()
		if _, _, err := call(f, 100, []byte("another")); !errors.Is(err, want) {
			t.Errorf("got %v, want %v", err, want)
		}
	}
	signed := func(f *os.File, text []byte) {
		t.Helper()
		b := make([]byte, 100)
		if n, err := f.Read(b); err != nil || !m.verifies("k", text, b[:n]) {
			t.Errorf("the answer to %q: %v, %x", text, err, b[:n])
		}
	}
	half := open()
	half.Write(message[:4])
	refused(half, syscall.EBUSY)
	half.Write(message[4:])
	signed(half, message)
	unread := open()
	unread.Write(message)
	if n, err := unread.Read(make([]byte, 10)); n != 10 || err != nil {
		t.Fatal(n, err)
	}
	refused(unread, syscall.EBUSY)
	if n, err := unread.Read(make([]byte, 100)); n != 54 || err != nil {
		t.Errorf("the rest of the answer: %d, %v", n, err)
	}
	if got, _, err := call(unread, 100, message); err != nil || !m.verifies("k", message, got) {
		t.Errorf("once it was read: %v, %x", err, got)
	}
	unread.Write(message) // and the other way round
	signed(unread, message)
	poisoned := open()
	poisoned.Write(message)
	poisoned.WriteAt(message, 1000)
	refused(poisoned, syscall.EINVAL)
	if err := poisoned.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if got, _, err := call(poisoned, 100, message); err != nil || !m.verifies("k", message, got) {
		t.Errorf("once it was truncated: %v, %x", err, got)
	}
	// An error is its call's alone.
	m.key("hash", "ecdsa-p256-sha256")
	hash := m.opened(m.path("hash", "sign_hash"), os.O_RDWR)
	for range 2 {
		if _, _, err := call(hash, 200, make([]byte, 65)); !errors.Is(err, syscall.EFBIG) {
			t.Errorf("a digest of 65 bytes: %v", err)
		}
		if _, _, err := call(hash, 200, make([]byte, 31)); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("a digest of 31 bytes: %v", err)
		}
		if got, _, err := call(hash, 200, make([]byte, 32)); err != nil || len(got) == 0 {
			t.Errorf("a digest: %v", err)
		}
	}
}

// TestIoctlTooLong: an answer that does not fit is not lost, and its length is told.
func TestIoctlTooLong(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ed25519")
	m.key("long", "slh-dsa-sha2-128f")
	message := []byte("a message")
	f := m.opened(m.path("k", "sign"), os.O_RDWR)
	small := func(f *os.File, n, length int) {
		t.Helper()
		_, raw, err := call(f, n, message)
		if !errors.Is(err, syscall.EMSGSIZE) || binary.NativeEndian.Uint32(raw[4:]) != uint32(length) || !bytes.Equal(raw[8:], make([]byte, n)) {
			t.Errorf("an answer that does not fit: %v, %x", err, raw)
		}
	}
	small(f, 63, 64)
	b := make([]byte, 100)
	if n, err := f.ReadAt(b, 0); n != 64 || !m.verifies("k", message, b[:n]) {
		t.Errorf("read: %d bytes, %v", n, err)
	}
	small(f, 9, 64)
	if _, _, err := call(f, 100, []byte("another")); !errors.Is(err, syscall.EBUSY) {
		t.Errorf("another request while it waits: %v", err)
	}
	if got, _, err := call(f, 64, message); err != nil || !m.verifies("k", message, got) {
		t.Errorf("the same with more room: %v, %x", err, got)
	}
	small(f, 9, 64)
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	if got, _, err := call(f, 64, []byte("another")); err != nil || !m.verifies("k", []byte("another"), got) {
		t.Errorf("once it was truncated: %v, %x", err, got)
	}
	long := m.opened(m.path("long", "sign"), os.O_RDWR)
	small(long, 16375, 17088)
	b = make([]byte, 1<<16)
	if n, err := long.Read(b); err != nil || n != 17088 || !m.verifies("long", message, b[:n]) {
		t.Errorf("read: %d bytes, %v", n, err)
	}
}

// TestIoctlLies: nothing that an ioctl says of itself reaches beyond it, and others are told apart from it.
func TestIoctlLies(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ed25519")
	f := m.opened(m.path("k", "sign"), os.O_RDWR)
	for _, length := range []uint32{101, 4096, 1 << 31, 1<<32 - 1} {
		if _, _, err := callSaying(f, 100, length, nil); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("a request of %d bytes: %v", length, err)
		}
	}
	for size := range 8 {
		if errno := ioctl(f, callNumber(size), make([]byte, 8)); errno != syscall.EINVAL {
			t.Errorf("a struct of %d bytes: %v", size, errno)
		}
	}
	if errno := ioctl(f, callNumber(256), nil); errno != syscall.EFAULT {
		t.Errorf("no struct: %v", errno)
	}
	for _, want := range []string{"\tioctl\tEINVAL\t", "request_len is 4294967295, and bytes has 100"} {
		if text := string(m.get(m.path("k", "last_error"))); !strings.Contains(text, want) {
			t.Errorf("last_error does not say %q: %s", want, text)
		}
	}
	if got, _, err := call(f, 100, []byte("a message")); err != nil || !m.verifies("k", []byte("a message"), got) {
		t.Errorf("and then: %v, %x", err, got)
	}
}

// TestIoctlElsewhere: what else is sent to files, and this one to other files, is ENOTTY, runs nothing and is no failure.
func TestIoctlElsewhere(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ed25519")
	m.key("aes", "aes-256-gcm")
	if err := os.Mkdir(m.path("draft"), 0777); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.path("aes", "encrypt.d/slot"), 0700); err != nil {
		t.Fatal(err)
	}
	message := []byte("a message")
	elsewhere := map[string]int{m.dir: os.O_RDONLY, m.path(): os.O_RDONLY, m.path("k"): os.O_RDONLY, m.path("k", "sign.d"): os.O_RDONLY,
		m.path("k", "public.pem"): os.O_RDONLY, m.path("k", "last_error"): os.O_RDONLY, m.path("k", "attributes"): os.O_RDWR,
		m.path("k", "certificate"): os.O_RDWR, m.path("draft", "generate"): os.O_RDWR, m.path("draft", "import"): os.O_RDWR,
		filepath.Join(m.dir, "providers/software/random"): os.O_RDONLY, m.path("aes", "encrypt.d/slot"): os.O_RDONLY,
		m.path("aes", "encrypt.d/slot/nonce"): os.O_RDWR, m.path("aes", "encrypt.d/slot/plaintext"): os.O_WRONLY,
		m.path("aes", "encrypt.d/slot/ciphertext"): os.O_RDONLY}
	for path, flags := range elsewhere {
		if _, _, err := call(m.opened(path, flags), 100, message); !errors.Is(err, syscall.ENOTTY) {
			t.Errorf("%s: %v", path, err)
		}
	}
	sign := m.opened(m.path("k", "sign"), os.O_RDWR)
	sign.Write(message)
	const getXAttr = 0x801c581f // FS_IOC_FSGETXATTR
	for name, cmd := range map[string]uint32{"TCGETS": unix.TCGETS, "FS_IOC_GETFLAGS": unix.FS_IOC_GETFLAGS, "FS_IOC_FSGETXATTR": getXAttr,
		"the other way": 1<<30 | 100<<16 | 0xC701, "another number": 3<<30 | 100<<16 | 0xC702} {
		if errno := ioctl(sign, cmd, make([]byte, 100)); errno != syscall.ENOTTY {
			t.Errorf("%s: %v", name, errno)
		}
	}
	b := make([]byte, 100)
	if n, err := sign.Read(b); err != nil || !m.verifies("k", message, b[:n]) {
		t.Errorf("the transaction that was under way: %v, %x", err, b[:n])
	}
	path := m.opened(m.path("k", "sign"), unix.O_PATH)
	if _, _, err := call(path, 100, message); !errors.Is(err, syscall.EBADF) {
		t.Errorf("O_PATH: %v", err)
	}
	if text := m.get(filepath.Join(m.dir, "last_error")); len(text) != 0 {
		t.Errorf("somebody failed: %s", text)
	}
	for _, flags := range []int{os.O_RDONLY, os.O_WRONLY} {
		if _, _, err := call(m.opened(m.path("k", "sign"), flags), 100, message); !errors.Is(err, syscall.EBADF) {
			t.Errorf("opened with %d: %v", flags, err)
		}
	}
}

// TestIoctlShared: threads that share one open file may be told that it is busy, and never get another's answer.
func TestIoctlShared(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ed25519")
	sign := m.opened(m.path("k", "sign"), os.O_RDWR)
	slot := m.opened(m.path("k", "sign.d/slot"), os.O_RDWR|os.O_CREATE)
	same := m.opened(m.path("k", "sign.d/slot"), os.O_RDWR)
	var answered, busy atomic.Int32
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for i := range 100 {
				f := []*os.File{sign, slot, same}[i%3]
				text := fmt.Appendf(nil, "message %d of %d", i, n)
				got, _, err := call(f, 100, text)
				switch {
				case errors.Is(err, syscall.EBUSY):
					busy.Add(1)
				case err != nil:
					t.Error(err)
				case !m.verifies("k", text, got):
					t.Errorf("WRONG ANSWER to %q: %x", text, got)
				default:
					answered.Add(1)
				}
			}
		})
	}
	all.Wait()
	t.Logf("%d answered, %d busy", answered.Load(), busy.Load())
	if answered.Load() == 0 {
		t.Error("nobody got an answer")
	}
}
