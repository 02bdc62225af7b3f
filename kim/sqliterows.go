package kim

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// Conversions. SQLite hands out whatever a damaged row holds, so every value is looked at.

// fields reads the values of one row and remembers the first that is not what it should be.
type fields struct {
	values []any
	bad    string
}

func newFields(n int) (*fields, []any) {
	f := &fields{values: make([]any, n)}
	dest := make([]any, n)
	for i := range dest {
		dest[i] = &f.values[i]
	}
	return f, dest
}

func (f *fields) next() any {
	v := f.values[0]
	f.values = f.values[1:]
	return v
}

func (f *fields) fault(name string) {
	if f.bad == "" {
		f.bad = name
	}
}

func (f *fields) integer(name string, least, most int64) int64 {
	n, ok := f.next().(int64)
	if !ok || n < least || n > most {
		f.fault(name)
		return 0
	}
	return n
}

func (f *fields) uint32(name string) uint32 { return uint32(f.integer(name, 0, math.MaxUint32)) }

func (f *fields) bool(name string) bool { return f.integer(name, 0, 1) == 1 }

func (f *fields) time(name string) time.Time {
	return time.Unix(0, f.integer(name, math.MinInt64, math.MaxInt64))
}

func (f *fields) text(name string) string {
	switch v := f.next().(type) {
	case string:
		return v
	case []byte: // a name that somebody stored as a blob is still its name
		f.fault(name)
		return string(v)
	}
	f.fault(name)
	return ""
}

// blob is nil for NULL.
func (f *fields) blob(name string) []byte {
	switch v := f.next().(type) {
	case nil:
		return nil
	case []byte:
		return v
	}
	f.fault(name)
	return nil
}

func (f *fields) id(name string) (id [16]byte) {
	b := f.blob(name)
	if len(b) != len(id) {
		f.fault(name)
	}
	copy(id[:], b)
	return id
}

// uint32p and timep are nil for NULL.
func (f *fields) uint32p(name string) *uint32 {
	if f.values[0] == nil {
		f.next()
		return nil
	}
	n := f.uint32(name)
	return &n
}

func (f *fields) timep(name string) *time.Time {
	if f.values[0] == nil {
		f.next()
		return nil
	}
	t := f.time(name)
	return &t
}

// damage is the error of the row, nil if all its values were good.
func (f *fields) damage(row string) error {
	if f.bad == "" {
		return nil
	}
	return psa.Errorf(psa.StatusDataCorrupt, "the row of %s in the KIM is damaged: %s", row, f.bad).
		WithHint("restore the KIM from a backup; other rows are not affected")
}

// nullable values for statements.
func uint32Arg(p *uint32) any {
	if p == nil {
		return nil
	}
	return int64(*p)
}

func timeArg(p *time.Time) any {
	if p == nil {
		return nil
	}
	return p.UnixNano()
}

