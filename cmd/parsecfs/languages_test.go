package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

const languagesPage = "docs/languages.md"

// TestLanguages runs each program of docs/languages.md as it is written, and has OpenSSL verify what it signed.
func TestLanguages(t *testing.T) {
	t.Parallel()
	runPage(t, languagesPage, map[string]runs{
		"sh":     {"tour.sh", "sh -eu tour.sh", false},
		"c":      {"tour.c", "gcc -Wall -Werror -o tour tour.c && ./tour", false},
		"python": {"tour.py", "python3 tour.py", false},
		"go":     {"tour.go", "go run tour.go", false},
		"js":     {"tour.js", "node tour.js", false},
		"ruby":   {"tour.rb", "ruby tour.rb", false},
		"perl":   {"tour.pl", "perl tour.pl", false},
		"php":    {"tour.php", "php tour.php", false},
		"lua":    {"tour.lua", "lua5.4 tour.lua", false},
		"java":   {"Tour.java", "java Tour.java", true},
		"rust":   {"tour.rs", "rustc --edition 2021 -o tour tour.rs && ./tour", true},
		"csharp": {"Tour.cs", "mcs Tour.cs && mono Tour.exe", true},
	})
}

// TestIoctlPage does so with docs/ioctl.md.
func TestIoctlPage(t *testing.T) {
	t.Parallel()
	runPage(t, "docs/ioctl.md", map[string]runs{
		"c":      {"call.c", "gcc -Wall -Wextra -Werror -o call call.c && ./call", false},
		"python": {"call.py", "python3 call.py", false},
		"go":     {"call.go", "go vet call.go && go run call.go", false},
	})
}

// runs is how a program of a page is run.
type runs struct {
	file, script string
	long         bool // CI does not have its tools, which are large
}

// runPage runs the programs of a page, each of which signs the file message into the file signature.
func runPage(t *testing.T, page string, ways map[string]runs) {
	t.Helper()
	parsecfstest.RequireFUSE(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	blocks := blocksOf(t, page, m.Dir)
	key := regexp.MustCompile(regexp.QuoteMeta(m.Dir) + `/providers/default/\w+/web`).FindString(blocks[0].text)
	if err := os.Mkdir(key, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := parsecfstest.WriteOnce(filepath.Join(key, "generate"), []byte("ecdsa-p256-sha256\n")); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for i, b := range blocks {
		seen[b.language] = true
		t.Run(fmt.Sprint(i, " ", b.language), func(t *testing.T) {
			t.Parallel()
			way, ok := ways[b.language]
			if !ok {
				t.Fatal("nobody knows how to run it")
			}
			if way.long && !parsecfstest.Long() {
				t.Skip("its tools are large; scripts/test -long has it")
			}
			dir := t.TempDir()
			for name, text := range map[string]string{way.file: b.text, "message": "a message for " + b.language} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			for _, script := range []string{way.script, "openssl dgst -sha256 -verify " + key + "/public.pem -signature signature message"} {
				cmd := exec.Command("sh", "-c", script)
				cmd.Dir = dir
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", script, err, out)
				}
			}
		})
	}
	for language := range ways {
		if !seen[language] {
			t.Errorf("%s has no program in %s", page, language)
		}
	}
}

// TestErrnosOfLanguages: the errnos in docs/languages.md have the numbers, texts and names that Linux, Python and Node give them.
func TestErrnosOfLanguages(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(filepath.Join("../..", languagesPage))
	if err != nil {
		t.Fatal(err)
	}
	rows := regexp.MustCompile(`(?m)^\| (E[A-Z]+) \| (\d+) \| ([^|]+) \| (\w+) \| (\w+) \| [^|]+ \|$`).FindAllStringSubmatch(string(b), -1)
	if len(rows) < 20 {
		t.Fatalf("%d rows", len(rows))
	}
	var numbers []string
	for _, r := range rows {
		numbers = append(numbers, r[2])
	}
	ask := func(name string, args ...string) (answers []string) {
		out, err := exec.Command(name, append(args, numbers...)...).Output()
		if err == nil {
			err = json.Unmarshal(out, &answers)
		}
		if err != nil || len(answers) != len(rows) {
			t.Fatalf("%s: %v: %q", name, err, out)
		}
		return answers
	}
	texts := ask("python3", "-c", "import json, os, sys; print(json.dumps([os.strerror(int(n)) for n in sys.argv[1:]]))")
	classes := ask("python3", "-c", "import json, sys; print(json.dumps([type(OSError(int(n), '')).__name__ for n in sys.argv[1:]]))")
	codes := ask("node", "-e", "const util = require('node:util');"+
		"console.log(JSON.stringify(process.argv.slice(1).map((n) => util.getSystemErrorName(-n))))")
	for i, r := range rows {
		number, err := strconv.Atoi(r[2])
		if err != nil {
			t.Fatal(err)
		}
		code := codes[i]
		if strings.HasPrefix(code, "Unknown system error") {
			code = "UNKNOWN"
		}
		name := unix.ErrnoName(syscall.Errno(number))
		if name == "ENOTSUP" { // one number in Linux
			name = "EOPNOTSUPP"
		}
		want := []string{name, r[2], texts[i], classes[i], code}
		if got := r[1:6]; !slices.Equal(got, want) {
			t.Errorf("the page says %q, and it is %q", got, want)
		}
	}
}

// TestOverlay: what docs/languages.md warns of. The README leads there.
func TestOverlay(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	b, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(b), languagesPage+"#an-overlay-above-the-mount") {
		t.Error("the README does not warn of overlays")
	}
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/default/keys/web")
	parsecfstest.Generate(t, key, "ecdsa-p256-sha256")
	cmd := exec.Command("unshare", "-m", "sh", "-euc", `
		mkdir disk
		mount -t tmpfs tmpfs disk
		cd disk
		mkdir upper work merged
		mount -t overlay overlay -o "lowerdir=$MNT,upperdir=upper,workdir=work" merged
		cd merged/providers/default/keys/web
		printf 'a message' >sign
		cat sign
		stat -f -c ' %T' sign "$MNT/providers/default/keys/web/sign"`)
	cmd.Dir = t.TempDir()
	cmd.Env = append(os.Environ(), "MNT="+m.Dir)
	out, err := cmd.CombinedOutput()
	if strings.Contains(string(out), "unknown filesystem type 'overlay'") {
		t.Skip("this kernel has no overlayfs")
	}
	if want := "a message overlayfs\n fuseblk\n"; err != nil || string(out) != want {
		t.Errorf("%v: %q, want %q", err, out, want)
	}
	if text, err := os.ReadFile(filepath.Join(key, "last_error")); err != nil || len(text) != 0 {
		t.Errorf("the daemon noticed something: %v: %q", err, text)
	}
}
