package kim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

func tpmConfig(name string, chip *tpmtest.Chip) kim.ProviderConfig {
	return kim.ProviderConfig{Name: name, Type: tpm.Type.Name, Mode: 0o755,
		Open: func(ctx context.Context, dir, _ string) (providers.Provider, error) {
			return tpm.Type.New(ctx, providers.Config{Name: name, StateDir: dir, Settings: map[string]any{"tcti": chip.TCTI()}})
		}}
}

// newRecoveryKey writes one, and gives its content.
func newRecoveryKey(t *testing.T) []byte {
	t.Helper()
	b, err := kim.WriteRecoveryKey(filepath.Join(t.TempDir(), "recovery"), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestRewrapRefused: what cannot be done changes nothing.
func TestRewrapRefused(t *testing.T) {
	chip := tpmtest.Start(t)
	o := kim.Options{Dir: filepath.Join(t.TempDir(), "state"), Providers: []kim.ProviderConfig{softwareConfig("software"), tpmConfig("chip", chip)}}
	k := open(t, o)
	key := generate(t, k, k.Provider("software"), "web", p256)
	recovery := newRecoveryKey(t)
	pcrs, many := psa.PCRs(1), psa.PCRs(1<<24)
	damaged := bytes.Clone(recovery)
	damaged[0] ^= 1
	for what, c := range map[string]struct {
		r    kim.Rewrapping
		want psa.Status
	}{
		"no kind":                {kim.Rewrapping{}, psa.StatusInvalidArgument},
		"an unknown kind":        {kim.Rewrapping{Kind: "paper"}, psa.StatusInvalidArgument},
		"a file's PCRs":          {kim.Rewrapping{Kind: "file", PCRs: &pcrs}, psa.StatusInvalidArgument},
		"a file's PIN":           {kim.Rewrapping{Kind: "file", PIN: []byte("1234")}, psa.StatusInvalidArgument},
		"PCR 24":                 {kim.Rewrapping{Kind: "tpm:chip", PCRs: &many, Recovery: recovery}, psa.StatusInvalidArgument},
		"no recovery key":        {kim.Rewrapping{Kind: "tpm:chip"}, psa.StatusNotPermitted},
		"no provider":            {kim.Rewrapping{Kind: "tpm:other", Recovery: recovery}, psa.StatusDoesNotExist},
		"one that cannot":        {kim.Rewrapping{Kind: "tpm:software", Recovery: recovery}, psa.StatusNotSupported},
		"a damaged recovery key": {kim.Rewrapping{Kind: "tpm:chip", Recovery: damaged}, psa.StatusInvalidArgument},
	} {
		if err := k.Rewrap(ctx, c.r); psa.StatusOf(err) != c.want {
			t.Errorf("%s: %v, want %v", what, err, c.want)
		}
		if kind, _, recovery, err := k.Wrapping(ctx); err != nil || kind != "file" || recovery {
			t.Errorf("%s: the kind is %q, a recovery key: %v, %v", what, kind, recovery, err)
		}
	}
	// A recovery key of the right id that holds another key.
	forged := bytes.Clone(recovery)
	if err := k.Rewrap(ctx, kim.Rewrapping{Kind: "file", Recovery: recovery}); err != nil {
		t.Fatal(err)
	}
	if forged[len(forged)-2]++; forged[len(forged)-2] != '1' {
		forged[len(forged)-2] = '0'
	}
	wantStatus(t, k.Rewrap(ctx, kim.Rewrapping{Kind: "tpm:chip", Recovery: forged}), psa.StatusDataCorrupt)
	// Somebody's file in the place is nobody's to remove.
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	usual := filepath.Join(o.Dir, "wrapping.key")
	right, err := os.ReadFile(usual)
	if err != nil {
		t.Fatal(err)
	}
	theirs := bytes.Replace(right, []byte("id  "), []byte("id  00"), 1)
	theirs = append(theirs[:len("parsecfs wrapping key 1\nid  ")+32], right[len("parsecfs wrapping key 1\nid  ")+32:]...)
	if err := os.WriteFile(usual, theirs, 0o600); err != nil {
		t.Fatal(err)
	}
	k = open(t, o)
	wantStatus(t, signs(k, key), psa.StatusProviderAbsent)
	wantStatus(t, k.Rewrap(ctx, kim.Rewrapping{Kind: "file"}), psa.StatusProviderAbsent)
	wantStatus(t, k.Rewrap(ctx, kim.Rewrapping{Kind: "file", Recovery: recovery}), psa.StatusAlreadyExists)
	if b, err := os.ReadFile(usual); err != nil || !bytes.Equal(b, theirs) {
		t.Errorf("somebody's file is %q, %v", b, err)
	}
	if err := os.Remove(usual); err != nil {
		t.Fatal(err)
	}
	if err := k.Rewrap(ctx, kim.Rewrapping{Kind: "file", Recovery: recovery}); err != nil {
		t.Error(err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	k = open(t, o)
	if err := signs(k, key); err != nil {
		t.Error(err)
	}
}

// TestRewrapWhileBusy rewraps again and again while keys are made, used and backed up: nobody notices, and every backup
// opens.
func TestRewrapWhileBusy(t *testing.T) {
	chip := tpmtest.Start(t)
	options := func(dir string) kim.Options {
		return kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software"), tpmConfig("chip", chip)}}
	}
	k := open(t, options(filepath.Join(t.TempDir(), "state")))
	p := k.Provider("software")
	key := generate(t, k, p, "web", p256)
	recovery := newRecoveryKey(t)
	done := make(chan struct{})
	var busy sync.WaitGroup
	for range 2 {
		busy.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if err := signs(k, key); err != nil {
					t.Error(err)
				}
				if k.AuditKey() == nil {
					t.Error("no audit key")
				}
			}
		})
	}
	var backups []*bytes.Buffer
	busy.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			var b bytes.Buffer
			if err := k.Backup(ctx, &b); err != nil {
				t.Error(err)
			}
			if len(backups) < 20 {
				backups = append(backups, &b)
			}
		}
	})
	for i := range 8 {
		for j, kind := range []string{"tpm:chip", "file", "file"} {
			r := kim.Rewrapping{Kind: kind}
			if i == 0 || kind != "file" { // which makes a new data key
				r.Recovery = recovery
			}
			if err := k.Rewrap(ctx, r); err != nil {
				t.Fatal(err)
			}
			generate(t, k, p, fmt.Sprint("key-", i, "-", j), p256)
		}
	}
	close(done)
	busy.Wait()
	for i, b := range backups {
		dir := filepath.Join(t.TempDir(), "restored")
		if err := kim.Restore(ctx, dir, bytes.NewReader(b.Bytes())); err != nil {
			t.Fatal(err)
		}
		k := open(t, options(dir))
		kind, _, _, err := k.Wrapping(ctx)
		if err == nil && k.Err() != nil { // the TPM has counted since
			await(t, k, "the TPM says that this is an old one", func() bool {
				return strings.Contains(k.Provider("chip").Status(ctx), "the KIM was replaced")
			})
			err = k.AcceptLoss(ctx)
		}
		if err == nil {
			err = signs(k, key)
		}
		if err != nil {
			t.Errorf("backup %d, wrapped by %q: %v", i, kind, err)
		}
		if _, err := os.Stat(filepath.Join(dir, "wrapping.key")); (kind == "file") != (err == nil) {
			t.Errorf("a backup of the kind %q has a wrapping key: %v", kind, err)
		}
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRecoveryKeyFile: it is new, private, and never in the state directory, whatever way leads there.
func TestRecoveryKeyFile(t *testing.T) {
	dir := t.TempDir()
	state := filepath.Join(dir, "state")
	if err := os.MkdirAll(filepath.Join(state, "sub"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(state, "sub"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	for _, in := range []string{"state", "state/sub", "link", "link/../../state/sub"} {
		if _, err := kim.WriteRecoveryKey(dir+"/"+in+"/key", state); psa.StatusOf(err) != psa.StatusInvalidArgument || psa.HintOf(err) == "" {
			t.Errorf("in %s: %v", in, err)
		}
	}
	path := filepath.Join(dir, "state.key")
	if _, err := kim.ReadRecoveryKey(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	b, err := kim.WriteRecoveryKey(path, state)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := kim.ReadRecoveryKey(path); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%q, %v", got, err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if _, err := kim.WriteRecoveryKey(path, state); psa.StatusOf(err) != psa.StatusAlreadyExists {
		t.Errorf("over another one: %v", err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, b) {
		t.Errorf("%q, %v", got, err)
	}
	if err := os.WriteFile(path, bytes.Replace(b, []byte("recovery"), []byte("wrapping"), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := kim.ReadRecoveryKey(path); psa.StatusOf(err) != psa.StatusInvalidArgument {
		t.Errorf("a wrapping key: %v", err)
	}
	if _, err := kim.WriteRecoveryKey(filepath.Join(dir, "none", "key"), state); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("where no directory is: %v", err)
	}
}
