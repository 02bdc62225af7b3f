package kim

import (
	"strings"
	"testing"
)

func FuzzValidName(f *testing.F) {
	for _, s := range []string{"", "web", ".x", "a/b", "a\nb", strings.Repeat("x", 256), "\xff", "Schlüssel"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		if ValidName(name) != nil {
			return
		}
		if len(name) == 0 || len(name) > 255 || name[0] == '.' || strings.ContainsAny(name, "/\x00\n\t\x7f") {
			t.Errorf("%q is taken for a name", name)
		}
	})
}
