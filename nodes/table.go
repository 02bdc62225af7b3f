package nodes

import (
	"context"
	"slices"
	"syscall"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/transaction"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/pki"
)

// kind is how a file of the tree behaves.
type kind int

const (
	text    kind = iota // rendered at open
	staged              // text that takes input, applied as soon as it is complete
	request             // request in, answer out
	stream              // bytes without end, cut at a bound
	directory
	link
)

// bits are the file type of a kind in a mode (inode(7)).
func (k kind) bits() uint32 {
	switch k {
	case directory:
		return syscall.S_IFDIR
	case link:
		return syscall.S_IFLNK
	}
	return syscall.S_IFREG
}

type (
	input  = transaction.Input
	output = transaction.Output
)

// row is one file of the tree.
type row struct {
	number  uint64 // its inode within its key, provider or the root; never changed, never reused
	name    string
	kind    kind
	mode    uint32 // permission bits
	open    uint32 // mode for public keys, where it differs
	present func(v *view) bool
	// of directories and links: makes the node
	node func(v *view, r *row) node
	// of texts
	text    func(v *view) ([]byte, error)
	changes bool // what it says changes with what the kernel does not see
	asks    bool // a device, which is not asked each time
	own     bool // what it says depends on who reads
	drafts  bool // of a draft alone
	always  bool // a key's text that says nothing of its row, and so is there also while rows cannot be proven
	// of staged files
	stage func(v *view) stage
	// of requests
	op   psa.Operation
	alg  psa.Algorithm // where the file itself says it, and no key's policy
	spec transaction.Spec
	// make is where the provider's own operation is not what it takes
	make func(o operation) transaction.Operation
	help string
}

// slotsNumber is added to a transaction's row number for its directory of slots.
const slotsNumber = 128

// tables are all rows, by whose they are. A tree has them: a row makes nodes that show other tables, or its own again,
// and Go begins no variable with itself.
type tables struct{ root, provider, hash, key []*row }

// view is what a row is judged and rendered from.
type view struct {
	ctx      context.Context
	t        *Tree
	provider *kim.Provider
	key      kim.Key
	uid      uint32
	opener   uint32 // of a staged file that is written, who opened it
	undo     *undo  // of a staged file that is written
}

// rootRows are the files of the mount's root, with number 0.
var rootRows = []*row{
	{number: 2, name: "README", kind: text, mode: 0444, text: (*view).readme, help: "this text"},
	{number: 3, name: "version", kind: text, mode: 0444, text: (*view).version, help: "version of parsecfs"},
	{number: 4, name: "last_error", kind: text, mode: 0444, text: (*view).lastError, own: true,
		help: "your own last 32 failures, oldest first; equal ones in a row share a line with a count"},
	{number: 8, name: "log", kind: link, mode: 0777, present: hasTrail, node: (*view).trail,
		help: "the audit trail, if the configuration has one; only root can read it"},
	{number: 5, name: "keys", kind: directory, mode: 0755, node: (*view).aliasesDir,
		help: "aliases: symbolic links to keys of any provider; only root makes them, since other users' programs follow them"},
	{number: 6, name: "providers", kind: directory, mode: 0755, node: (*view).providersDir,
		help: "one directory for each provider; default links to the one to use"},
}

// rowDefault is providers/default, which no row of the root is.
const rowDefault = 7

