package kim

/*
#cgo noescape parsecfs_defensive
#cgo nocallback parsecfs_defensive

typedef struct sqlite3 sqlite3;
typedef struct sqlite3_api_routines sqlite3_api_routines;

// SQLite itself is linked by its driver: here its functions are only named.
extern int sqlite3_auto_extension(void (*)(void)) __attribute__((weak));
extern int sqlite3_db_config(sqlite3 *, int, ...) __attribute__((weak));

#define SQLITE_DBCONFIG_DEFENSIVE      1010
#define SQLITE_DBCONFIG_TRUSTED_SCHEMA 1017

static int defensive(sqlite3 *db, char **message, const sqlite3_api_routines *api) {
	int is = 0;
	int rc = sqlite3_db_config(db, SQLITE_DBCONFIG_DEFENSIVE, 1, &is);
	if (rc == 0 && !is)
		rc = 1;
	if (rc == 0)
		rc = sqlite3_db_config(db, SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0, &is);
	return rc;
}

static int parsecfs_defensive(void) {
	return sqlite3_auto_extension ? sqlite3_auto_extension((void (*)(void))defensive) : 1;
}
*/
import "C"

// Every connection is defensive from its beginning: no SQL, not even that of the file's own schema, can write to the schema
// or to SQLite's internal tables (https://www.sqlite.org/c3ref/c_dbconfig_defensive.html). The driver has no setting for it.
func init() {
	if C.parsecfs_defensive() != 0 {
		panic("SQLite takes no settings for its connections")
	}
}
