package psa

import (
	"encoding/base64"
	"encoding/hex"
	"os/exec"
	"strings"
	"testing"
)

// refusal writes b to an import with one WRITE and gives what is refused, by the WRITE or by the close.
func refusal(b []byte, draft Attributes) (err error, atWrite bool) {
	end, _, more := ScanReference(b, true, draft)
	if end > 0 {
		return nil, false
	}
	if more {
		return Sniff(b, draft), false
	}
	if end, _, _, err = ScanMaterial(b, draft); err != nil || end > 0 {
		return err, err != nil
	}
	if err := NoBeginning(b, draft); err != nil {
		return err, true
	}
	return Sniff(b, draft), false
}

// TestSniff: whoever writes something else than a key reads what it was, and the command that converts it.
func TestSniff(t *testing.T) {
	der := func(name string) string { return string(derOf(t, name)) }
	file := func(name string) string { return string(keyFile(t, name)) }
	pkcs12, err := exec.Command("openssl", "pkcs12", "-export", "-nocerts", "-inkey", "testdata/keys/p256.pkcs8.pem", "-passout", "pass:").Output()
	if err != nil {
		t.Fatal(err)
	}
	aes := template(t, "aes-128-gcm")
	for name, c := range map[string]struct {
		in      string
		draft   Attributes
		text    string
		hint    string
		atWrite bool
	}{
		"garbage":               {"garbage\n", Attributes{}, "neither a key in PEM nor the name of a key", "BEGIN PRIVATE KEY", true},
		"no newline":            {"garbage", Attributes{}, "neither a key in PEM nor the name of a key", "BEGIN PRIVATE KEY", true},
		"an ID":                 {"id=zz\n", Attributes{}, "not the name of a key", "id=0x0a1b", true},
		"an ID in pieces":       {"id=a:1\n", Attributes{}, "not the name of a key", "id=0a:1b", true},
		"an ID with no newline": {"id=zz", Attributes{}, "not the name of a key", "id=0x0a1b", true},
		"a label":               {"label=x\n", Attributes{}, "not the name of a key", "object=LABEL", true},
		"a handle":              {"handle=81000001\n", Attributes{}, "not the name of a key", "handle=0x81000001", true},
		"a template":            {"ecdsa-p256-sha256\n", Attributes{}, "a template", "write it to generate", true},
		"an SSH public key":     {"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== a@b\n", Attributes{}, "an OpenSSH public key", "ssh-keygen -e -m PKCS8", true},
		"a long SSH public key": {"ssh-rsa AAAA" + strings.Repeat("A", 700) + "\n", Attributes{}, "an OpenSSH public key", "ssh-keygen -e -m PKCS8", true},
		"an SSH2 public key":    {"---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----\n", Attributes{}, "an SSH2 public key", "ssh-keygen -i", true},
		"PuTTY":                 {"PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none\r\n", Attributes{}, "a PuTTY key", "puttygen", false},
		"a JWK":                 {`{"kty":"EC","crv":"P-256"}` + "\n", Attributes{}, "a JSON Web Key", "node -e", true},
		"a JWK in lines":        {"{\n \"kty\": \"EC\"\n}\n", Attributes{}, "a JSON Web Key", "node -e", false},
		"a Java keystore":       {"\xfe\xed\xfe\xed\x00\x00\x00\x02", Attributes{}, "a Java keystore", "keytool -importkeystore", true},
		"PKCS #12":              {string(pkcs12), Attributes{}, "a PKCS #12 file", "openssl pkcs12", true},
		"PKCS #7":               {"\x30\x0b\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02", Attributes{}, "a PKCS #7 file", "openssl pkcs7", true},
		"a certificate in DER":  {der("p256.certificate"), Attributes{}, "a certificate in DER", "-inform DER -pubkey", true},
		"a certificate":         {file("p256.certificate"), Attributes{}, "a certificate, which", "openssl x509 -pubkey", false},
		"UTF-16":                {"\xff\xfe-\x00-\x00", Attributes{}, "text in UTF-16", "iconv", true},
		"gzip":                  {"\x1f\x8b\x08\x00", Attributes{}, "a gzip file", "gzip -dc", true},
		"XML":                   {"<RSAKeyValue><Modulus>", Attributes{}, "a key in XML", "PKCS #8", true},
		"age":                   {"AGE-SECRET-KEY-1QQQQ\n", Attributes{}, "a key of age", "only age", true},
		"OpenPGP":               {"-----BEGIN PGP PRIVATE KEY BLOCK-----\n", Attributes{}, "OpenPGP", "PKCS #8", true},
		"hex digits":            {hex.EncodeToString([]byte(der("ed25519.pkcs8"))) + "\n", Attributes{}, "hex digits", "xxd -r -p", true},
		"base64":                {base64.StdEncoding.EncodeToString([]byte(der("ed25519.pkcs8"))) + "\n", Attributes{}, "base64 without", "base64 -d", true},
		"parameters":            {strings.Split(file("p256.params-sec1"), "-----BEGIN EC PRIVATE")[0], Attributes{}, "only parameters", "openssl genpkey", false},
		"cut off":               {file("rsa2048.pkcs8")[:200], Attributes{}, "has no END line", "whole file", false},
		"cut off in DER":        {der("rsa2048.pkcs8")[:200], Attributes{}, "cut off after 200 bytes", "whole file", false},
		"text":                  {"one\ntwo\n", Attributes{}, "contains no key", "BEGIN PRIVATE KEY", false},
		"a short raw key":       {"0123456789", aes, "10 bytes; a PSA_KEY_TYPE_AES key of 128 bits has 16", "", false},
		"an ID for a raw key":   {"id=zz\n", aes, "not the name of a key", "id=0x0a1b", true},
		"base64 of a raw key":   {"AAAAAAAAAAA=", aes, "12 bytes", "base64 -d", false},
		"DSA":                   {"-----BEGIN DSA PRIVATE KEY-----\n", Attributes{}, `PEM block "DSA PRIVATE KEY"`, "", true},
		"encrypted OpenSSH":     {file("openssh-encrypted"), Attributes{}, "encrypted", "cp FILE KEY; ssh-keygen -p", true},
	} {
		err, atWrite := refusal([]byte(c.in), c.draft)
		if err == nil || !strings.Contains(err.Error(), c.text) || !strings.Contains(HintOf(err), c.hint) || atWrite != c.atWrite {
			t.Errorf("%s: %v, hint %q, at the WRITE %t; want %q, %q, %t", name, err, HintOf(err), atWrite, c.text, c.hint, c.atWrite)
		}
	}
	for _, in := range []string{"", "\n", "B", "Bag", "Bag Attributes\n", "# my key\n", "Private-Key: (256 bit)\n", "-----BEG", bom, bom + "-----", "0", "id=", "obj",
		"a\nb\n", strings.Repeat("x", 600), "id=0x", "id=0a:"} {
		if err := NoBeginning([]byte(in), Attributes{}); err != nil {
			t.Errorf("%q can be no beginning: %v", in, err)
		}
	}
}

