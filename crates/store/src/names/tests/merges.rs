//! Merges: every kind of conflict under every strategy, and what the base of a merge is.

use super::*;
use crate::limits::CONFLICT_NAMES_MAX;

const OTHERS: [MergeStrategy; 4] = [
    MergeStrategy::Ours,
    MergeStrategy::Theirs,
    MergeStrategy::Latest,
    MergeStrategy::KeepBoth,
];

/// A change by which a test prepares a branch.
#[derive(Clone, Copy)]
enum Step {
    Put(&'static str, u8),
    Mkdir(&'static str),
    Delete(&'static str),
}

fn run(store: &TestStore, branch: BranchId, steps: &[Step]) {
    for step in steps {
        match *step {
            Step::Put(at, number) => {
                store.put(branch, at, number);
            }
            Step::Mkdir(at) => store.mkdir(branch, at),
            Step::Delete(at) => store.delete(branch, at),
        }
    }
}

/// A store with a branch, after these changes before the branch, on `main`, and on the branch.
fn prepare(before: &[Step], ours: &[Step], theirs: &[Step]) -> (TestStore, BranchId) {
    let store = TestStore::new();
    run(&store, store.main, before);
    let draft = store.branch("draft", store.main);
    run(&store, store.main, ours);
    run(&store, draft, theirs);
    (store, draft)
}

/// A case: the conflicts that a refused merge lists, and the tree that each strategy makes.
struct Case {
    before: &'static [Step],
    ours: &'static [Step],
    theirs: &'static [Step],
    conflicts: &'static [(&'static str, ConflictKind)],
    results: [&'static [(&'static str, &'static str)]; 4],
}

fn check(case: &Case) {
    let (store, draft) = prepare(case.before, case.ours, case.theirs);
    let before = store.tree(store.main);
    let (main, events) = (store.main, store.events());
    let conflicts = match store.merge(draft, main, MergeStrategy::Fail) {
        Err(StoreError::MergeConflicts { total, conflicts }) => {
            assert_eq!(total, conflicts.len());
            conflicts
        }
        other => panic!("{other:?}"),
    };
    let found: Vec<_> = conflicts
        .iter()
        .map(|it| (it.path.as_str(), it.kind))
        .collect();
    assert_eq!(found, case.conflicts);
    assert_eq!(store.tree(main), before, "nothing was written");
    assert_eq!(store.events(), events);
    let preview = store.read(move |tx| tx.preview_merge(draft, main));
    assert_eq!(preview, Ok(conflicts.clone()));
    for (strategy, expected) in OTHERS.into_iter().zip(case.results) {
        let (store, draft) = prepare(case.before, case.ours, case.theirs);
        let outcome = store.merge(draft, store.main, strategy);
        let outcome = outcome.expect("a strategy that decides");
        assert_eq!(outcome.conflicts, conflicts, "{}", strategy.name());
        let expected: Tree = expected
            .iter()
            .map(|(path, what)| ((*path).to_owned(), (*what).to_owned()))
            .collect();
        assert_eq!(store.tree(store.main), expected, "{}", strategy.name());
        store.check_usage();
    }
}

#[test]
fn both_sides_change_a_file() {
    check(&Case {
        before: &[Step::Put("/a", 1)],
        ours: &[Step::Put("/a", 2)],
        theirs: &[Step::Put("/a", 3)],
        conflicts: &[("/a", ConflictKind::BothChanged)],
        results: [
            &[("/a", "file 2")],
            &[("/a", "file 3")],
            &[("/a", "file 3")],
            &[("/a", "file 2"), ("/a.conflict-alice-00000003", "file 3")],
        ],
    });
}

#[test]
fn both_sides_make_a_file() {
    check(&Case {
        before: &[],
        ours: &[Step::Put("/d/a", 2)],
        theirs: &[Step::Put("/d/a", 3)],
        conflicts: &[("/d/a", ConflictKind::BothChanged)],
        results: [
            &[("/d", "directory"), ("/d/a", "file 2")],
            &[("/d", "directory"), ("/d/a", "file 3")],
            &[("/d", "directory"), ("/d/a", "file 3")],
            &[
                ("/d", "directory"),
                ("/d/a", "file 2"),
                ("/d/a.conflict-alice-00000002", "file 3"),
            ],
        ],
    });
}

#[test]
fn the_target_deletes_what_the_source_changes() {
    check(&Case {
        before: &[Step::Put("/a", 1)],
        ours: &[Step::Delete("/a")],
        theirs: &[Step::Put("/a", 3)],
        conflicts: &[("/a", ConflictKind::DeletedInTarget)],
        results: [
            &[],
            &[("/a", "file 3")],
            &[("/a", "file 3")],
            &[("/a", "file 3")],
        ],
    });
}

#[test]
fn the_source_deletes_what_the_target_changes() {
    check(&Case {
        before: &[Step::Put("/a", 1)],
        ours: &[Step::Put("/a", 2)],
        theirs: &[Step::Delete("/a")],
        conflicts: &[("/a", ConflictKind::DeletedInSource)],
        results: [&[("/a", "file 2")], &[], &[], &[("/a", "file 2")]],
    });
}

#[test]
fn one_side_makes_a_file_and_the_other_a_directory() {
    check(&Case {
        before: &[],
        ours: &[Step::Put("/a", 2)],
        theirs: &[Step::Put("/a/x", 3)],
        conflicts: &[("/a", ConflictKind::DirectoryAndOther)],
        results: [
            &[("/a", "file 2")],
            &[("/a", "directory"), ("/a/x", "file 3")],
            &[("/a", "directory"), ("/a/x", "file 3")],
            &[
                ("/a", "directory"),
                ("/a.conflict-alice-00000001", "file 2"),
                ("/a/x", "file 3"),
            ],
        ],
    });
    check(&Case {
        before: &[],
        ours: &[Step::Put("/a/x", 2)],
        theirs: &[Step::Put("/a", 3)],
        conflicts: &[("/a", ConflictKind::DirectoryAndOther)],
        results: [
            &[("/a", "directory"), ("/a/x", "file 2")],
            &[("/a", "file 3")],
            &[("/a", "file 3")],
            &[
                ("/a", "directory"),
                ("/a.conflict-alice-00000002", "file 3"),
                ("/a/x", "file 2"),
            ],
        ],
    });
}

#[test]
fn one_side_replaces_a_directory_in_which_the_other_makes_a_file() {
    check(&Case {
        before: &[Step::Put("/a/x", 1)],
        ours: &[Step::Put("/a/new/deep", 2)],
        theirs: &[Step::Delete("/a"), Step::Put("/a", 3)],
        conflicts: &[("/a", ConflictKind::DirectoryAndOther)],
        results: [
            &[
                ("/a", "directory"),
                ("/a/new", "directory"),
                ("/a/new/deep", "file 2"),
            ],
            &[("/a", "file 3")],
            &[("/a", "file 3")],
            &[
                ("/a", "directory"),
                ("/a.conflict-alice-00000004", "file 3"),
                ("/a/new", "directory"),
                ("/a/new/deep", "file 2"),
            ],
        ],
    });
    check(&Case {
        before: &[Step::Put("/a/x", 1)],
        ours: &[Step::Delete("/a"), Step::Put("/a", 2)],
        theirs: &[Step::Put("/a/new", 3)],
        conflicts: &[("/a", ConflictKind::DirectoryAndOther)],
        results: [
            &[("/a", "file 2")],
            &[("/a", "directory"), ("/a/new", "file 3")],
            &[("/a", "directory"), ("/a/new", "file 3")],
            &[
                ("/a", "directory"),
                ("/a.conflict-alice-00000003", "file 2"),
                ("/a/new", "file 3"),
            ],
        ],
    });
}

#[test]
fn one_side_deletes_a_directory_in_which_the_other_makes_a_file() {
    check(&Case {
        before: &[Step::Put("/a/b/x", 1), Step::Mkdir("/z")],
        ours: &[Step::Put("/a/b/new", 2)],
        theirs: &[Step::Delete("/a")],
        conflicts: &[("/a", ConflictKind::DeletedInSource)],
        results: [
            &[
                ("/a", "directory"),
                ("/a/b", "directory"),
                ("/a/b/new", "file 2"),
                ("/z", "directory"),
            ],
            &[("/z", "directory")],
            &[("/z", "directory")],
            &[
                ("/a", "directory"),
                ("/a/b", "directory"),
                ("/a/b/new", "file 2"),
                ("/z", "directory"),
            ],
        ],
    });
    check(&Case {
        before: &[Step::Put("/a/b/x", 1)],
        ours: &[Step::Delete("/a")],
        theirs: &[Step::Put("/a/b/new", 3)],
        conflicts: &[("/a", ConflictKind::DeletedInTarget)],
        results: [
            &[],
            &[
                ("/a", "directory"),
                ("/a/b", "directory"),
                ("/a/b/new", "file 3"),
            ],
            &[
                ("/a", "directory"),
                ("/a/b", "directory"),
                ("/a/b/new", "file 3"),
            ],
            &[
                ("/a", "directory"),
                ("/a/b", "directory"),
                ("/a/b/new", "file 3"),
            ],
        ],
    });
}

#[test]
fn the_source_deletes_a_directory_in_which_the_target_changes_a_file() {
    check(&Case {
        before: &[Step::Put("/a/x", 1), Step::Put("/a/y", 2)],
        ours: &[Step::Put("/a/x", 3)],
        theirs: &[Step::Delete("/a")],
        conflicts: &[("/a/x", ConflictKind::DeletedInSource)],
        results: [
            &[("/a", "directory"), ("/a/x", "file 3")],
            &[],
            &[],
            &[("/a", "directory"), ("/a/x", "file 3")],
        ],
    });
}

#[test]
fn the_later_version_counts_on_either_side() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let draft = store.branch("draft", store.main);
    store.put(draft, "/a", 2);
    store.put(store.main, "/a", 3);
    store
        .merge(draft, store.main, MergeStrategy::Latest)
        .expect("decided");
    assert_eq!(store.tree(store.main), tree_of([("/a", "file 3")]));
}

#[test]
fn what_only_one_side_changed_or_both_alike_is_no_conflict() {
    let before = [
        Step::Put("/theirs", 1),
        Step::Put("/ours", 1),
        Step::Put("/both", 1),
        Step::Put("/gone/x", 1),
        Step::Put("/deleted-by-both", 1),
    ];
    let ours = [
        Step::Put("/ours", 2),
        Step::Put("/both", 4),
        Step::Mkdir("/new"),
        Step::Delete("/deleted-by-both"),
    ];
    let theirs = [
        Step::Put("/theirs", 3),
        Step::Put("/both", 4),
        Step::Put("/new/file", 5),
        Step::Delete("/gone"),
        Step::Delete("/deleted-by-both"),
    ];
    let (store, draft) = prepare(&before, &ours, &theirs);
    let outcome = store.merge(draft, store.main, MergeStrategy::Fail);
    let outcome = outcome.expect("no conflict");
    assert_eq!((outcome.changed, outcome.conflicts), (4, Vec::new()));
    let expected = tree_of([
        ("/both", "file 4"),
        ("/new", "directory"),
        ("/new/file", "file 5"),
        ("/ours", "file 2"),
        ("/theirs", "file 3"),
    ]);
    assert_eq!(store.tree(store.main), expected);
    assert_eq!(
        store.events().last().map(String::as_str),
        Some("branch.merge")
    );
    store.check_usage();
}

#[test]
fn a_merge_of_nothing_new_writes_nothing() {
    let (store, draft) = prepare(&[Step::Put("/a", 1)], &[Step::Put("/b", 2)], &[]);
    let outcome = store.merge(draft, store.main, MergeStrategy::Fail);
    assert_eq!(outcome.expect("nothing").receipt, None);
    store.put(draft, "/c", 3);
    store
        .merge(draft, store.main, MergeStrategy::Fail)
        .expect("no conflict");
    let again = store.merge(draft, store.main, MergeStrategy::Fail);
    assert_eq!(again.expect("nothing").receipt, None);
}

#[test]
fn a_second_merge_compares_with_the_first_one() {
    let (store, draft) = prepare(&[Step::Put("/a", 1)], &[], &[Step::Put("/a", 2)]);
    store
        .merge(draft, store.main, MergeStrategy::Fail)
        .expect("no conflict");
    // The target takes the change back. Compared with where the branch began, only the source would have changed it.
    store.put(store.main, "/a", 1);
    store.put(draft, "/b", 3);
    store
        .merge(draft, store.main, MergeStrategy::Fail)
        .expect("no conflict");
    let expected = tree_of([("/a", "file 1"), ("/b", "file 3")]);
    assert_eq!(store.tree(store.main), expected);
    // And back the other way: the branch gets what the target did since.
    store
        .merge(store.main, draft, MergeStrategy::Fail)
        .expect("no conflict");
    assert_eq!(store.tree(draft), expected);
}

#[test]
fn a_merge_through_a_third_branch_is_known() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let one = store.branch("one", store.main);
    let other = store.branch("other", store.main);
    store.put(one, "/a", 2);
    store
        .merge(one, store.main, MergeStrategy::Fail)
        .expect("no conflict");
    store
        .merge(store.main, other, MergeStrategy::Fail)
        .expect("no conflict");
    store.put(other, "/a", 3);
    store.put(one, "/b", 4);
    // Both changed `/a` since they began, and the second branch has taken in the change of the first one.
    store
        .merge(one, other, MergeStrategy::Fail)
        .expect("no conflict");
    assert_eq!(
        store.tree(other),
        tree_of([("/a", "file 3"), ("/b", "file 4")])
    );
}

