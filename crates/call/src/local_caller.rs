//! Requests that come over another protocol of this node, such as HTTP: the same checks, the same operations, answers
//! as values instead of frames.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use alknet_core::{AuthContext, AuthToken, Connection, Identity, PeerKey};
use bytes::Bytes;
use futures_util::{FutureExt, Stream};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::access::AccessDecision;
use crate::admission::{self, CheckedRequest, RequestPrincipal};
use crate::body::{CallBody, CallOutput, SubscriptionItem};
use crate::call_stream::CallStream;
use crate::compiled::CompiledOperation;
use crate::compose::ResolvedOperation;
use crate::connection::CallConnectionState;
use crate::context::Ctx;
use crate::dispatcher::{CallTimer, Dispatcher, DispatcherCounters};
use crate::envelope::RequestPayload as Payload;
use crate::error::{CallError, ErrorCode};
use crate::handler::{HandlerKind, OnceHandler};
use crate::keyed;
use crate::limits::LOCAL_EVENTS_AHEAD;
use crate::memory::InputMemory;
use crate::pump::{self, EventSink, EventSinkResult};
use crate::request::{InboundRequest, panicked};
use crate::schema::PermitShare;
use crate::spec::OperationSpec;

/// The entry for the requests of one connection that speaks another protocol. Clones share it.
///
/// It does what a connection of `alknet/call` does for its peer, save for the limits on requests in flight, which the
/// server of the other protocol enforces. Operations cannot call such a caller back.
#[derive(Clone)]
pub struct LocalCaller {
    state: Arc<CallConnectionState>,
    /// The stream that would carry answers if requests came as frames; it carries nothing.
    stream: Arc<CallStream>,
}

/// What a client proved elsewhere, on a connection without an identity of its own, such as a browser's. This node
/// checks the proof again while a subscription runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallerProof {
    /// This key, on another connection.
    Key(PeerKey),
    /// A proof that this node does not hold: it looks up the identity by its id.
    Name,
}

/// One request.
#[derive(Clone, Debug)]
pub struct LocalRequest<'a> {
    /// Its id, as operations and the log see it: 1 to 64 visible characters.
    pub id: &'a str,
    /// The operation, with or without the leading slash.
    pub operation: &'a str,
    /// Checked JSON text; `None` stands for `null`.
    pub input: Option<Bytes>,
    /// The account that the input counts against, while it is kept.
    pub memory: Option<Arc<dyn InputMemory>>,
    /// The identity of the requester.
    pub identity: Option<Arc<Identity>>,
    /// The token of the requester, which the node looks up again while a subscription runs; `None` where the
    /// connection has the identity.
    pub token: Option<&'a Arc<AuthToken>>,
    /// The proof of the identity, where it is neither of the two.
    pub proved_by: Option<CallerProof>,
    /// The requester wants the answer within this time.
    pub timeout: Option<Duration>,
    /// A subscription ends when no event comes for so long.
    pub idle: Option<Duration>,
    /// A mutation that is repeated with the same key runs once.
    pub idempotency_key: Option<&'a str>,
    /// The peer to pass it on to.
    pub peer: Option<&'a str>,
    /// W3C `traceparent`.
    pub trace: Option<&'a str>,
}

impl<'a> LocalRequest<'a> {
    /// A request without an identity, with nothing but an operation.
    #[must_use]
    pub fn new(id: &'a str, operation: &'a str) -> Self {
        Self {
            id,
            operation,
            input: None,
            memory: None,
            identity: None,
            token: None,
            proved_by: None,
            timeout: None,
            idle: None,
            idempotency_key: None,
            peer: None,
            trace: None,
        }
    }

