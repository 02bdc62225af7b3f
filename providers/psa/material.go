package psa

import (
	"bytes"
	"cmp"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"

	secrets "github.com/parsecfs/parsecfs/providers/psa/secret"
)

// MaterialFormat says what the bytes of a Material are.
type MaterialFormat int

// The formats of key material.
const (
	FormatPKCS8 MaterialFormat = iota + 1 // a private key: PrivateKeyInfo in DER (RFC 5208, RFC 5958)
	FormatSPKI                            // a public key: SubjectPublicKeyInfo in DER (RFC 5280, 4.1.2.7)
	FormatRaw                             // a symmetric key's bytes
	FormatTSS2                            // a key wrapped by a TPM: TPMKey in DER (ASN.1 Specification for TPM 2.0 Key Files)
)

// String names the format.
func (f MaterialFormat) String() string {
	switch f {
	case FormatPKCS8:
		return "PKCS#8"
	case FormatSPKI:
		return "SubjectPublicKeyInfo"
	case FormatRaw:
		return "raw"
	case FormatTSS2:
		return "TSS2"
	}
	return "unknown"
}

// Material is a key to import. Who holds it wipes it.
type Material struct {
	Format MaterialFormat
	Data   []byte
}

// Wipe overwrites the key.
func (m *Material) Wipe() {
	if m != nil {
		Wipe(m.Data)
	}
}

// Wipe overwrites b with zeros.
func Wipe(b []byte) { clear(b) }

// MaxMaterial bounds, in bytes, what ScanMaterial looks at for one key.
const MaxMaterial = 64 << 10

// maxKey bounds the DER of one key, so that no arithmetic runs on numbers beyond any real key's; RSA of 8192 bits has
// 4.7 KiB.
const maxKey = 8 << 10

// ScanMaterial looks for a whole key at the beginning of what was written to an import file so far. end 0 without an error
// means that more bytes are needed. Else b[:end] was the key: it ends with the END line of the first PEM block that is a
// key (text and other blocks before it are skipped), with the DER, or after draft.Bits/8 raw bytes where draft.Type is
// symmetric. PKCS#8, SEC1, PKCS#1, OpenSSH's form and SubjectPublicKeyInfo become PKCS#8 or SubjectPublicKeyInfo, written
// anew. m is a copy, which the caller wipes.
//
// The attributes returned are the draft's, completed by what the key is: a bare one gets DefaultTemplate's; a public
// key alone has the public key type and the usage that it can serve. Material that contradicts the draft, that is
// damaged, that contradicts itself or that is no key is StatusInvalidArgument; encrypted keys, and types and sizes that nothing here reads,
// are StatusNotSupported; more than MaxMaterial bytes StatusTooLarge.
func ScanMaterial(b []byte, draft Attributes) (end int, m *Material, a Attributes, err error) {
	secrets.Do(func() { end, m, a, err = scanMaterial(b, draft) })
	return end, m, a, err
}

func scanMaterial(b []byte, draft Attributes) (end int, m *Material, a Attributes, err error) {
	if len(b) == 0 {
		return 0, nil, Attributes{}, nil
	}
	if draft.Type != KeyTypeNone && !draft.Type.IsAsymmetric() && !bytes.HasPrefix(b, []byte(pemBegin+tss2Label)) {
		if len(b) > len(pemDashes) && strings.HasPrefix(pemBegin+tss2Label, string(b)) {
			return 0, nil, Attributes{}, nil
		}
		return scanRaw(b, draft)
	}
	end, label, der, err := findKey(b)
	if label == tss2Label && err == nil {
		return wrapped(end, der, draft)
	}
	defer Wipe(der)
	if err == nil && end == 0 && len(b) > MaxMaterial {
		err = Errorf(StatusTooLarge, "no whole key in the first %d bytes", MaxMaterial)
	}
	if err != nil || end == 0 {
		return 0, nil, Attributes{}, err
	}
	if len(der) > maxKey {
		return 0, nil, Attributes{}, Errorf(StatusTooLarge, "a key of %d bytes in DER; allowed: up to %d", len(der), maxKey)
	}
	m, a, only, err := parseKey(label, der)
	if err == nil {
		err = draft.permits(only)
	}
	if err == nil && label != "" && strings.HasSuffix(label, "PRIVATE KEY") != (m.Format == FormatPKCS8) {
		err = Errorf(StatusInvalidArgument, "the PEM block %s holds a %s key", quote(label), privacy(m.Format))
	}
	if err == nil {
		a, err = draft.complete(a)
	}
	if err != nil {
		m.Wipe()
		return 0, nil, Attributes{}, err
	}
	return end, m, a, nil
}

