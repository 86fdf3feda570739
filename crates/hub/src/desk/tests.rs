use std::time::Duration;

use alknet_core::{BoxFuture, Clock, Entries, Identities, IdentityProvider, KeyId};

use super::*;
use crate::fingerprint::fingerprint;
use crate::names::NamePattern;
use crate::store::{MemoryTokens, TokenStoreError};

struct Noon;

impl Clock for Noon {
    fn now_s(&self) -> Option<u64> {
        Some(NOW)
    }
}

const NOW: u64 = 1_800_000_000;

/// A hub in memory, and what time it is there.
struct Hub {
    desk: Desk,
    peers: Arc<Identities>,
    start: Instant,
}

fn key(n: u8) -> PeerKey {
    PeerKey::Ed25519([n; 32])
}

/// As a store on a disk is: others get their turn before it answers.
#[derive(Default)]
struct Slow(MemoryTokens);

impl TokenStore for Slow {
    fn put(&self, record: TokenRecord) -> BoxFuture<'_, Result<(), TokenStoreError>> {
        self.0.put(record)
    }

    fn get(&self, name: KeyId) -> BoxFuture<'_, Result<Option<TokenRecord>, TokenStoreError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.0.get(name).await
        })
    }

    fn replace(&self, record: TokenRecord) -> BoxFuture<'_, Result<bool, TokenStoreError>> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.0.replace(record).await
        })
    }

    fn remove(&self, name: KeyId) -> BoxFuture<'_, Result<bool, TokenStoreError>> {
        self.0.remove(name)
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<TokenRecord>, TokenStoreError>> {
        self.0.list()
    }
}

fn hub(mode: EnrolMode) -> Hub {
    hub_of(Arc::new(MemoryTokens::default()), mode)
}

fn hub_of(tokens: Arc<dyn TokenStore>, mode: EnrolMode) -> Hub {
    let entries = Entries {
        admins: vec![("admin".parse().expect("a peer id"), key(100))],
        peers: vec![PeerEntry {
            keys: vec![key(101)],
            display_name: Some("cellar".to_owned()),
            ..PeerEntry::new("fixed".parse().expect("a peer id"))
        }],
        api_keys: Vec::new(),
    };
    let peers = Arc::new(Identities::new(entries, Arc::new(Noon)));
    Hub {
        desk: desk(tokens, &peers, mode),
        peers,
        start: Instant::now(),
    }
}

fn desk(tokens: Arc<dyn TokenStore>, peers: &Arc<Identities>, mode: EnrolMode) -> Desk {
    let card = HubCard {
        key: key(200),
        names: vec!["hub".to_owned()],
    };
    let policy = Policy { mode, peers_max: 3 };
    Desk::new(tokens, peers.clone(), card, policy)
}

fn worker() -> Role {
    Role {
        scopes: ["relay:accept"].into_iter().collect(),
        labels: [("pool".to_owned(), "edge".to_owned())].into(),
        ..Role::new("worker".parse().expect("a role"))
    }
}

fn request(token: Option<&EnrolToken>, name: Option<&str>) -> Request {
    Request {
        token: token.map(|token| token.expose().to_string()),
        name: name.map(str::to_owned),
        labels: [("pool".to_owned(), "mine".to_owned())].into(),
        ..Request::default()
    }
}

fn approval(made_by: &str) -> Approval {
    Approval {
        role: worker(),
        name: None,
        made_by: made_by.to_owned(),
        made_by_key: None,
    }
}

impl Hub {
    async fn token(&self, kind: TokenKind, role: Role) -> EnrolToken {
        let invitation = Invitation {
            role,
            kind,
            ttl_s: 3600,
            made_by: "admin".to_owned(),
            made_by_key: None,
        };
        let made = self.desk.invite(invitation, Some(NOW)).await;
        made.expect("a token").0
    }

