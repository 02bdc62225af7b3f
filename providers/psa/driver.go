package psa

import "encoding/json"

// driverDescription is the part of PSA's driver description that tells what a driver does (PSA unified driver
// interface, "Driver description capability").
type driverDescription struct {
	Prefix       string             `json:"prefix"`
	Type         string             `json:"type"`
	Capabilities []driverCapability `json:"capabilities"`
}

type driverCapability struct {
	EntryPoints []string `json:"entry_points"`
	KeyTypes    []string `json:"key_types,omitempty"`
	KeySizes    []int    `json:"key_sizes,omitempty"`
	Algorithms  []string `json:"algorithms,omitempty"`
}

// entryPoints are the driver interface's names of operations.
var entryPoints = map[Operation][]string{
	Generate:     {"generate_key"},
	Import:       {"import_key"},
	Export:       {"export_key"},
	ExportPublic: {"export_public_key"},
	Sign:         {"sign_message"},
	SignHash:     {"sign_hash"},
	Verify:       {"verify_message"},
	VerifyHash:   {"verify_hash"},
	Mac:          {"mac_compute"},
	VerifyMac:    {"mac_verify"},
	Agree:        {"key_agreement"},
	Hash:         {"hash_compute"},
	Random:       {"get_entropy"},
}

func driverEntryPoints(c Capability, op Operation) []string {
	if op != Encrypt && op != Decrypt {
		return entryPoints[op]
	}
	switch {
	case c.Algorithm.IsAEAD():
		return []string{"aead_" + string(op)}
	case c.Algorithm.IsAsymmetricEncryption():
		return []string{"asymmetric_" + string(op)}
	}
	return []string{"cipher_" + string(op)}
}

// DriverDescription writes the lines of a provider's capabilities as PSA's drivers state theirs; prefix is how the driver's
// functions begin.
func DriverDescription(prefix string, lines []Capability) ([]byte, error) {
	d := driverDescription{Prefix: prefix, Type: "opaque", Capabilities: []driverCapability{}}
	for _, c := range lines {
		var x driverCapability
		for _, op := range c.Operations {
			x.EntryPoints = append(x.EntryPoints, driverEntryPoints(c, op)...)
		}
		if len(x.EntryPoints) == 0 {
			continue // PSA's drivers attest nothing
		}
		if c.Type != KeyTypeNone {
			x.KeyTypes, x.KeySizes = []string{c.Type.String()}, c.Sizes()
		}
		if c.Algorithm != AlgNone {
			x.Algorithms = []string{c.Algorithm.String()}
		}
		d.Capabilities = append(d.Capabilities, x)
	}
	b, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, Errorf(StatusGenericError, "%w", err)
	}
	return append(b, '\n'), nil
}
