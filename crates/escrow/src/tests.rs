use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alknet_core::PeerKey;
use zeroize::Zeroizing;

use super::*;

/// A vault in memory.
#[derive(Default)]
struct MemoryEscrowVault {
    secrets: Mutex<HashMap<ShareId, Vec<u8>>>,
    refuses: Mutex<Option<EscrowVaultError>>,
}

impl MemoryEscrowVault {
    fn refuse(&self, error: Option<EscrowVaultError>) {
        *self.refuses.lock().expect("no panics here") = error;
    }

    fn usable(&self) -> Result<(), EscrowVaultError> {
        let refuses = self.refuses.lock().expect("no panics here").clone();
        refuses.map_or(Ok(()), Err)
    }

    fn has(&self, id: &ShareId) -> bool {
        self.secrets
            .lock()
            .expect("no panics here")
            .contains_key(id)
    }
}

impl EscrowVault for MemoryEscrowVault {
    fn put(&self, id: &ShareId, secret: &[u8]) -> Result<(), EscrowVaultError> {
        self.usable()?;
        let mut secrets = self.secrets.lock().expect("no panics here");
        secrets.insert(id.clone(), secret.to_vec());
        Ok(())
    }

    fn get(&self, id: &ShareId) -> Result<Zeroizing<Vec<u8>>, EscrowVaultError> {
        self.usable()?;
        let secrets = self.secrets.lock().expect("no panics here");
        let found = secrets.get(id).cloned();
        found
            .map(Zeroizing::new)
            .ok_or_else(|| EscrowVaultError::Failed("it does not exist".to_owned()))
    }

    fn remove(&self, id: &ShareId) -> Result<(), EscrowVaultError> {
        self.secrets.lock().expect("no panics here").remove(id);
        Ok(())
    }
}

struct EscrowTest {
    dir: tempfile::TempDir,
    safe: Arc<MemoryEscrowVault>,
    now: Instant,
}

impl EscrowTest {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            safe: Arc::default(),
            now: Instant::now(),
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("escrow")
    }

    fn share_registry(&self) -> ShareRegistry {
        ShareRegistry::open(&self.path(), Arc::clone(&self.safe) as _)
    }

    /// A request with the key of this number, from this address, some time after the beginning.
    fn request(&self, key: u16, address: &str, after_s: u64) -> ShareRequest {
        ShareRequest {
            key: key_of(key),
            peer: format!("peer-{key}").parse().expect("a peer id"),
            address: address.parse().ok(),
            now_s: Some(1_800_000_000 + after_s),
            now: self.now + Duration::from_secs(after_s),
        }
    }
}

fn key_of(number: u16) -> PeerKey {
    let mut key = [0; 32];
    key[..2].copy_from_slice(&number.to_be_bytes());
    PeerKey::Ed25519(key)
}

fn deposit(byte: u8) -> ShareDeposit {
    ShareDeposit {
        share: KeyShare::new([byte; 32]),
        vault: "f0f1f2f3-f4f5-46f7-b8f9-fafbfcfdfeff".to_owned(),
        from: Vec::new(),
        approve: false,
    }
}

#[test]
fn a_share_goes_back_only_to_the_key_that_deposited_it() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let mine = scene.request(1, "192.0.2.1", 0);
    let id = share_registry.deposit(&mine, &deposit(7)).expect("taken");
    assert_eq!(id, ShareId::from_key(&key_of(1)));
    assert_eq!(
        share_registry.release(&mine, &id).expect("mine").expose(),
        &[7; 32]
    );
    // An answer that was lost: the same again, and not another.
    assert_eq!(
        share_registry
            .deposit(&mine, &deposit(7))
            .expect("the same"),
        id
    );
    let other = share_registry.deposit(&mine, &deposit(8));
    assert!(matches!(other, Err(EscrowError::Conflict)), "{other:?}");
    let theirs = scene.request(2, "192.0.2.1", 0);
    assert!(matches!(
        share_registry.release(&theirs, &id),
        Err(EscrowError::Unknown)
    ));
    let unknown = ShareId::from_key(&key_of(9));
    assert!(matches!(
        share_registry.release(&mine, &unknown),
        Err(EscrowError::Unknown)
    ));
    // All of it is there after a restart.
    let again = scene.share_registry();
    assert_eq!(again.release(&mine, &id).expect("mine").expose(), &[7; 32]);
    let listed = again.list(scene.now).expect("a list");
    let released = listed[0].entry.released.clone().expect("twice");
    assert_eq!((released.count, released.address), (2, mine.address));
    let text = std::fs::read_to_string(scene.path().join("shares.json")).expect("the list");
    assert!(!text.contains("0707"), "{text}");
    assert!(!format!("{:?} {share_registry:?}", deposit(7)).contains("7, 7"));
}

