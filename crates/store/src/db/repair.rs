//! Repair of a damaged file of names: the newest good copy, and the changes of the damaged file's outbox after it.
//!
//! Contents are not touched, and none is swept until the hold is released: the names of what is lost may still come back
//! from a peer or an administrator.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension, params};
use thiserror::Error;

use super::copies::{StoreCopy, remove_if_there, store_copies, sync_file};
use super::open::{self, StoreOpenError};
use super::schema::{META_CLEAN_SHUTDOWN, META_EVENTS_PRUNED, META_LAST_JOB, META_SWEEP_HELD};
use super::space::SpaceWatch;
use super::tail::{LostEvent, OutboxTail, ReplayCount};
use super::{StoreDb, StoreDbOptions, quarantine, to_sql};
use crate::error::StoreError;
use crate::limits::REPAIR_NUMBERS_SKIPPED;

/// Suffix of the file that a repair works on.
const REPAIR: &str = "-repair";

/// Suffixes of the files that a repair leaves beside its own when the power is cut.
const BESIDE_REPAIR: [&str; 6] = ["", "-wal", "-shm", "-journal", "-lock", "-reserve"];

/// Tables whose numbers are never used again.
const NUMBERED: [&str; 4] = ["outbox", "commit_", "bucket", "branch"];

/// Why a repair did nothing. Every file is where it was, but a damaged one may have been set aside.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreRepairError {
    /// The file is whole, or there never was one.
    #[error("there is no damaged file of names")]
    NotDamaged,
    /// No copy is good. An administrator can begin again with
    /// [`StoreDbOptions::begin_again`](crate::StoreDbOptions::begin_again).
    #[error("no copy of the file of names is good; {} were looked at", rejected.len())]
    NoCopy {
        /// The copies that are damaged.
        rejected: Vec<PathBuf>,
    },
    /// The repaired file cannot be opened.
    #[error(transparent)]
    Open(#[from] StoreOpenError),
    /// The repaired file takes no change, or there is no room for it.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<rusqlite::Error> for StoreRepairError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Store(error.into())
    }
}

impl From<io::Error> for StoreRepairError {
    fn from(error: io::Error) -> Self {
        Self::Store(error.into())
    }
}

/// What a repair did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreRepair {
    /// The copy that the file begins with.
    pub copy: StoreCopy,
    /// Newer copies that are damaged. They stay.
    pub rejected: Vec<PathBuf>,
    /// Where the damaged file lies.
    pub damaged: PathBuf,
    /// Events after the copy whose changes were made again.
    pub recovered: u64,
    /// Events after the copy whose changes could not be made again. A version without its attributes counts here and there.
    pub lost: u64,
    /// The first of them, at most [`LOST_EVENTS_LISTED_MAX`](crate::limits::LOST_EVENTS_LISTED_MAX).
    pub lost_events: Vec<LostEvent>,
    /// Whether every event after the copy could be read. Otherwise further changes are lost, and nothing says which.
    pub is_tail_whole: bool,
}

/// Puts a repaired file in the place of a damaged one. No process may have the store open. Blocks on the disk.
///
/// A power cut leaves the damaged file and the copies as they are, and the next call begins again.
///
/// # Errors
/// [`StoreRepairError`] says why there is no repaired file.
pub fn repair_store(
    path: &Path,
    options: &StoreDbOptions,
) -> Result<StoreRepair, StoreRepairError> {
    let unusable = |reason: String| StoreOpenError::Unusable {
        path: path.to_owned(),
        reason,
    };
    // Held to the end: a node that starts meanwhile must not open the file half-way.
    let lock = open::lock(path).map_err(unusable)?;
    quarantine::finish(path)?;
    let damaged = set_damaged_aside(path)?;
    let (copy, rejected) = newest_good_copy(path)?;
    let new = quarantine::with(path, REPAIR);
    remove_all(&new)?;
    let repaired = rebuild(path, &new, &copy, &damaged, options);
    let repaired = repaired.and_then(|it| {
        fs::rename(&new, path)?;
        alknet_durable::sync_folder(path.parent().unwrap_or(path))?;
        Ok(it)
    });
    // After a failure the half of a file would only take room.
    let removed = remove_all(&new);
    let (count, is_tail_whole) = repaired?;
    removed?;
    drop(lock);
    tracing::warn!(
        recovered = count.recovered,
        lost = count.lost,
        "the file of names was repaired from a copy"
    );
    Ok(StoreRepair {
        copy,
        rejected,
        damaged,
        recovered: count.recovered,
        lost: count.lost,
        lost_events: count.lost_events,
        is_tail_whole,
    })
}

/// The damaged file, which lies aside when this returns.
fn set_damaged_aside(path: &Path) -> Result<PathBuf, StoreRepairError> {
    if path.exists() {
        // A newer program can still use it, and it may be whole.
        if let Some(version) = open::newer_version(path) {
            let path = path.to_owned();
            return Err(StoreOpenError::Newer { path, version }.into());
        }
        // A start that was in order checks little, so the node may have found the damage later.
        return match open::check_whole(path) {
            Ok(()) => Err(StoreRepairError::NotDamaged),
            Err(reason) => {
                tracing::error!(%reason, "the file of names is damaged");
                Ok(quarantine::set_aside(path)?)
            }
        };
    }
    let last = quarantine::found(path).pop();
    last.ok_or(StoreRepairError::NotDamaged)
}

