//! Sessions over a pipe.

use std::time::{Duration, Instant};

use alknet_call::limits::{
    CALL_TIMEOUT_MAX, FRAME_BYTES_DEFAULT, FRAME_BYTES_UNAUTHENTICATED, PeerTimeouts,
};
use alknet_test_support::deadline;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::super::frame::{BINARY, CLOSE, PING, PONG, TEXT};
use super::super::limits::WsTimeouts;
use super::client::{OneToken, WsTestClient, small_dispatcher};
use super::{TOKEN, announcing, frame};

#[tokio::test]
async fn calls_go_both_ways_and_answers_come_in_the_clients_kind() {
    let tokens = OneToken::new(None);
    let mut client = WsTestClient::start(&tokens, None);
    assert_eq!(client.output("/demo/who", &Value::Null).await, Value::Null);
    client.request("2", "/demo/back", &json!("hello")).await;
    let asked = client.event().await;
    assert_eq!(asked["payload"]["operationId"], "/ui/notify", "{asked}");
    let answer = json!({
        "type": "call.responded", "id": asked["id"], "payload": { "output": "seen" },
    });
    client
        .send(&frame(BINARY, true, answer.to_string().as_bytes()))
        .await;
    assert_eq!(client.event().await["payload"]["output"], "seen");
    // What is long comes in pieces, each of them with room for a ping behind it.
    let mut client = WsTestClient::start(&tokens, None);
    let event =
        r#"{"type":"call.requested","id":"1","payload":{"operationId":"demo/echo","input":1}}"#;
    let (head, tail) = event.as_bytes().split_at(30);
    client.send(&frame(TEXT, false, head)).await;
    client.send(&frame(PING, true, b"alive?")).await;
    assert_eq!(client.next().await, (PONG, b"alive?".to_vec()));
    client.send(&frame(0, true, tail)).await;
    assert_eq!(client.next().await.0, TEXT);
    client
        .send(&frame(CLOSE, true, &1000u16.to_be_bytes()))
        .await;
    assert_eq!(client.closed().await, 1000);
}

#[tokio::test]
async fn a_token_gives_an_identity_without_a_peer() {
    let tokens = OneToken::new(None);
    let mut client = WsTestClient::start(&tokens, Some(TOKEN));
    assert_eq!(client.output("demo/who", &Value::Null).await, "somebody");
    assert_eq!(client.output("demo/secret", &Value::Null).await, "secret");
    let twice = client
        .output("session/authenticate", &json!({ "token": TOKEN }))
        .await;
    assert_eq!(twice, Value::Null);
    let long = "x".repeat(FRAME_BYTES_DEFAULT / 2);
    client.request("2", "demo/echo", &json!(long)).await;
    let mut whole = Vec::new();
    while !whole.ends_with(b"}}") {
        whole.extend(client.next().await.1);
    }
    client
        .send(&announcing(BINARY, FRAME_BYTES_DEFAULT as u64 + 1))
        .await;
    assert_eq!(client.closed().await, 1009);
}

#[tokio::test]
async fn unknown_peers_have_shorter_messages_until_they_authenticate() {
    let tokens = OneToken::new(None);
    let long = FRAME_BYTES_UNAUTHENTICATED as u64 + 1;
    let mut client = WsTestClient::start(&tokens, None);
    client.send(&announcing(BINARY, long)).await;
    assert_eq!(client.closed().await, 1009);
    let mut client = WsTestClient::start(&tokens, None);
    let who = client
        .output("session/authenticate", &json!({ "token": TOKEN }))
        .await;
    assert_eq!(who["id"], "somebody");
    let text = "x".repeat(FRAME_BYTES_UNAUTHENTICATED);
    client.request("2", "demo/echo", &json!(text)).await;
    assert_ne!(client.next().await.0, CLOSE);
}

