//! Names: buckets, branches, and what lies under which path.

use std::fmt;

use rusqlite::ToSql;
use rusqlite::types::{FromSql, FromSqlResult, ToSqlOutput, ValueRef};

use crate::path::EntryPath;

macro_rules! row_id {
    ($(#[$docs:meta])* $name:ident) => {
        $(#[$docs])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(i64);

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

/// A path that both branches of a merge changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeConflict {
    /// The path.
    pub path: EntryPath,
}
