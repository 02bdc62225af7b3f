package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509/pkix"
	"encoding/asn1"
	"io"
	"sync/atomic"

	p11 "github.com/miekg/pkcs11"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// key is an open key. Its secret part is only on the token.
type key struct {
	p          *provider
	object     object
	attributes psa.Attributes
	public     []byte // SubjectPublicKeyInfo, nil of a symmetric key
	verifier   crypto.PublicKey
	adopted    bool // others gave it its name
	unchecked  bool // its signatures are not verified, where that is what is tried
	closed     atomic.Bool
}

// Open parses the blob. If the blob does not belong to the key, the status is StatusDataCorrupt.
func (p *provider) Open(ctx context.Context, h providers.Handle, a psa.Attributes, b providers.Blob) (providers.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !psa.Supports(possible, psa.Import, a.Type, a.Bits, a.Algorithm) {
		return nil, errUnsupported("open", a, a.Algorithm)
	}
	k := &key{p: p, attributes: a, public: bytes.Clone(b.Public), adopted: b.Object != ""}
	if err := k.read(h, b); err != nil {
		return nil, psa.Errorf(psa.StatusDataCorrupt, "the stored key is damaged: %w", err)
	}
	return k, nil
}

// read takes from the blob which object is the key, and its public part.
func (k *key) read(h providers.Handle, b providers.Blob) (err error) {
	if len(b.Secret) != 0 {
		return psa.Errorf(psa.StatusInvalidArgument, "the stored key must have no secret part, which is on the token")
	}
	switch t := k.attributes.Type; {
	case t.IsAsymmetric():
		if k.verifier, err = k.attributes.PublicKey(b.Public); err != nil {
			return err
		}
	case len(b.Public) != 0:
		return psa.Errorf(psa.StatusInvalidArgument, "a %s key must have no public part", t)
	}
	if k.object, err = objectOf(h, k.attributes.Type, b.Object); err != nil {
		return err
	}
	k.object.unique, err = uniqueOf(k.verifier)
	return err
}

// objectOf names the private or secret key, by its handle, or by the token's name of an adopted key.
func objectOf(h providers.Handle, t psa.KeyType, adopted string) (o object, err error) {
	o.id = h[:]
	if adopted != "" {
		if o, err = parseReference(adopted); err != nil {
			return o, err
		}
	}
	o.class = p11.CKO_SECRET_KEY
	if t.IsAsymmetric() {
		o.class = p11.CKO_PRIVATE_KEY
	}
	return o, nil
}

// uniqueOf is an attribute that no other key pair has, as the token shows it; none for a symmetric key.
func uniqueOf(pub crypto.PublicKey) ([]byte, error) {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return k.N.Bytes(), nil
	case *ecdsa.PublicKey:
		return k.Bytes()
	case *ecdh.PublicKey:
		return k.Bytes(), nil
	case ed25519.PublicKey:
		return k, nil
	}
	return nil, nil
}

func (k *key) Attributes() psa.Attributes { return k.attributes }

func (k *key) Public() []byte { return bytes.Clone(k.public) }

func (k *key) Close() error {
	k.closed.Store(true)
	return nil
}

func (k *key) Begin(ctx context.Context, op psa.Op) (psa.Run, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !k.attributes.Dispatches(k.p.lines(), op) {
		return nil, errUnsupported(op.Operation, k.attributes, op.Algorithm)
	}
	if k.closed.Load() {
		return nil, psa.Errorf(psa.StatusInvalidHandle, "the key is closed")
	}
	return k.begin(op)
}

