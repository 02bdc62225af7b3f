package tpm

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/asn1"
	"encoding/binary"
	"fmt"
	"math/rand/v2"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

var _ providers.Counters = (*provider)(nil)

// counter says in ASN.1 which NV counter it is (TCG TPM 2.0, part 1, 37.2.4). Its name, the digest of its public area, is
// part of what each command is authenticated with; the authorization is not part of the name.
type counter struct {
	Version int
	Index   int64
	Name    []byte // TPM2B_NAME's contents, as it is once the counter was written
}

const (
	counterVersion = 1
	counterSize    = 8
	maxCounterAuth = 32 // the digest of the name's algorithm bounds it

	// Owners choose their indices in this range (TCG Registry of Reserved TPM 2.0 Handles, 2.2.2).
	firstOwned = 0x01800000
	lastOwned  = 0x01bfffff
	// draws is how many indices are tried. There are four million, and few are ever in use.
	draws = 8
)

// counterTemplate is the public area. Only the authorization can read and increment the counter: the owner's, which is
// often empty, can do neither. It cannot be guessed, so NO_DA is safe: the counter stays readable while the TPM is locked
// against guessing, and wrong tries at it do not lock the TPM. Without ORDERLY each increment is durable.
func counterTemplate(index tpm2.TPMHandle, written bool) tpm2.TPMSNVPublic {
	return tpm2.TPMSNVPublic{
		NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: counterSize,
		Attributes: tpm2.TPMANV{NT: tpm2.TPMNTCounter, AuthRead: true, AuthWrite: true, NoDA: true, Written: written},
	}
}

func counterName(index tpm2.TPMHandle, written bool) (tpm2.TPM2BName, error) {
	public := counterTemplate(index, written)
	name, err := tpm2.NVName(&public)
	if err != nil {
		return tpm2.TPM2BName{}, err
	}
	return *name, nil
}

// counterAuth derives a counter's authorization in the TPM from the caller's; the caller wipes it.
func counterAuth(auth []byte) ([]byte, error) {
	if len(auth) == 0 || len(auth) > maxCounterAuth {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the counter's authorization has %d bytes; allowed: 1 to %d", len(auth), maxCounterAuth)
	}
	b, err := hkdf.Key(sha256.New, auth, nil, "parsecfs counter 1", derivedAuth)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "cannot derive the counter's authorization: %w", err)
	}
	return textAuth(b), nil
}

// parseCounter reads a reference that NewCounter gave.
func parseCounter(reference []byte) (tpm2.NamedHandle, error) {
	bad := func(err error) (tpm2.NamedHandle, error) {
		return tpm2.NamedHandle{}, psa.Errorf(psa.StatusDataCorrupt, "the reference to the TPM's counter is damaged: %w", err)
	}
	var n counter
	rest, err := asn1.Unmarshal(reference, &n)
	switch {
	case err != nil:
		return bad(err)
	case len(rest) > 0:
		return bad(fmt.Errorf("%d extra bytes at its end", len(rest)))
	case n.Version != counterVersion:
		return bad(fmt.Errorf("unknown version %d", n.Version))
	case n.Index < firstOwned || n.Index > lastOwned:
		return bad(fmt.Errorf("wrong index %#x", n.Index))
	}
	name, err := counterName(tpm2.TPMHandle(n.Index), true)
	if err != nil {
		return bad(err)
	}
	if !bytes.Equal(n.Name, name.Buffer) {
		return bad(fmt.Errorf("its name is not that of a counter at %#x", n.Index))
	}
	return tpm2.NamedHandle{Handle: tpm2.TPMHandle(n.Index), Name: name}, nil
}

// NewCounter defines an NV counter at a free index of the owner's, and increments it once: before that it has no value.
func (p *provider) NewCounter(ctx context.Context, auth []byte) (reference []byte, value uint64, err error) {
	if auth, err = counterAuth(auth); err != nil {
		return nil, 0, err
	}
	defer psa.Wipe(auth)
	c := p.chip
	var n tpm2.NamedHandle
	err = c.use(ctx, "make a counter", func() error {
		again := n.Handle != 0 // the connection broke: whether the counter was made is unknown, and its authorization tells
		if err := c.define(&n.Handle, auth); err != nil && !(again && isRC(err, tpm2.TPMRCNVDefined)) {
			return err
		}
		var err error
		if n.Name, err = counterName(n.Handle, true); err != nil {
			return err
		}
		value, err = c.begin(n, auth)
		if err != nil && c.link.broken == nil && psa.StatusOf(err) != psa.StatusDoesNotExist {
			c.discard(n.Handle) // nobody has its name
		}
		return err
	})
	if err != nil {
		return nil, 0, err
	}
	reference, err = asn1.Marshal(counter{counterVersion, int64(n.Handle), n.Name.Buffer})
	return reference, value, err
}

// define makes a counter at this index, or at a free one if the index is 0.
func (c *chip) define(index *tpm2.TPMHandle, auth []byte) error {
	for draw, chosen := 0, *index != 0; ; draw++ {
		if !chosen {
			*index = tpm2.TPMHandle(firstOwned + rand.N(lastOwned-firstOwned+1))
		}
		_, err := tpm2.NVDefineSpace{
			AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: c.once(c.auths.owner, encryptIn)},
			Auth:       tpm2.TPM2BAuth{Buffer: bytes.Clone(auth)}, // go-tpm encrypts it in place
			PublicInfo: tpm2.New2B(counterTemplate(*index, false)),
		}.Execute(c.link)
		if chosen || draw >= draws || !isRC(err, tpm2.TPMRCNVDefined) {
			return err
		}
	}
}

