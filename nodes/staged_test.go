package nodes_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// certify makes a certificate in PEM.
func certify(t *testing.T, public *ecdsa.PublicKey, name string) []byte {
	t.Helper()
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, ca)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestPartsOfAChain: a chain that several commands write to one open file is stored as a whole or not at all, although each of
// them closes the file.
func TestPartsOfAChain(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	m.key("issuer", "ecdsa-p256-sha256")
	dir, file := t.TempDir(), m.path("k", "certificate")
	old, leaf, issuer := certify(t, m.public("k"), "old"), certify(t, m.public("k"), "new"), certify(t, m.public("issuer"), "issuer")
	cut := len(issuer) - 100
	parts := map[string][]byte{"old": old, "leaf": leaf, "issuer": issuer, "front": issuer[:cut], "back": issuer[cut:], "empty": nil,
		"damaged": bytes.Replace(issuer, []byte("\nM"), []byte("\n*"), 1), "other": []byte("-----BEGIN RSA PRIVATE KEY-----\n")}
	for name, b := range parts {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0600); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		script string
		fails  bool
		want   []byte
	}{
		{"cat $D/leaf $D/issuer >$F", false, append(bytes.Clone(leaf), issuer...)},
		{"{ cat $D/leaf; cat $D/issuer; } >$F", false, append(bytes.Clone(leaf), issuer...)},
		{"{ cat $D/leaf; cat $D/front; cat $D/back; } 2>/dev/null >$F", false, append(bytes.Clone(leaf), issuer...)},
		{"{ cat $D/leaf; cat $D/damaged; } >$F", true, old},
		{"{ cat $D/leaf; cat $D/front; } >$F", true, old},
		{"{ cat $D/leaf; cat $D/issuer; cat $D/other; } >$F", true, old},
		{"{ cat $D/leaf; cat $D/front; cat $D/leaf; } >$F", true, old},
		{"exec 3>$F; cat $D/leaf >&3; printf %s \"$(cat $D/front)\" >&3; cat </dev/null >&3", true, old},
		{"exec 3>$F; cat $D/leaf >&3; cat $D/damaged >&3", true, old},
		// somebody else's is nobody's to take back
		{"{ cat $D/leaf; cat $D/old $D/issuer >$F; cat $D/damaged; } >$F", true, append(bytes.Clone(old), issuer...)},
		{"{ cat $D/empty; echo; cat $D/damaged; } >$F", true, old},
		{"{ /bin/echo; } >$F", false, nil},
	} {
		m.put(file, string(old))
		cmd := exec.Command("bash", "-c", c.script)
		cmd.Env = append(os.Environ(), "D="+dir, "F="+file)
		out, err := cmd.CombinedOutput()
		if (err != nil) != c.fails {
			t.Errorf("%s: %v\n%s", c.script, err, out)
		}
		if got := m.get(file); !bytes.Equal(got, c.want) {
			t.Errorf("%s: %d bytes are stored; want %d; old %d\n%s", c.script, len(got), len(c.want), len(old), out)
		}
	}
}

// TestNothingTakenBackWithoutRight: whose right was taken away changes nothing any more, and takes nothing back.
func TestNothingTakenBackWithoutRight(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	file := m.path("k", "certificate")
	old, leaf := certify(t, m.public("k"), "old"), certify(t, m.public("k"), "new")
	m.put(file, string(old))
	if err := os.Chmod(file, 0666); err != nil {
		t.Fatal(err)
	}
	client := python(t, anna, `fd = os.open(path, os.O_WRONLY); os.write(fd, more[0].encode()); os.close(os.dup(fd)); `+
		`os.write(fd, more[0][:200].encode()); pause(); os.close(fd)`, file, string(leaf))
	client.paused()
	if got := m.get(file); !bytes.Equal(got, leaf) {
		t.Errorf("%d bytes are stored before the end, want %d", len(got), len(leaf))
	}
	if err := os.Chmod(file, 0644); err != nil {
		t.Fatal(err)
	}
	client.resume()
	if errno := client.ends(); errno != syscall.EKEYREVOKED {
		t.Errorf("close: %v", errno)
	}
	if got := m.get(file); !bytes.Equal(got, leaf) {
		t.Errorf("%d bytes are stored, want %d", len(got), len(leaf))
	}
}

// TestRestOfATemplate: a line that comes after the key is made is refused, and says that it changed nothing.
func TestRestOfATemplate(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	if err := os.Mkdir(m.path("k"), 0777); err != nil {
		t.Fatal(err)
	}
	script := `{ /bin/echo 'template = "ecdsa-p256-sha256"'; /bin/echo 'usage = "PSA_KEY_USAGE_VERIFY_HASH"'; } >"$0"`
	out, err := exec.Command("bash", "-c", script, m.path("k", "generate")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "Invalid argument") {
		t.Errorf("%v: %s", err, out)
	}
	if x := m.last(); x.operation != "write" || !strings.Contains(x.words, "took effect without this") || !strings.Contains(x.hint, "rmdir") {
		t.Errorf("last_error says %+v", x)
	}
}

// TestTooManyPieces: each WRITE reads a text from its beginning, so that a long one cannot be written byte by byte; a key can.
func TestTooManyPieces(t *testing.T) {
	t.Parallel()
	m := mount(t, nil)
	m.key("k", "ed25519")
	f, err := os.OpenFile(m.path("k", "certificate"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line := []byte("# " + strings.Repeat("c", 997) + "\n")
	if _, err := f.Write(bytes.Repeat(line, 200)); err != nil {
		t.Fatal(err)
	}
	for n := 0; n < 2000 && err == nil; n++ {
		_, err = f.WriteString("\n")
	}
	if !errors.Is(err, syscall.EINVAL) {
		t.Errorf("2000 short lines behind 200 KB: %v", err)
	}
}