// providerRows are the files of a provider.
var providerRows = []*row{
	{number: 1, name: "info", kind: text, mode: 0444, text: (*view).info, asks: true,
		help: "TOML: a description of this provider and its device"},
	{number: 2, name: "status", kind: text, mode: 0444, text: (*view).status, asks: true,
		help: "ready, or degraded and why"},
	{number: 3, name: "capabilities", kind: text, mode: 0444, changes: true, text: (*view).providerCapabilities,
		help: "what this provider can do, a line for each kind of key and algorithm"},
	{number: 12, name: "templates", kind: text, mode: 0444, changes: true, text: (*view).templates,
		help: "what generate takes, the common ones first"},
	{number: 4, name: "random", kind: stream, mode: 0444, present: keyless(psa.Random, psa.AlgNone),
		help: "random bytes, at most 64 KiB an open"},
	{number: 6, name: "can_do", kind: request, mode: 0666, op: psa.CanDo, make: makes(canDo),
		spec: transaction.Spec{Inputs: []input{{Name: "questions", Whole: maxQuestions}}, Outputs: []output{{Name: "answers"}}},
		help: "questions like \"sign ecdsa-p256-sha256\" in, one a line; \"yes\" or \"no: why\" out for each, then for all in order on one key"},
	{number: 9, name: "attest", kind: request, mode: 0600, op: psa.Attest, present: keyless(psa.Attest, psa.AlgNone),
		spec: transaction.Spec{Inputs: []input{{Name: "pcrs"}, {Name: "challenge", Required: always, Whole: psa.MaxChallenge}}, Outputs: []output{{Name: "attestation"}, {Name: "signature"}, {Name: "signer_public", SlotOnly: true}}},
		help: "a verifier's challenge in, a signed quote of PCRs 0 to 7 out; a slot's pcrs (0,7) choose others"},
	{number: 10, name: "activate_credential", kind: request, mode: 0600, op: psa.ActivateCredential, present: keyless(psa.ActivateCredential, psa.AlgNone),
		spec: transaction.Spec{Inputs: []input{{Name: "credential", Required: always, Whole: psa.MaxCredential}}, Outputs: []output{{Name: "secret"}}},
		help: "a verifier's credential in, its secret out; this proves that the attestation key is in the TPM with that endorsement key"},
	{number: 11, name: "make_credential", kind: request, mode: 0666, op: psa.MakeCredential, present: keyless(psa.MakeCredential, psa.AlgNone),
		spec: transaction.Spec{Inputs: []input{{Name: "public"}, {Name: "endorsement_key"}, {Name: "secret", Required: always, Whole: psa.MaxCredentialSecret}}, Outputs: []output{{Name: "credential"}}},
		help: "for a verifier: a secret in, a credential for this TPM's attestation key out; a slot's public and endorsement_key choose others"},
	{number: 8, name: "capabilities.json", kind: text, mode: 0444, changes: true, text: (*view).capabilitiesJSON,
		help: "the same in the syntax of PSA's driver descriptions"},
	{number: 7, name: "hash", kind: directory, mode: 0555, present: lists(psa.Hash), node: (*view).hashDir,
		help: "hash/sha256 and so on: message in, digest out"},
	{number: rowKeys, name: "keys", kind: directory, mode: 01777, node: (*view).keysDir,
		help: "keys with names that all users share: mkdir makes a draft, rmdir destroys a key"},
	{number: rowUsers, name: "users", kind: directory, mode: 0711, present: hasUsers, node: (*view).usersDir,
		help: "a directory like keys/ for each uid (mode 0700); nobody else sees its names"},
	{number: 14, name: "mine", kind: link, mode: 0777, present: hasUsers, node: (*view).mine,
		help: "a link to your own directory in users/"},
}

// rowKeys and rowUsers are a provider's keys/ and users/, whose inodes are known without their rows too.
const (
	rowKeys  = 5
	rowUsers = 13
)

// hashRows are the files of hash/: their numbers are the hash's in PSA's encoding behind the provider's own.
var hashRows = newHashRows()

func newHashRows() (rows []*row) {
	const first = 32
	for h := psa.Algorithm(psa.MD2); h <= psa.SHAKE256512; h++ {
		if name := h.HashName(); name != "" {
			rows = append(rows, &row{number: first + uint64(h&0xff), name: name, kind: request, mode: 0666, op: psa.Hash, alg: h,
				present: keyless(psa.Hash, h),
				spec:    transaction.Spec{Inputs: []input{{Name: "message"}}, Outputs: []output{{Name: "hash"}}}, help: "message in, digest out"})
		}
	}
	return rows
}

var importRow = &row{number: 4, name: "import", kind: staged, mode: 0600, present: draft, drafts: true, stage: importStage,
	help: "a key in PEM or DER (PKCS#8, SEC1, PKCS#1, OpenSSH, SubjectPublicKeyInfo) or raw bytes: becomes the key; from root " +
		"and admins also the name of a key on the device, such as id=HEX or object=LABEL, which stays where it is"}

