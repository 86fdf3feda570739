//! Tokens: correct ones, wrong ones, and too many wrong ones.

use alknet_call::{CallBody, CallError, CallOptions};
use alknet_core::{AuthToken, Carriage};
use alknet_endpoint::EndpointLimits;
use alknet_tls::NodeKey;
use serde_json::Value;

use super::lab::{IdentityLab, LabClient, TestIdentity, WORK, document};

async fn with_token(client: &LabClient, token: &AuthToken) -> Result<CallBody, CallError> {
    let options = CallOptions {
        auth_token: Some(token.expose().to_owned()),
        ..CallOptions::default()
    };
    client.client.call_with(WORK, &Value::Null, &options).await
}

fn token() -> AuthToken {
    AuthToken::generate().expect("randomness")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_replaces_the_connections_identity_and_never_adds_to_it() {
    let edge = TestIdentity::new("edge");
    let (right, useless) = (token(), token());
    let entry = |token: &AuthToken, scopes: &str| {
        let hash = token.hash().expect("a token").to_string();
        let (key_id, sha256) = hash.split_once(':').expect("the form of a hash");
        format!("[[api_keys]]\nkey_id = \"{key_id}\"\nsha256 = \"{sha256}\"\nscopes = [{scopes}]\n")
    };
    let text = document(std::slice::from_ref(&edge))
        + &entry(&right, "\"work\"")
        + &entry(&useless, "\"other\"");
    let lab = IdentityLab::start(&text, EndpointLimits::default());

    let unknown_peer = NodeKey::generate().expect("a key");
    let unknown_peer = lab.connect(&unknown_peer, Carriage::Quic).await;
    let refused = unknown_peer.work().await.expect_err("an unknown peer");
    assert_eq!(refused.code.name(), "UNAUTHENTICATED");
    let answer = with_token(&unknown_peer, &right)
        .await
        .expect("a right token");
    let name = format!("key:{}", right.hash().expect("a token").key_id);
    assert_eq!(answer.value(), name.as_str());

    // The connection's rights do not extend those of a token, or help an unknown token.
    let peer = lab.connect(&edge.key, Carriage::Quic).await;
    peer.work().await.expect("allowed");
    let refused = with_token(&peer, &useless).await.expect_err("other scopes");
    assert_eq!(refused.code.name(), "FORBIDDEN");
    let refused = with_token(&peer, &token()).await.expect_err("unknown");
    assert_eq!(refused.code.name(), "UNAUTHENTICATED");
    assert!(!refused.message.contains("alk_"));

    // Revoked with the next document.
    lab.apply(&document(&[edge]));
    let refused = with_token(&unknown_peer, &right)
        .await
        .expect_err("revoked");
    assert_eq!(refused.code.name(), "UNAUTHENTICATED");
}

#[tokio::test(flavor = "multi_thread")]
async fn guesses_are_refused_and_no_other_client_of_the_network_notices() {
    let edge = TestIdentity::new("edge");
    let right = token();
    let limits = EndpointLimits::default();
    let hash = right.hash().expect("a token").to_string();
    let (key_id, sha256) = hash.split_once(':').expect("the form of a hash");
    let text = document(std::slice::from_ref(&edge))
        + &format!(
            "[[api_keys]]\nkey_id = \"{key_id}\"\nsha256 = \"{sha256}\"\nscopes = [\"work\"]\n"
        );
    let lab = IdentityLab::start(&text, limits);
    let unknown = NodeKey::generate().expect("a key");
    let guesser = lab.connect(&unknown, Carriage::Quic).await;
    let peer = lab.connect(&edge.key, Carriage::Quic).await;
    let session = lab.connect(&unknown, Carriage::Tcp).await;
    session
        .client
        .authenticate(&right)
        .await
        .expect("a right token");
    let idle = lab.connect(&unknown, Carriage::Tcp).await;
    for _ in 0..limits.failures_per_minute_max {
        let refused = with_token(&guesser, &token()).await.expect_err("a guess");
        assert_eq!(refused.code.name(), "UNAUTHENTICATED");
    }
    assert_eq!(lab.server.counters().penalties, 1);
    let penalties = lab.server.penalties();
    assert_eq!(penalties.len(), 1);
    assert_eq!(penalties[0].0.to_string(), "127.0.0.0/24");
    let late = lab.connect(&unknown, Carriage::Quic).await;
    for guesser in [&guesser, &late] {
        let refused = with_token(guesser, &token()).await.expect_err("a guess");
        assert_eq!(refused.code.name(), "OVERLOADED");
        assert!(refused.retry_after_ms.is_some_and(|ms| ms > 0));
        // The correct token is accepted even after the guesses.
        with_token(guesser, &right).await.expect("a right token");
    }
    session.work().await.expect("a session stays");
    with_token(&idle, &right)
        .await
        .expect("what said nothing yet stays");
    peer.work().await.expect("who is known stays");
    let late = lab.connect(&edge.key, Carriage::Quic).await;
    late.work().await.expect("who is known gets in");
}
