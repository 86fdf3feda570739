use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use super::*;
use crate::identity::IdentityKind;
use crate::rotation::{OVERLAP_S, RotationError};

mod busy;

/// What a store in memory answers is there at once.
fn now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
    {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("not ready"),
    }
}

/// Zero is a clock that is not sane.
#[derive(Default)]
struct IdentityTestClock(AtomicU64);

impl Clock for IdentityTestClock {
    fn now_s(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|now| *now > 0)
    }
}

fn key(n: u8) -> PeerKey {
    PeerKey::Ed25519([n; 32])
}

fn id(text: &str) -> PeerId {
    text.parse().expect("a peer id")
}

fn peer(name: &str, keys: &[u8]) -> PeerEntry {
    PeerEntry {
        keys: keys.iter().copied().map(key).collect(),
        scopes: ["fs:read:*"].into_iter().collect(),
        ..PeerEntry::new(id(name))
    }
}

fn api_key(token: &AuthToken) -> ApiKey {
    ApiKey {
        scopes: ["metrics:read"].into_iter().collect(),
        ..ApiKey::new(token.hash().expect("a token"))
    }
}

fn identities_with(peers: Vec<PeerEntry>) -> (Identities, Arc<IdentityTestClock>) {
    let clock = Arc::new(IdentityTestClock::default());
    let entries = IdentityEntries {
        admins: vec![(id("admin"), key(100))],
        peers,
        api_keys: Vec::new(),
    };
    (Identities::new(entries, clock.clone()), clock)
}

#[test]
fn administrators_may_do_everything_peers_what_their_entry_says() {
    let mut disabled = peer("gone", &[5]);
    disabled.enabled = false;
    let (all, _) = identities_with(vec![peer("edge", &[3, 4]), disabled]);
    let admin = all.by_key(&key(100)).expect("an administrator");
    assert!(admin.id.as_str() == "admin" && admin.scopes.allows("node:anything"));
    for n in [3, 4] {
        let found = all.by_key(&key(n)).expect("a peer");
        assert_eq!(
            (found.id.as_str(), found.kind),
            ("edge", IdentityKind::Peer)
        );
        assert!(found.scopes.allows("fs:read:docs") && !found.scopes.allows("admin"));
    }
    assert!(all.by_key(&key(5)).is_none(), "disabled");
    assert!(all.by_key(&key(6)).is_none(), "unknown");
    assert!(
        all.by_key(&PeerKey::Spki([3; 32])).is_none(),
        "of another kind"
    );
}

#[test]
fn a_token_stands_for_its_peer_or_for_itself() {
    let (mine, program) = (AuthToken::generate(), AuthToken::generate());
    let (mine, program) = (mine.expect("randomness"), program.expect("randomness"));
    let mut edge = peer("edge", &[1]);
    edge.token_hashes.push(mine.hash().expect("a token"));
    let (all, _) = identities_with(vec![edge]);
    now(all.put_api_key(api_key(&program))).expect("a new name");

    let found = all.by_token(&mine).expect("a token of a peer");
    assert_eq!(
        (found.id.as_str(), found.kind),
        ("edge", IdentityKind::Token)
    );
    assert_eq!(
        all.by_token_hash(&mine.hash().expect("a token")),
        Some(found)
    );
    let found = all.by_token(&program).expect("a token of a program");
    let name = program.hash().expect("a token").key_id;
    assert_eq!(found.id.as_str(), format!("key:{name}"));
    assert!(found.scopes.allows("metrics:read") && !found.scopes.allows("fs:read:x"));
    let hash = program.hash().expect("a token");
    assert_eq!(all.by_token_hash(&hash), Some(found));

    // The same name with another secret is another token.
    let forged = format!("{}{}", &program.expose()[..13], &mine.expose()[13..]);
    let forged = AuthToken::new(forged);
    assert!(all.by_token(&forged).is_none());
    let other = forged.hash().expect("the form of a token");
    assert_eq!(other.key_id, hash.key_id);
    assert_eq!(all.by_token_hash(&other), None);
    assert!(
        all.by_token(&AuthToken::new("nonsense".to_owned()))
            .is_none()
    );
    assert_eq!(now(all.remove_api_key(name)), Ok(true));
    assert!(all.by_token(&program).is_none());
    assert_eq!(all.by_token_hash(&hash), None);
}

