package psa

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/asn1"
	"math/big"
	mathrand "math/rand/v2"
	"slices"
	"testing"
)

type ecdsaSignature struct{ R, S *big.Int }

// strictly is ECDSADERToRaw by encoding/asn1: false where the standard library's own encoding of what it read is another one.
func strictly(der []byte, bits int) ([]byte, bool) {
	var sig ecdsaSignature
	if rest, err := asn1.Unmarshal(der, &sig); err != nil || len(rest) > 0 {
		return nil, false
	}
	again, err := asn1.Marshal(sig)
	if err != nil || !bytes.Equal(again, der) || sig.R.Sign() <= 0 || sig.S.Sign() <= 0 || sig.R.BitLen() > bits || sig.S.BitLen() > bits {
		return nil, false
	}
	n := (bits + 7) / 8
	raw := make([]byte, 2*n)
	sig.R.FillBytes(raw[:n])
	sig.S.FillBytes(raw[n:])
	return raw, true
}

// TestDERAsStandardLibrary: signatures, whole and damaged, are read and written as encoding/asn1 does.
func TestDERAsStandardLibrary(t *testing.T) {
	t.Parallel()
	r := mathrand.New(mathrand.NewPCG(1, 2))
	for i := range 50_000 {
		bits := []int{224, 256, 384, 512, 521, 2048}[i%6]
		n := (bits + 7) / 8
		numbers := make([][]byte, 2)
		for j := range numbers {
			numbers[j] = make([]byte, n)
			for k := r.IntN(n); k < n; k++ { // with zeros in front, and all zero
				numbers[j][k] = byte(r.Uint32())
			}
			numbers[j][0] &= byte(0xff >> (8*n - bits))
		}
		raw := slices.Concat(numbers...)
		made, err := ECDSARawToDER(raw)
		if err != nil || !bytes.Equal(made, der(t, new(big.Int).SetBytes(numbers[0]), new(big.Int).SetBytes(numbers[1]))) {
			t.Fatalf("%x: %x, %v", raw, made, err)
		}
		for range r.IntN(3) {
			switch at := r.IntN(min(len(made), 8)); r.IntN(4) {
			case 0:
				made[at] = byte(r.Uint32())
			case 1:
				made[at] ^= 1 << r.IntN(8)
			case 2:
				made = slices.Insert(made, at, byte(r.Uint32()))
			default:
				made = slices.Delete(made, at, at+1)
			}
		}
		want, ok := strictly(made, bits)
		got, err := ECDSADERToRaw(made, bits)
		if ok != (err == nil) || ok && !bytes.Equal(got, want) {
			t.Fatalf("%x for %d bits: %x, %v; want %x, %v", made, bits, got, err, want, ok)
		}
	}
}

