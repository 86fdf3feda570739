use alknet_store::{
    BranchId, ContentHash, EntryKind, EntryState, HybridTimestamp, SyncDocumentKey, SyncRow,
};
use automerge::sync::State;

use super::scene::path;
use crate::sync::document::{AffectedPaths, RowOrder, SyncedDocument};
use crate::sync::entry::SyncActor;
use crate::sync::error::{ByeCode, SyncError};
use crate::sync::incoming::ReceivedChanges;
use crate::sync::limits::{DocumentLimits, TOMBSTONE_MS};

const NOW_MS: u64 = 1_800_000_000_000;

/// The document of a branch, or of a name in its root.
fn load(
    top: Option<&str>,
    chunks: &[Vec<u8>],
    actor: SyncActor,
) -> Result<SyncedDocument, SyncError> {
    let key = SyncDocumentKey {
        branch: BranchId::new(1),
        top: top.map(str::to_owned),
    };
    let limits = DocumentLimits {
        paths_max: 100,
        ..DocumentLimits::default()
    };
    SyncedDocument::load((&key, limits), chunks, actor)
}

/// A document that has room for a large tree.
fn large_document(number: u8) -> SyncedDocument {
    let key = SyncDocumentKey {
        branch: BranchId::new(1),
        top: None,
    };
    let actor = SyncActor::new(&[number], [number; 16]);
    SyncedDocument::load((&key, DocumentLimits::default()), &[], actor).expect("empty")
}

fn document(number: u8) -> SyncedDocument {
    let actor = SyncActor::new(&[number], [number; 16]);
    load(None, &[], actor).expect("empty")
}

fn row(at: &str, kind: EntryKind, number: u8, ms: u64) -> SyncRow {
    let is_file = kind == EntryKind::File;
    SyncRow {
        path: path(at),
        state: EntryState {
            kind,
            hash: is_file.then(|| ContentHash::new([number; 32])),
            size: u64::from(is_file),
            mode: 0o755,
            mtime_ns: 0,
            target: None,
            xattr: None,
        },
        timestamp: HybridTimestamp::new(ms, 0, [number; 8]),
    }
}

fn file(at: &str, number: u8, ms: u64) -> SyncRow {
    row(at, EntryKind::File, number, ms)
}

/// Takes in rows of a store in which every directory is empty.
fn take_in(document: &mut SyncedDocument, rows: &[SyncRow]) -> AffectedPaths {
    let mut affected = AffectedPaths::default();
    let done = document.take_in(
        rows,
        RowOrder::ByTime,
        |_| Ok::<_, SyncError>(true),
        &mut affected,
    );
    done.expect("no store").expect("taken in");
    affected
}

/// Exchanges messages until both have the same, and resolves what came to the first one.
fn merge(one: &mut SyncedDocument, other: &mut SyncedDocument) -> AffectedPaths {
    let (mut ours, mut theirs) = (State::new(), State::new());
    let mut affected = AffectedPaths::default();
    for _ in 0..20 {
        if let Some(bytes) = one.generate(&mut ours).expect("a message") {
            let received = other.receive(&mut theirs, &bytes, NOW_MS);
            resolve(other, received, &mut AffectedPaths::default());
        }
        if let Some(bytes) = other.generate(&mut theirs).expect("a message") {
            let received = one.receive(&mut ours, &bytes, NOW_MS);
            resolve(one, received, &mut affected);
        }
    }
    assert_eq!(one.heads(), other.heads());
    affected
}

fn resolve(
    document: &mut SyncedDocument,
    received: Result<ReceivedChanges, SyncError>,
    affected: &mut AffectedPaths,
) {
    let received = received.expect("valid");
    document.resolve(&received, affected).expect("room");
}

fn winner(document: &SyncedDocument, at: &str) -> Option<[u8; 32]> {
    let winner = document.winner(at)?;
    winner.entry.state.hash.map(|hash| *hash.as_bytes())
}

