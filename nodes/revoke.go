package nodes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// revocations remember which inodes lost rights, so that transactions that were open before are judged anew.
type revocations struct {
	mu    sync.Mutex
	count uint64
	last  map[uint64]loss // by inode
	all   loss            // counts for every inode
}

// loss is the last time that somebody may have lost a right.
type loss struct {
	count uint64
	at    time.Time
}

const (
	// lossesMost bounds the map; beyond it every inode counts as one that lost.
	lossesMost = 1 << 16
	// openTime is more than an open may take from the kernel's judgement of it to us.
	openTime = 10 * time.Second
)

func (r *revocations) note(ino uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	now := loss{r.count, time.Now()}
	if len(r.last) >= lossesMost {
		r.all, r.last = now, nil
	}
	if r.last == nil {
		r.last = map[uint64]loss{}
	}
	r.last[ino] = now
}

// noteAll is note for every inode.
func (r *revocations) noteAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.count++
	r.all, r.last = loss{r.count, time.Now()}, nil
}

// since says whether any of the inodes lost rights after the count seen, and gives the count now.
func (r *revocations) since(seen uint64, inodes []uint64) (bool, uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.count == seen {
		return false, seen
	}
	lost := r.all.count > seen
	for _, ino := range inodes {
		lost = lost || r.last[ino].count > seen
	}
	return lost, r.count
}

// now is the count for an open that begins: so old that a loss during the open counts as one after it.
func (r *revocations) now(inodes []uint64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	recent := r.all.count != 0 && time.Since(r.all.at) < openTime
	for _, ino := range inodes {
		if l, ok := r.last[ino]; ok && time.Since(l.at) < openTime {
			recent = true
		}
	}
	if recent {
		return 0
	}
	return r.count
}

// access is the right by which a transaction was opened.
type access struct {
	n     *fileNode // the operation's own file, for slots too
	want  uint16    // rw bits
	seen  uint64
	mu    sync.Mutex
	ended error
}

// keyOf is the key under a number that is open, none under 0.
func (t *Tree) keyOf(ctx context.Context, number int64) (k kim.Key, err error) {
	if number != 0 {
		if k, err = t.kim.Key(calm(ctx), number); err != nil {
			err = gone(err)
		}
	}
	return k, err
}

// path lists the inodes whose rights count: the provider's directory, its keys/, the key's directory, the file.
func (a *access) path() []*base {
	if a.n.key == 0 {
		return []*base{&a.n.t.provider(a.n.p).base, &a.n.base}
	}
	return []*base{&a.n.t.provider(a.n.p).base, &a.n.t.keys(a.n.p).base, &a.n.t.key(a.n.p, a.n.key).base, &a.n.base}
}

func (a *access) inodes() []uint64 {
	if a.n.key == 0 {
		return []uint64{inoOf(a.n.p.Number(), 0), a.n.ino}
	}
	return []uint64{inoOf(a.n.p.Number(), 0), inoOf(a.n.p.Number(), rowKeys), inoOf(a.n.key, 0), a.n.ino}
}

// accessTo notes by which right a transaction is opened; flags are open(2)'s.
func (t *Tree) accessTo(r *row, p *kim.Provider, key int64, flags uint32) *access {
	a := &access{n: t.file(r, p, key).file(), want: 6}
	switch flags & syscall.O_ACCMODE {
	case syscall.O_RDONLY:
		a.want = 4
	case syscall.O_WRONLY:
		a.want = 2
	}
	a.seen = t.revocations.now(a.inodes())
	return a
}

// check judges the reader where rights were taken away since: once for each loss, by who it is now. Who cannot be told
// is refused.
func (a *access) check(ctx context.Context) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended != nil {
		return a.ended
	}
	lost, now := a.n.t.revocations.since(a.seen, a.inodes())
	if lost {
		if err := a.judge(ctx); err != nil {
			a.ended = psa.Errorf(psa.StatusRevoked, "the right to use this file was taken away: %w", err)
			return a.ended
		}
	}
	a.seen = now
	return nil
}

func (a *access) judge(ctx context.Context) error {
	who, err := identityOf(caller(ctx).Pid)
	if err != nil {
		return fmt.Errorf("who reads cannot be told: %w", err)
	}
	for _, b := range a.path() {
		p, err := b.permissions(ctx)
		if err != nil {
			return err
		}
		want := uint16(1)
		if b == &a.n.base {
			want = a.want
		}
		if !p.rights().allow(who, want) {
			return fmt.Errorf("uid %d has no access to %s", who.uid, b.self.place().path())
		}
	}
	k, err := a.n.t.keyOf(ctx, a.n.key)
	if err != nil {
		return err
	}
	if err := a.n.t.admit(ctx, a.n.p, &k); err != nil {
		return errors.New(err.Error()) // its errno is that of an open
	}
	return nil
}

