package psa

import (
	"crypto"
	"errors"
	"fmt"
	"slices"
	"strings"

	// So that CryptoHash's hashes are there.
	_ "crypto/sha256"
	_ "crypto/sha3"
	_ "crypto/sha512"
)

// Algorithm is a psa_algorithm_t.
type Algorithm uint32

// The algorithms that stand by themselves (PSA Crypto API 1.2, "Algorithm reference"; PQC extension).
const (
	AlgNone Algorithm = 0

	MD2         Algorithm = 0x02000001
	MD4         Algorithm = 0x02000002
	MD5         Algorithm = 0x02000003
	RIPEMD160   Algorithm = 0x02000004
	SHA1        Algorithm = 0x02000005
	SHA224      Algorithm = 0x02000008
	SHA256      Algorithm = 0x02000009
	SHA384      Algorithm = 0x0200000a
	SHA512      Algorithm = 0x0200000b
	SHA512_224  Algorithm = 0x0200000c
	SHA512_256  Algorithm = 0x0200000d
	SHA3_224    Algorithm = 0x02000010
	SHA3_256    Algorithm = 0x02000011
	SHA3_384    Algorithm = 0x02000012
	SHA3_512    Algorithm = 0x02000013
	SM3         Algorithm = 0x02000014
	SHAKE256512 Algorithm = 0x02000015
	// AnyHash stands for the hash in a policy of a hash-and-sign algorithm.
	AnyHash Algorithm = 0x020000ff

	CBCMAC Algorithm = 0x03c00100
	CMAC   Algorithm = 0x03c00200

	StreamCipher Algorithm = 0x04800100
	CTR          Algorithm = 0x04c01000
	CFB          Algorithm = 0x04c01100
	OFB          Algorithm = 0x04c01200
	CCMStarNoTag Algorithm = 0x04c01300
	XTS          Algorithm = 0x0440ff00
	ECBNoPadding Algorithm = 0x04404400
	CBCNoPadding Algorithm = 0x04404000
	CBCPKCS7     Algorithm = 0x04404100

	CCM               Algorithm = 0x05500100
	GCM               Algorithm = 0x05500200
	ChaCha20Poly1305  Algorithm = 0x05100500
	XChaCha20Poly1305 Algorithm = 0x05100600

	RSAPKCS1v15SignRaw   Algorithm = 0x06000200
	ECDSAAny             Algorithm = 0x06000600
	PureEdDSA            Algorithm = 0x06000800
	Ed25519ph            Algorithm = 0x0600090b
	Ed448ph              Algorithm = 0x06000915
	EdDSACtx             Algorithm = 0x06000a00
	SLHDSA               Algorithm = 0x06004000
	DeterministicSLHDSA  Algorithm = 0x06004100
	MLDSA                Algorithm = 0x06004400
	DeterministicMLDSA   Algorithm = 0x06004500
	RSAPKCS1v15Crypt     Algorithm = 0x07000200
	PBKDF2AESCMACPRF128  Algorithm = 0x08800200
	TLS12ECJPAKEToPMS    Algorithm = 0x08000609
	FFDH                 Algorithm = 0x09010000
	ECDH                 Algorithm = 0x09020000
	MLKEM                Algorithm = 0x0c000200
	hashCategory         Algorithm = 0x02000000
	macCategory          Algorithm = 0x03000000
	cipherCategory       Algorithm = 0x04000000
	aeadCategory         Algorithm = 0x05000000
	signCategory         Algorithm = 0x06000000
	asymmetricEncryption Algorithm = 0x07000000
	derivationCategory   Algorithm = 0x08000000
	agreementCategory    Algorithm = 0x09000000
	categoryBits         Algorithm = 0x7f000000

	hashBits Algorithm = 0x000000ff

	hmacBase           Algorithm = 0x03800000
	rsaPKCS1v15Base    Algorithm = 0x06000200
	rsaPSSBase         Algorithm = 0x06000300
	rsaPSSAnySaltBase  Algorithm = 0x06001300
	ecdsaBase          Algorithm = 0x06000600
	deterministicBase  Algorithm = 0x06000700
	hashSLHDSABase     Algorithm = 0x06004200
	detHashSLHDSABase  Algorithm = 0x06004300
	hashMLDSABase      Algorithm = 0x06004600
	detHashMLDSABase   Algorithm = 0x06004700
	rsaOAEPBase        Algorithm = 0x07000300
	hkdfBase           Algorithm = 0x08000100
	hkdfExtractBase    Algorithm = 0x08000400
	hkdfExpandBase     Algorithm = 0x08000500
	tls12PRFBase       Algorithm = 0x08000200
	tls12PSKToMSBase   Algorithm = 0x08000300
	pbkdf2HMACBase     Algorithm = 0x08800100
	agreementBits      Algorithm = 0xffff0000 // of a key agreement: which one
	derivationBits     Algorithm = 0xfe00ffff // of a key agreement: what its secret goes into
	lengthBits         Algorithm = 0x003f0000 // MAC or tag length
	lengthShift                  = 16
	atLeastThisLength  Algorithm = 0x00008000
	maxTruncatedLength           = 63
)

