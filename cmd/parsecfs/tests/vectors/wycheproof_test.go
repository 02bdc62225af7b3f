package vectors

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// octets are bytes in hexadecimal, or PEM.
type octets []byte

func (o *octets) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return nil // a JSON object, in files that are not asked for it
	}
	v, err := hex.DecodeString(s)
	if err != nil {
		v = []byte(s)
	}
	*o = v
	return nil
}

// vectorGroup is a group of a Wycheproof file: what its tests share.
type vectorGroup struct {
	Type                     string
	Sha, Curve, Encoding     string
	KeySize, IvSize, TagSize int
	SLen                     int
	MgfSha                   string
	PublicKey                publicKey
	ParameterSet             string
	PublicKeyPem             string
	PublicKeyDer             octets
	PrivateKeyPem            string
	PrivateKeyPkcs8          octets
	Tests                    []vector
}

type vector struct {
	TcID                                   int
	Comment                                string
	Msg, Sig, Ct, Tag, Key, Iv, Aad, Label octets
	Public, Private, Shared                octets
	Seed, Ek, C, K, Ctx                    octets // of ML-KEM and ML-DSA
	Ikm, Salt, Info, Okm                   octets // of HKDF
	Size                                   int
	Result                                 string
}

// publicKey is an object that names its curve; of ML-DSA it is the key's bytes.
type publicKey struct{ Curve string }

func (p *publicKey) UnmarshalJSON(b []byte) error {
	type object publicKey
	if bytes.HasPrefix(b, []byte("{")) {
		return json.Unmarshal(b, (*object)(p))
	}
	return nil
}

// wycheproof runs vectors through a mount.
type wycheproof struct {
	t       *testing.T
	keys    string // the provider's
	name    string // of the key at hand, among them
	tried   int
	notHere int // of sizes that no capabilities line has
	key     string
}

// TestWycheproof runs published vectors (https://github.com/C2SP/wycheproof, with NIST's and the RFCs' among them)
// through a mount: signatures to verify, ciphers and MACs byte for byte in slots with their own nonces, agreements.
func TestWycheproof(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	out, err := exec.Command("go", "mod", "download", "-json", "github.com/c2sp/wycheproof").Output()
	var module struct{ Dir string }
	if err := errors.Join(err, json.Unmarshal(out, &module)); err != nil {
		t.Fatalf("the vectors' module: %v", err)
	}
	dir := filepath.Join(module.Dir, "testvectors_v1")
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	var total, notHere atomic.Int64
	t.Cleanup(func() {
		t.Logf("%d vectors tried, %d of sizes that are not here", total.Load(), notHere.Load())
		if total.Load() < 3000 {
			t.Error("too few")
		}
	})
	for _, pattern := range []string{
		"ecdsa_secp*r1_sha*_test.json", "ecdsa_secp256k1_sha*_test.json", "ecdsa_brainpoolP*_sha*_test.json",
		"ed25519_test.json", "rsa_signature_*_sha*_test.json", "rsa_pss_*_sha*_mgf1_*_test.json",
		"rsa_pkcs1_*_sig_gen_test.json", "rsa_oaep_*_sha*_mgf1sha*_test.json", "rsa_pkcs1_2048_test.json", "rsa_pkcs1_3072_test.json", "rsa_pkcs1_4096_test.json",
		"aes_gcm_test.json", "aes_ccm_test.json", "chacha20_poly1305_test.json", "aes_cbc_pkcs5_test.json", "aes_xts_test.json",
		"aes_cmac_test.json", "hmac_sha*_test.json", "x25519_asn_test.json", "x25519_pem_test.json", "ecdh_secp*r1_pem_test.json",
		"ed448_test.json", "x448_asn_test.json", "x448_pem_test.json", "mldsa_*_verify_test.json", "hkdf_sha*_test.json",
		"mlkem_768_test.json", "mlkem_1024_test.json", "mlkem_768_keygen_seed_test.json", "mlkem_1024_keygen_seed_test.json", "mlkem_768_encaps_test.json",
	} {
		files, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no such vectors, %v", pattern, err)
		}
		for _, file := range files {
			name := strings.TrimSuffix(filepath.Base(file), "_test.json")
			if strings.Contains(name, "_params") || strings.Contains(name, "sha512_224") || strings.Contains(name, "_shake") || strings.Contains(name, "_bitcoin") {
				continue // nothing that is here
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				b, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				var f struct {
					TestGroups []vectorGroup
				}
				if err := json.Unmarshal(b, &f); err != nil {
					t.Fatal(err)
				}
				w := &wycheproof{t: t, keys: filepath.Join(m.Dir, "providers/software/keys"), name: name}
				defer w.forget()
				for _, g := range f.TestGroups {
					w.group(g)
				}
				t.Logf("%d tried, %d of sizes that are not here", w.tried, w.notHere)
				total.Add(int64(w.tried))
				notHere.Add(int64(w.notHere))
			})
		}
	}
}

