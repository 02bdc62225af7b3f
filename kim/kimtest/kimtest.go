// Package kimtest is the suite that every kim.Store passes.
package kimtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Opener opens the store that is kept in dir, making it where dir is empty. A snapshot named kim.sqlite3 in an
// otherwise empty directory is such a store too.
type Opener func(dir string) (kim.Store, error)

// Run runs the suite. It starts the test binary again, as `-test.run ^NAME$` with the name of t, for the part that
// is killed; so t must be a test of the top level that only calls Run.
func Run(t *testing.T, open Opener) {
	if dir := os.Getenv(childEnv); dir != "" {
		child(dir, open)
	}
	top := t.Name()
	for _, c := range []struct {
		name string
		test func(*testing.T, *suite)
	}{
		{"Providers", testProviders},
		{"Life", testLife},
		{"Model", testModel},
		{"Drafts", testDrafts},
		{"Adoption", testAdoption},
		{"OneName", testOneName},
		{"Spaces", testSpaces},
		{"UserInodes", testUserInodes},
		{"Quota", testQuota},
		{"Owner", testOwner},
		{"HandedOver", testHandedOver},
		{"NobodyOwns", testNobodyOwns},
		{"Counts", testCounts},
		{"QuotaOverAll", testQuotaOverAll},
		{"Numbers", testNumbers},
		{"Pages", testPages},
		{"Inodes", testInodes},
		{"Xattrs", testXattrs},
		{"Aliases", testAliases},
		{"DataKey", testDataKey},
		{"Watch", testWatch},
		{"SlowWatcher", testSlowWatcher},
		{"Context", testContext},
		{"Snapshot", testSnapshot},
		{"Closed", testClosed},
		{"Kill", func(t *testing.T, s *suite) { testKill(t, s, top) }},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, &suite{t: t, open: open, dir: t.TempDir()}) })
	}
}

// suite is one test's store.
type suite struct {
	t    *testing.T
	open Opener
	dir  string
	bare bool // without a data key, so that nothing guards the rows
	kim.Store
}

var ctx = context.Background()

// start opens the store, or opens it again.
func (s *suite) start() {
	s.t.Helper()
	if s.Store != nil {
		s.ok(s.Close())
	}
	st, err := guarded(s.open, s.dir, !s.bare)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.Store == nil {
		s.t.Cleanup(func() { s.Close() })
	}
	s.Store = st
}

// dataKey is the one of every store here.
var dataKey = bytes.Repeat([]byte{7}, 32)

func rowKey() *kim.RowKey {
	key, err := kim.NewRowKey(dataKey)
	if err != nil {
		panic(err)
	}
	return key
}

// guarded opens a store and has its rows proven; where it has no data key it gets one if make says so.
func guarded(open Opener, dir string, make bool) (kim.Store, error) {
	s, err := open(dir)
	if err != nil {
		return nil, err
	}
	_, found, err := s.DataKey(ctx)
	switch {
	case err != nil:
	case found:
		err = s.Guard(ctx, rowKey())
	case make:
		err = s.InitDataKey(ctx, kim.WrappedKey{Kind: "file", WrappingID: [16]byte{1, 2}, Wrapped: []byte("wrapped")}, rowKey())
	}
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *suite) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) status(err error, want psa.Status) {
	s.t.Helper()
	if got := psa.StatusOf(err); got != want {
		s.t.Fatalf("%v (%v), want %v", got, err, want)
	}
}

func (s *suite) provider(name string) kim.ProviderRow {
	s.t.Helper()
	p, err := s.EnsureProvider(ctx, name, "Software")
	s.ok(err)
	return p
}

func (s *suite) draft(provider int64, name string) kim.Key {
	s.t.Helper()
	k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: provider, Name: name, UID: 1000, GID: 100})
	s.ok(err)
	return k
}

func (s *suite) key(number int64) kim.Key {
	s.t.Helper()
	k, err := s.KeyByNumber(ctx, number)
	s.ok(err)
	return k
}

// ready makes a key of a draft.
func (s *suite) ready(k kim.Key, public, sealed string) kim.Key {
	s.t.Helper()
	_, err := s.BeginCreate(ctx, k.Number, newHandle(), "ed25519", ed25519, kim.Generated)
	s.ok(err)
	s.ok(s.FinishCreate(ctx, k.Number, []byte(public), []byte(sealed)))
	return s.key(k.Number)
}

func (s *suite) destroy(number int64) {
	s.t.Helper()
	_, err := s.BeginDestroy(ctx, number, nil)
	s.ok(err)
	s.ok(s.FinishDestroy(ctx, number))
}

// all lists a provider's visible keys with shared names, in small pages.
func (s *suite) all(provider int64) []kim.Key { s.t.Helper(); return s.allOf(provider, kim.Shared) }

// allOf is all of one space.
func (s *suite) allOf(provider int64, space kim.Space) []kim.Key {
	s.t.Helper()
	var all []kim.Key
	after := ""
	for {
		page, err := s.Keys(ctx, provider, space, after, 7)
		s.ok(err)
		names, err := s.Names(ctx, provider, space, after, 7)
		s.ok(err)
		same := func(n kim.Name, k kim.Key) bool { return n.Name == k.Name && n.Number == k.Number }
		if !slices.EqualFunc(names, page, same) {
			s.t.Fatalf("the names are %v, the keys %+v", names, page)
		}
		if len(page) == 0 {
			return all
		}
		all = append(all, page...)
		after = page[len(page)-1].Name
	}
}

var ed25519 = psa.Attributes{Type: psa.ECCKeyPair(psa.TwistedEdwards), Bits: 255, Algorithm: psa.PureEdDSA,
	Usage: psa.UsageSignMessage | psa.UsageVerifyMessage}

var aes = psa.Attributes{Type: psa.KeyTypeAES, Bits: 256, Algorithm: psa.GCM, Usage: psa.UsageEncrypt | psa.UsageDecrypt}

func newHandle() (h providers.Handle) {
	for i := range h {
		h[i] = byte(rand.Uint32())
	}
	return h
}

func names(keys []kim.Key) string {
	var all []string
	for _, k := range keys {
		all = append(all, k.Name)
	}
	return strings.Join(all, " ")
}

func testProviders(t *testing.T, s *suite) {
	s.start()
	tpm := s.provider("tpm")
	soft := s.provider("software")
	if tpm.UUID == soft.UUID || tpm.Number == soft.Number || tpm.Default || tpm.Created.IsZero() {
		t.Fatalf("%+v and %+v", tpm, soft)
	}
	s.ok(s.SetDefaultProvider(ctx, tpm.Number))
	s.ok(s.SetDefaultProvider(ctx, soft.Number))
	s.ok(s.SetProviderSeen(ctx, tpm.Number, "serial 7", "a\nb\n"))
	s.status(s.SetDefaultProvider(ctx, 999), psa.StatusDoesNotExist)
	s.status(s.SetProviderSeen(ctx, 999, "", ""), psa.StatusDoesNotExist)
	s.status(s.RenameProvider(ctx, "none", "other"), psa.StatusDoesNotExist)
	_, err := s.EnsureProvider(ctx, "tpm", "Software2")
	s.status(err, psa.StatusInvalidArgument)
	s.start()
	if again := s.provider("tpm"); again.UUID != tpm.UUID || again.Number != tpm.Number || again.Identity != "serial 7" || again.Capabilities != "a\nb\n" {
		t.Fatalf("after opening again %+v, before %+v", again, tpm)
	}
	all, err := s.Providers(ctx)
	s.ok(err)
	if len(all) != 2 || all[0].Name != "software" || !all[0].Default || all[1].Name != "tpm" || all[1].Default {
		t.Fatalf("%+v", all)
	}

	s.draft(soft.Number, "key")
	s.status(s.RenameProvider(ctx, "tpm", "software"), psa.StatusAlreadyExists)
	alias, err := s.CreateAlias(ctx, kim.Alias{Name: "mine", Target: "../providers/software/keys/key"})
	s.ok(err)
	s.ok(s.RenameProvider(ctx, "software", "tpm")) // which has no keys, and goes
	s.start()
	all, err = s.Providers(ctx)
	s.ok(err)
	if len(all) != 1 || all[0].Name != "tpm" || all[0].Number != soft.Number || all[0].UUID != soft.UUID || !all[0].Default {
		t.Fatalf("%+v; it was %+v", all, soft)
	}
	if alias, err = s.Alias(ctx, "mine"); err != nil || alias.Target != "../providers/tpm/keys/key" {
		t.Fatalf("%+v, %v", alias, err)
	}
	s.ok(s.RenameProvider(ctx, "tpm", "tpm"))
}

