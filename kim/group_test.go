package kim

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// grouped is a store whose turn somebody has, so that others wait for it.
type grouped struct {
	*sqliteStore
	t        *testing.T
	path     string
	provider int64
	free     chan struct{}
	all      sync.WaitGroup
}

func newGrouped(t *testing.T) *grouped {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "kim.sqlite3")
	s, err := OpenSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	guard, err := NewRowKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.InitDataKey(t.Context(), WrappedKey{Kind: "file", WrappingID: [16]byte{1}, Wrapped: []byte("wrapped")}, guard); err != nil {
		t.Fatal(err)
	}
	p, err := s.EnsureProvider(t.Context(), "software", "Software")
	if err != nil {
		t.Fatal(err)
	}
	g := &grouped{sqliteStore: s.(*sqliteStore), t: t, path: path, provider: p.Number}
	g.batchTime = time.Hour // how many commits there are must not depend on how busy the machine is
	g.hold()
	return g
}

// hold takes the turn until release.
func (g *grouped) hold() {
	g.free = make(chan struct{})
	has := make(chan struct{})
	g.all.Go(func() {
		err := g.enterAndSubmit(context.Background(), &writing{alone: func() error {
			close(has)
			<-g.free
			return nil
		}})
		if err != nil {
			g.t.Error(err)
		}
	})
	<-has
}

// release has those that wait written, and waits for all.
func (g *grouped) release() {
	close(g.free)
	g.all.Wait()
}

// waits runs f beside the others, and returns when it waits for its turn.
func (g *grouped) waits(f func()) {
	g.t.Helper()
	before := g.waiting()
	g.all.Go(f)
	for end := time.Now().Add(10 * time.Second); g.waiting() <= before; {
		if time.Now().After(end) {
			g.t.Fatal("it does not wait")
		}
		time.Sleep(100 * time.Microsecond)
	}
}

func (g *grouped) waiting() int {
	g.group.mu.Lock()
	defer g.group.mu.Unlock()
	return g.group.waiting
}

func (g *grouped) insert(ctx context.Context, name string) error {
	_, err := g.InsertDraft(ctx, NewDraft{Provider: g.provider, Name: name, UID: 1000, GID: 1000})
	if err != nil {
		return err
	}
	return g.has(name) // it is there when the call returns
}

func (g *grouped) has(name string) error {
	_, err := g.KeyByName(context.Background(), g.provider, Shared, name)
	return err
}

// spoils adds a writer whose rows the commit refuses.
func (g *grouped) spoils() {
	g.waits(func() {
		err := g.write(g.t.Context(), "cannot", func(tx *tx) error {
			if _, err := tx.exec("PRAGMA defer_foreign_keys = ON"); err != nil {
				return err
			}
			_, err := tx.exec("INSERT INTO certificates(key, chain) VALUES (1 << 40, x'00')") // of no key: COMMIT refuses it
			return err
		})
		if psa.StatusOf(err) != psa.StatusStorageFailure {
			g.t.Error(err)
		}
	})
}

// want checks who is there and who is not.
func (g *grouped) want(there string, not ...string) {
	g.t.Helper()
	for name := range strings.FieldsSeq(there) {
		if err := g.has(name); err != nil {
			g.t.Errorf("%s: %v", name, err)
		}
	}
	for _, name := range not {
		if err := g.has(name); psa.StatusOf(err) != psa.StatusDoesNotExist {
			g.t.Errorf("%s: %v", name, err)
		}
	}
}

// commits counts the commits in the WAL: the frames that say how large the file is after them.
func (g *grouped) commits() (n int) {
	g.t.Helper()
	b, err := os.ReadFile(g.path + "-wal")
	if err != nil {
		g.t.Fatal(err)
	}
	const head, frameHead = 32, 24
	size := int(binary.BigEndian.Uint32(b[8:]))
	salt := b[16:24]
	for b = b[head:]; len(b) >= frameHead+size; b = b[frameHead+size:] {
		if bytes.Equal(b[8:16], salt) && binary.BigEndian.Uint32(b[4:]) != 0 {
			n++
		}
	}
	return n
}

