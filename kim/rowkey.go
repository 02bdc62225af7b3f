package kim

import (
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// RowKey is the key by which a store verifies that its rows are as it wrote them: HMAC-SHA-256, derived from the data key
// (RFC 5869). Somebody who can write to the file, or operates the database, does not have it.
type RowKey struct{ key []byte }

// NewRowKey derives the rows' key from the data key.
func NewRowKey(dataKey []byte) (*RowKey, error) {
	key, err := hkdf.Key(sha256.New, dataKey, nil, "parsecfs rows 1", sha256.Size)
	if err != nil {
		return nil, psa.Errorf(psa.StatusGenericError, "cannot derive the rows' key: %w", err)
	}
	return &RowKey{key}, nil
}

// mac computes the MAC of a row: of its kind, and of its stored values, each with its type and length, so that two different
// rows never have the same text.
func (r *RowKey) mac(kind string, values ...any) []byte {
	b := make([]byte, 0, 512)
	text := func(tag byte, s string) {
		b = append(b, tag)
		b = binary.BigEndian.AppendUint64(b, uint64(len(s)))
		b = append(b, s...)
	}
	integer := func(n int64) {
		b = append(b, 'i')
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	text('k', kind)
	for _, v := range values {
		switch v := v.(type) {
		case nil:
			b = append(b, '0')
		case int64:
			integer(v)
		case []byte:
			text('b', string(v))
		case string:
			text('t', v)
		default: // of a type that no column has: its row is damaged, whatever this gives
			text('?', fmt.Sprint(v))
		}
	}
	h := hmac.New(sha256.New, r.key)
	h.Write(b)
	return h.Sum(nil)
}

// proves says whether a MAC belongs to a row. Without a key it always says yes.
func (r *RowKey) proves(mac any, kind string, values ...any) bool {
	if r == nil {
		return true
	}
	have, _ := mac.([]byte)
	return hmac.Equal(have, r.mac(kind, values...))
}