var signRow = &row{number: 16, name: "sign", kind: request, mode: 0600, op: psa.Sign,
	spec: transaction.Spec{Inputs: []input{{Name: "message"}}, Outputs: []output{derSignature}},
	help: "message in, signature out (ECDSA: ASN.1 DER)"}

var exportRow = &row{number: 26, name: "export", kind: request, mode: 0600, op: psa.Export,
	spec: transaction.Spec{Inputs: []input{{Name: "format", Whole: psa.MaxExport}}, Outputs: []output{{Name: "key"}}}, make: makes(export),
	help: "\"pkcs8\", \"pkcs8-der\" or \"raw\" in, the private or secret key out; a TPM takes \"tss2\", and in a second line its passphrase"}

// keyRows are the files of a key.
var keyRows = []*row{
	{number: 1, name: "attributes", kind: staged, mode: 0644, text: (*view).attributes, stage: attributesStage,
		help: "TOML: a description of the key; can be written in a draft; the owner can always set allow_destroy, caller_nonce, failures, units"},
	{number: 2, name: "capabilities", kind: text, mode: 0444, present: ready, changes: true, text: (*view).keyCapabilities,
		help: "the provider's capabilities that this key can serve"},
	{number: 3, name: "generate", kind: staged, mode: 0600, present: draft, drafts: true, stage: generateStage,
		help: "a template, TOML attributes, or an empty line if attributes are set: makes the key"},
	importRow,
	{number: 11, name: "copy", kind: staged, mode: 0600, drafts: true, present: func(v *view) bool { return draft(v) && lists(psa.Copy)(v) }, stage: copyStage,
		help: "the name of a key (or keys/, mine/ or users/UID/ and its name) with PSA_KEY_USAGE_COPY, whose export you could " +
			"open: becomes its copy, with no more rights"},
	{number: 5, name: "public.pem", kind: text, mode: 0444, present: asymmetric, text: (*view).publicPEM,
		help: "the public key, SubjectPublicKeyInfo in PEM"},
	{number: 6, name: "public.der", kind: text, mode: 0444, present: asymmetric, text: (*view).publicDER,
		help: "the public key, SubjectPublicKeyInfo in DER"},
	{number: 7, name: "last_error", kind: text, mode: 0444, text: (*view).lastError, own: true, always: true,
		help: "your own last failures with this key"},
	{number: 8, name: "public.ssh", kind: text, mode: 0444, present: has(pki.SSH), changes: true, text: (*view).publicSSH,
		help: "the public key as OpenSSH's authorized_keys has it"},
	{number: 9, name: "public.jwk", kind: text, mode: 0444, present: has(pki.JWK), text: (*view).publicJWK,
		help: "the public key as a JSON Web Key (RFC 7517), with its RFC 7638 kid"},
	{number: 10, name: "certificate", kind: staged, mode: 0644, present: asymmetric, text: (*view).certificate, stage: certificateStage,
		help: "a PEM chain that is kept beside the key; its first certificate must be the key's; " +
			"it is stored when the file is closed, whole or not at all; an empty line removes it"},
	{number: 12, name: "derive", kind: request, mode: 0600, op: psa.Derive, make: agrees,
		spec: transaction.Spec{Inputs: []input{{Name: "salt"}, {Name: "length"}, {Name: "store"}, {Name: "info", Whole: psa.MaxDerived}}, Outputs: []output{{Name: "secret"}}},
		help: "HKDF's info (or the TLS 1.2 PRF's label) in, derived bytes out; in a slot, store takes the name of your draft to make it the key"},
	signRow,
	{number: 17, name: "sign_hash", kind: request, mode: 0600, op: psa.SignHash,
		spec: transaction.Spec{Inputs: []input{{Name: "hash", Whole: maxDigest}}, Outputs: []output{derSignature}},
		help: "digest in, signature out (ECDSA: ASN.1 DER)"},
	{number: 18, name: "sign_raw", kind: request, mode: 0600, op: psa.Sign, present: isECDSA,
		spec: transaction.Spec{Inputs: []input{{Name: "message"}}, Outputs: []output{{Name: "signature"}}},
		help: "message in, signature out as r||s (PSA, JOSE, COSE)"},
	{number: 19, name: "sign_hash_raw", kind: request, mode: 0600, op: psa.SignHash, present: isECDSA,
		spec: transaction.Spec{Inputs: []input{{Name: "hash", Whole: maxDigest}}, Outputs: []output{{Name: "signature"}}},
		help: "digest in, signature out as r||s (PSA, JOSE, COSE)"},
	{number: 20, name: "verify", kind: request, mode: 0666, op: psa.Verify,
		spec: transaction.Spec{Inputs: []input{signatureDER, {Name: "message"}}, Outputs: []output{valid}},
		help: "signature, then message in; \"valid\" out, or EBADMSG"},
	{number: 21, name: "verify_hash", kind: request, mode: 0666, op: psa.VerifyHash,
		spec: transaction.Spec{Inputs: []input{signatureDER, {Name: "hash", Whole: maxDigest}}, Outputs: []output{valid}},
		help: "signature, then digest in; \"valid\" out, or EBADMSG"},
	{number: 22, name: "mac", kind: request, mode: 0600, op: psa.Mac,
		spec: transaction.Spec{Inputs: []input{{Name: "message"}}, Outputs: []output{{Name: "mac"}}},
		help: "message in, MAC out"},
	{number: 23, name: "verify_mac", kind: request, mode: 0600, op: psa.VerifyMac,
		spec: transaction.Spec{Inputs: []input{macFirst, {Name: "message"}}, Outputs: []output{valid}},
		help: "MAC, then message in; \"valid\" out, or EBADMSG"},
	{number: 24, name: "encrypt", kind: request, mode: 0600, open: 0666, op: psa.Encrypt,
		spec: transaction.Spec{Inputs: []input{{Name: "nonce"}, {Name: "additional_data", Long: true}, {Name: "plaintext"}}, Outputs: []output{{Name: "nonce"}, {Name: "ciphertext"}}},
		help: "plaintext in, nonce (if the algorithm has one) || ciphertext || tag out; with caller_nonce = true in attributes, a slot's nonce can be written"},
	{number: 25, name: "decrypt", kind: request, mode: 0600, op: psa.Decrypt,
		spec: transaction.Spec{Inputs: []input{nonceFirst, {Name: "additional_data", Long: true}, {Name: "ciphertext"}}, Outputs: []output{{Name: "plaintext"}}},
		help: "nonce || ciphertext || tag in, plaintext out"},
	exportRow,
	{number: 27, name: "agree", kind: request, mode: 0600, op: psa.Agree,
		make: agrees,
		spec: transaction.Spec{Outputs: []output{{Name: "secret"}}, Inputs: []input{{Name: "kdf"}, {Name: "salt"}, {Name: "info"}, {Name: "length"},
			{Name: "store"}, {Name: "peer", Required: always, Whole: psa.MaxPeer}}},
		help: "peer's public key (PEM, DER, or PSA's own bytes) in, shared secret out; a slot can derive from it with kdf (hkdf-sha256, " +
			"tls12-prf-sha256), salt, info and length; write the name of your draft to store to make it the key"},
	{number: 30, name: "encapsulate", kind: request, mode: 0600, open: 0666, op: psa.Encapsulate,
		spec: transaction.Spec{Outputs: []output{{Name: "ciphertext"}, {Name: "secret"}}},
		help: "no input; ciphertext || secret out: a new secret for the holder of the private key"},
	{number: 31, name: "decapsulate", kind: request, mode: 0600, op: psa.Decapsulate,
		spec: transaction.Spec{Inputs: []input{{Name: "ciphertext", Required: always}}, Outputs: []output{{Name: "secret"}}},
		help: "ciphertext in, secret out"},
	{number: 29, name: "csr", kind: request, mode: 0600, op: psa.CSR, make: makes(certify),
		spec: transaction.Spec{Inputs: []input{{Name: "subject", Whole: pki.MaxSubject}}, Outputs: []output{{Name: "csr"}}},
		help: "subject (RFC 4514; further lines DNS:, IP:, URI:, email:, keyUsage:, extendedKeyUsage:, challengePassword:) in, " +
			"PEM certificate request out"},
	{number: 32, name: "attest", kind: request, mode: 0600, op: psa.Attest, make: attests,
		spec: transaction.Spec{Inputs: []input{{Name: "signer"}, {Name: "challenge", Required: always, Whole: psa.MaxChallenge}}, Outputs: []output{{Name: "attestation"}, {Name: "signature"}, {Name: "public", SlotOnly: true}, {Name: "signer_public", SlotOnly: true}}},
		help: "a verifier's challenge in, the device's signed statement that it has this key out; in a slot, write the " +
			"name of a key of this provider to signer (you must be able to open its sign) to let that key sign"},
	{number: 33, name: "activate_credential", kind: request, mode: 0600, op: psa.ActivateCredential,
		spec: transaction.Spec{Inputs: []input{{Name: "credential", Required: always, Whole: psa.MaxCredential}}, Outputs: []output{{Name: "secret"}}},
		help: "a verifier's credential in, its secret out; this proves that the key is in the TPM with that endorsement key"},
	{number: 28, name: "verify_raw", kind: request, mode: 0666, op: psa.Verify, present: isECDSA,
		spec: transaction.Spec{Inputs: []input{signatureRaw, {Name: "message"}}, Outputs: []output{valid}},
		help: "signature as r||s, then message in; \"valid\" out, or EBADMSG"},
}

