package nodes

import (
	"bytes"
	"context"
	"encoding/pem"
	"math"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/pelletier/go-toml/v2"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/pki"
)

// textFile is a text that is only read.
//
// Texts go through the page cache, so that they can be mapped, sent by sendfile(2) and read by io_uring as any file: what an inode
// says is the same for all who open it, and an open file keeps nothing of it. The kernel asks for the size, and for the bytes, once
// more after each open.
type textFile struct{ fileNode }

var _ = (fs.NodeOpener)((*textFile)(nil))

// Open is safe because texts hold nothing secret, and last_error only what its reader did.
func (n *textFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.t.fail(ctx, n.place(), "open", gate.Refuse(syscall.EACCES, "this file is read only", ""))
	}
	if n.own && n.reader != callerOf(ctx).UID {
		return nil, 0, syscall.ESTALE // the kernel looks the name up again, for whoever opens it now
	}
	access, err := n.enter(ctx, gate.Read)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	return n.openText(ctx, access)
}

// openText opens what a file says, for reading alone.
func (n *fileNode) openText(ctx context.Context, access *gate.Access) (fs.FileHandle, uint32, syscall.Errno) {
	if _, err := n.render(ctx, justNow); err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	release, err := n.t.machine.Hold(callerOf(ctx).UID, 0)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	return &textHandle{n, access, release}, fuse.FOPEN_NOFLUSH, 0
}

// textHandle is an open text that is only read.
type textHandle struct {
	n       *fileNode
	access  *gate.Access
	release func()
}

var _ = (fs.FileReader)((*textHandle)(nil))

// Read is safe because whoever opened the file may read it: the kernel keeps what it is told for all of them.
func (h *textHandle) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	b, err := h.n.render(ctx, everMade)
	if err == nil {
		err = h.access.Check(ctx, callerOf(ctx))
	}
	if err != nil {
		return nil, h.n.t.fail(ctx, h.n.place(), "read", gone(err))
	}
	return snapshot(b).Read(ctx, dest, off)
}

var _ = (fs.FileReleaser)((*textHandle)(nil))

// Release is the end of the open file.
func (h *textHandle) Release(context.Context) syscall.Errno {
	h.release()
	return 0
}

// render is what a file says, or said at most so long ago.
func (n *fileNode) render(ctx context.Context, most time.Duration) ([]byte, error) {
	v, err := n.view(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.present(v); err != nil || n.row.text == nil {
		return nil, err
	}
	if v.key.Number != 0 && !n.row.always {
		// What a row says cannot be proven while the data key is away, and a wrong public key is worse than none.
		if err := v.t.kim.Err(); err != nil {
			return nil, err
		}
	}
	b, _, err := n.says(v, most)
	return b, err
}

// says is what a file says for a view, or said at most so long ago, and when that came about, if that is not what its key or its
// provider tells.
func (n *fileNode) says(v *view, most time.Duration) (b []byte, changed time.Time, err error) {
	if n.row.asks {
		return v.t.recent(renderingOf{v.provider.Number(), n.row.name}).get(most, func() ([]byte, error) { return n.row.text(v) })
	}
	if n.own {
		changed = v.t.failures.last(v.uid, v.key.Number)
	}
	b, err = n.row.text(v)
	return b, changed, err
}

// last is when the last failure of uid came about; key 0 is all of them.
func (f *failures) last(uid uint32, key int64) (at time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, x := range f.users[uid] {
		if key == 0 || x.key == key {
			at = x.at
		}
	}
	return at
}

// snapshot is a text that does not change.
type snapshot []byte

// Read copies from it.
func (s snapshot) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off < 0 || off >= int64(len(s)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, s[off:])]), 0
}

// How old may be what a device was asked for. stat(2) comes in storms, and none of them is the device's.
const (
	justNow  = 200 * time.Millisecond
	aMoment  = time.Second
	everMade = math.MaxInt64
)

// recent is what a device said last.
type recent struct {
	making sync.Mutex

	mu            sync.Mutex
	text          []byte
	made, changed time.Time
}

// recents are the texts that devices are asked for: two for each provider.
type recents struct {
	mu  sync.Mutex
	all map[renderingOf]*recent
}

