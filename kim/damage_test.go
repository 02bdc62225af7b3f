package kim_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"database/sql"
	"errors"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/parsecfs/parsecfs/kim"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// burgled is a store that somebody with its file, and without its data key, changes.
type burgled struct {
	t    *testing.T
	dir  string
	keys []kim.Key         // as they were
	path string            // of the file
	file []byte            // as it was
	sign map[string][]byte // what each may sign with, by its name: its public key
}

// newBurgled makes a store with three keys, of which "private" and "shared" have rights of their own, a link and labels.
// "private" is among a user's own names, whose directory others may search.
func newBurgled(t *testing.T) *burgled {
	t.Helper()
	b := &burgled{t: t, dir: filepath.Join(t.TempDir(), "state"), sign: map[string][]byte{}}
	b.path = filepath.Join(b.dir, "kim.sqlite3")
	k := b.open()
	p := k.Default()
	for _, name := range []string{"first", "private", "shared"} {
		key := generate(t, k, p, name, p256)
		b.keys = append(b.keys, key)
		b.sign[name] = key.Public
	}
	mode, uid, shared, searched := uint32(0o600), uint32(2001), uint32(0o660), uint32(0o711)
	private, other := b.keys[1], b.keys[2]
	must(t, k.SetInode(ctx, kim.Inode{Ino: uint64(private.Number) * 256, Mode: &mode, UID: &uid, GID: &uid}),
		k.SetInode(ctx, kim.Inode{Ino: uint64(private.Number)*256 + 16, Mode: &mode}),
		k.SetInode(ctx, kim.Inode{Ino: uint64(other.Number)*256 + 16, Mode: &shared, ACL: []byte("an access control list")}),
		k.SetInode(ctx, kim.Inode{Ino: uint64(p.Number())*256 + 8, Mode: &mode}),
		k.Rename(ctx, private.Number, kim.OwnSpace(uid), "private"),
		k.SetInode(ctx, kim.Inode{Ino: kim.UserInode(p.Number(), uid), Mode: &searched}),
		k.SetUnits(ctx, private.Number, []string{"web.service"}),
		k.SetAllowDestroy(ctx, private.Number, false),
		k.SetXattr(ctx, uint64(other.Number)*256, "user.label", []byte("value"), kim.XattrSet))
	_, err := k.SetCertificate(ctx, other.Number, []byte("a chain"))
	must(t, err)
	_, err = k.CreateAlias(ctx, kim.Alias{Name: "web", Target: "../providers/software/keys/first"})
	must(t, err, k.Close())
	for i, key := range b.keys {
		k := b.open()
		b.keys[i], err = k.Key(ctx, key.Number)
		must(t, err, k.Close())
	}
	// The list of what a device can do, which each start asks for anew, is most of a small store.
	b.exec("UPDATE providers SET capabilities = ''", "VACUUM")
	b.file, err = os.ReadFile(b.path)
	must(t, err)
	return b
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func (b *burgled) open() *kim.KIM {
	b.t.Helper()
	k, err := b.tryOpen()
	if err != nil {
		b.t.Fatal(err)
	}
	return k
}

func (b *burgled) tryOpen() (*kim.KIM, error) {
	return kim.Open(ctx, kim.Options{Dir: b.dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
}

// reset puts the file back.
func (b *burgled) reset() {
	b.t.Helper()
	for _, tail := range []string{"-wal", "-shm"} {
		if err := os.Remove(b.path + tail); err != nil && !errors.Is(err, os.ErrNotExist) {
			b.t.Fatal(err)
		}
	}
	must(b.t, os.WriteFile(b.path, b.file, 0o600))
}

// exec is the burglar's SQL.
func (b *burgled) exec(statements ...string) {
	b.t.Helper()
	db, err := sql.Open("sqlite3", b.path)
	must(b.t, err)
	defer db.Close()
	for _, s := range statements {
		if _, err := db.Exec(s); err != nil {
			b.t.Fatalf("%s: %v", s, err)
		}
	}
}

// judge holds what must hold of a store whose file was changed: each answer that is given is the one of before, and
// what is not given is an error, which says that the store is damaged. It counts the keys that are as they were.
func (b *burgled) judge(what string) (whole int) {
	t := b.t
	t.Helper()
	k, err := b.tryOpen()
	if err != nil {
		if s := psa.StatusOf(err); s != psa.StatusDataCorrupt && s != psa.StatusInvalidArgument && s != psa.StatusNotSupported && s != psa.StatusStorageFailure {
			t.Errorf("%s: the store does not open: %v (%v)", what, err, s)
		}
		return 0
	}
	defer func() {
		if err := k.Close(); err != nil {
			t.Logf("%s: closing: %v", what, err)
		}
	}()
	for _, was := range b.keys {
		if b.same(k, was, what) {
			whole++
		}
	}
	if a, err := k.Alias(ctx, "web"); err == nil && a.Target != "../providers/software/keys/first" {
		t.Errorf("%s: the link leads to %q", what, a.Target)
	}
	other := b.keys[2]
	if v, err := k.Xattr(ctx, uint64(other.Number)*256, "user.label"); err == nil && string(v) != "value" {
		t.Errorf("%s: the label says %q", what, v)
	}
	if p := k.Default(); p != nil {
		if i, _, err := k.Inode(ctx, uint64(p.Number())*256+8); err == nil && p.Number() == was(b.keys).Provider && (i.Mode == nil || *i.Mode != 0o600) {
			t.Errorf("%s: keys/ has the mode %v", what, i.Mode)
		}
		if i, _, err := k.Inode(ctx, kim.UserInode(p.Number(), 2001)); err == nil && p.Number() == was(b.keys).Provider && (i.Mode == nil || *i.Mode != 0o711) {
			t.Errorf("%s: a user's directory has the mode %v", what, i.Mode)
		}
		if _, err := p.List(ctx, kim.Shared, "", 100); err != nil && psa.StatusOf(err) != psa.StatusDataCorrupt && psa.StatusOf(err) != psa.StatusStorageFailure {
			t.Errorf("%s: listing: %v", what, err)
		}
	}
	return whole
}

func was(keys []kim.Key) kim.Key { return keys[0] }

// same says whether a key is as it was, with all its rights; what it says otherwise is an error.
func (b *burgled) same(k *kim.KIM, was kim.Key, what string) bool {
	t := b.t
	t.Helper()
	ok := true
	for file := range uint64(64) {
		if _, _, err := k.Inode(ctx, uint64(was.Number)*256+file); err != nil {
			ok = false
		}
	}
	now, err := k.Key(ctx, was.Number)
	switch {
	case err != nil:
		ok = false
	case now.Space != was.Space || now.Name != was.Name || now.State != was.State || now.UID != was.UID || now.GID != was.GID || now.Attributes != was.Attributes ||
		now.KeepForever != was.KeepForever || !slices.Equal(now.Units, was.Units) || !bytes.Equal(now.Public, was.Public) || now.CallerNonce != was.CallerNonce ||
		now.Provider != was.Provider || now.Handle != was.Handle:
		t.Errorf("%s: %s is %+v, was %+v", what, was.Name, now, was)
	}
	mode, uid := uint32(0o600), uint32(2001)
	for file, want := range map[uint64]kim.Inode{0: {Mode: &mode, UID: &uid}, 16: {Mode: &mode}} {
		if was.Name != "private" {
			break
		}
		i, _, err := k.Inode(ctx, uint64(was.Number)*256+file)
		if err != nil {
			ok = false
		} else if i.Mode == nil || *i.Mode != *want.Mode || (i.UID == nil) != (want.UID == nil) || i.UID != nil && *i.UID != *want.UID {
			t.Errorf("%s: file %d of private is %+v", what, file, i)
		}
	}
	if was.Name == "shared" {
		i, _, err := k.Inode(ctx, uint64(was.Number)*256+16)
		if err != nil {
			ok = false
		} else if i.Mode == nil || *i.Mode != 0o660 || string(i.ACL) != "an access control list" {
			t.Errorf("%s: sign of shared is %+v", what, i)
		}
		if chain, err := k.Certificate(ctx, was.Number); err != nil {
			ok = false
		} else if string(chain) != "a chain" {
			t.Errorf("%s: the certificate is %q", what, chain)
		}
	}
	if err := b.signs(k, was); err != nil {
		ok = false
		if !strings.Contains(err.Error(), "PSA_") && !strings.Contains(err.Error(), "PARSECFS_") {
			t.Errorf("%s: %s signs: %v", what, was.Name, err)
		}
	}
	return ok
}

// signs holds that a signature, where there is one, is by the key that was there.
func (b *burgled) signs(k *kim.KIM, was kim.Key) error {
	o, err := do(k, was.Number, psa.Op{Operation: psa.Sign, Algorithm: psa.ECDSA(psa.SHA256)}, []byte("message"))
	if err != nil {
		if _, ok := errors.AsType[*psa.Error](err); !ok {
			return fmt.Errorf("without a status: %w", err)
		}
		return err
	}
	der, err := psa.ECDSARawToDER(o["signature"])
	if err != nil {
		return err
	}
	public, err := x509.ParsePKIXPublicKey(b.sign[was.Name])
	if err != nil {
		return err
	}
	if sum := sha256.Sum256([]byte("message")); !ecdsa.VerifyASN1(public.(*ecdsa.PublicKey), sum[:], der) {
		return errors.New("by another key")
	}
	return nil
}

// TestEveryColumn changes each column of each row by hand: the row is damaged, and says so, and the other keys are as
// they were.
func TestEveryColumn(t *testing.T) {
	b := newBurgled(t)
	if whole := b.judge("unchanged"); whole != len(b.keys) {
		t.Fatalf("%d keys are as they were", whole)
	}
	db, err := sql.Open("sqlite3", b.path)
	must(t, err)
	columns := map[string][]string{}
	for _, table := range []string{"keys", "inodes", "xattrs", "aliases", "providers", "data_key", "anchor", "certificates", "users"} {
		rows, err := db.Query("SELECT name FROM pragma_table_info(?)", table)
		must(t, err)
		for rows.Next() {
			var name string
			must(t, rows.Scan(&name))
			columns[table] = append(columns[table], name)
		}
		must(t, rows.Err(), rows.Close())
	}
	must(t, db.Close())
	private := b.keys[1].Number
	where := map[string]string{
		"keys":         fmt.Sprint("number = ", private),
		"inodes":       fmt.Sprint("ino = ", private*256+16),
		"xattrs":       "1",
		"aliases":      "1",
		"providers":    "1",
		"data_key":     "1",
		"anchor":       "1",
		"certificates": "1",
		"users":        "1",
	}
	changed := 0
	for table, names := range columns {
		for _, name := range names {
			for how, value := range map[string]string{
				"one more":       "CASE typeof(X) WHEN 'integer' THEN X + 1 WHEN 'null' THEN 1 WHEN 'text' THEN X || 'x' ELSE CAST(substr(X, 2) || x'00' AS BLOB) END",
				"nothing":        "CASE typeof(X) WHEN 'integer' THEN 0 WHEN 'text' THEN '' WHEN 'blob' THEN x'' END",
				"an integer":     "438",
				"another's":      "(SELECT X FROM " + table + " ORDER BY rowid LIMIT 1)",
				"a slash":        "'a/b'",
				"32 bytes of it": "zeroblob(32)",
			} {
				if table == "xattrs" && how == "another's" {
					continue // it has one row, and no rowid
				}
				b.reset()
				db, err := sql.Open("sqlite3", b.path)
				must(t, err)
				r, err := db.Exec("UPDATE OR IGNORE " + table + " SET " + name + " = " + strings.ReplaceAll(value, "X", name) + " WHERE " + where[table])
				must(t, db.Close())
				if err != nil {
					continue // SQLite's own types and constraints
				}
				if n, err := r.RowsAffected(); err != nil || n == 0 {
					continue
				}
				changed++
				whole := b.judge(fmt.Sprintf("%s.%s is %s", table, name, how))
				if least := len(b.keys) - 1; (table == "keys" || table == "inodes" || table == "certificates") && whole < least {
					t.Errorf("%s.%s is %s: %d keys are as they were, of %d", table, name, how, whole, least)
				}
			}
		}
	}
	t.Logf("%d changes of a column", changed)
	if changed < 200 {
		t.Errorf("only %d changes of a column", changed)
	}
}

// TestRowsTakenAway: a row that is gone is missed, and one that is put there is noticed.
func TestRowsTakenAway(t *testing.T) {
	b := newBurgled(t)
	private, first := b.keys[1].Number, b.keys[0].Number
	// The keys themselves are as they were; judge asks for the rest.
	elsewhere := []string{"the mode of keys/", "the mode of a user's", "another user's directory"}
	for what, statement := range map[string]string{
		"the mode of sign":            fmt.Sprint("DELETE FROM inodes WHERE ino = ", private*256+16),
		"the owner of the directory":  fmt.Sprint("DELETE FROM inodes WHERE ino = ", private*256),
		"the mode of keys/":           "DELETE FROM inodes WHERE mode = 384 AND uid IS NULL",
		"the mode of a user's":        "DELETE FROM inodes WHERE mode = 457",
		"another user's directory":    fmt.Sprint("UPDATE inodes SET ino = ino + 1 WHERE ino = ", kim.UserInode(b.keys[0].Provider, 2001)),
		"another user's name":         fmt.Sprint("UPDATE keys SET space = space + 1 WHERE number = ", private),
		"a user's own name, shared":   fmt.Sprint("UPDATE keys SET space = 0 WHERE number = ", private),
		"a shared name, a user's":     fmt.Sprint("UPDATE keys SET space = 2002 WHERE number = ", first),
		"another key's mode":          fmt.Sprint("INSERT INTO inodes SELECT ", first*256+16, ", mode, uid, gid, acl, default_acl, atime, mtime, ctime, mac FROM inodes WHERE ino = ", private*256+16),
		"another key's directory":     fmt.Sprintf("UPDATE OR REPLACE inodes SET ino = ino - %d WHERE ino = %d", (private-first)*256, private*256),
		"two keys' rows exchanged":    fmt.Sprintf("UPDATE keys SET uid = 2003, gid = 2003 WHERE number = %d", private),
		"another key's secret":        fmt.Sprintf("UPDATE keys SET secret = (SELECT secret FROM keys WHERE number = %d) WHERE number = %d", first, private),
		"another key's public key":    fmt.Sprintf("UPDATE keys SET public = (SELECT public FROM keys WHERE number = %d) WHERE number = %d", first, private),
		"the chain":                   "DELETE FROM certificates",
		"the units and their mac":     fmt.Sprint("UPDATE keys SET units = '', mac = NULL WHERE number = ", private),
		"the link's target":           "UPDATE aliases SET target = '../providers/software/keys/private'",
		"the policy":                  fmt.Sprint("UPDATE keys SET usage = 4294967295 WHERE number = ", private),
		"the name, to one with slash": fmt.Sprint("UPDATE keys SET name = 'a/b' WHERE number = ", private),
	} {
		b.reset()
		b.exec(statement)
		if whole := b.judge(what); whole > len(b.keys)-1 && !slices.Contains(elsewhere, what) && what != "the link's target" && what != "another key's secret" {
			t.Errorf("%s: nobody noticed", what)
		} else if whole < len(b.keys)-2 {
			t.Errorf("%s: %d keys are as they were", what, whole)
		}
	}
	// One key's damage is told, and stops nothing else.
	b.reset()
	b.exec(fmt.Sprint("UPDATE keys SET name = 'a/b' WHERE number = ", private))
	k := b.open()
	defer k.Close()
	await(t, k, "the status tells of the damage", func() bool {
		return strings.Contains(k.Default().Status(context.Background()), "1 keys whose rows in the KIM are damaged")
	})
	listed := 0
	err := k.Default().All(ctx, func(kim.Key) error { listed++; return nil })
	if err != nil || listed != len(b.keys) {
		t.Errorf("%d keys are listed, %v", listed, err)
	}
}

// TestRowsTakenAwayTogether takes away what belongs together, in every combination: each time somebody is told, or all is as it
// was. What nobody is told of is listed with its reason.
func TestRowsTakenAwayTogether(t *testing.T) {
	t.Parallel()
	b := newBurgled(t)
	provider, private, other := b.keys[0].Provider, b.keys[1].Number, b.keys[2].Number
	k := b.open()
	top, gate := uint32(0o750), kim.UserInode(provider, 70_000)
	must(t, k.SetInode(ctx, kim.Inode{Ino: 1, Mode: &top}), k.SetInode(ctx, kim.Inode{Ino: gate, Mode: new(uint32(0o750))}))
	before, told := b.answers(k)
	if told != "" {
		t.Fatal(told)
	}
	must(t, k.Close())
	var err error
	b.file, err = os.ReadFile(b.path)
	must(t, err)
	user := int64(kim.UserInode(provider, 2001))
	things := map[string][]string{
		"a key": {fmt.Sprint("keys WHERE number = ", other), fmt.Sprint("numbers WHERE number = ", other),
			fmt.Sprintf("inodes WHERE ino BETWEEN %d AND %d", other*256, other*256+255), fmt.Sprint("xattrs WHERE ino = ", other*256),
			fmt.Sprint("certificates WHERE key = ", other)},
		"a user's key": {fmt.Sprint("keys WHERE number = ", private), fmt.Sprint("numbers WHERE number = ", private),
			fmt.Sprintf("inodes WHERE ino BETWEEN %d AND %d", private*256, private*256+255), fmt.Sprint("owners WHERE uid = ", b.keys[1].UID)},
		"a user's directory": {fmt.Sprint("inodes WHERE ino = ", user), fmt.Sprint("users WHERE number = ", user/256),
			"users WHERE number BETWEEN -(1 << 55) AND -(1 << 54)", "users WHERE number < -(1 << 55)"},
		"a link":     {"aliases", "numbers WHERE number IN (SELECT number FROM aliases)"},
		"a provider": {"providers", fmt.Sprint("numbers WHERE number = ", provider), "users", fmt.Sprintf("inodes WHERE ino / 256 = %d OR ino >= 1 << 61", provider), "keys"},
		"the top":    {"anchor", "inodes WHERE ino < 256"},
		"the secret": {"data_key", "anchor", "recovery_key"},
	}
	reasons := []struct {
		thing, without string
		reason         string
	}{
		{"a key", "keys", "the key is gone, with all that could be done with it; a file that was put back in part cannot be told from one where it was destroyed"},
		{"a user's key", "keys", "the same"},
		{"a key", "xattrs", "a label has no part in any right"},
		{"a link", "aliases", "a link has no part in any right, and nobody but root can make another one"},
		{"a provider", "providers keys", "without its keys it is a new one, and was made once more"},
	}
	tried, unknown := 0, 0
	for thing, rows := range things {
		for set := 1; set < 1<<len(rows); set++ {
			if n := bits.OnesCount(uint(set)); n > 2 && n < len(rows) && os.Getenv("PARSECFS_TEST_LONG") == "" {
				continue
			}
			b.reset()
			tables, statements := []string{}, []string{}
			for i := len(rows) - 1; i >= 0; i-- { // a link's number is looked for by its row
				if set>>i&1 == 1 {
					table, _, _ := strings.Cut(rows[i], " ")
					tables, statements = append(tables, table), append(statements, "DELETE FROM "+rows[i])
				}
			}
			b.exec(statements...)
			tried++
			k, err := b.tryOpen()
			if err != nil {
				if s := psa.StatusOf(err); s != psa.StatusDataCorrupt {
					t.Errorf("%s without %v: %v", thing, tables, err)
				}
				continue
			}
			after, told := b.answers(k)
			must(t, k.Close())
			if told != "" || after == before {
				continue
			}
			unknown++
			if !slices.ContainsFunc(reasons, func(r struct{ thing, without, reason string }) bool {
				return r.thing == thing && !slices.ContainsFunc(strings.Fields(r.without), func(table string) bool { return !slices.Contains(tables, table) })
			}) {
				t.Errorf("%s without %v: nobody is told.\nbefore:\n%s\nafter:\n%s", thing, tables, before, after)
			}
		}
	}
	t.Logf("%d combinations, of which nobody is told in %d", tried, unknown)
}

// answers is what the store says of all that newBurgled made, and what says that something is damaged, "" for nothing.
func (b *burgled) answers(k *kim.KIM) (all, told string) {
	b.t.Helper()
	var out strings.Builder
	note := func(what string, v any, err error) {
		if s := psa.StatusOf(err); err != nil && s != psa.StatusDoesNotExist {
			told += fmt.Sprintf("%s: %v\n", what, err)
		}
		fmt.Fprintf(&out, "%s: %v, %v\n", what, v, psa.StatusOf(err))
	}
	for _, w := range k.Warnings() {
		if !strings.Contains(w, "is on the same disk as the KIM") {
			told += w + "\n"
		}
	}
	p, provider := k.Default(), b.keys[0].Provider
	if err := k.Err(); p == nil || err != nil {
		return "", told + fmt.Sprint(err)
	}
	for _, space := range []kim.Space{kim.Shared, kim.OwnSpace(2001)} {
		list, err := p.List(ctx, space, "", 10)
		for _, key := range list {
			note(key.Path(), key.ID, key.Damage)
		}
		note(space.String(), len(list), err)
	}
	for _, key := range b.keys {
		now, err := k.Key(ctx, key.Number)
		note(key.Name, now.Public, err)
		chain, err := k.Certificate(ctx, key.Number)
		note("its certificate", chain, err)
		for _, file := range []uint64{0, 16} {
			note("its file", shown(k, uint64(key.Number)*256+file), inodeError(k, uint64(key.Number)*256+file))
		}
	}
	inos := []uint64{1, uint64(provider)*256 + 8, kim.UserInode(provider, 2001), kim.UserInode(provider, 2002), kim.UserInode(provider, 70_000),
		kim.UserInode(provider, 1<<24)}
	for _, ino := range inos {
		note(fmt.Sprint("inode ", ino), shown(k, ino), inodeError(k, ino))
	}
	label, err := k.Xattr(ctx, uint64(b.keys[2].Number)*256, "user.label")
	note("the label", label, err)
	link, err := k.Alias(ctx, "web")
	note("the link", link.Target, err)
	return out.String(), told
}

func shown(k *kim.KIM, ino uint64) string {
	i, found, _ := k.Inode(ctx, ino)
	mode, uid := "default", "default"
	if i.Mode != nil {
		mode = fmt.Sprintf("%o", *i.Mode)
	}
	if i.UID != nil {
		uid = fmt.Sprint(*i.UID)
	}
	return fmt.Sprint(found, " ", mode, " ", uid, " ", string(i.ACL))
}

func inodeError(k *kim.KIM, ino uint64) error {
	_, _, err := k.Inode(ctx, ino)
	return err
}

// A row of a user's directory that was taken away stays missed: nothing that changes its neighbours makes another one in its place.
func TestUsersRowTakenAway(t *testing.T) {
	t.Parallel()
	b := newBurgled(t)
	provider := b.keys[0].Provider
	user := kim.UserInode(provider, 2001)
	b.exec(fmt.Sprint("DELETE FROM users WHERE number = ", user/256), fmt.Sprint("DELETE FROM inodes WHERE ino = ", user))
	k := b.open()
	defer k.Close()
	for what, err := range map[string]error{
		"the directory":           inodeError(k, user),
		"its neighbour":           inodeError(k, user+1),
		"a change of it":          k.SetInode(ctx, kim.Inode{Ino: user, Mode: new(uint32(0o700))}),
		"a change of a neighbour": k.SetInode(ctx, kim.Inode{Ino: user + 1, Mode: new(uint32(0o711))}),
	} {
		wantStatus(t, err, psa.StatusDataCorrupt)
		if err != nil && !strings.Contains(err.Error(), "it was removed by another program") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// Those of others are as they were.
	for _, uid := range []uint32{1000, 2304, 70_000, 1 << 24} {
		if err := inodeError(k, kim.UserInode(provider, uid)); err != nil {
			t.Errorf("the directory of %d: %v", uid, err)
		}
		must(t, k.SetInode(ctx, kim.Inode{Ino: kim.UserInode(provider, uid), Mode: new(uint32(0o711))}))
	}
}

// A user's directory that is set to what it is by default anyway is one like the others.
func TestUsersRowOfNothing(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	k := open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	ino := kim.UserInode(k.Default().Number(), 2001)
	must(t, k.SetInode(ctx, kim.Inode{Ino: ino}), k.Close())
	k = open(t, kim.Options{Dir: dir, Providers: []kim.ProviderConfig{softwareConfig("software")}})
	must(t, inodeError(k, ino), k.SetInode(ctx, kim.Inode{Ino: ino, Mode: new(uint32(0o711))}), inodeError(k, ino))
	if got := shown(k, ino); got != "true 711 default " {
		t.Error(got)
	}
}

// TestRandomBits flips bits of the file where it is used: no answer is another one than before, and nothing panics.
func TestRandomBits(t *testing.T) {
	flips := 150
	if os.Getenv("PARSECFS_TEST_LONG") != "" {
		flips = 10_000
	}
	b := newBurgled(t)
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 1))
	var used []int
	for i, c := range b.file {
		if c != 0 {
			used = append(used, i)
		}
	}
	opened, whole := 0, 0
	for range flips {
		b.reset()
		at, bit := used[random.IntN(len(used))], random.IntN(8)
		changed := bytes.Clone(b.file)
		changed[at] ^= 1 << bit
		must(t, os.WriteFile(b.path, changed, 0o600))
		n := b.judge(fmt.Sprintf("seed %d, byte %d, bit %d", seed, at, bit))
		whole += n
		if n > 0 {
			opened++
		}
	}
	t.Logf("%d flips in %d used bytes: %d keys as they were, in %d stores that open", flips, len(used), whole, opened)
}

// TestDamagedAnchor: where nobody knows any more who might come in at the top, root does, and the keys are as they were.
func TestDamagedAnchor(t *testing.T) {
	b := newBurgled(t)
	for what, statement := range map[string]string{"changed": "UPDATE anchor SET generation = generation + 1", "gone": "DELETE FROM anchor"} {
		b.reset()
		b.exec(statement)
		if whole := b.judge(what); whole != len(b.keys) {
			t.Errorf("%s: %d keys are as they were", what, whole)
		}
		k := b.open()
		i, found, err := k.Inode(ctx, 1)
		if err != nil || !found || i.Mode == nil || *i.Mode != 0o700 || i.UID == nil || *i.UID != 0 {
			t.Errorf("%s: the top is %+v, %v", what, i, err)
		}
		if !slices.ContainsFunc(k.Warnings(), func(w string) bool { return strings.Contains(w, "the store itself") }) {
			t.Errorf("%s: nobody is told: %q", what, k.Warnings())
		}
		must(t, k.Close())
	}
}

// TestChangedBesideUs: what somebody else writes while the store is open gets no MAC of ours at the next change of the row.
func TestChangedBesideUs(t *testing.T) {
	b := newBurgled(t)
	k := b.open()
	key := b.keys[0]
	_, err := k.Key(ctx, key.Number) // it is in memory from now on
	must(t, err)
	b.exec(fmt.Sprintf("UPDATE keys SET usage = usage | %d WHERE number = %d", psa.UsageExport, key.Number))
	mode := uint32(0o640)
	must(t, k.SetInode(ctx, kim.Inode{Ino: uint64(key.Number)*256 + 17, Mode: &mode}), k.Close())
	k = b.open()
	defer k.Close()
	if got, err := k.Key(ctx, key.Number); psa.StatusOf(err) != psa.StatusDataCorrupt {
		t.Errorf("the key has usage %#x (%v), and had %#x", got.Attributes.Usage, err, key.Attributes.Usage)
	}
}

// TestForeignSchema: nothing in the file can have SQLite do what is not ours.
func TestForeignSchema(t *testing.T) {
	b := newBurgled(t)
	for what, statement := range map[string]string{
		"a trigger":     "CREATE TRIGGER t AFTER UPDATE ON inodes BEGIN UPDATE inodes SET mode = 438 WHERE ino = new.ino; END",
		"a view":        "CREATE VIEW v AS SELECT * FROM keys",
		"a table":       "CREATE TABLE more (x)",
		"an index":      "CREATE INDEX i ON keys(lower(name))",
		"a column":      "ALTER TABLE keys ADD COLUMN more TEXT DEFAULT 'x'",
		"no index":      "DROP INDEX keys_journal",
		"an older one":  "PRAGMA user_version = 5",
		"the first one": "PRAGMA user_version = 0",
	} {
		b.reset()
		b.exec(statement)
		k, err := b.tryOpen()
		if psa.StatusOf(err) != psa.StatusDataCorrupt {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			k.Close()
		}
	}
}

// TestLostDataKey: one that is gone never becomes a new one, nor does an emptied file become an empty tree.
func TestLostDataKey(t *testing.T) {
	b := newBurgled(t)
	key, err := os.ReadFile(filepath.Join(b.dir, "wrapping.key"))
	must(t, err)
	for what, statement := range map[string]string{
		"its row":         "DELETE FROM data_key",
		"its row's bytes": "UPDATE data_key SET wrapped = zeroblob(60)",
		"its id":          "UPDATE data_key SET wrapping_id = x'00'",
	} {
		b.reset()
		b.exec(statement)
		k := b.open()
		if err := b.signs(k, b.keys[0]); psa.StatusOf(err) != psa.StatusProviderAbsent {
			t.Errorf("without %s: %v", what, err)
		}
		if s := k.Default().Status(ctx); !strings.HasPrefix(s, "degraded: ") {
			t.Errorf("without %s: the status is %q", what, s)
		}
		must(t, k.Close())
	}
	for what, change := range map[string]func() error{
		"emptied": func() error { return os.Truncate(b.path, 0) },
		"removed": func() error { return os.Remove(b.path) },
	} {
		b.reset()
		must(t, change())
		if k, err := b.tryOpen(); psa.StatusOf(err) != psa.StatusDataCorrupt || psa.HintOf(err) == "" {
			t.Errorf("%s: %v", what, err)
			if err == nil {
				k.Close()
			}
		}
	}
	if now, err := os.ReadFile(filepath.Join(b.dir, "wrapping.key")); err != nil || !bytes.Equal(now, key) {
		t.Errorf("the wrapping key is another one: %v", err)
	}
	b.reset()
	if whole := b.judge("put back"); whole != len(b.keys) {
		t.Errorf("%d keys are as they were", whole)
	}
}

// TestNewDataKey: what was copied before does not open what comes after.
func TestNewDataKey(t *testing.T) {
	b := newBurgled(t)
	old, err := os.ReadFile(filepath.Join(b.dir, "wrapping.key"))
	must(t, err)
	k := b.open()
	must(t, k.Rewrap(ctx, kim.Rewrapping{Kind: kim.WrapFile, NewDataKey: true}))
	for _, key := range b.keys {
		if !b.same(k, key, "after a new data key") {
			t.Errorf("%s does not work", key.Name)
		}
	}
	key := generate(t, k, k.Default(), "new", p256)
	must(t, signs(k, key), k.Close())
	if whole := b.judge("after a new data key and a restart"); whole != len(b.keys) {
		t.Errorf("%d keys are as they were", whole)
	}
	// The burglar has the file of today and yesterday's wrapping, key and row.
	before := filepath.Join(t.TempDir(), "before.sqlite3")
	must(t, os.WriteFile(before, b.file, 0o600))
	b.exec("ATTACH '"+before+"' AS old", "DELETE FROM data_key", "INSERT INTO data_key SELECT * FROM old.data_key")
	must(t, os.WriteFile(filepath.Join(b.dir, "wrapping.key"), old, 0o600))
	k, err = b.tryOpen()
	if err != nil {
		return
	}
	defer k.Close()
	if err := signs(k, key); err == nil {
		t.Error("the wrapping of an old backup opens a key that was made after a new data key")
	}
}

// TestCountsAreProven: who changes what is stored of how many keys there are gains nothing: the next start counts them, or the
// next draft of the one whose count it is.
func TestCountsAreProven(t *testing.T) {
	b := newBurgled(t)
	k := b.open()
	before, _, err := k.Quota(ctx, 1000)
	must(t, err, k.Close())
	if before == 0 {
		t.Fatal("no key counts")
	}
	for what, statement := range map[string]string{
		"a lower count":    "UPDATE owners SET keys = 0 WHERE uid = 1000",
		"no count":         "DELETE FROM owners WHERE uid = 1000",
		"two changed":      "UPDATE owners SET keys = CASE uid WHEN 1000 THEN keys - 1 ELSE keys + 1 END WHERE uid IN (1000, -2)",
		"no sum":           "DELETE FROM owners WHERE uid < 0",
		"another's":        "INSERT INTO owners(uid, keys) VALUES (4000, 1)",
		"the MAC of other": "UPDATE owners SET mac = (SELECT mac FROM owners WHERE uid = -1), keys = 0 WHERE uid = 1000",
		"nothing left":     "DELETE FROM owners",
	} {
		b.reset()
		b.exec(statement)
		k := b.open()
		_, err := k.Default().CreateDraft(ctx, kim.Shared, "draft", 1000, 1000, 0o755)
		must(t, err)
		if n, _, err := k.Quota(ctx, 1000); n != before+1 || err != nil {
			t.Errorf("%s: %d keys of %d, %v", what, n, before+1, err)
		}
		must(t, k.Close())
	}
}
