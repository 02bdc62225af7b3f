package fs

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers"
)

// testTypes is a registry like the program's, with a type that has settings.
var testTypes = providers.Registry{
	{Name: "Software", Aliases: []string{"MbedCrypto"}},
	{Name: "Slots", Settings: []providers.Setting{{Name: "slot_number", Check: func(v any) error {
		if n, ok := v.(int64); !ok || n < 0 {
			return errors.New("allowed: a slot's number from 0")
		}
		return nil
	}}}},
}

const minimal = `
[[key_manager]]
name = "sqlite"
manager_type = "SQLite"
[[provider]]
provider_type = "Software"
`

func TestConfigFull(t *testing.T) {
	c, warnings, err := ParseConfig("c.toml", []byte(`
[core_settings]
log_level = "warn"
allow_deprecated = false
body_len_limit = 65536
operation_timeout = "2s"
generate_timeout = 600
default_provider = "second"
keys_per_user = 5
draft_expiry = "48h"
transactions_per_user = 6
buffer_per_user = 1_000_000
wrapping = "tpm:second"
wrapping_pcrs = [7, 0]
wrapping_pin_source = "file:///run/pin"
[mount]
path = "/mnt/keys/"
dropbox = "off"
attr_timeout = "500ms"
transport = "uring"
[[authenticator]]
auth_type = "UnixPeerCredentials"
admins = [{ name = "1000" }, { name = "root" }]
[[authenticator]]
auth_type = "SystemdUnit"
rules = [{ provider = "second", units = ["nginx.service", "worker@.service"] }, { units = [] }]
[[key_manager]]
name = "kim"
manager_type = "SQLite"
sqlite_db_path = "/var/lib/x.sqlite3"
[[provider]]
provider_type = "MbedCrypto"
key_info_manager = "kim"
owner = 7
group = "root"
mode = "0750"
[[provider]]
slot_number = 3
name = "second"
provider_type = "Slots"
`), testTypes)
	if err != nil || len(warnings) != 0 {
		t.Fatal(err, warnings)
	}
	if rules := fmt.Sprint(c.Units); rules != "[{second [nginx.service worker@.service]} { []}]" {
		t.Errorf("rules of units: %s", rules)
	}
	wantCore := Core{slog.LevelWarn, 65536, false, 2 * time.Second, 10 * time.Minute, "second", 5, 48 * time.Hour, 6, 1_000_000}
	if c.Core != wantCore {
		t.Errorf("core_settings: %+v, want %+v", c.Core, wantCore)
	}
	if w := c.Wrapping; w.Kind != "tpm:second" || w.PCRs == nil || *w.PCRs != 1<<0|1<<7 || w.PIN.File != "/run/pin" {
		t.Errorf("wrapping: %+v", w)
	}
	if c.Mount != (Mount{"/mnt/keys", false, 500 * time.Millisecond, TransportURing}) {
		t.Errorf("mount: %+v", c.Mount)
	}
	if fmt.Sprint(c.Admins) != "[1000 0]" || c.SQLite != "/var/lib/x.sqlite3" {
		t.Errorf("admins %v, sqlite_db_path %q", c.Admins, c.SQLite)
	}
	if len(c.Providers) != 2 {
		t.Fatalf("%d providers", len(c.Providers))
	}
	a, b := c.Providers[0], c.Providers[1]
	if a.Name != "software" || a.Type.Name != "Software" || a.UID != 7 || a.GID != 0 || a.Mode != 0o750 {
		t.Errorf("first provider: %+v", a)
	}
	if b.Name != "second" || b.Type.Name != "Slots" || b.Mode != 0o755 || b.Settings["slot_number"] != int64(3) {
		t.Errorf("second provider: %+v", b)
	}
}

func TestDefaultConfig(t *testing.T) {
	c, err := DefaultConfig(testTypes)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Providers) != 1 || c.Providers[0].Name != "software" || !c.Mount.Dropbox || c.Mount.AttrTimeout != time.Second {
		t.Errorf("%+v", c)
	}
}

