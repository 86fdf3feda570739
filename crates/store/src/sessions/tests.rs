mod failures;

use std::time::Duration;

use super::*;
use crate::error::{QuotaResource, StoreErrorCode};
use crate::limits::{
    FILE_BYTES_MAX, SESSION_MEMORY_BYTES, SESSION_RANGES_MAX, SESSION_SAVE_BYTES,
    SESSIONS_PER_IDENTITY_MAX,
};
use crate::locks::{LockDepth, NewLock};
use crate::names::{BucketSettings, TreeChange};
use crate::store::tests::{TestFiles, content, path};

fn new_session(files: &TestFiles, at: &str, mode: WriteSessionMode) -> NewWriteSession {
    NewWriteSession::new(files.main, path(at), mode, "alice")
}

fn open(files: &TestFiles, at: &str, mode: WriteSessionMode) -> WriteSessionId {
    let opened = files.store().open_session(&new_session(files, at, mode));
    opened.expect("it may be opened")
}

fn write(files: &TestFiles, id: WriteSessionId, at: u64, bytes: &[u8]) {
    let written = files.store().sessions().write(id, "alice", at, bytes);
    written.expect("room");
}

fn close(files: &TestFiles, id: WriteSessionId) -> Result<ClosedSession, StoreError> {
    files.store().sessions().close(id, "alice", None)
}

/// Number of staging files.
fn staged_files(files: &TestFiles) -> usize {
    let staging = files.root().join("content/uploads");
    std::fs::read_dir(staging).expect("readable").count()
}

fn refused<T: fmt::Debug>(result: Result<T, StoreError>) -> StoreErrorCode {
    result.expect_err("refused").code()
}

/// The bytes of a file.
fn file(files: &TestFiles, at: &str) -> Option<Vec<u8>> {
    let hash = files.hash_at(at)?;
    Some(files.bytes(hash).expect("whole"))
}

#[test]
fn pieces_in_any_order_become_one_version() {
    let files = TestFiles::new();
    files.put("/a", b"before");
    for len in [10, 20_000, 65_536, 65_537, 1_000_000] {
        let bytes = content(len as u64, len);
        for piece_len in [len.div_ceil(7), len] {
            let id = open(&files, "/a", WriteSessionMode::Truncate);
            let before = file(&files, "/a");
            let pieces: Vec<_> = bytes.chunks(piece_len).enumerate().collect();
            for (number, piece) in pieces.iter().rev() {
                write(&files, id, (number * piece_len) as u64, piece);
            }
            assert_eq!(
                file(&files, "/a"),
                before,
                "readers see the version of before"
            );
            let closed = close(&files, id).expect("room");
            let hash = crate::content::content_hash(blake3::hash(&bytes));
            assert_eq!((closed.hash, closed.size), (hash, len as u64));
            assert!(file(&files, "/a").expect("a file") == bytes);
        }
    }
    assert_eq!(staged_files(&files), 0);
    assert_eq!(files.store().sessions().count(), 0);
    files.check_usage();
}

/// Clients send times behind the last write.
#[test]
fn attributes_that_come_late_are_those_of_the_version() {
    let files = TestFiles::new();
    let mut new = new_session(&files, "/a", WriteSessionMode::Create);
    new.attributes.mode = Some(0o600);
    let id = files.store().open_session(&new).expect("allowed");
    write(&files, id, 0, b"content");
    let late = EntryAttributes {
        mtime_ns: Some(7),
        ..EntryAttributes::default()
    };
    let sessions = files.store().sessions();
    sessions.set_attributes(id, "alice", &late).expect("open");
    let other = sessions.set_attributes(id, "bob", &late);
    assert_eq!(refused(other), StoreErrorCode::NotFound);
    close(&files, id).expect("room");
    let main = files.main;
    let found = files.store().read(move |tx| {
        let view = tx.view(main, None)?;
        tx.stat(&view, &path("/a"))
    });
    let state = found.wait().expect("a file").state;
    assert_eq!((state.mode, state.mtime_ns), (0o600, 7));
}

