package nodes

import (
	"context"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// nameStore notes the draft that the secret goes into, if the slot's store names one of the reader's.
func nameStore(ctx context.Context, f *feed) error {
	name := strings.TrimSuffix(string(f.named["store"]), "\n")
	if f.into = (kim.Key{}); name == "" {
		return nil
	}
	k, err := f.judged(ctx, name, importRow, 2)
	if err == nil && k.State != kim.Draft {
		err = psa.Errorf(psa.StatusAlreadyExists, "%s is a key already", name).WithHint("mkdir makes a draft")
	}
	f.into = k
	return err
}

// borrowed refuses to let somebody name a key with a file that somebody else opened: a setuid program can be made to write
// what it does not mean, and to read what it does not want.
func borrowed(opener, now uint32) error {
	if opener == now {
		return nil
	}
	return refuse(syscall.EACCES, "another user opened this file, and what is written into it counts as the writer's own", "open it yourself")
}

func (v *view) borrowed() error { return borrowed(v.opener, v.uid) }

// judged is Tree.named for the one whose request it is alone.
func (f *feed) judged(ctx context.Context, name string, r *row, want uint16) (kim.Key, error) {
	if err := borrowed(f.r.uid, caller(ctx).Uid); err != nil {
		return kim.Key{}, err
	}
	return f.r.t.named(ctx, f.r.at.provider, name, r, want)
}

// named is the key that a caller named in bytes: refused as if it had opened the row's file there, which needs the rw
// bits of want.
func (t *Tree) named(ctx context.Context, p *kim.Provider, name string, r *row, want uint16) (kim.Key, error) {
	if err := ValidName(name); err != nil {
		return kim.Key{}, err
	}
	k, err := p.Lookup(calm(ctx), name)
	if err != nil {
		return k, err
	}
	a := t.accessTo(r, p, k.Number, 0)
	a.want = want
	if err := a.judge(ctx); err != nil {
		return kim.Key{}, refuse(syscall.EACCES, err.Error(), "ask the key's owner for access to its "+r.name)
	}
	return k, nil
}

// beginAgree begins an agreement, raw or with the policy's key derivation or with the one that the slot names; or a key
// derivation alone.
func beginAgree(ctx context.Context, f *feed, op psa.Op) (psa.Run, error) {
	if word := strings.TrimSpace(string(op.Inputs["kdf"])); word != "" {
		kdf, err := psa.ParseDerivation(word)
		if err != nil {
			return nil, err
		}
		op.Algorithm = psa.KeyAgreement(op.Algorithm.Raw(), kdf)
	}
	f.algorithm = op.Algorithm.String()
	delete(op.Inputs, "kdf")
	delete(op.Inputs, "store")
	if f.into.Number == 0 {
		return f.r.t.kim.Begin(ctx, f.r.at.key, f.r.uid, op)
	}
	a := f.into.Attributes
	if err := storable(a, op.Algorithm); err != nil {
		return nil, err
	}
	length := strconv.Itoa(a.Bits / 8)
	if op.Operation == psa.Derive || op.Algorithm.Derivation() != psa.AlgNone {
		if asked := strings.TrimSpace(string(op.Inputs["length"])); asked != "" && asked != length {
			return nil, psa.Errorf(psa.StatusInvalidArgument, "length %s: the draft's key has %s bytes", asked, length)
		}
		op.Inputs["length"] = []byte(length)
	}
	r, err := f.r.t.kim.Begin(ctx, f.r.at.key, f.r.uid, op)
	if err != nil {
		return nil, err
	}
	return &storeRun{Run: r, f: f}, nil
}

// storable says whether an agreement's secret can become a key of these attributes: a raw one has structure, and PSA
// lets it become a key for a derivation or a MAC alone (psa_key_agreement).
func storable(a psa.Attributes, alg psa.Algorithm) error {
	raw := a.Type == psa.KeyTypeHMAC || a.Type == psa.KeyTypeDerive || a.Type == psa.KeyTypeRawData
	switch {
	case a.Type == psa.KeyTypeNone || a.Type.IsAsymmetric() || a.Bits == 0:
		return psa.Errorf(psa.StatusInvalidArgument, "the draft must be of a symmetric type and size").WithHint("write a template into its attributes, such as aes-256-gcm")
	case alg == psa.ECDH && !raw:
		return psa.Errorf(psa.StatusInvalidArgument, "a raw secret cannot become a %s key", a.Type).WithHint("write a key derivation into kdf, such as hkdf-sha256")
	}
	return a.Validate()
}

// storeRun makes the secret the draft's key, and gives nothing.
type storeRun struct {
	psa.Run
	f *feed
}

func (r *storeRun) Finish(ctx context.Context) (psa.Result, error) {
	result, err := r.Run.Finish(ctx)
	if err != nil {
		return psa.Result{}, err
	}
	m := &psa.Material{Format: psa.FormatRaw, Data: result.Outputs["secret"]}
	defer m.Wipe()
	draft, begun := r.f.into, time.Now()
	err = r.f.r.t.kim.Derive(ctx, draft.Number, r.f.r.uid, draft.Attributes.Template(), draft.Attributes, m)
	r.f.r.t.audit(r.f.r.by, place{t: r.f.r.t, provider: r.f.r.at.provider, key: draft.Number, file: "import"}, "store", begun, err)
	return psa.Result{Outputs: map[string][]byte{"secret": nil}}, err
}
