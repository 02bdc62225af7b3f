package psa

import (
	"fmt"
	"slices"
	"strings"
)

// Attributes are a key's type, size and policy (psa_key_attributes_t without lifetime and id, which are the KIM's).
type Attributes struct {
	Type KeyType
	// Bits is PSA's size of the key; of an AES key for XTS it counts both halves.
	Bits      int
	Algorithm Algorithm
	Usage     Usage
	// PCRs are those of a TPM that must be as they were when the key was made, a bit each; 0 is none.
	PCRs PCRs
}

const (
	minRSABits = 1024
	// safeRSABits is below which an RSA key is deprecated (NIST SP 800-131A).
	safeRSABits = 2048
	maxRSABits  = 8192
	// maxSecretBits bounds keys of free length (HMAC, derivation, raw data): PSA_MAX_KEY_BITS.
	maxSecretBits = 65528
)

// curve is one elliptic curve: PSA's family and size, the templates' name of it.
type curve struct {
	family ECCFamily
	bits   int
	name   string
}

var curves = []curve{
	{SECPR1, 192, "p192"},
	{SECPR1, 224, "p224"},
	{SECPR1, 256, "p256"},
	{SECPR1, 384, "p384"},
	{SECPR1, 521, "p521"},
	{SECPK1, 192, "secp192k1"},
	{SECPK1, 225, "secp224k1"}, // its order has 225 bits, and PSA counts those
	{SECPK1, 256, "secp256k1"},
	{SECPR2, 160, "secp160r2"},
	{SECTR1, 163, "sect163r1"},
	{SECTR1, 233, "sect233r1"},
	{SECTR1, 283, "sect283r1"},
	{SECTR1, 409, "sect409r1"},
	{SECTR1, 571, "sect571r1"},
	{SECTK1, 163, "sect163k1"},
	{SECTK1, 233, "sect233k1"},
	{SECTK1, 239, "sect239k1"},
	{SECTK1, 283, "sect283k1"},
	{SECTK1, 409, "sect409k1"},
	{SECTK1, 571, "sect571k1"},
	{SECTR2, 163, "sect163r2"},
	{BrainpoolPR1, 160, "brainpoolp160r1"},
	{BrainpoolPR1, 192, "brainpoolp192r1"},
	{BrainpoolPR1, 224, "brainpoolp224r1"},
	{BrainpoolPR1, 256, "brainpoolp256r1"},
	{BrainpoolPR1, 320, "brainpoolp320r1"},
	{BrainpoolPR1, 384, "brainpoolp384r1"},
	{BrainpoolPR1, 512, "brainpoolp512r1"},
	{FRP, 256, "frp256v1"},
	{Montgomery, 255, "x25519"},
	{Montgomery, 448, "x448"},
	{TwistedEdwards, 255, "ed25519"},
	{TwistedEdwards, 448, "ed448"},
}

// weierstrass says whether ECDSA and plain ECDH work on f's curves.
func (f ECCFamily) weierstrass() bool { return f != 0 && f != Montgomery && f != TwistedEdwards }

// CurveName is the curve as templates spell it, "p256", "brainpoolp256r1", "ed25519"; "" if the key has none.
func (a Attributes) CurveName() string {
	for _, c := range curves {
		if c.family == a.Type.Family() && c.bits == a.Bits {
			return c.name
		}
	}
	return ""
}

// sizes lists the sizes in bits that a key type has, nil where any multiple of 8 does.
func (t KeyType) sizes() []int {
	switch {
	case t.IsECC():
		var bits []int
		for _, c := range curves {
			if c.family == t.Family() {
				bits = append(bits, c.bits)
			}
		}
		return bits
	case t.isDH():
		return []int{2048, 3072, 4096, 6144, 8192}
	case t.IsSLHDSA(), t.PublicKey() == KeyTypeMLDSAPublicKey:
		return []int{128, 192, 256}
	case t.PublicKey() == KeyTypeMLKEMPublicKey:
		return []int{512, 768, 1024}
	}
	switch t {
	case KeyTypeAES, KeyTypeARIA, KeyTypeCamellia:
		return []int{128, 192, 256}
	case KeyTypeSM4:
		return []int{128}
	case KeyTypeDES:
		return []int{64, 128, 192}
	case KeyTypeChaCha20, KeyTypeXChaCha20:
		return []int{256}
	}
	return nil
}