    /// Enrols the key 1 as a worker that holds this scope as well.
    async fn worker_with(&self, scope: &str) -> PeerId {
        let role = Role {
            scopes: [scope, "relay:accept"].into_iter().collect(),
            ..worker()
        };
        let token = self.token(TokenKind::Once, role).await;
        let enrolled = self.enrol(1, &request(Some(&token), None), NOW).await;
        enrolled.expect("taken").peer_id
    }

    async fn enrol(&self, n: u8, request: &Request, now: u64) -> Result<Enrolled, EnrolError> {
        let applicant = Applicant {
            key: key(n),
            request,
            from: None,
        };
        let passed = Duration::from_secs(now.saturating_sub(NOW));
        self.desk
            .enrol(&applicant, Some(now), self.start + passed)
            .await
    }

    async fn code(&self, n: u8, request: &Request, now: u64) -> &'static str {
        match self.enrol(n, request, now).await {
            Ok(_) => "taken",
            Err(error) => error.code(),
        }
    }
}

#[tokio::test]
async fn whoever_shows_a_token_becomes_a_peer_by_its_role() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Once, worker()).await;
    let ask = request(Some(&token), Some("kitchen"));
    let enrolled = hub.enrol(1, &ask, NOW).await.expect("taken");
    assert_eq!(
        (enrolled.name.as_str(), enrolled.hub.key),
        ("kitchen", key(200))
    );
    let identity = hub.peers.by_key(&key(1)).expect("a peer");
    assert_eq!(identity.id, enrolled.peer_id);
    assert!(identity.scopes.allows("relay:accept") && !identity.scopes.allows("admin"));
    assert_eq!(hub.peers.by_name("kitchen"), Some(enrolled.peer_id));
    let labels = &hub.desk.peers().await.expect("a list")[0].labels;
    // The role says where it belongs, whatever it says itself.
    assert_eq!(labels["pool"], "edge");
    assert_eq!(labels["role"], "worker");
}

/// Each of the two may be as long as the labels of a peer are.
#[tokio::test]
async fn a_role_and_a_wish_together_make_no_more_labels_than_a_peer_has() {
    let hub = hub(EnrolMode::Token);
    let labels = |first: char, count: usize| {
        let named = |n| (format!("{first}{n}"), "x".to_owned());
        (0..count).map(named).collect::<BTreeMap<_, _>>()
    };
    for (n, of_role) in [(1, 10), (2, 15)] {
        let role = Role {
            labels: labels('r', of_role),
            ..worker()
        };
        let token = hub.token(TokenKind::Once, role).await;
        let ask = Request {
            labels: labels('a', 16),
            ..request(Some(&token), None)
        };
        let joined = hub.enrol(n, &ask, NOW).await.expect("taken");
        let peers = hub.desk.peers().await.expect("a list");
        let peer = peers.iter().find(|peer| peer.peer_id == joined.peer_id);
        let labels = &peer.expect("it was taken").labels;
        assert_eq!(labels.len(), 16, "{labels:?}");
        // All of the role, and its name.
        let kept = labels.keys().filter(|name| name.starts_with('r')).count();
        assert_eq!(kept, of_role + 1, "{labels:?}");
    }
}

#[tokio::test]
async fn a_token_is_for_one_key_and_repeats_for_it() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Once, worker()).await;
    let ask = request(Some(&token), Some("kitchen"));
    let first = hub.enrol(1, &ask, NOW).await.expect("taken");
    assert_eq!(hub.code(2, &ask, NOW).await, "ENROLL_INVALID");
    let again = hub.enrol(1, &ask, NOW + REPEAT_TIME_S - 1).await;
    assert_eq!(again.expect("the same answer"), first);
    assert_eq!(
        hub.code(1, &ask, NOW + REPEAT_TIME_S).await,
        "ENROLL_INVALID"
    );
    // Removed is removed, also for the token that was good a moment ago.
    hub.desk.remove(&first.peer_id).await.expect("a peer");
    assert!(hub.peers.by_key(&key(1)).is_none());
    assert_eq!(hub.code(1, &ask, NOW + 1).await, "ENROLL_INVALID");
    // A new invitation is another matter, and the id is the old one.
    let token = hub.token(TokenKind::Once, worker()).await;
    let back = hub.enrol(1, &request(Some(&token), None), NOW + 2).await;
    assert_eq!(back.expect("taken").peer_id, first.peer_id);
}