#[test]
fn the_greatest_time_wins_on_both_sides_and_what_came_and_lost_is_former() {
    let (mut one, mut other) = (document(1), document(2));
    take_in(
        &mut one,
        &[file("/a", 1, NOW_MS + 5), file("/b", 1, NOW_MS)],
    );
    take_in(
        &mut other,
        &[file("/a", 2, NOW_MS), file("/b", 2, NOW_MS + 5)],
    );
    let affected = merge(&mut one, &mut other);
    for document in [&one, &other] {
        assert_eq!(winner(document, "/a"), Some([1; 32]));
        assert_eq!(winner(document, "/b"), Some([2; 32]));
    }
    // The own version of `/b` that lost is in the history of its node already.
    let former: Vec<_> = affected.former.into_iter().collect();
    let [(at, versions)] = former.as_slice() else {
        panic!("one path: {former:?}");
    };
    assert_eq!((at.as_str(), versions.len()), ("/a", 1));
    assert_eq!(
        versions[0].entry.state.hash,
        Some(ContentHash::new([2; 32]))
    );
    assert!(affected.paths.contains("/a") && affected.paths.contains("/b"));
}

#[test]
fn equal_times_are_decided_by_the_writer() {
    let (mut one, mut other) = (document(1), document(2));
    let same = |number| SyncRow {
        timestamp: HybridTimestamp::new(NOW_MS, 0, [0; 8]),
        ..file("/a", number, NOW_MS)
    };
    take_in(&mut one, &[same(1)]);
    take_in(&mut other, &[same(2)]);
    let actors = [1, 2].map(|it: u8| SyncActor::new(&[it], [it; 16]));
    let expected = if actors[0] > actors[1] { 1 } else { 2 };
    merge(&mut one, &mut other);
    for document in [&one, &other] {
        assert_eq!(winner(document, "/a"), Some([expected; 32]));
    }
}

#[test]
fn a_row_that_is_older_than_what_a_peer_wrote_is_left_out() {
    let (mut one, mut other) = (document(1), document(2));
    take_in(&mut other, &[file("/a", 2, NOW_MS + 5)]);
    merge(&mut one, &mut other);
    let heads = one.heads();
    let affected = take_in(&mut one, &[file("/a", 1, NOW_MS)]);
    assert_eq!(one.heads(), heads);
    assert_eq!(winner(&one, "/a"), Some([2; 32]));
    // The store has the row, and has to follow.
    assert!(affected.paths.contains("/a"));
}

#[test]
fn rows_that_say_nothing_new_make_no_change() {
    let mut one = document(1);
    take_in(&mut one, &[file("/a", 1, NOW_MS)]);
    let heads = one.heads();
    let again = [
        file("/a", 1, NOW_MS + 1),
        row("/never", EntryKind::Deleted, 1, NOW_MS + 2),
    ];
    let mut affected = AffectedPaths::default();
    let done = one.take_in(
        &again,
        RowOrder::ByTime,
        |_| Ok::<_, SyncError>(false),
        &mut affected,
    );
    done.expect("no store").expect("taken in");
    assert_eq!(one.heads(), heads);
    assert!(affected.paths.is_empty());
}

#[test]
fn directories_are_implied_unless_they_are_empty_or_have_bits_of_their_own() {
    let mut one = document(1);
    let full = |at: &str| row(at, EntryKind::Directory, 1, NOW_MS);
    let mut private = full("/private");
    private.state.mode = 0o700;
    let rows = [
        full("/full"),
        file("/full/a", 1, NOW_MS),
        full("/empty"),
        private,
    ];
    let mut affected = AffectedPaths::default();
    let is_empty = |at: &alknet_store::EntryPath| Ok::<_, SyncError>(at.as_str() == "/empty");
    let done = one.take_in(&rows, RowOrder::ByTime, is_empty, &mut affected);
    done.expect("no store").expect("taken in");
    let paths: Vec<_> = one.paths().map(|(path, _)| path).collect();
    assert_eq!(paths, ["/empty", "/full/a", "/private"]);
    let (wanted, is_implied) = one.wanted("/full");
    assert!(is_implied && wanted.is_directory());
    assert_eq!(one.wanted("/private").0.mode, 0o700);
    assert!(!one.wanted("/nothing").0.is_live());
    // The last file goes and the directory stays: now it needs an entry.
    take_in(
        &mut one,
        &[row("/full/a", EntryKind::Deleted, 1, NOW_MS + 1)],
    );
    let (wanted, is_implied) = one.wanted("/full");
    assert!(!is_implied && wanted.is_directory());
}

