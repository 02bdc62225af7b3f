package rights

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// secret is a plaintext of whole blocks that nobody guesses.
func secret() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
}

// sealed is what the owner encrypted, cut into nonce, body and tag.
func (c *cell) sealed() (plaintext, nonce, body, tag []byte) {
	c.t.Helper()
	if c.made["sealed"] == nil {
		c.made["plaintext"] = secret()
		c.made["sealed"] = c.did(c.owner.ask(c.path("encrypt"), c.made["plaintext"]))
	}
	all, n := c.made["sealed"], c.attributes.Algorithm.NonceLength()
	end := len(all) - c.attributes.Algorithm.TagLength()
	return c.made["plaintext"], all[:n], all[n:end], all[end:]
}

// did is what the owner got.
func (c *cell) did(o outcome) []byte {
	c.t.Helper()
	if o.Errno != 0 {
		c.t.Fatalf("%s: the owner: %v", c.kind.name, o.Errno)
	}
	return o.Data
}

// repeatsNonce encrypts under the nonce that the owner's plaintext was encrypted under: the ciphertext of the ciphertext
// is the plaintext in modes that make a key stream, and that of a guess confirms it in others.
func (c *cell) repeatsNonce() {
	plaintext, nonce, body, _ := c.sealed()
	flipped := bytes.Clone(nonce)
	flipped[0] ^= 1
	for what, inputs := range map[string][]input{
		"a repeated nonce":               {{"nonce", nonce}, {"plaintext", body}},
		"a repeated nonce, written last": {{"plaintext", body}, {"nonce", nonce}},
		"after an empty one":             {{"nonce", nil}, {"plaintext", body}, {"nonce", nonce}},
		"with additional data":           {{"nonce", nonce}, {"additional_data", []byte("x")}, {"plaintext", body}},
		"a guess":                        {{"nonce", nonce}, {"plaintext", plaintext}},
		"a second message, whose tag with the first one's gives GCM's authentication key away": {{"nonce", nonce}, {"plaintext", secret()}},
		"another nonce": {{"nonce", flipped}, {"plaintext", body}},
		"a part of it":  {{"nonce", nonce[:7]}, {"plaintext", body}},
	} {
		o := c.thief.slot(c.path("encrypt"), inputs, "nonce", "ciphertext")
		got := o.Named["ciphertext"]
		switch {
		case bytes.HasPrefix(got, plaintext[:16]): // CFB needs a request for each block
			c.errorf("%s decrypted", what)
		case bytes.HasPrefix(got, body):
			c.errorf("%s confirmed a guess", what)
		default:
			c.refused(what, o, syscall.EACCES)
		}
	}
	// A nonce that is known before the plaintext is given would do as well.
	slot := c.path("encrypt.d/slot")
	c.thief.must(call{Verb: "mkdir", Path: slot})
	var told, used []byte
	for _, b := range []*[]byte{&told, &used} {
		c.thief.must(call{Verb: "write", Path: slot + "/plaintext", Data: body})
		*b = c.did(c.thief.does(call{Verb: "read", Path: slot + "/nonce"}))
	}
	c.thief.must(call{Verb: "rmdir", Path: slot})
	if bytes.Equal(told, used) || bytes.Equal(told, nonce) {
		c.errorf("a nonce was used twice")
	}
}

// encryptsTwice hopes that a cipher undoes itself.
func (c *cell) encryptsTwice() {
	plaintext, _, body, _ := c.sealed()
	if o := c.thief.ask(c.path("encrypt"), body); bytes.HasPrefix(o.Data, plaintext) {
		c.errorf("encrypting twice decrypted")
	}
	if o := c.thief.slot(c.path("encrypt"), []input{{"plaintext", body}, {"additional_data", body}}, "ciphertext"); bytes.HasPrefix(o.Named["ciphertext"], plaintext) {
		c.errorf("encrypting twice decrypted")
	}
}

// decryptsPlaintext hopes that what a plaintext decrypts to is its ciphertext.
func (c *cell) decryptsPlaintext() {
	_, nonce, _, _ := c.sealed()
	wanted := secret()
	made := c.thief.ask(c.path("decrypt"), nonce, wanted).Data
	if got := c.owner.ask(c.path("decrypt"), nonce, made).Data; bytes.Equal(got, wanted) {
		c.errorf("decrypting encrypted")
	}
}

