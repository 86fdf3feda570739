//! The requesting side.

use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use alknet_core::{AuthContext, CloseCode, CloseReason, Connection, Dialer, Identity};
use futures_util::Stream;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::backpressure::UnreadBytes;
use crate::body::CallBody;
use crate::call_stream::CallStream;
use crate::connection::CallConnectionState;
use crate::credit::SubscriptionCredit;
use crate::dispatcher::Dispatcher;
use crate::envelope::ForwardedFor;
use crate::error::{CallError, ErrorCode};
use crate::limits::{
    CALL_TIMEOUT_DEFAULT, LANE_REQUEST_BYTES, LANE_TIMEOUT_MAX, LISTED_BYTES_MAX,
    LISTED_OPERATIONS_MAX, STREAM_EVENTS_BUFFERED, WINDOW_DEFAULT,
};
use crate::outbound::{BufferCapacity, Delivery, SubscriptionEvent};
use crate::outgoing::{self, EncodedRequest, OutgoingRequest, PendingCall};
use crate::registry::Registry;
use crate::request_bytes::Requester;
use crate::services::{OperationListing, OperationSummary};
use crate::spec::OperationSpec;

/// Makes [`CallConnection`]s: dials them, or takes connections that were dialled with ALPN `alknet/call`.
#[derive(Clone, Debug)]
pub struct CallClient {
    pub(crate) dispatcher: Arc<Dispatcher>,
    pub(crate) dialer: Option<Arc<dyn Dialer>>,
}

impl CallClient {
    /// A client whose peers may call the operations of `dispatcher`.
    #[must_use]
    pub fn new(dispatcher: Arc<Dispatcher>) -> Self {
        Self {
            dispatcher,
            dialer: None,
        }
    }

    /// A client that only calls.
    #[must_use]
    pub fn without_operations() -> Self {
        Self::new(Arc::new(Dispatcher::new(Registry::empty())))
    }

    /// Sets the dialler of [`connect`](Self::connect).
    #[must_use]
    pub fn with_dialer(mut self, dialer: Arc<dyn Dialer>) -> Self {
        self.dialer = Some(dialer);
        self
    }

    /// Starts to use a connection, which ends with the last clone of the returned handle. Must be called within a
    /// tokio runtime.
    ///
    /// `auth` identifies the peer, for its own requests.
    #[must_use]
    pub fn attach(&self, connection: Connection, auth: Option<&AuthContext>) -> CallConnection {
        let state = CallConnectionState::new(connection, Arc::clone(&self.dispatcher), auth);
        tokio::spawn(Arc::clone(&state).drive());
        CallConnection {
            _driver: Arc::new(CloseOnDrop(Arc::clone(&state))),
            caller: Caller { state },
        }
    }
}

/// Ends a connection when its last handle is dropped. Its driver may run on for as long as it takes to notify the
/// peer, and so may work of this side that still holds the connection.
#[derive(Debug)]
struct CloseOnDrop(Arc<CallConnectionState>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close(CloseCode::Normal, "");
    }
}

/// A dialled connection; calls go through [`Caller`], which it derefs to.
#[derive(Clone, Debug)]
pub struct CallConnection {
    caller: Caller,
    _driver: Arc<CloseOnDrop>,
}

impl CallConnection {
    /// Ends the connection with all calls over it: those of this side fail with `UNAVAILABLE`, and the peer aborts
    /// its own. A caller that leaves the runtime afterwards awaits [`closed`](Self::closed) first: on TCP the notice
    /// to the peer takes a moment.
    pub fn close(&self, code: CloseCode, reason: &str) {
        self.caller.state.close(code, reason);
    }

    /// Resolves once the connection has ended.
    pub async fn closed(&self) -> CloseReason {
        let state = &self.caller.state;
        tokio::select! {
            biased;
            // The carriage's own reason says more than the end of the stream.
            reason = state.connection.closed() => reason,
            // On a carriage with one stream, its end may be the only sign.
            () = state.ended() => CloseReason::Lost("the stream ended".to_owned()),
        }
    }
}

impl Deref for CallConnection {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// The stream of a request, on carriages with many streams.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallRoute {
    /// Small and short requests share a stream; others have one of their own.
    #[default]
    Auto,
    /// A stream that requests share, which costs least.
    Shared,
    /// A stream of its own, with its own flow control.
    Stream,
}

