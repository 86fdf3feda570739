//! A store of files: which bucket, branch and path has which content, in one SQLite file.

mod address;
mod clock;
mod db;
mod error;
mod hash;
pub mod limits;
mod names;
mod outbox;
mod path;

pub use address::{BranchName, BucketName, EntryAddress, MAIN_BRANCH, TreeVersion};
pub use clock::{HybridClock, HybridTimestamp, ObservedTimestamp, SystemTimeSource, TimeSource};
pub use db::{
    Durability, ReadTransaction, STORE_APPLICATION_ID, STORE_SCHEMA_VERSION, StoreDb,
    StoreDbOptions, StoreOpenError, StoreReply, WriteTransaction,
};
pub use error::{QuotaResource, StoreError, StoreErrorCode, StoreObject};
pub use hash::{ContentHash, InvalidContentHash};
pub use names::{BranchId, BucketId, MergeConflict};
pub use outbox::{EventPayload, EventTopic};
pub use path::{EntryPath, InvalidPath, PathRule, SNAPSHOT_DIRECTORY};
