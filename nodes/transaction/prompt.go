package transaction

import "github.com/parsecfs/parsecfs/nodes/caller"

// Prompt says whether a READ now waits for nothing: nobody has to be judged, and the answer is there, or quick to find. It waits for
// no lock itself. Only a file that was opened with a channel of its own can be so.
func (h *Handle) Prompt(who caller.Caller) bool {
	r := h.latest()
	return r != nil && r.prompt(who, false)
}

// PromptCall says so of a request of this size that begins and is answered in one call, where one was answered before.
func (h *Handle) PromptCall(who caller.Caller, size int) bool {
	r := h.latest()
	return r != nil && size <= promptMost && r.prompt(who, true)
}

func (h *Handle) latest() *request {
	if h.slot != nil || h.box != nil || h.reader != nil || !h.access.Prompt() || !h.mu.TryLock() {
		return nil
	}
	c := h.channel
	h.mu.Unlock()
	if c == nil {
		return nil
	}
	return c.latest.Load()
}

// prompt says whether the answer is there or quick to find; another: the answer of one more like it.
func (r *request) prompt(who caller.Caller, another bool) bool {
	if !r.mu.TryLock() {
		return false
	}
	defer r.mu.Unlock()
	op := r.op
	switch {
	case r.phase == computing, !r.begun:
		return false
	case r.phase == collecting && (another || r.feed == nil || r.feed.holds() > promptMost):
		return false
	case r.phase == collecting:
		op = r.feed.op
	}
	// also where the answer is there: what is refused now may be written down
	q, ok := op.(quick)
	return ok && q.Quick(who)
}

// quick is an operation that knows whether it takes about a millisecond at most, and waits for nobody, if who asks for it.
type quick interface{ Quick(who caller.Caller) bool }

// promptMost is how many bytes an operation that is quick may hold.
const promptMost = 4 << 10
