//! Peers that break the protocol, by hand: each ends with its documented code, and the node serves a legitimate
//! caller meanwhile.

mod servers;

use std::collections::BTreeSet;
use std::time::Duration;

use alknet_call::limits::{
    PeerLimits, PeerTimeouts, REGISTRY_BYTES_MAX, SCOPE_BYTES_MAX, SCOPES_MAX,
};
use alknet_call::*;
use alknet_core::{Carriage, CloseReason, HandlerError, StreamError, memory_pair};
use alknet_test_support::deadline;
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::common::*;

/// A frame with any body.
fn frame(body: impl AsRef<[u8]>) -> Bytes {
    let body = body.as_ref();
    let len = u32::try_from(body.len()).expect("small");
    [&len.to_be_bytes()[..], body].concat().into()
}

fn request(id: &str) -> Bytes {
    let payload = json!({ "operationId": "/test/hang" });
    encode_event(EventKind::Requested, id, &payload.to_string())
}

/// Frames that end the stream with code 5, and why.
fn violations() -> Vec<(&'static str, Bytes)> {
    let deep = format!(
        r#"{{"type":"call.requested","id":"1","payload":{{"operationId":"/test/echo","input":{}{}}}}}"#,
        "[".repeat(31),
        "]".repeat(31)
    );
    let both = |id: &str| [request(id), request(id)].concat().into();
    vec![
        ("empty", Bytes::from_static(&[0; 4])),
        ("64 MiB announced", Bytes::from_static(&[4, 0, 0, 0])),
        ("one byte too long", Bytes::from_static(&[0, 1, 0, 1])),
        ("all ones", Bytes::from_static(&[0xff; 4])),
        ("HTTP", Bytes::from_static(b"GET / HTTP/1.1\r\n\r\n")),
        ("no JSON", frame("{nonsense}")),
        ("an array", frame("[]")),
        ("a byte order mark", frame("\u{feff}{}")),
        ("no UTF-8", frame(b"{\"type\":\"\xff\",\"id\":\"1\"}")),
        ("no id", frame(r#"{"type":"call.requested"}"#)),
        ("no type", frame(r#"{"id":"1"}"#)),
        ("a space in the id", frame(r#"{"type":"x","id":"a b"}"#)),
        ("twice", frame(r#"{"type":"x","id":"1","id":"1"}"#)),
        ("too deep", frame(deep)),
        ("mixed without envelope", frame([1, 0, 0, 0, 9, b'{', b'}'])),
        ("mixed, all of it data", frame([1, 0, 0, 0, 0, b'{', b'}'])),
        ("the other side's id", request("~1")),
        ("an id in flight", both("1")),
    ]
}

#[tokio::test]
async fn violations_end_the_stream_where_there_are_many() {
    for (what, bytes) in violations() {
        let node = CallTestNode::new();
        let (dialled, _served) = node.serve(Carriage::Memory, None);
        let mut peer = RawPeer::new(dialled).await;
        peer.send_bytes(bytes).await;
        let end = peer.recv().await;
        assert!(matches!(end, Err(StreamError::Reset(5))), "{what}: {end:?}");
        assert!(
            matches!(soon(peer.send.stopped()).await, Ok(Some(5))),
            "{what}"
        );
        // The connection goes on.
        let mut again = RawPeer::new(peer.connection.clone()).await;
        again.request("9", "/test/echo", json!(1)).await;
        assert_eq!(again.event().await.2, json!({ "output": 1 }), "{what}");
        assert_eq!(node.dispatcher.stats().protocol_errors, 1, "{what}");
    }
}

#[tokio::test]
async fn violations_end_the_connection_where_there_is_one_stream() {
    for (what, bytes) in violations() {
        let node = CallTestNode::new();
        let legitimate = node.client(Carriage::Tcp, None);
        let (dialled, served) = node.serve(Carriage::Tcp, None);
        let mut peer = RawPeer::new(dialled).await;
        peer.send_bytes(bytes).await;
        // In order: a connection that is cut off ends with an error.
        assert!(peer.recv().await.expect(what).is_none(), "{what}");
        let served = soon(served).await.expect("no panic");
        assert!(matches!(served, Err(HandlerError::Protocol(_))), "{what}");
        soon(legitimate.call("test/echo", &json!(1)))
            .await
            .expect("served");
    }
}

#[tokio::test]
async fn what_may_be_ignored_is() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, _served) = node.serve(carriage, None);
        let mut peer = RawPeer::new(dialled).await;
        for body in [
            r#"{"type":"call.later","id":"1","payload":{"x":1}}"#,
            r#"{"type":"call.aborted","id":"unknown_peer","payload":{}}"#,
            r#"{"type":"call.credit","id":"unknown_peer","payload":{"n":5}}"#,
            r#"{"type":"call.responded","id":"~1","payload":{"output":1}}"#,
            r#"{"type":"call.completed","id":"~1","payload":{}}"#,
            r#"{"type":"call.error","id":"x","payload":null}"#,
        ] {
            peer.send_bytes(frame(body)).await;
        }
        let late = r#"{"x":0,"payload":{"y":[],"input":7,"operationId":"test/echo"},"id":"1","type":"call.requested"}"#;
        peer.send_bytes(frame(late)).await;
        loop {
            let (kind, id, payload) = peer.event().await;
            if kind == EventKind::Aborted {
                assert_eq!(id, "~1", "answers that no caller waits for are stopped");
                continue;
            }
            assert_eq!((kind, id.as_str()), (EventKind::Responded, "1"));
            assert_eq!(payload, json!({ "output": 7 }));
            break;
        }
        assert_eq!(node.dispatcher.stats().protocol_errors, 0);
        assert_eq!(node.dispatcher.stats().ignored, 6);
    }
}

#[tokio::test]
async fn requests_that_make_no_sense_are_answered() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    let long = "x".repeat(200);
    for (payload, code) in [
        (json!({}), "INVALID_INPUT"),
        (json!([]), "INVALID_INPUT"),
        (json!(["/test/echo"]), "INVALID_INPUT"),
        (json!("/test/echo"), "INVALID_INPUT"),
        (json!({ "operationId": 1 }), "INVALID_INPUT"),
        (
            json!({ "operationId": "/test/echo", "forwarded_for": ["admin", ["*"]] }),
            "INVALID_INPUT",
        ),
        (
            json!({ "operationId": "/test/echo", "timeout_ms": -1 }),
            "INVALID_INPUT",
        ),
        (
            json!({ "operationId": "/test/echo", "idempotency_key": long }),
            "INVALID_INPUT",
        ),
        (json!({ "operationId": long }), "NOT_FOUND"),
        (json!({ "operationId": "" }), "NOT_FOUND"),
        (json!({ "operationId": "//test/echo" }), "NOT_FOUND"),
        (
            json!({ "operationId": "/test/echo", "peer": "x" }),
            "NOT_FOUND",
        ),
        (
            json!({ "operationId": "/test/echo", "auth_token": "bad" }),
            "UNAUTHENTICATED",
        ),
        (
            json!({ "operationId": "/test/hang", "timeout_ms": 0 }),
            "TIMEOUT",
        ),
        (
            json!({ "operationId": "/test/echo", "deadline": 1 }),
            "TIMEOUT",
        ),
    ] {
        peer.send(EventKind::Requested, "1", payload.clone()).await;
        let (kind, id, error) = peer.event().await;
        assert_eq!((kind, id.as_str()), (EventKind::Error, "1"), "{payload}");
        assert_eq!(error["code"], code, "{payload}");
    }
}

#[tokio::test]
async fn unknown_peers_have_little_room() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    for n in 0..9 {
        peer.request(&n.to_string(), "/test/hang", Value::Null)
            .await;
    }
    let (_, id, error) = peer.event().await;
    assert_eq!((id.as_str(), &error["code"]), ("8", &json!("OVERLOADED")));
    assert!(error["retry_after_ms"].is_u64());
    // One request ends, and its room is free again.
    peer.send(EventKind::Aborted, "0", json!({})).await;
    peer.request("0", "/test/echo", json!(1)).await;
    assert_eq!(peer.event().await.1, "0");
}

#[tokio::test]
async fn known_peers_have_the_room_that_is_configured() {
    let limits = PeerLimits {
        requests: 9,
        ..PeerLimits::AUTHENTICATED
    };
    let node = CallTestNode::with_limits(limits);
    let (dialled, _served) = node.serve(Carriage::Tcp, Some(identity("peer", &[])));
    let mut peer = RawPeer::new(dialled).await;
    for n in 0..10 {
        peer.request(&n.to_string(), "/test/hang", Value::Null)
            .await;
    }
    let (kind, id, error) = peer.event().await;
    assert_eq!((kind, id.as_str()), (EventKind::Error, "9"));
    assert_eq!(error["code"], "OVERLOADED");
    node.probe.wait(|p| &p.started, 9).await;
}

#[tokio::test]
async fn subscriptions_are_counted_apart() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    for n in 0..3 {
        peer.request(&n.to_string(), "/test/silent", Value::Null)
            .await;
    }
    let (_, id, error) = peer.event().await;
    assert_eq!((id.as_str(), &error["code"]), ("2", &json!("OVERLOADED")));
}

#[tokio::test]
async fn an_operations_own_limit_holds_over_connections() {
    let node = CallTestNode::new();
    let (a, b) = (
        node.client(Carriage::Tcp, None),
        node.client(Carriage::Memory, None),
    );
    let first = a.call("test/one", &Value::Null);
    tokio::pin!(first);
    tokio::select! {
        _ = &mut first => panic!("it hangs"),
        () = node.probe.wait(|p| &p.started, 1) => {}
    }
    let error = soon(b.call("test/one", &Value::Null))
        .await
        .expect_err("one at a time");
    assert_eq!(error.code, ErrorCode::Overloaded);
    node.probe.release.notify_one();
    soon(first).await.expect("released");
    node.probe.release.notify_one();
    soon(b.call("test/one", &Value::Null))
        .await
        .expect("free again");
}

#[tokio::test]
async fn limits_end_exactly_where_they_say() {
    let limits = PeerLimits {
        frame_bytes: 1000,
        ..PeerLimits::AUTHENTICATED
    };
    for (extra, good) in [(0, true), (1, false)] {
        let node = CallTestNode::with_limits(limits);
        let (dialled, _served) = node.serve(Carriage::Memory, Some(identity("peer", &[])));
        let mut peer = RawPeer::new(dialled).await;
        let empty = json!({ "operationId": "/test/echo", "input": "" });
        let bare = encode_event(EventKind::Requested, "1", &empty.to_string()).len() - 4;
        let fill = "x".repeat(1000 - bare + extra);
        peer.request("1", "/test/echo", json!(fill)).await;
        assert_eq!(peer.recv().await.is_ok(), good);
    }
}

/// The node takes a longer frame from no peer, whatever is configured.
#[tokio::test]
async fn no_frame_is_longer_than_64_mib() {
    let limits = PeerLimits {
        frame_bytes: usize::MAX,
        ..PeerLimits::AUTHENTICATED
    };
    let node = CallTestNode::with_limits(limits);
    assert_eq!(node.dispatcher.limits().frame_bytes, 64 << 20);
    let (dialled, _served) = node.serve(Carriage::Memory, Some(identity("peer", &[])));
    let mut peer = RawPeer::new(dialled).await;
    peer.send_bytes(Bytes::from_static(&[4, 0, 0, 1])).await;
    let end = peer.recv().await;
    assert!(matches!(end, Err(StreamError::Reset(5))), "{end:?}");
}

#[tokio::test]
async fn credit_is_never_exceeded() {
    for operation in ["/test/count", "/test/lossy"] {
        let node = CallTestNode::new();
        let (dialled, _served) = node.serve(Carriage::Tcp, None);
        let mut peer = RawPeer::new(dialled).await;
        let payload = json!({ "operationId": operation, "window": 3 });
        peer.send(EventKind::Requested, "s", payload).await;
        for _ in 0..3 {
            assert_eq!(peer.event().await.0, EventKind::Responded);
        }
        // Every event before this answer was sent without credit.
        for n in 0..20 {
            peer.request("e", "/test/echo", json!(n)).await;
            assert_eq!(peer.event().await.1, "e", "{operation}");
        }
        peer.send(EventKind::Credit, "s", json!({ "n": 2 })).await;
        peer.request("e", "/test/echo", json!(0)).await;
        let mut events = 0;
        for _ in 0..3 {
            events += usize::from(peer.event().await.1 == "s");
        }
        assert_eq!(events, 2, "{operation}");
        peer.send(EventKind::Aborted, "s", json!({})).await;
        node.probe.wait(|p| &p.dropped, 1).await;
    }
}

#[tokio::test]
async fn slow_readers_of_lossy_subscriptions_learn_how_many_events_they_missed() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    let payload = json!({ "operationId": "/test/lossy", "input": 100, "window": 1 });
    peer.send(EventKind::Requested, "s", payload).await;
    assert_eq!(peer.event().await.2, json!({ "output": 0 }));
    node.probe.wait(|p| &p.yielded, 100).await;
    peer.send(EventKind::Credit, "s", json!({ "n": 9 })).await;
    let (_, _, first) = peer.event().await;
    assert_eq!(first, json!({ "output": 98, "dropped": 97 }));
    assert_eq!(peer.event().await.2, json!({ "output": 99 }));
    assert_eq!(peer.event().await.0, EventKind::Completed);
}

#[tokio::test]
async fn strict_subscriptions_of_slow_readers_end_with_an_error() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    let payload = json!({ "operationId": "/test/strict", "window": 1 });
    peer.send(EventKind::Requested, "s", payload).await;
    assert_eq!(peer.event().await.0, EventKind::Responded);
    let (kind, _, error) = peer.event().await;
    assert_eq!(
        (kind, &error["code"]),
        (EventKind::Error, &json!("OVERLOADED"))
    );
}

