package kim_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// A store whose files are removed, or replaced, under the daemon is noticed: its keys work still, nothing is changed, the
// status says so, and a backup saves what there was.
func TestStoreTakenAway(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]func(dir string) error{
		"removed": func(dir string) error {
			for _, tail := range []string{"", "-wal", "-shm"} {
				if err := os.Remove(filepath.Join(dir, "kim.sqlite3"+tail)); err != nil {
					return err
				}
			}
			return nil
		},
		"its WAL removed": func(dir string) error { return os.Remove(filepath.Join(dir, "kim.sqlite3-wal")) },
		"moved": func(dir string) error {
			return os.Rename(filepath.Join(dir, "kim.sqlite3"), filepath.Join(dir, "moved"))
		},
		"replaced": func(dir string) error {
			file := filepath.Join(dir, "kim.sqlite3")
			if err := os.WriteFile(file+"-wal.new", []byte("another one's"), 0o600); err != nil {
				return err
			}
			if err := os.Rename(file+"-wal.new", file+"-wal"); err != nil {
				return err
			}
			if err := os.WriteFile(file+".new", []byte("another one"), 0o600); err != nil {
				return err
			}
			return os.Rename(file+".new", file)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
			p := k.Default()
			key, draft := generate(t, k, p, "key", p256), newDraft(t, p, "draft")
			if status := p.Status(ctx); status != "ready" {
				t.Fatal(status)
			}
			if err := take(dir); err != nil {
				t.Fatal(err)
			}
			if status := p.Status(ctx); !strings.HasPrefix(status, "degraded: the KIM is lost: "+dir+"/kim.sqlite3") || !strings.Contains(status, "\nhint: ") {
				t.Errorf("its status is %q", status)
			}
			for what, err := range map[string]error{
				"rename": k.Rename(ctx, key.Number, kim.Shared, "other"), "destroy": k.Destroy(ctx, key.Number, 0), "remove": k.Destroy(ctx, draft.Number, 0),
				"generate": try(t, k, draft.Number),
			} {
				if psa.StatusOf(err) != psa.StatusStorageFailure {
					t.Errorf("%s: %v", what, err)
				}
			}
			if err := signs(k, key); err != nil {
				t.Errorf("its key: %v", err)
			}
			var backup bytes.Buffer
			if err := k.Backup(ctx, &backup); err != nil {
				t.Fatal(err)
			}
			if err := k.Close(); err != nil {
				t.Error(err)
			}
			if name == "replaced" {
				if b, err := os.ReadFile(filepath.Join(dir, "kim.sqlite3-wal")); string(b) != "another one's" {
					t.Errorf("the WAL of the store in its place: %q, %v", b, err)
				}
			}
			saved := filepath.Join(t.TempDir(), "state")
			if err := kim.Restore(ctx, saved, &backup); err != nil {
				t.Fatal(err)
			}
			dirs := []string{saved}
			if name == "its WAL removed" {
				dirs = append(dirs, dir) // all is in the file by now
			}
			for _, dir := range dirs {
				k = open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
				if found, err := k.Default().Named(ctx, kim.Shared, "key"); err != nil || found.ID != key.ID {
					t.Errorf("in %s: %+v, %v", dir, found, err)
				}
				if err := signs(k, key); err != nil {
					t.Errorf("its key: %v", err)
				}
			}
		})
	}
}

// A state directory that is moved, as a whole, takes its store along.
func TestStateMoved(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	if err := os.Rename(dir, dir+"2"); err != nil {
		t.Fatal(err)
	}
	newDraft(t, k.Default(), "draft")
	if err := k.Lost(); err != nil {
		t.Error(err)
	}
}

// No key is made that could not be read after the end, since the wrapping key is gone; a rewrap makes another one.
func TestWrappingKeyTakenAway(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	before := generate(t, k, k.Default(), "before", p256)
	draft := newDraft(t, k.Default(), "draft")
	if err := os.Remove(filepath.Join(dir, "wrapping.key")); err != nil {
		t.Fatal(err)
	}
	await(t, k, "the wrapping key is missed", func() bool { return k.Lost() != nil })
	if status := k.Default().Status(ctx); !strings.HasPrefix(status, "degraded: the wrapping key "+dir+"/wrapping.key was removed") {
		t.Errorf("its status is %q", status)
	}
	if err := try(t, k, draft.Number); psa.StatusOf(err) != psa.StatusStorageFailure {
		t.Errorf("a key is made: %v", err)
	}
	if err := k.Rewrap(ctx, kim.Rewrapping{Kind: kim.WrapFile}); err != nil {
		t.Fatal(err)
	}
	await(t, k, "it is there again", func() bool { return k.Lost() == nil })
	if err := try(t, k, draft.Number); err != nil {
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	k = open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	if err := signs(k, before); err != nil {
		t.Error(err)
	}
}
