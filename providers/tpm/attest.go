package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// attestation describes the TPM's own attestation key.
var attestation = psa.Attributes{Type: psa.ECCKeyPair(psa.SECPR1), Bits: 256, Algorithm: psa.ECDSA(psa.SHA256)}

// akTemplate is the TPM's own attestation key, a primary key of the endorsement hierarchy: it is the same until
// somebody changes the hierarchy's seed (TPM2_ChangeEPS). It is restricted (TCG TPM 2.0, part 1, 25.1.5): it signs only what
// the TPM itself states, and nothing that somebody else made to look like that.
func akTemplate() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{
			Symmetric: tpm2.TPMTSymDefObject{Algorithm: tpm2.TPMAlgNull},
			Scheme:    tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgECDSA, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA256})},
			CurveID:   curveIDs[attestation.Bits],
			KDF:       tpm2.TPMTKDFScheme{Scheme: tpm2.TPMAlgNull}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

// endorsed makes a primary key of the endorsement hierarchy for as long as f runs. It leaves room for others more objects.
// No session is open.
func (c *chip) endorsed(template tpm2.TPMTPublic, others int, f func(key tpm2.AuthHandle, area *tpm2.TPMTPublic) error) (err error) {
	if err := errors.Join(c.forgetSigning(), c.shrink(max(c.room-1-others, 0))); err != nil {
		return err
	}
	hierarchy := c.hierarchy(tpm2.TPMRHEndorsement, c.auths.endorsement)
	rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(template)}.Execute(c.link)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.flush(rsp.ObjectHandle)) }()
	area, name, err := made(rsp.OutPublic, &rsp.Name, template)
	if err != nil {
		return err
	}
	return f(tpm2.AuthHandle{Handle: rsp.ObjectHandle, Name: name}, area)
}

// endorsementKey is the public area of the TPM's endorsement key, attestationKey that of its attestation key. Both are made
// once for each connection, because a chip needs seconds for an RSA key.
func (c *chip) endorsementKey() (*tpm2.TPMTPublic, error) { return c.shown(&c.ek, tpm2.RSAEKTemplate) }

func (c *chip) attestationKey() (*tpm2.TPMTPublic, error) { return c.shown(&c.ak, akTemplate()) }

func (c *chip) shown(known **tpm2.TPMTPublic, template tpm2.TPMTPublic) (*tpm2.TPMTPublic, error) {
	if *known != nil {
		return *known, nil
	}
	var made *tpm2.TPMTPublic
	err := c.endorsed(template, 0, func(_ tpm2.AuthHandle, area *tpm2.TPMTPublic) error {
		made = area
		return nil
	})
	if err != nil {
		return nil, err
	}
	*known = made
	return made, nil
}

// takesTwo checks that there is room for two objects at once besides the parent, as on every TPM of a PC.
func (c *chip) takesTwo() error {
	if c.room < 2 {
		return psa.Errorf(psa.StatusInsufficientMemory, "the TPM has no slot for a second loaded key")
	}
	return nil
}

// signer is a loaded key that signs the TPM's statements.
type signer struct {
	handle tpm2.AuthHandle
	scheme tpm2.TPMTSigScheme
	public crypto.PublicKey
}

// signedByOwn runs f with the TPM's own attestation key.
func (c *chip) signedByOwn(f func(signer) error) error {
	return c.endorsed(akTemplate(), 0, func(key tpm2.AuthHandle, area *tpm2.TPMTPublic) error {
		public, err := publicIn(area)
		if err != nil {
			return err
		}
		key.Auth = c.once(nil)
		return f(signer{key, tpm2.TPMTSigScheme{Scheme: tpm2.TPMAlgNull}, public}) // its scheme is its own
	})
}

// signedBy runs f with the key of by, while one other key is loaded.
func (c *chip) signedBy(by *use, f func(signer) error) error {
	scheme, err := by.scheme()
	if err != nil {
		return err
	}
	if err := c.forgetSigning(); err != nil {
		return err
	}
	l, err := c.load(by.key, 1)
	if err != nil {
		return err
	}
	return f(signer{by.private(c, l), scheme, by.public})
}

