package tpm_test

import (
	"os"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

func open(t *testing.T, tcti string) providers.Provider {
	t.Helper()
	p, err := tpm.Type.New(t.Context(), providers.Config{Name: "tpm", StateDir: t.TempDir(), Settings: map[string]any{"tcti": tcti}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	chip := tpmtest.Start(t)
	providertest.Run(t, func(t *testing.T) providers.Provider { return open(t, chip.TCTI()) }, providertest.Options{
		KeysInBlob: true, Wrapped: true,
		Slow: func(c psa.Capability) bool {
			// A TPM takes its time for an RSA key; the full form of the tests makes them all.
			return os.Getenv("PARSECFS_TEST_LONG") != "1" && c.Type.IsRSA() && (c.Bits > 2048 || c.Algorithm != psa.RSAPSS(psa.SHA256))
		},
	})
}
