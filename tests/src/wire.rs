//! The call protocol by hand, to send what this project's client never would.

use alknet_core::{Connection, RecvStream, SendStream, StreamError};
use serde_json::{Value, json};

/// Bytes of a frame's length field.
const HEADER_BYTES: usize = 4;

/// A frame around any `body`.
///
/// # Panics
/// The body is too long for a frame.
#[must_use]
pub fn frame(body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("a test's body is short");
    [&len.to_be_bytes()[..], body].concat()
}

/// The frame that calls an operation.
#[must_use]
pub fn request(id: &str, operation: &str, input: &Value) -> Vec<u8> {
    let payload = json!({ "operationId": format!("/{operation}"), "input": input });
    let event = json!({ "type": "call.requested", "id": id, "payload": payload });
    frame(event.to_string().as_bytes())
}

/// A stream of `connection` for any data.
///
/// # Errors
/// The connection ended.
pub async fn stream(connection: &Connection) -> Result<(SendStream, RecvStream), StreamError> {
    if connection.is_multi() {
        connection.open_bi().await
    } else {
        connection.accept_bi().await
    }
}

/// The next event on a stream.
///
/// # Errors
/// The stream ended with an error.
///
/// # Panics
/// The stream ended, or something other than JSON came.
pub async fn event(recv: &mut RecvStream) -> Result<Value, StreamError> {
    let event = next_event(recv).await?;
    Ok(event.expect("the node sends an event before it ends the stream"))
}

/// The same, or `None` if the stream ends before the next event does.
///
/// # Panics
/// Something other than JSON came.
pub async fn event_or_end(recv: &mut RecvStream) -> Option<Value> {
    next_event(recv).await.ok()?
}

async fn next_event(recv: &mut RecvStream) -> Result<Option<Value>, StreamError> {
    let Some(header) = exactly(recv, HEADER_BYTES).await? else {
        return Ok(None);
    };
    let len = u32::from_be_bytes(header.try_into().expect("as many as were asked for"));
    let body = exactly(recv, len as usize).await?;
    let event = |body: Vec<u8>| {
        serde_json::from_slice(&body).unwrap_or_else(|error| panic!("{error}: {body:?}"))
    };
    Ok(body.map(event))
}

/// So many bytes, or `None` if the stream ends before.
async fn exactly(recv: &mut RecvStream, len: usize) -> Result<Option<Vec<u8>>, StreamError> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let Some(chunk) = recv.read_chunk(len - bytes.len()).await? else {
            return Ok(None);
        };
        bytes.extend_from_slice(&chunk);
    }
    Ok(Some(bytes))
}
