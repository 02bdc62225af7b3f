package kim

import (
	"bytes"
	"slices"
	"sync"
)

// cachedRows bounds the rows of keys that a store keeps in memory; none holds a secret.
const cachedRows = 1024

// rowCache keeps rows of keys between commits. While one is under way it takes none, and gives none that it changes, so that
// nobody who saw what is new sees what was before.
type rowCache struct {
	mu         sync.Mutex
	changes    uint64 // of what follows: a row that was read before one is not kept
	committing bool
	rows       map[int64]Key
	files      map[int64]fileSet
}

// get gives a row, or false with the number of changes that put needs.
func (c *rowCache) get(number int64) (Key, uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	k, ok := c.rows[number]
	if ok {
		k.Public, k.Units = bytes.Clone(k.Public), slices.Clone(k.Units)
	}
	return k, c.changes, ok
}

// put keeps a row that was read after so many changes, unless there was another one since.
func (c *rowCache) put(k Key, changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if changes != c.changes || c.committing {
		return
	}
	if c.rows == nil || len(c.rows) >= cachedRows {
		c.rows = map[int64]Key{}
	}
	k.Public, k.Units = bytes.Clone(k.Public), slices.Clone(k.Units)
	c.rows[k.Number] = k
}

// filesOf is get for the files of a row, whatever row it is.
func (c *rowCache) filesOf(number int64) (fileSet, uint64, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k, ok := c.rows[number]; ok {
		return k.files, c.changes, true
	}
	files, ok := c.files[number]
	return files, c.changes, ok
}

// putFiles is put for the files of a row.
func (c *rowCache) putFiles(number int64, files fileSet, changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if changes != c.changes || c.committing {
		return
	}
	if c.files == nil || len(c.files) >= cachedRows {
		c.files = map[int64]fileSet{}
	}
	c.files[number] = files
}

// commit runs one that changes these rows, and forgets them: it may change them even if it fails. all: it may change any.
func (c *rowCache) commit(numbers []int64, all bool, run func() error) error {
	set := func(committing bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changes++
		c.committing = committing
		if all {
			clear(c.rows)
			clear(c.files)
		}
		for _, n := range numbers {
			delete(c.rows, n)
			delete(c.files, n)
		}
	}
	set(true)
	defer set(false)
	return run()
}
