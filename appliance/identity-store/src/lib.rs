//! Peers, tokens and sealed secrets that are made while a node runs, kept in one SQLite file:
//! `identity/identity.db` below the state directory.
//!
//! The file is written ahead (WAL) with `synchronous=FULL`: a change is one append with a checksum and one `fsync`,
//! and a power cut during it leaves the entries of before. The store answers a change once it has moved the log into
//! the file and emptied it, with two more `fsync`. SQLite would use a log with a damaged block up to that block, and
//! report nothing: a right that was taken away would come back. It does report a damaged page of the file. A rollback
//! journal would need as many `fsync`. Its deletion commits the change, and a power cut can undo that deletion unless
//! the folder is synced as well. One process holds the file: a second one would not see the changes of the first, and
//! would admit peers that the first has removed.
//!
//! A full disk keeps no right from being taken away: the changes of entries that exist have room of their own
//! (`reserve.rs`).
//!
//! Nothing that is wrong with the file keeps a node from starting. A damaged one is set aside with
//! its log, and stays announced for as long as it lies there.

mod credentials;
mod enrolment;
mod file;
mod quarantine;
mod reserve;
mod rows;
mod schema;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::{
    BoxFuture, EncryptedData, IdentityPersistence, IdentityStoreError, StoreChange, StoreThread,
    StoredIdentities,
};
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use thiserror::Error;

pub use enrolment::{EnrolmentError, EnrolmentRecord};
pub use schema::{APPLICATION_ID, SCHEMA_VERSION};

/// What is wrong with a store. The node runs without the entries that the diagnostic names.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IdentityStoreDiagnostic {
    /// A damaged file was set aside under this path, now or at an earlier start.
    #[error("a damaged file of peers and tokens was set aside as {}", .0.display())]
    Aside(PathBuf),
    /// A newer program wrote the file.
    #[error(
        "the file of peers and tokens has version {0}, and this program knows {SCHEMA_VERSION}"
    )]
    Newer(i64),
    /// The file exists and cannot be used.
    #[error("the file of peers and tokens cannot be used: {0}")]
    Unusable(String),
    /// The disk has the last change in the log of the file, and not yet in the file.
    #[error("the last change of peers and tokens is kept, and its log cannot be emptied: {0}")]
    Log(String),
    /// Entries that this program cannot read.
    #[error("{count} entries in the file of peers and tokens cannot be read; the first: {first}")]
    Rows {
        /// Number of such entries.
        count: usize,
        /// The first entry's name, and why it cannot be read.
        first: String,
    },
    /// The last change could not be written.
    #[error("the last change of peers and tokens could not be written: {0}")]
    Write(String),
}

/// The open file. Clones share it.
#[derive(Clone)]
pub struct IdentityDb(Arc<IdentityDbInner>);

struct IdentityDbInner {
    path: PathBuf,
    /// `None` while the file does not exist or cannot be used.
    connection: Mutex<Option<Connection>>,
    diagnostics: Mutex<IdentityStoreDiagnostics>,
    credentials: Mutex<BTreeMap<String, EncryptedData>>,
    /// An invitation or a secret may have to be removed while all threads of the runtime work for peers.
    thread: StoreThread,
}

#[derive(Default)]
struct IdentityStoreDiagnostics {
    /// What the store found at the start.
    found: Vec<IdentityStoreDiagnostic>,
    /// Why the log could not be emptied after the last change.
    log: Option<String>,
    /// Why the last change was not written.
    write: Option<String>,
}

impl IdentityDb {
    /// Opens the file and reads all of it. If the file does not exist, the first change creates it.
    /// Blocks on the disk. [`diagnostics`](Self::diagnostics) lists what is wrong with the file.
    #[must_use]
    pub fn open(path: &Path) -> (Self, StoredIdentities) {
        let mut found = Vec::new();
        let opened = path.exists().then(|| file::open(path, &mut found));
        found.extend(
            quarantine::found(path)
                .into_iter()
                .map(IdentityStoreDiagnostic::Aside),
        );
        let (connection, rows) = match opened.flatten() {
            Some((connection, rows)) => (Some(connection), rows),
            None => (None, rows::IdentityRows::default()),
        };
        // From here on the changes that a power cut left in the log are in force, so the log is
        // emptied as after a change.
        let settled = connection.as_ref().map(|it| file::settle(it, path));
        if connection.is_some() {
            reserve::fill(path);
        }
        let db = Self(Arc::new(IdentityDbInner {
            path: path.to_owned(),
            connection: Mutex::new(connection),
            diagnostics: Mutex::new(IdentityStoreDiagnostics {
                found,
                log: settled.and_then(Result::err),
                write: None,
            }),
            credentials: Mutex::new(rows.credentials),
            thread: StoreThread::start("identity-db"),
        }));
        (db, rows.stored)
    }

