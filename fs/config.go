package fs

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/nodes/caller"
	"github.com/parsecfs/parsecfs/nodes/gate"
	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Config is a configuration file, checked and with every default filled in.
type Config struct {
	File      string // as it was named
	Core      Core
	Wrapping  Wrapping
	Mount     Mount
	Audit     *Audit          // nil: no audit trail
	Admins    []uint32        // uids that are trusted beside root ([authenticator] admins)
	Units     []gate.UnitRule // of the authenticator SystemdUnit; nil: there is none
	SQLite    string          // sqlite_db_path, absolute; empty is the state directory's own
	Providers []Provider
}

// Core is [core_settings].
type Core struct {
	LogLevel            slog.Level
	BodyLenLimit        int64         // bytes of an input that cannot be streamed
	AllowDeprecated     bool          // keys that are too weak today may be generated
	OperationTimeout    time.Duration // of every operation but key generation
	GenerateTimeout     time.Duration
	DefaultProvider     string        // name; empty keeps what the KIM has
	KeysPerUser         int           // keys and drafts
	DraftExpiry         time.Duration // of a draft that nobody changes; 0: it stays
	TransactionsPerUser int           // open operation files, slots and drop box requests
	BufferPerUser       int64         // bytes that the requests of one user hold
}

// Wrapping is how [core_settings] wants the store's data key wrapped: wrapping, wrapping_pcrs and wrapping_pin_source.
type Wrapping struct {
	Kind string              // "file" or "tpm:PROVIDER"; empty leaves it to the store
	PCRs *psa.PCRs           // nil leaves them to the store
	PIN  providers.PINSource // not given: none
}

// Mount is [mount].
type Mount struct {
	Path        string // absolute, or empty
	Dropbox     bool
	AttrTimeout time.Duration // 0 to 1 s
	Transport   Transport     // empty: auto
}

// Audit is [audit].
type Audit struct {
	MaxBytes           int64         // at which a file of deeds is rotated
	Keep               int           // how many rotated ones stay
	KeepFor            time.Duration // no deeds younger than this are deleted
	OperationsMaxBytes int64         // as MaxBytes and Keep, of operations and counts; 0 is the same
	OperationsKeep     int
	Stop               bool // when_full = "stop": what cannot be recorded is refused; else it is dropped and counted
}

// Provider is one [[provider]].
type Provider struct {
	Name     string
	Type     providers.Type
	UID, GID uint32
	Mode     uint32 // permission bits of its directory
	// Capabilities are all that it may do, nil whatever it can.
	Capabilities []psa.Capability
	Settings     map[string]any // the type's own, checked by it
}

// Bounds and defaults of the configuration.
const (
	maxConfigBytes = 1 << 20
	maxProviders   = 64
	maxUnitRules   = 256

	defaultBodyLenLimit        = 1 << 20
	defaultOperationTimeout    = 30 * time.Second
	defaultGenerateTimeout     = 5 * time.Minute
	defaultKeysPerUser         = 10000
	defaultDraftExpiry         = 7 * 24 * time.Hour
	defaultTransactionsPerUser = 1024
	defaultBufferPerUser       = 64 << 20
	defaultAttrTimeout         = time.Second
	defaultAuditBytes          = 64 << 20
	defaultAuditKeep           = 8
	defaultAuditKeepFor        = 7 * 24 * time.Hour
)

// Problem is one thing about a configuration file that its author should know.
type Problem struct {
	File string
	Line int // from 1; 0 is the file as a whole
	Text string
	Hint string // what to do about it, or empty
}

// Error is "FILE:LINE: TEXT".
func (p *Problem) Error() string {
	if p.Line == 0 {
		return fmt.Sprintf("%s: %s", p.File, p.Text)
	}
	return fmt.Sprintf("%s:%d: %s", p.File, p.Line, p.Text)
}

// DefaultConfig is used without a configuration file: one provider, in software, and everything in the state directory.
func DefaultConfig(types providers.Registry) (*Config, error) {
	c, _, err := ParseConfig("default configuration", []byte(`
[[key_manager]]
name = "sqlite"
manager_type = "SQLite"
[[provider]]
name = "software"
provider_type = "Software"
`), types)
	return c, err
}

