package tpm

import (
	"bytes"
	"encoding/asn1"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// wrapping is the provider, seen as one that wraps.
func wrapping(t *testing.T, chip *tpmtest.Chip) (providers.Wrapper, func()) {
	t.Helper()
	p := newProvider(t, chip)
	return p.(providers.Wrapper), func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestWrap: what is wrapped is opened by the same TPM, after resets too, and by no other; PCRs bind it.
func TestWrap(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	const debug = 16 // the register that anybody may extend and reset
	secret := []byte("forty-eight bytes, a data key and what names it!")
	blobs := map[psa.PCRs][]byte{0: nil, 1 << debug: nil, 1<<debug | 1<<0 | 1<<7: nil}
	w, end := wrapping(t, chip)
	for pcrs := range blobs {
		b, err := w.Wrap(t.Context(), secret, pcrs, nil)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, secret[:8]) {
			t.Error("the secret is in the blob")
		}
		blobs[pcrs] = b
	}
	for _, size := range []int{0, 65} {
		if _, err := w.Wrap(t.Context(), make([]byte, size), 0, nil); psa.StatusOf(err) != psa.StatusInvalidArgument {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	// try opens each, several times: none may take a slot for good.
	try := func(want func(pcrs psa.PCRs) psa.Status) {
		t.Helper()
		for range 5 {
			for pcrs, b := range blobs {
				got, err := w.Unwrap(t.Context(), b, nil)
				if psa.StatusOf(err) != want(pcrs) || err == nil && !bytes.Equal(got, secret) {
					t.Fatalf("with PCRs %v: %q, %v", pcrs.List(), got, err)
				}
				if psa.StatusOf(err) == psa.StatusNotPermitted && (!strings.Contains(err.Error(), "PCRs [") || psa.HintOf(err) == "") {
					t.Errorf("it says %v, hint %q", err, psa.HintOf(err))
				}
			}
		}
		if n := len(w.(*provider).chip.keys); n > 0 {
			t.Errorf("%d objects stay in the TPM", n)
		}
	}
	always := func(s psa.Status) func(psa.PCRs) psa.Status { return func(psa.PCRs) psa.Status { return s } }
	try(always(psa.StatusSuccess))
	chip.Kill()
	if _, err := w.Unwrap(t.Context(), blobs[0], nil); psa.StatusOf(err) != psa.StatusProviderAbsent &&
		psa.StatusOf(err) != psa.StatusCommunicationFailure {
		t.Errorf("without a TPM: %v", err)
	}
	chip.Restart()
	try(always(psa.StatusSuccess))

	end()
	l := raw(t, chip)
	_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(debug), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}}}.Execute(l)
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	w, end = wrapping(t, chip)
	try(func(pcrs psa.PCRs) psa.Status {
		if pcrs == 0 {
			return psa.StatusSuccess
		}
		return psa.StatusNotPermitted
	})

	end()
	chip.Exchange()
	w, end = wrapping(t, chip)
	try(always(psa.StatusProviderAbsent))
	end()
	chip.Exchange()
	l = raw(t, chip)
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(l); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	w, end = wrapping(t, chip)
	try(always(psa.StatusProviderAbsent))
	end()
}

// TestUnwrapBesideKeys: keys that are in use stay usable, on a TPM with few slots too.
func TestUnwrapBesideKeys(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t))
	defer p.Close()
	w := p.(providers.Wrapper)
	b, err := w.Wrap(t.Context(), []byte("secret"), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		a, _, k := newKey(t, p, "hmac-sha256")
		defer k.Close()
		for range 2 {
			r, err := k.Begin(t.Context(), psa.Op{Operation: psa.Mac, Algorithm: a.Algorithm})
			if err == nil {
				_, err = r.Finish(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := w.Unwrap(t.Context(), b, nil); err != nil || string(got) != "secret" {
				t.Fatalf("%q, %v", got, err)
			}
		}
	}
}

// FuzzParseWrapped: nothing but what Wrap gives is handed to the TPM.
func FuzzParseWrapped(f *testing.F) {
	for _, pcrs := range []int64{0, 1 << 7, 1 << 24, -1} {
		var policy []byte
		if pcrs != 0 {
			policy = make([]byte, 32)
		}
		for version, salt := range map[int][]byte{wrappedVersion: nil, wrappedPINVersion: make([]byte, pinSalt)} {
			b, err := asn1.Marshal(wrapped{version, make([]byte, 34), tpm2.Marshal(sealedTemplate(policy, salt != nil)), []byte("private"),
				pcrs, salt})
			if err != nil {
				f.Fatal(err)
			}
			f.Add(b)
			f.Add(b[:len(b)-3])
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := parseWrapped(b)
		if err != nil {
			if psa.StatusOf(err) != psa.StatusProviderAbsent {
				t.Error(err)
			}
			return
		}
		if (w.Version == wrappedPINVersion) != (len(w.Salt) == pinSalt) || w.PCRs>>(psa.MaxPCR+1) != 0 {
			t.Errorf("%+v", w)
		}
	})
}