/// The attack: each of very many deletions in one directory makes the store read all of them.
#[test]
fn the_store_is_asked_once_for_a_directory_of_many_deletions() {
    let mut one = large_document(1);
    let count = 20_000;
    let names: Vec<_> = (0..count).map(|number| format!("/d/{number}")).collect();
    let files: Vec<_> = names.iter().map(|at| file(at, 1, NOW_MS)).collect();
    take_in(&mut one, &files);
    let deletions: Vec<_> = names
        .iter()
        .map(|at| row(at, EntryKind::Deleted, 1, NOW_MS + 1))
        .collect();
    let mut asked = Vec::new();
    let ask_empty = |at: &alknet_store::EntryPath| {
        asked.push(at.to_string());
        Ok::<_, SyncError>(true)
    };
    let mut affected = AffectedPaths::default();
    let done = one.take_in(&deletions, RowOrder::ByTime, ask_empty, &mut affected);
    done.expect("no store").expect("taken in");
    assert_eq!(asked, ["/d"]);
    assert_eq!(affected.paths.len(), count + 1);
    assert!(one.wanted("/d").0.is_directory());
    assert!(!one.wanted("/d/7").0.is_live());
}

#[test]
fn a_value_from_the_future_is_refused() {
    let (mut one, mut other) = (document(1), document(2));
    let ahead = 5 * 60 * 1000;
    take_in(&mut other, &[file("/a", 2, NOW_MS + ahead)]);
    merge(&mut one, &mut other);
    take_in(&mut other, &[file("/b", 2, NOW_MS + ahead + 1)]);
    let (mut ours, mut theirs) = (State::new(), State::new());
    let mut refusals = Vec::new();
    for _ in 0..5 {
        if let Some(bytes) = one.generate(&mut ours).expect("a message") {
            other.receive(&mut theirs, &bytes, NOW_MS).expect("valid");
        }
        if let Some(bytes) = other.generate(&mut theirs).expect("a message") {
            let received = one.receive(&mut ours, &bytes, NOW_MS);
            refusals.extend(received.err().and_then(|error| error.code()));
        }
    }
    assert_eq!(refusals.first(), Some(&ByeCode::ClockAhead));
}

#[test]
fn deletions_go_after_their_time() {
    let (mut one, mut other) = (document(1), document(2));
    take_in(&mut one, &[file("/a", 1, NOW_MS), file("/b", 1, NOW_MS)]);
    take_in(&mut one, &[row("/a", EntryKind::Deleted, 1, NOW_MS + 1)]);
    merge(&mut other, &mut one);
    one.remove_old_deletions(NOW_MS + 1 + TOMBSTONE_MS)
        .expect("removed");
    assert!(one.winner("/a").is_some());
    one.remove_old_deletions(NOW_MS + 2 + TOMBSTONE_MS)
        .expect("removed");
    assert!(one.winner("/a").is_none());
    merge(&mut other, &mut one);
    assert!(other.winner("/a").is_none());
    assert_eq!(winner(&other, "/b"), Some([1; 32]));
}

#[test]
fn a_document_is_stored_in_parts() {
    let mut one = document(1);
    let mut parts = vec![one.save().expect("saved")];
    for number in 1..5 {
        let before = one.heads();
        take_in(&mut one, &[file(&format!("/{number}"), number, NOW_MS)]);
        parts.push(one.save_after(&before).expect("saved"));
    }
    let actor = SyncActor::new(&[1], [1; 16]);
    let read = load(None, &parts, actor.clone()).expect("whole");
    assert_eq!(read.heads(), one.heads());
    assert!(read.paths().eq(one.paths()));
    let whole = [one.save().expect("saved")];
    let read = load(None, &whole, actor.clone()).expect("whole");
    assert!(read.paths().eq(one.paths()));
    let damaged = load(None, &[vec![1, 2, 3]], actor);
    assert_eq!(
        damaged.err().and_then(|it| it.code()),
        Some(ByeCode::Internal)
    );
}

