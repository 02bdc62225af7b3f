package kim

import (
	"bytes"
	"slices"
	"sync"
)

// cachedRows bounds the rows of keys that a store keeps in memory; none holds a secret.
const cachedRows = 1024

// rowCache keeps rows of keys between transactions that write: each empties it before its caller goes on.
type rowCache struct {
	mu     sync.Mutex
	writes uint64
	rows   map[int64]Key
}

// get gives a row, or false with the number of writes that put needs.
func (c *rowCache) get(number int64) (Key, uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.rows[number]
	if ok {
		k.Public, k.Units = bytes.Clone(k.Public), slices.Clone(k.Units)
	}
	return k, c.writes, ok
}

// put keeps a row that was read after so many writes, unless there was another one since.
func (c *rowCache) put(k Key, writes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if writes != c.writes {
		return
	}
	if c.rows == nil || len(c.rows) >= cachedRows {
		c.rows = map[int64]Key{}
	}
	k.Public, k.Units = bytes.Clone(k.Public), slices.Clone(k.Units)
	c.rows[k.Number] = k
}

// written forgets all rows: a transaction may have changed any.
func (c *rowCache) written() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writes++
	clear(c.rows)
}
