//! Branches: made, merged, rebased and deleted.

use super::*;

/// Branches at most.
const BRANCHES: usize = 5;

impl FilesRun {
    pub(super) fn merge(&mut self) -> &'static str {
        let (source, target) = (self.any_branch(), self.any_branch());
        let names = ["fail", "fail", "ours", "theirs", "latest", "keep-both"];
        let strategy = self.random.pick(&names);
        let strategy = MergeStrategy::from_name(strategy).expect("a strategy");
        if source == target {
            return "nothing";
        }
        // A merge waits for locks, and a test of them shows that.
        if target == self.files.main && !self.locks.is_empty() {
            return self.unlock();
        }
        let request = MergeRequest {
            strategy,
            ..MergeRequest::new(source, target, "bob")
        };
        let merged = self.files.store().write(move |tx| tx.merge(&request));
        let asked = ReferenceMerge {
            source,
            target,
            strategy,
        };
        self.check_merge(asked, merged.wait())
    }

    pub(super) fn rebase(&mut self) -> &'static str {
        let target = self.any_branch();
        let Some(source) = self.reference.branches[&target].parent else {
            return "nothing";
        };
        let rebased = self
            .files
            .store()
            .write(move |tx| tx.rebase(target, "alice"));
        let asked = ReferenceMerge {
            source,
            target,
            strategy: MergeStrategy::Fail,
        };
        self.check_merge(asked, rebased.wait())
    }

    fn check_merge(
        &mut self,
        asked: ReferenceMerge,
        merged: Result<MergeOutcome, StoreError>,
    ) -> &'static str {
        let merged = match self.attempt(merged) {
            Attempt::Done(outcome) => Ok(outcome),
            Attempt::Refused(error) => Err(error),
            Attempt::Failed(_) => return "failed merge",
        };
        let tree = self.tree_of(asked.target, None);
        self.reference.check_merged(asked, merged, tree)
    }

    pub(super) fn create_branch(&mut self) -> &'static str {
        if self.reference.live().len() >= BRANCHES {
            return self.delete_branch();
        }
        let parent = self.any_branch();
        self.names += 1;
        let text = format!("branch-{}", self.names);
        let new = NewBranch::new(text.parse().expect("a name"), parent, "alice");
        let created = self.files.store().write(move |tx| tx.create_branch(&new));
        match self.attempt(created.wait()) {
            Attempt::Done(branch) => {
                self.reference.add_branch(branch.id, text, parent, None);
                "branch"
            }
            Attempt::Refused(error) => panic!("{error}"),
            Attempt::Failed(_) => "failed branch",
        }
    }

    pub(super) fn delete_branch(&mut self) -> &'static str {
        let id = self.any_branch();
        if id == self.files.main || self.sessions.iter().any(|it| it.branch == id) {
            return "nothing";
        }
        let deleted = self
            .files
            .store()
            .write(move |tx| tx.delete_branch(id, true, "alice"));
        match self.attempt(deleted.wait()) {
            Attempt::Done(()) => {
                self.reference.delete(id);
                "deleted branch"
            }
            Attempt::Refused(error) => panic!("{error}"),
            Attempt::Failed(_) => "failed branch",
        }
    }
}