/// Whatever it shows and whenever: the invitation it came by, others that it was given, or another key.
#[tokio::test]
async fn a_removal_outlives_every_invitation_made_before_it() {
    let hub = hub(EnrolMode::Token);
    let [by_this, by_another] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
    ];
    let ask = request(Some(&by_this), None);
    let joined = hub.enrol(1, &ask, NOW).await.expect("taken");
    assert_eq!(hub.code(2, &ask, NOW).await, "taken");
    let closed = hub.desk.remove(&joined.peer_id).await.expect("a peer");
    assert_eq!(closed, [by_this.name()]);
    let other = request(Some(&by_another), None);
    for later in [0, 1, REPEAT_TIME_S - 1, REPEAT_TIME_S, REPEAT_TIME_S + 61] {
        for ask in [&ask, &other] {
            assert_eq!(hub.code(1, ask, NOW + later).await, "ENROLL_INVALID");
        }
        assert_eq!(hub.code(3, &ask, NOW + later).await, "ENROLL_INVALID");
    }
    // Those who came by the same invitation stay, and the other one is good for other keys.
    assert!(hub.peers.by_key(&key(2)).is_some());
    assert_eq!(hub.code(3, &other, NOW).await, "taken");
    // A new invitation lets it in, until the next removal.
    let newer = hub.token(TokenKind::Many(5), worker()).await;
    let newer = request(Some(&newer), None);
    let back = hub.enrol(1, &newer, NOW).await.expect("taken");
    assert_eq!(back.peer_id, joined.peer_id);
    // It does not change its rights by an older one either.
    assert_eq!(hub.code(1, &other, NOW).await, "ENROLL_INVALID");
    hub.desk.remove(&back.peer_id).await.expect("a peer");
    assert_eq!(hub.code(1, &newer, NOW).await, "ENROLL_INVALID");
}

/// The power fails after the peer is shut out and before its invitations are closed.
#[tokio::test]
async fn a_removal_that_was_cut_off_closes_invitations_all_the_same() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Many(5), worker()).await;
    let ask = request(Some(&token), None);
    let joined = hub.enrol(1, &ask, NOW).await.expect("taken");
    let tombstone = PeerPatch {
        enabled: Some(false),
        removal: Some(1),
        ..PeerPatch::default()
    };
    let cut_off = hub.peers.patch(joined.peer_id, tombstone);
    cut_off.await.expect("a peer");
    for n in [1, 2] {
        assert_eq!(hub.code(n, &ask, NOW).await, "ENROLL_INVALID");
    }
}

/// Another key of the removed peer was shown in the moment in which the power failed, so that its use was written and
/// the peer was not. The removal is ended, or was cut off itself.
#[tokio::test]
async fn a_use_that_was_cut_off_is_not_finished_after_a_removal() {
    for ended in [true, false] {
        let tokens = Arc::new(MemoryTokens::default());
        let hub = hub_of(tokens.clone(), EnrolMode::Token);
        let token = hub.token(TokenKind::Many(5), worker()).await;
        let ask = request(Some(&token), None);
        let joined = hub.enrol(1, &ask, NOW).await.expect("taken");
        let record = tokens.get(token.name()).await.expect("it is in memory");
        let mut record = record.expect("it was made");
        record.uses.push(TokenUse {
            key: key(2),
            peer: "p2".parse().expect("a peer id"),
            name: "p2".to_owned(),
            at: NOW,
            done: false,
        });
        let replaced = tokens.replace(record).await;
        assert!(replaced.expect("it is in memory"));
        if ended {
            hub.desk.remove(&joined.peer_id).await.expect("a peer");
        } else {
            let tombstone = PeerPatch {
                enabled: Some(false),
                removal: Some(1),
                ..PeerPatch::default()
            };
            let cut_off = hub.peers.patch(joined.peer_id, tombstone);
            cut_off.await.expect("a peer");
        }
        assert_eq!(hub.code(2, &ask, NOW + 1).await, "ENROLL_INVALID");
        assert!(hub.peers.by_key(&key(2)).is_none());
    }
}

