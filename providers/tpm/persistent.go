package tpm

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Persistent objects (TCG TPM 2.0, part 1, 37.3) are in the TPM at handles that its administrator chooses. A handle can have
// another key later, so we always keep the object's name, the digest of its public area, with its handle.

const (
	firstPersistent = 0x81000000
	lastPersistent  = 0x81ffffff
)

func isPersistent(handle int64) bool { return handle >= firstPersistent && handle <= lastPersistent }

// object is how the KIM names a persistent object.
func object(handle tpm2.TPMHandle, name []byte) string {
	return fmt.Sprintf("handle=%#x,name=%x", uint32(handle), name)
}

// parseObject reads "handle=0x81000001" and the name after it, nil if there is none.
func parseObject(s string) (tpm2.TPMHandle, []byte, error) {
	first, second, named := strings.Cut(s, ",")
	digits, ok := strings.CutPrefix(first, "handle=")
	handle, err := strconv.ParseInt(digits, 0, 64)
	if !ok || err != nil || !isPersistent(handle) {
		return 0, nil, psa.Errorf(psa.StatusInvalidArgument, "%q is not the name of a persistent object", s).
			WithHint("write a handle, such as handle=0x81000001; tpm2_getcap handles-persistent lists them")
	}
	var name []byte
	if named {
		digits, ok := strings.CutPrefix(second, "name=")
		if name, err = hex.DecodeString(digits); !ok || err != nil || len(name) == 0 {
			return 0, nil, psa.Errorf(psa.StatusInvalidArgument, "%q: the name after the handle is not hexadecimal", s)
		}
	}
	return tpm2.TPMHandle(handle), name, nil
}

// glance reads what is said to be at a persistent handle, nil for nothing. The answer is not authenticated.
func (c *chip) glance(handle tpm2.TPMHandle) (*tpm2.TPMTPublic, tpm2.TPM2BName, error) {
	rsp, err := tpm2.ReadPublic{ObjectHandle: handle}.Execute(c.link)
	if isRC(err, tpm2.TPMRCHandle) {
		return nil, tpm2.TPM2BName{}, nil
	}
	if err != nil {
		return nil, tpm2.TPM2BName{}, err
	}
	return named(rsp.OutPublic, &rsp.Name)
}

// lying is glance with an authenticated answer: a session covers the object's name, so it reads the object again when it
// knows the name. An authenticated list says that there is no object.
func (c *chip) lying(handle tpm2.TPMHandle) (*tpm2.TPMTPublic, []byte, error) {
	area, name, err := c.glance(handle)
	if err != nil {
		return nil, nil, err
	}
	if area != nil {
		_, err := tpm2.ReadPublic{ObjectHandle: tpm2.NamedHandle{Handle: handle, Name: name}}.Execute(c.link, c.once(nil, encryptOut))
		return area, name.Buffer, err
	}
	return nil, nil, c.withAudit(func(s tpm2.Session) error {
		list, _, err := c.persistent(uint32(handle), 1, s)
		if err == nil && len(list) > 0 && list[0] == handle {
			err = errLies("the TPM lists the handle %#x, but has no object there", uint32(handle))
		}
		return err
	})
}

// persistent lists persistent handles from one on, and says whether there are more.
func (c *chip) persistent(from, n uint32, s tpm2.Session) ([]tpm2.TPMHandle, bool, error) {
	rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapHandles, Property: from, PropertyCount: n}.Execute(c.link, s)
	if err != nil {
		return nil, false, err
	}
	handles, err := rsp.CapabilityData.Data.Handles()
	if err != nil {
		return nil, false, err
	}
	return handles.Handle, bool(rsp.MoreData) && len(handles.Handle) > 0, nil
}

// resident finds an adopted key at its handle, and makes room for it besides so many others: a TPM copies it into a slot
// when it is used.
func (c *chip) resident(k *stored, others int) (*loaded, error) {
	if err := c.shrink(others); err != nil {
		return nil, err
	}
	handle := tpm2.TPMHandle(k.Handle)
	area, name, err := c.glance(handle)
	switch {
	case err != nil:
		return nil, err
	case area == nil:
		return nil, psa.Errorf(psa.StatusProviderAbsent, "there is no key at the handle %#x any more", k.Handle)
	case !bytes.Equal(tpm2.Marshal(area), k.Public):
		return nil, psa.Errorf(psa.StatusProviderAbsent, "another key is at the handle %#x now", k.Handle)
	}
	return &loaded{handle: handle, name: name}, nil
}

// Foreign lists the persistent objects.
func (p *provider) Foreign(ctx context.Context) (list []providers.Foreign, err error) {
	c := p.chip
	err = c.use(ctx, "list", func() error {
		list = nil
		if err := c.shrink(c.room - 1); err != nil {
			return err
		}
		handles, err := c.allPersistent()
		if err != nil {
			return err
		}
		for _, h := range handles {
			area, name, err := c.lying(h)
			if err != nil {
				return err
			}
			if area != nil {
				list = append(list, providers.Foreign{Object: object(h, name), Attributes: p.usual(area)})
			}
		}
		return nil
	})
	return list, err
}

// allPersistent are the handles of all persistent objects.
func (c *chip) allPersistent() (all []tpm2.TPMHandle, err error) {
	err = c.withAudit(func(s tpm2.Session) error {
		for next, more := uint32(firstPersistent), true; more; {
			var handles []tpm2.TPMHandle
			var err error
			if handles, more, err = c.persistent(next, 64, s); err != nil {
				return err
			}
			for _, h := range handles {
				if !isPersistent(int64(h)) {
					return nil
				}
				if uint32(h) < next {
					return errLies("the TPM listed the handle %#x, though it was asked for those from %#x on", uint32(h), next)
				}
				all = append(all, h)
				next = uint32(h) + 1
			}
		}
		return nil
	})
	return all, err
}

