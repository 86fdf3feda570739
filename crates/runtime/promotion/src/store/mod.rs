//! What a node keeps of proposals: every bundle, every version that was promoted, and a record of who
//! did what, in one SQLite file.
//!
//! A change is one transaction, written ahead and synced: a power cut during it leaves what was there
//! before. What is promoted is read from here at start, so that a boot gives the same operations.

mod file;
mod read;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::PeerId;
use alknet_runtime::ops::Report;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bundle::{Bundle, Hash};

use file::SCHEMA_VERSION;

pub use write::{New, Reviewed, Taken, Tallied};

/// Where a proposal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is an operation of the node.
    Promoted,
    /// It waits for its review.
    Proposed,
    /// A reviewer said no.
    Rejected,
    /// It was an operation of the node: another took its place, or it was taken back.
    Retired,
}

impl State {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Promoted => "promoted",
            Self::Proposed => "proposed",
            Self::Rejected => "rejected",
            Self::Retired => "retired",
        }
    }
}

/// What was found out when a bundle was proposed, beside what is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// What its author might do then. A promotion grants no more, whatever the author is given later.
    pub authority: Authority,
    /// The promoted code that it imports, as `op:<path>@<version>`.
    pub imports: Vec<String>,
    /// How its tests went.
    pub report: Report,
}

/// What an identity may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Authority {
    /// Scopes, sorted.
    pub scopes: Vec<String>,
    /// Resources by type.
    pub resources: BTreeMap<String, Vec<String>>,
}

/// What a reviewer agreed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// What it is called by.
    pub path: String,
    /// Whether peers may call it; else only operations of this node.
    pub external: bool,
    /// Scopes that peers need for it. None: every known identity may call it.
    pub scopes: Vec<String>,
}

/// One proposal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proposal {
    /// Its place in the order of proposals.
    #[serde(skip)]
    pub seq: i64,
    /// The bundle's.
    pub id: Hash,
    /// Of the whole document.
    pub digest: Hash,
    /// The operation's, without `js/`.
    pub name: String,
    /// Who wrote it.
    pub author: PeerId,
    /// Where it stands.
    pub state: State,
    /// When it was proposed, in seconds since 1970, where the clock was sane.
    pub at_s: Option<u64>,
    /// What was found out then.
    #[serde(skip)]
    pub found: Found,
}

/// One version of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// What it is called by.
    pub path: String,
    /// From 1.
    pub version: u64,
    /// The bundle's.
    pub id: Hash,
    /// What was agreed to.
    #[serde(skip)]
    pub terms: Terms,
    /// The version whose place it took.
    pub replaced: Option<u64>,
    /// The generation it first was part of.
    pub generation: u64,
    /// When, in seconds since 1970.
    pub at_s: Option<u64>,
    /// Of its first calls, so many were counted.
    pub calls: u32,
    /// And so many failed.
    pub errors: u32,
    /// Whether it is the one in place.
    pub current: bool,
}

/// One entry of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// When, in seconds since 1970.
    pub at_s: Option<u64>,
    /// Who: a peer id, or `node` for what it did by itself.
    pub who: String,
    /// `propose`, `accept`, `promote`, `reject`, `rollback` or `forget`.
    pub did: String,
    /// The bundle's.
    pub id: String,
    /// The operation.
    pub path: Option<String>,
    /// Its version; with `rollback` the one that is in place now.
    pub version: Option<u64>,
    /// The generation that this began.
    pub generation: Option<u64>,
    /// Why, in the words of whoever did it.
    pub note: String,
}

/// Who does something, when, and why.
#[derive(Clone, Copy, Debug)]
pub struct Act<'a> {
    /// A peer id, or `node`.
    pub who: &'a str,
    /// Seconds since 1970.
    pub at_s: Option<u64>,
    /// For the record.
    pub note: &'a str,
}

/// Which proposals a listing shows, newest first.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only of this state.
    pub state: Option<State>,
    /// Only those before this place.
    pub before: Option<i64>,
}

