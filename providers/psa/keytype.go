package psa

import (
	"fmt"
	"slices"
	"strings"
)

// KeyType is a psa_key_type_t.
type KeyType uint16

// The key types that stand by themselves (PSA Crypto API 1.2, "Key types"; ML-KEM and ML-DSA: PQC extension).
const (
	KeyTypeNone           KeyType = 0x0000
	KeyTypeRawData        KeyType = 0x1001
	KeyTypeHMAC           KeyType = 0x1100
	KeyTypeDerive         KeyType = 0x1200
	KeyTypePassword       KeyType = 0x1203
	KeyTypePasswordHash   KeyType = 0x1205
	KeyTypePepper         KeyType = 0x1206
	KeyTypeARC4           KeyType = 0x2002
	KeyTypeChaCha20       KeyType = 0x2004
	KeyTypeXChaCha20      KeyType = 0x2007
	KeyTypeDES            KeyType = 0x2301
	KeyTypeAES            KeyType = 0x2400
	KeyTypeCamellia       KeyType = 0x2403
	KeyTypeSM4            KeyType = 0x2405
	KeyTypeARIA           KeyType = 0x2406
	KeyTypeRSAPublicKey   KeyType = 0x4001
	KeyTypeRSAKeyPair     KeyType = 0x7001
	KeyTypeMLDSAPublicKey KeyType = 0x4002
	KeyTypeMLDSAKeyPair   KeyType = 0x7002
	KeyTypeMLKEMPublicKey KeyType = 0x4004
	KeyTypeMLKEMKeyPair   KeyType = 0x7004

	eccPublicKey    KeyType = 0x4100
	dhPublicKey     KeyType = 0x4200
	slhdsaPublicKey KeyType = 0x4180

	keyPairFlag  KeyType = 0x3000 // what a key pair's type has beyond its public key's
	categoryMask KeyType = 0x7000
	familyMask   KeyType = 0x00ff
	slhdsaMask   KeyType = 0x007f
)

// ECCFamily is a psa_ecc_family_t.
type ECCFamily uint8

// The families of elliptic curves (PSA Crypto API 1.2, "Elliptic curve families").
const (
	SECPR1         ECCFamily = 0x12
	SECPK1         ECCFamily = 0x17
	SECPR2         ECCFamily = 0x1b
	SECTR1         ECCFamily = 0x22
	SECTK1         ECCFamily = 0x27
	SECTR2         ECCFamily = 0x2b
	BrainpoolPR1   ECCFamily = 0x30
	FRP            ECCFamily = 0x33
	Montgomery     ECCFamily = 0x41
	TwistedEdwards ECCFamily = 0x42
)

// DHFamily is a psa_dh_family_t.
type DHFamily uint8

// The families of finite-field groups.
const (
	RFC7919 DHFamily = 0x03
	RFC3526 DHFamily = 0x05
)

// SLHDSAFamily is a psa_slh_dsa_family_t (PQC extension).
type SLHDSAFamily uint8

// The SLH-DSA parameter sets: hash, and small signatures or fast signing.
const (
	SLHDSASHA2S  SLHDSAFamily = 0x02
	SLHDSASHA2F  SLHDSAFamily = 0x04
	SLHDSASHAKES SLHDSAFamily = 0x0b
	SLHDSASHAKEF SLHDSAFamily = 0x0d
)

// ECCKeyPair is PSA_KEY_TYPE_ECC_KEY_PAIR(f).
func ECCKeyPair(f ECCFamily) KeyType { return ECCPublicKey(f) | keyPairFlag }

// ECCPublicKey is PSA_KEY_TYPE_ECC_PUBLIC_KEY(f).
func ECCPublicKey(f ECCFamily) KeyType { return eccPublicKey | KeyType(f) }

// DHKeyPair is PSA_KEY_TYPE_DH_KEY_PAIR(f).
func DHKeyPair(f DHFamily) KeyType { return DHPublicKey(f) | keyPairFlag }

// DHPublicKey is PSA_KEY_TYPE_DH_PUBLIC_KEY(f).
func DHPublicKey(f DHFamily) KeyType { return dhPublicKey | KeyType(f) }

// SLHDSAKeyPair is PSA_KEY_TYPE_SLH_DSA_KEY_PAIR(f).
func SLHDSAKeyPair(f SLHDSAFamily) KeyType { return SLHDSAPublicKey(f) | keyPairFlag }

// SLHDSAPublicKey is PSA_KEY_TYPE_SLH_DSA_PUBLIC_KEY(f).
func SLHDSAPublicKey(f SLHDSAFamily) KeyType { return slhdsaPublicKey | KeyType(f) }

