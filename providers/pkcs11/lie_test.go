package pkcs11_test

import (
	"testing"

	"github.com/parsecfs/parsecfs/providers/pkcs11/pkcs11test"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// TestWrongSignature: a signature of RSA in which the token erred leaves the provider for nobody: it gives the private key away.
func TestWrongSignature(t *testing.T) {
	t.Parallel()
	token := pkcs11test.SoftHSM(t, "lies")[0].Sabotaged()
	p := use(t, settingsOf(&token.Token, nil))
	keys := map[string]*made{}
	for _, template := range []string{"rsa-2048-pkcs1v15-sha256", "rsa-2048-pss-sha256"} {
		keys[template] = create(t, p, template)
	}
	sign := func(m *made) (map[string][]byte, error) {
		run, err := m.key.Begin(t.Context(), psa.Op{Operation: psa.Sign, Algorithm: m.attributes.Algorithm})
		if err != nil {
			return nil, err
		}
		if _, err := run.Write([]byte("message")); err != nil {
			return nil, err
		}
		result, err := run.Finish(t.Context())
		return result.Outputs, err
	}
	for _, harm := range []string{"", "C_Sign lie", ""} {
		token.Harm(harm)
		for template, m := range keys {
			out, err := sign(m)
			if harm == "" {
				if err != nil {
					t.Errorf("%s: %v", template, err)
				}
				continue
			}
			wantStatus(t, template, err, psa.StatusHardwareFailure)
			if len(out) > 0 {
				t.Errorf("%s: %x", template, out)
			}
		}
	}
}
