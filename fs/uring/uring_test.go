package uring

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gofs "github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const maxWrite = 64 << 10

// mounted is a tiny file system on a real mount.
type mounted struct {
	dir    string
	root   *root
	t      *Transport
	inline bool // every request is answered by the thread that found it
}

// prompt answers every request so.
type prompt struct{ fuse.RawFileSystem }

func (prompt) Prompt(*fuse.InHeader, []byte) bool { return true }

// require skips where the kernel does not have what the tests are about.
func require(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	if err := Offered(); err != nil {
		t.Skip(err)
	}
}

// attach mounts on a directory, for a server that is about to read INIT.
func attach(t *testing.T, dir string) (fd int) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other,max_read=%d", fd, maxWrite)
	if err := unix.Mount("test", dir, "fuse.test", 0, options); err != nil {
		t.Fatal(err)
	}
	return fd
}

// mountpoint is a new directory, where nothing stays mounted.
func mountpoint(t *testing.T) string {
	t.Helper()
	temp := t.TempDir()
	dir := filepath.Join(temp, "mnt")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.Chmod(temp, 0o755), os.Chmod(filepath.Dir(temp), 0o755)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH|unix.MNT_FORCE) == nil {
		}
	})
	return dir
}

func mount(t *testing.T, o Options, inline bool) *mounted {
	t.Helper()
	require(t)
	m := &mounted{dir: mountpoint(t), inline: inline}
	if err := m.serve(t, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// Files that were just closed still hold the mount for a moment.
		err := unix.Unmount(m.dir, 0)
		for tries := 0; err == unix.EBUSY && tries < 500; tries++ {
			time.Sleep(10 * time.Millisecond)
			err = unix.Unmount(m.dir, 0)
		}
		if err != nil {
			t.Errorf("unmount: %v", err)
			_ = unix.Unmount(m.dir, unix.MNT_DETACH|unix.MNT_FORCE)
		}
		m.t.Wait()
	})
	return m
}

func (m *mounted) serve(t *testing.T, o Options) (err error) {
	t.Helper()
	o.MaxWrite = maxWrite
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	if m.t, err = Prepare(o); err != nil {
		return err
	}
	raw, options := m.raw()
	return m.t.Serve(attach(t, m.dir), raw, options)
}

func (m *mounted) raw() (fuse.RawFileSystem, *fuse.MountOptions) {
	m.root = &root{}
	second := time.Second
	options := &gofs.Options{EntryTimeout: &second, AttrTimeout: &second, ServerCallbacks: m.t, RootStableAttr: &gofs.StableAttr{Ino: 1}}
	options.MaxWrite, options.DisableSplice, options.ExtraCapabilities = maxWrite, true, fuse.CAP_ASYNC_DIO
	raw := gofs.NewNodeFS(m.root, options)
	if m.inline {
		raw = prompt{raw}
	}
	return raw, &options.MountOptions
}

// root has the files echo, whose handles read what was last written to them; and wait and flush, whose READ or FLUSH waits until it
// is told to end; and work, whose READ keeps its thread for a while.
type root struct {
	gofs.Inode
	mu      sync.Mutex
	waiting int
	worked  atomic.Int64
	changed chan struct{}
	release chan struct{}
}

func (r *root) OnAdd(ctx context.Context) {
	r.release, r.changed = make(chan struct{}), make(chan struct{}, 1<<16)
	for _, name := range []string{"echo", "wait", "flush", "work"} {
		r.AddChild(name, r.NewPersistentInode(ctx, &file{root: r, name: name}, gofs.StableAttr{Mode: syscall.S_IFREG}), true)
	}
}

type file struct {
	gofs.Inode
	root *root
	name string
}

type handle struct {
	mu   sync.Mutex
	data []byte
}

func (f *file) Getattr(_ context.Context, _ gofs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o666
	return 0
}

func (f *file) Setattr(_ context.Context, _ gofs.FileHandle, _ *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o666
	return 0
}

func (f *file) Open(context.Context, uint32) (gofs.FileHandle, uint32, syscall.Errno) {
	return &handle{}, fuse.FOPEN_DIRECT_IO, 0
}

func (f *file) Write(_ context.Context, h gofs.FileHandle, data []byte, offset int64) (uint32, syscall.Errno) {
	hd := h.(*handle)
	hd.mu.Lock()
	defer hd.mu.Unlock()
	hd.data = append(hd.data[:min(offset, int64(len(hd.data)))], data...)
	return uint32(len(data)), 0
}

func (f *file) Read(ctx context.Context, h gofs.FileHandle, dest []byte, offset int64) (fuse.ReadResult, syscall.Errno) {
	if f.name == "wait" {
		f.root.count(1)
		defer f.root.count(-1)
		select {
		case <-f.root.release:
			return fuse.ReadResultData([]byte("released")), 0
		case <-ctx.Done():
			return nil, syscall.EINTR
		}
	}
	if f.name == "work" {
		time.Sleep(time.Millisecond / 2)
		f.root.worked.Add(1)
		return fuse.ReadResultData(dest[:1]), 0
	}
	hd := h.(*handle)
	hd.mu.Lock()
	defer hd.mu.Unlock()
	if offset > int64(len(hd.data)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, hd.data[offset:])]), 0
}

func (f *file) Flush(ctx context.Context, _ gofs.FileHandle) syscall.Errno {
	if f.name != "flush" {
		return 0
	}
	f.root.count(1)
	defer f.root.count(-1)
	select {
	case <-f.root.release:
		return 0
	case <-ctx.Done():
		return syscall.EINTR
	}
}

func (r *root) count(n int) {
	r.mu.Lock()
	r.waiting += n
	r.mu.Unlock()
	r.changed <- struct{}{}
}

// until waits for so many requests that wait to be under way, or for one that has ended.
func (r *root) until(t *testing.T, n int, ended <-chan error) (err error, early bool) {
	t.Helper()
	timeout := time.After(20 * time.Second)
	for {
		r.mu.Lock()
		waiting := r.waiting
		r.mu.Unlock()
		if waiting == n {
			return nil, false
		}
		select {
		case <-r.changed:
		case err := <-ended:
			return err, true
		case <-timeout:
			t.Fatalf("%d requests wait, not %d", waiting, n)
		}
	}
}

// client is an open file. Package os would ask it for readiness, while no other goroutine can run, and this process answers.
type client int

func open(path string) (client, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	return client(fd), err
}

func (c client) WriteAt(p []byte, offset int64) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		m, err = unix.Pwrite(int(c), p[n:], offset+int64(n))
		n += max(m, 0)
	}
	return n, err
}

func (c client) ReadAt(p []byte, offset int64) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		if m, err = unix.Pread(int(c), p[n:], offset+int64(n)); m == 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
		n += max(m, 0)
	}
	return n, err
}

func (c client) Close() error { return unix.Close(int(c)) }