// RSAPKCS1v15Sign is PSA_ALG_RSA_PKCS1V15_SIGN(h).
func RSAPKCS1v15Sign(h Algorithm) Algorithm { return rsaPKCS1v15Base | h&hashBits }

// RSAPSS is PSA_ALG_RSA_PSS(h): the salt is as long as the hash.
func RSAPSS(h Algorithm) Algorithm { return rsaPSSBase | h&hashBits }

// RSAPSSAnySalt is PSA_ALG_RSA_PSS_ANY_SALT(h): as RSAPSS, and verifies a salt of any length.
func RSAPSSAnySalt(h Algorithm) Algorithm { return rsaPSSAnySaltBase | h&hashBits }

// RSAOAEP is PSA_ALG_RSA_OAEP(h).
func RSAOAEP(h Algorithm) Algorithm { return rsaOAEPBase | h&hashBits }

// ECDSA is PSA_ALG_ECDSA(h), with a random nonce.
func ECDSA(h Algorithm) Algorithm { return ecdsaBase | h&hashBits }

// DeterministicECDSA is PSA_ALG_DETERMINISTIC_ECDSA(h) (RFC 6979).
func DeterministicECDSA(h Algorithm) Algorithm { return deterministicBase | h&hashBits }

// HMAC is PSA_ALG_HMAC(h).
func HMAC(h Algorithm) Algorithm { return hmacBase | h&hashBits }

// HKDF is PSA_ALG_HKDF(h).
func HKDF(h Algorithm) Algorithm { return hkdfBase | h&hashBits }

// TLS12PRF is PSA_ALG_TLS12_PRF(h).
func TLS12PRF(h Algorithm) Algorithm { return tls12PRFBase | h&hashBits }

// KeyAgreement is PSA_ALG_KEY_AGREEMENT(ka, kdf).
func KeyAgreement(ka, kdf Algorithm) Algorithm { return ka&agreementBits | kdf&^categoryBits }

// AEADWithShortenedTag is PSA_ALG_AEAD_WITH_SHORTENED_TAG(alg, length), the length in bytes.
func AEADWithShortenedTag(alg Algorithm, length int) Algorithm {
	return alg&^(lengthBits|atLeastThisLength) | Algorithm(length)<<lengthShift&lengthBits
}

// TruncatedMAC is PSA_ALG_TRUNCATED_MAC(alg, length), the length in bytes.
func TruncatedMAC(alg Algorithm, length int) Algorithm { return AEADWithShortenedTag(alg, length) }

func (a Algorithm) category() Algorithm { return a & categoryBits }

// IsHash says whether a is a hash algorithm, AnyHash included.
func (a Algorithm) IsHash() bool { return a.category() == hashCategory }

// IsMAC says whether a is a MAC algorithm.
func (a Algorithm) IsMAC() bool { return a.category() == macCategory }

