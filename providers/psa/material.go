package psa

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"strings"
	"unicode/utf8"

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

const (
	pemBegin  = "-----BEGIN "
	pemEnd    = "-----END "
	pemDashes = "-----"
	maxLabel  = 64
)

// ScanMaterial looks for a whole key at the beginning of what was written to an import file so far (sections 3.8 and
// 4). end 0 without an error means that more bytes are needed. Else b[:end] was the key: it ends with the END line of
// the first PEM block that is a key (text and other blocks before it are skipped), with the DER, or after draft.Bits/8
// raw bytes where draft.Type is symmetric. PKCS#8, SEC1, PKCS#1 and SubjectPublicKeyInfo become PKCS#8 or
// SubjectPublicKeyInfo, written anew by crypto/x509. m is a copy, which the caller wipes.
//
// The attributes returned are the draft's, completed by what the key is: a bare one gets DefaultTemplate's; a public
// key alone has the public key type and the usage that it can serve. Material that contradicts the draft, that is
// damaged or that is no key is StatusInvalidArgument; encrypted keys, and types and sizes that nothing here reads,
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
	m, a, err = parseKey(der)
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

// ScanRest judges what follows a whole key, or text in place of one: white space, and PEM blocks that are no key. A block
// may have begun and go on: left is how many bytes it has. Anything else is StatusInvalidArgument.
func ScanRest(b []byte) (left int, err error) {
	for {
		b = bytes.TrimLeft(b, " \t\r\n")
		block, after := pem.Decode(b)
		if block == nil {
			break
		}
		if strings.Contains(block.Type, "KEY") {
			Wipe(block.Bytes)
			return 0, Errorf(StatusInvalidArgument, "a second key follows the first")
		}
		b = after
	}
	if n := min(len(b), len(pemBegin)); string(b[:n]) != pemBegin[:n] {
		return 0, Errorf(StatusInvalidArgument, "there is something after the complete text or key")
	}
	return len(b), nil
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
	at := 0
	for {
		begin := lineWith(b, at, pemBegin)
		if begin < 0 {
			if !isText(b[at:]) {
				return 0, "", nil, errNoKey()
			}
			return 0, "", nil, nil
		}
		if !isText(b[at:begin]) {
			return 0, "", nil, errNoKey()
		}
		line, whole := lineAt(b, begin)
		name, rest, dashes := bytes.Cut(line[len(pemBegin):], []byte(pemDashes))
		// What is wrong with the line is not quoted: a key whose line breaks were lost is all in it.
		if len(name) > maxLabel || dashes && len(bytes.TrimSpace(rest)) != 0 || whole && !dashes {
			return 0, "", nil, Errorf(StatusInvalidArgument, "damaged PEM: a BEGIN line does not end after its name").
				WithHint("were the line breaks lost? quote the variable: printf '%s\\n' \"$KEY\"")
		}
		if !whole {
			return 0, "", nil, nil
		}
		label = string(name)
		isKey, err := keyLabel(label)
		if err != nil {
			return 0, "", nil, err
		}
		body := begin + len(line)
		last := pemEnd + label + pemDashes
		stop := lineWith(b, body, last)
		if next := lineWith(b, body, pemBegin); next >= 0 && (stop < 0 || next < stop) {
			return 0, "", nil, Errorf(StatusInvalidArgument, "damaged PEM: the block %s has no END line", quote(label))
		}
		if other := lineWith(b, body, pemEnd); other >= 0 && other != stop {
			if rest, whole := lineAt(b, other); whole || !bytes.HasPrefix([]byte(last), rest) {
				return 0, "", nil, Errorf(StatusInvalidArgument, "damaged PEM: the block %s ends with the END line of another", quote(label))
			}
		}
		if stop < 0 {
			return 0, "", nil, nil
		}
		end = stop + len(last)
		if !isKey {
			at = end
			continue
		}
		block, rest := pem.Decode(b[begin:end])
		if block == nil || block.Type != label || len(rest) != 0 {
			return 0, "", nil, Errorf(StatusInvalidArgument, "damaged PEM: the block %s is not base64", quote(label))
		}
		if block.Headers["DEK-Info"] != "" || strings.Contains(block.Headers["Proc-Type"], "ENCRYPTED") {
			Wipe(block.Bytes)
			return 0, "", nil, errEncrypted()
		}
		return end, label, block.Bytes, nil
	}
}

