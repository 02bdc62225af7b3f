package tpm

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// errWrong is of an answer that is none of what was asked.
var errWrong = errors.New("a wrong answer")

func wrong(format string, args ...any) error {
	return fmt.Errorf("%w: %s", errWrong, fmt.Sprintf(format, args...))
}

// kept is a key as the KIM keeps it.
type kept struct {
	a    psa.Attributes
	blob providers.Blob
}

// story is what a provider does with a TPM, each step with a connection of its own.
type story struct {
	t       *testing.T
	chip    *tpmtest.Chip
	keys    map[string]kept
	secrets [][]byte // what must never go by in the clear
	facts   []providers.Fact
	table   []psa.Capability
	id      string

	imported                 map[string]*psa.Material
	ecPeer                   *ecdh.PrivateKey
	agreed, cipher, file     []byte
	hmacKey                  []byte
	wrapped, wrappedPCR      []byte
	object                   string
	quoteKey, endorsementKey string

	sent []tpmtest.Exchange // by the last step
	made func() error       // has what a step made used without the relay, once its provider is closed
}

// step is one operation; it gives nil where the answer is right, and errWrong where it is not.
type step struct {
	name   string
	before func()
	run    func(ctx context.Context, p providers.Provider) error
	after  func() error // once the provider is closed and run gave nil
}

const wrapText = "a data key of thirty-two bytes.."

func newStory(t *testing.T, chip *tpmtest.Chip) *story {
	s := &story{t: t, chip: chip, keys: map[string]kept{}, imported: map[string]*psa.Material{}}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	s.must(err)
	scalar, err := ec.Bytes()
	s.must(err)
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	s.must(err)
	s.hmacKey = make([]byte, 32)
	_, err = rand.Read(s.hmacKey)
	s.must(err)
	for name, key := range map[string]any{"ecdsa-p256-sha256": ec, "ecdh-p256": ec, "rsa-2048-pss-sha256": rk, "rsa-2048-oaep-sha256": rk} {
		der, err := x509.MarshalPKCS8PrivateKey(key)
		s.must(err)
		s.imported[name] = &psa.Material{Format: psa.FormatPKCS8, Data: der}
	}
	s.imported["hmac-sha256"] = &psa.Material{Format: psa.FormatRaw, Data: s.hmacKey}
	s.secrets = [][]byte{scalar, rk.Primes[0].Bytes(), rk.Primes[1].Bytes(), s.hmacKey, []byte(wrapText),
		[]byte("a plaintext of some length"), []byte("a credential's secret")}

	p := newProvider(t, chip)
	for name, m := range s.imported {
		s.keep(p, name, name, m, 0)
	}
	s.keep(p, "exported", "ecdsa-p256-sha256", s.imported["ecdsa-p256-sha256"], psa.UsageExport)
	s.keepPCR(p)
	s.ecPeer, err = ecdh.P256().GenerateKey(rand.Reader)
	s.must(err)
	own, err := ec.ECDH()
	s.must(err)
	s.agreed, err = s.ecPeer.ECDH(own.PublicKey())
	s.must(err)
	s.secrets = append(s.secrets, s.agreed)
	s.cipher, err = rsa.EncryptOAEP(sha256.New(), rand.Reader, &rk.PublicKey, []byte("a plaintext of some length"), nil)
	s.must(err)
	w := p.(providers.Wrapper)
	s.wrapped, err = w.Wrap(t.Context(), []byte(wrapText), 0, nil)
	s.must(err)
	s.wrappedPCR, err = w.Wrap(t.Context(), []byte(wrapText), 1<<7|1<<16, nil)
	s.must(err)
	s.facts, err = p.(providers.Informer).Facts(t.Context())
	s.must(err)
	for _, f := range s.facts {
		switch f.Name {
		case "attestation_key":
			s.quoteKey = f.Value
		case "endorsement_key":
			s.endorsementKey = f.Value
		}
	}
	s.table, err = p.Capabilities(t.Context())
	s.must(err)
	s.id, err = p.Identity(t.Context())
	s.must(err)
	out, err := s.do(t.Context(), p, "exported", psa.Op{Operation: psa.Export}, nil)
	s.must(err)
	s.file = out["key"]
	s.must(p.Close())
	return s
}

