//! Queues the answers, events and errors of requests, as far as their requester reads them.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use serde_json::Value;

use super::InboundRequest;
use crate::backpressure::UnreadLimitError;
use crate::body::{CallOutput, SubscriptionItem};
use crate::call_stream::CallStream;
use crate::connection::CallConnectionState;
use crate::dispatcher::DispatcherCounters;
use crate::envelope::{self, EventKind};
use crate::error::{CallError, ErrorCode};
use crate::limits::{ERROR_BYTES_FREE, OVERLOAD_RETRY_MS};
use crate::send_queue::QueueAppend;
use crate::spec::OperationType;

/// Queues the error that ends the request `id`. Abridges an error that the peer cannot take, or that has no room beside
/// what waits to be read: its length may be another peer's choice.
pub(crate) fn push_error(
    state: &CallConnectionState,
    stream: &CallStream,
    id: &str,
    error: &CallError,
) {
    stream.out.push_counted(&state.unread, None, |out| {
        let start = out.len();
        let len = envelope::append_error(out, id, error);
        let mut append = QueueAppend::<()>::default();
        if len <= ERROR_BYTES_FREE {
            return append;
        }
        if len <= state.peer_frame_bytes() && state.claim_unread(false, len).is_ok() {
            append.claimed = len;
            return append;
        }
        truncate(out, start);
        envelope::append_error(out, id, &error.abridged());
        append
    });
}

/// Removes a refused response. Otherwise each stream would hold the room of it for as long as its peer reads nothing.
fn truncate(out: &mut Vec<u8>, start: usize) {
    out.truncate(start);
    out.shrink_to(start + ERROR_BYTES_FREE);
}

impl InboundRequest {
    pub(super) fn push_output(&self, item: &SubscriptionItem, dropped: u64) -> ResponseResult {
        let most = self.state.peer_frame_bytes();
        let push = |out: &mut Vec<u8>| {
            let start = out.len();
            let (len, tail) = append_output(out, self.id(), item, dropped);
            let claimed = if len > most {
                Err(too_large(len, most))
            } else {
                let claimed = self.state.claim_unread(self.is_subscription(), len);
                claimed.map_err(|no_capacity| self.too_much_unread(no_capacity))
            };
            let Err(refused) = claimed else {
                return QueueAppend {
                    result: ResponseResult::Queued,
                    tail,
                    claimed: len,
                };
            };
            truncate(out, start);
            let result = if len <= most && self.is_subscription() {
                ResponseResult::NoRoom
            } else {
                self.answered.store(true, Ordering::SeqCst);
                envelope::append_error(out, self.id(), &refused);
                ResponseResult::Refused
            };
            QueueAppend {
                result,
                ..QueueAppend::default()
            }
        };
        let (unread, meter) = (&self.state.unread, self.queued.as_ref());
        let pushed = self.stream.out.push_counted(unread, meter, push);
        pushed.unwrap_or_default()
    }

    /// The error for an answer whose peer does not read the earlier ones.
    fn too_much_unread(&self, no_capacity: UnreadLimitError) -> CallError {
        let counters = &self.state.dispatcher.counters;
        let message = match no_capacity {
            UnreadLimitError::Here(waiting) => format!(
                "{waiting} bytes of answers wait to be read on this connection: read them, and ask for less at a time"
            ),
            UnreadLimitError::Share => {
                if !self.is_subscription() {
                    DispatcherCounters::add(&counters.unread_bytes_full);
                }
                "too many bytes of answers wait to be read on all connections of the caller, or of all callers: \
                 read them, and ask for less at a time"
                    .to_owned()
            }
        };
        let error = CallError::new(ErrorCode::Overloaded, message);
        let mut error = error.with_retry_after_ms(OVERLOAD_RETRY_MS);
        // A mutation has run, so the caller must not repeat it.
        error.retryable = self.operation.spec.op_type == OperationType::Query;
        error
    }
}

/// The outcome for an answer or event.
#[derive(Debug, Default)]
pub(super) enum ResponseResult {
    /// The peer has to read before this side can queue the event. Answers are refused then.
    NoRoom,
    Queued,
    /// An error replaced it, or the stream takes no more.
    #[default]
    Refused,
}

fn too_large(len: usize, most: usize) -> CallError {
    let message =
        format!("the answer has {len} bytes and the peer takes {most}; ask for less at a time");
    CallError::new(ErrorCode::PayloadTooLarge, message)
}

/// Appends an answer or event; returns the length of its frame's body, and the data that the caller appends.
fn append_output<'a>(
    out: &mut Vec<u8>,
    id: &str,
    item: &'a SubscriptionItem,
    dropped: u64,
) -> (usize, Option<&'a Bytes>) {
    let kind = EventKind::Responded;
    let payload = |out: &mut Vec<u8>| append_payload(out, item, dropped);
    match &item.output {
        CallOutput::Mixed(_, tail) | CallOutput::MixedText(_, tail) => {
            let len = envelope::append_mixed_event(out, kind, id, tail.len(), payload);
            (len, Some(tail))
        }
        _ => (envelope::append_event(out, kind, id, payload), None),
    }
}

fn append_payload(out: &mut Vec<u8>, item: &SubscriptionItem, dropped: u64) {
    out.extend_from_slice(b"{\"output\":");
    match &item.output {
        CallOutput::MixedText(text, _) | CallOutput::Raw(text) => out.extend_from_slice(text),
        CallOutput::Mixed(value, _) | CallOutput::Value(value) => envelope::append_json(out, value),
    }
    if let Some(cursor) = &item.cursor {
        out.extend_from_slice(b",\"cursor\":");
        envelope::append_json(out, cursor);
    }
    if dropped > 0 {
        out.extend_from_slice(b",\"dropped\":");
        envelope::append_json(out, &Value::from(dropped));
    }
    out.push(b'}');
}
