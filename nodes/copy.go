package nodes

import (
	"bytes"
	"context"
	"slices"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// copies says whether the draft's provider can copy keys.
func copies(v *view) bool {
	return draft(v) && slices.ContainsFunc(v.provider.Capabilities(), func(c psa.Capability) bool { return c.Has(psa.Copy) })
}

// copyStage makes the draft a copy of the key of the same provider whose name is written: for whoever could open that
// one's export, whether or not its policy lets the key be exported.
func copyStage(v *view) stage {
	return stage{scan: func(b []byte, alone bool) (int, func(context.Context) error, error) {
		line, _, whole := bytes.Cut(b, []byte("\n"))
		name := strings.TrimSpace(string(line))
		if name == "" || !whole && !alone {
			return 0, nil, nil
		}
		if err := v.borrowed(); err != nil {
			return 0, nil, err
		}
		source, err := v.t.named(v.ctx, v.provider, name, exportRow, 6)
		if !whole && psa.StatusOf(err) == psa.StatusDoesNotExist {
			return 0, nil, nil // a name that goes on
		}
		if err != nil {
			return 0, nil, err
		}
		end := len(line)
		if whole {
			end++
		}
		return end, func(ctx context.Context) error {
			return v.t.kim.Copy(ctx, v.key.Number, v.uid, source.Number)
		}, nil
	}}
}
