//! The node's proposals in one SQLite file: all bundles, all promoted versions, and a record of all decisions.
//!
//! Each change is one transaction, written ahead and synced: after a power cut, the file has the state from before
//! it. The node reads the promoted versions from the file at start, so each boot gives the same operations.

mod file;
mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use alknet_core::{PeerId, PeerKey};
use alknet_runtime::ops::ScriptTestReport;
use rusqlite::{Connection, ErrorCode, TransactionBehavior};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bundle::{Blake3Hash, PromotionBundle};

use file::SCHEMA_VERSION;

pub(crate) use write::REPLACED;
pub use write::{NewProposal, ReviewResult, RollbackResult, TallyCounts};

/// The state of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProposalState {
    /// It is an operation of the node.
    Promoted,
    /// It waits for its review.
    Proposed,
    /// A reviewer rejected it.
    Rejected,
    /// It was an operation of the node, and was replaced or rolled back.
    Retired,
}

impl ProposalState {
    /// The name of the state.
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

/// The findings at the time of a proposal that its bundle does not contain.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BundleFindings {
    /// The authority of the author at that time. A promotion grants no more, whatever the author gets later.
    pub authority: AuthoritySnapshot,
    /// The promoted code that the bundle imports, as `op:<path>@<version>`.
    pub imports: Vec<String>,
    /// The report of its tests.
    pub report: ScriptTestReport,
}

/// The authority of an identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AuthoritySnapshot {
    /// The scopes, sorted.
    pub scopes: Vec<String>,
    /// The resources by type.
    pub resources: BTreeMap<String, Vec<String>>,
}

/// The terms that a reviewer agreed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromotionTerms {
    /// The path of the operation.
    pub path: String,
    /// Whether peers may call it; otherwise only operations of this node may.
    pub external: bool,
    /// The scopes that peers need for it. If the list is empty, every known identity may call it.
    pub scopes: Vec<String>,
}

/// The vote of a reviewer that accepts a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReviewVote {
    /// The reviewer.
    pub reviewer: PeerId,
    /// A key by which the reviewer is known again, because another one may get its name. `None` if the reviewer had no
    /// key, and in votes that an earlier version of this program stored.
    pub key: Option<PeerKey>,
    /// The terms that the reviewer agreed to.
    pub terms: PromotionTerms,
}

/// One proposal.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proposal {
    /// Its number in the order of proposals.
    #[serde(skip)]
    pub seq: i64,
    /// The id of the bundle.
    pub id: Blake3Hash,
    /// The hash of the whole document.
    pub digest: Blake3Hash,
    /// The name of the operation, without `js/`.
    pub name: String,
    /// The author.
    pub author: PeerId,
    /// The state.
    pub state: ProposalState,
    /// When it was proposed, in seconds since 1970, if the clock was set.
    pub at_s: Option<u64>,
    /// The findings at that time.
    #[serde(skip)]
    pub found: BundleFindings,
}

/// One version of an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OperationVersion {
    /// The path of the operation.
    pub path: String,
    /// The number of the version, from 1.
    pub version: u64,
    /// The id of the bundle.
    pub id: Blake3Hash,
    /// The terms of the promotion.
    #[serde(skip)]
    pub terms: PromotionTerms,
    /// The version that it replaced.
    pub replaced: Option<u64>,
    /// The first generation that contained it.
    pub generation: u64,
    /// When it was promoted, in seconds since 1970.
    pub at_s: Option<u64>,
    /// How many of its first calls were counted.
    pub calls: u32,
    /// How many of these failed.
    pub errors: u32,
    /// Whether it is the current version.
    pub current: bool,
}

/// One entry of the record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AuditEntry {
    /// The time, in seconds since 1970.
    pub at_s: Option<u64>,
    /// The peer id of the actor, or `node` for the node itself.
    pub who: String,
    /// `propose`, `accept`, `promote`, `reject`, `rollback` or `forget`.
    pub did: String,
    /// The id of the bundle.
    pub id: String,
    /// The path of the operation.
    pub path: Option<String>,
    /// Its version; for `rollback`, the version that is current afterwards.
    pub version: Option<u64>,
    /// The generation that began with this.
    pub generation: Option<u64>,
    /// The actor's reason.
    pub note: String,
}

/// The actor, the time and the reason of a change.
#[derive(Clone, Copy, Debug)]
pub struct AuditAct<'a> {
    /// A peer id, or `node`.
    pub who: &'a str,
    /// Seconds since 1970.
    pub at_s: Option<u64>,
    /// The reason for the record.
    pub note: &'a str,
}

/// The filter of a listing, which shows the newest proposals first.
#[derive(Clone, Debug, Default)]
pub struct ProposalFilter {
    /// Only proposals of this state.
    pub state: Option<ProposalState>,
    /// Only proposals before this number.
    pub before: Option<i64>,
}

fn commit<T>(
    connection: &mut Connection,
    write: impl FnOnce(&Connection) -> Result<T, PromotionStoreError>,
) -> Result<T, PromotionStoreError> {
    // An immediate transaction takes the write lock at its beginning, so a later write cannot fail for it.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let done = write(&transaction)?;
    transaction.commit()?;
    Ok(done)
}

/// The open file. Clones share it. All methods except [`unemptied_log`](Self::unemptied_log) wait for the disk.
#[derive(Clone)]
pub struct PromotionStore(Arc<PromotionFile>);

