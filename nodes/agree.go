package nodes

import (
	"context"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/nodes/transaction"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// agreement is an agreement, raw or with the policy's key derivation or with the one that a slot names, or a key derivation
// alone. A slot's store makes the secret a draft's key.
type agreement struct {
	operation
	draft kim.Key // number 0 where the secret is given out
	by    caller.Caller
}

func agrees(o operation) transaction.Operation { return &agreement{operation: o} }

// Authorize judges whoever names a draft, as if they opened its import.
func (o *agreement) Authorize(ctx context.Context, who caller.Caller, in transaction.Inputs) error {
	name := strings.TrimSuffix(string(in["store"]), "\n")
	if name == "" {
		return nil
	}
	k, err := o.named(ctx, who, name, importRow, gate.Write)
	if err != nil {
		return err
	}
	if k.State != kim.Draft {
		return psa.Errorf(psa.StatusAlreadyExists, "%s is a key already", name).WithHint("make a new draft with mkdir")
	}
	o.draft, o.by = k, who
	return nil
}

// Quick is not what makes a draft's key.
func (o *agreement) Quick(who caller.Caller) bool {
	return o.draft.Number == 0 && o.operation.Quick(who)
}

func (o *agreement) Begin(ctx context.Context, in transaction.Inputs, length int) (psa.Run, bool, error) {
	op, err := o.resolve(in, length)
	if err != nil {
		return nil, false, err
	}
	if word := strings.TrimSpace(string(in["kdf"])); word != "" {
		kdf, err := psa.ParseDerivation(word)
		if err != nil {
			return nil, false, err
		}
		op.Algorithm = psa.KeyAgreement(op.Algorithm.Raw(), kdf)
		o.begun = op.Algorithm
	}
	delete(op.Inputs, "kdf")
	delete(op.Inputs, "store")
	if o.draft.Number == 0 {
		run, err := o.begin(ctx, op)
		return run, false, err
	}
	if err := o.fit(op); err != nil {
		return nil, false, err
	}
	run, err := o.begin(ctx, op)
	if err != nil {
		return nil, false, err
	}
	return &storeRun{Run: run, o: o}, false, nil
}

// fit gives a derivation the length of the draft's key.
func (o *agreement) fit(op psa.Op) error {
	a := o.draft.Attributes
	if err := a.Stores(op.Algorithm); err != nil {
		return err
	}
	if op.Operation != psa.Derive && op.Algorithm.Derivation() == psa.AlgNone {
		return nil
	}
	length := strconv.Itoa(a.Bits / 8)
	if asked := strings.TrimSpace(string(op.Inputs["length"])); asked != "" && asked != length {
		return psa.Errorf(psa.StatusInvalidArgument, "wrong length %s: the draft's key has %s bytes", asked, length)
	}
	op.Inputs["length"] = []byte(length)
	return nil
}

// borrowed refuses to let somebody name a key with a file that somebody else opened: a setuid program can be made to write
// what it does not mean, and to read what it does not want.
func borrowed(opener, now uint32) error {
	if opener == now {
		return nil
	}
	return gate.Refuse(syscall.EACCES, "another user opened this file, and only that user can write to it", "open it yourself")
}

func (v *view) borrowed() error { return borrowed(v.opener, v.uid) }

// named is Tree.named for the one whose request it is alone.
func (o *operation) named(ctx context.Context, who caller.Caller, name string, r *row, want gate.Bits) (kim.Key, error) {
	if err := borrowed(o.uid, who.UID); err != nil {
		return kim.Key{}, err
	}
	from, err := o.t.spaceOf(ctx, o.at.key)
	if err != nil {
		return kim.Key{}, gone(err)
	}
	return o.t.named(ctx, who, o.at.provider, from, name, r, want)
}

// storeRun makes the secret the draft's key, and gives nothing.
type storeRun struct {
	psa.Run
	o *agreement
}

func (r *storeRun) Finish(ctx context.Context) (psa.Result, error) {
	result, err := r.Run.Finish(ctx)
	if err != nil {
		return psa.Result{}, err
	}
	m := &psa.Material{Format: psa.FormatRaw, Data: result.Outputs["secret"]}
	defer m.Wipe()
	o, draft, begun := r.o, r.o.draft, time.Now()
	err = o.t.kim.Derive(ctx, draft.Number, o.uid, draft.Attributes.Template(), draft.Attributes, m)
	o.t.audit(o.by, AuditDeed, place{t: o.t, provider: o.at.provider, key: draft.Number, file: "import"}, "store", begun, err)
	return psa.Result{Outputs: map[string][]byte{"secret": nil}}, err
}
