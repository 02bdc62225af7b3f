package kim

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mattn/go-sqlite3"

	"github.com/parsecfs/parsecfs/providers"
	"github.com/parsecfs/parsecfs/providers/psa"
)

// readers is how many connections serve reads; there is one for writes.
const readers = 4

// sqliteStore is the Store in one SQLite file.
type sqliteStore struct {
	path string
	lock *Lock

	open   sync.RWMutex // held for reading by every call; Close takes it for good
	closed bool

	// writer and its statements belong to the group's leader.
	group      group
	batchTime  time.Duration // tests have more
	writerDB   *sql.DB
	writer     *sql.Conn
	conn       *sqlite3.SQLiteConn // the writer's own
	statements map[string]*sqlite3.SQLiteStmt

	readDB *sql.DB
	reads  sync.Map // query -> *sql.Stmt

	// copier copies the file. It is open from the start: later the path may lead to another file.
	copyDB *sql.DB
	copier *sql.Conn

	watchers watchers
	cache    rowCache
	files    *presence
	reserve  reserve                // the leader's
	guard    atomic.Pointer[RowKey] // proves the rows; nil while the data key is away
}

// OpenSQLite opens the KIM in the SQLite file at path, making it (0600) where it is missing and bringing an older one
// up to date. The file is held until Close: a second opener is told which process has it (StatusBadState). A file of
// a newer parsecfs is StatusNotSupported, one that is none of ours StatusInvalidArgument, a damaged one
// StatusDataCorrupt.
func OpenSQLite(ctx context.Context, path string) (Store, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fileError(err, "cannot open the KIM")
	}
	// The names beside it matter as much as the file.
	if err := providers.CheckTrusted(filepath.Dir(path)); err != nil {
		return nil, notTrusted(err, "the KIM %s", path)
	}
	if err := providers.CheckTrusted(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, notTrusted(err, "the KIM %s", path)
	}
	l, err := lock(path+".lock", "the KIM "+path)
	if err != nil {
		return nil, err
	}
	s := &sqliteStore{path: path, lock: l, batchTime: batchTime, statements: map[string]*sqlite3.SQLiteStmt{}}
	if err := s.start(ctx); err != nil {
		s.shut()
		return nil, err
	}
	return s, nil
}

