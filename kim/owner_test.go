package kim_test

import (
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// TestHandedOverDraft: whoever owns a draft's directory has the key that is made of it, however it is made.
func TestHandedOverDraft(t *testing.T) {
	t.Parallel()
	k, p := newDevice(t).open(nil)
	const maker, owner = 1000, 2002
	a, err := psa.ParseTemplate(p256)
	if err != nil {
		t.Fatal(err)
	}
	uid, nobody := uint32(owner), ^uint32(0)
	handedOver := func(name string) int64 {
		t.Helper()
		n := newDraft(t, p, name).Number
		if err := k.SetInode(ctx, kim.Inode{Ino: uint64(n) * 256, UID: &uid, GID: &uid}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for name, create := range map[string]func(n int64) error{
		"generated": func(n int64) error { return k.Generate(ctx, n, maker, p256, a, nil) },
		"derived":   func(n int64) error { return k.Derive(ctx, n, maker, p256, a, nil) },
	} {
		n := handedOver(name)
		if err := create(n); err != nil {
			t.Fatal(name, err)
		}
		key, err := k.Key(ctx, n)
		if err != nil || key.State != kim.Ready || key.UID != owner || key.GID != owner {
			t.Errorf("%s: %+v, %v", name, key, err)
		}
	}
	if used, _, err := k.Quota(ctx, maker); used != 0 || err != nil {
		t.Errorf("its maker has %d keys: %v", used, err)
	}
	// What fails leaves the draft its maker's.
	n := handedOver("failed")
	wantStatus(t, k.Generate(ctx, n, maker, "", psa.Attributes{Type: psa.KeyTypeAES, Bits: 7}, nil), psa.StatusInvalidArgument)
	if key, err := k.Key(ctx, n); err != nil || key.State != kim.Draft || key.UID != maker {
		t.Errorf("%+v, %v", key, err)
	}
	for _, i := range []kim.Inode{{Ino: uint64(n) * 256, UID: &nobody}, {Ino: uint64(n) * 256, GID: &nobody}} {
		wantStatus(t, k.SetInode(ctx, i), psa.StatusInvalidArgument)
	}
	wantStatus(t, k.SetOwner(ctx, n, maker, nobody, 1), psa.StatusInvalidArgument)
}
