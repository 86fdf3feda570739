//! A store of files: which bucket, branch and path has which content, in one SQLite file, and the contents beside it.
//!
//! A bucket has branches. Each row of an entry carries the number of the commit that made it, and a branch shows the rows
//! of its ancestors up to the commits that it began at. So a branch, a snapshot and a former version cost nothing, and a
//! merge compares each path with the version that both branches have in common.
//!
//! [`StoreDb`] has the names: it keeps addresses of contents and counts references to them. [`Store`] has the contents as
//! well: a content is durable before a name leads to it, a reader gets no byte that was not compared with the hash, and a
//! collection removes what nothing refers to. Who may do what is the caller's business: a path, a branch and a quota are
//! checked, and no right.
//!
//! One thread writes. It takes the jobs that wait into one transaction, so that one sync of the disk serves them all, and
//! an error or a panic of a job takes back that job alone. Every change writes its events in the same transaction. A few
//! threads read, each read within a time limit. Calls return a [`StoreReply`], to be awaited or waited for.
//!
//! Events are read behind a cursor: by a consumer whose cursor lies in the file, or by an [`EventWatch`] that waits. Jobs of
//! a queue are claimed with a lease. Locks of entries bind writers only. Below a reserve of free space the store takes
//! nothing but deletions. A damaged file is repaired from its last daily copy and the events after it, by
//! [`repair_store`].
//!
//! ```
//! use alknet_store::{
//!     ChangeRequest, ContentHash, TreeChange, FileContent, MergeRequest, NewBranch, NewBucket, StoreDb,
//!     StoreDbOptions,
//! };
//!
//! let folder = tempfile::tempdir()?;
//! let db = StoreDb::open(&folder.path().join("fs.db"), StoreDbOptions::default())?;
//! let report = "/2026/report.txt".parse::<alknet_store::EntryPath>()?;
//!
//! // A bucket, and a branch of it for changes that are not ready.
//! let docs = NewBucket::new("docs".parse()?, "alice");
//! let (_, main) = db.write(move |tx| tx.create_bucket(&docs)).wait()?;
//! let draft = NewBranch::new("draft".parse()?, main.id, "alice");
//! let draft = db.write(move |tx| tx.create_branch(&draft)).wait()?;
//!
//! // A file. Its content is durable before it gets a name.
//! let content = FileContent::new(ContentHash::new([7; 32]), 1000);
//! let put = TreeChange::put(report.clone(), content);
//! let put = ChangeRequest::new(draft.id, "alice", put);
//! db.write(move |tx| tx.apply(&put)).wait()?;
//!
//! // The main branch shows it once the draft is merged.
//! # let is_there = |path: &alknet_store::EntryPath| {
//! #     let path = path.clone();
//! #     db.read(move |tx| Ok(tx.find(&tx.view(main.id, None)?, &path)?.is_some())).wait()
//! # };
//! assert!(!is_there(&report)?);
//! let merge = MergeRequest::new(draft.id, main.id, "alice");
//! db.write(move |tx| tx.merge(&merge)).wait()?;
//! assert!(is_there(&report)?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod address;
mod bounds;
mod clock;
mod collect;
mod content;
mod db;
mod error;
mod hash;
pub mod limits;
mod locks;
mod names;
mod outbox;
mod owned_name;
mod path;
mod queue;
mod sessions;
mod shares;
mod store;
mod sweep;
#[cfg(test)]
mod testing;

pub use address::{BranchName, BucketName, EntryAddress, MAIN_BRANCH, TreeVersion};
pub use clock::{HybridClock, HybridTimestamp, ObservedTimestamp, SystemTimeSource, TimeSource};
pub use collect::{CollectPhase, CollectProgress, GarbageCollection};
pub use content::{
    CommitStep, ContentBlocks, ContentEncoding, ContentFolder, ContentReader, ContentScrub,
    ContentScrubStep, ContentStatus, PartialContent, PreparedContent, StagedContent,
    VerifyProgress,
};
pub use db::{
    CopyOutcome, Durability, LostEvent, ReadTransaction, STORE_APPLICATION_ID,
    STORE_SCHEMA_VERSION, SpaceSource, StoreCopy, StoreDb, StoreDbOptions, StoreOpenError,
    StoreRepair, StoreRepairError, StoreReply, StoreSpace, SystemSpaceSource, VacuumStep,
    WriteTransaction, repair_store, store_copies,
};
pub use error::{QuotaResource, StoreError, StoreErrorCode, StoreObject};
pub use hash::{ContentHash, InvalidContentHash};
pub use locks::{
    EntryLock, LockDepth, LockHolder, LockKind, LockToken, LockedChange, LockedEntry, NewLock,
};
pub use names::{
    Branch, BranchId, BranchState, Bucket, BucketId, BucketKind, BucketSettings, BucketState,
    BucketSync, BucketUsage, ChangeRequest, CommitReceipt, ConflictKind, ContentFetchMode,
    ContentPresence, DIRECTORY_MODE_DEFAULT, Entry, EntryAttributes, EntryKind, EntryPage,
    EntryPrecondition, EntryState, EntryVersion, ExpiryProgress, FILE_MODE_DEFAULT, FileContent,
    ListRequest, MergeConflict, MergeOutcome, MergeRequest, MergeStrategy, NewBranch, NewBucket,
    ProtectedBranches, PurgeProgress, Snapshot, StoredSyncDocument, SyncDocumentKey,
    SyncDocumentUpdate, SyncRow, SyncTops, SyncableBranch, SyncedChanges, SyncedOutcome,
    TreeChange, TreeDifference, TreeView,
};
pub use outbox::{
    ConsumerName, EventFilter, EventPage, EventPayload, EventTopic, EventWatch, OutboxConsumer,
    OutboxStart, StoreEvent,
};
pub use path::{EntryPath, InvalidPath, PathRule, SNAPSHOT_DIRECTORY};
pub use queue::{
    ClaimedJob, DeadJob, EnqueuedJob, JobClaim, JobRetry, NewJob, QueueName, QueueUsage,
};
pub use sessions::{
    ClosedSession, NewWriteSession, WriteSessionId, WriteSessionMode, WriteSessionOptions,
    WriteSessions,
};
pub use shares::{ContentShare, ContentShareId, NewShare};
pub use store::{FileStoreOptions, Store};
pub use sweep::SweepRelease;
