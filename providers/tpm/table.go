package tpm

import (
	"context"
	"errors"
	"slices"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// possible is all that this package can do. A TPM may do less.
var possible = newTable(func(psa.Attributes) bool { return true })

// newTable has the lines whose private keys the TPM takes.
func newTable(takes func(psa.Attributes) bool) []psa.Capability {
	lines := []psa.Capability{{Operations: []psa.Operation{psa.Random}}}
	var proofs []psa.Operation
	if takes(attestation) {
		lines = append(lines, psa.Capability{Operations: []psa.Operation{psa.Attest, psa.ActivateCredential, psa.MakeCredential}})
		proofs = []psa.Operation{psa.Attest, psa.ActivateCredential}
	}
	add := func(a psa.Attributes, private, public []psa.Operation) {
		if !takes(a) {
			return
		}
		with := func(t psa.KeyType, first, ops []psa.Operation) {
			all := append(first[:len(first):len(first)], ops...)
			lines = append(lines, psa.Capability{Template: a.Template(), Type: t, Bits: a.Bits, Algorithm: a.Algorithm, Operations: all})
		}
		private = append(private[:len(private):len(private)], proofs...)
		// This has a line of its own, because a template alone never gives EXPORT, and every operation of a line that
		// generates must work.
		with(a.Type, []psa.Operation{psa.Import}, []psa.Operation{psa.Export})
		if !a.Type.IsAsymmetric() {
			with(a.Type, []psa.Operation{psa.Generate, psa.Import}, private)
			return
		}
		with(a.Type, []psa.Operation{psa.Generate, psa.Import, psa.ExportPublic}, private)
		if len(public) > 0 {
			with(a.Type.PublicKey(), []psa.Operation{psa.Import, psa.ExportPublic}, public)
		}
	}
	signing := []psa.Operation{psa.Sign, psa.SignHash, psa.Verify, psa.VerifyHash}
	verifying := []psa.Operation{psa.Verify, psa.VerifyHash}
	crypt := []psa.Operation{psa.Encrypt, psa.Decrypt}
	hashes := []psa.Algorithm{psa.SHA256, psa.SHA384, psa.SHA512}
	for _, bits := range []int{2048, 3072, 4096} {
		key := psa.Attributes{Type: psa.KeyTypeRSAKeyPair, Bits: bits}
		with := func(alg psa.Algorithm, private, public []psa.Operation) {
			key.Algorithm = alg
			add(key, private, public)
		}
		for _, h := range append(hashes[:len(hashes):len(hashes)], psa.AnyHash) {
			with(psa.RSAPKCS1v15Sign(h), signing, verifying)
			with(psa.RSAPSS(h), signing, verifying)
		}
		with(psa.RSAPKCS1v15Crypt, crypt, crypt[:1])
		for _, h := range hashes {
			with(psa.RSAOAEP(h), crypt, crypt[:1])
		}
	}
	for bits := range curveIDs {
		key := psa.Attributes{Type: psa.ECCKeyPair(psa.SECPR1), Bits: bits}
		for _, h := range append(hashes[:len(hashes):len(hashes)], psa.AnyHash) {
			key.Algorithm = psa.ECDSA(h)
			add(key, signing, verifying)
		}
		for _, alg := range agreements {
			key.Algorithm = alg
			add(key, []psa.Operation{psa.Agree}, nil)
		}
	}
	for _, h := range hashes {
		add(psa.Attributes{Type: psa.KeyTypeHMAC, Bits: 8 * h.HashLength(), Algorithm: psa.HMAC(h)}, []psa.Operation{psa.Mac, psa.VerifyMac}, nil)
	}
	psa.SortCapabilities(lines)
	return lines
}

// agreements are raw, or with a key derivation, which software does with the TPM's secret.
var agreements = []psa.Algorithm{psa.ECDH,
	psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA256)), psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA384)), psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA512)),
	psa.KeyAgreement(psa.ECDH, psa.TLS12PRF(psa.SHA256)), psa.KeyAgreement(psa.ECDH, psa.TLS12PRF(psa.SHA384))}

