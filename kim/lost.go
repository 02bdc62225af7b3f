package kim

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// lostInterval is how often the files of the state are looked for.
const lostInterval = time.Second

// presence tells whether files are still in the directory that they were opened in: who removes an open file takes no
// notice of whoever has it open, and what is written then is gone at the end. The directory may be moved.
type presence struct {
	dir   *os.File // O_PATH
	files []present
}

type present struct {
	name     string
	dev, ino uint64
}

// newPresence takes note of the files at path and at path with each tail, as far as they are there.
func newPresence(path string, tails ...string) (*presence, error) {
	fd, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fileError(err, "cannot open the directory of %s", path)
	}
	p := &presence{dir: os.NewFile(uintptr(fd), filepath.Dir(path))}
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
	err := unix.Fstatat(int(p.dir.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW)
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
		return nil
	}
	return psa.Errorf(psa.StatusStorageFailure, "the KIM is lost: %s %s while it was open", filepath.Join(s.files.dir.Name(), name), what).
		WithHint("nothing can be changed any more. Save what is left while this daemon runs: parsecfs state backup FILE; " +
			"then end it and restore that")
}

// abandoned says whether the connections must not be closed: SQLite would remove by their names what belongs to the file
// that took the place of ours.
func (s *sqliteStore) abandoned() bool {
	if s.files == nil {
		return false
	}
	name, _ := s.files.gone()
	return name == filepath.Base(s.path)
}

// Lost says that the store's files, or its wrapping key, were removed while they were in use (StatusStorageFailure): keys work
// as long as this process runs, and none can be made.
func (k *KIM) Lost() error {
	if err := k.store.Lost(); err != nil {
		return err
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
			k.o.Log.Error("a part of the state was removed", "err", err, "hint", psa.HintOf(err))
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
	if _, err := os.Lstat(filepath.Join(k.o.Dir, wrappingFile)); !errors.Is(err, fs.ErrNotExist) {
		return row, false
	}
	others, err := candidates(k.o.Dir)
	return row, len(others) == 0 && (err == nil || errors.Is(err, fs.ErrNotExist))
}
