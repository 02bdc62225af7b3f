// Package tpm is the provider on a TPM 2.0. Its keys are children of the owner hierarchy's storage root key: the TPM
// wraps them, the KIM keeps them, and each use loads them again. So they survive resets and restarts, and take no room in
// the TPM. Blob.Secret is a wrapped key with its authorization, or the place of an adopted key in the TPM; Blob.Public is
// the SubjectPublicKeyInfo. What needs no secret (verify, encrypt with RSA, public keys alone, making credentials) is done
// in software.
package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Type is the back end.
var Type = providers.Type{
	Name: "Tpm",
	Settings: []providers.Setting{
		{Name: "tcti", Help: "where the TPM is: " + tctiForms + " (default device)", Check: func(v any) error {
			s, ok := v.(string)
			if !ok {
				return errors.New("a string: " + tctiForms)
			}
			_, err := parseTCTI(s)
			return err
		}},
		{Name: "owner_hierarchy_auth", Help: "the owner hierarchy's authorization, as text, str:TEXT or hex:BYTES (default empty)", Check: func(v any) error {
			_, err := parseAuth(v)
			return err
		}, Secret: providers.IsSecret},
		{Name: "endorsement_hierarchy_auth", Help: "the endorsement hierarchy's authorization, in the same form, needed only for attestation (default empty)", Check: func(v any) error {
			_, err := parseAuth(v)
			return err
		}, Secret: providers.IsSecret},
		{Name: "tpm_srk_name", Help: "the name of the storage root key, in hexadecimal; another TPM is refused (default: the first one seen)",
			Check: func(v any) error {
				_, err := parseSRKName(v)
				return err
			}},
	},
	New: func(_ context.Context, c providers.Config) (providers.Provider, error) {
		where, _ := c.Settings["tcti"].(string)
		if where == "" {
			where = "device"
		}
		t, err := parseTCTI(where)
		if err != nil {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "tcti: %w", err)
		}
		var a auths
		for name, to := range map[string]*[]byte{"owner_hierarchy_auth": &a.owner, "endorsement_hierarchy_auth": &a.endorsement} {
			if v, ok := c.Settings[name]; ok {
				if *to, err = parseAuth(v); err != nil {
					return nil, psa.Errorf(psa.StatusInvalidArgument, "%s: %w", name, err)
				}
			}
		}
		own := &trusted{log: c.Log, known: c.Known}
		if v, ok := c.Settings["tpm_srk_name"]; ok {
			if own.pinned, err = parseSRKName(v); err != nil {
				return nil, psa.Errorf(psa.StatusInvalidArgument, "tpm_srk_name: %w", err)
			}
		}
		if own.chip, err = openChip(t, a); err != nil {
			return nil, err
		}
		return &provider{chip: own}, nil
	},
}

// parseAuth reads an authorization as Parsec's configuration has it.
func parseAuth(v any) ([]byte, error) {
	s, ok := v.(string)
	if !ok {
		return nil, errors.New("a string")
	}
	if text, ok := strings.CutPrefix(s, "hex:"); ok {
		b, err := hex.DecodeString(text)
		if err != nil {
			return nil, errors.New("hex: followed by bytes in hexadecimal")
		}
		return b, nil
	}
	b := []byte(strings.TrimPrefix(s, "str:"))
	if len(b) > 64 {
		return nil, fmt.Errorf("it has %d bytes; a TPM takes at most 64", len(b))
	}
	return b, nil
}

type provider struct {
	chip  *trusted
	table atomic.Pointer[[]psa.Capability] // of the TPM as it was last seen
}

var (
	_ providers.Random   = (*provider)(nil)
	_ providers.Attester = (*provider)(nil)
	_ providers.Informer = (*provider)(nil)
	_ providers.Adopter  = (*provider)(nil)

	_ providers.Certifier = (*key)(nil)
)

