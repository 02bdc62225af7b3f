package pkcs11_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/pkcs11"
	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// use makes a provider that the test's end closes.
func use(t *testing.T, settings map[string]any) providers.Provider {
	t.Helper()
	p := open(t, settings)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return p
}

// made is a key of a provider.
type made struct {
	handle     providers.Handle
	attributes psa.Attributes
	blob       providers.Blob
	key        providers.Key
}

func attributes(t *testing.T, template string) psa.Attributes {
	t.Helper()
	a, err := psa.ParseTemplate(template)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func create(t *testing.T, p providers.Provider, template string) *made {
	t.Helper()
	m := &made{attributes: attributes(t, template)}
	_, _ = rand.Read(m.handle[:]) // never fails
	var err error
	if m.blob, err = p.Create(t.Context(), m.handle, m.attributes, nil); err != nil {
		t.Fatalf("Create: %v", err)
	}
	m.open(t, p)
	return m
}

func (m *made) open(t *testing.T, p providers.Provider) {
	t.Helper()
	var err error
	if m.key, err = p.Open(t.Context(), m.handle, m.attributes, m.blob); err != nil {
		t.Fatalf("Open: %v", err)
	}
}

// sign signs a message with ECDSA and SHA-256, and checks the signature by the standard library.
func (m *made) sign(ctx context.Context, message string) error {
	run, err := m.key.Begin(ctx, psa.Op{Operation: psa.Sign, Algorithm: psa.ECDSA(psa.SHA256)})
	if err != nil {
		return err
	}
	if _, err := run.Write([]byte(message)); err != nil {
		return err
	}
	out, err := run.Finish(ctx)
	if err != nil {
		return err
	}
	pub, err := x509.ParsePKIXPublicKey(m.blob.Public)
	if err != nil {
		return err
	}
	der, err := psa.ECDSARawToDER(out.Outputs["signature"])
	if err != nil {
		return err
	}
	if digest := sha256.Sum256([]byte(message)); !ecdsa.VerifyASN1(pub.(*ecdsa.PublicKey), digest[:], der) {
		return fmt.Errorf("a wrong signature for %q", message)
	}
	return nil
}

func wantStatus(t *testing.T, what string, err error, want psa.Status) {
	t.Helper()
	if err == nil || psa.StatusOf(err) != want {
		t.Errorf("%s: %v; want %v", what, err, want)
	}
}

// inTheEnd tries until there is no error, for 20 seconds at most.
func inTheEnd(try func() error) (err error) {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		if err = try(); err == nil {
			break
		}
	}
	return err
}

const p256 = "ecdsa-p256-sha256"

