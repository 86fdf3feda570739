//! Buckets: the unit of ownership, quota and retention.

use rusqlite::{Row, params};

use super::branches::Branch;
use super::bucket_sync::{BucketSync, ContentFetchMode};
use super::{BucketId, read_name};
use crate::address::{BranchName, BucketName};
use crate::db::{Durability, ReadTransaction, WriteTransaction, from_sql, to_sql, to_sql_option};
use crate::error::{StoreError, StoreObject};
use crate::limits::{
    BUCKET_BYTES_DEFAULT, BUCKET_ENTRIES_DEFAULT, PAGE_ENTRIES_MAX, RETENTION_DEFAULT_S, SEQ_MAX,
};
use crate::outbox::{EventPayload, EventTopic};

/// What a bucket is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BucketKind {
    /// Files of users.
    #[default]
    Files,
    /// Repositories of Git.
    Git,
    /// Names of tensor files.
    Tensor,
    /// Message queues.
    Msg,
    /// The node's own history, which cannot be deleted.
    System,
}

impl BucketKind {
    const ALL: [Self; 5] = [
        Self::Files,
        Self::Git,
        Self::Tensor,
        Self::Msg,
        Self::System,
    ];

    /// The name in the row and in responses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Files => "files",
            Self::Git => "git",
            Self::Tensor => "tensor",
            Self::Msg => "msg",
            Self::System => "system",
        }
    }

    /// The kind with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// Whether a bucket takes changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BucketState {
    /// It does.
    Live,
    /// It does not.
    Frozen,
    /// It is being deleted, and has no name any more.
    Deleting,
}

impl BucketState {
    const ALL: [Self; 3] = [Self::Live, Self::Frozen, Self::Deleting];

    /// The name in the row and in responses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Frozen => "frozen",
            Self::Deleting => "deleting",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// A bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// Its number.
    pub id: BucketId,
    /// Its name.
    pub name: BucketName,
    /// What it is for.
    pub kind: BucketKind,
    /// The identity that it belongs to. The store does not read it.
    pub owner: String,
    /// When it was made, in milliseconds since 1970-01-01 UTC.
    pub created_ms: u64,
    /// Most bytes of its contents. `None` is no limit.
    pub quota_bytes: Option<u64>,
    /// Most versions of entries. `None` is no limit.
    pub quota_entries: Option<u64>,
    /// Seconds for which it keeps former versions.
    pub retention_s: u64,
    /// How it is synchronised with peers.
    pub sync: BucketSync,
    /// Whether it takes changes.
    pub state: BucketState,
    /// What a power cut may take of its acknowledged writes.
    pub durability: Durability,
}

/// A bucket to be made.
#[derive(Clone, Debug)]
pub struct NewBucket {
    /// Its name.
    pub name: BucketName,
    /// What it is for.
    pub kind: BucketKind,
    /// The identity that it belongs to, and the actor of its creation.
    pub owner: String,
    /// Most bytes of its contents. `None` is no limit.
    pub quota_bytes: Option<u64>,
    /// Most versions of entries. `None` is no limit.
    pub quota_entries: Option<u64>,
    /// Seconds for which it keeps former versions.
    pub retention_s: u64,
    /// What a power cut may take of its acknowledged writes.
    pub durability: Durability,
}

impl NewBucket {
    /// A bucket for files with the default limits.
    #[must_use]
    pub fn new(name: BucketName, owner: &str) -> Self {
        Self {
            name,
            kind: BucketKind::default(),
            owner: owner.to_owned(),
            quota_bytes: Some(BUCKET_BYTES_DEFAULT),
            quota_entries: Some(BUCKET_ENTRIES_DEFAULT),
            retention_s: RETENTION_DEFAULT_S,
            durability: Durability::default(),
        }
    }
}

/// New settings of a bucket. `None` leaves a setting as it is.
#[derive(Clone, Debug, Default)]
pub struct BucketSettings {
    /// The identity that it belongs to.
    pub owner: Option<String>,
    /// Most bytes of its contents, or `Some(None)` for no limit.
    pub quota_bytes: Option<Option<u64>>,
    /// Most versions of entries, or `Some(None)` for no limit.
    pub quota_entries: Option<Option<u64>>,
    /// Seconds for which it keeps former versions.
    pub retention_s: Option<u64>,
    /// Whether it is synchronised with peers.
    pub is_synced: Option<bool>,
    /// When contents of names that peers made are fetched.
    pub fetch: Option<ContentFetchMode>,
    /// Whether a file that loses against a concurrent version of a peer is put beside it.
    pub keeps_both: Option<bool>,
    /// Whether each name in the root of a branch has a document of its own.
    pub is_split: Option<bool>,
    /// Whether it takes no changes.
    pub is_frozen: Option<bool>,
    /// What a power cut may take of its acknowledged writes.
    pub durability: Option<Durability>,
}

