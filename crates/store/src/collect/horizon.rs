//! Which versions of a bucket are needed, and before which commit the others may be gone.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::params;

use crate::clock::HybridTimestamp;
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::limits::{MERGE_BASE_STEPS_MAX, SEQ_MAX};
use crate::names::{BranchId, BucketId};

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
    pub(crate) fn check_version_kept(
        &self,
        bucket: BucketId,
        branch: BranchId,
        as_of: u64,
    ) -> Result<(), StoreError> {
        let horizon = self.horizon(bucket)?;
        if as_of >= horizon {
            return Ok(());
        }
        // The version that the branch had at the horizon is complete, because only rows that were replaced by then are old;
        // so is what a snapshot or a branch refers to. Of merges only the last ones are, so that their versions count for
        // the search of a merge base alone.
        let needed = self.query_count(
            "SELECT NOT EXISTS (SELECT 1 FROM commit_ WHERE bucket_id = ?3 AND branch_id = ?1 AND seq > ?2 AND seq <= ?4) \
             OR EXISTS (SELECT 1 FROM branch WHERE parent_id = ?1 AND (base_seq = ?2 OR origin_seq = ?2)) \
             OR EXISTS (SELECT 1 FROM snapshot WHERE bucket_id = ?3 AND branch_id = ?1 AND seq = ?2)",
            params![branch, to_sql(as_of), bucket, to_sql(horizon)],
        )?;
        match needed {
            0 => Err(StoreError::NotFound(StoreObject::Version)),
            _ => Ok(()),
        }
    }

    /// The newest commit before this time, of any bucket.
    fn commit_before(&self, ms: u64) -> Result<u64, StoreError> {
        // The hybrid clock never goes back, and the system's may: with that, new versions could look old.
        let limit = HybridTimestamp::new(ms, 0, [0; 8]).to_bytes();
        let query = "SELECT seq FROM commit_ WHERE hlc < ?1 ORDER BY seq DESC LIMIT 1";
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

    /// The versions that a branch had taken in by one of its versions, as the search for a merge base goes back.
    fn versions_taken_in(
        &self,
        branch: BranchId,
        seq: u64,
    ) -> Result<Vec<(BranchId, u64)>, StoreError> {
        self.query_all(
            "SELECT parent_id, min(origin_seq, ?2) FROM branch \
             WHERE id = ?1 AND parent_id IS NOT NULL AND origin_seq IS NOT NULL \
             UNION ALL SELECT merge_branch, max(merge_seq) FROM commit_ \
             WHERE branch_id = ?1 AND merge_branch IS NOT NULL AND seq <= ?2 GROUP BY merge_branch",
            params![branch, to_sql(seq)],
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
        let Some(limit) = self.unix_ms().checked_sub(retention_ms) else {
            return Ok(None);
        };
        // The commits of this very millisecond count as old where nothing is to be retained.
        let horizon = self.commit_before(limit.saturating_add(1))?;
        let before = self.horizon(bucket)?;
        // It never goes back: what was removed under a shorter retention does not come again.
        let horizon = horizon.max(before);
        if horizon == 0 {
            return Ok(None);
        }
        let put = "INSERT OR REPLACE INTO meta VALUES (?1, ?2)";
        self.execute(put, params![horizon_key(bucket), to_sql(horizon)])?;
        Ok(Some(horizon))
    }
}
