package pkcs11test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// SoftHSM makes a folder of SoftHSM tokens, one for each label, which one module sees together. There is one more slot
// always, with a token that is not initialised: its label and serial number are empty.
func SoftHSM(t *testing.T, labels ...string) []*Token {
	t.Helper()
	library := module(t, "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib*/*/softhsm/libsofthsm2.so", "/usr/lib*/softhsm/libsofthsm2.so")
	dir := Folder(t)
	tokens, away := filepath.Join(dir, "tokens"), filepath.Join(dir, "away")
	for _, d := range []string{tokens, away} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	configuration := filepath.Join(dir, "softhsm2.conf")
	err := os.WriteFile(configuration, []byte("directories.tokendir = "+tokens+
		"\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	env := []string{"SOFTHSM2_CONF=" + configuration}
	for _, label := range labels {
		must(t, env, "softhsm2-util", "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", soPIN)
	}

	serials := softHSMSerials(t, env)
	var made []*Token
	for _, label := range labels {
		serial := serials[label]
		k := &Token{Library: library, Label: label, Serial: serial, PIN: pin, SOPIN: soPIN, Env: env, t: t, uid: os.Geteuid(), home: dir}
		k.dir = softHSMFolder(t, tokens, serial)
		k.away = filepath.Join(away, filepath.Base(k.dir))
		made = append(made, k)
	}
	return made
}

// softHSMSerials maps each token's label to its serial number.
func softHSMSerials(t *testing.T, env []string) map[string]string {
	t.Helper()
	serials := make(map[string]string)
	var serial string
	for line := range strings.Lines(must(t, env, "softhsm2-util", "--show-slots")) {
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.TrimSpace(name) {
		case "Serial number":
			serial = value
		case "Label":
			serials[value] = serial
		}
	}
	return serials
}

// softHSMFolder is the token's: a UUID, whose last 16 digits are the serial number.
func softHSMFolder(t *testing.T, tokens, serial string) string {
	t.Helper()
	entries, err := os.ReadDir(tokens)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if serial != "" && strings.HasSuffix(strings.ReplaceAll(e.Name(), "-", ""), serial) {
			return filepath.Join(tokens, e.Name())
		}
	}
	t.Fatalf("no folder for the token with the serial number %q", serial)
	return ""
}

// Reinitialise empties the token under whoever uses it, as softhsm2-util does: every object is gone; label, serial
// number, PINs and the slot stay, and so does the login of a module that is loaded.
func (k *Token) Reinitialise() {
	k.t.Helper()
	k.must("softhsm2-util", "--init-token", "--serial", k.Serial, "--label", k.Label, "--pin", k.PIN, "--so-pin", k.SOPIN)
}

// Import lets softhsm2-util import a private key, which is a file with unencrypted PKCS#8 in PEM; id is hexadecimal.
func (k *Token) Import(file, id, label string) {
	k.t.Helper()
	k.must("softhsm2-util", "--import", file, "--serial", k.Serial, "--label", label, "--id", id, "--pin", k.PIN)
}
