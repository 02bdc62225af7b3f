package gate

import (
	"slices"

	"github.com/parsecfs/parsecfs/nodes/caller"
)

// Rights is who may do what with an inode.
type Rights struct {
	uid, gid uint32
	acl      ACL // never empty: minimal where there is none
}

// RightsOf has the kernel's own rule beside acl(5): without group bits in the mode it looks at no ACL
// (acl_permission_check in fs/namei.c).
func RightsOf(uid, gid, mode uint32, a ACL) Rights {
	if len(a) == 0 || mode&0070 == 0 {
		a = minimal(mode)
	}
	return Rights{uid, gid, a.effective()}
}

// Bits are permissions that are asked for, as the last octal digit of a mode has them.
type Bits uint16

// What is asked for.
const (
	Search    Bits = 1 // of a directory
	Write     Bits = 2
	Read      Bits = 4
	ReadWrite Bits = Read | Write
)

// decide judges by the ids in a request's header alone. sure is false where groups or capabilities have a say, which
// only the thread itself can tell.
func (r Rights) decide(uid, gid uint32, want Bits) (allowed, sure bool) {
	w := uint16(want)
	if uid == r.uid {
		allowed = r.acl.find(tagUserObj).perm&w == w
		return allowed, allowed
	}
	all := r.acl.find(tagOther).perm&w == w
	for _, e := range r.acl {
		grants := e.perm&w == w
		switch e.tag {
		case tagUser:
			if e.id == uid {
				return grants, grants
			}
		case tagGroupObj, tagGroup:
			mine := e.tag == tagGroup && e.id == gid || e.tag == tagGroupObj && r.gid == gid
			if mine && grants {
				return true, true
			}
			all = all && grants
		}
	}
	return all, all // in whatever groups the caller is
}

// allow judges as the kernel does (acl(5), "access check algorithm"; generic_permission in fs/namei.c).
func (r Rights) allow(who caller.Identity, want Bits) bool {
	if r.allowed(who.UID, who.Groups, uint16(want)) || who.Overrides(r.uid, r.gid) {
		return true
	}
	return want&Write == 0 && who.Reads(r.uid, r.gid)
}

func (r Rights) allowed(uid uint32, groups []uint32, want uint16) bool {
	if uid == r.uid {
		return r.acl.find(tagUserObj).perm&want == want
	}
	group := false
	for _, e := range r.acl {
		switch {
		case e.tag == tagUser && e.id == uid:
			return e.perm&want == want
		case e.tag == tagGroupObj && slices.Contains(groups, r.gid), e.tag == tagGroup && slices.Contains(groups, e.id):
			if e.perm&want == want {
				return true
			}
			group = true
		}
	}
	return !group && r.acl.find(tagOther).perm&want == want
}

// OnlyAdds says whether nobody who could do something by r cannot do it by next. It may say no where nobody loses.
func (r Rights) OnlyAdds(next Rights) bool {
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

// Slots gives the ACL of X.d for that of X: rw becomes rwx, since whoever lists X.d sees their own slots alone, and nothing
// less counts.
func (r Rights) Slots() (ACL, uint32) {
	a := slices.Clone(r.acl)
	for i := range a {
		if a[i].perm&6 == 6 {
			a[i].perm = 7
		} else {
			a[i].perm = 0
		}
	}
	if m := a.find(tagMask); m != nil {
		m.perm = 7 // the entries are effective as they are
	}
	bits, more := a.Mode()
	if !more {
		a = nil
	}
	return a, bits
}