#[tokio::test]
async fn an_invitation_ends_with_who_made_it() {
    let hub = hub(EnrolMode::Token);
    let inviter = hub.worker_with("hub:invite").await;
    let invite = async |made_by: &str, made_by_key| {
        let invitation = Invitation {
            role: worker(),
            kind: TokenKind::Many(5),
            ttl_s: 3600,
            made_by: made_by.to_owned(),
            made_by_key,
        };
        let made = hub.desk.invite(invitation, Some(NOW)).await;
        made.map(|(token, _)| token)
    };
    let tokens = [
        invite(inviter.as_str(), None).await.expect("a token"),
        invite("admin", Some(key(100))).await.expect("a token"),
        invite(inviter.as_str(), None).await.expect("a token"),
    ];
    let nobody = invite("nobody", None).await;
    assert!(matches!(nobody, Err(InviteError::Maker)));
    let code = async |n: u8, token: usize| {
        let ask = request(Some(&tokens[token]), None);
        hub.code(n, &ask, NOW).await
    };
    assert_eq!(code(2, 0).await, "taken");
    // With the right to give its role, too.
    let scopes = |scopes: &[&str]| PeerPatch {
        scopes: Some(scopes.iter().collect()),
        ..PeerPatch::default()
    };
    let fewer = hub.peers.patch(inviter.clone(), scopes(&["hub:invite"]));
    fewer.await.expect("a peer");
    assert_eq!(code(3, 2).await, "ENROLL_INVALID");
    let fewer = invite(inviter.as_str(), None).await;
    assert!(matches!(fewer, Err(InviteError::Maker)));
    let all = hub.peers.patch(inviter.clone(), scopes(&["*"]));
    all.await.expect("a peer");
    let closed = hub.desk.remove(&inviter).await.expect("a peer");
    assert!(closed.contains(&tokens[0].name()));
    // It calls once more in the moment of its removal.
    let late = invite(inviter.as_str(), None).await;
    assert!(matches!(late, Err(InviteError::Maker)));
    assert_eq!(code(3, 0).await, "ENROLL_INVALID");
    // Another administrator has the name of the one who made it.
    hub.peers.replace_config(Entries {
        admins: vec![("admin".parse().expect("a peer id"), key(102))],
        ..Entries::default()
    });
    assert_eq!(code(3, 1).await, "ENROLL_INVALID");
}

#[tokio::test]
async fn every_bad_token_gets_the_same_answer() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Once, worker()).await;
    let unknown = EnrolToken::generate().expect("randomness");
    let text = token.expose().to_string();
    // The right name with another secret.
    let forged = format!("{}_{}", &text[..12], "A".repeat(43));
    let mut messages = Vec::new();
    for (ask, now) in [
        (request(Some(&unknown), None), NOW),
        (request(Some(&token), None), NOW + 3600),
        (
            Request {
                token: Some(forged),
                ..Request::default()
            },
            NOW,
        ),
        (
            Request {
                token: Some("nonsense".to_owned()),
                ..Request::default()
            },
            NOW,
        ),
        (request(None, None), NOW),
    ] {
        let error = hub.enrol(1, &ask, now).await.expect_err("refused");
        assert!(error.is_suspicious() && error.status() == 403, "{error}");
        messages.push(error.refusal());
    }
    assert!(
        messages.windows(2).all(|pair| pair[0] == pair[1]),
        "{messages:?}"
    );
    assert!(hub.peers.by_key(&key(1)).is_none());
    hub.desk.set_policy(Policy {
        mode: EnrolMode::Off,
        peers_max: 3,
    });
    let ask = request(Some(&token), None);
    assert_eq!(hub.code(1, &ask, NOW).await, "ENROLL_INVALID");
    // Without a sane clock nothing that ends is good.
    let applicant = Applicant {
        key: key(1),
        request: &ask,
        from: None,
    };
    let error = hub.desk.enrol(&applicant, None, hub.start).await;
    assert_eq!(error.expect_err("refused").code(), "ENROLL_INVALID");
}

