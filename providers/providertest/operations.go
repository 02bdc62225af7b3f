package providertest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// known is a key that the standard library made.
type known struct {
	psa.Material
	signer crypto.Signer     // nil for symmetric keys and X25519
	key    crypto.PrivateKey // nil for symmetric keys
	secret []byte            // of a symmetric key

	// of keys that crypto/x509 does not know
	rawPublic []byte
	sign      func(alg psa.Algorithm, message []byte) ([]byte, error)
}

// material is a copy to import, nil (generate) without a key.
func (k *known) material() *psa.Material {
	if k == nil {
		return nil
	}
	return &psa.Material{Format: k.Format, Data: bytes.Clone(k.Data)}
}

var (
	rsaMu   sync.Mutex
	rsaKeys = map[int]*rsa.PrivateKey{} // by bits, as they take long to make
)

func rsaKey(bits int) (*rsa.PrivateKey, error) {
	rsaMu.Lock()
	defer rsaMu.Unlock()
	if k := rsaKeys[bits]; k != nil {
		return k, nil
	}
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err == nil {
		rsaKeys[bits] = k
	}
	return k, err
}

var nistCurves = map[int]elliptic.Curve{224: elliptic.P224(), 256: elliptic.P256(), 384: elliptic.P384(), 521: elliptic.P521()}

// makeKnown makes a key of a type that the standard library knows.
func makeKnown(t psa.KeyType, bits int) (*known, error) {
	if !t.IsAsymmetric() {
		b := make([]byte, bits/8)
		_, err := rand.Read(b)
		return &known{Material: psa.Material{Format: psa.FormatRaw, Data: b}, secret: b}, err
	}
	if psa.IsRawKey(t, bits) {
		return makeRaw(t, bits)
	}
	var private any
	var err error
	switch curve := nistCurves[bits]; {
	case t.IsRSA() && bits <= 4096:
		private, err = rsaKey(bits)
	case t.Family() == psa.SECPR1 && curve != nil:
		private, err = ecdsa.GenerateKey(curve, rand.Reader)
	case t.Family() == psa.TwistedEdwards && bits == 255:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case t.Family() == psa.Montgomery && bits == 255:
		private, err = ecdh.X25519().GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("the suite makes no %s of %d bits", t, bits)
	}
	if err != nil {
		return nil, err
	}
	k := &known{key: private}
	k.signer, _ = private.(crypto.Signer)
	if !t.IsPublicKey() {
		k.Format = psa.FormatPKCS8
		k.Data, err = x509.MarshalPKCS8PrivateKey(private)
		return k, err
	}
	k.Format = psa.FormatSPKI
	public := private.(interface{ Public() crypto.PublicKey }).Public()
	k.Data, err = x509.MarshalPKIXPublicKey(public)
	return k, err
}