func testLife(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software")
	_, err := s.InsertDraft(ctx, kim.NewDraft{Provider: 77, Name: "web"})
	s.status(err, psa.StatusDoesNotExist)
	mode := uint32(0o750)
	k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p.Number, Name: "web", UID: 1000, GID: 100, Inodes: []kim.Inode{{Ino: 3, Mode: &mode}}})
	s.ok(err)
	if i, found, err := s.Inode(ctx, uint64(k.Number)*256+3); err != nil || !found || i.Mode == nil || *i.Mode != 0o750 {
		t.Fatalf("inode %+v %v %v", i, found, err)
	}
	if k.State != kim.Draft || k.UID != 1000 || k.GID != 100 || k.ID == [16]byte{} || k.Created.IsZero() {
		t.Fatalf("%+v", k)
	}
	_, err = s.InsertDraft(ctx, kim.NewDraft{Provider: p.Number, Name: "web"})
	s.status(err, psa.StatusAlreadyExists)

	partial := psa.Attributes{Type: psa.KeyTypeAES}
	s.ok(s.UpdateDraft(ctx, k.Number, "t", partial))
	h := newHandle()
	begun, err := s.BeginCreate(ctx, k.Number, h, "aes-256-gcm", aes, kim.Imported)
	s.ok(err)
	if begun.State != kim.Creating || begun.Handle != h || begun.Attributes != aes || begun.Origin != kim.Imported || begun.ID != k.ID {
		t.Fatalf("%+v", begun)
	}
	// A row in the journal takes no other turn.
	_, err = s.BeginCreate(ctx, k.Number, newHandle(), "x", aes, kim.Imported)
	s.status(err, psa.StatusBadState)
	_, err = s.BeginDestroy(ctx, k.Number, nil)
	s.status(err, psa.StatusBadState)
	s.status(s.UpdateDraft(ctx, k.Number, "x", aes), psa.StatusBadState)
	s.status(s.RemoveDraft(ctx, k.Number, nil), psa.StatusBadState)
	s.status(s.FinishDestroy(ctx, k.Number), psa.StatusBadState)
	s.status(s.AbortDestroy(ctx, k.Number), psa.StatusBadState)

	s.start()
	j, err := s.Journal(ctx, p.Number, 0, 10)
	s.ok(err)
	if len(j) != 1 || j[0].Key.Number != k.Number || j[0].Key.Handle != h || j[0].Before != kim.Draft {
		t.Fatalf("journal %+v", j)
	}
	s.ok(s.SetHidden(ctx, k.Number, true))
	if len(s.all(p.Number)) != 0 {
		t.Fatal("a hidden key is listed")
	}
	if hidden, err := s.KeyByName(ctx, p.Number, kim.Shared, "web"); err != nil || !hidden.Hidden {
		t.Fatalf("%+v %v", hidden, err)
	}
	_, err = s.InsertDraft(ctx, kim.NewDraft{Provider: p.Number, Name: "web"})
	s.status(err, psa.StatusBadState)
	s.status(s.Rename(ctx, k.Number, kim.Shared, "www"), psa.StatusBadState)
	s.ok(s.AbortCreate(ctx, k.Number))
	back := s.key(k.Number)
	if back.State != kim.Draft || back.Hidden || back.Template != "t" || back.Attributes != partial || back.Origin != "" || back.Handle != (providers.Handle{}) {
		t.Fatalf("after the abort: %+v", back)
	}

	_, err = s.BeginCreate(ctx, k.Number, h, "aes-256-gcm", aes, kim.Generated)
	s.ok(err)
	s.ok(s.FinishCreate(ctx, k.Number, nil, []byte("sealed")))
	s.status(s.AbortCreate(ctx, k.Number), psa.StatusBadState)
	s.status(s.SetHidden(ctx, k.Number, true), psa.StatusBadState)
	s.start()
	ready := s.key(k.Number)
	if ready.State != kim.Ready || !ready.Sealed || ready.Public != nil || ready.Handle != h || ready.Attributes != aes || ready.ID != k.ID || !ready.Created.Equal(k.Created) || ready.Changed.Before(k.Changed) {
		t.Fatalf("%+v", ready)
	}
	if secret, err := s.Secret(ctx, k.Number); err != nil || string(secret) != "sealed" {
		t.Fatalf("%q %v", secret, err)
	}
	other := s.draft(p.Number, "other")
	_, err = s.BeginCreate(ctx, other.Number, h, "aes-256-gcm", aes, kim.Generated)
	s.status(err, psa.StatusAlreadyExists)
	if secret, err := s.Secret(ctx, other.Number); err != nil || secret != nil {
		t.Fatalf("%q %v", secret, err)
	}

	s.status(s.Rename(ctx, k.Number, kim.Shared, "other"), psa.StatusAlreadyExists)
	s.ok(s.Rename(ctx, k.Number, kim.Shared, "www"))
	s.ok(s.Rename(ctx, k.Number, kim.Shared, "www"))
	s.ok(s.Exchange(ctx, k.Number, other.Number))
	s.ok(s.Exchange(ctx, k.Number, k.Number))
	if got := names(s.all(p.Number)); got != "other www" || s.key(k.Number).Name != "other" || s.key(other.Number).Name != "www" {
		t.Fatalf("%s; %+v", got, s.key(k.Number))
	}
	elsewhere := s.draft(s.provider("tpm").Number, "www")
	s.status(s.Exchange(ctx, k.Number, elsewhere.Number), psa.StatusInvalidArgument)

	s.ok(s.SetAllowDestroy(ctx, k.Number, false))
	_, err = s.BeginDestroy(ctx, k.Number, nil)
	s.status(err, psa.StatusNotPermitted)
	s.ok(s.SetAllowDestroy(ctx, k.Number, true))
	s.ok(s.SetUnits(ctx, k.Number, []string{"web.service", "worker@.service"}))
	s.status(s.SetUnits(ctx, k.Number, []string{"web service"}), psa.StatusInvalidArgument)
	if got := s.key(k.Number).Units; !slices.Equal(got, []string{"web.service", "worker@.service"}) {
		t.Fatalf("units %q", got)
	}
	if s.key(k.Number).CallerNonce {
		t.Fatal("a nonce of the caller's choice by default")
	}
	s.ok(s.SetCallerNonce(ctx, k.Number, true))
	if got := s.key(k.Number); !got.CallerNonce || got.NonceBound {
		t.Fatalf("%+v", got)
	}
	s.status(s.BindNonce(ctx, k.Number), psa.StatusBadState)
	one, two := []byte("a chain"), []byte("another chain")
	for _, c := range []struct{ chain, before []byte }{{one, nil}, {two, one}, {nil, two}, {two, nil}} {
		if before, err := s.SetCertificate(ctx, k.Number, c.chain); err != nil || !bytes.Equal(before, c.before) {
			t.Fatalf("%q took the place of %q, %v", c.chain, before, err)
		}
	}
	for _, c := range []struct{ chain, before, now []byte }{{one, nil, two}, {nil, one, two}, {two, one, one}, {one, nil, nil}, {nil, two, two}} {
		s.ok(s.RestoreCertificate(ctx, k.Number, c.chain, c.before))
		if now, err := s.Certificate(ctx, k.Number); err != nil || !bytes.Equal(now, c.now) {
			t.Fatalf("%q in the place of %q: the certificate is %q, %v", c.before, c.chain, now, err)
		}
	}
	chain, err := s.Certificate(ctx, k.Number)
	s.ok(err)
	if string(chain) != "another chain" {
		t.Fatalf("the certificate is %q", chain)
	}
	now := s.key(k.Number)
	asked := kim.Standing{Space: now.Space, Name: now.Name, Owner: now.UID}
	for _, moved := range []kim.Standing{
		{Space: kim.OwnSpace(4242), Name: asked.Name, Owner: asked.Owner}, {Space: asked.Space, Name: asked.Name + "2", Owner: asked.Owner},
		{Space: asked.Space, Name: asked.Name, Owner: asked.Owner + 1},
	} {
		if _, err := s.BeginDestroy(ctx, k.Number, &moved); !errors.Is(err, kim.ErrMoved) {
			t.Fatalf("%+v: %v", moved, err)
		}
		if err := s.RemoveDraft(ctx, other.Number, &moved); !errors.Is(err, kim.ErrMoved) {
			t.Fatalf("a draft, %+v: %v", moved, err)
		}
	}
	gone, err := s.BeginDestroy(ctx, k.Number, &asked)
	s.ok(err)
	if gone.State != kim.Destroying || gone.Handle != h {
		t.Fatalf("%+v", gone)
	}
	s.ok(s.AbortDestroy(ctx, k.Number))
	if again := s.key(k.Number); again.State != kim.Ready || again.Attributes != aes {
		t.Fatalf("%+v", again)
	}
	s.destroy(k.Number)
	s.start()
	if chain, err := s.Certificate(ctx, k.Number); err != nil || chain != nil {
		t.Fatalf("the certificate of a key that is gone: %q, %v", chain, err)
	}
	_, err = s.KeyByNumber(ctx, k.Number)
	s.status(err, psa.StatusDoesNotExist)
	_, err = s.Secret(ctx, k.Number)
	s.status(err, psa.StatusDoesNotExist)
	if _, found, err := s.Inode(ctx, uint64(k.Number)*256+3); found || err != nil {
		t.Fatal("its inode is still there", err)
	}
	s.status(s.FinishDestroy(ctx, k.Number), psa.StatusDoesNotExist)
	s.ok(s.RemoveDraft(ctx, other.Number, nil))
	if n, err := s.CountOf(ctx, 4242); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if n, err := s.Count(ctx); n != 1 || err != nil {
		t.Fatal(n, err)
	}
}

