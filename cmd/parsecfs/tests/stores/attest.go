package stores

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// DeviceInfo is what a verifier reads of a device.
type DeviceInfo struct {
	Name              string            `toml:"name"`
	EndorsementKey    string            `toml:"endorsement_key"`
	AttestationKey    string            `toml:"attestation_key"`
	AttestationPublic string            `toml:"attestation_key_public"`
	SRKName           string            `toml:"tpm_srk_name"`
	PCRs              map[string]string `toml:"pcrs"`
}

// ReadInfo reads a provider's info.
func ReadInfo(t *testing.T, provider string) (info DeviceInfo) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(provider, "info"))
	if err == nil {
		err = toml.Unmarshal(b, &info)
	}
	if err != nil {
		t.Fatalf("info: %v:\n%s", err, b)
	}
	return info
}

// Attest is one use of a directory slot of attest below dir.
func Attest(dir string, inputs map[string]string, outputs ...string) (map[string][]byte, error) {
	slot := filepath.Join(dir, "attest.d/slot")
	if err := os.Mkdir(slot, 0o700); err != nil {
		return nil, err
	}
	defer os.Remove(slot)
	for name, text := range inputs {
		if err := os.WriteFile(filepath.Join(slot, name), []byte(text), 0); err != nil {
			return nil, err
		}
	}
	out := map[string][]byte{}
	for _, name := range outputs {
		b, err := os.ReadFile(filepath.Join(slot, name))
		if err != nil {
			return nil, err
		}
		out[name] = b
	}
	return out, nil
}
