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