func (s *story) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *story) keep(p providers.Provider, name, template string, m *psa.Material, usage psa.Usage) {
	s.t.Helper()
	a, err := psa.ParseTemplate(template)
	s.must(err)
	a.Usage |= usage
	blob, err := p.Create(s.t.Context(), providers.Handle{}, a, m)
	s.must(err)
	s.keys[name] = kept{a, blob}
}

func (s *story) keepPCR(p providers.Provider) {
	a, err := psa.ParseTemplate("ecdsa-p256-sha256")
	s.must(err)
	a.PCRs = 1 << 7
	blob, err := p.Create(s.t.Context(), providers.Handle{}, a, nil)
	s.must(err)
	s.keys["bound"] = kept{a, blob}
}

// do uses a key.
func (s *story) do(ctx context.Context, p providers.Provider, name string, op psa.Op, input []byte) (map[string][]byte, error) {
	return use1(ctx, p, s.keys[name], op, input)
}

func use1(ctx context.Context, p providers.Provider, key kept, op psa.Op, input []byte) (map[string][]byte, error) {
	k, err := p.Open(ctx, providers.Handle{}, key.a, key.blob)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	if op.Algorithm == psa.AlgNone && op.Operation != psa.Export {
		op.Algorithm = key.a.Algorithm
	}
	return finish(ctx, input)(k.Begin(ctx, op))
}

func finish(ctx context.Context, input []byte) func(psa.Run, error) (map[string][]byte, error) {
	return func(r psa.Run, err error) (map[string][]byte, error) {
		if err != nil {
			return nil, err
		}
		if len(input) > 0 {
			if _, err := r.Write(input); err != nil {
				r.Abort()
				return nil, err
			}
		}
		result, err := r.Finish(ctx)
		return result.Outputs, err
	}
}

// signs has a key sign, and verifies it in software.
func signs(ctx context.Context, p providers.Provider, key kept) error {
	out, err := use1(ctx, p, key, psa.Op{Operation: psa.Sign}, []byte("message"))
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(key.blob.Public)
	if err != nil {
		return wrong("a public key: %v", err)
	}
	return verifies(public, key.a.Algorithm, []byte("message"), out["signature"])
}

func verifies(public any, alg psa.Algorithm, message, sig []byte) error {
	digest := sha256.Sum256(message)
	switch k := public.(type) {
	case *rsa.PublicKey:
		if err := rsa.VerifyPSS(k, 5, digest[:], sig, nil); err != nil {
			return wrong("%s: %v", alg, err)
		}
	case *ecdsa.PublicKey:
		if len(sig) == 64 { // r || s
			var err error
			if sig, err = asn1.Marshal(struct{ R, S asn1.RawValue }{integer(sig[:32]), integer(sig[32:])}); err != nil {
				return err
			}
		}
		if !ecdsa.VerifyASN1(k, digest[:], sig) {
			return wrong("%s: %x", alg, sig)
		}
	}
	return nil
}

func integer(b []byte) asn1.RawValue {
	b = bytes.TrimLeft(b, "\x00")
	if len(b) == 0 || b[0]&0x80 != 0 {
		b = append([]byte{0}, b...)
	}
	return asn1.RawValue{Tag: asn1.TagInteger, Bytes: b}
}

// says checks what an attestation says, and who signed it.
func (s *story) says(out map[string][]byte, challenge string) error {
	if string(out["signer_public"]) != s.quoteKey {
		return wrong("the signer is %s", out["signer_public"])
	}
	block, _ := pem.Decode([]byte(s.quoteKey))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return err
	}
	if !bytes.Contains(out["attestation"], []byte(challenge)) {
		return wrong("no challenge in %x", out["attestation"])
	}
	return verifies(public, psa.ECDSA(psa.SHA256), out["attestation"], out["signature"])
}

