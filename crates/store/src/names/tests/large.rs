//! Changes of a size that would keep other writers waiting, or fill the memory or the disk.

use super::*;
use crate::error::QuotaResource;
use crate::limits::{PATH_BYTES_FREE, SUBTREE_ENTRIES_MAX, TRANSACTION_BYTES_MAX, XATTR_BYTES_MAX};
use crate::testing::ScratchStore;

/// Puts so many directories with attributes of this length into a directory, without the changes, which would take a
/// minute.
fn fill(store: &TestStore, branch: BranchId, at: &str, entries: usize, xattr: usize) {
    let bucket = store.bucket;
    store.mkdir(branch, at);
    let at = at.to_owned();
    let filled = store.write(move |tx| {
        let seq = tx.branch(branch)?.head_seq;
        let (entries, xattr) = (entries as i64, xattr as i64);
        tx.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?4) \
             INSERT INTO entry(branch_id, parent, name, seq, kind, mtime_ns, xattr) \
             SELECT ?1, ?2, 'entry-' || i, ?3, 2, 0, CASE WHEN ?5 > 0 THEN zeroblob(?5) END FROM n",
            rusqlite::params![branch, at, crate::db::to_sql(seq), entries, xattr],
        )?;
        let usage = UsageChange {
            entries,
            bytes: entries * xattr,
        };
        tx.add_usage(bucket, usage)
    });
    filled.expect("room");
}

fn copy(from: &str, to: &str) -> TreeChange {
    TreeChange::Copy {
        view: None,
        from: path(from),
        to: path(to),
        is_recursive: true,
        may_replace: false,
    }
}

fn count(store: &TestStore, query: &'static str) -> u64 {
    store
        .read(move |tx| tx.query_count(query, []))
        .expect("SQL")
}

fn set(store: &TestStore, settings: BucketSettings) {
    let bucket = store.bucket;
    let set = store.write(move |tx| tx.set_bucket(bucket, &settings, "root"));
    set.expect("there");
}

/// The attack: each change is within the limit, and the batch holds the only writer for half an hour.
#[test]
fn large_changes_of_one_batch_are_counted_together() {
    let store = TestStore::new();
    let main = store.main;
    fill(&store, main, "/d", SUBTREE_ENTRIES_MAX / 2 + 1, 0);
    let rows = count(&store, "SELECT count(*) FROM entry");
    let head = store.read(move |tx| tx.branch(main)).expect("there");
    let restore = TreeChange::Restore {
        path: path("/d"),
        seq: head.head_seq,
    };
    for batch in [
        vec![copy("/d", "/e"), TreeChange::rename(path("/d"), path("/f"))],
        vec![TreeChange::delete(path("/d")), restore],
    ] {
        let refused = store.apply_all(main, batch);
        assert_eq!(refused, Err(StoreError::too_many_entries()));
        assert_eq!(count(&store, "SELECT count(*) FROM entry"), rows);
    }
    store.check_usage();
    // One of them alone is allowed.
    let rename = TreeChange::rename(path("/d"), path("/f"));
    store.apply(main, rename).expect("within the limit");
    store.check_usage();
}

#[test]
fn a_quota_refuses_a_large_change_before_its_first_row() {
    let store = TestStore::new();
    let main = store.main;
    fill(&store, main, "/d", 500, 0);
    set(
        &store,
        BucketSettings {
            quota_entries: Some(Some(900)),
            ..BucketSettings::default()
        },
    );
    for change in [copy("/d", "/e"), TreeChange::rename(path("/d"), path("/e"))] {
        let request = ChangeRequest::new(main, "alice", change);
        // Within the job, whose rows are taken back at its end only.
        let seen = store.write(move |tx| {
            let rows = "SELECT count(*) FROM entry";
            let before = tx.query_count(rows, [])?;
            let refused = tx.apply(&request);
            Ok((refused, tx.query_count(rows, [])? - before))
        });
        let exceeded = StoreError::QuotaExceeded {
            resource: QuotaResource::Entries,
            limit: 900,
            used: 501,
        };
        assert_eq!(seen, Ok((Err(exceeded), 0)));
    }
}

