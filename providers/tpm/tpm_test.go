package tpm

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	keyfile "github.com/foxboron/go-tpm-keyfiles"
	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

func TestParseTCTI(t *testing.T) {
	t.Parallel()
	for s, want := range map[string]tcti{
		"device": {kind: "device"}, "device:/dev/tpm0": {kind: "device", path: "/dev/tpm0"},
		"swtpm":                          {kind: "swtpm", host: "localhost", port: "2321"},
		"swtpm:path=/run/tpm.sock":       {kind: "swtpm", path: "/run/tpm.sock", host: "localhost", port: "2321"},
		"swtpm:host=127.0.0.1,port=2322": {kind: "swtpm", host: "127.0.0.1", port: "2322"},
		"mssim:port=4000":                {kind: "mssim", host: "localhost", port: "4000"},
	} {
		if got, err := parseTCTI(s); err != nil || got != want {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
	}
	for s, why := range map[string]string{
		"": "unknown TCTI", "tabrmd": "device:/dev/tpmrm0", "tabrmd:bus_type=session": "device:/dev/tpmrm0", "device:tpm0": "not absolute",
		"mssim:path=/a": "wrong parameter", "swtpm:path=a": "wrong parameter", "swtpm:port=0": "port", "swtpm:port=70000": "port",
		"swtpm:host":  "name=value",
		"swtpm:host=": "name=value", "libtpms": "unknown TCTI",
	} {
		if _, err := parseTCTI(s); err == nil || !strings.Contains(err.Error(), why) || !strings.Contains(err.Error(), "allowed: ") {
			t.Errorf("%s: %v; want %q", s, err, why)
		}
	}
}

func FuzzParseTCTI(f *testing.F) {
	for _, s := range []string{"device", "device:/dev/tpm0", "swtpm:path=/run/tpm.sock", "swtpm:host=::1,port=2322", "mssim:host=a,,", "tabrmd"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := parseTCTI(s)
		if err == nil && (got.kind == "" || got.kind != "device" && got.path == "" && (got.host == "" || got.port == "")) {
			t.Errorf("%q is %+v", s, got)
		}
	})
}

func FuzzOpen(f *testing.F) {
	good, err := (&stored{Parent: make([]byte, 34), Public: tpm2.Marshal(template(psa.Attributes{Type: psa.KeyTypeHMAC, Bits: 256, Algorithm: psa.HMAC(psa.SHA256)}, false, nil)),
		Private: []byte("wrapped"), Auth: bytes.Repeat([]byte{1}, authSize)}).marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good, "hmac-sha256")
	f.Add(good[:40], "ecdsa-p256-sha256")
	f.Add([]byte{}, "rsa-2048-pss-sha256")
	p := &provider{}
	f.Fuzz(func(t *testing.T, blob []byte, name string) {
		a, err := psa.ParseTemplate(name)
		if err != nil {
			return
		}
		k, err := p.Open(t.Context(), providers.Handle{}, a, providers.Blob{Secret: blob})
		if err != nil {
			if s := psa.StatusOf(err); s != psa.StatusDataCorrupt && s != psa.StatusNotSupported {
				t.Errorf("%v", err)
			}
			return
		}
		if a.Type.IsAsymmetric() {
			t.Error("a key without its public part")
		}
		_ = k.Close()
	})
}

func TestAuthHasNoZero(t *testing.T) {
	t.Parallel()
	for range 1000 {
		auth, err := newAuth()
		if err != nil || len(auth) != authSize || bytes.IndexByte(auth, 0) >= 0 {
			t.Fatalf("%x, %v", auth, err)
		}
	}
}

// raw connects to the TPM beside the provider, which must not be connected.
func raw(t *testing.T, chip *tpmtest.Chip) *link {
	t.Helper()
	where, err := parseTCTI(chip.TCTI())
	if err != nil {
		t.Fatal(err)
	}
	c, err := where.dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return &link{conn: c, ctx: t.Context()}
}

