package providers

import (
	"context"
	"log/slog"
	"slices"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// Narrowing limits what a provider does in a deployment.
type Narrowing struct {
	// Lines are all that it may do, in the form of a capabilities file; nil means no limit.
	Lines []psa.Capability
	// AllowDeprecated lets it generate keys that are deprecated (psa.Attributes.Deprecated). They can always be imported,
	// with a warning.
	AllowDeprecated bool
	Log             *slog.Logger
}

// Narrow returns a provider that does what p can do and n allows. Its capabilities list exactly what it does.
func Narrow(p Provider, n Narrowing) Provider { return &narrowed{p, n} }

type narrowed struct {
	Provider
	n Narrowing
}

var (
	_ Copier = (*narrowed)(nil)
	_ Random = (*narrowed)(nil)
	_ Hasher = (*narrowed)(nil)

	_ Adopter  = (*narrowed)(nil)
	_ Wrapper  = (*narrowed)(nil)
	_ Counters = (*narrowed)(nil)
	_ Attester = (*narrowed)(nil)
	_ Informer = (*narrowed)(nil)
	_ Weigher  = (*narrowed)(nil)

	_ Certifier = (*narrowedKey)(nil)
)

// lets says whether the lines have op for such a key, whose algorithm is that of its policy.
func (p *narrowed) lets(op psa.Operation, t psa.KeyType, bits int, policy psa.Algorithm) bool {
	return p.n.Lines == nil || slices.ContainsFunc(p.n.Lines, func(c psa.Capability) bool {
		return c.Covers(t, bits, policy) && c.Has(op)
	})
}

func (p *narrowed) refusal(op psa.Operation) error {
	return psa.Errorf(psa.StatusNotSupported,
		"the configuration does not allow %s with such a key: its capabilities file does not list it", op).
		WithHint("ask root to add a line to the file that the provider's capabilities setting names")
}

// overlaps limits ranges of sizes to those that the deployment's lines have.
func (p *narrowed) overlaps(all []psa.Capability) (lines []psa.Capability) {
	for _, c := range all {
		if c.Most == 0 || p.n.Lines == nil {
			lines = append(lines, c)
			continue
		}
		seen := map[[2]int]bool{}
		for _, l := range p.n.Lines {
			least, most := max(c.Bits, l.Bits), min(c.Most, max(l.Bits, l.Most))
			if l.Type != c.Type || l.Algorithm != c.Algorithm || least > most || seen[[2]int{least, most}] {
				continue
			}
			seen[[2]int{least, most}] = true
			part := c
			if part.Bits, part.Most = least, most; least == most {
				part.Most = 0
			}
			lines = append(lines, part)
		}
	}
	return lines
}

// Capabilities are p's without what the lines do not allow.
func (p *narrowed) Capabilities(ctx context.Context) ([]psa.Capability, error) {
	all, err := p.Provider.Capabilities(ctx)
	var lines []psa.Capability
	for _, c := range p.overlaps(all) {
		old := !p.n.AllowDeprecated && c.Attributes().Deprecated() != nil
		var ops []psa.Operation
		for _, op := range c.Operations {
			if p.lets(op, c.Type, c.Bits, c.Algorithm) && !(old && op == psa.Generate) {
				ops = append(ops, op)
			}
		}
		if len(ops) > 0 {
			c.Operations = ops
			lines = append(lines, c)
		}
	}
	// A line that neither generates nor imports is useless.
	return slices.DeleteFunc(lines, func(c psa.Capability) bool {
		return c.Type != psa.KeyTypeNone && !c.Has(psa.Generate) && !c.Has(psa.Import)
	}), err
}

func (p *narrowed) Create(ctx context.Context, h Handle, a psa.Attributes, m *psa.Material) (Blob, error) {
	op := psa.Generate
	if m != nil {
		op = psa.Import
	}
	if !p.lets(op, a.Type, a.Bits, a.Algorithm) {
		return Blob{}, p.refusal(op)
	}
	deprecated := a.Deprecated()
	if p.n.AllowDeprecated {
		deprecated = nil
	}
	if deprecated != nil && op == psa.Generate {
		return Blob{}, deprecated
	}
	b, err := p.Provider.Create(ctx, h, a, m)
	if err == nil && deprecated != nil {
		p.n.Log.Warn("a deprecated key was imported", "type", a.Type.String(), "bits", a.Bits, "algorithm", a.Algorithm.String())
	}
	return b, err
}

// Copy is p's, StatusNotSupported where it has none.
func (p *narrowed) Copy(ctx context.Context, h Handle, a psa.Attributes, from Source) (Blob, error) {
	copier, ok := p.Provider.(Copier)
	if !ok || !p.lets(psa.Copy, a.Type, a.Bits, a.Algorithm) {
		return Blob{}, p.refusal(psa.Copy)
	}
	return copier.Copy(ctx, h, a, from)
}

func (p *narrowed) Open(ctx context.Context, h Handle, a psa.Attributes, b Blob) (Key, error) {
	k, err := p.Provider.Open(ctx, h, a, b)
	if err != nil {
		return nil, err
	}
	return &narrowedKey{k, p}, nil
}

type narrowedKey struct {
	Key
	p *narrowed
}

func (k *narrowedKey) Begin(ctx context.Context, op psa.Op) (psa.Run, error) {
	if a := k.Attributes(); !k.p.lets(op.Operation, a.Type, a.Bits, a.Algorithm) {
		return nil, k.p.refusal(op.Operation)
	}
	return k.Key.Begin(ctx, op)
}

// Certify is the key's own, StatusNotSupported where it has none.
func (k *narrowedKey) Certify(ctx context.Context, op psa.Op, signer Key) (psa.Run, error) {
	certifier, ok := k.Key.(Certifier)
	by, ours := signer.(*narrowedKey)
	if !ok || !ours {
		return nil, psa.Errorf(psa.StatusNotSupported, "this provider does not let one key sign for another")
	}
	if a := k.Attributes(); !k.p.lets(op.Operation, a.Type, a.Bits, a.Algorithm) {
		return nil, k.p.refusal(op.Operation)
	}
	if a := by.Attributes(); !k.p.lets(psa.Sign, a.Type, a.Bits, a.Algorithm) {
		return nil, k.p.refusal(psa.Sign)
	}
	return certifier.Certify(ctx, op, by.Key)
}

// Random is p's, StatusNotSupported where it has none.
func (p *narrowed) Random(ctx context.Context, b []byte) error {
	source, ok := p.Provider.(Random)
	if !ok || !p.lets(psa.Random, psa.KeyTypeNone, 0, psa.AlgNone) {
		return p.refusal(psa.Random)
	}
	return source.Random(ctx, b)
}

// Hash is p's, StatusNotSupported where it has none.
func (p *narrowed) Hash(ctx context.Context, op psa.Op) (psa.Run, error) {
	hasher, ok := p.Provider.(Hasher)
	if !ok || !p.lets(psa.Hash, psa.KeyTypeNone, 0, op.Algorithm) {
		return nil, p.refusal(psa.Hash)
	}
	return hasher.Hash(ctx, op)
}

// Slow is p's, never where it makes no difference.
func (p *narrowed) Slow(op psa.Operation, a psa.Attributes) bool {
	w, ok := p.Provider.(Weigher)
	return ok && w.Slow(op, a)
}

// Quick is p's, never where p does not say.
func (p *narrowed) Quick(op psa.Operation, a psa.Attributes) bool {
	w, ok := p.Provider.(Weigher)
	return ok && w.Quick(op, a)
}

// Attest is p's, StatusNotSupported where it has none.
func (p *narrowed) Attest(ctx context.Context, op psa.Op) (psa.Run, error) {
	attester, ok := p.Provider.(Attester)
	if !ok || !p.lets(op.Operation, psa.KeyTypeNone, 0, psa.AlgNone) {
		return nil, p.refusal(op.Operation)
	}
	return attester.Attest(ctx, op)
}

// Facts are p's, none where it has none.
func (p *narrowed) Facts(ctx context.Context) ([]Fact, error) {
	informer, ok := p.Provider.(Informer)
	if !ok {
		return nil, nil
	}
	return informer.Facts(ctx)
}

func errNoForeign() error {
	return psa.Errorf(psa.StatusNotSupported, "this provider cannot adopt keys")
}

// Foreign is p's, StatusNotSupported where it has none.
func (p *narrowed) Foreign(ctx context.Context) ([]Foreign, error) {
	adopter, ok := p.Provider.(Adopter)
	if !ok {
		return nil, errNoForeign()
	}
	return adopter.Foreign(ctx)
}

// Adopt is p's, for keys that may be imported; StatusNotSupported where it has none.
func (p *narrowed) Adopt(ctx context.Context, a psa.Attributes, reference string) (Foreign, Blob, error) {
	adopter, ok := p.Provider.(Adopter)
	if !ok {
		return Foreign{}, Blob{}, errNoForeign()
	}
	f, b, err := adopter.Adopt(ctx, a, reference)
	if got := f.Attributes; err == nil && !p.lets(psa.Import, got.Type, got.Bits, got.Algorithm) {
		psa.Wipe(b.Secret)
		return Foreign{}, Blob{}, p.refusal(psa.Import)
	}
	return f, b, err
}

// DestroyObject is p's, StatusNotSupported where it has none.
func (p *narrowed) DestroyObject(ctx context.Context, object string, public []byte) error {
	adopter, ok := p.Provider.(Adopter)
	if !ok {
		return errNoForeign()
	}
	return adopter.DestroyObject(ctx, object, public)
}

func errNoWrapping() error {
	return psa.Errorf(psa.StatusNotSupported, "this provider cannot wrap secrets").WithHint("use a provider of type Tpm")
}

// Wrap is p's, StatusNotSupported where it has none.
func (p *narrowed) Wrap(ctx context.Context, secret []byte, pcrs psa.PCRs, pin []byte) ([]byte, error) {
	w, ok := p.Provider.(Wrapper)
	if !ok {
		return nil, errNoWrapping()
	}
	return w.Wrap(ctx, secret, pcrs, pin)
}

// Unwrap is p's, StatusNotSupported where it has none.
func (p *narrowed) Unwrap(ctx context.Context, wrapped, pin []byte) ([]byte, error) {
	w, ok := p.Provider.(Wrapper)
	if !ok {
		return nil, errNoWrapping()
	}
	return w.Unwrap(ctx, wrapped, pin)
}

// WantsPIN is p's, StatusNotSupported where it wraps nothing.
func (p *narrowed) WantsPIN(wrapped []byte) (bool, error) {
	w, ok := p.Provider.(Wrapper)
	if !ok {
		return false, errNoWrapping()
	}
	return w.WantsPIN(wrapped)
}

func (p *narrowed) counters() (Counters, error) {
	if c, ok := p.Provider.(Counters); ok {
		return c, nil
	}
	return nil, psa.Errorf(psa.StatusNotSupported, "this provider has no counters").WithHint("use a provider of type Tpm")
}

// NewCounter is p's, StatusNotSupported where it has none.
func (p *narrowed) NewCounter(ctx context.Context, auth []byte) ([]byte, uint64, error) {
	c, err := p.counters()
	if err != nil {
		return nil, 0, err
	}
	return c.NewCounter(ctx, auth)
}

// Counter is p's, StatusNotSupported where it has none.
func (p *narrowed) Counter(ctx context.Context, reference, auth []byte) (uint64, error) {
	c, err := p.counters()
	if err != nil {
		return 0, err
	}
	return c.Counter(ctx, reference, auth)
}

// Advance is p's, StatusNotSupported where it has none.
func (p *narrowed) Advance(ctx context.Context, reference, auth []byte) (uint64, error) {
	c, err := p.counters()
	if err != nil {
		return 0, err
	}
	return c.Advance(ctx, reference, auth)
}

// RemoveCounter is p's, StatusNotSupported where it has none.
func (p *narrowed) RemoveCounter(ctx context.Context, reference, auth []byte) error {
	c, err := p.counters()
	if err != nil {
		return err
	}
	return c.RemoveCounter(ctx, reference, auth)
}
