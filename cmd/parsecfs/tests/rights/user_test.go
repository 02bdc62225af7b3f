package rights

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// userVariable makes this test's program one of its users.
const userVariable = "PARSECFS_TEST_USER"

func TestMain(m *testing.M) {
	if os.Getenv(userVariable) != "" {
		serveUser()
		return
	}
	parsecfstest.Main(m)
}

// call is one thing that a user does with files, and outcome what came of it.
type call struct {
	Verb, Path, To string
	Flags          int
	Data           []byte
	Inputs         []input  // of a slot, in this order
	Outputs        []string // of a slot
}

type input struct {
	Name string
	Data []byte
}

type outcome struct {
	Errno syscall.Errno
	Data  []byte
	Named map[string][]byte
}

// user is a process of another uid that does what it is told.
type user struct {
	t     *testing.T
	tell  *json.Encoder
	heard *json.Decoder
}

// newUser starts a process with a uid, that gid and no other group.
func newUser(t *testing.T, uid uint32) *user {
	t.Helper()
	// go test keeps its programs where nobody else can go: this name of the file needs no way to it.
	cmd := exec.Command("/proc/self/exe")
	cmd.Args[0] = "user"
	cmd.Env = append(os.Environ(), userVariable+"=1")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	in, out := parsecfstest.Talk(t, cmd)
	return &user{t: t, tell: json.NewEncoder(in), heard: json.NewDecoder(out)}
}

func (u *user) does(c call) outcome {
	u.t.Helper()
	var o outcome
	if err := errors.Join(u.tell.Encode(c), u.heard.Decode(&o)); err != nil {
		u.t.Fatalf("a user: %v", err)
	}
	return o
}

// must is does for what has to succeed.
func (u *user) must(c call) outcome {
	u.t.Helper()
	o := u.does(c)
	if o.Errno != 0 {
		u.t.Fatalf("%s %s %s: %v", c.Verb, c.Path, c.To, o.Errno)
	}
	return o
}

// ask is one transaction on one descriptor.
func (u *user) ask(path string, request ...[]byte) outcome {
	u.t.Helper()
	return u.does(call{Verb: "ask", Path: path, Data: bytes.Join(request, nil)})
}

// slot is one use of a slot of an operation's file: the inputs go in, in their order, and then the outputs are read.
func (u *user) slot(path string, inputs []input, outputs ...string) outcome {
	u.t.Helper()
	return u.does(call{Verb: "slot", Path: path + ".d/slot", Inputs: inputs, Outputs: outputs})
}

// serveUser is a user's process.
func serveUser() {
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var c call
		if in.Decode(&c) != nil {
			return
		}
		var o outcome
		if err := c.do(&o); err != nil && !errors.As(err, &o.Errno) {
			o.Errno = syscall.EIO
		}
		if out.Encode(o) != nil {
			return
		}
	}
}

func (c call) do(o *outcome) (err error) {
	switch c.Verb {
	case "open":
		f, err := os.OpenFile(c.Path, c.Flags, 0o600)
		if err != nil {
			return err
		}
		return f.Close()
	case "read":
		o.Data, err = os.ReadFile(c.Path)
		return err
	case "write":
		return parsecfstest.WriteOnce(c.Path, c.Data)
	case "ask":
		o.Data, err = parsecfstest.Ask(c.Path, c.Data)
		return err
	case "slot":
		return c.slot(o)
	case "mkdir":
		return os.Mkdir(c.Path, 0o711)
	case "rmdir":
		return syscall.Rmdir(c.Path)
	case "rename":
		return os.Rename(c.Path, c.To)
	case "chmod":
		return os.Chmod(c.Path, os.FileMode(c.Flags))
	case "list":
		entries, err := os.ReadDir(c.Path)
		for _, e := range entries {
			o.Data = append(o.Data, e.Name()+"\n"...)
		}
		return err
	}
	return errors.New("unknown")
}

// slot makes a slot, writes its inputs, reads its outputs and takes it away; the error is the first one.
func (c call) slot(o *outcome) (err error) {
	if err := os.Mkdir(c.Path, 0o700); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(c.Path)) }()
	for _, in := range c.Inputs {
		if err := parsecfstest.WriteOnce(filepath.Join(c.Path, in.Name), in.Data); err != nil {
			return err
		}
	}
	o.Named = map[string][]byte{}
	for _, name := range c.Outputs {
		b, err := os.ReadFile(filepath.Join(c.Path, name))
		if err != nil {
			return err
		}
		o.Named[name] = b
	}
	return nil
}