func newKnown(t *testing.T, keyType psa.KeyType, bits int) *known {
	t.Helper()
	k, err := makeKnown(keyType, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

type wrong struct {
	name     string
	material psa.Material
}

// otherMaterial is well formed, and of other types and sizes; for a private key also the public one.
func otherMaterial(t *testing.T, keyType psa.KeyType, bits int) []wrong {
	t.Helper()
	var list []wrong
	add := func(name string, otherType psa.KeyType, otherBits int) {
		list = append(list, wrong{name, *newKnown(t, otherType, otherBits).material()})
	}
	p256, p384 := psa.ECCKeyPair(psa.SECPR1), 384
	switch {
	case !keyType.IsAsymmetric():
		add("too short", keyType, bits-64)
		add("too long", keyType, bits+64)
		add("an elliptic curve's key", p256, 256)
		return list
	case keyType.IsRSA():
		other := 2048
		if bits == other {
			other = 3072
		}
		add("another size", keyType, other)
		add("an elliptic curve's key", p256, 256)
	case keyType.Family() == psa.Montgomery:
		add("an Edwards key", psa.ECCKeyPair(psa.TwistedEdwards), 255)
		add("a P-256 key", p256, 256)
	case keyType.Family() == psa.SECPR1:
		if bits == p384 {
			p384 = 256
		}
		add("another curve", keyType, p384)
		add("an Edwards key", psa.ECCKeyPair(psa.TwistedEdwards), 255)
		add("an RSA key", psa.KeyTypeRSAKeyPair, 2048)
	default:
		add("X25519's key", psa.ECCKeyPair(psa.Montgomery), 255)
		add("a P-256 key", p256, 256)
	}
	add("an AES key", psa.KeyTypeAES, 256)
	if keyType.IsPublicKey() {
		add("the private key", keyType.KeyPair(), bits)
	} else {
		add("a public key", keyType.PublicKey(), bits)
	}
	return list
}

func digestOf(alg psa.Algorithm, message []byte) ([]byte, crypto.Hash, error) {
	h, ok := alg.CryptoHash()
	if !ok || !h.Available() {
		return nil, 0, fmt.Errorf("the suite has no hash for %s", alg)
	}
	sum := h.New()
	sum.Write(message)
	return sum.Sum(nil), h, nil
}

// checkSignature verifies, by the standard library alone, a signature of a message in PSA's encoding.
func checkSignature(pub crypto.PublicKey, alg psa.Algorithm, message, signature []byte) error {
	if raw, ok := pub.(psa.RawKey); ok {
		return RawVerify(raw, alg, message, signature)
	}
	if pub, ok := pub.(ed25519.PublicKey); ok && alg == psa.PureEdDSA {
		if !ed25519.Verify(pub, message, signature) {
			return errors.New("the Ed25519 signature is not valid")
		}
		return nil
	}
	digest, h, err := digestOf(alg, message)
	if err != nil {
		return err
	}
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		switch {
		case alg.IsRSAPKCS1v15Sign():
			return rsa.VerifyPKCS1v15(pub, h, digest, signature)
		case alg == psa.RSAPSS(alg.Hash()):
			return rsa.VerifyPSS(pub, h, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
	case *ecdsa.PublicKey:
		if n := (pub.Curve.Params().BitSize + 7) / 8; len(signature) != 2*n {
			return fmt.Errorf("an ECDSA signature of %d bytes", len(signature))
		} else if !ecdsa.Verify(pub, digest, new(big.Int).SetBytes(signature[:n]), new(big.Int).SetBytes(signature[n:])) {
			return errors.New("the ECDSA signature is not valid")
		}
		return nil
	}
	return fmt.Errorf("the suite cannot check %s with a %T", alg, pub)
}

// makeSignature signs a message, by the standard library alone.
func makeSignature(signer crypto.Signer, alg psa.Algorithm, message []byte) ([]byte, error) {
	if k, ok := signer.(ed25519.PrivateKey); ok && alg == psa.PureEdDSA {
		return ed25519.Sign(k, message), nil
	}
	digest, h, err := digestOf(alg, message)
	if err != nil {
		return nil, err
	}
	switch k := signer.(type) {
	case *rsa.PrivateKey:
		switch {
		case alg.IsRSAPKCS1v15Sign():
			return rsa.SignPKCS1v15(rand.Reader, k, h, digest)
		case alg == psa.RSAPSS(alg.Hash()):
			return rsa.SignPSS(rand.Reader, k, h, digest, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, k, digest)
		if err != nil {
			return nil, err
		}
		n := (k.Curve.Params().BitSize + 7) / 8
		raw := make([]byte, 2*n)
		r.FillBytes(raw[:n])
		s.FillBytes(raw[n:])
		return raw, nil
	}
	return nil, fmt.Errorf("the suite cannot make %s with a %T", alg, signer)
}

// private is the operation that needs the key's secret part: sign a message, or encrypt.
func (m *made) private() psa.Op {
	op := psa.Op{Operation: psa.Sign}
	if !m.attributes.Can(psa.Sign) {
		op.Operation = psa.Encrypt
	}
	op.Algorithm, _ = m.attributes.Resolve(op.Operation, 0) // it fails for digests alone
	return op
}

// privately does it.
func (m *made) privately(ctx context.Context, k providers.Key, message []byte) (map[string][]byte, error) {
	return do(ctx, k, m.private(), message)
}

// checks says whether out is what private gives for a message.
func (m *made) checks(ctx context.Context, k providers.Key, message []byte, out map[string][]byte) error {
	op := m.private()
	if op.Operation == psa.Sign {
		pub, err := psa.ReadPublicKey(m.blob.Public)
		if err != nil {
			return err
		}
		return checkSignature(pub, op.Algorithm, message, out["signature"])
	}
	op.Operation, op.Inputs = psa.Decrypt, map[string][]byte{"nonce": out["nonce"]}
	back, err := do(ctx, k, op, out["ciphertext"])
	if err == nil && !bytes.Equal(back["plaintext"], message) {
		err = errors.New("another plaintext came back")
	}
	return err
}

func (m *made) mustWork(t *testing.T, what string) {
	t.Helper()
	message := []byte("a message for " + what)
	out, err := m.privately(t.Context(), m.key, message)
	if err == nil {
		err = m.checks(t.Context(), m.key, message, out)
	}
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

// Use does with a private key what it is for, and has its device attest it.
func Use(t *testing.T, k providers.Key) {
	t.Helper()
	m := &made{key: k, attributes: k.Attributes(), blob: providers.Blob{Public: k.Public()}}
	alg, err := m.attributes.Resolve(psa.Sign, 0)
	pub := m.publicKey(t)
	if err != nil || t.Failed() {
		t.Errorf("no key to use: %v", err)
		return
	}
	switch {
	case m.attributes.Can(psa.Sign):
		m.signing(t, pub, psa.Sign, alg, true)
	case m.attributes.Can(psa.Decrypt):
		m.asymmetric(t, pub, psa.Decrypt)
	case m.attributes.Can(psa.Agree):
		m.agree(t, pub)
	case m.attributes.Can(psa.Mac):
		m.mac(t)
	}
	m.attest(t)
}

// copy gives the key another row, with less rights, and compares what comes out.
func (s *suite) copy(t *testing.T, m *made) {
	copier, ok := s.provider(t).(providers.Copier)
	if !ok {
		t.Error("the line copies, and the provider is no Copier")
		return
	}
	source := providers.Source{Handle: m.handle, Attributes: m.attributes, Blob: m.blob}
	c := &made{handle: newHandle(), attributes: m.attributes, known: m.known}
	c.attributes.Usage = psa.UsageExport
	var err error
	if c.blob, err = copier.Copy(t.Context(), c.handle, c.attributes, source); err != nil {
		t.Errorf("Copy: %v", err)
		return
	}
	t.Cleanup(func() {
		if err := s.provider(t).Destroy(context.Background(), c.handle); err != nil {
			t.Errorf("Destroy: %v", err)
		}
	})
	c.open(t, s.provider(t))
	if pub := c.publicKey(t); !t.Failed() {
		c.export(t, pub, s.o.Wrapped)
	}
	other := c.attributes
	other.Bits *= 2
	_, err = copier.Copy(t.Context(), newHandle(), other, source)
	wantStatus(t, "Copy into another size", err, psa.StatusNotSupported)
}

// operations does all that a line names on a key that it made.
func (s *suite) operations(t *testing.T, m *made, c psa.Capability) {
	pub := m.publicKey(t)
	if t.Failed() {
		return
	}
	for _, op := range c.Operations {
		switch op {
		case psa.Generate, psa.Import: // the key is there
		case psa.Copy:
			s.copy(t, m)
		case psa.ExportPublic:
			m.exportPublic(t)
		case psa.Export:
			m.export(t, pub, s.o.Wrapped)
		case psa.Sign, psa.SignHash, psa.Verify, psa.VerifyHash:
			s.eachAlgorithm(t, c, op, func(alg psa.Algorithm, must bool) { m.signing(t, pub, op, alg, must) })
		case psa.Encrypt, psa.Decrypt:
			both := c.Has(psa.Encrypt) && c.Has(psa.Decrypt)
			switch {
			case c.Algorithm.IsAsymmetricEncryption():
				m.asymmetric(t, pub, op)
			case !both:
				t.Errorf("the line has only one of encrypt and decrypt with %s", c.Algorithm)
			case op == psa.Decrypt: // both at once
			case c.Algorithm.IsAEAD():
				m.aead(t)
			default:
				m.cipher(t)
			}
		case psa.Mac, psa.VerifyMac:
			if !c.Has(psa.Mac) || !c.Has(psa.VerifyMac) {
				t.Errorf("the line has only one of mac and verify_mac with %s", c.Algorithm)
			} else if op == psa.Mac {
				m.mac(t)
			}
		case psa.Agree:
			if raw, ok := pub.(psa.RawKey); ok {
				m.agreeRaw(t, raw)
			} else {
				m.agree(t, pub)
			}
		case psa.Derive:
			m.derive(t)
		case psa.Encapsulate, psa.Decapsulate:
			m.kem(t, pub, op)
		case psa.Attest:
			m.attest(t)
		case psa.ActivateCredential:
			m.activate(t, s.provider(t))
		default:
			t.Errorf("%s is not a key's operation", op)
		}
	}
}

// publicKey checks the public part against the attributes and gives it, nil for a symmetric key.
func (m *made) publicKey(t *testing.T) crypto.PublicKey {
	if m.key.Attributes() != m.attributes {
		t.Errorf("attributes %+v; want %+v", m.key.Attributes(), m.attributes)
	}
	if !bytes.Equal(m.key.Public(), m.blob.Public) {
		t.Error("the key's public part is not its blob's")
	}
	if !m.attributes.Type.IsAsymmetric() {
		if m.key.Public() != nil || len(m.blob.Public) != 0 {
			t.Error("a symmetric key with a public part")
		}
		return nil
	}
	pub, err := psa.ReadPublicKey(m.key.Public())
	if err != nil {
		t.Error(err)
		return nil
	}
	var keyType psa.KeyType
	var bits int
	switch pub := pub.(type) {
	case *rsa.PublicKey:
		keyType, bits = psa.KeyTypeRSAPublicKey, pub.N.BitLen()
	case *ecdsa.PublicKey:
		keyType, bits = psa.ECCPublicKey(psa.SECPR1), pub.Curve.Params().BitSize
	case ed25519.PublicKey:
		keyType, bits = psa.ECCPublicKey(psa.TwistedEdwards), 255
	case *ecdh.PublicKey:
		keyType, bits = psa.ECCPublicKey(psa.Montgomery), 255
	case psa.RawKey:
		keyType, bits = pub.Type, pub.Bits
		if m.known != nil && !bytes.Equal(m.known.rawPublic, pub.Bytes) {
			t.Error("the public part is not the imported key's")
		}
	}
	if keyType != m.attributes.Type.PublicKey() || bits != m.attributes.Bits {
		t.Errorf("the public part is a %T of %d bits; the attributes say %s, %d bits", pub, bits, m.attributes.Type, m.attributes.Bits)
	}
	if m.known != nil && m.known.signer != nil && !samePublic(pub, m.known.signer.Public()) {
		t.Error("the public part is not the imported key's")
	}
	return pub
}

func samePublic(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

func (m *made) exportPublic(t *testing.T) {
	out, err := do(t.Context(), m.key, psa.Op{Operation: psa.ExportPublic, Algorithm: m.attributes.Algorithm})
	if err != nil || !bytes.Equal(out["key"], m.blob.Public) {
		t.Errorf("export_public: %x, %v", out["key"], err)
	}
}

func (m *made) export(t *testing.T, pub crypto.PublicKey, wrapped bool) {
	out, err := do(t.Context(), m.key, psa.Op{Operation: psa.Export, Algorithm: m.attributes.Algorithm})
	if err != nil {
		t.Errorf("export: %v", err)
		return
	}
	if wrapped {
		if len(out["key"]) == 0 || m.known != nil && bytes.Contains(out["key"], m.known.Data) {
			t.Error("export gives no wrapped key")
		}
		return
	}
	if m.known != nil {
		if !bytes.Equal(out["key"], m.known.Data) {
			t.Error("export gives something else than what was imported")
		}
		return
	}
	if pub == nil {
		if len(out["key"])*8 != m.attributes.Bits {
			t.Errorf("export gives %d bytes", len(out["key"]))
		}
		return
	}
	if _, raw := pub.(psa.RawKey); raw {
		if k, err := psa.ParseRawKey(out["key"]); err != nil || k.Type != m.attributes.Type || k.Bits != m.attributes.Bits {
			t.Errorf("export gives %s, %v", k.Type, err)
		}
		return
	}
	private, err := x509.ParsePKCS8PrivateKey(out["key"])
	if err != nil {
		t.Errorf("export: %v", err)
	} else if k, ok := private.(crypto.Signer); !ok || !samePublic(pub, k.Public()) {
		t.Error("export gives another key")
	}
}

// eachAlgorithm runs with the concrete algorithms that a line stands for: its own, or under any hash those that
// operations resolve to, of which the key's own hash and what other lines name must work.
func (s *suite) eachAlgorithm(t *testing.T, c psa.Capability, op psa.Operation, run func(alg psa.Algorithm, must bool)) {
	a := c.Attributes()
	own, err := a.Resolve(psa.Sign, 0)
	if err != nil {
		t.Fatal(err)
	}
	if !a.Algorithm.IsWildcard() || op == psa.Sign || op == psa.Verify {
		run(own, true)
		return
	}
	for _, n := range []int{28, 32, 48, 64} {
		alg, err := a.Resolve(op, n)
		if err != nil {
			t.Fatal(err)
		}
		must := alg == own
		for _, line := range s.lines {
			must = must || line.Covers(c.Type, c.Bits, alg) && line.Has(op)
		}
		run(alg, must)
	}
}

// signing tries sign, sign_hash, verify or verify_hash. Without must, StatusNotSupported is an answer too.
func (m *made) signing(t *testing.T, pub crypto.PublicKey, op psa.Operation, alg psa.Algorithm, must bool) {
	hashed := op == psa.SignHash || op == psa.VerifyHash
	input := func(message []byte) []byte {
		if !hashed {
			return message
		}
		digest, _, err := digestOf(alg, message)
		if err != nil {
			t.Fatal(err)
		}
		return digest
	}
	if !must {
		probe := psa.Op{Operation: op, Algorithm: alg, Inputs: map[string][]byte{"signature": make([]byte, 2*((m.attributes.Bits+7)/8))}}
		r, err := m.key.Begin(t.Context(), probe)
		if err != nil {
			wantStatus(t, fmt.Sprintf("%s with %s", op, alg), err, psa.StatusNotSupported)
			return
		}
		r.Abort()
	}
	const text = "a message"
	for _, message := range [][]byte{{}, []byte(text), bytes.Repeat([]byte("0123456789abcde\n"), 5000)} {
		in := input(message)
		what := fmt.Sprintf("%s with %s, a message of %d bytes", op, alg, len(message))
		if op == psa.Sign || op == psa.SignHash {
			out, err := do(t.Context(), m.key, psa.Op{Operation: op, Algorithm: alg}, in[:len(in)/3], in[len(in)/3:])
			if err == nil {
				err = checkSignature(pub, alg, message, out["signature"])
			}
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
			continue
		}
		signature, err := m.signature(t, alg, message)
		if err != nil {
			t.Errorf("%s: no signature: %v", what, err)
			continue
		}
		verify := func(in, signature []byte) error {
			_, err := do(t.Context(), m.key, psa.Op{Operation: op, Algorithm: alg, Inputs: map[string][]byte{"signature": signature}}, in)
			return err
		}
		if err := verify(in, signature); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if len(message) != len(text) {
			continue // what is refused does not hang on the length
		}
		wantStatus(t, what+", another message", verify(input(append(bytes.Clone(message), 'x')), signature), psa.StatusInvalidSignature)
		for _, at := range []int{0, len(signature) / 2, len(signature) - 1} {
			changed := bytes.Clone(signature)
			changed[at] ^= 1
			wantStatus(t, fmt.Sprintf("%s, byte %d of the signature changed", what, at), verify(in, changed), psa.StatusInvalidSignature)
		}
		wantStatus(t, what+", the signature cut short", verify(in, signature[:len(signature)-1]), psa.StatusInvalidSignature)
		wantStatus(t, what+", the signature too long", verify(in, append(bytes.Clone(signature), 0)), psa.StatusInvalidSignature)
	}
	if hashed {
		for _, n := range []int{alg.HashLength() - 1, alg.HashLength() + 1} {
			_, err := do(t.Context(), m.key, psa.Op{Operation: op, Algorithm: alg, Inputs: map[string][]byte{"signature": make([]byte, 64)}}, make([]byte, n))
			wantStatus(t, fmt.Sprintf("%s with %s, a digest of %d bytes", op, alg, n), err, psa.StatusInvalidArgument)
		}
	}
}

// signature is one to verify: by the standard library where the private key is known, else by the key itself.
func (m *made) signature(t *testing.T, alg psa.Algorithm, message []byte) ([]byte, error) {
	if m.known != nil && m.known.sign != nil {
		return m.known.sign(alg, message)
	}
	if m.known != nil {
		return makeSignature(m.known.signer, alg, message)
	}
	op, in := psa.Op{Operation: psa.Sign, Algorithm: alg}, message
	if own, err := m.attributes.Resolve(psa.Sign, 0); err != nil || own != alg {
		op.Operation = psa.SignHash // of another hash than sign takes
		if in, _, err = digestOf(alg, message); err != nil {
			return nil, err
		}
	}
	out, err := do(t.Context(), m.key, op, in)
	return out["signature"], err
}

// aead tries encrypt and decrypt.
func (m *made) aead(t *testing.T) {
	alg, err := m.attributes.Resolve(psa.Encrypt, 0)
	if err != nil {
		t.Fatal(err)
	}
	size := alg.NonceLength()
	call := func(op psa.Operation, limit int64, nonce, data []byte, input ...[]byte) (map[string][]byte, error) {
		in := map[string][]byte{}
		if nonce != nil {
			in["nonce"] = nonce
		}
		if data != nil {
			in["additional_data"] = data
		}
		return do(t.Context(), m.key, psa.Op{Operation: op, Algorithm: alg, Limit: limit, Inputs: in}, input...)
	}
	given := make([]byte, size)
	if _, err := rand.Read(given); err != nil {
		t.Fatal(err)
	}
	nonces := map[string]bool{}
	blocks := 5000
	if alg.IsCCM() { // with a nonce of 13 bytes it has a length field of 2
		blocks = 4000
		_, err := call(psa.Encrypt, 0, nil, nil, make([]byte, 1<<16))
		wantStatus(t, "more than CCM can count", err, psa.StatusTooLarge)
	}
	for _, plaintext := range [][]byte{{}, []byte("a message"), bytes.Repeat([]byte("0123456789abcde\n"), blocks)} {
		for _, data := range [][]byte{nil, []byte("additional data")} {
			for _, nonce := range [][]byte{nil, given} {
				what := fmt.Sprintf("%d bytes, additional data %q, nonce %x", len(plaintext), data, nonce)
				out, err := call(psa.Encrypt, 0, nonce, data, plaintext[:len(plaintext)/3], plaintext[len(plaintext)/3:])
				if err != nil {
					t.Errorf("%s: encrypt: %v", what, err)
					continue
				}
				used, ciphertext := out["nonce"], out["ciphertext"]
				switch {
				case len(used) != size || nonce != nil && !bytes.Equal(used, nonce):
					t.Errorf("%s: the nonce was %x", what, used)
					continue
				case nonce == nil && nonces[string(used)]:
					t.Errorf("%s: a nonce was used twice", what)
				case len(ciphertext) != len(plaintext)+alg.TagLength():
					t.Errorf("%s: a ciphertext of %d bytes", what, len(ciphertext))
					continue
				}
				nonces[string(used)] = nonce == nil || nonces[string(used)]
				if want, ok := m.sealed(t, alg, used, plaintext, data); ok && !bytes.Equal(ciphertext, want) {
					t.Errorf("%s: the standard library encrypts otherwise", what)
				}
				back, err := call(psa.Decrypt, 0, used, data, ciphertext[:len(ciphertext)/3], ciphertext[len(ciphertext)/3:])
				if err != nil || !bytes.Equal(back["plaintext"], plaintext) {
					t.Errorf("%s: decrypt: %d bytes, %v", what, len(back["plaintext"]), err)
				}
				changed := func(b []byte, at int) []byte {
					b = bytes.Clone(b)
					b[at] ^= 1
					return b
				}
				for name, attempt := range map[string]func() (map[string][]byte, error){
					"the ciphertext changed": func() (map[string][]byte, error) {
						return call(psa.Decrypt, 0, used, data, changed(ciphertext, 0))
					},
					"the tag changed": func() (map[string][]byte, error) {
						return call(psa.Decrypt, 0, used, data, changed(ciphertext, len(ciphertext)-1))
					},
					"cut short": func() (map[string][]byte, error) {
						return call(psa.Decrypt, 0, used, data, ciphertext[:len(ciphertext)-1])
					},
					"another nonce": func() (map[string][]byte, error) {
						return call(psa.Decrypt, 0, changed(used, 0), data, ciphertext)
					},
					"other additional data": func() (map[string][]byte, error) {
						return call(psa.Decrypt, 0, used, append([]byte("x"), data...), ciphertext)
					},
				} {
					out, err := attempt()
					wantStatus(t, what+", "+name, err, psa.StatusInvalidSignature)
					if len(out) != 0 {
						t.Errorf("%s, %s: outputs all the same", what, name)
					}
				}
			}
		}
	}
	_, err = call(psa.Decrypt, 0, nil, nil, make([]byte, 32))
	wantStatus(t, "decrypt without a nonce", err, psa.StatusInsufficientData, psa.StatusInvalidArgument)
	_, err = call(psa.Encrypt, 0, make([]byte, size+1), nil, []byte("x"))
	wantStatus(t, "a nonce that is too long", err, psa.StatusInvalidArgument)

	// What fits the limit works there and back; beyond it a Run that streams may go on.
	full := make([]byte, 100)
	out, err := call(psa.Encrypt, 100, nil, nil, full)
	if err == nil {
		_, err = call(psa.Decrypt, 100, out["nonce"], nil, out["ciphertext"])
	}
	if err != nil {
		t.Errorf("as many bytes as the limit: %v", err)
	}
	if _, err := call(psa.Encrypt, 100, nil, nil, full, []byte("x")); err != nil {
		wantStatus(t, "more than the limit", err, psa.StatusTooLarge)
	}
}

// sealed is what the standard library makes of it, where the key is known and the algorithm there.
func (m *made) sealed(t *testing.T, alg psa.Algorithm, nonce, plaintext, data []byte) ([]byte, bool) {
	if m.known == nil {
		return nil, false
	}
	if alg != psa.GCM || m.attributes.Type != psa.KeyTypeAES {
		return nil, false // there and back must do
	}
	block, err := aes.NewCipher(m.known.secret)
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return gcm.Seal(nil, nonce, plaintext, data), true
}
