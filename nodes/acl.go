package nodes

import (
	"encoding/binary"
	"slices"
	"syscall"
)

// Names of the extended attributes that hold POSIX ACLs (acl(5)).
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
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

// acl is a POSIX ACL in its canonical order: the owner, users, the owning group, groups, the mask, others.
type acl []aclEntry

// parseACL reads the value of an extended attribute (<linux/posix_acl_xattr.h>), little endian. What is no valid ACL
// (acl_valid(3)) is EINVAL. An empty one is nil.
func parseACL(b []byte) (acl, error) {
	bad := refuse(syscall.EINVAL, "this is no valid POSIX ACL", "setfacl makes them")
	if len(b) < 4 || binary.LittleEndian.Uint32(b) != aclVersion || len(b)%8 != 4 || len(b) > 4+8*aclEntries {
		return nil, bad
	}
	var a acl
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

func (a acl) marshal() []byte {
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
func (a acl) find(tag uint16) *aclEntry {
	if i := slices.IndexFunc(a, func(e aclEntry) bool { return e.tag == tag }); i >= 0 {
		return &a[i]
	}
	return nil
}

// groupClass is the entry that the group bits of the mode stand for: the mask, or the owning group without one.
func (a acl) groupClass() *aclEntry {
	if m := a.find(tagMask); m != nil {
		return m
	}
	return a.find(tagGroupObj)
}

// mode gives the permission bits that a stands for, and whether it says more than they do.
func (a acl) mode() (bits uint32, more bool) {
	bits = uint32(a.find(tagUserObj).perm)<<6 | uint32(a.groupClass().perm)<<3 | uint32(a.find(tagOther).perm)
	return bits, len(a) > 3
}

// chmod gives a with the permission bits of a mode (acl(5), "correspondence between ACL entries and file permission
// bits").
func (a acl) chmod(mode uint32) acl {
	a = slices.Clone(a)
	if len(a) > 0 {
		a.find(tagUserObj).perm = uint16(mode >> 6 & 7)
		a.groupClass().perm = uint16(mode >> 3 & 7)
		a.find(tagOther).perm = uint16(mode & 7)
	}
	return a
}

// inherit gives the ACL and mode of a new file that is made with mode in a directory with the default ACL a (acl(5),
// "object creation and default ACLs"): neither grants more than the other.
func (a acl) inherit(mode uint32) (acl, uint32) {
	bits, more := a.mode()
	mode = mode&^0777 | mode&bits
	if !more {
		return nil, mode
	}
	return a.chmod(mode), mode
}

// minimal is the ACL that says what the permission bits of a mode say.
func minimal(mode uint32) acl {
	return acl{{tagUserObj, uint16(mode >> 6 & 7), anyID}, {tagGroupObj, uint16(mode >> 3 & 7), anyID}, {tagOther, uint16(mode & 7), anyID}}
}

// effective is a with the mask in its entries.
func (a acl) effective() acl {
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

// rights is who may do what with an inode.
type rights struct {
	uid, gid uint32
	acl      acl // never empty: minimal where there is none
}

// rightsOf has the kernel's own rule beside acl(5): without group bits in the mode it looks at no ACL
// (acl_permission_check in fs/namei.c).
func rightsOf(uid, gid, mode uint32, a acl) rights {
	if len(a) == 0 || mode&0070 == 0 {
		a = minimal(mode)
	}
	return rights{uid, gid, a.effective()}
}

// identity is who asks: the file system ids of a thread, and whether capabilities let it pass.
type identity struct {
	uid    uint32
	groups []uint32
	// overrides says whether CAP_DAC_OVERRIDE holds for an inode of this owner and group.
	overrides func(uid, gid uint32) bool
}

// allow judges as the kernel does (acl(5), "access check algorithm"); want are rwx bits, for a file or a search.
func (r rights) allow(who identity, want uint16) bool {
	return who.overrides(r.uid, r.gid) || r.allowed(who, want)
}

func (r rights) allowed(who identity, want uint16) bool {
	if who.uid == r.uid {
		return r.acl.find(tagUserObj).perm&want == want
	}
	group := false
	for _, e := range r.acl {
		switch {
		case e.tag == tagUser && e.id == who.uid:
			return e.perm&want == want
		case e.tag == tagGroupObj && slices.Contains(who.groups, r.gid), e.tag == tagGroup && slices.Contains(who.groups, e.id):
			if e.perm&want == want {
				return true
			}
			group = true
		}
	}
	return !group && r.acl.find(tagOther).perm&want == want
}

// onlyAdds says whether nobody who could do something by r cannot do it by next. It may say no where nobody loses.
func (r rights) onlyAdds(next rights) bool {
	if r.uid != next.uid || r.gid != next.gid {
		return false
	}
	other := r.acl.find(tagOther).perm
	// whatever a user without an entry of their own could get by groups
	most := other
	for _, e := range r.acl {
		if e.tag&(tagGroupObj|tagGroup) != 0 {
			most |= e.perm
		}
		if e.tag == tagMask {
			continue
		}
		i := slices.IndexFunc(next.acl, func(n aclEntry) bool { return n.tag == e.tag && n.id == e.id })
		if i < 0 || e.perm&^next.acl[i].perm != 0 {
			return false
		}
	}
	for _, e := range next.acl {
		if slices.ContainsFunc(r.acl, func(o aclEntry) bool { return o.tag == e.tag && o.id == e.id }) {
			continue
		}
		if e.tag == tagUser && most&^e.perm != 0 || e.tag == tagGroup && other&^e.perm != 0 {
			return false
		}
	}
	return true
}

// slots gives the ACL of X.d for that of X: rw becomes wx, never r, and nothing less counts.
func (r rights) slots() (acl, uint32) {
	a := slices.Clone(r.acl)
	for i := range a {
		if a[i].perm&6 == 6 {
			a[i].perm = 3
		} else {
			a[i].perm = 0
		}
	}
	if m := a.find(tagMask); m != nil {
		m.perm = 3 // the entries are effective as they are
	}
	bits, more := a.mode()
	if !more {
		a = nil
	}
	return a, bits
}