func (t *Tree) recent(of renderingOf) *recent {
	t.recents.mu.Lock()
	defer t.recents.mu.Unlock()
	r := t.recents.all[of]
	if r == nil {
		r = &recent{}
		if t.recents.all == nil {
			t.recents.all = map[renderingOf]*recent{}
		}
		t.recents.all[of] = r
	}
	return r
}

// get has one caller at a time ask the device; others are given what it said before, if it ever did.
func (r *recent) get(most time.Duration, ask func() ([]byte, error)) (text []byte, changed time.Time, err error) {
	text, made, changed := r.now()
	if text != nil && time.Since(made) <= most {
		return text, changed, nil
	}
	if !r.making.TryLock() {
		if text != nil {
			return text, changed, nil
		}
		r.making.Lock()
	}
	defer r.making.Unlock()
	if text, made, changed = r.now(); text != nil && time.Since(made) <= most {
		return text, changed, nil
	}
	if text, err = ask(); err != nil {
		return nil, time.Time{}, err
	}
	return text, r.set(text), nil
}

func (r *recent) now() (text []byte, made, changed time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text, r.made, r.changed
}

func (r *recent) set(text []byte) (changed time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.made = time.Now()
	if !bytes.Equal(r.text, text) {
		r.text, r.changed = text, r.made
	}
	return r.changed
}

func (v *view) readme() ([]byte, error) { return v.t.readme, nil }
func (v *view) version() ([]byte, error) {
	return []byte("parsecfs " + v.t.options.Version + "\n"), nil
}

func (v *view) lastError() ([]byte, error) { return v.t.failures.text(v.uid, v.key.Number), nil }

// info is TOML, with the device's facts at its end.
func (v *view) info() ([]byte, error) {
	d := v.provider.Describe()
	text, err := toml.Marshal(struct {
		Name        string `toml:"name"`
		Type        string `toml:"provider_type"`
		UUID        string `toml:"uuid"`
		TypeUUID    string `toml:"type_uuid"`
		Description string `toml:"description"`
		Vendor      string `toml:"vendor"`
		Version     string `toml:"version"`
		Location    string `toml:"location"`
		Hardware    bool   `toml:"hardware"`
	}{v.provider.Name(), d.Type, kim.UUID(v.provider.UUID()), d.TypeUUID, d.Description, d.Vendor, d.Version, d.Location, d.Hardware})
	for _, f := range v.provider.Facts(v.ctx, v.uid) {
		var line []byte
		if line, err = toml.Marshal(struct {
			Value string `toml:"v,multiline"`
		}{f.Value}); err != nil {
			break
		}
		text = append(append(text, f.Name...), line[1:]...)
	}
	return text, err
}

func (v *view) status() ([]byte, error) {
	s := v.provider.Status(v.ctx)
	if !v.t.options.OthersAllowed {
		s += "\nonly the user who mounted can use this mount: user_allow_other is not set in /etc/fuse.conf"
	}
	return []byte(s + "\n"), nil
}

func (v *view) providerCapabilities() ([]byte, error) {
	return v.rendering("capabilities", func(lines []psa.Capability) ([]byte, error) { return psa.CapabilitiesText(psa.WithCSR(lines)), nil })
}

func (v *view) templates() ([]byte, error) {
	return v.rendering("templates", func(lines []psa.Capability) ([]byte, error) {
		return []byte(strings.Join(append(psa.Templates(lines), ""), "\n")), nil
	})
}

// renderings are texts about the capabilities of providers, which all who read them share: they are long, and stat(2) asks for
// their sizes.
type renderings struct {
	mu  sync.Mutex
	all map[renderingOf]rendering
}

type renderingOf struct {
	provider int64
	name     string
}

type rendering struct {
	of   []psa.Capability
	text []byte
}

// rendering is what render makes of the provider's capabilities as they are now.
func (v *view) rendering(name string, render func([]psa.Capability) ([]byte, error)) ([]byte, error) {
	lines, key, r := v.provider.Capabilities(), renderingOf{v.provider.Number(), name}, &v.t.renderings
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.all[key]; ok && same(lines, old.of) {
		return old.text, nil
	}
	b, err := render(lines)
	if err != nil {
		return nil, err
	}
	if r.all == nil {
		r.all = map[renderingOf]rendering{}
	}
	r.all[key] = rendering{lines, b}
	return b, nil
}

