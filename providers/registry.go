package providers

import (
	"context"
	"log/slog"
	"slices"
	"strings"
)

// Setting is a key in a [[provider]] table that belongs to a provider type.
type Setting struct {
	Name string
	Help string
	// Check checks the value as TOML gives it (string, int64, bool, ...). Its error says what is allowed.
	Check func(v any) error
	// Files returns the files that a value names and that must be trusted (CheckTrusted), because they decide what the
	// program does. It gets a value that passed Check. nil: the setting names no files.
	Files func(v any) []string
	// Owners returns who may own the files, besides root and the user whom the program runs as. It gets the whole table.
	Owners func(settings map[string]any) []uint32
	// Secret says whether a value is or contains a secret, which others must not read. It gets what Files gets. nil: never.
	Secret func(v any) bool
}

// IsSecret is Setting.Secret for a setting whose values are secrets.
func IsSecret(any) bool { return true }

// Config is what a new instance gets.
type Config struct {
	Name     string
	StateDir string // the instance may keep files below it, in a folder of its own name; perhaps a path in /proc/self/fd
	Settings map[string]any
	// Known is the Identity of the device that has the provider's keys, "" before the first contact. Secrets are sent only
	// to that device.
	Known string
	Log   *slog.Logger
}

// Type is one kind of back end that this program was built with.
type Type struct {
	Name     string   // provider_type, "Software"
	Aliases  []string // other spellings that mean it, "MbedCrypto"
	Settings []Setting
	// Check checks the settings together, after each has passed its own Check. nil: there is nothing to check.
	Check func(settings map[string]any) error
	// New makes an instance. It must not wait for the device; Identity reports an absent one.
	New func(ctx context.Context, c Config) (Provider, error)
}

// Registry is the set of back ends of one program.
type Registry []Type

// Lookup finds a type by its name or an alias.
func (r Registry) Lookup(name string) (Type, bool) {
	for _, t := range r {
		if t.Name == name || slices.Contains(t.Aliases, name) {
			return t, true
		}
	}
	return Type{}, false
}

// Names lists the names that Lookup knows, for error messages.
func (r Registry) Names() string {
	var names []string
	for _, t := range r {
		names = append(names, t.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