func is(got []byte, err error, want string) error {
	if err == nil && string(got) != want {
		return wrong("%q instead of %q", got, want)
	}
	return err
}

const evicted = tpm2.TPMHandle(0x81000005)

// lies puts a key of somebody else into the TPM.
func (s *story) lies() {
	s.t.Helper()
	l := raw(s.t, s.chip)
	defer l.Close()
	a, err := psa.ParseTemplate("ecdsa-p256-sha256")
	s.must(err)
	key, err := tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(template(a, false, nil))}.Execute(l)
	s.must(err)
	s.object = object(evicted, key.Name.Buffer)
	if _, err := (tpm2.ReadPublic{ObjectHandle: evicted}).Execute(l); err != nil {
		_, err = tpm2.EvictControl{Auth: tpm2.TPMRHOwner, PersistentHandle: evicted,
			ObjectHandle: &tpm2.NamedHandle{Handle: key.ObjectHandle, Name: key.Name}}.Execute(l)
		s.must(err)
	}
	_, err = tpm2.FlushContext{FlushHandle: key.ObjectHandle}.Execute(l)
	s.must(err)
}

func (s *story) isThere() bool {
	l := raw(s.t, s.chip)
	defer l.Close()
	_, err := tpm2.ReadPublic{ObjectHandle: evicted}.Execute(l)
	return err == nil
}

