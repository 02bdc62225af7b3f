package psa

import (
	"slices"
	"strconv"
	"strings"
)

// The modes that follow "aes-BITS-".
var aesModes = []struct {
	name string
	alg  Algorithm
}{
	{"gcm", GCM},
	{"ccm", CCM},
	{"ctr", CTR},
	{"cbc", CBCNoPadding},
	{"cbc-pkcs7", CBCPKCS7},
	{"cfb", CFB},
	{"ofb", OFB},
	{"ecb", ECBNoPadding},
	{"xts", XTS},
	{"cmac", CMAC},
}

// The templates that have no parts.
var plainTemplates = []struct {
	name string
	a    Attributes
}{
	{"ed25519", Attributes{Type: ECCKeyPair(TwistedEdwards), Bits: 255, Algorithm: PureEdDSA}},
	{"ed448", Attributes{Type: ECCKeyPair(TwistedEdwards), Bits: 448, Algorithm: PureEdDSA}},
	{"x25519", Attributes{Type: ECCKeyPair(Montgomery), Bits: 255, Algorithm: ECDH}},
	{"x448", Attributes{Type: ECCKeyPair(Montgomery), Bits: 448, Algorithm: ECDH}},
	{"chacha20-poly1305", Attributes{Type: KeyTypeChaCha20, Bits: 256, Algorithm: ChaCha20Poly1305}},
	{"ml-dsa-44", Attributes{Type: KeyTypeMLDSAKeyPair, Bits: 128, Algorithm: MLDSA}},
	{"ml-dsa-65", Attributes{Type: KeyTypeMLDSAKeyPair, Bits: 192, Algorithm: MLDSA}},
	{"ml-dsa-87", Attributes{Type: KeyTypeMLDSAKeyPair, Bits: 256, Algorithm: MLDSA}},
	{"ml-kem-768", Attributes{Type: KeyTypeMLKEMKeyPair, Bits: 768, Algorithm: MLKEM}},
	{"ml-kem-1024", Attributes{Type: KeyTypeMLKEMKeyPair, Bits: 1024, Algorithm: MLKEM}},
	{"slh-dsa-sha2-128s", Attributes{Type: SLHDSAKeyPair(SLHDSASHA2S), Bits: 128, Algorithm: SLHDSA}},
	{"slh-dsa-sha2-192s", Attributes{Type: SLHDSAKeyPair(SLHDSASHA2S), Bits: 192, Algorithm: SLHDSA}},
	{"slh-dsa-sha2-256s", Attributes{Type: SLHDSAKeyPair(SLHDSASHA2S), Bits: 256, Algorithm: SLHDSA}},
	{"slh-dsa-sha2-128f", Attributes{Type: SLHDSAKeyPair(SLHDSASHA2F), Bits: 128, Algorithm: SLHDSA}},
	{"slh-dsa-sha2-192f", Attributes{Type: SLHDSAKeyPair(SLHDSASHA2F), Bits: 192, Algorithm: SLHDSA}},
	{"slh-dsa-sha2-256f", Attributes{Type: SLHDSAKeyPair(SLHDSASHA2F), Bits: 256, Algorithm: SLHDSA}},
	{"slh-dsa-shake-128s", Attributes{Type: SLHDSAKeyPair(SLHDSASHAKES), Bits: 128, Algorithm: SLHDSA}},
	{"slh-dsa-shake-192s", Attributes{Type: SLHDSAKeyPair(SLHDSASHAKES), Bits: 192, Algorithm: SLHDSA}},
	{"slh-dsa-shake-256s", Attributes{Type: SLHDSAKeyPair(SLHDSASHAKES), Bits: 256, Algorithm: SLHDSA}},
	{"slh-dsa-shake-128f", Attributes{Type: SLHDSAKeyPair(SLHDSASHAKEF), Bits: 128, Algorithm: SLHDSA}},
	{"slh-dsa-shake-192f", Attributes{Type: SLHDSAKeyPair(SLHDSASHAKEF), Bits: 192, Algorithm: SLHDSA}},
	{"slh-dsa-shake-256f", Attributes{Type: SLHDSAKeyPair(SLHDSASHAKEF), Bits: 256, Algorithm: SLHDSA}},
}

