package nodes

import (
	"bytes"
	"context"
	"strings"

	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// copyStage makes the draft a copy of the key of the same provider whose name is written (Tree.named): for whoever could open that
// one's export, whether or not its policy lets the key be exported.
func copyStage(v *view) stage {
	return stage{scan: func(b []byte, alone bool) (int, func(context.Context) error, error) {
		line, _, whole := bytes.Cut(b, []byte("\n"))
		name := strings.TrimSpace(string(line))
		if name == "" || !whole && (!alone || directoryAlone(name)) {
			return 0, nil, nil
		}
		if err := v.borrowed(); err != nil {
			return 0, nil, err
		}
		source, err := v.t.named(v.ctx, callerOf(v.ctx), v.provider, v.key.Space, name, exportRow, gate.ReadWrite)
		if !whole && psa.StatusOf(err) == psa.StatusDoesNotExist {
			return 0, nil, nil // a name that goes on
		}
		if err != nil {
			return 0, nil, err
		}
		return min(len(line)+1, len(b)), func(ctx context.Context) error {
			return v.t.kim.Copy(ctx, v.key.Number, v.uid, source.Number)
		}, nil
	}}
}
