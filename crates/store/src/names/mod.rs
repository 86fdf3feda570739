//! Names: buckets, branches, and what lies under which path in each of their versions.

mod branch_end;
mod branches;
mod bucket_sync;
mod buckets;
mod change;
mod commit;
mod diff;
mod entry;
mod flatten;
mod history;
mod list;
mod locked;
mod merge;
mod purge;
mod resolve;
mod snapshots;
mod subtree;
mod sync;
mod sync_documents;
mod usage;
mod write;

use std::fmt;

use rusqlite::types::{FromSql, FromSqlResult, ToSqlOutput, Type, ValueRef};
use rusqlite::{Row, ToSql};

pub use branch_end::{ExpiryProgress, ProtectedBranches};
pub use branches::{Branch, BranchState, NewBranch};
pub use bucket_sync::{BucketSync, ContentFetchMode};
pub use buckets::{Bucket, BucketKind, BucketSettings, BucketState, NewBucket};
pub use change::{ChangeRequest, EntryAttributes, EntryPrecondition, TreeChange};
pub use commit::CommitReceipt;
pub use diff::TreeDifference;
pub(crate) use entry::charged_bytes;
pub use entry::{DIRECTORY_MODE_DEFAULT, Entry, EntryKind, EntryState, FILE_MODE_DEFAULT};
pub use history::EntryVersion;
pub use list::{EntryPage, ListRequest};
pub use merge::{ConflictKind, MergeConflict, MergeOutcome, MergeRequest, MergeStrategy};
pub use purge::PurgeProgress;
pub use resolve::TreeView;
pub use snapshots::Snapshot;
pub use sync::{SyncRow, SyncedChanges, SyncedOutcome};
pub use sync_documents::{
    StoredSyncDocument, SyncDocumentKey, SyncDocumentUpdate, SyncTops, SyncableBranch,
};
pub(crate) use usage::UsageChange;
pub use usage::{BucketUsage, ContentPresence, FileContent};

macro_rules! row_id {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(i64);

        impl $name {
            /// The identity with this number, which need not exist.
            #[must_use]
            pub const fn new(number: i64) -> Self {
                Self(number)
            }

            /// The number in the rows.
            #[must_use]
            pub const fn number(self) -> i64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
                self.0.to_sql()
            }
        }

        impl FromSql for $name {
            fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
                i64::column_result(value).map(Self)
            }
        }
    };
}

row_id! {
    /// The number of a bucket, which no later bucket gets.
    BucketId
}

row_id! {
    /// The number of a branch, which no later branch gets.
    BranchId
}

/// Reads a column with the name of a value.
fn read_name<T>(
    row: &Row<'_>,
    column: usize,
    from_name: impl FnOnce(&str) -> Option<T>,
) -> rusqlite::Result<T> {
    let name: String = row.get(column)?;
    // An error instead of a default: a damaged row must not turn a frozen bucket into a writable
    // one.
    from_name(&name).ok_or_else(|| {
        let error = format!("'{name}' is no value of this column").into();
        rusqlite::Error::FromSqlConversionFailure(column, Type::Text, error)
    })
}

#[cfg(test)]
mod tests;
