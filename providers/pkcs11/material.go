package pkcs11

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"math/big"

	p11 "github.com/miekg/pkcs11"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// Numbers of PKCS #11 v3.0 that miekg/pkcs11 does not have.
const (
	ckkECEdwards           = 0x40
	ckkECMontgomery        = 0x41
	ckmECEdwardsKeyPairGen = 0x1055
	ckmECMontgomeryKeyPair = 0x1056
	ckmEdDSA               = 0x1057
)

// kind describes keys of a type in PKCS #11's terms.
type kind struct {
	keyType  uint64
	generate uint64 // the mechanism
	params   []byte // CKA_EC_PARAMS
}

// The curves' names (RFC 5480, 2.1.1.1; RFC 8410, 3).
var (
	curveIDs = map[int]asn1.ObjectIdentifier{224: {1, 3, 132, 0, 33}, 256: {1, 2, 840, 10045, 3, 1, 7}, 384: {1, 3, 132, 0, 34}, 521: {1, 3, 132, 0, 35}}
	curves   = map[int]elliptic.Curve{224: elliptic.P224(), 256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}

	ed25519ID = asn1.ObjectIdentifier{1, 3, 101, 112}
	x25519ID  = asn1.ObjectIdentifier{1, 3, 101, 110}
)

// kindOf is false if this package does not support such keys. listed are the token's mechanisms.
func kindOf(t psa.KeyType, bits int, listed map[uint64]mechanismInfo) (k kind, ok bool) {
	var id asn1.ObjectIdentifier
	switch t = t.KeyPair(); {
	case t.IsRSA():
		return kind{p11.CKK_RSA, p11.CKM_RSA_PKCS_KEY_PAIR_GEN, nil}, true
	case t.Family() == psa.SECPR1:
		k, id = kind{p11.CKK_EC, p11.CKM_EC_KEY_PAIR_GEN, nil}, curveIDs[bits]
	case t.Family() == psa.TwistedEdwards && bits == 255:
		k, id = kind{ckkECEdwards, ckmECEdwardsKeyPairGen, nil}, ed25519ID
	case t.Family() == psa.Montgomery && bits == 255:
		k, id = kind{ckkECMontgomery, ckmECMontgomeryKeyPair, nil}, x25519ID
		if _, ok := listed[ckmECMontgomeryKeyPair]; !ok { // SoftHSM has them among the others
			k.keyType, k.generate = ckkECEdwards, ckmECEdwardsKeyPairGen
		}
	case t == psa.KeyTypeAES:
		return kind{p11.CKK_AES, p11.CKM_AES_KEY_GEN, nil}, true
	case t == psa.KeyTypeHMAC:
		return kind{p11.CKK_GENERIC_SECRET, p11.CKM_GENERIC_SECRET_KEY_GEN, nil}, true
	}
	if id == nil {
		return kind{}, false
	}
	k.params, _ = asn1.Marshal(id) // fails for no such list of numbers
	return k, true
}

func number(n uint64) []byte { return binary.NativeEndian.AppendUint64(nil, n) } // CK_ULONG

func flag(b bool) []byte {
	if b {
		return []byte{1}
	}
	return []byte{0}
}

// template builds a list of attributes.
type template []attribute

func (t *template) add(typ uint64, value []byte) {
	*t = append(*t, attribute{number: typ, value: value})
}

// what describes a new key: its ID and its use.
type making struct {
	a       psa.Attributes
	kind    kind
	id      []byte
	label   string
	onToken bool
}

// base are the attributes that all of its objects have.
func (m making) base(class uint64, generated bool) (t template) {
	if !generated || class == p11.CKO_SECRET_KEY {
		t.add(p11.CKA_CLASS, number(class))
		t.add(p11.CKA_KEY_TYPE, number(m.kind.keyType))
	}
	t.add(p11.CKA_TOKEN, flag(m.onToken))
	t.add(p11.CKA_PRIVATE, flag(class != p11.CKO_PUBLIC_KEY))
	t.add(p11.CKA_ID, m.id)
	t.add(p11.CKA_LABEL, []byte(m.label))
	return t
}