func (s *story) steps() []step {
	plain := func(name string, run func(context.Context, providers.Provider) error) step {
		return step{name: name, run: run}
	}
	list := []step{
		plain("identity", func(ctx context.Context, p providers.Provider) error {
			id, err := p.Identity(ctx)
			if err == nil && id != s.id {
				return errors.New("another device") // for the KIM to refuse
			}
			return err
		}),
		plain("capabilities", func(ctx context.Context, p providers.Provider) error {
			table, err := p.Capabilities(ctx)
			if err == nil && fmt.Sprint(table) != fmt.Sprint(s.table) {
				if len(table) < len(s.table) {
					return nil // a refused parameter is a refusal, whoever says it
				}
				return wrong("%d lines, not %d", len(table), len(s.table))
			}
			return err
		}),
		plain("random", func(ctx context.Context, p providers.Provider) error {
			b := make([]byte, 32)
			if err := p.(providers.Random).Random(ctx, b); err != nil {
				return err
			}
			if bytes.Contains(b, make([]byte, 8)) {
				return wrong("random bytes %x", b)
			}
			return nil
		}),
		plain("facts", func(ctx context.Context, p providers.Provider) error {
			done := make(chan error, 1)
			go func() { // a chip makes its keys after whoever asked has gone
				facts, err := p.(providers.Informer).Facts(ctx)
				for _, f := range facts { // those beside an error are to be right too
					if !slices.Contains(s.facts, f) {
						err = wrong("%s = %q", f.Name, f.Value)
					}
				}
				done <- err
			}()
			select {
			case err := <-done:
				return err
			case <-ctx.Done():
				return ctx.Err()
			}
		}),
		plain("agree", func(ctx context.Context, p providers.Provider) error {
			out, err := s.do(ctx, p, "ecdh-p256", psa.Op{Operation: psa.Agree}, s.ecPeer.PublicKey().Bytes())
			return is(out["secret"], err, string(s.agreed))
		}),
		plain("decrypt", func(ctx context.Context, p providers.Provider) error {
			out, err := s.do(ctx, p, "rsa-2048-oaep-sha256", psa.Op{Operation: psa.Decrypt}, s.cipher)
			return is(out["plaintext"], err, "a plaintext of some length")
		}),
		plain("unwrap", func(ctx context.Context, p providers.Provider) error {
			b, err := p.(providers.Wrapper).Unwrap(ctx, s.wrapped, nil)
			return is(b, err, wrapText)
		}),
		plain("unwrap with PCRs", func(ctx context.Context, p providers.Provider) error {
			b, err := p.(providers.Wrapper).Unwrap(ctx, s.wrappedPCR, nil)
			return is(b, err, wrapText)
		}),
		plain("quote", func(ctx context.Context, p providers.Provider) error {
			out, err := finish(ctx, []byte("challenge"))(p.(providers.Attester).Attest(ctx, psa.Op{Operation: psa.Attest}))
			if err != nil {
				return err
			}
			return s.says(out, "challenge")
		}),
		plain("attest", func(ctx context.Context, p providers.Provider) error {
			out, err := s.do(ctx, p, "ecdsa-p256-sha256", psa.Op{Operation: psa.Attest}, []byte("challenge"))
			if err != nil {
				return err
			}
			return s.says(out, "challenge")
		}),
		plain("credential", func(ctx context.Context, p providers.Provider) error {
			out, err := finish(ctx, []byte("a credential's secret"))(p.(providers.Attester).Attest(ctx, psa.Op{Operation: psa.MakeCredential}))
			if err == nil {
				out, err = finish(ctx, out["credential"])(p.(providers.Attester).Attest(ctx, psa.Op{Operation: psa.ActivateCredential}))
			}
			return is(out["secret"], err, "a credential's secret")
		}),
		plain("export", func(ctx context.Context, p providers.Provider) error {
			_, err := s.do(ctx, p, "exported", psa.Op{Operation: psa.Export}, nil)
			return err
		}),
		{name: "foreign", before: s.lies, run: func(ctx context.Context, p providers.Provider) error {
			list, err := p.(providers.Adopter).Foreign(ctx)
			if err == nil && !slices.ContainsFunc(list, func(f providers.Foreign) bool { return f.Object == s.object }) {
				return wrong("%v without %s", list, s.object)
			}
			return err
		}},
		{name: "adopt", before: s.lies, run: func(ctx context.Context, p providers.Provider) error {
			f, blob, err := p.(providers.Adopter).Adopt(ctx, psa.Attributes{}, s.object)
			if err != nil {
				return err
			}
			if f.Object != s.object {
				return wrong("%s instead of %s", f.Object, s.object)
			}
			return signs(ctx, p, kept{f.Attributes, blob})
		}},
		{name: "destroy", before: s.lies, run: func(ctx context.Context, p providers.Provider) error {
			return p.(providers.Adopter).DestroyObject(ctx, s.object, nil)
		}, after: func() error {
			if s.isThere() {
				return wrong("the object lies there after it was destroyed")
			}
			return nil
		}},
	}
	for _, name := range []string{"ecdsa-p256-sha256", "rsa-2048-pss-sha256", "bound"} {
		list = append(list, plain("sign "+name, func(ctx context.Context, p providers.Provider) error { return signs(ctx, p, s.keys[name]) }))
	}
	for _, n := range []int{10, 3000} {
		list = append(list, plain(fmt.Sprint("mac of ", n), func(ctx context.Context, p providers.Provider) error {
			out, err := s.do(ctx, p, "hmac-sha256", psa.Op{Operation: psa.Mac}, make([]byte, n))
			h := hmac.New(sha256.New, s.hmacKey)
			h.Write(make([]byte, n))
			return is(out["mac"], err, string(h.Sum(nil)))
		}))
	}
	for _, pcrs := range []psa.PCRs{0, 1 << 7} {
		list = append(list, step{name: fmt.Sprint("wrap ", pcrs.List()), run: func(ctx context.Context, p providers.Provider) error {
			b, err := p.(providers.Wrapper).Wrap(ctx, []byte(wrapText), pcrs, nil)
			if err != nil {
				return err
			}
			return s.unwraps(b)
		}})
	}
	for _, template := range []string{"ecdsa-p256-sha256", "hmac-sha256"} {
		for _, pcrs := range []psa.PCRs{0, 1 << 7} {
			list = append(list, s.making(fmt.Sprint("generate ", template, pcrs.List()), template, nil, pcrs))
		}
	}
	for _, template := range []string{"ecdsa-p256-sha256", "rsa-2048-pss-sha256", "hmac-sha256"} {
		list = append(list, s.making("import "+template, template, s.imported[template], 0))
	}
	return append(list, s.making("import of a file", "ecdsa-p256-sha256", &psa.Material{Format: psa.FormatTSS2, Data: s.file}, 0))
}

