package fs

import (
	"strconv"
	"sync"
	"time"
)

// refusalUsers is how many users are counted separately within a second.
const refusalUsers = 64

// refusals keeps the log short. The first refusal of a user is logged at once; how many followed within the same second is
// logged with a later refusal. Users beyond refusalUsers are logged together, as others.
type refusals struct {
	mu    sync.Mutex
	begun time.Time
	users map[string]int64
}

// refused is how often a user was refused after the first time.
type refused struct {
	who   string // a uid, or othersTogether
	times int64
}

// othersTogether stands for all users who are not counted separately.
const othersTogether = "others"

// add says whether the user's refusal is the first within this second, and returns the counts of an earlier second that
// must still be logged.
func (r *refusals) add(uid uint32, now time.Time) (first bool, before []refused) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.users == nil || now.Sub(r.begun) >= time.Second {
		for who, n := range r.users {
			if n > 1 {
				before = append(before, refused{who, n - 1})
			}
		}
		r.begun, r.users = now, map[string]int64{}
	}
	who := strconv.FormatUint(uint64(uid), 10)
	if r.users[who] == 0 && len(r.users) >= refusalUsers {
		who = othersTogether
	}
	r.users[who]++
	return r.users[who] == 1, before
}
