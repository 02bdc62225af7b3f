package kim_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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
		"replaced by its copy": func(dir string) error {
			file := filepath.Join(dir, "kim.sqlite3")
			return exec.Command("sh", "-c", "cp -p "+file+" "+file+".new && mv "+file+".new "+file).Run()
		},
		"a link to it in its place": func(dir string) error {
			file := filepath.Join(dir, "kim.sqlite3")
			return errors.Join(os.Rename(file, file+"2"), os.Symlink(file+"2", file))
		},
		"hidden": func(dir string) error {
			file := filepath.Join(dir, "kim.sqlite3")
			if err := os.WriteFile(file+"2", []byte("another one"), 0o600); err != nil {
				return err
			}
			return unix.Mount(file+"2", file, "", unix.MS_BIND, "")
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
			if name == "hidden" && os.Geteuid() != 0 {
				t.Skip("only root can mount")
			}
			if err := take(dir); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(filepath.Join(dir, "kim.sqlite3"), unix.MNT_DETACH) // where something was mounted
			status := p.Status(ctx)
			if !strings.HasPrefix(status, "degraded: the KIM is lost: "+dir+"/kim.sqlite3") || !strings.Contains(status, "\nhint: ") {
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

// A state directory whose path leads to something else by now is a loss: who opens that path opens another store. Its keys work, a
// backup has them and nothing of the other one, and the hint's own commands heal it.
func TestStateMoved(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		take func(t *testing.T, dir string)
		says string
		heal func(t *testing.T, dir, command string)
	}{
		"moved": {
			take: func(t *testing.T, dir string) { must(t, os.Rename(dir, dir+"2")) },
			says: "was moved to ",
			heal: shell,
		},
		"moved, and another store in its place": {
			take: func(t *testing.T, dir string) {
				must(t, os.Rename(dir, dir+"2"))
				another(t, dir)
			},
			says: "was moved to ",
			heal: func(t *testing.T, dir, command string) {
				must(t, os.Rename(dir, dir+"3"))
				shell(t, dir, command)
			},
		},
		"a link to another store in its place": {
			take: func(t *testing.T, dir string) {
				must(t, os.Rename(dir, dir+"2"))
				another(t, dir+"3")
				must(t, os.Symlink(dir+"3", dir))
			},
			says: "was moved to ",
			heal: func(t *testing.T, dir, command string) {
				must(t, os.Remove(dir))
				shell(t, dir, command)
			},
		},
		"a dangling link in its place": {
			take: func(t *testing.T, dir string) {
				must(t, os.Rename(dir, dir+"2"), os.Symlink("nowhere", dir))
			},
			says: "was moved to ",
			heal: func(t *testing.T, dir, command string) {
				must(t, os.Remove(dir))
				shell(t, dir, command)
			},
		},
		"another store mounted over it": {
			take: func(t *testing.T, dir string) {
				if os.Geteuid() != 0 {
					t.Skip("only root can mount")
				}
				another(t, dir+"3")
				must(t, unix.Mount(dir+"3", dir, "", unix.MS_BIND, ""))
				t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
			},
			says: "is hidden by another one",
			heal: shell,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "a user's state")
			k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
			key := generate(t, k, k.Default(), "key", p256)
			c.take(t, dir)
			err := k.Lost()
			if psa.StatusOf(err) != psa.StatusStorageFailure || !strings.HasPrefix(err.Error(), "the state directory "+dir+" "+c.says) {
				t.Fatal(err)
			}
			_, drafted := k.Default().CreateDraft(ctx, kim.Shared, "draft", 1000, 1000, 0o755)
			for what, err := range map[string]error{
				"a draft": drafted, "a name": k.Rename(ctx, key.Number, kim.Shared, "other"), "a rewrap": k.Rewrap(ctx, kim.Rewrapping{Kind: kim.WrapFile}),
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
			hasKey(t, &backup, key)
			_, command, _ := strings.Cut(psa.HintOf(err), "until ")
			for _, verb := range []string{"mv ", "umount "} {
				if _, rest, ok := strings.Cut(command, verb); ok {
					command = verb + rest
				}
			}
			c.heal(t, dir, command)
			if err := k.Lost(); err != nil {
				t.Fatal(err)
			}
			newDraft(t, k.Default(), "draft")
			must(t, k.Close())
			k = open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
			if err := signs(k, key); err != nil {
				t.Error(err)
			}
		})
	}
}

