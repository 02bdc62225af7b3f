// Package stores has providers to test over, with their devices, and what users see of the keys in them.
package stores

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/providers/providertest/outside"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// Store is a provider called p, with its device. What is empty here is so until Begin.
type Store struct {
	Name   string
	Config string
	Dir    string // where the provider keeps its objects itself
	// Objects are the names of what the provider holds itself, nil where the KIM is all there is.
	Objects func() []string
	// Token says that the device keeps all keys itself, as a PKCS #11 token does.
	Token bool
	// Foreign makes a P-256 key on the device as another tool would; nil where the provider adopts none.
	Foreign func(label string) (reference string)

	start func(t *testing.T, s *Store)
}

// Begin starts the device, for this test alone; what cannot be started here skips it.
func (s *Store) Begin(t *testing.T) {
	t.Helper()
	parsecfstest.RequireFUSE(t)
	s.start(t, s)
}

// KIM is the configuration's key_manager.
const KIM = "[[key_manager]]\nname = \"kim\"\nmanager_type = \"SQLite\"\n"

// TPMConfig is a configuration with a TPM alone.
func TPMConfig(chip *tpmtest.Chip) string {
	return KIM + fmt.Sprintf("[[provider]]\nname = \"p\"\nprovider_type = \"Tpm\"\nkey_info_manager = \"kim\"\ntcti = %q\n", chip.TCTI())
}

// All are the software provider, the outside one, whose server outlives every daemon, one on a TPM, and one on a
// PKCS #11 token.
func All() []Store {
	return []Store{
		{Name: "software", start: func(_ *testing.T, s *Store) {
			s.Config = KIM + "[[provider]]\nname = \"p\"\nprovider_type = \"Software\"\nkey_info_manager = \"kim\"\n"
		}},
		Outside(),
		{Name: "tpm", start: func(t *testing.T, s *Store) { s.Config = TPMConfig(tpmtest.Start(t)) }},
		{Name: "softhsm", Token: true, start: softHSM},
	}
}

// foreign is what somebody else has on a device.
const foreign = "not-ours"

// Outside is the provider that keeps its objects in a server of the test's.
func Outside() Store {
	return Store{Name: "outside", start: func(t *testing.T, s *Store) {
		t.Helper()
		dir := parsecfstest.TempDir(t)
		objects, socket := filepath.Join(dir, "objects"), filepath.Join(dir, "socket")
		ctx, stop := context.WithCancel(context.Background())
		served := make(chan error, 1)
		ready := make(chan struct{})
		go func() { served <- outside.Serve(ctx, objects, socket, func() { close(ready) }) }()
		select {
		case <-ready:
		case err := <-served:
			t.Fatal(err)
		}
		t.Cleanup(func() {
			stop()
			if err := <-served; err != nil && !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
		})
		if err := os.WriteFile(filepath.Join(objects, foreign), []byte("somebody else's"), 0600); err != nil {
			t.Fatal(err)
		}
		s.Config = KIM + fmt.Sprintf("[[provider]]\nname = \"p\"\nprovider_type = \"Outside\"\nkey_info_manager = \"kim\"\nsocket = %q\n", socket)
		s.Dir = objects
		s.Objects = func() []string {
			list, err := outside.Objects(objects)
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join(objects, foreign))
			if err != nil || string(b) != "somebody else's" {
				t.Fatalf("a foreign object was touched: %q, %v", b, err)
			}
			return list
		}
		s.Foreign = func(label string) string {
			a, err := psa.DefaultTemplate(psa.ECCKeyPair(psa.SECPR1), 256)
			if err != nil {
				t.Fatal(err)
			}
			reference, err := outside.AddForeign(context.Background(), objects, label, a)
			if err != nil {
				t.Fatal(err)
			}
			return reference
		}
	}}
}
