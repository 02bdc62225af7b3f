package nodes_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

// unmounted is a tree over the software provider that requests are handed to without a kernel.
type unmounted struct {
	testing.TB
	raw    fuse.RawFileSystem
	prompt *nodes.Prompt
	caller fuse.Caller
	in     struct { // as a server keeps them for all requests
		open    fuse.OpenIn
		opened  fuse.OpenOut
		write   fuse.WriteIn
		read    fuse.ReadIn
		release fuse.ReleaseIn
	}
}

// noKernel takes the notifications that nobody waits for.
type noKernel struct{}

func (noKernel) DeleteNotify(uint64, uint64, string) fuse.Status             { return fuse.OK }
func (noKernel) EntryNotify(uint64, string) fuse.Status                      { return fuse.OK }
func (noKernel) InodeNotify(uint64, int64, int64) fuse.Status                { return fuse.OK }
func (noKernel) InodeRetrieveCache(uint64, int64, []byte) (int, fuse.Status) { return 0, fuse.ENODATA }
func (noKernel) InodeNotifyStoreCache(uint64, int64, []byte) fuse.Status     { return fuse.OK }

func newUnmounted(t testing.TB) *unmounted {
	t.Helper()
	return newUnmountedOver(t, func(p providers.Provider) providers.Provider { return p })
}