#[test]
fn a_changed_list_gives_no_key_the_share_of_another() {
    let scene = EscrowTest::new();
    let mine = scene.request(1, "192.0.2.1", 0);
    let id = scene
        .share_registry()
        .deposit(&mine, &deposit(7))
        .expect("taken");
    let path = scene.path().join("shares.json");
    let text = std::fs::read_to_string(&path).expect("the list");
    let text = text.replace(&key_of(1).to_string(), &key_of(2).to_string());
    std::fs::write(&path, text).expect("the folder is ours");
    let thief = scene.request(2, "192.0.2.1", 0);
    let got = scene.share_registry().release(&thief, &id);
    assert!(
        matches!(got, Err(EscrowError::Safe(EscrowVaultError::Failed(_)))),
        "{got:?}"
    );
}

#[test]
fn a_share_that_was_taken_back_is_gone() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let mine = scene.request(1, "192.0.2.1", 0);
    let id = share_registry.deposit(&mine, &deposit(7)).expect("taken");
    assert!(scene.safe.has(&id));
    // While the vault is locked as well: that is when it matters.
    scene.safe.refuse(Some(EscrowVaultError::Locked));
    let locked = share_registry.release(&mine, &id);
    assert!(matches!(
        locked,
        Err(EscrowError::Safe(EscrowVaultError::Locked))
    ));
    for _ in 0..2 {
        share_registry
            .revoke(&id, "admin", Some(1))
            .expect("taken back");
    }
    assert!(!scene.safe.has(&id));
    scene.safe.refuse(None);
    for share_registry in [share_registry, scene.share_registry()] {
        assert!(matches!(
            share_registry.release(&mine, &id),
            Err(EscrowError::Revoked)
        ));
        assert!(matches!(
            share_registry.deposit(&mine, &deposit(7)),
            Err(EscrowError::Revoked)
        ));
        let hour = Duration::from_secs(3600);
        let approved = share_registry.approve(&id, None, hour, "admin", scene.now);
        assert!(matches!(approved, Err(EscrowError::Revoked)));
    }
}

#[test]
fn addresses_and_approvals_bind_a_share() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let home = scene.request(1, "192.0.2.9", 0);
    let bound = ShareDeposit {
        from: vec!["192.0.2.0/24".parse().expect("a range")],
        approve: true,
        ..deposit(7)
    };
    let id = share_registry.deposit(&home, &bound).expect("taken");
    let away = scene.request(1, "203.0.113.9", 0);
    assert!(matches!(
        share_registry.release(&away, &id),
        Err(EscrowError::Address)
    ));
    let nowhere = ShareRequest {
        address: None,
        ..home.clone()
    };
    assert!(matches!(
        share_registry.release(&nowhere, &id),
        Err(EscrowError::Address)
    ));
    assert!(matches!(
        share_registry.release(&home, &id),
        Err(EscrowError::Pending(_))
    ));
    let listed = share_registry.list(home.now).expect("a list").remove(0);
    assert_eq!(listed.waiting, [(Duration::ZERO, home.address)]);
    assert_eq!(listed.refusals, 3);

    let minute = Duration::from_secs(60);
    share_registry
        .approve(&id, None, minute, "admin", home.now)
        .expect("approved");
    assert!(matches!(
        share_registry.release(&away, &id),
        Err(EscrowError::Address)
    ));
    assert!(
        share_registry
            .release(&scene.request(1, "192.0.2.9", 59), &id)
            .is_ok()
    );
    let late = scene.request(1, "192.0.2.9", 60);
    assert!(matches!(
        share_registry.release(&late, &id),
        Err(EscrowError::Pending(_))
    ));
    // A restart forgets what was approved, and not what is asked for.
    share_registry
        .approve(&id, None, minute, "admin", late.now)
        .expect("approved");
    assert!(matches!(
        scene.share_registry().release(&late, &id),
        Err(EscrowError::Pending(_))
    ));
    // Bound otherwise: what was approved before does not count any more.
    let change = ShareChange {
        from: Some(Vec::new()),
        approve: None,
    };
    share_registry
        .change(&id, change, "admin")
        .expect("changed");
    assert!(matches!(
        share_registry.release(&away, &id),
        Err(EscrowError::Pending(_))
    ));
    let free = ShareChange {
        from: None,
        approve: Some(false),
    };
    share_registry.change(&id, free, "admin").expect("changed");
    assert!(share_registry.release(&away, &id).is_ok());
}

