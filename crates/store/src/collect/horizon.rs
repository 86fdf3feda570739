//! Which versions of a bucket are needed, and before which commit the others may be gone.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;

use crate::clock::HybridTimestamp;
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::limits::{COLLECT_JUMP_MS_MAX, COLLECT_JUMP_WAIT_MS, MERGE_BASE_STEPS_MAX, SEQ_MAX};
use crate::names::{BranchId, BucketId, TreeView};

/// The versions of a bucket that stay whatever their age is.
#[derive(Debug)]
pub(super) struct NeededVersions {
    /// The newest commit that is older than the retention. Rows that were replaced by it, or before, are old.
    pub(super) horizon: u64,
    /// Last commits that views of each branch's level show. In order.
    limits: BTreeMap<BranchId, BTreeSet<u64>>,
}

impl NeededVersions {
    /// Whether a view shows a row of this level that lasted from one commit until the one before another.
    pub(super) fn is_shown(&self, branch: BranchId, from: u64, until: u64) -> bool {
        let limits = self.limits.get(&branch);
        limits.is_some_and(|limits| limits.range(from..until).next().is_some())
    }
}

/// `meta` key of the horizon of a bucket.
fn horizon_key(bucket: BucketId) -> String {
    format!("pruned:{bucket}")
}

impl ReadTransaction<'_> {
    /// The commit before which versions of a bucket may be incomplete.
    fn horizon(&self, bucket: BucketId) -> Result<u64, StoreError> {
        let query = "SELECT v FROM meta WHERE k = ?1";
        self.query_count(query, [horizon_key(bucket)])
    }

    /// Refuses a version of a branch that a collection may have removed parts of: it would look like a version with fewer
    /// files.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] of [`StoreObject::Version`].
    pub(crate) fn check_version_kept(&self, view: &TreeView, as_of: u64) -> Result<(), StoreError> {
        let (bucket, branch) = (view.bucket(), view.branch());
        if as_of >= self.horizon(bucket)? {
            return Ok(());
        }
        // The version that a level had at the horizon is complete, because only rows that were replaced by then are old; and
        // so is what the level had where the branch began, which the head of the branch shows. What a snapshot or a branch
        // refers to is complete as well. Of merges only the last ones are, so that their versions count for the search of a
        // merge base alone.
        let kept = self.query_count(
            "SELECT NOT EXISTS (SELECT 1 FROM chain c JOIN branch a ON a.id = c.anc_id \
             WHERE c.branch_id = ?1 AND ?2 < c.max_seq AND ?2 < a.pruned_seq) \
             OR EXISTS (SELECT 1 FROM branch WHERE parent_id = ?1 AND (base_seq = ?2 OR origin_seq = ?2)) \
             OR EXISTS (SELECT 1 FROM snapshot WHERE bucket_id = ?3 AND branch_id = ?1 AND seq = ?2)",
            params![branch, to_sql(as_of), bucket],
        )?;
        match kept {
            0 => Err(StoreError::NotFound(StoreObject::Version)),
            _ => Ok(()),
        }
    }

    /// The newest commit before this time, of any bucket.
    fn commit_before(&self, ms: u64) -> Result<u64, StoreError> {
        // The hybrid clock goes back only from times that were far ahead, and the system's may at any time: with that, new
        // versions could look old. Later commits have later times, so that the index of the times finds the last number; a
        // commit of a clock that was ahead is older than the next one with the right time.
        let limit = HybridTimestamp::new(ms, 0, [0; 8]).to_bytes();
        let query = "SELECT seq FROM commit_ WHERE hlc < ?1 ORDER BY hlc DESC, seq DESC LIMIT 1";
        self.query_count(query, [limit])
    }

    /// Versions of branches that stay: heads, snapshots, the beginnings of branches, and what a later merge may take as its
    /// base.
    fn version_roots(&self, bucket: BucketId) -> Result<Vec<(BranchId, u64)>, StoreError> {
        self.query_all(
            "SELECT id, ?2 FROM branch WHERE bucket_id = ?1 AND state <> 'deleted' \
             UNION SELECT branch_id, seq FROM snapshot WHERE bucket_id = ?1 \
             UNION SELECT parent_id, base_seq FROM branch \
             WHERE bucket_id = ?1 AND state <> 'deleted' AND parent_id IS NOT NULL AND base_seq IS NOT NULL",
            params![bucket, to_sql(SEQ_MAX)],
            |row| Ok((row.get(0)?, from_sql(row.get(1)?))),
        )
    }

    /// All versions of a bucket that stay.
    pub(super) fn needed_versions(
        &self,
        bucket: BucketId,
        horizon: u64,
    ) -> Result<NeededVersions, StoreError> {
        let mut open = self.version_roots(bucket)?;
        let mut versions: BTreeMap<BranchId, BTreeSet<u64>> = BTreeMap::new();
        let mut steps = 0;
        while let Some((branch, seq)) = open.pop() {
            if !versions.entry(branch).or_default().insert(seq) {
                continue;
            }
            steps += 1;
            // A merge whose search would be longer is refused as well, so that nothing is lost by leaving this bucket.
            if steps > MERGE_BASE_STEPS_MAX {
                return Err(StoreError::TooLarge {
                    unit: "versions of a bucket that stay",
                    limit: MERGE_BASE_STEPS_MAX as u64,
                });
            }
            open.extend(self.versions_taken_in(branch, seq)?);
        }
        // A view of a branch looks through its ancestors as well, up to where each began.
        let levels: Vec<(BranchId, BranchId, u64)> = self.query_all(
            "SELECT c.branch_id, c.anc_id, c.max_seq FROM chain c JOIN branch b ON b.id = c.branch_id \
             WHERE b.bucket_id = ?1",
            [bucket],
            |row| Ok((row.get(0)?, row.get(1)?, from_sql(row.get(2)?))),
        )?;
        let mut limits: BTreeMap<BranchId, BTreeSet<u64>> = BTreeMap::new();
        for (branch, ancestor, max_seq) in levels {
            let level = limits.entry(ancestor).or_default();
            // The head of each branch is among its versions, so where the branch began counts too.
            let shown = versions.get(&branch).into_iter().flatten();
            level.extend(shown.map(|seq| (*seq).min(max_seq)));
        }
        Ok(NeededVersions { horizon, limits })
    }
}