#[test]
fn short_contents_stay_in_memory_until_the_close() {
    let files = TestFiles::new();
    let id = open(&files, "/a", WriteSessionMode::Create);
    write(&files, id, 0, &content(1, SESSION_MEMORY_BYTES as usize));
    assert_eq!(staged_files(&files), 0);
    write(&files, id, SESSION_MEMORY_BYTES, b"x");
    assert_eq!(staged_files(&files), 1);
    files.store().sessions().abort(id, "alice").expect("open");
    assert_eq!((staged_files(&files), file(&files, "/a")), (0, None));
    files.check_usage();
}

#[test]
fn a_modification_shows_and_keeps_what_it_did_not_write() {
    let files = TestFiles::new();
    for len in [100_usize, 40_000, 300_000] {
        let mut expected = content(1, len);
        files.put("/a", &expected);
        let id = open(&files, "/a", WriteSessionMode::Modify);
        let sessions = files.store().sessions();
        for at in [len / 2, 0, len - 3] {
            write(&files, id, at as u64, b"new");
            expected[at..at + 3].copy_from_slice(b"new");
        }
        // Behind a hole.
        write(&files, id, len as u64 + 5, b"end");
        expected.extend(b"\0\0\0\0\0end");
        let size = expected.len() as u64;
        assert_eq!(sessions.size(id, "alice"), Ok(size));
        let mut read = Vec::new();
        while (read.len() as u64) < size {
            let at = read.len() as u64;
            let part = sessions.read(id, "alice", at..u64::MAX).expect("whole");
            assert!(!part.is_empty() && part.len() <= crate::limits::READ_BLOCK_BYTES);
            read.extend(part);
        }
        assert!(read == expected);
        close(&files, id).expect("room");
        assert!(file(&files, "/a").expect("a file") == expected, "{len}");
    }
    files.check_usage();
}

#[test]
fn an_append_begins_at_the_end_and_a_cut_content_does_not_come_back() {
    let files = TestFiles::new();
    files.put("/log", b"one,");
    let id = open(&files, "/log", WriteSessionMode::Append);
    write(&files, id, 4, b"three");
    write(&files, id, 0, b"two,");
    close(&files, id).expect("room");
    assert_eq!(file(&files, "/log").as_deref(), Some(&b"one,two,three"[..]));
    let id = open(&files, "/log", WriteSessionMode::Modify);
    let sessions = files.store().sessions();
    write(&files, id, 0, b"ONE");
    sessions.set_len(id, "alice", 2).expect("shorter");
    sessions.set_len(id, "alice", 5).expect("longer");
    close(&files, id).expect("room");
    assert_eq!(file(&files, "/log").as_deref(), Some(&b"ON\0\0\0"[..]));
    let id = open(&files, "/new", WriteSessionMode::Append);
    write(&files, id, 0, b"first");
    close(&files, id).expect("room");
    assert_eq!(file(&files, "/new").as_deref(), Some(&b"first"[..]));
    files.check_usage();
}

#[test]
fn a_declared_size_that_lies_ends_the_session() {
    let files = TestFiles::new();
    files.put("/a", b"before");
    let declared = |size| NewWriteSession {
        expected_size: Some(size),
        ..new_session(&files, "/a", WriteSessionMode::Truncate)
    };
    let sessions = files.store().sessions();
    // Up: at the first byte too many.
    let id = sessions.open(&declared(100_000)).expect("room");
    write(&files, id, 0, &content(1, 100_000));
    assert_eq!(staged_files(&files), 1);
    let lie = sessions.write(id, "alice", 100_000, b"x");
    let (known, given) = (100_001, 100_000);
    assert_eq!(lie, Err(StoreError::SizeMismatch { known, given }));
    assert_eq!((staged_files(&files), sessions.count()), (0, 0));
    assert_eq!(refused(close(&files, id)), StoreErrorCode::NotFound);
    // Down: at the close.
    let id = sessions.open(&declared(100_000)).expect("room");
    write(&files, id, 0, &content(1, 99_999));
    let (known, given) = (99_999, 100_000);
    let lie = close(&files, id);
    assert_eq!(lie, Err(StoreError::SizeMismatch { known, given }));
    assert_eq!((staged_files(&files), sessions.count()), (0, 0));
    assert_eq!(file(&files, "/a").as_deref(), Some(&b"before"[..]));
    // The truth.
    let id = sessions.open(&declared(3)).expect("room");
    write(&files, id, 0, b"yes");
    close(&files, id).expect("room");
    files.check_usage();
}

