package tpm

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// done finishes a run that began, or did not.
func done(t *testing.T, input []byte) func(psa.Run, error) (map[string][]byte, error) {
	return func(r psa.Run, err error) (map[string][]byte, error) {
		if err != nil {
			return nil, err
		}
		if _, err := r.Write(input); err != nil {
			r.Abort()
			return nil, err
		}
		result, err := r.Finish(t.Context())
		return result.Outputs, err
	}
}

// boundKey makes a key that is bound to PCRs, or to none.
func boundKey(t *testing.T, p providers.Provider, template string, pcrs psa.PCRs) providers.Key {
	t.Helper()
	a, err := psa.ParseTemplate(template)
	if err != nil {
		t.Fatal(err)
	}
	a.PCRs = pcrs
	blob, err := p.Create(t.Context(), providers.Handle{}, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.Open(t.Context(), providers.Handle{}, a, blob)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func attestOp(k providers.Key) psa.Op {
	return psa.Op{Operation: psa.Attest, Algorithm: k.Attributes().Algorithm}
}

// TestAttestAndPCRs: a key that is bound to registers is certified whatever they are; it signs for others as it would
// sign, and activates nothing.
func TestAttestAndPCRs(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	p := newProvider(t, chip)
	defer p.Close()
	const debug = 16
	free, bound := boundKey(t, p, "ecdsa-p256-sha256", 0), boundKey(t, p, "ecdsa-p384-sha384", 1<<debug)
	challenge := []byte("challenge")
	try := func(signs bool) {
		t.Helper()
		for range 3 {
			out, err := done(t, challenge)(bound.Begin(t.Context(), attestOp(bound)))
			if err != nil {
				t.Fatal(err)
			}
			area, err := providertest.CheckCertified(out, providertest.AttestationAlgorithm, challenge)
			if err != nil || len(area.AuthPolicy.Buffer) != 32 {
				t.Errorf("a key with PCRs: %v", err)
			}
			out, err = done(t, challenge)(free.(providers.Certifier).Certify(t.Context(), attestOp(free), bound))
			if err == nil {
				_, err = providertest.CheckCertified(out, bound.Attributes().Algorithm, challenge)
			}
			if signs != (err == nil) || err != nil && psa.StatusOf(err) != psa.StatusNotPermitted {
				t.Errorf("signed by a key with PCRs: %v", err)
			}
			// the session that is kept for signatures comes and goes
			_, err = done(t, challenge)(free.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: free.Attributes().Algorithm}))
			if err != nil {
				t.Error(err)
			}
		}
		op := psa.Op{Operation: psa.ActivateCredential, Algorithm: bound.Attributes().Algorithm}
		if _, err := done(t, challenge)(bound.Begin(t.Context(), op)); psa.StatusOf(err) != psa.StatusNotSupported {
			t.Errorf("a credential for a key with PCRs: %v", err)
		}
	}
	try(true)
	pcr := tpm2.AuthHandle{Handle: tpm2.TPMHandle(debug), Auth: tpm2.PasswordAuth(nil)}
	err := p.(*provider).chip.use(t.Context(), "extend", func() error {
		_, err := tpm2.PCRExtend{PCRHandle: pcr, Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}}}.Execute(p.(*provider).chip.link)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	try(false)
}

