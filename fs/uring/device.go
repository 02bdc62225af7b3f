package uring

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// device answers what comes by /dev/fuse also on a connection that has rings: INTERRUPT and FORGET, and nothing else.
func (t *Transport) device() {
	defer t.reader.Done()
	buf := make([]byte, t.payload+4096)
	for {
		n, err := t.read(buf)
		if err != nil {
			break
		}
		in := buf[:n]
		switch opcode := binary.NativeEndian.Uint32(in[4:]); opcode {
		case opcodeInterrupt:
			t.interrupt(binary.NativeEndian.Uint64(in[inHeaderSize:]))
		case opcodeForget, opcodeBatchForget:
			t.server.HandleRequest([][]byte{in}, nil)
		default:
			t.o.Log.Error("a request came by /dev/fuse, not by its ring: this is a bug in parsecfs", "opcode", opcode)
			go t.answer(append([]byte(nil), in...))
		}
	}
	// Nobody waits for an answer any more.
	t.dead.Store(true)
	for _, q := range t.queues {
		for i := range q.entries {
			if e := &q.entries[i]; e.unique.Load() != 0 {
				go t.chase(e, e.unique.Load())
			}
		}
	}
}

// answer answers a request by the device.
func (t *Transport) answer(in []byte) {
	out := make([]byte, t.payload+4096)
	if n, status := t.server.HandleRequest([][]byte{in}, [][]byte{out}); status.Ok() && n > 0 {
		_, _ = t.file.Load().Write(out[:n])
	}
}

// interrupt has a request's handler told that its caller has a signal. INTERRUPT and the request it is about come by two ways: the
// request may not have begun.
func (t *Transport) interrupt(unique uint64) {
	if t.cut(unique) {
		return
	}
	t.early.add(unique)
	for _, q := range t.queues {
		for i := range q.entries {
			if e := &q.entries[i]; e.unique.Load() == unique && t.early.take(unique) {
				go t.chase(e, unique)
				return
			}
		}
	}
}

// cut says whether go-fuse knew the request. Its other answer, EAGAIN, is not for the kernel, which would look for the request
// among the device's own.
func (t *Transport) cut(unique uint64) bool {
	var in [inHeaderSize + 8]byte
	var out [outHeaderSize]byte
	binary.NativeEndian.PutUint32(in[:], uint32(len(in)))
	binary.NativeEndian.PutUint32(in[4:], opcodeInterrupt)
	binary.NativeEndian.PutUint64(in[inHeaderSize:], unique)
	n, _ := t.server.HandleRequest([][]byte{in[:]}, [][]byte{out[:]})
	return n == 0
}

// chase interrupts a request that an entry holds as soon as its handler has begun.
func (t *Transport) chase(e *entry, unique uint64) {
	for wait := 50 * time.Microsecond; e.unique.Load() == unique && e.cut.Load() != unique; wait = min(2*wait, 10*time.Millisecond) {
		if t.cut(unique) {
			e.cut.Store(unique)
			return
		}
		time.Sleep(wait)
	}
}

// late is for a request that begins: it may have been interrupted already.
func (t *Transport) late(e *entry) {
	if unique := e.unique.Load(); t.early.take(unique) || t.dead.Load() {
		go t.chase(e, unique)
	}
}

// earlyMost bounds the interrupts whose request has not begun. Most of those kept were about requests that had just ended.
const earlyMost = 256

// early are interrupts that came before their request.
type early struct {
	count atomic.Int32
	mu    sync.Mutex
	known map[uint64]bool
	order []uint64
}

func (y *early) add(unique uint64) {
	y.mu.Lock()
	defer y.mu.Unlock()
	if len(y.order) == earlyMost {
		delete(y.known, y.order[0])
		y.order = y.order[1:]
	}
	if y.known == nil {
		y.known = map[uint64]bool{}
	}
	y.known[unique] = true
	y.order = append(y.order, unique)
	y.count.Store(int32(len(y.known)))
}

func (y *early) take(unique uint64) bool {
	if y.count.Load() == 0 {
		return false
	}
	y.mu.Lock()
	defer y.mu.Unlock()
	if !y.known[unique] {
		return false
	}
	delete(y.known, unique)
	y.count.Store(int32(len(y.known)))
	return true
}

// Notifications, enum fuse_notify_code.
const (
	notifyInode  = 2
	notifyEntry  = 3
	notifyStore  = 4
	notifyDelete = 6
)

// notify tells the kernel something. That goes by the device, as go-fuse's own server would do it.
func (t *Transport) notify(code uint32, about any, payload []byte) fuse.Status {
	b, err := binary.Append(make([]byte, outHeaderSize), binary.NativeEndian, about)
	f := t.file.Load()
	if err != nil || f == nil {
		return fuse.EINVAL
	}
	b = append(b, payload...)
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint32(b[4:], code)
	_, err = f.Write(b)
	return fuse.ToStatus(err)
}

// InodeNotify has the kernel forget attributes, and content from an offset on.
func (t *Transport) InodeNotify(node uint64, offset, length int64) fuse.Status {
	return t.notify(notifyInode, fuse.NotifyInvalInodeOut{Ino: node, Off: offset, Length: length}, nil)
}

// EntryNotify has the kernel forget a name.
func (t *Transport) EntryNotify(parent uint64, name string) fuse.Status {
	return t.notify(notifyEntry, fuse.NotifyInvalEntryOut{Parent: parent, NameLen: uint32(len(name))}, append([]byte(name), 0))
}

// DeleteNotify tells the kernel that a name is gone.
func (t *Transport) DeleteNotify(parent, child uint64, name string) fuse.Status {
	return t.notify(notifyDelete, fuse.NotifyInvalDeleteOut{Parent: parent, Child: child, NameLen: uint32(len(name))}, append([]byte(name), 0))
}

// InodeNotifyStoreCache puts content into the kernel's cache.
func (t *Transport) InodeNotifyStoreCache(node uint64, offset int64, data []byte) fuse.Status {
	return t.notify(notifyStore, fuse.NotifyStoreOut{Nodeid: node, Offset: uint64(offset), Size: uint32(len(data))}, data)
}

// InodeRetrieveCache is not offered: its answer would come as a request of its own.
func (t *Transport) InodeRetrieveCache(uint64, int64, []byte) (int, fuse.Status) {
	return 0, fuse.ENOSYS
}
