package psa

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"slices"
	"strings"
	"unicode"

	secrets "github.com/parsecfs/parsecfs/providers/psa/secret"
)

// foreign is a form in which keys come and which an import does not take.
type foreign struct {
	is   func(b []byte) bool
	what string
	hint string
	line bool // it is known by its first line, after which no key follows
}

func begins(words ...string) func(b []byte) bool {
	return func(b []byte) bool {
		return slices.ContainsFunc(words, func(w string) bool { return bytes.HasPrefix(b, []byte(w)) })
	}
}

// jwkToPEM writes a private or public JSON Web Key as PEM; -e has crypto and fs at hand.
const jwkToPEM = `node -e 'k={key:JSON.parse(fs.readFileSync(0)),format:"jwk"};` +
	`process.stdout.write((k.key.d?crypto.createPrivateKey(k):crypto.createPublicKey(k)).export({format:"pem",type:k.key.d?"pkcs8":"spki"}))' <FILE`

var foreigns = []foreign{
	{is: isSSHPublic, what: "an OpenSSH public key", hint: "convert it: ssh-keygen -e -m PKCS8 -f FILE", line: true},
	{is: begins("---- BEGIN SSH2 "), what: "an SSH2 public key", hint: ssh2Hint},
	{is: begins("PuTTY-User-Key-File-"), what: "a PuTTY key", hint: "convert it: puttygen FILE -O private-openssh -o KEY"},
	{is: isJWK, what: "a JSON Web Key", hint: "convert it: " + jwkToPEM, line: true},
	{is: begins("\xfe\xed\xfe\xed", "\xce\xce\xce\xce"), what: "a Java keystore", hint: "convert it: keytool -importkeystore -srckeystore FILE " +
		"-destkeystore KEY.p12 -deststoretype PKCS12; then openssl pkcs12 -in KEY.p12 -nocerts -nodes"},
	{is: isPKCS12, what: "a PKCS #12 file", hint: "take the key out of it: openssl pkcs12 -in FILE -nocerts -nodes"},
	{is: isPKCS7, what: "a PKCS #7 file", hint: "print its certificates: openssl pkcs7 -inform DER -in FILE -print_certs"},
	{is: isCertificate, what: "a certificate in DER", hint: "extract its public key: openssl x509 -inform DER -pubkey -noout -in FILE"},
	{is: isRequest, what: "a certificate request in DER", hint: "extract its public key: openssl req -inform DER -pubkey -noout -in FILE"},
	{is: begins("\xff\xfe", "\xfe\xff"), what: "text in UTF-16", hint: "convert it: iconv -f UTF-16 -t UTF-8 FILE"},
	{is: begins("\x1f\x8b"), what: "a gzip file", hint: "unpack it: gzip -dc FILE"},
	{is: begins("<RSAKeyValue", "<?xml"), what: "a key in XML", hint: "export it as PKCS #8 in PEM"},
	{is: begins("AGE-SECRET-KEY-1", "age1"), what: "a key of age", hint: "only age uses such keys", line: true},
	{is: begins("untrusted comment:"), what: "a key of minisign or signify", hint: "only those programs use such keys"},
	{is: begins("Private-key-format:"), what: "a DNSSEC key", hint: "convert it to PKCS #8 in PEM"},
}

const ssh2Hint = "convert it: ssh-keygen -i -f FILE >KEY.pub; ssh-keygen -e -m PKCS8 -f KEY.pub"

func errSSH2() error {
	return Errorf(StatusInvalidArgument, "an SSH2 public key").WithHint(ssh2Hint)
}

func isSSHPublic(b []byte) bool {
	word, rest, ok := bytes.Cut(b, []byte(" "))
	return ok && begins("ssh-", "ecdsa-sha2-", "sk-ssh-", "sk-ecdsa-")(word) && bytes.HasPrefix(rest, []byte("AAAA"))
}

func isJWK(b []byte) bool {
	b = bytes.TrimSpace(b)
	return len(b) > 0 && b[0] == '{' && (bytes.Contains(b, []byte(`"kty"`)) || bytes.Contains(b, []byte(`"keys"`)))
}

func isPKCS12(b []byte) bool {
	var pfx struct {
		Version int
		Safe    struct{ Type asn1.ObjectIdentifier }
	}
	_, err := asn1.Unmarshal(b, &pfx)
	return err == nil && pfx.Version == 3 && pfx.Safe.Type.String() == "1.2.840.113549.1.7.1"
}