// LoadConfig reads a configuration file. The error is an *Error of KindConfig that joins one *Problem for each mistake;
// warnings name settings that are accepted but mean nothing here.
func LoadConfig(file string, types providers.Registry) (c *Config, warnings []*Problem, err error) {
	data, readers, err := readConfig(file)
	if err != nil {
		hint := psa.HintOf(err)
		if errors.Is(err, os.ErrNotExist) {
			hint = "without --config parsecfs has one provider, in software, and keeps everything in the state directory"
		}
		return nil, nil, &Error{KindConfig, err, hint}
	}
	return parseConfig(file, data, readers, types)
}

// readConfig reads a file that only root and our own user may change, because it says what the daemon does. readers says
// who else may read it, "" for nobody.
func readConfig(file string) (data []byte, readers string, err error) {
	f, err := providers.OpenTrusted(file, os.O_RDONLY)
	if err != nil {
		return nil, "", err
	}
	defer f.Close()
	if readers, err = readersOf(f); err != nil {
		return nil, "", err
	}
	data, err = io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err != nil {
		return nil, "", err
	}
	if len(data) > maxConfigBytes {
		return nil, "", fmt.Errorf("%s is larger than %d bytes, too large for a configuration", file, maxConfigBytes)
	}
	return data, readers, nil
}

// ParseConfig is LoadConfig of data that nobody else may read; file is its name in messages.
func ParseConfig(file string, data []byte, types providers.Registry) (c *Config, warnings []*Problem, err error) {
	return parseConfig(file, data, "", types)
}

func parseConfig(file string, data []byte, readers string, types providers.Registry) (c *Config, warnings []*Problem, err error) {
	p := &configParser{file: file, readers: readers, types: types, config: &Config{
		File: file,
		Core: Core{
			LogLevel:            slog.LevelInfo,
			BodyLenLimit:        defaultBodyLenLimit,
			OperationTimeout:    defaultOperationTimeout,
			GenerateTimeout:     defaultGenerateTimeout,
			KeysPerUser:         defaultKeysPerUser,
			DraftExpiry:         defaultDraftExpiry,
			TransactionsPerUser: defaultTransactionsPerUser,
			BufferPerUser:       defaultBufferPerUser,
		},
		Mount: Mount{Dropbox: true, AttrTimeout: defaultAttrTimeout},
	}}
	p.parse(data)
	if len(p.problems) > 0 {
		byLine := func(a, b *Problem) int { return cmp.Compare(a.Line, b.Line) }
		slices.SortStableFunc(p.problems, byLine)
		all := make([]error, len(p.problems))
		for i, problem := range p.problems {
			all[i] = problem
		}
		return nil, p.warnings, &Error{Kind: KindConfig, Err: errors.Join(all...)}
	}
	return p.config, p.warnings, nil
}

// configParser checks the document against the tables below and fills in config.
type configParser struct {
	file     string
	readers  string // who may read the file beside its owner and root
	types    providers.Registry
	lines    lines
	config   *Config
	problems []*Problem
	warnings []*Problem

	managers map[string]bool // names of [[key_manager]]
	named    []value         // names of providers in rules
}

// setting is one key of a table. Either set takes its value, or it is a setting of Parsec that means nothing here, and
// instead says what to do.
type setting struct {
	name    string
	set     func(v value)
	instead string
}

// value is one value of the document, with its place.
type value struct {
	path path
	raw  any
}

func (p *configParser) parse(data []byte) {
	var document map[string]any
	if err := toml.Unmarshal(data, &document); err != nil {
		problem := &Problem{File: p.file, Text: strings.TrimPrefix(err.Error(), "toml: ")}
		if d, ok := errors.AsType[*toml.DecodeError](err); ok {
			problem.Line, _ = d.Position()
		}
		p.problems = append(p.problems, problem)
		return
	}
	p.lines = indexLines(data)
	p.table(value{nil, document}, []setting{
		{name: "core_settings", set: p.core},
		{name: "mount", set: p.mount},
		{name: "audit", set: p.audit},
		{name: "listener", set: p.listener},
		{name: "authenticator", set: p.authenticators},
		{name: "key_manager", set: p.keyManagers},
		{name: "provider", set: p.providers},
	})
	if _, ok := document["key_manager"]; !ok {
		p.problem(nil, `exactly one [[key_manager]] is needed, with name and manager_type = "SQLite"`)
	}
	if _, ok := document["provider"]; !ok {
		p.problem(nil, "at least one [[provider]] is needed, with provider_type = "+p.typeNames())
	}
	p.checkDefault(document)
	p.checkRules()
	p.checkWrapping()
}