// unwraps has a wrapped secret opened without the relay.
func (s *story) unwraps(b []byte) error {
	s.made = func() error {
		p := newProvider(s.t, s.chip)
		defer p.Close()
		got, err := p.(providers.Wrapper).Unwrap(s.t.Context(), b, nil)
		if err != nil {
			return wrong("what was wrapped does not open: %v", err)
		}
		return is(got, nil, wrapText)
	}
	return nil
}

func (s *story) making(name, template string, m *psa.Material, pcrs psa.PCRs) step {
	return step{name: name, run: func(ctx context.Context, p providers.Provider) error {
		a, err := psa.ParseTemplate(template)
		if err != nil {
			return err
		}
		a.PCRs = pcrs
		blob, err := p.Create(ctx, providers.Handle{}, a, m)
		if err != nil {
			return err
		}
		s.made = func() error {
			p := newProvider(s.t, s.chip)
			defer p.Close()
			return s.serves(p, kept{a, blob}, m)
		}
		return nil
	}}
}

// serves says whether a key that was made does its work.
func (s *story) serves(p providers.Provider, key kept, m *psa.Material) error {
	if key.a.Type.IsAsymmetric() {
		if err := signs(s.t.Context(), p, key); err != nil {
			return wrong("the new key: %v", err)
		}
		return nil
	}
	out, err := use1(s.t.Context(), p, key, psa.Op{Operation: psa.Mac}, []byte("message"))
	if err != nil {
		return wrong("the new key: %v", err)
	}
	if m == nil {
		return nil
	}
	h := hmac.New(sha256.New, m.Data)
	h.Write([]byte("message"))
	return is(out["mac"], nil, string(h.Sum(nil)))
}

// changes are what the relay does to one response.
var changes = []string{"swap", "garble", "replay", "cut", "delay"}

// cell is one response of one step, changed in one way.
type cell struct {
	step, response int
	change         string
}

const (
	// patience is a caller's timeout, which only a delayed response meets; hang is when it was none.
	patience      = 30 * time.Second
	shortPatience = 300 * time.Millisecond
	hang          = 8 * time.Second
)

// TestRelay: every response of every command is changed in five ways. No secret leaves, no answer is wrong, and nobody waits
// longer than they said.
func TestRelay(t *testing.T) {
	t.Parallel()
	if os.Getenv("PARSECFS_TEST_LONG") != "1" {
		tryRelay(t, func(int) bool { return true }, 97)
		return
	}
	const shares = 6 // most of the time nothing happens
	for share := range shares {
		t.Run(fmt.Sprint(share), func(t *testing.T) {
			t.Parallel()
			tryRelay(t, func(step int) bool { return step%shares == share }, 1)
		})
	}
}

// tryRelay changes every nth response of these steps.
func tryRelay(t *testing.T, takes func(step int) bool, every int) {
	chip := tpmtest.Start(t)
	relay := tpmtest.NewRelay(t, chip)
	s := newStory(t, chip)
	steps := s.steps()
	var cells []cell
	earlier := map[tpm2.TPMCC][]byte{}
	codes := map[tpm2.TPMCC]bool{}
	taken, responses := 0, 0
	for i, st := range steps {
		if err := s.try(relay, st, nil, patience); err != nil {
			t.Fatalf("%s, with nothing changed: %v", st.name, err)
		}
		for _, x := range s.sent {
			earlier[x.Code] = x.Response
		}
		if !takes(i) {
			continue
		}
		taken++
		for j, x := range s.sent {
			codes[x.Code] = true
			responses++
			for _, c := range changes {
				cells = append(cells, cell{i, j, c})
			}
		}
	}
	counts := map[string]int{}
	random := mathrand.New(mathrand.NewPCG(1, 2))
	tried := 0
	for i := 0; i < len(cells); i += every {
		counts[s.tryCell(relay, steps[cells[i].step], cells[i], earlier, random)]++
		tried++
	}
	t.Logf("%d steps, %d commands, %d responses, %d cells of %d: %v", taken, len(codes), responses, tried, len(cells), counts)
}

