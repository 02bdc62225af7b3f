package kim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/providertest/outside"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// device is an outside provider's server, which can be switched off and exchanged.
type device struct {
	t       *testing.T
	objects string // where it keeps them
	socket  string
	stop    func()
}

func newDevice(t *testing.T) *device {
	d := &device{t: t, objects: filepath.Join(t.TempDir(), "objects"), socket: filepath.Join(t.TempDir(), "s")}
	d.on(d.objects)
	t.Cleanup(func() { d.off() })
	return d
}

func (d *device) on(objects string) {
	d.t.Helper()
	ctx, cancel := context.WithCancel(ctx)
	ready, served := make(chan struct{}), make(chan error, 1)
	go func() { served <- outside.Serve(ctx, objects, d.socket, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-served:
		d.t.Fatal(err)
	}
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; err != nil && !errors.Is(err, context.Canceled) {
			d.t.Error(err)
		}
	})
}

func (d *device) off() { d.stop() }

func (d *device) fault(lines string) {
	d.t.Helper()
	if err := outside.SetFault(d.objects, lines); err != nil {
		d.t.Fatal(err)
	}
}

func (d *device) holds() []string {
	d.t.Helper()
	list, err := outside.Objects(d.objects)
	if err != nil {
		d.t.Fatal(err)
	}
	return list
}

func (d *device) config() kim.ProviderConfig {
	return kim.ProviderConfig{Name: "outside", Type: outside.Type.Name, Mode: 0o755,
		Open: func(ctx context.Context, dir, _ string) (providers.Provider, error) {
			return outside.Type.New(ctx, providers.Config{Name: "outside", StateDir: dir, Settings: map[string]any{"socket": d.socket}})
		}}
}

func (d *device) open(change func(*kim.Options)) (*kim.KIM, *kim.Provider) {
	d.t.Helper()
	o := kim.Options{Dir: filepath.Join(d.t.TempDir(), "state"), Providers: []kim.ProviderConfig{d.config()}}
	if change != nil {
		change(&o)
	}
	k := open(d.t, o)
	return k, k.Provider("outside")
}

// await waits for the store to come to a state, from change to change.
func await(t *testing.T, k *kim.KIM, what string, reached func() bool) {
	t.Helper()
	changes := make(chan struct{}, 1)
	stop := k.Watch(func(kim.Change) {
		select {
		case changes <- struct{}{}:
		default:
		}
	})
	defer stop()
	// How a device is and whether the data key is there are no changes of the store: nothing tells of them.
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	deadline := time.After(30 * time.Second)
	for !reached() {
		select {
		case <-changes:
		case <-again.C:
		case <-deadline:
			t.Fatalf("never came: %s", what)
		}
	}
}

func wantStatus(t *testing.T, err error, want psa.Status) {
	t.Helper()
	if got := psa.StatusOf(err); got != want {
		t.Fatalf("got %v (%v), want %v", got, err, want)
	}
}

const p256 = "ecdsa-p256-sha256"

func try(t *testing.T, k *kim.KIM, number int64) error {
	t.Helper()
	a, err := psa.ParseTemplate(p256)
	if err != nil {
		t.Fatal(err)
	}
	return k.Generate(ctx, number, 1000, p256, a, nil)
}

