package bounds

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// TestManyFailingUsers: 1100 uids without a key do not push out what somebody with a key has in last_error.
func TestManyFailingUsers(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/software/keys/mine")
	must(t, owner, "mkdir "+key+" && echo ed25519 > "+key+"/generate && ! sh -c 'echo x > "+key+"/attributes' 2>/dev/null")
	const crowd = `
import os, sys
for uid in range(70000, 71101):
    child = os.fork()
    if child == 0:
        os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
        try:
            os.read(os.open(sys.argv[1], os.O_RDWR), 1)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
`
	if out, err := exec.Command("python3", "-c", crowd, filepath.Join(m.Dir, "providers/software/hash/sha256")).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if text := must(t, owner, "cat "+m.Dir+"/last_error"); !strings.Contains(text, "attributes") {
		t.Errorf("what the owner of a key failed with is gone: %q", text)
	}
}
