package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/fs"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// readyVariable names the descriptor on which a daemon in the background says that it is ready, or why not.
const readyVariable = "PARSECFS_READY_FD"

// logName is the log of a daemon in the background, below the state directory.
const logName = "parsecfs.log"

// maxFailureBytes bounds what a daemon says about its failure.
const maxFailureBytes = 64 << 10

// background runs this command line again in a session of its own, with the descriptor in readyVariable instead of
// --background. It returns when that process has mounted, or with the error that it reported.
func background(stateDir, dir string, stderr io.Writer) error {
	if err := providers.MakeTrustedDir(stateDir); err != nil {
		return &fs.Error{Kind: fs.KindState, Err: fmt.Errorf("the state directory %s: %w", stateDir, err), Hint: psa.HintOf(err)}
	}
	log, err := fs.OpenLog(filepath.Join(stateDir, logName))
	if err != nil {
		return &fs.Error{Kind: fs.KindState, Err: err, Hint: psa.HintOf(err)}
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return err
	}
	// Reading ends when the daemon reports that it is ready, or exits.
	said, err := io.ReadAll(io.LimitReader(r, maxFailureBytes))
	if err != nil {
		return err
	}
	if string(said) == readyWord {
		fmt.Fprintf(stderr, "parsecfs: mounted on %s\n", dir)
		return cmd.Process.Release()
	}
	err = cmd.Wait()
	kind := fs.KindOther
	for k, code := range exitCodes {
		if code == cmd.ProcessState.ExitCode() {
			kind = k
		}
	}
	text, hint, _ := bytes.Cut(bytes.TrimSuffix(bytes.TrimPrefix(said, []byte("parsecfs: ")), []byte("\n")), []byte("\nhint: "))
	if len(text) == 0 {
		return &fs.Error{Kind: kind, Err: fmt.Errorf("the daemon exited before the mount was ready: %v", err), Hint: "see " + log.Name()}
	}
	return &fs.Error{Kind: kind, Err: fmt.Errorf("%s", text), Hint: string(hint)}
}

// readyWord is what the daemon sends when the tree can be used.
const readyWord = "ready"

// readyPipe tells the parent of a background daemon whether it has mounted. A nil pipe tells nothing.
type readyPipe struct{ f *os.File }

// inheritReady takes the pipe from the environment, and keeps it from children.
func inheritReady() (*readyPipe, error) {
	text, ok := os.LookupEnv(readyVariable)
	if !ok {
		return nil, nil
	}
	os.Unsetenv(readyVariable)
	fd, err := strconv.Atoi(text)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s is not the number of a descriptor", readyVariable)
	}
	unix.CloseOnExec(fd)
	return &readyPipe{os.NewFile(uintptr(fd), "ready")}, nil
}

func (r *readyPipe) done() {
	if r != nil {
		io.WriteString(r.f, readyWord)
		r.f.Close()
		r.f = nil
	}
}

func (r *readyPipe) fail(err error) {
	if r != nil && r.f != nil {
		printError(r.f, err)
		r.f.Close()
	}
}
