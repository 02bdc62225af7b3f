// Package differential compares how key files, certificates and requests are read here with how OpenSSL reads them.
package differential

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/pki"
	"github.com/parsecfs/parsecfs/providers/software"
)

// seed chooses the inputs and what is done to them; the keys are new ones each time.
func seed() uint64 {
	if n, err := strconv.ParseUint(os.Getenv("PARSECFS_TEST_SEED"), 10, 64); err == nil {
		return n
	}
	return 16
}

//go:embed testdata/differences.txt
var differencesText string

// difference is a line of testdata/differences.txt.
type difference struct {
	side string // "refused" here and taken by OpenSSL, or "taken" here and refused by OpenSSL
	what *regexp.Regexp
	why  string
	used int
}

func readDifferences(t *testing.T) (list []*difference) {
	t.Helper()
	for line := range strings.Lines(differencesText) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		parts := strings.Split(line, "\t")
		if len(parts) != 3 {
			t.Fatalf("testdata/differences.txt: %q has not three parts", line)
		}
		list = append(list, &difference{side: parts[0], what: regexp.MustCompile(parts[1]), why: parts[2]})
	}
	return list
}

// input is a file, and what it was before something happened to it.
type input struct {
	Name string `json:"name"`
	Kind string `json:"kind"` // private, public, certificate
	Data []byte `json:"data"`
	done string // the mutation
	spki []byte // of a certificate: its key
}

var once struct {
	sync.Mutex
	all []input
}

// generated are files as programs write them, the same ones for all tests.
func generated(t *testing.T) []input {
	t.Helper()
	once.Lock()
	defer once.Unlock()
	if once.all == nil {
		once.all = generate(t)
	}
	return once.all
}

func generate(t *testing.T) (all []input) {
	t.Helper()
	var wait sync.WaitGroup
	var mu sync.Mutex
	add := func(made ...input) {
		mu.Lock()
		defer mu.Unlock()
		all = append(all, made...)
	}
	for _, make := range []func(*testing.T) []input{
		func(t *testing.T) []input { return lines(t, "python3", "testdata/generate.py") },
		func(t *testing.T) []input { return lines(t, "node", "testdata/generate.js") },
		fromOpenSSL, fromSSHKeygen, fromKeytool,
	} {
		wait.Go(func() { add(make(t)...) })
	}
	wait.Wait()
	slices.SortFunc(all, func(a, b input) int { return strings.Compare(a.Name, b.Name) })
	for i := range all {
		if all[i].Kind == "certificate" {
			block, _ := pem.Decode(all[i].Data)
			if block == nil {
				t.Fatalf("%s holds no certificate", all[i].Name)
			}
			c, err := x509.ParseCertificate(block.Bytes)
			if err == nil {
				all[i].spki = c.RawSubjectPublicKeyInfo
			}
		}
	}
	return all
}

// lines are the files that a script makes, a JSON object a line; none where there is no such program.
func lines(t *testing.T, program string, args ...string) (made []input) {
	if _, err := exec.LookPath(program); err != nil {
		t.Logf("without %s", program)
		return nil
	}
	out, err := exec.Command(program, args...).Output()
	if err != nil {
		var e *exec.ExitError
		_ = errors.As(err, &e)
		t.Errorf("%s: %v: %s", program, err, e.Stderr)
		return nil
	}
	for line := range bytes.Lines(out) {
		var in input
		if err := json.Unmarshal(line, &in); err != nil {
			t.Errorf("%s: %v", program, err)
		}
		made = append(made, in)
	}
	return made
}

func run(stdin []byte, program string, args ...string) ([]byte, error) {
	cmd := exec.Command(program, args...)
	cmd.Stdin = bytes.NewReader(stdin)
	return cmd.Output()
}

