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
use alknet_runtime::ops::ScriptTestReport;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bundle::{Blake3Hash, PromotionBundle};

use file::SCHEMA_VERSION;

pub(crate) use write::REPLACED;
pub use write::{NewProposal, ReviewResult, RollbackResult, TallyCounts};

/// Where a proposal stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProposalState {
    /// It is an operation of the node.
    Promoted,
    /// It waits for its review.
    Proposed,
    /// A reviewer said no.
    Rejected,
    /// It was an operation of the node: another took its place, or it was taken back.
    Retired,
}

impl ProposalState {
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
pub struct BundleFindings {
    /// What its author might do then. A promotion grants no more, whatever the author is given later.
    pub authority: AuthoritySnapshot,
    /// The promoted code that it imports, as `op:<path>@<version>`.
    pub imports: Vec<String>,
    /// How its tests went.
    pub report: ScriptTestReport,
}

/// What an identity may do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthoritySnapshot {
    /// Scopes, sorted.
    pub scopes: Vec<String>,
    /// Resources by type.
    pub resources: BTreeMap<String, Vec<String>>,
}

/// What a reviewer agreed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionTerms {
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
    pub id: Blake3Hash,
    /// Of the whole document.
    pub digest: Blake3Hash,
    /// The operation's, without `js/`.
    pub name: String,
    /// Who wrote it.
    pub author: PeerId,
    /// Where it stands.
    pub state: ProposalState,
    /// When it was proposed, in seconds since 1970, where the clock was sane.
    pub at_s: Option<u64>,
    /// What was found out then.
    #[serde(skip)]
    pub found: BundleFindings,
}

/// One version of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperationVersion {
    /// What it is called by.
    pub path: String,
    /// From 1.
    pub version: u64,
    /// The bundle's.
    pub id: Blake3Hash,
    /// What was agreed to.
    #[serde(skip)]
    pub terms: PromotionTerms,
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
    /// Why, in the words of the peer that did it.
    pub note: String,
}

/// Who does something, when, and why.
#[derive(Clone, Copy, Debug)]
pub struct AuditAct<'a> {
    /// A peer id, or `node`.
    pub who: &'a str,
    /// Seconds since 1970.
    pub at_s: Option<u64>,
    /// For the record.
    pub note: &'a str,
}

/// Which proposals a listing shows, newest first.
#[derive(Clone, Debug, Default)]
pub struct ProposalFilter {
    /// Only of this state.
    pub state: Option<ProposalState>,
    /// Only those before this place.
    pub before: Option<i64>,
}

