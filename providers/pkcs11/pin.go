package pkcs11

import (
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// parsePIN reads a PIN as Parsec's configuration has it.
func parsePIN(v any) ([]byte, error) {
	s, ok := v.(string)
	if !ok {
		return nil, errors.New("must be a string")
	}
	text, isHex := strings.CutPrefix(s, "hex:")
	pin := []byte(strings.TrimPrefix(s, "str:"))
	if isHex {
		var err error
		if pin, err = hex.DecodeString(text); err != nil {
			return nil, errors.New("hex: must be followed by bytes in hexadecimal")
		}
	}
	if len(pin) == 0 || len(pin) > providers.MaxPIN {
		return nil, fmt.Errorf("a PIN has 1 to %d bytes", providers.MaxPIN)
	}
	return pin, nil
}

// refusals is a file with the last PIN that a token refused. Neither this nor the next run of the program tries that PIN
// again, because tokens count wrong PINs and lock themselves.
type refusals struct{ file string }

// refusal is the content of the file: not the PIN, but a hash to compare it with.
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
		return false, false, psa.Errorf(psa.StatusNotPermitted, "cannot read which PINs were refused: %w", err)
	}
	one, err := parseRefusal(string(b))
	if err != nil {
		name, linked := filepath.EvalSymlinks(r.file) // the state directory may be given by its descriptor
		if linked != nil {
			name = r.file
		}
		return false, false, psa.Errorf(psa.StatusNotPermitted, "%s: %w", name, err).
			WithHint("remove the file; then the PIN is tried once more")
	}
	if one.serial != serial {
		return false, false, nil
	}
	return one.counted, subtle.ConstantTimeCompare(one.sum, pinSum(pin, one.salt)) == 1, nil
}

func parseRefusal(s string) (one refusal, err error) {
	words := strings.Fields(s)
	if len(words) != 4 {
		return one, errors.New("a line does not have four words")
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
		return one, errors.New("a line is damaged")
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

// add records a refused PIN.
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
