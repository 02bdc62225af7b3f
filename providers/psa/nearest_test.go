package psa

import (
	"slices"
	"strings"
	"testing"
)

// TestNearest: what people type first leads to the templates that they mean.
func TestNearest(t *testing.T) {
	var lines []Capability
	for _, name := range []string{"aes-256-cbc", "aes-256-ccm", "aes-128-gcm", "aes-256-gcm", "aes-256-gcm-tag12", "chacha20-poly1305",
		"deterministic-ecdsa-p256-sha256", "ecdh-p256", "ecdsa-p256-any", "ecdsa-p256-sha256", "ecdsa-p384-sha384", "ecdsa-secp256k1-sha256",
		"ed25519",
		"hmac-sha256", "hmac-sha512", "ml-dsa-65", "ml-kem-768", "rsa-2048-oaep-sha256", "rsa-2048-pkcs1v15-sha256", "rsa-2048-pss-sha256",
		"rsa-3072-pkcs1v15-sha256", "x25519"} {
		a, err := ParseTemplate(name)
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, Capability{name, a.Type, a.Bits, 0, a.Algorithm, []Operation{Generate}})
	}
	templates := Templates(append(lines, lines...))
	if len(templates) != len(lines) || templates[0] != "ecdsa-p256-sha256" || templates[len(templates)-1] != "aes-256-gcm-tag12" {
		t.Errorf("templates are %q", templates)
	}
	for said, want := range map[string]string{
		"rsa2048": "rsa-2048-pkcs1v15-sha256", "RSA-2048": "rsa-2048-pkcs1v15-sha256", "rsa": "rsa-3072-pkcs1v15-sha256",
		"P-256": "ecdsa-p256-sha256", "p256": "ecdsa-p256-sha256", "prime256v1": "ecdsa-p256-sha256", "secp256r1": "ecdsa-p256-sha256",
		"ecdsa": "ecdsa-p256-sha256", "ec-p256": "ecdsa-p256-sha256", "ecdsa-sha384-p384": "ecdsa-p384-sha384",
		"secp256k1": "ecdsa-secp256k1-sha256",
		"aes-256":   "aes-256-gcm", "AES256": "aes-256-gcm", "aes-gcm-256": "aes-256-gcm", "aes": "aes-256-gcm", "ED25519": "ed25519",
		"ed2559": "ed25519",
		"EdDSA":  "ed25519", "Curve25519": "x25519", "x2519": "x25519", "hmac": "hmac-sha256", "HS256": "hmac-sha256",
		"ES256": "ecdsa-p256-sha256",
		"RS256": "rsa-2048-pkcs1v15-sha256", "mldsa65": "ml-dsa-65", "chacha20": "chacha20-poly1305", "ecdsa_p256_sha256": "ecdsa-p256-sha256",
		"ecdsa-p265-sha256": "ecdsa-p256-sha256", "ecdsa-p192-sha256": "ecdsa-p256-sha256", "ecdsa-p256-md5": "ecdsa-p256-sha256",
		"aes-256-eax": "aes-256-gcm", "aes-256-cpc": "aes-256-cbc",
		"rsa-2048-pkcs1-sha256": "rsa-2048-pkcs1v15-sha256",
	} {
		near := Nearest(said, templates, 3)
		if len(near) == 0 || len(near) > 3 || near[0] != want {
			t.Errorf("nearest to %q are %q, want %s first", said, near, want)
		}
	}
	for _, said := range []string{"", "-", "hello world", "!!!", strings.Repeat("rsa2048", 10), "\xff\x00"} {
		if near := Nearest(said, templates, 3); len(near) > 0 {
			t.Errorf("nearest to %q are %q", said, near)
		}
	}
	files := []string{"attributes", "capabilities", "certificate", "csr", "csr.d", "export", "public.pem", "sign", "sign.d", "sign_hash",
		"verify"}
	for said, want := range map[string]string{"sing": "sign", "exprot": "export", "capabilites": "capabilities",
		"pubilc.pem": "public.pem", "signhash": "sign_hash", "attribute": "attributes", "sing.d": "sign.d"} {
		if near := Nearest(said, files, 1); !slices.Equal(near, []string{want}) {
			t.Errorf("nearest to %q is %q, want %s", said, near, want)
		}
	}
	for _, said := range []string{"web", "key", "x"} {
		if near := Nearest(said, files, 1); len(near) > 0 {
			t.Errorf("nearest to %q is %q", said, near)
		}
	}
}