#[test]
fn a_token_ends_with_its_maker() {
    let maker = |name: &str, keys: &[u8]| PeerEntry {
        scopes: ["fs:read:*", "metrics:*"].into_iter().collect(),
        ..peer(name, keys)
    };
    let mut lent = maker("lent", &[1]);
    lent.expires = Some(1000);
    let (all, clock) = identities_with(vec![lent]);
    clock.0.store(500, Ordering::Relaxed);
    now(all.put(maker("stored", &[2]))).expect("a new peer");
    let made_by = |maker: &str, admin: Option<PeerKey>| {
        let token = AuthToken::generate().expect("randomness");
        now(all.put_api_key(ApiKey {
            created_by: Some(maker.to_owned()),
            created_by_key: admin,
            ..api_key(&token)
        }))
        .expect("a new name");
        token
    };
    let good = |token: &AuthToken| all.by_token(token).is_some();
    let name = |token: &AuthToken| format!("key:{}", token.hash().expect("a token").key_id);
    let (by_lent, by_stored) = (made_by("lent", None), made_by("stored", None));
    let by_token = made_by(&name(&by_stored), None);
    let by_admin = made_by("admin", Some(key(100)));
    for token in [&by_lent, &by_stored, &by_token, &by_admin] {
        assert!(good(token));
    }
    assert!(!good(&made_by("nobody", None)));
    assert_eq!(all.token_ends_in(&by_lent), Some(Duration::from_secs(500)));
    clock.0.store(1000, Ordering::Relaxed);
    assert!(!good(&by_lent) && good(&by_stored));
    // Another administrator has the same name afterwards.
    all.replace_config(IdentityEntries {
        admins: vec![(id("admin"), key(101))],
        ..IdentityEntries::default()
    });
    assert!(!good(&by_admin) && good(&by_token));
    // A peer that is removed and let in again has none of them back.
    let enabled = |enabled| PeerPatch {
        enabled: Some(enabled),
        ..PeerPatch::default()
    };
    let scopes = |scopes: &[&str]| PeerPatch {
        scopes: Some(scopes.iter().collect()),
        ..PeerPatch::default()
    };
    now(all.patch(id("stored"), scopes(&["fs:read:*"]))).expect("a peer");
    assert!(!good(&by_stored) && !good(&by_token), "more than it holds");
    now(all.patch(id("stored"), scopes(&["metrics:*"]))).expect("a peer");
    assert!(good(&by_stored) && good(&by_token));
    now(all.patch(id("stored"), enabled(false))).expect("a peer");
    let late = AuthToken::generate().expect("randomness");
    let late = now(all.put_api_key(ApiKey {
        created_by: Some("stored".to_owned()),
        ..api_key(&late)
    }));
    assert!(late.is_err(), "it was removed meanwhile");
    now(all.patch(id("stored"), enabled(true))).expect("a peer");
    assert!(all.by_id_text("stored").is_some() && !good(&by_stored) && !good(&by_token));
    let chain = (0..=MAKERS_MAX).fold(made_by("stored", None), |maker, _| {
        made_by(&name(&maker), None)
    });
    assert!(!good(&chain), "no circle, however it came into the store");
}

/// A token that this peer made by this key.
fn made_by_key(all: &Identities, maker: &str, made_by: Option<u8>) -> AuthToken {
    let token = AuthToken::generate().expect("randomness");
    let made = ApiKey {
        scopes: ["fs:read:docs"].into_iter().collect(),
        created_by: Some(maker.to_owned()),
        created_by_key: made_by.map(key),
        ..api_key(&token)
    };
    now(all.put_api_key(made)).expect("a new name");
    token
}

/// It is taken out of the document, or gets another key there, and then another one has its name.
#[test]
fn a_token_does_not_pass_to_another_peer_of_the_same_name() {
    let (all, _) = identities_with(vec![peer("mate", &[1, 2])]);
    let configured = |peers: Vec<PeerEntry>| {
        all.replace_config(IdentityEntries {
            peers,
            ..IdentityEntries::default()
        });
    };
    let (token, older) = (
        made_by_key(&all, "mate", Some(1)),
        made_by_key(&all, "mate", None),
    );
    let child = format!("key:{}", token.hash().expect("a token").key_id);
    let child = made_by_key(&all, &child, None);
    let good = || [&token, &child, &older].map(|token| all.by_token(token).is_some());
    assert_eq!(good(), [true; 3]);
    configured(Vec::new());
    assert_eq!(good(), [false; 3]);
    // What an earlier version wrote has no key, and is its maker's by the name.
    let named_alone = [false, false, true];
    for others in [
        vec![peer("mate", &[3])],
        vec![peer("mate", &[2])],
        vec![peer("mate", &[3]), peer("other", &[1])],
    ] {
        configured(others);
        assert_eq!(good(), named_alone);
    }
    configured(vec![peer("mate", &[1])]);
    assert_eq!(good(), [true; 3], "the same one is back");
    configured(Vec::new());
    now(all.put(peer("mate", &[4]))).expect("a new peer");
    assert_eq!(good(), named_alone, "one of the store");
    // With it go those that its name has.
    assert_eq!(now(all.remove(id("mate"))), Ok(true));
    configured(vec![peer("mate", &[1])]);
    assert_eq!(good(), [false; 3], "they are gone for good");
}

