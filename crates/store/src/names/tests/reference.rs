//! The model: whole trees in maps, one for each version of each branch.

use std::collections::{BTreeMap, BTreeSet};

use super::{BranchId, Tree};

const DIRECTORY: &str = "directory";

/// A change that the model refuses. The store has to refuse it too.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused;

/// A branch with all its versions.
#[derive(Clone, Debug)]
pub(super) struct ReferenceBranch {
    pub(super) id: BranchId,
    pub(super) name: String,
    pub(super) parent: Option<BranchId>,
    /// The branch that it was made from, whatever became of that.
    pub(super) made_from: Option<BranchId>,
    /// Where on its parent it began, or the nearest version of an ancestor after its parent was deleted.
    pub(super) origin: u64,
    /// Its first version.
    pub(super) begin: u64,
    pub(super) versions: Vec<(u64, Tree)>,
    /// Number of the commit, the branch, and its last commit that was taken in.
    pub(super) merges: Vec<(u64, BranchId, u64)>,
    pub(super) is_deleted: bool,
}

impl ReferenceBranch {
    pub(super) fn head(&self) -> u64 {
        self.versions.last().expect("a version").0
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.versions.last().expect("a version").1
    }

    /// One of its own versions.
    pub(super) fn tree_at(&self, seq: u64) -> &Tree {
        let before = self.versions.iter().rev().find(|(at, _)| *at <= seq);
        &before.expect("a version").1
    }
}

/// All branches, deleted ones too.
#[derive(Debug, Default)]
pub(super) struct Reference {
    pub(super) branches: BTreeMap<BranchId, ReferenceBranch>,
}

impl Reference {
    /// A version of a branch, which is one of the branch that it was made from where it is older.
    pub(super) fn tree_at(&self, branch: BranchId, seq: u64) -> Tree {
        let branch = &self.branches[&branch];
        match branch.made_from {
            Some(parent) if seq < branch.begin => self.tree_at(parent, seq),
            _ => branch.tree_at(seq).clone(),
        }
    }

    pub(super) fn live(&self) -> Vec<BranchId> {
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
    pub(super) fn base(&self, one: BranchId, other: BranchId) -> Tree {
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
    pub(super) fn delete(&mut self, id: BranchId) {
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
pub(super) fn merge(base: &Tree, ours: &Tree, theirs: &Tree) -> (Tree, BTreeSet<String>) {
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
pub(super) fn differing(one: &Tree, other: &Tree) -> BTreeSet<String> {
    let paths = one.keys().chain(other.keys());
    let differing = paths.filter(|path| one.get(*path) != other.get(*path));
    differing.cloned().collect()
}

/// The directories above a path, the topmost first.
pub(super) fn above(path: &str) -> impl Iterator<Item = String> + '_ {
    let slashes = path.match_indices('/').skip(1);
    slashes.map(|(at, _)| path[..at].to_owned())
}

pub(super) fn is_below(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory)
        .is_some_and(|rest| rest.starts_with('/'))
}

fn is_within(path: &str, top: &str) -> bool {
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
pub(super) enum ReferenceChange {
    Put(String, u8),
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
    pub(super) fn apply(&self, tree: &mut Tree) -> Result<(), Refused> {
        match self {
            Self::Put(path, number) => {
                if is_directory(tree, path) {
                    return Err(Refused);
                }
                make_parents(tree, path)?;
                tree.insert(path.clone(), format!("file {number}"));
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