const (
	usageSign   = psa.UsageSignMessage | psa.UsageSignHash
	usageVerify = psa.UsageVerifyMessage | psa.UsageVerifyHash
	usageAll    = psa.UsageExport | psa.UsageEncrypt | psa.UsageDecrypt | usageSign | usageVerify | psa.UsageDerive
)

// hidden are the attributes of the secret part: nobody gets it in the clear without the usage to export.
func (m making) hidden(t *template) {
	u := m.a.Usage
	t.add(p11.CKA_SENSITIVE, flag(u&psa.UsageExport == 0))
	t.add(p11.CKA_EXTRACTABLE, flag(u&psa.UsageExport != 0))
	is := func(typ uint64, usage psa.Usage) {
		if u&usage != 0 {
			t.add(typ, flag(true))
		}
	}
	switch {
	case m.a.Type == psa.KeyTypeHMAC:
		is(p11.CKA_SIGN, usageSign|usageVerify) // a MAC is verified by making it again
	case m.a.Type == psa.KeyTypeAES:
		is(p11.CKA_ENCRYPT, psa.UsageEncrypt)
		is(p11.CKA_DECRYPT, psa.UsageDecrypt)
		is(p11.CKA_SIGN, usageSign|usageVerify)
	case m.a.Type.IsRSA():
		is(p11.CKA_SIGN, usageSign)
		is(p11.CKA_DECRYPT, psa.UsageDecrypt)
	default:
		if m.a.Type.Family() != psa.Montgomery {
			is(p11.CKA_SIGN, usageSign)
		}
		if m.a.Type.Family() != psa.TwistedEdwards {
			is(p11.CKA_DERIVE, psa.UsageDerive)
		}
	}
}

func (m making) public(generated bool) template {
	t := m.base(p11.CKO_PUBLIC_KEY, generated)
	if m.a.Type.Family() != psa.Montgomery {
		t.add(p11.CKA_VERIFY, flag(true))
	}
	if m.a.Type.IsRSA() {
		t.add(p11.CKA_ENCRYPT, flag(true))
	}
	if m.kind.params != nil {
		t.add(p11.CKA_EC_PARAMS, m.kind.params)
	}
	return t
}

// generation is the request that has the token make the key.
func (m making) generation() *request {
	r := &request{method: methodGenerate, mechanism: mechanism{number: m.kind.generate}}
	if !m.a.Type.IsAsymmetric() {
		t := m.base(p11.CKO_SECRET_KEY, true)
		m.hidden(&t)
		t.add(p11.CKA_VALUE_LEN, number(uint64(m.a.Bits/8)))
		r.templates[0] = t
		return r
	}
	public, private := m.public(true), m.base(p11.CKO_PRIVATE_KEY, true)
	m.hidden(&private)
	if m.a.Type.IsRSA() {
		public.add(p11.CKA_MODULUS_BITS, number(uint64(m.a.Bits)))
		public.add(p11.CKA_PUBLIC_EXPONENT, []byte{1, 0, 1})
	}
	r.templates[0], r.templates[1], r.types = public, private, publicTypes
	return r
}

// publicTypes are the attributes that a public key is made of.
var publicTypes = []uint64{p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT, p11.CKA_EC_POINT}

