//! What ends with a peer that is removed or loses rights: its keys, invitations and approvals.

use alknet_core::IdentityProvider;

use super::*;
use crate::fingerprint::fingerprint;

/// The removed peer has the text of the invitation that it came by and of two that it never used, one of them for one
/// key. It shows each with its key and with one that the hub has never seen.
#[tokio::test]
async fn a_removal_outlives_every_invitation_made_before_it() {
    let hub = hub(EnrolMode::Token);
    let tokens = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Once, worker()).await,
    ];
    let asks = [0, 1, 2].map(|n: usize| request(Some(&tokens[n]), None));
    let joined = hub.enrol(1, &asks[0], NOW).await.expect("taken");
    assert_eq!(hub.code(2, &asks[1], NOW).await, "taken");
    let removal = hub.enrolment.remove_and_close(&joined.peer_id, |_| true);
    let closed = removal.await;
    let mut closed = closed.expect("a peer");
    let mut names = tokens.map(|token| token.name());
    closed.sort_unstable();
    names.sort_unstable();
    assert_eq!(closed, names);
    for later in [0, 1, REPEAT_TIME_S - 1, REPEAT_TIME_S, REPEAT_TIME_S + 61] {
        for ask in &asks {
            assert_eq!(hub.code(1, ask, NOW + later).await, "ENROLL_INVALID");
            assert_eq!(hub.code(3, ask, NOW + later).await, "ENROLL_INVALID");
        }
    }
    // Another peer, which came by one of them, stays.
    assert!(hub.peers.by_key(&key(2)).is_some());
    let newer = hub.token(TokenKind::Many(5), worker()).await;
    let newer = request(Some(&newer), None);
    assert_eq!(hub.code(3, &newer, NOW).await, "taken");
}

/// The administrator did not close the others at the removal, and closes them by a second one.
#[tokio::test]
async fn a_second_removal_closes_what_the_first_left_open() {
    let hub = hub(EnrolMode::Token);
    let [own, other] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
    ];
    let joined = hub.enrol(1, &request(Some(&own), None), NOW).await;
    let peer = joined.expect("taken").peer_id;
    hub.enrolment.remove(&peer).await.expect("a peer");
    let closed = hub.enrolment.remove_and_close(&peer, |_| true).await;
    assert_eq!(closed.expect("it stays known"), [other.name()]);
    let other = request(Some(&other), None);
    assert_eq!(hub.code(3, &other, NOW).await, "ENROLL_INVALID");
}

/// The caller may do less than the role of one of them, by which the hub still lets other keys in.
#[tokio::test]
async fn a_removal_closes_no_invitation_that_its_caller_may_not_close() {
    let hub = hub(EnrolMode::Token);
    let reader = EnrolRole {
        scopes: ["node:read", "relay:accept"].into_iter().collect(),
        ..worker()
    };
    let [own, other, above] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), reader).await,
    ];
    let joined = hub.enrol(1, &request(Some(&own), None), NOW).await;
    let peer = joined.expect("taken").peer_id;
    let held = worker().scopes;
    let is_covered = |record: &TokenRecord| held.covers(&record.role.scopes);
    let closed = hub.enrolment.remove_and_close(&peer, is_covered).await;
    assert_eq!(closed.expect("a peer"), [own.name(), other.name()]);
    for (token, code) in [(&other, "ENROLL_INVALID"), (&above, "taken")] {
        let ask = request(Some(token), None);
        assert_eq!(hub.code(2, &ask, NOW).await, code);
    }
}

/// Whatever it shows and whenever: the invitation it came by, with any key, and others that it was given, with its own.
#[tokio::test]
async fn a_removal_alone_closes_the_invitations_by_which_the_peer_joined() {
    let hub = hub(EnrolMode::Token);
    let [by_this, by_another] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
    ];
    let ask = request(Some(&by_this), None);
    let joined = hub.enrol(1, &ask, NOW).await.expect("taken");
    assert_eq!(hub.code(2, &ask, NOW).await, "taken");
    let closed = hub.enrolment.remove(&joined.peer_id).await.expect("a peer");
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
    hub.enrolment.remove(&back.peer_id).await.expect("a peer");
    assert_eq!(hub.code(1, &newer, NOW).await, "ENROLL_INVALID");
}

