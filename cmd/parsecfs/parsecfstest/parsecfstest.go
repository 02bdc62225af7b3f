// Package parsecfstest runs the parsecfs command for tests: mounts in processes of their own, and what their users do.
// A package that uses it calls Main in its TestMain.
package parsecfstest

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// BinaryVariable names a command that was built before, for several packages; it has the build tag parsecfstest.
	BinaryVariable = "PARSECFS_TEST_BINARY"
	// StepVariable names the step of the journal (kim.Steps, kim.RewrapSteps) at which the command kills itself.
	StepVariable = "PARSECFS_TEST_KILL_AT"
)

// root is the folder of the run, and bin, in it, the one that stands first in PATH.
var root, bin string

// Main runs a package's tests in a folder of the run's own, and exits. The run fails if a mount, a process or a file is
// left behind.
func Main(m *testing.M) {
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if err := begin(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	if err := os.RemoveAll(bin); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	for _, left := range leftovers() {
		fmt.Fprintln(os.Stderr, "left behind:", left)
		code = 1
	}
	if err := os.RemoveAll(root); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

func begin() (err error) {
	if root, err = os.MkdirTemp("", "parsecfs-test-"); err != nil {
		return err
	}
	bin = filepath.Join(root, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return err
	}
	// Other users must be able to reach the program and their own mountpoints.
	for _, dir := range []string{root, bin} {
		if err := os.Chmod(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.Setenv("TMPDIR", root); err != nil {
		return err
	}
	return os.Setenv("PATH", bin+string(filepath.ListSeparator)+os.Getenv("PATH"))
}

// built puts the command into bin, under the names by which it is called.
var built = sync.OnceValue(func() error {
	path := filepath.Join(bin, "parsecfs")
	if err := os.Symlink(path, filepath.Join(bin, "mount.fuse.parsecfs")); err != nil {
		return err
	}
	if binary := os.Getenv(BinaryVariable); binary != "" {
		return os.Symlink(binary, path)
	}
	args := append([]string{"build", "-tags", "parsecfstest", "-o", path}, raceFlags...)
	if out, err := exec.Command("go", append(args, "github.com/parsecfs/parsecfs/cmd/parsecfs")...).CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %v: %s", err, out)
	}
	return os.Chmod(path, 0o755)
})

// Path is the command's file. mount.fuse.parsecfs stands beside it, and both are in PATH.
func Path(t testing.TB) string {
	t.Helper()
	if bin == "" {
		t.Fatal("TestMain does not call parsecfstest.Main")
	}
	if err := built(); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(bin, "parsecfs")
}

// Run runs the command in a process of its own.
func Run(t testing.TB, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.Command(Path(t), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// Long says whether the tests run in their full form (scripts/test -long).
func Long() bool { return os.Getenv("PARSECFS_TEST_LONG") == "1" }

// RequireFUSE skips a test that an ordinary user cannot run, and fails it where root cannot.
func RequireFUSE(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts, and makes files of other users")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Fatal("needs /dev/fuse: ", err)
	}
}

// TempDir is a temporary folder of the test that other users can reach too.
func TempDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// leftovers names what still refers to the run's folder: mounts (which it detaches), processes, files.
func leftovers() (left []string) {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[1], root+"/") {
			left = append(left, "mount: "+strings.TrimSpace(line))
			unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	deadline := time.Now().Add(10 * time.Second)
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		environ, _ := os.ReadFile(p + "/environ")
		if bytes.Contains(append(environ, cmdline...), []byte(root)) && !ends(filepath.Base(p), deadline) {
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

// ends waits for a process that was told to end, as a daemon is whose mount has gone.
func ends(process string, deadline time.Time) bool {
	pid, err := strconv.Atoi(process)
	if err != nil {
		return false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return err == unix.ESRCH
	}
	defer unix.Close(fd)
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(max(0, time.Until(deadline).Milliseconds())))
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

// Talk starts a process that does what is written to it and says what came of it, until the test ends.
func Talk(t *testing.T, cmd *exec.Cmd) (in io.Writer, out *bufio.Reader) {
	t.Helper()
	cmd.Stderr = os.Stderr
	to, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	from, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		to.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %v", cmd.Args, err)
		}
	})
	return to, bufio.NewReader(from)
}
