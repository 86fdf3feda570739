//! Each change, and each way in which it is refused.

use super::*;
use crate::limits::{ACTOR_BYTES_MAX, BATCH_CHANGES_MAX, FILE_BYTES_MAX, XATTR_BYTES_MAX};
use crate::path::PathRule;

fn rename(from: &str, to: &str, may_replace: bool) -> TreeChange {
    TreeChange::Rename {
        from: path(from),
        to: path(to),
        may_replace,
        precondition: EntryPrecondition::Any,
    }
}

fn copy(from: &str, to: &str, may_replace: bool) -> TreeChange {
    TreeChange::Copy {
        view: None,
        from: path(from),
        to: path(to),
        is_recursive: true,
        may_replace,
    }
}

fn put_if(at: &str, number: u8, precondition: EntryPrecondition) -> TreeChange {
    TreeChange::Put {
        path: path(at),
        content: content(number),
        attributes: EntryAttributes::default(),
        precondition,
    }
}

fn state(store: &TestStore, at: &str) -> EntryState {
    let (main, at) = (store.main, path(at));
    let entry = store.read(move |tx| tx.stat(&tx.view(main, None)?, &at));
    entry.expect("there").state
}

fn rule<T: fmt::Debug>(result: Result<T, StoreError>) -> PathRule {
    match result.expect_err("refused") {
        StoreError::InvalidPath(invalid) => invalid.rule,
        other => panic!("{other}"),
    }
}

#[test]
fn a_put_makes_the_directories_above_and_replaces_what_is_there() {
    let store = TestStore::new();
    store.put(store.main, "/a/b/c", 1);
    let made = tree_of([
        ("/a", "directory"),
        ("/a/b", "directory"),
        ("/a/b/c", "file 1"),
    ]);
    assert_eq!(store.tree(store.main), made);
    store.put(store.main, "/a/b/c", 2);
    assert_eq!(store.tree(store.main)["/a/b/c"], "file 2");
    let link = TreeChange::Symlink {
        path: path("/l"),
        target: "../x".to_owned(),
        may_replace: false,
    };
    store.apply(store.main, link.clone()).expect("free");
    assert_eq!(store.tree(store.main)["/l"], "link ../x");
    assert_eq!(code(store.apply(store.main, link)), StoreErrorCode::Exists);
    store.put(store.main, "/l", 3);
    assert_eq!(store.tree(store.main)["/l"], "file 3");
    let refused = [
        (
            put_if("/a", 1, EntryPrecondition::Any),
            StoreErrorCode::IsDir,
        ),
        (
            put_if("/l/x", 1, EntryPrecondition::Any),
            StoreErrorCode::NotDir,
        ),
        (
            put_if("/l/x/y", 1, EntryPrecondition::Any),
            StoreErrorCode::NotDir,
        ),
        (
            put_if("/", 1, EntryPrecondition::Any),
            StoreErrorCode::InvalidPath,
        ),
    ];
    for (change, expected) in refused {
        assert_eq!(code(store.apply(store.main, change)), expected);
    }
    store.check_usage();
}

#[test]
fn attributes_stay_unless_a_change_brings_others() {
    let store = TestStore::new();
    let put = |number, attributes| TreeChange::Put {
        path: path("/a"),
        content: content(number),
        attributes,
        precondition: EntryPrecondition::Any,
    };
    let all = EntryAttributes {
        mode: Some(0o100_600),
        mtime_ns: Some(-5),
        xattr: Some(b"x".to_vec()),
    };
    store.apply(store.main, put(1, all)).expect("free");
    let first = state(&store, "/a");
    assert_eq!((first.mode, first.mtime_ns), (0o600, -5));
    assert_eq!(first.xattr.as_deref(), Some(&b"x"[..]));
    store
        .apply(store.main, put(2, EntryAttributes::default()))
        .expect("there");
    let second = state(&store, "/a");
    assert_eq!((second.mode, second.xattr), (0o600, first.xattr));
    assert_ne!(
        second.mtime_ns, -5,
        "a new version has the time of its commit"
    );
    let set = |attributes| TreeChange::SetAttributes {
        path: path("/a"),
        attributes,
        precondition: EntryPrecondition::Content(content(2).hash),
    };
    let none = EntryAttributes {
        xattr: Some(Vec::new()),
        mtime_ns: Some(7),
        ..EntryAttributes::default()
    };
    store.apply(store.main, set(none)).expect("there");
    let third = state(&store, "/a");
    assert_eq!((third.mode, third.mtime_ns, third.xattr), (0o600, 7, None));
    assert_eq!(third.hash, Some(content(2).hash));
    let large = EntryAttributes {
        xattr: Some(vec![0; XATTR_BYTES_MAX + 1]),
        ..EntryAttributes::default()
    };
    let refused = store.apply(store.main, set(large));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    store.check_usage();
}

