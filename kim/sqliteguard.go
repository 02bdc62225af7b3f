package kim

import (
	"cmp"
	"context"
	"crypto/sha256"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"

	"github.com/parsecfs/parsecfs/providers/psa"
)

// How SQLite's rows are proven. The rows of keys, providers, links and of the anchor have a MAC over all that they hold,
// and a set of those of their files that have a row in inodes: a row of inodes proves itself, and the set that it is
// there. A transaction notes which rows it changes (touch, new), and proves them in the end. A key's row is written together
// with its MAC (tx.store).

// wrongMAC is what is wrong with a row that somebody else wrote.
const wrongMAC = "it is not as it was stored"

// fileSet is which of the 256 files of a number have a row in inodes.
type fileSet [32]byte

func (b *fileSet) has(file uint64) bool { return b[file/8]>>(file%8)&1 != 0 }

func (b *fileSet) put(file uint64, there bool) {
	b[file/8] &^= 1 << (file % 8)
	if there {
		b[file/8] |= 1 << (file % 8)
	}
}

func (b fileSet) all() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for file := range uint64(256) {
			if b.has(file) && !yield(file) {
				return
			}
		}
	}
}

// files is a set in a column; NULL is none.
func (f *fields) files(name string) (b fileSet) {
	v := f.blob(name)
	if v != nil && len(v) != len(b) {
		f.fault(name)
	}
	copy(b[:], v)
	return b
}

func (f *fields) skip(n int) { f.values = f.values[n:] }

// table is one whose rows have files.
type table struct {
	name, kind string
	columns    string // as its rows are read, the mac among them
	files      string // the column with its set
	where      string // the condition for a number
	// unproven columns are those that a MAC does not cover: itself, what may change while the data key is away, and a
	// provider's capabilities, which are long, and the device's to say.
	unproven []int
	// newer is a column that MACs from before there was one do not cover, and the value that rows of that time have in it.
	newer int
	old   any
	n     int // of the columns
}

var (
	keysTable = &table{name: "keys", kind: "key", columns: keyColumns, files: "files", where: "number = ?",
		unproven: []int{keyColumn("hidden"), keyColumn("mac")}, newer: keyColumn("space"), old: int64(Shared), n: len(keyColumnNames)}
	providersTable = &table{name: "providers", kind: "provider", columns: strings.Replace(providerColumns, "capabilities", "''", 1),
		files: "files", where: "number = ?", unproven: []int{2, 4, 6, 9}, newer: 10, n: 11}
	aliasesTable = &table{name: "aliases", kind: "alias", columns: aliasColumns, files: "files", where: "number = ?", unproven: []int{2, 7}, newer: -1, n: 9}
	anchorTable  = &table{name: "anchor", kind: "anchor", columns: anchorColumns, files: "files", where: "one = 1 + ?", unproven: []int{4}, newer: 5,
		old: int64(0), n: 6}
	usersTable = &table{name: "users", kind: "users", columns: usersColumns, files: "files", where: "number = ?", unproven: []int{2}, newer: -1, n: 3}
	// topTable has the rows of providers as those above the ones of users.
	topTable = &table{name: "providers", kind: "provider", columns: providersTable.columns, files: "users",
		where: fmt.Sprintf("number = %d - ?", usersAt(usersTop, 0)), unproven: providersTable.unproven, newer: providersTable.newer, n: providersTable.n}
)

const usersColumns = "number, files, mac"

const anchorColumns = "files, providers, generation, counter, mac, users"

// provenOf gives the values that a row's MAC covers.
func provenOf(t *table, values []any) []any {
	proven := make([]any, 0, len(values))
	for i, v := range values {
		if !slices.Contains(t.unproven, i) && (i != t.newer || v != t.old) {
			proven = append(proven, v)
		}
	}
	return proven
}

// anchor is the one row of its table.
type anchor struct {
	files      fileSet
	providers  int64
	generation int64
	counter    []byte
	users      bool // all rows of users are known to the rows above them
}

