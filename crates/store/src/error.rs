//! Why the store refuses a call.

use std::any::Any;
use std::fmt;

use rusqlite::ErrorCode;
use thiserror::Error;

use crate::hash::ContentHash;
use crate::names::MergeConflict;
use crate::path::{InvalidPath, PathRule};

/// What a name in a request leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreObject {
    /// A bucket.
    Bucket,
    /// A branch of a bucket.
    Branch,
    /// A snapshot of a bucket.
    Snapshot,
    /// A file, a directory or a symbolic link.
    Entry,
    /// A version of an entry or a tree, by its sequence number.
    Version,
    /// A named reader of the outbox.
    Consumer,
    /// A job of a queue.
    Job,
    /// A lock of an entry.
    Lock,
    /// A content, by its hash.
    Content,
    /// A write session, which may be over.
    Session,
    /// A share of a content, which may be over.
    Share,
}

impl fmt::Display for StoreObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bucket => "the bucket",
            Self::Branch => "the branch",
            Self::Snapshot => "the snapshot",
            Self::Entry => "the entry",
            Self::Version => "the version",
            Self::Consumer => "the consumer",
            Self::Job => "the job",
            Self::Lock => "the lock",
            Self::Content => "the content",
            Self::Session => "the write session",
            Self::Share => "the share",
        })
    }
}

/// What a quota counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum QuotaResource {
    /// Bytes of the distinct contents of a bucket.
    Bytes,
    /// Versions of entries in a bucket, deletions left out.
    Entries,
    /// Bytes that the write sessions of one identity have staged.
    StagedBytes,
    /// Open write sessions of one identity.
    OpenSessions,
}

impl fmt::Display for QuotaResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bytes => "bytes",
            Self::Entries => "entries",
            Self::StagedBytes => "staged bytes",
            Self::OpenSessions => "open write sessions",
        })
    }
}

/// Error codes of the operations. Their names stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StoreErrorCode {
    /// A queue is full, or another program uses the file.
    Busy,
    /// The present state is not the one that the caller expected.
    Conflict,
    /// The content of an entry is damaged or lost.
    ContentMissing,
    /// The content of an entry is on peers only, and none of them answers.
    ContentUnavailable,
    /// The store does not allow the change, whatever the caller's rights are.
    Denied,
    /// The name is taken.
    Exists,
    /// The store has deleted what comes next in the sequence.
    Gap,
    /// A fault of the store itself.
    Internal,
    /// A path or a name breaks a rule.
    InvalidPath,
    /// The entry is a directory.
    IsDir,
    /// The disk is full.
    NoSpace,
    /// The directory has entries, or the branch has children or snapshots.
    NotEmpty,
    /// A component of the path is not a directory.
    NotDir,
    /// There is nothing of that name.
    NotFound,
    /// The bucket would have more than its quota.
    QuotaExceeded,
    /// A bucket or a branch takes no changes.
    ReadOnly,
    /// The request is larger than a limit.
    TooLarge,
}

impl StoreErrorCode {
    /// The code in lower case. The call protocol has it in upper case, and calls `denied` `FORBIDDEN`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::Conflict => "conflict",
            Self::ContentMissing => "content_missing",
            Self::ContentUnavailable => "content_unavailable",
            Self::Denied => "denied",
            Self::Exists => "exists",
            Self::Gap => "gap",
            Self::Internal => "internal",
            Self::InvalidPath => "invalid_path",
            Self::IsDir => "is_dir",
            Self::NoSpace => "no_space",
            Self::NotEmpty => "not_empty",
            Self::NotDir => "not_dir",
            Self::NotFound => "not_found",
            Self::QuotaExceeded => "quota_exceeded",
            Self::ReadOnly => "read_only",
            Self::TooLarge => "too_large",
        }
    }

    /// HTTP status of the code.
    #[must_use]
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Busy => 503,
            Self::Conflict => 412,
            Self::ContentMissing | Self::Internal => 500,
            Self::ContentUnavailable => 504,
            Self::Denied => 403,
            Self::Exists | Self::IsDir | Self::NotDir | Self::NotEmpty => 409,
            Self::Gap => 410,
            Self::InvalidPath => 400,
            Self::NoSpace | Self::QuotaExceeded => 507,
            Self::NotFound => 404,
            Self::ReadOnly => 405,
            Self::TooLarge => 413,
        }
    }

    /// Status of the code in version 3 of SFTP: 2 is `NO_SUCH_FILE`, 3 `PERMISSION_DENIED`, 4 `FAILURE`.
    #[must_use]
    pub const fn sftp_status(self) -> u32 {
        match self {
            Self::NotFound => 2,
            Self::Denied | Self::ReadOnly => 3,
            _ => 4,
        }
    }
}

