// Package outside is a provider for tests that keeps its keys outside the key info manager, as a token or a TPM does:
// in a folder that a server has, behind a Unix socket. What a key store does to its objects when something dies can
// be seen there. Private keys never leave the server but for an export.
package outside

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

// Type is the back end; its setting socket is where Serve listens.
var Type = providers.Type{
	Name: "Outside",
	Settings: []providers.Setting{{Name: "socket", Help: "the server's Unix socket", Check: func(v any) error {
		if s, ok := v.(string); !ok || s == "" {
			return errors.New("allowed: the path of a socket")
		}
		return nil
	}}},
	New: func(ctx context.Context, c providers.Config) (providers.Provider, error) {
		socket, _ := c.Settings["socket"].(string)
		table, err := capabilities(ctx)
		return &provider{socket: socket, table: table}, err
	},
}

// capabilities are some of the software provider's, which does the server's cryptography.
func capabilities(ctx context.Context) ([]psa.Capability, error) {
	all, err := backend(ctx)
	if err != nil {
		return nil, err
	}
	lines, err := all.Capabilities(ctx)
	var some []psa.Capability
	for _, c := range lines {
		// a copy of what the server keeps would be the server's to make
		c.Operations = slices.DeleteFunc(slices.Clone(c.Operations), func(op psa.Operation) bool { return op == psa.Copy })
		switch c.Algorithm {
		case psa.ECDSA(psa.SHA256), psa.ECDSA(psa.AnyHash):
			if c.Bits == 256 && c.Type.Family() == psa.SECPR1 {
				some = append(some, c)
			}
		case psa.PureEdDSA, psa.GCM:
			if c.Bits <= 256 {
				some = append(some, c)
			}
		}
	}
	return some, err
}

func backend(ctx context.Context) (providers.Provider, error) {
	return software.Type.New(ctx, providers.Config{Name: "outside"})
}

type provider struct {
	socket string
	table  []psa.Capability
}

func (p *provider) Describe() providers.Description {
	return providers.Description{Type: Type.Name, TypeUUID: "7d4a5c51-6a5c-4c0e-9f3d-2f6a3d1b7e90", Description: "A folder with keys, for tests",
		Vendor: "parsecfs", Version: "1", Location: "local", Limits: providers.Limits{Parallel: 4}}
}

func (p *provider) Identity(ctx context.Context) (string, error) {
	r, err := p.ask(ctx, request{Call: "identity"})
	return r.Identity, err
}

func (p *provider) Capabilities(ctx context.Context) ([]psa.Capability, error) {
	return p.table, ctx.Err()
}

func (p *provider) supports(op psa.Operation, a psa.Attributes, alg psa.Algorithm) bool {
	return psa.Supports(p.table, op, a.Type, a.Bits, alg)
}

func (p *provider) Create(ctx context.Context, h providers.Handle, a psa.Attributes, m *psa.Material) (providers.Blob, error) {
	op := psa.Generate
	if m != nil {
		op = psa.Import
	}
	if !p.supports(op, a, a.Algorithm) && !(op == psa.Generate && a.Type.IsPublicKey()) {
		return providers.Blob{}, psa.Errorf(psa.StatusNotSupported, "%s of such a key", op)
	}
	r, err := p.ask(ctx, request{Call: "create", Handle: h, Attributes: a, Material: m})
	return providers.Blob{Public: r.Public}, err
}

func (p *provider) Destroy(ctx context.Context, h providers.Handle) error {
	_, err := p.ask(ctx, request{Call: "destroy", Handle: h})
	return err
}

var _ providers.Adopter = (*provider)(nil)

func (p *provider) Foreign(ctx context.Context) ([]providers.Foreign, error) {
	r, err := p.ask(ctx, request{Call: "list"})
	return r.Foreign, err
}

