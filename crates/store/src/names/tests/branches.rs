//! Branches, snapshots and differences.

use super::*;
use crate::limits::CHAIN_LEVELS_MAX;

fn levels(store: &TestStore, branch: BranchId) -> usize {
    let view = store.read(move |tx| tx.view(branch, None));
    view.expect("there").levels.len()
}

fn snapshot(
    store: &TestStore,
    text: &str,
    branch: BranchId,
    seq: Option<u64>,
) -> Result<Snapshot, StoreError> {
    let name = name(text);
    store.write(move |tx| tx.create_snapshot(&name, branch, seq, "alice"))
}

fn delete(store: &TestStore, branch: BranchId, is_forced: bool) -> Result<(), StoreError> {
    store.write(move |tx| tx.delete_branch(branch, is_forced, "alice"))
}

fn diff(
    store: &TestStore,
    first: (BranchId, Option<u64>),
    second: (BranchId, Option<u64>),
) -> Vec<String> {
    let found = store.read(move |tx| {
        let first = tx.view(first.0, first.1)?;
        tx.diff(&first, &tx.view(second.0, second.1)?)
    });
    let found = found.expect("readable").into_iter().map(|it| match it {
        TreeDifference::Added(entry) => format!("+{}", entry.path),
        TreeDifference::Removed(entry) => format!("-{}", entry.path),
        TreeDifference::Changed { after, .. } => format!("*{}", after.path),
        TreeDifference::Renamed { before, after } => format!("{}>{}", before.path, after.path),
    });
    found.collect()
}

#[test]
fn a_branch_shows_the_commit_that_it_began_at() {
    let store = TestStore::new();
    let first = store.put(store.main, "/a", 1);
    store.put(store.main, "/b", 2);
    let now = store.branch("now", store.main);
    let new = NewBranch {
        seq: Some(first),
        ..NewBranch::new(name("then"), store.main, "alice")
    };
    let then = store.write(move |tx| tx.create_branch(&new)).expect("free");
    assert_eq!((then.base_seq, then.head_seq), (Some(first), first));
    store.put(store.main, "/a", 3);
    store.delete(store.main, "/b");
    assert_eq!(
        store.tree(now),
        tree_of([("/a", "file 1"), ("/b", "file 2")])
    );
    assert_eq!(store.tree(then.id), tree_of([("/a", "file 1")]));
    store.delete(now, "/a");
    assert_eq!(store.tree(now), tree_of([("/b", "file 2")]));
    assert_eq!(store.tree(store.main), tree_of([("/a", "file 3")]));
    store.check_usage();
}

#[test]
fn branches_have_names_of_their_own_in_their_bucket() {
    let store = TestStore::new();
    store.branch("x", store.main);
    let new = NewBranch::new(name("x"), store.main, "alice");
    let refused = store.write(move |tx| tx.create_branch(&new));
    assert_eq!(code(refused), StoreErrorCode::Exists);
    let bucket = store.bucket;
    let found = store
        .read(move |tx| tx.branches(bucket, None, 10))
        .expect("readable");
    let names: Vec<_> = found.iter().map(|it| it.name.to_string()).collect();
    assert_eq!(names, ["main", "x"]);
}

#[test]
fn a_closed_branch_and_a_protected_one_take_no_changes() {
    let store = TestStore::new();
    let draft = store.branch("draft", store.main);
    store.put(draft, "/a", 1);
    let close = |branch| store.write(move |tx| tx.close_branch(branch, "alice"));
    close(draft).expect("open");
    let put = |branch| store.apply(branch, TreeChange::put(path("/b"), content(2)));
    assert_eq!(code(put(draft)), StoreErrorCode::ReadOnly);
    assert_eq!(code(close(draft)), StoreErrorCode::ReadOnly);
    assert_eq!(code(close(store.main)), StoreErrorCode::Denied);
    let main = store.main;
    store
        .write(move |tx| tx.set_branch(main, None, true))
        .expect("there");
    assert_eq!(code(put(store.main)), StoreErrorCode::Denied);
    store
        .merge(draft, store.main, MergeStrategy::Fail)
        .expect("a merge");
    assert_eq!(store.tree(store.main), tree_of([("/a", "file 1")]));
}

