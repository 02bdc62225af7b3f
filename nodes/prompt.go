package nodes

import (
	"context"
	"encoding/binary"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// Prompt is a tree that tells beforehand which requests it answers without waiting for anything: for no device, disk or process,
// and for no request. It tells so of requests about operation files that were opened for reading and writing, and of opening those,
// where the operation is quick: devices, the drop box, and opens for which somebody must be judged, may wait.
type Prompt struct {
	fuse.RawFileSystem
	t *Tree

	mu      sync.RWMutex
	files   map[uint64]*operationFile // by the numbers that the kernel knows, of those that were opened
	handles map[uint64]*handle        // by their numbers
	opening map[uint32]*handle        // on the way from Open to its number
	last    uint32
}

// Prompt puts this above raw, which Wrap gave, before it is served.
func (t *Tree) Prompt(raw fuse.RawFileSystem) *Prompt {
	t.prompt = &Prompt{RawFileSystem: raw, t: t,
		files: map[uint64]*operationFile{}, handles: map[uint64]*handle{}, opening: map[uint32]*handle{}}
	return t.prompt
}

// ticketShift is where Open's flags tell which handle it made, to whoever learns that handle's number: go-fuse's fs API has no
// place for it. The kernel's own flags are below, and it never sees ours.
const (
	ticketShift = 16
	ticketMask  = 1<<(32-ticketShift) - 1
)

// ticket is for a handle that Open made.
func (p *Prompt) ticket(h *handle) (flags uint32) {
	if p == nil {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	if p.last&ticketMask == 0 || p.opening[p.last&ticketMask] != nil {
		return 0 // all are taken: nobody needs one
	}
	p.opening[p.last&ticketMask] = h
	return p.last << ticketShift
}

func (p *Prompt) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	status := p.RawFileSystem.Open(cancel, in, out)
	ticket := out.OpenFlags >> ticketShift
	if ticket == 0 {
		return status
	}
	out.OpenFlags &= 1<<ticketShift - 1
	p.mu.Lock()
	defer p.mu.Unlock()
	h := p.opening[ticket]
	delete(p.opening, ticket)
	p.handles[out.Fh] = h
	if f, ok := h.n.(*operationFile); ok {
		p.files[in.NodeId] = f
	}
	return status
}

func (p *Prompt) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	p.mu.Lock()
	delete(p.handles, in.Fh) // before its number can be another file's
	p.mu.Unlock()
	p.RawFileSystem.Release(cancel, in)
}

func (p *Prompt) Forget(node, lookups uint64) {
	p.mu.Lock()
	delete(p.files, node) // before its number can be another file's
	p.mu.Unlock()
	p.RawFileSystem.Forget(node, lookups)
}

// opcodes, enum fuse_opcode.
const (
	opcodeReadlink = 5
	opcodeOpen     = 14
	opcodeRead     = 15
	opcodeWrite    = 16
	opcodeRelease  = 18
	opcodeIoctl    = 39
)

// Prompt says whether the request is answered without waiting. argument is what follows its header: of OPEN the flags, of the others
// the handle's number, to begin with.
func (p *Prompt) Prompt(head *fuse.InHeader, argument []byte) bool {
	if head.Opcode == opcodeReadlink {
		return true // a link has its text, or that of whoever asks, in memory
	}
	if head.Opcode == opcodeOpen && len(argument) >= 4 {
		p.mu.RLock()
		f := p.files[head.NodeId]
		p.mu.RUnlock()
		return f != nil && f.opensPromptly(binary.NativeEndian.Uint32(argument))
	}
	if len(argument) < 8 {
		return false
	}
	p.mu.RLock()
	h := p.handles[binary.NativeEndian.Uint64(argument)]
	p.mu.RUnlock()
	if h == nil {
		return false
	}
	switch head.Opcode {
	case opcodeWrite: // which only collects, but opens the key of a request that begins
		return h.opened()
	case opcodeRelease:
		return true
	case opcodeRead:
		return h.h.Passes(callerFrom(head.Caller))
	case opcodeIoctl:
		return h.promptCalls() && h.h.PassesCall()
	}
	return false
}

// quick says whether the operation is one that waits for nobody and takes about a millisecond at most, its beginning included.
func (n *operationFile) quick(ctx context.Context) bool {
	if n.t.prompt == nil || n.key == 0 {
		return false
	}
	k, err := n.t.keyOf(ctx, n.key)
	return err == nil && n.p.Quick(n.row.op, k.Attributes)
}

// promptCalls says whether a request that begins and is answered in one call has nothing to store first, such as a nonce, and would
// have its turn at once.
func (h *handle) promptCalls() bool {
	f, ok := h.n.(*operationFile)
	return ok && h.t.auditing == nil && (f.row.op == psa.Sign || f.row.op == psa.SignHash || f.row.op == psa.Mac) &&
		h.opened() && f.p.Free()
}

// opened says whether the file's key is open.
func (h *handle) opened() bool {
	f, ok := h.n.(*operationFile)
	return ok && h.t.kim.Opened(f.key)
}

// opensPromptly says that an open of the file now is judged by nobody but the kernel, which has done so. The key's row is in memory:
// somebody opened this file before.
func (n *operationFile) opensPromptly(flags uint32) bool {
	if flags&syscall.O_ACCMODE != syscall.O_RDWR {
		return false
	}
	k, err := n.t.keyOf(context.Background(), n.key)
	return err == nil && n.t.gate.Prompt(n, n.units(k))
}