func (p *configParser) core(v value) {
	c := &p.config.Core
	p.table(v, []setting{
		{name: "log_level", set: func(v value) {
			levels := map[string]slog.Level{"trace": slog.LevelDebug - 4, "debug": slog.LevelDebug,
				"info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}
			if s, ok := p.oneOf(v, "trace", "debug", "info", "warn", "error"); ok {
				c.LogLevel = levels[s]
			}
		}},
		{name: "allow_deprecated", set: func(v value) {
			on, ok := v.raw.(bool)
			if !ok {
				p.wrong(v, "true or false")
			}
			c.AllowDeprecated = on
		}},
		{name: "body_len_limit", set: func(v value) { p.number(v, &c.BodyLenLimit, 1024, 1<<30, "bytes") }},
		{name: "operation_timeout", set: func(v value) { p.duration(v, &c.OperationTimeout, time.Second, time.Hour) }},
		{name: "generate_timeout", set: func(v value) { p.duration(v, &c.GenerateTimeout, time.Second, 24*time.Hour) }},
		{name: "default_provider", set: func(v value) { p.text(v, &c.DefaultProvider, "the name of a [[provider]]") }},
		{name: "keys_per_user", set: func(v value) { p.count(v, &c.KeysPerUser, 1, 100_000_000, "keys") }},
		{name: "draft_expiry", set: p.draftExpiry},
		{name: "transactions_per_user", set: func(v value) { p.count(v, &c.TransactionsPerUser, 1, 1<<20, "transactions") }},
		{name: "buffer_per_user", set: func(v value) { p.number(v, &c.BufferPerUser, 1024, 1<<40, "bytes") }},
		{name: "wrapping", set: func(v value) { p.text(v, &p.config.Wrapping.Kind, wrappings) }},
		{name: "wrapping_pcrs", set: p.wrappingPCRs},
		{name: "wrapping_pin_source", set: p.wrappingPIN},
		{name: "allow_root", instead: "leave it out: parsecfs is made to run as root, and file permissions say who may use a key"},
		{name: "thread_pool_size", instead: "leave it out: there is no pool, each provider runs as many calls at once as its device allows"},
		{name: "idle_listener_sleep_duration", instead: "leave it out: parsecfs does not poll"},
		{name: "log_timestamp", instead: "leave it out: each line of the log has its time"},
		{name: "log_error_details", instead: "leave it out: each user finds their own failures in last_error"},
		{name: "buffer_size_limit", instead: "set body_len_limit, which limits requests; each operation limits its own answers"},
	})
	if c.BufferPerUser < c.BodyLenLimit {
		p.problem(v.path, fmt.Sprintf("buffer_per_user (%d) must be at least body_len_limit (%d), so that one request fits",
			c.BufferPerUser, c.BodyLenLimit))
	}
}

func (p *configParser) draftExpiry(v value) {
	to := &p.config.Core.DraftExpiry
	p.duration(v, to, 0, 10*365*24*time.Hour)
	if *to > 0 && *to < time.Second {
		p.wrong(v, "0 for never, or seconds, or a string like \"168h\", from 1s")
	}
}

func (p *configParser) mount(v value) {
	m := &p.config.Mount
	p.table(v, []setting{
		{name: "path", set: func(v value) { p.absolute(v, &m.Path) }},
		{name: "dropbox", set: func(v value) {
			if s, ok := p.oneOf(v, "lineage", "off"); ok {
				m.Dropbox = s == "lineage"
			}
		}},
		{name: "attr_timeout", set: func(v value) { p.duration(v, &m.AttrTimeout, 0, time.Second) }},
		{name: "transport", set: func(v value) {
			if s, ok := p.oneOf(v, string(TransportAuto), string(TransportURing), string(TransportDevice)); ok {
				m.Transport = Transport(s)
			}
		}},
	})
}

func (p *configParser) audit(v value) {
	a := &Audit{MaxBytes: defaultAuditBytes, Keep: defaultAuditKeep, KeepFor: defaultAuditKeepFor, Stop: true}
	p.config.Audit = a
	p.table(v, []setting{
		{name: "max_bytes", set: func(v value) { p.number(v, &a.MaxBytes, 4096, 1<<40, "bytes") }},
		{name: "keep", set: func(v value) { p.count(v, &a.Keep, 1, 1000, "files") }},
		{name: "keep_for", set: func(v value) { p.duration(v, &a.KeepFor, 0, 10*365*24*time.Hour) }},
		{name: "operations_max_bytes", set: func(v value) { p.number(v, &a.OperationsMaxBytes, 4096, 1<<40, "bytes") }},
		{name: "operations_keep", set: func(v value) { p.count(v, &a.OperationsKeep, 1, 1000, "files") }},
		{name: "when_full", set: func(v value) {
			if s, ok := p.oneOf(v, "stop", "drop"); ok {
				a.Stop = s == "stop"
			}
		}},
	})
}

func (p *configParser) listener(v value) {
	p.table(v, []setting{
		{name: "listener_type", instead: "leave it out: there is no socket, programs open files below the mountpoint"},
		{name: "timeout", instead: "set core_settings.operation_timeout, which limits how long a caller waits"},
		{name: "socket_path", instead: "set mount.path, where the tree is mounted"},
	})
}

// authenticators takes one table, as Parsec has it, or an array of them.
func (p *configParser) authenticators(v value) {
	tables, ok := v.raw.([]any)
	if !ok {
		p.authenticator(v)
		return
	}
	seen := map[any]bool{}
	for i, raw := range tables {
		t := value{v.path.index(i), raw}
		p.authenticator(t)
		if m, ok := raw.(map[string]any); ok {
			if s, isString := m["auth_type"].(string); isString && seen[s] {
				p.problem(t.path.key("auth_type"), fmt.Sprintf("auth_type %q is configured twice", s))
			} else {
				seen[s] = true
			}
		}
	}
}

const authTypes = `"UnixPeerCredentials", "SystemdUnit"`

func (p *configParser) authenticator(v value) {
	table, ok := v.raw.(map[string]any)
	if !ok {
		p.wrong(v, "a table, or an array of tables")
		return
	}
	kind := value{v.path.key("auth_type"), table["auth_type"]}
	settings := []setting{{name: "auth_type", set: func(value) {}}}
	switch kind.raw {
	case nil:
		p.problem(v.path, "authenticator: auth_type is missing; allowed: "+authTypes)
		return
	case "UnixPeerCredentials":
		settings = append(settings, p.peerCredentials()...)
	case "SystemdUnit":
		p.config.Units = []gate.UnitRule{}
		settings = append(settings, setting{name: "rules", set: p.unitRules})
	case "Direct", "JwtSvid":
		p.problemHint(kind.path, fmt.Sprintf("auth_type %q does not exist here; allowed: %s", kind.raw, authTypes),
			"the kernel knows who opens a file, and the file's permissions decide: give each application its own user")
		return
	default:
		p.wrong(kind, authTypes)
		return
	}
	p.table(v, settings)
}

// unitRules reads which systemd units may use which providers.
func (p *configParser) unitRules(v value) {
	const allowed = `an array like [{ provider = "tpm", units = ["nginx.service", "worker@.service"] }]; without provider a rule is for all`
	rules, ok := v.raw.([]any)
	if !ok || len(rules) > maxUnitRules {
		p.wrong(v, fmt.Sprintf("%s; at most %d", allowed, maxUnitRules))
		return
	}
	for i, raw := range rules {
		r := value{v.path.index(i), raw}
		if table, ok := raw.(map[string]any); !ok || table["units"] == nil {
			p.wrong(r, allowed)
			continue
		}
		var rule gate.UnitRule
		p.table(r, []setting{
			{name: "provider", set: func(v value) {
				if p.text(v, &rule.Provider, "the name of a [[provider]]") {
					p.named = append(p.named, v)
				}
			}},
			{name: "units", set: func(v value) {
				units, ok := v.raw.([]any)
				if !ok || len(units) > caller.UnitsMost {
					p.wrong(v, fmt.Sprintf("an array of at most %d names of systemd units", caller.UnitsMost))
					return
				}
				for i, raw := range units {
					unit, _ := raw.(string)
					if err := caller.ValidUnit(unit); err != nil {
						p.problem(v.path.index(i), fmt.Sprintf("%s: %v", v.path, err))
						continue
					}
					rule.Units = append(rule.Units, unit)
				}
			}},
		})
		p.config.Units = append(p.config.Units, rule)
	}
}

// checkRules runs last, when all providers are known.
func (p *configParser) checkRules() {
	for _, v := range p.named {
		if !slices.ContainsFunc(p.config.Providers, func(r Provider) bool { return r.Name == v.raw }) {
			p.problem(v.path, fmt.Sprintf("%s: no [[provider]] has the name %q", v.path, v.raw))
		}
	}
}

// peerCredentials are the settings of the authenticator that uses what the kernel knows about the caller.
func (p *configParser) peerCredentials() []setting {
	return []setting{
		{name: "workload_endpoint", instead: "leave it out: parsecfs does not use SPIFFE, since the kernel knows who opens a file"},
		{name: "admins", set: func(v value) {
			const allowed = `an array like [{ name = "1000" }], of users' names or numbers`
			admins, ok := v.raw.([]any)
			if !ok {
				p.wrong(v, allowed)
				return
			}
			for i, raw := range admins {
				a := value{v.path.index(i), raw}
				if t, ok := raw.(map[string]any); !ok || t["name"] == nil {
					p.wrong(a, allowed)
					continue
				}
				p.table(a, []setting{{name: "name", set: func(v value) {
					var uid uint32
					if p.owner(v, &uid) {
						p.config.Admins = append(p.config.Admins, uid)
					}
				}}})
			}
		}},
	}
}

func (p *configParser) keyManagers(v value) {
	p.managers = map[string]bool{}
	tables, ok := v.raw.([]any)
	if !ok {
		p.problem(v.path, "key_manager must be written [[key_manager]]")
		return
	}
	for i, raw := range tables {
		t := value{v.path.index(i), raw}
		if i > 0 {
			p.problem(t.path, "a second [[key_manager]]: only one is allowed, and all providers share it")
			continue
		}
		table, _ := raw.(map[string]any)
		for _, name := range []string{"name", "manager_type"} {
			if _, ok := table[name]; !ok {
				p.problem(t.path, "key_manager: "+name+" is missing")
			}
		}
		p.table(t, []setting{
			{name: "name", set: func(v value) {
				var name string
				if p.text(v, &name, "a name for providers to refer to") {
					p.managers[name] = true
				}
			}},
			{name: "manager_type", set: func(v value) {
				switch v.raw {
				case "SQLite":
				case "OnDisk":
					p.problemHint(v.path, `manager_type "OnDisk" does not exist here; allowed: "SQLite"`,
						"use SQLite: a directory of mapping files can be damaged by a power cut, an SQLite file with a journal cannot")
				default:
					p.wrong(v, `"SQLite"`)
				}
			}},
			{name: "sqlite_db_path", set: func(v value) {
				p.absolute(v, &p.config.SQLite)
				p.trusted(v, "sqlite_db_path", nil, filepath.Dir(p.config.SQLite), p.config.SQLite)
			}},
			{name: "store_path", instead: "set sqlite_db_path, the path of the SQLite file; store_path is for Parsec's OnDisk manager"},
		})
	}
}

func (p *configParser) providers(v value) {
	tables, ok := v.raw.([]any)
	if !ok {
		p.problem(v.path, "provider must be written [[provider]]")
		return
	}
	if len(tables) > maxProviders {
		p.problem(v.path, fmt.Sprintf("%d providers; at most %d are allowed", len(tables), maxProviders))
		return
	}
	names := map[string]int{}
	for i, raw := range tables {
		t := value{v.path.index(i), raw}
		provider, ok := p.provider(t)
		if !ok {
			continue
		}
		if line, twice := names[provider.Name]; twice {
			p.problem(t.path.key("name"), fmt.Sprintf("provider %q is configured twice, the first time in line %d", provider.Name, line))
			continue
		}
		names[provider.Name] = p.lines.of(t.path)
		p.config.Providers = append(p.config.Providers, provider)
	}
}

func (p *configParser) provider(v value) (Provider, bool) {
	table, ok := v.raw.(map[string]any)
	if !ok {
		p.problem(v.path, "provider must be written [[provider]]")
		return Provider{}, false
	}
	// The other settings depend on the type, so it is read first wherever it is in the table.
	raw, ok := table["provider_type"]
	if !ok {
		p.problem(v.path, "provider: provider_type is missing; allowed: "+p.typeNames())
		return Provider{}, false
	}
	typeName, _ := raw.(string)
	kind, ok := p.types.Lookup(typeName)
	if !ok {
		t := value{v.path.key("provider_type"), raw}
		if slices.Contains([]string{"Tpm", "Pkcs11", "TrustedService", "CryptoAuthLib"}, typeName) {
			p.problem(t.path, fmt.Sprintf("provider_type %q is not in this build, which has: %s", typeName, p.typeNames()))
		} else {
			p.wrong(t, p.typeNames())
		}
		return Provider{}, false
	}
	r := Provider{Name: strings.ToLower(kind.Name), Type: kind, Mode: 0o755,
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Settings: map[string]any{}}
	settings := []setting{
		{name: "provider_type", set: func(value) {}},
		{name: "name", set: func(v value) {
			if s, ok := v.raw.(string); !ok {
				p.wrong(v, "a string")
			} else if err := checkProviderName(s); err != nil {
				p.problem(v.path, "provider: "+err.Error())
			} else {
				r.Name = s
			}
		}},
		{name: "key_info_manager", set: func(v value) {
			var name string
			if p.text(v, &name, "the name of the [[key_manager]]") && p.managers != nil && !p.managers[name] {
				p.problem(v.path, fmt.Sprintf("key_info_manager %q: no [[key_manager]] has that name", name))
			}
		}},
		{name: "capabilities", set: func(v value) {
			var file string
			p.absolute(v, &file)
			if file == "" {
				return
			}
			var err error
			if r.Capabilities, err = readCapabilities(file); err != nil {
				p.problemHint(v.path, "provider: "+err.Error(), cmp.Or(psa.HintOf(err), "write lines of the provider's own capabilities file into it"))
			}
		}},
		{name: "owner", set: func(v value) { p.owner(v, &r.UID) }},
		{name: "group", set: func(v value) { p.group(v, &r.GID) }},
		{name: "mode", set: func(v value) {
			s, ok := v.raw.(string)
			mode, err := strconv.ParseUint(s, 8, 32)
			if !ok || err != nil || mode > 0o777 {
				p.wrong(v, `a string of octal digits from "0" to "0777", such as "0750"`)
				return
			}
			r.Mode = uint32(mode)
		}},
	}
	before := len(p.problems)
	var owned []func() // checks that need the whole table
	for _, own := range kind.Settings {
		settings = append(settings, setting{name: own.Name, set: func(v value) {
			if err := own.Check(v.raw); err != nil {
				p.problem(v.path, fmt.Sprintf("%s: %v", own.Name, err))
				return
			}
			r.Settings[own.Name] = v.raw
			if own.Secret != nil && own.Secret(v.raw) {
				p.secret(v, own.Name)
			}
			if own.Files == nil {
				return
			}
			if own.Owners == nil {
				p.trusted(v, own.Name, nil, own.Files(v.raw)...)
				return
			}
			owned = append(owned, func() { p.trusted(v, own.Name, own.Owners(r.Settings), own.Files(v.raw)...) })
		}})
	}
	p.table(v, settings)
	for _, check := range owned {
		check()
	}
	if kind.Check != nil && len(p.problems) == before {
		if err := kind.Check(r.Settings); err != nil {
			p.problem(v.path, "provider: "+err.Error())
		}
	}
	return r, len(p.problems) == before
}

// readCapabilities reads the lines of a capabilities file.
func readCapabilities(file string) ([]psa.Capability, error) {
	data, _, err := readConfig(file)
	if err != nil {
		return nil, err
	}
	lines := []psa.Capability{}
	for i, text := range strings.Split(string(data), "\n") {
		if text = strings.TrimRight(text, "\r"); text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		c, err := psa.ParseCapability(text)
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, i+1, err)
		}
		lines = append(lines, c)
	}
	return lines, nil
}

