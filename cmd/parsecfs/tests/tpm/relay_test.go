package tpm

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// TestTPMRelay: somebody who comes between a daemon and the TPM that it knows, with their own storage root key, gets no
// import, neither while the daemon runs nor when it is started; once they are gone all works again.
func TestTPMRelay(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip := tpmtest.Start(t)
	relay := tpmtest.NewRelay(t, chip)
	config := stores.KIM + fmt.Sprintf("[[provider]]\nname = \"p\"\nprovider_type = \"Tpm\"\nkey_info_manager = \"kim\"\ntcti = %q\n",
		relay.TCTI())
	s := &stores.Keystore{T: t, Store: stores.Store{Name: "tpm"}, Keys: map[string][]byte{},
		M: parsecfstest.Mount(t, parsecfstest.Options{Config: config})}
	public, err := s.Create("key")
	if err != nil {
		t.Fatal(err)
	}
	s.Keys["key"] = public
	if !strings.Contains(s.M.Log(), "tpm_srk_name=000b") {
		t.Errorf("the log does not say which TPM is trusted: %s", s.M.Log())
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.Path("imported"), 0o700); err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	var swapped atomic.Int64
	relay.Watch(func(x tpmtest.Exchange) tpmtest.Answer {
		if b, ok := relay.Swap(x, true); ok && (x.Code == tpm2.TPMCCCreatePrimary || x.Code == tpm2.TPMCCReadPublic) {
			swapped.Add(1)
			return tpmtest.Answer{Response: b}
		}
		return tpmtest.Answer{Response: x.Response}
	})
	relay.Drop()
	for start := range 2 {
		for range 3 {
			if err := parsecfstest.WriteOnce(s.Path("imported", "import"), text); !errors.Is(err, syscall.ENODEV) {
				t.Errorf("start %d: an import says %v", start, err)
			}
			if err := s.Works("key", public); !errors.Is(err, syscall.ENODEV) {
				t.Errorf("start %d: a signature says %v", start, err)
			}
		}
		s.Until("degraded: ", "another device")
		s.M.Kill()
		s.M.Restart()
	}
	if swapped.Load() == 0 {
		t.Error("nothing was swapped")
	}
	if relay.Saw(scalar) {
		t.Error("the relay has the private scalar")
	}
	for _, x := range relay.Sent() {
		switch x.Code {
		case tpm2.TPMCCImport, tpm2.TPMCCLoad, tpm2.TPMCCCreate, tpm2.TPMCCStartAuthSession:
			t.Errorf("%v was sent to somebody else's key", x.Code)
		}
	}
	relay.Watch(nil)
	relay.Drop()
	s.Until("ready")
	s.AllWork()
	if err := parsecfstest.WriteOnce(s.Path("imported", "import"), text); err != nil {
		t.Error(err)
	}
}

// TestTPMPinned: a TPM that is not the one which the configuration names is not used at all, at the first start too; and info
// says the name of the one that is.
func TestTPMPinned(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	chip, s := tpmStore(t)
	name := ""
	for deadline := time.Now().Add(20 * time.Second); name == "" && time.Now().Before(deadline); {
		name = stores.ReadInfo(t, filepath.Join(s.M.Dir, "providers/p")).SRKName // a TPM takes its time
	}
	s.M.Stop()
	for pin, works := range map[string]bool{name: true, "000b" + strings.Repeat("5a", 32): false} {
		m := parsecfstest.Mount(t, parsecfstest.Options{Config: stores.TPMConfig(chip) + fmt.Sprintf("tpm_srk_name = %q\n", pin)})
		s := &stores.Keystore{T: t, Store: stores.Store{Name: "tpm"}, Keys: map[string][]byte{}, M: m}
		if works {
			s.Until("ready")
		} else {
			s.Until("degraded: ", "tpm_srk_name")
		}
		if _, err := s.Create("key"); works != (err == nil) || !works && !errors.Is(err, syscall.ENODEV) {
			t.Errorf("with the name %s: %v", pin, err)
		}
		m.Stop()
	}
}
