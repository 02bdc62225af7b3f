package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Parsec's wire protocol, as far as a signature takes it: a header of 36 bytes (little-endian), a body in protobuf, and what
// authenticates the client, here its uid.
const (
	parsecMagic      = 0x5ec0a710
	parsecHeader     = 36
	parsecMbedCrypto = 1 // provider
	parsecUnixUID    = 3 // authenticator
	parsecGenerate   = 2
	parsecSignHash   = 4
)

const (
	serverParsec     = "Parsec 1.4.1 as shipped (polls each 10 ms)"
	serverParsecZero = "Parsec 1.4.1, poll set to 0"
)

// parsecClients are how many ask at once for its rate.
const parsecClients = 32

// field is a protobuf field of bytes, a string or a message.
func field(number byte, value []byte) []byte {
	return append(binary.AppendUvarint([]byte{number<<3 | 2}, uint64(len(value))), value...)
}

// varint is a protobuf field of a number, an enumeration or a bool.
func varint(number byte, value uint64) []byte {
	return binary.AppendUvarint([]byte{number << 3}, value)
}

// ecdsaSHA256 is an AsymmetricSignature: Ecdsa with the specific SignHash SHA_256.
func ecdsaSHA256() []byte { return field(4, field(1, varint(2, 7))) }

// generateP256 is the body of PsaGenerateKey: a key pair on SECP_R1 of 256 bits that signs and verifies hashes.
func generateP256(name string) []byte {
	keyType := field(11, varint(1, 2))
	usage := append(varint(8, 1), varint(9, 1)...)
	policy := append(field(1, usage), field(2, field(6, ecdsaSHA256()))...)
	attributes := bytes.Join([][]byte{field(1, keyType), varint(2, 256), field(3, policy)}, nil)
	return append(field(1, []byte(name)), field(2, attributes)...)
}

// signHash is the body of PsaSignHash.
func signHash(name string, hash []byte) []byte {
	return bytes.Join([][]byte{field(1, []byte(name)), field(2, ecdsaSHA256()), field(3, hash)}, nil)
}

// parsecRequest is a whole request.
func parsecRequest(opcode uint32, body []byte, uid uint32) []byte {
	b := binary.LittleEndian.AppendUint32(nil, parsecMagic)
	b = binary.LittleEndian.AppendUint16(b, 30) // bytes of the header that follow
	b = append(b, 1, 0)                         // version
	b = binary.LittleEndian.AppendUint16(b, 0)  // flags
	b = append(b, parsecMbedCrypto)
	b = binary.LittleEndian.AppendUint64(b, 0) // session
	b = append(b, 0, 0, parsecUnixUID)         // protobuf both ways
	b = binary.LittleEndian.AppendUint32(b, uint32(len(body)))
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = binary.LittleEndian.AppendUint32(b, opcode)
	b = binary.LittleEndian.AppendUint32(b, 0) // status and reserved
	b = append(b, body...)
	return binary.LittleEndian.AppendUint32(b, uid)
}

// parsecCall asks over a connection of its own, which Parsec wants for each request, and returns the answer's body.
func parsecCall(socket string, request []byte) ([]byte, error) {
	fd, err := connect(socket)
	if err != nil {
		return nil, err
	}
	defer syscall.Close(fd)
	for rest := request; len(rest) > 0; {
		n, err := syscall.Write(fd, rest)
		if err != nil {
			return nil, err
		}
		rest = rest[n:]
	}
	var answer []byte
	b := make([]byte, 4096)
	for {
		n, err := syscall.Read(fd, b)
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, io.ErrUnexpectedEOF
		}
		answer = append(answer, b[:n]...)
		if len(answer) < parsecHeader {
			continue
		}
		if status := binary.LittleEndian.Uint16(answer[32:]); status != 0 {
			return nil, fmt.Errorf("status %d from Parsec", status)
		}
		if body := answer[parsecHeader:]; len(body) >= int(binary.LittleEndian.Uint32(answer[22:])) {
			return body, nil
		}
	}
}

// theirs is a Parsec of this run.
type theirs struct {
	name   string
	cmd    *exec.Cmd
	socket string
	asking atomic.Int64 // workers
}

