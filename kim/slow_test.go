package kim

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

// TestSlowCallsOfSoftware: slow calls of the software provider take turns by user, however many one of them has; the others
// pass them; and whoever gives up, or finds the queue full of their own calls, leaves no place taken.
func TestSlowCallsOfSoftware(t *testing.T) {
	t.Parallel()
	k, err := Open(t.Context(), Options{Dir: t.TempDir(), QueueLength: 10, Providers: []ProviderConfig{{
		Name: "software", Type: software.Type.Name, Mode: 0o755,
		Open: func(ctx context.Context, dir, _ string) (providers.Provider, error) {
			impl, err := software.Type.New(ctx, providers.Config{Name: "software", StateDir: dir})
			return providers.Narrow(impl, providers.Narrowing{AllowDeprecated: true}), err
		},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	p := k.Default()
	generate := func(uid uint32, name, template string) (Key, error) {
		a, err := psa.ParseTemplate(template)
		if err != nil {
			return Key{}, err
		}
		key, err := p.CreateDraft(context.Background(), Shared, name, uid, uid, 0o700)
		if err != nil {
			return key, err
		}
		return key, k.Generate(context.Background(), key.Number, uid, template, a, nil)
	}
	sign := func(ctx context.Context, uid uint32, key Key, alg psa.Algorithm) error {
		run, err := k.Begin(ctx, key.Number, uid, psa.Op{Operation: psa.Sign, Algorithm: alg})
		if err != nil {
			return err
		}
		defer run.Abort()
		_, err = run.Finish(ctx)
		return err
	}
	slhdsa, err := generate(3, "slh-dsa", "slh-dsa-sha2-128f")
	if err != nil {
		t.Fatal(err)
	}
	p.slow.mu.Lock()
	width := p.slow.width
	p.slow.mu.Unlock()
	if width < 1 {
		t.Fatalf("%d slow calls at once: no turns", width)
	}
	for range width {
		if err := p.slow.enter(t.Context(), 1); err != nil {
			t.Fatal(err)
		}
	}

	var mu sync.Mutex
	var order []uint32
	var wg sync.WaitGroup
	begin := func(uid uint32, i int) {
		wg.Go(func() {
			_, err := generate(uid, fmt.Sprint(uid, "-", i), "rsa-1024-pss-sha256")
			mu.Lock()
			defer mu.Unlock()
			if err == nil {
				order = append(order, uid)
			} else if psa.StatusOf(err) != psa.StatusQueueFull {
				t.Error(err)
			}
		})
	}
	waiting := func(n, of2 int) {
		t.Helper()
		waitFor(t, &p.slow, func() bool { return p.slow.waiting == n && len(p.slow.users[2]) == of2 })
	}
	for i := range 10 {
		begin(1, i)
	}
	waiting(10, 0)

	key, err := generate(2, "p256", "ecdsa-p256-sha256")
	if err == nil {
		err = sign(t.Context(), 2, key, psa.ECDSA(psa.SHA256))
	}
	if err != nil {
		t.Errorf("a short operation beside the slow ones: %v", err)
	}
	if _, err := generate(1, "too many", "rsa-1024-pss-sha256"); psa.StatusOf(err) != psa.StatusQueueFull {
		t.Errorf("one more of the user who has them all: %v", err)
	}
	begin(2, 0)
	waiting(10, 1)

	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() { gone <- sign(ctx, 3, slhdsa, psa.SLHDSA) }()
	waitFor(t, &p.slow, func() bool { return len(p.slow.users[3]) == 1 })
	cancel()
	if err := <-gone; err == nil || begun(err) {
		t.Errorf("who gave up: %v", err)
	}
	waitFor(t, &p.slow, func() bool { return len(p.slow.users[3]) == 0 })

	for range width {
		p.slow.leave()
	}
	wg.Wait()
	for i, uid := range order {
		if uid == 2 && i > 2*width {
			t.Errorf("another user's key came after %d of one user's, with %d at once", i, width)
		}
	}
	if len(order) < 9 || len(order) > 10 {
		t.Errorf("%d keys were made, of one user's 10 and another's 1; a full queue costs the one who filled it one or two", len(order))
	}
	waitFor(t, &p.slow, func() bool { return p.slow.running == 0 && p.slow.waiting == 0 })
	deadline, end := context.WithTimeout(t.Context(), time.Minute)
	defer end()
	if err := sign(deadline, 3, slhdsa, psa.SLHDSA); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
