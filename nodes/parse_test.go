package nodes

import (
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

func FuzzAttributes(f *testing.F) {
	for _, s := range []string{
		"template = \"ecdsa-p256-sha256\"\n",
		"key_type = \"PSA_KEY_TYPE_AES\"\nkey_bits = 256\npermitted_algorithm = \"PSA_ALG_GCM\"\nusage = [\"PSA_KEY_USAGE_ENCRYPT\"]\n",
		"usage = [\n", "usage = \"PSA_KEY_USAGE_EXPORT|PSA_KEY_USAGE_COPY\"\n", "colour = 1\n", "template = 1\n", "=\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		_, x, err := readAttributes([]byte(text))
		if err != nil {
			return
		}
		a, err := x.Over(psa.Attributes{})
		if err != nil {
			if psa.StatusOf(err) == psa.StatusGenericError {
				t.Errorf("%q: no clear error: %v", text, err)
			}
			return
		}
		if b, err := x.Over(a); err != nil || a != b {
			t.Errorf("%q: applied twice gives %v, then %v (%v)", text, a, b, err)
		}
	})
}

// FuzzGenerate feeds a text in two pieces: a piece never makes another key than the whole.
func FuzzGenerate(f *testing.F) {
	f.Add("ecdsa-p256-sha256\n", 5)
	f.Add("template = \"ed25519\"\n", 3)
	f.Add("\n", 0)
	f.Add("aes-256-gcm PSA_KEY_TYPE_AES 256\n", 11)
	f.Add("# comment\n", 4)
	f.Fuzz(func(t *testing.T, text string, cut int) {
		v := &view{provider: new(kim.Provider), key: kim.Key{State: kim.Draft}}
		s := generateStage(v)
		if cut < 0 || cut > len(text) {
			return
		}
		end, apply, err := s.scan([]byte(text[:cut]), true)
		if end > cut || (end > 0 && (apply == nil || err != nil)) || end < 0 {
			t.Fatalf("%q: end %d, error %v", text[:cut], end, err)
		}
		if end, _, _ := s.scan([]byte(text), false); end > len(text) || end < 0 {
			t.Fatalf("%q: end %d", text, end)
		}
	})
}

func TestEveryStatusHasAnErrno(t *testing.T) {
	for status, errno := range errnos {
		if errno == 0 || errno == syscall.ENOSYS {
			t.Errorf("%v is %v", status, errno)
		}
	}
	if got := errnoOf(psa.Errorf(psa.StatusTimeout, "x")); got != syscall.ETIMEDOUT {
		t.Errorf("a timeout is %v", got)
	}
}

func TestTableIsSound(t *testing.T) {
	for scope, rows := range map[string][]*row{"root": rootRows, "provider": append(slices.Clone(providerRows), hashRows...), "key": keyRows} {
		numbers, names := map[uint64]string{}, map[string]bool{}
		for _, r := range rows {
			if numbers[r.number] != "" || names[r.name] || r.number == 0 || r.number >= slotsNumber {
				t.Errorf("%s: %s has number %d of %q", scope, r.name, r.number, numbers[r.number])
			}
			numbers[r.number], names[r.name] = r.name, true
			if r.help == "" {
				t.Errorf("%s: %s has no help", scope, r.name)
			}
			if r.kind == request && (r.op == "" || len(r.spec.Outputs) == 0) {
				t.Errorf("%s: %s is no whole operation", scope, r.name)
			}
		}
	}
	help := string(readme())
	for _, r := range keyRows {
		if !strings.Contains(help, r.name) {
			t.Errorf("README does not tell of %s", r.name)
		}
	}
}
