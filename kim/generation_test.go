package kim_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// counted is a store that a TPM wraps, and so counts.
type counted struct {
	t    *testing.T
	chip *tpmtest.Chip
	o    kim.Options
	k    *kim.KIM
	key  kim.Key
	file string
}

func newCounted(t *testing.T) *counted {
	t.Helper()
	chip := tpmtest.Start(t)
	c := &counted{t: t, chip: chip, o: kim.Options{Dir: filepath.Join(t.TempDir(), "state"), Providers: []kim.ProviderConfig{softwareConfig("software"), tpmConfig("chip", chip)}}}
	c.file = filepath.Join(c.o.Dir, "kim.sqlite3")
	c.k = open(t, c.o)
	c.key = generate(t, c.k, c.k.Provider("software"), "web", p256)
	must(t, c.k.Rewrap(ctx, kim.Rewrapping{Kind: "tpm:chip", Recovery: newRecoveryKey(t)}))
	return c
}

// restart opens the store again, which may be closed already.
func (c *counted) restart() {
	c.t.Helper()
	if err := c.k.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		c.t.Fatal(err)
	}
	c.k = open(c.t, c.o)
	await(c.t, c.k, "the TPM has answered", func() bool {
		return !strings.Contains(c.k.Provider("software").Status(context.Background()), "the provider has not responded yet")
	})
}

func (c *counted) read() []byte {
	c.t.Helper()
	must(c.t, c.k.Close())
	b, err := os.ReadFile(c.file)
	must(c.t, err)
	return b
}

func (c *counted) put(b []byte) {
	c.t.Helper()
	if err := c.k.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		c.t.Fatal(err)
	}
	must(c.t, os.WriteFile(c.file, b, 0o600))
	c.restart()
}

// TestOldCopy: yesterday's file put back is noticed where a TPM counts, and root alone takes it as it is.
func TestOldCopy(t *testing.T) {
	c := newCounted(t)
	must(t, signs(c.k, c.key))
	c.restart()
	must(t, signs(c.k, c.key))
	yesterday := c.read()
	c.restart()
	must(t, c.k.Destroy(ctx, c.key.Number, 1000))
	today := c.read()
	c.put(yesterday)
	wantStatus(t, signs(c.k, c.key), psa.StatusProviderAbsent)
	_, err := c.k.Provider("software").CreateDraft(ctx, kim.Shared, "new", 1000, 1000, 0o755)
	wantStatus(t, err, psa.StatusProviderAbsent)
	wantStatus(t, c.k.SetUnits(ctx, c.key.Number, nil), psa.StatusProviderAbsent)
	if s := c.k.Provider("software").Status(ctx); !strings.Contains(s, "the KIM was replaced") || !strings.Contains(s, "accept-loss") {
		t.Errorf("the status is %q", s)
	}
	c.restart()
	wantStatus(t, signs(c.k, c.key), psa.StatusProviderAbsent)
	// What was there is as good as before.
	c.put(today)
	if _, err := c.k.Key(ctx, c.key.Number); psa.StatusOf(err) != psa.StatusDoesNotExist {
		t.Errorf("the destroyed key: %v", err)
	}
	wantStatus(t, c.k.AcceptLoss(ctx), psa.StatusBadState)
	generate(t, c.k, c.k.Provider("software"), "another", p256)
	// Root restored a backup.
	c.put(yesterday)
	must(t, c.k.AcceptLoss(ctx), signs(c.k, c.key))
	c.restart()
	must(t, signs(c.k, c.key))
	today = c.read()
	c.restart()
	c.put(today)
	wantStatus(t, signs(c.k, c.key), psa.StatusProviderAbsent)
}

// TestGenerationMoves: what rewraps the data key takes the counter along.
func TestGenerationMoves(t *testing.T) {
	c := newCounted(t)
	recovery := newRecoveryKey(t)
	for _, r := range []kim.Rewrapping{
		{Kind: "tpm:chip"},
		{Kind: "tpm:chip", NewDataKey: true, Recovery: recovery},
		{Kind: "file"},
		{Kind: "tpm:chip", Recovery: recovery},
	} {
		must(t, c.k.Rewrap(ctx, r), signs(c.k, c.key))
		c.restart()
		must(t, signs(c.k, c.key))
	}
	before := c.read()
	c.restart()
	must(t, signs(c.k, c.key))
	c.put(before)
	wantStatus(t, signs(c.k, c.key), psa.StatusProviderAbsent)
	// Its TPM is lost: the recovery key opens it for another one.
	c.chip.Exchange()
	c.restart()
	wantStatus(t, signs(c.k, c.key), psa.StatusProviderAbsent)
	must(t, c.k.Rewrap(ctx, kim.Rewrapping{Kind: "file", Recovery: recovery}), signs(c.k, c.key))
}

// TestGenerationSteps: a copy of before many changes is noticed without a start in between.
func TestGenerationSteps(t *testing.T) {
	c := newCounted(t) // it counts from the rewrap on
	snapshot := filepath.Join(t.TempDir(), "copy")
	b, err := os.ReadFile(c.file)
	must(t, err)
	must(t, os.WriteFile(snapshot, b, 0o600))
	wal, err := os.ReadFile(c.file + "-wal")
	must(t, err)
	for i := range 1100 {
		mode := uint32(0o600 + i%8)
		must(t, c.k.SetInode(ctx, kim.Inode{Ino: uint64(c.key.Number)*256 + 16, Mode: &mode}))
	}
	must(t, c.k.Close())
	must(t, os.WriteFile(c.file, b, 0o600), os.WriteFile(c.file+"-wal", wal, 0o600))
	c.k = open(t, c.o)
	await(t, c.k, "it is noticed", func() bool { return strings.Contains(c.k.Provider("chip").Status(ctx), "the KIM was replaced") })
	wantStatus(t, signs(c.k, c.key), psa.StatusProviderAbsent)
}
