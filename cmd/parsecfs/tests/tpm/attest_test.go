package tpm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// TestRemoteAttestation is the whole chain of a verifier, who has tpm2-tools and OpenSSL and no TPM: the endorsement key
// vouches for the attestation key, and that one for a key and for the state of the platform.
func TestRemoteAttestation(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip := tpmtest.Start(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: stores.TPMConfig(chip) + "[[provider]]\nname = \"other\"\nprovider_type = \"Software\"\nkey_info_manager = \"kim\"\n"})
	provider, other := filepath.Join(m.Dir, "providers/p"), filepath.Join(m.Dir, "providers/other")
	temp := t.TempDir()
	file := func(name string) string { return filepath.Join(temp, name) }
	write := func(name string, b []byte) string {
		t.Helper()
		if err := os.WriteFile(file(name), b, 0o600); err != nil {
			t.Fatal(err)
		}
		return file(name)
	}
	tool := func(args ...string) []byte {
		t.Helper()
		cmd := exec.Command(args[0], args[1:]...)
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI=none")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		return out
	}
	info := stores.ReadInfo(t, provider)
	area, err := hex.DecodeString(info.AttestationPublic)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](area)
	if err != nil {
		t.Fatal(err)
	}
	if a := ak.ObjectAttributes; !a.Restricted || !a.SignEncrypt || a.Decrypt || !a.FixedTPM || !a.SensitiveDataOrigin {
		t.Errorf("the attestation key is no restricted signing key: %+v", a)
	}
	digest := sha256.Sum256(area)
	ekFile, akFile := write("ek.pem", []byte(info.EndorsementKey)), write("ak.pem", []byte(info.AttestationKey))

	// the endorsement key vouches for the attestation key
	activated := func(dir string, name [32]byte) {
		t.Helper()
		secret := write("secret", []byte("from a verifier, to this machine"))
		tool("tpm2_makecredential", "-T", "none", "-u", ekFile, "-G", "rsa", "-s", secret, "-n", "000b"+hex.EncodeToString(name[:]), "-o", file("credential"))
		credential, err := os.ReadFile(file("credential"))
		if err != nil {
			t.Fatal(err)
		}
		got, err := parsecfstest.Ask(filepath.Join(dir, "activate_credential"), credential)
		if err != nil || string(got) != "from a verifier, to this machine" {
			t.Errorf("activated %q, %v", got, err)
		}
		if got, err := parsecfstest.Ask(filepath.Join(dir, "activate_credential"), credential[8:]); err != nil || len(got) != 32 {
			t.Errorf("without tpm2-tools' header: %q, %v", got, err)
		}
		if got, err := parsecfstest.Ask(filepath.Join(dir, "activate_credential"), []byte("none")); !errors.Is(err, syscall.EINVAL) || len(got) > 0 {
			t.Errorf("of no credential came %q, %v", got, err)
		}
	}
	activated(provider, digest)

	// which vouches for a key
	key := filepath.Join(provider, "keys/web")
	if err := os.Mkdir(key, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := parsecfstest.WriteOnce(filepath.Join(key, "generate"), []byte("ecdsa-p256-sha256\n")); err != nil {
		t.Fatal(err)
	}
	out, err := stores.Attest(key, map[string]string{"challenge": "nonce"}, "attestation", "signature", "public", "signer_public")
	if err != nil {
		t.Fatal(err)
	}
	if string(out["signer_public"]) != info.AttestationKey {
		t.Errorf("signed by %s", out["signer_public"])
	}
	tool("openssl", "dgst", "-sha256", "-verify", akFile, "-signature", write("signature", out["signature"]), write("attestation", out["attestation"]))
	certified, err := providertest.CheckCertified(out, providertest.AttestationAlgorithm, []byte("nonce"))
	if err != nil {
		t.Fatal(err)
	}
	if a := certified.ObjectAttributes; !a.FixedTPM || !a.SensitiveDataOrigin || a.Restricted {
		t.Errorf("the key's attributes are %+v", a)
	}
	public, err := os.ReadFile(filepath.Join(key, "public.der"))
	if err != nil {
		t.Fatal(err)
	}
	if p, err := certified.Unique.ECC(); err != nil || !bytes.HasSuffix(public, append(append([]byte{4}, p.X.Buffer...), p.Y.Buffer...)) {
		t.Errorf("another key is certified: %v", err)
	}
	activated(key, sha256.Sum256(out["public"]))

	// and for the platform
	if out, err = stores.Attest(provider, map[string]string{"challenge": "nonce", "pcrs": "0,7,16"}, "attestation", "signature"); err != nil {
		t.Fatal(err)
	}
	said, err := tpm2.Unmarshal[tpm2.TPMSAttest](out["attestation"])
	if err != nil {
		t.Fatal(err)
	}
	quote, err := said.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	for _, n := range []int{0, 7, 16} {
		b, err := hex.DecodeString(info.PCRs[strconv.Itoa(n)])
		if err != nil {
			t.Fatal(err)
		}
		sum.Write(b)
	}
	if !bytes.Equal(quote.PCRDigest.Buffer, sum.Sum(nil)) {
		t.Error("the quote is not of the registers in info")
	}
	tool("tpm2_checkquote", "-u", akFile, "-m", write("quote", out["attestation"]), "-s", write("quote.sig", out["signature"]), "-g", "sha256", "-q", hex.EncodeToString([]byte("nonce")))

	// who can do that says so, and nobody else has the files
	questions := "attest\nactivate_credential\nmake_credential\nattest ecdsa-p256-sha256\nactivate_credential hmac-sha256\n"
	for dir, want := range map[string]string{provider: "yes", other: "no: the provider's capabilities do not list"} {
		b, err := parsecfstest.Ask(filepath.Join(dir, "can_do"), []byte(questions))
		answers := strings.Split(string(b), "\n")
		if err != nil || len(answers) != 7 {
			t.Fatalf("%q, %v", b, err)
		}
		for _, answer := range answers[:5] {
			if !strings.HasPrefix(answer, want) {
				t.Errorf("can_do in %s says %q", dir, b)
			}
		}
	}
	if b, err := parsecfstest.Ask(filepath.Join(provider, "can_do"), []byte("make_credential ecdsa-p256-sha256\n")); err != nil || !strings.HasPrefix(string(b), "no: ") {
		t.Errorf("can_do says %q, %v", b, err)
	}
	if err := errors.Join(os.Mkdir(filepath.Join(other, "keys/web"), 0o700), parsecfstest.WriteOnce(filepath.Join(other, "keys/web/generate"), []byte("ecdsa-p256-sha256\n"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"attest", "activate_credential", "make_credential", "attest.d", "keys/web/attest", "keys/web/activate_credential"} {
		if _, err := os.Stat(filepath.Join(other, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s of software: %v", name, err)
		}
	}
	if info := stores.ReadInfo(t, other); info.EndorsementKey != "" || len(info.PCRs) > 0 {
		t.Errorf("software says %+v", info)
	}

	// all of it is the same after a restart of both
	m.Kill()
	chip.Kill()
	chip.Restart()
	m.Restart()
	(&stores.Keystore{T: t, M: m}).Until("ready")
	if again := stores.ReadInfo(t, provider); again.AttestationPublic != info.AttestationPublic || again.EndorsementKey != info.EndorsementKey {
		t.Error("the device has other keys now")
	}
	chip.Freeze() // one that answers nobody keeps nobody waiting for long
	if without := withoutTPM(t, provider); without.Name != "p" {
		t.Errorf("while the TPM hangs info says %+v", without)
	}
	chip.Thaw()
	(&stores.Keystore{T: t, M: m}).Until("ready")
	chip.Kill()
	(&stores.Keystore{T: t, M: m}).Until("degraded")
	if without := withoutTPM(t, provider); without.Name != "p" || len(without.PCRs) > 0 {
		t.Errorf("without a TPM info says %+v", without)
	}
	chip.Restart()
}

// withoutTPM is what info says when the device is away. What the device said last may be a second old.
func withoutTPM(t *testing.T, provider string) stores.DeviceInfo {
	t.Helper()
	for range 100 {
		if info := stores.ReadInfo(t, provider); info.EndorsementKey == "" {
			return info
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatal("info still tells of the device")
	return stores.DeviceInfo{}
}

// TestSignerIsChecked: who names a key that signs must be let in to its sign, which the audit trail tells, and what the
// device says of itself is root's to ask for.
func TestSignerIsChecked(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip := tpmtest.Start(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: stores.TPMConfig(chip) + "[audit]\n"})
	const alice, bob = 61301, 61302
	sh := func(uid int, script string) (string, error) {
		cmd := exec.Command("sh", "-c", script)
		cmd.Dir = filepath.Join(m.Dir, "providers/p")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(uid int, script string) {
		t.Helper()
		if out, err := sh(uid, script); err != nil {
			t.Fatalf("%s: %v: %s", script, err, out)
		}
	}
	refused := func(uid int, script, why string) {
		t.Helper()
		if out, err := sh(uid, script); err == nil || !strings.Contains(out, why) {
			t.Errorf("%s: %v: %s", script, err, out)
		}
	}
	for uid, name := range map[int]string{alice: "alice", bob: "bob"} {
		must(uid, fmt.Sprintf("umask 022; mkdir keys/%[1]s && echo ecdsa-p256-sha256 >keys/%[1]s/generate", name))
	}
	signs := func(name string) string {
		return fmt.Sprintf("cd keys/bob/attest.d && mkdir x && printf nonce >x/challenge && printf %s >x/signer && { cat x/signature >/dev/null; code=$?; rmdir x; exit $code; }", name)
	}
	must(bob, signs("bob"))
	const denied, absent = "Permission denied", "No such file"
	refused(bob, signs("alice"), denied)
	must(alice, "chmod o+r keys/alice/sign")
	refused(bob, signs("alice"), denied)
	must(alice, "chmod o+w keys/alice/sign")
	must(bob, signs("alice"))
	must(alice, "chmod o= keys/alice/sign; chmod 0700 keys/alice")
	refused(bob, signs("alice"), denied)
	refused(bob, signs("carol"), absent)
	refused(bob, signs("../bob"), "Invalid argument")
	refused(bob, "printf nonce >keys/alice/attest", denied)
	for _, file := range []string{"attest", "activate_credential"} {
		refused(bob, "printf x >"+file, denied)
		refused(bob, "mkdir "+file+".d/x", denied)
	}
	must(bob, "mkdir make_credential.d/x; printf secret >make_credential.d/x/secret; test $(wc -c <make_credential.d/x/credential) -gt 300; rmdir make_credential.d/x")
	// a draft, and a key that does not sign
	must(bob, "mkdir keys/draft keys/agrees && echo ecdh-p256 >keys/agrees/generate")
	refused(bob, signs("draft"), "Device or resource busy")
	refused(bob, signs("agrees"), "cat: ")
	// root hands it out
	must(0, fmt.Sprintf("chown :%d attest && chmod g+rw attest", bob))
	must(bob, "exec 3<>attest; printf nonce >&3; test $(cat <&3 | wc -c) -gt 100")
	if code := m.Stop(); code != 0 {
		t.Fatalf("exit %d", code)
	}
	trail, err := os.ReadFile(filepath.Join(m.StateDir, "audit-operations.log"))
	if err != nil {
		t.Fatal(err)
	}
	uses := 0
	for text := range strings.Lines(string(trail)) {
		var event struct {
			UID                          int
			Operation, Key, File, Status string
		}
		if err := json.Unmarshal([]byte(text), &event); err != nil {
			t.Fatalf("%v: %s", err, text)
		}
		if event.UID == bob && event.Operation == "attest" && event.Key == "alice" && event.File == "sign" {
			uses++
		}
	}
	if uses != 1 {
		t.Errorf("the trail has %d uses of alice's key by bob, not 1:\n%s", uses, trail)
	}
}
