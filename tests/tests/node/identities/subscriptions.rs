//! Subscriptions and calls that run while their rights are removed, and later calls.

use std::sync::Arc;
use std::time::{Duration, Instant};

use alknet_call::{CallError, CallOptions, Subscription};
use alknet_core::{AuthToken, Carriage};
use alknet_endpoint::EndpointLimits;
use alknet_test_support::{deadline, took};
use alknet_tls::NodeKey;
use serde_json::Value;
use tokio::time::timeout;

use super::lab::{FOLLOW, IdentityLab, LabClient, TestIdentity, WAIT, document, hung};

const CARRIAGES: [Carriage; 2] = [Carriage::Quic, Carriage::Tcp];

/// The meaning of "at once" on an idle machine: long before rights are checked again anyway.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Half of the time until rights are checked again without an event. On a very busy machine it
/// cannot distinguish the two.
const BEFORE_A_LOOK: Duration = Duration::from_secs(15);

/// How long nothing must come from a subscription that continues.
const SILENT: Duration = Duration::from_millis(50);

/// Starts one and waits for its first event.
async fn follow(client: &LabClient, token: Option<&AuthToken>) -> Subscription {
    let options = CallOptions {
        timeout: None,
        auth_token: token.map(|token| token.expose().to_owned()),
        ..CallOptions::default()
    };
    let started = client.client.subscribe_with(FOLLOW, &Value::Null, &options);
    let mut events = started.await.expect("started");
    let first = timeout(hung(), events.next()).await.expect("in time");
    let first = first.expect("an event").expect("allowed");
    assert_eq!(first.output.value(), "following");
    events
}

async fn end(events: &mut Subscription) -> CallError {
    let end = timeout(deadline(BEFORE_A_LOOK), events.next()).await;
    let end = end.expect("it learns of the change");
    end.expect("an end").expect_err("no event")
}

