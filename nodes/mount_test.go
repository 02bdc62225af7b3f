package nodes_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"golang.org/x/sys/unix"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/software"
)

// mounted is a tree over the software provider, mounted for one test.
type mounted struct {
	t    *testing.T
	dir  string
	tree *nodes.Tree
	k    *kim.KIM
	asks asks
}

// asks are the names that the kernel looked up, and the inodes whose attributes it asked for, where a test counts them.
type asks struct {
	mu     sync.Mutex
	counts bool
	names  []string
	inodes []uint64
}

// listening counts what the kernel asks for.
type listening struct {
	fuse.RawFileSystem
	asks *asks
}

func (l *listening) Lookup(cancel <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	status := l.RawFileSystem.Lookup(cancel, in, name, out)
	l.asks.mu.Lock()
	defer l.asks.mu.Unlock()
	if l.asks.counts {
		l.asks.names = append(l.asks.names, name)
	}
	return status
}

func (l *listening) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	status := l.RawFileSystem.GetAttr(cancel, in, out)
	l.asks.mu.Lock()
	defer l.asks.mu.Unlock()
	if l.asks.counts {
		l.asks.inodes = append(l.asks.inodes, out.Attr.Ino)
	}
	return status
}

// asked gives what the kernel asks for while f runs.
func (m *mounted) asked(f func()) (names []string, inodes []uint64) {
	a := &m.asks
	set := func(counts bool) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.counts = counts; counts {
			a.names, a.inodes = nil, nil
		}
		names, inodes = a.names, a.inodes
	}
	set(true)
	f()
	set(false)
	return names, inodes
}

func mount(t *testing.T, change func(*nodes.Options)) *mounted {
	t.Helper()
	return mountWith(t, change, func(p providers.Provider) providers.Provider { return p })
}

