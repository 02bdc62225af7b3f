package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"syscall"
)

// How a client asks.
const (
	wayInProcess = "in the process"
	wayFresh     = "open, write, read, close"
	wayKept      = "write, read on a kept descriptor"
	wayConnect   = "connect, write, read, close"
	wayConnected = "write, read on a kept connection"
	wayIoctl     = "one ioctl on a kept descriptor"
	waySlot      = "slot: open, write, close, open, read, close"
	wayDropBox   = "drop box: open, write, close, open, read, close"
)

// target is an operation's file and what is asked of it.
type target struct {
	path    string
	message []byte
	least   int // bytes of an answer
}

func (t *target) write(fd int) error {
	n, err := syscall.Write(fd, t.message)
	if err == nil && n != len(t.message) {
		err = io.ErrShortWrite
	}
	if err != nil {
		return fmt.Errorf("write to %s: %w", t.path, err)
	}
	return nil
}

func (t *target) read(fd int, b []byte) error {
	n, err := syscall.Read(fd, b)
	if err != nil {
		return fmt.Errorf("read from %s: %w", t.path, err)
	}
	return t.check(n)
}

func (t *target) check(answer int) error {
	if answer < t.least {
		return fmt.Errorf("%s answered %d bytes, and %d are the least", t.path, answer, t.least)
	}
	return nil
}

func (t *target) ask(fd int, b []byte) error {
	if err := t.write(fd); err != nil {
		return err
	}
	return t.read(fd, b)
}

const answerBytes = 8192

// signs is a file that signs with P-256.
func signs(path string) *target { return &target{path, message, algorithms[0].least} }

func fresh(path string) work { return signs(path).fresh }

func kept(path string) work { return signs(path).kept }

func (t *target) fresh() (func() error, func(), error) {
	b := make([]byte, answerBytes)
	return func() error {
		fd, err := syscall.Open(t.path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer syscall.Close(fd)
		return t.ask(fd, b)
	}, func() {}, nil
}

func (t *target) kept() (func() error, func(), error) {
	b := make([]byte, answerBytes)
	fd, err := syscall.Open(t.path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	return func() error { return t.ask(fd, b) }, func() { syscall.Close(fd) }, err
}

// held is kept with a descriptor that is opened now, for one worker.
func (t *target) held() (work, error) {
	fd, err := syscall.Open(t.path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	b := make([]byte, answerBytes)
	return func() (func() error, func(), error) {
		return func() error { return t.ask(fd, b) }, func() {}, nil
	}, err
}

func (t *target) ioctl() (func() error, func(), error) {
	fd, err := syscall.Open(t.path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	call := newOneCall(t.message)
	return func() error {
		n, err := call.do(fd)
		if err != nil {
			return fmt.Errorf("ioctl on %s: %w", t.path, err)
		}
		return t.check(n)
	}, func() { syscall.Close(fd) }, nil
}

var slots atomic.Int64

// slot is one for each worker, kept.
func (t *target) slot() (func() error, func(), error) {
	path := filepath.Join(t.path+".d", "bench-"+strconv.FormatInt(slots.Add(1), 10))
	end := func() { os.Remove(path) }
	if filepath.Base(t.path) != "encrypt" {
		slot := &target{path, t.message, t.least}
		return slot.twice(path, syscall.O_WRONLY|syscall.O_CREAT|syscall.O_TRUNC), end, nil
	}
	if err := os.Mkdir(path, 0o700); err != nil { // an operation with several inputs
		return nil, nil, err
	}
	slot := &target{filepath.Join(path, "plaintext"), t.message, t.least - nonceBytes}
	return slot.twice(filepath.Join(path, "ciphertext"), syscall.O_WRONLY|syscall.O_TRUNC), end, nil
}

// dropBox is for one worker: a process that has two requests at a time gets EBUSY.
func (t *target) dropBox() (func() error, func(), error) {
	return t.twice(t.path, syscall.O_WRONLY), func() {}, nil
}

// twice opens to write, and again, or another file, to read.
func (t *target) twice(answer string, flags int) func() error {
	b := make([]byte, answerBytes)
	return func() error {
		fd, err := syscall.Open(t.path, flags|syscall.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		if err := errors.Join(t.write(fd), syscall.Close(fd)); err != nil {
			return err
		}
		if fd, err = syscall.Open(answer, syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err != nil {
			return err
		}
		defer syscall.Close(fd)
		return t.read(fd, b)
	}
}
