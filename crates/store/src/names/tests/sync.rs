//! What synchronisation reads and writes.

use std::collections::BTreeMap;

use super::*;
use crate::limits::{SUBTREE_ENTRIES_MAX, SYNC_ROW_BYTES_MAX};

fn state(number: u8) -> EntryState {
    let content = content(number);
    EntryState {
        kind: EntryKind::File,
        hash: Some(content.hash),
        size: content.size,
        mode: 0o640,
        mtime_ns: 5,
        target: None,
        xattr: None,
    }
}

fn gone() -> EntryState {
    EntryState::deletion(0)
}

fn synced(branch: BranchId, changes: &[(&str, EntryState)]) -> SyncedChanges {
    let changes = changes.iter().map(|(at, state)| (path(at), state.clone()));
    SyncedChanges {
        branch,
        actor: "bob".to_owned(),
        former: Vec::new(),
        changes: changes.collect(),
    }
}

fn apply(store: &TestStore, changes: SyncedChanges) -> Result<SyncedOutcome, StoreError> {
    store.write(move |tx| tx.apply_synced(&changes))
}

fn paths(rows: Vec<SyncRow>) -> Vec<String> {
    rows.into_iter().map(|row| row.path.to_string()).collect()
}

#[test]
fn changes_are_the_newest_rows_of_the_branch_behind_a_commit() {
    let store = TestStore::new();
    let first = store.put(store.main, "/a", 1);
    store.put(store.main, "/d/b", 2);
    store.put(store.main, "/a", 3);
    store.delete(store.main, "/d/b");
    let main = store.main;
    let rows = store.read(move |tx| tx.sync_changes(&main.into(), first, SUBTREE_ENTRIES_MAX));
    let rows = rows.expect("readable");
    let kinds: Vec<_> = rows
        .iter()
        .map(|row| (row.path.as_str(), describe(&row.state)))
        .collect();
    let expected = [("/a", "file 3"), ("/d", "directory"), ("/d/b", "deleted")];
    assert_eq!(kinds, expected.map(|(at, what)| (at, what.to_owned())));
    assert!(rows[0].timestamp < rows[2].timestamp);
    // A branch shows what it began with, and changes of its own alone.
    let draft = store.branch("draft", main);
    let begin = store.read(move |tx| Ok(tx.branch(draft)?.head_seq));
    let begin = begin.expect("readable");
    store.put(main, "/later", 4);
    let tree = store
        .read(move |tx| tx.sync_tree(&draft.into()))
        .expect("readable");
    assert_eq!(paths(tree), ["/a", "/d"]);
    let none = store.read(move |tx| tx.sync_changes(&draft.into(), begin, SUBTREE_ENTRIES_MAX));
    assert_eq!(none.expect("readable"), []);
    store.put(draft, "/own", 5);
    let own = store.read(move |tx| tx.sync_changes(&draft.into(), begin, SUBTREE_ENTRIES_MAX));
    assert_eq!(paths(own.expect("readable")), ["/own"]);
}

#[test]
fn a_commit_with_many_rows_is_read_in_pieces() {
    let store = TestStore::new();
    for round in 0..5 {
        let put = |number: u32| TreeChange::put(path(&format!("/{round}/{number}")), content(1));
        let changes = (0..1000).map(put).collect();
        store.apply_all(store.main, changes).expect("applied");
    }
    let main = store.main;
    let rows = store.read(move |tx| tx.sync_changes(&main.into(), 0, SUBTREE_ENTRIES_MAX));
    assert_eq!(rows.expect("readable").len(), 5005);
    let rows = store.read(move |tx| tx.sync_changes(&main.into(), 0, 5004));
    assert_eq!(code(rows), StoreErrorCode::TooLarge);
}

