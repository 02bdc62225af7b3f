package psa

import (
	"strings"
	"testing"
)

func TestTemplates(t *testing.T) {
	const signing = UsageSignMessage | UsageVerifyMessage | UsageSignHash | UsageVerifyHash
	for s, want := range map[string]Attributes{
		"ecdsa-p256-sha256":                       {ECCKeyPair(SECPR1), 256, ECDSA(SHA256), signing, 0},
		"ecdsa-p521-any":                          {ECCKeyPair(SECPR1), 521, ECDSA(AnyHash), signing, 0},
		"ecdsa-secp256k1-sha3-256":                {ECCKeyPair(SECPK1), 256, ECDSA(SHA3_256), signing, 0},
		"ecdsa-secp224k1-sha512-224":              {ECCKeyPair(SECPK1), 225, ECDSA(SHA512_224), signing, 0},
		"deterministic-ecdsa-p384-sha384":         {ECCKeyPair(SECPR1), 384, DeterministicECDSA(SHA384), signing, 0},
		"deterministic-ecdsa-brainpoolp256r1-any": {ECCKeyPair(BrainpoolPR1), 256, DeterministicECDSA(AnyHash), signing, 0},
		"rsa-2048-pkcs1v15-sha256":                {KeyTypeRSAKeyPair, 2048, RSAPKCS1v15Sign(SHA256), signing, 0},
		"rsa-3072-pss-any":                        {KeyTypeRSAKeyPair, 3072, RSAPSS(AnyHash), signing, 0},
		"rsa-4096-pkcs1v15-crypt":                 {KeyTypeRSAKeyPair, 4096, RSAPKCS1v15Crypt, UsageEncrypt | UsageDecrypt, 0},
		"rsa-8192-oaep-sha512":                    {KeyTypeRSAKeyPair, 8192, RSAOAEP(SHA512), UsageEncrypt | UsageDecrypt, 0},
		"ed25519":                                 {ECCKeyPair(TwistedEdwards), 255, PureEdDSA, UsageSignMessage | UsageVerifyMessage, 0},
		"ed448":                                   {ECCKeyPair(TwistedEdwards), 448, PureEdDSA, UsageSignMessage | UsageVerifyMessage, 0},
		"ecdh-p256":                               {ECCKeyPair(SECPR1), 256, ECDH, UsageDerive, 0},
		"x25519":                                  {ECCKeyPair(Montgomery), 255, ECDH, UsageDerive, 0},
		"x448":                                    {ECCKeyPair(Montgomery), 448, ECDH, UsageDerive, 0},
		"aes-256-gcm":                             {KeyTypeAES, 256, GCM, UsageEncrypt | UsageDecrypt, 0},
		"aes-128-ccm":                             {KeyTypeAES, 128, CCM, UsageEncrypt | UsageDecrypt, 0},
		"aes-192-ctr":                             {KeyTypeAES, 192, CTR, UsageEncrypt | UsageDecrypt, 0},
		"aes-256-cbc":                             {KeyTypeAES, 256, CBCNoPadding, UsageEncrypt | UsageDecrypt, 0},
		"aes-256-cbc-pkcs7":                       {KeyTypeAES, 256, CBCPKCS7, UsageEncrypt | UsageDecrypt, 0},
		"aes-256-cfb":                             {KeyTypeAES, 256, CFB, UsageEncrypt | UsageDecrypt, 0},
		"aes-256-ofb":                             {KeyTypeAES, 256, OFB, UsageEncrypt | UsageDecrypt, 0},
		"aes-256-ecb":                             {KeyTypeAES, 256, ECBNoPadding, UsageEncrypt | UsageDecrypt, 0},
		"aes-256-xts":                             {KeyTypeAES, 512, XTS, UsageEncrypt | UsageDecrypt, 0},
		"aes-128-xts":                             {KeyTypeAES, 256, XTS, UsageEncrypt | UsageDecrypt, 0},
		"aes-256-cmac":                            {KeyTypeAES, 256, CMAC, UsageSignMessage | UsageVerifyMessage, 0},
		"chacha20-poly1305":                       {KeyTypeChaCha20, 256, ChaCha20Poly1305, UsageEncrypt | UsageDecrypt, 0},
		"hmac-sha256":                             {KeyTypeHMAC, 256, HMAC(SHA256), UsageSignMessage | UsageVerifyMessage, 0},
		"ml-dsa-44":                               {KeyTypeMLDSAKeyPair, 128, MLDSA, UsageSignMessage | UsageVerifyMessage, 0},
		"ml-dsa-87":                               {KeyTypeMLDSAKeyPair, 256, MLDSA, UsageSignMessage | UsageVerifyMessage, 0},
		"ml-kem-768":                              {KeyTypeMLKEMKeyPair, 768, MLKEM, UsageEncrypt | UsageDecrypt, 0},
		"slh-dsa-shake-192f":                      {SLHDSAKeyPair(SLHDSASHAKEF), 192, SLHDSA, UsageSignMessage | UsageVerifyMessage, 0},
	} {
		got, err := ParseTemplate(s)
		if err != nil || got != want {
			t.Errorf("%s is %+v, %v; want %+v", s, got, err, want)
		}
		if got.Template() != s {
			t.Errorf("%s came back as %q", s, got.Template())
		}
	}
}