// Deprecated says what is too weak about such a key, nil if nothing is: StatusDeprecated. It can still be imported, for
// what was signed or encrypted before.
func (a Attributes) Deprecated() error {
	what := ""
	switch h := a.Algorithm.Hash(); {
	case a.Type.IsRSA() && a.Bits < safeRSABits:
		what = fmt.Sprintf("RSA with %d bits", a.Bits)
	case a.Type == KeyTypeDES || a.Type == KeyTypeARC4:
		what = a.Type.String()
	case h == MD2 || h == MD4 || h == MD5 || h == SHA1 || h == RIPEMD160:
		what = h.String()
	default:
		return nil
	}
	return Errorf(StatusDeprecated, "%s is deprecated", what).WithHint("core_settings.allow_deprecated lets such keys be generated")
}

// Validate says whether type, size, algorithm and usage are known and fit each other: StatusInvalidArgument for what
// can never be, StatusNotSupported for what is not known or, as RSA below 2048 bits, not safe.
func (a Attributes) Validate() error {
	if a.Type == KeyTypeNone {
		return Errorf(StatusInvalidArgument, "the key type is missing").
			WithHint("give a template, or key_type, key_bits, permitted_algorithm and usage")
	}
	if strings.HasPrefix(a.Type.String(), "0x") {
		return Errorf(StatusNotSupported, "unknown key type %s", a.Type)
	}
	if err := a.validateBits(); err != nil {
		return err
	}
	if a.Algorithm != AlgNone {
		if _, ok := a.Algorithm.notation(); !ok {
			return Errorf(StatusNotSupported, "unknown algorithm %s", a.Algorithm)
		}
		if err := a.validateAlgorithm(a.Algorithm); err != nil {
			return err
		}
	}
	return a.validateUsage()
}

func (a Attributes) validateBits() error {
	if a.Type.IsRSA() {
		if a.Bits < minRSABits || a.Bits > maxRSABits || a.Bits%8 != 0 {
			s := StatusNotSupported
			if a.Bits <= 0 {
				s = StatusInvalidArgument
			}
			return Errorf(s, "an RSA key of %d bits; allowed: multiples of 8 from %d to %d", a.Bits, minRSABits, maxRSABits)
		}
		return nil
	}
	sizes := a.Type.sizes()
	if a.Algorithm == XTS && sizes != nil {
		// Two keys in one: twice the cipher's sizes.
		sizes = slices.Clone(sizes)
		for i := range sizes {
			sizes[i] *= 2
		}
	}
	if sizes == nil {
		if a.Bits < 8 || a.Bits > maxSecretBits || a.Bits%8 != 0 {
			return Errorf(StatusInvalidArgument, "a %s key of %d bits; allowed: multiples of 8 from 8 to %d", a.Type, a.Bits, maxSecretBits)
		}
		return nil
	}
	if !slices.Contains(sizes, a.Bits) {
		s := StatusInvalidArgument
		if a.Type.IsECC() && a.Bits > 0 {
			s = StatusNotSupported // a curve that nobody here knows
		}
		return Errorf(s, "a %s key of %d bits; allowed: %s", a.Type, a.Bits, join(sizes))
	}
	return nil
}

func join(numbers []int) string {
	return strings.Trim(strings.ReplaceAll(fmt.Sprint(numbers), " ", ", "), "[]")
}

// validateAlgorithm says whether alg works with a key of a's type and size at all.
func (a Attributes) validateAlgorithm(alg Algorithm) error {
	if alg.fitsKey(a.Type, a.Bits) {
		return nil
	}
	return Errorf(StatusInvalidArgument, "%s does not work with a %s key of %d bits", alg, a.Type, a.Bits).
		WithHint("the capabilities file lists the pairs that do")
}

