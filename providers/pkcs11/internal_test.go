package pkcs11

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	p11 "github.com/miekg/pkcs11"
	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
	"github.com/parsecfs/parsecfs/providers/psa"
)

func someRequest() *request {
	return &request{
		id: 7, method: methodSign, selector: selector{label: "a token", serial: "0123", manufacturer: "m", model: "s", slot: 3, bySlot: true},
		object:    object{handle: 1 << 40, class: p11.CKO_PRIVATE_KEY, id: []byte("0123456789abcdef"), label: "a key", unique: []byte{4, 1}},
		mechanism: mechanism{number: p11.CKM_RSA_PKCS_OAEP, kind: paramOAEP, parameter: []byte{1}, data: []byte("label"), hash: 1, mgf: 2, length: 3},
		templates: [2][]attribute{{{number: p11.CKA_TOKEN, value: []byte{1}}}, {{number: 1, value: []byte{}, missing: true}, {number: 2, value: []byte("x")}}},
		types:     []uint64{1, 1 << 63}, data: bytes.Repeat([]byte("m"), 1000), length: 99,
	}
}

func someResponse() *response {
	return &response{
		id: 8, outcome: outcomeRefused, rv: p11.CKR_PIN_INCORRECT, what: "C_Login", data: []byte("signature"),
		token:  tokenInfo{label: "l", serial: "s", manufacturer: "m", flags: 1, marker: "0a1b", hardware: true, library: "x 2.6"},
		object: 5, objects: [][]attribute{{{number: 1, value: []byte("v")}}, nil}, mechanisms: []mechanismInfo{{1, 2, 3, 4}, {5, 6, 7, 8}},
	}
}

func encode(t testing.TB, fields func(*codec)) []byte {
	t.Helper()
	var b buffer
	if err := b.frame(fields); err != nil {
		t.Fatal(err)
	}
	return b.b
}

func TestFrames(t *testing.T) {
	in, answer := someRequest(), someResponse()
	in.templates[1][0].value = nil // what is empty comes back as nil
	stream := append(encode(t, func(c *codec) { c.request(in) }), encode(t, func(c *codec) { c.response(answer) })...)
	for name, r := range map[string]io.Reader{"whole": bytes.NewReader(stream), "in bytes": iotest.OneByteReader(bytes.NewReader(stream))} {
		f := newFrames(r)
		var gotIn request
		var gotAnswer response
		for _, fields := range []func(*codec){func(c *codec) { c.request(&gotIn) }, func(c *codec) { c.response(&gotAnswer) }} {
			content, err := f.next()
			if err == nil {
				err = parse(content, fields)
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
		if !reflect.DeepEqual(&gotIn, in) || !reflect.DeepEqual(&gotAnswer, answer) {
			t.Errorf("%s:\n%+v\n%+v", name, gotIn, gotAnswer)
		}
		if _, err := f.next(); err != io.EOF {
			t.Errorf("%s: at its end %v", name, err)
		}
		if !bytes.Equal(f.room, make([]byte, len(f.room))) {
			t.Errorf("%s: what was read is still there", name)
		}
	}
	for n := range stream[:50] {
		if _, err := newFrames(bytes.NewReader(stream[:n])).next(); err == nil || n > 0 && err == io.EOF {
			t.Errorf("%d bytes of a frame: %v", n, err)
		}
	}
	var b buffer
	if err := b.frame(func(c *codec) { c.request(&request{data: make([]byte, maxFrame)}) }); err == nil || len(b.b) != 0 {
		t.Errorf("a frame that is too long: %d bytes, %v", len(b.b), err)
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(encode(f, func(c *codec) { c.request(someRequest()) }))
	f.Add(encode(f, func(c *codec) { c.response(someResponse()) }))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		frames := newFrames(bytes.NewReader(b))
		for {
			content, err := frames.next()
			if err != nil {
				return
			}
			// What can be read is written as something that reads the same.
			var r, r2 request
			if parse(content, func(c *codec) { c.request(&r) }) == nil {
				again := encode(t, func(c *codec) { c.request(&r) })
				if err := parse(again[frameHead:], func(c *codec) { c.request(&r2) }); err != nil || !reflect.DeepEqual(r, r2) {
					t.Errorf("%+v\n%+v, %v", r, r2, err)
				}
			}
			var a, a2 response
			if parse(content, func(c *codec) { c.response(&a) }) == nil {
				again := encode(t, func(c *codec) { c.response(&a) })
				if err := parse(again[frameHead:], func(c *codec) { c.response(&a2) }); err != nil || !reflect.DeepEqual(a, a2) {
					t.Errorf("%+v\n%+v, %v", a, a2, err)
				}
			}
		}
	})
}

func TestURI(t *testing.T) {
	for s, want := range map[string]map[string]string{
		"pkcs11:": {},
		"pkcs11:token=The%20Software%20PKCS%2311%20Softtoken;manufacturer=Snake%20Oil,%20Inc.;model=1.0": {
			"token": "The Software PKCS#11 Softtoken", "manufacturer": "Snake Oil, Inc.", "model": "1.0"}, // RFC 7512, 3
		"pkcs11:object=my-pubkey;type=public":               {"object": "my-pubkey", "type": "public"},
		"pkcs11:id=%69%95%3E%5C%F4%BD%EC%91;x-vendor=1":     {"id": "\x69\x95\x3e\x5c\xf4\xbd\xec\x91"},
		"pkcs11:serial=1?pin-source=file:/etc/token":        {"serial": "1", "pin-source": "file:/etc/token"},
		"pkcs11:token=a+b?module-path=/x.so&pin-value=a%26": {"token": "a+b", "module-path": "/x.so", "pin-value": "a&"},
		"pkcs11:token=a;token=b":                            nil,
		"pkcs11:token":                                      nil,
		"pkcs11:=x":                                         nil,
		"pkcs11:tokem=x":                                    nil,
		"pkcs11:token=%4":                                   nil,
		"pkcs11:token=a?pin-value=1?":                       {"token": "a", "pin-value": "1?"},
		"PKCS11:token=a":                                    nil,
		"token=a":                                           nil,
	} {
		got, err := parseURI(s)
		if (err == nil) != (want != nil) || want != nil && !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v; want %v", s, got, err, want)
		}
	}
}

