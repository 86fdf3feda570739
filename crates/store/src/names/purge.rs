//! The rows of deleted branches and buckets, which go piece by piece: one transaction would keep other writers waiting.

use rusqlite::params;

use super::entry::charged_bytes;
use super::usage::UsageChange;
use super::{BranchId, BucketId};
use crate::db::{WriteTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::hash::ContentHash;

/// What one step of a purge did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PurgeProgress {
    /// Rows that were removed.
    pub rows: usize,
    /// Whether nothing is left to remove.
    pub is_done: bool,
}

/// What a row of a deleted branch has to give back.
struct PurgedEntry {
    parent: String,
    name: String,
    seq: i64,
    is_live: bool,
    hash: Option<ContentHash>,
    size: u64,
    charged: i64,
}

impl WriteTransaction<'_> {
    /// Removes at most this many rows of deleted branches and buckets, and gives back what they use.
    ///
    /// # Errors
    /// The database refuses a statement.
    pub fn purge(&mut self, rows_max: usize) -> Result<PurgeProgress, StoreError> {
        let branch = "SELECT id, bucket_id FROM branch WHERE state = 'deleted' ORDER BY id LIMIT 1";
        let branch = self.query_row(branch, [], |row| Ok((row.get(0)?, row.get(1)?)))?;
        // Branches first: a bucket may go only when no row of a branch refers to it.
        if let Some((branch, bucket)) = branch {
            let rows = self.purge_branch(branch, bucket, rows_max)?;
            let is_done = false;
            return Ok(PurgeProgress { rows, is_done });
        }
        let bucket = "SELECT id FROM bucket WHERE state = 'deleting' ORDER BY id LIMIT 1";
        let bucket = self.query_row(bucket, [], |row| row.get(0))?;
        match bucket {
            Some(bucket) => {
                let rows = self.purge_bucket(bucket, rows_max)?;
                let is_done = false;
                Ok(PurgeProgress { rows, is_done })
            }
            None => Ok(PurgeProgress {
                rows: 0,
                is_done: true,
            }),
        }
    }

    fn purge_branch(
        &self,
        branch: BranchId,
        bucket: BucketId,
        rows_max: usize,
    ) -> Result<usize, StoreError> {
        // Any rows will do, because each step takes those that are left.
        let query = concat!(
            "SELECT parent, name, seq, kind <> 0, hash, size, ",
            charged_bytes!(),
            " FROM entry WHERE branch_id = ?1 LIMIT ?2"
        );
        let limit = to_sql(rows_max as u64);
        let entries = self.query_all(query, params![branch, limit], |row| {
            Ok(PurgedEntry {
                parent: row.get(0)?,
                name: row.get(1)?,
                seq: row.get(2)?,
                is_live: row.get(3)?,
                hash: row.get(4)?,
                size: from_sql(row.get(5)?),
                charged: row.get(6)?,
            })
        })?;
        let mut usage = UsageChange::default();
        for entry in &entries {
            let PurgedEntry {
                parent, name, seq, ..
            } = entry;
            let delete =
                "DELETE FROM entry WHERE branch_id = ?1 AND parent = ?2 AND name = ?3 AND seq = ?4";
            self.execute(delete, params![branch, parent, name, seq])?;
            usage.entries -= i64::from(entry.is_live);
            usage.bytes -= entry.charged;
            if let Some(hash) = entry.hash {
                self.release_content(bucket, hash, entry.size, &mut usage)?;
            }
        }
        self.add_usage(bucket, usage)?;
        if entries.len() < rows_max {
            // The commits stay until a collection finds them old: rows that another branch copied refer to them, and the
            // search for a merge base looks at them.
            self.execute("DELETE FROM chain WHERE branch_id = ?1", [branch])?;
            self.remove_sync_documents_of(branch)?;
            self.execute("DELETE FROM branch WHERE id = ?1", [branch])?;
        }
        Ok(entries.len())
    }

    /// Removes jobs and commits of a bucket that has no branches any more, and then the bucket.
    fn purge_bucket(&self, bucket: BucketId, rows_max: usize) -> Result<usize, StoreError> {
        let jobs = self.remove_jobs_of(bucket, rows_max)?;
        if jobs > 0 {
            return Ok(jobs);
        }
        let commits = "DELETE FROM commit_ WHERE seq IN (SELECT seq FROM commit_ WHERE bucket_id = ?1 LIMIT ?2)";
        let rows = self.execute(commits, params![bucket, to_sql(rows_max as u64)])?;
        // Fewer than asked for means that none is left, so the bucket itself can go.
        if rows < rows_max {
            self.execute("DELETE FROM blob_bucket WHERE bucket_id = ?1", [bucket])?;
            self.execute("DELETE FROM usage WHERE bucket_id = ?1", [bucket])?;
            self.execute("DELETE FROM meta WHERE k = 'pruned:' || ?1", [bucket])?;
            self.execute("DELETE FROM bucket WHERE id = ?1", [bucket])?;
        }
        Ok(rows)
    }
}