// checkDefault runs last, when all providers are known.
func (p *configParser) checkDefault(document map[string]any) {
	name := p.config.Core.DefaultProvider
	if name == "" || len(p.problems) > 0 {
		return
	}
	var names []string
	for _, provider := range p.config.Providers {
		names = append(names, strconv.Quote(provider.Name))
		if provider.Name == name {
			return
		}
	}
	p.problem(path{"core_settings", "default_provider"},
		fmt.Sprintf("default_provider %q: no [[provider]] has that name; allowed: %s", name, strings.Join(names, ", ")))
}

const wrappings = `"file", or "tpm:" followed by the name of a [[provider]]`

func (p *configParser) wrappingPCRs(v value) {
	list, ok := v.raw.([]any)
	numbers := make([]int, len(list))
	for i, raw := range list {
		n, isNumber := raw.(int64)
		ok = ok && isNumber && n == int64(int(n))
		numbers[i] = int(n)
	}
	pcrs, err := psa.NewPCRs(numbers)
	if !ok || err != nil {
		p.wrong(v, fmt.Sprintf("an array of a TPM's registers from 0 to %d, such as [0, 7]", psa.MaxPCR))
		return
	}
	p.config.Wrapping.PCRs = &pcrs
}

func (p *configParser) wrappingPIN(v value) {
	s, ok := v.raw.(string)
	source, err := providers.ParsePINSource(s)
	if !ok || err != nil {
		p.wrong(v, providers.PINForms)
		return
	}
	p.config.Wrapping.PIN = source
}

