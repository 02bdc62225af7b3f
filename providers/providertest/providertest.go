// Package providertest is the conformance suite that every provider passes.
package providertest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Options say what a provider is like.
type Options struct {
	// KeysInBlob is set where the blob is the key: nothing has a handle, and Destroy has nothing to destroy.
	KeysInBlob bool
	// Wrapped is set where export gives a key in the device's own wrapping, which nobody else can read.
	Wrapped bool
	// Slow says of which lines no key is generated; what else they name is tried on an imported one. They are no samples
	// of their types.
	Slow func(psa.Capability) bool
	// Foreign makes a P-256 signing key on the device as another tool would, and gives a reference to it; nil where
	// the provider adopts none; its last character is not 0. Count tells how many objects of whatever kind the device
	// has; where it is nil, the provider's own list does.
	Foreign func(t *testing.T) (reference string)
	Count   func(t *testing.T) int
}

// Run tries a provider. Each call of open gives another instance on the same device, which the suite closes. Keys
// that the suite makes are destroyed in the end.
func Run(t *testing.T, open func(t *testing.T) providers.Provider, o Options) {
	s := &suite{open: open, o: o}
	p := open(t)
	lines, err := p.Capabilities(t.Context())
	if err = errors.Join(err, p.Close()); err != nil { // closed: a device may have one user at a time
		t.Fatalf("Capabilities: %v", err)
	}
	s.lines = lines
	for _, property := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Describe", s.describe},
		{"Identity", s.identity},
		{"Capabilities", s.capabilities},
		{"Lines", s.eachLine},
		{"NotListedCreate", s.notListedCreate},
		{"NotListedBegin", s.notListedBegin},
		{"WrongMaterial", s.wrongMaterial},
		{"ExistingHandle", s.existingHandle},
		{"Destroy", s.destroy},
		{"Reopen", s.reopen},
		{"Abort", s.abort},
		{"Close", s.closing},
		{"Parallel", s.parallel},
		{"CancelledCreate", s.cancelledCreate},
		{"CancelledFinish", s.cancelledFinish},
		{"Random", s.random},
		{"Adoption", s.adoption},
		{"Counters", s.counters},
		{"Wrapping", s.wrapping},
		{"Contradictions", s.contradictions},
		{"PSSKeys", s.pssKeys},
	} {
		t.Run(property.name, property.run)
	}
}

type suite struct {
	open  func(*testing.T) providers.Provider
	o     Options
	lines []psa.Capability
}

func (s *suite) provider(t *testing.T) providers.Provider {
	t.Helper()
	p := s.open(t)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return p
}

func (s *suite) slow(c psa.Capability) bool { return s.o.Slow != nil && s.o.Slow(c) }

// lists says whether a line names op for such a key, with alg itself or with a wildcard that stands for it.
func (s *suite) lists(op psa.Operation, t psa.KeyType, bits int, alg psa.Algorithm) bool {
	return slices.ContainsFunc(s.lines, func(c psa.Capability) bool {
		policy := psa.Attributes{Type: t, Bits: bits, Algorithm: c.Algorithm, Usage: ^psa.Usage(0)}
		return c.Has(op) && (c.Covers(t, bits, alg) || c.Covers(t, bits, c.Algorithm) && policy.Permits(op, alg) == nil)
	})
}

// sized is the line for one of its sizes.
func sized(c psa.Capability) psa.Capability {
	if sizes := c.Sizes(); c.Most != 0 {
		c.Bits, c.Most = sizes[min(64, len(sizes)/2)], 0
	}
	return c
}

// samples are one line for each type of key that takes any message, those that generate first.
func (s *suite) samples() []psa.Capability {
	var found []psa.Capability
	have := map[psa.KeyType]bool{}
	for _, way := range []psa.Operation{psa.Generate, psa.Import} {
		for _, c := range s.lines {
			usable := c.Has(psa.Sign) || c.Algorithm.IsAEAD() && c.Has(psa.Encrypt) && c.Has(psa.Decrypt)
			if !have[c.Type] && usable && c.Has(way) && !s.slow(c) {
				have[c.Type] = true
				found = append(found, c)
			}
		}
	}
	return found
}

