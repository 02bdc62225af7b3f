package providers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// PINSource says where a PIN is: in Value, in a file, or in a credential of the service manager. If all are empty, there is
// no PIN.
type PINSource struct {
	Value      []byte // the PIN itself
	File       string
	Credential string
}

// PINForms are what ParsePINSource takes.
const PINForms = "an absolute path, file:PATH, or credential:NAME for a credential of the service (systemd.exec(5), LoadCredential=)"

// ParsePINSource parses a setting that says where a PIN is.
func ParsePINSource(s string) (PINSource, error) {
	if name, ok := strings.CutPrefix(s, "credential:"); ok {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return PINSource{}, errors.New("allowed: credential: followed by the name of a credential")
		}
		return PINSource{Credential: name}, nil
	}
	path := strings.TrimPrefix(strings.TrimPrefix(s, "file:"), "//") // file:///run/pin (RFC 8089, 2)
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return PINSource{}, errors.New("allowed: " + PINForms)
	}
	return PINSource{File: path}, nil
}

// MaxPIN bounds a PIN in bytes.
const MaxPIN = 1 << 10

// Given says whether there is a PIN.
func (s PINSource) Given() bool { return s.Value != nil || s.File != "" || s.Credential != "" }

// Read returns the PIN as it is now, nil if there is none. The caller wipes it.
func (s PINSource) Read() ([]byte, error) {
	switch {
	case s.Credential != "":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, psa.Errorf(psa.StatusNotPermitted, "the PIN is in the credential %s, but $CREDENTIALS_DIRECTORY is not set", s.Credential).
				WithHint("add LoadCredential=" + s.Credential + ":PATH to the service's unit")
		}
		return readPIN(filepath.Join(dir, s.Credential), 0o007) // the group, if any, is the service's own
	case s.File != "":
		return readPIN(s.File, 0o077)
	}
	return bytes.Clone(s.Value), nil
}

// readPIN reads a trusted file that nobody else may read. One newline at its end is not part of the PIN.
func readPIN(path string, forbidden fs.FileMode) ([]byte, error) {
	fail := func(format string, args ...any) ([]byte, error) {
		return nil, psa.Errorf(psa.StatusNotPermitted, "the PIN: %w", fmt.Errorf(format, args...))
	}
	f, err := OpenTrusted(path, os.O_RDONLY|unix.O_NONBLOCK)
	if err != nil {
		_, wrapped := fail("%w", err)
		return nil, psa.Errorf(psa.StatusOf(wrapped), "%w", wrapped).WithHint(psa.HintOf(err))
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail("%w", err)
	}
	if !info.Mode().IsRegular() {
		return fail("%s is not a regular file", path)
	}
	if info.Mode().Perm()&forbidden != 0 {
		_, err := fail("other users can read or change %s", path)
		return nil, psa.Errorf(psa.StatusOf(err), "%w", err).WithHint("chmod 0400 " + path)
	}
	b := make([]byte, MaxPIN+3)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		psa.Wipe(b)
		return fail("%s: %w", path, err)
	}
	pin := trimPIN(b[:n])
	if len(pin) == 0 || len(pin) > MaxPIN {
		psa.Wipe(b)
		return fail("%s has %d bytes; a PIN has 1 to %d", path, len(pin), MaxPIN)
	}
	return pin, nil
}

func trimPIN(b []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
}
