use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{
    ApiKey, AuthToken, CredentialStore, Identities, IdentityEntries, IdentityProvider,
    IdentityStore, PeerEntry, PeerKey, SystemClock,
};

use super::*;

mod first_format;
mod full;

fn key(n: u8) -> PeerKey {
    PeerKey::Ed25519([n; 32])
}

fn peer(n: u8) -> PeerEntry {
    PeerEntry {
        keys: vec![key(n)],
        scopes: ["work", "fs:read:*"].into_iter().collect(),
        addresses: vec!["edge.example.org:4433".parse().expect("an address")],
        ..PeerEntry::new(format!("peer-{n}").parse().expect("a peer id"))
    }
}

fn put(db: &IdentityDb, n: u8) {
    db.persist(&[StoreChange::PutPeer(peer(n))]).expect("room");
}

/// Leaves a change in the log as a power cut does: it is not moved into the file.
fn begin_to_put(db: &IdentityDb, n: u8) {
    let connection = lock(&db.0.connection);
    let connection = connection.as_ref().expect("open");
    rows::write(connection, &StoreChange::PutPeer(peer(n))).expect("room");
}

/// Overwrites a block with garbage, which is what damaged ciphertext decrypts to.
fn garble(block: &mut [u8], seed: u64) {
    let mut state = seed | 1;
    for byte in block {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        *byte = state.to_be_bytes()[0];
    }
}

fn ids(stored: &StoredIdentities) -> Vec<String> {
    stored
        .peers
        .iter()
        .map(|it| it.peer_id.to_string())
        .collect()
}

/// A folder, and the path of the file in it.
fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("identity.db");
    (dir, path)
}

