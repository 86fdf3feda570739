//! The handler by itself, over connections in memory: what the house's tests find by clients of others is
//! found here before.

mod access;
mod basic;
mod budgets;
mod headers;
mod memory;
mod node;
mod patience;
mod three;
mod visible;

use std::time::Instant;

use alknet_gateway::limits::UNKNOWN_PEER_REQUESTS_BURST;
use http::{Method, StatusCode};
use serde_json::json;

use node::{HttpTestNode, VERSIONS};

#[tokio::test]
async fn calls_are_answered_and_named() {
    for version in VERSIONS {
        let node = HttpTestNode::new("");
        let told = node
            .post(
                version,
                Some("good"),
                "/call",
                &json!({"operation": "/test/echo", "input": {"n": 1}}),
            )
            .await;
        assert_eq!(told.status, StatusCode::OK, "{told:?}");
        let answer = told.json();
        assert_eq!(answer["output"], json!({"n": 1}));
        assert_eq!(told.header("x-request-id"), answer["request_id"].as_str());
    }
}

#[tokio::test]
async fn errors_have_one_form() {
    let node = HttpTestNode::new("");
    for (token, operation, input, status, code) in [
        (None, "/test/echo", json!(1), 401, "UNAUTHENTICATED"),
        (Some("bad"), "/test/echo", json!(1), 401, "UNAUTHENTICATED"),
        (Some("good"), "/test/none", json!(1), 404, "NOT_FOUND"),
        (Some("good"), "/test/hidden", json!(1), 404, "NOT_FOUND"),
        (Some("good"), "/test/admin", json!(1), 403, "FORBIDDEN"),
        (
            Some("good"),
            "/test/number",
            json!("x"),
            422,
            "INVALID_INPUT",
        ),
        (
            Some("good"),
            "/test/count",
            json!(1),
            400,
            "INVALID_OPERATION_TYPE",
        ),
        (Some("good"), "/test/full", json!(1), 507, "DISK_FULL"),
        (Some("good"), "/test/panic", json!(1), 500, "INTERNAL"),
    ] {
        let body = json!({ "operation": operation, "input": input });
        let told = node.post("h2", token, "/call", &body).await;
        assert_eq!(told.status.as_u16(), status, "{operation}");
        let error = &told.json()["error"];
        assert_eq!(error["code"], code, "{operation}");
        let members: Vec<_> = error
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect();
        assert_eq!(
            members[..3],
            ["code", "message", "retryable"],
            "{operation}"
        );
        assert_eq!(error["request_id"].as_str(), told.header("x-request-id"));
    }
}

#[tokio::test]
async fn a_batch_without_calls_has_no_results() {
    for version in VERSIONS {
        let node = HttpTestNode::new("");
        let body = json!({ "calls": [] });
        let told = node.post(version, Some("good"), "/batch", &body).await;
        assert_eq!(told.status, StatusCode::OK, "{told:?}");
        assert_eq!(told.json(), json!({ "results": [] }));
    }
}

#[tokio::test]
async fn a_namespace_that_none_can_be_is_refused() {
    let node = HttpTestNode::new("");
    for (length, status) in [(63, StatusCode::OK), (64, StatusCode::BAD_REQUEST)] {
        let path = format!("/search?namespace={}", "n".repeat(length));
        let told = node.get("h2", Some("good"), &path).await;
        assert_eq!(told.status, status, "{length}");
        if status == StatusCode::OK {
            assert_eq!(told.json()["operations"], json!([]));
        } else {
            let error = &told.json()["error"];
            assert_eq!(error["code"], "INVALID_INPUT");
            assert_eq!(error["details"]["pointer"], "/namespace");
            let message = error["message"].as_str().expect("text");
            assert!(message.contains("63"), "{message}");
        }
    }
}

#[tokio::test]
async fn subscriptions_are_streams_of_events() {
    for version in VERSIONS {
        let node = HttpTestNode::new("");
        let body = json!({ "operation": "/test/count", "input": 3 });
        let told = node.events(version, "good", &body).await;
        let expected = "id: 1\nevent: data\ndata: 0\n\nid: 2\nevent: data\ndata: 1\n\n\
id: 3\nevent: data\ndata: 2\n\nevent: completed\ndata: {}\n\n";
        assert_eq!(String::from_utf8_lossy(&told.body), expected, "{version}");
    }
}