// forges makes ciphertexts out of one whose plaintext it knows.
func (c *cell) forges() {
	plaintext, nonce, body, tag := c.sealed()
	changed := bytes.Clone(body)
	changed[0] ^= 1
	for what, in := range map[string][][]byte{
		"a changed ciphertext":       {nonce, changed, tag},
		"a plaintext without a tag":  {nonce, plaintext, make([]byte, len(tag))},
		"a ciphertext that was cut":  {nonce, body[:16], tag},
		"a ciphertext without a tag": {nonce, body},
	} {
		o := c.thief.ask(c.path("decrypt"), in...)
		c.refused(what, o, syscall.EBADMSG)
		if len(o.Data) > 0 {
			c.errorf("%s decrypted to %x", what, o.Data)
		}
	}
}

// guessesMAC is what remains to who can only verify.
func (c *cell) guessesMAC() {
	for range 32 {
		mac := secret()[:c.attributes.Algorithm.MACLength()]
		c.refused("a guess", c.thief.ask(c.path("verify_mac"), mac, []byte("a message")), syscall.EBADMSG)
	}
	c.refused("no MAC", c.thief.slot(c.path("verify_mac"), []input{{"message", []byte("a message")}}, "result"), syscall.ENODATA)
	c.refused("a part of one", c.thief.slot(c.path("verify_mac"), []input{{"mac", []byte{0}}, {"message", []byte("a message")}}, "result"), syscall.EBADMSG)
}

// signsHash hands a digest to who signs messages.
func (c *cell) signsHash() {
	digest := sha256.Sum256([]byte("what nobody may sign"))
	signature := c.thief.ask(c.path(c.from), digest[:])
	if signature.Errno != 0 {
		c.errorf("sign: %v", signature.Errno)
	}
	c.refused("the digest as a message", c.owner.ask(c.path("verify_hash"), signature.Data, digest[:]), syscall.EBADMSG)
}

// signsByRequest takes the signature out of a certificate request whose subject it chose.
func (c *cell) signsByRequest() {
	const text = "CN=what nobody may sign"
	for _, subject := range []string{text, text + "\nDNS:example.org", "\nURI:urn:" + strings.ReplaceAll(text, " ", "")} {
		o := c.thief.ask(c.path("csr"), []byte(subject))
		block, _ := pem.Decode(o.Data)
		if o.Errno != 0 || block == nil {
			c.errorf("csr: %v, %q", o.Errno, o.Data)
			return
		}
		r, err := x509.ParseCertificateRequest(block.Bytes)
		if err != nil {
			c.errorf("csr: %v", err)
			return
		}
		digest := sha256.Sum256([]byte(text))
		for _, message := range [][]byte{[]byte(subject), []byte(text), r.RawSubject, digest[:]} {
			c.refused("a request's signature", c.owner.ask(c.path("verify"), r.Signature, message), syscall.EBADMSG)
		}
		if c.attributes.Algorithm.IsHashAndSign() {
			c.refused("a request's signature", c.owner.ask(c.path("verify_hash"), r.Signature, digest[:]), syscall.EBADMSG)
		}
	}
}

// encapsulatesAgain hopes for a secret that was given out before.
func (c *cell) encapsulatesAgain() {
	before := c.did(c.owner.ask(c.path("encapsulate")))
	o := c.thief.ask(c.path("encapsulate"))
	if bytes.Equal(o.Data, before) || len(before) < 32 || bytes.Contains(o.Data, before[len(before)-32:]) {
		c.errorf("the same secret")
	}
	c.refused("a ciphertext as input", c.thief.ask(c.path("encapsulate"), before[:len(before)-32]), syscall.EINVAL)
}

// peer is a public key of the key's own kind: its own, so that there is nothing else to make.
func (c *cell) peer() []byte {
	c.t.Helper()
	if c.made["peer"] == nil {
		if c.made["peer"] = []byte{}; c.from == "agree" {
			template, _, _ := strings.Cut(c.kind.name, "-hkdf")
			template, _, _ = strings.Cut(template, "-tls12")
			name := c.name + "-peer"
			c.makeDraft(name, "")
			c.owner.must(call{Verb: "write", Path: filepath.Join(c.keys, name, "generate"), Data: []byte(template + "\n")})
			c.made["peer"] = c.owner.must(call{Verb: "read", Path: filepath.Join(c.keys, name, "public.pem")}).Data
			own := c.did(c.owner.does(call{Verb: "read", Path: c.path("public.pem")}))
			c.made["raw"] = c.did(c.owner.ask(filepath.Join(c.keys, name, "agree"), own))
		}
	}
	return c.made["peer"]
}

