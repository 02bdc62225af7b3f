package psa

import (
	"slices"
	"strings"
	"testing"
)

func FuzzParsePCRs(f *testing.F) {
	for _, s := range []string{"0,7", "23", " 1, 2\n", "24", "-1", ",", "", "0x1", "1,1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		p, err := ParsePCRs(s)
		if err != nil {
			if StatusOf(err) != StatusInvalidArgument || p != 0 {
				t.Errorf("%q: %v, %v", s, p, err)
			}
			return
		}
		list := p.List()
		if len(list) == 0 || len(list) > strings.Count(s, ",")+1 || slices.Max(list) > MaxPCR {
			t.Errorf("%q is %v", s, list)
		}
	})
}
