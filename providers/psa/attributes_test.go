package psa

import "testing"

func template(t testing.TB, s string) Attributes {
	t.Helper()
	a, err := ParseTemplate(s)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestValidate(t *testing.T) {
	const sign = UsageSignMessage
	for _, c := range []struct {
		a      Attributes
		status Status
		text   string
	}{
		{Attributes{}, StatusInvalidArgument, "the key type is missing"},
		{Attributes{Type: 0x7777, Bits: 8}, StatusNotSupported, "unknown key type 0x7777"},
		{Attributes{Type: ECCKeyPair(SECPR1), Bits: 255}, StatusNotSupported, "of 255 bits; allowed: 192, 224, 256, 384, 521"},
		{Attributes{Type: ECCKeyPair(SECPR1)}, StatusInvalidArgument, "of 0 bits; allowed: 192"},
		{Attributes{Type: KeyTypeRSAKeyPair}, StatusInvalidArgument, "of 0 bits; allowed: multiples of 8 from 1024 to 8192"},
		{Attributes{Type: KeyTypeAES, Bits: 512, Algorithm: GCM}, StatusInvalidArgument, "of 512 bits; allowed: 128, 192, 256"},
		{Attributes{Type: KeyTypeAES, Bits: 128, Algorithm: XTS}, StatusInvalidArgument, "of 128 bits; allowed: 256, 384, 512"},
		{Attributes{Type: KeyTypeHMAC, Bits: 12, Algorithm: HMAC(SHA256)}, StatusInvalidArgument, "multiples of 8 from 8"},
		{Attributes{Type: KeyTypeAES, Bits: 256, Algorithm: 0x05ab0def}, StatusNotSupported, "unknown algorithm 0x05ab0def"},
		{Attributes{Type: KeyTypeAES, Bits: 256, Algorithm: ECDSA(SHA256)}, StatusInvalidArgument, "PSA_ALG_ECDSA(PSA_ALG_SHA_256) does not work with a PSA_KEY_TYPE_AES key"},
		{Attributes{Type: ECCKeyPair(SECPR1), Bits: 256, Algorithm: PureEdDSA}, StatusInvalidArgument, "does not work with"},
		{Attributes{Type: ECCKeyPair(TwistedEdwards), Bits: 448, Algorithm: Ed25519ph}, StatusInvalidArgument, "does not work with"},
		{Attributes{KeyTypeAES, 256, GCM, sign, 0}, StatusInvalidArgument,
			"usage PSA_KEY_USAGE_SIGN_MESSAGE has no effect for a PSA_KEY_TYPE_AES key with PSA_ALG_GCM; allowed: "},
		{Attributes{ECCPublicKey(SECPR1), 256, ECDSA(SHA256), sign, 0}, StatusInvalidArgument, "has no effect for a PSA_KEY_TYPE_ECC_PUBLIC_KEY"},
		{Attributes{KeyTypeAES, 256, AlgNone, UsageEncrypt, 0}, StatusInvalidArgument, "has no effect for"},
	} {
		checkError(t, c.a.Validate(), c.status, c.text)
	}
	for _, a := range []Attributes{
		{KeyTypeAES, 256, AlgNone, UsageExport, 0},
		{KeyTypeAES, 256, GCM, UsageExport | UsageEncrypt | UsageCopy | UsageCache, 0},
		{KeyTypeRawData, 8, AlgNone, 0, 0},
		{ECCKeyPair(SECPR1), 256, KeyAgreement(ECDH, HKDF(SHA256)), UsageDerive | UsageVerifyDerivation, 0},
		{ECCKeyPair(TwistedEdwards), 255, Ed25519ph, UsageSignHash, 0},
		{DHKeyPair(RFC7919), 2048, FFDH, UsageDerive, 0},
	} {
		if err := a.Validate(); err != nil {
			t.Errorf("%+v: %v", a, err)
		}
	}
}

func TestPermits(t *testing.T) {
	ec := template(t, "ecdsa-p256-sha256")
	anyHash := template(t, "rsa-2048-pss-any")
	gcm := template(t, "aes-256-gcm")
	hashOnly := ec
	hashOnly.Usage = UsageSignHash | UsageVerifyHash
	messageOnly := ec
	messageOnly.Usage = UsageSignMessage
	public := ec
	public.Type, public.Usage = ECCPublicKey(SECPR1), UsageVerifyMessage|UsageSignMessage
	exporting := gcm
	exporting.Usage |= UsageExport
	for _, c := range []struct {
		a      Attributes
		op     Operation
		alg    Algorithm
		status Status
		text   string
	}{
		{ec, Sign, ECDSA(SHA256), 0, ""},
		{ec, VerifyHash, ECDSA(SHA256), 0, ""},
		{ec, Sign, ECDSA(SHA384), StatusNotPermitted, "sign with PSA_ALG_ECDSA(PSA_ALG_SHA_384) is not permitted: the key's policy permits PSA_ALG_ECDSA(PSA_ALG_SHA_256)"},
		{ec, Sign, DeterministicECDSA(SHA256), StatusNotPermitted, "policy permits"},
		{ec, Encrypt, GCM, StatusNotPermitted, "encrypt needs PSA_KEY_USAGE_ENCRYPT, but the key's policy has PSA_KEY_USAGE_SIGN_MESSAGE|"},
		{ec, Export, AlgNone, StatusNotPermitted, "export needs PSA_KEY_USAGE_EXPORT"},
		{ec, ExportPublic, AlgNone, 0, ""},
		{ec, Generate, ec.Algorithm, StatusInvalidArgument, "generate does not work with"},
		// SIGN_HASH implies SIGN_MESSAGE, and not the other way round
		{hashOnly, Sign, ECDSA(SHA256), 0, ""},
		{hashOnly, Verify, ECDSA(SHA256), 0, ""},
		{messageOnly, SignHash, ECDSA(SHA256), StatusNotPermitted, "needs PSA_KEY_USAGE_SIGN_HASH"},
		{messageOnly, Verify, ECDSA(SHA256), StatusNotPermitted, "needs PSA_KEY_USAGE_VERIFY_MESSAGE"},
		// any hash
		{anyHash, Sign, RSAPSS(SHA512), 0, ""},
		{anyHash, SignHash, RSAPSS(SHA3_256), 0, ""},
		{anyHash, Sign, RSAPSS(SHA1), StatusNotPermitted, "policy permits"},
		{anyHash, Sign, RSAPSSAnySalt(SHA256), StatusNotPermitted, "policy permits"},
		{anyHash, Sign, RSAPKCS1v15Sign(SHA256), StatusNotPermitted, "policy permits"},
		{anyHash, Sign, RSAPSS(AnyHash), StatusInvalidArgument, "stands for several algorithms"},
		// what cannot be
		{template(t, "ed25519"), Sign, PureEdDSA, 0, ""},
		{Attributes{ECCKeyPair(TwistedEdwards), 255, PureEdDSA, UsageSignHash, 0}, SignHash, PureEdDSA, StatusInvalidArgument,
			"is not an algorithm for sign_hash"},
		{Attributes{KeyTypeRSAKeyPair, 2048, RSAPKCS1v15SignRaw, UsageSignHash, 0}, Sign, RSAPKCS1v15SignRaw, StatusInvalidArgument,
			"is not an algorithm for sign"},
		{Attributes{KeyTypeRSAKeyPair, 2048, RSAPKCS1v15SignRaw, UsageSignHash, 0}, SignHash, RSAPKCS1v15SignRaw, 0, ""},
		{Attributes{KeyTypeAES, 256, ECDSA(SHA256), UsageSignMessage, 0}, Sign, ECDSA(SHA256), StatusInvalidArgument, "does not work with a PSA_KEY_TYPE_AES key"},
		{Attributes{KeyTypeAES, 256, 0x05ab0def, UsageEncrypt, 0}, Encrypt, 0x05ab0def, StatusNotSupported, "unknown algorithm"},
		// public keys
		{public, Verify, ECDSA(SHA256), 0, ""},
		{public, Export, AlgNone, 0, ""},
		{public, Sign, ECDSA(SHA256), StatusInvalidArgument, "sign does not work with a PSA_KEY_TYPE_ECC_PUBLIC_KEY"},
		// symmetric keys
		{gcm, Encrypt, GCM, 0, ""},
		{gcm, Decrypt, AEADWithShortenedTag(GCM, 12), StatusNotPermitted, "policy permits PSA_ALG_GCM"},
		{gcm, ExportPublic, AlgNone, StatusInvalidArgument, "export_public does not work with a PSA_KEY_TYPE_AES key"},
		{exporting, Export, AlgNone, 0, ""},
		{Attributes{KeyTypeAES, 256, AEADWithShortenedTag(GCM, 12) | atLeastThisLength, UsageEncrypt, 0}, Encrypt, GCM, 0, ""},
		{Attributes{KeyTypeAES, 256, AEADWithShortenedTag(GCM, 12) | atLeastThisLength, UsageEncrypt, 0}, Encrypt, AEADWithShortenedTag(GCM, 8), StatusNotPermitted, "at_least"},
		{Attributes{KeyTypeAES, 256, AlgNone, UsageEncrypt, 0}, Encrypt, GCM, StatusNotPermitted, "policy permits PSA_ALG_NONE"},
	} {
		err := c.a.Permits(c.op, c.alg)
		if c.status == StatusSuccess {
			if err != nil {
				t.Errorf("%s with %s: %v", c.op, c.alg, err)
			}
			continue
		}
		if c.text == "at_least" {
			c.text = "PSA_ALG_AEAD_WITH_AT_LEAST_THIS_LENGTH_TAG(PSA_ALG_GCM, 12)"
		}
		checkError(t, err, c.status, c.text)
	}
	hmac := Attributes{KeyTypeHMAC, 256, TruncatedMAC(HMAC(SHA256), 16) | atLeastThisLength, UsageSignMessage, 0}
	for alg, want := range map[Algorithm]bool{HMAC(SHA256): true, TruncatedMAC(HMAC(SHA256), 16): true, TruncatedMAC(HMAC(SHA256), 15): false, HMAC(SHA384): false} {
		if hmac.permitsAlgorithm(alg) != want {
			t.Errorf("%s permits %s: %t", hmac.Algorithm, alg, !want)
		}
	}
	agree := Attributes{Algorithm: ECDH}
	if !agree.permitsAlgorithm(KeyAgreement(ECDH, HKDF(SHA256))) || agree.permitsAlgorithm(FFDH) {
		t.Error("a raw agreement permits its own with a derivation, and no other")
	}
}

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		template string
		op       Operation
		length   int
		want     Algorithm
	}{
		{"ecdsa-p256-any", Sign, 1000, ECDSA(SHA256)},
		{"ecdsa-p384-any", Verify, 0, ECDSA(SHA384)},
		{"ecdsa-p521-any", Sign, 0, ECDSA(SHA512)},
		{"deterministic-ecdsa-brainpoolp512r1-any", Sign, 0, DeterministicECDSA(SHA512)},
		{"rsa-4096-pss-any", Sign, 0, RSAPSS(SHA256)},
		{"ecdsa-p256-any", SignHash, 64, ECDSA(SHA512)},
		{"rsa-2048-pkcs1v15-any", VerifyHash, 48, RSAPKCS1v15Sign(SHA384)},
		{"rsa-2048-pkcs1v15-any", SignHash, 28, RSAPKCS1v15Sign(SHA224)},
		{"ecdsa-p256-sha384", Sign, 0, ECDSA(SHA384)},
		{"ecdsa-p256-sha384", SignHash, 32, ECDSA(SHA384)},
		{"aes-256-gcm", Encrypt, 9, GCM},
	} {
		got, err := template(t, c.template).Resolve(c.op, c.length)
		if err != nil || got != c.want {
			t.Errorf("%s, %s of %d bytes: %s, %v; want %s", c.template, c.op, c.length, got, err, c.want)
		}
	}
	_, err := template(t, "ecdsa-p256-any").Resolve(SignHash, 40)
	checkError(t, err, StatusInvalidArgument, "the digest has 40 bytes; allowed: 28, 32, 48 or 64")
	least := Attributes{KeyTypeAES, 256, AEADWithShortenedTag(GCM, 12) | atLeastThisLength, UsageEncrypt, 0}
	if got, err := least.Resolve(Encrypt, 0); err != nil || got != GCM {
		t.Errorf("a least length resolves to %s, %v", got, err)
	}
}