// testModel compares the store with a map, over random calls.
// testDrafts: those that nobody changed since a time are listed, and go, and no others.
func testDrafts(t *testing.T, s *suite) {
	s.start()
	a, b := s.provider("a"), s.provider("b")
	old := s.draft(a.Number, "old")
	touched := s.draft(a.Number, "touched")
	kept := s.draft(a.Number, "kept")
	s.ok(s.SetAllowDestroy(ctx, kept.Number, false))
	elsewhere := s.draft(b.Number, "elsewhere")
	key := s.ready(s.draft(a.Number, "key"), "public", "sealed")
	creating := s.draft(a.Number, "creating")
	_, err := s.BeginCreate(ctx, creating.Number, newHandle(), "ed25519", ed25519, kim.Generated)
	s.ok(err)
	since := time.Now()
	changed := s.draft(a.Number, "changed")
	now := since.Add(time.Nanosecond)
	s.ok(s.SetInode(ctx, kim.Inode{Ino: uint64(touched.Number) * 256, Ctime: &now}))
	var listed []kim.Key
	for after := int64(0); ; {
		page, err := s.Drafts(ctx, since, after, 2)
		s.ok(err)
		if len(page) == 0 {
			break
		}
		listed = append(listed, page...)
		after = page[len(page)-1].Number
	}
	if names(listed) != "old touched kept elsewhere" {
		t.Fatalf("drafts that did not change: %s", names(listed))
	}
	s.status(s.ExpireDraft(ctx, old.Number, old.Changed.Add(-1)), psa.StatusBadState)
	s.ok(s.ExpireDraft(ctx, old.Number, since))
	s.status(s.ExpireDraft(ctx, old.Number, since), psa.StatusDoesNotExist)
	s.status(s.ExpireDraft(ctx, touched.Number, since), psa.StatusBadState)
	s.status(s.ExpireDraft(ctx, kept.Number, since), psa.StatusNotPermitted)
	s.ok(s.ExpireDraft(ctx, elsewhere.Number, since))
	for _, k := range []kim.Key{key, creating, changed} {
		s.status(s.ExpireDraft(ctx, k.Number, since), psa.StatusBadState)
	}
	s.start()
	if got := names(s.all(a.Number)); got != "changed creating kept key touched" {
		t.Errorf("left are %s", got)
	}
	if n, err := s.CountOf(ctx, 1000); err != nil || n != 5 {
		t.Errorf("they count %d, %v", n, err)
	}
}

func testModel(t *testing.T, s *suite) {
	s.start()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	type row struct {
		kim.Key
		before         kim.State
		beforeTemplate string
		beforeAttrs    psa.Attributes
	}
	p := s.provider("software").Number
	rows := map[int64]*row{}
	var numbers []int64 // that were ever there
	byName := func(space kim.Space, name string) *row {
		for _, k := range rows {
			if k.Space == space && k.Name == name {
				return k
			}
		}
		return nil
	}
	pick := func() int64 {
		if len(numbers) == 0 {
			return 1
		}
		return numbers[max(0, len(numbers)-1-r.IntN(8))]
	}
	nameOf := func() string { return fmt.Sprintf("key%d", r.IntN(4)) }
	spaces := []kim.Space{kim.Shared, kim.OwnSpace(0), kim.OwnSpace(2001)}
	spaceOf := func() kim.Space { return spaces[r.IntN(len(spaces))] }
	attrs := func() psa.Attributes { return []psa.Attributes{ed25519, aes}[r.IntN(2)] }
	// need is the status of a call that needs a visible row in one of the states.
	need := func(k *row, states ...kim.State) psa.Status {
		switch {
		case k == nil:
			return psa.StatusDoesNotExist
		case k.Hidden, !slices.Contains(states, k.State):
			return psa.StatusBadState
		}
		return psa.StatusSuccess
	}
	needJournal := func(k *row, states ...kim.State) psa.Status {
		switch {
		case k == nil:
			return psa.StatusDoesNotExist
		case !slices.Contains(states, k.State):
			return psa.StatusBadState
		}
		return psa.StatusSuccess
	}
	free := func(space kim.Space, name string) psa.Status {
		switch k := byName(space, name); {
		case k == nil:
			return psa.StatusSuccess
		case k.Hidden:
			return psa.StatusBadState
		}
		return psa.StatusAlreadyExists
	}
	check := func() {
		t.Helper()
		var there []kim.Space
		for _, space := range spaces {
			var visible []string
			for _, k := range rows {
				if k.Space == space && !k.Hidden {
					visible = append(visible, k.Name)
				}
			}
			slices.Sort(visible)
			if got := names(s.allOf(p, space)); got != strings.Join(visible, " ") {
				t.Fatalf("%s: keys %q, want %q", space, got, visible)
			}
			for _, k := range rows {
				if k.Space == space && !slices.Contains(there, space) {
					there = append(there, space)
				}
			}
		}
		if got, err := s.Spaces(ctx, p, kim.Shared-1, 10); err != nil || !slices.Equal(got, there) {
			t.Fatalf("spaces %v, want %v, %v", got, there, err)
		}
		journal := 0
		for _, w := range rows {
			got, err := s.KeyByName(ctx, p, w.Space, w.Name)
			s.ok(err)
			if got.Space != w.Space || got.Number != w.Number || got.State != w.State || got.Hidden != w.Hidden || got.Attributes != w.Attributes || got.Template != w.Template || got.Handle != w.Handle || got.Origin != w.Origin || got.Object != w.Object || got.KeepForever != w.KeepForever || !slices.Equal(got.Units, w.Units) || got.CallerNonce != (w.CallerNonce && !w.NonceBound) || got.NonceBound != w.NonceBound || got.ID != w.ID {
				t.Fatalf("%+v, want %+v", got, w.Key)
			}
			if w.State == kim.Creating || w.State == kim.Destroying {
				journal++
			}
		}
		if j, err := s.Journal(ctx, p, 0, 100); err != nil || len(j) != journal {
			t.Fatalf("journal of %d rows, want %d: %v", len(j), journal, err)
		}
		if n, err := s.Count(ctx); err != nil || n != int64(len(rows)) {
			t.Fatalf("count %d, want %d: %v", n, len(rows), err)
		}
	}
	for step := range 1500 {
		n := pick()
		k := rows[n]
		var want psa.Status
		var err error
		var what string
		switch r.IntN(22) {
		case 0, 1, 2:
			what = "InsertDraft"
			space, name := spaceOf(), nameOf()
			want = free(space, name)
			var made kim.Key
			if made, err = s.InsertDraft(ctx, kim.NewDraft{Provider: p, Space: space, Name: name}); err == nil {
				rows[made.Number] = &row{Key: made}
				numbers = append(numbers, made.Number)
			}
		case 3:
			what = "UpdateDraft"
			want = need(k, kim.Draft)
			a, template := attrs(), fmt.Sprint(step)
			if err = s.UpdateDraft(ctx, n, template, a); err == nil {
				k.Attributes, k.Template = a, template
			}
		case 4, 5:
			what = "BeginCreate"
			want = need(k, kim.Draft)
			a, template, h := attrs(), fmt.Sprint(step), newHandle()
			if _, err = s.BeginCreate(ctx, n, h, template, a, kim.Generated); err == nil {
				k.before, k.beforeTemplate, k.beforeAttrs = k.State, k.Template, k.Attributes
				k.State, k.Template, k.Attributes, k.Handle, k.Origin = kim.Creating, template, a, h, kim.Generated
			}
		case 6, 7:
			what = "FinishCreate"
			want = needJournal(k, kim.Creating)
			if err = s.FinishCreate(ctx, n, []byte("public"), nil); err == nil {
				k.State, k.Hidden = kim.Ready, false
			}
		case 8:
			what = "AbortCreate"
			want = needJournal(k, kim.Creating)
			if err = s.AbortCreate(ctx, n); err == nil {
				k.State, k.Template, k.Attributes, k.NonceBound = kim.Draft, k.beforeTemplate, k.beforeAttrs, false
				k.Hidden, k.Origin, k.Handle = false, "", providers.Handle{}
			}
		case 9:
			what = "BeginDestroy"
			want = need(k, kim.Draft, kim.Ready)
			if want == psa.StatusSuccess && k.KeepForever {
				want = psa.StatusNotPermitted
			}
			if _, err = s.BeginDestroy(ctx, n, nil); err == nil {
				k.before, k.State = k.State, kim.Destroying
			}
		case 10:
			what = "FinishDestroy"
			want = needJournal(k, kim.Destroying)
			if err = s.FinishDestroy(ctx, n); err == nil {
				delete(rows, n)
			}
		case 11:
			what = "AbortDestroy"
			want = needJournal(k, kim.Destroying)
			if err = s.AbortDestroy(ctx, n); err == nil {
				k.State, k.Hidden = k.before, false
			}
		case 12:
			what = "SetHidden"
			want = needJournal(k, kim.Creating, kim.Destroying)
			hidden := r.IntN(2) == 0
			if err = s.SetHidden(ctx, n, hidden); err == nil {
				k.Hidden = hidden
			}
		case 13:
			what = "Rename"
			space, name := spaceOf(), nameOf()
			want = need(k, kim.Draft, kim.Creating, kim.Ready)
			if want == psa.StatusSuccess && (k.Space != space || k.Name != name) {
				want = free(space, name)
			}
			if err = s.Rename(ctx, n, space, name); err == nil {
				k.Space, k.Name = space, name
			}
		case 14:
			what = "Exchange"
			m := pick()
			other := rows[m]
			want = need(k, kim.Draft, kim.Creating, kim.Ready)
			if want == psa.StatusSuccess {
				want = need(other, kim.Draft, kim.Creating, kim.Ready)
			}
			if err = s.Exchange(ctx, n, m); err == nil {
				k.Name, other.Name = other.Name, k.Name
				k.Space, other.Space = other.Space, k.Space
			}
		case 15:
			what = "SetAllowDestroy"
			allow := r.IntN(3) > 0
			want = need(k, kim.Draft, kim.Creating, kim.Ready)
			if err = s.SetAllowDestroy(ctx, n, allow); err == nil {
				k.KeepForever = !allow
			}
		case 16:
			what = "SetUnits"
			units := []string{"a.service", "b.scope"}[:r.IntN(3)]
			want = need(k, kim.Draft, kim.Creating, kim.Ready)
			if err = s.SetUnits(ctx, n, units); err == nil {
				k.Units = units
			}
		case 17:
			what = "Adopt"
			a := kim.Adoption{Handle: newHandle(), Template: fmt.Sprint(step), Attributes: attrs(), Device: "device", Object: fmt.Sprint("object=", r.IntN(3))}
			want = need(k, kim.Draft)
			for _, other := range rows {
				if want == psa.StatusSuccess && other.Object == a.Object {
					want = psa.StatusAlreadyExists
				}
			}
			if err = s.Adopt(ctx, n, a); err == nil {
				k.State, k.Origin, k.KeepForever = kim.Ready, kim.Adopted, true
				k.Handle, k.Template, k.Attributes, k.Object = a.Handle, a.Template, a.Attributes, a.Object
			}
		case 18:
			what = "Forget"
			if k == nil {
				want = psa.StatusDoesNotExist
			}
			if err = s.Forget(ctx, n); err == nil {
				delete(rows, n)
			}
		case 19:
			what = "SetCallerNonce"
			allow := r.IntN(3) > 0
			want = need(k, kim.Draft, kim.Creating, kim.Ready)
			if want == psa.StatusSuccess && allow && k.NonceBound {
				want = psa.StatusNotPermitted
			}
			if err = s.SetCallerNonce(ctx, n, allow); err == nil {
				k.CallerNonce = allow
			}
		case 20:
			what = "BindNonce"
			want = need(k, kim.Creating)
			if err = s.BindNonce(ctx, n); err == nil {
				k.NonceBound = true
			}
		case 21:
			what = "ExpireDraft"
			want = need(k, kim.Draft)
			since := time.Now()
			switch forgotten := r.IntN(2) == 0; {
			case want != psa.StatusSuccess:
			case !forgotten:
				since, want = k.Created.Add(-1), psa.StatusBadState
			case k.KeepForever:
				want = psa.StatusNotPermitted
			}
			if err = s.ExpireDraft(ctx, n, since); err == nil {
				delete(rows, n)
			}
		}
		if psa.StatusOf(err) != want {
			t.Fatalf("step %d: %s of %d: %v, want %v", step, what, n, err, want)
		}
		if step%25 == 0 {
			check()
		}
		if step%300 == 299 {
			s.start()
			check()
		}
	}
	check()
	if !slices.IsSorted(numbers) || len(slices.Compact(slices.Clone(numbers))) != len(numbers) {
		t.Fatal("numbers came back")
	}
}