// The end of a daemon whose state directory was moved leaves alone what has its path now.
func TestMovedAtTheEnd(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	key := generate(t, k, k.Default(), "key", p256)
	must(t, os.Rename(dir, dir+"2"), os.Mkdir(dir, 0o700))
	for _, tail := range []string{"", "-wal", "-shm", "-reserve"} {
		must(t, os.WriteFile(filepath.Join(dir, "kim.sqlite3"+tail), []byte("another one's"), 0o600))
	}
	must(t, k.Close())
	for _, tail := range []string{"", "-wal", "-shm", "-reserve"} {
		if b, err := os.ReadFile(filepath.Join(dir, "kim.sqlite3"+tail)); string(b) != "another one's" {
			t.Errorf("%q of the other store: %q, %v", tail, b, err)
		}
	}
	k = open(t, kim.Options{Dir: dir + "2", Providers: []kim.ProviderConfig{softwareConfig("software")}})
	if err := signs(k, key); err != nil {
		t.Error(err)
	}
}

// A KIM outside the state directory (sqlite_db_path) is missed in the same way.
func TestKIMElsewhereMoved(t *testing.T) {
	t.Parallel()
	elsewhere := filepath.Join(t.TempDir(), "kim")
	must(t, os.Mkdir(elsewhere, 0o700))
	k := open(t, kim.Options{Dir: t.TempDir(), Path: filepath.Join(elsewhere, "k"), Providers: []kim.ProviderConfig{softwareConfig("software")}})
	key := generate(t, k, k.Default(), "key", p256)
	must(t, os.Rename(elsewhere, elsewhere+"2"))
	err := k.Rename(ctx, key.Number, kim.Shared, "other")
	if psa.StatusOf(err) != psa.StatusStorageFailure || !strings.Contains(err.Error(), "the KIM's directory "+elsewhere+" was moved to "+elsewhere+"2") {
		t.Error(err)
	}
	if lost := k.Lost(); lost == nil || lost.Error() != err.Error() {
		t.Error(lost)
	}
	var backup bytes.Buffer
	must(t, k.Backup(ctx, &backup), os.Rename(elsewhere+"2", elsewhere), k.Rename(ctx, key.Number, kim.Shared, "other"))
	hasKey(t, &backup, key)
}

// A link to where the state directory was moved leads to it still.
func TestMovedBehindALink(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	must(t, os.Rename(dir, dir+"2"), os.Symlink(dir+"2", dir))
	newDraft(t, k.Default(), "draft")
	if err := k.Lost(); err != nil {
		t.Error(err)
	}
}

// A backup of a state directory that was removed, its wrapping key with it, has all that is needed.
func TestStateRemoved(t *testing.T) {
	t.Parallel()
	stateRemoved(t, filepath.Join(t.TempDir(), "state"))
}

// In a container the state directory may have come with the image.
func TestStateRemovedFromOverlay(t *testing.T) {
	t.Parallel()
	disk := smallDisk(t)
	in := func(name string) string { return filepath.Join(disk, name) }
	for _, name := range []string{"image/state", "upper", "work", "root"} {
		must(t, os.MkdirAll(in(name), 0o700))
	}
	err := unix.Mount("overlay", in("root"), "overlay", 0, "lowerdir="+in("image")+",upperdir="+in("upper")+",workdir="+in("work"))
	if err != nil {
		t.Skipf("no overlay can be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(in("root"), unix.MNT_DETACH) })
	stateRemoved(t, in("root/state"))
}

func stateRemoved(t *testing.T, dir string) {
	t.Helper()
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	key := generate(t, k, k.Default(), "key", p256)
	must(t, os.RemoveAll(dir))
	if err := k.Lost(); psa.StatusOf(err) != psa.StatusStorageFailure || !strings.HasPrefix(err.Error(), "the state directory "+dir+" was removed") ||
		!strings.Contains(psa.HintOf(err), "parsecfs state backup --state-dir "+dir+" FILE") {
		t.Error(err, psa.HintOf(err))
	}
	var backup bytes.Buffer
	if err := k.Backup(ctx, &backup); err != nil {
		t.Fatal(err)
	}
	must(t, k.Close())
	hasKey(t, &backup, key)
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the state directory is back: %v", err)
	}
}

// another makes a store that is not the one under test.
func another(t *testing.T, dir string) {
	t.Helper()
	k, err := kim.Open(ctx, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	must(t, err)
	generate(t, k, k.Default(), "theirs", p256)
	must(t, k.Close())
}

func shell(t *testing.T, _, command string) {
	t.Helper()
	if out, err := exec.Command("sh", "-c", command).CombinedOutput(); err != nil {
		t.Fatalf("%s: %s", command, out)
	}
}

// hasKey holds that a backup has this key alone, and that the key works.
func hasKey(t *testing.T, backup io.Reader, key kim.Key) {
	t.Helper()
	saved := filepath.Join(t.TempDir(), "saved")
	if err := kim.Restore(ctx, saved, backup); err != nil {
		t.Fatal(err)
	}
	k := open(t, kim.Options{Dir: saved, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	all, err := k.Default().List(ctx, kim.Shared, "", 10)
	if err != nil || len(all) != 1 || all[0].ID != key.ID {
		t.Fatalf("the backup has %+v, %v", all, err)
	}
	if err := signs(k, key); err != nil {
		t.Errorf("the key in the backup: %v", err)
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