// few are all the vectors of a group in the long form of the tests, and a quarter of them in the short one.
func few(all []vector) (some []vector) {
	if parsecfstest.Long() {
		return all
	}
	for i, v := range all {
		if i%4 == 0 {
			some = append(some, v)
		}
	}
	return some
}

// forget destroys the key at hand.
func (w *wycheproof) forget() {
	w.t.Helper()
	if w.key == "" {
		return
	}
	if err := os.Remove(w.key); err != nil {
		w.t.Fatal(err)
	}
	w.key = ""
}

var errNotHere = errors.New("capabilities do not list it, or not with such a size")

// use brings in a key; errNotHere counts.
func (w *wycheproof) use(template string, material []byte) error {
	w.t.Helper()
	w.forget()
	a, err := psa.ParseTemplate(template)
	if err != nil {
		return errNotHere
	}
	key := filepath.Join(w.keys, w.name)
	if err := os.Mkdir(key, 0o700); err != nil {
		w.t.Fatal(err)
	}
	w.key = key
	attributes := fmt.Sprintf("template = %q\ncaller_nonce = true\n", template)
	if !a.Type.IsAsymmetric() {
		attributes += fmt.Sprintf("key_bits = %d\n", len(material)*8)
	}
	if err := parsecfstest.WriteOnce(filepath.Join(key, "attributes"), []byte(attributes)); err != nil {
		return errNotHere
	}
	err = parsecfstest.WriteOnce(filepath.Join(key, "import"), material)
	if errors.Is(err, syscall.EOPNOTSUPP) {
		return errNotHere
	}
	return err
}

// judge compares what happened with what the vector wants: out is compared where there is something to compare with.
func (w *wycheproof) judge(v vector, out, want []byte, err error) {
	w.t.Helper()
	w.tried++
	switch {
	case v.Result == "valid" && (err != nil || !bytes.Equal(out, want)):
		w.t.Errorf("%d (%s): %x, %v; want %x", v.TcID, v.Comment, out, err, want)
	case v.Result == "invalid" && err == nil:
		w.t.Errorf("%d (%s): taken, and is invalid", v.TcID, v.Comment)
	case v.Result == "acceptable" && err == nil && !bytes.Equal(out, want):
		w.t.Errorf("%d (%s): %x; want %x", v.TcID, v.Comment, out, want)
	}
}

func (w *wycheproof) ask(file string, parts ...[]byte) ([]byte, error) {
	return parsecfstest.Ask(filepath.Join(w.key, file), parts...)
}

