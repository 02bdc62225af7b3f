package kim

import (
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	// reserveTail ends the name of the file that keeps room beside the KIM.
	reserveTail = "-reserve"
	// reserveBytes is more than the removal of a key writes into the WAL: what it had is overwritten, a chain of 256 KiB too.
	reserveBytes = 1 << 20
	// reserveRetry is how often it is tried to take the room again.
	reserveRetry = 10 * time.Second
)

// reserve is room on the disk that only what makes room may use: on a full one keys could not be destroyed otherwise, since
// that is written down too.
type reserve struct {
	file  *os.File // nil: there is none
	spent bool
	tried time.Time
}

// open takes the room in a file of its own, where that is possible.
func (r *reserve) open(path string) {
	r.spent = true
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return
	}
	r.file = f
	r.fill()
}

func (r *reserve) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// fill takes the room, where the disk has it; where it has not, or where the file system does not know how, there is no
// reserve.
func (r *reserve) fill() {
	r.spent, r.tried = true, time.Now()
	if r.file == nil {
		return
	}
	if err := unix.Fallocate(int(r.file.Fd()), 0, 0, reserveBytes); err != nil {
		_ = r.file.Truncate(0) // a part of it is nobody's
		return
	}
	r.spent = false
}

// spend gives the room up, and says whether there was any.
func (r *reserve) spend() bool {
	if r.spent {
		return false
	}
	r.spent, r.tried = true, time.Now()
	return r.file.Truncate(0) == nil
}

// refill takes the room again, some time after it was given up.
func (r *reserve) refill() {
	if r.spent && time.Since(r.tried) >= reserveRetry {
		r.fill()
	}
}

// makeRoom has the disk's last room tried, for as long as try finds it full: in the WAL, from which the file has
// everything first, and then the reserve.
func (s *sqliteStore) makeRoom(err error, try func() error) error {
	for _, give := range []func() bool{func() bool { return true }, s.reserve.spend} {
		if psa.StatusOf(err) != psa.StatusInsufficientStorage || !give() {
			return err
		}
		// What it does not copy now stays in the WAL.
		_, _ = s.writer.ExecContext(background, "PRAGMA wal_checkpoint(RESTART)")
		err = try()
	}
	return err
}
