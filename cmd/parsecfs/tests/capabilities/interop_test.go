package capabilities

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"

	"golang.org/x/crypto/ssh"

	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// run gives what a command prints.
func (l *line) run(in []byte, name string, args ...string) []byte {
	l.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdin = bytes.NewReader(in)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		l.t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, errs.String())
	}
	return out
}

// opensslCipher is OpenSSL's name of the line's cipher.
func (l *line) opensslCipher() string {
	bits := l.Bits
	modes := map[psa.Algorithm]string{psa.GCM: "gcm", psa.CCM: "ccm", psa.CTR: "ctr", psa.CFB: "cfb", psa.OFB: "ofb", psa.XTS: "xts",
		psa.CBCNoPadding: "cbc", psa.CBCPKCS7: "cbc", psa.ECBNoPadding: "ecb"}
	alg := l.Algorithm
	if alg.IsAEAD() {
		alg = psa.AEADWithShortenedTag(alg, 16)
	}
	switch l.Algorithm {
	case psa.ChaCha20Poly1305:
		return "chacha20-poly1305"
	case psa.XTS:
		bits /= 2
	}
	return fmt.Sprintf("aes-%d-%s", bits, modes[alg])
}

// evp encrypts or decrypts with OpenSSL's library, whose command has no authenticated encryption.
func (l *line) evp(what string, key, nonce, additionalData, in []byte) []byte {
	l.t.Helper()
	padding := "0"
	if l.Algorithm == psa.CBCPKCS7 {
		padding = "1"
	}
	return l.run(in, "python3", "testdata/evp.py", what, l.opensslCipher(), hex.EncodeToString(key), hex.EncodeToString(nonce),
		hex.EncodeToString(additionalData), fmt.Sprint(l.Algorithm.TagLength()), padding)
}

// encryptsBothWays encrypts and decrypts, against OpenSSL where the key is known.
func (l *line) encryptsBothWays(key, message []byte) {
	l.t.Helper()
	t := l.t
	sealed := l.ask("encrypt", message)
	if plain := l.ask("decrypt", sealed); !bytes.Equal(plain, message) {
		t.Errorf("decrypted %q", plain)
	}
	n := l.Algorithm.NonceLength()
	if key != nil {
		if plain := l.evp("decrypt", key, sealed[:n], nil, sealed[n:]); !bytes.Equal(plain, message) {
			t.Errorf("OpenSSL decrypted %q", plain)
		}
		nonce := []byte("0123456789abcdef\x00\x00\x00\x00\x00\x00\x00\x00")[:n]
		if l.Algorithm == psa.XTS {
			clear(nonce[8:])
		}
		theirs := l.evp("encrypt", key, nonce, nil, message)
		if plain := l.ask("decrypt", append(bytes.Clone(nonce), theirs...)); !bytes.Equal(plain, message) {
			t.Errorf("of OpenSSL's ciphertext came %q", plain)
		}
	}
	if !l.Algorithm.IsAEAD() {
		return
	}
	for _, at := range []int{0, n, len(sealed) - 1} {
		changed := bytes.Clone(sealed)
		changed[at] ^= 1
		if plain, err := parsecfstest.Ask(l.path("decrypt"), changed); err == nil || len(plain) > 0 {
			t.Errorf("decrypted what was tampered with: %q", plain)
		}
	}
	l.slot(key, message)
}

// slot encrypts and decrypts in directory slots, with a nonce and additional data of the caller's.
func (l *line) slot(key, message []byte) {
	l.t.Helper()
	nonce, additionalData := []byte("fedcba98765432100123456789abcdef")[:l.Algorithm.NonceLength()], []byte("a header")
	l.must(os.WriteFile(l.path("attributes"), []byte("caller_nonce = true\n"), 0))
	sealed := l.with("encrypt", "ciphertext", map[string][]byte{"nonce": nonce, "additional_data": additionalData, "plaintext": message})
	if key != nil {
		if theirs := l.evp("encrypt", key, nonce, additionalData, message); !bytes.Equal(sealed, theirs) {
			l.t.Errorf("%x; OpenSSL makes %x", sealed, theirs)
		}
	}
	if plain := l.with("decrypt", "plaintext", map[string][]byte{"nonce": nonce, "additional_data": additionalData, "ciphertext": sealed}); !bytes.Equal(plain, message) {
		l.t.Errorf("in a slot it decrypted %q", plain)
	}
}

