package kim_test

import (
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// TestCallerNonce: a nonce of the caller's choice is judged at each encryption by what the key's row says then, though
// the key stays open; and a copy never gets what its source did not have, also where its draft asked for it.
func TestCallerNonce(t *testing.T) {
	k := open(t, kim.Options{Dir: t.TempDir(), Providers: []kim.ProviderConfig{softwareConfig("software")}})
	draft := func(name string) kim.Key {
		t.Helper()
		d, err := k.Default().CreateDraft(ctx, kim.Shared, name, 1000, 1000, 0o700)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	a, err := psa.ParseTemplate("aes-256-gcm")
	if err != nil {
		t.Fatal(err)
	}
	a.Usage |= psa.UsageCopy
	source := draft("source")
	if err := k.Generate(ctx, source.Number, 1000, a.Template(), a, nil); err != nil {
		t.Fatal(err)
	}
	allow := func(key kim.Key, yes bool, want psa.Status) {
		t.Helper()
		if err := k.SetCallerNonce(ctx, key.Number, yes); psa.StatusOf(err) != want {
			t.Errorf("caller_nonce = %v for %s: %v, want %v", yes, key.Name, err, want)
		}
	}
	encrypts := func(key kim.Key, want psa.Status) {
		t.Helper()
		op := gcm
		op.Operation = psa.Encrypt
		if _, err := do(k, key.Number, op, []byte("text")); err != nil {
			t.Errorf("%s, with the provider's nonce: %v", key.Name, err)
		}
		op.Inputs = map[string][]byte{"nonce": []byte("twelve bytes")}
		if _, err := do(k, key.Number, op, []byte("text")); psa.StatusOf(err) != want {
			t.Errorf("%s, with a nonce of the caller's: %v, want %v", key.Name, err, want)
		}
	}
	encrypts(source, psa.StatusNotPermitted)
	asking, silent := draft("asking"), draft("silent")
	allow(asking, true, psa.StatusSuccess)
	for _, c := range []kim.Key{asking, silent} {
		if err := k.Copy(ctx, c.Number, 1000, source.Number); err != nil {
			t.Fatal(err)
		}
		encrypts(c, psa.StatusNotPermitted)
		allow(c, true, psa.StatusNotPermitted)
		allow(c, false, psa.StatusSuccess)
	}
	allow(source, true, psa.StatusSuccess)
	encrypts(source, psa.StatusSuccess)
	later := draft("later")
	allow(later, true, psa.StatusSuccess)
	if err := k.Copy(ctx, later.Number, 1000, source.Number); err != nil {
		t.Fatal(err)
	}
	encrypts(later, psa.StatusSuccess)
	encrypts(asking, psa.StatusNotPermitted)
	allow(source, false, psa.StatusSuccess)
	encrypts(source, psa.StatusNotPermitted)

	// What fails leaves a draft as free as it was.
	failing := draft("failing")
	wrong := a
	wrong.Bits = 128
	if err := k.SetDraft(ctx, failing.Number, wrong.Template(), wrong); err != nil {
		t.Fatal(err)
	}
	if err := k.Copy(ctx, failing.Number, 1000, source.Number); psa.StatusOf(err) != psa.StatusInvalidArgument {
		t.Errorf("a copy that does not fit: %v", err)
	}
	allow(failing, true, psa.StatusSuccess)
}