fn commit<T>(
    connection: &mut Connection,
    write: impl FnOnce(&Connection) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = write(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// The open file. Clones share it. Everything blocks on the disk.
#[derive(Clone)]
pub struct Store(Arc<Mutex<Connection>>);

impl Store {
    /// Opens the file, and makes it where there is none.
    ///
    /// # Errors
    /// It cannot be used: damaged, newer than this program, another's, held by another process.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let connection = file::open(path)?;
        Ok(Self(Arc::new(Mutex::new(connection))))
    }

    /// Does all of `write` or nothing, durably.
    fn write<T>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        commit(&mut self.lock(), write)
    }

    /// The same for a decision: no damage to the log undoes it once it is answered.
    fn decide<T>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = self.lock();
        let done = commit(&mut connection, write)?;
        // The decision is made and durable all the same; the next one tries again.
        if let Err(error) = file::empty_log(&connection) {
            tracing::error!("the log of the store of promoted operations is not emptied: {error}");
        }
        Ok(done)
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        read(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the generation that the next start has, and its versions in order of path.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn heads(&self) -> Result<(u64, Vec<Version>), StoreError> {
        self.read(|connection| Ok((read::generation(connection)?, read::heads(connection)?)))
    }

    /// A proposal.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn proposal(&self, id: Hash) -> Result<Option<Proposal>, StoreError> {
        self.read(|connection| read::proposal(connection, id))
    }

    /// Proposals, newest first, at most `most`.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn proposals(&self, filter: &Filter, most: usize) -> Result<Vec<Proposal>, StoreError> {
        self.read(|connection| read::proposals(connection, filter, most))
    }

    /// A bundle; its signature is looked at again.
    ///
    /// # Errors
    /// As [`heads`](Self::heads), and for a document that is no longer what was signed.
    pub fn bundle(&self, id: Hash) -> Result<Option<Arc<Bundle>>, StoreError> {
        let document = self.read(|connection| read::document(connection, id))?;
        let Some(document) = document else {
            return Ok(None);
        };
        let bundle = Bundle::read(document.as_bytes())
            .map_err(|error| StoreError::Damaged(format!("bundle {id}: {error}")))?;
        match bundle.id() == id {
            true => Ok(Some(Arc::new(bundle))),
            false => Err(StoreError::Damaged(format!("bundle {id} is another"))),
        }
    }

    /// A version of an operation.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn version(&self, path: &str, version: u64) -> Result<Option<Version>, StoreError> {
        let versions = self.versions(path)?;
        Ok(versions.into_iter().find(|it| it.version == version))
    }

    /// Every version of an operation, newest first.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn versions(&self, path: &str) -> Result<Vec<Version>, StoreError> {
        self.read(|connection| read::versions(connection, path))
    }

    /// Who agreed to what about a proposal.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn reviews(&self, id: Hash) -> Result<Vec<(PeerId, Terms)>, StoreError> {
        self.read(|connection| read::reviews(connection, id))
    }

    /// The newest entries of the record about a proposal, oldest first.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn audit(&self, id: Hash) -> Result<Vec<AuditEntry>, StoreError> {
        self.read(|connection| read::audit(connection, id))
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").finish_non_exhaustive()
    }
}

/// Why a store does not do what it is asked to.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// It is in no state for that.
    #[error("{0}")]
    Conflict(String),
    /// What it holds is not whole.
    #[error("the file of proposals is damaged: {0}")]
    Damaged(String),
    /// There is no room.
    #[error("{0}")]
    Full(String),
    /// A newer program wrote it.
    #[error("the file of proposals has version {0}, and this program knows {SCHEMA_VERSION}")]
    Newer(i64),
    /// There is no such proposal, operation or version.
    #[error("{0}")]
    Unknown(String),
    /// It cannot be used.
    #[error("the file of proposals cannot be used: {0}")]
    Unusable(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged(error.to_string())
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Unusable("another node uses it; each needs a state directory".to_owned())
            }
            _ => Self::Unusable(error.to_string()),
        }
    }
}