func (s *sqliteStore) start(ctx context.Context) error {
	if err := s.prepareFile(); err != nil {
		return err
	}
	s.writerDB = sql.OpenDB(connector{s.path, ""})
	s.writerDB.SetMaxOpenConns(1)
	var err error
	if s.writer, err = s.writerDB.Conn(ctx); err != nil {
		return s.failed("cannot open the KIM", err)
	}
	err = s.writer.Raw(func(conn any) error {
		s.conn = conn.(*sqlite3.SQLiteConn)
		return nil
	})
	if err != nil {
		return s.failed("cannot open the KIM", err)
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	s.readDB = sql.OpenDB(connector{s.path, "PRAGMA query_only = ON;"})
	s.readDB.SetMaxOpenConns(readers)
	s.readDB.SetMaxIdleConns(readers)
	if err := s.openReaders(ctx); err != nil {
		return s.failed("cannot open the KIM", err)
	}
	s.copyDB = sql.OpenDB(connector{s.path, ""})
	s.copyDB.SetMaxOpenConns(1)
	if s.copier, err = s.copyDB.Conn(ctx); err != nil {
		return s.failed("cannot open the KIM", err)
	}
	if _, err := readSchema(ctx, s.copier); err != nil { // which opens the WAL
		return s.failed("cannot open the KIM", err)
	}
	if s.files, err = newPresence(s.path, "-wal"); err != nil {
		return err
	}
	s.reserve.open(s.path + reserveTail)
	return nil
}

// openReaders opens all of them now: later another file may have the name.
func (s *sqliteStore) openReaders(ctx context.Context) error {
	for range readers {
		conn, err := s.readDB.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close()
		// It opens the WAL too.
		if _, err := readSchema(ctx, conn); err != nil {
			return err
		}
	}
	return nil
}

// prepareFile sees to it that the file is there, ours alone, before SQLite writes anything into it; SQLite gives
// -wal and -shm the mode of the file.
func (s *sqliteStore) prepareFile() error {
	info, err := os.Lstat(s.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		for _, tail := range []string{"-wal", "-journal"} {
			if i, err := os.Lstat(s.path + tail); err == nil && i.Size() > 0 {
				return psa.Errorf(psa.StatusDataCorrupt, "the KIM %s is missing, but its %s is there", s.path, filepath.Base(s.path+tail)).
					WithHint("put the KIM back beside it, or move that file away to start a new KIM")
			}
		}
		f, err := createPrivate(s.path)
		if err == nil {
			err = errors.Join(f.Sync(), f.Close(), syncDir(filepath.Dir(s.path)))
		}
		if err != nil {
			return fileError(err, "cannot make the KIM %s", s.path)
		}
		return nil
	case err != nil:
		return fileError(err, "cannot open the KIM %s", s.path)
	case !info.Mode().IsRegular():
		return psa.Errorf(psa.StatusInvalidArgument, "the KIM %s is not a regular file", s.path)
	}
	for _, tail := range []string{"", "-wal", "-shm", "-journal"} {
		info, err := os.Lstat(s.path + tail)
		if err == nil && info.Mode().IsRegular() && info.Mode().Perm() != 0o600 {
			err = os.Chmod(s.path+tail, 0o600)
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fileError(err, "cannot make the KIM %s private to its owner", s.path+tail)
		}
	}
	return nil
}

func (s *sqliteStore) migrate(ctx context.Context) error {
	var id, version, tables int64
	err := s.writer.QueryRowContext(ctx, `SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
		FROM pragma_application_id, pragma_user_version`).Scan(&id, &version, &tables)
	if err != nil {
		return s.failed("cannot open the KIM", err)
	}
	switch {
	case id != applicationID && (id != 0 || version != 0 || tables != 0):
		return psa.Errorf(psa.StatusInvalidArgument, "%s is an SQLite file of another program, not a KIM", s.path)
	case version > int64(schema):
		return psa.Errorf(psa.StatusNotSupported,
			"the KIM %s was written by a newer parsecfs: its schema is %d, but this parsecfs supports up to %d",
			s.path, version, schema).WithHint("run the newer parsecfs, or restore an older backup")
	case version < 0:
		return psa.Errorf(psa.StatusDataCorrupt, "the KIM %s has the unknown schema %d", s.path, version)
	}
	if err := s.checkSchema(ctx, int(version)); err != nil {
		return err
	}
	var mode string
	if err := s.writer.QueryRowContext(ctx, "PRAGMA journal_mode = WAL").Scan(&mode); err != nil {
		return s.failed("cannot open the KIM", err)
	}
	if mode != "wal" {
		return psa.Errorf(psa.StatusNotSupported, "the file system of %s cannot share memory, which the KIM needs", s.path).
			WithHint("keep the KIM on a local disk (sqlite_db_path)")
	}
	// What a process that was killed wrote but did not sync must be on the disk before anybody acts on it.
	var busy, frames, copied int64
	if err := s.writer.QueryRowContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)").Scan(&busy, &frames, &copied); err != nil {
		return s.failed("cannot open the KIM", err)
	}
	for ; version < int64(schema); version++ {
		step := fmt.Sprintf("BEGIN IMMEDIATE; %s; PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT",
			migrations[version], applicationID, version+1)
		if _, err := s.writer.ExecContext(ctx, step); err != nil {
			return s.failed(fmt.Sprintf("cannot bring the KIM from schema %d to %d", version, version+1), err)
		}
	}
	return s.checkSchema(ctx, schema)
}

