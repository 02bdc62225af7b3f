package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// Somebody between us and a TPM (on a bus, at a socket) can answer anything. So all trust depends on one thing, the public
// area of the storage root key: its name must be the known one, and everything that is secret, or that we believe, goes
// through sessions whose salt only that key can decrypt. A TPM that was never seen before is trusted at the first contact
// (trust on first use), unless tpm_srk_name says which TPM it must be.

// trusted is a chip for one provider, and knows which TPM has the provider's keys.
type trusted struct {
	*chip
	log    *slog.Logger // nil: nobody listens
	pinned string       // tpm_srk_name, "" without one
	known  string       // the name that was seen before, "" at the first contact; whoever has the chip's turn uses it
}

// use is chip.alone, but only with the TPM that has this provider's keys.
func (t *trusted) use(ctx context.Context, what string, f func() error) error {
	return t.alone(ctx, what, func() error {
		if err := t.check(); err != nil {
			return err
		}
		return f()
	})
}

// check refuses the wrong TPM. Nothing secret has been sent to it so far.
func (t *trusted) check() error {
	name := hex.EncodeToString(t.parent.name.Buffer)
	if err := t.checkPin(name); err != nil {
		return err
	}
	if t.known == "" {
		t.meet(name)
	}
	if t.known != name {
		return psa.Errorf(psa.StatusProviderAbsent,
			"this is another TPM, or it was cleared: its storage root key is %s, but the keys belong to %s", name, t.known).
			WithHint("connect the TPM that has the keys; if you did not change it, somebody may be between parsecfs and the TPM")
	}
	return nil
}

func (t *trusted) checkPin(name string) error {
	if t.pinned == "" || t.pinned == name {
		return nil
	}
	return psa.Errorf(psa.StatusProviderAbsent, "the TPM's storage root key is %s, but tpm_srk_name says %s", name, t.pinned).
		WithHint("somebody may be between parsecfs and the TPM; change tpm_srk_name only if the TPM was replaced or cleared on purpose")
}

// meet accepts a TPM at the first contact.
func (t *trusted) meet(name string) {
	t.known = name
	if t.log == nil {
		return
	}
	if t.pinned != "" {
		t.log.Info("this TPM is used for the first time", "tpm_srk_name", name)
		return
	}
	t.log.Warn("this TPM is used for the first time and is trusted from now on: compare its name, and pin it in the configuration",
		"tpm_srk_name", name)
}

// parseSRKName reads tpm_srk_name: the name's algorithm and digest in hexadecimal, "" if it is not set.
func parseSRKName(v any) (string, error) {
	s, ok := v.(string)
	b, err := hex.DecodeString(s)
	if !ok || err != nil || len(b) != 2+32 || !bytes.Equal(b[:2], []byte{0, 0xb}) {
		return "", errors.New(`the name of the storage root key: "000b" and 64 more hexadecimal digits, as tpm_srk_name in the provider's info`)
	}
	return strings.ToLower(s), nil
}

// errLies is for answers that contradict themselves or the request.
func errLies(format string, args ...any) error {
	return psa.Errorf(psa.StatusCommunicationFailure, "the TPM's answer cannot be trusted: %w", fmt.Errorf(format, args...)).
		WithHint("there is a fault on the bus to the TPM, or somebody is between parsecfs and the TPM")
}

// made checks and returns the public area of a key that the TPM made from a template: it must fit the template and its
// curve, and have the right name.
func made(out tpm2.TPM2BPublic, name *tpm2.TPM2BName, template tpm2.TPMTPublic) (*tpm2.TPMTPublic, tpm2.TPM2BName, error) {
	area, own, err := named(out, name)
	if err != nil {
		return nil, own, err
	}
	asked := *area
	asked.Unique = template.Unique
	if !bytes.Equal(tpm2.Marshal(asked), tpm2.Marshal(template)) {
		return nil, own, errLies("the new key is not what was asked for")
	}
	if _, err := publicIn(area); err != nil {
		return nil, own, errLies("wrong public part of the new key: %w", err)
	}
	return area, own, nil
}

// named returns a public area and its name. If the TPM gave a name too, it must be the same.
func named(out tpm2.TPM2BPublic, said *tpm2.TPM2BName) (*tpm2.TPMTPublic, tpm2.TPM2BName, error) {
	area, err := out.Contents()
	if err != nil {
		return nil, tpm2.TPM2BName{}, errLies("the public area cannot be read: %w", err)
	}
	if !bytes.Equal(tpm2.Marshal(area), out.Bytes()) {
		return nil, tpm2.TPM2BName{}, errLies("the public area has extra bytes at its end")
	}
	name, err := nameIn(out.Bytes())
	if err != nil {
		return nil, name, err
	}
	if said != nil && !bytes.Equal(name.Buffer, said.Buffer) {
		return nil, name, errLies("the name is %x, but the public area has the name %x", said.Buffer, name.Buffer)
	}
	return area, name, nil
}

// nameIn is the name that goes with a public area (TCG TPM 2.0, part 1, 16), as it is marshalled.
func nameIn(public []byte) (tpm2.TPM2BName, error) {
	if len(public) < 4 {
		return tpm2.TPM2BName{}, errLies("the public area has only %d bytes", len(public))
	}
	alg := tpm2.TPMIAlgHash(binary.BigEndian.Uint16(public[2:]))
	hash, err := alg.Hash()
	if err != nil {
		return tpm2.TPM2BName{}, errLies("the public area has the name algorithm %#x, which is not supported", alg)
	}
	h := hash.New()
	h.Write(public)
	return tpm2.TPM2BName{Buffer: h.Sum(bytes.Clone(public[2:4]))}, nil
}

// audited is a session that authenticates the responses of commands that need no authorization. The caller ends it.
func (c *chip) audited() (tpm2.Session, func() error, error) {
	return tpm2.HMACSession(c.link, tpm2.TPMAlgSHA256, nonceSize, tpm2.Audit(), tpm2.Salted(c.parent.handle, c.parent.public))
}

// withAudit runs f with such a session.
func (c *chip) withAudit(f func(tpm2.Session) error) (err error) {
	s, end, err := c.audited()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	return f(s)
}