// checkWrapping runs last, when all providers are known.
func (p *configParser) checkWrapping() {
	w := p.config.Wrapping
	at := path{"core_settings"}
	if w.Kind == "" && w.PCRs == nil && !w.PIN.Given() {
		return
	}
	name, byProvider := strings.CutPrefix(w.Kind, kim.WrapProvider)
	switch {
	case w.PCRs != nil && !byProvider:
		p.problem(at.key("wrapping_pcrs"), `wrapping_pcrs is allowed only with wrapping = "tpm:PROVIDER"`)
	case w.PIN.Given() && !byProvider:
		p.problem(at.key("wrapping_pin_source"), `wrapping_pin_source is allowed only with wrapping = "tpm:PROVIDER"`)
	case w.Kind == kim.WrapFile, byProvider && slices.ContainsFunc(p.config.Providers, func(r Provider) bool { return r.Name == name }):
	case byProvider:
		p.problem(at.key("wrapping"), fmt.Sprintf("wrapping: no [[provider]] has the name %q", name))
	default:
		p.wrong(value{at.key("wrapping"), w.Kind}, wrappings)
	}
}

// checkProviderName says what is wrong with a provider's name, which names a directory as a key's name does.
func checkProviderName(name string) error {
	if name == "default" {
		return errors.New(`name "default" is reserved for the link to the default provider`)
	}
	if err := kim.ValidName(name); err != nil {
		return fmt.Errorf("name %q: %w", name, errors.Unwrap(err))
	}
	return nil
}

