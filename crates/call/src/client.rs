//! The requesting side.

use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use alknet_core::{AuthContext, CloseCode, CloseReason, Connection, StreamCode};
use futures_util::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::sync::mpsc;

use crate::body::Body;
use crate::dispatcher::Dispatcher;
use crate::envelope::{self, EventKind, ForwardedFor, Request as Payload};
use crate::error::CallError;
use crate::lane::Lane;
use crate::limits::{
    CALL_TIMEOUT_DEFAULT, LANE_REQUEST_BYTES, LANE_TIMEOUT_MAX, RESPONDER_GRACE,
    STREAM_EVENTS_BUFFERED, WINDOW_DEFAULT,
};
use crate::link::Link;
use crate::outbound::{Delivery, Event};
use crate::registry::Registry;
use crate::services::{Listing, OperationSummary};
use crate::spec::OperationSpec;

/// Makes [`CallConnection`]s out of connections that were dialled with ALPN `alknet/call`.
#[derive(Clone, Debug)]
pub struct CallClient(Arc<Dispatcher>);

impl CallClient {
    /// A client whose peers may call the operations of `dispatcher`, too.
    #[must_use]
    pub fn new(dispatcher: Arc<Dispatcher>) -> Self {
        Self(dispatcher)
    }

    /// A client that only calls.
    #[must_use]
    pub fn without_operations() -> Self {
        Self::new(Arc::new(Dispatcher::new(Registry::empty())))
    }

    /// Starts to use a connection. It ends with the last clone of what this returns. Must be
    /// called within a tokio runtime.
    ///
    /// `auth` says who the peer is, for its own requests.
    #[must_use]
    pub fn attach(&self, connection: Connection, auth: Option<&AuthContext>) -> CallConnection {
        let link = Link::new(connection, Arc::clone(&self.0), auth);
        let driver = tokio::spawn(Arc::clone(&link).drive());
        CallConnection {
            caller: Caller { link },
            _driver: Arc::new(AbortOnDrop(driver.abort_handle())),
        }
    }
}

#[derive(Debug)]
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A dialled connection; calls go through [`Caller`], which it derefs to.
#[derive(Clone, Debug)]
pub struct CallConnection {
    caller: Caller,
    _driver: Arc<AbortOnDrop>,
}

impl CallConnection {
    /// Ends the connection.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.caller.link.close(code, reason);
    }

    /// Resolves once the connection has ended.
    pub async fn closed(&self) -> CloseReason {
        self.caller.link.connection.closed().await
    }
}

impl Deref for CallConnection {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// Where a request travels, on carriages with many streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Route {
    /// Small and short ones share a lane; others have a stream of their own.
    #[default]
    Auto,
    /// A lane: cheapest.
    Lane,
    /// A stream of its own: isolated, with its own flow control.
    Stream,
}

/// What a request may say beside its input.
#[derive(Clone, Debug)]
pub struct CallOptions {
    /// Deadline of a call; subscriptions have one only when it is set here by hand. 30 s by
    /// default, `None` for the responder's own.
    pub timeout: Option<Duration>,
    /// Ends a subscription with `TIMEOUT` when no event comes for this long.
    pub idle: Option<Duration>,
    /// Events in flight of a subscription on a lane.
    pub window: u32,
    /// Acts as somebody else for this request.
    pub auth_token: Option<String>,
    /// Whom this request is forwarded for.
    pub forwarded_for: Option<ForwardedFor>,
    /// The attached peer it goes to instead, where the other side routes.
    pub peer: Option<String>,
    /// At most 64 bytes.
    pub idempotency_key: Option<String>,
    /// W3C `traceparent`.
    pub trace: Option<String>,
    /// Where the request travels.
    pub route: Route,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            timeout: Some(CALL_TIMEOUT_DEFAULT),
            idle: None,
            window: WINDOW_DEFAULT,
            auth_token: None,
            forwarded_for: None,
            peer: None,
            idempotency_key: None,
            trace: None,
            route: Route::Auto,
        }
    }
}

/// Calls the other side of a connection, whichever side dialled.
#[derive(Clone, Debug)]
pub struct Caller {
    link: Arc<Link>,
}

impl Caller {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    pub(crate) fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Calls a query or mutation. Dropping the future aborts the call.
    ///
    /// # Errors
    /// What the operation answers, or `UNAVAILABLE` when the connection is lost.
    pub async fn call(&self, operation: &str, input: &Value) -> Result<Body, CallError> {
        self.call_with(operation, input, &CallOptions::default())
            .await
    }

