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

// PINSource is where a PIN is: given as it is, in a file, or in a credential of the service manager's. All empty is no
// PIN.
type PINSource struct {
	Value      []byte // the PIN itself
	File       string
	Credential string
}

// PINForms are what ParsePINSource takes.
const PINForms = "an absolute path, file:PATH, or credential:NAME for one of the service manager's (systemd.exec(5), LoadCredential=)"

// ParsePINSource reads what a setting says of where a PIN is.
func ParsePINSource(s string) (PINSource, error) {
	if name, ok := strings.CutPrefix(s, "credential:"); ok {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return PINSource{}, errors.New("credential: and the name of a credential")
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

// Read gives the PIN as it is now, which the caller wipes; nil where there is none.
func (s PINSource) Read() ([]byte, error) {
	switch {
	case s.Credential != "":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, psa.Errorf(psa.StatusNotPermitted, "the PIN is in the credential %s, and there is no $CREDENTIALS_DIRECTORY", s.Credential).
				WithHint("LoadCredential=" + s.Credential + ":PATH in the service's unit")
		}
		return readPIN(filepath.Join(dir, s.Credential), 0o007) // the service manager gives a group that is the service's own
	case s.File != "":
		return readPIN(s.File, 0o077)
	}
	return bytes.Clone(s.Value), nil
}

// readPIN reads a file that is trusted and that nobody else may read; one newline at its end is not the PIN's.
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
		return fail("%s is no regular file", path)
	}
	if info.Mode().Perm()&forbidden != 0 {
		_, err := fail("others may read or change %s", path)
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
