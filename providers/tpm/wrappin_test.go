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

// tried is how many wrong authorizations the TPM counts.
func tried(t *testing.T, c *trusted) uint32 {
	t.Helper()
	var n uint32
	err := c.use(t.Context(), "count", func() (err error) {
		n, err = c.property(tpm2.TPMPTLockoutCounter)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// clearLockout begins the count anew (TPM2_DictionaryAttackLockReset, which go-tpm lacks), with an empty password.
func clearLockout(t *testing.T, c *trusted) {
	t.Helper()
	command := binary.BigEndian.AppendUint32([]byte{0x80, 0x02, 0, 0, 0, 27}, uint32(tpm2.TPMCCDictionaryAttackLockReset))
	command = binary.BigEndian.AppendUint32(command, uint32(tpm2.TPMRHLockout))
	command = binary.BigEndian.AppendUint32(command, 9)
	command = binary.BigEndian.AppendUint32(command, uint32(tpm2.TPMRSPW))
	command = append(command, make([]byte, 5)...)
	answer, err := c.link.Send(command)
	if err != nil || binary.BigEndian.Uint32(answer[6:]) != 0 {
		t.Fatalf("%x, %v", answer, err)
	}
}

// recorded keeps what is sent to the TPM.
type recorded struct {
	conn
	all bytes.Buffer
}

func (r *recorded) exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error) {
	r.all.Write(command)
	return r.conn.exchange(ctx, command, most)
}

// TestWrapWithPIN: the right PIN opens, and the TPM counts each wrong one, beside PCRs too; it never gets one in the clear,
// and is never locked by us.
func TestWrapWithPIN(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	p := newProvider(t, chip).(*provider)
	defer p.Close()
	secret, pin := []byte("a data key and what names it"), []byte("a PIN of 16 bytes")
	if _, err := p.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	wire := &recorded{conn: p.chip.link.conn}
	p.chip.link.conn = wire
	for _, pcrs := range []psa.PCRs{0, 1 << 16} {
		b, err := p.Wrap(t.Context(), secret, pcrs, pin)
		if err != nil {
			t.Fatal(err)
		}
		if wants, err := p.WantsPIN(b); err != nil || !wants {
			t.Errorf("it wants a PIN: %t, %v", wants, err)
		}
		opens := func(pin []byte, want psa.Status, is error, counts uint32) {
			t.Helper()
			before := tried(t, p.chip)
			got, err := p.Unwrap(t.Context(), b, pin)
			if psa.StatusOf(err) != want || is != nil && !errors.Is(err, is) || err == nil && !bytes.Equal(got, secret) {
				t.Errorf("PCRs %v, PIN %q: %q, %v", pcrs.List(), pin, got, err)
			}
			if after := tried(t, p.chip); after != before+counts {
				t.Errorf("PCRs %v, PIN %q: the TPM counts %d behind %d", pcrs.List(), pin, after, before)
			}
			if len(p.chip.keys) > 0 {
				t.Errorf("%d objects stay in the TPM", len(p.chip.keys))
			}
		}
		for range 4 {
			opens(pin, psa.StatusSuccess, nil, 0)
			opens(nil, psa.StatusNotPermitted, providers.ErrPIN, 0)
		}
		opens([]byte("another"), psa.StatusNotPermitted, providers.ErrPINRefused, 1)
		opens(pin, psa.StatusSuccess, nil, 0)
		opens(append(bytes.Clone(pin), '1'), psa.StatusNotPermitted, providers.ErrPINRefused, 1)
		// One more would lock the TPM, which is the libtpms' at three.
		opens([]byte("another"), psa.StatusNotPermitted, providers.ErrPIN, 0)
		clearLockout(t, p.chip)
		opens(pin, psa.StatusSuccess, nil, 0)
		if pcrs != 0 { // judged before the PIN
			err := p.chip.use(t.Context(), "extend", func() error {
				_, err := tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: 16, Auth: tpm2.PasswordAuth(nil)},
					Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}}}.Execute(p.chip.link)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			opens(pin, psa.StatusNotPermitted, nil, 0)
			opens([]byte("another"), psa.StatusNotPermitted, nil, 0)
		}
		w, err := parseWrapped(b)
		if err != nil {
			t.Fatal(err)
		}
		auth, err := pinAuth(pin, w.Salt)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(wire.all.Bytes(), pin) || bytes.Contains(wire.all.Bytes(), auth) || bytes.Contains(wire.all.Bytes(), secret) {
			t.Error("the TPM was sent something in the clear")
		}
		// Whoever rewrites the blob makes no other object of it: neither one without a PIN, nor one that is not guarded.
		none := *w
		none.Version, none.Salt = wrappedVersion, nil
		der, err := asn1.Marshal(none)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Unwrap(t.Context(), der, nil); psa.StatusOf(err) != psa.StatusProviderAbsent {
			t.Errorf("without its salt: %v", err)
		}
		area, err := tpm2.Unmarshal[tpm2.TPMTPublic](w.Public)
		if err != nil {
			t.Fatal(err)
		}
		area.ObjectAttributes.NoDA = true
		none.Public = tpm2.Marshal(area)
		if der, err = asn1.Marshal(none); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Unwrap(t.Context(), der, nil); psa.StatusOf(err) != psa.StatusProviderAbsent {
			t.Errorf("with another public area: %v", err)
		}
	}
	if _, err := p.Wrap(t.Context(), secret, 0, make([]byte, providers.MaxPIN+1)); psa.StatusOf(err) != psa.StatusInvalidArgument {
		t.Errorf("a PIN that is too long: %v", err)
	}
	without, err := p.Wrap(t.Context(), secret, 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if wants, err := p.WantsPIN(without); err != nil || wants {
		t.Errorf("it wants a PIN: %t, %v", wants, err)
	}
	if got, err := p.Unwrap(t.Context(), without, pin); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("wrapped without a PIN, unwrapped with one: %q, %v", got, err)
	}
}