/// The entry of the store forgets the first key at the second rotation; the document has both keys for a while.
#[test]
fn a_token_outlives_the_rotation_of_its_makers_key() {
    let (all, clock) = identities_with(vec![peer("fixed", &[11, 12])]);
    now(all.put(peer("edge", &[1]))).expect("a new peer");
    let tokens = [
        made_by_key(&all, "edge", Some(1)),
        made_by_key(&all, "fixed", Some(11)),
    ];
    let good = || [0, 1].map(|n: usize| all.by_token(&tokens[n]).is_some());
    let mut time = 1000;
    for (old, new) in [(1, 2), (2, 3)] {
        clock.0.store(time, Ordering::Relaxed);
        now(all.rotate(id("edge"), key(old), key(new))).expect("a peer with this key");
        time += OVERLAP_S;
        clock.0.store(time, Ordering::Relaxed);
        assert!(all.by_key(&key(old)).is_none(), "it has ended");
        assert_eq!(good(), [true; 2], "{old}");
    }
    assert_eq!(now(all.rotate(id("fixed"), key(11), key(12))), Ok(None));
    let configured = |keys: &[u8]| {
        all.replace_config(IdentityEntries {
            peers: vec![peer("fixed", keys)],
            ..IdentityEntries::default()
        });
    };
    configured(&[12]);
    assert_eq!(good(), [true; 2]);
    // A key that was taken out hands nothing on.
    configured(&[13]);
    assert_eq!(now(all.rotate(id("fixed"), key(12), key(13))), Ok(None));
    assert_eq!(good(), [true, false]);
}

#[test]
fn an_end_counts_once_the_clock_is_sane() {
    let mut short = peer("short", &[1]);
    short.expires = Some(1000);
    let (all, clock) = identities_with(vec![short, peer("long", &[2])]);
    let known = |now: u64| {
        clock.0.store(now, Ordering::Relaxed);
        (all.by_key(&key(1)).is_some(), all.by_key(&key(2)).is_some())
    };
    assert_eq!(known(0), (false, true), "no right can tell");
    assert_eq!(known(999), (true, true));
    assert_eq!(known(1000), (false, true));
}

/// A holder of an identity sees by its generation that it is out of date, as soon as the change is made.
#[test]
fn an_identity_has_the_number_of_the_table_it_is_from() {
    let (all, _) = identities_with(vec![peer("edge", &[1])]);
    let identity = all.by_key(&key(1)).expect("known");
    assert_eq!(all.table(), Some(identity.generation));
    all.replace_config(IdentityEntries {
        peers: vec![peer("edge", &[1]), peer("other", &[2])],
        ..IdentityEntries::default()
    });
    assert_ne!(all.table(), Some(identity.generation));
    for known in [1, 2] {
        let now = all.by_key(&key(known)).expect("known");
        assert_eq!(all.table(), Some(now.generation), "{known}");
    }
}

#[test]
fn a_change_is_announced_with_its_generation() {
    let (all, _) = identities_with(vec![peer("edge", &[1])]);
    let mut watch = all.watch();
    all.replace_config(IdentityEntries::default());
    assert!(watch.has_changed().expect("the provider lives"));
    assert_eq!(*watch.borrow_and_update(), 2);
    assert!(all.by_key(&key(1)).is_none());
    now(all.put(peer("edge", &[1]))).expect("a new peer");
    assert_eq!(*watch.borrow_and_update(), 3);
    assert_eq!(all.by_key(&key(1)).map(|found| found.generation), Some(3));
    assert!(now(all.put(peer("other", &[1]))).is_err());
    assert!(
        !watch.has_changed().expect("the provider lives"),
        "nothing changed"
    );
}

