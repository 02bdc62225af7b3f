package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"math/big"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// parseReference reads the name of an object: "id=<CKA_ID in hexadecimal>", "object=<CKA_LABEL>", both of them separated by
// a semicolon, or a PKCS #11 URI that has these.
func parseReference(s string) (o object, err error) {
	fail := func(format string, args ...any) (object, error) {
		return object{}, psa.Errorf(psa.StatusInvalidArgument, "wrong name of an object: "+format, args...).
			WithHint("write id=HEX, object=LABEL, id=HEX;object=LABEL, or a PKCS #11 URI")
	}
	if strings.HasPrefix(s, uriScheme) {
		values, err := parseURI(s)
		if err != nil {
			return fail("%w", err)
		}
		if o.label = values["object"]; values["id"] != "" {
			o.id = []byte(values["id"])
		}
	} else {
		id, rest, both := s, "", false
		if strings.HasPrefix(s, "id=") {
			id, rest, both = strings.Cut(s, ";")
			if o.id, err = hex.DecodeString(strings.TrimPrefix(id, "id=")); err != nil || len(o.id) == 0 {
				return fail("id= must be followed by bytes in hexadecimal")
			}
		} else {
			rest, both = s, true
		}
		label, ok := strings.CutPrefix(rest, "object=")
		if both && !ok {
			return fail("it has neither id= nor object=")
		}
		o.label = label
	}
	if len(o.id) == 0 && o.label == "" {
		return fail("it is empty")
	}
	return o, nil
}

// reference is what parseReference reads.
func (o object) reference() string {
	var parts []string
	if len(o.id) > 0 {
		parts = append(parts, "id="+hex.EncodeToString(o.id))
	}
	if o.label != "" {
		parts = append(parts, "object="+o.label)
	}
	return strings.Join(parts, ";")
}

// found is a key on the token.
type found struct {
	object     object
	attributes []attribute
	public     []attribute // of its public key's object, if there is one
}

var foreignTypes = []uint64{p11.CKA_ID, p11.CKA_LABEL, p11.CKA_KEY_TYPE, p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT, p11.CKA_EC_PARAMS, p11.CKA_EC_POINT,
	p11.CKA_VALUE_LEN, p11.CKA_SIGN, p11.CKA_DECRYPT, p11.CKA_ENCRYPT, p11.CKA_DERIVE, p11.CKA_VERIFY}

// list returns all keys on the token: private ones with their public part, secret ones, and public ones alone.
func (p *provider) list(ctx context.Context) ([]found, error) {
	var all []found
	for _, class := range []uint64{p11.CKO_PUBLIC_KEY, p11.CKO_PRIVATE_KEY, p11.CKO_SECRET_KEY} {
		a, err := p.ask(ctx, "list", &request{method: methodList, object: object{class: class}, types: foreignTypes})
		if err != nil {
			return nil, err
		}
		for _, attributes := range a.objects {
			id, _ := valueOf(attributes, p11.CKA_ID)
			label, _ := valueOf(attributes, p11.CKA_LABEL)
			f := found{object: object{class: class, id: id, label: string(label)}, attributes: attributes}
			if class == p11.CKO_PRIVATE_KEY {
				// Its public key has the same ID (PKCS #11 v2.40, 4.5), or without one the same label.
				for i, other := range all {
					if other.object.class == p11.CKO_PUBLIC_KEY && string(other.object.id) == string(id) && (len(id) > 0 || other.object.label == f.object.label) {
						f.public = other.attributes
						all = append(all[:i:i], all[i+1:]...)
						break
					}
				}
			}
			all = append(all, f)
		}
	}
	return all, nil
}

