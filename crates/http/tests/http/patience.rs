//! How long clients are waited for.

use std::time::Duration;

use alknet_http::limits::HttpTimeouts;
use alknet_test_support::deadline;
use http::header::ACCEPT;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use super::node::{HttpTestNode, VERSIONS, hung};
use super::three::{H3StreamPermits, H3TestClient};

fn moment() -> Duration {
    deadline(Duration::from_millis(20))
}

/// Enough for a request over a connection in memory.
fn enough() -> Duration {
    deadline(Duration::from_secs(2))
}

const LONG: Duration = Duration::from_secs(3600);

/// More than what the node takes of a head and what may be on its way to it.
const FLOOD_BYTES_MAX: usize = 4 << 20;

/// Kinds of frames of HTTP/2 (RFC 9113 section 6), and the bytes before a payload.
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const FRAME_HEAD_BYTES: usize = 9;

/// What is sent when there is no event.
const PING: &str = ": ping\n\n";

/// Reads until there is so much, or no more.
async fn text(response: &mut Response<Incoming>, bytes: usize) -> String {
    let work = async {
        let mut text = Vec::new();
        while text.len() < bytes
            && let Some(frame) = response.body_mut().frame().await
        {
            let frame = frame.expect("it goes on").into_data();
            text.extend_from_slice(&frame.unwrap_or_default());
        }
        String::from_utf8(text).expect("text")
    };
    let read = tokio::time::timeout(deadline(Duration::from_secs(60)), work).await;
    read.expect("it hangs")
}

