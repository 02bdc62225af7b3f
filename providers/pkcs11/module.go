package pkcs11

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"
)

func (m *module) isOpen() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open
}

func (s *selector) fits(slot uint, t p11.TokenInfo) bool {
	same := func(want, have string) bool {
		return want == "" || strings.TrimRight(want, " ") == strings.TrimRight(have, " \x00")
	}
	return same(s.label, t.Label) && same(s.serial, t.SerialNumber) && same(s.manufacturer, t.ManufacturerID) && same(s.model, t.Model) &&
		(!s.bySlot || s.slot == uint64(slot))
}

// find looks for the token that the selector means, among those that were initialized, and opens the held session.
func (m *module) find(r *request, a *response) error {
	slots, err := m.ctx.GetSlotList(true)
	if err != nil {
		return failed("C_GetSlotList", err)
	}
	var there []string
	var fits []uint
	for _, slot := range slots {
		t, err := m.ctx.GetTokenInfo(slot)
		if err != nil || t.Flags&p11.CKF_TOKEN_INITIALIZED == 0 {
			continue // a reader with a card of another kind is none of ours
		}
		there = append(there, fmt.Sprintf("%q (serial number %s, slot %d)", strings.TrimRight(t.Label, " \x00"), t.SerialNumber, slot))
		if r.selector.fits(slot, t) {
			fits = append(fits, slot)
		}
	}
	if len(fits) != 1 {
		o := &outcomeError{outcomeNoToken, strings.Join(there, ", ")}
		if len(fits) > 1 {
			o.outcome = outcomeAmbiguous
		}
		return o
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.slot = fits[0]
	if m.held, err = m.session(); err != nil {
		return err
	}
	t, err := m.ctx.GetTokenInfo(m.slot)
	if err != nil {
		return failed("C_GetTokenInfo", err)
	}
	m.open, m.serial = true, t.SerialNumber
	if m.marker, err = m.findMarker(); err != nil {
		return err
	}
	if a.token, err = m.token(t); err != nil {
		return err
	}
	a.token.marker = m.marker
	m.alone.Store(quirksOf(a.token).alone)
	return nil
}

func (m *module) token(t p11.TokenInfo) (tokenInfo, error) {
	slot, err := m.ctx.GetSlotInfo(m.slot)
	trim := func(s string) string { return strings.TrimRight(s, " \x00") }
	return tokenInfo{label: trim(t.Label), serial: trim(t.SerialNumber), manufacturer: trim(t.ManufacturerID), flags: uint64(t.Flags),
		hardware: slot.Flags&p11.CKF_HW_SLOT != 0,
		library:  fmt.Sprintf("%s %d.%d", trim(m.info.LibraryDescription), m.info.LibraryVersion.Major, m.info.LibraryVersion.Minor)}, failed("C_GetSlotInfo", err)
}

// session opens a session that can change the token, if the token allows that.
func (m *module) session() (session, error) {
	s, err := m.ctx.OpenSession(m.slot, p11.CKF_SERIAL_SESSION|p11.CKF_RW_SESSION)
	if is(err, errorSet{p11.CKR_TOKEN_WRITE_PROTECTED: true}) {
		s, err = m.ctx.OpenSession(m.slot, p11.CKF_SERIAL_SESSION)
	}
	return s, failed("C_OpenSession", err)
}

// logIn logs the user in: for all sessions of this process (PKCS #11 v2.40, 5.6).
func (m *module) logIn(r *request) error {
	return m.onHeld(func(s session) error {
		err := m.ctx.Login(s, p11.CKU_USER, string(r.data))
		if err != nil && !is(err, errorSet{p11.CKR_USER_ALREADY_LOGGED_IN: true}) {
			return failed("C_Login", err)
		}
		m.mu.Lock()
		m.login = true
		m.mu.Unlock()
		return nil
	})
}

func (m *module) identify(a *response) error {
	if !m.well() {
		return failed("C_GetTokenInfo", p11.Error(p11.CKR_TOKEN_NOT_PRESENT))
	}
	t, err := m.ctx.GetTokenInfo(m.slot)
	if err != nil {
		return failed("C_GetTokenInfo", err)
	}
	if a.token, err = m.token(t); err != nil {
		return err
	}
	a.token.marker, err = m.findMarker()
	return err
}

func (m *module) mechanisms(a *response) error {
	all, err := m.ctx.GetMechanismList(m.slot)
	if err != nil {
		return failed("C_GetMechanismList", err)
	}
	for _, mech := range all {
		info, err := m.ctx.GetMechanismInfo(m.slot, []*p11.Mechanism{mech})
		if err != nil {
			continue // listed, and not there
		}
		a.mechanisms = append(a.mechanisms, mechanismInfo{uint64(mech.Mechanism), uint64(info.MinKeySize), uint64(info.MaxKeySize), uint64(info.Flags)})
	}
	return nil
}

// onHeld runs f on the held session, while nobody else uses it.
func (m *module) onHeld(f func(session) error) error {
	m.heldMu.Lock()
	defer m.heldMu.Unlock()
	return f(m.held)
}

// with runs f on a session. After an error the session is not used again, since an operation may still be active on it.
func (m *module) with(f func(session) error) error {
	m.mu.Lock()
	var s session
	var err error
	if n := len(m.idle); n > 0 {
		s, m.idle = m.idle[n-1], m.idle[:n-1]
		m.mu.Unlock()
	} else {
		m.mu.Unlock()
		if s, err = m.session(); is(err, errorSet{p11.CKR_SESSION_COUNT: true}) {
			return m.onHeld(f) // the token has no more
		} else if err != nil {
			return err
		}
	}
	err = f(s)
	if _, failed := errors.AsType[p11.Error](err); failed {
		_ = m.ctx.CloseSession(s) // the first error is the one to tell
		return err
	}
	m.mu.Lock()
	m.idle = append(m.idle, s)
	m.mu.Unlock()
	return err
}

// maxObjects is how many handles are kept.
const maxObjects = 4096

func (o *object) key() string { return fmt.Sprintf("%d %x %s", o.class, o.id, o.label) }

// onObject runs f with the object that the request names. It keeps the object's handle, and searches again if the handle is
// no longer valid.
func (m *module) onObject(r *request, f func(session, p11.ObjectHandle) error) error {
	if r.object.handle != 0 {
		return m.with(func(s session) error { return f(s, p11.ObjectHandle(r.object.handle)) })
	}
	key := r.object.key()
	m.mu.Lock()
	handle, known := m.objects[key]
	m.mu.Unlock()
	if known {
		err := m.with(func(s session) error { return f(s, handle) })
		if !is(err, stale) {
			return err
		}
		m.mu.Lock()
		delete(m.objects, key)
		m.mu.Unlock()
	}
	handle, err := m.one(&r.object)
	if err != nil {
		return err
	}
	m.mu.Lock()
	if len(m.objects) >= maxObjects {
		clear(m.objects)
	}
	m.objects[key] = handle
	m.mu.Unlock()
	return m.with(func(s session) error { return f(s, handle) })
}

// one finds the one object that is named.
func (m *module) one(o *object) (handle p11.ObjectHandle, err error) {
	defer m.searching()()
	err = m.with(func(s session) error {
		found, err := m.search(s, o.template(), 2)
		switch {
		case err != nil:
			return err
		case len(found) == 0:
			return &outcomeError{outcomeNotFound, "the token has no such object"}
		case len(found) > 1:
			return &outcomeError{outcomeAmbiguous, "the token has several objects of that name"}
		}
		handle = found[0]
		return m.isSame(s, handle, o)
	})
	return handle, err
}

// isSame refuses another object with the same name, if the token shows which one it is. For a private key on a curve only
// the object of its public key shows that.
func (m *module) isSame(s session, handle p11.ObjectHandle, o *object) error {
	if len(o.unique) == 0 {
		return nil
	}
	public := *o
	public.class = p11.CKO_PUBLIC_KEY
	shown, err := m.search(s, public.template(), maxMarkers)
	if err != nil {
		return err
	}
	same := false
	for _, h := range append([]p11.ObjectHandle{handle}, shown...) {
		list, err := m.read(s, h, []uint64{p11.CKA_MODULUS, p11.CKA_EC_POINT})
		if is(err, stale) {
			continue
		}
		if err != nil {
			return err
		}
		for _, a := range list {
			if len(a.value) == 0 {
				continue
			}
			// the point may be wrapped in an OCTET STRING, and the modulus have zeros before it
			if cut, ok := bytes.CutSuffix(a.value, o.unique); !ok || len(cut) >= 4 {
				return &outcomeError{outcomeReplaced, "another key has the name of this one on the token"}
			}
			same = true
		}
		if same && h == handle {
			return nil // it shows it itself, and what lies beside it does not matter
		}
	}
	return nil
}

func (o *object) template() []*p11.Attribute {
	t := []*p11.Attribute{p11.NewAttribute(p11.CKA_TOKEN, true), p11.NewAttribute(p11.CKA_CLASS, uint(o.class))}
	if len(o.id) > 0 {
		t = append(t, p11.NewAttribute(p11.CKA_ID, o.id))
	}
	if o.label != "" {
		t = append(t, p11.NewAttribute(p11.CKA_LABEL, o.label))
	}
	return t
}

// maxFound bounds the objects that a token lists.
const maxFound = 1 << 16

// searchTries is how often a search is repeated that the module lost.
const searchTries = 3

// lostSearch is an error that tpm2-pkcs11 sometimes returns for a search while other sessions search too.
var lostSearch = errorSet{p11.CKR_OPERATION_NOT_INITIALIZED: true}

// search finds at most n objects.
func (m *module) search(s session, template []*p11.Attribute, n int) (found []p11.ObjectHandle, err error) {
	for range searchTries {
		if found, err = m.searchOnce(s, template, n); !is(err, lostSearch) {
			break
		}
	}
	return found, failed("C_FindObjects", err)
}

func (m *module) searchOnce(s session, template []*p11.Attribute, n int) (found []p11.ObjectHandle, err error) {
	if err := m.ctx.FindObjectsInit(s, template); err != nil {
		return nil, err
	}
	for len(found) < n {
		some, _, err := m.ctx.FindObjects(s, min(n-len(found), 256))
		if err != nil {
			return nil, err
		}
		if len(some) == 0 {
			break
		}
		found = append(found, some...)
	}
	return found, m.ctx.FindObjectsFinal(s)
}

// read returns attributes of an object. If one of them is missing, it asks for each by itself.
func (m *module) read(s session, o p11.ObjectHandle, types []uint64) ([]attribute, error) {
	list := make([]attribute, len(types))
	for i, t := range types {
		list[i].number = t
		got, err := m.ctx.GetAttributeValue(s, o, []*p11.Attribute{{Type: uint(t)}})
		switch {
		case err == nil:
			list[i].value = got[0].Value
		case is(err, missing):
			list[i].missing = true
		default:
			return nil, failed("C_GetAttributeValue", err)
		}
	}
	return list, nil
}

// missing are the errors for attributes that an object does not have, or does not show.
var missing = errorSet{p11.CKR_ATTRIBUTE_TYPE_INVALID: true, p11.CKR_ATTRIBUTE_SENSITIVE: true,
	p11.CKR_ATTRIBUTE_VALUE_INVALID: true, p11.CKR_FUNCTION_FAILED: true}

func (m *module) list(r *request, a *response) error {
	return m.with(func(s session) error {
		found, err := m.search(s, r.object.template(), maxFound)
		if err != nil {
			return err
		}
		for _, o := range found {
			attributes, err := m.read(s, o, r.types)
			if is(err, stale) {
				continue // destroyed meanwhile
			}
			if err != nil {
				return err
			}
			a.objects = append(a.objects, attributes)
		}
		return nil
	})
}

func cAttributes(list []attribute) []*p11.Attribute {
	out := make([]*p11.Attribute, len(list))
	for i, a := range list {
		out[i] = &p11.Attribute{Type: uint(a.number), Value: a.value}
	}
	return out
}

func valueOf(list []attribute, number uint64) ([]byte, bool) {
	i := slices.IndexFunc(list, func(a attribute) bool { return a.number == number && !a.missing })
	if i < 0 {
		return nil, false
	}
	return list[i].value, true
}

// make makes objects on the token, or session objects, which belong to the held session.
func (m *module) make(r *request, a *response) error {
	id, _ := valueOf(slices.Concat(r.templates[:]...), p11.CKA_ID)
	token, _ := valueOf(slices.Concat(r.templates[:]...), p11.CKA_TOKEN)
	onToken := len(token) == 1 && token[0] == 1
	create := func(s session) error {
		if r.method == methodCreate {
			return m.makeObjects(s, r, a)
		}
		mech, done := r.mechanism.c()
		defer done()
		if len(r.templates[1]) == 0 {
			o, err := m.ctx.GenerateKey(s, mech, cAttributes(r.templates[0]))
			a.object = uint64(o)
			if err != nil {
				return &failure{"C_GenerateKey", err, true}
			}
			return nil
		}
		public, private, err := m.ctx.GenerateKeyPair(s, mech, cAttributes(r.templates[0]), cAttributes(r.templates[1]))
		if err != nil {
			return &failure{"C_GenerateKeyPair", err, true}
		}
		a.object = uint64(private)
		list, err := m.read(s, public, r.types)
		if err != nil {
			_, _ = m.ctx.DestroyObject(s, public), m.ctx.DestroyObject(s, private) // a Destroy of the ID would find them
			return &failure{"C_GetAttributeValue", err, true}
		}
		a.objects = [][]attribute{list}
		if !onToken { // the private one is what is tried
			return failed("C_DestroyObject", m.ctx.DestroyObject(s, public))
		}
		return nil
	}
	if !onToken {
		return m.onHeld(create)
	}
	defer m.changing()()
	if err := m.mark(); err != nil {
		return err
	}
	m.mu.Lock()
	a.token.marker = m.marker
	m.mu.Unlock()
	return m.with(func(s session) error {
		there, err := m.search(s, []*p11.Attribute{p11.NewAttribute(p11.CKA_TOKEN, true), p11.NewAttribute(p11.CKA_ID, id)}, 1)
		if err != nil {
			return err
		}
		if len(there) > 0 {
			return &outcomeError{outcomeExists, "the token has an object of that ID"}
		}
		return create(s)
	})
}

// makeObjects makes the objects of all templates, or none. It returns the handle of the last one.
func (m *module) makeObjects(s session, r *request, a *response) error {
	var made []p11.ObjectHandle
	for _, template := range r.templates {
		if len(template) == 0 {
			continue
		}
		o, err := m.ctx.CreateObject(s, cAttributes(template))
		if err != nil {
			for _, o := range made {
				_ = m.ctx.DestroyObject(s, o) // a Destroy of the ID would find it
			}
			return &failure{"C_CreateObject", err, true}
		}
		made = append(made, o)
		a.object = uint64(o)
	}
	return nil
}

// destroy destroys every object with an ID, or the one with a class and name. It is no error if there is none.
func (m *module) destroy(r *request) error {
	template := []*p11.Attribute{p11.NewAttribute(p11.CKA_TOKEN, true), p11.NewAttribute(p11.CKA_ID, r.object.id)}
	if r.object.class != anyClass {
		template = r.object.template()
	} else if len(r.object.id) == 0 {
		return &outcomeError{outcomeBad, "nothing is named"}
	}
	return m.with(func(s session) error {
		found, err := m.search(s, template, maxFound)
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return &outcomeError{outcomeNotFound, "the token has no such object"}
		}
		if r.object.class != anyClass && len(found) > 1 {
			return &outcomeError{outcomeAmbiguous, "the token has several objects of that name"}
		}
		m.mu.Lock()
		clear(m.objects)
		m.mu.Unlock()
		for _, o := range found {
			if err := m.ctx.DestroyObject(s, o); err != nil && !is(err, stale) {
				return &failure{"C_DestroyObject", err, true}
			}
		}
		return nil
	})
}