func FuzzURI(f *testing.F) {
	for _, s := range []string{"pkcs11:token=a%20b;serial=1?pin-source=file:/a&module-path=/b", "pkcs11:id=%00;object=x", "pkcs11:;;", "pkcs11:?&", "pkcs11:token=%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		values, err := parseURI(s)
		if err != nil && values != nil {
			t.Errorf("%v beside %v", values, err)
		}
		_, _ = parseTokenURI(s)
	})
}

func FuzzReference(f *testing.F) {
	for _, s := range []string{"id=6b6579", "object=web", "id=01;object=a;b=c", "pkcs11:id=%01;object=x", "id=", "id=0", "object="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := parseReference(s)
		if err != nil {
			return
		}
		if again, err := parseReference(o.reference()); err != nil || !reflect.DeepEqual(again, o) {
			t.Errorf("%q is %+v, whose name %q is %+v, %v", s, o, o.reference(), again, err)
		}
	})
}

func FuzzPIN(f *testing.F) {
	for _, s := range []string{"1234", "str:1234", "hex:31323334", "hex:3", "hex:", "str:", "hex:zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if pin, err := parsePIN(s); err == nil && (len(pin) == 0 || len(pin) > providers.MaxPIN) {
			t.Errorf("%q: %d bytes", s, len(pin))
		}
	})
}

func FuzzRefusal(f *testing.F) {
	f.Add(refusal{"0123", []byte("0123456789abcdef"), make([]byte, 32), true}.String())
	f.Add("x 00 00 counted")
	f.Fuzz(func(t *testing.T, s string) {
		one, err := parseRefusal(s)
		if err != nil {
			return
		}
		if again, err := parseRefusal(one.String()); err != nil || !reflect.DeepEqual(one, again) {
			t.Errorf("%q: %+v, then %+v, %v", s, one, again, err)
		}
	})
}

func TestParsePIN(t *testing.T) {
	for s, want := range map[string]string{"1234": "1234", "str:12 34": "12 34", "hex:31323334": "1234", "hex:00": "\x00", "str:hex:31": "hex:31"} {
		if got, err := parsePIN(s); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", s, got, err, want)
		}
	}
	for _, v := range []any{"", "str:", "hex:", "hex:3", "hex:xx", int64(1234), nil} { // Parsec takes hex:xx for a PIN
		if got, err := parsePIN(v); err == nil {
			t.Errorf("%v: %q", v, got)
		}
	}
}

// What is written down of a refused PIN is neither it nor of use for another token.
func TestRefusals(t *testing.T) {
	r := refusals{filepath.Join(t.TempDir(), "token", "refused-pin")}
	has := func(serial, pin string) (bool, bool) {
		t.Helper()
		counted, ok, err := r.has(serial, []byte(pin))
		if err != nil {
			t.Fatal(err)
		}
		return counted, ok
	}
	if _, ok := has("1", "wrong"); ok {
		t.Error("a PIN that was never tried")
	}
	if err := r.add("1", []byte("wrong"), true); err != nil {
		t.Fatal(err)
	}
	if counted, ok := has("1", "wrong"); !ok || !counted {
		t.Error("it is forgotten")
	}
	if _, ok := has("1", "right"); ok {
		t.Error("another PIN")
	}
	if _, ok := has("2", "wrong"); ok {
		t.Error("another token")
	}
	b, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("wrong")) || bytes.Contains(b, []byte(hex.EncodeToString([]byte("wrong")))) {
		t.Error("the file has the PIN")
	}
	if info, err := os.Stat(r.file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("its mode is %v, %v", info.Mode(), err)
	}
	if err := os.WriteFile(r.file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.has("1", []byte("wrong")); err == nil {
		t.Error("a damaged file lets the PIN be tried")
	}
}

