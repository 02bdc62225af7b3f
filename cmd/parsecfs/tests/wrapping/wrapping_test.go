package wrapping

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/parsecfs/parsecfs/fs"
	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// wrapConfig is a software provider, whose keys are sealed, beside a TPM.
func wrapConfig(chip *tpmtest.Chip, core string) string {
	return "[core_settings]\n" + core + stores.KIM + "[[provider]]\nname = \"p\"\nprovider_type = \"Software\"\n" +
		fmt.Sprintf("[[provider]]\nname = \"chip\"\nprovider_type = \"Tpm\"\ntcti = %q\n", chip.TCTI())
}

// wrapStore is a mount with keys in software, whose store can be rewrapped.
type wrapStore struct {
	*stores.Keystore
	chip   *tpmtest.Chip
	config string // a file
}

func newWrapStore(t *testing.T) *wrapStore {
	t.Helper()
	parsecfstest.RequireFUSE(t)
	chip := tpmtest.Start(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: wrapConfig(chip, "")})
	s := &wrapStore{Keystore: &stores.Keystore{T: t, Store: stores.Store{Name: "software"}, Keys: map[string][]byte{}, M: m}, chip: chip, config: filepath.Join(t.TempDir(), "config.toml")}
	if err := os.WriteFile(s.config, []byte(wrapConfig(chip, "")), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"generated", "imported"} {
		make := s.Create
		if name == "imported" {
			make = s.Import
		}
		public, err := make(name)
		if err != nil {
			t.Fatal(err)
		}
		s.Keys[name] = public
	}
	return s
}

func (s *wrapStore) rewrap(args ...string) (stderr string, code int) {
	s.T.Helper()
	_, stderr, code = parsecfstest.Run(s.T, append([]string{"state", "rewrap", "--config", s.config, "--state-dir", s.M.StateDir}, args...)...)
	return stderr, code
}

// killedAt is rewrap by a command that ends itself at a step, and whether it came there.
func (s *wrapStore) killedAt(step string, args ...string) bool {
	s.T.Helper()
	cmd := exec.Command(parsecfstest.Path(s.T), append([]string{"state", "rewrap", "--config", s.config, "--state-dir", s.M.StateDir}, args...)...)
	cmd.Env = append(os.Environ(), parsecfstest.StepVariable+"="+step)
	out, err := cmd.CombinedOutput()
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if err != nil && !(ok && status.Signaled()) {
		s.T.Fatalf("rewrap %v: %v: %s", args, err, out)
	}
	return err != nil
}

func (s *wrapStore) mustRewrap(args ...string) {
	s.T.Helper()
	if stderr, code := s.rewrap(args...); code != 0 {
		s.T.Fatalf("rewrap %v: exit %d: %s", args, code, stderr)
	}
}

// files are the wrapping keys in the state directory.
func (s *wrapStore) files() (names []string) {
	s.T.Helper()
	entries, err := os.ReadDir(s.M.StateDir)
	if err != nil {
		s.T.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "wrapping.key") || strings.HasPrefix(e.Name(), ".aside") {
			names = append(names, e.Name())
		}
	}
	return names
}

// hasFile says what must lie in the state directory.
func (s *wrapStore) hasFile(want bool) {
	s.T.Helper()
	if files := s.files(); want && !slices.Equal(files, []string{"wrapping.key"}) || !want && len(files) > 0 {
		s.T.Errorf("wrapping keys %q, want one: %v", files, want)
	}
}

// TestKillWhileRewrapping ends whoever rewraps, the daemon or the command alone, at each step and in all directions: the
// store opens after each, every key is as before, and the command, given again, does what it was to do.
func TestKillWhileRewrapping(t *testing.T) {
	t.Parallel()
	s := newWrapStore(t)
	recovery := func(n int) string { return s.config + fmt.Sprint(".recovery-", n) }
	made := 0
	const fresh, last = "a new recovery key", "the last recovery key"
	type way struct {
		from string
		args []string
	}
	ways := []way{
		{"file", []string{"--recovery-key", fresh, "tpm:chip"}},
		{"tpm:chip", []string{"--pcrs", "0,7", "tpm:chip"}}, // another blob of the same data key
		{"tpm:chip", []string{"file"}},
		{"file", []string{"file"}}, // another wrapping key
		{"tpm:chip", []string{"--recovery-key", last, "file"}},
		{"file", []string{"--new-data-key", "--recovery-key", last, "file"}}, // all secrets sealed anew
	}
	if parsecfstest.Long() {
		ways = append(ways, way{"tpm:chip", []string{"--new-data-key", "--recovery-key", fresh, "tpm:chip"}})
	}
	now := "file"
	steps := append([]string{fs.StepRecoveryWritten}, kim.RewrapSteps...)
	seen := map[string]bool{}
	for _, mounted := range []bool{true, false} {
		for _, way := range ways {
			for _, step := range steps {
				if now != way.from {
					s.mustRewrap("--recovery-key", recovery(made), way.from)
				}
				args := slices.Clone(way.args)
				now = args[len(args)-1]
				file := max(0, len(args)-2)
				switch args[file] {
				case fresh:
					made++
					fallthrough
				case last:
					args[file] = recovery(made)
				}
				what := fmt.Sprintf("%s in rewrap %v from %s, mounted: %v", step, args, way.from, mounted)
				var killed bool
				switch {
				case mounted && step != fs.StepRecoveryWritten: // which is the command's own
					s.M.Restart(parsecfstest.StepVariable + "=" + step)
					s.Until("ready")
					_, code := s.rewrap(args...)
					killed = code != 0
					if killed {
						<-s.M.Done()
					}
				case !mounted:
					if code := s.M.Stop(); code != 0 {
						t.Fatal(code)
					}
					fallthrough
				default:
					killed = s.killedAt(step, args...)
				}
				seen[step] = seen[step] || killed
				s.M.Restart()
				s.Until("ready")
				s.Check()
				if killed {
					s.mustRewrap(args...)
				}
				s.hasFile(now == "file")
				s.Check() // and again after the next start
				if t.Failed() {
					t.Fatalf("after %s", what)
				}
			}
		}
	}
	for _, step := range steps {
		if !seen[step] {
			t.Errorf("nobody was killed at %s", step)
		}
	}
}

