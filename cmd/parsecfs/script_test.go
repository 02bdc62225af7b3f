package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// TestScripts runs the shell sessions in testdata/script. Beside testscript's own commands they have
//
//	gone         wait until no daemon of this script runs any more
//	signal NAME  send a signal (KILL, TERM) to the daemons of this script; after KILL wait for their end
//	daemon-pid   put the one daemon's pid into PID
//
// and the conditions root; mountns: a mount namespace can be made whose mounts nobody else sees; and cgroup: the cgroup
// hierarchy that systemd uses can be mounted.
func TestScripts(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// Scripts start programs as other users.
			for _, dir := range []string{filepath.Dir(env.WorkDir), env.WorkDir} {
				if err := os.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("PARSECFS", parsecfstest.Path(t))
			env.Defer(func() {
				for _, pid := range daemons(env.WorkDir) {
					unix.Kill(pid, unix.SIGTERM)
				}
				if left := waitGone(env.WorkDir); len(left) > 0 {
					for _, pid := range left {
						unix.Kill(pid, unix.SIGKILL)
					}
					waitGone(env.WorkDir)
				}
				unmountBelow(env.WorkDir)
			})
			return nil
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "cgroup":
				const mount = `d=$(mktemp -d) && trap 'rmdir "$d"' EXIT && { if grep -q ':name=systemd:' /proc/self/cgroup
					then mount -t cgroup -o none,name=systemd none "$d"; else mount -t cgroup2 none "$d"; fi && umount "$d"; }`
				return exec.Command("unshare", "-m", "--propagation", "private", "sh", "-c", mount).Run() == nil, nil
			case "mountns":
				return exec.Command("unshare", "-m", "--propagation", "private", "true").Run() == nil, nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"gone": func(ts *testscript.TestScript, neg bool, args []string) {
				if left := waitGone(ts.Getenv("WORK")); len(left) > 0 {
					ts.Fatalf("still running: %v", left)
				}
			},
			"signal": func(ts *testscript.TestScript, neg bool, args []string) {
				if len(args) != 1 {
					ts.Fatalf("usage: signal NAME")
				}
				pids := daemons(ts.Getenv("WORK"))
				if len(pids) == 0 {
					ts.Fatalf("no daemon runs")
				}
				for _, pid := range pids {
					ts.Check(unix.Kill(pid, unix.SignalNum("SIG"+args[0])))
				}
				if args[0] == "KILL" {
					waitGone(ts.Getenv("WORK"))
				}
			},
			"daemon-pid": func(ts *testscript.TestScript, neg bool, args []string) {
				pids := daemons(ts.Getenv("WORK"))
				if len(pids) != 1 {
					ts.Fatalf("%d daemons run", len(pids))
				}
				ts.Setenv("PID", strconv.Itoa(pids[0]))
			},
		},
	})
}

// daemons are the parsecfs processes that the script in a folder started.
func daemons(dir string) (pids []int) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		cmdline, _ := os.ReadFile(p + "/cmdline")
		environ, _ := os.ReadFile(p + "/environ")
		name, _, _ := bytes.Cut(cmdline, []byte{0})
		pid, err := strconv.Atoi(filepath.Base(p))
		if err == nil && strings.HasSuffix(string(name), "parsecfs") && bytes.Contains(append([]byte{0}, environ...), []byte("\x00WORK="+dir+"\x00")) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// waitGone waits for the daemons of a folder to end, and gives those that do not.
func waitGone(dir string) []int {
	for deadline := time.Now().Add(30 * time.Second); ; {
		pids := daemons(dir)
		if len(pids) == 0 || time.Now().After(deadline) {
			return pids
		}
		// A pidfd becomes readable when its process ends.
		fd, err := unix.PidfdOpen(pids[0], 0)
		if err != nil {
			continue
		}
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(time.Until(deadline).Milliseconds()))
		unix.Close(fd)
	}
}

// unmountBelow detaches every mount below a folder, so that it can be removed.
func unmountBelow(dir string) {
	mounts, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(mounts)) {
		if f := strings.Fields(line); len(f) > 2 && strings.HasPrefix(f[1], dir+"/") {
			unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
}
