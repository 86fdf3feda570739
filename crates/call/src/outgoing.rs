//! Requests of this side on their way out, and the wait for their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::body::CallBody;
use crate::call_stream::CallStream;
use crate::client::CallOptions;
use crate::connection::CallConnectionState;
use crate::envelope::{self, EventKind, RequestPayload as Payload};
use crate::error::{CallError, ErrorCode};
use crate::limits::RESPONDER_GRACE;
use crate::outbound::{BufferCapacity, Delivery, send_credit, stop_sender};
use crate::text;

/// Bytes that usually suffice for a request.
const FRAME_BYTES_USUAL: usize = 256;

/// A request ready to be sent.
pub(crate) struct EncodedRequest {
    id: u64,
    wire_id: String,
    frame: Vec<u8>,
}

impl EncodedRequest {
    pub(crate) fn new(
        state: &CallConnectionState,
        operation: &str,
        input: &(impl Serialize + ?Sized),
        options: &CallOptions,
        window: Option<u32>,
    ) -> Result<Self, CallError> {
        Self::with_data(state, operation, input, (options, window), &[])
    }

    /// A request with binary data, to which `{"$bin":[offset,length]}` in the input refer.
    pub(crate) fn with_data(
        state: &CallConnectionState,
        operation: &str,
        input: &(impl Serialize + ?Sized),
        (options, window): (&CallOptions, Option<u32>),
        data: &[u8],
    ) -> Result<Self, CallError> {
        // The peer would ignore the request: failing here lets the caller use another connection at once.
        if state.has_received_goaway() {
            return Err(CallError::draining());
        }
        let id = state.outbound.next_id();
        let wire_id = state.outbound.wire_id(id);
        let payload = payload(operation, input, options, window);
        let mut frame = Vec::with_capacity(FRAME_BYTES_USUAL);
        let mut written = Ok(());
        let write = |out: &mut Vec<u8>| written = text::append(out, &payload);
        let kind = EventKind::Requested;
        // A side that sends a mixed frame takes them, too. A side that serves nothing announces no features: it says
        // by its first frame that binary data need not come as text.
        let announces = state.announces_mixed() || !data.is_empty();
        let len = if announces {
            let len = envelope::append_mixed_event(&mut frame, kind, &wire_id, data.len(), write);
            frame.extend_from_slice(data);
            len
        } else {
            envelope::append_event(&mut frame, kind, &wire_id, write)
        };
        written.map_err(|error| CallError::invalid_input(format!("no JSON form: {error}")))?;
        // The peer would end the whole stream for a frame that is too long.
        if len > state.peer_frame_bytes() {
            let message = format!(
                "the request has {len} bytes and the peer takes {}",
                state.peer_frame_bytes()
            );
            return Err(CallError::new(ErrorCode::PayloadTooLarge, message));
        }
        if announces {
            state.announced_mixed();
        }
        Ok(Self { id, wire_id, frame })
    }

    /// Bytes on the wire.
    pub(crate) fn len(&self) -> usize {
        self.frame.len()
    }

    /// Registers for the answer and appends the frame to `out`, which the caller [`send`]s on `stream`.
    pub(crate) fn expect_answer(
        self,
        state: &Arc<CallConnectionState>,
        stream: &Arc<CallStream>,
        timeout: Option<Duration>,
        out: &mut Vec<u8>,
    ) -> Result<PendingCall, CallError> {
        // Before the frame is sent: the answer may come at once.
        let answer = state.outbound.wait_once(self.id, stream)?;
        Ok(PendingCall {
            answer,
            timeout,
            outgoing: self.append(state, stream, out),
        })
    }

    /// Like `expect_answer`, for a subscription's events.
    pub(crate) fn expect_events(
        self,
        state: &Arc<CallConnectionState>,
        stream: &Arc<CallStream>,
        capacity: BufferCapacity,
        out: &mut Vec<u8>,
    ) -> Result<(mpsc::Receiver<Delivery>, OutgoingRequest), CallError> {
        let events = state.outbound.wait_stream(self.id, stream, capacity)?;
        Ok((events, self.append(state, stream, out)))
    }

