//! The file itself: making, checking and opening it, and what to do with one that is damaged.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::rows::{self, IdentityRows};
use crate::schema::{self, IdentityFileKind};
use crate::{IdentityStoreDiagnostic, quarantine};

/// How long to wait for a process before this one that still ends.
const BUSY: Duration = Duration::from_secs(2);

/// What the name of the log has behind the file's.
const LOG: &str = "-wal";

/// Why a file is not used.
enum IdentityFileError {
    /// There is no mending it.
    Damaged,
    /// It may be well, and is left as it is.
    Left(IdentityStoreDiagnostic),
}

impl From<rusqlite::Error> for IdentityFileError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            // These two are known of the file itself; any other error may be over at the next start.
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged,
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
    /// The system refused what was done with the file at `path`, or beside it.
    fn at(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| {
            let why = format!("{}: {error}", path.display());
            Self::Left(IdentityStoreDiagnostic::Unusable(why))
        }
    }
}

/// The file and everything in it; nothing where it cannot be used. A damaged file is set aside and
/// another begun.
pub(crate) fn open(
    path: &Path,
    found: &mut Vec<IdentityStoreDiagnostic>,
) -> Option<(Connection, IdentityRows)> {
    let refused = match try_open(path, found) {
        Ok(opened) => return Some(opened),
        // What is damaged is kept for an administrator: it may be all that is left of the peers.
        Err(IdentityFileError::Damaged) => set_aside(path, found),
        Err(refused) => Err(refused),
    };
    match refused {
        Ok(opened) => Some(opened),
        Err(IdentityFileError::Left(diagnostic)) => {
            found.push(diagnostic);
            None
        }
        Err(IdentityFileError::Damaged) => {
            let what = "a new one is damaged at once: is the disk well?";
            found.push(IdentityStoreDiagnostic::Unusable(what.to_owned()));
            None
        }
    }
}

/// Moves what the log has into the file, and empties the log; returns when both are on the disk.
///
/// SQLite ends a log at the first frame whose checksum is wrong, without a word: damage to one block of it after a
/// power cut undoes every change from there on, so that a removed peer is let in. A damaged page of the file is found.
pub(crate) fn settle(connection: &Connection, path: &Path) -> Result<(), String> {
    let checkpoint = "PRAGMA wal_checkpoint(TRUNCATE)";
    let is_busy: bool = connection
        .query_row(checkpoint, [], |row| row.get(0))
        .map_err(|error| error.to_string())?;
    if is_busy {
        return Err("another process reads it".to_owned());
    }
    // SQLite does not wait until the disk has the new length. The old log would count again, with a damaged block.
    match File::open(quarantine::with(path, LOG)).and_then(|log| log.sync_all()) {
        // Without a log there is nothing that could count again.
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
    // SQLite would ask the umask; it gives its log the same mode.
    alknet_durable::private(path).map_err(IdentityFileError::at(path))?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    // A node that is ending still holds the file for a moment.
    connection.busy_timeout(BUSY)?;
    // Until the file is known to be whole nothing is written to it, nor its log deleted.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Before the first look: no other process may change the file meanwhile, and the index of the
    // log is not shared through a third file.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    // A schema that another program wrote into the file runs no functions.
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    let check: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if check != "ok" {
        return Err(IdentityFileError::Damaged);
    }
    let what = schema::look(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    match what {
        IdentityFileKind::Empty | IdentityFileKind::Ours => {}
        // A newer program's tables are left alone: this one does not know what is in them.
        IdentityFileKind::Newer(version) => {
            return Err(IdentityFileError::Left(IdentityStoreDiagnostic::Newer(
                version,
            )));
        }
        IdentityFileKind::Foreign => return Err(IdentityFileError::Damaged),
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What is deleted is a hash or a sealed secret: it is gone, not merely unreachable.
    connection.pragma_update(None, "secure_delete", true)?;
    if what == IdentityFileKind::Empty {
        schema::create(&mut connection)?;
    }
    let rows = rows::read(&connection, found)?;
    Ok((connection, rows))
}