func testAdoption(t *testing.T, s *suite) {
	s.start()
	p, q := s.provider("token").Number, s.provider("other").Number
	made := s.ready(s.draft(q, "made"), "public", "")
	k := s.draft(p, "theirs")
	a := kim.Adoption{Handle: newHandle(), Template: "ed25519", Attributes: ed25519, Device: "serial 1", Object: "id=01", Public: []byte("public"), Sealed: []byte("sealed")}
	nameless := a
	nameless.Object = ""
	s.status(s.Adopt(ctx, k.Number, nameless), psa.StatusInvalidArgument)
	ours := a
	ours.Made = made.Handle
	s.status(s.Adopt(ctx, k.Number, ours), psa.StatusAlreadyExists)
	_, err := s.Holder(ctx, a.Device, a.Object, providers.Handle{})
	s.status(err, psa.StatusDoesNotExist)
	s.ok(s.Adopt(ctx, k.Number, a))
	s.start()
	got := s.key(k.Number)
	if got.State != kim.Ready || got.Origin != kim.Adopted || got.Object != "id=01" || !got.KeepForever || !got.Sealed || string(got.Public) != "public" || got.Attributes != ed25519 || got.ID != k.ID {
		t.Fatalf("%+v", got)
	}
	if j, err := s.Journal(ctx, p, 0, 10); err != nil || len(j) != 0 {
		t.Fatalf("journal %+v, %v", j, err)
	}
	// one object, one key, whatever provider it is asked through; another device may call its own the same
	second := s.draft(q, "again")
	b := a
	b.Handle = newHandle()
	s.status(s.Adopt(ctx, second.Number, b), psa.StatusAlreadyExists)
	b.Device = "serial 2"
	s.ok(s.Adopt(ctx, second.Number, b))
	for _, want := range []struct {
		device, object string
		handle         providers.Handle
		name           string
	}{{"serial 1", "id=01", providers.Handle{}, "theirs"}, {"serial 2", "id=01", providers.Handle{}, "again"}, {"serial 1", "id=02", made.Handle, "made"}} {
		if h, err := s.Holder(ctx, want.device, want.object, want.handle); err != nil || h.Name != want.name {
			t.Fatalf("%s on %s is held by %q, %v; want %q", want.object, want.device, h.Name, err, want.name)
		}
	}
	s.status(s.Adopt(ctx, second.Number, b), psa.StatusBadState)
	_, err = s.BeginDestroy(ctx, k.Number, nil)
	s.status(err, psa.StatusNotPermitted)
	s.ok(s.Forget(ctx, k.Number))
	s.status(s.Forget(ctx, k.Number), psa.StatusDoesNotExist)
	// what was forgotten can be adopted anew, and destroyed
	k = s.draft(p, "theirs")
	s.ok(s.Adopt(ctx, k.Number, a))
	s.ok(s.SetAllowDestroy(ctx, k.Number, true))
	gone, err := s.BeginDestroy(ctx, k.Number, nil)
	s.ok(err)
	if gone.Object != "id=01" {
		t.Fatalf("%+v", gone)
	}
	s.ok(s.SetHidden(ctx, k.Number, true))
	s.ok(s.Forget(ctx, k.Number))
	s.status(s.FinishDestroy(ctx, k.Number), psa.StatusDoesNotExist)
}

