package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// The transports of requests to a file system.
const (
	transportDevice = "device"
	transportUring  = "uring"
)

// What answers requests, as the tables name it.
const (
	serverBare   = "bare Go"
	serverSocket = "minimal service behind a Unix socket"
	serverFloor  = "minimal handler"
	serverOurs   = "parsecfs"
)

// over names a server with the transport that its requests take.
func over(server, transport string) string {
	if transport == transportUring {
		return server + ", io_uring"
	}
	return server + ", /dev/fuse"
}

// bench is one run.
type bench struct {
	parsecfs string // the program
	work     string // a folder of its own
	json     string
	library  string // SoftHSM's module, or empty
	chroot   string // has Parsec, or empty
	short    bool
	hung     bool // something was given up that still waits for an answer
	results  Results
	daemons  map[string]*serving
	given    map[string]error // what could not be started, and why
}

// serving is what was started for this run; it is killed with it.
type serving struct {
	cmd *exec.Cmd
	dir string // where it is mounted
}

// start runs a program until it prints a line that begins with ready on its standard output or error.
func (b *bench) start(ready string, cmd *exec.Cmd) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	w.Close()
	if err != nil {
		r.Close()
		return err
	}
	began := make(chan error, 1)
	go func() {
		var said bytes.Buffer
		lines := bufio.NewScanner(r)
		for lines.Scan() {
			fmt.Fprintln(&said, lines.Text())
			if strings.HasPrefix(lines.Text(), ready) {
				began <- nil
				_, _ = io.Copy(io.Discard, r) // its log
				return
			}
		}
		began <- fmt.Errorf("%s ended: %s", cmd.Path, strings.TrimSpace(said.String()))
	}()
	select {
	case err = <-began:
	case <-time.After(patience):
		err = fmt.Errorf("%s was not ready after %v", cmd.Path, patience)
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	return err
}

// once starts what a name stands for where that was not tried before.
func (b *bench) once(name string, start func() (*serving, error)) (*serving, error) {
	if d, ok := b.daemons[name]; ok {
		return d, b.given[name]
	}
	d, err := start()
	b.daemons[name], b.given[name] = d, err
	return d, err
}

// kill ends a daemon, whatever it does; the next once starts it anew.
func (b *bench) kill(name string) {
	d := b.daemons[name]
	delete(b.daemons, name)
	if d == nil || d.cmd.Process == nil {
		return
	}
	_ = d.cmd.Process.Kill()
	_ = d.cmd.Wait() // killed by us
	if d.dir != "" {
		_ = syscall.Unmount(d.dir, syscall.MNT_DETACH)
	}
}

// folder makes one for a daemon's mount.
func (b *bench) folder(name string) (*serving, error) {
	dir, err := os.MkdirTemp(b.work, name+"-")
	if err != nil {
		return nil, err
	}
	return &serving{dir: dir}, os.Chmod(dir, 0o755)
}

const softwareOnly = `
[[key_manager]]
name = "sqlite"
manager_type = "SQLite"
[[provider]]
name = "software"
provider_type = "Software"
`

// mount starts a parsecfs of this run with a configuration, on a transport.
func (b *bench) mount(name, transport, config string) (*serving, error) {
	name += "-" + transport
	return b.once(name, func() (*serving, error) {
		setting, err := b.transport(transport)
		if err != nil {
			return nil, err
		}
		d, err := b.folder(name)
		if err != nil {
			return nil, err
		}
		file := d.dir + ".toml"
		if err := os.WriteFile(file, []byte(setting+config), 0o600); err != nil { // it can have a PIN
			return nil, err
		}
		d.cmd = exec.Command(b.parsecfs, "mount", "--config", file, "--state-dir", d.dir+".state", d.dir)
		err = b.onTransport(transport, func() error { return b.start("parsecfs: mounted", d.cmd) })
		if err != nil {
			return nil, err
		}
		if rings := rings(d.cmd.Process.Pid); transport == transportUring && rings == 0 {
			return d, errors.New("the daemon went back to /dev/fuse")
		} else if transport == transportDevice && rings != 0 {
			return d, errors.New("the daemon did not stay on /dev/fuse")
		}
		return d, nil
	})
}

// transport is the setting that asks for it. A parsecfs without the setting has the device alone.
func (b *bench) transport(transport string) (string, error) {
	setting := fmt.Sprintf("[mount]\ntransport = %q\n", transport)
	file := filepath.Join(b.work, "transport.toml")
	if err := os.WriteFile(file, []byte(setting+softwareOnly), 0o600); err != nil {
		return "", err
	}
	if err := exec.Command(b.parsecfs, "check-config", file).Run(); err == nil {
		return setting, nil
	}
	if transport == transportDevice {
		return "", nil
	}
	return "", errors.New("this parsecfs has no [mount] transport")
}

const enableUring = "/sys/module/fuse/parameters/enable_uring"

// onTransport mounts something while the kernel offers the transport: a mount keeps what it was offered.
func (b *bench) onTransport(transport string, mount func() error) error {
	if transport != transportUring {
		return mount()
	}
	before, err := os.ReadFile(enableUring)
	if err != nil {
		return fmt.Errorf("this kernel has no FUSE over io_uring: %w", err)
	}
	if err := os.WriteFile(enableUring, []byte("Y"), 0); err != nil {
		return fmt.Errorf("FUSE over io_uring cannot be switched on: %w", err)
	}
	err = mount()
	return errors.Join(err, os.WriteFile(enableUring, before, 0))
}

// rings counts the io_uring instances of a process.
func rings(pid int) int {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0
	}
	n := 0
	for _, e := range entries {
		if link, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && link == "anon_inode:[io_uring]" {
			n++
		}
	}
	return n
}

// key makes a key of a template with a name, once, and returns its directory.
func (d *serving) key(provider, name, template string) (string, error) {
	dir := filepath.Join(d.dir, "providers", provider, "keys", name)
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, os.ErrExist) {
		return dir, nil
	}
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "generate"), []byte(template+"\n"), 0o600)
}

// signer is a key of P-256 in software, and its sign.
func (d *serving) signer(name string) (*target, error) {
	dir, err := d.key("default", name, templateP256)
	return signs(filepath.Join(dir, "sign")), err
}

// floor starts the minimal handler on a transport.
func (b *bench) floor(transport string) (*serving, error) {
	return b.once("floor-"+transport, func() (*serving, error) {
		if _, ok := transports[transport]; !ok {
			return nil, errors.New("this tree has no such transport for it")
		}
		d, err := b.folder("floor-" + transport)
		if err != nil {
			return nil, err
		}
		d.cmd = exec.Command("/proc/self/exe", "serve", transport, d.dir)
		return d, b.onTransport(transport, func() error { return b.start("mounted", d.cmd) })
	})
}

// socket starts the minimal service behind a Unix socket.
func (b *bench) socket() (*serving, error) {
	return b.once("socket", func() (*serving, error) {
		d := &serving{cmd: exec.Command("/proc/self/exe", "socket", b.socketPath())}
		return d, b.start("listening", d.cmd)
	})
}

func (b *bench) socketPath() string { return filepath.Join(b.work, "socket") }

// write keeps what was measured until now.
func (b *bench) write() error {
	b.results.cores()
	return b.results.write(b.json)
}
