package psa

import (
	"encoding/json"
	"slices"
	"testing"
)

func TestDriverDescription(t *testing.T) {
	line, err := ParseCapability("aes-256-gcm\tPSA_KEY_TYPE_AES\t256\tPSA_ALG_GCM\tgenerate,encrypt,decrypt,attest")
	if err != nil {
		t.Fatal(err)
	}
	b, err := DriverDescription("soft", []Capability{line, {Operations: []Operation{Attest}}})
	if err != nil {
		t.Fatal(err)
	}
	var d driverDescription
	if err := json.Unmarshal(b, &d); err != nil || d.Prefix != "soft" || len(d.Capabilities) != 1 {
		t.Fatalf("%s: %v", b, err)
	}
	c := d.Capabilities[0]
	if !slices.Equal(c.EntryPoints, []string{"generate_key", "aead_encrypt", "aead_decrypt"}) || !slices.Equal(c.KeySizes, []int{256}) ||
		!slices.Equal(c.KeyTypes, []string{"PSA_KEY_TYPE_AES"}) || !slices.Equal(c.Algorithms, []string{"PSA_ALG_GCM"}) {
		t.Errorf("%s", b)
	}
}