// fromOpenSSL are keys in all the forms that OpenSSL writes.
func fromOpenSSL(t *testing.T) (made []input) {
	add := func(kind, name string, b []byte, err error) {
		if err != nil {
			t.Errorf("openssl %s: %v", name, err)
			return
		}
		made = append(made, input{Name: "openssl " + name, Kind: kind, Data: b})
	}
	common := []string{
		"RSA -pkeyopt rsa_keygen_bits:2048", "RSA-PSS -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_pss_keygen_md:sha256", "EC -pkeyopt ec_paramgen_curve:P-256",
		"EC -pkeyopt ec_paramgen_curve:secp256k1", "ED25519", "X25519",
	}
	others := []string{
		"RSA -pkeyopt rsa_keygen_bits:1536", "RSA -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_keygen_primes:3",
		"RSA-PSS -pkeyopt rsa_keygen_bits:2048",
		"RSA-PSS -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_pss_keygen_md:sha384 -pkeyopt rsa_pss_keygen_mgf1_md:sha384 -pkeyopt rsa_pss_keygen_saltlen:48",
		"RSA-PSS -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_pss_keygen_md:sha256 -pkeyopt rsa_pss_keygen_mgf1_md:sha1",
		"RSA-PSS -pkeyopt rsa_keygen_bits:2048 -pkeyopt rsa_pss_keygen_md:sha256 -pkeyopt rsa_pss_keygen_saltlen:64",
		"EC -pkeyopt ec_paramgen_curve:P-384", "EC -pkeyopt ec_paramgen_curve:P-224", "EC -pkeyopt ec_paramgen_curve:P-521",
		"EC -pkeyopt ec_paramgen_curve:P-192", "EC -pkeyopt ec_paramgen_curve:brainpoolP256r1",
		"EC -pkeyopt ec_paramgen_curve:brainpoolP320r1", "EC -pkeyopt ec_paramgen_curve:sect233r1",
		"EC -pkeyopt ec_paramgen_curve:P-256 -pkeyopt ec_param_enc:explicit",
		"ED448", "X448", "DH -pkeyopt group:ffdhe2048",
	}
	if long() {
		common = append(common, others...)
	}
	for _, args := range common {
		key, err := run(nil, "openssl", append([]string{"genpkey", "-quiet", "-algorithm"}, strings.Fields(args)...)...)
		if err != nil { // 3.0 has no -quiet
			key, err = run(nil, "openssl", append([]string{"genpkey", "-algorithm"}, strings.Fields(args)...)...)
		}
		add("private", args, key, err)
		more := func(kind, what string, args2 ...string) {
			b, err := run(key, "openssl", args2...)
			add(kind, args+" "+what, b, err)
		}
		more("private", "DER", "pkey", "-outform", "DER")
		more("private", "text", "pkey", "-text")
		more("private", "encrypted", "pkey", "-aes128", "-passout", "pass:secret")
		more("public", "public", "pkey", "-pubout")
		more("public", "public DER", "pkey", "-pubout", "-outform", "DER")
		if strings.HasPrefix(args, "EC ") || args == "RSA -pkeyopt rsa_keygen_bits:2048" {
			more("private", "traditional", "pkey", "-traditional")
			more("private", "traditional encrypted", "pkey", "-traditional", "-aes128", "-passout", "pass:secret")
		}
		if strings.HasPrefix(args, "EC ") {
			more("private", "compressed", "ec", "-conv_form", "compressed")
			more("private", "hybrid", "ec", "-conv_form", "hybrid")
			more("private", "no public key", "ec", "-no_public")
			more("public", "public compressed", "ec", "-pubout", "-conv_form", "compressed")
		}
		if strings.HasPrefix(args, "RSA ") {
			more("public", "RSAPublicKey", "rsa", "-RSAPublicKey_out")
		}
		if strings.HasPrefix(args, "X") || strings.HasPrefix(args, "DH") {
			continue
		}
		dir := t.TempDir()
		file := filepath.Join(dir, "key")
		if err := os.WriteFile(file, key, 0o600); err != nil {
			t.Error(err)
			return made
		}
		for _, form := range []string{"", "-text"} {
			more := []string{"req", "-x509", "-key", file, "-subj", "/CN=a/O=b", "-addext", "subjectAltName=DNS:a.example"}
			b, err := run(nil, "openssl", append(more, strings.Fields(form)...)...)
			if err != nil && strings.Contains(args, "PSS") {
				continue // its parameters fit no signature of req's
			}
			add("certificate", args+" certificate"+form, b, err)
			if len(made) > 0 && form == "" {
				add("certificate", args+" chain", append(bytes.Clone(b), made[len(made)-1].Data...), nil)
			}
		}
		if strings.HasPrefix(args, "EC -pkeyopt ec_paramgen_curve:P-256") {
			cert, _ := run(nil, "openssl", "req", "-x509", "-key", file, "-subj", "/CN=a")
			p12, err := run(append(bytes.Clone(key), cert...), "openssl", "pkcs12", "-export", "-name", "König", "-passout", "pass:")
			add("private", args+" PKCS #12", p12, err)
			bag, err := run(p12, "openssl", "pkcs12", "-nodes", "-passin", "pass:")
			add("private", args+" out of PKCS #12", bag, err)
		}
	}
	return made
}

