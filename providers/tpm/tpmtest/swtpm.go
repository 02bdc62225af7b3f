// Package tpmtest runs a TPM for tests: swtpm, in a process of its own.
package tpmtest

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// Chip is a TPM that keeps its state in a folder, so that it can be stopped and started again.
type Chip struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

// Start starts a new TPM; the test's end stops it.
func Start(t *testing.T) *Chip {
	t.Helper()
	// A socket's path has 107 bytes, and a test's name is long.
	dir, err := os.MkdirTemp("", "tpm")
	if err != nil {
		t.Fatal(err)
	}
	c := &Chip{t: t, dir: dir}
	t.Cleanup(func() {
		c.Kill()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c.Restart()
	return c
}

// TCTI is what a configuration says of it.
func (c *Chip) TCTI() string { return "swtpm:path=" + c.socket() }

func (c *Chip) socket() string { return filepath.Join(c.dir, "data") }

// Restart starts a TPM that was killed: a reset.
func (c *Chip) Restart() {
	c.t.Helper()
	for _, name := range []string{"data", "control"} {
		_ = os.Remove(filepath.Join(c.dir, name)) // a killed one leaves them
	}
	c.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+c.dir, "--server", "type=unixio,path="+c.socket(),
		"--ctrl", "type=unixio,path="+filepath.Join(c.dir, "control"), "--flags", "startup-clear,not-need-init")
	c.cmd.Stderr = os.Stderr
	if err := c.cmd.Start(); err != nil {
		c.t.Fatalf("no TPM: %v", err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := net.Dial("unix", c.socket())
		if err == nil {
			_ = conn.Close()
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the TPM does not listen: %v", err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Kill ends the TPM's process at once.
func (c *Chip) Kill() {
	c.t.Helper()
	if c.cmd.ProcessState != nil {
		return
	}
	if err := c.cmd.Process.Kill(); err != nil {
		c.t.Error(err)
	}
	_ = c.cmd.Wait() // killed
}

// Forget ends the TPM, and makes another of it, with other seeds.
func (c *Chip) Forget() {
	c.t.Helper()
	c.Kill()
	if err := os.RemoveAll(c.dir); err != nil {
		c.t.Fatal(err)
	}
	if err := os.Mkdir(c.dir, 0o700); err != nil {
		c.t.Fatal(err)
	}
	c.Restart()
}
