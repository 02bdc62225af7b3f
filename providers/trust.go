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

// A file that decides what this program does (its configuration, a module that it loads, a PIN, its state) is trusted
// where nobody can change it but root and the user whom the program runs as: they own it and every directory and link on
// the way to it, and nobody else may write in any of them. A directory in which all may write is fine on the way where it
// has the sticky bit, as /tmp has: what lies there is its owner's to rename. Write permission that an ACL gives shows in
// the group's bits, which are its mask.

// OpenTrusted opens a trusted file. It is that file which was judged: nobody can exchange it in between.
func OpenTrusted(path string, flags int) (*os.File, error) {
	at, fd, err := walkTrusted(path, toFile, flags, nil)
	if err != nil {
		return nil, err
	}
	if at == viaProc {
		return os.NewFile(uintptr(fd), path), nil
	}
	defer unix.Close(fd)
	// The link in /proc leads to what fd has open, whatever its name stands for by now.
	opened, err := unix.Open("/proc/self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(opened), path), nil
}

// CheckTrusted says what is wrong with a file or directory that somebody else opens. Where it does not exist that is the
// error (fs.ErrNotExist), and the directories that do exist are trusted. Whom it decides for may own it too.
func CheckTrusted(path string, owners ...uint32) error {
	_, fd, err := walkTrusted(path, toFile, unix.O_PATH, owners)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// MakeTrustedDir makes a directory and those above it, 0700, where they are missing, and says what is wrong with one that
// exists.
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

// OpenMountpoint opens a directory for its place alone (O_PATH), whose name nobody but root and our own user can give to
// another one: they own it, and what leads to it is trusted. Who may write in it does not matter, as a mount hides it.
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
	if err := judgeOwner(fd, path, "exchange it", nil); err != nil {
		closeFD(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// CheckWay says who else could lead a path elsewhere: what it stands for is no matter, only what leads there.
func CheckWay(path string) error {
	_, fd, err := walkTrusted(path, toParent, unix.O_PATH, nil)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// walk says what walkTrusted does at the end of the way.
type walk int

const (
	toFile   walk = iota
	toParent      // of what is meant: it is on the way
	making        // directories that are missing
)

// maxLinks bounds the symbolic links on one way, as the kernel does.
const maxLinks = 40

// place says what walkTrusted's descriptor is.
type place int

const (
	named   place = iota // opened for its place alone (O_PATH)
	viaProc              // what a link in /proc stands for, open as flags say: a pipe has no other name
)

// walkTrusted goes to a file step by step, so that each is judged by the descriptor from which the next one starts.
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

// split gives the steps of a path; ".." stays one, since a link may lie before it.
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

// nameless says whether a link in the directory stands for an open file without a name: /dev/stdin, <(...) of a shell.
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

// judge says who else could change the file at path by part of the way to it, open as fd; last is the file itself.
func judge(fd int, part, path string, last bool, owners []uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: part, Err: err}
	}
	could := "change it"
	if !last {
		could = "exchange " + path
	}
	if err := judgeOwner(fd, part, could, owners); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	onTheWay := kind == unix.S_IFDIR && st.Mode&unix.S_ISVTX != 0 && !last
	if kind == unix.S_IFLNK || kind == unix.S_IFSOCK || onTheWay || st.Mode&0o022 == 0 {
		return nil // a link's mode says nothing, and a socket's who may connect to whoever made it
	}
	return psa.Errorf(psa.StatusNotPermitted, "others than its owner may write %s (mode %04o), and could %s", part, st.Mode&0o7777, could).
		WithHint("chmod go-w " + part)
}

// judgeOwner says what somebody else could do who owns what is open as fd.
func judgeOwner(fd int, part, could string, owners []uint32) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: part, Err: err}
	}
	own := os.Geteuid()
	if st.Uid == 0 || int(st.Uid) == own || slices.Contains(owners, st.Uid) {
		return nil
	}
	return psa.Errorf(psa.StatusNotPermitted, "user %d owns %s, and could %s", st.Uid, part, could).
		WithHint(fmt.Sprintf("chown -h %d %s, or keep it where only its owner can change it", own, part))
}