// TestAuthFromPIN: whatever comes of a PIN opens what was sealed with it. Without care, one in nine has a zero byte.
func TestAuthFromPIN(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t)).(*provider)
	defer p.Close()
	for i := range 40 {
		b, err := p.Wrap(t.Context(), []byte("secret"), 0, []byte{'1', byte('0' + i)})
		if err != nil {
			t.Fatal(err)
		}
		if got, err := p.Unwrap(t.Context(), b, []byte{'1', byte('0' + i)}); err != nil || string(got) != "secret" {
			t.Fatalf("%d: %q, %v", i, got, err)
		}
	}
}

// TestPINTriedOnce: where the connection breaks while the TPM judges a PIN, it is not tried again.
func TestPINTriedOnce(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t)).(*provider)
	defer p.Close()
	b, err := p.Wrap(t.Context(), []byte("secret"), 0, []byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	// The first use of what the TPM guards is asked for twice (TPM_RC_RETRY), and would be so here.
	if _, err := p.Unwrap(t.Context(), b, []byte("1234")); err != nil {
		t.Fatal(err)
	}
	p.chip.link.conn = &broken{p.chip.link.conn, tpm2.TPMCCUnseal, true}
	if _, err := p.Unwrap(t.Context(), b, []byte("4321")); psa.StatusOf(err) != psa.StatusCommunicationFailure {
		t.Errorf("%v", err)
	}
	if n := tried(t, p.chip); n != 1 {
		t.Errorf("the TPM counts %d", n)
	}
	if got, err := p.Unwrap(t.Context(), b, []byte("1234")); err != nil || string(got) != "secret" {
		t.Errorf("%q, %v", got, err)
	}
}

// locked answers each TPM2_Unseal as a TPM that is locked against guessing does.
type locked struct{ conn }

func (l *locked) exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error) {
	if tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) != tpm2.TPMCCUnseal {
		return l.conn.exchange(ctx, command, most)
	}
	return binary.BigEndian.AppendUint32([]byte{0x80, 0x01, 0, 0, 0, headerSize}, uint32(tpm2.TPMRCLockout)), nil
}

// TestPINWhileLocked: a TPM that judges no PIN has refused none.
func TestPINWhileLocked(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t)).(*provider)
	defer p.Close()
	b, err := p.Wrap(t.Context(), []byte("secret"), 0, []byte("1234"))
	if err != nil {
		t.Fatal(err)
	}
	p.chip.link.conn = &locked{p.chip.link.conn}
	_, err = p.Unwrap(t.Context(), b, []byte("1234"))
	if !errors.Is(err, providers.ErrPIN) || errors.Is(err, providers.ErrPINRefused) || psa.HintOf(err) == "" {
		t.Errorf("%v, hint %q", err, psa.HintOf(err))
	}
}