// with is one use of a directory slot.
func (l *line) with(op, out string, inputs map[string][]byte) []byte {
	l.t.Helper()
	dir := l.path(op + ".d/slot")
	l.must(os.Mkdir(dir, 0o700))
	for name, b := range inputs {
		l.must(os.WriteFile(filepath.Join(dir, name), b, 0))
	}
	b := l.read(filepath.Join(dir, out))
	l.must(os.Remove(dir))
	return b
}

// mac makes a MAC and judges one, against OpenSSL where the key is known.
func (l *line) mac(key, message []byte) {
	l.t.Helper()
	mac := l.ask("mac", message)
	if key != nil {
		args := []string{"mac", "-macopt", "hexkey:" + hex.EncodeToString(key), "-binary"}
		if h, ok := l.Algorithm.CryptoHash(); ok && l.Algorithm.IsHMAC() {
			args = append(args, "-digest", opensslHash(h), "HMAC")
		} else {
			args = append(args, "-cipher", fmt.Sprintf("aes-%d-cbc", l.Bits), "CMAC")
		}
		if theirs := l.run(message, "openssl", args...); !bytes.Equal(mac, theirs[:l.Algorithm.MACLength()]) {
			l.t.Errorf("%x; OpenSSL makes %x", mac, theirs)
		}
	}
	if answer := l.ask("verify_mac", mac, message); string(answer) != "valid\n" {
		l.t.Errorf("verify_mac said %q", answer)
	}
	mac[0] ^= 1
	if answer, err := parsecfstest.Ask(l.path("verify_mac"), mac, message); err == nil || len(answer) > 0 {
		l.t.Errorf("verify_mac of another MAC said %q", answer)
	}
}

// rsaPadding are the options of openssl pkeyutl.
func (l *line) rsaPadding() []string {
	if !l.Algorithm.IsRSAOAEP() {
		return []string{"-pkeyopt", "rsa_padding_mode:pkcs1"}
	}
	h, _ := l.Algorithm.CryptoHash()
	return []string{"-pkeyopt", "rsa_padding_mode:oaep", "-pkeyopt", "rsa_oaep_md:" + opensslHash(h), "-pkeyopt", "rsa_mgf1_md:" + opensslHash(h)}
}

// encrypts encrypts with the public part: for the key itself, or for OpenSSL where it is a public key alone.
func (l *line) encrypts(message []byte) {
	l.t.Helper()
	ours := l.ask("encrypt", message)
	if l.Type.IsPublicKey() {
		private := l.keyFile()
		if plain := l.run(ours, "openssl", append([]string{"pkeyutl", "-decrypt", "-inkey", private}, l.rsaPadding()...)...); !bytes.Equal(plain, message) {
			l.t.Errorf("OpenSSL decrypted %q", plain)
		}
		return
	}
	theirs := l.run(message, "openssl", append([]string{"pkeyutl", "-encrypt", "-pubin", "-inkey", l.public()}, l.rsaPadding()...)...)
	for who, ciphertext := range map[string][]byte{"its own": ours, "OpenSSL's": theirs} {
		if plain := l.ask("decrypt", ciphertext); !bytes.Equal(plain, message) {
			l.t.Errorf("of %s ciphertext came %q", who, plain)
		}
	}
	ours[len(ours)-1] ^= 1
	if plain, err := parsecfstest.Ask(l.path("decrypt"), ours); err == nil && bytes.Equal(plain, message) {
		l.t.Error("decrypted what was tampered with")
	}
}

// agrees agrees with a peer of OpenSSL's.
func (l *line) agrees() {
	l.t.Helper()
	private, public := filepath.Join(l.temp, "peer"), filepath.Join(l.temp, "peer.pub")
	kind := []string{"-algorithm", l.edwardsOrMontgomery()}
	if l.Type.Family() != psa.Montgomery {
		kind = []string{"-algorithm", "EC", "-pkeyopt", fmt.Sprint("ec_paramgen_curve:P-", l.Bits)}
	}
	l.openssl(append(append([]string{"genpkey"}, kind...), "-out", private)...)
	for _, form := range []string{"PEM", "DER"} {
		l.openssl("pkey", "-in", private, "-pubout", "-outform", form, "-out", public)
		peer, err := os.ReadFile(public)
		l.must(err)
		want := l.run(nil, "openssl", "pkeyutl", "-derive", "-inkey", private, "-peerkey", l.public())
		l.derives(peer, want)
	}
	if secret, err := parsecfstest.Ask(l.path("agree"), []byte("nobody")); err == nil || len(secret) > 0 {
		l.t.Errorf("agreed with nobody on %x", secret)
	}
}

