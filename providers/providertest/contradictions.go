package providertest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"testing"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// twofold is PKCS #8 with a public key beside the private one (RFC 5958, 2).
type twofold struct {
	Version   int
	Algorithm pkix.AlgorithmIdentifier
	Key       []byte
	Public    asn1.BitString `asn1:"optional,tag:1"`
}

// ecKey is RFC 5915's structure.
type ecKey struct {
	Version int
	Key     []byte
	Curve   asn1.ObjectIdentifier `asn1:"optional,explicit,tag:0"`
	Public  asn1.BitString        `asn1:"optional,explicit,tag:1"`
}

// claim is the file of a private key that says something twice.
type claim struct {
	what string
	ok   bool
	der  []byte
}

// contradictions does what an import does: psa reads the file, the provider takes the key.
func (s *suite) contradictions(t *testing.T) {
	tried := map[psa.Attributes]bool{}
	p := s.provider(t)
	for _, c := range s.lines {
		c = sized(c)
		a := attributesOf(c)
		a.Algorithm, a.Usage = psa.AlgNone, 0
		slow := c.Type.IsRSA() && c.Bits != 2048 // such keys take long to make
		if !c.Has(psa.Import) || !c.Type.IsAsymmetric() || c.Type.IsPublicKey() || tried[a] || slow {
			continue
		}
		tried[a] = true
		t.Run(lineName(c), func(t *testing.T) {
			for _, claim := range claims(t, newKnown(t, c.Type, c.Bits), attributesOf(c)) {
				h := newHandle()
				_, m, found, err := psa.ScanMaterial(claim.der, attributesOf(c))
				if err == nil {
					_, err = p.Create(t.Context(), h, found, m)
				}
				if e := p.Destroy(context.Background(), h); e != nil {
					t.Errorf("Destroy: %v", e)
				}
				if claim.ok && err != nil {
					t.Errorf("%s: %v", claim.what, err)
				}
				if !claim.ok {
					wantStatus(t, claim.what, err, psa.StatusInvalidArgument)
				}
			}
		})
	}
}

// claims are files of one private key, true and false ones.
func claims(t *testing.T, k *known, a psa.Attributes) (list []claim) {
	t.Helper()
	var p twofold
	if _, err := asn1.Unmarshal(k.Data, &p); err != nil {
		t.Fatal(err)
	}
	marshal := func(value any) []byte {
		der, err := asn1.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		return der
	}
	add := func(what string, ok bool, value any) { list = append(list, claim{what, ok, marshal(value)}) }
	bits := func(b []byte) asn1.BitString { return asn1.BitString{Bytes: b, BitLength: 8 * len(b)} }
	public := publicBytes(k)
	p.Version, p.Public = 1, bits(public)
	add("its own public key beside it", true, p)
	p.Public = bits(flipped(public, len(public)/2))
	add("another public key beside it", false, p)
	p.Version, p.Public = 0, asn1.BitString{}

	var ec ecKey
	if _, err := asn1.Unmarshal(p.Key, &ec); err == nil && ec.Version == 1 && a.Type.IsECC() {
		inner := func(what string, ok bool, ec ecKey) {
			p.Key = marshal(ec)
			add(what, ok, p)
		}
		ec.Public = bits(public)
		inner("its own public key in it", true, ec)
		compressed := append([]byte{2 + public[len(public)-1]&1}, public[1:1+len(public)/2]...)
		ec.Public = bits(compressed)
		inner("its own public key in it, compressed", true, ec)
		compressed[0] ^= 1
		inner("the other point with its coordinate", false, ec)
		ec.Public = bits(flipped(public, len(public)-1))
		inner("another public key in it", false, ec)
		ec.Public = bits(public)
		right := ec.Key
		ec.Key = flipped(right, len(right)-1)
		inner("a flipped bit in the scalar", false, ec)
		ec.Key, ec.Curve = right, asn1.ObjectIdentifier{1, 3, 132, 0, 34} // P-384
		if a.Bits == 384 && a.Type.Family() == psa.SECPR1 {
			ec.Curve = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
		}
		inner("another curve in it", false, ec)
	}
	if rsaPrivate, ok := k.key.(*rsa.PrivateKey); ok {
		for _, part := range [][]byte{rsaPrivate.D.Bytes(), rsaPrivate.Primes[0].Bytes(), rsaPrivate.Precomputed.Dp.Bytes(),
			rsaPrivate.Precomputed.Qinv.Bytes()} {
			p.Key = bytes.Replace(x509.MarshalPKCS1PrivateKey(rsaPrivate), part, flipped(part, len(part)/2), 1)
			add("a flipped bit in an RSA key", false, p)
		}
	}
	if !psa.IsRawKey(a.Type, a.Bits) {
		return list
	}
	raw, err := psa.ParseRawKey(k.Data)
	if err != nil {
		t.Fatal(err)
	}
	if expanded := expandedOf(t, raw); expanded != nil {
		raw.Expanded = expanded
		list = append(list, claim{"its own expanded form", true, marshalRaw(t, raw)})
		raw.Expanded = flipped(expanded, len(expanded)/2)
		list = append(list, claim{"another's expanded form", false, marshalRaw(t, raw)})
		raw.Expanded = nil
	}
	if a.Type.IsSLHDSA() { // two seeds, the public seed and the root
		for i := range 4 {
			other := raw
			other.Bytes = flipped(raw.Bytes, i*len(raw.Bytes)/4)
			// the root does not depend on the second seed
			list = append(list, claim{"a flipped bit in the private key", i == 1, marshalRaw(t, other)})
		}
	}
	return list
}

