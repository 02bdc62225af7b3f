package software

import "github.com/parsecfs/parsecfs/providers/psa"

// slowRSA is the size of RSA keys beyond which a private operation is slow; one with 4096 bits takes about 5 ms.
const slowRSA = 4096

// Slow says whether an operation takes 10 ms of a processor or more, up to seconds.
func (provider) Slow(op psa.Operation, a psa.Attributes) bool {
	switch op {
	case psa.Generate:
		return a.Type.IsRSA()
	case psa.Import:
		return a.Type == psa.KeyTypeRSAKeyPair && a.Bits > slowRSA
	case psa.Sign, psa.SignHash, psa.Decrypt:
		return a.Type.IsRSA() && a.Bits > slowRSA || a.Type.IsSLHDSA()
	}
	return false
}

// quickRSA is the size of RSA keys up to which a private operation is quick.
const quickRSA = 2048

// Quick is by what was measured: of the curves, those that take longer are computed with math/big or have 521 bits.
func (provider) Quick(op psa.Operation, a psa.Attributes) bool {
	switch op {
	case psa.Hash, psa.Mac, psa.VerifyMac, psa.Derive, psa.Encapsulate, psa.Decapsulate:
		return true
	case psa.Verify, psa.VerifyHash, psa.Encrypt:
		return a.Type.IsRSA() || quickKey(a)
	case psa.Sign, psa.SignHash, psa.Decrypt, psa.Agree:
		return a.Type.IsRSA() && a.Bits <= quickRSA || quickKey(a)
	}
	return false
}

// quickKey says whether a key other than RSA's computes everything in a millisecond.
func quickKey(a psa.Attributes) bool {
	t := a.Type
	if t.IsECC() {
		return a.Bits <= 448 && brainpools[kind{t.KeyPair(), a.Bits}] == nil
	}
	return !t.IsRSA() && !t.IsSLHDSA()
}
