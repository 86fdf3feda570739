//! Invitations and their tokens: bounds, uses, repeats, and uses that were cut off.

use alknet_core::{BoxFuture, IdentityProvider, KeyId};

use super::*;
use crate::store::TokenStoreError;

/// As a store on a disk is: others get their turn before it answers.
#[derive(Default)]
struct SlowTokenStore(MemoryTokens);

impl TokenStore for SlowTokenStore {
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
    hub.enrolment.remove(&first.peer_id).await.expect("a peer");
    assert!(hub.peers.by_key(&key(1)).is_none());
    assert_eq!(hub.code(1, &ask, NOW + 1).await, "ENROLL_INVALID");
    // A new invitation is another matter, and the id is the old one.
    let token = hub.token(TokenKind::Once, worker()).await;
    let back = hub.enrol(1, &request(Some(&token), None), NOW + 2).await;
    assert_eq!(back.expect("taken").peer_id, first.peer_id);
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
            JoinRequest {
                token: Some(forged),
                ..JoinRequest::default()
            },
            NOW,
        ),
        (
            JoinRequest {
                token: Some("nonsense".to_owned()),
                ..JoinRequest::default()
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
    hub.enrolment.set_policy(EnrolPolicy {
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
    let error = hub.enrolment.enrol(&applicant, None, hub.start).await;
    assert_eq!(error.expect_err("refused").code(), "ENROLL_INVALID");
}

/// The machine may stop between the two writes.
#[tokio::test]
async fn a_use_that_was_cut_off_is_finished_by_the_same_key() {
    let hub = hub(EnrolMode::Token);
    let token = hub.token(TokenKind::Once, worker()).await;
    let mut record = hub.enrolment.tokens().await.expect("a list").remove(0);
    record.uses.push(cut_off_use(1, "p0", "kitchen"));
    assert!(
        hub.enrolment
            .tokens
            .replace(record)
            .await
            .expect("in memory")
    );
    let ask = request(Some(&token), None);
    assert_eq!(hub.code(2, &ask, NOW).await, "ENROLL_INVALID");
    let enrolled = hub.enrol(1, &ask, NOW + 1).await.expect("finished");
    assert_eq!(
        (enrolled.peer_id.as_str(), enrolled.name.as_str()),
        ("p0", "kitchen")
    );
    assert!(hub.peers.by_key(&key(1)).is_some());
    assert!(hub.enrolment.tokens().await.expect("a list")[0].uses[0].done);
}

/// How it goes at each of these desks for a key of its own, from this one on, all at once.
async fn at_once(
    first: u8,
    desks: Vec<Arc<EnrolmentTestHub>>,
    token: &EnrolToken,
) -> Vec<&'static str> {
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

/// At one enrolment service each waits for its turn; at several that share a store, it is the store that takes one.
#[tokio::test]
async fn of_two_who_show_the_last_use_one_is_taken() {
    let tokens: Arc<dyn TokenStore> = Arc::new(SlowTokenStore::default());
    let hub = Arc::new(hub_of(Arc::clone(&tokens), EnrolMode::Token));
    let token = hub.token(TokenKind::Once, worker()).await;
    let codes = at_once(1, vec![Arc::clone(&hub); 8], &token).await;
    assert_eq!(codes[..7], ["ENROLL_INVALID"; 7]);
    assert_eq!(codes[7], "taken");
    assert_eq!(hub.enrolment.peers().await.expect("a list").len(), 1);

    let token = hub.token(TokenKind::Once, worker()).await;
    let others = (0..8).map(|_| {
        Arc::new(EnrolmentTestHub {
            enrolment: enrolment(Arc::clone(&tokens), &hub.peers, EnrolMode::Token),
            peers: Arc::clone(&hub.peers),
            start: hub.start,
        })
    });
    let codes = at_once(11, others.collect(), &token).await;
    let taken = codes.iter().filter(|code| **code == "taken").count();
    assert_eq!(taken, 1, "{codes:?}");
    assert_eq!(hub.enrolment.peers().await.expect("a list").len(), 2);
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
        hub.enrolment.invite(invitation, now).await.map(drop)
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
    assert_eq!(hub.enrolment.tokens().await.expect("a list").len(), 2);
}