#[test]
fn a_rebase_takes_in_the_parent_and_keeps_former_versions() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let draft = store.branch("draft", store.main);
    let then = store.put(draft, "/b", 2);
    store.put(store.main, "/a", 3);
    let head = store.put(store.main, "/c", 4);
    let before = store.tree_at(draft, Some(then));
    let rebase = |branch| store.write(move |tx| tx.rebase(branch, "alice"));
    rebase(draft).expect("no conflict");
    let expected = tree_of([("/a", "file 3"), ("/b", "file 2"), ("/c", "file 4")]);
    assert_eq!(store.tree(draft), expected);
    assert_eq!(store.tree_at(draft, Some(then)), before);
    let branch = store.read(move |tx| tx.branch(draft)).expect("there");
    assert_eq!(branch.base_seq, Some(head));
    // What the branch took in is no change of its own.
    store.put(store.main, "/a", 5);
    store
        .merge(draft, store.main, MergeStrategy::Fail)
        .expect("no conflict");
    assert_eq!(store.tree(store.main)["/a"], "file 5");
    store.put(draft, "/a", 6);
    store.put(store.main, "/a", 7);
    let refused = rebase(draft);
    assert_eq!(code(refused), StoreErrorCode::Conflict);
    assert_eq!(code(rebase(store.main)), StoreErrorCode::Denied);
}

