package software_test

import (
	"os"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/software"
)

func TestConformance(t *testing.T) {
	t.Parallel()
	providertest.Run(t, func(t *testing.T) providers.Provider {
		p, err := software.Type.New(t.Context(), providers.Config{Name: "software", StateDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}, providertest.Options{
		KeysInBlob: true,
		Slow: func(c psa.Capability) bool {
			// One RSA key for each padding is generated; the full form of the tests makes them all.
			if os.Getenv("PARSECFS_TEST_LONG") == "1" {
				return false
			}
			shake := c.Type.KeyPair() == psa.SLHDSAKeyPair(psa.SLHDSASHAKEF) // it takes seconds with the race detector
			return shake || c.Type.IsRSA() && (c.Bits > 2048 || c.Algorithm.Hash() != psa.SHA256)
		},
	})
}
