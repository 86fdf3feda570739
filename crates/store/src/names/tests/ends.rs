//! Ends of branches: by right, by force, and by time.

use std::time::Duration;

use super::*;
use crate::address::BranchName;
use crate::limits::COLLECT_JUMP_MS_MAX;
use crate::testing::{START_MS, ScratchStore};

fn snapshot(store: &TestStore, text: &str, branch: BranchId) {
    let name = name(text);
    let made = store.write(move |tx| tx.create_snapshot(&name, branch, None, "alice"));
    made.expect("free");
}

fn set_branch(store: &TestStore, branch: BranchId, is_protected: bool) -> Result<(), StoreError> {
    store.write(move |tx| tx.set_branch(branch, None, is_protected).map(drop))
}

/// The attack: without the right to merge, a writer changes a protected branch by everything but a merge.
#[test]
fn a_protected_branch_changes_by_the_right_to_merge_only() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let release = store.branch("release", store.main);
    set_branch(&store, release, true).expect("there");
    store.put(store.main, "/b", 2);
    let before = store.tree(release);
    let rebased = store.write(move |tx| tx.rebase(release, "mallory"));
    assert_eq!(code(rebased), StoreErrorCode::Denied);
    let closed = store.write(move |tx| tx.close_branch(release, "mallory"));
    assert_eq!(code(closed), StoreErrorCode::Denied);
    let deleted = store.write(move |tx| tx.delete_branch(release, false, "mallory"));
    assert_eq!(code(deleted), StoreErrorCode::Denied);
    let closing = MergeRequest {
        closes_source: true,
        ..MergeRequest::new(release, store.main, "mallory")
    };
    let merged = store.write(move |tx| tx.merge(&closing));
    assert_eq!(code(merged), StoreErrorCode::Denied);
    assert_eq!(store.tree(release), before);
    let allowed = ProtectedBranches::Allowed;
    store
        .write(move |tx| tx.rebase_with(release, "carol", allowed))
        .expect("allowed");
    assert_eq!(store.tree(release), store.tree(store.main));
    store
        .write(move |tx| tx.close_branch_with(release, "carol", allowed))
        .expect("allowed");
    store
        .write(move |tx| tx.delete_branch_with(release, false, "carol", allowed))
        .expect("allowed");
    let forced = store.branch("forced", store.main);
    set_branch(&store, forced, true).expect("there");
    store
        .write(move |tx| tx.delete_branch(forced, true, "root"))
        .expect("an administrator");
}

#[test]
fn a_frozen_bucket_keeps_its_branches_and_snapshots() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let draft = store.branch("draft", store.main);
    snapshot(&store, "monday", store.main);
    let bucket = store.bucket;
    let freeze = BucketSettings {
        is_frozen: Some(true),
        ..BucketSettings::default()
    };
    store
        .write(move |tx| tx.set_bucket(bucket, &freeze, "root"))
        .expect("there");
    let before = store
        .read(move |tx| tx.branches(bucket, None, 10))
        .expect("readable");
    let closed = store.write(move |tx| tx.close_branch(draft, "alice"));
    assert_eq!(code(closed), StoreErrorCode::ReadOnly);
    let deleted = store.write(move |tx| tx.delete_branch(draft, true, "alice"));
    assert_eq!(code(deleted), StoreErrorCode::ReadOnly);
    assert_eq!(
        code(set_branch(&store, draft, true)),
        StoreErrorCode::ReadOnly
    );
    let deleted = store.write(move |tx| tx.delete_snapshot(bucket, &name("monday")));
    assert_eq!(code(deleted), StoreErrorCode::ReadOnly);
    let after = store
        .read(move |tx| tx.branches(bucket, None, 10))
        .expect("readable");
    assert_eq!(before, after);
}

/// A branch that began at a version before its parent began reads through levels that are gone once the parent has copies.
#[test]
fn a_branch_that_began_before_its_parent_outlives_a_forced_deletion() {
    let store = TestStore::new();
    let first = store.put(store.main, "/a", 1);
    store.put(store.main, "/b", 2);
    let parent = store.branch("parent", store.main);
    store.put(parent, "/c", 3);
    let child = store.branch("child", parent);
    store.put(child, "/d", 4);
    let early = NewBranch {
        seq: Some(first),
        ..NewBranch::new(name("early"), child, "alice")
    };
    let early = store.write(move |tx| tx.create_branch(&early));
    let early = early.expect("free").id;
    store.put(early, "/e", 5);
    let before = [store.tree(child), store.tree(early)];
    store
        .write(move |tx| tx.delete_branch(parent, true, "alice"))
        .expect("forced");
    while !store.write(|tx| tx.purge(10)).expect("room").is_done {}
    assert_eq!([store.tree(child), store.tree(early)], before);
    store
        .write(move |tx| tx.delete_branch(child, true, "alice"))
        .expect("forced");
    while !store.write(|tx| tx.purge(10)).expect("room").is_done {}
    assert_eq!(store.tree(early), before[1]);
    store.check_usage();
    // It has no more of the main branch in common than up to where it began.
    let adopted = store.read(move |tx| tx.branch(early)).expect("there");
    assert_eq!(
        (adopted.parent, adopted.base_seq),
        (Some(store.main), Some(first))
    );
    store
        .merge(store.main, early, MergeStrategy::Fail)
        .expect("no conflict");
    let merged = tree_of([("/a", "file 1"), ("/b", "file 2"), ("/e", "file 5")]);
    assert_eq!(store.tree(early), merged);
}

