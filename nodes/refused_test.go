package nodes_test

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/cloudflare/circl/sign/mldsa/mldsa44"
)

// TestExpandedKeyIsRefused: an ML-DSA key without its seed is told so, and not that nobody knows ML-DSA.
func TestExpandedKeyIsRefused(t *testing.T) {
	m := mount(t, nil)
	_, private := mldsa44.NewKeyFromSeed(&[mldsa44.SeedSize]byte{1})
	expanded, err := private.MarshalBinary()
	if err != nil {
		t.Fatal(err)
	}
	inner, err := asn1.Marshal(expanded) // RFC 9881, 6: the choice expandedKey
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		Version   int
		Algorithm pkix.AlgorithmIdentifier
		Key       []byte
	}{0, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 3, 17}}, inner})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"pem": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "der": der} {
		for _, template := range []string{"", "ml-dsa-44"} {
			draft := name + template
			if err := os.Mkdir(m.path(draft), 0777); err != nil {
				t.Fatal(err)
			}
			if template != "" {
				m.put(m.path(draft, "attributes"), "template = \"ml-dsa-44\"\n")
			}
			wantErrno(t, put(m.path(draft, "import"), string(text)), syscall.EOPNOTSUPP)
			if x := m.last(); !strings.HasPrefix(x.words, "the private key is expanded and has no seed") ||
				x.hint != "hint: export it again, with its seed" {
				t.Errorf("%s: last_error says %q and %q", draft, x.words, x.hint)
			}
		}
	}
}

// TestRSAOfAnySize: a size that nothing generates is imported, and signs.
func TestRSAOfAnySize(t *testing.T) {
	m := mount(t, nil)
	private, err := rsa.GenerateKey(rand.Reader, 1536)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.path("k"), 0777); err != nil {
		t.Fatal(err)
	}
	m.put(m.path("k", "import"), string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})))
	if got := string(m.get(m.path("k", "attributes"))); !strings.Contains(got, "\ntemplate = 'rsa-1536-pkcs1v15-sha256'\n") {
		t.Errorf("attributes are %s", got)
	}
	signature, err := signed(m.path("k", "sign"), "message")
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte("message"))
	if err := rsa.VerifyPKCS1v15(&private.PublicKey, crypto.SHA256, sum[:], signature); err != nil {
		t.Errorf("the signature %x: %v", signature, err)
	}
}

// TestTooLongForRSA: what does not fit into one ciphertext is refused with what fits.
func TestTooLongForRSA(t *testing.T) {
	m := mount(t, nil)
	m.key("oaep", "rsa-2048-oaep-sha256")
	m.key("crypt", "rsa-2048-pkcs1v15-crypt")
	for _, c := range []struct {
		key, file   string
		length      int
		errno       syscall.Errno
		words, hint string
	}{
		{"oaep", "encrypt", 191, syscall.EINVAL, "the plaintext has 191 bytes; at most 190 fit",
			"at most 190 bytes fit: encrypt a symmetric key with this key"},
		{"oaep", "encrypt", 257, syscall.EFBIG, "the input has more than 256 bytes",
			"at most 190 bytes fit: encrypt a symmetric key with this key"},
		{"oaep", "encrypt", 3 << 20, syscall.EFBIG, "the input has more than 256 bytes",
			"at most 190 bytes fit: encrypt a symmetric key with this key"},
		{"oaep", "decrypt", 257, syscall.EFBIG, "the input has more than 256 bytes", "a ciphertext of this key has 256 bytes"},
		{"crypt", "encrypt", 246, syscall.EINVAL, "the plaintext has 246 bytes; at most 245 fit",
			"at most 245 bytes fit: encrypt a symmetric key with this key"},
		{"crypt", "encrypt", 257, syscall.EFBIG, "the input has more than 256 bytes",
			"at most 245 bytes fit: encrypt a symmetric key with this key"},
	} {
		_, err := signed(m.path(c.key, c.file), strings.Repeat("m", c.length))
		wantErrno(t, err, c.errno)
		if x := m.last(); !strings.HasPrefix(x.words, c.words) || !strings.HasPrefix(x.hint, "hint: "+c.hint) {
			t.Errorf("%s of %d bytes: last_error says %q and %q", c.file, c.length, x.words, x.hint)
		}
	}
}
