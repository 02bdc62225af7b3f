package providers

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// A file that decides what this program does (its configuration, a module that it loads, a PIN, its state) is trusted if
// only root and the user whom the program runs as can change it: they own it and every directory and link on its path, and
// nobody else may write to any of them. A directory on the path may be writable for all if it has the sticky bit, like /tmp,
// since only its owner can rename an entry there. Write permission from an ACL shows in the group's bits, which are its mask.

// OpenTrusted opens a trusted file. It opens the very file that was checked: nobody can replace it in between.
func OpenTrusted(path string, flags int) (*os.File, error) {
	at, fd, err := walkTrusted(path, toFile, flags, nil)
	if err != nil {
		return nil, err
	}
	if at == viaProc {
		return os.NewFile(uintptr(fd), path), nil
	}
	defer unix.Close(fd)
	// The link in /proc leads to what fd has open, whatever its name leads to by now.
	opened, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(opened), path), nil
}

// CheckTrusted checks a file or directory that another program opens, which may also belong to owners. If it does not
// exist, the error is fs.ErrNotExist, and the directories on its path that exist are trusted.
func CheckTrusted(path string, owners ...uint32) error {
	_, fd, err := walkTrusted(path, toFile, unix.O_PATH, owners)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// MakeTrustedDir makes a directory, and missing ones above it, with mode 0700. It checks the directories that exist.
func MakeTrustedDir(path string) error {
	_, fd, err := walkTrusted(path, making, unix.O_PATH, nil)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return &fs.PathError{Op: "open", Path: path, Err: unix.ENOTDIR}
	}
	return nil
}

// OpenMountpoint opens a directory with O_PATH whose name only root and our own user can give to another directory: they own
// it, and its path is trusted. Who may write to it does not matter, since a mount hides it.
func OpenMountpoint(path string) (*os.File, error) {
	_, parent, err := walkTrusted(filepath.Dir(path), toParent, unix.O_PATH, nil)
	if err != nil {
		return nil, err
	}
	defer closeFD(parent)
	fd, err := unix.Openat(parent, filepath.Base(path), unix.O_PATH|unix.O_NOFOLLOW|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if err := judgeOwner(fd, path, "replace it", nil); err != nil {
		closeFD(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// CheckWay checks whether somebody else could make a path lead elsewhere. It checks the path, not what the path leads to.
func CheckWay(path string) error {
	_, fd, err := walkTrusted(path, toParent, unix.O_PATH, nil)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// walk says what walkTrusted does at the end of the path.
type walk int

const (
	toFile   walk = iota
	toParent      // the end is a directory on the path to the file
	making        // make missing directories
)

// maxLinks limits the symbolic links on one path, as the kernel does.
const maxLinks = 40

// place says what walkTrusted's descriptor is.
type place int

const (
	named   place = iota // opened with O_PATH
	viaProc              // opened with the flags through a link in /proc: a pipe has no other name
)

// walkTrusted walks to a file step by step. It checks each step by its descriptor, from which the next step starts.
func walkTrusted(path string, how walk, flags int, owners []uint32) (place, int, error) {
	failed := func(err error) (place, int, error) {
		return named, -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return named, -1, err
	}
	const step = unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	here, at := -1, "/"
	defer func() { closeFD(here) }()
	if here, err = unix.Open("/", step, 0); err != nil {
		return failed(err)
	}
	if err := judge(here, at, path, abs == at && how != toParent, owners); err != nil {
		return named, -1, err
	}
	rest, links := split(abs), 0
	for len(rest) > 0 {
		name, last := rest[0], len(rest) == 1
		rest = rest[1:]
		next, err := unix.Openat(here, name, step, 0)
		if how == making && errors.Is(err, unix.ENOENT) {
			if err := unix.Mkdirat(here, name, 0o700); err != nil && !errors.Is(err, unix.EEXIST) {
				return named, -1, &fs.PathError{Op: "mkdir", Path: filepath.Join(at, name), Err: err}
			}
			next, err = unix.Openat(here, name, step, 0)
		}
		if err != nil {
			return failed(err)
		}
		target, err := readlink(next)
		if err != nil {
			closeFD(next)
			return failed(err)
		}
		if err := judge(next, filepath.Join(at, name), path, last && target == "" && how != toParent, owners); err != nil {
			closeFD(next)
			return named, -1, err
		}
		if target == "" {
			closeFD(here)
			here, at = next, filepath.Join(at, name)
			continue
		}
		closeFD(next)
		if last && nameless(here, target) {
			return openNameless(here, name, path, flags, owners)
		}
		if links++; links > maxLinks {
			return failed(unix.ELOOP)
		}
		if filepath.IsAbs(target) {
			closeFD(here)
			if here, err = unix.Open("/", step, 0); err != nil {
				return failed(err)
			}
			at = "/"
		}
		rest = append(split(target), rest...)
	}
	end := here
	here = -1
	return named, end, nil
}

func closeFD(fd int) {
	if fd >= 0 {
		_ = unix.Close(fd) // nothing was written through it
	}
}

// split returns the steps of a path. It keeps "..", since the step before it may be a link.
func split(path string) (steps []string) {
	for step := range strings.SplitSeq(path, "/") {
		if step != "" && step != "." {
			steps = append(steps, step)
		}
	}
	return steps
}

// readlink is where a symbolic link leads, "" for anything else.
func readlink(fd int) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", err
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", target)
	if err == nil && n == 0 {
		err = unix.ENOENT
	}
	return string(target[:max(n, 0)]), err
}

// nameless says whether a link in the directory leads to an open file without a name: /dev/stdin, <(...) of a shell.
func nameless(dir int, target string) bool {
	var st unix.Statfs_t
	return !filepath.IsAbs(target) && strings.Contains(target, ":[") && unix.Fstatfs(dir, &st) == nil && st.Type == unix.PROC_SUPER_MAGIC
}

func openNameless(dir int, name, path string, flags int, owners []uint32) (place, int, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return viaProc, -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	if err := judge(fd, path, path, true, owners); err != nil {
		closeFD(fd)
		return viaProc, -1, err
	}
	return viaProc, fd, nil
}

// judge says who else could change the file at path through part, which is open as fd. last means that part is the file.
func judge(fd int, part, path string, last bool, owners []uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: part, Err: err}
	}
	could := "change it"
	if !last {
		could = "replace " + path
	}
	if err := judgeOwner(fd, part, could, owners); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	onTheWay := kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0 && !last
	if kind == unix.S_IFLNK || kind == unix.S_IFSOCK || onTheWay || st.Mode&0o022 == 0 {
		return nil // a link's mode means nothing, and a socket's mode says who may connect
	}
	return psa.Errorf(psa.StatusNotPermitted,
		"users other than its owner can write to %s (mode %04o), and could %s", part, st.Mode&0o7777, could).
		WithHint("chmod go-w " + part)
}

// judgeOwner says what the owner of fd could do, if that is somebody else.
func judgeOwner(fd int, part, could string, owners []uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: part, Err: err}
	}
	own := os.Geteuid()
	if st.Uid == 0 || int(st.Uid) == own || slices.Contains(owners, st.Uid) {
		return nil
	}
	return psa.Errorf(psa.StatusNotPermitted, "user %d owns %s and could %s", st.Uid, part, could).
		WithHint(fmt.Sprintf("chown -h %d %s, or keep it in a directory that only its owner can change", own, part))
}