    /// Calls a query or mutation with typed input and output.
    ///
    /// # Errors
    /// As [`call`](Self::call), and `INTERNAL` when the answer is no `O`.
    pub async fn call_typed<I, O>(&self, operation: &str, input: &I) -> Result<O, CallError>
    where
        I: Serialize + Sync,
        O: DeserializeOwned,
    {
        let answer = self
            .call_with(operation, input, &CallOptions::default())
            .await?;
        answer.parse().map_err(|error| {
            CallError::internal(format!("the answer has another form: {}", error.message))
        })
    }

    /// As [`call`](Self::call), with options.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn call_with(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
    ) -> Result<Body, CallError> {
        let request = Encoded::new(&self.link, operation, input, options, None)?;
        let lane = self.lane_for(&request, options).await?;
        let answer = self.link.outbound.wait_once(request.id, &lane)?;
        let outgoing = request.send(&self.link, lane);
        let lost = || CallError::unavailable("the connection ended");
        let answer = async { answer.await.unwrap_or_else(|_| Err(lost())) };
        let outcome = match options.timeout {
            // The responder's TIMEOUT comes first; this is for one that says nothing at all.
            Some(timeout) => tokio::time::timeout(timeout.saturating_add(RESPONDER_GRACE), answer)
                .await
                .unwrap_or_else(|_| Err(CallError::timeout())),
            None => answer.await,
        };
        drop(outgoing);
        outcome
    }

    /// Starts a subscription. Dropping it aborts.
    ///
    /// # Errors
    /// The connection is gone, or the input has no JSON form; everything else comes as an event.
    pub async fn subscribe(
        &self,
        operation: &str,
        input: &Value,
    ) -> Result<Subscription, CallError> {
        let options = CallOptions {
            timeout: None,
            ..CallOptions::default()
        };
        self.subscribe_with(operation, input, &options).await
    }

    /// As [`subscribe`](Self::subscribe), with options.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub async fn subscribe_with(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
    ) -> Result<Subscription, CallError> {
        let own_stream = self.link.connection.is_multi() && options.route != Route::Lane;
        let window = (!own_stream).then_some(options.window.max(1));
        let request = Encoded::new(&self.link, operation, input, options, window)?;
        let lane = if own_stream {
            self.own_stream().await?
        } else {
            self.shared_lane().await?
        };
        let buffered = window.map_or(STREAM_EVENTS_BUFFERED, |window| window as usize + 1);
        let events = self
            .link
            .outbound
            .wait_stream(request.id, &lane, buffered)?;
        Ok(Subscription {
            events,
            window,
            taken: 0,
            outgoing: Some(request.send(&self.link, lane)),
        })
    }

    /// Every operation of the peer whose name starts with `prefix` and that this side may call.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn operations(&self, prefix: &str) -> Result<Vec<OperationSummary>, CallError> {
        let mut found = Vec::new();
        let mut cursor = None;
        loop {
            let input = serde_json::json!({ "prefix": prefix, "cursor": cursor });
            let page: Listing = self.call_typed("services/list", &input).await?;
            let protocol = &page.protocol;
            let mixed = protocol.features.iter().any(|feature| feature == "bin1");
            self.link.set_peer_protocol(protocol.max_frame, mixed);
            found.extend(page.operations);
            // A peer that repeats its cursor would keep us here for ever.
            if page.next.is_none() || page.next == cursor {
                return Ok(found);
            }
            cursor = page.next;
        }
    }

    /// The spec of one of the peer's operations.
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn schema(&self, operation: &str) -> Result<OperationSpec, CallError> {
        let input = serde_json::json!({ "name": operation });
        self.call_typed("services/schema", &input).await
    }

    /// Whether the peer asked for no new requests.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.link.heard_goaway()
    }

    async fn lane_for(
        &self,
        request: &Encoded,
        options: &CallOptions,
    ) -> Result<Arc<Lane>, CallError> {
        let small = request.frame.len() <= LANE_REQUEST_BYTES;
        let short = options.timeout.is_none_or(|t| t <= LANE_TIMEOUT_MAX);
        let own = match options.route {
            Route::Auto => !(small && short),
            Route::Lane => false,
            Route::Stream => true,
        };
        if own && self.link.connection.is_multi() {
            self.own_stream().await
        } else {
            self.shared_lane().await
        }
    }

    async fn own_stream(&self) -> Result<Arc<Lane>, CallError> {
        let lane = self.link.call_lane().await;
        lane.map_err(|error| CallError::unavailable(error.to_string()))
    }

    async fn shared_lane(&self) -> Result<Arc<Lane>, CallError> {
        let lane = self.link.any_lane().await;
        lane.map_err(|error| CallError::unavailable(error.to_string()))
    }
}