// fromSSHKeygen are keys in OpenSSH's forms.
func fromSSHKeygen(t *testing.T) (made []input) {
	dir := t.TempDir()
	common := []string{"-t rsa -b 1024", "-t ecdsa -b 256", "-t ed25519", "-t ecdsa -b 384 -m PEM", "-t ed25519 -N secret -a 1"}
	if long() {
		common = append(common, "-t rsa -b 2048", "-t ecdsa -b 384", "-t ecdsa -b 521", "-t rsa -b 2048 -m PEM", "-t rsa -b 2048 -m PKCS8",
			"-t ecdsa -b 256 -m PKCS8",
			"-t ecdsa -b 256 -m PEM")
	}
	for i, args := range common {
		file := filepath.Join(dir, fmt.Sprint(i))
		words := append([]string{"-q", "-f", file, "-C", "a comment"}, strings.Fields(args)...)
		if !strings.Contains(args, "-N") {
			words = append(words, "-N", "")
		}
		if out, err := exec.Command("ssh-keygen", words...).CombinedOutput(); err != nil {
			t.Errorf("ssh-keygen %s: %v: %s", args, err, out)
			continue
		}
		for suffix, kind := range map[string]string{"": "private", ".pub": "public"} {
			b, err := os.ReadFile(file + suffix)
			if err != nil {
				t.Error(err)
			}
			made = append(made, input{Name: "ssh-keygen " + args + suffix, Kind: kind, Data: b})
		}
		for _, form := range []string{"PKCS8", "PEM", "RFC4716"} {
			if b, err := exec.Command("ssh-keygen", "-e", "-m", form, "-f", file+".pub").Output(); err == nil {
				made = append(made, input{Name: "ssh-keygen " + args + " -e " + form, Kind: "public", Data: b})
			}
		}
	}
	return made
}

// fromKeytool are the keys, certificates and dumps of a Java keystore.
func fromKeytool(t *testing.T) (made []input) {
	if _, err := exec.LookPath("keytool"); err != nil || !long() { // a Java machine starts for each call
		t.Log("without keytool")
		return nil
	}
	store := filepath.Join(t.TempDir(), "store.p12")
	common := []string{"-keystore", store, "-storepass", "secret", "-storetype", "PKCS12", "-J-Xshare:auto", "-J-XX:TieredStopAtLevel=1"}
	keytool := func(args ...string) []byte {
		out, err := exec.Command("keytool", append(args, common...)...).Output()
		if err != nil {
			t.Errorf("keytool %v: %v", args, err)
		}
		return out
	}
	keytool("-genkeypair", "-alias", "a", "-dname", "CN=a", "-keyalg", "EC", "-groupname", "secp256r1")
	made = append(made, input{Name: "keytool -exportcert", Kind: "certificate", Data: keytool("-exportcert", "-rfc", "-alias", "a")},
		input{Name: "keytool -list", Kind: "certificate", Data: keytool("-list", "-rfc")})
	p12, err := os.ReadFile(store)
	if err != nil {
		t.Error(err)
		return made
	}
	made = append(made, input{Name: "keytool PKCS12", Kind: "private", Data: p12})
	if bag, err := run(p12, "openssl", "pkcs12", "-nodes", "-passin", "pass:secret"); err == nil {
		made = append(made, input{Name: "keytool PKCS12 by openssl", Kind: "private", Data: bag})
	}
	return made
}

// mutation makes another file of one; nil where it does not apply.
type mutation struct {
	name string
	make func(r *mathrand.Rand, b, other []byte) []byte
}

// ofText is a mutation of PEM alone.
func ofText(f func(r *mathrand.Rand, s, other string) string) func(*mathrand.Rand, []byte, []byte) []byte {
	return func(r *mathrand.Rand, b, other []byte) []byte {
		if !bytes.Contains(b, []byte("-----BEGIN")) {
			return nil
		}
		return []byte(f(r, string(b), string(other)))
	}
}