    fn append(
        self,
        state: &Arc<CallConnectionState>,
        stream: &Arc<CallStream>,
        out: &mut Vec<u8>,
    ) -> OutgoingRequest {
        if out.is_empty() {
            *out = self.frame;
        } else {
            out.extend_from_slice(&self.frame);
        }
        OutgoingRequest {
            state: Arc::clone(state),
            stream: Arc::clone(stream),
            id: self.id,
            wire_id: self.wire_id,
            owed: Arc::default(),
            waits: None,
        }
    }
}

/// Writes frames on `stream`, all at once; ends it where it carries one request only.
pub(crate) fn send(
    state: &CallConnectionState,
    stream: &CallStream,
    frames: Vec<u8>,
) -> Result<(), CallError> {
    let taken = stream.out.push_waiting(&state.unsent, |out| {
        if out.is_empty() {
            *out = frames;
        } else {
            out.extend_from_slice(&frames);
        }
    });
    taken.ok_or_else(|| CallError::unavailable("the stream ended"))?;
    // The peer learns at once that no other request follows on the stream.
    if stream.is_single_call() {
        stream.out.finish();
    }
    Ok(())
}

/// A call whose answer is on its way. Dropping it aborts the call.
pub(crate) struct PendingCall {
    answer: oneshot::Receiver<Result<CallBody, CallError>>,
    timeout: Option<Duration>,
    outgoing: OutgoingRequest,
}

impl PendingCall {
    /// The answer, or the error in its place.
    pub(crate) async fn outcome(self) -> Result<CallBody, CallError> {
        let Self {
            answer,
            timeout,
            outgoing,
        } = self;
        let lost = || CallError::unavailable("the connection ended");
        let answer = async { answer.await.unwrap_or_else(|_| Err(lost())) };
        let outcome = match timeout {
            // The responder's TIMEOUT comes first; this one is for a responder that sends nothing at all.
            Some(timeout) => tokio::time::timeout(timeout.saturating_add(RESPONDER_GRACE), answer)
                .await
                .unwrap_or_else(|_| Err(CallError::timeout())),
            None => answer.await,
        };
        // Lives until here: dropped earlier, with this future, it aborts the call at the peer.
        drop(outgoing);
        outcome
    }
}

fn payload<'a, I>(
    operation: &str,
    input: I,
    options: &'a CallOptions,
    window: Option<u32>,
) -> Payload<'a, I> {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Payload {
        operation: format!("/{}", operation.trim_start_matches('/')).into(),
        input: Some(input),
        auth_token: options.auth_token.as_deref().map(Into::into),
        forwarded_for: options.forwarded_for.clone(),
        timeout_ms: options.timeout.map(millis),
        // `timeout_ms` has the same meaning, and needs no two clocks that agree.
        deadline: None,
        idle_ms: options.idle.map(millis),
        window,
        idempotency_key: options.idempotency_key.as_deref().map(Into::into),
        trace: options.trace.as_deref().map(Into::into),
        peer: options.peer.as_deref().map(Into::into),
        hops: options.hops,
    }
}

/// A request on its way: dropping it before its terminal event aborts it.
pub(crate) struct OutgoingRequest {
    state: Arc<CallConnectionState>,
    stream: Arc<CallStream>,
    id: u64,
    wire_id: String,
    /// Credit that waits for a stream.
    owed: Arc<AtomicU32>,
    /// The task that sends it then.
    waits: Option<AbortHandle>,
}

impl OutgoingRequest {
    /// Lets the peer send `n` events more. A stream of one request has ended: there the credit goes over a shared
    /// stream, and its id names the subscription.
    pub(crate) fn credit(&mut self, n: u32) {
        if !self.stream.is_single_call() {
            send_credit(&self.stream, &self.wire_id, n);
            return;
        }
        let usable = self.state.usable_stream();
        if usable.is_some_and(|stream| send_credit(&stream, &self.wire_id, n)) {
            return;
        }
        // A peer that drains takes no further stream.
        if self.state.has_received_goaway() {
            return;
        }
        self.credit_later(n);
    }

