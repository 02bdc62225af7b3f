package providertest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// AttestationAlgorithm is how a device's own attestation key signs.
var AttestationAlgorithm = psa.ECDSA(psa.SHA256)

// CheckAttestation verifies outputs of psa.Attest by the standard library: they are signed with that algorithm, by the
// signer that they name, as a TPM does it, and answer the challenge.
func CheckAttestation(out map[string][]byte, alg psa.Algorithm, challenge []byte) (*tpm2.TPMSAttest, error) {
	block, rest := pem.Decode(out["signer_public"])
	if block == nil || len(rest) > 0 {
		return nil, fmt.Errorf("the signer's public key is %q", out["signer_public"])
	}
	pub, err := psa.ReadPublicKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	signature := out["signature"]
	if k, ok := pub.(*ecdsa.PublicKey); ok {
		if signature, err = psa.ECDSADERToRaw(signature, k.Params().BitSize); err != nil {
			return nil, err
		}
	}
	if err := checkSignature(pub, alg, out["attestation"], signature); err != nil {
		return nil, err
	}
	said, err := tpm2.Unmarshal[tpm2.TPMSAttest](out["attestation"])
	switch {
	case err != nil:
		return nil, err
	case said.Magic != tpm2.TPMGeneratedValue:
		return nil, fmt.Errorf("the magic number is %x", said.Magic)
	case !bytes.Equal(said.ExtraData.Buffer, challenge):
		return nil, fmt.Errorf("the challenge was %x, not %x", said.ExtraData.Buffer, challenge)
	}
	return said, nil
}

// CheckCertified is CheckAttestation of a key's, whose name is that of its public area. It gives the area.
func CheckCertified(out map[string][]byte, alg psa.Algorithm, challenge []byte) (*tpm2.TPMTPublic, error) {
	said, err := CheckAttestation(out, alg, challenge)
	if err != nil {
		return nil, err
	}
	certified, err := said.Attested.Certify()
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(out["public"])
	if name := append([]byte{0, byte(tpm2.TPMAlgSHA256)}, sum[:]...); !bytes.Equal(certified.Name.Buffer, name) {
		return nil, fmt.Errorf("%x is certified; the public area's name is %x", certified.Name.Buffer, name)
	}
	return tpm2.Unmarshal[tpm2.TPMTPublic](out["public"])
}

// attest tries attest, with each signer that there is.
func (m *made) attest(t *testing.T) {
	alg, err := m.attributes.Resolve(psa.Attest, 0)
	if err != nil {
		t.Fatal(err)
	}
	op := psa.Op{Operation: psa.Attest, Algorithm: alg}
	for _, challenge := range [][]byte{{}, []byte("a verifier's challenge"), make([]byte, psa.MaxChallenge)} {
		out, err := do(t.Context(), m.key, op, challenge)
		if err != nil {
			t.Errorf("attest: %v", err)
			return
		}
		m.certified(t, out, AttestationAlgorithm, challenge)
		if !m.attributes.Can(psa.Sign) {
			continue
		}
		signs, err := m.attributes.Resolve(psa.Sign, 0)
		if err != nil {
			t.Fatal(err)
		}
		run, err := m.key.(providers.Certifier).Certify(t.Context(), op, m.key)
		if err == nil {
			out, err = finish(t.Context(), run, challenge)
		}
		if err != nil {
			t.Errorf("attest, signed by itself: %v", err)
			return
		}
		m.certified(t, out, signs, challenge)
		if block, _ := pem.Decode(out["signer_public"]); block == nil || !bytes.Equal(block.Bytes, m.key.Public()) {
			t.Error("another key than the signer's is given as its public one")
		}
	}
	_, err = do(t.Context(), m.key, op, make([]byte, psa.MaxChallenge+1))
	wantStatus(t, "a challenge that is too long", err, psa.StatusTooLarge)
}

// certified checks that it is this key that is certified.
func (m *made) certified(t *testing.T, out map[string][]byte, alg psa.Algorithm, challenge []byte) {
	t.Helper()
	area, err := CheckCertified(out, alg, challenge)
	if err != nil {
		t.Errorf("attest: %v", err)
		return
	}
	var unique []byte
	switch {
	case m.attributes.Type.IsRSA():
		n, e := area.Unique.RSA()
		if err = e; err == nil {
			unique = n.Buffer
		}
	case m.attributes.Type.IsECC():
		p, e := area.Unique.ECC()
		if err = e; err == nil {
			unique = p.X.Buffer
		}
	}
	if err != nil || !bytes.Contains(m.key.Public(), unique) {
		t.Errorf("another key is certified: %v", err)
	}
}

