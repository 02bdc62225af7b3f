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
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/jacobsa/crypto/cmac"
	p11 "github.com/miekg/pkcs11"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// knowledge is what a token does, by what it lists and what it was seen to do.
type knowledge struct {
	lines      []psa.Capability
	mechanisms map[uint64]mechanismInfo
	zeroLabels bool // OAEP's labels must end with a zero byte
}

// tester tries a token's mechanisms on session objects, which leave nothing behind, where it has any.
type tester struct {
	ctx        context.Context
	p          *provider
	mechanisms map[uint64]mechanismInfo
	token      tokenInfo

	keys  map[psa.Attributes]*testKey // by type and size
	works map[psa.Attributes]bool
	fatal error // the token went away

	zeroLabels bool
}

// testKey is a session object.
type testKey struct {
	ways   ways
	object object
	public crypto.PublicKey
	known  any // the private key, or the secret's bytes, of an imported one
}

// learning is under way.
type learning struct {
	done  chan struct{}
	known *knowledge
	err   error
}

// learnTime is how long a token may take to make keys of all kinds.
const learnTime = 10 * time.Minute

// learn asks the token for its mechanisms, and tries them: once, and on though ctx ends.
func (p *provider) learn(ctx context.Context) (*knowledge, error) {
	t := p.token
	t.mu.Lock()
	if k := t.known.Load(); k != nil {
		t.mu.Unlock()
		return k, nil
	}
	l := t.learning
	if l == nil {
		l = &learning{done: make(chan struct{})}
		t.learning = l
		go func() {
			defer close(l.done)
			long, cancel := context.WithTimeout(context.Background(), learnTime)
			defer cancel()
			l.known, l.err = p.explore(long)
			t.mu.Lock()
			defer t.mu.Unlock()
			if t.learning = nil; l.err == nil {
				t.known.Store(l.known)
			}
		}()
	}
	t.mu.Unlock()
	select {
	case <-l.done:
		return l.known, l.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *provider) explore(ctx context.Context) (*knowledge, error) {
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
	if err := t.clean(); err != nil { // what a test that was cut short left there
		return nil, err
	}
	k.lines = newTable(t.takes)
	t.forget()
	if err := errors.Join(t.fatal, t.clean(), ctx.Err()); err != nil {
		return nil, err
	}
	k.zeroLabels = t.zeroLabels
	return k, nil
}

// forget destroys the session objects.
func (t *tester) forget() {
	for _, k := range t.keys {
		if k != nil && k.object.handle != 0 {
			t.ask(&request{method: methodForget, object: k.object})
		}
	}
}

// journal is where the IDs of test keys stand that lie on a token, because it has no session objects: a line each, in
// hexadecimal, written before the key is made.
func (t *tester) journal() string { return filepath.Join(t.p.dir, "self-test") }

func (t *tester) enter(id []byte) error {
	if err := os.MkdirAll(t.p.dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(t.journal(), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(f, "%x\n", id)
	return errors.Join(err, f.Sync(), f.Close())
}

// clean destroys the test keys in the journal.
func (t *tester) clean() error {
	b, err := os.ReadFile(t.journal())
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return psa.Errorf(psa.StatusGenericError, "cannot keep the self-test's journal: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		id, err := hex.DecodeString(strings.TrimSpace(line))
		if err != nil || len(id) != len(providers.Handle{}) {
			continue // a line that was cut short: its key was not made
		}
		if err := t.p.destroy(t.ctx, object{class: anyClass, id: id}); err != nil {
			return err
		}
	}
	if err := os.Remove(t.journal()); err != nil {
		return psa.Errorf(psa.StatusGenericError, "cannot keep the self-test's journal: %w", err)
	}
	return nil
}

// note looks at an error: where the token does not answer any more, or the module died, it says nothing of a mechanism.
func (t *tester) note(err error) {
	if err == nil || t.fatal != nil {
		return
	}
	if _, away := t.p.ask(t.ctx, "self-test", &request{method: methodIdentify}); away != nil {
		t.fatal = away
		return
	}
	switch psa.StatusOf(err) {
	case psa.StatusProviderAbsent, psa.StatusCommunicationFailure, psa.StatusTimeout:
		t.fatal = err // the session objects went with it
	}
}

// takes says how keys of a can be made. RSA's sizes are alike, and one of them is tried; so are ECDSA's hashes, which
// the token never sees, and what an agreement's secret goes into.
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
		if k := t.key(tried, kind); k != nil && !k.ways.imported {
			tried.Bits = a.Bits // it may make keys of one size, and not of another
		}
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
	if a.Type.IsRSA() && a.Bits != rsaBits[0] {
		return // that was tried with the first size
	}
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
		k.ways.imported, k.object, k.public, k.known = true, object{handle: made.object, of: made.of}, public, known
		if usage&psa.UsageExport != 0 && !quirksOf(t.token).keepsSecrets {
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
	m := t.making(a, kind, usageAll&^psa.UsageExport)
	made := t.ask(m.generation())
	o := object{}
	switch {
	case made != nil:
		o.handle, o.of = made.object, made.of
	case t.fatal != nil || k.ways.imported || !a.Type.IsAsymmetric():
		return false
	default: // a token without session objects
		if err := t.enter(m.id); err != nil {
			t.fatal = psa.Errorf(psa.StatusGenericError, "cannot keep the self-test's journal: %w", err)
			return false
		}
		m.onToken = true
		if made = t.ask(m.generation()); made == nil {
			return false
		}
		o = object{class: p11.CKO_PRIVATE_KEY, id: m.id}
	}
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
	return a.Describes(public) == nil
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
		return nil, nil, psa.Errorf(psa.StatusGenericError, "cannot make a key for the self-test: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return nil, nil, psa.Errorf(psa.StatusGenericError, "cannot make a key for the self-test: %w", err)
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
		t.p.log.Debug("the token lists a mechanism that does not work, or gives wrong results", "type", a.Type.String(), "bits", a.Bits,
			"algorithm", a.Algorithm.String(), "err", err)
	}
	return err == nil
}

var errOther = errors.New("the result is wrong")

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
		if err != nil {
			return err
		}
		_, err = do(psa.Verify, out, message) // the output of Sign has the name of Verify's input
		return err
	case alg.IsAsymmetricEncryption():
		err := t.tryAsymmetric(nil, message, do)
		if err != nil || !alg.IsRSAOAEP() {
			return err
		}
		if err = t.tryAsymmetric([]byte("a label"), message, do); err == nil || t.fatal != nil {
			return err
		}
		if err = t.tryAsymmetric([]byte("a label\x00"), message, do); err == nil {
			t.zeroLabels = true // a TPM's way (TCG TPM 2.0, part 1, B.4)
		}
		return err
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

// trial does an operation with a test key.
type trial func(op psa.Operation, inputs map[string][]byte, in []byte) (map[string][]byte, error)

// tryAsymmetric decrypts what was encrypted under the label, and not without it.
func (t *tester) tryAsymmetric(label, message []byte, do trial) error {
	message = message[:32]
	inputs := map[string][]byte{"additional_data": label}
	out, err := do(psa.Encrypt, inputs, message)
	if err != nil {
		return err
	}
	back, err := do(psa.Decrypt, inputs, out["ciphertext"])
	if err != nil || !bytes.Equal(back["plaintext"], message) {
		return errors.Join(errOther, err)
	}
	if label == nil {
		return nil
	}
	if _, err := do(psa.Decrypt, nil, out["ciphertext"]); psa.StatusOf(err) != psa.StatusInvalidPadding {
		return errors.Join(errOther, err)
	}
	return nil
}

func (t *tester) tryCipher(a psa.Attributes, k *testKey, message []byte, do trial) error {
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
