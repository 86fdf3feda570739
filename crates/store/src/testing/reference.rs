//! The model: whole trees in maps, one for each version of each branch.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::StoreError;
use crate::names::{BranchId, MergeOutcome, MergeStrategy};

/// Paths of a tree, and what is there.
pub(crate) type Tree = BTreeMap<String, String>;

/// What a tree says of a directory.
pub(crate) const DIRECTORY: &str = "directory";

/// A change that the model refuses. The store has to refuse it too.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Refused;

/// A branch with all its versions.
#[derive(Clone, Debug)]
pub(crate) struct ReferenceBranch {
    pub(crate) id: BranchId,
    pub(crate) name: String,
    pub(crate) parent: Option<BranchId>,
    /// The branch that it was made from, whatever became of that.
    pub(crate) made_from: Option<BranchId>,
    /// Where on its parent it began, or the nearest version of an ancestor after its parent was deleted.
    pub(crate) origin: u64,
    /// Its first version.
    pub(crate) begin: u64,
    pub(crate) versions: Vec<(u64, Tree)>,
    /// Number of the commit, the branch, and its last commit that was taken in.
    pub(crate) merges: Vec<(u64, BranchId, u64)>,
    pub(crate) is_deleted: bool,
}

impl ReferenceBranch {
    pub(crate) fn head(&self) -> u64 {
        self.versions.last().expect("a version").0
    }

    pub(crate) fn tree(&self) -> &Tree {
        &self.versions.last().expect("a version").1
    }

    /// One of its own versions.
    pub(crate) fn tree_at(&self, seq: u64) -> &Tree {
        let before = self.versions.iter().rev().find(|(at, _)| *at <= seq);
        &before.expect("a version").1
    }
}

/// All branches, deleted ones too.
#[derive(Debug, Default)]
pub(crate) struct Reference {
    pub(crate) branches: BTreeMap<BranchId, ReferenceBranch>,
}

/// A merge that the store was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReferenceMerge {
    pub(crate) source: BranchId,
    pub(crate) target: BranchId,
    pub(crate) strategy: MergeStrategy,
}

impl Reference {
    /// One empty branch.
    pub(crate) fn with_main(id: BranchId) -> Self {
        let main = ReferenceBranch {
            id,
            name: "main".to_owned(),
            parent: None,
            made_from: None,
            origin: 0,
            begin: 0,
            versions: vec![(0, Tree::new())],
            merges: Vec::new(),
            is_deleted: false,
        };
        Self {
            branches: BTreeMap::from([(id, main)]),
        }
    }

    pub(crate) fn add_version(&mut self, branch: BranchId, seq: u64, tree: Tree) {
        let branch = self.branches.get_mut(&branch).expect("there");
        assert!(seq > branch.head());
        branch.versions.push((seq, tree));
    }

    /// A new branch of a version of its parent, or of its head.
    pub(crate) fn add_branch(
        &mut self,
        id: BranchId,
        name: String,
        parent: BranchId,
        seq: Option<u64>,
    ) {
        let begin = seq.unwrap_or_else(|| self.branches[&parent].head());
        let branch = ReferenceBranch {
            id,
            name,
            parent: Some(parent),
            made_from: Some(parent),
            origin: begin,
            begin,
            versions: vec![(begin, self.tree_at(parent, begin))],
            merges: Vec::new(),
            is_deleted: false,
        };
        self.branches.insert(id, branch);
    }