// outputs are those of psa.Attest.
func (s signer) outputs(said []byte, signature *tpm2.TPMTSignature) (map[string][]byte, error) {
	sig, err := signatureOf(signature)
	if err != nil {
		return nil, err
	}
	public, err := publicPEM(s.public)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{"attestation": said, "signature": sig, "signer_public": []byte(public)}, nil
}

func publicPEM(key crypto.PublicKey) (string, error) {
	der, err := psa.MarshalPublicKey(key)
	if err != nil {
		return "", err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), nil
}

// administers authorizes the key's ADMIN role (TCG TPM 2.0, part 1, 19.2). It needs only the authorization, whatever the
// registers are, because that role never uses the private part.
func (u *use) administers(c *chip, l *loaded, encrypts ...tpm2.AuthOption) tpm2.AuthHandle {
	return tpm2.AuthHandle{Handle: l.handle, Name: l.name, Auth: c.once(u.key.Auth, encrypts...)}
}

// beginAttest has the TPM certify the key (TPM2_Certify). by signs the statement; nil is the TPM's attestation key.
func (u *use) beginAttest(by *use) psa.Run {
	return psa.WholeRun(psa.MaxChallenge, func(ctx context.Context, challenge []byte) (out map[string][]byte, err error) {
		err = u.with(ctx, "attest", 1, func(c *chip, l *loaded) error {
			certify := func(s signer) error {
				rsp, err := tpm2.Certify{ObjectHandle: u.administers(c, l), SignHandle: s.handle,
					QualifyingData: tpm2.TPM2BData{Buffer: challenge}, InScheme: s.scheme}.Execute(c.link)
				if err != nil {
					return err
				}
				if out, err = s.outputs(rsp.CertifyInfo.Bytes(), &rsp.Signature); err == nil {
					out["public"] = bytes.Clone(u.key.Public)
				}
				return err
			}
			switch err := c.takesTwo(); {
			case err != nil:
				return err
			case by != nil:
				return c.signedBy(by, certify)
			}
			return c.signedByOwn(certify)
		})
		return out, err
	})
}

// beginActivate proves that the key is in the TPM of an endorsement key (TPM2_ActivateCredential).
func (u *use) beginActivate() (psa.Run, error) {
	if u.pcrs != 0 {
		return nil, psa.Errorf(psa.StatusNotSupported,
			"no credential is activated for a key that is bound to PCRs: the TPM would not check the PCRs").
			WithHint("use the provider's activate_credential, and a quote")
	}
	return activation(func(ctx context.Context, open func(*chip, tpm2.AuthHandle) error) error {
		return u.with(ctx, string(psa.ActivateCredential), 1, func(c *chip, l *loaded) error {
			if err := c.takesTwo(); err != nil {
				return err
			}
			return open(c, u.administers(c, l, encryptOut))
		})
	}), nil
}

// activation opens a credential for the object that with loads.
func activation(with func(ctx context.Context, open func(*chip, tpm2.AuthHandle) error) error) psa.Run {
	return psa.WholeRun(psa.MaxCredential, func(ctx context.Context, in []byte) (map[string][]byte, error) {
		object, seed, err := parseCredential(in)
		if err != nil {
			return nil, err
		}
		var secret []byte
		err = with(ctx, func(c *chip, h tpm2.AuthHandle) (err error) {
			secret, err = c.activate(h, object, seed)
			return err
		})
		if err != nil {
			return nil, err
		}
		return map[string][]byte{"secret": secret}, nil
	})
}

// activate opens a credential for an object. The length of the seed says which kind of endorsement key it needs.
func (c *chip) activate(object tpm2.AuthHandle, credential, seed []byte) (secret []byte, err error) {
	template := tpm2.RSAEKTemplate
	if len(seed) != rsaSeed {
		template = tpm2.ECCEKTemplate
	}
	err = c.endorsed(template, 0, func(ek tpm2.AuthHandle, _ *tpm2.TPMTPublic) error {
		ek.Auth = tpm2.Policy(tpm2.TPMAlgSHA256, nonceSize, c.endorses)
		rsp, err := tpm2.ActivateCredential{ActivateHandle: object, KeyHandle: ek,
			CredentialBlob: tpm2.TPM2BIDObject{Buffer: credential}, Secret: tpm2.TPM2BEncryptedSecret{Buffer: seed}}.Execute(c.link)
		// swtpm reports a wrong seed as a failure of the TPM, as in Decrypt.
		failure := isRC(err, tpm2.TPMRCFailure) && c.alive()
		if failure || isRC(err, tpm2.TPMRCIntegrity, tpm2.TPMRCValue, tpm2.TPMRCSize, tpm2.TPMRCInsufficient, tpm2.TPMRCECCPoint) {
			return psa.Errorf(psa.StatusInvalidSignature, "this credential was not made for this key and this TPM's endorsement key")
		}
		if err != nil {
			return err
		}
		secret = rsp.CertInfo.Buffer
		return nil
	})
	return secret, err
}

