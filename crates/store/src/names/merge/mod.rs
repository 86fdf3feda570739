//! Merges: one branch takes in what another one changed.

mod base;
mod plan;

use super::BranchId;
use super::branch_end::{ProtectedBranches, refuse_main};
use super::branches::{Branch, BranchState};
use super::commit::{CommitHeader, CommitReceipt};
use super::entry::EntryState;
use crate::db::{ReadTransaction, WriteTransaction, to_sql};
use crate::error::{StoreError, StoreObject};
use crate::limits::CONFLICTS_LISTED_MAX;
use crate::locks::LockedChange;
use crate::outbox::EventTopic;
use crate::path::EntryPath;
use plan::{MergePlan, MergeResult, MergeTrees};

/// What happens to a path that both branches changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum MergeStrategy {
    /// The merge is refused with the list of conflicts, and writes nothing.
    #[default]
    Fail,
    /// The path stays as the target has it.
    Ours,
    /// The path gets what the source has.
    Theirs,
    /// The later version counts, by the hybrid clock. A deletion is a version.
    Latest,
    /// The version of the source is put beside that of the target, as `name.conflict-ACTOR-SEQ`. A directory keeps its
    /// name, whichever side has it, and a change is kept rather than a deletion.
    KeepBoth,
}

impl MergeStrategy {
    const ALL: [Self; 5] = [
        Self::Fail,
        Self::Ours,
        Self::Theirs,
        Self::Latest,
        Self::KeepBoth,
    ];

    /// The name in requests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fail => "fail",
            Self::Ours => "ours",
            Self::Theirs => "theirs",
            Self::Latest => "latest",
            Self::KeepBoth => "keep-both",
        }
    }

    /// The strategy with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }
}

/// How both branches of a merge contradict each other at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConflictKind {
    /// Both gave it a different content.
    BothChanged,
    /// The source changed what the target deleted, or something below it.
    DeletedInTarget,
    /// The target changed what the source deleted, or something below it.
    DeletedInSource,
    /// One has a directory there, and the other one something else.
    DirectoryAndOther,
}

impl ConflictKind {
    /// The name in responses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::BothChanged => "both-changed",
            Self::DeletedInTarget => "deleted-in-target",
            Self::DeletedInSource => "deleted-in-source",
            Self::DirectoryAndOther => "directory-and-other",
        }
    }
}

/// A path that both branches of a merge changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeConflict {
    /// The path.
    pub path: EntryPath,
    /// How the branches contradict each other there.
    pub kind: ConflictKind,
}

/// A merge to be made.
#[derive(Clone, Debug)]
pub struct MergeRequest {
    /// The branch that is taken in.
    pub source: BranchId,
    /// The branch that changes.
    pub target: BranchId,
    /// What happens to paths that both changed.
    pub strategy: MergeStrategy,
    /// Who merges.
    pub actor: String,
    /// Text of the caller for the history, at most [`MESSAGE_BYTES_MAX`](crate::limits::MESSAGE_BYTES_MAX) bytes.
    pub message: Option<String>,
    /// Whether the source takes no changes afterwards.
    pub closes_source: bool,
    /// Whether the caller may close a protected source. A protected target takes merges anyway: whether this caller may
    /// merge into it, the caller checks itself.
    pub protected: ProtectedBranches,
}

impl MergeRequest {
    /// A merge that fails if there is a conflict.
    #[must_use]
    pub fn new(source: BranchId, target: BranchId, actor: &str) -> Self {
        Self {
            source,
            target,
            strategy: MergeStrategy::default(),
            actor: actor.to_owned(),
            message: None,
            closes_source: false,
            protected: ProtectedBranches::Refused,
        }
    }
}

/// What a merge did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergeOutcome {
    /// The commit on the target. `None` if the source had nothing new.
    pub receipt: Option<CommitReceipt>,
    /// Number of the paths that the target changed.
    pub changed: usize,
    /// Conflicts that the strategy decided, in the order of their paths.
    pub conflicts: Vec<MergeConflict>,
}

impl ReadTransaction<'_> {
    /// The conflicts that a merge would have now.
    ///
    /// # Errors
    /// A branch does not exist, or too many paths changed.
    pub fn preview_merge(
        &self,
        source: BranchId,
        target: BranchId,
    ) -> Result<Vec<MergeConflict>, StoreError> {
        let (source, target) = self.merged_branches(source, target)?;
        let planned = self.plan_merge(&source, &target, MergeStrategy::Fail)?;
        Ok(planned.map_or_else(Vec::new, |planned| planned.conflicts))
    }

    fn merged_branches(
        &self,
        source: BranchId,
        target: BranchId,
    ) -> Result<(Branch, Branch), StoreError> {
        let (source, target) = (self.branch(source)?, self.branch(target)?);
        if source.id == target.id {
            return Err(StoreError::Denied("a branch cannot be merged into itself"));
        }
        // A branch of another bucket may be one that the caller cannot see.
        if source.bucket != target.bucket {
            return Err(StoreError::NotFound(StoreObject::Branch));
        }
        Ok((source, target))
    }

    /// What a merge writes. `None` if the source has nothing new.
    fn plan_merge(
        &self,
        source: &Branch,
        target: &Branch,
        strategy: MergeStrategy,
    ) -> Result<Option<MergeResult>, StoreError> {
        let ours = self.view(target.id, None)?;
        let theirs = self.view(source.id, None)?;
        let base = self.merge_base(source, target)?;
        // Without a common version everything in the source is new, and paths that both have may
        // conflict.
        let base = base.unwrap_or_else(|| ours.emptied());
        let trees = MergeTrees { base, ours, theirs };
        if self.changed_paths(&trees.base, &trees.theirs)?.is_empty() {
            return Ok(None);
        }
        MergePlan::work_out(self, &trees, strategy).map(Some)
    }
}

