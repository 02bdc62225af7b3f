package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// certificates makes n of them, each for a key of its own, and gives the public key of the first.
func certificates(t *testing.T, n int) (texts []string, spki []byte) {
	t.Helper()
	for i := range n {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 1)), Subject: pkix.Name{CommonName: "test"}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		if i > 0 {
			continue
		}
		if spki, err = x509.MarshalPKIXPublicKey(&key.PublicKey); err != nil {
			t.Fatal(err)
		}
	}
	return texts, spki
}

// TestDamagedChain: a chain has all its certificates or is refused, wherever one of them is damaged.
func TestDamagedChain(t *testing.T) {
	texts, spki := certificates(t, 3)
	leaf, ca, root := texts[0], texts[1], texts[2]
	good := leaf + ca + root
	for in, want := range map[string]string{
		good: good, "\xef\xbb\xbf" + good: good, "text\n" + leaf + "text: K\xf6nig\n" + ca + "\n" + root + "text": good,
		strings.ReplaceAll(good, "\n", "\r\n"): good, leaf: leaf,
	} {
		if chain, whole, err := ParseChain([]byte(in), spki); err != nil || !whole || string(chain) != want {
			t.Errorf("%.60q: %d bytes, %t, %v", in, len(chain), whole, err)
		}
	}
	for in, text := range map[string]string{
		ca + leaf:                    "the first certificate is for another key",
		strings.TrimSpace(leaf) + ca: "there is text after an END line",
		"no certificate\n" + strings.Replace(leaf, "CERTIFICATE", "PUBLIC KEY", 2): "among the certificates",
	} {
		if _, _, err := ParseChain([]byte(in), spki); psa.StatusOf(err) != psa.StatusInvalidArgument || !strings.Contains(err.Error(), text) {
			t.Errorf("%.60q: %v; want %s", in, err, text)
		}
	}
	block, _ := pem.Decode([]byte(leaf))
	if _, _, err := ParseChain(block.Bytes, spki); !strings.Contains(psa.HintOf(err), "-inform DER") {
		t.Errorf("DER: %v, hint %q", err, psa.HintOf(err))
	}
	// Whichever byte of the second certificate's armour is lost, it does not vanish.
	for i := range ca {
		damaged := leaf + ca[:i] + "!" + ca[i+1:] + root
		chain, whole, err := ParseChain([]byte(damaged), spki)
		if err == nil && whole && !bytes.Equal(chain, []byte(good)) {
			t.Errorf("with byte %d of the second certificate replaced, %d of %d bytes are the chain", i, len(chain), len(good))
		}
	}
	// Cut off anywhere it is not whole, but between two certificates.
	for i := range good {
		chain, whole, _ := ParseChain([]byte(good[:i]), spki)
		if whole && string(chain) != leaf && string(chain) != leaf+ca && string(chain) != good {
			t.Errorf("the first %d bytes are a chain of %d", i, len(chain))
		}
	}
}
