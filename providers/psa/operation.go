package psa

// Operation names one thing that can be done with a key, as the capabilities files spell it.
type Operation string

// The operations of PSA Crypto and Parsec's contract.
const (
	Generate     Operation = "generate"
	Import       Operation = "import"
	Copy         Operation = "copy"
	ExportPublic Operation = "export_public"
	Export       Operation = "export"
	Sign         Operation = "sign"
	SignHash     Operation = "sign_hash"
	Verify       Operation = "verify"
	VerifyHash   Operation = "verify_hash"
	Encrypt      Operation = "encrypt"
	Decrypt      Operation = "decrypt"
	Mac          Operation = "mac"
	VerifyMac    Operation = "verify_mac"
	Agree        Operation = "agree"
	Derive       Operation = "derive"
	Encapsulate  Operation = "encapsulate"
	Decapsulate  Operation = "decapsulate"
	CSR          Operation = "csr" // a certificate request, which parsecfs makes where a provider signs
	// What a TPM says of its keys and, without a key, of itself (TCG TPM 2.0, part 3, 18.2, 18.4, 12.5, 12.6). Attest gives
	// "attestation" (TPMS_ATTEST), "signature" as X.509 has it (ECDSA: ASN.1 DER), "signer_public"
	// (SubjectPublicKeyInfo in PEM) and, of a key, "public" (TPMT_PUBLIC).
	Attest             Operation = "attest"
	ActivateCredential Operation = "activate_credential"
	MakeCredential     Operation = "make_credential" // never with a key
	Hash               Operation = "hash"            // without a key, as random
	CanDo              Operation = "can_do"          // never in a capability: it asks for them
	Random             Operation = "random"
)

// Bounds of attestation, in bytes.
const (
	MaxChallenge        = 64      // TPM2B_DATA
	MaxCredential       = 2 << 10 // a credential, encrypted
	MaxCredentialSecret = 32      // what it holds: TPM2B_DIGEST of SHA-256
)

// Operations lists every operation, in the order in which capability lines name them.
func Operations() []Operation {
	return []Operation{Generate, Import, Copy, ExportPublic, Export, Sign, SignHash, Verify, VerifyHash, Encrypt, Decrypt,
		Mac, VerifyMac, Agree, Derive, Encapsulate, Decapsulate,
		Attest, ActivateCredential, MakeCredential, CSR, Hash, Random}
}

// Usage is the one flag that the operation needs in a key's policy, 0 if it needs none.
func (o Operation) Usage() Usage {
	switch o {
	case Copy:
		return UsageCopy
	case Export:
		return UsageExport
	case Sign, CSR, Mac: // psa_mac_compute
		return UsageSignMessage
	case SignHash:
		return UsageSignHash
	case Verify, VerifyMac: // psa_mac_verify
		return UsageVerifyMessage
	case VerifyHash:
		return UsageVerifyHash
	case Encrypt, Encapsulate: // psa_encapsulate
		return UsageEncrypt
	case Decrypt, Decapsulate: // psa_decapsulate
		return UsageDecrypt
	case Agree, Derive: // psa_raw_key_agreement, psa_key_derivation_input_key
		return UsageDerive
	}
	return 0
}
