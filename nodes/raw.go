package nodes

import (
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
)

// pageReads refuses READs for the page cache, which alone come without an owner of locks, but those of files that were opened to
// be read through it: what they say is the same for all who open them.
type pageReads struct {
	fuse.RawFileSystem
	mu    sync.Mutex
	files map[uint64]struct{} // the handles of those
}

func (p *pageReads) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	status := p.RawFileSystem.Open(cancel, in, out)
	if status.Ok() && out.OpenFlags&fuse.FOPEN_DIRECT_IO == 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.files == nil {
			p.files = map[uint64]struct{}{}
		}
		p.files[out.Fh] = struct{}{}
	}
	return status
}

func (p *pageReads) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	p.mu.Lock()
	delete(p.files, in.Fh) // before its number can be another file's
	p.mu.Unlock()
	p.RawFileSystem.Release(cancel, in)
}

func (p *pageReads) Read(cancel <-chan struct{}, in *fuse.ReadIn, b []byte) (fuse.ReadResult, fuse.Status) {
	if in.ReadFlags&fuse.READ_LOCKOWNER == 0 && !p.cached(in.Fh) {
		return nil, fuse.Status(syscall.EINVAL)
	}
	return p.RawFileSystem.Read(cancel, in, b)
}

func (p *pageReads) cached(file uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.files[file]
	return ok
}

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