#[test]
fn preconditions_hold_or_name_the_present_content() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let hash = |number| content(number).hash;
    for (at, precondition, current) in [
        ("/a", EntryPrecondition::Absent, Some(hash(1))),
        ("/a", EntryPrecondition::Content(hash(2)), Some(hash(1))),
        ("/b", EntryPrecondition::Present, None),
        ("/b", EntryPrecondition::Content(hash(1)), None),
    ] {
        let refused = store.apply(store.main, put_if(at, 9, precondition));
        assert_eq!(refused, Err(StoreError::PreconditionFailed { current }));
    }
    for (at, precondition) in [
        ("/b", EntryPrecondition::Absent),
        ("/b", EntryPrecondition::Present),
        ("/a", EntryPrecondition::Content(hash(1))),
    ] {
        let done = store.apply(store.main, put_if(at, 9, precondition));
        done.expect("the condition holds");
    }
    let delete = |precondition| TreeChange::Delete {
        path: path("/a"),
        is_recursive: false,
        precondition,
    };
    let stale = delete(EntryPrecondition::Content(hash(1)));
    assert_eq!(
        code(store.apply(store.main, stale)),
        StoreErrorCode::Conflict
    );
    let fresh = delete(EntryPrecondition::Content(hash(9)));
    store.apply(store.main, fresh).expect("the condition holds");
}

#[test]
fn of_two_writers_with_one_precondition_one_wins() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let replies: Vec<_> = (2..20)
        .map(|number| {
            let change = put_if("/a", number, EntryPrecondition::Content(content(1).hash));
            let request = ChangeRequest::new(store.main, "alice", change);
            store.db().write(move |tx| tx.apply(&request))
        })
        .collect();
    let won = replies.into_iter().filter_map(|reply| reply.wait().ok());
    assert_eq!(won.count(), 1);
    store.check_usage();
}

#[test]
fn a_directory_is_made_once() {
    let store = TestStore::new();
    store.mkdir(store.main, "/a/b");
    store.put(store.main, "/f", 1);
    let mkdir = |at: &str, may_exist| TreeChange::Mkdir {
        path: path(at),
        attributes: EntryAttributes::default(),
        may_exist,
    };
    for (at, may_exist) in [("/a/b", false), ("/f", true), ("/", false)] {
        let refused = store.apply(store.main, mkdir(at, may_exist));
        assert_eq!(code(refused), StoreErrorCode::Exists, "{at}");
    }
    store.apply(store.main, mkdir("/a/b", true)).expect("there");
    store.apply(store.main, mkdir("/", true)).expect("there");
    let refused = store.apply(store.main, mkdir("/f/x", true));
    assert_eq!(code(refused), StoreErrorCode::NotDir);
}

#[test]
fn a_rename_moves_everything_below_and_leaves_nothing() {
    let store = TestStore::new();
    store.put(store.main, "/a/x", 1);
    store.put(store.main, "/a/d/y", 2);
    // Their names begin like the directory's.
    store.put(store.main, "/a-b", 3);
    store.put(store.main, "/ab/z", 4);
    store
        .apply(store.main, rename("/a", "/n/m", false))
        .expect("free");
    let expected = tree_of([
        ("/a-b", "file 3"),
        ("/ab", "directory"),
        ("/ab/z", "file 4"),
        ("/n", "directory"),
        ("/n/m", "directory"),
        ("/n/m/d", "directory"),
        ("/n/m/d/y", "file 2"),
        ("/n/m/x", "file 1"),
    ]);
    assert_eq!(store.tree(store.main), expected);
    store
        .apply(store.main, rename("/n/m", "/n/m", false))
        .expect("the same");
    assert_eq!(store.tree(store.main), expected);
    store.check_usage();
}

