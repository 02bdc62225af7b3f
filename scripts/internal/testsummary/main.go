// Testsummary reads what go test -json prints, and shows what a person wants of it: failing tests in full, each
// package's closing line, the skipped tests with their reasons, and the count. It exits 1 if anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
)

// event is one line of go test -json (go doc test2json, go help buildjson).
type event struct {
	Action      string
	Package     string
	Test        string
	Output      string
	ImportPath  string
	FailedBuild string
}

type test struct{ pkg, name string }

// maxOutput bounds what is kept of one test's output: its end says why it failed.
const maxOutput = 1 << 20

func main() {
	ok, err := summarise(os.Stdin, os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testsummary:", err)
		os.Exit(1)
	}
	if !ok {
		os.Exit(1)
	}
}

func summarise(r io.Reader, w io.Writer) (ok bool, err error) {
	output := map[test]string{}
	builds := map[string]string{}
	var skips, failures []string
	passed, failed, skipped, broken := 0, 0, 0, 0
	in := bufio.NewReader(r)
	for {
		line, readErr := in.ReadBytes('\n')
		if readErr != nil && readErr != io.EOF {
			return false, readErr
		}
		var e event
		if json.Unmarshal(line, &e) != nil {
			// go itself speaks: a module that cannot be had, a pattern that matches nothing.
			w.Write(line)
			line = nil
		}
		t := test{e.Package, e.Test}
		switch e.Action {
		case "build-output":
			builds[e.ImportPath] += e.Output
		case "output":
			if e.Test == "" && closing(e.Output) {
				fmt.Fprint(w, e.Output)
				break
			}
			kept := output[t] + e.Output
			output[t] = kept[max(0, len(kept)-maxOutput):]
		case "pass":
			if e.Test != "" {
				passed++
			}
			delete(output, t)
		case "skip":
			if e.Test != "" {
				skipped++
				skips = append(skips, e.Package+" "+e.Test+": "+reason(output[t]))
			}
			delete(output, t)
		case "fail":
			if e.Test != "" {
				failed++
				failures = append(failures, e.Package+" "+e.Test)
			} else {
				broken++
			}
			fmt.Fprint(w, builds[e.FailedBuild], output[t])
			delete(builds, e.FailedBuild)
			delete(output, t)
		}
		if readErr == io.EOF {
			break
		}
	}
	// A package that ended in the middle of a test said why in that test's output.
	for t, out := range output {
		if t.Test() {
			fmt.Fprintf(w, "unfinished: %s %s\n%s", t.pkg, t.name, out)
			broken++
		}
	}
	for _, s := range skips {
		fmt.Fprintln(w, "skipped:", s)
	}
	for _, f := range failures {
		fmt.Fprintln(w, "failed:", f)
	}
	if passed == 0 && failed == 0 {
		fmt.Fprintln(w, "no test ran")
		broken++
	}
	fmt.Fprintf(w, "%d passed, %d failed, %d skipped\n", passed, failed, skipped)
	return failed == 0 && broken == 0, nil
}

func (t test) Test() bool { return t.name != "" }

// closing says whether a line is go test's last word on a package.
func closing(line string) bool {
	for _, word := range []string{"ok  \t", "FAIL\t", "?   \t", "---\t"} {
		if strings.HasPrefix(line, word) {
			return true
		}
	}
	return false
}

// reason is what a skipped test said: the lines between its start and its end.
func reason(output string) string {
	var said []string
	for line := range strings.Lines(output) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "=== ") && !strings.HasPrefix(line, "--- ") {
			said = append(said, line)
		}
	}
	return strings.Join(said, " ")
}
