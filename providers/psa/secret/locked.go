package secret

import (
	"fmt"
	"math/bits"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	chunkBytes = 64 << 10 // asked of the kernel at once
	chunksMost = 64       // 4 MiB: what is beyond is ordinary memory
	leastBits  = 5        // slots have 32 bytes ...
	mostBits   = 13       // ... to 8 KiB, an RSA key of 8192 bits in PKCS #8
)

// locked is the memory that New gives out.
var locked = struct {
	sync.Mutex
	free   [mostBits + 1][][]byte // by the logarithm of their size
	live   map[*byte][]byte       // the slots in use, by their first byte
	chunks int
	err    error // why no more is to be had
}{live: map[*byte][]byte{}}

// New is n zero bytes, outside the heap and locked in memory as long as there is such memory; Free must follow.
func New(n int) []byte {
	class := max(leastBits, bits.Len(uint(max(n, 1)-1)))
	if class > mostBits {
		return make([]byte, n)
	}
	locked.Lock()
	defer locked.Unlock()
	if len(locked.free[class]) == 0 && grow(class) != nil {
		return make([]byte, n)
	}
	last := len(locked.free[class]) - 1
	slot := locked.free[class][last]
	locked.free[class] = locked.free[class][:last]
	locked.live[&slot[0]] = slot
	return slot[:n:n]
}

// Clone is a copy of b as New gives it, nil of nil; Free must follow.
func Clone(b []byte) []byte {
	if b == nil {
		return nil
	}
	c := New(len(b))
	copy(c, b)
	return c
}

// Free wipes b, which may come from anywhere, and takes back what New gave. A second time is harmless only while nobody was
// given the same memory again.
func Free(b []byte) {
	clear(b)
	if cap(b) == 0 {
		return
	}
	locked.Lock()
	defer locked.Unlock()
	first := &b[:1][0]
	slot, ours := locked.live[first]
	if !ours {
		return
	}
	clear(slot)
	delete(locked.live, first)
	class := bits.Len(uint(len(slot) - 1))
	locked.free[class] = append(locked.free[class], slot)
}

// Locked says why secrets lie in ordinary memory, which may be swapped out; nil if they do not.
func Locked() error {
	locked.Lock()
	defer locked.Unlock()
	if locked.chunks == 0 {
		return grow(leastBits)
	}
	return locked.err
}

// grow makes slots of a class. The caller holds the lock.
func grow(class int) error {
	if locked.err != nil {
		return locked.err
	}
	if locked.chunks == chunksMost {
		return fmt.Errorf("all %d bytes are in use", chunksMost*chunkBytes)
	}
	chunk, err := unix.Mmap(-1, 0, chunkBytes, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		locked.err = fmt.Errorf("mmap: %w", err)
		return locked.err
	}
	if err := unix.Mlock(chunk); err != nil {
		locked.err = fmt.Errorf("mlock after %d bytes: %w", locked.chunks*chunkBytes, err)
		_ = unix.Munmap(chunk)
		return locked.err
	}
	_ = unix.Madvise(chunk, unix.MADV_DONTDUMP) // a kernel without core dumps need not know it
	locked.chunks++
	for size := 1 << class; len(chunk) > 0; chunk = chunk[size:] {
		locked.free[class] = append(locked.free[class], chunk[:size:size])
	}
	return nil
}