/// The attack: links with long targets at long paths, of which a session makes several copies in memory.
#[test]
fn rows_with_long_paths_and_targets_are_limited_by_their_bytes() {
    let store = TestStore::new();
    let main = store.main;
    let directory = "/d".to_owned() + &"x".repeat(200);
    let directory = directory.repeat(19);
    let count = usize::try_from(SYNC_ROW_BYTES_MAX).expect("small") / (directory.len() + 4096) + 1;
    let links: Vec<_> = (0..count)
        .map(|number| TreeChange::Symlink {
            path: path(&format!("{directory}/{number}")),
            target: "t".repeat(4096),
            may_replace: false,
        })
        .collect();
    let (first, last) = links.split_at(count - 1000);
    for some in first.chunks(1000) {
        store.apply_all(main, some.to_vec()).expect("applied");
    }
    let before =
        store.read(move |tx| Ok((tx.sync_tree(&main.into())?.len(), tx.branch(main)?.head_seq)));
    let (rows, seq) = before.expect("below the limit");
    // With the directories above them.
    assert_eq!(rows, first.len() + 19);
    store.apply_all(main, last.to_vec()).expect("applied");
    let tree = store.read(move |tx| tx.sync_tree(&main.into()));
    assert_eq!(code(tree), StoreErrorCode::TooLarge);
    let changes = store.read(move |tx| tx.sync_changes(&main.into(), 0, SUBTREE_ENTRIES_MAX));
    assert_eq!(code(changes), StoreErrorCode::TooLarge);
    let later = store.read(move |tx| tx.sync_changes(&main.into(), seq, SUBTREE_ENTRIES_MAX));
    assert_eq!(later.expect("few").len(), 1000);
}

#[test]
fn changes_of_a_peer_are_one_commit_with_one_event() {
    let store = TestStore::new();
    store.put(store.main, "/old/a", 1);
    let before = store.events().len();
    let changes = [
        ("/new/deep/b", state(2)),
        ("/old/a", gone()),
        ("/old", gone()),
        ("/never", gone()),
    ];
    let outcome = apply(&store, synced(store.main, &changes)).expect("applied");
    assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
    let expected = [
        ("/new", "directory"),
        ("/new/deep", "directory"),
        ("/new/deep/b", "file 2"),
    ];
    assert_eq!(store.tree(store.main), tree_of(expected));
    assert_eq!(store.events()[before..], ["sync.merged"]);
    // The content is on peers only.
    let status = store.read(|tx| tx.content_status(content(2).hash));
    let wanted = crate::content::ContentStatus::Wanted { size: 200 };
    assert_eq!(status, Ok(wanted));
    store.check_usage();
    let nothing = apply(&store, synced(store.main, &[])).expect("applied");
    assert_eq!(nothing.receipt, None);
    assert_eq!(store.events().len(), before + 1);
}

#[test]
fn versions_that_lost_are_in_the_history_and_never_on_top() {
    let store = TestStore::new();
    store.put(store.main, "/a", 1);
    store.put(store.main, "/b", 1);
    let mut changes = synced(store.main, &[("/a", state(4)), ("/b", state(5))]);
    // No file is so large.
    changes.changes[1].1.size = crate::limits::FILE_BYTES_MAX + 1;
    changes.former = vec![
        vec![(path("/a"), state(2)), (path("/b"), state(2))],
        vec![(path("/a"), state(3))],
    ];
    let outcome = apply(&store, changes).expect("applied");
    assert_eq!(outcome.refused.len(), 1);
    assert_eq!(outcome.refused[0].0, path("/b"));
    let history = |at: &str| {
        let (main, at) = (store.main, path(at));
        let read = store.read(move |tx| tx.history(&tx.view(main, None)?, &at, None, 10));
        let versions = read.expect("readable").into_iter();
        let numbers = versions.map(|it| it.state.hash.map_or(0, |hash| hash.as_bytes()[0]));
        numbers.collect::<Vec<_>>()
    };
    assert_eq!(history("/a"), [4, 3, 2, 1]);
    assert_eq!(history("/b"), [1, 2, 1]);
    store.check_usage();
}