/// It has the text of its invitation, and of another one: neither lets it in, and what it may do is kept until an
/// administrator lets it in again.
#[tokio::test]
async fn a_peer_that_is_shut_out_does_not_let_itself_in() {
    let hub = hub(EnrolMode::Token);
    let [own, other] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
    ];
    let ask = request(Some(&own), Some("kitchen"));
    let joined = hub.enrol(1, &ask, NOW).await.expect("taken");
    let unchanged = PeerPatch::default();
    let closed = hub.enrolment.shut_out(&joined.peer_id, unchanged).await;
    assert_eq!(closed.expect("a peer"), [own.name()]);
    assert!(hub.peers.by_key(&key(1)).is_none());
    for token in [&own, &other] {
        let ask = request(Some(token), None);
        assert_eq!(hub.code(1, &ask, NOW).await, "ENROLL_INVALID");
    }
    let fresh = request(Some(&own), None);
    assert_eq!(hub.code(2, &fresh, NOW).await, "ENROLL_INVALID");
    let all = hub.enrolment.peers().await.expect("listed");
    let kept = all.iter().find(|peer| peer.peer_id == joined.peer_id);
    let kept = kept.expect("it stays known");
    assert_eq!(kept.display_name.as_deref(), Some("kitchen"));
    assert!(kept.scopes.allows("relay:accept") && !kept.enabled);
}

/// It stays let in with fewer scopes. It has the text of its invitation, and of another one.
#[tokio::test]
async fn scopes_that_were_taken_do_not_come_back_by_an_older_invitation() {
    let hub = hub(EnrolMode::Token);
    let [own, other] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
    ];
    let joined = hub.enrol(1, &request(Some(&own), None), NOW).await;
    let peer = joined.expect("taken").peer_id;
    let fewer = PeerPatch {
        scopes: Some(ScopeSet::default()),
        ..PeerPatch::default()
    };
    let closed = hub.enrolment.change(&peer, fewer).await.expect("a peer");
    assert_eq!(closed, [own.name()]);
    for token in [&other, &own] {
        for later in [0, REPEAT_TIME_S + 1] {
            let ask = request(Some(token), None);
            let code = hub.code(1, &ask, NOW + later).await;
            assert_eq!(code, "ENROLL_INVALID", "{later}");
            let known = hub.peers.by_key(&key(1)).expect("it stays let in");
            assert!(known.scopes.is_empty(), "{known:?}");
        }
    }
    // Nor under another key; one that was never used is good for others.
    let fresh = request(Some(&own), None);
    assert_eq!(hub.code(2, &fresh, NOW).await, "ENROLL_INVALID");
    assert_eq!(
        hub.code(2, &request(Some(&other), None), NOW).await,
        "taken"
    );
    // A newer one gives them back, as it was made for that.
    let newer = hub.token(TokenKind::Once, worker()).await;
    let back = hub.enrol(1, &request(Some(&newer), None), NOW).await;
    assert_eq!(back.expect("taken").peer_id, peer);
    let known = hub.peers.by_key(&key(1)).expect("let in");
    assert!(known.scopes.allows("relay:accept"), "{known:?}");
}

/// It stays let in by another key. Who found the key that it lost has the text of its invitation, and of another one.
#[tokio::test]
async fn a_key_that_was_taken_does_not_come_back_by_an_older_invitation() {
    let hub = hub(EnrolMode::Token);
    let [own, other] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
    ];
    let joined = hub.enrol(1, &request(Some(&own), None), NOW).await;
    let peer = joined.expect("taken").peer_id;
    let replaced = PeerPatch {
        keys: Some(vec![key(9), key(1)]),
        key_ends: Some([(key(1), 0)].into()),
        ..PeerPatch::default()
    };
    let closed = hub.enrolment.change(&peer, replaced).await.expect("a peer");
    assert_eq!(closed, [own.name()]);
    assert!(hub.peers.by_key(&key(9)).is_some());
    for (n, token) in [(1, &own), (1, &other), (2, &own)] {
        let ask = request(Some(token), None);
        for later in [0, REPEAT_TIME_S + 1] {
            let code = hub.code(n, &ask, NOW + later).await;
            assert_eq!(code, "ENROLL_INVALID", "{n} {later}");
            assert!(hub.peers.by_key(&key(n)).is_none(), "{n} {later}");
        }
    }
    // A key that is added takes nothing.
    let more = PeerPatch {
        keys: Some(vec![key(9), key(1), key(8)]),
        key_ends: Some([(key(1), 0)].into()),
        ..PeerPatch::default()
    };
    let closed = hub.enrolment.change(&peer, more).await.expect("a peer");
    assert!(closed.is_empty(), "{closed:?}");
}