fn commit<T>(
    connection: &mut Connection,
    write: impl FnOnce(&Connection) -> Result<T, PromotionStoreError>,
) -> Result<T, PromotionStoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = write(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// The open file. Clones share it. Everything but [`unemptied_log`](Self::unemptied_log) blocks on the disk.
#[derive(Clone)]
pub struct PromotionStore(Arc<PromotionFile>);

struct PromotionFile {
    connection: Mutex<Connection>,
    /// Why the log has something still. A lock of its own: the node's problems are asked for while the disk is waited for.
    log: Mutex<Option<String>>,
}

impl PromotionStore {
    /// Opens the file, and makes it where it is missing. A log that cannot be emptied, as on a full disk, is no reason not
    /// to open it: [`unemptied_log`](Self::unemptied_log) says that.
    ///
    /// # Errors
    /// It cannot be used: damaged, newer than this program, another's, held by another process.
    pub fn open(path: &Path) -> Result<Self, PromotionStoreError> {
        let connection = file::open(path)?;
        let store = Self(Arc::new(PromotionFile {
            connection: Mutex::new(connection),
            log: Mutex::default(),
        }));
        // What a power cut left in the log is in force from now on.
        store.empty_log(&store.lock());
        Ok(store)
    }

    /// Why decisions are in the log still, where damage to the disk could undo them; nothing while the log is empty, as it
    /// should be. The next write tries again to empty it.
    #[must_use]
    pub fn unemptied_log(&self) -> Option<String> {
        self.log().clone()
    }

    /// Does all of `write` or nothing, durably.
    fn write<T>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, PromotionStoreError>,
    ) -> Result<T, PromotionStoreError> {
        let mut connection = self.lock();
        let done = commit(&mut connection, write)?;
        // A decision may be in it still.
        if self.unemptied_log().is_some() {
            self.empty_log(&connection);
        }
        Ok(done)
    }

    /// The same for a decision: no damage to the log undoes it once it is answered.
    fn decide<T>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, PromotionStoreError>,
    ) -> Result<T, PromotionStoreError> {
        let mut connection = self.lock();
        let done = commit(&mut connection, write)?;
        // The decision is made and durable all the same.
        self.empty_log(&connection);
        Ok(done)
    }

    fn empty_log(&self, connection: &Connection) {
        let left = file::empty_log(connection).err();
        if let Some(why) = &left {
            tracing::error!("the log of the store of promoted operations is not emptied: {why}");
        }
        *self.log() = left;
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Connection) -> Result<T, PromotionStoreError>,
    ) -> Result<T, PromotionStoreError> {
        read(&self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        let connection = self.0.connection.lock();
        connection.unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Option<String>> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the generation that the next start has, and its versions in order of path.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn heads(&self) -> Result<(u64, Vec<OperationVersion>), PromotionStoreError> {
        self.read(|connection| Ok((read::generation(connection)?, read::heads(connection)?)))
    }

    /// A proposal.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn proposal(&self, id: Blake3Hash) -> Result<Option<Proposal>, PromotionStoreError> {
        self.read(|connection| read::proposal(connection, id))
    }

    /// Proposals, newest first, at most `most`.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn proposals(
        &self,
        filter: &ProposalFilter,
        most: usize,
    ) -> Result<Vec<Proposal>, PromotionStoreError> {
        self.read(|connection| read::proposals(connection, filter, most))
    }

    /// A bundle; its signature is looked at again.
    ///
    /// # Errors
    /// As [`heads`](Self::heads), and for a document that is no longer what was signed.
    pub fn bundle(
        &self,
        id: Blake3Hash,
    ) -> Result<Option<Arc<PromotionBundle>>, PromotionStoreError> {
        let document = self.read(|connection| read::document(connection, id))?;
        let Some(document) = document else {
            return Ok(None);
        };
        let bundle = PromotionBundle::read(document.as_bytes())
            .map_err(|error| PromotionStoreError::Damaged(format!("bundle {id}: {error}")))?;
        match bundle.id() == id {
            true => Ok(Some(Arc::new(bundle))),
            false => Err(PromotionStoreError::Damaged(format!(
                "bundle {id} is another"
            ))),
        }
    }

    /// A version of an operation.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn version(
        &self,
        path: &str,
        version: u64,
    ) -> Result<Option<OperationVersion>, PromotionStoreError> {
        let versions = self.versions(path)?;
        Ok(versions.into_iter().find(|it| it.version == version))
    }

    /// Every version of an operation, newest first.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn versions(&self, path: &str) -> Result<Vec<OperationVersion>, PromotionStoreError> {
        self.read(|connection| read::versions(connection, path))
    }

    /// Who agreed to what about a proposal.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn reviews(
        &self,
        id: Blake3Hash,
    ) -> Result<Vec<(PeerId, PromotionTerms)>, PromotionStoreError> {
        self.read(|connection| read::reviews(connection, id))
    }

    /// The newest entries of the record about a proposal, oldest first.
    ///
    /// # Errors
    /// As [`heads`](Self::heads).
    pub fn audit(&self, id: Blake3Hash) -> Result<Vec<AuditEntry>, PromotionStoreError> {
        self.read(|connection| read::audit(connection, id))
    }
}

impl fmt::Debug for PromotionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromotionStore").finish_non_exhaustive()
    }
}

/// Why a store does not do what it is asked to.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromotionStoreError {
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

impl From<rusqlite::Error> for PromotionStoreError {
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