impl WriteTransaction<'_> {
    /// Takes in what a branch changed since both branches were the same the last time: where one of them began, or the last
    /// merge of one into the other, directly or through further branches. A path that only one branch changed gets that
    /// change. The store compares whole files, and merges no text.
    ///
    /// # Errors
    /// [`StoreError::MergeConflicts`] with [`MergeStrategy::Fail`]; or a branch does not exist, or the target takes no
    /// changes, or too many paths changed, or the bucket would have more than its quota.
    pub fn merge(&mut self, request: &MergeRequest) -> Result<MergeOutcome, StoreError> {
        self.merge_as("merge", request)
    }

    /// Takes in what the parent of a branch changed since the branch began or was rebased, and moves the base of the branch
    /// to that commit. It fails if there is a conflict. Former versions of the branch stay as they were. A protected branch is
    /// refused.
    ///
    /// # Errors
    /// As for [`merge`](Self::merge). A branch without a parent has none to take in.
    pub fn rebase(&mut self, branch: BranchId, actor: &str) -> Result<MergeOutcome, StoreError> {
        self.rebase_with(branch, actor, ProtectedBranches::Refused)
    }

    /// The same with what the caller may do to protected branches.
    ///
    /// # Errors
    /// As for [`rebase`](Self::rebase).
    pub fn rebase_with(
        &mut self,
        branch: BranchId,
        actor: &str,
        protected: ProtectedBranches,
    ) -> Result<MergeOutcome, StoreError> {
        let rebased = self.branch(branch)?;
        protected.require(&rebased)?;
        let parent = rebased.parent;
        let parent = parent.ok_or(StoreError::Denied("the branch has no parent"))?;
        let base = self.branch(parent)?.head_seq;
        let outcome = self.merge_as("rebase", &MergeRequest::new(parent, branch, actor))?;
        let set = "UPDATE branch SET base_seq = ?2 WHERE id = ?1";
        self.execute(set, rusqlite::params![branch, to_sql(base)])?;
        Ok(outcome)
    }

    fn merge_as(&mut self, op: &str, request: &MergeRequest) -> Result<MergeOutcome, StoreError> {
        let (source, target) = self.merged_branches(request.source, request.target)?;
        let planned = self.plan_merge(&source, &target, request.strategy)?;
        let outcome = match planned {
            Some(planned) => self.write_merge(op, request, &source, planned)?,
            None => MergeOutcome {
                receipt: None,
                changed: 0,
                conflicts: Vec::new(),
            },
        };
        if request.closes_source && source.state == BranchState::Open {
            // Refused after the merge is written: the error takes back the whole job, and with it
            // the merge.
            refuse_main(&source)?;
            request.protected.require(&source)?;
            self.writable_bucket(source.bucket)?;
            self.end_branch(&source, BranchState::Merged, &request.actor)?;
        }
        Ok(outcome)
    }

    fn write_merge(
        &mut self,
        op: &str,
        request: &MergeRequest,
        source: &Branch,
        planned: MergeResult,
    ) -> Result<MergeOutcome, StoreError> {
        let MergeResult {
            changes,
            mut conflicts,
        } = planned;
        if request.strategy == MergeStrategy::Fail && !conflicts.is_empty() {
            let total = conflicts.len();
            // The error goes to the client as one message, which a merge of large trees would make
            // too large.
            conflicts.truncate(CONFLICTS_LISTED_MAX);
            return Err(StoreError::MergeConflicts { total, conflicts });
        }
        self.check_space()?;
        let mut commit = self.begin_commit(CommitHeader {
            branch: request.target,
            op,
            actor: &request.actor,
            message: request.message.as_deref(),
            merged: Some((source.id, source.head_seq)),
            is_deletion: false,
        })?;
        let added = changes.iter().filter(|(_, state)| state.is_some()).count();
        self.check_entry_quota(&commit.bucket, added as u64)?;
        let deletion = EntryState::deletion(commit.now_ns);
        let changed = changes.len();
        let is_locked = self.has_locks(request.target)?;
        for (path, state) in changes {
            // A merge brings no tokens: the owner of a lock decides when the file changes.
            if is_locked {
                self.check_lock_of(&commit, &path, LockedChange::Name)?;
            }
            self.write_entry(
                &mut commit,
                &path,
                &state.unwrap_or_else(|| deletion.clone()),
            )?;
        }
        // One event for all paths: a merge of 200,000 of them would fill the outbox in one
        // transaction.
        self.emit_in(&commit, EventTopic::BranchMerge, &commit.payload())?;
        Ok(MergeOutcome {
            receipt: Some(self.finish_commit(&commit)?),
            changed,
            conflicts,
        })
    }
}