// Every template that the grammar has comes back, for the pair and for its public key, and gives no EXPORT.
func TestEveryTemplate(t *testing.T) {
	for _, s := range everyTemplate() {
		a, err := ParseTemplate(s)
		if err != nil {
			t.Errorf("%s: %v", s, err)
			continue
		}
		if a.Usage == 0 || a.Usage&(UsageExport|UsageCopy|UsageCache) != 0 {
			t.Errorf("%s has usage %s", s, a.Usage)
		}
		public := a
		public.Type, public.Usage = a.Type.PublicKey(), a.Usage&usagePublic
		if a.Template() != s || public.Template() != s {
			t.Errorf("%s came back as %q, public %q", s, a.Template(), public.Template())
		}
		if err := public.Validate(); err != nil {
			t.Errorf("%s, public: %v", s, err)
		}
		if a.Algorithm.IsSign() && a.SignatureLength() == 0 {
			t.Errorf("%s signs with no length", s)
		}
	}
}

func everyTemplate() []string {
	var all, ofHash []string
	for _, h := range hashes {
		if h.short != "" {
			ofHash = append(ofHash, h.short)
			all = append(all, "hmac-"+h.short, "rsa-2048-oaep-"+h.short)
		}
	}
	for _, h := range append(ofHash, "any") {
		all = append(all, "rsa-3072-pkcs1v15-"+h, "rsa-4096-pss-"+h)
		for _, c := range curves {
			if c.family.weierstrass() {
				all = append(all, "ecdsa-"+c.name+"-"+h, "deterministic-ecdsa-"+c.name+"-"+h)
			}
		}
	}
	for _, c := range curves {
		if c.family.weierstrass() {
			all = append(all, "ecdh-"+c.name)
		}
	}
	for _, m := range aesModes {
		all = append(all, "aes-128-"+m.name, "aes-192-"+m.name, "aes-256-"+m.name)
	}
	for _, p := range plainTemplates {
		all = append(all, p.name)
	}
	return append(all, "rsa-2048-pkcs1v15-crypt")
}

