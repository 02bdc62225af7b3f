package kim

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// lostInterval is how often the files of the state are looked for.
const lostInterval = time.Second

// heldDir is a directory that this process has open. Its files are opened by the descriptor: later its path may lead to another
// directory.
type heldDir struct {
	path string
	f    *os.File // O_PATH
}

func holdDir(path string) (*heldDir, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fileError(err, "cannot open the directory %s", path)
	}
	return &heldDir{path, os.NewFile(uintptr(fd), path)}, nil
}

func (d *heldDir) close() { d.f.Close() }

// at is a path of the directory that leads to it wherever it is.
func (d *heldDir) at() string { return "/proc/self/fd/" + strconv.Itoa(int(d.f.Fd())) }

// named gives an error of a file that was opened by at the path that the user knows.
func (d *heldDir) named(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		e.Path = d.name(e.Path)
	}
	return err
}

func (d *heldDir) name(path string) string {
	if rest, ok := strings.CutPrefix(path, d.at()); ok {
		return d.path + rest
	}
	return path
}

// lost says that the directory was removed, or that its path leads to another one by now (StatusStorageFailure). What cannot be
// told is no loss.
func (d *heldDir) lost(what string) error {
	var held, named unix.Stat_t
	if err := unix.Fstat(int(d.f.Fd()), &held); err != nil {
		return nil
	}
	err := unix.Stat(d.path, &named)
	missing := errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
	if err != nil && !missing || err == nil && held.Dev == named.Dev && held.Ino == named.Ino {
		return nil
	}
	if Removed(d.f) {
		return psa.Errorf(psa.StatusStorageFailure, "%s %s was removed while it was open", what, d.path).WithHint(lostHint)
	}
	now, err := os.Readlink(d.at())
	switch {
	case err != nil:
		return psa.Errorf(psa.StatusStorageFailure, "%s %s was moved while it was open", what, d.path).WithHint("move it back")
	case now == real(d.path):
		return psa.Errorf(psa.StatusStorageFailure, "%s %s is hidden by another one that was mounted there", what, d.path).
			WithHint("nothing can be changed until that is gone: umount " + shellWord(d.path))
	}
	back := "mv -T " + shellWord(now) + " " + shellWord(d.path)
	if _, err := os.Lstat(d.path); err == nil {
		back = "move away what has its path now, then run " + back
	} else if _, err := os.Stat(filepath.Dir(d.path)); err != nil {
		back = "move " + filepath.Dir(d.path) + " back too"
	}
	return psa.Errorf(psa.StatusStorageFailure, "%s %s was moved to %s while it was open", what, d.path, now).
		WithHint("nothing can be changed until it is back: " + back)
}

// Removed says whether an open directory was removed. On an overlay it has a link still.
func Removed(dir *os.File) bool {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil || st.Nlink == 0 {
		return err == nil
	}
	at := "/proc/self/fd/" + strconv.Itoa(int(dir.Fd()))
	name, err := os.Readlink(at)
	if err != nil || !strings.HasSuffix(name, " (deleted)") {
		return false
	}
	itself, err1 := os.Stat(at)
	named, err2 := os.Stat(name) // which may be its name
	return err1 == nil && (err2 != nil || !os.SameFile(itself, named))
}

// shellWord is a path as a shell reads it.
func shellWord(path string) string {
	if strings.Trim(path, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%=,") == "" {
		return path
	}
	return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'"
}

// real is a path without links, as far as it can be told.
func real(path string) string {
	if to, err := filepath.EvalSymlinks(path); err == nil {
		return to
	}
	return path
}

// lostHint is what a store says that does not know how its daemon is reached; a provider's status does (KIM.Lost).
const lostHint = "nothing can be changed any more; the providers' status files say how to save what is left"

// presence tells whether files are still in the directory that they were opened in, and the directory at its path: who removes
// an open file takes no notice of whoever has it open, and what is written then is gone at the end.
type presence struct {
	dir   *heldDir
	files []present
}

type present struct {
	name     string
	dev, ino uint64
}

// newPresence takes note of the files at path and at path with each tail, as far as they are there.
func newPresence(path string, tails ...string) (*presence, error) {
	dir, err := holdDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	p := &presence{dir: dir}
	for _, tail := range append([]string{""}, tails...) {
		f, err := p.look(filepath.Base(path) + tail)
		if err == nil {
			p.files = append(p.files, f)
		}
	}
	return p, nil
}