// TestOneCommit: those that wait for each other's commit share the next one.
func TestOneCommit(t *testing.T) {
	g := newGrouped(t)
	before := g.commits()
	for i := range 8 {
		g.waits(func() {
			if err := g.insert(t.Context(), fmt.Sprint("k", i)); err != nil {
				t.Error(err)
			}
		})
	}
	g.release()
	if n := g.commits() - before; n != 1 {
		t.Errorf("%d commits of eight writers", n)
	}
	// One by itself waits for nobody.
	before = g.commits()
	if err := g.insert(t.Context(), "alone"); err != nil {
		t.Error(err)
	}
	if n := g.commits() - before; n != 1 {
		t.Errorf("%d commits of one", n)
	}
}

// TestOneFails: who fails leaves nothing behind, and takes nothing away from the others; each is told its own.
func TestOneFails(t *testing.T) {
	g := newGrouped(t)
	mine := errors.New("mine")
	insert := func(tx *tx, name string) error {
		k := Key{ID: newUUID(), Provider: g.provider, Name: name, State: Draft, Created: time.Now(), Changed: time.Now()}
		var provider []byte
		if err := tx.row("SELECT uuid FROM providers WHERE number = ?", []any{g.provider}, &provider); err != nil {
			return err
		}
		var err error
		if k.Number, err = tx.number(); err != nil {
			return err
		}
		tx.new(keysTable, k.Number)
		tx.changed(k.change())
		return tx.insertKey(k, provider)
	}
	var changes []Change
	var told sync.WaitGroup
	told.Add(4)
	stop := g.Watch(func(c Change) {
		changes = append(changes, c)
		told.Done()
	})
	good := func(name string) {
		g.waits(func() {
			if err := g.insert(t.Context(), name); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	fails := func(name string, want any, f func() error) {
		g.waits(func() {
			defer func() {
				if p := recover(); p != nil && !strings.Contains(fmt.Sprint(p), fmt.Sprint(want)) {
					t.Errorf("%s: a panic of %v", name, p)
				} else if p == nil && want == "its panic" {
					t.Errorf("%s does not panic", name)
				}
			}()
			err := f()
			switch want := want.(type) {
			case error:
				if !errors.Is(err, want) {
					t.Errorf("%s: %v", name, err)
				}
			case psa.Status:
				if psa.StatusOf(err) != want {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	fails("first", mine, func() error {
		return g.write(t.Context(), "cannot", func(tx *tx) error { return errors.Join(insert(tx, "first"), mine) })
	})
	good("a")
	fails("middle", mine, func() error {
		return g.write(t.Context(), "cannot", func(tx *tx) error { return errors.Join(insert(tx, "middle"), mine) })
	})
	good("b")
	// It sees what was written before it, and not committed.
	fails("twin", psa.StatusAlreadyExists, func() error { return g.insert(t.Context(), "b") })
	fails("panics", "its panic", func() error {
		return g.write(t.Context(), "cannot", func(tx *tx) error {
			if err := insert(tx, "panics"); err != nil {
				return err
			}
			panic("its panic")
		})
	})
	good("c")
	fails("sql", psa.StatusStorageFailure, func() error {
		return g.write(t.Context(), "cannot", func(tx *tx) error {
			if err := insert(tx, "sql"); err != nil {
				return err
			}
			_, err := tx.exec("INSERT INTO data_key(one, kind, wrapping_id, wrapped) VALUES (2, '', x'', x'')")
			return err
		})
	})
	good("d")
	before := g.commits()
	g.release()
	if n := g.commits() - before; n != 1 {
		t.Errorf("%d commits", n)
	}
	g.want("a b c d", "first", "middle", "panics", "sql")
	told.Wait()
	stop()
	if len(changes) != 4 {
		t.Errorf("the watcher was told of %v", changes)
	}
	if n, err := g.Count(t.Context()); n != 4 || err != nil {
		t.Errorf("%d keys: %v", n, err)
	}
}

// TestAllRolledBack: where SQLite gives up the whole transaction because of one, the others are written all the same.
func TestAllRolledBack(t *testing.T) {
	g := newGrouped(t)
	lost := errors.New("lost")
	for _, name := range []string{"a", "b"} {
		g.waits(func() {
			if err := g.insert(t.Context(), name); err != nil {
				t.Error(err)
			}
		})
	}
	g.waits(func() {
		err := g.write(t.Context(), "cannot", func(tx *tx) error {
			_, err := tx.exec("ROLLBACK") // as SQLite does on its own where it cannot go on
			return errors.Join(err, lost)
		})
		if !errors.Is(err, lost) {
			t.Error(err)
		}
	})
	g.waits(func() {
		if err := g.insert(t.Context(), "c"); err != nil {
			t.Error(err)
		}
	})
	g.release()
	g.want("a b c")
}

// TestCommitFails: what was not committed was not done, for none of them.
func TestCommitFails(t *testing.T) {
	g := newGrouped(t)
	for _, name := range []string{"a", "b"} {
		g.waits(func() {
			if err := g.insert(t.Context(), name); psa.StatusOf(err) != psa.StatusStorageFailure {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	g.spoils()
	g.release()
	g.want("", "a", "b")
	if err := g.insert(t.Context(), "a"); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestRefusedByWhatIsGone: who was refused because of another's write is not, where that write came to nothing.
func TestRefusedByWhatIsGone(t *testing.T) {
	g := newGrouped(t)
	g.waits(func() {
		if err := g.insert(t.Context(), "a"); psa.StatusOf(err) != psa.StatusStorageFailure {
			t.Errorf("the one whose commit fails: %v", err)
		}
	})
	g.waits(func() {
		if err := g.insert(t.Context(), "a"); err != nil {
			t.Errorf("its twin: %v", err)
		}
	})
	mine := errors.New("mine")
	g.waits(func() {
		if err := g.write(t.Context(), "cannot", func(*tx) error { return mine }); !errors.Is(err, mine) {
			t.Errorf("who fails by itself: %v", err)
		}
	})
	g.spoils()
	g.release()
	g.want("a")
}

// TestGivesUp: whose context ends before its turn is not written, and the others are.
func TestGivesUp(t *testing.T) {
	g := newGrouped(t)
	left := make(chan struct{})
	short, cancel := context.WithCancel(t.Context())
	g.waits(func() {
		defer close(left)
		if err := g.insert(short, "left"); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	g.waits(func() {
		if err := g.insert(t.Context(), "stays"); err != nil {
			t.Error(err)
		}
	})
	cancel()
	<-left
	// Who has begun is told what became of it.
	begun, end := context.WithCancel(t.Context())
	g.waits(func() {
		err := g.write(begun, "cannot", func(*tx) error {
			end()
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	g.release()
	g.want("stays", "left")
}

// TestWritersTakeTurns: one user's crowd keeps nobody else waiting, and fills no queue for others.
func TestWritersTakeTurns(t *testing.T) {
	t.Parallel()
	var g group
	join := func(uid uint32, owed bool) (*writing, error) {
		w := &writing{uid: uid, owed: owed, done: make(chan struct{}), turn: make(chan struct{}, 1)}
		leads, err := g.join(w)
		if leads {
			t.Fatal("two lead")
		}
		return w, err
	}
	if leads, err := g.join(&writing{uid: 1}); !leads || err != nil {
		t.Fatal(leads, err)
	}
	var crowd []*writing
	for range waitingOfUser {
		w, err := join(1, false)
		if err != nil {
			t.Fatal(err)
		}
		crowd = append(crowd, w)
	}
	if _, err := join(1, false); psa.StatusOf(err) != psa.StatusQueueFull {
		t.Fatal(err)
	}
	owed, err := join(1, true)
	if err != nil {
		t.Fatalf("what the journal needs: %v", err)
	}
	other, err := join(2, false)
	if err != nil {
		t.Fatal(err)
	}
	if first, second := g.another(), g.another(); first != crowd[0] || second != other {
		t.Error("the other user is not the second")
	}
	for uid := uint32(3); g.waiting < waitingWriters; uid++ {
		for i := 0; i < waitingOfUser-1 && g.waiting < waitingWriters; i++ {
			if _, err := join(uid, false); err != nil {
				t.Fatal(err)
			}
		}
	}
	// Over all, whoever waits with most gives way, but for what the journal needs.
	late, err := join(1000, false)
	if err != nil {
		t.Fatal(err)
	}
	<-crowd[len(crowd)-1].done
	if psa.StatusOf(crowd[len(crowd)-1].err) != psa.StatusQueueFull {
		t.Error(crowd[len(crowd)-1].err)
	}
	if _, err := join(1000, true); err != nil {
		t.Fatal(err)
	}
	for _, w := range []*writing{owed, late} {
		if !g.giveUp(w) || g.giveUp(w) {
			t.Error("it did not wait")
		}
	}
	for n := g.waiting; n > 0; n-- {
		if g.another() == nil {
			t.Fatalf("%d wait, but none is next", n)
		}
	}
	if len(g.users) != 0 || len(g.turns) != 0 {
		t.Error("the queue remembers users that do not wait")
	}
}

// TestQuotaInOneCommit: those that share a commit count for each other.
func TestQuotaInOneCommit(t *testing.T) {
	g := newGrouped(t)
	var mu sync.Mutex
	made, refused := 0, 0
	for i := range 8 {
		g.waits(func() {
			_, err := g.InsertDraft(t.Context(), NewDraft{Provider: g.provider, Name: fmt.Sprint("k", i), UID: 1000, GID: 1000, Quota: 5})
			mu.Lock()
			defer mu.Unlock()
			switch psa.StatusOf(err) {
			case psa.StatusSuccess:
				made++
			case psa.StatusQuota:
				refused++
			default:
				t.Error(err)
			}
		})
	}
	g.release()
	if made != 5 || refused != 3 {
		t.Errorf("%d were made, %d refused", made, refused)
	}
	for uid, want := range map[uint32]int64{1000: 5, 1001: 0} {
		if n, err := g.CountOf(t.Context(), uid); n != want || err != nil {
			t.Errorf("user %d has %d keys, %v", uid, n, err)
		}
	}
}

// TestRekeyBesideWriters: no row is proven by a key that does not count any more.
func TestRekeyBesideWriters(t *testing.T) {
	g := newGrouped(t)
	g.release()
	done := make(chan struct{})
	for w := range 4 {
		g.all.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-done:
					return
				default:
				}
				if err := g.insert(t.Context(), fmt.Sprint(w, "-", i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range byte(20) {
		guard, err := NewRowKey(bytes.Repeat([]byte{i}, 32))
		if err != nil {
			t.Fatal(err)
		}
		row, _, err := g.DataKey(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if n, err := g.Rekey(t.Context(), Rekeying{Old: row.WrappingID, Row: row, Guard: guard}); n != 0 || err != nil {
			t.Fatalf("%d rows are damaged, %v", n, err)
		}
	}
	close(done)
	g.all.Wait()
	for after := ""; ; {
		keys, err := g.Keys(t.Context(), g.provider, Shared, after, 100)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			if after = k.Name; k.Damage != nil {
				t.Fatal(k.Damage)
			}
		}
		if len(keys) == 0 {
			return
		}
	}
}

// TestCountsAreMended: counts that somebody changed while the store is open are counted anew by who needs them.
func TestCountsAreMended(t *testing.T) {
	g := newGrouped(t)
	g.release()
	draft := func(name string) error {
		_, err := g.InsertDraft(t.Context(), NewDraft{Provider: g.provider, Name: name, UID: 1000, GID: 1000, Quota: 3})
		return err
	}
	for _, name := range []string{"a", "b", "c"} {
		if err := draft(name); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := g.writer.ExecContext(t.Context(), "UPDATE owners SET keys = 0 WHERE uid = 1000"); err != nil {
		t.Fatal(err)
	}
	if err := draft("d"); psa.StatusOf(err) != psa.StatusQuota {
		t.Errorf("one more than the quota: %v", err)
	}
	if n, err := g.CountOf(t.Context(), 1000); n != 3 || err != nil {
		t.Errorf("%d keys, %v", n, err)
	}
}

// TestDamageIsReadTwice: a row that was read beside a change of the data key, and is as it was stored, is no damage in the status.
func TestDamageIsReadTwice(t *testing.T) {
	g := newGrouped(t)
	g.release()
	k, err := g.InsertDraft(t.Context(), NewDraft{Provider: g.provider, Name: "a", UID: 1000, GID: 1000})
	if err != nil {
		t.Fatal(err)
	}
	p := &Provider{k: &KIM{store: g.sqliteStore, ctx: t.Context()}}
	k.Damage = errors.New("it is not as it was stored")
	if p.stillDamaged(k) {
		t.Error("a whole row is damaged")
	}
	g.Unguard() // which has the row read again
	guard, err := NewRowKey(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := g.writer.ExecContext(t.Context(), "UPDATE keys SET gid = 0"); err != nil {
		t.Fatal(err)
	}
	if err := g.Guard(t.Context(), guard); err != nil {
		t.Fatal(err)
	}
	if !p.stillDamaged(k) {
		t.Error("a damaged row is not")
	}
}
