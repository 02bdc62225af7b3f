package tpm

import (
	"bytes"
	"context"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

var storeAuth = bytes.Repeat([]byte{7}, maxCounterAuth)

// counting is the provider, seen as one that counts, until end.
func counting(t *testing.T, chip *tpmtest.Chip) (c providers.Counters, end func()) {
	t.Helper()
	p := newProvider(t, chip)
	return p.(providers.Counters), func() {
		t.Helper()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// owner does something in the TPM with the owner's authorization, which is empty.
func owner(t *testing.T, chip *tpmtest.Chip, do func(l *link, auth tpm2.AuthHandle) error) {
	t.Helper()
	l := raw(t, chip)
	if err := do(l, tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestCounterOnlyGrows: over restarts of the TPM and of ours, whoever else is at the TPM, and a counter that somebody put in
// its place is another one.
func TestCounterOnlyGrows(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	c, end := counting(t, chip)
	reference, value, err := c.NewCounter(t.Context(), storeAuth)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		if got, err := c.Advance(t.Context(), reference, storeAuth); err != nil || got != value+1 {
			t.Fatalf("%d behind %d: %v", got, value, err)
		}
		value++
		switch i % 3 {
		case 0:
			chip.Kill()
			chip.Restart()
		case 1:
			end()
			c, end = counting(t, chip)
		}
		if got, err := c.Counter(t.Context(), reference, storeAuth); err != nil || got != value {
			t.Fatalf("%d, %v; want %d", got, err, value)
		}
	}
	gone := func(what string) {
		t.Helper()
		_, err := c.Counter(t.Context(), reference, storeAuth)
		_, aerr := c.Advance(t.Context(), reference, storeAuth)
		if psa.StatusOf(err) != psa.StatusDoesNotExist || psa.HintOf(err) == "" || psa.StatusOf(aerr) != psa.StatusDoesNotExist {
			t.Errorf("%s: %v, %v", what, err, aerr)
		}
		if err := c.RemoveCounter(t.Context(), reference, storeAuth); err != nil {
			t.Errorf("%s, removed: %v", what, err)
		}
	}
	n, err := parseCounter(reference)
	if err != nil {
		t.Fatal(err)
	}
	inTPM, err := counterAuth(storeAuth)
	if err != nil {
		t.Fatal(err)
	}
	end()
	owner(t, chip, func(l *link, auth tpm2.AuthHandle) error { // who knows the owner's authorization neither reads it nor counts
		if _, err := (tpm2.NVRead{AuthHandle: auth, NVIndex: n, Size: counterSize}).Execute(l); !isRC(err, tpm2.TPMRCNVAuthorization) {
			t.Errorf("the owner reads it: %v", err)
		}
		if _, err := (tpm2.NVIncrement{AuthHandle: auth, NVIndex: n}).Execute(l); !isRC(err, tpm2.TPMRCNVAuthorization) {
			t.Errorf("the owner increments it: %v", err)
		}
		_, err := tpm2.NVUndefineSpace{AuthHandle: auth, NVIndex: n}.Execute(l)
		return err
	})
	c, end = counting(t, chip)
	gone("nothing in its place")
	end()

	ordinary := counterTemplate(n.Handle, false)
	ordinary.Attributes.NT = tpm2.TPMNTOrdinary
	for what, public := range map[string]tpm2.TPMSNVPublic{
		"a counter like it":          counterTemplate(n.Handle, false),
		"a number that anybody sets": ordinary,
	} {
		other := tpm2.NamedHandle{Handle: n.Handle}
		owner(t, chip, func(l *link, auth tpm2.AuthHandle) error {
			define := tpm2.NVDefineSpace{AuthHandle: auth, PublicInfo: tpm2.New2B(public)}
			if what == "a number that anybody sets" {
				define.Auth.Buffer = inTPM // it knows even that
			}
			if _, err := define.Execute(l); err != nil {
				return err
			}
			name, err := tpm2.NVName(&public)
			if err != nil {
				return err
			}
			at := tpm2.AuthHandle{Handle: n.Handle, Name: *name, Auth: tpm2.PasswordAuth(define.Auth.Buffer)}
			other.Name = *name
			if public.Attributes.NT == tpm2.TPMNTCounter {
				_, err = tpm2.NVIncrement{AuthHandle: at, NVIndex: other}.Execute(l)
			} else {
				data := tpm2.TPM2BMaxNVBuffer{Buffer: binary.BigEndian.AppendUint64(nil, value)}
				_, err = tpm2.NVWrite{AuthHandle: at, NVIndex: other, Data: data}.Execute(l)
			}
			public.Attributes.Written = true
			return err
		})
		c, end = counting(t, chip)
		gone(what)
		end()
		owner(t, chip, func(l *link, auth tpm2.AuthHandle) error { // it is still there
			name, err := tpm2.NVName(&public)
			if err == nil {
				_, err = tpm2.NVUndefineSpace{AuthHandle: auth, NVIndex: tpm2.NamedHandle{Handle: n.Handle, Name: *name}}.Execute(l)
			}
			return err
		})
	}

	// Who has the authorization and makes it again gets one that is above it.
	owner(t, chip, func(l *link, auth tpm2.AuthHandle) error {
		_, err := tpm2.NVDefineSpace{AuthHandle: auth, Auth: tpm2.TPM2BAuth{Buffer: inTPM},
			PublicInfo: tpm2.New2B(counterTemplate(n.Handle, false))}.Execute(l)
		return err
	})
	c, end = counting(t, chip)
	gone("a counter that was never incremented")
	end()
	owner(t, chip, func(l *link, _ tpm2.AuthHandle) error {
		name, err := counterName(n.Handle, false)
		if err == nil {
			_, err = tpm2.NVIncrement{AuthHandle: tpm2.AuthHandle{Handle: n.Handle, Name: name, Auth: tpm2.PasswordAuth(inTPM)},
				NVIndex: tpm2.NamedHandle{Handle: n.Handle, Name: name}}.Execute(l)
		}
		return err
	})
	c, end = counting(t, chip)
	if got, err := c.Counter(t.Context(), reference, storeAuth); err != nil || got <= value {
		t.Errorf("made again, it is %d behind %d: %v", got, value, err)
	}
	end()

	owner(t, chip, func(l *link, _ tpm2.AuthHandle) error {
		_, err := tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}.Execute(l)
		return err
	})
	c, end = counting(t, chip)
	gone("in a cleared TPM")
	end()
	chip.Exchange()
	c, end = counting(t, chip)
	gone("in another TPM")
	end()
}

// broken is a connection that ends at the next command of that code, before or behind it.
type broken struct {
	conn
	at     tpm2.TPMCC
	behind bool
}

func (b *broken) exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) != b.at {
		return b.conn.exchange(ctx, command, most)
	}
	if b.behind {
		if _, err := b.conn.exchange(ctx, command, most); err != nil {
			return nil, err
		}
	}
	return nil, errors.New("the connection ends here")
}

// TestCounterOverBrokenConnection: one counter, one step, wherever the connection breaks, and nothing is left behind.
func TestCounterOverBrokenConnection(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t))
	defer p.Close()
	c := p.(*provider)
	breaks := func(at tpm2.TPMCC, behind bool) {
		t.Helper()
		if _, err := p.Identity(t.Context()); err != nil {
			t.Fatal(err)
		}
		c.chip.link.conn = &broken{c.chip.link.conn, at, behind}
	}
	for _, behind := range []bool{false, true} {
		for _, at := range []tpm2.TPMCC{tpm2.TPMCCNVDefineSpace, tpm2.TPMCCNVIncrement, tpm2.TPMCCNVReadPublic, tpm2.TPMCCNVRead} {
			breaks(at, behind)
			reference, value, err := c.NewCounter(t.Context(), storeAuth)
			if err != nil {
				t.Fatalf("%v, behind it %t: %v", at, behind, err)
			}
			breaks(at, behind)
			if got, err := c.Advance(t.Context(), reference, storeAuth); err != nil || got != value+1 {
				t.Errorf("%v, behind it %t: %d behind %d, %v", at, behind, got, value, err)
			}
			breaks(tpm2.TPMCCNVUndefineSpace, behind)
			if err := c.RemoveCounter(t.Context(), reference, storeAuth); err != nil {
				t.Errorf("%v, behind it %t: %v", at, behind, err)
			}
		}
	}
	if left := indices(t, c.chip.link); len(left) > 0 {
		t.Errorf("left behind: %x", left)
	}
}

