package kill

import (
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

	"github.com/parsecfs/parsecfs/cmd/parsecfs/parsecfstest"
	"github.com/parsecfs/parsecfs/cmd/parsecfs/tests/stores"
	"github.com/parsecfs/parsecfs/kim"
)

// TestKillAtEachStep ends the daemon at every step of the journal.
func TestKillAtEachStep(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	for _, store := range stores.All() {
		t.Run(store.Name, func(t *testing.T) {
			t.Parallel()
			store.Begin(t)
			s := &stores.Keystore{T: t, Store: store, Keys: map[string][]byte{}, M: parsecfstest.Mount(t, parsecfstest.Options{Config: store.Config})}
			for _, name := range []string{"base-generated", "base-imported"} {
				make := s.Create
				if name == "base-imported" {
					make = s.Import
				}
				public, err := make(name)
				if err != nil {
					t.Fatal(err)
				}
				s.Keys[name] = public
			}
			backup, held := s.Backup()
			for i, step := range kim.Steps {
				s.Restart(parsecfstest.StepVariable + "=" + step)
				name := fmt.Sprintf("key-%d", i)
				var uncertain []string
				operation, _, _ := strings.Cut(step, ":")
				switch operation {
				case "create":
					if public, err := s.Create(name); err == nil {
						s.Keys[name] = public
					}
				case "import":
					if public, err := s.Import(name); err == nil {
						s.Keys[name] = public
					}
				case "adopt":
					if store.Foreign == nil {
						if _, err := s.Adopt(name, "id=00"); err == nil {
							t.Error("a key was adopted from nowhere")
						}
						s.M.Kill()
						break
					}
					reference := store.Foreign(name)
					if _, err := s.Adopt(name, reference); err == nil {
						t.Errorf("%s: the daemon lived on", step)
					}
					<-s.M.Done()
					s.Restart()
					// what was interrupted is dropped: the draft is as it was, or it is the key
					if _, err := os.Stat(s.Path(name, "public.der")); err != nil {
						if err := parsecfstest.WriteOnce(s.Path(name, "import"), []byte(reference+"\n")); err != nil {
							t.Errorf("%s: then again: %v", step, err)
						}
					}
					if public, err := os.ReadFile(s.Path(name, "public.der")); err != nil || s.Works(name, public) != nil {
						t.Errorf("%s: the adopted key: %v, %v", step, err, s.Works(name, public))
					}
					// forgotten, and still on the device
					if err := syscall.Rmdir(s.Path(name)); err != nil {
						t.Error(err)
					}
					if _, err := s.Adopt(name, reference); err != nil {
						t.Errorf("%s: adopted again after it was forgotten: %v", step, err)
					}
					if err := syscall.Rmdir(s.Path(name)); err != nil {
						t.Error(err)
					}
					s.M.Kill()
				case "rename", "destroy":
					s.Restart()
					public, err := s.Create(name)
					if err != nil {
						t.Fatal(err)
					}
					s.Keys[name] = public
					s.Restart(parsecfstest.StepVariable + "=" + step)
					uncertain = []string{name, name + "-new"}
					if operation == "rename" {
						err = os.Rename(s.Path(name), s.Own(name+"-new"))
					} else {
						err = syscall.Rmdir(s.Path(name))
					}
					if err == nil {
						t.Errorf("%s: the daemon lived on", step)
					}
				default:
					t.Fatalf("a step of an unknown operation: %q", step)
				}
				<-s.M.Done()
				s.Restart()
				if operation == "rename" {
					_, old := os.Stat(s.Path(name))
					_, now := os.Stat(s.Own(name + "-new"))
					if (old == nil) == (now == nil) {
						t.Errorf("%s: old name: %v, new name: %v", step, old, now)
					}
					if now == nil {
						if err := os.Rename(s.Own(name+"-new"), s.Path(name+"-new")); err != nil {
							t.Errorf("%s: back to the shared names: %v", step, err)
						}
					}
				}
				s.Check(uncertain...)
				delete(s.Keys, name)
				if t.Failed() {
					t.Fatalf("after %s", step)
				}
			}
			s.Restored(backup, held)
		})
	}
}

