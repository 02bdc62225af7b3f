package psa

import (
	"slices"
	"strings"
	"testing"
)

// everyKeyType is each key type that has a name.
func everyKeyType() []KeyType {
	var all []KeyType
	for _, n := range keyTypeNames {
		all = append(all, n.t)
	}
	for _, ft := range familyTypes {
		for _, f := range families {
			if f.of == ft.base.PublicKey() {
				all = append(all, ft.base|f.family)
			}
		}
	}
	return all
}

// everyAlgorithm is each algorithm that has a name, the ones with a length by their extremes.
func everyAlgorithm() []Algorithm {
	var all []Algorithm
	for _, n := range algorithmNames {
		all = append(all, n.alg)
	}
	for _, h := range hashes {
		all = append(all, h.alg)
	}
	for _, f := range hashed {
		for _, h := range hashes {
			all = append(all, f.base|h.alg&hashBits)
		}
		if f.anyHash {
			all = append(all, f.base|AnyHash&hashBits)
		}
	}
	for _, a := range slices.Clone(all) {
		switch {
		case a.IsKeyDerivation() && a&0x00ff0000 == 0:
			all = append(all, KeyAgreement(ECDH, a), KeyAgreement(FFDH, a))
		case a.IsMAC(), a.IsAEAD():
			for _, n := range []int{1, 4, a.mostLength()} {
				all = append(all, TruncatedMAC(a, n), TruncatedMAC(a, n)|atLeastThisLength)
			}
		}
	}
	return all
}

func TestNotationRoundTrip(t *testing.T) {
	for _, want := range everyKeyType() {
		got, err := ParseKeyType(want.String())
		if err != nil || got != want {
			t.Errorf("%s (%#x) came back as %s, %v", want, uint16(want), got, err)
		}
	}
	for _, want := range everyAlgorithm() {
		got, err := ParseAlgorithm(want.String())
		if err != nil || got != want {
			t.Errorf("%s (%#x) came back as %s, %v", want, uint32(want), got, err)
		}
	}
	for u := range Usage(1 << 16) {
		if u&^allUsage() != 0 {
			continue
		}
		got, err := ParseUsage(u.String())
		if err != nil || got != u {
			t.Errorf("%s came back as %s, %v", u, got, err)
		}
		var each Usage
		for _, name := range u.Names() {
			one, err := ParseUsage(name)
			if err != nil {
				t.Error(err)
			}
			each |= one
		}
		if each != u {
			t.Errorf("the names of %s mean %s", u, each)
		}
	}
}

func allUsage() Usage {
	var u Usage
	for _, n := range usageNames {
		u |= n.flag
	}
	return u
}

// Every number has one meaning: whatever text it gives reads as that number again, or as nothing.
func TestNumbersRoundTrip(t *testing.T) {
	for v := range 1 << 16 {
		want := KeyType(v)
		if got, err := ParseKeyType(want.String()); err == nil && got != want {
			t.Errorf("%#x came back as %#x", uint16(want), uint16(got))
		}
	}
	for _, base := range everyAlgorithm() {
		for bit := range 32 {
			want := base ^ 1<<bit
			if got, err := ParseAlgorithm(want.String()); err == nil && got != want {
				t.Errorf("%#x came back as %#x", uint32(want), uint32(got))
			}
		}
	}
}

