package nodes

// Unlocked is what happens when the data key comes.
func (t *Tree) Unlocked() { t.unlocked() }
