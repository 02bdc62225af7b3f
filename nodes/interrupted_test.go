package nodes_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// slowDevice is the software provider as a slow device: a call that makes or destroys a key, or asks who the device is, waits
// while it is held.
type slowDevice struct {
	providers.Provider
	mu      sync.Mutex
	open    chan struct{} // closed: nothing waits
	waiting chan struct{} // a call has begun to wait
}

// mountSlow mounts over a slow device that is not held yet.
func mountSlow(t *testing.T, change func(*nodes.Options)) (*mounted, *slowDevice) {
	d := &slowDevice{open: make(chan struct{}), waiting: make(chan struct{}, 100)}
	close(d.open)
	m := mountWith(t, change, func(p providers.Provider) providers.Provider {
		d.Provider = p
		return d
	})
	return m, d
}

// hold holds the device until release, which the end of the test calls too.
func (d *slowDevice) hold(t *testing.T) (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	open := make(chan struct{})
	d.open = open
	release = sync.OnceFunc(func() { close(open) })
	t.Cleanup(release)
	return release
}

func (d *slowDevice) wait() {
	d.mu.Lock()
	open := d.open
	d.mu.Unlock()
	select {
	case <-open:
		return
	default:
	}
	select {
	case d.waiting <- struct{}{}:
	default:
	}
	<-open
}

func (d *slowDevice) Identity(ctx context.Context) (string, error) {
	d.wait()
	return d.Provider.Identity(ctx)
}

func (d *slowDevice) Create(ctx context.Context, h providers.Handle, a psa.Attributes, m *psa.Material) (providers.Blob, error) {
	d.wait()
	return d.Provider.Create(ctx, h, a, m)
}

func (d *slowDevice) Destroy(ctx context.Context, h providers.Handle) error {
	d.wait()
	return d.Provider.Destroy(ctx, h)
}

// withTimer runs a statement of Python, which sees path, in a process that a timer interrupts each 10 ms. It ends with the
// statement's errno.
func withTimer(t *testing.T, path, statement string) *exec.Cmd {
	t.Helper()
	c := exec.Command("python3", "-c", `import os, signal, sys
path = sys.argv[1]
def prepare(): pass
`+statement+`
prepare()
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, .01, .01)
try:
	call()
except OSError as e:
	os._exit(e.errno)
os._exit(0)
`, path)
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() && said.Len() > 0 {
			t.Logf("python said: %s", &said)
		}
	})
	return c
}

const (
	closesGenerate = `
def prepare():
	global fd
	fd = os.open(path, os.O_WRONLY)
	os.write(fd, b'template = "ecdsa-p256-sha256"\n')
def call(): os.close(fd)
`
	removesKey = `
def call(): os.rmdir(path)
`
)

// mountBefore mounts what a call needs: a draft for one on its file, a key for one on its directory.
func mountBefore(t *testing.T, file string) (*mounted, *slowDevice) {
	t.Helper()
	m, device := mountSlow(t, nil)
	if file == "" {
		m.key("k", "ecdsa-p256-sha256")
	} else if err := os.Mkdir(m.path("k"), 0777); err != nil {
		t.Fatal(err)
	}
	return m, device
}

// longerThanPatience is how long a slow call takes here: longer than a READ that was interrupted waits.
const longerThanPatience = 1500 * time.Millisecond

// TestCallsThatCannotBeRepeated: an interrupted close(2) or rmdir(2) ends as the same without a signal. The descriptor of the
// first is gone whatever it answers, and the second one meets what the first one began.
func TestCallsThatCannotBeRepeated(t *testing.T) {
	for _, c := range []struct{ name, file, statement string }{{"close", "generate", closesGenerate}, {"rmdir", "", removesKey}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, device := mountBefore(t, c.file)
			release := device.hold(t)
			client := withTimer(t, m.path("k", c.file), c.statement)
			ended := make(chan error, 1)
			go func() { ended <- client.Wait() }()
			select {
			case <-device.waiting:
			case err := <-ended:
				t.Fatalf("%s ended before the device had been asked: %v", c.name, err)
			}
			select {
			case err := <-ended:
				t.Fatalf("%s ended while the device was busy: %v", c.name, err)
			case <-time.After(longerThanPatience):
			}
			release()
			if err := <-ended; err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			if c.file != "" {
				m.public("k")
			} else if _, err := os.Stat(m.path("k")); !os.IsNotExist(err) {
				t.Errorf("the key is still there: %v", err)
			}
		})
	}
}

// TestKilledWhileWaitingOut: a client that is killed after it was interrupted in such a call ends, whatever the device does.
func TestKilledWhileWaitingOut(t *testing.T) {
	for _, c := range []struct{ name, file, statement string }{{"close", "generate", closesGenerate}, {"rmdir", "", removesKey}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			m, device := mountBefore(t, c.file)
			device.hold(t)
			client := withTimer(t, m.path("k", c.file), c.statement)
			<-device.waiting
			waitUninterruptible(t, client.Process.Pid)
			if err := client.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				_, _ = client.Process.Wait()
				close(ended)
			}()
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Error("a killed client waits for the device")
			}
		})
	}
}

// waitUninterruptible waits until a process waits for us so that no signal wakes it: it was interrupted before.
func waitUninterruptible(t *testing.T, pid int) {
	t.Helper()
	for {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		_, state, _ := strings.Cut(string(b), ") ")
		switch state[0] {
		case 'D':
			return
		case 'Z':
			t.Fatal("the client ended")
		}
		syscall.Syscall(syscall.SYS_SCHED_YIELD, 0, 0, 0)
	}
}
