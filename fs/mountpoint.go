package fs

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// mountType is what /proc/mounts shows as the file system's type, and what mount -t takes.
const mountType = "fuse.parsecfs"

// aliveTimeout is how long a FUSE daemon may take to answer statfs before it counts as alive but stuck.
const aliveTimeout = 5 * time.Second

// mountAt is the topmost mount on a folder, nil if there is none. It asks the kernel's table, not the folder: that could be a
// dead mount, or a stuck one.
func mountAt(dir string) (*mountinfo.Info, error) {
	all, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != dir, false })
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return all[len(all)-1], nil
}

// mounter is the uid of whoever made a FUSE mount, "" for any other one.
func mounter(m *mountinfo.Info) string {
	for option := range strings.SplitSeq(m.VFSOptions, ",") {
		if uid, ok := strings.CutPrefix(option, "user_id="); ok {
			return uid
		}
	}
	return ""
}

// ResolveMountpoint makes a mountpoint absolute and free of symbolic links, without touching a mount that may be there.
func ResolveMountpoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if abs == "/" {
		return abs, nil
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", missing(dir, err)
	}
	abs = filepath.Join(parent, filepath.Base(abs))
	if m, err := mountAt(abs); err != nil || m != nil {
		return abs, err
	}
	abs, err = filepath.EvalSymlinks(abs)
	if err != nil {
		return "", missing(dir, err)
	}
	return abs, nil
}

// ResolveNewMountpoint is ResolveMountpoint for who mounts there. For root, on whose mounts everybody relies, nobody else may
// own or change what leads there: between two looks a name, or a link, would stand for another directory.
func ResolveNewMountpoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil || os.Geteuid() != 0 {
		return ResolveMountpoint(dir)
	}
	trusted := func(err error) error {
		if psa.StatusOf(err) == psa.StatusNotPermitted {
			return &Error{KindMountpoint, fmt.Errorf("the mountpoint %s: %w", dir, err), psa.HintOf(err)}
		}
		return nil // what is missing is told below
	}
	if err := trusted(providers.CheckWay(filepath.Dir(abs))); err != nil {
		return "", err
	}
	// A mount is not asked: it could be a dead one, or a stuck one.
	if m, err := mountAt(abs); err == nil && m == nil {
		if info, err := os.Lstat(abs); err == nil && info.Mode().Type() == os.ModeSymlink {
			if err := trusted(providers.CheckWay(abs)); err != nil {
				return "", err
			}
		}
	}
	return ResolveMountpoint(dir)
}

func missing(dir string, err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return &Error{KindMountpoint, fmt.Errorf("the mountpoint %s does not exist", dir), "mkdir -p " + dir}
	}
	return &Error{Kind: KindMountpoint, Err: fmt.Errorf("the mountpoint %s: %w", dir, err)}
}

// clearMountpoint makes sure that a resolved mountpoint is an empty folder, and detaches dead mounts of our own from it.
func clearMountpoint(dir string, detached func()) error {
	for {
		m, err := mountAt(dir)
		if err != nil {
			return err
		}
		// Below any other file system's root a FUSE mount does no harm, if that root is empty.
		if m == nil || m.FSType != "fuse" && !strings.HasPrefix(m.FSType, "fuse.") {
			break
		}
		whose := ""
		if user := mounter(m); user != "" && user != "0" {
			whose = " by user " + user
		}
		switch alive := isAlive(dir); {
		case alive:
			hint := "choose another mountpoint, or unmount it first"
			if m.FSType == mountType {
				hint = "parsecfs unmount " + dir + ", or choose another mountpoint"
			}
			err := fmt.Errorf("the mountpoint %s is busy: %s (%s) is mounted there already%s", dir, m.Source, m.FSType, whose)
			return &Error{KindMountpoint, err, hint}
		case m.FSType != mountType:
			return &Error{KindMountpoint, fmt.Errorf("the mountpoint %s holds a dead mount of %s (%s)%s", dir, m.Source, m.FSType, whose),
				"fusermount3 -uz " + dir}
		}
		if err := unmount(dir, true); err != nil {
			return &Error{KindMountpoint, fmt.Errorf("cannot detach the dead mount on %s%s: %w", dir, whose, err), "umount -l " + dir + ", as root"}
		}
		detached()
	}
	info, err := os.Stat(dir)
	if err != nil {
		return missing(dir, err)
	}
	if !info.IsDir() {
		return &Error{KindMountpoint, fmt.Errorf("the mountpoint %s is no directory", dir), "give an empty directory"}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return missing(dir, err)
	}
	if len(entries) > 0 {
		return &Error{KindMountpoint, fmt.Errorf("the mountpoint %s is not empty, and a mount would hide what it holds", dir), "give an empty directory"}
	}
	return nil
}

