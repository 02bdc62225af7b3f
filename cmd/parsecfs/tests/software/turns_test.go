package software

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
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

// TestUsersTakeTurns: a user's signature comes before most of those that another user has begun with many threads.
func TestUsersTakeTurns(t *testing.T) {
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	dir := parsecfstest.TempDir(t)
	crowd := filepath.Join(dir, "crowd")
	if out, err := exec.Command("gcc", "-O1", "-Wall", "-Werror", "-pthread", "-o", crowd, "testdata/crowd.c").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const uid, signatures = 4242, 41
	threads := 32 * runtime.NumCPU() // of which so many run at once
	if threads > 512 {
		t.Skip("a process has too few threads to keep so many processors busy")
	}
	keys := filepath.Join(m.Dir, "providers", "default", "keys")
	for _, template := range []string{"ecdsa-p256-sha256", "rsa-2048-pss-sha256"} {
		parsecfstest.Generate(t, filepath.Join(keys, "own-"+template), template)
	}
	script := `umask 077; mkdir "$1" && echo rsa-2048-pss-sha256 >"$1/generate" && exec "$2" "$1/sign" "$3"`
	cmd := exec.Command("sh", "-ec", script, "sh", filepath.Join(keys, "others"), crowd, fmt.Sprint(threads))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	_, out := parsecfstest.Talk(t, cmd)
	var done atomic.Int64
	begun := make(chan struct{})
	go func() {
		for {
			if _, err := out.ReadByte(); err != nil {
				return
			}
			if done.Add(1) == int64(threads) {
				close(begun)
			}
		}
	}()
	<-begun
	for _, template := range []string{"ecdsa-p256-sha256", "rsa-2048-pss-sha256"} {
		f, err := os.OpenFile(filepath.Join(keys, "own-"+template, "sign"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var passed []int64
		for range signatures {
			before := done.Load()
			if _, err := f.Write([]byte("m")); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Read(make([]byte, 1024)); err != nil {
				t.Fatal(err)
			}
			passed = append(passed, done.Load()-before)
		}
		slices.Sort(passed)
		if median := passed[signatures/2]; median > int64(threads/4) {
			t.Errorf("%s: %d of another user's signatures came between request and answer: %d", template, median, passed)
		} else {
			t.Logf("%s: %d of another user's signatures came between request and answer", template, median)
		}
	}
}