/// A copy of the machine's disk asks as the machine does, and goes on asking.
#[test]
fn an_approval_is_for_one_start_of_one_machine() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let at = |address, after_s| scene.request(1, address, after_s);
    let (home, away) = (
        |after_s| at("192.0.2.9", after_s),
        |after_s| at("203.0.113.9", after_s),
    );
    let bound = ShareDeposit {
        approve: true,
        ..deposit(7)
    };
    let id = share_registry.deposit(&home(0), &bound).expect("taken");
    let hour = Duration::from_secs(3600);
    let approve = |address, now| share_registry.approve(&id, address, hour, "admin", now);
    let released = |request: &ShareRequest| match share_registry.release(request, &id) {
        Ok(_) => true,
        Err(EscrowError::Pending(_)) => false,
        Err(other) => panic!("{other:?}"),
    };
    assert!(!released(&away(0)) && !released(&home(1)));
    let listed = share_registry.list(home(1).now).expect("a list").remove(0);
    let waiting = [
        (Duration::from_secs(1), away(0).address),
        (Duration::ZERO, home(1).address),
    ];
    assert_eq!(listed.waiting, waiting);
    let several = approve(None, home(1).now);
    assert!(
        matches!(several, Err(EscrowError::Several(_))),
        "{several:?}"
    );
    assert!(!released(&home(2)));
    approve(home(0).address, home(2).now).expect("approved");
    assert!(!released(&away(3)));
    assert!(released(&home(4)));
    for after_s in 5..8 {
        assert!(!released(&home(after_s)) && !released(&away(after_s)));
    }
    // Only one waits after a while, and one that did not wait gets nothing.
    assert!(!released(&home(400)));
    approve(None, home(400).now).expect("approved");
    assert!(!released(&away(401)) && released(&home(402)));
    // Nothing waits: the next start is meant, wherever the machine comes from.
    approve(None, home(403).now).expect("approved");
    assert!(released(&away(404)) && !released(&home(405)));
}

/// Peers with a share each ask as often as they may, and use up what all may have.
#[test]
fn shares_that_are_asked_for_often_leave_the_others_theirs() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let at = |key| scene.request(key, "192.0.2.1", 0);
    let ids: Vec<_> = (0..21)
        .map(|key| {
            share_registry
                .deposit(&at(key), &deposit(7))
                .expect("taken")
        })
        .collect();
    let mut released = 0;
    for _ in 0..RELEASES_PER_MINUTE {
        for key in 0..20 {
            let outcome = share_registry.release(&at(key), &ids[usize::from(key)]);
            released += usize::from(outcome.is_ok());
        }
    }
    // The first release of each needs no room among those of all.
    assert_eq!(released, 20 + RELEASES_PER_MINUTE_ALL / 4 * 3);
    share_registry
        .release(&at(20), &ids[20])
        .expect("a machine that starts");
}

/// More hostile shares than are needed to use up also the releases that the node keeps for shares without a release in
/// that minute.
#[test]
fn shares_of_many_hostile_peers_leave_a_machine_its_start() {
    // As many as use up the releases of a minute: fifteen as often as each may, and thirty once.
    const HOSTILE: u16 = 45;
    const RESERVED: usize = RELEASES_PER_MINUTE_ALL / 4;
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let at = |key, after_s| scene.request(key, "192.0.2.1", after_s);
    let ids: Vec<_> = (0..=HOSTILE)
        .map(|key| {
            share_registry
                .deposit(&at(key, 0), &deposit(7))
                .expect("taken")
        })
        .collect();
    let release =
        |key: u16, after_s| share_registry.release(&at(key, after_s), &ids[usize::from(key)]);
    // What needs no room is used up: all releases of the next minutes count.
    for key in 0..HOSTILE {
        release(key, 0).expect("the first one");
    }
    let use_up = |after_s| {
        let again = (RELEASES_PER_MINUTE_ALL - RESERVED) / RELEASES_PER_MINUTE;
        let again = u16::try_from(again).expect("a small number");
        let often = (0..RELEASES_PER_MINUTE).flat_map(|_| 0..again);
        let released = often
            .chain(again..HOSTILE)
            .filter(|key| release(*key, after_s).is_ok());
        assert_eq!(released.count(), RELEASES_PER_MINUTE_ALL, "{after_s}");
    };
    use_up(61);
    release(HOSTILE, 61).expect("a machine that starts");
    use_up(122);
    let wait = match release(HOSTILE, 122) {
        Err(EscrowError::Rate(wait)) => wait,
        other => panic!("{other:?}"),
    };
    assert_eq!(wait, Duration::from_secs(60));
    // Hostile peers go on; after the interval the machine needs none of these releases.
    let interval = RELEASE_INTERVAL.as_secs();
    use_up(61 + interval - 1);
    match release(HOSTILE, 61 + interval - 1) {
        Err(EscrowError::Rate(wait)) => assert_eq!(wait, Duration::from_secs(1)),
        other => panic!("{other:?}"),
    }
    release(HOSTILE, 61 + interval).expect("it starts again");
}

