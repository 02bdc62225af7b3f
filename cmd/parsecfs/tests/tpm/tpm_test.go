package tpm

import (
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// tpmStore is a mount on a TPM, with keys.
func tpmStore(t *testing.T) (*tpmtest.Chip, *stores.Keystore) {
	t.Helper()
	chip := tpmtest.Start(t)
	s := &stores.Keystore{T: t, Store: stores.Store{Name: "tpm"}, Keys: map[string][]byte{}, M: parsecfstest.Mount(t, parsecfstest.Options{Config: stores.TPMConfig(chip)})}
	for name, make := range map[string]func(string) ([]byte, error){"generated": s.Create, "second": s.Create, "third": s.Create, "imported": s.Import} {
		public, err := make(name)
		if err != nil {
			t.Fatal(err)
		}
		s.Keys[name] = public
	}
	return chip, s
}

// TestTPMGoesAndComes: while the TPM is away its keys answer ENODEV or EIO at once; when it is back, after a reset, all
// work without a restart, and with one.
func TestTPMGoesAndComes(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip, s := tpmStore(t)
	s.AllWork()
	for round := range 3 {
		chip.Kill()
		for name, public := range s.Keys {
			since := time.Now()
			if err := s.Works(name, public); !errors.Is(err, syscall.ENODEV) && !errors.Is(err, syscall.EIO) {
				t.Errorf("without a TPM %s: %v", name, err)
			}
			if took := time.Since(since); took > 5*time.Second {
				t.Errorf("it took %v to say that there is no TPM", took)
			}
		}
		s.Until("degraded: ")
		if err := syscall.Rmdir(s.Path("generated")); !errors.Is(err, syscall.ENODEV) {
			t.Errorf("rmdir without a TPM: %v", err)
		}
		if _, err := s.Create("lost"); err == nil {
			t.Error("a key was made without a TPM")
		}
		if err := syscall.Rmdir(s.Path("lost")); err != nil {
			t.Errorf("a draft: %v", err)
		}
		if round == 1 {
			s.M.Kill()
		}
		chip.Restart()
		if round == 1 {
			s.M.Restart()
		}
		s.Until("ready")
		s.AllWork()
	}
}

// TestTPMExchanged: another TPM in the place of the one that has the keys does nothing to them, and says so.
func TestTPMExchanged(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip, s := tpmStore(t)
	chip.Exchange()
	s.Until("degraded: ")
	for range 2 {
		s.Until("degraded: ", "another device")
		for name, public := range s.Keys {
			if err := s.Works(name, public); !errors.Is(err, syscall.ENODEV) {
				t.Errorf("%s: %v", name, err)
			}
			if b, err := os.ReadFile(s.Path(name, "last_error")); err != nil || !strings.Contains(string(b), "ENODEV") {
				t.Errorf("last_error of %s is %q, %v", name, b, err)
			}
		}
		s.M.Kill()
		s.M.Restart()
		s.Until("degraded: ")
	}
	chip.Exchange()
	s.Until("ready")
	s.AllWork()
}

// TestTPMKilledWhileSigning ends the TPM under 16 workers, again and again.
func TestTPMKilledWhileSigning(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip, s := tpmStore(t)
	rounds := 20
	if parsecfstest.Long() {
		rounds = 100
	}
	var signed, refused atomic.Int64
	for range rounds {
		stop := make(chan struct{})
		var workers sync.WaitGroup
		before := signed.Load()
		for w := range 16 {
			name := []string{"generated", "second", "third", "imported"}[w%4]
			workers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					since := time.Now()
					err := s.Works(name, s.Keys[name])
					if took := time.Since(since); took > 5*time.Second {
						t.Errorf("a request took %v", took)
					}
					switch {
					case err == nil:
						signed.Add(1)
					case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.EAGAIN):
						refused.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
		for signed.Load() < before+50 {
			time.Sleep(time.Millisecond)
		}
		chip.Kill()
		chip.Restart()
		close(stop)
		workers.Wait()
		s.Until("ready")
		s.AllWork()
	}
	t.Logf("%d signatures, %d refusals", signed.Load(), refused.Load())
}

// opensslOn runs OpenSSL with its provider for a TPM, which is nobody else's meanwhile.
func opensslOn(t *testing.T, chip *tpmtest.Chip, dir string, args ...string) {
	t.Helper()
	provider := []string{"-provider", "tpm2", "-provider", "default", "-propquery", "?provider=tpm2"}
	cmd := exec.Command("openssl", append(append(args[:1:1], provider...), args[1:]...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TPM2OPENSSL_TCTI="+chip.TCTI(), "TSS2_LOG=all+NONE")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("openssl %v: %v: %s", args, err, out)
	}
}

// TestTSS2 has OpenSSL sign with keys that were exported, with a passphrase and without, and takes one over that OpenSSL
// made; both are used by both.
func TestTSS2(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip := tpmtest.Start(t)
	dir := t.TempDir()
	write := func(name string, b []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("message", []byte("signed by somebody"))
	opensslOn(t, chip, dir, "genpkey", "-algorithm", "EC", "-pkeyopt", "group:P-256", "-out", "theirs-ec.pem")
	opensslOn(t, chip, dir, "genpkey", "-algorithm", "RSA", "-pkeyopt", "bits:2048", "-out", "theirs-rsa.pem")
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: stores.TPMConfig(chip)})
	keys := filepath.Join(m.Dir, "providers/p/keys")
	draft := func(name, attributes string) string {
		t.Helper()
		key := filepath.Join(keys, name)
		if err := os.Mkdir(key, 0o700); err != nil {
			t.Fatal(err)
		}
		if attributes != "" {
			if err := parsecfstest.WriteOnce(filepath.Join(key, "attributes"), []byte(attributes)); err != nil {
				t.Fatal(err)
			}
		}
		return key
	}
	verify := func(key, signature string) {
		t.Helper()
		if out, err := exec.Command("openssl", "dgst", "-sha256", "-verify", filepath.Join(dir, key), "-signature", filepath.Join(dir, signature), filepath.Join(dir, "message")).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", signature, err, out)
		}
	}
	templates := map[string]string{"ec": "ecdsa-p256-sha256", "rsa": "rsa-2048-pkcs1v15-sha256"}
	for kind, template := range templates {
		theirs, err := os.ReadFile(filepath.Join(dir, "theirs-"+kind+".pem"))
		if err != nil {
			t.Fatal(err)
		}
		key := draft("adopted-"+kind, fmt.Sprintf("template = %q\n", template))
		if err := parsecfstest.WriteOnce(filepath.Join(key, "import"), theirs); err != nil {
			t.Fatal(err)
		}
		for name, b := range map[string]string{"bare": "", "other": "template = \"ecdsa-p384-sha384\"\n", "otherwise": "template = \"ecdh-p521\"\n"} {
			if err := parsecfstest.WriteOnce(filepath.Join(draft(name+kind, b), "import"), theirs); !errors.Is(err, syscall.EINVAL) {
				t.Errorf("import into %s: %v", name, err)
			}
		}
		signature, err := parsecfstest.Ask(filepath.Join(key, "sign"), []byte("signed by somebody"))
		if err != nil {
			t.Fatal(err)
		}
		write("adopted-"+kind+".sig", signature)
		public, err := os.ReadFile(filepath.Join(key, "public.pem"))
		if err != nil {
			t.Fatal(err)
		}
		write("adopted-"+kind+".pub", public)
		verify("adopted-"+kind+".pub", "adopted-"+kind+".sig")
		// ours
		key = draft("ours-"+kind, "")
		if err := parsecfstest.WriteOnce(filepath.Join(key, "generate"), fmt.Appendf(nil, "template = %q\nusage = \"PSA_KEY_USAGE_EXPORT|PSA_KEY_USAGE_SIGN_MESSAGE\"\n", template)); err != nil {
			t.Fatal(err)
		}
		if public, err = os.ReadFile(filepath.Join(key, "public.pem")); err != nil {
			t.Fatal(err)
		}
		write("ours-"+kind+".pub", public)
		for name, request := range map[string]string{"ours-" + kind: "tss2\n", "locked-" + kind: "tss2\nopen sesame\n"} {
			b, err := parsecfstest.Ask(filepath.Join(key, "export"), []byte(request))
			if err != nil || !strings.HasPrefix(string(b), "-----BEGIN TSS2 PRIVATE KEY-----") {
				t.Fatalf("export of %s: %q, %v", name, b, err)
			}
			write(name+".pem", b)
		}
		for _, request := range []string{"pkcs8\n", "pkcs8-der", "raw"} {
			if b, err := parsecfstest.Ask(filepath.Join(key, "export"), []byte(request)); err == nil || len(b) > 0 {
				t.Errorf("export as %q gave %q", request, b)
			}
		}
		// without the flag there is no such file
		if _, err := os.Stat(filepath.Join(keys, "adopted-"+kind, "export")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("export without the flag: %v", err)
		}
	}
	if code := m.Stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	for kind := range templates {
		opensslOn(t, chip, dir, "dgst", "-sha256", "-sign", "ours-"+kind+".pem", "-out", "ours-"+kind+".sig", "message")
		verify("ours-"+kind+".pub", "ours-"+kind+".sig")
		opensslOn(t, chip, dir, "dgst", "-sha256", "-passin", "pass:open sesame", "-sign", "locked-"+kind+".pem", "-out", "locked-"+kind+".sig", "message")
		verify("ours-"+kind+".pub", "locked-"+kind+".sig")
		opensslOn(t, chip, dir, "dgst", "-sha256", "-sign", "theirs-"+kind+".pem", "-out", "theirs-"+kind+".sig", "message")
		verify("adopted-"+kind+".pub", "theirs-"+kind+".sig")
	}
}

// TestRestrictedTSS2: a file's key that signs only what the TPM made is refused for that, whatever the draft wants.
func TestRestrictedTSS2(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip := tpmtest.Start(t)
	dir := t.TempDir()
	for _, args := range [][]string{
		{"tpm2_createprimary", "-C", "o", "-G", "ecc", "-c", "parent"},
		{"tpm2_create", "-C", "parent", "-G", "rsa2048:rsapss-sha256:null", "-u", "pub", "-r", "priv",
			"-a", "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign|restricted"},
		{"tpm2_flushcontext", "-t"},
	} {
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+chip.TCTI(), "TSS2_LOG=all+NONE")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	// draft-bottomley-tpm2-keys, 3.1: a loadable key below the owner's primary key
	key := struct {
		Type            asn1.ObjectIdentifier
		EmptyAuth       bool `asn1:"explicit,tag:0"`
		Parent          int64
		Public, Private []byte
	}{asn1.ObjectIdentifier{2, 23, 133, 10, 1, 3}, true, 0x40000001, nil, nil}
	for name, to := range map[string]*[]byte{"pub": &key.Public, "priv": &key.Private} {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		*to = b
	}
	der, err := asn1.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: stores.TPMConfig(chip)})
	for _, template := range []string{"rsa-2048-pss-sha256", "rsa-2048-pkcs1v15-sha256"} {
		draft := filepath.Join(m.Dir, "providers/p/keys", template)
		if err := os.Mkdir(draft, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := parsecfstest.WriteOnce(filepath.Join(draft, "attributes"), fmt.Appendf(nil, "template = %q\n", template)); err != nil {
			t.Fatal(err)
		}
		err := parsecfstest.WriteOnce(filepath.Join(draft, "import"), pem.EncodeToMemory(&pem.Block{Type: "TSS2 PRIVATE KEY", Bytes: der}))
		if !errors.Is(err, syscall.EINVAL) {
			t.Errorf("%s: %v", template, err)
		}
		b, err := os.ReadFile(filepath.Join(draft, "last_error"))
		for _, want := range []string{"\tthe TPM key is restricted: it signs and decrypts only what the TPM itself made",
			"\thint: make the key without the attribute restricted\t"} {
			if err != nil || !strings.Contains(string(b), want) {
				t.Errorf("%s: last_error is %q, %v, want %q", template, b, err, want)
			}
		}
	}
}

