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
	"github.com/parsecfs/parsecfs/providers/psa"
)

// readyVariable names the descriptor on which a daemon in the background says that it is ready, or why not.
const readyVariable = "PARSECFS_READY_FD"

// logName is the log of a daemon in the background, below the state directory.
const logName = "parsecfs.log"

// maxFailureBytes bounds what a daemon says about its failure.
const maxFailureBytes = 64 << 10

// background runs this command line again in a session of its own, with the descriptor in readyVariable instead of
// --background. It returns when that process has mounted, or with the error that it reported. What it says before it holds the state goes
// into memory: the log there may be that of another daemon.
func background(dir string, stderr io.Writer) error {
	fd, err := unix.MemfdCreate(logName, unix.MFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("cannot buffer the log: %w", err)
	}
	early := os.NewFile(uintptr(fd), logName)
	defer early.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = os.Args
	cmd.Env = append(os.Environ(), readyVariable+"=3")
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stdout, cmd.Stderr = early, early
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
		// It may have ended in a panic.
		if _, err := io.Copy(stderr, io.NewSectionReader(early, 0, maxFailureBytes)); err != nil {
			return err
		}
		return &fs.Error{Kind: kind, Err: fmt.Errorf("the daemon exited before the mount was ready: %v", err),
			Hint: logName + " in the state directory may say more"}
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

// log has a daemon in the background, which holds the state by now, say everything in the state's log; what it said so far
// goes there too.
func (r *readyPipe) log(stateDir string) error {
	if r == nil {
		return nil
	}
	log, err := fs.OpenLog(filepath.Join(stateDir, logName))
	if err != nil {
		return &fs.Error{Kind: fs.KindState, Err: err, Hint: psa.HintOf(err)}
	}
	defer log.Close()
	fd, err := unix.FcntlInt(os.Stderr.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	early := os.NewFile(uintptr(fd), logName)
	defer early.Close()
	for _, standard := range []*os.File{os.Stdout, os.Stderr} {
		if err := unix.Dup3(int(log.Fd()), int(standard.Fd()), 0); err != nil {
			return err
		}
	}
	_, err = io.Copy(log, io.NewSectionReader(early, 0, maxFailureBytes))
	return err
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