/// Whichever part reads the body: the gateway, the page, tools, routes of the application.
#[tokio::test]
async fn bodies_that_do_not_come_are_given_up() {
    let node = HttpTestNode::patient(HttpTimeouts {
        body_idle: moment(),
        ..HttpTimeouts::default()
    });
    for path in [
        "/call",
        "/batch",
        "/subscribe",
        "/status/enter",
        "/mcp",
        "/mine",
    ] {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer good\r\n\
             Accept: text/event-stream\r\nContent-Type: application/json\r\n\
             Content-Length: 100\r\n\r\n{{"
        );
        let told = node.hears(&head, "TIMEOUT").await;
        assert!(told.starts_with("HTTP/1.1 408 "), "{path}: {told}");
    }
}

#[tokio::test]
async fn connections_without_a_request_are_ended() {
    for version in VERSIONS {
        let node = HttpTestNode::patient(HttpTimeouts {
            head: moment(),
            keep_alive: LONG,
            ..HttpTimeouts::default()
        });
        let (_client, served) = node.connect(version).await;
        served.ended().await;

        let node = HttpTestNode::patient(HttpTimeouts {
            head: enough(),
            keep_alive: moment(),
            ..HttpTimeouts::default()
        });
        let (mut client, served) = node.connect(version).await;
        let request = node.request(Method::GET, None, "/healthz", "");
        let mut response = client.ask(request).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(text(&mut response, usize::MAX).await, "ok\n");
        served.ended().await;
    }
}

/// A head has its time from its first byte on, and none is waited for longer than a connection is kept.
#[tokio::test]
async fn heads_that_do_not_end_are_given_up() {
    let node = HttpTestNode::patient(HttpTimeouts {
        head: enough(),
        keep_alive: LONG,
        ..HttpTimeouts::default()
    });
    let whole = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let (begun, goes_on) = ("GET /healthz HTTP/1.1\r\nHost: loc", "alhost\r\n\r\n");
    let told = node.says(&[whole, begun], Duration::ZERO).await;
    assert_eq!(told.matches("\r\n\r\nok\n").count(), 1, "{told}");
    let pause = enough() / 4;
    let slowly = [whole, begun, goes_on, begun, goes_on, whole, begun];
    let told = node.says(&slowly, pause).await;
    assert_eq!(told.matches("\r\n\r\nok\n").count(), 4, "{told}");
}

/// Nothing has a limit of time here: what the node takes of a head is all that can end it.
#[tokio::test]
async fn heads_without_end_are_ended_by_what_is_taken_of_them() {
    let node = HttpTestNode::patient(HttpTimeouts {
        head: LONG,
        keep_alive: LONG,
        ..HttpTimeouts::default()
    });
    let begin = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n";
    let long = format!("X-A: {}\r\n", "a".repeat(1000)).repeat(4);
    let short = "A: b\r\n".repeat(700);
    let endless = "a".repeat(4096);
    for piece in [long, short, endless] {
        let heard = node.floods(b"http/1.1", begin, piece.as_bytes(), FLOOD_BYTES_MAX);
        let told = String::from_utf8_lossy(&heard.await).into_owned();
        let name = &piece[..8];
        assert!(told.starts_with("HTTP/1.1 431 "), "{name:?}: {told}");
    }

    // CONTINUATION that never ends (CVE-2024-27316): a literal header each, after a head without END_HEADERS.
    let mut block = vec![0x82, 0x87, 0x84, 0x41, 9];
    block.extend(b"localhost");
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let begin = [
        &preface[..],
        &frame(SETTINGS, 0, &[]),
        &frame(HEADERS, 1, &block),
    ]
    .concat();
    // A value of 4,000 bytes: 127 and 3,873 more (RFC 7541 section 5.1). With another length the head would be
    // malformed, which ends it as well.
    let mut more = vec![0x00, 1, b'a', 0x7f, 0xa1, 0x1e];
    more.extend([b'a'; 4000]);
    let piece = frame(CONTINUATION, 1, &more);
    let heard = node.floods(b"h2", &begin, &piece, FLOOD_BYTES_MAX).await;
    // Too much came: ENHANCE_YOUR_CALM (RFC 9113 section 7). A clock would say goodbye with NO_ERROR.
    let goodbye = frames(&heard).find(|(kind, _)| *kind == GOAWAY);
    let (_, goodbye) = goodbye.unwrap_or_else(|| panic!("{heard:?}"));
    assert_eq!(goodbye[4..8], [0, 0, 0, 11], "{goodbye:?}");
}

/// How long a connection is kept whose client has not proved who it is.
fn unknown() -> Duration {
    10 * moment()
}

/// A small request now and then, whatever the client makes of being asked to leave.
#[tokio::test]
async fn a_client_that_does_not_authenticate_in_time_is_closed() {
    let node = HttpTestNode::patient(HttpTimeouts {
        head: enough(),
        keep_alive: LONG,
        unknown_peer: unknown(),
        ..HttpTimeouts::default()
    });
    let whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let again = |_| whole.to_vec();
    let (said, heard) = node.repeats(b"http/1.1", whole, again, moment()).await;
    let answered = String::from_utf8_lossy(&heard)
        .matches("HTTP/1.1 200 ")
        .count();
    assert!(said > 1 && answered > 1, "{answered} of {said}");

    // A client of HTTP/2 that does not say whether it has heard.
    const END_OF_STREAM_AND_HEADERS: u8 = 5;
    let asks = |n: u32| {
        let mut block = vec![0x82, 0x87, 0x84, 0x41, 9];
        block.extend(b"localhost");
        let mut asks = frame(HEADERS, 2 * n + 1, &block);
        asks[4] = END_OF_STREAM_AND_HEADERS;
        asks
    };
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let begin = [&preface[..], &frame(SETTINGS, 0, &[]), &asks(0)].concat();
    let (said, heard) = node.repeats(b"h2", &begin, asks, moment()).await;
    let count = |wanted| frames(&heard).filter(|(kind, _)| *kind == wanted).count();
    assert!(
        said > 1 && count(HEADERS) > 1,
        "{} of {said}",
        count(HEADERS)
    );
    assert!(count(GOAWAY) > 0, "it is asked to leave");

    let (client, served) = H3TestClient::connect(&node, H3StreamPermits::Streams).await;
    let asks = async {
        let mut answered = 0;
        while client.is_served().await {
            answered += 1;
            tokio::time::sleep(moment()).await;
        }
        answered
    };
    let answered = tokio::time::timeout(hung(), asks).await;
    assert!(answered.expect("it is let go") > 1);
    served.ended().await;
    assert!(client.was_asked_to_leave().await);
}

/// Clients of HTTP/3 that permit the node no stream, or take nothing of what it says on one, are not waited for until they
/// have heard that they are to leave.
#[tokio::test]
async fn a_client_that_ignores_goaway_is_closed() {
    let node = HttpTestNode::patient(HttpTimeouts {
        head: unknown(),
        ..HttpTimeouts::default()
    });
    let (_client, served) = H3TestClient::connect(&node, H3StreamPermits::Nothing).await;
    served.ended().await;
    // One client asks nothing more, and the other one is unauthenticated.
    for (keep_alive, unknown_limit) in [(unknown(), LONG), (LONG, unknown())] {
        let node = HttpTestNode::patient(HttpTimeouts {
            head: enough(),
            keep_alive,
            unknown_peer: unknown_limit,
            ..HttpTimeouts::default()
        });
        let (client, served) = H3TestClient::connect(&node, H3StreamPermits::Streams).await;
        assert!(client.is_served().await);
        client.takes_nothing();
        served.ended().await;
    }
}

/// A stream of events may go on for ever: an unknown peer gets none, also of what is open on `alknet/call`.
#[tokio::test]
async fn an_unauthenticated_client_gets_no_event_stream() {
    let node = HttpTestNode::new("");
    let body = json!({ "operation": "/test/count", "input": 1 });
    for version in VERSIONS {
        for token in [None, Some("bad")] {
            let text = body.to_string();
            let mut request = node.request(Method::POST, token, "/subscribe", &text);
            let kind = HeaderValue::from_static("text/event-stream");
            request.headers_mut().insert(ACCEPT, kind);
            let told = node.client(version).await.response(request).await;
            assert_eq!(told.status, StatusCode::UNAUTHORIZED, "{told:?}");
        }
        let told = node.events(version, "good", &body).await;
        assert_eq!(told.status, StatusCode::OK);
    }
}

/// A client that has proved who it is, and one in the middle of an answer, stay.
#[tokio::test]
async fn no_other_client_is_closed() {
    for version in VERSIONS {
        let node = HttpTestNode::patient(HttpTimeouts {
            head: enough(),
            keep_alive: LONG,
            unknown_peer: unknown(),
            event_ping: moment(),
            ..HttpTimeouts::default()
        });
        let (mut known, served) = node.connect(version).await;
        let call = json!({ "operation": "/test/echo" }).to_string();
        for _ in 0..20 {
            tokio::time::sleep(moment()).await;
            let request = node.request(Method::POST, Some("good"), "/call", &call);
            let mut response = known.ask(request).await;
            assert_eq!(response.status(), StatusCode::OK);
            text(&mut response, usize::MAX).await;
        }
        assert!(!served.is_over(), "{version}");

        // The address of a ticket is asked for by a browser, which proves nothing.
        let mut request = node.subscribe("good", &json!({ "operation": "/test/silent" }));
        let prefer = HeaderName::from_static("prefer");
        let later = HeaderValue::from_static("respond-async");
        request.headers_mut().insert(prefer, later);
        let made = node.client(version).await.response(request).await.json();
        let url = made["url"].as_str().expect("a ticket");
        let (mut client, served) = node.connect(version).await;
        let mut response = client.ask(node.request(Method::GET, None, url, "")).await;
        // For longer than it may stay, and than an end takes.
        let pings = 2 * (unknown() + enough()).as_millis() / moment().as_millis();
        let told = text(&mut response, pings as usize * PING.len()).await;
        assert_eq!(told.replace(PING, ""), "", "{version}");
        assert!(!served.is_over(), "{version}");
        node.revoke();
        assert!(
            text(&mut response, usize::MAX)
                .await
                .contains("event: error")
        );
        served.ended().await;
    }
}

/// A frame of HTTP/2 without flags (RFC 9113 section 4.1).
fn frame(kind: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, 0]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The frames that were heard, with their payloads.
fn frames(mut heard: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = heard.split_at_checked(FRAME_HEAD_BYTES)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let (payload, rest) = rest.split_at_checked(length)?;
        heard = rest;
        Some((head[3], payload))
    })
}