// inDER changes the DER, in the first PEM block if it is in one.
func inDER(f func(r *mathrand.Rand, der []byte) []byte) func(*mathrand.Rand, []byte, []byte) []byte {
	return func(r *mathrand.Rand, b, _ []byte) []byte {
		block, rest := pem.Decode(b)
		switch {
		case block == nil && len(b) > 0 && b[0] == 0x30:
			return f(r, bytes.Clone(b))
		case block == nil || len(block.Headers) > 0:
			return nil
		}
		block.Bytes = f(r, block.Bytes)
		return append(pem.EncodeToMemory(block), rest...)
	}
}

func anyLine(r *mathrand.Rand, s string, f func(lines []string, i int) []string) string {
	lines := strings.SplitAfter(s, "\n")
	return strings.Join(f(lines, r.IntN(len(lines))), "")
}

func everyLine(s string, f func(line string) string) string {
	lines := strings.Split(strings.TrimSuffix(s, "\n"), "\n")
	for i := range lines {
		lines[i] = f(lines[i])
	}
	return strings.Join(lines, "\n") + "\n"
}

var mutations = []mutation{
	{"nothing", func(_ *mathrand.Rand, b, _ []byte) []byte { return b }},
	{"CRLF", ofText(func(_ *mathrand.Rand, s, _ string) string { return strings.ReplaceAll(s, "\n", "\r\n") })},
	{"CR", ofText(func(_ *mathrand.Rand, s, _ string) string { return strings.ReplaceAll(s, "\n", "\r") })},
	{"BOM", ofText(func(_ *mathrand.Rand, s, _ string) string { return "\xef\xbb\xbf" + s })},
	{"UTF-16", ofText(func(_ *mathrand.Rand, s, _ string) string {
		return "\xff\xfe" + strings.Join(strings.Split(s, ""), "\x00") + "\x00"
	})},
	{"text before", ofText(func(_ *mathrand.Rand, s, _ string) string { return "Bag Attributes\n    a: K\xf6nig\n" + s })},
	{"text after", ofText(func(_ *mathrand.Rand, s, _ string) string { return s + "a text: König\n" })},
	{"no last newline", ofText(func(_ *mathrand.Rand, s, _ string) string { return strings.TrimSpace(s) })},
	{"white space at line ends", ofText(func(_ *mathrand.Rand, s, _ string) string {
		return everyLine(s, func(l string) string { return l + " \t" })
	})},
	{"indented", ofText(func(_ *mathrand.Rand, s, _ string) string {
		return everyLine(s, func(l string) string { return "  " + l })
	})},
	{"quoted", ofText(func(_ *mathrand.Rand, s, _ string) string {
		return everyLine(s, func(l string) string { return "> " + l })
	})},
	{"blank lines between", ofText(func(_ *mathrand.Rand, s, _ string) string { return strings.ReplaceAll(s, "\n", "\n\n") })},
	{"blank line after BEGIN", ofText(func(_ *mathrand.Rand, s, _ string) string { return strings.Replace(s, "-----\n", "-----\n\n", 1) })},
	{"blank line before END", ofText(func(_ *mathrand.Rand, s, _ string) string { return strings.Replace(s, "\n-----END", "\n\n-----END", 1) })},
	{"a header", ofText(func(_ *mathrand.Rand, s, _ string) string {
		return strings.Replace(s, "-----\n", "-----\nComment: hi\n\n", 1)
	})},
	{"one line of base64", ofText(func(_ *mathrand.Rand, s, _ string) string {
		block, _ := pem.Decode([]byte(s))
		if block == nil || len(block.Headers) > 0 {
			return s
		}
		return "-----BEGIN " + block.Type + "-----\n" + base64.StdEncoding.EncodeToString(block.Bytes) + "\n-----END " + block.Type + "-----\n"
	})},
	{"lines of 76", ofText(func(_ *mathrand.Rand, s, _ string) string {
		block, _ := pem.Decode([]byte(s))
		if block == nil || len(block.Headers) > 0 {
			return s
		}
		text, out := base64.StdEncoding.EncodeToString(block.Bytes), ""
		for part := range slices.Chunk([]byte(text), 76) {
			out += string(part) + "\n"
		}
		return "-----BEGIN " + block.Type + "-----\n" + out + "-----END " + block.Type + "-----\n"
	})},
	{"line breaks lost", ofText(func(_ *mathrand.Rand, s, _ string) string { return strings.ReplaceAll(s, "\n", " ") })},
	{"a line lost", ofText(func(r *mathrand.Rand, s, _ string) string {
		return anyLine(r, s, func(l []string, i int) []string { return slices.Delete(l, i, i+1) })
	})},
	{"a line twice", ofText(func(r *mathrand.Rand, s, _ string) string {
		return anyLine(r, s, func(l []string, i int) []string { return slices.Insert(l, i, l[i]) })
	})},
	{"a line of garbage", ofText(func(r *mathrand.Rand, s, _ string) string {
		return anyLine(r, s, func(l []string, i int) []string { return slices.Insert(l, i, "!!!!\n") })
	})},
	{"a character changed", ofText(func(r *mathrand.Rand, s, _ string) string {
		b := []byte(s)
		b[r.IntN(len(b))] = "Az0+/=!-\n "[r.IntN(10)]
		return string(b)
	})},
	{"a character lost", ofText(func(r *mathrand.Rand, s, _ string) string { i := r.IntN(len(s)); return s[:i] + s[i+1:] })},
	{"a dash lost", ofText(func(r *mathrand.Rand, s, _ string) string {
		return strings.Replace(s, []string{"-----BEGIN", "-----END", "-----\n"}[r.IntN(3)],
			[]string{"----BEGIN", "----END", "----\n"}[r.IntN(3)], 1)
	})},
	{"cut off", func(r *mathrand.Rand, b, _ []byte) []byte { return b[:r.IntN(len(b))] }},
	{"begun late", func(r *mathrand.Rand, b, _ []byte) []byte { return b[r.IntN(len(b)):] }},
	{"another file behind it", ofText(func(_ *mathrand.Rand, s, other string) string { return s + other })},
	{"another file before it", ofText(func(_ *mathrand.Rand, s, other string) string { return other + s })},
	{"another file behind it, without a newline", ofText(func(_ *mathrand.Rand, s, other string) string { return strings.TrimSpace(s) + other })},
	{"a damaged file behind it", ofText(func(_ *mathrand.Rand, s, other string) string { return s + strings.Replace(other, "\n", "\n!", 1) })},
	{"another label", ofText(func(r *mathrand.Rand, s, _ string) string {
		label := []string{"PRIVATE KEY", "PUBLIC KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY", "CERTIFICATE", "ENCRYPTED PRIVATE KEY",
			"X"}[r.IntN(7)]
		return regexp.MustCompile(`-----(BEGIN|END) [A-Z ]+-----`).ReplaceAllString(s, "-----${1} "+label+"-----")
	})},
	{"a bit flipped", inDER(func(r *mathrand.Rand, der []byte) []byte { der[r.IntN(len(der))] ^= 1 << r.IntN(8); return der })},
	{"a byte inserted", inDER(func(r *mathrand.Rand, der []byte) []byte {
		return slices.Insert(der, r.IntN(len(der)), byte(r.Uint32()))
	})},
	{"a byte lost", inDER(func(r *mathrand.Rand, der []byte) []byte { i := r.IntN(len(der)); return slices.Delete(der, i, i+1) })},
	{"zeros behind the DER", inDER(func(_ *mathrand.Rand, der []byte) []byte { return append(der, 0, 0) })},
	{"DER cut off", inDER(func(r *mathrand.Rand, der []byte) []byte { return der[:r.IntN(len(der)-1)+1] })},
	{"out of its armour", func(_ *mathrand.Rand, b, _ []byte) []byte {
		if block, _ := pem.Decode(b); block != nil {
			return block.Bytes
		}
		return nil
	}},
}

