package files

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// fully are ways that give all that a text says.
var fully = []string{"read", "mmap private", "mmap shared", "sendfile", "splice", "io_uring read", "io_uring read -1", "O_DIRECT",
	"tar", "cp -a"}

// TestTextsOfTwoReaders: two users read what depends on who reads, at the same time and in all ways, and each is given their own.
func TestTextsOfTwoReaders(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	b := newBench(t)
	b.compare()
	b.must(owner, `mkdir $K/k && echo ed25519 >$K/k/generate && ! cat $K/k/sign`)
	b.must(reader, `for i in 1 2 3; do ! cat $K/k/verify || exit 1; done`)
	var both sync.WaitGroup
	for _, path := range []string{"last_error", "providers/software/keys/k/last_error"} {
		said := map[uint32][]byte{}
		for _, uid := range []uint32{owner, reader} {
			said[uid] = []byte(b.must(uid, `cat "$TEXT"`, "TEXT="+b.at(path)))
		}
		if !bytes.Contains(said[owner], []byte("k/sign")) || !bytes.Contains(said[reader], []byte("k/verify")) {
			t.Fatalf("%s: %q, %q", path, said[owner], said[reader])
		}
		for uid, want := range said {
			both.Go(func() {
				ways := slices.Repeat(fully[:8], 5)
				got, err := b.tryLook(kind{uid: uid}, "-", "read", b.at(path), ways)
				if err != nil {
					t.Error(err)
				}
				for i, g := range got {
					if !g.is(outcome{"ok", want}) {
						t.Errorf("uid %d, %s, %s: got %v, want %q", uid, path, ways[i], g, want)
					}
				}
			})
		}
	}
	both.Wait()
}

// TestTextsAreFresh: what has changed is there at the next open, as long as it is now, whatever was read or mapped before.
func TestTextsAreFresh(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	b := newBench(t)
	b.compare()
	b.must(owner, `mkdir $K/k && openssl req -x509 -newkey ed25519 -nodes -keyout k.pem -subj /CN=k -days 1 -out k.crt 2>/dev/null &&
		cat k.pem >$K/k/import`)
	certificate := []byte(b.must(owner, `cat k.crt`))
	key := b.at("providers/software/keys/k")
	held, err := os.Open(key + "/attributes")
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	look := func(path string, holds func(b []byte) bool) {
		t.Helper()
		got := b.look(kind{uid: owner}, "-", "read", path, fully)
		for i, g := range got {
			if g.says != "ok" || !holds(g.bytes) || !bytes.Equal(g.bytes, got[0].bytes) {
				t.Errorf("%s, %s: got %v", path, fully[i], g)
			}
		}
	}
	for range 2 {
		for _, value := range []string{"false", "true"} {
			b.must(owner, fmt.Sprintf(`echo 'allow_destroy = %s' >$K/k/attributes`, value))
			look(key+"/attributes", func(b []byte) bool { return bytes.Contains(b, []byte("allow_destroy = "+value+"\n")) })
		}
		b.must(owner, fmt.Sprintf(`mv $K/k $K/%s && mv $K/%[1]s $K/k`, strings.Repeat("a-long-name-", 10)))
		look(key+"/public.ssh", func(b []byte) bool { return bytes.HasSuffix(b, []byte(" k\n")) })
		b.must(owner, `! cat $K/k/sign`)
		look(key+"/last_error", func(b []byte) bool { return bytes.Count(b, []byte("k/sign")) > 0 })
		b.must(owner, `cat k.crt >$K/k/certificate`)
		look(key+"/certificate", func(b []byte) bool { return bytes.Equal(b, certificate) })
		b.must(owner, `echo >$K/k/certificate && test ! -s $K/k/certificate`)
	}
}
