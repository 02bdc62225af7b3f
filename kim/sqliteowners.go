package kim

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// How many keys and drafts each user has, and all have together, is stored, so that nobody counts the keys. Each count has a
// MAC. Where one is not as it was stored, or a key was removed while the data key was away, all keys are counted anew.

// Rows of the table owners that are no user's.
const (
	allKeys  = -1 // how many keys there are
	allUsers = -2 // how many users have any
)

// owned reads a count; false: it is not as it was stored. Who has no row has no key.
func (t *tx) owned(who int64) (n int64, ok bool, err error) {
	var mac []byte
	err = t.row("SELECT keys, mac FROM owners WHERE uid = ?", []any{who}, &n, &mac)
	if errors.Is(err, sql.ErrNoRows) {
		return 0, who >= 0, nil
	}
	return n, t.guard.proves(mac, "owner", who, n), err
}

// setOwned stores a count. Without the data key it has no MAC, so that whoever has that counts anew.
func (t *tx) setOwned(who, n int64) error {
	if n == 0 && who >= 0 {
		_, err := t.exec("DELETE FROM owners WHERE uid = ?", who)
		return err
	}
	var mac []byte
	if t.guard != nil {
		mac = t.guard.mac("owner", who, n)
	}
	_, err := t.exec("INSERT OR REPLACE INTO owners(uid, keys, mac) VALUES (?, ?, ?)", who, n, blobArg(mac))
	return err
}

// owns notes that a user got a key (1), or has one less (-1). It is counted before the commit, once for all that share it.
func (t *tx) owns(uid uint32, more int64) {
	if t.counts == nil {
		t.counts = map[uint32]int64{}
	}
	t.counts[uid] += more
}

// countOwned stores what owns noted.
func (t *tx) countOwned() error {
	if len(t.counts) == 0 {
		return nil
	}
	all, ok, err := t.owned(allKeys)
	if err != nil {
		return err
	}
	users, alsoOK, err := t.owned(allUsers)
	if err != nil {
		return err
	}
	if t.guard != nil && !(ok && alsoOK) {
		return t.recount()
	}
	was := users
	for uid, more := range t.counts {
		own, ok, err := t.owned(int64(uid))
		if err != nil {
			return err
		}
		now := own + more
		if t.guard != nil && (!ok || now < 0) {
			return t.recount()
		}
		now = max(0, now)
		if err := t.setOwned(int64(uid), now); err != nil {
			return err
		}
		all += more
		switch {
		case own == 0 && now > 0:
			users++
		case own > 0 && now == 0:
			users--
		}
	}
	if err := t.setOwned(allKeys, max(0, all)); err != nil || users == was {
		return err
	}
	return t.setOwned(allUsers, max(0, users))
}

// recount counts all keys.
func (t *tx) recount() error {
	if _, err := t.exec("DELETE FROM owners"); err != nil {
		return err
	}
	var all, users int64
	err := t.each("SELECT uid, count(*) FROM keys GROUP BY uid", nil, func(values []driver.Value) error {
		var uid, n int64
		if err := errors.Join(scanInto(&uid, values[0]), scanInto(&n, values[1])); err != nil {
			return err
		}
		all, users = all+n, users+1
		return t.setOwned(uid, n)
	})
	if err != nil {
		return err
	}
	if err := t.setOwned(allKeys, all); err != nil {
		return err
	}
	return t.setOwned(allUsers, users)
}

// checkOwners counts anew where the counts do not belong together: somebody took a user's away, or a key was removed while the
// data key was not there.
func (t *tx) checkOwners() error {
	var all, users int64
	if err := t.row("SELECT coalesce(sum(keys), 0), count(*) FROM owners WHERE uid >= 0", nil, &all, &users); err != nil {
		return err
	}
	n, ok, err := t.owned(allKeys)
	if err != nil {
		return err
	}
	m, alsoOK, err := t.owned(allUsers)
	if err != nil {
		return err
	}
	if ok && alsoOK && n == all && m == users {
		return nil
	}
	return t.recount()
}

func (s *sqliteStore) Count(ctx context.Context) (int64, error) {
	return s.count(ctx, "cannot count the keys", allKeys)
}

func (s *sqliteStore) CountOf(ctx context.Context, uid uint32) (int64, error) {
	return s.count(ctx, "cannot count a user's keys", int64(uid))
}

func (s *sqliteStore) count(ctx context.Context, what string, who int64) (n int64, err error) {
	err = s.query(ctx, what, "SELECT keys FROM owners WHERE uid = ?", func(scan func(...any) error) error {
		return scan(&n)
	}, who)
	return n, err
}

// quotasWorth is how many users' quotas of keys there are over all. Beyond it whoever has an equal share or more makes no more:
// who has many uids, as each user has who may name 65 536 of them, does not have as many quotas.
const quotasWorth = 8

// errUncounted says that the counts are not as they were stored.
var errUncounted = errors.New("the counts of keys are damaged")

// quota refuses a draft of a user with as many keys as one may have, and, where there are too many over all, of one with an
// equal share or more. No key goes to make room.
func (t *tx) quota(d NewDraft) error {
	counted := func(who int64) (int64, error) {
		n, ok, err := t.owned(who)
		if err == nil && !ok {
			err = errUncounted
		}
		return n, err
	}
	own, err := counted(int64(d.UID))
	if err != nil {
		return err
	}
	all, err := counted(allKeys)
	if err != nil {
		return err
	}
	// Those that share the commit count too.
	own += t.countsBefore[d.UID]
	for _, more := range t.countsBefore {
		all += more
	}
	if own >= int64(d.Quota) {
		return psa.Errorf(psa.StatusQuota, "user %d has %d keys and drafts; allowed: up to %d", d.UID, own, d.Quota).
			WithHint("destroy some with rmdir, or raise core_settings.keys_per_user")
	}
	if all < quotasWorth*int64(d.Quota) {
		return nil
	}
	users, err := counted(allUsers)
	if err != nil || own*users < all {
		return err
	}
	return psa.Errorf(psa.StatusQuota,
		"all users together have too many keys and drafts, %d, and user %d has %d of them, which is not less than an equal share",
		all, d.UID, own).
		WithHint("destroy some with rmdir, or raise core_settings.keys_per_user")
}
