package providertest

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// blockBytes is the block of the ciphers that the suite knows.
const blockBytes = 16

// cipher tries encrypt and decrypt without authentication.
func (m *made) cipher(t *testing.T) {
	alg := m.attributes.Algorithm
	size := alg.NonceLength()
	call := func(op psa.Operation, iv []byte, input ...[]byte) (map[string][]byte, error) {
		in := map[string][]byte{}
		if iv != nil {
			in["nonce"] = iv
		}
		return do(t.Context(), m.key, psa.Op{Operation: op, Algorithm: alg, Inputs: in}, input...)
	}
	ivs := map[string]bool{}
	for _, n := range []int{0, 1, 15, 16, 17, 64, 80000} {
		plaintext := bytes.Repeat([]byte("0123456789abcde"), n/15+1)[:n]
		what := fmt.Sprintf("%s of %d bytes", alg, n)
		out, err := call(psa.Encrypt, nil, plaintext[:n/3], plaintext[n/3:])
		whole := alg == psa.ECBNoPadding || alg == psa.CBCNoPadding
		if whole && n%blockBytes != 0 || alg == psa.XTS && n < blockBytes {
			wantStatus(t, what, err, psa.StatusInvalidArgument)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		iv, ciphertext := out["nonce"], out["ciphertext"]
		want := n
		if alg == psa.CBCPKCS7 {
			want = n/blockBytes*blockBytes + blockBytes
		}
		if len(iv) != size || len(ciphertext) != want || size > 0 && ivs[string(iv)] {
			t.Errorf("%s: an IV of %d bytes, seen before: %v; a ciphertext of %d", what, len(iv), ivs[string(iv)], len(ciphertext))
		}
		ivs[string(iv)] = true
		if n >= blockBytes && bytes.Contains(ciphertext, plaintext[:blockBytes]) {
			t.Errorf("%s: the plaintext stands in the ciphertext", what)
		}
		if reference := m.ciphered(t, iv, plaintext); reference != nil && !bytes.Equal(reference, ciphertext) {
			t.Errorf("%s: the standard library encrypts otherwise", what)
		}
		again, err := call(psa.Encrypt, iv, plaintext)
		if size > 0 && (err != nil || !bytes.Equal(again["ciphertext"], ciphertext)) {
			t.Errorf("%s: with the same IV: another ciphertext, %v", what, err)
		}
		back, err := call(psa.Decrypt, iv, ciphertext[:len(ciphertext)/3], ciphertext[len(ciphertext)/3:])
		if err != nil || !bytes.Equal(back["plaintext"], plaintext) {
			t.Errorf("%s: decrypt: %d bytes, %v", what, len(back["plaintext"]), err)
		}
	}
	if size == 0 {
		return
	}
	_, err := call(psa.Decrypt, nil, make([]byte, 32))
	wantStatus(t, "decrypt without an IV", err, psa.StatusInsufficientData, psa.StatusInvalidArgument)
	_, err = call(psa.Encrypt, make([]byte, size+1), make([]byte, 32))
	wantStatus(t, "an IV that is too long", err, psa.StatusInvalidArgument)
	if alg == psa.CBCPKCS7 {
		for _, n := range []int{0, 15, 17} {
			_, err = call(psa.Decrypt, make([]byte, size), make([]byte, n))
			wantStatus(t, fmt.Sprintf("a ciphertext of %d bytes", n), err, psa.StatusInvalidArgument)
		}
		out, err := call(psa.Encrypt, make([]byte, size), []byte("0123456789"))
		if err != nil {
			t.Fatal(err)
		}
		changed := make([]byte, size)
		changed[blockBytes-1] = 6 ^ 77 // the padding's last byte becomes 77
		_, err = call(psa.Decrypt, changed, out["ciphertext"])
		wantStatus(t, "a padding that is none", err, psa.StatusInvalidPadding)
	}
}

// ciphered is what the standard library makes of it in CTR and CBC, nil where the key is not known.
func (m *made) ciphered(t *testing.T, iv, plaintext []byte) []byte {
	if m.known == nil || m.attributes.Type != psa.KeyTypeAES {
		return nil
	}
	out := bytes.Clone(plaintext)
	alg := m.attributes.Algorithm
	if alg == psa.XTS {
		return nil
	}
	block, err := aes.NewCipher(m.known.secret)
	if err != nil {
		t.Fatal(err)
	}
	switch alg {
	case psa.CTR:
		cipher.NewCTR(block, iv).XORKeyStream(out, out)
		return out
	case psa.CBCNoPadding:
		cipher.NewCBCEncrypter(block, iv).CryptBlocks(out, out)
		return out
	}
	return nil
}

// mac tries mac and verify_mac.
func (m *made) mac(t *testing.T) {
	alg := m.attributes.Algorithm
	call := func(op psa.Operation, mac []byte, input ...[]byte) (map[string][]byte, error) {
		return do(t.Context(), m.key, psa.Op{Operation: op, Algorithm: alg, Inputs: map[string][]byte{"mac": mac}}, input...)
	}
	for _, message := range [][]byte{{}, []byte("a message"), bytes.Repeat([]byte("0123456789abcde\n"), 5000)} {
		what := fmt.Sprintf("%s of %d bytes", alg, len(message))
		out, err := call(psa.Mac, nil, message[:len(message)/3], message[len(message)/3:])
		if err != nil || len(out["mac"]) != alg.MACLength() {
			t.Errorf("%s: %d bytes, %v", what, len(out["mac"]), err)
			continue
		}
		mac := out["mac"]
		if h, ok := alg.CryptoHash(); ok && m.known != nil && alg.IsHMAC() {
			reference := hmac.New(h.New, m.known.secret)
			reference.Write(message)
			if !bytes.Equal(reference.Sum(nil)[:len(mac)], mac) {
				t.Errorf("%s: the standard library makes another", what)
			}
		}
		if _, err := call(psa.VerifyMac, mac, message); err != nil {
			t.Errorf("%s: verify: %v", what, err)
		}
		changed := bytes.Clone(mac)
		changed[len(mac)-1] ^= 1
		for name, attempt := range map[string][][]byte{
			"another message": {mac, append(bytes.Clone(message), 'x')},
			"a changed MAC":   {changed, message},
			"a short MAC":     {mac[:len(mac)-1], message},
			"a long MAC":      {append(bytes.Clone(mac), 0), message},
		} {
			_, err := call(psa.VerifyMac, attempt[0], attempt[1])
			wantStatus(t, what+", "+name, err, psa.StatusInvalidSignature)
		}
	}
	_, err := call(psa.VerifyMac, nil, []byte("a message"))
	wantStatus(t, "verify_mac without a MAC", err, psa.StatusInsufficientData)
}

// asymmetric tries encrypt, which the standard library decrypts, or decrypt of what it encrypted.
func (m *made) asymmetric(t *testing.T, pub crypto.PublicKey, op psa.Operation) {
	alg := m.attributes.Algorithm
	public, ok := pub.(*rsa.PublicKey)
	if !ok {
		t.Errorf("the suite cannot try %s with a %T", alg, pub)
		return
	}
	h, _ := alg.CryptoHash()
	most := public.Size() - 11
	if alg.IsRSAOAEP() {
		most = public.Size() - 2 - 2*h.Size()
	}
	call := func(op psa.Operation, label, input []byte) ([]byte, error) {
		out, err := do(t.Context(), m.key, psa.Op{Operation: op, Algorithm: alg, Inputs: map[string][]byte{"additional_data": label}}, input)
		return append(out["ciphertext"], out["plaintext"]...), err
	}
	// A TPM takes labels that end with a zero byte alone.
	aLabel, another := []byte("a label"), []byte("another")
	if _, err := call(psa.Encrypt, aLabel, nil); alg.IsRSAOAEP() && psa.StatusOf(err) == psa.StatusNotSupported {
		aLabel, another = []byte("a label\x00"), []byte("another\x00")
	}
	for _, plaintext := range [][]byte{{}, []byte("a message"), bytes.Repeat([]byte("x"), most)} {
		for _, label := range [][]byte{nil, aLabel} {
			what := fmt.Sprintf("%s with %s of %d bytes, label %q", op, alg, len(plaintext), label)
			if label != nil && !alg.IsRSAOAEP() {
				_, err := call(op, label, make([]byte, public.Size()))
				wantStatus(t, what, err, psa.StatusInvalidArgument)
				continue
			}
			if op == psa.Encrypt {
				out, err := call(op, label, plaintext)
				if err == nil {
					err = m.decrypts(t, label, out, plaintext)
				}
				if err != nil {
					t.Errorf("%s: %v", what, err)
				}
				continue
			}
			var ciphertext []byte
			var err error
			if alg.IsRSAOAEP() {
				ciphertext, err = rsa.EncryptOAEP(h.New(), rand.Reader, public, plaintext, label)
			} else {
				ciphertext, err = rsa.EncryptPKCS1v15(rand.Reader, public, plaintext) //lint:ignore SA1019 the line names it
			}
			if err != nil {
				t.Fatal(err)
			}
			if out, err := call(op, label, ciphertext); err != nil || !bytes.Equal(out, plaintext) {
				t.Errorf("%s: %d bytes, %v", what, len(out), err)
			}
			if alg.IsRSAOAEP() {
				_, err = call(op, another, ciphertext)
				wantStatus(t, what+", another label", err, psa.StatusInvalidPadding)
			}
			changed := bytes.Clone(ciphertext)
			changed[len(changed)/2] ^= 1
			if out, err := call(op, label, changed); err == nil && bytes.Equal(out, plaintext) {
				t.Errorf("%s: a changed ciphertext gives the same", what)
			} else if err != nil {
				wantStatus(t, what+", changed", err, psa.StatusInvalidPadding)
			}
			_, err = call(op, label, ciphertext[1:])
			wantStatus(t, what+", cut short", err, psa.StatusInvalidArgument)
		}
	}
	if op == psa.Encrypt {
		_, err := call(op, nil, make([]byte, most+1))
		wantStatus(t, "a plaintext that does not fit", err, psa.StatusInvalidArgument, psa.StatusTooLarge)
	}
}

// decrypts says whether a ciphertext holds plaintext: to the standard library where the key is known, else to the key.
func (m *made) decrypts(t *testing.T, label, ciphertext, plaintext []byte) error {
	alg := m.attributes.Algorithm
	var out []byte
	var err error
	if m.known != nil {
		h, _ := alg.CryptoHash()
		private := m.known.key.(*rsa.PrivateKey)
		if alg.IsRSAOAEP() {
			out, err = rsa.DecryptOAEP(h.New(), nil, private, ciphertext, label)
		} else {
			out, err = rsa.DecryptPKCS1v15(nil, private, ciphertext) //lint:ignore SA1019 the line names it
		}
	} else {
		var o map[string][]byte
		o, err = do(t.Context(), m.key, psa.Op{Operation: psa.Decrypt, Algorithm: alg, Inputs: map[string][]byte{"additional_data": label}}, ciphertext)
		out = o["plaintext"]
	}
	if err == nil && !bytes.Equal(out, plaintext) {
		err = errors.New("another plaintext came back")
	}
	return err
}

// agree tries the agreement with peers of the standard library's.
func (m *made) agree(t *testing.T, pub crypto.PublicKey) {
	var own *ecdh.PublicKey
	var err error
	switch pub := pub.(type) {
	case *ecdh.PublicKey:
		own = pub
	case *ecdsa.PublicKey:
		if own, err = pub.ECDH(); err != nil {
			t.Fatal(err)
		}
	default:
		t.Fatalf("the suite cannot agree with a %T", pub)
	}
	call := func(peer []byte) ([]byte, error) {
		out, err := do(t.Context(), m.key, m.agreement(), peer[:len(peer)/2], peer[len(peer)/2:])
		return out["secret"], err
	}
	peer, err := own.Curve().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	shared, err := peer.ECDH(own)
	if err != nil {
		t.Fatal(err)
	}
	m.derivations(t, peer.PublicKey().Bytes(), shared)
	want := derived(t, m.attributes.Algorithm, shared)
	der, err := x509.MarshalPKIXPublicKey(peer.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	point := peer.PublicKey().Bytes()
	for form, b := range map[string][]byte{"DER": der, "PEM": pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), "PSA's own": point} {
		if got, err := call(b); err != nil || !bytes.Equal(got, want) {
			t.Errorf("agree with a peer in %s: %d bytes, %v", form, len(got), err)
		}
	}
	otherType, otherBits := psa.ECCPublicKey(psa.SECPR1), 256
	if m.attributes.Bits == otherBits {
		otherBits = 384
	}
	off := bytes.Clone(point)
	if m.attributes.Type.Family() == psa.Montgomery {
		off = make([]byte, len(point)) // of small order: the secret would be zero
	} else {
		off[len(off)-1] ^= 1
	}
	for name, b := range map[string][]byte{
		"a bad point":   off,
		"a short point": point[:len(point)-1],
		"another curve": newKnown(t, otherType, otherBits).Data,
		"an RSA key":    newKnown(t, psa.KeyTypeRSAPublicKey, 2048).Data,
		"text":          []byte("a peer"),
	} {
		_, err := call(b)
		wantStatus(t, "agree with "+name, err, psa.StatusInvalidArgument)
	}
	_, err = call(nil)
	wantStatus(t, "agree with nobody", err, psa.StatusInsufficientData)
}

// derivation is what the suite asks of each key derivation.
var derivation = map[string][]byte{"salt": []byte("a seed"), "info": []byte("test label"), "length": []byte("100")}

func (m *made) agreement() psa.Op {
	op := psa.Op{Operation: psa.Agree, Algorithm: m.attributes.Algorithm}
	if op.Algorithm.Derivation() != psa.AlgNone {
		op.Inputs = derivation
	}
	return op
}

// derive tries a key derivation.
func (m *made) derive(t *testing.T) {
	alg := m.attributes.Algorithm
	call := func(salt, info, length string) ([]byte, error) {
		out, err := do(t.Context(), m.key, psa.Op{Operation: psa.Derive, Algorithm: alg,
			Inputs: map[string][]byte{"salt": []byte(salt), "length": []byte(length)}}, []byte(info))
		return out["secret"], err
	}
	got, err := call(string(derivation["salt"]), string(derivation["info"]), "100")
	if err != nil {
		t.Fatal(err)
	}
	if m.known != nil {
		if want := derived(t, psa.KeyAgreement(psa.ECDH, alg), m.known.secret); !bytes.Equal(got, want) {
			t.Errorf("derived %x, want %x", got, want)
		}
	}
	if other, err := call(string(derivation["salt"]), "other", "100"); err != nil || bytes.Equal(got, other) {
		t.Errorf("another info gives the same, or %v", err)
	}
	for _, length := range []string{"0", "-1", "x", "1000000"} {
		_, err := call("salt", "info", length)
		wantStatus(t, "a length of "+length, err, psa.StatusInvalidArgument)
	}
}

// derived brings a secret into the key derivation of alg, by the standard library alone.
func derived(t *testing.T, alg psa.Algorithm, secret []byte) []byte {
	kdf := alg.Derivation()
	if kdf == psa.AlgNone {
		return secret
	}
	h, _ := kdf.CryptoHash()
	if kdf == psa.HKDF(kdf.Hash()) {
		out, err := hkdf.Key(h.New, secret, derivation["salt"], string(derivation["info"]), 100)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	// RFC 5246, 5
	mac := func(parts ...[]byte) []byte {
		x := hmac.New(h.New, secret)
		for _, p := range parts {
			x.Write(p)
		}
		return x.Sum(nil)
	}
	seed := append([]byte("test label"), "a seed"...)
	var out []byte
	for a := mac(seed); len(out) < 100; a = mac(a) {
		out = append(out, mac(a, seed)...)
	}
	return out[:100]
}

// derivations tries what a raw policy permits beside, and what a derivation refuses.
func (m *made) derivations(t *testing.T, peer, shared []byte) {
	op := m.agreement()
	op.Inputs = map[string][]byte{"salt": derivation["salt"], "info": derivation["info"], "length": []byte("0")}
	_, err := do(t.Context(), m.key, op, peer)
	wantStatus(t, "a length of 0, or without a derivation", err, psa.StatusInvalidArgument)
	if kdf := op.Algorithm.Derivation(); kdf == psa.TLS12PRF(kdf.Hash()) {
		op.Inputs = nil
		_, err := do(t.Context(), m.key, op, peer)
		wantStatus(t, "the TLS 1.2 PRF without seed and label", err, psa.StatusInsufficientData)
	}
	if op.Algorithm != psa.ECDH {
		op.Algorithm, op.Inputs = psa.ECDH, nil
		_, err := do(t.Context(), m.key, op, peer)
		wantStatus(t, "a raw agreement against the policy", err, psa.StatusNotSupported)
		return
	}
	op.Algorithm, op.Inputs = psa.KeyAgreement(psa.ECDH, psa.HKDF(psa.SHA256)), derivation
	out, err := do(t.Context(), m.key, op, peer)
	if want := derived(t, op.Algorithm, shared); err != nil || !bytes.Equal(out["secret"], want) {
		t.Errorf("HKDF under a raw policy: %x, %v; want %x", out["secret"], err, want)
	}
}

// hash tries hash without a key.
func (s *suite) hash(t *testing.T, alg psa.Algorithm) {
	h, ok := s.provider(t).(providers.Hasher)
	if !ok {
		t.Error("the line hashes, and the provider is no Hasher")
		return
	}
	for _, message := range [][]byte{{}, []byte("a message"), bytes.Repeat([]byte("0123456789abcde\n"), 5000)} {
		r, err := h.Hash(t.Context(), psa.Op{Operation: psa.Hash, Algorithm: alg})
		if err != nil {
			t.Fatal(err)
		}
		out, err := finish(t.Context(), r, message[:len(message)/3], message[len(message)/3:])
		want, _, e := digestOf(alg, message)
		if err != nil || e != nil || !bytes.Equal(out["hash"], want) {
			t.Errorf("%s of %d bytes: %x, %v, %v", alg, len(message), out["hash"], err, e)
		}
	}
	_, err := h.Hash(t.Context(), psa.Op{Operation: psa.Hash, Algorithm: psa.MD2})
	wantStatus(t, "a hash of no line", err, psa.StatusNotSupported)
}
