package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	p11 "github.com/miekg/pkcs11"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// logged counts what goes into a log.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Len()
}

func providerOf(t *testing.T, log *slog.Logger, settings map[string]any) *provider {
	t.Helper()
	p, err := newProvider(t.Context(), providers.Config{Name: "token", StateDir: t.TempDir(), Log: log, Settings: settings})
	if err != nil {
		t.Fatal(err)
	}
	return p.(*provider)
}

// TestLiars: a worker that lies, by its wire or its words, costs its own provider its answers, and nobody anything else.
func TestLiars(t *testing.T) {
	library := filepath.Join(t.TempDir(), "liar.so")
	if out, err := exec.Command("gcc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", library,
		"testdata/liar.c").CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	k := pkcs11test.SoftHSM(t, "honest")[0]
	env := map[string]any{}
	for _, v := range k.Env {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	honest := providerOf(t, slog.New(slog.DiscardHandler), map[string]any{"library_path": k.Library, "token_label": k.Label, "user_pin": k.PIN, "environment": env})
	defer honest.Close()
	random := func() {
		t.Helper()
		if err := honest.Random(t.Context(), make([]byte, 32)); err != nil {
			t.Errorf("another provider: %v", err)
		}
	}
	random()
	worker := honest.token.process
	for _, lie := range []string{"empty", "other", "twice", "too long", "long", "outcome", "noise", "deaf", "talk"} {
		t.Run(lie, func(t *testing.T) {
			var log logged
			p := providerOf(t, slog.New(slog.NewTextHandler(&log, nil)),
				map[string]any{"library_path": library, "environment": map[string]any{"LIAR": lie}})
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			a, err := p.ask(ctx, "export", &request{method: methodRead, types: []uint64{p11.CKA_VALUE}})
			if err == nil {
				t.Errorf("an answer: %+v", a)
			}
			random()
			if err := p.Close(); err != nil {
				t.Error(err)
			}
			runtime.ReadMemStats(&after)
			if made := after.TotalAlloc - before.TotalAlloc; lie != "talk" && made > 8<<20 {
				t.Errorf("it took %d MiB", made>>20)
			}
			if n := log.Len(); n > 64<<10 {
				t.Errorf("%d KiB went into the log", n>>10)
			}
		})
	}
	if honest.token.process != worker {
		t.Error("another provider's worker was started again")
	}
}

// TestUnreadRequest: a request that a worker does not read holds its caller no longer than the write may take.
func TestUnreadRequest(t *testing.T) {
	t.Parallel()
	s, other, err := newSocket()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	broken := make(chan error, 1)
	s.out = &sender{to: patientWriter{s.conn, 10 * time.Millisecond}, broken: func(err error) { broken <- err }}
	if _, err := s.out.add(func(c *codec) { c.request(&request{data: make([]byte, 8<<20)}) }); err != nil {
		t.Fatal(err)
	}
	s.out.flush()
	if err := <-broken; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v", err)
	}
	if err := s.conn.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}

// FuzzAnswer: whatever a worker answers, and an object of it shows, ends in an error or in a key, with memory in proportion.
func FuzzAnswer(f *testing.F) {
	f.Add(encode(f, func(c *codec) { c.response(someResponse()) })[frameHead:])
	value := func(n uint64, b ...byte) attribute { return attribute{number: n, value: b} }
	for _, o := range [][]attribute{
		{value(p11.CKA_MODULUS, 1), value(p11.CKA_PUBLIC_EXPONENT, 1, 0, 1), value(p11.CKA_PRIVATE_EXPONENT, 1), value(p11.CKA_PRIME_1, 1),
			value(p11.CKA_PRIME_2, 1)},
		{value(p11.CKA_MODULUS, 0), value(p11.CKA_PUBLIC_EXPONENT, 3), value(p11.CKA_PRIVATE_EXPONENT, 0), value(p11.CKA_PRIME_1, 0),
			value(p11.CKA_PRIME_2, 0)},
		{value(p11.CKA_EC_POINT, 4, 1, 4), value(p11.CKA_VALUE, 0), value(p11.CKA_EC_PARAMS, 6, 0)},
		{value(p11.CKA_EC_POINT, 4, 0x84, 255, 255, 255, 255), value(p11.CKA_VALUE, make([]byte, 32)...)},
		{value(p11.CKA_KEY_TYPE, 1), value(p11.CKA_VALUE_LEN, 255), value(p11.CKA_ID), value(p11.CKA_LABEL, 0xff)},
	} {
		f.Add(encode(f, func(c *codec) { c.response(&response{objects: [][]attribute{o}}) })[frameHead:])
	}
	kinds := []psa.Attributes{{Type: psa.KeyTypeRSAKeyPair, Bits: 2048}, {Type: psa.ECCKeyPair(psa.SECPR1), Bits: 256},
		{Type: psa.ECCKeyPair(psa.TwistedEdwards), Bits: 255}, {Type: psa.KeyTypeAES, Bits: 256}}
	requests := []*request{{method: methodRead, types: make([]uint64, 5)}, {method: methodList}, {method: methodSign},
		{method: methodMechanisms}}
	f.Fuzz(func(t *testing.T, b []byte) {
		var a, again response
		if parse(b, func(c *codec) { c.response(&a) }) != nil {
			return
		}
		written := encode(t, func(c *codec) { c.response(&a) })
		if err := parse(written[frameHead:], func(c *codec) { c.response(&again) }); err != nil || !reflect.DeepEqual(a, again) {
			t.Errorf("%+v\n%+v, %v", a, again, err)
		}
		for _, r := range requests {
			if r.expects().met(&a) && a.outcome == outcomeOK && r.method == methodRead && (len(a.objects) != 1 || len(a.objects[0]) != 5) {
				t.Errorf("%+v is an answer to %+v", a, r)
			}
		}
		_ = a.err("a call") // any outcome has one, or none
		_ = identityOf(a.token)
		for _, o := range a.objects {
			for _, k := range kinds {
				if secret, err := exported(k, o); err == nil && len(secret) == 0 {
					t.Errorf("an empty %s", k.Type)
				}
				_, _ = publicOf(k.Type, k.Bits, o)
			}
			_, _ = found{attributes: o, public: o}.kindOf()
		}
	})
}

// TestElements: a frame makes no more of itself than its bytes are worth.
func TestElements(t *testing.T) {
	t.Parallel()
	var b buffer
	c := &codec{out: &b}
	head := uint64(maxList)
	for range 13 { // up to the objects
		b.add([]byte{0})
	}
	c.uint(&head)
	for range maxList {
		n := uint64(40)
		c.uint(&n)
		b.add(make([]byte, 40*3))
	}
	b.add([]byte{0})
	var a response
	if err := parse(b.b, func(c *codec) { c.response(&a) }); err == nil {
		t.Errorf("%d elements were taken", maxList*40)
	}
}