/// What is answered before its body has come is read on, and that is no head of the next request.
#[tokio::test]
async fn an_unread_body_is_not_parsed_as_a_head() {
    // The body comes in twice two thirds of this, within the ten seconds for a body that no handler reads.
    let limit = enough().min(Duration::from_secs(3));
    let node = HttpTestNode::patient(HttpTimeouts {
        head: limit,
        keep_alive: LONG,
        ..HttpTimeouts::default()
    });
    let head = "POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n";
    let whole = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let slowly = [head, "ab", "cd", whole, "GET "];
    let told = node.says(&slowly, limit * 2 / 3).await;
    assert!(told.starts_with("HTTP/1.1 404 "), "{told}");
    assert_eq!(told.matches("\r\n\r\nok\n").count(), 1, "{told}");
}

/// As long as a stream of events is open the connection is not idle, though nothing happens.
#[tokio::test]
async fn streams_without_events_have_comments_and_go_on() {
    for version in VERSIONS {
        let node = HttpTestNode::patient(HttpTimeouts {
            head: enough(),
            keep_alive: moment(),
            event_ping: moment(),
            ..HttpTimeouts::default()
        });
        let (mut client, served) = node.connect(version).await;
        let body = json!({ "operation": "/test/silent" });
        let mut response = client.ask(node.subscribe("good", &body)).await;
        assert_eq!(response.status(), StatusCode::OK);
        // They take longer than any connection is kept without a request.
        let pings = 2 * enough().as_millis() / moment().as_millis();
        let told = text(&mut response, pings as usize * PING.len()).await;
        assert_eq!(told.replace(PING, ""), "", "{version}");
        assert!(!served.is_over(), "{version}");
    }
}