func testOneName(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	for round := range 10 {
		var won, lost int
		var mu sync.Mutex
		var wg sync.WaitGroup
		for range 16 {
			wg.Go(func() {
				_, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: fmt.Sprint("web", round)})
				mu.Lock()
				defer mu.Unlock()
				switch psa.StatusOf(err) {
				case psa.StatusSuccess:
					won++
				case psa.StatusAlreadyExists:
					lost++
				default:
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won != 1 || lost != 15 {
			t.Fatalf("%d creators won, %d lost", won, lost)
		}
	}
	if n := len(s.all(p)); n != 10 {
		t.Fatalf("%d keys", n)
	}
}

// testSpaces: a name is taken in one space alone, and a key goes from one to another as it is.
func testSpaces(t *testing.T, s *suite) {
	s.start()
	p, q := s.provider("software").Number, s.provider("tpm").Number
	spaces := []kim.Space{kim.Shared, kim.OwnSpace(0), kim.OwnSpace(2001), kim.OwnSpace(2003), kim.OwnSpace(1<<32 - 2)}
	keys := map[kim.Space]kim.Key{}
	for _, space := range spaces {
		k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Space: space, Name: "web", UID: 1000})
		s.ok(err)
		keys[space] = k
		_, err = s.InsertDraft(ctx, kim.NewDraft{Provider: p, Space: space, Name: "web", UID: 1000})
		s.status(err, psa.StatusAlreadyExists)
	}
	_, err := s.InsertDraft(ctx, kim.NewDraft{Provider: q, Space: kim.OwnSpace(7), Name: "web", UID: 1000})
	s.ok(err)
	s.start()
	for _, space := range spaces {
		k, err := s.KeyByName(ctx, p, space, "web")
		s.ok(err)
		if k.Number != keys[space].Number || k.Space != space || k.Path() != space.String()+"/web" || s.key(k.Number).Space != space {
			t.Errorf("%s: %+v, want %+v", space, k, keys[space])
		}
		if list := s.allOf(p, space); len(list) != 1 || list[0].Number != k.Number {
			t.Errorf("%s lists %+v", space, list)
		}
		_, err = s.KeyByName(ctx, q, space, "web")
		s.status(err, psa.StatusDoesNotExist)
	}
	behind := map[kim.Space][]kim.Space{kim.Shared - 1: spaces, kim.Shared: spaces[1:], kim.OwnSpace(2001): spaces[3:], spaces[4]: nil}
	for after, want := range behind {
		if got, err := s.Spaces(ctx, p, after, 10); err != nil || !slices.Equal(got, want) {
			t.Errorf("behind %v: %v, want %v, %v", after, got, want, err)
		}
	}
	if got, err := s.Spaces(ctx, p, kim.Shared-1, 2); err != nil || !slices.Equal(got, spaces[:2]) {
		t.Errorf("a page of two: %v, %v", got, err)
	}

	ready := s.ready(keys[kim.OwnSpace(2001)], "public", "sealed")
	s.status(s.Rename(ctx, ready.Number, kim.Shared, "web"), psa.StatusAlreadyExists)
	s.ok(s.Rename(ctx, ready.Number, kim.Shared, "www"))
	s.start()
	if k := s.key(ready.Number); k.Path() != "keys/www" || k.ID != ready.ID || k.Handle != ready.Handle || !k.Sealed || k.UID != ready.UID {
		t.Errorf("%+v, before it moved %+v", k, ready)
	}
	_, err = s.KeyByName(ctx, p, kim.OwnSpace(2001), "web")
	s.status(err, psa.StatusDoesNotExist)
	// Names and spaces are exchanged together, also where the names are the same.
	other := keys[kim.OwnSpace(2003)]
	s.ok(s.Rename(ctx, ready.Number, kim.OwnSpace(2001), "web"))
	s.ok(s.Exchange(ctx, ready.Number, other.Number))
	s.start()
	for number, space := range map[int64]kim.Space{ready.Number: kim.OwnSpace(2003), other.Number: kim.OwnSpace(2001)} {
		if k, err := s.KeyByName(ctx, p, space, "web"); err != nil || k.Number != number {
			t.Errorf("%s/web is %+v, %v", space, k, err)
		}
	}
	// A key in the journal, hidden, holds its name in its own space alone.
	_, err = s.BeginDestroy(ctx, ready.Number, nil)
	s.ok(err)
	s.ok(s.SetHidden(ctx, ready.Number, true))
	s.status(s.Rename(ctx, other.Number, kim.OwnSpace(2003), "web"), psa.StatusBadState)
	s.ok(s.Rename(ctx, other.Number, kim.OwnSpace(2003), "www"))

	// Whoever gets all of a user's gets the user's own names; one that they have stays where it is, as it is.
	insert := func(uid uint32, space kim.Space, name string) kim.Key {
		t.Helper()
		k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Space: space, Name: name, UID: uid, GID: uid})
		s.ok(err)
		return k
	}
	const a, b = 3001, 3002
	moves, stays, taken := insert(a, kim.OwnSpace(a), "moves"), insert(a, kim.Shared, "stays"), insert(a, kim.OwnSpace(a), "taken")
	guest, theirs := insert(2009, kim.OwnSpace(a), "guest"), insert(b, kim.OwnSpace(b), "taken")
	s.give(guest, 16, a, a) // one file of it is a's, and the key is not
	for _, k := range []kim.Key{moves, stays, guest} {
		s.ok(s.SetOwner(ctx, k.Number, a, b, b))
	}
	s.status(s.SetOwner(ctx, taken.Number, a, b, b), psa.StatusAlreadyExists)
	s.start()
	for _, want := range []struct {
		k     kim.Key
		space kim.Space
		uid   uint32
	}{{moves, kim.OwnSpace(b), b}, {stays, kim.Shared, b}, {taken, kim.OwnSpace(a), a}, {guest, kim.OwnSpace(a), 2009},
		{theirs, kim.OwnSpace(b), b}} {
		if k := s.key(want.k.Number); k.Space != want.space || k.UID != want.uid || k.Name != want.k.Name {
			t.Errorf("%s is %s of %d, want %s of %d", want.k.Path(), k.Path(), k.UID, want.space, want.uid)
		}
	}
	s.counts(map[uint32]int64{a: 1, b: 3})
}

// testUserInodes: what differs from the default of a user's directory is stored, for each uid, and goes with its provider.
func testUserInodes(t *testing.T, s *suite) {
	s.start()
	p, q := s.provider("software").Number, s.provider("tpm").Number
	mode, when := uint32(0o711), time.Unix(1700000000, 5)
	uids := []uint32{0, 1, 255, 256, 2001, 1<<32 - 2}
	for i, uid := range uids {
		ino := kim.UserInode(p, uid)
		if _, found, err := s.Inode(ctx, ino); found || err != nil {
			t.Fatal(found, err)
		}
		m := mode + uint32(i)
		s.ok(s.SetInode(ctx, kim.Inode{Ino: ino, Mode: &m, Mtime: &when}))
		s.ok(s.SetXattr(ctx, ino, "user.a", []byte{byte(i)}, kim.XattrSet))
	}
	s.start()
	for i, uid := range uids {
		ino := kim.UserInode(p, uid)
		if got, found, err := s.Inode(ctx, ino); err != nil || !found || *got.Mode != mode+uint32(i) || !got.Mtime.Equal(when) {
			t.Fatalf("%d: %+v %v %v", uid, got, found, err)
		}
		if v, err := s.Xattr(ctx, ino, "user.a"); err != nil || !bytes.Equal(v, []byte{byte(i)}) {
			t.Fatalf("%d: %q, %v", uid, v, err)
		}
		for _, other := range []uint64{kim.UserInode(q, uid), kim.UserInode(p, uid+10)} {
			if _, found, err := s.Inode(ctx, other); found || err != nil {
				t.Fatal(found, err)
			}
		}
	}
	s.ok(s.SetInode(ctx, kim.Inode{Ino: kim.UserInode(p, 255)})) // as it was by default
	if _, found, err := s.Inode(ctx, kim.UserInode(p, 255)); found || err != nil {
		t.Fatal(found, err)
	}
	for _, nobodys := range []uint64{kim.UserInode(q+1000, 5), kim.UserInode(kim.MaxUsersProvider, 5)} {
		s.status(s.SetInode(ctx, kim.Inode{Ino: nobodys, Mode: &mode}), psa.StatusDoesNotExist)
		s.status(s.SetXattr(ctx, nobodys, "user.a", nil, kim.XattrSet), psa.StatusDoesNotExist)
	}
	if kim.UserInode(kim.MaxUsersProvider, 1<<32-1) != 1<<62-1 {
		t.Errorf("the last inode is %x", kim.UserInode(kim.MaxUsersProvider, 1<<32-1))
	}
	s.ok(s.RenameProvider(ctx, "tpm", "software")) // software has no keys, and goes
	s.start()
	for _, uid := range uids {
		if _, found, err := s.Inode(ctx, kim.UserInode(p, uid)); found || err != nil {
			t.Fatal("the inode outlived its provider", found, err)
		}
		if l, err := s.Xattrs(ctx, kim.UserInode(p, uid)); err != nil || len(l) != 0 {
			t.Fatal("the labels outlived their provider", l, err)
		}
	}
	// Another data key proves them anew.
	s.ok(s.SetInode(ctx, kim.Inode{Ino: kim.UserInode(q, 2001), Mode: &mode}))
	other, err := kim.NewRowKey(bytes.Repeat([]byte{8}, 32))
	s.ok(err)
	row := kim.WrappedKey{Kind: "file", WrappingID: [16]byte{1, 2}, Wrapped: []byte("wrapped")}
	damaged, err := s.Rekey(ctx, kim.Rekeying{Old: row.WrappingID, Row: row, Guard: other})
	s.ok(err)
	if i, found, err := s.Inode(ctx, kim.UserInode(q, 2001)); damaged != 0 || err != nil || !found || *i.Mode != mode {
		t.Fatalf("%+v %v %v; %d rows are damaged", i, found, err, damaged)
	}
}

