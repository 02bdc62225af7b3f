package tpm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestResponsesComeWhole: however a response is cut on its way; one that is not as long as it says is an error.
func TestResponsesComeWhole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "data")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	good := append([]byte{0x80, 1, 0, 0, 0, 13, 0, 0, 0, 0}, "abc"...)
	for _, c := range []struct {
		name   string
		pieces []string
		ok     bool
	}{
		{"in one", []string{string(good)}, true},
		{"byte by byte", bytesOf(good), true},
		{"cut in its header", []string{string(good[:4]), string(good[4:])}, true},
		{"cut behind its header", []string{string(good[:10]), string(good[10:])}, true},
		{"with more behind it", []string{string(good) + "d"}, false},
		{"that ends early", []string{string(good[:12])}, false},
		{"of nothing", nil, false},
		{"shorter than its header", []string{"\x80\x01\x00\x00\x00\x09\x00\x00\x00\x00"}, false},
		{"too long", []string{"\x80\x01\x7f\xff\xff\xff\x00\x00\x00\x00"}, false},
	} {
		served := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err != nil {
				served <- err
				return
			}
			defer conn.Close()
			command := make([]byte, 4)
			_, err = io.ReadFull(conn, command)
			for _, p := range c.pieces {
				_, e := conn.Write([]byte(p))
				err = errors.Join(err, e)
			}
			served <- err
		}()
		w, err := tcti{kind: "swtpm", path: path}.open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, err := w.exchange(t.Context(), []byte("ask!"), time.Minute)
		if e := <-served; e != nil {
			t.Errorf("a response %s: %v", c.name, e)
		}
		if c.ok && (err != nil || !bytes.Equal(got, good)) || !c.ok && err == nil {
			t.Errorf("a response %s: %q, %v", c.name, got, err)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestAnswersInTime: an answer that has begun must end within a second, however its bytes come; one that does not come is
// waited for as long as whoever asked said, on each way to a TPM. The connection is of no use after that.
func TestAnswersInTime(t *testing.T) {
	t.Parallel()
	head := "\x00\x01\x00\x00\x40\x00\x00\x00\x00\x00" // both ways there is more to come
	for name, serve := range map[string]func(io.ReadWriter, <-chan struct{}){
		"nothing": func(_ io.ReadWriter, end <-chan struct{}) { <-end },
		"a part": func(c io.ReadWriter, end <-chan struct{}) {
			_, _ = c.Write([]byte(head[:7])) // the test's end closes it
			<-end
		},
		"drops": func(c io.ReadWriter, end <-chan struct{}) {
			b := []byte(head)
			for {
				select {
				case <-end:
					return
				case <-time.After(20 * time.Millisecond):
				}
				if _, err := c.Write(b[:1]); err != nil {
					return
				}
				b = append(b[1:], 0)
			}
		},
	} {
		ways := map[string]func(*testing.T, func(io.ReadWriter)) conn{"socket": openPair, "simulator": openSimulator, "device": openTerminal}
		for way, open := range ways {
			t.Run(name+" by "+way, func(t *testing.T) {
				t.Parallel()
				end := make(chan struct{})
				w := open(t, func(c io.ReadWriter) { serve(c, end) })
				defer close(end)
				ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
				defer cancel()
				want := errCut
				if name == "nothing" || way == "device" { // of a device the driver hands out whole answers
					cancel()
					want = context.Canceled
				}
				_, err := w.exchange(ctx, []byte("ask!"), time.Hour)
				if !errors.Is(err, want) {
					t.Errorf("%v instead of %v", err, want)
				}
				if err := w.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// ends runs serve with whoever connects, and ends with the test.
func ends(t *testing.T, network, address string, serve func(io.ReadWriter)) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		serve(c)
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-served
	})
	return l
}

func openPair(t *testing.T, serve func(io.ReadWriter)) conn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "data")
	ends(t, "unix", path, serve)
	w, err := tcti{kind: "swtpm", path: path}.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// openSimulator has a platform that says yes to all.
func openSimulator(t *testing.T, serve func(io.ReadWriter)) conn {
	t.Helper()
	command := ends(t, "tcp", "127.0.0.1:0", serve)
	platform := ends(t, "tcp", "127.0.0.1:0", func(c io.ReadWriter) {
		for {
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
				return
			}
			if _, err := c.Write(make([]byte, 4)); err != nil {
				return
			}
		}
	})
	dial := func(l net.Listener) *socket {
		s, err := dialSocket(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	m := &mssim{dial(command), dial(platform)}
	if err := m.signal(t.Context(), simulatorPowerOn); err != nil {
		t.Fatal(err)
	}
	return m
}

// openTerminal is a character device whose other end is the test's.
func openTerminal(t *testing.T, serve func(io.ReadWriter)) conn {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no pseudo terminal:", err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprint("/dev/pts/", n)
	d, err := openDevice(path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		serve(master)
	}()
	t.Cleanup(func() {
		if _, err := openDevice(path); err == nil {
			t.Error("a device whose driver is at work is opened again")
		}
		<-served
		_ = master.Close() // ends the call that was left
		for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
			leftDevices.Lock()
			left := leftDevices.paths[path]
			leftDevices.Unlock()
			if !left {
				return
			}
		}
		t.Error("the call that was left does not end")
	})
	return d
}

func bytesOf(b []byte) (pieces []string) {
	for _, c := range b {
		pieces = append(pieces, string([]byte{c}))
	}
	return pieces
}