/// The options of a request.
#[derive(Clone)]
pub struct CallOptions {
    /// Timeout of a call. Subscriptions have one only if the caller sets it. 30 s by default, `None` for the
    /// responder's own.
    pub timeout: Option<Duration>,
    /// Ends a subscription with `TIMEOUT` if no event comes for this long.
    pub idle: Option<Duration>,
    /// Events in flight of a subscription on a shared stream.
    pub window: u32,
    /// Token of the identity for this request, which replaces the connection's.
    pub auth_token: Option<String>,
    /// The identity for which this request is forwarded.
    pub forwarded_for: Option<ForwardedFor>,
    /// The attached peer to which the request goes, if the other side routes.
    pub peer: Option<String>,
    /// Idempotency key of at most 64 bytes.
    pub idempotency_key: Option<String>,
    /// W3C `traceparent`.
    pub trace: Option<String>,
    /// The stream of the request.
    pub route: CallRoute,
    /// Number of times that the request was forwarded before, for forwarders.
    pub hops: u8,
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
            route: CallRoute::Auto,
            hops: 0,
        }
    }
}

impl CallOptions {
    /// Options of a subscription, which has no timeout.
    pub(crate) fn subscription() -> Self {
        Self {
            timeout: None,
            ..Self::default()
        }
    }

    /// End of the timeout that begins now. A deadline that overflows the clock is treated as no deadline.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timeout
            .and_then(|timeout| Instant::now().checked_add(timeout))
    }
}

impl fmt::Debug for CallOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No log line holds a token.
        f.debug_struct("CallOptions")
            .field("timeout", &self.timeout)
            .field("route", &self.route)
            .field("idempotency_key", &self.idempotency_key)
            .field("auth_token", &self.auth_token.as_ref().map(|_| "…"))
            .finish_non_exhaustive()
    }
}

/// Calls the other side of a connection, whichever side dialled.
#[derive(Clone, Debug)]
pub struct Caller {
    pub(crate) state: Arc<CallConnectionState>,
}

impl Caller {
    pub(crate) fn new(state: Arc<CallConnectionState>) -> Self {
        Self { state }
    }

    pub(crate) fn connection_state(&self) -> &Arc<CallConnectionState> {
        &self.state
    }

    /// Calls a query or mutation. Dropping the future aborts the call.
    ///
    /// # Errors
    /// The error of the operation, or `UNAVAILABLE` if the connection is lost.
    pub async fn call(&self, operation: &str, input: &Value) -> Result<CallBody, CallError> {
        self.call_with(operation, input, &CallOptions::default())
            .await
    }

    /// Calls a query or mutation with typed input and output.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call), and `INTERNAL` if the response is no `O`.
    pub async fn call_typed<I, O>(&self, operation: &str, input: &I) -> Result<O, CallError>
    where
        I: Serialize + Sync,
        O: DeserializeOwned,
    {
        let answer = self
            .call_with(operation, input, &CallOptions::default())
            .await?;
        answer.parse().map_err(|error| other_form(&error))
    }

    /// Like [`call`](Self::call), with options.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call).
    pub async fn call_with(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
    ) -> Result<CallBody, CallError> {
        let pending = self.begin(operation, input, options).await?;
        pending.outcome().await
    }

    /// Like [`call_with`](Self::call_with), with binary data, to which `{"$bin":[offset,length]}` in the input refer.
    ///
    /// # Errors
    /// `INVALID_INPUT` if this side does not know whether the peer takes binary data
    /// ([`takes_binary`](Self::takes_binary)), and the errors of [`call`](Self::call).
    pub async fn call_with_data(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        data: &[u8],
        options: &CallOptions,
    ) -> Result<CallBody, CallError> {
        if !data.is_empty() && !self.state.peer_takes_mixed() {
            return Err(CallError::invalid_input(
                "the peer is not known to take binary data: send it as base64",
            ));
        }
        let options = (options, None);
        let request = EncodedRequest::with_data(&self.state, operation, input, options, data)?;
        let pending = self.begin_encoded(request, options.0).await?;
        pending.outcome().await
    }

    /// Whether the peer takes binary data behind the JSON of a request. Asks the peer, unless its answers have said so.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call).
    pub async fn takes_binary(&self) -> Result<bool, CallError> {
        if !self.state.peer_takes_mixed() {
            self.listing(&json!({ "limit": 1 })).await?;
        }
        Ok(self.state.peer_takes_mixed())
    }

    /// Sends a request. After an error no part of it was sent: it can go over another connection.
    pub(crate) async fn begin(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
    ) -> Result<PendingCall, CallError> {
        let request = EncodedRequest::new(&self.state, operation, input, options, None)?;
        self.begin_encoded(request, options).await
    }

    async fn begin_encoded(
        &self,
        request: EncodedRequest,
        options: &CallOptions,
    ) -> Result<PendingCall, CallError> {
        let stream = self.stream_for(&request, options).await?;
        let mut frame = Vec::new();
        let pending = request.expect_answer(&self.state, &stream, options.timeout, &mut frame)?;
        outgoing::send(&self.state, &stream, frame)?;
        Ok(pending)
    }

