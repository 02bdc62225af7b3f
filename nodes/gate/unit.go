package gate

import (
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/parsecfs/parsecfs/nodes/caller"
)

// UnitRule lets systemd units use a provider.
type UnitRule struct {
	Provider string   // its name; "" is every provider
	Units    []string // as caller.ValidUnit has them
}

// SetUnitRules replaces the rules of the authenticator SystemdUnit; nil is without it. Of the providers, by their names, the
// directory of each that lets some unit in no longer has lost rights; with the first rules, that of each loses those whose
// unit is unknown.
func (g *Gate) SetUnitRules(rules []UnitRule, providers map[string]uint64) {
	old := g.setRules(rules)
	for name, ino := range providers {
		before, all := of(old, name)
		after, free := of(g.units.Load(), name)
		gone := func(unit string) bool { return !slices.Contains(after, unit) }
		if rules != nil && old == nil || !free && (all || slices.ContainsFunc(before, gone)) {
			g.Lost(ino)
		}
	}
}

func (g *Gate) setRules(rules []UnitRule) (old *[]UnitRule) {
	if rules == nil {
		return g.units.Swap(nil)
	}
	return g.units.Swap(&rules)
}

// Units are whom systemd's units keep out of a place: whoever the configuration does not let use the provider, and
// whoever is in none of those that the key's owner listed, if any are. Without a provider nobody is kept out.
type Units struct {
	Provider string
	Key      []string
}

// Admit is the authenticator SystemdUnit: a caller of an unknown unit, or of one that the configuration does not list for
// the provider, or the key's owner not for the key, is kept out, root too. It only narrows what permissions allow.
func (g *Gate) Admit(who caller.Caller, units Units) error {
	rules := g.units.Load()
	if units.Provider == "" || rules == nil && len(units.Key) == 0 {
		return nil
	}
	unit, err := g.procs.Unit(who)
	if err != nil {
		return Refuse(syscall.EACCES, fmt.Sprintf("the caller's systemd unit is not known: %v", err),
			"only processes whose systemd unit is known can use this")
	}
	if listed, free := of(rules, units.Provider); !free && !lists(listed, unit) {
		return Refuse(syscall.EACCES, fmt.Sprintf("the configuration does not let %s use provider %s", unit, units.Provider),
			`ask root to add it to the rules of the authenticator "SystemdUnit"`)
	}
	if len(units.Key) > 0 && !lists(units.Key, unit) {
		return Refuse(syscall.EACCES, fmt.Sprintf("the key's units do not include %s", unit), "ask its owner to add it to units in attributes")
	}
	return nil
}

// of gives the units that the rules let use the provider; one that no rule is about is free to all.
func of(rules *[]UnitRule, provider string) (units []string, free bool) {
	if rules == nil {
		return nil, true
	}
	free = true
	for _, r := range *rules {
		if r.Provider == "" || r.Provider == provider {
			units, free = append(units, r.Units...), false
		}
	}
	return units, free
}

// lists says whether a unit is in a list: by its name, or by its template's.
func lists(units []string, unit string) bool {
	if slices.Contains(units, unit) {
		return true
	}
	at, dot := strings.IndexByte(unit, '@'), strings.LastIndexByte(unit, '.')
	return at >= 0 && at < dot && slices.Contains(units, unit[:at+1]+unit[dot:])
}
