package nodes

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// kindNames are the words that testdata/rows has for kinds. A row that is no more stays there with its number as "gone".
var kindNames = map[kind]string{
	text: "text", staged: "staged", request: "transaction", stream: "stream", directory: "directory", link: "link",
}

// TestRows pins the numbers of rows: they are inodes in every KIM, with the modes, owners and ACLs that users gave them.
func TestRows(t *testing.T) {
	golden, err := os.ReadFile("testdata/rows")
	if err != nil {
		t.Fatal(err)
	}
	var known []string
	for line := range bytes.Lines(golden) {
		known = append(known, strings.TrimSuffix(string(line), "\n"))
	}
	var have []string
	add := func(table string, rows []*row) {
		for _, r := range rows {
			have = append(have, fmt.Sprintf("%s %d %s %s", table, r.number, r.name, kindNames[r.kind]))
		}
	}
	add("root", rootRows)
	add("root", []*row{{number: rootIno, name: ".", kind: directory}, {number: rowDefault, name: "providers/default", kind: link}})
	add("provider", append([]*row{{name: ".", kind: directory}}, providerRows...))
	add("provider", hashRows)
	add("key", append([]*row{{name: ".", kind: directory}}, keyRows...))

	for _, line := range have {
		if !slices.Contains(known, line) {
			t.Errorf("%q is not in testdata/rows: a new row goes there, and what is there is never changed", line)
		}
	}
	for _, line := range known {
		if !slices.Contains(have, line) && !strings.HasSuffix(line, " gone") {
			t.Errorf("%q is in testdata/rows and not in the table: if it went for ever, say gone there, and keep its number", line)
		}
	}
	inodes := map[string]string{}
	for _, line := range known {
		var table, name, kind string
		var number int
		if _, err := fmt.Sscanf(line, "%s %d %s %s", &table, &number, &name, &kind); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		numbers := []int{number}
		if kind == kindNames[request] || kind == "gone" {
			numbers = append(numbers, number+slotsNumber)
		}
		for _, n := range numbers {
			ino := fmt.Sprint(table, " ", n)
			if n >= inoPerNumber {
				t.Errorf("%q: %d is beyond the %d inodes that a number has", line, n, inoPerNumber)
			}
			if other, taken := inodes[ino]; taken {
				t.Errorf("%q and %q share inode %d", line, other, n)
			}
			inodes[ino] = line
		}
	}
}

// TestForgottenRights: a kind of node that does not say what chmod can give gives nothing away.
func TestForgottenRights(t *testing.T) {
	if (stat{mode: 0600}).changeable() == nil {
		t.Error("a node that does not say what can be changed can be changed")
	}
}