    /// Compares what became of a merge with the model, and notes it there. `tree` is what the target shows now. Returns what
    /// the merge was.
    pub(crate) fn check_merged(
        &mut self,
        asked: ReferenceMerge,
        merged: Result<MergeOutcome, StoreError>,
        tree: Tree,
    ) -> &'static str {
        let ReferenceMerge {
            source,
            target,
            strategy,
        } = asked;
        let base = self.base(source, target);
        let ours = self.branches[&target].tree().clone();
        let theirs = self.branches[&source].tree().clone();
        let (expected, conflicts) = merge(&base, &ours, &theirs);
        let outcome = match merged {
            Ok(outcome) => outcome,
            Err(StoreError::MergeConflicts {
                conflicts: found, ..
            }) => {
                assert_eq!(strategy, MergeStrategy::Fail);
                let none = found.iter().all(|it| !conflicts.contains(it.path.as_str()));
                assert!(
                    !none,
                    "{found:?} {conflicts:?}\n{base:?}\n{ours:?}\n{theirs:?}\n{:?}",
                    self.branches
                );
                assert_eq!(tree, ours);
                return "refused merge";
            }
            Err(other) => panic!("{other}"),
        };
        for path in tree.keys() {
            assert!(above(path).all(|it| is_directory(&tree, &it)));
        }
        if conflicts.is_empty() {
            assert_eq!(outcome.conflicts, [], "{base:?}\n{ours:?}\n{theirs:?}");
            assert_eq!(tree, expected);
        } else {
            assert_ne!(
                strategy,
                MergeStrategy::Fail,
                "{conflicts:?}\n{base:?}\n{ours:?}\n{theirs:?}\n{source:?} {target:?} {outcome:?} {:?}",
                self.branches
            );
            assert_ne!(outcome.conflicts, []);
            let found = outcome.conflicts.iter().map(|it| it.path.to_string());
            let decided: BTreeSet<String> = found.chain(conflicts).collect();
            let is_decided = |path: &String| {
                let is_near = |it: &String| it == path || is_below(it, path) || is_below(path, it);
                path.contains(".conflict-") || decided.iter().any(is_near)
            };
            let differing = differing(&tree, &expected);
            assert!(
                differing.iter().all(is_decided),
                "{differing:?} {decided:?}"
            );
        }
        let Some(receipt) = outcome.receipt else {
            assert_eq!(tree, ours);
            return "nothing to merge";
        };
        let head = self.branches[&source].head();
        self.add_version(target, receipt.seq, tree);
        let branch = self.branches.get_mut(&target).expect("there");
        branch.merges.push((receipt.seq, source, head));
        match outcome.conflicts.is_empty() {
            true => "merge",
            false => "decided merge",
        }
    }

    /// A version of a branch, which is one of the branch that it was made from where it is older.
    pub(crate) fn tree_at(&self, branch: BranchId, seq: u64) -> Tree {
        let branch = &self.branches[&branch];
        match branch.made_from {
            Some(parent) if seq < branch.begin => self.tree_at(parent, seq),
            _ => branch.tree_at(seq).clone(),
        }
    }

    pub(crate) fn live(&self) -> Vec<BranchId> {
        let live = self.branches.values().filter(|it| !it.is_deleted);
        live.map(|it| it.id).collect()
    }

    /// For each branch the newest version that this version has taken in.
    fn taken_in(&self, branch: BranchId, seq: u64, taken: &mut BTreeMap<BranchId, u64>) {
        if taken.get(&branch).is_some_and(|known| *known >= seq) {
            return;
        }
        taken.insert(branch, seq);
        let of = &self.branches[&branch];
        if let Some(parent) = of.parent {
            self.taken_in(parent, of.origin.min(seq), taken);
        }
        for (commit, merged, merged_seq) in of.merges.clone() {
            if commit <= seq {
                self.taken_in(merged, merged_seq, taken);
            }
        }
    }

    /// The newest version that both branches have taken in.
    pub(crate) fn base(&self, one: BranchId, other: BranchId) -> Tree {
        let taken = |branch: BranchId| {
            let mut taken = BTreeMap::new();
            self.taken_in(branch, self.branches[&branch].head(), &mut taken);
            taken
        };
        let (one, other) = (taken(one), taken(other));
        let common = one.iter().filter_map(|(branch, seq)| {
            let seq = *other.get(branch)?.min(seq);
            let branch = &self.branches[branch];
            (!branch.is_deleted && seq >= branch.begin).then_some((seq, branch))
        });
        let newest = common.max_by_key(|(seq, _)| *seq);
        newest.map_or_else(Tree::new, |(seq, branch)| branch.tree_at(seq).clone())
    }

    /// Deletes a branch, as far as merges are concerned.
    pub(crate) fn delete(&mut self, id: BranchId) {
        let deleted = self.branches[&id].clone();
        for branch in self.branches.values_mut() {
            if branch.parent == Some(id) {
                let merges = deleted.merges.iter();
                let known = merges
                    .filter(|(commit, merged, _)| {
                        Some(*merged) == deleted.parent && *commit <= branch.origin
                    })
                    .map(|(_, _, seq)| *seq);
                // A branch that began before its parent did has no more of its grandparent than up to there.
                let begun = deleted.origin.min(branch.origin);
                branch.origin = known.max().unwrap_or(0).max(begun);
                branch.parent = deleted.parent;
            }
        }
        let branch = self.branches.get_mut(&id).expect("there");
        branch.is_deleted = true;
        branch.parent = None;
    }
}

/// What a merge of three trees makes, path by path, and the paths in conflict.
fn merge(base: &Tree, ours: &Tree, theirs: &Tree) -> (Tree, BTreeSet<String>) {
    let paths: BTreeSet<&String> = base
        .keys()
        .chain(ours.keys())
        .chain(theirs.keys())
        .collect();
    let mut result = Tree::new();
    let mut conflicts = BTreeSet::new();
    for path in paths {
        let (was, our, their) = (base.get(path), ours.get(path), theirs.get(path));
        let merged = match (our == was, their == was) {
            (_, true) => our,
            (true, false) => their,
            (false, false) => {
                if our != their {
                    conflicts.insert(path.clone());
                }
                our
            }
        };
        if let Some(merged) = merged {
            result.insert(path.clone(), merged.clone());
        }
    }
    for path in result.keys() {
        let broken = above(path).find(|it| result.get(it).is_none_or(|what| what != DIRECTORY));
        conflicts.extend(broken);
    }
    (result, conflicts)
}