// secretInputs are those of a slot of agree or derive that gives a secret.
func (c *cell) secretInputs() []input {
	c.t.Helper()
	list := []input{{"salt", []byte("a seed")}, {"info", []byte("a label")}}
	if c.from != "agree" {
		return list
	}
	if c.attributes.Algorithm.Derivation() == psa.AlgNone {
		list = append(list, input{"kdf", []byte("hkdf-sha256")})
	}
	return append(list, input{"peer", c.peer()})
}

// stores names a draft of the owner's for a secret to become its key.
func (c *cell) stores() {
	c.drafts++
	name := fmt.Sprint(c.name, "-draft", c.drafts)
	c.makeDraft(name, "template = \"hmac-sha256\"\n")
	// attributes too are another right than import's
	c.owner.must(call{Verb: "chmod", Path: filepath.Join(c.keys, name, "attributes"), Flags: 0o606})
	for _, word := range []string{name, name + "\n"} {
		c.refused("store", c.thief.slot(c.path(c.from), append(c.secretInputs(), input{"store", []byte(word)}), "secret"), syscall.EACCES)
	}
	c.isDraft(name)
	// It is the store that is refused.
	if o := c.thief.slot(c.path(c.from), c.secretInputs(), "secret"); o.Errno != 0 || len(o.Named["secret"]) == 0 {
		c.errorf("without a store: %v", o.Errno)
	}
}

// isDraft looks whether somebody made a key of a draft.
func (c *cell) isDraft(name string) {
	c.t.Helper()
	text := c.owner.must(call{Verb: "read", Path: filepath.Join(c.keys, name, "attributes")}).Data
	if !bytes.Contains(text, []byte("state = 'draft'")) {
		c.errorf("the draft is a key:\n%s", text)
	}
}

// namesDerivation asks for the secret as it is, or through another derivation than the policy's.
func (c *cell) namesDerivation() {
	if c.from == "derive" { // has no word for it
		c.refused("kdf", c.thief.slot(c.path("derive"), append(c.secretInputs(), input{"kdf", []byte("hkdf-sha512")}), "secret"), syscall.ENOENT, syscall.EACCES, syscall.EPERM)
		return
	}
	inputs := c.secretInputs()
	if o := c.thief.slot(c.path("agree"), inputs, "secret"); o.Errno != 0 || bytes.Equal(o.Named["secret"], c.made["raw"]) {
		c.errorf("the policy's own derivation: %v", o.Errno)
	}
	for _, word := range []string{"hkdf-sha512", "tls12-prf-sha384", "PSA_ALG_ECDH", "PSA_ALG_NONE", "0", "raw", "PSA_ALG_HKDF(PSA_ALG_SHA_512)", "PSA_ALG_SHA_256"} {
		o := c.thief.slot(c.path("agree"), append(inputs, input{"kdf", []byte(word)}), "secret")
		c.refused("kdf "+word, o, syscall.EACCES, syscall.EINVAL, syscall.EOPNOTSUPP)
	}
	for _, word := range []string{"", " ", "\n"} {
		if o := c.thief.slot(c.path("agree"), append(inputs, input{"kdf", []byte(word)}), "secret"); bytes.Equal(o.Named["secret"], c.made["raw"]) {
			c.errorf("kdf %q: the raw secret", word)
		}
	}
	for _, in := range []input{{"length", []byte("0")}, {"length", []byte("-1")}} {
		c.refused("length "+string(in.Data), c.thief.slot(c.path("agree"), append(inputs, in), "secret"), syscall.EINVAL)
	}
	if o := c.thief.ask(c.path("agree"), c.peer()); bytes.Equal(o.Data, c.made["raw"]) {
		c.errorf("the raw secret")
	}
}

// decidesInAttributes writes what is the owner's to decide where it may write.
func (c *cell) decidesInAttributes() {
	before := c.did(c.owner.does(call{Verb: "read", Path: c.path("attributes")}))
	line := c.to
	// The text that was read, with the one line changed.
	name, _, _ := strings.Cut(line, "=")
	text := line + "\n"
	for old := range strings.Lines(string(before)) {
		if !strings.HasPrefix(old, name) {
			text += old
		}
	}
	for _, text := range []string{line + "\n", text} {
		c.refused("writing", c.thief.does(call{Verb: "write", Path: c.path("attributes"), Data: []byte(text)}), syscall.EPERM)
	}
	// Nothing of a text that is refused takes effect, whatever stands beside it.
	c.refused("writing more", c.thief.does(call{Verb: "write", Path: c.path("attributes"), Data: []byte("template = \"aes-256-ctr\"\n" + line + "\n")}), syscall.EPERM)
	if after := c.did(c.owner.does(call{Verb: "read", Path: c.path("attributes")})); !bytes.Equal(before, after) {
		c.errorf("attributes are\n%s", after)
	}
}