// checkSchema compares all that the file has SQLite do (tables, indexes, triggers, views) with what the migrations make:
// a trigger of somebody else's would run at our own changes.
func (s *sqliteStore) checkSchema(ctx context.Context, version int) error {
	ours, err := ourSchemas()
	if err != nil {
		return s.failed("cannot make the schema of a KIM", err)
	}
	have, err := readSchema(ctx, s.writer)
	if err != nil {
		return s.failed("cannot read the schema of the KIM", err)
	}
	for name, text := range have {
		if ours[version][name] != text {
			return psa.Errorf(psa.StatusDataCorrupt, "the KIM %s has a %s that parsecfs did not make", s.path, name).
				WithHint("somebody else wrote to this file: find out who, and restore the file from a backup")
		}
	}
	for name := range ours[version] {
		if _, ok := have[name]; !ok {
			return psa.Errorf(psa.StatusDataCorrupt, "the KIM %s has no %s", s.path, name).WithHint("restore it from a backup")
		}
	}
	return nil
}

// ourSchemas are those of all versions, the empty one first.
var ourSchemas = sync.OnceValues(func() (all []map[string]string, err error) {
	db, err := sql.Open("sqlite3", ":memory:")
	if err != nil {
		return nil, err
	}
	defer db.Close()
	db.SetMaxOpenConns(1)
	conn, err := db.Conn(background)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	for version := 0; ; version++ {
		made, err := readSchema(background, conn)
		if err != nil {
			return nil, err
		}
		all = append(all, made)
		if version == schema {
			return all, nil
		}
		if _, err := conn.ExecContext(background, migrations[version]); err != nil {
			return nil, err
		}
	}
})

// readSchema gives the text of each thing in the schema, by its kind and name.
func readSchema(ctx context.Context, conn *sql.Conn) (map[string]string, error) {
	rows, err := conn.QueryContext(ctx, "SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := map[string]string{}
	for rows.Next() {
		var kind, name, table, text string
		if err := rows.Scan(&kind, &name, &table, &text); err != nil {
			return nil, err
		}
		all[kind+" "+name] = table + ": " + text
	}
	return all, rows.Err()
}

func (s *sqliteStore) Schema() int { return schema }

// Close ends the watchers first: their functions may still call the store.
func (s *sqliteStore) Close() error {
	s.watchers.close()
	s.open.Lock()
	defer s.open.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.shut()
}

// shut closes readers before the writer, whose last connection folds the WAL back into the file.
func (s *sqliteStore) shut() error {
	var errs []error
	if s.files != nil {
		defer s.files.dir.close()
	}
	defer s.reserve.close()
	if s.abandoned() {
		return s.lock.Unlock()
	}
	if s.readDB != nil {
		s.reads.Range(func(_, st any) bool {
			errs = append(errs, st.(*sql.Stmt).Close())
			return true
		})
		errs = append(errs, s.readDB.Close())
	}
	if s.copier != nil {
		errs = append(errs, s.copier.Close())
	}
	if s.copyDB != nil {
		errs = append(errs, s.copyDB.Close())
	}
	for _, st := range s.statements {
		errs = append(errs, st.Close())
	}
	if s.writer != nil {
		errs = append(errs, s.writer.Close())
	}
	if s.writerDB != nil {
		errs = append(errs, s.writerDB.Close())
	}
	errs = append(errs, s.lock.Unlock())
	if err := errors.Join(errs...); err != nil {
		return s.failed("cannot close the KIM", err)
	}
	return nil
}

// connector opens connections to one file, each with the settings that every one needs.
type connector struct{ path, more string }

// settings: temporary tables stay in memory, so that no row ever lies in a file of another mode; deleted rows are
// overwritten; a commit is on the disk when it returns.
const settings = `PRAGMA busy_timeout = 5000; PRAGMA foreign_keys = ON; PRAGMA secure_delete = ON; PRAGMA synchronous = FULL;
	PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON; PRAGMA journal_size_limit = 67108864;`

func (c connector) Connect(context.Context) (driver.Conn, error) {
	// mode=rw: SQLite itself never makes the file, which would get the umask's mode.
	name := (&url.URL{Scheme: "file", Path: c.path}).String() + "?mode=rw&_mutex=no"
	conn, err := c.Driver().Open(name)
	if err != nil {
		return nil, err
	}
	if _, err := conn.(*sqlite3.SQLiteConn).Exec(settings+c.more, nil); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

func (c connector) Driver() driver.Driver { return &sqlite3.SQLiteDriver{} }

// failed gives an error of SQLite its status.
func (s *sqliteStore) failed(what string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*psa.Error](err); ok {
		return err
	}
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s: %w", what, err)
	}
	status, hint := psa.StatusStorageFailure, ""
	if e, ok := errors.AsType[sqlite3.Error](err); ok {
		switch {
		case e.Code == sqlite3.ErrFull, e.SystemErrno == syscall.ENOSPC, e.SystemErrno == syscall.EDQUOT:
			status, hint = psa.StatusInsufficientStorage, "make room on the disk of "+s.path
		case e.Code == sqlite3.ErrCorrupt, e.Code == sqlite3.ErrNotADB, e.Code == sqlite3.ErrMismatch:
			status, hint = psa.StatusDataCorrupt, "check the disk, and restore "+s.path+" from a backup"
		case e.Code == sqlite3.ErrNomem:
			status = psa.StatusInsufficientMemory
		case e.Code == sqlite3.ErrBusy, e.Code == sqlite3.ErrLocked:
			hint = "another program has " + s.path + " open; end it"
		}
	}
	return psa.Errorf(status, "%s: %w", what, err).WithHint(hint)
}