// startParsec starts it as Debian's package and unit do, as the user parsec, with its configuration or a changed one; its
// folders are of this run.
func (b *bench) startParsec(name, folder string, change func(string) string) (*theirs, error) {
	run := filepath.Join(b.work, folder)
	if err := os.Mkdir(run, 0o755); err != nil {
		return nil, err
	}
	shipped, err := os.ReadFile(filepath.Join(b.chroot, "etc/parsec/config.toml"))
	if err != nil {
		return nil, err
	}
	config := change(string(shipped))
	if err := os.WriteFile(run+".toml", []byte(config), 0o644); err != nil {
		return nil, err
	}
	// In a mount namespace of its own: both instances use the same paths.
	script := `set -e
mount -t tmpfs -o mode=755 tmpfs "$ROOT/var/lib/parsec"
mount -t tmpfs -o mode=755 tmpfs "$ROOT/run"
mount -t proc proc "$ROOT/proc"
mount --bind /dev "$ROOT/dev"
mkdir "$ROOT/run/parsec" "$ROOT/run/config"
mount --bind "$RUN" "$ROOT/run/parsec"
cp "$RUN.toml" "$ROOT/run/config/config.toml"
chroot "$ROOT" chown parsec:parsec /var/lib/parsec /run/parsec
exec chroot --userspec=parsec:parsec "$ROOT" /bin/sh -c 'cd /var/lib/parsec && exec /usr/bin/parsec -c /run/config/config.toml'`
	p := &theirs{name: name, socket: filepath.Join(run, "parsec.sock")}
	p.cmd = exec.Command("unshare", "--mount", "sh", "-c", script)
	p.cmd.Env = append(os.Environ(), "ROOT="+b.chroot, "RUN="+run)
	var said strings.Builder
	p.cmd.Stdout, p.cmd.Stderr = &said, &said
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- p.cmd.Wait() }()
	for range 200 {
		if conn, err := net.Dial("unix", p.socket); err == nil {
			conn.Close()
			return p, nil
		}
		select {
		case err := <-ended:
			return nil, fmt.Errorf("%s ended: %w: %s", name, err, said.String())
		case <-time.After(50 * time.Millisecond):
		}
	}
	_ = p.cmd.Process.Kill()
	return nil, fmt.Errorf("%s has made no socket", name)
}

// poll is the line of Parsec's configuration that says how long it sleeps before it looks for the next connection.
const poll = "#idle_listener_sleep_duration = 10"

// alone lets a Parsec run for one measurement, and stops it again: without its sleep it keeps a processor busy.
func (p *theirs) alone(prepare work) work {
	return func() (func() error, func(), error) {
		if err := p.cmd.Process.Signal(syscall.SIGCONT); err != nil {
			return nil, nil, err
		}
		p.asking.Add(1)
		do, end, err := prepare()
		return do, func() {
			end()
			if p.asking.Add(-1) == 0 {
				_ = p.cmd.Process.Signal(syscall.SIGSTOP)
			}
		}, err
	}
}

// parsec measures the signature of a hash, each over a connection, or an open file, of its own.
func (b *bench) parsec() error {
	if b.chroot == "" {
		b.results.skip(partParsec, errors.New("there is no Debian trixie with Parsec, see above"))
		return nil
	}
	shipped, err := b.startParsec(serverParsec, "parsec", func(c string) string { return c })
	if err != nil {
		return err
	}
	without, err := b.startParsec(serverParsecZero, "parsec-0", func(c string) string {
		return strings.Replace(c, poll, "idle_listener_sleep_duration = 0", 1)
	})
	if err != nil {
		return err
	}
	sum := sha256.Sum256(message)
	uid := uint32(os.Getuid())
	var ways []way
	for _, p := range []*theirs{shipped, without} {
		if _, err := parsecCall(p.socket, parsecRequest(parsecGenerate, generateP256("bench"), uid)); err != nil {
			return fmt.Errorf("%s: generate: %w", p.name, err)
		}
		request := parsecRequest(parsecSignHash, signHash("bench", sum[:]), uid)
		ways = append(ways, way{name: wayConnect, server: p.name, by: p.alone(func() (func() error, func(), error) {
			return func() error {
				body, err := parsecCall(p.socket, request)
				if err == nil && len(body) != 2+64 {
					err = errors.New("no signature")
				}
				return err
			}, func() {}, nil
		})})
		if err := p.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
			return err
		}
		defer p.cmd.Process.Kill()
	}
	err = b.onEach("parsec", func(server string, t *target) {
		t = &target{t.path + "_hash", sum[:], t.least}
		ways = append(ways, way{name: wayFresh, server: server, by: t.fresh}, way{name: wayKept, server: server, by: t.kept})
	})
	if err != nil {
		return err
	}
	var cells []*cell
	for _, workers := range []int{1, parsecClients} {
		for _, w := range ways {
			cells = append(cells, newCell(partParsec, w.server, w.name, workers, w.by))
		}
	}
	return b.inTurns(mainRounds, 2*mainSpan, cells)
}
