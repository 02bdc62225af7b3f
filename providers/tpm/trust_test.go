package tpm

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// TestKnownTPM: a provider that knows its TPM, from the KIM or from the configuration, sends nothing secret to another one;
// one that does not says once which TPM it trusts.
func TestKnownTPM(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	relay := tpmtest.NewRelay(t, chip)
	p := newProvider(t, chip)
	name, err := p.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w, err := p.(providers.Wrapper).Wrap(t.Context(), []byte("secret"), 0, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	other := "000b" + strings.Repeat("5a", 32)
	for _, c := range []struct {
		name, known, pin string
		works, warns     bool
	}{
		{"first contact", "", "", true, true},
		{"known", name, "", true, false},
		{"pinned", "", strings.ToUpper(name), true, false},
		{"known and pinned", name, name, true, false},
		{"another is known", other, "", false, false},
		{"another is pinned", "", other, false, false},
		{"known, and another is pinned", name, other, false, false},
	} {
		relay.Watch(nil)
		var log bytes.Buffer
		settings := map[string]any{"tcti": relay.TCTI()}
		if c.pin != "" {
			settings["tpm_srk_name"] = c.pin
		}
		p, err := Type.New(t.Context(), providers.Config{Settings: settings, Known: c.known, Log: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, wrapping := p.(providers.Wrapper).Wrap(t.Context(), []byte("secret"), 0, nil)
			_, unwrapping := p.(providers.Wrapper).Unwrap(t.Context(), w, nil)
			a, err := psa.ParseTemplate("ecdsa-p256-sha256")
			if err != nil {
				t.Fatal(err)
			}
			_, making := p.Create(t.Context(), providers.Handle{}, a, nil)
			for what, err := range map[string]error{"wrap": wrapping, "unwrap": unwrapping, "generate": making} {
				if c.works != (err == nil) || err != nil && (psa.StatusOf(err) != psa.StatusProviderAbsent || psa.HintOf(err) == "") {
					t.Errorf("%s: %s: %v", c.name, what, err)
				}
			}
		}
		if !c.works {
			for _, x := range relay.Sent() {
				if x.Code == tpm2.TPMCCStartAuthSession || x.Code == tpm2.TPMCCLoad || x.Code == tpm2.TPMCCCreate {
					t.Errorf("%s: %v was sent", c.name, x.Code)
				}
			}
		}
		id, err := p.Identity(t.Context())
		if wrongPin := c.pin == other; wrongPin != (err != nil) || !wrongPin && id != name {
			t.Errorf("%s: it is %s, %v", c.name, id, err)
		}
		if warned := strings.Count(log.String(), "level=WARN"); warned != map[bool]int{true: 1}[c.warns] {
			t.Errorf("%s: it warned %d times: %s", c.name, warned, &log)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestSRKName: what cannot be a name is refused, where it is read.
func TestSRKName(t *testing.T) {
	t.Parallel()
	for _, v := range []any{int64(5), "", "000b", "000c" + strings.Repeat("00", 32), "000b" + strings.Repeat("0", 63),
		"000b" + strings.Repeat("zz", 32)} {
		if _, err := parseSRKName(v); err == nil {
			t.Errorf("%v is taken", v)
		}
	}
}

// TestSocketOfOthers: a socket that another user made, or could put theirs in the place of, is no TPM.
func TestSocketOfOthers(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root makes another user's socket")
	}
	chip := tpmtest.Start(t)
	path := strings.TrimPrefix(chip.TCTI(), "swtpm:path=")
	try := func(path string) error {
		p, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": "swtpm:path=" + path}})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		_, err = p.Identity(t.Context())
		return err
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(what string, path string) {
		if err := try(path); psa.StatusOf(err) != psa.StatusProviderAbsent || psa.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(try(path))
	must(os.Chmod(path, 0o770)) // who may connect is its owner's to say
	must(try(path))
	must(os.Lchown(path, 2003, 2003))
	refused("another's socket", path)
	must(os.Lchown(path, 0, 0))
	must(os.Chmod(filepath.Dir(path), 0o777))
	refused("in a directory of all", path)
	must(os.Chmod(filepath.Dir(path), 0o700))
	link := filepath.Join(t.TempDir(), "link")
	must(os.Symlink(path, link))
	must(try(link))
	must(os.Lchown(link, 2003, 2003))
	refused("by another's link", link)
	must(try(path))
}

// TestTwoOnOneTPM: a provider whose keys are on a TPM that is gone refuses the one in its place, which serves another provider.
func TestTwoOnOneTPM(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	relay := tpmtest.NewRelay(t, chip)
	var all []providers.Provider
	for _, known := range []string{"000b" + strings.Repeat("5a", 32), ""} {
		p, err := Type.New(t.Context(), providers.Config{Settings: map[string]any{"tcti": relay.TCTI()}, Known: known})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	for range 3 {
		for i, want := range []psa.Status{psa.StatusProviderAbsent, psa.StatusSuccess} {
			if _, err := all[i].(providers.Wrapper).Wrap(t.Context(), []byte("secret"), 0, nil); psa.StatusOf(err) != want {
				t.Errorf("provider %d: %v", i, err)
			}
			if _, err := all[i].Identity(t.Context()); err != nil {
				t.Errorf("provider %d: %v", i, err)
			}
		}
	}
	made := 0
	for _, x := range relay.Sent() {
		if x.Code == tpm2.TPMCCCreatePrimary {
			made++
		}
	}
	if made != 1 {
		t.Errorf("the two connected %d times", made)
	}
	for _, p := range all {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}