/// The attack: a peer announces a content of another bucket, and as empty.
#[test]
fn a_peer_announces_contents_and_gets_no_right_to_them() {
    let store = TestStore::new();
    let new = NewBucket::new("other".parse().expect("a name"), "mallory");
    let created = store.write(move |tx| tx.create_bucket(&new));
    let (other, other_main) = created.expect("free");
    store.put(store.main, "/secret", 1);
    store.put(store.main, "/own", 2);
    let secret = content(1);
    let mut announced = state(1);
    announced.size = 0;
    let theirs = synced(other_main.id, &[("/mine", announced.clone())]);
    let outcome = apply(&store, theirs).expect("applied");
    assert!(outcome.refused.is_empty(), "{:?}", outcome.refused);
    let (bucket, hash) = (other.id, secret.hash);
    assert_eq!(
        store.read(move |tx| tx.has_content(bucket, hash)),
        Ok(false)
    );
    // The bucket that has the content goes on with its bytes and its size.
    let ours = synced(store.main, &[("/again", announced)]);
    apply(&store, ours).expect("applied");
    let (main, own) = (store.main, store.bucket);
    let size = store.read(move |tx| {
        let view = tx.view(main, None)?;
        Ok(tx.stat(&view, &path("/again"))?.state.size)
    });
    assert_eq!(size, Ok(secret.size));
    assert_eq!(store.read(move |tx| tx.has_content(own, hash)), Ok(true));
    store.check_usage();
}

#[test]
fn entries_without_a_place_are_left_out() {
    let store = TestStore::new();
    store.put(store.main, "/file", 1);
    store.put(store.main, "/d/x", 1);
    let changes = [
        ("/file/below", state(2)),
        ("/d", state(2)),
        ("/good", state(2)),
    ];
    let outcome = apply(&store, synced(store.main, &changes)).expect("applied");
    let refused: Vec<_> = outcome
        .refused
        .iter()
        .map(|(at, error)| (at.as_str(), error.code()))
        .collect();
    let expected = [
        ("/d", StoreErrorCode::NotEmpty),
        ("/file/below", StoreErrorCode::NotDir),
    ];
    assert_eq!(refused, expected);
    assert!(store.tree(store.main).contains_key("/good"));
    // With its entries gone, the directory gives way.
    let changes = [("/d", state(2)), ("/d/x", gone())];
    let outcome = apply(&store, synced(store.main, &changes)).expect("applied");
    assert!(outcome.refused.is_empty());
    assert_eq!(store.tree(store.main)["/d"], "file 2");
    store.check_usage();
}

#[test]
fn a_quota_takes_back_all_changes() {
    let store = TestStore::new();
    let bucket = store.bucket;
    let settings = BucketSettings {
        quota_entries: Some(Some(2)),
        ..BucketSettings::default()
    };
    let set = store.write(move |tx| tx.set_bucket(bucket, &settings, "root"));
    set.expect("there");
    let before = store.events();
    let changes = [("/a", state(1)), ("/b", state(2)), ("/c", state(3))];
    let refused = apply(&store, synced(store.main, &changes));
    assert_eq!(code(refused), StoreErrorCode::QuotaExceeded);
    assert_eq!(store.tree(store.main), Tree::new());
    assert_eq!(store.events(), before);
}

/// A document of a name in the root, or of the whole branch.
fn key(branch: BranchId, top: Option<&str>) -> SyncDocumentKey {
    let top = top.map(str::to_owned);
    SyncDocumentKey { branch, top }
}

fn save(store: &TestStore, key: &SyncDocumentKey, chunk: &[u8], is_whole: bool, applied: u64) {
    let update = SyncDocumentUpdate {
        copy_id: [3; 16],
        chunk: Some(chunk.to_vec()),
        is_whole,
        applied,
        heads: vec![[7; 32]],
    };
    let key = key.clone();
    let saved = store.write(move |tx| tx.save_sync_document(&key, &update));
    saved.expect("saved");
}

fn document(store: &TestStore, key: &SyncDocumentKey) -> Option<StoredSyncDocument> {
    let key = key.clone();
    let read = store.read(move |tx| tx.sync_document(&key));
    read.expect("readable")
}

fn head(store: &TestStore) -> u64 {
    let main = store.main;
    let read = store.read(move |tx| Ok(tx.branch(main)?.head_seq));
    read.expect("readable")
}

fn tops(store: &TestStore) -> SyncTops {
    let main = store.main;
    let read = store.read(move |tx| tx.sync_tops(main));
    read.expect("readable")
}

fn heads(store: &TestStore, key: &SyncDocumentKey) -> Option<Vec<[u8; 32]>> {
    let key = key.clone();
    let read = store.read(move |tx| tx.sync_heads(&key));
    read.expect("readable")
}