/// A store whose clock a test moves, with branches that end a day after its start.
struct ExpiringStore {
    store: ScratchStore,
    bucket: BucketId,
    main: BranchId,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl ExpiringStore {
    fn new() -> Self {
        let store = ScratchStore::new();
        let new = NewBucket::new("docs".parse().expect("a name"), "alice");
        let (bucket, main) = store.write(move |tx| tx.create_bucket(&new)).expect("room");
        let (bucket, main) = (bucket.id, main.id);
        Self {
            store,
            bucket,
            main,
        }
    }

    fn branch(&self, text: &str, parent: BranchId, is_protected: bool) -> BranchId {
        let new = NewBranch {
            expires_ms: Some(START_MS + 24 * 60 * 60 * 1000),
            is_protected,
            ..NewBranch::new(name(text), parent, "alice")
        };
        let made = self.store.write(move |tx| tx.create_branch(&new));
        made.expect("free").id
    }

    /// Names and states of all branches.
    fn states(&self) -> Vec<(BranchName, BranchState)> {
        let bucket = self.bucket;
        let found = self.store.read(move |tx| tx.branches(bucket, None, 100));
        let found = found.expect("readable").into_iter();
        found.map(|it| (it.name, it.state)).collect()
    }

    fn expire(&self, branches_max: usize) -> usize {
        let (mut after, mut ended) = (None, 0);
        loop {
            let step = self
                .store
                .write(move |tx| tx.expire_branches(after, branches_max));
            let step = step.expect("possible");
            ended += step.ended;
            after = step.next;
            if after.is_none() {
                return ended;
            }
        }
    }
}

#[test]
fn branches_end_when_their_time_is_over() {
    let store = ExpiringStore::new();
    store.branch("alone", store.main, false);
    let parent = store.branch("parent", store.main, false);
    store.branch("protected", parent, true);
    let later = NewBranch::new(name("for-ever"), store.main, "alice");
    store
        .store
        .write(move |tx| tx.create_branch(&later))
        .expect("free");
    store.store.time.advance(DAY - Duration::from_millis(1));
    assert_eq!(store.expire(2), 0);
    store.store.time.advance(Duration::from_millis(1));
    assert_eq!(store.expire(1), 2);
    let state = |text: &str, state| (name(text), state);
    let expected = [
        state("for-ever", BranchState::Open),
        state("main", BranchState::Open),
        // Its child reads through it.
        state("parent", BranchState::Closed),
        state("protected", BranchState::Open),
    ];
    assert_eq!(store.states(), expected);
    assert_eq!(store.expire(1), 0, "nothing is left to end");
}

/// A clock in the next century ends no branch, and neither does a frozen bucket.
#[test]
fn a_wrong_clock_ends_no_branch() {
    let store = ExpiringStore::new();
    store.branch("draft", store.main, false);
    let far = NewBranch {
        expires_ms: Some(START_MS + COLLECT_JUMP_MS_MAX + 1),
        ..NewBranch::new(name("far"), store.main, "alice")
    };
    let far = store.store.write(move |tx| tx.create_branch(&far));
    far.expect("free");
    store.store.time.advance(100 * 365 * DAY);
    let bucket = store.bucket;
    let freeze = |is_frozen| {
        let settings = BucketSettings {
            is_frozen: Some(is_frozen),
            ..BucketSettings::default()
        };
        let set = store
            .store
            .write(move |tx| tx.set_bucket(bucket, &settings, "root"));
        set.expect("there");
    };
    freeze(true);
    assert_eq!(store.expire(10), 0);
    freeze(false);
    assert_eq!(store.expire(10), 1);
    let left: Vec<_> = store.states().into_iter().map(|(name, _)| name).collect();
    assert_eq!(left, [name("far"), name("main")]);
}