// usual are the default attributes of an object, none if it cannot be adopted.
func (p *provider) usual(area *tpm2.TPMTPublic) psa.Attributes {
	for _, c := range p.lines() {
		if !c.Has(psa.Generate) || c.Template == "" {
			continue
		}
		a := c.Attributes()
		if usual, err := psa.DefaultTemplate(a.Type, a.Bits); err == nil && area.ObjectAttributes.SignEncrypt && a.Type.IsAsymmetric() {
			a = usual
		}
		if _, err := servable(a, area); err == nil {
			return a
		}
	}
	return psa.Attributes{}
}

// Adopt adopts a persistent object. The reference is that of Foreign, or only its handle.
func (p *provider) Adopt(ctx context.Context, a psa.Attributes, reference string) (providers.Foreign, providers.Blob, error) {
	none := func(err error) (providers.Foreign, providers.Blob, error) {
		return providers.Foreign{}, providers.Blob{}, err
	}
	handle, want, err := parseObject(reference)
	if err != nil {
		return none(err)
	}
	if p.table.Load() == nil {
		if _, err := p.Capabilities(ctx); err != nil {
			return none(err)
		}
	}
	var area *tpm2.TPMTPublic
	var name, public []byte
	var got psa.Attributes
	c := p.chip
	err = c.use(ctx, "adopt", func() (err error) {
		if err = c.shrink(c.room - 1); err != nil {
			return err
		}
		if area, name, err = c.lying(handle); err != nil {
			return err
		}
		if area == nil || want != nil && !bytes.Equal(name, want) {
			return psa.Errorf(psa.StatusDoesNotExist, "there is no %s", reference)
		}
		if got = a; got.Type == psa.KeyTypeNone {
			if got = p.usual(area); got.Type == psa.KeyTypeNone {
				return psa.Errorf(psa.StatusInvalidArgument, "this object cannot be adopted").
					WithHint("it must be a key that signs or decrypts, without a restriction, a policy or a scheme")
			}
		}
		if err := got.Validate(); err != nil {
			return err
		}
		if !psa.Supports(p.lines(), psa.Import, got.Type, got.Bits, got.Algorithm) || got.Type.IsPublicKey() {
			return errUnsupported("adopt", got, got.Algorithm)
		}
		if public, err = servable(got, area); err != nil {
			return err
		}
		if !area.ObjectAttributes.NoDA {
			if err := c.withAudit(c.maySpareTry); err != nil {
				return err
			}
		}
		return c.tryEmpty(tpm2.AuthHandle{Handle: handle, Name: tpm2.TPM2BName{Buffer: name}, Auth: c.once(nil)})
	})
	if err != nil {
		return none(err)
	}
	f := providers.Foreign{Object: object(handle, name), Attributes: got}
	secret, err := (&stored{Public: tpm2.Marshal(area), Handle: int64(handle)}).marshal()
	return f, providers.Blob{Public: public, Secret: secret, Object: f.Object}, err
}

// maySpareTry refuses if one more wrong authorization would lock the TPM for everybody (TCG TPM 2.0, part 1, 19.8).
func (c *chip) maySpareTry(s tpm2.Session) error {
	tried, err := c.property(tpm2.TPMPTLockoutCounter, s)
	if err != nil {
		return err
	}
	most, err := c.property(tpm2.TPMPTMaxAuthFail, s)
	if err != nil {
		return err
	}
	if tried+1 >= most {
		return psa.Errorf(psa.StatusNotPermitted, "the TPM has counted %d of at most %d wrong authorizations, and one more could lock it",
			tried, most).
			WithHint("reset the count: tpm2_dictionarylockout --clear-lockout")
	}
	return nil
}

// tryEmpty checks that an object has an empty authorization. It only uses the authorization for a policy, and does nothing
// else with the object (TPM2_PolicySecret).
func (c *chip) tryEmpty(h tpm2.AuthHandle) (err error) {
	if err := c.forgetSigning(); err != nil {
		return err
	}
	session, end, err := tpm2.PolicySession(c.link, tpm2.TPMAlgSHA256, nonceSize, tpm2.Trial())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	_, err = tpm2.PolicySecret{AuthHandle: h, PolicySession: session.Handle()}.Execute(c.link)
	if isRC(err, tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth) {
		return psa.Errorf(psa.StatusNotPermitted, "the key has an authorization (a password)").
			WithHint("set an empty authorization with tpm2_changeauth before you make the key persistent")
	}
	return err
}

// DestroyObject evicts the object from the TPM (TPM2_EvictControl). If another object is there now, it stays.
func (p *provider) DestroyObject(ctx context.Context, reference string, _ []byte) error {
	handle, want, err := parseObject(reference)
	if err != nil {
		return err
	}
	if want == nil {
		return psa.Errorf(psa.StatusInvalidArgument, "%q lacks the object's name", reference)
	}
	c := p.chip
	return c.use(ctx, "destroy", func() error {
		if err := c.shrink(c.room - 1); err != nil {
			return err
		}
		area, name, err := c.lying(handle)
		if err != nil || area == nil || !bytes.Equal(name, want) {
			return err
		}
		_, err = tpm2.EvictControl{Auth: c.hierarchy(tpm2.TPMRHOwner, c.auths.owner), PersistentHandle: handle,
			ObjectHandle: tpm2.NamedHandle{Handle: handle, Name: tpm2.TPM2BName{Buffer: name}}}.Execute(c.link)
		return err
	})
}
