//! The collection of what no name needs: old versions, and contents without a name.
//!
//! Rows go first. A version of an entry is needed while a head, a snapshot or a branch shows it, while a later merge may
//! compare with it, or while the retention of its bucket lasts. Branches whose time is over go before that, and commits that
//! no version is left of go after it. Then contents go that no row, no pin and no write session
//! refers to, and whose age is at least ten minutes. Each step is one short transaction, so that writers wait for one step
//! at most.

mod commits;
mod horizon;
mod prune;
mod sweep;

use std::sync::Arc;

use alknet_objects::ObjectCursor;

use crate::content::ContentFolder;
use crate::db::{ReadTransaction, StoreDb};
use crate::error::StoreError;
use crate::hash::ContentHash;
use crate::limits::COLLECT_STEP_ROWS;
use crate::names::{BranchId, BucketId};
use commits::CommitCursor;
use horizon::NeededVersions;
use prune::PruneCursor;

/// Branches that one step of the collection ends.
const EXPIRED_AT_ONCE: usize = 100;

/// What a collection does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CollectPhase {
    /// It removes rows of deleted branches and buckets.
    Purge,
    /// It removes versions that are older than the retention.
    Prune,
    /// It removes contents that no row refers to.
    SweepContents,
    /// It removes objects that have no row.
    SweepObjects,
    /// It is over.
    Done,
}

/// How far a collection came. Numbers count from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CollectProgress {
    /// What the next step does.
    pub phase: CollectPhase,
    /// Versions of entries, and rows of deleted buckets, that were removed.
    pub rows: u64,
    /// Contents that were removed.
    pub contents: u64,
    /// Bytes of these contents.
    pub bytes: u64,
}

/// A collection under way. It keeps its position between the steps, and holds neither a transaction nor a lock.
#[derive(Debug)]
pub struct GarbageCollection {
    progress: CollectProgress,
    /// The bucket and the branches that are being pruned.
    bucket: Option<PrunedBucket>,
    /// The last bucket that was begun.
    last_bucket: Option<BucketId>,
    /// The last content that was looked at.
    last_content: Option<ContentHash>,
    objects: ObjectCursor,
    /// The branches whose time is over.
    expiry: ExpiryCursor,
    /// Whether the pages of the file were looked at before contents are removed.
    is_file_checked: bool,
}

/// How far the expiry of branches came.
#[derive(Clone, Copy, Debug)]
enum ExpiryCursor {
    /// Behind this branch, or at the first one.
    After(Option<BranchId>),
    End,
}

/// A bucket whose old versions are being removed.
#[derive(Debug)]
struct PrunedBucket {
    id: BucketId,
    needed: Arc<NeededVersions>,
    branches: Vec<BranchId>,
    cursor: PruneCursor,
    commits: Option<CommitCursor>,
}

impl Default for GarbageCollection {
    fn default() -> Self {
        Self {
            progress: CollectProgress {
                phase: CollectPhase::Purge,
                rows: 0,
                contents: 0,
                bytes: 0,
            },
            bucket: None,
            last_bucket: None,
            last_content: None,
            objects: ObjectCursor::default(),
            expiry: ExpiryCursor::After(None),
            is_file_checked: false,
        }
    }
}

impl GarbageCollection {
    /// How far it came.
    #[must_use]
    pub const fn progress(&self) -> CollectProgress {
        self.progress
    }

