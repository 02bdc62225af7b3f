package software

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// TestSlowCallsLetOthersPass: signatures of one user go on while another one has many RSA keys made at once. Of those come
// few before the signatures: they are what a processor does in one of the keys' time.
func TestSlowCallsLetOthersPass(t *testing.T) {
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers", "default", "keys")
	parsecfstest.Generate(t, filepath.Join(keys, "p256"), "ecdsa-p256-sha256")
	const uid, many, signatures = 4242, 40, 200
	script := `umask 077; cd "$1"
		for i in $(seq $2); do mkdir many-$i; done
		for i in $(seq $2); do echo rsa-2048-pss-sha256 >many-$i/generate && echo $i & done
		wait`
	cmd := exec.Command("/bin/sh", "-ec", script, "sh", keys, fmt.Sprint(many))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	cmd.Stderr = os.Stderr
	made, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	first := make(chan struct{})
	last := make(chan struct{})
	var done atomic.Int32
	go func() {
		defer close(last)
		for lines := bufio.NewScanner(made); lines.Scan(); {
			if done.Add(1) == 1 {
				close(first)
			}
		}
	}()
	<-first
	before := done.Load()
	for range signatures {
		if _, err := parsecfstest.Ask(filepath.Join(keys, "p256", "sign"), []byte("m")); err != nil {
			t.Fatal(err)
		}
	}
	between := done.Load() - before
	<-last
	if err := cmd.Wait(); err != nil || done.Load() != many {
		t.Errorf("the other user: %d keys, %v", done.Load(), err)
	}
	t.Logf("%d of another user's %d keys came between %d signatures", between, many, signatures)
	if between > many/4 {
		t.Errorf("%d of another user's %d keys came between %d signatures: they had to wait", between, many, signatures)
	}
}
