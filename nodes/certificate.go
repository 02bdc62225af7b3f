package nodes

import (
	"bytes"
	"context"

	"github.com/parsecfs/parsecfs/providers/psa/pki"
)

// certificateMost bounds a chain, in bytes.
const certificateMost = 256 << 10

func (v *view) certificate() ([]byte, error) { return v.t.kim.Certificate(v.ctx, v.key.Number) }

func certificateStage(v *view) stage {
	return stage{again: true, most: certificateMost, scan: func(b []byte, _ bool) (int, func(context.Context) error, error) {
		if len(bytes.TrimSpace(b)) == 0 {
			return len(b), func(ctx context.Context) error { return v.t.kim.SetCertificate(ctx, v.key.Number, nil) }, nil
		}
		end, chain, err := pki.ParseChain(b, v.key.Public)
		if err != nil || end == 0 {
			return 0, nil, err
		}
		return end, func(ctx context.Context) error { return v.t.kim.SetCertificate(ctx, v.key.Number, chain) }, nil
	}}
}
