package nodes

import (
	"os"
	"strings"
	"testing"
)

// TestErrnosAreExplained: the page for programmers has each errno that a PSA status becomes.
func TestErrnosAreExplained(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("../docs/languages.md")
	if err != nil {
		t.Fatal(err)
	}
	for status, errno := range errnos {
		if !strings.Contains(string(b), "\n| "+errnoName(errno)+" | ") {
			t.Errorf("%v is %s, which docs/languages.md does not explain", status, errnoName(errno))
		}
	}
}
