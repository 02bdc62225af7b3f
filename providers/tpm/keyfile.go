package tpm

import (
	"bytes"
	"context"
	"encoding/asn1"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// exportRun returns a copy of the wrapped key, with the passphrase as its authorization, as a TPMKey in DER (ASN.1
// Specification for TPM 2.0 Key Files) for tpm2-openssl and others. The TPM controls the use of the copy; we do not.
type exportRun struct {
	u          *use
	passphrase []byte
}

func (k *key) beginExport(op psa.Op, u *use) (psa.Run, error) {
	if k.attributes.Usage&psa.UsageExport == 0 {
		return nil, psa.Errorf(psa.StatusNotPermitted, "export needs %s", psa.UsageExport)
	}
	if format := string(op.Inputs["format"]); format != "" && format != "tss2" {
		return nil, psa.Errorf(psa.StatusNotSupported, "a TPM cannot export a key as %q", format).
			WithHint("ask for tss2, a form that only this TPM can use")
	}
	if k.attributes.PCRs != 0 {
		return nil, psa.Errorf(psa.StatusNotSupported, "a key that is bound to PCRs cannot be exported")
	}
	if u.key.Handle != 0 {
		return nil, psa.Errorf(psa.StatusNotSupported, "a key that is kept in the TPM cannot be exported")
	}
	passphrase := bytes.Clone(op.Inputs["passphrase"])
	if len(passphrase) > authSize {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the passphrase has %d bytes; allowed: up to %d", len(passphrase), authSize)
	}
	return &exportRun{u, passphrase}, nil
}

func (r *exportRun) Write(p []byte) (int, error) {
	if len(p) > 0 {
		return 0, psa.Errorf(psa.StatusInvalidArgument, "export takes no input")
	}
	return 0, nil
}

func (r *exportRun) Abort() { psa.Wipe(r.passphrase) }

func (r *exportRun) Finish(ctx context.Context) (psa.Result, error) {
	defer r.Abort()
	var private tpm2.TPM2BPrivate
	err := r.u.with(ctx, "export", 0, func(c *chip, l *loaded) (err error) {
		private, err = c.rekey(r.u.private(c, l, encryptBoth), r.passphrase)
		return err
	})
	if err != nil {
		return psa.Result{}, err
	}
	der, err := asn1.Marshal(tpmKey{keyfile.OIDLoadableKey, len(r.passphrase) == 0, int64(tpm2.TPMRHOwner),
		tpm2.Marshal(tpm2.BytesAs2B[tpm2.TPMTPublic](r.u.key.Public)), tpm2.Marshal(private)})
	if err != nil {
		return psa.Result{}, psa.Errorf(psa.StatusGenericError, "cannot make the key file: %w", err)
	}
	return psa.Result{Outputs: map[string][]byte{"key": der}}, nil
}

// tpmKey is a TPMKey that says whether there is an authorization: tpm2-openssl asks for no passphrase where a file leaves
// emptyAuth out, as go-tpm-keyfiles does.
type tpmKey struct {
	Type      asn1.ObjectIdentifier
	EmptyAuth bool `asn1:"explicit,tag:0"`
	Parent    int64
	Public    []byte // TPM2B_PUBLIC
	Private   []byte // TPM2B_PRIVATE
}

// rekey wraps a loaded key again, with another authorization.
func (c *chip) rekey(key tpm2.AuthHandle, auth []byte) (tpm2.TPM2BPrivate, error) {
	rsp, err := tpm2.ObjectChangeAuth{ObjectHandle: key, ParentHandle: tpm2.NamedHandle{Handle: c.parent.handle, Name: c.parent.name},
		NewAuth: tpm2.TPM2BAuth{Buffer: bytes.Clone(auth)}}.Execute(c.link)
	if err != nil {
		return tpm2.TPM2BPrivate{}, err
	}
	return rsp.OutPrivate, nil
}

// adopt imports a key file: the TPM wraps the key again, with s's authorization. The file stays usable.
func (p *provider) adopt(ctx context.Context, a psa.Attributes, der []byte, s *stored) error {
	k, err := parseKeyfile(a, der)
	if err != nil {
		return err
	}
	c := p.chip
	return c.use(ctx, "import", func() error {
		// Its own authorization is empty; nothing is as short in our keys.
		theirs := &stored{Parent: c.parent.name.Buffer, Public: k.Pubkey.Bytes(), Private: k.Privkey.Buffer}
		l, err := c.load(theirs, c.room-1)
		if isRC(err, tpm2.TPMRCIntegrity) {
			return psa.Errorf(psa.StatusInvalidArgument, "the key was not made under this TPM's storage root key").
				WithHint("its parent must be the storage root key of the owner hierarchy on P-256, 0x40000001 in the file")
		}
		if err != nil {
			return err
		}
		private, err := c.rekey(c.private(l, nil, 0, encryptBoth), s.Auth)
		if err != nil {
			return err
		}
		s.Parent, s.Public, s.Private = theirs.Parent, theirs.Public, private.Buffer
		return nil
	})
}

// parseKeyfile reads a key file for the attributes a. Its key must be in the owner hierarchy, without an authorization and
// without a policy.
func parseKeyfile(a psa.Attributes, der []byte) (*keyfile.TPMKey, error) {
	k, err := keyfile.Parse(der)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the TPM key cannot be read: %w", err)
	}
	refused := func(why string) (*keyfile.TPMKey, error) {
		return nil, psa.Errorf(psa.StatusNotSupported, "a TPM key %s cannot be imported", why)
	}
	area, err := k.Pubkey.Contents()
	switch {
	case err != nil:
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the public area of the TPM key cannot be read: %w", err)
	case !k.Keytype.Equal(keyfile.OIDLoadableKey):
		return refused("that is not of the loadable kind")
	case len(k.Policy) > 0 || len(k.AuthPolicy) > 0 || len(area.AuthPolicy.Buffer) > 0:
		return refused("with a policy")
	case !k.EmptyAuth:
		return refused("with an authorization of its own")
	case k.Parent != tpm2.TPMRHOwner:
		return refused("whose parent is not in the owner hierarchy")
	}
	if _, err := servable(a, area); err != nil {
		return nil, err
	}
	return k, nil
}

// servable checks that a foreign key can have these attributes, and returns its SubjectPublicKeyInfo, nil for a symmetric
// key.
func servable(a psa.Attributes, area *tpm2.TPMTPublic) ([]byte, error) {
	want := template(a, true, nil).ObjectAttributes
	has := area.ObjectAttributes
	if has.Restricted {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the TPM key is restricted: it signs and decrypts only what the TPM itself made").
			WithHint("make the key without the attribute restricted")
	}
	if !has.UserWithAuth || want.Decrypt && !has.Decrypt || want.SignEncrypt && !has.SignEncrypt {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the TPM key was not made for %s", a.Algorithm)
	}
	_, der, err := publicOf(a, area)
	return der, err
}