#[tokio::test]
async fn a_closed_connection_ends_its_requests() {
    for version in VERSIONS {
        let node = HttpTestNode::new("");
        // Longer than this waits until it has ended.
        let body = json!({ "operation": "/test/wait", "input": null, "timeout_ms": 600_000 });
        let request = node.request(Method::POST, Some("good"), "/call", &body.to_string());
        let mut client = node.client(version).await;
        let asked = tokio::spawn(async move { client.ask(request).await });
        node.until_running(1).await;
        asked.abort();
        node.until_running(0).await;
        assert_eq!(node.dropped(), 1, "{version}");
    }
}

#[tokio::test]
async fn rates_are_kept() {
    let node = HttpTestNode::new("[http]\nrequests_per_second = 1\nrequests_burst = 3\n");
    let body = json!({ "operation": "/test/echo" });
    let began = Instant::now();
    let mut served: u32 = 0;
    let refused = loop {
        let told = node.post("h2", Some("good"), "/call", &body).await;
        if told.status == StatusCode::TOO_MANY_REQUESTS {
            break told;
        }
        assert_eq!(told.status, StatusCode::OK);
        served += 1;
        assert!(served < 100, "nothing is refused");
    };
    // A burst at once, and one more for each second that it took.
    let most = 3.0 + began.elapsed().as_secs_f64();
    assert!(
        (3.0..=most).contains(&f64::from(served)),
        "{served} of {most}"
    );
    assert_eq!(refused.header("retry-after"), Some("1"));
    let told = node.post("h2", Some("admin"), "/call", &body).await;
    assert_eq!(
        told.status,
        StatusCode::OK,
        "others are not counted together"
    );
}

/// An unknown peer gets refusals only so often; public paths are not counted.
#[tokio::test]
async fn rates_of_unknown_peers_are_kept() {
    let node = HttpTestNode::new("[http]\nunknown_peer_requests_per_second = 1\n");
    let body = json!({ "operation": "/test/echo" });
    for n in 0.. {
        assert!(n < 10 * UNKNOWN_PEER_REQUESTS_BURST, "nothing is refused");
        let token = (n % 2 == 0).then_some("bad");
        let told = node.post("h2", token, "/call", &body).await;
        if told.status == StatusCode::TOO_MANY_REQUESTS {
            assert!(n >= UNKNOWN_PEER_REQUESTS_BURST, "{n}");
            assert_eq!(told.header("retry-after"), Some("1"));
            break;
        }
        assert_eq!(told.status, StatusCode::UNAUTHORIZED);
    }
    for (token, path, status) in [
        (None, "/healthz", StatusCode::OK),
        (None, "/nothing", StatusCode::NOT_FOUND),
        (Some("good"), "/search", StatusCode::OK),
    ] {
        assert_eq!(node.get("h2", token, path).await.status, status, "{path}");
    }
}

/// A stealth node does not count the requests of unknown peers: a refusal by rate would tell them that it is a node.
#[tokio::test]
async fn unauthenticated_clients_get_the_same_empty_answer_each_time() {
    let node = HttpTestNode::new("[http]\nstealth = true\nunknown_peer_requests_per_second = 1\n");
    for n in 0..2 * UNKNOWN_PEER_REQUESTS_BURST {
        let told = node.get("h2", None, "/search").await;
        assert_eq!(told.status, StatusCode::NOT_FOUND, "{n}");
    }
}

#[tokio::test]
async fn paths_of_two_are_refused_at_the_start() {
    for (path, taken) in [
        ("/call", true),
        ("/status/x", true),
        ("/mine", false),
        ("mine", true),
    ] {
        let made = HttpTestNode::with_route(path);
        assert_eq!(made.is_err(), taken, "{path}");
    }
}

#[tokio::test]
async fn routes_of_others_see_who_asks() {
    let node = HttpTestNode::with_route("/mine").expect("a free path");
    let told = node.get("h2", Some("good"), "/mine").await;
    assert_eq!(told.body, b"token");
    let told = node.get("h2", None, "/mine").await;
    assert_eq!(told.body, b"unknown");
    assert_eq!(
        node.get("h2", Some("bad"), "/mine").await.status,
        StatusCode::UNAUTHORIZED
    );
}
