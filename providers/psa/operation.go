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
	CSR          Operation = "csr"    // a certificate request, which parsecfs makes where a provider signs
	Hash         Operation = "hash"   // without a key, as random
	CanDo        Operation = "can_do" // never in a capability: it asks for them
	Random       Operation = "random"
)

// Operations lists every operation, in the order in which capability lines name them.
func Operations() []Operation {
	return []Operation{Generate, Import, Copy, ExportPublic, Export, Sign, SignHash, Verify, VerifyHash, Encrypt, Decrypt,
		Mac, VerifyMac, Agree, Derive, Encapsulate, Decapsulate, CSR, Hash, Random}
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
