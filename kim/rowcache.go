package kim

import (
	"slices"
	"sync"
)

// cachedRows is how many rows of keys a store keeps in memory. None holds a secret. Whoever gets a row shares its Public and Units
// with the others, and never writes into them.
const cachedRows = 1024

// rowCache keeps rows of keys between commits. During a commit it takes no rows, and returns none that the commit changes, so
// that nobody sees an old row after a new one.
type rowCache struct {
	mu         sync.RWMutex
	changes    uint64 // of what follows: a row that was read before one is not kept
	committing bool
	rows       map[int64]Key
	files      map[int64]fileSet
	inodes     map[int64]map[uint8]cachedInode // by the number that they belong to, and the file's own
	kept       int                             // of inodes
}

// cachedInodes is how many inodes a store keeps in memory, those without a row too.
const cachedInodes = 1 << 13

// cachedInode is what is stored of an inode. Whoever gets it shares what it points to with the others, and never writes into that.
type cachedInode struct {
	Inode
	found bool
}

// inode is get for an inode.
func (c *rowCache) inode(ino uint64) (cachedInode, uint64, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	i, ok := c.inodes[int64(ino/256)][uint8(ino)]
	return i, c.changes, ok
}

// putInode is put for an inode.
func (c *rowCache) putInode(ino uint64, i cachedInode, changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if changes != c.changes || c.committing {
		return
	}
	if c.inodes == nil || c.kept >= cachedInodes {
		c.inodes, c.kept = map[int64]map[uint8]cachedInode{}, 0
	}
	of := c.inodes[int64(ino/256)]
	if of == nil {
		of = map[uint8]cachedInode{}
		c.inodes[int64(ino/256)] = of
	}
	if _, known := of[uint8(ino)]; !known {
		c.kept++
	}
	i.ACL, i.DefaultACL = slices.Clip(i.ACL), slices.Clip(i.DefaultACL) // so that append copies
	of[uint8(ino)] = i
}

// get returns a row, or false and the number of changes that put needs.
func (c *rowCache) get(number int64) (Key, uint64, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	k, ok := c.rows[number]
	return k, c.changes, ok
}

// put keeps a row that was read after this number of changes, unless there was another change since.
func (c *rowCache) put(k Key, changes uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if changes != c.changes || c.committing {
		return
	}
	if c.rows == nil || len(c.rows) >= cachedRows {
		c.rows = map[int64]Key{}
	}
	k.Public, k.Units = slices.Clip(k.Public), slices.Clip(k.Units) // so that append copies
	c.rows[k.Number] = k
}

// filesOf is get for the files of any row.
func (c *rowCache) filesOf(number int64) (fileSet, uint64, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
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

// commit runs a commit that changes these rows, and forgets them: even a failed commit may change them. all: it may change
// any row.
func (c *rowCache) commit(numbers []int64, all bool, run func() error) error {
	set := func(committing bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changes++
		c.committing = committing
		if all {
			clear(c.rows)
			clear(c.files)
			clear(c.inodes)
			c.kept = 0
		}
		for _, n := range numbers {
			delete(c.rows, n)
			delete(c.files, n)
			c.kept -= len(c.inodes[n])
			delete(c.inodes, n)
		}
	}
	set(true)
	defer set(false)
	return run()
}
