package software_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

// question is one case for PSA Crypto's reference implementation (testdata/oracle/oracle.c) and for us.
type question struct {
	op     psa.Operation
	key    psa.Attributes
	alg    psa.Algorithm
	length int
}

func (q question) String() string {
	return fmt.Sprintf("%s with %s and %d bytes, of a %s %d %s %s", q.op, q.alg, q.length, q.key.Type, q.key.Bits, q.key.Algorithm, q.key.Usage)
}

// verdict is how a question ended: where the key was made, or where it was used.
type verdict struct {
	step   string
	status psa.Status
}

// questions has each usage flag, wrong algorithms and wrong sizes for keys of all kinds that both implementations have.
func questions() (list []question) {
	rsa, ec, aes := psa.KeyTypeRSAKeyPair, psa.ECCKeyPair(psa.SECPR1), psa.KeyTypeAES
	h := psa.Algorithm(psa.SHA256)
	keys := []psa.Attributes{
		{Type: rsa, Bits: 2048, Algorithm: psa.RSAPKCS1v15Sign(h)}, {Type: rsa, Bits: 2048, Algorithm: psa.RSAPSS(h)},
		{Type: rsa, Bits: 2048, Algorithm: psa.RSAPKCS1v15Sign(psa.AnyHash)}, {Type: rsa, Bits: 2048, Algorithm: psa.RSAOAEP(h)},
		{Type: rsa, Bits: 2048, Algorithm: psa.RSAPKCS1v15Crypt},
		{Type: ec, Bits: 256, Algorithm: psa.ECDSA(h)}, {Type: ec, Bits: 256, Algorithm: psa.DeterministicECDSA(h)},
		{Type: ec, Bits: 256, Algorithm: psa.ECDSA(psa.AnyHash)}, {Type: ec, Bits: 384, Algorithm: psa.ECDSA(psa.SHA384)}, {Type: ec, Bits: 256, Algorithm: psa.ECDH},
		{Type: aes, Bits: 128, Algorithm: psa.GCM}, {Type: aes, Bits: 256, Algorithm: psa.CCM}, {Type: aes, Bits: 192, Algorithm: psa.CTR},
		{Type: aes, Bits: 128, Algorithm: psa.CBCPKCS7}, {Type: aes, Bits: 128, Algorithm: psa.CBCNoPadding}, {Type: aes, Bits: 128, Algorithm: psa.ECBNoPadding},
		{Type: aes, Bits: 128, Algorithm: psa.CMAC}, {Type: psa.KeyTypeHMAC, Bits: 256, Algorithm: psa.HMAC(h)},
		{Type: psa.KeyTypeChaCha20, Bits: 256, Algorithm: psa.ChaCha20Poly1305},
	}
	for _, k := range keys {
		if k.Type.IsAsymmetric() && k.Algorithm != psa.ECDH {
			keys = append(keys, psa.Attributes{Type: k.Type.PublicKey(), Bits: k.Bits, Algorithm: k.Algorithm})
		}
	}
	ops := []psa.Operation{psa.Copy, psa.ExportPublic, psa.Export, psa.Sign, psa.SignHash, psa.Verify, psa.VerifyHash, psa.Encrypt, psa.Decrypt,
		psa.Mac, psa.VerifyMac, psa.Agree}
	wrong := []psa.Algorithm{psa.AlgNone, psa.RSAPSS(psa.SHA384), psa.ECDSA(psa.SHA384), psa.ECDSA(psa.AnyHash), psa.CTR, psa.GCM, psa.CMAC, psa.HMAC(psa.SHA512), psa.ECDH,
		psa.AEADWithShortenedTag(psa.GCM, 12), psa.TruncatedMAC(psa.HMAC(h), 8)}
	flags := []psa.Usage{psa.UsageExport, psa.UsageCopy, psa.UsageEncrypt, psa.UsageDecrypt, psa.UsageSignMessage, psa.UsageVerifyMessage,
		psa.UsageSignHash, psa.UsageVerifyHash, psa.UsageDerive}
	for _, k := range keys {
		own := k.Algorithm
		if own.IsWildcard() {
			own = own.WithHash(h)
		}
		full := psa.UsageExport | psa.UsageCopy | (psa.Capability{Type: k.Type, Bits: k.Bits, Algorithm: k.Algorithm}).Attributes().Usage
		for _, op := range ops {
			ask := func(u psa.Usage, alg psa.Algorithm, length int) {
				k.Usage = u
				list = append(list, question{op, k, alg, length})
			}
			for _, u := range append(flags, 0, full) {
				ask(u, own, 32)
			}
			for _, alg := range wrong {
				ask(full, alg, 32)
			}
			for _, length := range []int{16, 20, 48, 64, 256, 300} {
				ask(full, own, length)
			}
		}
	}
	// Sizes and algorithms that a key cannot be made with.
	made := []psa.Algorithm{psa.AlgNone, psa.GCM, psa.CMAC, psa.HMAC(h), psa.ChaCha20Poly1305, psa.ECDSA(h), psa.ECDH, psa.RSAPSS(h), psa.PureEdDSA, psa.AnyHash, h}
	for _, t := range []psa.KeyType{aes, psa.KeyTypeHMAC, psa.KeyTypeChaCha20, ec, ec.PublicKey(), psa.ECCKeyPair(psa.Montgomery), psa.ECCKeyPair(psa.SECPK1), rsa.PublicKey()} {
		for _, bits := range []int{0, 8, 100, 128, 192, 224, 250, 255, 256, 320, 384, 521} {
			for _, alg := range made {
				list = append(list, question{op: psa.Generate, key: psa.Attributes{Type: t, Bits: bits, Algorithm: alg, Usage: psa.UsageExport}})
			}
		}
	}
	return list
}