func (p *configParser) typeNames() string {
	var names []string
	for _, t := range p.types {
		names = append(names, strconv.Quote(t.Name))
		for _, alias := range t.Aliases {
			names = append(names, strconv.Quote(alias)+" (means "+t.Name+")")
		}
	}
	return strings.Join(names, ", ")
}

// table gives each key of v to its setting, in the order of the file.
func (p *configParser) table(v value, settings []setting) {
	table, ok := v.raw.(map[string]any)
	if !ok {
		p.wrong(v, "a table")
		return
	}
	keys := make([]string, 0, len(table))
	for key := range table {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b string) int {
		return cmp.Or(cmp.Compare(p.lines.of(v.path.key(a)), p.lines.of(v.path.key(b))), cmp.Compare(a, b))
	})
	for _, key := range keys {
		at := v.path.key(key)
		i := slices.IndexFunc(settings, func(s setting) bool { return s.name == key })
		switch {
		case i < 0:
			var allowed []string
			for _, s := range settings {
				if s.instead == "" {
					allowed = append(allowed, s.name)
				}
			}
			p.problem(at, fmt.Sprintf("unknown key %q; allowed: %s", at, strings.Join(allowed, ", ")))
		case settings[i].instead != "":
			p.warn(at, fmt.Sprintf("%s means nothing here", at), settings[i].instead)
		default:
			settings[i].set(value{at, table[key]})
		}
	}
}

