//! Guessed tokens.

use alknet_call::{ALPN, CallClient, CallConnection};
use alknet_core::Carriage;
use alknet_endpoint::EndpointDialer;
use alknet_tests::{TestBench, WebNode, guesses_refuse_no_other_client};
use alknet_tls::NodeKey;
use serde_json::Value;
use tokio::task::block_in_place;

/// A connection of the administrator, who proves a key on it, from the address of all clients here.
async fn by_key(
    bench: &TestBench,
    web: &WebNode,
    carriage: Carriage,
) -> (EndpointDialer, CallConnection) {
    let file = bench.admin().state().join("identity.key");
    let (key, _) = NodeKey::load_or_create(&file).expect("a key");
    let dialer = EndpointDialer::new(Some(key));
    let dialled = dialer.dial_over(carriage, &web.target(), ALPN).await;
    let connection = dialled.expect("it is known");
    let client = CallClient::without_operations().attach(connection, None);
    (dialer, client)
}

/// Calls an operation that only an administrator may call.
async fn is_known(client: &CallConnection) {
    let answer = client.call("node/info", &Value::Null).await;
    assert!(answer.is_ok(), "{answer:?}");
}

/// More wrong tokens than are allowed per minute, and other clients behind the same address: with
/// earlier tokens, and with proven keys.
#[tokio::test(flavor = "multi_thread")]
async fn a_guesser_gets_retry_after_and_no_other_client_is_refused() {
    let bench = TestBench::new();
    let web = block_in_place(|| WebNode::start(&bench, ""));
    let mut sessions = Vec::new();
    for carriage in [Carriage::Quic, Carriage::Tcp] {
        let (dialer, client) = by_key(&bench, &web, carriage).await;
        is_known(&client).await;
        sessions.push((dialer, client));
    }
    block_in_place(|| guesses_refuse_no_other_client(&bench, &web, &web.target()));
    for (_dialer, client) in &sessions {
        is_known(client).await;
    }
}
