package kimtest

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	childEnv = "KIMTEST_CHILD"
	longEnv  = "PARSECFS_TEST_LONG"
	// Eight writers at once, which share their commits.
	writers    = 8
	rounds     = 12
	longRounds = 300
)

// step is one transaction on a key that child goes through, and the state after it; "" is no row.
type step struct {
	name  string
	after kim.State
	do    func(s kim.Store, k *kim.Key) error
}

// A key's way through all of its life, again and again.
var life = []step{
	{"draft", kim.Draft, func(s kim.Store, k *kim.Key) (err error) {
		mode := uint32(0o700)
		*k, err = s.InsertDraft(ctx, kim.NewDraft{Provider: k.Provider, Name: k.Name, UID: 1000, Inodes: []kim.Inode{{Ino: 0, Mode: &mode}}})
		return err
	}},
	{"create", kim.Creating, func(s kim.Store, k *kim.Key) error {
		_, err := s.BeginCreate(ctx, k.Number, newHandle(), "ed25519", ed25519, kim.Generated)
		return err
	}},
	{"created", kim.Ready, func(s kim.Store, k *kim.Key) error {
		return s.FinishCreate(ctx, k.Number, []byte("public"), []byte("sealed of "+k.Name))
	}},
	{"moved", kim.Ready, func(s kim.Store, k *kim.Key) error { return s.Rename(ctx, k.Number, kim.OwnSpace(1000), k.Name) }},
	{"destroy", kim.Destroying, func(s kim.Store, k *kim.Key) error {
		_, err := s.BeginDestroy(ctx, k.Number, nil)
		return err
	}},
	{"destroyed", "", func(s kim.Store, k *kim.Key) error { return s.FinishDestroy(ctx, k.Number) }},
}

// moved is the step that gives a key a name in another space.
const moved = 3

// forgotten is the way of a draft that becomes no key.
var forgotten = []step{
	life[0],
	{"expired", "", func(s kim.Store, k *kim.Key) error { return s.ExpireDraft(ctx, k.Number, time.Now()) }},
}

// forgottenPrefix begins the names of those that go it.
const forgottenPrefix = "forgotten-"

// lifeOf is the way of the key with a name.
func lifeOf(name string) []step {
	if strings.HasPrefix(name, forgottenPrefix) {
		return forgotten
	}
	return life
}

// child writes until it is killed. It says on standard output what it begins and what is done.
func child(dir string, open Opener) {
	fail := func(err error) {
		fmt.Println("failed", err)
		os.Exit(1)
	}
	s, err := guarded(open, dir, true)
	if err != nil {
		fail(err)
	}
	p, err := s.EnsureProvider(ctx, "software", "Software")
	if err != nil {
		fail(err)
	}
	var mu sync.Mutex
	say := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Printf(format+"\n", args...) // one write, so that a line is whole
	}
	for w := range writers {
		go func() {
			for i := 0; ; i++ {
				// A third of the keys stay ready, the others go.
				k := kim.Key{Provider: p.Number, Name: fmt.Sprintf("%d-%d-%d", os.Getpid(), w, i)}
				if i%4 == 1 {
					k.Name = forgottenPrefix + k.Name
				}
				steps := lifeOf(k.Name)
				if i%3 == 0 && len(steps) > moved {
					steps = steps[:moved+1]
				}
				for n, st := range steps {
					say("begin %s %d", k.Name, n)
					if err := st.do(s, &k); err != nil {
						fail(err)
					}
					say("done %s %d %d", k.Name, n, k.Number)
				}
			}
		}()
	}
	select {}
}

