package nodes

import (
	"context"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// adopt takes a key of the device over; whoever names one there could use any, so it is for admins alone.
func (v *view) adopt(reference string) func(context.Context) error {
	return func(ctx context.Context) error {
		if err := v.borrowed(); err != nil {
			return err
		}
		if !v.t.Admin(v.uid) {
			return psa.Errorf(psa.StatusNotPermitted, "keys on the device are taken over by root and admins").
				WithHint("root can add you to admins in [authenticator]")
		}
		return v.t.kim.Adopt(ctx, v.key.Number, v.uid, v.key.Attributes, reference)
	}
}
