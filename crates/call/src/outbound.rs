//! This side's requests in flight at the peer.

mod buffer;
mod peer_error;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use alknet_core::StreamCode;
use bytes::Bytes;
use hashbrown::HashMap;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use crate::body::CallBody;
use crate::call_stream::CallStream;
use crate::connection::CallConnectionState;
use crate::dispatcher::DispatcherCounters;
use crate::envelope::{self, Envelope, EventKind, Response};
use crate::error::{CallError, ErrorCode};
use crate::frame::FrameBody;
use crate::limits::WINDOW_FORWARDED_MAX;
use crate::sync::lock;
use buffer::SubscriptionBuffer;
pub use buffer::SubscriptionEvent;
pub(crate) use buffer::{BufferCapacity, Delivery, PartialEvent};

/// The table of one connection.
pub(crate) struct Outbound {
    dialled: bool,
    next: AtomicU64,
    table: Mutex<OutboundTable>,
}

#[derive(Default)]
struct OutboundTable {
    waiting: HashMap<u64, PendingResponse>,
    closed: Option<&'static str>,
    /// Whether this side gave credit for all later events.
    in_advance: bool,
}

struct PendingResponse {
    stream: Arc<CallStream>,
    to: ResponseSink,
}

enum ResponseSink {
    Once(oneshot::Sender<Result<CallBody, CallError>>),
    Stream(SubscriptionBuffer),
}

impl Outbound {
    pub(crate) fn new(dialled: bool) -> Self {
        Self {
            dialled,
            next: AtomicU64::new(1),
            table: Mutex::default(),
        }
    }

