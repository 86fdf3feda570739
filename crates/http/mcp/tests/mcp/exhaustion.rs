//! Callers that would have all that a node has for one imported server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alknet_call::{CallError, ErrorCode, ImportMemory};
use alknet_mcp::limits::{CALLS_MAX, CALLS_OF_ONE_MAX, CALLS_UNKNOWN_MAX};
use alknet_test_support::deadline;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::hostile::{
    McpServerReply, importer, importer_at, importer_in, listing, raw_server, usual,
};
use crate::imports::McpImporter;

/// Long enough for what happens at once, on a machine that is busy.
const SOON: Duration = Duration::from_secs(30);

/// The next of these calls that ends.
async fn next_ended(calls: &mut JoinSet<Result<Value, CallError>>) -> CallError {
    let ended = timeout(deadline(SOON), calls.join_next());
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

/// A server of an older version that answers only calls that ask for it, and takes no cancellation.
#[derive(Default)]
struct UncancellableServer {
    greetings: AtomicUsize,
    /// Calls since the last greeting.
    calls: AtomicUsize,
    /// The most calls after one greeting.
    most_calls: AtomicUsize,
    called: Notify,
}

impl UncancellableServer {
    /// A node with its tools.
    async fn importer(self: &Arc<Self>) -> McpImporter {
        let server = Arc::clone(self);
        let port = raw_server(move |message| server.reply(message)).await;
        importer_at(&ImportMemory::default(), port).await
    }

    /// Waits until so many calls reached it.
    async fn has_calls(&self, calls: usize) {
        let there = async {
            while self.calls.load(Ordering::SeqCst) < calls {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(deadline(SOON), there).await.expect("they come");
    }

    fn reply(&self, message: &Value) -> McpServerReply {
        match message["method"].as_str().unwrap_or_default() {
            "notifications/cancelled" => return McpServerReply::Silence,
            "initialize" => {
                self.greetings.fetch_add(1, Ordering::SeqCst);
                self.calls.store(0, Ordering::SeqCst);
            }
            "tools/call" if message["params"]["arguments"]["answer"] == true => {
                return McpServerReply::Result(json!({"content": []}));
            }
            "tools/call" => {
                let calls = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
                self.most_calls.fetch_max(calls, Ordering::SeqCst);
                self.called.notify_one();
                return McpServerReply::Silence;
            }
            _ => {}
        }
        let known = usual(message).or_else(|| listing(message));
        known.unwrap_or(McpServerReply::Silence)
    }
}

/// The library keeps each request until its cancellation is sent, and sends one after the other.
#[tokio::test]
async fn calls_that_are_cancelled_are_no_more_than_there_are_places() {
    let server = Arc::new(UncancellableServer::default());
    let node = server.importer().await;
    let mut refused = 0;
    for _ in 0..4 * CALLS_MAX {
        let begun = async {
            tokio::select! {
                ended = node.call_as("eve", "plain", json!({})) => Some(ended),
                () = server.called.notified() => None,
            }
        };
        // What is not refused is cancelled here.
        let begun = timeout(deadline(SOON), begun).await.expect("it begins");
        let ended = begun.map(|ended| ended.expect_err("it has no answer").code);
        refused += usize::from(ended == Some(ErrorCode::Overloaded));
    }
    let most = server.most_calls.load(Ordering::SeqCst);
    assert!((1..=CALLS_OF_ONE_MAX).contains(&most), "{most} calls");
    assert!(refused > 0, "cancelled calls have places");
}

#[tokio::test]
async fn a_server_that_takes_no_cancellation_loses_its_connection_and_keeps_no_places() {
    let server = Arc::new(UncancellableServer::default());
    let node = Arc::new(server.importer().await);
    let mut hanging = JoinSet::new();
    for _ in 0..CALLS_OF_ONE_MAX {
        let node = Arc::clone(&node);
        hanging.spawn(async move { node.call_as("eve", "plain", json!({})).await });
    }
    server.has_calls(CALLS_OF_ONE_MAX).await;
    hanging.shutdown().await;
    let answered = async {
        let input = json!({"answer": true});
        while let Err(refused) = node.call_as("eve", "plain", input.clone()).await {
            assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(deadline(2 * SOON), answered)
        .await
        .expect("the places are free again");
    assert_eq!(server.greetings.load(Ordering::SeqCst), 2, "connections");
}

/// The library has each request as a tree twice, and once as text.
#[tokio::test]
async fn requests_count_as_long_as_they_are_under_way() {
    let called = Arc::new(Notify::new());
    let memory = ImportMemory::default();
    let seen = Arc::clone(&called);
    let node = importer_in(&memory, move |_| {
        seen.notify_one();
        McpServerReply::Silence
    });
    let node = node.await;
    let input = json!({"text": "x".repeat(1 << 20)});
    let call = async {
        tokio::select! {
            ended = node.call("plain", input) => panic!("{ended:?}"),
            () = called.notified() => memory.taken(),
        }
    };
    let taken = timeout(deadline(SOON), call).await.expect("it is called");
    assert!(taken >= 3 << 20, "{taken} bytes count");
    let given_back = async {
        while memory.taken() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(deadline(SOON), given_back)
        .await
        .expect("it was cancelled");
}

#[tokio::test]
async fn a_request_without_room_does_not_reach_the_server() {
    let calls = Arc::new(AtomicUsize::new(0));
    // The least that there is: one import may have 2 MiB.
    let memory = ImportMemory::for_machine(32 << 20);
    let counted = Arc::clone(&calls);
    let node = importer_in(&memory, move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        McpServerReply::Result(json!({"content": []}))
    });
    let node = node.await;
    let refused = node
        .call("plain", json!({"text": "x".repeat(1 << 20)}))
        .await;
    let refused = refused.expect_err("three times a megabyte");
    assert_eq!(refused.code, ErrorCode::PayloadTooLarge, "{refused}");
    assert_eq!(calls.load(Ordering::SeqCst), 0, "calls");
    node.call("plain", json!({"text": "x".repeat(1 << 10)}))
        .await
        .expect("a shorter one");
}

#[tokio::test]
async fn a_call_without_a_place_is_refused_before_its_input_is_looked_at() {
    let server = Arc::new(UncancellableServer::default());
    let node = Arc::new(server.importer().await);
    let mut hanging = JoinSet::new();
    for _ in 0..CALLS_OF_ONE_MAX {
        let node = Arc::clone(&node);
        hanging.spawn(async move { node.call_as("eve", "plain", json!({})).await });
    }
    server.has_calls(CALLS_OF_ONE_MAX).await;
    // More values than a tree may have, which alone is `INVALID_INPUT`.
    let input = json!({"list": vec![0; 1 << 16]});
    let refused = node.call_as("eve", "plain", input.clone()).await;
    let refused = refused.expect_err("all places are taken");
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    let refused = node.call_as("ada", "plain", input).await;
    let refused = refused.expect_err("it has too many values");
    assert_eq!(refused.code, ErrorCode::InvalidInput, "{refused}");
    hanging.shutdown().await;
}