// inputs are n files: first those that programs wrote, then mutations of them.
func inputs(t *testing.T, n int) []input {
	t.Helper()
	all := generated(t)
	r := mathrand.New(mathrand.NewPCG(seed(), 0))
	var list []input
	if n < 2*len(all) { // the short form
		for range n / 2 {
			in := all[r.IntN(len(all))]
			in.done = "nothing"
			list = append(list, in)
		}
	} else {
		for _, in := range all {
			in.done = "nothing"
			list = append(list, in)
		}
	}
	for i := 0; len(list) < n; i++ {
		in, other := all[r.IntN(len(all))], all[r.IntN(len(all))]
		m := mutations[1+i%(len(mutations)-1)]
		if in.done, in.Data = m.name, m.make(r, bytes.Clone(in.Data), other.Data); len(in.Data) > 0 {
			if strings.HasPrefix(in.done, "another file") || strings.HasPrefix(in.done, "a damaged file") {
				in.done += " (" + other.Name + ")"
			}
			list = append(list, in)
		}
	}
	return list
}

// verdict is what became of a file.
type verdict struct {
	public []byte // SubjectPublicKeyInfo; of a certificate its key
	what   string // the key's template, or why there is none
	err    error
	isPub  bool
}

// here reads a file as this program does: an import with one WRITE, or a chain of certificates.
func here(ctx context.Context, p providers.Provider, in input) (v verdict) {
	refused := func(err error) verdict { return verdict{err: err, what: err.Error()} }
	if in.Kind == "certificate" {
		chain, whole, err := pki.ParseChain(in.Data, in.spki)
		if err == nil && !whole {
			err = pki.NoChain(in.Data)
		}
		if err != nil {
			return refused(err)
		}
		block, _ := pem.Decode(chain)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return refused(err)
		}
		return verdict{public: c.RawSubjectPublicKeyInfo, what: "a chain"}
	}
	end, m, a, err := psa.ScanMaterial(in.Data, psa.Attributes{})
	if err == nil && end == 0 {
		err = psa.Sniff(in.Data, psa.Attributes{})
	}
	if err != nil {
		return refused(err)
	}
	defer m.Wipe()
	rest := psa.ScanBlank
	if psa.InPEM(in.Data[:end]) {
		rest = psa.ScanRest
	}
	left, err := rest(in.Data[end:])
	if err == nil && left > 0 {
		err = errors.New("a block follows that is not whole")
	}
	if err != nil {
		return refused(err)
	}
	h := providers.Handle{1}
	blob, err := p.Create(ctx, h, a, m)
	if err != nil {
		return refused(err)
	}
	return verdict{public: blob.Public, what: a.Template(), isPub: a.Type.IsPublicKey()}
}