#[tokio::test]
async fn a_name_has_one_holder() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Many(9), worker()).await;
    let ask = |name| request(Some(&token), Some(name));
    assert_eq!(hub.code(1, &ask("kitchen"), NOW).await, "taken");
    for taken in ["kitchen", "fixed", "cellar"] {
        assert_eq!(
            hub.code(2, &ask(taken), NOW).await,
            "ENROLL_NAME_TAKEN",
            "{taken}"
        );
    }
    assert_eq!(hub.code(2, &ask("admin"), NOW).await, "INVALID_INPUT");
    let second = hub.enrol(2, &ask("attic"), NOW).await.expect("taken");
    let kitchen: Option<Alias> = "kitchen".parse().ok();
    let error = hub.desk.relabel(&second.peer_id, kitchen, |_| ()).await;
    assert_eq!(error.expect_err("refused").code(), "ENROLL_NAME_TAKEN");
    let renamed = hub
        .desk
        .relabel(&second.peer_id, "loft".parse().ok(), |labels| {
            labels.remove("pool");
        });
    let renamed = renamed.await.expect("a free name");
    assert_eq!(renamed.display_name.as_deref(), Some("loft"));
    assert!(!renamed.labels.contains_key("pool"));
    assert_eq!(hub.peers.by_name("attic"), None);
    let third = hub
        .enrol(3, &request(Some(&token), None), NOW)
        .await
        .expect("taken");
    assert_eq!(third.name, third.peer_id.as_str());
}

#[tokio::test]
async fn a_fleet_is_numbered() {
    let hub = hub(EnrolMode::Token);
    let role = Role {
        names: NamePattern::new("edge-*", 7, 8).ok(),
        ..worker()
    };
    let token = hub.token(TokenKind::Many(9), role).await;
    let name = async |n, wanted| {
        let enrolled = hub.enrol(n, &request(Some(&token), wanted), NOW).await;
        enrolled
            .map(|enrolled| enrolled.name)
            .map_err(|error| error.code())
    };
    assert_eq!(name(1, Some("edge-8")).await.as_deref(), Ok("edge-8"));
    assert_eq!(name(2, Some("kitchen")).await.as_deref(), Ok("edge-7"));
    assert_eq!(name(3, None).await, Err("ENROLL_NAME_TAKEN"));
}

#[tokio::test]
async fn a_full_hub_says_so() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Many(9), worker()).await;
    let ask = request(Some(&token), None);
    for n in 1..=3 {
        assert_eq!(hub.code(n, &ask, NOW).await, "taken");
    }
    let error = hub.enrol(4, &ask, NOW).await.expect_err("full").refusal();
    assert_eq!((error.code.as_ref(), error.retryable), ("OVERLOADED", true));
    // Who was there already is welcome, and whoever goes leaves room.
    let again = hub.enrol(3, &ask, NOW + 1).await.expect("known");
    hub.desk.remove(&again.peer_id).await.expect("a peer");
    // The removed peer has the text of the token that it joined by, which is closed.
    let token = hub.token(TokenKind::Many(2), worker()).await;
    let newcomer = hub.code(4, &request(Some(&token), None), NOW).await;
    assert_eq!(newcomer, "taken");
    let back = hub.code(3, &request(Some(&token), None), NOW).await;
    assert_eq!(
        back, "OVERLOADED",
        "a tombstone takes no room, and its return does"
    );
}