func isPKCS7(b []byte) bool {
	var info struct{ Type asn1.ObjectIdentifier }
	_, err := asn1.Unmarshal(b, &info)
	return err == nil && strings.HasPrefix(info.Type.String(), "1.2.840.113549.1.7.")
}

func isCertificate(b []byte) bool {
	_, err := x509.ParseCertificate(b)
	return err == nil
}

func isRequest(b []byte) bool {
	_, err := x509.ParseCertificateRequest(b)
	return err == nil
}

// isReference says whether a line wants to name a key on a device.
func isReference(line []byte) bool {
	return begins("id=", "ID=", "object=", "label=", "handle=", "name=", "pkcs11:")(line)
}

func sniffed(what, hint string) error {
	return Errorf(StatusInvalidArgument, "this is %s, which import does not take", what).WithHint(hint)
}

// sniffForeign names a form of others.
func sniffForeign(b []byte) error {
	b = bytes.TrimPrefix(b, []byte(bom))
	for _, f := range foreigns {
		if f.is(b) {
			return sniffed(f.what, f.hint)
		}
	}
	return nil
}

// Sniff says what was written to an import, of which nothing became a key, and how it can be converted. It never quotes it:
// it may be a secret.
func Sniff(b []byte, draft Attributes) (err error) {
	secrets.Do(func() { err = sniff(b, draft) })
	return err
}

func sniff(b []byte, draft Attributes) error {
	if err := sniffForeign(b); err != nil {
		return err
	}
	line, _, whole := bytes.Cut(bytes.TrimPrefix(b, []byte(bom)), []byte("\n"))
	rest := bytes.TrimSpace(b)
	switch {
	case isReference(line):
		return errReference(line)
	case draft.isRaw():
		return sniffRaw(rest, len(b), draft)
	case bytes.Contains(b, []byte(pemDashes)):
		return sniffPEM(b)
	case len(b) > 0 && b[0] == 0x30 && !isText(b):
		return Errorf(StatusInvalidArgument, "the key in DER is cut off after %d bytes", len(b)).WithHint("copy the whole file")
	case !isText(b):
		return errNoKey()
	case isTemplateLine(line):
		return sniffed("a template", "write it to generate")
	case isHex(rest):
		return sniffed("hex digits", "write the bytes: xxd -r -p FILE")
	case len(rest) >= 24 && isBase64(rest):
		return sniffed("base64 without a BEGIN line", "write the bytes: base64 -d FILE")
	case whole && bytes.ContainsRune(bytes.TrimSuffix(b, []byte("\n")), '\n'):
		return Errorf(StatusInvalidArgument, "the text contains no key").WithHint("a key in PEM begins with a line -----BEGIN PRIVATE KEY-----")
	}
	return Errorf(StatusInvalidArgument, "the line is neither a key in PEM nor the name of a key on the device").
		WithHint("a key in PEM begins with -----BEGIN PRIVATE KEY-----; for a key on the device write object=LABEL, id=HEX or handle=0xHEX")
}

func sniffRaw(rest []byte, n int, draft Attributes) error {
	want := draft.Bits / 8
	err := Errorf(StatusInvalidArgument, "the key has %d bytes; a %s key of %d bits has %d", n, draft.Type, draft.Bits, want)
	switch {
	case isHex(rest):
		return err.WithHint("these are hex digits; write the bytes: xxd -r -p FILE")
	case len(rest) >= 8 && isBase64(rest):
		return err.WithHint("this is base64; write the bytes: base64 -d FILE")
	}
	return err.WithHint("write all bytes of the key, and nothing else")
}

func sniffPEM(b []byte) error {
	s := NewPEMScanner(b)
	last := ""
	for {
		label, err := s.NextLabel()
		if err != nil {
			return err
		}
		if label == "" {
			break
		}
		block, whole, err := s.Block()
		Wipe(block.Bytes)
		if err != nil {
			return err
		}
		if !whole {
			return damagedPEM("the block %s has no END line", quote(label)).WithHint("copy the whole file")
		}
		last = label
	}
	switch {
	case s.Left() > 0:
		return damagedPEM("the text ends in a BEGIN line").WithHint("copy the whole file")
	case last == "CERTIFICATE":
		return sniffed("a certificate", "extract its public key: openssl x509 -pubkey -noout -in FILE")
	case strings.HasSuffix(last, "CERTIFICATE REQUEST"):
		return sniffed("a certificate request", "extract its public key: openssl req -pubkey -noout -in FILE")
	case strings.HasSuffix(last, "PARAMETERS"):
		return sniffed("only parameters", "the key itself is missing: openssl genpkey -paramfile FILE")
	case last == "PKCS7" || last == "CMS":
		return sniffed("a PKCS #7 file", "print its certificates: openssl pkcs7 -in FILE -print_certs")
	case last != "":
		return Errorf(StatusInvalidArgument, "a PEM block %s, which is not a key", quote(last)).WithHint(pemHint)
	}
	return Errorf(StatusInvalidArgument, "text without a key in it").WithHint(pemHint)
}

