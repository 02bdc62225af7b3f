package kim_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
)

// TestInodesAreTrue: what is stored of an inode is what whoever asks after the change gets, however many read it meanwhile, and
// nothing of a key that is gone.
func TestInodesAreTrue(t *testing.T) {
	t.Parallel()
	k := open(t, kim.Options{Dir: t.TempDir(), Providers: []kim.ProviderConfig{softwareConfig("software")}})
	d, err := k.Default().CreateDraft(ctx, kim.Shared, "k", 1000, 1000, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	ino := uint64(d.Number)*256 + 16
	var done atomic.Bool
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for !done.Load() {
				if _, _, err := k.Inode(ctx, ino); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for round := range uint32(60) {
		mode := round % 0o1000
		i := kim.Inode{Ino: ino, Mode: &mode}
		if round%3 == 2 {
			i.Mode = nil // nothing is stored
		}
		if err := k.SetInode(ctx, i); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, found, err := k.Inode(ctx, ino)
			if err != nil || found != (i.Mode != nil) || found && *got.Mode != mode {
				t.Fatalf("after round %d: %v, %t, %v", round, got, found, err)
			}
		}
	}
	done.Store(true)
	all.Wait()
	if err := k.Destroy(ctx, d.Number, 1000); err != nil {
		t.Fatal(err)
	}
	if i, found, err := k.Inode(ctx, ino); err != nil || found {
		t.Errorf("of a key that is gone: %v, %t, %v", i, found, err)
	}
	for i := range uint64(1<<13 + 100) { // more than are kept
		if _, found, err := k.Inode(ctx, 1<<20+i); err != nil || found {
			t.Fatalf("of nothing: %t, %v", found, err)
		}
	}
}
