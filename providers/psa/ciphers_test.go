package psa

import (
	"bytes"
	"context"
	"crypto/aes"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/jacobsa/crypto/cmac"
)

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func finished(t *testing.T, r Run, err error, in []byte) map[string][]byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write(in); err != nil {
		t.Fatal(err)
	}
	out, err := r.Finish(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return out.Outputs
}

// TestPublishedCiphers: the examples of SP 800-38A (F.1.1, F.2.1, F.3.13, F.4.1, F.5.1), of SP 800-38C (C.3 with a
// nonce of 12 bytes has a tag of 8), of IEEE 1619 (vector 2) and of RFC 4493 (4).
func TestPublishedCiphers(t *testing.T) {
	key := unhex(t, "2b7e151628aed2a6abf7158809cf4f3c")
	iv := unhex(t, "000102030405060708090a0b0c0d0e0f")
	plaintext := unhex(t, "6bc1bee22e409f96e93d7e117393172a ae2d8a571e03ac9c9eb76fac45af8e51")
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		alg        Algorithm
		iv         []byte
		ciphertext string
	}{
		{ECBNoPadding, nil, "3ad77bb40d7a3660a89ecaf32466ef97 f5d3d58503b9699de785895a96fdbaaf"},
		{CBCNoPadding, iv, "7649abac8119b246cee98e9b12e9197d 5086cb9b507219ee95db113a917678b2"},
		{CFB, iv, "3b3fd92eb72dad20333449f8e83cfb4a c8a64537a0b3a93fcde3cdad9f1ce58b"},
		{OFB, iv, "3b3fd92eb72dad20333449f8e83cfb4a 7789508d16918f03f53c52dac54ed825"},
		{CTR, unhex(t, "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff"), "874d6191b620e3261bef6864990db6ce 9806f66b7970fdff8617187bb9fffdff"},
	} {
		op := Op{Operation: Encrypt, Algorithm: c.alg, Inputs: map[string][]byte{"nonce": c.iv}}
		r, err := CipherRun(op, block)
		if got := finished(t, r, err, plaintext)["ciphertext"]; !bytes.Equal(got, unhex(t, c.ciphertext)) {
			t.Errorf("%s: %x", c.alg, got)
		}
		op.Operation = Decrypt
		r, err = CipherRun(op, block)
		if got := finished(t, r, err, unhex(t, c.ciphertext))["plaintext"]; !bytes.Equal(got, plaintext) {
			t.Errorf("%s: decrypted to %x", c.alg, got)
		}
	}

	ccmBlock, err := aes.NewCipher(unhex(t, "404142434445464748494a4b4c4d4e4f"))
	if err != nil {
		t.Fatal(err)
	}
	nonce := unhex(t, "101112131415161718191a1b")
	ccm, err := NewCCM(ccmBlock, len(nonce), 8)
	if err != nil {
		t.Fatal(err)
	}
	r, err := AEADRun(Op{Operation: Encrypt, Algorithm: AEADWithShortenedTag(CCM, 8), Inputs: map[string][]byte{
		"nonce": nonce, "additional_data": unhex(t, "000102030405060708090a0b0c0d0e0f10111213")}}, ccm, len(nonce))
	got := finished(t, r, err, unhex(t, "202122232425262728292a2b2c2d2e2f3031323334353637"))["ciphertext"]
	if !bytes.Equal(got, unhex(t, "e3b201a9f5b71a7a9b1ceaeccd97e70b6176aad9a4428aa5 484392fbc1b09951")) {
		t.Errorf("CCM: %x", got)
	}

	xtsKey := unhex(t, strings.Repeat("11", 16)+strings.Repeat("22", 16))
	r, err = XTSRun(Op{Operation: Encrypt, Algorithm: XTS, Inputs: map[string][]byte{"nonce": unhex(t, "33333333330000000000000000000000")}}, aes.NewCipher, xtsKey)
	got = finished(t, r, err, bytes.Repeat([]byte{0x44}, 32))["ciphertext"]
	if !bytes.Equal(got, unhex(t, "c454185e6a16936e39334038acef838b fb186fff7480adc4289382ecd6d394f0")) {
		t.Errorf("XTS: %x", got)
	}
	r, err = XTSRun(Op{Operation: Encrypt, Algorithm: XTS, Inputs: map[string][]byte{"nonce": bytes.Repeat([]byte{1}, 16)}}, aes.NewCipher, xtsKey)
	if err == nil {
		_, _ = r.Write(make([]byte, 32))
		_, err = r.Finish(t.Context())
	}
	if StatusOf(err) != StatusNotSupported {
		t.Errorf("a tweak of more than 64 bits: %v", err)
	}

	for message, want := range map[string]string{
		"":                                 "bb1d6929e95937287fa37d129b756746",
		"6bc1bee22e409f96e93d7e117393172a": "070a16b46b4d4144f79bdd9dd04a287c",
		"6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e5130c81c46a35ce411": "dfa66747de9ae63030ca32611497c827",
	} {
		h, err := cmac.New(key)
		if err != nil {
			t.Fatal(err)
		}
		m := unhex(t, message)
		for split := range len(m) + 1 {
			h.Reset()
			r, err := MACRun(Op{Operation: Mac, Algorithm: CMAC}, h)
			if err == nil {
				_, err = r.Write(m[:split])
			}
			if got := finished(t, r, err, m[split:])["mac"]; !bytes.Equal(got, unhex(t, want)) {
				t.Errorf("CMAC of %s, written in %d bytes and the rest: %x", message, split, got)
			}
		}
	}
}

