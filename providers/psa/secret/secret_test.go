package secret

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestSlots: memory is zero when it is given and wiped when it comes back, no two owners have the same, and what is larger or
// more than there may be is ordinary memory.
func TestSlots(t *testing.T) {
	if err := Locked(); err != nil {
		t.Skipf("no memory can be locked here: %v", err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for round := range 1000 {
				n := (i*37+round)%(9<<10) + 1
				b := New(n)
				if len(b) != n || cap(b) != n || !bytes.Equal(b, make([]byte, n)) {
					t.Errorf("%d bytes: %d, of %d", n, len(b), cap(b))
				}
				for j := range b {
					b[j] = byte(i + 1)
				}
				c := Clone(b)
				for _, x := range c {
					if x != byte(i+1) {
						t.Fatalf("another owner wrote %d into the memory of %d", x, i+1)
					}
				}
				Free(c)
				Free(b)
			}
		})
	}
	wg.Wait()
	Free(nil)
	Free([]byte{1})
	if b := Clone(nil); b != nil {
		t.Errorf("a copy of nothing: %v", b)
	}
	if n := len(locked.live); n != 0 {
		t.Errorf("%d slots are in use", n)
	}
	var all [][]byte
	for range chunksMost + 1 {
		for range chunkBytes >> mostBits {
			all = append(all, New(1<<mostBits))
		}
	}
	if locked.chunks != chunksMost {
		t.Errorf("%d chunks, want %d", locked.chunks, chunksMost)
	}
	for _, b := range all {
		Free(b)
	}
}

// TestNotSwappedNorDumped asks the kernel what it does with the memory.
func TestNotSwappedNorDumped(t *testing.T) {
	b := New(32)
	defer Free(b)
	if err := Locked(); err != nil {
		t.Skipf("no memory can be locked here: %v", err)
	}
	maps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	at := uintptr(unsafe.Pointer(&b[0]))
	flags := regexp.MustCompile(`VmFlags:.*`)
	for _, part := range regexp.MustCompile(`(?m)^[0-9a-f]+-[0-9a-f]+ `).FindAllIndex(maps, -1) {
		var from, to uintptr
		if _, err := fmt.Sscanf(string(maps[part[0]:part[1]]), "%x-%x", &from, &to); err != nil {
			t.Fatal(err)
		}
		if at < from || at >= to {
			continue
		}
		line := flags.Find(maps[part[0]:])
		for _, want := range []string{" lo", " dd"} { // locked; do not dump
			if !bytes.Contains(line, []byte(want)) {
				t.Errorf("%s: no%s", line, want)
			}
		}
		return
	}
	t.Error("the memory is nowhere")
}

// TestWithoutTheRight: where nothing may be locked, secrets lie in ordinary memory and Locked says so.
func TestWithoutTheRight(t *testing.T) {
	const child = "PARSECFS_TEST_NOTHING_LOCKED"
	if os.Getenv(child) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestWithoutTheRight$", "-test.v")
		cmd.Env = append(os.Environ(), child+"=1")
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		if out, err := cmd.CombinedOutput(); err != nil || !bytes.Contains(out, []byte("PASS")) {
			t.Errorf("%v: %s", err, out)
		}
		return
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{}); err != nil {
		t.Fatal(err)
	}
	b := Clone([]byte("a key"))
	defer Free(b)
	if string(b) != "a key" || Locked() == nil {
		t.Errorf("%q; it is said to be locked: %t", b, Locked() == nil)
	}
}
