package providertest

import (
	"errors"
	"testing"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// wrapping wraps a secret with a PIN and without. It tries no wrong one: devices count those.
func (s *suite) wrapping(t *testing.T) {
	w, ok := s.provider(t).(providers.Wrapper)
	if !ok {
		t.Skip("it wraps no secrets")
	}
	const secret = "a secret of at most 64 bytes"
	for _, pin := range []string{"", "1234"} {
		b, err := w.Wrap(t.Context(), []byte(secret), 0, []byte(pin))
		if err != nil {
			t.Fatal(err)
		}
		if wants, err := w.WantsPIN(b); err != nil || wants != (pin != "") {
			t.Errorf("wrapped with the PIN %q, it wants one: %t, %v", pin, wants, err)
		}
		if got, err := w.Unwrap(t.Context(), b, []byte("1234")); err != nil || string(got) != secret {
			t.Errorf("wrapped with the PIN %q: %q, %v", pin, got, err)
		}
		_, err = w.Unwrap(t.Context(), b, nil)
		if pin == "" && err != nil || pin != "" && (psa.StatusOf(err) != psa.StatusNotPermitted || !errors.Is(err, providers.ErrPIN)) {
			t.Errorf("wrapped with the PIN %q, unwrapped without one: %v", pin, err)
		}
		if _, err := w.WantsPIN(b[1:]); psa.StatusOf(err) != psa.StatusProviderAbsent {
			t.Errorf("whether something else wants a PIN: %v", err)
		}
		if _, err := w.Unwrap(t.Context(), b[1:], []byte("1234")); psa.StatusOf(err) != psa.StatusProviderAbsent {
			t.Errorf("something else: %v", err)
		}
	}
}