/// Paths at which two trees differ.
pub(crate) fn differing(one: &Tree, other: &Tree) -> BTreeSet<String> {
    let paths = one.keys().chain(other.keys());
    let differing = paths.filter(|path| one.get(*path) != other.get(*path));
    differing.cloned().collect()
}

/// The directories above a path, the topmost first.
pub(crate) fn above(path: &str) -> impl Iterator<Item = String> + '_ {
    let slashes = path.match_indices('/').skip(1);
    slashes.map(|(at, _)| path[..at].to_owned())
}

fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

pub(crate) fn is_within(path: &str, top: &str) -> bool {
    path == top || is_below(path, top)
}

fn is_directory(tree: &Tree, path: &str) -> bool {
    tree.get(path).is_some_and(|what| what == DIRECTORY)
}

fn has_entries(tree: &Tree, directory: &str) -> bool {
    tree.keys().any(|path| is_below(path, directory))
}

fn make_parents(tree: &mut Tree, path: &str) -> Result<(), Refused> {
    for directory in above(path) {
        let what = tree
            .entry(directory)
            .or_insert_with(|| DIRECTORY.to_owned());
        if what != DIRECTORY {
            return Err(Refused);
        }
    }
    Ok(())
}

/// A change of a tree, as the model has it.
#[derive(Clone, Debug)]
pub(crate) enum ReferenceChange {
    /// A file, and what the tree says of it.
    Put(String, String),
    Mkdir(String),
    Symlink(String, bool),
    Delete(String, bool),
    Rename(String, String, bool),
    /// From a tree, or from the tree itself.
    Copy(Option<Tree>, String, String, bool),
    /// The tree of that version.
    Restore(Tree, String),
}

impl ReferenceChange {
    pub(crate) fn apply(&self, tree: &mut Tree) -> Result<(), Refused> {
        match self {
            Self::Put(path, what) => {
                if is_directory(tree, path) {
                    return Err(Refused);
                }
                make_parents(tree, path)?;
                tree.insert(path.clone(), what.clone());
            }
            Self::Mkdir(path) => {
                if tree.contains_key(path) {
                    return Err(Refused);
                }
                make_parents(tree, path)?;
                tree.insert(path.clone(), DIRECTORY.to_owned());
            }
            Self::Symlink(path, may_replace) => {
                if is_directory(tree, path) || tree.contains_key(path) && !may_replace {
                    return Err(Refused);
                }
                make_parents(tree, path)?;
                tree.insert(path.clone(), "link x".to_owned());
            }
            Self::Delete(path, is_recursive) => {
                let is_full = has_entries(tree, path);
                if !tree.contains_key(path) || is_full && !is_recursive {
                    return Err(Refused);
                }
                tree.retain(|it, _| !is_within(it, path));
            }
            Self::Rename(from, to, may_replace) => {
                if !tree.contains_key(from) || is_below(to, from) {
                    return Err(Refused);
                }
                if from != to {
                    let source = tree.clone();
                    transfer(tree, &source, from, to, *may_replace)?;
                    tree.retain(|it, _| !is_within(it, from));
                }
            }
            Self::Copy(other, from, to, may_replace) => {
                if other.is_none() && is_within(to, from) {
                    return Err(Refused);
                }
                let source = other.clone().unwrap_or_else(|| tree.clone());
                transfer(tree, &source, from, to, *may_replace)?;
            }
            Self::Restore(then, path) => {
                if !then.contains_key(path) {
                    return Err(Refused);
                }
                tree.retain(|it, _| !is_within(it, path));
                make_parents(tree, path)?;
                let old = then.iter().filter(|(it, _)| is_within(it, path));
                tree.extend(old.map(|(it, what)| (it.clone(), what.clone())));
            }
        }
        Ok(())
    }
}

fn transfer(
    tree: &mut Tree,
    source: &Tree,
    from: &str,
    to: &str,
    may_replace: bool,
) -> Result<(), Refused> {
    if !source.contains_key(from) {
        return Err(Refused);
    }
    if tree.contains_key(to) {
        let are_alike = is_directory(tree, to) == is_directory(source, from);
        if !may_replace || !are_alike || has_entries(tree, to) {
            return Err(Refused);
        }
    }
    make_parents(tree, to)?;
    let moved = source.iter().filter(|(path, _)| is_within(path, from));
    tree.extend(moved.map(|(path, what)| (format!("{to}{}", &path[from.len()..]), what.clone())));
    Ok(())
}
