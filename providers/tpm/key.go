package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"sync"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// key is an open key; nothing of it is loaded until it is used.
type key struct {
	p          *provider
	attributes psa.Attributes
	public     []byte // SubjectPublicKeyInfo, nil of a symmetric key
	verifier   crypto.PublicKey

	mu     sync.Mutex
	closed bool
	stored *stored // nil of a public key
}

// Open parses the blob. One that is not this key's is StatusDataCorrupt.
func (p *provider) Open(ctx context.Context, _ providers.Handle, a psa.Attributes, b providers.Blob) (providers.Key, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !psa.Supports(possible, psa.Import, a.Type, a.Bits, a.Algorithm) {
		return nil, errUnsupported("open", a, a.Algorithm)
	}
	k := &key{p: p, attributes: a, public: bytes.Clone(b.Public)}
	if err := k.parse(b); err != nil {
		return nil, psa.Errorf(psa.StatusDataCorrupt, "the stored key is damaged: %w", err)
	}
	return k, nil
}

func (k *key) parse(b providers.Blob) (err error) {
	if k.attributes.Type.IsPublicKey() {
		if len(b.Secret) != 0 {
			return psa.Errorf(psa.StatusInvalidArgument, "a %s must have no secret part", k.attributes.Type)
		}
		k.verifier, err = k.attributes.PublicKey(b.Public)
		return err
	}
	if k.stored, err = parseStored(b.Secret); err != nil {
		return err
	}
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](k.stored.Public)
	if err != nil {
		return psa.Errorf(psa.StatusInvalidArgument, "wrong public area of the wrapped key: %w", err)
	}
	var der []byte
	if k.verifier, der, err = publicOf(k.attributes, area); err != nil {
		return err
	}
	// The public part is not sealed: another one there must not pass for this key's.
	if !bytes.Equal(der, b.Public) {
		return psa.Errorf(psa.StatusInvalidArgument, "the public key does not belong to the wrapped key")
	}
	return nil
}

func (k *key) Attributes() psa.Attributes { return k.attributes }

func (k *key) Public() []byte { return bytes.Clone(k.public) }

func (k *key) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closed = true
	if k.stored != nil {
		psa.Wipe(k.stored.Auth) // runs that have begun have their own
	}
	return nil
}

func (k *key) Begin(ctx context.Context, op psa.Op) (psa.Run, error) { return k.begin(ctx, op, nil) }

func (k *key) Certify(ctx context.Context, op psa.Op, signer providers.Key) (psa.Run, error) {
	by, ok := signer.(*key)
	if !ok || by.p.chip.chip != k.p.chip.chip || op.Operation != psa.Attest {
		return nil, psa.Errorf(psa.StatusNotSupported, "%s needs a signer that is a key of this TPM", op.Operation)
	}
	alg, err := by.attributes.Resolve(psa.Sign, 0)
	if err != nil {
		return nil, err
	}
	if !by.attributes.Dispatches(by.p.lines(), psa.Op{Operation: psa.Sign, Algorithm: alg}) {
		return nil, errUnsupported(psa.Sign, by.attributes, alg)
	}
	u, err := by.use(psa.Sign, alg)
	if err != nil {
		return nil, err
	}
	run, err := k.begin(ctx, op, u)
	if err != nil {
		psa.Wipe(u.key.Auth)
	}
	return run, err
}

// begin begins op; by is who signs an attestation, nil the TPM's own key.
func (k *key) begin(ctx context.Context, op psa.Op, by *use) (psa.Run, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if !k.attributes.Dispatches(k.p.lines(), op) {
		return nil, errUnsupported(op.Operation, k.attributes, op.Algorithm)
	}
	u, err := k.use(op.Operation, op.Algorithm)
	if err != nil {
		return nil, err
	}
	run, err := k.beginUse(op, u, by)
	if err != nil {
		psa.Wipe(u.key.Auth)
		return nil, err
	}
	return &finishing{run, u, by}, nil
}

// use is one use, with a copy of the secret, which the caller wipes; the key may be closed meanwhile.
func (k *key) use(op psa.Operation, alg psa.Algorithm) (*use, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, psa.Errorf(psa.StatusInvalidHandle, "the key is closed")
	}
	own := &stored{}
	if k.stored != nil {
		*own = *k.stored
		own.Auth = bytes.Clone(own.Auth)
	}
	return &use{p: k.p, key: own, alg: alg, pcrs: k.attributes.PCRs, public: k.verifier}, nil
}

