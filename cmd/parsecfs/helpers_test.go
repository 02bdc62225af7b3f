package main

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

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/pkcs11"
)

// The test binary is the parsecfs command too: under the name parsecfs it runs main. Test files that need a provider
// or a journal step of their own add to registry or set testOnlyStep in an init function, which runs there as well.
func TestMain(m *testing.M) {
	pkcs11.WorkerMain()
	testscript.Main(cleanRun{m}, map[string]func(){"parsecfs": main, "mount.fuse.parsecfs": main})
}

// cleanRun fails the run if a mount, a process or a file is left behind.
type cleanRun struct{ m *testing.M }

func (c cleanRun) Run() int {
	root, err := os.MkdirTemp("", "parsecfs-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Other users must be able to reach the program and their own mountpoints.
	if err := os.Chmod(root, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	os.Setenv("TMPDIR", root)
	code := c.m.Run()
	for _, left := range leftovers(root) {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		code = 1
	}
	if err := os.RemoveAll(root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// leftovers names what still refers to a folder: mounts (which it detaches), processes, files.
func leftovers(root string) (left []string) {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[1], root+"/") {
			left = append(left, "mount: "+strings.TrimSpace(line))
			unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		environ, _ := os.ReadFile(p + "/environ")
		if bytes.Contains(append(environ, cmdline...), []byte(root)) {
			left = append(left, "process: "+filepath.Base(p)+": "+string(bytes.ReplaceAll(cmdline, []byte{0}, []byte{' '})))
		}
	}
	files, _ := os.ReadDir(root)
	for _, f := range files {
		// testscript leaves its empty folder where -run chose some of the scripts.
		if os.Remove(filepath.Join(root, f.Name())) == nil && f.IsDir() {
			continue
		}
		left = append(left, "file: "+filepath.Join(root, f.Name()))
	}
	return left
}

// requireFUSE skips a test that an ordinary user cannot run, and fails it where root cannot.
func requireFUSE(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts, and makes files of other users")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatal("needs /dev/fuse: ", err)
	}
}

// mountOptions of mountParsecfs; the zero value is the default configuration in folders of the test's own.
type mountOptions struct {
	Config   string   // text of a configuration file; empty mounts without --config
	Env      []string // beside the test's own environment
	Args     []string // more arguments of parsecfs mount
	StateDir string   // default: a new folder
	Dir      string   // the mountpoint; default: a new folder
	Wrapper  []string // a command that runs the daemon ("setpriv", "--reuid=1234", ...); it must exec it
}

// mounted is a parsecfs daemon in a process of its own.
type mounted struct {
	Dir      string // the mountpoint
	StateDir string

	t    testing.TB
	o    mountOptions
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended and its output is read
	log  *syncBuffer
}

// mountParsecfs starts a daemon, waits until it says that it has mounted, and stops it when the test ends.
func mountParsecfs(t testing.TB, o mountOptions) *mounted {
	t.Helper()
	requireFUSE(t)
	m := &mounted{Dir: o.Dir, StateDir: o.StateDir, t: t, o: o, log: new(syncBuffer)}
	base := openTempDir(t)
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
		file := filepath.Join(base, "config.toml")
		if err := os.WriteFile(file, []byte(o.Config), 0o600); err != nil {
			t.Fatal(err)
		}
		m.args = append(m.args, "--config", file)
	}
	m.args = append(append(m.args, o.Args...), m.Dir)
	t.Cleanup(func() {
		if m.cmd != nil && m.running() {
			if code := m.stop(); code != 0 {
				t.Errorf("parsecfs mount ended with %d:\n%s", code, m.log)
			}
		}
		// Whatever happened, the temporary folder must be removable.
		for unix.Unmount(m.Dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW) == nil {
		}
		if t.Failed() {
			t.Logf("parsecfs said:\n%s", m.log)
		}
	})
	if err := m.start(); err != nil {
		t.Fatal(err)
	}
	return m
}

// openTempDir is a temporary folder of the test that other users can reach too.
func openTempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// start starts the daemon again after kill or stop, on the same state and mountpoint; its error says what it printed.
func (m *mounted) start(env ...string) error {
	argv := append(append([]string{}, m.o.Wrapper...), parsecfsPath(m.t))
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
			io.WriteString(m.log, line)
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
			return fmt.Errorf("parsecfs mount: %v:\n%s", m.cmd.ProcessState, m.log)
		}
		return nil
	case <-time.After(60 * time.Second):
		m.kill()
		return fmt.Errorf("parsecfs mount: not ready after 60 s:\n%s", m.log)
	}
}

// restart is kill -9 (if it still runs) and start.
func (m *mounted) restart(env ...string) {
	m.t.Helper()
	m.kill()
	if err := m.start(env...); err != nil {
		m.t.Fatal(err)
	}
}

// kill ends the daemon with SIGKILL and waits for it; the dead mount stays.
func (m *mounted) kill() {
	if m.running() {
		m.cmd.Process.Kill()
	}
	<-m.done
}

// stop ends the daemon with SIGTERM and gives its exit status, -1 if it had to be killed.
func (m *mounted) stop() int {
	m.cmd.Process.Signal(syscall.SIGTERM)
	return m.wait()
}

// wait waits for the daemon to end by itself and gives its exit status, -1 if a signal ended it.
func (m *mounted) wait() int {
	select {
	case <-m.done:
	case <-time.After(60 * time.Second):
		m.t.Errorf("parsecfs mount: still there after 60 s:\n%s", m.log)
		m.kill()
	}
	return m.cmd.ProcessState.ExitCode()
}

// running says whether the daemon's process has not ended.
func (m *mounted) running() bool {
	select {
	case <-m.done:
		return false
	default:
		return true
	}
}

// parsecfs runs a subcommand in a process of its own.
func parsecfs(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(parsecfsPath(t), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// parsecfsPath is the command that testscript.Main put into PATH: this test binary under the name parsecfs.
func parsecfsPath(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("parsecfs")
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// syncBuffer is a buffer that one goroutine writes while another reads.
type syncBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