func TestWrongPINIsTriedOnce(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "pin")[0].Sabotaged()
	file := filepath.Join(t.TempDir(), "pin")
	write := func(pin string) {
		t.Helper()
		if err := os.WriteFile(file, []byte(pin+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	state := t.TempDir()
	settings := settingsOf(&token.Token, map[string]any{"user_pin": nil, "pin_source": file})
	start := func() providers.Provider {
		p, err := pkcs11.Type.New(t.Context(), config(t, state, settings))
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	write("wrong")
	p := start()
	_, err := p.Identity(t.Context())
	wantStatus(t, "the first try", err, psa.StatusNotPermitted)
	if psa.DeviceOf(err) != "C_Login: CKR_PIN_INCORRECT" {
		t.Errorf("the token's words are %q", psa.DeviceOf(err))
	}
	// A second try would be seen: the module would die of it.
	token.Harm("C_Login crash")
	for range 3 {
		_, err := p.Identity(t.Context())
		wantStatus(t, "then", err, psa.StatusNotPermitted)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = start()
	_, err = p.Identity(t.Context())
	wantStatus(t, "after the program was started again", err, psa.StatusNotPermitted)
	_, err = p.Create(t.Context(), providers.Handle{1}, attributes(t, p256), nil)
	wantStatus(t, "Create", err, psa.StatusNotPermitted)
	token.Harm("")
	write(token.PIN)
	if _, err := p.Identity(t.Context()); err != nil {
		t.Errorf("with the right PIN in the file: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
}

// A TPM counts wrong PINs, and takes none at all after the third.
func TestWrongPINLocksNoTPM(t *testing.T) {
	t.Parallel()
	token := pkcs11test.TPM2(t)
	p := use(t, settingsOf(token, map[string]any{"user_pin": "wrong"}))
	for range 6 {
		_, err := p.Identity(t.Context())
		wantStatus(t, "a wrong PIN", err, psa.StatusNotPermitted)
	}
	if _, err := use(t, settingsOf(token, map[string]any{"user_pin": "str:" + token.PIN, "sessions": int64(2)})).Identity(t.Context()); err != nil {
		t.Errorf("the right PIN: %v", err)
	}
}

func TestPINFile(t *testing.T) {
	token := pkcs11test.SoftHSM(t, "pin")[0]
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	for _, c := range []struct {
		source string
		good   bool
	}{
		{file("private", token.PIN+"\n", 0o400), true},
		{"file:" + file("bare", token.PIN, 0o600), true},
		{"credential:private", true},
		{file("world", token.PIN, 0o604), false},
		{file("group", token.PIN, 0o640), false},
		{file("writable", token.PIN, 0o620), false},
		{file("empty", "\n", 0o600), false},
		{file("long", strings.Repeat("1", 5000), 0o600), false},
		{dir, false},
		{"credential:absent", false},
	} {
		_, err := use(t, settingsOf(token, map[string]any{"user_pin": nil, "pin_source": c.source})).Identity(t.Context())
		if c.good && err != nil {
			t.Errorf("%s: %v", c.source, err)
		} else if !c.good {
			wantStatus(t, c.source, err, psa.StatusNotPermitted)
			if err != nil && strings.Contains(err.Error(), token.PIN) {
				t.Errorf("%s: the error has the PIN: %v", c.source, err)
			}
		}
	}
	uri := fmt.Sprintf("pkcs11:token=%s;serial=%s?pin-source=file:%s&module-path=%s", token.Label, token.Serial, filepath.Join(dir, "private"), token.Library)
	if _, err := use(t, settingsOf(token, map[string]any{"user_pin": nil, "token_label": nil, "library_path": nil, "uri": uri})).Identity(t.Context()); err != nil {
		t.Errorf("%s: %v", uri, err)
	}
}

func TestWhichToken(t *testing.T) {
	t.Parallel()
	tokens := pkcs11test.SoftHSM(t, "one", "two")
	for _, c := range []struct {
		settings map[string]any
		serial   string
	}{
		{map[string]any{"token_label": "two"}, tokens[1].Serial},
		{map[string]any{"token_label": nil, "serial_number": " " + tokens[0].Serial}, ""},
		{map[string]any{"token_label": nil, "serial_number": tokens[0].Serial + "  "}, tokens[0].Serial},
		{map[string]any{"serial_number": tokens[1].Serial, "token_label": nil, "slot_number": int64(77)}, tokens[1].Serial},
		{map[string]any{"serial_number": tokens[1].Serial, "token_label": "one"}, ""},
		{map[string]any{"token_label": nil}, ""},
		{map[string]any{"token_label": nil, "slot_number": int64(77)}, ""},
		{map[string]any{"token_label": nil, "uri": "pkcs11:token=two"}, tokens[1].Serial},
		{map[string]any{"token_label": nil, "uri": "pkcs11:model=SoftHSM%20v2;serial=" + tokens[0].Serial}, tokens[0].Serial},
	} {
		id, err := use(t, settingsOf(tokens[0], c.settings)).Identity(t.Context())
		if c.serial == "" {
			wantStatus(t, fmt.Sprint(c.settings), err, psa.StatusProviderAbsent)
		} else if err != nil || id != c.serial {
			t.Errorf("%v: %q, %v; want %s", c.settings, id, err, c.serial)
		}
	}
	if _, err := tryOpen(t, map[string]any{"token_label": "one"}); err == nil {
		t.Error("no library is accepted")
	}
	_, err := use(t, map[string]any{"library_path": "/nowhere.so", "token_label": "one"}).Identity(t.Context())
	wantStatus(t, "a library that is none", err, psa.StatusCommunicationFailure)
}

func TestRemovedAndBack(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "removed")[0]
	p := use(t, settingsOf(token, nil))
	m := create(t, p, p256)
	identity, err := p.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := m.sign(t.Context(), "before"); err != nil {
			t.Fatal(err)
		}
		before := token.Objects()
		token.Remove()
		wantStatus(t, "signing without the token", m.sign(t.Context(), "away"), psa.StatusProviderAbsent)
		_, err := p.Create(t.Context(), providers.Handle{7}, m.attributes, nil)
		wantStatus(t, "Create without the token", err, psa.StatusProviderAbsent)
		wantStatus(t, "Destroy without the token", p.Destroy(t.Context(), m.handle), psa.StatusProviderAbsent)
		_, err = p.Identity(t.Context())
		wantStatus(t, "Identity without the token", err, psa.StatusProviderAbsent)
		token.Return()
		if err := m.sign(t.Context(), "back"); err != nil {
			t.Errorf("the token is back: %v", err)
		}
		if again, err := p.Identity(t.Context()); err != nil || again != identity {
			t.Errorf("identity %q, %v; it was %q", again, err, identity)
		}
		if !slices.Equal(before, token.Objects()) {
			t.Errorf("the objects are others now:\n%v\n%v", before, token.Objects())
		}
	}
}

func TestReinitialised(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "emptied")[0]
	p := use(t, settingsOf(token, nil))
	m := create(t, p, p256)
	token.Reinitialise()
	wantStatus(t, "a key that is gone", m.sign(t.Context(), "gone"), psa.StatusProviderAbsent)
	wantStatus(t, "to destroy it", p.Destroy(t.Context(), m.handle), psa.StatusProviderAbsent)
	if id, err := p.Identity(t.Context()); err != nil || id != token.Serial {
		t.Errorf("the identity is %q, %v", id, err)
	}
	if objects := token.Objects(); len(objects) != 0 {
		t.Errorf("the token that was emptied has %q", objects)
	}
	// whoever begins anew has another token, and marks it
	again := use(t, settingsOf(token, map[string]any{"sessions": int64(7)}))
	if err := create(t, again, p256).sign(t.Context(), "new"); err != nil {
		t.Errorf("a new key: %v", err)
	}
	if id, err := again.Identity(t.Context()); err != nil || !strings.HasPrefix(id, token.Serial+"#") {
		t.Errorf("the identity is %q, %v", id, err)
	}
}

// workers sign, 16 at once, until stop; what went wrong is counted by its status.
func workers(t *testing.T, keys ...*made) (stop func() (signed int64, failed map[psa.Status]int)) {
	t.Helper()
	var wait sync.WaitGroup
	var done atomic.Bool
	var signed atomic.Int64
	var mu sync.Mutex
	failed := map[psa.Status]int{}
	for i := range 16 {
		wait.Go(func() {
			for n := 0; !done.Load(); n++ {
				err := keys[i%len(keys)].sign(t.Context(), fmt.Sprint("worker ", i, ", message ", n))
				if err == nil {
					signed.Add(1)
					continue
				}
				mu.Lock()
				failed[psa.StatusOf(err)]++
				mu.Unlock()
			}
		})
	}
	return func() (int64, map[psa.Status]int) {
		done.Store(true)
		wait.Wait()
		return signed.Load(), failed
	}
}

func TestModuleDiesWhileSigning(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "crash")[0].Sabotaged()
	p := use(t, settingsOf(&token.Token, nil))
	m, other := create(t, p, p256), create(t, p, p256)
	before := token.Objects()
	for _, harm := range []string{"C_Sign crash", "C_Sign crash-after"} {
		stop := workers(t, m, other)
		token.Harm(harm)
		for m.sign(t.Context(), "until it dies") == nil {
		}
		token.Harm("")
		err := inTheEnd(func() error { return m.sign(t.Context(), "until it is back") })
		if err != nil {
			t.Errorf("%s: it does not come back: %v", harm, err)
		}
		_, failed := stop()
		for status := range failed {
			if status != psa.StatusCommunicationFailure && status != psa.StatusProviderAbsent {
				t.Errorf("%s: %v; want communication failures, %v", harm, status, failed)
			}
		}
		if failed[psa.StatusCommunicationFailure] == 0 {
			t.Errorf("%s: no call was under way: %v", harm, failed)
		}
	}
	if !slices.Equal(before, token.Objects()) {
		t.Error("the token has other objects now")
	}
}

func TestModuleDiesWhileCreating(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "create")[0].Sabotaged()
	p := use(t, settingsOf(&token.Token, nil))
	token.Generate("EC:prime256v1", "01", "somebody's")
	if _, err := p.Capabilities(t.Context()); err != nil {
		t.Fatal(err)
	}
	create(t, p, p256) // with it the token is marked
	before := token.Objects()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	imported := &psa.Material{Format: psa.FormatPKCS8, Data: der}
	for _, c := range []struct {
		harm     string
		material *psa.Material
	}{
		{"C_GenerateKeyPair crash", nil}, {"C_GenerateKeyPair crash-after", nil},
		{"C_CreateObject crash", imported}, {"C_CreateObject crash-after", imported},
	} {
		h := providers.Handle{1, 2, 3}
		token.Harm(c.harm)
		_, err := p.Create(t.Context(), h, attributes(t, p256), c.material)
		wantStatus(t, c.harm, err, psa.StatusCommunicationFailure)
		token.Harm("")
		// What the KIM does with an unknown outcome, once the device answers.
		err = inTheEnd(func() error { return p.Destroy(t.Context(), h) })
		if err != nil {
			t.Errorf("%s: Destroy: %v", c.harm, err)
		}
		if after := token.Objects(); !slices.Equal(before, after) {
			t.Errorf("%s: the token has other objects now:\n%v\n%v", c.harm, before, after)
		}
	}
}

// TestMakersBesideSearches: each signature by a new key searches the token first, while other keys are made and destroyed.
func TestMakersBesideSearches(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "makers")[0]
	p := use(t, settingsOf(token, nil))
	create(t, p, p256) // with it the token is marked
	before := token.Objects()
	rounds := 25
	if os.Getenv("PARSECFS_TEST_LONG") != "" {
		rounds = 250
	}
	var makers sync.WaitGroup
	for range 8 {
		makers.Go(func() {
			for range rounds {
				var h providers.Handle
				_, _ = rand.Read(h[:]) // never fails
				m := &made{handle: h, attributes: attributes(t, p256)}
				var err error
				if m.blob, err = p.Create(t.Context(), h, m.attributes, nil); err != nil {
					t.Errorf("Create: %v", err)
					return
				}
				if m.key, err = p.Open(t.Context(), h, m.attributes, m.blob); err != nil {
					t.Errorf("Open: %v", err)
				} else if err := m.sign(t.Context(), "found"); err != nil {
					t.Error(err)
				}
				if err := p.Destroy(t.Context(), h); err != nil {
					t.Errorf("Destroy: %v", err)
				}
			}
		})
	}
	makers.Wait()
	if after := token.Objects(); !slices.Equal(before, after) {
		t.Errorf("the token has other objects now:\n%v\n%v", before, after)
	}
}