func (k *key) beginUse(op psa.Op, u, by *use) (psa.Run, error) {
	switch op.Operation {
	case psa.ExportPublic:
		return psa.ExportRun(func() ([]byte, error) { return k.Public(), nil }), nil
	case psa.Verify, psa.VerifyHash:
		return psa.VerifierRun(op, k.verifier)
	case psa.Encrypt:
		return encrypt(op, k.verifier.(*rsa.PublicKey))
	case psa.Attest:
		return u.beginAttest(by), nil
	case psa.ActivateCredential:
		return u.beginActivate()
	}
	return k.beginPrivate(op, u)
}

func (k *key) beginPrivate(op psa.Op, u *use) (psa.Run, error) {
	switch op.Operation {
	case psa.Export:
		return k.beginExport(op, u)
	case psa.Sign, psa.SignHash:
		return psa.SignerRun(op, u)
	case psa.Decrypt:
		return u.beginDecrypt(op)
	case psa.Agree:
		return psa.DerivedRun(op, func(op psa.Op) (psa.Run, error) {
			pub, err := k.verifier.(*ecdsa.PublicKey).ECDH()
			if err != nil {
				return nil, psa.Errorf(psa.StatusGenericError, "ECDH: %w", err)
			}
			return psa.DeviceAgreeRun(op, pub.Curve(), u.agree)
		})
	case psa.Mac, psa.VerifyMac:
		return psa.DeviceMACRun(op, op.Algorithm.HashLength(), u.mac)
	}
	return nil, errUnsupported(op.Operation, k.attributes, op.Algorithm) // generate, import
}

// use is one use of a private key: a crypto.Signer and a crypto.Decrypter.
type use struct {
	p      *provider
	key    *stored
	alg    psa.Algorithm
	pcrs   psa.PCRs
	public crypto.PublicKey
	ctx    context.Context // of the Finish under way
}

// finishing tells the use what context its Finish has, which crypto.Signer cannot, and wipes what the uses had.
type finishing struct {
	psa.Run
	u, by *use // by may be nil
}

func (r *finishing) Finish(ctx context.Context) (psa.Result, error) {
	defer r.wipe()
	r.u.ctx = ctx
	return r.Run.Finish(ctx)
}

func (r *finishing) Abort() {
	r.Run.Abort()
	r.wipe()
}

func (r *finishing) wipe() {
	psa.Wipe(r.u.key.Auth)
	if r.by != nil {
		psa.Wipe(r.by.key.Auth)
	}
}

func (u *use) Public() crypto.PublicKey { return u.public }

// with runs f with the key loaded, and room for others more objects beside it.
func (u *use) with(ctx context.Context, what string, others int, f func(c *chip, l *loaded) error) error {
	c := u.p.chip
	return c.use(ctx, what, func() error {
		l, err := c.load(u.key, max(c.room-1-others, 0)) // a TPM with two slots has room for one
		if err != nil {
			return err
		}
		return f(c.chip, l)
	})
}

// private is the key's, in a session for one command.
func (u *use) private(c *chip, l *loaded, encrypts ...tpm2.AuthOption) tpm2.AuthHandle {
	return c.private(l, u.key.Auth, u.pcrs, encrypts...)
}

// The directions in which a session encrypts a command's first parameter, and its response's.
var (
	encryptIn   = tpm2.AESEncryption(128, tpm2.EncryptIn)
	encryptOut  = tpm2.AESEncryption(128, tpm2.EncryptOut)
	encryptBoth = tpm2.AESEncryption(128, tpm2.EncryptInOut)
)

// scheme is how the key signs.
func (u *use) scheme() (tpm2.TPMTSigScheme, error) {
	hash, ok := hashIDs[u.alg.Hash()]
	if !ok {
		return tpm2.TPMTSigScheme{}, psa.Errorf(psa.StatusNotSupported, "the TPM does not support the hash of %s", u.alg)
	}
	id := tpm2.TPMAlgECDSA
	switch {
	case u.alg.IsRSAPSS():
		id = tpm2.TPMAlgRSAPSS
	case u.alg.IsRSAPKCS1v15Sign():
		id = tpm2.TPMAlgRSASSA
	}
	return tpm2.TPMTSigScheme{Scheme: id, Details: tpm2.NewTPMUSigScheme(id, &tpm2.TPMSSchemeHash{HashAlg: hash})}, nil
}