// mountWith is mount with something around the provider.
func mountWith(t *testing.T, change func(*nodes.Options), around func(providers.Provider) providers.Provider) *mounted {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounting here needs root; the tests of the command mount as an ordinary user")
	}
	ctx := context.Background()
	k, err := kim.Open(ctx, kim.Options{
		Dir: filepath.Join(t.TempDir(), "state"),
		Log: slog.New(slog.DiscardHandler),
		Providers: []kim.ProviderConfig{{Name: "software", Type: "Software", Mode: 0755,
			Open: func(ctx context.Context, dir, _ string) (providers.Provider, error) {
				p, err := software.Type.New(ctx, providers.Config{Name: "software", StateDir: dir})
				if err != nil {
					return nil, err
				}
				return around(p), nil
			}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	o := nodes.Options{KIM: k, Version: "test", Dropbox: true, OthersAllowed: true}
	if change != nil {
		change(&o)
	}
	tree := nodes.New(o)
	// Other users come in too, so no parent may keep them out as those of t.TempDir do.
	dir, err := os.MkdirTemp("", "parsecfs-nodes-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0755); err != nil {
		t.Fatal(err)
	}
	m := &mounted{t: t, dir: dir, tree: tree, k: k}
	timeout := time.Second
	if o.Lasting != 0 {
		timeout = 10 * time.Millisecond // of all that does not last
	}
	options := &fs.Options{EntryTimeout: &timeout, AttrTimeout: &timeout, NullPermissions: true,
		RootStableAttr: &fs.StableAttr{Ino: nodes.RootIno}}
	options.MountOptions = fuse.MountOptions{AllowOther: true, DirectMountStrict: true, EnableAcl: true, DisableReadDirPlus: true,
		Options: []string{"default_permissions"}, FsName: "parsecfs", Name: "parsecfs", ExtraCapabilities: fuse.CAP_DONT_MASK | fuse.CAP_ASYNC_DIO}
	server, err := fuse.NewServer(&listening{tree.Wrap(fs.NewNodeFS(tree.Root(), options)), &m.asks}, dir, &options.MountOptions)
	if err != nil {
		t.Fatal(err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tree.Drain(ctx)
		if err := server.Unmount(); err != nil {
			t.Errorf("unmount: %v", err)
			_ = syscall.Unmount(dir, syscall.MNT_DETACH)
		}
		tree.Close()
		if err := k.Close(); err != nil {
			t.Errorf("close the KIM: %v", err)
		}
		if err := os.Remove(dir); err != nil {
			t.Errorf("the mountpoint: %v", err)
		}
	})
	return m
}

func (m *mounted) path(parts ...string) string {
	return filepath.Join(append([]string{m.dir, "providers/software/keys"}, parts...)...)
}

// key makes a key by its template.
func (m *mounted) key(name, template string) {
	m.t.Helper()
	if err := os.Mkdir(m.path(name), 0777); err != nil {
		m.t.Fatal(err)
	}
	m.put(m.path(name, "generate"), template+"\n")
}

func (m *mounted) put(path, text string) {
	m.t.Helper()
	if err := put(path, text); err != nil {
		m.t.Fatal(err)
	}
}

// put is what a shell's > does.
func put(path, text string) error { return write(path, os.O_WRONLY|os.O_TRUNC, text) }

func write(path string, flags int, text string) error {
	f, err := os.OpenFile(path, flags, 0600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

func (m *mounted) get(path string) []byte {
	m.t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		m.t.Fatal(err)
	}
	return b
}

func (m *mounted) public(name string) *ecdsa.PublicKey {
	m.t.Helper()
	block, _ := pem.Decode(m.get(m.path(name, "public.pem")))
	if block == nil {
		m.t.Fatal("no PEM in public.pem")
	}
	pub, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		m.t.Fatal(err)
	}
	return pub.(*ecdsa.PublicKey)
}

func (m *mounted) verify(name, message string, signature []byte) {
	m.t.Helper()
	sum := sha256.Sum256([]byte(message))
	if !ecdsa.VerifyASN1(m.public(name), sum[:], signature) {
		m.t.Fatalf("not a signature of %q: %x", message, signature)
	}
}

func (m *mounted) open(parts ...string) *os.File {
	m.t.Helper()
	f, err := os.OpenFile(m.path(parts...), os.O_RDWR, 0)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { f.Close() })
	return f
}

func wantErrno(t *testing.T, err error, want syscall.Errno) {
	t.Helper()
	var e syscall.Errno
	if !errors.As(err, &e) || e != want {
		t.Helper()
		t.Errorf("got %v, want %v", err, want)
	}
}

// read reads once.
func read(f *os.File) ([]byte, error) {
	b := make([]byte, 8192)
	n, err := f.Read(b)
	return b[:n], err
}

func list(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return strings.Join(names, " ")
}

func TestFilesFollowTheKey(t *testing.T) {
	m := mount(t, nil)
	if err := os.Mkdir(m.path("k"), 0777); err != nil {
		t.Fatal(err)
	}
	if got, want := list(t, m.path("k")), "attributes copy generate import last_error"; got != want {
		t.Errorf("a draft shows %q, want %q", got, want)
	}
	m.put(m.path("k", "generate"), "ecdsa-p256-sha256\n")
	want := "attributes capabilities certificate csr csr.d last_error public.der public.jwk public.pem public.ssh sign sign.d sign_hash sign_hash.d sign_hash_raw sign_hash_raw.d sign_raw sign_raw.d verify verify.d verify_hash verify_hash.d verify_raw verify_raw.d"
	if got := list(t, m.path("k")); got != want {
		t.Errorf("a key shows\n%q, want\n%q", got, want)
	}
	wantErrno(t, put(m.path("k", "generate"), "ecdsa-p256-sha256\n"), syscall.ENOENT)
	m.key("a", "aes-256-gcm")
	if got, want := list(t, m.path("a")), "attributes capabilities decrypt decrypt.d encrypt encrypt.d last_error"; got != want {
		t.Errorf("a secret key shows %q, want %q", got, want)
	}
	if got, want := list(t, m.dir), "README keys last_error providers version"; got != want {
		t.Errorf("the root shows %q, want %q", got, want)
	}
	if got, want := list(t, filepath.Join(m.dir, "providers")), "default software"; got != want {
		t.Errorf("providers/ shows %q, want %q", got, want)
	}
	if got, want := list(t, filepath.Join(m.dir, "providers/default")), "can_do can_do.d capabilities capabilities.json hash info keys mine random status templates users"; got != want {
		t.Errorf("a provider shows %q, want %q", got, want)
	}
}

func TestOneOpenIsOneTransaction(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	f := m.open("k", "sign")
	for _, message := range []string{"one", "two", "three"} {
		if _, err := f.WriteString(message); err != nil {
			t.Fatal(err)
		}
		answer, err := read(f)
		if err != nil {
			t.Fatal(err)
		}
		m.verify("k", message, answer)
	}
	if _, err := f.WriteString("unread"); err != nil {
		t.Fatal(err)
	}
	half := make([]byte, 10)
	if _, err := f.Read(half); err != nil {
		t.Fatal(err)
	}
	_, err := f.WriteString("over it")
	wantErrno(t, err, syscall.EBUSY)
	// the answer is still there, from its beginning
	again := make([]byte, 200)
	n, err := f.ReadAt(again, 0)
	if n == 0 {
		t.Fatal(err)
	}
	m.verify("k", "unread", again[:n])
}

func TestReadWithoutRequest(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	f := m.open("k", "sign")
	_, err := read(f)
	wantErrno(t, err, syscall.ENODATA)
	if err := f.Truncate(0); err != nil {
		t.Fatal(err)
	}
	answer, err := read(f)
	if err != nil {
		t.Fatal(err)
	}
	m.verify("k", "", answer)
	wantErrno(t, f.Truncate(7), syscall.EINVAL)
}

// TestNothingTwiceIsTheEnd: who reads on after an error comes to an end, and a request is an answer as before.
func TestNothingTwiceIsTheEnd(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	slot := m.path("k", "sign.d", "slot")
	if err := write(slot, os.O_WRONLY|os.O_CREATE, ""); err != nil {
		t.Fatal(err)
	}
	for path, flags := range map[string]int{m.path("k", "sign"): os.O_RDWR, slot: os.O_RDWR, m.dir + "/providers/default/can_do": os.O_RDONLY} {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		for range 3 {
			_, err := read(f)
			wantErrno(t, err, syscall.ENODATA)
			if n, err := f.Read(make([]byte, 100)); n != 0 || err != io.EOF {
				t.Errorf("%s: the second READ gave %d bytes, %v", path, n, err)
			}
		}
		if flags == os.O_RDONLY {
			continue
		}
		for _, empty := range []bool{false, true} {
			if empty {
				err = f.Truncate(0)
			} else {
				_, err = read(f) // ENODATA: the next one would be the end
				wantErrno(t, err, syscall.ENODATA)
				_, err = f.WriteString("message")
			}
			if err != nil {
				t.Fatal(err)
			}
			if answer, err := read(f); err != nil || len(answer) != 64 {
				t.Errorf("%s: %d bytes, %v", path, len(answer), err)
			}
		}
	}
}

// TestWalksAskNothing: whoever walks over the files of a key finds operations empty, runs none and leaves no failure behind.
func TestWalksAskNothing(t *testing.T) {
	for _, dropbox := range []bool{true, false} {
		m := mount(t, func(o *nodes.Options) { o.Dropbox = dropbox })
		m.key("k", "ed25519")
		m.key("m", "ml-kem-768")
		if err := os.Mkdir(m.path("m", "encapsulate.d", "x"), 0700); err != nil {
			t.Fatal(err)
		}
		if err := write(m.path("k", "sign.d", "x"), os.O_WRONLY|os.O_CREATE, ""); err != nil {
			t.Fatal(err)
		}
		out := t.TempDir()
		for _, walk := range []string{"! grep -rq no-such-line .", "cp -r . $0/r", "cp -a . $0/a", "find . -ls >/dev/null", "du -a . >/dev/null", "tar -cf $0/tar ."} {
			walk := exec.Command("bash", "-ec", walk, out)
			walk.Dir = m.path()
			if said, err := walk.CombinedOutput(); err != nil {
				t.Errorf("%s: %v\n%s", walk.Args[2], err, said)
			}
		}
		for _, operation := range []string{"k/sign", "k/sign.d/x", "m/encapsulate", "m/encapsulate.d/x/secret"} {
			if b := m.get(filepath.Join(out, "r", operation)); len(b) > 0 {
				t.Errorf("a walk was given %d bytes by %s", len(b), operation)
			}
		}
		if failures := m.get(filepath.Join(m.dir, "last_error")); len(failures) > 0 {
			t.Errorf("walks left failures:\n%s", failures)
		}
	}
}

func TestHolesAndRewindsPoison(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	for _, off := range []int64{0, 3, 4096} {
		f := m.open("k", "sign")
		if _, err := f.WriteAt([]byte("begin"), 100); err != nil {
			t.Fatal(err)
		}
		_, err := f.WriteAt([]byte("more"), off)
		wantErrno(t, err, syscall.EINVAL)
		_, err = f.WriteAt([]byte("more"), 105)
		wantErrno(t, err, syscall.EINVAL)
		_, err = read(f)
		wantErrno(t, err, syscall.EINVAL)
		if err := f.Truncate(0); err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("fresh"), 0); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 100)
		n, err := f.ReadAt(b, 0)
		if n == 0 {
			t.Fatal(err)
		}
		m.verify("k", "fresh", b[:n])
	}
}