func testQuota(t *testing.T, s *suite) {
	s.start()
	p, q := s.provider("software").Number, s.provider("tpm").Number
	insert := func(provider int64, uid uint32, name string, quota int) error {
		_, err := s.InsertDraft(ctx, kim.NewDraft{Provider: provider, Name: name, UID: uid, Quota: quota})
		return err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	made := 0
	for i := range 20 {
		wg.Go(func() {
			err := insert([]int64{p, q}[i%2], 1000, fmt.Sprint("k", i), 5)
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				made++
			} else if psa.StatusOf(err) != psa.StatusQuota {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made != 5 {
		t.Fatalf("%d keys under a quota of 5", made)
	}
	s.ok(insert(p, 1001, "other user", 5))
	s.ok(insert(p, 1000, "no quota", 0))
	s.start()
	s.status(insert(p, 1000, "x", 6), psa.StatusQuota)
	k, err := s.KeyByName(ctx, p, kim.Shared, "no quota")
	s.ok(err)
	s.ready(k, "public", "")
	s.status(insert(p, 1000, "x", 6), psa.StatusQuota)
	s.destroy(k.Number)
	s.ok(insert(p, 1000, "x", 6))
	s.status(insert(p, 1000, "y", 6), psa.StatusQuota)
}

func testNumbers(t *testing.T, s *suite) {
	s.start()
	last := s.provider("software").Number
	p := last
	next := func(n int64) {
		t.Helper()
		if n <= last {
			t.Fatalf("number %d after %d", n, last)
		}
		last = n
	}
	for i := range 12 {
		k := s.draft(p, "web")
		next(k.Number)
		if i%2 == 0 {
			s.ready(k, "public", "sealed")
			s.destroy(k.Number)
		} else {
			s.ok(s.RemoveDraft(ctx, k.Number, nil))
		}
		a, err := s.CreateAlias(ctx, kim.Alias{Name: "web", Target: "../x"})
		s.ok(err)
		next(a.Number)
		s.ok(s.RemoveAlias(ctx, "web"))
		if i%3 == 0 {
			next(s.provider(fmt.Sprint("p", i)).Number)
		}
		if i%4 == 0 {
			s.start()
		}
	}
}

func testPages(t *testing.T, s *suite) {
	s.start()
	p, q := s.provider("software").Number, s.provider("tpm").Number
	want := []string{"A", "Z", "a", "a b", "aa", "caf\xe9", "café", "\xff\xfe", strings.Repeat("n", 255), "%_'\"", "你好", "-rf", "~"}
	for _, n := range want {
		s.draft(p, n)
	}
	s.draft(q, "elsewhere")
	slices.Sort(want)
	for i := range 2 {
		var got []string
		for _, k := range s.all(p) {
			got = append(got, k.Name)
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%q, want %q", got, want)
		}
		for _, n := range want {
			if k, err := s.KeyByName(ctx, p, kim.Shared, n); err != nil || k.Name != n {
				t.Fatalf("%q: %v", n, err)
			}
		}
		if i == 0 {
			s.start()
		}
	}
	for _, n := range []int{0, -1} {
		if keys, err := s.Keys(ctx, p, kim.Shared, "", n); err != nil || len(keys) != 0 {
			t.Fatal(len(keys), err)
		}
	}
	if keys, err := s.Keys(ctx, p, kim.Shared, "", 1<<40); err != nil || len(keys) != len(want) {
		t.Fatal(len(keys), err)
	}
	_, err := s.KeyByName(ctx, q, kim.Shared, "A")
	s.status(err, psa.StatusDoesNotExist)
}

func testInodes(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software")
	k := s.draft(p.Number, "web")
	a, err := s.CreateAlias(ctx, kim.Alias{Name: "web", Target: "x"})
	s.ok(err)
	mode, uid, gid := uint32(0o640), uint32(1), uint32(4294967295)
	when := time.Unix(1700000000, 123456789)
	for _, number := range []int64{0, p.Number, k.Number, a.Number} {
		i := kim.Inode{Ino: uint64(number)*256 + 255, Mode: &mode, UID: &uid, GID: &gid, ACL: []byte{2, 0}, DefaultACL: []byte{3}, Atime: &when, Mtime: &when, Ctime: &when}
		s.ok(s.SetInode(ctx, i))
		s.start()
		got, found, err := s.Inode(ctx, i.Ino)
		if err != nil || !found || *got.Mode != mode || *got.UID != uid || *got.GID != gid || !bytes.Equal(got.ACL, i.ACL) || !bytes.Equal(got.DefaultACL, i.DefaultACL) || !got.Atime.Equal(when) || !got.Mtime.Equal(when) || !got.Ctime.Equal(when) {
			t.Fatalf("%+v %v %v", got, found, err)
		}
		s.ok(s.SetInode(ctx, kim.Inode{Ino: i.Ino, Mtime: &when}))
		if got, found, err := s.Inode(ctx, i.Ino); err != nil || !found || got.Mode != nil || got.UID != nil || got.ACL != nil || !got.Mtime.Equal(when) || got.Atime != nil {
			t.Fatalf("%+v %v %v", got, found, err)
		}
		s.ok(s.SetInode(ctx, kim.Inode{Ino: i.Ino}))
		if _, found, err := s.Inode(ctx, i.Ino); err != nil || found {
			t.Fatal(found, err)
		}
	}
	for _, ino := range []uint64{99 * 256, 1 << 63, ^uint64(0)} {
		s.status(s.SetInode(ctx, kim.Inode{Ino: ino, Mode: &mode}), psa.StatusDoesNotExist)
		if _, found, err := s.Inode(ctx, ino); err != nil || found {
			t.Fatal(found, err)
		}
	}
	s.ok(s.SetInode(ctx, kim.Inode{Ino: uint64(a.Number) * 256, Mode: &mode}))
	s.ok(s.SetXattr(ctx, uint64(a.Number)*256, "user.a", nil, kim.XattrSet))
	s.ok(s.RemoveAlias(ctx, "web"))
	if _, found, err := s.Inode(ctx, uint64(a.Number)*256); err != nil || found {
		t.Fatal("the inode outlived its link", err)
	}
	if l, err := s.Xattrs(ctx, uint64(a.Number)*256); err != nil || len(l) != 0 {
		t.Fatal("the labels outlived their link", err)
	}
	_, err = s.InsertDraft(ctx, kim.NewDraft{Provider: p.Number, Name: "bad", Inodes: []kim.Inode{{Ino: 256, Mode: &mode}}})
	s.status(err, psa.StatusInvalidArgument)
	if names(s.all(p.Number)) != "web" {
		t.Fatal("a failed draft left its row")
	}
}

func testXattrs(t *testing.T, s *suite) {
	s.start()
	k := s.draft(s.provider("software").Number, "web")
	ino := uint64(k.Number) * 256
	_, err := s.Xattr(ctx, ino, "user.a")
	s.status(err, psa.StatusDoesNotExist)
	s.status(s.SetXattr(ctx, ino, "user.a", []byte("1"), kim.XattrReplace), psa.StatusDoesNotExist)
	s.ok(s.SetXattr(ctx, ino, "user.a", []byte("1"), kim.XattrCreate))
	s.status(s.SetXattr(ctx, ino, "user.a", []byte("2"), kim.XattrCreate), psa.StatusAlreadyExists)
	s.ok(s.SetXattr(ctx, ino, "user.a", []byte("2"), kim.XattrReplace))
	s.ok(s.SetXattr(ctx, ino, "user.empty", nil, kim.XattrSet))
	s.start()
	if v, err := s.Xattr(ctx, ino, "user.a"); err != nil || string(v) != "2" {
		t.Fatalf("%q %v", v, err)
	}
	if v, err := s.Xattr(ctx, ino, "user.empty"); err != nil || len(v) != 0 {
		t.Fatalf("%q %v", v, err)
	}
	if l, err := s.Xattrs(ctx, ino); err != nil || strings.Join(l, " ") != "user.a user.empty" {
		t.Fatal(l, err)
	}
	if l, err := s.Xattrs(ctx, ino+1); err != nil || len(l) != 0 {
		t.Fatal(l, err)
	}
	full := kim.MaxXattrBytes - len("user.a2user.emptyuser.big")
	s.status(s.SetXattr(ctx, ino, "user.big", make([]byte, full+1), kim.XattrSet), psa.StatusQuota)
	s.ok(s.SetXattr(ctx, ino, "user.big", make([]byte, full), kim.XattrSet))
	s.ok(s.SetXattr(ctx, ino, "user.big", make([]byte, full), kim.XattrReplace))
	s.status(s.SetXattr(ctx, ino, "user.x", nil, kim.XattrSet), psa.StatusQuota)
	s.ok(s.SetXattr(ctx, ino+1, "user.x", []byte("another file"), kim.XattrSet))
	s.ok(s.RemoveXattr(ctx, ino, "user.big"))
	s.status(s.RemoveXattr(ctx, ino, "user.big"), psa.StatusDoesNotExist)
	s.ok(s.SetXattr(ctx, ino, "user.x", nil, kim.XattrSet))
	s.status(s.SetXattr(ctx, 99*256, "user.x", nil, kim.XattrSet), psa.StatusDoesNotExist)
	s.ready(k, "public", "")
	s.destroy(k.Number)
	if l, err := s.Xattrs(ctx, ino); err != nil || len(l) != 0 {
		t.Fatal("the labels outlived their key", l, err)
	}
}

func testAliases(t *testing.T, s *suite) {
	s.start()
	for _, n := range []string{"web", "api", "mail"} {
		a, err := s.CreateAlias(ctx, kim.Alias{Name: n, Target: "../providers/x/keys/" + n, UID: 7, GID: 8})
		s.ok(err)
		if a.Number == 0 || a.Changed.IsZero() {
			t.Fatalf("%+v", a)
		}
	}
	_, err := s.CreateAlias(ctx, kim.Alias{Name: "web", Target: "y"})
	s.status(err, psa.StatusAlreadyExists)
	s.ok(s.RenameAlias(ctx, "mail", "web"))
	s.ok(s.RenameAlias(ctx, "web", "web"))
	s.status(s.RenameAlias(ctx, "mail", "web"), psa.StatusDoesNotExist)
	s.status(s.RemoveAlias(ctx, "mail"), psa.StatusDoesNotExist)
	_, err = s.Alias(ctx, "mail")
	s.status(err, psa.StatusDoesNotExist)
	s.start()
	a, err := s.Alias(ctx, "web")
	s.ok(err)
	if a.Target != "../providers/x/keys/mail" || a.UID != 7 || a.GID != 8 {
		t.Fatalf("%+v", a)
	}
	all, err := s.Aliases(ctx, "", 10)
	s.ok(err)
	if len(all) != 2 || all[0].Name != "api" || all[1] != a {
		t.Fatalf("%+v", all)
	}
	if page, err := s.Aliases(ctx, "api", 10); err != nil || len(page) != 1 {
		t.Fatal(page, err)
	}
	if page, err := s.Aliases(ctx, "", 1); err != nil || len(page) != 1 {
		t.Fatal(page, err)
	}
}

func testDataKey(t *testing.T, s *suite) {
	s.bare = true
	s.start()
	if _, found, err := s.DataKey(ctx); found || err != nil {
		t.Fatal(found, err)
	}
	// check reads it twice, with a restart in between.
	check := func(want kim.WrappedKey) {
		t.Helper()
		for range 2 {
			read := s.DataKey
			if want.Kind == "recovery" {
				read = s.RecoveryKey
			}
			got, found, err := read(ctx)
			if err != nil || !found || got.Kind != want.Kind || got.WrappingID != want.WrappingID || !bytes.Equal(got.Wrapped, want.Wrapped) ||
				got.PCRs != want.PCRs || got.Before != want.Before {
				t.Fatalf("%+v %v %v, want %+v", got, found, err, want)
			}
			s.start()
		}
	}
	first := kim.WrappedKey{Kind: "file", WrappingID: [16]byte{1, 2}, Wrapped: []byte("wrapped")}
	s.status(s.ReplaceDataKey(ctx, first.WrappingID, first), psa.StatusBadState)
	s.ok(s.InitDataKey(ctx, first, rowKey()))
	s.status(s.InitDataKey(ctx, kim.WrappedKey{Kind: "other", Wrapped: []byte("x")}, rowKey()), psa.StatusAlreadyExists)
	check(first)

	// Of two that replace the same one, one wins.
	second := kim.WrappedKey{Kind: "tpm:p", WrappingID: [16]byte{3}, Wrapped: []byte("otherwise"), PCRs: 1<<0 | 1<<23, Before: first.WrappingID}
	s.ok(s.ReplaceDataKey(ctx, first.WrappingID, second))
	s.status(s.ReplaceDataKey(ctx, first.WrappingID, kim.WrappedKey{Kind: "file", WrappingID: [16]byte{4}, Wrapped: []byte("late")}), psa.StatusBadState)
	check(second)
	s.provider("p")
	s.provider("q")
	s.status(s.RenameProvider(ctx, "q", "p"), psa.StatusAlreadyExists)
	s.ok(s.RenameProvider(ctx, "p", "q"))
	second.Kind = "tpm:q"
	check(second)
	var won atomic.Int32
	var both sync.WaitGroup
	for i := range 8 {
		both.Go(func() {
			err := s.ReplaceDataKey(ctx, second.WrappingID, kim.WrappedKey{Kind: "file", WrappingID: [16]byte{5, byte(i)}, Wrapped: []byte("third")})
			if err == nil {
				won.Add(1)
			} else if psa.StatusOf(err) != psa.StatusBadState {
				t.Error(err)
			}
		})
	}
	both.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 8 replaced the same wrapping", won.Load())
	}

	if _, found, err := s.RecoveryKey(ctx); found || err != nil {
		t.Fatal(found, err)
	}
	for i := range 2 {
		r := kim.WrappedKey{Kind: "recovery", WrappingID: [16]byte{6, byte(i)}, Wrapped: fmt.Append(nil, "recovery ", i)}
		s.ok(s.SetRecoveryKey(ctx, r))
		check(r)
	}
}

// next waits for a watcher's change.
func next(t *testing.T, c chan kim.Change) kim.Change {
	t.Helper()
	select {
	case change := <-c:
		return change
	case <-time.After(30 * time.Second):
		t.Fatal("no change was reported")
		panic("unreachable")
	}
}

func testWatch(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	got := make(chan kim.Change, 1000)
	stop := s.Watch(func(c kim.Change) {
		if c.Kind == kim.KeyChanged {
			// The change is there for whoever is told.
			if k, err := s.KeyByNumber(ctx, c.Key); err == nil && k.State == kim.Creating {
				t.Errorf("%+v was reported before its end", k)
			}
		}
		got <- c
	})
	k := s.draft(p, "web")
	mode := uint32(0o600)
	ino := uint64(k.Number)*256 + 1
	expect := func(want kim.Change) {
		t.Helper()
		if c := next(t, got); c != want {
			t.Fatalf("%+v, want %+v", c, want)
		}
	}
	expect(kim.Change{Provider: p, Key: k.Number, Kind: kim.KeyChanged})
	s.ok(s.SetInode(ctx, kim.Inode{Ino: ino, Mode: &mode}))
	expect(kim.Change{Provider: p, Key: k.Number, Ino: ino, Kind: kim.InodeChanged})
	s.status(s.AbortCreate(ctx, k.Number), psa.StatusBadState) // reports nothing
	s.ok(s.Rename(ctx, k.Number, kim.Shared, "web"))           // nor does this
	s.ok(s.SetXattr(ctx, ino, "user.a", nil, kim.XattrSet))
	expect(kim.Change{Provider: p, Key: k.Number, Ino: ino, Kind: kim.InodeChanged})
	s.ok(s.RemoveDraft(ctx, k.Number, nil))
	expect(kim.Change{Provider: p, Key: k.Number, Kind: kim.KeyChanged})
	a, err := s.CreateAlias(ctx, kim.Alias{Name: "web", Target: "x"})
	s.ok(err)
	expect(kim.Change{Ino: uint64(a.Number) * 256, Kind: kim.AliasChanged})
	q := s.provider("tpm").Number
	expect(kim.Change{Provider: q, Kind: kim.ProviderChanged})

	// Numbers are given in the order of the commits, so that order shows in them.
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 20 {
				if _, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: fmt.Sprint(w, "-", i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	last := int64(0)
	for range 8 * 20 {
		c := next(t, got)
		if c.Key <= last {
			t.Fatalf("key %d was reported after %d", c.Key, last)
		}
		last = c.Key
	}
	wg.Wait()
	stop()
	stop()
	s.draft(p, "unseen")
	select {
	case c := <-got:
		t.Fatalf("%+v after the watch ended", c)
	default:
	}
}

func testSlowWatcher(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	k := s.draft(p, "web")
	got := make(chan kim.Change)
	stop := s.Watch(func(c kim.Change) { got <- c })
	quick := make(chan kim.Change, 10000)
	defer s.Watch(func(c kim.Change) { quick <- c })()
	// Exchange reports two changes in one commit.
	other := s.draft(p, "www")
	const commits = 2200
	for range commits {
		s.ok(s.Exchange(ctx, k.Number, other.Number))
	}
	for range commits*2 + 1 {
		if c := next(t, quick); c.Kind != kim.KeyChanged {
			t.Fatalf("%+v to a watcher that keeps up", c)
		}
	}
	all := false
	for i := 0; !all; i++ {
		if i > commits*2 {
			t.Fatal("changes were dropped without a word")
		}
		all = next(t, got).Kind == kim.AllChanged
	}
	go func() {
		for range got {
		}
	}()
	stop()
	close(got)
}

func testContext(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.InsertDraft(ended, kim.NewDraft{Provider: p, Name: "web"}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := s.Keys(ended, p, kim.Shared, "", 10); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if names(s.all(p)) != "" {
		t.Fatal("it was made all the same")
	}
	// Contexts that end at any moment leave a whole row or none.
	for i := range 50 {
		short, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(2000))*time.Microsecond)
		name := fmt.Sprint("k", i)
		_, err := s.InsertDraft(short, kim.NewDraft{Provider: p, Name: name})
		cancel()
		_, lookup := s.KeyByName(ctx, p, kim.Shared, name)
		if (err == nil) != (lookup == nil) {
			t.Fatalf("made: %v; there: %v", err, lookup)
		}
	}
}

func testSnapshot(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	kept := s.ready(s.draft(p, "kept"), "public", "sealed")
	quit := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 3 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-quit:
					return
				default:
				}
				// Two at a time, by one transaction each: a copy may lie between, never inside one.
				k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: fmt.Sprint(w, "-", i)})
				if err == nil && i%2 == 0 {
					err = s.RemoveDraft(ctx, k.Number, nil)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 5 {
		dir := t.TempDir()
		path := filepath.Join(dir, "kim.sqlite3")
		s.ok(s.Snapshot(ctx, path))
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Fatal(info.Mode(), err)
		}
		c := &suite{t: t, open: s.open, dir: dir}
		c.start()
		if k := c.key(kept.Number); k.ID != kept.ID || !k.Sealed {
			t.Fatalf("%+v", k)
		}
		if n, err := c.Count(ctx); err != nil || n != int64(len(c.all(p))) {
			t.Fatalf("count %d, %d keys: %v", n, len(c.all(p)), err)
		}
	}
	close(quit)
	wg.Wait()
	taken := filepath.Join(t.TempDir(), "taken")
	s.ok(os.WriteFile(taken, []byte("mine"), 0o600))
	if err := s.Snapshot(ctx, taken); err == nil {
		t.Fatal("a snapshot was written over a file")
	}
	if b, err := os.ReadFile(taken); err != nil || string(b) != "mine" {
		t.Fatalf("%q %v", b, err)
	}
}

func testClosed(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	stop := s.Watch(func(kim.Change) {})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				if _, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: fmt.Sprint(w, "-", i)}); err != nil {
					if psa.StatusOf(err) != psa.StatusBadState {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	_, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: "web"})
	s.ok(err)
	s.ok(s.Close())
	s.ok(s.Close())
	wg.Wait()
	stop()
	_, err = s.Keys(ctx, p, kim.Shared, "", 1)
	s.status(err, psa.StatusBadState)
	s.status(s.Rename(ctx, 1, kim.Shared, "x"), psa.StatusBadState)
	s.start()
	if _, err := s.KeyByName(ctx, p, kim.Shared, "web"); err != nil {
		t.Fatal(err)
	}
}

