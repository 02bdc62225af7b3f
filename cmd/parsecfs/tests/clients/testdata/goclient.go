// Goclient signs in one of Go's ways: goclient HOW SIGN MESSAGE SIGNATURE; eight of them take MESSAGE.0 to MESSAGE.7.
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
	"sync"
	"syscall"
	"unsafe"
)

var how, sign, message, signature = os.Args[1], os.Args[2], os.Args[3], os.Args[4]

var ways = map[string]func() error{
	"os.File":      func() error { return repeatedly(byFile) },
	"os.Create":    func() error { return one(message, signature, byCreate) },
	"syscall.Read": func() error { return repeatedly(bySyscall) },
	"ReadAt":       func() error { return one(message, signature, byOffset) },
	"io.Copy":      func() error { return one(message, signature, byCopy) },
	"files":        func() error { return files(message, signature, func() {}) },
	"copies":       func() error { return copies(sign, os.O_WRONLY|os.O_CREATE|os.O_TRUNC) },
	"copy-slot":    func() error { return copies(sign+".d/go", os.O_RDWR|os.O_CREATE|os.O_TRUNC) },
	"slot":         func() error { return slot(message, signature) },
	"eight":        func() error { return eight(func(m, s string) error { return one(m, s, byFile) }) },
	"eight-slots":  func() error { return eight(slot) },
	"ioctl":        func() error { return repeatedly(byIoctl) },
	"eight-ioctls": func() error { return eight(func(m, s string) error { return one(m, s, byIoctl) }) },
	"eight-files": func() error {
		var all sync.WaitGroup
		all.Add(8)
		return eight(func(m, s string) error { return files(m, s, func() { all.Done(); all.Wait() }) })
	},
	"mmap": func() error { return one(message, signature, byMap) },
}

func main() {
	if err := ways[how](); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// one signs a file into another.
func one(message, signature string, by func(data []byte) ([]byte, error)) error {
	data, err := os.ReadFile(message)
	if err != nil {
		return err
	}
	result, err := by(data)
	if err != nil {
		return err
	}
	return os.WriteFile(signature, result, 0o644)
}

// repeatedly signs 20 times in a row, each time with a new open. Garbage is made meanwhile, so that the runtime's
// preemption signals (SIGURG) meet the system calls. Who calls it sees the last signature alone, so it verifies each.
func repeatedly(by func([]byte) ([]byte, error)) error {
	der, err := os.ReadFile(filepath.Join(filepath.Dir(sign), "public.der"))
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		return err
	}
	go func() {
		for {
			_ = make([]byte, 1<<20)
			runtime.GC()
		}
	}()
	for range 20 {
		err := one(message, signature, func(data []byte) ([]byte, error) {
			result, err := by(data)
			if sum := sha256.Sum256(data); err == nil && !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), sum[:], result) {
				err = fmt.Errorf("WRONG ANSWER: %x", result)
			}
			return result, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// written opens the operation for reading and writing, and writes the message.
func written(data []byte) (*os.File, error) {
	f, err := os.OpenFile(sign, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(data); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func byFile(data []byte) ([]byte, error) {
	f, err := written(data)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// byCreate holds one descriptor, as os.Create opens for reading too.
func byCreate(data []byte) ([]byte, error) {
	f, err := os.Create(sign)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return nil, err
	}
	return io.ReadAll(f)
}

// bySyscall does not try again after EINTR: nobody told it to.
func bySyscall(data []byte) ([]byte, error) {
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

// byIoctl does not try again after EINTR either.
func byIoctl(data []byte) ([]byte, error) {
	f, err := os.OpenFile(sign, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	call := struct {
		request, answer uint32
		bytes           [1000]byte
	}{request: uint32(len(data))}
	copy(call.bytes[:], data)
	number := 3<<30 | unsafe.Sizeof(call)<<16 | 0xC7<<8 | 1
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), number, uintptr(unsafe.Pointer(&call))); errno != 0 {
		return nil, errno
	}
	return call.bytes[:call.answer], nil
}

func byOffset(data []byte) ([]byte, error) {
	f, err := os.OpenFile(sign, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.WriteAt(data, 0); err != nil {
		return nil, err
	}
	return io.ReadAll(io.NewSectionReader(f, 0, 8192))
}

// byCopy copies by copy_file_range, sendfile or splice where the kernel lets it.
func byCopy([]byte) ([]byte, error) {
	f, err := os.OpenFile(sign, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	in, err := os.Open(message)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	if _, err := io.Copy(f, in); err != nil {
		return nil, err
	}
	out, err := os.Create(signature)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	if _, err := io.Copy(out, f); err != nil {
		return nil, err
	}
	return os.ReadFile(signature)
}

// copies copies whole files, by way of another one.
func copies(by string, flags int) error {
	for _, c := range [][2]string{{message, by}, {by, signature}} {
		in, err := os.Open(c[0])
		if err != nil {
			return err
		}
		defer in.Close()
		out, err := os.OpenFile(c[1], flags, 0o600)
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
		if err := out.Close(); err != nil {
			return err
		}
	}
	return nil
}

func files(message, signature string, between func()) error {
	return one(message, signature, func(data []byte) ([]byte, error) {
		err := os.WriteFile(sign, data, 0o600)
		between()
		if err != nil {
			return nil, err
		}
		return os.ReadFile(sign)
	})
}

func slot(message, signature string) error {
	return one(message, signature, func(data []byte) ([]byte, error) {
		path := filepath.Join(sign+".d", filepath.Base(signature))
		if err := os.WriteFile(path, data, 0o600); err != nil {
			return nil, err
		}
		result, err := os.ReadFile(path)
		return result, errors.Join(err, os.Remove(path))
	})
}

func eight(work func(message, signature string) error) error {
	errs := make(chan error)
	for n := range 8 {
		go func() { errs <- work(fmt.Sprint(message, ".", n), fmt.Sprint(signature, ".", n)) }()
	}
	var err error
	for range 8 {
		err = errors.Join(err, <-errs)
	}
	return err
}

func byMap(data []byte) ([]byte, error) {
	f, err := written(data)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	mapped, err := syscall.Mmap(int(f.Fd()), 0, 4096, syscall.PROT_READ, syscall.MAP_SHARED)
	return mapped, os.NewSyscallError("mmap", err)
}
