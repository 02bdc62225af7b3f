package isolation

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

const (
	isolationJobs  = 24 // bash jobs, of 20 signatures each
	isolationTimes = isolationJobs * 20
	threadTimes    = 8 * 100
)

// TestIsolation: many who sign with one key at once each get the signature of their own message, or in the drop box
// none, and never another one. The daemon runs under the race detector where the tests do, and with one processor too.
func TestIsolation(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	one := []string{"GOMAXPROCS=1"}
	cases := []struct {
		name, directory string
		env             []string
	}{{"all processors", "mine", nil}, {"one processor", "keys", one}}
	if parsecfstest.Long() {
		cases = append(cases, cases...)
		cases[2].name, cases[2].directory = "all processors, shared names", "keys"
		cases[3].name, cases[3].directory = "one processor, own names", "mine"
	}
	for _, mount := range cases {
		t.Run(mount.name, func(t *testing.T) {
			t.Parallel()
			m := parsecfstest.Mount(t, parsecfstest.Options{Env: mount.env})
			key := filepath.Join(m.Dir, "providers/software", mount.directory, "k")
			if err := os.Mkdir(key, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := parsecfstest.WriteOnce(filepath.Join(key, "generate"), []byte("ecdsa-p256-sha256\n")); err != nil {
				t.Fatal(err)
			}
			c := &crowd{public: parsecfstest.PublicKey[*ecdsa.PublicKey](t, key), sign: filepath.Join(key, "sign")}
			// Whether refusals are promised not to come. Threads of one process are one user to the drop box, so it
			// refuses what it cannot tell apart.
			for _, mode := range []struct {
				name                  string
				jobs, shells, threads bool
			}{
				{"descriptor", true, true, true},
				{"slot", true, true, true},
				{"dropbox", false, true, false},
			} {
				t.Run(mode.name+"/jobs", func(t *testing.T) {
					out := t.TempDir()
					c.run(t, exec.Command("bash", "-c", `. testdata/job.sh
						for ((n = 0; n < `+fmt.Sprint(isolationJobs)+`; n++)); do job "$0" "$1" "$2" $n & done; wait`, mode.name, c.sign, out))
					c.judge(t, out, isolationTimes, mode.jobs)
				})
				t.Run(mode.name+"/shells", func(t *testing.T) {
					out := t.TempDir()
					var wg sync.WaitGroup
					for n := range isolationJobs {
						wg.Go(func() {
							c.run(t, exec.Command("bash", "testdata/job.sh", mode.name, c.sign, out, fmt.Sprint(n)))
						})
					}
					wg.Wait()
					c.judge(t, out, isolationTimes, mode.shells)
				})
				t.Run(mode.name+"/threads", func(t *testing.T) {
					c.threads(t, mode.name, mode.threads)
				})
			}
			// Threads that share one open file may be told that it is busy.
			for _, way := range []string{"ioctl", "ioctl in turns", "ioctl, shared"} {
				t.Run(way, func(t *testing.T) { c.threads(t, way, way != "ioctl, shared") })
			}
			t.Run("cases", func(t *testing.T) { c.cases(t) })
		})
	}
}

// crowd is who signs with one key.
type crowd struct {
	public *ecdsa.PublicKey
	sign   string
}

func (c *crowd) threads(t *testing.T, way string, allAnswered bool) {
	t.Helper()
	out := t.TempDir()
	c.run(t, exec.Command("python3", "testdata/threads.py", way, c.sign, out))
	c.judge(t, out, threadTimes, allAnswered)
}

// run ends in success or not: what counts is what it left.
func (c *crowd) run(t *testing.T, cmd *exec.Cmd) {
	out, err := cmd.CombinedOutput()
	if _, exited := err.(*exec.ExitError); err != nil && !exited || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

func (c *crowd) signed(message, signature []byte) bool {
	sum := sha256.Sum256(message)
	return ecdsa.VerifyASN1(c.public, sum[:], signature)
}

// judge holds each attempt that left its message in out to its answer.
func (c *crowd) judge(t *testing.T, out string, attempts int, allAnswered bool) {
	t.Helper()
	messages, err := filepath.Glob(filepath.Join(out, "*.msg"))
	if err != nil || len(messages) != attempts {
		t.Fatalf("%d attempts of %d were made: %v", len(messages), attempts, err)
	}
	answered := 0
	for _, path := range messages {
		message, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(path, ".msg")
		signature, _ := os.ReadFile(name + ".sig")
		refusal, noError := os.ReadFile(name + ".err")
		switch {
		case len(signature) > 0 && !c.signed(message, signature):
			t.Errorf("WRONG ANSWER to %q: %x", message, signature)
		case noError == nil && allAnswered:
			t.Errorf("%q was refused: %s", message, refusal)
		case len(signature) > 0:
			answered++
		case noError != nil:
			t.Errorf("an empty answer to %q, and no error", message)
		}
	}
	t.Logf("%d of %d answered, %d refused", answered, attempts, attempts-answered)
}

// cases are ways to confuse a drop box; whoever wrote nothing gets nothing. The order that confuses, in which the reader
// begins between the write and the writer's own read, chance seldom brings about: there two FIFOs make it.
func (c *crowd) cases(t *testing.T) {
	const (
		write  = `printf mine >"$SIGN"`
		writes = `{ cat "$SIGN" >writes || : >writes.err; }`
		reads  = `{ cat "$SIGN" >reads || : >reads.err; }`
		wait   = `read -r <wrote`
		let    = `echo >wrote; read -r <done`
		done   = `echo >done`
	)
	two := map[string]string{"reads": "", "writes": "mine"}
	for _, o := range []struct {
		name, script string
		// what each output may be the signature of; "" for what may be nothing at all
		outputs map[string]string
	}{
		{"a job that only reads",
			`{ ` + reads + `; } & { ` + write + `; ` + writes + `; } & wait`, two},
		{"a job that only reads, in between",
			`{ ` + write + `; ` + let + `; ` + writes + `; } & ` + wait + `; { ` + reads + `; ` + done + `; } & wait`, two},
		{"a job that writes nothing and reads",
			`{ : >"$SIGN"; ` + reads + `; } & { ` + write + `; ` + writes + `; } & wait`, two},
		{"a job that writes nothing and reads, in between",
			`{ ` + write + `; ` + let + `; ` + writes + `; } & ` + wait + `; { : >"$SIGN"; ` + reads + `; ` + done + `; } & wait`, two},
		// The writer has ended, and its shell is the reader's too: only the reader's own empty write tells them apart.
		{"a job that writes nothing and reads, after the other's end",
			`printf mine >message; cat message >"$SIGN" & wait; { : >"$SIGN"; ` + reads + `; } & wait; ` + writes, two},
		{"a write that failed",
			`printf OLD >"$SIGN"; cat missing >"$SIGN"; cat "$SIGN" >out || : >out.err`, map[string]string{"out": ""}},
		{"a shell that only reads",
			`bash -c '` + write + `; ` + writes + `' & bash -c '` + reads + `' & wait`, two},
		{"a shell that only reads, in between",
			`bash -c '` + write + `; ` + let + `; ` + writes + `' & ` + wait + `; bash -c '` + reads + `; ` + done + `' & wait`, two},
		// The FIFO ends with the writer; the reader is the older one, so it cannot mean what was written since.
		{"a shell that only reads, after the other's end",
			`bash -c 'cat <wrote; ` + reads + `' & bash -c 'exec 4>wrote; ` + write + `' & wait`, map[string]string{"reads": ""}},
	} {
		t.Run(o.name, func(t *testing.T) {
			answered, refused := map[string]int{}, map[string]int{}
			for range 25 {
				dir := t.TempDir()
				for _, fifo := range []string{"wrote", "done"} {
					if err := syscall.Mkfifo(filepath.Join(dir, fifo), 0o600); err != nil {
						t.Fatal(err)
					}
				}
				cmd := exec.Command("bash", "-c", o.script)
				cmd.Dir = dir
				cmd.Env = append(os.Environ(), "SIGN="+c.sign)
				if err := cmd.Run(); err != nil {
					t.Fatal(err)
				}
				for name, message := range o.outputs {
					b, err := os.ReadFile(filepath.Join(dir, name))
					if err != nil {
						t.Fatal(err)
					}
					_, noError := os.Stat(filepath.Join(dir, name+".err"))
					switch {
					case len(b) > 0 && (message == "" || !c.signed([]byte(message), b)):
						t.Errorf("WRONG ANSWER in %s: %x", name, b)
					case len(b) > 0:
						answered[name]++
					case noError != nil:
						t.Errorf("an empty answer in %s, and no error", name)
					default:
						refused[name]++
					}
				}
			}
			t.Logf("answered: %v, refused: %v", answered, refused)
		})
	}
}