macro_rules! select_bucket {
    ($condition:literal) => {
        concat!(
            "SELECT id, name, kind, owner, created_ms, quota_bytes, quota_entries, retention_s, sync, state, durability \
             FROM bucket ",
            $condition
        )
    };
}

fn read_bucket(row: &Row<'_>) -> rusqlite::Result<Bucket> {
    let number = |number: Option<i64>| number.map(from_sql);
    Ok(Bucket {
        id: row.get(0)?,
        name: BucketName::from_stored(row.get(1)?),
        kind: read_name(row, 2, BucketKind::from_name)?,
        owner: row.get(3)?,
        created_ms: from_sql(row.get(4)?),
        quota_bytes: number(row.get(5)?),
        quota_entries: number(row.get(6)?),
        retention_s: from_sql(row.get(7)?),
        sync: read_name(row, 8, BucketSync::from_column)?,
        state: read_name(row, 9, BucketState::from_name)?,
        durability: read_name(row, 10, Durability::from_name)?,
    })
}

impl ReadTransaction<'_> {
    /// The bucket with this name.
    ///
    /// # Errors
    /// The store has no such bucket.
    pub fn bucket_by_name(&self, name: &BucketName) -> Result<Bucket, StoreError> {
        let query = select_bucket!("WHERE name = ?1");
        let bucket = self.query_row(query, [name.as_str()], read_bucket)?;
        bucket.ok_or(StoreError::NotFound(StoreObject::Bucket))
    }

    /// The bucket with this number.
    ///
    /// # Errors
    /// The store has no such bucket, or is deleting it.
    pub fn bucket(&self, id: BucketId) -> Result<Bucket, StoreError> {
        let query = select_bucket!("WHERE id = ?1 AND state <> 'deleting'");
        let bucket = self.query_row(query, [id], read_bucket)?;
        bucket.ok_or(StoreError::NotFound(StoreObject::Bucket))
    }

    /// Buckets in the order of their names, behind this one.
    ///
    /// # Errors
    /// The database refuses the query.
    pub fn buckets(
        &self,
        after: Option<&BucketName>,
        limit: usize,
    ) -> Result<Vec<Bucket>, StoreError> {
        let after = after.map_or("", BucketName::as_str);
        let limit = to_sql(limit.clamp(1, PAGE_ENTRIES_MAX) as u64);
        self.query_all(
            select_bucket!("WHERE name > ?1 AND state <> 'deleting' ORDER BY name LIMIT ?2"),
            params![after, limit],
            read_bucket,
        )
    }
}

