package transaction

import "sync"

// maxSignature is longer than any answer that is longer than its request: SLH-DSA has 49 856 bytes.
const maxSignature = 64 << 10

// page is how the kernel rounds; larger ones do no harm.
const page = 4096

// waitingSize is what a request looks like that is not answered yet, after so many bytes: more than any answer is longer than its
// request, because Node's readFile stops there.
func waitingSize(written int64) int64 { return (written+maxSignature)/page*page + page + 2 }

// sizes are the channels of plain files and of slots' files that have a request, by inode.
type sizes struct {
	mu       sync.Mutex
	channels map[uint64]map[*Channel]struct{}
}

func (s *sizes) add(c *Channel) {
	if c.parted {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.channels == nil {
		s.channels = map[uint64]map[*Channel]struct{}{}
	}
	if s.channels[c.ino] == nil {
		s.channels[c.ino] = map[*Channel]struct{}{}
	}
	s.channels[c.ino][c] = struct{}{}
}

func (s *sizes) remove(c *Channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if delete(s.channels[c.ino], c); len(s.channels[c.ino]) == 0 {
		delete(s.channels, c.ino)
	}
}

// of gives those of a user; none says that nobody has any.
func (s *sizes) of(ino uint64, uid uint32) (list []*Channel, none bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.channels[ino] {
		if c.uid == uid {
			list = append(list, c)
		}
	}
	return list, len(s.channels[ino]) == 0
}

// Size is how long a file looks to a user: as long as an answer of theirs that is there, from its beginning or behind the request
// that was written before it, or somewhat more while they wait for one. What others have there does not count. fixed: it is the
// same for all, until somebody writes.
func (m *Machine) Size(ino uint64, uid uint32) (size int64, fixed bool) {
	list, fixed := m.sizes.of(ino, uid)
	for _, c := range list {
		size = max(size, c.size(""))
	}
	return size, fixed
}

func (c *Channel) size(part string) int64 {
	r := c.latest.Load()
	if r == nil {
		return 0
	}
	written := r.written.Load()
	n, answered := r.length(part)
	switch {
	case !answered:
		return waitingSize(written)
	case n == 0:
		return 0
	}
	return n + min(c.base.Load(), written)
}
