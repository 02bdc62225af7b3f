package software

import (
	"slices"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// table is all that this provider can do: Capabilities shows it, Create and Begin look things up in it.
var table = newTable()

func newTable() []psa.Capability {
	lines := []psa.Capability{{Operations: []psa.Operation{psa.Random}}}
	add := func(t psa.KeyType, bits int, alg psa.Algorithm, ops ...psa.Operation) {
		a := psa.Attributes{Type: t, Bits: bits, Algorithm: alg}
		lines = append(lines, psa.Capability{Template: a.Template(), Type: t, Bits: bits, Algorithm: alg, Operations: ops})
	}
	// A line of its own for export: a template alone never gives EXPORT, and lines that generate work in full.
	addExport := func(t psa.KeyType, bits int, alg psa.Algorithm) { add(t, bits, alg, psa.Import, psa.Export) }
	hashAndSign := func(t psa.KeyType, bits int, alg psa.Algorithm) {
		add(t, bits, alg, psa.Generate, psa.Import, psa.ExportPublic, psa.Sign, psa.SignHash, psa.Verify, psa.VerifyHash)
		addExport(t, bits, alg)
		add(t.PublicKey(), bits, alg, psa.Import, psa.ExportPublic, psa.Verify, psa.VerifyHash)
	}
	for _, h := range []psa.Algorithm{psa.SHA256, psa.SHA384, psa.SHA512, psa.AnyHash} {
		for _, bits := range []int{2048, 3072, 4096} {
			hashAndSign(psa.KeyTypeRSAKeyPair, bits, psa.RSAPKCS1v15Sign(h))
			hashAndSign(psa.KeyTypeRSAKeyPair, bits, psa.RSAPSS(h))
		}
		for bits := range curves {
			hashAndSign(psa.ECCKeyPair(psa.SECPR1), bits, psa.ECDSA(h))
		}
	}
	edwards := psa.ECCKeyPair(psa.TwistedEdwards)
	add(edwards, 255, psa.PureEdDSA, psa.Generate, psa.Import, psa.ExportPublic, psa.Sign, psa.Verify)
	addExport(edwards, 255, psa.PureEdDSA)
	add(edwards.PublicKey(), 255, psa.PureEdDSA, psa.Import, psa.ExportPublic, psa.Verify)
	add(psa.KeyTypeAES, 256, psa.GCM, psa.Generate, psa.Import, psa.Encrypt, psa.Decrypt)
	addExport(psa.KeyTypeAES, 256, psa.GCM)
	psa.SortCapabilities(lines)
	return lines
}

// supports says whether the table has op for such a key and algorithm.
func supports(op psa.Operation, t psa.KeyType, bits int, alg psa.Algorithm) bool {
	return slices.ContainsFunc(table, func(c psa.Capability) bool {
		return c.Type == t && c.Bits == bits && c.Algorithm == alg && c.Has(op)
	})
}

func errUnsupported(what psa.Operation, a psa.Attributes, alg psa.Algorithm) error {
	return psa.Errorf(psa.StatusNotSupported, "%s: a %s key of %d bits and %s do not go together in software", what, a.Type, a.Bits, alg).
		WithHint("the capabilities file lists what this provider does")
}
