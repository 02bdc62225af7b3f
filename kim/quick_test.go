package kim_test

import (
	"bytes"
	"context"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

// hasty is the software provider with keys whose runs panic where a text asks for it, and a bound on its calls if there is one.
type hasty struct {
	providers.Provider
	parallel int
}

func (h hasty) Describe() providers.Description {
	d := h.Provider.Describe()
	if h.parallel > 0 {
		d.Limits = providers.Limits{Parallel: h.parallel}
	}
	return d
}

func (h hasty) Slow(op psa.Operation, a psa.Attributes) bool {
	return h.Provider.(providers.Weigher).Slow(op, a)
}

func (h hasty) Quick(op psa.Operation, a psa.Attributes) bool {
	return h.Provider.(providers.Weigher).Quick(op, a)
}

func (h hasty) Open(ctx context.Context, handle providers.Handle, a psa.Attributes, b providers.Blob) (providers.Key, error) {
	k, err := h.Provider.Open(ctx, handle, a, b)
	return hastyKey{k}, err
}

type hastyKey struct{ providers.Key }

func (k hastyKey) Begin(ctx context.Context, op psa.Op) (psa.Run, error) {
	r, err := k.Key.Begin(ctx, op)
	if err != nil {
		return nil, err
	}
	return &hastyRun{Run: r}, nil
}

type hastyRun struct {
	psa.Run
	fails bool
}

func (r *hastyRun) Write(p []byte) (int, error) {
	r.fails = r.fails || bytes.Equal(p, []byte("panic"))
	return r.Run.Write(p)
}

func (r *hastyRun) Finish(ctx context.Context) (psa.Result, error) {
	if r.fails {
		panic("a bug")
	}
	return r.Run.Finish(ctx)
}

func openHasty(t *testing.T, parallel int) *kim.KIM {
	return open(t, kim.Options{Dir: t.TempDir(), Providers: []kim.ProviderConfig{{Name: "software", Type: "Software", Mode: 0o755,
		Open: func(ctx context.Context, dir, _ string) (providers.Provider, error) {
			p, err := software.Type.New(ctx, providers.Config{Name: "software", StateDir: dir})
			return hasty{p, parallel}, err
		}}}})
}

// generated makes a key of a template.
func generated(t *testing.T, k *kim.KIM, template string) (kim.Key, psa.Op) {
	t.Helper()
	a, err := psa.ParseTemplate(template)
	if err != nil {
		t.Fatal(err)
	}
	d, err := k.Default().CreateDraft(ctx, kim.Shared, template, 1000, 1000, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Generate(ctx, d.Number, 1000, template, a, nil); err != nil {
		t.Fatal(err)
	}
	return d, psa.Op{Algorithm: a.Algorithm}
}

// began begins an operation with a message.
func began(t *testing.T, k *kim.KIM, key kim.Key, op psa.Op, message string) kim.Run {
	t.Helper()
	r, err := k.Begin(ctx, key.Number, 1000, op)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write([]byte(message)); err != nil {
		t.Fatal(err)
	}
	return r
}

// TestQuickRuns: what is quick passes once, with the same outcome as by the queue; a panic, or the key's end, is the failure of that
// run alone.
func TestQuickRuns(t *testing.T) {
	t.Parallel()
	k := openHasty(t, 0)
	key, op := generated(t, k, "ecdsa-p256-sha256")
	op.Operation = psa.Sign
	whole := began(t, k, key, op, "text")
	broken := began(t, k, key, op, "panic")
	if !whole.Quick() || !broken.Quick() {
		t.Fatal("a signature by P-256 is not quick")
	}
	if _, passed, err := broken.Pass(ctx); !passed || psa.StatusOf(err) != psa.StatusGenericError {
		t.Errorf("a panic: %t, %v", passed, err)
	}
	result, passed, err := whole.Pass(ctx)
	if !passed || err != nil || len(result.Outputs["signature"]) != 64 {
		t.Errorf("%v, %t, %v", result, passed, err)
	}
	for _, r := range []kim.Run{whole, broken} {
		if _, passed, _ := r.Pass(ctx); passed || r.Quick() {
			t.Error("a run passed twice")
		}
		if _, err := r.Finish(ctx); psa.StatusOf(err) != psa.StatusBadState {
			t.Errorf("a run that has passed is finished: %v", err)
		}
	}
	late := began(t, k, key, op, "text")
	if err := k.Destroy(ctx, key.Number, 1000); err != nil {
		t.Fatal(err)
	}
	if result, passed, err := late.Pass(ctx); !passed || psa.StatusOf(err) != psa.StatusRevoked || len(result.Outputs) != 0 {
		t.Errorf("with a key that was destroyed: %v, %t, %v", result, passed, err)
	}
}

// TestQuickIsCounted: a run with a nonce made at random passes only with one that is reserved, and takes it once; what may be a guess
// never passes; nothing passes a provider that takes a number of calls at once.
func TestQuickIsCounted(t *testing.T) {
	t.Parallel()
	k := openHasty(t, 0)
	key, op := generated(t, k, "aes-256-gcm")
	op.Operation = psa.Encrypt
	first := began(t, k, key, op, "text")
	if _, passed, err := first.Pass(ctx); passed || err != nil {
		t.Fatalf("a nonce that is not reserved: %t, %v", passed, err)
	}
	if _, err := first.Finish(ctx); err != nil {
		t.Fatal(err)
	}
	row, err := k.Key(ctx, key.Number)
	if err != nil {
		t.Fatal(err)
	}
	passes := int64(0)
	for ; ; passes++ {
		r := began(t, k, key, op, "text")
		_, passed, err := r.Pass(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if !passed {
			r.Abort()
			break
		}
	}
	if reserved := row.Nonces; passes != reserved-1 {
		t.Errorf("%d nonces were reserved, and %d passed after the first", reserved, passes)
	}
	short, op := generated(t, k, "aes-128-ccm-tag4")
	op.Operation = psa.Decrypt
	op.Inputs = map[string][]byte{"nonce": make([]byte, 12)}
	r := began(t, k, short, op, "ciphertext")
	if _, passed, err := r.Pass(ctx); passed || err != nil || r.Quick() {
		t.Errorf("a guess: %t, %v", passed, err)
	}
	r.Abort()
	bounded := openHasty(t, 1)
	key, op = generated(t, bounded, "ecdsa-p256-sha256")
	op.Operation = psa.Sign
	r = began(t, bounded, key, op, "text")
	if _, passed, err := r.Pass(ctx); passed || err != nil || r.Quick() {
		t.Errorf("beside a queue: %t, %v", passed, err)
	}
	if _, err := r.Finish(ctx); err != nil {
		t.Error(err)
	}
}
