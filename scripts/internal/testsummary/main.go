// Testsummary reads what go test -json prints, from the files that its arguments name, at the same time, and shows what a
// person wants of it: failing tests in full, each package's closing line, the skipped tests with their reasons, and the
// count. It exits 1 if anything failed.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
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

// test is one of a run, or a package of it where it has no name.
type test struct{ run, pkg, name string }

// maxOutput bounds what is kept of one test's output: its end says why it failed.
const maxOutput = 1 << 20

func main() {
	var sum summary
	var runs sync.WaitGroup
	failed := make([]error, len(os.Args))
	for i, name := range os.Args[1:] {
		runs.Go(func() { failed[i] = sum.readFile(name) })
	}
	runs.Wait()
	ok := sum.finish()
	if err := errors.Join(failed...); err != nil {
		fmt.Fprintln(os.Stderr, "testsummary:", err)
		ok = false
	}
	if !ok {
		os.Exit(1)
	}
}

// summary is what several runs have said.
type summary struct {
	mu              sync.Mutex
	output          map[test]string
	builds          map[test]string // by what was built
	skips, failures []string

	passed, failed, skipped, broken int
}

func (s *summary) readFile(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	return s.read(filepath.Base(name), f)
}

// read reads one run to its end.
func (s *summary) read(run string, r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		line, err := in.ReadBytes('\n')
		if len(line) > 0 {
			s.line(run, line)
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *summary) line(run string, line []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.output == nil {
		s.output, s.builds = map[test]string{}, map[test]string{}
	}
	var e event
	if json.Unmarshal(line, &e) != nil {
		// go itself speaks: a module that cannot be had, a pattern that matches nothing.
		os.Stdout.Write(line)
		return
	}
	t, built := test{run, e.Package, e.Test}, test{run, e.FailedBuild, ""}
	switch e.Action {
	case "build-output":
		s.builds[test{run, e.ImportPath, ""}] += e.Output
	case "output":
		if e.Test == "" && closing(e.Output) {
			fmt.Printf("%s: %s", run, e.Output)
			break
		}
		kept := s.output[t] + e.Output
		s.output[t] = kept[max(0, len(kept)-maxOutput):]
	case "pass":
		if e.Test != "" {
			s.passed++
		}
		delete(s.output, t)
	case "skip":
		if e.Test != "" {
			s.skipped++
			s.skips = append(s.skips, e.Package+" "+e.Test+": "+reason(s.output[t]))
		}
		delete(s.output, t)
	case "fail":
		if e.Test != "" {
			s.failed++
			s.failures = append(s.failures, e.Package+" "+e.Test)
		} else {
			s.broken++
		}
		fmt.Print(s.builds[built], s.output[t])
		delete(s.builds, built)
		delete(s.output, t)
	}
}

// finish says what there is to say when all runs have ended, and whether all is well.
func (s *summary) finish() bool {
	// A package that ended in the middle of a test said why in that test's output.
	for t, out := range s.output {
		if t.Test() {
			fmt.Printf("unfinished: %s %s\n%s", t.pkg, t.name, out)
			s.broken++
		}
	}
	for _, skip := range s.skips {
		fmt.Println("skipped:", skip)
	}
	for _, failure := range s.failures {
		fmt.Println("failed:", failure)
	}
	if s.passed == 0 && s.failed == 0 {
		fmt.Println("no test ran")
		s.broken++
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", s.passed, s.failed, s.skipped)
	return s.failed == 0 && s.broken == 0
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
