//! Why a file is not stored, listed or removed.

use std::fmt;
use std::io;

use alknet_call::{CallError, ErrorCode};
use alknet_core::config::StoredFileName;
use serde_json::json;

/// Code of the error that there is no room.
pub(super) const QUOTA_EXCEEDED: &str = "QUOTA_EXCEEDED";

/// Why an operation on stored files fails. The text is one line.
#[derive(Debug)]
pub(super) enum FileStoreError {
    /// The maximum number of uploads is under way.
    Busy(usize),
    /// The content cannot be stored. The text says what is wrong with it, and what to do.
    Content(String),
    /// The configuration names the file, or the running node uses it.
    InUse { name: StoredFileName, by: String },
    /// The file system returned an error.
    Io { what: String, error: io::Error },
    /// There is no file of this name.
    Missing(StoredFileName),
    /// There is no upload of this name, or it belongs to another caller.
    NoUpload,
    /// The piece does not begin where the last one ended.
    Offset { have: u64 },
    /// There is no room.
    Quota(String),
    /// The node has no store.
    Unusable(String),
}

impl FileStoreError {
    /// An error of the file system during `what`. A full disk is an error of its own.
    pub(super) fn io(what: impl Into<String>, error: io::Error) -> Self {
        let what = what.into();
        match error.kind() {
            // A full disk has its own code: the administrator can repair it without the node's log.
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Quota(format!(
                "{what}: the disk has no room: remove a stored file first"
            )),
            _ => Self::Io { what, error },
        }
    }
}

impl fmt::Display for FileStoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy(most) => write!(f, "{most} uploads are under way: wait for one to end"),
            Self::Content(what) | Self::Quota(what) => f.write_str(what),
            Self::InUse { name, by } => write!(f, "{name} is in use: {by}"),
            Self::Io { what, error } => write!(f, "{what}: {error}"),
            Self::Missing(name) => write!(f, "the node stores no {name}"),
            Self::NoUpload => f.write_str("there is no such upload: begin again with its name"),
            Self::Offset { have } => write!(f, "the next piece begins at {have}"),
            Self::Unusable(why) => write!(f, "this node stores no files: {why}"),
        }
    }
}

impl From<FileStoreError> for CallError {
    fn from(error: FileStoreError) -> Self {
        let code = match &error {
            FileStoreError::Busy(_) => ErrorCode::Overloaded,
            FileStoreError::Content(_) | FileStoreError::Offset { .. } => ErrorCode::InvalidInput,
            FileStoreError::InUse { .. } => ErrorCode::Conflict,
            FileStoreError::Io { .. } => ErrorCode::Internal,
            FileStoreError::Missing(_) | FileStoreError::NoUpload => ErrorCode::NotFound,
            FileStoreError::Quota(_) => ErrorCode::from_name(QUOTA_EXCEEDED),
            FileStoreError::Unusable(_) => ErrorCode::Unavailable,
        };
        let answer = Self::new(code, error.to_string());
        match error {
            FileStoreError::Offset { have } => answer.with_details(json!({ "have": have })),
            _ => answer,
        }
    }
}
