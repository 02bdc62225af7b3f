package transaction

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"syscall"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
)

var errHalf = gate.Refuse(syscall.EBUSY, "a request is being written to this open file", "read its answer, or truncate the file to 0")

// Whole says whether the handle is a file of whole requests and answers, and not a part of a slot.
func (h *Handle) Whole() bool { return h.part.Name == "" }

// Call is a WRITE of a whole request and the READs of its whole answer, in one call, on a handle that does both: nothing comes
// between them, and nothing is left behind. An answer that does not fit into dest stays to be read, and n is how long it is. Where
// the call is interrupted or the answer does not fit, the same call again gets the answer of the operation that it began.
func (h *Handle) Call(ctx context.Context, who caller.Caller, in, dest []byte) (n int64, err error) {
	if err := h.enter(ctx, who); err != nil {
		return 0, err
	}
	defer h.leave(who)
	r, begun, err := h.channel.submit(in)
	if begun {
		h.mu.Lock()
		h.reply.anew()
		h.told = false
		h.mu.Unlock()
	}
	if err != nil {
		return 0, err
	}
	if err := r.answer(ctx, who); errors.Is(err, errInterrupted) {
		r.keep(in)
		return 0, err
	} else if err != nil {
		h.channel.end(r)
		return 0, err
	}
	if n, _ = r.length(""); n > int64(len(dest)) {
		r.keep(in)
		return n, gate.Refuse(syscall.EMSGSIZE, fmt.Sprintf("the answer has %d bytes, and %d fit", n, len(dest)),
			"read it from the file, or ask again with the same request and more room")
	}
	if _, _, err = r.copyOut(dest, "", 0); err != nil {
		return 0, err
	}
	h.channel.end(r)
	return n, nil
}

// submit takes a whole request, or finds the one that these bytes began before; begun: none that was here before goes on.
func (c *Channel) submit(in []byte) (r *request, begun bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.req != nil && c.req.keeps(in) {
		return c.req, true, nil
	}
	if r, err = c.current(); err != nil {
		return nil, false, err
	}
	if c.aside.Load() > 0 {
		return nil, false, errHalf
	}
	if err := r.untouched(); err != nil {
		return nil, false, err
	}
	if err := r.fill(in); err != nil {
		c.reset()
		return nil, true, err
	}
	return r, true, nil
}

// end drops a request that a call brought and that is over.
func (c *Channel) end(r *request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.req == r {
		c.reset()
	}
}

// untouched says why a request cannot be brought by one call any more.
func (r *request) untouched() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.poison == nil && r.written.Load() > 0 {
		return errHalf
	}
	return r.poison
}

// fill takes all bytes of the request. The caller holds its channel's lock.
func (r *request) fill(in []byte) error {
	if err := r.write(nil, in); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.whole = true
	return nil
}

// keep remembers which bytes get the answer when they come again.
func (r *request) keep(in []byte) {
	sum := sha256.Sum256(in)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.kept = sum
}

func (r *request) keeps(in []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kept != [sha256.Size]byte{} && !r.handed && r.kept == sha256.Sum256(in)
}
