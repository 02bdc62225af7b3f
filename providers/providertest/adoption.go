package providertest

import (
	"context"
	"slices"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// adoption takes over a key that somebody else made, uses it where it is, and at last destroys it.
func (s *suite) adoption(t *testing.T) {
	p := s.provider(t)
	adopter, ok := p.(providers.Adopter)
	if ok != (s.o.Foreign != nil) {
		t.Fatalf("the provider adopts keys: %t, the suite can make some: %t", ok, s.o.Foreign != nil)
	}
	if !ok {
		t.Skip("it adopts none")
	}
	reference := s.o.Foreign(t)
	// made here, to be told from the others
	own := s.make(t, p, s.samples()[0])
	list := func() []providers.Foreign {
		t.Helper()
		all, err := adopter.Foreign(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	count := func() int {
		t.Helper()
		if s.o.Count == nil {
			return len(list())
		}
		return s.o.Count(t)
	}
	before := count()
	f, blob, err := adopter.Adopt(t.Context(), psa.Attributes{}, reference)
	if err != nil {
		t.Fatalf("Adopt: %v", err)
	}
	want, err := psa.DefaultTemplate(psa.ECCKeyPair(psa.SECPR1), 256)
	if err != nil || f.Attributes != want || f.Handle != (providers.Handle{}) || f.Object == "" || blob.Object != f.Object || len(blob.Public) == 0 {
		t.Errorf("adopted %+v, of object %q with %d public bytes; want %+v", f, blob.Object, len(blob.Public), want)
	}
	all := list()
	if i := slices.IndexFunc(all, func(o providers.Foreign) bool { return o.Object == f.Object }); i < 0 || all[i] != f {
		t.Errorf("the key is not listed as it was adopted: %+v", all)
	}
	if !s.o.KeysInBlob && !slices.ContainsFunc(all, func(o providers.Foreign) bool { return o.Handle == own.handle }) {
		t.Errorf("our own key is not listed: %+v", all)
	}
	for _, wrong := range []struct {
		what, reference, template string
		status                    psa.Status
	}{
		{"a key that is not there", reference[:len(reference)-1] + "0", "", psa.StatusDoesNotExist},
		{"another kind of key", reference, "ecdsa-p384-sha384", psa.StatusInvalidArgument},
	} {
		var a psa.Attributes
		if wrong.template != "" {
			if a, err = psa.ParseTemplate(wrong.template); err != nil {
				t.Fatal(err)
			}
		}
		_, _, err := adopter.Adopt(t.Context(), a, wrong.reference)
		wantStatus(t, wrong.what, err, wrong.status)
	}
	// another instance has the blob alone
	m := &made{handle: newHandle(), attributes: f.Attributes, blob: blob}
	other := s.provider(t)
	m.open(t, other)
	m.mustWork(t, "the adopted key")
	if err := other.Destroy(t.Context(), m.handle); err != nil {
		t.Errorf("Destroy of a handle that has no object: %v", err)
	}
	m.mustWork(t, "the adopted key, after the Destroy of a handle that has no object")
	if now := count(); now != before {
		t.Errorf("the device had %d objects, and has %d", before, now)
	}
	for range 2 {
		if err := adopter.DestroyObject(t.Context(), f.Object, blob.Public); err != nil {
			t.Errorf("DestroyObject: %v", err)
		}
	}
	if slices.ContainsFunc(list(), func(o providers.Foreign) bool { return o.Object == f.Object }) {
		t.Error("the destroyed key is listed")
	}
	k, err := s.provider(t).Open(t.Context(), m.handle, m.attributes, m.blob)
	if err == nil {
		defer k.Close()
		_, err = m.privately(context.Background(), k, []byte("gone"))
	}
	wantStatus(t, "using a destroyed key", err, psa.StatusDoesNotExist, psa.StatusInvalidHandle, psa.StatusProviderAbsent)
	own.mustWork(t, "our own key, at the end")
}
