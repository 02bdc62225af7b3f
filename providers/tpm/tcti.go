package tpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/tcp"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// tcti is where a TPM is, in the words of tpm2-tss (tss2-tctildr(7)): device[:PATH], swtpm:path=SOCKET,
// swtpm:host=NAME,port=N, mssim:host=NAME,port=N.
type tcti struct {
	kind string // device, swtpm, mssim
	path string // of a device or a socket; "" is the usual device, or TCP
	host string
	port string
}

const (
	dialTimeout = 2 * time.Second
	// commandTimeout is what the longest command takes on a slow chip: an RSA key.
	commandTimeout = 5 * time.Minute
	responseMost   = 64 << 10
)

const tctiForms = "device, device:PATH, swtpm:path=SOCKET, swtpm:host=NAME,port=N, mssim:host=NAME,port=N"

// parseTCTI reads the configuration's tcti.
func parseTCTI(s string) (tcti, error) {
	kind, rest, _ := strings.Cut(s, ":")
	t := tcti{kind: kind}
	wrong := func(what string) (tcti, error) {
		return tcti{}, fmt.Errorf("%s; allowed: %s", what, tctiForms)
	}
	switch kind {
	case "device":
		if rest != "" && !strings.HasPrefix(rest, "/") {
			return wrong("the device's path is not absolute")
		}
		t.path = rest
		return t, nil
	case "swtpm", "mssim":
		t.host, t.port = "localhost", "2321"
	case "tabrmd":
		return wrong("tabrmd: the resource manager on D-Bus is not spoken here, the kernel's is: device:/dev/tpmrm0")
	default:
		return wrong(fmt.Sprintf("no TCTI %q", kind))
	}
	for _, pair := range strings.Split(rest, ",") {
		name, value, ok := strings.Cut(pair, "=")
		switch {
		case pair == "" && rest == "":
		case !ok || value == "":
			return wrong(fmt.Sprintf("%q is not name=value", pair))
		case name == "host":
			t.host = value
		case name == "port":
			t.port = value
		case name == "path" && kind == "swtpm" && strings.HasPrefix(value, "/"):
			t.path = value
		default:
			return wrong(fmt.Sprintf("%q is not known of %s", pair, kind))
		}
	}
	if n, err := net.LookupPort("tcp", t.port); err != nil || n < 1 || n > 65534 {
		return wrong(fmt.Sprintf("port %q", t.port))
	}
	return t, nil
}

// managed says whether the kernel shares this TPM among programs; else it is ours alone while we are connected.
func (t tcti) managed() bool {
	return t.kind == "device" && strings.HasPrefix(t.device(), "/dev/tpmrm")
}

// device is the device's path.
func (t tcti) device() string {
	if t.path != "" {
		return t.path
	}
	const managed, bare = "/dev/tpmrm0", "/dev/tpm0"
	if _, err := os.Stat(managed); err == nil {
		return managed
	}
	return bare
}

// dial connects; a TPM that is not there is StatusProviderAbsent.
func (t tcti) dial(ctx context.Context) (transport.TPMCloser, error) {
	c, err := t.open(ctx)
	if err != nil {
		return nil, psa.Errorf(psa.StatusProviderAbsent, "no connection to the TPM: %w", err)
	}
	return c, nil
}

func (t tcti) open(ctx context.Context) (transport.TPMCloser, error) {
	switch {
	case t.kind == "device":
		fd, err := unix.Open(t.device(), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: t.device(), Err: err}
		}
		return newWire(fd, t.device()), nil
	case t.kind == "mssim":
		port, err := net.LookupPort("tcp", t.port)
		if err != nil {
			return nil, err
		}
		c, err := tcp.Open(tcp.Config{CommandAddress: net.JoinHostPort(t.host, t.port), PlatformAddress: net.JoinHostPort(t.host, fmt.Sprint(port+1))})
		if err != nil {
			return nil, err
		}
		return c, c.PowerOn()
	case t.path != "":
		return dialSocket(ctx, "unix", t.path)
	}
	return dialSocket(ctx, "tcp", net.JoinHostPort(t.host, t.port))
}

// wire is a descriptor to which one write is a command and from which its response is read: the kernel's device, or
// swtpm's data channel. It blocks: the Go runtime's poller would set a timer and wake a thread for each command, and a
// device of the kernel that does not block answers a read too early with nothing.
type wire struct {
	f   *os.File
	buf []byte
}

func newWire(fd int, name string) *wire {
	return &wire{os.NewFile(uintptr(fd), name), make([]byte, responseMost)}
}

func dialSocket(ctx context.Context, network, address string) (*wire, error) {
	d := net.Dialer{Timeout: dialTimeout}
	c, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if e := raw.Control(func(p uintptr) { fd, err = blocking(int(p)) }); err == nil {
		err = e
	}
	if err != nil {
		return nil, err
	}
	return newWire(fd, address), nil
}

// blocking gives a socket's descriptor that blocks, for commandTimeout at most.
func blocking(socket int) (int, error) {
	fd, err := unix.FcntlInt(uintptr(socket), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	most := unix.NsecToTimeval(commandTimeout.Nanoseconds())
	err = errors.Join(unix.SetNonblock(fd, false),
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &most), unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &most))
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// headerSize is of a command's or a response's tag, size and code (TCG TPM 2.0, part 1, 18.3).
const headerSize = 10

func (w *wire) Send(command []byte) ([]byte, error) {
	if _, err := w.f.Write(command); err != nil {
		return nil, err
	}
	n := 0
	for size := headerSize; n < size; {
		more, err := w.f.Read(w.buf[n:])
		if err != nil {
			return nil, err
		}
		if n += more; n >= headerSize {
			size = int(binary.BigEndian.Uint32(w.buf[2:]))
			if size < headerSize || size > len(w.buf) || n > size {
				return nil, fmt.Errorf("a response of %d bytes that says %d", n, size)
			}
		}
	}
	b := bytes.Clone(w.buf[:n])
	psa.Wipe(w.buf[:n])
	return b, nil
}

func (w *wire) Close() error { return w.f.Close() }
