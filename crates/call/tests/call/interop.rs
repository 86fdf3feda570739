//! Peers that implement the protocol in another way than this crate, and both directions on one connection.

use alknet_call::*;
use alknet_core::{Carriage, memory_pair};
use serde_json::{Value, json};

use crate::common::*;

/// An earlier version of the protocol on the accepting side: it answers on a stream of its own choice and does not
/// mark its ids, so that they equal this side's.
#[tokio::test]
async fn earlier_peers_answer_anywhere_and_ask_without_a_mark() {
    let (dialled, accepted) = memory_pair(ALPN);
    let client = doubling().attach(dialled, None);
    let input = json!(1);
    let calls = async {
        let first = client.call("any/thing", &input);
        let second = client.call("any/thing", &input);
        soon(async { tokio::join!(first, second) }).await
    };
    let serve = async {
        // The requests come on streams of the client; the peer never writes there.
        let (_one, mut requests) = accepted.accept_bi().await.expect("a stream");
        soon(requests.read_chunk(64 << 10)).await.expect("requests");
        let mut own = RawPeer::new(accepted.clone()).await;
        own.request("1", "client/double", json!(21)).await;
        let (kind, id, payload) = own.event().await;
        assert_eq!((kind, id.as_str()), (EventKind::Responded, "1"));
        assert_eq!(payload, json!({ "output": 42 }));
        for id in ["2", "1"] {
            let answer = json!({ "output": id });
            own.send(EventKind::Responded, id, answer).await;
        }
        (own, _one, requests)
    };
    let ((first, second), _kept) = tokio::join!(calls, serve);
    assert_eq!(*first.expect("an answer").value(), json!("1"));
    assert_eq!(*second.expect("an answer").value(), json!("2"));
}

/// The same on the dialling side: every response comes on another stream, and the client ends its own side of the
/// request's stream at once.
#[tokio::test]
async fn earlier_clients_are_served_on_the_stream_of_their_request() {
    let node = CallTestNode::new();
    let (dialled, _served) = node.serve(Carriage::Memory, None);
    for id in ["1", "upstream-7f3a", "!~weird~!"] {
        let mut stream = RawPeer::new(dialled.clone()).await;
        stream.request(id, "test/echo", json!(id)).await;
        stream.send.finish().expect("open");
        let (kind, answered, payload) = stream.event().await;
        assert_eq!((kind, answered.as_str()), (EventKind::Responded, id));
        assert_eq!(payload, json!({ "output": id }));
    }
}

#[tokio::test]
async fn the_accepting_side_marks_its_ids() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, _served) = node.serve(carriage, None);
        let mut peer = RawPeer::new(dialled.clone()).await;
        peer.request("1", "test/back", json!(4)).await;
        // On QUIC the way back is a stream of the node's own.
        let mut back = if dialled.is_multi() {
            let (send, recv) = soon(dialled.accept_bi()).await.expect("a stream");
            Some(RawPeer::on(dialled.clone(), send, recv))
        } else {
            None
        };
        let asked = back.as_mut().unwrap_or(&mut peer);
        let (kind, id, request) = asked.event().await;
        assert_eq!(kind, EventKind::Requested);
        assert!(id.starts_with('~'), "{id}");
        assert_eq!(request["operationId"], "/client/double");
        let answer = json!({ "output": 8 });
        asked.send(EventKind::Responded, &id, answer).await;
        let (_, id, payload) = peer.event().await;
        assert_eq!((id.as_str(), payload), ("1", json!({ "output": 8 })));
    }
}

#[tokio::test]
async fn an_abort_is_seen_behind_a_slow_call_of_the_same_stream() {
    for carriage in CARRIAGES {
        let node = CallTestNode::new();
        let (dialled, _served) = node.serve(carriage, None);
        let mut peer = RawPeer::new(dialled).await;
        peer.request("slow", "test/hang", Value::Null).await;
        peer.request("given-up", "test/hang", Value::Null).await;
        node.probe.wait(|p| &p.started, 2).await;
        peer.request("quick", "test/echo", json!(1)).await;
        assert_eq!(peer.event().await.1, "quick");
        peer.send(EventKind::Aborted, "given-up", json!({})).await;
        node.probe.wait(|p| &p.dropped, 1).await;
        // Only that call: the other still waits for its release.
        node.probe.release.notify_one();
        assert_eq!(peer.event().await.1, "slow");
        node.probe.wait(|p| &p.dropped, 2).await;
    }
}