#[test]
fn the_seventeenth_level_gets_copies() {
    let store = TestStore::new();
    store.put(store.main, "/d/main", 1);
    let mut branch = store.main;
    for level in 1..CHAIN_LEVELS_MAX {
        branch = store.branch(&format!("level-{level}"), branch);
        store.put(branch, &format!("/d/{level:02}"), 2);
        assert_eq!(levels(&store, branch), level + 1);
    }
    store.delete(branch, "/d/01");
    let deepest = store.tree(branch);
    let flat = store.branch("flat", branch);
    assert_eq!(levels(&store, flat), 1);
    assert_eq!(store.tree(flat), deepest);
    store.check_usage();
    // It has its ancestor's versions only from where it began, and merges as other branches do.
    let early = store.read(move |tx| tx.view(flat, Some(1)));
    assert_eq!(code(early), StoreErrorCode::NotFound);
    store.put(flat, "/d/new", 3);
    store.put(branch, "/d/other", 4);
    store
        .merge(flat, branch, MergeStrategy::Fail)
        .expect("no conflict");
    assert!(store.tree(branch).contains_key("/d/new"));
    assert_eq!(levels(&store, store.branch("below", flat)), 2);
    store.check_usage();
}

#[test]
fn a_branch_with_children_or_snapshots_is_deleted_by_force() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let parent = store.branch("parent", store.main);
    store.put(parent, "/b", 2);
    let child = store.branch("child", parent);
    let grandchild = store.branch("grandchild", child);
    let second = store.put(child, "/b", 3);
    store.put(child, "/c", 4);
    store.put(grandchild, "/d", 5);
    store.put(parent, "/late", 6);
    snapshot(&store, "of-parent", parent, None).expect("free");
    snapshot(&store, "of-child", child, Some(second)).expect("free");
    let expected = StoreError::BranchInUse {
        children: 2,
        snapshots: 1,
    };
    assert_eq!(delete(&store, parent, false), Err(expected));
    assert_eq!(
        code(delete(&store, store.main, true)),
        StoreErrorCode::Denied
    );
    let before = [
        store.tree(child),
        store.tree_at(child, Some(second)),
        store.tree(grandchild),
    ];
    delete(&store, parent, true).expect("forced");
    let after = [
        store.tree(child),
        store.tree_at(child, Some(second)),
        store.tree(grandchild),
    ];
    assert_eq!(before, after);
    assert_eq!((levels(&store, child), levels(&store, grandchild)), (1, 1));
    store.check_usage();
    while !store.write(|tx| tx.purge(2)).expect("room").is_done {}
    assert_eq!(store.tree(child), after[0]);
    store.check_usage();
    let bucket = store.bucket;
    let left = store
        .read(move |tx| tx.snapshots(bucket, None, 10))
        .expect("readable");
    let names: Vec<_> = left.iter().map(|it| it.name.to_string()).collect();
    assert_eq!(names, ["of-child"]);
    let adopted = store.read(move |tx| tx.branch(child)).expect("there");
    assert_eq!(adopted.parent, Some(store.main));
    store
        .merge(child, store.main, MergeStrategy::Fail)
        .expect("no conflict");
    assert_eq!(store.tree(store.main), store.tree(child));
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let first = snapshot(&store, "monday", store.main, None).expect("free");
    assert_eq!(
        code(snapshot(&store, "monday", store.main, None)),
        StoreErrorCode::Exists
    );
    store.put(store.main, "/a", 2);
    store.put(store.main, "/b", 3);
    assert_eq!(
        store.tree_at(store.main, Some(first.seq)),
        tree_of([("/a", "file 1")])
    );
    // A version that does not exist yet is the last one, and stays that.
    let ahead = snapshot(&store, "ahead", store.main, Some(u64::MAX)).expect("free");
    store.put(store.main, "/b", 4);
    assert_eq!(store.tree_at(store.main, Some(ahead.seq))["/b"], "file 3");
    let draft = store.branch("draft", store.main);
    let early = snapshot(&store, "early", draft, Some(first.seq));
    assert_eq!(
        code(early),
        StoreErrorCode::NotFound,
        "a version of its parent"
    );
    let bucket = store.bucket;
    let remove = move |text: &str| {
        let name = name(text);
        store.write(move |tx| tx.delete_snapshot(bucket, &name))
    };
    assert_eq!(remove("monday"), Ok(()));
    assert_eq!(code(remove("monday")), StoreErrorCode::NotFound);
}

