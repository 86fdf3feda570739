//! Snapshots: read-only names of versions.

use rusqlite::{Row, params};

use super::{BranchId, BucketId};
use crate::address::BranchName;
use crate::db::{ReadTransaction, WriteTransaction, from_sql, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::limits::{PAGE_ENTRIES_MAX, SNAPSHOTS_MAX};
use crate::outbox::{EventPayload, EventTopic};

/// A name of a version of a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The name.
    pub name: BranchName,
    /// The branch.
    pub branch: BranchId,
    /// The last commit that it shows.
    pub seq: u64,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
}

fn read_snapshot(row: &Row<'_>) -> rusqlite::Result<Snapshot> {
    Ok(Snapshot {
        name: BranchName::from_stored(row.get(0)?),
        branch: row.get(1)?,
        seq: from_sql(row.get(2)?),
        created_ms: from_sql(row.get(3)?),
    })
}

impl ReadTransaction<'_> {
    /// The snapshot of a bucket with this name.
    ///
    /// # Errors
    /// The bucket has no such snapshot.
    pub fn snapshot(&self, bucket: BucketId, name: &BranchName) -> Result<Snapshot, StoreError> {
        let query = "SELECT name, branch_id, seq, created_ms FROM snapshot WHERE bucket_id = ?1 AND name = ?2";
        let snapshot = self.query_row(query, params![bucket, name.as_str()], read_snapshot)?;
        snapshot.ok_or(StoreError::NotFound(StoreObject::Snapshot))
    }

    /// Snapshots of a bucket in the order of their names, behind this one.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn snapshots(
        &self,
        bucket: BucketId,
        after: Option<&BranchName>,
        limit: usize,
    ) -> Result<Vec<Snapshot>, StoreError> {
        let after = after.map_or("", BranchName::as_str);
        let limit = to_sql(limit.clamp(1, PAGE_ENTRIES_MAX) as u64);
        let query = "SELECT name, branch_id, seq, created_ms FROM snapshot WHERE bucket_id = ?1 AND name > ?2 \
                     ORDER BY name LIMIT ?3";
        self.query_all(query, params![bucket, after, limit], read_snapshot)
    }
}

impl WriteTransaction<'_> {
    /// Gives a version of a branch a name. `None` is its last version.
    ///
    /// # Errors
    /// The name is taken, the branch does not exist or does not have that version, or the bucket has too many snapshots.
    pub fn create_snapshot(
        &mut self,
        name: &BranchName,
        branch: BranchId,
        seq: Option<u64>,
        actor: &str,
    ) -> Result<Snapshot, StoreError> {
        super::commit::check_actor(actor)?;
        self.check_space()?;
        let branch = self.branch(branch)?;
        let bucket = self.writable_bucket(branch.bucket)?;
        let taken = "SELECT count(*) FROM snapshot WHERE bucket_id = ?1 AND name = ?2";
        if self.query_count(taken, params![bucket.id, name.as_str()])? > 0 {
            return Err(StoreError::Exists(StoreObject::Snapshot));
        }
        let count = "SELECT count(*) FROM snapshot WHERE bucket_id = ?1";
        if self.query_count(count, [bucket.id])? >= SNAPSHOTS_MAX {
            return Err(StoreError::TooLarge {
                unit: "snapshots in a bucket",
                limit: SNAPSHOTS_MAX,
            });
        }
        // A number beyond the head would let later commits appear in a version that is to stay.
        let seq = seq.map_or(branch.head_seq, |seq| seq.min(branch.head_seq));
        // Before it began, the branch had no versions of its own: those of its parent go when the parent is deleted.
        if branch.origin_seq.is_some_and(|origin| seq < origin) {
            return Err(StoreError::NotFound(StoreObject::Version));
        }
        // Only to see that the version is still there: a name of a lost version would fail at its
        // first read.
        self.view(branch.id, Some(seq))?;
        self.execute(
            "INSERT INTO snapshot(bucket_id, name, branch_id, seq, created_ms) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                bucket.id,
                name.as_str(),
                branch.id,
                to_sql(seq),
                to_sql(self.unix_ms()),
            ],
        )?;
        let payload = EventPayload {
            bucket: Some(bucket.name.to_string()),
            branch: Some(branch.name.to_string()),
            seq: Some(seq),
            path: Some(name.to_string()),
            actor: Some(actor.to_owned()),
            ..EventPayload::default()
        };
        let (id, branch) = (Some(bucket.id), Some(branch.id));
        self.emit(EventTopic::SnapshotCreate, id, branch, &payload)?;
        self.snapshot(bucket.id, name)
    }

    /// Deletes a snapshot. The version that it named stays until the retention is over.
    ///
    /// # Errors
    /// The bucket has no such snapshot, or is frozen.
    pub fn delete_snapshot(
        &mut self,
        bucket: BucketId,
        name: &BranchName,
    ) -> Result<(), StoreError> {
        self.writable_bucket(bucket)?;
        let delete = "DELETE FROM snapshot WHERE bucket_id = ?1 AND name = ?2";
        match self.execute(delete, params![bucket, name.as_str()])? {
            0 => Err(StoreError::NotFound(StoreObject::Snapshot)),
            _ => Ok(()),
        }
    }
}
