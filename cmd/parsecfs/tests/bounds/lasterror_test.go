package bounds

import (
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
	crowd := `for u in $(seq 70000 71100); do setpriv --reuid=$u --regid=$u --clear-groups sh -c 'read x <> "$0"' ` + m.Dir + `/providers/software/hash/sha256 2>/dev/null; done; true`
	must(t, 0, crowd)
	if text := must(t, owner, "cat "+m.Dir+"/last_error"); !strings.Contains(text, "attributes") {
		t.Errorf("what the owner of a key failed with is gone: %q", text)
	}
}