// Inputs that stand in front of the main one in the plain file, where bytes alone tell where they end.
var (
	signatureDER = input{Name: "signature", Required: always, Cut: psa.CutSignature}
	signatureRaw = input{Name: "signature", Required: always, Cut: psa.CutRawSignature}
	macFirst     = input{Name: "mac", Required: always, Cut: psa.CutMAC}
	nonceFirst   = input{Name: "nonce", Required: hasNonce, Cut: psa.CutNonce}
)

// Outputs that several operations have.
var (
	derSignature = output{Name: "signature", Encode: psa.Attributes.DERSignature}
	valid        = output{Name: "result", Text: "valid\n"}
)

func always(psa.Attributes) bool { return true }

// hasNonce is for decrypt: ciphertext stands without the nonce in a slot, and without one nothing can be decrypted.
func hasNonce(a psa.Attributes) bool { return a.Algorithm.NonceLength() > 0 }

// maxDigest is the longest digest that PSA knows, SHA-512's.
const maxDigest = 64

func find(rows []*row, name string) *row {
	for _, r := range rows {
		if r.name == name {
			return r
		}
	}
	return nil
}

// path is the file below its provider or key.
func (r *row) path() string {
	if r.op == psa.Hash {
		return "hash/" + r.name
	}
	return r.name
}

