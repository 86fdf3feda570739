//! Random changes, branches, merges and restarts, compared with the model after each step.

use std::collections::{BTreeMap, BTreeSet};

use alknet_test_support::is_campaign;

use super::*;
use crate::collect::{CollectPhase, GarbageCollection};
use crate::error::StoreObject;
use crate::testing::TestRandom;
use crate::testing::reference::{Reference, ReferenceChange, ReferenceMerge, differing};

/// A store, and what it has to be like.
struct ModelRun {
    store: TestStore,
    random: TestRandom,
    reference: Reference,
    /// The name, the branch and the version.
    snapshots: Vec<(String, BranchId, u64)>,
    branches_max: usize,
    /// Whether old versions are collected, of which the store keeps none for their age.
    collects: bool,
    names: usize,
    /// How often each step did something.
    done: BTreeMap<&'static str, usize>,
}

impl ModelRun {
    fn new(seed: u64, branches_max: usize, collects: bool) -> Self {
        let store = TestStore::new();
        let bucket = store.bucket;
        let settings = BucketSettings {
            retention_s: collects.then_some(0),
            ..BucketSettings::default()
        };
        let set = store.write(move |tx| tx.set_bucket(bucket, &settings, "root"));
        set.expect("there");
        let reference = Reference::with_main(store.main);
        Self {
            store,
            random: TestRandom::new(seed),
            reference,
            snapshots: Vec::new(),
            branches_max,
            collects,
            names: 0,
            done: BTreeMap::new(),
        }
    }

    fn step(&mut self) {
        let what = match self.random.below(100) {
            0..64 => self.change(),
            64..74 => self.merge(),
            74..78 => self.rebase(),
            78..86 => self.create_branch(),
            86..89 => self.delete_branch(),
            89..93 => self.create_snapshot(),
            93..95 => self.delete_snapshot(),
            95..98 if self.collects => self.collect(),
            95..98 => self.purge(),
            _ => self.reopen(),
        };
        *self.done.entry(what).or_default() += 1;
    }

    fn any_branch(&mut self) -> BranchId {
        let live = self.reference.live();
        self.random.pick(&live)
    }

    /// A version of a branch, one in four from before it began: it shows its parent there.
    fn any_version(&mut self, branch: BranchId) -> u64 {
        let begin = self.reference.branches[&branch].begin;
        if begin > 0 && self.random.is_one_in(4) {
            let bound = usize::try_from(begin).expect("small");
            let seq = u64::try_from(self.random.below(bound)).expect("small");
            // A branch with copies of its own has no earlier version.
            if self.is_kept(branch, seq) {
                *self.done.entry("early version").or_default() += 1;
                return seq;
            }
            *self.done.entry("gone early version").or_default() += 1;
        }
        self.own_version(branch)
    }

    /// A version that the branch itself has made, or where it began.
    fn own_version(&mut self, branch: BranchId) -> u64 {
        let versions = &self.reference.branches[&branch].versions;
        let seqs: Vec<u64> = versions.iter().map(|(seq, _)| *seq).collect();
        let seq = self.random.pick(&seqs);
        if self.is_kept(branch, seq) {
            return seq;
        }
        // What a live branch or a snapshot shows has to be there.
        let head = *seqs.last().expect("a version");
        let is_needed = |(_, of, at): &(String, BranchId, u64)| (*of, *at) == (branch, seq);
        assert!(self.collects && seq != head && !self.snapshots.iter().any(is_needed));
        assert!(self.is_kept(branch, head));
        *self.done.entry("gone version").or_default() += 1;
        head
    }

    fn is_kept(&self, branch: BranchId, seq: u64) -> bool {
        let view = self.store.read(move |tx| tx.view(branch, Some(seq)));
        let absent = StoreError::NotFound(StoreObject::Version);
        view.map_err(|error| assert_eq!(error, absent)).is_ok()
    }