// changesPolicy writes another policy for a key.
func (c *cell) changesPolicy() {
	before := c.did(c.owner.does(call{Verb: "read", Path: c.path("attributes")}))
	for _, text := range []string{"usage = [\"PSA_KEY_USAGE_CACHE\"]\n", "usage = \"0\"\n", "permitted_algorithm = \"PSA_ALG_STREAM_CIPHER\"\n", "template = \"aes-256-ofb\"\n", "key_bits = 8\n", "key_type = \"PSA_KEY_TYPE_ARIA\"\n", "pcrs = [1]\n"} {
		c.refused(text, c.thief.does(call{Verb: "write", Path: c.path("attributes"), Data: []byte(text)}), syscall.EACCES)
	}
	if after := c.did(c.owner.does(call{Verb: "read", Path: c.path("attributes")})); !bytes.Equal(before, after) {
		c.errorf("attributes are\n%s", after)
	}
}

// victim is another draft of the owner's, with the cell's one right.
func (c *cell) victim() string {
	c.t.Helper()
	c.drafts++
	name := fmt.Sprint(c.name, "-draft", c.drafts)
	c.makeDraft(name, c.kind.attributes)
	for _, file := range c.files {
		mode := 0o600
		if file == c.from {
			mode = 0o606
		}
		c.owner.must(call{Verb: "chmod", Path: filepath.Join(c.keys, name, file), Flags: mode})
	}
	return name
}

// decidesInGenerate makes a key, and decides what is its owner's to decide on the way.
func (c *cell) decidesInGenerate() {
	line := c.to
	name := c.victim()
	for _, text := range []string{line + "\n", "template = \"aes-128-gcm\"\n" + line + "\n"} {
		c.refused("generate", c.thief.does(call{Verb: "write", Path: filepath.Join(c.keys, name, "generate"), Data: []byte(text)}), syscall.EPERM)
	}
	c.isDraft(name)
}

// decidesByCopy fills a draft with a key of its own for which all is decided.
func (c *cell) decidesByCopy() {
	name, source := c.victim(), c.name+"-source"
	if c.made["source"] == nil {
		c.made["source"] = []byte(source)
		c.thief.must(call{Verb: "mkdir", Path: filepath.Join(c.keys, source)})
		c.thief.must(call{Verb: "write", Path: filepath.Join(c.keys, source, "generate"), Data: []byte("template = \"aes-128-gcm\"\nusage = [\"PSA_KEY_USAGE_ENCRYPT\", \"PSA_KEY_USAGE_COPY\"]\ncaller_nonce = true\nunits = []\nallow_destroy = false\n")})
	}
	c.thief.must(call{Verb: "write", Path: filepath.Join(c.keys, name, "copy"), Data: []byte(source + "\n")})
	text := string(c.owner.must(call{Verb: "read", Path: filepath.Join(c.keys, name, "attributes")}).Data)
	for _, want := range []string{"state = 'ready'", "allow_destroy = true", "caller_nonce = false"} {
		if !strings.Contains(text, want) || strings.Contains(text, "units") {
			c.errorf("the copy's attributes are\n%s", text)
		}
	}
}

// fillsByGenerate brings a key's bytes, or the name of one, where only a template goes.
func (c *cell) fillsByGenerate() {
	name := c.victim()
	c.thief.does(call{Verb: "write", Path: filepath.Join(c.own(), "attributes"), Data: []byte("template = \"aes-128-gcm\"\n")})
	for _, text := range []string{filepath.Base(c.own()) + "\n", "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n", string(make([]byte, 16)) + "\n", "material = \"00\"\n", "origin = \"imported\"\nmaterial = \"00\"\n"} {
		c.refused("generate", c.thief.does(call{Verb: "write", Path: filepath.Join(c.keys, name, "generate"), Data: []byte(text)}), syscall.EINVAL)
	}
	c.isDraft(name)
}

// copiesByImport names keys, of this provider and of its device, where only a key's bytes go.
func (c *cell) copiesByImport() {
	name := c.victim()
	for _, text := range []string{"id=00\n", "object=" + c.name + "\n", "handle=0x81000001\n"} {
		c.refused("import", c.thief.does(call{Verb: "write", Path: filepath.Join(c.keys, name, "import"), Data: []byte(text)}), syscall.EPERM, syscall.EACCES, syscall.EINVAL, syscall.EOPNOTSUPP)
	}
	c.isDraft(name)
}