/// It stays let in until then. Who has its text would be a peer again under another key, without an end.
#[tokio::test]
async fn an_end_that_was_set_is_not_undone_by_an_older_invitation() {
    let hub = hub(EnrolMode::Token);
    let [own, other] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
    ];
    let joined = hub.enrol(1, &request(Some(&own), None), NOW).await;
    let peer = joined.expect("taken").peer_id;
    let until = |end: Option<u64>| PeerPatch {
        expires: Some(end),
        ..PeerPatch::default()
    };
    let change = async |end| {
        hub.enrolment
            .change(&peer, until(end))
            .await
            .expect("a peer")
    };
    assert_eq!(change(Some(NOW + 3600)).await, [own.name()]);
    for (n, token) in [(2, &own), (1, &own), (1, &other)] {
        let ask = request(Some(token), None);
        let code = hub.code(n, &ask, NOW + REPEAT_TIME_S + 1).await;
        assert_eq!(code, "ENROLL_INVALID", "{n}");
    }
    // Only what takes time away closes what was made since.
    let newer = hub.token(TokenKind::Many(5), worker()).await;
    let again = hub.enrol(1, &request(Some(&newer), None), NOW).await;
    assert_eq!(again.expect("taken").peer_id, peer);
    for end in [Some(NOW + 7200), None] {
        assert!(change(end).await.is_empty(), "{end:?}");
    }
    assert_eq!(change(Some(NOW + 7200)).await, [newer.name()]);
}

/// An administrator added it by its key, and it made an invitation. Who found the key that it lost has the text.
#[tokio::test]
async fn a_maker_that_loses_a_key_loses_its_invitations() {
    let hub = hub(EnrolMode::Token);
    let maker: PeerId = "maker".parse().expect("a peer id");
    let added = PeerEntry {
        keys: vec![key(1)],
        scopes: ["hub:invite", "relay:accept"].into_iter().collect(),
        ..PeerEntry::new(maker.clone())
    };
    hub.peers.put(added).await.expect("a new peer");
    let (own, other) = (
        hub.token_by(maker.as_str(), Some(key(1))).await,
        hub.token(TokenKind::Many(5), worker()).await,
    );
    let replaced = PeerPatch {
        keys: Some(vec![key(9), key(1)]),
        key_ends: Some([(key(1), 0)].into()),
        ..PeerPatch::default()
    };
    let closed = hub
        .enrolment
        .change(&maker, replaced)
        .await
        .expect("a peer");
    assert_eq!(closed, [own.name()]);
    for (n, token) in [(1, &own), (2, &own), (1, &other)] {
        let code = hub.code(n, &request(Some(token), None), NOW).await;
        assert_eq!(code, "ENROLL_INVALID", "{n}");
    }
}

/// The configuration had a peer, and has another one of its name: the holder of the first one's invitation has no part in
/// that.
#[tokio::test]
async fn an_invitation_does_not_pass_to_another_peer_of_the_same_name() {
    let hub = hub(EnrolMode::Token);
    let maker = |n: u8| PeerEntry {
        keys: vec![key(n)],
        scopes: ["hub:invite", "relay:accept"].into_iter().collect(),
        ..PeerEntry::new("mate".parse().expect("a peer id"))
    };
    let configured = |peers: Vec<PeerEntry>| {
        hub.peers.replace_config(IdentityEntries {
            peers,
            ..IdentityEntries::default()
        });
    };
    configured(vec![maker(50)]);
    let token = hub.token_by("mate", Some(key(50))).await;
    let ask = request(Some(&token), None);
    assert_eq!(hub.code(1, &ask, NOW).await, "taken");
    configured(Vec::new());
    assert_eq!(hub.code(2, &ask, NOW).await, "ENROLL_INVALID");
    configured(vec![maker(60)]);
    assert_eq!(hub.code(2, &ask, NOW).await, "ENROLL_INVALID");
    // The same one is back.
    configured(vec![maker(50)]);
    assert_eq!(hub.code(2, &ask, NOW).await, "taken");
}

