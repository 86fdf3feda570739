//! Errors of a tree of files, with the status that SFTP has for them.

use alknet_call::{CallError, ErrorCode};
use alknet_store::{InvalidPath, StoreError, StoreErrorCode, StoreObject};
use thiserror::Error;

use crate::error::FsError;

/// Why a tree of files refuses a call. Each has a text for the client, which says nothing of the node.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FileTreeError {
    /// Nothing is at the path, or the caller may not see it.
    #[error("{0}")]
    NotFound(String),
    /// The caller may not do this, or the tree takes no changes.
    #[error("{0}")]
    Denied(String),
    /// The tree cannot do this with any file.
    #[error("{0}")]
    Unsupported(String),
    /// Any other reason.
    #[error("{0}")]
    Failed(String),
}

impl FileTreeError {
    /// Status of version 3 of SFTP: 2 is `NO_SUCH_FILE`, 3 `PERMISSION_DENIED`, 4 `FAILURE`, 8 `OP_UNSUPPORTED`.
    #[must_use]
    pub const fn sftp_status(&self) -> u32 {
        match self {
            Self::NotFound(_) => 2,
            Self::Denied(_) => 3,
            Self::Failed(_) => 4,
            Self::Unsupported(_) => 8,
        }
    }

    pub(super) fn closed() -> Self {
        Self::Failed("the file is closed".to_owned())
    }
}

impl From<FsError> for FileTreeError {
    fn from(error: FsError) -> Self {
        let make = match &error {
            // The name exists, and what was opened is gone: a client must not take it for a missing file.
            FsError::Store(StoreError::NotFound(StoreObject::Session | StoreObject::Content)) => {
                Self::Failed
            }
            FsError::Store(error) => match error.code() {
                StoreErrorCode::NotFound => Self::NotFound,
                StoreErrorCode::Denied | StoreErrorCode::ReadOnly => Self::Denied,
                _ => Self::Failed,
            },
            FsError::Forbidden(_) | FsError::ForbiddenEverywhere(_) => Self::Denied,
            FsError::Call(error) if error.code == ErrorCode::Forbidden => Self::Denied,
            _ => Self::Failed,
        };
        let is_quota = matches!(error, FsError::Store(StoreError::QuotaExceeded { .. }));
        // The text for callers, without what concerns the administrator alone.
        let text = CallError::from(error).message;
        make(match is_quota {
            true => format!("quota exceeded: {text}"),
            false => text,
        })
    }
}

impl From<StoreError> for FileTreeError {
    fn from(error: StoreError) -> Self {
        FsError::from(error).into()
    }
}

impl From<InvalidPath> for FileTreeError {
    fn from(invalid: InvalidPath) -> Self {
        FsError::from(invalid).into()
    }
}

#[cfg(test)]
mod tests {
    use alknet_store::{ContentHash, PathRule, QuotaResource};

    use super::*;
    use crate::rights::FsRight;

    /// The table of the store decides, and what it calls missing is not always the file.
    #[test]
    fn each_error_has_the_status_of_the_table() {
        for error in [
            StoreError::NotFound(StoreObject::Entry),
            StoreError::NotFound(StoreObject::Bucket),
            StoreError::ReadOnly("the bucket is frozen"),
            StoreError::Denied("the branch takes merges only"),
            StoreError::Exists(StoreObject::Entry),
            StoreError::PreconditionFailed { current: None },
            StoreError::ContentUnavailable {
                hash: ContentHash::EMPTY,
            },
            StoreError::NoSpace,
            StoreError::InvalidPath(PathRule::DotDot.into()),
        ] {
            let status = error.code().sftp_status();
            assert_eq!(
                FileTreeError::from(error.clone()).sftp_status(),
                status,
                "{error}"
            );
        }
        let session = StoreError::NotFound(StoreObject::Session);
        assert_eq!(FileTreeError::from(session).sftp_status(), 4);
        let forbidden = FsError::Forbidden(FsRight::Write);
        assert_eq!(FileTreeError::from(forbidden).sftp_status(), 3);
    }

    #[test]
    fn a_quota_is_called_so_and_the_node_stays_unknown() {
        let quota = StoreError::QuotaExceeded {
            resource: QuotaResource::Bytes,
            limit: 10,
            used: 9,
        };
        let text = FileTreeError::from(quota).to_string();
        assert!(text.starts_with("quota exceeded"), "{text}");
        let inner = StoreError::FileSystem("/data/state/fs/fs.db".to_owned());
        let text = FileTreeError::from(inner).to_string();
        assert!(!text.contains("/data"), "{text}");
    }
}
