package pkcs11

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

const (
	defaultSessions = 16
	maxSessions     = 256
)

func text(v any) error {
	if s, ok := v.(string); !ok || s == "" {
		return errors.New("must be a string that is not empty")
	}
	return nil
}

func boolean(v any) error {
	if _, ok := v.(bool); !ok {
		return errors.New("must be true or false")
	}
	return nil
}

func path(v any) error {
	if s, ok := v.(string); !ok || !filepath.IsAbs(s) {
		return errors.New("must be an absolute path")
	}
	return nil
}

var settings = []providers.Setting{
	{Name: "library_path", Help: "the PKCS #11 module, an absolute path", Check: path, Files: func(v any) []string { return []string{v.(string)} }},
	{Name: "serial_number", Help: "the token's serial number", Check: text},
	{Name: "token_label", Help: "the token's label", Check: text},
	{Name: "slot_number", Help: "the slot that the token is in at the start; serial_number or token_label is better",
		Check: func(v any) error {
			if n, ok := v.(int64); !ok || n < 0 {
				return errors.New("must be a number, 0 or more")
			}
			return nil
		}},
	{Name: "uri", Help: "the token as a PKCS #11 URI (RFC 7512): token, serial, manufacturer, model, slot-id, module-path, pin-source", Check: func(v any) error {
		s, ok := v.(string)
		if !ok {
			return errors.New("must be a string")
		}
		_, err := parseTokenURI(s)
		return err
	}, Files: func(v any) []string {
		values, _ := parseTokenURI(v.(string)) // it is right
		return []string{values["module-path"], pinFile(values["pin-source"])}
	}, Secret: func(v any) bool {
		values, _ := parseTokenURI(v.(string))
		return values["pin-value"] != ""
	}},
	{Name: "user_pin", Help: "the PIN, as text, str:TEXT or hex:BYTES; pin_source keeps it out of the configuration", Check: func(v any) error {
		_, err := parsePIN(v)
		return err
	}, Secret: providers.IsSecret},
	{Name: "pin_source", Help: "where the PIN is: " + providers.PINForms, Check: func(v any) error {
		s, ok := v.(string)
		if !ok {
			return errors.New("must be a string: " + providers.PINForms)
		}
		_, err := providers.ParsePINSource(s)
		return err
	}, Files: func(v any) []string { return []string{pinFile(v.(string))} }},
	{Name: "software_public_operations", Help: "has no effect: what needs no secret is always done in software", Check: boolean},
	{Name: "allow_export", Help: "whether keys can be made that can be exported (default true)", Check: boolean},
	{Name: "environment", Help: "a table of environment variables for the module, such as SOFTHSM2_CONF", Check: func(v any) error {
		_, err := parseEnvironment(v)
		return err
	}, Files: environmentFiles, Owners: owners},
	{Name: "user", Help: "the user that the module runs as, " + userForms + "; only root can choose another user", Check: func(v any) error {
		_, err := parseAccount(v)
		return err
	}},
	{Name: "keep_capabilities", Help: "a list of capabilities that the module's process keeps (default none)", Check: func(v any) error {
		_, err := parseCapabilities(v)
		return err
	}},
	{Name: "init_args", Help: "the reserved argument of C_Initialize, which NSS needs", Check: text},
	{Name: "sessions", Help: fmt.Sprintf("how many calls the token does at once, 1 to %d (default %d)", maxSessions, defaultSessions), Check: func(v any) error {
		if n, ok := v.(int64); !ok || n < 1 || n > maxSessions {
			return fmt.Errorf("must be a number from 1 to %d", maxSessions)
		}
		return nil
	}},
}

// parseTokenURI reads a URI that names a token, but no object on it.
func parseTokenURI(s string) (map[string]string, error) {
	values, err := parseURI(s)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{"object", "type", "id"} {
		if _, ok := values[name]; ok {
			return nil, fmt.Errorf("%s names an object, but a provider uses the whole token", name)
		}
	}
	if n, ok := values["slot-id"]; ok {
		if _, err := strconv.ParseUint(n, 10, 64); err != nil {
			return nil, errors.New("slot-id must be a number")
		}
	}
	if library, ok := values["module-path"]; ok && !filepath.IsAbs(library) {
		return nil, errors.New("module-path must be an absolute path")
	}
	if source, ok := values["pin-source"]; ok {
		if _, err := providers.ParsePINSource(source); err != nil {
			return nil, fmt.Errorf("pin-source: %w", err)
		}
	}
	if pin, ok := values["pin-value"]; ok && (pin == "" || len(pin) > providers.MaxPIN) {
		return nil, fmt.Errorf("pin-value: a PIN has 1 to %d bytes", providers.MaxPIN)
	}
	return values, nil
}

// pinFile is the file that pin_source names, "" if it names none.
func pinFile(source string) string {
	s, err := providers.ParsePINSource(source)
	if err != nil {
		return "" // none is given
	}
	return s.File
}

// owners are the users who may own what the environment names, besides root and the user of the program: the module runs as
// that user, who controls what it does in any case.
func owners(settings map[string]any) []uint32 {
	if a, err := parseAccount(settings["user"]); err == nil {
		return []uint32{a.UID}
	}
	return nil
}