// newUnmountedOver has another provider above software.
func newUnmountedOver(t testing.TB, over func(providers.Provider) providers.Provider) *unmounted {
	t.Helper()
	ctx := context.Background()
	k, err := kim.Open(ctx, kim.Options{
		Dir: filepath.Join(t.TempDir(), "state"),
		Log: slog.New(slog.DiscardHandler),
		Providers: []kim.ProviderConfig{{Name: "software", Type: "Software", Mode: 0755,
			Open: func(ctx context.Context, dir, _ string) (providers.Provider, error) {
				p, err := software.Type.New(ctx, providers.Config{Name: "software", StateDir: dir})
				return over(p), err
			}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	tree := nodes.New(nodes.Options{KIM: k, Version: "test", Dropbox: true, OthersAllowed: true})
	second := time.Second
	u := &unmounted{TB: t}
	u.caller = fuse.Caller{Owner: fuse.Owner{Uid: uint32(os.Getuid()), Gid: uint32(os.Getgid())}, Pid: uint32(os.Getpid())}
	u.prompt = tree.Prompt(tree.Wrap(fs.NewNodeFS(tree.Root(), &fs.Options{EntryTimeout: &second, AttrTimeout: &second, NullPermissions: true,
		RootStableAttr: &fs.StableAttr{Ino: nodes.RootIno}, ServerCallbacks: noKernel{}})))
	u.raw = u.prompt
	t.Cleanup(func() {
		tree.Close()
		if err := k.Close(); err != nil {
			t.Errorf("close the KIM: %v", err)
		}
	})
	return u
}

func (u *unmounted) must(status fuse.Status) {
	if !status.Ok() {
		u.Helper() // it takes a lock that all share
		u.Fatal(status)
	}
}

func (u *unmounted) header(node uint64) fuse.InHeader {
	return fuse.InHeader{NodeId: node, Caller: u.caller}
}

// walk looks names up from the root on.
func (u *unmounted) walk(names ...string) uint64 {
	u.Helper()
	node := uint64(fuse.FUSE_ROOT_ID)
	for _, name := range names {
		var out fuse.EntryOut
		in := u.header(node)
		u.must(u.raw.Lookup(nil, &in, name, &out))
		node = out.NodeId
	}
	return node
}

// key makes a key, and gives its directory.
func (u *unmounted) key(name, template string) uint64 {
	u.Helper()
	keys := u.walk("providers", "software", "keys")
	var out fuse.EntryOut
	u.must(u.raw.Mkdir(nil, &fuse.MkdirIn{InHeader: u.header(keys), Mode: 0755}, name, &out))
	generate := u.walk("providers", "software", "keys", name, "generate")
	fh := u.open(generate, os.O_WRONLY)
	u.write(generate, fh, []byte(template+"\n"), 0)
	u.release(generate, fh)
	return out.NodeId
}

func (u *unmounted) open(node uint64, flags int) uint64 {
	u.in.open = fuse.OpenIn{InHeader: u.header(node), Flags: uint32(flags)}
	u.must(u.raw.Open(nil, &u.in.open, &u.in.opened))
	return u.in.opened.Fh
}

func (u *unmounted) write(node, fh uint64, b []byte, off uint64) {
	u.in.write = fuse.WriteIn{InHeader: u.header(node), Fh: fh, Offset: off, Size: uint32(len(b))}
	_, status := u.raw.Write(nil, &u.in.write, b)
	u.must(status)
}

func (u *unmounted) read(node, fh uint64, b []byte, off uint64) []byte {
	u.in.read = fuse.ReadIn{InHeader: u.header(node), Fh: fh, Offset: off, Size: uint32(len(b)), ReadFlags: fuse.READ_LOCKOWNER}
	result, status := u.raw.Read(nil, &u.in.read, b)
	u.must(status)
	got, status := result.Bytes(b)
	u.must(status)
	result.Done()
	return got
}

func (u *unmounted) release(node, fh uint64) {
	u.in.release = fuse.ReleaseIn{InHeader: u.header(node), Fh: fh}
	u.raw.Release(nil, &u.in.release)
}

// BenchmarkSignature is the whole way of a request but for the kernel: what it allocates counts, not how long it takes.
func BenchmarkSignature(b *testing.B) {
	for _, template := range []string{"ecdsa-p256-sha256", "ed25519", "aes-256-gcm", "hmac-sha256"} {
		name := map[string]string{"aes-256-gcm": "encrypt", "hmac-sha256": "mac"}[template]
		if name == "" {
			name = "sign"
		}
		u := newUnmounted(b)
		u.key("k", template)
		sign := u.walk("providers", "software", "keys", "k", name)
		message, answer := []byte("a message that is signed"), make([]byte, 4096)
		b.Run(template+"/fresh", func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				fh := u.open(sign, os.O_RDWR)
				u.write(sign, fh, message, 0)
				u.read(sign, fh, answer, 0)
				u.release(sign, fh)
			}
		})
		b.Run(template+"/kept", func(b *testing.B) {
			b.ReportAllocs()
			fh, off := u.open(sign, os.O_RDWR), uint64(0)
			for b.Loop() {
				u.write(sign, fh, message, off)
				off += uint64(len(message))
				off += uint64(len(u.read(sign, fh, answer, off)))
			}
			u.release(sign, fh)
		})
	}
}

// BenchmarkSignatures is BenchmarkSignature of many at once, for profiles of what they wait for.
func BenchmarkSignatures(b *testing.B) {
	one := newUnmounted(b)
	one.key("k", "ecdsa-p256-sha256")
	sign := one.walk("providers", "software", "keys", "k", "sign")
	b.SetParallelism(8)
	b.RunParallel(func(next *testing.PB) {
		u := &unmounted{TB: b, raw: one.raw, caller: one.caller}
		answer := make([]byte, 4096)
		for next.Next() {
			fh := u.open(sign, os.O_RDWR)
			u.write(sign, fh, answer[:10], 0)
			u.read(sign, fh, answer, 0)
			u.release(sign, fh)
		}
	})
}

func (u *unmounted) waits(node, fh uint64) bool { return u.waitsFor(15, node, fh) } // FUSE_READ

func (u *unmounted) waitsFor(opcode uint32, node, fh uint64) bool {
	header := u.header(node)
	header.Opcode = opcode
	return !u.prompt.Prompt(&header, binary.NativeEndian.AppendUint64(nil, fh))
}

// TestPromptLinks: a path over default asks for its text each time, and that waits for nothing.
func TestPromptLinks(t *testing.T) {
	t.Parallel()
	u := newUnmounted(t)
	header := u.header(u.walk("providers", "default"))
	header.Opcode = 5 // FUSE_READLINK
	if !u.prompt.Prompt(&header, nil) {
		t.Error("a READLINK waits")
	}
	text, status := u.raw.Readlink(nil, &header)
	u.must(status)
	if string(text) != "software" {
		t.Errorf("default is a link to %q", text)
	}
}

// TestPromptReads: a READ is known to wait or not before it is sent, and to ask changes nothing.
func TestPromptReads(t *testing.T) {
	t.Parallel()
	u := newUnmounted(t)
	for _, x := range []struct {
		template, file, text string
		first, waits         bool // the first one, and those that follow
		never                bool // quick: all READs of such a file count as waiting
	}{
		{"ecdsa-p256-sha256", "sign", "message", false, false, false},
		{"ecdsa-p256-sha256", "sign_hash", strings.Repeat("h", 32), true, false, false}, // it begins with the READ, which opens the key
		{"ed25519", "sign", strings.Repeat("m", 100<<10), true, true, false},            // which is not streamed
		{"rsa-2048-pkcs1v15-sha256", "sign", "message", false, false, false},
		{"rsa-3072-pkcs1v15-sha256", "sign", "message", true, true, true},
		{"aes-256-gcm", "encrypt", "message", true, false, false}, // a nonce is reserved first
		{"hmac-sha256", "mac", strings.Repeat("m", 100<<10), false, false, false},
		{"ecdsa-p256-sha256", "csr", "CN=x", true, true, true},
	} {
		name := x.template + "-" + x.file
		u.key(name, x.template)
		node := u.walk("providers", "software", "keys", name, x.file)
		fh := u.open(node, os.O_RDWR)
		if u.waits(node, fh) != x.never {
			t.Errorf("%s: a READ of nothing waits: %t", name, !x.never)
		}
		answer := make([]byte, 200<<10)
		for i := range 2 {
			fh := u.open(node, os.O_RDWR)
			u.write(node, fh, []byte(x.text), 0)
			want := x.waits
			if i == 0 {
				want = x.first
			}
			for range 3 {
				if u.waits(node, fh) != want {
					t.Errorf("%s: READ number %d waits: %t", name, i, !want)
				}
			}
			if len(u.read(node, fh, answer, 0)) == 0 {
				t.Errorf("%s: no answer", name)
			}
			if u.waits(node, fh) != x.never {
				t.Errorf("%s: a READ of an answer waits: %t", name, !x.never)
			}
			u.release(node, fh)
		}
		u.release(node, fh)
	}
	random := u.walk("providers", "software", "random")
	fh := u.open(random, os.O_RDONLY)
	if !u.waits(random, fh) {
		t.Error("random does not wait")
	}
	u.release(random, fh)
	if !u.waits(random, 1000) {
		t.Error("a file that is not open does not wait")
	}
	// Whoever may have lost a right is looked at.
	key := u.walk("providers", "software", "keys", "ecdsa-p256-sha256-sign")
	sign := u.walk("providers", "software", "keys", "ecdsa-p256-sha256-sign", "sign")
	fh = u.open(sign, os.O_RDWR)
	u.write(sign, fh, []byte("message"), 0)
	in := fuse.SetAttrIn{SetAttrInCommon: fuse.SetAttrInCommon{InHeader: u.header(key), Valid: fuse.FATTR_MODE, Mode: 0700}}
	var out fuse.AttrOut
	u.must(u.raw.SetAttr(nil, &in, &out))
	if !u.waits(sign, fh) {
		t.Error("a READ by somebody who may have lost a right does not wait")
	}
	u.release(sign, fh)
}

// oneAtATime is the software provider with room for one short call, which a message can hold.
type oneAtATime struct {
	providers.Provider
	began, goOn chan struct{}
}

func (p oneAtATime) Describe() providers.Description {
	d := p.Provider.Describe()
	d.Limits.Short = 1
	return d
}

func (p oneAtATime) Slow(op psa.Operation, a psa.Attributes) bool {
	return p.Provider.(providers.Weigher).Slow(op, a)
}

func (p oneAtATime) Quick(op psa.Operation, a psa.Attributes) bool {
	return p.Provider.(providers.Weigher).Quick(op, a)
}

func (p oneAtATime) Open(ctx context.Context, handle providers.Handle, a psa.Attributes, b providers.Blob) (providers.Key, error) {
	k, err := p.Provider.Open(ctx, handle, a, b)
	return oneKey{k, p}, err
}

type oneKey struct {
	providers.Key
	p oneAtATime
}

func (k oneKey) Begin(ctx context.Context, op psa.Op) (psa.Run, error) {
	r, err := k.Key.Begin(ctx, op)
	return &oneRun{Run: r, p: k.p}, err
}

type oneRun struct {
	psa.Run
	p     oneAtATime
	holds bool
}

func (r *oneRun) Write(b []byte) (int, error) {
	r.holds = r.holds || string(b) == "hold"
	return r.Run.Write(b)
}

func (r *oneRun) Finish(ctx context.Context) (psa.Result, error) {
	if r.holds {
		r.p.began <- struct{}{}
		<-r.p.goOn
	}
	return r.Run.Finish(ctx)
}

// TestPromptNeedsAPlace: what would have to wait for its turn is not answered by the thread that all on a processor wait for, also
// where the operation only begins with the READ.
func TestPromptNeedsAPlace(t *testing.T) {
	t.Parallel()
	began, goOn := make(chan struct{}), make(chan struct{})
	u := newUnmountedOver(t, func(p providers.Provider) providers.Provider { return oneAtATime{p, began, goOn} })
	const read, ioctl = 15, 39
	type file struct{ node, fh uint64 }
	var asked, called []file
	u.key("ec", "ecdsa-p256-sha256")
	u.key("ed", "ed25519")
	u.key("hmac", "hmac-sha256")
	for _, way := range [][2]string{{"ec", "sign"}, {"ec", "sign_hash"}, {"ed", "sign"}, {"hmac", "mac"}} {
		node := u.walk("providers", "software", "keys", way[0], way[1])
		called = append(called, file{node, u.open(node, os.O_RDWR)})
		written := file{node, u.open(node, os.O_RDWR)}
		u.write(node, written.fh, make([]byte, 32), 0)
		asked = append(asked, written)
	}
	wait := func(want bool) {
		t.Helper()
		for _, f := range asked {
			if u.waitsFor(read, f.node, f.fh) != want {
				t.Errorf("a READ waits: %t", !want)
			}
		}
		for _, f := range called {
			if u.waitsFor(ioctl, f.node, f.fh) != want {
				t.Errorf("an ioctl waits: %t", !want)
			}
		}
	}
	wait(false)
	ec := u.walk("providers", "software", "keys", "ec", "sign")
	fh := u.open(ec, os.O_RDWR)
	u.write(ec, fh, []byte("hold"), 0)
	done := make(chan int)
	go func() {
		other := &unmounted{TB: t, raw: u.raw, caller: u.caller}
		done <- len(other.read(ec, fh, make([]byte, 4096), 0))
	}()
	<-began
	wait(true)
	close(goOn)
	if <-done == 0 {
		t.Error("no answer")
	}
	wait(false)
	for _, f := range append(asked, called...) {
		u.release(f.node, f.fh)
	}
	u.release(ec, fh)
}

// TestPromptOpensNoKey: a key is not opened by the thread that all on a processor wait for, whatever begins the request.
func TestPromptOpensNoKey(t *testing.T) {
	t.Parallel()
	u := newUnmounted(t)
	const read, write, ioctl = 15, 16, 39
	for _, file := range []string{"sign", "sign_hash"} {
		u.key(file, "ecdsa-p256-sha256")
		node := u.walk("providers", "software", "keys", file, file)
		fh := u.open(node, os.O_RDWR)
		want := func(opcode uint32, waits bool) {
			t.Helper()
			if u.waitsFor(opcode, node, fh) != waits {
				t.Errorf("%s: a request %d waits: %t", file, opcode, !waits)
			}
		}
		want(write, true)
		want(ioctl, true)
		u.write(node, fh, make([]byte, 32), 0)
		want(read, file == "sign_hash")
		u.read(node, fh, make([]byte, 4096), 0)
		want(write, false)
		want(ioctl, false)
		u.write(node, fh, make([]byte, 32), 0)
		want(read, false)
		u.release(node, fh)
	}
}

// TestDyingClients: whoever is killed in the middle of quick operations leaves nothing behind, and gets nobody else's answer.
func TestDyingClients(t *testing.T) {
	t.Parallel()
	const opens = 8
	m := mount(t, func(o *nodes.Options) { o.TransactionsPerUser = opens })
	m.key("k", "ed25519")
	sign := m.path("k", "sign")
	if err := os.Chmod(sign, 0666); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		var dying []*another
		for range opens / 2 {
			dying = append(dying, user(t, `
fd, answers = os.open(sys.argv[1], os.O_RDWR), set()
while True:
    os.write(fd, b"m")
    answers.add(os.read(fd, 4096))
    print(len(answers), flush=True)
`, sign))
		}
		for _, p := range dying {
			for range 2 {
				if p.line() != 1 {
					t.Error("an answer of somebody else")
				}
			}
		}
		for _, p := range dying {
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			p.end()
		}
	}
	last := user(t, `
import time
end, fds = time.time() + 10, []
while len(fds) < int(sys.argv[2]):
    try:
        fds.append(os.open(sys.argv[1], os.O_RDWR))
    except BlockingIOError: # the kernel tells of an end later
        if time.time() > end:
            raise
for fd in fds:
    os.write(fd, b"m")
print(len({os.read(fd, 4096) for fd in fds}), flush=True)
`, sign, fmt.Sprint(opens))
	if n := last.line(); n != 1 {
		t.Errorf("%d different answers", n)
	}
	last.end()
}