func (v *view) capabilitiesJSON() ([]byte, error) {
	return v.rendering("capabilities.json", func(lines []psa.Capability) ([]byte, error) {
		return psa.DriverDescription(strings.ToLower(v.provider.Describe().Type), lines)
	})
}

// keyCapabilities are the provider's lines for this kind of key, with the operations that its policy allows.
func (v *view) keyCapabilities() ([]byte, error) {
	return psa.CapabilitiesText(v.key.Attributes.Capabilities(v.provider.Capabilities())), nil
}

func (v *view) publicPEM() ([]byte, error) {
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: v.key.Public}), nil
}

func (v *view) publicDER() ([]byte, error) { return v.key.Public, nil }

// attributesText is the TOML of attributes.
type attributesText struct {
	Name         string            `toml:"name"`
	State        string            `toml:"state"`
	Template     string            `toml:"template,omitempty"`
	Type         string            `toml:"key_type,omitempty"`
	Bits         int               `toml:"key_bits,omitempty"`
	Algorithm    string            `toml:"permitted_algorithm,omitempty"`
	Usage        []string          `toml:"usage,omitempty"`
	PCRs         []int             `toml:"pcrs,omitempty"`
	Origin       string            `toml:"origin,omitempty"`
	Object       string            `toml:"object,omitempty"`
	Provider     string            `toml:"provider"`
	UUID         string            `toml:"uuid"`
	Created      time.Time         `toml:"created"`
	Expires      time.Time         `toml:"expires,omitempty"`
	AllowDestroy bool              `toml:"allow_destroy"`
	CallerNonce  bool              `toml:"caller_nonce"`
	NoncesLeft   *int64            `toml:"nonces_left,omitempty"`
	Failures     *int64            `toml:"failures,omitempty"`
	Units        []string          `toml:"units,omitempty"`
	Fingerprints *pki.Fingerprints `toml:"fingerprints,omitempty"`
}

func (v *view) attributes() ([]byte, error) {
	k := v.key
	x := attributesText{
		Name: k.Name, State: string(k.State), Template: k.Template, Origin: k.Origin, Object: k.Object, Provider: v.provider.Name(), UUID: kim.UUID(k.ID),
		Created: k.Created.UTC(), AllowDestroy: !k.KeepForever, CallerNonce: k.CallerNonce, Units: k.Units, Bits: k.Attributes.Bits, Usage: k.Attributes.Usage.Names(), PCRs: k.Attributes.PCRs.List(),
	}
	if k.State == kim.Creating || k.State == kim.Destroying {
		x.State = string(kim.Draft)
		if k.State == kim.Destroying {
			x.State = string(kim.Ready)
		}
	}
	if expires, does, err := v.t.kim.Expires(v.ctx, k); err != nil {
		return nil, err
	} else if does {
		x.Expires = expires.UTC()
	}
	if k.State == kim.Ready && k.Attributes.Algorithm.BoundsNonces() && k.Attributes.Usage&psa.UsageEncrypt != 0 {
		left := kim.MaxNonces - k.Nonces
		x.NoncesLeft = &left
	}
	if k.State == kim.Ready && k.Attributes.Algorithm.HasShortTag() {
		x.Failures = &k.Failures
	}
	if k.Attributes.Type != psa.KeyTypeNone {
		x.Type = k.Attributes.Type.String()
	}
	if k.Attributes.Algorithm != psa.AlgNone {
		x.Algorithm = k.Attributes.Algorithm.String()
	}
	if len(k.Public) > 0 {
		x.Fingerprints = pki.FingerprintsOf(k.Public)
	}
	return toml.Marshal(x)
}

// has says whether the public key can be written so.
func has(write func(spki []byte) ([]byte, error)) func(v *view) bool {
	return func(v *view) bool {
		if !asymmetric(v) {
			return false
		}
		_, err := write(v.key.Public)
		return err == nil
	}
}

// publicSSH is a line of authorized_keys, with the key's name as its comment.
func (v *view) publicSSH() ([]byte, error) {
	line, err := pki.SSH(v.key.Public)
	return append(line, " "+v.key.Name+"\n"...), err
}

func (v *view) publicJWK() ([]byte, error) { return pki.JWK(v.key.Public) }
