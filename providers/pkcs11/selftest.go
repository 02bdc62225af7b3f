package pkcs11

import (
	"bytes"
	"context"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"sync"

	"github.com/jacobsa/crypto/cmac"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// knowledge is what a token does, by what it lists and what it was seen to do.
type knowledge struct {
	lines      []psa.Capability
	mechanisms map[uint64]mechanismInfo
}

// tester tries a token's mechanisms on session objects, which leave nothing behind.
type tester struct {
	ctx        context.Context
	p          *provider
	mechanisms map[uint64]mechanismInfo
	token      tokenInfo

	keys  map[psa.Attributes]*testKey // by type and size
	works map[psa.Attributes]bool
	fatal error // the token went away
}

// testKey is a session object.
type testKey struct {
	ways   ways
	object object
	public crypto.PublicKey
	known  any // the private key, or the secret's bytes, of an imported one
}

// learn asks the token for its mechanisms, and tries them.
func (p *provider) learn(ctx context.Context) (*knowledge, error) {
	p.token.learning.Lock()
	defer p.token.learning.Unlock()
	if k := p.token.known.Load(); k != nil {
		return k, nil
	}
	identity, err := p.ask(ctx, "identity", &request{method: methodIdentify})
	if err != nil {
		return nil, err
	}
	list, err := p.ask(ctx, "capabilities", &request{method: methodMechanisms})
	if err != nil {
		return nil, err
	}
	k := &knowledge{mechanisms: map[uint64]mechanismInfo{}}
	for _, m := range list.mechanisms {
		k.mechanisms[m.number] = m
	}
	t := &tester{ctx: ctx, p: p, mechanisms: k.mechanisms, token: identity.token, keys: map[psa.Attributes]*testKey{}, works: map[psa.Attributes]bool{}}
	k.lines = newTable(t.takes)
	t.forget()
	if t.fatal == nil {
		t.fatal = ctx.Err()
	}
	if t.fatal != nil {
		return nil, t.fatal
	}
	p.token.known.Store(k)
	return k, nil
}

// forget destroys the session objects.
func (t *tester) forget() {
	for _, k := range t.keys {
		if k != nil {
			_, err := t.p.ask(context.WithoutCancel(t.ctx), "self-test", &request{method: methodForget, object: k.object})
			t.note(err)
		}
	}
}

// note keeps an error that says nothing of a mechanism: the token is away, or nobody waits.
func (t *tester) note(err error) {
	if err != nil && t.fatal == nil && (psa.OutcomeUnknown(err) || t.ctx.Err() != nil) && psa.StatusOf(err) != psa.StatusHardwareFailure {
		t.fatal = err
	}
}

// takes says how keys of a can be made. RSA's sizes are alike, and one of them is tried; so are ECDSA's hashes, which the
// token never sees, and what an agreement's secret goes into.
func (t *tester) takes(a psa.Attributes) ways {
	kind, ok := kindOf(a.Type, a.Bits, t.mechanisms)
	if !ok || t.fatal != nil || !needs(a).listed(t.mechanisms) {
		return ways{}
	}
	tried := a
	size := uint64(a.Bits)
	switch {
	case a.Type.IsRSA():
		tried.Bits = rsaBits[0]
		if tried.Algorithm.IsWildcard() || a.Algorithm.IsRSAPKCS1v15Sign() {
			tried.Algorithm = a.Algorithm.WithHash(psa.SHA256)
		}
	case a.Algorithm.IsECDSA():
		tried.Algorithm = psa.ECDSA(psa.SHA512) // longer than most curves
	case a.Algorithm.IsKeyAgreement():
		tried.Algorithm = psa.ECDH
	case !a.Type.IsAsymmetric():
		size = 0 // in bits, or in bytes
	}
	if a.Type.IsECC() && a.Type.Family() != psa.SECPR1 {
		size = 0
	}
	k := t.key(tried, kind)
	if k == nil || !t.does(tried, k) {
		return ways{}
	}
	w := k.ways
	w.generated = w.generated && need{kind.generate, 0, size}.listed(t.mechanisms)
	return w
}

// keepsSecrets are the manufacturers of tokens that call every key on them sensitive, whatever was asked; session objects
// show nothing of it.
var keepsSecrets = []string{"Mozilla Foundation"}

// key makes a session key for tests, nil where the token makes none.
func (t *tester) key(a psa.Attributes, kind kind) *testKey {
	index := psa.Attributes{Type: a.Type, Bits: a.Bits}
	k, ok := t.keys[index]
	if ok {
		return k
	}
	k = &testKey{}
	t.imports(k, a, kind)
	// An RSA key takes long to make; that the mechanism is listed must do where one could be imported.
	if k.ways.generated = true; !a.Type.IsRSA() || !k.ways.imported {
		k.ways.generated = t.generates(k, a, kind)
	}
	if !k.ways.any() {
		k = nil
	}
	t.keys[index] = k
	return k
}

func (t *tester) making(a psa.Attributes, kind kind, usage psa.Usage) making {
	m := making{a: psa.Attributes{Type: a.Type, Bits: a.Bits, Usage: usage}, kind: kind, id: make([]byte, 16), label: "parsecfs self-test"}
	_, _ = rand.Read(m.id) // never fails
	return m
}

// ask has the token do something that it may not be able to do: nil, then.
func (t *tester) ask(r *request) *response {
	if t.fatal != nil {
		return nil
	}
	a, err := t.p.ask(t.ctx, "self-test", r)
	if err != nil {
		t.note(err)
		return nil
	}
	return a
}

func (t *tester) imports(k *testKey, a psa.Attributes, kind kind) {
	material, known, err := testMaterial(a)
	if err != nil {
		t.fatal = err
		return
	}
	defer material.Wipe()
	for _, usage := range []psa.Usage{usageAll, usageAll &^ psa.UsageExport} {
		r, public, err := t.making(a, kind, usage).creation(material)
		if err != nil {
			t.fatal = err
			return
		}
		if a.Type.IsAsymmetric() {
			r.templates[0] = nil // the private key is what is tried
		}
		made := t.ask(r)
		if made == nil {
			continue
		}
		k.ways.imported, k.object, k.public, k.known = true, object{handle: made.object}, public, known
		if usage&psa.UsageExport != 0 && !slices.Contains(keepsSecrets, t.token.manufacturer) {
			if read := t.ask(&request{method: methodRead, object: k.object, types: privateTypes(a.Type)}); read != nil {
				out, err := exported(a, read.objects[0])
				k.ways.exported = err == nil && bytes.Equal(out, material.Data)
				psa.Wipe(out)
				read.wipe()
			}
		}
		return
	}
}

func (t *tester) generates(k *testKey, a psa.Attributes, kind kind) bool {
	if _, ok := t.mechanisms[kind.generate]; !ok {
		return false
	}
	made := t.ask(t.making(a, kind, usageAll&^psa.UsageExport).generation())
	if made == nil {
		return false
	}
	o := object{handle: made.object}
	if k.ways.imported {
		defer t.ask(&request{method: methodForget, object: o})
	}
	if !a.Type.IsAsymmetric() {
		if !k.ways.imported {
			k.object = o
		}
		return true
	}
	public, err := publicOf(a.Type, a.Bits, made.objects[0])
	if err != nil || public == nil {
		return false
	}
	if !k.ways.imported {
		k.object, k.public = o, public
	}
	return fits(a, public) == nil
}

var rsaTestKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, rsaBits[0]) })