// scanAnchor reads a row of anchorColumns; a damaged one is StatusDataCorrupt.
func (r *RowKey) scanAnchor(scan func(...any) error) (anchor, error) {
	f, dest := newFields(anchorTable.n)
	if err := scan(dest...); err != nil {
		return anchor{}, err
	}
	proven := r.proves(f.values[4], "anchor", provenOf(anchorTable, f.values)...)
	a := anchor{files: f.files("files"), providers: f.integer("providers", 0, math.MaxInt64), generation: f.integer("generation", 0, math.MaxInt64),
		counter: f.blob("counter")}
	f.skip(1)
	a.users = f.bool("users")
	if !proven {
		f.fault(wrongMAC)
	}
	return a, f.damage("the store itself")
}

func errUnguarded() error {
	return psa.Errorf(psa.StatusProviderAbsent, "nothing can be changed while the KIM's data key is not available").
		WithHint("see the providers' status files")
}

func (s *sqliteStore) Unguard() { s.setGuard(nil) }

func (s *sqliteStore) setGuard(r *RowKey) {
	// What was read before was not proven.
	_ = s.cache.commit(nil, true, func() error {
		s.guard.Store(r)
		return nil
	})
}

// provenRow is a row that a transaction changes, or whose files do.
type provenRow struct {
	table   *table
	files   fileSet
	dirty   bool  // files
	changed bool  // anything else
	values  []any // the row as it is now, where that is known
}

// set notes whether a file has a row in inodes.
func (r *provenRow) set(file uint64, there bool) {
	if r.files.has(file) != there {
		r.files.put(file, there)
		r.dirty = true
	}
}

// new notes a row that this transaction makes.
func (t *tx) new(in *table, number int64) *provenRow {
	row := &provenRow{table: in, changed: true}
	t.rows[number] = row
	return row
}

// touch notes that the row with a number changes; it must be there, and undamaged.
func (t *tx) touch(number int64) error {
	row, err := t.owning(number)
	if err == nil {
		row.changed = true
	}
	return err
}

// owning is the row with a number, to whose files something happens.
func (t *tx) owning(number int64) (*provenRow, error) {
	if t.guard == nil {
		return nil, errUnguarded()
	}
	if row := t.rows[number]; row != nil {
		return row, nil
	}
	if k, ok := t.cached(number); ok {
		t.rows[number] = &provenRow{table: keysTable, files: k.files, values: k.values}
		return t.rows[number], nil
	}
	in, files, err := t.find(number)
	row := &provenRow{table: in, files: files}
	if psa.StatusOf(err) == psa.StatusDoesNotExist && usersRow(number) {
		row.changed = true
		err = t.addUsers(number)
	}
	if err != nil {
		return nil, err
	}
	t.rows[number] = row
	return row, nil
}

// addUsers makes a row of the table users, which the row above must not know yet.
func (t *tx) addUsers(number int64) error {
	parent, child := above(number)
	row, err := t.owning(parent)
	if err != nil {
		return err
	}
	if row.files.has(child) {
		return usersGone()
	}
	row.set(child, true)
	_, err = t.exec("INSERT INTO users(number) VALUES (?)", number)
	return err
}

func usersGone() error {
	return (&fields{bad: "it was removed by another program"}).damage("the users' directories")
}

// listUsers tells the rows above of all rows of users, in a store from before there were any.
func (t *tx) listUsers() error {
	for after := int64(usersNumber - 1); ; {
		page, err := t.numbers("SELECT number FROM users WHERE number > ? ORDER BY number LIMIT ?", after, rekeyPage)
		if err != nil {
			return err
		}
		for _, number := range page {
			parent, child := above(number)
			row, err := t.owning(parent)
			if s := psa.StatusOf(err); s == psa.StatusDataCorrupt || s == psa.StatusDoesNotExist {
				continue // the provider's row is damaged, or gone
			}
			if err != nil {
				return err
			}
			row.set(child, true)
		}
		if len(page) == 0 {
			break
		}
		after = page[len(page)-1]
	}
	if err := t.touch(0); err != nil {
		return err
	}
	_, err := t.exec("UPDATE anchor SET users = 1")
	return err
}

// find reads the row that has a number, whatever it is.
func (t *tx) find(number int64) (*table, fileSet, error) {
	return findRow(t.guard, number, func(in *table) func(...any) error {
		return func(dest ...any) error {
			return t.row("SELECT "+in.columns+" FROM "+in.name+" WHERE "+in.where, []any{number}, dest...)
		}
	})
}

