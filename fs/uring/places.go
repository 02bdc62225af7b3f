package uring

// waits says whether a request may wait for a provider, a disk or somebody's answer. The others end soon whatever happens, and
// never find all entries taken.
func waits(opcode uint32) bool {
	switch opcode {
	case opcodeRead, opcodeWrite, opcodeIoctl,
		opcodeFlush, // of a text that takes effect when its file is closed
		14,          // OPEN, which may look for who calls
		4, 6, 8, 9,  // SETATTR, SYMLINK, MKNOD, MKDIR
		10, 11, 12, 13, // UNLINK, RMDIR, RENAME, LINK
		21, 24, 35, 45: // SETXATTR, REMOVEXATTR, CREATE, RENAME2
		return true
	}
	return false
}

// places bounds how many entries of a queue are taken by requests that may wait. Of what is left a user gets at most as much as
// they have, so that one who takes all they can leaves half.
type places struct {
	most  int
	taken int
	users map[uint32]int
}

func (p *places) enter(uid uint32) bool {
	if p.taken == p.most || p.users[uid] > p.most-p.taken {
		return false
	}
	if p.users == nil {
		p.users = map[uint32]int{}
	}
	p.taken++
	p.users[uid]++
	return true
}

func (p *places) leave(uid uint32) {
	p.taken--
	if p.users[uid]--; p.users[uid] == 0 {
		delete(p.users, uid)
	}
}

// place counts a request that may wait; false: no more of its user may. A FLUSH has some of the reserve where the other places are
// taken: somebody may wait for what it completes.
func (q *queue) place(e *entry) bool {
	if !waits(e.opcode) {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case q.places.enter(e.uid):
		e.place = &q.places
	case e.opcode == opcodeFlush && q.flushes.enter(e.uid):
		e.place = &q.flushes
	default:
		return false
	}
	return true
}