func TestLeftmost(t *testing.T) {
	digest := bytes.Repeat([]byte{0xd1}, 32)
	for _, c := range []struct {
		bits int
		want []byte
	}{
		{224, digest[:28]}, {256, digest}, {384, append(make([]byte, 16), digest...)}, {521, digest},
	} {
		if got := leftmost(digest, c.bits); !bytes.Equal(got, c.want) {
			t.Errorf("%d bits: %x; want %x", c.bits, got, c.want)
		}
	}
}

// Calls that wait for something are under way at once, though there are fewer sockets; nothing goes to another's.
func TestServeCallsThatWait(t *testing.T) {
	const calls = 16
	var ours []*os.File
	var theirs []io.ReadWriter
	for range 2 {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs = append(ours, os.NewFile(uintptr(pair[0]), "")), append(theirs, descriptor(pair[1]))
		t.Cleanup(func() { _ = unix.Close(pair[1]) })
	}
	var under sync.WaitGroup
	under.Add(calls)
	ended := make(chan struct{})
	go func() {
		serve(theirs, func(r *request) *response {
			if r.method == methodSign {
				under.Done()
				under.Wait() // all are here
			}
			return &response{id: r.id, data: bytes.Clone(r.data)}
		})
		close(ended)
	}()
	for round, m := range []method{methodSign, methodRandom} {
		for i := range calls {
			id := uint64(100*round + i)
			if _, err := ours[i%2].Write(encode(t, func(c *codec) { c.request(&request{id: id, method: m, data: []byte{byte(id)}}) })); err != nil {
				t.Fatal(err)
			}
		}
		for i, f := range ours {
			in := newFrames(f)
			for range calls / 2 {
				content, err := in.next()
				if err != nil {
					t.Fatal(err)
				}
				var a response
				if err := parse(content, func(c *codec) { c.response(&a) }); err != nil {
					t.Fatal(err)
				}
				if len(a.data) != 1 || a.data[0] != byte(a.id) || a.id%2 != uint64(i) || a.id/100 != uint64(round) {
					t.Errorf("socket %d gives %d, %x", i, a.id, a.data)
				}
			}
		}
	}
	for _, f := range ours {
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	<-ended
}

// TestHandleOfAnotherWorker: what a worker calls a session object is another object's number in the next one.
func TestHandleOfAnotherWorker(t *testing.T) {
	k := pkcs11test.SoftHSM(t, "handles")[0]
	for _, id := range []string{"01", "02", "03", "04", "05", "06"} {
		k.Generate("EC:prime256v1", id, "users")
	}
	env := map[string]any{}
	for _, v := range k.Env {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	made, err := newProvider(t.Context(), providers.Config{Name: "token", StateDir: t.TempDir(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Settings: map[string]any{"library_path": k.Library, "token_label": k.Label, "user_pin": k.PIN, "environment": env}})
	if err != nil {
		t.Fatal(err)
	}
	p := made.(*provider)
	defer p.Close()
	kind, _ := kindOf(psa.KeyTypeAES, 256, nil)
	m := making{a: psa.Attributes{Type: psa.KeyTypeAES, Bits: 256, Usage: usageAll}, kind: kind, id: []byte("self-test-sessio"), label: "parsecfs self-test"}
	var a *response
	for range 4 {
		if a, err = p.ask(t.Context(), "self-test", m.generation()); err != nil {
			t.Fatal(err)
		}
	}
	before := k.Objects()
	w := p.token.process
	w.kill()
	<-w.ended
	if _, err := p.list(t.Context()); err != nil { // the next worker knows all objects now
		t.Fatal(err)
	}
	_, err = p.ask(t.Context(), "self-test", &request{method: methodForget, object: object{handle: a.object, of: a.of}})
	if psa.StatusOf(err) != psa.StatusProviderAbsent {
		t.Errorf("a handle of the worker before: %v", err)
	}
	if after := k.Objects(); len(after) != len(before) {
		t.Errorf("there were %d objects, and are %d", len(before), len(after))
	}
}

// TestModuleOfAnother: a module that somebody else owns or may write is not run, whenever it became so.
func TestModuleOfAnother(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it makes files of other users")
	}
	library := filepath.Join(t.TempDir(), "module.so")
	if err := os.WriteFile(library, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l := launch{library: library, lock: filepath.Join(t.TempDir(), "lock"), width: 1}
	for name, spoil := range map[string]func() error{
		"owner": func() error { return os.Chown(library, 61001, 61001) },
		"mode":  func() error { return errors.Join(os.Chown(library, 0, 0), os.Chmod(library, 0o666)) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if p, err := l.start(slog.New(slog.DiscardHandler)); psa.StatusOf(err) != psa.StatusNotPermitted || psa.HintOf(err) == "" {
			t.Errorf("%s: %v", name, err)
			if p != nil {
				p.kill()
			}
		}
	}
}