// creation is the request to store a key on the token. For an asymmetric key it also returns the public part.
func (m making) creation(material *psa.Material) (*request, crypto.PublicKey, error) {
	r := &request{method: methodCreate}
	if !m.a.Type.IsAsymmetric() {
		if material.Format != psa.FormatRaw || len(material.Data)*8 != m.a.Bits {
			return nil, nil, psa.Errorf(psa.StatusInvalidArgument, "the material is %s of %d bytes; a %s key of %d bits has %d",
				material.Format, len(material.Data), m.a.Type, m.a.Bits, m.a.Bits/8)
		}
		t := m.base(p11.CKO_SECRET_KEY, false)
		m.hidden(&t)
		t.add(p11.CKA_VALUE, bytes.Clone(material.Data))
		r.templates[0] = t
		return r, nil, nil
	}
	if material.Format != psa.FormatPKCS8 {
		return nil, nil, psa.Errorf(psa.StatusInvalidArgument,
			"the material is %s, but a %s key needs %s", material.Format, m.a.Type, psa.FormatPKCS8)
	}
	key, err := x509.ParsePKCS8PrivateKey(material.Data)
	if err != nil {
		return nil, nil, psa.Errorf(psa.StatusInvalidArgument, "the private key cannot be read: %w", err)
	}
	if err := m.a.Describes(key); err != nil {
		return nil, nil, err
	}
	private, public := m.base(p11.CKO_PRIVATE_KEY, false), m.public(false)
	m.hidden(&private)
	if m.kind.params != nil {
		private.add(p11.CKA_EC_PARAMS, m.kind.params)
	}
	pub := key.(interface{ Public() crypto.PublicKey }).Public()
	var point []byte
	switch k := key.(type) {
	case *rsa.PrivateKey:
		k.Precompute()
		modulus, exponent := k.N.Bytes(), big.NewInt(int64(k.E)).Bytes()
		for _, part := range []struct {
			typ   uint64
			value []byte
		}{
			{p11.CKA_MODULUS, modulus}, {p11.CKA_PUBLIC_EXPONENT, exponent}, {p11.CKA_PRIVATE_EXPONENT, k.D.Bytes()},
			{p11.CKA_PRIME_1, k.Primes[0].Bytes()}, {p11.CKA_PRIME_2, k.Primes[1].Bytes()},
			{p11.CKA_EXPONENT_1, k.Precomputed.Dp.Bytes()}, {p11.CKA_EXPONENT_2, k.Precomputed.Dq.Bytes()},
			{p11.CKA_COEFFICIENT, k.Precomputed.Qinv.Bytes()},
		} {
			private.add(part.typ, part.value)
		}
		public.add(p11.CKA_MODULUS, modulus)
		public.add(p11.CKA_PUBLIC_EXPONENT, exponent)
	case *ecdsa.PrivateKey:
		scalar, err := k.Bytes()
		if err == nil {
			point, err = k.PublicKey.Bytes()
		}
		if err != nil {
			return nil, nil, psa.Errorf(psa.StatusInvalidArgument, "the private key is damaged: %w", err)
		}
		private.add(p11.CKA_VALUE, scalar)
	case ed25519.PrivateKey:
		private.add(p11.CKA_VALUE, k.Seed())
		point = pub.(ed25519.PublicKey)
	case *ecdh.PrivateKey:
		private.add(p11.CKA_VALUE, k.Bytes())
		point = pub.(*ecdh.PublicKey).Bytes()
	}
	if point != nil {
		public.add(p11.CKA_EC_POINT, octets(point))
	}
	r.templates[0], r.templates[1] = public, private
	return r, pub, nil
}

// octets is b in an OCTET STRING.
func octets(b []byte) []byte {
	der, _ := asn1.Marshal(b) // fails for no bytes
	return der
}

// publicOf reads a public key from a token's attributes. If they are not enough, it returns nil and no error. The point may be
// in an OCTET STRING, as it should (PKCS #11 v2.40 mechanisms, 2.3.3), or not.
func publicOf(t psa.KeyType, bits int, list []attribute) (crypto.PublicKey, error) {
	if t.IsRSA() {
		modulus, _ := valueOf(list, p11.CKA_MODULUS)
		exponent, _ := valueOf(list, p11.CKA_PUBLIC_EXPONENT)
		e := new(big.Int).SetBytes(exponent)
		if len(modulus) == 0 || !e.IsInt64() || e.Int64() > 1<<31-1 || e.Int64() < 3 {
			return nil, nil
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(e.Int64())}, nil
	}
	value, _ := valueOf(list, p11.CKA_EC_POINT)
	if len(value) == 0 {
		return nil, nil
	}
	var inner []byte
	if rest, err := asn1.Unmarshal(value, &inner); err == nil && len(rest) == 0 {
		if pub, err := pointOf(t, bits, inner); err == nil {
			return pub, nil
		}
	}
	return pointOf(t, bits, value)
}

