//! Commits: a group of rows on one branch with one number, their usage and their events.

use rusqlite::params;

use super::branches::{Branch, BranchState};
use super::buckets::{Bucket, BucketState};
use super::entry::{EntryState, charged_bytes};
use super::resolve::TreeView;
use super::usage::UsageChange;
use super::{BranchId, BucketId};
use crate::clock::HybridTimestamp;
use crate::db::{WriteTransaction, from_sql, to_sql, to_sql_option};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::{ACTOR_BYTES_MAX, MESSAGE_BYTES_MAX};
use crate::locks::LockToken;
use crate::outbox::{EventPayload, EventTopic};
use crate::path::EntryPath;

/// What a finished commit is known by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitReceipt {
    /// Its number. A later commit of any branch has a higher one. Where nothing had to change, that of the last commit of the
    /// branch.
    pub seq: u64,
    /// Its time.
    pub timestamp: HybridTimestamp,
}

/// What a commit says of itself.
#[derive(Clone, Copy)]
pub(super) struct CommitHeader<'a> {
    pub(super) branch: BranchId,
    pub(super) op: &'a str,
    pub(super) actor: &'a str,
    pub(super) message: Option<&'a str>,
    /// The branch and the commit that a merge takes in.
    pub(super) merged: Option<(BranchId, u64)>,
    /// Whether it takes away only. Then no quota refuses it.
    pub(super) is_deletion: bool,
}

/// A commit whose rows are being written.
pub(super) struct OpenCommit {
    pub(super) bucket: Bucket,
    pub(super) branch: Branch,
    /// The branch with the rows of this commit.
    pub(super) view: TreeView,
    pub(super) seq: u64,
    pub(super) timestamp: HybridTimestamp,
    /// Time of the commit, for entries that bring none.
    pub(super) now_ns: i64,
    pub(super) actor: String,
    /// Tokens of locks that the actor has.
    pub(super) lock_tokens: Vec<LockToken>,
    usage: UsageChange,
    /// Rows that were written, also those that a later one replaced.
    rows: u64,
    is_merge: bool,
    is_deletion: bool,
}

