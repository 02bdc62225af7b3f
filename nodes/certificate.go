package nodes

import (
	"bytes"
	"context"

	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/psa/pki"
)

// certificateMost bounds a chain, in bytes.
const certificateMost = 256 << 10

func (v *view) certificate() ([]byte, error) { return v.t.kim.Certificate(v.ctx, v.key.Number) }

func certificateStage(v *view) stage {
	return stage{
		again:      true,
		most:       certificateMost,
		atClose:    func([]byte) bool { return true }, // a part of a chain must not replace what is stored
		incomplete: pki.NoChain,
		scan: func(b []byte, alone bool) (int, func(context.Context) error, error) {
			if len(bytes.TrimSpace(b)) == 0 {
				return len(b), func(ctx context.Context) error { return v.t.kim.SetCertificate(ctx, v.key.Number, nil) }, nil
			}
			if alone && psa.IsTry(b) {
				return 0, nil, pki.NoChain(b)
			}
			chain, whole, err := pki.ParseChain(b, v.key.Public)
			if err != nil || !whole {
				return 0, nil, err
			}
			return len(b), func(ctx context.Context) error { return v.t.kim.SetCertificate(ctx, v.key.Number, chain) }, nil
		},
	}
}