func TestLengths(t *testing.T) {
	for s, want := range map[string]int{
		"rsa-3072-pss-any": 384, "ecdsa-p256-sha512": 64, "ecdsa-p521-any": 132, "ed25519": 64, "ed448": 114,
		"ml-dsa-65": 3309, "slh-dsa-sha2-128s": 7856, "slh-dsa-shake-256f": 49856, "hmac-sha384": 48, "aes-128-cmac": 16,
		"aes-256-gcm": 0, "rsa-2048-oaep-sha256": 0,
	} {
		if got := template(t, s).SignatureLength(); got != want {
			t.Errorf("a signature of %s has %d bytes, want %d", s, got, want)
		}
	}
	for s, want := range map[string]string{"ecdsa-p256-any": "p256", "ed25519": "ed25519", "x25519": "x25519", "rsa-2048-pss-any": "", "aes-256-gcm": ""} {
		if got := template(t, s).CurveName(); got != want {
			t.Errorf("the curve of %s is %q, want %q", s, got, want)
		}
	}
	for _, c := range []struct {
		alg              Algorithm
		hash, tag, nonce int
	}{
		{GCM, 0, 16, 12}, {AEADWithShortenedTag(CCM, 8), 0, 8, 13}, {ChaCha20Poly1305, 0, 16, 12},
		{ECDSA(SHA384), 48, 0, 0}, {SHA3_512, 64, 0, 0}, {ECDSA(AnyHash), 0, 0, 0}, {Ed25519ph, 64, 0, 0}, {PureEdDSA, 0, 0, 0},
	} {
		if c.alg.HashLength() != c.hash || c.alg.TagLength() != c.tag || c.alg.NonceLength() != c.nonce {
			t.Errorf("%s: hash %d, tag %d, nonce %d", c.alg, c.alg.HashLength(), c.alg.TagLength(), c.alg.NonceLength())
		}
	}
	for _, h := range hashes {
		if h.hash != 0 && (h.hash.Size() != h.length || !h.hash.Available()) {
			t.Errorf("%s is not the standard library's %s", h.name, h.hash)
		}
	}
}

func TestOperationUsage(t *testing.T) {
	for op, want := range map[Operation]Usage{
		Sign: UsageSignMessage, SignHash: UsageSignHash, Verify: UsageVerifyMessage, VerifyHash: UsageVerifyHash,
		Encrypt: UsageEncrypt, Decrypt: UsageDecrypt, Export: UsageExport, ExportPublic: 0, Generate: 0, Import: 0, Random: 0,
	} {
		if op.Usage() != want {
			t.Errorf("%s needs %s, want %s", op, op.Usage(), want)
		}
	}
}
