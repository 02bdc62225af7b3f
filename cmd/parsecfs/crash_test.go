package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/providertest/outside"
	"github.com/parsecfs/parsecfs/providers/psa"
	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// The daemon under test kills itself at the journal's step that this names.
const stepVariable = "PARSECFS_TEST_KILL_AT"

func init() {
	registry = append(registry, outside.Type)
	if at := os.Getenv(stepVariable); at != "" {
		testOnlyStep = func(step string) {
			if step == at {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
	}
}

// long says whether the tests run in their full form (scripts/test -long).
func long() bool { return os.Getenv("PARSECFS_TEST_LONG") == "1" }

// store is a provider to crash over.
type store struct {
	name   string
	config string
	dir    string // where the provider keeps its objects itself
	// objects are the names of what the provider holds itself, nil where the KIM is all there is.
	objects func() []string
	// token says that the device keeps all keys itself, as a PKCS #11 token does.
	token bool
	// start starts the device, where that is left to the test that needs it: what cannot be started here skips it.
	start func(t *testing.T) (config string, objects func() []string)
	// foreign makes a P-256 key on the device as another tool would; nil where the provider adopts none.
	foreign func(label string) (reference string)
}

const foreign = "not-ours"

const kimTable = "[[key_manager]]\nname = \"kim\"\nmanager_type = \"SQLite\"\n"

// tpmConfig is a configuration with a TPM alone.
func tpmConfig(chip *tpmtest.Chip) string {
	return kimTable + fmt.Sprintf("[[provider]]\nname = \"p\"\nprovider_type = \"Tpm\"\nkey_info_manager = \"kim\"\ntcti = %q\n", chip.TCTI())
}

// stores are the software provider, the outside one, whose server outlives every daemon, one on a TPM, and one on a
// PKCS #11 token.
func stores(t *testing.T) []store {
	t.Helper()
	dir := openTempDir(t)
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
	return []store{
		{name: "software", config: kimTable + "[[provider]]\nname = \"p\"\nprovider_type = \"Software\"\nkey_info_manager = \"kim\"\n"},
		{name: "outside", config: kimTable + fmt.Sprintf("[[provider]]\nname = \"p\"\nprovider_type = \"Outside\"\nkey_info_manager = \"kim\"\nsocket = %q\n", socket),
			dir: objects,
			objects: func() []string {
				list, err := outside.Objects(objects)
				if err != nil {
					t.Fatal(err)
				}
				b, err := os.ReadFile(filepath.Join(objects, foreign))
				if err != nil || string(b) != "somebody else's" {
					t.Fatalf("a foreign object was touched: %q, %v", b, err)
				}
				return list
			},
			foreign: func(label string) string {
				a, err := psa.DefaultTemplate(psa.ECCKeyPair(psa.SECPR1), 256)
				if err != nil {
					t.Fatal(err)
				}
				reference, err := outside.AddForeign(context.Background(), objects, label, a)
				if err != nil {
					t.Fatal(err)
				}
				return reference
			}},
		{name: "tpm", config: tpmConfig(tpmtest.Start(t))},
		softHSM(t),
	}
}

// keystore is a mount that is being crashed, seen by its users.
type keystore struct {
	t     *testing.T
	m     *mounted
	store store
	// provider is the provider's name where it is not p
	provider string
	// acknowledged keys, with their public keys in DER
	keys map[string][]byte
}

func (s *keystore) path(parts ...string) string {
	return filepath.Join(append([]string{s.m.Dir, "providers", cmp.Or(s.provider, "p"), "keys"}, parts...)...)
}

func writeOnce(path string, b []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Close())
}

// create makes a key and gives its public part; an error is one that the user saw.
func (s *keystore) create(name string) ([]byte, error) {
	if err := os.Mkdir(s.path(name), 0700); err != nil {
		return nil, err
	}
	if err := writeOnce(s.path(name, "generate"), []byte("ecdsa-p256-sha256\n")); err != nil {
		return nil, err
	}
	return os.ReadFile(s.path(name, "public.der"))
}

func (s *keystore) imported(name string) ([]byte, error) {
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
	if err := os.Mkdir(s.path(name), 0700); err != nil {
		return nil, err
	}
	return public, writeOnce(s.path(name, "import"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

// adopted takes a key over that lies on the device.
func (s *keystore) adopted(name, reference string) ([]byte, error) {
	if err := os.Mkdir(s.path(name), 0700); err != nil {
		return nil, err
	}
	if err := writeOnce(s.path(name, "import"), []byte(reference+"\n")); err != nil {
		return nil, err
	}
	return os.ReadFile(s.path(name, "public.der"))
}

// works signs with a key and verifies.
func (s *keystore) works(name string, public []byte) error {
	f, err := os.OpenFile(s.path(name, "sign"), os.O_RDWR, 0)
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

// check holds the store to its promises after a restart. uncertain are keys whose last change was not acknowledged:
// they may be there or not, but what is there works.
func (s *keystore) check(uncertain ...string) {
	t := s.t
	t.Helper()
	entries, err := os.ReadDir(s.path())
	if err != nil {
		t.Fatal(err)
	}
	ready := 0
	found := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		found[name] = true
		public, err := os.ReadFile(s.path(name, "public.der"))
		if errors.Is(err, os.ErrNotExist) {
			if _, err := os.Stat(s.path(name, "generate")); err != nil {
				t.Errorf("%s is neither key nor draft: %v", name, err)
			}
			if s.keys[name] != nil && !slices.Contains(uncertain, name) {
				t.Errorf("the key %s is a draft", name)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		ready++
		if want := s.keys[name]; want != nil && !bytes.Equal(want, public) && !slices.Contains(uncertain, name) {
			t.Errorf("%s is another key now", name)
		}
		if err := s.works(name, public); err != nil {
			t.Errorf("%s does not work: %v", name, err)
		}
	}
	for name := range s.keys {
		if !found[name] && !slices.Contains(uncertain, name) {
			t.Errorf("the key %s was lost", name)
		}
	}
	if s.store.objects != nil {
		if objects := s.store.objects(); len(objects) != ready {
			t.Errorf("%d keys, but %d objects: %v", ready, len(objects), objects)
		}
	}
}

// backup takes a backup; restored mounts it elsewhere and holds it to what it held.
func (s *keystore) backup() (file string, keys map[string][]byte) {
	s.t.Helper()
	file = filepath.Join(s.t.TempDir(), "backup.tar")
	if _, stderr, code := parsecfs(s.t, "state", "backup", "--state-dir", s.m.StateDir, file); code != 0 {
		s.t.Fatalf("backup: %s", stderr)
	}
	keys = map[string][]byte{}
	for name, public := range s.keys {
		keys[name] = public
	}
	return file, keys
}

func (s *keystore) restored(file string, keys map[string][]byte) {
	t := s.t
	t.Helper()
	if code := s.m.stop(); code != 0 {
		t.Fatalf("stop: %d", code)
	}
	var before []string
	if s.store.objects != nil {
		before = s.store.objects()
	}
	dir := filepath.Join(openTempDir(t), "restored")
	if _, stderr, code := parsecfs(t, "state", "restore", "--state-dir", dir, file); code != 0 {
		t.Fatalf("restore: %s", stderr)
	}
	back := &keystore{t: t, store: s.store, keys: keys, m: mountParsecfs(t, mountOptions{Config: s.store.config, StateDir: dir})}
	for name, public := range keys {
		if got, err := os.ReadFile(back.path(name, "public.der")); err != nil || !bytes.Equal(got, public) {
			t.Errorf("%s after the restore: %x, %v", name, got, err)
		}
		if err := back.works(name, public); err != nil {
			t.Errorf("%s does not work after the restore: %v", name, err)
		}
	}
	if s.store.objects != nil {
		if after := s.store.objects(); !slices.Equal(before, after) {
			t.Errorf("a restore changed the objects from %v to %v", before, after)
		}
	}
}

// TestKillAtEachStep ends the daemon at every step of the journal.
func TestKillAtEachStep(t *testing.T) {
	requireFUSE(t)
	for _, store := range stores(t) {
		t.Run(store.name, func(t *testing.T) {
			s := &keystore{t: t, store: store, keys: map[string][]byte{}, m: mountParsecfs(t, mountOptions{Config: store.config})}
			for _, name := range []string{"base-generated", "base-imported"} {
				make := s.create
				if name == "base-imported" {
					make = s.imported
				}
				public, err := make(name)
				if err != nil {
					t.Fatal(err)
				}
				s.keys[name] = public
			}
			backup, held := s.backup()
			for i, step := range kim.Steps {
				s.m.restart(stepVariable + "=" + step)
				name := fmt.Sprintf("key-%d", i)
				var uncertain []string
				operation, _, _ := strings.Cut(step, ":")
				switch operation {
				case "create":
					if public, err := s.create(name); err == nil {
						s.keys[name] = public
					}
				case "import":
					if public, err := s.imported(name); err == nil {
						s.keys[name] = public
					}
				case "adopt":
					if store.foreign == nil {
						if _, err := s.adopted(name, "id=00"); err == nil {
							t.Error("a key was adopted from nowhere")
						}
						s.m.kill()
						break
					}
					reference := store.foreign(name)
					if _, err := s.adopted(name, reference); err == nil {
						t.Errorf("%s: the daemon lived on", step)
					}
					<-s.m.done
					s.m.restart()
					// what was interrupted is dropped: the draft is as it was, or it is the key
					if _, err := os.Stat(s.path(name, "public.der")); err != nil {
						if err := writeOnce(s.path(name, "import"), []byte(reference+"\n")); err != nil {
							t.Errorf("%s: then again: %v", step, err)
						}
					}
					if public, err := os.ReadFile(s.path(name, "public.der")); err != nil || s.works(name, public) != nil {
						t.Errorf("%s: the adopted key: %v, %v", step, err, s.works(name, public))
					}
					// forgotten, and still on the device
					if err := syscall.Rmdir(s.path(name)); err != nil {
						t.Error(err)
					}
					if _, err := s.adopted(name, reference); err != nil {
						t.Errorf("%s: adopted again after it was forgotten: %v", step, err)
					}
					if err := syscall.Rmdir(s.path(name)); err != nil {
						t.Error(err)
					}
					s.m.kill()
				case "rename", "destroy":
					s.m.restart()
					public, err := s.create(name)
					if err != nil {
						t.Fatal(err)
					}
					s.keys[name] = public
					s.m.restart(stepVariable + "=" + step)
					uncertain = []string{name, name + "-new"}
					if operation == "rename" {
						err = os.Rename(s.path(name), s.path(name+"-new"))
					} else {
						err = syscall.Rmdir(s.path(name))
					}
					if err == nil {
						t.Errorf("%s: the daemon lived on", step)
					}
				default:
					t.Fatalf("a step of an unknown operation: %q", step)
				}
				<-s.m.done
				s.m.restart()
				if operation == "rename" {
					_, old := os.Stat(s.path(name))
					_, now := os.Stat(s.path(name + "-new"))
					if (old == nil) == (now == nil) {
						t.Errorf("%s: old name: %v, new name: %v", step, old, now)
					}
				}
				s.check(uncertain...)
				delete(s.keys, name)
				if t.Failed() {
					t.Fatalf("after %s", step)
				}
			}
			s.restored(backup, held)
		})
	}
}

// TestKillAtRandomMoments kills the daemon under four writers.
func TestKillAtRandomMoments(t *testing.T) {
	requireFUSE(t)
	rounds := 200
	if long() {
		rounds = 1000
	}
	for _, store := range stores(t) {
		rounds := rounds
		switch {
		case store.name == "tpm": // its keys are in the KIM, as those in software are
			rounds /= 4
		case store.token: // every start tries all that the token does
			rounds /= 8
		}
		t.Run(store.name, func(t *testing.T) {
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d, %d rounds", seed, rounds)
			random := mathrand.New(mathrand.NewPCG(seed, 0))
			s := &keystore{t: t, store: store, keys: map[string][]byte{}, m: mountParsecfs(t, mountOptions{Config: store.config})}
			var backup string
			var held map[string][]byte
			for round := range rounds {
				if round == rounds/2 {
					backup, held = s.backup()
				}
				var writers sync.WaitGroup
				var mu sync.Mutex
				var uncertain []string
				for w := range 4 {
					source := mathrand.New(mathrand.NewPCG(seed, uint64(round*4+w+1)))
					writers.Go(func() { s.write(fmt.Sprintf("w%d-r%d", w, round), source, &mu, &uncertain) })
				}
				time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond) // the random moment itself
				s.m.kill()
				writers.Wait()
				s.m.restart()
				s.check(uncertain...)
				// what is uncertain is settled now: go on from what is there
				for _, name := range uncertain {
					delete(s.keys, name)
					if public, err := os.ReadFile(s.path(name, "public.der")); err == nil {
						s.keys[name] = public
					}
				}
				s.thin(held)
				if t.Failed() {
					t.Fatalf("after round %d", round)
				}
			}
			if held != nil {
				s.restored(backup, held)
			}
		})
	}
}

// thin destroys keys until few are left, so that each round tries all that there are; those in a backup stay.
func (s *keystore) thin(held map[string][]byte) {
	for name := range s.keys {
		if len(s.keys) <= 40 {
			return
		}
		if held[name] != nil {
			continue
		}
		if err := syscall.Rmdir(s.path(name)); err != nil {
			s.t.Errorf("destroying %s: %v", name, err)
		}
		delete(s.keys, name)
	}
}

// write changes keys of its own round until the daemon is gone.
func (s *keystore) write(prefix string, random *mathrand.Rand, mu *sync.Mutex, uncertain *[]string) {
	var mine []string
	doubt := func(names ...string) {
		mu.Lock()
		defer mu.Unlock()
		*uncertain = append(*uncertain, names...)
	}
	set := func(name string, public []byte) {
		mu.Lock()
		defer mu.Unlock()
		if public == nil {
			delete(s.keys, name)
			return
		}
		s.keys[name] = public
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s-%d", prefix, i)
		switch choice := random.IntN(4); {
		case choice < 2 || len(mine) == 0:
			make := s.create
			if choice == 1 {
				make = s.imported
			}
			public, err := make(name)
			if err != nil {
				doubt(name)
				return
			}
			set(name, public)
			mine = append(mine, name)
		case choice == 2:
			k := random.IntN(len(mine))
			old := mine[k]
			mu.Lock()
			public := s.keys[old]
			mu.Unlock()
			if err := os.Rename(s.path(old), s.path(name)); err != nil {
				doubt(old, name)
				return
			}
			set(old, nil)
			set(name, public)
			mine[k] = name
		default:
			k := random.IntN(len(mine))
			if err := syscall.Rmdir(s.path(mine[k])); err != nil {
				doubt(mine[k])
				return
			}
			set(mine[k], nil)
			mine = slices.Delete(mine, k, k+1)
		}
	}
}

// TestKillReleasesEverybody: whoever waits for a daemon that is killed is told so at once, whatever it was doing. A
// thread of the daemon that waits in the kernel for a client, which waits for the daemon, would keep both for ever.
func TestKillReleasesEverybody(t *testing.T) {
	requireFUSE(t)
	m := mountParsecfs(t, mountOptions{})
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	if err := os.Mkdir(key, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeOnce(filepath.Join(key, "generate"), []byte("ecdsa-p256-sha256\n")); err != nil {
		t.Fatal(err)
	}
	rounds := 10
	if long() {
		rounds = 200
	}
	for round := range rounds {
		ended := make(chan string)
		const workers = 16
		for range workers {
			go func() {
				out, err := exec.Command("python3", "testdata/isolation/sendfile.py", filepath.Join(key, "sign")).CombinedOutput()
				if err != nil {
					out = fmt.Append(out, err)
				}
				ended <- string(out)
			}()
		}
		time.Sleep(time.Duration(200+mathrand.IntN(400)) * time.Millisecond) // the random moment itself
		m.kill()
		late := time.After(20 * time.Second)
		for i := range workers {
			select {
			case out := <-ended:
				if out != "" {
					t.Error(out)
				}
			case <-late:
				t.Fatalf("round %d: %d of %d workers hang", round, workers-i, workers)
			}
		}
		m.restart()
	}
}