#[test]
fn the_seventeenth_session_of_an_identity_is_refused_and_others_go_on() {
    let files = TestFiles::new();
    let mode = WriteSessionMode::Truncate;
    let ids: Vec<_> = (0..SESSIONS_PER_IDENTITY_MAX)
        .map(|number| open(&files, &format!("/{number}"), mode))
        .collect();
    let new = new_session(&files, "/more", mode);
    let exceeded = StoreError::QuotaExceeded {
        resource: QuotaResource::OpenSessions,
        limit: 16,
        used: 16,
    };
    assert_eq!(files.store().open_session(&new), Err(exceeded));
    let other = NewWriteSession {
        identity: "bob".to_owned(),
        ..new.clone()
    };
    files
        .store()
        .open_session(&other)
        .expect("another identity");
    write(&files, ids[0], 0, b"x");
    close(&files, ids[0]).expect("room");
    files.store().open_session(&new).expect("one was closed");
    // A session that could not be opened does not count.
    let wrong = new_session(&files, "/0", WriteSessionMode::Create);
    let sessions = files.store().sessions();
    sessions.abort(ids[1], "alice").expect("open");
    for _ in 0..3 {
        assert_eq!(refused(sessions.open(&wrong)), StoreErrorCode::Exists);
    }
    sessions.open(&new).expect("one was aborted");
}

#[test]
fn staged_bytes_of_an_identity_have_a_limit() {
    let files = TestFiles::new();
    let options = WriteSessionOptions {
        staged_bytes_max: 100_000,
        ..WriteSessionOptions::default()
    };
    let store = files.store();
    let db = store.db().clone();
    let time: Arc<dyn TimeSource> = Arc::clone(&files.clock) as Arc<dyn TimeSource>;
    let sessions = WriteSessions::start(db, store.content().clone(), time, options);
    let sessions = sessions.expect("room");
    let new = |at: &str| new_session(&files, at, WriteSessionMode::Truncate);
    let first = sessions.open(&new("/a")).expect("free");
    let second = sessions.open(&new("/b")).expect("free");
    let bytes = content(1, 60_000);
    sessions.write(first, "alice", 0, &bytes).expect("below");
    let exceeded = StoreError::QuotaExceeded {
        resource: QuotaResource::StagedBytes,
        limit: 100_000,
        used: 60_000,
    };
    let refused = sessions.write(second, "alice", 0, &bytes);
    assert_eq!(refused, Err(exceeded.clone()));
    let declared = NewWriteSession {
        expected_size: Some(60_000),
        ..new("/c")
    };
    assert_eq!(sessions.open(&declared), Err(exceeded));
    // The same range again takes no more, and both sessions go on.
    sessions.write(first, "alice", 0, &bytes).expect("the same");
    sessions
        .write(second, "alice", 0, &bytes[..40_000])
        .expect("room");
    sessions.close(first, "alice", None).expect("room");
    sessions
        .write(second, "alice", 40_000, &bytes)
        .expect("room");
    sessions.close(second, "alice", None).expect("room");
    sessions.open(&declared).expect("nothing is staged");
}