// findRow looks for a number in each table; read gives the row of one, or sql.ErrNoRows.
func findRow(r *RowKey, number int64, read func(*table) func(...any) error) (*table, fileSet, error) {
	if number == 0 {
		a, err := r.scanAnchor(read(anchorTable))
		if errors.Is(err, sql.ErrNoRows) || psa.StatusOf(err) == psa.StatusDataCorrupt {
			err = (&fields{bad: "its anchor is gone or damaged"}).damage("the store itself")
		}
		return anchorTable, a.files, err
	}
	if usersRow(number) {
		files, err := r.scanUsers(read(usersTable))
		if errors.Is(err, sql.ErrNoRows) {
			err = psa.Errorf(psa.StatusDoesNotExist, "there is no row for the users' directories with the number %d", number)
		}
		return usersTable, files, err
	}
	if number < 0 {
		p, err := r.scanProvider(read(topTable))
		if errors.Is(err, sql.ErrNoRows) {
			err = psa.Errorf(psa.StatusDoesNotExist, "there is no provider of the users' directories with the number %d", number)
		}
		return topTable, p.users, cmp.Or(err, p.Damage)
	}
	e, err := r.scanKey(read(keysTable))
	if !errors.Is(err, sql.ErrNoRows) {
		return keysTable, e.Key.files, cmp.Or(err, e.Key.Damage)
	}
	p, err := r.scanProvider(read(providersTable))
	if !errors.Is(err, sql.ErrNoRows) {
		return providersTable, p.files, cmp.Or(err, p.Damage)
	}
	a, err := r.scanAlias(read(aliasesTable))
	if errors.Is(err, sql.ErrNoRows) {
		err = psa.Errorf(psa.StatusDoesNotExist, "nothing has the number %d", number)
	}
	return aliasesTable, a.files, err
}

// scanUsers reads a row of usersColumns; a damaged one is StatusDataCorrupt.
func (r *RowKey) scanUsers(scan func(...any) error) (fileSet, error) {
	f, dest := newFields(3)
	if err := scan(dest...); err != nil {
		return fileSet{}, err
	}
	proven := r.proves(f.values[2], "users", provenOf(usersTable, f.values)...)
	f.integer("number", math.MinInt64, math.MaxInt64)
	files := f.files("files")
	if !proven {
		f.fault(wrongMAC)
	}
	return files, f.damage("the users' directories")
}

// filesOf is which files of a number have rows; none where nothing has the number.
func (s *sqliteStore) filesOf(ctx context.Context, number int64) (fileSet, error) {
	files, changes, ok := s.cache.filesOf(number)
	if ok {
		return files, nil
	}
	_, files, err := findRow(s.guard.Load(), number, func(in *table) func(...any) error {
		return func(dest ...any) error {
			found := false
			err := s.query(ctx, "cannot read an inode's owner", "SELECT "+in.columns+" FROM "+in.name+" WHERE "+in.where, func(scan func(...any) error) error {
				found = true
				return scan(dest...)
			}, number)
			if err == nil && !found {
				err = sql.ErrNoRows
			}
			return err
		}
	})
	if psa.StatusOf(err) == psa.StatusDoesNotExist && !usersRow(number) {
		return fileSet{}, nil
	}
	if psa.StatusOf(err) == psa.StatusDoesNotExist {
		err = s.noUsers(ctx, number) // most users' directories have no row
	}
	if err == nil {
		s.cache.putFiles(number, files, changes)
	}
	return files, err
}

// noUsers holds that a row of users that is not there never was.
func (s *sqliteStore) noUsers(ctx context.Context, number int64) error {
	parent, child := above(number)
	files, err := s.filesOf(ctx, parent)
	if err == nil && files.has(child) {
		return usersGone()
	}
	return err
}

// proveRows proves what a transaction changed.
func (t *tx) proveRows() error {
	for number := range t.rows {
		if err := t.proveRow(number); err != nil {
			return err
		}
	}
	return nil
}