// indices are those of the owner's range.
func indices(t *testing.T, l *link) (owned []tpm2.TPMHandle) {
	t.Helper()
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: firstOwned, PropertyCount: 64}.Execute(l)
	if err != nil {
		t.Fatal(err)
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range handles.Handle {
		if h >= firstOwned && h <= lastOwned {
			owned = append(owned, h)
		}
	}
	return owned
}

// forged answers NV_Read with what an earlier answer said, or with another number in it.
type forged struct {
	conn
	replays bool
	old     []byte
}

func (f *forged) exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error) {
	b, err := f.conn.exchange(ctx, command, most)
	if err != nil || tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) != tpm2.TPMCCNVRead || binary.BigEndian.Uint32(b[6:]) != 0 {
		return b, err
	}
	if f.replays {
		if f.old == nil {
			f.old = bytes.Clone(b)
		}
		return bytes.Clone(f.old), nil
	}
	b[10+4+2+counterSize-1]++ // header, the parameters' size, the buffer's size
	return b, nil
}

// TestCounterForged: an answer that was changed or repeated on its way is no value.
func TestCounterForged(t *testing.T) {
	t.Parallel()
	for _, replays := range []bool{false, true} {
		p := newProvider(t, tpmtest.Start(t))
		defer p.Close()
		c := p.(*provider)
		reference, value, err := c.NewCounter(t.Context(), storeAuth)
		if err != nil {
			t.Fatal(err)
		}
		c.chip.link.conn = &forged{conn: c.chip.link.conn, replays: replays}
		if replays {
			if _, err := c.Counter(t.Context(), reference, storeAuth); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := c.Counter(t.Context(), reference, storeAuth); psa.StatusOf(err) != psa.StatusCommunicationFailure {
			t.Errorf("repeated %t: %d, %v", replays, got, err)
		}
		if got, err := c.Counter(t.Context(), reference, storeAuth); err != nil || got != value {
			t.Errorf("afterwards: %d, %v", got, err)
		}
	}
}

// TestCounterNoRoom: a full TPM says so, and nothing half-made takes room.
func TestCounterNoRoom(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t))
	defer p.Close()
	c := p.(*provider)
	if _, err := p.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	for index, size := lastOwned+tpm2.TPMHandle(1), uint16(2048); size >= 16; index++ { // another's: little is left to fill
		public := tpm2.TPMSNVPublic{NVIndex: index, NameAlg: tpm2.TPMAlgSHA256, DataSize: size,
			Attributes: tpm2.TPMANV{OwnerRead: true, OwnerWrite: true}}
		auth := tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)}
		_, err := tpm2.NVDefineSpace{AuthHandle: auth, PublicInfo: tpm2.New2B(public)}.Execute(c.chip.link)
		switch {
		case isRC(err, tpm2.TPMRCNVSpace):
			size /= 2
		case err != nil:
			t.Fatal(err)
		}
	}
	var made [][]byte
	for range 4096 {
		reference, _, err := c.NewCounter(t.Context(), storeAuth)
		if err == nil {
			made = append(made, reference)
			continue
		}
		if psa.StatusOf(err) != psa.StatusInsufficientStorage || psa.HintOf(err) == "" {
			t.Fatalf("counter %d: %v", len(made), err)
		}
		break
	}
	if left := indices(t, c.chip.link); len(left) != min(len(made), 64) {
		t.Errorf("%d counters, %d indices", len(made), len(left))
	}
	if err := c.RemoveCounter(t.Context(), made[0], storeAuth); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.NewCounter(t.Context(), storeAuth); err != nil {
		t.Errorf("in the place of a removed one: %v", err)
	}
}

// FuzzParseCounter: a reference names a counter of ours, or nothing.
func FuzzParseCounter(f *testing.F) {
	for _, index := range []int64{firstOwned, lastOwned, lastOwned + 1, -1, 0x81000001} {
		name, err := counterName(tpm2.TPMHandle(uint32(index)), true)
		if err != nil {
			f.Fatal(err)
		}
		b, err := asn1.Marshal(counter{counterVersion, index, name.Buffer})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
		f.Add(b[:len(b)-1])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := parseCounter(b)
		if err != nil {
			if psa.StatusOf(err) != psa.StatusDataCorrupt {
				t.Error(err)
			}
			return
		}
		if n.Handle < firstOwned || n.Handle > lastOwned {
			t.Errorf("%x", uint32(n.Handle))
		}
	})
}