#[tokio::test]
async fn an_entry_of_the_configuration_uses_no_token_up() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Once, worker()).await;
    let known = hub.enrol(101, &request(Some(&token), None), NOW).await;
    assert_eq!(known.expect("known").peer_id.as_str(), "fixed");
    assert_eq!(
        hub.code(1, &request(Some(&token), None), NOW).await,
        "taken"
    );
}

/// The machine may stop between the two writes.
#[tokio::test]
async fn a_use_that_was_cut_off_is_finished_by_the_same_key() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Once, worker()).await;
    let mut record = hub.desk.tokens().await.expect("a list").remove(0);
    record.uses.push(TokenUse {
        key: key(1),
        peer: "p0".parse().expect("a peer id"),
        name: "kitchen".to_owned(),
        at: NOW,
        done: false,
    });
    assert!(hub.desk.tokens.replace(record).await.expect("in memory"));
    let ask = request(Some(&token), None);
    assert_eq!(hub.code(2, &ask, NOW).await, "ENROLL_INVALID");
    let enrolled = hub.enrol(1, &ask, NOW + 1).await.expect("finished");
    assert_eq!(
        (enrolled.peer_id.as_str(), enrolled.name.as_str()),
        ("p0", "kitchen")
    );
    assert!(hub.peers.by_key(&key(1)).is_some());
    assert!(hub.desk.tokens().await.expect("a list")[0].uses[0].done);
}

/// How it goes at each of these desks for a key of its own, from this one on, all at once.
async fn at_once(first: u8, desks: Vec<Arc<Hub>>, token: &EnrolToken) -> Vec<&'static str> {
    let ask = request(Some(token), None);
    let tries = (first..).zip(desks).map(|(n, hub)| {
        let ask = ask.clone();
        tokio::spawn(async move { hub.code(n, &ask, NOW).await })
    });
    let mut codes = Vec::new();
    for one in tries.collect::<Vec<_>>() {
        codes.push(one.await.expect("no panic"));
    }
    codes.sort_unstable();
    codes
}

/// At one desk each waits for its turn; at several that share a store, it is the store that takes one.
#[tokio::test]
async fn of_two_who_show_the_last_use_one_is_taken() {
    let tokens: Arc<dyn TokenStore> = Arc::new(Slow::default());
    let hub = Arc::new(hub_of(Arc::clone(&tokens), EnrolMode::Token));
    let token = hub.token(TokenKind::Once, worker()).await;
    let codes = at_once(1, vec![Arc::clone(&hub); 8], &token).await;
    assert_eq!(codes[..7], ["ENROLL_INVALID"; 7]);
    assert_eq!(codes[7], "taken");
    assert_eq!(hub.desk.peers().await.expect("a list").len(), 1);

    let token = hub.token(TokenKind::Once, worker()).await;
    let others = (0..8).map(|_| {
        Arc::new(Hub {
            desk: desk(Arc::clone(&tokens), &hub.peers, EnrolMode::Token),
            peers: Arc::clone(&hub.peers),
            start: hub.start,
        })
    });
    let codes = at_once(11, others.collect(), &token).await;
    let taken = codes.iter().filter(|code| **code == "taken").count();
    assert_eq!(taken, 1, "{codes:?}");
    assert_eq!(hub.desk.peers().await.expect("a list").len(), 2);
}

#[tokio::test]
async fn who_knocks_waits_until_somebody_lets_it_in() {
    let hub = hub(EnrolMode::Approve);
    let ask = request(None, Some("kitchen"));
    let error = hub.enrol(1, &ask, NOW).await.expect_err("waiting");
    let refusal = error.refusal();
    assert_eq!(refusal.code, "ENROLL_PENDING");
    let words = fingerprint(&key(1));
    assert!(refusal.message.contains(&words) && refusal.retryable && !error.is_suspicious());
    let now = hub.start;
    assert_eq!(hub.desk.waiting(now).len(), 1);
    let nobody = hub
        .desk
        .approve("luban-tosig", approval("admin"), Some(NOW), now);
    assert!(matches!(nobody.await, Err(ApproveError::Unknown)));
    let let_in = hub.desk.approve(&words, approval("admin"), Some(NOW), now);
    let let_in = let_in.await;
    assert_eq!(let_in.expect("it waits").name, "kitchen");
    assert!(hub.desk.waiting(now).is_empty());
    let known = hub.enrol(1, &ask, NOW + 5).await.expect("known now");
    assert_eq!(known.name, "kitchen");
    // A token is good in this mode, too.
    let token = hub.token(TokenKind::Once, worker()).await;
    assert_eq!(
        hub.code(2, &request(Some(&token), None), NOW).await,
        "taken"
    );
}