    fn payload(&self) -> Payload<'a> {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Payload {
            operation: self.operation.into(),
            input: None,
            // The caller has checked it already.
            auth_token: None,
            forwarded_for: None,
            timeout_ms: self.timeout.map(millis),
            deadline: None,
            idle_ms: self.idle.map(millis),
            window: None,
            idempotency_key: self.idempotency_key.map(Into::into),
            trace: self.trace.map(Into::into),
            peer: self.peer.map(Into::into),
            hops: 0,
        }
    }
}

impl LocalCaller {
    /// A caller for the requests of `connection`, which its handler goes on to serve.
    #[must_use]
    pub fn new(
        dispatcher: &Arc<Dispatcher>,
        connection: &Connection,
        auth: Option<&AuthContext>,
    ) -> Self {
        Self {
            state: CallConnectionState::one_way(connection.clone(), Arc::clone(dispatcher), auth),
            stream: Arc::new(CallStream::new()),
        }
    }

    /// The dispatcher that answers.
    #[must_use]
    pub fn dispatcher(&self) -> &Arc<Dispatcher> {
        &self.state.dispatcher
    }

    /// The identity that the connection itself proved.
    #[must_use]
    pub fn identity(&self) -> Option<Arc<Identity>> {
        self.state.identity()
    }

    /// The key that the connection's client proved to hold, known or not.
    #[must_use]
    pub fn key(&self) -> Option<PeerKey> {
        self.state.info.key
    }

    /// The identity of a key now.
    #[must_use]
    pub fn by_key(&self, key: PeerKey) -> Option<Arc<Identity>> {
        self.state.dispatcher.by_keys(&[key])
    }

    /// The identity of a token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a token that is not valid. Such a token is a guess, and counts against the network that
    /// it comes from.
    pub fn by_token(&self, token: &AuthToken) -> Result<Arc<Identity>, CallError> {
        self.state.by_token(token.expose())
    }

    /// Like `by_token`, without counting the guess: the calling code does that by [`guessed`](Self::guessed), once the
    /// time that counting takes does not show in an answer.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for a token that is not valid.
    pub fn resolve_token(&self, token: &AuthToken) -> Result<Arc<Identity>, CallError> {
        self.state.resolve_token(token.expose())
    }

    /// Whether a token is valid, without counting a guess.
    #[must_use]
    pub fn is_known_token(&self, token: &AuthToken) -> bool {
        self.state.dispatcher.by_token(token.expose()).is_some()
    }

    /// The error for a guess instead of the usual one, where too many guesses came from the same network.
    #[must_use]
    pub fn penalty(&self) -> Option<CallError> {
        let left = self.state.connection.penalty();
        left.map(CallError::too_many_guesses)
    }

    /// Notes that `principal` showed a valid token: from here on the connection is not an unknown peer's.
    pub fn authenticated(&self, principal: &Identity) {
        self.state.connection.authenticated(&principal.id);
    }

    /// Counts a guess against the network that it came from.
    pub fn guessed(&self) {
        self.state.connection.auth_failed();
    }

    /// The operations that `identity` may call as far as scopes decide that, in order of name, and the digest of all
    /// operations.
    #[must_use]
    pub fn visible(&self, identity: Option<&Identity>) -> (Vec<ResolvedOperation>, String) {
        let newer = self.newer(identity);
        let identity = newer.as_ref().map_or(identity, Option::as_deref);
        let now = self.state.dispatcher.registry.now();
        let shown = now.after("").filter(|operation| {
            operation.is_external()
                && operation.is_callable()
                && operation.spec.access_control.check_scopes(identity) == AccessDecision::Allowed
        });
        (shown.map(ResolvedOperation::here).collect(), now.digest())
    }

    /// One of these operations.
    #[must_use]
    pub fn spec(&self, identity: Option<&Identity>, name: &str) -> Option<ResolvedOperation> {
        let newer = self.newer(identity);
        let identity = newer.as_ref().map_or(identity, Option::as_deref);
        let found = self.state.dispatcher.registry.lookup(name)?;
        let shown = found.is_external()
            && found.is_callable()
            && found.spec.access_control.check_scopes(identity) == AccessDecision::Allowed;
        shown.then(|| ResolvedOperation::here(&found))
    }

