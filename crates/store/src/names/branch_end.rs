//! How branches end: closed, deleted, or expired.

use rusqlite::params;

use super::BranchId;
use super::branches::{Branch, BranchState};
use crate::address::MAIN_BRANCH;
use crate::db::{WriteTransaction, to_sql};
use crate::error::StoreError;
use crate::limits::COLLECT_JUMP_MS_MAX;
use crate::outbox::{EventPayload, EventTopic};

/// Actor of the end of a branch whose time is over.
const EXPIRY_ACTOR: &str = "expiry";

/// Whether a caller may change a protected branch otherwise than by a merge into it. The store checks no rights, so that a
/// caller says what it has checked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProtectedBranches {
    /// It may not.
    #[default]
    Refused,
    /// The identity may merge into protected branches of the bucket, or administers it.
    Allowed,
}

impl ProtectedBranches {
    /// Refuses a change of a protected branch by a caller without that right.
    pub(super) fn require(self, branch: &Branch) -> Result<(), StoreError> {
        match self {
            Self::Refused if branch.is_protected => Err(StoreError::Denied(
                "the branch is protected: its change needs the right to merge",
            )),
            Self::Refused | Self::Allowed => Ok(()),
        }
    }
}

/// What one step of the expiry of branches did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpiryProgress {
    /// Branches that were closed or deleted.
    pub ended: usize,
    /// Where the next step begins. `None` if no branch is left.
    pub next: Option<BranchId>,
}