func testOwner(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	owner := func(uid uint32) *uint32 { return &uid }
	k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: "web", UID: 1, GID: 1, Inodes: []kim.Inode{
		{Ino: 0, UID: owner(1), GID: owner(9)}, {Ino: 16, UID: owner(2), GID: owner(2)}}})
	s.ok(err)
	s.ok(s.SetOwner(ctx, k.Number, 1, 5, 6))
	if k = s.key(k.Number); k.UID != 5 || k.GID != 6 {
		t.Fatalf("%+v", k)
	}
	for ino, want := range map[uint64][2]uint32{0: {5, 6}, 16: {2, 2}} {
		i, _, err := s.Inode(ctx, uint64(k.Number)*256+ino)
		s.ok(err)
		if *i.UID != want[0] || *i.GID != want[1] {
			t.Fatalf("file %d belongs to %d, %d", ino, *i.UID, *i.GID)
		}
	}
	for uid, want := range map[uint32]int64{1: 0, 5: 1} {
		if n, err := s.CountOf(ctx, uid); err != nil || n != want {
			t.Fatalf("user %d has %d keys, %v", uid, n, err)
		}
	}
	// Of what is another's only the files that are theirs change hands.
	s.ok(s.SetOwner(ctx, k.Number, 2, 7, 7))
	if k = s.key(k.Number); k.UID != 5 {
		t.Fatalf("%+v", k)
	}
	if i, _, err := s.Inode(ctx, uint64(k.Number)*256+16); err != nil || *i.UID != 7 {
		t.Fatalf("%+v, %v", i, err)
	}
	s.status(s.SetOwner(ctx, k.Number+1000, 5, 7, 7), psa.StatusDoesNotExist)
	s.status(s.SetOwner(ctx, k.Number, 8, 9, 9), psa.StatusDoesNotExist)

	// Nothing of the old owner is left: no group of files that were theirs by default, and no entry in an ACL of theirs.
	acl := func(users ...uint32) []byte {
		b := []byte{2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255}
		for _, uid := range users {
			b = binary.LittleEndian.AppendUint32(append(b, 2, 0, 6, 0), uid)
		}
		return append(b, 4, 0, 0, 0, 255, 255, 255, 255, 16, 0, 6, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255)
	}
	k, err = s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: "www", UID: 1, GID: 1, Inodes: []kim.Inode{
		{Ino: 0, ACL: acl(1, 3), DefaultACL: acl(1)},
		{Ino: 16, GID: owner(8), ACL: acl(1, 3)},
		{Ino: 17, UID: owner(1), ACL: acl(3)},
		{Ino: 18, UID: owner(2), GID: owner(2), ACL: acl(1, 2)}}})
	s.ok(err)
	s.ready(k, "public", "")
	// The draft had none of the last two files.
	s.give(k, 17, 1, 1)
	s.give(k, 18, 2, 2)
	s.ok(s.SetOwner(ctx, k.Number, 1, 5, 6))
	s.belongs(k, 5, 6, 0, 1, 16, 17, 20)
	s.belongs(k, 2, 2, 18)
	for ino, want := range map[uint64][2][]byte{0: {acl(3), acl()}, 16: {acl(3)}, 17: {acl(3)}, 18: {acl(1, 2)}} {
		if i, _, _ := s.file(k, ino); !bytes.Equal(i.ACL, want[0]) || !bytes.Equal(i.DefaultACL, want[1]) {
			t.Errorf("file %d has the ACLs %x and %x", ino, i.ACL, i.DefaultACL)
		}
	}
}