func newProvider(t *testing.T, chip *tpmtest.Chip) providers.Provider {
	t.Helper()
	p, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": chip.TCTI()}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newKey generates a key and opens it.
func newKey(t *testing.T, p providers.Provider, template string) (psa.Attributes, providers.Blob, providers.Key) {
	t.Helper()
	a, err := psa.ParseTemplate(template)
	if err != nil {
		t.Fatal(err)
	}
	blob, err := p.Create(t.Context(), providers.Handle{}, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := p.Open(t.Context(), providers.Handle{}, a, blob)
	if err != nil {
		t.Fatal(err)
	}
	return a, blob, k
}

// TestNullHierarchyForgets shows why keys are not there: after a reset its primary is another, and a child does not load
// (TCG TPM 2.0, part 1, 14.5).
func TestNullHierarchyForgets(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	primary := func(l *link, hierarchy tpm2.TPMHandle) *tpm2.CreatePrimaryResponse {
		t.Helper()
		rsp, err := tpm2.CreatePrimary{PrimaryHandle: hierarchy, InPublic: tpm2.New2B(srkTemplate())}.Execute(l)
		if err != nil {
			t.Fatal(err)
		}
		return rsp
	}
	child := func(l *link, p *tpm2.CreatePrimaryResponse) *tpm2.CreateResponse {
		t.Helper()
		a := psa.Attributes{Type: psa.ECCKeyPair(psa.SECPR1), Bits: 256, Algorithm: psa.ECDSA(psa.SHA256)}
		rsp, err := tpm2.Create{ParentHandle: tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name}, InPublic: tpm2.New2B(template(a, false, nil))}.Execute(l)
		if err != nil {
			t.Fatal(err)
		}
		return rsp
	}
	load := func(l *link, p *tpm2.CreatePrimaryResponse, c *tpm2.CreateResponse) error {
		_, err := tpm2.Load{ParentHandle: tpm2.NamedHandle{Handle: p.ObjectHandle, Name: p.Name}, InPrivate: c.OutPrivate, InPublic: c.OutPublic}.Execute(l)
		return err
	}
	l := raw(t, chip)
	null, owner := primary(l, tpm2.TPMRHNull), primary(l, tpm2.TPMRHOwner)
	nullChild, ownerChild := child(l, null), child(l, owner)
	_ = l.Close()
	chip.Kill()
	chip.Restart()
	l = raw(t, chip)
	defer l.Close()
	null2, owner2 := primary(l, tpm2.TPMRHNull), primary(l, tpm2.TPMRHOwner)
	if bytes.Equal(null.Name.Buffer, null2.Name.Buffer) {
		t.Error("the null hierarchy's primary outlives a reset")
	}
	if !bytes.Equal(owner.Name.Buffer, owner2.Name.Buffer) {
		t.Error("the owner hierarchy's primary does not outlive a reset")
	}
	if err := load(l, null2, nullChild); !isRC(err, tpm2.TPMRCIntegrity) {
		t.Errorf("a child of the null hierarchy: %v", err)
	}
	if err := load(l, owner2, ownerChild); err != nil {
		t.Errorf("a child of the owner hierarchy: %v", err)
	}
}

// TestCleared: after TPM2_Clear the TPM is another one, and the keys say so.
func TestCleared(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	p := newProvider(t, chip)
	a, blob, k := newKey(t, p, "ecdsa-p256-sha256")
	_ = k.Close()
	sign := func(p providers.Provider) error {
		k, err := p.Open(t.Context(), providers.Handle{}, a, blob)
		if err != nil {
			return err
		}
		r, err := k.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: a.Algorithm})
		if err != nil {
			return err
		}
		_, err = r.Finish(t.Context())
		return err
	}
	before, err := p.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := sign(p); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	l := raw(t, chip)
	if _, err := (tpm2.Clear{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHLockout, Auth: tpm2.PasswordAuth(nil)}}).Execute(l); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	p = newProvider(t, chip)
	defer p.Close()
	after, err := p.Identity(t.Context())
	if err != nil || after == before {
		t.Errorf("after TPM2_Clear the identity is %s, was %s, %v", after, before, err)
	}
	if err := sign(p); psa.StatusOf(err) != psa.StatusProviderAbsent {
		t.Errorf("a key of before: %v", err)
	}
}