// kindOf is a key's type and size, none if its kind is not supported, and the algorithms that its flags allow, the best
// first.
func (f found) kindOf() (a psa.Attributes, algorithms []psa.Algorithm) {
	is := func(typ uint64) bool {
		v, ok := valueOf(f.attributes, typ)
		return ok && len(v) == 1 && v[0] == 1
	}
	size := func(typ uint64) int {
		v, _ := valueOf(f.attributes, typ)
		if len(v) != 8 {
			return 0
		}
		return int(min(binary.NativeEndian.Uint64(v), 1<<16))
	}
	switch size(p11.CKA_KEY_TYPE) {
	case p11.CKK_RSA:
		modulus, _ := valueOf(f.attributes, p11.CKA_MODULUS)
		a.Type, a.Bits = psa.KeyTypeRSAKeyPair, new(big.Int).SetBytes(modulus).BitLen()
		if is(p11.CKA_SIGN) || is(p11.CKA_VERIFY) {
			algorithms = append(algorithms, psa.RSAPKCS1v15Sign(psa.SHA256), psa.RSAPSS(psa.SHA256))
		}
		if is(p11.CKA_DECRYPT) || is(p11.CKA_ENCRYPT) {
			algorithms = append(algorithms, psa.RSAOAEP(psa.SHA256), psa.RSAPKCS1v15Crypt)
		}
	case p11.CKK_EC, ckkECEdwards, ckkECMontgomery:
		params, _ := valueOf(f.attributes, p11.CKA_EC_PARAMS)
		a.Type, a.Bits = curveNamed(params)
		if is(p11.CKA_SIGN) || is(p11.CKA_VERIFY) {
			if d, err := psa.DefaultTemplate(a.Type, a.Bits); err == nil && d.Algorithm.IsSign() {
				algorithms = append(algorithms, d.Algorithm)
			}
		}
		if is(p11.CKA_DERIVE) {
			algorithms = append(algorithms, psa.ECDH)
		}
	case p11.CKK_AES:
		a.Type, a.Bits = psa.KeyTypeAES, 8*size(p11.CKA_VALUE_LEN)
		if is(p11.CKA_ENCRYPT) && is(p11.CKA_DECRYPT) {
			algorithms = append(algorithms, psa.GCM, psa.CTR)
		}
		if is(p11.CKA_SIGN) {
			algorithms = append(algorithms, psa.CMAC)
		}
	case p11.CKK_GENERIC_SECRET, p11.CKK_SHA256_HMAC, p11.CKK_SHA384_HMAC, p11.CKK_SHA512_HMAC:
		a.Type, a.Bits = psa.KeyTypeHMAC, 8*size(p11.CKA_VALUE_LEN)
		for h := range hashes {
			if is(p11.CKA_SIGN) && 8*h.HashLength() == a.Bits {
				algorithms = append(algorithms, psa.HMAC(h))
			}
		}
	}
	if f.object.class == p11.CKO_PUBLIC_KEY {
		a.Type = a.Type.PublicKey()
	}
	return a, algorithms
}

// attributesOf are what Adopt gives a key by default: the default template of its kind that its flags and the token allow,
// or none.
func (p *provider) attributesOf(f found) psa.Attributes {
	a, algorithms := f.kindOf()
	if a.Type.IsAsymmetric() && publicPart(a, f) == nil {
		return psa.Attributes{}
	}
	for _, alg := range algorithms {
		line := psa.Capability{Type: a.Type, Bits: a.Bits, Algorithm: alg}
		if p.covers(line.Attributes()) {
			return line.Attributes()
		}
	}
	return psa.Attributes{}
}

// covers says whether anything can be done with such a key.
func (p *provider) covers(a psa.Attributes) bool {
	return slices.ContainsFunc(p.lines(), func(c psa.Capability) bool { return c.Covers(a.Type, a.Bits, a.Algorithm) })
}

// curveNamed reads CKA_EC_PARAMS: a curve's OID, or the name that PKCS #11 v3.0 has for one.
func curveNamed(params []byte) (psa.KeyType, int) {
	var id asn1.ObjectIdentifier
	if rest, err := asn1.Unmarshal(params, &id); err == nil && len(rest) == 0 {
		for bits, known := range curveIDs {
			if id.Equal(known) {
				return psa.ECCKeyPair(psa.SECPR1), bits
			}
		}
	}
	var text string
	if rest, err := asn1.Unmarshal(params, &text); err != nil || len(rest) > 0 {
		text = ""
	}
	switch {
	case id.Equal(ed25519ID), text == "edwards25519":
		return psa.ECCKeyPair(psa.TwistedEdwards), 255
	case id.Equal(x25519ID), text == "curve25519":
		return psa.ECCKeyPair(psa.Montgomery), 255
	}
	return psa.KeyTypeNone, 0
}

