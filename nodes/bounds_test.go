package nodes_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/nodes"
)

// What a user holds open is bounded, whatever it is: an answer that is not read to its end, a text, a directory.
func TestWhatAUserHoldsIsBounded(t *testing.T) {
	t.Parallel()
	const most = 64
	m := mount(t, func(o *nodes.Options) { o.TransactionsPerUser, o.BufferPerUser = most, 2<<20 })
	m.key("k", "aes-256-gcm")
	var open []*os.File
	release := func() {
		for _, f := range open {
			_ = f.Close()
		}
		open = nil
	}
	defer release()
	// until says how many can be held until an error comes, which must be want.
	until := func(want syscall.Errno, hold func() error) (n int) {
		t.Helper()
		for n = range 2 * most {
			if err := hold(); err != nil {
				if !errors.Is(err, want) {
					t.Errorf("after %d: %v, want %v", n, err, want)
				}
				break
			}
		}
		release()
		return n
	}
	held := func(path string, flags int) (*os.File, error) {
		f, err := os.OpenFile(path, flags, 0)
		if err == nil {
			open = append(open, f)
		}
		return f, err
	}
	message := bytes.Repeat([]byte("m"), 512<<10)
	n := until(syscall.ENOMEM, func() error {
		f, err := held(m.path("k", "encrypt"), os.O_RDWR)
		if err == nil {
			_, err = f.Write(message)
		}
		if err == nil {
			_, err = f.Read(make([]byte, 1))
		}
		return err
	})
	if n < 2 || n > 4 {
		t.Errorf("%d answers of half a MiB are held, of 2 MiB", n)
	}
	for _, path := range []string{"capabilities.json", "capabilities", "random", "keys/k/attributes"} {
		path := filepath.Join(m.dir, "providers/software", path)
		n := until(syscall.EAGAIN, func() error {
			_, err := held(path, os.O_RDONLY)
			return err
		})
		if n > most {
			t.Errorf("%s: %d can be open, of %d", path, n, most)
		}
	}
	if n := until(syscall.ENOMEM, func() error {
		_, err := held(m.path("k", "attributes"), os.O_WRONLY)
		return err
	}); n > 32 {
		t.Errorf("%d stages of 64 KiB are held, of 2 MiB", n)
	}
	m.key("c", "ed25519")
	line := "# " + strings.Repeat("c", 997) + "\n"
	if n := until(syscall.ENOMEM, func() error {
		f, err := held(m.path("c", "certificate"), os.O_WRONLY)
		if err == nil {
			_, err = f.WriteString(strings.Repeat(line, 200))
		}
		return err
	}); n > 10 {
		t.Errorf("%d stages of 200 KB are held, of 2 MiB", n)
	}
	if n := until(syscall.EAGAIN, func() error {
		f, err := held(m.path(), os.O_RDONLY)
		if err == nil {
			_, err = f.ReadDir(1)
		}
		return err
	}); n > most {
		t.Errorf("%d directories are listed, of %d", n, most)
	}
}