// TestManyKeys uses more keys in turn than the TPM has slots, and forgets none.
func TestManyKeys(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t))
	defer p.Close()
	for i := range 8 {
		name := []string{"ecdsa-p256-sha256", "hmac-sha256"}[i%2]
		a, _, k := newKey(t, p, name)
		defer k.Close()
		defer func() {
			for range 2 {
				op := psa.Op{Operation: psa.Sign, Algorithm: a.Algorithm}
				if a.Type == psa.KeyTypeHMAC {
					op.Operation = psa.Mac
				}
				r, err := k.Begin(t.Context(), op)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.Write(make([]byte, 5000)); err != nil {
					t.Fatal(err)
				}
				if _, err := r.Finish(t.Context()); err != nil {
					t.Errorf("%s %d: %v", name, i, err)
				}
			}
		}()
	}
}

// TestWrongOwner: a wrong authorization is refused with a hint, and locks nothing.
func TestWrongOwner(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	l := raw(t, chip)
	if _, err := (tpm2.HierarchyChangeAuth{AuthHandle: tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
		NewAuth: tpm2.TPM2BAuth{Buffer: []byte("right")}}).Execute(l); err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
	for auth, works := range map[string]bool{"": false, "wrong": false, "right": true, "str:right": true, "hex:7269676874": true} {
		p, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": chip.TCTI(), "owner_hierarchy_auth": auth}})
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			_, err = p.Identity(t.Context())
		}
		if works != (err == nil) || err != nil && (psa.StatusOf(err) != psa.StatusNotPermitted || psa.HintOf(err) == "") {
			t.Errorf("%q: %v", auth, err)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

func FuzzParseKeyfile(f *testing.F) {
	a, err := psa.ParseTemplate("ecdsa-p256-sha256")
	if err != nil {
		f.Fatal(err)
	}
	area := template(a, false, nil)
	area.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	for _, empty := range []bool{true, false} {
		der, err := asn1.Marshal(tpmKey{keyfile.OIDLoadableKey, empty, int64(tpm2.TPMRHOwner), tpm2.Marshal(tpm2.New2B(area)), tpm2.Marshal(tpm2.TPM2BPrivate{Buffer: []byte("wrapped")})})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der)
	}
	f.Fuzz(func(t *testing.T, der []byte) {
		if _, err := parseKeyfile(a, der); err != nil {
			if s := psa.StatusOf(err); s != psa.StatusInvalidArgument && s != psa.StatusNotSupported {
				t.Errorf("%v", err)
			}
		}
	})
}

// TestWiped looks at the memory itself after Close, Finish and Abort.
func TestWiped(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t))
	defer p.Close()
	a, _, opened := newKey(t, p, "ecdsa-p256-sha256")
	wiped := func(b []byte) bool { return bytes.Equal(b, make([]byte, authSize)) }
	var runs []*finishing
	for range 2 {
		r, err := opened.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: a.Algorithm})
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, r.(*finishing))
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	if !wiped(opened.(*key).stored.Auth) {
		t.Error("Close left the authorization in memory")
	}
	if wiped(runs[0].u.key.Auth) {
		t.Error("Close wiped a run's authorization")
	}
	if _, err := runs[0].Finish(t.Context()); err != nil {
		t.Error(err)
	}
	runs[1].Abort()
	for i, r := range runs {
		if !wiped(r.u.key.Auth) {
			t.Errorf("run %d left the authorization in memory", i)
		}
	}
	if c := p.(*provider).chip; !wiped(c.auth) {
		t.Error("the session keeps the authorization")
	}
}