// publicPart is the public key, from its own object or the private one, nil if neither has it.
func publicPart(a psa.Attributes, f found) crypto.PublicKey {
	for _, list := range [][]attribute{f.public, f.attributes} {
		if pub, err := publicOf(a.Type, a.Bits, list); err == nil && pub != nil && a.Describes(pub) == nil {
			return pub
		}
	}
	return nil
}

func (o object) fits(f found) bool {
	return (len(o.id) == 0 || bytes.Equal(o.id, f.object.id)) && (o.label == "" || o.label == f.object.label)
}

// nameOf is the shortest reference that fits no other key. If there is none, it is the longest one.
func nameOf(f found, all []found) string {
	id, label := object{id: f.object.id}, object{label: f.object.label}
	for _, o := range []object{id, label} {
		if o.reference() == "" {
			continue
		}
		n := 0
		for _, other := range all {
			if o.fits(other) {
				n++
			}
		}
		if n == 1 {
			return o.reference()
		}
	}
	return f.object.reference()
}

// apart says how to name one of several keys.
func apart(keys []found) string {
	const most = 8
	var names []string
	for _, f := range keys {
		names = append(names, f.object.reference())
	}
	slices.Sort(names)
	if len(slices.Compact(slices.Clone(names))) < len(names) {
		return "some of them have the same ID and label: give each an ID of its own with the token's tool (pkcs11-tool --set-id)"
	}
	if len(names) > most {
		names = append(names[:most], "...")
	}
	return "write one of: " + strings.Join(names, ", ")
}

// labelOf is the label that Create gives an object.
func labelOf(id []byte) string { return "parsecfs " + hex.EncodeToString(id[:min(len(id), 4)]) }

func (p *provider) foreign(f found, all []found) providers.Foreign {
	foreign := providers.Foreign{Object: nameOf(f, all), Label: f.object.label, Attributes: p.attributesOf(f)}
	if len(f.object.id) == len(foreign.Handle) && f.object.label == labelOf(f.object.id) {
		copy(foreign.Handle[:], f.object.id)
	}
	return foreign
}

// Foreign lists the keys on the token: pairs, secret keys, and public keys alone.
func (p *provider) Foreign(ctx context.Context) ([]providers.Foreign, error) {
	if _, err := p.learn(ctx); err != nil {
		return nil, err
	}
	all, err := p.list(ctx)
	if err != nil {
		return nil, err
	}
	var list []providers.Foreign
	for _, f := range all {
		list = append(list, p.foreign(f, all))
	}
	return list, nil
}

// Adopt finds the one key that a reference names. A key that can sign must sign once, to prove that the public part is its
// own.
func (p *provider) Adopt(ctx context.Context, a psa.Attributes, reference string) (providers.Foreign, providers.Blob, error) {
	none := func(err error) (providers.Foreign, providers.Blob, error) {
		return providers.Foreign{}, providers.Blob{}, err
	}
	o, err := parseReference(reference)
	if err != nil {
		return none(err)
	}
	if _, err := p.learn(ctx); err != nil {
		return none(err)
	}
	all, err := p.list(ctx)
	if err != nil {
		return none(err)
	}
	fitting := slices.DeleteFunc(slices.Clone(all), func(f found) bool { return !o.fits(f) })
	switch len(fitting) {
	case 0:
		return none(psa.Errorf(psa.StatusDoesNotExist, "the token has no key %s", o.reference()))
	case 1:
	default:
		return none(psa.Errorf(psa.StatusInvalidArgument, "the token has %d keys %s", len(fitting), o.reference()).
			WithHint(apart(fitting)))
	}
	f := fitting[0]
	foreign := p.foreign(f, all)
	own := foreign.Attributes
	switch {
	case a.Type == psa.KeyTypeNone && own.Type == psa.KeyTypeNone:
		return none(psa.Errorf(psa.StatusInvalidArgument, "%s cannot be adopted: its kind or its use is not supported, or its public part is missing", o.reference()))
	case a.Type == psa.KeyTypeNone:
		a = own
	}
	if err := a.Validate(); err != nil {
		return none(err)
	}
	if !p.covers(a) {
		return none(errUnsupported("adopt", a, a.Algorithm))
	}
	if is, _ := f.kindOf(); is.Type != a.Type || is.Bits != a.Bits {
		return none(psa.Errorf(psa.StatusInvalidArgument, "%s is a %s of %d bits", o.reference(), is.Type, is.Bits))
	}
	blob := providers.Blob{Object: nameOf(f, all)}
	if a.Type.IsAsymmetric() {
		pub := publicPart(a, f)
		if pub == nil {
			return none(psa.Errorf(psa.StatusInvalidArgument, "the token does not have the public part of %s", o.reference()))
		}
		if blob.Public, err = psa.MarshalPublicKey(pub); err != nil {
			return none(err)
		}
	}
	foreign.Attributes = a
	if f.object.class == p11.CKO_PRIVATE_KEY && a.Can(psa.Sign) {
		if err := p.proves(ctx, foreign, blob); err != nil {
			return none(err)
		}
	}
	return foreign, blob, nil
}

