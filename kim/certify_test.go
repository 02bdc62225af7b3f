package kim_test

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// TestCertify: a key signs for another one as its policy permits, and no more once either of them is destroyed.
func TestCertify(t *testing.T) {
	chip := tpmtest.Start(t)
	k := open(t, kim.Options{Dir: filepath.Join(t.TempDir(), "state"), Providers: []kim.ProviderConfig{{Name: "tpm", Type: tpm.Type.Name, Mode: 0o755,
		Open: func(ctx context.Context, dir, _ string) (providers.Provider, error) {
			return tpm.Type.New(ctx, providers.Config{Name: "tpm", StateDir: dir, Settings: map[string]any{"tcti": chip.TCTI()}})
		}}}})
	p := k.Provider("tpm")
	key, signer, verifier, draft := generate(t, k, p, "key", p256), generate(t, k, p, "signer", p256), newDraft(t, p, "verifier"), newDraft(t, p, "draft")
	a, err := psa.ParseTemplate(p256)
	if err != nil {
		t.Fatal(err)
	}
	op := psa.Op{Operation: psa.Attest, Algorithm: a.Algorithm}
	a.Usage = psa.UsageVerifyMessage
	if err := k.Generate(ctx, verifier.Number, 1000, "", a, nil); err != nil {
		t.Fatal(err)
	}
	for number, want := range map[int64]psa.Status{verifier.Number: psa.StatusNotPermitted, draft.Number: psa.StatusBadState, 1 << 40: psa.StatusDoesNotExist} {
		_, err := k.Certify(ctx, key.Number, 1000, op, number)
		wantStatus(t, err, want)
	}
	begin := func() psa.Run {
		t.Helper()
		r, err := k.Certify(ctx, key.Number, 1000, op, signer.Number)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	for range 2 {
		if result, err := begin().Finish(ctx); err != nil || len(result.Outputs["signature"]) == 0 {
			t.Fatalf("%v, %v", result, err)
		}
	}
	late := []psa.Run{begin(), begin()}
	if err := k.Destroy(ctx, signer.Number, 1000); err != nil {
		t.Fatal(err)
	}
	_, err = late[0].Finish(ctx)
	wantStatus(t, err, psa.StatusRevoked)
	late[1].Abort()
	_, err = k.Certify(ctx, key.Number, 1000, op, signer.Number)
	wantStatus(t, err, psa.StatusDoesNotExist)
	signer = generate(t, k, p, "signer", p256)
	last := begin()
	if err := k.Destroy(ctx, key.Number, 1000); err != nil {
		t.Fatal(err)
	}
	_, err = last.Finish(ctx)
	wantStatus(t, err, psa.StatusRevoked)
}
