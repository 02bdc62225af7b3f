package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// block is a fenced one of a page.
type block struct{ language, text string }

// blocksOf are the fenced blocks of a page, with their mountpoint replaced.
func blocksOf(t *testing.T, page, mountpoint string) (blocks []block) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../..", page))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllStringSubmatch(string(b), -1) {
		blocks = append(blocks, block{m[1], strings.ReplaceAll(m[2], "/mnt/parsec", mountpoint)})
	}
	return blocks
}

// readmeBlocks are the README's, by language: pieces of one configuration stand in several places.
func readmeBlocks(t *testing.T, mountpoint string) map[string]string {
	t.Helper()
	blocks := map[string]string{}
	for _, b := range blocksOf(t, "README.md", mountpoint) {
		blocks[b.language] += b.text
	}
	return blocks
}

// TestTour runs the README's tour as it is written, and has OpenSSL verify what each language signed. A second user follows
// it on the same mount.
func TestTour(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	blocks := readmeBlocks(t, m.Dir)
	dir := t.TempDir()
	run := func(t *testing.T, name string, args ...string) {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	for _, tour := range []struct{ language, file, script string }{
		{"sh", "tour.sh", "sh -eu tour.sh"}, // the first one makes the key and the message
		{"python", "tour.py", "python3 tour.py"},
		{"go", "tour.go", "go run tour.go"},
		{"js", "tour.js", "node tour.js"},
		{"c", "tour.c", "gcc -Wall -Werror -o tour tour.c && ./tour"},
	} {
		t.Run(tour.language, func(t *testing.T) {
			if blocks[tour.language] == "" {
				t.Fatal("the README has no such block")
			}
			if err := os.WriteFile(filepath.Join(dir, tour.file), []byte(blocks[tour.language]), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(filepath.Join(dir, "signature")); err != nil && tour.language != "sh" {
				t.Fatal(err)
			}
			run(t, "sh", "-c", tour.script)
			public := filepath.Join(m.Dir, "providers/default/mine/web/public.pem")
			run(t, "openssl", "dgst", "-sha256", "-verify", public, "-signature", "signature", "message")
		})
	}
	t.Run("a second user", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("becoming another user needs root")
		}
		dir := parsecfstest.TempDir(t)
		if err := os.Chmod(dir, 0o777); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("setpriv", "--reuid=61001", "--regid=61001", "--clear-groups", "sh", "-euc", blocks["sh"])
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	})
}

// TestReadmeConfiguration: the configuration in the README is accepted without a word.
func TestReadmeConfiguration(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "parsecfs.toml")
	if err := os.WriteFile(file, []byte(readmeBlocks(t, "/mnt/parsec")["toml"]), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, stderr, code := parsecfstest.Run(t, "check-config", file); code != 0 || stderr != "" {
		t.Fatalf("exit %d: %s", code, stderr)
	}
}
