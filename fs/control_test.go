package fs

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// testControl listens in a state directory whose path is longer than a socket's address; no command may need the KIM.
func testControl(t *testing.T) (*control, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 100))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := listen(dir, nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	return c, dir
}

// raw opens the socket without the client's manners.
func raw(t *testing.T, dir string) net.Conn {
	t.Helper()
	c, err := dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.close)
	c.conn.SetDeadline(time.Now().Add(10 * time.Second))
	return c.conn
}

func TestControlPing(t *testing.T) {
	_, dir := testControl(t)
	info, err := os.Stat(filepath.Join(dir, controlName))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	c, err := dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.ping(); err != nil {
		t.Error(err)
	}
}

// Whatever is sent, one clear answer comes back and the daemon goes on.
func TestControlBadRequests(t *testing.T) {
	_, dir := testControl(t)
	for text, want := range map[string]string{
		`{"command":"keys burn"}` + "\n": `unknown command \"keys burn\"`,
		"hello\n":                        "invalid character",
		`{"command":"` + strings.Repeat("x", maxRequestBytes) + `"}` + "\n":    "unexpected EOF",
		`{"command":` + strings.Repeat("[", 3000) + strings.Repeat("]", 3000):  "control socket",
		`{"command":"ping","provider":"` + strings.Repeat("x", 1<<20) + `"}\n`: "",
	} {
		c := raw(t, dir)
		// The daemon may have answered and closed before it was sent all.
		io.WriteString(c, text)
		answer, _ := io.ReadAll(c)
		if !strings.Contains(string(answer), want) {
			t.Errorf("%.40q... is answered with %q, want %q", text, answer, want)
		}
	}
	c, err := dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.ping(); err != nil {
		t.Error(err)
	}
}

// Clients that connect and say nothing neither take the socket from others for good nor keep the daemon from ending.
func TestControlIdleClients(t *testing.T) {
	s, dir := testControl(t)
	var idle []net.Conn
	for range maxControlConns {
		idle = append(idle, raw(t, dir))
	}
	// The next one is turned away.
	if answer, err := io.ReadAll(raw(t, dir)); len(answer) != 0 || err != nil && !strings.Contains(err.Error(), "reset") {
		t.Errorf("beyond the bound: %q, %v", answer, err)
	}
	closed := make(chan struct{})
	go func() { s.close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(10 * time.Second):
		t.Fatal("the daemon waits for idle clients")
	}
	for _, c := range idle {
		if answer, _ := io.ReadAll(c); len(answer) != 0 {
			t.Errorf("an idle client hears %q", answer)
		}
	}
	if _, err := dial(dir); !errors.Is(err, errNoDaemon) {
		t.Errorf("after the end: %v", err)
	}
}

// A dead daemon's socket is no daemon, and is replaced.
func TestControlDeadSocket(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, controlName), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := dial(dir); !errors.Is(err, errNoDaemon) {
		t.Errorf("dead socket: %v", err)
	}
	if _, err := dial(filepath.Join(dir, "none")); !errors.Is(err, errNoDaemon) {
		t.Errorf("no directory: %v", err)
	}
	c, err := listen(dir, nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c.close()
}

// The client believes nothing that no daemon of ours says.
func TestControlBadAnswers(t *testing.T) {
	for answer, want := range map[string]string{
		"":                                      "ended before it answered",
		`{"data":"AAAA"}` + "\n":                "an answer to another command",
		"nonsense\n":                            "invalid character",
		strings.Repeat("x", 2*maxResponseBytes): "buffer full",
		`{"end":true,"error":"no","hint":"try"}` + "\n": "no",
	} {
		dir := t.TempDir()
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, controlName), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1024))
			io.WriteString(c, answer)
			c.Close()
		}()
		c, err := dial(dir)
		if err != nil {
			t.Fatal(err)
		}
		err = c.call(request{Command: commandKeys}, func(*response) error { t.Error("took it"); return nil })
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", answer, err, want)
		}
		c.close()
		l.Close()
	}
}

func TestChunks(t *testing.T) {
	var sizes []int
	n, err := chunks(func(p []byte) error { sizes = append(sizes, len(p)); return nil }).Write(make([]byte, 2*maxChunkBytes+1))
	if n != 2*maxChunkBytes+1 || err != nil || len(sizes) != 3 || sizes[2] != 1 {
		t.Error(n, err, sizes)
	}
}

