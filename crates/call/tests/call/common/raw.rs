//! Peers that speak the wire form by hand: one that sends requests, and one that answers.

use std::sync::Arc;

use alknet_call::{Envelope, EventKind, FrameBody, FrameReader, encode_event};
use alknet_core::{Connection, RecvStream, SendStream, StreamError};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};

use super::soon;

/// A peer that speaks the wire form by hand.
pub struct RawPeer {
    pub connection: Connection,
    pub send: SendStream,
    pub recv: RecvStream,
    frames: FrameReader,
}

impl RawPeer {
    pub async fn new(connection: Connection) -> Self {
        let stream = if connection.is_multi() {
            connection.open_bi().await
        } else {
            connection.accept_bi().await
        };
        let (send, recv) = stream.expect("a fresh connection");
        Self::on(connection, send, recv)
    }

    /// A peer on a stream that is open already.
    pub fn on(connection: Connection, send: SendStream, recv: RecvStream) -> Self {
        Self {
            connection,
            send,
            recv,
            frames: FrameReader::new(),
        }
    }

    pub async fn send(&mut self, kind: EventKind, id: &str, payload: Value) {
        self.send_bytes(encode_event(kind, id, &payload.to_string()))
            .await;
    }

    pub async fn send_bytes(&mut self, bytes: Bytes) {
        self.send.write_chunk(bytes).await.expect("a live stream");
    }

    pub async fn request(&mut self, id: &str, operation: &str, input: Value) {
        let payload = json!({ "operationId": operation, "input": input });
        self.send(EventKind::Requested, id, payload).await;
    }

    /// The next event, or how the stream ended.
    pub async fn recv(&mut self) -> Result<Option<(EventKind, String, Value)>, StreamError> {
        soon(async {
            loop {
                let frame = self.frames.next_frame(64 << 20).expect("a good server");
                if let Some(frame) = frame {
                    let body = FrameBody::parse(frame).expect("a good server");
                    let event = Envelope::parse(&body.envelope, 64).expect("a good server");
                    let payload = serde_json::from_str(event.payload).expect("JSON");
                    return Ok(Some((event.kind, event.id.into_owned(), payload)));
                }
                match self.recv.read_chunk(64 << 10).await? {
                    Some(chunk) => self.frames.push(chunk),
                    None => return Ok(None),
                }
            }
        })
        .await
    }

    pub async fn event(&mut self) -> (EventKind, String, Value) {
        self.recv().await.expect("a live stream").expect("an event")
    }
}

/// Answers every request on a connection with the value of `answer`, or an error where that has a `code`.
/// `services/watch` yields the values of `changes`, save `null`, and ends after an error, or after an event with
/// `ends`.
pub fn answer_by_hand(
    connection: Connection,
    answer: fn(&str, &Value) -> Value,
    changes: watch::Sender<Value>,
) {
    answer_by_hand_until(connection, answer, changes, Arc::default());
}

/// The same until the test notifies `enough`: the peer never reads streams that open later.
pub fn answer_by_hand_until(
    connection: Connection,
    answer: fn(&str, &Value) -> Value,
    changes: watch::Sender<Value>,
    enough: Arc<Notify>,
) {
    tokio::spawn(async move {
        let serve = async {
            while let Ok((send, recv)) = connection.accept_bi().await {
                tokio::spawn(answer_stream(send, recv, answer, changes.subscribe()));
            }
        };
        tokio::select! {
            biased;
            () = enough.notified() => {}
            () = serve => return,
        }
        connection.closed().await;
    });
}

async fn answer_stream(
    mut send: SendStream,
    mut recv: RecvStream,
    answer: fn(&str, &Value) -> Value,
    mut changes: watch::Receiver<Value>,
) {
    let mut frames = FrameReader::new();
    while let Ok(Some(chunk)) = recv.read_chunk(64 << 10).await {
        frames.push(chunk);
        while let Some(frame) = frames.next_frame(64 << 20).expect("a good client") {
            let body = FrameBody::parse(frame).expect("a good client");
            let event = Envelope::parse(&body.envelope, 64).expect("a good client");
            if event.kind != EventKind::Requested {
                continue;
            }
            let payload: Value = serde_json::from_str(event.payload).expect("JSON");
            let operation = payload["operationId"].as_str().unwrap_or_default();
            if operation == "/services/watch" {
                return tell(&mut send, &event.id, &mut changes).await;
            }
            let output = answer(operation, &payload["input"]);
            // This peer does not answer.
            if output.is_null() {
                continue;
            }
            let (kind, payload) = match output.get("code") {
                Some(_) => (EventKind::Error, output),
                None => (EventKind::Responded, json!({ "output": output })),
            };
            let bytes = encode_event(kind, &event.id, &payload.to_string());
            if send.write_chunk(bytes).await.is_err() {
                return;
            }
        }
    }
}

async fn tell(send: &mut SendStream, id: &str, changes: &mut watch::Receiver<Value>) {
    loop {
        let now = changes.borrow_and_update().clone();
        let (kind, payload) = match now.get("code") {
            Some(_) => (EventKind::Error, now.to_string()),
            None => (EventKind::Responded, json!({ "output": now }).to_string()),
        };
        let mut gone = !now.is_null()
            && send
                .write_chunk(encode_event(kind, id, &payload))
                .await
                .is_err();
        if now["ends"] == true {
            let end = encode_event(EventKind::Completed, id, "{}");
            gone |= send.write_chunk(end).await.is_err();
        }
        if gone || kind == EventKind::Error || now["ends"] == true {
            send.finish().ok();
            return;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// The answer of `services/list` that names these.
pub fn listing(names: &[&str]) -> Value {
    let operations: Vec<_> = names
        .iter()
        .map(|name| json!({"name": name, "namespace": "a", "op_type": "query"}))
        .collect();
    json!({ "operations": operations, "registry": "r" })
}