#[test]
fn a_merge_can_close_its_source() {
    let (store, draft) = prepare(&[], &[], &[Step::Put("/a", 1)]);
    let request = |source, target| MergeRequest {
        closes_source: true,
        ..MergeRequest::new(source, target, "bob")
    };
    let merge = |request: MergeRequest| store.write(move |tx| tx.merge(&request));
    let refused = merge(request(store.main, draft));
    assert_eq!(code(refused), StoreErrorCode::Denied);
    merge(request(draft, store.main)).expect("no conflict");
    let branch = store.read(move |tx| tx.branch(draft)).expect("there");
    assert_eq!(branch.state, BranchState::Merged);
    let put = TreeChange::put(path("/b"), content(2));
    assert_eq!(code(store.apply(draft, put)), StoreErrorCode::ReadOnly);
    let refused = merge(request(draft, draft));
    assert_eq!(code(refused), StoreErrorCode::Denied);
}

#[test]
fn branches_of_two_buckets_are_not_merged() {
    let store = TestStore::new();
    let new = NewBucket::new("other".parse().expect("a name"), "bob");
    let (_, other) = store.write(move |tx| tx.create_bucket(&new)).expect("free");
    let refused = store.merge(other.id, store.main, MergeStrategy::Theirs);
    assert_eq!(code(refused), StoreErrorCode::NotFound);
}

