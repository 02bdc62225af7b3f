package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// floor is a file that computes for what is written to an open of it when that is read: the least that a file system does.
type floor struct {
	fs.Inode
	compute func([]byte) ([]byte, error)
}

type floorHandle struct {
	compute func([]byte) ([]byte, error)
	mu      sync.Mutex
	msg     []byte
	asked   bool
}

var (
	_ = (fs.NodeOpener)((*floor)(nil))
	_ = (fs.NodeGetattrer)((*floor)(nil))
	_ = (fs.FileWriter)((*floorHandle)(nil))
	_ = (fs.FileReader)((*floorHandle)(nil))
	_ = (fs.FileIoctler)((*floorHandle)(nil))
)

func (f *floor) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode = 0o600
	return 0
}

func (f *floor) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return &floorHandle{compute: f.compute}, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES, 0
}

func (h *floorHandle) Write(_ context.Context, p []byte, _ int64) (uint32, syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.msg, h.asked = append(h.msg[:0], p...), true
	return uint32(len(p)), 0
}

func (h *floorHandle) Read(context.Context, []byte, int64) (fuse.ReadResult, syscall.Errno) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.asked {
		return fuse.ReadResultData(nil), 0
	}
	h.asked = false
	answer, err := h.compute(h.msg)
	if err != nil {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(answer), 0
}

// Ioctl answers as parsecfs does.
func (h *floorHandle) Ioctl(_ context.Context, number uint32, _ uint64, in, out []byte) (int32, syscall.Errno) {
	return serveOneCall(number, in, out, h.compute)
}

// transports are how requests reach the minimal handler: each mounts it and returns what waits for its end.
var transports = map[string]func(dir string, root fs.InodeEmbedder, options *fs.Options) (wait func(), err error){
	transportDevice: func(dir string, root fs.InodeEmbedder, options *fs.Options) (func(), error) {
		server, err := fs.Mount(dir, root, options)
		if err != nil {
			return nil, err
		}
		return server.Wait, nil
	},
}

// serve mounts the minimal handler until it is told to end: a file for each algorithm, and "empty", which computes nothing.
func serve(transport, dir string) error {
	mount, ok := transports[transport]
	if !ok {
		return fmt.Errorf("no transport %q, only %s", transport, strings.Join(slices.Sorted(maps.Keys(transports)), ", "))
	}
	computed := map[string]func([]byte) ([]byte, error){
		"empty": func([]byte) ([]byte, error) { return make([]byte, answered), nil },
	}
	for _, a := range algorithms {
		compute, err := a.bare()
		if err != nil {
			return err
		}
		computed[a.template] = compute
	}
	root := &fs.Inode{}
	second := time.Second
	wait, err := mount(dir, root, &fs.Options{
		EntryTimeout: &second, AttrTimeout: &second, NullPermissions: true,
		OnAdd: func(ctx context.Context) {
			for name, compute := range computed {
				root.AddChild(name, root.NewPersistentInode(ctx, &floor{compute: compute}, fs.StableAttr{}), false)
			}
		},
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "floor", Name: "floor", DisableSplice: true, EnableAcl: true,
			Options: []string{"default_permissions"}},
	})
	if err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
	}()
	fmt.Println("mounted")
	wait()
	return nil
}