    /// The identity as it is now, if it changed since the caller looked it up.
    fn newer(&self, before: Option<&Identity>) -> Option<Option<Arc<Identity>>> {
        let dispatcher = &self.state.dispatcher;
        dispatcher.table()?;
        let before = before.filter(|before| !dispatcher.is_current(before))?;
        Some(dispatcher.by_id(&before.id))
    }

    /// The identity `before` as it is now, by its proof: the token, something else, or the connection. For a part that
    /// answers no call, and goes on for longer.
    #[must_use]
    pub fn identity_now(
        &self,
        before: &Identity,
        token: Option<&AuthToken>,
        proved_by: Option<CallerProof>,
    ) -> Option<Arc<Identity>> {
        self.state.proved(before, token, proved_by)
    }

    /// Calls a query or mutation. Dropping the future aborts it, and the calls that it made.
    ///
    /// # Errors
    /// The errors of a call over `alknet/call`.
    pub async fn call(&self, incoming: LocalRequest<'_>) -> Result<CallOutput, LocalCallError> {
        let now = Instant::now();
        let LocalCall {
            running,
            handler,
            input,
        } = self.begin(incoming, now)?;
        let request = &running.0;
        let ctx = Ctx::request(request);
        let timed = CallTimer::since(&self.state.dispatcher.counters, now);
        let work = AssertUnwindSafe(async move { handler.call(input, ctx).await });
        let mut work = pin!(work.catch_unwind());
        // Most operations answer at once: the timer starts only when there is something to wait for.
        let outcome = match futures_util::poll!(work.as_mut()) {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => in_time(request.deadline(), work).await,
        };
        drop(timed);
        let outcome =
            outcome.unwrap_or_else(|_| Err(panicked(request, &request.operation().spec.name)));
        self.answer(request, outcome)
            .map_err(|error| LocalCallError::from_error(error, Some(request.operation())))
    }

    /// Everything before the work, in a function of its own: the values it needs do not live while the work runs.
    fn begin(&self, incoming: LocalRequest<'_>, now: Instant) -> Result<LocalCall, LocalCallError> {
        let checked = self.pass(incoming, now)?;
        let operation = checked.operation;
        let refused = |error| LocalCallError::from_error(error, Some(&operation));
        let HandlerKind::Once(handler) = &operation.handler else {
            return Err(refused(wrong_kind(&operation.spec, "a subscription")));
        };
        let running = self.enter(Arc::clone(&operation), checked.head);
        let running = running.map_err(refused)?;
        // After the permit: checking a long input is work that the limit of the operation bounds.
        admission::check_schema(&operation, &checked.input, running.0.identity())
            .map_err(refused)?;
        let handler = Arc::clone(handler);
        let begin = |name| keyed::begin(&self.state, &operation, name, &checked.input);
        let keyed = checked.name.map(begin).transpose().map_err(refused)?;
        let handler = match keyed {
            Some(keyed) => keyed.handler(handler),
            None => handler,
        };
        Ok(LocalCall {
            running,
            handler,
            input: checked.input,
        })
    }

