package psa

import (
	"slices"
	"strings"
	"testing"
)

func TestCapabilityLines(t *testing.T) {
	for line, want := range map[string]Capability{
		"ecdsa-p256-sha256\tPSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1)\t256\tPSA_ALG_ECDSA(PSA_ALG_SHA_256)\tgenerate,import,sign": {
			"ecdsa-p256-sha256", ECCKeyPair(SECPR1), 256, 0, ECDSA(SHA256), []Operation{Generate, Import, Sign}},
		"rsa-2048-pss-any\tPSA_KEY_TYPE_RSA_PUBLIC_KEY\t2048\tPSA_ALG_RSA_PSS(PSA_ALG_ANY_HASH)\timport,verify": {
			"rsa-2048-pss-any", KeyTypeRSAPublicKey, 2048, 0, RSAPSS(AnyHash), []Operation{Import, Verify}},
		"-\tPSA_KEY_TYPE_AES\t128\tPSA_ALG_AEAD_WITH_SHORTENED_TAG(PSA_ALG_GCM, 12)\tencrypt": {
			"", KeyTypeAES, 128, 0, AEADWithShortenedTag(GCM, 12), []Operation{Encrypt}},
		"-\tPSA_KEY_TYPE_HMAC\t8-8192\tPSA_ALG_HMAC(PSA_ALG_SHA_256)\tmac": {"", KeyTypeHMAC, 8, 8192, HMAC(SHA256), []Operation{Mac}},
		"-\t-\t-\t-\trandom": {Operations: []Operation{Random}},
		"-\t-\t-\t-\t-":      {},
	} {
		got, err := ParseCapability(line)
		if err != nil || got.String() != line || got.Template != want.Template || got.Type != want.Type || got.Bits != want.Bits ||
			got.Algorithm != want.Algorithm || !slices.Equal(got.Operations, want.Operations) {
			t.Errorf("%q is %+v, written %q, %v", line, got, got, err)
		}
		if want.String() != line {
			t.Errorf("%+v is written %q", want, want)
		}
	}
	if n := strings.Count(CapabilitiesHeader, "\t"); n != 4 || !strings.HasPrefix(CapabilitiesHeader, "# ") {
		t.Errorf("the header is %q", CapabilitiesHeader)
	}
	if c := (Capability{Operations: []Operation{Sign}}); !c.Has(Sign) || c.Has(SignHash) {
		t.Error("Has is wrong")
	}
}

func TestCapabilityErrors(t *testing.T) {
	for line, want := range map[string]string{
		"":                      "it has 1 columns separated by tabs; a line has 5",
		"ed25519 - - - sign":    "1 columns",
		"-\tAES\t-\t-\t-":       `key type "AES" is not in PSA notation`,
		"-\t-\t0256\t-\t-":      `"0256" is neither a number of bits nor a range`,
		"-\t-\t-\tGCM\t-":       `algorithm "GCM" is not in PSA notation`,
		"-\t-\t-\t-\tfly":       `unknown operation "fly"; allowed: generate, import`,
		"-\t-\t-\t-\tsign,":     `unknown operation ""`,
		"-\t-\t-\t-\tsign,sign": "operation sign is listed twice",
		"foo\t-\t-\t-\tsign":    `template "foo": no template begins like this`,
		"ed25519\tPSA_KEY_TYPE_AES\t256\tPSA_ALG_GCM\tsign": "the template means PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_TWISTED_EDWARDS), 255, PSA_ALG_PURE_EDDSA",
	} {
		_, err := ParseCapability(line)
		checkError(t, err, StatusInvalidArgument, want)
	}
}

func TestSortCapabilities(t *testing.T) {
	c := []Capability{{Template: "rsa-2048-pss-sha256"}, {Operations: []Operation{Random}}, {Template: "ed25519", Operations: []Operation{Sign}}, {Template: "ed25519", Operations: []Operation{Export}}}
	SortCapabilities(c)
	var lines []string
	for _, line := range c {
		lines = append(lines, line.String())
	}
	if !slices.IsSorted(lines) || lines[0] != "-\t-\t-\t-\trandom" {
		t.Errorf("sorted: %q", lines)
	}
}

func FuzzParseCapability(f *testing.F) {
	f.Add("ed25519\tPSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_TWISTED_EDWARDS)\t255\tPSA_ALG_PURE_EDDSA\tgenerate,sign,verify")
	f.Add("-\t-\t-\t-\trandom")
	f.Add("-\tPSA_KEY_TYPE_AES\t128\tPSA_ALG_GCM\t-")
	f.Fuzz(func(t *testing.T, line string) {
		c, err := ParseCapability(line)
		if err != nil {
			return
		}
		again, err := ParseCapability(c.String())
		if err != nil || again.String() != c.String() {
			t.Fatalf("%q is %q, which reads as %q, %v", line, c, again, err)
		}
	})
}

func TestCapabilitiesOfAKey(t *testing.T) {
	var lines []Capability
	for _, text := range []string{
		"ecdsa-p256-sha256\tPSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1)\t256\tPSA_ALG_ECDSA(PSA_ALG_SHA_256)\tgenerate,import,export_public,export,sign,sign_hash,verify",
		"aes-256-gcm\tPSA_KEY_TYPE_AES\t256\tPSA_ALG_GCM\tgenerate,encrypt,decrypt",
	} {
		c, err := ParseCapability(text)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, c)
	}
	a := template(t, "ecdsa-p256-sha256")
	a.Usage &^= UsageVerifyMessage | UsageVerifyHash
	have := a.Capabilities(lines)
	if len(have) != 1 || joinOperations(have[0].Operations, ",") != "export_public,sign,sign_hash,csr" {
		t.Errorf("%v", have)
	}
	for op, want := range map[Operation]bool{Sign: true, CSR: true, Verify: false, Export: false, Encrypt: false} {
		if a.Serves(lines, op) != want {
			t.Errorf("%s is served: %t", op, !want)
		}
	}
	if !a.Serves(nil, Sign) || a.Serves(nil, Export) {
		t.Error("without any lines the policy does not decide")
	}
}