#[test]
fn a_document_is_kept_in_parts_and_goes_with_its_branch() {
    let mut store = TestStore::new();
    let draft = store.branch("draft", store.main);
    for key in [key(draft, None), key(draft, Some("a"))] {
        assert_eq!(document(&store, &key), None);
        save(&store, &key, b"whole", true, 1);
        save(&store, &key, b"part", false, 2);
        store.reopen();
        let stored = document(&store, &key).expect("stored");
        assert_eq!(stored.chunks, [b"whole".to_vec(), b"part".to_vec()]);
        assert_eq!((stored.copy_id, stored.applied), ([3; 16], 2));
        save(&store, &key, b"again", true, 3);
        let stored = document(&store, &key).expect("stored");
        assert_eq!(stored.chunks, [b"again".to_vec()]);
        let (own, other) = (key.clone(), key.clone());
        let peer = store.write(move |tx| tx.save_sync_peer(&own, "bob", b"state"));
        peer.expect("saved");
        let state = store.read(move |tx| tx.sync_peer(&other, "bob"));
        assert_eq!(state.expect("read"), Some(b"state".to_vec()));
    }
    let deleted = store.write(move |tx| {
        tx.delete_branch(draft, true, "root")?;
        while !tx.purge(1000)?.is_done {}
        tx.query_count(
            "SELECT (SELECT count(*) FROM sync_log) + (SELECT count(*) FROM sync_part) \
             + (SELECT count(*) FROM sync_peer) + (SELECT count(*) FROM sync_doc)",
            [],
        )
    });
    assert_eq!(deleted.expect("deleted"), 0);
    assert_eq!(document(&store, &key(draft, None)), None);
}

#[test]
fn another_copy_of_a_document_has_nothing_in_common_with_peers() {
    let store = TestStore::new();
    let main = store.main;
    for key in [key(main, None), key(main, Some("a"))] {
        let copy_id = |key: &SyncDocumentKey| {
            let key = key.clone();
            store.read(move |tx| tx.sync_copy_id(&key)).expect("read")
        };
        assert_eq!(copy_id(&key), None);
        save(&store, &key, b"whole", true, 1);
        assert_eq!(copy_id(&key), Some([3; 16]));
        let states = |key: &SyncDocumentKey, other_copy: bool| {
            let key = key.clone();
            let update = SyncDocumentUpdate {
                copy_id: [if other_copy { 4 } else { 3 }; 16],
                chunk: Some(b"again".to_vec()),
                is_whole: true,
                applied: 1,
                heads: Vec::new(),
            };
            let written = store.write(move |tx| {
                tx.save_sync_peer(&key, "bob", b"state")?;
                tx.save_sync_document(&key, &update)?;
                tx.sync_peer(&key, "bob")
            });
            written.expect("saved")
        };
        assert_eq!(states(&key, false), Some(b"state".to_vec()));
        assert_eq!(states(&key, true), None);
        assert_eq!(copy_id(&key), Some([4; 16]));
    }
}

#[test]
fn a_document_of_a_name_has_the_rows_of_that_name_alone() {
    let store = TestStore::new();
    let main = store.main;
    for (at, number) in [("/d", 1), ("/da/x", 2), ("/e/x", 3)] {
        store.put(main, at, number);
    }
    let first = head(&store);
    store.put(main, "/e/y/z", 4);
    store.put(main, "/e-mail", 5);
    let tree = |top: &str| {
        let key = key(main, Some(top));
        paths(store.read(move |tx| tx.sync_tree(&key)).expect("readable"))
    };
    assert_eq!(tree("d"), ["/d"]);
    assert_eq!(tree("e"), ["/e", "/e/x", "/e/y", "/e/y/z"]);
    assert_eq!(tree("none"), [""; 0]);
    let changes = |top: &str| {
        let key = key(main, Some(top));
        let read = store.read(move |tx| tx.sync_changes(&key, first, SUBTREE_ENTRIES_MAX));
        paths(read.expect("readable"))
    };
    assert_eq!(changes("d"), [""; 0]);
    assert_eq!(changes("e"), ["/e/y", "/e/y/z"]);
    assert_eq!(changes("e-mail"), ["/e-mail"]);
}

