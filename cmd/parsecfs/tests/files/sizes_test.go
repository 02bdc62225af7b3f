package files

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// TestNobodyMakesAFileLarger: what one user writes, wherever, does not make the file longer for others, whose walks end well.
func TestNobodyMakesAFileLarger(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	b := newBench(t)
	path := b.at("providers/software/can_do")
	const script = `import os, sys
a = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(a, b'sign ed25519\n', 0)
b = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)
os.write(b, b'sign ed25519\n')
c = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(c, b'sign ed25519\n', 1 << 45)
own = os.stat(sys.argv[1]).st_size
d = os.open(sys.argv[1], os.O_RDWR | os.O_APPEND)
os.write(d, b'sign ed25519\n')
print(max(own, os.stat(sys.argv[1]).st_size), flush=True)
sys.stdin.read()
`
	_, out := parsecfstest.Talk(t, b.as(reader, "sh", "-c", `exec python3 -c "$0" "$1"`, script, path))
	said, err := out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var own int64
	if _, err := fmt.Sscan(said, &own); err != nil || own > 1<<18 {
		t.Errorf("the file is %s bytes long for who wrote it: %v", strings.TrimSpace(said), err)
	}
	s, err := os.Stat(path)
	if err != nil || s.Size() > 1<<18 {
		t.Errorf("the file is %d bytes long for another user: %v", s.Size(), err)
	}
	b.must(0, `ulimit -f 2000; tar -cPf "$HOME/tar" $P/can_do`) // 1 MB
}

// TestLookedAtWhileItAnswers: who looks at a file at the same time takes no bytes from the answers that others read.
func TestLookedAtWhileItAnswers(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	b := newBench(t)
	b.compare()
	message := []byte(strings.Repeat("a message ", 20))
	digest := sha256.Sum256(message)
	k := kind{name: "hash/sha256", uid: owner, message: message}
	path := b.at("providers/software/hash/sha256")
	done := make(chan struct{})
	var looking sync.WaitGroup
	for range 2 {
		looking.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					_, _ = os.Stat(path)
					_, _ = os.ReadDir(filepath.Dir(path))
				}
			}
		})
	}
	var ways []string
	for range 50 {
		ways = append(ways, "io_uring write", "io_uring write, read in parts", "write", "write, then sendfile or read")
	}
	got := b.look(k, "-", "read and write", path, ways)
	close(done)
	looking.Wait()
	wrong := 0
	for i, o := range got {
		if !o.is(outcome{"ok", digest[:]}) {
			if wrong++; wrong < 5 {
				t.Errorf("%s: %v", ways[i], o)
			}
		}
	}
	t.Logf("%d answers, %d wrong, while another user looked at the file all the time", len(got), wrong)
}