func (k *key) begin(op psa.Op) (psa.Run, error) {
	switch op.Operation {
	case psa.ExportPublic:
		return psa.ExportRun(func() ([]byte, error) { return k.Public(), nil }), nil
	case psa.Verify, psa.VerifyHash:
		return psa.VerifierRun(op, k.verifier)
	case psa.Encrypt:
		if err := k.p.checkLabel(op); err != nil {
			return nil, err
		}
		if pub, ok := k.verifier.(*rsa.PublicKey); ok {
			return psa.RSAEncryptRun(op, pub)
		}
	}
	u := &use{p: k.p, object: k.object, attributes: k.attributes, public: k.verifier, alg: op.Algorithm, adopted: k.adopted,
		unchecked: k.unchecked}
	run, err := u.begin(op)
	if err != nil {
		return nil, err
	}
	return &finishing{run, u}, nil
}

// use is one use of a key on the token: a crypto.Signer and a crypto.Decrypter.
type use struct {
	p          *provider
	object     object
	attributes psa.Attributes
	public     crypto.PublicKey
	alg        psa.Algorithm
	adopted    bool
	unchecked  bool
	label      []byte          // OAEP's
	ctx        context.Context // of the Finish under way
}

// finishing gives the use the context of its Finish, which crypto.Signer cannot pass on.
type finishing struct {
	psa.Run
	u *use
}

func (r *finishing) Finish(ctx context.Context) (psa.Result, error) {
	r.u.ctx = ctx
	return r.Run.Finish(ctx)
}

func (u *use) begin(op psa.Op) (psa.Run, error) {
	switch op.Operation {
	case psa.Export:
		return u.beginExport(op)
	case psa.Sign, psa.SignHash:
		return psa.SignerRun(op, u)
	case psa.Decrypt, psa.Encrypt:
		if u.attributes.Type.IsRSA() {
			if err := u.p.checkLabel(op); err != nil {
				return nil, err
			}
			u.label = bytes.Clone(op.Inputs["additional_data"])
			return psa.RSADecryptRun(op, u)
		}
		return u.beginCipher(op)
	case psa.Agree:
		return psa.DerivedRun(op, func(op psa.Op) (psa.Run, error) {
			curve, err := curveOf(u.public)
			if err != nil {
				return nil, err
			}
			return psa.DeviceAgreeRun(op, curve, u.agree)
		})
	case psa.Mac, psa.VerifyMac:
		return psa.DeviceMACRun(op, macSize(op.Algorithm), u.mac)
	}
	return nil, errUnsupported(op.Operation, u.attributes, op.Algorithm) // generate, import
}

// checkLabel refuses labels with which the token could not decrypt.
func (p *provider) checkLabel(op psa.Op) error {
	label := op.Inputs["additional_data"]
	known := p.token.known.Load()
	if known == nil || !known.zeroLabels || !op.Algorithm.IsRSAOAEP() || len(label) == 0 || bytes.IndexByte(label, 0) == len(label)-1 {
		return nil
	}
	return psa.Errorf(psa.StatusNotSupported, "the token takes only labels that end with a zero byte and contain no other zero byte").
		WithHint("append a zero byte to the label")
}

func curveOf(pub crypto.PublicKey) (ecdh.Curve, error) {
	if k, ok := pub.(*ecdh.PublicKey); ok {
		return k.Curve(), nil
	}
	if k, ok := pub.(*ecdsa.PublicKey); ok {
		if own, err := k.ECDH(); err == nil {
			return own.Curve(), nil
		}
	}
	return nil, psa.Errorf(psa.StatusNotSupported, "ECDH does not work with a %T", pub)
}

// ask has the token do one thing with the key. The answer belongs to the caller.
func (u *use) ask(ctx context.Context, what string, r *request) ([]byte, error) {
	return u.askAbout(ctx, what, r, psa.StatusSuccess, "")
}

// askAbout is ask with an input that could not be checked before. If the token refuses the input, the error has the status
// refused and the text why.
func (u *use) askAbout(ctx context.Context, what string, r *request, refused psa.Status, why string) ([]byte, error) {
	r.object = u.object
	a, err := u.p.ask(ctx, what, r)
	if err == nil {
		return a.data, nil
	}
	if refused != psa.StatusSuccess && a != nil && a.outcome == outcomeRefused && aboutInput[p11.Error(a.rv)] {
		e := psa.Errorf(refused, "%s", why)
		e.Device = psa.DeviceOf(err)
		return nil, e
	}
	return nil, err
}