fn names_in(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).expect("a folder");
    let names = names.map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = names.map(|it| it.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn everything_is_there_again_after_a_restart() {
    let (dir, path) = place();
    let token = AuthToken::generate()
        .and_then(|it| it.hash())
        .expect("a token");
    let mut entry = peer(1);
    entry.key_ends = [(key(1), 1_900_000_000)].into();
    entry.token_hashes = vec![token];
    entry.expires = Some(u64::MAX);
    entry.removal = Some(7);
    let all = StoredIdentities {
        peers: vec![entry.clone()],
        api_keys: vec![ApiKey {
            scopes: ["metrics:read"].into_iter().collect(),
            resources: [("fs".into(), vec!["docs".into()])].into(),
            description: Some("hall".to_owned()),
            created_by: Some("key:abcd0123".to_owned()),
            created_by_key: Some(key(9)),
            created: Some(1_900_000_000),
            used_day: Some(21_990),
            ..ApiKey::new(token)
        }],
    };
    let (db, stored) = IdentityDb::open(&path);
    assert_eq!(
        (stored, db.diagnostics()),
        (StoredIdentities::default(), Vec::new())
    );
    assert!(!path.exists(), "nothing to keep yet");
    let changes = [
        StoreChange::PutPeer(peer(2)),
        StoreChange::PutPeer(entry),
        StoreChange::PutApiKey(all.api_keys[0].clone()),
        StoreChange::RemovePeer(peer(2).peer_id),
    ];
    db.persist(&changes).expect("room");
    drop(db);
    let mode = fs::metadata(&path).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(
        names_in(dir.path()),
        ["identity.db", "identity.db-reserve"],
        "nothing else is left beside it"
    );

    let (db, stored) = IdentityDb::open(&path);
    assert_eq!((stored, db.diagnostics()), (all, Vec::new()));
    db.persist(&[
        StoreChange::RemovePeer(peer(1).peer_id),
        StoreChange::RemoveApiKey(token.key_id),
    ])
    .expect("room");
    drop(db);
    let (_, stored) = IdentityDb::open(&path);
    assert_eq!(stored, StoredIdentities::default());
}

#[test]
fn a_wider_mode_is_narrowed_and_the_log_has_it_too() {
    let (dir, path) = place();
    fs::write(&path, "").expect("a file");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("ours");
    let (db, _) = IdentityDb::open(&path);
    put(&db, 1);
    for name in names_in(dir.path()) {
        let about = fs::metadata(dir.path().join(&name)).expect("a file");
        assert_eq!(about.permissions().mode() & 0o777, 0o600, "{name}");
    }
}

/// Each kind of damaged file is set aside with its log and reported until it is gone, and the store begins again.
#[test]
fn a_damaged_file_is_set_aside_and_stays_announced() {
    let damages: [fn(&Path); 3] = [
        |path| {
            fs::write(path, "no database at all, but long enough to look like one").expect("ours")
        },
        |path| {
            let mut bytes = fs::read(path).expect("ours");
            for byte in &mut bytes[4096..] {
                *byte ^= 0x55;
            }
            fs::write(path, bytes).expect("ours");
        },
        |path| {
            let other = Connection::open(path).expect("a database");
            other
                .pragma_update(None, "application_id", 1)
                .expect("ours");
        },
    ];
    for (n, damage) in damages.into_iter().enumerate() {
        let (dir, path) = place();
        let (db, _) = IdentityDb::open(&path);
        (1..=100).for_each(|n| put(&db, n));
        drop(db);
        damage(&path);

        let (db, stored) = IdentityDb::open(&path);
        assert_eq!(stored, StoredIdentities::default(), "damage {n}");
        let aside = dir.path().join("identity.db.damaged-1");
        let announced = vec![IdentityStoreDiagnostic::Aside(aside.clone())];
        assert_eq!(db.diagnostics(), announced, "damage {n}");
        put(&db, 7);
        drop(db);
        let (db, stored) = IdentityDb::open(&path);
        assert_eq!(
            (ids(&stored), db.diagnostics()),
            (vec!["peer-7".to_owned()], announced)
        );
        drop(db);

        fs::remove_file(aside).expect("ours");
        let (db, _) = IdentityDb::open(&path);
        assert_eq!(db.diagnostics(), []);
    }
}

#[test]
fn the_next_damage_gets_a_name_of_its_own_and_a_log_follows_its_file() {
    let (dir, path) = place();
    for n in 1..=2 {
        fs::write(&path, "no database").expect("ours");
        fs::write(dir.path().join("identity.db-wal"), format!("log {n}")).expect("ours");
        let (db, _) = IdentityDb::open(&path);
        assert_eq!(db.diagnostics().len(), n);
    }
    // This is the state that a power cut between the two renames leaves.
    fs::rename(&path, dir.path().join("identity.db.damaged-3")).expect("ours");
    fs::write(dir.path().join("identity.db-wal"), "log 3").expect("ours");
    let (db, _) = IdentityDb::open(&path);
    assert_eq!(db.diagnostics().len(), 3);
    put(&db, 1);
    for n in 1..=3 {
        let log = dir.path().join(format!("identity.db.damaged-{n}-wal"));
        assert_eq!(fs::read_to_string(log).ok(), Some(format!("log {n}")));
    }
}

#[test]
fn a_later_version_and_a_file_in_use_are_left_alone() {
    let (dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    put(&db, 1);
    let (second, stored) = IdentityDb::open(&path);
    assert_eq!(stored, StoredIdentities::default());
    let diagnostics = second.diagnostics();
    assert!(
        matches!(&diagnostics[..], [IdentityStoreDiagnostic::Unusable(why)] if why.contains("another node"))
    );
    let refused = second.persist(&[StoreChange::PutPeer(peer(2))]);
    assert!(
        matches!(refused, Err(IdentityStoreError::Unavailable(why)) if why.contains("another node"))
    );
    drop((db, second));

    let newer = Connection::open(&path).expect("a database");
    newer
        .pragma_update(None, "user_version", SCHEMA_VERSION + 1)
        .expect("ours");
    drop(newer);
    let (db, stored) = IdentityDb::open(&path);
    assert_eq!(stored, StoredIdentities::default());
    assert_eq!(
        db.diagnostics(),
        [IdentityStoreDiagnostic::Newer(SCHEMA_VERSION + 1)]
    );
    assert!(db.persist(&[StoreChange::PutPeer(peer(2))]).is_err());
    drop(db);
    assert_eq!(names_in(dir.path()), ["identity.db", "identity.db-reserve"]);

    let (db, stored) = IdentityDb::open(dir.path());
    assert_eq!(stored, StoredIdentities::default());
    let name = dir.path().display().to_string();
    assert!(
        matches!(&db.diagnostics()[..], [IdentityStoreDiagnostic::Unusable(why)] if why.contains(&name)),
        "a folder is no file: {:?}",
        db.diagnostics()
    );
}

#[tokio::test]
async fn a_secret_that_cannot_be_kept_names_the_file() {
    let (dir, path) = place();
    fs::create_dir(&path).expect("room");
    let (db, _) = IdentityDb::open(&path);
    let sealed = EncryptedData {
        key_version: 2,
        salt: [1; 32],
        iv: [1; 12],
        data: vec![1; 20],
        alg: "ALK1".to_owned(),
    };
    let refused = db.put("cred:acme", sealed).await.expect_err("a folder");
    let expected = format!("sealed secrets cannot be kept in {}: ", path.display());
    assert!(refused.to_string().starts_with(&expected), "{refused}");
    assert_eq!(names_in(dir.path()), ["identity.db"]);
}

/// Both nodes began without a file.
#[test]
fn the_second_of_two_nodes_keeps_nothing() {
    let (_dir, path) = place();
    let (first, second) = (IdentityDb::open(&path).0, IdentityDb::open(&path).0);
    put(&first, 1);
    let keep = || second.persist(&[StoreChange::PutPeer(peer(2))]);
    assert!(keep().is_err());
    assert!(
        matches!(&second.diagnostics()[..], [IdentityStoreDiagnostic::Write(why)] if why.contains("another"))
    );
    // The second node fails even after the first has ended: it has not read what the first wrote.
    drop(first);
    assert!(keep().is_err());
    drop(second);
    assert_eq!(ids(&IdentityDb::open(&path).1), ["peer-1"]);
}

#[test]
fn an_unreadable_row_is_reported_and_the_others_count() {
    let (_dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    (1..=2).for_each(|n| put(&db, n));
    drop(db);
    let edit = Connection::open(&path).expect("a database");
    for change in [
        "UPDATE peers SET entry = '{}' WHERE peer_id = 'peer-1'",
        "UPDATE peers SET peer_id = 'other' WHERE peer_id = 'peer-2'",
        "INSERT INTO credentials VALUES ('cred:x', '{}')",
    ] {
        edit.execute(change, []).expect("ours");
    }
    drop(edit);
    let (db, stored) = IdentityDb::open(&path);
    assert_eq!(stored, StoredIdentities::default());
    let diagnostics = db.diagnostics();
    let [IdentityStoreDiagnostic::Rows { count: 3, first }] = &diagnostics[..] else {
        panic!("{diagnostics:?}");
    };
    assert!(first.contains("other"), "{first}");
    put(&db, 3);
}

#[test]
fn the_log_cut_anywhere_is_the_store_after_some_change() {
    let (dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    put(&db, 1);
    (2..=9).for_each(|n| begin_to_put(&db, n));
    let log = fs::read(dir.path().join("identity.db-wal")).expect("changes are in the log");
    let file = fs::read(&path).expect("a file");
    let mut last = 0;
    // Every frame of the log is cut at least once.
    for cut in (0..=log.len()).step_by(2063).chain([log.len()]) {
        for torn in [false, true] {
            let (cut_dir, cut_path) = place();
            let mut left = log[..cut].to_vec();
            if torn {
                // A sector that was being written may have any content.
                let from = left.len().saturating_sub(512);
                left[from..].fill(0xa5);
            }
            fs::write(&cut_path, &file).expect("ours");
            fs::write(cut_dir.path().join("identity.db-wal"), left).expect("ours");
            let (cut_db, stored) = IdentityDb::open(&cut_path);
            assert_eq!(cut_db.diagnostics(), [], "cut at {cut}");
            let expected: Vec<_> = (1..=stored.peers.len())
                .map(|n| format!("peer-{n}"))
                .collect();
            assert_eq!(ids(&stored), expected, "cut at {cut}");
            if !torn {
                assert!(stored.peers.len() >= last, "cut at {cut}");
                last = stored.peers.len();
            }
        }
    }
    assert_eq!(last, 9);
}

/// The owner of a removed peer has the machine. It cuts the power right after the answer, and damages each block of
/// the log in turn, which SQLite takes for the end of the log. The log is also empty after a start that found the
/// change in it.
#[test]
fn a_damaged_log_brings_no_removed_peer_back() {
    let (dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    (1..=2).for_each(|n| put(&db, n));
    let after_cut = |what: &str| {
        let log = fs::read(dir.path().join("identity.db-wal")).expect("the log of an open file");
        let file = fs::read(&path).expect("a file");
        let blocks = log.len().div_ceil(4096);
        for damaged in (0..blocks).map(Some).chain([None]) {
            let (cut_dir, cut_path) = place();
            let mut log = log.clone();
            if let Some(block) = damaged.and_then(|n| log.chunks_mut(4096).nth(n)) {
                garble(block, 7);
            }
            fs::write(&cut_path, &file).expect("ours");
            fs::write(cut_dir.path().join("identity.db-wal"), log).expect("ours");
            let (cut_db, stored) = IdentityDb::open(&cut_path);
            assert_eq!(cut_db.diagnostics(), [], "{what}: {damaged:?}");
            assert_eq!(ids(&stored), ["peer-2"], "{what}: {damaged:?}");
        }
        blocks
    };
    let removed = [StoreChange::RemovePeer(peer(1).peer_id)];
    db.persist(&removed).expect("room");
    assert_eq!(after_cut("answered"), 0);

    // The power was cut before the answer, and the next start found the removal in the log.
    put(&db, 1);
    let connection = lock(&db.0.connection);
    let log = connection.as_ref().expect("open");
    rows::write(log, &removed[0]).expect("room");
    drop(connection);
    let log = fs::read(dir.path().join("identity.db-wal")).expect("the log of an open file");
    assert!(!log.is_empty());
    let file = fs::read(&path).expect("a file");
    drop(db);
    fs::write(&path, file).expect("ours");
    fs::write(dir.path().join("identity.db-wal"), log).expect("ours");
    let (_db, stored) = IdentityDb::open(&path);
    assert_eq!(ids(&stored), ["peer-2"]);
    assert_eq!(after_cut("found in the log"), 0);
}

/// The store keeps the identity of a removed peer, and that an invitation is closed: without these records, an
/// invitation that the peer still has would let it in. A damaged page loses either everything or nothing.
#[tokio::test]
async fn a_damaged_page_brings_no_removed_peer_back() {
    let (_dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    // Some entries need pages of their own.
    let long = |bytes: usize| Some("x".repeat(bytes));
    for n in 1..=60 {
        let entry = PeerEntry {
            display_name: long(usize::from(n % 5) * 2500),
            enabled: false,
            removal: Some(u64::from(n)),
            ..peer(n)
        };
        db.persist(&[StoreChange::PutPeer(entry)]).expect("room");
        let invitation = EnrolmentRecord {
            key_id: format!("abcd{n:04}").parse().expect("a name"),
            revision: 1,
            expires: 1_900_000_000,
            record: format!("{{\"closed\":true,\"uses\":\"{}\"}}", "u".repeat(3000)),
        };
        assert_eq!(db.put_enrolment(invitation).await, Ok(true));
    }
    let gone = (1..=20).map(|n| StoreChange::RemovePeer(peer(n).peer_id));
    db.persist(&gone.collect::<Vec<_>>()).expect("room");
    let all = db.enrolments().await.expect("readable");
    drop(db);
    let (db, before) = IdentityDb::open(&path);
    assert_eq!((before.peers.len(), all.len()), (40, 60));
    drop(db);
    let file = fs::read(&path).expect("a file");
    let mut lost = 0;
    for (n, at) in (0..file.len()).step_by(4096).enumerate() {
        let (_cut_dir, cut_path) = place();
        let mut damaged = file.clone();
        garble(&mut damaged[at..at + 4096], n as u64);
        fs::write(&cut_path, damaged).expect("ours");
        let (db, stored) = IdentityDb::open(&cut_path);
        let invitations = db.enrolments().await.expect("readable");
        if db.diagnostics().is_empty() {
            // The damaged page had no entry.
            assert_eq!((&stored, &invitations), (&before, &all), "page {n}");
            continue;
        }
        lost += 1;
        assert!(
            matches!(&db.diagnostics()[..], [IdentityStoreDiagnostic::Aside(_)]),
            "page {n}"
        );
        assert_eq!(
            (stored, invitations),
            (StoredIdentities::default(), vec![]),
            "page {n}"
        );
    }
    assert!(lost > 100, "{lost} pages are in use");
}

#[tokio::test]
async fn sealed_secrets_come_and_go() {
    let (_dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    let sealed = |n: u8, bytes: usize| EncryptedData {
        key_version: 2,
        salt: [n; 32],
        iv: [n; 12],
        data: vec![n; bytes],
        alg: "ALK1".to_owned(),
    };
    let max = (1 << 20) + 16;
    db.put("cred:acme", sealed(1, 20)).await.expect("room");
    db.put("cred:acme", sealed(2, max)).await.expect("room");
    db.put("cred:other", sealed(3, 20)).await.expect("room");
    assert!(db.put("cred:acme", sealed(4, max + 1)).await.is_err());
    assert!(db.put("", sealed(4, 20)).await.is_err());
    let [longest, longer] = [255, 256].map(|bytes| "n".repeat(bytes));
    db.put(&longest, sealed(5, 20)).await.expect("room");
    assert!(db.put(&longer, sealed(5, 20)).await.is_err());
    drop(db);
    let (db, _) = IdentityDb::open(&path);
    assert_eq!(db.get("cred:acme"), Some(sealed(2, max)));
    assert_eq!(db.get(&longest), Some(sealed(5, 20)));
    assert_eq!(db.get(&longer), None);
    assert!(db.delete("cred:other").await.expect("room"));
    assert!(!db.delete("cred:other").await.expect("room"));
    drop(db);
    let (db, _) = IdentityDb::open(&path);
    assert_eq!((db.get("cred:other"), db.get("nobody")), (None, None));
}

#[tokio::test]
async fn of_two_who_use_a_token_one_succeeds() {
    let (_dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    let record = |revision, text: &str| EnrolmentRecord {
        key_id: "abcd0123".parse().expect("a name"),
        revision,
        expires: 1_900_000_000,
        record: text.to_owned(),
    };
    let name = record(0, "").key_id;
    assert_eq!(db.enrolment(name).await, Ok(None));
    assert_eq!(db.put_enrolment(record(0, "new")).await, Ok(true));
    assert_eq!(db.put_enrolment(record(0, "again")).await, Ok(false));
    let [one, other] = ["one", "other"].map(|text| db.replace_enrolment(record(0, text)));
    let (one, other) = (one.await.expect("room"), other.await.expect("room"));
    assert!(one != other, "{one} {other}");
    drop(db);
    let (db, _) = IdentityDb::open(&path);
    let used = record(1, if one { "one" } else { "other" });
    assert_eq!(db.enrolments().await, Ok(vec![used.clone()]));
    assert_eq!(db.enrolment(name).await, Ok(Some(used)));
    assert_eq!(db.remove_enrolment(name).await, Ok(true));
    assert_eq!(db.remove_enrolment(name).await, Ok(false));
    assert_eq!(db.enrolments().await, Ok(Vec::new()));
}

/// The removal of a peer removes its invitations as well. The runtime's thread for blocking work is in use, as by a
/// peer that reads stored files.
#[test]
fn no_work_of_peers_delays_the_removal_of_an_invitation() {
    let (_dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .expect("a runtime");
    let (release, held) = std::sync::mpsc::channel::<()>();
    // It ends when the test drops `release`.
    runtime.spawn_blocking(move || {
        let _ = held.recv();
    });
    let changes = async {
        let record = EnrolmentRecord {
            key_id: "abcd0123".parse().expect("a name"),
            revision: 0,
            expires: 1_900_000_000,
            record: "new".to_owned(),
        };
        let name = record.key_id;
        assert_eq!(db.put_enrolment(record).await, Ok(true));
        assert_eq!(db.enrolments().await.expect("readable").len(), 1);
        assert_eq!(db.remove_enrolment(name).await, Ok(true));
        assert!(!db.delete("cred:other").await.expect("readable"));
    };
    let limit = alknet_test_support::deadline(Duration::from_secs(20));
    let done = runtime.block_on(async { tokio::time::timeout(limit, changes).await });
    // The test ends in either case.
    drop(release);
    done.expect("the changes wait for no thread of the pool");
}

#[tokio::test]
async fn what_identities_write_is_kept_and_what_is_not_kept_does_not_count() {
    let (_dir, path) = place();
    let start = || {
        let (db, stored) = IdentityDb::open(&path);
        let clock = Arc::new(SystemClock { built_s: 0 });
        let persistence = Arc::new(db.clone());
        let all = Identities::with_store(IdentityEntries::default(), stored, persistence, clock);
        (db, all)
    };
    let (db, all) = start();
    all.put(peer(1)).await.expect("room");
    let ends = all.rotate(peer(1).peer_id, key(1), key(2)).await;
    assert!(ends.expect("a rotation").is_some());
    drop((db, all));

    let (db, all) = start();
    for n in [1, 2] {
        let found = all.by_key(&key(n)).expect("both keys count");
        assert_eq!(found.id.as_str(), "peer-1");
    }
    *lock(&db.0.connection) = None;
    let gone = IdentityStoreDiagnostic::Unusable("the disk is gone".to_owned());
    lock(&db.0.diagnostics).found.push(gone);
    let before = all.generation();
    let lost = all.remove(peer(1).peer_id).await;
    assert!(
        matches!(lost, Err(IdentityStoreError::Unavailable(_))),
        "{lost:?}"
    );
    assert!(all.by_key(&key(2)).is_some() && all.generation() == before);
}

/// Every change flushes the log. A killed process loses nothing without the flush, but a machine that loses its
/// power does.
#[test]
fn every_change_is_flushed() {
    let (_dir, path) = place();
    for n in 0..2 {
        // The first change makes the file, and the test opens it again.
        let (db, _) = IdentityDb::open(&path);
        put(&db, n);
        let connection = lock(&db.0.connection);
        let connection = connection.as_ref().expect("open");
        let mode =
            connection.pragma_query_value(None, "journal_mode", |row| row.get::<_, String>(0));
        assert_eq!(mode.expect("a mode"), "wal");
        let flushed =
            connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0));
        // 2 is the value of `FULL`.
        assert_eq!(flushed.expect("a number"), 2);
    }
}

#[test]
fn a_write_that_fails_is_a_trouble_until_one_succeeds() {
    let (_dir, path) = place();
    let (db, _) = IdentityDb::open(&path);
    let full = |on: bool| {
        let pages: i64 = if on { 1 } else { 1 << 20 };
        let connection = lock(&db.0.connection);
        let connection = connection.as_ref().expect("open");
        connection
            .pragma_update(None, "max_page_count", pages)
            .expect("a pragma");
    };
    // The first change makes the file.
    put(&db, 0);
    full(true);
    let mut changes: Vec<_> = (1..=200).map(|n| StoreChange::PutPeer(peer(n))).collect();
    changes.push(StoreChange::RemovePeer(peer(1).peer_id));
    assert!(matches!(
        db.persist(&changes),
        Err(IdentityStoreError::Unavailable(_))
    ));
    assert!(
        matches!(&db.diagnostics()[..], [IdentityStoreDiagnostic::Write(why)] if why.contains("full"))
    );
    full(false);
    put(&db, 9);
    assert_eq!(db.diagnostics(), []);
    drop(db);
    let (_, stored) = IdentityDb::open(&path);
    assert_eq!(
        ids(&stored),
        ["peer-0", "peer-9"],
        "all of a change or nothing"
    );
}
