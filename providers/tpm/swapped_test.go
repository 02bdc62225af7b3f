package tpm

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// TestSwappedPoint: a relay that comes in between puts its own point into the storage root key, with the name that was there
// or with the one that goes with it, and does not get what is imported.
func TestSwappedPoint(t *testing.T) {
	t.Parallel()
	for _, names := range []bool{false, true} {
		chip := tpmtest.Start(t)
		relay := tpmtest.NewRelay(t, chip)
		p, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": relay.TCTI()}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		if _, err := p.Identity(t.Context()); err != nil {
			t.Fatal(err)
		}
		a, err := psa.ParseTemplate("ecdsa-p256-sha256")
		if err != nil {
			t.Fatal(err)
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		scalar, err := key.Bytes()
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		put := func() error {
			_, err := p.Create(t.Context(), providers.Handle{}, a, &psa.Material{Format: psa.FormatPKCS8, Data: der})
			return err
		}
		if err := put(); err != nil {
			t.Fatal(err)
		}
		swapped := 0
		relay.Watch(func(x tpmtest.Exchange) tpmtest.Answer {
			if b, ok := relay.Swap(x, names); ok && x.Code == tpm2.TPMCCCreatePrimary {
				swapped++
				return tpmtest.Answer{Response: b}
			}
			return tpmtest.Answer{Response: x.Response}
		})
		relay.Drop()
		if err := put(); err == nil || names && psa.StatusOf(err) != psa.StatusProviderAbsent {
			t.Errorf("names too %v: an import says %v", names, err)
		}
		relay.Rest()
		if swapped == 0 {
			t.Error("nothing was swapped")
		}
		if relay.Saw(scalar) {
			t.Errorf("names too %v: the relay has the private scalar", names)
		}
		for _, x := range relay.Sent() {
			if x.Code == tpm2.TPMCCImport || x.Code == tpm2.TPMCCStartAuthSession {
				t.Errorf("names too %v: %v was sent to somebody else's key", names, x.Code)
			}
		}
	}
}

// TestCutAnswer: an answer that is cut short, on a connection that stays open, is an error long before its caller's timeout,
// and holds nobody else up.
func TestCutAnswer(t *testing.T) {
	t.Parallel()
	relay := tpmtest.NewRelay(t, tpmtest.Start(t))
	p, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": relay.TCTI()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	relay.Watch(func(x tpmtest.Exchange) tpmtest.Answer {
		return tpmtest.Answer{Response: x.Response[:len(x.Response)/2], Silent: true}
	})
	patience, end := context.WithTimeout(t.Context(), 30*time.Second)
	defer end()
	done := make(chan error, 1)
	go func() {
		_, err := p.Identity(patience)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || patience.Err() != nil {
			t.Errorf("a cut answer: %v", err)
		}
	case <-patience.Done():
		t.Error("a cut answer is waited for until its caller has gone, and after")
	}
	relay.Watch(nil)
	relay.Drop()
	if _, err := p.Identity(t.Context()); err != nil {
		t.Errorf("after it: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}