#[tokio::test]
async fn aborted_ids_are_free_at_once() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    for _ in 0..50 {
        peer.request("1", "/test/hang", Value::Null).await;
        peer.send(EventKind::Aborted, "1", json!({})).await;
    }
    peer.request("1", "/test/echo", json!(5)).await;
    assert_eq!(peer.event().await.2, json!({ "output": 5 }));
    node.probe.wait(|p| &p.dropped, 50).await;
}

#[tokio::test]
async fn a_call_stream_ends_with_its_answer_and_a_reset_aborts() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Memory, None);
    let mut peer = RawPeer::new(dialled.clone()).await;
    peer.request("1", "/test/echo", json!(1)).await;
    peer.send.finish().expect("open");
    assert_eq!(peer.event().await.2, json!({ "output": 1 }));
    assert!(peer.recv().await.expect("ends well").is_none());
    let mut peer = RawPeer::new(dialled).await;
    peer.request("1", "/test/hang", Value::Null).await;
    node.probe.wait(|p| &p.started, 1).await;
    peer.send.reset(alknet_core::StreamCode::Cancelled);
    node.probe.wait(|p| &p.dropped, 1).await;
}

#[tokio::test]
async fn a_half_closed_peer_still_gets_its_answers() {
    let node = CallTestNode::new();
    let (dialled, served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    peer.request("1", "/test/hang", Value::Null).await;
    peer.send.finish().expect("open");
    node.probe.wait(|p| &p.started, 1).await;
    node.probe.release.notify_one();
    assert_eq!(peer.event().await.2, json!({ "output": "released" }));
    assert!(peer.recv().await.expect("ends well").is_none());
    soon(served).await.expect("no panic").expect("a good end");
}

#[tokio::test]
async fn a_stream_that_ends_within_a_frame_is_a_violation() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Memory, None);
    let mut peer = RawPeer::new(dialled).await;
    peer.send_bytes(Bytes::from_static(&[0, 0, 0, 9, b'{']))
        .await;
    peer.send.finish().expect("open");
    assert!(matches!(peer.recv().await, Err(StreamError::Reset(5))));
}

