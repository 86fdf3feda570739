//! The write-ahead log: when its pages are moved into the file, how long it gets, and what becomes of it after an error of
//! the disk.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};

use super::open::BUSY;
use super::readers::ReadWatch;
use crate::error::StoreError;
use crate::limits::LOG_BYTES_MAX;

/// Pages of the log from which on they are moved into the file after each group.
const CHECKPOINT_PAGES: i64 = 2000;

/// Pause between two attempts to empty the log.
const EMPTY_AGAIN: Duration = Duration::from_secs(1);

/// How long an attempt waits for readers of older states. No write goes on meanwhile.
const EMPTY_WAIT: Duration = Duration::from_millis(100);

/// The log of the file, which only the writer empties.
pub(super) struct StoreLog<'c> {
    connection: &'c Connection,
    path: PathBuf,
    reads: Arc<ReadWatch>,
    /// No attempt to empty the log comes before, unless the writer cannot go on without one.
    next_emptying: Instant,
    /// Whether the disk failed at the log, now or in a process of before. The system reports a lost page once, so that a later
    /// sync would succeed and leave a hole in the middle of the log: a start after a power cut would read nothing behind it.
    is_suspect: bool,
}

/// What a checkpoint says: whether readers were in its way, pages in the log, and those of them that are in the file.
struct Checkpoint {
    is_busy: bool,
    pages: i64,
    moved: i64,
}

impl<'c> StoreLog<'c> {
    /// `was_clean` says that the process before has emptied the log.
    pub(super) fn new(
        connection: &'c Connection,
        path: PathBuf,
        reads: Arc<ReadWatch>,
        was_clean: bool,
    ) -> Self {
        Self {
            connection,
            path,
            reads,
            next_emptying: Instant::now(),
            is_suspect: !was_clean,
        }
    }

    /// Whether the log may have a hole.
    pub(super) const fn is_suspect(&self) -> bool {
        self.is_suspect
    }

    /// Remembers an error of the disk at the log.
    pub(super) fn note_failure(&mut self, error: &rusqlite::Error) {
        if error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure) {
            tracing::error!(%error, "the disk failed at the log of the file of names");
            self.is_suspect = true;
        }
    }

    /// Looks whether a transaction may begin. It may not behind a log with a hole, nor while the log has its full length.
    ///
    /// # Errors
    /// The log cannot be emptied: the disk still fails, or a read keeps it.
    pub(super) fn check(&mut self) -> Result<(), StoreError> {
        if !self.is_suspect && self.len() < LOG_BYTES_MAX {
            return Ok(());
        }
        if self.empty()? {
            return Ok(());
        }
        // Reads are in the way, and may be for as long as they are allowed to take.
        self.reads.cut();
        match self.empty()? {
            true => Ok(()),
            false => Err(StoreError::Busy(
                "a read keeps the log of the file of names",
            )),
        }
    }

    /// Moves pages into the file when there are enough of them, and empties a log that is too long.
    pub(super) fn keep_short(&mut self) {
        if self.is_suspect {
            return;
        }
        if let Err(error) = self.move_pages() {
            tracing::warn!(%error, "the log of the file of names stays as it is");
            self.note_failure(&error);
            return;
        }
        // SQLite itself begins the log again only at a moment at which no reader is within it, and with enough readers no
        // such moment comes.
        if self.len() <= LOG_BYTES_MAX / 2 || Instant::now() < self.next_emptying {
            return;
        }
        // Readers that begin meanwhile do not hinder it, and those of older states end within their time.
        if let Err(error) = self.empty() {
            tracing::warn!(%error, "the log of the file of names cannot be emptied");
        }
        self.next_emptying = Instant::now() + EMPTY_AGAIN;
    }

    fn move_pages(&self) -> rusqlite::Result<()> {
        let Checkpoint { pages, moved, .. } = self.checkpoint("PRAGMA wal_checkpoint(NOOP)")?;
        if pages >= CHECKPOINT_PAGES && moved < pages {
            self.checkpoint("PRAGMA wal_checkpoint(PASSIVE)")?;
        }
        Ok(())
    }

    /// Moves all pages into the file and cuts the log to nothing. Returns `false` if a read keeps it.
    fn empty(&mut self) -> Result<bool, StoreError> {
        self.connection.busy_timeout(EMPTY_WAIT)?;
        let emptied = self.checkpoint("PRAGMA wal_checkpoint(TRUNCATE)");
        self.connection.busy_timeout(BUSY)?;
        if let Err(error) = &emptied {
            self.note_failure(error);
        }
        if emptied?.is_busy {
            return Ok(false);
        }
        if self.is_suspect {
            // The length is on the disk before the next commit: a log with a hole that came back with a power cut would
            // cover pages of the file with older ones. The log has no locks that a close of this descriptor could drop.
            File::open(&self.path)?.sync_all()?;
            tracing::debug!("the log of the file of names begins again");
            self.is_suspect = false;
        }
        Ok(true)
    }

    fn checkpoint(&self, pragma: &str) -> rusqlite::Result<Checkpoint> {
        self.connection.query_row(pragma, [], |row| {
            Ok(Checkpoint {
                is_busy: row.get(0)?,
                pages: row.get(1)?,
                moved: row.get(2)?,
            })
        })
    }

    fn len(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |log| log.len())
    }
}