#[test]
fn a_rename_replaces_as_the_system_call_does() {
    let store = TestStore::new();
    store.put(store.main, "/file", 1);
    store.put(store.main, "/other", 2);
    store.put(store.main, "/full/x", 3);
    store.mkdir(store.main, "/empty");
    store.put(store.main, "/dir/y", 4);
    for (from, to, may_replace, expected) in [
        ("/none", "/x", false, StoreErrorCode::NotFound),
        ("/file", "/other", false, StoreErrorCode::Exists),
        ("/file", "/empty", true, StoreErrorCode::IsDir),
        ("/dir", "/file", true, StoreErrorCode::NotDir),
        ("/dir", "/full", true, StoreErrorCode::NotEmpty),
        ("/dir/y", "/dir", true, StoreErrorCode::IsDir),
        ("/file", "/other/x", false, StoreErrorCode::NotDir),
        ("/", "/x", false, StoreErrorCode::InvalidPath),
        ("/file", "/", true, StoreErrorCode::InvalidPath),
    ] {
        let before = store.tree(store.main);
        let refused = store.apply(store.main, rename(from, to, may_replace));
        assert_eq!(code(refused), expected, "{from} {to}");
        assert_eq!(store.tree(store.main), before, "{from} {to}");
    }
    let refused = store.apply(store.main, rename("/dir", "/dir/z/w", false));
    assert_eq!(rule(refused), PathRule::IntoItself);
    store
        .apply(store.main, rename("/file", "/other", true))
        .expect("a file");
    store
        .apply(store.main, rename("/dir", "/empty", true))
        .expect("empty");
    let expected = tree_of([
        ("/empty", "directory"),
        ("/empty/y", "file 4"),
        ("/full", "directory"),
        ("/full/x", "file 3"),
        ("/other", "file 1"),
    ]);
    assert_eq!(store.tree(store.main), expected);
    store.check_usage();
}

#[test]
fn a_move_to_a_path_that_is_too_deep_writes_nothing() {
    let store = TestStore::new();
    let deep = format!("/a{}", "/b".repeat(40));
    store.put(store.main, &deep, 1);
    let before = store.tree(store.main);
    let to = "/c".repeat(30);
    let refused = store.apply(store.main, rename("/a", &to, false));
    assert_eq!(rule(refused), PathRule::Depth);
    assert_eq!(store.tree(store.main), before);
}

#[test]
fn a_copy_shares_the_content() {
    let store = TestStore::new();
    store.put(store.main, "/a/x", 5);
    let bucket = store.bucket;
    let bytes = |store: &TestStore| store.read(move |tx| tx.usage(bucket)).expect("there").bytes;
    let before = bytes(&store);
    store
        .apply(store.main, copy("/a", "/b/c", false))
        .expect("free");
    assert_eq!(store.tree(store.main)["/b/c/x"], "file 5");
    assert_eq!(bytes(&store), before);
    let shallow = TreeChange::Copy {
        view: None,
        from: path("/a"),
        to: path("/s"),
        is_recursive: false,
        may_replace: false,
    };
    store.apply(store.main, shallow).expect("free");
    assert!(!store.tree(store.main).contains_key("/s/x"));
    let refused = store.apply(store.main, copy("/a", "/a/b", false));
    assert_eq!(rule(refused), PathRule::IntoItself);
    let refused = store.apply(store.main, copy("/a", "/b", true));
    assert_eq!(code(refused), StoreErrorCode::NotEmpty);
    store.check_usage();
}