// Sign gives ECDSA's signatures in ASN.1, as crypto/ecdsa does.
func (u *use) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) (out []byte, err error) {
	scheme, err := u.scheme()
	if err != nil {
		return nil, err
	}
	err = u.with(u.ctx, "sign", 0, func(c *chip, l *loaded) error {
		key := u.private(c, l, encryptIn)
		if u.pcrs == 0 && u.key.Handle == 0 {
			if key.Auth, err = c.signing(u.key); err != nil {
				return err
			}
			defer psa.Wipe(c.auth)
		}
		rsp, err := tpm2.Sign{
			KeyHandle: key,
			Digest:    tpm2.TPM2BDigest{Buffer: bytes.Clone(digest)}, // go-tpm encrypts it in place
			InScheme:  scheme, Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
		}.Execute(c.link)
		if err != nil {
			// An error proves nothing: where it was forged, the TPM and the session that is kept are out of step.
			return errors.Join(err, c.forgetSigning())
		}
		out, err = signatureOf(&rsp.Signature)
		return err
	})
	return out, err
}

func signatureOf(s *tpm2.TPMTSignature) ([]byte, error) {
	switch s.SigAlg {
	case tpm2.TPMAlgRSASSA:
		v, err := s.Signature.RSASSA()
		if err != nil {
			return nil, err
		}
		return v.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		v, err := s.Signature.RSAPSS()
		if err != nil {
			return nil, err
		}
		return v.Sig.Buffer, nil
	}
	v, err := s.Signature.ECDSA()
	if err != nil {
		return nil, err
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(v.SignatureR.Buffer), new(big.Int).SetBytes(v.SignatureS.Buffer)})
}

// checkLabel: a TPM takes labels that end with a zero byte alone (TCG TPM 2.0, part 1, B.4), so that what was encrypted
// with another one could not be decrypted.
func checkLabel(op psa.Op) error {
	if label := op.Inputs["additional_data"]; len(label) > 0 && op.Algorithm.IsRSAOAEP() && (label[len(label)-1] != 0 || bytes.IndexByte(label, 0) != len(label)-1) {
		return psa.Errorf(psa.StatusNotSupported, "a TPM takes only labels that end with a zero byte and contain no other zero byte").
			WithHint("append a zero byte to the label")
	}
	return nil
}

// encrypt needs no secret, and is done in software.
func encrypt(op psa.Op, pub *rsa.PublicKey) (psa.Run, error) {
	if err := checkLabel(op); err != nil {
		return nil, err
	}
	return psa.RSAEncryptRun(op, pub)
}

func (u *use) beginDecrypt(op psa.Op) (psa.Run, error) {
	if err := checkLabel(op); err != nil {
		return nil, err
	}
	return psa.RSADecryptRun(op, &decrypter{u, bytes.Clone(op.Inputs["additional_data"])})
}

type decrypter struct {
	*use
	label []byte
}

func (d *decrypter) Decrypt(_ io.Reader, ciphertext []byte, _ crypto.DecrypterOpts) (out []byte, err error) {
	scheme := tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgRSAES, Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgRSAES, &tpm2.TPMSEncSchemeRSAES{})}
	if d.alg.IsRSAOAEP() {
		scheme = tpm2.TPMTRSADecrypt{Scheme: tpm2.TPMAlgOAEP,
			Details: tpm2.NewTPMUAsymScheme(tpm2.TPMAlgOAEP, &tpm2.TPMSEncSchemeOAEP{HashAlg: hashIDs[d.alg.Hash()]})}
	}
	err = d.with(d.ctx, "decrypt", 0, func(c *chip, l *loaded) error {
		rsp, err := tpm2.RSADecrypt{KeyHandle: d.private(c, l, encryptBoth), CipherText: tpm2.TPM2BPublicKeyRSA{Buffer: bytes.Clone(ciphertext)},
			InScheme: scheme, Label: tpm2.TPM2BData{Buffer: d.label}}.Execute(c.link)
		// swtpm calls padding that is none a failure of the TPM; of a real one the next command would fail too.
		failure := isRC(err, tpm2.TPMRCFailure) && c.alive()
		if failure || isRC(err, tpm2.TPMRCValue, tpm2.TPMRCSize) {
			return psa.Errorf(psa.StatusInvalidPadding, "this ciphertext was not made for this key")
		}
		if err != nil {
			return err
		}
		out = rsp.Message.Buffer
		return nil
	})
	return out, err
}