// IsHMAC says whether a is HMAC, truncated or not.
func (a Algorithm) IsHMAC() bool { return a&(categoryBits|0x00c00000) == hmacBase }

// IsCipher says whether a is an unauthenticated symmetric cipher.
func (a Algorithm) IsCipher() bool { return a.category() == cipherCategory }

// IsAEAD says whether a is authenticated encryption.
func (a Algorithm) IsAEAD() bool { return a.category() == aeadCategory }

// IsCCM says whether a is CCM, with whatever tag.
func (a Algorithm) IsCCM() bool { return a.IsAEAD() && a.fullLength() == CCM }

// IsSign says whether a is an asymmetric signature algorithm, of a message or of a hash.
func (a Algorithm) IsSign() bool { return a.category() == signCategory }

// IsAsymmetricEncryption says whether a is asymmetric encryption.
func (a Algorithm) IsAsymmetricEncryption() bool { return a.category() == asymmetricEncryption }

// IsKeyAgreement says whether a is a key agreement, raw or with a key derivation.
func (a Algorithm) IsKeyAgreement() bool { return a.category() == agreementCategory }

// IsKeyDerivation says whether a is a key derivation.
func (a Algorithm) IsKeyDerivation() bool { return a.category() == derivationCategory }

// IsRSAPKCS1v15Sign says whether a is RSA PKCS #1 v1.5 signature, with a hash or raw.
func (a Algorithm) IsRSAPKCS1v15Sign() bool { return a&^hashBits == rsaPKCS1v15Base }

// IsRSAPSS says whether a is RSA-PSS, with either rule for the salt.
func (a Algorithm) IsRSAPSS() bool {
	return a&^hashBits == rsaPSSBase || a&^hashBits == rsaPSSAnySaltBase
}

// IsRSAOAEP says whether a is RSA-OAEP.
func (a Algorithm) IsRSAOAEP() bool { return a&^hashBits == rsaOAEPBase }

// IsECDSA says whether a is ECDSA, random or deterministic.
func (a Algorithm) IsECDSA() bool {
	return a&^hashBits == ecdsaBase || a&^hashBits == deterministicBase
}

// IsHashAndSign says whether a signs a hash: it has sign_hash beside sign (PSA_ALG_IS_SIGN_HASH). With
// RSAPKCS1v15SignRaw and ECDSAAny it has sign_hash alone.
func (a Algorithm) IsHashAndSign() bool {
	if !a.IsSign() {
		return false
	}
	switch a &^ hashBits {
	case rsaPKCS1v15Base, rsaPSSBase, rsaPSSAnySaltBase, ecdsaBase, deterministicBase,
		hashSLHDSABase, detHashSLHDSABase, hashMLDSABase, detHashMLDSABase:
		return true
	}
	return a == Ed25519ph || a == Ed448ph
}

// IsWildcard says whether a stands for several algorithms, which only a policy may: AnyHash, or a least length.
func (a Algorithm) IsWildcard() bool {
	if a.IsHashAndSign() || a.IsHash() {
		return a&hashBits == AnyHash&hashBits
	}
	return (a.IsMAC() || a.IsAEAD()) && a&atLeastThisLength != 0
}

// Hash is PSA_ALG_GET_HASH: the hash that a is built on (a itself if it is one), or AlgNone.
func (a Algorithm) Hash() Algorithm {
	if a&hashBits == 0 {
		return AlgNone
	}
	return hashCategory | a&hashBits
}

// WithHash is a with h as its hash, for a policy of any hash; a itself where it has no hash.
func (a Algorithm) WithHash(h Algorithm) Algorithm {
	if a.Hash() == AlgNone {
		return a
	}
	return a&^hashBits | h&hashBits
}