impl WriteTransaction<'_> {
    /// Moves the horizon of a bucket to the end of its retention. `None` if nothing is older.
    pub(super) fn move_horizon(&self, bucket: BucketId) -> Result<Option<u64>, StoreError> {
        let retention_ms = self.bucket(bucket)?.retention_s.saturating_mul(1000);
        // Nothing is older than 1970, so that a retention of a million years keeps everything.
        let limit = self.unix_ms().checked_sub(retention_ms);
        let before = self.horizon(bucket)?;
        let is_believed = self.believe_time(bucket)?;
        let horizon = match limit {
            // The commits of this very millisecond count as old where nothing is to be retained.
            Some(limit) if is_believed => self.commit_before(limit.saturating_add(1))?,
            _ => 0,
        };
        // It never goes back: what was removed under a shorter retention does not come again.
        let horizon = horizon.max(before);
        if horizon == 0 {
            return Ok(None);
        }
        let put = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
        self.execute(put, params![horizon_key(bucket), to_sql(horizon)])?;
        // In the rows of the branches and not by the commits themselves, because commits without rows are removed.
        self.execute(
            "UPDATE branch SET pruned_seq = newest.seq FROM (SELECT b.id AS id, (SELECT c.seq FROM commit_ c \
             WHERE c.bucket_id = ?1 AND c.branch_id = b.id AND c.seq <= ?2 ORDER BY c.seq DESC LIMIT 1) AS seq \
             FROM branch b WHERE b.bucket_id = ?1) AS newest WHERE branch.id = newest.id AND branch.pruned_seq < newest.seq",
            params![bucket, to_sql(horizon)],
        )?;
        Ok(Some(horizon))
    }

    /// Whether the clock may be right: it is at most [`COLLECT_JUMP_MS_MAX`] ahead of the last collection of the bucket, or
    /// has gone on from a jump for [`COLLECT_JUMP_WAIT_MS`]. Otherwise one wrong clock would make all history look old.
    fn believe_time(&self, bucket: BucketId) -> Result<bool, StoreError> {
        let now_ms = self.unix_ms();
        let query = "SELECT coalesce(collected_ms, created_ms), jump_ms FROM bucket WHERE id = ?1";
        let known = self.query_row(query, [bucket], |row| {
            let jump_ms: Option<i64> = row.get(1)?;
            Ok((from_sql(row.get(0)?), jump_ms.map(from_sql)))
        })?;
        let (last_ms, jump_ms) = known.ok_or(StoreError::NotFound(StoreObject::Bucket))?;
        let is_near = now_ms.saturating_sub(last_ms) <= COLLECT_JUMP_MS_MAX;
        let is_confirmed = jump_ms.is_some_and(|jump_ms| {
            let since = jump_ms.saturating_add(COLLECT_JUMP_WAIT_MS);
            (since..=jump_ms.saturating_add(COLLECT_JUMP_MS_MAX)).contains(&now_ms)
        });
        if is_near || is_confirmed {
            let set = "UPDATE bucket SET collected_ms = ?2, jump_ms = NULL WHERE id = ?1";
            self.execute(set, params![bucket, to_sql(now_ms)])?;
            return Ok(true);
        }
        tracing::warn!(
            %bucket, now_ms, last_ms,
            "the clock is far ahead of the last collection: history stays until it has gone on for a day"
        );
        // A clock that jumped once more begins its day again.
        let is_waiting = jump_ms.is_some_and(|jump_ms| {
            (jump_ms..jump_ms.saturating_add(COLLECT_JUMP_WAIT_MS)).contains(&now_ms)
        });
        if !is_waiting {
            let set = "UPDATE bucket SET jump_ms = ?2 WHERE id = ?1";
            self.execute(set, params![bucket, to_sql(now_ms)])?;
        }
        Ok(false)
    }
}