// agree gives the x coordinate, in the curve's length.
func (u *use) agree(ctx context.Context, peer *ecdh.PublicKey) (out []byte, err error) {
	err = u.with(ctx, "agree", 0, func(c *chip, l *loaded) error {
		rsp, err := tpm2.ECDHZGen{KeyHandle: u.private(c, l, encryptBoth), InPoint: tpm2.New2B(point(peer))}.Execute(c.link)
		if err != nil {
			return err
		}
		p, err := rsp.OutPoint.Contents()
		if err != nil {
			return err
		}
		n := len(peer.Bytes()) / 2
		if len(p.X.Buffer) > n {
			return psa.Errorf(psa.StatusHardwareFailure, "the TPM returned a secret of %d bytes, which is the wrong length", len(p.X.Buffer))
		}
		out = append(make([]byte, n-len(p.X.Buffer)), p.X.Buffer...)
		psa.Wipe(p.X.Buffer)
		return nil
	})
	return out, err
}

// bufferSize is what every TPM takes at once (TCG PC Client Platform TPM Profile: MAX_DIGEST_BUFFER).
const bufferSize = 1024

// mac makes an HMAC, in a sequence where the message is long.
func (u *use) mac(ctx context.Context, message []byte) (out []byte, err error) {
	hash := hashIDs[u.alg.Hash()]
	others := 0
	if len(message) > bufferSize {
		others = 1 // the sequence takes a slot
	}
	err = u.with(ctx, "mac", others, func(c *chip, l *loaded) error {
		if len(message) <= bufferSize {
			rsp, err := tpm2.Hmac{Handle: u.private(c, l, encryptBoth), Buffer: tpm2.TPM2BMaxBuffer{Buffer: bytes.Clone(message)}, HashAlg: hash}.Execute(c.link)
			if err != nil {
				return err
			}
			out = rsp.OutHMAC.Buffer
			return nil
		}
		out, err = c.sequence(u.private(c, l, encryptIn), hash, message)
		return err
	})
	return out, err
}

func (c *chip) sequence(key tpm2.AuthHandle, hash tpm2.TPMAlgID, message []byte) ([]byte, error) {
	// A sequence has no name that a session could bind: its authorization shows that it is the one that was begun here.
	auth, err := newAuth()
	if err != nil {
		return nil, err
	}
	defer psa.Wipe(auth)
	start, err := tpm2.HmacStart{Handle: key, Auth: tpm2.TPM2BAuth{Buffer: bytes.Clone(auth)}, HashAlg: hash}.Execute(c.link)
	if err != nil {
		return nil, err
	}
	failed := func(err error) ([]byte, error) {
		_ = c.flush(start.SequenceHandle) // the first error is the one to tell
		return nil, err
	}
	if message, err = c.update(start.SequenceHandle, auth, message); err != nil {
		return failed(err)
	}
	rsp, err := tpm2.SequenceComplete{SequenceHandle: tpm2.AuthHandle{Handle: start.SequenceHandle, Auth: c.once(auth, encryptBoth)},
		Buffer: tpm2.TPM2BMaxBuffer{Buffer: bytes.Clone(message)}, Hierarchy: tpm2.TPMRHNull}.Execute(c.link)
	if err != nil {
		return failed(err)
	}
	return rsp.Result.Buffer, nil
}

// update gives a sequence all of a message but its last part.
func (c *chip) update(sequence tpm2.TPMHandle, auth, message []byte) (last []byte, err error) {
	session, end, err := tpm2.HMACSession(c.link, tpm2.TPMAlgSHA256, nonceSize,
		encryptIn, tpm2.Auth(auth), tpm2.Salted(c.parent.handle, c.parent.public))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	handle := tpm2.AuthHandle{Handle: sequence, Auth: session}
	for len(message) > bufferSize {
		if _, err := (tpm2.SequenceUpdate{SequenceHandle: handle, Buffer: tpm2.TPM2BMaxBuffer{Buffer: bytes.Clone(message[:bufferSize])}}).Execute(c.link); err != nil {
			return nil, err
		}
		message = message[bufferSize:]
	}
	return message, nil
}