/// Its call was let through before that, and waited for its turn.
#[tokio::test]
async fn an_approver_that_was_removed_or_lost_rights_lets_nobody_in() {
    let hub = hub(EnrolMode::Approve);
    let approver = hub.worker_with("hub:admin").await;
    assert_eq!(
        hub.code(2, &request(None, None), NOW).await,
        "ENROLL_PENDING"
    );
    let words = fingerprint(&key(2));
    let approve = async || {
        let approval = approval(approver.as_str());
        hub.desk
            .approve(&words, approval, Some(NOW), hub.start)
            .await
    };
    let fewer = PeerPatch {
        scopes: Some(["hub:admin"].into_iter().collect()),
        ..PeerPatch::default()
    };
    let patched = hub.peers.patch(approver.clone(), fewer);
    patched.await.expect("a peer");
    assert!(matches!(approve().await, Err(ApproveError::Approver)));
    let all = PeerPatch {
        scopes: Some(["hub:admin", "relay:accept"].into_iter().collect()),
        ..PeerPatch::default()
    };
    let patched = hub.peers.patch(approver.clone(), all);
    patched.await.expect("a peer");
    hub.desk.remove(&approver).await.expect("removed");
    assert!(matches!(approve().await, Err(ApproveError::Approver)));
    assert_eq!(hub.desk.waiting(hub.start).len(), 1, "it waits on");
}

#[tokio::test]
async fn only_ed25519_keys_enrol() {
    let hub = hub(EnrolMode::Approve);
    let ask = request(None, None);
    let applicant = Applicant {
        key: PeerKey::Spki([1; 32]),
        request: &ask,
        from: None,
    };
    let error = hub.desk.enrol(&applicant, Some(NOW), hub.start).await;
    assert_eq!(error.expect_err("refused").code(), "UNAUTHENTICATED");
}

#[tokio::test]
async fn invitations_have_bounds() {
    let hub = hub(EnrolMode::Token);
    let invite = async |ttl_s, uses, now| {
        let invitation = Invitation {
            role: worker(),
            kind: TokenKind::Many(uses),
            ttl_s,
            made_by: "admin".to_owned(),
            made_by_key: None,
        };
        hub.desk.invite(invitation, now).await.map(drop)
    };
    assert!(invite(TTL_MAX_S, USES_MAX, Some(NOW)).await.is_ok());
    assert!(matches!(
        invite(TTL_MAX_S + 1, 1, Some(NOW)).await,
        Err(InviteError::Ttl)
    ));
    assert!(matches!(
        invite(0, 1, Some(NOW)).await,
        Err(InviteError::Ttl)
    ));
    assert!(matches!(
        invite(1, USES_MAX + 1, Some(NOW)).await,
        Err(InviteError::Uses)
    ));
    assert!(matches!(
        invite(1, 0, Some(NOW)).await,
        Err(InviteError::Uses)
    ));
    assert!(matches!(invite(1, 1, None).await, Err(InviteError::Clock)));
    // Those that are over make room.
    for _ in 1..TOKENS_MAX {
        invite(1, 1, Some(NOW)).await.expect("room");
    }
    assert!(matches!(
        invite(1, 1, Some(NOW)).await,
        Err(InviteError::TooMany)
    ));
    assert!(invite(1, 1, Some(NOW + 1)).await.is_ok());
    assert_eq!(hub.desk.tokens().await.expect("a list").len(), 2);
}
