package wrapping

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// configure gives the daemon and the command another [core_settings].
func (s *wrapStore) configure(core string) {
	s.T.Helper()
	for _, file := range []string{s.config, s.M.ConfigFile} {
		if err := os.WriteFile(file, []byte(wrapConfig(s.chip, core)), 0o600); err != nil {
			s.T.Fatal(err)
		}
	}
}

// beside does something at the TPM; the daemon must not be connected.
func (s *wrapStore) beside(do func(l transport.TPM) error) {
	s.T.Helper()
	l, err := linuxudstpm.Open(strings.TrimPrefix(s.chip.TCTI(), "swtpm:path="))
	if err != nil {
		s.T.Fatal(err)
	}
	defer l.Close()
	if err := do(l); err != nil {
		s.T.Fatal(err)
	}
}

// wrongPINs is how many the TPM counts.
func (s *wrapStore) wrongPINs() (n uint32) {
	s.T.Helper()
	s.beside(func(l transport.TPM) error {
		rsp, err := tpm2.GetCapability{Capability: tpm2.TPMCapTPMProperties,
			Property: uint32(tpm2.TPMPTLockoutCounter), PropertyCount: 1}.Execute(l)
		if err != nil {
			return err
		}
		list, err := rsp.CapabilityData.Data.TPMProperties()
		if err == nil {
			n = list.TPMProperty[0].Value
		}
		return err
	})
	return n
}

// forgetWrongPINs has the TPM begin anew (TPM2_DictionaryAttackLockReset, with an empty password).
func (s *wrapStore) forgetWrongPINs() {
	s.T.Helper()
	s.beside(func(l transport.TPM) error {
		command := binary.BigEndian.AppendUint32([]byte{0x80, 0x02, 0, 0, 0, 27}, uint32(tpm2.TPMCCDictionaryAttackLockReset))
		command = binary.BigEndian.AppendUint32(command, uint32(tpm2.TPMRHLockout))
		command = binary.BigEndian.AppendUint32(command, 9)
		command = binary.BigEndian.AppendUint32(command, uint32(tpm2.TPMRSPW))
		answer, err := l.Send(append(command, make([]byte, 5)...))
		if err == nil && binary.BigEndian.Uint32(answer[6:]) != 0 {
			err = fmt.Errorf("the TPM answers %x", answer)
		}
		return err
	})
}

// TestWrappedWithPIN: a store that a TPM wraps with a PIN opens with both alone; a PIN that the TPM refused is tried once.
func TestWrappedWithPIN(t *testing.T) {
	t.Parallel()
	s := newWrapStore(t)
	dir := parsecfstest.TempDir(t)
	recovery, file := filepath.Join(dir, "recovery"), filepath.Join(dir, "pin")
	pin := func(text string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(text+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const wrapping = "wrapping = \"tpm:chip\"\n"
	withPIN := wrapping + fmt.Sprintf("wrapping_pin_source = %q\n", file)
	const hint = "state rewrap --recovery-key FILE tpm:chip"
	opens := func() {
		t.Helper()
		s.M.Restart()
		s.Until("ready")
		s.AllWork()
	}

	// From a file to the TPM, by a daemon that knows nothing of a PIN yet.
	s.configure(withPIN)
	if stderr, code := s.rewrap("--recovery-key", recovery, "tpm:chip"); code != 1 || !strings.Contains(stderr, "the PIN: ") {
		t.Errorf("without the PIN's file: exit %d: %s", code, stderr)
	}
	s.hasFile(true)
	pin("1234")
	s.mustRewrap("--recovery-key", recovery, "tpm:chip")
	s.hasFile(false)
	s.AllWork()
	opens()

	// A wrong PIN: the daemon looks again, and others have it look, but the TPM is asked once.
	pin("4321")
	s.M.Restart()
	s.sealed("the PIN is refused by the TPM", hint)
	for range 3 {
		stderr, code := s.rewrap("tpm:chip")
		if code != 1 || !strings.Contains(stderr, "the PIN is refused by the TPM") || !strings.Contains(stderr, hint) {
			t.Errorf("with the wrong PIN: exit %d: %s", code, stderr)
		}
	}
	s.M.Kill()
	if n := s.wrongPINs(); n != 1 {
		t.Errorf("the TPM counts %d wrong PINs", n)
	}
	s.M.Restart()
	s.sealed("the PIN is refused by the TPM", hint)
	s.M.Kill()
	if n := s.wrongPINs(); n != 2 {
		t.Errorf("the TPM counts %d wrong PINs in two starts", n)
	}
	s.M.Restart() // of three, it is not locked by us
	s.sealed("the PIN was not tried", hint)
	s.M.Kill()
	if n := s.wrongPINs(); n != 2 {
		t.Errorf("the TPM counts %d wrong PINs in three starts", n)
	}
	s.forgetWrongPINs()
	s.M.Restart()
	s.sealed("the PIN is refused by the TPM", hint)
	pin("1234") // without a restart
	s.Until("ready")
	s.AllWork()
	s.M.Kill()
	s.forgetWrongPINs()

	// A file that is not there, or that others read or have made.
	aside := file + ".aside"
	for _, c := range []struct {
		why     string
		do, end func() error
	}{
		{"the PIN cannot be read: ", func() error { return os.Rename(file, aside) }, func() error { return os.Rename(aside, file) }},
		{"other users can read or change", func() error { return os.Chmod(file, 0o640) }, func() error { return os.Chmod(file, 0o400) }},
		{"the PIN cannot be read: ", func() error { return os.Chown(file, 65534, 65534) }, func() error { return os.Chown(file, 0, 0) }},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		s.M.Restart()
		s.sealed(c.why, hint)
		if err := c.end(); err != nil {
			t.Fatal(err)
		}
		s.Until("ready")
		s.AllWork()
	}

	// Beside PCRs.
	s.mustRewrap("--pcrs", "16", "tpm:chip")
	opens()
	s.M.Kill()
	extend(t, s.chip)
	s.M.Restart()
	s.sealed("the PCRs [16] have changed", hint)
	s.mustRewrap("--recovery-key", recovery, "--pcrs", "", "tpm:chip")
	opens()

	// Another PIN.
	if err := os.Chmod(file, 0o600); err != nil {
		t.Fatal(err)
	}
	pin("2345")
	s.mustRewrap("tpm:chip")
	opens()
	pin("1234")
	s.M.Restart()
	s.sealed("the PIN is refused by the TPM", hint)
	s.mustRewrap("--recovery-key", recovery, "tpm:chip") // where the former one is lost
	s.AllWork()
	opens()

	// No PIN.
	s.configure(wrapping)
	s.M.Restart()
	s.sealed("the PIN is missing", hint)
	s.mustRewrap("--recovery-key", recovery, "tpm:chip")
	opens()
	s.M.Kill()
	s.configure(withPIN)
	err := s.M.Start()
	if err == nil || !strings.Contains(err.Error(), "wrapped without a PIN") || !strings.Contains(err.Error(), "hint: parsecfs state rewrap") {
		t.Errorf("a mount that wants a PIN: %v", err)
	}
	s.mustRewrap("tpm:chip") // without a daemon
	opens()
	s.configure("")
	s.mustRewrap("--recovery-key", recovery, "file")
	opens()
	s.hasFile(true)
}