// theirs asks the reference implementation.
func theirs(t *testing.T, list []question) []verdict {
	t.Helper()
	oracle := filepath.Join(t.TempDir(), "oracle")
	if out, err := exec.Command("gcc", "-o", oracle, "testdata/oracle/oracle.c", "-lmbedcrypto").CombinedOutput(); err != nil {
		t.Skipf("libmbedcrypto is not here (Debian: libmbedtls-dev): %v\n%s", err, out)
	}
	var in strings.Builder
	for _, q := range list {
		fmt.Fprintf(&in, "%s %x %x %x %x %x %x\n", q.op, uint16(q.key.Type), q.key.Bits, uint32(q.key.Algorithm), uint32(q.key.Usage), uint32(q.alg), q.length)
	}
	cmd := exec.Command(oracle)
	cmd.Stdin = strings.NewReader(in.String())
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("the oracle: %v: %s", err, errs.String())
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(list) {
		t.Fatalf("%d answers to %d questions", len(lines), len(list))
	}
	verdicts := make([]verdict, len(list))
	for i, line := range lines {
		if _, err := fmt.Sscan(line, &verdicts[i].step, &verdicts[i].status); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	return verdicts
}

// materialFor is a key of the type and size, made once.
func materialFor(t *testing.T, cache map[string]*psa.Material, a psa.Attributes) *psa.Material {
	t.Helper()
	name := fmt.Sprint(a.Type, a.Bits)
	if m := cache[name]; m != nil {
		return m
	}
	pair := fmt.Sprint(a.Type.KeyPair(), a.Bits)
	m := &psa.Material{Format: psa.FormatRaw, Data: make([]byte, a.Bits/8)}
	var private any
	var err error
	switch {
	case a.Type.IsRSA():
		private, err = rsa.GenerateKey(rand.Reader, a.Bits)
	case a.Type.IsECC():
		private, err = ecdsa.GenerateKey(map[int]elliptic.Curve{256: elliptic.P256(), 384: elliptic.P384()}[a.Bits], rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	if private != nil {
		m = &psa.Material{Format: psa.FormatPKCS8}
		if m.Data, err = x509.MarshalPKCS8PrivateKey(private); err != nil {
			t.Fatal(err)
		}
		cache[pair] = m
		if a.Type.IsPublicKey() {
			m = &psa.Material{Format: psa.FormatSPKI}
			if m.Data, err = x509.MarshalPKIXPublicKey(private.(crypto.Signer).Public()); err != nil {
				t.Fatal(err)
			}
		}
	}
	cache[name] = m
	return m
}

// ours does what the question asks, as the KIM does: the policy judges first.
func ours(t *testing.T, p providers.Provider, cache map[string]*psa.Material, q question) verdict {
	t.Helper()
	ctx := context.Background()
	var m *psa.Material
	err := q.key.Validate()
	if err == nil {
		if q.op != psa.Generate {
			m = materialFor(t, cache, q.key)
		}
		var b providers.Blob
		if b, err = p.Create(ctx, handle, q.key, m); err == nil && q.op == psa.Generate {
			return verdict{"create", 0}
		}
		if err == nil {
			return verdict{"use", statusOf(use(ctx, p, b, q))}
		}
	}
	return verdict{"create", statusOf(err)}
}

func statusOf(err error) psa.Status {
	if err == nil {
		return 0
	}
	return psa.StatusOf(err)
}

func use(ctx context.Context, p providers.Provider, b providers.Blob, q question) error {
	if q.op == psa.Copy {
		draft := q.key
		draft.Algorithm = q.alg
		a, err := q.key.Copied(draft)
		if err == nil {
			_, err = p.(providers.Copier).Copy(ctx, handle, a, providers.Source{Attributes: q.key, Blob: b})
		}
		return err
	}
	if err := q.key.Permits(q.op, q.alg); err != nil {
		return err
	}
	k, err := p.Open(ctx, handle, q.key, b)
	if err != nil {
		return err
	}
	defer k.Close()
	in := make([]byte, q.length)
	op := psa.Op{Operation: q.op, Algorithm: q.alg, Inputs: map[string][]byte{}}
	with := q.key
	with.Algorithm = q.alg
	switch q.op {
	case psa.Agree:
		in = k.Public()
	case psa.Verify, psa.VerifyHash:
		op.Inputs["signature"] = make([]byte, with.SignatureLength())
	case psa.VerifyMac:
		op.Inputs["mac"] = make([]byte, with.SignatureLength())
	case psa.Encrypt, psa.Decrypt:
		if n := q.alg.NonceLength(); n > 0 && (q.alg.IsAEAD() || q.op == psa.Decrypt) {
			op.Inputs["nonce"] = make([]byte, n)
			if !q.alg.IsAEAD() {
				in = in[n:] // psa_cipher_decrypt takes the IV in front of the ciphertext
			}
		}
	case psa.Export, psa.ExportPublic:
		in = nil
	}
	run, err := k.Begin(ctx, op)
	if err != nil {
		return err
	}
	if _, err := run.Write(in); err != nil {
		run.Abort()
		return err
	}
	_, err = run.Finish(ctx)
	return err
}

// TestStatusesArePSAs holds our statuses against those of PSA Crypto's reference implementation. What differs is listed,
// with the reason.
func TestStatusesArePSAs(t *testing.T) {
	t.Parallel()
	list := questions()
	want := theirs(t, list)
	p, cache := newProvider(t), map[string]*psa.Material{}
	counts := map[string]int{}
	same, failed := 0, map[psa.Status]int{}
	for i, q := range list {
		got := ours(t, p, cache, q)
		if got == want[i] {
			same++
			failed[got.status]++
			continue
		}
		reason := difference(q, got, want[i])
		counts[reason]++
		if reason == "" {
			t.Errorf("%s: %s %s; libmbedcrypto %s %s", q, got.step, got.status, want[i].step, want[i].status)
		}
	}
	t.Logf("%d cases, %d the same: %v", len(list), same, failed)
	for reason, n := range counts {
		t.Logf("%d differ: %s", n, reason)
	}
	if same < 3000 {
		t.Error("too few to say something")
	}
}

// difference is why a case may differ, "" where it may not.
func difference(q question, got, want verdict) string {
	is := func(step string, status psa.Status) bool { return got == verdict{step, status} }
	fits := (psa.Attributes{Type: q.key.Type, Bits: q.key.Bits, Algorithm: q.key.Algorithm}).Validate() == nil
	useless := fits && q.key.Validate() != nil
	switch {
	case q.op == psa.Generate && q.key.Type.IsPublicKey() && is("create", psa.StatusNotSupported) && want.status == psa.StatusInvalidArgument:
		return "a public key is never generated; we judge the size first"
	case q.op == psa.Generate && want.status == 0 && !fits && is("create", psa.StatusInvalidArgument):
		return "PSA makes a key whose algorithm does not go with its type, which can do nothing; we refuse it at once"
	case q.op == psa.Generate && want.status == 0 && !generates(q.key) && is("create", psa.StatusNotSupported):
		return "our capabilities generate no key for no algorithm, of this curve, or of a size that no template has"
	case useless && is("create", psa.StatusInvalidArgument):
		return "PSA takes usage flags that can do nothing with such a key; we refuse the key at once, and so all its uses"
	case (q.op == psa.Copy || q.op == psa.Export) && q.key.Type.IsPublicKey() && is("use", psa.StatusNotSupported) && want.status == 0:
		return "a public key has no files copy and export: public.pem and public.der are everybody's"
	case (q.op == psa.SignHash || q.op == psa.VerifyHash) && q.key.Algorithm.IsECDSA() && q.length != q.alg.HashLength() && is("use", psa.StatusInvalidArgument):
		return "2.28 takes a hash of any length for ECDSA; PSA Crypto 1.1 asks for the algorithm's own (psa_sign_hash)"
	case q.op == psa.Agree && !q.key.Type.IsAsymmetric() && is("use", psa.StatusNotPermitted):
		return "the case has no peer: a symmetric key has no public part"
	case q.alg.IsAsymmetricEncryption() && q.length > q.key.Bits/8 && is("use", psa.StatusTooLarge) && want.status == psa.StatusInvalidArgument:
		return "an input over a limit is PARSECFS_ERROR_TOO_LARGE (EFBIG), which says more"
	}
	return ""
}

// generates says whether the provider lists generate for such a key.
func generates(a psa.Attributes) bool {
	lines, err := software.Type.New(context.Background(), providers.Config{Name: "oracle"})
	if err != nil {
		return false
	}
	all, err := lines.Capabilities(context.Background())
	return err == nil && slices.ContainsFunc(all, func(c psa.Capability) bool {
		return c.Covers(a.Type, a.Bits, a.Algorithm) && c.Has(psa.Generate)
	})
}