func errUnsupported(what psa.Operation, a psa.Attributes, alg psa.Algorithm) error {
	return psa.Errorf(psa.StatusNotSupported, "%s does not work with a %s key of %d bits and %s in this TPM", what, a.Type, a.Bits, alg).
		WithHint("the capabilities file lists what this provider can do")
}

// Capabilities asks the TPM for its algorithms and curves, and tests the parameters of each kind of key.
func (p *provider) Capabilities(ctx context.Context) ([]psa.Capability, error) {
	var table []psa.Capability
	err := p.chip.use(ctx, "capabilities", func() error {
		return p.chip.withAudit(func(s tpm2.Session) (err error) {
			table, err = p.chip.capabilities(s)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	p.table.Store(&table)
	return slices.Clone(table), nil
}

// capabilities are what the TPM does.
func (c *chip) capabilities(s tpm2.Session) ([]psa.Capability, error) {
	algorithms, err := c.algorithms(s)
	if err != nil {
		return nil, err
	}
	tested := map[string]bool{}
	table := newTable(func(a psa.Attributes) bool {
		for _, need := range needs(a) {
			if !algorithms[need] {
				return false
			}
		}
		kind, parms := parameters(a)
		asked := tpm2.TPMTPublicParms{Type: kind, Parameters: parms}
		name := string(tpm2.Marshal(asked))
		works, known := tested[name]
		if !known && err == nil {
			_, e := tpm2.TestParms{Parameters: asked}.Execute(c.link, s)
			if works = e == nil; !works && !refusal(e) {
				err = e
			}
			tested[name] = works
		}
		return works
	})
	return table, err
}

// refusal says whether a response code is about what was asked, and not about the session.
func refusal(err error) bool {
	var rc tpm2.TPMRC
	return errors.As(err, &rc) && !lost(err) && !isRC(err, tpm2.TPMRCAuthFail, tpm2.TPMRCBadAuth, tpm2.TPMRCNonce, tpm2.TPMRCAttributes)
}

// needs are the TPM's algorithms that a key uses (TCG Algorithm Registry, table 3).
func needs(a psa.Attributes) []tpm2.TPMAlgID {
	var list []tpm2.TPMAlgID
	alg := a.Algorithm
	if h, ok := hashIDs[alg.Hash()]; ok && alg.Derivation() == psa.AlgNone {
		list = append(list, h)
	}
	switch {
	case alg.IsRSAPKCS1v15Sign():
		return append(list, tpm2.TPMAlgRSA, tpm2.TPMAlgRSASSA)
	case alg.IsRSAPSS():
		return append(list, tpm2.TPMAlgRSA, tpm2.TPMAlgRSAPSS)
	case alg.IsRSAOAEP():
		return append(list, tpm2.TPMAlgRSA, tpm2.TPMAlgOAEP)
	case alg == psa.RSAPKCS1v15Crypt:
		return append(list, tpm2.TPMAlgRSA, tpm2.TPMAlgRSAES)
	case alg.IsECDSA():
		return append(list, tpm2.TPMAlgECC, tpm2.TPMAlgECDSA)
	case alg.IsKeyAgreement():
		return append(list, tpm2.TPMAlgECC, tpm2.TPMAlgECDH)
	}
	return append(list, tpm2.TPMAlgKeyedHash, tpm2.TPMAlgHMAC)
}

func (c *chip) algorithms(s tpm2.Session) (map[tpm2.TPMAlgID]bool, error) {
	all := map[tpm2.TPMAlgID]bool{}
	for next, more := uint32(0), true; more; {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapAlgs, Property: next, PropertyCount: 128}.Execute(c.link, s)
		if err != nil {
			return nil, err
		}
		list, err := rsp.CapabilityData.Data.Algorithms()
		if err != nil {
			return nil, err
		}
		for _, a := range list.AlgProperties {
			if uint32(a.Alg) < next {
				return nil, errLies("the TPM listed the algorithm %#x, though it was asked for those from %#x on", uint32(a.Alg), next)
			}
			all[a.Alg] = true
			next = uint32(a.Alg) + 1
		}
		more = bool(rsp.MoreData) && len(list.AlgProperties) > 0
	}
	return all, nil
}
