//! What a caller asks to change.

use super::BranchId;
use super::entry::Entry;
use super::resolve::TreeView;
use super::usage::FileContent;
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::path::EntryPath;

/// Changes that become one commit, or none.
#[derive(Clone, Debug)]
pub struct ChangeRequest {
    /// The branch to change.
    pub branch: BranchId,
    /// Who changes it.
    pub actor: String,
    /// Text of the caller for the history, at most [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes.
    pub message: Option<String>,
    /// The changes, which happen in this order: each sees those before it.
    pub changes: Vec<TreeChange>,
}

impl ChangeRequest {
    /// One change.
    #[must_use]
    pub fn new(branch: BranchId, actor: &str, change: TreeChange) -> Self {
        Self {
            branch,
            actor: actor.to_owned(),
            message: None,
            changes: vec![change],
        }
    }
}

/// Attributes that a change sets. `None` leaves an attribute as it is, or gives a new entry its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryAttributes {
    /// Permission bits, of which the lower twelve count.
    pub mode: Option<u32>,
    /// Time of the last modification, in nanoseconds since 1970-01-01 UTC. A new version has the time of its commit.
    pub mtime_ns: Option<i64>,
    /// Extended attributes. Empty ones remove them.
    pub xattr: Option<Vec<u8>>,
}

/// What the caller expects at the path of a change. Otherwise the change is refused with
/// [`StoreError::PreconditionFailed`](crate::StoreError::PreconditionFailed).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EntryPrecondition {
    /// Any entry, or none: the last write wins.
    #[default]
    Any,
    /// Nothing: `If-None-Match: *`.
    Absent,
    /// An entry: `If-Match: *`.
    Present,
    /// A file with this content: `If-Match` with its entity tag.
    Content(ContentHash),
}

impl EntryPrecondition {
    /// Refuses what is at the path, unless the caller expects it.
    pub(crate) fn require(self, entry: Option<&Entry>) -> Result<(), StoreError> {
        // The answer has it, so that the caller can decide without a second request.
        let current = entry.and_then(|entry| entry.state.hash);
        let holds = match self {
            Self::Any => true,
            Self::Absent => entry.is_none(),
            Self::Present => entry.is_some(),
            Self::Content(hash) => current == Some(hash),
        };
        match holds {
            true => Ok(()),
            false => Err(StoreError::PreconditionFailed { current }),
        }
    }
}

/// One change. Directories that are missing above its path are made.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum TreeChange {
    /// Gives a file a content, and makes the file if it is missing. A symbolic link is replaced, not followed.
    Put {
        /// The file.
        path: EntryPath,
        /// Its content.
        content: FileContent,
        /// Its attributes. It keeps its extended attributes and its permission bits otherwise.
        attributes: EntryAttributes,
        /// What is expected at the path.
        precondition: EntryPrecondition,
    },
    /// Makes a directory.
    Mkdir {
        /// The directory.
        path: EntryPath,
        /// Its attributes.
        attributes: EntryAttributes,
        /// Whether a directory that exists is left as it is. Otherwise it is an error.
        may_exist: bool,
    },
    /// Makes a symbolic link.
    Symlink {
        /// The link.
        path: EntryPath,
        /// What it names. The store does not read it.
        target: String,
        /// Whether a file or a link that exists is replaced. Otherwise it is an error.
        may_replace: bool,
    },
    /// Moves an entry, with everything below it.
    Rename {
        /// What is moved.
        from: EntryPath,
        /// Where it is then.
        to: EntryPath,
        /// Whether an entry of the same kind is replaced, a directory only if it is empty. Otherwise it is an error.
        may_replace: bool,
        /// What is expected at the old path.
        precondition: EntryPrecondition,
    },
    /// Copies an entry of any tree. No content is copied.
    Copy {
        /// The tree to copy from. `None` is the branch itself, with the changes before this one.
        view: Option<TreeView>,
        /// What is copied.
        from: EntryPath,
        /// Where the copy is.
        to: EntryPath,
        /// Whether everything below a directory is copied too.
        is_recursive: bool,
        /// Whether an entry of the same kind is replaced, a directory only if it is empty. Otherwise it is an error.
        may_replace: bool,
    },
    /// Deletes an entry.
    Delete {
        /// What is deleted.
        path: EntryPath,
        /// Whether a directory is deleted with everything below it. Otherwise it has to be empty.
        is_recursive: bool,
        /// What is expected at the path.
        precondition: EntryPrecondition,
    },
    /// Changes attributes. The content stays.
    SetAttributes {
        /// The entry.
        path: EntryPath,
        /// Its new attributes.
        attributes: EntryAttributes,
        /// What is expected at the path.
        precondition: EntryPrecondition,
    },
    /// Makes an entry what it was after a commit. A directory gets everything that was below it then, and loses the rest.
    Restore {
        /// The entry.
        path: EntryPath,
        /// Number of the commit.
        seq: u64,
    },
}

impl TreeChange {
    /// A new content without conditions.
    #[must_use]
    pub fn put(path: EntryPath, content: FileContent) -> Self {
        Self::Put {
            path,
            content,
            attributes: EntryAttributes::default(),
            precondition: EntryPrecondition::Any,
        }
    }

    /// A new directory without attributes.
    #[must_use]
    pub fn mkdir(path: EntryPath) -> Self {
        Self::Mkdir {
            path,
            attributes: EntryAttributes::default(),
            may_exist: false,
        }
    }

    /// A move to a free path.
    #[must_use]
    pub const fn rename(from: EntryPath, to: EntryPath) -> Self {
        Self::Rename {
            from,
            to,
            may_replace: false,
            precondition: EntryPrecondition::Any,
        }
    }

    /// A deletion, with everything below a directory.
    #[must_use]
    pub const fn delete(path: EntryPath) -> Self {
        Self::Delete {
            path,
            is_recursive: true,
            precondition: EntryPrecondition::Any,
        }
    }

    /// Whether the change only takes something away.
    pub(super) const fn is_deletion(&self) -> bool {
        matches!(self, Self::Delete { .. })
    }

    /// What a commit with this change alone is called in the history.
    pub(super) const fn op(&self) -> &'static str {
        match self {
            Self::Put { .. } => "put",
            Self::Mkdir { .. } => "mkdir",
            Self::Symlink { .. } => "symlink",
            Self::Rename { .. } => "rename",
            Self::Copy { .. } => "copy",
            Self::Delete { .. } => "delete",
            Self::SetAttributes { .. } => "setattr",
            Self::Restore { .. } => "restore",
        }
    }
}