// InPEM says whether what ScanMaterial found ends a PEM block.
func InPEM(key []byte) bool {
	return bytes.Contains(key, []byte("\n"+pemEnd)) && bytes.HasSuffix(key, []byte(pemDashes))
}

// ScanRest judges what follows a key in PEM: text and PEM blocks that are no key are ignored; a block may have begun and go
// on: left is how many bytes it has. Anything else is StatusInvalidArgument.
func ScanRest(rest []byte) (left int, err error) {
	s := NewPEMScanner(rest)
	s.ended = true
	for {
		label, err := s.NextLabel()
		switch {
		case err != nil:
			return 0, err
		case label == "":
			return s.Left(), nil
		case strings.Contains(label, "KEY"):
			return 0, Errorf(StatusInvalidArgument, "a second key follows the first").
				WithHint("a draft takes one key: make another draft for the other key")
		}
		block, whole, err := s.Block()
		Wipe(block.Bytes)
		if err != nil {
			return 0, err
		}
		if !whole {
			return s.Left(), nil
		}
	}
}

// ScanBlank judges what follows where only white space may.
func ScanBlank(rest []byte) (left int, err error) {
	if len(bytes.TrimSpace(rest)) > 0 {
		return 0, Errorf(StatusInvalidArgument, "there is something after the complete text or key")
	}
	return 0, nil
}

const tss2Label = "TSS2 PRIVATE KEY"

// wrapped is a key that a TPM alone can read: the draft says what it is.
func wrapped(end int, der []byte, draft Attributes) (int, *Material, Attributes, error) {
	err := draft.Validate()
	if err != nil || draft.Algorithm == AlgNone || draft.Bits == 0 {
		return 0, nil, Attributes{}, Errorf(StatusInvalidArgument, "the draft needs a template, because the key was wrapped by a TPM").
			WithHint("write a template into attributes before the import")
	}
	return end, &Material{Format: FormatTSS2, Data: bytes.Clone(der)}, draft, nil
}

func scanRaw(b []byte, draft Attributes) (int, *Material, Attributes, error) {
	if draft.Bits == 0 {
		return 0, nil, Attributes{}, Errorf(StatusInvalidArgument, "the size of the %s key is not known", draft.Type).
			WithHint("set key_bits in attributes before the import")
	}
	if err := draft.Validate(); err != nil {
		return 0, nil, Attributes{}, err
	}
	n := draft.Bits / 8
	if len(b) < n {
		return 0, nil, Attributes{}, nil
	}
	if bytes.HasPrefix(b[:n], []byte(pemBegin)) {
		return 0, nil, Attributes{}, Errorf(StatusInvalidArgument,
			"this is a PEM block, but the draft is for a %s key, which takes %d raw bytes", draft.Type, n).
			WithHint("make a new draft without a template for the PEM key, or with one that fits it")
	}
	return n, &Material{Format: FormatRaw, Data: bytes.Clone(b[:n])}, draft, nil
}

// findKey finds the first key in b: where it ends, its PEM label ("" if it is in DER), and its DER. end 0 without an
// error: not whole yet.
func findKey(b []byte) (end int, label string, der []byte, err error) {
	if b[0] == 0x30 { // SEQUENCE, or text that begins with the digit zero
		head, size, ok, more := derHeader(b, MaxMaterial)
		if more {
			return 0, "", nil, nil
		}
		// What starts with INTEGER or SEQUENCE is a key or pretends to be; text goes on to the search for PEM.
		if ok && len(b) == head {
			return 0, "", nil, nil
		}
		if ok && (b[head] == 0x02 || b[head] == 0x30) {
			if len(b) < head+size {
				return 0, "", nil, nil
			}
			return head + size, "", bytes.Clone(b[:head+size]), nil
		}
	}
	return findPEM(b)
}

