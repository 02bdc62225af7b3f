package transaction

import "testing"

// Whoever has many uids does not have as many bounds, and somebody else still gets what is theirs.
func TestManyUsers(t *testing.T) {
	a := account{most: amounts{handles: 10, held: 100, calls: 10, effects: 10}}
	for uid := range uint32(1000) {
		for range 10 {
			if a.take(uid, held, 10) != nil {
				break
			}
		}
	}
	if got, most := a.all[held], int64(4*usersWorth*100); got > most {
		t.Errorf("a thousand users hold %d bytes, of %d", got, usersWorth*100)
	}
	var one account
	one.most = a.most
	for range 20 * usersWorth {
		_ = one.take(1, held, 10)
		_ = one.take(2, held, 10)
	}
	if one.users[1][held] != 100 || one.users[2][held] != 100 {
		t.Errorf("two users hold %v and %v", one.users[1], one.users[2])
	}
	if err := one.take(3, held, 100); err != nil {
		t.Errorf("a third user gets nothing: %v", err)
	}
	for uid := range uint32(4) {
		if u, has := one.users[uid]; has {
			one.put(uid, held, -u[held])
		}
	}
	if len(one.users) != 0 || one.all != (amounts{}) {
		t.Errorf("given back, %v users hold %v", len(one.users), one.all)
	}
}