#[test]
fn releases_are_counted_by_the_minute() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let at = |after_s| scene.request(1, "192.0.2.1", after_s);
    let id = share_registry.deposit(&at(0), &deposit(7)).expect("taken");
    for _ in 0..RELEASES_PER_MINUTE {
        share_registry.release(&at(0), &id).expect("in time");
    }
    let wait = match share_registry.release(&at(59), &id) {
        Err(EscrowError::Rate(wait)) => wait,
        other => panic!("{other:?}"),
    };
    assert_eq!(wait, Duration::from_secs(1));
    share_registry
        .release(&at(60), &id)
        .expect("a minute later");
}

#[test]
fn there_is_an_end_to_the_room_and_the_revoked_make_some() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let key = |n: usize| u16::try_from(n).expect("a small number");
    // One write for all but the last: the file is written whole each time.
    let entries = (0..SHARES_MAX).map(|n| ShareEntry {
        id: ShareId::from_key(&key_of(key(n))),
        key: key_of(key(n)),
        peer: "peer".parse().expect("a peer id"),
        vault: "v".to_owned(),
        made: None,
        from: Vec::new(),
        approve: false,
        released: None,
        revoked: None,
    });
    let mut entries: Vec<_> = entries.collect();
    entries.sort_by(|a, b| a.id.cmp(&b.id));
    drop(share_registry);
    index::ShareIndex::at(&scene.path())
        .store(entries)
        .expect("the folder is ours");
    let share_registry = scene.share_registry();
    let new = scene.request(key(SHARES_MAX), "192.0.2.1", 0);
    assert!(matches!(
        share_registry.deposit(&new, &deposit(7)),
        Err(EscrowError::Full)
    ));
    let gone = ShareId::from_key(&key_of(3));
    share_registry
        .revoke(&gone, "admin", Some(1))
        .expect("taken back");
    share_registry
        .deposit(&new, &deposit(7))
        .expect("there is room");
    let left = share_registry.list(scene.now).expect("a list");
    assert_eq!(left.len(), SHARES_MAX);
    assert!(left.iter().all(|one| one.entry.id != gone));
}

#[test]
fn people_name_shares_by_their_peers() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let one = share_registry
        .deposit(&scene.request(1, "", 0), &deposit(1))
        .expect("taken");
    let two = share_registry
        .deposit(&scene.request(2, "", 0), &deposit(2))
        .expect("taken");
    let names = |entry: &ShareEntry| Some(format!("{}-vault", entry.peer));
    let same = |_: &ShareEntry| Some("kitchen".to_owned());
    assert_eq!(
        share_registry.find_id(one.as_str(), names).expect("an id"),
        one
    );
    assert_eq!(
        share_registry.find_id("peer-2", names).expect("a peer"),
        two
    );
    assert_eq!(
        share_registry
            .find_id("peer-2-vault", names)
            .expect("a name"),
        two
    );
    assert!(matches!(
        share_registry.find_id("cellar", names),
        Err(EscrowError::Unknown)
    ));
    assert!(matches!(
        share_registry.find_id("kitchen", same),
        Err(EscrowError::Ambiguous)
    ));
    share_registry
        .revoke(&one, "admin", None)
        .expect("taken back");
    assert_eq!(
        share_registry
            .find_id("kitchen", same)
            .expect("the one that is left"),
        two
    );
}

