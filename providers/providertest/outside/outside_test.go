package outside_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/providertest/outside"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// serveVariable makes of the test program a server that can be killed: folder and socket, parted by a newline.
const serveVariable = "OUTSIDE_TEST_SERVE"

func TestMain(m *testing.M) {
	if dir, socket, ok := strings.Cut(os.Getenv(serveVariable), "\n"); ok {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin) // ends with the test, however that ends
			os.Exit(1)
		}()
		err := outside.Serve(context.Background(), dir, socket, func() { fmt.Println("ready") })
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// place is where a server is, or will be.
type place struct{ dir, socket string }

func newPlace(t *testing.T) place {
	t.Helper()
	// Not t.TempDir, whose paths may be too long for a socket.
	base, err := os.MkdirTemp("", "outside")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	return place{filepath.Join(base, "objects"), filepath.Join(base, "socket")}
}

// serve starts a server in this process; stop ends it, as the test's end does.
func (at place) serve(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	served, ready := make(chan error, 1), make(chan struct{})
	go func() { served <- outside.Serve(ctx, at.dir, at.socket, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-served:
		cancel()
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-served; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Lstat(at.socket); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("the socket is left: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// serveApart starts a server in a process of its own; kill ends that as SIGKILL does.
func (at place) serveApart(t *testing.T) (kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), serveVariable+"="+at.dir+"\n"+at.socket)
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // "signal: killed"
	})
	t.Cleanup(kill)
	ready := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(out, ready); err != nil || string(ready) != "ready\n" {
		t.Fatalf("the server says %q, %v", ready, err)
	}
	return kill
}