// blobArg stores an empty value as NULL.
func blobArg(b []byte) any {
	if len(b) == 0 {
		return nil
	}
	return b
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() (u [16]byte) {
	rand.Read(u[:])
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

func page(n int) int { return max(0, min(n, MaxPage)) }

// Providers.

const providerColumns = "number, uuid, name, type, is_default, identity, capabilities, created, files, mac, users"

// scanProvider reads a row of providerColumns. One that is damaged is no error of scanProvider: it is in Damage.
func (r *RowKey) scanProvider(scan func(...any) error) (ProviderRow, error) {
	f, dest := newFields(providersTable.n)
	if err := scan(dest...); err != nil {
		return ProviderRow{}, err
	}
	proven := r.proves(f.values[9], "provider", provenOf(providersTable, f.values)...)
	p := ProviderRow{
		Number:       f.integer("number", 1, math.MaxInt64),
		UUID:         f.id("uuid"),
		Name:         f.text("name"),
		Type:         f.text("type"),
		Default:      f.bool("is_default"),
		Identity:     f.text("identity"),
		Capabilities: f.text("capabilities"),
		Created:      f.time("created"),
	}
	p.files = f.files("files")
	f.skip(1)
	p.users = f.files("users")
	if !proven {
		f.fault(wrongMAC)
	}
	if p.Damage = f.damage(fmt.Sprintf("provider %q", p.Name)); p.Damage != nil {
		p = ProviderRow{Number: p.Number, Name: p.Name, Damage: p.Damage}
	}
	return p, nil
}

func (s *sqliteStore) Providers(ctx context.Context) ([]ProviderRow, error) {
	var all []ProviderRow
	err := s.query(ctx, "cannot list the providers", "SELECT "+providerColumns+" FROM providers ORDER BY name", func(scan func(...any) error) error {
		p, err := s.guard.Load().scanProvider(scan)
		if err == nil {
			all = append(all, p)
		}
		return err
	})
	return all, err
}

func (s *sqliteStore) EnsureProvider(ctx context.Context, name, typ string) (p ProviderRow, err error) {
	err = s.write(ctx, "cannot store provider "+name, func(t *tx) error {
		p, err = t.guard.scanProvider(func(dest ...any) error {
			return t.row("SELECT "+providerColumns+" FROM providers WHERE name = ?", []any{name}, dest...)
		})
		if err == nil && p.Damage != nil {
			return nil
		}
		if err == nil && p.Type != typ {
			return psa.Errorf(psa.StatusInvalidArgument, "provider %s has type %s in the KIM, not %s", name, p.Type, typ).
				WithHint("choose another name for the new provider; the old one's keys are kept")
		}
		if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		p = ProviderRow{UUID: newUUID(), Name: name, Type: typ, Created: time.Now()}
		if p.Number, err = t.number(); err != nil {
			return err
		}
		t.changed(Change{Provider: p.Number, Kind: ProviderChanged})
		_, err = t.exec("INSERT INTO providers(number, uuid, name, type, created) VALUES (?, ?, ?, ?, ?)",
			p.Number, p.UUID[:], name, typ, p.Created.UnixNano())
		if err != nil || t.guard == nil {
			return err // Guard proves it
		}
		return t.proveProvider(p.Number)
	})
	if err != nil {
		return ProviderRow{}, err
	}
	return p, nil
}

func (s *sqliteStore) SetProviderSeen(ctx context.Context, number int64, identity, capabilities string) error {
	return s.write(ctx, "cannot store the provider's identity and capabilities", func(t *tx) error {
		if err := t.touch(number); err != nil {
			return err
		}
		return t.one(fmt.Sprintf("provider %d", number), Change{Provider: number, Kind: ProviderChanged},
			"UPDATE providers SET identity = ?, capabilities = ? WHERE number = ?", identity, capabilities, number)
	})
}

func (s *sqliteStore) RenameProvider(ctx context.Context, from, to string) error {
	return s.writeAlone(ctx, "cannot rename provider "+from, nil, func(t *tx) error {
		var number, other int64
		var first, isDefault, keys, wraps bool
		err := t.row("SELECT number, is_default FROM providers WHERE name = ?", []any{from}, &number, &first)
		if errors.Is(err, sql.ErrNoRows) {
			return psa.Errorf(psa.StatusDoesNotExist, "there is no provider %s", from)
		}
		if err != nil || from == to {
			return err
		}
		err = t.row("SELECT number, is_default, EXISTS (SELECT 1 FROM keys WHERE provider = providers.number), EXISTS (SELECT 1 FROM data_key WHERE kind = ?) FROM providers WHERE name = ?",
			[]any{WrapProvider + to, to}, &other, &isDefault, &keys, &wraps)
		switch {
		case err == nil && keys:
			return psa.Errorf(psa.StatusAlreadyExists, "there is already a provider %s, with keys of its own", to).
				WithHint("choose another name")
		case err == nil && wraps:
			return psa.Errorf(psa.StatusAlreadyExists, "there is already a provider %s, and it wraps the data key", to).
				WithHint("choose another name, or run parsecfs state rewrap first")
		case err == nil: // the start after its name changed in the configuration made it
			if err := t.removeUsers(other); err != nil {
				return err
			}
			if _, err := t.exec("DELETE FROM providers WHERE number = ?", other); err != nil {
				return err
			}
			if err := t.removeNumber(other); err != nil {
				return err
			}
		case !errors.Is(err, sql.ErrNoRows):
			return err
		}
		err = t.one("provider "+from, Change{Provider: number, Kind: ProviderChanged},
			"UPDATE providers SET name = ?, is_default = ? WHERE number = ?", to, first || isDefault, number)
		if err != nil {
			return err
		}
		if _, err := t.exec("UPDATE data_key SET kind = ? WHERE kind = ?", WrapProvider+to, WrapProvider+from); err != nil {
			return err
		}
		old, now := "../providers/"+from+"/", "../providers/"+to+"/"
		_, err = t.exec("UPDATE aliases SET target = ?1 || substr(target, length(?2) + 1) WHERE substr(target, 1, length(?2)) = ?2", now, old)
		return err
	})
}

func (s *sqliteStore) SetDefaultProvider(ctx context.Context, number int64) error {
	return s.write(ctx, "cannot store the default provider", func(t *tx) error {
		if _, err := t.exec("UPDATE providers SET is_default = 0 WHERE is_default <> 0"); err != nil {
			return err
		}
		return t.one(fmt.Sprintf("provider %d", number), Change{Provider: number, Kind: ProviderChanged},
			"UPDATE providers SET is_default = 1 WHERE number = ?", number)
	})
}

// one runs a statement that must touch a row; what names that row.
func (t *tx) one(what string, c Change, query string, args ...any) error {
	r, err := t.exec(query, args...)
	if err != nil {
		return err
	}
	if n, err := r.RowsAffected(); err != nil || n > 0 {
		t.changed(c)
		return err
	}
	return psa.Errorf(psa.StatusDoesNotExist, "there is no %s", what)
}

// Keys.

// scanKey reads a row of keyColumns. One that is damaged is no error of scanKey: it is in Key.Damage.
func (r *RowKey) scanKey(scan func(...any) error) (Entry, error) {
	f, dest := newFields(keysTable.n)
	if err := scan(dest...); err != nil {
		return Entry{}, err
	}
	return r.readKey(f.values), nil
}

// readKey is scanKey of a row that is read already.
func (r *RowKey) readKey(values []any) Entry {
	f := &fields{values: values}
	k := Key{values: values}
	proven := r.proves(values[len(values)-1], "key", provenOf(keysTable, values)...)
	k.Number = f.integer("number", 1, math.MaxInt64)
	k.ID = f.id("uuid")
	k.Provider = f.integer("provider", 1, math.MaxInt64)
	k.Name = f.text("name")
	k.State = State(f.text("state"))
	k.Hidden = f.bool("hidden")
	handle := f.blob("handle")
	k.Attributes.Type = psa.KeyType(f.integer("type", 0, math.MaxUint16))
	k.Attributes.Bits = int(f.integer("bits", 0, math.MaxInt32))
	k.Attributes.Algorithm = psa.Algorithm(f.uint32("algorithm"))
	k.Attributes.Usage = psa.Usage(f.uint32("usage"))
	k.Template = f.text("template")
	k.Origin = f.text("origin")
	k.UID, k.GID = f.uint32("uid"), f.uint32("gid")
	k.Created, k.Changed = f.time("created"), f.time("changed")
	k.Public = f.blob("public")
	k.Sealed = f.bool("secret")
	k.KeepForever = !f.bool("allow_destroy")
	before := State(f.text("before_state"))
	k.Units = strings.Fields(f.text("units"))
	k.Attributes.PCRs = psa.PCRs(f.uint32("pcrs"))
	k.Object = f.text("object")
	asked := f.bool("caller_nonce") // of a draft before it became a copy, perhaps
	k.NonceBound = f.bool("nonce_bound")
	k.CallerNonce = asked && !k.NonceBound
	k.Nonces = f.integer("nonces", 0, MaxNonces)
	k.Failures = f.integer("failures", 0, MaxFailures)
	k.Copied = f.bool("copied")
	f.skip(8) // what it goes back to, its device and its provider's uuid are proven, and read elsewhere
	k.certificate = f.blob("certificate")
	k.files = f.files("files")
	k.Space = Space(f.integer("space", int64(Shared), int64(OwnSpace(math.MaxUint32-1))))
	if !proven {
		f.fault(wrongMAC)
	}

	at := k.State // what the row must have the fields of
	switch k.State {
	case Draft, Ready:
	case Creating:
		at = Ready
		if before != Draft {
			f.fault("before_state")
		}
	case Destroying:
		at = before
		if before != Draft && before != Ready {
			f.fault("before_state")
		}
	default:
		f.fault("state")
	}
	if at == Ready {
		if k.Attributes.Type == psa.KeyTypeNone {
			f.fault("type")
		}
		if k.Origin == "" || (k.Origin == Adopted) != (k.Object != "") {
			f.fault("origin")
		}
	}
	if (handle == nil) != (at == Draft) || handle != nil && len(handle) != len(k.Handle) {
		f.fault("handle")
	}
	copy(k.Handle[:], handle)
	if err := f.damage(fmt.Sprintf("key %q", k.Name)); err != nil {
		return Entry{Key: Key{Number: k.Number, Provider: k.Provider, Space: k.Space, Name: k.Name, Damage: err}}
	}
	return Entry{k, before}
}

func (s *sqliteStore) Keys(ctx context.Context, provider int64, space Space, after string, n int) ([]Key, error) {
	var keys []Key
	err := s.query(ctx, "cannot list the keys", "SELECT "+keyColumns+` FROM keys
		WHERE provider = ? AND space = ? AND name > ? AND hidden = 0 ORDER BY name LIMIT ?`, func(scan func(...any) error) error {
		e, err := s.guard.Load().scanKey(scan)
		if err == nil {
			keys = append(keys, e.Key)
		}
		return err
	}, provider, int64(space), after, page(n))
	return keys, err
}

func (s *sqliteStore) Names(ctx context.Context, provider int64, space Space, after string, n int) ([]Name, error) {
	var names []Name
	// The index alone has all names; hidden ones are in the journal, which is short.
	err := s.query(ctx, "cannot list the keys' names", `SELECT number, name FROM keys WHERE provider = ?1 AND space = ?2 AND name > ?3
		AND number NOT IN (SELECT number FROM keys WHERE provider = ?1 AND state IN ('creating', 'destroying') AND hidden <> 0)
		ORDER BY name LIMIT ?4`, func(scan func(...any) error) error {
		var name Name
		err := scan(&name.Number, &name.Name)
		names = append(names, name)
		return err
	}, provider, int64(space), after, page(n))
	return names, err
}

func (s *sqliteStore) Spaces(ctx context.Context, provider int64, after Space, n int) ([]Space, error) {
	var spaces []Space
	// Each step is one look into keys_name, however many keys a space has.
	err := s.query(ctx, "cannot list who has keys", `WITH RECURSIVE spaces(space) AS (
		SELECT min(space) FROM keys WHERE provider = ?1 AND space > ?2
		UNION ALL SELECT (SELECT min(space) FROM keys WHERE provider = ?1 AND space > spaces.space) FROM spaces WHERE space IS NOT NULL)
		SELECT space FROM spaces WHERE space IS NOT NULL LIMIT ?3`, func(scan func(...any) error) error {
		var space int64
		err := scan(&space)
		spaces = append(spaces, Space(space))
		return err
	}, provider, int64(after), page(n))
	return spaces, err
}

func (s *sqliteStore) Journal(ctx context.Context, provider, after int64, n int) ([]Entry, error) {
	var entries []Entry
	err := s.query(ctx, "cannot read the journal", "SELECT "+keyColumns+` FROM keys
		WHERE provider = ? AND number > ? AND state IN ('creating', 'destroying') ORDER BY number LIMIT ?`, func(scan func(...any) error) error {
		e, err := s.guard.Load().scanKey(scan)
		if err == nil {
			entries = append(entries, e)
		}
		return err
	}, provider, after, page(n))
	return entries, err
}

// oneKey reads a single key by a condition on the table.
func (s *sqliteStore) oneKey(ctx context.Context, what, where string, args ...any) (k Key, err error) {
	err = s.settled(ctx, func() (err error) {
		k, err = s.readKey(ctx, what, where, args...)
		return err
	})
	return k, err
}

// settled is read. A row, the key that proves it, and the list of those that are there are read one after the other: a change in
// between looks like damage. So what looks damaged is read again while nobody writes.
func (s *sqliteStore) settled(ctx context.Context, read func() error) error {
	err := read()
	if psa.StatusOf(err) != psa.StatusDataCorrupt {
		return err
	}
	return s.enterAndSubmit(ctx, &writing{alone: read})
}

func (s *sqliteStore) readKey(ctx context.Context, what, where string, args ...any) (Key, error) {
	var k Key
	found := false
	err := s.query(ctx, "cannot read "+what, "SELECT "+keyColumns+" FROM keys WHERE "+where, func(scan func(...any) error) error {
		e, err := s.guard.Load().scanKey(scan)
		k, found = e.Key, true
		return err
	}, args...)
	switch {
	case err != nil:
		return Key{}, err
	case !found:
		return Key{}, psa.Errorf(psa.StatusDoesNotExist, "there is no %s", what)
	}
	return k, k.Damage
}

func (s *sqliteStore) KeyByName(ctx context.Context, provider int64, space Space, name string) (Key, error) {
	return s.oneKey(ctx, "key "+Key{Space: space, Name: name}.Path(), "provider = ? AND space = ? AND name = ?", provider, int64(space), name)
}

func (s *sqliteStore) KeyByNumber(ctx context.Context, number int64) (Key, error) {
	if err := s.join(ctx); err != nil {
		return Key{}, err
	}
	k, changes, ok := s.cache.get(number)
	s.open.RUnlock()
	if ok {
		return k, nil
	}
	k, err := s.oneKey(ctx, fmt.Sprintf("key number %d", number), "number = ?", number)
	if err == nil {
		s.cache.put(k, changes)
	}
	return k, err
}

func (s *sqliteStore) Secret(ctx context.Context, number int64) (secret []byte, err error) {
	found := false
	err = s.query(ctx, "cannot read a sealed secret", "SELECT secret FROM keys WHERE number = ?", func(scan func(...any) error) error {
		found = true
		f, dest := newFields(1)
		if err := scan(dest...); err != nil {
			return err
		}
		secret = f.blob("secret")
		return f.damage(fmt.Sprintf("key number %d", number))
	}, number)
	if err == nil && !found {
		err = psa.Errorf(psa.StatusDoesNotExist, "there is no key number %d", number)
	}
	return secret, err
}

// key reads a key inside a transaction; a damaged one is an error.
func (t *tx) key(number int64) (Entry, error) {
	if err := t.proveRow(number); err != nil { // of what this transaction changed already
		return Entry{}, err
	}
	f, dest := newFields(keysTable.n)
	err := t.row("SELECT "+keyColumns+" FROM keys WHERE number = ?", []any{number}, dest...)
	if errors.Is(err, sql.ErrNoRows) {
		return Entry{}, psa.Errorf(psa.StatusDoesNotExist, "there is no key number %d", number)
	}
	if err != nil {
		return Entry{}, err
	}
	e := t.guard.readKey(f.values)
	if e.Key.Damage == nil {
		t.rows[number] = &provenRow{table: keysTable, files: e.Key.files, values: e.Key.values}
	}
	return e, e.Key.Damage
}

// keyIn reads a key that must be in one of the states, and not hidden.
func (t *tx) keyIn(number int64, states ...State) (Key, error) {
	e, err := t.key(number)
	if err != nil {
		return e.Key, err
	}
	if e.Key.Hidden {
		return e.Key, hiddenError(e.Key.Name)
	}
	return e.Key, stateError(e.Key, states)
}

func stateError(k Key, states []State) error {
	for _, s := range states {
		if k.State == s {
			return nil
		}
	}
	return psa.Errorf(psa.StatusBadState, "key %s is %s", k.Name, k.State)
}

func hiddenError(name string) error {
	return psa.Errorf(psa.StatusBadState, "the last operation on key %s is not finished: its provider has not reported the outcome", name)
}

func (k Key) change() Change { return Change{Provider: k.Provider, Key: k.Number, Kind: KeyChanged} }

// free checks that a name is not taken.
func (t *tx) free(provider int64, space Space, name string) error {
	var hidden bool
	err := t.row("SELECT hidden <> 0 FROM keys WHERE provider = ? AND space = ? AND name = ?", []any{provider, int64(space), name}, &hidden)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		return nil
	case err != nil:
		return err
	case hidden:
		return hiddenError(name)
	}
	return psa.Errorf(psa.StatusAlreadyExists, "there is already a key %s", name)
}

func (s *sqliteStore) InsertDraft(ctx context.Context, d NewDraft) (k Key, err error) {
	if err := CheckOwner(d.UID, d.GID); err != nil {
		return Key{}, err
	}
	err = s.insertDraft(ctx, d, &k)
	if errors.Is(err, errUncounted) {
		if err = s.writeAlone(ctx, "cannot count the keys", nil, (*tx).recount); err == nil {
			err = s.insertDraft(ctx, d, &k)
		}
	}
	if err != nil {
		return Key{}, err
	}
	return k, nil
}

func (s *sqliteStore) insertDraft(ctx context.Context, d NewDraft, made *Key) error {
	return s.write(ctx, "cannot make key "+d.Name, func(t *tx) error {
		var provider []byte
		err := t.row("SELECT uuid FROM providers WHERE number = ?", []any{d.Provider}, &provider)
		if errors.Is(err, sql.ErrNoRows) {
			return psa.Errorf(psa.StatusDoesNotExist, "there is no provider %d", d.Provider)
		} else if err != nil {
			return err
		}
		if err := t.free(d.Provider, d.Space, d.Name); err != nil {
			return err
		}
		if d.Quota > 0 {
			if err := t.quota(d); err != nil {
				return err
			}
		}
		now := time.Unix(0, time.Now().UnixNano())
		k := Key{ID: newUUID(), Provider: d.Provider, Space: d.Space, Name: d.Name, State: Draft, UID: d.UID, GID: d.GID, Created: now,
			Changed: now}
		if k.Number, err = t.number(); err != nil {
			return err
		}
		row := t.new(keysTable, k.Number)
		for _, i := range d.Inodes {
			if i.Ino > 255 {
				return psa.Errorf(psa.StatusInvalidArgument, "file number %d", i.Ino)
			}
			i.Ino += uint64(k.Number) * 256
			if err := t.setInode(i); err != nil {
				return err
			}
		}
		k.files = row.files
		if err := t.insertKey(k, provider); err != nil {
			return err
		}
		t.changed(k.change())
		*made = k
		return nil
	})
}

func (s *sqliteStore) UpdateDraft(ctx context.Context, number int64, template string, a psa.Attributes) error {
	return s.write(ctx, "cannot store attributes", func(t *tx) error {
		k, err := t.keyIn(number, Draft)
		if err != nil {
			return err
		}
		return t.update(k, attributesSet(template, a)...)
	})
}

func (s *sqliteStore) RemoveDraft(ctx context.Context, number int64, asked *Standing) error {
	return s.remove(ctx, "cannot remove a draft", func(t *tx) error {
		k, err := t.keyIn(number, Draft)
		if err != nil {
			return err
		}
		if err := t.stands(k, asked); err != nil {
			return err
		}
		return t.removeDraft(k)
	})
}

// stands says whether a key still stands as somebody was told.
func (t *tx) stands(k Key, asked *Standing) error {
	if asked == nil {
		return nil
	}
	owner, _, err := t.directoryOwner(k)
	if err != nil {
		return err
	}
	if now := (Standing{k.Space, k.Name, owner}); now != *asked {
		return ErrMoved
	}
	return nil
}

func (t *tx) removeDraft(k Key) error {
	if k.KeepForever {
		return keepError(k)
	}
	return t.remove(k)
}

func (s *sqliteStore) Drafts(ctx context.Context, since time.Time, after int64, n int) ([]Key, error) {
	var drafts []Key
	err := s.query(ctx, "cannot list the drafts", "SELECT "+keyColumns+` FROM keys
		WHERE number > ? AND state = 'draft' AND hidden = 0 AND changed <= ? ORDER BY number LIMIT ?`, func(scan func(...any) error) error {
		e, err := s.guard.Load().scanKey(scan)
		if err == nil {
			drafts = append(drafts, e.Key)
		}
		return err
	}, after, since.UnixNano(), page(n))
	return drafts, err
}

func (s *sqliteStore) ExpireDraft(ctx context.Context, number int64, since time.Time) error {
	return s.remove(ctx, "cannot remove a draft", func(t *tx) error {
		k, err := t.keyIn(number, Draft)
		if err != nil {
			return err
		}
		files, err := t.inodes(k)
		if err != nil {
			return err
		}
		changed := k.Changed
		for _, i := range files {
			changed = i.changedAfter(changed)
		}
		if changed.After(since) {
			return psa.Errorf(psa.StatusBadState, "draft %s was changed", k.Name)
		}
		return t.removeDraft(k)
	})
}

func keepError(k Key) error {
	return psa.Errorf(psa.StatusNotPermitted, "key %s has allow_destroy = false", k.Name).
		WithHint("ask its owner to set allow_destroy = true in its attributes")
}

// remove deletes a key with all that hangs on its number.
func (t *tx) remove(k Key) error {
	var uid uint32
	err := t.row("DELETE FROM keys WHERE number = ? RETURNING uid", []any{k.Number}, &uid)
	if errors.Is(err, sql.ErrNoRows) {
		return noSuch(k.Space, k.Name)
	}
	if err != nil {
		return err
	}
	t.changed(k.change())
	t.owns(uid, -1)
	return t.removeNumber(k.Number)
}

func (t *tx) removeNumber(number int64) error {
	delete(t.rows, number)
	t.touched = append(t.touched, number)
	if err := t.removeInodes(number*256, number*256+255); err != nil {
		return err
	}
	_, err := t.exec("DELETE FROM numbers WHERE number = ?", number)
	return err
}

func (t *tx) removeInodes(first, last int64) error {
	for _, query := range []string{"DELETE FROM inodes WHERE ino BETWEEN ? AND ?", "DELETE FROM xattrs WHERE ino BETWEEN ? AND ?"} {
		if _, err := t.exec(query, first, last); err != nil {
			return err
		}
	}
	return nil
}

// removeUsers deletes what is stored of the directories of a provider's users.
func (t *tx) removeUsers(provider int64) error {
	if provider > MaxUsersProvider {
		return nil
	}
	first, last := int64(UserInode(provider, 0)), int64(UserInode(provider, math.MaxUint32))
	if err := t.removeInodes(first, last); err != nil {
		return err
	}
	t.all = true
	for level, first, last := 0, first/256-usersNumber, last/256-usersNumber; level < usersTop; level, first, last = level+1, first>>8, last>>8 {
		a, b := usersAt(level, first), usersAt(level, last)
		if _, err := t.exec("DELETE FROM users WHERE number BETWEEN ? AND ?", min(a, b), max(a, b)); err != nil {
			return err
		}
	}
	return nil
}

func (s *sqliteStore) BeginCreate(ctx context.Context, number int64, h providers.Handle, template string, a psa.Attributes, origin string) (Key, error) {
	var e Entry
	err := s.write(ctx, "cannot begin to make a key", func(t *tx) error {
		k, err := t.keyIn(number, Draft)
		if err != nil {
			return err
		}
		if a.Type == psa.KeyTypeNone || origin == "" {
			return psa.Errorf(psa.StatusInvalidArgument, "a key needs a type and an origin")
		}
		var n int
		if err := t.row("SELECT 1 FROM keys WHERE provider = ? AND handle = ?", []any{k.Provider, h[:]}, &n); err == nil {
			return psa.Errorf(psa.StatusAlreadyExists, "another key has the handle %x", h)
		} else if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		sets := append(attributesSet(template, a), set{"state", Creating}, set{"handle", h[:]}, set{"origin", origin})
		for _, column := range []string{"state", "template", "type", "bits", "algorithm", "usage", "pcrs"} {
			sets = append(sets, set{"before_" + column, from{column: column}})
		}
		e, err = t.updated(k, sets...)
		return err
	})
	return e.Key, err
}

// journalled reads a key that must be in this state, hidden or not.
func (t *tx) journalled(number int64, state ...State) (Key, error) {
	e, err := t.key(number)
	if err == nil {
		err = stateError(e.Key, state)
	}
	return e.Key, err
}

// noBefore is what follows what the journal had.
var noBefore = []set{{"before_state", nil}, {"before_template", nil}, {"before_type", nil}, {"before_bits", nil},
	{"before_algorithm", nil}, {"before_usage", nil}, {"before_pcrs", nil}, {"hidden", 0}}

// attributesSet stores attributes, and what they were made of.
func attributesSet(template string, a psa.Attributes) []set {
	return []set{{"template", template}, {"type", int64(a.Type)}, {"bits", a.Bits}, {"algorithm", int64(a.Algorithm)},
		{"usage", int64(a.Usage)}, {"pcrs", int64(a.PCRs)}}
}

func (s *sqliteStore) FinishCreate(ctx context.Context, number int64, public, sealed []byte) error {
	return s.owe(ctx, "cannot store a new key", func(t *tx) error {
		k, err := t.journalled(number, Creating)
		if err != nil {
			return err
		}
		if k, err = t.toDirectoryOwner(k); err != nil {
			return err
		}
		return t.update(k, append([]set{{"state", Ready}, {"public", blobArg(public)}, {"secret", blobArg(sealed)}}, noBefore...)...)
	})
}

func (s *sqliteStore) AbortCreate(ctx context.Context, number int64) error {
	return s.owe(ctx, "cannot undo the making of a key", func(t *tx) error {
		k, err := t.journalled(number, Creating)
		if err != nil {
			return err
		}
		sets := []set{{"state", Draft}, {"handle", nil}, {"origin", ""}, {"template", from{column: "before_template"}},
			{"pcrs", from{"before_pcrs", int64(0)}}, {"nonce_bound", 0}, {"nonces", 0}, {"failures", 0}, {"copied", 0}}
		for _, column := range []string{"type", "bits", "algorithm", "usage"} {
			sets = append(sets, set{column, from{column: "before_" + column}})
		}
		return t.update(k, append(sets, noBefore...)...)
	})
}

// holder finds the row that has an object; none is sql.ErrNoRows.
const holder = " FROM keys WHERE device = ? AND object = ? AND object <> '' OR handle = ? AND provider IN (SELECT number FROM providers)"

func (s *sqliteStore) Adopt(ctx context.Context, number int64, a Adoption) error {
	return s.write(ctx, "cannot adopt a key", func(t *tx) error {
		k, err := t.keyIn(number, Draft)
		if err != nil {
			return err
		}
		if a.Attributes.Type == psa.KeyTypeNone || a.Device == "" || a.Object == "" {
			return psa.Errorf(psa.StatusInvalidArgument, "an adopted key needs a type, a device and an object")
		}
		var has Key
		if err := t.row("SELECT space, name"+holder, []any{a.Device, a.Object, a.Made[:]}, &has.Space, &has.Name); err == nil {
			return psa.Errorf(psa.StatusAlreadyExists, "%s is already the key %s", a.Object, has.Listed())
		} else if !errors.Is(err, sql.ErrNoRows) {
			return err
		}
		if k, err = t.toDirectoryOwner(k); err != nil {
			return err
		}
		return t.update(k, append(attributesSet(a.Template, a.Attributes), set{"state", Ready}, set{"origin", Adopted}, set{"handle", a.Handle[:]},
			set{"device", a.Device}, set{"object", a.Object}, set{"public", blobArg(a.Public)}, set{"secret", blobArg(a.Sealed)},
			set{"allow_destroy", 0})...)
	})
}

func (s *sqliteStore) Holder(ctx context.Context, device, object string, made providers.Handle) (k Key, err error) {
	found := false
	err = s.query(ctx, "cannot look for "+object, "SELECT "+keyColumns+holder, func(scan func(...any) error) error {
		e, err := s.guard.Load().scanKey(scan)
		k, found = e.Key, true
		return err
	}, device, object, made[:])
	if err == nil && !found {
		err = psa.Errorf(psa.StatusDoesNotExist, "no key has %s", object)
	}
	return k, err
}

func (s *sqliteStore) Forget(ctx context.Context, number int64) error {
	return s.remove(ctx, "cannot forget a key", func(t *tx) error {
		e, err := t.key(number)
		if err != nil {
			return err
		}
		return t.remove(e.Key)
	})
}

func (s *sqliteStore) BeginDestroy(ctx context.Context, number int64, asked *Standing) (Key, error) {
	var e Entry
	err := s.remove(ctx, "cannot begin to destroy a key", func(t *tx) error {
		k, err := t.keyIn(number, Draft, Ready)
		if err != nil {
			return err
		}
		if err := t.stands(k, asked); err != nil {
			return err
		}
		if k.KeepForever {
			return keepError(k)
		}
		e, err = t.updated(k, set{"state", Destroying}, set{"before_state", from{column: "state"}})
		return err
	})
	return e.Key, err
}

func (s *sqliteStore) FinishDestroy(ctx context.Context, number int64) error {
	return s.remove(ctx, "cannot remove a destroyed key", func(t *tx) error {
		k, err := t.journalled(number, Destroying)
		if err != nil {
			return err
		}
		return t.remove(k)
	})
}

func (s *sqliteStore) AbortDestroy(ctx context.Context, number int64) error {
	return s.remove(ctx, "cannot restore a key that was not destroyed", func(t *tx) error {
		k, err := t.journalled(number, Destroying)
		if err != nil {
			return err
		}
		return t.update(k, append([]set{{"state", from{column: "before_state"}}}, noBefore...)...)
	})
}

func (s *sqliteStore) SetHidden(ctx context.Context, number int64, hidden bool) error {
	return s.remove(ctx, "cannot hide a key", func(t *tx) error {
		k, err := t.journalled(number, Creating, Destroying)
		if err != nil || k.Hidden == hidden {
			return err
		}
		// No part of what is proven: a start hides what it finds in the journal before it has the data key.
		t.touched = append(t.touched, number)
		return t.one("key "+k.Name, k.change(), "UPDATE keys SET hidden = ? WHERE number = ?", hidden, number)
	})
}

func (s *sqliteStore) Rename(ctx context.Context, number int64, space Space, name string) error {
	return s.write(ctx, "cannot rename a key", func(t *tx) error {
		k, err := t.keyIn(number, Draft, Creating, Ready)
		if err != nil || k.Space == space && k.Name == name {
			return err
		}
		return t.move(k, space, name)
	})
}

// move gives a key another name, perhaps in another space.
func (t *tx) move(k Key, space Space, name string) error {
	if err := t.free(k.Provider, space, name); err != nil {
		return err
	}
	return t.update(k, set{"space", int64(space)}, set{"name", name})
}

func (s *sqliteStore) Exchange(ctx context.Context, number, other int64) error {
	return s.write(ctx, "cannot exchange two keys", func(t *tx) error {
		a, err := t.keyIn(number, Draft, Creating, Ready)
		if err != nil {
			return err
		}
		b, err := t.keyIn(other, Draft, Creating, Ready)
		if err != nil || a.Number == b.Number {
			return err
		}
		if a.Provider != b.Provider {
			return psa.Errorf(psa.StatusInvalidArgument, "keys %s and %s belong to different providers", a.Name, b.Name)
		}
		// A name with a zero byte is nobody's: it frees b's for the moment between.
		if _, err := t.exec("UPDATE keys SET name = ? WHERE number = ?", "\x00", b.Number); err != nil {
			return err
		}
		if err := t.update(a, set{"space", int64(b.Space)}, set{"name", b.Name}); err != nil {
			return err
		}
		return t.update(b, set{"space", int64(a.Space)}, set{"name", a.Name})
	})
}

// toDirectoryOwner gives what is about to come into being with a key to whoever owns its directory, the quota with it.
// What the draft had already keeps its owners.
func (t *tx) toDirectoryOwner(k Key) (Key, error) {
	uid, gid, err := t.directoryOwner(k)
	if err != nil {
		return k, err
	}
	stored, err := t.inodes(k)
	if err != nil {
		return k, err
	}
	for file, i := range stored {
		if file == 0 || slices.Contains(KeptFiles[:], file) || i.UID == nil && i.GID == nil {
			continue
		}
		// Nobody had any of the other files, so that what is stored of their owners holds no more.
		i.UID, i.GID = nil, nil
		if err := t.setInode(i); err != nil {
			return k, err
		}
	}
	if uid == k.UID && gid == k.GID {
		return k, nil
	}
	for _, file := range KeptFiles {
		i, ok := stored[file]
		if !ok {
			i.Ino = k.ino(file)
		}
		i.UID, i.GID = cmp.Or(i.UID, new(k.UID)), cmp.Or(i.GID, new(k.GID))
		if err := t.setInode(i); err != nil {
			return k, err
		}
	}
	return k, t.setCreator(&k, uid, gid)
}

// inodes are those of a key's files that are stored, by the file's own number.
func (t *tx) inodes(k Key) (map[uint64]Inode, error) {
	stored := map[uint64]Inode{}
	for file := range k.files.all() {
		i, found, err := t.inode(k.ino(file), k.files)
		if err != nil {
			return nil, err
		}
		if found {
			stored[file] = i
		}
	}
	return stored, nil
}

// directoryOwner is who owns a key's directory now.
func (t *tx) directoryOwner(k Key) (uid, gid uint32, err error) {
	i, _, err := t.inode(k.ino(0), k.files)
	if err != nil {
		return 0, 0, err
	}
	return *cmp.Or(i.UID, &k.UID), *cmp.Or(i.GID, &k.GID), nil
}

// setCreator makes uid and gid the default owner of a key's files, and counts it in that user's quota.
func (t *tx) setCreator(k *Key, uid, gid uint32) error {
	from := k.UID
	k.UID, k.GID = uid, gid
	if from != uid {
		t.owns(from, -1)
		t.owns(uid, 1)
	}
	return t.update(*k, set{"uid", int64(uid)}, set{"gid", int64(gid)})
}

func (s *sqliteStore) SetOwner(ctx context.Context, number int64, from, uid, gid uint32) error {
	if err := CheckOwner(uid, gid); err != nil {
		return err
	}
	return s.write(ctx, "cannot give a key away", func(t *tx) error {
		k, err := t.keyIn(number, Draft, Creating, Ready)
		if err != nil || from == uid {
			return err
		}
		stored, err := t.inodes(k)
		if err != nil {
			return err
		}
		owner, _, err := t.directoryOwner(k)
		if err != nil {
			return err
		}
		// First, while nothing has changed: the new owner may have such a name.
		if owner == from && k.Space == OwnSpace(from) {
			if err := t.move(k, OwnSpace(uid), k.Name); err != nil {
				return err
			}
		}
		n := 0
		for _, i := range stored {
			if *cmp.Or(i.UID, &k.UID) != from {
				continue
			}
			n++
			// A group that is stored without an owner goes as well, so that all files that were theirs have the new one.
			i.UID, i.GID = &uid, &gid
			i.ACL, i.DefaultACL = withoutUser(i.ACL, from), withoutUser(i.DefaultACL, from)
			if err := t.setInode(i); err != nil {
				return err
			}
		}
		if k.UID == from {
			return t.setCreator(&k, uid, gid)
		}
		if n == 0 {
			return psa.Errorf(psa.StatusDoesNotExist, "user %d owns nothing of key %s", from, k.Name)
		}
		return t.update(k)
	})
}

// withoutUser is a POSIX ACL, as xattr(7) has it, without the entries that name the user. The mask stays: it lets no more
// through than before.
func withoutUser(list []byte, uid uint32) []byte {
	const (
		head, size = 4, 8
		user       = 0x02 // ACL_USER
	)
	if len(list) < head {
		return list
	}
	out := bytes.Clone(list[:head])
	for rest := list[head:]; len(rest) > 0; rest = rest[size:] {
		if len(rest) < size {
			return list // damaged: whoever reads it says so
		}
		if binary.LittleEndian.Uint16(rest) != user || binary.LittleEndian.Uint32(rest[4:]) != uid {
			out = append(out, rest[:size]...)
		}
	}
	return out
}

func (s *sqliteStore) SetAllowDestroy(ctx context.Context, number int64, allow bool) error {
	return s.write(ctx, "cannot store allow_destroy", func(t *tx) error {
		k, err := t.keyIn(number, Draft, Creating, Ready)
		if err != nil {
			return err
		}
		return t.update(k, set{"allow_destroy", allow})
	})
}

func (s *sqliteStore) SetCertificate(ctx context.Context, number int64, chain []byte) (before []byte, err error) {
	err = s.write(ctx, "cannot store a certificate", func(t *tx) error {
		before = nil // what an earlier run found may be gone
		k, err := t.keyIn(number, Ready)
		if err != nil {
			return err
		}
		if len(k.certificate) > 0 {
			// one that is damaged is replaced all the same
			if err := t.row("SELECT chain FROM certificates WHERE key = ?", []any{number}, &before); err != nil && !errors.Is(err, sql.ErrNoRows) {
				return err
			}
			if !bytes.Equal(chainSum(before), k.certificate) {
				before = nil
			}
		}
		return t.setCertificate(k, chain)
	})
	return before, err
}

func (s *sqliteStore) RestoreCertificate(ctx context.Context, number int64, chain, before []byte) error {
	return s.owe(ctx, "cannot restore a certificate", func(t *tx) error {
		k, err := t.keyIn(number, Ready)
		if err != nil || !bytes.Equal(chainSum(chain), k.certificate) {
			return err
		}
		return t.setCertificate(k, before)
	})
}

// chainSum is what a key's row holds of its chain.
func chainSum(chain []byte) []byte {
	if len(chain) == 0 {
		return nil
	}
	sum := sha256.Sum256(chain)
	return sum[:]
}

func (t *tx) setCertificate(k Key, chain []byte) error {
	if len(chain) == 0 {
		if _, err := t.exec("DELETE FROM certificates WHERE key = ?", k.Number); err != nil {
			return err
		}
		return t.update(k, set{"certificate", nil})
	}
	_, err := t.exec("INSERT INTO certificates(key, chain) VALUES (?, ?) ON CONFLICT(key) DO UPDATE SET chain = excluded.chain",
		k.Number, chain)
	if err != nil {
		return err
	}
	return t.update(k, set{"certificate", chainSum(chain)})
}

func (s *sqliteStore) Certificate(ctx context.Context, number int64) (chain []byte, err error) {
	k, err := s.KeyByNumber(ctx, number)
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	err = s.query(ctx, "cannot read a certificate", "SELECT chain FROM certificates WHERE key = ?", func(scan func(...any) error) error {
		f, dest := newFields(1)
		if err := scan(dest...); err != nil {
			return err
		}
		chain = f.blob("chain")
		return f.damage(fmt.Sprintf("the certificate of key %q", k.Name))
	}, number)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(chain)
	if s.guard.Load() != nil && (chain != nil || k.certificate != nil) && !bytes.Equal(sum[:], k.certificate) {
		return nil, (&fields{bad: wrongMAC}).damage(fmt.Sprintf("the certificate of key %q", k.Name))
	}
	return chain, nil
}

func (s *sqliteStore) SetUnits(ctx context.Context, number int64, units []string) error {
	return s.write(ctx, "cannot store units", func(t *tx) error {
		k, err := t.keyIn(number, Draft, Creating, Ready)
		if err != nil {
			return err
		}
		text := strings.Join(units, " ")
		if !slices.Equal(strings.Fields(text), units) {
			return psa.Errorf(psa.StatusInvalidArgument, "the name of a unit holds white space")
		}
		return t.update(k, set{"units", text})
	})
}

func (s *sqliteStore) SetCallerNonce(ctx context.Context, number int64, allow bool) error {
	return s.write(ctx, "cannot store caller_nonce", func(t *tx) error {
		k, err := t.keyIn(number, Draft, Creating, Ready)
		if err != nil {
			return err
		}
		if allow && k.NonceBound {
			return psa.Errorf(psa.StatusNotPermitted, "key %s is a copy of a key without caller_nonce = true", k.Name).
				WithHint("set caller_nonce = true for the original key, then make the copy again")
		}
		return t.update(k, set{"caller_nonce", allow})
	})
}

func (s *sqliteStore) BindNonce(ctx context.Context, number int64) error {
	return s.write(ctx, "cannot bind a copy", func(t *tx) error {
		k, err := t.keyIn(number, Creating)
		if err != nil {
			return err
		}
		return t.update(k, set{"nonce_bound", true})
	})
}

// Inodes and labels.

const inodeColumns = "ino, mode, uid, gid, acl, default_acl, atime, mtime, ctime, mac"

// scanInode reads a row of inodeColumns.
func (r *RowKey) scanInode(scan func(...any) error) (Inode, error) {
	f, dest := newFields(10)
	if err := scan(dest...); err != nil {
		return Inode{}, err
	}
	proven := r.proves(f.values[9], "inode", f.values[:9]...)
	i := Inode{Ino: uint64(f.integer("ino", 0, math.MaxInt64)), Mode: f.uint32p("mode"), UID: f.uint32p("uid"), GID: f.uint32p("gid"),
		ACL: f.blob("acl"), DefaultACL: f.blob("default_acl"), Atime: f.timep("atime"), Mtime: f.timep("mtime"), Ctime: f.timep("ctime")}
	if !proven {
		f.fault(wrongMAC)
	}
	return i, f.damage(fmt.Sprintf("inode %d", i.Ino))
}

// whole says whether an inode's row is there exactly where one was stored.
func (b fileSet) whole(ino uint64, found bool) error {
	if found == b.has(ino%256) {
		return nil
	}
	f := fields{bad: "it was removed by another program"}
	if found {
		f.bad = "it was added by another program"
	}
	return f.damage(fmt.Sprintf("inode %d", ino))
}

func (s *sqliteStore) Inode(ctx context.Context, ino uint64) (i Inode, found bool, err error) {
	if ino > math.MaxInt64 {
		return Inode{}, false, nil
	}
	if err := s.join(ctx); err != nil {
		return Inode{}, false, err
	}
	known, changes, ok := s.cache.inode(ino)
	s.open.RUnlock()
	if ok {
		return known.Inode, known.found, nil
	}
	err = s.settled(ctx, func() (err error) {
		i, found, err = s.readInode(ctx, ino)
		return err
	})
	if err == nil {
		s.cache.putInode(ino, cachedInode{i, found}, changes)
	}
	return i, found, err
}

// readInode is Inode from the store itself.
func (s *sqliteStore) readInode(ctx context.Context, ino uint64) (i Inode, found bool, err error) {
	guard := s.guard.Load()
	err = s.query(ctx, "cannot read an inode", "SELECT "+inodeColumns+" FROM inodes WHERE ino = ?", func(scan func(...any) error) error {
		i, err = guard.scanInode(scan)
		found = true
		return err
	}, int64(ino))
	if err == nil && guard != nil {
		var files fileSet
		files, err = s.filesOf(ctx, int64(ino/256))
		switch {
		case err == nil:
			err = files.whole(ino, found)
		case ino < 256 && psa.StatusOf(err) == psa.StatusDataCorrupt:
			// Which of the top's files had rows nobody knows any more: they are root's, who puts the store in order.
			return Inode{Ino: ino, Mode: new(uint32(0o700)), UID: new(uint32(0)), GID: new(uint32(0))}, true, nil
		}
	}
	if err != nil {
		return Inode{}, false, err
	}
	return i, found, nil
}

// inode is Inode inside a transaction.
func (t *tx) inode(ino uint64, files fileSet) (Inode, bool, error) {
	i, err := t.guard.scanInode(func(dest ...any) error {
		return t.row("SELECT "+inodeColumns+" FROM inodes WHERE ino = ?", []any{int64(ino)}, dest...)
	})
	found := true
	if errors.Is(err, sql.ErrNoRows) {
		found, err = false, nil
	}
	if err == nil && t.guard != nil {
		err = files.whole(ino, found)
	}
	if err != nil || !found {
		return Inode{}, false, err
	}
	return i, true, nil
}

func (s *sqliteStore) SetInode(ctx context.Context, i Inode) error {
	return s.write(ctx, "cannot store an inode", func(t *tx) error {
		change, err := t.owner(i.Ino)
		if err != nil {
			return err
		}
		t.changed(change)
		return t.setInode(i)
	})
}

// owner checks that an inode belongs to something that is there, and says what changed with it.
func (t *tx) owner(ino uint64) (Change, error) {
	c := Change{Ino: ino, Kind: InodeChanged}
	if ino > math.MaxInt64 {
		return c, psa.Errorf(psa.StatusDoesNotExist, "there is no inode %d", ino)
	}
	number := int64(ino / 256)
	if number == 0 {
		return c, nil
	}
	if provider, ok := userProvider(ino); ok {
		c.Provider = provider
		var n int
		err := t.row("SELECT 1 FROM providers WHERE number = ?", []any{provider}, &n)
		if errors.Is(err, sql.ErrNoRows) {
			return c, psa.Errorf(psa.StatusDoesNotExist, "there is no inode %d", ino)
		}
		return c, err
	}
	if k, ok := t.cached(number); ok {
		c.Key, c.Provider = k.Number, k.Provider
		return c, nil
	}
	var key, provider int64
	err := t.row(`SELECT coalesce(keys.number, 0), coalesce(keys.provider, providers.number, 0) FROM numbers
		LEFT JOIN keys USING (number) LEFT JOIN providers USING (number) WHERE number = ?`, []any{number}, &key, &provider)
	if errors.Is(err, sql.ErrNoRows) {
		return c, psa.Errorf(psa.StatusDoesNotExist, "there is no inode %d", ino)
	}
	c.Key, c.Provider = key, provider
	return c, err
}

func (t *tx) setInode(i Inode) error {
	row, err := t.owning(int64(i.Ino / 256))
	if err != nil {
		return err
	}
	values := i.values()
	nothing := !slices.ContainsFunc(values[1:], func(v any) bool { return v != nil })
	row.set(i.Ino%256, !nothing)
	t.touched = append(t.touched, int64(i.Ino/256))
	if nothing {
		_, err := t.exec("DELETE FROM inodes WHERE ino = ?", int64(i.Ino))
		return err
	}
	values = append(values, t.guard.mac("inode", values...))
	_, err = t.exec("INSERT OR REPLACE INTO inodes("+inodeColumns+") VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values...)
	return err
}

func noLabel(name string) error {
	return psa.Errorf(psa.StatusDoesNotExist, "there is no label %s", name)
}

func (s *sqliteStore) Xattr(ctx context.Context, ino uint64, name string) (value []byte, err error) {
	found := false
	err = s.query(ctx, "cannot read a label", "SELECT value, mac FROM xattrs WHERE ino = ? AND name = ?", func(scan func(...any) error) error {
		found = true
		f, dest := newFields(2)
		if err := scan(dest...); err != nil {
			return err
		}
		proven := s.guard.Load().proves(f.values[1], "label", int64(ino), name, f.values[0])
		value = f.blob("value")
		if !proven {
			f.fault(wrongMAC)
		}
		return f.damage("label " + name)
	}, int64(ino&math.MaxInt64), name)
	if err == nil && !found {
		err = noLabel(name)
	}
	return value, err
}

func (s *sqliteStore) Xattrs(ctx context.Context, ino uint64) (names []string, err error) {
	err = s.query(ctx, "cannot list labels", "SELECT name FROM xattrs WHERE ino = ? ORDER BY name", func(scan func(...any) error) error {
		var name string
		err := scan(&name)
		names = append(names, name)
		return err
	}, int64(ino&math.MaxInt64))
	return names, err
}

func (s *sqliteStore) SetXattr(ctx context.Context, ino uint64, name string, value []byte, how int) error {
	return s.write(ctx, "cannot store a label", func(t *tx) error {
		change, err := t.owner(ino)
		if err != nil {
			return err
		}
		var old, others int
		err = t.row(`SELECT coalesce(sum(name = ?2), 0), coalesce(sum(CASE WHEN name <> ?2 THEN octet_length(name) + octet_length(value) END), 0)
			FROM xattrs WHERE ino = ?1`, []any{int64(ino), name}, &old, &others)
		switch {
		case err != nil:
			return err
		case how == XattrCreate && old > 0:
			return psa.Errorf(psa.StatusAlreadyExists, "there is already a label %s", name)
		case how == XattrReplace && old == 0:
			return noLabel(name)
		case others+len(name)+len(value) > MaxXattrBytes:
			return psa.Errorf(psa.StatusQuota, "the labels of one file may have at most %d bytes together", MaxXattrBytes)
		}
		if value == nil {
			value = []byte{} // an empty label is no NULL
		}
		if t.guard == nil {
			return errUnguarded()
		}
		t.changed(change)
		_, err = t.exec("INSERT OR REPLACE INTO xattrs(ino, name, value, mac) VALUES (?, ?, ?, ?)", int64(ino), name, value,
			t.guard.mac("label", int64(ino), name, value))
		return err
	})
}

func (s *sqliteStore) RemoveXattr(ctx context.Context, ino uint64, name string) error {
	return s.remove(ctx, "cannot remove a label", func(t *tx) error {
		change, err := t.owner(ino)
		if err != nil {
			return err
		}
		return t.one("label "+name, change, "DELETE FROM xattrs WHERE ino = ? AND name = ?", int64(ino), name)
	})
}

// Aliases.

// aliasColumns end with the target as it is proven: with its provider's number, since a provider may be renamed while
// the data key is away.
const aliasColumns = `number, name, target, uid, gid, changed, files, mac,
	coalesce((SELECT '../providers/' || providers.number || substr(target, length('../providers/' || providers.name) + 1) FROM providers
		WHERE substr(target, 1, length('../providers/' || providers.name || '/')) = '../providers/' || providers.name || '/'), target)`

func (r *RowKey) scanAlias(scan func(...any) error) (Alias, error) {
	f, dest := newFields(9)
	if err := scan(dest...); err != nil {
		return Alias{}, err
	}
	proven := r.proves(f.values[7], "alias", provenOf(aliasesTable, f.values)...)
	a := Alias{Number: f.integer("number", 1, math.MaxInt64), Name: f.text("name"), Target: f.text("target"),
		UID: f.uint32("uid"), GID: f.uint32("gid"), Changed: f.time("changed")}
	a.files = f.files("files")
	if !proven {
		f.fault(wrongMAC)
	}
	return a, f.damage(fmt.Sprintf("link %q", a.Name))
}

func (s *sqliteStore) Aliases(ctx context.Context, after string, n int) ([]Alias, error) {
	var all []Alias
	err := s.query(ctx, "cannot list the links", "SELECT "+aliasColumns+" FROM aliases WHERE name > ? ORDER BY name LIMIT ?", func(scan func(...any) error) error {
		a, err := s.guard.Load().scanAlias(scan)
		if err == nil || psa.StatusOf(err) == psa.StatusDataCorrupt {
			all = append(all, a) // a damaged one has its name still; to look it up says what is wrong
			return nil
		}
		return err
	}, after, page(n))
	return all, err
}

func noAlias(name string) error {
	return psa.Errorf(psa.StatusDoesNotExist, "there is no link %s", name)
}

func (s *sqliteStore) Alias(ctx context.Context, name string) (a Alias, err error) {
	err = s.query(ctx, "cannot read link "+name, "SELECT "+aliasColumns+" FROM aliases WHERE name = ?", func(scan func(...any) error) error {
		a, err = s.guard.Load().scanAlias(scan)
		return err
	}, name)
	if err == nil && a.Number == 0 {
		err = noAlias(name)
	}
	if err != nil {
		return Alias{}, err
	}
	return a, nil
}

// alias reads a link inside a transaction; false if there is none.
func (t *tx) alias(name string) (Alias, bool, error) {
	a, err := t.guard.scanAlias(func(dest ...any) error {
		return t.row("SELECT "+aliasColumns+" FROM aliases WHERE name = ?", []any{name}, dest...)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return a, false, nil
	}
	return a, err == nil, err
}

func aliasChange(number int64) Change { return Change{Ino: uint64(number) * 256, Kind: AliasChanged} }

func (s *sqliteStore) CreateAlias(ctx context.Context, a Alias) (Alias, error) {
	if err := CheckOwner(a.UID, a.GID); err != nil {
		return Alias{}, err
	}
	err := s.write(ctx, "cannot make link "+a.Name, func(t *tx) error {
		_, found, err := t.alias(a.Name)
		if err != nil {
			return err
		}
		if found {
			return psa.Errorf(psa.StatusAlreadyExists, "there is already a link %s", a.Name)
		}
		a.Changed = time.Unix(0, time.Now().UnixNano())
		if a.Number, err = t.number(); err != nil {
			return err
		}
		t.changed(aliasChange(a.Number))
		t.new(aliasesTable, a.Number)
		_, err = t.exec("INSERT INTO aliases(number, name, target, uid, gid, changed) VALUES (?, ?, ?, ?, ?, ?)",
			a.Number, a.Name, a.Target, int64(a.UID), int64(a.GID), a.Changed.UnixNano())
		return err
	})
	if err != nil {
		return Alias{}, err
	}
	return a, nil
}

func (t *tx) removeAlias(a Alias) error {
	if err := t.one("link "+a.Name, aliasChange(a.Number), "DELETE FROM aliases WHERE number = ?", a.Number); err != nil {
		return err
	}
	return t.removeNumber(a.Number)
}

func (s *sqliteStore) RenameAlias(ctx context.Context, from, to string) error {
	return s.write(ctx, "cannot rename link "+from, func(t *tx) error {
		a, found, err := t.alias(from)
		if err != nil {
			return err
		}
		if !found {
			return noAlias(from)
		}
		if from == to {
			return nil
		}
		old, found, err := t.alias(to)
		if err != nil {
			return err
		}
		if found {
			if err := t.removeAlias(old); err != nil {
				return err
			}
		}
		if err := t.touch(a.Number); err != nil {
			return err
		}
		return t.one("link "+from, aliasChange(a.Number), "UPDATE aliases SET name = ?, changed = ? WHERE number = ?",
			to, time.Now().UnixNano(), a.Number)
	})
}

func (s *sqliteStore) RemoveAlias(ctx context.Context, name string) error {
	return s.remove(ctx, "cannot remove link "+name, func(t *tx) error {
		a, found, err := t.alias(name)
		if err != nil {
			return err
		}
		if !found {
			return noAlias(name)
		}
		return t.removeAlias(a)
	})
}

// The data key.

const selectDataKey = "SELECT kind, wrapping_id, wrapped, pcrs, coalesce(before_id, zeroblob(16)), mac FROM data_key"

func scanDataKey(scan func(...any) error) (WrappedKey, error) {
	f, dest := newFields(6)
	if err := scan(dest...); err != nil {
		return WrappedKey{}, err
	}
	w := WrappedKey{Kind: f.text("kind"), WrappingID: f.id("wrapping_id"), Wrapped: f.blob("wrapped"),
		PCRs: psa.PCRs(f.integer("pcrs", 0, 1<<(psa.MaxPCR+1)-1)), Before: f.id("before_id"), MAC: f.blob("mac")}
	return w, f.damage("the data key")
}

func (s *sqliteStore) DataKey(ctx context.Context) (w WrappedKey, found bool, err error) {
	err = s.query(ctx, "cannot read the data key", selectDataKey, func(scan func(...any) error) error {
		found = true
		w, err = scanDataKey(scan)
		return err
	})
	return w, found, err
}

func (s *sqliteStore) InitDataKey(ctx context.Context, w WrappedKey, guard *RowKey) error {
	return s.writeAlone(ctx, "cannot store the data key", guard, func(t *tx) error {
		r, err := t.exec("INSERT INTO data_key(one, kind, wrapping_id, wrapped, pcrs, before_id, mac) VALUES (1, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
			w.Kind, w.WrappingID[:], w.Wrapped, int64(w.PCRs), w.before(), guard.macOf(w))
		if err != nil {
			return err
		}
		n, err := r.RowsAffected()
		if err != nil {
			return err
		}
		if n == 0 {
			return psa.Errorf(psa.StatusAlreadyExists, "the KIM already has a data key")
		}
		t.guard = guard
		return t.beginAnchor()
	})
}

// before is the column before_id.
func (w WrappedKey) before() []byte {
	if w.Before == [16]byte{} {
		return nil
	}
	return w.Before[:]
}

func (s *sqliteStore) ReplaceDataKey(ctx context.Context, old [16]byte, w WrappedKey) error {
	return s.write(ctx, "cannot store the data key", func(t *tx) error {
		return t.replaceDataKey(old, w)
	})
}

func (t *tx) replaceDataKey(old [16]byte, w WrappedKey) error {
	row, found, err := t.dataKey()
	if err != nil {
		return err
	}
	if !found || row.WrappingID != old {
		return psa.Errorf(psa.StatusBadState, "another command has rewrapped the data key").WithHint("try again")
	}
	if t.guard == nil {
		return errUnguarded()
	}
	_, err = t.exec("UPDATE data_key SET kind = ?, wrapping_id = ?, wrapped = ?, pcrs = ?, before_id = ?, mac = ?",
		w.Kind, w.WrappingID[:], w.Wrapped, int64(w.PCRs), w.before(), t.guard.macOf(w))
	return err
}

func (s *sqliteStore) RecoveryKey(ctx context.Context) (w WrappedKey, found bool, err error) {
	err = s.query(ctx, "cannot read the recovery key", "SELECT wrapping_id, wrapped FROM recovery_key", func(scan func(...any) error) error {
		f, dest := newFields(2)
		if err := scan(dest...); err != nil {
			return err
		}
		found = true
		w = WrappedKey{Kind: kindRecovery, WrappingID: f.id("wrapping_id"), Wrapped: f.blob("wrapped")}
		return f.damage("the recovery key")
	})
	return w, found, err
}

func (s *sqliteStore) SetRecoveryKey(ctx context.Context, w WrappedKey) error {
	return s.write(ctx, "cannot store the recovery key", func(t *tx) error {
		return t.setRecoveryKey(w)
	})
}

func (t *tx) setRecoveryKey(w WrappedKey) error {
	_, err := t.exec("INSERT OR REPLACE INTO recovery_key(one, wrapping_id, wrapped) VALUES (1, ?, ?)", w.WrappingID[:], w.Wrapped)
	return err
}