func TestHangingCall(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "hang")[0].Sabotaged()
	p := use(t, settingsOf(&token.Token, map[string]any{"sessions": int64(3)}))
	m := create(t, p, p256)
	token.Harm("C_Sign hang")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- m.sign(ctx, "hangs") }()
	release := token.Hanging()
	token.Harm("")
	if err := m.sign(t.Context(), "beside it"); err != nil {
		t.Errorf("a call beside the one that hangs: %v", err)
	}
	cancel()
	if err := <-ended; err == nil {
		t.Error("the call that hangs gave a signature")
	}
	if err := m.sign(t.Context(), "after it"); err != nil {
		t.Errorf("after its caller has gone: %v", err)
	}
	release()
	// All sessions at once: the module is ended, and starts again.
	token.Harm("C_Sign hang")
	ctx, cancel = context.WithCancel(t.Context())
	for range 3 {
		go func() { ended <- m.sign(ctx, "hangs") }()
	}
	token.Hanging()
	token.Harm("")
	cancel()
	for range 3 {
		<-ended
	}
	err := inTheEnd(func() error { return m.sign(t.Context(), "with a new one") })
	if err != nil {
		t.Errorf("after all calls hung: %v", err)
	}
}

func TestTwoTokensOfOneModule(t *testing.T) {
	t.Parallel()
	tokens := pkcs11test.SoftHSM(t, "left", "right")
	var all []providers.Provider
	var keys []*made
	h := providers.Handle{9, 9, 9}
	for _, token := range tokens {
		p := use(t, settingsOf(token, nil))
		m := &made{handle: h, attributes: attributes(t, p256)}
		var err error
		if m.blob, err = p.Create(t.Context(), h, m.attributes, nil); err != nil {
			t.Fatal(err)
		}
		m.open(t, p)
		all, keys = append(all, p), append(keys, m)
	}
	if bytes.Equal(keys[0].blob.Public, keys[1].blob.Public) {
		t.Fatal("both are the same key")
	}
	for i, m := range keys {
		if err := m.sign(t.Context(), "with both there"); err != nil {
			t.Errorf("%s: %v", tokens[i].Label, err)
		}
	}
	tokens[0].Remove()
	wantStatus(t, "the removed one", keys[0].sign(t.Context(), "away"), psa.StatusProviderAbsent)
	if err := keys[1].sign(t.Context(), "alone"); err != nil {
		t.Errorf("the other one: %v", err)
	}
	tokens[0].Return()
	if err := all[1].Destroy(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if err := keys[0].sign(t.Context(), "still here"); err != nil {
		t.Errorf("after the other's key was destroyed: %v", err)
	}
	wantStatus(t, "the destroyed one", keys[1].sign(t.Context(), "gone"), psa.StatusDoesNotExist)
}

func TestAdoption(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "adopt")[0]
	token.Generate("EC:prime256v1", "6b6579", "web")
	token.Generate("EC:prime256v1", "01", "twin")
	token.Generate("EC:prime256v1", "02", "twin")
	token.Generate("rsa:2048", "03", "rsa")
	token.Generate("EC:secp192r1", "04", "of no use")
	key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.pem")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	token.Import(file, "0000002a", "softhsm2-util's")
	p := use(t, settingsOf(token, nil))
	own := create(t, p, p256)
	before := token.Objects()
	list, err := p.(providers.Adopter).Foreign(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, f := range list {
		got[f.Object] = f.Label + ": " + f.Attributes.Template()
		if made := f.Handle != (providers.Handle{}); made != (f.Handle == own.handle) {
			t.Errorf("%s has the handle %x", f.Object, f.Handle)
		}
	}
	want := map[string]string{"id=6b6579": "web: ecdsa-p256-sha256", "id=01": "twin: ecdsa-p256-sha256", "id=02": "twin: ecdsa-p256-sha256",
		"id=03": "rsa: rsa-2048-pkcs1v15-sha256", "id=04": "of no use: ", "id=0000002a": "softhsm2-util's: ecdsa-p384-sha384",
		fmt.Sprintf("id=%x", own.handle): fmt.Sprintf("parsecfs %x: ecdsa-p256-sha256", own.handle[:4])}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the keys are\n%v; want\n%v", got, want)
	}
	adopter := p.(providers.Adopter)
	for _, reference := range []string{"object=web", "id=6b6579", "id=6b6579;object=web", "pkcs11:object=web", "pkcs11:id=%6b%65%79"} {
		f, blob, err := adopter.Adopt(t.Context(), psa.Attributes{}, reference)
		if err != nil || f.Object != "id=6b6579" || blob.Object != f.Object || len(blob.Secret) != 0 {
			t.Errorf("%s: %q, %+v, %v", reference, f.Object, blob, err)
			continue
		}
		m := &made{attributes: f.Attributes, blob: blob}
		m.open(t, p)
		if err := m.sign(t.Context(), reference); err != nil {
			t.Errorf("%s: %v", reference, err)
		}
	}
	a := attributes(t, "rsa-2048-pss-sha384")
	if f, _, err := adopter.Adopt(t.Context(), a, "object=rsa"); err != nil || f.Attributes != a {
		t.Errorf("another template: %+v, %v", f.Attributes, err)
	}
	for reference, c := range map[string]struct {
		a    psa.Attributes
		want psa.Status
	}{
		"object=nobody":  {psa.Attributes{}, psa.StatusDoesNotExist},
		"object=twin":    {psa.Attributes{}, psa.StatusInvalidArgument},
		"id=04":          {psa.Attributes{}, psa.StatusInvalidArgument},
		"id=03":          {attributes(t, p256), psa.StatusInvalidArgument},
		"id=6b6579":      {attributes(t, "ecdsa-p384-sha384"), psa.StatusInvalidArgument},
		"object=web;":    {psa.Attributes{}, psa.StatusDoesNotExist},
		"handle=0x81":    {psa.Attributes{}, psa.StatusInvalidArgument},
		"id=xyz":         {psa.Attributes{}, psa.StatusInvalidArgument},
		"id=":            {psa.Attributes{}, psa.StatusInvalidArgument},
		"pkcs11:id=%zz":  {psa.Attributes{}, psa.StatusInvalidArgument},
		"pkcs11:bad=web": {psa.Attributes{}, psa.StatusInvalidArgument},
	} {
		_, _, err := adopter.Adopt(t.Context(), c.a, reference)
		wantStatus(t, reference, err, c.want)
	}
	if after := token.Objects(); !slices.Equal(before, after) {
		t.Errorf("adopting changed the token:\n%v\n%v", before, after)
	}
	for range 2 {
		if err := adopter.DestroyObject(t.Context(), "id=6b6579", nil); err != nil {
			t.Errorf("DestroyObject: %v", err)
		}
	}
	left := slices.DeleteFunc(slices.Clone(before), func(o string) bool { return strings.Contains(o, "web") })
	if after := token.Objects(); !slices.Equal(left, after) || len(left) != len(before)-2 {
		t.Errorf("DestroyObject left\n%v; want\n%v", after, left)
	}
	wantStatus(t, "DestroyObject of two", adopter.DestroyObject(t.Context(), "object=twin", nil), psa.StatusInvalidArgument)
	if after := token.Objects(); !slices.Equal(left, after) {
		t.Errorf("it left\n%v", after)
	}
}

