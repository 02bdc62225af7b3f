package rights

import (
	"regexp"
	"slices"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// family is what a kind of keys has in common where the rights to it are concerned.
type family string

const (
	signing    family = "signing"
	rsaCrypt   family = "rsa-crypt"
	agreement  family = "agreement"
	kem        family = "kem"
	derivation family = "derivation"
	macs       family = "mac"
	aead       family = "aead"
	stream     family = "stream" // CTR, OFB, CFB
	cbc        family = "cbc"
	xts        family = "xts"
	ecb        family = "ecb"
	data       family = "data"
	draft      family = "draft"
)

// kind is a kind of keys.
type kind struct {
	name   string // a template, and what follows it
	family family
	// covers are the templates that behave like this one.
	covers string
	// attributes are TOML; none: the template and all that it may do.
	attributes string
	// public: the public key alone, which is imported.
	public bool
}

// kinds stand for all that software makes keys of: a template that none covers fails the test.
var kinds = []kind{
	{name: "ecdsa-p256-sha256", family: signing, covers: `ecdsa-\w+-sha[\d-]+`},
	{name: "ecdsa-p256-any", family: signing, covers: `ecdsa-\w+-any`},
	{name: "deterministic-ecdsa-p256-sha256", family: signing, covers: `deterministic-ecdsa-\w+-(sha[\d-]+|any)`},
	{name: "ed25519", family: signing, covers: `ed25519|ed448`},
	{name: "ml-dsa-44", family: signing, covers: `ml-dsa-\d+`},
	{name: "slh-dsa-sha2-128f", family: signing, covers: `slh-dsa-\w+-\w+`},
	{name: "rsa-2048-pkcs1v15-sha256", family: signing, covers: `rsa-\d+-pkcs1v15-(sha[\d-]+|any)`},
	{name: "rsa-2048-pss-sha256", family: signing, covers: `rsa-\d+-pss-(sha[\d-]+|any)`},
	{name: "rsa-2048-pkcs1v15-crypt", family: rsaCrypt, covers: `rsa-\d+-pkcs1v15-crypt`},
	{name: "rsa-2048-oaep-sha256", family: rsaCrypt, covers: `rsa-\d+-oaep-sha[\d-]+`},
	{name: "x25519", family: agreement, covers: `x25519|x448|ecdh-p\d+`},
	{name: "x25519-hkdf-sha256", family: agreement, covers: `(x25519|x448|ecdh-p\d+)-hkdf-sha\d+`},
	{name: "ecdh-p256-tls12-prf-sha256", family: agreement, covers: `(x25519|x448|ecdh-p\d+)-tls12-prf-sha\d+`},
	{name: "ml-kem-768", family: kem, covers: `ml-kem-\d+`},
	{name: "hkdf-sha256", family: derivation, covers: `hkdf-sha\d+`},
	{name: "tls12-prf-sha256", family: derivation, covers: `tls12-prf-sha\d+`},
	{name: "hmac-sha256", family: macs, covers: `hmac-(sha3-)?(sha)?\d+`},
	{name: "hmac-sha256-tag8", family: macs, covers: `hmac-(sha3-)?(sha)?\d+-tag\d+`},
	{name: "aes-128-cmac", family: macs, covers: `aes-\d+-cmac`},
	{name: "aes-128-cmac-tag4", family: macs, covers: `aes-\d+-cmac-tag\d+`},
	{name: "aes-128-gcm", family: aead, covers: `aes-\d+-gcm`},
	{name: "aes-256-gcm-tag12", family: aead, covers: `aes-\d+-gcm-tag\d+`},
	{name: "aes-128-ccm", family: aead, covers: `aes-\d+-ccm`},
	{name: "aes-256-ccm-tag4", family: aead, covers: `aes-\d+-ccm-tag\d+`},
	{name: "chacha20-poly1305", family: aead, covers: `chacha20-poly1305`},
	{name: "aes-128-ctr", family: stream, covers: `aes-\d+-ctr`},
	{name: "aes-128-ofb", family: stream, covers: `aes-\d+-ofb`},
	{name: "aes-128-cfb", family: stream, covers: `aes-\d+-cfb`},
	{name: "aes-128-cbc", family: cbc, covers: `aes-\d+-cbc`},
	{name: "aes-128-cbc-pkcs7", family: cbc, covers: `aes-\d+-cbc-pkcs7`},
	{name: "aes-128-xts", family: xts, covers: `aes-\d+-xts`},
	{name: "aes-128-ecb", family: ecb, covers: `aes-\d+-ecb`},
	{name: "ecdsa-p256-sha256 public", family: signing, public: true},
	{name: "rsa-2048-oaep-sha256 public", family: rsaCrypt, public: true},
	{name: "ml-kem-768 public", family: kem, public: true},
	{name: "raw data", family: data, attributes: "key_type = \"PSA_KEY_TYPE_RAW_DATA\"\nkey_bits = 256\nusage = [\"PSA_KEY_USAGE_EXPORT\", \"PSA_KEY_USAGE_COPY\"]\n"},
	{name: "draft", family: draft, attributes: "template = \"aes-128-gcm\"\n"},
}

// What can be had of a key beside its files.
const (
	setDestroy = "allow_destroy = false" // what is its owner's to decide in attributes
	setNonce   = "caller_nonce = true"
	setUnits   = `units = ["thief.service"]`
	policy     = "another policy"
	removed    = "rmdir"
	renamed    = "rename"
	copied     = "a copy in a draft of one's own"
	stored     = "import of another's draft" // by an operation whose secret becomes a key
)

var (
	publics    = []string{"public.pem", "public.der", "public.ssh", "public.jwk"}
	texts      = slices.Concat([]string{"attributes", "capabilities", "certificate", "last_error"}, publics)
	messages   = []string{"sign", "sign_raw"}
	hashes     = []string{"sign_hash", "sign_hash_raw"}
	verifiers  = []string{"verify", "verify_raw", "verify_hash"}
	privates   = slices.Concat(messages, hashes, []string{"csr", "mac", "verify_mac", "encrypt", "decrypt", "agree", "derive", "encapsulate", "decapsulate", "export"})
	operations = slices.Concat(verifiers, privates)
	owners     = []string{setDestroy, setNonce, setUnits}
	directory  = []string{removed, renamed}
)

// verdict is why a right to one file gives nothing of another, or why it does.
type verdict struct {
	// attack is tried by who has the one right alone, after all plain ways to the other file; none: those are all.
	attack func(*cell)
	// inherent says why mathematics or PSA itself makes the one right contain the other.
	inherent string
}

// rule gives a verdict to cells; the first that fits a cell holds.
type rule struct {
	families []family // none: all
	kinds    string   // a regular expression; none: all
	from, to []string
	verdict
}

var (
	plain      = verdict{}
	publicKey  = verdict{inherent: "a public key is no secret: psa_export_public_key needs no usage, and signatures, requests and certificates tell it"}
	encoding   = verdict{inherent: "the same signature in another encoding"}
	hashing    = verdict{inherent: "a signature of a message is one of its hash, which anybody computes"}
	request    = verdict{inherent: "a certificate request is a signed message"}
	computing  = verdict{inherent: "who can compute a MAC can compare it"}
	everything = verdict{inherent: "the bytes of a key do all that it does"}
	own        = verdict{inherent: "its own inverse, or made block by block from what decrypts: such a mode authenticates nobody"}
	making     = verdict{inherent: "psa_generate_key and psa_import_key take the attributes"}
	choosing   = verdict{inherent: "who brings the key's bytes, or a key of its own to copy, chooses the key"}
)

var rules = []rule{
	// What its owner decides.
	{from: []string{"attributes"}, to: owners, verdict: verdict{attack: (*cell).decidesInAttributes}},
	{families: []family{draft}, from: []string{"generate"}, to: owners, verdict: verdict{attack: (*cell).decidesInGenerate}},
	{families: []family{draft}, from: []string{"copy"}, to: owners, verdict: verdict{attack: (*cell).decidesByCopy}},
	{families: []family{draft}, from: []string{"import", "last_error"}, to: owners, verdict: plain},
	{from: slices.Concat(texts, operations), to: owners, verdict: plain},
	{from: []string{"attributes"}, to: []string{policy}, verdict: verdict{attack: (*cell).changesPolicy}},

	// A draft.
	{families: []family{draft}, from: []string{"attributes", "last_error"}, to: []string{"attributes", "generate", "import", "copy", "last_error"}, verdict: plain},
	{families: []family{draft}, from: []string{"generate", "import"}, to: []string{"attributes"}, verdict: making},
	{families: []family{draft}, from: []string{"copy"}, to: []string{"attributes", "generate", "import"}, verdict: choosing},
	{families: []family{draft}, from: []string{"import"}, to: []string{"generate"}, verdict: choosing},
	{families: []family{draft}, from: []string{"generate"}, to: []string{"import", "copy"}, verdict: verdict{attack: (*cell).fillsByGenerate}},
	{families: []family{draft}, from: []string{"import"}, to: []string{"copy"}, verdict: verdict{attack: (*cell).copiesByImport}},
	{families: []family{draft}, from: []string{"generate", "import", "copy"}, to: []string{"last_error"}, verdict: plain},
	{families: []family{draft}, from: []string{"generate", "import", "copy"}, to: directory, verdict: plain},

	// The key itself, and its public part.
	{from: []string{"export"}, to: slices.Concat(operations, []string{copied}), verdict: everything},
	{families: []family{signing, rsaCrypt, agreement, kem}, from: slices.Concat(texts, operations), to: publics, verdict: publicKey},
	{families: []family{signing}, from: slices.Concat(texts, operations), to: verifiers, verdict: publicKey},
	{families: []family{rsaCrypt}, from: slices.Concat(texts, operations), to: []string{"encrypt"}, verdict: publicKey},
	{families: []family{kem}, from: slices.Concat(texts, operations), to: []string{"encapsulate"}, verdict: publicKey},

	// Signatures.
	{families: []family{signing}, from: messages, to: messages, verdict: encoding},
	{families: []family{signing}, from: hashes, to: hashes, verdict: encoding},
	{families: []family{signing}, from: hashes, to: slices.Concat(messages, []string{"csr"}), verdict: hashing},
	{families: []family{signing}, from: messages, to: []string{"csr"}, verdict: request},
	{families: []family{signing}, from: messages, to: hashes, verdict: verdict{attack: (*cell).signsHash}},
	{families: []family{signing}, from: []string{"csr"}, to: slices.Concat(messages, hashes), verdict: verdict{attack: (*cell).signsByRequest}},

	// MACs.
	{families: []family{macs}, from: []string{"mac"}, to: []string{"verify_mac"}, verdict: computing},
	{families: []family{macs}, from: []string{"verify_mac"}, to: []string{"mac"}, verdict: verdict{attack: (*cell).guessesMAC}},

	// Encryption.
	{families: []family{aead, stream, cbc, xts}, from: []string{"encrypt"}, to: []string{"decrypt"}, verdict: verdict{attack: (*cell).repeatsNonce}},
	{families: []family{ecb}, from: []string{"encrypt"}, to: []string{"decrypt"}, verdict: verdict{attack: (*cell).encryptsTwice}},
	{families: []family{stream, cbc}, from: []string{"decrypt"}, to: []string{"encrypt"}, verdict: own},
	{families: []family{xts, ecb}, from: []string{"decrypt"}, to: []string{"encrypt"}, verdict: verdict{attack: (*cell).decryptsPlaintext}},
	{families: []family{aead}, from: []string{"decrypt"}, to: []string{"encrypt"}, verdict: verdict{attack: (*cell).forges}},
	{families: []family{rsaCrypt}, from: []string{"encrypt"}, to: []string{"decrypt"}, verdict: verdict{attack: (*cell).encryptsTwice}},

	// Secrets.
	{families: []family{kem}, from: []string{"encapsulate"}, to: []string{"decapsulate"}, verdict: verdict{attack: (*cell).encapsulatesAgain}},
	{families: []family{agreement, derivation}, from: []string{"agree", "derive"}, to: []string{stored}, verdict: verdict{attack: (*cell).stores}},
	{families: []family{agreement}, kinds: "hkdf|prf", from: []string{"agree"}, to: []string{policy}, verdict: verdict{attack: (*cell).namesDerivation}},
	{families: []family{derivation}, from: []string{"derive"}, to: []string{policy}, verdict: verdict{attack: (*cell).namesDerivation}},

	// All else has no way to it but the file itself: text that tells the same to all of its readers, and operations
	// whose answers come from nothing that the other file has.
	{from: texts, to: slices.Concat(texts, privates, directory, []string{copied, policy, stored}), verdict: plain},
	{from: operations, to: slices.Concat(texts, directory, []string{policy, copied, stored}), verdict: plain},
	{from: slices.Concat(verifiers, []string{"mac", "verify_mac", "encrypt", "decrypt", "agree", "derive", "encapsulate", "decapsulate", "csr"}), to: []string{"export"}, verdict: plain},
	{families: []family{signing}, from: verifiers, to: slices.Concat(messages, hashes, []string{"csr"}), verdict: plain},
	{families: []family{signing}, from: slices.Concat(messages, hashes), to: []string{"export"}, verdict: plain},
}

// judge finds a cell's rule; nil: nobody thought of it.
func judge(k kind, from, to string) *rule {
	for i, r := range rules {
		if len(r.families) > 0 && !slices.Contains(r.families, k.family) || r.kinds != "" && !regexp.MustCompile(r.kinds).MatchString(k.name) {
			continue
		}
		if slices.Contains(r.from, from) && slices.Contains(r.to, to) {
			return &rules[i]
		}
	}
	return nil
}

// usages are all that a key of a template may do, and to be copied and exported where software does that.
func usages(a psa.Attributes, capabilities []psa.Capability) psa.Usage {
	u := a.Usage
	for op, flag := range map[psa.Operation]psa.Usage{psa.Export: psa.UsageExport, psa.Copy: psa.UsageCopy} {
		if psa.Supports(capabilities, op, a.Type, a.Bits, a.Algorithm) {
			u |= flag
		}
	}
	return u
}
