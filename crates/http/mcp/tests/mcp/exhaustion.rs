//! Callers that would have all that a node has for one imported server.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alknet_call::{CallError, ErrorCode, ImportMemory};
use alknet_mcp::limits::{CALLS_MAX, CALLS_OF_ONE_MAX, CALLS_UNKNOWN_MAX, SERVER_REQUESTS_MAX};
use alknet_test_support::{deadline, is_campaign};
use serde_json::{Value, json};
use tokio::runtime::Handle;
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
    /// The ids of the calls without an answer, in their order.
    calls: Mutex<Vec<Value>>,
    /// The ids of the calls whose cancellation reached it, in their order.
    cancelled: Mutex<Vec<Value>>,
    /// The most calls beyond those with a cancellation.
    most_calls: AtomicUsize,
    called: Notify,
    /// Answers one call that asks to be held.
    released: Arc<Notify>,
}

/// What this list has now.
fn listed(list: &Mutex<Vec<Value>>) -> Vec<Value> {
    list.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// Adds to it, and returns how many there are.
fn add(list: &Mutex<Vec<Value>>, one: &Value) -> usize {
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    list.push(one.clone());
    list.len()
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
            while listed(&self.calls).len() < calls {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(deadline(SOON), there).await.expect("they come");
    }

    /// Waits until the cancellations that reached it are such, and returns them.
    async fn has_cancelled(&self, enough: impl Fn(&[Value]) -> bool) -> Vec<Value> {
        let there = async {
            loop {
                let cancelled = listed(&self.cancelled);
                if enough(&cancelled) {
                    return cancelled;
                }
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(deadline(2 * SOON), there).await.expect("they come")
    }

    fn reply(&self, message: &Value) -> McpServerReply {
        match message["method"].as_str().unwrap_or_default() {
            "notifications/cancelled" => {
                add(&self.cancelled, &message["params"]["requestId"]);
                return McpServerReply::Silence;
            }
            "initialize" => {
                self.greetings.fetch_add(1, Ordering::SeqCst);
            }
            "tools/call" if message["params"]["arguments"]["answer"] == true => {
                return McpServerReply::Result(json!({"content": []}));
            }
            "tools/call" => {
                let calls = add(&self.calls, &message["id"]);
                let open = calls.saturating_sub(listed(&self.cancelled).len());
                self.most_calls.fetch_max(open, Ordering::SeqCst);
                self.called.notify_one();
                return match message["params"]["arguments"]["held"] == true {
                    true => {
                        let answer = json!({"content": []});
                        McpServerReply::Held(Arc::clone(&self.released), answer)
                    }
                    false => McpServerReply::Silence,
                };
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
        // After each call: the library begins no more than one in 5 s once it has as many as it may.
        let most = server.most_calls.load(Ordering::SeqCst);
        assert!((1..=CALLS_OF_ONE_MAX).contains(&most), "{most} calls");
    }
    assert!(refused > 0, "cancelled calls have places");
}

/// Calls of eve, as many as one requester may have, which the server got and does not answer.
async fn calls_of_eve(
    server: &UncancellableServer,
    node: &Arc<McpImporter>,
) -> JoinSet<Result<Value, CallError>> {
    let before = listed(&server.calls).len();
    let mut hanging = JoinSet::new();
    for _ in 0..CALLS_OF_ONE_MAX {
        let node = Arc::clone(node);
        hanging.spawn(async move { node.call_as("eve", "plain", json!({})).await });
    }
    server.has_calls(before + CALLS_OF_ONE_MAX).await;
    hanging
}

/// Waits until eve, whose calls are all cancelled, has so many places at once: the node gave as many cancellations up.
async fn eve_has_places(server: &UncancellableServer, node: &Arc<McpImporter>, places: usize) {
    let mut held = JoinSet::new();
    let got = async {
        while held.len() < places {
            let before = listed(&server.calls).len();
            let own = Arc::clone(node);
            held.spawn(async move { own.call_as("eve", "plain", json!({})).await });
            let is_taken = async {
                while listed(&server.calls).len() == before {
                    sleep(Duration::from_millis(10)).await;
                }
            };
            tokio::select! {
                () = is_taken => {}
                Some(refused) = held.join_next() => {
                    let refused = refused.expect("no panic").expect_err("it has no answer");
                    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    };
    // The library sends one cancellation after the other, each for up to 5 s.
    let time = deadline(2 * SOON + 5 * Duration::from_secs(places as u64));
    let got = timeout(time, got).await;
    got.expect("as many places are free again");
}

/// Waits until eve, whose calls are all cancelled, has a place again: the node gave a cancellation up.
async fn eve_has_a_place(node: &McpImporter) {
    let answered = async {
        let input = json!({"answer": true});
        while let Err(refused) = node.call_as("eve", "plain", input.clone()).await {
            assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(deadline(2 * SOON), answered)
        .await
        .expect("a place is free again");
}

#[tokio::test]
async fn a_server_that_takes_no_cancellation_keeps_no_place_for_ever() {
    let server = Arc::new(UncancellableServer::default());
    let node = Arc::new(server.importer().await);
    calls_of_eve(&server, &node).await.shutdown().await;
    // Each takes 5 s.
    let places = if is_campaign() { CALLS_OF_ONE_MAX } else { 3 };
    eve_has_places(&server, &node, places).await;
}

/// An honest server with few threads takes no cancellation while a requester has them all.
#[tokio::test]
async fn a_cancellation_that_is_not_taken_ends_no_call_of_others() {
    let server = Arc::new(UncancellableServer::default());
    let node = Arc::new(server.importer().await);
    let of_ada = Arc::clone(&node);
    let ada =
        tokio::spawn(async move { of_ada.call_as("ada", "plain", json!({"held": true})).await });
    server.has_calls(1).await;
    calls_of_eve(&server, &node).await.shutdown().await;
    eve_has_a_place(&node).await;
    server.released.notify_one();
    let answer = timeout(deadline(SOON), ada).await.expect("it ends");
    let answer = answer.expect("no panic").expect("the server answers it");
    assert_eq!(answer["content"], json!([]));
    assert_eq!(server.greetings.load(Ordering::SeqCst), 1, "connections");
}

/// The library sends one after the other, each for up to 5 s.
#[tokio::test]
async fn cancellations_of_one_requester_let_those_of_others_pass() {
    let server = Arc::new(UncancellableServer::default());
    let node = Arc::new(server.importer().await);
    let mut of_eve = calls_of_eve(&server, &node).await;
    let of_ada = Arc::clone(&node);
    let mut ada = JoinSet::new();
    ada.spawn(async move { of_ada.call_as("ada", "plain", json!({})).await });
    server.has_calls(CALLS_OF_ONE_MAX + 1).await;
    let id = listed(&server.calls).pop().expect("her call is the last");
    of_eve.shutdown().await;
    server.has_cancelled(|ids| !ids.is_empty()).await;
    ada.shutdown().await;
    let ids = server.has_cancelled(|ids| ids.contains(&id)).await;
    let before = ids.iter().take_while(|one| **one != id).count();
    // One was under way. A busy machine may have given it up before ada's call ended.
    assert!((1..=3).contains(&before), "{before} of eve go before it");
}

/// Requests of a server with these ids, as events.
fn pings(ids: impl IntoIterator<Item = usize>) -> String {
    let ping = |id: usize| {
        format!(
            "data: {}\n\n",
            json!({"jsonrpc": "2.0", "id": format!("ping-{id}"), "method": "ping"})
        )
    };
    ids.into_iter().map(ping).collect()
}

/// Events, and then the answer to a call.
fn answer_after(events: &str, call: &Value) -> McpServerReply {
    let answer = json!({"jsonrpc": "2.0", "id": call["id"], "result": {"content": []}});
    let body = format!("{events}data: {answer}\n\n");
    McpServerReply::Body("text/event-stream", body)
}

/// The library has a task for each request of a server until its answer is posted.
#[tokio::test]
async fn requests_of_a_server_that_takes_no_answers_are_few_tasks() {
    const PINGS: usize = 10_000;
    let events = pings(0..PINGS);
    let node = importer(move |message| match message["method"] == "tools/call" {
        true => answer_after(&events, message),
        false => McpServerReply::Silence,
    });
    let node = node.await;
    let tasks = || Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let call = node.call("plain", json!({}));
    let answer = timeout(deadline(2 * SOON), call).await.expect("it ends");
    // The library had read every request by then.
    answer.expect("what was not passed on does not end the stream");
    let more = tasks().saturating_sub(before);
    // Each has a task of the library for it, and the connections that the answers are posted over have theirs.
    let most = 4 * SERVER_REQUESTS_MAX;
    assert!(more <= most, "{more} tasks, where {most} may be");
    // The server's requests reached the library: most of those that may wait do, as the server takes no answer.
    let least = SERVER_REQUESTS_MAX / 2;
    assert!(more >= least, "{more} tasks, where at least {least} wait");
}

#[tokio::test]
async fn requests_of_a_server_that_takes_the_answers_are_all_answered() {
    let asked = AtomicUsize::new(0);
    let answered = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&answered);
    let node = importer(move |message| match message["method"] == "tools/call" {
        true => {
            let id = asked.fetch_add(1, Ordering::SeqCst);
            answer_after(&pings([id]), message)
        }
        // What has no method answers a request of the server.
        false => {
            seen.fetch_add(1, Ordering::SeqCst);
            McpServerReply::Accepted
        }
    });
    let node = node.await;
    for call in 1..=2 * SERVER_REQUESTS_MAX {
        let answer = node.call("plain", json!({})).await;
        answer.expect("an answer");
        let there = async {
            while answered.load(Ordering::SeqCst) < call {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let there = timeout(deadline(SOON), there).await;
        assert!(there.is_ok(), "request {call} of the server has no answer");
    }
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