#[test]
fn the_second_version_finds_a_free_name() {
    let taken = "/a.conflict-alice-00000004";
    let before = [Step::Put("/a", 1), Step::Put(taken, 9)];
    let (store, draft) = prepare(&before, &[Step::Put("/a", 2)], &[Step::Put("/a", 3)]);
    store
        .merge(draft, store.main, MergeStrategy::KeepBoth)
        .expect("decided");
    let tree = store.tree(store.main);
    assert_eq!(tree[taken], "file 9");
    assert_eq!(tree[&format!("{taken}-2")], "file 3");
}

#[test]
fn strategies_have_names() {
    for strategy in OTHERS.into_iter().chain([MergeStrategy::Fail]) {
        assert_eq!(MergeStrategy::from_name(strategy.name()), Some(strategy));
    }
    assert_eq!(MergeStrategy::from_name("octopus"), None);
}

/// The attack: files under all names that a merge would try for the second version.
#[test]
fn a_merge_tries_a_bounded_number_of_names() {
    let store = TestStore::new();
    let main = store.main;
    store.put(main, "/a", 1);
    let draft = store.branch("draft", main);
    let seq = store.put(draft, "/a", 2);
    store.put(main, "/a", 3);
    let taken = (1..=CONFLICT_NAMES_MAX).map(|attempt| {
        let again = match attempt {
            1 => String::new(),
            attempt => format!("-{attempt}"),
        };
        let at = format!("/a.conflict-alice-{seq:08}{again}");
        TreeChange::put(path(&at), content(4))
    });
    let taken: Vec<_> = taken.collect();
    store.apply_all(main, taken).expect("free");
    let before = store.tree(main);
    let merged = store.merge(draft, main, MergeStrategy::KeepBoth);
    assert_eq!(code(merged), StoreErrorCode::TooLarge);
    assert_eq!(store.tree(main), before);
    store.delete(main, &format!("/a.conflict-alice-{seq:08}-7"));
    store
        .merge(draft, main, MergeStrategy::KeepBoth)
        .expect("a name is free");
}