/// Its entry keeps the key that it replaced, which ended since.
#[tokio::test]
async fn an_invitation_outlives_the_rotation_of_its_makers_key() {
    let hub = hub(EnrolMode::Token);
    let maker = hub.worker_with("hub:invite").await;
    let token = hub.token_by(maker.as_str(), Some(key(1))).await;
    let rotated = hub.peers.rotate(maker.clone(), key(1), key(9)).await;
    rotated.expect("it is of the store");
    let ended = PeerPatch {
        key_ends: Some([(key(1), NOW)].into()),
        ..PeerPatch::default()
    };
    hub.peers.patch(maker, ended).await.expect("a peer");
    assert!(hub.peers.by_key(&key(1)).is_none());
    let ask = request(Some(&token), None);
    assert_eq!(hub.code(2, &ask, NOW).await, "taken");
}

/// The power failed when the peer was made and its use was not yet written as done. Then the peer lost the key, which
/// the store does not even know any more.
#[tokio::test]
async fn a_use_that_was_cut_off_gives_no_peer_a_key_back() {
    let tokens = Arc::new(MemoryTokens::default());
    let hub = hub_of(tokens.clone(), EnrolMode::Token);
    let token = hub.token(TokenKind::Many(5), worker()).await;
    let ask = request(Some(&token), None);
    let peer = hub.enrol(1, &ask, NOW).await.expect("taken").peer_id;
    let record = tokens.get(token.name()).await.expect("it is in memory");
    let mut record = record.expect("it was made");
    record.uses[0].done = false;
    let replaced = tokens.replace(record).await;
    assert!(replaced.expect("it is in memory"));
    let other = PeerPatch {
        keys: Some(vec![key(9)]),
        ..PeerPatch::default()
    };
    hub.peers.patch(peer, other).await.expect("a peer");
    assert_eq!(hub.code(1, &ask, NOW + 1).await, "ENROLL_INVALID");
    assert!(hub.peers.by_key(&key(1)).is_none());
    assert!(hub.peers.by_key(&key(9)).is_some(), "it keeps its own key");
}

#[tokio::test]
async fn scopes_that_are_given_close_no_invitation() {
    let hub = hub(EnrolMode::Token);
    let own = hub.token(TokenKind::Many(5), worker()).await;
    let ask = request(Some(&own), None);
    let peer = hub.enrol(1, &ask, NOW).await.expect("taken").peer_id;
    let more = PeerPatch {
        scopes: Some(["relay:accept", "jobs:run"].into_iter().collect()),
        ..PeerPatch::default()
    };
    let closed = hub.enrolment.change(&peer, more).await.expect("a peer");
    assert!(closed.is_empty(), "{closed:?}");
    assert_eq!(hub.code(2, &ask, NOW).await, "taken");
}

/// A maker with few scopes could not have removed the first peer, and could have removed the second one.
#[tokio::test]
async fn who_could_not_remove_a_peer_does_not_let_it_in_again() {
    let hub = hub(EnrolMode::Approve);
    let maker = hub.worker_with("hub:admin").await;
    let reader = EnrolRole {
        scopes: ["node:read", "relay:accept"].into_iter().collect(),
        ..worker()
    };
    let mut peers = Vec::new();
    for (n, role) in [(2, reader), (3, worker())] {
        let token = hub.token(TokenKind::Once, role).await;
        let joined = hub.enrol(n, &request(Some(&token), None), NOW).await;
        peers.push(joined.expect("taken").peer_id);
        let last = peers.last().expect("it joined");
        hub.enrolment.remove(last).await.expect("a peer");
    }
    let without_token = request(None, None);
    // A second removal takes nothing, and forgets nothing of the first.
    for repeated in [false, true] {
        if repeated {
            hub.enrolment.remove(&peers[0]).await.expect("a peer");
        }
        let token = hub.token_by(maker.as_str(), None).await;
        let ask = request(Some(&token), None);
        assert_eq!(hub.code(2, &ask, NOW).await, "ENROLL_INVALID");
        assert_eq!(hub.code(2, &without_token, NOW).await, "ENROLL_PENDING");
        let approval = approval(maker.as_str());
        let approved = hub
            .enrolment
            .approve(&fingerprint(&key(2)), approval, Some(NOW), hub.start)
            .await;
        assert!(matches!(approved, Err(ApproveError::Peer)), "{approved:?}");
    }
    assert!(hub.peers.by_key(&key(2)).is_none());
    let token = hub.token_by(maker.as_str(), None).await;
    let back = hub.enrol(3, &request(Some(&token), None), NOW).await;
    assert_eq!(back.expect("the maker could remove it").peer_id, peers[1]);
    let token = hub.token(TokenKind::Once, worker()).await;
    let back = hub.enrol(2, &request(Some(&token), None), NOW).await;
    assert_eq!(back.expect("an administrator's").peer_id, peers[0]);
}

