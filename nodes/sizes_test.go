package nodes

import (
	"testing"

	"github.com/parsecfs/parsecfs/nodes/transaction"
)

// TestSizesAreToldOnce: the kernel is told of a long size again only after it was told another one.
func TestSizesAreToldOnce(t *testing.T) {
	var s sizes
	a, b, other := new(transaction.Channel), new(transaction.Channel), new(transaction.Channel)
	if !s.At(1, a, 10) || s.At(1, a, 20) || s.At(1, b, 10) || !s.At(2, other, 10) {
		t.Error("an inode's first position, and no other, must be told")
	}
	s.Gone(1, a)
	s.Gone(1, b)
	s.Gone(1, b)
	if s.At(1, a, 10) {
		t.Error("told again although the kernel was told nothing else")
	}
	if s.size(1) != uint64(sizeFor(10)) || !s.At(1, a, 20) {
		t.Error("after stat(2) it must be told again")
	}
	s.Gone(1, a)
	if s.size(1) != 0 || !s.At(1, a, 10) {
		t.Error("after stat(2) while nobody waits it must be told again")
	}
	s.Gone(1, a)
	s.Gone(2, other)
	for ino := range uint64(2 * longMost) {
		c := new(transaction.Channel)
		s.At(10+ino, c, 1)
		s.Gone(10+ino, c)
	}
	if len(s.inodes) > longMost || s.idle != len(s.inodes) {
		t.Errorf("%d inodes are kept, %d without a position", len(s.inodes), s.idle)
	}
}
