package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"testing"

	"github.com/parsecfs/parsecfs/providers/psa"
)

func FuzzParseChain(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{}, &x509.Certificate{}, &key.PublicKey, key)
	if err != nil {
		f.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	whole := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	f.Add(whole)
	f.Add(append([]byte("text\n"), append(whole, whole...)...))
	f.Add(whole[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		chain, complete, err := ParseChain(b, spki)
		if err != nil || !complete {
			return
		}
		block, _ := pem.Decode(chain)
		if c, err := x509.ParseCertificate(block.Bytes); err != nil || !bytes.Equal(c.RawSubjectPublicKeyInfo, spki) {
			t.Fatalf("%q begins with no certificate of the key: %v", chain, err)
		}
	})
}

func FuzzParseRequest(f *testing.F) {
	f.Add("CN=web,O=Example\nDNS:example.org\nIP:::1")
	f.Add("1.2.3.4=#0c0177+OU=x\nURI:a:b\nemail:a@b")
	f.Add("\nDNS:example.org")
	f.Add("CN=web\nkeyUsage: digitalSignature, keyAgreement\nextendedKeyUsage: serverAuth,1.2.3.4\nchallengePassword: König")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRequest(text)
		if err != nil {
			if psa.StatusOf(err) != psa.StatusInvalidArgument {
				t.Fatalf("%q: %v", text, err)
			}
			return
		}
		var name pkix.RDNSequence
		if rest, err := asn1.Unmarshal(r.subject, &name); err != nil || len(rest) > 0 {
			t.Fatalf("%q: a subject that cannot be read: %v", text, err)
		}
		if len(name)+len(r.names) == 0 {
			t.Fatalf("%q names nobody", text)
		}
		info, err := r.info(spki)
		if err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		var back requestInfo
		if rest, err := asn1.Unmarshal(info, &back); err != nil || len(rest) > 0 {
			t.Fatalf("%q: a request that cannot be read: %v", text, err)
		}
	})
}
