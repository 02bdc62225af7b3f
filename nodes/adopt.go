package nodes

import (
	"bytes"
	"context"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// referenceMost bounds the line that names a key on a device: a label in a token's own words.
const referenceMost = 512

// scanReference finds a line that names a key on the device, "object=LABEL", "id=HEX" or "handle=0xHEX", where an import
// begins with one; more: it may yet become one. alone says that b came with one WRITE, which then is the whole line.
// Raw key material that reads so is not told from it: the shortest of 16 bytes does once in 2^90 keys.
func scanReference(b []byte, alone bool) (end int, reference string, more bool) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	text := string(line)
	name, value, ok := strings.Cut(text, "=")
	switch {
	case len(line) > referenceMost:
		return 0, "", false
	case !ok:
		begins := func(word string) bool { return strings.HasPrefix(word, text) }
		return 0, "", len(b) > 0 && !whole && (begins("object=") || begins("id=") || begins("handle=0x"))
	case name == "object" && printable(value):
	case name == "id" && isHex(value):
	case name == "handle" && strings.HasPrefix(value, "0x") && isHex(value[2:]):
	case name == "handle" && !whole && strings.HasPrefix("0x", value):
		return 0, "", true
	default:
		return 0, "", false
	}
	switch {
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
