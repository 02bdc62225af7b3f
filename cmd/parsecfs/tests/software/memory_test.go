package software

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/x509"
	"debug/buildinfo"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"
	"unsafe"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// window is how many bytes in a row are a find.
const window = 16

// planted is a key whose bytes the test knows.
type planted struct {
	name     string
	template string
	material []byte // as it is written into import
	// secrets are what nobody may find: the key's own bytes and what an implementation makes of them. Each is looked for as
	// it is and in reverse, which is how big integers lie in memory, by the windows that it is made of.
	secrets [][]byte
	asked   string   // the file that uses it
	request [][]byte // what is written there
	refused bool     // another key follows it, so that nothing comes of it; without a template, it is no key as it is written
}

// left is how many places may have parts of a key: what was measured on a loaded machine.
func (p *planted) left() int {
	if p.template == "x25519" {
		return 2
	}
	return 0
}

func randomly(n int) []byte {
	b := make([]byte, n)
	rand.Read(b)
	return b
}

// schedule is how the standard library keeps an AES key that it computes with, without the key itself.
func schedule(t *testing.T, key []byte) []byte {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	v := reflect.ValueOf(block)
	b := bytes.Clone(unsafe.Slice((*byte)(v.UnsafePointer()), v.Type().Elem().Size()))
	at := bytes.Index(b, key[:8])
	if at < 0 {
		t.Fatal("the layout of an AES key is not known")
	}
	return b[at+len(key) : at+10*16]
}

func masked(key []byte, mask byte) []byte {
	b := bytes.Clone(key)
	for i := range b {
		b[i] ^= mask
	}
	return b
}