/// The attack: a thousand entries with long attributes, copied often, and then any change loads gigabytes.
#[test]
fn long_attributes_are_bounded_in_one_change() {
    let store = TestStore::new();
    let main = store.main;
    let entries = usize::try_from(TRANSACTION_BYTES_MAX).expect("small") / XATTR_BYTES_MAX;
    let draft = store.branch("draft", main);
    fill(&store, draft, "/d", entries, XATTR_BYTES_MAX);
    for change in [copy("/d", "/e"), TreeChange::rename(path("/d"), path("/e"))] {
        let refused = store.apply(draft, change);
        assert_eq!(refused, Err(StoreError::too_many_bytes()));
    }
    let refused = store.merge(draft, main, MergeStrategy::Fail);
    assert_eq!(refused, Err(StoreError::too_many_bytes()));
    let refused = store.read(move |tx| {
        let main = tx.view(main, None)?;
        tx.diff(&main, &tx.view(draft, None)?)
    });
    assert_eq!(refused, Err(StoreError::too_many_bytes()));
    // A deletion writes no attributes.
    store.delete(draft, "/d");
    assert_eq!(store.tree(draft), Tree::new());
    store.check_usage();
}

#[test]
fn copies_keep_their_attributes_over_many_pieces() {
    let store = TestStore::new();
    let main = store.main;
    fill(&store, main, "/d", 700, 5);
    let then = store.apply(main, copy("/d", "/e")).expect("room");
    let rename = TreeChange::rename(path("/e"), path("/f/g"));
    store.apply(main, rename).expect("free");
    let attributes = "SELECT count(*) FROM entry WHERE parent = '/f/g' AND length(xattr) = 5";
    assert_eq!(count(&store, attributes), 700);
    store.delete(main, "/f");
    store.mkdir(main, "/e");
    let restore = TreeChange::Restore {
        path: path("/e"),
        seq: then,
    };
    store.apply(main, restore).expect("there then");
    assert_eq!(store.tree(main).len(), 1402);
    store.check_usage();
}

/// The attack: one forced deletion copies the tree into each of many children.
#[test]
fn the_copies_of_a_forced_deletion_are_counted_together() {
    let store = TestStore::new();
    let parent = store.branch("parent", store.main);
    fill(&store, parent, "/d", SUBTREE_ENTRIES_MAX / 2, 0);
    let children = [store.branch("one", parent), store.branch("two", parent)];
    let delete =
        |branch, is_forced| store.write(move |tx| tx.delete_branch(branch, is_forced, "alice"));
    assert_eq!(
        delete(parent, true),
        Err(StoreError::too_many_entries()),
        "two copies are too many"
    );
    assert_eq!(delete(children[0], false), Ok(()));
    set(
        &store,
        BucketSettings {
            quota_entries: Some(Some(SUBTREE_ENTRIES_MAX as u64)),
            ..BucketSettings::default()
        },
    );
    let refused = delete(parent, true);
    assert_eq!(code(refused), StoreErrorCode::QuotaExceeded);
    assert_eq!(store.tree(children[1]).len(), SUBTREE_ENTRIES_MAX / 2 + 1);
}