/// A maker with few scopes gives a peer, which is let in, a smaller role, so that the peer loses nothing by its removal.
#[tokio::test]
async fn a_smaller_role_before_a_removal_is_not_all_that_the_removal_took() {
    let hub = hub(EnrolMode::Approve);
    let maker = hub.worker_with("hub:admin").await;
    let reader = EnrolRole {
        scopes: ["node:read", "relay:accept"].into_iter().collect(),
        ..worker()
    };
    let token = hub.token(TokenKind::Once, reader).await;
    let joined = hub.enrol(2, &request(Some(&token), None), NOW).await;
    let peer = joined.expect("taken").peer_id;
    let token = hub.token_by(maker.as_str(), None).await;
    let smaller = hub.enrol(2, &request(Some(&token), None), NOW).await;
    assert_eq!(smaller.expect("it is let in").peer_id, peer);
    hub.enrolment.remove(&peer).await.expect("a peer");

    let token = hub.token_by(maker.as_str(), None).await;
    let ask = request(Some(&token), None);
    assert_eq!(hub.code(2, &ask, NOW).await, "ENROLL_INVALID");
    let token = hub.token(TokenKind::Once, worker()).await;
    let back = hub.enrol(2, &request(Some(&token), None), NOW).await;
    assert_eq!(back.expect("an administrator's").peer_id, peer);
    assert!(hub.peers.by_key(&key(2)).is_some());
}

/// One of its keys was taken, and it was removed for that.
#[tokio::test]
async fn only_the_key_that_is_let_in_again_comes_back_after_a_removal() {
    let hub = hub(EnrolMode::Token);
    let [first, older] = [
        hub.token(TokenKind::Many(5), worker()).await,
        hub.token(TokenKind::Many(5), worker()).await,
    ];
    let joined = hub.enrol(1, &request(Some(&first), None), NOW).await;
    let peer = joined.expect("taken").peer_id;
    let both = PeerPatch {
        keys: Some(vec![key(1), key(9)]),
        ..PeerPatch::default()
    };
    hub.peers.patch(peer.clone(), both).await.expect("a peer");
    assert!(hub.peers.by_key(&key(9)).is_some());
    hub.enrolment.remove(&peer).await.expect("a peer");
    let newer = hub.token(TokenKind::Many(5), worker()).await;
    let back = hub.enrol(1, &request(Some(&newer), None), NOW).await;
    assert_eq!(back.expect("taken").peer_id, peer);
    assert!(hub.peers.by_key(&key(1)).is_some());
    assert!(hub.peers.by_key(&key(9)).is_none(), "it is back as well");
    let older = request(Some(&older), None);
    assert_eq!(hub.code(9, &older, NOW).await, "ENROLL_INVALID");
}

