package caller

import (
	"bytes"
	"strconv"
)

// Identity is who a thread is, as far as permissions go.
type Identity struct {
	UID    uint32
	Groups []uint32 // the file system's first
	caps   uint64
	tid    uint32
}

// Identity reads who the caller is now. One that is not who its request says is an error, as is one that cannot be read.
func (p *Procs) Identity(c Caller) (Identity, error) {
	s, err := p.of(c, true)
	if err != nil {
		return Identity{}, err
	}
	return Identity{UID: s.uid, Groups: append([]uint32{s.gid}, s.groups...), caps: s.caps, tid: c.TID}, nil
}

const (
	capDACOverride   = 1 << 1
	capDACReadSearch = 1 << 2
	capChown         = 1 << 0
	capFowner        = 1 << 3
)

// Overrides says whether CAP_DAC_OVERRIDE holds for an inode of this owner and group.
func (i Identity) Overrides(uid, gid uint32) bool {
	return i.caps&capDACOverride != 0 && i.maps(uid, gid)
}

// Reads says whether CAP_DAC_READ_SEARCH, which reads files and searches directories, holds for an inode of this owner and
// group.
func (i Identity) Reads(uid, gid uint32) bool {
	return i.caps&capDACReadSearch != 0 && i.maps(uid, gid)
}

// Owns says whether the thread may change an inode of this owner and group as its owner does.
func (i Identity) Owns(uid, gid uint32) bool {
	return i.UID == uid || i.caps&(capChown|capFowner) != 0 && i.maps(uid, gid)
}

// maps says whether the thread's user namespace has both ids: its capabilities hold there alone (capable_wrt_inode_uidgid).
func (i Identity) maps(uid, gid uint32) bool {
	return mapped(procPath(i.tid, "uid_map"), uid) && mapped(procPath(i.tid, "gid_map"), gid)
}

func mapped(path string, id uint32) (yes bool) {
	err := readText(path, func(b []byte) error {
		yes = hasID(b, id)
		return nil
	})
	return err == nil && yes
}

// hasID says whether a map of a user namespace (user_namespaces(7)) has an id of ours.
func hasID(b []byte, id uint32) bool {
	for line := range bytes.Lines(b) {
		words := bytes.Fields(line)
		if len(words) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(string(words[1]), 10, 32)
		count, err2 := strconv.ParseUint(string(words[2]), 10, 32)
		if err1 == nil && err2 == nil && uint64(id) >= first && uint64(id) < first+count {
			return true
		}
	}
	return false
}