var hashes = []struct {
	alg    Algorithm
	name   string // PSA's
	short  string // the template's, "" if there is none
	length int
	hash   crypto.Hash
}{
	{MD2, "PSA_ALG_MD2", "", 16, 0},
	{MD4, "PSA_ALG_MD4", "", 16, 0},
	{MD5, "PSA_ALG_MD5", "", 16, 0},
	{RIPEMD160, "PSA_ALG_RIPEMD160", "", 20, 0},
	{SHA1, "PSA_ALG_SHA_1", "", 20, 0},
	{SHA224, "PSA_ALG_SHA_224", "sha224", 28, crypto.SHA224},
	{SHA256, "PSA_ALG_SHA_256", "sha256", 32, crypto.SHA256},
	{SHA384, "PSA_ALG_SHA_384", "sha384", 48, crypto.SHA384},
	{SHA512, "PSA_ALG_SHA_512", "sha512", 64, crypto.SHA512},
	{SHA512_224, "PSA_ALG_SHA_512_224", "sha512-224", 28, crypto.SHA512_224},
	{SHA512_256, "PSA_ALG_SHA_512_256", "sha512-256", 32, crypto.SHA512_256},
	{SHA3_224, "PSA_ALG_SHA3_224", "sha3-224", 28, crypto.SHA3_224},
	{SHA3_256, "PSA_ALG_SHA3_256", "sha3-256", 32, crypto.SHA3_256},
	{SHA3_384, "PSA_ALG_SHA3_384", "sha3-384", 48, crypto.SHA3_384},
	{SHA3_512, "PSA_ALG_SHA3_512", "sha3-512", 64, crypto.SHA3_512},
	{SM3, "PSA_ALG_SM3", "", 32, 0},
	{SHAKE256512, "PSA_ALG_SHAKE256_512", "", 64, 0},
}

// HashName is a hash's name in templates and in the tree, "sha3-256"; "" if it has none.
func (a Algorithm) HashName() string {
	if !a.IsHash() || a == AnyHash {
		return ""
	}
	return hashName(a)
}

// permittedByAnyHash says whether AnyHash stands for h: SHA-2 and SHA-3.
func permittedByAnyHash(h Algorithm) bool { return h >= SHA224 && h <= SHA3_512 }

// HashLength is the digest's length in bytes of a's hash (PSA_HASH_LENGTH), 0 if it has none or any.
func (a Algorithm) HashLength() int {
	for _, h := range hashes {
		if h.alg == a.Hash() {
			return h.length
		}
	}
	return 0
}

// CryptoHash is the standard library's name of a's hash, false if it has none or any, or one that is broken or not
// in the standard library.
func (a Algorithm) CryptoHash() (crypto.Hash, bool) {
	for _, h := range hashes {
		if h.alg == a.Hash() {
			return h.hash, h.hash != 0
		}
	}
	return 0, false
}

// TagLength is the length in bytes of an AEAD's tag (the least one of a wildcard), 0 for others.
func (a Algorithm) TagLength() int {
	if !a.IsAEAD() {
		return 0
	}
	return int(a & lengthBits >> lengthShift)
}

// MACLength is the length in bytes of a MAC, truncated or not (the least one of a wildcard), 0 for others.
func (a Algorithm) MACLength() int {
	switch {
	case !a.IsMAC():
		return 0
	case a&lengthBits != 0:
		return int(a & lengthBits >> lengthShift)
	case a.IsHMAC():
		return a.HashLength()
	}
	return 16 // the block of CMAC's and CBC-MAC's ciphers, DES apart
}

// shortTag is below how many bytes a tag or MAC is one that can be guessed in days.
const shortTag = 8

// HasShortTag says whether a or, of a wildcard, the shortest that it permits, has a tag or MAC that can be forged by trying
// (SP 800-38B, appendix A; SP 800-38C, appendix B; SP 800-38D, appendix C).
func (a Algorithm) HasShortTag() bool {
	n := a.TagLength() + a.MACLength()
	return n > 0 && n < shortTag
}

// BoundsNonces says whether nonces of a that are made at random are too short for any number of them: an AEAD's 96 bits of
// GCM (SP 800-38D, 8.3: 2^32 of them) and ChaCha20-Poly1305, and CCM's 104.
func (a Algorithm) BoundsNonces() bool { return a.IsAEAD() && a.NonceLength() < 16 }

