package tpm

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/parsecfs/parsecfs/providers"
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
			return wrong("the path of the device is not absolute")
		}
		t.path = rest
		return t, nil
	case "swtpm", "mssim":
		t.host, t.port = "localhost", "2321"
	case "tabrmd":
		return wrong("tabrmd, the resource manager on D-Bus, is not supported; use the kernel's resource manager: device:/dev/tpmrm0")
	default:
		return wrong(fmt.Sprintf("unknown TCTI %q", kind))
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
			return wrong(fmt.Sprintf("wrong parameter %q of %s", pair, kind))
		}
	}
	if n, err := net.LookupPort("tcp", t.port); err != nil || n < 1 || n > 65534 {
		return wrong(fmt.Sprintf("wrong port %q", t.port))
	}
	return t, nil
}

// managed says whether the kernel shares this TPM among programs. Otherwise we use it alone while we are connected.
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
func (t tcti) dial(ctx context.Context) (conn, error) {
	c, err := t.open(ctx)
	if err != nil {
		e := psa.Errorf(psa.StatusProviderAbsent, "cannot connect to the TPM: %w", err)
		e.Hint = psa.HintOf(err)
		return nil, e
	}
	return c, nil
}

func (t tcti) open(ctx context.Context) (conn, error) {
	if t.kind == "device" {
		return openDevice(t.device())
	}
	if t.path != "" {
		// Whoever listens there sees everything that a TPM would see, and answers for it.
		if err := providers.CheckTrusted(t.path); err != nil {
			return nil, err
		}
		return dialSocket(ctx, "unix", t.path)
	}
	port, err := net.LookupPort("tcp", t.port)
	if err != nil {
		return nil, err
	}
	if t.kind == "mssim" {
		return dialSimulator(ctx, t.host, port)
	}
	return dialSocket(ctx, "tcp", net.JoinHostPort(t.host, t.port))
}