func (p *provider) Describe() providers.Description {
	return providers.Description{
		Type:        Type.Name,
		TypeUUID:    "1e4954a4-ff21-46d3-ab0c-661eeb667e1d", // Parsec's TPM provider
		Description: "Keys wrapped by a TPM 2.0",
		Vendor:      "parsecfs",
		Version:     "1",
		Location:    "local",
		Hardware:    true,
		Limits:      providers.Limits{Parallel: 1},
	}
}

// lines is the table of the TPM. Before the first contact it is all that is possible, and the TPM refuses what it cannot do.
func (p *provider) lines() []psa.Capability {
	if t := p.table.Load(); t != nil {
		return *t
	}
	return possible
}

// Identity is the name of the storage root key (TCG TPM 2.0, part 1, 16). Another TPM has another name, and so has this one
// after TPM2_Clear.
func (p *provider) Identity(ctx context.Context) (id string, err error) {
	c := p.chip
	err = c.alone(ctx, "identity", func() error {
		name := hex.EncodeToString(c.parent.name.Buffer)
		if err := c.checkPin(name); err != nil {
			return err
		}
		// The session proves that this is the TPM with that key, and not somebody who only knows the name.
		var sessions []tpm2.Session
		if c.known == "" || c.known == name {
			sessions = append(sessions, c.once(nil, encryptOut))
		}
		parent := tpm2.NamedHandle{Handle: c.parent.handle, Name: c.parent.name}
		rsp, err := tpm2.ReadPublic{ObjectHandle: parent}.Execute(c.link, sessions...)
		if err != nil {
			return err
		}
		if !bytes.Equal(rsp.Name.Buffer, c.parent.name.Buffer) {
			return errLies("the storage root key is %x now, but was %s", rsp.Name.Buffer, name)
		}
		if c.known == "" {
			c.meet(name)
		}
		id = name
		return nil
	})
	return id, err
}

// Create makes a key in the TPM, or wraps one for it. The key exists once the KIM has its blob.
func (p *provider) Create(ctx context.Context, _ providers.Handle, a psa.Attributes, m *psa.Material) (providers.Blob, error) {
	if err := a.Validate(); err != nil {
		return providers.Blob{}, err
	}
	op := psa.Import
	if m == nil {
		op = psa.Generate
		if a.Type.IsPublicKey() {
			return providers.Blob{}, psa.Errorf(psa.StatusInvalidArgument, "a public key cannot be generated; import it")
		}
	}
	if p.table.Load() == nil {
		if _, err := p.Capabilities(ctx); err != nil {
			return providers.Blob{}, err
		}
	}
	if !psa.Supports(p.lines(), op, a.Type, a.Bits, a.Algorithm) {
		return providers.Blob{}, errUnsupported(op, a, a.Algorithm)
	}
	if a.Type.IsPublicKey() {
		if a.PCRs != 0 {
			return providers.Blob{}, psa.Errorf(psa.StatusInvalidArgument, "a public key cannot be bound to PCRs")
		}
		if m.Format != psa.FormatSPKI {
			return providers.Blob{}, psa.Errorf(psa.StatusInvalidArgument, "the material is %s, but a %s needs %s", m.Format, a.Type, psa.FormatSPKI)
		}
		pub, err := a.PublicKey(m.Data)
		if err != nil {
			return providers.Blob{}, err
		}
		der, err := psa.MarshalPublicKey(pub)
		return providers.Blob{Public: der}, err
	}
	s := &stored{}
	var err error
	if s.Auth, err = newAuth(); err != nil {
		return providers.Blob{}, err
	}
	switch {
	case m == nil:
		err = p.generate(ctx, a, s)
	case m.Format == psa.FormatTSS2:
		err = p.adopt(ctx, a, m.Data, s)
	default:
		err = p.wrap(ctx, a, m, s)
	}
	if err != nil {
		return providers.Blob{}, err
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](s.Public)
	if err != nil {
		return providers.Blob{}, psa.Errorf(psa.StatusHardwareFailure, "the TPM returned a wrong public area for the new key: %w", err)
	}
	_, der, err := publicOf(a, area)
	if err != nil {
		return providers.Blob{}, psa.Errorf(psa.StatusHardwareFailure, "the TPM made a key other than the one that was asked for: %w", err)
	}
	secret, err := s.marshal()
	return providers.Blob{Public: der, Secret: secret}, err
}

