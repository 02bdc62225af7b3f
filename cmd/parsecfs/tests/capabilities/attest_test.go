package capabilities

import (
	"bytes"
	"errors"
	"path/filepath"
	"syscall"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"
	"github.com/parsecfs/parsecfs/providers/providertest"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// attest has the device certify the key, with its own attestation key and, where it signs, with itself.
func (l *line) attest() {
	l.t.Helper()
	challenge := "a verifier's challenge"
	out, err := stores.Attest(l.dir, map[string]string{"challenge": challenge}, "attestation", "signature", "public", "signer_public")
	l.must(err)
	_, err = providertest.CheckCertified(out, providertest.AttestationAlgorithm, []byte(challenge))
	l.must(err)
	plain := l.ask("attest", []byte(challenge))
	n := len(out["attestation"])
	l.openssl("dgst", "-sha256", "-verify", l.file("signer", out["signer_public"]), "-signature", l.file("signature", plain[n:]), l.file("attestation", plain[:n]))
	if got, err := parsecfstest.Ask(l.path("attest"), make([]byte, psa.MaxChallenge+1)); !errors.Is(err, syscall.EFBIG) || len(got) > 0 {
		l.t.Errorf("a long challenge: %x, %v", got, err)
	}
	if !l.Has(psa.Sign) {
		_, err := stores.Attest(l.dir, map[string]string{"challenge": challenge, "signer": filepath.Base(l.dir)}, "signature")
		if err == nil {
			l.t.Error("a key that does not sign did so")
		}
		return
	}
	alg, err := l.Attributes().Resolve(psa.Sign, 0)
	l.must(err)
	out, err = stores.Attest(l.dir, map[string]string{"challenge": challenge, "signer": filepath.Base(l.dir) + "\n"}, "attestation", "signature", "public", "signer_public")
	l.must(err)
	_, err = providertest.CheckCertified(out, alg, []byte(challenge))
	l.must(err)
	l.opensslVerifies(out["attestation"], out["signature"])
}

// activates finds the secret of a credential for the key.
func (l *line) activates() {
	l.t.Helper()
	out, err := stores.Attest(l.dir, map[string]string{"challenge": "x"}, "public")
	l.must(err)
	provider := &line{t: l.t, temp: l.temp, dir: filepath.Join(l.dir, "../..")}
	secret := []byte("a verifier's secret")
	credential := provider.with("make_credential", "credential", map[string][]byte{"public": out["public"], "secret": secret})
	if got := l.ask("activate_credential", credential); !bytes.Equal(got, secret) {
		l.t.Errorf("activated %q", got)
	}
	credential[len(credential)-300] ^= 1
	if got, err := parsecfstest.Ask(l.path("activate_credential"), credential); !errors.Is(err, syscall.EBADMSG) || len(got) > 0 {
		l.t.Errorf("activated what was tampered with: %q, %v", got, err)
	}
}

// device tries what a device stores.Attest of itself.
func (l *line) device(provider string) {
	l.t.Helper()
	info := stores.ReadInfo(l.t, provider)
	out, err := stores.Attest(provider, map[string]string{"challenge": "nonce", "pcrs": "0,16\n"}, "attestation", "signature", "signer_public")
	l.must(err)
	_, err = providertest.CheckAttestation(out, providertest.AttestationAlgorithm, []byte("nonce"))
	l.must(err)
	if string(out["signer_public"]) != info.AttestationKey || len(info.PCRs) != psa.MaxPCR+1 {
		l.t.Errorf("info is %+v", info)
	}
	d := &line{t: l.t, temp: l.temp, dir: provider}
	d.ask("attest", []byte("nonce"))
	if got := d.ask("activate_credential", d.ask("make_credential", []byte("a secret"))); string(got) != "a secret" {
		l.t.Errorf("activated %q", got)
	}
}
