//! From an address to an entry: views of a tree, and what a path leads to in them.

use rusqlite::params;

use super::entry::{Entry, EntryState};
use super::{BranchId, BucketId};
use crate::address::{EntryAddress, TreeVersion};
use crate::db::{ReadTransaction, from_sql, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::limits::SEQ_MAX;
use crate::path::EntryPath;

/// One version of a tree: the levels that a read looks through, that of the branch first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeView {
    pub(crate) bucket: BucketId,
    pub(crate) branch: BranchId,
    pub(crate) levels: Vec<TreeLevel>,
}

/// The rows of one branch up to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TreeLevel {
    pub(crate) branch: BranchId,
    /// Number of the last commit whose rows count.
    pub(crate) max_seq: u64,
}

impl TreeView {
    /// The bucket of the tree.
    #[must_use]
    pub const fn bucket(&self) -> BucketId {
        self.bucket
    }

    /// The branch of the tree.
    #[must_use]
    pub const fn branch(&self) -> BranchId {
        self.branch
    }

    /// The last commit that the view shows. `None` for the head, which moves.
    pub(crate) fn as_of(&self) -> Option<u64> {
        let own = self.levels.first().map(|level| level.max_seq);
        own.filter(|seq| *seq < SEQ_MAX)
    }

    /// What this view shows without the rows of the branch itself.
    pub(crate) fn without_own_level(&self) -> Self {
        Self {
            levels: self.levels.iter().skip(1).copied().collect(),
            ..*self
        }
    }

    /// A tree of the same branch without entries.
    pub(crate) const fn emptied(&self) -> Self {
        Self {
            bucket: self.bucket,
            branch: self.branch,
            levels: Vec::new(),
        }
    }

    /// The last commit of a branch that this view shows rows of. `None` if the view does not look at that branch.
    pub(crate) fn limit_of(&self, branch: BranchId) -> Option<u64> {
        let level = self.levels.iter().find(|level| level.branch == branch);
        level.map(|level| level.max_seq)
    }
}

impl ReadTransaction<'_> {
    /// A branch as it is, or as it was after a commit.
    ///
    /// # Errors
    /// The branch does not exist, or it does not have the version any more: it was made independent of its ancestors after
    /// that commit, or the commit is older than the retention and a collection came by.
    pub fn view(&self, branch: BranchId, as_of: Option<u64>) -> Result<TreeView, StoreError> {
        let view = self.view_unchecked(branch, as_of)?;
        if let Some(as_of) = as_of {
            self.check_version_kept(&view, as_of)?;
        }
        Ok(view)
    }

    /// The same for a version that the caller knows to be complete: a collection leaves what a merge compares with.
    pub(super) fn view_unchecked(
        &self,
        branch: BranchId,
        as_of: Option<u64>,
    ) -> Result<TreeView, StoreError> {
        let bucket = "SELECT bucket_id FROM branch WHERE id = ?1 AND state <> 'deleted'";
        let bucket = self.query_row(bucket, [branch], |row| row.get(0))?;
        let bucket = bucket.ok_or(StoreError::NotFound(StoreObject::Branch))?;
        // Not the head of the branch: a commit that is being written has to see its own rows.
        let as_of = as_of.unwrap_or(SEQ_MAX);
        let levels = self.query_all(
            "SELECT c.anc_id, min(c.max_seq, ?2), coalesce(b.flat_seq, 0) FROM chain c JOIN branch b ON b.id = c.anc_id \
             WHERE c.branch_id = ?1 ORDER BY c.depth",
            params![branch, to_sql(as_of)],
            |row| {
                let level = TreeLevel {
                    branch: row.get(0)?,
                    max_seq: from_sql(row.get(1)?),
                };
                Ok((level, from_sql(row.get(2)?)))
            },
        )?;
        // Below that commit the level has only what was visible at it.
        if levels.iter().any(|(level, flat)| level.max_seq < *flat) {
            return Err(StoreError::NotFound(StoreObject::Version));
        }
        let levels = levels.into_iter().map(|(level, _)| level).collect();
        Ok(TreeView {
            bucket,
            branch,
            levels,
        })
    }

    /// The tree that an address means.
    ///
    /// # Errors
    /// The bucket, the branch, the snapshot or the version does not exist.
    pub fn view_of(&self, address: &EntryAddress) -> Result<TreeView, StoreError> {
        let bucket = self.bucket_by_name(&address.bucket)?.id;
        match &address.version {
            TreeVersion::Head(branch) => self.view(self.branch_by_name(bucket, branch)?.id, None),
            TreeVersion::At(branch, seq) => {
                self.view(self.branch_by_name(bucket, branch)?.id, Some(*seq))
            }
            TreeVersion::Snapshot(name) => {
                let snapshot = self.snapshot(bucket, name)?;
                self.view(snapshot.branch, Some(snapshot.seq))
            }
        }
    }

    /// The entry at a path.
    ///
    /// # Errors
    /// The path leads to nothing.
    pub fn stat(&self, view: &TreeView, path: &EntryPath) -> Result<Entry, StoreError> {
        let entry = self.find(view, path)?;
        entry.ok_or(StoreError::NotFound(StoreObject::Entry))
    }

    /// The entry at a path, if there is one.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn find(&self, view: &TreeView, path: &EntryPath) -> Result<Option<Entry>, StoreError> {
        let newest = self.newest(view, path)?;
        Ok(newest.filter(|entry| entry.state.is_live()))
    }

    /// The newest row of a path, which may be a deletion.
    pub(crate) fn newest(
        &self,
        view: &TreeView,
        path: &EntryPath,
    ) -> Result<Option<Entry>, StoreError> {
        // The root has no row, and every version of every branch has it.
        let Some((parent, name)) = path.split() else {
            return Ok(Some(Entry::root(view.branch)));
        };
        for level in &view.levels {
            let found = self.query_row(
                "SELECT seq, kind, hash, size, mode, mtime_ns, target, xattr FROM entry \
                 WHERE branch_id = ?1 AND parent = ?2 AND name = ?3 AND seq <= ?4 ORDER BY seq DESC LIMIT 1",
                params![level.branch, parent, name, to_sql(level.max_seq)],
                |row| {
                    Ok(Entry {
                        path: path.clone(),
                        state: EntryState::read(row, 1)?,
                        seq: from_sql(row.get(0)?),
                        branch: level.branch,
                    })
                },
            )?;
            // The first level with a row decides, also by a deletion.
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    }
}