    fn fresh_name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}-{}", self.names)
    }

    fn change(&mut self) -> &'static str {
        let branch = self.any_branch();
        let count = if self.random.is_one_in(5) {
            2 + self.random.below(4)
        } else {
            1
        };
        let mut tree = self.reference.branches[&branch].tree().clone();
        let mut expected = Ok(());
        let mut changes = Vec::new();
        for _ in 0..count {
            let (model, change) = self.any_change(branch);
            expected = expected.and_then(|()| model.apply(&mut tree));
            changes.push(change);
        }
        let shown = format!("{changes:?}");
        let applied = self.store.apply_all(branch, changes);
        assert_eq!(applied.is_ok(), expected.is_ok(), "{shown}: {applied:?}");
        match applied {
            // The store makes no commit where nothing changes.
            Ok(seq) if seq == self.reference.branches[&branch].head() => {
                assert_eq!(*self.reference.branches[&branch].tree(), tree, "{shown}");
                "change of nothing"
            }
            Ok(seq) => {
                self.reference.add_version(branch, seq, tree);
                "change"
            }
            Err(_) => "refused change",
        }
    }

    fn any_change(&mut self, branch: BranchId) -> (ReferenceChange, TreeChange) {
        let (one, other) = (self.random.path(), self.random.path());
        let flag = self.random.is_one_in(2);
        let number = 1 + u8::try_from(self.random.below(6)).expect("small");
        match self.random.below(16) {
            0..6 => (
                ReferenceChange::Put(one.clone(), format!("file {number}")),
                TreeChange::put(path(&one), content(number)),
            ),
            6 => (
                ReferenceChange::Mkdir(one.clone()),
                TreeChange::mkdir(path(&one)),
            ),
            7 => (
                ReferenceChange::Symlink(one.clone(), flag),
                TreeChange::Symlink {
                    path: path(&one),
                    target: "x".to_owned(),
                    may_replace: flag,
                },
            ),
            8..11 => (
                ReferenceChange::Delete(one.clone(), flag),
                TreeChange::Delete {
                    path: path(&one),
                    is_recursive: flag,
                    precondition: EntryPrecondition::Any,
                },
            ),
            11..13 => (
                ReferenceChange::Rename(one.clone(), other.clone(), flag),
                TreeChange::Rename {
                    from: path(&one),
                    to: path(&other),
                    may_replace: flag,
                    precondition: EntryPrecondition::Any,
                },
            ),
            13..15 => self.any_copy(branch, &one, &other, flag),
            _ => {
                let seq = self.any_version(branch);
                let then = self.reference.tree_at(branch, seq);
                let change = TreeChange::Restore {
                    path: path(&one),
                    seq,
                };
                (ReferenceChange::Restore(then, one), change)
            }
        }
    }

    /// A copy from the branch itself, or from a version of another one.
    fn any_copy(
        &mut self,
        branch: BranchId,
        from: &str,
        to: &str,
        may_replace: bool,
    ) -> (ReferenceChange, TreeChange) {
        let source = self.any_branch();
        let seq = self.any_version(source);
        let other = (source != branch).then_some((source, seq));
        let tree = other.map(|(id, seq)| self.reference.tree_at(id, seq));
        let view = other.map(|(id, seq)| {
            let view = self.store.read(move |tx| tx.view(id, Some(seq)));
            view.expect("there")
        });
        let model = ReferenceChange::Copy(tree, from.to_owned(), to.to_owned(), may_replace);
        let change = TreeChange::Copy {
            view,
            from: path(from),
            to: path(to),
            is_recursive: true,
            may_replace,
        };
        (model, change)
    }

    fn create_branch(&mut self) -> &'static str {
        let live = self.reference.live();
        if live.len() >= self.branches_max {
            return self.delete_branch();
        }
        // Often from the newest one, for long chains.
        let parent = if self.random.is_one_in(3) {
            self.any_branch()
        } else {
            *live.last().expect("main")
        };
        let seq = if self.random.is_one_in(3) {
            Some(self.any_version(parent))
        } else {
            None
        };
        let text = self.fresh_name("branch");
        let new = NewBranch {
            seq,
            ..NewBranch::new(name(&text), parent, "alice")
        };
        let created = self.store.write(move |tx| tx.create_branch(&new));
        let created = created.expect("a branch");
        self.reference.add_branch(created.id, text, parent, seq);
        let begin = self.reference.branches[&created.id].begin;
        assert_eq!(created.head_seq, begin);
        "branch"
    }

    fn delete_branch(&mut self) -> &'static str {
        let id = self.any_branch();
        let is_forced = self.random.is_one_in(2);
        let deleted = self
            .store
            .write(move |tx| tx.delete_branch(id, is_forced, "alice"));
        let has_snapshots = self.snapshots.iter().any(|(_, branch, _)| *branch == id);
        match deleted {
            Ok(()) => {
                assert!(is_forced || !has_snapshots);
                self.reference.delete(id);
                self.snapshots.retain(|(_, branch, _)| *branch != id);
                "deleted branch"
            }
            Err(error) if id == self.store.main => {
                assert_eq!(error.code(), StoreErrorCode::Denied);
                "refused deletion"
            }
            Err(error) => {
                assert!(!is_forced, "{error}");
                assert_eq!(error.code(), StoreErrorCode::NotEmpty);
                "refused deletion"
            }
        }
    }

    fn merge(&mut self) -> &'static str {
        let (source, target) = (self.any_branch(), self.any_branch());
        let strategies = [
            "fail",
            "fail",
            "fail",
            "ours",
            "theirs",
            "latest",
            "keep-both",
        ];
        let strategy = self.random.pick(&strategies);
        if source == target {
            return "nothing";
        }
        let strategy = MergeStrategy::from_name(strategy).expect("a strategy");
        let merged = self.store.merge(source, target, strategy);
        self.check_merge(source, target, strategy, merged)
    }

    fn rebase(&mut self) -> &'static str {
        let branch = self.any_branch();
        let Some(parent) = self.reference.branches[&branch].parent else {
            return "nothing";
        };
        let rebased = self.store.write(move |tx| tx.rebase(branch, "alice"));
        self.check_merge(parent, branch, MergeStrategy::Fail, rebased)
    }

    fn check_merge(
        &mut self,
        source: BranchId,
        target: BranchId,
        strategy: MergeStrategy,
        merged: Result<MergeOutcome, StoreError>,
    ) -> &'static str {
        let tree = self.store.tree(target);
        let merge = ReferenceMerge {
            source,
            target,
            strategy,
        };
        self.reference.check_merged(merge, merged, tree)
    }

    fn create_snapshot(&mut self) -> &'static str {
        let branch = self.any_branch();
        let seq = self.own_version(branch);
        let text = self.fresh_name("snapshot");
        let new = name(&text);
        let created = self
            .store
            .write(move |tx| tx.create_snapshot(&new, branch, Some(seq), "alice"));
        assert_eq!(created.expect("free").seq, seq);
        self.snapshots.push((text, branch, seq));
        "snapshot"
    }

    fn delete_snapshot(&mut self) -> &'static str {
        if self.snapshots.is_empty() {
            return "nothing";
        }
        let at = self.random.below(self.snapshots.len());
        let (text, ..) = self.snapshots.swap_remove(at);
        let bucket = self.store.bucket;
        let deleted = self
            .store
            .write(move |tx| tx.delete_snapshot(bucket, &name(&text)));
        deleted.expect("there");
        "deleted snapshot"
    }

    fn purge(&mut self) -> &'static str {
        let rows = 1 + self.random.below(20);
        let step = self.store.write(move |tx| tx.purge(rows)).expect("room");
        if step.is_done { "nothing" } else { "purge" }
    }

    fn collect(&mut self) -> &'static str {
        let mut collection = GarbageCollection::default();
        let phases = [CollectPhase::Purge, CollectPhase::Prune];
        while phases.contains(&collection.progress().phase) {
            collection.step_rows(self.store.db()).expect("room");
        }
        let has_rows = collection.progress().rows > 0;
        if has_rows { "collection" } else { "nothing" }
    }

    fn reopen(&mut self) -> &'static str {
        self.store.reopen();
        assert!(self.store.db().was_closed_in_order());
        "restart"
    }

    /// Compares everything with the model.
    fn check(&mut self) {
        self.store.check_usage();
        for id in self.reference.live() {
            let branch = &self.reference.branches[&id];
            assert_eq!(self.store.tree(id), *branch.tree(), "{}", branch.name);
        }
        let (one, other) = (self.any_branch(), self.any_branch());
        let (first, second) = (self.any_version(one), self.any_version(other));
        let first_tree = self.reference.tree_at(one, first);
        let second_tree = self.reference.tree_at(other, second);
        assert_eq!(self.store.tree_at(one, Some(first)), first_tree);
        let found = self.store.read(move |tx| {
            let first = tx.view(one, Some(first))?;
            tx.diff(&first, &tx.view(other, Some(second))?)
        });
        let paths = found
            .expect("readable")
            .into_iter()
            .flat_map(|it| match it {
                TreeDifference::Renamed { before, after } => vec![before.path, after.path],
                it => vec![it.path().clone()],
            });
        let paths: BTreeSet<String> = paths.map(|it| it.to_string()).collect();
        assert_eq!(paths, differing(&first_tree, &second_tree));
        for (text, branch, seq) in self.snapshots.clone() {
            let expected = self.reference.branches[&branch].tree_at(seq);
            let bucket = self.store.bucket;
            let snapshot = self.store.read(move |tx| tx.snapshot(bucket, &name(&text)));
            let snapshot = snapshot.expect("there");
            let tree = self.store.tree_at(snapshot.branch, Some(snapshot.seq));
            assert_eq!(tree, *expected);
        }
    }
}