// testMaterial makes a key to import, and gives it as the standard library has it: a private key, or a secret's bytes.
func testMaterial(a psa.Attributes) (*psa.Material, any, error) {
	if !a.Type.IsAsymmetric() {
		b := make([]byte, a.Bits/8)
		_, _ = rand.Read(b) // never fails
		return &psa.Material{Format: psa.FormatRaw, Data: b}, bytes.Clone(b), nil
	}
	var private any
	var err error
	switch {
	case a.Type.IsRSA():
		private, err = rsaTestKey()
	case a.Type.Family() == psa.TwistedEdwards:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case a.Type.Family() == psa.Montgomery:
		private, err = ecdh.X25519().GenerateKey(rand.Reader)
	default:
		private, err = ecdsa.GenerateKey(curves[a.Bits], rand.Reader)
	}
	if err != nil {
		return nil, nil, psa.Errorf(psa.StatusGenericError, "no key for the self-test: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, psa.Errorf(psa.StatusGenericError, "no key for the self-test: %w", err)
	}
	return &psa.Material{Format: psa.FormatPKCS8, Data: der}, private, nil
}

// does says whether the token does what the algorithm says, and refuses what it must.
func (t *tester) does(a psa.Attributes, k *testKey) bool {
	if works, tried := t.works[a]; tried {
		return works
	}
	err := t.try(a, k)
	t.note(err)
	t.works[a] = err == nil
	if err != nil && t.fatal == nil {
		t.p.log.Debug("the token lists a mechanism that it does not do, or does wrongly", "type", a.Type.String(), "bits", a.Bits, "algorithm", a.Algorithm.String(), "err", err)
	}
	return err == nil
}

var errOther = errors.New("something else came out than should")

func (t *tester) try(a psa.Attributes, k *testKey) error {
	a.Usage = usageAll
	own := &key{p: t.p, object: k.object, attributes: a, verifier: k.public}
	do := func(op psa.Operation, inputs map[string][]byte, in []byte) (map[string][]byte, error) {
		run, err := own.begin(psa.Op{Operation: op, Algorithm: a.Algorithm, Inputs: inputs})
		if err != nil {
			return nil, err
		}
		if _, err := run.Write(in); err != nil {
			run.Abort()
			return nil, err
		}
		out, err := run.Finish(t.ctx)
		return out.Outputs, err
	}
	message := bytes.Repeat([]byte("a message."), 31) // no multiple of a block, nor of a hash
	switch alg := a.Algorithm; {
	case alg.IsSign():
		out, err := do(psa.Sign, nil, message)
		if err == nil {
			_, err = do(psa.Verify, out, message) // the answer's name is the input's
		}
		return err
	case alg.IsAsymmetricEncryption():
		labels := []map[string][]byte{nil}
		if alg.IsRSAOAEP() {
			labels = append(labels, map[string][]byte{"additional_data": []byte("a label")})
		}
		for _, label := range labels {
			out, err := do(psa.Encrypt, label, message[:32])
			if err != nil {
				return err
			}
			back, err := do(psa.Decrypt, label, out["ciphertext"])
			if err != nil || !bytes.Equal(back["plaintext"], message[:32]) {
				return errors.Join(errOther, err)
			}
			if label != nil { // one that ignores the label decrypts with none, too
				if _, err := do(psa.Decrypt, nil, out["ciphertext"]); psa.StatusOf(err) != psa.StatusInvalidPadding {
					return errors.Join(errOther, err)
				}
			}
		}
		return nil
	case alg.IsKeyAgreement():
		curve, err := curveOf(k.public)
		if err != nil {
			return err
		}
		peer, err := curve.GenerateKey(rand.Reader)
		if err != nil {
			return err
		}
		var public *ecdh.PublicKey
		switch p := k.public.(type) {
		case *ecdh.PublicKey:
			public = p
		case *ecdsa.PublicKey:
			if public, err = p.ECDH(); err != nil {
				return err
			}
		}
		want, err := peer.ECDH(public)
		if err != nil {
			return err
		}
		out, err := do(psa.Agree, nil, peer.PublicKey().Bytes())
		if err == nil && !bytes.Equal(out["secret"], want) {
			err = errOther
		}
		return err
	case alg.IsMAC():
		out, err := do(psa.Mac, nil, message)
		if secret, known := k.known.([]byte); known && err == nil {
			h, e := cmac.New(secret)
			if alg.IsHMAC() {
				hash, _ := alg.CryptoHash()
				h, e = hmac.New(hash.New, secret), nil
			}
			if e != nil {
				return e
			}
			h.Write(message)
			if !bytes.Equal(h.Sum(nil), out["mac"]) {
				err = errOther
			}
		}
		return err
	}
	return t.tryCipher(a, k, message, do)
}

func (t *tester) tryCipher(a psa.Attributes, k *testKey, message []byte, do func(psa.Operation, map[string][]byte, []byte) (map[string][]byte, error)) error {
	alg := a.Algorithm
	if alg == psa.CBCNoPadding || alg == psa.ECBNoPadding {
		message = message[:len(message)/16*16]
	}
	inputs := map[string][]byte{}
	if alg.IsAEAD() {
		inputs["additional_data"] = []byte("additional data")
	}
	out, err := do(psa.Encrypt, inputs, message)
	if err != nil {
		return err
	}
	if secret, known := k.known.([]byte); known {
		want, err := reference(alg, secret, out["nonce"], inputs["additional_data"], message)
		if err != nil {
			return err
		}
		if !bytes.Equal(want, out["ciphertext"]) {
			return errOther
		}
	}
	if nonce := out["nonce"]; len(nonce) > 0 {
		inputs["nonce"] = nonce
	}
	back, err := do(psa.Decrypt, inputs, out["ciphertext"])
	if err != nil || !bytes.Equal(back["plaintext"], message) {
		return errors.Join(errOther, err)
	}
	if alg.IsAEAD() {
		out["ciphertext"][0] ^= 1
		if _, err := do(psa.Decrypt, inputs, out["ciphertext"]); psa.StatusOf(err) != psa.StatusInvalidSignature {
			return errors.Join(errOther, err)
		}
	}
	return nil
}

// reference is what the standard library makes of it; ECB block by block.
func reference(alg psa.Algorithm, secret, nonce, data, message []byte) ([]byte, error) {
	block, err := aes.NewCipher(secret)
	if err != nil {
		return nil, err
	}
	if alg == psa.GCM {
		gcm, err := cipher.NewGCM(block)
		if err != nil {
			return nil, err
		}
		return gcm.Seal(nil, nonce, message, data), nil
	}
	run, err := psa.CipherRun(psa.Op{Operation: psa.Encrypt, Algorithm: alg, Inputs: map[string][]byte{"nonce": nonce}}, block)
	if err != nil {
		return nil, err
	}
	if _, err := run.Write(message); err != nil {
		return nil, err
	}
	out, err := run.Finish(context.Background())
	return out.Outputs["ciphertext"], err
}