#[test]
fn differences_are_those_of_the_trees() {
    let store = TestStore::new();
    for (at, number) in [
        ("/same", 1),
        ("/changed", 2),
        ("/removed", 3),
        ("/old/moved", 4),
    ] {
        store.put(store.main, at, number);
    }
    let draft = store.branch("draft", store.main);
    let (main, begin) = (store.main, None);
    store.put(draft, "/changed", 5);
    store.delete(draft, "/removed");
    store.put(draft, "/added", 6);
    let moved = TreeChange::rename(path("/old/moved"), path("/new/moved"));
    store.apply(draft, moved).expect("free");
    let expected = [
        "+/added",
        "*/changed",
        "+/new",
        "/old/moved>/new/moved",
        "-/removed",
    ];
    assert_eq!(diff(&store, (main, begin), (draft, None)), expected);
    let back = [
        "-/added",
        "*/changed",
        "-/new",
        "/new/moved>/old/moved",
        "+/removed",
    ];
    assert_eq!(diff(&store, (draft, None), (main, None)), back);
    // A change of the parent is a difference too, until the parent takes it back.
    store.put(main, "/later", 7);
    assert!(diff(&store, (draft, None), (main, None)).contains(&"+/later".to_owned()));
    store.delete(main, "/later");
    assert_eq!(diff(&store, (draft, None), (main, None)), back);
    assert_eq!(diff(&store, (draft, None), (draft, None)), [""; 0]);
    assert_eq!(
        diff(&store, (main, Some(0)), (main, Some(2))),
        ["+/changed", "+/same"]
    );
}

#[test]
fn a_difference_of_many_paths_is_refused_and_a_listing_goes_on() {
    let store = TestStore::new();
    let (main, bucket) = (store.main, store.bucket);
    // Rows of a commit that no change wrote, because changes would take a minute.
    let filled = store.write(move |tx| {
        let branch = tx.branch(main)?;
        tx.execute(
            "INSERT INTO commit_(seq, bucket_id, branch_id, ts_ms, hlc, actor, op) VALUES (1, ?1, ?2, 0, zeroblob(16), '', '')",
            rusqlite::params![bucket, branch.id],
        )?;
        tx.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i <= ?2) \
             INSERT INTO entry(branch_id, parent, name, seq, kind, mtime_ns) SELECT ?1, '/', i, 1, 2, 0 FROM n",
            rusqlite::params![main, crate::limits::SUBTREE_ENTRIES_MAX as i64],
        )
    });
    filled.expect("room");
    let differ = store.read(move |tx| {
        let empty = tx.view(main, Some(0))?;
        tx.diff(&empty, &tx.view(main, None)?)
    });
    assert_eq!(code(differ), StoreErrorCode::TooLarge);
    let page = store.read(move |tx| {
        let view = tx.view(main, None)?;
        tx.list(&view, &ListRequest::new(EntryPath::root()))
    });
    assert_eq!(page.expect("readable").entries.len(), PAGE_ENTRIES_MAX);
    let whole = store.read(move |tx| {
        let root = Entry::root(main);
        tx.count_subtree(&tx.view(main, None)?, &root, |_| Ok(()))
    });
    assert_eq!(code(whole), StoreErrorCode::TooLarge);
}
