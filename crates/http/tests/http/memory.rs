//! What requests and answers may hold of a machine's memory.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use alknet_gateway::limits::{BODY_AHEAD, CALL_BYTES_MAX, SMALL_BYTES, TICKETS_MAX, TICKETS_SHARE};
use alknet_http::limits::HttpTimeouts;
use alknet_test_support::deadline;
use http::StatusCode;
use serde_json::{Value, json};

use super::node::{HttpTestNode, UnfinishedRequest, VERSIONS, hung};

const MACHINE: u64 = 512 << 20;

/// What one identity has of it.
const EACH: usize = 32 << 20;

/// The head of a call, and of its body the first byte.
fn begins(token: &str, bytes: Option<usize>) -> String {
    let length = match bytes {
        Some(bytes) => format!("Content-Length: {bytes}"),
        None => "Transfer-Encoding: chunked".to_owned(),
    };
    let first = if bytes.is_some() { "{" } else { "1\r\n{\r\n" };
    format!(
        "POST /call HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\n{length}\r\n\r\n{first}"
    )
}

/// A call of so many bytes, of which all but the last few have come.
async fn almost(node: &HttpTestNode, token: &str, bytes: usize) -> UnfinishedRequest {
    let mut begun = node.begins(&begins(token, Some(bytes))).await;
    begun.says(&vec![b' '; bytes - 100]).await;
    begun
}

async fn small(node: &HttpTestNode, token: &str) -> StatusCode {
    let call = json!({ "operation": "/test/echo", "input": "x".repeat(1000) });
    node.post("h1", Some(token), "/call", &call).await.status
}

#[tokio::test]
async fn bodies_under_way_are_bounded_for_each_and_for_all() {
    let node = HttpTestNode::on(MACHINE);
    let most = begins("good", Some(CALL_BYTES_MAX));
    let mut held = Vec::new();
    for n in 1..=EACH / CALL_BYTES_MAX {
        held.push(almost(&node, "good", CALL_BYTES_MAX).await);
        node.until_bytes(n * CALL_BYTES_MAX).await;
    }
    // One more is refused before its second byte, and so is a short one of the same identity.
    let told = node.hears(&most, "\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 429"), "{told}");
    assert!(told.to_ascii_lowercase().contains("retry-after:"), "{told}");
    assert_eq!(small(&node, "good").await, 429);
    // A second identity has a part of what is left, and not all of it.
    held.push(almost(&node, "admin", CALL_BYTES_MAX).await);
    node.until_bytes(EACH + CALL_BYTES_MAX).await;
    let told = node
        .hears(&begins("admin", Some(CALL_BYTES_MAX)), "\r\n\r\n")
        .await;
    assert!(told.starts_with("HTTP/1.1 429"), "{told}");
    assert_eq!(small(&node, "admin").await, 200);
    // A third one has 128 KiB taken and answered.
    let long = json!({ "operation": "/test/echo", "input": "x".repeat(128 << 10) });
    for version in VERSIONS {
        let told = node.post(version, Some("other"), "/call", &long).await;
        assert_eq!(told.status, 200, "{version}");
        assert!(told.body.len() > 128 << 10, "{version}");
    }
    drop(held);
    node.until_bytes(0).await;
    assert_eq!(small(&node, "good").await, 200);
    node.until_bytes(0).await;
}

/// A length in the head of a request costs its sender nothing.
#[tokio::test]
async fn bodies_that_are_only_announced_take_no_memory() {
    let node = HttpTestNode::on(MACHINE);
    let head = begins("good", Some(CALL_BYTES_MAX));
    let mut held = Vec::new();
    for n in 1..=100 {
        held.push(node.begins(&head).await);
        node.until_bytes(n * BODY_AHEAD).await;
    }
    for token in ["good", "admin"] {
        assert_eq!(small(&node, token).await, 200, "{token}");
    }
    drop(almost(&node, "good", CALL_BYTES_MAX).await);
    drop(held);
    node.until_bytes(0).await;
}