// TestEndorsementAuth: attestation needs the endorsement hierarchy's authorization, and nothing else does; what is wrong
// leaves nothing behind in a TPM with three slots and three sessions.
func TestEndorsementAuth(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	l := raw(t, chip)
	if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHEndorsement, Auth: tpm2.PasswordAuth(nil)},
		NewAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}}).Execute(l); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	for auth, works := range map[string]bool{"": false, "wrong": false, "right": true, "hex:7269676874": true} {
		opened, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": chip.TCTI(), "endorsement_hierarchy_auth": auth}})
		if err != nil {
			t.Fatal(err)
		}
		p := opened.(*provider)
		k := boundKey(t, p, "ecdsa-p256-sha256", 0)
		for range 5 {
			_, signing := done(t, nil)(k.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: k.Attributes().Algorithm}))
			if signing != nil {
				t.Errorf("%q: signing: %v", auth, signing)
			}
			credential, err := done(t, []byte("secret"))(p.Attest(t.Context(), psa.Op{Operation: psa.MakeCredential}))
			if err == nil {
				_, err = done(t, credential["credential"])(p.Attest(t.Context(), psa.Op{Operation: psa.ActivateCredential}))
			}
			if works != (err == nil) || err != nil && (psa.StatusOf(err) != psa.StatusNotPermitted || psa.HintOf(err) == "") {
				t.Errorf("%q: %v", auth, err)
			}
			_, err = done(t, nil)(k.Begin(t.Context(), attestOp(k)))
			if works != (err == nil) {
				t.Errorf("%q: attest: %v", auth, err)
			}
			if _, err = done(t, nil)(k.(providers.Certifier).Certify(t.Context(), attestOp(k), k)); err != nil {
				t.Errorf("%q: attest, signed by a key: %v", auth, err)
			}
			facts, err := p.Facts(t.Context())
			if works != (err == nil) || works != (len(facts) == 4+psa.MaxPCR+1) || len(facts) < psa.MaxPCR+1 {
				t.Errorf("%q: %d facts, %v", auth, len(facts), err)
			}
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestActivateOnCurve: a credential for the endorsement key on P-256 is opened too, and one for another TPM's is none.
func TestActivateOnCurve(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	p := newProvider(t, chip).(*provider)
	defer p.Close()
	var ek string
	err := p.chip.use(t.Context(), "make", func() error {
		return p.chip.endorsed(tpm2.ECCEKTemplate, 0, func(_ tpm2.AuthHandle, area *tpm2.TPMTPublic) error {
			key, err := publicIn(area)
			if err == nil {
				ek, err = publicPEM(key)
			}
			return err
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	activate := func(ek []byte) ([]byte, error) {
		credential, err := done(t, []byte("secret"))(p.Attest(t.Context(), psa.Op{Operation: psa.MakeCredential, Inputs: map[string][]byte{"endorsement_key": ek}}))
		if err != nil {
			t.Fatal(err)
		}
		out, err := done(t, credential["credential"])(p.Attest(t.Context(), psa.Op{Operation: psa.ActivateCredential}))
		return out["secret"], err
	}
	block, _ := pem.Decode([]byte(ek))
	for _, form := range [][]byte{[]byte(ek), block.Bytes} {
		if got, err := activate(form); err != nil || string(got) != "secret" {
			t.Errorf("%q, %v", got, err)
		}
	}
	onCurve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ofRSA, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, other := range []any{&onCurve.PublicKey, &ofRSA.PublicKey} {
		der, err := x509.MarshalPKIXPublicKey(other)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			if got, err := activate(der); psa.StatusOf(err) != psa.StatusInvalidSignature || got != nil {
				t.Errorf("for another TPM's %T: %q, %v", other, got, err)
			}
		}
	}
	if got, err := activate(nil); err != nil || string(got) != "secret" {
		t.Errorf("after all that: %q, %v", got, err)
	}
}

// TestAttestAfterClear: TPM2_Clear changes neither the endorsement key nor the attestation key.
func TestAttestAfterClear(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	p := newProvider(t, chip).(*provider)
	defer func() { _ = p.Close() }()
	before, err := p.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = p.chip.use(t.Context(), "clear", func() error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(p.chip.link)
		p.chip.disconnect()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Facts(t.Context()); psa.StatusOf(err) != psa.StatusProviderAbsent {
		t.Errorf("the storage root key is another one now: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = newProvider(t, chip).(*provider)
	after, err := p.Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if before[i] != after[i] {
			t.Errorf("%+v was %+v", after[i], before[i])
		}
	}
}

// TestAttestSmall: what a TPM with two slots has no room for is refused, and it goes on.
func TestAttestSmall(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t)).(*provider)
	defer p.Close()
	a, b := boundKey(t, p, "ecdsa-p256-sha256", 0), boundKey(t, p, "ecdsa-p256-sha256", 0)
	p.chip.room = 1
	for range 2 {
		if _, err := done(t, nil)(a.(providers.Certifier).Certify(t.Context(), attestOp(a), b)); psa.StatusOf(err) != psa.StatusInsufficientMemory {
			t.Errorf("two keys in one slot: %v", err)
		}
		if _, err := done(t, nil)(a.Begin(t.Context(), attestOp(a))); psa.StatusOf(err) != psa.StatusInsufficientMemory {
			t.Errorf("a key and the TPM's own: %v", err)
		}
		if _, err := done(t, nil)(p.Attest(t.Context(), psa.Op{Operation: psa.Attest})); err != nil {
			t.Errorf("a quote: %v", err)
		}
		if _, err := done(t, nil)(a.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: a.Attributes().Algorithm})); err != nil {
			t.Error(err)
		}
	}
}

// TestCertifyRefused: a signer that is closed, that does not sign or that is another TPM's, and other operations.
func TestCertifyRefused(t *testing.T) {
	t.Parallel()
	p, other := newProvider(t, tpmtest.Start(t)), newProvider(t, tpmtest.Start(t))
	defer p.Close()
	defer other.Close()
	k, closed, agrees := boundKey(t, p, "ecdsa-p256-sha256", 0), boundKey(t, p, "ecdsa-p256-sha256", 0), boundKey(t, p, "ecdh-p256", 0)
	theirs := boundKey(t, other, "ecdsa-p256-sha256", 0)
	begun, err := k.(providers.Certifier).Certify(t.Context(), attestOp(k), closed)
	if err != nil {
		t.Fatal(err)
	}
	if err := closed.Close(); err != nil {
		t.Fatal(err)
	}
	uses := begun.(*finishing)
	if _, err := done(t, nil)(begun, nil); err != nil {
		t.Errorf("begun before the signer was closed: %v", err)
	}
	for _, u := range []*use{uses.u, uses.by} {
		if !bytes.Equal(u.key.Auth, make([]byte, authSize)) {
			t.Error("Finish left an authorization in memory")
		}
	}
	for what, by := range map[string]struct {
		signer providers.Key
		op     psa.Operation
		want   psa.Status
	}{
		"a closed signer":         {closed, psa.Attest, psa.StatusInvalidHandle},
		"a signer that agrees":    {agrees, psa.Attest, psa.StatusNotSupported},
		"another TPM's":           {theirs, psa.Attest, psa.StatusNotSupported},
		"another operation":       {k, psa.Sign, psa.StatusNotSupported},
		"no key of this provider": {nil, psa.Attest, psa.StatusNotSupported},
	} {
		op := attestOp(k)
		op.Operation = by.op
		if r, err := k.(providers.Certifier).Certify(t.Context(), op, by.signer); psa.StatusOf(err) != by.want || r != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzParseCredential(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	ek, err := parseEndorsementKey(der)
	if err != nil {
		f.Fatal(err)
	}
	name, err := nameOf(ek)
	if err != nil {
		f.Fatal(err)
	}
	good, err := makeCredential(ek, name, []byte("secret"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[8:])
	f.Add(good[:20])
	f.Add([]byte{0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		object, seed, err := parseCredential(b)
		if err != nil {
			if s := psa.StatusOf(err); s != psa.StatusInvalidArgument && s != psa.StatusNotSupported {
				t.Errorf("%v", err)
			}
			return
		}
		back := append(tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: object}), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: seed})...)
		if len(object) == 0 || len(seed) == 0 || !bytes.HasSuffix(b, back) || len(b) != len(back) && len(b) != len(back)+8 {
			t.Errorf("%x is %x and %x", b, object, seed)
		}
	})
}

func FuzzParsePublicArea(f *testing.F) {
	ak := akTemplate()
	f.Add(tpm2.Marshal(ak))
	f.Add(tpm2.Marshal(tpm2.New2B(ak)))
	f.Add(tpm2.Marshal(tpm2.RSAEKTemplate))
	f.Add([]byte{0, 1, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		name, err := parsePublicArea(b)
		if err != nil {
			if s := psa.StatusOf(err); s != psa.StatusInvalidArgument && s != psa.StatusNotSupported {
				t.Errorf("%v", err)
			}
			return
		}
		if len(name.Buffer) < 22 {
			t.Errorf("the name %x", name.Buffer)
		}
	})
}

func FuzzParseEndorsementKey(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(der)
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	f.Add([]byte("-----BEGIN PUBLIC KEY-----"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ek, err := parseEndorsementKey(b)
		if err != nil {
			if s := psa.StatusOf(err); s != psa.StatusInvalidArgument && s != psa.StatusNotSupported {
				t.Errorf("%v", err)
			}
			return
		}
		if _, err := makeCredential(ek, tpm2.TPM2BName{Buffer: make([]byte, 34)}, []byte("secret")); err != nil {
			t.Error(err)
		}
	})
}