// eachSample runs a property on a fresh provider and a fresh key of each sample.
func (s *suite) eachSample(t *testing.T, run func(*testing.T, providers.Provider, *made)) {
	samples := s.samples()
	if len(samples) == 0 {
		t.Error("no line's key can be used")
	}
	for _, c := range samples {
		t.Run(lineName(c), func(t *testing.T) {
			p := s.provider(t)
			run(t, p, s.make(t, p, c))
		})
	}
}

func lineName(c psa.Capability) string {
	name := c.Template
	if name == "" {
		name = c.Type.String()
	}
	if c.Type.IsPublicKey() {
		name += "-public"
	}
	words := make([]string, len(c.Operations))
	for i, op := range c.Operations {
		words[i] = string(op)
	}
	return name + ":" + strings.Join(words, ",")
}

// made is a key of the provider, and what is known of it elsewhere.
type made struct {
	key        providers.Key
	handle     providers.Handle
	attributes psa.Attributes
	blob       providers.Blob
	known      *known // of an imported key
}

func newHandle() (h providers.Handle) {
	_, _ = rand.Read(h[:]) // never fails
	return h
}

func attributesOf(c psa.Capability) psa.Attributes {
	a := c.Attributes()
	if c.Has(psa.Export) {
		a.Usage |= psa.UsageExport
	}
	if c.Has(psa.Copy) {
		a.Usage |= psa.UsageCopy
	}
	return a
}

// make generates a line's key, or imports one where the line cannot generate, or not quickly.
func (s *suite) make(t *testing.T, p providers.Provider, c psa.Capability) *made {
	t.Helper()
	if c.Has(psa.Generate) && !s.slow(c) {
		return s.create(t, p, attributesOf(c), nil)
	}
	return s.create(t, p, attributesOf(c), newKnown(t, c.Type, c.Bits))
}

func (s *suite) create(t *testing.T, p providers.Provider, a psa.Attributes, k *known) *made {
	t.Helper()
	m := &made{handle: newHandle(), attributes: a, known: k}
	t.Cleanup(func() {
		if err := p.Destroy(context.Background(), m.handle); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	})
	var err error
	if m.blob, err = p.Create(t.Context(), m.handle, a, k.material()); err != nil {
		t.Fatalf("Create: %v", err)
	}
	m.open(t, p)
	return m
}

// open opens the key anew, by another instance perhaps.
func (m *made) open(t *testing.T, p providers.Provider) {
	t.Helper()
	key, err := p.Open(t.Context(), m.handle, m.attributes, m.blob)
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(func() {
		if err := key.Close(); err != nil {
			t.Errorf("closing the key: %v", err)
		}
	})
	m.key = key
}

// do does an operation from beginning to end.
func do(ctx context.Context, k providers.Key, op psa.Op, input ...[]byte) (map[string][]byte, error) {
	r, err := k.Begin(ctx, op)
	if err != nil {
		return nil, err
	}
	return finish(ctx, r, input...)
}

func finish(ctx context.Context, r psa.Run, input ...[]byte) (map[string][]byte, error) {
	for _, b := range input {
		n, err := r.Write(b)
		if err == nil && n != len(b) {
			err = fmt.Errorf("%d of %d bytes were written", n, len(b))
		}
		if err != nil {
			r.Abort()
			return nil, err
		}
	}
	result, err := r.Finish(ctx)
	return result.Outputs, err
}

// wantStatus checks that err has one of the statuses.
func wantStatus(t *testing.T, what string, err error, want ...psa.Status) {
	t.Helper()
	if err == nil {
		t.Errorf("%s: no error; want %v", what, want)
	} else if !slices.Contains(want, psa.StatusOf(err)) {
		t.Errorf("%s: %v; want %v", what, err, want)
	}
}

