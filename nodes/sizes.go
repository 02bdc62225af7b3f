package nodes

import (
	"maps"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// The kernel ends sendfile(2), splice(2) and reads by io_uring by itself where a position is at or behind the size of a file,
// which is 0 for transactions at rest: busybox's cat and Python's shutil would end well with nothing. And where the size allows
// it they, like mmap(2), read through the page cache, which all users of an inode share: somebody else's answer. So a READ for
// the page cache is refused (pageReads), after which they fall back to read(2); and while somebody may read an answer the kernel
// believes in a size beyond all positions, so that they come to be refused.
//
// stat(2) shows another size, to each user their own. Its answer would end what the kernel believes, unless the kernel finds
// that the file has grown while it asked: then it hands the answer on and keeps nothing of it (fuse_change_attributes).

// sizes are the files of transactions from which somebody may read, by inode, and what the kernel believes of them.
type sizes struct {
	mu     sync.Mutex
	inodes map[uint64]*reading
	idle   int // those without handles
	// forgotten is where the kernel was told to grow any of those that are no longer here: it may believe that size still, and
	// would believe an answer of stat(2) beside what is not behind it.
	forgotten int64
	// changed are the inodes whose attributes are not what the kernel knows: it must keep what it is answered. The time is
	// when that ends, none before the first answer.
	changed map[uint64]time.Time
}

// reading stays without handles too while the kernel believes a long size: nobody has to tell it again then.
type reading struct {
	in      *fs.Inode
	handles map[*handle]struct{}
	end     int64     // no handle's position is behind it
	long    int64     // the size that the kernel believes; 0: another one
	last    int64     // where it was told to grow, always further on
	answers int       // that it believes instead
	later   bool      // it is told when what has changed is known
	quiet   time.Time // when the last handle went
	telling sync.Mutex
}

const (
	// idleMost bounds the inodes that are kept without handles, and those that are changed.
	idleMost = 1 << 12
	// step is more than the kernel's largest folio.
	step = 1 << 22
	// endMost is behind all positions that a program has.
	endMost = 1 << 60
	// farthest is where a message can begin: it leaves room for answers to stat(2) below endMost.
	farthest = 1 << 50
	// settled is when no answer of before can come any more.
	settled = time.Second
)

// hold notes that somebody may read through a handle, whose position is at end.
func (s *sizes) hold(h *handle, end int64) {
	if r, tell := s.note(h, end); tell {
		s.extend(r)
	}
}

func (s *sizes) note(h *handle, end int64) (r *reading, tell bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inodes == nil {
		s.inodes = map[uint64]*reading{}
	}
	ino := h.n.number()
	r = s.inodes[ino]
	switch {
	case r == nil:
		r = &reading{handles: map[*handle]struct{}{}, last: s.forgotten}
		s.inodes[ino] = r
	case len(r.handles) == 0:
		s.idle--
		if r.end = 0; r.long == 0 && time.Since(r.quiet) > settled {
			r.last = 0
		}
	}
	r.in = h.n.EmbeddedInode()
	r.handles[h] = struct{}{}
	h.held.Store(true)
	r.end = max(r.end, end)
	return r, r.long <= r.end
}

// drop notes that nothing is left to read through a handle.
func (s *sizes) drop(h *handle) {
	if !h.held.Load() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	h.held.Store(false)
	ino := h.n.number()
	r := s.inodes[ino]
	if r == nil || len(r.handles) == 0 {
		return
	}
	if delete(r.handles, h); len(r.handles) > 0 {
		return
	}
	r.quiet = time.Now()
	if s.idle < idleMost {
		s.idle++
		return
	}
	delete(s.inodes, ino)
	s.forgotten = max(s.forgotten, r.last)
}

// extend makes the file longer in the kernel than any position. One byte that is not at the beginning of a page does that
// without making the page valid. The page lies behind the end, where nobody has been able to read it: a lock on it, which a
// reader might hold until we answer, would keep us from dying (see fleeting).
func (s *sizes) extend(r *reading) {
	r.telling.Lock()
	defer r.telling.Unlock()
	in, at, answers := s.next(r)
	if at > endMost || in.WriteCache(at, []byte{0}) != 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if answers == r.answers {
		r.long = at + 1
	}
}

func (s *sizes) next(r *reading) (in *fs.Inode, at int64, answers int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.last = max(r.last, r.end)/step*step + step
	return r.in, r.last + 1, r.answers
}

// answer is for whoever is about to answer what stat(2) is told of an inode: the kernel must not believe it while somebody reads.
func (s *sizes) answer(ino uint64) {
	r, extend := s.asked(ino)
	if extend {
		s.extend(r)
		return
	}
	if r != nil {
		time.AfterFunc(settled, func() { s.again(r) })
	}
}

// asked gives what somebody reads from. extend: now; else later, since the kernel must believe this answer. Nil: it may.
func (s *sizes) asked(ino uint64) (r *reading, extend bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, unknown := s.inodes[ino], s.unknown(ino)
	if r == nil {
		return nil, false
	}
	if len(r.handles) == 0 || unknown {
		r.long = 0
		r.answers++
	}
	if len(r.handles) == 0 || unknown && r.later {
		return nil, false
	}
	r.later = unknown
	return r, !unknown
}

func (s *sizes) again(r *reading) {
	s.mu.Lock()
	tell := len(r.handles) > 0 && r.long <= r.end
	r.later = false
	s.mu.Unlock()
	if tell {
		s.extend(r)
	}
}

// unknown says whether the kernel must keep what it is answered for an inode. The caller holds s.mu.
func (s *sizes) unknown(ino uint64) bool {
	until, changed := s.changed[ino]
	switch now := time.Now(); {
	case !changed:
		return false
	case until.IsZero():
		s.changed[ino] = now.Add(settled)
	case now.After(until):
		delete(s.changed, ino)
		return false
	}
	return true
}

// change notes that an inode has other attributes now.
func (s *sizes) change(ino uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.changed == nil {
		s.changed = map[uint64]time.Time{}
	}
	if len(s.changed) >= idleMost {
		now := time.Now()
		maps.DeleteFunc(s.changed, func(_ uint64, until time.Time) bool { return !until.IsZero() && now.After(until) })
	}
	if len(s.changed) >= idleMost {
		for old := range s.changed {
			delete(s.changed, old)
			break
		}
	}
	s.changed[ino] = time.Time{}
}

// keep has the answer of a SETATTR, which the kernel believes in any case, say what it believes already.
func (s *sizes) keep(ino uint64, out *fuse.AttrOut) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if r := s.inodes[ino]; r != nil && r.long > 0 {
		out.Size = uint64(r.long)
		out.SetTimeout(never)
	}
}