func (p *configParser) problem(at path, text string) { p.problemHint(at, text, "") }

func (p *configParser) problemHint(at path, text, hint string) {
	p.problems = append(p.problems, &Problem{p.file, p.lines.of(at), text, hint})
}

func (p *configParser) warn(at path, text, instead string) {
	p.warnings = append(p.warnings, &Problem{p.file, p.lines.of(at), text, instead})
}

// wrong reports a value that is not allowed. It does not quote the value, which may be a PIN.
func (p *configParser) wrong(v value, allowed string) {
	p.problem(v.path, fmt.Sprintf("wrong value for %s; allowed: %s", v.path, allowed))
}

func (p *configParser) oneOf(v value, allowed ...string) (string, bool) {
	if s, ok := v.raw.(string); ok && slices.Contains(allowed, s) {
		return s, true
	}
	quoted := make([]string, len(allowed))
	for i, a := range allowed {
		quoted[i] = strconv.Quote(a)
	}
	p.wrong(v, strings.Join(quoted, ", "))
	return "", false
}

func (p *configParser) text(v value, to *string, allowed string) bool {
	s, ok := v.raw.(string)
	if !ok || s == "" {
		p.wrong(v, allowed)
		return false
	}
	*to = s
	return true
}

// absolute takes an absolute path. The daemon's working directory is /, so a relative path would mislead.
func (p *configParser) absolute(v value, to *string) {
	s, ok := v.raw.(string)
	if !ok || !filepath.IsAbs(s) || strings.ContainsRune(s, 0) {
		p.wrong(v, "an absolute path")
		return
	}
	*to = filepath.Clean(s)
}

