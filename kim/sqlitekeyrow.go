package kim

import (
	"database/sql"
	"errors"
	"maps"
	"slices"
	"strings"
	"time"
)

// How a key's row is written. Its MAC covers the whole row, so that a change makes the new row's values here, and one
// statement stores what changes together with the MAC.

// keyColumnNames are the columns of a key's row in the order in which it is read and proven.
var keyColumnNames = []string{"number", "uuid", "provider", "name", "state", "hidden", "handle", "type", "bits", "algorithm", "usage",
	"template", "origin", "uid", "gid", "created", "changed", "public", "secret", "allow_destroy", "before_state", "units", "pcrs",
	"object", "caller_nonce", "nonce_bound", "nonces", "failures", "copied", "before_type", "before_bits", "before_algorithm",
	"before_usage", "before_template", "before_pcrs", "device", "provider_uuid", "certificate", "files", "space", "mac"}

// keyExpressions are what is read where a column itself is not: a secret is not read with its row.
var keyExpressions = map[string]string{
	"secret":        "secret IS NOT NULL",
	"before_state":  "coalesce(before_state, '')",
	"provider_uuid": "(SELECT uuid FROM providers WHERE providers.number = keys.provider)",
}

var keyColumns = func() string {
	list := slices.Clone(keyColumnNames)
	for i, name := range list {
		if e, ok := keyExpressions[name]; ok {
			list[i] = e
		}
	}
	return strings.Join(list, ", ")
}()

var keyColumnNumbers = func() map[string]int {
	numbers := map[string]int{}
	for i, name := range keyColumnNames {
		numbers[name] = i
	}
	return numbers
}()

func keyColumn(name string) int {
	i, ok := keyColumnNumbers[name]
	if !ok {
		panic("a key's row has no column " + name)
	}
	return i
}

// set is the new value of one column of a key's row.
type set struct {
	column string
	value  any
}

// from is the value that a column has before the change, or `or` where that is NULL.
type from struct {
	column string
	or     any
}

// stored is a value as SQLite gives it back.
func stored(v any) any {
	switch v := v.(type) {
	case bool:
		if v {
			return int64(1)
		}
		return int64(0)
	case int:
		return int64(v)
	case State:
		return string(v)
	}
	return v
}

// read is a value of a column as keyColumns reads it.
func (s set) read() any {
	switch s.column {
	case "secret":
		return stored(s.value != nil)
	case "before_state":
		if s.value == nil {
			return ""
		}
	}
	return s.value
}

// store changes the row of k, which t.key read, and tells nobody: no right and no name may depend on what changes.
func (t *tx) store(k Key, sets ...set) error {
	if t.guard == nil {
		return errUnguarded()
	}
	row := t.rows[k.Number]
	values := slices.Clone(row.values)
	if row.dirty {
		sets = append(sets, set{"files", slices.Clone(row.files[:])})
	}
	var query strings.Builder
	query.WriteString("UPDATE keys SET ")
	args := make([]any, 0, len(sets)+2)
	for _, s := range sets {
		if f, ok := s.value.(from); ok {
			if s.value = row.values[keyColumn(f.column)]; s.value == nil {
				s.value = f.or
			}
		}
		s.value = stored(s.value)
		values[keyColumn(s.column)] = s.read()
		query.WriteString(s.column + " = ?, ")
		args = append(args, s.value)
	}
	query.WriteString("mac = ? WHERE number = ?")
	mac := t.guard.mac("key", provenOf(keysTable, values)...)
	values[keyColumn("mac")] = mac
	var number int64
	err := t.row(query.String()+" RETURNING number", append(args, mac, k.Number), &number)
	if errors.Is(err, sql.ErrNoRows) {
		return noSuch(k.Space, k.Name)
	}
	if err != nil {
		return err
	}
	t.touched = append(t.touched, k.Number)
	row.values, row.dirty = values, false
	return nil
}

// update changes the row of k, which t.key read, and its time.
func (t *tx) update(k Key, sets ...set) error {
	if err := t.store(k, append(sets, set{"changed", time.Now().UnixNano()})...); err != nil {
		return err
	}
	t.changed(k.change())
	return nil
}

// updated is update that gives the row as it is then.
func (t *tx) updated(k Key, sets ...set) (Entry, error) {
	if err := t.update(k, sets...); err != nil {
		return Entry{}, err
	}
	return t.guard.readKey(t.rows[k.Number].values), nil
}

// insertKey makes the row of a draft, with its MAC.
func (t *tx) insertKey(k Key, provider []byte) error {
	if t.guard == nil {
		return errUnguarded()
	}
	row := map[string]any{"number": k.Number, "uuid": k.ID[:], "provider": k.Provider, "name": k.Name, "state": k.State, "hidden": 0,
		"type": 0, "bits": 0, "algorithm": 0, "usage": 0, "template": "", "origin": "", "uid": int64(k.UID), "gid": int64(k.GID),
		"created": k.Created.UnixNano(), "changed": k.Changed.UnixNano(), "allow_destroy": true, "units": "", "pcrs": 0, "object": "",
		"caller_nonce": false, "nonce_bound": false, "nonces": 0, "failures": 0, "copied": false, "device": "", "files": k.files[:],
		"space": int64(k.Space)}
	values := make([]any, keysTable.n)
	for i, name := range keyColumnNames {
		values[i] = set{name, stored(row[name])}.read()
	}
	values[keyColumn("provider_uuid")] = provider
	row["mac"] = t.guard.mac("key", provenOf(keysTable, values)...)
	values[keyColumn("mac")] = row["mac"]
	names := slices.Sorted(maps.Keys(row))
	args := make([]any, len(names))
	for i, name := range names {
		args[i] = stored(row[name])
	}
	_, err := t.exec("INSERT INTO keys("+strings.Join(names, ", ")+") VALUES (?"+strings.Repeat(", ?", len(names)-1)+")", args...)
	t.rows[k.Number] = &provenRow{table: keysTable, files: k.files, values: values}
	t.owns(k.UID, 1)
	return err
}