// derHeader reads the header of a SEQUENCE in DER whose whole length is at most max: the header's own length and the
// content's. more: it needs more bytes to say.
func derHeader(b []byte, max int) (head, size int, ok, more bool) {
	if len(b) < 2 {
		return 0, 0, false, len(b) == 0 || b[0] == 0x30
	}
	if b[0] != 0x30 {
		return 0, 0, false, false
	}
	head, size = 2, int(b[1])
	if size >= 0x80 {
		n := size & 0x7f
		if n == 0 || n > 3 {
			return 0, 0, false, false
		}
		if len(b) < 2+n {
			return 0, 0, false, true
		}
		head, size = 2+n, 0
		for _, c := range b[2 : 2+n] {
			size = size<<8 | int(c)
		}
		if size < 0x80 || size>>(8*(n-1)) == 0 {
			return 0, 0, false, false // not the shortest form
		}
	}
	return head, size, size > 0 && head+size <= max, false
}

func errNoKey() error {
	return Errorf(StatusInvalidArgument, "neither PEM nor DER of a private or public key").
		WithHint("raw bytes need a template, or key_type and key_bits, in attributes before the import")
}

// findPEM finds the first PEM block that is a key.
func findPEM(b []byte) (end int, label string, der []byte, err error) {
	s := NewPEMScanner(b)
	for {
		label, err := s.NextLabel()
		if errors.Is(err, errNotText) && s.at == 0 {
			return 0, "", nil, cmp.Or(sniffForeign(b), errNoKey())
		}
		if err != nil || label == "" {
			return 0, "", nil, err
		}
		isKey, err := keyLabel(label)
		if err != nil {
			return 0, "", nil, err
		}
		block, whole, err := s.Block()
		if err != nil || !whole {
			return 0, "", nil, err
		}
		if isKey && block.Encrypted {
			Wipe(block.Bytes)
			return 0, "", nil, errEncrypted()
		}
		if isKey {
			return s.at, label, block.Bytes, nil
		}
		Wipe(block.Bytes)
	}
}

func errEncrypted() error {
	return Errorf(StatusNotSupported, "the private key is encrypted").
		WithHint("decrypt it on the way in: openssl pkey -in FILE > import; one in DER: openssl pkcs8 -inform DER -in FILE > import")
}

// keyLabel says whether a PEM block of that label is a key, with an error for those that cannot be read.
func keyLabel(label string) (bool, error) {
	switch label {
	case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", sshLabel, "PUBLIC KEY", "RSA PUBLIC KEY", tss2Label:
		return true, nil
	case "ENCRYPTED PRIVATE KEY":
		return false, errEncrypted()
	}
	if strings.HasPrefix(label, "PGP ") {
		return false, Errorf(StatusNotSupported, "this is an OpenPGP key or message").WithHint("export the key itself, as PKCS #8 in PEM")
	}
	if strings.HasSuffix(label, "PRIVATE KEY") || strings.HasSuffix(label, "PUBLIC KEY") {
		return false, Errorf(StatusNotSupported, "unsupported PEM block %s; allowed: PRIVATE KEY, EC PRIVATE KEY, RSA PRIVATE KEY, "+
			"OPENSSH PRIVATE KEY, PUBLIC KEY, RSA PUBLIC KEY", quote(label))
	}
	return false, nil
}

// keyStructure is which of the structures a key comes in.
type keyStructure int

const (
	notAKey keyStructure = iota
	pkcs8Private
	sec1Private
	pkcs1Private
	spkiPublic
	pkcs1Public
	encryptedPrivate
	certificate
)

// structureOf tells the structures apart by their outermost elements alone; the parsers then judge.
func structureOf(der []byte) keyStructure {
	var outer asn1.RawValue
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) != 0 || outer.Tag != asn1.TagSequence {
		return notAKey
	}
	var tags []int
	for rest := outer.Bytes; len(rest) > 0 && len(tags) < 4; {
		var v asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &v); err != nil {
			return notAKey
		}
		tag := v.Tag
		if v.Class != asn1.ClassUniversal {
			tag = -1
		}
		tags = append(tags, tag)
	}
	is := func(want ...int) bool {
		if len(tags) < len(want) {
			return false
		}
		for i, t := range want {
			if tags[i] != t {
				return false
			}
		}
		return true
	}
	switch {
	case is(asn1.TagInteger, asn1.TagSequence, asn1.TagOctetString):
		return pkcs8Private
	case is(asn1.TagInteger, asn1.TagOctetString):
		return sec1Private
	case is(asn1.TagInteger, asn1.TagInteger, asn1.TagInteger, asn1.TagInteger):
		return pkcs1Private
	case is(asn1.TagInteger, asn1.TagInteger) && len(tags) == 2:
		return pkcs1Public
	case is(asn1.TagSequence, asn1.TagBitString) && len(tags) == 2:
		return spkiPublic
	case is(asn1.TagSequence, asn1.TagOctetString) && len(tags) == 2:
		return encryptedPrivate
	case is(asn1.TagSequence, asn1.TagSequence, asn1.TagBitString):
		return certificate
	}
	return notAKey
}

