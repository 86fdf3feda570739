//! Entries: what a path leads to in one version of a tree.

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSqlOutput, ValueRef};
use rusqlite::{Row, ToSql};

use super::BranchId;
use crate::db::from_sql;
use crate::hash::ContentHash;
use crate::limits::PATH_BYTES_FREE;
use crate::path::EntryPath;

/// Permission bits of a file that its writer gives none.
pub const FILE_MODE_DEFAULT: u32 = 0o644;

/// Permission bits of a directory that its maker gives none.
pub const DIRECTORY_MODE_DEFAULT: u32 = 0o755;

/// Permission bits of a symbolic link. They have no effect, and Linux shows all of them.
pub(crate) const SYMLINK_MODE: u32 = 0o777;

/// Permission bits that an entry can have. The kind of an entry is not among them.
pub(crate) const MODE_MASK: u32 = 0o7777;

/// Bytes of a row that count against the quota of its bucket, as SQL: what [`EntryState::charged_bytes`] counts.
macro_rules! charged_bytes {
    () => {
        "CASE WHEN kind = 0 THEN 0 ELSE coalesce(octet_length(target), 0) + coalesce(octet_length(xattr), 0) \
         + max(0, octet_length(parent) + octet_length(name) - 256) END"
    };
}
pub(crate) use charged_bytes;

/// The kind of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// The row of a deletion. Only histories show it.
    Deleted,
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link. The store follows none.
    Symlink,
}

impl EntryKind {
    const ALL: [Self; 4] = [Self::Deleted, Self::File, Self::Directory, Self::Symlink];

    /// The name in events and responses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::File => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
        }
    }

    const fn code(self) -> i64 {
        match self {
            Self::Deleted => 0,
            Self::File => 1,
            Self::Directory => 2,
            Self::Symlink => 3,
        }
    }
}

impl ToSql for EntryKind {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(self.code().into())
    }
}

impl FromSql for EntryKind {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        let code = i64::column_result(value)?;
        let kind = Self::ALL.into_iter().find(|kind| kind.code() == code);
        kind.ok_or(FromSqlError::OutOfRange(code))
    }
}

/// What one version of an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryState {
    /// Its kind.
    pub kind: EntryKind,
    /// Content of a file.
    pub hash: Option<ContentHash>,
    /// Bytes of the content.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// Time of the last modification as the writer named it, in nanoseconds since 1970-01-01 UTC.
    pub mtime_ns: i64,
    /// Target of a symbolic link.
    pub target: Option<String>,
    /// Extended attributes, which the store does not read. Listings leave them out.
    pub xattr: Option<Vec<u8>>,
}

impl EntryState {
    /// A deletion at this time.
    pub(crate) const fn deletion(mtime_ns: i64) -> Self {
        Self {
            kind: EntryKind::Deleted,
            hash: None,
            size: 0,
            mode: 0,
            mtime_ns,
            target: None,
            xattr: None,
        }
    }

    /// A directory without attributes.
    pub(crate) fn directory(mtime_ns: i64) -> Self {
        Self {
            kind: EntryKind::Directory,
            mode: DIRECTORY_MODE_DEFAULT,
            ..Self::deletion(mtime_ns)
        }
    }

    /// Whether there is an entry.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.kind != EntryKind::Deleted
    }

    /// Whether this is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind == EntryKind::Directory
    }

    /// Bytes of the target and of the extended attributes.
    pub(crate) fn attribute_bytes(&self) -> u64 {
        let target = self.target.as_ref().map_or(0, String::len);
        let xattr = self.xattr.as_ref().map_or(0, Vec::len);
        (target + xattr) as u64
    }

    /// Bytes of the row of this version that count against the quota of its bucket: the target, the extended attributes, and
    /// what the path has beyond [`PATH_BYTES_FREE`]. A deletion costs nothing: it must be possible at any use.
    pub(crate) fn charged_bytes(&self, parent: &str, name: &str) -> u64 {
        if !self.is_live() {
            return 0;
        }
        let path = (parent.len() + name.len()) as u64;
        self.attribute_bytes() + path.saturating_sub(PATH_BYTES_FREE)
    }

    /// Whether the entry has attributes that its kind does not have by itself.
    pub(crate) fn has_own_attributes(&self) -> bool {
        let default = match self.kind {
            EntryKind::Directory => DIRECTORY_MODE_DEFAULT,
            EntryKind::Symlink => SYMLINK_MODE,
            EntryKind::File | EntryKind::Deleted => FILE_MODE_DEFAULT,
        };
        self.xattr.is_some() || self.mode != default
    }

    /// Whether both have the same kind, content and target.
    pub(crate) fn has_content_of(&self, other: &Self) -> bool {
        // No size: the hash decides it, and the store knows a content with one size only.
        (self.kind, self.hash, &self.target) == (other.kind, other.hash, &other.target)
    }

    /// Whether a merge has nothing to take in. The time of a directory does not count: two branches that make the same
    /// directory at different times do not contradict each other.
    pub(crate) fn is_same_version(&self, other: &Self) -> bool {
        let is_same_time = self.is_directory() || self.mtime_ns == other.mtime_ns;
        let are_attributes_same = (self.mode, &self.xattr) == (other.mode, &other.xattr);
        let is_deletion = !self.is_live() && !other.is_live();
        is_deletion || self.has_content_of(other) && are_attributes_same && is_same_time
    }

    /// Reads the columns `kind, hash, size, mode, mtime_ns, target, xattr` from this one on.
    pub(crate) fn read(row: &Row<'_>, first: usize) -> rusqlite::Result<Self> {
        Ok(Self {
            kind: row.get(first)?,
            hash: row.get(first + 1)?,
            size: from_sql(row.get(first + 2)?),
            mode: row.get(first + 3)?,
            mtime_ns: row.get(first + 4)?,
            target: row.get(first + 5)?,
            xattr: row.get(first + 6)?,
        })
    }
}

/// An entry, and the commit that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it is.
    pub path: EntryPath,
    /// What it is.
    pub state: EntryState,
    /// Number of the commit. 0 for the root, which no commit wrote.
    pub seq: u64,
    /// The branch whose level has the row: that of the view, or an ancestor.
    pub branch: BranchId,
}

impl Entry {
    /// The root of a tree.
    pub(crate) fn root(branch: BranchId) -> Self {
        Self {
            path: EntryPath::root(),
            state: EntryState::directory(0),
            seq: 0,
            branch,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text cannot name the constant.
    #[test]
    fn the_query_leaves_as_much_of_a_path_free_as_the_limit() {
        assert!(charged_bytes!().contains(&format!("- {PATH_BYTES_FREE})")));
    }
}