    /// Lists everything that is wrong at the moment.
    #[must_use]
    pub fn diagnostics(&self) -> Vec<IdentityStoreDiagnostic> {
        let diagnostics = lock(&self.0.diagnostics);
        let log = diagnostics.log.clone().map(IdentityStoreDiagnostic::Log);
        let write = diagnostics
            .write
            .clone()
            .map(IdentityStoreDiagnostic::Write);
        let found = diagnostics.found.iter().cloned();
        found.chain(log).chain(write).collect()
    }
}

impl IdentityDbInner {
    /// Runs `work`, which waits for a disk, on the thread of the store. It runs to its end even if the caller drops the
    /// future.
    fn in_background<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, String> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, String>> {
        let db = Arc::clone(self);
        let work = self.thread.run(move || work(&db));
        Box::pin(async { work.await.map_err(|error| error.to_string())? })
    }

    /// Runs all of `write` in one durable transaction. A failure writes nothing. If the disk is full, and `may_use_reserve`
    /// says so of the entries as they are, the change has the room of the reserve.
    fn write<T>(
        &self,
        may_use_reserve: impl FnOnce(&Connection) -> rusqlite::Result<bool>,
        write: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, String> {
        let mut connection = lock(&self.connection);
        let written = self.opened(&mut connection).and_then(|connection| {
            let mut done = transact(connection, &write);
            if done.as_ref().is_err_and(is_full) && may_use_reserve(connection).unwrap_or(false) {
                while done.as_ref().is_err_and(is_full) && reserve::give_up(&self.path) {
                    done = transact(connection, &write);
                }
            }
            let done = done.map_err(|error| error.to_string())?;
            let log = file::settle(connection, &self.path).err();
            reserve::fill(&self.path);
            Ok((done, log))
        });
        let mut diagnostics = lock(&self.diagnostics);
        diagnostics.write = written.as_ref().err().cloned();
        let (done, log) = written?;
        // The transaction was committed, so the caller gets its result. The log's state is a
        // diagnostic only.
        diagnostics.log = log;
        Ok(done)
    }

    /// Reads from the file. Returns `None` if no change was ever written.
    fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, String> {
        let connection = lock(&self.connection);
        match &*connection {
            Some(connection) => read(connection)
                .map(Some)
                .map_err(|error| error.to_string()),
            None => self.usable().map(|()| None),
        }
    }

    fn opened<'a>(
        &self,
        connection: &'a mut Option<Connection>,
    ) -> Result<&'a mut Connection, String> {
        Ok(match connection {
            Some(connection) => connection,
            none => none.insert(self.begin()?),
        })
    }

    /// Creates the file. Fails if a file exists that cannot be used.
    fn begin(&self) -> Result<Connection, String> {
        self.usable()?;
        let mut found = Vec::new();
        match file::open(&self.path, &mut found) {
            Some((connection, rows)) if rows.is_empty() => Ok(connection),
            // The file did not exist when this process started, so another process made these
            // entries, and this process does not know them.
            Some(_) => Err("another node wrote the file: restart this one".to_owned()),
            None => Err(unusable_reason(&found).unwrap_or_default()),
        }
    }

    /// Fails if a file exists that cannot be used.
    fn usable(&self) -> Result<(), String> {
        match unusable_reason(&lock(&self.diagnostics).found) {
            Some(why) => Err(why),
            None => Ok(()),
        }
    }
}

fn transact<T>(
    connection: &mut Connection,
    write: impl Fn(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    // A transaction that takes the write lock at its first write can be refused in the middle.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = write(&transaction)?;
    transaction.commit().map(|()| done)
}

fn is_full(error: &rusqlite::Error) -> bool {
    error.sqlite_error_code() == Some(ErrorCode::DiskFull)
}

fn unusable_reason(found: &[IdentityStoreDiagnostic]) -> Option<String> {
    let unusable = |it: &&IdentityStoreDiagnostic| {
        matches!(
            it,
            IdentityStoreDiagnostic::Newer(_) | IdentityStoreDiagnostic::Unusable(_)
        )
    };
    found.iter().find(unusable).map(ToString::to_string)
}

impl IdentityPersistence for IdentityDb {
    fn persist(&self, changes: &[StoreChange]) -> Result<(), IdentityStoreError> {
        let write = |connection: &Connection| {
            changes
                .iter()
                .try_for_each(|change| rows::write(connection, change))
        };
        let exist = |connection: &Connection| {
            let mut all = changes
                .iter()
                .map(|change| rows::is_of_entry(connection, change));
            // The first entry that is new, or that cannot be looked up, decides.
            all.find(|it| !matches!(it, Ok(true))).unwrap_or(Ok(true))
        };
        let written = self.0.write(exist, write);
        written.map_err(IdentityStoreError::Unavailable)
    }
}

impl fmt::Debug for IdentityDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityDb")
            .field("troubles", &self.diagnostics())
            .finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere does not leave what these mutexes guard half changed: each change is one
    // assignment or one insertion.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