func (r *row) shown(v *view) bool {
	if r.kind == request && v.key.Number != 0 && !v.serves(r.op) {
		return false
	}
	return r.present == nil || r.present(v)
}

func (r *row) modeFor(v *view) uint32 {
	if r.open != 0 && v.key.Attributes.Type.IsPublicKey() {
		return r.open
	}
	return r.mode
}

// bare says whether the operation takes no input: to read is to ask.
func (r *row) bare() bool { return len(r.spec.Inputs) == 0 }

func (v *view) trail(r *row) node { return v.t.link(r.number, r.name, v.t.options.AuditPath) }

func hasTrail(v *view) bool   { return v.t.options.AuditPath != "" }
func draft(v *view) bool      { return v.key.State == kim.Draft }
func ready(v *view) bool      { return v.key.State == kim.Ready }
func asymmetric(v *view) bool { return ready(v) && len(v.key.Public) > 0 }
func isECDSA(v *view) bool    { return v.key.Attributes.Algorithm.IsECDSA() }

// lists says whether the provider does op with any key or algorithm.
func lists(op psa.Operation) func(v *view) bool {
	return func(v *view) bool {
		return slices.ContainsFunc(v.provider.Capabilities(), func(c psa.Capability) bool { return c.Has(op) })
	}
}

// keyless says whether the provider does op without a key.
func keyless(op psa.Operation, alg psa.Algorithm) func(v *view) bool {
	return func(v *view) bool {
		return psa.Supports(v.provider.Capabilities(), op, psa.KeyTypeNone, 0, alg)
	}
}

// serves says whether the key's policy and the provider allow op. Before a provider was ever reached the policy
// alone decides, so that a missing token takes no file away.
func (v *view) serves(op psa.Operation) bool {
	return ready(v) && v.key.Attributes.Serves(v.provider.Capabilities(), op)
}