func (p *provider) Adopt(ctx context.Context, a psa.Attributes, reference string) (providers.Foreign, providers.Blob, error) {
	list, err := p.Foreign(ctx)
	if err != nil {
		return providers.Foreign{}, providers.Blob{}, err
	}
	i := slices.IndexFunc(list, func(f providers.Foreign) bool { return f.Object == reference })
	if i < 0 {
		return providers.Foreign{}, providers.Blob{}, psa.Errorf(psa.StatusDoesNotExist, "there is no %s", reference)
	}
	f := list[i]
	if a.Type != psa.KeyTypeNone {
		if a.Type != f.Attributes.Type || a.Bits != f.Attributes.Bits || !p.supports(psa.Import, a, a.Algorithm) {
			return providers.Foreign{}, providers.Blob{}, psa.Errorf(psa.StatusInvalidArgument, "%s is no such key", reference)
		}
		f.Attributes = a
	}
	r, err := p.ask(ctx, request{Call: "public", Object: f.Object})
	return f, providers.Blob{Public: r.Public, Object: f.Object}, err
}

func (p *provider) DestroyObject(ctx context.Context, object string, _ []byte) error {
	_, err := p.ask(ctx, request{Call: "destroy", Object: object})
	return err
}

func (p *provider) Close() error { return nil }

func (p *provider) Open(_ context.Context, h providers.Handle, a psa.Attributes, b providers.Blob) (providers.Key, error) {
	k := &key{p: p, h: h, object: b.Object, a: a, public: b.Public}
	if a.Type.IsAsymmetric() {
		pub, err := x509.ParsePKIXPublicKey(b.Public)
		if err != nil {
			return nil, psa.Errorf(psa.StatusDataCorrupt, "the stored public key: %w", err)
		}
		k.pub = pub
	}
	return k, nil
}

type key struct {
	p      *provider
	h      providers.Handle
	object string // of an adopted key
	a      psa.Attributes
	public []byte
	pub    crypto.PublicKey
	closed atomic.Bool
}

func (k *key) Attributes() psa.Attributes { return k.a }
func (k *key) Public() []byte             { return k.public }

func (k *key) Close() error {
	k.closed.Store(true)
	return nil
}

func (k *key) Begin(_ context.Context, op psa.Op) (psa.Run, error) {
	if k.closed.Load() {
		return nil, psa.Errorf(psa.StatusInvalidHandle, "the key is closed")
	}
	alg := op.Algorithm
	if op.Operation == psa.Export || op.Operation == psa.ExportPublic {
		alg = k.a.Algorithm // exporting has none
	} else if alg.IsWildcard() {
		return nil, psa.Errorf(psa.StatusNotSupported, "%s is no algorithm that can be used", alg)
	}
	listed := k.p.supports(op.Operation, k.a, alg)
	if !listed && k.a.Algorithm.IsWildcard() && alg.WithHash(psa.AnyHash) == k.a.Algorithm && alg.Hash() == psa.SHA256 {
		listed = k.p.supports(op.Operation, k.a, k.a.Algorithm)
	}
	if !listed || op.Operation == psa.Generate || op.Operation == psa.Import {
		return nil, psa.Errorf(psa.StatusNotSupported, "%s with %s", op.Operation, alg)
	}
	switch op.Operation {
	case psa.Verify, psa.VerifyHash:
		return psa.VerifierRun(op, k.pub)
	case psa.Sign, psa.SignHash:
		s := &signer{k: k, alg: op.Algorithm}
		run, err := psa.SignerRun(op, s)
		if err != nil {
			return nil, err
		}
		return &signing{run, s}, nil
	}
	if op.Limit <= 0 {
		op.Limit = psa.DefaultLimit
	}
	return &buffered{k: k, op: op}, nil
}

// signing gives its signer the context that Finish has.
type signing struct {
	psa.Run
	s *signer
}

func (r *signing) Finish(ctx context.Context) (psa.Result, error) {
	r.s.ctx = ctx
	return r.Run.Finish(ctx)
}

