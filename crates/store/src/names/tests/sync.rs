//! What synchronisation reads and writes.

use super::*;

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
    let rows = store.read(move |tx| tx.sync_changes(main, first));
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
    let tree = store.read(move |tx| tx.sync_tree(draft)).expect("readable");
    assert_eq!(paths(tree), ["/a", "/d"]);
    let none = store.read(move |tx| tx.sync_changes(draft, begin));
    assert_eq!(none.expect("readable"), []);
    store.put(draft, "/own", 5);
    let own = store.read(move |tx| tx.sync_changes(draft, begin));
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
    let rows = store.read(move |tx| tx.sync_changes(main, 0));
    assert_eq!(rows.expect("readable").len(), 5005);
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

#[test]
fn a_document_is_kept_in_parts_and_goes_with_its_branch() {
    let mut store = TestStore::new();
    let draft = store.branch("draft", store.main);
    let save = |store: &TestStore, chunk: &[u8], is_whole, applied| {
        let update = SyncDocumentUpdate {
            copy_id: [3; 16],
            chunk: Some(chunk.to_vec()),
            is_whole,
            applied,
        };
        store
            .write(move |tx| tx.save_sync_document(draft, &update))
            .expect("saved");
    };
    let read = |store: &TestStore| store.read(move |tx| tx.sync_document(draft)).expect("read");
    assert_eq!(read(&store), None);
    save(&store, b"whole", true, 1);
    save(&store, b"part", false, 2);
    store.reopen();
    let document = read(&store).expect("stored");
    assert_eq!(document.chunks, [b"whole".to_vec(), b"part".to_vec()]);
    assert_eq!((document.copy_id, document.applied), ([3; 16], 2));
    save(&store, b"again", true, 3);
    assert_eq!(read(&store).expect("stored").chunks, [b"again".to_vec()]);
    let peer = store.write(move |tx| tx.save_sync_peer(draft, "bob", b"state"));
    peer.expect("saved");
    let state = store.read(move |tx| tx.sync_peer(draft, "bob"));
    assert_eq!(state.expect("read"), Some(b"state".to_vec()));
    let deleted = store.write(move |tx| {
        tx.delete_branch(draft, true, "root")?;
        while !tx.purge(1000)?.is_done {}
        tx.query_count("SELECT count(*) FROM sync_log", [])
    });
    assert_eq!(deleted.expect("deleted"), 0);
    assert_eq!(read(&store), None);
}