func errEncrypted() error {
	return Errorf(StatusNotSupported, "the private key is encrypted").
		WithHint("decrypt it on the way in: openssl pkey -in key.pem > import")
}

// keyLabel says whether a PEM block of that label is a key, with an error for those that cannot be read.
func keyLabel(label string) (bool, error) {
	switch label {
	case "PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "PUBLIC KEY", "RSA PUBLIC KEY", tss2Label:
		return true, nil
	case "ENCRYPTED PRIVATE KEY":
		return false, errEncrypted()
	case "OPENSSH PRIVATE KEY":
		return false, Errorf(StatusNotSupported, "a private key in OpenSSH's own format").
			WithHint("convert it first: ssh-keygen -p -m PKCS8 -f FILE")
	}
	if strings.HasSuffix(label, "PRIVATE KEY") || strings.HasSuffix(label, "PUBLIC KEY") {
		return false, Errorf(StatusNotSupported, "a PEM block %s; allowed: PRIVATE KEY, EC PRIVATE KEY, RSA PRIVATE KEY, PUBLIC KEY, RSA PUBLIC KEY", quote(label))
	}
	return false, nil
}

// lineWith is where the first line at or after from starts that begins with prefix, or -1.
func lineWith(b []byte, from int, prefix string) int {
	for {
		i := bytes.Index(b[from:], []byte(prefix))
		if i < 0 {
			return -1
		}
		i += from
		if i == 0 || b[i-1] == '\n' {
			return i
		}
		from = i + 1
	}
}

// lineAt is the line that starts at i, without its newline, and whether the newline is there.
func lineAt(b []byte, i int) ([]byte, bool) {
	line, _, whole := bytes.Cut(b[i:], []byte("\n"))
	return line, whole
}

// isText says whether b could be text around PEM; its last character may be cut short.
func isText(b []byte) bool {
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			return !utf8.FullRune(b)
		}
		if r < ' ' && !strings.ContainsRune("\t\n\v\f\r", r) || r == 0x7f {
			return false
		}
		b = b[n:]
	}
	return true
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

// parseKey reads a key in any of the structures and writes it anew; a has its type, size and default policy.
func parseKey(der []byte) (*Material, Attributes, error) {
	var key any
	var err error
	format := FormatPKCS8
	switch structureOf(der) {
	case pkcs8Private:
		key, err = x509.ParsePKCS8PrivateKey(der)
	case sec1Private:
		key, err = x509.ParseECPrivateKey(der)
	case pkcs1Private:
		key, err = x509.ParsePKCS1PrivateKey(der)
	case spkiPublic:
		format = FormatSPKI
		key, err = x509.ParsePKIXPublicKey(der)
	case pkcs1Public:
		format = FormatSPKI
		key, err = x509.ParsePKCS1PublicKey(der)
	case encryptedPrivate:
		return nil, Attributes{}, errEncrypted()
	case certificate:
		return nil, Attributes{}, Errorf(StatusInvalidArgument, "a certificate, not a key").
			WithHint("its public key alone: openssl x509 -pubkey -noout -in cert.pem")
	default:
		return nil, Attributes{}, errNoKey()
	}
	if err != nil {
		if raw, e := ParseRawKey(der); e == nil {
			return rawMaterial(raw)
		}
		return nil, Attributes{}, parseError(format, err)
	}
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
func parseError(format MaterialFormat, err error) error {
	what := privacy(format)
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
