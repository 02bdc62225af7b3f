package kim

import (
	"context"
	"crypto/sha256"
	"errors"
	"strings"
	"sync"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// pinTries remembers a PIN that the device refused for the wrapped data key, so that it is not tried again for the same
// wrapping. The KIM calls the device again and again while the data key is not available, and the device counts wrong PINs.
type pinTries struct {
	mu      sync.Mutex
	id      [16]byte // of the wrapping
	refused [sha256.Size]byte
	why     error // nil: none was refused
}

// known is the refusal of this PIN, if the device refused it.
func (t *pinTries) known(row WrappedKey, pin []byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.id != row.WrappingID || t.refused != sha256.Sum256(pin) {
		return nil
	}
	return t.why
}

func (t *pinTries) note(row WrappedKey, pin [sha256.Size]byte, err error) {
	if !errors.Is(err, providers.ErrPINRefused) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.id, t.refused, t.why = row.WrappingID, pin, err
}

// wrappingPIN reads the PIN of the configuration, nil if there is none. The caller wipes it.
func (k *KIM) wrappingPIN() ([]byte, error) {
	if k.o.WrappingPIN == nil {
		return nil, nil
	}
	pin, err := k.o.WrappingPIN()
	if err != nil {
		return nil, psa.Errorf(psa.StatusNotPermitted, "%w cannot be read: %w", providers.ErrPIN, err).WithHint(psa.HintOf(err))
	}
	return pin, nil
}

// unwrapWithPIN is unwrapRow with the configuration's PIN if the row needs one. Its caller holds KIM.unwrapping.
func (p *Provider) unwrapWithPIN(ctx context.Context, wrapper providers.Wrapper, row WrappedKey) (opened, error) {
	wants, err := wrapper.WantsPIN(row.Wrapped)
	if err != nil || !wants {
		return p.unwrapRow(ctx, wrapper, row, nil) // which says what is wrong with it
	}
	pin, err := p.k.wrappingPIN()
	if err != nil {
		return opened{}, err
	}
	defer psa.Wipe(pin)
	if err := p.k.pins.known(row, pin); err != nil {
		return opened{}, err
	}
	return p.unwrapRow(ctx, wrapper, row, pin)
}

// WrappedWithPIN says whether the data key is wrapped with a PIN, false if its provider is not configured.
func (k *KIM) WrappedWithPIN(ctx context.Context) (bool, error) {
	row, _, err := k.store.DataKey(ctx)
	name, byProvider := strings.CutPrefix(row.Kind, WrapProvider)
	if err != nil || !byProvider {
		return false, err
	}
	p := k.Provider(name)
	if p == nil {
		return false, nil
	}
	wrapper, err := p.wrapper()
	if err != nil {
		return false, err
	}
	return wrapper.WantsPIN(row.Wrapped)
}

// pinHint says what to do when the PIN keeps the data key sealed.
func pinHint(row WrappedKey, why error) string {
	hint := "set wrapping_pin_source in [core_settings] to where the PIN is that the store was wrapped with"
	if own := psa.HintOf(why); own != "" {
		hint = own
	}
	return hint + "; if the PIN is lost, run parsecfs state rewrap --recovery-key FILE " + row.Kind
}