// anyName stands for AnyHash in a template.
const anyName = "any"

// ParseTemplate reads one template, the first word of a line of capabilities: "ecdsa-p256-sha256". Its usage is all that the algorithm
// can do, sign and verify messages and hashes, encrypt and decrypt, or derive, and never EXPORT. "aes-BITS-xts" names the cipher as
// everybody does, so that its key has twice the bits. Errors are StatusInvalidArgument where s is no template, and else those of
// Attributes.Validate.
func ParseTemplate(s string) (Attributes, error) {
	a, err := parseTemplate(s)
	if err != nil {
		return Attributes{}, err
	}
	a.Usage = a.defaultUsage()
	if err := a.Validate(); err != nil {
		return Attributes{}, Errorf(StatusOf(err), "template %s: %w", quote(s), err)
	}
	return a, nil
}

func parseTemplate(s string) (Attributes, error) {
	// "-tag12" shortens a MAC, or an AEAD's tag, to so many bytes
	if full, tag, ok := strings.Cut(s, "-tag"); ok {
		a, err := parseTemplate(full)
		n, ok := templateBits(tag)
		if err == nil && (!ok || !a.Algorithm.IsMAC() && !a.Algorithm.IsAEAD() || n >= a.SignatureLength()+a.Algorithm.TagLength()) {
			err = templateError(s, "the tag cannot have "+quote(tag)+" bytes",
				[]string{"aes-BITS-gcm-tagBYTES", "aes-BITS-ccm-tagBYTES", "hmac-HASH-tagBYTES", "aes-BITS-cmac-tagBYTES"})
		}
		a.Algorithm = AEADWithShortenedTag(a.Algorithm, n)
		return a, err
	}
	for _, p := range plainTemplates {
		if p.name == s {
			return p.a, nil
		}
	}
	kind, rest, _ := strings.Cut(s, "-")
	if kind == "deterministic" {
		var ec bool
		if rest, ec = strings.CutPrefix(rest, "ecdsa-"); ec {
			kind = "deterministic-ecdsa"
		}
	}
	switch kind {
	case "rsa":
		return rsaTemplate(s, rest)
	case "ecdsa":
		return ecdsaTemplate(s, rest, ECDSA)
	case "deterministic-ecdsa":
		return ecdsaTemplate(s, rest, DeterministicECDSA)
	case "ecdh":
		name, kdf, _ := strings.Cut(rest, "-")
		c, err := curveNamed(s, name)
		if err != nil {
			return Attributes{}, err
		}
		return agreementTemplate(s, Attributes{Type: ECCKeyPair(c.family), Bits: c.bits}, kdf)
	case "x25519":
		return agreementTemplate(s, Attributes{Type: ECCKeyPair(Montgomery), Bits: 255}, rest)
	case "x448":
		return agreementTemplate(s, Attributes{Type: ECCKeyPair(Montgomery), Bits: 448}, rest)
	case "aes":
		return aesTemplate(s, rest)
	case "hmac":
		h, err := hashNamed(s, rest, false)
		return Attributes{Type: KeyTypeHMAC, Bits: 8 * h.HashLength(), Algorithm: HMAC(h)}, err
	}
	if kdf, ok, err := derivationNamed(s); ok {
		return Attributes{Type: KeyTypeDerive, Bits: 8 * kdf.HashLength(), Algorithm: kdf}, err
	}
	forms := []string{"rsa-BITS-pkcs1v15-HASH", "rsa-BITS-pss-HASH", "rsa-BITS-pkcs1v15-crypt", "rsa-BITS-oaep-HASH",
		"ecdsa-CURVE-HASH", "deterministic-ecdsa-CURVE-HASH", "ecdh-CURVE", "ecdh-CURVE-hkdf-HASH", "ecdh-CURVE-tls12-prf-HASH",
		"x25519-hkdf-HASH", "hkdf-HASH", "tls12-prf-HASH", "aes-BITS-MODE", "hmac-HASH"}
	for _, p := range plainTemplates {
		forms = append(forms, p.name)
	}
	return Attributes{}, templateError(s, "no template begins like this", forms)
}