#[test]
fn rotation_is_one_name_with_two_keys_and_then_one() {
    let (all, _) = identities_with(Vec::new());
    let holder_of = |n| all.by_key(&key(n)).map(|found| found.id.to_string());
    now(all.put(peer("edge", &[1]))).expect("a new peer");
    let keys = |keys: &[u8]| PeerPatch {
        keys: Some(keys.iter().copied().map(key).collect()),
        ..PeerPatch::default()
    };
    now(all.patch(id("edge"), keys(&[1, 2]))).expect("a peer");
    assert_eq!(
        (holder_of(1), holder_of(2)),
        (Some("edge".into()), Some("edge".into()))
    );
    now(all.patch(id("edge"), keys(&[2]))).expect("a peer");
    assert_eq!((holder_of(1), holder_of(2)), (None, Some("edge".into())));
}

#[test]
fn entries_of_the_configuration_win_and_are_read_only() {
    let (all, _) = identities_with(vec![peer("edge", &[1])]);
    let read_only = Err(IdentityStoreError::ReadOnly(id("edge")));
    assert_eq!(now(all.put(peer("edge", &[2]))), read_only);
    assert_eq!(
        now(all.put(peer("other", &[1]))),
        Err(IdentityStoreError::KeyTaken(key(1), id("edge")))
    );
    assert_eq!(
        now(all.put(peer("other", &[100]))),
        Err(IdentityStoreError::KeyTaken(key(100), id("admin")))
    );
    let unknown = Err(IdentityStoreError::Unknown(id("nobody")));
    assert_eq!(now(all.patch(id("nobody"), PeerPatch::default())), unknown);
    // What the configuration names later hides what the store has, and gives it back.
    now(all.put(peer("late", &[7]))).expect("a new peer");
    let config = IdentityEntries {
        peers: vec![peer("late", &[8])],
        ..IdentityEntries::default()
    };
    let would_be = all.preview(&config, &key(8)).expect("a peer");
    assert_eq!(would_be.id.as_str(), "late");
    all.replace_config(config);
    assert!(all.by_key(&key(7)).is_none() && all.by_key(&key(8)).is_some());
    assert_eq!(all.entries().peers.len(), 1);
    all.replace_config(IdentityEntries::default());
    assert!(all.by_key(&key(7)).is_some());
    assert_eq!(now(all.list()).map(|peers| peers.len()), Ok(1));
    assert_eq!(now(all.remove(id("late"))), Ok(true));
    assert_eq!(now(all.remove(id("late"))), Ok(false));
}

#[test]
fn a_token_has_one_holder() {
    let token = AuthToken::generate().expect("randomness");
    let mut holder = peer("edge", &[1]);
    holder.token_hashes.push(token.hash().expect("a token"));
    let mut other = peer("other", &[2]);
    other.token_hashes.clone_from(&holder.token_hashes);
    let (all, _) = identities_with(vec![holder]);
    let refusal = Err(IdentityStoreError::TokenTaken(
        token.hash().expect("a token").key_id,
    ));
    assert_eq!(now(all.put(other)), refusal);
    assert_eq!(now(all.put_api_key(api_key(&token))), refusal);
}

#[test]
fn a_peer_may_have_a_number_of_connections_of_its_own() {
    let mut one = peer("one", &[1]);
    one.max_connections = Some(1);
    let (all, _) = identities_with(vec![one, peer("any", &[2])]);
    assert_eq!(all.max_connections(&id("one")), Some(1));
    assert_eq!(all.max_connections(&id("any")), None);
}

#[test]
fn peers_are_found_by_id_and_by_alias() {
    let called = |name: &str, alias: &str, keys: &[u8]| PeerEntry {
        display_name: Some(alias.to_owned()),
        ..peer(name, keys)
    };
    let (identities, _) = identities_with(vec![called("fixed", "The one in the cellar", &[1])]);
    now(identities.put(called("p1", "kitchen", &[2]))).expect("a new peer");
    now(identities.put(called("p2", "p1", &[3]))).expect("a new peer");
    now(identities.put(called("p3", "kitchen", &[4]))).expect("a new peer");
    for (name, holder) in [
        ("admin", Some("admin")),
        ("fixed", Some("fixed")),
        ("The one in the cellar", None),
        // No alias hides an id, and the first holder of an alias keeps it.
        ("p1", Some("p1")),
        ("kitchen", Some("p1")),
        ("p3", Some("p3")),
        ("attic", None),
    ] {
        assert_eq!(identities.by_name(name), holder.map(id), "{name}");
    }
    let patch = PeerPatch {
        enabled: Some(false),
        ..PeerPatch::default()
    };
    now(identities.patch(id("p1"), patch)).expect("a known peer");
    assert_eq!(identities.by_name("kitchen"), Some(id("p3")));
}

