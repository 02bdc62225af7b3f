package kim

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

// bare is a provider without a KIM's store, whose back end is impl.
func bare(impl providers.Provider) *Provider {
	k := &KIM{o: Options{}.withDefaults(), jobs: map[int64]*job{}}
	k.ctx = context.Background()
	return &Provider{k: k, number: 1, config: ProviderConfig{Name: "p"}, log: slog.New(slog.DiscardHandler),
		wake: make(chan struct{}, 1), queue: queue{length: 100}, impl: impl}
}

func newSoftware(t *testing.T) providers.Provider {
	t.Helper()
	impl, err := software.Type.New(t.Context(), providers.Config{Name: "p", StateDir: t.TempDir(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return impl
}

// TestProviderThatComesAndGoes: whatever asks a provider while it comes and goes is served or gets an error, never neither.
func TestProviderThatComesAndGoes(t *testing.T) {
	t.Parallel()
	impl := newSoftware(t)
	p := bare(impl)
	p.k.providers = []*Provider{p}
	goneFor := errors.New("it is away")
	stop := make(chan struct{})
	var toggling sync.WaitGroup
	toggling.Go(func() {
		for {
			for _, there := range []bool{false, true} {
				p.mu.Lock()
				if p.impl, p.down = nil, goneFor; there {
					p.impl, p.down = impl, nil
				}
				p.mu.Unlock()
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	defer toggling.Wait()
	defer close(stop)
	refused, zero := 0, make([]byte, 32)
	for end := time.Now().Add(2 * time.Second); time.Now().Before(end); {
		b := make([]byte, 32)
		if err := p.Random(t.Context(), 1000, b); err == nil && bytes.Equal(b, zero) {
			t.Fatal("zeros as random bytes")
		} else if err != nil {
			refused++
			wantAbsent(t, err)
		}
		run, err := p.Begin(t.Context(), 1000, psa.Op{Operation: psa.Hash, Algorithm: psa.SHA256})
		if err == nil && run == nil {
			t.Fatal("no run and no error")
		} else if err == nil {
			run.Abort()
		}
		if at, got, err := p.k.providerOf(Key{Provider: 1}); err == nil && (at == nil || got == nil) {
			t.Fatal("no provider of a key and no error")
		}
		if _, err := p.wrapper(); err == nil {
			t.Fatal("software wraps no secrets, and there is no error")
		}
	}
	if refused == 0 {
		t.Error("it was never away")
	}
}

func wantAbsent(t *testing.T, err error) {
	t.Helper()
	if psa.StatusOf(err) != psa.StatusProviderAbsent {
		t.Fatalf("%v (%v)", psa.StatusOf(err), err)
	}
}

// TestProviderNotSeenYet: before anybody knows how it is there is an error already.
func TestProviderNotSeenYet(t *testing.T) {
	t.Parallel()
	p := bare(nil)
	for _, down := range []error{nil, errNotSeen} {
		p.down = down
		b := []byte{1, 2, 3}
		wantAbsent(t, p.Random(t.Context(), 1000, b))
	}
}

// lazy is a generator that leaves bytes out and says nothing.
type lazy struct {
	providers.Provider
	fills func(b []byte) []byte // the part that it fills
}

func (l lazy) Random(ctx context.Context, b []byte) error {
	return l.Provider.(providers.Random).Random(ctx, l.fills(b))
}

// TestRandomIsWhole: no byte that a provider left out is given out as a random one.
func TestRandomIsWhole(t *testing.T) {
	t.Parallel()
	impl := newSoftware(t)
	for name, c := range map[string]struct {
		size    int
		fills   func(b []byte) []byte
		refused bool
	}{
		"all":        {64, func(b []byte) []byte { return b }, false},
		"one byte":   {1, func(b []byte) []byte { return b }, false},
		"none":       {1, func(b []byte) []byte { return nil }, true},
		"none of 64": {64, func(b []byte) []byte { return nil }, true},
		"half":       {64, func(b []byte) []byte { return b[:32] }, true},
		"all but 17": {64, func(b []byte) []byte { return b[:47] }, true},
		"the end":    {64, func(b []byte) []byte { return b[32:] }, true},
	} {
		t.Run(name, func(t *testing.T) {
			b := make([]byte, c.size)
			err := bare(lazy{impl, c.fills}).Random(t.Context(), 1000, b)
			if c.refused != (psa.StatusOf(err) == psa.StatusInsufficientEntropy) || !c.refused && err != nil {
				t.Fatal(err)
			}
			if c.refused && !bytes.Equal(b, make([]byte, c.size)) {
				t.Error("bytes of a broken generator were given out")
			}
		})
	}
	// A spare byte that is missing is nobody's.
	for short := range randomSpare {
		b := make([]byte, 64)
		err := bare(lazy{impl, func(b []byte) []byte { return b[:len(b)-short] }}).Random(t.Context(), 1000, b)
		if err != nil || bytes.Contains(b, make([]byte, 8)) {
			t.Fatal(short, err)
		}
	}
}