#[tokio::test]
async fn half_a_frame_and_silence_run_out_of_time() {
    for (carriage, bytes) in [
        (Carriage::Memory, &[0, 0, 0][..]),
        (Carriage::Tcp, &[0, 0, 0, 9, b'{'][..]),
        (Carriage::Tcp, &[][..]),
    ] {
        let node = CallTestNode::impatient();
        let (dialled, served) = node.serve(carriage, None);
        let mut peer = RawPeer::new(dialled).await;
        peer.send_bytes(Bytes::copy_from_slice(bytes)).await;
        let end = soon(peer.recv.read_chunk(9)).await;
        if carriage == Carriage::Memory {
            assert!(matches!(end, Err(StreamError::Reset(8))), "{end:?}");
        } else {
            assert!(matches!(end, Ok(None)), "{end:?}");
            let served = soon(served).await.expect("no panic");
            assert!(matches!(served, Err(HandlerError::Timeout)), "{served:?}");
        }
    }
}

/// A few bytes a minute, which no handler sees, keep a QUIC connection open.
#[tokio::test]
async fn an_unknown_peer_that_asks_nothing_more_is_ended() {
    let node = CallTestNode::impatient();
    let (dialled, served) = node.serve(Carriage::Memory, None);
    let mut peer = RawPeer::new(dialled).await;
    peer.request("1", "/services/list", json!({})).await;
    let (kind, _, _) = peer.event().await;
    assert_eq!(kind, EventKind::Responded);
    let (known, served_known) = node.serve(Carriage::Memory, Some(identity("edge", &["*"])));
    let served = soon(served).await.expect("no panic");
    assert!(matches!(served, Err(HandlerError::Timeout)), "{served:?}");
    assert!(!served_known.is_finished(), "a known peer may be silent");
    drop(known);
}

