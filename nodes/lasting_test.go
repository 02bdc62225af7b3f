package nodes_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes"
)

// lasting mounts a tree whose directories the kernel may remember for an hour, and all else for some milliseconds.
func lasting(t *testing.T) *mounted {
	return mount(t, func(o *nodes.Options) { o.Lasting = time.Hour })
}

// expired runs f until what the kernel may keep for 10 ms has expired, which it shows by a LOOKUP of the last name of a path, and of
// the one before.
func (m *mounted) expired(path string, f func()) (names []string, inodes []uint64) {
	m.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; {
		time.Sleep(30 * time.Millisecond)
		names, inodes = m.asked(f)
		if slices.Contains(names, filepath.Base(path)) && slices.Contains(names, filepath.Base(filepath.Dir(path))) {
			return names, inodes
		}
		if time.Now().After(deadline) {
			m.t.Fatalf("the kernel never asks for %s again", path)
		}
	}
}

// TestAfterAQuietMoment: an open after everything that may expire has expired asks for the key and the file, and for nothing in
// front of them.
func TestAfterAQuietMoment(t *testing.T) {
	t.Parallel()
	m := lasting(t)
	m.key("k", "ed25519")
	own := filepath.Join(m.dir, "providers/default/users/0/o")
	if err := os.Mkdir(own, 0755); err != nil {
		t.Fatal(err)
	}
	m.put(filepath.Join(own, "generate"), "ed25519\n")
	for _, path := range []string{filepath.Join(m.dir, "providers/default/keys/k/sign"), filepath.Join(own, "sign")} {
		open := func() {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
		open()
		names, inodes := m.expired(path, open)
		if want := []string{filepath.Base(filepath.Dir(path)), "sign"}; !slices.Equal(names, want) || len(inodes) != 0 {
			t.Errorf("an open of %s looks up %q and asks for the attributes of %v; want %q", path, names, inodes, want)
		}
	}
}

// stranger says whether another user may list a directory.
func (m *mounted) stranger(path string) error {
	out, err := exec.Command("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ls", path).CombinedOutput()
	if err == nil {
		return nil
	}
	if strings.Contains(string(out), "Permission denied") {
		return syscall.EACCES
	}
	return errors.New(string(out))
}

// TestLastingIsTrue: what the kernel remembers for long is what is so: each change of who may enter a directory shows at once, by
// whatever way it is made.
func TestLastingIsTrue(t *testing.T) {
	t.Parallel()
	m := lasting(t)
	keys, providers := m.path(), filepath.Join(m.dir, "providers")
	may := func(what, path string, want error) {
		t.Helper()
		if err := m.stranger(path); !errors.Is(err, want) {
			t.Errorf("after %s, another user in %s: %v; want %v", what, path, err, want)
		}
	}
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	for _, path := range []string{keys, providers, m.dir, filepath.Join(m.dir, "keys")} {
		may("nothing", path, nil)
		run("chmod", "0700", path)
		may("chmod 0700", path, syscall.EACCES)
		run("setfacl", "-m", "u:65534:rx", path)
		may("setfacl -m", path, nil)
		run("setfacl", "-b", path)
		may("setfacl -b", path, syscall.EACCES)
		run("chown", "65534", path)
		may("chown", path, nil)
		run("chown", "0", path)
		may("chown back", path, syscall.EACCES)
		run("chmod", "0755", path)
		may("chmod 0755", path, nil)
	}
	// rights that were not what they seemed before the data key came
	for _, path := range []string{keys, providers, m.dir} {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		ino := info.Sys().(*syscall.Stat_t).Ino
		for _, mode := range []uint32{0700, 0755} {
			if err := m.k.SetInode(t.Context(), kim.Inode{Ino: ino, Mode: &mode}); err != nil {
				t.Fatal(err)
			}
			m.tree.Unlocked()
			want := error(nil)
			if mode == 0700 {
				want = syscall.EACCES
			}
			may("unlocking", path, want)
		}
	}
	p := m.k.Provider("software")
	if !p.SetDirectory(0, 0, 0700) {
		t.Fatal("the provider's directory stays as it is")
	}
	m.tree.ProviderChanged(p)
	may("a reload", filepath.Join(providers, "software"), syscall.EACCES)
	may("a reload", keys, syscall.EACCES)
}

// TestNamesGoAtOnce: a key's name leads nowhere once its key was destroyed, has another name or is somebody else's, in whichever
// way the name is asked for; and a new key under an old name is the new one.
func TestNamesGoAtOnce(t *testing.T) {
	t.Parallel()
	m := lasting(t)
	bound := t.TempDir()
	if err := syscall.Mount(m.path(), bound, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(bound, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	for _, keys := range []string{m.path(), bound, filepath.Join(m.dir, "providers/default/keys")} {
		m.key("k", "ed25519")
		old := m.get(m.path("k", "public.pem"))
		pem := filepath.Join(keys, "k/public.pem")
		m.get(pem)
		if err := os.Rename(m.path("k"), m.path("other")); err != nil {
			t.Fatal(err)
		}
		if _, err := os.ReadFile(pem); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the old name of a key: %v", keys, err)
		}
		m.key("k", "ed25519")
		if slices.Equal(m.get(pem), old) {
			t.Errorf("%s: a new key under an old name is the old one", keys)
		}
		for _, name := range []string{"k", "other"} {
			if err := os.Remove(m.path(name)); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(keys, name)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: the name of a key that was destroyed: %v", keys, err)
			}
		}
	}
}
