package kim

// applicationID marks the file as ours (PRAGMA application_id): "PFKM".
const applicationID = 0x50464b4d

// schema is the version of the layout that this program writes, PRAGMA user_version.
const schema = len(migrations)

// migrations[n] makes version n+1 of version n, in one transaction. Those that were ever released do not change.
var migrations = [...]string{`
-- Every number of a provider, key or alias, so that no two share one and none comes back.
CREATE TABLE numbers (
	number INTEGER PRIMARY KEY AUTOINCREMENT
) STRICT;

CREATE TABLE providers (
	number       INTEGER PRIMARY KEY REFERENCES numbers(number),
	uuid         BLOB NOT NULL UNIQUE,
	name         TEXT NOT NULL UNIQUE,
	type         TEXT NOT NULL,
	is_default   INTEGER NOT NULL DEFAULT 0,
	identity     TEXT NOT NULL DEFAULT '',
	capabilities TEXT NOT NULL DEFAULT '',
	created      INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX providers_default ON providers(is_default) WHERE is_default = 1;

-- Times are in nanoseconds since 1970. before_* is what an aborted creation or destruction goes back to.
CREATE TABLE keys (
	number           INTEGER PRIMARY KEY REFERENCES numbers(number),
	uuid             BLOB NOT NULL UNIQUE,
	provider         INTEGER NOT NULL REFERENCES providers(number),
	name             TEXT NOT NULL,
	state            TEXT NOT NULL,
	hidden           INTEGER NOT NULL DEFAULT 0,
	handle           BLOB,
	type             INTEGER NOT NULL DEFAULT 0,
	bits             INTEGER NOT NULL DEFAULT 0,
	algorithm        INTEGER NOT NULL DEFAULT 0,
	usage            INTEGER NOT NULL DEFAULT 0,
	template         TEXT NOT NULL DEFAULT '',
	origin           TEXT NOT NULL DEFAULT '',
	uid              INTEGER NOT NULL,
	gid              INTEGER NOT NULL,
	created          INTEGER NOT NULL,
	changed          INTEGER NOT NULL,
	allow_destroy    INTEGER NOT NULL DEFAULT 1,
	before_state     TEXT,
	before_type      INTEGER,
	before_bits      INTEGER,
	before_algorithm INTEGER,
	before_usage     INTEGER,
	before_template  TEXT,
	public           BLOB,
	secret           BLOB
) STRICT;
CREATE UNIQUE INDEX keys_name ON keys(provider, name);
CREATE UNIQUE INDEX keys_handle ON keys(provider, handle) WHERE handle IS NOT NULL;
CREATE INDEX keys_journal ON keys(provider, number) WHERE state IN ('creating', 'destroying');

-- How many keys each creator has: the quota, without counting them every time.
CREATE TABLE owners (
	uid  INTEGER PRIMARY KEY,
	keys INTEGER NOT NULL
) STRICT;
CREATE TRIGGER owners_insert AFTER INSERT ON keys BEGIN
	INSERT INTO owners(uid, keys) VALUES (new.uid, 1) ON CONFLICT(uid) DO UPDATE SET keys = keys + 1;
END;
CREATE TRIGGER owners_delete AFTER DELETE ON keys BEGIN
	UPDATE owners SET keys = keys - 1 WHERE uid = old.uid;
	DELETE FROM owners WHERE uid = old.uid AND keys <= 0;
END;

CREATE TABLE inodes (
	ino         INTEGER PRIMARY KEY,
	mode        INTEGER,
	uid         INTEGER,
	gid         INTEGER,
	acl         BLOB,
	default_acl BLOB,
	atime       INTEGER,
	mtime       INTEGER,
	ctime       INTEGER
) STRICT;

CREATE TABLE xattrs (
	ino   INTEGER NOT NULL,
	name  TEXT NOT NULL,
	value BLOB NOT NULL,
	PRIMARY KEY (ino, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE aliases (
	number  INTEGER PRIMARY KEY REFERENCES numbers(number),
	name    TEXT NOT NULL UNIQUE,
	target  TEXT NOT NULL,
	uid     INTEGER NOT NULL,
	gid     INTEGER NOT NULL,
	changed INTEGER NOT NULL
) STRICT;

CREATE TABLE data_key (
	one         INTEGER PRIMARY KEY CHECK (one = 1),
	kind        TEXT NOT NULL,
	wrapping_id BLOB NOT NULL,
	wrapped     BLOB NOT NULL
) STRICT;
`, `
-- The systemd units that may use the key, joined by spaces; '' is no restriction.
ALTER TABLE keys ADD COLUMN units TEXT NOT NULL DEFAULT '';

-- Chains in PEM that are kept beside their keys.
CREATE TABLE certificates (
	key   INTEGER PRIMARY KEY REFERENCES keys(number) ON DELETE CASCADE,
	chain BLOB NOT NULL
) STRICT;
`, `
-- The registers of a TPM that the key is bound to, a bit each.
ALTER TABLE keys ADD COLUMN pcrs INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN before_pcrs INTEGER;
`, `
-- Which device has an adopted key, and what it calls it there: no two rows have one object.
ALTER TABLE keys ADD COLUMN device TEXT NOT NULL DEFAULT '';
ALTER TABLE keys ADD COLUMN object TEXT NOT NULL DEFAULT '';
CREATE UNIQUE INDEX keys_object ON keys(device, object) WHERE object <> '';

-- The data key once more, wrapped by the recovery key, which lies with its owner.
CREATE TABLE recovery_key (
	one         INTEGER PRIMARY KEY CHECK (one = 1),
	wrapping_id BLOB NOT NULL,
	wrapped     BLOB NOT NULL
) STRICT;

-- The registers of a TPM that the wrapping is bound to, and the wrapping key file that it took the place of.
ALTER TABLE data_key ADD COLUMN pcrs INTEGER NOT NULL DEFAULT 0;
ALTER TABLE data_key ADD COLUMN before_id BLOB;
`, `
-- Whether encryption takes a nonce of the caller's choice; a copy of a key that takes none is bound to that.
ALTER TABLE keys ADD COLUMN caller_nonce INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN nonce_bound INTEGER NOT NULL DEFAULT 0;
`, `
-- A row's mac proves that we wrote it (RowKey). files is a bit for each file of the row's number that has a row in
-- inodes, so that a row which was taken away is missed; certificate is the SHA-256 of the chain beside the key.
ALTER TABLE keys ADD COLUMN files BLOB;
ALTER TABLE keys ADD COLUMN certificate BLOB;
ALTER TABLE keys ADD COLUMN mac BLOB;
ALTER TABLE providers ADD COLUMN files BLOB;
ALTER TABLE providers ADD COLUMN mac BLOB;
ALTER TABLE aliases ADD COLUMN files BLOB;
ALTER TABLE aliases ADD COLUMN mac BLOB;
ALTER TABLE inodes ADD COLUMN mac BLOB;
ALTER TABLE xattrs ADD COLUMN mac BLOB;
ALTER TABLE data_key ADD COLUMN mac BLOB;

-- What belongs to the store as a whole: the files of the tree's top (number 0), the highest number of a provider whose
-- row has a mac, and the generation, which a counter elsewhere is compared with.
CREATE TABLE anchor (
	one        INTEGER PRIMARY KEY CHECK (one = 1),
	files      BLOB,
	providers  INTEGER NOT NULL DEFAULT 0,
	generation INTEGER NOT NULL DEFAULT 0,
	counter    BLOB,
	mac        BLOB
) STRICT;

-- How many nonces were made at random with the key, or may have been, and how many forgeries of short tags were refused. A
-- copy has a share of both of its source's bounds.
ALTER TABLE keys ADD COLUMN nonces INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN failures INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN copied INTEGER NOT NULL DEFAULT 0;
UPDATE keys SET copied = nonce_bound;
`, `
-- Whose own the key's name is: 0 for a name among those that all users share, else the user's uid + 1.
ALTER TABLE keys ADD COLUMN space INTEGER NOT NULL DEFAULT 0;
DROP INDEX keys_name;
CREATE UNIQUE INDEX keys_name ON keys(provider, space, name);

-- The directories of users' own names have no row until something of one differs from the default. files are those of
-- 256 of them, whose inodes follow each other, that have a row in inodes.
CREATE TABLE users (
	number INTEGER PRIMARY KEY,
	files  BLOB,
	mac    BLOB
) STRICT;
`, `
-- A row of users that was taken away is missed: which of 256 of them are there is said by a row above them, with a negative
-- number, and so on up to the provider's row (space.go). anchor.users is 1 once all that were there are known.
ALTER TABLE providers ADD COLUMN users BLOB;
ALTER TABLE anchor ADD COLUMN users INTEGER NOT NULL DEFAULT 0;
-- Counts of keys have MACs too, so that a start need not count them. That of all users together is under -1, the number of
-- users under -2; the next guard counts anew.
DROP TRIGGER owners_insert;
DROP TRIGGER owners_delete;
ALTER TABLE owners ADD COLUMN mac BLOB;

-- The drafts, among which old ones are looked for: there may be many keys and few drafts.
CREATE INDEX keys_drafts ON keys(number) WHERE state = 'draft';
`}
