package pkcs11_test

import (
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/pkcs11"
	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
)

func TestMain(m *testing.M) {
	pkcs11.WorkerMain()
	os.Exit(m.Run())
}

// settingsOf are what a configuration says of a token; more are added, or replaced.
func settingsOf(k *pkcs11test.Token, more map[string]any) map[string]any {
	s := map[string]any{"library_path": k.Library, "token_label": k.Label, "user_pin": k.PIN}
	env := map[string]any{}
	for _, v := range k.Env {
		name, value, _ := strings.Cut(v, "=")
		env[name] = value
	}
	if len(env) > 0 {
		s["environment"] = env
	}
	if k.InitArgs != "" {
		s["init_args"] = k.InitArgs
	}
	for name, v := range more {
		if s[name] = v; v == nil {
			delete(s, name)
		}
	}
	return s
}

// tryOpen makes a provider of settings, which the caller closes.
func tryOpen(t *testing.T, settings map[string]any) (providers.Provider, error) {
	t.Helper()
	return pkcs11.Type.New(t.Context(), config(t, t.TempDir(), settings))
}

func config(t *testing.T, state string, settings map[string]any) providers.Config {
	return providers.Config{Name: "token", StateDir: state, Settings: settings, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
}

func open(t *testing.T, settings map[string]any) providers.Provider {
	t.Helper()
	p, err := tryOpen(t, settings)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func conformance(t *testing.T, k *pkcs11test.Token, more map[string]any) {
	// Where nobody has the token its worker ends, and the next one tries all mechanisms again: the long form's time.
	// tpm2-pkcs11 reads its store when it is loaded, and does not see later what other programs made, which is adopted last.
	leave := func() {}
	if os.Getenv("PARSECFS_TEST_LONG") != "1" {
		holder := open(t, settingsOf(k, more))
		leave = sync.OnceFunc(func() {
			if err := holder.Close(); err != nil {
				t.Errorf("Close: %v", err)
			}
		})
		t.Cleanup(leave)
	}
	providertest.Run(t, func(t *testing.T) providers.Provider {
		if strings.HasSuffix(t.Name(), "/Adoption") && strings.Contains(k.Library, "tpm2") {
			leave()
		}
		return open(t, settingsOf(k, more))
	}, providertest.Options{
		Slow: func(c psa.Capability) bool {
			// A token takes its time for an RSA key; the full form of the tests makes them all.
			return os.Getenv("PARSECFS_TEST_LONG") != "1" && c.Type.IsRSA() && (c.Bits > 2048 || c.Algorithm != psa.RSAPKCS1v15Sign(psa.SHA256))
		},
		Foreign: func(*testing.T) string { return "id=" + k.P256() },
		Count:   func(*testing.T) int { return len(k.Objects()) },
	})
}

func TestConformanceOnSoftHSM(t *testing.T) {
	t.Parallel()
	conformance(t, pkcs11test.SoftHSM(t, "conformance")[0], nil)
}

func TestConformanceOnNSS(t *testing.T) {
	t.Parallel()
	conformance(t, pkcs11test.NSS(t), nil)
}

func TestConformanceOnTPM(t *testing.T) {
	t.Parallel()
	conformance(t, pkcs11test.TPM2(t), nil)
}

const (
	// stranger is a user who has no account and no file, but what a test gives.
	stranger = 2011
	nobody   = 65534
)

// conformanceAs runs the suite on a token that is another user's, and whose module runs as that user.
func conformanceAs(t *testing.T, uid int, k *pkcs11test.Token) {
	k.GiveTo(uid)
	conformance(t, k, map[string]any{"user": fmt.Sprintf("%d:%[1]d", uid)})
}

func requireRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: it starts processes of other users")
	}
}

func TestConformanceOnSoftHSMAsAnotherUser(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	conformanceAs(t, stranger, pkcs11test.SoftHSM(t, "conformance")[0])
}

func TestConformanceOnNSSAsAnotherUser(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	if os.Getenv("PARSECFS_TEST_LONG") != "1" {
		t.Skip("the long form's: NSS writes its database for each key, which takes its time")
	}
	conformanceAs(t, stranger, pkcs11test.NSS(t))
}

func TestConformanceOnTPMAsAnotherUser(t *testing.T) {
	t.Parallel()
	requireRoot(t)
	if os.Getenv("PARSECFS_TEST_LONG") != "1" {
		t.Skip("the long form's: the same lines on SoftHSM as another user, and on this token as root, are in the short one")
	}
	conformanceAs(t, nobody, pkcs11test.TPM2(t)) // dbus-daemon lets users in that have an account
}
