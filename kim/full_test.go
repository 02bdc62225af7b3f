package kim_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// smallDisk is a directory on a disk of 4 MiB.
func smallDisk(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m,mode=700"); err != nil {
		t.Skipf("this user cannot mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// filling is a file that fill makes as large as the disk lets it.
func filling(t *testing.T, dir string) (junk *os.File, fill func()) {
	t.Helper()
	junk, err := os.Create(filepath.Join(dir, "junk"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { junk.Close() })
	return junk, func() {
		t.Helper()
		for _, piece := range [][]byte{make([]byte, 64<<10), make([]byte, 1)} {
			for {
				if _, err := junk.Write(piece); errors.Is(err, unix.ENOSPC) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// On a full disk keys can be destroyed, all of them, with what lies beside them; and then there is room for others.
func TestDestroyOnAFullDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t)
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	p := k.Default()
	var keys []kim.Key
	for i := range 8 {
		keys = append(keys, generate(t, k, p, string(rune('a'+i)), p256))
	}
	draft := newDraft(t, p, "draft")
	if _, err := k.SetCertificate(ctx, keys[0].Number, bytes.Repeat([]byte("c"), 256<<10)); err != nil {
		t.Fatal(err)
	}
	junk, fill := filling(t, dir)
	refused := func() {
		t.Helper()
		for i := 0; ; i++ {
			fill()
			// What the WAL had room for may still be written.
			_, err := p.CreateDraft(ctx, kim.Shared, string(rune('A'+i)), 1000, 1000, 0o755)
			if psa.StatusOf(err) == psa.StatusInsufficientStorage {
				return
			}
			if err != nil || i == 25 {
				t.Fatalf("a draft on a full disk: %v", err)
			}
		}
	}
	refused()
	for _, key := range keys[:4] {
		fill()
		if err := k.Destroy(ctx, key.Number, 0); err != nil {
			t.Fatalf("destroying %s: %v", key.Name, err)
		}
	}
	fill()
	if err := k.Destroy(ctx, draft.Number, 0); err != nil {
		t.Errorf("removing a draft: %v", err)
	}
	fill()
	if err := k.Forget(ctx, keys[4].Number); err != nil {
		t.Errorf("forgetting a key: %v", err)
	}
	if err := signs(k, keys[5]); err != nil {
		t.Errorf("another key: %v", err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if err := junk.Truncate(0); err != nil {
		t.Fatal(err)
	}
	// The next start takes the reserve again.
	k = open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "kim.sqlite3-reserve"), &st); err != nil || st.Blocks*512 < 1<<20 || st.Mode&0o777 != 0o600 {
		t.Errorf("the reserve: %+v, %v", st, err)
	}
	if err := signs(k, keys[6]); err != nil {
		t.Errorf("another key: %v", err)
	}
	if _, err := k.Key(ctx, keys[0].Number); psa.StatusOf(err) != psa.StatusDoesNotExist {
		t.Errorf("a key that was destroyed: %v", err)
	}
	newDraft(t, k.Default(), "more")
}

// TestManyWritersOnAFullDisk: those that make room are not refused because others with them need room, and who is told that a
// draft was made has it.
func TestManyWritersOnAFullDisk(t *testing.T) {
	t.Parallel()
	dir := smallDisk(t)
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	p := k.Default()
	var keys []kim.Key
	for i := range 8 {
		keys = append(keys, generate(t, k, p, fmt.Sprint("key", i), p256))
	}
	junk, fill := filling(t, dir)
	var all sync.WaitGroup
	for i, key := range keys {
		fill()
		all.Go(func() {
			if err := k.Destroy(ctx, key.Number, 0); err != nil {
				t.Errorf("destroying %s: %v", key.Name, err)
			}
		})
		for n := range 4 {
			all.Go(func() {
				name := fmt.Sprint("draft", i, "-", n)
				_, err := p.CreateDraft(ctx, kim.Shared, name, 1000, 1000, 0o755)
				if err != nil && psa.StatusOf(err) != psa.StatusInsufficientStorage {
					t.Errorf("a draft: %v", err)
				}
				if _, lookup := p.Lookup(ctx, kim.Shared, name); (lookup == nil) != (err == nil) {
					t.Errorf("a draft that was made with %v is there with %v", err, lookup)
				}
			})
		}
	}
	all.Wait()
	if err := junk.Truncate(0); err != nil {
		t.Fatal(err)
	}
	for _, key := range keys {
		if _, err := k.Key(ctx, key.Number); psa.StatusOf(err) != psa.StatusDoesNotExist {
			t.Errorf("a key that was destroyed: %v", err)
		}
	}
}
