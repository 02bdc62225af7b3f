package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// TestRFC8037 is the example of RFC 8037, appendix A.2 and A.3.
func TestRFC8037(t *testing.T) {
	const x, kid = "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
	b, err := base64.RawURLEncoding.DecodeString(x)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(ed25519.PublicKey(b))
	if err != nil {
		t.Fatal(err)
	}
	text, err := JWK(spki)
	if err != nil {
		t.Fatal(err)
	}
	var k map[string]string
	if err := json.Unmarshal(text, &k); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	if k["kty"] != "OKP" || k["crv"] != "Ed25519" || k["x"] != x || k["kid"] != kid || len(k) != 4 {
		t.Errorf("%s", text)
	}
	if f := FingerprintsOf(spki); f.KID != kid || !strings.HasPrefix(f.SSH, "SHA256:") || len(f.SPKI) != 64 {
		t.Errorf("%+v", f)
	}
	if line, err := SSH(spki); err != nil || !strings.HasPrefix(string(line), "ssh-ed25519 ") || strings.HasSuffix(string(line), "\n") {
		t.Errorf("%q: %v", line, err)
	}
}

// TestUnknownKinds: what SSH or JWK does not know is refused, and has no fingerprint of theirs.
func TestUnknownKinds(t *testing.T) {
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&p224.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"P-224": spki, "no key": []byte("no key")} {
		if _, err := JWK(b); err == nil {
			t.Errorf("%s is a JWK", name)
		}
		if _, err := SSH(b); err == nil {
			t.Errorf("%s is a key of SSH", name)
		}
		if f := FingerprintsOf(b); f.KID != "" || f.SSH != "" || f.SPKI == "" {
			t.Errorf("%s: %+v", name, f)
		}
	}
	raw := psa.RawKey{Type: psa.ECCPublicKey(psa.TwistedEdwards), Bits: 448, Bytes: make([]byte, 57)}
	if spki, err = raw.Marshal(); err != nil {
		t.Fatal(err)
	}
	if f := FingerprintsOf(spki); f.KID == "" || f.SSH != "" {
		t.Errorf("Ed448: %+v", f)
	}
}