    /// Starts a subscription. Dropping the stream ends the work behind it. The node polls it for an event when there
    /// is room for one. The operation's policy decides what happens with a slow reader: the operation makes no event,
    /// or leaves some out, or the subscription ends.
    ///
    /// # Errors
    /// The errors of a call over `alknet/call` that does not begin.
    pub fn subscribe(&self, incoming: LocalRequest<'_>) -> Result<LocalEvents, LocalCallError> {
        let checked = self.pass(incoming, Instant::now())?;
        let operation = Arc::clone(&checked.operation);
        let refused = |error| LocalCallError::from_error(error, Some(&operation));
        let HandlerKind::Stream(handler) = &checked.operation.handler else {
            return Err(refused(wrong_kind(&operation.spec, "no subscription")));
        };
        let handler = Arc::clone(handler);
        let running = self
            .enter(checked.operation, checked.head)
            .map_err(refused)?;
        admission::check_schema(running.0.operation(), &checked.input, running.0.identity())
            .map_err(refused)?;
        // Bounded: a slow client holds the source back instead of filling memory.
        let (reader, events) = mpsc::channel(LOCAL_EVENTS_AHEAD);
        let input = checked.input;
        let task = tokio::spawn(async move {
            let request = &running.0;
            let channel = LocalEventSink { request, reader };
            let outcome = pump::follow(request, &channel, handler, input).await;
            if let Err(error) = outcome {
                let error = request.visible(error);
                DispatcherCounters::add(&request.connection_state().dispatcher.counters.errors);
                // The reader may be gone, and the send may fail.
                let _ = channel.reader.send(Err(error)).await;
            }
        });
        Ok(LocalEvents {
            events,
            task: task.abort_handle(),
            operation,
        })
    }

    fn pass(
        &self,
        incoming: LocalRequest<'_>,
        now: Instant,
    ) -> Result<CheckedRequest, LocalCallError> {
        let counters = &self.state.dispatcher.counters;
        DispatcherCounters::add(&counters.requests);
        let payload = incoming.payload();
        let LocalRequest {
            id,
            input,
            memory,
            identity,
            token,
            proved_by,
            ..
        } = incoming;
        let token = token.cloned();
        let checked = admission::check_key(&payload).and_then(|()| {
            let input = || {
                let input = input.map_or_else(CallBody::null, CallBody::from_text);
                input.with_memory(memory)
            };
            let identify = |_: &Payload<'_>| {
                let proof = token.as_deref();
                let identity = self.state.still(identity, proof, proved_by)?;
                Ok(RequestPrincipal { identity, token })
            };
            admission::passed(&self.state, id, &payload, now, identify, input)
        });
        // The request never began: this counts it as an error here.
        let mut checked = checked.map_err(|error| {
            DispatcherCounters::add(&counters.errors);
            LocalCallError::from_error(error, None)
        })?;
        if proved_by.is_some() {
            let grant = &mut checked.head.grant;
            grant.get_or_insert_default().proved_by = proved_by;
        }
        Ok(checked)
    }

    fn enter(
        &self,
        operation: Arc<CompiledOperation>,
        head: crate::request::RequestHead,
    ) -> Result<LocalCallGuard, CallError> {
        // With a key, the run takes the permit of the operation.
        if head.key.is_none() {
            let counters = &self.state.dispatcher.counters;
            let entered = operation.enter();
            entered.inspect_err(|_| DispatcherCounters::add(&counters.operation_full))?;
        }
        let request = InboundRequest::new(head, &self.state, &self.stream, operation);
        Ok(LocalCallGuard(Arc::new(request)))
    }

    fn answer(
        &self,
        request: &InboundRequest,
        outcome: Result<CallOutput, CallError>,
    ) -> Result<CallOutput, CallError> {
        let operation = request.operation();
        // The requester's rights may have ended while the operation ran.
        let outcome = request.may_still_receive().and(outcome).and_then(|output| {
            let share = PermitShare::for_identity(request.identity());
            operation.checked(output.inlined(), share)
        });
        outcome.map_err(|error| {
            DispatcherCounters::add(&self.state.dispatcher.counters.errors);
            request.visible(request.settled(error))
        })
    }
}

impl fmt::Debug for LocalCaller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCaller")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

/// An error, and its HTTP status where the operation knows a better one than the table.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalCallError {
    /// The error.
    pub error: CallError,
    /// The status that the operation declared for this code of its own; 502 for a wrong output of an imported server.
    pub http_status: Option<u16>,
}