func errClosed() error { return psa.Errorf(psa.StatusBadState, "the KIM is closed") }

// enter begins a call; leave ends it.
func (s *sqliteStore) enter(ctx context.Context) (leave func(), err error) {
	if err := s.join(ctx); err != nil {
		return nil, err
	}
	return s.open.RUnlock, nil
}

// join is enter whose leave is open.RUnlock.
func (s *sqliteStore) join(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.open.RLock()
	if s.closed {
		s.open.RUnlock()
		return errClosed()
	}
	return nil
}

// Reading.

// background is what statements run under: each is short, and to interrupt one would only cost a goroutine.
var background = context.Background()

func (s *sqliteStore) read(query string) (*sql.Stmt, error) {
	if st, ok := s.reads.Load(query); ok {
		return st.(*sql.Stmt), nil
	}
	st, err := s.readDB.PrepareContext(background, query)
	if err != nil {
		return nil, err
	}
	if old, loaded := s.reads.LoadOrStore(query, st); loaded {
		st.Close()
		st = old.(*sql.Stmt)
	}
	return st, nil
}

// query calls each for every row of the answer; scan fills its arguments from the row.
func (s *sqliteStore) query(ctx context.Context, what, query string, each func(scan func(...any) error) error, args ...any) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	st, err := s.read(query)
	if err != nil {
		return s.failed(what, err)
	}
	rows, err := st.QueryContext(background, args...)
	if err != nil {
		return s.failed(what, err)
	}
	defer rows.Close()
	for rows.Next() {
		if err := each(rows.Scan); err != nil {
			return s.failed(what, err)
		}
	}
	return s.failed(what, rows.Err())
}

// Writing.

// write runs f in a transaction, perhaps together with others. f may run several times.
func (s *sqliteStore) write(ctx context.Context, what string, f func(*tx) error) error {
	return s.enterAndSubmit(ctx, &writing{what: what, f: f})
}

// owe is write for what the journal cannot be right without: it is never refused because others wait.
func (s *sqliteStore) owe(ctx context.Context, what string, f func(*tx) error) error {
	return s.enterAndSubmit(ctx, &writing{what: what, f: f, owed: true})
}

// remove is write for what makes room: a full disk does not stop it while the reserve lasts, and it is never refused.
func (s *sqliteStore) remove(ctx context.Context, what string, f func(*tx) error) error {
	return s.enterAndSubmit(ctx, &writing{what: what, f: f, owed: true, removes: true})
}

