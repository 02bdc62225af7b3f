// Package bounds shows what a user meets at a bound, and that nobody takes more than it.
package transport

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

func TestMain(m *testing.M) { parsecfstest.Main(m) }

// Users without a name.
const (
	owner    = 61001
	stranger = 61005
)

// as runs a line of a shell as a user; what it prints, standard error too, and whether it ended well.
func as(uid int, line string) (string, error) {
	id := strconv.Itoa(uid)
	cmd := exec.Command("setpriv", "--reuid="+id, "--regid="+id, "--clear-groups", "sh", "-c", line)
	cmd.Dir = "/"
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// must is as for what must work.
func must(t *testing.T, uid int, line string) string {
	t.Helper()
	out, err := as(uid, line)
	if err != nil {
		t.Fatalf("%s: %v\n%s", line, err, out)
	}
	return out
}

// attribute is the value of one line of a key's attributes, "" where there is none.
func attribute(t *testing.T, key, name string) string {
	t.Helper()
	text, err := os.ReadFile(key + "/attributes")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, name+" = "); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}