func templateError(s, what string, allowed []string) error {
	return Errorf(StatusInvalidArgument, "%w", &UnknownTemplate{s, what, allowed}).
		WithHint("see the provider's templates file")
}

func rsaTemplate(s, rest string) (Attributes, error) {
	number, scheme, _ := strings.Cut(rest, "-")
	bits, ok := templateBits(number)
	if !ok {
		return Attributes{}, templateError(s, "the size "+quote(number)+" is not a number of bits", []string{"2048", "3072", "4096"})
	}
	a := Attributes{Type: KeyTypeRSAKeyPair, Bits: bits}
	if scheme == "pkcs1v15-crypt" {
		a.Algorithm = RSAPKCS1v15Crypt
		return a, nil
	}
	padding, hash, _ := strings.Cut(scheme, "-")
	var with func(Algorithm) Algorithm
	switch padding {
	case "pkcs1v15":
		with = RSAPKCS1v15Sign
	case "pss":
		with = RSAPSS
	case "oaep":
		with = RSAOAEP
	default:
		return Attributes{}, templateError(s, "unknown scheme "+quote(scheme),
			[]string{"pkcs1v15-HASH", "pss-HASH", "pkcs1v15-crypt", "oaep-HASH"})
	}
	h, err := hashNamed(s, hash, padding != "oaep")
	a.Algorithm = with(h)
	return a, err
}

func ecdsaTemplate(s, rest string, with func(Algorithm) Algorithm) (Attributes, error) {
	name, hash, _ := strings.Cut(rest, "-")
	c, err := curveNamed(s, name)
	if err != nil {
		return Attributes{}, err
	}
	h, err := hashNamed(s, hash, true)
	return Attributes{Type: ECCKeyPair(c.family), Bits: c.bits, Algorithm: with(h)}, err
}

// agreementTemplate reads what follows a curve: nothing, or the key derivation.
func agreementTemplate(s string, a Attributes, kdf string) (Attributes, error) {
	if a.Algorithm = ECDH; kdf == "" {
		return a, nil
	}
	with, ok, err := derivationNamed(kdf)
	if !ok {
		err = templateError(s, "unknown key derivation "+quote(kdf), []string{"hkdf-HASH", "tls12-prf-HASH"})
	}
	a.Algorithm = KeyAgreement(ECDH, with)
	return a, err
}

func aesTemplate(s, rest string) (Attributes, error) {
	number, mode, _ := strings.Cut(rest, "-")
	bits, ok := templateBits(number)
	if sizes := KeyTypeAES.sizes(); !ok || !slices.Contains(sizes, bits) {
		return Attributes{}, templateError(s, "no AES key has "+quote(number)+" bits", strings.Split(join(sizes), ", "))
	}
	a := Attributes{Type: KeyTypeAES, Bits: bits}
	allowed := make([]string, 0, len(aesModes))
	for _, m := range aesModes {
		if m.name == mode {
			if m.alg == XTS {
				a.Bits *= 2
			}
			a.Algorithm = m.alg
			return a, nil
		}
		allowed = append(allowed, m.name)
	}
	return Attributes{}, templateError(s, "unknown mode "+quote(mode), allowed)
}

// templateBits reads a size; only its one spelling, so that a template has one.
func templateBits(s string) (int, bool) {
	n, err := strconv.Atoi(s)
	return n, err == nil && n > 0 && strconv.Itoa(n) == s
}

func curveNamed(s, name string) (curve, error) {
	var allowed []string
	for _, c := range curves {
		if !c.family.weierstrass() {
			continue
		}
		if c.name == name {
			return c, nil
		}
		allowed = append(allowed, c.name)
	}
	return curve{}, templateError(s, "unknown curve "+quote(name), allowed)
}

func hashNamed(s, name string, anyToo bool) (Algorithm, error) {
	var allowed []string
	for _, h := range hashes {
		if h.short == "" {
			continue
		}
		if h.short == name {
			return h.alg, nil
		}
		allowed = append(allowed, h.short)
	}
	if anyToo {
		if name == anyName {
			return AnyHash, nil
		}
		allowed = append(allowed, anyName)
	}
	return AlgNone, templateError(s, "unknown hash "+quote(name), allowed)
}

