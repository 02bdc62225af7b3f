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

// ResolveNewMountpoint is ResolveMountpoint for a new mount. Everybody relies on root's mounts, so for root it refuses a path
// that somebody else owns or can change: its names and links could lead to another directory a moment later.
func ResolveNewMountpoint(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil || os.Geteuid() != 0 {
		return ResolveMountpoint(dir)
	}
	trusted := func(err error) error {
		if psa.StatusOf(err) == psa.StatusNotPermitted {
			return &Error{KindMountpoint, fmt.Errorf("the mountpoint %s: %w", dir, err), psa.HintOf(err)}
		}
		return nil // a missing directory is reported below
	}
	if err := trusted(providers.CheckWay(filepath.Dir(abs))); err != nil {
		return "", err
	}
	// A mount is not touched: it could be dead, or stuck.
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

// clearMountpoint makes sure that a resolved mountpoint is an empty directory, and detaches dead mounts of parsecfs from it.
func clearMountpoint(dir string, detached func()) error {
	for {
		m, err := mountAt(dir)
		if err != nil {
			return err
		}
		// On the root of any other file system a FUSE mount does no harm, if that root is empty.
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
			err := fmt.Errorf("the mountpoint %s is busy: %s (%s) is already mounted there%s", dir, m.Source, m.FSType, whose)
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
		return &Error{KindMountpoint, fmt.Errorf("the mountpoint %s is not a directory", dir), "choose an empty directory"}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return missing(dir, err)
	}
	if len(entries) > 0 {
		return &Error{KindMountpoint, fmt.Errorf("the mountpoint %s is not empty, and a mount would hide what is in it", dir),
			"choose an empty directory"}
	}
	return nil
}

// openMountpoint opens a mountpoint for root. Everybody relies on root's mount, so it refuses a mountpoint whose name others
// could give to another directory.
func openMountpoint(dir string) (*os.File, error) {
	at, err := providers.OpenMountpoint(dir)
	if err != nil {
		return nil, &Error{KindMountpoint, fmt.Errorf("the mountpoint %s: %w", dir, err),
			cmp.Or(psa.HintOf(err), "mount on a directory that only root can rename")}
	}
	return at, nil
}

// landed says whether the mount that was just made on an open directory is found under the directory's name. If not, it
// removes the mount.
func landed(dir, place string) error {
	m, err := mountAt(dir)
	if err == nil && m != nil && m.FSType == mountType {
		return nil
	}
	if where, err := os.Readlink(place); err == nil {
		_ = unix.Unmount(where, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	return cmp.Or(err, errors.New("the directory was renamed while it was being mounted"))
}

// isAlive asks the daemon behind a FUSE mount by statfs, which the kernel never answers from its cache.
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

// Unmount unmounts a parsecfs; its daemon then exits.
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
		return &Error{KindMountpoint, fmt.Errorf("parsecfs is not mounted on %s: %s is", dir, what), "grep parsecfs /proc/mounts lists all"}
	}
	err = unmount(dir, !isAlive(dir))
	if errors.Is(err, unix.EBUSY) {
		return &Error{KindMountpoint, fmt.Errorf("%s is busy: programs have open files or their working directory there", dir),
			"fuser -vm " + dir + " lists them; SIGTERM to the daemon detaches the mount in any case"}
	}
	if err != nil {
		return &Error{Kind: KindMountpoint, Err: fmt.Errorf("unmounting %s: %w", dir, err)}
	}
	return nil
}

// unmount is umount2(2) for root and fusermount3 for others. A lazy unmount removes the mount at once and keeps serving its
// open files. A busy mount is EBUSY.
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
