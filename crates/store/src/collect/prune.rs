//! The removal of rows that no view needs.

use rusqlite::params;

use super::horizon::NeededVersions;
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::COLLECT_STEP_ROWS;
use crate::names::{BranchId, BucketId, UsageChange, charged_bytes};

/// How far the removal came in one branch.
#[derive(Clone, Debug, Default)]
pub(super) struct PruneCursor {
    /// The last row that was looked at, which may be gone.
    after: Option<RowKey>,
    /// Whether an older row of the same path stays.
    has_older: bool,
}

/// What a step did.
#[derive(Debug)]
pub(super) struct PruneStep {
    pub(super) rows: u64,
    /// Where the next step begins. `None` at the end of the branch.
    pub(super) next: Option<PruneCursor>,
}

#[derive(Clone, Debug)]
struct RowKey {
    parent: String,
    name: String,
    seq: u64,
}

impl RowKey {
    fn is_of_path(&self, other: &Self) -> bool {
        (&self.parent, &self.name) == (&other.parent, &other.name)
    }
}

/// A row that may be removed.
struct VersionRow {
    key: RowKey,
    is_live: bool,
    hash: Option<ContentHash>,
    size: u64,
    /// Bytes of the row that count against the quota.
    charged: i64,
}

impl ReadTransaction<'_> {
    /// Rows of a branch by path and commit, one more than a step looks at.
    fn versions_after(
        &self,
        branch: BranchId,
        after: Option<&RowKey>,
    ) -> Result<Vec<VersionRow>, StoreError> {
        // No row is above this one: a parent begins with a slash.
        let (parent, name, seq) = after.map_or(("", "", 0), |key| {
            (key.parent.as_str(), key.name.as_str(), to_sql(key.seq))
        });
        self.query_all(
            concat!(
                "SELECT parent, name, seq, kind <> 0, hash, size, ",
                charged_bytes!(),
                " FROM entry WHERE branch_id = ?1 AND (parent, name, seq) > (?2, ?3, ?4) \
                 ORDER BY parent, name, seq LIMIT ?5"
            ),
            params![
                branch,
                parent,
                name,
                seq,
                to_sql(COLLECT_STEP_ROWS as u64 + 1)
            ],
            |row| {
                Ok(VersionRow {
                    key: RowKey {
                        parent: row.get(0)?,
                        name: row.get(1)?,
                        seq: from_sql(row.get(2)?),
                    },
                    is_live: row.get(3)?,
                    hash: row.get(4)?,
                    size: from_sql(row.get(5)?),
                    charged: row.get(6)?,
                })
            },
        )
    }

    /// Whether some view has levels behind that of this branch, which a deletion of it hides.
    fn has_levels_behind(&self, branch: BranchId) -> Result<bool, StoreError> {
        let levels = self.query_count(
            "SELECT EXISTS (SELECT 1 FROM chain own JOIN chain behind ON behind.branch_id = own.branch_id \
             AND behind.depth > own.depth WHERE own.anc_id = ?1)",
            [branch],
        )?;
        Ok(levels > 0)
    }
}

impl WriteTransaction<'_> {
    /// Removes old rows among the next ones of a branch, and gives back what they use.
    pub(super) fn prune_branch(
        &self,
        bucket: BucketId,
        branch: BranchId,
        needed: &NeededVersions,
        cursor: &PruneCursor,
    ) -> Result<PruneStep, StoreError> {
        let rows = self.versions_after(branch, cursor.after.as_ref())?;
        // A peer that has not seen a deletion would bring the file back, so synchronised buckets keep deletions.
        let has_deletions = self.bucket(bucket)?.sync.is_on || self.has_levels_behind(branch)?;
        let mut usage = UsageChange::default();
        let mut removed = 0;
        let mut has_older = cursor.has_older;
        let mut before = cursor.after.as_ref();
        for (at, row) in rows.iter().take(COLLECT_STEP_ROWS).enumerate() {
            // The first row of a path has no older one.
            has_older &= before.is_some_and(|before| before.is_of_path(&row.key));
            before = Some(&row.key);
            let next = rows.get(at + 1).filter(|it| it.key.is_of_path(&row.key));
            let is_old = match next {
                Some(VersionRow { key: next, .. }) => {
                    next.seq <= needed.horizon && !needed.is_shown(branch, row.key.seq, next.seq)
                }
                // A deletion with nothing to hide says the same as no row.
                None => {
                    let is_deletion = !row.is_live && !has_older && !has_deletions;
                    is_deletion && row.key.seq <= needed.horizon
                }
            };
            if is_old {
                self.remove_version(bucket, branch, row, &mut usage)?;
                removed += 1;
            } else {
                has_older = true;
            }
        }
        self.add_usage(bucket, usage)?;
        let is_last = rows.len() <= COLLECT_STEP_ROWS;
        let next = before.filter(|_| !is_last).map(|key| PruneCursor {
            after: Some(key.clone()),
            has_older,
        });
        Ok(PruneStep {
            rows: removed,
            next,
        })
    }

    fn remove_version(
        &self,
        bucket: BucketId,
        branch: BranchId,
        row: &VersionRow,
        usage: &mut UsageChange,
    ) -> Result<(), StoreError> {
        let RowKey { parent, name, seq } = &row.key;
        self.execute(
            "DELETE FROM entry WHERE branch_id = ?1 AND parent = ?2 AND name = ?3 AND seq = ?4",
            params![branch, parent, name, to_sql(*seq)],
        )?;
        usage.entries -= i64::from(row.is_live);
        usage.bytes -= row.charged;
        match row.hash {
            Some(hash) => self.release_content(bucket, hash, row.size, usage),
            None => Ok(()),
        }
    }
}
