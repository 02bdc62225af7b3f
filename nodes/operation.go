package nodes

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// operationFile is an operation of a key: request in, answer out.
type operationFile struct{ fileNode }

func (n *operationFile) stat(ctx context.Context) (stat, error) {
	s, err := n.fileNode.stat(ctx)
	if s.size = n.t.sizes.size(n.ino); n.row.bare() {
		s.size = uint64(sizeFor(0))
	}
	return s, err
}

var _ = (fs.NodeOpener)((*operationFile)(nil))

// Open is safe because the kernel judged the file's mode and admit the caller's unit, and each open gets a channel of its own. Direct I/O, or
// two clients would read each other's bytes from the page cache.
func (n *operationFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	h, fuseFlags, err := n.open(ctx, flags)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	return h, fuseFlags, 0
}

func (n *operationFile) open(ctx context.Context, flags uint32) (*handle, uint32, error) {
	v, err := n.view(ctx)
	if err == nil {
		err = n.present(v)
	}
	if err == nil {
		err = n.t.admit(ctx, n.p, &v.key)
	}
	if err != nil {
		return nil, 0, err
	}
	h, err := n.t.handle(n, ctx, flags, n.t.accessTo(n.row, n.p, n.key, flags))
	if err != nil {
		return nil, 0, err
	}
	own := &channel{t: n.t, ino: n.ino, bare: n.row.bare(), make: func() *request { return n.t.newRequest(n.place(), n.row, h.uid) }}
	switch access := flags & syscall.O_ACCMODE; {
	case access == syscall.O_RDWR || n.row.bare():
		h.channel = own
		// nothing here needs the flush: it saves a round trip; and WRITEs of other opens need not wait for this one's
		return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH | fuse.FOPEN_PARALLEL_DIRECT_WRITES, nil
	case !n.t.options.Dropbox:
		h.release()
		return nil, 0, refuse(syscall.EOPNOTSUPP, "the drop box is off", "open the file for reading and writing, or use a slot in "+n.row.name+slotsSuffix)
	case access == syscall.O_WRONLY:
		h.channel = own
		if h.box, err = n.t.boxes.register(n.ino, h.uid, lineageOf(caller(ctx).Pid), own); err != nil {
			h.release()
			return nil, 0, err
		}
		return h, fuse.FOPEN_DIRECT_IO, nil
	default:
		h.reader = lineageOf(caller(ctx).Pid)
		return h, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, nil
	}
}

// handle counts one more open file of its caller.
func (t *Tree) handle(n node, ctx context.Context, flags uint32, right *access) (*handle, error) {
	uid := caller(ctx).Uid
	if err := t.account.change(uid, 1, 0); err != nil {
		return nil, err
	}
	return &handle{n: n, t: t, flags: flags, uid: uid, access: right, release: sync.OnceFunc(func() { _ = t.account.change(uid, -1, 0) })}, nil
}

var _ = (fs.NodeSetattrer)((*operationFile)(nil))

// Setattr is safe because truncation touches the transaction of its own open file alone. O_TRUNC arrives here
// without a handle, before the first WRITE, and has nothing to empty.
func (n *operationFile) Setattr(ctx context.Context, fh fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if err := truncated(fh, in, size); err != nil {
			return n.t.fail(ctx, n.place(), "truncate", err)
		}
	}
	return n.change(ctx, in, out)
}

func truncated(fh fs.FileHandle, in *fuse.SetAttrIn, size uint64) error {
	_, byHandle := in.GetFh()
	h, ok := fh.(*handle)
	switch {
	case size != 0:
		if byHandle && ok && h.channel != nil {
			h.channel.fault(errHole)
		}
		return refuse(syscall.EINVAL, "a transaction can be truncated to 0 only", "")
	case byHandle && ok:
		return h.truncate(true)
	}
	return nil
}

// fault poisons the request under way.
func (c *channel) fault(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.req != nil {
		c.req.fault(err)
	}
}