impl WriteTransaction<'_> {
    /// A bucket that takes changes.
    pub(super) fn writable_bucket(&self, id: BucketId) -> Result<Bucket, StoreError> {
        let bucket = self.bucket(id)?;
        match bucket.state {
            BucketState::Live => Ok(bucket),
            // It was frozen after the changes that are made again.
            BucketState::Frozen if self.is_replay() => Ok(bucket),
            BucketState::Frozen | BucketState::Deleting => {
                Err(StoreError::ReadOnly("the bucket is frozen"))
            }
        }
    }

    /// Begins a commit.
    pub(super) fn begin_commit(
        &mut self,
        header: CommitHeader<'_>,
    ) -> Result<OpenCommit, StoreError> {
        check_actor(header.actor)?;
        if header
            .message
            .is_some_and(|it| it.len() > MESSAGE_BYTES_MAX)
        {
            return Err(StoreError::TooLarge {
                unit: "bytes in a message",
                limit: MESSAGE_BYTES_MAX as u64,
            });
        }
        let branch = self.branch(header.branch)?;
        let bucket = self.writable_bucket(branch.bucket)?;
        if branch.state != BranchState::Open {
            return Err(StoreError::ReadOnly("the branch is closed"));
        }
        // The name of the operation does not decide: a rebase takes in a branch too, and is
        // allowed.
        if branch.is_protected && header.merged.is_none() && !self.is_replay() {
            return Err(StoreError::Denied("the branch takes merges only"));
        }
        // Without an upper limit, so that each change of the commit sees the rows of those before
        // it.
        let view = self.view(branch.id, None)?;
        let timestamp = self.tick();
        let now_ms = self.unix_ms();
        let (merge_branch, merge_seq) = header.merged.unzip();
        let seq = self.insert(
            "INSERT INTO commit_(bucket_id, branch_id, ts_ms, hlc, actor, op, message, merge_branch, merge_seq) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
            params![
                bucket.id,
                branch.id,
                to_sql(now_ms),
                timestamp.to_bytes(),
                header.actor,
                header.op,
                header.message,
                merge_branch,
                to_sql_option(merge_seq),
            ],
        )?;
        let head = "UPDATE branch SET head_seq = ?2 WHERE id = ?1";
        self.execute(head, params![branch.id, seq])?;
        Ok(OpenCommit {
            bucket,
            branch,
            view,
            seq: from_sql(seq),
            timestamp,
            now_ns: to_sql(now_ms).saturating_mul(1_000_000),
            actor: header.actor.to_owned(),
            lock_tokens: Vec::new(),
            usage: UsageChange {
                bytes: to_sql(header.message.map_or(0, str::len) as u64),
                entries: 0,
            },
            rows: 0,
            is_merge: header.merged.is_some(),
            is_deletion: header.is_deletion,
        })
    }

    /// Writes what an entry is from this commit on.
    ///
    /// # Errors
    /// The job has touched too many entries.
    pub(super) fn write_entry(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        state: &EntryState,
    ) -> Result<(), StoreError> {
        self.count_entries(1)?;
        self.write_row(commit, path, state)
    }

    /// The same for an entry that was counted before.
    pub(super) fn write_row(
        &mut self,
        commit: &mut OpenCommit,
        path: &EntryPath,
        state: &EntryState,
    ) -> Result<(), StoreError> {
        // The first row of a commit can have no predecessor in it, and most commits have one row:
        // the query is spared.
        if commit.rows > 0 {
            self.take_back_entry(commit, path)?;
        }
        commit.rows += 1;
        let branch = commit.branch.id;
        self.insert_entry(branch, path, commit.seq, state, &mut commit.usage)?;
        if let Some(hash) = state.hash {
            let bucket = commit.bucket.id;
            self.retain_content(bucket, hash, state.size, &mut commit.usage)?;
        }
        Ok(())
    }

    /// Removes a row that an earlier change of the same commit wrote.
    fn take_back_entry(&self, commit: &mut OpenCommit, path: &EntryPath) -> Result<(), StoreError> {
        let (parent, name) = path.columns()?;
        let key = params![commit.branch.id, parent, name, to_sql(commit.seq)];
        let query = concat!(
            "SELECT kind <> 0, hash, size, ",
            charged_bytes!(),
            " FROM entry WHERE branch_id = ?1 AND parent = ?2 AND name = ?3 AND seq = ?4"
        );
        let before = self.query_row(query, key, |row| {
            let is_live: bool = row.get(0)?;
            let hash: Option<ContentHash> = row.get(1)?;
            Ok((is_live, hash, from_sql(row.get(2)?), row.get::<_, i64>(3)?))
        })?;
        let Some((is_live, hash, size, bytes)) = before else {
            return Ok(());
        };
        let delete =
            "DELETE FROM entry WHERE branch_id = ?1 AND parent = ?2 AND name = ?3 AND seq = ?4";
        self.execute(delete, key)?;
        commit.usage.entries -= i64::from(is_live);
        commit.usage.bytes -= bytes;
        match hash {
            Some(hash) => {
                let bucket = commit.bucket.id;
                self.release_content(bucket, hash, size, &mut commit.usage)
            }
            None => Ok(()),
        }
    }

    /// Inserts a row, and counts it. A reference to a content is counted by the caller.
    pub(super) fn insert_entry(
        &self,
        branch: BranchId,
        path: &EntryPath,
        seq: u64,
        state: &EntryState,
        usage: &mut UsageChange,
    ) -> Result<(), StoreError> {
        let (parent, name) = path.columns()?;
        self.count_bytes(path.as_str().len() as u64 + state.attribute_bytes())?;
        usage.entries += i64::from(state.is_live());
        usage.bytes += to_sql(state.charged_bytes(parent, name));
        self.execute(
            "INSERT INTO entry(branch_id, parent, name, seq, kind, hash, size, mode, mtime_ns, target, xattr) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
            params![
                branch,
                parent,
                name,
                to_sql(seq),
                state.kind,
                state.hash,
                to_sql(state.size),
                state.mode,
                state.mtime_ns,
                state.target,
                state.xattr,
            ],
        )?;
        Ok(())
    }

    /// Announces a change of an entry.
    pub(super) fn emit_entry(
        &mut self,
        commit: &OpenCommit,
        topic: EventTopic,
        path: &EntryPath,
        to: Option<&EntryPath>,
        state: &EntryState,
    ) -> Result<(), StoreError> {
        // A repair makes the version again from the event, and takes a move as it is.
        let is_new = matches!(topic, EventTopic::Put | EventTopic::Mkdir);
        let payload = EventPayload {
            path: Some(path.to_string()),
            to: to.map(ToString::to_string),
            kind: Some(state.kind.name().to_owned()),
            hash: state.hash.map(|hash| hash.to_string()),
            // A directory or a link has a size of 0 in its row, which a consumer would take for an
            // empty file.
            size: state.hash.map(|_| state.size),
            attributes: (is_new && state.has_own_attributes()).then_some(true),
            ..commit.payload()
        };
        self.emit_in(commit, topic, &payload)
    }

    /// Announces something about the branch of a commit.
    pub(super) fn emit_in(
        &mut self,
        commit: &OpenCommit,
        topic: EventTopic,
        payload: &EventPayload,
    ) -> Result<(), StoreError> {
        let (bucket, branch) = (Some(commit.bucket.id), Some(commit.branch.id));
        self.emit(topic, bucket, branch, payload).map(drop)
    }

    /// Ends a commit: adds its use to the counters of the bucket. A commit that changed nothing is taken back, and the last
    /// commit of the branch stands for it.
    ///
    /// # Errors
    /// The bucket would use more than its quota.
    pub(super) fn finish_commit(&self, commit: &OpenCommit) -> Result<CommitReceipt, StoreError> {
        let timestamp = commit.timestamp;
        // Repeated without end, it would fill the file with rows that no quota counts.
        if commit.rows == 0 && !commit.is_merge {
            let seq = commit.branch.head_seq;
            let head = "UPDATE branch SET head_seq = ?2 WHERE id = ?1";
            self.execute(head, params![commit.branch.id, to_sql(seq)])?;
            self.execute("DELETE FROM commit_ WHERE seq = ?1", [to_sql(commit.seq)])?;
            return Ok(CommitReceipt { seq, timestamp });
        }
        if commit.is_deletion || self.is_replay() {
            self.add_usage(commit.bucket.id, commit.usage)?;
        } else {
            self.charge(&commit.bucket, commit.usage)?;
        }
        let seq = commit.seq;
        Ok(CommitReceipt { seq, timestamp })
    }
}

impl OpenCommit {
    /// Rows that were written so far.
    pub(super) const fn rows(&self) -> u64 {
        self.rows
    }

    /// Versions of entries that the commit adds so far.
    pub(super) const fn new_entries(&self) -> i64 {
        self.usage.entries
    }

    /// What every event of the commit says.
    pub(super) fn payload(&self) -> EventPayload {
        EventPayload {
            bucket: Some(self.bucket.name.to_string()),
            branch: Some(self.branch.name.to_string()),
            seq: Some(self.seq),
            actor: Some(self.actor.clone()),
            ..EventPayload::default()
        }
    }
}

/// Refuses the name of an actor that is no name.
pub(super) fn check_actor(actor: &str) -> Result<(), StoreError> {
    if actor.len() > ACTOR_BYTES_MAX {
        return Err(StoreError::TooLarge {
            unit: "bytes in the name of an actor",
            limit: ACTOR_BYTES_MAX as u64,
        });
    }
    Ok(())
}