impl WriteTransaction<'_> {
    /// Makes a bucket with its branch `main`.
    ///
    /// # Errors
    /// The name is taken.
    pub fn create_bucket(&mut self, new: &NewBucket) -> Result<(Bucket, Branch), StoreError> {
        // Asked before the insertion, so that the caller gets the code of a taken name and no error
        // of the database.
        let taken = "SELECT count(*) FROM bucket WHERE name = ?1";
        if self.query_count(taken, [new.name.as_str()])? > 0 {
            return Err(StoreError::Exists(StoreObject::Bucket));
        }
        super::commit::check_actor(&new.owner)?;
        self.check_space()?;
        let now = to_sql(self.unix_ms());
        let bucket = self.insert(
            "INSERT INTO bucket(name, kind, owner, created_ms, quota_bytes, quota_entries, retention_s, durability) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                new.name.as_str(),
                new.kind.name(),
                new.owner,
                now,
                to_sql_option(new.quota_bytes),
                to_sql_option(new.quota_entries),
                to_sql(new.retention_s),
                new.durability.name(),
            ],
        )?;
        let bucket = BucketId::new(bucket);
        // The row is there from the start: an update of a missing row would count nothing and
        // report no error.
        let usage = "INSERT INTO usage(bucket_id, bytes, entries, staged) VALUES (?1, 0, 0, 0)";
        self.execute(usage, [bucket])?;
        let branch = self.insert(
            "INSERT INTO branch(bucket_id, name, created_ms) VALUES (?1, ?2, ?3)",
            params![bucket, BranchName::main().as_str(), now],
        )?;
        self.execute(
            "INSERT INTO chain(branch_id, depth, anc_id, max_seq) VALUES (?1, 0, ?1, ?2)",
            params![branch, to_sql(SEQ_MAX)],
        )?;
        let payload = EventPayload {
            bucket: Some(new.name.to_string()),
            actor: Some(new.owner.clone()),
            ..EventPayload::default()
        };
        self.emit(EventTopic::BucketCreate, Some(bucket), None, &payload)?;
        let main = self.branch_by_name(bucket, &BranchName::main())?;
        Ok((self.bucket(bucket)?, main))
    }

    /// Changes settings of a bucket. A quota below the present use refuses further growth, and deletes nothing. A change of
    /// [`is_split`](BucketSettings::is_split) forgets which deletions peers have not heard of.
    ///
    /// # Errors
    /// The bucket does not exist.
    pub fn set_bucket(
        &mut self,
        id: BucketId,
        settings: &BucketSettings,
        actor: &str,
    ) -> Result<Bucket, StoreError> {
        let before = self.bucket(id)?;
        let settings = settings.clone();
        let owner = settings.owner.unwrap_or(before.owner);
        super::commit::check_actor(&owner)?;
        let quota_bytes = settings.quota_bytes.unwrap_or(before.quota_bytes);
        let quota_entries = settings.quota_entries.unwrap_or(before.quota_entries);
        let sync = BucketSync {
            fetch: settings.fetch.unwrap_or(before.sync.fetch),
            is_on: settings.is_synced.unwrap_or(before.sync.is_on),
            is_split: settings.is_split.unwrap_or(before.sync.is_split),
            keeps_both: settings.keeps_both.unwrap_or(before.sync.keeps_both),
        };
        let state = match settings.is_frozen {
            Some(true) => BucketState::Frozen,
            Some(false) => BucketState::Live,
            None => before.state,
        };
        self.execute(
            "UPDATE bucket SET owner = ?2, quota_bytes = ?3, quota_entries = ?4, retention_s = ?5, sync = ?6, state = ?7, \
             durability = ?8 WHERE id = ?1",
            params![
                id,
                owner,
                to_sql_option(quota_bytes),
                to_sql_option(quota_entries),
                to_sql(settings.retention_s.unwrap_or(before.retention_s)),
                sync.to_column(),
                state.name(),
                settings.durability.unwrap_or(before.durability).name(),
            ],
        )?;
        if sync.is_split != before.sync.is_split {
            // Documents of the other form would have paths that no session asks for. They are made of the tree again.
            self.remove_sync_documents(id)?;
        }
        // A call that leaves the quota as it is must not look like a change to consumers.
        if (quota_bytes, quota_entries) != (before.quota_bytes, before.quota_entries) {
            let payload = EventPayload {
                bucket: Some(before.name.to_string()),
                actor: Some(actor.to_owned()),
                ..EventPayload::default()
            };
            self.emit(EventTopic::BucketQuota, Some(id), None, &payload)?;
        }
        if (sync, state) != (before.sync, before.state) {
            // Sessions with peers that wait for a change end, where the bucket takes part in none any more.
            self.wake_watches()?;
        }
        self.bucket(id)
    }

    /// Begins to delete a bucket. Its name is free at once, and [`purge`](Self::purge) removes its rows.
    ///
    /// # Errors
    /// The bucket does not exist, or is the node's own.
    pub fn delete_bucket(&mut self, id: BucketId) -> Result<(), StoreError> {
        if self.bucket(id)?.kind == BucketKind::System {
            return Err(StoreError::Denied(
                "the buckets of the node itself cannot be deleted",
            ));
        }
        // A name with this sign is no bucket's.
        let bucket = "UPDATE bucket SET state = 'deleting', name = '#' || id WHERE id = ?1";
        self.execute(bucket, [id])?;
        // At once: a snapshot would name a branch that the purge removes.
        self.execute("DELETE FROM snapshot WHERE bucket_id = ?1", [id])?;
        self.execute("DELETE FROM share WHERE bucket_id = ?1", [id])?;
        self.remove_consumers_of(id)?;
        // The rows of branches go one after the other, and none may refer to one that is gone.
        let branches = "UPDATE branch SET state = 'deleted', name = '#' || id, parent_id = NULL, base_seq = NULL \
                        WHERE bucket_id = ?1";
        self.execute(branches, [id])?;
        // What waits for events of the bucket ends.
        self.wake_watches()
    }
}
