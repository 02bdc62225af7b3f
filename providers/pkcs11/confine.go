package pkcs11

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// A worker starts with all rights of this program, and without a module. One thread gives up every right that a module does
// not need, and executes the program again: from then on no thread of it ever had these rights.

// orders say what a worker gives up before it executes itself again. They are JSON in the variable ordersName.
type orders struct {
	User         *account // nil: whose the program is
	Capabilities []int    // that it keeps
	Environment  []string // the whole of it
	Files        []string // that the module reads
}

// account is a user whom a worker runs as.
type account struct {
	UID, GID uint32
	Name     string // empty: it has none
	Home     string
}

const (
	ordersName = "PARSECFS_WORKER"
	// exitDenied is a worker's exit status if its user may not read what the module needs.
	exitDenied = 4
)

// confine carries the orders out. It returns only if that fails.
func confine(text string, sockets int) error {
	var o orders
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		return err
	}
	runtime.LockOSThread() // what follows is of this thread alone, which executes the program
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("RLIMIT_CORE: %w", err)
	}
	if err := unix.CloseRange(uint(firstSocket+sockets), math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("close_range: %w", err)
	}
	if err := o.becomeUser(); err != nil {
		return err
	}
	for _, path := range o.Files {
		if err := readable(path); err != nil {
			return err
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_NO_NEW_PRIVS: %w", err)
	}
	if err := enterDomain(); err != nil {
		return err
	}
	if err := denySystemCalls(); err != nil {
		return err
	}
	return fmt.Errorf("cannot execute %s again: %w", os.Args[0], syscall.Exec("/proc/self/exe", os.Args, o.Environment))
}

// becomeUser changes the user, and leaves the thread only the capabilities to keep, now and later.
func (o *orders) becomeUser() error {
	have, err := capabilities()
	if err != nil {
		return err
	}
	kept := uint64(0)
	for _, c := range o.Capabilities {
		kept |= 1 << c
	}
	if kept&^have != 0 {
		return errors.New("this program itself lacks some of keep_capabilities")
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_KEEPCAPS: %w", err)
	}
	if u := o.User; u != nil {
		// Those of the standard library change all threads, as libc does.
		if err := errors.Join(syscall.Setgroups(nil), syscall.Setresgid(int(u.GID), int(u.GID), int(u.GID)),
			syscall.Setresuid(int(u.UID), int(u.UID), int(u.UID))); err != nil {
			return fmt.Errorf("cannot become user %d: %w", u.UID, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_CAP_AMBIENT: %w", err)
	}
	if setpcap := have & (1 << unix.CAP_SETPCAP); setpcap != 0 {
		if err := setCapabilities(kept|setpcap, kept); err != nil {
			return err
		}
		if err := o.lockCapabilities(kept); err != nil {
			return err
		}
	} // else no new privileges keep it from the others
	return setCapabilities(kept, kept)
}

// lockCapabilities makes the kept capabilities survive an execve, and no others come back by one.
func (o *orders) lockCapabilities(kept uint64) error {
	for _, c := range o.Capabilities {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return fmt.Errorf("PR_CAP_AMBIENT_RAISE: %w", err)
		}
	}
	for c := 0; ; c++ {
		if kept&(1<<c) != 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err == unix.EINVAL && c > 0 {
			break // after the last that the kernel knows
		} else if err != nil {
			return fmt.Errorf("PR_CAPBSET_DROP: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, lockedBits, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_SECUREBITS: %w", err)
	}
	return nil
}

// lockedBits are of linux/securebits.h: to be user 0 gives no capabilities (NOROOT), a change of the user does nothing with
// them (NO_SETUID_FIXUP), none becomes ambient (NO_CAP_AMBIENT_RAISE), KEEP_CAPS stays off, and all of that stays so.
const lockedBits = 1<<0 | 1<<1 | 1<<2 | 1<<3 | 1<<5 | 1<<6 | 1<<7

func capabilities() (uint64, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return 0, fmt.Errorf("capget: %w", err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32, nil
}

func setCapabilities(permitted, inheritable uint64) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		p := uint32(permitted >> (32 * i))
		data[i] = unix.CapUserData{Effective: p, Permitted: p, Inheritable: uint32(inheritable >> (32 * i))}
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return nil
}

// deniedError reports a file that the module needs but its user may not read.
type deniedError struct {
	path string
	err  error
}

func (e *deniedError) Error() string {
	return fmt.Sprintf("user %d cannot read %s: %v", os.Geteuid(), e.path, e.err)
}

func (e *deniedError) Unwrap() error { return e.err }

// readable reports a file that we may not read, or a directory that we may not enter. A missing one is left to the module.
func readable(path string) error {
	if err := access(path); errors.Is(err, fs.ErrPermission) {
		return &deniedError{path, unix.EACCES}
	}
	return nil
}

func access(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return unix.Access(path, unix.X_OK)
	}
	return unix.Access(path, unix.R_OK)
}

// confined reports a worker that was not started as it should be.
func confined() error {
	on, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0)
	if err != nil {
		return err
	}
	if on != 1 {
		return errors.New("the process could gain new privileges")
	}
	return nil
}

// keepable are the capabilities that a device may need. None of them gives access to another process's memory.
var keepable = map[string]int{
	"CAP_DAC_OVERRIDE":    unix.CAP_DAC_OVERRIDE,
	"CAP_DAC_READ_SEARCH": unix.CAP_DAC_READ_SEARCH,
	"CAP_IPC_LOCK":        unix.CAP_IPC_LOCK,
	"CAP_SYS_NICE":        unix.CAP_SYS_NICE,
}

func parseCapabilities(v any) (kept []int, err error) {
	names := slices.Sorted(func(yield func(string) bool) {
		for name := range keepable {
			if !yield(name) {
				return
			}
		}
	})
	list, ok := v.([]any)
	if !ok {
		return nil, fmt.Errorf("must be a list of some of %q", names)
	}
	for _, one := range list {
		name, _ := one.(string)
		c, ok := keepable[name]
		if !ok {
			return nil, fmt.Errorf("unknown capability %v; allowed: %q", one, names)
		}
		kept = append(kept, c)
	}
	slices.Sort(kept)
	return slices.Compact(kept), nil
}

// idOf is a uid or a gid; the last one means "no change" to the kernel.
func idOf(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n != math.MaxUint32
}