// tryCell has one response changed, and says how it ended.
func (s *story) tryCell(relay *tpmtest.Relay, st step, c cell, earlier map[tpm2.TPMCC][]byte, random *mathrand.Rand) string {
	t, n, applied := s.t, 0, ""
	var code tpm2.TPMCC
	swapped := -1
	change := func(x tpmtest.Exchange) tpmtest.Answer {
		defer func() { n++ }()
		if n != c.response {
			return tpmtest.Answer{Response: x.Response}
		}
		applied, code = c.change, x.Code
		b := bytes.Clone(x.Response)
		switch c.change {
		case "swap":
			other, ok := relay.Swap(x, true)
			if !ok {
				applied = "swap of nothing"
				break
			}
			if x.Code == tpm2.TPMCCCreatePrimary && binary.BigEndian.Uint32(x.Command[10:]) == uint32(tpm2.TPMRHOwner) {
				swapped = n
			}
			b = other
		case "garble":
			b[6+random.IntN(len(b)-6)] ^= byte(1 + random.IntN(255))
		case "replay":
			b = earlier[x.Code]
		case "cut":
			return tpmtest.Answer{Response: b[:1+random.IntN(len(b)-1)], Silent: true}
		case "delay":
			return tpmtest.Answer{Silent: true}
		}
		return tpmtest.Answer{Response: b}
	}
	timeout := patience
	if c.change == "delay" {
		timeout = shortPatience
	}
	err := s.try(relay, st, change, timeout)
	relay.Rest()
	where := fmt.Sprintf("%s: response %d (%v): %s", st.name, c.response, code, c.change)
	switch {
	case errors.Is(err, errWrong), errors.Is(err, errHangs):
		t.Errorf("%s: %v", where, err)
	case applied == "delay" && err == nil:
		t.Errorf("%s: no error", where)
	}
	for _, secret := range s.secrets {
		if relay.Saw(secret) {
			t.Errorf("%s: a secret went by", where)
		}
	}
	if swapped >= 0 {
		for _, x := range s.sent[swapped+1:] {
			if x.Code == tpm2.TPMCCCreatePrimary {
				break
			}
			bare := binary.BigEndian.Uint16(x.Command) == uint16(tpm2.TPMSTNoSessions)
			if !bare || !slices.Contains([]tpm2.TPMCC{tpm2.TPMCCFlushContext, tpm2.TPMCCGetCapability, tpm2.TPMCCReadPublic}, x.Code) {
				t.Errorf("%s: %v was sent to somebody else's key", where, x.Code)
			}
		}
	}
	switch {
	case applied == "":
		return "not reached"
	case err == nil:
		return applied + ": right"
	}
	return applied + ": refused"
}

var errHangs = errors.New("it hangs")

// try runs a step, with a new provider that knows the TPM.
func (s *story) try(relay *tpmtest.Relay, st step, change func(tpmtest.Exchange) tpmtest.Answer, timeout time.Duration) error {
	s.t.Helper()
	l := raw(s.t, s.chip)
	s.must((&chip{link: l}).sweep()) // what the last connection left
	s.must(l.Close())
	if st.before != nil {
		st.before()
	}
	s.made = nil
	p, err := Type.New(s.t.Context(), providers.Config{Settings: map[string]any{"tcti": relay.TCTI()}, Known: s.id})
	s.must(err)
	relay.Watch(change)
	ctx, end := context.WithTimeout(s.t.Context(), timeout)
	defer end()
	done := make(chan error, 1)
	go func() { done <- st.run(ctx, p) }()
	select {
	case err = <-done:
	case <-time.After(timeout + hang):
		relay.Drop()
		<-done
		err = errHangs
	}
	s.sent = relay.Sent()
	relay.Drop() // what the end sends is no part of the step
	s.must(p.Close())
	if err == nil && st.after != nil {
		err = st.after()
	}
	if err == nil && s.made != nil {
		err = s.made()
	}
	return err
}
