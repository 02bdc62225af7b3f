package tpmtest

import (
	"bytes"
	"crypto"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/google/go-tpm/tpm2"
)

// Relay stands between a program and a TPM: it sees each command, and answers what it likes.
type Relay struct {
	Key *ecdh.PrivateKey // its own, on P-256

	chip   *Chip
	path   string
	listen net.Listener

	mu     sync.Mutex
	change func(Exchange) Answer
	wire   bytes.Buffer // all that went by since Watch
	sent   []Exchange
	conns  map[net.Conn]bool
	served sync.WaitGroup
}

// Exchange is a command and the TPM's response.
type Exchange struct {
	Code              tpm2.TPMCC
	Command, Response []byte
}

// Answer is what the program gets.
type Answer struct {
	Response []byte
	Silent   bool // nothing follows it: the rest of it neither, nor anything on this connection
}

// NewRelay starts a relay on a socket of its own; the test's end stops it.
func NewRelay(t *testing.T, chip *Chip) *Relay {
	t.Helper()
	key, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "relay")
	if err != nil {
		t.Fatal(err)
	}
	r := &Relay{Key: key, chip: chip, path: filepath.Join(dir, "data"), conns: map[net.Conn]bool{}}
	if r.listen, err = net.Listen("unix", r.path); err != nil {
		t.Fatal(err)
	}
	r.served.Go(r.accept)
	t.Cleanup(func() {
		_ = r.listen.Close()
		r.Drop()
		r.served.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// TCTI is what a configuration says of it.
func (r *Relay) TCTI() string { return "swtpm:path=" + r.path }

// Watch forgets what went by, and has change say what is answered from now on; nil: what the TPM says.
func (r *Relay) Watch(change func(Exchange) Answer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change = change
	r.wire.Reset()
	r.sent = nil
}

// Rest ends change; what went by stays known.
func (r *Relay) Rest() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.change = nil
}

// Sent are the commands that came since Watch, with the TPM's own responses.
func (r *Relay) Sent() []Exchange {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Exchange(nil), r.sent...)
}

// Saw says whether a secret went by in the clear, or in an import that the relay's own key opens.
func (r *Relay) Saw(secret []byte) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if bytes.Contains(r.wire.Bytes(), secret) {
		return true
	}
	for _, x := range r.sent {
		if x.Code == tpm2.TPMCCImport && bytes.Contains(r.opened(x.Command), secret) {
			return true
		}
	}
	return false
}

// Drop ends all connections.
func (r *Relay) Drop() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		_ = c.Close()
	}
}

func (r *Relay) accept() {
	for {
		c, err := r.listen.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.conns[c] = true
		r.mu.Unlock()
		r.served.Go(func() {
			r.serve(c)
			_ = c.Close()
			r.mu.Lock()
			delete(r.conns, c)
			r.mu.Unlock()
		})
	}
}

func (r *Relay) serve(c net.Conn) {
	up, err := r.chip.Dial()
	if err != nil {
		return
	}
	defer up.Close()
	for {
		command, err := message(c)
		if err != nil {
			return
		}
		if _, err := up.Write(command); err != nil {
			return
		}
		response, err := message(up)
		if err != nil {
			return
		}
		a := r.answer(Exchange{tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])), command, response})
		if _, err := c.Write(a.Response); err != nil {
			return
		}
		if a.Silent {
			_, _ = io.Copy(io.Discard, c) // until the program goes
			return
		}
	}
}

func (r *Relay) answer(x Exchange) Answer {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.wire.Write(x.Command)
	r.wire.Write(x.Response)
	r.sent = append(r.sent, x)
	if r.change == nil {
		return Answer{Response: x.Response}
	}
	return r.change(x)
}

// message reads a command or a response.
func message(c net.Conn) ([]byte, error) {
	b := make([]byte, 10, 4096)
	if _, err := io.ReadFull(c, b); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(b[2:])
	if size < 10 || size > 64<<10 {
		return nil, errors.New("no message of a TPM")
	}
	b = append(b, make([]byte, size-10)...)
	_, err := io.ReadFull(c, b[10:])
	return b, err
}

// headed gives a response's parameters, and how to put others in their place.
func headed(x Exchange) (parameters []byte, with func([]byte) []byte, ok bool) {
	b := x.Response
	if len(b) < 10 || binary.BigEndian.Uint32(b[6:]) != 0 {
		return nil, nil, false
	}
	at := 10
	switch x.Code {
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCLoad, tpm2.TPMCCStartAuthSession, tpm2.TPMCCHMACStart:
		at += 4
	}
	rest := []byte{}
	sessions := binary.BigEndian.Uint16(b) == uint16(tpm2.TPMSTSessions)
	if sessions {
		if len(b) < at+4 {
			return nil, nil, false
		}
		n := int(binary.BigEndian.Uint32(b[at:]))
		if len(b) < at+4+n {
			return nil, nil, false
		}
		parameters, rest = b[at+4:at+4+n], b[at+4+n:]
	} else {
		parameters = b[at:]
	}
	return parameters, func(p []byte) []byte {
		out := bytes.Clone(b[:at])
		if sessions {
			out = binary.BigEndian.AppendUint32(out, uint32(len(p)))
		}
		out = append(append(out, p...), rest...)
		binary.BigEndian.PutUint32(out[2:], uint32(len(out)))
		return out
	}, true
}