#[test]
fn a_damaged_list_releases_nothing_and_stays_as_it_is() {
    let scene = EscrowTest::new();
    let mine = scene.request(1, "192.0.2.1", 0);
    let id = scene
        .share_registry()
        .deposit(&mine, &deposit(7))
        .expect("taken");
    let path = scene.path().join("shares.json");
    let whole = std::fs::read_to_string(&path).expect("the list");
    let newer = whole.replace("\"escrow\":1", "\"escrow\":2");
    for damaged in [&whole[..whole.len() - 3], "", "{}", "[]", &newer] {
        std::fs::write(&path, damaged).expect("the folder is ours");
        let share_registry = scene.share_registry();
        assert!(share_registry.broken().is_some(), "{damaged}");
        assert!(share_registry.release(&mine, &id).is_err());
        assert!(
            share_registry
                .deposit(&scene.request(2, "", 0), &deposit(1))
                .is_err()
        );
        assert_eq!(std::fs::read_to_string(&path).expect("there"), damaged);
    }
    std::fs::write(&path, whole).expect("the folder is ours");
    assert!(scene.share_registry().release(&mine, &id).is_ok());
}

#[test]
fn nothing_is_released_that_cannot_be_written_down() {
    let scene = EscrowTest::new();
    let share_registry = scene.share_registry();
    let mine = scene.request(1, "192.0.2.1", 0);
    let id = share_registry.deposit(&mine, &deposit(7)).expect("taken");
    let hidden = scene.dir.path().join("elsewhere");
    std::fs::rename(scene.path(), &hidden).expect("the folder is ours");
    std::fs::write(scene.path(), "in the way").expect("the folder is ours");
    let got = share_registry.release(&mine, &id);
    assert!(matches!(got, Err(EscrowError::Index(_))), "{got:?}");
    std::fs::remove_file(scene.path()).expect("ours");
    std::fs::rename(&hidden, scene.path()).expect("ours");
    assert!(share_registry.release(&mine, &id).is_ok());
    assert!(Path::new(&scene.path()).is_dir());
}

#[test]
fn ids_and_shares_have_one_form() {
    let id = ShareId::from_key(&key_of(1));
    assert_eq!(id.as_str().parse(), Ok(id.clone()));
    for bad in [
        "",
        "abc",
        "ABCDEFGHIJKL",
        "abcdefghijkw",
        "abcdefghijkl0",
        "../../../../",
    ] {
        assert!(bad.parse::<ShareId>().is_err(), "{bad}");
    }
    let share: KeyShare = serde_json::from_str(&format!("\"{}\"", "0a".repeat(32))).expect("one");
    assert_eq!(share.expose(), &[10; 32]);
    assert_eq!(
        serde_json::to_string(&share).expect("text"),
        format!("\"{}\"", "0a".repeat(32))
    );
    for bad in [
        "0a".repeat(31),
        "0A".repeat(32),
        "zz".repeat(32),
        "0a".repeat(33),
    ] {
        let error = serde_json::from_str::<KeyShare>(&format!("\"{bad}\"")).expect_err("none");
        assert!(!error.to_string().contains(&bad[..8]), "{error}");
    }
}

/// Both have no room for additions: each needs a new format.
#[test]
fn the_first_formats_of_the_list_and_of_a_share_are_read() {
    const LIST: &str = r#"{"escrow":1,"shares":[{"id":"ID","key":"ed25519:0001000000000000000000000000000000000000000000000000000000000000","peer":"peer-1","vault":"f0f1f2f3-f4f5-46f7-b8f9-fafbfcfdfeff","made":1800000000,"from":["192.0.2.0/24"],"approve":false,"released":{"count":2,"time":1800000100,"address":"192.0.2.1"}}]}"#;
    let scene = EscrowTest::new();
    let id = ShareId::from_key(&key_of(1));
    std::fs::create_dir_all(scene.path()).expect("the folder is ours");
    let path = scene.path().join("shares.json");
    let list = LIST.replace("ID", id.as_str());
    std::fs::write(&path, &list).expect("the folder is ours");
    // The number of the format, the key, and the share.
    let mut sealed = vec![1, 0, 1];
    sealed.resize(33, 0);
    sealed.resize(65, 7);
    scene.safe.put(&id, &sealed).expect("it is open");
    let mine = scene.request(1, "192.0.2.1", 200);
    let released = scene.share_registry().release(&mine, &id);
    assert_eq!(released.expect("mine").expose(), &[7; 32]);
    let later = list.replace(r#""escrow":1,"#, r#""escrow":1,"later":1,"#);
    std::fs::write(&path, later).expect("the folder is ours");
    let refused = scene.share_registry().release(&mine, &id);
    assert!(refused.is_err(), "{refused:?}");
    std::fs::write(&path, list).expect("the folder is ours");
    sealed[0] = 2;
    scene.safe.put(&id, &sealed).expect("it is open");
    let refused = scene.share_registry().release(&mine, &id);
    assert!(refused.is_err(), "{refused:?}");
}