// IsPublicKey says whether t is a public key alone.
func (t KeyType) IsPublicKey() bool { return t&categoryMask == 0x4000 }

// IsKeyPair says whether t is a key pair.
func (t KeyType) IsKeyPair() bool { return t&categoryMask == 0x7000 }

// IsAsymmetric says whether t is a key pair or a public key.
func (t KeyType) IsAsymmetric() bool { return t.IsPublicKey() || t.IsKeyPair() }

// IsRSA says whether t is an RSA key, public or a pair.
func (t KeyType) IsRSA() bool { return t.PublicKey() == KeyTypeRSAPublicKey }

// IsECC says whether t is an elliptic-curve key, public or a pair.
func (t KeyType) IsECC() bool {
	return t.IsAsymmetric() && !t.IsSLHDSA() && t.PublicKey()&^familyMask == eccPublicKey
}

func (t KeyType) isDH() bool { return t.IsAsymmetric() && t.PublicKey()&^familyMask == dhPublicKey }

// SLH-DSA shares ECC's base; its families have the top bit of the low byte.
func (t KeyType) IsSLHDSA() bool {
	return t.IsAsymmetric() && t.PublicKey()&^slhdsaMask == slhdsaPublicKey
}

// isBlockCipher says whether t is a key of a block cipher of 16-byte blocks.
func (t KeyType) isBlockCipher() bool {
	return t == KeyTypeAES || t == KeyTypeARIA || t == KeyTypeCamellia || t == KeyTypeSM4
}

// Family is the curve family of an elliptic-curve key, 0 for others.
func (t KeyType) Family() ECCFamily {
	if !t.IsECC() {
		return 0
	}
	return ECCFamily(t & familyMask)
}

// PublicKey is PSA_KEY_TYPE_PUBLIC_KEY_OF_KEY_PAIR(t): t itself where t is no key pair.
func (t KeyType) PublicKey() KeyType {
	if t.IsKeyPair() {
		return t &^ keyPairFlag
	}
	return t
}

// KeyPair is PSA_KEY_TYPE_KEY_PAIR_OF_PUBLIC_KEY(t): t itself where t is no public key.
func (t KeyType) KeyPair() KeyType {
	if t.IsPublicKey() {
		return t | keyPairFlag
	}
	return t
}

var keyTypeNames = []struct {
	t    KeyType
	name string
}{
	{KeyTypeNone, "PSA_KEY_TYPE_NONE"},
	{KeyTypeRawData, "PSA_KEY_TYPE_RAW_DATA"},
	{KeyTypeHMAC, "PSA_KEY_TYPE_HMAC"},
	{KeyTypeDerive, "PSA_KEY_TYPE_DERIVE"},
	{KeyTypePassword, "PSA_KEY_TYPE_PASSWORD"},
	{KeyTypePasswordHash, "PSA_KEY_TYPE_PASSWORD_HASH"},
	{KeyTypePepper, "PSA_KEY_TYPE_PEPPER"},
	{KeyTypeARC4, "PSA_KEY_TYPE_ARC4"},
	{KeyTypeChaCha20, "PSA_KEY_TYPE_CHACHA20"},
	{KeyTypeXChaCha20, "PSA_KEY_TYPE_XCHACHA20"},
	{KeyTypeDES, "PSA_KEY_TYPE_DES"},
	{KeyTypeAES, "PSA_KEY_TYPE_AES"},
	{KeyTypeCamellia, "PSA_KEY_TYPE_CAMELLIA"},
	{KeyTypeSM4, "PSA_KEY_TYPE_SM4"},
	{KeyTypeARIA, "PSA_KEY_TYPE_ARIA"},
	{KeyTypeRSAKeyPair, "PSA_KEY_TYPE_RSA_KEY_PAIR"},
	{KeyTypeRSAPublicKey, "PSA_KEY_TYPE_RSA_PUBLIC_KEY"},
	{KeyTypeMLDSAKeyPair, "PSA_KEY_TYPE_ML_DSA_KEY_PAIR"},
	{KeyTypeMLDSAPublicKey, "PSA_KEY_TYPE_ML_DSA_PUBLIC_KEY"},
	{KeyTypeMLKEMKeyPair, "PSA_KEY_TYPE_ML_KEM_KEY_PAIR"},
	{KeyTypeMLKEMPublicKey, "PSA_KEY_TYPE_ML_KEM_PUBLIC_KEY"},
}