/// The way by which a user takes a file or a directory back from a snapshot.
#[test]
fn a_copy_from_a_former_version_of_the_branch_takes_it_back() {
    let store = TestStore::new();
    store.put(store.main, "/a/x", 1);
    let before = store.put(store.main, "/a/y", 2);
    store.put(store.main, "/a/x", 3);
    store.delete(store.main, "/a/y");
    let main = store.main;
    let from_version = |seq: u64, from: &str, to: &str| {
        let view = store.read(move |tx| tx.view(main, Some(seq)));
        store.apply(
            main,
            TreeChange::Copy {
                view: Some(view.expect("kept")),
                from: path(from),
                to: path(to),
                is_recursive: true,
                may_replace: true,
            },
        )
    };
    from_version(before, "/a/x", "/a/x").expect("a former version");
    from_version(before, "/a/y", "/a/y").expect("a former version");
    from_version(before, "/a", "/a/old").expect("a former version");
    let expected = tree_of([
        ("/a", "directory"),
        ("/a/old", "directory"),
        ("/a/old/x", "file 1"),
        ("/a/old/y", "file 2"),
        ("/a/x", "file 1"),
        ("/a/y", "file 2"),
    ]);
    assert_eq!(store.tree(main), expected);
    // A number that is still to come names the head, which the copy would change while it reads.
    let refused = from_version(before + 1000, "/a", "/a/b");
    assert_eq!(rule(refused), PathRule::IntoItself);
    assert_eq!(store.tree(main), expected);
    store.check_usage();
}

#[test]
fn a_copy_from_another_bucket_counts_in_both() {
    let store = TestStore::new();
    store.put(store.main, "/a/x", 5);
    let new = NewBucket::new("other".parse().expect("a name"), "bob");
    let (other, branch) = store.write(move |tx| tx.create_bucket(&new)).expect("free");
    let main = store.main;
    let view = store.read(move |tx| tx.view(main, None)).expect("there");
    let copy = TreeChange::Copy {
        view: Some(view),
        from: path("/a"),
        to: path("/a"),
        is_recursive: true,
        may_replace: false,
    };
    store.apply(branch.id, copy).expect("free");
    let usage = store.read(move |tx| Ok((tx.usage(other.id)?, tx.recount(other.id)?)));
    let (usage, counted) = usage.expect("there");
    assert_eq!((usage.bytes, usage.entries), (500, 2));
    assert_eq!(usage, counted);
    assert_eq!(store.tree(branch.id), store.tree(store.main));
}

#[test]
fn a_deletion_of_a_full_directory_has_to_be_asked_for() {
    let store = TestStore::new();
    store.put(store.main, "/a/b/c", 1);
    store.put(store.main, "/a-b", 2);
    let delete = |at: &str, is_recursive| TreeChange::Delete {
        path: path(at),
        is_recursive,
        precondition: EntryPrecondition::Any,
    };
    let refused = store.apply(store.main, delete("/a", false));
    assert_eq!(code(refused), StoreErrorCode::NotEmpty);
    let refused = store.apply(store.main, delete("/none", true));
    assert_eq!(code(refused), StoreErrorCode::NotFound);
    let refused = store.apply(store.main, delete("/", true));
    assert_eq!(rule(refused), PathRule::Root);
    store.apply(store.main, delete("/a", true)).expect("there");
    assert_eq!(store.tree(store.main), tree_of([("/a-b", "file 2")]));
    store
        .apply(store.main, delete("/a-b", false))
        .expect("there");
    assert_eq!(store.tree(store.main), Tree::new());
    store.check_usage();
}