impl WriteTransaction<'_> {
    /// Ends a branch: it takes no changes any more, and can still be read and merged. A protected one is refused.
    ///
    /// # Errors
    /// The branch does not exist, is `main` or protected, or was closed before; or the bucket is frozen.
    pub fn close_branch(&mut self, id: BranchId, actor: &str) -> Result<(), StoreError> {
        self.close_branch_with(id, actor, ProtectedBranches::Refused)
    }

    /// The same with what the caller may do to protected branches.
    ///
    /// # Errors
    /// As for [`close_branch`](Self::close_branch).
    pub fn close_branch_with(
        &mut self,
        id: BranchId,
        actor: &str,
        protected: ProtectedBranches,
    ) -> Result<(), StoreError> {
        let branch = self.branch(id)?;
        refuse_main(&branch)?;
        protected.require(&branch)?;
        self.writable_bucket(branch.bucket)?;
        if branch.state != BranchState::Open {
            return Err(StoreError::ReadOnly("the branch is closed"));
        }
        self.end_branch(&branch, BranchState::Closed, actor)
    }

    /// Notes that a branch takes no changes any more.
    pub(super) fn end_branch(
        &mut self,
        branch: &Branch,
        state: BranchState,
        actor: &str,
    ) -> Result<(), StoreError> {
        let set = "UPDATE branch SET state = ?2 WHERE id = ?1";
        self.execute(set, params![branch.id, state.name()])?;
        let bucket = self.bucket(branch.bucket)?;
        let payload = EventPayload {
            bucket: Some(bucket.name.to_string()),
            branch: Some(branch.name.to_string()),
            seq: Some(branch.head_seq),
            actor: Some(actor.to_owned()),
            ..EventPayload::default()
        };
        let (bucket, branch) = (Some(bucket.id), Some(branch.id));
        self.emit(EventTopic::BranchClose, bucket, branch, &payload)?;
        Ok(())
    }

    /// Deletes a branch. Its name is free at once, and [`purge`](Self::purge) removes its rows. With `is_forced`, its
    /// snapshots are deleted too, and the branches that read through it get copies of what they show of it. A protected
    /// branch is deleted by force only.
    ///
    /// # Errors
    /// The branch does not exist or is `main`, or the bucket is frozen; or the branch is protected, or has children or
    /// snapshots, and the deletion is not forced; or the children show more entries than one job may copy, or than the
    /// bucket has a quota for.
    pub fn delete_branch(
        &mut self,
        id: BranchId,
        is_forced: bool,
        actor: &str,
    ) -> Result<(), StoreError> {
        // A forced deletion is for administrators, who may change protected branches.
        let protected = match is_forced {
            true => ProtectedBranches::Allowed,
            false => ProtectedBranches::Refused,
        };
        self.delete_branch_with(id, is_forced, actor, protected)
    }

    /// The same with what the caller may do to protected branches.
    ///
    /// # Errors
    /// As for [`delete_branch`](Self::delete_branch).
    pub fn delete_branch_with(
        &mut self,
        id: BranchId,
        is_forced: bool,
        actor: &str,
        protected: ProtectedBranches,
    ) -> Result<(), StoreError> {
        let branch = self.branch(id)?;
        refuse_main(&branch)?;
        protected.require(&branch)?;
        let bucket = self.writable_bucket(branch.bucket)?;
        let children = self.descendants(id)?;
        let snapshots = "SELECT count(*) FROM snapshot WHERE bucket_id = ?1 AND branch_id = ?2";
        let snapshots = self.query_count(snapshots, params![branch.bucket, id])?;
        // Snapshots would be lost and children copied, which a caller may not expect of a deletion.
        if !is_forced && (!children.is_empty() || snapshots > 0) {
            return Err(StoreError::BranchInUse {
                children: children.len() as u64,
                snapshots,
            });
        }
        // The copies grow the store, as no other deletion does.
        if !children.is_empty() {
            self.check_space()?;
        }
        // The newest first: a branch that began at a version before its parent began reads through levels of the parent that
        // are gone once that is flattened.
        for child in children {
            self.flatten(&bucket, child)?;
        }
        let snapshots = "DELETE FROM snapshot WHERE bucket_id = ?1 AND branch_id = ?2";
        self.execute(snapshots, params![branch.bucket, id])?;
        // The purge deletes the row of the branch, and a child that still refers to it would make
        // that fail.
        self.adopt_children(&branch)?;
        self.end_branch(&branch, BranchState::Deleted, actor)?;
        // A name with this sign is no branch's.
        let gone =
            "UPDATE branch SET name = '#' || id, parent_id = NULL, base_seq = NULL WHERE id = ?1";
        self.execute(gone, [id])?;
        Ok(())
    }

    /// Gives the children of a branch its parent. What the branch had taken in of its parent where a child began, by its own
    /// beginning or by a merge, is the newest version that the child has in common with that one.
    fn adopt_children(&self, branch: &Branch) -> Result<(), StoreError> {
        // A child that began before the branch did has no more of the parent than up to there.
        self.execute(
            "WITH taken AS (SELECT c.id AS child, max(min(?3, c.origin_seq), coalesce((SELECT m.merge_seq FROM commit_ m \
             WHERE m.branch_id = ?1 AND m.merge_branch = ?2 AND m.seq <= c.origin_seq ORDER BY m.seq DESC LIMIT 1), 0)) \
             AS seq FROM branch c WHERE c.parent_id = ?1) \
             UPDATE branch SET parent_id = ?2, base_seq = taken.seq, origin_seq = taken.seq \
             FROM taken WHERE branch.id = taken.child",
            params![
                branch.id,
                branch.parent,
                to_sql(branch.origin_seq.unwrap_or_default()),
            ],
        )?;
        Ok(())
    }

    /// Ends at most this many branches whose time is over, behind the one that a step before returned. A branch without
    /// children and snapshots is deleted, and another one is closed. `main`, protected branches and those of frozen buckets
    /// stay. Where the clock is further ahead of the last collection than [`COLLECT_JUMP_MS_MAX`], it may be wrong and counts
    /// up to there only.
    ///
    /// # Errors
    /// The database refuses a statement.
    pub fn expire_branches(
        &mut self,
        after: Option<BranchId>,
        branches_max: usize,
    ) -> Result<ExpiryProgress, StoreError> {
        let now_ms = to_sql(self.unix_ms());
        let expired: Vec<BranchId> = self.query_all(
            "SELECT b.id FROM branch b JOIN bucket k ON k.id = b.bucket_id \
             WHERE b.expires_ms <= ?1 AND b.expires_ms <= coalesce(k.collected_ms, k.created_ms) + ?2 \
             AND b.id > ?3 AND b.state <> 'deleted' AND b.protected = 0 AND b.name <> 'main' AND k.state = 'live' \
             ORDER BY b.id LIMIT ?4",
            params![
                now_ms,
                to_sql(COLLECT_JUMP_MS_MAX),
                after.map_or(0, BranchId::number),
                to_sql(branches_max as u64),
            ],
            |row| row.get(0),
        )?;
        let mut ended = 0;
        for id in expired.iter().copied() {
            ended += usize::from(self.expire_branch(id)?);
        }
        let is_full = expired.len() >= branches_max;
        Ok(ExpiryProgress {
            ended,
            next: expired.last().copied().filter(|_| is_full),
        })
    }

    /// Deletes a branch, or closes it where others need it. Returns whether that changed something.
    fn expire_branch(&mut self, id: BranchId) -> Result<bool, StoreError> {
        match self.delete_branch(id, false, EXPIRY_ACTOR) {
            Ok(()) => Ok(true),
            Err(StoreError::BranchInUse { .. }) => {
                match self.close_branch(id, EXPIRY_ACTOR) {
                    // It was closed by an earlier step.
                    Err(StoreError::ReadOnly(_)) => Ok(false),
                    closed => closed.map(|()| true),
                }
            }
            Err(error) => Err(error),
        }
    }
}

pub(super) fn refuse_main(branch: &Branch) -> Result<(), StoreError> {
    match branch.name.as_str() {
        // An address without a branch means `main`, so it would lead to nothing.
        MAIN_BRANCH => Err(StoreError::Denied("the branch main stays open")),
        _ => Ok(()),
    }
}