    /// A number that no other request of this connection has.
    pub(crate) fn next_id(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The id on the wire: the side that accepted the connection marks its ids with `~`.
    pub(crate) fn wire_id(&self, id: u64) -> String {
        if self.dialled {
            id.to_string()
        } else {
            format!("~{id}")
        }
    }

    fn number(&self, wire: &str) -> Option<u64> {
        let digits = if self.dialled {
            wire
        } else {
            wire.strip_prefix('~')?
        };
        // `01` is not an id of this side: one request must not have two names.
        let canonical = digits.bytes().all(|b| b.is_ascii_digit()) && !digits.starts_with('0');
        canonical.then(|| digits.parse().ok()).flatten()
    }

    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.table).waiting.is_empty()
    }

    pub(crate) fn wait_once(
        &self,
        id: u64,
        stream: &Arc<CallStream>,
    ) -> Result<oneshot::Receiver<Result<CallBody, CallError>>, CallError> {
        let (tx, rx) = oneshot::channel();
        self.insert(id, stream, ResponseSink::Once(tx))?;
        Ok(rx)
    }

    pub(crate) fn wait_stream(
        &self,
        id: u64,
        stream: &Arc<CallStream>,
        capacity: BufferCapacity,
    ) -> Result<mpsc::Receiver<Delivery>, CallError> {
        let (buffer, events) = SubscriptionBuffer::new(capacity, stream.is_single_call());
        self.insert(id, stream, ResponseSink::Stream(buffer))?;
        Ok(events)
    }

    fn insert(&self, id: u64, stream: &Arc<CallStream>, to: ResponseSink) -> Result<(), CallError> {
        let mut table = lock(&self.table);
        // `close` has failed the waiting requests already: this one would wait for ever.
        if let Some(why) = table.closed {
            return Err(CallError::unavailable(why));
        }
        let stream = Arc::clone(stream);
        table.waiting.insert(id, PendingResponse { stream, to });
        Ok(())
    }

    /// Forgets a request that its caller gave up. Returns whether it still waited for a response: then this side has
    /// to abort it at the peer.
    pub(crate) fn forget(&self, id: u64) -> bool {
        lock(&self.table).waiting.remove(&id).is_some()
    }

    /// Passes an event to the call or subscription that waits for it, with the bytes that `making` counted. Waits for
    /// a slow subscriber of this node's own: that slows the peer down.
    pub(crate) async fn deliver(
        &self,
        state: &CallConnectionState,
        stream: &Arc<CallStream>,
        body: &FrameBody,
        event: &Envelope<'_>,
        making: PartialEvent,
    ) {
        let Some(id) = self.number(&event.id) else {
            // The peer names a request that this side never made.
            return state.ignored();
        };
        if event.kind == EventKind::Responded {
            let responded = self.responded(state, stream, id, body, event, making);
            return responded.await;
        }
        let waiting = lock(&self.table).waiting.remove(&id);
        match waiting {
            None => state.ignored(),
            Some(waiting) => waiting.to.end(end_of(event)).await,
        }
    }

    async fn responded(
        &self,
        state: &CallConnectionState,
        stream: &Arc<CallStream>,
        id: u64,
        body: &FrameBody,
        event: &Envelope<'_>,
        making: PartialEvent,
    ) {
        let parsed = parse_event(body, event);
        match self.recipient(id, parsed.is_err()) {
            ResponseRecipient::Discard => {
                state.ignored();
                // A peer that reads nothing gets no abort: else each of its frames would cost one of this side's.
                if state.is_read() && stream.out.backlog() < state.limits().queued_bytes {
                    stop_sender(stream, &event.id);
                }
            }
            ResponseRecipient::Once(tx) => {
                // The caller may just have gone away; nothing is lost then.
                let _ = tx.send(parsed.map(|event| event.output));
            }
            ResponseRecipient::Stream(buffer) => match parsed {
                Ok(event) => {
                    if let Err(error) = buffer.put(event, bytes_of(body), making).await {
                        self.refuse(state, id, error);
                    }
                }
                Err(error) => buffer.end(Err(error)).await,
            },
        }
    }

    /// Ends a subscription whose events have no room, at the peer as well.
    fn refuse(&self, state: &CallConnectionState, id: u64, error: CallError) {
        let waiting = lock(&self.table).waiting.remove(&id);
        if let Some(PendingResponse { stream, to }) = waiting {
            DispatcherCounters::add(&state.dispatcher.counters.unread_bytes_full);
            stop_sender(&stream, &self.wire_id(id));
            to.fail(error);
        }
    }

    /// Ends the subscription that `stream` carries: the rest of its event has no room.
    pub(crate) fn refuse_on(&self, state: &CallConnectionState, stream: &Arc<CallStream>) {
        for (_, PendingResponse { to, .. }) in self.take_where(|on| Arc::ptr_eq(on, stream)) {
            DispatcherCounters::add(&state.dispatcher.counters.unread_bytes_full);
            to.fail(buffer::no_capacity());
        }
    }

    fn recipient(&self, id: u64, last: bool) -> ResponseRecipient {
        let mut table = lock(&self.table);
        match table.waiting.get(&id).map(|waiting| &waiting.to) {
            None => return ResponseRecipient::Discard,
            Some(ResponseSink::Stream(buffer)) if !last => {
                return ResponseRecipient::Stream(buffer.clone());
            }
            // A single answer, or a last event: the entry goes with it.
            Some(_) => {}
        }
        match table.waiting.remove(&id).map(|waiting| waiting.to) {
            None => ResponseRecipient::Discard,
            Some(ResponseSink::Once(tx)) => ResponseRecipient::Once(tx),
            Some(ResponseSink::Stream(buffer)) => ResponseRecipient::Stream(buffer),
        }
    }

    /// Gives credit on `stream`, once, for the further events of every subscription that has a stream of its own.
    pub(crate) fn credit_in_advance(&self, stream: &CallStream) {
        let mut table = lock(&self.table);
        // A second grant would exceed the credit that the buffers have room for.
        if std::mem::replace(&mut table.in_advance, true) {
            return;
        }
        let granted = |waiting: &PendingResponse| match &waiting.to {
            ResponseSink::Once(_) => false,
            ResponseSink::Stream(buffer) => {
                waiting.stream.is_single_call() && buffer.grant(WINDOW_FORWARDED_MAX)
            }
        };
        let all = table.waiting.iter();
        let credited = all.filter(|(_, waiting)| granted(waiting));
        let ids: Vec<u64> = credited.map(|(id, _)| *id).collect();
        drop(table);
        for id in ids {
            send_credit(stream, &self.wire_id(id), WINDOW_FORWARDED_MAX);
        }
    }

    /// Ends every request whose stream matches.
    pub(crate) fn fail_where(&self, which: impl Fn(&Arc<CallStream>) -> bool, why: &'static str) {
        fail(self.take_where(which), why);
    }

    /// Ends every request, and refuses later ones.
    pub(crate) fn close(&self, why: &'static str) {
        // First: a request that came in between would wait for ever.
        lock(&self.table).closed.get_or_insert(why);
        self.fail_where(|_| true, why);
    }

    /// Refuses requests from now on if none waits for an answer. Returns whether it does.
    pub(crate) fn close_if_empty(&self, why: &'static str) -> bool {
        let mut table = lock(&self.table);
        if !table.waiting.is_empty() {
            return false;
        }
        table.closed.get_or_insert(why);
        true
    }

    /// Like `close_if_empty`, with aborts for the peer: the last event on each of `streams` aborts the requests on it.
    pub(crate) fn abandon(&self, streams: &[Arc<CallStream>], why: &'static str) {
        lock(&self.table).closed.get_or_insert(why);
        let gone = self.take_where(|_| true);
        for stream in streams {
            let requests = gone.iter().filter(|(_, w)| Arc::ptr_eq(&w.stream, stream));
            stream.out.finish_with(|out| {
                requests.for_each(|(id, _)| envelope::append_abort(out, &self.wire_id(*id)));
            });
        }
        fail(gone, why);
    }

    fn take_where(&self, which: impl Fn(&Arc<CallStream>) -> bool) -> Vec<(u64, PendingResponse)> {
        let mut table = lock(&self.table);
        let matches = |_: &u64, waiting: &mut PendingResponse| which(&waiting.stream);
        table.waiting.extract_if(matches).collect()
    }
}