// The numbers are the specification's (PSA Crypto API 1.2, appendix B; PQC extension).
func TestSpecificationValues(t *testing.T) {
	for text, want := range map[string]Algorithm{
		"PSA_ALG_NONE":                                             0,
		"PSA_ALG_ECDSA(PSA_ALG_SHA_256)":                           0x06000609,
		"PSA_ALG_ECDSA(PSA_ALG_ANY_HASH)":                          0x060006ff,
		"PSA_ALG_DETERMINISTIC_ECDSA(PSA_ALG_SHA_512)":             0x0600070b,
		"PSA_ALG_RSA_PKCS1V15_SIGN(PSA_ALG_SHA3_256)":              0x06000211,
		"PSA_ALG_RSA_PSS(PSA_ALG_SHA_384)":                         0x0600030a,
		"PSA_ALG_RSA_PSS_ANY_SALT(PSA_ALG_SHA_384)":                0x0600130a,
		"PSA_ALG_RSA_OAEP(PSA_ALG_SHA_1)":                          0x07000305,
		"PSA_ALG_HMAC(PSA_ALG_SHA_256)":                            0x03800009,
		"PSA_ALG_TRUNCATED_MAC(PSA_ALG_HMAC(PSA_ALG_SHA_256), 12)": 0x038c0009,
		"PSA_ALG_AT_LEAST_THIS_LENGTH_MAC(PSA_ALG_CMAC, 8)":        0x03c88200,
		"PSA_ALG_GCM": 0x05500200,
		"PSA_ALG_AEAD_WITH_SHORTENED_TAG(PSA_ALG_CCM, 8)":                    0x05480100,
		"PSA_ALG_AEAD_WITH_AT_LEAST_THIS_LENGTH_TAG(PSA_ALG_GCM, 16)":        0x05508200,
		"PSA_ALG_CHACHA20_POLY1305":                                          0x05100500,
		"PSA_ALG_ECDH":                                                       0x09020000,
		"PSA_ALG_KEY_AGREEMENT(PSA_ALG_ECDH, PSA_ALG_HKDF(PSA_ALG_SHA_256))": 0x09020109,
		"PSA_ALG_PURE_EDDSA":                                                 0x06000800,
		"PSA_ALG_ED25519PH":                                                  0x0600090b,
		"PSA_ALG_ML_DSA":                                                     0x06004400,
		"PSA_ALG_SLH_DSA":                                                    0x06004000,
		"PSA_ALG_ML_KEM":                                                     0x0c000200,
		"PSA_ALG_XTS":                                                        0x0440ff00,
		"PSA_ALG_CBC_NO_PADDING":                                             0x04404000,
	} {
		got, err := ParseAlgorithm(text)
		if err != nil || got != want {
			t.Errorf("%s is %#x, %v; the specification says %#x", text, uint32(got), err, uint32(want))
		}
		if got.String() != text {
			t.Errorf("%#x is written %s, want %s", uint32(want), got, text)
		}
	}
	for text, want := range map[string]KeyType{
		"PSA_KEY_TYPE_NONE":                                           0,
		"PSA_KEY_TYPE_AES":                                            0x2400,
		"PSA_KEY_TYPE_HMAC":                                           0x1100,
		"PSA_KEY_TYPE_RSA_KEY_PAIR":                                   0x7001,
		"PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1)":           0x7112,
		"PSA_KEY_TYPE_ECC_PUBLIC_KEY(PSA_ECC_FAMILY_TWISTED_EDWARDS)": 0x4142,
		"PSA_KEY_TYPE_DH_KEY_PAIR(PSA_DH_FAMILY_RFC7919)":             0x7203,
		"PSA_KEY_TYPE_ML_DSA_KEY_PAIR":                                0x7002,
		"PSA_KEY_TYPE_SLH_DSA_PUBLIC_KEY(PSA_SLH_DSA_FAMILY_SHAKE_F)": 0x418d,
	} {
		got, err := ParseKeyType(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("%s is %#x, %v, written %s; the specification says %#x", text, uint16(got), err, got, uint16(want))
		}
	}
	if got := (UsageSignMessage | UsageVerifyMessage).String(); got != "PSA_KEY_USAGE_SIGN_MESSAGE|PSA_KEY_USAGE_VERIFY_MESSAGE" {
		t.Errorf("usage is written %s", got)
	}
}

func TestNotationErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "is missing",
		"PSA_ALG_FOO":                     "unknown algorithm \"PSA_ALG_FOO\"; allowed: PSA_ALG_AEAD_WITH",
		"PSA_ALG_ECDSA":                   "needs one of PSA_ALG_MD2",
		"PSA_ALG_ECDSA()":                 "is missing",
		"PSA_ALG_ECDSA(PSA_ALG_GCM)":      "needs one of",
		"PSA_ALG_ECDSA(PSA_ALG_SHA_256":   "closing parenthesis of PSA_ALG_ECDSA is missing",
		"PSA_ALG_ECDSA(PSA_ALG_SHA_256))": "after its end",
		"PSA_ALG_ECDSA(PSA_ALG_SHA_256, PSA_ALG_GCM)":              "needs one of",
		"PSA_ALG_HMAC(PSA_ALG_ANY_HASH)":                           "needs one of",
		"PSA_ALG_GCM()":                                            "is missing",
		"PSA_ALG_AEAD_WITH_SHORTENED_TAG(PSA_ALG_GCM, 17)":         "from 1 to 16",
		"PSA_ALG_AEAD_WITH_SHORTENED_TAG(PSA_ALG_GCM, 08)":         "from 1 to 16",
		"PSA_ALG_AEAD_WITH_SHORTENED_TAG(PSA_ALG_CMAC, 8)":         "does not take PSA_ALG_CMAC",
		"PSA_ALG_TRUNCATED_MAC(PSA_ALG_HMAC(PSA_ALG_SHA_224), 29)": "from 1 to 28",
		"PSA_ALG_KEY_AGREEMENT(PSA_ALG_ECDH, PSA_ALG_GCM)":         "key derivation",
		strings.Repeat("PSA_ALG_ECDSA(", 1000):                     "longer than 256 bytes",
	} {
		_, err := ParseAlgorithm(text)
		checkError(t, err, StatusInvalidArgument, want)
	}
	for text, want := range map[string]string{
		"PSA_KEY_TYPE_ECC_KEY_PAIR":                        "needs one of PSA_ECC_FAMILY_SECP_R1",
		"PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_DH_FAMILY_RFC7919)": "needs one of PSA_ECC_FAMILY_SECP_R1",
		"aes":                                "unknown key type \"aes\"; allowed: PSA_KEY_TYPE_AES",
		"PSA_KEY_TYPE_AES(PSA_KEY_TYPE_AES)": "unknown key type",
	} {
		_, err := ParseKeyType(text)
		checkError(t, err, StatusInvalidArgument, want)
	}
	for _, text := range []string{"", "|", "PSA_KEY_USAGE_SIGN", "PSA_KEY_USAGE_EXPORT|", "0x1", "0|PSA_KEY_USAGE_EXPORT"} {
		_, err := ParseUsage(text)
		checkError(t, err, StatusInvalidArgument, "allowed: PSA_KEY_USAGE_EXPORT, ")
	}
}

func checkError(t *testing.T, err error, want Status, text string) {
	t.Helper()
	if StatusOf(err) != want || err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("got %v; want %s with %q", err, want, text)
		return
	}
	if strings.Count(err.Error(), want.String()) != 1 {
		t.Errorf("the status does not stand once in %q", err)
	}
}

func FuzzParseAlgorithm(f *testing.F) {
	for _, a := range everyAlgorithm() {
		f.Add(a.String())
	}
	f.Add(" PSA_ALG_KEY_AGREEMENT( PSA_ALG_ECDH ,PSA_ALG_HKDF(PSA_ALG_SHA_256))\t")
	f.Add("PSA_ALG_ECDSA((")
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAlgorithm(s)
		if err != nil {
			if a != AlgNone || StatusOf(err) != StatusInvalidArgument {
				t.Fatalf("%v beside %s", err, a)
			}
			return
		}
		text := a.String()
		again, err := ParseAlgorithm(text)
		if err != nil || again != a || again.String() != text {
			t.Fatalf("%q is %s, which reads as %s, %v", s, text, again, err)
		}
	})
}

func FuzzParseKeyType(f *testing.F) {
	for _, k := range everyKeyType() {
		f.Add(k.String())
	}
	f.Fuzz(func(t *testing.T, s string) {
		k, err := ParseKeyType(s)
		if err != nil {
			if k != KeyTypeNone || StatusOf(err) != StatusInvalidArgument {
				t.Fatalf("%v beside %s", err, k)
			}
			return
		}
		text := k.String()
		again, err := ParseKeyType(text)
		if err != nil || again != k || again.String() != text {
			t.Fatalf("%q is %s, which reads as %s, %v", s, text, again, err)
		}
	})
}

func FuzzParseUsage(f *testing.F) {
	f.Add("0")
	f.Add("PSA_KEY_USAGE_EXPORT | PSA_KEY_USAGE_DERIVE")
	f.Add(allUsage().String())
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseUsage(s)
		if err != nil {
			return
		}
		if again, err := ParseUsage(u.String()); err != nil || again != u {
			t.Fatalf("%q is %s, which reads as %s, %v", s, u, again, err)
		}
	})
}