func pemOf(t *testing.T, der []byte, err error) []byte {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// plant makes keys of each kind.
func plant(t *testing.T) (list []*planted) {
	t.Helper()
	message := [][]byte{[]byte("a message")}
	symmetric := func(name, template string, n int, asked string, request ...[]byte) *planted {
		key := randomly(n)
		p := &planted{name: name, template: template, material: key, secrets: [][]byte{key}, asked: asked, request: request}
		list = append(list, p)
		return p
	}
	for _, n := range []int{16, 32} {
		for _, mode := range []string{"gcm", "ccm", "ctr"} {
			p := symmetric(fmt.Sprintf("AES-%d %s", 8*n, mode), fmt.Sprintf("aes-%d-%s", 8*n, mode), n, "encrypt", message...)
			p.secrets = append(p.secrets, schedule(t, p.material))
		}
	}
	p := symmetric("AES-128 cmac", "aes-128-cmac", 16, "mac", message...)
	p.secrets = append(p.secrets, schedule(t, p.material))
	p = symmetric("AES-128 xts", "aes-128-xts", 32, "encrypt", []byte("a sector of a disk"))
	p.secrets = append(p.secrets, schedule(t, p.material[:16]), schedule(t, p.material[16:]))
	p = symmetric("HMAC", "hmac-sha256", 32, "mac", message...)
	p.secrets = append(p.secrets, masked(p.material, 0x36), masked(p.material, 0x5c))
	symmetric("ChaCha20", "chacha20-poly1305", 32, "encrypt", message...)

	asymmetric := func(name, template string, material []byte, asked string, request [][]byte, secrets ...[]byte) {
		list = append(list, &planted{name: name, template: template, material: material, secrets: secrets, asked: asked, request: request})
	}
	r, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(r)
	asymmetric("RSA-2048", "rsa-2048-pss-sha256", pemOf(t, der, err), "sign", message,
		r.D.Bytes(), r.Primes[0].Bytes(), r.Primes[1].Bytes(), r.Precomputed.Dp.Bytes(), r.Precomputed.Dq.Bytes())
	decrypts, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err = x509.MarshalPKCS8PrivateKey(decrypts)
	//lint:ignore SA1019 the key's policy asks for it
	sealed, e := rsa.EncryptPKCS1v15(rand.Reader, &decrypts.PublicKey, []byte("a message"))
	asymmetric("RSA-2048 decrypt", "rsa-2048-pkcs1v15-crypt", pemOf(t, der, errors.Join(err, e)), "decrypt", [][]byte{sealed},
		decrypts.D.Bytes(), decrypts.Primes[0].Bytes(), decrypts.Primes[1].Bytes(),
		decrypts.Precomputed.Dp.Bytes(), decrypts.Precomputed.Dq.Bytes())

	for name, curve := range map[string]ecdh.Curve{"p256": ecdh.P256(), "p384": ecdh.P384()} {
		for _, does := range []string{"ecdsa", "ecdh"} {
			k, err := curve.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			der, err := x509.MarshalPKCS8PrivateKey(k)
			template, asked, request := "ecdsa-"+name+"-sha256", "sign", message
			if does == "ecdh" {
				template, asked, request = "ecdh-"+name, "agree", [][]byte{k.PublicKey().Bytes()}
			}
			asymmetric(does+" "+name, template, pemOf(t, der, err), asked, request, k.Bytes())
		}
	}
	raw := func(name, template string, n int, asked string, request [][]byte, more ...func([]byte) []byte) {
		a, err := psa.ParseTemplate(template)
		if err != nil {
			t.Fatal(err)
		}
		secret := randomly(n)
		secret[0] &= 0x7f // below the orders of the curves
		der, err := psa.RawKey{Type: a.Type, Bits: a.Bits, Bytes: secret}.Marshal()
		secrets := [][]byte{secret}
		for _, f := range more {
			secrets = append(secrets, f(secret))
		}
		asymmetric(name, template, pemOf(t, der, err), asked, request, secrets...)
	}
	raw("secp256k1", "ecdsa-secp256k1-sha256", 32, "sign", message, montgomery)
	raw("brainpoolP256r1", "ecdsa-brainpoolp256r1-sha256", 32, "sign", message)
	raw("Ed448", "ed448", 57, "sign", message)
	raw("ML-DSA-44", "ml-dsa-44", 32, "sign", message)
	raw("ML-KEM-768", "ml-kem-768", 64, "decapsulate", [][]byte{randomly(1088)})

	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err = x509.MarshalPKCS8PrivateKey(ed)
	expanded := sha512.Sum512(ed.Seed())
	asymmetric("Ed25519", "ed25519", pemOf(t, der, err), "sign", message, ed.Seed(), expanded[32:])
	x, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err = x509.MarshalPKCS8PrivateKey(x)
	asymmetric("X25519", "x25519", pemOf(t, der, err), "agree", [][]byte{x.PublicKey().Bytes()}, x.Bytes())
	raw("refused", "ed448", 57, "", nil)
	list[len(list)-1].refused = true
	for name, text := range map[string]string{
		"refused hex": hex.EncodeToString(randomly(32)), "refused base64": base64.StdEncoding.EncodeToString(randomly(48)),
	} {
		list = append(list, &planted{name: name, material: []byte(text + "\n"), secrets: [][]byte{[]byte(text)}, refused: true})
	}
	return list
}

// montgomery is how a scalar of secp256k1 lies in memory while it is computed with: times 2^256, in little-endian.
func montgomery(scalar []byte) []byte {
	order, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
	k := new(big.Int).Lsh(new(big.Int).SetBytes(scalar), 256)
	return k.Mod(k, order).FillBytes(make([]byte, 32))
}

// needles are what is looked for: windows of the secrets, as they are and in reverse, and of the text that was written.
func (p *planted) needles() (list [][]byte) {
	for _, s := range p.secrets {
		reversed := bytes.Clone(s)
		slices.Reverse(reversed)
		for _, b := range [][]byte{s, reversed} {
			for ; len(b) >= window; b = b[window:] {
				list = append(list, b[:window])
			}
		}
		if block, _ := pem.Decode(p.material); block != nil {
			at := bytes.Index(block.Bytes, s)
			for i := (at + 2) / 3 * 3; at >= 0 && i+12 <= at+len(s); i += 12 {
				list = append(list, []byte(base64.StdEncoding.EncodeToString(block.Bytes[i:i+12])))
			}
		}
	}
	return list
}

// search counts where the daemon's memory has the needles of each key, in all that it may write to.
func search(t *testing.T, pid int, list []*planted) map[*planted]int {
	t.Helper()
	type needle struct {
		b  []byte
		of *planted
	}
	byHead := map[uint64][]needle{}
	var begins [1 << 16]bool
	for _, p := range list {
		for _, b := range p.needles() {
			head := binary.LittleEndian.Uint64(b)
			byHead[head] = append(byHead[head], needle{b, p})
			begins[binary.LittleEndian.Uint16(b)] = true
		}
	}
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	found := map[*planted]int{}
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil {
			t.Fatal(err)
		}
		if rights[:2] != "rw" {
			continue
		}
		const piece = 16 << 20
		b := make([]byte, piece+window)
		for ; from < to; from += piece {
			n, err := mem.ReadAt(b[:min(piece+window, to-from)], int64(from))
			if err != nil && !errors.Is(err, io.EOF) && n == 0 {
				break // special memory, or what was given back meanwhile
			}
			for i := 0; i+window <= n && i < piece; i++ {
				if !begins[binary.LittleEndian.Uint16(b[i:])] {
					continue
				}
				for _, w := range byHead[binary.LittleEndian.Uint64(b[i:])] {
					if bytes.Equal(w.b, b[i:i+window]) {
						found[w.of]++
						if os.Getenv("PARSECFS_TEST_FINDS") != "" {
							t.Logf("%s: %x in %s", w.of.name, from+uint64(i), lines.Text())
						}
					}
				}
			}
		}
	}
	return found
}