func TestAuditSettings(t *testing.T) {
	for text, want := range map[string]Audit{
		"":                                     {MaxBytes: 64 << 20, Keep: 8, KeepFor: 7 * 24 * time.Hour, Stop: true},
		"keep_for = '24h'\nwhen_full = 'drop'": {MaxBytes: 64 << 20, Keep: 8, KeepFor: 24 * time.Hour},
		"max_bytes = 4096\nkeep = 1\nkeep_for = 0\noperations_max_bytes = 8192\noperations_keep = 2": {MaxBytes: 4096, Keep: 1,
			OperationsMaxBytes: 8192, OperationsKeep: 2, Stop: true},
	} {
		c, _, err := ParseConfig("c.toml", []byte(minimal+"[audit]\n"+text), testTypes)
		if err != nil || *c.Audit != want {
			t.Errorf("%q: %+v, %v", text, c, err)
		}
	}
}

// Each mistake is told with its line and with what is allowed.
func TestConfigErrors(t *testing.T) {
	for _, test := range []struct{ config, want string }{
		{"x = [1,", "c.toml:1: "},
		{minimal + "[core_settings]\nlog_levle = 1", `c.toml:8: unknown key "core_settings.log_levle"; allowed: log_level, `},
		{minimal + "[core_setings]", `c.toml:7: unknown key "core_setings"; allowed: core_settings, mount, audit, listener, authenticator, key_manager, provider`},
		{minimal + "[audit]\nkeep_for = 'long'", "c.toml:8: wrong value for audit.keep_for; allowed: seconds, or a string like "},
		{minimal + "[audit]\noperations_max_bytes = 1", "c.toml:8: wrong value for audit.operations_max_bytes; allowed: a number of bytes from 4096 to "},
		{minimal + "[audit]\noperations_keep = 0", "c.toml:8: wrong value for audit.operations_keep; allowed: a number of files from 1 to 1000"},
		{minimal + "[core_settings]\nlog_level = 'loud'", `c.toml:8: wrong value for core_settings.log_level; allowed: "trace", "debug", "info", "warn", "error"`},
		{minimal + "[core_settings]\nallow_deprecated = 1", `c.toml:8: wrong value for core_settings.allow_deprecated; allowed: true or false`},
		{minimal + "[core_settings]\n\nbody_len_limit = -1", `c.toml:9: wrong value for core_settings.body_len_limit; allowed: a number of bytes from 1024 to`},
		{minimal + "[core_settings]\ndraft_expiry = '1ms'", "c.toml:8: wrong value for core_settings.draft_expiry; allowed: 0 for never, or seconds"},
		{minimal + "[core_settings]\ndraft_expiry = 'soon'", "c.toml:8: wrong value for core_settings.draft_expiry; allowed: seconds, or a string"},
		{minimal + "[core_settings]\noperation_timeout = '0s'", `c.toml:8: wrong value for core_settings.operation_timeout; allowed: seconds, or a string`},
		{minimal + "[core_settings]\noperation_timeout = 9223372036854775807", `c.toml:8: wrong value`},
		{minimal + "[core_settings]\nbuffer_per_user = 2048", `c.toml:7: buffer_per_user (2048) must be at least body_len_limit`},
		{minimal + "[core_settings]\ndefault_provider = 'tpm'", `c.toml:8: default_provider "tpm": no [[provider]] has that name; allowed: "software"`},
		{minimal + "[core_settings]\nwrapping = 'tmp:x'", `c.toml:8: wrong value for core_settings.wrapping; allowed: "file", or "tpm:" followed by the name of a [[provider]]`},
		{minimal + "[core_settings]\nwrapping = 1", `c.toml:8: wrong value for core_settings.wrapping; allowed: "file", or "tpm:"`},
		{minimal + "[core_settings]\nwrapping = 'tpm:x'", `c.toml:8: wrapping: no [[provider]] has the name "x"`},
		{minimal + "[core_settings]\nwrapping = 'tpm:software'\nwrapping_pcrs = [0, 24]", `c.toml:9: wrong value for core_settings.wrapping_pcrs; allowed: an array of a TPM's registers from 0 to 23, such as [0, 7]`},
		{minimal + "[core_settings]\nwrapping = 'tpm:software'\nwrapping_pcrs = ['0']", `c.toml:9: wrong value for core_settings.wrapping_pcrs`},
		{minimal + "[core_settings]\nwrapping = 'tpm:software'\nwrapping_pcrs = 0", `c.toml:9: wrong value for core_settings.wrapping_pcrs`},
		{minimal + "[core_settings]\nwrapping = 'file'\nwrapping_pcrs = []", `c.toml:9: wrapping_pcrs is allowed only with wrapping = "tpm:PROVIDER"`},
		{minimal + "[core_settings]\nwrapping_pcrs = [0]", `c.toml:8: wrapping_pcrs is allowed only with wrapping = "tpm:PROVIDER"`},
		{minimal + "[core_settings]\nwrapping = 'tpm:software'\nwrapping_pin_source = 'pin'", `c.toml:9: wrong value for core_settings.wrapping_pin_source; allowed: an absolute path, file:PATH, or credential:NAME`},
		{minimal + "[core_settings]\nwrapping = 'tpm:software'\nwrapping_pin_source = 1234", `c.toml:9: wrong value for core_settings.wrapping_pin_source`},
		{minimal + "[core_settings]\nwrapping = 'file'\nwrapping_pin_source = '/run/pin'", `c.toml:9: wrapping_pin_source is allowed only with wrapping = "tpm:PROVIDER"`},
		{minimal + "[core_settings]\nwrapping_pin_source = 'credential:pin'", `c.toml:8: wrapping_pin_source is allowed only with wrapping = "tpm:PROVIDER"`},
		{minimal + "[mount]\nattr_timeout = 2", `c.toml:8: wrong value for mount.attr_timeout; allowed: seconds, or a string like "500ms" or "1m30s", from 0s to 1s`},
		{minimal + "[mount]\npath = 'mnt'", `c.toml:8: wrong value for mount.path; allowed: an absolute path`},
		{minimal + "[mount]\ntransport = 'fuse'", `c.toml:8: wrong value for mount.transport; allowed: "auto", "uring", "device"`},
		{minimal + "[mount]\ndropbox = true", `c.toml:8: wrong value for mount.dropbox; allowed: "lineage", "off"`},
		{minimal + "[authenticator]\nauth_type = 'JwtSvid'", `c.toml:8: auth_type "JwtSvid" does not exist here; allowed: "UnixPeerCredentials", "SystemdUnit"`},
		{minimal + "[[authenticator]]\nauth_type = 'Direct'", `c.toml:8: auth_type "Direct" does not exist here`},
		{minimal + "[authenticator]\nauth_type = 'SystemdUnit'\nrules = [{ units = ['nginx'] }]", `c.toml:9: authenticator.rules.units: "nginx" is not a unit for processes`},
		{minimal + "[authenticator]\nauth_type = 'SystemdUnit'\nrules = [{ provider = 'tpm', units = [] }]", `c.toml:9: authenticator.rules.provider: no [[provider]] has the name "tpm"`},
		{minimal + "[authenticator]\nauth_type = 'SystemdUnit'\nrules = ['nginx.service']", `c.toml:9: wrong value for authenticator.rules; allowed: an array like`},
		{minimal + "[authenticator]\nauth_type = 'SystemdUnit'\nadmins = []", `c.toml:9: unknown key "authenticator.admins"; allowed: auth_type, rules`},
		{minimal + "[authenticator]\n", `c.toml:7: authenticator: auth_type is missing`},
		{minimal + "[[authenticator]]\nauth_type = 'UnixPeerCredentials'\n[[authenticator]]\nauth_type = 'UnixPeerCredentials'", `c.toml:10: auth_type "UnixPeerCredentials" is configured twice`},
		{minimal + "[authenticator]\nauth_type = 'UnixPeerCredentials'\nadmins = [{ name = 'no-such-user' }]", `c.toml:9: authenticator.admins.name: no user "no-such-user" on this machine`},
		{minimal + "[authenticator]\nauth_type = 'UnixPeerCredentials'\nadmins = ['root']", `c.toml:9: wrong value for authenticator.admins; allowed: an array like [{ name = "1000" }]`},
		{minimal + "mode = '0o755'", `c.toml:7: wrong value for provider.mode; allowed: a string of octal digits`},
		{minimal + "mode = 755", `c.toml:7: wrong value for provider.mode`},
		{minimal + "mode = '1777'", `c.toml:7: wrong value for provider.mode`},
		{minimal + "owner = 4294967295", `c.toml:7: wrong value for provider.owner; allowed: a user's name or number`},
		{minimal + "group = 'no-such-group'", `c.toml:7: provider.group: no group "no-such-group" on this machine`},
		{minimal + "key_info_manager = 'other'", `c.toml:7: key_info_manager "other": no [[key_manager]] has that name`},
		{minimal + "name = 'default'", `c.toml:7: provider: name "default" is reserved for the link`},
		{minimal + "name = 'a/b'", `c.toml:7: provider: name "a/b": the name has the character '/', which is not allowed`},
		{minimal + "name = '.a'", `c.toml:7: provider: name ".a": the name starts with a dot`},
		{minimal + "name = ''", `c.toml:7: provider: name "": the name is empty`},
		{minimal + "name = \"a\\nb\"", `c.toml:7: provider: name "a\nb": the name has the character '\n', which is not allowed`},
		{minimal + "name = '" + strings.Repeat("n", 256) + "'", `c.toml:7: provider: name "nnn`},
		{minimal + "slot_number = 1", `c.toml:7: unknown key "provider.slot_number"; allowed: provider_type, name, key_info_manager, capabilities, owner, group, mode`},
		{minimal + "[[provider]]\nname = 's'\nprovider_type = 'Slots'\nslot_number = 'x'", `c.toml:10: slot_number: allowed: a slot's number from 0`},
		{minimal + "[[provider]]\nprovider_type = 'Software'", `c.toml:7: provider "software" is configured twice, the first time in line 5`},
		{minimal + "[[provider]]\nname='tpm'\nprovider_type = 'Tpm'", `c.toml:9: provider_type "Tpm" is not in this build, which has: "Software", "MbedCrypto" (means Software)`},
		{minimal + "[[provider]]\nname='tpm'\nprovider_type = 'TPM'", `c.toml:9: wrong value for provider.provider_type; allowed: "Software"`},
		{minimal + "[[provider]]\nname='tpm'", `c.toml:7: provider: provider_type is missing; allowed: "Software"`},
		{minimal + "[[key_manager]]\nname='b'\nmanager_type='SQLite'", `c.toml:7: a second [[key_manager]]: only one is allowed`},
		{"[[key_manager]]\nname='b'\nmanager_type='OnDisk'", `c.toml:3: manager_type "OnDisk" does not exist here; allowed: "SQLite"`},
		{"[key_manager]\nname='b'\nmanager_type='SQLite'", `c.toml:1: key_manager must be written [[key_manager]]`},
		{"[provider]\nname='b'", `c.toml:1: provider must be written [[provider]]`},
		{"key_manager = [1]", `c.toml:1: wrong value for key_manager; allowed: a table`},
		{"provider = ['x']", `c.toml:1: provider must be written [[provider]]`},
		{"authenticator = ['x']", `c.toml:1: wrong value for authenticator; allowed: a table`},
		{"", `c.toml: exactly one [[key_manager]] is needed`},
		{"", `c.toml: at least one [[provider]] is needed, with provider_type = "Software"`},
	} {
		_, _, err := ParseConfig("c.toml", []byte(test.config), testTypes)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s\ngives\n%v\nwant\n%s", test.config, err, test.want)
		}
		if e, ok := errors.AsType[*Error](err); err != nil && (!ok || e.Kind != KindConfig) {
			t.Errorf("%s: %#v is no configuration error", test.config, err)
		}
	}
}

