package nodes

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The kernel ends sendfile(2) and splice(2) by itself where a position is at or behind the size of a file, which is 0
// for transactions: busybox's cat and Python's shutil would end well with nothing. And where the size allows it they,
// like mmap(2), read through the page cache, which all users of an inode share: somebody else's answer. So a READ for
// the page cache is always refused, after which they fall back to read(2); and while a transaction waits for its
// reader the size lies beyond its position, so that they come to be refused.

// pageReads refuses READs for the page cache, which alone come without an owner of locks.
type pageReads struct{ fuse.RawFileSystem }

func (p *pageReads) Read(cancel <-chan struct{}, in *fuse.ReadIn, b []byte) (fuse.ReadResult, fuse.Status) {
	if in.ReadFlags&fuse.READ_LOCKOWNER == 0 {
		return nil, fuse.Status(syscall.EINVAL)
	}
	return p.RawFileSystem.Read(cancel, in, b)
}

// page is how the kernel rounds; larger ones do no harm.
const page = 4096

// sizeFor is the size that a file shows while a transaction's position is at end: more than any answer is longer than
// its request, because Node's readFile stops there.
func sizeFor(end int64) int64 { return (end+signatureMost)/page*page + page + 2 }

// sizes are the positions of the transactions that wait for their readers, by inode.
type sizes struct {
	mu   sync.Mutex
	ends map[uint64]map[*channel]int64
}

func (r *sizes) set(c *channel, end int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ends == nil {
		r.ends = map[uint64]map[*channel]int64{}
	}
	if r.ends[c.ino] == nil {
		r.ends[c.ino] = map[*channel]int64{}
	}
	r.ends[c.ino][c] = end
}

func (r *sizes) clear(c *channel) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ends[c.ino], c)
	if len(r.ends[c.ino]) == 0 {
		delete(r.ends, c.ino)
	}
}

// size is 0 where nobody waits.
func (r *sizes) size(ino uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	size := int64(0)
	for _, end := range r.ends[ino] {
		size = max(size, sizeFor(end))
	}
	return uint64(size)
}

// extend tells the kernel the size at once: what a WRITE itself leaves there is its own end. One byte that is not at
// the beginning of a page makes the file longer without making the page valid.
func (h *handle) extend(end int64) {
	_ = h.n.EmbeddedInode().WriteCache(sizeFor(end)-1, []byte{0})
}