#[tokio::test]
async fn a_revoked_token_ends_the_session_at_once() {
    let tokens = OneToken::new(None);
    for by_header in [true, false] {
        *tokens.valid.lock().expect("no holder panics") = true;
        let mut client = WsTestClient::start(&tokens, by_header.then_some(TOKEN));
        if !by_header {
            client
                .output("session/authenticate", &json!({ "token": TOKEN }))
                .await;
        }
        assert_eq!(client.output("demo/who", &Value::Null).await, "somebody");
        tokens.revoke();
        assert_eq!(client.closed().await, 4403);
    }
    let mut late = WsTestClient::start(&tokens, Some(TOKEN));
    assert_eq!(late.closed().await, 4403);
}

#[tokio::test]
async fn an_expired_token_ends_the_session_when_it_does() {
    // Enough for a call before.
    let tokens = OneToken::new(Some(deadline(Duration::from_secs(1))));
    let mut client = WsTestClient::start(&tokens, Some(TOKEN));
    assert_eq!(client.output("demo/who", &Value::Null).await, "somebody");
    tokens.invalidate();
    assert_eq!(client.closed().await, 4401);
}

#[tokio::test]
async fn silent_slow_and_unauthenticated_sockets_are_closed() {
    // Enough for a client to send what it has.
    let moment = deadline(Duration::from_millis(50));
    let tokens = OneToken::new(None);
    let patience = PeerTimeouts {
        guest_login: moment,
        partial_frame: moment,
        ..PeerTimeouts::default()
    };
    // A client without a token that asks nothing.
    let mut client = WsTestClient::start_with(&tokens, None, patience, WsTimeouts::default());
    assert_eq!(client.closed().await, 4408);
    // An unknown peer whose call runs stays as long as that.
    let mut client = WsTestClient::start_with(&tokens, None, patience, WsTimeouts::default());
    let event = json!({
        "type": "call.requested", "id": "1",
        "payload": { "operationId": "demo/hang", "timeout_ms": 4 * moment.as_millis() as u64 },
    });
    client
        .send(&frame(BINARY, true, event.to_string().as_bytes()))
        .await;
    assert_eq!(client.event().await["payload"]["code"], "TIMEOUT");
    assert_eq!(client.closed().await, 4408);
    // A client that answers no ping.
    let silent = WsTimeouts {
        ping_every: moment,
        ..WsTimeouts::default()
    };
    let mut client = WsTestClient::start_with(&tokens, Some(TOKEN), patience, silent);
    assert_eq!(client.closed().await, 4408);
    // A message that begins and does not end, in each of its forms.
    let slow = WsTimeouts {
        partial: moment,
        ..WsTimeouts::default()
    };
    for bytes in [
        &announcing(BINARY, 70_000)[..],
        &frame(BINARY, false, b"{"),
        &[0x82],
        &[0x89, 0x81, 1, 2, 3, 4],
    ] {
        let mut client = WsTestClient::start_with(&tokens, Some(TOKEN), patience, slow);
        client.send(bytes).await;
        assert_eq!(client.closed().await, 4408, "{bytes:?}");
    }
}

/// A call that runs on, such as a subscription, does not keep an unknown peer's session for ever.
#[tokio::test]
async fn a_socket_unauthenticated_for_too_long_is_closed() {
    // Enough for a client to send what it has.
    let moment = deadline(Duration::from_millis(50));
    let longest = 2 * moment;
    let tokens = OneToken::new(None);
    let patience = PeerTimeouts {
        guest_login: moment,
        unknown_connection: longest,
        ..PeerTimeouts::default()
    };
    let began = Instant::now();
    let mut client = WsTestClient::start_with(&tokens, None, patience, WsTimeouts::default());
    // The longest time that a call may have: its end, without which the node would keep the session, is far away.
    let event = json!({
        "type": "call.requested", "id": "1",
        "payload": {
            "operationId": "demo/hang", "timeout_ms": CALL_TIMEOUT_MAX.as_millis() as u64,
        },
    });
    client
        .send(&frame(BINARY, true, event.to_string().as_bytes()))
        .await;
    // The close frame is the first: a session that ends with its last call has an answer of this call before that.
    let closed = timeout(deadline(Duration::from_secs(20)), client.closed()).await;
    assert_eq!(closed.expect("the call keeps the session"), 4408);
    assert!(began.elapsed() >= longest, "{:?}", began.elapsed());
}

