package nodes

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
)

// moments has the kernel keep nothing of what it may never keep: go-fuse would have its default for 0.
type moments struct{ fuse.RawFileSystem }

func (m *moments) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	status := m.RawFileSystem.GetAttr(cancel, in, out)
	if out.Timeout() == never {
		out.SetTimeout(0)
	}
	return status
}

func (m *moments) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	status := m.RawFileSystem.SetAttr(cancel, in, out)
	if out.Timeout() == never {
		out.SetTimeout(0)
	}
	return status
}

func (m *moments) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	status := m.RawFileSystem.Lookup(cancel, in, name, out)
	if out.AttrTimeout() == never {
		out.SetAttrTimeout(0)
	}
	if out.EntryTimeout() == never {
		out.SetEntryTimeout(0)
	}
	return status
}

// names refuses what is longer than a name may be in every directory, whatever is asked for: the kernel's own bound for FUSE is
// four times as long.
type names struct{ fuse.RawFileSystem }

func long(name string) bool { return len(name) > kim.MaxName }

const tooLong = fuse.Status(syscall.ENAMETOOLONG)

func (n *names) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if long(name) {
		return tooLong
	}
	return n.RawFileSystem.Lookup(cancel, in, name, out)
}

func (n *names) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	if long(name) {
		return tooLong
	}
	return n.RawFileSystem.Mkdir(cancel, in, name, out)
}

func (n *names) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if long(name) {
		return tooLong
	}
	return n.RawFileSystem.Create(cancel, in, name, out)
}

func (n *names) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if long(name) {
		return tooLong
	}
	return n.RawFileSystem.Mknod(cancel, in, name, out)
}

func (n *names) Symlink(cancel <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if long(name) {
		return tooLong
	}
	return n.RawFileSystem.Symlink(cancel, in, target, name, out)
}

func (n *names) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if long(name) {
		return tooLong
	}
	return n.RawFileSystem.Link(cancel, in, name, out)
}

func (n *names) Rename(cancel <-chan struct{}, in *fuse.RenameIn, from, to string) fuse.Status {
	if long(from) || long(to) {
		return tooLong
	}
	return n.RawFileSystem.Rename(cancel, in, from, to)
}