/// A node that ends the connection of an unknown peer after a fraction of a second, whatever the peer sends.
fn strict() -> (CallTestNode, Duration) {
    // Enough time for a peer to authenticate.
    let longest = deadline(Duration::from_millis(300));
    let patience = PeerTimeouts {
        unknown_connection: longest,
        ..PeerTimeouts::default()
    };
    (CallTestNode::with_patience(patience), longest)
}

/// A subscription that every peer may have never ends by itself.
#[tokio::test]
async fn an_unknown_peer_that_follows_something_is_ended() {
    for carriage in CARRIAGES {
        for operation in ["/services/watch", "/test/silent"] {
            let (node, longest) = strict();
            let began = tokio::time::Instant::now();
            let (dialled, served) = node.serve(carriage, None);
            let mut peer = RawPeer::new(dialled.clone()).await;
            peer.request("1", operation, json!({})).await;
            let served = soon(served).await.expect("no panic");
            assert!(matches!(served, Err(HandlerError::Timeout)), "{served:?}");
            assert!(began.elapsed() >= longest, "{:?}", began.elapsed());
            if carriage == Carriage::Memory {
                let reason = soon(dialled.closed()).await;
                let in_time = matches!(reason, CloseReason::Peer(Some(8), _));
                assert!(in_time, "{operation}: {reason:?}");
            }
            if operation == "/test/silent" {
                node.probe.wait(|p| &p.dropped, 1).await;
            }
        }
    }
}

