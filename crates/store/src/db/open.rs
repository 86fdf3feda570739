//! How the file is made, checked and opened, and what happens to a damaged one.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, params};
use thiserror::Error;

use super::copies::store_copies;
use super::quarantine;
use super::schema::{self, META_CLEAN_SHUTDOWN, META_CLOCK, META_STORE_ID, StoreFileKind};
use super::transaction::{from_sql, to_sql};
use crate::clock::HybridTimestamp;
use crate::limits::{DAMAGED_CONTENTS_COUNTED_MAX, LOG_BYTES_MAX};

/// How long SQLite waits for a lock.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// Suffix of the write-ahead log behind the file's name.
pub(super) const LOG: &str = "-wal";

/// Suffix of the file whose lock says that a process uses the store.
const LOCK: &str = "-lock";

/// Why a store is not opened. The node serves everything else.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreOpenError {
    /// The file is damaged, and lies aside under this path with its log. Until a copy takes its place, or
    /// [`StoreDbOptions::begin_again`](crate::StoreDbOptions::begin_again) is set, every start fails so: a new empty
    /// store would make all contents look unused.
    #[error("the damaged file of names was set aside as {}", quarantined.display())]
    Damaged {
        /// Where the file lies.
        quarantined: PathBuf,
    },
    /// A newer program wrote the file, and this one left it alone.
    #[error("{} has version {version}, and this program knows {known}", path.display(), known = schema::STORE_SCHEMA_VERSION)]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: i64,
    },
    /// The file cannot be used. It may be whole.
    #[error("{} cannot be used: {reason}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the system or the database says.
        reason: String,
    },
}

/// The open file, for the writer.
pub(crate) struct OpenedStoreFile {
    pub(crate) connection: Connection,
    /// The lock of the file, which lasts as long as this.
    pub(crate) lock: File,
    pub(crate) store_id: [u8; 16],
    pub(crate) last_time: Option<HybridTimestamp>,
    pub(crate) last_event: i64,
    /// Contents that proved damaged or lost, as many as are counted.
    pub(crate) damaged_contents: u64,
    pub(crate) was_clean: bool,
    /// Damaged files of earlier starts.
    pub(crate) quarantined: Vec<PathBuf>,
}

/// Why an attempt to open the file fails.
enum AttemptError {
    /// The file is damaged.
    Damaged(String),
    /// The file may be whole, and stays where it is.
    Left(StoreOpenError),
    /// The database refused a statement.
    Refused(String),
}

impl From<rusqlite::Error> for AttemptError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // These two errors say that the file itself is damaged. Any other error may be gone at
            // the next start.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Refused(error.to_string()),
        }
    }
}

/// Opens the file, or makes it.
pub(crate) fn open(path: &Path, begin_again: bool) -> Result<OpenedStoreFile, StoreOpenError> {
    let unusable = |reason: String| StoreOpenError::Unusable {
        path: path.to_owned(),
        reason,
    };
    let lock = lock(path).map_err(unusable)?;
    // Before the look for the file: a log that stayed behind would be replayed into the new file of
    // that name.
    quarantine::finish(path).map_err(|error| unusable(error.to_string()))?;
    let quarantined = quarantine::found(path);
    if let Some(last) = quarantined.last()
        && !begin_again
        && !path.exists()
    {
        let quarantined = last.clone();
        return Err(StoreOpenError::Damaged { quarantined });
    }
    match try_open(path, lock, quarantined, begin_again) {
        Ok(opened) => Ok(opened),
        Err(AttemptError::Left(error)) => Err(error),
        Err(AttemptError::Refused(reason)) => Err(unusable(reason)),
        // The damaged file stays on the disk for an administrator and for `fs/repair`.
        Err(AttemptError::Damaged(reason)) => {
            tracing::error!(%reason, "the file of names is damaged");
            let quarantined =
                quarantine::set_aside(path).map_err(|error| unusable(error.to_string()))?;
            Err(StoreOpenError::Damaged { quarantined })
        }
    }
}