// there reads it as OpenSSL does.
func there(file string, in input, isPub bool) (v verdict) {
	args := []string{"pkey", "-in", file, "-passin", "pass:", "-pubout", "-outform", "DER"}
	switch {
	case in.Kind == "certificate":
		args = []string{"x509", "-in", file, "-noout", "-pubkey"}
	case isPub || in.Kind == "public":
		args = append(args, "-pubin")
	}
	if in.Kind != "certificate" && (strings.Contains(in.Name, "compressed") || strings.Contains(in.Name, "hybrid")) {
		args = append(args, "-ec_conv_form", "uncompressed")
	}
	out, err := run(nil, "openssl", args...)
	if err != nil {
		var e *exec.ExitError
		if errors.As(err, &e) {
			err = fmt.Errorf("%w: %s", err, psa.OneLine(string(e.Stderr)))
		}
		return verdict{err: err}
	}
	if in.Kind == "certificate" {
		block, _ := pem.Decode(out)
		if block == nil {
			return verdict{err: errors.New("no public key")}
		}
		out = block.Bytes
	}
	return verdict{public: out}
}

// plain writes a public key as this program does, so that two can be compared; nil where it knows no such key.
func plain(spki []byte) []byte {
	_, m, _, err := psa.ScanMaterial(spki, psa.Attributes{})
	if err != nil {
		return nil
	}
	return m.Data
}

// samePublic compares two public keys; one that only OpenSSL can read is as it is.
func samePublic(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, y := plain(a), plain(b)
	return x != nil && bytes.Equal(x, y)
}

// long says whether the whole test runs.
func long() bool { return os.Getenv("PARSECFS_TEST_LONG") == "1" }

