//! Callers that would have all that a node has for one imported server.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallError, ErrorCode};
use alknet_mcp::limits::{CALLS_MAX, CALLS_UNKNOWN_MAX};
use alknet_test_support::deadline;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::hostile::{McpServerReply, importer};

/// Long enough for what happens at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);

/// The next of these calls that ends.
async fn next_ended(calls: &mut JoinSet<Result<Value, CallError>>) -> CallError {
    let ended = tokio::time::timeout(deadline(SOON), calls.join_next());
    let ended = ended.await.expect("it ends").expect("there are as many");
    ended.expect("no panic").expect_err("it has no answer")
}

/// A connection through a relay has no address either, and a key costs an attacker nothing.
#[tokio::test]
async fn unknown_peers_without_an_address_leave_known_ones_places_of_a_server() {
    let node = importer(
        |message| match message["params"]["arguments"]["hangs"] == true {
            true => McpServerReply::Silence,
            false => McpServerReply::Result(json!({"content": []})),
        },
    );
    let node = Arc::new(node.await);
    let mut hanging = JoinSet::new();
    for _ in 0..CALLS_MAX {
        let node = Arc::clone(&node);
        hanging.spawn(async move { node.call("plain", json!({"hangs": true})).await });
    }
    for _ in 0..CALLS_MAX - CALLS_UNKNOWN_MAX {
        let refused = next_ended(&mut hanging).await;
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
        assert!(refused.message.contains("unknown peers"), "{refused}");
    }
    assert_eq!(hanging.len(), CALLS_UNKNOWN_MAX);
    let answered = node.call_as("ada", "plain", json!({})).await;
    answered.expect("a known peer has places");
    hanging.shutdown().await;
}
