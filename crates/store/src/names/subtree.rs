//! An entry with everything below it: how much that is, before a change begins, and its rows piece by piece.

use super::buckets::Bucket;
use super::commit::OpenCommit;
use super::entry::Entry;
use super::list::TreeScan;
use super::resolve::TreeView;
use crate::db::{ReadTransaction, WriteTransaction};
use crate::error::{QuotaResource, StoreError};
use crate::limits::SUBTREE_ENTRIES_MAX;
use crate::path::EntryPath;

impl ReadTransaction<'_> {
    /// Number of an entry and everything below it. Each path is looked at by the caller, so that a change can be refused
    /// before its first row.
    ///
    /// # Errors
    /// There are more than one job may touch, or the caller refuses a path.
    pub(super) fn count_subtree(
        &self,
        view: &TreeView,
        entry: &Entry,
        mut check: impl FnMut(&EntryPath) -> Result<(), StoreError>,
    ) -> Result<u64, StoreError> {
        check(&entry.path)?;
        let mut count = 1;
        if !entry.state.is_directory() {
            return Ok(count);
        }
        let mut scan = TreeScan::below(view, &entry.path);
        while let Some(chunk) = scan.next_chunk(self)? {
            chunk.iter().try_for_each(|it| check(&it.path))?;
            count += chunk.len() as u64;
            if count > SUBTREE_ENTRIES_MAX as u64 {
                return Err(StoreError::too_many_entries());
            }
        }
        Ok(count)
    }
}

impl WriteTransaction<'_> {
    /// Refuses new versions of so many entries, before the first one is written: they are too many for one job, or the
    /// bucket would have more than its quota.
    pub(super) fn check_growth(&self, commit: &OpenCommit, entries: u64) -> Result<(), StoreError> {
        self.count_entries(entries)?;
        let pending = u64::try_from(commit.new_entries()).unwrap_or_default();
        self.check_entry_quota(&commit.bucket, pending.saturating_add(entries))
    }

    /// Refuses so many further versions of entries if the bucket would have more than its quota.
    pub(super) fn check_entry_quota(
        &self,
        bucket: &Bucket,
        entries: u64,
    ) -> Result<(), StoreError> {
        let Some(limit) = bucket.quota_entries else {
            return Ok(());
        };
        let used = self.usage(bucket.id)?.entries;
        if used.saturating_add(entries) > limit && !self.is_replay() {
            let resource = QuotaResource::Entries;
            return Err(StoreError::QuotaExceeded {
                resource,
                limit,
                used,
            });
        }
        Ok(())
    }
}
