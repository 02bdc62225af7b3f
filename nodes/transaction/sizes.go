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
	channels map[uint64]*Channel // the first of each list
}

// sized is a channel's place in such a list.
type sized struct {
	listed     bool
	next, last *Channel
}

func (s *sizes) add(c *Channel) {
	if c.parted {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.sized.listed {
		return
	}
	if s.channels == nil {
		s.channels = map[uint64]*Channel{}
	}
	first := s.channels[c.ino]
	if first != nil {
		first.sized.last = c
	}
	c.sized = sized{listed: true, next: first}
	s.channels[c.ino] = c
}

func (s *sizes) remove(c *Channel) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !c.sized.listed {
		return
	}
	next, last := c.sized.next, c.sized.last
	if next != nil {
		next.sized.last = last
	}
	switch {
	case last != nil:
		last.sized.next = next
	case next != nil:
		s.channels[c.ino] = next
	default:
		delete(s.channels, c.ino)
	}
	c.sized = sized{}
}

// of gives those of a user; none says that nobody has any.
func (s *sizes) of(ino uint64, uid uint32) (list []*Channel, none bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := s.channels[ino]; c != nil; c = c.sized.next {
		if c.uid == uid {
			list = append(list, c)
		}
	}
	return list, s.channels[ino] == nil
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