func (a Algorithm) fitsKey(t KeyType, bits int) bool {
	public := t.PublicKey()
	full := a.fullLength()
	switch {
	case a.IsRSAPKCS1v15Sign(), a.IsRSAPSS(), a.IsRSAOAEP(), a == RSAPKCS1v15Crypt:
		return t.IsRSA()
	case a.IsECDSA():
		return t.Family().weierstrass()
	case a == PureEdDSA, a == EdDSACtx:
		return t.Family() == TwistedEdwards
	case a == Ed25519ph:
		return t.Family() == TwistedEdwards && bits == 255
	case a == Ed448ph:
		return t.Family() == TwistedEdwards && bits == 448
	case a == MLDSA, a == DeterministicMLDSA, a&^hashBits == hashMLDSABase, a&^hashBits == detHashMLDSABase:
		return public == KeyTypeMLDSAPublicKey
	case a == SLHDSA, a == DeterministicSLHDSA, a&^hashBits == hashSLHDSABase, a&^hashBits == detHashSLHDSABase:
		return t.IsSLHDSA()
	case a == MLKEM:
		return public == KeyTypeMLKEMPublicKey
	case a.IsKeyAgreement() && a&agreementBits == ECDH:
		return t.Family().weierstrass() || t.Family() == Montgomery
	case a.IsKeyAgreement():
		return t.isDH()
	case a.IsHMAC():
		return t == KeyTypeHMAC
	case a.IsMAC():
		return t.isBlockCipher() || t == KeyTypeDES
	case full == ChaCha20Poly1305:
		return t == KeyTypeChaCha20
	case full == XChaCha20Poly1305:
		return t == KeyTypeXChaCha20
	case a.IsAEAD():
		return t.isBlockCipher()
	case a == StreamCipher:
		return t == KeyTypeChaCha20 || t == KeyTypeXChaCha20 || t == KeyTypeARC4
	case a == CCMStarNoTag, a == XTS:
		return t.isBlockCipher()
	case a.IsCipher():
		return t.isBlockCipher() || t == KeyTypeDES
	case a.IsKeyDerivation():
		return t == KeyTypeDerive || t == KeyTypePassword || t == KeyTypePepper || t == KeyTypePasswordHash || t == KeyTypeRawData
	}
	return false
}

// servesUsage are the flags of usage that could ever do something with this type and algorithm.
func (a Attributes) servesUsage() Usage {
	u := usageAnyKey
	alg := a.Algorithm
	switch {
	case alg.IsSign(), alg.IsMAC():
		u |= usageSigning
	case alg.IsCipher(), alg.IsAEAD(), alg.IsAsymmetricEncryption(), alg == MLKEM:
		u |= usageCiphering
	case alg.IsKeyAgreement(), alg.IsKeyDerivation():
		u |= usageDerivation
	}
	if a.Type.IsPublicKey() {
		u &= usagePublic
	}
	return u
}

func (a Attributes) validateUsage() error {
	odd := a.Usage &^ a.servesUsage()
	if odd == 0 {
		return nil
	}
	return Errorf(StatusInvalidArgument, "usage %s has no effect for a %s key with %s; allowed: %s",
		odd, a.Type, a.Algorithm, a.servesUsage())
}

// defaultUsage is what a template means: all that the algorithm can do, and never EXPORT, COPY or CACHE.
func (a Attributes) defaultUsage() Usage {
	u := a.servesUsage() &^ (usageAnyKey | UsageVerifyDerivation)
	if !a.Algorithm.IsHashAndSign() {
		u &^= UsageSignHash | UsageVerifyHash
	} else if a.Algorithm.Hash() == AlgNone {
		u = u &^ (UsageSignMessage | UsageVerifyMessage)
	}
	return u
}

// Can says whether an operation makes sense for a key of this type and algorithm, whatever its usage flags: private
// operations need a private key, sign_hash an algorithm that hashes. A draft's operations (generate, import) and
// random are none of a key's.
func (a Attributes) Can(op Operation) bool {
	alg := a.Algorithm
	public := a.Type.IsPublicKey()
	switch op {
	case ExportPublic:
		return a.Type.IsAsymmetric()
	case Export, Copy:
		return a.Type != KeyTypeNone
	case Sign:
		return !public && alg.signsMessages()
	case Verify:
		return alg.signsMessages()
	case SignHash:
		return !public && alg.IsHashAndSign()
	case VerifyHash:
		return alg.IsHashAndSign()
	case Encrypt:
		return alg.IsCipher() || alg.IsAEAD() || alg.IsAsymmetricEncryption()
	case Decrypt:
		return !public && (alg.IsCipher() || alg.IsAEAD() || alg.IsAsymmetricEncryption())
	case Mac, VerifyMac:
		return alg.IsMAC()
	case Agree:
		return !public && alg.IsKeyAgreement()
	case Derive:
		return alg.IsKeyDerivation()
	case Encapsulate:
		return alg == MLKEM
	case Decapsulate:
		return !public && alg == MLKEM
	case Attest, ActivateCredential:
		return !public && a.Type != KeyTypeNone
	}
	return false
}