    /// Starts a subscription. Dropping it aborts it.
    ///
    /// # Errors
    /// The connection has ended, or the input has no JSON form. Every other error comes as an event.
    pub async fn subscribe(
        &self,
        operation: &str,
        input: &Value,
    ) -> Result<Subscription, CallError> {
        self.subscribe_with(operation, input, &CallOptions::subscription())
            .await
    }

    /// Like [`subscribe`](Self::subscribe), with options.
    ///
    /// # Errors
    /// The errors of [`subscribe`](Self::subscribe).
    pub async fn subscribe_with(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
    ) -> Result<Subscription, CallError> {
        // The carriage's flow control holds back a stream of its own. On a shared stream it would hold back the other
        // requests as well, so that events there need credit.
        let credit = (!self.has_own_stream(options))
            .then(|| SubscriptionCredit::fixed(options.window.max(1)));
        let buffered = credit
            .as_ref()
            .map_or(STREAM_EVENTS_BUFFERED, |credit| credit.first() as usize + 1);
        let capacity = BufferCapacity::Own(buffered);
        self.follow(operation, input, options, credit, capacity)
            .await
    }

    /// Like [`subscribe_with`](Self::subscribe_with), for a requester that may not take events: they need credit on a
    /// stream of their own as well, they count for the requester, and if there is no capacity for them the
    /// subscription ends.
    pub(crate) async fn subscribe_for(
        &self,
        requester: &Requester,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
    ) -> Result<Subscription, CallError> {
        let credit = SubscriptionCredit::fitting();
        let capacity =
            BufferCapacity::passed(&self.state.dispatcher.unread_bytes, requester, &credit);
        self.follow(operation, input, options, Some(credit), capacity)
            .await
    }

    async fn follow(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
        credit: Option<SubscriptionCredit>,
        capacity: BufferCapacity,
    ) -> Result<Subscription, CallError> {
        let window = credit.as_ref().map(SubscriptionCredit::first);
        let request = EncodedRequest::new(&self.state, operation, input, options, window)?;
        let stream = if self.has_own_stream(options) {
            self.own_stream(capacity.waiting().cloned()).await?
        } else {
            self.shared_stream().await?
        };
        let mut frame = Vec::new();
        let (events, outgoing) =
            request.expect_events(&self.state, &stream, capacity, &mut frame)?;
        outgoing::send(&self.state, &stream, frame)?;
        Ok(Subscription {
            events,
            credit,
            outgoing: Some(outgoing),
        })
    }

    /// Whether a subscription has a stream of its own.
    fn has_own_stream(&self, options: &CallOptions) -> bool {
        self.state.connection.is_multi() && options.route != CallRoute::Shared
    }

    /// Every operation of the peer whose name begins with `prefix` and that this side may call.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call); `INVALID_OUTPUT` for an endless list: the peer names an operation twice,
    /// gives a page without a new one, or lists more than [`LISTED_OPERATIONS_MAX`] operations or [`LISTED_BYTES_MAX`]
    /// bytes.
    pub async fn operations(&self, prefix: &str) -> Result<Vec<OperationSummary>, CallError> {
        let mut found: Vec<OperationSummary> = Vec::new();
        let mut seen = HashSet::new();
        let (mut bytes, mut cursor) = (0, None);
        loop {
            let input = serde_json::json!({ "prefix": prefix, "cursor": cursor });
            let (page, len) = self.listing(&input).await?;
            bytes += len;
            let before = found.len();
            for operation in page.operations {
                if !seen.insert(operation.name.clone()) {
                    return Err(no_list("it names an operation twice"));
                }
                found.push(operation);
            }
            // Checked with each page: the peer chooses how many there are.
            if found.len() > LISTED_OPERATIONS_MAX {
                let text = format!("it has more than {LISTED_OPERATIONS_MAX} operations");
                return Err(no_list(&text));
            }
            if bytes > LISTED_BYTES_MAX {
                let text = format!("it has more than {LISTED_BYTES_MAX} bytes");
                return Err(no_list(&text));
            }
            match page.next {
                None => return Ok(found),
                // Such pages could keep this side asking for ever.
                Some(_) if found.len() == before => {
                    return Err(no_list("it has a next page and no operation"));
                }
                next => cursor = next,
            }
        }
    }