func TestExportIsADecision(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "export")[0]
	p := use(t, settingsOf(token, map[string]any{"allow_export": false}))
	lines, err := p.Capabilities(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range lines {
		if c.Has(psa.Export) {
			t.Errorf("%s", c)
		}
	}
	a := attributes(t, p256)
	a.Usage |= psa.UsageExport
	_, err = p.Create(t.Context(), providers.Handle{1}, a, nil)
	wantStatus(t, "a key to export", err, psa.StatusNotPermitted)
}

// TestReplaced: another program deletes an adopted key, and puts another one in its place. Nothing is signed with that.
func TestReplaced(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "replaced")[0]
	token.Generate("EC:prime256v1", "01", "theirs")
	token.Generate("rsa:2048", "02", "theirs too")
	p := use(t, settingsOf(token, nil))
	for _, id := range []string{"01", "02"} {
		f, blob, err := p.(providers.Adopter).Adopt(t.Context(), psa.Attributes{}, "id="+id)
		if err != nil {
			t.Fatal(err)
		}
		k, err := p.Open(t.Context(), providers.Handle{}, f.Attributes, blob)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		sign := func() error {
			alg, err := f.Attributes.Resolve(psa.Sign, 0)
			if err != nil {
				return err
			}
			run, err := k.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: alg})
			if err != nil {
				return err
			}
			_, err = run.Finish(t.Context())
			return err
		}
		if err := sign(); err != nil {
			t.Fatal(err)
		}
		kind := map[string]string{"01": "EC:prime256v1", "02": "rsa:2048"}[id]
		for _, class := range []string{"privkey", "pubkey"} {
			token.Tool("--delete-object", "--type", class, "--id", id)
		}
		token.Generate(kind, id, map[string]string{"01": "theirs", "02": "theirs too"}[id])
		for range 2 {
			wantStatus(t, "a key that was replaced", sign(), psa.StatusProviderAbsent)
		}
	}
}