/// A peer that sends small requests again and again is ended as well.
#[tokio::test]
async fn an_unknown_peer_that_asks_again_and_again_is_ended() {
    let (node, longest) = strict();
    let began = tokio::time::Instant::now();
    let (dialled, served) = node.serve(Carriage::Memory, None);
    let asks = async {
        // Each on a stream of its own, until the node allows no more.
        for n in 0_u64.. {
            let Ok((send, recv)) = dialled.open_bi().await else {
                break;
            };
            let mut peer = RawPeer::on(dialled.clone(), send, recv);
            let request = json!({ "operationId": "/test/echo", "input": 1 }).to_string();
            let frame = encode_event(EventKind::Requested, &n.to_string(), &request);
            if peer.send.write_chunk(frame).await.is_err() || peer.recv().await.is_err() {
                break;
            }
            peer.send.finish().ok();
        }
    };
    let (served, ()) = soon(async { tokio::join!(served, asks) }).await;
    let served = served.expect("no panic");
    assert!(matches!(served, Err(HandlerError::Timeout)), "{served:?}");
    assert!(began.elapsed() >= longest, "{:?}", began.elapsed());
    assert!(node.dispatcher.stats().requests > 1);
}

/// A peer with a proved identity, for the whole connection or for one request, does not use an unknown peer's slot.
#[tokio::test]
async fn a_peer_that_authenticates_in_time_stays() {
    let requests = [
        json!({ "operationId": "/session/authenticate", "input": { "token": "good" } }),
        json!({ "operationId": "/test/echo", "input": 1, "auth_token": "good" }),
    ];
    for carriage in CARRIAGES {
        for request in &requests {
            let (node, longest) = strict();
            let (dialled, served) = node.serve(carriage, None);
            let mut peer = RawPeer::new(dialled).await;
            peer.send(EventKind::Requested, "1", request.clone()).await;
            let (kind, id, payload) = peer.event().await;
            assert_eq!(
                (kind, id.as_str()),
                (EventKind::Responded, "1"),
                "{payload}"
            );
            // No event shows that it stays connected: the test waits for the time in which the node would end it.
            tokio::time::sleep(2 * longest).await;
            peer.request("2", "/test/echo", json!(2)).await;
            assert_eq!(peer.event().await.2, json!({ "output": 2 }));
            assert!(!served.is_finished());
        }
    }
}

