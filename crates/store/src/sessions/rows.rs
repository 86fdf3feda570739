//! Rows of sessions, by which the collection and the counters of buckets know them.

use rusqlite::params;

use super::{NewWriteSession, WriteSessionId};
use crate::db::{ReadTransaction, WriteTransaction, to_sql};
use crate::error::{QuotaResource, StoreError};
use crate::hash::ContentHash;
use crate::locks::{LockHolder, LockedChange};
use crate::names::BucketId;

/// What a row says of the progress of a session.
pub(super) struct SessionProgress {
    pub(super) id: WriteSessionId,
    pub(super) bucket: BucketId,
    /// The written ranges, as text.
    pub(super) staged: String,
    /// Staged bytes.
    pub(super) bytes: u64,
    /// Staged bytes that the row had before.
    pub(super) bytes_before: u64,
    /// Bytes that the content has so far.
    pub(super) size: u64,
}

impl ReadTransaction<'_> {
    /// Bytes that may be added to a bucket. `None` is no limit.
    pub(super) fn quota_left(&self, bucket: BucketId) -> Result<Option<u64>, StoreError> {
        let used = self.usage(bucket)?.bytes;
        let quota = self.bucket(bucket)?.quota_bytes;
        Ok(quota.map(|quota| quota.saturating_sub(used)))
    }

    /// Refuses a content that its bucket has no quota for. The commit decides, because the bucket may have the content
    /// already; this ends an upload early.
    pub(super) fn check_quota(
        &self,
        bucket: BucketId,
        size: u64,
    ) -> Result<Option<u64>, StoreError> {
        let left = self.quota_left(bucket)?;
        if left.is_some_and(|left| size > left) {
            return Err(StoreError::QuotaExceeded {
                resource: QuotaResource::Bytes,
                limit: self.bucket(bucket)?.quota_bytes.unwrap_or_default(),
                used: self.usage(bucket)?.bytes,
            });
        }
        Ok(left)
    }
}

impl WriteTransaction<'_> {
    pub(super) fn insert_session(
        &self,
        id: WriteSessionId,
        new: &NewWriteSession,
        base: Option<ContentHash>,
    ) -> Result<(), StoreError> {
        self.check_session_lock(new)?;
        let (parent, name) = new.path.columns()?;
        let now = to_sql(self.unix_ms());
        self.execute(
            "INSERT INTO session(id, branch_id, parent, name, base_hash, mode, identity, staged, size, opened_ms, \
             touched_ms, state) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, '', 0, ?8, ?8, 'open')",
            params![
                id.as_bytes(),
                new.branch,
                parent,
                name,
                base,
                new.mode.name(),
                new.identity,
                now
            ],
        )?;
        Ok(())
    }

    /// Refuses a session that a lock will not let end well. The commit asks again, because a lock may come meanwhile.
    fn check_session_lock(&self, new: &NewWriteSession) -> Result<(), StoreError> {
        // Before the look at the entry, which most sessions can spare so.
        if !self.has_locks(new.branch)? {
            return Ok(());
        }
        let is_there = self
            .find(&self.view(new.branch, None)?, &new.path)?
            .is_some();
        let change = match is_there {
            true => LockedChange::Content,
            false => LockedChange::Name,
        };
        let holder = LockHolder {
            owner: &new.identity,
            tokens: &new.lock_tokens,
        };
        self.check_locks(new.branch, &new.path, change, holder)
    }

    /// Writes how far a session came, and looks at the quota of its bucket. Returns what is left of it.
    pub(super) fn save_session(
        &self,
        progress: &SessionProgress,
    ) -> Result<Option<u64>, StoreError> {
        let left = self.check_quota(progress.bucket, progress.size)?;
        let now = to_sql(self.unix_ms());
        self.execute(
            "UPDATE session SET staged = ?2, size = ?3, touched_ms = ?4 WHERE id = ?1",
            params![
                progress.id.as_bytes(),
                progress.staged,
                to_sql(progress.bytes),
                now
            ],
        )?;
        let change = to_sql(progress.bytes) - to_sql(progress.bytes_before);
        self.add_staged(progress.bucket, change)?;
        Ok(left)
    }

    /// Removes the row of a session, with the bytes that it counts.
    pub(super) fn remove_session(
        &self,
        id: WriteSessionId,
        bucket: BucketId,
        bytes: u64,
    ) -> Result<(), StoreError> {
        let removed = self.execute("DELETE FROM session WHERE id = ?1", [id.as_bytes()])?;
        // A second removal must not give the same bytes back again.
        if removed > 0 {
            self.add_staged(bucket, -to_sql(bytes))?;
        }
        Ok(())
    }

    /// Removes all sessions: those of the time before a start have no files any more.
    pub(super) fn remove_all_sessions(&self) -> Result<usize, StoreError> {
        self.execute("UPDATE usage SET staged = 0 WHERE staged <> 0", [])?;
        self.execute("DELETE FROM session", [])
    }

    fn add_staged(&self, bucket: BucketId, change: i64) -> Result<(), StoreError> {
        let set = "UPDATE usage SET staged = staged + ?2 WHERE bucket_id = ?1";
        self.execute(set, params![bucket, change])?;
        Ok(())
    }
}