func TestModuleDiesInLogin(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "login")[0].Sabotaged()
	p := use(t, settingsOf(&token.Token, nil))
	token.Harm("C_Login crash-after")
	refusedInTheEnd(t, p, "a module that dies in C_Login")
	token.Harm("")
	if _, err := use(t, settingsOf(&token.Token, map[string]any{"user_pin": "str:" + token.PIN, "sessions": int64(3)})).Identity(t.Context()); err != nil {
		t.Errorf("another provider: %v", err)
	}
}

// TestOddLogin: a module says of C_Login that it failed, and not that the PIN was wrong.
func TestOddLogin(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "odd")[0].Sabotaged()
	p := use(t, settingsOf(&token.Token, nil))
	token.Harm("C_Login 6") // CKR_FUNCTION_FAILED
	refusedInTheEnd(t, p, "a module that fails in C_Login")
}

func refusedInTheEnd(t *testing.T, p providers.Provider, what string) {
	t.Helper()
	err := inTheEnd(func() error {
		_, err := p.Identity(t.Context())
		if psa.StatusOf(err) != psa.StatusNotPermitted {
			return fmt.Errorf("not refused yet, but %v", err)
		}
		return nil
	})
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func TestModuleAwayWhileLearning(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "learn")[0].Sabotaged()
	p := use(t, settingsOf(&token.Token, nil))
	token.Harm("C_Sign crash")
	if lines, err := p.Capabilities(t.Context()); err == nil {
		t.Errorf("%d lines of a module that dies", len(lines))
	}
	token.Harm("")
	var lines []psa.Capability
	err := inTheEnd(func() (err error) {
		lines, err = p.Capabilities(t.Context())
		return err
	})
	if a := attributes(t, p256); err != nil || !psa.Supports(lines, psa.Sign, a.Type, a.Bits, a.Algorithm) {
		t.Errorf("%d lines, without ECDSA, or %v", len(lines), err)
	}
}