// families are the arguments of the key types that take one.
var families = []struct {
	of     KeyType // the public key's base
	family KeyType
	name   string
}{
	{eccPublicKey, KeyType(SECPR1), "PSA_ECC_FAMILY_SECP_R1"},
	{eccPublicKey, KeyType(SECPK1), "PSA_ECC_FAMILY_SECP_K1"},
	{eccPublicKey, KeyType(SECPR2), "PSA_ECC_FAMILY_SECP_R2"},
	{eccPublicKey, KeyType(SECTR1), "PSA_ECC_FAMILY_SECT_R1"},
	{eccPublicKey, KeyType(SECTK1), "PSA_ECC_FAMILY_SECT_K1"},
	{eccPublicKey, KeyType(SECTR2), "PSA_ECC_FAMILY_SECT_R2"},
	{eccPublicKey, KeyType(BrainpoolPR1), "PSA_ECC_FAMILY_BRAINPOOL_P_R1"},
	{eccPublicKey, KeyType(FRP), "PSA_ECC_FAMILY_FRP"},
	{eccPublicKey, KeyType(Montgomery), "PSA_ECC_FAMILY_MONTGOMERY"},
	{eccPublicKey, KeyType(TwistedEdwards), "PSA_ECC_FAMILY_TWISTED_EDWARDS"},
	{dhPublicKey, KeyType(RFC7919), "PSA_DH_FAMILY_RFC7919"},
	{dhPublicKey, KeyType(RFC3526), "PSA_DH_FAMILY_RFC3526"},
	{slhdsaPublicKey, KeyType(SLHDSASHA2S), "PSA_SLH_DSA_FAMILY_SHA2_S"},
	{slhdsaPublicKey, KeyType(SLHDSASHA2F), "PSA_SLH_DSA_FAMILY_SHA2_F"},
	{slhdsaPublicKey, KeyType(SLHDSASHAKES), "PSA_SLH_DSA_FAMILY_SHAKE_S"},
	{slhdsaPublicKey, KeyType(SLHDSASHAKEF), "PSA_SLH_DSA_FAMILY_SHAKE_F"},
}

var familyTypes = []struct {
	name string
	base KeyType
}{
	{"PSA_KEY_TYPE_ECC_KEY_PAIR", eccPublicKey | keyPairFlag},
	{"PSA_KEY_TYPE_ECC_PUBLIC_KEY", eccPublicKey},
	{"PSA_KEY_TYPE_DH_KEY_PAIR", dhPublicKey | keyPairFlag},
	{"PSA_KEY_TYPE_DH_PUBLIC_KEY", dhPublicKey},
	{"PSA_KEY_TYPE_SLH_DSA_KEY_PAIR", slhdsaPublicKey | keyPairFlag},
	{"PSA_KEY_TYPE_SLH_DSA_PUBLIC_KEY", slhdsaPublicKey},
}

// String is the family in PSA notation.
func (f ECCFamily) String() string {
	for _, n := range families {
		if n.of == eccPublicKey && n.family == KeyType(f) {
			return n.name
		}
	}
	return fmt.Sprintf("0x%02x", uint8(f))
}

// String is the type in PSA notation, "PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1)"; a number that PSA has no
// name for is hexadecimal.
func (t KeyType) String() string {
	for _, n := range keyTypeNames {
		if n.t == t {
			return n.name
		}
	}
	for _, ft := range familyTypes {
		for _, f := range families {
			if f.of == ft.base.PublicKey() && ft.base|f.family == t {
				return ft.name + "(" + f.name + ")"
			}
		}
	}
	return fmt.Sprintf("0x%04x", uint16(t))
}

// ParseKeyType reads a key type in PSA notation. Errors are StatusInvalidArgument.
func ParseKeyType(s string) (KeyType, error) {
	e, err := parseNotation(s)
	if err != nil {
		return KeyTypeNone, Errorf(StatusInvalidArgument, "key type %s: %w", quote(s), err)
	}
	if len(e.args) == 0 {
		for _, n := range keyTypeNames {
			if n.name == e.name && !e.call {
				return n.t, nil
			}
		}
	}
	for _, ft := range familyTypes {
		if ft.name != e.name {
			continue
		}
		var allowed []string
		for _, f := range families {
			if f.of != ft.base.PublicKey() {
				continue
			}
			if len(e.args) == 1 && e.args[0].name == f.name && !e.args[0].call {
				return ft.base | f.family, nil
			}
			allowed = append(allowed, f.name)
		}
		return KeyTypeNone, Errorf(StatusInvalidArgument, "key type %s: %s needs one of %s", quote(s), ft.name, strings.Join(allowed, ", "))
	}
	var allowed []string
	for _, n := range keyTypeNames {
		allowed = append(allowed, n.name)
	}
	for _, ft := range familyTypes {
		allowed = append(allowed, ft.name+"(FAMILY)")
	}
	slices.Sort(allowed)
	return KeyTypeNone, Errorf(StatusInvalidArgument, "unknown key type %s; allowed: %s", quote(s), strings.Join(allowed, ", "))
}