// activate tries activate_credential with a credential for the key, and with others.
func (m *made) activate(t *testing.T, p providers.Provider) {
	alg, err := m.attributes.Resolve(psa.ActivateCredential, 0)
	if err != nil {
		t.Fatal(err)
	}
	out, err := do(t.Context(), m.key, psa.Op{Operation: psa.Attest, Algorithm: alg}, []byte("challenge"))
	if err != nil {
		t.Errorf("attest: %v", err)
		return
	}
	activate := func(credential []byte) ([]byte, error) {
		out, err := do(t.Context(), m.key, psa.Op{Operation: psa.ActivateCredential, Algorithm: alg}, credential)
		return out["secret"], err
	}
	secret := []byte("a secret of thirty-two bytes....")
	mine, err := keyless(t.Context(), p, psa.MakeCredential, map[string][]byte{"public": out["public"]}, secret)
	if err != nil {
		t.Errorf("make_credential: %v", err)
		return
	}
	if got, err := activate(mine["credential"]); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("activate_credential: %q, %v", got, err)
	}
	others, err := keyless(t.Context(), p, psa.MakeCredential, nil, secret)
	if err != nil {
		t.Errorf("make_credential for the device's own key: %v", err)
		return
	}
	_, err = activate(others["credential"])
	wantStatus(t, "a credential for another object", err, psa.StatusInvalidSignature)
	for _, at := range []int{20, len(mine["credential"]) - 100} {
		changed := bytes.Clone(mine["credential"])
		changed[at] ^= 1
		_, err = activate(changed)
		wantStatus(t, fmt.Sprintf("a credential whose byte %d was changed", at), err, psa.StatusInvalidSignature, psa.StatusInvalidArgument)
	}
	for _, none := range [][]byte{nil, []byte("none"), mine["credential"][:30], append(bytes.Clone(mine["credential"]), 0)} {
		_, err = activate(none)
		wantStatus(t, "what is no credential", err, psa.StatusInvalidArgument)
	}
}

// keyless does an operation of the device itself.
func keyless(ctx context.Context, p providers.Provider, op psa.Operation, inputs map[string][]byte, input []byte) (map[string][]byte, error) {
	a, ok := p.(providers.Attester)
	if !ok {
		return nil, errors.New("the provider is no Attester")
	}
	run, err := a.Attest(ctx, psa.Op{Operation: op, Inputs: inputs})
	if err != nil {
		return nil, err
	}
	return finish(ctx, run, input)
}

// device tries what a device attests of itself.
func (s *suite) device(t *testing.T, ops []psa.Operation) {
	if !slices.Equal(ops, []psa.Operation{psa.Attest, psa.ActivateCredential, psa.MakeCredential}) {
		t.Errorf("only %v", ops)
		return
	}
	p := s.provider(t)
	challenge, secret := []byte("a verifier's challenge"), []byte("a secret")
	var signer []byte
	for list, want := range map[string]psa.PCRs{"": 0xff, "0": 1, "23, 0,\t7\n": 1<<23 | 1<<7 | 1} {
		out, err := keyless(t.Context(), p, psa.Attest, map[string][]byte{"pcrs": []byte(list)}, challenge)
		if err != nil {
			t.Fatalf("attest of %q: %v", list, err)
		}
		said, err := CheckAttestation(out, AttestationAlgorithm, challenge)
		if err != nil {
			t.Fatalf("attest of %q: %v", list, err)
		}
		quote, err := said.Attested.Quote()
		if err != nil {
			t.Fatal(err)
		}
		var got psa.PCRs
		for _, q := range quote.PCRSelect.PCRSelections {
			for i, b := range q.PCRSelect {
				got |= psa.PCRs(b) << (8 * i)
			}
		}
		if got != want || signer != nil && !bytes.Equal(signer, out["signer_public"]) {
			t.Errorf("attest of %q quotes %v, signed by %s", list, got.List(), out["signer_public"])
		}
		signer = out["signer_public"]
	}
	for _, list := range []string{"24", "-1", "0,", "a", "0 7"} {
		_, err := keyless(t.Context(), p, psa.Attest, map[string][]byte{"pcrs": []byte(list)}, challenge)
		wantStatus(t, "attest of "+list, err, psa.StatusInvalidArgument)
	}
	out, err := keyless(t.Context(), p, psa.MakeCredential, nil, secret)
	if err == nil {
		out, err = keyless(t.Context(), p, psa.ActivateCredential, nil, out["credential"])
	}
	if err != nil || !bytes.Equal(out["secret"], secret) {
		t.Errorf("activate_credential: %q, %v", out["secret"], err)
	}
	_, err = keyless(t.Context(), p, psa.MakeCredential, nil, nil)
	wantStatus(t, "a credential without a secret", err, psa.StatusInsufficientData)
	_, err = keyless(t.Context(), p, psa.MakeCredential, nil, make([]byte, psa.MaxCredentialSecret+1))
	wantStatus(t, "a credential with a long secret", err, psa.StatusTooLarge)
	for _, name := range []string{"public", "endorsement_key"} {
		_, err = keyless(t.Context(), p, psa.MakeCredential, map[string][]byte{name: []byte("none")}, secret)
		wantStatus(t, "a credential for no "+name, err, psa.StatusInvalidArgument)
	}
	facts, err := p.(providers.Informer).Facts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for _, f := range facts {
		said[f.Name] = f.Value
	}
	if said["attestation_key"] != string(signer) || said["endorsement_key"] == "" || len(said["pcrs.0"]) != 64 || len(said["pcrs.23"]) != 64 {
		t.Errorf("the facts are %q", said)
	}
}
