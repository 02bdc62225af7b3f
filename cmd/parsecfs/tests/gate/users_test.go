package gate

import (
	"bufio"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// user is a process of another user, which does what the test says.
type user struct {
	t   *testing.T
	uid int
	in  io.Writer
	out *bufio.Reader
}

func newUser(t *testing.T, uid int) *user {
	t.Helper()
	in, out := parsecfstest.Talk(t, exec.Command("/usr/bin/python3", "-B", "testdata/user.py", strconv.Itoa(uid)))
	return &user{t, uid, in, out}
}

// newUserIn is newUser in a mount namespace of their own, where root has run a command. It holds no mount of other tests.
func newUserIn(t *testing.T, uid int, prepare string) *user {
	t.Helper()
	script := `awk '$3 == "fuse.parsecfs" && $2 != m { print $2 }' m="$0" /proc/mounts | xargs -r umount -l -c -i || true; ` +
		prepare + `; exec /usr/bin/python3 -B testdata/user.py "$1"`
	mount, _, _ := strings.Cut(prepare[strings.Index(prepare, "/"):], "/providers/")
	own := exec.Command("unshare", "-m", "--propagation", "private", "sh", "-eu", "-c", script, mount, strconv.Itoa(uid))
	in, out := parsecfstest.Talk(t, own)
	return &user{t, uid, in, out}
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
