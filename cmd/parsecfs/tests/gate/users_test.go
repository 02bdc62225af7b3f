package gate

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// user is a process of another user, which does what the test says.
type user struct {
	t   *testing.T
	uid int
	in  io.WriteCloser
	out *bufio.Reader
}

func newUser(t *testing.T, uid int) *user {
	t.Helper()
	cmd := exec.Command("/usr/bin/python3", "-B", "testdata/user.py", strconv.Itoa(uid))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("user %d: %v", uid, err)
		}
	})
	return &user{t, uid, in, bufio.NewReader(out)}
}

// do is what came of an expression: ok, what it gave, or an errno.
func (u *user) do(format string, args ...any) string {
	u.t.Helper()
	expression := fmt.Sprintf(format, args...)
	if _, err := io.WriteString(u.in, expression+"\n"); err != nil {
		u.t.Fatal(err)
	}
	told, err := u.out.ReadString('\n')
	if err != nil {
		u.t.Fatalf("user %d, %s: %v", u.uid, expression, err)
	}
	return strings.TrimSuffix(told, "\n")
}

// must is for what the test needs to come about.
func (u *user) must(format string, args ...any) {
	u.t.Helper()
	if told := u.do(format, args...); told != "ok" {
		u.t.Fatalf("user %d, %s: %s", u.uid, fmt.Sprintf(format, args...), told)
	}
}

// want is for what the test is about.
func (u *user) want(want, format string, args ...any) {
	u.t.Helper()
	if told := u.do(format, args...); told != want {
		u.t.Errorf("user %d, %s: %s, want %s", u.uid, fmt.Sprintf(format, args...), told, want)
	}
}

// root runs a command as root.
func root(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
}
