package psa

import (
	"bytes"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// maxReference bounds the line that names a key on a device: a label in a token's own words.
const maxReference = 512

// reference is a line that names a key on the device: by its label, its ID, both, its handle or a PKCS #11 URI (RFC 7512).
var reference = regexp.MustCompile(strings.NewReplacer("TEXT", `[^\x00-\x1f\x7f]+`, "HEX", `[0-9a-fA-F]+`).Replace(
	`^(object=TEXT|id=HEX(;object=TEXT)?|handle=0xHEX(,name=HEX)?|pkcs11:TEXT)$`))

// referenceBegins are how one begins.
var referenceBegins = []string{"object=", "id=", "handle=0x", "pkcs11:"}

// ScanReference finds such a line where an import begins with one; more: it may yet become one. alone says that b came
// with one WRITE, which then is the whole line. Raw key material that reads so is not told from it: of 16 random bytes
// one in 2^60 does. What begins so and is as long as the draft's key is its bytes.
func ScanReference(b []byte, alone bool, draft Attributes) (end int, name string, more bool) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	if len(b) == 0 || len(line) > maxReference {
		return 0, "", false
	}
	if (whole || alone) && reference.Match(line) && utf8.Valid(line) {
		return min(len(line)+1, len(b)), string(line), false
	}
	raw := draft.Type != KeyTypeNone && !draft.Type.IsAsymmetric() && draft.Bits > 0
	if whole || raw && len(b) >= draft.Bits/8 {
		return 0, "", false
	}
	return 0, "", slices.ContainsFunc(referenceBegins, func(word string) bool {
		return strings.HasPrefix(word, string(line)) || strings.HasPrefix(string(line), word)
	})
}
