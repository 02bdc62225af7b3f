package nodes

import (
	"context"
	"slices"
	"syscall"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// kind is how a file of the tree behaves.
type kind int

const (
	text        kind = iota // rendered at open
	staged                  // text that takes input, applied as soon as it is complete
	transaction             // request in, answer out
	stream                  // bytes without end, cut at a bound
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

// input is one named input of an operation.
type input struct {
	name string
	// lead inputs come first in the plain file, before the main one; the rest of the stream is the last input.
	lead bool
	// slotOnly inputs can be given in a directory slot alone; in the plain file they are empty.
	slotOnly bool
	// required inputs are ENODATA when they were not written in a slot.
	required bool
	// whole inputs are needed in full before the operation can begin, and are at most this many bytes.
	whole int64
}

// output is one named output of an operation; the plain file gives them joined, in this order.
type output struct {
	name string
	// slotOnly outputs are given in a directory slot alone.
	slotOnly bool
	// text is what stands for an output that carries no bytes of its own.
	text string
}

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
	text   func(v *view) ([]byte, error)
	unsize bool // size 0, as in /proc: what it says depends on who reads
	// of staged files
	stage func(v *view) stage
	// of transactions
	op      psa.Operation
	alg     psa.Algorithm // where the file itself says it, and no key's policy
	inputs  []input       // none: to read is to ask
	outputs []output
	der     bool // ECDSA signatures go in and out as ASN.1 DER; else as r||s
	// begin is where the provider's own Begin is not what it takes
	begin func(ctx context.Context, f *feed, op psa.Op) (psa.Run, error)
	// names judges what the request names in bytes, as if the reader had opened it
	names func(ctx context.Context, f *feed) error
	help  string
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
}

// rootRows are the files of the mount's root, with number 0.
var rootRows = []*row{
	{number: 2, name: "README", kind: text, mode: 0444, text: (*view).readme, help: "this text"},
	{number: 3, name: "version", kind: text, mode: 0444, text: (*view).version, help: "version of parsecfs"},
	{number: 4, name: "last_error", kind: text, mode: 0444, text: (*view).lastError, unsize: true, help: "your own last 32 failures, newest first: time, pid, path, operation, errno, PSA status, words, hint"},
	{number: 8, name: "log", kind: link, mode: 0777, present: hasTrail, node: (*view).trail,
		help: "the audit trail, root's, where the configuration has one"},
	{number: 5, name: "keys", kind: directory, mode: 0755, node: (*view).aliasesDir,
		help: "aliases: symbolic links to keys of any provider"},
	{number: 6, name: "providers", kind: directory, mode: 0755, node: (*view).providersDir,
		help: "one directory for each provider; default links to the one to use"},
}

// rowDefault is providers/default, which no row of the root is.
const rowDefault = 7

// providerRows are the files of a provider.
var providerRows = []*row{
	{number: 1, name: "info", kind: text, mode: 0444, text: (*view).info, unsize: true, help: "TOML: what this provider is, and what its device says of itself"},
	{number: 2, name: "status", kind: text, mode: 0444, text: (*view).status, unsize: true, help: "ready, or degraded and why"},
	{number: 3, name: "capabilities", kind: text, mode: 0444, text: (*view).providerCapabilities, help: "what this provider can do, a line each; the first word goes into generate"},
	{number: 4, name: "random", kind: stream, mode: 0444, present: keyless(psa.Random), help: "random bytes, at most 64 KiB an open"},
	{number: 6, name: "can_do", kind: transaction, mode: 0666, op: psa.CanDo, begin: beginCanDo,
		inputs: []input{{name: "questions", whole: canDoMost}}, outputs: []output{{name: "answers"}},
		help: "\"sign ecdsa-p256-sha256\" and the like in, a line each; yes or \"no: why\" out for each, and for all in that order on one key"},
	{number: 9, name: "attest", kind: transaction, mode: 0600, op: psa.Attest, present: keyless(psa.Attest), begin: beginKeyless,
		inputs:  []input{{name: "pcrs", slotOnly: true}, {name: "challenge", required: true, whole: psa.MaxChallenge}},
		outputs: []output{{name: "attestation"}, {name: "signature"}, {name: "signer_public", slotOnly: true}},
		help:    "a verifier's challenge in, a quote of PCRs 0 to 7, or of a slot's pcrs (0,7), and the device's signature of it out"},
	{number: 10, name: "activate_credential", kind: transaction, mode: 0600, op: psa.ActivateCredential, present: keyless(psa.ActivateCredential), begin: beginKeyless,
		inputs: []input{{name: "credential", required: true, whole: psa.MaxCredential}}, outputs: []output{{name: "secret"}},
		help: "a verifier's credential in, its secret out: the attestation key is in the TPM with that endorsement key"},
	{number: 11, name: "make_credential", kind: transaction, mode: 0666, op: psa.MakeCredential, present: keyless(psa.MakeCredential), begin: beginKeyless,
		inputs: []input{{name: "public", slotOnly: true}, {name: "endorsement_key", slotOnly: true}, {name: "secret", required: true, whole: psa.MaxCredentialSecret}}, outputs: []output{{name: "credential"}},
		help: "for a verifier: a secret in, a credential for this attestation key out; for others in a slot with public and endorsement_key"},
	{number: 8, name: "capabilities.json", kind: text, mode: 0444, text: (*view).capabilitiesJSON, help: "the same in the syntax of PSA's driver descriptions"},
	{number: 7, name: "hash", kind: directory, mode: 0555, present: hasHashes, node: (*view).hashDir,
		help: "hash/sha256 and so on: message in, digest out"},
	{number: rowKeys, name: "keys", kind: directory, mode: 01777, node: (*view).keysDir,
		help: "the keys: mkdir makes a draft, rmdir destroys"},
}

// rowKeys is a provider's keys/, whose inode is known without its row too.
const rowKeys = 5

// hashRows are the files of hash/: their numbers are the hash's in PSA's encoding behind the provider's own.
var hashRows = newHashRows()

func newHashRows() (rows []*row) {
	const first = 32
	for h := psa.Algorithm(psa.MD2); h <= psa.SHAKE256512; h++ {
		if name := h.HashName(); name != "" {
			rows = append(rows, &row{number: first + uint64(h&0xff), name: name, kind: transaction, mode: 0666, op: psa.Hash, alg: h,
				present: func(v *view) bool { return v.hashes(h) }, begin: beginKeyless,
				inputs: []input{{name: "message"}}, outputs: []output{{name: "hash"}}, help: "message in, digest out"})
		}
	}
	return rows
}

func beginKeyless(ctx context.Context, f *feed, op psa.Op) (psa.Run, error) {
	return f.r.at.provider.Begin(ctx, f.r.uid, op)
}

// hashes says whether the provider hashes without a key; AlgNone asks for any hash.
func (v *view) hashes(h psa.Algorithm) bool {
	return slices.ContainsFunc(v.provider.Capabilities(), func(c psa.Capability) bool {
		return c.Has(psa.Hash) && (h == psa.AlgNone || c.Algorithm == h)
	})
}

func hasHashes(v *view) bool { return v.hashes(psa.AlgNone) }

var importRow = &row{number: 4, name: "import", kind: staged, mode: 0600, present: draft, stage: importStage, help: "a key in PEM or DER (PKCS#8, SEC1, PKCS#1, SubjectPublicKeyInfo) or raw bytes: becomes the key; from root and admins also the name of a key on the device, such as id=HEX or object=LABEL, which stays where it is"}

var signRow = &row{number: 16, name: "sign", kind: transaction, mode: 0600, op: psa.Sign, der: true,
	inputs: []input{{name: "message"}}, outputs: []output{{name: "signature"}},
	help: "message in, signature out (ECDSA: ASN.1 DER)"}

var exportRow = &row{number: 26, name: "export", kind: transaction, mode: 0600, op: psa.Export,
	inputs: []input{{name: "format", whole: 128}}, outputs: []output{{name: "key"}}, begin: beginExport,
	help: "\"pkcs8\", \"pkcs8-der\" or \"raw\" in, the private or secret key out; of a TPM \"tss2\", and in a second line a passphrase for it"}

// keyRows are the files of a key.
var keyRows = []*row{
	{number: 1, name: "attributes", kind: staged, mode: 0644, text: (*view).attributes, stage: attributesStage, help: "TOML: what the key is; a draft's can be written, and allow_destroy, caller_nonce and units by its owner always"},
	{number: 2, name: "capabilities", kind: text, mode: 0444, present: ready, text: (*view).keyCapabilities, help: "the provider's capabilities that this key can serve"},
	{number: 3, name: "generate", kind: staged, mode: 0600, present: draft, stage: generateStage, help: "a template, TOML attributes, or an empty line where attributes are set: makes the key"},
	importRow,
	{number: 11, name: "copy", kind: staged, mode: 0600, present: copies, stage: copyStage,
		help: "the name of a key of this provider, with PSA_KEY_USAGE_COPY, whose export you could open: becomes its copy, with no more rights"},
	{number: 5, name: "public.pem", kind: text, mode: 0444, present: asymmetric, text: (*view).publicPEM, help: "the public key, SubjectPublicKeyInfo in PEM"},
	{number: 6, name: "public.der", kind: text, mode: 0444, present: asymmetric, text: (*view).publicDER, help: "the public key, SubjectPublicKeyInfo in DER"},
	{number: 7, name: "last_error", kind: text, mode: 0444, text: (*view).lastError, unsize: true, help: "your own last failures with this key"},
	{number: 8, name: "public.ssh", kind: text, mode: 0444, present: hasSSH, text: (*view).publicSSH, help: "the public key as OpenSSH's authorized_keys has it"},
	{number: 9, name: "public.jwk", kind: text, mode: 0444, present: hasJWK, text: (*view).publicJWK, help: "the public key as a JSON Web Key (RFC 7517), with its RFC 7638 kid"},
	{number: 10, name: "certificate", kind: staged, mode: 0644, present: asymmetric, text: (*view).certificate, stage: certificateStage,
		help: "a PEM chain that is kept beside the key; its first certificate must be the key's; an empty line removes it"},
	{number: 12, name: "derive", kind: transaction, mode: 0600, op: psa.Derive, names: nameStore, begin: beginAgree,
		inputs:  []input{{name: "salt", slotOnly: true}, {name: "length", slotOnly: true}, {name: "store", slotOnly: true}, {name: "info", whole: psa.MaxDerived}},
		outputs: []output{{name: "secret"}},
		help:    "HKDF's info (or the TLS 1.2 PRF's label) in, derived bytes out; a slot's store names a draft of yours that becomes the key"},
	signRow,
	{number: 17, name: "sign_hash", kind: transaction, mode: 0600, op: psa.SignHash, der: true,
		inputs: []input{{name: "hash", whole: digestMost}}, outputs: []output{{name: "signature"}},
		help: "digest in, signature out (ECDSA: ASN.1 DER)"},
	{number: 18, name: "sign_raw", kind: transaction, mode: 0600, op: psa.Sign, present: isECDSA,
		inputs: []input{{name: "message"}}, outputs: []output{{name: "signature"}},
		help: "message in, signature out as r||s (PSA, JOSE, COSE)"},
	{number: 19, name: "sign_hash_raw", kind: transaction, mode: 0600, op: psa.SignHash, present: isECDSA,
		inputs: []input{{name: "hash", whole: digestMost}}, outputs: []output{{name: "signature"}},
		help: "digest in, signature out as r||s (PSA, JOSE, COSE)"},
	{number: 20, name: "verify", kind: transaction, mode: 0666, op: psa.Verify, der: true,
		inputs: []input{{name: "signature", lead: true, required: true}, {name: "message"}}, outputs: []output{{name: "result", text: "valid\n"}},
		help: "signature, then message in; \"valid\" out, or EBADMSG"},
	{number: 21, name: "verify_hash", kind: transaction, mode: 0666, op: psa.VerifyHash, der: true,
		inputs: []input{{name: "signature", lead: true, required: true}, {name: "hash", whole: digestMost}}, outputs: []output{{name: "result", text: "valid\n"}},
		help: "signature, then digest in; \"valid\" out, or EBADMSG"},
	{number: 22, name: "mac", kind: transaction, mode: 0600, op: psa.Mac,
		inputs: []input{{name: "message"}}, outputs: []output{{name: "mac"}},
		help: "message in, MAC out"},
	{number: 23, name: "verify_mac", kind: transaction, mode: 0600, op: psa.VerifyMac,
		inputs: []input{{name: "mac", lead: true, required: true}, {name: "message"}}, outputs: []output{{name: "result", text: "valid\n"}},
		help: "MAC, then message in; \"valid\" out, or EBADMSG"},
	{number: 24, name: "encrypt", kind: transaction, mode: 0600, open: 0666, op: psa.Encrypt,
		inputs:  []input{{name: "nonce", slotOnly: true}, {name: "additional_data", slotOnly: true}, {name: "plaintext"}},
		outputs: []output{{name: "nonce"}, {name: "ciphertext"}},
		help:    "plaintext in, nonce (where the algorithm has one) || ciphertext || tag out; a slot's nonce is the provider's, or the caller's where attributes have caller_nonce = true"},
	{number: 25, name: "decrypt", kind: transaction, mode: 0600, op: psa.Decrypt,
		inputs:  []input{{name: "nonce", lead: true, required: true}, {name: "additional_data", slotOnly: true}, {name: "ciphertext"}},
		outputs: []output{{name: "plaintext"}},
		help:    "nonce || ciphertext || tag in, plaintext out"},
	exportRow,
	{number: 27, name: "agree", kind: transaction, mode: 0600, op: psa.Agree,
		names: nameStore, begin: beginAgree,
		inputs: []input{{name: "kdf", slotOnly: true}, {name: "salt", slotOnly: true}, {name: "info", slotOnly: true}, {name: "length", slotOnly: true},
			{name: "store", slotOnly: true}, {name: "peer", required: true, whole: psa.MaxPeer}},
		outputs: []output{{name: "secret"}},
		help:    "peer's public key (PEM, DER, or PSA's own bytes) in, shared secret out; a slot's kdf (hkdf-sha256, tls12-prf-sha256) with salt, info and length derives from it, and store names a draft of yours that becomes the key"},
	{number: 30, name: "encapsulate", kind: transaction, mode: 0600, open: 0666, op: psa.Encapsulate,
		outputs: []output{{name: "ciphertext"}, {name: "secret"}},
		help:    "nothing in, ciphertext || secret out: a new secret for the holder of the private key"},
	{number: 31, name: "decapsulate", kind: transaction, mode: 0600, op: psa.Decapsulate,
		inputs: []input{{name: "ciphertext", required: true}}, outputs: []output{{name: "secret"}},
		help: "ciphertext in, secret out"},
	{number: 29, name: "csr", kind: transaction, mode: 0600, op: psa.CSR, begin: beginCSR,
		inputs: []input{{name: "subject", whole: csrMost}}, outputs: []output{{name: "csr"}},
		help: "subject (RFC 4514; further lines DNS:, IP:, URI:, email:) in, PEM certificate request out"},
	{number: 32, name: "attest", kind: transaction, mode: 0600, op: psa.Attest, names: nameSigner, begin: beginAttest,
		inputs:  []input{{name: "signer", slotOnly: true}, {name: "challenge", required: true, whole: psa.MaxChallenge}},
		outputs: []output{{name: "attestation"}, {name: "signature"}, {name: "public", slotOnly: true}, {name: "signer_public", slotOnly: true}},
		help:    "a verifier's challenge in, the device's statement that it has this key, and its signature of that out; a slot's signer names a key of this provider, whose sign you could open, that signs instead"},
	{number: 33, name: "activate_credential", kind: transaction, mode: 0600, op: psa.ActivateCredential,
		inputs: []input{{name: "credential", required: true, whole: psa.MaxCredential}}, outputs: []output{{name: "secret"}},
		help: "a verifier's credential in, its secret out: this key is in the TPM with that endorsement key"},
	{number: 28, name: "verify_raw", kind: transaction, mode: 0666, op: psa.Verify, present: isECDSA,
		inputs: []input{{name: "signature", lead: true, required: true}, {name: "message"}}, outputs: []output{{name: "result", text: "valid\n"}},
		help: "signature as r||s, then message in; \"valid\" out, or EBADMSG"},
}

// digestMost is the longest digest that PSA knows, SHA-512's.
const digestMost = 64

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
	if r.kind == transaction && v.key.Number != 0 && !v.serves(r.op) {
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

// many says whether slots of this row are directories.
func (r *row) many() bool { return len(r.inputs) > 1 || len(r.outputs) > 1 }

// bare says whether the operation takes no input: to read is to ask.
func (r *row) bare() bool { return len(r.inputs) == 0 }

func (v *view) trail(r *row) node { return v.t.link(r.number, r.name, v.t.options.AuditPath) }

func hasTrail(v *view) bool   { return v.t.options.AuditPath != "" }
func draft(v *view) bool      { return v.key.State == kim.Draft }
func ready(v *view) bool      { return v.key.State == kim.Ready }
func asymmetric(v *view) bool { return ready(v) && len(v.key.Public) > 0 }
func isECDSA(v *view) bool    { return v.key.Attributes.Algorithm.IsECDSA() }

// keyless says whether the provider does op without a key.
func keyless(op psa.Operation) func(v *view) bool {
	return func(v *view) bool {
		return psa.Supports(v.provider.Capabilities(), op, psa.KeyTypeNone, 0, psa.AlgNone)
	}
}

// serves says whether the key's policy and the provider allow op. Before a provider was ever reached the policy
// alone decides, so that a missing token takes no file away.
func (v *view) serves(op psa.Operation) bool {
	a := v.key.Attributes
	if v.key.State != kim.Ready {
		return false
	}
	if need := op.Usage(); a.Usage.Extend()&need != need {
		return false
	}
	lines := v.provider.Capabilities()
	if op == psa.CSR {
		return requestsCertificates(a) && v.serves(psa.Sign)
	}
	for _, c := range lines {
		if c.Covers(a.Type, a.Bits, a.Algorithm) && c.Has(op) {
			return true
		}
	}
	return len(lines) == 0
}
