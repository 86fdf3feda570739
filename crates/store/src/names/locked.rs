//! What each change asks of the locks on its paths.

use super::change::{ChangeRequest, TreeChange};
use super::commit::{CommitReceipt, OpenCommit};
use crate::db::WriteTransaction;
use crate::error::StoreError;
use crate::locks::{LockHolder, LockToken, LockedChange};
use crate::path::EntryPath;

impl WriteTransaction<'_> {
    /// Makes all changes of a request in one commit, or none of them.
    ///
    /// # Errors
    /// The first change that is not possible says why.
    pub fn apply(&mut self, request: &ChangeRequest) -> Result<CommitReceipt, StoreError> {
        self.apply_locked(request, &[])
    }

    /// Does that with tokens of locks that the actor has.
    ///
    /// # Errors
    /// The first change that is not possible says why.
    pub fn apply_locked(
        &mut self,
        request: &ChangeRequest,
        tokens: &[LockToken],
    ) -> Result<CommitReceipt, StoreError> {
        let mut commit = self.begin_changes(request)?;
        tokens.clone_into(&mut commit.lock_tokens);
        for change in &request.changes {
            // One after the other: an earlier change of the batch may make the entry
            // that a later one changes.
            self.check_change(&commit, change)?;
            self.apply_change(&mut commit, change)?;
            self.remove_moved_locks(&commit, change)?;
        }
        self.finish_commit(&commit)
    }

    /// Refuses a change of what is locked.
    fn check_change(&self, commit: &OpenCommit, change: &TreeChange) -> Result<(), StoreError> {
        // Before the look at the entry, which most writes can spare so.
        if self.is_replay() || !self.has_locks(commit.branch.id)? {
            return Ok(());
        }
        match change {
            TreeChange::Put { path, .. } | TreeChange::Symlink { path, .. } => {
                let is_there = self.find(&commit.view, path)?.is_some();
                let kind = if is_there {
                    LockedChange::Content
                } else {
                    LockedChange::Name
                };
                self.check_lock_of(commit, path, kind)
            }
            TreeChange::Mkdir { path, .. } => match self.find(&commit.view, path)? {
                // Then it changes nothing, or is refused.
                Some(_) => Ok(()),
                None => self.check_lock_of(commit, path, LockedChange::Name),
            },
            TreeChange::SetAttributes { path, .. } => {
                self.check_lock_of(commit, path, LockedChange::Content)
            }
            TreeChange::Rename { from, to, .. } => {
                self.check_lock_of(commit, from, LockedChange::Subtree)?;
                self.check_lock_of(commit, to, LockedChange::Subtree)
            }
            // The source of a copy is only read.
            TreeChange::Copy { to: path, .. }
            | TreeChange::Delete { path, .. }
            | TreeChange::Restore { path, .. } => {
                self.check_lock_of(commit, path, LockedChange::Subtree)
            }
        }
    }

    /// Refuses a change of a path that a lock forbids to the actor of a commit.
    pub(super) fn check_lock_of(
        &self,
        commit: &OpenCommit,
        path: &EntryPath,
        change: LockedChange,
    ) -> Result<(), StoreError> {
        // The locks of a copy are of its time, and the changes that are made again came later.
        if self.is_replay() {
            return Ok(());
        }
        let holder = LockHolder {
            owner: &commit.actor,
            tokens: &commit.lock_tokens,
        };
        self.check_locks(commit.branch.id, path, change, holder)
    }

    /// A deletion ends the locks of what it deletes, and a move does not take them along.
    fn remove_moved_locks(
        &mut self,
        commit: &OpenCommit,
        change: &TreeChange,
    ) -> Result<(), StoreError> {
        match change {
            TreeChange::Delete { path, .. } => self.remove_locks_of(commit.branch.id, path),
            TreeChange::Rename { from, to, .. } if from != to => {
                self.remove_locks_of(commit.branch.id, from)
            }
            _ => Ok(()),
        }
    }
}