// file is one inode of a key, with the owners that count for it.
func (s *suite) file(k kim.Key, number uint64) (i kim.Inode, uid, gid uint32) {
	s.t.Helper()
	i, _, err := s.Inode(ctx, uint64(k.Number)*256+number)
	s.ok(err)
	k = s.key(k.Number)
	uid, gid = k.UID, k.GID
	if i.UID != nil {
		uid = *i.UID
	}
	if i.GID != nil {
		gid = *i.GID
	}
	return i, uid, gid
}

// give is chown(2) of one inode of a key.
func (s *suite) give(k kim.Key, number uint64, uid, gid uint32) {
	s.t.Helper()
	i, _, err := s.Inode(ctx, uint64(k.Number)*256+number)
	s.ok(err)
	i.Ino, i.UID, i.GID = uint64(k.Number)*256+number, &uid, &gid
	s.ok(s.SetInode(ctx, i))
}

func (s *suite) belongs(k kim.Key, uid, gid uint32, files ...uint64) {
	s.t.Helper()
	for _, n := range files {
		if _, u, g := s.file(k, n); u != uid || g != gid {
			s.t.Errorf("file %d of %s belongs to %d:%d, not to %d:%d", n, k.Name, u, g, uid, gid)
		}
	}
}

func (s *suite) counts(want map[uint32]int64) {
	s.t.Helper()
	for uid, n := range want {
		if got, err := s.CountOf(ctx, uid); err != nil || got != n {
			s.t.Errorf("user %d has %d keys, not %d: %v", uid, got, n, err)
		}
	}
}

// testHandedOver: what comes into being with a key belongs to its directory's owner at that moment, whoever made the draft.
func testHandedOver(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	const maker, owner = 2003, 2002
	mode := uint32(0o600)
	draft := func(name string) kim.Key {
		t.Helper()
		k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: name, UID: maker, GID: maker, Quota: 100,
			Inodes: []kim.Inode{{Ino: 26, Mode: &mode}}})
		s.ok(err)
		return k
	}
	made := []uint64{2, 5, 16, 26, 255} // of files that come into being with a key
	ways := map[string]func(k kim.Key){
		"generated": func(k kim.Key) { s.ready(k, "public", "sealed") },
		"adopted": func(k kim.Key) {
			s.ok(s.Adopt(ctx, k.Number, kim.Adoption{Handle: newHandle(), Template: "ed25519", Attributes: ed25519, Device: "token", Object: k.Name}))
		},
		"at the second try": func(k kim.Key) {
			_, err := s.BeginCreate(ctx, k.Number, newHandle(), "ed25519", ed25519, kim.Generated)
			s.ok(err)
			s.start()
			s.ok(s.AbortCreate(ctx, k.Number))
			s.belongs(k, maker, maker, made...) // it is still the maker's draft
			s.belongs(k, owner, owner, 0)
			s.ready(k, "public", "sealed")
		},
	}
	n := int64(0)
	for way, make := range ways {
		k := draft(way)
		s.give(k, 0, owner, owner)
		s.give(k, 3, 2001, 2001)
		s.counts(map[uint32]int64{maker: 1, owner: n})
		make(k)
		n++
		s.belongs(k, owner, owner, append(made, 0)...)
		s.belongs(k, maker, maker, kim.KeptFiles[:]...)
		if i, _, _ := s.file(k, 26); i.Mode == nil || *i.Mode != mode {
			t.Errorf("%s: a mode is gone: %+v", way, i)
		}
		s.counts(map[uint32]int64{maker: 0, owner: n})
		s.start()
		s.belongs(k, owner, owner, append(made, 0)...)
		s.counts(map[uint32]int64{maker: 0, owner: n})
	}

	// Given away while it is being made, and a file of the draft's too; what was the owner's alone stays.
	late := draft("late")
	_, err := s.BeginCreate(ctx, late.Number, newHandle(), "ed25519", ed25519, kim.Imported)
	s.ok(err)
	s.give(late, 0, owner, 77)
	s.give(late, 1, 2001, 2001)
	s.ok(s.FinishCreate(ctx, late.Number, []byte("public"), nil))
	s.belongs(late, owner, 77, append(made, 0)...)
	s.belongs(late, 2001, 2001, 1)
	s.belongs(late, maker, maker, 7)

	// Only its group was given away.
	group := draft("group")
	_, err = s.BeginCreate(ctx, group.Number, newHandle(), "ed25519", ed25519, kim.Imported)
	s.ok(err)
	s.give(group, 0, maker, 77)
	s.ok(s.FinishCreate(ctx, group.Number, []byte("public"), nil))
	s.belongs(group, maker, 77, append(made, 0)...)
	s.belongs(group, maker, maker, kim.KeptFiles[:]...)

	// A ready key that is given away stays its maker's but for the directory, as chown(2) says.
	own := draft("own")
	s.ready(own, "public", "sealed")
	s.give(own, 0, owner, owner)
	s.belongs(own, maker, maker, made...)
	s.counts(map[uint32]int64{maker: 2, owner: n + 1})

	// The owner of a handed over draft may make no more than their own quota, and its maker again as many.
	_, err = s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: "more", UID: owner, Quota: int(n) + 1})
	s.status(err, psa.StatusQuota)
	s.destroy(late.Number)
	s.counts(map[uint32]int64{maker: 2, owner: n})
}

// testNobodyOwns: -1, which chown(2) means "unchanged" by, owns nothing.
func testNobodyOwns(t *testing.T, s *suite) {
	s.start()
	p := s.provider("software").Number
	k := s.draft(p, "web")
	nobody, somebody := ^uint32(0), uint32(5)
	for _, o := range [][2]uint32{{nobody, nobody}, {nobody, somebody}, {somebody, nobody}} {
		s.status(s.SetOwner(ctx, k.Number, 1000, o[0], o[1]), psa.StatusInvalidArgument)
		_, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p, Name: "other", UID: o[0], GID: o[1]})
		s.status(err, psa.StatusInvalidArgument)
		_, err = s.CreateAlias(ctx, kim.Alias{Name: "link", Target: "../x", UID: o[0], GID: o[1]})
		s.status(err, psa.StatusInvalidArgument)
	}
	s.belongs(k, 1000, 100, 0, 16)
	s.counts(map[uint32]int64{1000: 1, nobody: 0})
}
