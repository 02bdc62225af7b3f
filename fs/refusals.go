package fs

import (
	"strconv"
	"sync"
	"time"
)

// refusalUsers bounds the users who are told apart within a second.
const refusalUsers = 64

// refusals keeps the log short: the first refusal of each user is told at once, and how many followed within that second
// with the next one. Users beyond the bound are told together, without a number.
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

// othersTogether is whom a bound does not tell apart.
const othersTogether = "others"

// add says whether the user's refusal is the first within this second, and what is still to be told of an earlier one.
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
