package pkcs11

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"strings"

	p11 "github.com/miekg/pkcs11"
)

// A token keeps its serial number when somebody initializes it again, and many tokens have no serial number. So the first
// key on a token gets a marker, a data object with a random value. A token without the marker is another token.

const (
	markerApplication = "parsecfs"
	markerLabel       = "parsecfs: tells this token from others"
	markerSize        = 16
	maxMarkers        = 16
)

// markers are public objects, because the token is identified before the login.
func markerTemplate() []*p11.Attribute {
	return []*p11.Attribute{p11.NewAttribute(p11.CKA_CLASS, uint(p11.CKO_DATA)), p11.NewAttribute(p11.CKA_TOKEN, true),
		p11.NewAttribute(p11.CKA_APPLICATION, markerApplication), p11.NewAttribute(p11.CKA_LABEL, markerLabel)}
}

// unknown are the errors of tokens that do not support data objects.
var unknown = errorSet{p11.CKR_ATTRIBUTE_TYPE_INVALID: true, p11.CKR_ATTRIBUTE_VALUE_INVALID: true, p11.CKR_TEMPLATE_INCONSISTENT: true,
	p11.CKR_FUNCTION_NOT_SUPPORTED: true}

// findMarker returns the token's markers in hexadecimal, separated by #, "" if it has none. Two programs may have made one at
// the same time. None is ever removed, since a program may know the token by it.
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
		slices.Sort(values)
		marker = strings.Join(values, "#")
		return err
	})
	return marker, err
}

// mark makes a marker if the token has none.
func (m *module) mark() error {
	m.markMu.Lock()
	defer m.markMu.Unlock()
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
		_, err := m.ctx.CreateObject(s, append(markerTemplate(), p11.NewAttribute(p11.CKA_PRIVATE, false), p11.NewAttribute(p11.CKA_VALUE, value)))
		return failed("C_CreateObject", err)
	})
	if err != nil && (is(err, ended) || is(err, removed) || !m.well()) {
		return err // it says nothing of markers
	}
	if err != nil {
		m.mu.Lock()
		m.bare = true
		m.mu.Unlock()
		fmt.Fprintf(os.Stderr, "cannot write a marker to the token, so only its serial number and label tell it from others: %v\n", err)
		return nil
	}
	m.setMarker(hex.EncodeToString(value))
	return nil
}

func (m *module) setMarker(marker string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.marker = marker
}