/// A request ready to be sent.
struct Encoded {
    id: u64,
    wire_id: String,
    frame: Vec<u8>,
}

impl Encoded {
    fn new(
        link: &Link,
        operation: &str,
        input: &(impl Serialize + ?Sized),
        options: &CallOptions,
        window: Option<u32>,
    ) -> Result<Self, CallError> {
        if link.heard_goaway() {
            return Err(CallError::draining());
        }
        let input = serde_json::value::to_raw_value(input)
            .map_err(|error| CallError::invalid_input(format!("no JSON form: {error}")))?;
        let id = link.outbound.next_id();
        let wire_id = link.outbound.wire_id(id);
        let payload = payload(operation, &input, options, window);
        let mut frame = Vec::with_capacity(input.get().len() + 128);
        let len = envelope::append_event(&mut frame, EventKind::Requested, &wire_id, |out| {
            envelope::append_json(out, &payload);
        });
        if len > link.peer_frame_bytes() {
            let message = format!(
                "the request has {len} bytes and the peer takes {}",
                link.peer_frame_bytes()
            );
            return Err(CallError::new(crate::ErrorCode::PayloadTooLarge, message));
        }
        Ok(Self { id, wire_id, frame })
    }

    fn send(self, link: &Arc<Link>, lane: Arc<Lane>) -> Outgoing {
        lane.out.push(|out| {
            if out.is_empty() {
                *out = self.frame;
            } else {
                out.extend_from_slice(&self.frame);
            }
        });
        if lane.is_single_call() {
            lane.out.finish();
        }
        Outgoing {
            link: Arc::clone(link),
            lane,
            id: self.id,
            wire_id: self.wire_id,
        }
    }
}

fn payload<'a>(
    operation: &str,
    input: &'a RawValue,
    options: &'a CallOptions,
    window: Option<u32>,
) -> Payload<'a> {
    let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    Payload {
        operation: format!("/{}", operation.trim_start_matches('/')).into(),
        input: Some(input),
        auth_token: options.auth_token.as_deref().map(Into::into),
        forwarded_for: options.forwarded_for.clone(),
        timeout_ms: options.timeout.map(millis),
        deadline: None,
        idle_ms: options.idle.map(millis),
        window,
        idempotency_key: options.idempotency_key.as_deref().map(Into::into),
        trace: options.trace.as_deref().map(Into::into),
        peer: options.peer.as_deref().map(Into::into),
    }
}

/// A request on its way: dropping it before its terminal event aborts it.
struct Outgoing {
    link: Arc<Link>,
    lane: Arc<Lane>,
    id: u64,
    wire_id: String,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.link.outbound.forget(self.id) {
            return;
        }
        if self.lane.is_single_call() {
            self.lane.out.kill(StreamCode::Cancelled);
        } else {
            self.lane.out.push(|out| {
                envelope::append_event(out, EventKind::Aborted, &self.wire_id, |out| {
                    out.extend_from_slice(b"{}");
                })
            });
        }
    }
}

/// The events of a subscription. Ends after its first error; dropping it aborts.
pub struct Subscription {
    events: mpsc::Receiver<Delivery>,
    window: Option<u32>,
    taken: u32,
    outgoing: Option<Outgoing>,
}

impl Subscription {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<Event, CallError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Gives back credit in halves of the window: few frames, and the peer never runs dry.
    fn took(&mut self) {
        let (Some(window), Some(outgoing)) = (self.window, &self.outgoing) else {
            return;
        };
        self.taken += 1;
        if self.taken >= window.div_ceil(2) {
            let n = std::mem::take(&mut self.taken);
            outgoing
                .lane
                .out
                .push(|out| envelope::append_credit(out, &outgoing.wire_id, n));
        }
    }
}

impl Stream for Subscription {
    type Item = Result<Event, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.outgoing.is_none() {
            return Poll::Ready(None);
        }
        let end = match std::task::ready!(self.events.poll_recv(cx)) {
            Some(Delivery::Event(event)) => {
                self.took();
                return Poll::Ready(Some(Ok(*event)));
            }
            Some(Delivery::End(end)) => end,
            None => Err(CallError::unavailable("the connection ended")),
        };
        self.outgoing = None;
        Poll::Ready(end.err().map(Err))
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
