//! The file itself: how it is made, checked and opened, and what happens to a damaged one.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::rows::{self, IdentityRows};
use crate::schema::{self, IdentityFileKind};
use crate::{IdentityStoreDiagnostic, quarantine};

/// How long SQLite waits for the lock of an earlier node process that is still ending.
const BUSY: Duration = Duration::from_secs(2);

/// Suffix of the write-ahead log behind the file's name.
const LOG: &str = "-wal";

/// Why the node does not use a file.
enum IdentityFileError {
    /// The file is damaged and cannot be repaired.
    Damaged,
    /// The file may be whole, and stays where it is.
    Left(IdentityStoreDiagnostic),
}

impl From<rusqlite::Error> for IdentityFileError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // These two errors say that the file itself is damaged. Any other error may be gone at
            // the next start.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged,
            // The database is opened with an exclusive lock, so a busy file belongs to another
            // running node.
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Left(IdentityStoreDiagnostic::Unusable(
                    "another node uses it; each needs a state directory".to_owned(),
                ))
            }
            _ => Self::Left(IdentityStoreDiagnostic::Unusable(error.to_string())),
        }
    }
}

impl IdentityFileError {
    /// The file system refused an operation on the file at `path`, or on one of its companions.
    fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| {
            let why = format!("{}: {error}", path.display());
            Self::Left(IdentityStoreDiagnostic::Unusable(why))
        }
    }
}

/// Opens the file and reads everything in it. Returns `None` if it cannot be used. A damaged file
/// is set aside, and a new one is created.
pub(crate) fn open(
    path: &Path,
    found: &mut Vec<IdentityStoreDiagnostic>,
) -> Option<(Connection, IdentityRows)> {
    let refused = match try_open(path, found) {
        Ok(opened) => return Some(opened),
        // The damaged file stays on the disk for an administrator: it may have the last record of
        // the peers.
        Err(IdentityFileError::Damaged) => set_aside(path, found),
        Err(refused) => Err(refused),
    };
    match refused {
        Ok(opened) => Some(opened),
        Err(IdentityFileError::Left(diagnostic)) => {
            found.push(diagnostic);
            None
        }
        // The file in the damaged one's place is a new one, so a second damage points at the disk.
        Err(IdentityFileError::Damaged) => {
            let what = "a new one is damaged at once: is the disk well?";
            found.push(IdentityStoreDiagnostic::Unusable(what.to_owned()));
            None
        }
    }
}

/// Moves the content of the log into the file and empties the log. Returns when both are on the
/// disk.
///
/// SQLite stops reading a log at the first frame with a wrong checksum, and reports nothing. If one
/// block of the log is damaged after a power cut, every change from that block on is undone, and a
/// removed peer is let in again. A damaged page of the file is reported.
pub(crate) fn settle(connection: &Connection, path: &Path) -> Result<(), String> {
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    let is_busy: bool = connection
        .query_row(checkpoint, [], |row| row.get(0))
        .map_err(|error| error.to_string())?;
    if is_busy {
        return Err("another process reads it".to_owned());
    }
    // SQLite does not wait until the disk has the log's new length. Without this `fsync`, a power
    // cut could bring the old log back, with a damaged block.
    match File::open(quarantine::with(path, LOG)).and_then(|log| log.sync_all()) {
        // A missing log has nothing that could come back.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(()),
    }
}

fn set_aside(
    path: &Path,
    found: &mut Vec<IdentityStoreDiagnostic>,
) -> Result<(Connection, IdentityRows), IdentityFileError> {
    quarantine::set(path).map_err(IdentityFileError::at(path))?;
    try_open(path, found)
}

fn try_open(
    path: &Path,
    found: &mut Vec<IdentityStoreDiagnostic>,
) -> Result<(Connection, IdentityRows), IdentityFileError> {
    quarantine::finish(path).map_err(IdentityFileError::at(path))?;
    // SQLite would make the file with the mode of the umask. It gives its log the mode of the file.
    alknet_durable::private(path).map_err(IdentityFileError::at(path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // A node process that is ending holds the file's lock for a moment.
    connection.busy_timeout(BUSY)?;
    // Until the check below has passed, SQLite writes nothing to the file and does not delete its
    // log.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // The lock is taken before the first read: no other process may change the file meanwhile, and
    // SQLite needs no third file to share the log's index.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // A schema that another program wrote into the file cannot run functions.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    let check: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(IdentityFileError::Damaged);
    }
    let what = schema::identify(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    match what {
        IdentityFileKind::Empty | IdentityFileKind::Ours => {}
        // A newer program's tables may have rights that this program does not know, so it leaves
        // them alone.
        IdentityFileKind::Newer(version) => {
            return Err(IdentityFileError::Left(IdentityStoreDiagnostic::Newer(
                version,
            )));
        }
        IdentityFileKind::Foreign => return Err(IdentityFileError::Damaged),
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Deleted rows are hashes and sealed secrets: SQLite overwrites them instead of marking their
    // pages as free.
    connection.pragma_update(None, "secure_delete", true)?;
    if what == IdentityFileKind::Empty {
        schema::create(&mut connection)?;
    }
    let rows = rows::read(&connection, found)?;
    Ok((connection, rows))
}