func marshalRaw(t *testing.T, k psa.RawKey) []byte {
	t.Helper()
	der, err := k.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// expandedOf is the form that ML-DSA's and ML-KEM's files may have beside the seed, nil for other keys.
func expandedOf(t *testing.T, k psa.RawKey) (expanded []byte) {
	t.Helper()
	var err error
	switch {
	case k.Type == psa.KeyTypeMLKEMKeyPair:
		_, private := kemScheme(k.Bits).DeriveKeyPair(k.Bytes)
		expanded, err = private.MarshalBinary()
	case k.Type == psa.KeyTypeMLDSAKeyPair:
		_, private := signScheme(k.Type, k.Bits).DeriveKey(k.Bytes)
		expanded, err = private.MarshalBinary()
	}
	if err != nil {
		t.Fatal(err)
	}
	return expanded
}

// publicBytes are those of a known key's public key, as PKCS #8 has them beside the private one.
func publicBytes(k *known) []byte {
	switch key := k.key.(type) {
	case *rsa.PrivateKey:
		return x509.MarshalPKCS1PublicKey(&key.PublicKey)
	case *ecdsa.PrivateKey:
		b, _ := key.PublicKey.Bytes()
		return b
	case ed25519.PrivateKey:
		return key.Public().(ed25519.PublicKey)
	case *ecdh.PrivateKey:
		return key.PublicKey().Bytes()
	}
	return k.rawPublic
}

func flipped(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

// pssKeys: a key whose file is for RSASSA-PSS alone is one for that, with the hash that it names.
func (s *suite) pssKeys(t *testing.T) {
	const bits = 2048
	for _, hash := range []struct {
		alg    psa.Algorithm
		params string // RSASSA-PSS-params
	}{
		{psa.SHA256, "3034a00f300d06096086480165030402010500a11c301a06092a864886f70d010108300d06096086480165030402010500a203020120"},
		{psa.SHA384, "3034a00f300d06096086480165030402020500a11c301a06092a864886f70d010108300d06096086480165030402020500a203020130"},
		{psa.AnyHash, ""},
	} {
		alg := psa.RSAPSS(hash.alg)
		if !s.lists(psa.Import, psa.KeyTypeRSAKeyPair, bits, alg) {
			continue
		}
		t.Run(alg.String(), func(t *testing.T) {
			k := newKnown(t, psa.KeyTypeRSAKeyPair, bits)
			var p twofold
			if _, err := asn1.Unmarshal(k.Data, &p); err != nil {
				t.Fatal(err)
			}
			p.Algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}}
			params, err := hex.DecodeString(hash.params)
			if err != nil {
				t.Fatal(err)
			}
			if len(params) > 0 {
				p.Algorithm.Parameters.FullBytes = params
			}
			der, err := asn1.Marshal(p)
			if err != nil {
				t.Fatal(err)
			}
			_, m, a, err := psa.ScanMaterial(der, psa.Attributes{})
			if err != nil {
				t.Fatal(err)
			}
			if a.Algorithm != alg || !bytes.Equal(m.Data, k.Data) {
				t.Fatalf("the key is for %s, want %s", a.Algorithm, alg)
			}
			made := s.create(t, s.provider(t), a, k)
			with, err := a.Resolve(psa.Sign, 0)
			if err != nil {
				t.Fatal(err)
			}
			message := []byte("a message")
			out, err := do(t.Context(), made.key, psa.Op{Operation: psa.Sign, Algorithm: with}, message)
			if err != nil {
				t.Fatal(err)
			}
			h, _ := with.CryptoHash()
			digest := h.New()
			digest.Write(message)
			public := k.signer.Public().(*rsa.PublicKey)
			if err := rsa.VerifyPSS(public, h, digest.Sum(nil), out["signature"], &rsa.PSSOptions{SaltLength: h.Size()}); err != nil {
				t.Errorf("the signature: %v", err)
			}
			other, err := psa.ParseTemplate("rsa-2048-pkcs1v15-sha256")
			if err != nil {
				t.Fatal(err)
			}
			_, _, _, err = psa.ScanMaterial(der, other)
			wantStatus(t, "for another padding", err, psa.StatusInvalidArgument)
		})
	}
}
