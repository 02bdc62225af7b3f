package nodes

import (
	"bytes"
	"context"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// referenceMost bounds the line that names a key on a device: a label in a token's own words.
const referenceMost = 512

// reference is a line that names a key on the device: by its label, its ID, both, its handle or a PKCS #11 URI (RFC 7512).
var reference = regexp.MustCompile(strings.NewReplacer("TEXT", `[^\x00-\x1f\x7f]+`, "HEX", `[0-9a-fA-F]+`).Replace(
	`^(object=TEXT|id=HEX(;object=TEXT)?|handle=0xHEX(,name=HEX)?|pkcs11:TEXT)$`))

// begins are how one begins.
var begins = []string{"object=", "id=", "handle=0x", "pkcs11:"}

// scanReference finds such a line where an import begins with one; more: it may yet become one. alone says that b came
// with one WRITE, which then is the whole line. Raw key material that reads so is not told from it: of 16 random bytes
// one in 2^60 does.
func scanReference(b []byte, alone bool) (end int, name string, more bool) {
	line, _, whole := bytes.Cut(b, []byte("\n"))
	if len(b) == 0 || len(line) > referenceMost {
		return 0, "", false
	}
	if (whole || alone) && reference.Match(line) && utf8.Valid(line) {
		return min(len(line)+1, len(b)), string(line), false
	}
	return 0, "", !whole && slices.ContainsFunc(begins, func(word string) bool {
		return strings.HasPrefix(word, string(line)) || strings.HasPrefix(string(line), word)
	})
}

// rawIsWhole says whether n bytes are all that an import of raw bytes takes.
func (v *view) rawIsWhole(n int) bool {
	a := v.key.Attributes
	return a.Type != psa.KeyTypeNone && !a.Type.IsAsymmetric() && a.Bits > 0 && n >= a.Bits/8
}

// adopt takes a key of the device over; whoever names one there could use any, so it is for admins alone.
func (v *view) adopt(reference string) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := v.borrowed(); err != nil {
			return err
		}
		if !v.t.Admin(v.uid) {
			return psa.Errorf(psa.StatusNotPermitted, "keys on the device are taken over by root and admins").
				WithHint("root can add you to admins in [authenticator]")
		}
		return v.t.kim.Adopt(ctx, v.key.Number, v.uid, v.key.Attributes, reference)
	}
}
