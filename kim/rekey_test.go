package kim_test

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// TestManyNewDataKey: a new data key seals any number of keys anew, and needs no memory for them.
func TestManyNewDataKey(t *testing.T) {
	keys, most := 500, uint64(32<<20)
	if os.Getenv("PARSECFS_TEST_LONG") != "" {
		keys = 100_000
	}
	dir := filepath.Join(t.TempDir(), "state")
	o := kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}}
	must(t, open(t, o).Close())
	s, err := kim.OpenSQLite(ctx, filepath.Join(dir, "kim.sqlite3"))
	must(t, err)
	sealer, err := kim.OpenSealer(ctx, s, dir)
	must(t, err)
	p, err := s.EnsureProvider(ctx, "software", "Software")
	must(t, err)
	a, err := psa.ParseTemplate("aes-256-gcm")
	must(t, err)
	secret := make([]byte, 32)
	rand.Read(secret)
	var first, last kim.Key
	for i := range keys {
		k, err := s.InsertDraft(ctx, kim.NewDraft{Provider: p.Number, Name: fmt.Sprint("key-", i)})
		must(t, err)
		var h providers.Handle
		rand.Read(h[:])
		k, err = s.BeginCreate(ctx, k.Number, h, "aes-256-gcm", a, kim.Imported)
		must(t, err)
		sealed, err := sealer.Seal(k, p.UUID, secret)
		must(t, err, s.FinishCreate(ctx, k.Number, nil, sealed))
		if last = k; i == 0 {
			first = k
		}
	}
	must(t, s.Close())
	k := open(t, o)
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	var peak atomic.Uint64
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			var now runtime.MemStats
			runtime.ReadMemStats(&now)
			peak.Store(max(peak.Load(), now.HeapInuse))
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	begun := time.Now()
	must(t, k.Rewrap(ctx, kim.Rewrapping{Kind: kim.WrapFile, NewDataKey: true}))
	took := time.Since(begun)
	op := gcm
	op.Operation = psa.Encrypt
	for _, key := range []kim.Key{first, last} {
		if o, err := do(k, key.Number, op, []byte(kept)); err != nil || len(o["ciphertext"]) == 0 ||
			bytes.Contains(o["ciphertext"], []byte(kept)) {
			t.Errorf("%s: %v", key.Name, err)
		}
	}
	must(t, k.Close())
	close(stop)
	<-done
	grown := max(peak.Load(), before.HeapInuse) - before.HeapInuse
	t.Logf("%d keys in %v, with at most %d KiB more in use", keys, took, grown>>10)
	if grown > most {
		t.Errorf("%d MiB more in use", grown>>20)
	}
}
