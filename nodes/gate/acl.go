package gate

import (
	"encoding/binary"
	"slices"
	"syscall"
)

// Names of the extended attributes that hold POSIX ACLs (acl(5)).
const (
	AccessACL  = "system.posix_acl_access"
	DefaultACL = "system.posix_acl_default"
)

// Tags of entries, as <linux/posix_acl.h> numbers them.
const (
	tagUserObj  = 0x01
	tagUser     = 0x02
	tagGroupObj = 0x04
	tagGroup    = 0x08
	tagMask     = 0x10
	tagOther    = 0x20
)

const (
	aclVersion = 2
	aclEntries = 512 // bounds one ACL, as ext4 does by its block
	anyID      = 0xffffffff
)

// aclEntry is one entry: rwx bits for a class, a user or a group.
type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// ACL is a POSIX ACL in its canonical order: the owner, users, the owning group, groups, the mask, others.
type ACL []aclEntry

// ParseACL reads the value of an extended attribute (<linux/posix_acl_xattr.h>), little endian. What is no valid ACL
// (acl_valid(3)) is EINVAL. An empty one is nil.
func ParseACL(b []byte) (ACL, error) {
	bad := Refuse(syscall.EINVAL, "this is not a valid POSIX ACL", "use setfacl")
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != aclVersion || len(b)%8 != 4 || len(b) > 4+8*aclEntries {
		return nil, bad
	}
	var a ACL
	for b = b[4:]; len(b) > 0; b = b[8:] {
		e := aclEntry{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])}
		if e.tag != tagUser && e.tag != tagGroup {
			e.id = anyID
		} else if e.id == anyID {
			return nil, bad
		}
		if e.perm&^7 != 0 {
			return nil, bad
		}
		if n := len(a); n > 0 && (a[n-1].tag > e.tag || a[n-1].tag == e.tag && e.id == anyID) {
			return nil, bad
		}
		a = append(a, e)
	}
	if len(a) == 0 {
		return nil, nil
	}
	known := uint16(tagUserObj | tagUser | tagGroupObj | tagGroup | tagMask | tagOther)
	var seen uint16
	for _, e := range a {
		if e.tag&^known != 0 || e.tag&(e.tag-1) != 0 {
			return nil, bad
		}
		seen |= e.tag
	}
	const needed = tagUserObj | tagGroupObj | tagOther
	if seen&needed != needed || seen&(tagUser|tagGroup) != 0 && seen&tagMask == 0 {
		return nil, bad
	}
	return a, nil
}

// Marshal gives the value of the extended attribute, nil for no ACL.
func (a ACL) Marshal() []byte {
	if len(a) == 0 {
		return nil
	}
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range a {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// find gives the entry of a class, nil if there is none.
func (a ACL) find(tag uint16) *aclEntry {
	if i := slices.IndexFunc(a, func(e aclEntry) bool { return e.tag == tag }); i >= 0 {
		return &a[i]
	}
	return nil
}

// groupClass is the entry that the group bits of the mode stand for: the mask, or the owning group without one.
func (a ACL) groupClass() *aclEntry {
	if m := a.find(tagMask); m != nil {
		return m
	}
	return a.find(tagGroupObj)
}

// Mode gives the permission bits that a stands for, and whether it says more than they do.
func (a ACL) Mode() (bits uint32, more bool) {
	bits = uint32(a.find(tagUserObj).perm)<<6 | uint32(a.groupClass().perm)<<3 | uint32(a.find(tagOther).perm)
	return bits, len(a) > 3
}

// Chmod gives a with the permission bits of a mode (acl(5), "correspondence between ACL entries and file permission
// bits").
func (a ACL) Chmod(mode uint32) ACL {
	a = slices.Clone(a)
	if len(a) > 0 {
		a.find(tagUserObj).perm = uint16(mode >> 6 & 7)
		a.groupClass().perm = uint16(mode >> 3 & 7)
		a.find(tagOther).perm = uint16(mode & 7)
	}
	return a
}

// Inherit gives the ACL and mode of a new file that is made with mode in a directory with the default ACL a (acl(5),
// "object creation and default ACLs"): neither grants more than the other.
func (a ACL) Inherit(mode uint32) (ACL, uint32) {
	bits, more := a.Mode()
	mode = mode&^0777 | mode&bits
	if !more {
		return nil, mode
	}
	return a.Chmod(mode), mode
}

// minimal is the ACL that says what the permission bits of a mode say.
func minimal(mode uint32) ACL {
	return ACL{{tagUserObj, uint16(mode >> 6 & 7), anyID}, {tagGroupObj, uint16(mode >> 3 & 7), anyID}, {tagOther, uint16(mode & 7), anyID}}
}

// effective is a with the mask in its entries.
func (a ACL) effective() ACL {
	a = slices.Clone(a)
	m := a.find(tagMask)
	if m == nil {
		return a
	}
	for i := range a {
		if a[i].tag&(tagUser|tagGroupObj|tagGroup) != 0 {
			a[i].perm &= m.perm
		}
	}
	return a
}
