//! The merge base: the newest version that two branches have in common.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use rusqlite::params;

use crate::db::{ReadTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::limits::MERGE_BASE_STEPS_MAX;
use crate::names::BranchId;
use crate::names::branches::Branch;
use crate::names::resolve::TreeView;

/// One of the two branches of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum MergeSide {
    Source,
    Target,
}

/// A version that one side has taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct VersionStep {
    seq: u64,
    branch: BranchId,
    side: MergeSide,
}

impl Ord for VersionStep {
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |it: &Self| (it.seq, it.branch, it.side);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for VersionStep {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The newest versions of a branch that either side has taken in.
#[derive(Clone, Copy, Default)]
struct ReachedVersions {
    source: Option<u64>,
    target: Option<u64>,
}

impl ReachedVersions {
    /// Notes a version, and returns that of the other side. `None` if this side had reached a newer one.
    fn note(&mut self, side: MergeSide, seq: u64) -> Option<Option<u64>> {
        let (own, other) = match side {
            MergeSide::Source => (&mut self.source, self.target),
            MergeSide::Target => (&mut self.target, self.source),
        };
        // The heap gives the newest version first, so a second visit of the branch adds nothing.
        if own.is_some() {
            return None;
        }
        *own = Some(seq);
        Some(other)
    }
}

impl ReadTransaction<'_> {
    /// The newest version that both branches have taken in. `None` if they have nothing in common.
    ///
    /// A branch has taken in its own versions, those of its parent up to where it began, and those that it merged. The
    /// search goes from the newest version to older ones, by the numbers of the commits: each version was taken in before
    /// the commit that took it in, so the first one that both sides reach is the newest.
    pub(super) fn merge_base(
        &self,
        source: &Branch,
        target: &Branch,
    ) -> Result<Option<TreeView>, StoreError> {
        let mut reached: BTreeMap<BranchId, ReachedVersions> = BTreeMap::new();
        let start = |branch: &Branch, side| VersionStep {
            seq: branch.head_seq,
            branch: branch.id,
            side,
        };
        let starts = [
            start(source, MergeSide::Source),
            start(target, MergeSide::Target),
        ];
        let mut open = BinaryHeap::from(starts);
        let mut steps = 0;
        while let Some(step) = open.pop() {
            let versions = reached.entry(step.branch).or_default();
            let Some(other) = versions.note(step.side, step.seq) else {
                continue;
            };
            // The other side came by earlier, at this version or a newer one.
            if other.is_some() {
                match self.view_unchecked(step.branch, Some(step.seq)) {
                    // A branch that is deleted has no tree any more, and one that was flattened none of its older versions.
                    Err(StoreError::NotFound(_)) => {}
                    view => return view.map(Some),
                }
            }
            // Counted, because a long history of merges would keep the writer from all other jobs.
            steps += 1;
            if steps > MERGE_BASE_STEPS_MAX {
                return Err(StoreError::TooLarge {
                    unit: "merges between the versions of two branches",
                    limit: MERGE_BASE_STEPS_MAX as u64,
                });
            }
            open.extend(self.versions_behind(step)?);
        }
        Ok(None)
    }

    /// The versions that a branch had taken in by this one.
    fn versions_behind(&self, step: VersionStep) -> Result<Vec<VersionStep>, StoreError> {
        let taken = self.versions_taken_in(step.branch, step.seq)?;
        let steps = taken.into_iter().map(|(branch, seq)| VersionStep {
            seq,
            branch,
            side: step.side,
        });
        Ok(steps.collect())
    }

    /// The versions of other branches that a branch had taken in by one of its versions: that of its parent which it began
    /// at, and of each branch that it merged the newest one.
    pub(crate) fn versions_taken_in(
        &self,
        branch: BranchId,
        seq: u64,
    ) -> Result<Vec<(BranchId, u64)>, StoreError> {
        let parent = "SELECT parent_id, min(origin_seq, ?2) FROM branch \
                      WHERE id = ?1 AND parent_id IS NOT NULL AND origin_seq IS NOT NULL";
        // From one merged branch to the next in the index, and in each to its last merge: two branches that were merged to
        // and fro a hundred thousand times would be read as often for each of these merges otherwise.
        let merged = "WITH RECURSIVE merged(id) AS ( \
                      SELECT min(merge_branch) FROM commit_ WHERE branch_id = ?1 AND merge_branch IS NOT NULL \
                      UNION ALL SELECT (SELECT min(c.merge_branch) FROM commit_ c \
                      WHERE c.branch_id = ?1 AND c.merge_branch > merged.id) FROM merged WHERE merged.id IS NOT NULL), \
                      newest(id, seq) AS (SELECT merged.id, (SELECT c.merge_seq FROM commit_ c \
                      WHERE c.branch_id = ?1 AND c.merge_branch = merged.id AND c.seq <= ?2 ORDER BY c.seq DESC LIMIT 1) \
                      FROM merged WHERE merged.id IS NOT NULL) \
                      SELECT id, seq FROM newest WHERE seq IS NOT NULL";
        let mut taken = Vec::new();
        for query in [parent, merged] {
            let versions = self.query_all(query, params![branch, to_sql(seq)], |row| {
                Ok((row.get(0)?, from_sql(row.get(1)?)))
            })?;
            taken.extend(versions);
        }
        Ok(taken)
    }
}
