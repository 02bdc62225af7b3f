package gate

import (
	"bytes"
	"slices"
	"testing"

	"github.com/parsecfs/parsecfs/nodes/caller"
)

// FuzzACL: what parses is spelled as it was, agrees with its mode, and survives what is done to ACLs.
func FuzzACL(f *testing.F) {
	f.Add(minimal(0640).Marshal(), uint32(0))
	f.Add(ACL{{tagUserObj, 6, anyID}, {tagUser, 4, 1000}, {tagGroupObj, 0, anyID}, {tagGroup, 6, 7}, {tagMask, 6, anyID}, {tagOther, 4, anyID}}.Marshal(), uint32(0640))
	f.Add([]byte{2, 0, 0, 0}, uint32(0777))
	f.Add([]byte{1, 0, 0, 0, 1, 0, 7, 0}, uint32(0))
	f.Fuzz(func(t *testing.T, b []byte, mode uint32) {
		a, err := ParseACL(b)
		if err != nil || a == nil {
			return
		}
		again, err := ParseACL(a.Marshal())
		if err != nil || !bytes.Equal(again.Marshal(), a.Marshal()) {
			t.Fatalf("%v was read as %v, %v", a, again, err)
		}
		mode &= 0777
		if got, _ := a.Chmod(mode).Mode(); got != mode {
			t.Fatalf("chmod %o gave %o", mode, got)
		}
		inherited, bits := a.Inherit(mode)
		if own, _ := a.Mode(); bits&^mode != 0 || bits&^own != 0 {
			t.Fatalf("%v inherited under %o gave %o", a, mode, bits)
		}
		if inherited != nil {
			if got, more := inherited.Mode(); got != bits || !more {
				t.Fatalf("mode %o and ACL %v differ", bits, inherited)
			}
		}
		nobody := caller.Identity{UID: 1, Groups: []uint32{1}}
		r := RightsOf(2, 2, mode, a)
		slots, dir := r.Slots()
		d := RightsOf(2, 2, dir, slots)
		for _, want := range []Bits{1, 2, 4, 7} {
			if rw, has := r.allow(nobody, 6), d.allow(nobody, want); rw != has {
				t.Fatalf("rw %v, but %o on the slots %v: %v, %v", rw, want, has, r.acl, slots)
			}
		}
	})
}

// TestRightsThatOnlyAdd: OnlyAdds never says yes where somebody loses.
func TestRightsThatOnlyAdd(t *testing.T) {
	perms := []uint16{0, 4, 6}
	var all []Rights
	for _, named := range perms {
		for _, group := range perms {
			for _, entry := range perms {
				for _, other := range perms {
					a := ACL{{tagUserObj, 6, anyID}, {tagUser, named, 1}, {tagGroupObj, group, anyID}, {tagGroup, entry, 11}, {tagMask, 6, anyID}, {tagOther, other, anyID}}
					all = append(all, RightsOf(0, 10, 0660, a), RightsOf(0, 10, 0660, slices.Delete(slices.Clone(a), 1, 2)),
						RightsOf(0, 10, 0660, slices.Delete(slices.Clone(a), 3, 4)), RightsOf(0, 10, 0600|uint32(group)<<3|uint32(other), nil))
				}
			}
		}
	}
	who := []caller.Identity{{UID: 1, Groups: []uint32{9}}, {UID: 1, Groups: []uint32{10}}, {UID: 1, Groups: []uint32{11}}, {UID: 2, Groups: []uint32{9}},
		{UID: 2, Groups: []uint32{10}}, {UID: 2, Groups: []uint32{11}}, {UID: 2, Groups: []uint32{10, 11}}, {UID: 1, Groups: []uint32{10, 11}}}
	added := 0
	for _, r := range all {
		for _, next := range all {
			if !r.OnlyAdds(next) {
				continue
			}
			added++
			for _, w := range who {
				for _, want := range []Bits{2, 4, 6} {
					if r.allow(w, want) && !next.allow(w, want) {
						t.Fatalf("%v with groups %v loses %o from %v to %v", w.UID, w.Groups, want, r.acl, next.acl)
					}
				}
			}
		}
	}
	if added < len(all) {
		t.Errorf("only %d of %d changes add", added, len(all)*len(all))
	}
}

// TestHeaderDecides: what the ids of a header decide alone is what the thread's groups would have decided.
func TestHeaderDecides(t *testing.T) {
	perms := []uint16{0, 2, 4, 6}
	sure, all := 0, 0
	for _, owner := range perms {
		for _, named := range perms {
			for _, group := range perms {
				for _, entry := range perms {
					for _, other := range perms {
						r := RightsOf(1, 10, 0660, ACL{{tagUserObj, owner, anyID}, {tagUser, named, 2}, {tagGroupObj, group, anyID}, {tagGroup, entry, 11}, {tagMask, 6, anyID}, {tagOther, other, anyID}})
						for uid := range uint32(4) {
							for _, groups := range [][]uint32{{9}, {10}, {11}, {9, 10}, {9, 11}, {10, 11}, {11, 10}} {
								for _, want := range []Bits{Read, Write, ReadWrite} {
									all++
									allowed, decided := r.decide(uid, groups[0], want)
									if !decided {
										continue
									}
									sure++
									if allowed != r.allow(caller.Identity{UID: uid, Groups: groups}, want) {
										t.Fatalf("uid %d, groups %v, %o of %v: %v", uid, groups, want, r.acl, allowed)
									}
								}
							}
						}
					}
				}
			}
		}
	}
	if sure == 0 || sure == all {
		t.Errorf("%d of %d are decided", sure, all)
	}
}

func TestUnits(t *testing.T) {
	units := []string{"nginx.service", "worker@.service"}
	for unit, want := range map[string]bool{"nginx.service": true, "worker@7.service": true, "worker@.service": true,
		"worker@7.scope": false, "worker.service": false, "xworker@7.service": false, "nginx@.service": false, "nginx.service@": false, "@": false} {
		if got := lists(units, unit); got != want {
			t.Errorf("%q: %v", unit, got)
		}
	}
}
