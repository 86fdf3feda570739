//! One request at the responder, from admission to its one terminal event.

mod response;

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use alknet_core::{AuthToken, Identity};
use futures_util::FutureExt;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::body::{CallBody, CallOutput, SubscriptionItem};
use crate::call_stream::CallStream;
use crate::call_tree::{CallTree, SentChanges};
use crate::compiled::CompiledOperation;
use crate::compose::{OperationEnv, PeerCompositeEnv};
use crate::connection::CallConnectionState;
use crate::context::Ctx;
use crate::dispatcher::{CallTimer, Dispatcher, DispatcherCounters};
use crate::envelope::{self, EventKind, ForwardedFor};
use crate::error::CallError;
use crate::handler::OnceHandler;
use crate::pump::EventSinkResult;
use crate::request_bytes::RequestClaim;
use crate::request_grant::RequestGrant;
use crate::schema::PermitShare;
use crate::spec::OperationType;
use response::ResponseResult;
pub(crate) use response::push_error;

/// An admitted request.
pub(crate) struct InboundRequest {
    pub(crate) head: RequestHead,
    state: Arc<CallConnectionState>,
    stream: Arc<CallStream>,
    operation: Arc<CompiledOperation>,
    /// Bytes of its events that are queued and not yet written; of a subscription.
    queued: Option<Arc<AtomicUsize>>,
    pub(crate) credit: Option<CreditWindow>,
    /// Whether its last event found no room. The length of an event is not known before it is made.
    starved: AtomicBool,
    /// Running calls between operations below it.
    pub(crate) children: AtomicUsize,
    children_ever: AtomicU64,
    env: OnceLock<Arc<dyn OperationEnv>>,
    aborted: AtomicBool,
    answered: AtomicBool,
    token: OnceLock<CancellationToken>,
    task: OnceLock<AbortHandle>,
    tree: OnceLock<Arc<CallTree>>,
    /// Whether the node sent its change to a server outside.
    sent: AtomicBool,
    /// Number of the newest table of identities under which its right still held, after the table that admitted it.
    pub(crate) seen: AtomicU64,
}

/// The requester's part of it.
#[derive(Clone, Debug)]
pub(crate) struct RequestHead {
    pub(crate) id: Box<str>,
    pub(crate) identity: Option<Arc<Identity>>,
    /// The token of this one request, which names the requester.
    pub(crate) token: Option<Arc<AuthToken>>,
    pub(crate) forwarded_for: Option<ForwardedFor>,
    pub(crate) trace: Option<Box<str>>,
    pub(crate) deadline: Option<Instant>,
    /// Whether the requester left clearly less time than the operation has by itself.
    pub(crate) hurried: bool,
    pub(crate) idle: Option<Duration>,
    pub(crate) window: Option<u32>,
    /// Its idempotency key, where the key counts: the request then only waits for the run of the key, and the
    /// operation counts the run in place of the request.
    pub(crate) key: Option<Box<str>>,
    /// The grounds of its right, which the node checks again while it runs.
    pub(crate) grant: Option<RequestGrant>,
    /// How often nodes passed it on before it arrived here.
    pub(crate) hops: u8,
    /// Counts its bytes until it, and the run of its key, is over.
    pub(crate) _claim: Option<Arc<RequestClaim>>,
}

impl InboundRequest {
    pub(crate) fn new(
        head: RequestHead,
        state: &Arc<CallConnectionState>,
        stream: &Arc<CallStream>,
        operation: Arc<CompiledOperation>,
    ) -> Self {
        Self {
            credit: head.window.map(CreditWindow::new),
            head,
            state: Arc::clone(state),
            stream: Arc::clone(stream),
            queued: (operation.spec.op_type == OperationType::Subscription).then(Arc::default),
            starved: AtomicBool::new(false),
            children: AtomicUsize::new(0),
            children_ever: AtomicU64::new(0),
            operation,
            env: OnceLock::new(),
            aborted: AtomicBool::new(false),
            answered: AtomicBool::new(false),
            token: OnceLock::new(),
            task: OnceLock::new(),
            tree: OnceLock::new(),
            sent: AtomicBool::new(false),
            seen: AtomicU64::new(0),
        }
    }