// TestPCRs: a key that is bound to PCRs works while they are as they were, and says why not when they are not.
func TestPCRs(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	const debug = 16 // the register that anybody may extend and reset
	change := func(reset bool) {
		t.Helper()
		l := raw(t, chip)
		defer l.Close()
		pcr := tpm2.AuthHandle{Handle: tpm2.TPMHandle(debug), Auth: tpm2.PasswordAuth(nil)}
		var err error
		if reset {
			_, err = tpm2.PCRReset{PCRHandle: pcr}.Execute(l)
		} else {
			_, err = tpm2.PCRExtend{PCRHandle: pcr, Digests: tpm2.TPMLDigestValues{Digests: []tpm2.TPMTHA{{HashAlg: tpm2.TPMAlgSHA256, Digest: make([]byte, 32)}}}}.Execute(l)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	type bound struct {
		a    psa.Attributes
		op   psa.Op
		blob providers.Blob
	}
	var keys []*bound
	p := newProvider(t, chip)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(rsaKey)
	if err != nil {
		t.Fatal(err)
	}
	for template, m := range map[string]*psa.Material{"ecdsa-p256-sha256": nil, "hmac-sha256": nil, "ecdh-p256": nil, "rsa-2048-pss-sha256": {Format: psa.FormatPKCS8, Data: pkcs8}} {
		a, err := psa.ParseTemplate(template)
		if err != nil {
			t.Fatal(err)
		}
		a.PCRs = 1<<debug | 1<<7
		k := &bound{a: a, op: psa.Op{Operation: psa.Sign, Algorithm: a.Algorithm}}
		switch template {
		case "hmac-sha256":
			k.op.Operation = psa.Mac
		case "ecdh-p256":
			k.op.Operation = psa.Agree
		}
		if k.blob, err = p.Create(t.Context(), providers.Handle{}, a, m); err != nil {
			t.Fatal(err)
		}
		if unbound := (psa.Attributes{Type: a.Type, Bits: a.Bits, Algorithm: a.Algorithm, Usage: a.Usage}); true {
			if _, err := p.Open(t.Context(), providers.Handle{}, unbound, k.blob); psa.StatusOf(err) != psa.StatusDataCorrupt {
				t.Errorf("%s without its PCRs: %v", template, err)
			}
		}
		keys = append(keys, k)
	}
	try := func(works bool) {
		t.Helper()
		for _, b := range keys {
			for _, size := range []int{32, 3000} {
				k, err := p.Open(t.Context(), providers.Handle{}, b.a, b.blob)
				if err != nil {
					t.Fatal(err)
				}
				r, err := k.Begin(t.Context(), b.op)
				if err != nil {
					t.Fatal(err)
				}
				input := make([]byte, size)
				if b.op.Operation == psa.Agree {
					input = k.Public()
				}
				if _, err := r.Write(input); err != nil {
					t.Fatal(err)
				}
				_, err = r.Finish(t.Context())
				if works != (err == nil) || err != nil && (psa.StatusOf(err) != psa.StatusNotPermitted || !strings.Contains(psa.HintOf(err), "platform")) {
					t.Errorf("%s, %d bytes: %v, hint %q", b.a.Algorithm, size, err, psa.HintOf(err))
				}
				_ = k.Close()
			}
		}
	}
	try(true)
	for _, reset := range []bool{false, true} {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
		change(reset)
		p = newProvider(t, chip)
		try(reset)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// simulator speaks the protocol of Microsoft's simulator (TpmTcpProtocol.h) for a TPM behind it, and gives its TCTI.
func simulator(t *testing.T, chip *tpmtest.Chip) string {
	t.Helper()
	serve := func(port int, answer func(net.Conn) error) net.Listener {
		l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
		if err != nil {
			return nil
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for answer(c) == nil {
					}
				}()
			}
		}()
		return l
	}
	tpm := raw(t, chip)
	t.Cleanup(func() { _ = tpm.Close() })
	command := func(c net.Conn) error {
		var head struct {
			Command  uint32
			Locality uint8
			Size     uint32
		}
		if err := binary.Read(c, binary.BigEndian, &head); err != nil || head.Command != 8 { // TPM_SEND_COMMAND
			return errors.New("the end")
		}
		b := make([]byte, head.Size)
		if _, err := io.ReadFull(c, b); err != nil {
			return err
		}
		rsp, err := tpm.Send(b)
		if err != nil {
			return err
		}
		out := binary.BigEndian.AppendUint32(nil, uint32(len(rsp)))
		_, err = c.Write(append(append(out, rsp...), 0, 0, 0, 0))
		return err
	}
	platform := func(c net.Conn) error {
		if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
			return err
		}
		_, err := c.Write(make([]byte, 4))
		return err
	}
	for range 100 { // two ports in a row
		l := serve(0, command)
		port := l.Addr().(*net.TCPAddr).Port
		if serve(port+1, platform) != nil {
			return fmt.Sprint("mssim:host=127.0.0.1,port=", port)
		}
	}
	t.Fatal("no two ports in a row")
	return ""
}

// TestTransports signs over each way to a TPM that there is without a chip.
func TestTransports(t *testing.T) {
	t.Parallel()
	for name, where := range map[string]string{"socket": tpmtest.Start(t).TCTI(), "TCP": tpmtest.StartTCP(t).TCTI(), "simulator": simulator(t, tpmtest.Start(t))} {
		p, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": where}})
		if err != nil {
			t.Fatal(err)
		}
		a, _, k := newKey(t, p, "ecdsa-p256-sha256")
		r, err := k.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: a.Algorithm})
		if err != nil {
			t.Fatal(err)
		}
		if result, err := r.Finish(t.Context()); err != nil || len(result.Outputs["signature"]) != 64 {
			t.Errorf("%s: %x, %v", name, result.Outputs["signature"], err)
		}
		if err := errors.Join(k.Close(), p.Close()); err != nil {
			t.Error(err)
		}
	}
	p, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": "device:" + t.TempDir() + "/tpm0"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Identity(t.Context()); psa.StatusOf(err) != psa.StatusProviderAbsent {
		t.Errorf("no device: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// TestSmallTPM uses keys in a TPM with fewer slots than the specification asks for.
func TestSmallTPM(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t))
	defer p.Close()
	if _, err := p.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	p.(*provider).chip.room = 1
	for range 2 {
		for _, size := range []int{10, 5000} {
			a, _, k := newKey(t, p, "hmac-sha256")
			r, err := k.Begin(t.Context(), psa.Op{Operation: psa.Mac, Algorithm: a.Algorithm})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := r.Write(make([]byte, size)); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Finish(t.Context()); err != nil {
				t.Errorf("%d bytes: %v", size, err)
			}
			_ = k.Close()
		}
	}
}