// NonceLength is the default length in bytes of an AEAD's nonce (PSA_AEAD_NONCE_LENGTH), or of a cipher's IV with a
// block of 16 bytes (PSA_CIPHER_IV_LENGTH), 0 for others.
func (a Algorithm) NonceLength() int {
	switch a.fullLength() {
	case CTR, CFB, OFB, CBCNoPadding, CBCPKCS7, XTS:
		return 16
	case GCM, ChaCha20Poly1305:
		return 12
	case CCM:
		return 13
	case XChaCha20Poly1305:
		return 24
	}
	return 0
}

// fullLength is a without the truncation of its MAC or tag.
func (a Algorithm) fullLength() Algorithm {
	switch {
	case a.IsMAC():
		return a &^ (lengthBits | atLeastThisLength)
	case a.IsAEAD():
		return AEADWithShortenedTag(a, 16)
	}
	return a
}

// mostLength is the most bytes that a MAC or tag of a's full length can be shortened to.
func (a Algorithm) mostLength() int {
	if a.IsAEAD() {
		return a.TagLength()
	}
	return min(a.MACLength(), maxTruncatedLength)
}

var algorithmNames = []struct {
	alg  Algorithm
	name string
}{
	{AlgNone, "PSA_ALG_NONE"},
	{AnyHash, "PSA_ALG_ANY_HASH"},
	{CBCMAC, "PSA_ALG_CBC_MAC"},
	{CMAC, "PSA_ALG_CMAC"},
	{StreamCipher, "PSA_ALG_STREAM_CIPHER"},
	{CTR, "PSA_ALG_CTR"},
	{CFB, "PSA_ALG_CFB"},
	{OFB, "PSA_ALG_OFB"},
	{CCMStarNoTag, "PSA_ALG_CCM_STAR_NO_TAG"},
	{XTS, "PSA_ALG_XTS"},
	{ECBNoPadding, "PSA_ALG_ECB_NO_PADDING"},
	{CBCNoPadding, "PSA_ALG_CBC_NO_PADDING"},
	{CBCPKCS7, "PSA_ALG_CBC_PKCS7"},
	{CCM, "PSA_ALG_CCM"},
	{GCM, "PSA_ALG_GCM"},
	{ChaCha20Poly1305, "PSA_ALG_CHACHA20_POLY1305"},
	{XChaCha20Poly1305, "PSA_ALG_XCHACHA20_POLY1305"},
	{RSAPKCS1v15SignRaw, "PSA_ALG_RSA_PKCS1V15_SIGN_RAW"},
	{ECDSAAny, "PSA_ALG_ECDSA_ANY"},
	{PureEdDSA, "PSA_ALG_PURE_EDDSA"},
	{Ed25519ph, "PSA_ALG_ED25519PH"},
	{Ed448ph, "PSA_ALG_ED448PH"},
	{EdDSACtx, "PSA_ALG_EDDSA_CTX"},
	{SLHDSA, "PSA_ALG_SLH_DSA"},
	{DeterministicSLHDSA, "PSA_ALG_DETERMINISTIC_SLH_DSA"},
	{MLDSA, "PSA_ALG_ML_DSA"},
	{DeterministicMLDSA, "PSA_ALG_DETERMINISTIC_ML_DSA"},
	{RSAPKCS1v15Crypt, "PSA_ALG_RSA_PKCS1V15_CRYPT"},
	{PBKDF2AESCMACPRF128, "PSA_ALG_PBKDF2_AES_CMAC_PRF_128"},
	{TLS12ECJPAKEToPMS, "PSA_ALG_TLS12_ECJPAKE_TO_PMS"},
	{FFDH, "PSA_ALG_FFDH"},
	{ECDH, "PSA_ALG_ECDH"},
	{MLKEM, "PSA_ALG_ML_KEM"},
}