/// What the close copies of the base is staged as well: otherwise sessions that write one byte each would fill the disk.
#[test]
fn a_copied_base_counts_as_staged() {
    let files = TestFiles::new();
    files.put("/a", &content(1, 150_000));
    let options = WriteSessionOptions {
        staged_bytes_max: 100_000,
        ..WriteSessionOptions::default()
    };
    let store = files.store();
    let (db, time) = (store.db().clone(), files.clock.clone());
    let sessions = WriteSessions::start(db, store.content().clone(), time, options);
    let sessions = sessions.expect("room");
    let new = new_session(&files, "/a", WriteSessionMode::Modify);
    let id = sessions.open(&new).expect("free");
    sessions.write(id, "alice", 149_999, b"x").expect("room");
    let refused = sessions.close(id, "alice", None);
    assert!(matches!(
        refused,
        Err(StoreError::QuotaExceeded {
            resource: QuotaResource::StagedBytes,
            ..
        })
    ));
    assert_eq!((staged_files(&files), sessions.count()), (0, 0));
    assert!(file(&files, "/a") == Some(content(1, 150_000)));
    files.check_usage();
}

/// A session of more than [`SESSION_SAVE_BYTES`] has told its bucket what it stages.
#[test]
fn a_close_gives_back_what_the_bucket_counts_as_staged() {
    let files = TestFiles::new();
    let id = open(&files, "/a", WriteSessionMode::Truncate);
    let piece = content(1, 1 << 20);
    for number in 0..10 {
        write(&files, id, number << 20, &piece);
    }
    assert!(files.count("SELECT staged FROM usage") >= SESSION_SAVE_BYTES);
    close(&files, id).expect("room");
    assert_eq!(files.count("SELECT staged FROM usage"), 0);
    files.check_usage();
}

#[test]
fn the_quota_of_the_bucket_ends_an_upload_early() {
    let files = TestFiles::new();
    let quota = 10 << 20;
    files.set_bucket(BucketSettings {
        quota_bytes: Some(Some(quota)),
        ..BucketSettings::default()
    });
    let exceeded = StoreError::QuotaExceeded {
        resource: QuotaResource::Bytes,
        limit: quota,
        used: 0,
    };
    let new = new_session(&files, "/a", WriteSessionMode::Truncate);
    let declared = NewWriteSession {
        expected_size: Some(quota + 1),
        ..new.clone()
    };
    let sessions = files.store().sessions();
    assert_eq!(sessions.open(&declared), Err(exceeded.clone()));
    let id = sessions.open(&new).expect("room");
    let mebibyte = content(1, 1 << 20);
    for number in 0..10 {
        write(&files, id, number << 20, &mebibyte);
    }
    let saved = files.count("SELECT coalesce(sum(size), 0) FROM session");
    assert!(saved >= SESSION_SAVE_BYTES, "{saved}");
    files.check_usage();
    let eleventh = sessions.write(id, "alice", 10 << 20, &mebibyte);
    assert_eq!(eleventh, Err(exceeded));
    assert_eq!((staged_files(&files), sessions.count()), (0, 0));
    files.check_usage();
}

#[test]
fn one_of_two_sessions_with_the_same_expectation_wins() {
    let files = TestFiles::new();
    let before = files.put("/a", b"before");
    let new = NewWriteSession {
        precondition: EntryPrecondition::Content(before),
        ..new_session(&files, "/a", WriteSessionMode::Truncate)
    };
    let sessions = files.store().sessions();
    let ids = [(); 2].map(|()| sessions.open(&new).expect("as expected"));
    for (number, id) in ids.iter().enumerate() {
        write(&files, *id, 0, &content(number as u64, 100_000));
    }
    let won = close(&files, ids[1]).expect("the first to close");
    let current = Some(won.hash);
    let lost = close(&files, ids[0]);
    assert_eq!(lost, Err(StoreError::PreconditionFailed { current }));
    assert_eq!(refused(sessions.open(&new)), StoreErrorCode::Conflict);
    assert_eq!(files.hash_at("/a"), current);
    // A creation finds out at the close what came to its path meanwhile.
    let id = open(&files, "/b", WriteSessionMode::Create);
    files.put("/b", b"meanwhile");
    write(&files, id, 0, b"mine");
    assert_eq!(refused(close(&files, id)), StoreErrorCode::Conflict);
    assert_eq!(staged_files(&files), 0);
    files.check_usage();
}

