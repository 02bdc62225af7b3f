package nodes

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/pelletier/go-toml/v2"
	"golang.org/x/crypto/ssh"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// textFile is rendered when it is opened: a reader sees one state from beginning to end.
type textFile struct{ fileNode }

var _ = (fs.NodeOpener)((*textFile)(nil))

// Open is safe because texts hold nothing secret, and last_error only what its reader did.
func (n *textFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.t.fail(ctx, n.place(), "open", refuse(syscall.EACCES, "this file is read only", ""))
	}
	b, err := n.render(ctx)
	if err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	return snapshot(b), fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

func (n *fileNode) render(ctx context.Context) ([]byte, error) {
	v, err := n.view(ctx)
	if err != nil {
		return nil, err
	}
	if err := n.present(v); err != nil || n.row.text == nil {
		return nil, err
	}
	return n.row.text(v)
}

// snapshot is an open text.
type snapshot []byte

var _ = (fs.FileReader)((snapshot)(nil))

// Read copies from what was rendered at open.
func (s snapshot) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	if off < 0 || off >= int64(len(s)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, s[off:])]), 0
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
	}{v.provider.Name(), d.Type, uuid(v.provider.UUID()), d.TypeUUID, d.Description, d.Vendor, d.Version, d.Location, d.Hardware})
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
		s += "\nonly the user who mounted can come in: user_allow_other is not set in /etc/fuse.conf"
	}
	return []byte(s + "\n"), nil
}

func uuid(b [16]byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func capabilityText(lines []psa.Capability) []byte {
	var b bytes.Buffer
	b.WriteString(psa.CapabilitiesHeader + "\n")
	for _, c := range lines {
		b.WriteString(c.String() + "\n")
	}
	return b.Bytes()
}

func (v *view) providerCapabilities() ([]byte, error) {
	return capabilityText(withCSR(v.provider.Capabilities())), nil
}

// withCSR adds to the provider's own operations the one that parsecfs makes of sign.
func withCSR(lines []psa.Capability) []psa.Capability {
	lines = slices.Clone(lines)
	for i, c := range lines {
		if c.Has(psa.Sign) && requestsCertificates(c.Attributes()) {
			lines[i].Operations = append(slices.Clone(c.Operations), psa.CSR)
		}
	}
	psa.SortCapabilities(lines)
	return lines
}

// keyCapabilities are the provider's lines for this kind of key, with the operations that its policy allows.
func (v *view) keyCapabilities() ([]byte, error) {
	a := v.key.Attributes
	var lines []psa.Capability
	for _, c := range withCSR(v.provider.Capabilities()) {
		if !c.Covers(a.Type, a.Bits, a.Algorithm) {
			continue
		}
		var ops []psa.Operation
		for _, op := range c.Operations {
			if op != psa.Generate && op != psa.Import && (op == psa.ExportPublic || v.serves(op)) {
				ops = append(ops, op)
			}
		}
		if len(ops) > 0 {
			c.Operations = ops
			c.Template, c.Bits, c.Most = a.Template(), a.Bits, 0
			lines = append(lines, c)
		}
	}
	// a size to generate lies in the range of those to import
	lines = slices.CompactFunc(lines, func(a, b psa.Capability) bool { return a.String() == b.String() })
	return capabilityText(lines), nil
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
	AllowDestroy bool              `toml:"allow_destroy"`
	CallerNonce  bool              `toml:"caller_nonce"`
	Units        []string          `toml:"units,omitempty"`
	Fingerprints *fingerprintsText `toml:"fingerprints,omitempty"`
}

type fingerprintsText struct {
	SPKI string `toml:"spki_sha256,omitempty"`
	SSH  string `toml:"ssh,omitempty"`
	KID  string `toml:"kid,omitempty"`
}

func (v *view) attributes() ([]byte, error) {
	k := v.key
	x := attributesText{
		Name: k.Name, State: string(k.State), Template: k.Template, Origin: k.Origin, Object: k.Object, Provider: v.provider.Name(), UUID: uuid(k.ID),
		Created: k.Created.UTC(), AllowDestroy: !k.KeepForever, CallerNonce: k.CallerNonce, Units: k.Units, Bits: k.Attributes.Bits, Usage: k.Attributes.Usage.Names(), PCRs: k.Attributes.PCRs.List(),
	}
	if k.State == kim.Creating || k.State == kim.Destroying {
		x.State = string(kim.Draft)
		if k.State == kim.Destroying {
			x.State = string(kim.Ready)
		}
	}
	if k.Attributes.Type != psa.KeyTypeNone {
		x.Type = k.Attributes.Type.String()
	}
	if k.Attributes.Algorithm != psa.AlgNone {
		x.Algorithm = k.Attributes.Algorithm.String()
	}
	if len(k.Public) > 0 {
		x.Fingerprints = fingerprints(k.Public)
	}
	return toml.Marshal(x)
}

// fingerprints of a SubjectPublicKeyInfo: SHA-256 of its DER in hex, OpenSSH's, and the JWK thumbprint of RFC 7638.
// A kind of key that SSH or JWK does not know has none.
func fingerprints(spki []byte) *fingerprintsText {
	sum := sha256.Sum256(spki)
	f := &fingerprintsText{SPKI: hex.EncodeToString(sum[:])}
	pub := parsePublic(spki)
	if s, err := ssh.NewPublicKey(pub); err == nil {
		f.SSH = ssh.FingerprintSHA256(s)
	}
	f.KID = thumbprint(pub)
	return f
}

// jwk are the members of a public JSON Web Key (RFC 7518, 6; RFC 8037) that its thumbprint is made of, in their order;
// false for a kind of key that JWK does not know.
func jwk(pub any) (members any, known bool) {
	b64 := base64.RawURLEncoding.EncodeToString
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return struct {
			E   string `json:"e"`
			KTY string `json:"kty"`
			N   string `json:"n"`
		}{b64(big.NewInt(int64(k.E)).Bytes()), "RSA", b64(k.N.Bytes())}, true
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil || k.Params().BitSize < 256 { // RFC 7518 has no P-224
			return nil, false
		}
		n := (len(point) - 1) / 2
		return curveKey{k.Params().Name, "EC", b64(point[1 : 1+n]), b64(point[1+n:])}, true
	case ed25519.PublicKey:
		return octetKey{"Ed25519", "OKP", b64(k)}, true
	case *ecdh.PublicKey:
		return octetKey{"X25519", "OKP", b64(k.Bytes())}, true
	case psa.RawKey:
		if k.Type.Family() == psa.SECPK1 { // RFC 8812, 3.1
			n := (len(k.Bytes) - 1) / 2
			return curveKey{"secp256k1", "EC", b64(k.Bytes[1 : 1+n]), b64(k.Bytes[1+n:])}, true
		}
		if crv := map[psa.ECCFamily]string{psa.TwistedEdwards: "Ed448", psa.Montgomery: "X448"}[k.Type.Family()]; crv != "" {
			return octetKey{crv, "OKP", b64(k.Bytes)}, true
		}
	}
	return nil, false
}

