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

// otherID is an ID as other tools print it: 0x0A1B, 0A:1B (pkcs11-tool, OpenSSL), %0A%1B (p11tool).
var otherID = regexp.MustCompile(`^id=(0[xX][0-9a-fA-F]+|[0-9a-fA-F]{2}(:[0-9a-fA-F]{2})+|(%[0-9a-fA-F]{2})+)(;object=[^\x00-\x1f\x7f]+)?$`)

// referenceBegins are how one begins.
var referenceBegins = []string{"object=", "id=", "handle=0x", "pkcs11:"}

// ScanReference finds such a line where an import begins with one, with its ID as plain hex digits; more: it may yet become
// one. alone says that b came with one WRITE, which then is the whole line. Raw key material that reads so is not told from
// it: of 16 random bytes one in 2^60 does. What begins so and is as long as the draft's key is its bytes.
func ScanReference(b []byte, alone bool, draft Attributes) (end int, name string, more bool) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	if len(b) == 0 || len(line) > maxReference {
		return 0, "", false
	}
	// What may be a key never becomes a string, which nobody can wipe.
	if said := bytes.TrimSuffix(line, []byte("\r")); (whole || alone) && (reference.Match(said) || otherID.Match(said)) {
		if name := plainReference(string(said)); name != "" {
			return min(len(line)+1, len(b)), name, false
		}
	}
	if whole || draft.isRaw() && len(b) >= draft.Bits/8 {
		return 0, "", false
	}
	return 0, "", mayBeReference(line)
}

// plainReference is the line with its ID in plain hex digits, "" if it is no reference.
func plainReference(line string) string {
	if !utf8.ValidString(line) {
		return ""
	}
	if parts := otherID.FindStringSubmatch(line); parts != nil {
		id := strings.TrimPrefix(strings.TrimPrefix(parts[1], "0x"), "0X")
		return "id=" + strings.NewReplacer(":", "", "%", "").Replace(id) + parts[4]
	}
	if !reference.MatchString(line) {
		return ""
	}
	return line
}

// unfinished is what follows in a reference that is not whole: of an ID and of a handle the digits so far.
var unfinished = regexp.MustCompile(`^(id=[0-9a-fA-FxX:%]*(;.*)?|handle=0x[0-9a-fA-F]*(,.*)?|object=.*|pkcs11:.*)$`)

func mayBeReference(line []byte) bool {
	return unfinished.Match(line) || slices.ContainsFunc(referenceBegins, func(word string) bool {
		return len(line) <= len(word) && word[:len(line)] == string(line)
	})
}

// errReference says what is wrong with a line that wants to name a key on the device.
func errReference(line []byte) error {
	err := Errorf(StatusInvalidArgument, "this is not the name of a key on the device")
	switch {
	case begins("id=", "ID=")(line):
		return err.WithHint("write the ID in hexadecimal: id=0a1b, id=0x0a1b, id=0a:1b or id=%0a%1b")
	case begins("label=", "name=")(line):
		return err.WithHint("write object=LABEL for a label")
	case begins("handle=")(line):
		return err.WithHint("write the handle in hexadecimal: handle=0x81000001")
	}
	return err.WithHint("write object=LABEL, id=HEX, id=HEX;object=LABEL, handle=0xHEX or a PKCS #11 URI, in one line of printable text")
}