// copies copies the key, and finds it in the copy, which cannot be copied again.
func (l *line) copies(key []byte) {
	l.t.Helper()
	source := l.dir
	l.dir += "-copy"
	defer func() { l.dir = source }()
	l.must(os.Mkdir(l.dir, 0o755))
	l.must(parsecfstest.WriteOnce(l.path("attributes"), fmt.Appendf(nil, "key_type = %q\nkey_bits = %d\npermitted_algorithm = %q\nusage = [\"PSA_KEY_USAGE_EXPORT\"]\n", l.Type, l.Bits, l.Algorithm)))
	l.must(parsecfstest.WriteOnce(l.path("copy"), []byte(filepath.Base(source)+"\n")))
	l.exported(key)
	again := l.dir + "-again"
	l.must(os.Mkdir(again, 0o755))
	if err := parsecfstest.WriteOnce(filepath.Join(again, "copy"), []byte(filepath.Base(l.dir)+"\n")); !errors.Is(err, os.ErrPermission) {
		l.t.Errorf("a copy without the COPY flag was copied: %v", err)
	}
	l.must(os.Remove(again))
	l.remove()
}

// encapsulates makes secrets for the key, which another implementation finds in the ciphertext where it has the key.
func (l *line) encapsulates(key []byte) {
	l.t.Helper()
	both := l.read(l.path("encapsulate"))
	ciphertext, secret := both[:len(both)-32], both[len(both)-32:]
	switch {
	case l.Has(psa.Decapsulate):
		if got := l.ask("decapsulate", ciphertext); !bytes.Equal(got, secret) {
			l.t.Errorf("decapsulated %x of its own %x", got, secret)
		}
	default: // the public key of material's
		key = l.read(l.keyFile())
	}
	decapsulated := func(ciphertext []byte) []byte {
		private, err := psa.ParseRawKey(key)
		l.must(err)
		got, err := providertest.RawDecapsulate(private, ciphertext)
		l.must(err)
		return got
	}
	if key != nil && !bytes.Equal(decapsulated(ciphertext), secret) {
		l.t.Error("another implementation finds another secret")
	}
	if again := l.read(l.path("encapsulate")); bytes.Equal(again, both) {
		l.t.Error("encapsulate gave the same twice")
	}
	copied := filepath.Join(l.temp, "copied")
	l.run(nil, "python3", "-c", "import shutil, sys; shutil.copyfile(*sys.argv[1:])", l.path("encapsulate"), copied)
	if len(l.read(copied)) != len(both) {
		l.t.Errorf("sendfile gave %d bytes", len(l.read(copied)))
	}
	dir := l.path("encapsulate.d/slot")
	l.must(os.Mkdir(dir, 0o700))
	secret, ciphertext = l.read(filepath.Join(dir, "secret")), l.read(filepath.Join(dir, "ciphertext"))
	if key != nil && !bytes.Equal(decapsulated(ciphertext), secret) {
		l.t.Error("secret and ciphertext of a slot are not of one encapsulation")
	}
	l.must(os.Remove(dir))
	if out, err := parsecfstest.Ask(l.path("encapsulate"), []byte("x")); err == nil || len(out) > 0 {
		l.t.Errorf("encapsulate took an input and gave %x", out)
	}
}

// decapsulates finds the secret that another implementation made, and another one in a ciphertext that was changed
// (FIPS 203, 6.3).
func (l *line) decapsulates() {
	l.t.Helper()
	ciphertext, secret, err := providertest.RawEncapsulate(l.rawPublic())
	l.must(err)
	if got := l.ask("decapsulate", ciphertext); !bytes.Equal(got, secret) {
		l.t.Errorf("decapsulated %x, not %x", got, secret)
	}
	ciphertext[3] ^= 1
	if got := l.ask("decapsulate", ciphertext); bytes.Equal(got, secret) {
		l.t.Error("decapsulated what was tampered with")
	}
	if got, err := parsecfstest.Ask(l.path("decapsulate"), ciphertext[1:]); err == nil || len(got) > 0 {
		l.t.Errorf("of a short ciphertext came %x", got)
	}
}