// TestFiles: what is a key or a chain here is the same one for OpenSSL, and what is none is none, but for the differences
// that testdata/differences.txt lists with their reasons.
func TestFiles(t *testing.T) {
	t.Parallel()
	n := 250
	if long() {
		n = 2400
	}
	p := provider(t)
	list, rules := inputs(t, n), readDifferences(t)
	dir := t.TempDir()
	var mu sync.Mutex
	var wait sync.WaitGroup
	counts := map[string]int{}
	next := make(chan int)
	for range runtime.NumCPU() {
		wait.Go(func() {
			for i := range next {
				in := list[i]
				file := filepath.Join(dir, fmt.Sprint(i))
				if err := os.WriteFile(file, in.Data, 0o600); err != nil {
					t.Error(err)
					return
				}
				ours := here(t.Context(), p, in)
				theirs := there(file, in, ours.isPub)
				_ = os.Remove(file)
				mu.Lock()
				what := compare(t, rules, in, ours, theirs)
				counts[what]++
				mu.Unlock()
			}
		})
	}
	for i := range list {
		next <- i
	}
	close(next)
	wait.Wait()
	t.Logf("%d inputs: %v", len(list), counts)
	for _, d := range rules {
		if d.used == 0 && long() && d.side != "request" {
			t.Logf("no input shows the difference %s, %s", d.side, d.what) // it may take a rare bit
		}
	}
}

// compare finds a difference's line in the list.
func compare(t *testing.T, rules []*difference, in input, ours, theirs verdict) string {
	side, which := "", fmt.Sprintf("%s | %s | %s", in.Name, in.done, ours.what)
	switch {
	case ours.err != nil && theirs.err != nil:
		return "both refuse"
	case ours.err == nil && theirs.err == nil && samePublic(ours.public, theirs.public):
		return "both take"
	case ours.err == nil && theirs.err == nil:
		side = "another key"
	case ours.err != nil && in.Kind == "certificate" && in.spki != nil && !bytes.Equal(theirs.public, in.spki):
		return "both say that it is for another key"
	case ours.err != nil:
		side = "refused"
	default:
		side = "taken"
	}
	for _, d := range rules {
		if d.side == side && d.what.MatchString(which) {
			d.used++
			return side + ": " + d.why
		}
	}
	t.Errorf("%s here: %s; OpenSSL: %v\n%s", side, which, theirs.err, base64.StdEncoding.EncodeToString(in.Data))
	return side + ", unlisted"
}