// environmentFiles are the files and directories that the values name or list: configurations, directories of tokens,
// libraries. Devices are left out, since their drivers control them.
func environmentFiles(v any) (files []string) {
	for _, value := range v.(map[string]any) {
		for path := range strings.SplitSeq(value.(string), ":") {
			if !filepath.IsAbs(path) {
				continue
			}
			if info, err := os.Stat(path); err == nil && (info.Mode().IsRegular() || info.IsDir()) {
				files = append(files, path)
			}
		}
	}
	slices.Sort(files)
	return files
}

func parseEnvironment(v any) (env []string, err error) {
	table, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New(`must be a table of strings: { SOFTHSM2_CONF = "/etc/softhsm2.conf" }`)
	}
	for name, v := range table {
		value, ok := v.(string)
		if !ok || name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return nil, fmt.Errorf("%q: each entry must be a name and a string", name)
		}
		env = append(env, name+"="+value)
	}
	slices.Sort(env)
	return env, nil
}

// words are all settings, combined.
type words struct {
	launch   launch
	selector selector
	pin      providers.PINSource
}

// together combines the settings, after each was checked by itself.
func together(settings map[string]any) (w words, err error) {
	get := func(name string) string { s, _ := settings[name].(string); return s }
	uri := map[string]string{}
	if s := get("uri"); s != "" {
		if uri, err = parseTokenURI(s); err != nil {
			return w, err
		}
	}
	either := func(setting, attribute string) string {
		s := get(setting)
		if s != "" && uri[attribute] != "" && err == nil {
			err = fmt.Errorf("only one of %s and %s (in uri) can be set", setting, attribute)
		}
		return cmp.Or(s, uri[attribute])
	}
	w.launch = launch{library: either("library_path", "module-path"), reserved: get("init_args"), width: defaultSessions}
	w.selector = selector{label: either("token_label", "token"), serial: either("serial_number", "serial"), manufacturer: uri["manufacturer"], model: uri["model"]}
	pin, source := either("user_pin", "pin-value"), either("pin_source", "pin-source")
	switch {
	case err != nil:
		return w, err
	case w.launch.library == "":
		return w, errors.New("set library_path, or module-path in uri")
	case pin != "" && source != "":
		return w, errors.New("the configuration has both a PIN and a source of it; only one can be set")
	case get("user_pin") != "":
		w.pin.Value, err = parsePIN(pin)
	case pin != "":
		w.pin.Value = []byte(pin)
	case source != "":
		w.pin, err = providers.ParsePINSource(source)
	}
	if err != nil {
		return w, err
	}
	if v, ok := settings["environment"]; ok {
		if w.launch.environment, err = parseEnvironment(v); err != nil {
			return w, err
		}
		w.launch.files = environmentFiles(v)
	}
	if v, ok := settings["user"]; ok {
		if w.launch.user, err = parseAccount(v); err != nil {
			return w, err
		}
	}
	if v, ok := settings["keep_capabilities"]; ok {
		if w.launch.capabilities, err = parseCapabilities(v); err != nil {
			return w, err
		}
	}
	if n, ok := settings["sessions"].(int64); ok {
		w.launch.width = int(n)
	}
	if n, ok := settings["slot_number"].(int64); ok {
		w.selector.slot, w.selector.bySlot = uint64(n), true
	} else if n, ok := uri["slot-id"]; ok {
		w.selector.slot, err = strconv.ParseUint(n, 10, 64)
		w.selector.bySlot = true
	}
	return w, err
}

func newProvider(_ context.Context, c providers.Config) (providers.Provider, error) {
	wrong := func(format string, args ...any) (providers.Provider, error) {
		return nil, psa.Errorf(psa.StatusInvalidArgument, format, args...)
	}
	for name, v := range c.Settings {
		i := slices.IndexFunc(settings, func(s providers.Setting) bool { return s.Name == name })
		if i < 0 {
			return wrong("unknown setting %s", name)
		}
		if err := settings[i].Check(v); err != nil {
			return wrong("%s: %w", name, err)
		}
	}
	w, err := together(c.Settings)
	if err != nil {
		return wrong("%w", err)
	}
	if err := w.launch.mayBecome(); err != nil {
		return nil, err
	}
	if os.Geteuid() == 0 && w.launch.user == nil {
		c.Log.Warn("the PKCS #11 module runs as root and can change root's files; set user = \"NAME\" in its table to run it as a user who "+
			"owns only the token's files", "provider", c.Name)
	}
	if s := &w.selector; s.bySlot && (s.serial != "" || s.label != "") {
		c.Log.Warn("slot_number is ignored: serial number or label identify the token, while the numbers of slots change", "provider", c.Name)
		s.slot, s.bySlot = 0, false
	}
	p := &provider{allowExport: true, dir: filepath.Join(c.StateDir, c.Name), log: c.Log}
	if v, ok := c.Settings["allow_export"].(bool); ok {
		p.allowExport = v
	}
	if v, ok := c.Settings["software_public_operations"].(bool); ok && !v {
		c.Log.Warn("software_public_operations is ignored: what needs no secret is always done in software", "provider", c.Name)
	}
	p.pin = pins{w.pin, refusals{filepath.Join(p.dir, "refused-pin")}}
	w.launch.lock = filepath.Join(p.dir, "worker.lock")
	p.token = openToken(w.launch, w.selector, w.pin, c.Log)
	return p, nil
}
