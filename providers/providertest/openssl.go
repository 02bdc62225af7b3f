package providertest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// onCurve says whether a raw key is for ECDSA on a curve that the standard library has not; OpenSSL has.
func onCurve(t psa.KeyType) bool {
	return t.Family() == psa.SECPK1 || t.Family() == psa.BrainpoolPR1
}

// openssl runs OpenSSL in a folder of its own with these files.
func openssl(files map[string][]byte, args ...string) (out []byte, err error) {
	dir, err := os.MkdirTemp("", "providertest")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, b := range files {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o600); err != nil {
			return nil, err
		}
	}
	cmd := exec.Command("openssl", args...)
	var stderr bytes.Buffer
	cmd.Dir, cmd.Stderr = dir, &stderr
	if out, err = cmd.Output(); err != nil {
		err = fmt.Errorf("openssl %v: %w: %s", args, err, stderr.Bytes())
	}
	return out, err
}

func opensslPair(t psa.KeyType, bits int) (private, public psa.RawKey, err error) {
	name := (psa.Attributes{Type: t.KeyPair(), Bits: bits}).CurveName()
	if t.Family() == psa.BrainpoolPR1 {
		name = fmt.Sprintf("brainpoolP%dr1", bits)
	}
	pkcs8, err := openssl(nil, "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:"+name, "-outform", "DER")
	if err != nil {
		return private, public, err
	}
	spki, err := openssl(map[string][]byte{"key": pkcs8}, "pkey", "-in", "key", "-pubout", "-outform", "DER")
	if err != nil {
		return private, public, err
	}
	private, err = psa.ParseRawKey(pkcs8)
	if err == nil {
		public, err = psa.ParseRawKey(spki)
		private.Public = public.Bytes
	}
	return private, public, err
}

func opensslSign(private psa.RawKey, alg psa.Algorithm, message []byte) ([]byte, error) {
	digest, _, err := digestOf(alg, message)
	if err != nil {
		return nil, err
	}
	der, err := private.Marshal()
	if err != nil {
		return nil, err
	}
	signature, err := openssl(map[string][]byte{"key": der, "digest": digest}, "pkeyutl", "-sign", "-inkey", "key", "-keyform", "DER", "-in", "digest")
	if err != nil {
		return nil, err
	}
	return psa.ECDSADERToRaw(signature, private.Bits)
}

func opensslVerify(public psa.RawKey, alg psa.Algorithm, message, signature []byte) error {
	digest, _, err := digestOf(alg, message)
	if err != nil {
		return err
	}
	der, err := public.Marshal()
	if err != nil {
		return err
	}
	if len(signature) != public.Bits/4 {
		return fmt.Errorf("an ECDSA signature of %d bytes", len(signature))
	}
	if signature, err = psa.ECDSARawToDER(signature); err != nil {
		return err
	}
	_, err = openssl(map[string][]byte{"key": der, "digest": digest, "signature": signature},
		"pkeyutl", "-verify", "-pubin", "-inkey", "key", "-keyform", "DER", "-in", "digest", "-sigfile", "signature")
	return err
}