fn api_key(token: &AuthToken, scope: &str) -> String {
    let hash = token.hash().expect("a token").to_string();
    let (key_id, sha256) = hash.split_once(':').expect("the form of a hash");
    format!("[[api_keys]]\nkey_id = \"{key_id}\"\nsha256 = \"{sha256}\"\nscopes = [\"{scope}\"]\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_narrower_scope_ends_them_and_nothing_else() {
    let (edge, other) = (TestIdentity::new("edge"), TestIdentity::new("other"));
    let both = document(&[edge.clone(), other.clone()]);
    for carriage in CARRIAGES {
        let lab = IdentityLab::start(&both, EndpointLimits::default());
        let (client, bystander) = (
            lab.connect(&edge.key, carriage).await,
            lab.connect(&other.key, carriage).await,
        );
        let mut narrowed = follow(&client, None).await;
        let mut untouched = follow(&bystander, None).await;
        // A subscription that is open to unknown peers has no right to lose.
        let watch = client.client.subscribe("services/watch", &Value::Null);
        let mut watch = watch.await.expect("started");
        timeout(hung(), watch.next())
            .await
            .expect("in time")
            .expect("an event")
            .expect("open");

        let narrow = document(std::slice::from_ref(&edge)).replace("\"work\"", "\"less\"");
        let began = Instant::now();
        lab.apply(&(narrow + &document(std::slice::from_ref(&other))));
        assert_eq!(end(&mut narrowed).await.code.name(), "FORBIDDEN");
        took(
            "a subscription ends without its right",
            AT_ONCE,
            began.elapsed(),
        );
        lab.apply(&both);
        client.work().await.expect("the connection is there");
        // Only the one whose scopes changed gets the list again.
        while let Ok(event) = timeout(deadline(SILENT), watch.next()).await {
            let event = event.expect("an event").expect("open");
            assert_eq!(event.output.value()["whole"], true, "{event:?}");
        }
        let silent = timeout(deadline(SILENT), untouched.next()).await;
        assert!(silent.is_err(), "{silent:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_revoked_ends_what_it_started() {
    let edge = TestIdentity::new("edge");
    let token = AuthToken::generate().expect("randomness");
    let peers = document(std::slice::from_ref(&edge));
    let with = |scope: &str| peers.clone() + &api_key(&token, scope);
    for carriage in CARRIAGES {
        let lab = IdentityLab::start(&with("work"), EndpointLimits::default());
        let unknown_peer = NodeKey::generate().expect("a key");
        let unknown_peer = lab.connect(&unknown_peer, carriage).await;
        let peer = lab.connect(&edge.key, carriage).await;
        let mut narrowed = follow(&unknown_peer, Some(&token)).await;
        let mut own = follow(&peer, None).await;
        lab.apply(&with("less"));
        assert_eq!(end(&mut narrowed).await.code.name(), "FORBIDDEN");
        lab.apply(&with("work"));
        let mut revoked = follow(&peer, Some(&token)).await;
        let began = Instant::now();
        lab.apply(&peers);
        // Not the peer's own right, which would suffice: a token replaces it.
        assert_eq!(end(&mut revoked).await.code.name(), "UNAUTHENTICATED");
        took(
            "a subscription ends with its token",
            AT_ONCE,
            began.elapsed(),
        );
        let silent = timeout(deadline(SILENT), own.next()).await;
        assert!(silent.is_err(), "{silent:?}");
    }
}

/// The connection acts as a token. After the token loses the right, the node ends the subscription
/// with `FORBIDDEN`.
#[tokio::test(flavor = "multi_thread")]
async fn a_narrower_token_of_a_connection_ends_what_runs_on_it() {
    let token = AuthToken::generate().expect("randomness");
    for carriage in CARRIAGES {
        let lab = IdentityLab::start(&api_key(&token, "work"), EndpointLimits::default());
        let unknown_peer = NodeKey::generate().expect("a key");
        let client = lab.connect(&unknown_peer, carriage).await;
        client.client.authenticate(&token).await.expect("known");
        let mut narrowed = follow(&client, None).await;
        let began = Instant::now();
        lab.apply(&api_key(&token, "less"));
        assert_eq!(end(&mut narrowed).await.code.name(), "FORBIDDEN");
        took(
            "a subscription ends with the right of its connection's token",
            AT_ONCE,
            began.elapsed(),
        );
        let refused = client.work().await;
        let refused = refused.expect_err("the connection has less as well");
        assert_eq!(refused.code.name(), "FORBIDDEN");
    }
}

/// How often rights are removed and returned, and how many calls race each change.
const ROUNDS: usize = 50;
const RACING: usize = 8;

/// The connection acts as a token, whose rights the endpoint does not watch.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_comes_after_a_change_has_no_right_of_before() {
    let token = AuthToken::generate().expect("randomness");
    for carriage in CARRIAGES {
        let lab = IdentityLab::start(&api_key(&token, "work"), EndpointLimits::default());
        let unknown_peer = NodeKey::generate().expect("a key");
        let client = Arc::new(lab.connect(&unknown_peer, carriage).await);
        client.client.authenticate(&token).await.expect("known");
        for round in 0..ROUNDS {
            client.work().await.expect("allowed, at once again");
            let race = |_| {
                let client = Arc::clone(&client);
                let refused = async move {
                    loop {
                        if let Err(refused) = client.work().await {
                            break refused;
                        }
                    }
                };
                tokio::spawn(refused)
            };
            let racing: Vec<_> = (0..RACING).map(race).collect();
            client.work().await.expect("allowed");
            lab.apply(&api_key(&token, "less"));
            let refused = client.work().await.expect_err("it came after the change");
            assert_eq!(refused.code.name(), "FORBIDDEN", "{round}");
            for call in racing {
                let refused = call.await.expect("no panic");
                assert_eq!(refused.code.name(), "FORBIDDEN", "{round}");
            }
            lab.apply(&api_key(&token, "work"));
        }
    }
}

/// The answer is made after the right to it was removed.
#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_not_answered_after_the_right_to_it() {
    let edge = TestIdentity::new("edge");
    let token = AuthToken::generate().expect("randomness");
    let peers = document(std::slice::from_ref(&edge));
    let wide = peers.clone() + &api_key(&token, "work");
    let narrow = wide.replace("\"work\"", "\"less\"");
    for carriage in CARRIAGES {
        let lab = IdentityLab::start(&wide, EndpointLimits::default());
        let peer = lab.connect(&edge.key, carriage).await;
        let unknown_peer = NodeKey::generate().expect("a key");
        let unknown_peer = lab.connect(&unknown_peer, carriage).await;
        unknown_peer
            .client
            .authenticate(&token)
            .await
            .expect("known");
        let waiting: Vec<_> = [&peer, &unknown_peer]
            .map(|client| Arc::clone(&client.client))
            .map(|client| tokio::spawn(async move { client.call(WAIT, &Value::Null).await }))
            .into();
        let mut began = lab.waiting.subscribe();
        let began = timeout(hung(), began.wait_for(|began| *began == waiting.len())).await;
        began.expect("in time").expect("the lab is there");
        lab.apply(&narrow);
        lab.permits.add_permits(waiting.len());
        for call in waiting {
            let answer = timeout(hung(), call).await.expect("in time");
            let refused = answer.expect("no panic").expect_err("its right is gone");
            assert_eq!(refused.code.name(), "FORBIDDEN");
        }
    }
}
