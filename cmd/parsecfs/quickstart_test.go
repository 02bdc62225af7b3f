package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestQuickstartLooksBeforeItInstalls: where there is no Go for it, quickstart says why and installs nothing.
func TestQuickstartLooksBeforeItInstalls(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("quickstart needs root")
	}
	if exec.Command("unshare", "-m", "--propagation", "private", "true").Run() != nil {
		t.Skip("the root directory is no mount point, as in a bare chroot: no private mount namespace")
	}
	script, err := filepath.Abs("../../scripts/quickstart")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, golang string // what go is, a shell script; "" is none
		says         []string
		not          string
		installs     bool
	}{
		{name: "missing", says: []string{"quickstart: Go is missing", "hint: unpack Go 1."}},
		{name: "too old to fetch one", golang: `[ "$2" = GOTOOLCHAIN ] && echo || echo go1.19.8`,
			says: []string{"quickstart: Go 1.19.8 is too old", "hint: unpack Go 1."}},
		{name: "told not to fetch one", golang: `[ "$2" = GOTOOLCHAIN ] && echo local || echo go1.24.4`,
			says: []string{"quickstart: Go 1.24.4 is too old"}},
		{name: "broken", golang: `echo 'exec format error' >&2; exit 126`, says: []string{"/go does not work: exec format error"},
			not: "too old"},
		{name: "cannot fetch one", installs: true, not: "too old",
			says: []string{"quickstart: Go 1.24.4 could not fetch Go 1.", "x509: certificate signed by unknown authority"},
			golang: `[ "$2" = GOTOOLCHAIN ] && echo auto && exit; [ "$GOTOOLCHAIN" = local ] && echo go1.24.4 && exit
				echo 'go: download go1.26.4: tls: failed to verify certificate: x509: certificate signed by unknown authority' >&2; exit 1`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			bin, installed := t.TempDir(), filepath.Join(t.TempDir(), "installed")
			// everything but a compiler, OpenSSL and Go
			for _, name := range []string{"awk", "basename", "bash", "cat", "dirname", "head", "id", "ls", "mktemp", "printf", "realpath", "rm",
				"sort", "chmod", "sh"} {
				path, err := exec.LookPath(name)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(path, filepath.Join(bin, name)); err != nil {
					t.Fatal(err)
				}
			}
			programs := map[string]string{"apt-get": `echo "$@" >>` + installed}
			if c.golang != "" {
				programs["go"] = c.golang
			}
			for name, text := range programs {
				if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			// where it would find another Go, and where it would leave a file for the installation
			hide := `for dir in /usr/local/go /usr/lib/go /snap /usr/sbin; do [ ! -d $dir ] || mount -t tmpfs none $dir; done; export PATH="$1"; exec "$2" "$3"`
			cmd := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-euc", hide, "sh", bin, filepath.Join(bin, "bash"), script)
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != 1 {
				t.Errorf("it ended with %v", err)
			}
			for _, want := range c.says {
				if !strings.Contains(string(out), want) {
					t.Errorf("it says %q, without %q", out, want)
				}
			}
			if c.not != "" && strings.Contains(string(out), c.not) {
				t.Errorf("it says %q, with %q", out, c.not)
			}
			if _, err := os.Stat(installed); errors.Is(err, fs.ErrNotExist) == c.installs {
				t.Errorf("what it installed: %v; it should have: %v", err, c.installs)
			}
		})
	}
}