// TestKeysLeaveTheMemory imports keys whose bytes are known, uses and destroys them, does other things, and reads the
// daemon's memory.
func TestKeysLeaveTheMemory(t *testing.T) {
	if info, err := buildinfo.ReadFile(parsecfstest.Path(t)); err != nil {
		t.Fatal(err)
	} else if !strings.Contains(info.GoVersion, "runtimesecret") {
		t.Skip("this build erases nothing that its libraries leave: build with GOEXPERIMENT=runtimesecret, as scripts/test does")
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	keys := filepath.Join(m.Dir, "providers", "default", "keys")
	list := plant(t)
	for i, p := range list {
		dir := filepath.Join(keys, fmt.Sprint("planted-", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if p.template == "" {
			if err := parsecfstest.WriteOnce(filepath.Join(dir, "import"), p.material); err == nil {
				t.Errorf("%s: it was taken for a key", p.name)
			}
			continue
		}
		if err := parsecfstest.WriteOnce(filepath.Join(dir, "attributes"), fmt.Appendf(nil, "template = %q\n", p.template)); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		if p.refused {
			if err := parsecfstest.WriteOnce(filepath.Join(dir, "import"), append(bytes.Clone(p.material), list[i-1].material...)); err == nil {
				t.Errorf("%s: two keys were taken for one", p.name)
			}
			continue
		}
		if err := parsecfstest.WriteOnce(filepath.Join(dir, "import"), p.material); err != nil {
			t.Fatalf("%s: %v", p.name, err)
		}
		for range 20 {
			if _, err := parsecfstest.Ask(filepath.Join(dir, p.asked), p.request...); err != nil {
				t.Fatalf("%s: %s: %v", p.name, p.asked, err)
			}
		}
	}
	alive := search(t, m.Process().Pid, list)
	for i := range list {
		if err := os.Remove(filepath.Join(keys, fmt.Sprint("planted-", i))); err != nil {
			t.Fatal(err)
		}
	}
	operations := 1000
	if parsecfstest.Long() {
		operations = 10_000
	}
	parsecfstest.Generate(t, filepath.Join(keys, "p256"), "ecdsa-p256-sha256")
	parsecfstest.Generate(t, filepath.Join(keys, "aes"), "aes-256-gcm")
	for i := range operations {
		file := []string{"p256/sign", "aes/encrypt"}[i%2]
		if _, err := parsecfstest.Ask(filepath.Join(keys, file), []byte("another message")); err != nil {
			t.Fatal(err)
		}
	}
	// What was let go of is erased by the next collection of garbage.
	var after map[*planted]int
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		after = search(t, m.Process().Pid, list)
		clean := !slices.ContainsFunc(list, func(p *planted) bool { return after[p] > p.left() })
		if clean || time.Now().After(deadline) {
			break
		}
	}
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	fmt.Fprintf(table, "key\tplaces while it was there\tafter rmdir and %d operations\n", operations)
	for _, p := range list {
		fmt.Fprintf(table, "%s\t%d\t%d\n", p.name, alive[p], after[p])
		if after[p] > p.left() {
			t.Errorf("%s: %d places in memory have parts of the key", p.name, after[p])
		}
	}
	table.Flush()
	t.Log("\n" + text.String())
}