#[test]
fn a_file_where_others_have_a_directory_moves_beside_it() {
    let (mut one, mut other) = (document(1), document(2));
    take_in(&mut one, &[file("/d", 1, NOW_MS)]);
    take_in(&mut other, &[file("/d/x", 2, NOW_MS)]);
    let mut affected = merge(&mut one, &mut other);
    let displaced = one.displaced(&affected.paths);
    let [(at, version)] = displaced.as_slice() else {
        panic!("one file: {displaced:?}");
    };
    assert_eq!(at, "/d");
    let later = HybridTimestamp::new(NOW_MS + 9, 0, [1; 8]);
    one.put_beside(at, version, later, &mut affected)
        .expect("room");
    one.put_directory(at, later, &mut affected).expect("room");
    assert!(one.displaced(&affected.paths).is_empty());
    merge(&mut other, &mut one);
    let paths: Vec<_> = other.paths().map(|(path, _)| path.to_owned()).collect();
    let actor = SyncActor::new(&[1], [1; 16]).to_string();
    let beside = format!("/d.conflict-{}-{NOW_MS}.0", &actor[..8]);
    assert_eq!(paths, ["/d", beside.as_str(), "/d/x"]);
    assert_eq!(winner(&other, &beside), Some([1; 32]));
    assert!(other.wanted("/d").0.is_directory());
}

/// The attack: the document of one name has paths of another one.
#[test]
fn paths_of_another_document_are_left_out() {
    let [mut one, mut other] = [Some("d"), None].map(|top| {
        let number = u8::from(top.is_some());
        let actor = SyncActor::new(&[number], [number; 16]);
        load(top, &[], actor).expect("empty")
    });
    let rows = ["/d", "/d/x", "/e/x", "/dx"].map(|at| file(at, 2, NOW_MS));
    take_in(&mut other, &rows[1..]);
    let affected = merge(&mut one, &mut other);
    let paths: Vec<_> = one.paths().map(|(path, _)| path).collect();
    assert_eq!(paths, ["/d/x"]);
    assert_eq!(affected.refused, [("other-document", 2)].into());
}

#[test]
fn a_file_in_the_root_of_a_split_branch_moves_to_another_document() {
    let actor = |number: u8| SyncActor::new(&[number], [number; 16]);
    let mut one = load(Some("d"), &[], actor(1)).expect("empty");
    let mut other = load(Some("d"), &[], actor(2)).expect("empty");
    take_in(&mut one, &[file("/d", 1, NOW_MS)]);
    take_in(&mut other, &[file("/d/x", 2, NOW_MS)]);
    let mut affected = merge(&mut one, &mut other);
    let displaced = one.displaced(&affected.paths);
    let [(at, version)] = displaced.as_slice() else {
        panic!("one file: {displaced:?}");
    };
    let later = HybridTimestamp::new(NOW_MS + 9, 0, [1; 8]);
    one.put_beside(at, version, later, &mut affected)
        .expect("room");
    one.put_directory(at, later, &mut affected).expect("room");
    let paths: Vec<_> = one.paths().map(|(path, _)| path).collect();
    assert_eq!(paths, ["/d", "/d/x"]);
    let elsewhere: Vec<_> = affected.elsewhere.iter().collect();
    let [(beside, state)] = elsewhere.as_slice() else {
        panic!("one file: {elsewhere:?}");
    };
    assert!(beside.as_str().starts_with("/d.conflict-"), "{beside}");
    assert_eq!(state.hash, Some(ContentHash::new([1; 32])));
}

#[test]
fn a_document_has_a_limited_number_of_paths() {
    for top in [None, Some("d")] {
        let actor = |number: u8| SyncActor::new(&[number], [number; 16]);
        let mut one = load(top, &[], actor(1)).expect("empty");
        let rows: Vec<_> = (0..101)
            .map(|number| file(&format!("/d/{number}"), 1, NOW_MS))
            .collect();
        take_in(&mut one, &rows[..100]);
        let heads = one.heads();
        let mut affected = AffectedPaths::default();
        let more = one.take_in(
            &rows[100..],
            RowOrder::ByTime,
            |_| Ok::<_, SyncError>(true),
            &mut affected,
        );
        let refused = more.expect("no store").expect_err("one too many");
        assert_eq!(refused.code(), Some(ByeCode::TooLarge));
        assert_eq!(one.heads(), heads);
        // The name in the root is that of a file.
        assert!(!refused.to_string().contains("/d"), "{refused}");
    }
}