func hashName(h Algorithm) string {
	if h == AnyHash {
		return anyName
	}
	for _, n := range hashes {
		if n.alg == h {
			return n.short
		}
	}
	return ""
}

// Template is the template that gives these type, size and algorithm, or "" if there is none. A public key has its
// pair's. Usage plays no part.
func (a Attributes) Template() string {
	pair := a
	pair.Type, pair.Usage, pair.PCRs = a.Type.KeyPair(), 0, 0
	for _, p := range plainTemplates {
		if p.a == pair {
			return p.name
		}
	}
	s := pair.spell()
	if back, err := parseTemplate(s); err != nil || back != pair {
		return ""
	}
	return s
}

// spell is the only template that could stand for a.
func (a Attributes) spell() string {
	if full := a.Algorithm.fullLength(); full != a.Algorithm && !a.Algorithm.IsWildcard() {
		length := a.Algorithm.MACLength() + a.Algorithm.TagLength()
		a.Algorithm = full
		return a.spell() + "-tag" + strconv.Itoa(length)
	}
	bits := strconv.Itoa(a.Bits)
	hash := hashName(a.Algorithm.Hash())
	switch alg := a.Algorithm; {
	case alg.IsRSAPKCS1v15Sign():
		return "rsa-" + bits + "-pkcs1v15-" + hash
	case alg == RSAPSS(alg.Hash()):
		return "rsa-" + bits + "-pss-" + hash
	case alg.IsRSAOAEP():
		return "rsa-" + bits + "-oaep-" + hash
	case alg == RSAPKCS1v15Crypt:
		return "rsa-" + bits + "-pkcs1v15-crypt"
	case alg == DeterministicECDSA(alg.Hash()):
		return "deterministic-ecdsa-" + a.CurveName() + "-" + hash
	case alg.IsECDSA():
		return "ecdsa-" + a.CurveName() + "-" + hash
	case alg.Raw() == ECDH:
		s := "ecdh-" + a.CurveName()
		if a.Type.Family() == Montgomery {
			s = a.CurveName()
		}
		if kdf := alg.Derivation(); kdf != AlgNone {
			s += "-" + derivationName(kdf)
		}
		return s
	case alg.IsHMAC():
		return "hmac-" + hash
	case alg.IsKeyDerivation():
		return derivationName(alg)
	case alg == XTS:
		bits = strconv.Itoa(a.Bits / 2)
	}
	for _, m := range aesModes {
		if m.alg == a.Algorithm {
			return "aes-" + bits + "-" + m.name
		}
	}
	return ""
}

// DefaultTemplate is what a bare imported key of this type and size gets: rsa-N-pkcs1v15-sha256,
// ecdsa-CURVE with the curve's own hash, ed25519 or x25519, and the post-quantum ones. A public key type stays one,
// with the usage that it can serve. Other types have none: StatusInvalidArgument.
func DefaultTemplate(t KeyType, bits int) (Attributes, error) {
	a := Attributes{Type: t, Bits: bits}
	switch f := t.Family(); {
	case t.IsRSA():
		a.Algorithm = RSAPKCS1v15Sign(SHA256)
	case f.weierstrass():
		a.Algorithm = ECDSA(a.ownHash())
	case f == TwistedEdwards:
		a.Algorithm = PureEdDSA
	case f == Montgomery:
		a.Algorithm = ECDH
	case t.PublicKey() == KeyTypeMLDSAPublicKey:
		a.Algorithm = MLDSA
	case t.PublicKey() == KeyTypeMLKEMPublicKey:
		a.Algorithm = MLKEM
	case t.IsSLHDSA():
		a.Algorithm = SLHDSA
	default:
		return Attributes{}, Errorf(StatusInvalidArgument, "a %s key has no default algorithm", t).
			WithHint("write a template into attributes before the import")
	}
	a.Usage = a.defaultUsage()
	return a, a.Validate()
}