// begin increments a new counter for the first time, if that was not done, and reads it.
func (c *chip) begin(n tpm2.NamedHandle, auth []byte) (uint64, error) {
	lies, err := c.counterAt(n.Handle)
	if err != nil {
		return 0, err
	}
	if !bytes.Equal(lies, n.Name.Buffer) {
		fresh := n
		if fresh.Name, err = counterName(n.Handle, false); err != nil {
			return 0, err
		}
		if err := c.increment(fresh, auth); err != nil {
			return 0, err
		}
	}
	return c.count(n, auth)
}

// counterAt is the name of what is at an index, computed from its public area; nil if the index is empty.
func (c *chip) counterAt(index tpm2.TPMHandle) ([]byte, error) {
	rsp, err := tpm2.NVReadPublic{NVIndex: index}.Execute(c.link)
	if isRC(err, tpm2.TPMRCHandle) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	public, err := rsp.NVPublic.Contents()
	if err != nil {
		return nil, err
	}
	name, err := tpm2.NVName(public)
	if err != nil {
		return nil, err
	}
	return name.Buffer, nil
}

func errNoCounter(n tpm2.NamedHandle, why string) error {
	return psa.Errorf(psa.StatusDoesNotExist, "the TPM's counter at %#x is gone: %s", uint32(n.Handle), why).
		WithHint("somebody with the owner's authorization removed it, or the TPM was cleared or replaced")
}

// opened reports a refused authorization as another counter: what has this index and this name was made with another
// authorization. NO_DA objects answer BAD_AUTH.
func opened(n tpm2.NamedHandle, err error) error {
	if isRC(err, tpm2.TPMRCBadAuth, tpm2.TPMRCAuthFail) {
		return errNoCounter(n, "another counter, with another authorization, is in its place")
	}
	return err
}

func (c *chip) counting(n tpm2.NamedHandle, auth []byte) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: n.Handle, Name: n.Name, Auth: c.once(auth)}
}

// count reads the counter. The answer's HMAC covers the authorization, the name and our nonce, so nobody in between can make
// such an answer or replay an old one.
func (c *chip) count(n tpm2.NamedHandle, auth []byte) (uint64, error) {
	lies, err := c.counterAt(n.Handle)
	switch {
	case err != nil:
		return 0, err
	case lies == nil:
		return 0, errNoCounter(n, "the index is empty")
	case !bytes.Equal(lies, n.Name.Buffer):
		return 0, errNoCounter(n, "something else uses the index")
	}
	rsp, err := tpm2.NVRead{AuthHandle: c.counting(n, auth), NVIndex: n, Size: counterSize}.Execute(c.link)
	if err != nil {
		return 0, opened(n, err)
	}
	if len(rsp.Data.Buffer) != counterSize {
		return 0, psa.Errorf(psa.StatusCommunicationFailure, "the TPM returned a counter of %d bytes, not %d", len(rsp.Data.Buffer), counterSize)
	}
	return binary.BigEndian.Uint64(rsp.Data.Buffer), nil
}

func (c *chip) increment(n tpm2.NamedHandle, auth []byte) error {
	_, err := tpm2.NVIncrement{AuthHandle: c.counting(n, auth), NVIndex: n}.Execute(c.link)
	return opened(n, err)
}

func (c *chip) undefine(n tpm2.NamedHandle) error {
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: c.once(c.auths.owner)}
	_, err := tpm2.NVUndefineSpace{AuthHandle: owner, NVIndex: n}.Execute(c.link)
	return err
}

// discard removes a counter that was just made, if the TPM still works.
func (c *chip) discard(index tpm2.TPMHandle) {
	for _, written := range []bool{false, true} {
		if name, err := counterName(index, written); err == nil && c.undefine(tpm2.NamedHandle{Handle: index, Name: name}) == nil {
			return
		}
	}
}

// Counter reads the counter (TPM2_NV_Read).
func (p *provider) Counter(ctx context.Context, reference, auth []byte) (value uint64, err error) {
	n, err := parseCounter(reference)
	if err != nil {
		return 0, err
	}
	if auth, err = counterAuth(auth); err != nil {
		return 0, err
	}
	defer psa.Wipe(auth)
	c := p.chip
	err = c.use(ctx, "read a counter", func() (err error) {
		value, err = c.count(n, auth)
		return err
	})
	return value, err
}

// Advance increments the counter (TPM2_NV_Increment), and reads it before and after, since after a broken connection the
// first increment may have happened.
func (p *provider) Advance(ctx context.Context, reference, auth []byte) (value uint64, err error) {
	n, err := parseCounter(reference)
	if err != nil {
		return 0, err
	}
	if auth, err = counterAuth(auth); err != nil {
		return 0, err
	}
	defer psa.Wipe(auth)
	c := p.chip
	again, before := false, uint64(0)
	err = c.use(ctx, "advance a counter", func() (err error) {
		value, err = c.count(n, auth)
		if err != nil || again && value > before {
			return err
		}
		again, before = true, value
		if err = c.increment(n, auth); err != nil {
			return err
		}
		if value, err = c.count(n, auth); err == nil && value <= before {
			return psa.Errorf(psa.StatusHardwareFailure, "the TPM's counter was %d before an increment and %d after it", before, value)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return value, nil
}

// RemoveCounter removes the counter (TPM2_NV_UndefineSpace). If another counter is in its place, that one stays.
func (p *provider) RemoveCounter(ctx context.Context, reference, auth []byte) error {
	n, err := parseCounter(reference)
	if err != nil {
		return err
	}
	if auth, err = counterAuth(auth); err != nil {
		return err
	}
	defer psa.Wipe(auth)
	c := p.chip
	return c.use(ctx, "remove a counter", func() error {
		_, err := c.count(n, auth)
		if psa.StatusOf(err) == psa.StatusDoesNotExist {
			return nil
		}
		if err != nil {
			return err
		}
		return c.undefine(n)
	})
}