/// Runs so many steps with each seed, and returns how often each kind did something. A campaign has fifty seeds.
fn run(
    seed: u64,
    steps: usize,
    branches_max: usize,
    collects: bool,
) -> BTreeMap<&'static str, usize> {
    let seeds = if is_campaign() { 50 } else { 1 };
    let mut all = BTreeMap::new();
    for seed in (seed..).step_by(2).take(seeds) {
        println!("seed {seed}");
        for (kind, count) in run_once(seed, steps, branches_max, collects) {
            *all.entry(kind).or_default() += count;
        }
    }
    all
}

fn run_once(
    seed: u64,
    steps: usize,
    branches_max: usize,
    collects: bool,
) -> BTreeMap<&'static str, usize> {
    let mut run = ModelRun::new(seed, branches_max, collects);
    for step in 0..steps {
        run.step();
        run.store.check_usage();
        if step % 10 == 0 {
            run.check();
        }
    }
    run.check();
    run.done
}

#[test]
fn a_store_with_few_branches_behaves_as_the_model() {
    let done = run(1, 1200, 5, false);
    for kind in [
        "change",
        "refused change",
        "branch",
        "deleted branch",
        "refused deletion",
        "merge",
        "decided merge",
        "refused merge",
        "nothing to merge",
        "snapshot",
        "deleted snapshot",
        "purge",
        "restart",
        "early version",
    ] {
        assert!(
            done.get(kind).is_some_and(|count| *count > 2),
            "{kind}: {done:?}"
        );
    }
}

#[test]
fn a_store_with_long_chains_behaves_as_the_model() {
    let done = run(2, 800, 26, false);
    assert!(done["branch"] > 20, "{done:?}");
}

/// What a head, a snapshot or a branch shows, and what a merge compares with, is there after each collection.
#[test]
fn a_store_whose_old_versions_are_collected_behaves_as_the_model() {
    let done = run(3, 1000, 6, true);
    for kind in [
        "collection",
        "gone version",
        "early version",
        "gone early version",
        "merge",
        "decided merge",
        "snapshot",
        "deleted branch",
    ] {
        assert!(
            done.get(kind).is_some_and(|count| *count > 2),
            "{kind}: {done:?}"
        );
    }
}