func (p *presence) look(name string) (present, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(p.dir.f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
	return present{name, uint64(st.Dev), st.Ino}, err
}

// gone names the first file that is not there any more, and says what became of it; what cannot be told is no loss.
func (p *presence) gone() (name, what string) {
	for _, f := range p.files {
		now, err := p.look(f.name)
		switch {
		case errors.Is(err, unix.ENOENT):
			return f.name, "was removed"
		case err == nil && now != f:
			return f.name, "was replaced"
		}
	}
	return "", ""
}

// Lost is Store.Lost.
func (s *sqliteStore) Lost() error {
	if s.files == nil {
		return nil
	}
	name, what := s.files.gone()
	if name == "" {
		return s.files.dir.lost("the KIM's directory")
	}
	return psa.Errorf(psa.StatusStorageFailure, "the KIM is lost: %s %s while it was open", filepath.Join(s.files.dir.path, name), what).
		WithHint(lostHint)
}

// abandoned says whether the connections must not be closed: SQLite would remove by their paths what belongs to the file
// that took the place of ours.
func (s *sqliteStore) abandoned() bool {
	if s.files == nil {
		return false
	}
	name, _ := s.files.gone()
	return name == filepath.Base(s.path) || s.files.dir.lost("") != nil
}

// Lost says that the store's files, its wrapping key or their directory were taken away while they were in use
// (StatusStorageFailure): keys work as long as this process runs, and none can be made.
func (k *KIM) Lost() error {
	if err := cmp.Or(k.state.lost("the state directory"), k.store.Lost()); err != nil {
		if psa.HintOf(err) != lostHint {
			return err
		}
		return psa.Errorf(psa.StatusOf(err), "%w", err).WithHint(fmt.Sprintf("nothing can be changed any more. "+
			"Save what is left while this daemon runs: parsecfs state backup --state-dir %s FILE; then unmount, move away what is left of "+
			"%s, and put the keys back: parsecfs state restore --state-dir %s FILE", shellWord(k.o.Dir), shellWord(k.o.Dir), shellWord(k.o.Dir)))
	}
	if err := k.lostKey.Load(); err != nil {
		return *err
	}
	return nil
}

// watchFiles looks for the files of the state, and says when they are gone and when they are back.
func (k *KIM) watchFiles() {
	ticker := time.NewTicker(lostInterval)
	defer ticker.Stop()
	was := false
	for {
		select {
		case <-k.ctx.Done():
			return
		case <-ticker.C:
		}
		k.lookForKey()
		err := k.Lost()
		switch {
		case err != nil && !was:
			k.o.Log.Error("a part of the state was taken away", "err", err, "hint", psa.HintOf(err))
		case err == nil && was:
			k.o.Log.Info("the state is complete again")
		}
		was = err != nil
	}
}

// lookForKey notes whether there is a wrapping key in the state directory where one wraps the data key.
func (k *KIM) lookForKey() {
	if k.sealer.Err() != nil {
		return
	}
	row, gone := k.wrappingKeyGone()
	if !gone {
		k.lostKey.Store(nil)
		return
	}
	// A rewrap may have moved it meanwhile.
	if again, gone := k.wrappingKeyGone(); !gone || again.WrappingID != row.WrappingID {
		return
	}
	path := filepath.Join(k.o.Dir, wrappingFile)
	lost := psa.Errorf(psa.StatusStorageFailure,
		"the wrapping key %s was removed: when this daemon has ended, nobody can read the secrets in the KIM", path).
		WithHint("put it back, or make a new one while this daemon runs: parsecfs state rewrap file")
	k.lostKey.Store(new(error(lost)))
}

func (k *KIM) wrappingKeyGone() (row WrappedKey, gone bool) {
	row, _, err := k.store.DataKey(k.ctx)
	if err != nil || strings.HasPrefix(row.Kind, WrapProvider) {
		return row, false
	}
	if _, err := os.Lstat(filepath.Join(k.state.at(), wrappingFile)); !errors.Is(err, fs.ErrNotExist) {
		return row, false
	}
	others, err := candidates(k.state.at())
	return row, len(others) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist))
}
