package kim

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// The files of a state directory.
const (
	kimFile      = "kim.sqlite3"
	wrappingFile = "wrapping.key"
	lockFile     = "lock"
	// asidePrefix starts the names of files that are written aside first. The holder of the lock removes those that a crash
	// left behind.
	asidePrefix = ".aside-"
)

// Lock is a flock(2) on a file that names its holder. It ends with the process.
type Lock struct{ f *os.File }

// LockDir makes the state directory if it is missing (0700), and locks it for this process. If another process has it, the
// error names its pid (StatusBadState). If other users own or can write to it, or to a directory on its path, it is
// StatusNotPermitted, because they could replace the wrapping key.
func LockDir(dir string) (*Lock, error) {
	if err := providers.MakeTrustedDir(dir); err != nil {
		return nil, notTrusted(err, "the state directory %s", dir)
	}
	l, err := lock(filepath.Join(dir, lockFile), "the state directory "+dir)
	if err != nil {
		return nil, err
	}
	if err := removeAside(dir); err != nil {
		l.Unlock()
		return nil, fileError(err, "cannot remove files that an earlier run left in %s", dir)
	}
	return l, nil
}

// lock takes the file, which stays there for good: removing it would let two processes hold one name.
func lock(path, what string) (*Lock, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fileError(err, "cannot lock %s", what)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder := make([]byte, 20)
		n, _ := f.ReadAt(holder, 0)
		f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fileError(err, "cannot lock %s", what)
		}
		who := "another process"
		if pid, err := strconv.Atoi(strings.TrimSpace(string(holder[:n]))); err == nil {
			who = fmt.Sprintf("process %d", pid)
		}
		return nil, psa.Errorf(psa.StatusBadState, "%s is in use by %s", what, who).
			WithHint("unmount that one first, or use another --state-dir")
	}
	if err := errors.Join(f.Truncate(0), writeAt(f, fmt.Appendf(nil, "%d\n", os.Getpid()))); err != nil {
		f.Close()
		return nil, fileError(err, "cannot lock %s", what)
	}
	return &Lock{f}, nil
}

func writeAt(f *os.File, b []byte) error {
	_, err := f.WriteAt(b, 0)
	return err
}

// Unlock releases the lock.
func (l *Lock) Unlock() error {
	// A child that has not come to its exec yet shares the lock, and would hold it on.
	return errors.Join(l.f.Truncate(0), unix.Flock(int(l.f.Fd()), unix.LOCK_UN), l.f.Close())
}

// removeAside removes files that were written aside and never put into place.
func removeAside(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), asidePrefix) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// createPrivate makes a new file 0600, whatever the umask is.
func createPrivate(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o600); err != nil {
		f.Close()
		os.Remove(path)
		return nil, err
	}
	return f, nil
}

// asideDir makes a directory for files that are later moved into place in dir.
func asideDir(dir string) (string, error) {
	aside, err := os.MkdirTemp(dir, asidePrefix)
	if err != nil {
		return "", err
	}
	return aside, os.Chmod(aside, 0o700)
}

// notTrusted is the error, with its hint, of a file or directory that others could change or that cannot be opened.
func notTrusted(err error, format string, args ...any) error {
	hint := psa.HintOf(err)
	if hint == "" {
		return fileError(err, format, args...)
	}
	return psa.Errorf(psa.StatusNotPermitted, format+": %w", append(args, err)...).WithHint(hint)
}

// place links a complete and synced file to its final name, never over another file, and makes that durable.
func place(from, to string) error {
	if err := os.Link(from, to); err != nil {
		return err
	}
	if err := os.Remove(from); err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func syncFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// fileError gives an operating system's error its status.
func fileError(err error, format string, args ...any) error {
	status := psa.StatusStorageFailure
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		status = psa.StatusInsufficientStorage
	case errors.Is(err, fs.ErrPermission):
		status = psa.StatusNotPermitted
	}
	return psa.Errorf(status, "%s: %w", fmt.Sprintf(format, args...), err)
}