// signer is a crypto.Signer whose private key is in the server.
type signer struct {
	k   *key
	alg psa.Algorithm
	ctx context.Context
}

func (s *signer) Public() crypto.PublicKey { return s.k.pub }

func (s *signer) Sign(_ io.Reader, digest []byte, _ crypto.SignerOpts) ([]byte, error) {
	op := psa.Op{Operation: psa.SignHash, Algorithm: s.alg}
	if s.alg == psa.PureEdDSA {
		op.Operation, op.Limit = psa.Sign, int64(len(digest))
	}
	r, err := s.k.p.ask(s.ctx, request{Call: "finish", Handle: s.k.h, Object: s.k.object, Op: op, Data: digest})
	if err != nil {
		return nil, err
	}
	if s.alg.IsECDSA() {
		return psa.ECDSARawToDER(r.Outputs["signature"])
	}
	return r.Outputs["signature"], nil
}

// buffered is a Run that the server does as a whole.
type buffered struct {
	k    *key
	op   psa.Op
	data []byte
	done bool
}

func (r *buffered) Write(p []byte) (int, error) {
	if r.done {
		return 0, psa.Errorf(psa.StatusBadState, "the operation has ended")
	}
	// An AEAD's tag comes on top of what the limit counts.
	if int64(len(r.data)+len(p)) > r.op.Limit+64 {
		return 0, psa.Errorf(psa.StatusTooLarge, "the input is longer than %d bytes", r.op.Limit)
	}
	r.data = append(r.data, p...)
	return len(p), nil
}

func (r *buffered) Finish(ctx context.Context) (psa.Result, error) {
	if r.done {
		return psa.Result{}, psa.Errorf(psa.StatusBadState, "the operation has ended")
	}
	defer r.Abort()
	answer, err := r.k.p.ask(ctx, request{Call: "finish", Handle: r.k.h, Object: r.k.object, Op: r.op, Data: r.data})
	return psa.Result{Outputs: answer.Outputs}, err
}

func (r *buffered) Abort() {
	psa.Wipe(r.data)
	r.data, r.done = nil, true
}

// request is a call of the server: gob, one for each connection.
type request struct {
	Call       string
	Handle     providers.Handle
	Object     string // of an adopted key, instead of the handle
	Attributes psa.Attributes
	Material   *psa.Material
	Op         psa.Op
	Data       []byte
}

// response is its answer; Status is not StatusSuccess where it failed.
type response struct {
	Status   psa.Status
	Words    string
	Identity string
	Public   []byte
	Foreign  []providers.Foreign
	Outputs  map[string][]byte
}

// maxMessage bounds both.
const maxMessage = 64 << 20

func (p *provider) ask(ctx context.Context, q request) (response, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", p.socket)
	if err != nil {
		if ctx.Err() != nil {
			return response{}, psa.Errorf(psa.StatusTimeout, "the server: %w", ctx.Err())
		}
		return response{}, &psa.Error{Status: psa.StatusProviderAbsent, Device: err.Error(), Err: errors.New("the server cannot be reached")}
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	var buf bytes.Buffer
	err = gob.NewEncoder(&buf).Encode(q)
	if err == nil {
		_, err = conn.Write(buf.Bytes())
	}
	psa.Wipe(buf.Bytes())
	var r response
	if err == nil {
		err = gob.NewDecoder(io.LimitReader(conn, maxMessage)).Decode(&r)
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return response{}, psa.Errorf(psa.StatusTimeout, "the server: %w", ctx.Err())
	case err != nil:
		return response{}, &psa.Error{Status: psa.StatusCommunicationFailure, Device: err.Error(), Err: errors.New("the server did not answer")}
	case r.Status != psa.StatusSuccess:
		return response{}, &psa.Error{Status: r.Status, Device: r.Words, Err: fmt.Errorf("%s failed", q.Call)}
	}
	return r, nil
}
