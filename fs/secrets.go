package fs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// readersOf says who may read an open file besides its owner and root, "" for nobody. With an ACL the group's bits are its
// mask, so they show what the ACL gives.
func readersOf(f *os.File) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: f.Name(), Err: err}
	}
	switch {
	case st.Mode&0o004 != 0:
		return fmt.Sprintf("everybody (mode %04o)", st.Mode&0o7777), nil
	case st.Mode&0o040 != 0:
		return fmt.Sprintf("group %d (mode %04o)", st.Gid, st.Mode&0o7777), nil
	}
	return "", nil
}

// secret reports a secret in a configuration that others may read.
func (p *configParser) secret(v value, name string) {
	if p.readers == "" {
		return
	}
	p.problemHint(v.path, fmt.Sprintf("%s is a secret, but %s can read %s", name, p.readers, p.file),
		"chmod 600 "+p.file+", or keep a PIN in a file of its own (pin_source)")
}
