package tpm

import (
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"
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

func bytesOf(b []byte) (pieces []string) {
	for _, c := range b {
		pieces = append(pieces, string([]byte{c}))
	}
	return pieces
}