// openMountpoint opens a mountpoint for root, whose mount everybody relies on: it is refused where others could put another
// directory under its name.
func openMountpoint(dir string) (*os.File, error) {
	at, err := providers.OpenMountpoint(dir)
	if err != nil {
		return nil, &Error{KindMountpoint, fmt.Errorf("the mountpoint %s: %w", dir, err),
			cmp.Or(psa.HintOf(err), "mount on a directory that only root can rename")}
	}
	return at, nil
}

// landed says whether the mount that was just made at an open directory is the one that its name leads to, and takes it away
// otherwise.
func landed(dir, place string) error {
	m, err := mountAt(dir)
	if err == nil && m != nil && m.FSType == mountType {
		return nil
	}
	if where, err := os.Readlink(place); err == nil {
		_ = unix.Unmount(where, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	return cmp.Or(err, errors.New("the directory was renamed meanwhile"))
}

// isAlive asks the daemon behind a FUSE mount. Attributes would come from the kernel's cache; statfs never does.
func isAlive(dir string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(dir, &st)
	}()
	select {
	case err := <-answer:
		return !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED)
	case <-time.After(aliveTimeout):
		return true
	}
}

// Unmount takes a parsecfs off its mountpoint; its daemon then ends by itself.
func Unmount(dir string) error {
	dir, err := ResolveMountpoint(dir)
	if err != nil {
		return err
	}
	m, err := mountAt(dir)
	if err != nil {
		return err
	}
	if m == nil || m.FSType != mountType {
		what := "nothing"
		if m != nil {
			what = m.FSType
		}
		return &Error{KindMountpoint, fmt.Errorf("no parsecfs is mounted on %s: %s is", dir, what), "grep parsecfs /proc/mounts shows all"}
	}
	err = unmount(dir, !isAlive(dir))
	if errors.Is(err, unix.EBUSY) {
		return &Error{KindMountpoint, fmt.Errorf("%s is busy: programs have files or their working directory there", dir),
			"fuser -vm " + dir + " names them; ending the daemon with SIGTERM detaches it all the same"}
	}
	if err != nil {
		return &Error{Kind: KindMountpoint, Err: fmt.Errorf("unmounting %s: %w", dir, err)}
	}
	return nil
}

// unmount is umount2(2) as root and fusermount3 as anybody else. Lazy takes the mount out of the tree at once while
// open files stay served. Busy is EBUSY.
func unmount(dir string, lazy bool) error {
	if os.Geteuid() == 0 {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		return unix.Unmount(dir, flags)
	}
	bin, err := fusermount()
	if err != nil {
		return err
	}
	args := []string{"-u", "--", dir}
	if lazy {
		args = []string{"-u", "-z", "--", dir}
	}
	cmd := exec.Command(bin, args...)
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/bin:/bin"}
	out, err := cmd.CombinedOutput()
	text := strings.TrimSpace(string(out))
	switch {
	case err == nil:
		return nil
	case strings.Contains(text, "busy"):
		return unix.EBUSY
	}
	return fmt.Errorf("%s: %s", filepath.Base(bin), text)
}
