package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPermissionsAreThoseOfAFileSystem tells one story of chmod, chown, setfacl, umask, rename and rmdir on a tmpfs and
// on parsecfs, as nine users, and compares what each may do after each step.
func TestPermissionsAreThoseOfAFileSystem(t *testing.T) {
	requireFUSE(t)
	real := filepath.Join(openTempDir(t), "real")
	if err := os.Mkdir(real, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", real, "tmpfs", 0, "mode=1777"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(real, 0); err != nil {
			t.Error(err)
		}
	})
	m := mountParsecfs(t, mountOptions{})
	want := matrix(t, "real", real)
	got := matrix(t, "parsecfs", filepath.Join(m.Dir, "providers/software/keys"))
	if len(want) < 1000 {
		t.Fatalf("the story has %d lines only", len(want))
	}
	t.Logf("%d lines", len(want))
	scene := ""
	for i := range want {
		if !strings.HasPrefix(want[i], " ") {
			scene = want[i]
		}
		if i >= len(got) || got[i] != want[i] {
			t.Errorf("after %q\nparsecfs: %s\ntmpfs:    %s", scene, got[i], want[i])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d lines on parsecfs, %d on tmpfs", len(got), len(want))
	}
	keys := filepath.Join(m.Dir, "providers/software/keys")
	before := matrix(t, "show", keys)
	m.kill()
	m.restart()
	if after := matrix(t, "show", keys); !slices.Equal(before, after) || len(before) < 20 {
		t.Errorf("kill -9 and a restart changed rights from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

func matrix(t *testing.T, flavour, keys string) []string {
	t.Helper()
	cmd := exec.Command("python3", "testdata/permissions/matrix.py", flavour, keys)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v\n%s", flavour, err, out)
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}