#[test]
fn another_identity_does_not_find_the_session() {
    let files = TestFiles::new();
    let id = open(&files, "/a", WriteSessionMode::Truncate);
    let sessions = files.store().sessions();
    let not_found = StoreErrorCode::NotFound;
    assert_eq!(refused(sessions.write(id, "bob", 0, b"x")), not_found);
    assert_eq!(refused(sessions.read(id, "bob", 0..1)), not_found);
    assert_eq!(refused(sessions.close(id, "bob", None)), not_found);
    assert_eq!(refused(sessions.abort(id, "bob")), not_found);
    let unknown = WriteSessionId::new([1; 16]);
    assert_eq!(refused(sessions.abort(unknown, "bob")), not_found);
    close(&files, id).expect("it is still open");
    assert_eq!(file(&files, "/a").as_deref(), Some(&b""[..]));
}

#[test]
fn a_lock_of_the_path_refuses_sessions_without_its_token() {
    let files = TestFiles::new();
    files.put("/a", b"before");
    let take = |at: &str, owner: &'static str| {
        let (main, at) = (files.main, path(at));
        let new = NewLock::exclusive(main, at, owner, LockDepth::Zero, Duration::from_secs(60));
        let taken = files.store().write(move |tx| tx.lock_entry(&new, &[]));
        taken.wait().expect("it is free").lock.token
    };
    // The lock comes while the session is open.
    let early = open(&files, "/a", WriteSessionMode::Truncate);
    write(&files, early, 0, b"after");
    let token = take("/a", "bob");
    let locked = StoreError::Locked {
        path: "/a".to_owned(),
    };
    assert_eq!(close(&files, early), Err(locked.clone()));
    assert_eq!(file(&files, "/a"), Some(b"before".to_vec()));
    assert_eq!(files.store().sessions().count(), 0);
    files.check_usage();
    // And before it is opened. A token of another owner is worth nothing.
    let mut session = new_session(&files, "/a", WriteSessionMode::Truncate);
    session.lock_tokens = vec![token];
    let refused = files.store().open_session(&session);
    assert_eq!(refused, Err(locked));
    assert_eq!(files.store().sessions().count(), 0);
    assert_eq!(files.count("SELECT count(*) FROM session"), 0);
    // A new name is one of its directory, whose lock has depth 0.
    let create = |at: &str| open(&files, at, WriteSessionMode::Create);
    files
        .apply(files.main, TreeChange::mkdir(path("/d")))
        .expect("room");
    take("/d", "bob");
    let below = new_session(&files, "/d/new", WriteSessionMode::Create);
    let refused = files.store().open_session(&below);
    assert!(matches!(refused, Err(StoreError::Locked { .. })));
    close(&files, create("/e")).expect("no lock covers it");
    // The owner with its token.
    session.identity = "bob".to_owned();
    let sessions = files.store().sessions();
    let id = files.store().open_session(&session).expect("its own lock");
    sessions.write(id, "bob", 0, b"of bob").expect("room");
    sessions.close(id, "bob", None).expect("its own lock");
    assert_eq!(file(&files, "/a"), Some(b"of bob".to_vec()));
}

#[test]
fn idle_sessions_are_swept_and_a_start_removes_all() {
    let mut files = TestFiles::new();
    files.put("/a", b"before");
    let idle = open(&files, "/a", WriteSessionMode::Truncate);
    write(&files, idle, 0, &content(1, 100_000));
    files
        .clock
        .advance(Duration::from_millis(SESSION_TTL_MS_DEFAULT - 1));
    let busy = open(&files, "/a", WriteSessionMode::Truncate);
    assert_eq!(files.store().sessions().sweep(), Ok(0));
    files.clock.advance(Duration::from_millis(1));
    assert_eq!(files.store().sessions().sweep(), Ok(1));
    assert_eq!(refused(close(&files, idle)), StoreErrorCode::NotFound);
    write(&files, busy, 0, &content(2, 100_000));
    files.store().sessions().sync(busy, "alice").expect("room");
    files.check_usage();
    assert_eq!(staged_files(&files), 1);
    let cut = files.cut();
    assert_eq!(cut.count("SELECT count(*) FROM session"), 0);
    cut.check_usage();
    assert_eq!(refused(close(&cut, busy)), StoreErrorCode::NotFound);
    files.reopen();
    assert_eq!(
        (staged_files(&files), files.store().sessions().count()),
        (0, 0)
    );
    assert_eq!(file(&files, "/a").as_deref(), Some(&b"before"[..]));
    files.check_usage();
}

