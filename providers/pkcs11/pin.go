package pkcs11

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// pinSource is where a PIN is: given as it is, in a file, or in a credential of the service manager's. All empty is no
// PIN.
type pinSource struct {
	value      []byte
	file       string
	credential string
}

const pinForms = "an absolute path, file:PATH, or credential:NAME for one of the service manager's (systemd.exec(5), LoadCredential=)"

// parsePINSource reads the setting pin_source, and a URI's pin-source.
func parsePINSource(s string) (pinSource, error) {
	if name, ok := strings.CutPrefix(s, "credential:"); ok {
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
			return pinSource{}, errors.New("credential: and the name of a credential")
		}
		return pinSource{credential: name}, nil
	}
	path := strings.TrimPrefix(strings.TrimPrefix(s, "file:"), "//") // file:///run/pin (RFC 8089, 2)
	if !filepath.IsAbs(path) || strings.ContainsRune(path, 0) {
		return pinSource{}, errors.New("allowed: " + pinForms)
	}
	return pinSource{file: path}, nil
}

// parsePIN reads a PIN as Parsec's configuration has it.
func parsePIN(v any) ([]byte, error) {
	s, ok := v.(string)
	if !ok {
		return nil, errors.New("a string")
	}
	text, isHex := strings.CutPrefix(s, "hex:")
	pin := []byte(strings.TrimPrefix(s, "str:"))
	if isHex {
		var err error
		if pin, err = hex.DecodeString(text); err != nil {
			return nil, errors.New("hex: and bytes in hexadecimal")
		}
	}
	if len(pin) == 0 || len(pin) > maxPIN {
		return nil, fmt.Errorf("a PIN has 1 to %d bytes", maxPIN)
	}
	return pin, nil
}

// maxPIN bounds a PIN in bytes.
const maxPIN = 1 << 10

func (s pinSource) given() bool { return s.value != nil || s.file != "" || s.credential != "" }

// read gives the PIN as it is now, which the caller wipes; nil where there is none.
func (s pinSource) read() ([]byte, error) {
	switch {
	case s.credential != "":
		dir := os.Getenv("CREDENTIALS_DIRECTORY")
		if dir == "" {
			return nil, psa.Errorf(psa.StatusNotPermitted, "the PIN is in the credential %s, and there is no $CREDENTIALS_DIRECTORY", s.credential).
				WithHint("LoadCredential=" + s.credential + ":PATH in the service's unit")
		}
		return readPIN(filepath.Join(dir, s.credential), 0o007) // the service manager gives a group that is the service's own
	case s.file != "":
		return readPIN(s.file, 0o077)
	}
	return bytes.Clone(s.value), nil
}

// readPIN reads a file that is trusted and that nobody else may read; one newline at its end is not the PIN's.
func readPIN(path string, forbidden fs.FileMode) ([]byte, error) {
	fail := func(format string, args ...any) ([]byte, error) {
		return nil, psa.Errorf(psa.StatusNotPermitted, "the PIN: %w", fmt.Errorf(format, args...))
	}
	f, err := providers.OpenTrusted(path, os.O_RDONLY|unix.O_NONBLOCK)
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
	b := make([]byte, maxPIN+3)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		psa.Wipe(b)
		return fail("%s: %w", path, err)
	}
	pin := trimPIN(b[:n])
	if len(pin) == 0 || len(pin) > maxPIN {
		psa.Wipe(b)
		return fail("%s has %d bytes; a PIN has 1 to %d", path, len(pin), maxPIN)
	}
	return pin, nil
}

func trimPIN(b []byte) []byte {
	return bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
}

// refusals is a file that remembers the last PIN that a token refused, so that it is not tried again, not by the next
// run of the program either: tokens count, and lock themselves.
type refusals struct{ file string }

// refusal is what the file has: not the PIN, but what it can be compared with.
type refusal struct {
	serial    string
	salt, sum []byte
	counted   bool // the token's flags showed the wrong try
}

const pinRounds = 20_000

func pinSum(pin, salt []byte) []byte {
	sum, err := pbkdf2.Key(sha256.New, string(pin), salt, pinRounds, sha256.Size)
	if err != nil {
		panic(err) // for no such lengths
	}
	return sum
}

// has says whether this token refused this PIN.
func (r refusals) has(serial string, pin []byte) (counted, ok bool, err error) {
	b, err := os.ReadFile(r.file)
	if errors.Is(err, fs.ErrNotExist) {
		return false, false, nil
	}
	if err != nil {
		return false, false, psa.Errorf(psa.StatusNotPermitted, "which PINs were refused is not known: %w", err)
	}
	one, err := parseRefusal(string(b))
	if err != nil {
		return false, false, psa.Errorf(psa.StatusNotPermitted, "%s: %w", r.file, err).WithHint("remove the file, and the PIN is tried once more")
	}
	if one.serial != serial {
		return false, false, nil
	}
	return one.counted, subtle.ConstantTimeCompare(one.sum, pinSum(pin, one.salt)) == 1, nil
}

func parseRefusal(s string) (one refusal, err error) {
	words := strings.Fields(s)
	if len(words) != 4 {
		return one, errors.New("not four words")
	}
	serial, err := hex.DecodeString(strings.TrimPrefix(words[0], "x"))
	if err != nil {
		return one, err
	}
	if one.salt, err = hex.DecodeString(words[1]); err != nil {
		return one, err
	}
	if one.sum, err = hex.DecodeString(words[2]); err != nil {
		return one, err
	}
	one.serial, one.counted = string(serial), words[3] == "counted"
	if len(one.sum) != sha256.Size || !one.counted && words[3] != "uncounted" {
		return one, errors.New("a damaged record")
	}
	return one, nil
}

func (o refusal) String() string {
	counted := "uncounted"
	if o.counted {
		counted = "counted"
	}
	return fmt.Sprintf("x%x %x %x %s\n", o.serial, o.salt, o.sum, counted)
}

// add writes it down.
func (r refusals) add(serial string, pin []byte, counted bool) error {
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	if err := os.MkdirAll(filepath.Dir(r.file), 0o700); err != nil {
		return err
	}
	next := r.file + ".new"
	if err := os.WriteFile(next, []byte(refusal{serial, salt, pinSum(pin, salt), counted}.String()), 0o600); err != nil {
		return err
	}
	return os.Rename(next, r.file)
}