// parseKey reads a key in any of the structures and writes it anew; a has its type, size and default policy. only is the
// algorithm that the file restricts the key to, AlgNone if it does not.
func parseKey(label string, der []byte) (m *Material, a Attributes, only Algorithm, err error) {
	fail := func(err error) (*Material, Attributes, Algorithm, error) { return nil, Attributes{}, AlgNone, err }
	if label == sshLabel {
		key, err := parseOpenSSH(der)
		if err != nil {
			return fail(err)
		}
		m, a, err = standardMaterial(FormatPKCS8, key)
		return m, a, AlgNone, err
	}
	structure := structureOf(der)
	switch structure {
	case encryptedPrivate:
		return fail(errEncrypted())
	case certificate:
		return fail(cmp.Or(sniffForeign(der), sniffed("a certificate", "its public key alone: openssl x509 -pubkey -noout -in FILE")))
	case notAKey:
		return fail(cmp.Or(sniffForeign(der), errNoKey()))
	}
	format := FormatPKCS8
	if structure == spkiPublic || structure == pkcs1Public {
		format = FormatSPKI
	}
	if structure == pkcs8Private && !hasParts(der, 3) || structure == sec1Private && !hasParts(der, 2) {
		return fail(Errorf(StatusInvalidArgument, "a damaged private key: it has unknown parts"))
	}
	only, plain, err := withoutPSS(structure, der)
	if err != nil {
		return fail(err)
	}
	if only != AlgNone {
		defer Wipe(plain)
	}
	key, err := parseStandard(structure, plain)
	if err != nil {
		raw, e := ParseRawKey(der)
		switch {
		case e == nil:
			m, a, err = rawMaterial(raw)
			return m, a, AlgNone, err
		case isRawAlgorithm(der):
			return fail(e)
		}
		return fail(parseError(format, der, err))
	}
	if err := contradiction(structure, plain, key); err != nil {
		return fail(err)
	}
	if m, a, err = standardMaterial(format, key); err != nil || only == AlgNone {
		return m, a, AlgNone, err
	}
	a.Algorithm = only
	a.Usage = a.defaultUsage()
	return m, a, only, a.Validate()
}

func parseStandard(structure keyStructure, der []byte) (any, error) {
	switch structure {
	case pkcs8Private:
		return x509.ParsePKCS8PrivateKey(der)
	case sec1Private:
		return x509.ParseECPrivateKey(der)
	case pkcs1Private:
		return x509.ParsePKCS1PrivateKey(der)
	case pkcs1Public:
		return x509.ParsePKCS1PublicKey(der)
	}
	key, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		if k, ok := parsePoint(der); ok {
			return k, nil
		}
	}
	return key, err
}

// standardMaterial writes a key of the standard library anew.
func standardMaterial(format MaterialFormat, key any) (*Material, Attributes, error) {
	a, err := AttributesOf(key)
	if err != nil {
		return nil, Attributes{}, err
	}
	var data []byte
	if format == FormatPKCS8 {
		data, err = x509.MarshalPKCS8PrivateKey(key)
	} else {
		data, err = x509.MarshalPKIXPublicKey(key)
	}
	if err != nil {
		return nil, Attributes{}, Errorf(StatusInvalidArgument, "the key cannot be encoded as %s: %w", format, err)
	}
	return &Material{Format: format, Data: data}, a, nil
}

func rawMaterial(k RawKey) (*Material, Attributes, error) {
	a, err := DefaultTemplate(k.Type, k.Bits)
	if err != nil {
		return nil, a, err
	}
	m := &Material{Format: FormatPKCS8}
	if k.Type.IsPublicKey() {
		m.Format = FormatSPKI
	}
	m.Data, err = k.Marshal()
	return m, a, err
}