// TestPCRs: pcrs in attributes binds a key to the platform's state, where there is a TPM.
func TestPCRs(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	_, s := tpmStore(t)
	text := []byte("template = \"ecdsa-p256-sha256\"\npcrs = [16, 0, 7]\n")
	if err := os.Mkdir(s.Path("bound"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := parsecfstest.WriteOnce(s.Path("bound", "attributes"), []byte("pcrs = [24]\n")); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("register 24: %v", err)
	}
	if err := parsecfstest.WriteOnce(s.Path("bound", "generate"), text); err != nil {
		t.Fatal(err)
	}
	public, err := os.ReadFile(s.Path("bound", "public.der"))
	if err == nil {
		err = s.Works("bound", public)
	}
	if err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(s.Path("bound", "attributes")); err != nil || !strings.Contains(string(b), "pcrs = [0, 7, 16]\n") || !strings.Contains(string(b), "template = 'ecdsa-p256-sha256'\n") {
		t.Errorf("attributes are %s, %v", b, err)
	}
	if err := parsecfstest.WriteOnce(s.Path("bound", "attributes"), []byte("pcrs = []\n")); !errors.Is(err, syscall.EACCES) {
		t.Errorf("another policy: %v", err)
	}
	s.M.Kill()
	s.M.Restart()
	s.Until("ready")
	if err := s.Works("bound", public); err != nil {
		t.Error(err)
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	draft := filepath.Join(m.Dir, "providers/software/keys/k")
	if err := os.Mkdir(draft, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := parsecfstest.WriteOnce(filepath.Join(draft, "generate"), text); !errors.Is(err, syscall.EOPNOTSUPP) {
		t.Errorf("PCRs in software: %v", err)
	}
}

// TestTPMHangs: a TPM that answers nobody costs its callers operation_timeout, and nobody else anything.
func TestTPMHangs(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip := tpmtest.Start(t)
	config := "[core_settings]\noperation_timeout = \"1s\"\n" + stores.TPMConfig(chip) + "[[provider]]\nname = \"other\"\nprovider_type = \"Software\"\nkey_info_manager = \"kim\"\n"
	s := &stores.Keystore{T: t, Store: stores.Store{Name: "tpm"}, Keys: map[string][]byte{}, M: parsecfstest.Mount(t, parsecfstest.Options{Config: config})}
	public, err := s.Create("key")
	if err != nil {
		t.Fatal(err)
	}
	// The daemon looks at its device when it has just come: where that is cut off, the keys are away before anybody waited.
	for deadline := time.Now().Add(20 * time.Second); ; {
		chip.Freeze()
		first, second := s.Works("key", public), s.Works("key", public)
		if errors.Is(first, syscall.ETIMEDOUT) && errors.Is(second, syscall.ENODEV) && time.Now().Before(deadline) {
			chip.Thaw()
			s.Until("ready")
			continue
		}
		for _, err := range []error{first, second} {
			if !errors.Is(err, syscall.ETIMEDOUT) {
				t.Errorf("a TPM that hangs: %v", err)
			}
		}
		break
	}
	if b, err := parsecfstest.Ask(filepath.Join(s.M.Dir, "providers/other/hash/sha256"), []byte("message")); err != nil || len(b) != 32 {
		t.Errorf("another provider: %x, %v", b, err)
	}
	if b, err := os.ReadFile(s.Path("key", "public.der")); err != nil || string(b) != string(public) {
		t.Errorf("the public key meanwhile: %v", err)
	}
	chip.Thaw()
	s.Until("ready")
	if err := s.Works("key", public); err != nil {
		t.Error(err)
	}
}
