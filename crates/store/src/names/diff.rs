//! Differences between two trees of a bucket.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rusqlite::params;

use super::entry::{Entry, EntryKind};
use super::resolve::TreeView;
use super::{BranchId, BucketId};
use crate::db::{ReadTransaction, to_sql};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::{SUBTREE_ENTRIES_MAX, TRANSACTION_BYTES_MAX};
use crate::path::EntryPath;

/// A difference between two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TreeDifference {
    /// Only the second tree has the entry.
    Added(Entry),
    /// Only the first tree has the entry.
    Removed(Entry),
    /// Both trees have an entry at the path, and they differ.
    Changed {
        /// That of the first tree.
        before: Entry,
        /// That of the second tree.
        after: Entry,
    },
    /// The second tree has a file of the first one at another path.
    Renamed {
        /// That of the first tree.
        before: Entry,
        /// That of the second tree.
        after: Entry,
    },
}

impl TreeDifference {
    /// The path in the second tree, or in the first one if the entry was removed.
    #[must_use]
    pub const fn path(&self) -> &EntryPath {
        match self {
            Self::Added(entry) | Self::Removed(entry) => &entry.path,
            Self::Changed { after, .. } | Self::Renamed { after, .. } => &after.path,
        }
    }
}

/// Paths of rows, as many as one comparison may look at.
#[derive(Default)]
struct ChangedPaths {
    found: BTreeSet<EntryPath>,
    /// Bytes of the paths of all rows.
    bytes: u64,
}

impl ChangedPaths {
    /// Adds the path of a row with the columns `parent, name`.
    fn add(&mut self, row: &rusqlite::Row<'_>) -> rusqlite::Result<()> {
        // The query goes on to its end, and keeps nothing of it.
        if self.bytes <= TRANSACTION_BYTES_MAX {
            let parent: String = row.get(0)?;
            let name: String = row.get(1)?;
            let path = EntryPath::from_stored(&parent, &name);
            self.bytes += path.as_str().len() as u64;
            self.found.insert(path);
        }
        Ok(())
    }

    /// Refuses too many paths. By the rows of the query: many rows of one path would hide that it was cut.
    fn check(&self, rows: usize) -> Result<(), StoreError> {
        if rows > SUBTREE_ENTRIES_MAX || self.found.len() > SUBTREE_ENTRIES_MAX {
            return Err(StoreError::too_many_entries());
        }
        if self.bytes > TRANSACTION_BYTES_MAX {
            return Err(StoreError::too_many_bytes());
        }
        Ok(())
    }
}