// proves checks that a private key can sign and that its public part belongs to it.
func (p *provider) proves(ctx context.Context, f providers.Foreign, b providers.Blob) error {
	k, err := p.Open(ctx, providers.Handle{}, f.Attributes, b)
	if err != nil {
		return err
	}
	defer k.Close()
	k.(*key).unchecked = true
	var signature []byte
	for _, op := range []psa.Operation{psa.Sign, psa.Verify} {
		alg, err := f.Attributes.Resolve(op, 0)
		if err != nil {
			return err
		}
		run, err := k.Begin(ctx, psa.Op{Operation: op, Algorithm: alg, Inputs: map[string][]byte{"signature": signature}})
		if err != nil {
			return err
		}
		if _, err := run.Write([]byte("parsecfs adopts a key")); err != nil {
			run.Abort()
			return err
		}
		result, err := run.Finish(ctx)
		if psa.StatusOf(err) == psa.StatusInvalidSignature {
			return psa.Errorf(psa.StatusInvalidArgument, "the public key beside %s does not belong to it", f.Object)
		}
		if err != nil {
			return err
		}
		signature = result.Outputs["signature"]
	}
	return nil
}

// DestroyObject destroys the one key of that name, with its public part; certificates stay.
func (p *provider) DestroyObject(ctx context.Context, name string, public []byte) error {
	o, err := parseReference(name)
	if err != nil {
		return err
	}
	all, err := p.list(ctx)
	if err != nil {
		return err
	}
	fitting := slices.DeleteFunc(slices.Clone(all), func(f found) bool { return !o.fits(f) })
	switch len(fitting) {
	case 0:
		return nil
	case 1:
	default:
		return psa.Errorf(psa.StatusInvalidArgument, "the token has %d keys %s now", len(fitting), o.reference()).
			WithHint("use the token's own tools to tell them apart")
	}
	if same, err := p.isStill(ctx, fitting[0], all, public); err != nil || !same {
		return err
	}
	for _, o.class = range []uint64{p11.CKO_PRIVATE_KEY, p11.CKO_SECRET_KEY, p11.CKO_PUBLIC_KEY} {
		if err := p.destroy(ctx, o); err != nil {
			return err
		}
	}
	return nil
}

// isStill says whether the key that was found has this public part. Without a public part it cannot tell.
func (p *provider) isStill(ctx context.Context, f found, all []found, public []byte) (bool, error) {
	if len(public) == 0 {
		return true, nil
	}
	a, _ := f.kindOf()
	pub := publicPart(a, f)
	if pub == nil {
		return false, psa.Errorf(psa.StatusNotPermitted, "the token does not show whether %s is still the key that was adopted", f.object.reference()).
			WithHint("destroy it with the token's own tools; with allow_destroy = false rmdir only forgets it here")
	}
	if der, err := psa.MarshalPublicKey(pub); err != nil || !bytes.Equal(der, public) {
		return false, err
	}
	foreign := p.foreign(f, all)
	if f.object.class != p11.CKO_PRIVATE_KEY || !foreign.Attributes.Can(psa.Sign) {
		return true, nil
	}
	// the public part may be what another key left behind
	err := p.proves(ctx, foreign, providers.Blob{Object: nameOf(f, all), Public: public})
	if psa.StatusOf(err) == psa.StatusInvalidArgument {
		return false, nil
	}
	return err == nil, err
}