func (s *suite) describe(t *testing.T) {
	p := s.provider(t)
	d := p.Describe()
	if d.Type == "" || d.Description == "" || d.Vendor == "" { // Version is the build's, and a test has none
		t.Errorf("type, description or vendor is missing: %+v", d)
	}
	if parts := strings.Split(d.TypeUUID, "-"); len(d.TypeUUID) != 36 || len(parts) != 5 {
		t.Errorf("TypeUUID %q is none", d.TypeUUID)
	} else if _, err := hex.DecodeString(strings.Join(parts, "")); err != nil {
		t.Errorf("TypeUUID %q: %v", d.TypeUUID, err)
	}
	if d.Location != "local" && d.Location != "remote" {
		t.Errorf("location %q", d.Location)
	}
	l := d.Limits
	_, weighs := s.provider(t).(providers.Weigher)
	if min(l.Parallel, l.Slow, l.Short) < 0 || l.Slow == 0 && l.Short > 0 || l.Slow > 0 && (l.Parallel > 0 || !weighs) {
		t.Errorf("limits %+v; it says which calls are slow: %t", l, weighs)
	}
	if w, weighs := p.(providers.Weigher); weighs {
		lines, err := p.Capabilities(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range lines {
			for _, op := range c.Operations {
				if a := c.Attributes(); w.Slow(op, a) && w.Quick(op, a) {
					t.Errorf("%s of %s is slow and quick", op, c.Template)
				}
			}
		}
	}
	if again := s.provider(t).Describe(); again != d {
		t.Errorf("another instance says %+v, not %+v", again, d)
	}
}

func (s *suite) identity(t *testing.T) {
	p := s.provider(t)
	var first string
	for i, p := range []providers.Provider{p, p, s.provider(t)} {
		id, err := p.Identity(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			first = id
		}
		if id == "" || id != first {
			t.Errorf("identity %q, first %q", id, first)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := p.Identity(ctx); err == nil {
		t.Error("Identity answers an ended context")
	}
}

func (s *suite) capabilities(t *testing.T) {
	sorted := slices.Clone(s.lines)
	psa.SortCapabilities(sorted)
	if !reflect.DeepEqual(sorted, s.lines) {
		t.Error("the lines are not sorted")
	}
	seen := map[string]bool{}
	for _, c := range s.lines {
		line := c.String()
		if seen[line] {
			t.Errorf("%q stands there twice", line)
		}
		seen[line] = true
		if back, err := psa.ParseCapability(line); err != nil || !reflect.DeepEqual(back, c) {
			t.Errorf("%q parses as %q, %v", line, back, err)
		}
		if len(c.Operations) == 0 {
			t.Errorf("%q names no operation", line)
		}
	}
	again, err := s.provider(t).Capabilities(t.Context())
	if err != nil || !reflect.DeepEqual(again, s.lines) {
		t.Errorf("another instance lists something else: %v", err)
	}
}

// eachLine does all that each line names.
func (s *suite) eachLine(t *testing.T) {
	for _, c := range s.lines {
		name := lineName(c)
		c = sized(c)
		t.Run(name, func(t *testing.T) {
			if c.Type == psa.KeyTypeNone {
				switch {
				case slices.Equal(c.Operations, []psa.Operation{psa.Random}): // the property Random tries it
				case slices.Equal(c.Operations, []psa.Operation{psa.Hash}):
					s.hash(t, c.Algorithm)
				case c.Has(psa.Attest):
					s.device(t, c.Operations)
				default:
					t.Errorf("the line has no key, and names %v", c.Operations)
				}
				return
			}
			p := s.provider(t)
			tried := false
			if c.Has(psa.Generate) && !s.slow(c) {
				tried = true
				t.Run("generated", func(t *testing.T) { s.operations(t, s.create(t, p, attributesOf(c), nil), c) })
			}
			if c.Has(psa.Import) {
				tried = true
				t.Run("imported", func(t *testing.T) {
					s.operations(t, s.create(t, p, attributesOf(c), newKnown(t, c.Type, c.Bits)), c)
				})
			}
			switch {
			case tried:
			case c.Has(psa.Generate):
				t.Skip("the short form makes no such key: it takes the device seconds")
			default:
				t.Error("the line says of no way to make its key")
			}
		})
	}
}

// someTemplates are keys of every kind; whatever of it a provider does not list, it refuses.
var someTemplates = []string{
	"rsa-2048-pkcs1v15-sha256", "rsa-2048-pkcs1v15-sha512-256", "rsa-2048-pss-sha384", "rsa-2048-pss-any", "rsa-2048-oaep-sha256",
	"rsa-2048-pkcs1v15-crypt", "rsa-6144-pss-sha256", "rsa-8192-pkcs1v15-any",
	"ecdsa-p224-sha256", "ecdsa-p256-sha256", "ecdsa-p256-sha384", "ecdsa-p256-sha3-256", "ecdsa-p256-any", "ecdsa-p384-sha384",
	"ecdsa-p521-sha512", "ecdsa-secp256k1-sha256", "ecdsa-brainpoolp256r1-sha256", "deterministic-ecdsa-p256-sha256",
	"ecdh-p256", "x25519", "x448", "ed25519", "ed448",
	"aes-128-gcm", "aes-192-gcm", "aes-256-gcm", "aes-256-ccm", "aes-256-ctr", "aes-256-cbc", "aes-256-cbc-pkcs7", "aes-256-ecb",
	"aes-256-xts", "aes-256-cmac", "chacha20-poly1305", "hmac-sha256",
	"ml-dsa-65", "ml-kem-768", "slh-dsa-sha2-128s",
}

func (s *suite) notListedCreate(t *testing.T) {
	p := s.provider(t)
	refused := func(what string, a psa.Attributes, k *known, want ...psa.Status) {
		t.Helper()
		h := newHandle()
		_, err := p.Create(t.Context(), h, a, k.material())
		wantStatus(t, what, err, want...)
		if err == nil {
			if err := p.Destroy(t.Context(), h); err != nil {
				t.Errorf("Destroy: %v", err)
			}
		}
	}
	for _, template := range someTemplates {
		pair, err := psa.ParseTemplate(template)
		if err != nil {
			t.Fatal(err)
		}
		if !s.lists(psa.Generate, pair.Type, pair.Bits, pair.Algorithm) {
			refused("generating "+template, pair, nil, psa.StatusNotSupported)
		}
		for _, keyType := range slices.Compact([]psa.KeyType{pair.Type, pair.Type.PublicKey()}) {
			a := psa.Capability{Type: keyType, Bits: pair.Bits, Algorithm: pair.Algorithm}.Attributes()
			if keyType.IsPublicKey() {
				// InvalidArgument is psa_generate_key's word for it.
				refused("generating a public key for "+template, a, nil, psa.StatusNotSupported, psa.StatusInvalidArgument)
			}
			if s.lists(psa.Import, a.Type, a.Bits, a.Algorithm) {
				continue
			}
			if k, err := makeKnown(a.Type, a.Bits); err == nil {
				refused(fmt.Sprintf("importing a %s for %s", a.Type, template), a, k, psa.StatusNotSupported)
			}
		}
	}
}

func (s *suite) notListedBegin(t *testing.T) {
	algorithms := []psa.Algorithm{
		psa.AlgNone, psa.RSAPKCS1v15Sign(psa.SHA256), psa.RSAPKCS1v15Sign(psa.SHA384), psa.RSAPSS(psa.SHA256), psa.RSAPSS(psa.SHA3_256),
		psa.RSAPSSAnySalt(psa.SHA256), psa.RSAOAEP(psa.SHA256), psa.RSAPKCS1v15Crypt, psa.RSAPKCS1v15SignRaw,
		psa.ECDSA(psa.SHA256), psa.ECDSA(psa.SHA384), psa.ECDSA(psa.SHA3_256), psa.ECDSAAny, psa.DeterministicECDSA(psa.SHA256),
		psa.PureEdDSA, psa.Ed25519ph, psa.ECDH, psa.GCM, psa.CCM, psa.CTR, psa.CBCPKCS7, psa.CMAC, psa.HMAC(psa.SHA256),
		psa.AEADWithShortenedTag(psa.GCM, 12), psa.ChaCha20Poly1305,
	}
	tried := map[psa.Attributes]bool{}
	p := s.provider(t)
	for _, c := range s.lines {
		c = sized(c)
		a := c.Attributes()
		if a.Type == psa.KeyTypeNone || tried[a] || !c.Has(psa.Import) && s.slow(c) {
			continue
		}
		tried[a] = true
		t.Run(lineName(c), func(t *testing.T) {
			m := s.make(t, p, c)
			for _, op := range psa.Operations() {
				// Making keys and random bytes is not a key's to do, and exporting has no algorithm.
				never := op == psa.Generate || op == psa.Import || op == psa.Random
				try := algorithms
				if !slices.Contains(try, c.Algorithm) {
					try = append(slices.Clone(try), c.Algorithm)
				}
				if op == psa.Export || op == psa.ExportPublic {
					try = []psa.Algorithm{c.Algorithm}
				}
				for _, alg := range try {
					if !never && s.lists(op, c.Type, c.Bits, alg) {
						continue
					}
					r, err := m.key.Begin(t.Context(), psa.Op{Operation: op, Algorithm: alg, Inputs: map[string][]byte{
						"signature": make([]byte, 64), "nonce": make([]byte, 12)}})
					if err == nil {
						r.Abort()
					}
					wantStatus(t, fmt.Sprintf("%s with %s", op, alg), err, psa.StatusNotSupported)
				}
			}
		})
	}
}

func (s *suite) wrongMaterial(t *testing.T) {
	tried := map[psa.Attributes]bool{}
	p := s.provider(t)
	for _, c := range s.lines {
		c = sized(c)
		a := attributesOf(c)
		a.Algorithm, a.Usage = psa.AlgNone, 0
		if !c.Has(psa.Import) || tried[a] {
			continue
		}
		tried[a] = true
		t.Run(lineName(c), func(t *testing.T) {
			good := newKnown(t, c.Type, c.Bits).material()
			a, h := attributesOf(c), newHandle()
			t.Cleanup(func() {
				if err := p.Destroy(context.Background(), h); err != nil {
					t.Errorf("Destroy: %v", err)
				}
			})
			refused := func(what string, m psa.Material) {
				t.Helper()
				before := bytes.Clone(m.Data)
				_, err := p.Create(t.Context(), h, a, &m)
				wantStatus(t, what, err, psa.StatusInvalidArgument)
				if !bytes.Equal(before, m.Data) {
					t.Errorf("%s: the caller's material was changed", what)
				}
			}
			with := func(data []byte) psa.Material { return psa.Material{Format: good.Format, Data: data} }
			refused("nothing", with(nil))
			refused("truncated", with(good.Data[:len(good.Data)-1]))
			refused("half", with(good.Data[:len(good.Data)/2]))
			for _, f := range []psa.MaterialFormat{0, psa.FormatPKCS8, psa.FormatSPKI, psa.FormatRaw} {
				if f != good.Format {
					refused("as "+f.String(), psa.Material{Format: f, Data: good.Data})
				}
			}
			for _, other := range otherMaterial(t, c.Type, c.Bits) {
				refused(other.name, other.material)
			}
			if _, err := p.Create(t.Context(), h, a, good); err != nil {
				t.Errorf("the right material, after all the wrong: %v", err)
			}
		})
	}
}

func (s *suite) existingHandle(t *testing.T) {
	if s.o.KeysInBlob {
		t.Skip("nothing has a handle")
	}
	s.eachSample(t, func(t *testing.T, p providers.Provider, m *made) {
		_, err := p.Create(t.Context(), m.handle, m.attributes, nil)
		wantStatus(t, "generating again", err, psa.StatusAlreadyExists)
		if s.lists(psa.Import, m.attributes.Type, m.attributes.Bits, m.attributes.Algorithm) {
			_, err = p.Create(t.Context(), m.handle, m.attributes, newKnown(t, m.attributes.Type, m.attributes.Bits).material())
			wantStatus(t, "importing over it", err, psa.StatusAlreadyExists)
		}
		m.mustWork(t, "the old key, as it was opened")
		m.open(t, p)
		m.mustWork(t, "the old key, opened again")
	})
}

func (s *suite) destroy(t *testing.T) {
	s.eachSample(t, func(t *testing.T, p providers.Provider, m *made) {
		if err := p.Destroy(t.Context(), newHandle()); err != nil {
			t.Errorf("an absent handle: %v", err)
		}
		m.mustWork(t, "a key, after another handle's Destroy")
		for i := range 3 {
			if err := p.Destroy(t.Context(), m.handle); err != nil {
				t.Errorf("the %d. time: %v", i+1, err)
			}
		}
		if s.o.KeysInBlob {
			return
		}
		k, err := s.provider(t).Open(t.Context(), m.handle, m.attributes, m.blob)
		if err == nil {
			defer k.Close()
			_, err = m.privately(t.Context(), k, []byte("gone"))
		}
		wantStatus(t, "using a destroyed key", err, psa.StatusDoesNotExist, psa.StatusInvalidHandle)
	})
}

func (s *suite) reopen(t *testing.T) {
	s.eachSample(t, func(t *testing.T, p providers.Provider, m *made) {
		// One key of an instance that lives on, and one of an instance that is closed.
		first := s.open(t)
		old := &made{handle: newHandle(), attributes: m.attributes, known: m.known}
		t.Cleanup(func() {
			if err := p.Destroy(context.Background(), old.handle); err != nil {
				t.Errorf("Destroy: %v", err)
			}
		})
		var err error
		old.blob, err = first.Create(t.Context(), old.handle, old.attributes, old.known.material())
		if err = errors.Join(err, first.Close()); err != nil {
			t.Fatal(err)
		}
		for _, m := range []*made{m, old} {
			m.open(t, s.provider(t))
			if !bytes.Equal(m.key.Public(), m.blob.Public) || m.key.Attributes() != m.attributes {
				t.Error("the key is another one now")
			}
			m.mustWork(t, "a key opened by another instance")
		}
	})
}

func (s *suite) abort(t *testing.T) {
	s.eachSample(t, func(t *testing.T, _ providers.Provider, m *made) {
		ended := func(what string, r psa.Run) {
			t.Helper()
			_, err := r.Write([]byte("more"))
			wantStatus(t, "Write after "+what, err, psa.StatusBadState)
			_, err = r.Finish(t.Context())
			wantStatus(t, "Finish after "+what, err, psa.StatusBadState)
			r.Abort()
		}
		r, err := m.key.Begin(t.Context(), m.private())
		if err != nil {
			t.Fatal(err)
		}
		r.Abort() // before anything was written
		ended("Abort at once", r)
		if r, err = m.key.Begin(t.Context(), m.private()); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Write([]byte("some")); err != nil {
			t.Fatal(err)
		}
		r.Abort()
		ended("Abort", r)
		if r, err = m.key.Begin(t.Context(), m.private()); err != nil {
			t.Fatal(err)
		}
		if _, err := finish(t.Context(), r, []byte("whole")); err != nil {
			t.Fatal(err)
		}
		ended("Finish", r)
		m.mustWork(t, "the key after that")
	})
}

func (s *suite) closing(t *testing.T) {
	s.eachSample(t, func(t *testing.T, p providers.Provider, m *made) {
		message := []byte("begun before the key was closed")
		r, err := m.key.Begin(t.Context(), m.private())
		if err != nil {
			t.Fatal(err)
		}
		half, err := m.key.Begin(t.Context(), m.private())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := half.Write(message[:5]); err != nil {
			t.Fatal(err)
		}
		if err := m.key.Close(); err != nil {
			t.Fatal(err)
		}
		if r, err := m.key.Begin(t.Context(), m.private()); err == nil {
			r.Abort()
			t.Error("a closed key begins an operation")
		}
		m.open(t, p) // to check with
		for _, unfinished := range []struct {
			run  psa.Run
			rest []byte
		}{{r, message}, {half, message[5:]}} {
			out, err := finish(t.Context(), unfinished.run, unfinished.rest)
			if err == nil {
				err = m.checks(t.Context(), m.key, message, out)
			}
			if err != nil {
				t.Errorf("a run begun before Close: %v", err)
			}
		}
	})
}

func (s *suite) parallel(t *testing.T) {
	const goroutines, keys, rounds = 16, 4, 4
	p := s.provider(t)
	for _, c := range s.samples() {
		t.Run(lineName(c), func(t *testing.T) {
			var all []*made
			for range keys {
				all = append(all, s.make(t, p, c))
			}
			var wait sync.WaitGroup
			start := make(chan struct{})
			for i := range goroutines {
				wait.Go(func() {
					<-start
					m := all[i%keys]
					for round := range rounds {
						// Messages of different lengths too, so that no buffer of another's passes.
						message := bytes.Repeat(fmt.Appendf(nil, "goroutine %d, round %d;", i, round), 1+i)
						out, err := m.privately(t.Context(), m.key, message)
						if err == nil {
							err = m.checks(t.Context(), m.key, message, out)
						}
						if err != nil {
							t.Errorf("goroutine %d, round %d: %v", i, round, err)
							return
						}
					}
				})
			}
			close(start)
			wait.Wait()
		})
	}
}

func (s *suite) cancelledCreate(t *testing.T) {
	s.eachSample(t, func(t *testing.T, p providers.Provider, m *made) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		k, h := m.known, newHandle()
		t.Cleanup(func() {
			if err := p.Destroy(context.Background(), h); err != nil {
				t.Errorf("Destroy: %v", err)
			}
		})
		b, err := p.Create(ctx, h, m.attributes, k.material())
		if err == nil || len(b.Public) != 0 || len(b.Secret) != 0 {
			t.Errorf("an ended context: %d and %d bytes, %v", len(b.Public), len(b.Secret), err)
		}
		// Where something had been left, the handle would be taken.
		if _, err := p.Create(t.Context(), h, m.attributes, k.material()); err != nil {
			t.Errorf("then again: %v", err)
		}
	})
}

func (s *suite) cancelledFinish(t *testing.T) {
	s.eachSample(t, func(t *testing.T, _ providers.Provider, m *made) {
		ctx, cancel := context.WithCancel(t.Context())
		r, err := m.key.Begin(ctx, m.private())
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if out, err := finish(ctx, r, []byte("too late")); err == nil {
			t.Errorf("an ended context: %d outputs", len(out))
		}
		_, err = r.Finish(t.Context())
		wantStatus(t, "Finish again", err, psa.StatusBadState)
		m.mustWork(t, "the key after that")
	})
}

func (s *suite) random(t *testing.T) {
	listed := slices.ContainsFunc(s.lines, func(c psa.Capability) bool { return c.Has(psa.Random) })
	r, ok := s.provider(t).(providers.Random)
	if ok != listed {
		t.Fatalf("random is listed: %t, implemented: %t", listed, ok)
	}
	if !ok {
		t.Skip("it has none")
	}
	for _, n := range []int{0, 1, 32, 1000, 100000} {
		a, b := make([]byte, n), make([]byte, n)
		for _, p := range [][]byte{a, b} {
			if err := r.Random(t.Context(), p); err != nil {
				t.Fatalf("%d bytes: %v", n, err)
			}
			// 16 zeros at the end are no chance: the rest was not filled.
			if n >= 32 && bytes.Equal(p[n-16:], make([]byte, 16)) {
				t.Errorf("%d bytes: the end was not filled", n)
			}
		}
		if n >= 32 && bytes.Equal(a, b) {
			t.Errorf("%d bytes: twice the same", n)
		}
	}
}
