package nodes

import (
	"context"
	"strings"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// nameSigner notes the key that signs, if the slot's signer names one whose sign the reader may open.
func nameSigner(ctx context.Context, f *feed) (err error) {
	f.signer = kim.Key{}
	if name := strings.TrimSuffix(string(f.named["signer"]), "\n"); name != "" {
		f.signer, err = f.judged(ctx, name, signRow, 6)
	}
	return err
}

// beginAttest begins an attestation, signed by the device's own key or by the one that the slot names.
func beginAttest(ctx context.Context, f *feed, op psa.Op) (psa.Run, error) {
	delete(op.Inputs, "signer")
	if f.signer.Number == 0 {
		return f.r.t.kim.Begin(ctx, f.r.at.key, f.r.uid, op)
	}
	r, err := f.r.t.kim.Certify(ctx, f.r.at.key, f.r.uid, op, f.signer.Number)
	if err != nil {
		return nil, err
	}
	return &certifyRun{Run: r, f: f}, nil
}

// certifyRun has the signer's use in the audit trail too.
type certifyRun struct {
	psa.Run
	f *feed
}

func (r *certifyRun) Finish(ctx context.Context) (psa.Result, error) {
	begun, q := time.Now(), r.f.r
	result, err := r.Run.Finish(ctx)
	q.t.audit(q.by, place{t: q.t, provider: q.at.provider, key: r.f.signer.Number, file: signRow.name}, string(psa.Attest), begun, err)
	return result, err
}