const pemHint = "a key in PEM begins with a line -----BEGIN PRIVATE KEY-----"

// textBegins are how the first lines begin that OpenSSL and keytool write before a key.
var textBegins = []string{
	pemBegin, bom + pemBegin, "Bag Attributes", "Key Attributes", "Certificate", "Private-Key", "Public-Key", "RSA ", "ED25519 ", "ED448 ",
	"X25519 ", "X448 ", "ML-", "SLH-", "subject", "issuer", "MAC", "PKCS", "Alias", "Keystore", "Your keystore", "Owner", "friendlyName",
}

// maxTry bounds the line that IsTry takes for one.
const maxTry = 512

// NoBeginning refuses what came with one WRITE to an import and can be the beginning of nothing: a form of others that its
// first line shows, and a try (IsTry).
func NoBeginning(b []byte, draft Attributes) (err error) {
	secrets.Do(func() { err = noBeginning(b, draft) })
	return err
}

func noBeginning(b []byte, draft Attributes) error {
	line, rest, whole := bytes.Cut(bytes.TrimPrefix(b, []byte(bom)), []byte("\n"))
	if len(bytes.TrimSpace(rest)) > 0 || !isText(line) || draft.isRaw() && !(isReference(line) && whole) {
		return nil
	}
	for _, f := range foreigns {
		if f.line && f.is(line) {
			return sniffed(f.what, f.hint)
		}
	}
	switch {
	case isReference(line) && (whole || !mayBeReference(line)):
		return errReference(line)
	case mayBeReference(line) && !whole || !IsTry(b):
		return nil
	}
	return sniff(b, draft)
}

// IsTry says whether what came with one WRITE is a line of text that neither OpenSSL nor keytool writes before PEM. Other
// text may be followed by PEM, and waits for it.
func IsTry(b []byte) bool {
	line, rest, whole := bytes.Cut(bytes.TrimPrefix(b, []byte(bom)), []byte("\n"))
	switch {
	case len(b) >= maxTry, len(bytes.TrimSpace(rest)) > 0, len(bytes.TrimSpace(line)) == 0, !isText(line):
		return false
	case bytes.Contains(line, []byte(pemDashes)), bytes.ContainsRune(line, ':'), line[0] == '#', !whole && len(line) < 4:
		return false
	}
	return !slices.ContainsFunc(textBegins, func(w string) bool {
		return bytes.HasPrefix(line, []byte(w)) || !whole && strings.HasPrefix(w, string(line))
	})
}

// isRaw says whether an import into the draft takes a key's bytes alone.
func (a Attributes) isRaw() bool {
	return a.Type != KeyTypeNone && !a.Type.IsAsymmetric() && a.Bits > 0
}

// isTemplateLine judges only what is no longer than a template and is no key in hex digits: nobody can wipe a string.
func isTemplateLine(line []byte) bool {
	words := bytes.Fields(line)
	if len(words) == 0 || len(words[0]) > maxTemplate || isHex(words[0]) {
		return false
	}
	_, err := ParseTemplate(string(words[0]))
	return err == nil
}

// maxTemplate is longer than any template.
const maxTemplate = 64

func isHex(b []byte) bool {
	digits := 0
	for _, c := range b {
		switch {
		case c >= '0' && c <= '9', c >= 'a' && c <= 'f', c >= 'A' && c <= 'F':
			digits++
		case !unicode.IsSpace(rune(c)):
			return false
		}
	}
	return digits >= 8 && digits%2 == 0
}

func isBase64(b []byte) bool {
	text := make([]byte, 0, len(b)) // it never grows, so that no other array has a part of it
	defer func() { Wipe(text) }()
	for _, word := range bytes.Fields(b) {
		var ok bool
		if text, ok = appendBase64(text, word); !ok {
			return false
		}
	}
	out, err := decodeBase64(text)
	Wipe(out)
	return err == nil
}
