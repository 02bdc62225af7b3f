package kim

import (
	"fmt"
	"unicode"
	"unicode/utf8"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// MaxName is POSIX's NAME_MAX, in bytes.
const MaxName = 255

// ValidName judges the name of a key, slot, alias or provider: 1 to 255 bytes of UTF-8 that do not start with a dot
// and hold neither a slash nor a control character. Errors are StatusInvalidArgument.
func ValidName(name string) error {
	switch {
	case name == "":
		return psa.Errorf(psa.StatusInvalidArgument, "the name is empty")
	case len(name) > MaxName:
		return psa.Errorf(psa.StatusInvalidArgument, "the name has %d bytes; allowed: up to %d", len(name), MaxName)
	case name[0] == '.':
		return psa.Errorf(psa.StatusInvalidArgument, "the name starts with a dot")
	case !utf8.ValidString(name):
		return psa.Errorf(psa.StatusInvalidArgument, "the name is not UTF-8")
	}
	for _, r := range name {
		if r == '/' || unicode.IsControl(r) {
			return psa.Errorf(psa.StatusInvalidArgument, "the name has the character %q, which is not allowed", r)
		}
	}
	return nil
}

// UUID is RFC 9562's text form.
func UUID(id [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