/// By their lengths these would be all that two identities may have, which is all of the node. Requests so short use
/// what is kept for small ones as well.
#[tokio::test]
async fn short_bodies_that_are_only_announced_leave_others_theirs() {
    // The least there is: 4 MiB for the node.
    let node = HttpTestNode::on(0);
    let mut held = Vec::new();
    let mut came = 0;
    for token in ["good", "admin"] {
        let head = begins(token, Some(SMALL_BYTES));
        for _ in 0..40 {
            held.push(node.begins(head.trim_end_matches('{')).await);
            held.push(node.begins(&head).await);
            came += 1;
            node.until_bytes(came * BODY_AHEAD).await;
        }
    }
    for token in ["good", "admin"] {
        assert_eq!(small(&node, token).await, 200, "{token}");
    }
    drop(held);
    node.until_bytes(0).await;
}

/// These come, but for their ends. As small requests they may use what is kept for those, and two identities may have
/// all of the node.
#[tokio::test]
async fn short_bodies_that_do_not_end_leave_others_what_is_kept_for_them() {
    // The least there is: 4 MiB for the node, and 2 MiB for an identity.
    let node = HttpTestNode::on(0);
    let (first, second) = (32, 8);
    let mut held = Vec::new();
    for n in 1..=first + second {
        let token = if n <= first { "good" } else { "admin" };
        held.push(almost(&node, token, SMALL_BYTES).await);
        node.until_bytes(n * SMALL_BYTES).await;
    }
    // The second one may have three times as many again, but not of what is kept.
    let head = begins("admin", Some(SMALL_BYTES));
    let told = node.hears(&head, "\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 429"), "{told}");
    assert_eq!(small(&node, "other").await, 200);
    drop(held);
    node.until_bytes(0).await;
    assert_eq!(small(&node, "admin").await, 200);
}

/// Unknown peers of several networks ask for files, and take nothing of them.
#[tokio::test]
async fn files_that_unknown_peers_leave_take_no_memory_of_known_ones() {
    let folder = tempfile::tempdir().expect("room");
    std::fs::write(folder.path().join("large.bin"), vec![7; 4 << 20]).expect("room");
    // The least there is: 4 MiB for the node.
    let node = HttpTestNode::with_site(0, folder.path().to_owned(), "");
    let from = |network: u8| SocketAddr::from((Ipv4Addr::new(192, 0, network, 1), 1024));
    let mut held = Vec::new();
    let mut served = 0;
    for n in 0..150 {
        let (status, begun) = node.leaves(from(n % 2), "/large.bin").await;
        served += usize::from(status.ends_with("200"));
        held.push(begun);
    }
    // A network has a sixteenth of the bytes, at 32 KiB for each file.
    assert_eq!(served, 2 * 8);
    let (status, begun) = node.leaves(from(2), "/large.bin").await;
    assert!(status.ends_with("200"), "another network's: {status}");
    held.push(begun);
    for n in 3..100 {
        held.push(node.leaves(from(n), "/large.bin").await.1);
    }
    assert!(node.bytes() <= 1 << 20, "a quarter: {}", node.bytes());
    assert_eq!(small(&node, "admin").await, 200);
    let text = json!({ "operation": "/test/echo", "input": "x".repeat(300_000) });
    let told = node.post("h1", Some("good"), "/call", &text).await;
    assert_eq!(told.status, 200);
    drop(held);
    node.until_bytes(0).await;
}

/// Clients of four networks have all memory that unknown peers may have for files. An identity gets the same answers as
/// every client got before, also from a node that hides.
#[tokio::test]
async fn files_that_unknown_peers_leave_keep_no_identity_from_the_site() {
    let folder = tempfile::tempdir().expect("room");
    std::fs::write(folder.path().join("large.bin"), vec![7; 4 << 20]).expect("room");
    std::fs::write(folder.path().join("index.html"), "<p>here</p>").expect("room");
    let from = |network: u8| SocketAddr::from((Ipv4Addr::new(192, 0, network, 1), 1024));
    for stealth in [false, true] {
        let site = folder.path().display();
        let config = format!("[http]\nsite = \"{site}\"\ndecoy = \"site\"\nstealth = {stealth}\n");
        // The least there is: 4 MiB for the node.
        let node = HttpTestNode::with_site(0, folder.path().to_owned(), &config);
        let answers = async |token: Option<&str>| {
            let mut answers = Vec::new();
            for version in VERSIONS {
                // A file, and a path that leads to the first page.
                for path in ["/large.bin", "/nothing"] {
                    let mut told = node.get(version, token, path).await;
                    told.headers.remove("date");
                    answers.push((told.status, told.headers, told.body));
                }
            }
            answers
        };
        let before = answers(None).await;
        assert!(before.iter().all(|(status, ..)| *status == 200));
        node.until_bytes(0).await;
        let mut held = Vec::new();
        // A network has a sixteenth of the bytes, at 32 KiB for each file.
        for n in 0..4 * 8 {
            let (status, begun) = node.leaves(from(n % 4), "/large.bin").await;
            assert!(status.ends_with("200"), "{n}: {status}");
            held.push(begun);
        }
        let unknown = answers(None).await;
        assert!(unknown.iter().all(|(status, ..)| *status == 503));
        assert!(answers(Some("good")).await == before, "stealth: {stealth}");
        drop(held);
        node.until_bytes(0).await;
    }
}