    /// The same request apart from the connection: no abort reaches it, and it sends nothing. A keyed mutation runs
    /// as such a request.
    pub(crate) fn detached(&self) -> Arc<Self> {
        self.detached_below(self.tree().changes())
    }

    /// Like `detached`, for the run of the key of a call between operations, which has sent `changes`.
    pub(crate) fn detached_below(&self, changes: &Arc<SentChanges>) -> Arc<Self> {
        let head = self.head.clone();
        let operation = Arc::clone(&self.operation);
        let mut detached = Self::new(head, &self.state, &self.stream, operation);
        detached.tree = OnceLock::from(Arc::new(CallTree::below(self.tree(), changes)));
        Arc::new(detached)
    }

    pub(crate) fn id(&self) -> &str {
        &self.head.id
    }

    pub(crate) fn identity(&self) -> Option<&Arc<Identity>> {
        self.head.identity.as_ref()
    }

    /// The token that names the requester, its own or the connection's.
    pub(crate) fn proof(&self) -> Option<&Arc<AuthToken>> {
        let own = self.head.token.as_ref();
        own.or_else(|| self.state.session.token())
    }

    pub(crate) fn forwarded_for(&self) -> Option<&ForwardedFor> {
        self.head.forwarded_for.as_ref()
    }

    pub(crate) fn trace(&self) -> Option<&str> {
        self.head.trace.as_deref()
    }

    pub(crate) fn idempotency_key(&self) -> Option<&str> {
        self.head.key.as_deref()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.head.deadline
    }

    pub(crate) fn connection_state(&self) -> &Arc<CallConnectionState> {
        &self.state
    }

    pub(crate) fn stream(&self) -> &Arc<CallStream> {
        &self.stream
    }

    pub(crate) fn operation(&self) -> &Arc<CompiledOperation> {
        &self.operation
    }

    /// The environment in which its operation finds others. The first access composes it, and everything below the
    /// request shares it.
    pub(crate) fn env(&self) -> &Arc<dyn OperationEnv> {
        self.env.get_or_init(|| {
            let Dispatcher {
                registry, peers, ..
            } = &*self.state.dispatcher;
            Arc::new(PeerCompositeEnv::new(registry, self.state.imports(), peers))
        })
    }