impl ReadTransaction<'_> {
    /// What has to be done to the first tree so that it becomes the second one, in the order of the paths. It looks only at
    /// paths that one of the trees has changed since they were the same.
    ///
    /// # Errors
    /// There are too many of those.
    pub fn diff(
        &self,
        first: &TreeView,
        second: &TreeView,
    ) -> Result<Vec<TreeDifference>, StoreError> {
        let mut differences = Vec::new();
        let mut bytes = 0;
        for path in self.changed_paths(first, second)? {
            let before = self.find(first, &path)?;
            let after = self.find(second, &path)?;
            for entry in [&before, &after].into_iter().flatten() {
                bytes += path.as_str().len() as u64 + entry.state.attribute_bytes();
            }
            if bytes > TRANSACTION_BYTES_MAX {
                return Err(StoreError::too_many_bytes());
            }
            match (before, after) {
                (None, None) => {}
                (None, Some(after)) => differences.push(TreeDifference::Added(after)),
                (Some(before), None) => differences.push(TreeDifference::Removed(before)),
                (Some(before), Some(after)) if before.state.is_same_version(&after.state) => {}
                (Some(before), Some(after)) => {
                    differences.push(TreeDifference::Changed { before, after });
                }
            }
        }
        Ok(pair_renames(differences))
    }

    /// Paths that may differ between two trees of a bucket: those with a row that only one of them shows. All others have
    /// the same rows in both.
    pub(super) fn changed_paths(
        &self,
        first: &TreeView,
        second: &TreeView,
    ) -> Result<BTreeSet<EntryPath>, StoreError> {
        let levels = first.levels.iter().chain(&second.levels);
        let branches: BTreeSet<BranchId> = levels.map(|level| level.branch).collect();
        let mut paths = ChangedPaths::default();
        for branch in branches {
            match (first.limit_of(branch), second.limit_of(branch)) {
                (Some(one), Some(other)) => {
                    let range = (one.min(other), one.max(other));
                    self.add_paths_between(first.bucket, branch, range, &mut paths)?;
                }
                // The other tree does not look at this branch, so every row of it may make a
                // difference.
                (Some(only), None) | (None, Some(only)) => {
                    self.add_paths_until(branch, only, &mut paths)?;
                }
                (None, None) => {}
            }
        }
        Ok(paths.found)
    }

    /// Adds the paths with rows of these commits, the first one left out.
    fn add_paths_between(
        &self,
        bucket: BucketId,
        branch: BranchId,
        (after, until): (u64, u64),
        paths: &mut ChangedPaths,
    ) -> Result<(), StoreError> {
        if after == until {
            return Ok(());
        }
        // By the commits of the branch: its other rows may be a thousand times as many.
        let rows = self.query_all(
            "SELECT e.parent, e.name FROM commit_ c CROSS JOIN entry e ON e.seq = c.seq AND e.branch_id = c.branch_id \
             WHERE c.bucket_id = ?1 AND c.branch_id = ?2 AND c.seq > ?3 AND c.seq <= ?4 LIMIT ?5",
            params![bucket, branch, to_sql(after), to_sql(until), limit()],
            |row| paths.add(row),
        )?;
        paths.check(rows.len())
    }

    /// Adds the paths with rows up to a commit.
    fn add_paths_until(
        &self,
        branch: BranchId,
        until: u64,
        paths: &mut ChangedPaths,
    ) -> Result<(), StoreError> {
        let rows = self.query_all(
            "SELECT DISTINCT parent, name FROM entry WHERE branch_id = ?1 AND seq <= ?2 LIMIT ?3",
            params![branch, to_sql(until), limit()],
            |row| paths.add(row),
        )?;
        paths.check(rows.len())
    }
}

/// One more than is allowed, which shows that there are too many.
fn limit() -> i64 {
    to_sql(SUBTREE_ENTRIES_MAX as u64 + 1)
}

/// Makes one difference of a file that was removed and one with the same content that was added.
fn pair_renames(differences: Vec<TreeDifference>) -> Vec<TreeDifference> {
    let mut removed: BTreeMap<ContentHash, VecDeque<Entry>> = BTreeMap::new();
    for difference in &differences {
        if let TreeDifference::Removed(entry) = difference
            && let Some(hash) = hash_of_file(entry)
        {
            // A queue for each content: of several files with the same bytes each is paired once.
            removed.entry(hash).or_default().push_back(entry.clone());
        }
    }
    let mut moved = BTreeSet::new();
    let mut paired = Vec::with_capacity(differences.len());
    for difference in differences {
        let before = match &difference {
            TreeDifference::Added(entry) => hash_of_file(entry)
                .and_then(|hash| removed.get_mut(&hash))
                .and_then(VecDeque::pop_front),
            _ => None,
        };
        match (difference, before) {
            (TreeDifference::Added(after), Some(before)) => {
                moved.insert(before.path.clone());
                paired.push(TreeDifference::Renamed { before, after });
            }
            (difference, _) => paired.push(difference),
        }
    }
    let is_moved = |it: &TreeDifference| match it {
        TreeDifference::Removed(entry) => moved.contains(&entry.path),
        _ => false,
    };
    paired.retain(|difference| !is_moved(difference));
    paired
}

fn hash_of_file(entry: &Entry) -> Option<ContentHash> {
    entry
        .state
        .hash
        .filter(|_| entry.state.kind == EntryKind::File)
}