// trusted reports files that the setting names and that others could change. A missing file is no mistake yet: it is
// checked again when it is used.
func (p *configParser) trusted(v value, name string, owners []uint32, files ...string) {
	for _, file := range files {
		if file == "" {
			continue
		}
		if err := providers.CheckTrusted(file, owners...); psa.StatusOf(err) == psa.StatusNotPermitted {
			p.problemHint(v.path, fmt.Sprintf("%s: %v", name, err), psa.HintOf(err))
			return
		}
	}
}

func (p *configParser) number(v value, to *int64, least, most int64, unit string) {
	n, ok := v.raw.(int64)
	if !ok || n < least || n > most {
		p.wrong(v, fmt.Sprintf("a number of %s from %d to %d", unit, least, most))
		return
	}
	*to = n
}

func (p *configParser) count(v value, to *int, least, most int64, unit string) {
	n := int64(*to)
	p.number(v, &n, least, most, unit)
	*to = int(n)
}

// duration takes a string like "30s" or "1m30s", or a whole number of seconds.
func (p *configParser) duration(v value, to *time.Duration, least, most time.Duration) {
	d := time.Duration(-1)
	switch raw := v.raw.(type) {
	case int64:
		if raw >= 0 && raw <= int64(most/time.Second) {
			d = time.Duration(raw) * time.Second
		}
	case string:
		if parsed, err := time.ParseDuration(raw); err == nil {
			d = parsed
		}
	}
	if d < least || d > most {
		p.wrong(v, fmt.Sprintf("seconds, or a string like \"500ms\" or \"1m30s\", from %v to %v", least, most))
		return
	}
	*to = d
}

func (p *configParser) owner(v value, to *uint32) bool {
	return p.id(v, to, "user", func(name string) (string, error) {
		u, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return u.Uid, nil
	})
}

func (p *configParser) group(v value, to *uint32) bool {
	return p.id(v, to, "group", func(name string) (string, error) {
		g, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return g.Gid, nil
	})
}

// id takes a number, or a name that this machine knows. 2^32-1 is no id: the kernel means "unchanged" by it.
func (p *configParser) id(v value, to *uint32, what string, lookup func(string) (string, error)) bool {
	var text string
	switch raw := v.raw.(type) {
	case int64:
		text = strconv.FormatInt(raw, 10)
	case string:
		text = raw
		if _, err := strconv.ParseUint(raw, 10, 32); err != nil {
			id, err := lookup(raw)
			if err != nil {
				p.problem(v.path, fmt.Sprintf("%s: no %s %q on this machine; allowed: a %s's name or number", v.path, what, raw, what))
				return false
			}
			text = id
		}
	}
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil || n == 1<<32-1 {
		p.wrong(v, fmt.Sprintf("a %s's name or number", what))
		return false
	}
	*to = uint32(n)
	return true
}
