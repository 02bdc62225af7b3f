package pkcs11test

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// TPM2 makes a token of tpm2-pkcs11, over tpm2-abrmd on a bus of its own, over a TPM of tpmtest. Where that cannot be
// started, the test is skipped.
//
// A wrong PIN counts for the TPM as an attack: after three, it takes no PIN any more.
func TPM2(t *testing.T) *Token {
	t.Helper()
	library := module(t, "/usr/lib/*/pkcs11/libtpm2_pkcs11.so", "/usr/lib*/pkcs11/libtpm2_pkcs11.so", "/usr/lib/*/libtpm2_pkcs11.so.1")
	chip := tpmtest.Start(t)
	dir := Folder(t)
	address := startBus(t, dir)
	broker := startBroker(t, dir, address, chip.TCTI())

	k := &Token{
		Library: library,
		Label:   "tpm",
		Serial:  "0000000000000000",
		PIN:     pin,
		SOPIN:   soPIN,
		Env: []string{
			"DBUS_SESSION_BUS_ADDRESS=" + address,
			"TPM2_PKCS11_STORE=" + filepath.Join(dir, "store"),
			"TPM2_PKCS11_TCTI=tabrmd:bus_type=session",
			"TPM2_PKCS11_LOG_LEVEL=0",
		},
		t:   t,
		uid: os.Geteuid(),
		dir: filepath.Join(dir, "store"),
	}
	k.home = k.dir
	// The bus is reached through the folder; the store has a mode of its own.
	if err := errors.Join(os.Mkdir(k.dir, 0o700), os.Chmod(dir, 0o711)); err != nil {
		t.Fatal(err)
	}
	// The broker says nowhere that it is ready: the first command that comes through tells.
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := run(k.Env, "pkcs11-tool", "--module", k.Library, "--init-token", "--label", k.Label, "--so-pin", soPIN)
		if err == nil {
			break
		}
		if broker.ended() || time.Now().After(deadline) {
			t.Skipf("no tpm2-pkcs11 here: %v\ntpm2-abrmd: %s", err, broker.words())
		}
	}
	must(t, k.Env, "pkcs11-tool", "--module", k.Library, "--init-pin", "--token-label", k.Label,
		"--login", "--login-type", "so", "--so-pin", soPIN, "--pin", pin)
	return k
}

// startBus starts a bus that every user's programs can reach, and gives its address.
func startBus(t *testing.T, dir string) string {
	t.Helper()
	configuration := filepath.Join(dir, "bus.conf")
	err := os.WriteFile(configuration, fmt.Appendf(nil, `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>session</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow send_destination="*" eavesdrop="true"/>
    <allow eavesdrop="true"/>
    <allow own="*"/>
    <allow user="*"/>
  </policy>
</busconfig>
`, filepath.Join(dir, "bus")), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	said, say, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	d := start(t, dir, nil, say, "dbus-daemon", "--config-file="+configuration, "--nofork", "--nopidfile", "--print-address")
	_ = say.Close() // the daemon has it
	address, err := bufio.NewReader(said).ReadString('\n')
	if err != nil {
		t.Skipf("no bus here: %v: %s", err, d.words())
	}
	return address[:len(address)-1]
}

func startBroker(t *testing.T, dir, address, tcti string) *daemon {
	t.Helper()
	name, err := exec.LookPath("tpm2-abrmd")
	if err != nil {
		name = "/usr/sbin/tpm2-abrmd" // not in every user's PATH
	}
	return start(t, dir, []string{"DBUS_SESSION_BUS_ADDRESS=" + address}, nil,
		name, "--session", "--allow-root", "--tcti="+tcti)
}

// daemon is a program that runs until the test's end.
type daemon struct {
	log  string
	done chan struct{}
}

// start skips the test where the program does not start.
func start(t *testing.T, dir string, env []string, out *os.File, name string, args ...string) *daemon {
	t.Helper()
	d := &daemon{log: filepath.Join(dir, filepath.Base(name)+".log"), done: make(chan struct{})}
	log, err := os.Create(d.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	if out != nil {
		cmd.Stdout = out
	}
	if err := cmd.Start(); err != nil {
		t.Skipf("cannot start: %v", err)
	}
	go func() {
		_ = cmd.Wait() // killed, or its log says why
		close(d.done)
	}()
	t.Cleanup(func() {
		if !d.ended() {
			_ = cmd.Process.Kill() // it may end at this moment
		}
		<-d.done
	})
	return d
}

func (d *daemon) ended() bool {
	select {
	case <-d.done:
		return true
	default:
		return false
	}
}

func (d *daemon) words() string {
	words, err := os.ReadFile(d.log)
	if err != nil {
		return err.Error()
	}
	return string(words)
}
