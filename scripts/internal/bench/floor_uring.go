package main

import (
	"fmt"
	"log/slog"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/fs/uring"
)

// prompt says that none of the handlers waits for anything.
type prompt struct{ fuse.RawFileSystem }

func (prompt) Prompt(*fuse.InHeader, []byte) bool { return true }

// serveUring mounts the minimal handler by io_uring.
func serveUring(dir string, root fs.InodeEmbedder, options *fs.Options) (func(), error) {
	const maxWrite = 64 << 10
	t, err := uring.Prepare(uring.Options{MaxWrite: maxWrite, Log: slog.Default()})
	if err != nil {
		return nil, err
	}
	options.ServerCallbacks, options.MaxWrite = t, maxWrite
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Close()
		return nil, err
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read=%d", fd, maxWrite)
	if err := unix.Mount("floor", dir, "fuse.floor", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		t.Close()
		return nil, err
	}
	return t.Wait, t.Serve(fd, prompt{fs.NewNodeFS(root, options)}, &options.MountOptions)
}

func init() { transports[transportUring] = serveUring }