/// There is memory for the request, and none for its answer.
#[tokio::test]
async fn a_call_whose_answer_has_no_room_does_not_run() {
    let node = HttpTestNode::on(MACHINE);
    let change = json!({ "operation": "/test/change" });
    let batch = json!({ "calls": [{ "id": "a", "operation": "/test/change" }] });
    let mut held = Vec::new();
    for _ in 1..EACH / CALL_BYTES_MAX {
        held.push(almost(&node, "good", CALL_BYTES_MAX).await);
    }
    held.push(almost(&node, "good", CALL_BYTES_MAX - 2000).await);
    node.until_bytes(EACH - 2000).await;
    for (path, body) in [("/call", &change), ("/batch", &batch)] {
        let told = node.post("h1", Some("good"), path, body).await;
        let status = match path {
            "/batch" if told.status == 200 => told.json()["results"][0]["status"].clone(),
            _ => told.status.as_u16().into(),
        };
        assert_eq!(status, 429, "{path}");
        assert_eq!(node.ran(), 0, "{path}");
    }
    drop(held);
    node.until_bytes(0).await;
    for (n, (path, body)) in [("/call", &change), ("/batch", &batch)].iter().enumerate() {
        let told = node.post("h1", Some("good"), path, body).await;
        assert_eq!((told.status.as_u16(), node.ran()), (200, n + 1), "{path}");
    }
    node.until_bytes(0).await;
}

#[tokio::test]
async fn tickets_of_one_identity_leave_the_others_theirs() {
    let node = HttpTestNode::new("");
    let ask = |token, input: String| {
        let call = json!({ "operation": "/test/count", "input": input });
        let mut request = node.request(
            http::Method::POST,
            Some(token),
            "/subscribe",
            &call.to_string(),
        );
        let later = http::HeaderValue::from_static("respond-async");
        request.headers_mut().insert("prefer", later);
        async { node.client("h1").await.response(request).await.status }
    };
    for _ in 0..TICKETS_MAX / TICKETS_SHARE {
        assert_eq!(ask("good", String::new()).await, 201);
    }
    assert_eq!(ask("good", String::new()).await, 429);
    assert_eq!(ask("admin", "x".repeat(1 << 20)).await, 201);
    assert_eq!(ask("admin", "x".repeat(3 << 20)).await, 413);
    assert_eq!(
        ask("admin", "x".repeat(3 << 19)).await,
        429,
        "with the first they are too many"
    );
}

#[tokio::test]
async fn a_body_without_a_length_is_counted_as_it_grows() {
    let node = HttpTestNode::on(MACHINE);
    let mut begun = node.begins(&begins("good", None)).await;
    let piece = [b"10000\r\n", &[b' '; 0x10000][..], b"\r\n"].concat();
    let mut said = 1;
    while node.bytes() < 1 << 20 {
        begun.says(&piece).await;
        said += 0x10000;
        tokio::task::yield_now().await;
        assert!(
            said < CALL_BYTES_MAX,
            "{} of {said} bytes are counted",
            node.bytes()
        );
    }
    drop(begun);
    node.until_bytes(0).await;
}

