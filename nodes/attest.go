package nodes

import (
	"context"
	"strings"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/nodes/transaction"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// attestation is signed by the device's own key, or by the one that a slot names.
type attestation struct {
	operation
	signer kim.Key // number 0 for the device's own
	by     caller.Caller
}

func attests(o operation) transaction.Operation { return &attestation{operation: o} }

// Authorize judges whoever names a signer, as if they opened its sign.
func (o *attestation) Authorize(ctx context.Context, who caller.Caller, in transaction.Inputs) (err error) {
	name := strings.TrimSuffix(string(in["signer"]), "\n")
	if name == "" {
		return nil
	}
	o.by = who
	o.signer, err = o.named(ctx, who, name, signRow, gate.ReadWrite)
	return err
}

func (o *attestation) Begin(ctx context.Context, in transaction.Inputs, length int) (psa.Run, bool, error) {
	op, err := o.resolve(in, length)
	if err != nil {
		return nil, false, err
	}
	delete(op.Inputs, "signer")
	if o.signer.Number == 0 {
		run, err := o.begin(ctx, op)
		return run, false, err
	}
	run, err := o.t.kim.Certify(ctx, o.at.key, o.uid, op, o.signer.Number)
	if err != nil {
		return nil, false, gone(err)
	}
	return &certifyRun{Run: run, o: o}, false, nil
}

// certifyRun has the signer's use in the audit trail too.
type certifyRun struct {
	psa.Run
	o *attestation
}

func (r *certifyRun) Finish(ctx context.Context) (psa.Result, error) {
	begun, o := time.Now(), r.o
	result, err := r.Run.Finish(ctx)
	o.t.audit(o.by, AuditUse, place{t: o.t, provider: o.at.provider, key: o.signer.Number, file: signRow.name}, string(psa.Attest), begun, err)
	return result, err
}
