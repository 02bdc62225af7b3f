package tpm

import (
	"bytes"
	"context"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/asn1"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

var _ providers.Wrapper = (*provider)(nil)

// wrapped is a sealed data object (TCG TPM 2.0, part 1, 25.3) in ASN.1, wrapped by the parent of that name. Its
// authorization comes from the PIN. Without a PIN it is empty, since whoever has the blob would have it too.
type wrapped struct {
	Version int
	Parent  []byte // TPM2B_NAME's contents
	Public  []byte // TPMT_PUBLIC
	Private []byte // TPM2B_PRIVATE's contents
	PCRs    int64
	Salt    []byte `asn1:"optional,explicit,tag:0"` // of the PIN; there is none without one
}

const (
	wrappedVersion    = 1
	wrappedPINVersion = 2 // with a PIN
	pinSalt           = 16
	// pinRounds slow down somebody who recorded a session and guesses PINs. In the TPM, its lockout does that.
	pinRounds = 100_000
	// maxWrapped is what a provider of secrets must take (providers.Wrapper); every TPM seals 128 bytes.
	maxWrapped = 64
)

// pinAuth is the authorization of what is sealed with a PIN; the caller wipes it.
func pinAuth(pin, salt []byte) ([]byte, error) {
	b, err := pbkdf2.Key(sha256.New, string(pin), salt, pinRounds, derivedAuth)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "cannot derive an authorization from the PIN: %w", err)
	}
	return textAuth(b), nil
}

// Wrap seals the secret in the TPM (TPM2_Create).
func (p *provider) Wrap(ctx context.Context, secret []byte, pcrs psa.PCRs, pin []byte) ([]byte, error) {
	if len(secret) == 0 || len(secret) > maxWrapped {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the secret has %d bytes; allowed: 1 to %d", len(secret), maxWrapped)
	}
	w := wrapped{Version: wrappedVersion, PCRs: int64(pcrs)}
	var auth []byte
	if len(pin) > 0 {
		if len(pin) > providers.MaxPIN {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "a PIN has 1 to %d bytes", providers.MaxPIN)
		}
		w.Version, w.Salt = wrappedPINVersion, make([]byte, pinSalt)
		rand.Read(w.Salt)
		var err error
		if auth, err = pinAuth(pin, w.Salt); err != nil {
			return nil, err
		}
		defer psa.Wipe(auth)
	}
	c := p.chip
	err := c.use(ctx, "wrap", func() error {
		if err := c.shrink(c.room - 1); err != nil { // the TPM works on it in a slot
			return err
		}
		policy, err := c.policy(pcrs)
		if err != nil {
			return err
		}
		data := bytes.Clone(secret)
		defer psa.Wipe(data)
		rsp, err := tpm2.Create{
			ParentHandle: c.parentAuth(c.once(nil, encryptBoth)),
			InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
				UserAuth: tpm2.TPM2BAuth{Buffer: auth},
				Data:     tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: data}),
			}},
			InPublic: tpm2.New2B(sealedTemplate(policy, len(pin) > 0)),
		}.Execute(c.link)
		if err != nil {
			return err
		}
		w.Parent, w.Private, w.Public = c.parent.name.Buffer, rsp.OutPrivate.Buffer, rsp.OutPublic.Bytes()
		return nil
	})
	if err != nil {
		return nil, err
	}
	der, err := asn1.Marshal(w)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "the wrapped secret cannot be encoded: %w", err)
	}
	return der, nil
}

// WantsPIN says whether the PIN is a part of the authorization.
func (p *provider) WantsPIN(b []byte) (bool, error) {
	w, err := parseWrapped(b)
	if err != nil {
		return false, err
	}
	return w.Salt != nil, nil
}