// anyClass is the class of an object that is named by its ID alone.
const anyClass = ^uint64(0)

// c is the mechanism for one call; done frees it after the call.
func (mech *mechanism) c() (c []*p11.Mechanism, done func()) {
	var parameter any
	done = func() {}
	switch mech.kind {
	case paramPSS:
		parameter = p11.NewPSSParams(uint(mech.hash), uint(mech.mgf), uint(mech.length))
	case paramOAEP:
		parameter = p11.NewOAEPParams(uint(mech.hash), uint(mech.mgf), p11.CKZ_DATA_SPECIFIED, mech.data)
	case paramGCM:
		gcm := p11.NewGCMParams(mech.parameter, mech.data, int(mech.length))
		parameter, done = gcm, gcm.Free
	case paramECDH:
		parameter = p11.NewECDH1DeriveParams(p11.CKD_NULL, nil, mech.data)
	default:
		parameter = mech.parameter
	}
	return []*p11.Mechanism{p11.NewMechanism(uint(mech.number), parameter)}, done
}

// use does one operation with a key.
func (m *module) use(r *request, s session, o p11.ObjectHandle) (out []byte, err error) {
	mech, done := r.mechanism.c()
	defer done()
	switch r.method {
	case methodSign:
		if err := m.ctx.SignInit(s, mech, o); err != nil {
			return nil, failed("C_SignInit", err)
		}
		out, err = m.ctx.Sign(s, r.data)
		return out, failed("C_Sign", err)
	case methodEncrypt:
		if err := m.ctx.EncryptInit(s, mech, o); err != nil {
			return nil, failed("C_EncryptInit", err)
		}
		out, err = m.ctx.Encrypt(s, r.data)
		return out, failed("C_Encrypt", err)
	case methodDecrypt:
		if err := m.ctx.DecryptInit(s, mech, o); err != nil {
			return nil, failed("C_DecryptInit", err)
		}
		out, err = m.ctx.Decrypt(s, r.data)
		return out, failed("C_Decrypt", err)
	}
	secret, err := m.ctx.DeriveKey(s, mech, o, cAttributes(r.templates[0]))
	if err != nil {
		return nil, failed("C_DeriveKey", err)
	}
	list, err := m.read(s, secret, []uint64{p11.CKA_VALUE})
	if e := m.ctx.DestroyObject(s, secret); err == nil {
		err = failed("C_DestroyObject", e)
	}
	if err != nil {
		return nil, err
	}
	value, ok := valueOf(list, p11.CKA_VALUE)
	if !ok {
		return nil, failed("C_GetAttributeValue", p11.Error(p11.CKR_ATTRIBUTE_SENSITIVE))
	}
	return value, nil
}
