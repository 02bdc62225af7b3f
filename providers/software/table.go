package software

import (
	"github.com/parsecfs/parsecfs/providers/psa"
)

// rsaBits are the sizes of RSA keys; 1024 is deprecated, and too short for the longer hashes.
var rsaBits = []int{1024, 2048, 3072, 4096}

// rsaLeast and rsaMost are the sizes of RSA keys that can be imported, with those from rsaWeak on deprecated; secretMost is that
// of keys of any length.
const (
	rsaWeak    = 1024
	rsaLeast   = 2048
	rsaMost    = 8192
	secretMost = 8192
)

func fitsRSA(bits int, h psa.Algorithm) bool {
	return bits > rsaWeak || h != psa.AnyHash && h.HashLength() <= 32
}

// table is all that this provider can do. Capabilities lists it, and Create and Begin look it up.
var table = newTable()

func newTable() []psa.Capability {
	lines := []psa.Capability{{Operations: []psa.Operation{psa.Random}}}
	add := func(t psa.KeyType, bits int, alg psa.Algorithm, ops ...psa.Operation) {
		a := psa.Attributes{Type: t, Bits: bits, Algorithm: alg}
		lines = append(lines, psa.Capability{Template: a.Template(), Type: t, Bits: bits, Algorithm: alg, Operations: ops})
	}
	// These have a line of their own, because a template alone never gives COPY or EXPORT, and every operation of a line
	// that generates must work.
	addExport := func(t psa.KeyType, bits int, alg psa.Algorithm) { add(t, bits, alg, psa.Import, psa.Copy, psa.Export) }
	span := func(t psa.KeyType, least, most int, alg psa.Algorithm, ops ...psa.Operation) {
		lines = append(lines, psa.Capability{Type: t, Bits: least, Most: most, Algorithm: alg, Operations: ops})
	}
	// Keys of some sizes are generated, those of all sizes imported; the smallest one, where the hash fits.
	rsaKeys := func(alg, h psa.Algorithm, ops []psa.Operation, public ...psa.Operation) {
		pair := psa.KeyTypeRSAKeyPair
		for _, bits := range rsaBits {
			if fitsRSA(bits, h) {
				add(pair, bits, alg, append([]psa.Operation{psa.Generate, psa.Import, psa.ExportPublic}, ops...)...)
			}
		}
		weak := rsaWeak
		if !fitsRSA(weak, h) {
			weak += 8
		}
		for _, sizes := range [][2]int{{weak, rsaLeast - 8}, {rsaLeast, rsaMost}} {
			span(pair, sizes[0], sizes[1], alg, append([]psa.Operation{psa.Import, psa.ExportPublic}, ops...)...)
			span(pair, sizes[0], sizes[1], alg, psa.Import, psa.Copy, psa.Export)
			span(pair.PublicKey(), sizes[0], sizes[1], alg, append([]psa.Operation{psa.Import, psa.ExportPublic}, public...)...)
		}
	}
	hashAndSign := func(t psa.KeyType, bits int, alg psa.Algorithm) {
		add(t, bits, alg, psa.Generate, psa.Import, psa.ExportPublic, psa.Sign, psa.SignHash, psa.Verify, psa.VerifyHash)
		addExport(t, bits, alg)
		add(t.PublicKey(), bits, alg, psa.Import, psa.ExportPublic, psa.Verify, psa.VerifyHash)
	}
	secret := func(t psa.KeyType, bits int, alg psa.Algorithm, ops ...psa.Operation) {
		add(t, bits, alg, append([]psa.Operation{psa.Generate, psa.Import}, ops...)...)
		addExport(t, bits, alg)
	}
	hashes := []psa.Algorithm{psa.SHA224, psa.SHA256, psa.SHA384, psa.SHA512, psa.SHA3_224, psa.SHA3_256, psa.SHA3_384, psa.SHA3_512}
	for _, h := range hashes {
		lines = append(lines, psa.Capability{Algorithm: h, Operations: []psa.Operation{psa.Hash}})
	}
	for _, h := range append(hashes[:len(hashes):len(hashes)], psa.AnyHash) {
		for _, alg := range []psa.Algorithm{psa.RSAPKCS1v15Sign(h), psa.RSAPSS(h)} {
			rsaKeys(alg, h, []psa.Operation{psa.Sign, psa.SignHash, psa.Verify, psa.VerifyHash}, psa.Verify, psa.VerifyHash)
		}
		for bits := range curves {
			hashAndSign(psa.ECCKeyPair(psa.SECPR1), bits, psa.ECDSA(h))
			hashAndSign(psa.ECCKeyPair(psa.SECPR1), bits, psa.DeterministicECDSA(h))
		}
	}
	for _, k := range foreign() {
		for _, h := range []psa.Algorithm{psa.SHA256, psa.SHA384, psa.SHA512, psa.AnyHash} {
			hashAndSign(k.t, k.bits, psa.ECDSA(h))
		}
	}
	crypt := []psa.Operation{psa.Encrypt, psa.Decrypt}
	rsaKeys(psa.RSAPKCS1v15Crypt, psa.SHA256, crypt, psa.Encrypt)
	for _, h := range hashes {
		rsaKeys(psa.RSAOAEP(h), h, crypt, psa.Encrypt)
	}
	edwards := psa.ECCKeyPair(psa.TwistedEdwards)
	add(edwards, 255, psa.PureEdDSA, psa.Generate, psa.Import, psa.ExportPublic, psa.Sign, psa.Verify)
	addExport(edwards, 255, psa.PureEdDSA)
	add(edwards.PublicKey(), 255, psa.PureEdDSA, psa.Import, psa.ExportPublic, psa.Verify)
	agreement := func(t psa.KeyType, bits int) {
		for _, alg := range agreements() {
			add(t, bits, alg, psa.Generate, psa.Import, psa.ExportPublic, psa.Agree)
			addExport(t, bits, alg)
		}
	}
	for bits := range curves {
		if bits != 224 { // crypto/ecdh has no P-224
			agreement(psa.ECCKeyPair(psa.SECPR1), bits)
		}
	}
	agreement(psa.ECCKeyPair(psa.Montgomery), 255)
	for k, s := range schemes {
		switch {
		case s.agree != nil:
			agreement(k.t, k.bits)
		case s.encapsulate != nil:
			add(k.t, k.bits, psa.MLKEM, psa.Generate, psa.Import, psa.ExportPublic, psa.Encapsulate, psa.Decapsulate)
			addExport(k.t, k.bits, psa.MLKEM)
			add(k.t.PublicKey(), k.bits, psa.MLKEM, psa.Import, psa.ExportPublic, psa.Encapsulate)
		default:
			alg := psa.SLHDSA
			switch {
			case k.t == psa.KeyTypeMLDSAKeyPair:
				alg = psa.MLDSA
			case k.t.Family() == psa.TwistedEdwards:
				alg = psa.PureEdDSA
			}
			add(k.t, k.bits, alg, psa.Generate, psa.Import, psa.ExportPublic, psa.Sign, psa.Verify)
			addExport(k.t, k.bits, alg)
			add(k.t.PublicKey(), k.bits, alg, psa.Import, psa.ExportPublic, psa.Verify)
		}
	}
	for _, bits := range []int{128, 192, 256} {
		for _, alg := range []psa.Algorithm{psa.GCM, psa.CCM, psa.CTR, psa.CBCNoPadding, psa.CBCPKCS7, psa.CFB, psa.OFB, psa.ECBNoPadding} {
			secret(psa.KeyTypeAES, bits, alg, psa.Encrypt, psa.Decrypt)
		}
		for _, n := range []int{12, 13, 14, 15} { // SP 800-38D, 5.2.1.2
			secret(psa.KeyTypeAES, bits, psa.AEADWithShortenedTag(psa.GCM, n), psa.Encrypt, psa.Decrypt)
		}
		for _, n := range []int{4, 6, 8, 10, 12, 14} { // SP 800-38C, A.1
			secret(psa.KeyTypeAES, bits, psa.AEADWithShortenedTag(psa.CCM, n), psa.Encrypt, psa.Decrypt)
		}
		secret(psa.KeyTypeAES, bits, psa.CMAC, psa.Mac, psa.VerifyMac)
		for _, n := range []int{4, 8, 12} {
			secret(psa.KeyTypeAES, bits, psa.TruncatedMAC(psa.CMAC, n), psa.Mac, psa.VerifyMac)
		}
	}
	for _, bits := range []int{256, 512} { // IEEE 1619 knows no XTS with AES-192
		secret(psa.KeyTypeAES, bits, psa.XTS, psa.Encrypt, psa.Decrypt)
	}
	secret(psa.KeyTypeChaCha20, 256, psa.ChaCha20Poly1305, psa.Encrypt, psa.Decrypt)
	// Keys of any length are imported, and generated as long as the hash.
	anyLength := func(t psa.KeyType, bits int, alg psa.Algorithm, ops ...psa.Operation) {
		add(t, bits, alg, append([]psa.Operation{psa.Generate, psa.Import}, ops...)...)
		span(t, 8, secretMost, alg, append([]psa.Operation{psa.Import}, ops...)...)
		span(t, 8, secretMost, alg, psa.Import, psa.Copy, psa.Export)
	}
	for _, h := range hashes {
		anyLength(psa.KeyTypeHMAC, 8*h.HashLength(), psa.HMAC(h), psa.Mac, psa.VerifyMac)
		for n := 8; n < h.HashLength(); n += 4 {
			add(psa.KeyTypeHMAC, 8*h.HashLength(), psa.TruncatedMAC(psa.HMAC(h), n), psa.Generate, psa.Import, psa.Mac, psa.VerifyMac)
			span(psa.KeyTypeHMAC, 8, secretMost, psa.TruncatedMAC(psa.HMAC(h), n), psa.Import, psa.Mac, psa.VerifyMac)
		}
	}
	for _, kdf := range derivations {
		anyLength(psa.KeyTypeDerive, 8*kdf.HashLength(), kdf, psa.Derive)
	}
	span(psa.KeyTypeRawData, 8, secretMost, psa.AlgNone, psa.Import, psa.Copy, psa.Export)
	psa.SortCapabilities(lines)
	return lines
}

// derivations are those of TLS, Noise, HPKE and the like.
var derivations = []psa.Algorithm{psa.HKDF(psa.SHA256), psa.HKDF(psa.SHA384), psa.HKDF(psa.SHA512), psa.TLS12PRF(psa.SHA256), psa.TLS12PRF(psa.SHA384)}

// agreements are raw, or with a key derivation.
func agreements() []psa.Algorithm {
	list := []psa.Algorithm{psa.ECDH}
	for _, kdf := range derivations {
		list = append(list, psa.KeyAgreement(psa.ECDH, kdf))
	}
	return list
}

// supports says whether the table has op for such a key and algorithm.
func supports(op psa.Operation, t psa.KeyType, bits int, alg psa.Algorithm) bool {
	return psa.Supports(table, op, t, bits, alg)
}

func errUnsupported(what psa.Operation, a psa.Attributes, alg psa.Algorithm) error {
	return psa.Errorf(psa.StatusNotSupported, "%s does not work with a %s key of %d bits and %s in software", what, a.Type, a.Bits, alg).
		WithHint("the capabilities file lists what this provider can do")
}
