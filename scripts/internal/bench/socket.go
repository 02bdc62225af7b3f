package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
)

// The bytes of a signature's round trip to another process and back.
const asked, answered = 96, 80

// echo answers on the socket that is its descriptor 3, until that is closed.
func echo() error {
	return answer(3, func([]byte) ([]byte, error) { return make([]byte, answered), nil })
}

// answer computes for each request on a socket, until that is closed.
func answer(fd int, compute func([]byte) ([]byte, error)) error {
	b := make([]byte, answerBytes)
	for {
		n, err := syscall.Read(fd, b)
		if err != nil || n == 0 {
			return err
		}
		got, err := compute(b[:n])
		if err != nil {
			return err
		}
		if _, err := syscall.Write(fd, got); err != nil {
			return err
		}
	}
}

// roundTrip asks a process that does nothing but answer.
func roundTrip() (func() error, func(), error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "echo")
	cmd := exec.Command("/proc/self/exe", "echo")
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.Stderr = os.Stderr
	err = cmd.Start()
	theirs.Close()
	b := make([]byte, asked)
	return func() error {
			if _, err := syscall.Write(pair[0], b); err != nil {
				return err
			}
			_, err := syscall.Read(pair[0], b)
			return err
		}, func() {
			syscall.Close(pair[0])
			_ = cmd.Wait() // it has nothing to say
		}, err
}

// serveSocket signs with P-256 for whoever connects: the least that a service behind a Unix socket does.
func serveSocket(path string) error {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return err
	}
	compute, err := algorithms[0].bare()
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			b := make([]byte, answerBytes)
			for {
				n, err := conn.Read(b)
				if err != nil {
					return // it has gone
				}
				sig, err := compute(b[:n])
				if err != nil {
					return
				}
				if _, err := conn.Write(sig); err != nil {
					return
				}
			}
		}()
	}
}

func connect(path string) (int, error) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		syscall.Close(fd)
		return -1, fmt.Errorf("connect to %s: %w", path, err)
	}
	return fd, nil
}

// freshSocket connects for each request, keptSocket once.
func (t *target) freshSocket() (func() error, func(), error) {
	b := make([]byte, answerBytes)
	return func() error {
		fd, err := connect(t.path)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		return t.ask(fd, b)
	}, func() {}, nil
}

func (t *target) keptSocket() (func() error, func(), error) {
	b := make([]byte, answerBytes)
	fd, err := connect(t.path)
	return func() error { return t.ask(fd, b) }, func() { syscall.Close(fd) }, err
}
