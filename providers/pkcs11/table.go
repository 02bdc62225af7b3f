package pkcs11

import (
	p11 "github.com/miekg/pkcs11"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// ways are how a key can get onto a token, and off it.
type ways struct{ generated, imported, exported bool }

func (w ways) any() bool { return w.generated || w.imported }

// possible is all that this package can do. A token may do less.
var possible = newTable(func(psa.Attributes) ways { return ways{true, true, true} })

// newTable has the lines whose private and secret keys the token supports. Public keys alone do not need the token.
func newTable(takes func(psa.Attributes) ways) []psa.Capability {
	lines := []psa.Capability{{Operations: []psa.Operation{psa.Random}}}
	add := func(a psa.Attributes, private, public []psa.Operation) {
		with := func(t psa.KeyType, first []psa.Operation, ops ...psa.Operation) {
			lines = append(lines, psa.Capability{Template: a.Template(), Type: t, Bits: a.Bits, Algorithm: a.Algorithm, Operations: append(first, ops...)})
		}
		w := takes(a)
		if w.any() {
			var first []psa.Operation
			if w.generated {
				first = append(first, psa.Generate)
			}
			if w.imported {
				first = append(first, psa.Import)
			}
			if a.Type.IsAsymmetric() {
				first = append(first, psa.ExportPublic)
			}
			with(a.Type, first, private...)
		}
		// This has a line of its own, because a template alone never gives EXPORT, and every operation of a line that
		// generates must work.
		if w.imported && w.exported {
			with(a.Type, []psa.Operation{psa.Import}, psa.Export)
		}
		if len(public) > 0 && w.any() {
			with(a.Type.PublicKey(), []psa.Operation{psa.Import, psa.ExportPublic}, public...)
		}
	}
	each(add)
	psa.SortCapabilities(lines)
	return lines
}

// each are the keys: what is done with a private or secret one, and with a public one.
func each(add func(a psa.Attributes, private, public []psa.Operation)) {
	signing := []psa.Operation{psa.Sign, psa.SignHash, psa.Verify, psa.VerifyHash}
	verifying := []psa.Operation{psa.Verify, psa.VerifyHash}
	crypt := []psa.Operation{psa.Encrypt, psa.Decrypt}
	macs := []psa.Operation{psa.Mac, psa.VerifyMac}
	sha2 := []psa.Algorithm{psa.SHA224, psa.SHA256, psa.SHA384, psa.SHA512}
	signed := append(sha2[:len(sha2):len(sha2)], psa.AnyHash)
	for _, bits := range rsaBits {
		key := psa.Attributes{Type: psa.KeyTypeRSAKeyPair, Bits: bits}
		with := func(alg psa.Algorithm, private, public []psa.Operation) {
			key.Algorithm = alg
			add(key, private, public)
		}
		for _, h := range signed {
			with(psa.RSAPKCS1v15Sign(h), signing, verifying)
			with(psa.RSAPSS(h), signing, verifying)
		}
		with(psa.RSAPKCS1v15Crypt, crypt, crypt[:1])
		for _, h := range sha2 {
			with(psa.RSAOAEP(h), crypt, crypt[:1])
		}
	}
	agreement := func(t psa.KeyType, bits int) {
		for _, alg := range agreements {
			add(psa.Attributes{Type: t, Bits: bits, Algorithm: alg}, []psa.Operation{psa.Agree}, nil)
		}
	}
	for bits := range curveIDs {
		pair := psa.ECCKeyPair(psa.SECPR1)
		for _, h := range signed {
			add(psa.Attributes{Type: pair, Bits: bits, Algorithm: psa.ECDSA(h)}, signing, verifying)
		}
		if bits != 224 { // crypto/ecdh has no P-224, and so nobody to check the peer
			agreement(pair, bits)
		}
	}
	add(psa.Attributes{Type: psa.ECCKeyPair(psa.TwistedEdwards), Bits: 255, Algorithm: psa.PureEdDSA}, []psa.Operation{psa.Sign, psa.Verify}, verifying[:1])
	agreement(psa.ECCKeyPair(psa.Montgomery), 255)
	for _, bits := range []int{128, 192, 256} {
		for _, alg := range []psa.Algorithm{psa.GCM, psa.CTR, psa.CBCNoPadding, psa.CBCPKCS7, psa.ECBNoPadding} {
			add(psa.Attributes{Type: psa.KeyTypeAES, Bits: bits, Algorithm: alg}, crypt, nil)
		}
		add(psa.Attributes{Type: psa.KeyTypeAES, Bits: bits, Algorithm: psa.CMAC}, macs, nil)
	}
	for _, h := range sha2 {
		add(psa.Attributes{Type: psa.KeyTypeHMAC, Bits: 8 * h.HashLength(), Algorithm: psa.HMAC(h)}, macs, nil)
	}
}

// rsaBits are the sizes of RSA keys.
var rsaBits = []int{2048, 3072, 4096}

// agreements are raw, or with a key derivation, which software does with the token's secret.
var agreements = []psa.Algorithm{psa.ECDH,
	psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA256)), psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA384)), psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA512)),
	psa.KeyAgreement(psa.ECDH, psa.TLS12PRF(psa.SHA256)), psa.KeyAgreement(psa.ECDH, psa.TLS12PRF(psa.SHA384))}

func errUnsupported(what psa.Operation, a psa.Attributes, alg psa.Algorithm) error {
	return psa.Errorf(psa.StatusNotSupported, "%s does not work with a %s key of %d bits and %s on this token", what, a.Type, a.Bits, alg).
		WithHint("the capabilities file lists what this provider can do")
}

// need is a mechanism with the flags that it must have, for keys of a size. The size has the unit of the token's list.
type need struct{ number, flags, size uint64 }

// needs are the mechanisms that the private or secret key of a uses.
func needs(a psa.Attributes) need {
	bits := uint64(a.Bits)
	switch alg := a.Algorithm; {
	case alg.IsRSAPKCS1v15Sign():
		return need{p11.CKM_RSA_PKCS, p11.CKF_SIGN, bits}
	case alg.IsRSAPSS():
		return need{p11.CKM_RSA_PKCS_PSS, p11.CKF_SIGN, bits}
	case alg.IsRSAOAEP():
		return need{p11.CKM_RSA_PKCS_OAEP, p11.CKF_DECRYPT, bits}
	case alg == psa.RSAPKCS1v15Crypt:
		return need{p11.CKM_RSA_PKCS, p11.CKF_DECRYPT, bits}
	case alg.IsECDSA():
		return need{p11.CKM_ECDSA, p11.CKF_SIGN, bits}
	case alg == psa.PureEdDSA:
		return need{ckmEdDSA, p11.CKF_SIGN, 0}
	case alg.IsKeyAgreement():
		return need{p11.CKM_ECDH1_DERIVE, p11.CKF_DERIVE, 0}
	case alg.IsMAC():
		return need{macMechanism(alg), p11.CKF_SIGN, 0}
	}
	return need{cipherMechanisms[a.Algorithm], p11.CKF_ENCRYPT | p11.CKF_DECRYPT, 0}
}

// listed says whether the token lists what is needed.
func (n need) listed(all map[uint64]mechanismInfo) bool {
	m, ok := all[n.number]
	return ok && m.flags&n.flags == n.flags && (n.size == 0 || n.size >= m.least && (m.most == 0 || n.size <= m.most))
}