    /// Like `credit`, once there is a shared stream. One task waits for the stream, however much is owed: the peer
    /// decides when another stream may open.
    fn credit_later(&mut self, n: u32) {
        let add = |owed: u32| Some(owed.saturating_add(n));
        let before = self
            .owed
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        // A task waits already, and will send this credit as well.
        if before != Ok(0) {
            return;
        }
        let (state, wire_id) = (Arc::clone(&self.state), self.wire_id.clone());
        let owed = Arc::clone(&self.owed);
        let waits = tokio::spawn(async move {
            // Without a shared stream the connection is about to end.
            if let Ok(stream) = state.any_shared_stream().await {
                send_credit(&stream, &wire_id, owed.swap(0, Ordering::AcqRel));
            }
        });
        self.waits = Some(waits.abort_handle());
    }
}

impl Drop for OutgoingRequest {
    fn drop(&mut self) {
        if let Some(waits) = &self.waits {
            waits.abort();
        }
        let state = &self.state;
        // Without a terminal event the peer still works on the request.
        if state.outbound.forget(self.id) {
            stop_sender(&self.stream, &self.wire_id);
        }
        // Streams that only waited for this call may end now.
        if state.has_sent_goaway() && !state.has_outbound() {
            state.wake_writers();
        }
    }
}

#[cfg(test)]
mod tests {
    use alknet_core::{
        BoxFuture, CloseCode, CloseReason, Connection, RecvStream, SendStream, StreamError,
        StreamSource, memory_pair,
    };
    use tokio::sync::Semaphore;

    use super::*;
    use crate::ALPN;
    use crate::dispatcher::Dispatcher;
    use crate::registry::Registry;

    /// A connection whose peer decides when a stream may open.
    struct LateStreamSource {
        inner: Connection,
        opens: Arc<Semaphore>,
    }

    impl StreamSource for LateStreamSource {
        fn accept_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
            Box::pin(self.inner.accept_bi())
        }

        fn open_bi(&self) -> BoxFuture<'_, Result<(SendStream, RecvStream), StreamError>> {
            Box::pin(async {
                let permit = self.opens.acquire().await;
                permit.expect("it is not closed").forget();
                self.inner.open_bi().await
            })
        }

        fn is_multi(&self) -> bool {
            true
        }

        fn close(&self, code: CloseCode, reason: &str) {
            self.inner.close(code, reason);
        }

        fn closed(&self) -> BoxFuture<'_, CloseReason> {
            Box::pin(self.inner.closed())
        }
    }

    /// On a stream of its own, which has ended.
    fn subscription(state: &Arc<CallConnectionState>) -> OutgoingRequest {
        OutgoingRequest {
            state: Arc::clone(state),
            stream: Arc::new(CallStream::single_call(None)),
            id: 1,
            wire_id: "1".to_owned(),
            owed: Arc::default(),
            waits: None,
        }
    }

    /// A peer that ignores credit sends events for as long as it likes, and some of them each give more credit.
    #[tokio::test]
    async fn one_task_waits_for_a_stream_however_much_credit_is_owed() {
        let registry = Registry::builder().build().expect("no operations");
        let (dialled, accepted) = memory_pair(ALPN);
        let info = dialled.info().clone();
        let opens = Arc::new(Semaphore::new(0));
        let late = LateStreamSource {
            inner: dialled,
            opens: Arc::clone(&opens),
        };
        let connection = Connection::from_source(Box::new(late), info);
        let state = CallConnectionState::new(connection, Arc::new(Dispatcher::new(registry)), None);
        // Each task holds the connection.
        let held = Arc::strong_count(&state);
        let mut left = subscription(&state);
        (0..100).for_each(|_| left.credit(1));
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&state), held + 2);
        // The task ends with the subscription.
        drop(left);
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&state), held);
        // The task sends the owed credit at once.
        let mut taken = subscription(&state);
        (0..100).for_each(|_| taken.credit(1));
        opens.add_permits(1);
        let (_send, mut recv) = accepted.accept_bi().await.expect("it is opened");
        let read = recv.read_chunk(1 << 10).await.expect("it is there");
        let read = read.expect("it is there");
        let mut credit = Vec::new();
        envelope::append_credit(&mut credit, "1", 100);
        assert_eq!(read, credit);
    }
}
