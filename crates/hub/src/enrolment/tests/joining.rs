//! Peers that join, by a token or by hand: their names, labels and number.

use alknet_core::IdentityProvider;

use super::*;
use crate::fingerprint::fingerprint;
use crate::names::NamePattern;

#[tokio::test]
async fn a_node_with_a_token_becomes_a_peer_with_its_role() {
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
    let labels = &hub.enrolment.peers().await.expect("a list")[0].labels;
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
        let role = EnrolRole {
            labels: labels('r', of_role),
            ..worker()
        };
        let token = hub.token(TokenKind::Once, role).await;
        let ask = JoinRequest {
            labels: labels('a', 16),
            ..request(Some(&token), None)
        };
        let joined = hub.enrol(n, &ask, NOW).await.expect("taken");
        let peers = hub.enrolment.peers().await.expect("a list");
        let peer = peers.iter().find(|peer| peer.peer_id == joined.peer_id);
        let labels = &peer.expect("it was taken").labels;
        assert_eq!(labels.len(), 16, "{labels:?}");
        // All of the role, and its name.
        let kept = labels.keys().filter(|name| name.starts_with('r')).count();
        assert_eq!(kept, of_role + 1, "{labels:?}");
    }
}

/// It has the text of two invitations, and joins by the second one after an administrator changed its labels.
#[tokio::test]
async fn labels_of_a_peer_that_is_let_in_stay_when_it_enrols_again() {
    let hub = hub(EnrolMode::Token);
    let older = hub.token(TokenKind::Once, worker()).await;
    let joined = hub.worker_with("jobs:run").await;
    let changed = hub.enrolment.relabel(&joined, None, |labels| {
        labels.insert("pool".to_owned(), "lab".to_owned());
        labels.insert("shelf".to_owned(), "3".to_owned());
    });
    let before = changed.await.expect("a peer").labels;
    let labels = async || {
        let all = hub.enrolment.peers().await.expect("a list");
        let peer = all.into_iter().find(|peer| peer.peer_id == joined);
        peer.expect("it is there").labels
    };
    let again = JoinRequest {
        labels: [("room".to_owned(), "cellar".to_owned())].into(),
        ..request(Some(&older), None)
    };
    assert_eq!(
        hub.enrol(1, &again, NOW).await.expect("taken").peer_id,
        joined
    );
    assert_eq!(labels().await, before);
    // Another role says what the peer became, and adds what it lacks.
    let role = EnrolRole {
        labels: [("pool", "edge"), ("gpu", "yes")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..EnrolRole::new("renderer".parse().expect("a role"))
    };
    let token = hub.token(TokenKind::Once, role).await;
    let again = hub.enrol(1, &request(Some(&token), None), NOW).await;
    assert_eq!(again.expect("taken").peer_id, joined);
    let after = labels().await;
    let value = |name: &str| after.get(name).map(String::as_str);
    let found = ["gpu", "pool", "role", "shelf"].map(value);
    let expected = ["yes", "lab", "renderer", "3"].map(Some);
    assert_eq!(found, expected, "{after:?}");
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
    let error = hub
        .enrolment
        .relabel(&second.peer_id, kitchen, |_| ())
        .await;
    assert_eq!(error.expect_err("refused").code(), "ENROLL_NAME_TAKEN");
    let renamed = hub
        .enrolment
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
    let role = EnrolRole {
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
    // A peer that was there already is welcome, and a peer that goes leaves room.
    let again = hub.enrol(3, &ask, NOW + 1).await.expect("known");
    hub.enrolment.remove(&again.peer_id).await.expect("a peer");
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

#[tokio::test]
async fn only_ed25519_keys_enrol() {
    let hub = hub(EnrolMode::Approve);
    let ask = request(None, None);
    let applicant = Applicant {
        key: PeerKey::Spki([1; 32]),
        request: &ask,
        from: None,
    };
    let error = hub.enrolment.enrol(&applicant, Some(NOW), hub.start).await;
    assert_eq!(error.expect_err("refused").code(), "UNAUTHENTICATED");
}

#[tokio::test]
async fn an_applicant_waits_until_an_approver_admits_it() {
    let hub = hub(EnrolMode::Approve);
    let ask = request(None, Some("kitchen"));
    let error = hub.enrol(1, &ask, NOW).await.expect_err("waiting");
    let refusal = error.refusal();
    assert_eq!(refusal.code, "ENROLL_PENDING");
    let words = fingerprint(&key(1));
    assert!(refusal.message.contains(&words) && refusal.retryable && !error.is_suspicious());
    let now = hub.start;
    assert_eq!(hub.enrolment.waiting(now).len(), 1);
    let unknown_peer = hub
        .enrolment
        .approve("luban-tosig", approval("admin"), Some(NOW), now);
    assert!(matches!(unknown_peer.await, Err(ApproveError::Unknown)));
    let let_in = hub
        .enrolment
        .approve(&words, approval("admin"), Some(NOW), now);
    let let_in = let_in.await;
    assert_eq!(let_in.expect("it waits").name, "kitchen");
    assert!(hub.enrolment.waiting(now).is_empty());
    let known = hub.enrol(1, &ask, NOW + 5).await.expect("known now");
    assert_eq!(known.name, "kitchen");
    // A token is good in this mode, too.
    let token = hub.token(TokenKind::Once, worker()).await;
    assert_eq!(
        hub.code(2, &request(Some(&token), None), NOW).await,
        "taken"
    );
}