const importable = "RSA, P-224, P-256, P-384, P-521, secp256k1, Brainpool (256, 384 and 512 bits), Ed25519, X25519, Ed448, X448, ML-DSA, ML-KEM and SLH-DSA keys can be"

// parseError tells what is well formed and not known here from what is damaged; crypto/x509 says so in words alone.
func parseError(format MaterialFormat, der []byte, err error) error {
	what := privacy(format)
	if hasExplicitCurve(der) {
		return Errorf(StatusNotSupported, "the curve of the %s key is given by its parameters, not by its name", what).
			WithHint("name the curve: openssl ec -param_enc named_curve -in FILE")
	}
	if text := err.Error(); strings.Contains(text, "unknown") || strings.Contains(text, "unsupported") {
		return Errorf(StatusNotSupported, "a %s key of an algorithm or curve that cannot be imported: %w", what, err).
			WithHint(importable)
	}
	return Errorf(StatusInvalidArgument, "a damaged %s key: %w", what, err)
}

func privacy(f MaterialFormat) string {
	if f == FormatSPKI {
		return "public"
	}
	return "private"
}

// AttributesOf are the type, size and default policy (DefaultTemplate) of a key of the standard library, private or
// public: StatusNotSupported for others, for RSA outside 2048 to 8192 bits, and for what crypto/rsa refuses.
func AttributesOf(key any) (Attributes, error) {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		if len(k.Primes) != 2 {
			return Attributes{}, Errorf(StatusNotSupported, "an RSA key of %d primes; allowed: 2", len(k.Primes))
		}
		a, err := DefaultTemplate(KeyTypeRSAKeyPair, k.N.BitLen())
		if err != nil {
			return a, err
		}
		if err := k.Validate(); err != nil {
			return a, Errorf(StatusInvalidArgument, "a damaged private key: %w", err)
		}
		return a, nil
	case *rsa.PublicKey:
		return DefaultTemplate(KeyTypeRSAPublicKey, k.N.BitLen())
	case *ecdsa.PrivateKey:
		return DefaultTemplate(ECCKeyPair(SECPR1), k.Curve.Params().BitSize)
	case *ecdsa.PublicKey:
		return DefaultTemplate(ECCPublicKey(SECPR1), k.Curve.Params().BitSize)
	case ed25519.PrivateKey:
		return DefaultTemplate(ECCKeyPair(TwistedEdwards), 255)
	case ed25519.PublicKey:
		return DefaultTemplate(ECCPublicKey(TwistedEdwards), 255)
	case *ecdh.PrivateKey:
		if k.Curve() == ecdh.X25519() {
			return DefaultTemplate(ECCKeyPair(Montgomery), 255)
		}
	case *ecdh.PublicKey:
		if k.Curve() == ecdh.X25519() {
			return DefaultTemplate(ECCPublicKey(Montgomery), 255)
		}
	}
	return Attributes{}, Errorf(StatusNotSupported, "a %s cannot be imported", strings.TrimPrefix(fmt.Sprintf("%T", key), "*")).
		WithHint(importable)
}

// complete is the draft filled in with what a key turned out to be; found has its type, size and default policy.
func (draft Attributes) complete(found Attributes) (Attributes, error) {
	a := draft
	if a.Type != KeyTypeNone && a.Type != found.Type && a.Type != found.Type.KeyPair() {
		return Attributes{}, Errorf(StatusInvalidArgument, "a %s key; the draft is for a %s key", found.Type, a.Type)
	}
	if a.Bits != 0 && a.Bits != found.Bits {
		return Attributes{}, Errorf(StatusInvalidArgument, "a %s key of %d bits; the draft is for %d bits", found.Type, found.Bits, a.Bits)
	}
	a.Type, a.Bits = found.Type, found.Bits
	if a.Algorithm == AlgNone {
		a.Algorithm = found.Algorithm
	}
	if a.Usage == 0 {
		a.Usage = a.defaultUsage()
	}
	if a.Type.IsPublicKey() && draft.Type != a.Type { // a pair's policy, of which the public key can serve a part
		a.Usage &= usagePublic
	}
	return a, a.Validate()
}
