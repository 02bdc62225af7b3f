package nodes

import (
	"context"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Nothing can be made in a directory of rows, so whoever asks for that took one file for another: a shell's > makes what is
// not there. The refusal says which mistake it was.

var _ = (fs.NodeCreater)((*rowsDir)(nil))

// Create is safe because it refuses.
func (n *rowsDir) Create(ctx context.Context, name string, _, _ uint32, _ *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	why, hint := n.missing(ctx, name)
	if why == "" {
		why, hint = "no files can be made here", "a key is made by mkdir in a provider's keys/, a slot in an operation's .d directory"
	}
	return nil, nil, 0, n.refuse(ctx, name, "create", why, hint)
}

var _ = (fs.NodeMkdirer)((*rowsDir)(nil))

// Mkdir is safe because it refuses.
func (n *rowsDir) Mkdir(ctx context.Context, name string, _ uint32, _ *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	why, hint := n.missing(ctx, name)
	if why == "" {
		why, hint = "no directories can be made here", "a key is made by mkdir in a provider's keys/"
	}
	return nil, n.refuse(ctx, name, "mkdir", why, hint)
}

var _ = (fs.NodeUnlinker)((*rowsDir)(nil))

// Unlink is safe because it refuses: only rmdir ends a key.
func (n *rowsDir) Unlink(ctx context.Context, name string) syscall.Errno {
	if n.at.key == 0 {
		return n.refuse(ctx, name, "unlink", "this file is part of the tree", "")
	}
	return n.refuse(ctx, name, "unlink", "files here come and go with their key", "rmdir destroys a key")
}

// refuse is what becomes of a name that somebody wants to make or to remove.
func (n *rowsDir) refuse(ctx context.Context, name, op, why, hint string) syscall.Errno {
	at, err := n.at, gate.Refuse(syscall.EPERM, why, hint)
	at.file = strings.TrimPrefix(at.file+"/"+psa.OneLine(name), "/")
	n.t.audit(callerOf(ctx), AuditOpen, at, op, time.Now(), err)
	return n.t.remember(ctx, at, op, err)
}

// missing says why a name is not there, and what helps; nothing where the name is like no other.
func (n *rowsDir) missing(ctx context.Context, name string) (why, hint string) {
	v, err := n.at.view(ctx)
	if err != nil {
		return "", ""
	}
	if r := find(n.rows, name); r != nil {
		return v.unshown(r)
	}
	if r := slotsRow(n.rows, name); r != nil {
		return v.unshown(r)
	}
	var names []string
	for _, r := range n.rows {
		if !r.shown(v) {
			continue
		}
		names = append(names, r.name)
		if r.kind == request {
			names = append(names, r.name+slotsSuffix)
		}
	}
	if near := psa.Nearest(name, names, 1); len(near) > 0 {
		return "there is no " + psa.OneLine(name) + " here", "the nearest is " + near[0]
	}
	return "", ""
}

// unshown says why the row is not there.
func (v *view) unshown(r *row) (why, hint string) {
	if v.key.Number == 0 {
		return "this provider has no " + r.name, "the provider's capabilities file lists what it can do"
	}
	switch v.key.State {
	case kim.Draft:
		if r.drafts {
			return "this provider has no " + r.name, "the provider's capabilities file lists what it can do"
		}
		return "this is a draft, which has no " + r.name + " before it is a key",
			"write a template into generate, or a key into import; the provider's templates file lists what generate takes"
	case kim.Ready:
	default:
		return "the key is being made, destroyed or recovered", "try again"
	}
	if r.drafts {
		return "this is a key already; only a draft has " + r.name, "make another draft with mkdir, or destroy this key with rmdir"
	}
	a := v.key.Attributes
	if r.kind != request {
		return fmt.Sprintf("a %s key has no %s", a.Type, r.name), "see the key's attributes"
	}
	switch need := r.op.Usage(); {
	case !a.Can(r.op) || r.present != nil && !r.present(v):
		return fmt.Sprintf("a key of %s and %s has no %s", a.Type, a.Algorithm, r.name), "the key's capabilities file lists what it can do"
	case a.Usage.Extend()&need != need:
		return fmt.Sprintf("the key has no %s, because its usage lacks %s", r.name, need),
			"a key never gets more rights: make a new key, with the flag in usage in its draft's attributes"
	}
	return "this provider has no " + r.name + " for such a key", "the key's capabilities file lists what it can do"
}

var _ = (fs.NodeCreater)((*slotDir)(nil))

// Create is safe because it refuses.
func (n *slotDir) Create(ctx context.Context, name string, _, _ uint32, _ *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	var parts []string
	for _, p := range n.slot.Spec.Parts() {
		parts = append(parts, p.Name)
	}
	return nil, nil, 0, n.denied(ctx, "create", "a slot has no "+psa.OneLine(name), "this one has "+strings.Join(parts, ", "))
}