// signsMessages is PSA_ALG_IS_SIGN_MESSAGE: not the two that take a hash alone.
func (a Algorithm) signsMessages() bool {
	return a.IsSign() && a != RSAPKCS1v15SignRaw && a != ECDSAAny
}

// takes says whether op is done with algorithms of this sort at all; PSA asks that before the key's policy, except of
// MACs.
func (o Operation) takes(alg Algorithm) bool {
	switch o {
	case Sign, Verify, CSR:
		return alg.signsMessages()
	case SignHash, VerifyHash:
		return alg.IsHashAndSign()
	case Encrypt, Decrypt:
		return alg.IsCipher() || alg.IsAEAD() || alg.IsAsymmetricEncryption()
	case Agree:
		return alg.IsKeyAgreement()
	case Derive:
		return alg.IsKeyDerivation()
	}
	return true
}

// Permits checks a use of a key against its policy, in PSA's order: StatusNotPermitted if a usage flag is missing or the
// policy has another algorithm, StatusInvalidArgument if alg is a wildcard or does not do the operation with such a key,
// StatusNotSupported if alg is unknown. A public key may always be exported.
func (a Attributes) Permits(op Operation, alg Algorithm) error {
	if !op.takes(alg) {
		return Errorf(StatusInvalidArgument, "%s is not an algorithm for %s", alg, op)
	}
	need := op.Usage()
	if op == Export && a.Type.IsPublicKey() {
		need = 0
	}
	if missing := need &^ a.Usage.Extend(); missing != 0 {
		return Errorf(StatusNotPermitted, "%s needs %s, but the key's policy has %s", op, missing, a.Usage)
	}
	if op == Export || op == ExportPublic {
		if !a.Can(op) {
			return Errorf(StatusInvalidArgument, "%s does not work with a %s key", op, a.Type)
		}
		return nil // exporting has no algorithm
	}
	if alg.IsWildcard() {
		return Errorf(StatusInvalidArgument, "%s stands for several algorithms, but %s needs a single one", alg, op)
	}
	if alg == AlgNone {
		return Errorf(StatusInvalidArgument, "%s needs an algorithm", op)
	}
	if !a.permitsAlgorithm(alg) {
		return Errorf(StatusNotPermitted, "%s with %s is not permitted: the key's policy permits %s", op, alg, a.Algorithm)
	}
	if _, ok := alg.notation(); !ok {
		return Errorf(StatusNotSupported, "unknown algorithm %s", alg)
	}
	if err := a.validateAlgorithm(alg); err != nil {
		return err
	}
	if with := (Attributes{Type: a.Type, Bits: a.Bits, Algorithm: alg}); !with.Can(op) {
		return Errorf(StatusInvalidArgument, "%s does not work with a %s key and %s", op, a.Type, alg)
	}
	return nil
}

// permitsAlgorithm is PSA's rule of permitted algorithms (psa_set_key_algorithm): the same one; any hash; at least a
// length; a raw agreement permits the same one with a derivation.
func (a Attributes) permitsAlgorithm(alg Algorithm) bool {
	policy := a.Algorithm
	switch {
	case policy == AlgNone || alg == AlgNone:
		return false
	case policy == alg:
		return true
	case policy.IsHashAndSign() && policy.IsWildcard():
		return policy&^hashBits == alg&^hashBits && permittedByAnyHash(alg.Hash())
	case policy.IsMAC() && policy.IsWildcard():
		return policy.fullLength() == alg.fullLength() && alg.IsMAC() && alg.MACLength() >= policy.MACLength()
	case policy.IsAEAD() && policy.IsWildcard():
		return policy.fullLength() == alg.fullLength() && alg.IsAEAD() && alg.TagLength() >= policy.TagLength()
	case policy == ECDH || policy == FFDH:
		return alg.IsKeyAgreement() && alg&agreementBits == policy
	}
	return false
}

