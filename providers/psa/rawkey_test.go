package psa

import (
	"bytes"
	"testing"
)

func FuzzParseRawKey(f *testing.F) {
	for _, name := range []string{"secp256k1.pkcs8", "brainpoolp256r1.spki", "brainpoolp320r1.pkcs8", "ed448.pkcs8", "p256.pkcs8", "rsa2048.spki"} {
		f.Add(derOf(f, name))
	}
	for _, k := range rawKinds {
		for _, key := range []RawKey{{Type: k.t, Bits: k.bits, Bytes: make([]byte, k.private)}, {Type: k.t.PublicKey(), Bits: k.bits, Bytes: make([]byte, k.public)}} {
			der, err := key.Marshal()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(der)
		}
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		k, err := ParseRawKey(der)
		if err != nil {
			if s := StatusOf(err); s != StatusInvalidArgument && s != StatusNotSupported {
				t.Errorf("%v", err)
			}
			return
		}
		again, err := k.Marshal()
		if err != nil {
			t.Fatalf("%s of %d bits is read and not written: %v", k.Type, k.Bits, err)
		}
		if back, err := ParseRawKey(again); err != nil || back.Type != k.Type || back.Bits != k.Bits || !bytes.Equal(back.Bytes, k.Bytes) {
			t.Errorf("%+v became %+v, %v", k, back, err)
		}
	})
}