// endorses is the policy of TCG's endorsement keys: whoever uses one must know the hierarchy's authorization
// (TPM2_PolicySecret; TCG EK Credential Profile, B.3.3).
func (c *chip) endorses(t transport.TPM, session tpm2.TPMISHPolicy, nonce tpm2.TPM2BNonce) error {
	hierarchy := c.hierarchy(tpm2.TPMRHEndorsement, c.auths.endorsement)
	_, err := tpm2.PolicySecret{AuthHandle: hierarchy, PolicySession: session, NonceTPM: nonce}.Execute(t)
	return err
}

const (
	rsaSeed = 256 // bytes that RSA with 2048 bits encrypts to
	// The header of tpm2-tools' files: a magic number and a version.
	credentialMagic   = 0xbadcc0de
	credentialVersion = 1
)

// parseCredential reads TPM2B_ID_OBJECT || TPM2B_ENCRYPTED_SECRET, with or without the header of tpm2-tools.
func parseCredential(b []byte) (object, seed []byte, err error) {
	if len(b) >= 8 && binary.BigEndian.Uint32(b) == credentialMagic {
		if v := binary.BigEndian.Uint32(b[4:]); v != credentialVersion {
			return nil, nil, psa.Errorf(psa.StatusNotSupported, "the credential has version %d, which is not supported", v)
		}
		b = b[8:]
	}
	var parts [2][]byte
	for i := range parts {
		if len(b) < 2 || len(b)-2 < int(binary.BigEndian.Uint16(b)) {
			return nil, nil, errNoCredential()
		}
		n := 2 + int(binary.BigEndian.Uint16(b))
		parts[i], b = b[2:n], b[n:]
	}
	if len(b) > 0 || len(parts[0]) == 0 || len(parts[1]) == 0 {
		return nil, nil, errNoCredential()
	}
	return parts[0], parts[1], nil
}

func errNoCredential() error {
	return psa.Errorf(psa.StatusInvalidArgument, "this is not a credential").
		WithHint("write the output of make_credential or tpm2_makecredential, in binary")
}

// makeCredential encrypts a secret for the holder of an endorsement key and of an object, as a file of tpm2-tools.
func makeCredential(ek *tpm2.TPMTPublic, name tpm2.TPM2BName, secret []byte) ([]byte, error) {
	to, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "wrong endorsement key: %w", err)
	}
	object, seed, err := tpm2.CreateCredential(rand.Reader, to, name.Buffer, secret)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "cannot make a credential for this endorsement key: %w", err)
	}
	b := binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, credentialMagic), credentialVersion)
	return append(append(b, tpm2.Marshal(tpm2.TPM2BIDObject{Buffer: object})...), tpm2.Marshal(tpm2.TPM2BEncryptedSecret{Buffer: seed})...), nil
}

// parseEndorsementKey reads a SubjectPublicKeyInfo in PEM or DER: TCG's default keys, RSA with 2048 bits or on P-256
// (TCG EK Credential Profile, templates L-1 and L-2).
func parseEndorsementKey(b []byte) (*tpm2.TPMTPublic, error) {
	b, err := psa.PublicDER(b)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "wrong endorsement key: %w", err)
	}
	key, err := x509.ParsePKIXPublicKey(b)
	if err != nil {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the endorsement key cannot be read: %w", err).
			WithHint("write its SubjectPublicKeyInfo, in PEM or DER")
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		if k.N.BitLen() == 8*rsaSeed && k.E == 65537 {
			area := tpm2.RSAEKTemplate
			area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
			return &area, nil
		}
	case *ecdsa.PublicKey:
		if pub, err := k.ECDH(); err == nil && k.Curve == curves[256] {
			area, p := tpm2.ECCEKTemplate, point(pub)
			area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &p)
			return &area, nil
		}
	}
	return nil, psa.Errorf(psa.StatusNotSupported, "this kind of endorsement key is not supported").
		WithHint("use one with RSA of 2048 bits, or P-256")
}