/// Takes the lock of the store. The file itself has readers of its own process, so SQLite's exclusive lock cannot keep
/// other processes away.
pub(super) fn lock(path: &Path) -> Result<File, String> {
    let mut options = OpenOptions::new();
    // A separate file: closing a descriptor of the store itself would drop the POSIX locks that
    // SQLite has on it.
    let options = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600);
    let lock = options.open(quarantine::with(path, LOCK));
    let lock = lock.map_err(|error| error.to_string())?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err("another node uses it; each needs a state directory".to_owned())
        }
        Err(TryLockError::Error(error)) => Err(error.to_string()),
    }
}

fn try_open(
    path: &Path,
    lock: File,
    quarantined: Vec<PathBuf>,
    begin_again: bool,
) -> Result<OpenedStoreFile, AttemptError> {
    // SQLite would make the file with the mode of the umask. It gives its log the mode of the file.
    alknet_durable::private(path).map_err(|error| at(path, &error))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    // Until the checks below have passed, SQLite writes nothing to the file and does not delete its
    // log.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    harden(&connection)?;
    let mut was_clean = true;
    match schema::identify(&connection)? {
        // The file was lost, or lost its bytes: to the collection of a new one, all contents would look unused.
        StoreFileKind::Empty if !begin_again && has_copies(path)? => {
            let reason = "it is empty, and there are copies of it";
            return Err(AttemptError::Damaged(reason.to_owned()));
        }
        StoreFileKind::Empty => {
            connection.execute_batch(schema::CREATION_PRAGMAS)?;
            begin_log(&connection)?;
            connection.pragma_update(None, "synchronous", "FULL")?;
            // The names in a damaged file are not in the new one, so every content looks unused.
            let is_sweep_held = !quarantined.is_empty();
            schema::create(&mut connection, random_id(path)?, is_sweep_held)?;
            // The file's name is on the disk before the first content that only it refers to.
            let folder = path.parent().unwrap_or(path);
            alknet_durable::sync_folder(folder).map_err(|error| at(folder, &error))?;
        }
        StoreFileKind::Ours => was_clean = check(&connection)?,
        // Not damaged: a machine that goes back to the older version may go forward again and needs
        // the file whole.
        StoreFileKind::Newer(version) => {
            let path = path.to_owned();
            return Err(AttemptError::Left(StoreOpenError::Newer { path, version }));
        }
        StoreFileKind::Foreign => {
            return Err(AttemptError::Damaged(
                "it is of another program, or has no tables".to_owned(),
            ));
        }
    }
    configure(&connection)?;
    // Before the first write: a power cut from here on leaves a file without the mark, so that the
    // next start checks it.
    connection.execute("DELETE FROM meta WHERE k = ?1", [META_CLEAN_SHUTDOWN])?;
    connection.execute_batch(schema::LATER_TABLES)?;
    schema::number_rows(&mut connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    let store_id = read_meta(&connection, META_STORE_ID)?;
    let last_time: Option<[u8; HybridTimestamp::BYTES]> = read_meta(&connection, META_CLOCK)?;
    // Not the largest row: the rows of the outbox may all be gone, and a number must not go
    // backwards for a consumer.
    let last_event = "SELECT seq FROM sqlite_sequence WHERE name = 'outbox'";
    let last_event = connection.query_row(last_event, [], |row| row.get(0));
    let most = [to_sql(DAMAGED_CONTENTS_COUNTED_MAX)];
    let damaged = connection.query_row(schema::DAMAGED_CONTENTS, most, |row| row.get(0));
    Ok(OpenedStoreFile {
        store_id: store_id.ok_or_else(|| AttemptError::Damaged("it has no identity".to_owned()))?,
        last_time: last_time.map(HybridTimestamp::from_bytes),
        last_event: last_event.optional()?.unwrap_or(0),
        damaged_contents: from_sql(damaged?),
        connection,
        lock,
        was_clean,
        quarantined,
    })
}

fn has_copies(path: &Path) -> Result<bool, AttemptError> {
    let copies = store_copies(path).map_err(|error| at(path, &error))?;
    Ok(!copies.is_empty())
}

/// Checks the file, and returns whether it was closed in order. Then the check is short: a file that was closed in order
/// and is damaged shows it when a damaged page is read.
fn check(connection: &Connection) -> Result<bool, AttemptError> {
    let clean: Option<i64> = read_meta(connection, META_CLEAN_SHUTDOWN)?;
    if clean.is_some() {
        return Ok(true);
    }
    let check = check_pages(connection)?;
    match check.as_str() {
        "ok" => Ok(false),
        _ => Err(AttemptError::Damaged(check)),
    }
}

/// `ok`, or what is wrong with the pages of the file.
pub(super) fn check_pages(connection: &Connection) -> rusqlite::Result<String> {
    // The short check, which reads no index against its table: the long one would delay the start
    // of a large store.
    connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
}

fn read_meta<T: rusqlite::types::FromSql>(
    connection: &Connection,
    key: &str,
) -> rusqlite::Result<Option<T>> {
    let query = "SELECT v FROM meta WHERE k = ?1";
    connection
        .query_row(query, [key], |row| row.get(0))
        .optional()
}

/// Settings of every connection: a schema that another program wrote into the file cannot run functions, and a damaged
/// page is an error.
fn harden(connection: &Connection) -> rusqlite::Result<()> {
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")
}

/// Gives the file a write-ahead log.
fn begin_log(connection: &Connection) -> Result<(), AttemptError> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // The mode is written to the file behind the answer to the statement. Where the disk fails then, SQLite goes on without
    // a log, and only a read of the file shows it.
    connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    match mode.as_str() {
        "wal" => Ok(()),
        _ => Err(AttemptError::Refused("it gets no log".to_owned())),
    }
}

