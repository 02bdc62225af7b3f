package pki

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"os/exec"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// ask makes a request with a key of P-256.
func ask(t *testing.T, text string) (csr []byte, err error) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	run := RequestRun(spki, psa.ECDSA(psa.SHA256), func(_ context.Context, message []byte) ([]byte, error) {
		digest := sha256.Sum256(message)
		der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return nil, err
		}
		return psa.ECDSADERToRaw(der, 256)
	})
	if _, err := run.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	result, err := run.Finish(t.Context())
	return result.Outputs["csr"], err
}

// TestNames: what stands in a request is what RFC 5280 lets stand in a certificate.
func TestNames(t *testing.T) {
	part, most := strings.Repeat("a", 63), strings.Repeat("abcdefg.", 31)+"abcde"
	for text, want := range map[string]string{
		"DNS:a.example": "", "DNS:*.a.example": "", "DNS:a": "", "DNS:1a.example": "", "DNS:xn--bcher-kva.example": "", "DNS:" + part + ".example": "",
		"DNS:" + most: "", "DNS: a.example": "",
		"DNS:a.example,DNS:b.example": "one name a line", "DNS:a.example,b.example": "one name a line", "DNS:http://x": "letters, digits and hyphens",
		"DNS:" + part + "a.example": "more than 63 characters", "DNS:" + most + "f": "longer than 253", "DNS:": "empty part", "DNS:a..b": "empty part",
		"DNS:a.example.": "empty part", "DNS:.a": "empty part", "DNS:a_b": "letters, digits and hyphens", "DNS:a b": "letters, digits and hyphens",
		"DNS:-a": "hyphen", "DNS:a-": "hyphen", "DNS:*": "*", "DNS:a.*.b": "*", "DNS:*a.b": "*", "DNS:*.": "empty part", "DNS:**.a": "*",
		"DNS:bücher.example": "xn--", "DNS:аpple.example": "xn--", "DNS:127.0.0.1": "written as IP:", "DNS:::1": "written as IP:",
		"IP:127.0.0.1": "", "IP:::1": "", "IP:2001:db8::1": "",
		"IP:localhost": "no IP address", "IP:127.0.0.1/8": "a network", "IP:fe80::1%eth0": "zone", "IP:010.0.0.1": "no IP address",
		"IP:1.2.3.4,IP:1.2.3.5": "one name a line", "IP:": "no IP address",
		"URI:https://a.example/x?y=1,2": "", "URI:urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6": "", "URI:spiffe://a.example/b": "",
		"URI:https://[::1]:443/": "", "URI:ldap://127.0.0.1/a": "", "URI:tag:a@b,2026:c": "",
		"URI:a": "not an absolute URI", "URI:/a": "not an absolute URI", "URI:https:": "has only a scheme", "URI:https://a_b/": "letters, digits",
		"URI:https://a/,DNS:evil.example": "one name a line", "URI:https://a/,dns:evil.example": "one name a line",
		"URI:https://a/,DirName:/CN=evil": "one name a line", "URI:https://a/,othername:x": "one name a line",
		"URI:https://a/, IP Address:192.0.2.1": "one name a line", "URI:urn:a:b,Registered ID:1.2.3": "one name a line",
		"URI:urn:a:b,c,EMAIL:evil@example.org": "one name a line", "URI:urn:a:b,ipaddress:192.0.2.1": "one name a line",
		"URI:https://a/ b": "%XX", "URI:https://ä/": "%XX", "URI:https://a/<b>": "%XX", "URI:https://a/%zz": "not an absolute URI",
		"email:a@b.example": "", "email:a.b+c@b.example": "", "email:a": "no mail address", "email:@b": "no mail address", "email:a@": "empty part",
		"email:a@b@c": "letters, digits", "email:Name <a@b>": "characters that certificates do not allow", "email:.a@b": "dot",
		"email:" + part + "aa@b": "longer than", "email:a@b.example,email:b@b": "one name a line", "email:ä@b": "characters that",
		"dns:a": "not a line of", "DNS": "empty part", "other": "not a line of", "keyUsage": "not a list of", "a:b": "not a line of",
	} {
		r, err := parseRequest("\n" + text)
		switch {
		case want == "" && (err != nil || len(r.names) != 1):
			t.Errorf("%q: %v", text, err)
		case want != "" && (psa.StatusOf(err) != psa.StatusInvalidArgument || !strings.Contains(err.Error(), want) || psa.HintOf(err) == ""):
			t.Errorf("%q: %v; want %q", text, err, want)
		}
	}
	name := strings.Repeat("a", 64)
	for subject, ok := range map[string]bool{
		"CN=" + name: true, "CN=" + name + "a": false, "CN=" + strings.Repeat("ä", 64): true, "CN=" + strings.Repeat("ä", 65): false,
		"CN=web,C=DE": true, "CN=web,C=DEU": false, "CN=web,C=D": false, "O=" + name + "a": false, "OU=" + name + "a": false, "L=" + name + name: true,
		"DNS:a.example": false, "CN=web\nkeyUsage: digitalSignature": true, "keyUsage: digitalSignature": false,
	} {
		if _, err := parseRequest(subject); ok != (err == nil) {
			t.Errorf("%q: %v", subject, err)
		}
	}
}

