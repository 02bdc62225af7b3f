package psa

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func keyFile(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "keys", name+".pem"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func derOf(t testing.TB, name string) []byte {
	t.Helper()
	block, _ := pem.Decode(keyFile(t, name))
	return block.Bytes
}

// publicOf is the public key in a Material.
func publicOf(t testing.TB, m *Material) any {
	t.Helper()
	if raw, err := ParseRawKey(m.Data); err == nil {
		return raw
	}
	if m.Format == FormatSPKI {
		pub, err := x509.ParsePKIXPublicKey(m.Data)
		if err != nil {
			t.Fatal(err)
		}
		return pub
	}
	key, err := x509.ParsePKCS8PrivateKey(m.Data)
	if err != nil {
		t.Fatal(err)
	}
	type public interface{ Public() crypto.PublicKey }
	return key.(public).Public()
}

// scanWhole feeds b a byte at a time, as a slow writer would, and wants the key to be complete exactly at end.
func scanWhole(t *testing.T, b []byte, end int, draft Attributes) (*Material, Attributes) {
	t.Helper()
	for n := range end {
		got, m, _, err := ScanMaterial(b[:n], draft)
		if got != 0 || m != nil || err != nil {
			t.Fatalf("after %d of %d bytes: complete at %d, %v", n, end, got, err)
		}
	}
	got, m, a, err := ScanMaterial(b, draft)
	if err != nil || got != end || m == nil {
		t.Fatalf("complete at %d, %v; want %d", got, err, end)
	}
	return m, a
}

func TestScanMaterial(t *testing.T) {
	for name, want := range map[string]string{
		"p256.pkcs8": "ecdsa-p256-sha256", "p256.params-sec1": "ecdsa-p256-sha256", "p521.pkcs8": "ecdsa-p521-sha512",
		"rsa2048.pkcs8": "rsa-2048-pkcs1v15-sha256", "rsa2048.pkcs1": "rsa-2048-pkcs1v15-sha256",
		"rsa2048.spki": "rsa-2048-pkcs1v15-sha256", "rsa2048.pkcs1pub": "rsa-2048-pkcs1v15-sha256",
		"ed25519.pkcs8": "ed25519", "ed25519.spki": "ed25519", "x25519.pkcs8": "x25519",
		"p256.text": "ecdsa-p256-sha256", "secp256k1.pkcs8": "ecdsa-secp256k1-sha256",
		"openssh": "ed25519", "openssh-rsa": "rsa-2048-pkcs1v15-sha256", "openssh-p384": "ecdsa-p384-sha384",
		"rsa2048-pss.pkcs8":           "rsa-2048-pss-sha256",
		"brainpoolp256r1.params-sec1": "ecdsa-brainpoolp256r1-sha256", "brainpoolp256r1.spki": "ecdsa-brainpoolp256r1-sha256",
	} {
		t.Run(name, func(t *testing.T) {
			b := keyFile(t, name)
			end := bytes.Index(b, []byte("KEY-----\n")) // of the first BEGIN, then of its END
			end += 9 + bytes.Index(b[end+9:], []byte("KEY-----")) + 8
			m, a := scanWhole(t, b, end, Attributes{})
			if a.Template() != want {
				t.Errorf("a bare key is %q, want %q", a.Template(), want)
			}
			public := strings.Contains(name, "spki") || strings.Contains(name, "pub")
			if public != a.Type.IsPublicKey() || public != (m.Format == FormatSPKI) {
				t.Errorf("type %s in %s", a.Type, m.Format)
			}
			if err := a.Validate(); err != nil {
				t.Error(err)
			}
			publicOf(t, m)

			// the same with text and another block before it, with CRLF, and without the last newline
			before := "Bag Attributes\r\n0x: König\n" + string(keyFile(t, "p256.certificate"))
			crlf := strings.ReplaceAll(before+string(b[:end]), "\n", "\r\n")
			again, _ := scanWhole(t, []byte(crlf), len(crlf), Attributes{})
			if !bytes.Equal(again.Data, m.Data) {
				t.Error("another key with text before it")
			}
			m.Wipe()
			if bytes.Trim(m.Data, "\x00") != nil {
				t.Error("not wiped")
			}
		})
	}
}

func TestScanDER(t *testing.T) {
	for _, name := range []string{"p256.pkcs8", "p521.pkcs8", "rsa2048.pkcs8", "rsa2048.pkcs1", "rsa2048.spki", "rsa2048.pkcs1pub", "ed25519.pkcs8", "ed25519.spki", "x25519.pkcs8"} {
		der := derOf(t, name)
		_, want, _, err := ScanMaterial(keyFile(t, name), Attributes{})
		if err != nil {
			t.Fatal(err)
		}
		m, _ := scanWhole(t, append(bytes.Clone(der), "and more"...), len(der), Attributes{})
		if !bytes.Equal(m.Data, want.Data) || m.Format != want.Format {
			t.Errorf("%s in DER is not the key in PEM", name)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	m, a := scanWhole(t, sec1, len(sec1), Attributes{})
	if a.Template() != "ecdsa-p384-sha384" || !key.PublicKey.Equal(publicOf(t, m)) {
		t.Errorf("SEC1 is %+v", a)
	}
}

func TestScanDraft(t *testing.T) {
	// the draft's policy stands
	draft := template(t, "ecdsa-p256-sha384")
	draft.Usage |= UsageExport
	_, _, a, err := ScanMaterial(keyFile(t, "p256.pkcs8"), draft)
	if err != nil || a != draft {
		t.Errorf("%+v, %v; want %+v", a, err, draft)
	}
	// an EC key may be for agreement
	draft = template(t, "ecdh-p256")
	if _, _, a, err = ScanMaterial(keyFile(t, "p256.pkcs8"), draft); err != nil || a != draft {
		t.Errorf("%+v, %v; want %+v", a, err, draft)
	}
	// a public key alone into the pair's draft: narrowed
	_, _, a, err = ScanMaterial(keyFile(t, "rsa2048.spki"), template(t, "rsa-2048-pss-any"))
	want := Attributes{KeyTypeRSAPublicKey, 2048, RSAPSS(AnyHash), UsageVerifyMessage | UsageVerifyHash, 0}
	if err != nil || a != want {
		t.Errorf("%+v, %v; want %+v", a, err, want)
	}
	_, _, a, err = ScanMaterial(keyFile(t, "rsa2048.spki"), template(t, "rsa-2048-oaep-sha256"))
	if err != nil || a.Usage != UsageEncrypt {
		t.Errorf("%+v, %v", a, err)
	}
	// a draft half filled
	_, _, a, err = ScanMaterial(keyFile(t, "rsa2048.pkcs8"), Attributes{Type: KeyTypeRSAKeyPair, Algorithm: RSAPSS(SHA512)})
	if err != nil || a.Template() != "rsa-2048-pss-sha512" || a.Usage != usageSigning {
		t.Errorf("%+v, %v", a, err)
	}
	for _, c := range []struct {
		file   string
		draft  Attributes
		status Status
		text   string
	}{
		{"p256.pkcs8", template(t, "rsa-2048-pss-sha256"), StatusInvalidArgument, "a PSA_KEY_TYPE_ECC_KEY_PAIR(PSA_ECC_FAMILY_SECP_R1) key; the draft is for a PSA_KEY_TYPE_RSA_KEY_PAIR key"},
		{"p256.pkcs8", template(t, "ecdsa-p384-sha384"), StatusInvalidArgument, "of 256 bits; the draft is for 384 bits"},
		{"p256.pkcs8", Attributes{Bits: 384}, StatusInvalidArgument, "the draft is for 384 bits"},
		{"ed25519.pkcs8", template(t, "x25519"), StatusInvalidArgument, "the draft is for"},
		{"rsa2048.pkcs8", Attributes{Type: KeyTypeRSAPublicKey}, StatusInvalidArgument, "the draft is for a PSA_KEY_TYPE_RSA_PUBLIC_KEY key"},
		{"rsa2048.pkcs8", Attributes{Algorithm: GCM}, StatusInvalidArgument, "PSA_ALG_GCM does not work with"},
		{"rsa2050.pkcs8", Attributes{}, StatusNotSupported, "an RSA key of 2050 bits"},
		{"brainpoolp320r1.pkcs8", Attributes{}, StatusNotSupported, "cannot be imported: x509:"},
		{"ed25519.encrypted", Attributes{}, StatusNotSupported, "the private key is encrypted"},
		{"rsa2048.pkcs1-encrypted", Attributes{}, StatusNotSupported, "the private key is encrypted"},
		{"openssh-encrypted", Attributes{}, StatusNotSupported, "the private key is encrypted"},
		{"p256.pkcs8", template(t, "aes-256-gcm"), StatusInvalidArgument,
			"this is a PEM block, but the draft is for a PSA_KEY_TYPE_AES key, which takes 32 raw bytes"},
	} {
		end, m, _, err := ScanMaterial(keyFile(t, c.file), c.draft)
		checkError(t, err, c.status, c.text)
		if end != 0 || m != nil {
			t.Errorf("%s: material beside an error", c.file)
		}
		if c.status == StatusNotSupported && !strings.HasPrefix(c.file, "rsa2050") && HintOf(err) == "" {
			t.Errorf("%s: no hint", c.file)
		}
	}
	// What is too weak to be made is imported all the same: somebody has to verify and decrypt the past.
	if _, _, a, err := ScanMaterial(keyFile(t, "rsa1024.pkcs8"), Attributes{}); err != nil || StatusOf(a.Deprecated()) != StatusDeprecated {
		t.Errorf("RSA-1024: %v, %v", err, a.Deprecated())
	}
}

func TestScanRaw(t *testing.T) {
	raw := []byte("0123456789abcdef0123456789abcdef and more")
	draft := template(t, "aes-256-gcm")
	m, a := scanWhole(t, raw, 32, draft)
	if m.Format != FormatRaw || string(m.Data) != string(raw[:32]) || a != draft {
		t.Errorf("%s, %q, %+v", m.Format, m.Data, a)
	}
	m.Wipe()
	if raw[0] != '0' {
		t.Error("the material is no copy")
	}
	_, _, _, err := ScanMaterial(raw, Attributes{Type: KeyTypeAES})
	checkError(t, err, StatusInvalidArgument, "the size of the PSA_KEY_TYPE_AES key is not known")
	if HintOf(err) != "set key_bits in attributes before the import" {
		t.Errorf("hint %q", HintOf(err))
	}
	_, _, _, err = ScanMaterial(raw, Attributes{Type: KeyTypeAES, Bits: 100})
	checkError(t, err, StatusInvalidArgument, "allowed: 128, 192, 256")
	_, _, _, err = ScanMaterial([]byte("\x01\x02\x03 raw bytes"), Attributes{})
	checkError(t, err, StatusInvalidArgument, "neither PEM nor DER")
	if !strings.Contains(HintOf(err), "key_bits") {
		t.Errorf("hint %q", HintOf(err))
	}
}

func TestScanDamaged(t *testing.T) {
	good := string(keyFile(t, "p256.pkcs8"))
	half, rest := good[:len(good)/2], good[len(good)/2:]
	der := derOf(t, "p256.pkcs8")
	broken := bytes.Clone(der)
	broken[len(broken)/2] ^= 0xff
	for name, c := range map[string]struct {
		in   string
		text string
	}{
		"a half key, then a whole one": {half + "\n" + good, `the block "PRIVATE KEY" has no END line`},
		"another END":                  {strings.Replace(good, "END PRIVATE", "END PUBLIC", 1), `the block "PRIVATE KEY" ends with the END line of another`},
		"no base64":                    {strings.Replace(good, "MIG", "M*G", 1), "is not base64"},
		"a cut BEGIN line":             {strings.Replace(good, "KEY-----\n", "KEY---\n", 1), "damaged PEM: a BEGIN line does not end after its name"},
		"the second half alone":        {"-----BEGIN PRIVATE KEY-----\n" + rest, "the block \"PRIVATE KEY\" is not base64"},
		"line breaks lost":             {strings.ReplaceAll(good, "\n", " "), "a BEGIN line does not end after its name"},
		"line breaks removed":          {strings.ReplaceAll(good, "\n", ""), "a BEGIN line does not end after its name"},
		"damaged DER":                  {string(broken), "a damaged private key"},
		"a certificate":                {string(derOf(t, "p256.certificate")), "a certificate in DER, which import does not take"},
		"an encrypted key in DER":      {string(derOf(t, "ed25519.encrypted")), "the private key is encrypted"},
		"an empty SEQUENCE of INTEGER": {"\x30\x03\x02\x01\x00", "neither PEM nor DER"},
		"BER":                          {"\x30\x80\x02\x01\x00\x00\x00", "neither PEM nor DER"},
		"a length that is not minimal": {"\x30\x81\x03\x02\x01\x00", "neither PEM nor DER"},
		"a private key as public":      {strings.ReplaceAll(good, "PRIVATE", "PUBLIC"), "the PEM block \"PUBLIC KEY\" holds a private key"},
	} {
		end, m, _, err := ScanMaterial([]byte(c.in), Attributes{})
		want := StatusInvalidArgument
		if name == "an encrypted key in DER" {
			want = StatusNotSupported
		}
		t.Log(name)
		checkError(t, err, want, c.text)
		if end != 0 || m != nil {
			t.Error("material beside an error")
		}
		if err != nil && strings.Contains(err.Error()+HintOf(err), good[30:50]) {
			t.Errorf("key material in %q", err)
		}
	}
	// incomplete for ever, so the flush refuses it
	for _, in := range []string{"", " \n", "hello\n", half, good[:len(good)-3], string(keyFile(t, "p256.certificate")), "-----BEGIN PRIVATE", "0", "\x30\x82"} {
		if end, m, _, err := ScanMaterial([]byte(in), Attributes{}); end != 0 || m != nil || err != nil {
			t.Errorf("%q is complete at %d, %v", in, end, err)
		}
	}
	_, _, _, err := ScanMaterial([]byte(strings.Repeat("hello\n", MaxMaterial/6+1)), Attributes{})
	checkError(t, err, StatusTooLarge, "no whole key in the first 65536 bytes")
	_, _, _, err = ScanMaterial(append([]byte{0x30, 0x82, 0x20, 0x00, 0x02}, make([]byte, 0x1fff)...), Attributes{})
	checkError(t, err, StatusTooLarge, "a key of 8196 bytes in DER; allowed: up to 8192")
}

func FuzzScanMaterial(f *testing.F) {
	files, err := filepath.Glob("testdata/keys/*.pem")
	if err != nil || len(files) == 0 {
		f.Fatal("no keys", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, uint16(0), uint16(0))
		block, _ := pem.Decode(b)
		f.Add(block.Bytes, uint16(0), uint16(0))
	}
	f.Add(make([]byte, 33), uint16(KeyTypeAES), uint16(256))
	f.Add([]byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"), uint16(ECCKeyPair(SECPR1)), uint16(256))
	f.Fuzz(func(t *testing.T, b []byte, keyType, bits uint16) {
		draft := Attributes{Type: KeyType(keyType), Bits: int(bits)}
		kept := bytes.Clone(b)
		end, m, a, err := ScanMaterial(b, draft)
		if !bytes.Equal(b, kept) {
			t.Fatal("the input was changed")
		}
		if err != nil || end == 0 {
			if end != 0 || m != nil || a != (Attributes{}) {
				t.Fatalf("end %d, %v, %+v beside %v", end, m, a, err)
			}
			return
		}
		if end > len(b) || m == nil || len(m.Data) == 0 {
			t.Fatalf("end %d of %d, %v", end, len(b), m)
		}
		if err := a.Validate(); err != nil {
			t.Fatal(err)
		}
		// what was taken is whole: less is never complete, and it alone is the same key
		if n, half, _, _ := ScanMaterial(b[:end-1], draft); n != 0 || half != nil {
			t.Fatalf("complete at %d without its last byte", n)
		}
		n, same, sameA, err := ScanMaterial(b[:end], draft)
		if err != nil || n != end || !bytes.Equal(same.Data, m.Data) || sameA != a {
			t.Fatalf("alone it is complete at %d, %v", n, err)
		}
		if m.Format == FormatRaw {
			return
		}
		// and what was made of it is a key that reads as itself
		n, again, againA, err := ScanMaterial(m.Data, Attributes{})
		if err != nil || n != len(m.Data) || !bytes.Equal(again.Data, m.Data) || againA.Type != a.Type || againA.Bits != a.Bits {
			t.Fatalf("normalised it reads as %+v, %v", againA, err)
		}
	})
}

func TestScanRest(t *testing.T) {
	block := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	for rest, want := range map[string]int{
		"": 0, " \r\n\t": 0, "\n" + block: 0, "\n" + block + block: 0, "\nthe text of keytool\n": 0, "\nBag Attributes\n" + block + "text": 0,
		"\n-": 1, "\n-----BEGIN CERT": 15, "\n" + block + "--": 2, "\n-x": 0,
		"x": -1, block: -1, "\n" + string(keyFile(t, "p256.pkcs8")): -1, "\n" + block + string(keyFile(t, "ed25519.spki")): -1,
		"\n----- BEGIN X-----": -1, "\n-----END CERTIFICATE-----\n": -1, "\n  " + block: -1, "\n" + block[:30] + "!!!!" + block[30:]: -1,
		"\n\x00": -1,
	} {
		left, err := ScanRest([]byte(rest))
		if want < 0 && StatusOf(err) != StatusInvalidArgument || want >= 0 && (err != nil || left != want) {
			t.Errorf("%q: %d are left (%v), want %d", rest, left, err, want)
		}
	}
	if !InPEM(bytes.TrimSpace(keyFile(t, "p256.pkcs8"))) || InPEM(derOf(t, "p256.pkcs8")) {
		t.Error("PEM is not told from DER")
	}
	// after a key in DER, or in raw bytes, there is nothing to ignore: it may be the rest of a longer key
	for rest, ok := range map[string]bool{"": true, "\n": true, "text": false, block: false, "\x00": false} {
		if _, err := ScanBlank([]byte(rest)); ok != (err == nil) {
			t.Errorf("%q after DER: %v", rest, err)
		}
	}
}