// A file of Parsec's own is accepted, and each setting that means nothing here is named once with what to do instead.
func TestConfigParsec(t *testing.T) {
	_, warnings, err := ParseConfig("c.toml", []byte(`[core_settings]
allow_root = true
thread_pool_size = 8
idle_listener_sleep_duration = 10
log_level = "info"
log_timestamp = false
body_len_limit = 1048576
log_error_details = false
buffer_size_limit = 1048576
allow_deprecated = true

[listener]
listener_type = "DomainSocket"
timeout = 200
socket_path = "/run/parsec/parsec.sock"

[authenticator]
auth_type = "UnixPeerCredentials"
workload_endpoint = "unix:///run/spire"

[[key_manager]]
name = "sqlite-manager"
manager_type = "SQLite"
store_path = "/var/lib/parsec"

[[provider]]
provider_type = "MbedCrypto"
key_info_manager = "sqlite-manager"
`), testTypes)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, w := range warnings {
		if w.Hint == "" {
			t.Errorf("%v: says not what to do instead", w)
		}
		got = append(got, fmt.Sprint(w.Line))
	}
	if want := "2 3 4 6 8 9 13 14 15 19 24"; strings.Join(got, " ") != want {
		t.Errorf("warnings in lines %v, want %s", got, want)
	}
}