#[tokio::test]
async fn broken_messages_end_in_1002() {
    let tokens = OneToken::new(None);
    for message in ["", "hello", "[]", "{}", r#"{"type":"x","id":"~1"}"#] {
        let mut client = WsTestClient::start(&tokens, Some(TOKEN));
        client.send(&frame(BINARY, true, message.as_bytes())).await;
        if message.contains('~') {
            let event = message.replace("\"x\"", "\"call.requested\"");
            client.send(&frame(BINARY, true, event.as_bytes())).await;
        }
        assert_eq!(client.closed().await, 1002, "{message}");
    }
}

/// Sends the first `count` pieces of 64 KiB of a message of text; whether the node took them.
async fn send_pieces(client: &mut WsTestClient, count: usize) -> bool {
    for n in 0..count {
        let opcode = if n == 0 { TEXT } else { 0 };
        let piece = frame(opcode, false, &vec![b'x'; 64 << 10]);
        if client.io.write_all(&piece).await.is_err() {
            return false;
        }
    }
    true
}

/// Sessions of one token, each with a message of which the end is missing.
#[tokio::test]
async fn messages_in_the_making_count_for_who_sends_them() {
    let tokens = OneToken::new(None);
    // 4 MiB for the node, and half of that for an identity.
    let node = small_dispatcher(&tokens);
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = WsTestClient::connect_to(&node, Some(TOKEN));
        assert!(send_pieces(&mut client, 7).await);
        // The answer comes when what is before it was looked at.
        client.send(&frame(PING, true, b"")).await;
        assert_eq!(client.next().await.0, PONG);
        clients.push(client);
    }
    let mut text = frame(TEXT, true, &vec![b'x'; FRAME_BYTES_DEFAULT]);
    text.pop();
    for whole in [true, false] {
        let mut client = WsTestClient::connect_to(&node, Some(TOKEN));
        // It may be refused before it has said all.
        match whole {
            true => drop(client.io.write_all(&text).await),
            false => drop(send_pieces(&mut client, 15).await),
        }
        assert_eq!(client.closed().await, 1013, "whole: {whole}");
    }
    assert_eq!(node.stats().request_bytes_full, 2);
    // Another client has room, though unknown.
    let mut unknown_peer = WsTestClient::connect_to(&node, None);
    let long = "y".repeat(FRAME_BYTES_UNAUTHENTICATED - 200);
    unknown_peer.request("1", "demo/echo", &json!(long)).await;
    let mut answer = Vec::new();
    while !answer.ends_with(b"}}") {
        answer.extend(unknown_peer.next().await.1);
    }
    let answer: Value = serde_json::from_slice(&answer).expect("an event");
    assert_eq!(answer["payload"]["output"], json!(long));
    // What ends gives its room back.
    drop(clients);
    let again = async {
        loop {
            let mut client = WsTestClient::connect_to(&node, Some(TOKEN));
            let sent = send_pieces(&mut client, 15).await
                && client.io.write_all(&frame(0, true, b"x")).await.is_ok();
            // All of it is no JSON.
            if client.closed().await == 1002 && sent {
                break;
            }
        }
    };
    let again = timeout(deadline(Duration::from_secs(60)), again).await;
    again.expect("there is room");
}

/// Answers that the client does not read end the session before they fill the node.
#[tokio::test]
async fn a_reader_that_never_reads_is_let_go() {
    let tokens = OneToken::new(None);
    let mut client = WsTestClient::start(&tokens, Some(TOKEN));
    let text = json!("x".repeat(FRAME_BYTES_DEFAULT - 1000));
    for n in 0..12 {
        let event = json!({
            "type": "call.requested", "id": n.to_string(),
            "payload": { "operationId": "demo/echo", "input": text },
        });
        let bytes = frame(BINARY, true, event.to_string().as_bytes());
        // The node may have stopped reading by now.
        if client.io.write_all(&bytes).await.is_err() {
            break;
        }
    }
    let mut rest = Vec::new();
    client.io.read_to_end(&mut rest).await.expect("a pipe");
    assert!(rest.len() < 6 * FRAME_BYTES_DEFAULT, "{} bytes", rest.len());
}
