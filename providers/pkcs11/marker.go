package pkcs11

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"slices"

	p11 "github.com/miekg/pkcs11"
)

// A token that was initialized anew has its old serial number, and many have no serial number at all. So the first key that
// is made on a token gets a marker beside it, a data object with a random value: without it the token is another one.

const (
	markerApplication = "parsecfs"
	markerLabel       = "parsecfs: tells this token from others"
	markerSize        = 16
	maxMarkers        = 16
)

// markers are public objects: the token is looked at before anybody logs in.
func markerTemplate() []*p11.Attribute {
	return []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, uint(p11.CKO_DATA)), p11.NewAttribute(p11.CKA_TOKEN, true),
		p11.NewAttribute(p11.CKA_APPLICATION, markerApplication), p11.NewAttribute(p11.CKA_LABEL, markerLabel)}
}

// unknown are the errors of tokens that have no data objects.
var unknown = errorSet{p11.CKR_ATTRIBUTE_TYPE_INVALID: true, p11.CKR_ATTRIBUTE_VALUE_INVALID: true, p11.CKR_TEMPLATE_INCONSISTENT: true,
	p11.CKR_FUNCTION_NOT_SUPPORTED: true}

// findMarker gives the token's marker in hexadecimal, empty where it has none.
func (m *module) findMarker() (marker string, err error) {
	err = m.onHeld(func(s session) error {
		var values []string
		found, err := m.search(s, markerTemplate(), maxMarkers)
		if is(err, unknown) {
			return nil
		}
		for _, o := range found {
			if err != nil {
				break
			}
			var list []attribute
			if list, err = m.read(s, o, []uint64{p11.CKA_VALUE}); err == nil && len(list[0].value) > 0 {
				values = append(values, hex.EncodeToString(list[0].value))
			}
		}
		if len(values) > 0 {
			marker = slices.Min(values)
		}
		return err
	})
	return marker, err
}

// mark sees to it that the token has a marker. Two programs that make one at once both take theirs back, and leave it to
// the next key.
func (m *module) mark() error {
	m.mu.Lock()
	done := m.marker != "" || m.bare
	m.mu.Unlock()
	if done {
		return nil
	}
	marker, err := m.findMarker()
	if err != nil || marker != "" {
		m.setMarker(marker)
		return err
	}
	value := make([]byte, markerSize)
	rand.Read(value)
	err = m.with(func(s session) error {
		o, err := m.ctx.CreateObject(s, append(markerTemplate(), p11.NewAttribute(p11.CKA_PRIVATE, false), p11.NewAttribute(p11.CKA_VALUE, value)))
		if err != nil {
			return failed("C_CreateObject", err)
		}
		if all, err := m.search(s, markerTemplate(), maxMarkers); err != nil || len(all) > 1 {
			return failed("C_DestroyObject", m.ctx.DestroyObject(s, o))
		}
		marker = hex.EncodeToString(value)
		return nil
	})
	if err != nil {
		m.mu.Lock()
		m.bare = true
		m.mu.Unlock()
		fmt.Fprintf(os.Stderr, "the token takes no marker, and is told from others by its serial number and label alone: %v\n", err)
		return nil
	}
	m.setMarker(marker)
	return nil
}

func (m *module) setMarker(marker string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.marker = marker
}
