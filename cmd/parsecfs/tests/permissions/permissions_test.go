package permissions

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"

	"golang.org/x/sys/unix"
)

// TestPermissionsAreThoseOfAFileSystem tells one story of chmod, chown, setfacl, umask, rename and rmdir on a tmpfs and
// on parsecfs, as nine users, and compares what each may do after each step. It is told in keys/, and in the directory of
// one user's own names.
func TestPermissionsAreThoseOfAFileSystem(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	t.Run("shared names", func(t *testing.T) {
		t.Parallel()
		story(t, "keys", false, func(dir string) error { return errors.Join(os.Mkdir(dir, 0o700), os.Chmod(dir, 0o777|os.ModeSticky)) })
	})
	t.Run("own names", func(t *testing.T) {
		t.Parallel()
		story(t, "users/61001", !parsecfstest.Long(), func(dir string) error {
			users := filepath.Dir(dir)
			return errors.Join(os.Mkdir(users, 0o700), os.Chmod(users, 0o711), os.Mkdir(dir, 0o700), os.Chown(dir, 61001, 0))
		})
	})
}

// story is told in a directory of keys of a provider, and in one like it that make makes.
func story(t *testing.T, directory string, short bool, make func(dir string) error) {
	real := filepath.Join(parsecfstest.TempDir(t), "real")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", real, "tmpfs", 0, "mode=1777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(real, 0); err != nil {
			t.Error(err)
		}
	})
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys, aliases := filepath.Join(m.Dir, "providers/software", directory), filepath.Join(m.Dir, "keys")
	realKeys, realAliases := filepath.Join(real, directory), filepath.Join(real, "aliases")
	if err := errors.Join(make(realKeys), os.Mkdir(realAliases, 0o755), os.Chmod(realAliases, 0o755)); err != nil {
		t.Fatal(err)
	}
	flavours, least := []string{"real", "parsecfs"}, 3900
	if short {
		flavours, least = []string{"real-short", "parsecfs-short"}, 1000
	}
	compare(t, matrix(t, flavours[0], realKeys, realAliases), matrix(t, flavours[1], keys, aliases), least)
	before := matrix(t, "show", keys, aliases)
	m.Kill()
	m.Restart()
	if after := matrix(t, "show", keys, aliases); !slices.Equal(before, after) || len(before) < 20 {
		t.Errorf("kill -9 and a restart changed rights from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// TestPermissionsUnderAnOrdinaryUser is the same story with a daemon that is not root's: open to others as
// user_allow_other in fuse.conf permits, and without it, where the mount is its owner's alone.
func TestPermissionsUnderAnOrdinaryUser(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	if os.Geteuid() != 0 {
		t.Skip("becoming other users needs root")
	}
	if exec.Command("unshare", "-m", "--propagation", "private", "true").Run() != nil {
		t.Skip("the root directory is no mount point, as in a bare chroot: no private mount namespace")
	}
	script, err := filepath.Abs("testdata/user.sh")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		uid, conf string
		users     []string
		least     int
		closed    []string
	}{
		"open to others": {"61008", "user_allow_other", nil, 3900, nil},
		"its owner's alone": {"61001", "", []string{"owner", "nsowner"}, 700, []string{"root EACCES EACCES", "member EACCES EACCES",
			"extra EACCES EACCES", "named EACCES EACCES", "grouped EACCES EACCES", "stranger EACCES EACCES", "nsroot EACCES EACCES"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := parsecfstest.TempDir(t)
			cmd := exec.Command("unshare", append([]string{"-m", "--propagation", "private", "sh", "-eu", script, parsecfstest.Path(t), c.uid, c.conf}, c.users...)...)
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			told := func(name string) []string {
				b, err := os.ReadFile(filepath.Join(dir, name+".txt"))
				if err != nil {
					t.Fatal(err)
				}
				return strings.Split(strings.TrimSpace(string(b)), "\n")
			}
			compare(t, told("want"), told("got"), c.least)
			if c.closed == nil {
				return
			}
			if !userNamespaces() {
				c.closed[len(c.closed)-1] = "nsroot EPERM EPERM"
			}
			if !slices.Equal(told("closed"), c.closed) {
				t.Errorf("others: %q", told("closed"))
			}
		})
	}
}

// userNamespaces says whether they can be made: not in a chroot, nor in many containers. Then the roots of such
// namespaces are refused everywhere, on both file systems.
func userNamespaces() bool { return exec.Command("unshare", "-U", "true").Run() == nil }

func TestUserNamespaces(t *testing.T) {
	if !userNamespaces() {
		t.Skip("user namespaces cannot be made here: the permission stories are told without their roots")
	}
}

// compare tells where parsecfs's story differs from the real one, which has at least some number of lines.
func compare(t *testing.T, want, got []string, least int) {
	t.Helper()
	if len(want) < least {
		t.Fatalf("the story has %d lines only", len(want))
	}
	t.Logf("%d lines", len(want))
	scene, differences := "", 0
	for i := range min(len(want), len(got)) {
		if !strings.HasPrefix(want[i], " ") {
			scene = want[i]
		}
		if got[i] == want[i] {
			continue
		}
		t.Errorf("line %d, after %q\nparsecfs: %s\ntmpfs:    %s", i+1, scene, got[i], want[i])
		if differences++; differences == 50 {
			t.Fatal("and more")
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d lines on parsecfs, %d on tmpfs", len(got), len(want))
	}
}

func matrix(t *testing.T, args ...string) []string {
	t.Helper()
	cmd := exec.Command("python3", append([]string{"testdata/matrix.py"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", args, err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