#[test]
fn a_replaced_key_ends_by_the_clock_alone() {
    let (all, clock) = identities_with(vec![peer("fixed", &[7, 8])]);
    let set = |now: u64| clock.0.store(now, Ordering::Relaxed);
    let holder_of = |n| all.by_key(&key(n)).map(|found| found.id.to_string());
    let edge = Some("edge".to_owned());
    now(all.put(peer("edge", &[1]))).expect("a new peer");
    let rotate = |name, old, new| now(all.rotate(id(name), key(old), key(new)));
    assert_eq!(rotate("edge", 1, 2), Err(IdentityStoreError::ClockUnset));
    set(1000);
    let ends = 1000 + OVERLAP_S;
    assert_eq!(rotate("edge", 1, 2), Ok(Some(ends)));
    let generation = all.generation();
    assert_eq!(rotate("edge", 1, 2), Ok(Some(ends)), "asked again");
    assert_eq!(all.generation(), generation, "and nothing changed");
    set(ends - 1);
    assert_eq!((holder_of(1), holder_of(2)), (edge.clone(), edge.clone()));
    set(ends);
    assert_eq!((holder_of(1), holder_of(2)), (None, edge));

    let refusal = IdentityStoreError::KeyTaken(key(7), id("fixed"));
    assert_eq!(rotate("edge", 2, 7), Err(refusal));
    assert_eq!(
        rotate("nobody", 2, 3),
        Err(IdentityStoreError::Unknown(id("nobody")))
    );
    // People rotate what they wrote.
    assert_eq!(
        rotate("fixed", 7, 9),
        Err(IdentityStoreError::ReadOnly(id("fixed")))
    );
    assert_eq!(rotate("fixed", 7, 8), Ok(None));
    assert_eq!(
        rotate("admin", 100, 9),
        Err(IdentityStoreError::ReadOnly(id("admin")))
    );
    assert_eq!(rotate("fixed", 7, 7), Err(RotationError::Same.into()));
}

#[test]
fn entries_hidden_by_the_configuration_are_reported() {
    let (all, _) = identities_with(Vec::new());
    for one in [
        peer("same", &[1]),
        peer("other", &[2, 3]),
        peer("free", &[4]),
    ] {
        now(all.put(one)).expect("a new peer");
    }
    let config = IdentityEntries {
        admins: vec![(id("admin"), key(3))],
        peers: vec![peer("same", &[9]), peer("new", &[2])],
        api_keys: Vec::new(),
    };
    let hidden: Vec<_> = all
        .hidden_by(&config)
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(hidden, [id("same"), id("other"), id("other")]);
    assert!(all.hidden_by(&IdentityEntries::default()).is_empty());
    // The administrator keeps the key, and the name of one peer is free again.
    let after = IdentityEntries {
        peers: Vec::new(),
        ..config.clone()
    };
    let uncovered: Vec<_> = all.uncovered_by(&config, &after);
    let names: Vec<_> = uncovered.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(names, [id("same"), id("other")]);
    assert!(
        uncovered[1].1.contains(&key(2).to_string()),
        "{uncovered:?}"
    );
    assert!(all.uncovered_by(&after, &config).is_empty());
    assert!(all.uncovered_by(&config, &config).is_empty());
}

/// A store that refuses.
struct RefusingPersistence;

impl IdentityPersistence for RefusingPersistence {
    fn persist(&self, _: &[StoreChange]) -> Result<(), IdentityStoreError> {
        Err(IdentityStoreError::Unavailable(
            "the disk is full".to_owned(),
        ))
    }
}

