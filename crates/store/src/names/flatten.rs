//! Branches that no longer read through their ancestors.

use rusqlite::params;

use super::BranchId;
use super::buckets::Bucket;
use super::entry::Entry;
use super::list::TreeScan;
use super::usage::UsageChange;
use crate::db::{WriteTransaction, to_sql};
use crate::error::StoreError;
use crate::path::EntryPath;

impl WriteTransaction<'_> {
    /// Copies what a branch shows of its ancestors into its own level. The copies have the numbers of the rows that they
    /// copy, so the branch shows the same as before at each of its versions.
    ///
    /// # Errors
    /// The job has touched too many entries, or the bucket would have more than its quota.
    pub(super) fn flatten(&self, bucket: &Bucket, id: BranchId) -> Result<(), StoreError> {
        let view = self.view(id, None)?;
        let above = view.without_own_level();
        let Some(begin) = above.levels.first() else {
            return Ok(());
        };
        let root = EntryPath::root();
        let shown = self.count_subtree(&above, &Entry::root(id), |_| Ok(()))?;
        // The root has no row.
        let shown = shown.saturating_sub(1);
        self.count_entries(shown)?;
        self.check_entry_quota(bucket, shown)?;
        let mut usage = UsageChange::default();
        let mut scan = TreeScan::below(&above, &root).with_attributes();
        while let Some(chunk) = scan.next_chunk(self)? {
            for entry in chunk {
                // Without the commit of `write_row`: a copy has none of its own.
                self.insert_entry(id, &entry.path, entry.seq, &entry.state, &mut usage)?;
                if let Some(hash) = entry.state.hash {
                    self.retain_content(bucket.id, hash, entry.state.size, &mut usage)?;
                }
            }
        }
        self.execute("DELETE FROM chain WHERE branch_id = ?1 AND depth > 0", [id])?;
        let flat = "UPDATE branch SET flat_seq = ?2 WHERE id = ?1";
        self.execute(flat, params![id, to_sql(begin.max_seq)])?;
        self.charge(bucket, usage)
    }
}