// der is an ECDSA-Sig-Value with these integers.
func der(t testing.TB, r, s *big.Int) []byte {
	t.Helper()
	b, err := asn1.Marshal(ecdsaSignature{r, s})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSignature(t *testing.T) {
	message := []byte("0\x45\x02 a message")
	top := new(big.Int).Lsh(big.NewInt(1), 521)
	top.Sub(top, big.NewInt(1))
	for name, sigs := range map[string][][2]*big.Int{
		"ecdsa-p256-sha256": {{big.NewInt(1), big.NewInt(1)}, {big.NewInt(0x80), new(big.Int).Lsh(big.NewInt(0xff), 248)}},
		"ecdsa-p521-sha512": {{big.NewInt(1), big.NewInt(2)}, {top, top}},
	} {
		a := template(t, name)
		size := a.SignatureLength()
		for _, sig := range sigs {
			want := make([]byte, size)
			sig[0].FillBytes(want[:size/2])
			sig[1].FillBytes(want[size/2:])
			for _, written := range [][]byte{der(t, sig[0], sig[1]), want} {
				for _, m := range [][]byte{nil, message} {
					in := append(bytes.Clone(written), m...)
					for n := range len(written) {
						if _, _, ok, more := splitSignature(in[:n], a); ok || !more {
							t.Fatalf("%s: decided after %d of %d bytes", name, n, len(written))
						}
					}
					n, raw, ok, more := splitSignature(in, a)
					if !ok || more || n != len(written) || !bytes.Equal(raw, want) {
						t.Errorf("%s: %x split at %d, %t, %t, %x", name, in, n, ok, more, raw)
					}
				}
			}
		}
	}
	for name, size := range map[string]int{"rsa-2048-pss-any": 256, "ed25519": 64} {
		a := template(t, name)
		in := append(bytes.Repeat([]byte{0x30}, size), message...)
		n, raw, ok, more := splitSignature(in, a)
		if n != size || !bytes.Equal(raw, in[:size]) || !ok || more {
			t.Errorf("%s split at %d, %t, %t", name, n, ok, more)
		}
		if _, _, ok, more := splitSignature(in[:size-1], a); ok || !more {
			t.Errorf("%s decided too early", name)
		}
	}
	if _, _, ok, more := splitSignature(message, template(t, "aes-256-gcm")); ok || more {
		t.Error("a key that signs nothing splits")
	}
}

// What is nearly DER is taken as r||s.
func TestSplitNearlyDER(t *testing.T) {
	a := template(t, "ecdsa-p256-sha256")
	pad := func(head ...byte) []byte { return append(head, bytes.Repeat([]byte{7}, 80)...) }
	tooLong := new(big.Int).Lsh(big.NewInt(1), 256)
	for name, in := range map[string][]byte{
		"text":                       bytes.Repeat([]byte("0"), 80),
		"not minimal":                pad(0x30, 0x08, 0x02, 0x02, 0x00, 0x01, 0x02, 0x02, 0x00, 0x01),
		"negative":                   pad(0x30, 0x06, 0x02, 0x01, 0xff, 0x02, 0x01, 0x01),
		"zero":                       pad(0x30, 0x06, 0x02, 0x01, 0x00, 0x02, 0x01, 0x01),
		"a third element":            pad(0x30, 0x09, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01),
		"length not minimal":         pad(0x30, 0x81, 0x06, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01),
		"indefinite length":          pad(0x30, 0x80, 0x02, 0x01, 0x01, 0x02, 0x01, 0x01, 0, 0),
		"an integer of the next":     append(der(t, tooLong, big.NewInt(1)), make([]byte, 80)...),
		"r longer than its SEQUENCE": pad(0x30, 0x06, 0x02, 0x20),
		"an OCTET STRING":            pad(0x30, 0x06, 0x04, 0x01, 0x01, 0x02, 0x01, 0x01),
	} {
		n, raw, ok, more := splitSignature(in, a)
		if n != 64 || !ok || more || !bytes.Equal(raw, in[:64]) {
			t.Errorf("%s: split at %d, %t, %t", name, n, ok, more)
		}
	}
}

func TestSignatureEncodings(t *testing.T) {
	for _, c := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		bits := c.Params().BitSize
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			sig, err := ecdsa.SignASN1(rand.Reader, key, []byte("digest"))
			if err != nil {
				t.Fatal(err)
			}
			raw, err := ECDSADERToRaw(sig, bits)
			if err != nil || len(raw) != 2*((bits+7)/8) {
				t.Fatal(len(raw), err)
			}
			back, err := ECDSARawToDER(raw)
			if err != nil || !bytes.Equal(back, sig) {
				t.Errorf("%x came back as %x, %v", sig, back, err)
			}
			if _, err := ECDSADERToRaw(append(sig, 0), bits); StatusOf(err) != StatusInvalidSignature {
				t.Errorf("a trailing byte: %v", err)
			}
		}
	}
	for _, raw := range [][]byte{nil, {1}, {1, 2, 3}} {
		_, err := ECDSARawToDER(raw)
		checkError(t, err, StatusInvalidSignature, "r||s has")
	}
	_, err := ECDSADERToRaw(der(t, big.NewInt(0), big.NewInt(1)), 256)
	checkError(t, err, StatusInvalidSignature, "is too large for a curve of 256 bits")
}

func FuzzSignature(f *testing.F) {
	f.Add(der(f, big.NewInt(1), big.NewInt(0x80)), uint8(0))
	f.Add(append(der(f, big.NewInt(1), big.NewInt(2)), "message"...), uint8(1))
	f.Add(bytes.Repeat([]byte{0x30}, 300), uint8(2))
	f.Add([]byte{0x30, 0x81, 0x80, 0x02, 0x42}, uint8(1))
	var keys []Attributes
	for _, s := range []string{"ecdsa-p256-any", "deterministic-ecdsa-p521-sha512", "rsa-2048-pss-any", "ed25519", "aes-256-gcm"} {
		keys = append(keys, template(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte, which uint8) {
		a := keys[int(which)%len(keys)]
		n, raw, ok, more := splitSignature(b, a)
		if ok && more || !ok && (n != 0 || raw != nil) || more && len(b) > 300 {
			t.Fatalf("split at %d, %t, %t of %d", n, ok, more, len(b))
		}
		if !ok {
			return
		}
		if n < 1 || n > len(b) || len(raw) != a.SignatureLength() {
			t.Fatalf("split at %d of %d, a signature of %d bytes", n, len(b), len(raw))
		}
		// the message behind it plays no part, and less is not enough
		n2, raw2, ok, _ := splitSignature(b[:n], a)
		if !ok || n2 != n || !bytes.Equal(raw, raw2) {
			t.Fatalf("alone it splits at %d, not %d", n2, n)
		}
		if a.Algorithm.IsECDSA() && n != len(raw) {
			back, err := ECDSARawToDER(raw)
			if err != nil || !bytes.Equal(back, b[:n]) {
				t.Fatalf("%x is not the strict DER %x, %v", b[:n], back, err)
			}
		}
	})
}

func FuzzECDSADERToRaw(f *testing.F) {
	f.Add(der(f, big.NewInt(1), big.NewInt(0x80)), uint16(256))
	f.Fuzz(func(t *testing.T, b []byte, bits uint16) {
		raw, err := ECDSADERToRaw(b, int(bits))
		if err != nil {
			return
		}
		back, err := ECDSARawToDER(raw)
		if err != nil || !bytes.Equal(back, b) {
			t.Fatalf("%x came back as %x, %v", b, back, err)
		}
	})
}