func FuzzSniff(f *testing.F) {
	for _, s := range []string{"garbage\n", "id=zz", `{"kty":"EC"}`, "-----BEGIN X-----\n", "\x30\x82\x01\x00\x02\x01\x00", "ssh-rsa AAAA"} {
		f.Add([]byte(s), true)
	}
	f.Fuzz(func(t *testing.T, b []byte, raw bool) {
		draft := Attributes{}
		if raw {
			draft = Attributes{Type: KeyTypeAES, Bits: 128}
		}
		for _, err := range []error{Sniff(b, draft), NoBeginning(b, draft)} {
			if err != nil && StatusOf(err) != StatusInvalidArgument {
				t.Errorf("%q: %v", b, err)
			}
		}
	})
}

// TestReferenceForms: an ID is taken as other tools print it.
func TestReferenceForms(t *testing.T) {
	for in, want := range map[string]string{
		"id=0x0A1b\n": "id=0A1b", "id=0a:1B\n": "id=0a1B", "id=%0a%1B\n": "id=0a1B", "id=0XA2;object=web\r\n": "id=A2;object=web", "id=%0A;object=a:b\n": "id=0A;object=a:b",
		"id=a:1\n": "", "id=0a:\n": "", "id=%0\n": "", "id=0x\n": "", "id=0a%1b\n": "",
	} {
		if end, got, _ := ScanReference([]byte(in), true, Attributes{}); got != want || (end > 0) != (want != "") {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
