package nodes

import (
	"bytes"
	"context"
	"encoding/pem"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// exportRun gives a key in the format that was asked for.
type exportRun struct {
	f    *feed
	op   psa.Op
	text []byte
}

func beginExport(_ context.Context, f *feed, op psa.Op) (psa.Run, error) {
	return &exportRun{f: f, op: op}, nil
}

func (r *exportRun) Write(p []byte) (int, error) {
	grown := append(r.text[:len(r.text):len(r.text)], p...)
	wipe(r.text)
	r.text = grown
	return len(p), nil
}

func (r *exportRun) Abort() {
	wipe(r.text)
	r.text = nil
}

func (r *exportRun) Finish(ctx context.Context) (psa.Result, error) {
	defer r.Abort()
	first, rest, _ := bytes.Cut(r.text, []byte("\n"))
	passphrase, _, _ := bytes.Cut(rest, []byte("\n")) // not a string: it is wiped with the text
	format := string(bytes.TrimSpace(first))
	symmetric := !r.f.attributes.Type.IsAsymmetric()
	label := ""
	switch {
	case format == "tss2":
		label = "TSS2 PRIVATE KEY"
	case len(passphrase) > 0:
		return psa.Result{}, psa.Errorf(psa.StatusInvalidArgument, "%q has no passphrase", format)
	case format == "raw" && symmetric, format == "pkcs8-der" && !symmetric:
	case format == "pkcs8" && !symmetric:
		label = "PRIVATE KEY"
	case symmetric:
		return psa.Result{}, psa.Errorf(psa.StatusInvalidArgument, "a key of this type is exported as \"raw\", or, of a TPM, \"tss2\"")
	default:
		return psa.Result{}, psa.Errorf(psa.StatusInvalidArgument, "a key of this type is exported as \"pkcs8\" or \"pkcs8-der\", or, of a TPM, \"tss2\"")
	}
	op := r.op
	op.Inputs = map[string][]byte{"format": []byte(format), "passphrase": passphrase}
	run, err := r.f.r.t.kim.Begin(ctx, r.f.r.at.key, r.f.r.uid, op)
	if err != nil {
		return psa.Result{}, gone(err)
	}
	defer run.Abort()
	result, err := run.Finish(ctx)
	if err != nil || label == "" {
		return result, err
	}
	der := result.Outputs["key"]
	defer wipe(der)
	return psa.Result{Outputs: map[string][]byte{"key": pem.EncodeToMemory(&pem.Block{Type: label, Bytes: der})}}, nil
}
