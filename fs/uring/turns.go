package uring

import "slices"

// turns are entries that were filled and are not begun. Users take turns, as in the queue of a provider: who asks for much does not
// hold up who asks for little.
type turns struct {
	n     int
	users []uint32            // who has entries here, the next first
	of    map[uint32][]*entry // theirs, the oldest first
}

func (t *turns) add(e *entry) {
	if t.of == nil {
		t.of = map[uint32][]*entry{}
	}
	uid := e.head().Uid
	if len(t.of[uid]) == 0 {
		t.users = append(t.users, uid)
	}
	t.of[uid] = append(t.of[uid], e)
	t.n++
}

// next is nil where there is none.
func (t *turns) next() *entry {
	if t.n == 0 {
		return nil
	}
	t.n--
	uid := t.users[0]
	t.users = slices.Delete(t.users, 0, 1)
	e := t.of[uid][0]
	if t.of[uid] = slices.Delete(t.of[uid], 0, 1); len(t.of[uid]) > 0 {
		t.users = append(t.users, uid)
	} else {
		delete(t.of, uid)
	}
	return e
}
