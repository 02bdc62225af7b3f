package gate

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// claims makes each file of the keys its caller's again and again, for as long as the kernel lets it. It says when it has begun.
const claims = `
import os, sys, threading
def claim(path):
    try:
        while True: os.chown(path, os.getuid(), os.getgid())
    except PermissionError: pass
threads = []
for key in sys.argv[1:]:
    for path in [key] + [key + "/" + f for f in os.listdir(key) if not f.endswith(".d")]:
        threads.append(threading.Thread(target=claim, args=(path,)))
for t in threads: t.start()
print("begun", flush=True)
for t in threads: t.join()
`

// What the kernel let through before a key was handed over does not come after it.
func TestHandedOverWhileItsOwnerClaimsIt(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	o := newUser(t, maker)
	var all []string
	for i := range 8 {
		key := filepath.Join(keys, fmt.Sprint("k", i))
		o.must("os.mkdir(%q)", key)
		o.must("put(%q, 'ecdsa-p256-sha256\\n')", key+"/generate")
		all = append(all, key)
	}
	cmd := exec.Command("/usr/bin/python3", append([]string{"-c", claims}, all...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: maker, Gid: maker}}
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
	root(t, parsecfstest.Path(t), "keys", "chown", "--state-dir", m.StateDir, "--owner", fmt.Sprint(maker), fmt.Sprint(heir))
	// What is on its way comes to its end all the same.
	if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	_ = cmd.Wait()
	for _, key := range all {
		for _, f := range append(names(t, key), ".") {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(key, f), &st); err != nil {
				t.Error(err)
			} else if st.Uid != heir {
				t.Errorf("%s/%s is user %d's", filepath.Base(key), f, st.Uid)
			}
		}
	}
}
