package tpm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// chip is a TPM that is connected when needed, and what is loaded in it: the parent of our keys, the keys used last, and one
// session. When the connection breaks, or the TPM is reset, all of that is made again.
type chip struct {
	tcti  tcti
	auths auths
	turn  chan struct{} // capacity 1: who has it uses the rest

	link   *link // nil: not connected
	parent *parent
	keys   []*loaded // the one used last is the last
	room   int       // how many keys fit beside the parent
	sign   tpm2.Session
	auth   []byte           // what sign authorizes with: it is changed from key to key
	ek, ak *tpm2.TPMTPublic // of the endorsement hierarchy; nil until they were asked for
}

// auths are the hierarchies' authorizations.
type auths struct{ owner, endorsement []byte }

type parent struct {
	handle tpm2.TPMHandle
	name   tpm2.TPM2BName
	public tpm2.TPMTPublic
}

type loaded struct {
	wrapped []byte // which key it is: nothing secret stays here
	handle  tpm2.TPMHandle
	name    tpm2.TPM2BName
}

// chips are the chips in use, and by how many providers. A TPM without a resource manager serves only one connection.
var chips = struct {
	sync.Mutex
	open map[tcti]*chip
	uses map[*chip]int
}{open: map[tcti]*chip{}, uses: map[*chip]int{}}

// openChip returns the only chip of a TPM. Each caller must close it.
func openChip(t tcti, a auths) (*chip, error) {
	chips.Lock()
	defer chips.Unlock()
	c := chips.open[t]
	if c == nil {
		c = &chip{tcti: t, auths: a, turn: make(chan struct{}, 1), auth: make([]byte, authSize)}
		chips.open[t] = c
	}
	if !bytes.Equal(c.auths.owner, a.owner) || !bytes.Equal(c.auths.endorsement, a.endorsement) {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "two providers use the same TPM with different owner_hierarchy_auth or endorsement_hierarchy_auth")
	}
	chips.uses[c]++
	return c, nil
}

// link is a connection. TPM warnings that ask to try again are obeyed (TCG TPM 2.0, part 2, 6.6.3).
type link struct {
	conn
	ctx    context.Context // of the use under way
	broken error
}

// usually is how long a command may take, on a slow chip that others use too. Commands that make keys or search for primes
// may take longer. The caller's own deadline comes first.
const (
	usually = 10 * time.Second
	long    = 5 * time.Minute
)

// most is how long the exchange of a command may take.
func most(command []byte) time.Duration {
	if len(command) < headerSize {
		return usually
	}
	switch tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) {
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCCreate, tpm2.TPMCCCreateLoaded, tpm2.TPMCCLoad, tpm2.TPMCCImport:
		return long
	}
	return usually
}

const (
	firstPause = time.Millisecond
	lastPause  = 200 * time.Millisecond
	pauses     = 30 * time.Second // in all
)