// parsePublicArea reads a TPMT_PUBLIC, or the TPM2B_PUBLIC that tpm2-tools write, for its name.
func parsePublicArea(b []byte) (tpm2.TPM2BName, error) {
	if len(b) > 2 && int(binary.BigEndian.Uint16(b)) == len(b)-2 {
		b = b[2:]
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](b)
	if err == nil && !bytes.Equal(tpm2.Marshal(area), b) {
		err = errors.New("it has extra bytes at its end")
	}
	if err != nil {
		return tpm2.TPM2BName{}, psa.Errorf(psa.StatusInvalidArgument, "the public area cannot be read: %w", err).
			WithHint("write the public of an attest slot, in binary")
	}
	return nameOf(area)
}

func nameOf(area *tpm2.TPMTPublic) (tpm2.TPM2BName, error) {
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return tpm2.TPM2BName{}, psa.Errorf(psa.StatusNotSupported, "the name of this object cannot be computed: %w", err)
	}
	return *name, nil
}

// defaultQuote are the registers of the firmware and what it boots (TCG PC Client Platform Firmware Profile, 3.3.4).
const defaultQuote psa.PCRs = 1<<8 - 1

// Attest begins the operations of the TPM's own attestation key.
func (p *provider) Attest(ctx context.Context, op psa.Op) (psa.Run, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !psa.Supports(p.lines(), op.Operation, psa.KeyTypeNone, 0, psa.AlgNone) {
		return nil, psa.Errorf(psa.StatusNotSupported, "the provider itself cannot do %s", op.Operation)
	}
	c := p.chip
	switch op.Operation {
	case psa.Attest:
		pcrs := defaultQuote
		if list := op.Inputs["pcrs"]; len(list) > 0 {
			var err error
			if pcrs, err = psa.ParsePCRs(string(list)); err != nil {
				return nil, err
			}
		}
		return psa.WholeRun(psa.MaxChallenge, func(ctx context.Context, challenge []byte) (map[string][]byte, error) {
			return p.quote(ctx, pcrs, challenge)
		}), nil
	case psa.ActivateCredential:
		return activation(func(ctx context.Context, open func(*chip, tpm2.AuthHandle) error) error {
			return c.use(ctx, string(op.Operation), func() error {
				if err := c.takesTwo(); err != nil {
					return err
				}
				return c.endorsed(akTemplate(), 1, func(ak tpm2.AuthHandle, _ *tpm2.TPMTPublic) error {
					ak.Auth = c.once(nil, encryptOut)
					return open(c.chip, ak)
				})
			})
		}), nil
	case psa.MakeCredential:
		return p.beginMakeCredential(op)
	}
	return nil, psa.Errorf(psa.StatusNotSupported, "the provider itself cannot do %s", op.Operation)
}

// quote has the TPM sign what is in registers (TPM2_Quote).
func (p *provider) quote(ctx context.Context, pcrs psa.PCRs, challenge []byte) (out map[string][]byte, err error) {
	c := p.chip
	err = c.use(ctx, string(psa.Attest), func() error {
		if _, err := c.hasRegisters(pcrs); err != nil {
			return err
		}
		return c.signedByOwn(func(s signer) error {
			rsp, err := tpm2.Quote{SignHandle: s.handle, QualifyingData: tpm2.TPM2BData{Buffer: challenge}, InScheme: s.scheme, PCRSelect: selected(pcrs)}.Execute(c.link)
			if err != nil {
				return err
			}
			out, err = s.outputs(rsp.Quoted.Bytes(), &rsp.Signature)
			return err
		})
	})
	return out, err
}

