package psa

import (
	"bytes"
	"context"
	"encoding/pem"
)

// MaxExport bounds what asks for an export, in bytes.
const MaxExport = 128

// FormattedRun exports a key of a type in the format that is written to it: "pkcs8", "pkcs8-der", "raw" or, of a TPM,
// "tss2", which may have a passphrase in a second line. export exports with the inputs "format" and "passphrase". It gives
// "key", in PEM where the format is. A format that such a key has not is StatusInvalidArgument.
func FormattedRun(t KeyType, export func(ctx context.Context, inputs map[string][]byte) (Result, error)) Run {
	return WholeRun(MaxExport, func(ctx context.Context, text []byte) (map[string][]byte, error) {
		first, rest, _ := bytes.Cut(text, []byte("\n"))
		passphrase, _, _ := bytes.Cut(rest, []byte("\n")) // not a string: it is wiped with the text
		format := string(bytes.TrimSpace(first))
		label, err := exportLabel(t, format)
		if err != nil {
			return nil, err
		}
		if format != formatTSS2 && len(passphrase) > 0 {
			return nil, Errorf(StatusInvalidArgument, "%s takes no passphrase", quote(format))
		}
		result, err := export(ctx, map[string][]byte{"format": []byte(format), "passphrase": passphrase})
		if err != nil || label == "" {
			return result.Outputs, err
		}
		defer result.Wipe()
		return map[string][]byte{"key": pem.EncodeToMemory(&pem.Block{Type: label, Bytes: result.Outputs["key"]})}, nil
	})
}

const formatTSS2 = "tss2"

// exportLabel is the label of a format in PEM, "" where it is bare bytes.
func exportLabel(t KeyType, format string) (string, error) {
	symmetric := !t.IsAsymmetric()
	switch {
	case format == formatTSS2:
		return tss2Label, nil
	case format == "raw" && symmetric, format == "pkcs8-der" && !symmetric:
		return "", nil
	case format == "pkcs8" && !symmetric:
		return "PRIVATE KEY", nil
	case symmetric:
		return "", Errorf(StatusInvalidArgument, "a key of this type is exported as \"raw\", or by a TPM as \"tss2\"")
	}
	return "", Errorf(StatusInvalidArgument, "a key of this type is exported as \"pkcs8\" or \"pkcs8-der\", or by a TPM as \"tss2\"")
}