#[tokio::test]
async fn a_client_that_reads_nothing_of_an_answer_is_closed() {
    for version in VERSIONS {
        let node = HttpTestNode::patient(HttpTimeouts {
            reader: 10 * moment(),
            ..HttpTimeouts::default()
        });
        let (mut client, served) = node.connect(version).await;
        let body = json!({ "operation": "/test/count", "input": u64::MAX });
        let response = client.ask(node.subscribe("good", &body)).await;
        assert_eq!(response.status(), StatusCode::OK);
        served.ended().await;
    }
}

#[tokio::test]
async fn streams_end_when_their_token_is_revoked() {
    for version in VERSIONS {
        for by_ticket in [false, true] {
            let node = HttpTestNode::new("");
            let mut request = node.subscribe("good", &json!({ "operation": "/test/silent" }));
            if by_ticket {
                let prefer = HeaderName::from_static("prefer");
                let later = HeaderValue::from_static("respond-async");
                request.headers_mut().insert(prefer, later);
                let made = node.client(version).await.response(request).await.json();
                let url = made["url"].as_str().expect("a ticket");
                request = node.request(Method::GET, None, url, "");
            }
            let mut client = node.client(version).await;
            let mut response = client.ask(request).await;
            assert_eq!(response.status(), StatusCode::OK);
            node.revoke();
            let told = text(&mut response, usize::MAX).await;
            assert!(told.starts_with("event: error\ndata: {"), "{told}");
            assert!(told.contains("\"UNAUTHENTICATED\""), "{told}");
        }
    }
}