func TestTemplateErrors(t *testing.T) {
	for s, want := range map[string]struct {
		status Status
		text   string
	}{
		"":                         {StatusInvalidArgument, "no template begins like this; allowed: rsa-BITS-pkcs1v15-HASH"},
		"dsa-1024":                 {StatusInvalidArgument, "no template begins like this"},
		"rsa":                      {StatusInvalidArgument, `the size "" is not a number of bits; allowed: 2048`},
		"rsa-02048-pss-sha256":     {StatusInvalidArgument, `the size "02048"`},
		"rsa-+2048-pss-sha256":     {StatusInvalidArgument, `the size "+2048"`},
		"rsa-768-pkcs1v15-sha256":  {StatusNotSupported, "an RSA key of 768 bits; allowed: multiples of 8 from 1024 to 8192"},
		"rsa-2049-pkcs1v15-sha256": {StatusNotSupported, "an RSA key of 2049 bits"},
		"rsa-8200-pkcs1v15-sha256": {StatusNotSupported, "an RSA key of 8200 bits"},
		"rsa-2048":                 {StatusInvalidArgument, `unknown scheme ""; allowed: pkcs1v15-HASH`},
		"rsa-2048-pkcs1v15":        {StatusInvalidArgument, `unknown hash ""; allowed: sha224, sha256`},
		"rsa-2048-pkcs1v15-md5":    {StatusInvalidArgument, `unknown hash "md5"`},
		"rsa-2048-oaep-any":        {StatusInvalidArgument, `unknown hash "any"`},
		"hmac-any":                 {StatusInvalidArgument, `unknown hash "any"`},
		"ecdsa-p257-sha256":        {StatusInvalidArgument, `unknown curve "p257"; allowed: p192, p224, p256`},
		"ecdsa-x25519-sha256":      {StatusInvalidArgument, `unknown curve "x25519"`},
		"ecdsa-p256":               {StatusInvalidArgument, `unknown hash ""`},
		"ecdsa-p256-sha256-":       {StatusInvalidArgument, `unknown hash "sha256-"`},
		"ECDSA-P256-SHA256":        {StatusInvalidArgument, "no template begins like this"},
		"deterministic-rsa-2048":   {StatusInvalidArgument, "no template begins like this"},
		"aes-512-xts":              {StatusInvalidArgument, `no AES key has "512" bits; allowed: 128, 192, 256`},
		"aes-256-eax":              {StatusInvalidArgument, `unknown mode "eax"; allowed: gcm, ccm`},
		"ed25519 ":                 {StatusInvalidArgument, "no template begins like this"},
	} {
		a, err := ParseTemplate(s)
		checkError(t, err, want.status, want.text)
		if a != (Attributes{}) {
			t.Errorf("%q gave %+v beside an error", s, a)
		}
	}
	if _, err := ParseTemplate("aes-256-eax"); HintOf(err) == "" {
		t.Error("no hint")
	}
}

func TestDefaultTemplate(t *testing.T) {
	for want, a := range map[string]Attributes{
		"rsa-2048-pkcs1v15-sha256": {Type: KeyTypeRSAKeyPair, Bits: 2048},
		"rsa-4096-pkcs1v15-sha256": {Type: KeyTypeRSAPublicKey, Bits: 4096},
		"ecdsa-p224-sha256":        {Type: ECCKeyPair(SECPR1), Bits: 224},
		"ecdsa-p256-sha256":        {Type: ECCKeyPair(SECPR1), Bits: 256},
		"ecdsa-p384-sha384":        {Type: ECCPublicKey(SECPR1), Bits: 384},
		"ecdsa-p521-sha512":        {Type: ECCKeyPair(SECPR1), Bits: 521},
		"ed25519":                  {Type: ECCKeyPair(TwistedEdwards), Bits: 255},
		"x25519":                   {Type: ECCKeyPair(Montgomery), Bits: 255},
	} {
		got, err := DefaultTemplate(a.Type, a.Bits)
		if err != nil || got.Type != a.Type || got.Template() != want {
			t.Errorf("a bare %s key of %d bits is %q, %v; want %q", a.Type, a.Bits, got.Template(), err, want)
		}
		if a.Type.IsPublicKey() && got.Usage != UsageVerifyMessage|UsageVerifyHash {
			t.Errorf("a bare public key has usage %s", got.Usage)
		}
	}
	_, err := DefaultTemplate(KeyTypeAES, 256)
	checkError(t, err, StatusInvalidArgument, "has no default algorithm")
	_, err = DefaultTemplate(KeyTypeRSAKeyPair, 768)
	checkError(t, err, StatusNotSupported, "768 bits")
}

func FuzzParseTemplate(f *testing.F) {
	for _, s := range everyTemplate() {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseTemplate(s)
		if err != nil {
			if a != (Attributes{}) || !strings.Contains(err.Error(), quote(s)) {
				t.Fatalf("%v beside %+v", err, a)
			}
			return
		}
		if a.Template() != s {
			t.Fatalf("%q came back as %q", s, a.Template())
		}
		if err := a.Validate(); err != nil {
			t.Fatalf("%q: %v", s, err)
		}
	})
}