// A secret in a wrong place is not repeated in an error.
func TestConfigKeepsSecrets(t *testing.T) {
	_, _, err := ParseConfig("c.toml", []byte(minimal+"owner = ['hunter2']\nmode='hunter2'"), testTypes)
	if err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Error(err)
	}
}

func TestLoadConfig(t *testing.T) {
	dir := t.TempDir()
	if _, _, err := LoadConfig(filepath.Join(dir, "none"), testTypes); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	big := filepath.Join(dir, "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("#", maxConfigBytes+1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := LoadConfig(big, testTypes); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("huge file: %v", err)
	}
	if _, _, err := LoadConfig(dir, testTypes); err == nil {
		t.Error("a directory was taken for a configuration")
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte("[core_settings]\nlog_level='info'\noperation_timeout='1h'\n[mount]\npath='/x'\n[[authenticator]]\nadmins=[{name='0'}]"))
	f.Add([]byte("provider=[{name='a',provider_type='Slots',slot_number=1}]\nkey_manager=[{name='a',manager_type='SQLite'}]"))
	f.Add([]byte("a.b.c=1\n[a.d]\n[[a.e]]\n[[a.e.f]]\nx={y=[1,{z=2}]}"))
	f.Add([]byte("[[provider]]\n[provider.x]\n[[provider.y]]\n\"\\u0001\"=2"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, warnings, err := ParseConfig("c.toml", data, testTypes)
		if (c == nil) == (err == nil) {
			t.Fatalf("configuration %v and error %v", c, err)
		}
		count := strings.Count(string(data), "\n") + 1
		for _, w := range warnings {
			if w.Line < 1 || w.Line > count {
				t.Fatalf("%v: no such line", w)
			}
		}
		if err != nil {
			joined, ok := errors.AsType[*Error](err)
			if !ok {
				t.Fatalf("%T", err)
			}
			for _, e := range joined.Err.(interface{ Unwrap() []error }).Unwrap() {
				if p := e.(*Problem); p.Line < 0 || p.Line > count || p.Text == "" {
					t.Fatalf("%#v", p)
				}
			}
			return
		}
		if len(c.Providers) == 0 || c.Mount.AttrTimeout > time.Second || c.Core.OperationTimeout <= 0 || c.Core.BufferPerUser < c.Core.BodyLenLimit {
			t.Fatalf("%+v", c)
		}
		for _, p := range c.Providers {
			if checkProviderName(p.Name) != nil || p.Mode > 0o777 {
				t.Fatalf("%+v", p)
			}
		}
	})
}