    /// Whether it is over.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.progress.phase == CollectPhase::Done
    }

    /// Does one step. Blocks.
    pub(crate) fn step(
        &mut self,
        db: &StoreDb,
        content: &ContentFolder,
    ) -> Result<CollectProgress, StoreError> {
        match self.progress.phase {
            CollectPhase::Purge | CollectPhase::Prune => self.step_rows(db)?,
            CollectPhase::SweepContents if !self.is_file_checked => {
                // A damaged page may hide names without an error, and their contents would look unused.
                db.check_pages()?;
                self.is_file_checked = true;
            }
            CollectPhase::SweepContents => self.sweep_contents(db, content)?,
            CollectPhase::SweepObjects => self.sweep_objects(db, content)?,
            CollectPhase::Done => {}
        }
        Ok(self.progress)
    }

    /// Does one step of the part that needs no contents, and nothing behind it.
    pub(crate) fn step_rows(&mut self, db: &StoreDb) -> Result<(), StoreError> {
        match self.progress.phase {
            CollectPhase::Purge => self.purge(db),
            CollectPhase::Prune => self.prune(db),
            CollectPhase::SweepContents | CollectPhase::SweepObjects | CollectPhase::Done => Ok(()),
        }
    }

    fn purge(&mut self, db: &StoreDb) -> Result<(), StoreError> {
        // First, so that the rows of a branch that expires go with those of deleted ones.
        if let ExpiryCursor::After(after) = self.expiry {
            let step = db.write(move |tx| tx.expire_branches(after, EXPIRED_AT_ONCE));
            if let Some(last) = step.wait()?.next {
                self.expiry = ExpiryCursor::After(Some(last));
                return Ok(());
            }
            self.expiry = ExpiryCursor::End;
        }
        let step = db.write(|tx| tx.purge(COLLECT_STEP_ROWS)).wait()?;
        self.progress.rows += step.rows as u64;
        if step.is_done {
            self.progress.phase = CollectPhase::Prune;
        }
        Ok(())
    }

    fn prune(&mut self, db: &StoreDb) -> Result<(), StoreError> {
        let Some(bucket) = &mut self.bucket else {
            return self.begin_bucket(db);
        };
        let Some(branch) = bucket.branches.last().copied() else {
            return self.prune_commits(db);
        };
        let (id, needed) = (bucket.id, Arc::clone(&bucket.needed));
        let cursor = bucket.cursor.clone();
        // The job may run twice, so it gets the position and returns the next one.
        let step = db.write(move |tx| tx.prune_branch(id, branch, &needed, &cursor));
        let step = match step.wait() {
            Ok(step) => step,
            // The bucket is being deleted by now, and the purge of the next collection removes its rows.
            Err(StoreError::NotFound(_)) => {
                self.bucket = None;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.progress.rows += step.rows;
        match step.next {
            Some(next) => bucket.cursor = next,
            None => {
                bucket.branches.pop();
                bucket.cursor = PruneCursor::default();
            }
        }
        Ok(())
    }

    /// Removes old commits of the bucket whose branches are done.
    fn prune_commits(&mut self, db: &StoreDb) -> Result<(), StoreError> {
        let Some(bucket) = &mut self.bucket else {
            return Ok(());
        };
        let (id, horizon, cursor) = (bucket.id, bucket.needed.horizon, bucket.commits);
        let page = db.read(move |tx| tx.old_commits(id, horizon, cursor));
        let page = page.wait()?;
        let next = page.next;
        db.write(move |tx| tx.remove_commits(id, &page)).wait()?;
        match next {
            Some(next) => bucket.commits = Some(next),
            None => self.bucket = None,
        }
        Ok(())
    }

    /// Takes the next bucket, and moves its horizon.
    fn begin_bucket(&mut self, db: &StoreDb) -> Result<(), StoreError> {
        let after = self.last_bucket;
        let next = db.read(move |tx| tx.bucket_after(after)).wait()?;
        let Some(id) = next else {
            self.progress.phase = CollectPhase::SweepContents;
            return Ok(());
        };
        self.last_bucket = Some(id);
        let horizon = match db.write(move |tx| tx.move_horizon(id)).wait() {
            Ok(Some(horizon)) => horizon,
            // Nothing is old, or the bucket is being deleted by now.
            Ok(None) | Err(StoreError::NotFound(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        // On a reader, because a long history of merges takes a while. By now the horizon is durable, so that what a caller
        // gives a name to from here on is not older than it, or is among the needed versions already.
        let begun = db.read(move |tx| {
            let branches = tx.branches_of(id)?;
            Ok((tx.needed_versions(id, horizon)?, branches))
        });
        let (needed, branches) = match begun.wait() {
            Ok(begun) => begun,
            // One bucket with too many merges must not keep the others from being collected.
            Err(error @ (StoreError::TooLarge { .. } | StoreError::TimedOut)) => {
                tracing::warn!(%error, "old versions of a bucket stay");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.bucket = Some(PrunedBucket {
            id,
            needed: Arc::new(needed),
            branches,
            cursor: PruneCursor::default(),
            commits: None,
        });
        Ok(())
    }
}

impl ReadTransaction<'_> {
    fn bucket_after(&self, after: Option<BucketId>) -> Result<Option<BucketId>, StoreError> {
        let after = after.map_or(0, BucketId::number);
        let query =
            "SELECT id FROM bucket WHERE id > ?1 AND state <> 'deleting' ORDER BY id LIMIT 1";
        self.query_row(query, [after], |row| row.get(0))
    }

    fn branches_of(&self, bucket: BucketId) -> Result<Vec<BranchId>, StoreError> {
        let query = "SELECT id FROM branch WHERE bucket_id = ?1 AND state <> 'deleted'";
        self.query_all(query, [bucket], |row| row.get(0))
    }
}

#[cfg(test)]
mod tests;
