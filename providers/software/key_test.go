package software

import (
	"bytes"
	"crypto/ed25519"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

func isWiped(b []byte) bool { return len(b) > 0 && bytes.Equal(b, make([]byte, len(b))) }

// TestWiped looks at the memory itself after Close, Finish and Abort.
func TestWiped(t *testing.T) {
	for _, name := range []string{"ed448", "ml-dsa-44", "ed25519", "ecdsa-secp256k1-sha256", "ecdsa-p256-sha256", "aes-256-gcm"} {
		a, err := psa.ParseTemplate(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, export := range []bool{false, true} {
			if export {
				a.Usage |= psa.UsageExport
			}
			b, err := provider{}.Create(t.Context(), providers.Handle{}, a, nil)
			if err != nil {
				t.Fatal(err)
			}
			opened, err := provider{}.Open(t.Context(), providers.Handle{}, a, b)
			if err != nil {
				t.Fatal(err)
			}
			k := opened.(*key)
			secret := k.secret
			if want := export || a.Type == psa.KeyTypeAES; (secret != nil) != want {
				t.Errorf("%s: the secret is kept: %t, want %t", name, secret != nil, want)
			}
			private, _ := k.private.(ed25519.PrivateKey)
			var runs []*wipingRun
			for _, op := range []psa.Op{{Operation: psa.Export}, {Operation: psa.Sign, Algorithm: a.Algorithm}} {
				for range 2 {
					if r, err := k.Begin(t.Context(), op); err == nil {
						if r, ok := r.(*wipingRun); ok {
							runs = append(runs, r)
						}
					}
				}
			}
			_ = k.Close()
			if secret != nil && !isWiped(secret) || private != nil && !isWiped(private) {
				t.Errorf("%s: Close left the key in memory", name)
			}
			for i, r := range runs {
				if isWiped(r.secret) {
					t.Errorf("%s: Close wiped a run's key", name)
				}
				if i%2 == 0 {
					r.Abort()
				} else if _, err := r.Finish(t.Context()); err != nil {
					t.Error(err)
				}
				if !isWiped(r.secret) {
					t.Errorf("%s: a run left the key in memory", name)
				}
			}
		}
	}
}
