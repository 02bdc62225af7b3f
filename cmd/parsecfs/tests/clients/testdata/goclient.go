// Goclient signs 20 times in a row, each time with a new open: goclient file|syscall SIGN MESSAGE SIGNATURE. Garbage
// is made meanwhile, so that the runtime's preemption signals (SIGURG) meet the system calls. Who calls it sees the
// last signature alone, so it verifies each.
package main

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
)

func main() {
	how, sign, message, signature := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	data, err := os.ReadFile(message)
	if err != nil {
		fail(err)
	}
	der, err := os.ReadFile(filepath.Join(filepath.Dir(sign), "public.der"))
	if err != nil {
		fail(err)
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		fail(err)
	}
	sum := sha256.Sum256(data)
	go func() {
		for {
			_ = make([]byte, 1<<20)
			runtime.GC()
		}
	}()
	for range 20 {
		var b []byte
		if how == "file" {
			b, err = byFile(sign, data)
		} else {
			b, err = bySyscall(sign, data)
		}
		if err != nil {
			fail(err)
		}
		if !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), sum[:], b) {
			fail(fmt.Errorf("WRONG ANSWER: %x", b))
		}
		if err := os.WriteFile(signature, b, 0o644); err != nil {
			fail(err)
		}
	}
}

func byFile(sign string, data []byte) ([]byte, error) {
	f, err := os.OpenFile(sign, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// bySyscall does not try again after EINTR: nobody told it to.
func bySyscall(sign string, data []byte) ([]byte, error) {
	fd, err := syscall.Open(sign, syscall.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	if n, err := syscall.Write(fd, data); err != nil || n != len(data) {
		return nil, errors.Join(err, io.ErrShortWrite)
	}
	b := make([]byte, 8192)
	n, err := syscall.Read(fd, b)
	if err != nil {
		return nil, err
	}
	return b[:n], nil
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}
