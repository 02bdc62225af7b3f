package bounds

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// TestReadableSecret: a configuration with a secret in it is nobody's to read but its owner's.
func TestReadableSecret(t *testing.T) {
	t.Parallel()
	file := filepath.Join(parsecfstest.TempDir(t), "c.toml")
	for _, c := range []struct {
		setting string
		mode    os.FileMode
		refused bool
	}{
		{`owner_hierarchy_auth = "secret"`, 0o644, true},
		{`endorsement_hierarchy_auth = "secret"`, 0o640, true},
		{`owner_hierarchy_auth = "secret"`, 0o600, false},
		{`tcti = "device"`, 0o644, false},
	} {
		text := "[core_settings]\n[[key_manager]]\nname = \"k\"\nmanager_type = \"SQLite\"\n[[provider]]\nprovider_type = \"Tpm\"\n" + c.setting + "\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, c.mode); err != nil {
			t.Fatal(err)
		}
		_, stderr, code := parsecfstest.Run(t, "check-config", file)
		if (code != 0) != c.refused || c.refused != strings.Contains(stderr, "chmod 600 "+file) || strings.Contains(stderr, `"secret"`) {
			t.Errorf("%s, mode %o: exit %d: %s", c.setting, c.mode, code, stderr)
		}
	}
}

// TestSwappedMountpoint: root mounts on no directory whose name a user could give to another one, however fast that user is.
func TestSwappedMountpoint(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	base := parsecfstest.TempDir(t)
	for d := base; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if info, err := os.Stat(d); err == nil && info.Mode().Perm()&0o001 == 0 {
			t.Skipf("user %d cannot come to %s", stranger, base)
		}
	}
	victim, home := filepath.Join(base, "victim"), filepath.Join(base, "home")
	for _, d := range []string{victim, home, filepath.Join(home, "mnt"), filepath.Join(home, "other")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(home, stranger, stranger); err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprint(stranger)
	swaps := exec.Command("setpriv", "--reuid="+id, "--regid="+id, "--clear-groups", "sh", "-c",
		"ln -s ../victim link; while :; do mv -T mnt away; mv -T link mnt; mv -T mnt link; mv -T away mnt; done 2>/dev/null")
	swaps.Dir = home
	if err := swaps.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = swaps.Process.Kill()
		_ = swaps.Wait()
	}()
	rounds := 5
	if parsecfstest.Long() {
		rounds = 80
	}
	for i := range rounds {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		out, err := exec.CommandContext(ctx, parsecfstest.Path(t), "mount", "--state-dir", filepath.Join(base, "state"),
			filepath.Join(home, "mnt")).CombinedOutput()
		cancel()
		if err == nil || ctx.Err() == context.DeadlineExceeded || parsecfstest.IsMounted(t, victim) ||
			parsecfstest.IsMounted(t, filepath.Join(home, "mnt")) {
			t.Fatalf("round %d: it was mounted: %v\n%s", i, err, out)
		}
	}
}
