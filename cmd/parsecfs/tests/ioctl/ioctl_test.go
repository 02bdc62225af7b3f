// Package ioctl calls operations by the ioctl that carries request and answer, where a daemon of its own is needed.
package ioctl

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"
	"github.com/parsecfs/parsecfs/providers/providertest/outside"
)

// audited is a configuration with a trail.
const audited = "[audit]\nmax_bytes = 65536\nkeep = 2\n"

type line struct {
	Operation, Algorithm, Key, File, Request, Status string
	UID                                              int
}

// trail gives the lines of an operation, after the daemon's end.
func trail(t *testing.T, m *parsecfstest.Mounted, operation string) (lines []line) {
	t.Helper()
	if code := m.Stop(); code != 0 {
		t.Fatalf("exit %d:\n%s", code, m.Log())
	}
	files, err := filepath.Glob(filepath.Join(m.StateDir, "audit*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for text := range bytes.Lines(b) {
			var l line
			if err := json.Unmarshal(text, &l); err != nil {
				continue // a key, not the trail
			}
			if l.Operation == operation {
				lines = append(lines, l)
			}
		}
	}
	return lines
}

type client struct {
	t      *testing.T
	in     *bufio.Writer
	out    *bufio.Reader
	public *ecdsa.PublicKey
}

func newClient(t *testing.T, key string) *client {
	in, out := parsecfstest.Talk(t, exec.Command("python3", "testdata/interrupted.py", filepath.Join(key, "sign")))
	return &client{t: t, in: bufio.NewWriter(in), out: out, public: parsecfstest.PublicKey[*ecdsa.PublicKey](t, key)}
}

func (c *client) say(word string) {
	c.t.Helper()
	fmt.Fprintln(c.in, word)
	if err := c.in.Flush(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) ask(word string) string {
	c.t.Helper()
	c.say(word)
	said, err := c.out.ReadString('\n')
	if err != nil {
		c.t.Fatal(err)
	}
	return strings.TrimSpace(said)
}

func (c *client) signs(word string) {
	c.t.Helper()
	said := c.ask(word)
	signature, err := hex.DecodeString(said)
	if sum := sha256.Sum256([]byte(word)); err != nil || !ecdsa.VerifyASN1(c.public, sum[:], signature) {
		c.t.Errorf("%s: no signature of it: %s", word, said)
	}
}

// TestInterrupted: a call that a signal ends goes on where its client calls again, and runs once.
func TestInterrupted(t *testing.T) {
	t.Parallel()
	slow := stores.Outside()
	slow.Begin(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: audited + slow.Config})
	key := filepath.Join(m.Dir, "providers/p/keys/k")
	parsecfstest.Generate(t, key, "ecdsa-p256-sha256")
	c := newClient(t, key)
	fault := func(lines string) {
		if err := outside.SetFault(slow.Dir, lines); err != nil {
			t.Fatal(err)
		}
	}
	// It waits on for a second: no client of a fast device ever meets EINTR.
	fault("finish delay 500ms")
	c.signs("patient")
	if said := c.ask("!patient"); said == "EINTR" {
		t.Error("it is interrupted before its time")
	}
	fault("finish delay 1800ms")
	if said := c.ask("!slow"); said != "EINTR" {
		t.Fatalf("it was not interrupted: %s", said)
	}
	if said := c.ask("another"); said != "EBUSY" {
		t.Errorf("another request meanwhile: %s", said)
	}
	c.signs("slow")
	fault("")
	c.signs("slow") // now it is a request of its own
	c.signs("another")
	if lines := trail(t, m, "sign"); len(lines) != 5 {
		t.Errorf("it signed %d times, and not 5: %+v", len(lines), lines)
	}
}

// TestAudit: the trail tells of an ioctl what it tells of a WRITE and a READ.
func TestAudit(t *testing.T) {
	t.Parallel()
	const software = "[[provider]]\nname = \"p\"\nprovider_type = \"Software\"\n"
	m := parsecfstest.Mount(t, parsecfstest.Options{Config: audited + stores.KIM + software})
	key := filepath.Join(m.Dir, "providers/p/keys/k")
	parsecfstest.Generate(t, key, "ecdsa-p256-sha256")
	c := newClient(t, key)
	c.signs("message")
	if _, err := parsecfstest.Ask(filepath.Join(key, "sign"), []byte("message")); err != nil {
		t.Fatal(err)
	}
	lines := trail(t, m, "sign")
	if len(lines) != 2 || lines[0] != lines[1] || lines[0].Request == "" || lines[0].Status != "PSA_SUCCESS" {
		t.Errorf("%+v", lines)
	}
}