func newDraft(t *testing.T, p *kim.Provider, name string) kim.Key {
	t.Helper()
	key, err := p.CreateDraft(ctx, kim.Shared, name, 1000, 1000, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// isDraft, isGone look a name up.
func isDraft(p *kim.Provider, name string) func() bool {
	return func() bool {
		key, err := p.Lookup(ctx, kim.Shared, name)
		return err == nil && key.State == kim.Draft
	}
}

func isGone(p *kim.Provider, name string) func() bool {
	return func() bool {
		_, err := p.Lookup(ctx, kim.Shared, name)
		return psa.StatusOf(err) == psa.StatusDoesNotExist
	}
}

// hidden checks that a name is neither listed nor free nor usable.
func hidden(t *testing.T, k *kim.KIM, p *kim.Provider, key kim.Key) {
	t.Helper()
	_, err := p.Lookup(ctx, kim.Shared, key.Name)
	wantStatus(t, err, psa.StatusBadState)
	_, err = p.CreateDraft(ctx, kim.Shared, key.Name, 1, 1, 0)
	wantStatus(t, err, psa.StatusBadState)
	wantStatus(t, k.Destroy(ctx, key.Number, 1000), psa.StatusBadState)
	wantStatus(t, try(t, k, key.Number), psa.StatusBadState)
	list, err := p.List(ctx, kim.Shared, "", 100)
	if err != nil || slices.ContainsFunc(list, func(k kim.Key) bool { return k.Name == key.Name }) {
		t.Fatalf("listed: %v, %v", list, err)
	}
}

func TestDefiniteFailureLeavesTheDraft(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	key := newDraft(t, p, "web")
	d.fault("create fail")
	wantStatus(t, try(t, k, key.Number), psa.StatusInsufficientStorage)
	if !isDraft(p, "web")() || len(d.holds()) != 0 {
		t.Fatalf("objects: %v", d.holds())
	}
	d.fault("")
	if err := try(t, k, key.Number); err != nil {
		t.Fatal(err)
	}
	key, _ = p.Lookup(ctx, kim.Shared, "web")
	if err := signs(k, key); err != nil {
		t.Fatal(err)
	}
	d.fault("destroy fail")
	if err := k.Destroy(ctx, key.Number, 1000); err == nil {
		t.Fatal("destroyed")
	}
	d.fault("")
	if err := signs(k, key); err != nil {
		t.Fatalf("after a destruction that failed: %v", err)
	}
}

func TestUnknownOutcomeIsUndone(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	key := newDraft(t, p, "web")
	d.fault("create lost\ndestroy fail")
	if err := try(t, k, key.Number); !psa.OutcomeUnknown(err) {
		t.Fatal(err)
	}
	hidden(t, k, p, key)
	d.fault("")
	await(t, k, "the draft is back", isDraft(p, "web"))
	if left := d.holds(); len(left) != 0 {
		t.Fatalf("objects without a row: %v", left)
	}
	if err := try(t, k, key.Number); err != nil {
		t.Fatal(err)
	}
	d.fault("destroy lost\nidentity fail")
	// The device must answer before anything is begun.
	wantStatus(t, k.Destroy(ctx, key.Number, 1000), psa.StatusProviderAbsent)
	d.fault("destroy lost")
	if status := p.Status(ctx); !strings.HasPrefix(status, "ready") {
		t.Fatal(status)
	}
	err := k.Destroy(ctx, key.Number, 1000)
	if !psa.OutcomeUnknown(err) {
		t.Fatal(err)
	}
	d.fault("")
	await(t, k, "the destruction is finished", isGone(p, "web"))
	if left := d.holds(); len(left) != 0 {
		t.Fatalf("objects without a row: %v", left)
	}
}

func TestLateSuccessIsUndone(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(func(o *kim.Options) { o.GenerateTimeout = 100 * time.Millisecond })
	key := newDraft(t, p, "web")
	d.fault("create delay 1s")
	wantStatus(t, try(t, k, key.Number), psa.StatusTimeout)
	d.fault("")
	await(t, k, "the draft is back", isDraft(p, "web"))
	if left := d.holds(); len(left) != 0 {
		t.Fatalf("objects without a row: %v", left)
	}
}

func TestDeviceGoesAndComesBack(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	key := generate(t, k, p, "web", p256)
	d.off()
	wantStatus(t, signs(k, key), psa.StatusProviderAbsent)
	wantStatus(t, k.Destroy(ctx, key.Number, 1000), psa.StatusProviderAbsent)
	if status := p.Status(ctx); !strings.HasPrefix(status, "degraded: ") {
		t.Fatal(status)
	}
	if list, err := p.List(ctx, kim.Shared, "", 10); err != nil || len(list) != 1 {
		t.Fatalf("%v, %v", list, err)
	}
	// Another device takes its place: nothing on it is touched, and nothing of ours is lost.
	other := filepath.Join(t.TempDir(), "other")
	d.on(other)
	if status := p.Status(ctx); !strings.Contains(status, "another device") {
		t.Fatal(status)
	}
	wantStatus(t, signs(k, key), psa.StatusProviderAbsent)
	wantStatus(t, k.Destroy(ctx, key.Number, 1000), psa.StatusProviderAbsent)
	draft := newDraft(t, p, "new")
	wantStatus(t, try(t, k, draft.Number), psa.StatusProviderAbsent)
	if list, err := outside.Objects(other); err != nil || len(list) != 0 {
		t.Fatalf("%v, %v", list, err)
	}
	d.off()
	d.on(d.objects)
	if status := p.Status(ctx); status != "ready" {
		t.Fatal(status)
	}
	if err := signs(k, key); err != nil {
		t.Fatal(err)
	}
	if err := k.Destroy(ctx, key.Number, 1000); err != nil || len(d.holds()) != 0 {
		t.Fatal(err, d.holds())
	}
}

// TestStartWithoutTheDevice: nothing stops the start, and what a crash left is settled when the device is there.
func TestStartWithoutTheDevice(t *testing.T) {
	d := newDevice(t)
	dir := filepath.Join(t.TempDir(), "state")
	same := func(o *kim.Options) { o.Dir = dir }
	k, p := d.open(same)
	kept := generate(t, k, p, "kept", p256)
	lost := newDraft(t, p, "lost")
	d.fault("create lost\ndestroy fail")
	if err := try(t, k, lost.Number); !psa.OutcomeUnknown(err) {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	d.fault("")
	d.off()
	k, p = d.open(same)
	if len(k.Warnings()) < 2 || !slices.ContainsFunc(k.Warnings(), func(w string) bool { return strings.Contains(w, "provider outside is degraded") }) {
		t.Errorf("warnings: %q", k.Warnings())
	}
	hidden(t, k, p, lost)
	if len(p.Capabilities()) == 0 {
		t.Error("the capabilities were forgotten")
	}
	if key, err := p.Lookup(ctx, kim.Shared, "kept"); err != nil || key.State != kim.Ready {
		t.Fatalf("%+v, %v", key, err)
	}
	wantStatus(t, signs(k, kept), psa.StatusProviderAbsent)
	d.on(d.objects)
	await(t, k, "the draft is back", isDraft(p, "lost"))
	if err := signs(k, kept); err != nil {
		t.Fatal(err)
	}
	if len(d.holds()) != 1 {
		t.Fatalf("objects: %v", d.holds())
	}
}

// TestObjectGone: a key whose object somebody removed stays listed, says so, and can be removed.
func TestObjectGone(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	key := generate(t, k, p, "web", p256)
	if err := os.Remove(filepath.Join(d.objects, d.holds()[0])); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, signs(k, key), psa.StatusDoesNotExist)
	if _, err := p.Lookup(ctx, kim.Shared, "web"); err != nil {
		t.Fatal(err)
	}
	if err := k.Destroy(ctx, key.Number, 1000); err != nil {
		t.Fatal(err)
	}
}

// TestOneCreatorWins: many who make a key of one draft get one key.
func TestOneCreatorWins(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	key := newDraft(t, p, "web")
	ed, err := psa.ParseTemplate("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	d.fault("create delay 50ms")
	var wg sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		wg.Go(func() {
			if i%2 == 0 {
				errs[i] = k.Generate(ctx, key.Number, uint32(i), "ed25519", ed, nil)
			} else {
				errs[i] = try(t, k, key.Number)
			}
		})
	}
	wg.Wait()
	key, err = k.Key(ctx, key.Number)
	if err != nil || key.State != kim.Ready || len(d.holds()) != 1 {
		t.Fatalf("%+v, %v, %v", key, err, d.holds())
	}
	for i, err := range errs {
		asked := p256
		if i%2 == 0 {
			asked = "ed25519"
		}
		if (err == nil) != (asked == key.Template) {
			t.Errorf("%d asked for %s, the key is %s: %v", i, asked, key.Template, err)
		}
		if err != nil {
			wantStatus(t, err, psa.StatusBadState)
		}
	}
}

// TestWhoLeavesMayComeBack: who asks again while an import is under way gets its result; another key is refused.
func TestWhoLeavesMayComeBack(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	key := newDraft(t, p, "web")
	d.fault("create delay 200ms")
	a, err := psa.ParseTemplate(p256)
	if err != nil {
		t.Fatal(err)
	}
	leaving, leave := context.WithCancel(ctx)
	leave()
	wantStatus(t, k.Generate(leaving, key.Number, 1000, p256, a, nil), psa.StatusTimeout)
	if err := try(t, k, key.Number); err != nil {
		t.Fatal(err)
	}
	if key, err := k.Key(ctx, key.Number); err != nil || signs(k, key) != nil || len(d.holds()) != 1 {
		t.Fatalf("%+v, %v", key, err)
	}
}

// TestBackupIsQuiet: a backup taken while keys come and go never holds a key whose object recovery would destroy.
func TestBackupIsQuiet(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	d.fault("create delay 20ms\ndestroy delay 20ms")
	quit := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-quit:
					return
				default:
				}
				key := generate(t, k, p, fmt.Sprint("k", w, "-", i), p256)
				if i%2 == 0 {
					if err := k.Destroy(ctx, key.Number, 1000); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	var copies []bytes.Buffer
	for range 5 {
		var b bytes.Buffer
		if err := k.Backup(ctx, &b); err != nil {
			t.Error(err)
		}
		copies = append(copies, b)
	}
	close(quit)
	wg.Wait()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	d.fault("")
	before := d.holds()
	for _, c := range copies {
		dir := filepath.Join(t.TempDir(), "restored")
		if err := kim.Restore(ctx, dir, &c); err != nil {
			t.Fatal(err)
		}
		k, p := d.open(func(o *kim.Options) { o.Dir = dir })
		list, err := p.List(ctx, kim.Shared, "", 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range list {
			// Those that were destroyed since have no object; a draft is a key that was not made yet.
			if key.State == kim.Ready && slices.Contains(before, fmt.Sprintf("%x", key.Handle[:])) {
				if err := signs(k, key); err != nil {
					t.Errorf("%s: %v", key.Name, err)
				}
			}
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		if after := d.holds(); !slices.Equal(before, after) {
			t.Fatalf("a restored backup changed the objects from %v to %v", before, after)
		}
	}
}

// TestRecoveryIsNotInTheWay: it looks at each row of the journal, also at those that are settled a moment later, and
// nobody is refused because of it.
func TestRecoveryIsNotInTheWay(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 100 {
				key := generate(t, k, p, fmt.Sprint("k", w, "-", i), p256)
				if err := k.Destroy(ctx, key.Number, 1000); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestWrappingKeyIsNeverReplaced: without it secrets stay sealed, and with it again they open.
func TestWrappingKeyIsNeverReplaced(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	o := kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}}
	k := open(t, o)
	key := generate(t, k, k.Default(), "web", p256)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	file, away := filepath.Join(dir, "wrapping.key"), filepath.Join(t.TempDir(), "away")
	right, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	other := bytes.Replace(right, []byte("key "), []byte("key 0"), 1)[:len(right)]
	other[len(other)-1] = '\n'
	for what, content := range map[string][]byte{"missing": nil, "cut": right[:50], "empty": {}, "another": other} {
		if err := os.Rename(file, away); err != nil {
			t.Fatal(err)
		}
		if content != nil {
			if err := os.WriteFile(file, content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k := open(t, o)
		p := k.Default()
		wantStatus(t, signs(k, key), psa.StatusProviderAbsent)
		if status := p.Status(ctx); !strings.HasPrefix(status, "degraded: ") || !strings.Contains(status, "wrapping key") {
			t.Errorf("%s: %s", what, status)
		}
		// What cannot be proven later is not stored.
		_, err := p.CreateDraft(ctx, kim.Shared, "new", 1000, 1000, 0o755)
		wantStatus(t, err, psa.StatusProviderAbsent)
		wantStatus(t, k.SetUnits(ctx, key.Number, []string{"web.service"}), psa.StatusProviderAbsent)
		wantStatus(t, k.Destroy(ctx, key.Number, 1000), psa.StatusProviderAbsent)
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(file); !bytes.Equal(b, content) || (content == nil) != errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s: the file is %q now, %v", what, b, err)
		}
		if err := os.Rename(away, file); err != nil {
			t.Fatal(err)
		}
	}
	k = open(t, o)
	if err := signs(k, key); err != nil {
		t.Fatal(err)
	}
}

// TestAdoption takes a key over that lies on the device, forgets it, takes it over again and destroys it there.
func TestAdoption(t *testing.T) {
	d := newDevice(t)
	a, err := psa.DefaultTemplate(psa.ECCKeyPair(psa.SECPR1), 256)
	if err != nil {
		t.Fatal(err)
	}
	reference, err := outside.AddForeign(ctx, d.objects, "theirs", a)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "state")
	k, p := d.open(func(o *kim.Options) { o.Dir = dir })
	made := generate(t, k, p, "made", p256)
	list := func(p *kim.Provider) (lines []string) {
		t.Helper()
		all, err := p.Foreign(ctx, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range all {
			lines = append(lines, fmt.Sprintf("%s of %q", f.Object, f.Holder))
		}
		slices.Sort(lines)
		return lines
	}
	own := fmt.Sprintf("id=%x", made.Handle)
	if got, want := list(p), []string{own + ` of "made"`, reference + ` of ""`}; !slices.Equal(got, want) {
		t.Fatalf("%q; want %q", got, want)
	}
	key := newDraft(t, p, "web")
	wantStatus(t, k.Adopt(ctx, key.Number, 0, psa.Attributes{}, reference+"x"), psa.StatusDoesNotExist)
	wantStatus(t, k.Adopt(ctx, key.Number, 0, psa.Attributes{}, own), psa.StatusAlreadyExists)
	if !isDraft(p, "web")() {
		t.Fatal("what failed left no draft")
	}
	if err := k.Adopt(ctx, key.Number, 0, psa.Attributes{}, reference); err != nil {
		t.Fatal(err)
	}
	if key, err = k.Key(ctx, key.Number); err != nil || signs(k, key) != nil {
		t.Fatal(err, signs(k, key))
	}
	wantStatus(t, k.Adopt(ctx, newDraft(t, p, "again").Number, 0, psa.Attributes{}, reference), psa.StatusAlreadyExists)
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	// the device is away while the key is forgotten, and keeps it
	k, p = d.open(func(o *kim.Options) { o.Dir = dir })
	if err := signs(k, key); err != nil {
		t.Fatalf("after a restart: %v", err)
	}
	d.off()
	if err := k.Destroy(ctx, key.Number, 0); err != nil {
		t.Fatal(err)
	}
	wantStatus(t, signs(k, key), psa.StatusDoesNotExist)
	d.on(d.objects)
	if got := list(p); !slices.Contains(got, reference+` of ""`) {
		t.Fatalf("after it was forgotten: %q", got)
	}
	key = newDraft(t, p, "web")
	if err := k.Adopt(ctx, key.Number, 0, psa.Attributes{}, reference); err != nil {
		t.Fatal(err)
	}
	if err := k.SetAllowDestroy(ctx, key.Number, true); err != nil {
		t.Fatal(err)
	}
	// destroyed, but nobody was told so: recovery finds out
	d.fault("destroy lost")
	wantStatus(t, k.Destroy(ctx, key.Number, 0), psa.StatusCommunicationFailure)
	d.fault("")
	await(t, k, "the key is gone", isGone(p, "web"))
	if got, want := list(p), []string{own + ` of "made"`}; !slices.Equal(got, want) {
		t.Fatalf("in the end: %q; want %q", got, want)
	}
	if err := signs(k, made); err != nil {
		t.Fatal(err)
	}
}

// TestIdentityGrows: a device that says more of itself than before is the same one, one that says less is another.
func TestIdentityGrows(t *testing.T) {
	d := newDevice(t)
	k, p := d.open(nil)
	key := generate(t, k, p, "web", p256)
	file := filepath.Join(d.objects, "identity")
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		identity string
		want     psa.Status
	}{
		{string(before) + "#more", psa.StatusSuccess},
		{string(before), psa.StatusProviderAbsent},
		{string(before) + "#other", psa.StatusProviderAbsent},
		{string(before) + "#more", psa.StatusSuccess},
	} {
		d.off()
		if err := os.WriteFile(file, []byte(step.identity), 0o600); err != nil {
			t.Fatal(err)
		}
		d.on(d.objects)
		p.Status(ctx) // looks at it
		wantStatus(t, signs(k, key), step.want)
		wantStatus(t, try(t, k, newDraft(t, p, fmt.Sprint("new ", i)).Number), step.want)
	}
}
