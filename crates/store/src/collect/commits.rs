//! The removal of old commits that no row has any more.

use rusqlite::params;

use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::limits::COLLECT_STEP_ROWS;
use crate::names::{BranchId, BucketId, UsageChange};

/// How far the removal came in the commits of a bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct CommitCursor {
    /// The branch, which may be deleted.
    branch: BranchId,
    /// Its last commit that was looked at.
    after: u64,
}

/// Commits that a step looks at.
pub(super) struct CommitPage {
    /// Those without rows.
    unused: Vec<u64>,
    /// Where the next step begins. `None` at the end of the bucket.
    pub(super) next: Option<CommitCursor>,
}

impl ReadTransaction<'_> {
    /// The next commits up to the horizon, by branch.
    pub(super) fn old_commits(
        &self,
        bucket: BucketId,
        horizon: u64,
        cursor: Option<CommitCursor>,
    ) -> Result<CommitPage, StoreError> {
        let cursor = match cursor {
            Some(cursor) => Some(cursor),
            None => self.next_branch_with_commits(bucket, 0)?,
        };
        let Some(CommitCursor { branch, after }) = cursor else {
            let (unused, next) = (Vec::new(), None);
            return Ok(CommitPage { unused, next });
        };
        let rows: Vec<(u64, bool)> = self.query_all(
            "SELECT c.seq, (c.merge_branch IS NULL OR c.message IS NOT NULL) \
             AND NOT EXISTS (SELECT 1 FROM entry e WHERE e.seq = c.seq) FROM commit_ c \
             WHERE c.bucket_id = ?1 AND c.branch_id = ?2 AND c.seq > ?3 AND c.seq <= ?4 ORDER BY c.seq LIMIT ?5",
            params![
                bucket,
                branch,
                to_sql(after),
                to_sql(horizon),
                to_sql(COLLECT_STEP_ROWS as u64)
            ],
            |row| Ok((from_sql(row.get(0)?), row.get(1)?)),
        )?;
        let next = match rows.last() {
            Some((after, _)) if rows.len() >= COLLECT_STEP_ROWS => {
                let after = *after;
                Some(CommitCursor { branch, after })
            }
            _ => self.next_branch_with_commits(bucket, branch.number())?,
        };
        let unused = rows.iter().filter(|(_, is_unused)| *is_unused);
        let unused = unused.map(|(seq, _)| *seq).collect();
        Ok(CommitPage { unused, next })
    }

    fn next_branch_with_commits(
        &self,
        bucket: BucketId,
        after: i64,
    ) -> Result<Option<CommitCursor>, StoreError> {
        let query = "SELECT branch_id FROM commit_ WHERE bucket_id = ?1 AND branch_id > ?2 ORDER BY branch_id LIMIT 1";
        let branch = self.query_row(query, params![bucket, after], |row| row.get(0))?;
        Ok(branch.map(|branch| CommitCursor { branch, after: 0 }))
    }
}

impl WriteTransaction<'_> {
    /// Removes the commits of a page. A merge stays, without its message: the search for a merge base
    /// looks at it.
    pub(super) fn remove_commits(
        &self,
        bucket: BucketId,
        page: &CommitPage,
    ) -> Result<(), StoreError> {
        let mut usage = UsageChange::default();
        for seq in page.unused.iter().copied() {
            // Looked at once more: a branch may have copied a row of the commit since the page was read.
            let query = "SELECT coalesce(octet_length(message), 0), merge_branch IS NOT NULL FROM commit_ \
                         WHERE seq = ?1 AND NOT EXISTS (SELECT 1 FROM entry WHERE entry.seq = ?1)";
            let found = self.query_row(query, [to_sql(seq)], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, bool>(1)?))
            })?;
            let Some((bytes, is_merge)) = found else {
                continue;
            };
            usage.bytes -= bytes;
            let change = if is_merge {
                "UPDATE commit_ SET message = NULL WHERE seq = ?1"
            } else {
                "DELETE FROM commit_ WHERE seq = ?1"
            };
            self.execute(change, [to_sql(seq)])?;
        }
        self.add_usage(bucket, usage)
    }
}