#[tokio::test]
async fn a_reader_that_stops_reading_loses_its_stream() {
    let node = CallTestNode::impatient();
    let (dialled, served) = node.serve(Carriage::Tcp, None);
    let mut peer = RawPeer::new(dialled).await;
    peer.request("1", "/test/count", Value::Null).await;
    let served = soon(served).await.expect("no panic");
    assert!(matches!(served, Err(HandlerError::Timeout)), "{served:?}");
    node.probe.wait(|p| &p.dropped, 1).await;
}

/// Other calls on the connection wait for its unread answer.
#[tokio::test]
async fn an_unread_answer_ends_its_stream() {
    let node = CallTestNode::impatient();
    let (dialled, _served) = node.serve(Carriage::Memory, Some(identity("edge", &["*"])));
    let mut unread = RawPeer::new(dialled.clone()).await;
    unread.request("1", "/test/big", json!(600 << 10)).await;
    unread.send.finish().expect("open");
    let mut paused = RawPeer::new(dialled.clone()).await;
    paused.request("2", "/test/count", Value::Null).await;
    paused.send.finish().expect("open");
    // A reader that comes back too late.
    tokio::time::sleep(deadline(Duration::from_millis(300))).await;
    let end = loop {
        match soon(unread.recv.read_chunk(1 << 20)).await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert!(matches!(end, Err(StreamError::Reset(8))), "{end:?}");
    // A subscription is kept short, and its reader may pause.
    for _ in 0..100 {
        let (kind, ..) = paused.event().await;
        assert_eq!(kind, EventKind::Responded);
    }
}

/// The node begins no call whose answer it would have to hold.
#[tokio::test]
async fn nothing_more_is_begun_while_too_much_is_unread() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Memory, Some(identity("edge", &["*"])));
    let mut peers = Vec::new();
    let text = "x".repeat(900 << 10);
    for n in 0..12 {
        let mut peer = RawPeer::new(dialled.clone()).await;
        peer.request(&n.to_string(), "/test/echo", json!(text))
            .await;
        peer.send.finish().expect("open");
        peers.push(peer);
    }
    // No event shows that the node begins no more calls: the test waits for the time in which it would begin all
    // twelve.
    tokio::time::sleep(deadline(Duration::from_millis(300))).await;
    let begun = node.dispatcher.stats().requests;
    assert!((1..12).contains(&begun), "{begun} of 12");
    // A client that reads one after the other gets every answer, and no refusal.
    for peer in &mut peers {
        let (kind, _, payload) = peer.event().await;
        assert_eq!(kind, EventKind::Responded);
        assert_eq!(payload["output"], json!(text));
    }
}
