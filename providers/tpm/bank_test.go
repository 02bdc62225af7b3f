package tpm

import (
	"os"
	"os/exec"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// TestNoBank: where the TPM has no registers of SHA-256, nothing is bound to them and no quote is made of them, which would
// hold whatever the platform's state is.
func TestNoBank(t *testing.T) {
	t.Parallel()
	chip := tpmtest.Start(t)
	allocate := func(banks string) {
		t.Helper()
		cmd := exec.Command("tpm2_pcrallocate", banks)
		cmd.Env = append(os.Environ(), "TPM2TOOLS_TCTI="+chip.TCTI())
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		chip.Kill()
		chip.Restart()
	}
	try := func(want psa.Status) {
		t.Helper()
		p := newProvider(t, chip)
		defer p.Close()
		a, err := psa.ParseTemplate("ecdsa-p256-sha256")
		if err != nil {
			t.Fatal(err)
		}
		a.PCRs = 1<<0 | 1<<7
		_, bound := p.Create(t.Context(), providers.Handle{}, a, nil)
		_, wrapped := p.(providers.Wrapper).Wrap(t.Context(), make([]byte, 32), a.PCRs, nil)
		_, quoted := done(t, []byte("challenge"))(p.(providers.Attester).Attest(t.Context(), psa.Op{Operation: psa.Attest}))
		for what, err := range map[string]error{"a bound key": bound, "a bound wrapping": wrapped, "a quote": quoted} {
			if psa.StatusOf(err) != want || err != nil && psa.HintOf(err) == "" {
				t.Errorf("%s: %v, not %v", what, err, want)
			}
		}
		a.PCRs = 0
		if _, err := p.Create(t.Context(), providers.Handle{}, a, nil); err != nil {
			t.Errorf("an unbound key: %v", err)
		}
	}
	try(psa.StatusSuccess)
	allocate("sha256:none+sha1:all+sha384:all")
	try(psa.StatusNotSupported)
	allocate("sha256:0,1,2,3,4,5,6+sha1:all+sha384:all") // without register 7
	try(psa.StatusNotSupported)
	allocate("sha256:all+sha1:none+sha384:none")
	try(psa.StatusSuccess)
}