// Chowned is for changes of a key's owners that did not come through the mount: whoever has it open is judged anew,
// and the kernel is told to forget its attributes. That alone waits for no lock, as forgetting names would (fleeting).
func (t *Tree) Chowned(by fuse.Caller, p *kim.Provider, key int64, err error) {
	t.audit(by, place{t: t, provider: p, key: key}, "keys chown", time.Now(), err)
	if err != nil {
		return
	}
	t.revocations.note(inoOf(key, 0))
	keys := &t.root.Inode
	for _, name := range []string{"providers", p.Name(), "keys"} {
		if keys = keys.GetChild(name); keys == nil {
			return // the kernel never looked it up
		}
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

// ProviderChanged is for a provider whose directory has other rights now.
func (t *Tree) ProviderChanged(p *kim.Provider) {
	t.revocations.note(inoOf(p.Number(), 0))
	t.revocations.note(inoOf(p.Number(), rowKeys))
	dir := t.root.GetChild("providers")
	if dir != nil {
		dir = dir.GetChild(p.Name())
	}
	if dir == nil {
		return
	}
	_ = dir.NotifyContent(attributesOnly, 0)
	if keys := dir.GetChild("keys"); keys != nil {
		_ = keys.NotifyContent(attributesOnly, 0)
	}
}

// attributesOnly is the offset that leaves the page cache alone (fuse_reverse_inval_inode).
const attributesOnly = -1

// Destroyed is for keys that were destroyed or forgotten by a command; name is what a key was called.
func (t *Tree) Destroyed(by fuse.Caller, command string, p *kim.Provider, key int64, name string, err error) {
	t.audit(by, place{t: t, provider: p, file: "keys/" + name}, command, time.Now(), err)
	if err == nil {
		t.forget(key)
	}
}

// Refused is for whoever asked for a command that is not theirs.
func (t *Tree) Refused(by fuse.Caller, command string) {
	t.audit(by, place{t: t}, command, time.Now(), refuse(syscall.EACCES, "this command is for root and admins", ""))
}

const capDACOverride = 1

// identityOf reads who a thread is, which is blocked in a call to us and so cannot change.
func identityOf(tid uint32) (identity, error) {
	if tid == 0 {
		return identity{}, fmt.Errorf("it is in a pid namespace that cannot be seen from here")
	}
	proc := "/proc/" + strconv.FormatUint(uint64(tid), 10)
	b, err := os.ReadFile(proc + "/status")
	if err != nil {
		return identity{}, err
	}
	who, caps, err := parseStatus(string(b))
	if err != nil {
		return identity{}, err
	}
	who.overrides = func(uid, gid uint32) bool {
		if caps&(1<<capDACOverride) == 0 {
			return false
		}
		// A capability of a user namespace holds for inodes whose owner and group are mapped there
		// (capable_wrt_inode_uidgid).
		return mapped(proc+"/uid_map", uid) && mapped(proc+"/gid_map", gid)
	}
	return who, nil
}

// parseStatus takes a thread's identity from /proc/<tid>/status (proc_pid_status(5)).
func parseStatus(text string) (who identity, caps uint64, err error) {
	var fields int
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		words := strings.Fields(value)
		switch {
		case (name == "Uid" || name == "Gid") && len(words) == 4:
			id, e := strconv.ParseUint(words[3], 10, 32)
			if e != nil {
				return who, 0, e
			}
			if fields++; name == "Uid" {
				who.uid = uint32(id)
			} else {
				who.groups = append(who.groups, uint32(id))
			}
		case name == "Groups":
			fields++
			for _, w := range words {
				id, e := strconv.ParseUint(w, 10, 32)
				if e != nil {
					return who, 0, e
				}
				who.groups = append(who.groups, uint32(id))
			}
		case name == "CapEff" && len(words) == 1:
			fields++
			if caps, err = strconv.ParseUint(words[0], 16, 64); err != nil {
				return who, 0, err
			}
		}
	}
	if fields != 4 {
		return who, 0, fmt.Errorf("its status lacks ids or capabilities")
	}
	return who, caps, nil
}

// mapped says whether a map of a user namespace (user_namespaces(7)) has an id of ours.
func mapped(path string, id uint32) bool {
	b, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		words := strings.Fields(line)
		if len(words) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(words[1], 10, 32)
		count, err2 := strconv.ParseUint(words[2], 10, 33)
		if err1 == nil && err2 == nil && uint64(id) >= first && uint64(id) < first+count {
			return true
		}
	}
	return false
}