#[test]
fn a_batch_is_one_commit_or_none() {
    let store = TestStore::new();
    store.put(store.main, "/old", 1);
    let before = store.tree(store.main);
    let failing = vec![
        TreeChange::put(path("/new"), content(2)),
        TreeChange::delete(path("/old")),
        TreeChange::delete(path("/none")),
    ];
    let refused = store.apply_all(store.main, failing);
    assert_eq!(code(refused), StoreErrorCode::NotFound);
    assert_eq!(store.tree(store.main), before);
    let events = store.events();
    // Each change sees those before it, also at the same path.
    let changes = vec![
        TreeChange::put(path("/x"), content(3)),
        TreeChange::put(path("/x"), content(4)),
        TreeChange::rename(path("/x"), path("/y")),
        TreeChange::rename(path("/y"), path("/x")),
        TreeChange::delete(path("/old")),
        TreeChange::put(path("/old/z"), content(5)),
        TreeChange::delete(path("/old/z")),
    ];
    let seq = store.apply_all(store.main, changes).expect("possible");
    let expected = tree_of([("/old", "directory"), ("/x", "file 4")]);
    assert_eq!(store.tree(store.main), expected);
    assert_eq!(store.tree_at(store.main, Some(seq - 1)), before);
    let rows = store.read(move |tx| {
        let query = "SELECT count(*) FROM entry WHERE seq = ?1";
        tx.query_count(query, [i64::try_from(seq).expect("small")])
    });
    assert_eq!(rows, Ok(4), "one row for each path");
    assert_eq!(store.events().len(), events.len() + 8);
    let many = vec![TreeChange::delete(path("/x")); BATCH_CHANGES_MAX + 1];
    let refused = store.apply_all(store.main, many);
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    store.check_usage();
}

#[test]
fn each_change_has_its_event() {
    let store = TestStore::new();
    store.put(store.main, "/a/x", 1);
    store
        .apply(store.main, rename("/a", "/b", false))
        .expect("free");
    store
        .apply(store.main, copy("/b/x", "/c", false))
        .expect("free");
    store.mkdir(store.main, "/d");
    store.delete(store.main, "/b");
    assert_eq!(
        store.events(),
        [
            "bucket.create",
            "fs.mkdir /a",
            "fs.put /a/x",
            "fs.rename /a /b",
            "fs.put /c",
            "fs.mkdir /d",
            "fs.delete /b",
        ]
    );
}

#[test]
fn a_content_has_one_size_and_at_most_the_largest() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    let put = |content| TreeChange::put(path("/b"), content);
    let lying = FileContent::new(content(1).hash, 99);
    let refused = store.apply(store.main, put(lying));
    let (known, given) = (100, 99);
    assert_eq!(refused, Err(StoreError::SizeMismatch { known, given }));
    let huge = FileContent::new(content(7).hash, FILE_BYTES_MAX + 1);
    let refused = store.apply(store.main, put(huge));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    store.check_usage();
}

#[test]
fn a_content_that_was_wanted_becomes_complete() {
    let store = TestStore::new();
    let state = |store: &TestStore| {
        store.read(|tx| tx.query_row("SELECT state FROM blob", [], |row| row.get::<_, i64>(0)))
    };
    let wanted = FileContent {
        presence: ContentPresence::Wanted,
        ..content(1)
    };
    store
        .apply(store.main, TreeChange::put(path("/a"), wanted))
        .expect("free");
    assert_eq!(state(&store), Ok(Some(0)));
    store.put(store.main, "/b", 1);
    assert_eq!(state(&store), Ok(Some(2)));
    store
        .apply(store.main, TreeChange::put(path("/c"), wanted))
        .expect("free");
    assert_eq!(state(&store), Ok(Some(2)), "what is here stays here");
}

#[test]
fn names_of_actors_and_targets_of_links_are_bounded() {
    let store = TestStore::new();
    let change = TreeChange::put(path("/a"), content(1));
    let request = ChangeRequest::new(store.main, &"x".repeat(ACTOR_BYTES_MAX + 1), change);
    let refused = store.write(move |tx| tx.apply(&request));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    let link = |target: &str| TreeChange::Symlink {
        path: path("/l"),
        target: target.to_owned(),
        may_replace: false,
    };
    let refused = store.apply(store.main, link(&"x".repeat(4097)));
    assert_eq!(code(refused), StoreErrorCode::TooLarge);
    assert_eq!(rule(store.apply(store.main, link("a\0b"))), PathRule::Nul);
    assert_eq!(
        rule(store.apply(store.main, link(""))),
        PathRule::EmptyComponent
    );
}
