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
	store := func(chain []byte) func(context.Context) error {
		return func(ctx context.Context) error {
			before, err := v.t.kim.SetCertificate(ctx, v.key.Number, chain)
			if err == nil {
				v.undo.replaced(before, chain)
			}
			return err
		}
	}
	return stage{
		restore: func(ctx context.Context, chain, before []byte) error {
			return v.t.kim.RestoreCertificate(ctx, v.key.Number, chain, before)
		},
		again:      true,
		most:       certificateMost,
		atClose:    func([]byte) bool { return true }, // a part of a chain must not replace what is stored
		incomplete: pki.NoChain,
		scan: func(b []byte, alone bool) (int, func(context.Context) error, error) {
			if len(bytes.TrimSpace(b)) == 0 {
				return len(b), store(nil), nil
			}
			if alone && psa.IsTry(b) {
				return 0, nil, pki.NoChain(b)
			}
			chain, whole, err := pki.ParseChain(b, v.key.Public)
			if err != nil || !whole {
				return 0, nil, err
			}
			return len(b), store(chain), nil
		},
	}
}