#[tokio::test]
async fn what_is_not_kept_does_not_count() {
    let stored = StoredIdentities {
        peers: vec![peer("edge", &[1])],
        ..StoredIdentities::default()
    };
    let clock = Arc::new(IdentityTestClock::default());
    let all = Identities::with_store(
        IdentityEntries::default(),
        stored,
        Arc::new(RefusingPersistence),
        clock,
    );
    assert!(all.by_key(&key(1)).is_some());
    let full = Err(IdentityStoreError::Unavailable(
        "the disk is full".to_owned(),
    ));
    assert_eq!(all.put(peer("other", &[2])).await, full);
    assert!(all.by_key(&key(2)).is_none() && all.generation() == 1);
    assert_eq!(all.remove(id("nobody")).await, Ok(false), "nothing to keep");
}

#[test]
fn a_peer_is_found_by_its_name_while_it_is_admitted() {
    let token = AuthToken::generate().expect("randomness");
    let (all, clock) = identities_with(vec![peer("edge", &[1])]);
    now(all.put_api_key(ApiKey {
        expires: Some(100),
        ..api_key(&token)
    }))
    .expect("a new token");
    let tool = api_key(&token).id();
    assert!(
        all.by_id(&id("admin"))
            .is_some_and(|identity| identity.scopes.allows("x"))
    );
    assert!(all.by_id(&id("edge")).is_some() && all.by_id(&id("nobody")).is_none());
    clock.0.store(99, Ordering::Relaxed);
    assert!(all.by_id(&tool).is_some_and(|identity| identity.id == tool));
    clock.0.store(100, Ordering::Relaxed);
    assert!(all.by_id(&tool).is_none(), "it has ended");
}

#[test]
fn a_token_is_taken_back_wherever_it_hangs() {
    let made: Vec<_> = (0..3)
        .map(|_| AuthToken::generate().expect("randomness"))
        .collect();
    let hash = |n: usize| made[n].hash().expect("a token");
    let (all, _) = identities_with(vec![PeerEntry {
        token_hashes: vec![hash(0)],
        ..peer("fixed", &[1])
    }]);
    now(all.put_api_key(api_key(&made[1]))).expect("a new token");
    now(all.put(PeerEntry {
        token_hashes: vec![hash(2)],
        ..peer("edge", &[2])
    }))
    .expect("a new peer");
    let revoke = |n: usize| now(all.revoke_token(hash(n).key_id));
    assert_eq!(revoke(0), Err(IdentityStoreError::ReadOnly(id("fixed"))));
    for n in [1, 2] {
        assert!(all.by_token(&made[n]).is_some());
        assert_eq!(revoke(n), Ok(true));
        assert!(all.by_token(&made[n]).is_none());
        assert_eq!(revoke(n), Ok(false));
    }
    assert!(all.by_key(&key(2)).is_some(), "the peer stays");
    assert!(all.by_token(&made[0]).is_some());
}

/// A store that remembers.
#[derive(Default)]
struct RecordingPersistence(Mutex<Vec<StoreChange>>);

impl IdentityPersistence for RecordingPersistence {
    fn persist(&self, changes: &[StoreChange]) -> Result<(), IdentityStoreError> {
        self.0.lock().expect("whole").extend_from_slice(changes);
        Ok(())
    }
}

#[tokio::test]
async fn the_day_of_the_last_use_is_stored_and_changes_no_right() {
    let token = AuthToken::generate().expect("randomness");
    let key_id = token.hash().expect("a token").key_id;
    let (clock, paper) = (
        Arc::new(IdentityTestClock::default()),
        Arc::new(RecordingPersistence::default()),
    );
    let stored = StoredIdentities {
        api_keys: vec![ApiKey {
            used_day: Some(3),
            ..api_key(&token)
        }],
        ..StoredIdentities::default()
    };
    let all = Identities::with_store(
        IdentityEntries::default(),
        stored,
        paper.clone(),
        clock.clone(),
    );
    assert_eq!(all.used_day(&key_id), Some(3));
    all.keep_uses().await.expect("nothing to keep");
    clock.0.store(86_400 * 20_000 + 7, Ordering::Relaxed);
    assert!(all.by_token(&token).is_some());
    // A new table knows it, too.
    all.put(peer("edge", &[1])).await.expect("a new peer");
    assert_eq!(all.used_day(&key_id), Some(20_000));
    let generation = all.generation();
    for _ in 0..2 {
        all.keep_uses().await.expect("room");
    }
    assert_eq!(all.generation(), generation);
    let stored_changes = paper.0.lock().expect("whole").clone();
    let Some(StoreChange::PutApiKey(last)) = stored_changes.last() else {
        panic!("{stored_changes:?}");
    };
    assert_eq!((last.used_day, stored_changes.len()), (Some(20_000), 2));
}