// derives holds agreements with a peer against the raw secret and OpenSSL's key derivations.
func (l *line) derives(peer, raw []byte) {
	l.t.Helper()
	salt, info := []byte("a salt"), []byte("a label")
	openssl := func(kdf psa.Algorithm, salt, info []byte, length int) []byte {
		return l.opensslKDF(kdf, raw, salt, info, length)
	}
	compare := func(what string, got, want []byte) {
		if !bytes.Equal(got, want) {
			l.t.Errorf("%s: agreed on %x, OpenSSL on %x", what, got, want)
		}
	}
	policy := l.Algorithm.Derivation()
	switch {
	case policy == psa.AlgNone:
		compare("raw", l.ask("agree", peer), raw)
		compare("raw in a slot", l.with("agree", "secret", map[string][]byte{"peer": peer}), raw)
		for word, kdf := range map[string]psa.Algorithm{"hkdf-sha256\n": psa.HKDF(psa.SHA256), "PSA_ALG_HKDF(PSA_ALG_SHA_512)": psa.HKDF(psa.SHA512),
			"tls12-prf-sha384": psa.TLS12PRF(psa.SHA384)} {
			got := l.with("agree", "secret", map[string][]byte{"kdf": []byte(word), "salt": salt, "info": info, "length": []byte("77\n"), "peer": peer})
			compare(word, got, openssl(kdf, salt, info, 77))
		}
		return
	case policy == psa.HKDF(policy.Hash()):
		compare("without salt and info", l.ask("agree", peer), openssl(policy, nil, nil, policy.HashLength()))
	default:
		if out, err := parsecfstest.Ask(l.path("agree"), peer); err == nil || len(out) > 0 {
			l.t.Errorf("the TLS 1.2 PRF without a label gave %x", out)
		}
	}
	got := l.with("agree", "secret", map[string][]byte{"salt": salt, "info": info, "length": []byte("77"), "peer": peer})
	compare("in a slot", got, openssl(policy, salt, info, 77))
}

// opensslKDF derives from a secret with OpenSSL.
func (l *line) opensslKDF(kdf psa.Algorithm, secret, salt, info []byte, length int) []byte {
	l.t.Helper()
	h, _ := kdf.CryptoHash()
	args := []string{"kdf", "-binary", "-keylen", fmt.Sprint(length), "-kdfopt", "digest:" + opensslHash(h)}
	if kdf == psa.HKDF(kdf.Hash()) {
		args = append(args, "-kdfopt", "hexkey:"+hex.EncodeToString(secret), "-kdfopt", "hexsalt:"+hex.EncodeToString(salt),
			"-kdfopt", "hexinfo:"+hex.EncodeToString(info), "HKDF")
	} else {
		args = append(args, "-kdfopt", "hexsecret:"+hex.EncodeToString(secret), "-kdfopt", "hexseed:"+hex.EncodeToString(append(bytes.Clone(info), salt...)), "TLS1-PRF")
	}
	return l.run(nil, "openssl", args...)
}

// derivesFrom derives from the key, against OpenSSL where it is known, and twice the same.
func (l *line) derivesFrom(key []byte) {
	l.t.Helper()
	inputs := map[string][]byte{"salt": []byte("a salt"), "info": []byte("a label"), "length": []byte("77")}
	got := l.with("derive", "secret", inputs)
	want := l.with("derive", "secret", inputs)
	if key != nil {
		want = l.opensslKDF(l.Algorithm, key, inputs["salt"], inputs["info"], 77)
	}
	if !bytes.Equal(got, want) || len(got) != 77 {
		l.t.Errorf("derived %x, want %x", got, want)
	}
	if l.Algorithm == psa.HKDF(l.Algorithm.Hash()) {
		if got := l.ask("derive", []byte("a label")); key != nil && !bytes.Equal(got, l.opensslKDF(l.Algorithm, key, nil, []byte("a label"), l.Algorithm.HashLength())) {
			l.t.Errorf("without salt it derived %x", got)
		}
	}
}

