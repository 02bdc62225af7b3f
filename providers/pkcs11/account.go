package pkcs11

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

const userForms = `"USER" or "USER:GROUP", names or numbers`

// parseAccount reads the setting user in the form of chown(1). Without a group it uses the user's own group.
func parseAccount(v any) (*account, error) {
	s, ok := v.(string)
	if !ok || s == "" {
		return nil, errors.New(userForms)
	}
	name, groupName, hasGroup := strings.Cut(s, ":")
	a := &account{Home: "/"}
	entry, err := user.Lookup(name)
	if uid, ok := idOf(name); ok && err != nil {
		a.UID = uid
		entry, err = user.LookupId(name)
		if _, unknown := errors.AsType[user.UnknownUserIdError](err); unknown && hasGroup {
			entry, err = nil, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%q: %w; a number without an account needs a group: %s", s, err, userForms)
	}
	if entry != nil {
		a.Name, a.Home = entry.Username, entry.HomeDir
		uid, ok := idOf(entry.Uid)
		gid, also := idOf(entry.Gid)
		if !ok || !also {
			return nil, fmt.Errorf("%q has the ids %s and %s, which are not usable", s, entry.Uid, entry.Gid)
		}
		a.UID, a.GID = uid, gid
	}
	if !hasGroup {
		return a, nil
	}
	id, ok := idOf(groupName)
	if group, err := user.LookupGroup(groupName); err == nil {
		id, ok = idOf(group.Gid)
	}
	if !ok {
		return nil, fmt.Errorf("%q: there is no group %q", s, groupName)
	}
	a.GID = id
	return a, nil
}

// mayBecome refuses a user for whom this program cannot start a process.
func (l launch) mayBecome() error {
	own := os.Geteuid()
	if own == 0 {
		return nil
	}
	if len(l.capabilities) > 0 {
		return psa.Errorf(psa.StatusNotPermitted, "only root's mount can use keep_capabilities").WithHint("leave it out")
	}
	if u := l.user; u != nil && (int(u.UID) != own || int(u.GID) != os.Getegid()) {
		return psa.Errorf(psa.StatusNotPermitted,
			"user: only root's mount can run a module as user %d of group %d; this mount belongs to user %d",
			u.UID, u.GID, own).WithHint("leave user out")
	}
	return nil
}

// runsAs tells users apart.
func (l launch) runsAs() account {
	if l.user == nil {
		return account{}
	}
	return *l.user
}

// hintUser is the end of the hint for a token that is not found: its files or its device may belong to another user.
func (l launch) hintUser() string {
	switch {
	case l.user != nil:
		return fmt.Sprintf("; the module runs as user %d, who needs access to the token", l.user.UID)
	case os.Geteuid() == 0:
		return "; the module runs as root without root's capabilities: if the token belongs to another user, set user in the configuration"
	}
	return ""
}

// orders are the instructions for a new worker.
func (l launch) orders() orders {
	o := orders{Capabilities: l.capabilities, Environment: workerEnvironment(os.Environ(), l.environment, l.user)}
	o.Files = append([]string{l.library}, l.files...)
	if os.Geteuid() == 0 {
		o.User = l.user
	}
	return o
}

// passedOn are the variables that a module gets from this program's environment: where and in which language it runs, and
// the variables that known modules and their libraries read. A module gets nothing else of it.
var passedOn = []string{"PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "XDG_RUNTIME_DIR",
	"DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS", "SOFTHSM2_CONF", "TPM2_PKCS11_*", "TSS2_*", "P11_KIT_*", "NSS_*", "OPENSC_CONF",
	"OPENSC_DEBUG", "PCSCLITE_*",
	"YUBIHSM_PKCS11_*"}

// workerEnvironment is a module's environment: part of our own, more, and the variables of its user. It keeps a crashing
// worker from writing registers into the log, since they may hold keys.
func workerEnvironment(own, more []string, a *account) (env []string) {
	for _, v := range own {
		name, _, _ := strings.Cut(v, "=")
		for _, pattern := range passedOn {
			if prefix, open := strings.CutSuffix(pattern, "*"); name == pattern || open && strings.HasPrefix(name, prefix) {
				env = append(env, v)
			}
		}
	}
	if a != nil {
		env = append(env, "HOME="+a.Home)
		if a.Name != "" {
			env = append(env, "USER="+a.Name, "LOGNAME="+a.Name)
		}
	}
	return lastOfEach(append(append(env, more...), "GOTRACEBACK=none"))
}

// lastOfEach keeps only the last value of each variable, because getenv(3) finds the first.
func lastOfEach(env []string) []string {
	at, kept := map[string]int{}, env[:0:0]
	for _, v := range env {
		name, _, _ := strings.Cut(v, "=")
		if i, ok := at[name]; ok {
			kept[i] = v
			continue
		}
		at[name] = len(kept)
		kept = append(kept, v)
	}
	return kept
}
