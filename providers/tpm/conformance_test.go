package tpm

import (
	"os"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	providertest.Run(t, func(t *testing.T) providers.Provider { return newProvider(t, chip) }, providertest.Options{
		KeysInBlob: true, Wrapped: true,
		Slow: func(c psa.Capability) bool {
			// A TPM takes its time for an RSA key; the full form of the tests makes them all.
			return os.Getenv("PARSECFS_TEST_LONG") != "1" && c.Type.IsRSA() && (c.Bits > 2048 || c.Algorithm != psa.RSAPSS(psa.SHA256))
		},
		Foreign: func(t *testing.T) string {
			const handle = "0x81000001"
			tools(t, chip, append([]string{toolsParent}, persist(handle, "-G ecc -a noda|fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign")...)...)
			return "handle=" + handle
		},
	})
}