#[test]
fn a_document_is_current_until_its_paths_change() {
    let store = TestStore::new();
    let main = store.main;
    store.put(main, "/d/x", 1);
    store.put(main, "/e", 1);
    let [whole, d, e] = [None, Some("d"), Some("e")].map(|top| key(main, top));
    for key in [&whole, &d, &e] {
        assert_eq!(heads(&store, key), None);
        save(&store, key, b"whole", true, head(&store));
        assert_eq!(heads(&store, key), Some(vec![[7; 32]]));
    }
    store.put(main, "/d/deep/er", 2);
    assert_eq!(heads(&store, &whole), None);
    assert_eq!(heads(&store, &d), None);
    assert_eq!(heads(&store, &e), Some(vec![[7; 32]]));
    let found = tops(&store);
    let expected = [("d", None), ("e", Some(vec![[7; 32]]))];
    let expected = expected.map(|(top, heads)| (top.to_owned(), heads));
    assert_eq!(found.heads, BTreeMap::from(expected));
    assert_eq!(found.head_seq, head(&store));
    // The document that has nothing to take in is not looked at again for these commits.
    let raised = store.write(move |tx| tx.tidy_sync_tops(main, &found, 0));
    raised.expect("written");
    let applied = |key| document(&store, key).expect("stored").applied;
    assert_eq!(applied(&e), head(&store));
    assert!(applied(&d) < head(&store));
    let found = tops(&store);
    assert_eq!(found.heads["d"], None);
    assert_eq!(
        store.read(move |tx| tx.has_untidy_sync_tops(main, &found, 0)),
        Ok(false)
    );
}

#[test]
fn documents_of_deleted_names_go_after_a_time() {
    let store = TestStore::new();
    let main = store.main;
    for at in ["/gone", "/stays"] {
        store.put(main, at, 1);
        save(&store, &key(main, Some(&at[1..])), b"whole", true, 1);
    }
    store.delete(main, "/gone");
    let names = |store: &TestStore| tops(store).heads.into_keys().collect::<Vec<_>>();
    assert_eq!(names(&store), ["gone", "stays"]);
    for (before_ms, expected) in [(1, &["gone", "stays"][..]), (u64::MAX, &["stays"][..])] {
        let found = tops(&store);
        let tidied = store.write(move |tx| tx.tidy_sync_tops(main, &found, before_ms));
        tidied.expect("written");
        assert_eq!(names(&store), expected);
    }
}

/// The attack: a peer names one document after the other.
#[test]
fn a_branch_has_a_limited_number_of_documents() {
    let store = TestStore::new();
    let main = store.main;
    let update = SyncDocumentUpdate {
        copy_id: [3; 16],
        chunk: None,
        is_whole: false,
        applied: 0,
        heads: Vec::new(),
    };
    let saved = store.write(move |tx| {
        for number in 0..crate::limits::SYNC_TOPS_MAX {
            tx.save_sync_document(&key(main, Some(&number.to_string())), &update)?;
        }
        Ok(update.clone())
    });
    let update = saved.expect("saved");
    let more = store.write(move |tx| tx.save_sync_document(&key(main, Some("x")), &update));
    assert_eq!(code(more), StoreErrorCode::TooLarge);
    store.put(main, "/x", 1);
    let found = store.read(move |tx| tx.sync_tops(main));
    assert_eq!(code(found), StoreErrorCode::TooLarge);
}

#[test]
fn a_bucket_that_is_split_begins_its_documents_again() {
    let store = TestStore::new();
    let (bucket, main) = (store.bucket, store.main);
    for is_split in [true, false] {
        for top in [None, Some("a")] {
            save(&store, &key(main, top), b"whole", true, 1);
        }
        let set = |settings: BucketSettings| {
            let set = store.write(move |tx| tx.set_bucket(bucket, &settings, "root"));
            set.expect("there");
        };
        set(BucketSettings {
            is_synced: Some(is_split),
            ..BucketSettings::default()
        });
        assert!(document(&store, &key(main, None)).is_some());
        set(BucketSettings {
            is_split: Some(is_split),
            ..BucketSettings::default()
        });
        for top in [None, Some("a")] {
            assert_eq!(document(&store, &key(main, top)), None);
        }
    }
}