// aboutInput are errors that can mean a wrong input, or anything else. Before a worker reports one, it checks that the token
// still works.
var aboutInput = errorSet{p11.CKR_GENERAL_ERROR: true, p11.CKR_FUNCTION_FAILED: true, p11.CKR_DEVICE_ERROR: true, p11.CKR_ARGUMENTS_BAD: true,
	p11.CKR_DATA_INVALID: true, p11.CKR_DATA_LEN_RANGE: true, p11.CKR_ENCRYPTED_DATA_INVALID: true, p11.CKR_ENCRYPTED_DATA_LEN_RANGE: true,
	p11.CKR_SIGNATURE_INVALID: true, p11.CKR_MECHANISM_PARAM_INVALID: true, p11.CKR_KEY_SIZE_RANGE: true}

func (u *use) Public() crypto.PublicKey { return u.public }

// hashes are what PKCS #11 and PKCS #1 (RFC 8017, 9.2) call the hash algorithms.
var hashes = map[psa.Algorithm]struct {
	mechanism, mgf, hmac uint64
	id                   asn1.ObjectIdentifier
}{
	psa.SHA224: {p11.CKM_SHA224, p11.CKG_MGF1_SHA224, p11.CKM_SHA224_HMAC, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 4}},
	psa.SHA256: {p11.CKM_SHA256, p11.CKG_MGF1_SHA256, p11.CKM_SHA256_HMAC, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}},
	psa.SHA384: {p11.CKM_SHA384, p11.CKG_MGF1_SHA384, p11.CKM_SHA384_HMAC, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}},
	psa.SHA512: {p11.CKM_SHA512, p11.CKG_MGF1_SHA512, p11.CKM_SHA512_HMAC, asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}},
}

// digestInfo is RFC 8017, 9.2.
func digestInfo(h psa.Algorithm, digest []byte) ([]byte, error) {
	return asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Digest    []byte
	}{pkix.AlgorithmIdentifier{Algorithm: hashes[h].id, Parameters: asn1.NullRawValue}, digest})
}

// signing returns the mechanism of a signature, and its input.
func (u *use) signing(in []byte) (m mechanism, data []byte, err error) {
	hash := hashes[u.alg.Hash()]
	switch alg := u.alg; {
	case alg.IsRSAPSS():
		return mechanism{number: p11.CKM_RSA_PKCS_PSS, kind: paramPSS, hash: hash.mechanism, mgf: hash.mgf, length: uint64(len(in))}, in, nil
	case alg.IsRSAPKCS1v15Sign():
		data, err = digestInfo(alg.Hash(), in)
		return mechanism{number: p11.CKM_RSA_PKCS}, data, err
	case alg.IsECDSA():
		return mechanism{number: p11.CKM_ECDSA}, leftmost(in, u.attributes.Bits), nil
	}
	return mechanism{number: ckmEdDSA}, in, nil
}

// leftmost is the digest as ECDSA uses it (SEC 1, 4.1.3), as long as the curve's order: its leftmost bits, or zeros before
// it, which change nothing. Not all tokens do that themselves, and a TPM takes no other length. The order of P-521 is longer
// than any digest.
func leftmost(digest []byte, bits int) []byte {
	n := bits / 8
	if bits%8 != 0 || len(digest) >= n {
		return digest[:min(len(digest), (bits+7)/8)]
	}
	return append(make([]byte, n-len(digest)), digest...)
}

