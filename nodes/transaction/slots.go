package transaction

import (
	"context"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
)

// slotTime is how long a slot stays after its last close.
const slotTime = 120 * time.Second

// slots holds the slots of all operations. They outlive the kernel's memory of their inodes.
type slots struct {
	m    *Machine
	mu   sync.Mutex
	last uint64
	dirs map[uint64]map[string]*Slot // by the inode of their directory
}

// Slot is a private, named transaction of its creator: a file, or for several inputs a directory of them.
type Slot struct {
	UID, GID uint32
	Made     time.Time
	Number   uint64 // of all slots, from 1
	Name     string
	Spec     *Spec

	m       *Machine
	dir     uint64
	access  *gate.Access // the right to read and write the operation's own file, as it was when the slot was made
	channel *Channel
	release func()

	mu    sync.Mutex
	opens int
	ended bool // removed: it ends with its last close, as any file does
	timer *time.Timer
}

// Slot finds a slot of a directory, nil where there is none.
func (m *Machine) Slot(dir uint64, name string) *Slot {
	m.slots.mu.Lock()
	defer m.slots.mu.Unlock()
	return m.slots.dirs[dir][name]
}

// SlotsOf lists a user's own slots of a directory by their names.
func (m *Machine) SlotsOf(dir uint64, uid uint32) (list []*Slot) {
	m.slots.mu.Lock()
	defer m.slots.mu.Unlock()
	for _, s := range m.slots.dirs[dir] {
		if s.UID == uid {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(a, b *Slot) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// NewSlot makes a slot for whoever calls, with the one access by which everything in it is opened. ino gives the inode of a
// slot's file by its number. A name that is taken is EEXIST.
func (m *Machine) NewSlot(who caller.Caller, dir uint64, name string, f File, access *gate.Access, ino func(number uint64) uint64) (*Slot, error) {
	release, err := m.account.count(who.UID)
	if err != nil {
		return nil, err
	}
	t := &m.slots
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.dirs[dir][name] != nil {
		release()
		return nil, gate.Refuse(syscall.EEXIST, "the slot exists already", "choose another name")
	}
	t.last++
	f.Ino = ino(t.last)
	s := &Slot{UID: who.UID, GID: who.GID, Made: time.Now(), Number: t.last, Spec: f.Spec, m: m, dir: dir, Name: name, access: access,
		channel: m.channel(f, who.UID, f.Spec.Parted()), release: release}
	s.timer = time.AfterFunc(slotTime, s.Remove)
	if t.dirs == nil {
		t.dirs = map[uint64]map[string]*Slot{}
	}
	if t.dirs[dir] == nil {
		t.dirs[dir] = map[string]*Slot{}
	}
	t.dirs[dir][name] = s
	return s, nil
}

// Parted says whether the slot is a directory.
func (s *Slot) Parted() bool { return s.channel.parted }

// Remove ends a slot: by rm or rmdir, by its key's end or by its time. Who still holds it open goes on with it, as with any
// removed file.
func (s *Slot) Remove() {
	t := &s.m.slots
	t.mu.Lock()
	if t.dirs[s.dir][s.Name] == s {
		delete(t.dirs[s.dir], s.Name)
		if len(t.dirs[s.dir]) == 0 {
			delete(t.dirs, s.dir)
		}
	}
	t.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.timer.Stop()
	if s.ended = true; s.opens == 0 {
		s.wipe()
	}
}

func (t *slots) drop(match func(ino uint64) bool) {
	t.mu.Lock()
	var list []*Slot
	for ino, dir := range t.dirs {
		if match(ino) {
			for _, s := range dir {
				list = append(list, s)
			}
		}
	}
	t.mu.Unlock()
	for _, s := range list {
		s.Remove()
		s.channel.close()
	}
}

// wipe drops the request of a slot that nobody holds. The caller holds s.mu.
func (s *Slot) wipe() {
	s.channel.close()
	s.release()
}

// Enter refuses everybody but the slot's creator, root included: the kernel lets root in everywhere.
func (s *Slot) Enter(ctx context.Context, who caller.Caller) error {
	if who.UID != s.UID {
		return gate.Refuse(syscall.EACCES, "only its creator can use a slot", "make one of your own")
	}
	return s.access.Enter(ctx, who)
}

// Open opens the slot's file, or a part of a directory slot, for its creator.
func (s *Slot) Open(ctx context.Context, who caller.Caller, part Part, mode Mode) (*Handle, error) {
	if err := s.Enter(ctx, who); err != nil {
		return nil, err
	}
	switch {
	case !s.Parted():
	case mode.Write && !part.In:
		return nil, gate.Refuse(syscall.EACCES, part.Name+" is an output", "")
	case mode.Read && part.Input() && !mode.Walk: // a walk finds it empty
		return nil, gate.Refuse(syscall.EACCES, part.Name+" is an input", "")
	}
	h, err := s.m.handle(who, mode, s.access)
	if err != nil {
		return nil, err
	}
	h.slot, h.channel, h.part = s, s.channel, part
	if !mode.Write {
		s.channel.base.Store(0) // who comes to read begins at the beginning
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.opens++
	s.timer.Stop()
	return h, nil
}

func (s *Slot) closed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.opens--; {
	case s.opens > 0:
	case s.ended:
		s.wipe()
	default:
		s.timer.Reset(slotTime)
	}
}

// Truncate empties the slot's file, or one input of a directory slot, for its creator.
func (s *Slot) Truncate(ctx context.Context, who caller.Caller, part Part, size uint64) error {
	if err := s.Enter(ctx, who); err != nil {
		return err
	}
	switch {
	case size != 0:
		return ErrTruncate
	case !s.Parted():
		return s.channel.truncate(false)
	case part.In:
		return s.channel.empty(part.input)
	}
	return nil
}

// Size is how long a part of the slot looks.
func (s *Slot) Size(part Part) int64 {
	if !part.Out {
		return 0
	}
	return s.channel.size(part.Name)
}