func provider(t *testing.T) providers.Provider {
	t.Helper()
	p, err := software.Type.New(t.Context(), providers.Config{Name: "software", StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

// TestMount: a file written to import in pieces of any size is the key that it is in one piece, or none.
func TestMount(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	n := 25
	if long() {
		n = 200
	}
	p := provider(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers/software/keys")
	r := mathrand.New(mathrand.NewPCG(seed(), 1))
	list := slices.DeleteFunc(inputs(t, 3*n), func(in input) bool { return in.Kind == "certificate" })
	for i, in := range list[:n] {
		dir := filepath.Join(keys, fmt.Sprint(i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		ours := here(t.Context(), p, in)
		err := writePieces(r, filepath.Join(dir, "import"), in.Data)
		which := fmt.Sprintf("%s | %s", in.Name, in.done)
		switch public, e := os.ReadFile(filepath.Join(dir, "public.der")); {
		case (ours.err == nil) != (err == nil):
			t.Errorf("%s: in one piece %v, through a mount %v", which, ours.err, err)
		case err == nil && (e != nil || !bytes.Equal(public, ours.public)):
			t.Errorf("%s: another key through a mount (%v)", which, e)
		}
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	}
}

// writePieces writes b in a few WRITEs; the first error is what the file says.
func writePieces(r *mathrand.Rand, name string, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for len(b) > 0 && err == nil {
		n := min(len(b), 600+r.IntN(len(b)))
		_, err = f.Write(b[:n])
		b = b[n:]
	}
	return errors.Join(err, f.Close())
}

// TestRequests: what is asked for in a request is what OpenSSL reads in it, and what is refused here is listed.
func TestRequests(t *testing.T) {
	t.Parallel()
	n := 50
	if long() {
		n = 400
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keyFile := filepath.Join(dir, "key")
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}), 0o600); err != nil {
		t.Fatal(err)
	}
	sign := func(_ context.Context, message []byte) ([]byte, error) {
		digest := sha256.Sum256(message)
		der, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
		if err != nil {
			return nil, err
		}
		return psa.ECDSADERToRaw(der, 256)
	}
	r := mathrand.New(mathrand.NewPCG(seed(), 2))
	rules := readDifferences(t)
	counts := map[string]int{}
	for range n {
		names := make([]string, 1+r.IntN(3))
		for i := range names {
			names[i] = someName(r)
		}
		slices.Sort(names)
		names = slices.Compact(names)
		subject := []string{"CN=a,O=b", "CN=" + strings.Repeat("x", 60+r.IntN(10)), "C=" + strings.Repeat("D", 1+r.IntN(3)),
			"CN=K\u00f6nig"}[r.IntN(4)]
		asked := subject + "\n" + strings.Join(names, "\n") + "\n"
		run := pki.RequestRun(spki, psa.ECDSA(psa.SHA256), sign)
		if _, err := run.Write([]byte(asked)); err != nil {
			t.Fatal(err)
		}
		result, err := run.Finish(t.Context())
		if err == nil {
			counts["taken"]++
			readBack(t, asked, names, result.Outputs["csr"])
			continue
		}
		if opensslRequest(keyFile, dir, subject, names) != nil {
			counts["both refuse"]++
			continue
		}
		why := "unlisted"
		for _, d := range rules {
			if d.side == "request" && d.what.MatchString(err.Error()) {
				why, d.used = d.why, d.used+1
				break
			}
		}
		if counts["refused: "+why]++; why == "unlisted" {
			t.Errorf("refused here, and OpenSSL makes it: %q: %v", asked, err)
		}
	}
	t.Logf("%d requests: %v", n, counts)
	for _, d := range rules {
		if d.side == "request" && d.used == 0 && long() {
			t.Errorf("no input shows the difference %s, %s", d.side, d.what)
		}
	}
}

// someName is an alternative name, often one that is none.
func someName(r *mathrand.Rand) string {
	hosts := []string{"a.example", "*.a.example", "xn--bcher-kva.example", "a", "1a.b", "a_b.example", "a..b", "-a.b", "a-.b", "http://x",
		"a b", "bücher.example",
		"a.example,DNS:b.example", strings.Repeat("a", 60+r.IntN(8)) + ".b", strings.Repeat("abc.", 61+r.IntN(4)) + "d", "127.0.0.1", "*", "a.*.b", "a."}
	host := hosts[r.IntN(len(hosts))]
	switch r.IntN(5) {
	case 0:
		return "IP:" + []string{"127.0.0.1", "::1", "2001:db8::a:1", "1.2.3", "localhost", "1.2.3.4/8", "fe80::1%eth0"}[r.IntN(7)]
	case 1:
		return "email:" + []string{"a@", "a.b@", "a b@", "a", "<a@"}[r.IntN(5)] + host
	case 2:
		return "URI:" + []string{"https://", "spiffe://", "urn:x:", "ldap://"}[r.IntN(4)] + host + []string{"", "/a?b", "/a b", "/%zz",
			":443/"}[r.IntN(5)]
	}
	return "DNS:" + host
}

// readBack wants OpenSSL to find the names in a request, and no others.
func readBack(t *testing.T, asked string, names []string, csr []byte) {
	t.Helper()
	out, err := run(csr, "openssl", "req", "-verify", "-noout", "-text")
	if err != nil {
		t.Errorf("%q: OpenSSL does not read the request: %v", asked, err)
		return
	}
	_, text, _ := strings.Cut(string(out), "Alternative Name:")
	_, text, _ = strings.Cut(text, "\n")
	text, _, _ = strings.Cut(text, "\n")
	found := strings.Split(strings.TrimSpace(text), ", ")
	if len(found) != len(names) {
		t.Errorf("%q: OpenSSL finds %q", asked, found)
		return
	}
	for i, name := range names {
		kind, value, _ := strings.Cut(name, ":")
		if kind == "IP" {
			continue // it is spelt in another way
		}
		if found[i] != kind+":"+value {
			t.Errorf("%q: OpenSSL finds %q", asked, found)
		}
	}
}

// opensslRequest asks OpenSSL for the same request.
func opensslRequest(key, dir, subject string, names []string) error {
	text := "[req]\nprompt = no\nutf8 = yes\ndistinguished_name = dn\nreq_extensions = ext\n[dn]\n" + strings.ReplaceAll(subject, ",",
		"\n") + "\n[ext]\nsubjectAltName = @alt\n[alt]\n"
	counts := map[string]int{}
	for _, name := range names {
		kind, value, _ := strings.Cut(name, ":")
		counts[kind]++
		text += fmt.Sprintf("%s.%d = %s\n", kind, counts[kind], value)
	}
	file := filepath.Join(dir, "config")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	_, err := run(nil, "openssl", "req", "-new", "-key", key, "-config", file)
	return err
}