    /// One page of the peer's operations, with its bytes. The peer's limits in it are remembered.
    async fn listing(&self, input: &Value) -> Result<(OperationListing, usize), CallError> {
        let answer = self.call("services/list", input).await?;
        let page: OperationListing = answer.parse().map_err(|error| other_form(&error))?;
        let protocol = &page.protocol;
        let mixed = protocol.features.iter().any(|feature| feature == "bin1");
        self.state.set_peer_protocol(protocol.max_frame, mixed);
        self.state.known.set_requests_max(protocol.max_inflight);
        Ok((page, answer.raw().len()))
    }

    /// The spec of one of the peer's operations.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call).
    pub async fn schema(&self, operation: &str) -> Result<OperationSpec, CallError> {
        let input = serde_json::json!({ "name": operation });
        let spec = self.call_typed("services/schema", &input).await?;
        self.state.known.learn(operation, &spec);
        Ok(spec)
    }

    /// Asks the peer how many requests it takes from this side at once; `None` if it does not tell.
    ///
    /// # Errors
    /// The errors of [`call`](Self::call).
    pub async fn ask_requests_max(&self) -> Result<Option<usize>, CallError> {
        // Every listing has the number, so that the shortest page is enough, however many follow it.
        let input = serde_json::json!({ "prefix": "services/list", "limit": 1 });
        self.listing(&input).await?;
        Ok(self.requests_max())
    }

    /// Number of requests that the peer takes from this side at once, if it told: [`operations`](Self::operations)
    /// and [`ask_requests_max`](Self::ask_requests_max) ask for it.
    #[must_use]
    pub fn requests_max(&self) -> Option<usize> {
        self.state.known.requests_max()
    }

    /// The identity of the peer, if the node knows it.
    #[must_use]
    pub fn peer(&self) -> Option<Arc<Identity>> {
        self.state.identity()
    }

    /// Whether the connection has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.state.is_over()
    }

    /// Whether the peer asked for no new requests.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.state.has_received_goaway()
    }

    async fn stream_for(
        &self,
        request: &EncodedRequest,
        options: &CallOptions,
    ) -> Result<Arc<CallStream>, CallError> {
        let small = request.len() <= LANE_REQUEST_BYTES;
        let short = options.timeout.is_none_or(|t| t <= LANE_TIMEOUT_MAX);
        let own = match options.route {
            CallRoute::Auto => !(small && short),
            CallRoute::Shared => false,
            CallRoute::Stream => true,
        };
        if own && self.state.connection.is_multi() {
            self.own_stream(None).await
        } else {
            self.shared_stream().await
        }
    }

    async fn own_stream(
        &self,
        waiting: Option<Arc<UnreadBytes>>,
    ) -> Result<Arc<CallStream>, CallError> {
        let stream = self.state.open_call_stream(waiting).await;
        stream.map_err(|error| CallError::unavailable(error.to_string()))
    }

    pub(crate) async fn shared_stream(&self) -> Result<Arc<CallStream>, CallError> {
        let stream = self.state.any_shared_stream().await;
        stream.map_err(|error| CallError::unavailable(error.to_string()))
    }
}

fn other_form(error: &CallError) -> CallError {
    CallError::internal(format!("the answer has another form: {}", error.message))
}

fn no_list(why: &str) -> CallError {
    let text = format!("the peer answered with no list of operations: {why}");
    CallError::new(ErrorCode::InvalidOutput, text)
}

/// The events of a subscription. It ends after its first error. Dropping it aborts it.
pub struct Subscription {
    events: mpsc::Receiver<Delivery>,
    credit: Option<SubscriptionCredit>,
    outgoing: Option<OutgoingRequest>,
}

impl Subscription {
    /// The next event; `None` after the last.
    pub async fn next(&mut self) -> Option<Result<SubscriptionEvent, CallError>> {
        std::future::poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Gives credit for an event of `bytes` that the caller took.
    fn took(&mut self, bytes: usize) {
        if let (Some(credit), Some(outgoing)) = (&mut self.credit, &mut self.outgoing)
            && let Some(more) = credit.took(bytes)
        {
            outgoing.credit(more);
        }
    }
}

impl Stream for Subscription {
    type Item = Result<SubscriptionEvent, CallError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.outgoing.is_none() {
            return Poll::Ready(None);
        }
        let end = match std::task::ready!(self.events.poll_recv(cx)) {
            Some(Delivery::Event(event, claim)) => {
                self.took(claim.bytes());
                return Poll::Ready(Some(Ok(*event)));
            }
            Some(Delivery::End(end)) => end,
            None => Err(CallError::unavailable("the connection ended")),
        };
        // Dropping the request stops the peer, unless its terminal event has arrived.
        self.outgoing = None;
        Poll::Ready(end.err().map(Err))
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").finish_non_exhaustive()
    }
}