#[test]
fn branches_that_take_changes_of_peers_are_listed() {
    let store = TestStore::new();
    let (bucket, main) = (store.bucket, store.main);
    let listed = || {
        let read = store.read(|tx| tx.syncable_branches(10));
        let rows = read.expect("readable").into_iter();
        rows.map(|row| format!("{}@{}", row.bucket, row.branch))
            .collect::<Vec<_>>()
    };
    let set = |settings: BucketSettings| {
        let set = store.write(move |tx| tx.set_bucket(bucket, &settings, "root"));
        set.expect("there");
    };
    store.branch("draft", main);
    assert_eq!(listed(), [""; 0]);
    for fetch in ContentFetchMode::ALL {
        set(BucketSettings {
            is_synced: Some(true),
            fetch: Some(fetch),
            ..BucketSettings::default()
        });
        assert_eq!(listed(), ["docs@draft", "docs@main"]);
    }
    let protected = store.write(move |tx| tx.set_branch(main, None, true));
    protected.expect("there");
    assert_eq!(listed(), ["docs@draft"]);
    set(BucketSettings {
        is_frozen: Some(true),
        ..BucketSettings::default()
    });
    assert_eq!(listed(), [""; 0]);
}

#[test]
fn contents_that_a_bucket_waits_for_are_listed_in_turn() {
    let store = TestStore::new();
    store.put(store.main, "/own", 9);
    let announced = [("/a", state(1)), ("/b", state(2)), ("/c", state(3))];
    apply(&store, synced(store.main, &announced)).expect("applied");
    let bucket = store.bucket;
    let awaited = |from: u8, limit| {
        let from = content(from).hash;
        let read = store.read(move |tx| tx.awaited_contents(bucket, from, limit));
        let hashes = read.expect("readable").into_iter();
        hashes.map(|hash| hash.as_bytes()[0]).collect::<Vec<_>>()
    };
    assert_eq!(awaited(0, 10), [1, 2, 3]);
    assert_eq!(awaited(2, 10), [2, 3, 1]);
    assert_eq!(awaited(3, 2), [3, 1]);
    // What the bucket had and lost, among the others: none of them keeps the rest waiting.
    let own = content(9).hash;
    let lost = store.write(move |tx| {
        let set = "UPDATE blob SET state = 3 WHERE hash = ?1";
        tx.execute(set, [own])
    });
    assert_eq!(lost, Ok(1));
    assert_eq!(awaited(0, 10), [1, 2, 3, 9]);
    assert_eq!(awaited(4, 3), [9, 1, 2]);
    assert_eq!(awaited(2, 2), [2, 3]);
}

/// The attack: a tenant makes branches until a list of all has room for those of no later bucket.
#[test]
fn branches_of_one_bucket_keep_those_of_no_other_out() {
    let store = TestStore::new();
    let names = ["archive", "zoo"];
    for name in names {
        let new = NewBucket::new(name.parse().expect("a name"), "mallory");
        let settings = BucketSettings {
            is_synced: Some(true),
            ..BucketSettings::default()
        };
        let made = store.write(move |tx| {
            let (bucket, main) = tx.create_bucket(&new)?;
            tx.set_bucket(bucket.id, &settings, "mallory")?;
            Ok(main.id)
        });
        let main = made.expect("a bucket");
        // The first one has more branches than the list is long.
        for number in 0..20 * usize::from(name == "archive") {
            store.branch(&format!("b{number:02}"), main);
        }
    }
    let (bucket, main) = (store.bucket, store.main);
    let settings = BucketSettings {
        is_synced: Some(true),
        ..BucketSettings::default()
    };
    let set = store.write(move |tx| tx.set_bucket(bucket, &settings, "root"));
    set.expect("there");
    store.branch("draft", main);
    for (limit, archive, docs) in [(3, 1, 1), (9, 6, 2), (12, 9, 2), (100, 21, 2)] {
        let listed = store.read(move |tx| tx.syncable_branches(limit));
        let listed = listed.expect("readable");
        let count = |name: &str| {
            let of_bucket = listed.iter().filter(|row| row.bucket.as_str() == name);
            of_bucket.count()
        };
        let counts = (count("archive"), count("docs"), count("zoo"));
        assert_eq!(counts, (archive, docs, 1), "{limit}");
    }
}
