package nodes

import "testing"

// TestSizesAreToldOnce: the kernel is told of a long size again only after it was told another one.
func TestSizesAreToldOnce(t *testing.T) {
	var s sizes
	a, b, other := &channel{ino: 1}, &channel{ino: 1}, &channel{ino: 2}
	if !s.set(a, 10) || s.set(a, 20) || s.set(b, 10) || !s.set(other, 10) {
		t.Error("an inode's first position, and no other, must be told")
	}
	s.clear(a)
	s.clear(b)
	s.clear(b)
	if s.set(a, 10) {
		t.Error("told again although the kernel was told nothing else")
	}
	if s.size(1) != uint64(sizeFor(10)) || !s.set(a, 20) {
		t.Error("after stat(2) it must be told again")
	}
	s.clear(a)
	if s.size(1) != 0 || !s.set(a, 10) {
		t.Error("after stat(2) while nobody waits it must be told again")
	}
	s.clear(a)
	s.clear(other)
	for ino := range uint64(2 * longMost) {
		c := &channel{ino: 10 + ino}
		s.set(c, 1)
		s.clear(c)
	}
	if len(s.inodes) > longMost || s.idle != len(s.inodes) {
		t.Errorf("%d inodes are kept, %d without a position", len(s.inodes), s.idle)
	}
}