func (s *sqliteStore) enterAndSubmit(ctx context.Context, w *writing) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return s.submit(ctx, w)
}

// writeAlone is write for what takes long, or changes what proves the rows. Where it succeeds, guard is what proves them before
// anybody else writes; nil: as before.
func (s *sqliteStore) writeAlone(ctx context.Context, what string, guard *RowKey, f func(*tx) error) error {
	return s.enterAndSubmit(ctx, &writing{alone: func() error {
		err := s.transact(what, f)
		if err != nil {
			return err
		}
		if guard != nil {
			s.setGuard(guard)
		}
		s.reserve.refill()
		return nil
	}})
}

// transact is one transaction of the leader.
func (s *sqliteStore) transact(what string, f func(*tx) error) error {
	if err := s.Lost(); err != nil {
		return err
	}
	t := s.newTx()
	if _, err := t.exec("BEGIN IMMEDIATE"); err != nil {
		return s.failed(what, err)
	}
	done := false
	defer func() {
		if !done {
			// SQLite may have rolled back by itself (full disk); then this fails, which changes nothing.
			_, _ = t.exec("ROLLBACK")
		}
	}()
	if err := t.run(f); err != nil {
		return s.failed(what, err)
	}
	if err := t.countOwned(); err != nil {
		return s.failed(what, err)
	}
	err := s.cache.commit(t.touched, t.all, func() error {
		_, err := t.exec("COMMIT")
		return err
	})
	if err != nil {
		return s.failed(what, err)
	}
	done = true
	s.watchers.publish(t.changes)
	return nil
}

// Snapshot copies through a connection of its own, as VACUUM does: without what was deleted.
func (s *sqliteStore) Snapshot(ctx context.Context, path string) error {
	leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	// VACUUM INTO takes an empty file as it is, so the copy is never open to others.
	f, err := createPrivate(path)
	if err != nil {
		return fileError(err, "cannot make the copy %s", path)
	}
	f.Close()
	if err := s.vacuumInto(ctx, path); err != nil {
		os.Remove(path)
		return s.failed("cannot copy the KIM", err)
	}
	if err := errors.Join(syncFile(path), syncDir(filepath.Dir(path))); err != nil {
		return fileError(err, "cannot copy the KIM to %s", path)
	}
	return nil
}

// vacuumInto copies the file that is open, wherever its name leads by now.
func (s *sqliteStore) vacuumInto(ctx context.Context, path string) error {
	_, err := s.copier.ExecContext(ctx, "VACUUM INTO ?", path)
	_, shrunk := s.copier.ExecContext(background, "PRAGMA shrink_memory")
	return errors.Join(err, shrunk)
}

// check reads the whole file and compares its indexes with its rows.
func (s *sqliteStore) check(ctx context.Context) error {
	var text string
	if err := s.readDB.QueryRowContext(ctx, "PRAGMA integrity_check(1)").Scan(&text); err != nil {
		return s.failed("cannot check the KIM", err)
	}
	if text != "ok" {
		return psa.Errorf(psa.StatusDataCorrupt, "the KIM is damaged: %s", text)
	}
	return nil
}

// skipNumbers leaves a gap in the sequence, for a KIM that came from a backup: numbers that were given out after it
// was made do not come back.
func (s *sqliteStore) skipNumbers(ctx context.Context) error {
	return s.write(ctx, "cannot skip numbers", func(t *tx) error {
		r, err := t.exec("INSERT INTO numbers(number) SELECT seq + 16777216 FROM sqlite_sequence WHERE name = 'numbers'")
		if err != nil {
			return err
		}
		if n, err := r.RowsAffected(); err != nil || n == 0 {
			return err // nothing was ever numbered
		}
		number, err := r.LastInsertId()
		if err != nil {
			return err
		}
		_, err = t.exec("DELETE FROM numbers WHERE number = ?", number)
		return err
	})
}