fn fail(gone: Vec<(u64, PendingResponse)>, why: &'static str) {
    for (_, waiting) in gone {
        waiting.to.fail(CallError::unavailable(why));
    }
}

enum ResponseRecipient {
    Discard,
    Once(oneshot::Sender<Result<CallBody, CallError>>),
    Stream(SubscriptionBuffer),
}

impl ResponseSink {
    async fn end(self, end: Result<(), CallError>) {
        match self {
            Self::Once(tx) => {
                let error = end.err().unwrap_or_else(|| {
                    CallError::internal("the peer completed the call without an answer")
                });
                let _ = tx.send(Err(error));
            }
            Self::Stream(buffer) => buffer.end(end).await,
        }
    }

    /// Does not wait: a subscriber whose channel is full sees it end without a terminal event, which means the same.
    fn fail(self, error: CallError) {
        match self {
            Self::Once(tx) => drop(tx.send(Err(error))),
            Self::Stream(buffer) => buffer.end_now(Err(error)),
        }
    }
}

/// How a terminal event ends a subscription.
fn end_of(event: &Envelope<'_>) -> Result<(), CallError> {
    match event.kind {
        EventKind::Completed => Ok(()),
        EventKind::Error => Err(peer_error::read(event).unwrap_or_else(|error| {
            CallError::internal(format!("the peer's error cannot be read: {error}"))
        })),
        _ => Err(CallError::new(
            ErrorCode::Aborted,
            "the peer aborted the call",
        )),
    }
}

fn parse_event(body: &FrameBody, event: &Envelope<'_>) -> Result<SubscriptionEvent, CallError> {
    let response: Response<'_> = event.members().map_err(|error| {
        CallError::internal(format!("the peer's answer cannot be read: {error}"))
    })?;
    let tail = body.tail.clone().unwrap_or_default();
    // A part of a frame keeps the whole frame in memory. Where most of a frame is unused, this copies the parts: they
    // count by their own length.
    let values = [response.output, response.cursor].into_iter().flatten();
    let used = tail.len() + values.map(|raw| raw.get().len()).sum::<usize>();
    let sparse = 2 * used < bytes_of(body);
    let own = |part: &[u8], shared: Bytes| match sparse {
        true => Bytes::copy_from_slice(part),
        false => shared,
    };
    let tail = own(&tail, tail.clone());
    let part = |raw: &RawValue| {
        let text = raw.get().as_bytes();
        CallBody::from_parts(own(text, body.envelope.slice_ref(text)), tail.clone())
    };
    Ok(SubscriptionEvent {
        output: response.output.map_or_else(CallBody::null, part),
        dropped: response.dropped,
        cursor: response.cursor.map(part),
    })
}

fn bytes_of(body: &FrameBody) -> usize {
    body.envelope.len() + body.tail.as_ref().map_or(0, Bytes::len)
}

/// Notifies the peer that this side waits for no more responses to this request: its caller gave it up, or called a
/// subscription like a query.
pub(crate) fn stop_sender(stream: &CallStream, id: &str) {
    if stream.is_single_call() {
        stream.out.kill(StreamCode::Cancelled);
    } else {
        stream.out.push(|out| envelope::append_abort(out, id));
    }
}

/// Allows the peer `n` events more. Returns whether the stream takes the notice.
pub(crate) fn send_credit(stream: &CallStream, id: &str, n: u32) -> bool {
    let credit = |out: &mut Vec<u8>| envelope::append_credit(out, id, n);
    stream.out.push(credit).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_say_which_side_chose_them() {
        let dialled = Outbound::new(true);
        let accepted = Outbound::new(false);
        assert_eq!(
            (dialled.wire_id(7), accepted.wire_id(7)),
            ("7".into(), "~7".into())
        );
        assert_eq!(dialled.number("7"), Some(7));
        assert_eq!(accepted.number("~7"), Some(7));
        for bad in ["~7", "07", "+7", "", "x", "99999999999999999999999"] {
            assert_eq!(dialled.number(bad), None, "{bad}");
        }
        assert_eq!(accepted.number("7"), None);
    }

    /// A request that registered before the connection closed still gets its answer, and the table refuses a later
    /// one before it sends anything.
    #[test]
    fn a_connection_closes_when_no_request_waits_and_then_takes_none() {
        let outbound = Outbound::new(true);
        let stream = Arc::new(CallStream::new());
        let answer = outbound.wait_once(1, &stream).expect("it is open");
        assert!(!outbound.close_if_empty("over"), "a request waits");
        let more = outbound.wait_once(2, &stream).expect("it is open still");
        assert!(outbound.forget(1) && outbound.forget(2));
        assert!(outbound.close_if_empty("over"));
        let refused = outbound.wait_once(3, &stream).expect_err("it is closed");
        assert_eq!(
            (refused.code, outbound.is_empty()),
            (ErrorCode::Unavailable, true)
        );
        let refused = outbound.wait_stream(4, &stream, BufferCapacity::Own(1));
        let refused = refused.expect_err("it is closed");
        assert_eq!(refused.code, ErrorCode::Unavailable);
        drop((answer, more));
    }
}