// testKill kills a process that writes, at random moments, and looks what became of every key that it told of.
func testKill(t *testing.T, s *suite, top string) {
	begun, done := map[string]int{}, map[string]int{}
	highest := int64(0)
	n := rounds
	if os.Getenv(longEnv) == "1" {
		n = longRounds
	}
	for round := range n {
		kill := 1 + rand.IntN(400)
		cmd := exec.Command(os.Args[0], "-test.run=^"+top+"$")
		cmd.Env = append(os.Environ(), childEnv+"="+s.dir)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		s.ok(err)
		s.ok(cmd.Start())
		lines := bufio.NewScanner(out)
		first := true
		for n := 0; lines.Scan(); n++ {
			f := strings.Fields(lines.Text())
			switch {
			case len(f) == 3 && f[0] == "begin":
				begun[f[1]], err = strconv.Atoi(f[2])
			case len(f) == 4 && f[0] == "done":
				done[f[1]], err = strconv.Atoi(f[2])
				number, _ := strconv.ParseInt(f[3], 10, 64)
				if first && number <= highest {
					t.Errorf("number %d came back after a kill, %d was given out", number, highest)
				}
				first = false
				highest = max(highest, number)
			default:
				err = fmt.Errorf("the child says %q", lines.Text())
			}
			s.ok(err)
			if n == kill {
				s.ok(cmd.Process.Kill())
			}
		}
		cmd.Wait()
		s.start()
		checkKilled(t, s, begun, done)
		if t.Failed() {
			t.Fatalf("in round %d, killed after %d lines", round, kill)
		}
		s.ok(s.Close())
	}
}

func checkKilled(t *testing.T, s *suite, begun, done map[string]int) {
	t.Helper()
	p := s.provider("software").Number
	journal := map[string]bool{}
	last := int64(0)
	for {
		page, err := s.Journal(ctx, p, last, 3)
		s.ok(err)
		if len(page) == 0 {
			break
		}
		for _, e := range page {
			journal[e.Key.Name] = true
			last = e.Key.Number
		}
	}
	rows := map[string]kim.Key{}
	for _, k := range append(s.all(p), s.allOf(p, kim.OwnSpace(1000))...) {
		if r, twice := rows[k.Name]; twice {
			t.Errorf("%s is %s too", r.Path(), k.Path())
		}
		rows[k.Name] = k
		s.ok(k.Damage)
		if _, known := begun[k.Name]; !known {
			t.Errorf("key %s was never made", k.Name)
		}
		if (k.State == kim.Creating || k.State == kim.Destroying) != journal[k.Name] {
			t.Errorf("key %s is %s; in the journal: %v", k.Name, k.State, journal[k.Name])
		}
		secret, err := s.Secret(ctx, k.Number)
		if k.State == kim.Ready && string(secret) != "sealed of "+k.Name {
			t.Errorf("the secret of %s is %q: %v", k.Name, secret, err)
		}
		if _, found, err := s.Inode(ctx, uint64(k.Number)*256); !found || err != nil {
			t.Errorf("key %s lost its inode: %v", k.Name, err)
		}
	}
	for name, n := range begun {
		state := rows[name].State
		before, wasDone := done[name]
		way := lifeOf(name)
		after := way[n].after
		// Where it was, before the step that moved it, or where that moved it to: which of them, only that step leaves open.
		shared, acknowledged := rows[name].Space == kim.Shared, wasDone && before == n
		if len(way) > moved && state != "" && (n < moved && !shared || n > moved && shared || n == moved && acknowledged && shared) {
			t.Errorf("key %s is in %s, killed in or after %s", name, rows[name].Space, way[n].name)
		}
		if wasDone && before == n {
			if state != after {
				t.Errorf("key %s is %q after %s was acknowledged", name, state, way[n].name)
			}
			continue
		}
		old := kim.State("")
		if n > 0 {
			old = way[n-1].after
		}
		if state != old && state != after {
			t.Errorf("key %s is %q, killed in %s", name, state, way[n].name)
		}
	}
	if n, err := s.Count(ctx); err != nil || n != int64(len(rows)) {
		t.Errorf("count %d, %d rows: %v", n, len(rows), err)
	}
	if _, err := s.KeyByName(ctx, p, kim.Shared, "nobody"); psa.StatusOf(err) != psa.StatusDoesNotExist {
		t.Error(err)
	}
}
