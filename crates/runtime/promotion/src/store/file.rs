//! Creates, checks and opens the file.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, TransactionBehavior};

use super::PromotionStoreError;

/// The `application_id` of the file: "alkp".
const APPLICATION_ID: i64 = 0x616c_6b70;
/// The `user_version` of the file. A program that finds a higher version does not touch the file.
pub(super) const SCHEMA_VERSION: i64 = 1;
/// How long to wait for an earlier process that has not ended yet.
const BUSY: Duration = Duration::from_secs(2);

/// The tables. Values for lookups are columns, and the rest is JSON. Entries of the record are only ever added.
const TABLES: &str = "
CREATE TABLE generation (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    number INTEGER NOT NULL
) STRICT;
INSERT INTO generation VALUES (1, 0);
CREATE TABLE proposals (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    digest TEXT NOT NULL,
    name TEXT NOT NULL,
    author TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('proposed', 'promoted', 'rejected', 'retired')),
    at_s INTEGER,
    found TEXT NOT NULL,
    document TEXT NOT NULL
) STRICT;
CREATE TABLE reviews (
    id TEXT NOT NULL REFERENCES proposals (id) ON DELETE CASCADE,
    reviewer TEXT NOT NULL,
    terms TEXT NOT NULL,
    PRIMARY KEY (id, reviewer)
) STRICT, WITHOUT ROWID;
CREATE TABLE versions (
    path TEXT NOT NULL,
    version INTEGER NOT NULL,
    id TEXT NOT NULL REFERENCES proposals (id),
    terms TEXT NOT NULL,
    replaced INTEGER,
    generation INTEGER NOT NULL,
    at_s INTEGER,
    calls INTEGER NOT NULL DEFAULT 0,
    errors INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (path, version)
) STRICT, WITHOUT ROWID;
CREATE INDEX versions_by_id ON versions (id);
CREATE TABLE heads (
    path TEXT NOT NULL PRIMARY KEY,
    version INTEGER NOT NULL,
    FOREIGN KEY (path, version) REFERENCES versions (path, version)
) STRICT, WITHOUT ROWID;
CREATE TABLE audit (
    seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at_s INTEGER,
    who TEXT NOT NULL,
    did TEXT NOT NULL,
    id TEXT NOT NULL,
    path TEXT,
    version INTEGER,
    generation INTEGER,
    note TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_id ON audit (id);
CREATE TRIGGER audit_stays BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the record is only added to'); END;
CREATE TRIGGER audit_as_it_was BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the record is only added to'); END;
";

/// Opens the file, and creates it if it is missing.
pub(super) fn open(path: &Path) -> Result<Connection, PromotionStoreError> {
    // SQLite would use the umask for the mode, and gives its log the same mode as the file.
    alknet_durable::private(path)
        .map_err(|error| PromotionStoreError::Unusable(error.to_string()))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    // SQLite writes nothing to the file and does not delete its log until the file's integrity is checked.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // One process holds the file: a second one would promote without the first one's knowledge.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // The file may be damaged or foreign, so functions that its schema names must not run (SQLite: PRAGMA
    // trusted_schema).
    connection.pragma_update(None, "trusted_schema", false)?;
    // This detects damaged pages before their content is used (SQLite: PRAGMA cell_size_check).
    connection.pragma_update(None, "cell_size_check", true)?;
    let check: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(PromotionStoreError::Damaged(check));
    }
    let empty = is_empty(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // In WAL mode, NORMAL would lose the last decisions at a power cut (SQLite: PRAGMA synchronous).
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    if empty {
        create(&mut connection)?;
    }
    Ok(connection)
}

/// Moves the content of the log into the file, and empties the log. Returns when the disk has both.
///
/// SQLite ends a log at the first frame with a wrong checksum and reports no error. An attacker who damages one block
/// of it after a power cut would undo all later decisions, and a version that was rolled back would run again.
///
/// # Errors
/// The reason why the log is not empty. All of its content is still in force.
pub(super) fn empty_log(connection: &Connection) -> Result<(), String> {
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    let is_busy: bool = connection
        .query_row(checkpoint, [], |row| row.get(0))
        .map_err(|error| error.to_string())?;
    if is_busy {
        return Err("another process reads it".to_owned());
    }
    let Some(path) = connection.path() else {
        return Ok(());
    };
    // SQLite does not wait until the disk has the new length.
    match File::open(format!("{path}-wal")).and_then(|log| log.sync_all()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

/// Whether the file is empty; an error if it belongs to another program.
fn is_empty(connection: &Connection) -> Result<bool, PromotionStoreError> {
    let number = |pragma| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    let (application, version) = (number("application_id")?, number("user_version")?);
    let tables = "SELECT count(*) FROM sqlite_schema";
    let tables: i64 = connection.query_row(tables, [], |row| row.get(0))?;
    match (application, version) {
        (0, 0) if tables == 0 => Ok(true),
        (APPLICATION_ID, SCHEMA_VERSION) => Ok(false),
        (APPLICATION_ID, later) if later > SCHEMA_VERSION => Err(PromotionStoreError::Newer(later)),
        _ => Err(PromotionStoreError::Unusable(
            "it is the database of another program".to_owned(),
        )),
    }
}

fn create(connection: &mut Connection) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    transaction.commit()
}