// hashed are the algorithms that take a hash as their one argument.
var hashed = []struct {
	base    Algorithm
	name    string
	anyHash bool
}{
	{hmacBase, "PSA_ALG_HMAC", false},
	{rsaPKCS1v15Base, "PSA_ALG_RSA_PKCS1V15_SIGN", true},
	{rsaPSSBase, "PSA_ALG_RSA_PSS", true},
	{rsaPSSAnySaltBase, "PSA_ALG_RSA_PSS_ANY_SALT", true},
	{ecdsaBase, "PSA_ALG_ECDSA", true},
	{deterministicBase, "PSA_ALG_DETERMINISTIC_ECDSA", true},
	{hashSLHDSABase, "PSA_ALG_HASH_SLH_DSA", true},
	{detHashSLHDSABase, "PSA_ALG_DETERMINISTIC_HASH_SLH_DSA", true},
	{hashMLDSABase, "PSA_ALG_HASH_ML_DSA", true},
	{detHashMLDSABase, "PSA_ALG_DETERMINISTIC_HASH_ML_DSA", true},
	{rsaOAEPBase, "PSA_ALG_RSA_OAEP", false},
	{hkdfBase, "PSA_ALG_HKDF", false},
	{hkdfExtractBase, "PSA_ALG_HKDF_EXTRACT", false},
	{hkdfExpandBase, "PSA_ALG_HKDF_EXPAND", false},
	{tls12PRFBase, "PSA_ALG_TLS12_PRF", false},
	{tls12PSKToMSBase, "PSA_ALG_TLS12_PSK_TO_MS", false},
	{pbkdf2HMACBase, "PSA_ALG_PBKDF2_HMAC", false},
}

// lengths are the algorithms that take an AEAD or a MAC, and a length in bytes.
var lengths = []struct {
	name    string
	fits    func(Algorithm) bool
	atLeast Algorithm
}{
	{"PSA_ALG_AEAD_WITH_SHORTENED_TAG", Algorithm.IsAEAD, 0},
	{"PSA_ALG_AEAD_WITH_AT_LEAST_THIS_LENGTH_TAG", Algorithm.IsAEAD, atLeastThisLength},
	{"PSA_ALG_TRUNCATED_MAC", Algorithm.IsMAC, 0},
	{"PSA_ALG_AT_LEAST_THIS_LENGTH_MAC", Algorithm.IsMAC, atLeastThisLength},
}

const keyAgreementName = "PSA_ALG_KEY_AGREEMENT"

// String is the algorithm in PSA notation, "PSA_ALG_ECDSA(PSA_ALG_SHA_256)"; a number that PSA has no name for is
// hexadecimal.
func (a Algorithm) String() string {
	if s, ok := a.notation(); ok {
		return s
	}
	return fmt.Sprintf("0x%08x", uint32(a))
}

func (a Algorithm) notation() (string, bool) {
	for _, n := range algorithmNames {
		if n.alg == a {
			return n.name, true
		}
	}
	for _, h := range hashes {
		if h.alg == a {
			return h.name, true
		}
	}
	for _, h := range hashed {
		if h.base != a&^hashBits || a&hashBits == 0 || a.Hash() == AnyHash && !h.anyHash {
			continue
		}
		arg, ok := a.Hash().notation()
		return h.name + "(" + arg + ")", ok
	}
	if a.IsKeyAgreement() {
		ka := a & agreementBits
		kdf := a&derivationBits&^categoryBits | derivationCategory
		if ka != ECDH && ka != FFDH {
			return "", false
		}
		arg, ok := kdf.notation()
		return keyAgreementName + "(" + ka.String() + ", " + arg + ")", ok && KeyAgreement(ka, kdf) == a
	}
	for _, l := range lengths {
		full := a.fullLength()
		n := int(a & lengthBits >> lengthShift)
		if full == a || !l.fits(a) || n == 0 || n > full.mostLength() || a&atLeastThisLength != l.atLeast {
			continue
		}
		arg, ok := full.notation()
		return fmt.Sprintf("%s(%s, %d)", l.name, arg, n), ok
	}
	return "", false
}