// Unwrap loads the object, has the TPM unseal it (TPM2_Unseal), encrypted on its way, and flushes it.
func (p *provider) Unwrap(ctx context.Context, b, pin []byte) (secret []byte, err error) {
	w, err := parseWrapped(b)
	if err != nil {
		return nil, err
	}
	var auth []byte
	if w.Salt != nil {
		if len(pin) == 0 {
			return nil, psa.Errorf(psa.StatusNotPermitted, "%w is missing: the secret was wrapped with a PIN", providers.ErrPIN)
		}
		if auth, err = pinAuth(pin, w.Salt); err != nil {
			return nil, err
		}
		defer psa.Wipe(auth)
	}
	pcrs := psa.PCRs(w.PCRs)
	c := p.chip
	tried := false
	err = c.use(ctx, "unwrap", func() (err error) {
		l, err := c.load(&stored{Parent: w.Parent, Public: w.Public, Private: w.Private}, c.room-1)
		if err != nil {
			return err
		}
		defer func() {
			if c.link != nil && c.link.broken == nil {
				if ferr := c.unload(l); err == nil {
					err = ferr
				}
			}
		}()
		if w.Salt != nil {
			if err := c.withAudit(c.maySpareTry); err != nil {
				return psa.Errorf(psa.StatusNotPermitted, "%w was not tried: %w", providers.ErrPIN, err).WithHint(psa.HintOf(err))
			}
			if tried { // the TPM may have counted it
				return psa.Errorf(psa.StatusCommunicationFailure, "the TPM went away while it checked the PIN")
			}
			tried = true
		}
		rsp, err := tpm2.Unseal{ItemHandle: c.private(l, auth, pcrs, encryptOut)}.Execute(c.link)
		if err != nil {
			return ofPIN(w, err)
		}
		secret = rsp.OutData.Buffer
		return nil
	})
	if err != nil {
		psa.Wipe(secret)
		if pcrs != 0 && psa.StatusOf(err) == psa.StatusNotPermitted && !errors.Is(err, providers.ErrPIN) {
			return nil, psa.Errorf(psa.StatusNotPermitted, "the PCRs %v have changed since the secret was wrapped: %w", pcrs.List(), err)
		}
		return nil, err
	}
	return secret, nil
}

// ofPIN translates the TPM's errors about the PIN. The TPM checks the PCRs before the PIN, and does not count that as a try.
func ofPIN(w *wrapped, err error) error {
	switch {
	case w.Salt == nil:
	case isRC(err, tpm2.TPMRCAuthFail):
		return psa.Errorf(psa.StatusNotPermitted, "%w by the TPM", providers.ErrPINRefused)
	case isRC(err, tpm2.TPMRCLockout):
		return psa.Errorf(psa.StatusNotPermitted, "%w was not checked: the TPM is locked after too many wrong tries", providers.ErrPIN).
			WithHint("parsecfs tries again when the TPM takes PINs again; tpm2_dictionarylockout --clear-lockout unlocks it at once")
	}
	return err
}

// unload flushes the key that was used last.
func (c *chip) unload(l *loaded) error {
	c.keys = c.keys[:len(c.keys)-1]
	return c.flush(l.handle)
}

// sealedTemplate is the public area of a sealed object, with a policy or nil. Wrong PINs lock the TPM; an empty
// authorization does not need that protection.
func sealedTemplate(policy []byte, pin bool) tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, AuthPolicy: tpm2.TPM2BDigest{Buffer: policy},
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, UserWithAuth: policy == nil, NoDA: !pin},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{
			Scheme: tpm2.TPMTKeyedHashScheme{Scheme: tpm2.TPMAlgNull}}),
	}
}

// parseWrapped reads the output of Wrap.
func parseWrapped(b []byte) (*wrapped, error) {
	bad := func(err error) (*wrapped, error) {
		return nil, psa.Errorf(psa.StatusProviderAbsent, "no TPM wrapped this: %w", err)
	}
	var w wrapped
	rest, err := asn1.Unmarshal(b, &w)
	switch {
	case err != nil:
		return bad(err)
	case len(rest) > 0:
		return bad(fmt.Errorf("%d extra bytes at its end", len(rest)))
	case w.Version != wrappedVersion && w.Version != wrappedPINVersion:
		return bad(fmt.Errorf("unknown version %d", w.Version))
	case w.Version == wrappedVersion && w.Salt != nil || w.Version == wrappedPINVersion && len(w.Salt) != pinSalt:
		return bad(fmt.Errorf("it has a salt of %d bytes in version %d", len(w.Salt), w.Version))
	case w.PCRs < 0 || w.PCRs >= 1<<(psa.MaxPCR+1):
		return bad(fmt.Errorf("wrong PCRs %#x", w.PCRs))
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](w.Public)
	if err != nil {
		return bad(err)
	}
	bound := len(area.AuthPolicy.Buffer) > 0
	if area.Type != tpm2.TPMAlgKeyedHash || area.ObjectAttributes.SignEncrypt || area.ObjectAttributes.Decrypt ||
		bound != (w.PCRs != 0) || bound == area.ObjectAttributes.UserWithAuth || area.ObjectAttributes.NoDA != (w.Salt == nil) {
		return bad(fmt.Errorf("it is not a sealed object bound to the PCRs %v", psa.PCRs(w.PCRs).List()))
	}
	return &w, nil
}