// Copied returns the attributes of a copy of a's key into a draft (psa_copy_key). Type and size are those of a, the usage is
// what both have, and the algorithm is one that both permit; what the draft leaves open is taken from a. A key without COPY
// is StatusNotPermitted, and a draft that does not fit is StatusInvalidArgument.
func (a Attributes) Copied(draft Attributes) (Attributes, error) {
	c := a
	switch {
	case a.Usage&UsageCopy == 0:
		return a, Errorf(StatusNotPermitted, "copy needs %s, but the key's policy has %s", UsageCopy, a.Usage)
	case draft.Type != KeyTypeNone && draft.Type != a.Type || draft.Bits != 0 && draft.Bits != a.Bits:
		return a, Errorf(StatusInvalidArgument, "the draft is for a %s of %d bits, but the key is a %s of %d bits", draft.Type, draft.Bits,
			a.Type, a.Bits)
	case draft.Algorithm == AlgNone:
	case a.permitsAlgorithm(draft.Algorithm):
		c.Algorithm = draft.Algorithm
	case !draft.permitsAlgorithm(a.Algorithm):
		return a, Errorf(StatusInvalidArgument, "the draft permits %s, but the key permits %s", draft.Algorithm, a.Algorithm)
	}
	if draft.Usage != 0 {
		c.Usage &= draft.Usage
	}
	return c, nil
}

// ownHash is the SHA-2 that a key's own strength asks for.
func (a Attributes) ownHash() Algorithm {
	switch {
	case a.Type.IsRSA() || a.Bits <= 256:
		return SHA256
	case a.Bits <= 384:
		return SHA384
	}
	return SHA512
}

// Resolve is the concrete algorithm with which an operation runs. Under a policy of any hash sign and
// verify use the curve's own hash (RSA: SHA-256), sign_hash and verify_hash the SHA-2 whose digest has inputLen
// bytes; another length is StatusInvalidArgument. A policy of a least MAC or tag length gives the full length. Other
// policies are concrete already.
func (a Attributes) Resolve(op Operation, inputLen int) (Algorithm, error) {
	if !a.Algorithm.IsWildcard() {
		return a.Algorithm, nil
	}
	if !a.Algorithm.IsHashAndSign() {
		return a.Algorithm.fullLength(), nil
	}
	if op != SignHash && op != VerifyHash {
		return a.Algorithm.WithHash(a.ownHash()), nil
	}
	for _, h := range []Algorithm{SHA224, SHA256, SHA384, SHA512} {
		if h.HashLength() == inputLen {
			return a.Algorithm.WithHash(h), nil
		}
	}
	return AlgNone, Errorf(StatusInvalidArgument, "the digest has %d bytes; allowed: 28, 32, 48 or 64 (SHA-224, -256, -384, -512)", inputLen).
		WithHint("give the digest in binary, not in hexadecimal")
}

// SignatureLength is the length in bytes of every signature by such a key in PSA's encoding (PSA_SIGN_OUTPUT_SIZE;
// ECDSA: r||s), or of its MACs; 0 if it makes none.
func (a Attributes) SignatureLength() int {
	switch alg := a.Algorithm; {
	case alg.IsMAC() && a.Type == KeyTypeDES:
		return min(alg.MACLength(), 8) // its block is half as long as the others'
	case alg.IsMAC():
		return alg.MACLength()
	case !alg.IsSign():
		return 0
	case a.Type.IsRSA():
		return (a.Bits + 7) / 8
	case a.Type.Family() == TwistedEdwards:
		if a.Bits == 448 {
			return 114
		}
		return 64
	case a.Type.IsECC():
		return 2 * ((a.Bits + 7) / 8)
	case a.Type.PublicKey() == KeyTypeMLDSAPublicKey: // FIPS 204, table 2
		return map[int]int{128: 2420, 192: 3309, 256: 4627}[a.Bits]
	case a.Type.IsSLHDSA(): // FIPS 205, table 2
		if f := SLHDSAFamily(a.Type & slhdsaMask); f == SLHDSASHA2F || f == SLHDSASHAKEF {
			return map[int]int{128: 17088, 192: 35664, 256: 49856}[a.Bits]
		}
		return map[int]int{128: 7856, 192: 16224, 256: 29792}[a.Bits]
	}
	return 0
}