    /// The id of the next call below it.
    pub(crate) fn next_child_id(&self) -> Box<str> {
        let n = self.children_ever.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}.{n}", self.id()).into()
    }

    /// The state that it shares with every call below it. The first access makes it: most operations never need it.
    pub(crate) fn tree(&self) -> &Arc<CallTree> {
        self.tree.get_or_init(|| Arc::new(CallTree::new()))
    }

    /// See [`Ctx::set_sent`].
    pub(crate) fn set_sent(&self, sent: bool) {
        // Repeated notes must not change the count.
        if self.sent.swap(sent, Ordering::AcqRel) != sent {
            self.tree().changes().note(sent);
        }
    }

    /// The error of a query or mutation, in view of the changes that it sent. A subscription resumes by its cursor.
    pub(crate) fn settled(&self, error: CallError) -> CallError {
        match self.tree.get() {
            Some(tree) if !self.is_subscription() => tree.changes().settled(error),
            _ => error,
        }
    }

    /// The first access makes the token: most operations never need it.
    pub(crate) fn cancel_token(&self) -> &CancellationToken {
        let token = self.token.get_or_init(CancellationToken::new);
        // An abort that came before this access found no token to cancel.
        if self.aborted.load(Ordering::SeqCst) {
            token.cancel();
        }
        token
    }

    /// Drops the handler and cancels the work that it spawned. The request sends nothing any more.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        if let Some(token) = self.token.get() {
            token.cancel();
        }
        if let Some(task) = self.task.get() {
            // The task of the request would otherwise run on.
            task.abort();
        }
    }

    /// The task that drives the request from now on.
    pub(crate) fn set_task(&self, task: AbortHandle) {
        let _ = self.task.set(task);
        // An abort that came before found no task to end.
        if self.aborted.load(Ordering::SeqCst) {
            self.abort();
        }
    }

    /// Sends the one answer of a query or mutation.
    fn answer(&self, outcome: Result<CallOutput, CallError>) {
        let outcome = self.may_still_receive().and(outcome);
        match outcome.and_then(|output| self.checked(output)) {
            Ok(output) => {
                if !self.is_over() {
                    self.push_output(&output.into(), 0);
                }
            }
            Err(error) => self.fail(error),
        }
    }

    /// Sends one event of a subscription. The subscription is over when the event became the terminal error instead,
    /// or the stream is gone.
    pub(crate) fn event(&self, mut item: SubscriptionItem, dropped: u64) -> EventSinkResult {
        if self.aborted.load(Ordering::SeqCst) {
            return EventSinkResult::Over;
        }
        // Rights may end while a subscription runs.
        if let Err(error) = self.may_still_receive() {
            self.fail(error);
            return EventSinkResult::Over;
        }
        match self.checked(item.output) {
            Ok(output) => item.output = output,
            Err(error) => {
                self.fail(error);
                return EventSinkResult::Over;
            }
        }
        match self.push_output(&item, dropped) {
            ResponseResult::NoRoom => {
                self.starved.store(true, Ordering::Release);
                EventSinkResult::Not(item)
            }
            ResponseResult::Queued => {
                self.starved.store(false, Ordering::Release);
                EventSinkResult::Taken
            }
            ResponseResult::Refused => EventSinkResult::Over,
        }
    }

    /// Ends a subscription well.
    pub(crate) fn complete(&self) {
        if !self.is_over() {
            self.stream.out.push_waiting(&self.state.unread, |out| {
                envelope::append_event(out, EventKind::Completed, self.id(), |out| {
                    out.extend_from_slice(b"{}");
                });
            });
        }
    }

    /// Ends the request with an error.
    pub(crate) fn fail(&self, error: CallError) {
        let error = self.visible(self.settled(error));
        if !self.is_over() {
            DispatcherCounters::add(&self.state.dispatcher.counters.errors);
            push_error(&self.state, &self.stream, self.id(), &error);
        }
    }

    /// Whether a terminal event went out before, or must not go out: the next one counts as it.
    fn is_over(&self) -> bool {
        self.aborted.load(Ordering::SeqCst) || self.answered.swap(true, Ordering::SeqCst)
    }

    fn checked(&self, output: CallOutput) -> Result<CallOutput, CallError> {
        let output = if self.state.peer_takes_mixed() {
            output
        } else {
            output.inlined()
        };
        let share = PermitShare::for_identity(self.identity());
        self.operation.checked(output, share)
    }

    /// Whether an event that found no room has to wait for more.
    pub(crate) fn is_starved(&self) -> bool {
        self.starved.load(Ordering::Acquire) && !self.state.unread.has_share()
    }

    /// Waits until it need not wait any more.
    pub(crate) async fn wait_fed(&self) {
        if self.starved.load(Ordering::Acquire) {
            self.state.unread.wait_share().await;
            self.starved.store(false, Ordering::Release);
        }
    }

    pub(crate) fn is_subscription(&self) -> bool {
        self.queued.is_some()
    }

    /// Bytes of its events that are queued and not yet written.
    pub(crate) fn queued_bytes(&self) -> usize {
        let queued = self.queued.as_ref();
        queued.map_or(0, |queued| queued.load(Ordering::Acquire))
    }
}

/// How many events the requester still takes.
#[derive(Debug)]
pub(crate) struct CreditWindow {
    left: AtomicUsize,
    more: Notify,
}

impl CreditWindow {
    fn new(window: u32) -> Self {
        Self {
            left: AtomicUsize::new(window as usize),
            more: Notify::new(),
        }
    }

    pub(crate) fn add(&self, n: u32) {
        // Saturating: a peer that grants without bound gains nothing by wrapping around.
        let add = |left: usize| Some(left.saturating_add(n as usize));
        let _ = self
            .left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, add);
        self.more.notify_one();
    }

    pub(crate) fn is_open(&self) -> bool {
        self.left.load(Ordering::Acquire) > 0
    }

    pub(crate) fn spend(&self) {
        let take = |left: usize| Some(left.saturating_sub(1));
        let _ = self
            .left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
    }

    /// Waits for credit. One waiter: the subscription's own pump.
    pub(crate) async fn wait(&self) {
        while !self.is_open() {
            self.more.notified().await;
        }
    }
}