// TestExtensions: OpenSSL finds in a request what was asked for, and nothing else.
func TestExtensions(t *testing.T) {
	csr, err := ask(t, "CN=web\nDNS:web.example\nkeyUsage: critical,digitalSignature, decipherOnly\nkeyAgreement")
	if err == nil {
		t.Errorf("a line without its word gave %q", csr)
	}
	csr, err = ask(t, "CN=web,O=Example\r\nDNS:web.example\r\nIP:::1\r\nURI:spiffe://a.example/b\r\nemail:a@b.example\r\n"+
		"keyUsage: critical,digitalSignature, keyAgreement,decipherOnly\r\nextendedKeyUsage: serverAuth, clientAuth,1.3.6.1.4.1.311.20.2.2\r\nchallengePassword: geheim: König\r\n")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("openssl", "req", "-verify", "-noout", "-text", "-nameopt", "RFC2253,utf8")
	cmd.Stdin = bytes.NewReader(csr)
	text, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, want := range []string{"verify OK", "Subject: CN=web,O=Example", "DNS:web.example, IP Address:0:0:0:0:0:0:0:1, URI:spiffe://a.example/b, email:a@b.example",
		"Key Usage: critical Digital Signature, Key Agreement, Decipher Only X509v3",
		"Extended Key Usage: TLS Web Server Authentication, TLS Web Client Authentication, Microsoft Smartcard Login",
		"challengePassword :geheim: König"} {
		if !strings.Contains(strings.Join(strings.Fields(string(text)), " "), want) {
			t.Errorf("OpenSSL does not find %q:\n%s", want, text)
		}
	}
	// without a subject the names are critical; without any line there is nothing but the subject
	for text, critical := range map[string]bool{"\nDNS:a.example": true, "CN=web\nDNS:a.example": false} {
		if csr, err = ask(t, text); err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(csr)
		r, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil || len(r.Extensions) != 1 || r.Extensions[0].Critical != critical || r.CheckSignature() != nil {
			t.Errorf("%q: %+v, %v", text, r, err)
		}
	}
	for _, bad := range []string{"keyUsage: sign", "keyUsage:", "keyUsage: critical", "keyUsage: digitalSignature\nkeyUsage: keyAgreement",
		"extendedKeyUsage: TLS", "extendedKeyUsage: 1", "extendedKeyUsage: " + strings.Repeat("1.2.3,", 33) + "1.2.3", "extendedKeyUsage: serverAuth\nextendedKeyUsage: clientAuth",
		"challengePassword:", "challengePassword: a\nchallengePassword: b", "challengePassword: " + strings.Repeat("x", 256)} {
		_, err := parseRequest("CN=web\n" + bad)
		if psa.StatusOf(err) != psa.StatusInvalidArgument || strings.Contains(err.Error(), "xxx") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestSignatureAlgorithms: the names of algorithms are those that crypto/x509 reads.
func TestSignatureAlgorithms(t *testing.T) {
	for _, h := range []psa.Algorithm{psa.SHA256, psa.SHA384, psa.SHA512, psa.SHA3_256} {
		for _, alg := range []psa.Algorithm{psa.ECDSA(h), psa.DeterministicECDSA(h), psa.RSAPKCS1v15Sign(h), psa.RSAPSS(h)} {
			if _, err := signatureAlgorithm(alg); (err == nil) != (alg.X509() != x509.UnknownSignatureAlgorithm) {
				t.Errorf("%s: %v", alg, err)
			}
		}
	}
	if _, err := signatureAlgorithm(psa.PureEdDSA); err != nil {
		t.Error(err)
	}
}
