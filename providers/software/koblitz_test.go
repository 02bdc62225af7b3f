package software

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"os/exec"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// TestKoblitzInConstantTime looks for libraries whose secp256k1 takes a time that depends on the nonce or the key. None of
// them may come into the provider, by another library neither.
func TestKoblitzInConstantTime(t *testing.T) {
	t.Parallel()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, variable := range []string{"decred", "btcec", "go-crypto/bitcurves"} {
		if strings.Contains(string(out), variable) {
			t.Errorf("%s is here: its secp256k1 is not constant-time", variable)
		}
	}
	if !strings.Contains(string(out), "secp256k1-voi/secec") {
		t.Error("the library that is constant-time is not here")
	}
}

// TestKoblitzDigests signs digests of each length that SHA-2 has, also a shorter one than the order.
func TestKoblitzDigests(t *testing.T) {
	t.Parallel()
	a, err := psa.ParseTemplate("ecdsa-secp256k1-any")
	if err != nil {
		t.Fatal(err)
	}
	b, err := provider{}.Create(t.Context(), providers.Handle{}, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	k, err := provider{}.Open(t.Context(), providers.Handle{}, a, b)
	if err != nil {
		t.Fatal(err)
	}
	private := k.(*key).private.(*koblitz)
	order, _ := new(big.Int).SetString("fffffffffffffffffffffffffffffffebaaedce6af48a03bbfd25e8cd0364141", 16)
	for _, n := range []int{1, 20, 28, 31, 32, 48, 64} {
		digest := bytes.Repeat([]byte{0xa5}, n)
		der, err := private.Sign(nil, digest, nil)
		if err != nil {
			t.Fatalf("%d bytes: %v", n, err)
		}
		var signature struct{ R, S *big.Int }
		if _, err := asn1.Unmarshal(der, &signature); err != nil {
			t.Fatal(err)
		}
		if signature.S.Cmp(new(big.Int).Rsh(order, 1)) > 0 {
			t.Errorf("%d bytes: s is in the upper half", n)
		}
		// The other s is as good (SEC 1, 4.1.4), and so is whatever follows the leftmost bits.
		signature.S.Sub(order, signature.S)
		upper, err := asn1.Marshal(signature)
		if err != nil {
			t.Fatal(err)
		}
		wrong := bytes.Clone(digest)
		wrong[0] ^= 1
		if public := private.public; !public.VerifyASN1(digest, der) || !public.VerifyASN1(digest, upper) || public.VerifyASN1(wrong, der) {
			t.Errorf("%d bytes: a wrong verdict", n)
		}
	}
}