func (t *tx) proveRow(number int64) error {
	row := t.rows[number]
	if row == nil || !row.dirty && !row.changed {
		return nil
	}
	if t.guard == nil {
		return errUnguarded()
	}
	in := row.table
	if in == keysTable {
		return t.proveKey(number, row)
	}
	if row.dirty || row.values == nil {
		query, args := "SELECT "+in.columns+" FROM "+in.name+" WHERE "+in.where, []any{number}
		if row.dirty {
			query, args = "UPDATE "+in.name+" SET "+in.files+" = ? WHERE "+in.where+" RETURNING "+in.columns, []any{row.files[:], number}
		}
		f, dest := newFields(in.n)
		if err := t.row(query, args, dest...); err != nil {
			return err
		}
		row.values, row.dirty = f.values, false
	}
	t.touched = append(t.touched, number)
	mac := t.guard.mac(in.kind, provenOf(in, row.values)...)
	row.changed, row.values = false, nil
	_, err := t.exec("UPDATE "+in.name+" SET mac = ? WHERE "+in.where, mac, number)
	return err
}

// proveKey is proveRow for a key.
func (t *tx) proveKey(number int64, row *provenRow) error {
	if row.values == nil {
		f, dest := newFields(keysTable.n)
		if err := t.row("SELECT "+keyColumns+" FROM keys WHERE number = ?", []any{number}, dest...); err != nil {
			return err
		}
		row.values = f.values
	}
	row.changed = false
	return t.store(Key{Number: number})
}

// proveProvider proves a new provider's row, for good: from now on one without a MAC is damaged.
func (t *tx) proveProvider(number int64) error {
	t.new(providersTable, number)
	if err := t.touch(0); err != nil {
		return err
	}
	_, err := t.exec("UPDATE anchor SET providers = max(providers, ?)", number)
	return err
}

func (s *sqliteStore) Guard(ctx context.Context, guard *RowKey) error {
	err := s.writeAlone(ctx, "cannot check the store", guard, func(t *tx) error {
		t.guard = guard
		w, found, err := t.dataKey()
		if err != nil {
			return err
		}
		if found && !guard.proves(w.MAC, "data key", w.proven()...) {
			return (&fields{bad: wrongMAC}).damage("the data key")
		}
		a, err := t.anchor()
		if err != nil {
			return err
		}
		// Those that came while the data key was away.
		news, err := t.numbers("SELECT number FROM providers WHERE number > ? AND mac IS NULL ORDER BY number LIMIT 256", a.providers)
		if err != nil {
			return err
		}
		for _, number := range news {
			if err := t.proveProvider(number); err != nil {
				return err
			}
		}
		if !a.users {
			if err := t.listUsers(); err != nil {
				return err
			}
		}
		return t.checkOwners()
	})
	if err != nil {
		s.setGuard(guard) // what is damaged is so still
	}
	return err
}

// anchor reads the anchor; without one the store is damaged.
func (t *tx) anchor() (anchor, error) {
	a, err := t.guard.scanAnchor(func(dest ...any) error {
		return t.row("SELECT "+anchorColumns+" FROM anchor", nil, dest...)
	})
	if errors.Is(err, sql.ErrNoRows) {
		err = (&fields{bad: "its anchor is gone"}).damage("the store itself")
	}
	return a, err
}

// numbers is the one column of a query, in memory.
func (t *tx) numbers(query string, args ...any) (all []int64, err error) {
	err = t.each(query, args, func(values []driver.Value) error {
		n, ok := values[0].(int64)
		if !ok {
			return fmt.Errorf("%T is no number", values[0])
		}
		all = append(all, n)
		return nil
	})
	return all, err
}

func (s *sqliteStore) Rekey(ctx context.Context, r Rekeying) (damaged int64, err error) {
	err = s.writeAlone(ctx, "cannot change the data key", r.Guard, func(t *tx) error {
		before := t.guard
		t.guard = r.Guard
		if err := t.replaceDataKey(r.Old, r.Row); err != nil {
			return err
		}
		if r.Recovery != nil {
			if err := t.setRecoveryKey(*r.Recovery); err != nil {
				return err
			}
		}
		if before == nil {
			if err := t.beginGuard(); err != nil {
				return err
			}
		}
		t.changed(Change{Kind: AllChanged})
		t.all = true
		var err error
		if damaged, err = t.rekey(before, r.Reseal); err != nil {
			return err
		}
		if err := t.recount(); err != nil || r.Reseal == nil {
			return err
		}
		// The counter's authorization came of the data key that goes.
		if err := t.touch(0); psa.StatusOf(err) == psa.StatusDataCorrupt {
			return nil
		} else if err != nil {
			return err
		}
		_, err = t.exec("UPDATE anchor SET counter = NULL")
		return err
	})
	return damaged, err
}

