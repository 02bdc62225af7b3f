package transaction

import "github.com/parsecfs/parsecfs/nodes/caller"

// Prompt says whether a READ now waits for nothing: nobody has to be judged, and the answer is there, or quick to find. It waits for
// no lock itself. Only a file that was opened with a channel of its own can be so.
func (h *Handle) Prompt(who caller.Caller) bool {
	if h.slot != nil || h.box != nil || h.reader != nil || !h.access.Prompt() || !h.mu.TryLock() {
		return false
	}
	c := h.channel
	h.mu.Unlock()
	if c == nil {
		return false
	}
	r := c.latest.Load()
	return r != nil && r.prompt(who)
}

func (r *request) prompt(who caller.Caller) bool {
	if !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	switch {
	case r.phase == answered, r.poison != nil:
		return true
	case r.phase != collecting || !r.begun || r.feed == nil:
		return false
	}
	op, ok := r.feed.op.(quick)
	return ok && r.feed.holds() <= promptMost && op.Quick(who)
}

// quick is an operation that knows whether it takes about a millisecond at most, and waits for nobody, if who asks for it.
type quick interface{ Quick(who caller.Caller) bool }

// promptMost is how many bytes an operation that is quick may hold.
const promptMost = 4 << 10
