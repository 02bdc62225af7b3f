package stores

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
)

// Keystore is a mount on a store, seen by its users.
type Keystore struct {
	T     *testing.T
	M     *parsecfstest.Mounted
	Store Store
	// Provider is the provider's name where it is not p
	Provider string
	// Keys are the acknowledged ones, with their public keys in DER
	Keys map[string][]byte
}

// Path is a key's file.
func (s *Keystore) Path(parts ...string) string {
	return filepath.Join(append([]string{s.M.Dir, "providers", cmp.Or(s.Provider, "p"), "keys"}, parts...)...)
}

// Own is a file of a key among the caller's own names.
func (s *Keystore) Own(parts ...string) string {
	return filepath.Join(append([]string{s.M.Dir, "providers", cmp.Or(s.Provider, "p"), "mine"}, parts...)...)
}

// Create makes a key and gives its public part; an error is one that the user saw.
func (s *Keystore) Create(name string) ([]byte, error) {
	if err := os.Mkdir(s.Path(name), 0700); err != nil {
		return nil, err
	}
	if err := parsecfstest.WriteOnce(s.Path(name, "generate"), []byte("ecdsa-p256-sha256\n")); err != nil {
		return nil, err
	}
	return os.ReadFile(s.Path(name, "public.der"))
}

// Import is Create with a key from elsewhere.
func (s *Keystore) Import(name string) ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.Path(name), 0700); err != nil {
		return nil, err
	}
	return public, parsecfstest.WriteOnce(s.Path(name, "import"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// Adopt takes a key over that lies on the device.
func (s *Keystore) Adopt(name, reference string) ([]byte, error) {
	if err := os.Mkdir(s.Path(name), 0700); err != nil {
		return nil, err
	}
	if err := parsecfstest.WriteOnce(s.Path(name, "import"), []byte(reference+"\n")); err != nil {
		return nil, err
	}
	return os.ReadFile(s.Path(name, "public.der"))
}

// Works signs with a key and verifies.
func (s *Keystore) Works(name string, public []byte) error {
	f, err := os.OpenFile(s.Path(name, "sign"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	message := []byte("signed by " + name)
	if _, err := f.Write(message); err != nil {
		return err
	}
	b := make([]byte, 4096)
	n, err := f.Read(b)
	if err != nil {
		return err
	}
	pub, err := x509.ParsePKIXPublicKey(public)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(message)
	if !ecdsa.VerifyASN1(pub.(*ecdsa.PublicKey), sum[:], b[:n]) {
		return errors.New("the signature is not valid")
	}
	return nil
}

// Check holds the store to its promises after a restart. uncertain are keys whose last change was not acknowledged:
// they may be there or not, but what is there works.
func (s *Keystore) Check(uncertain ...string) {
	t := s.T
	t.Helper()
	entries, err := os.ReadDir(s.Path())
	if err != nil {
		t.Fatal(err)
	}
	ready := 0
	found := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		found[name] = true
		public, err := os.ReadFile(s.Path(name, "public.der"))
		if errors.Is(err, os.ErrNotExist) {
			if _, err := os.Stat(s.Path(name, "generate")); err != nil {
				t.Errorf("%s is neither key nor draft: %v", name, err)
			}
			if s.Keys[name] != nil && !slices.Contains(uncertain, name) {
				t.Errorf("the key %s is a draft", name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		ready++
		if want := s.Keys[name]; want != nil && !bytes.Equal(want, public) && !slices.Contains(uncertain, name) {
			t.Errorf("%s is another key now", name)
		}
		if err := s.Works(name, public); err != nil {
			t.Errorf("%s does not work: %v", name, err)
		}
	}
	for name := range s.Keys {
		if !found[name] && !slices.Contains(uncertain, name) {
			t.Errorf("the key %s was lost", name)
		}
	}
	if s.Store.Objects == nil {
		return
	}
	objects := s.Store.Objects()
	// A daemon that waited for its device long enough mounts first, and then recovers.
	for deadline := time.Now().Add(20 * time.Second); len(objects) != ready && time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		objects = s.Store.Objects()
	}
	if len(objects) != ready {
		t.Errorf("%d keys, but %d objects: %v", ready, len(objects), objects)
	}
}

// Backup takes a backup, and gives what it holds.
func (s *Keystore) Backup() (file string, keys map[string][]byte) {
	s.T.Helper()
	file = filepath.Join(s.T.TempDir(), "backup.tar")
	if _, stderr, code := parsecfstest.Run(s.T, "state", "backup", "--state-dir", s.M.StateDir, file); code != 0 {
		s.T.Fatalf("backup: %s", stderr)
	}
	keys = map[string][]byte{}
	for name, public := range s.Keys {
		keys[name] = public
	}
	return file, keys
}

// Restored mounts a backup elsewhere, and holds it to what it held.
func (s *Keystore) Restored(file string, keys map[string][]byte) {
	t := s.T
	t.Helper()
	if code := s.M.Stop(); code != 0 {
		t.Fatalf("stop: %d", code)
	}
	var before []string
	if s.Store.Objects != nil {
		before = s.Store.Objects()
	}
	dir := filepath.Join(parsecfstest.TempDir(t), "restored")
	if _, stderr, code := parsecfstest.Run(t, "state", "restore", "--state-dir", dir, file); code != 0 {
		t.Fatalf("restore: %s", stderr)
	}
	back := &Keystore{T: t, Store: s.Store, Keys: keys, M: parsecfstest.Mount(t, parsecfstest.Options{Config: s.Store.Config, StateDir: dir})}
	for name, public := range keys {
		if got, err := os.ReadFile(back.Path(name, "public.der")); err != nil || !bytes.Equal(got, public) {
			t.Errorf("%s after the restore: %x, %v", name, got, err)
		}
		if err := back.Works(name, public); err != nil {
			t.Errorf("%s does not work after the restore: %v", name, err)
		}
	}
	if s.Store.Objects != nil {
		if after := s.Store.Objects(); !slices.Equal(before, after) {
			t.Errorf("a restore changed the objects from %v to %v", before, after)
		}
	}
}

// Restart is kill -9 and a start, and waits for the device.
func (s *Keystore) Restart(env ...string) {
	s.T.Helper()
	s.M.Restart(env...)
	s.Until("ready")
}

// Status is the provider's, which asks its device.
func (s *Keystore) Status() string {
	b, err := os.ReadFile(filepath.Join(s.M.Dir, "providers", cmp.Or(s.Provider, "p"), "status"))
	if err != nil {
		s.T.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// Until waits for the provider's status to begin so, and to have these words; reading it asks the device.
func (s *Keystore) Until(status string, words ...string) {
	s.T.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		now := s.Status()
		if strings.HasPrefix(now, status) && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(now, w) }) {
			return
		}
		if time.Now().After(deadline) {
			s.T.Fatalf("the status is %q, not %q with %q", now, status, words)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// AllWork has each of Keys sign.
func (s *Keystore) AllWork() {
	s.T.Helper()
	for name, public := range s.Keys {
		if err := s.Works(name, public); err != nil {
			s.T.Errorf("%s: %v", name, err)
		}
	}
}