func TestAppendIgnoresOffsets(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	f, err := os.OpenFile(m.path("k", "sign"), os.O_RDWR|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range []string{"ap", "pen", "ded"} {
		if _, err := f.WriteString(p); err != nil {
			t.Fatal(err)
		}
	}
	answer, err := read(f)
	if err != nil {
		t.Fatal(err)
	}
	m.verify("k", "appended", answer)
}

func TestLargeMessageStreams(t *testing.T) {
	// The stages of both keys fit: the first one is held until its RELEASE, which comes after close returned.
	m := mount(t, func(o *nodes.Options) { o.BodyLimit, o.BufferPerUser = 4096, 256<<10 })
	m.key("k", "ecdsa-p256-sha256")
	m.key("e", "ed25519")
	message := strings.Repeat("0123456789abcdef", 1<<16)
	f := m.open("k", "sign")
	if _, err := f.WriteString(message); err != nil {
		t.Fatal(err)
	}
	answer, err := read(f)
	if err != nil {
		t.Fatal(err)
	}
	m.verify("k", message, answer)
	e := m.open("e", "sign")
	_, err = e.WriteString(message)
	wantErrno(t, err, syscall.EFBIG)
	_, err = read(e)
	wantErrno(t, err, syscall.EFBIG)
	d := m.open("k", "sign_hash")
	_, err = d.Write(make([]byte, 65))
	wantErrno(t, err, syscall.EFBIG)
}

func TestVerify(t *testing.T) {
	m := mount(t, nil)
	for _, template := range []string{"ecdsa-p256-sha256", "ed25519", "rsa-2048-pss-sha256"} {
		name := "k-" + template
		m.key(name, template)
		f := m.open(name, "sign")
		if _, err := f.WriteString("message"); err != nil {
			t.Fatal(err)
		}
		signature, err := read(f)
		if err != nil {
			t.Fatal(err)
		}
		for message, want := range map[string]syscall.Errno{"message": 0, "massage": syscall.EBADMSG, "": syscall.EBADMSG} {
			v := m.open(name, "verify")
			if _, err := v.Write(signature); err != nil {
				t.Fatal(err)
			}
			if _, err := v.WriteString(message); err != nil {
				t.Fatal(err)
			}
			answer, err := read(v)
			if want != 0 {
				wantErrno(t, err, want)
			} else if string(answer) != "valid\n" {
				t.Errorf("%s: %q, %v", template, answer, err)
			}
		}
		v := m.open(name, "verify")
		if _, err := v.Write(signature[:5]); err != nil {
			t.Fatal(err)
		}
		_, err = read(v)
		wantErrno(t, err, syscall.EBADMSG)

		slot := m.path(name, "verify.d", "x")
		if err := os.Mkdir(slot, 0700); err != nil {
			t.Fatal(err)
		}
		m.put(filepath.Join(slot, "message"), "message")
		_, err = os.ReadFile(filepath.Join(slot, "result"))
		wantErrno(t, err, syscall.ENODATA)
		m.put(filepath.Join(slot, "message"), "message")
		m.put(filepath.Join(slot, "signature"), string(signature))
		if got := m.get(filepath.Join(slot, "result")); string(got) != "valid\n" {
			t.Errorf("%s: slot says %q", template, got)
		}
		if err := os.Remove(slot); err != nil {
			t.Fatal(err)
		}
	}
}

func TestEncryptSlots(t *testing.T) {
	m := mount(t, nil)
	m.key("a", "aes-256-gcm")
	f := m.open("a", "encrypt")
	if _, err := f.WriteString("plain"); err != nil {
		t.Fatal(err)
	}
	sealed, err := read(f)
	if err != nil || len(sealed) != 12+5+16 {
		t.Fatalf("%x, %v", sealed, err)
	}
	d := m.open("a", "decrypt")
	if _, err := d.Write(sealed); err != nil {
		t.Fatal(err)
	}
	if plain, err := read(d); string(plain) != "plain" {
		t.Fatalf("%q, %v", plain, err)
	}
	sealed[20] ^= 1
	d = m.open("a", "decrypt")
	if _, err := d.Write(sealed); err != nil {
		t.Fatal(err)
	}
	_, err = read(d)
	wantErrno(t, err, syscall.EBADMSG)

	slot := m.path("a", "encrypt.d", "x")
	if err := os.Mkdir(slot, 0700); err != nil {
		t.Fatal(err)
	}
	m.put(filepath.Join(slot, "additional_data"), "header")
	m.put(filepath.Join(slot, "plaintext"), "in a slot")
	nonce := m.get(filepath.Join(slot, "nonce"))
	ciphertext := m.get(filepath.Join(slot, "ciphertext"))
	if len(nonce) != 12 || len(ciphertext) != 9+16 {
		t.Fatalf("nonce %x, ciphertext %x", nonce, ciphertext)
	}
	back := m.path("a", "decrypt.d", "x")
	if err := os.Mkdir(back, 0700); err != nil {
		t.Fatal(err)
	}
	fill := func(additional string) ([]byte, error) {
		m.put(filepath.Join(back, "nonce"), string(nonce))
		m.put(filepath.Join(back, "additional_data"), additional)
		m.put(filepath.Join(back, "ciphertext"), string(ciphertext))
		return os.ReadFile(filepath.Join(back, "plaintext"))
	}
	if plain, err := fill("header"); string(plain) != "in a slot" {
		t.Fatalf("%q, %v", plain, err)
	}
	_, err = fill("other")
	wantErrno(t, err, syscall.EBADMSG)
	// after an answer a changed input starts anew: nothing of the old request is used again
	m.put(filepath.Join(slot, "plaintext"), "next")
	if again := m.get(filepath.Join(slot, "nonce")); bytes.Equal(again, nonce) {
		t.Error("a nonce was used twice")
	}
}

func TestSlots(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	slot := m.path("k", "sign.d", "mine")
	if err := write(slot, os.O_WRONLY|os.O_CREATE|os.O_EXCL, "by opens"); err != nil {
		t.Fatal(err)
	}
	m.verify("k", "by opens", m.get(slot))
	m.verify("k", "by opens", m.get(slot))
	m.put(slot, "again")
	m.verify("k", "again", m.get(slot))
	if err := write(slot, os.O_WRONLY|os.O_CREATE|os.O_EXCL, ""); !errors.Is(err, syscall.EEXIST) {
		t.Errorf("created twice: %v", err)
	}
	if out, err := exec.Command("setpriv", "--reuid", "65534", "--clear-groups", "cat", slot).CombinedOutput(); err == nil {
		t.Errorf("another user read a slot: %q", out)
	}
	if err := os.Chmod(m.path("k", "sign"), 0666); err != nil {
		t.Fatal(err)
	}
	others := m.path("k", "sign.d", "others")
	if out, err := exec.Command("setpriv", "--reuid", "65534", "--clear-groups", "sh", "-c", `: >"$0"; ls "${0%/*}"`, others).CombinedOutput(); err != nil || string(out) != "others\n" {
		t.Errorf("another user sees %q, %v", out, err)
	}
	if got := list(t, m.path("k", "sign.d")); got != "mine" {
		t.Errorf("a user sees the slots %q", got)
	}
	// what cp -p, install and mv do to what they have copied
	for _, mode := range []os.FileMode{0600, 0640} {
		err := os.Chmod(slot, mode)
		if mode != 0600 {
			wantErrno(t, err, syscall.EPERM)
		} else if err := errors.Join(err, os.Chown(slot, 0, 0), os.Chown(slot, -1, -1)); err != nil {
			t.Error(err)
		}
	}
	wantErrno(t, os.Chown(slot, 1, -1), syscall.EPERM)
	if err := os.Remove(slot); err != nil {
		t.Fatal(err)
	}
	_, err := os.ReadFile(slot)
	wantErrno(t, err, syscall.ENOENT)
	wantErrno(t, os.Mkdir(m.path("k", "sign.d", "dir"), 0700), syscall.EPERM)
	wantErrno(t, write(m.path("k", "verify.d", "file"), os.O_WRONLY|os.O_CREATE, ""), syscall.EPERM)
	wantErrno(t, write(m.path("k", "sign.d", ".hidden"), os.O_WRONLY|os.O_CREATE, ""), syscall.EINVAL)
}

// TestRestOfAnAnswer: whoever is in the middle of an answer that another open of the slot replaces is told so.
func TestRestOfAnAnswer(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	slot := m.path("k", "sign.d", "x")
	if err := write(slot, os.O_WRONLY|os.O_CREATE|os.O_EXCL, "one"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(slot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 40)
	if n, err := f.Read(b); n != 40 || err != nil {
		t.Fatal(n, err)
	}
	m.put(slot, "two")
	n, err := f.Read(b)
	if err == nil {
		t.Fatalf("the rest of an answer that is gone has %d bytes", n)
	}
	wantErrno(t, err, syscall.EBUSY)
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if answer, err := io.ReadAll(f); len(answer) != 64 || err != nil {
		t.Fatal(len(answer), err)
	}
	if err := os.Remove(slot); err != nil {
		t.Fatal(err)
	}
}

// TestPageCacheHoldsNothing: what goes around read(2) is refused, and so falls back to it, and never ends well with
// nothing or gets what the page cache has of somebody else's.
func TestPageCacheHoldsNothing(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	refused := func(f *os.File, message string) {
		t.Helper()
		if n, err := unix.Sendfile(int(out.Fd()), int(f.Fd()), nil, 1<<20); err == nil || n > 0 {
			t.Fatalf("sendfile gave %d bytes, %v", n, err)
		}
		answer, err := read(f)
		if err != nil {
			t.Fatal(err)
		}
		m.verify("k", message, answer)
	}
	for _, size := range []int{1, 4095, 4096, 4097, 8192, 70000, 1 << 20} {
		message := strings.Repeat("x", size)
		f := m.open("k", "sign")
		if _, err := f.WriteString(message); err != nil {
			t.Fatal(err)
		}
		// somebody else's transaction at another position, and a stat in between
		other := m.open("k", "sign")
		if _, err := other.WriteString(strings.Repeat("y", 4096)); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(m.path("k", "sign")); err != nil {
			t.Fatal(err)
		}
		refused(f, message)
		refused(other, strings.Repeat("y", 4096))
		other.Close()
		f.Close()
	}
	slot := m.path("k", "sign.d", "s")
	if err := write(slot, os.O_WRONLY|os.O_CREATE, "in a slot"); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(slot)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	refused(f, "in a slot")
	if err := os.Remove(slot); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED); err == nil {
		t.Log("mmap is not refused; a page of it is (SIGBUS)")
	}
	// at rest a transaction file is as long as files in /proc
	for deadline := time.Now().Add(10 * time.Second); ; {
		info, err := os.Stat(m.path("k", "sign"))
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() == 0 {
			break
		}
		// the kernel sends RELEASE behind close(2)'s back
		if time.Now().After(deadline) {
			t.Fatalf("the size stays %d", info.Size())
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestDropBox(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	shell := func(script string) ([]byte, error) {
		c := exec.Command("bash", "-c", script)
		c.Dir = m.path("k")
		return c.Output()
	}
	for script, message := range map[string]string{
		"echo -n hi > sign; cat sign":                    "hi",
		"printf old > sign; printf new > sign; cat sign": "new",
		"printf ab | dd bs=1 of=sign conv=notrunc,fsync 2>/dev/null; s=$(cat sign | base64 -w0); echo $s | base64 -d": "ab",
		"{ printf a; printf b; } > sign; cat < sign":                                                                  "ab",
		"(printf sub > sign); cat sign":                                                                               "sub",
	} {
		answer, err := shell(script)
		if err != nil {
			t.Errorf("%s: %v", script, err)
			continue
		}
		m.verify("k", message, answer)
	}
	for _, script := range []string{
		"cat sign",
		"echo -n hi > sign; cat sign >/dev/null; cat sign",
		": > sign; cat sign",
		"printf OLD >sign; cat missing >sign; cat sign",
	} {
		if answer, err := shell(script); err == nil || len(answer) > 0 {
			t.Errorf("%s: %x, %v", script, answer, err)
		}
	}
}

func TestDropBoxOff(t *testing.T) {
	m := mount(t, func(o *nodes.Options) { o.Dropbox = false })
	m.key("k", "ecdsa-p256-sha256")
	wantErrno(t, put(m.path("k", "sign"), "x"), syscall.EOPNOTSUPP)
}

func TestStages(t *testing.T) {
	m := mount(t, nil)
	draft := func(name string) {
		t.Helper()
		if err := os.Mkdir(m.path(name), 0777); err != nil {
			t.Fatal(err)
		}
	}
	draft("no-newline")
	m.put(m.path("no-newline", "generate"), "ecdsa-p256-sha256")
	m.public("no-newline")

	draft("pieces")
	f, err := os.OpenFile(m.path("pieces", "generate"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"ecdsa-p2", "56-sha256"} {
		if _, err := f.WriteString(p); err != nil {
			t.Fatal(err)
		}
	}
	wantErrno(t, f.Close(), syscall.EINVAL)
	if got := list(t, m.path("pieces")); !strings.Contains(got, "generate") {
		t.Errorf("an incomplete stage changed the draft: %q", got)
	}

	draft("wrong")
	wantErrno(t, put(m.path("wrong", "generate"), "ecdsa-p257-sha256\n"), syscall.EINVAL)
	wantErrno(t, put(m.path("wrong", "generate"), "\n"), syscall.EINVAL)
	wantErrno(t, put(m.path("wrong", "attributes"), "template = \"rsa-2048-pss-sha256\"\ncolour = 1\n"), syscall.EINVAL)
	m.put(m.path("wrong", "attributes"), "template = \"ecdsa-p256-sha256\"\n")
	m.put(m.path("wrong", "attributes"), "usage = [\n\"PSA_KEY_USAGE_SIGN_MESSAGE\", \"PSA_KEY_USAGE_EXPORT\"]\n")
	m.put(m.path("wrong", "generate"), "\n")
	if got := list(t, m.path("wrong")); strings.Contains(got, "verify") || strings.Contains(got, "sign_hash") || !strings.Contains(got, "export") {
		t.Errorf("the usage of attributes was not taken: %q", got)
	}
	wantErrno(t, put(m.path("wrong", "attributes"), "usage = \"PSA_KEY_USAGE_SIGN_HASH\"\n"), syscall.EACCES)

	e := m.open("wrong", "export")
	if _, err := e.WriteString("pkcs8\n"); err != nil {
		t.Fatal(err)
	}
	exported, err := read(e)
	if err != nil || !bytes.Contains(exported, []byte("BEGIN PRIVATE KEY")) {
		t.Fatalf("%d bytes, %v", len(exported), err)
	}
	draft("back")
	g, err := os.OpenFile(m.path("back", "import"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range exported {
		if _, err := g.Write(exported[i : i+1]); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	if !m.public("back").Equal(m.public("wrong")) {
		t.Error("an exported key came back as another")
	}
	draft("half")
	wantErrno(t, put(m.path("half", "import"), string(exported[:100])), syscall.EINVAL)
	// What can be the beginning of nothing is refused by the WRITE: what a close answers, a shell throws away.
	for _, c := range []struct{ file, text string }{
		{"generate", "ed2559"}, {"generate", "garbage"}, {"import", "garbage\n"}, {"import", "garbage"}, {"import", "id=zz\n"},
		{"import", "id=0xA2G\n"}, {"import", "id=a:1\n"}, {"import", "label=x\n"}, {"import", "handle=81\n"}, {"import", "ecdsa-p256-sha256\n"},
		{"import", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIA== me\n"}, {"import", "{\"kty\":\"OKP\",\"crv\":\"Ed25519\"}\n"}, {"import", "\x1f\x8b\x08"},
	} {
		f, err := os.OpenFile(m.path("half", c.file), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.WriteString(c.text)
		wantErrno(t, err, syscall.EINVAL)
		if err := f.Close(); err != nil {
			t.Errorf("%q, closed: %v", c.text, err)
		}
		wantErrno(t, put(m.path("half", c.file), c.text), syscall.EINVAL)
	}
	// What may go on waits, and fails at the close.
	for _, c := range []struct{ file, text string }{
		{"generate", "ecdsa-p2"}, {"generate", "templ"}, {"import", "id="}, {"import", "Bag Attributes\n"}, {"import", "a: text\n"}, {"import", "two\nlines\n"},
	} {
		f, err := os.OpenFile(m.path("half", c.file), os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = f.WriteString(c.text); err != nil {
			t.Errorf("%q: %v", c.text, err)
		}
		wantErrno(t, f.Close(), syscall.EINVAL)
	}
	if got := list(t, m.path("half")); !strings.Contains(got, "import") {
		t.Errorf("half a key was stored: %q", got)
	}
}

func TestRenameAndDestroy(t *testing.T) {
	m := mount(t, nil)
	m.key("a", "ecdsa-p256-sha256")
	m.key("b", "ecdsa-p256-sha256")
	pa, pb := m.public("a"), m.public("b")
	f := m.open("a", "sign")
	wantErrno(t, os.Rename(m.path("a"), m.path("b")), syscall.EEXIST)
	if err := os.Rename(m.path("a"), m.path("c")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("renamed"); err != nil {
		t.Fatal(err)
	}
	answer, err := read(f)
	if err != nil {
		t.Fatal(err)
	}
	m.verify("c", "renamed", answer)
	if !m.public("c").Equal(pa) {
		t.Error("a rename changed the key")
	}
	wantErrno(t, os.Rename(m.path("c"), filepath.Join(m.dir, "keys", "c")), syscall.EPERM)
	wantErrno(t, os.Remove(m.path("c", "sign")), syscall.EPERM)
	if out, err := exec.Command("rm", "-r", m.path("c")).CombinedOutput(); err == nil {
		t.Errorf("rm -r destroyed a key: %s", out)
	}
	if err := exec.Command("python3", "-c", `
import ctypes, sys, os
c = ctypes.CDLL(None, use_errno=True)
if c.renameat2(-100, sys.argv[1].encode(), -100, sys.argv[2].encode(), 2): sys.exit(os.strerror(ctypes.get_errno()))
`, m.path("c"), m.path("b")).Run(); err != nil {
		t.Fatal(err)
	}
	if !m.public("b").Equal(pa) || !m.public("c").Equal(pb) {
		t.Error("RENAME_EXCHANGE did not swap")
	}
	if _, err := f.WriteString("before its end"); err != nil {
		t.Fatal(err)
	}
	m.put(m.path("b", "attributes"), "allow_destroy = false\n")
	wantErrno(t, syscall.Rmdir(m.path("b")), syscall.EPERM)
	m.put(m.path("b", "attributes"), "allow_destroy = true\n")
	if err := syscall.Rmdir(m.path("b")); err != nil {
		t.Fatal(err)
	}
	_, err = read(f)
	wantErrno(t, err, syscall.EKEYREVOKED)
	if got := list(t, m.path()); got != "c" {
		t.Errorf("keys/ shows %q", got)
	}
}

func TestNames(t *testing.T) {
	m := mount(t, nil)
	for _, name := range []string{".hidden", "a\nb", "a\x7fb", "bad\xff"} {
		wantErrno(t, os.Mkdir(m.path(name), 0777), syscall.EINVAL)
	}
	m.key("k", "ed25519")
	long := strings.Repeat("x", 256)
	for _, dir := range []string{m.dir, filepath.Join(m.dir, "keys"), m.path(), m.path("k"), m.path("k", "sign.d"), m.path("k", "sign.d", long)} {
		name := filepath.Join(dir, long)
		_, err := os.Lstat(name)
		wantErrno(t, err, syscall.ENAMETOOLONG)
		wantErrno(t, os.Mkdir(name, 0777), syscall.ENAMETOOLONG)
		wantErrno(t, os.Symlink("target", name), syscall.ENAMETOOLONG)
		wantErrno(t, write(name, os.O_WRONLY|os.O_CREATE, ""), syscall.ENAMETOOLONG)
		wantErrno(t, os.Rename(m.path("k"), name), syscall.ENAMETOOLONG)
	}
	for _, name := range []string{strings.Repeat("x", 255), "Schlüssel", "a b", "-rf"} {
		if err := syscall.Mkdir(m.path(name), 0777); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	wantErrno(t, os.Mkdir(m.path("a b"), 0777), syscall.EEXIST)
}

func TestAliases(t *testing.T) {
	m := mount(t, nil)
	m.key("one", "ecdsa-p256-sha256")
	m.key("two", "ecdsa-p256-sha256")
	alias := filepath.Join(m.dir, "keys", "web")
	for _, name := range []string{"one", "two"} {
		if out, err := exec.Command("ln", "-sfn", "../providers/software/keys/"+name, alias).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if !bytes.Equal(m.get(filepath.Join(alias, "public.pem")), m.get(m.path(name, "public.pem"))) {
			t.Errorf("the alias does not lead to %s", name)
		}
	}
	if got := list(t, filepath.Join(m.dir, "keys")); got != "web" {
		t.Errorf("keys/ shows %q", got)
	}
	if err := os.Remove(alias); err != nil {
		t.Fatal(err)
	}
	wantErrno(t, os.Symlink("x", m.path("link")), syscall.EPERM)
	wantErrno(t, syscall.Mkfifo(m.path("pipe"), 0600), syscall.EPERM)
	wantErrno(t, os.Link(m.path("one", "public.pem"), m.path("one", "hard")), syscall.EPERM)
}

func TestRandomEnds(t *testing.T) {
	m := mount(t, nil)
	a := m.get(filepath.Join(m.dir, "providers/default/random"))
	b := m.get(filepath.Join(m.dir, "providers/default/random"))
	if len(a) != 64<<10 || bytes.Equal(a, b) {
		t.Errorf("%d bytes, equal %v", len(a), bytes.Equal(a, b))
	}
}

func TestOthersStayOut(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ecdsa-p256-sha256")
	other := func(command string) error {
		return exec.Command("setpriv", "--reuid", "65534", "--clear-groups", "bash", "-c", "cd '"+m.path()+"' && "+command).Run()
	}
	for _, command := range []string{"echo x > k/sign", "cat k/sign", "echo x > k/sign.d/x", "rmdir k", "mv k j", "mkdir k/verify.e", "chmod 666 k/sign"} {
		if other(command) == nil {
			t.Errorf("a stranger may %s", command)
		}
	}
	for _, command := range []string{"cat k/public.pem", "mkdir theirs && echo ed25519 > theirs/generate && rmdir theirs", "mkdir k/verify.d/x && rmdir k/verify.d/x"} {
		if err := other(command); err != nil {
			t.Errorf("a stranger may not %s: %v", command, err)
		}
	}
	if err := other("umask 077; mkdir private; umask 0; mkdir open"); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{"private": 0700, "open": 0755} {
		s, err := os.Stat(m.path(name))
		if err != nil {
			t.Fatal(err)
		}
		if s.Mode().Perm() != want {
			t.Errorf("%s has mode %o, want %o", name, s.Mode().Perm(), want)
		}
	}
}

// trail keeps what it is told.
type trail struct {
	mu     sync.Mutex
	events []nodes.AuditEvent
}

func (*trail) Ready(uint32, nodes.AuditClass) error { return nil }

func (a *trail) Record(e nodes.AuditEvent, tell func(*nodes.AuditEvent)) {
	tell(&e)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.events = append(a.events, e)
}

// TestTrailNamesTheFile: the audit trail has the file that was used, a slot's too.
func TestTrailNamesTheFile(t *testing.T) {
	a := &trail{}
	m := mount(t, func(o *nodes.Options) { o.Audit = a })
	m.key("k", "ecdsa-p256-sha256")
	for _, file := range []string{"sign", "sign.d/x"} {
		if err := write(m.path("k", file), os.O_WRONLY|os.O_CREATE, "message"); err != nil {
			t.Fatal(err)
		}
		m.get(m.path("k", file))
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	var files []string
	for _, e := range a.events {
		if e.Operation == "sign" {
			files = append(files, e.File)
		}
	}
	if !slices.Equal(files, []string{"sign", "sign.d/x"}) {
		t.Errorf("signed through %q", files)
	}
}

// TestFsync: there is nothing that could still be lost, whatever is open.
func TestFsync(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	if err := os.Mkdir(m.path("draft"), 0777); err != nil {
		t.Fatal(err)
	}
	if err := write(m.path("k", "sign.d", "slot"), os.O_WRONLY|os.O_CREATE, ""); err != nil {
		t.Fatal(err)
	}
	provider := filepath.Join(m.dir, "providers/software")
	for path, flags := range map[string]int{
		m.dir: os.O_RDONLY, filepath.Join(m.dir, "keys"): os.O_RDONLY, filepath.Join(m.dir, "README"): os.O_RDONLY,
		filepath.Join(m.dir, "last_error"): os.O_RDONLY, provider: os.O_RDONLY, filepath.Join(provider, "status"): os.O_RDONLY,
		filepath.Join(provider, "random"): os.O_RDONLY, filepath.Join(provider, "hash"): os.O_RDONLY, filepath.Join(provider, "capabilities"): os.O_RDONLY,
		m.path(): os.O_RDONLY, m.path("k"): os.O_RDONLY, m.path("k", "public.pem"): os.O_RDONLY, m.path("k", "attributes"): os.O_RDWR,
		m.path("k", "sign"): os.O_RDWR, m.path("k", "sign.d"): os.O_RDONLY, m.path("k", "sign.d", "slot"): os.O_RDWR, m.path("draft", "generate"): os.O_WRONLY,
	} {
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Error(err)
			continue
		}
		if err := errors.Join(unix.Fsync(int(f.Fd())), unix.Fdatasync(int(f.Fd()))); err != nil {
			t.Errorf("%s: %v", path, err)
		}
		f.Close()
	}
}

// TestDatesAreClamped: a date that cannot be kept becomes the nearest one, as on every file system.
func TestDatesAreClamped(t *testing.T) {
	m := mount(t, nil)
	m.key("k", "ed25519")
	for year, want := range map[int]int{1600: 1677, 1999: 1999, 2262: 2262, 2300: 2262} {
		at := unix.Timespec{Sec: time.Date(year, 1, 1, 12, 0, 0, 0, time.UTC).Unix()} // os.Chtimes has no such dates
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, m.path("k", "public.pem"), []unix.Timespec{at, at}, 0); err != nil {
			t.Errorf("%d: %v", year, err)
			continue
		}
		info, err := os.Stat(m.path("k", "public.pem"))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.ModTime().UTC(); got.Year() != want {
			t.Errorf("%d became %v", year, got)
		}
	}
}

// names reads what is left of an open directory.
func names(t *testing.T, f *os.File) []string {
	t.Helper()
	list, err := f.Readdirnames(-1)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func TestDirectoriesRewind(t *testing.T) {
	m := mount(t, nil)
	const most = 1200 // three pages
	for i := range most {
		if err := os.Mkdir(m.path(fmt.Sprintf("key-%04d", i)), 0777); err != nil {
			t.Fatal(err)
		}
	}
	m.key("k", "ed25519")
	if err := write(m.path("k", "sign.d", "slot"), os.O_WRONLY|os.O_CREATE, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(m.path("k", "verify.d", "slot"), 0700); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{m.dir, filepath.Join(m.dir, "keys"), filepath.Join(m.dir, "providers"), filepath.Join(m.dir, "providers/software"),
		filepath.Join(m.dir, "providers/software/hash"), m.path(), m.path("k"), m.path("k", "sign.d"), m.path("k", "verify.d", "slot")} {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		first := names(t, f)
		for range 2 {
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if again := names(t, f); !slices.Equal(first, again) {
				t.Errorf("%s: %d names, and again %d", dir, len(first), len(again))
			}
		}
		f.Close()
	}

	// each place that getdents(2) gave leads to the rest, also beside changes
	f, err := os.Open(m.path())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := entries(t, f)
	if len(all) != most+1 {
		t.Fatalf("%d names", len(all))
	}
	for _, i := range []int{0, 1, 511, 512, 513, 700, 1023, 1024, most} {
		if _, err := f.Seek(all[i].off, io.SeekStart); err != nil {
			t.Fatal(err)
		}
		if rest := entries(t, f); !slices.Equal(rest, all[i+1:]) {
			t.Errorf("behind name %d there are %d names, want %d", i, len(rest), len(all)-i-1)
		}
	}
	if _, err := f.Seek(all[most].off+1000, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Getdents(int(f.Fd()), make([]byte, 4096)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("behind the end: %v", err)
	}

	// what comes behind a place does not depend on what has gone before it
	if _, err := f.Seek(all[600].off, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	entries(t, f)
	for _, gone := range []string{all[most-100].name, all[most-200].name} {
		if err := os.Remove(m.path(gone)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.Seek(all[most-50].off, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if rest := entries(t, f); !slices.Equal(rest, all[most-49:]) {
		t.Errorf("behind a name after others have gone there are %d names, want 49", len(rest))
	}
	for _, again := range []string{all[most-100].name, all[most-200].name} {
		if err := os.Mkdir(m.path(again), 0o755); err != nil {
			t.Fatal(err)
		}
	}

	// a rewound directory is what it is now, an empty one too
	slots, err := os.Open(m.path("k", "csr.d"))
	if err != nil {
		t.Fatal(err)
	}
	defer slots.Close()
	if got := names(t, slots); len(got) != 0 {
		t.Fatal(got)
	}
	if err := write(m.path("k", "csr.d", "new"), os.O_WRONLY|os.O_CREATE, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := slots.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got := names(t, slots); !slices.Equal(got, []string{"new"}) {
		t.Errorf("after a rewind: %q", got)
	}
	if err := os.Remove(m.path("key-0000")); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	if got := entries(t, f); len(got) != most || slices.ContainsFunc(got, func(e entry) bool { return e.name == "key-0000" }) {
		t.Errorf("after a rewind there are %d names", len(got))
	}
}

type entry struct {
	name string
	off  int64
}

// entries reads what is left of a directory, with the places that seekdir(3) goes to.
func entries(t *testing.T, f *os.File) (list []entry) {
	t.Helper()
	b := make([]byte, 4096)
	for {
		n, err := unix.Getdents(int(f.Fd()), b)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			return list
		}
		for rest := b[:n]; len(rest) > 0; {
			length := binary.NativeEndian.Uint16(rest[16:])
			name, _, _ := bytes.Cut(rest[19:length], []byte{0})
			list = append(list, entry{string(name), int64(binary.NativeEndian.Uint64(rest[8:]))})
			rest = rest[length:]
		}
	}
}
