package fs

import (
	"fmt"
	"os"
	"slices"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// authority is what a user may do with the state, through a daemon's socket or without a daemon.
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

// adminCommands are the commands that admins may use. The other commands are not for them: a backup holds the whole state,
// rewrap changes the state's key, and a key that is forgotten may be lost.
var adminCommands = []string{commandPing, commandKeys, commandChown, commandDestroy, commandForeign, commandStatus}

// permits says whether a may make this request. Only root can give away or destroy root's keys, or give keys to root.
func (a authority) permits(in request) error {
	switch {
	case a == stranger:
		return errNotServed
	case a == admin && !slices.Contains(adminCommands, in.Command):
		return fmt.Errorf("only root and the daemon's user can run %s", in.Command)
	}
	switch {
	case in.Command != commandChown && in.Command != commandDestroy:
		return nil
	case in.Owner == nil:
		return fmt.Errorf("%s needs an owner", in.Command)
	case a < root && *in.Owner == 0:
		return psa.Errorf(psa.StatusNotPermitted, "only root can change root's keys").
			WithHint("run it as root: parsecfs " + in.Command + " --owner root")
	case a < root && in.Command == commandChown && in.UID == 0:
		return psa.Errorf(psa.StatusNotPermitted, "only root can give keys to root").WithHint("give them to another user")
	}
	if err := kim.CheckOwner(*in.Owner, 0); err != nil {
		return err
	}
	return kim.CheckOwner(in.UID, in.GID)
}

// changes says whether a may give away or destroy a key whose directory belongs to owner, and others' files of it.
func (a authority) changes(owner uint32) error {
	if a < root && owner == 0 {
		return psa.Errorf(psa.StatusNotPermitted, "the key belongs to root").WithHint("ask root to do it")
	}
	return nil
}

// ownAuthority is the authority of the user who runs this program, when no daemon decides.
func ownAuthority(in request) (authority, error) {
	a := authorityOf(uint32(os.Geteuid()), nil)
	if err := a.permits(in); err != nil {
		return a, &Error{KindOther, err, psa.HintOf(err)}
	}
	return a, nil
}
