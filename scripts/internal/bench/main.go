// Bench measures operations of keys: in a Go program, through the least that a file system can do, and through parsecfs on
// each transport; devices, programs of a shell, long messages, and Parsec.
//
//	bench list              print the parts
//	bench run FLAGS PART... measure, print tables and write JSON (scripts/bench calls it, in namespaces of its own)
//	bench docs RESULTS DIR  write DIR/performance.md and the charts for it on standard output, from the JSON of a run
//	bench compare OURS THEIRS
//	                        measure the keys plain, lost and foreign in the keys/ of two mounts, and print the ratios
//
// and what a run starts: serve TRANSPORT DIR, socket PATH, echo, generate KEYS, fairness.
package main

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

const (
	partSignatures = "signatures"
	partConditions = "conditions"
	partNeighbour  = "neighbour"
	partTPM        = "tpm"
	partPKCS11     = "pkcs11"
	partShell      = "shell"
	partStreams    = "streams"
	partParsec     = "parsec"
	partGrowth     = "growth"
	partMillion    = "million"
	partFairness   = "fairness"
	partGuard      = "guard"
)

// parts are what can be measured, in this order. A run without names has all but guard and million.
var parts = []struct {
	name, help string
	run        func(*bench) error
}{
	{partSignatures, "ECDSA P-256, Ed25519, RSA-2048, AES-GCM: bare Go, the minimal handler, parsecfs; 1 to 64 workers", (*bench).signatures},
	{partConditions, "parsecfs with an audit trail, in a systemd unit, and after a loss of rights", (*bench).conditions},
	{partNeighbour, "a signature beside another user who generates RSA-4096 keys", (*bench).neighbour},
	{partTPM, "a TPM (swtpm): go-tpm alone, and parsecfs", (*bench).tpm},
	{partPKCS11, "a PKCS #11 token (SoftHSM): its module alone, and parsecfs", (*bench).pkcs11},
	{partShell, "commands at a shell: openssl dgst, cat, pkcs11-tool", (*bench).shell},
	{partStreams, "1 GiB through openssl dgst and through sign, once and 16 at once", (*bench).streams},
	{partParsec, "Parsec 1.4.1 from Debian, as shipped and without its poll, and parsecfs", (*bench).parsec},
	{partFairness, "one user's signatures alone, and beside another user with 64 workers", (*bench).fair},
	{partGrowth, "mounts with a thousand keys and with a hundred thousand", (*bench).growth},
	{partMillion, "not among all: mounts with a thousand keys and with a million", (*bench).million},
	{partGuard, "not among all: seconds, and fails where parsecfs takes several times what the minimal handler takes", (*bench).guard},
}

func main() {
	var err error
	args := os.Args[1:]
	switch {
	case len(args) == 1 && args[0] == "list":
		for _, p := range parts {
			fmt.Printf("%-12s %s\n", p.name, p.help)
		}
	case len(args) > 0 && args[0] == "run":
		err = run(args[1:])
	case len(args) == 3 && args[0] == "docs":
		err = writeDocs(args[1], args[2])
	case len(args) == 3 && args[0] == "compare":
		err = compare(args[1], args[2])
	case len(args) == 3 && args[0] == "serve":
		err = serve(args[1], args[2])
	case len(args) == 2 && args[0] == "socket":
		err = serveSocket(args[1])
	case len(args) > 0 && args[0] == "fairness":
		err = fairness(args[1:])
	case len(args) == 1 && args[0] == "echo":
		err = echo()
	case len(args) == 2 && args[0] == "generate":
		err = generate(args[1])
	default:
		err = errors.New("usage: bench list | bench run FLAGS PART... | bench docs RESULTS DIR | bench compare OURS THEIRS")
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// longest is several times what a run takes: something hangs.
const longest = time.Hour

// run measures parts. It ends with the first that cannot go on, and everything that it started ends with its process: it is
// the first one of a PID namespace, and its mounts are those of a mount namespace.
func run(args []string) error {
	b := &bench{daemons: map[string]*serving{}, given: map[string]error{}}
	flags := flag.NewFlagSet("bench run", flag.ContinueOnError)
	flags.StringVar(&b.parsecfs, "parsecfs", "", "the program")
	flags.StringVar(&b.work, "work", "", "an empty folder")
	flags.StringVar(&b.json, "json", "", "where results go")
	flags.StringVar(&b.library, "softhsm", "", "SoftHSM's module, where there is one")
	flags.StringVar(&b.chroot, "parsec", "", "a system that has Parsec, where there is one")
	flags.BoolVar(&b.short, "short", false, "few and short rounds")
	flags.StringVar(&b.results.Commit, "commit", "", "of the tree")
	flags.BoolVar(&b.results.Changed, "changed", false, "the tree is not that of the commit")
	if err := flags.Parse(args); err != nil {
		return err
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		<-stop
		os.Exit(130)
	}()
	time.AfterFunc(longest, func() {
		fmt.Fprintf(os.Stderr, "bench: not ready after %v\n", longest)
		os.Exit(1)
	})
	b.results.Short = b.short
	b.results.Date = time.Now().UTC().Truncate(time.Second)
	b.results.Machine = machine()
	begun := time.Now()
	for _, p := range parts {
		if !slices.Contains(flags.Args(), p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s: %s\n", p.name, p.help)
		b.results.Parts = append(b.results.Parts, p.name)
		partBegun := time.Now()
		if err := p.run(b); p.name == partGuard && err != nil {
			return err
		} else if err != nil {
			b.results.fail(p.name, err)
		}
		if b.hung {
			for _, name := range slices.Collect(maps.Keys(b.daemons)) {
				b.kill(name) // who waits for them goes on with an error
			}
			b.hung = false
		}
		fmt.Fprintf(os.Stderr, "%s took %.0f s\n", p.name, time.Since(partBegun).Seconds())
		b.results.Seconds = time.Since(begun).Seconds()
		if err := b.write(); err != nil {
			return err
		}
		if err := b.results.print(os.Stdout, p.name); err != nil {
			return err
		}
	}
	if n := len(b.results.Failed); n > 0 {
		return fmt.Errorf("%d measurements failed, see above", n)
	}
	return nil
}

func machine() Machine {
	m := Machine{Processors: runtime.NumCPU(), Go: runtime.Version()}
	for line := range strings.Lines(read("/proc/cpuinfo")) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			m.CPU = strings.TrimSpace(value)
			break
		}
	}
	_, _ = fmt.Sscanf(read("/proc/meminfo"), "MemTotal: %d kB", &m.MemoryMiB)
	m.MemoryMiB /= 1024
	_, _ = fmt.Sscan(read("/proc/loadavg"), &m.Load)
	m.Kernel = strings.TrimSpace(read("/proc/sys/kernel/osrelease"))
	for line := range strings.Lines(read("/etc/os-release")) {
		if value, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			m.System = strings.Trim(value, "\"\n")
		}
	}
	return m
}

// read is a file of the kernel's, or nothing.
func read(file string) string {
	b, _ := os.ReadFile(file)
	return string(b)
}

// giveAway makes somebody else the owner of a key.
func giveAway(sign string) error {
	return errors.Join(os.Chown(filepath.Dir(sign), nobody, nobody), os.Chown(sign, nobody, nobody))
}
