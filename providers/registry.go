package providers

import (
	"context"
	"log/slog"
	"slices"
	"strings"
)

// Setting is one of a provider type's own keys in its [[provider]] table.
type Setting struct {
	Name string
	Help string
	// Check parses the value as TOML gives it (string, int64, bool, ...) and says what is allowed if it is wrong.
	Check func(v any) error
	// Files are the files that a value names and that decide what the program does: they must be trusted (CheckTrusted).
	// It gets a value that Check found right; nil: the setting names none.
	Files func(v any) []string
	// Owners are those who may own the files beside root and whom the program runs as; it gets all of the table's settings.
	Owners func(settings map[string]any) []uint32
	// Secret says whether a value is or holds a secret, which is nobody's to read; nil: none does. It gets what Files gets.
	Secret func(v any) bool
}

// IsSecret is Setting.Secret of a value that is nothing but a secret.
func IsSecret(any) bool { return true }

// Config is what a new instance gets.
type Config struct {
	Name     string
	StateDir string // the instance may keep files below it, in a folder of its own name
	Settings map[string]any
	// Known is what Identity said of the device that has the provider's keys, "" before it was ever seen: what is secret
	// goes to that device alone.
	Known string
	Log   *slog.Logger
}

// Type is one kind of back end that this program was built with.
type Type struct {
	Name     string   // provider_type, "Software"
	Aliases  []string // other spellings that mean it, "MbedCrypto"
	Settings []Setting
	// Check says what is wrong with the settings together, each of which is right by itself; nil: nothing can be.
	Check func(settings map[string]any) error
	// New makes an instance. It must not wait for the device: one that is absent shows in Identity.
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