func (p *provider) beginMakeCredential(op psa.Op) (psa.Run, error) {
	var ek *tpm2.TPMTPublic
	var name tpm2.TPM2BName
	var err error
	if b := op.Inputs["endorsement_key"]; len(b) > 0 {
		if ek, err = parseEndorsementKey(b); err != nil {
			return nil, err
		}
	}
	if b := op.Inputs["public"]; len(b) > 0 {
		if name, err = parsePublicArea(b); err != nil {
			return nil, err
		}
	}
	return psa.WholeRun(psa.MaxCredentialSecret, func(ctx context.Context, secret []byte) (map[string][]byte, error) {
		if len(secret) == 0 {
			return nil, psa.Errorf(psa.StatusInsufficientData, "the secret is missing")
		}
		to, object := ek, name
		if to == nil || object.Buffer == nil {
			err := p.chip.use(ctx, string(op.Operation), func() (err error) {
				if to == nil {
					to, err = p.chip.endorsementKey()
				}
				if err == nil && object.Buffer == nil {
					var ak *tpm2.TPMTPublic
					if ak, err = p.chip.attestationKey(); err == nil {
						object, err = nameOf(ak)
					}
				}
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		credential, err := makeCredential(to, object, secret)
		return map[string][]byte{"credential": credential}, err
	}), nil
}

// factsTimeout is how long a chip may take to make its two keys. They are made, and kept, even if the caller has gone.
const factsTimeout = time.Minute

// Facts are the endorsement key and the attestation key, in PEM, the latter's public area too (TPMT_PUBLIC, in
// hexadecimal), the storage root key's name, and SHA-256's bank of registers.
func (p *provider) Facts(ctx context.Context) (facts []providers.Fact, err error) {
	c := p.chip
	err = c.use(ctx, "info", func() error {
		on, end := context.WithTimeout(context.WithoutCancel(ctx), factsTimeout)
		defer end()
		c.link.ctx = on
		facts = nil
		keys := c.keyFacts(&facts)
		facts = append(facts, providers.Fact{Name: "tpm_srk_name", Value: hex.EncodeToString(c.parent.name.Buffer)})
		values, err := c.registers(1<<(psa.MaxPCR+1) - 1)
		for n, v := range values {
			if v != nil {
				facts = append(facts, providers.Fact{Name: fmt.Sprint("pcrs.", n), Value: hex.EncodeToString(v)})
			}
		}
		return errors.Join(keys, err)
	})
	return facts, err
}

func (c *chip) keyFacts(facts *[]providers.Fact) error {
	add := func(name string, area *tpm2.TPMTPublic) error {
		key, err := publicIn(area)
		if err != nil {
			return err
		}
		text, err := publicPEM(key)
		*facts = append(*facts, providers.Fact{Name: name, Value: text})
		return err
	}
	ek, err := c.endorsementKey()
	if err != nil {
		return err
	}
	ak, err := c.attestationKey()
	if err != nil {
		return err
	}
	if err := errors.Join(add("endorsement_key", ek), add("attestation_key", ak)); err != nil {
		return err
	}
	*facts = append(*facts, providers.Fact{Name: "attestation_key_public", Value: hex.EncodeToString(tpm2.Marshal(ak))})
	return nil
}

// registers are the values of the registers in the SHA-256 bank, nil if there is no such bank.
func (c *chip) registers(pcrs psa.PCRs) (values [psa.MaxPCR + 1][]byte, err error) {
	err = c.withAudit(func(s tpm2.Session) error { return c.readRegisters(pcrs, &values, s) })
	return values, err
}

func (c *chip) readRegisters(left psa.PCRs, values *[psa.MaxPCR + 1][]byte, s tpm2.Session) error {
	for left != 0 {
		rsp, err := tpm2.PCRRead{PCRSelectionIn: selected(left)}.Execute(c.link, s)
		if err != nil {
			return err
		}
		var got psa.PCRs
		for _, s := range rsp.PCRSelectionOut.PCRSelections {
			for i, b := range s.PCRSelect {
				if s.Hash == tpm2.TPMAlgSHA256 && 8*i < len(values) {
					got |= psa.PCRs(b) << (8 * i)
				}
			}
		}
		numbers := (got & left).List()
		if len(numbers) == 0 || len(numbers) != len(rsp.PCRValues.Digests) {
			return nil
		}
		for i, n := range numbers {
			values[n] = rsp.PCRValues.Digests[i].Buffer
		}
		left &^= got
	}
	return nil
}