// TestDeviceCipherRun: a device that does whole blocks alone gives what CipherRun gives, padding included.
func TestDeviceCipherRun(t *testing.T) {
	block, err := aes.NewCipher(unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"))
	if err != nil {
		t.Fatal(err)
	}
	iv := map[string][]byte{"nonce": unhex(t, "000102030405060708090a0b0c0d0e0f")}
	for _, alg := range []Algorithm{ECBNoPadding, CBCNoPadding, CBCPKCS7, CTR} {
		inputs := iv
		if alg == ECBNoPadding {
			inputs = nil
		}
		device := func(op Operation) Run {
			r, err := DeviceCipherRun(Op{Operation: op, Algorithm: alg, Inputs: inputs}, 0, func(ctx context.Context, nonce, in []byte) ([]byte, error) {
				with := alg
				if alg == CBCPKCS7 {
					with = CBCNoPadding
				}
				own, err := CipherRun(Op{Operation: op, Algorithm: with, Inputs: map[string][]byte{"nonce": nonce}}, block)
				return finished(t, own, err, in)[map[Operation]string{Encrypt: "ciphertext", Decrypt: "plaintext"}[op]], nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		for _, n := range []int{0, 16, 48} {
			plaintext := bytes.Repeat([]byte("x"), n)
			reference, err := CipherRun(Op{Operation: Encrypt, Algorithm: alg, Inputs: inputs}, block)
			want := finished(t, reference, err, plaintext)["ciphertext"]
			if got := finished(t, device(Encrypt), nil, plaintext)["ciphertext"]; !bytes.Equal(got, want) {
				t.Errorf("%s of %d bytes: %x; want %x", alg, n, got, want)
			}
			if got := finished(t, device(Decrypt), nil, want)["plaintext"]; !bytes.Equal(got, plaintext) {
				t.Errorf("%s of %d bytes: back comes %x", alg, n, got)
			}
		}
		if alg == CTR {
			continue
		}
		r := device(Decrypt)
		if _, err := r.Write(make([]byte, 17)); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Finish(t.Context()); StatusOf(err) != StatusInvalidArgument {
			t.Errorf("%s of 17 bytes: %v", alg, err)
		}
	}
}