type curveKey struct {
	CRV string `json:"crv"`
	KTY string `json:"kty"`
	X   string `json:"x"`
	Y   string `json:"y"`
}

type octetKey struct {
	CRV string `json:"crv"`
	KTY string `json:"kty"`
	X   string `json:"x"`
}

// thumbprint is RFC 7638, 3.2: the members that a key needs, sorted, hashed with SHA-256; "" without any.
func thumbprint(pub any) string {
	members, known := jwk(pub)
	if !known {
		return ""
	}
	text, err := json.Marshal(members)
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(text)
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

func (v *view) public() any { return parsePublic(v.key.Public) }

// parsePublic reads a SubjectPublicKeyInfo: a key of the standard library, a psa.RawKey, or nil.
func parsePublic(spki []byte) any {
	pub, err := x509.ParsePKIXPublicKey(spki)
	if err == nil {
		return pub
	}
	if raw, err := psa.ParseRawKey(spki); err == nil {
		return raw
	}
	return nil
}

func hasSSH(v *view) bool {
	if !asymmetric(v) {
		return false
	}
	_, err := ssh.NewPublicKey(v.public())
	return err == nil
}

// publicSSH is a line of authorized_keys (sshd(8)), with the key's name as its comment.
func (v *view) publicSSH() ([]byte, error) {
	k, err := ssh.NewPublicKey(v.public())
	if err != nil {
		return nil, psa.Errorf(psa.StatusNotSupported, "SSH does not know this kind of key: %w", err)
	}
	return append(bytes.TrimSuffix(ssh.MarshalAuthorizedKey(k), []byte("\n")), " "+v.key.Name+"\n"...), nil
}

func hasJWK(v *view) bool {
	if !asymmetric(v) {
		return false
	}
	_, known := jwk(v.public())
	return known
}

func (v *view) publicJWK() ([]byte, error) {
	pub := v.public()
	members, _ := jwk(pub)
	text, err := json.Marshal(members)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "%w", err)
	}
	return fmt.Appendf(nil, "%s,\"kid\":%q}\n", bytes.TrimSuffix(text, []byte("}")), thumbprint(pub)), nil
}

// randomMost is how many random bytes one open file gives.
const randomMost = 64 << 10

// randomFile gives random bytes and then ends, so that a tree walk does too.
type randomFile struct{ fileNode }

var _ = (fs.NodeOpener)((*randomFile)(nil))

// Open is safe because nobody else gets the same bytes.
func (n *randomFile) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	if flags&syscall.O_ACCMODE != syscall.O_RDONLY {
		return nil, 0, n.t.fail(ctx, n.place(), "open", refuse(syscall.EACCES, "this file is read only", ""))
	}
	if err := n.t.admitAudited(ctx, n.p); err != nil {
		return nil, 0, n.t.fail(ctx, n.place(), "open", err)
	}
	n.t.audit(caller(ctx), n.place(), string(psa.Random), time.Now(), nil)
	return &randomHandle{n: n}, fuse.FOPEN_DIRECT_IO | fuse.FOPEN_NOFLUSH, 0
}

type randomHandle struct {
	n    *randomFile
	left budget
}

var _ = (fs.FileReader)((*randomHandle)(nil))

// Read gives fresh bytes whatever the offset; none is given twice.
func (h *randomHandle) Read(ctx context.Context, dest []byte, _ int64) (fuse.ReadResult, syscall.Errno) {
	dest = dest[:h.left.take(len(dest), randomMost)]
	if len(dest) == 0 {
		return fuse.ReadResultData(nil), 0
	}
	// not into dest: an interrupted call goes on after dest belongs to somebody else
	b, uid := make([]byte, len(dest)), caller(ctx).Uid
	err := h.n.t.perform(ctx, h.n.place(), func(ctx context.Context) error { return h.n.p.Random(ctx, uid, b) })
	if err != nil {
		return nil, h.n.t.fail(ctx, h.n.place(), "read", err)
	}
	defer wipe(b)
	return fuse.ReadResultData(dest[:copy(dest, b)]), 0
}
