package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/parsecfs/parsecfs/providers/tpm/tpmtest"
)

// tpmStore is a mount on a TPM, with keys.
func tpmStore(t *testing.T) (*tpmtest.Chip, *keystore) {
	t.Helper()
	chip := tpmtest.Start(t)
	s := &keystore{t: t, store: store{name: "tpm"}, keys: map[string][]byte{}, m: mountParsecfs(t, mountOptions{Config: tpmConfig(chip)})}
	for name, make := range map[string]func(string) ([]byte, error){"generated": s.create, "second": s.create, "third": s.create, "imported": s.imported} {
		public, err := make(name)
		if err != nil {
			t.Fatal(err)
		}
		s.keys[name] = public
	}
	return chip, s
}

func (s *keystore) status() string {
	b, err := os.ReadFile(filepath.Join(s.m.Dir, "providers/p/status"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// until waits for the provider's status to begin so; reading it asks the device.
func (s *keystore) until(status string) {
	s.t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !strings.HasPrefix(s.status(), status) {
		if time.Now().After(deadline) {
			s.t.Fatalf("the status is %q, not %q", s.status(), status)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (s *keystore) allWork() {
	s.t.Helper()
	for name, public := range s.keys {
		if err := s.works(name, public); err != nil {
			s.t.Errorf("%s: %v", name, err)
		}
	}
}

// TestTPMGoesAndComes: while the TPM is away its keys answer ENODEV or EIO at once; when it is back, after a reset, all
// work without a restart, and with one.
func TestTPMGoesAndComes(t *testing.T) {
	requireFUSE(t)
	chip, s := tpmStore(t)
	s.allWork()
	for round := range 3 {
		chip.Kill()
		for name, public := range s.keys {
			since := time.Now()
			if err := s.works(name, public); !errors.Is(err, syscall.ENODEV) && !errors.Is(err, syscall.EIO) {
				t.Errorf("without a TPM %s: %v", name, err)
			}
			if took := time.Since(since); took > 5*time.Second {
				t.Errorf("it took %v to say that there is no TPM", took)
			}
		}
		s.until("degraded: ")
		if err := syscall.Rmdir(s.path("generated")); !errors.Is(err, syscall.ENODEV) {
			t.Errorf("rmdir without a TPM: %v", err)
		}
		if _, err := s.create("lost"); err == nil {
			t.Error("a key was made without a TPM")
		}
		if err := syscall.Rmdir(s.path("lost")); err != nil {
			t.Errorf("a draft: %v", err)
		}
		if round == 1 {
			s.m.kill()
		}
		chip.Restart()
		if round == 1 {
			s.m.restart()
		}
		s.until("ready")
		s.allWork()
	}
}

// TestTPMExchanged: another TPM in the place of the one that has the keys does nothing to them, and says so.
func TestTPMExchanged(t *testing.T) {
	requireFUSE(t)
	chip, s := tpmStore(t)
	chip.Exchange()
	s.until("degraded: ")
	for range 2 {
		if status := s.status(); !strings.Contains(status, "another device") {
			t.Errorf("the status is %q", status)
		}
		for name, public := range s.keys {
			if err := s.works(name, public); !errors.Is(err, syscall.ENODEV) {
				t.Errorf("%s: %v", name, err)
			}
			if b, err := os.ReadFile(s.path(name, "last_error")); err != nil || !strings.Contains(string(b), "ENODEV") {
				t.Errorf("last_error of %s is %q, %v", name, b, err)
			}
		}
		s.m.kill()
		s.m.restart()
		s.until("degraded: ")
	}
	chip.Exchange()
	s.until("ready")
	s.allWork()
}

// TestTPMKilledWhileSigning ends the TPM under 16 workers, again and again.
func TestTPMKilledWhileSigning(t *testing.T) {
	requireFUSE(t)
	chip, s := tpmStore(t)
	rounds := 20
	if long() {
		rounds = 100
	}
	var signed, refused atomic.Int64
	for range rounds {
		stop := make(chan struct{})
		var workers sync.WaitGroup
		before := signed.Load()
		for w := range 16 {
			name := []string{"generated", "second", "third", "imported"}[w%4]
			workers.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					since := time.Now()
					err := s.works(name, s.keys[name])
					if took := time.Since(since); took > 5*time.Second {
						t.Errorf("a request took %v", took)
					}
					switch {
					case err == nil:
						signed.Add(1)
					case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.EAGAIN):
						refused.Add(1)
					default:
						t.Error(err)
					}
				}
			})
		}
		for signed.Load() < before+50 {
			time.Sleep(time.Millisecond)
		}
		chip.Kill()
		chip.Restart()
		close(stop)
		workers.Wait()
		s.until("ready")
		s.allWork()
	}
	t.Logf("%d signatures, %d refusals", signed.Load(), refused.Load())
}
