package providers_test

import (
	"path/filepath"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
)

func FuzzPINSource(f *testing.F) {
	for _, s := range []string{"/run/pin", "file:/run/pin", "file:///run/pin", "credential:pin", "credential:../pin", "|command", "", "file:",
		"pin"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		source, err := providers.ParsePINSource(s)
		if err != nil {
			return
		}
		if source.File != "" && (!filepath.IsAbs(source.File) || source.Credential != "") {
			t.Errorf("%q is the file %q", s, source.File)
		}
		if c := source.Credential; c != "" && filepath.Base(c) != c || !source.Given() {
			t.Errorf("%q is the credential %q", s, c)
		}
	})
}