/// The newest copy that is whole, and the newer ones that are not.
fn newest_good_copy(path: &Path) -> Result<(StoreCopy, Vec<PathBuf>), StoreRepairError> {
    let mut rejected = Vec::new();
    for copy in store_copies(path)? {
        match open::check_whole(&copy.path) {
            Ok(()) => return Ok((copy, rejected)),
            Err(reason) => {
                tracing::warn!(%reason, copy = %copy.path.display(), "a copy is damaged");
                rejected.push(copy.path);
            }
        }
    }
    Err(StoreRepairError::NoCopy { rejected })
}

fn remove_all(new: &Path) -> io::Result<()> {
    BESIDE_REPAIR
        .iter()
        .try_for_each(|suffix| remove_if_there(&quarantine::with(new, suffix)))
}

/// Makes the repaired file under its own name, closed and on the disk.
fn rebuild(
    path: &Path,
    new: &Path,
    copy: &StoreCopy,
    damaged: &Path,
    options: &StoreDbOptions,
) -> Result<(ReplayCount, bool), StoreRepairError> {
    let bytes = fs::metadata(&copy.path)?.len();
    let space = SpaceWatch::new(path, options.space.clone());
    // Asked before the first byte: a full disk would fail the replay of each event.
    if !space.measure()?.has_room_for(bytes) {
        return Err(StoreError::NoSpace.into());
    }
    alknet_durable::private(new)?;
    fs::copy(&copy.path, new)?;
    let mut tail = OutboxTail::open(damaged, &store_id(new)?);
    let after = prepare(new, &tail)?;
    let options = StoreDbOptions {
        begin_again: false,
        ..options.clone()
    };
    let db = StoreDb::open(new, options)?;
    let mut count = ReplayCount::default();
    let replayed = tail.replay(&db, after, &mut count);
    drop(db);
    replayed?;
    unmark_clean(new)?;
    sync_file(new)?;
    Ok((count, tail.is_whole()))
}

/// The identity in a file.
fn store_id(file: &Path) -> rusqlite::Result<Vec<u8>> {
    let connection = open::open_copier(file)?;
    let query = "SELECT v FROM meta WHERE k = 'store_id'";
    let id = connection.query_row(query, [], |row| row.get(0));
    Ok(id.optional()?.unwrap_or_default())
}

/// Sets the marks of a repaired file, and takes its numbers beyond those of the damaged one. Returns the number of the last
/// event that the copy has.
fn prepare(new: &Path, tail: &OutboxTail) -> rusqlite::Result<i64> {
    let mut connection = Connection::open(new)?;
    let transaction = connection.transaction()?;
    let mut last_event = 0;
    for table in NUMBERED {
        let known = "SELECT seq FROM sqlite_sequence WHERE name = ?1";
        let known: Option<i64> = transaction
            .query_row(known, [table], |row| row.get(0))
            .optional()?;
        let known = known.unwrap_or(0);
        // Numbers of the damaged file are in cursors, addresses and peers. One that is used again
        // would mean something else there.
        let skipped = known.saturating_add(to_sql(REPAIR_NUMBERS_SKIPPED));
        let next = tail.last_number(table, known).unwrap_or(skipped);
        transaction.execute("DELETE FROM sqlite_sequence WHERE name = ?1", [table])?;
        let set = "INSERT INTO sqlite_sequence(name, seq) VALUES (?1, ?2)";
        transaction.execute(set, params![table, next])?;
        if table == "outbox" {
            last_event = known;
            // Every cursor of before is behind this mark, so that each consumer learns that it has
            // to list again.
            set_meta(&transaction, META_EVENTS_PRUNED, next)?;
        }
    }
    transaction.execute("DELETE FROM outbox", [])?;
    let job = "SELECT v FROM meta WHERE k = ?1";
    let job: Option<i64> = transaction
        .query_row(job, [META_LAST_JOB], |row| row.get(0))
        .optional()?;
    let job = job
        .unwrap_or(0)
        .saturating_add(to_sql(REPAIR_NUMBERS_SKIPPED));
    set_meta(&transaction, META_LAST_JOB, job)?;
    set_meta(&transaction, META_SWEEP_HELD, 1)?;
    // The copy may lack changes that peers have by now. Their numbers must not be used again, and a
    // copy of a document with another identity begins its own.
    transaction.execute("UPDATE sync_doc SET doc_id = randomblob(16)", [])?;
    transaction.commit()?;
    Ok(last_event)
}

fn set_meta(connection: &Connection, key: &str, value: i64) -> rusqlite::Result<()> {
    let put = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
    connection.execute(put, params![key, value]).map(drop)
}

/// The next start verifies the contents of the last writes, as after a power cut.
fn unmark_clean(new: &Path) -> Result<(), StoreRepairError> {
    let connection = Connection::open(new)?;
    let delete = "DELETE FROM meta WHERE k = ?1";
    connection.execute(delete, [META_CLEAN_SHUTDOWN])?;
    // Without a log, because the rename that follows takes the file alone. The next start makes one
    // again.
    connection.pragma_update(None, "journal_mode", "DELETE")?;
    let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
    if mode == "delete" {
        Ok(())
    } else {
        Err(StoreError::Busy("another program uses the repaired file").into())
    }
}

#[cfg(test)]
mod tests;