func (l *link) Send(command []byte) ([]byte, error) {
	pause, since := firstPause, time.Now()
	for {
		if l.broken != nil {
			return nil, l.broken
		}
		b, err := l.exchange(l.ctx, command, most(command))
		if err == nil && len(b) < headerSize {
			err = fmt.Errorf("the TPM's response has only %d bytes", len(b))
		}
		if err != nil {
			l.broken = err
			return nil, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(b[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCTesting, tpm2.TPMRCYielded, tpm2.TPMRCNVRate, tpm2.TPMRCNVUnavailable:
			if time.Since(since) < pauses {
				select {
				case <-time.After(pause):
				case <-l.ctx.Done():
					l.broken = context.Cause(l.ctx)
				}
				pause = min(2*pause, lastPause)
				continue
			}
		}
		return b, nil
	}
}

// alone runs f while nobody else uses the TPM, and does not check which TPM it is. If the connection breaks, or the TPM has
// forgotten what was loaded, f runs once more, so it must leave nothing behind in the TPM. If an answer does not come in
// time, f does not run again.
func (c *chip) alone(ctx context.Context, what string, f func() error) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for again := false; ; again = true {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := c.connect(ctx)
		if err == nil {
			err = f()
		}
		if err == nil {
			return nil
		}
		gone := c.link != nil && c.link.broken != nil
		late := gone && tooLate(c.link.broken)
		if gone || lost(err) || crowded(err) {
			c.disconnect()
			if !again && !late {
				continue
			}
		}
		if gone {
			return psa.Errorf(psa.StatusCommunicationFailure, "%s: the TPM went away: %w", what, err)
		}
		if err = failed(what, err); psa.StatusOf(err) == psa.StatusCommunicationFailure {
			c.disconnect() // an answer that makes no sense: what the session counts may be out of step
		}
		return err
	}
}

// tooLate says whether an exchange ended because of a deadline.
func tooLate(err error) bool {
	return errors.Is(err, errSlow) || errors.Is(err, errCut) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func (c *chip) disconnect() {
	if c.link != nil {
		_ = c.link.Close() // there is nothing left to lose
	}
	c.link, c.parent, c.keys, c.sign, c.ek, c.ak = nil, nil, nil, nil, nil, nil
	psa.Wipe(c.auth)
}

// close frees the TPM's slots when nobody uses the chip any more.
func (c *chip) close() error {
	chips.Lock()
	chips.uses[c]--
	last := chips.uses[c] == 0
	if last {
		delete(chips.uses, c)
		delete(chips.open, c.tcti)
	}
	chips.Unlock()
	if !last {
		return nil
	}
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.link == nil {
		return nil
	}
	c.link.ctx = context.Background()
	for len(c.keys) > 0 {
		if err := c.evict(); err != nil {
			break
		}
	}
	if c.sign != nil {
		_ = c.flush(c.sign.Handle()) // the connection's end does it too, where there is a resource manager
	}
	if c.parent != nil {
		_ = c.flush(c.parent.handle)
	}
	c.disconnect()
	return nil
}

func (c *chip) flush(h tpm2.TPMHandle) error {
	_, err := tpm2.FlushContext{FlushHandle: h}.Execute(c.link)
	return err
}

// connect connects, and makes the parent.
func (c *chip) connect(ctx context.Context) error {
	if c.link != nil {
		c.link.ctx = ctx
		return nil
	}
	t, err := c.tcti.dial(ctx)
	if err != nil {
		return err
	}
	c.link = &link{conn: t, ctx: ctx}
	err = c.prepare()
	if isRC(err, tpm2.TPMRCInitialize) { // nobody started it: a simulator, or a chip on a bare bus
		if _, err = (tpm2.Startup{StartupType: tpm2.TPMSUClear}).Execute(c.link); err == nil {
			err = c.prepare()
		}
	}
	if err != nil {
		broken := c.link.broken
		c.disconnect()
		if broken != nil {
			return psa.Errorf(psa.StatusProviderAbsent, "the TPM does not answer: %w", broken)
		}
	}
	return err
}

func (c *chip) prepare() error {
	slots, err := c.property(tpm2.TPMPTHRTransientMin)
	if err != nil {
		return err
	}
	c.room = min(max(int(slots)-1, 1), mostRoom)
	if !c.tcti.managed() {
		if err := c.sweep(); err != nil {
			return err
		}
	}
	// There is no key yet to salt a session with. That is safe: an empty password is no secret, and another one is only used
	// for an HMAC.
	owner := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
	if len(c.auths.owner) > 0 {
		owner.Auth = tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, tpm2.Auth(c.auths.owner))
	}
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: owner, InPublic: tpm2.New2B(srkTemplate())}.Execute(c.link)
	if err != nil {
		return err
	}
	public, name, err := made(rsp.OutPublic, &rsp.Name, srkTemplate())
	if err != nil {
		return err
	}
	c.parent = &parent{rsp.ObjectHandle, name, *public}
	return nil
}

// mostRoom limits the number of slots that a TPM may claim.
const mostRoom = 16

// hierarchy authorizes with a hierarchy's secret, which may be empty: the session proves the answer, too.
func (c *chip) hierarchy(h tpm2.TPMHandle, auth []byte) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: h, Auth: c.once(auth)}
}

// srkTemplate is TCG's storage root key on P-256, with an empty unique field (template H-2 of the TCG EK Credential
// Profile, as tpm2-tss's and OpenSSL's keys have it).
func srkTemplate() tpm2.TPMTPublic {
	t := tpm2.ECCSRKTemplate
	t.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	return t
}