/// It never pauses for long, and comes faster than the slowest average.
#[tokio::test]
async fn a_body_has_a_time_as_a_whole() {
    let moment = deadline(Duration::from_millis(20));
    let node = HttpTestNode::patient(HttpTimeouts {
        body_time: 4 * moment,
        // The client falls silent after a while: these would end the body as well, with the same status.
        body_idle: 2 * hung(),
        body_grace: 2 * hung(),
        ..HttpTimeouts::default()
    });
    let piece = " ".repeat(1000);
    for path in ["/call", "/batch", "/subscribe", "/mcp"] {
        let head = begins("good", Some(CALL_BYTES_MAX / 2)).replace("/call", path);
        let head = head.replace("\r\n\r\n", "\r\nAccept: text/event-stream\r\n\r\n");
        let mut texts = vec![head.as_str()];
        texts.resize(12, &piece);
        let told = node.says(&texts, moment).await;
        assert!(told.starts_with("HTTP/1.1 408"), "{path}: {told}");
    }
    node.until_bytes(0).await;
}

#[tokio::test]
async fn answers_of_a_batch_have_room_or_say_that_they_had_none() {
    for version in VERSIONS {
        let node = HttpTestNode::on(MACHINE / 4);
        let text = "x".repeat(500_000);
        let calls: Vec<_> = (0..14)
            .map(|n| json!({ "id": n.to_string(), "operation": "/test/echo", "input": text }))
            .collect();
        let told = node
            .post(version, Some("good"), "/batch", &json!({ "calls": calls }))
            .await;
        assert_eq!(told.status, 200, "{version}");
        let answer = told.json();
        let results = answer["results"].as_array().expect("results");
        let with = |status: u64| results.iter().filter(|one| one["status"] == status).count();
        assert!(with(413) > 0, "{version}: {} had room", with(200));
        assert_eq!(with(200) + with(413), 14, "{version}");
        let refused = results
            .iter()
            .find(|one| one["status"] == 413)
            .expect("one");
        assert_eq!(refused["error"]["code"], "PAYLOAD_TOO_LARGE");
        assert_eq!(refused["error"]["retryable"], false);
        drop(told);
        node.until_bytes(0).await;
    }
}

#[tokio::test]
async fn an_answer_counts_until_it_is_taken() {
    let node = HttpTestNode::on(MACHINE);
    let text = "x".repeat(4 << 20);
    let call = json!({ "operation": "/test/echo", "input": text });
    let request = node.request(http::Method::POST, Some("good"), "/call", &call.to_string());
    let mut client = node.client("h2").await;
    let response = client.ask(request).await;
    assert_eq!(response.status(), 200);
    assert!(node.bytes() >= 4 << 20, "{}", node.bytes());
    drop(response);
    drop(client);
    node.until_bytes(0).await;
}

/// Neither is made into a tree, at whatever place it is.
#[tokio::test]
async fn what_is_wrong_is_named_without_a_tree() {
    let node = HttpTestNode::on(MACHINE);
    let list = format!("[{}0]", "0,".repeat(1 << 20));
    let post = |path: &'static str, body: String| {
        let request = node.request(http::Method::POST, Some("good"), path, &body);
        async { node.client("h1").await.response(request).await }
    };
    for (path, body, status, pointer) in [
        ("/call", format!(r#"{{"x":{list}}}"#), 400, "/x"),
        (
            "/call",
            format!(r#"{{"operation":{list}}}"#),
            400,
            "/operation",
        ),
        (
            "/call",
            format!(r#"{{"operation":"a/b","input":1,"timeout_ms":{list}}}"#),
            400,
            "/timeout_ms",
        ),
        (
            "/batch",
            format!(r#"{{"calls":[{{"id":"a","op":{list}}}]}}"#),
            400,
            "/calls/0/op",
        ),
        ("/batch", format!(r#"{{"calls":{list}}}"#), 400, "/calls/0"),
    ] {
        let told = post(path, body).await;
        assert_eq!(told.status, status, "{path} {pointer}");
        let answer: Value = told.json();
        assert_eq!(answer["error"]["details"]["pointer"], pointer, "{answer}");
    }
    let told = post(
        "/call",
        format!(r#"{{"operation":"test/number","input":{list}}}"#),
    )
    .await;
    assert_eq!(told.status, 422);
    node.until_bytes(0).await;
}