// A handler that panics costs its client an EIO, and the log says what happened without quoting the request.
func TestPanicHandler(t *testing.T) {
	var log strings.Builder
	handler := panicHandler(slog.New(slog.NewTextHandler(&log, nil)))
	if status := handler("secret bytes"); status != fuse.EIO {
		t.Error(status)
	}
	if !strings.Contains(log.String(), "this is a bug in parsecfs") || strings.Contains(log.String(), "secret bytes") {
		t.Error(log.String())
	}
}

// Admins who connect and say nothing keep neither root nor each other out.
func TestControlPlaces(t *testing.T) {
	s, dir := testControl(t)
	for uid := uint32(2001); uid < 2100; uid++ {
		for n := 0; s.enter(uid); n++ {
			defer s.leave(uid)
			if n == connsOfOne {
				t.Fatalf("user %d has more than %d places", uid, connsOfOne)
			}
		}
	}
	c, err := dial(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if err := c.ping(); err != nil {
		t.Errorf("root: %v", err)
	}
	if s.enter(2101) {
		t.Error("the places that are kept for root are another's")
	}
}

// TestSocketMadeAgain: who removes the socket, with the state directory or without, can still reach the daemon, and nobody else's
// directory gets a socket of ours.
func TestSocketMadeAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	socketMadeAgain(t, dir)
}

// In a container the state directory may have come with the image.
func TestSocketMadeAgainOnOverlay(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=1m,mode=700"); err != nil {
		t.Skipf("this user cannot mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(disk, unix.MNT_DETACH) })
	in := func(name string) string { return filepath.Join(disk, name) }
	for _, name := range []string{"image/state", "upper", "work", "root"} {
		if err := os.MkdirAll(in(name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	err := unix.Mount("overlay", in("root"), "overlay", 0, "lowerdir="+in("image")+",upperdir="+in("upper")+",workdir="+in("work"))
	if err != nil {
		t.Skipf("no overlay can be mounted: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(in("root"), unix.MNT_DETACH) })
	socketMadeAgain(t, in("root/state"))
}

func socketMadeAgain(t *testing.T, dir string) {
	t.Helper()
	c, err := listen(dir, nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	reached := func(what string) {
		t.Helper()
		if err := c.again(); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		client, err := dial(dir)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer client.close()
		if err := client.ping(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		for name, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, controlName): 0o600} {
			if info, err := os.Stat(name); err != nil || info.Mode().Perm() != want {
				t.Errorf("%s: %s has the mode %v, %v", what, name, info.Mode(), err)
			}
		}
	}
	if err := os.Remove(filepath.Join(dir, controlName)); err != nil {
		t.Fatal(err)
	}
	reached("the socket was removed")
	for range 2 {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		reached("the directory was removed")
	}
	c.close()
	c.remove()
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory stays: %v", err)
	}

	// Another daemon has made its own state in the meantime.
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if c, err = listen(dir, nil, nil, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	reached("the directory was removed")
	for _, err := range []error{os.Remove(filepath.Join(dir, controlName)), os.WriteFile(filepath.Join(dir, "lock"), nil, 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := c.again(); err == nil {
		t.Error("the socket lies in the directory of another daemon")
	}
	c.close()
	c.remove()
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Errorf("the other directory has %d files, %v", len(files), err)
	}
}

// TestSocketOfAnotherDaemon: a socket that another daemon makes at the last moment is not taken away.
func TestSocketOfAnotherDaemon(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	open := func() *os.File {
		t.Helper()
		f, err := openStateDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	theirs, err := bind(open())
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.dir.Close()
	defer theirs.listener.Close()
	if s, err := bind(open()); err == nil {
		s.listener.Close()
		s.dir.Close()
		t.Error("another one was made")
	}
	if now, err := os.Lstat(filepath.Join(dir, controlName)); err != nil || !os.SameFile(now, theirs.file) {
		t.Errorf("the socket is not theirs any more: %v", err)
	}
}

// TestCloseWaitsForNoDisk: who looks for the socket on a disk that hangs does not keep the mount.
func TestCloseWaitsForNoDisk(t *testing.T) {
	t.Parallel()
	c, err := listen(t.TempDir(), nil, nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	c.place.Lock() // as again has it as long as the disk does not answer
	closed := make(chan struct{})
	go func() { c.close(); close(closed) }()
	select {
	case <-closed:
	case <-time.After(30 * time.Second):
		t.Error("close waits for the disk")
	}
	c.place.Unlock()
	<-closed
	c.remove()
}