struct PromotionFile {
    connection: Mutex<Connection>,
    /// The reason why the log is not empty. It has a lock of its own, because the node reads it while other methods
    /// wait for the disk.
    log: Mutex<Option<String>>,
}

impl PromotionStore {
    /// Opens the file, and creates it if it is missing. If the log cannot be emptied, for example on a full disk, the
    /// file opens nevertheless and [`unemptied_log`](Self::unemptied_log) reports it.
    ///
    /// # Errors
    /// The file cannot be used: it is damaged, newer than this program, another program's, or held by another
    /// process.
    pub fn open(path: &Path) -> Result<Self, PromotionStoreError> {
        let connection = file::open(path)?;
        let store = Self(Arc::new(PromotionFile {
            connection: Mutex::new(connection),
            log: Mutex::default(),
        }));
        // Decisions that a power cut left in the log are in force from now on.
        store.empty_log(&store.lock());
        Ok(store)
    }

    /// The reason why decisions are still in the log, where damage to the disk could undo them; `None` while the log
    /// is empty, as it normally is. The next write tries to empty it again.
    #[must_use]
    pub fn unemptied_log(&self) -> Option<String> {
        self.log().clone()
    }

    /// Performs all of `write` or nothing, durably.
    fn write<T>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, PromotionStoreError>,
    ) -> Result<T, PromotionStoreError> {
        let mut connection = self.lock();
        let done = commit(&mut connection, write)?;
        // The log may still have a decision.
        if self.unemptied_log().is_some() {
            self.empty_log(&connection);
        }
        Ok(done)
    }

    /// Like [`write`](Self::write), for a decision: once this has returned, no damage to the log can undo it.
    fn decide<T>(
        &self,
        write: impl FnOnce(&Connection) -> Result<T, PromotionStoreError>,
    ) -> Result<T, PromotionStoreError> {
        let mut connection = self.lock();
        let done = commit(&mut connection, write)?;
        // The decision is durable even if the log is not emptied.
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

    /// The number of the generation at the next start, and its versions in the order of their paths.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn heads(&self) -> Result<(u64, Vec<OperationVersion>), PromotionStoreError> {
        self.read(|connection| Ok((read::generation(connection)?, read::heads(connection)?)))
    }

    /// Every path that has had a version, or for which a proposal that waits for its review has a vote for which
    /// `counts` returns true.
    ///
    /// # Errors
    /// The errors of [`heads`](Self::heads).
    pub fn paths(
        &self,
        counts: impl Fn(&ReviewVote) -> bool,
    ) -> Result<BTreeSet<String>, PromotionStoreError> {
        self.read(|connection| read::paths(connection, counts))
    }

    /// A proposal.
    ///
    /// # Errors
    /// The errors of [`heads`](Self::heads).
    pub fn proposal(&self, id: Blake3Hash) -> Result<Option<Proposal>, PromotionStoreError> {
        self.read(|connection| read::proposal(connection, id))
    }

    /// At most `most` proposals, the newest first.
    ///
    /// # Errors
    /// The errors of [`heads`](Self::heads).
    pub fn proposals(
        &self,
        filter: &ProposalFilter,
        most: usize,
    ) -> Result<Vec<Proposal>, PromotionStoreError> {
        self.read(|connection| read::proposals(connection, filter, most))
    }

    /// A bundle, whose signature is checked again.
    ///
    /// # Errors
    /// The errors of [`heads`](Self::heads), or the document differs from the signed one.
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
        // The signature covers the document but not its row, so the row could refer to another bundle.
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
    /// The errors of [`heads`](Self::heads).
    pub fn version(
        &self,
        path: &str,
        version: u64,
    ) -> Result<Option<OperationVersion>, PromotionStoreError> {
        let versions = self.versions(path)?;
        Ok(versions.into_iter().find(|it| it.version == version))
    }

    /// All versions of an operation, the newest first.
    ///
    /// # Errors
    /// The errors of [`heads`](Self::heads).
    pub fn versions(&self, path: &str) -> Result<Vec<OperationVersion>, PromotionStoreError> {
        self.read(|connection| read::versions(connection, path))
    }

    /// The votes for a proposal, by reviewer.
    ///
    /// # Errors
    /// The errors of [`heads`](Self::heads).
    pub fn reviews(&self, id: Blake3Hash) -> Result<Vec<ReviewVote>, PromotionStoreError> {
        self.read(|connection| read::reviews(connection, id))
    }

    /// The newest entries of the record about a proposal, the oldest of them first.
    ///
    /// # Errors
    /// The errors of [`heads`](Self::heads).
    pub fn audit(&self, id: Blake3Hash) -> Result<Vec<AuditEntry>, PromotionStoreError> {
        self.read(|connection| read::audit(connection, id))
    }
}

impl fmt::Debug for PromotionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PromotionStore").finish_non_exhaustive()
    }
}

/// The reason why the store failed or refused.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PromotionStoreError {
    /// The state does not allow it.
    #[error("{0}")]
    Conflict(String),
    /// The content of the file is damaged.
    #[error("the file of proposals is damaged: {0}")]
    Damaged(String),
    /// The store is full.
    #[error("{0}")]
    Full(String),
    /// A newer program wrote the file.
    #[error("the file of proposals has version {0}, and this program knows {SCHEMA_VERSION}")]
    Newer(i64),
    /// The proposal, operation or version does not exist.
    #[error("{0}")]
    Unknown(String),
    /// The file cannot be used.
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