// TestKillAtRandomMoments kills the daemon under four writers.
func TestKillAtRandomMoments(t *testing.T) {
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	rounds := 200
	if parsecfstest.Long() {
		rounds = 1000
	}
	for _, store := range stores.All() {
		rounds := rounds
		switch {
		case store.Name == "tpm": // its keys are in the KIM, as those in software are
			rounds /= 4
		case store.Token: // every start tries all that the token does
			rounds /= 8
		}
		t.Run(store.Name, func(t *testing.T) {
			t.Parallel()
			store.Begin(t)
			seed := uint64(time.Now().UnixNano())
			t.Logf("seed %d, %d rounds", seed, rounds)
			random := mathrand.New(mathrand.NewPCG(seed, 0))
			s := &stores.Keystore{T: t, Store: store, Keys: map[string][]byte{}, M: parsecfstest.Mount(t, parsecfstest.Options{Config: store.Config})}
			var backup string
			var held map[string][]byte
			for round := range rounds {
				if round == rounds/2 {
					backup, held = s.Backup()
				}
				var writers sync.WaitGroup
				var mu sync.Mutex
				var uncertain []string
				for w := range 4 {
					source := mathrand.New(mathrand.NewPCG(seed, uint64(round*4+w+1)))
					writers.Go(func() { write(s, fmt.Sprintf("w%d-r%d", w, round), source, &mu, &uncertain) })
				}
				time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond) // the random moment itself
				s.M.Kill()
				writers.Wait()
				s.Restart()
				s.Check(uncertain...)
				// what is uncertain is settled now: go on from what is there
				for _, name := range uncertain {
					delete(s.Keys, name)
					if public, err := os.ReadFile(s.Path(name, "public.der")); err == nil {
						s.Keys[name] = public
					}
				}
				thin(s, held)
				if t.Failed() {
					t.Fatalf("after round %d", round)
				}
			}
			if held != nil {
				s.Restored(backup, held)
			}
		})
	}
}

// thin destroys keys until few are left, so that each round tries all that there are; those in a backup stay.
func thin(s *stores.Keystore, held map[string][]byte) {
	for name := range s.Keys {
		if len(s.Keys) <= 40 {
			return
		}
		if held[name] != nil {
			continue
		}
		if err := syscall.Rmdir(s.Path(name)); err != nil {
			s.T.Errorf("destroying %s: %v", name, err)
		}
		delete(s.Keys, name)
	}
}

// write changes keys of its own round until the daemon is gone.
func write(s *stores.Keystore, prefix string, random *mathrand.Rand, mu *sync.Mutex, uncertain *[]string) {
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
			delete(s.Keys, name)
			return
		}
		s.Keys[name] = public
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s-%d", prefix, i)
		switch choice := random.IntN(4); {
		case choice < 2 || len(mine) == 0:
			make := s.Create
			if choice == 1 {
				make = s.Import
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
			public := s.Keys[old]
			mu.Unlock()
			if err := os.Rename(s.Path(old), s.Path(name)); err != nil {
				doubt(old, name)
				return
			}
			set(old, nil)
			set(name, public)
			mine[k] = name
		default:
			k := random.IntN(len(mine))
			if err := syscall.Rmdir(s.Path(mine[k])); err != nil {
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
	t.Parallel()
	parsecfstest.RequireFUSE(t)
	m := parsecfstest.Mount(t, parsecfstest.Options{})
	key := filepath.Join(m.Dir, "providers/software/keys/k")
	if err := os.Mkdir(key, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := parsecfstest.WriteOnce(filepath.Join(key, "generate"), []byte("ecdsa-p256-sha256\n")); err != nil {
		t.Fatal(err)
	}
	rounds := 10
	if parsecfstest.Long() {
		rounds = 200
	}
	for round := range rounds {
		ended := make(chan string)
		const workers = 16
		for range workers {
			go func() {
				out, err := exec.Command("python3", "testdata/sendfile.py", filepath.Join(key, "sign")).CombinedOutput()
				if err != nil {
					out = fmt.Append(out, err)
				}
				ended <- string(out)
			}()
		}
		time.Sleep(time.Duration(200+mathrand.IntN(400)) * time.Millisecond) // the random moment itself
		m.Kill()
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
		m.Restart()
	}
}