// beginGuard makes the anchor of a store that never had one. One that had one and is unguarded has its data key's row of
// before, which somebody put back.
func (t *tx) beginGuard() error {
	var n int
	if err := t.row("SELECT count(*) FROM anchor", nil, &n); err != nil {
		return err
	}
	if n > 0 {
		return (&fields{bad: "it is older than the store's other rows"}).damage("the data key")
	}
	_, err := t.exec("INSERT INTO anchor(one, providers, users) SELECT 1, coalesce(max(number), 0), 1 FROM providers")
	return err
}

// rekeyPage is how many rows of one table are in memory while all are proven anew.
const rekeyPage = 256

// rekey proves each row under t.guard that is proven by before, or where before is nil each that can be understood. What
// is damaged stays so: its MAC is of a key that is gone.
func (t *tx) rekey(before *RowKey, reseal func(Key, [16]byte, []byte) ([]byte, error)) (damaged int64, err error) {
	for _, in := range []*table{keysTable, providersTable, aliasesTable, usersTable} {
		for after := int64(math.MinInt64); ; {
			page, err := t.numbers("SELECT number FROM "+in.name+" WHERE number > ? ORDER BY number LIMIT ?", after, rekeyPage)
			if err != nil {
				return 0, err
			}
			if len(page) == 0 {
				break
			}
			for _, number := range page {
				bad, err := t.rekeyRow(in, number, before, reseal)
				if err != nil {
					return 0, err
				}
				damaged += bad
			}
			after = page[len(page)-1]
		}
	}
	bad, err := t.rekeyRow(anchorTable, 0, before, nil)
	if err != nil {
		return 0, err
	}
	damaged += bad
	bad, err = t.rekeyLabels(before)
	return damaged + bad, err
}

// rekeyRow proves a row and its inodes, and says how many are damaged.
func (t *tx) rekeyRow(in *table, number int64, before *RowKey, reseal func(Key, [16]byte, []byte) ([]byte, error)) (damaged int64, err error) {
	guard := t.guard
	t.guard = before // what is read now is proven by it
	defer func() {
		t.guard = guard
		delete(t.rows, number) // all of them would be too many to remember
	}()
	found, files, err := t.find(number)
	if err == nil && found != in {
		err = psa.Errorf(psa.StatusDataCorrupt, "two rows have the number %d", number)
	}
	if psa.StatusOf(err) == psa.StatusDataCorrupt {
		return 1, nil
	}
	if err != nil {
		return 0, err
	}
	row := &provenRow{table: in, files: files, changed: true}
	if number < 0 { // its set is of rows
		t.guard = guard
		t.rows[number] = row
		return 0, t.proveRow(number)
	}
	if before == nil {
		// The store is of a time without MACs: what is there is what belongs there.
		inos, err := t.numbers("SELECT ino FROM inodes WHERE ino BETWEEN ? AND ?", number*256, number*256+255)
		if err != nil {
			return 0, err
		}
		for _, ino := range inos {
			row.files.put(uint64(ino%256), true)
		}
		row.dirty = len(inos) > 0
	}
	if in == keysTable {
		ok, err := t.rekeyKey(number, before, reseal)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 1, nil
		}
	}
	for file := range row.files.all() {
		ino := uint64(number)*256 + file
		i, _, err := t.inode(ino, row.files)
		if psa.StatusOf(err) == psa.StatusDataCorrupt {
			damaged++
			continue
		}
		if err != nil {
			return 0, err
		}
		if _, err := t.exec("UPDATE inodes SET mac = ? WHERE ino = ?", guard.mac("inode", i.values()...), int64(ino)); err != nil {
			return 0, err
		}
	}
	t.guard = guard
	t.rows[number] = row
	return damaged, t.proveRow(number)
}