// otherForms holds public.ssh and public.jwk against the key.
func (l *line) otherForms(der []byte) {
	l.t.Helper()
	if l.postQuantum() {
		for _, name := range []string{"public.ssh", "public.jwk"} {
			if _, err := os.Stat(l.path(name)); !errors.Is(err, os.ErrNotExist) {
				l.t.Errorf("%s of a key that it does not know: %v", name, err)
			}
		}
		return
	}
	want, err := x509.ParsePKIXPublicKey(der)
	raw := psa.IsRawKey(l.Type, l.Bits)
	if !raw {
		l.must(err)
	}
	unknown := l.Type.Family() == psa.SECPR1 && l.Bits == 224 || l.Type.Family() == psa.BrainpoolPR1
	b, err := os.ReadFile(l.path("public.ssh"))
	if unknown || raw || l.Type.Family() == psa.Montgomery {
		if !errors.Is(err, os.ErrNotExist) {
			l.t.Errorf("public.ssh of a key that SSH does not know: %v", err)
		}
	} else {
		l.must(err)
		key, comment, _, rest, err := ssh.ParseAuthorizedKey(b)
		l.must(err)
		got := key.(ssh.CryptoPublicKey).CryptoPublicKey()
		if !want.(interface{ Equal(crypto.PublicKey) bool }).Equal(got) || comment != filepath.Base(l.dir) || len(rest) > 0 {
			l.t.Errorf("public.ssh is %q", b)
		}
	}
	b, err = os.ReadFile(l.path("public.jwk"))
	if unknown {
		if !errors.Is(err, os.ErrNotExist) {
			l.t.Errorf("public.jwk of a key that JWK does not know: %v", err)
		}
		return
	}
	l.must(err)
	var jwk map[string]string
	l.must(json.Unmarshal(b, &jwk))
	var x []byte
	for _, member := range []string{"n", "x", "y"} {
		part, err := base64.RawURLEncoding.DecodeString(jwk[member])
		l.must(err)
		x = append(x, part...)
	}
	if len(x) < 32 || !bytes.Contains(der, x) || jwk["kty"] == "" || len(jwk["kid"]) != 43 {
		l.t.Errorf("public.jwk is %s", b)
	}
	attributes, err := os.ReadFile(l.path("attributes"))
	l.must(err)
	if !bytes.Contains(attributes, []byte(jwk["kid"])) {
		l.t.Errorf("attributes have not the kid %s", jwk["kid"])
	}
}

// requests asks for a certificate request, which OpenSSL judges.
func (l *line) requests() {
	l.t.Helper()
	asked := "CN=web\\, the first,OU=a+OU=b,O=Example,C=DE\nDNS:web.example.org\nIP:127.0.0.1\nIP:::1\nURI:https://example.org/web\nemail:web@example.org\n"
	csr := l.file("csr", l.ask("csr", []byte(asked)))
	l.openssl("req", "-in", csr, "-verify", "-noout")
	if key := l.run(nil, "openssl", "req", "-in", csr, "-pubkey", "-noout"); !bytes.Equal(key, l.run(nil, "openssl", "pkey", "-pubin", "-in", l.public())) {
		l.t.Errorf("the request is for another key:\n%s", key)
	}
	text := string(l.run(nil, "openssl", "req", "-in", csr, "-noout", "-text", "-nameopt", "RFC2253"))
	for _, want := range []string{`CN=web\, the first`, "O=Example,C=DE", "DNS:web.example.org", "IP Address:127.0.0.1",
		"IP Address:0:0:0:0:0:0:0:1", "URI:https://example.org/web", "email:web@example.org"} {
		if !strings.Contains(text, want) {
			l.t.Errorf("the request lacks %q:\n%s", want, text)
		}
	}
	for _, bad := range []string{"", "\n", "CN", "CN=web\nexample.org", "CN=web\nIP:localhost", "XY=web", "CN="} {
		if csr, err := parsecfstest.Ask(l.path("csr"), []byte(bad)); err == nil || len(csr) > 0 {
			l.t.Errorf("of %q came the request %q", bad, csr)
		}
	}
}