// Swap puts the relay's own point into the public area of a response, or another name into one without, and corrects all
// lengths; with names the names that go with it, too. false: the response has neither.
func (r *Relay) Swap(x Exchange, names bool) ([]byte, bool) {
	p, with, ok := headed(x)
	if !ok {
		return nil, false
	}
	before := []byte{}
	switch x.Code {
	case tpm2.TPMCCCreate: // behind TPM2B_PRIVATE
		if len(p) < 2 || len(p) < 2+int(binary.BigEndian.Uint16(p)) {
			return nil, false
		}
		n := 2 + int(binary.BigEndian.Uint16(p))
		before, p = p[:n], p[n:]
	case tpm2.TPMCCCreatePrimary, tpm2.TPMCCReadPublic:
	case tpm2.TPMCCLoad:
		out := bytes.Clone(p)
		out[len(out)-1] ^= 1
		return with(out), true
	default:
		return nil, false
	}
	if len(p) < 2 || len(p) < 2+int(binary.BigEndian.Uint16(p)) {
		return nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(p))
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](p[2:n])
	if err != nil {
		return nil, false
	}
	old, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, false
	}
	switch area.Type {
	case tpm2.TPMAlgECC:
		b := r.Key.PublicKey().Bytes()
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{
			X: tpm2.TPM2BECCParameter{Buffer: b[1:33]}, Y: tpm2.TPM2BECCParameter{Buffer: b[33:]}})
	case tpm2.TPMAlgRSA:
		modulus, err := area.Unique.RSA()
		if err != nil {
			return nil, false
		}
		other := bytes.Clone(modulus.Buffer)
		other[len(other)/2] ^= 1
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: other})
	default:
		area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: make([]byte, 32)})
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil, false
	}
	rest := p[n:]
	if names {
		rest = bytes.ReplaceAll(rest, old.Buffer, name.Buffer)
	}
	out := append(bytes.Clone(before), tpm2.Marshal(tpm2.New2B(*area))...)
	return with(append(out, rest...)), true
}

// opened decrypts the object of a TPM2_Import that was encrypted for the relay's point (TCG TPM 2.0, part 1, 23.3.2.3).
func (r *Relay) opened(command []byte) []byte {
	at := 10 + 4
	if len(command) < at+4 {
		return nil
	}
	at += 4 + int(binary.BigEndian.Uint32(command[at:]))
	part := func() []byte {
		if at < 0 || len(command) < at+2 || len(command) < at+2+int(binary.BigEndian.Uint16(command[at:])) {
			at = len(command)
			return nil
		}
		b := command[at+2 : at+2+int(binary.BigEndian.Uint16(command[at:]))]
		at += 2 + len(b)
		return b
	}
	part() // the inner wrapper's key
	public, duplicate, seed := part(), part(), part()
	area, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
	if err != nil || len(duplicate) < 34 {
		return nil
	}
	name, err := tpm2.ObjectName(area)
	if err != nil {
		return nil
	}
	point, err := tpm2.Unmarshal[tpm2.TPMSECCPoint](seed)
	if err != nil {
		return nil
	}
	x := append(make([]byte, max(32-len(point.X.Buffer), 0)), point.X.Buffer...)
	y := append(make([]byte, max(32-len(point.Y.Buffer), 0)), point.Y.Buffer...)
	theirs, err := ecdh.P256().NewPublicKey(append(append([]byte{4}, x...), y...))
	if err != nil {
		return nil
	}
	z, err := r.Key.ECDH(theirs)
	if err != nil {
		return nil
	}
	secret := tpm2.KDFe(crypto.SHA256, z, "DUPLICATE", x, r.Key.PublicKey().Bytes()[1:33], 256)
	mac := hmac.New(crypto.SHA256.New, tpm2.KDFa(crypto.SHA256, secret, "INTEGRITY", nil, nil, 256))
	mac.Write(duplicate[34:])
	mac.Write(name.Buffer)
	if !hmac.Equal(mac.Sum(nil), duplicate[2:34]) {
		return nil
	}
	block, err := aes.NewCipher(tpm2.KDFa(crypto.SHA256, secret, "STORAGE", name.Buffer, nil, 128))
	if err != nil {
		return nil
	}
	out := bytes.Clone(duplicate[34:])
	//lint:ignore SA1019 TPMs encrypt so
	cipher.NewCFBDecrypter(block, make([]byte, 16)).XORKeyStream(out, out)
	return out
}