// rekeyKey does what a key's row needs beyond a MAC; false: its secret belongs to another row.
func (t *tx) rekeyKey(number int64, before *RowKey, reseal func(Key, [16]byte, []byte) ([]byte, error)) (ok bool, err error) {
	e, err := t.key(number)
	if err != nil {
		return false, err
	}
	if before == nil {
		var chain []byte
		err := t.row("SELECT chain FROM certificates WHERE key = ?", []any{number}, &chain)
		if err == nil {
			sum := sha256.Sum256(chain)
			_, err = t.exec("UPDATE keys SET certificate = ? WHERE number = ?", sum[:], number)
		}
		if err != nil && !errors.Is(err, sql.ErrNoRows) {
			return false, err
		}
	}
	if reseal == nil || !e.Key.Sealed {
		return true, nil
	}
	var secret, provider []byte
	err = t.row("SELECT secret, (SELECT uuid FROM providers WHERE providers.number = keys.provider) FROM keys WHERE number = ?",
		[]any{number}, &secret, &provider)
	if err != nil {
		return false, err
	}
	if len(provider) != 16 {
		return false, nil
	}
	secret, err = reseal(e.Key, [16]byte(provider), secret)
	if psa.StatusOf(err) == psa.StatusDataCorrupt {
		return false, nil
	}
	if err == nil {
		_, err = t.exec("UPDATE keys SET secret = ? WHERE number = ?", secret, number)
	}
	return err == nil, err
}

// rekeyLabels proves the labels of all inodes.
func (t *tx) rekeyLabels(before *RowKey) (damaged int64, err error) {
	type label struct {
		ino  int64
		name string
	}
	next := label{ino: -1}
	for {
		var value []byte
		var mac any
		err := t.row("SELECT ino, name, value, mac FROM xattrs WHERE (ino, name) > (?, ?) ORDER BY ino, name LIMIT 1", []any{next.ino, next.name},
			&next.ino, &next.name, &value, &mac)
		if errors.Is(err, sql.ErrNoRows) {
			return damaged, nil
		}
		if err != nil {
			return 0, err
		}
		if value == nil {
			value = []byte{}
		}
		if !before.proves(mac, "label", next.ino, next.name, value) {
			damaged++
			continue
		}
		_, err = t.exec("UPDATE xattrs SET mac = ? WHERE ino = ? AND name = ?", t.guard.mac("label", next.ino, next.name, value), next.ino, next.name)
		if err != nil {
			return 0, err
		}
	}
}

// proven is what the MAC of the data key's row covers: not its kind, which names a provider that may be renamed.
func (w WrappedKey) proven() []any {
	return []any{w.WrappingID[:], w.Wrapped, int64(w.PCRs), w.Before[:]}
}

func (r *RowKey) macOf(w WrappedKey) []byte { return r.mac("data key", w.proven()...) }

func (t *tx) dataKey() (w WrappedKey, found bool, err error) {
	w, err = scanDataKey(func(dest ...any) error { return t.row(selectDataKey, nil, dest...) })
	if errors.Is(err, sql.ErrNoRows) {
		return w, false, nil
	}
	return w, err == nil, err
}

func (s *sqliteStore) Generation(ctx context.Context) (generation uint64, counter []byte, err error) {
	var a anchor
	err = s.query(ctx, "cannot read the generation", "SELECT "+anchorColumns+" FROM anchor", func(scan func(...any) error) error {
		a, err = s.guard.Load().scanAnchor(scan)
		return err
	})
	return uint64(a.generation), a.counter, err
}

func (s *sqliteStore) SetGeneration(ctx context.Context, generation uint64, counter []byte) error {
	if generation > math.MaxInt64 {
		return psa.Errorf(psa.StatusInvalidArgument, "generation %d", generation)
	}
	return s.write(ctx, "cannot store the generation", func(t *tx) error {
		if err := t.touch(0); err != nil {
			return err
		}
		_, err := t.exec("UPDATE anchor SET generation = ?, counter = ?", int64(generation), blobArg(counter))
		return err
	})
}

// beginAnchor makes the anchor of a new store.
func (t *tx) beginAnchor() error {
	if _, err := t.exec("INSERT INTO anchor(one, users) VALUES (1, 1)"); err != nil {
		return err
	}
	t.new(anchorTable, 0)
	return t.recount()
}

// values are what is stored of an inode, as its MAC covers it.
func (i Inode) values() []any {
	return []any{int64(i.Ino), uint32Arg(i.Mode), uint32Arg(i.UID), uint32Arg(i.GID), blobArg(i.ACL), blobArg(i.DefaultACL),
		timeArg(i.Atime), timeArg(i.Mtime), timeArg(i.Ctime)}
}