// slot is one use of a directory slot: inputs in, one output out.
func (w *wycheproof) slot(op, output string, inputs map[string][]byte) ([]byte, error) {
	dir := filepath.Join(w.key, op+".d/x")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer os.Remove(dir)
	for name, b := range inputs {
		if len(b) == 0 {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0); err != nil {
			return nil, err
		}
	}
	f, err := os.OpenFile(filepath.Join(dir, output), os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(f)
	return b.Bytes(), err
}

// hashName is a template's name of a hash, "sha3-256" of "SHA3-256" and "sha256" of "SHA-256".
func hashName(s string) string {
	s = strings.ToLower(s)
	if strings.HasPrefix(s, "sha-") {
		s = "sha" + s[4:]
	}
	return strings.ReplaceAll(s, "/", "-")
}

func curveName(s string) string {
	if strings.HasPrefix(s, "secp") && strings.HasSuffix(s, "r1") {
		return "p" + s[len("secp"):len(s)-len("r1")]
	}
	return strings.ToLower(s)
}

var valid = []byte("valid\n")

func (w *wycheproof) group(g vectorGroup) {
	w.t.Helper()
	skip := func() { w.notHere += len(g.Tests) }
	each := func(template string, material []byte, try func(v vector) (out, want []byte, err error)) {
		err := w.use(template, material)
		if err == errNotHere {
			skip()
			return
		}
		if err != nil {
			w.t.Fatalf("import for %s: %v", template, err)
		}
		for _, v := range few(g.Tests) {
			out, want, err := try(v)
			w.judge(v, out, want, err)
		}
	}
	verify := func(file string) func(vector) (out, want []byte, err error) {
		return func(v vector) ([]byte, []byte, error) {
			out, err := w.ask(file, v.Sig, v.Msg)
			return out, valid, err
		}
	}
	switch g.Type {
	case "EcdsaVerify":
		each("ecdsa-"+curveName(g.PublicKey.Curve)+"-"+hashName(g.Sha), []byte(g.PublicKeyPem), verify("verify"))
	case "EcdsaP1363Verify":
		each("ecdsa-"+curveName(g.PublicKey.Curve)+"-"+hashName(g.Sha), []byte(g.PublicKeyPem), verify("verify_raw"))
	case "EddsaVerify":
		each(map[string]string{"edwards25519": "ed25519", "edwards448": "ed448"}[g.PublicKey.Curve], []byte(g.PublicKeyPem), verify("verify"))
	case "HkdfTest":
		w.hkdf(g)
	case "MlDsaVerify":
		w.mldsa(g)
	case "MLKEMTest", "MLKEMKeyGen", "MLKEMEncapsTest":
		w.mlkem(g)
	case "RsassaPkcs1Verify":
		each(fmt.Sprintf("rsa-%d-pkcs1v15-%s", g.KeySize, hashName(g.Sha)), []byte(g.PublicKeyPem), verify("verify"))
	case "RsassaPssVerify":
		a, err := psa.ParseTemplate(fmt.Sprintf("rsa-%d-pss-%s", g.KeySize, hashName(g.Sha)))
		if err != nil || g.SLen != a.Algorithm.HashLength() || g.MgfSha != g.Sha {
			skip()
			return
		}
		each(a.Template(), []byte(g.PublicKeyPem), verify("verify"))
	case "RsassaPkcs1Generate":
		each(fmt.Sprintf("rsa-%d-pkcs1v15-%s", g.KeySize, hashName(g.Sha)), []byte(g.PrivateKeyPem), func(v vector) ([]byte, []byte, error) {
			out, err := w.ask("sign", v.Msg)
			if len(v.Msg) == 0 {
				out, err = w.empty("sign")
			}
			return out, v.Sig, err
		})
	case "RsaesOaepDecrypt":
		if g.MgfSha != g.Sha {
			skip()
			return
		}
		each(fmt.Sprintf("rsa-%d-oaep-%s", g.KeySize, hashName(g.Sha)), []byte(g.PrivateKeyPem), func(v vector) ([]byte, []byte, error) {
			out, err := w.slot("decrypt", "plaintext", map[string][]byte{"additional_data": v.Label, "ciphertext": v.Ct})
			return out, v.Msg, err
		})
	case "RsaesPkcs1Decrypt":
		key, err := x509.ParsePKCS8PrivateKey(g.PrivateKeyPkcs8)
		if err != nil {
			w.t.Fatal(err)
		}
		each(fmt.Sprintf("rsa-%d-pkcs1v15-crypt", key.(*rsa.PrivateKey).N.BitLen()), []byte(g.PrivateKeyPem), func(v vector) ([]byte, []byte, error) {
			out, err := w.ask("decrypt", v.Ct)
			return out, v.Msg, err
		})
	case "AeadTest", "IndCpaTest":
		w.ciphers(g)
	case "MacTest":
		w.macs(g)
	case "XdhAsnComp", "XdhPemComp", "EcdhPemTest":
		w.agreements(g)
	default:
		w.t.Errorf("groups of type %q", g.Type)
	}
}

// empty asks with an empty request.
func (w *wycheproof) empty(file string) ([]byte, error) {
	f, err := os.OpenFile(filepath.Join(w.key, file), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := f.Truncate(0); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	_, err = b.ReadFrom(f)
	return b.Bytes(), err
}

// ciphers encrypts and decrypts, with a key of each vector's own.
func (w *wycheproof) ciphers(g vectorGroup) {
	name := w.t.Name()
	mode := name[strings.LastIndex(name, "/")+1:]
	for _, v := range few(g.Tests) {
		template, iv := "", []byte(v.Iv)
		switch bits := 8 * len(v.Key); mode {
		case "aes_gcm":
			template = fmt.Sprintf("aes-%d-gcm", bits)
			if g.IvSize != 96 {
				template = ""
			}
		case "aes_ccm":
			template = fmt.Sprintf("aes-%d-ccm", bits)
		case "chacha20_poly1305":
			template = mode[:8] + "-poly1305"
			if g.IvSize != 96 {
				template = ""
			}
		case "aes_cbc_pkcs5":
			template = fmt.Sprintf("aes-%d-cbc-pkcs7", bits)
		case "aes_xts":
			template = fmt.Sprintf("aes-%d-xts", bits/2)
			if len(iv) > 8 { // a tweak of more than 64 bits
				template = ""
			}
			iv = append(bytes.Clone(iv), make([]byte, 16-min(len(iv), 16))...)
		}
		if g.TagSize != 0 && g.TagSize != 128 {
			template += fmt.Sprint("-tag", g.TagSize/8)
		}
		odd := mode == "aes_ccm" && (len(iv) < 7 || len(iv) > 13) || mode == "aes_cbc_pkcs5" && len(iv) != 16
		if template == "" || template[0] == '-' || odd || w.use(template, v.Key) != nil {
			w.notHere++
			continue
		}
		sealed := append(bytes.Clone(v.Ct), v.Tag...)
		out, err := w.slot("decrypt", "plaintext", map[string][]byte{"nonce": iv, "additional_data": v.Aad, "ciphertext": sealed})
		w.judge(v, out, v.Msg, err)
		if v.Result != "valid" {
			continue
		}
		out, err = w.slot("encrypt", "ciphertext", map[string][]byte{"nonce": iv, "additional_data": v.Aad, "plaintext": v.Msg})
		w.judge(v, out, sealed, err)
	}
}

// macs makes and verifies MACs, with a key of each vector's own.
func (w *wycheproof) macs(g vectorGroup) {
	name := w.t.Name()
	kind := name[strings.LastIndex(name, "/")+1:]
	for _, v := range few(g.Tests) {
		template := fmt.Sprintf("aes-%d-cmac", 8*len(v.Key))
		if hash, ok := strings.CutPrefix(kind, "hmac_"); ok {
			template = "hmac-" + strings.ReplaceAll(hash, "_", "-")
		}
		a, err := psa.ParseTemplate(template)
		if err == nil && g.TagSize < 8*a.Algorithm.MACLength() {
			template += fmt.Sprint("-tag", g.TagSize/8)
		}
		if err != nil || w.use(template, v.Key) != nil {
			w.notHere++
			continue
		}
		out, err := w.ask("verify_mac", v.Tag, v.Msg)
		w.judge(v, out, valid, err)
		if v.Result == "valid" {
			out, err = w.ask("mac", v.Msg)
			if len(v.Msg) == 0 {
				out, err = w.empty("mac")
			}
			w.judge(v, out, v.Tag, err)
		}
	}
}

// agreements agrees, with a key of each vector's own.
func (w *wycheproof) agreements(g vectorGroup) {
	for _, v := range few(g.Tests) {
		template := map[string]string{"curve25519": "x25519", "curve448": "x448"}[g.Curve]
		if g.Type == "EcdhPemTest" {
			template = "ecdh-" + curveName(g.Curve)
		}
		err := w.use(template, v.Private)
		if err == errNotHere {
			w.notHere++
			continue
		}
		var out []byte
		if err == nil {
			out, err = w.ask("agree", v.Public)
		}
		w.judge(v, out, v.Shared, err)
	}
}

// mldsa verifies; a context is not in PSA's signatures of messages.
func (w *wycheproof) mldsa(g vectorGroup) {
	name := w.t.Name()
	n := strings.Split(name[strings.LastIndex(name, "/")+1:], "_")[1]
	err := w.use("ml-dsa-"+n, g.PublicKeyDer)
	for _, v := range few(g.Tests) {
		if len(v.Ctx) > 0 {
			w.notHere++
			continue
		}
		out, e := []byte(nil), err
		if err == nil {
			out, e = w.ask("verify", v.Sig, v.Msg)
		}
		w.judge(v, out, valid, e)
	}
}

// mlkem imports seeds, compares their public keys, and decapsulates; or imports a public key, whose ciphertexts depend
// on a random number that no caller gives.
func (w *wycheproof) mlkem(g vectorGroup) {
	template := strings.ToLower(g.ParameterSet)
	a, err := psa.ParseTemplate(template)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, v := range few(g.Tests) {
		private, err := (psa.RawKey{Type: a.Type, Bits: a.Bits, Bytes: v.Seed}).Marshal()
		public, publicErr := (psa.RawKey{Type: a.Type.PublicKey(), Bits: a.Bits, Bytes: v.Ek}).Marshal()
		var out, want []byte
		switch {
		case g.Type == "MLKEMEncapsTest":
			if err = publicErr; err == nil {
				err = w.use(template, public)
			}
			if err == nil {
				out, err = os.ReadFile(filepath.Join(w.key, "encapsulate"))
				want = out
			}
		case err == nil:
			if err = w.use(template, private); err == nil {
				out, err = os.ReadFile(filepath.Join(w.key, "public.der"))
				want = public
			}
			if err == nil && g.Type == "MLKEMTest" {
				if v.Result == "valid" && !bytes.Equal(out, want) {
					w.t.Errorf("%d: another public key", v.TcID)
				}
				want = v.K
				out, err = w.ask("decapsulate", v.C)
			}
		}
		w.judge(v, out, want, err)
	}
}

// hkdf derives, with a key of each vector's own.
func (w *wycheproof) hkdf(g vectorGroup) {
	name := w.t.Name()
	for _, v := range few(g.Tests) {
		err := w.use("hkdf-"+strings.Split(name, "hkdf_")[1], v.Ikm)
		if err == errNotHere {
			w.notHere++
			continue
		}
		var out []byte
		if err == nil {
			out, err = w.slot("derive", "secret", map[string][]byte{"salt": v.Salt, "info": v.Info, "length": fmt.Append(nil, v.Size)})
		}
		w.judge(v, out, v.Okm, err)
	}
}