fn configure(connection: &Connection) -> Result<(), AttemptError> {
    begin_log(connection)?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    // The writer moves pages of the log into the file itself: SQLite would hide an error of the disk at that moment.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    connection.pragma_update(None, "journal_size_limit", to_sql(LOG_BYTES_MAX))?;
    Ok(())
}

/// Opens a connection that reads. The writer has opened the file before.
pub(crate) fn open_reader(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    harden(&connection)?;
    // The only writer is the writing thread; a statement of a reader that writes is a fault of this
    // program.
    connection.pragma_update(None, "query_only", true)?;
    Ok(connection)
}

/// Opens a connection that copies the file. It cannot write to it, and unlike a reader it can write to the copy.
pub(crate) fn open_copier(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    harden(&connection)?;
    Ok(connection)
}

/// Whether the file is one of this program and every page and index of it is whole. The text says what is wrong.
pub(crate) fn check_whole(path: &Path) -> Result<(), String> {
    let check = || -> rusqlite::Result<String> {
        let connection = open_copier(path)?;
        if schema::identify(&connection)? != StoreFileKind::Ours {
            return Ok("it is no file of names of this version".to_owned());
        }
        // The long check: a copy is read once, and may be all that is left one day.
        connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
    };
    match check() {
        Ok(answer) if answer == "ok" => Ok(()),
        Ok(answer) => Err(answer),
        Err(error) => Err(error.to_string()),
    }
}

/// The version of a file that a newer program wrote.
pub(crate) fn newer_version(path: &Path) -> Option<i64> {
    let connection = open_copier(path).ok()?;
    match schema::identify(&connection).ok()? {
        StoreFileKind::Newer(version) => Some(version),
        _ => None,
    }
}

/// Says in the file that it was closed in order.
pub(crate) fn mark_clean(connection: &Connection) -> rusqlite::Result<()> {
    let put = "INSERT OR REPLACE INTO meta VALUES (?1, 1)";
    connection
        .execute(put, params![META_CLEAN_SHUTDOWN])
        .map(drop)
}

fn random_id(path: &Path) -> Result<[u8; 16], AttemptError> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).map_err(|error| at(path, &io::Error::other(error.to_string())))?;
    Ok(id)
}

/// The file system refused an operation on the file at `path`.
fn at(path: &Path, error: &io::Error) -> AttemptError {
    AttemptError::Left(StoreOpenError::Unusable {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}