// Sign returns ECDSA signatures in ASN.1, as crypto/ecdsa does.
func (u *use) Sign(_ io.Reader, in []byte, _ crypto.SignerOpts) ([]byte, error) {
	m, data, err := u.signing(in)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "%w", err)
	}
	out, err := u.ask(u.ctx, "sign", &request{method: methodSign, mechanism: m, data: data})
	if err != nil {
		return nil, err
	}
	if want := u.signatureLength(); len(out) != want {
		return nil, psa.Errorf(psa.StatusHardwareFailure, "the token returned a signature of %d bytes instead of %d", len(out), want)
	}
	if !u.unchecked && (u.adopted || u.attributes.Type.IsRSA()) {
		if err := u.proves(in, out); err != nil {
			return nil, err
		}
	}
	if u.alg.IsECDSA() {
		return psa.ECDSARawToDER(out)
	}
	return out, nil
}

// proves checks a signature. It does so for an adopted key, because another key may have its name by now, and many tokens do
// not show that; and always for RSA, because a faulty signature reveals the private key (Boneh, DeMillo and Lipton, 1997).
func (u *use) proves(in, signature []byte) error {
	op := psa.Op{Operation: psa.VerifyHash, Algorithm: u.alg, Inputs: map[string][]byte{"signature": signature}}
	if u.alg == psa.PureEdDSA {
		op.Operation = psa.Verify
	}
	run, err := psa.VerifierRun(op, u.public)
	if err != nil {
		return err
	}
	if _, err := run.Write(in); err != nil {
		run.Abort()
		return err
	}
	if _, err = run.Finish(u.ctx); psa.StatusOf(err) == psa.StatusInvalidSignature {
		if !u.adopted {
			return psa.Errorf(psa.StatusHardwareFailure, "the token returned a signature that was not made with this key").
				WithHint("the token is defective, or another key there has this key's name")
		}
		return (&response{outcome: outcomeReplaced, what: "another key on the token has this key's name"}).err("sign")
	}
	return err
}

func (u *use) signatureLength() int {
	a := u.attributes
	a.Algorithm = u.alg
	return a.SignatureLength()
}

// Decrypt decrypts with RSA.
func (u *use) Decrypt(_ io.Reader, ciphertext []byte, _ crypto.DecrypterOpts) ([]byte, error) {
	m := mechanism{number: p11.CKM_RSA_PKCS}
	if u.alg.IsRSAOAEP() {
		hash := hashes[u.alg.Hash()]
		m = mechanism{number: p11.CKM_RSA_PKCS_OAEP, kind: paramOAEP, hash: hash.mechanism, mgf: hash.mgf, data: u.label}
	}
	return u.askAbout(u.ctx, "decrypt", &request{method: methodDecrypt, mechanism: m, data: ciphertext}, psa.StatusInvalidPadding,
		"this ciphertext was not made for this key")
}

// cipherMechanisms are the mechanisms of the ciphers. We do CBC's padding ourselves.
var cipherMechanisms = map[psa.Algorithm]uint64{psa.CTR: p11.CKM_AES_CTR, psa.CBCNoPadding: p11.CKM_AES_CBC, psa.CBCPKCS7: p11.CKM_AES_CBC,
	psa.ECBNoPadding: p11.CKM_AES_ECB, psa.GCM: p11.CKM_AES_GCM}

func (u *use) beginCipher(op psa.Op) (psa.Run, error) {
	data := bytes.Clone(op.Inputs["additional_data"])
	what, method := "encrypt", methodEncrypt
	if op.Operation == psa.Decrypt {
		what, method = "decrypt", methodDecrypt
	}
	return psa.DeviceCipherRun(op, op.Algorithm.TagLength(), func(ctx context.Context, nonce, in []byte) ([]byte, error) {
		m := mechanism{number: cipherMechanisms[op.Algorithm], parameter: nonce}
		switch op.Algorithm {
		case psa.GCM:
			m.kind, m.data, m.length = paramGCM, data, uint64(8*op.Algorithm.TagLength())
		case psa.CTR:
			m.parameter = append(number(128), nonce...) // CK_AES_CTR_PARAMS: the counter's bits, and the first one
		}
		bad := psa.StatusSuccess
		if op.Algorithm.IsAEAD() && method == methodDecrypt {
			bad = psa.StatusInvalidSignature
		}
		out, err := u.askAbout(ctx, what, &request{method: method, mechanism: m, data: in}, bad,
			"the ciphertext is not authentic for this key, nonce and additional data")
		want := len(in)
		if op.Algorithm.IsAEAD() && method == methodEncrypt {
			want += op.Algorithm.TagLength()
		} else if op.Algorithm.IsAEAD() {
			want -= op.Algorithm.TagLength()
		}
		if err == nil && len(out) != want {
			psa.Wipe(out)
			return nil, psa.Errorf(psa.StatusHardwareFailure, "%s: the token returned %d bytes instead of %d", what, len(out), want)
		}
		return out, err
	})
}

