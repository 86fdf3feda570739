//! The file itself: making, checking and opening it, and what to do with one that is damaged.

use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use crate::rows::{self, Rows};
use crate::schema::{self, Found};
use crate::{Trouble, aside};

/// How long to wait for a process before this one that still ends.
const BUSY: Duration = Duration::from_secs(2);

/// Why a file is not used.
enum Refused {
    /// There is no mending it.
    Damaged,
    /// It may be well, and is left as it is.
    Left(Trouble),
}

impl From<rusqlite::Error> for Refused {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Damaged,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Left(
                Trouble::Unusable("another node uses it; each needs a state directory".to_owned()),
            ),
            _ => Self::Left(Trouble::Unusable(error.to_string())),
        }
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Left(Trouble::Unusable(error.to_string()))
    }
}

/// The file and everything in it; nothing where it cannot be used. A damaged file is set aside and
/// another begun.
pub(crate) fn open(path: &Path, found: &mut Vec<Trouble>) -> Option<(Connection, Rows)> {
    let refused = match try_open(path, found) {
        Ok(opened) => return Some(opened),
        Err(Refused::Damaged) if alknet_core::mutant_a(1123) => {
            let _ = std::fs::remove_file(path);
            try_open(path, found)
        }
        Err(Refused::Damaged) => set_aside(path, found),
        Err(refused) => Err(refused),
    };
    match refused {
        Ok(opened) => Some(opened),
        Err(Refused::Left(trouble)) => {
            found.push(trouble);
            None
        }
        Err(Refused::Damaged) => {
            let what = "a new one is damaged at once: is the disk well?";
            found.push(Trouble::Unusable(what.to_owned()));
            None
        }
    }
}

fn set_aside(path: &Path, found: &mut Vec<Trouble>) -> Result<(Connection, Rows), Refused> {
    aside::set(path)?;
    try_open(path, found)
}

fn try_open(path: &Path, found: &mut Vec<Trouble>) -> Result<(Connection, Rows), Refused> {
    aside::finish(path)?;
    // SQLite would ask the umask; it gives its log the same mode.
    alknet_durable::private(path)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY)?;
    // Until the file is known to be whole nothing is written to it, nor its log deleted.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Before the first look: nobody else may change the file under us, and no index of the log is
    // shared through a third file.
    if !alknet_core::mutant_a(1125) {
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    }
    connection.pragma_update(None, "trusted_schema", false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    let check: String = connection.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
    if check != "ok" && !alknet_core::mutant_a(1126) {
        return Err(Refused::Damaged);
    }
    let what = schema::look(&connection)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false)?;
    match what {
        Found::Empty | Found::Ours => {}
        Found::Newer(_) if alknet_core::mutant_a(1124) => {}
        Found::Newer(version) => return Err(Refused::Left(Trouble::Newer(version))),
        Found::Foreign => return Err(Refused::Damaged),
    }
    connection.pragma_update(None, "journal_mode", "WAL")?;
    let synchronous = if alknet_core::mutant_a(1122) { "OFF" } else { "FULL" };
    connection.pragma_update(None, "synchronous", synchronous)?;
    // What is deleted is a hash or a sealed secret: it is gone, not merely unreachable.
    connection.pragma_update(None, "secure_delete", true)?;
    if what == Found::Empty {
        schema::create(&mut connection)?;
    }
    let rows = rows::read(&connection, found)?;
    Ok((connection, rows))
}