func (p *provider) generate(ctx context.Context, a psa.Attributes, s *stored) error {
	c := p.chip
	return c.use(ctx, "generate", func() error {
		if err := c.shrink(c.room - 1); err != nil { // the TPM works on it in a slot
			return err
		}
		policy, err := c.policy(a.PCRs)
		if err != nil {
			return err
		}
		rsp, err := tpm2.Create{
			ParentHandle: c.parentAuth(c.once(nil, encryptBoth)),
			InSensitive:  tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{UserAuth: tpm2.TPM2BAuth{Buffer: s.Auth}, Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{})}},
			InPublic:     tpm2.New2B(template(a, false, policy)),
		}.Execute(c.link)
		if err != nil {
			return err
		}
		if _, _, err := made(rsp.OutPublic, nil, template(a, false, policy)); err != nil {
			return err
		}
		s.Parent, s.Private, s.Public = c.parent.name.Buffer, rsp.OutPrivate.Buffer, rsp.OutPublic.Bytes()
		return nil
	})
}

// wrap encrypts a key for the parent (TCG TPM 2.0, part 1, 23.3.2.3), and has the TPM import it and load it once, so that
// the TPM finds what does not fit.
func (p *provider) wrap(ctx context.Context, a psa.Attributes, m *psa.Material, s *stored) error {
	private, unique, err := sensitive(a, m, s.Auth)
	if err != nil {
		return err
	}
	bytes := tpm2.Marshal(private)
	defer psa.Wipe(bytes)
	c := p.chip
	return c.use(ctx, "import", func() error {
		policy, err := c.policy(a.PCRs)
		if err != nil {
			return err
		}
		public := template(a, true, policy)
		public.Unique = unique
		name, err := tpm2.ObjectName(&public)
		if err != nil {
			return err
		}
		to, err := tpm2.ImportEncapsulationKey(&c.parent.public)
		if err != nil {
			return err
		}
		duplicate, seed, err := tpm2.CreateDuplicate(rand.Reader, to, name.Buffer, bytes)
		if err != nil {
			return err
		}
		if err := c.shrink(c.room - 1); err != nil {
			return err
		}
		rsp, err := tpm2.Import{
			ParentHandle: c.parentAuth(c.once(nil)), // all that is secret is encrypted for the parent already
			ObjectPublic: tpm2.New2B(public),
			Duplicate:    tpm2.TPM2BPrivate{Buffer: duplicate}, InSymSeed: tpm2.TPM2BEncryptedSecret{Buffer: seed},
			Symmetric: tpm2.TPMTSymDef{Algorithm: tpm2.TPMAlgNull},
		}.Execute(c.link)
		if err != nil {
			return err
		}
		s.Parent, s.Private, s.Public = c.parent.name.Buffer, rsp.OutPrivate.Buffer, tpm2.Marshal(public)
		_, err = c.loadBy(s, c.room-1, func() tpm2.Session { return c.once(nil) })
		return err
	})
}

// Destroy has nothing to do: the KIM deletes the blob.
func (p *provider) Destroy(context.Context, providers.Handle) error { return nil }

func (p *provider) Close() error { return p.chip.close() }

// Random fills b from the TPM's generator, encrypted on its way.
func (p *provider) Random(ctx context.Context, b []byte) error {
	c := p.chip
	for len(b) > 0 {
		err := c.use(ctx, "random", func() error {
			rsp, err := tpm2.GetRandom{BytesRequested: uint16(min(len(b), 1024))}.Execute(c.link, c.once(nil, encryptOut))
			if err != nil {
				return err
			}
			n := copy(b, rsp.RandomBytes.Buffer)
			psa.Wipe(rsp.RandomBytes.Buffer)
			if n == 0 {
				return psa.Errorf(psa.StatusInsufficientEntropy, "the TPM returned no random bytes")
			}
			b = b[n:]
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