// ParseAlgorithm reads an algorithm in PSA notation. Errors are StatusInvalidArgument.
func ParseAlgorithm(s string) (Algorithm, error) {
	e, err := parseNotation(s)
	if err == nil {
		var a Algorithm
		if a, err = e.algorithm(); err == nil {
			return a, nil
		}
	}
	return AlgNone, Errorf(StatusInvalidArgument, "algorithm %s: %w", quote(s), err)
}

func (e expr) algorithm() (Algorithm, error) {
	if !e.call {
		for _, n := range algorithmNames {
			if n.name == e.name {
				return n.alg, nil
			}
		}
		for _, h := range hashes {
			if h.name == e.name {
				return h.alg, nil
			}
		}
	}
	for _, h := range hashed {
		if h.name == e.name {
			return e.hashed(h.base, h.anyHash)
		}
	}
	for _, l := range lengths {
		if l.name == e.name {
			return e.length(l.fits, l.atLeast)
		}
	}
	if e.name == keyAgreementName {
		if len(e.args) != 2 {
			return AlgNone, fmt.Errorf("%s needs a key agreement and a key derivation", e.name)
		}
		ka, err := e.args[0].algorithm()
		if err != nil {
			return AlgNone, err
		}
		kdf, err := e.args[1].algorithm()
		if err != nil {
			return AlgNone, err
		}
		a := KeyAgreement(ka, kdf)
		if ka != ECDH && ka != FFDH || !kdf.IsKeyDerivation() || a&derivationBits&^categoryBits|derivationCategory != kdf {
			return AlgNone, fmt.Errorf("%s needs PSA_ALG_ECDH or PSA_ALG_FFDH, and a key derivation", e.name)
		}
		return a, nil
	}
	return AlgNone, fmt.Errorf("unknown algorithm %s; allowed: %s", quote(e.name), strings.Join(algorithmForms(), ", "))
}

func (e expr) hashed(base Algorithm, anyHash bool) (Algorithm, error) {
	allowed := make([]string, 0, len(hashes)+1)
	for _, h := range hashes {
		if len(e.args) == 1 && !e.args[0].call && e.args[0].name == h.name {
			return base | h.alg&hashBits, nil
		}
		allowed = append(allowed, h.name)
	}
	if anyHash {
		if len(e.args) == 1 && !e.args[0].call && e.args[0].name == AnyHash.String() {
			return base | AnyHash&hashBits, nil
		}
		allowed = append(allowed, AnyHash.String())
	}
	return AlgNone, fmt.Errorf("%s needs one of %s", e.name, strings.Join(allowed, ", "))
}

func (e expr) length(fits func(Algorithm) bool, atLeast Algorithm) (Algorithm, error) {
	if len(e.args) != 2 {
		return AlgNone, fmt.Errorf("%s needs an algorithm and a length in bytes", e.name)
	}
	a, err := e.args[0].algorithm()
	if err != nil {
		return AlgNone, err
	}
	if !fits(a) || a.fullLength() != a {
		return AlgNone, fmt.Errorf("%s does not take %s", e.name, a)
	}
	n, err := e.args[1].number(a.mostLength())
	if err != nil {
		return AlgNone, errors.New(e.name + ": the length " + err.Error())
	}
	return AEADWithShortenedTag(a, n) | atLeast, nil
}

// algorithmForms are all forms of PSA notation for algorithms, for error messages.
func algorithmForms() []string {
	var forms []string
	for _, n := range algorithmNames {
		forms = append(forms, n.name)
	}
	for _, h := range hashes {
		forms = append(forms, h.name)
	}
	for _, h := range hashed {
		forms = append(forms, h.name+"(HASH)")
	}
	for _, l := range lengths {
		forms = append(forms, l.name+"(ALG, LENGTH)")
	}
	forms = append(forms, keyAgreementName+"(KA, KDF)")
	slices.Sort(forms)
	return forms
}
