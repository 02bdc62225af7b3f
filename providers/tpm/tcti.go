package tpm

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/tcp"

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
	d := net.Dialer{Timeout: dialTimeout}
	address := net.JoinHostPort(t.host, t.port)
	switch {
	case t.kind == "device":
		f, err := os.OpenFile(t.device(), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		return &device{f}, nil
	case t.kind == "mssim":
		port, err := net.LookupPort("tcp", t.port)
		if err != nil {
			return nil, err
		}
		c, err := tcp.Open(tcp.Config{CommandAddress: address, PlatformAddress: net.JoinHostPort(t.host, fmt.Sprint(port+1))})
		if err != nil {
			return nil, err
		}
		return c, c.PowerOn()
	case t.path != "":
		c, err := d.DialContext(ctx, "unix", t.path)
		return &stream{c}, err
	}
	c, err := d.DialContext(ctx, "tcp", address)
	return &stream{c}, err
}

// device is the kernel's: one write is a command, one read its response.
type device struct{ f *os.File }

func (d *device) Send(command []byte) ([]byte, error) {
	if _, err := d.f.Write(command); err != nil {
		return nil, err
	}
	b := make([]byte, responseMost)
	n, err := d.f.Read(b)
	return b[:n], err
}

func (d *device) Close() error { return d.f.Close() }

// stream is swtpm's data channel: commands and responses one after the other, with their own lengths.
type stream struct{ c net.Conn }

// headerSize is of a command's or a response's tag, size and code (TCG TPM 2.0, part 1, 18.3).
const headerSize = 10

func (s *stream) Send(command []byte) ([]byte, error) {
	if err := s.c.SetDeadline(time.Now().Add(commandTimeout)); err != nil {
		return nil, err
	}
	if _, err := s.c.Write(command); err != nil {
		return nil, err
	}
	b := make([]byte, headerSize, 4096)
	if _, err := io.ReadFull(s.c, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < headerSize || size > responseMost {
		return nil, fmt.Errorf("a response of %d bytes", size)
	}
	b = append(b, make([]byte, size-headerSize)...)
	_, err := io.ReadFull(s.c, b[headerSize:])
	return b, err
}

func (s *stream) Close() error { return s.c.Close() }