/// What no content has costs quota as well, and comes back.
#[test]
fn attributes_targets_messages_and_long_paths_count_as_bytes() {
    let store = TestStore::new();
    let (main, bucket) = (store.main, store.bucket);
    let used = |store: &TestStore| store.read(move |tx| tx.usage(bucket)).expect("there").bytes;
    let attributes = |bytes: usize| TreeChange::SetAttributes {
        path: path("/a"),
        attributes: EntryAttributes {
            xattr: Some(vec![1; bytes]),
            ..EntryAttributes::default()
        },
        precondition: EntryPrecondition::Any,
    };
    store.put(main, "/a", 1);
    assert_eq!(used(&store), 100);
    store.apply(main, attributes(1000)).expect("room");
    assert_eq!(used(&store), 1100);
    let link = TreeChange::Symlink {
        path: path("/l"),
        target: "x".repeat(300),
        may_replace: false,
    };
    store.apply(main, link).expect("room");
    assert_eq!(used(&store), 1400);
    let long = format!("/{}/{}", "x".repeat(200), "y".repeat(199));
    store.mkdir(main, &long);
    let rest = 201 + 199 - PATH_BYTES_FREE;
    assert_eq!(used(&store), 1400 + rest);
    let request = ChangeRequest {
        message: Some("a message".to_owned()),
        ..ChangeRequest::new(main, "alice", TreeChange::mkdir(path("/m")))
    };
    store.write(move |tx| tx.apply(&request)).expect("room");
    assert_eq!(used(&store), 1409 + rest);
    store.check_usage();
    // A later change of the batch replaces an earlier one.
    store
        .apply_all(main, vec![attributes(500), attributes(2)])
        .expect("room");
    assert_eq!(used(&store), 1411 + rest);
    store.check_usage();
    set(
        &store,
        BucketSettings {
            quota_bytes: Some(Some(2000)),
            ..BucketSettings::default()
        },
    );
    let refused = store.apply(main, attributes(1000));
    let used_before = 1411 + rest;
    let exceeded = StoreError::QuotaExceeded {
        resource: QuotaResource::Bytes,
        limit: 2000,
        used: used_before,
    };
    assert_eq!(refused, Err(exceeded));
    set(
        &store,
        BucketSettings {
            quota_bytes: Some(Some(10)),
            ..BucketSettings::default()
        },
    );
    let request = ChangeRequest {
        message: Some("a deletion is possible at any use".to_owned()),
        ..ChangeRequest::new(main, "alice", TreeChange::delete(path(&long)))
    };
    store.write(move |tx| tx.apply(&request)).expect("always");
    store.check_usage();
}

/// The attack: the same call without end, each with a message of four kilobytes.
#[test]
fn a_change_of_nothing_makes_no_commit() {
    let store = TestStore::new();
    let main = store.main;
    store.mkdir(main, "/d");
    let seq = store.put(main, "/d/a", 1);
    let before = count(&store, "SELECT count(*) FROM commit_");
    let events = store.events().len();
    let nothing = [
        vec![TreeChange::Mkdir {
            path: path("/d"),
            attributes: EntryAttributes::default(),
            may_exist: true,
        }],
        vec![TreeChange::rename(path("/d"), path("/d"))],
        vec![TreeChange::Restore {
            path: path("/d"),
            seq,
        }],
        Vec::new(),
    ];
    for changes in nothing {
        let request = ChangeRequest {
            branch: main,
            actor: "alice".to_owned(),
            message: Some("x".repeat(4096)),
            changes,
        };
        let receipt = store.write(move |tx| tx.apply(&request)).expect("nothing");
        assert_eq!(receipt.seq, seq, "the last commit of the branch");
    }
    assert_eq!(count(&store, "SELECT count(*) FROM commit_"), before);
    assert_eq!(store.events().len(), events);
    store.check_usage();
    assert!(store.put(main, "/d/b", 2) > seq);
}

#[test]
fn an_empty_batch_asks_for_room() {
    let store = ScratchStore::new();
    let new = NewBucket::new("docs".parse().expect("a name"), "alice");
    let (_, main) = store.write(move |tx| tx.create_bucket(&new)).expect("room");
    store.space.set_free(1 << 20);
    let request = ChangeRequest {
        branch: main.id,
        actor: "alice".to_owned(),
        message: Some("x".repeat(4096)),
        changes: Vec::new(),
    };
    let refused = store.write(move |tx| tx.apply(&request));
    assert_eq!(refused, Err(StoreError::NoSpace));
}
