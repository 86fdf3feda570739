//! Limits of the store, each with what it bounds.

use std::time::Duration;

/// Bytes of a whole path, with its slashes.
pub const PATH_BYTES_MAX: usize = 4096;

/// Bytes of one component of a path. Linux has the same limit for a file name.
pub const COMPONENT_BYTES_MAX: usize = 255;

/// Components of a path.
pub const PATH_DEPTH_MAX: usize = 64;

/// Bytes of the name of a bucket.
pub const BUCKET_NAME_BYTES_MAX: usize = 63;

/// Bytes of the name of a branch or a snapshot.
pub const BRANCH_NAME_BYTES_MAX: usize = 128;

/// Largest sequence number that an address may have, and the limit of a branch's own level.
pub const SEQ_MAX: u64 = 1 << 62;

/// Levels that a read looks through: the branch itself and its ancestors. A branch below that gets copies of the rows.
pub const CHAIN_LEVELS_MAX: usize = 16;

/// Branches of a bucket.
pub const BRANCHES_MAX: u64 = 10_000;

/// Snapshots of a bucket.
pub const SNAPSHOTS_MAX: u64 = 10_000;

/// Entries that one change of a whole directory writes, and paths that a comparison looks at. All of them are in one
/// transaction, and other writers wait for it.
pub const SUBTREE_ENTRIES_MAX: usize = 200_000;

/// Changes in one batch.
pub const BATCH_CHANGES_MAX: usize = 1000;

/// Entries or versions in one page of a listing.
pub const PAGE_ENTRIES_MAX: usize = 1000;

/// Conflicts that a refused merge lists. The error has the number of all of them.
pub const CONFLICTS_LISTED_MAX: usize = 1000;

/// Positions that the search for a merge base visits.
pub const MERGE_BASE_STEPS_MAX: usize = 100_000;

/// Bytes of one file.
pub const FILE_BYTES_MAX: u64 = 64 << 30;

/// Bytes of the contents of a bucket, if its creator sets no other quota.
pub const BUCKET_BYTES_DEFAULT: u64 = 10 << 30;

/// Entries of a bucket, if its creator sets no other quota.
pub const BUCKET_ENTRIES_DEFAULT: u64 = 1_000_000;

/// Seconds for which a bucket keeps former versions, if its creator sets no other time.
pub const RETENTION_DEFAULT_S: u64 = 7 * 24 * 60 * 60;

/// Bytes of the extended attributes of an entry. They are a part of its row, which listings skip.
pub const XATTR_BYTES_MAX: usize = 16 << 10;

/// Bytes of the target of a symbolic link, as `PATH_MAX` of Linux.
pub const SYMLINK_TARGET_BYTES_MAX: usize = 4096;

/// Bytes of the name of the actor of a change.
pub const ACTOR_BYTES_MAX: usize = 256;

/// Bytes of the message of a commit.
pub const MESSAGE_BYTES_MAX: usize = 4096;

/// Jobs in one transaction.
pub const GROUP_JOBS_MAX: usize = 256;

/// Time for which the writer takes further jobs into a transaction.
pub const GROUP_TIME_MAX: Duration = Duration::from_millis(5);

/// Jobs that wait for the writer. A further one gets [`StoreError::Busy`](crate::StoreError::Busy).
pub const WRITES_QUEUED_MAX: usize = 4096;

/// Connections that read.
pub const READERS: usize = 4;

/// Reads that wait for a connection. A further one gets [`StoreError::Busy`](crate::StoreError::Busy).
pub const READS_QUEUED_MAX: usize = 4096;

/// Time of one read. SQLite cannot empty its log beyond the oldest read, so a longer one lets the log grow.
pub const READ_TIME_MAX: Duration = Duration::from_secs(30);

/// Bytes of the log of the database. The writer empties a log of half of that.
pub const LOG_BYTES_MAX: u64 = 64 << 20;

/// Milliseconds by which the clock of a peer may be ahead. A later time is clamped.
pub const CLOCK_AHEAD_MS_MAX: u64 = 5 * 60 * 1000;