// TestPrivateReplaced: only the private part of an adopted key is another one, beside its old public part.
func TestPrivateReplaced(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "replaced")[0]
	token.Generate("EC:prime256v1", "01", "theirs")
	p := use(t, settingsOf(token, nil))
	adopter := p.(providers.Adopter)
	f, blob, err := adopter.Adopt(t.Context(), psa.Attributes{}, "id=01")
	if err != nil {
		t.Fatal(err)
	}
	m := &made{attributes: f.Attributes, blob: blob}
	m.open(t, p)
	if err := m.sign(t.Context(), "theirs"); err != nil {
		t.Fatal(err)
	}
	token.Tool("--delete-object", "--type", "privkey", "--id", "01")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "key.der")
	if err := os.WriteFile(file, der, 0o600); err != nil {
		t.Fatal(err)
	}
	token.Tool("--write-object", file, "--type", "privkey", "--id", "01", "--label", "theirs", "--usage-sign")
	before := token.Objects()
	for range 2 {
		wantStatus(t, "a key that was replaced", m.sign(t.Context(), "not theirs"), psa.StatusProviderAbsent)
	}
	if err := adopter.DestroyObject(t.Context(), f.Object, blob.Public); err != nil {
		t.Error(err)
	}
	if after := token.Objects(); !slices.Equal(before, after) {
		t.Errorf("another's key was destroyed:\n%v\n%v", before, after)
	}
}

// TestSecondMarker: another program's marker beside ours makes no other token of it.
func TestSecondMarker(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "marked")[0]
	p := use(t, settingsOf(token, nil))
	m := create(t, p, p256)
	before, err := p.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "value")
	if err := os.WriteFile(file, make([]byte, 16), 0o600); err != nil {
		t.Fatal(err)
	}
	token.Tool("--write-object", file, "--type", "data", "--label", "parsecfs: tells this token from others", "--application-label", "parsecfs")
	for _, p := range []providers.Provider{p, use(t, settingsOf(token, map[string]any{"sessions": int64(7)}))} {
		if after, err := p.Identity(t.Context()); err != nil || after == before || !providers.SameDevice(before, after) {
			t.Errorf("%s is %s now, %v", before, after, err)
		}
	}
	if err := m.sign(t.Context(), "still here"); err != nil {
		t.Error(err)
	}
}
