package parsecfstest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Options of Mount; the zero value is the default configuration in folders of the test's own.
type Options struct {
	Config   string   // text of a configuration file; empty mounts without --config
	Env      []string // beside the test's own environment
	Args     []string // more arguments of parsecfs mount
	StateDir string   // default: a new folder
	Dir      string   // the mountpoint; default: a new folder
	Wrapper  []string // a command that runs the daemon ("setpriv", "--reuid=1234", ...); it must exec it
}

// Mounted is a parsecfs daemon in a process of its own.
type Mounted struct {
	Dir        string // the mountpoint
	StateDir   string
	ConfigFile string // the configuration's file, if there is one

	t    testing.TB
	o    Options
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and its output is read
	log  buffer
}

// Mount starts a daemon, waits until it says that it has mounted, and stops it when the test ends.
func Mount(t testing.TB, o Options) *Mounted {
	t.Helper()
	RequireFUSE(t)
	m := &Mounted{Dir: o.Dir, StateDir: o.StateDir, t: t, o: o}
	base := TempDir(t)
	if m.Dir == "" {
		m.Dir = filepath.Join(base, "mnt")
		if err := os.Mkdir(m.Dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if m.StateDir == "" {
		m.StateDir = filepath.Join(base, "state")
	}
	m.args = []string{"mount", "--state-dir", m.StateDir}
	if o.Config != "" {
		m.ConfigFile = filepath.Join(base, "config.toml")
		if err := os.WriteFile(m.ConfigFile, []byte(o.Config), 0o600); err != nil {
			t.Fatal(err)
		}
		m.args = append(m.args, "--config", m.ConfigFile)
	}
	m.args = append(append(m.args, o.Args...), m.Dir)
	t.Cleanup(func() {
		if m.cmd != nil && m.Running() {
			if code := m.Stop(); code != 0 {
				t.Errorf("parsecfs mount ended with %d:\n%s", code, m.Log())
			}
		}
		// Whatever happened, the temporary folder must be removable.
		for unix.Unmount(m.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
		if t.Failed() {
			t.Logf("parsecfs said:\n%s", m.Log())
		}
	})
	if err := m.Start(); err != nil {
		t.Fatal(err)
	}
	return m
}

// Start starts the daemon again after Kill or Stop, on the same state and mountpoint; its error says what it printed.
func (m *Mounted) Start(env ...string) error {
	argv := append(append([]string{}, m.o.Wrapper...), Path(m.t))
	argv = append(argv, m.args...)
	m.cmd = exec.Command(argv[0], argv[1:]...)
	m.cmd.Env = append(append(os.Environ(), m.o.Env...), env...)
	stderr, err := m.cmd.StderrPipe()
	if err != nil {
		return err
	}
	if err := m.cmd.Start(); err != nil {
		return err
	}
	m.done = make(chan struct{})
	ready := make(chan bool, 1)
	go func() {
		defer close(m.done)
		r := bufio.NewReader(stderr)
		said := false
		for {
			line, err := r.ReadString('\n')
			io.WriteString(&m.log, line)
			if line == "parsecfs: mounted on "+m.Dir+"\n" && !said {
				said = true
				ready <- true
			}
			if err != nil {
				break
			}
		}
		m.cmd.Wait()
		if !said {
			ready <- false
		}
	}()
	select {
	case ok := <-ready:
		if !ok {
			return fmt.Errorf("parsecfs mount: %v:\n%s", m.cmd.ProcessState, m.Log())
		}
		return nil
	case <-time.After(60 * time.Second):
		m.Kill()
		return fmt.Errorf("parsecfs mount: not ready after 60 s:\n%s", m.Log())
	}
}

// Restart is kill -9 (if it still runs) and Start.
func (m *Mounted) Restart(env ...string) {
	m.t.Helper()
	m.Kill()
	if err := m.Start(env...); err != nil {
		m.t.Fatal(err)
	}
}

// Kill ends the daemon with SIGKILL and waits for it; the dead mount stays.
func (m *Mounted) Kill() {
	if m.Running() {
		m.cmd.Process.Kill()
	}
	<-m.done
}

// Stop ends the daemon with SIGTERM and gives its exit status, -1 if it had to be killed.
func (m *Mounted) Stop() int {
	m.cmd.Process.Signal(syscall.SIGTERM)
	return m.Wait()
}

// Wait waits for the daemon to end by itself and gives its exit status, -1 if a signal ended it.
func (m *Mounted) Wait() int {
	select {
	case <-m.done:
	case <-time.After(60 * time.Second):
		m.t.Errorf("parsecfs mount: still there after 60 s:\n%s", m.Log())
		m.Kill()
	}
	return m.cmd.ProcessState.ExitCode()
}

// Done is closed when the daemon's process has ended.
func (m *Mounted) Done() <-chan struct{} { return m.done }

// Running says whether the daemon's process has not ended.
func (m *Mounted) Running() bool {
	select {
	case <-m.done:
		return false
	default:
		return true
	}
}

// Process is the daemon's.
func (m *Mounted) Process() *os.Process { return m.cmd.Process }

// Log is what the daemon has said on standard error, since it was first started.
func (m *Mounted) Log() string { return m.log.String() }

// IsMounted says what the kernel's table says of a mountpoint.
func IsMounted(t testing.TB, dir string) bool {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(mounts), " "+dir+" fuse.parsecfs ")
}

// buffer is one that a goroutine writes while another reads.
type buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