// garbled changes the session's nonce in the next response; behind it are its attributes and an HMAC of 32 bytes.
type garbled struct {
	conn
	once bool
}

func (g *garbled) exchange(ctx context.Context, command []byte, most time.Duration) ([]byte, error) {
	b, err := g.conn.exchange(ctx, command, most)
	if err == nil && !g.once {
		g.once = true
		b[len(b)-40] ^= 1
	}
	return b, err
}

// TestGarbled: a response that was tampered with is no signature, and the next one is.
func TestGarbled(t *testing.T) {
	t.Parallel()
	p := newProvider(t, tpmtest.Start(t))
	defer p.Close()
	a, _, k := newKey(t, p, "ecdsa-p256-sha256")
	defer k.Close()
	sign := func() error {
		r, err := k.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: a.Algorithm})
		if err != nil {
			t.Fatal(err)
		}
		_, err = r.Finish(t.Context())
		return err
	}
	if err := sign(); err != nil {
		t.Fatal(err)
	}
	c := p.(*provider).chip
	c.link.conn = &garbled{conn: c.link.conn}
	if err := sign(); psa.StatusOf(err) != psa.StatusCommunicationFailure {
		t.Errorf("a garbled response: %v", err)
	}
	for range 2 {
		if err := sign(); err != nil {
			t.Error(err)
		}
	}
}