impl LocalCallError {
    fn from_error(error: CallError, operation: Option<&CompiledOperation>) -> Self {
        let http_status = operation.and_then(|operation| {
            // A wrong output of a server is no fault of this node (RFC 9110 section 15.6.3).
            if error.code == ErrorCode::InvalidOutput && operation.provenance.is_server() {
                return Some(BAD_GATEWAY_STATUS);
            }
            let mut codes = operation.spec.error_schemas.iter();
            codes
                .find(|declared| declared.code == error.code.name())?
                .http_status
        });
        Self { error, http_status }
    }
}

/// The status for a wrong answer of a server behind the node.
const BAD_GATEWAY_STATUS: u16 = 502;

fn wrong_kind(spec: &OperationSpec, what: &str) -> CallError {
    let message = format!("'{}' is {what}", spec.name);
    CallError::new(ErrorCode::InvalidOperationType, message)
}

/// A query or mutation that may run.
struct LocalCall {
    running: LocalCallGuard,
    handler: Arc<dyn OnceHandler>,
    input: CallBody,
}

/// The outcome of `work` until its deadline, if it has one.
async fn in_time<T>(
    deadline: Option<Instant>,
    work: impl Future<Output = Result<Result<T, CallError>, Panic>>,
) -> Result<Result<T, CallError>, Panic> {
    let Some(deadline) = deadline else {
        return work.await;
    };
    let outcome = tokio::time::timeout_at(deadline, work).await;
    outcome.unwrap_or_else(|_| Ok(Err(CallError::timeout())))
}

/// The value of a panic.
type Panic = Box<dyn std::any::Any + Send>;

/// Counts a request while it runs; its end is the end of everything below it.
struct LocalCallGuard(Arc<InboundRequest>);

impl Drop for LocalCallGuard {
    fn drop(&mut self) {
        // The caller may drop the future of a call in the middle.
        self.0.abort();
        if self.0.head.key.is_none() {
            self.0.operation().leave();
        }
    }
}

/// One event of a subscription.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LocalEvent {
    /// The operation's output.
    pub output: CallOutput,
    /// The cursor to resume after it.
    pub cursor: Option<serde_json::Value>,
    /// Events left out before it.
    pub dropped: u64,
}

struct LocalEventSink<'a> {
    request: &'a InboundRequest,
    reader: mpsc::Sender<Result<LocalEvent, CallError>>,
}

impl EventSink for LocalEventSink<'_> {
    fn is_open(&self) -> bool {
        self.reader.capacity() > 0
    }

    async fn wait_open(&self) {
        // A closed channel counts as open: the next check finds that the reader is gone.
        drop(self.reader.reserve().await);
    }

    fn is_gone(&self) -> bool {
        self.reader.is_closed()
    }

    fn give(&self, item: SubscriptionItem, dropped: u64) -> EventSinkResult {
        let SubscriptionItem { output, cursor, .. } = item;
        let event = self.request.may_still_receive().and_then(|()| {
            let share = PermitShare::for_identity(self.request.identity());
            self.request.operation().checked(output.inlined(), share)
        });
        let fit = event.is_ok();
        let event = event.map(|output| LocalEvent {
            output,
            cursor,
            dropped,
        });
        let event = event.map_err(|error| self.request.visible(error));
        match self.reader.try_send(event).is_ok() && fit {
            true => EventSinkResult::Taken,
            false => EventSinkResult::Over,
        }
    }
}

/// The events of a subscription; the last is an error where it failed.
pub struct LocalEvents {
    events: mpsc::Receiver<Result<LocalEvent, CallError>>,
    task: AbortHandle,
    operation: Arc<CompiledOperation>,
}

impl Stream for LocalEvents {
    type Item = Result<LocalEvent, LocalCallError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.events.poll_recv(cx));
        let failed = |error| LocalCallError::from_error(error, Some(&self.operation));
        Poll::Ready(event.map(|event| event.map_err(failed)))
    }
}

impl Drop for LocalEvents {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for LocalEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalEvents").finish_non_exhaustive()
    }
}
