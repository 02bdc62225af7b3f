package fs

import (
	"log/slog"
	"os"
	"testing"
)

// TestAuthority: what each may ask for, in full.
func TestAuthority(t *testing.T) {
	t.Parallel()
	id := func(n uint32) *uint32 { return &n }
	const nobody = ^uint32(0)
	for _, c := range []struct {
		name string
		in   request
		// in the order stranger, admin, daemonUser, root
		want [4]bool
	}{
		{"ping", request{Command: commandPing}, [4]bool{false, true, true, true}},
		{"list", request{Command: commandKeys}, [4]bool{false, true, true, true}},
		{"list root's", request{Command: commandKeys, Owner: id(0)}, [4]bool{false, true, true, true}},
		{"list devices", request{Command: commandForeign}, [4]bool{false, true, true, true}},
		{"forget", request{Command: commandForget}, [4]bool{false, false, true, true}},
		{"backup", request{Command: commandBackup}, [4]bool{false, false, true, true}},
		{"rewrap", request{Command: commandRewrap}, [4]bool{false, false, true, true}},
		{"accept-loss", request{Command: commandAccept}, [4]bool{false, false, true, true}},
		{"unknown", request{Command: "keys burn"}, [4]bool{false, false, true, true}},
		{"hand over", request{Command: commandChown, Owner: id(7), UID: 8, GID: 8}, [4]bool{false, true, true, true}},
		{"hand over root's", request{Command: commandChown, Owner: id(0), UID: 8, GID: 8}, [4]bool{false, false, false, true}},
		{"hand over to root", request{Command: commandChown, Owner: id(7), UID: 0, GID: 8}, [4]bool{false, false, false, true}},
		{"hand over from root to root", request{Command: commandChown, Owner: id(0)}, [4]bool{false, false, false, true}},
		{"destroy", request{Command: commandDestroy, Owner: id(7)}, [4]bool{false, true, true, true}},
		{"destroy root's", request{Command: commandDestroy, Owner: id(0)}, [4]bool{false, false, false, true}},
		{"hand over everybody's", request{Command: commandChown, UID: 8}, [4]bool{}},
		{"destroy everybody's", request{Command: commandDestroy}, [4]bool{}},
		{"hand over to nobody", request{Command: commandChown, Owner: id(7), UID: nobody, GID: 8}, [4]bool{}},
		{"hand over to no group", request{Command: commandChown, Owner: id(7), UID: 8, GID: nobody}, [4]bool{}},
		{"hand over nobody's", request{Command: commandChown, Owner: id(nobody), UID: 8, GID: 8}, [4]bool{}},
		{"destroy nobody's", request{Command: commandDestroy, Owner: id(nobody)}, [4]bool{}},
	} {
		for a, want := range c.want {
			if err := authority(a).permits(c.in); (err == nil) != want {
				t.Errorf("%s, asked by %d: %v", c.name, a, err)
			}
		}
	}
	for a, want := range [4]bool{false, false, false, true} {
		if err := authority(a).changes(0); (err == nil) != want {
			t.Errorf("a key of root's, changed by %d: %v", a, err)
		}
		if err := authority(a).changes(7); err != nil {
			t.Errorf("a key, changed by %d: %v", a, err)
		}
	}
	own := uint32(os.Geteuid())
	for uid, want := range map[uint32]authority{0: root, 7: stranger, 9: admin} {
		if uid != own && authorityOf(uid, []uint32{9}) != want {
			t.Errorf("user %d is %d", uid, authorityOf(uid, []uint32{9}))
		}
	}
}

// TestStateDirectoryMode: others come to the socket as long as there are admins, and what somebody else opened stays so.
func TestStateDirectoryMode(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ before, without, with os.FileMode }{
		{0o700, 0o700, 0o711},
		{0o711, 0o700, 0o711}, // what a daemon with admins left that was killed
		{0o710, 0o700, 0o711},
		{0o750, 0o750, 0o751},
		{0o751, 0o750, 0o751},
		{0o755, 0o755, 0o755},
	} {
		dir := t.TempDir()
		mode := func(path string) os.FileMode {
			t.Helper()
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			return info.Mode().Perm()
		}
		if err := os.Chmod(dir, c.before); err != nil {
			t.Fatal(err)
		}
		s, err := listen(dir, nil, nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, admins := range [][]uint32{nil, {9}, {9, 10}, nil} {
			if err := s.setAdmins(admins); err != nil {
				t.Fatal(err)
			}
			wantDir, wantSocket := c.without, os.FileMode(0o600)
			if len(admins) > 0 {
				wantDir, wantSocket = c.with, 0o666
			}
			if got := mode(dir); got != wantDir {
				t.Errorf("%04o with %d admins: %04o, not %04o", c.before, len(admins), got, wantDir)
			}
			if got := mode(dir + "/" + controlName); got != wantSocket {
				t.Errorf("the socket with %d admins: %04o", len(admins), got)
			}
		}
		s.close()
	}
}
