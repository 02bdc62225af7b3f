package nodes

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/parsecfs/parsecfs/kim"
)

// UnitRule lets systemd units use a provider.
type UnitRule struct {
	Provider string   // its name; "" is every provider
	Units    []string // as ValidUnit has them
}

// Bounds of a list of units.
const (
	UnitsMost = 64  // units
	unitMost  = 255 // bytes of a name (systemd.unit(5))
)

// ValidUnit says what is wrong with the name of a unit that processes run in: systemd.unit(5)'s characters, and
// .service or .scope at the end. The name of a template, "worker@.service", stands for all its instances.
func ValidUnit(name string) error {
	stem, service := strings.CutSuffix(name, ".service")
	if !service {
		var scope bool
		if stem, scope = strings.CutSuffix(name, ".scope"); !scope {
			return fmt.Errorf("%q is no unit that a process runs in: nginx.service, worker@.service (every instance) and session-1.scope are", name)
		}
	}
	odd := strings.ContainsFunc(stem, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune(`:-_.\@`, r)
	})
	if stem == "" || odd || len(name) > unitMost {
		return fmt.Errorf("%q is no name of a unit: letters, digits and :-_.\\@, at most %d bytes", name, unitMost)
	}
	return nil
}

// lists says whether a unit is in a list: by its name, or by its template's.
func lists(units []string, unit string) bool {
	if slices.Contains(units, unit) {
		return true
	}
	at, dot := strings.IndexByte(unit, '@'), strings.LastIndexByte(unit, '.')
	return at >= 0 && at < dot && slices.Contains(units, unit[:at+1]+unit[dot:])
}

// admit is the authenticator SystemdUnit: a caller of an unknown unit, or of one that the configuration does not list
// for the provider, or the key's owner not for the key, is kept out, root too. key nil asks for the provider alone. It
// can only narrow what the kernel has let through. The caller is blocked in its system call, so /proc is its own.
func (t *Tree) admit(ctx context.Context, p *kim.Provider, key *kim.Key) error {
	rules := t.units.Load()
	listed := key != nil && len(key.Units) > 0
	if rules == nil && !listed {
		return nil
	}
	unit, err := callersUnit(caller(ctx).Pid)
	if err != nil {
		return refuse(syscall.EACCES, fmt.Sprintf("the caller's systemd unit cannot be told: %v", err),
			"only processes in a systemd unit that is known may come in here")
	}
	if rules != nil && !allowed(*rules, p.Name(), unit) {
		return refuse(syscall.EACCES, fmt.Sprintf("the configuration does not let %s use provider %s", unit, p.Name()),
			`root can add it to the rules of the authenticator "SystemdUnit"`)
	}
	if listed && !lists(key.Units, unit) {
		return refuse(syscall.EACCES, fmt.Sprintf("the key is not for %s", unit), "its owner can add it to units in attributes")
	}
	return nil
}

// allowed says whether a rule lets the unit use the provider; one that no rule is about is everybody's.
func allowed(rules []UnitRule, provider, unit string) bool {
	free := true
	for _, r := range rules {
		if r.Provider != "" && r.Provider != provider {
			continue
		}
		if lists(r.Units, unit) {
			return true
		}
		free = false
	}
	return free
}

// SetUnitRules replaces the configuration's rules; nil is no authenticator of this kind. Who has something open is
// judged anew.
func (t *Tree) SetUnitRules(rules []UnitRule) {
	var next *[]UnitRule
	if rules != nil {
		next = &rules
	}
	old := t.units.Swap(next)
	same := func(a, b UnitRule) bool { return a.Provider == b.Provider && slices.Equal(a.Units, b.Units) }
	if next != nil && (old == nil || !slices.EqualFunc(*old, *next, same)) {
		t.revocations.noteAll()
	}
}

// callersUnit reads the unit of a thread.
func callersUnit(tid uint32) (string, error) {
	if tid == 0 {
		return "", fmt.Errorf("it is in a pid namespace that cannot be seen from here")
	}
	b, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/cgroup")
	if err != nil {
		return "", err
	}
	unit := unitOf(string(b))
	if unit == "" {
		return "", fmt.Errorf("it runs in none")
	}
	return unit, nil
}

// unitOf finds a process's systemd unit in its cgroup (/proc/<pid>/cgroup, cgroups(7)): the first component below the
// host root's slices, so that no user can name a unit of their own; everything under a user's manager counts as
// user@UID.service. Without one, or inside a cgroup namespace that is not the host's, it is "".
func unitOf(cgroup string) string {
	for line := range strings.Lines(cgroup) {
		path, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "0::/")
		if !ok {
			// systemd's own hierarchy where controllers still have theirs (cgroups v1)
			if _, after, found := strings.Cut(line, ":name=systemd:/"); found {
				path, ok = strings.TrimSuffix(after, "\n"), true
			}
		}
		if !ok {
			continue
		}
		for part := range strings.SplitSeq(path, "/") {
			switch {
			case strings.HasSuffix(part, ".slice"):
				continue
			case strings.HasSuffix(part, ".service"), strings.HasSuffix(part, ".scope"):
				return part
			}
			return ""
		}
	}
	return ""
}