#[test]
fn hostile_writes_cost_no_more_than_their_bound() {
    let files = TestFiles::new();
    let id = open(&files, "/a", WriteSessionMode::Truncate);
    let sessions = files.store().sessions();
    for at in [FILE_BYTES_MAX, u64::MAX] {
        let refused = refused(sessions.write(id, "alice", at, b"x"));
        assert_eq!(refused, StoreErrorCode::TooLarge);
    }
    assert_eq!(sessions.size(id, "alice"), Ok(0));
    for number in 0..SESSION_RANGES_MAX as u64 {
        write(&files, id, number * 2, b"x");
    }
    let more = SESSION_RANGES_MAX as u64 * 2;
    let refused = refused(sessions.write(id, "alice", more, b"x"));
    assert_eq!(refused, StoreErrorCode::TooLarge);
    // What is written already may be written again.
    write(&files, id, 0, b"y");
    close(&files, id).expect("room");
}

#[test]
fn a_session_needs_a_path_that_takes_a_file() {
    let files = TestFiles::new();
    files.put("/d/a", b"x");
    let truncate = WriteSessionMode::Truncate;
    let on = |at: &str| {
        files
            .store()
            .open_session(&new_session(&files, at, truncate))
    };
    assert_eq!(refused(on("/d")), StoreErrorCode::IsDir);
    assert_eq!(refused(on("/")), StoreErrorCode::InvalidPath);
    files.set_bucket(BucketSettings {
        is_frozen: Some(true),
        ..BucketSettings::default()
    });
    assert_eq!(refused(on("/b")), StoreErrorCode::ReadOnly);
    assert_eq!(files.store().sessions().count(), 0);
}

/// The model is a plain vector.
#[test]
fn random_sessions_do_what_a_plain_file_does() {
    let files = TestFiles::new();
    let sessions = files.store().sessions();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut below = |limit: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % limit as u64) as usize
    };
    let modes = [
        WriteSessionMode::Truncate,
        WriteSessionMode::Modify,
        WriteSessionMode::Append,
    ];
    let mut before = Vec::new();
    for round in 0..40 {
        let mode = modes[below(3)];
        let mut model: Vec<u8> = match mode {
            WriteSessionMode::Truncate => Vec::new(),
            _ => before.clone(),
        };
        let origin = match mode {
            WriteSessionMode::Append => model.len(),
            _ => 0,
        };
        let id = open(&files, "/a", mode);
        // Every other session stays short, so that the forms in memory and in a row are met as well.
        let scale = if round % 2 == 0 { 3_000 } else { 50_000 };
        for _ in 0..below(12) {
            match below(4) {
                0 => {
                    let len = below(2 * scale);
                    sessions.set_len(id, "alice", len as u64).expect("room");
                    model.resize(len, 0);
                }
                1 => {
                    let start = below(model.len() + 10);
                    let end = start + below(scale);
                    let read = sessions.read(id, "alice", start as u64..end as u64);
                    let end = end.min(model.len());
                    let expected = &model[start.min(end)..end];
                    assert!(read.expect("whole") == expected, "round {round}");
                }
                _ => {
                    let at = below(scale);
                    let bytes = content(round, below(scale));
                    write(&files, id, at as u64, &bytes);
                    let start = origin + at;
                    let end = if bytes.is_empty() {
                        0
                    } else {
                        start + bytes.len()
                    };
                    model.resize(model.len().max(end), 0);
                    drop(model.splice(start.min(end)..end, bytes));
                }
            }
        }
        assert_eq!(sessions.size(id, "alice"), Ok(model.len() as u64));
        close(&files, id).expect("room");
        assert!(
            file(&files, "/a").expect("a file") == model,
            "round {round}"
        );
        before = model;
    }
    assert_eq!(staged_files(&files), 0);
    files.check_usage();
}
