package fs

import (
	"fmt"
	"os"
	"slices"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// authority is what a user may ask of the state, through a daemon's socket or where there is no daemon.
type authority int

const (
	stranger   authority = iota // nothing
	admin                       // one of authenticator's admins: see to the keys of users who left
	daemonUser                  // who runs the daemon, and so can read the state anyway: all but what is root's
	root                        // all
)

func authorityOf(uid uint32, admins []uint32) authority {
	switch {
	case uid == 0:
		return root
	case uid == uint32(os.Geteuid()):
		return daemonUser
	case slices.Contains(admins, uid):
		return admin
	}
	return stranger
}

// adminCommands are what admins may ask for. The others are not theirs: a backup holds the whole state, a rewrap is about
// its key, and what is forgotten may be lost.
var adminCommands = []string{commandPing, commandKeys, commandChown, commandDestroy, commandForeign}

// permits says whether it may ask for this. Only root gives away or destroys what is root's, or takes anything for root.
func (a authority) permits(in request) error {
	switch {
	case a == stranger:
		return errNotServed
	case a == admin && !slices.Contains(adminCommands, in.Command):
		return fmt.Errorf("%s is for root and the daemon's user alone", in.Command)
	}
	switch {
	case in.Command != commandChown && in.Command != commandDestroy:
		return nil
	case in.Owner == nil:
		return fmt.Errorf("%s without an owner", in.Command)
	case a < root && *in.Owner == 0:
		return psa.Errorf(psa.StatusNotPermitted, "root's keys are root's alone").WithHint("as root: parsecfs " + in.Command + " --owner root")
	case a < root && in.Command == commandChown && in.UID == 0:
		return psa.Errorf(psa.StatusNotPermitted, "only root takes keys for root").WithHint("give them to another user")
	}
	if err := kim.CheckOwner(*in.Owner, 0); err != nil {
		return err
	}
	return kim.CheckOwner(in.UID, in.GID)
}

// changes says whether it may hand over or destroy what somebody has of a key whose directory is owner's.
func (a authority) changes(owner uint32) error {
	if a < root && owner == 0 {
		return psa.Errorf(psa.StatusNotPermitted, "the key is root's").WithHint("root can do it")
	}
	return nil
}

// ownAuthority is that of whoever runs this program, where no daemon decides.
func ownAuthority(in request) (authority, error) {
	a := authorityOf(uint32(os.Geteuid()), nil)
	if err := a.permits(in); err != nil {
		return a, &Error{KindOther, err, psa.HintOf(err)}
	}
	return a, nil
}
