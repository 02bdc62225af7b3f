package nodes

import (
	"context"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Chown gives what is a user's of a key to another one for a command (kim.SetOwner). Whoever has it open is judged anew, and
// the kernel is told to forget its attributes. That alone waits for no lock, as forgetting names would (fleeting): the old
// name of a key that goes to the new owner's own names leads nobody in.
func (t *Tree) Chown(ctx context.Context, by fuse.Caller, p *kim.Provider, key int64, from, uid, gid uint32) error {
	begun := time.Now()
	err := t.setOwner(ctx, key, from, uid, gid)
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		return err
	}
	t.audit(callerFrom(by), AuditCommand, place{t: t, provider: p, key: key}, "keys chown", begun, err)
	if err != nil {
		return err
	}
	t.forgetAttributes(p, key, kim.OwnSpace(from))
	return nil
}

// setOwner is no change beside another one, which would write old owners back.
func (t *Tree) setOwner(ctx context.Context, key int64, from, uid, gid uint32) error {
	t.changing.Lock()
	defer t.changing.Unlock()
	if err := t.kim.SetOwner(ctx, key, from, uid, gid); err != nil {
		return err
	}
	t.gate.Lost(inoOf(key, 0))
	for _, r := range t.tables.key {
		if r.kind == request {
			t.sizes.change(inoOf(key, r.number))
		}
	}
	return nil
}

// forgetAttributes has the kernel ask again about a key that is, or was, in the space before.
func (t *Tree) forgetAttributes(p *kim.Provider, key int64, before kim.Space) {
	spaces := []kim.Space{before}
	if now, err := t.spaceOf(context.Background(), key); err == nil && now != before {
		spaces = append(spaces, now)
	}
	for _, space := range spaces {
		keys := t.known(append([]string{"providers", p.Name()}, strings.Split(space.String(), "/")...)...)
		if keys == nil {
			continue
		}
		for _, dir := range keys.Children() {
			d, ok := dir.Operations().(*rowsDir)
			if !ok || d.at.key != key {
				continue
			}
			_ = dir.NotifyContent(attributesOnly, 0)
			for _, file := range dir.Children() {
				_ = file.NotifyContent(attributesOnly, 0)
			}
		}
	}
}

// ProviderChanged is for a provider whose directory has other rights now.
func (t *Tree) ProviderChanged(p *kim.Provider) {
	t.gate.Lost(inoOf(p.Number(), 0))
	t.gate.Lost(inoOf(p.Number(), rowKeys))
	t.forgetLasting(func() []*fs.Inode {
		return []*fs.Inode{t.known("providers", p.Name()), t.known("providers", p.Name(), "keys")}
	})
}

// unlocked is for rows that were not proven before, and perhaps are not what they were taken for.
func (t *Tree) unlocked() {
	t.gate.LostAll()
	t.forgetLasting(func() []*fs.Inode { return inFront(&t.root.Inode) })
}

// inFront are the directories that the kernel knows in front of keys, from one on.
func inFront(in *fs.Inode) []*fs.Inode {
	list := []*fs.Inode{in}
	switch in.Operations().(type) {
	case *rowsDir, *namesDir, *usersDir:
		for _, child := range in.Children() {
			list = append(list, inFront(child)...)
		}
	}
	return list
}

// forgetLasting has the kernel ask again for attributes that it may keep for long, and once more when no answer of before can come any
// more: one that is on its way to the kernel now would be kept.
func (t *Tree) forgetLasting(inodes func() []*fs.Inode) {
	if !t.kept.Load() {
		return // nobody has asked for any yet
	}
	forget := func() {
		for _, in := range inodes() {
			if in != nil {
				_ = in.NotifyContent(attributesOnly, 0) // one that the kernel does not know is no failure
			}
		}
	}
	forget()
	time.AfterFunc(settled, forget)
}

// known is the inode below the root that the kernel knows by these names, nil if it never looked it up.
func (t *Tree) known(names ...string) *fs.Inode {
	in := &t.root.Inode
	for _, name := range names {
		if in = in.GetChild(name); in == nil {
			return nil
		}
	}
	return in
}

// attributesOnly is the offset that leaves the page cache alone (fuse_reverse_inval_inode).
const attributesOnly = -1

// Destroyed is for keys that were destroyed or forgotten by a command; path is where a key stood below its provider.
func (t *Tree) Destroyed(by fuse.Caller, command string, p *kim.Provider, key int64, path string, err error) {
	t.audit(callerFrom(by), AuditCommand, place{t: t, provider: p, file: path}, command, time.Now(), err)
	if err == nil {
		t.forget(key)
	}
}

// Commanded is for a command about no key.
func (t *Tree) Commanded(by fuse.Caller, command string, begun time.Time, err error) {
	t.audit(callerFrom(by), AuditCommand, place{t: t}, command, begun, err)
}

// Refused is for whoever asked for a command that is not theirs.
func (t *Tree) Refused(by fuse.Caller, command string) {
	t.audit(callerFrom(by), AuditDeed, place{t: t}, command, time.Now(), gate.Refuse(syscall.EACCES, "only root and admins can use this command", ""))
}

// TurnedAway is for whoever may give no command at all.
func (t *Tree) TurnedAway(by fuse.Caller) {
	t.audit(callerFrom(by), AuditOpen, place{t: t}, "connect", time.Now(), gate.Refuse(syscall.EACCES, "only root and admins can do this", ""))
}
