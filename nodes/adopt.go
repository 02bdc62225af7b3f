package nodes

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// referenceMost bounds the line that names a key on a device: a label in a token's own words.
const referenceMost = 512

// references begin the names of keys on a device.
var references = []string{"object=", "id=", "handle=0x", "pkcs11:"}

// scanReference finds a line that names a key on the device, where an import begins with one: "object=LABEL", "id=HEX",
// "id=HEX;object=LABEL", "handle=0xHEX" or a PKCS #11 URI (RFC 7512). more: it may yet become one. alone says that b came
// with one WRITE, which then is the whole line. Raw key material that reads so is not told from it: of 16 random bytes
// one in 2^60 does.
func scanReference(b []byte, alone bool) (end int, reference string, more bool) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	text := string(line)
	i := slices.IndexFunc(references, func(word string) bool { return strings.HasPrefix(text, word) })
	if i < 0 {
		begins := slices.ContainsFunc(references, func(word string) bool { return strings.HasPrefix(word, text) })
		return 0, "", begins && len(b) > 0 && !whole
	}
	value := text[len(references[i]):]
	if strings.HasPrefix(text, "id=") {
		var label string
		if value, label, _ = strings.Cut(value, ";object="); !printable(label) {
			return 0, "", false
		}
	}
	switch hex := i == 1 || i == 2; {
	case len(line) > referenceMost, hex && !isHex(value), !hex && !printable(value):
		return 0, "", false
	case whole:
		return len(line) + 1, text, false
	case alone && value != "":
		return len(line), text, false
	}
	return 0, "", true
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

func printable(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f || r == '\ufffd' })
}

// rawIsWhole says whether n bytes are all that an import of raw bytes takes.
func (v *view) rawIsWhole(n int) bool {
	a := v.key.Attributes
	return a.Type != psa.KeyTypeNone && !a.Type.IsAsymmetric() && a.Bits > 0 && n >= a.Bits/8
}

// adopt takes a key of the device over; whoever names one there could use any, so it is for admins alone.
func (v *view) adopt(reference string) func(context.Context) error {
	return func(ctx context.Context) error {
		if !v.t.Admin(v.uid) {
			return psa.Errorf(psa.StatusNotPermitted, "keys on the device are taken over by root and admins").
				WithHint("root can add you to admins in [authenticator]")
		}
		return v.t.kim.Adopt(ctx, v.key.Number, v.uid, v.key.Attributes, reference)
	}
}
