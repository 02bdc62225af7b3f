package permissions

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"

	"golang.org/x/sys/unix"
)

const (
	revokeOwner = 61001
	revokeUser  = 61004
)

// signing is a worker that signs over one descriptor until it is refused.
type signing struct {
	uid    int
	stdin  io.Closer
	first  chan struct{} // closed after its first signature
	enough chan struct{} // closed when it has made as many as it was asked to since watch
	left   atomic.Int64
	done   chan struct{}
	// after done
	lastOK int64 // when its last READ that gave a signature began
	end    string
}

func startSigning(t *testing.T, uid int, file string) *signing {
	t.Helper()
	cmd := exec.Command("python3", "testdata/worker.py", fmt.Sprint(uid), file)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	w := &signing{uid: uid, stdin: stdin, first: make(chan struct{}), enough: make(chan struct{}), done: make(chan struct{})}
	t.Cleanup(func() {
		stdin.Close()
		<-w.done
	})
	go func() {
		defer close(w.done)
		begun := sync.OnceFunc(func() { close(w.first) })
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var start int64
			var result string
			if _, err := fmt.Sscan(lines.Text(), &start, &result); err != nil {
				t.Errorf("a worker said %q", lines.Text())
			}
			if result != "ok" {
				w.end = result
				continue
			}
			w.lastOK = start
			begun()
			if w.left.Add(-1) == 0 {
				close(w.enough)
			}
		}
		begun()
		if err := cmd.Wait(); err != nil {
			t.Errorf("a worker: %v", err)
		}
	}()
	return w
}

// more waits until the worker has signed n times more, or has ended.
func (w *signing) more(n int64) {
	w.enough = make(chan struct{})
	w.left.Store(n)
	select {
	case <-w.enough:
	case <-w.done:
	}
}

// stopped ends a worker that was not refused.
func (w *signing) stopped() string {
	w.stdin.Close()
	<-w.done
	return w.end
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// TestRevoke takes rights away, in each way there is, while 16 workers sign over descriptors that were open before.
func TestRevoke(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	key := filepath.Join(keys, "web")
	sign := filepath.Join(key, "sign")
	run := func(command string) {
		t.Helper()
		cmd := exec.Command("sh", "-euc", command)
		cmd.Dir = keys
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	run("mkdir web && echo ecdsa-p256-sha256 >web/generate && chown -h 61001:61001 web web/sign")
	for _, way := range []struct{ take, give string }{
		{"setfacl -x u:61004 web/sign", ""},
		{"chmod 600 web/sign", "chmod 660 web/sign"},
		{"setfacl -m u:61004:r web/sign", ""},
		{"chmod 700 web", "chmod 755 web"},
		{"setfacl -m u:61004:- web", "setfacl -b web"},
		{"setfacl -m u:61001:x,o::- .", "setfacl -b . && chmod 1777 ."},
		{"setfacl -b web/sign", ""},
		{"setfacl -b -m g:61004:-,g:61005:r,o::rw web/sign", ""},
		{"chown 61001:61009 web/sign && setfacl -b web/sign", "chown 61001:61001 web/sign"},
	} {
		t.Run(way.take, func(t *testing.T) {
			run("setfacl -m u:61004:rw web/sign")
			var owners, users []*signing
			for range 8 {
				owners = append(owners, startSigning(t, revokeOwner, sign))
				users = append(users, startSigning(t, revokeUser, sign))
			}
			for _, w := range append(owners, users...) {
				<-w.first
			}
			// Rights that are added disturb nobody.
			run("setfacl -m u:61006:rw web/sign && chmod o+x web && setfacl -m g:61008:rw web/sign")
			for _, w := range append(owners, users...) {
				w.more(5)
			}
			run(way.take)
			revoked := monotonic()
			for i, w := range users {
				<-w.done
				if w.end != "EKEYREVOKED" {
					t.Errorf("user %d ended with %q", i, w.end)
				}
				if w.lastOK > revoked {
					t.Errorf("user %d got a signature for a READ that began %d ns after the right was taken", i, w.lastOK-revoked)
				}
			}
			for i, w := range owners {
				w.more(5)
				if end := w.stopped(); end != "" {
					t.Errorf("owner %d was refused: %s", i, end)
				}
			}
			out, err := exec.Command("setpriv", "--reuid=61004", "--regid=61004", "--clear-groups", "sh", "-c", "exec 3<>"+sign).CombinedOutput()
			if err == nil || !strings.Contains(string(out), "ermission denied") {
				t.Errorf("another open: %v, %s", err, out)
			}
			if way.give != "" {
				run(way.give)
			}
			run("setfacl -b web/sign && chmod 600 web/sign")
		})
	}
	t.Run("rmdir", func(t *testing.T) {
		var owners []*signing
		for range 8 {
			owners = append(owners, startSigning(t, revokeOwner, sign))
		}
		for _, w := range owners {
			<-w.first
		}
		run("rmdir web")
		revoked := monotonic()
		for i, w := range owners {
			<-w.done
			// Whoever began while it was being destroyed is told that it is busy.
			if w.end != "EKEYREVOKED" && w.end != "EBUSY" || w.lastOK > revoked {
				t.Errorf("owner %d ended with %q, %d ns after", i, w.end, w.lastOK-revoked)
			}
		}
	})
}
