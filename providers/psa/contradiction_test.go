package psa

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// TestContradictions: whichever bit of a key's file is flipped, the key is the same one or none; never another one, where its
// file has the public key too.
func TestContradictions(t *testing.T) {
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	curve, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	montgomery, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	with := func(key any, public []byte) []byte { // RFC 5958's second version
		der, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		var p rawPKCS8
		if _, err := asn1.Unmarshal(der, &p); err != nil {
			t.Fatal(err)
		}
		der, err = asn1.Marshal(rawPKCS8v2{1, p.Algorithm, p.Key, asn1.BitString{Bytes: public, BitLength: 8 * len(public)}})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	sec1, err := x509.MarshalECPrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(curve)
	if err != nil {
		t.Fatal(err)
	}
	openssh := func(key any) []byte {
		block, err := ssh.MarshalPrivateKey(key, "")
		if err != nil {
			t.Fatal(err)
		}
		return block.Bytes
	}
	// The public key is in each of these files, and cannot be left out by one bit, nor the tag of an INTEGER be one of it.
	for name, c := range map[string]struct{ label, der string }{
		"Ed25519":         {"PRIVATE KEY", string(with(edwards, edwards.Public().(ed25519.PublicKey)))},
		"X25519":          {"PRIVATE KEY", string(with(montgomery, montgomery.PublicKey().Bytes()))},
		"P-256":           {"PRIVATE KEY", string(pkcs8)},
		"SEC1":            {"EC PRIVATE KEY", string(sec1)},
		"OpenSSH Ed25519": {sshLabel, string(openssh(edwards))},
		"OpenSSH P-256":   {sshLabel, string(openssh(curve))},
	} {
		scan := func(der []byte) ([]byte, error) {
			_, m, _, err := ScanMaterial(pem.EncodeToMemory(&pem.Block{Type: c.label, Bytes: der}), Attributes{})
			if err != nil {
				return nil, err
			}
			// X25519 ignores some bits: the same public key is the same key
			public, err := x509.MarshalPKIXPublicKey(publicOf(t, m))
			if err != nil {
				t.Fatal(err)
			}
			return public, nil
		}
		right, err := scan([]byte(c.der))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		refused := 0
		for i := range 8 * len(c.der) {
			damaged := []byte(c.der)
			damaged[i/8] ^= 1 << (i % 8)
			got, err := scan(damaged)
			if err != nil {
				refused++
			} else if !bytes.Equal(got, right) {
				t.Errorf("%s with bit %d flipped is another key", name, i)
			}
		}
		if refused < 8*32*2 {
			t.Errorf("%s: %d of %d flipped bits are refused", name, refused, 8*len(c.der))
		}
	}
	other := bytes.Replace(pkcs8, []byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07},
		[]byte{0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x06}, 1)
	if _, _, _, err := ScanMaterial(other, Attributes{}); err == nil {
		t.Error("another curve than the public key's is taken")
	}
	der := with(edwards, make([]byte, 32))
	_, _, _, err = ScanMaterial(der, Attributes{})
	checkError(t, err, StatusInvalidArgument, "contradicts itself")
	if HintOf(err) == "" {
		t.Error("no hint")
	}
}

// TestPSS: a key for RSASSA-PSS alone is one for its own hash, in a draft of that and in no other.
func TestPSS(t *testing.T) {
	key := derOf(t, "rsa2048.pkcs8")
	public := derOf(t, "rsa2048.spki")
	restricted := func(der []byte, params pssParameters, none bool) []byte {
		raw, err := asn1.Marshal(params)
		if err != nil {
			t.Fatal(err)
		}
		// AlgorithmIdentifier of rsaEncryption, with NULL
		old := []byte{0x30, 0x0d, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00}
		id := []byte{0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a}
		if !none {
			id = append(id, raw...)
		}
		inner, err := asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: id})
		if err != nil {
			t.Fatal(err)
		}
		var outer asn1.RawValue
		if _, err := asn1.Unmarshal(der, &outer); err != nil {
			t.Fatal(err)
		}
		der, err = asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: bytes.Replace(outer.Bytes, old, inner, 1)})
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	params := func(hash, mask int, salt int) pssParameters {
		p := pssParameters{Salt: salt, Trailer: 1}
		p.Hash.Algorithm = pssHashes[hash].id
		inner, err := asn1.Marshal(struct{ ID asn1.ObjectIdentifier }{pssHashes[mask].id})
		if err != nil {
			t.Fatal(err)
		}
		p.MGF.Algorithm, p.MGF.Parameters.FullBytes = mgf1ID, inner
		return p
	}
	const sha1, sha256, sha384 = 0, 2, 3
	for i, c := range []struct {
		der      []byte
		template string // "": refused
		draft    string
	}{
		{restricted(key, pssParameters{}, true), "rsa-2048-pss-any", ""},
		{restricted(key, params(sha256, sha256, 32), false), "rsa-2048-pss-sha256", ""},
		{restricted(key, params(sha256, sha256, 20), false), "rsa-2048-pss-sha256", ""},
		{restricted(public, params(sha384, sha384, 48), false), "rsa-2048-pss-sha384", ""},
		{restricted(key, params(sha384, sha384, 48), false), "rsa-2048-pss-sha384", "rsa-2048-pss-sha384"},
		{restricted(key, pssParameters{}, true), "rsa-2048-pss-sha512", "rsa-2048-pss-sha512"},
		{restricted(key, params(sha256, sha1, 32), false), "", ""},
		{restricted(key, params(sha256, sha384, 32), false), "", ""},
		{restricted(key, params(sha256, sha256, 33), false), "", ""},
		{restricted(key, params(sha256, sha256, 1<<30), false), "", ""},
		{restricted(key, params(sha256, sha256, 32), false), "", "rsa-2048-pss-sha384"},
		{restricted(key, params(sha256, sha256, 32), false), "", "rsa-2048-pss-any"},
		{restricted(key, params(sha256, sha256, 32), false), "", "rsa-2048-pkcs1v15-sha256"},
		{restricted(key, pssParameters{}, true), "", "rsa-2048-oaep-sha256"},
	} {
		draft := Attributes{}
		if c.draft != "" {
			draft = template(t, c.draft)
		}
		_, m, a, err := ScanMaterial(c.der, draft)
		if (err == nil) != (c.template != "") || err == nil && a.Template() != c.template {
			t.Errorf("%d: %q, %v; want %q", i, a.Template(), err, c.template)
		}
		if err != nil && (HintOf(err) == "" || !strings.Contains(err.Error(), "PSS")) {
			t.Errorf("%d: %v, hint %q", i, err, HintOf(err))
		}
		if err == nil {
			publicOf(t, m)
		}
	}
}
