package nodes

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/nodes/transaction"
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

// maxSignature is longer than any answer that is longer than its request: SLH-DSA has 49 856 bytes.
const maxSignature = 64 << 10

// page is how the kernel rounds; larger ones do no harm.
const page = 4096

// sizeFor is the size that a file shows while a transaction's position is at end: more than any answer is longer than
// its request, because Node's readFile stops there.
func sizeFor(end int64) int64 { return (end+maxSignature)/page*page + page + 2 }

// sizes are the positions of the transactions that wait for their readers, by inode.
type sizes struct {
	mu     sync.Mutex
	inodes map[uint64]*waiting
	idle   int   // those without ends
	last   int64 // of beyond
}

// waiting stays without ends too while the kernel believes a long size: nobody has to tell it again then.
type waiting struct {
	ends map[*transaction.Channel]int64
	long bool // the kernel has been told a size that no position reaches, and no other one since
}

// longMost bounds the inodes that are kept without ends.
const longMost = 1 << 12

var _ transaction.Waiting = (*sizes)(nil)

// At notes a position, and says whether the kernel must be told now: a WRITE itself leaves its own end there.
func (s *sizes) At(ino uint64, c *transaction.Channel, end int64) (tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inodes == nil {
		s.inodes = map[uint64]*waiting{}
	}
	w := s.inodes[ino]
	if w == nil {
		w = &waiting{ends: map[*transaction.Channel]int64{}}
		s.inodes[ino] = w
	} else if len(w.ends) == 0 {
		s.idle--
	}
	w.ends[c] = end
	tell = !w.long || end > firstBeyond // O_APPEND writes from the long size on
	w.long = true
	return tell
}

// Gone forgets a position.
func (s *sizes) Gone(ino uint64, c *transaction.Channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.inodes[ino]
	if w == nil || len(w.ends) == 0 {
		return
	}
	if delete(w.ends, c); len(w.ends) > 0 {
		return
	}
	if w.long && s.idle < longMost {
		s.idle++
		return
	}
	delete(s.inodes, ino)
}

// size is what stat(2) is told, 0 where nobody waits.
func (s *sizes) size(ino uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.inodes[ino]
	if w == nil {
		return 0
	}
	w.long = false
	if len(w.ends) == 0 {
		delete(s.inodes, ino)
		s.idle--
		return 0
	}
	size := int64(0)
	for _, end := range w.ends {
		size = max(size, sizeFor(end))
	}
	return uint64(size)
}

const (
	firstBeyond = 1 << 40
	stepBeyond  = 1 << 22 // more than the kernel's largest folio
)

// beyond gives an offset on a page that nobody has ever been able to read.
func (s *sizes) beyond() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.last++
	return firstBeyond + s.last*stepBeyond + 1
}

// extend makes the file longer in the kernel than any position. One byte that is not at the beginning of a page does
// that without making the page valid. The page is a new one each time: a lock on it, which a reader might hold until
// we answer, would keep us from dying (see fleeting).
func (h *handle) extend() {
	_ = h.n.EmbeddedInode().WriteCache(h.t.sizes.beyond(), []byte{0})
}