func (at place) open(t *testing.T) providers.Provider {
	t.Helper()
	p, err := outside.Type.New(t.Context(), providers.Config{Name: "outside", Settings: map[string]any{"socket": at.socket}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (at place) fault(t *testing.T, lines string) {
	t.Helper()
	if err := outside.SetFault(at.dir, lines); err != nil {
		t.Fatal(err)
	}
}

// holds checks which objects there are.
func (at place) holds(t *testing.T, want ...providers.Handle) {
	t.Helper()
	got, err := outside.Objects(at.dir)
	if err != nil {
		t.Fatal(err)
	}
	names := make([]string, len(want))
	for i, h := range want {
		names[i] = hex.EncodeToString(h[:])
	}
	slices.Sort(names)
	if !slices.Equal(got, names) {
		t.Errorf("objects %v; want %v", got, names)
	}
}

func TestConformance(t *testing.T) {
	at := newPlace(t)
	at.serve(t)
	providertest.Run(t, at.open, providertest.Options{
		Foreign: func(t *testing.T) string {
			a, err := psa.DefaultTemplate(psa.ECCKeyPair(psa.SECPR1), 256)
			if err != nil {
				t.Fatal(err)
			}
			reference, err := outside.AddForeign(t.Context(), at.dir, "theirs", a)
			if err != nil {
				t.Fatal(err)
			}
			return reference
		},
		Count: func(t *testing.T) int {
			entries, err := os.ReadDir(at.dir)
			if err != nil {
				t.Fatal(err)
			}
			return len(entries)
		},
	})
	at.holds(t)
}

func handle() (h providers.Handle) {
	_, _ = rand.Read(h[:]) // never fails
	return h
}

func attributes(t *testing.T) psa.Attributes {
	t.Helper()
	a, err := psa.ParseTemplate("ed25519")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func create(t *testing.T, p providers.Provider) (providers.Handle, providers.Key) {
	t.Helper()
	h, a := handle(), attributes(t)
	b, err := p.Create(t.Context(), h, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(b.Secret) != 0 {
		t.Error("the blob has a secret")
	}
	k, err := p.Open(t.Context(), h, a, b)
	if err != nil {
		t.Fatal(err)
	}
	return h, k
}

func sign(ctx context.Context, k providers.Key) ([]byte, error) {
	r, err := k.Begin(ctx, psa.Op{Operation: psa.Sign, Algorithm: psa.PureEdDSA})
	if err != nil {
		return nil, fmt.Errorf("begin, which is local: %v", err)
	}
	if _, err := r.Write([]byte("message")); err != nil {
		return nil, fmt.Errorf("write, which is local: %v", err)
	}
	result, err := r.Finish(ctx)
	return result.Outputs["signature"], err
}

// mustSign checks that a key works.
func mustSign(t *testing.T, k providers.Key) {
	t.Helper()
	signature, err := sign(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := x509.ParsePKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if !ed25519.Verify(pub.(ed25519.PublicKey), []byte("message"), signature) {
		t.Error("the signature is not valid")
	}
}

// wantStatus checks an error's status, and that it says whether the outcome is known.
func wantStatus(t *testing.T, err error, want psa.Status) {
	t.Helper()
	if err == nil || psa.StatusOf(err) != want {
		t.Fatalf("%v; want %s", err, want)
	}
	unknown := want == psa.StatusTimeout || want == psa.StatusCommunicationFailure || want == psa.StatusProviderAbsent
	if psa.OutcomeUnknown(err) != unknown {
		t.Errorf("%v: outcome unknown: %t", err, !unknown)
	}
}

func TestFaultLost(t *testing.T) {
	at := newPlace(t)
	at.serve(t)
	p := at.open(t)
	h, k := create(t, p)
	at.fault(t, "create lost\ndestroy lost\nidentity lost\nfinish lost\n")
	lost := handle()
	_, err := p.Create(t.Context(), lost, attributes(t), nil)
	wantStatus(t, err, psa.StatusCommunicationFailure)
	at.holds(t, h, lost)
	wantStatus(t, p.Destroy(t.Context(), lost), psa.StatusCommunicationFailure)
	at.holds(t, h)
	_, err = p.Identity(t.Context())
	wantStatus(t, err, psa.StatusCommunicationFailure)
	_, err = sign(t.Context(), k)
	wantStatus(t, err, psa.StatusCommunicationFailure)
	at.fault(t, "")
	mustSign(t, k)
	if err := p.Destroy(t.Context(), lost); err != nil {
		t.Errorf("what was destroyed already: %v", err)
	}
}

func TestFaultFail(t *testing.T) {
	at := newPlace(t)
	at.serve(t)
	p := at.open(t)
	h, k := create(t, p)
	at.fault(t, "create fail\ndestroy fail\nidentity fail\nfinish fail\n")
	_, err := p.Create(t.Context(), handle(), attributes(t), nil)
	wantStatus(t, err, psa.StatusInsufficientStorage)
	definite := func(err error) {
		t.Helper()
		if err == nil || psa.OutcomeUnknown(err) {
			t.Errorf("%v; want a failure that is certain", err)
		}
	}
	definite(p.Destroy(t.Context(), h))
	_, err = p.Identity(t.Context())
	definite(err)
	_, err = sign(t.Context(), k)
	definite(err)
	at.holds(t, h)
	at.fault(t, "")
	mustSign(t, k)
}

func TestFaultDelay(t *testing.T) {
	at := newPlace(t)
	at.serve(t)
	p := at.open(t)
	h, k := create(t, p)
	// Only the contexts' end can end these.
	at.fault(t, "identity delay 30s\nfinish delay 30s\n")
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	_, err := p.Identity(short())
	wantStatus(t, err, psa.StatusTimeout)
	_, err = sign(short(), k)
	wantStatus(t, err, psa.StatusTimeout)

	// A create that its client gave up may have happened, or not; nothing comes after the Destroy that follows.
	at.fault(t, "create delay 50ms\n")
	late := handle()
	_, err = p.Create(short(), late, attributes(t), nil)
	wantStatus(t, err, psa.StatusTimeout)
	if err := p.Destroy(t.Context(), late); err != nil {
		t.Fatal(err)
	}
	at.holds(t, h)
	at.fault(t, "destroy delay 50ms\n")
	if err := p.Destroy(t.Context(), h); err != nil {
		t.Errorf("a call that has the time to wait: %v", err)
	}
	at.holds(t)
}

// TestStopWhileDelayed ends a server under a call that waits.
func TestStopWhileDelayed(t *testing.T) {
	at := newPlace(t)
	stop := at.serve(t)
	p := at.open(t)
	_, k := create(t, p)
	at.fault(t, "finish delay 30s\n")
	signed := make(chan error, 1)
	go func() {
		_, err := sign(t.Context(), k)
		signed <- err
	}()
	// The call may come too late for the server, or be under way.
	stop()
	if err := <-signed; !psa.OutcomeUnknown(err) {
		t.Errorf("a call whose server ended: %v", err)
	}
}

func TestNoServer(t *testing.T) {
	at := newPlace(t)
	stop := at.serve(t)
	p := at.open(t)
	h, k := create(t, p)
	_, old := create(t, p)
	id, err := p.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	signature, err := sign(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	stop()

	p = at.open(t) // does not dial
	_, err = p.Identity(t.Context())
	wantStatus(t, err, psa.StatusProviderAbsent)
	_, err = p.Create(t.Context(), handle(), attributes(t), nil)
	wantStatus(t, err, psa.StatusProviderAbsent)
	wantStatus(t, p.Destroy(t.Context(), h), psa.StatusProviderAbsent)
	if k, err = p.Open(t.Context(), h, attributes(t), providers.Blob{Public: k.Public()}); err != nil {
		t.Fatalf("Open, which is local: %v", err)
	}
	_, err = sign(t.Context(), k)
	wantStatus(t, err, psa.StatusProviderAbsent)
	r, err := k.Begin(t.Context(), psa.Op{Operation: psa.Verify, Algorithm: psa.PureEdDSA, Inputs: map[string][]byte{"signature": signature}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Write([]byte("message")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Finish(t.Context()); err != nil {
		t.Errorf("verify, which is local: %v", err)
	}

	at.serve(t)
	mustSign(t, k)
	mustSign(t, old)
	if again, err := p.Identity(t.Context()); err != nil || again != id {
		t.Errorf("the identity was %s and is %s, %v", id, again, err)
	}
}

func TestServerKilled(t *testing.T) {
	at := newPlace(t)
	kill := at.serveApart(t)
	p := at.open(t)
	h, k := create(t, p)
	mustSign(t, k)
	id, err := p.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kill()
	if _, err := os.Lstat(at.socket); err != nil {
		t.Errorf("a killed server leaves its socket: %v", err)
	}
	_, err = sign(t.Context(), k)
	wantStatus(t, err, psa.StatusProviderAbsent)

	kill = at.serveApart(t)
	mustSign(t, k)
	at.holds(t, h)
	if again, err := p.Identity(t.Context()); err != nil || again != id {
		t.Errorf("the identity was %s and is %s, %v", id, again, err)
	}

	// Killed under calls: each of the keys is acknowledged and there, or uncertain.
	var acknowledged, uncertain []providers.Handle
	var mu sync.Mutex
	var creators sync.WaitGroup
	some := make(chan struct{})
	enough := sync.OnceFunc(func() { close(some) })
	for range 4 {
		creators.Go(func() {
			for {
				h := handle()
				_, err := p.Create(t.Context(), h, attributes(t), nil)
				mu.Lock()
				if err == nil {
					acknowledged = append(acknowledged, h)
				} else {
					uncertain = append(uncertain, h)
				}
				if err != nil || len(acknowledged) >= 20 {
					enough()
				}
				mu.Unlock()
				if err != nil {
					if !psa.OutcomeUnknown(err) {
						t.Errorf("a call whose server was killed: %v", err)
					}
					return
				}
			}
		})
	}
	<-some
	kill()
	creators.Wait()
	at.serveApart(t)
	for _, h := range uncertain {
		if err := p.Destroy(t.Context(), h); err != nil {
			t.Error(err)
		}
	}
	at.holds(t, append(acknowledged, h)...)
}

func TestFiles(t *testing.T) {
	at := newPlace(t)
	if err := os.MkdirAll(filepath.Join(at.dir, "folder"), 0o700); err != nil {
		t.Fatal(err)
	}
	foreign := []string{"not-ours", ".hidden", "0123456789abcdef", strings.Repeat("0g", 16), strings.Repeat("ab", 17), "folder/" + strings.Repeat("ab", 16)}
	for _, name := range foreign {
		if err := os.WriteFile(filepath.Join(at.dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	stop := at.serve(t)
	p := at.open(t)
	at.holds(t)
	h, k := create(t, p)
	other, _ := create(t, p)
	at.holds(t, h, other)

	path := filepath.Join(at.dir, hex.EncodeToString(h[:]))
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Lstat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("an object's mode: %v, %v", info.Mode(), err)
	}
	_, err = p.Create(t.Context(), h, attributes(t), nil)
	wantStatus(t, err, psa.StatusAlreadyExists)
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the existing object was touched: %v", err)
	}

	for _, h := range []providers.Handle{h, other} {
		if err := p.Destroy(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	_, err = sign(t.Context(), k)
	wantStatus(t, err, psa.StatusDoesNotExist)
	if want := hex.EncodeToString(h[:]); !strings.Contains(err.Error(), want) {
		t.Errorf("%v does not name %s", err, want)
	}
	at.fault(t, "create lost\n")
	at.fault(t, "")
	stop()
	for _, name := range foreign {
		if b, err := os.ReadFile(filepath.Join(at.dir, name)); err != nil || string(b) != name {
			t.Errorf("the foreign file %s: %q, %v", name, b, err)
		}
	}
	entries, err := os.ReadDir(at.dir)
	if err != nil {
		t.Fatal(err)
	}
	// The top-level foreign files, folder and identity: no file of ours is left aside.
	if len(entries) != len(foreign)+1 {
		t.Errorf("left in the folder: %v", entries)
	}
}

func TestSetting(t *testing.T) {
	s := outside.Type.Settings[0]
	if s.Name != "socket" || len(outside.Type.Settings) != 1 {
		t.Fatalf("settings %+v", outside.Type.Settings)
	}
	if err := s.Check("/run/socket"); err != nil {
		t.Error(err)
	}
	for _, v := range []any{"", int64(3), nil} {
		if s.Check(v) == nil {
			t.Errorf("socket may be %#v", v)
		}
	}
}
