package nodes

import (
	"context"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// randomMost is how many random bytes one open file gives.
const randomMost = 64 << 10

// randomFile gives random bytes and then ends, so that a tree walk does too.
type randomFile struct{ fileNode }

var _ = (fs.NodeOpener)((*randomFile)(nil))

// Open is safe because nobody else gets the same bytes.
func (n *randomFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.t.fail(ctx, n.place(), "open", gate.Refuse(syscall.EACCES, "this file is read only", ""))
	}
	access, err := n.enter(ctx, gate.Read)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	release, err := n.t.machine.Hold(callerOf(ctx).UID, 0)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	n.t.audit(callerOf(ctx), AuditOpen, n.place(), string(psa.Random), time.Now(), nil)
	return &randomHandle{n: n, access: access, release: release}, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

type randomHandle struct {
	n      *randomFile
	access *gate.Access
	given  atomic.Int64

	release func()
}

var _ = (fs.FileReleaser)((*randomHandle)(nil))

// Release is the end of the open file.
func (h *randomHandle) Release(context.Context) syscall.Errno {
	h.release()
	return 0
}

var _ = (fs.FileReader)((*randomHandle)(nil))

// Read gives fresh bytes whatever the offset; none is given twice.
func (h *randomHandle) Read(ctx context.Context, dest []byte, _ int64) (fuse.ReadResult, syscall.Errno) {
	who := callerOf(ctx)
	if err := h.access.Check(ctx, who); err != nil {
		return nil, h.n.t.fail(ctx, h.n.place(), "read", err)
	}
	want := int64(len(dest))
	want -= min(want, max(0, h.given.Add(want)-randomMost))
	if want == 0 {
		return fuse.ReadResultData(nil), 0
	}
	// not into dest: an interrupted call goes on after dest belongs to somebody else
	b := make([]byte, want)
	err := h.n.t.machine.Perform(ctx, who, h.n.place().path, func(ctx context.Context) error { return h.n.p.Random(ctx, who.UID, b) })
	if err != nil {
		return nil, h.n.t.fail(ctx, h.n.place(), "read", err)
	}
	defer psa.Wipe(b)
	return fuse.ReadResultData(dest[:copy(dest, b)]), 0
}
