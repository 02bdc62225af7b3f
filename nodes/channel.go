package nodes

import (
	"context"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// cursor keeps writers in line: the first WRITE sets the base and each next one must follow it.
type cursor struct {
	set  bool
	next int64
}

// follows says whether a WRITE at off continues the stream. O_APPEND ignores offsets: the kernel takes them from a
// size that it made up.
func (c *cursor) follows(off int64, flags uint32) bool {
	return flags&syscall.O_APPEND != 0 || !c.set || off == c.next
}

func (c *cursor) advance(off int64, n int) {
	if !c.set {
		c.set, c.next = true, off
	}
	c.next += int64(n)
}

// channel is where requests follow each other: one at a time, with its cursor.
type channel struct {
	t    *Tree
	ino  uint64 // of the file that is written and read
	make func() *request
	bare bool // to read is to ask

	mu     sync.Mutex
	req    *request // nil: nothing was begun
	cursor cursor
	sealed error // why no more WRITEs are taken
}

// current is the request that a WRITE belongs to; a request whose answer was handed out is over.
func (c *channel) current() *request {
	if c.req != nil {
		if phase, handed, poisoned, _ := c.req.state(); phase == answered && handed && !poisoned {
			c.reset()
		}
	}
	if c.req == nil {
		c.req = c.make()
	}
	return c.req
}

// reset ends the request without a successor.
func (c *channel) reset() {
	if c.req != nil {
		c.req.drop()
		c.t.sizes.clear(c)
	}
	c.req, c.cursor = nil, cursor{}
}

var (
	errBusy = refuse(syscall.EBUSY, "the answer to the last request was not read", "read it, or truncate the file to 0")
	errHole = refuse(syscall.EINVAL, "this WRITE does not follow the one before", "a message is written from its beginning to its end, without holes")
)

// write takes one WRITE for the named input ("" is the plain stream). tell: the kernel must be told of the size.
func (c *channel) write(ctx context.Context, name string, p []byte, off int64, flags uint32) (tell bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed != nil {
		return false, c.sealed
	}
	r := c.current()
	phase, _, poisoned, _ := r.state()
	switch {
	case poisoned: // the request itself says why
	case phase != collecting:
		return false, errBusy
	case !c.cursor.follows(off, flags):
		r.fault(errHole)
		return false, errHole
	}
	if err := r.write(ctx, name, p); err != nil {
		return false, err
	}
	c.cursor.advance(off, len(p))
	return c.t.sizes.set(c, off+int64(len(p))), nil
}

// truncate begins anew: with an empty request where an open handle asks for it, else with none.
func (c *channel) truncate(empty bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sealed != nil {
		return c.sealed
	}
	if c.req != nil {
		if phase, _, _, _ := c.req.state(); phase == computing {
			return errBusy
		}
	}
	c.reset()
	if empty {
		c.req = c.make()
		c.req.empty()
		c.t.sizes.set(c, 0)
	}
	return nil
}

// pending is the request that a READ asks for, nil where there is none.
func (c *channel) pending() *request {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.req == nil && c.bare {
		c.req = c.make()
	}
	return c.req
}

func (c *channel) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reset()
}

// replies brings READ offsets to offsets in the answer: the first READ sets the base, because a client that shares one
// position writes and reads on from there, and offset 0 sets it again.
type replies struct {
	req  *request
	base int64
}

func (p *replies) read(r *request, part string, dest []byte, off int64) (fuse.ReadResult, error) {
	if p.req != r || off == 0 {
		p.req, p.base = r, off
	}
	from := off - p.base
	if from < 0 {
		return nil, refuse(syscall.EINVAL, "a READ before the beginning of the answer", "seek to 0 to read it again")
	}
	n, err := r.copyOut(dest, part, from)
	return fuse.ReadResultData(dest[:n]), err
}

// handle is one open operation file or slot.
type handle struct {
	n       node
	t       *Tree
	flags   uint32
	channel *channel
	shared  bool // the channel is a slot's and outlives the handle
	box     *entry
	reader  *lineage // a read-only open, which claims from the drop box
	uid     uint32
	access  *access
	release func()

	mu    sync.Mutex
	reply replies
}

var _ = (fs.FileWriter)((*handle)(nil))

// Write only collects, and is safe because it never runs an operation: the kernel holds the inode's lock meanwhile.
func (h *handle) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	if h.box != nil {
		h.t.boxes.reopen(h.box)
	}
	tell, err := h.channel.write(ctx, "", data, off, h.flags)
	if err != nil {
		return 0, h.t.fail(ctx, h.n.place(), "write", err)
	}
	if tell {
		h.extend()
	}
	return uint32(len(data)), 0
}

var _ = (fs.FileReader)((*handle)(nil))

// Read runs the operation, once, and is safe because the channel is this handle's own, its slot's, or was claimed by
// the rules of the drop box.
func (h *handle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	res, err := h.read(ctx, dest, off)
	if err != nil {
		return nil, h.t.fail(ctx, h.n.place(), "read", err)
	}
	return res, 0
}

var errNothing = refuse(syscall.ENODATA, "nothing was written", "write the request first, through the same open file or a slot")

func (h *handle) read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, error) {
	if err := h.access.check(ctx); err != nil {
		return nil, err
	}
	c, err := h.source()
	if err != nil {
		return nil, err
	}
	r := c.pending()
	if r == nil {
		return nil, errNothing
	}
	if err := r.answer(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.reply.read(r, "", dest, off)
}

// source is the channel to read from; a read-only open of an operation claims it at its first READ.
func (h *handle) source() (*channel, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.channel == nil {
		c, err := h.t.boxes.claim(h.n.number(), h.uid, h.reader)
		if err != nil {
			return nil, err
		}
		h.channel = c
	}
	return h.channel, nil
}

var _ = (fs.FileFlusher)((*handle)(nil))

// Flush is safe because it runs nothing: bash sends it before the first WRITE, and after each command of a group. A
// drop box request is complete at the flush that follows its last WRITE.
func (h *handle) Flush(ctx context.Context) syscall.Errno {
	if h.box != nil {
		signaled, _ := killed(caller(ctx).Pid)
		h.t.boxes.complete(h.box, signaled)
	}
	return 0
}

var _ = (fs.FileFsyncer)((*handle)(nil))

// Fsync is safe because there is nothing to store; go-fuse's default would fail Go's Sync and dd conv=fsync.
func (h *handle) Fsync(context.Context, uint32) syscall.Errno { return 0 }

var _ = (fs.FileReleaser)((*handle)(nil))

// Release wipes. The kernel sends it late, as uid 0 and pid 0, and tells nobody what it answered.
func (h *handle) Release(context.Context) syscall.Errno {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.box != nil:
		h.t.boxes.release(h.box)
	case h.channel != nil && !h.shared:
		h.channel.close()
	}
	h.reply = replies{}
	h.release()
	return 0
}

// truncate is ftruncate(2) on this handle.
func (h *handle) truncate(empty bool) error {
	if h.flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		return refuse(syscall.EINVAL, "not open for writing", "")
	}
	return h.channel.truncate(empty)
}
