package transaction

import (
	"sync"
	"syscall"

	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// resource is what is counted for each uid, and over all.
type resource int

const (
	handles   resource = iota // open files, slots and requests in the drop box
	held                      // bytes of requests, answers and texts
	calls                     // that wait: each holds a buffer, and any number of threads can call through one open file
	effects                   // calls that hold what they write until it has taken effect
	resources                 // how many there are
)

type amounts [resources]int64

// usersWorth is how many users' bounds there are over all. Beyond it whoever has more than an equal share gets no more: who has
// many uids, as each user has who may name 65 536 of them, does not have as many bounds.
const usersWorth = 8

// account counts what each uid has.
type account struct {
	most amounts // of one uid

	mu    sync.Mutex
	users map[uint32]amounts // those who have anything
	all   amounts
}

// take counts n more; beyond the bounds it refuses.
func (a *account) take(uid uint32, what resource, n int64) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	u, has := a.users[uid]
	own, users := u[what]+n, int64(len(a.users))
	if !has {
		users++
	}
	all := usersWorth * a.most[what]
	if n > 0 && (own > a.most[what] || a.all[what]+n > all && own > all/users) {
		return errMost[what]
	}
	a.add(uid, what, n)
	return nil
}

// put counts n more, or fewer, whatever the bounds say.
func (a *account) put(uid uint32, what resource, n int64) {
	if n == 0 {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.add(uid, what, n)
}

// add is put for who holds a.mu.
func (a *account) add(uid uint32, what resource, n int64) {
	if a.users == nil {
		a.users = map[uint32]amounts{}
	}
	u := a.users[uid]
	u[what] += n
	a.all[what] += n
	if u == (amounts{}) {
		delete(a.users, uid)
		return
	}
	a.users[uid] = u
}

// effectsMost bounds those of one uid: fs bounds the bytes of all requests under way, and beyond that nobody is served.
const effectsMost = 64

var errMost = [resources]error{
	handles: gate.Refuse(syscall.EAGAIN, "this user has too many open transactions", "close some, or wait"),
	held:    psa.Errorf(psa.StatusInsufficientMemory, "this user's requests hold too many bytes").WithHint("finish some of them first"),
	calls:   gate.Refuse(syscall.EAGAIN, "too many threads of this user wait for answers", "try again when some have got theirs"),
	effects: gate.Refuse(syscall.EAGAIN, "too many changes of this user are in progress", "write again when some are done"),
}

// count counts one more handle, slot or request in the drop box; release takes it back, once.
func (a *account) count(uid uint32) (release func(), err error) { return a.hold(uid, handles, 1) }

func (a *account) hold(uid uint32, what resource, n int64) (release func(), err error) {
	if err := a.take(uid, what, n); err != nil {
		return nil, err
	}
	return sync.OnceFunc(func() { a.put(uid, what, -n) }), nil
}

// Affect counts one more call that has an effect; leave ends it.
func (m *Machine) Affect(uid uint32) (leave func(), err error) {
	return m.account.hold(uid, effects, 1)
}

// More counts more bytes of a user's open file; release ends it.
func (m *Machine) More(uid uint32, bytes int) (release func(), err error) {
	return m.account.hold(uid, held, int64(bytes))
}

// Add counts more bytes that a user's open file has already, whatever the bounds say; release ends it.
func (m *Machine) Add(uid uint32, bytes int) (release func()) {
	m.account.put(uid, held, int64(bytes))
	return sync.OnceFunc(func() { m.account.put(uid, held, -int64(bytes)) })
}

// Hold counts an open file of a user that has so many bytes of its own; release ends it.
func (m *Machine) Hold(uid uint32, bytes int) (release func(), err error) {
	file, err := m.account.count(uid)
	if err != nil {
		return nil, err
	}
	text, err := m.account.hold(uid, held, int64(bytes))
	if err != nil {
		file()
		return nil, err
	}
	return func() { file(); text() }, nil
}
