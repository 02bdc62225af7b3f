package nodes

import (
	"context"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// question is what a READ has for the channel of its interruption that only asks whether it would wait.
var question = make(chan struct{})

// Answers to a question.
const (
	passes  = syscall.Errno(syscall.EALREADY)
	mayWait = syscall.EAGAIN
)

// asked says whether a READ only asks.
func asked(ctx context.Context) bool { return ctx.Done() == question }

func (h *handle) passes(ctx context.Context) syscall.Errno {
	if h.h.Passes(callerOf(ctx)) {
		return passes
	}
	return mayWait
}

// ReadWaits says whether a READ may wait for somebody: a device, a place in a queue, a process that is looked at, the disk. One that
// does not is answered by raw, which Wrap gave, in about a millisecond at most. It changes nothing, and is true where that cannot be
// told at once. The answer holds as long as nobody else uses the open file or changes rights on the way to it; what changes in between
// costs time and nothing else.
func (t *Tree) ReadWaits(raw fuse.RawFileSystem, in *fuse.ReadIn) (waits bool) {
	defer func() {
		if recover() != nil { // go-fuse knows no such file, and says so again when it is read
			waits = true
		}
	}()
	_, status := raw.Read(question, in, nil)
	return status != fuse.Status(passes)
}
