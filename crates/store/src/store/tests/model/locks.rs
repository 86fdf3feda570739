//! Locks of the main branch, and what they forbid.

use super::*;

const LOCK_TIME: Duration = Duration::from_secs(600);

/// Locks of the main branch, by their paths, and when each ends.
pub(super) type HeldLocks = BTreeMap<String, (LockToken, u64)>;

/// How a change uses a path, by the locks that forbid it.
#[derive(Clone, Copy)]
pub(super) enum PathUse {
    Content,
    Name,
    Subtree,
}

/// Whether locks of files forbid a use of a path.
pub(super) fn forbids(
    locks: &HeldLocks,
    tokens: &[LockToken],
    path: &str,
    path_use: PathUse,
) -> bool {
    let parent = above(path).last();
    let mut met = locks.iter().filter(|(at, (token, _))| {
        let at = at.as_str();
        let is_parent = parent.as_deref() == Some(at);
        let is_met = match path_use {
            PathUse::Content => at == path,
            PathUse::Name => at == path || is_parent,
            PathUse::Subtree => is_within(at, path) || is_parent,
        };
        is_met && !tokens.contains(token)
    });
    met.next().is_some()
}

/// Whether locks forbid a change of a tree.
pub(super) fn forbids_change(
    locks: &HeldLocks,
    tokens: &[LockToken],
    tree: &Tree,
    change: &ReferenceChange,
) -> bool {
    let uses = |path: &str, path_use| forbids(locks, tokens, path, path_use);
    let makes = |path: &str| {
        let missing = above(path).filter(|it| !tree.contains_key(it));
        missing.into_iter().any(|it| uses(&it, PathUse::Name))
    };
    let name_or_content = |path: &str| match tree.contains_key(path) {
        true => PathUse::Content,
        false => PathUse::Name,
    };
    match change {
        ReferenceChange::Put(path, _) | ReferenceChange::Symlink(path, _) => {
            uses(path, name_or_content(path)) || makes(path)
        }
        ReferenceChange::Mkdir(path) => uses(path, PathUse::Name) || makes(path),
        ReferenceChange::Delete(path, _) => uses(path, PathUse::Subtree),
        ReferenceChange::Restore(_, path) => uses(path, PathUse::Subtree) || makes(path),
        ReferenceChange::Rename(from, to, _) => {
            uses(from, PathUse::Subtree) || uses(to, PathUse::Subtree) || makes(to)
        }
        ReferenceChange::Copy(_, _, to, _) => uses(to, PathUse::Subtree) || makes(to),
    }
}

/// Removes the locks that end with a change.
pub(super) fn end_locks(locks: &mut HeldLocks, change: &ReferenceChange) {
    match change {
        ReferenceChange::Delete(path, _) => locks.retain(|at, _| !is_within(at, path)),
        ReferenceChange::Rename(from, to, _) if from != to => {
            locks.retain(|at, _| !is_within(at, from));
        }
        _ => {}
    }
}

impl FilesRun {
    /// Takes a lock, or gives one back.
    pub(super) fn lock_or_unlock(&mut self) -> &'static str {
        if !self.locks.is_empty() && self.random.is_one_in(2) {
            return self.unlock();
        }
        let main = self.files.main;
        let at = self.random.path();
        let tokens = self.any_tokens();
        let mut tree = self.tree(main).clone();
        let model = ReferenceChange::Put(at.clone(), shown_hash(ContentHash::EMPTY));
        let is_free = !self.locks.contains_key(&at);
        let is_allowed = is_free
            && (tree.contains_key(&at)
                || !forbids_change(&self.locks, &tokens, &tree, &model)
                    && model.apply(&mut tree).is_ok());
        self.contents
            .insert(shown_hash(ContentHash::EMPTY), Vec::new());
        let new = NewLock::exclusive(main, path(&at), "alice", LockDepth::Zero, LOCK_TIME);
        let taken = self
            .files
            .store()
            .write(move |tx| tx.lock_entry(&new, &tokens));
        match self.attempt(taken.wait()) {
            Attempt::Done(locked) => {
                assert!(is_allowed, "{at}");
                let lock = locked.lock;
                self.locks.insert(at.clone(), (lock.token, lock.until_ms));
                if let Some(made) = locked.made {
                    self.reference.add_version(main, made.seq, tree);
                    self.untimed.insert(made.seq);
                    self.set_time(&at, lock.token);
                }
                "lock"
            }
            Attempt::Refused(error) => {
                assert!(!is_allowed, "{at}: {error}");
                "refused lock"
            }
            Attempt::Failed(_) => "failed lock",
        }
    }

    /// The file that a lock has made has the time of its commit.
    fn set_time(&mut self, at: &str, token: LockToken) {
        let main = self.files.main;
        let change = TreeChange::SetAttributes {
            path: path(at),
            attributes: fixed_time(),
            precondition: EntryPrecondition::Present,
        };
        let request = ChangeRequest::new(main, "alice", change);
        let set = self
            .files
            .store()
            .write(move |tx| tx.apply_locked(&request, &[token]));
        let seq = set.wait().expect("its token").seq;
        let tree = self.tree(main).clone();
        self.reference.add_version(main, seq, tree);
    }

    pub(super) fn unlock(&mut self) -> &'static str {
        let main = self.files.main;
        let held: Vec<String> = self.locks.keys().cloned().collect();
        let at = self.random.pick(&held);
        let (token, _) = self.locks[&at];
        let lock = path(&at);
        let unlocked = self
            .files
            .store()
            .write(move |tx| tx.unlock_entry(main, &lock, "alice", token));
        match self.attempt(unlocked.wait()) {
            Attempt::Done(()) => {
                self.locks.remove(&at);
                "unlock"
            }
            Attempt::Refused(error) => panic!("{at}: {error}"),
            Attempt::Failed(_) => "failed lock",
        }
    }
}
