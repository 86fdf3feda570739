//! What requesters share of one imported server: memory for its answers, and calls at once. One requester keeps no other
//! out, and a change whose answer finds no room is not made twice.

use std::sync::Arc;
use std::time::Duration;

use alknet_call::{CallOutput, ErrorCode, ImportMemory};
use alknet_openapi::from::limits::{CALLS_MAX, CHANGE_ANSWER_BYTES_MIN};
use alknet_test_support::deadline;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::common::ImportTestNode;
use crate::stand_in::{StubServer, json_answer, node, options};

/// An import has 2 MiB of it, and one requester 1 MiB of these.
const MACHINE_BYTES: u64 = 32 << 20;
const SHARE_BYTES: usize = 1 << 20;

const KIB: usize = 1 << 10;

/// A node with an import on a small machine, the import's server, and what the answers count against.
async fn small() -> (ImportTestNode, StubServer, ImportMemory) {
    let server = StubServer::default();
    let memory = ImportMemory::for_machine(MACHINE_BYTES);
    let mut options = options(&server.start().await);
    options.memory = memory.clone();
    (node(options), server, memory)
}

/// An answer of some more bytes than these.
fn long(bytes: usize) -> String {
    json_answer("200 OK", &json!("x".repeat(bytes)))
}

/// Answers that an identity asks for and keeps until it gets no more.
async fn fill(node: &ImportTestNode, server: &StubServer, who: &str) -> Vec<CallOutput> {
    let mut kept = Vec::new();
    let mut bytes = 256 * KIB;
    while bytes >= KIB {
        server.will_answer(long(bytes));
        let input = json!({ "id": "1" });
        match node.call_as(who, None, "ns/getThing", input).await {
            Ok(answer) => kept.push(answer),
            Err(refused) => {
                assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
                assert!(refused.retryable, "it is a query");
                bytes /= 2;
            }
        }
    }
    kept
}

fn changes(server: &StubServer) -> usize {
    let heard = server.heard();
    heard.iter().filter(|one| one.starts_with("POST")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_one_identity_keeps_leave_others_room() {
    let (node, server, memory) = small().await;
    let kept = fill(&node, &server, "eve").await;
    let taken = memory.taken();
    assert!(taken > SHARE_BYTES - 64 * KIB, "{taken}");
    assert!(taken <= SHARE_BYTES, "{taken}");
    server.will_answer(long(300 * KIB));
    let answered = node.call_as("ada", None, "ns/getThing", json!({ "id": "1" }));
    answered.await.expect("another identity has room");
    let made = node.call_as("ada", Some("k"), "ns/make", json!({}));
    made.await.expect("and for the answer to a change");
    drop(kept);
    assert_eq!(memory.taken(), 0);
}

/// The attacker keeps answers, so that the answer to another identity's payment finds no room.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_whose_answer_finds_no_room_is_made_once_for_its_key() {
    let (node, server, _memory) = small().await;
    let _kept = fill(&node, &server, "eve").await;
    assert_eq!(changes(&server), 0);
    for _ in 0..2 {
        // More than is left of three quarters, and less than one identity may have.
        server.will_answer(long(700 * KIB));
        let paid = node.call_as("ada", Some("k"), "ns/make", json!({})).await;
        let refused = paid.expect_err("there is no room for the answer");
        assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
        assert!(!refused.retryable, "the server has made the change");
    }
    assert_eq!(changes(&server), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_is_refused_before_it_is_sent_where_its_answer_has_no_room() {
    let (node, server, _memory) = small().await;
    let kept = [
        fill(&node, &server, "eve").await,
        fill(&node, &server, "mallory").await,
    ];
    server.heard();
    let make = || node.call_as("ada", Some("k"), "ns/make", json!({}));
    let refused = make().await.expect_err("there is no room");
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    assert!(refused.retryable, "nothing was sent");
    assert_eq!(changes(&server), 0);
    // Of the last quarter others have a part, for short answers.
    const { assert!(SHARE_BYTES / 2 / 32 < CHANGE_ANSWER_BYTES_MIN) };
    server.will_answer(long(KIB));
    let answered = node.call_as("ada", None, "ns/getThing", json!({ "id": "1" }));
    answered.await.expect("a short one");
    drop(kept);
    make().await.expect("there is room again");
    assert_eq!(changes(&server), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_one_identity_leave_others_places_of_an_api() {
    const OF_ONE: usize = CALLS_MAX / 2;
    let server = StubServer::default();
    let node = Arc::new(node(options(&server.start().await)));
    let call = |who: &'static str| {
        let node = Arc::clone(&node);
        async move {
            let input = json!({ "id": "1" });
            let answer = node.call_as(who, None, "ns/getThing", input).await;
            answer.map(drop)
        }
    };
    let mut hanging = JoinSet::new();
    // The server hears as many, and says nothing.
    (0..OF_ONE).for_each(|_| server.will_answer(""));
    for _ in 0..=OF_ONE {
        hanging.spawn(call("eve"));
    }
    let ended = timeout(deadline(Duration::from_secs(30)), hanging.join_next());
    let ended = ended
        .await
        .expect("one is refused")
        .expect("there are some");
    let refused = ended.expect("no panic").expect_err("all places are taken");
    assert_eq!(refused.code, ErrorCode::Overloaded, "{refused}");
    assert_eq!(hanging.len(), OF_ONE);
    let mut heard = 0;
    let all = async {
        while heard < OF_ONE {
            sleep(Duration::from_millis(5)).await;
            heard += server.heard().len();
        }
    };
    let all = timeout(deadline(Duration::from_secs(60)), all).await;
    all.expect("the server hears all of them");
    call("ada").await.expect("another identity has places");
    hanging.shutdown().await;
    call("eve").await.expect("they are free again");
}