// sweep flushes what an earlier program left behind, such as parsecfs after kill -9. A TPM without a resource manager has
// only three slots, and we use it alone.
func (c *chip) sweep() error {
	for _, kind := range []tpm2.TPMHT{tpm2.TPMHTTransient, tpm2.TPMHTHMACSession, tpm2.TPMHTPolicySession} {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: uint32(kind) << 24, PropertyCount: 64}.Execute(c.link)
		if err != nil {
			return err
		}
		handles, err := rsp.CapabilityData.Data.Handles()
		if err != nil {
			return err
		}
		for _, h := range handles.Handle {
			if err := c.flush(h); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *chip) property(p tpm2.TPMPT, s ...tpm2.Session) (uint32, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties, Property: uint32(p), PropertyCount: 1}.Execute(c.link, s...)
	if err != nil {
		return 0, err
	}
	list, err := rsp.CapabilityData.Data.TPMProperties()
	if err != nil {
		return 0, err
	}
	for _, v := range list.TPMProperty {
		if v.Property == p {
			return v.Value, nil
		}
	}
	return 0, nil
}

// alive says whether the TPM still works.
func (c *chip) alive() bool {
	_, err := tpm2.ReadPublic{ObjectHandle: c.parent.handle}.Execute(c.link)
	return err == nil
}

const nonceSize = 16

// once is a session for one command, salted with the parent, and encrypting.
func (c *chip) once(auth []byte, options ...tpm2.AuthOption) tpm2.Session {
	options = append(options, tpm2.Auth(auth), tpm2.Salted(c.parent.handle, c.parent.public))
	return tpm2.HMAC(tpm2.TPMAlgSHA256, nonceSize, options...)
}

// parentAuth is for commands on the parent, whose authorization is empty.
func (c *chip) parentAuth(s tpm2.Session) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: c.parent.handle, Name: c.parent.name, Auth: s}
}

// signing is the session for TPM2_Sign, whose response has nothing to encrypt; it is kept from call to call.
func (c *chip) signing(k *stored) (tpm2.Session, error) {
	if c.sign == nil {
		s, _, err := tpm2.HMACSession(c.link, tpm2.TPMAlgSHA256, nonceSize, tpm2.Auth(c.auth),
			encryptIn, tpm2.Salted(c.parent.handle, c.parent.public))
		if err != nil {
			return nil, err
		}
		c.sign = s
	}
	copy(c.auth, k.Auth) // go-tpm keeps the slice
	return c.sign, nil
}

// forgetSigning ends that session, for commands that need the others: a TPM has three.
func (c *chip) forgetSigning() error {
	if c.sign == nil {
		return nil
	}
	s := c.sign
	c.sign = nil
	return c.flush(s.Handle())
}

// evict flushes the key that was not used for the longest time.
func (c *chip) evict() error {
	oldest := c.keys[0]
	c.keys = c.keys[1:]
	return c.flush(oldest.handle)
}

// load brings a key into the TPM, beside so many others at most. Who answers so far may be anybody: whatever uses the key
// names it, in a session, and finds out.
func (c *chip) load(k *stored, others int) (*loaded, error) {
	return c.loadBy(k, others, func() tpm2.Session { return tpm2.PasswordAuth(nil) })
}

// loadBy is load with what authorizes the parent's use.
func (c *chip) loadBy(k *stored, others int, session func() tpm2.Session) (*loaded, error) {
	if k.Handle != 0 {
		return c.resident(k, others)
	}
	for i, l := range c.keys {
		if bytes.Equal(l.wrapped, k.Private) {
			c.keys = append(append(c.keys[:i:i], c.keys[i+1:]...), l)
			return l, c.shrink(others + 1)
		}
	}
	if !bytes.Equal(k.Parent, c.parent.name.Buffer) {
		return nil, psa.Errorf(psa.StatusProviderAbsent, "the key belongs to another TPM, or this TPM was cleared")
	}
	if err := c.shrink(others); err != nil {
		return nil, err
	}
	public := tpm2.BytesAs2B[tpm2.TPMTPublic](k.Public)
	name, err := nameIn(k.Public)
	if err != nil {
		return nil, err
	}
	rsp, err := c.loadInto(k, public, session())
	for isRC(err, tpm2.TPMRCObjectMemory) && len(c.keys) > 0 {
		if err = c.evict(); err == nil {
			rsp, err = c.loadInto(k, public, session())
		}
	}
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(rsp.Name.Buffer, name.Buffer) {
		return nil, errLies("the key %x, loaded as %x", name.Buffer, rsp.Name.Buffer)
	}
	l := &loaded{k.Private, rsp.ObjectHandle, name}
	c.keys = append(c.keys, l)
	return l, nil
}