// extend changes a register that anybody may change; the daemon must not be connected.
func extend(t *testing.T, chip *tpmtest.Chip) {
	t.Helper()
	l, err := linuxudstpm.Open(strings.TrimPrefix(chip.TCTI(), "swtpm:path="))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = tpm2.PCRExtend{PCRHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(16), Auth: tpm2.PasswordAuth(nil)},
		Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}}}.Execute(l)
	if err != nil {
		t.Fatal(err)
	}
}

// sealed holds that no key works, and that status and last_error say why and what helps.
func (s *wrapStore) sealed(why, hint string) {
	s.T.Helper()
	s.Until("degraded: secrets in the KIM stay sealed: provider chip ", why)
	for name, public := range s.Keys {
		if err := s.Works(name, public); !errors.Is(err, syscall.ENODEV) {
			s.T.Errorf("%s: %v", name, err)
		}
		if b, err := os.ReadFile(s.Path(name, "last_error")); err != nil || !strings.Contains(string(b), hint) {
			s.T.Errorf("last_error is %q, %v; want %q", b, err, hint)
		}
	}
}

// TestWrappedByTPM: a store that a TPM wraps opens with that TPM alone, whenever it comes, and with the recovery key.
func TestWrappedByTPM(t *testing.T) {
	t.Parallel()
	s := newWrapStore(t)
	recovery := filepath.Join(t.TempDir(), "recovery")
	old, err := os.ReadFile(filepath.Join(s.M.StateDir, "wrapping.key"))
	if err != nil {
		t.Fatal(err)
	}
	if stderr, code := s.rewrap("tpm:chip"); code != 1 || !strings.Contains(stderr, "there is no recovery key") || !strings.Contains(stderr, "hint: add --recovery-key FILE") {
		t.Errorf("without a recovery key: exit %d: %s", code, stderr)
	}
	s.hasFile(true)
	for _, inside := range []string{s.M.StateDir, filepath.Join(s.M.StateDir, "..", "state")} {
		if stderr, code := s.rewrap("--recovery-key", filepath.Join(inside, "recovery"), "tpm:chip"); code != 1 ||
			!strings.Contains(stderr, "would be in the state directory") {
			t.Errorf("in the state directory: exit %d: %s", code, stderr)
		}
	}
	// A key of the TPM's own, which is a sealed secret too.
	const own = "../../chip/keys/own"
	public, err := s.Create(own)
	if err != nil {
		t.Fatal(err)
	}
	ownWorks := func() {
		t.Helper()
		if err := s.Works(own, public); err != nil {
			t.Errorf("the TPM's own key: %v", err)
		}
	}
	s.mustRewrap("--recovery-key", recovery, "tpm:chip")
	ownWorks()
	if info, err := os.Stat(recovery); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the recovery key: %v, %v", info, err)
	}
	s.hasFile(false)
	s.AllWork()

	// The TPM goes: what is open stays open. It is away at the start: it opens when it comes.
	s.chip.Kill()
	s.AllWork()
	s.M.Restart()
	s.sealed("the device does not respond", "state rewrap --recovery-key FILE file")
	s.chip.Restart()
	s.Until("ready")
	s.AllWork()
	ownWorks()
	if b, err := os.ReadFile(filepath.Join(s.M.Dir, "providers/chip/status")); err != nil || string(b) != "ready\n" {
		t.Errorf("the TPM's status: %q, %v", b, err)
	}

	// Another TPM in its place.
	s.M.Kill()
	s.chip.Exchange()
	s.M.Restart()
	s.sealed("another device", "state rewrap --recovery-key FILE file")
	if stderr, code := s.rewrap("file"); code != 1 || !strings.Contains(stderr, "stay sealed") || !strings.Contains(stderr, "hint: ") {
		t.Errorf("without the TPM: exit %d: %s", code, stderr)
	}
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte(strings.Replace(string(old), "wrapping", "recovery", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if stderr, code := s.rewrap("--recovery-key", other, "file"); code != 1 || !strings.Contains(stderr, "this is not the recovery key") {
		t.Errorf("another recovery key: exit %d: %s", code, stderr)
	}
	if stderr, code := s.rewrap("--recovery-key", other+"-none", "file"); code != 1 || !strings.Contains(stderr, "no such file") {
		t.Errorf("no recovery key: exit %d: %s", code, stderr)
	}
	s.mustRewrap("--recovery-key", recovery, "file")
	s.AllWork() // without a restart
	s.hasFile(true)
	s.M.Restart()
	s.Until("ready")
	s.AllWork()

	// PCRs.
	s.chip.Exchange()
	s.M.Restart()
	s.Until("ready")
	s.mustRewrap("--recovery-key", recovery, "--pcrs", "16", "tpm:chip")
	s.M.Restart()
	s.Until("ready")
	s.AllWork()
	s.M.Kill()
	extend(t, s.chip)
	s.M.Restart()
	s.sealed("the PCRs [16] have changed", "state rewrap --recovery-key FILE tpm:chip")
	s.mustRewrap("--recovery-key", recovery, "tpm:chip") // bound to the registers as they are now
	s.AllWork()
	s.M.Restart()
	s.Until("ready")
	s.AllWork()
	s.M.Kill()
	extend(t, s.chip)
	s.M.Restart()
	s.sealed("the PCRs [16] have changed", "state rewrap --recovery-key FILE tpm:chip")
	s.mustRewrap("--recovery-key", recovery, "--pcrs", "", "tpm:chip")
	s.M.Kill()
	extend(t, s.chip)
	s.M.Restart()
	s.Until("ready")
	s.AllWork()
	ownWorks()
}

// TestWrappedByRenamed: the provider that wraps the data key gets another name, and none takes its.
func TestWrappedByRenamed(t *testing.T) {
	t.Parallel()
	s := newWrapStore(t)
	s.mustRewrap("--recovery-key", filepath.Join(t.TempDir(), "recovery"), "tpm:chip")
	if code := s.M.Stop(); code != 0 {
		t.Fatal(code)
	}
	rename := func(from, to string) (stderr string, code int) {
		_, stderr, code = parsecfstest.Run(t, "provider", "rename", "--config", s.config, "--state-dir", s.M.StateDir, from, to)
		return stderr, code
	}
	if stderr, code := rename("p", "chip"); code == 0 || !strings.Contains(stderr, "it wraps the data key") || !strings.Contains(stderr, "hint: ") {
		t.Errorf("exit %d: %s", code, stderr)
	}
	if stderr, code := rename("chip", "soc"); code != 0 {
		t.Fatalf("exit %d: %s", code, stderr)
	}
	file := s.M.ConfigFile
	if err := os.WriteFile(file, []byte(strings.Replace(wrapConfig(s.chip, "wrapping = \"tpm:soc\"\n"), `"chip"`, `"soc"`, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	s.M.Restart()
	s.Until("ready")
	s.Check()
	s.hasFile(false)
}

// TestWrappedBackup: a backup of a store that a TPM wraps holds no wrapping key, and opens elsewhere with the recovery key.
func TestWrappedBackup(t *testing.T) {
	t.Parallel()
	s := newWrapStore(t)
	recovery := filepath.Join(t.TempDir(), "recovery")
	s.mustRewrap("--recovery-key", recovery, "tpm:chip")
	// What a crash might leave, or somebody puts there: it is none of this store's.
	if err := os.WriteFile(filepath.Join(s.M.StateDir, "wrapping.key"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, keys := s.Backup()
	dir := filepath.Join(parsecfstest.TempDir(t), "restored")
	if _, stderr, code := parsecfstest.Run(t, "state", "restore", "--state-dir", dir, file); code != 0 {
		t.Fatalf("restore: %s", stderr)
	}
	if _, err := os.Stat(filepath.Join(dir, "wrapping.key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the backup had a wrapping key: %v", err)
	}
	config := stores.KIM + "[[provider]]\nname = \"p\"\nprovider_type = \"Software\"\n"
	back := &wrapStore{Keystore: &stores.Keystore{T: t, Store: s.Store, Keys: keys, M: parsecfstest.Mount(t, parsecfstest.Options{Config: config, StateDir: dir})}, config: s.config}
	back.sealed("is not configured", "state rewrap --recovery-key FILE file")
	back.mustRewrap("--recovery-key", recovery, "file")
	back.Check()
	back.M.Restart()
	back.Until("ready")
	back.Check()
	if b, err := os.ReadFile(filepath.Join(s.M.StateDir, "wrapping.key")); err != nil || string(b) != "mine" {
		t.Errorf("somebody's file is %q, %v", b, err)
	}
}
