// Package pkcs11 is the provider on tokens with a PKCS #11 module: HSMs, smart cards, software tokens. The token keeps
// its keys, under the KIM's handle as CKA_ID; Blob.Public is the SubjectPublicKeyInfo, Blob.Object names an adopted
// key. What needs no secret (verify, encrypt with RSA, public keys alone) is done in software.
//
// A module runs in a process of its own, which is this program started again, so that a crash or a hang affects nothing
// else. In that process worker.go and module.go speak PKCS #11. In this one process.go and token.go keep the worker running,
// and the rest knows PSA.
package pkcs11

import (
	"context"
	"crypto"
	"log/slog"
	"slices"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Type is the back end. The program must call WorkerMain before anything else.
var Type = providers.Type{Name: "Pkcs11", Settings: settings, Check: check, New: newProvider}

func check(settings map[string]any) error {
	_, err := together(settings)
	return err
}

type provider struct {
	token       *token
	pin         pins
	allowExport bool
	dir         string // for files of its own
	log         *slog.Logger
}

var (
	_ providers.Random  = (*provider)(nil)
	_ providers.Adopter = (*provider)(nil)
)

func (p *provider) Describe() providers.Description {
	return providers.Description{
		Type:        Type.Name,
		TypeUUID:    "30e39502-eba6-4d60-a4af-c518b7f5e38f", // Parsec's PKCS #11 provider
		Description: "Keys on a PKCS #11 token",
		Vendor:      "parsecfs",
		Version:     "1",
		Location:    "local",
		Hardware:    p.token.hardware.Load(),
		Limits:      providers.Limits{Parallel: p.token.launch.width},
	}
}

// ask has the token do something. A refusal also returns the token's response.
func (p *provider) ask(ctx context.Context, what string, r *request) (*response, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return p.token.do(ctx, p.pin, what, r)
}

// lines is the table of the token. Before the first contact it is all that is possible, and the token refuses what it cannot do.
func (p *provider) lines() []psa.Capability {
	lines := possible
	if k := p.token.known.Load(); k != nil {
		lines = k.lines
	}
	if p.allowExport {
		return lines
	}
	return slices.DeleteFunc(slices.Clone(lines), func(c psa.Capability) bool { return c.Has(psa.Export) })
}

// Identity is the token's serial number, or its label before it where all such tokens have the same.
func (p *provider) Identity(ctx context.Context) (string, error) {
	a, err := p.ask(ctx, "identity", &request{method: methodIdentify})
	if err != nil {
		return "", err
	}
	return identityOf(a.token), nil
}

// Capabilities tries the mechanisms that the token lists, the first time.
func (p *provider) Capabilities(ctx context.Context) ([]psa.Capability, error) {
	if _, err := p.learn(ctx); err != nil {
		return nil, err
	}
	return slices.Clone(p.lines()), nil
}

// Create makes a key on the token, with its public part beside it, so that other programs see a pair. A public key
// alone is not kept there.
func (p *provider) Create(ctx context.Context, h providers.Handle, a psa.Attributes, material *psa.Material) (providers.Blob, error) {
	if err := a.Validate(); err != nil {
		return providers.Blob{}, err
	}
	op := psa.Import
	if material == nil {
		op = psa.Generate
		if a.Type.IsPublicKey() {
			return providers.Blob{}, psa.Errorf(psa.StatusInvalidArgument, "a public key cannot be generated; import it")
		}
	}
	known, err := p.learn(ctx)
	if err != nil {
		return providers.Blob{}, err
	}
	if !psa.Supports(p.lines(), op, a.Type, a.Bits, a.Algorithm) {
		return providers.Blob{}, errUnsupported(op, a, a.Algorithm)
	}
	if a.PCRs != 0 {
		return providers.Blob{}, psa.Errorf(psa.StatusNotSupported, "a key on a token cannot be bound to PCRs").
			WithHint("use a provider of type Tpm")
	}
	if a.Type.IsPublicKey() {
		if material.Format != psa.FormatSPKI {
			return providers.Blob{}, psa.Errorf(psa.StatusInvalidArgument,
				"the material is %s, but a %s needs %s", material.Format, a.Type, psa.FormatSPKI)
		}
		pub, err := a.PublicKey(material.Data)
		if err != nil {
			return providers.Blob{}, err
		}
		der, err := psa.MarshalPublicKey(pub)
		return providers.Blob{Public: der}, err
	}
	if a.Usage&psa.UsageExport != 0 && !p.allowExport {
		return providers.Blob{}, psa.Errorf(psa.StatusNotPermitted,
			"a key with %s cannot be made, because allow_export is false", psa.UsageExport)
	}
	kind, _ := kindOf(a.Type, a.Bits, known.mechanisms) // the table has those alone that there are
	m := making{a: a, kind: kind, id: h[:], label: labelOf(h[:]), onToken: true}
	r, pub := m.generation(), crypto.PublicKey(nil)
	if material != nil {
		if r, pub, err = m.creation(material); err != nil {
			return providers.Blob{}, err
		}
	}
	made, err := p.ask(ctx, string(op), r)
	r.wipe()
	if err != nil || !a.Type.IsAsymmetric() {
		return providers.Blob{}, err
	}
	if material == nil {
		if pub, err = generated(a, made.objects[0]); err != nil {
			// The journal has the key destroyed.
			return providers.Blob{}, psa.Errorf(psa.StatusHardwareFailure, "wrong public part of the new key: %w", err)
		}
	}
	der, err := psa.MarshalPublicKey(pub)
	return providers.Blob{Public: der}, err
}

// generated is the public part of a key that the token made.
func generated(a psa.Attributes, list []attribute) (crypto.PublicKey, error) {
	pub, err := publicOf(a.Type, a.Bits, list)
	if err != nil {
		return nil, err
	}
	if pub == nil {
		return nil, psa.Errorf(psa.StatusHardwareFailure, "the token made a key without its public part")
	}
	return pub, a.Describes(pub)
}

// Destroy destroys all objects of the handle: a Create that was cut short may have left one of two.
func (p *provider) Destroy(ctx context.Context, h providers.Handle) error {
	return p.destroy(ctx, object{class: anyClass, id: h[:]})
}

func (p *provider) destroy(ctx context.Context, o object) error {
	_, err := p.ask(ctx, "destroy", &request{method: methodDestroy, object: o})
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		return nil
	}
	return err
}

// Close ends the module's process with its last provider.
func (p *provider) Close() error {
	p.token.close()
	return nil
}

// mostRandom is how many bytes a token is asked for at once.
const mostRandom = 4 << 10

// Random fills b from the token's generator (C_GenerateRandom).
func (p *provider) Random(ctx context.Context, b []byte) error {
	for len(b) > 0 {
		a, err := p.ask(ctx, "random", &request{method: methodRandom, length: uint64(min(len(b), mostRandom))})
		if err != nil {
			return err
		}
		n := copy(b, a.data)
		a.wipe()
		if n == 0 {
			return psa.Errorf(psa.StatusInsufficientEntropy, "the token returned no random bytes")
		}
		b = b[n:]
	}
	return nil
}
