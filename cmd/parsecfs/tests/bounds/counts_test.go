package bounds

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	_ "github.com/mattn/go-sqlite3"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/kim"
)

// guess asks verify_mac or decrypt with a wrong tag, or the right one, of a request whose last or first four bytes it is.
func guess(t *testing.T, file string, request []byte) syscall.Errno {
	t.Helper()
	_, err := parsecfstest.Ask(file, request)
	var errno syscall.Errno
	if err != nil && !errors.As(err, &errno) {
		t.Fatal(err)
	}
	return errno
}

// TestShortTags: with tags of 32 bits a key refuses 1024 forgeries and then answers nobody, over a kill -9 and however many
// guess at once, until its owner says otherwise; nobody else can.
func TestShortTags(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ template, file string }{{"aes-128-cmac-tag4", "verify_mac"}, {"aes-256-ccm-tag4", "decrypt"}} {
		t.Run(c.template, func(t *testing.T) {
			t.Parallel()
			m := parsecfstest.Mount(t, parsecfstest.Options{})
			key := filepath.Join(m.Dir, "providers/software/keys/short")
			must(t, owner, "mkdir "+key+" && echo "+c.template+" > "+key+"/generate && chmod 644 "+key+"/attributes && chmod 666 "+key+"/"+c.file)
			var right, wrong []byte
			if c.file == "decrypt" {
				sealed, err := parsecfstest.Ask(key+"/encrypt", []byte("text"))
				if err != nil {
					t.Fatal(err)
				}
				right, wrong = sealed, bytes.Clone(sealed)
				wrong[len(wrong)-1] ^= 1
			} else {
				mac, err := parsecfstest.Ask(key+"/mac", []byte("text"))
				if err != nil {
					t.Fatal(err)
				}
				right = append(mac, "text"...)
				wrong = bytes.Clone(right)
				wrong[0] ^= 1
			}
			file := filepath.Join(key, c.file)
			for range 100 {
				if e := guess(t, file, wrong); e != syscall.EBADMSG {
					t.Fatalf("a forgery: %v", e)
				}
			}
			if got := attribute(t, key, "failures"); got != "100" {
				t.Errorf("failures = %s after 100", got)
			}
			m.Restart()
			if got := attribute(t, key, "failures"); got != "100" {
				t.Errorf("failures = %s after kill -9", got)
			}
			if e := guess(t, file, right); e != 0 {
				t.Errorf("a right tag: %v", e)
			}
			var told atomic.Int64
			var all sync.WaitGroup
			for range 40 {
				all.Go(func() {
					for {
						switch e := guess(t, file, wrong); e {
						case syscall.EBADMSG:
							told.Add(1)
						case syscall.EBUSY: // as many are under way as may fail
						case syscall.EACCES:
							return
						default:
							t.Errorf("a forgery: %v", e)
							return
						}
					}
				})
			}
			all.Wait()
			if n := 100 + told.Load(); n != kim.MaxFailures {
				t.Errorf("%d forgeries were answered, and not %d", n, kim.MaxFailures)
			}
			m.Restart()
			if e := guess(t, file, right); e != syscall.EACCES {
				t.Errorf("a right tag when it is locked: %v", e)
			}
			if text, err := os.ReadFile(key + "/last_error"); err != nil || !strings.Contains(string(text), "failures = 0") {
				t.Errorf("last_error says nothing of what to do: %s, %v", text, err)
			}
			must(t, owner, "chmod 666 "+key+"/attributes")
			if out, err := as(stranger, "echo failures = 0 > "+key+"/attributes"); err == nil {
				t.Errorf("a stranger reset it: %s", out)
			}
			if out, err := as(owner, "echo failures = 5 > "+key+"/attributes"); err == nil {
				t.Errorf("failures = 5 was taken: %s", out)
			}
			must(t, owner, "echo failures = 0 > "+key+"/attributes")
			if e := guess(t, file, right); e != 0 {
				t.Errorf("a right tag after the reset: %v", e)
			}
			if e := guess(t, file, wrong); e != syscall.EBADMSG {
				t.Errorf("a forgery after the reset: %v", e)
			}
		})
	}
}

// TestNonces: random nonces are counted over a kill -9, and at 2^32 a key encrypts no more, decrypts all the same, and says
// what to do.
func TestNonces(t *testing.T) {
	t.Parallel()
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	left := func(key string) int64 {
		t.Helper()
		n, err := strconv.ParseInt(attribute(t, key, "nonces_left"), 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	sealed := map[string][]byte{}
	keys := []string{"aes-128-gcm", "aes-256-gcm-tag12", "chacha20-poly1305", "aes-256-ccm"}
	dir := func(template string) string { return filepath.Join(m.Dir, "providers/software/keys", template) }
	for _, template := range keys {
		key := dir(template)
		parsecfstest.Generate(t, key, template)
		before := left(key)
		for range 100 {
			c, err := parsecfstest.Ask(key+"/encrypt", []byte("text"))
			if err != nil {
				t.Fatal(err)
			}
			sealed[template] = c
		}
		if after := left(key); before != kim.MaxNonces || before-after < 100 || before-after > 400 {
			t.Errorf("%s: %d nonces left, %d after 100", template, before, after)
		}
	}
	cbc := dir("aes-128-cbc")
	parsecfstest.Generate(t, cbc, "aes-128-cbc")
	if got := attribute(t, cbc, "nonces_left"); got != "" {
		t.Errorf("CBC has nonces_left = %s", got)
	}
	m.Kill()
	setNonces(t, m.StateDir, kim.MaxNonces-3)
	m.Restart()
	for _, template := range keys {
		key := dir(template)
		if got := left(key); got != 3 {
			t.Fatalf("%s: %d nonces left", template, got)
		}
		for range 3 {
			if _, err := parsecfstest.Ask(key+"/encrypt", []byte("text")); err != nil {
				t.Errorf("%s: %v", template, err)
			}
		}
		if _, err := parsecfstest.Ask(key+"/encrypt", []byte("text")); !errors.Is(err, syscall.EACCES) {
			t.Errorf("%s: the encryption beyond 2^32: %v", template, err)
		}
		if text, err := os.ReadFile(key + "/last_error"); err != nil || !strings.Contains(string(text), "make a new key") {
			t.Errorf("%s: last_error: %s, %v", template, text, err)
		}
		if text, err := parsecfstest.Ask(key+"/decrypt", sealed[template]); err != nil || string(text) != "text" {
			t.Errorf("%s: decrypt: %q, %v", template, text, err)
		}
		if got := left(key); got != 0 {
			t.Errorf("%s: %d nonces left", template, got)
		}
	}
}

// setNonces says in the store of a daemon that was killed how many nonces each key has made.
func setNonces(t *testing.T, stateDir string, n uint64) {
	t.Helper()
	s, err := kim.OpenSQLite(t.Context(), filepath.Join(stateDir, "kim.sqlite3"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if _, err := kim.OpenSealer(t.Context(), s, stateDir); err != nil {
		t.Fatal(err)
	}
	p, err := s.EnsureProvider(t.Context(), "software", "Software")
	if err != nil {
		t.Fatal(err)
	}
	keys, err := s.Keys(t.Context(), p.Number, kim.Shared, "", 100)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range keys {
		if _, err := s.TakeNonces(t.Context(), k.Number, int64(n)-k.Nonces); err != nil {
			t.Fatal(err)
		}
	}
}