/// An attacker found a key that a peer replaced, and is given a token or waits to be let in.
#[tokio::test]
async fn a_key_that_ended_changes_nothing_of_the_peer_that_had_it() {
    let hub = hub(EnrolMode::Approve);
    let peer = hub.worker_with("jobs:run").await;
    let without_token = request(None, Some("kitchen"));
    // Waits before it is one that ended.
    assert_eq!(hub.code(5, &without_token, NOW).await, "ENROLL_PENDING");
    let all = hub.enrolment.peers().await.expect("listed");
    let own = all.into_iter().find(|entry| entry.peer_id == peer);
    let mut own = own.expect("it was taken");
    own.keys = vec![key(1), key(5), key(9)];
    own.key_ends = [(key(1), NOW - 1), (key(5), NOW - 1)].into();
    hub.peers.put(own).await.expect("a peer");
    assert!(hub.peers.by_key(&key(1)).is_none());
    assert!(hub.peers.by_key(&key(9)).is_some());
    let before = hub.enrolment.peers().await.expect("listed");

    let token = hub.token(TokenKind::Once, worker()).await;
    let ask = request(Some(&token), Some("kitchen"));
    assert_eq!(hub.code(1, &ask, NOW).await, "ENROLL_INVALID");
    assert_eq!(hub.code(1, &without_token, NOW).await, "ENROLL_INVALID");
    let waits = fingerprint(&key(5));
    let approved = hub
        .enrolment
        .approve(&waits, approval("admin"), Some(NOW), hub.start);
    let approved = approved.await;
    assert!(
        matches!(approved, Err(ApproveError::Enrol(EnrolError::Invalid))),
        "{approved:?}"
    );
    let after = hub.enrolment.peers().await.expect("listed");
    assert_eq!(after, before);
    // The token is as good as before, for a key that no peer had.
    assert_eq!(hub.code(3, &ask, NOW).await, "taken");
}

/// A removal whose first write is made, and nothing after it.
async fn shut_out_only(hub: &EnrolmentTestHub, peer: PeerId) {
    let tombstone = PeerPatch {
        enabled: Some(false),
        removal: Some(1),
        ..PeerPatch::default()
    };
    hub.peers.patch(peer, tombstone).await.expect("a peer");
}

/// The power fails after the peer is shut out and before its invitations are closed.
#[tokio::test]
async fn a_removal_that_was_cut_off_closes_invitations_all_the_same() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Many(5), worker()).await;
    let ask = request(Some(&token), None);
    let joined = hub.enrol(1, &ask, NOW).await.expect("taken");
    shut_out_only(&hub, joined.peer_id).await;
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
        record.uses.push(cut_off_use(2, "p2", "p2"));
        let replaced = tokens.replace(record).await;
        assert!(replaced.expect("it is in memory"));
        if ended {
            hub.enrolment.remove(&joined.peer_id).await.expect("a peer");
        } else {
            shut_out_only(&hub, joined.peer_id).await;
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
        let made = hub.enrolment.invite(invitation, Some(NOW)).await;
        made.map(|(token, _)| token)
    };
    let tokens = [
        invite(inviter.as_str(), None).await.expect("a token"),
        invite("admin", Some(key(100))).await.expect("a token"),
        invite(inviter.as_str(), None).await.expect("a token"),
    ];
    let unknown_peer = invite("nobody", None).await;
    assert!(matches!(unknown_peer, Err(InviteError::Maker)));
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
    let closed = hub.enrolment.remove(&inviter).await.expect("a peer");
    assert!(closed.contains(&tokens[0].name()));
    // It calls once more in the moment of its removal.
    let late = invite(inviter.as_str(), None).await;
    assert!(matches!(late, Err(InviteError::Maker)));
    assert_eq!(code(3, 0).await, "ENROLL_INVALID");
    // Another administrator has the name of the one who made it.
    hub.peers.replace_config(IdentityEntries {
        admins: vec![("admin".parse().expect("a peer id"), key(102))],
        ..IdentityEntries::default()
    });
    assert_eq!(code(3, 1).await, "ENROLL_INVALID");
}

/// Its call was let through before that, and waited for its turn.
#[tokio::test]
async fn an_approver_without_rights_admits_no_applicant() {
    let hub = hub(EnrolMode::Approve);
    let approver = hub.worker_with("hub:admin").await;
    assert_eq!(
        hub.code(2, &request(None, None), NOW).await,
        "ENROLL_PENDING"
    );
    let words = fingerprint(&key(2));
    let approve = async || {
        let approval = approval(approver.as_str());
        hub.enrolment
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
    hub.enrolment.remove(&approver).await.expect("removed");
    assert!(matches!(approve().await, Err(ApproveError::Approver)));
    assert_eq!(hub.enrolment.waiting(hub.start).len(), 1, "it waits on");
}
