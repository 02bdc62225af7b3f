// Package tpmtest runs a TPM for tests: swtpm, in a process of its own.
package tpmtest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// Chip is a TPM that keeps its state in a folder, so that it can be stopped and started again.
type Chip struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd

	other bool // another TPM is in its place
	port  int  // it listens on TCP; 0 is a socket in its folder
}

// Start starts a new TPM; the test's end stops it.
func Start(t *testing.T) *Chip {
	t.Helper()
	c := newChip(t)
	c.Restart()
	return c
}

func newChip(t *testing.T) *Chip {
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
	return c
}

// StartTCP is Start with a TPM that listens on TCP, on this machine alone.
func StartTCP(t *testing.T) *Chip {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	c := newChip(t)
	c.port = port
	c.Restart()
	return c
}

// TCTI is what a configuration says of it.
func (c *Chip) TCTI() string {
	if c.port != 0 {
		return fmt.Sprint("swtpm:host=127.0.0.1,port=", c.port)
	}
	return "swtpm:path=" + c.socket()
}

// Dial connects to it.
func (c *Chip) Dial() (net.Conn, error) {
	if c.port != 0 {
		return net.Dial("tcp", fmt.Sprint("127.0.0.1:", c.port))
	}
	return net.Dial("unix", c.socket())
}

func (c *Chip) socket() string { return filepath.Join(c.dir, "data") }

// control is where tpm2-tss looks for it.
func (c *Chip) control() string { return c.socket() + ".ctrl" }

// Restart starts a TPM that was killed: a reset.
func (c *Chip) Restart() {
	c.t.Helper()
	for _, name := range []string{c.socket(), c.control()} {
		_ = os.Remove(name) // a killed one leaves them
	}
	state := filepath.Join(c.dir, fmt.Sprint("state-", c.other))
	if err := os.MkdirAll(state, 0o700); err != nil {
		c.t.Fatal(err)
	}
	server := "type=unixio,path=" + c.socket()
	if c.port != 0 {
		server = fmt.Sprintf("type=tcp,port=%d,bindaddr=127.0.0.1", c.port)
	}
	c.cmd = exec.Command("swtpm", "socket", "--tpm2", "--tpmstate", "dir="+state, "--server", server,
		"--ctrl", "type=unixio,path="+c.control(), "--flags", "startup-clear,not-need-init")
	if err := c.cmd.Start(); err != nil {
		c.t.Fatalf("no TPM: %v", err)
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		conn, err := c.Dial()
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

// Exchange puts another TPM in its place; the next time, the first one comes back.
func (c *Chip) Exchange() {
	c.t.Helper()
	c.Kill()
	c.other = !c.other
	c.Restart()
}

// Freeze makes the TPM answer nobody, until Thaw.
func (c *Chip) Freeze() { c.signal(syscall.SIGSTOP) }

// Thaw ends Freeze.
func (c *Chip) Thaw() { c.signal(syscall.SIGCONT) }

func (c *Chip) signal(s syscall.Signal) {
	c.t.Helper()
	if err := c.cmd.Process.Signal(s); err != nil {
		c.t.Fatal(err)
	}
}