/// Counts a request while it lives.
pub(crate) struct InFlight(Arc<InboundRequest>);

impl InFlight {
    /// Takes over the counts that admission took.
    pub(crate) fn new(request: Arc<InboundRequest>) -> Self {
        request.stream.inbound.fetch_add(1, Ordering::AcqRel);
        Self(request)
    }

    pub(crate) fn request(&self) -> &Arc<InboundRequest> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let request = &self.0;
        // No call starts below a request that is over, either.
        request.aborted.store(true, Ordering::SeqCst);
        // With a key, the run gives the permit back.
        if request.head.key.is_none() {
            request.operation.leave();
        }
        request.state.inbound.forget(request);
        request.state.note_request();
        // Work that the handler spawned may still run: the end of the request reaches that work as well.
        if let Some(token) = request.token.get() {
            token.cancel();
        }
        request.stream.inbound.fetch_sub(1, Ordering::AcqRel);
        request.stream.out.wake_writer();
        // Streams that stayed open for its credit only may end now.
        if request.credit.is_some() && request.state.has_sent_goaway() {
            request.state.wake_writers();
        }
    }
}

/// Runs a query or mutation: polls it once here, and in a task of its own if that does not end it.
pub(crate) fn start_once(
    in_flight: InFlight,
    handler: Arc<dyn OnceHandler>,
    input: CallBody,
) -> OnceRun {
    let request = Arc::clone(in_flight.request());
    let run = async move {
        let ctx = Ctx::request(&request);
        let timed = CallTimer::since(&request.state.dispatcher.counters, Instant::now());
        let work = AssertUnwindSafe(async move { handler.call(input, ctx).await });
        let outcome = match work.catch_unwind().await {
            Ok(outcome) => outcome,
            Err(_) => Err(panicked(&request, &request.operation.spec.name)),
        };
        drop(timed);
        request.answer(outcome);
    };
    OnceRun {
        run: Box::pin(run),
        in_flight,
    }
}

/// A query or mutation before its first poll.
pub(crate) struct OnceRun {
    run: alknet_core::BoxFuture<'static, ()>,
    in_flight: InFlight,
}

impl OnceRun {
    pub(crate) async fn poll_or_spawn(mut self) {
        // Most operations answer at once, and need neither a task nor a timer.
        if futures_util::poll!(self.run.as_mut()).is_ready() {
            return;
        }
        let request = Arc::clone(self.in_flight.request());
        let task = tokio::spawn(self.finish());
        request.set_task(task.abort_handle());
    }

    async fn finish(self) {
        let Self { run, in_flight } = self;
        let request = in_flight.request();
        let Some(deadline) = request.deadline() else {
            return run.await;
        };
        if tokio::time::timeout_at(deadline, run).await.is_err() {
            // The handler is dropped by now: this is the one answer.
            request.fail(CallError::timeout());
        }
    }
}

/// Counts a panic and returns the caller's error.
pub(crate) fn panicked(request: &InboundRequest, operation: &str) -> CallError {
    DispatcherCounters::add(&request.state.dispatcher.counters.panics);
    tracing::error!(
        operation,
        connection = %request.state.info.id,
        "an operation panicked"
    );
    CallError::internal("the operation failed unexpectedly; the node's log says more")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Steps are grants of credit and events that spend one.
        #[test]
        fn credit_is_what_was_granted_less_what_was_spent(
            window in 0u32..5,
            steps in prop::collection::vec(prop::option::of(any::<u32>()), 0..40),
        ) {
            let credit = CreditWindow::new(window);
            let mut model = u64::from(window);
            for step in steps {
                match step {
                    Some(n) => {
                        credit.add(n);
                        model += u64::from(n);
                    }
                    None => {
                        credit.spend();
                        model = model.saturating_sub(1);
                    }
                }
                prop_assert_eq!(credit.is_open(), model > 0);
                prop_assert_eq!(credit.wait().now_or_never().is_some(), model > 0);
            }
        }
    }

    #[test]
    fn credit_without_bound_does_not_wrap_around() {
        let credit = CreditWindow::new(u32::MAX);
        credit.left.store(usize::MAX - 1, Ordering::Release);
        credit.add(u32::MAX);
        assert_eq!(credit.left.load(Ordering::Acquire), usize::MAX);
    }
}