func (c *chip) shrink(n int) error {
	for len(c.keys) > n {
		if err := c.evict(); err != nil {
			return err
		}
	}
	return nil
}

func (c *chip) loadInto(k *stored, public tpm2.TPM2BPublic, session tpm2.Session) (*tpm2.LoadResponse, error) {
	return tpm2.Load{
		ParentHandle: c.parentAuth(session), // the blob is encrypted by the parent, and there is no secret beside it
		InPrivate:    tpm2.TPM2BPrivate{Buffer: k.Private},
		InPublic:     public,
	}.Execute(c.link)
}

// private uses a key, with its authorization and PCRs, and with a session for one command, whose options say what it
// encrypts.
func (c *chip) private(l *loaded, auth []byte, pcrs psa.PCRs, encrypts ...tpm2.AuthOption) tpm2.AuthHandle {
	h := tpm2.AuthHandle{Handle: l.handle, Name: l.name}
	if pcrs == 0 {
		h.Auth = c.once(auth, encrypts...)
	} else {
		h.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, bind(pcrs), append(encrypts, tpm2.Auth(auth), tpm2.Salted(c.parent.handle, c.parent.public))...)
	}
	return h
}

// bind is the policy of keys with PCRs: those of the bank of SHA-256 are as they were, and the authorization is known
// (TPM2_PolicyPCR, TPM2_PolicyAuthValue).
func bind(pcrs psa.PCRs) tpm2.PolicyCallback {
	selection := selected(pcrs)
	return func(t transport.TPM, session tpm2.TPMISHPolicy, _ tpm2.TPM2BNonce) error {
		if _, err := (tpm2.PolicyPCR{PolicySession: session, Pcrs: selection}).Execute(t); err != nil {
			return err
		}
		_, err := tpm2.PolicyAuthValue{PolicySession: session}.Execute(t)
		return err
	}
}

// selected are registers of the bank of SHA-256.
func selected(pcrs psa.PCRs) tpm2.TPMLPCRSelection {
	var numbers []uint
	for _, n := range pcrs.List() {
		numbers = append(numbers, uint(n))
	}
	return tpm2.TPMLPCRSelection{PCRSelections: []tpm2.TPMSPCRSelection{{Hash: tpm2.TPMAlgSHA256, PCRSelect: tpm2.PCClientCompatible.PCRs(numbers...)}}}
}

// policy is what keys that are made now with these PCRs have in their public area; nothing without any. It is computed here,
// from registers that the TPM vouches for: a policy session would take what anybody in between adds to it.
func (c *chip) policy(pcrs psa.PCRs) ([]byte, error) {
	if pcrs == 0 {
		return nil, nil
	}
	values, err := c.hasRegisters(pcrs)
	if err != nil {
		return nil, err
	}
	state := sha256.New()
	for _, n := range pcrs.List() {
		state.Write(values[n])
	}
	policy, err := tpm2.NewPolicyCalculator(tpm2.TPMAlgSHA256)
	if err != nil {
		return nil, err
	}
	is := tpm2.PolicyPCR{PcrDigest: tpm2.TPM2BDigest{Buffer: state.Sum(nil)}, Pcrs: selected(pcrs)}
	if err := errors.Join(is.Update(policy), tpm2.PolicyAuthValue{}.Update(policy)); err != nil {
		return nil, err
	}
	return policy.Hash().Digest, nil
}

// hasRegisters reads registers, and refuses those that the bank of SHA-256 does not have: a TPM leaves them out of a policy
// or a quote in silence (TCG TPM 2.0, part 1, 17.7), and what is bound to them is bound to nothing.
func (c *chip) hasRegisters(pcrs psa.PCRs) (values [psa.MaxPCR + 1][]byte, err error) {
	if values, err = c.registers(pcrs); err != nil {
		return values, err
	}
	for _, n := range pcrs.List() {
		if values[n] == nil {
			return values, psa.Errorf(psa.StatusNotSupported, "the TPM has no SHA-256 bank with PCR %d", n).
				WithHint("switch the bank on in the firmware's setup, or with tpm2_pcrallocate and a restart")
		}
	}
	return values, nil
}
