package nodes

import (
	"context"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// adopt adopts a key of the device. It is only for admins, because whoever may name one key could use any.
func (v *view) adopt(reference string) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := v.borrowed(); err != nil {
			return err
		}
		if !v.t.Admin(v.uid) {
			return psa.Errorf(psa.StatusNotPermitted, "only root and admins can adopt keys of the device").
				WithHint("ask root to add you to admins in [authenticator]")
		}
		return v.t.kim.Adopt(ctx, v.key.Number, v.uid, v.key.Attributes, reference)
	}
}
