package kim

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/mattn/go-sqlite3"
)

// How a transaction of the writer speaks to SQLite: through its driver alone. database/sql, which lies between the two elsewhere,
// took more time than SQLite itself, all of it while the others wait for their turn.

// tx is one transaction of the writer.
type tx struct {
	s       *sqliteStore
	changes []Change
	guard   *RowKey
	rows    map[int64]*provenRow // those that it changes, by their numbers
	touched []int64              // the numbers of rows that the cache must forget; all: any
	all     bool
	// What those touched that are to be committed with it: the cache has the rows of before.
	before       []int64
	allBefore    bool
	countsBefore map[uint32]int64

	counts map[uint32]int64 // see owns
}

func (s *sqliteStore) newTx() *tx {
	return &tx{s: s, guard: s.guard.Load(), rows: map[int64]*provenRow{}}
}

// run runs f, and proves what it changed.
func (t *tx) run(f func(*tx) error) error {
	if err := f(t); err != nil {
		return err
	}
	return t.proveRows()
}

// cached is a key's row as it is in the transaction: nothing was committed since the cache was filled, since this is the only
// one that writes.
func (t *tx) cached(number int64) (Key, bool) {
	if t.rows[number] != nil || t.allBefore || slices.Contains(t.before, number) {
		return Key{}, false
	}
	k, _, ok := t.s.cache.get(number)
	return k, ok
}

func (t *tx) statement(query string) (*sqlite3.SQLiteStmt, error) {
	if st, ok := t.s.statements[query]; ok {
		return st, nil
	}
	st, err := t.s.conn.Prepare(query)
	if err != nil {
		return nil, err
	}
	t.s.statements[query] = st.(*sqlite3.SQLiteStmt)
	return t.s.statements[query], nil
}

// named are a statement's arguments as the driver takes them.
func named(args []any) ([]driver.NamedValue, error) {
	list := make([]driver.NamedValue, len(args))
	for i, arg := range args {
		switch v := arg.(type) {
		case nil, int64, string, []byte:
		case int:
			arg = int64(v)
		default:
			var err error
			if arg, err = driver.DefaultParameterConverter.ConvertValue(v); err != nil {
				return nil, err
			}
		}
		list[i] = driver.NamedValue{Ordinal: i + 1, Value: arg}
	}
	return list, nil
}

func (t *tx) exec(query string, args ...any) (driver.Result, error) {
	st, err := t.statement(query)
	if err != nil {
		return nil, err
	}
	list, err := named(args)
	if err != nil {
		return nil, err
	}
	return st.ExecContext(background, list)
}

// errEnough ends each, without an error.
var errEnough = errors.New("enough")

// each calls f for every row of the answer.
func (t *tx) each(query string, args []any, f func(values []driver.Value) error) (err error) {
	st, err := t.statement(query)
	if err != nil {
		return err
	}
	list, err := named(args)
	if err != nil {
		return err
	}
	rows, err := st.QueryContext(background, list)
	if err != nil {
		return err
	}
	defer func() {
		if closed := rows.Close(); closed != nil || err == errEnough {
			err = closed
		}
	}()
	values := make([]driver.Value, len(rows.Columns()))
	for {
		err := rows.Next(values)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := f(values); err != nil {
			return err
		}
	}
}

// row reads one row; sql.ErrNoRows if there is none.
func (t *tx) row(query string, args []any, dest ...any) error {
	found := false
	err := t.each(query, args, func(values []driver.Value) error {
		found = true
		if len(values) != len(dest) {
			return fmt.Errorf("%d columns for %d", len(values), len(dest))
		}
		for i, v := range values {
			if err := scanInto(dest[i], v); err != nil {
				return err
			}
		}
		return errEnough
	})
	if err == nil && !found {
		return sql.ErrNoRows
	}
	return err
}

// scanInto stores a value where it is wanted.
func scanInto(dest any, v driver.Value) error {
	n, isInteger := v.(int64)
	switch d := dest.(type) {
	case *any:
		*d = v
		return nil
	case *int64:
		*d = n
	case *int:
		*d = int(n)
	case *uint32:
		*d = uint32(n)
		isInteger = isInteger && int64(*d) == n
	case *Space:
		*d = Space(n)
	case *bool:
		*d = n != 0
	case *string:
		text, ok := v.(string)
		if *d = text; ok {
			return nil
		}
		isInteger = false
	case *[]byte:
		b, ok := v.([]byte)
		if *d = b; ok || v == nil {
			return nil
		}
		isInteger = false
	default:
		isInteger = false
	}
	if !isInteger {
		return fmt.Errorf("a column has a %T where a %T is wanted", v, dest)
	}
	return nil
}

func (t *tx) changed(c Change) { t.changes = append(t.changes, c) }

// number takes the next number; the sequence outlives the rows, so none comes back.
func (t *tx) number() (int64, error) {
	r, err := t.exec("INSERT INTO numbers DEFAULT VALUES")
	if err != nil {
		return 0, err
	}
	return r.LastInsertId()
}