func pointOf(t psa.KeyType, bits int, point []byte) (crypto.PublicKey, error) {
	switch {
	case t.Family() == psa.TwistedEdwards && len(point) == ed25519.PublicKeySize:
		return ed25519.PublicKey(bytes.Clone(point)), nil
	case t.Family() == psa.Montgomery:
		return ecdh.X25519().NewPublicKey(point)
	case t.Family() == psa.SECPR1 && curves[bits] != nil:
		return ecdsa.ParseUncompressedPublicKey(curves[bits], point)
	}
	return nil, psa.Errorf(psa.StatusNotSupported, "the public key has %d bytes, which is the wrong length", len(point))
}

// privateTypes are the attributes that a private key is exported from.
func privateTypes(t psa.KeyType) []uint64 {
	if t.IsRSA() {
		return []uint64{p11.CKA_MODULUS, p11.CKA_PUBLIC_EXPONENT, p11.CKA_PRIVATE_EXPONENT, p11.CKA_PRIME_1, p11.CKA_PRIME_2}
	}
	return []uint64{p11.CKA_VALUE}
}

// exported makes PKCS #8, or the bytes, of a key from the attributes that the token returned.
func exported(a psa.Attributes, list []attribute) ([]byte, error) {
	value := func(typ uint64) []byte { v, _ := valueOf(list, typ); return v }
	if !a.Type.IsAsymmetric() {
		if v := value(p11.CKA_VALUE); len(v)*8 == a.Bits {
			return bytes.Clone(v), nil
		}
		return nil, errHidden()
	}
	for _, typ := range privateTypes(a.Type) {
		if len(value(typ)) == 0 {
			return nil, errHidden()
		}
	}
	var key any
	var err error
	switch v := value(p11.CKA_VALUE); {
	case a.Type.IsRSA():
		pub, err := publicOf(a.Type, a.Bits, list)
		if err != nil || pub == nil {
			return nil, errHidden()
		}
		number := func(typ uint64) *big.Int { return new(big.Int).SetBytes(value(typ)) }
		k := &rsa.PrivateKey{PublicKey: *pub.(*rsa.PublicKey), D: number(p11.CKA_PRIVATE_EXPONENT), Primes: []*big.Int{number(p11.CKA_PRIME_1), number(p11.CKA_PRIME_2)}}
		k.Precompute()
		if err := k.Validate(); err != nil {
			return nil, psa.Errorf(psa.StatusHardwareFailure, "the token returned a damaged key: %w", err)
		}
		key = k
	case a.Type.Family() == psa.SECPR1:
		n := (a.Bits + 7) / 8
		if len(v) > n {
			return nil, errHidden()
		}
		scalar := append(make([]byte, n-len(v), n), v...) // tokens leave zeros at its front out
		defer psa.Wipe(scalar)
		key, err = ecdsa.ParseRawPrivateKey(curves[a.Bits], scalar)
	case a.Type.Family() == psa.TwistedEdwards && len(v) == ed25519.SeedSize:
		key = ed25519.NewKeyFromSeed(v)
	case a.Type.Family() == psa.Montgomery:
		key, err = ecdh.X25519().NewPrivateKey(v)
	default:
		return nil, errHidden()
	}
	if err != nil {
		return nil, psa.Errorf(psa.StatusHardwareFailure, "the token returned a damaged key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "the private key cannot be encoded: %w", err)
	}
	return der, nil
}

func errHidden() error {
	return psa.Errorf(psa.StatusNotPermitted, "the token does not export this key").WithHint("it was made without the right to be exported")
}