// agree returns the x coordinate, as long as the curve (PKCS #11 v2.40 mechanisms, 2.3.7).
func (u *use) agree(ctx context.Context, peer *ecdh.PublicKey) ([]byte, error) {
	n := (u.attributes.Bits + 7) / 8
	if peer.Curve() == ecdh.X25519() && bytes.Equal(peer.Bytes(), make([]byte, n)) {
		return nil, psa.Errorf(psa.StatusInvalidArgument, "the key agreement failed with this peer's key: its point has a small order")
	}
	var t template
	t.add(p11.CKA_CLASS, number(p11.CKO_SECRET_KEY))
	t.add(p11.CKA_KEY_TYPE, number(p11.CKK_GENERIC_SECRET))
	t.add(p11.CKA_TOKEN, flag(false))
	t.add(p11.CKA_SENSITIVE, flag(false))
	t.add(p11.CKA_EXTRACTABLE, flag(true))
	t.add(p11.CKA_VALUE_LEN, number(uint64(n)))
	r := &request{method: methodDerive, mechanism: mechanism{number: p11.CKM_ECDH1_DERIVE, kind: paramECDH, data: peer.Bytes()}, templates: [2][]attribute{t}}
	secret, err := u.askAbout(ctx, "agree", r, psa.StatusInvalidArgument, "the key agreement failed with this peer's key")
	if err != nil {
		return nil, err
	}
	if len(secret) != n || peer.Curve() == ecdh.X25519() && bytes.Equal(secret, make([]byte, n)) {
		psa.Wipe(secret)
		return nil, psa.Errorf(psa.StatusInvalidArgument,
			"the key agreement failed with this peer's key: the secret has %d bytes, or is all zero (RFC 7748, 6.1)", len(secret))
	}
	return secret, nil
}

func macSize(alg psa.Algorithm) int {
	if alg.IsHMAC() {
		return alg.HashLength()
	}
	return 16
}

func macMechanism(alg psa.Algorithm) uint64 {
	if alg.IsHMAC() {
		return hashes[alg.Hash()].hmac
	}
	return p11.CKM_AES_CMAC
}

func (u *use) mac(ctx context.Context, message []byte) ([]byte, error) {
	return u.ask(ctx, "mac", &request{method: methodSign, mechanism: mechanism{number: macMechanism(u.alg)}, data: message})
}

func (u *use) beginExport(op psa.Op) (psa.Run, error) {
	if string(op.Inputs["format"]) == "tss2" {
		return nil, psa.Errorf(psa.StatusNotSupported, "this provider cannot export as \"tss2\", which only a TPM can")
	}
	if u.attributes.Usage&psa.UsageExport == 0 {
		return nil, psa.Errorf(psa.StatusNotPermitted, "export needs %s", psa.UsageExport)
	}
	return psa.ExportRun(func() ([]byte, error) {
		a, err := u.p.ask(u.ctx, "export", &request{method: methodRead, object: u.object, types: privateTypes(u.attributes.Type)})
		if err != nil {
			return nil, err
		}
		defer a.wipe()
		return exported(u.attributes, a.objects[0])
	}), nil
}