/// Why the store refuses a call. A refused write changes nothing.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// There is nothing of that name. A bucket that the caller may not see has the same error.
    #[error("{0} does not exist")]
    NotFound(StoreObject),
    /// The store does not allow the change.
    #[error("not allowed: {0}")]
    Denied(&'static str),
    /// The name is taken.
    #[error("{0} exists already")]
    Exists(StoreObject),
    /// A component of the path, or the target, is not a directory.
    #[error("{path} is not a directory")]
    NotDirectory {
        /// The entry's path.
        path: String,
    },
    /// The path leads to a directory, and the call is not for directories.
    #[error("{path} is a directory")]
    IsDirectory {
        /// The entry's path.
        path: String,
    },
    /// The directory has entries.
    #[error("{path} is not empty")]
    NotEmpty {
        /// The directory's path.
        path: String,
    },
    /// The branch has children or snapshots, and the caller did not force its deletion.
    #[error("the branch has {children} child branches and {snapshots} snapshots")]
    BranchInUse {
        /// Branches that read through this one.
        children: u64,
        /// Snapshots of the branch.
        snapshots: u64,
    },
    /// The entry is not in the state that the caller expected.
    #[error("the entry is not in the state that the request expects")]
    PreconditionFailed {
        /// The present content of the entry. `None` for an entry without content, and where no entry is.
        current: Option<ContentHash>,
    },
    /// Both branches changed the same paths. Nothing was written.
    #[error("{total} paths conflict")]
    MergeConflicts {
        /// Number of all conflicts.
        total: usize,
        /// The first of them, at most [`CONFLICTS_LISTED_MAX`](crate::limits::CONFLICTS_LISTED_MAX).
        conflicts: Vec<MergeConflict>,
    },
    /// The store knows the same content with another size.
    #[error("the content has {known} bytes, and the request says {given}")]
    SizeMismatch {
        /// Bytes that the store knows of.
        known: u64,
        /// Bytes that the caller named.
        given: u64,
    },
    /// The change would take the bucket over its quota.
    #[error("the quota of {limit} {resource} is exceeded: {used} are used")]
    QuotaExceeded {
        /// What is counted.
        resource: QuotaResource,
        /// The bucket's quota.
        limit: u64,
        /// Use before the change.
        used: u64,
    },
    /// The content is damaged or lost. Storing it again mends it.
    #[error("the content {hash} is damaged or lost")]
    ContentMissing {
        /// The content.
        hash: ContentHash,
    },
    /// The content is on peers only.
    #[error("the content {hash} is not on this node")]
    ContentUnavailable {
        /// The content.
        hash: ContentHash,
    },
    /// The system failed at a file of the folder of contents.
    #[error("the folder of contents: {0}")]
    ContentFolder(String),
    /// The disk is full.
    #[error("the disk is full")]
    NoSpace,
    /// The request is larger than a limit.
    #[error("too large: at most {limit} {unit}")]
    TooLarge {
        /// What is counted.
        unit: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A path or a name breaks a rule.
    #[error(transparent)]
    InvalidPath(#[from] InvalidPath),
    /// A queue is full, or another program uses the file.
    #[error("the store is busy: {0}")]
    Busy(&'static str),
    /// The store ended the job: a read at [`READ_TIME_MAX`](crate::limits::READ_TIME_MAX), a write at
    /// [`WRITE_TIME_MAX`](crate::limits::WRITE_TIME_MAX).
    #[error("the job took too long")]
    TimedOut,
    /// A bucket or a branch takes no changes.
    #[error("read-only: {0}")]
    ReadOnly(&'static str),
    /// The outbox does not have all events behind the cursor. The caller lists what it follows again, and goes on behind
    /// `last`, which it reads before it lists.
    #[error(
        "the events behind the cursor are gone: those up to {pruned} were removed, and {last} is the last one"
    )]
    EventGap {
        /// Number of the last event that was removed.
        pruned: i64,
        /// Number of the newest event.
        last: i64,
    },
    /// Another owner has the lease.
    #[error("another owner has the lease until {until_ms} ms")]
    Leased {
        /// When the lease lapses, in milliseconds since 1970-01-01 UTC.
        until_ms: u64,
    },
    /// The lease lapsed, or another owner took it. What the caller did meanwhile may be done a second time.
    #[error("the lease has lapsed")]
    LeaseLost,
    /// A lock covers the entry, and the request has not its token.
    #[error("{path} is locked")]
    Locked {
        /// The path that the lock was taken on: the entry itself, a directory above it, or something below it.
        path: String,
    },
    /// The name of a queue, a consumer or a job breaks a rule.
    #[error("invalid name: {0}")]
    InvalidName(&'static str),
    /// The file system refused an operation on a file beside the file of names.
    #[error("a file beside the file of names: {0}")]
    FileSystem(String),
    /// The file is damaged. The next start checks it.
    #[error("the file of names is damaged: {0}")]
    Damaged(String),
    /// The database refused a statement.
    #[error("the file of names: {0}")]
    Database(String),
    /// The job panicked. The store goes on.
    #[error("a job of the store panicked: {0}")]
    Panicked(String),
    /// The store was closed before it ran the job.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// The code of the error.
    #[must_use]
    pub const fn code(&self) -> StoreErrorCode {
        match self {
            Self::NotFound(_) => StoreErrorCode::NotFound,
            Self::Denied(_) => StoreErrorCode::Denied,
            Self::Exists(_) => StoreErrorCode::Exists,
            Self::NotDirectory { .. } => StoreErrorCode::NotDir,
            Self::IsDirectory { .. } => StoreErrorCode::IsDir,
            Self::NotEmpty { .. } | Self::BranchInUse { .. } => StoreErrorCode::NotEmpty,
            // A client has to read the present state before it tries again, also after a wrong
            // size.
            Self::PreconditionFailed { .. }
            | Self::MergeConflicts { .. }
            | Self::SizeMismatch { .. }
            | Self::LeaseLost
            | Self::Locked { .. } => StoreErrorCode::Conflict,
            Self::QuotaExceeded { .. } => StoreErrorCode::QuotaExceeded,
            Self::ContentMissing { .. } => StoreErrorCode::ContentMissing,
            Self::ContentUnavailable { .. } => StoreErrorCode::ContentUnavailable,
            Self::NoSpace => StoreErrorCode::NoSpace,
            Self::TooLarge { .. } => StoreErrorCode::TooLarge,
            Self::InvalidPath(_) | Self::InvalidName(_) => StoreErrorCode::InvalidPath,
            // A later attempt may succeed after each of these four, which this code tells a
            // client.
            Self::Busy(_) | Self::TimedOut | Self::Closed | Self::Leased { .. } => {
                StoreErrorCode::Busy
            }
            Self::ReadOnly(_) => StoreErrorCode::ReadOnly,
            Self::EventGap { .. } => StoreErrorCode::Gap,
            Self::Damaged(_)
            | Self::Database(_)
            | Self::ContentFolder(_)
            | Self::Panicked(_)
            | Self::FileSystem(_) => StoreErrorCode::Internal,
        }
    }

    /// HTTP status of the error: that of its code, and 423 for a lock, which WebDAV tells apart from a failed
    /// precondition (RFC 4918 §11.3).
    #[must_use]
    pub const fn http_status(&self) -> u16 {
        match self {
            Self::Locked { .. } => 423,
            _ => self.code().http_status(),
        }
    }

    /// The error of a job that panicked.
    pub(crate) fn panicked(payload: &(dyn Any + Send)) -> Self {
        // A panic with a plain text carries a `&str`, and one with arguments a `String`.
        let text = payload.downcast_ref::<&str>().map(|it| (*it).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        Self::Panicked(text.unwrap_or_else(|| "without a text".to_owned()))
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            // A full file system and a used-up quota of the system ask the administrator for the
            // same thing.
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => Self::NoSpace,
            _ => Self::FileSystem(error.to_string()),
        }
    }
}

impl From<PathRule> for StoreError {
    fn from(rule: PathRule) -> Self {
        Self::InvalidPath(rule.into())
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::NoSpace,
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                Self::Busy("another program uses the file of names")
            }
            // Only the watch over readers interrupts a statement.
            Some(ErrorCode::OperationInterrupted) => Self::TimedOut,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Self::Damaged(error.to_string())
            }
            _ => Self::Database(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The table of the brief: code, HTTP status, status of SFTP.
    #[test]
    fn codes_have_the_statuses_of_the_table() {
        for (code, name, http, sftp) in [
            (StoreErrorCode::NotFound, "not_found", 404, 2),
            (StoreErrorCode::Denied, "denied", 403, 3),
            (StoreErrorCode::Exists, "exists", 409, 4),
            (StoreErrorCode::NotDir, "not_dir", 409, 4),
            (StoreErrorCode::IsDir, "is_dir", 409, 4),
            (StoreErrorCode::NotEmpty, "not_empty", 409, 4),
            (StoreErrorCode::Conflict, "conflict", 412, 4),
            (StoreErrorCode::QuotaExceeded, "quota_exceeded", 507, 4),
            (StoreErrorCode::NoSpace, "no_space", 507, 4),
            (StoreErrorCode::TooLarge, "too_large", 413, 4),
            (StoreErrorCode::InvalidPath, "invalid_path", 400, 4),
            (
                StoreErrorCode::ContentUnavailable,
                "content_unavailable",
                504,
                4,
            ),
            (StoreErrorCode::ContentMissing, "content_missing", 500, 4),
            (StoreErrorCode::Busy, "busy", 503, 4),
            (StoreErrorCode::ReadOnly, "read_only", 405, 3),
            (StoreErrorCode::Gap, "gap", 410, 4),
            (StoreErrorCode::Internal, "internal", 500, 4),
        ] {
            let found = (code.name(), code.http_status(), code.sftp_status());
            assert_eq!(found, (name, http, sftp));
        }
    }

    #[test]
    fn a_lock_has_the_status_of_webdav_and_the_code_of_a_conflict() {
        let path = "/a".to_owned();
        let locked = StoreError::Locked { path };
        assert_eq!(locked.code(), StoreErrorCode::Conflict);
        assert_eq!(locked.http_status(), 423);
        assert_eq!(StoreError::LeaseLost.http_status(), 412);
        let gap = StoreError::EventGap { pruned: 1, last: 2 };
        assert_eq!(gap.http_status(), 410);
    }

    #[test]
    fn errors_of_the_database_get_the_code_of_their_cause() {
        let error = |code: i32| {
            let cause = rusqlite::ffi::Error::new(code);
            StoreError::from(rusqlite::Error::SqliteFailure(cause, None)).code()
        };
        assert_eq!(error(13), StoreErrorCode::NoSpace);
        assert_eq!(error(5), StoreErrorCode::Busy);
        assert_eq!(error(9), StoreErrorCode::Busy);
        assert_eq!(error(11), StoreErrorCode::Internal);
        assert_eq!(error(19), StoreErrorCode::Internal);
    }
}
