package psa

import "testing"

// TestTemplateBegins: each beginning of a template is one, and what is none of any is not.
func TestTemplateBegins(t *testing.T) {
	for _, s := range []string{"ecdsa-p256-sha256", "rsa-3072-pss-any", "rsa-8192-pkcs1v15-crypt", "aes-128-ccm-tag12", "x448-hkdf-sha512",
		"ed25519",
		"deterministic-ecdsa-brainpoolp384r1-sha3-384", "tls12-prf-sha384", "slh-dsa-shake-256f", "hmac-sha512-256"} {
		if _, err := parseTemplate(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
		for n := range len(s) + 1 {
			if !TemplateBegins(s[:n]) {
				t.Errorf("%q is no beginning", s[:n])
			}
		}
	}
	for _, s := range []string{"ed2559", "garbage", "ecdsa-p257", "rsa-x", "RSA", "aes-129", "aes-128-gcm-tagx", "ecdsa-p256-sha256 "} {
		if TemplateBegins(s) {
			t.Errorf("%q is a beginning", s)
		}
	}
	for _, s := range anyTemplates() {
		if _, err := parseTemplate(s); err != nil {
			t.Errorf("%q: %v", s, err)
		}
	}
}
