//! A peer that stays reachable: one connection at a time, made again whenever it is lost.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use alknet_core::{Backoff, BoxFuture, CloseCode, PeerAddr};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::body::CallBody;
use crate::client::{CallClient, CallConnection, CallOptions, Subscription};
use crate::connect::{ConnectError, DialCredentials};
use crate::error::{CallError, ErrorCode};
use crate::limits::{BACKOFF_FIRST, BACKOFF_MAX, BACKOFF_RESET, RETRIES_MAX};
use crate::outbound::SubscriptionEvent;
use crate::retry::{RetryCount, RetrySafety, left, random};

/// The pauses between one end and the next dial.
const PAUSES: Backoff = Backoff::new(BACKOFF_FIRST, BACKOFF_MAX);

/// Runs with each new connection before a caller uses it: imports its operations again, subscribes again. Where it
/// fails, the client closes the connection and makes another later.
pub type OnConnect =
    Arc<dyn Fn(CallConnection) -> BoxFuture<'static, Result<(), CallError>> + Send + Sync>;

/// A peer that the client dials again whenever its connection is lost: after up to 0.2 s, then up to twice as long
/// each time, up to 30 s. It gives up when the peer says that coming back is no use: revoked, superseded by another
/// connection of this side, another key than the pinned one.
///
/// Clones share the connection; it ends with the last of them.
#[derive(Clone, Debug)]
pub struct ReconnectingClient {
    state: watch::Receiver<ReconnectState>,
    _worker: Arc<AbortOnDrop>,
}

#[derive(Clone, Debug)]
enum ReconnectState {
    Connected(CallConnection),
    /// Why there is no connection, once a try has failed or a connection has ended.
    Connecting(Option<String>),
    /// The end for good.
    Ended(CallError),
}

impl ReconnectingClient {
    /// Starts to connect, and returns at once. Must be called within a tokio runtime.
    #[must_use]
    pub fn start(
        client: CallClient,
        addr: PeerAddr,
        credentials: DialCredentials,
        on_connect: Option<OnConnect>,
    ) -> Self {
        let (sender, state) = watch::channel(ReconnectState::Connecting(None));
        let worker = ReconnectTask {
            client,
            addr,
            credentials,
            on_connect,
            state: sender,
        };
        Self::begin(worker, state, PAUSES)
    }

    fn begin(
        worker: ReconnectTask,
        state: watch::Receiver<ReconnectState>,
        pauses: Backoff,
    ) -> Self {
        let task = tokio::spawn(worker.run(pauses));
        Self {
            state,
            _worker: Arc::new(AbortOnDrop(task.abort_handle())),
        }
    }

    /// The connection, waiting until there is one. It may end at any time.
    ///
    /// # Errors
    /// The client gave up for good.
    pub async fn connection(&self) -> Result<CallConnection, CallError> {
        self.connection_by(None).await
    }

    async fn connection_by(&self, deadline: Option<Instant>) -> Result<CallConnection, CallError> {
        let mut state = self.state.clone();
        let usable = |state: &ReconnectState| match state {
            // A connection that drains ends soon, and the state changes then.
            ReconnectState::Connected(connection) => {
                !connection.is_closed() && !connection.is_draining()
            }
            ReconnectState::Connecting(_) => false,
            ReconnectState::Ended(_) => true,
        };
        let wait = state.wait_for(usable);
        let found = match deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, wait).await,
            None => Ok(wait.await),
        };
        match found.as_ref().map(|state| state.as_deref()) {
            Ok(Ok(ReconnectState::Connected(connection))) => Ok(connection.clone()),
            Ok(Ok(ReconnectState::Ended(error))) => Err(error.clone()),
            Ok(_) => Err(CallError::unavailable("the connection was given up")),
            Err(_) => Err(self.unreached()),
        }
    }

    /// The error where no connection came in time.
    fn unreached(&self) -> CallError {
        let text = "the peer cannot be reached at present";
        match &*self.state.borrow() {
            ReconnectState::Connecting(Some(why)) => {
                CallError::unavailable(format!("{text}: {why}"))
            }
            _ => CallError::unavailable(text),
        }
    }

    /// Calls a query or mutation.
    ///
    /// # Errors
    /// The errors of [`call_with`](Self::call_with).
    pub async fn call(&self, operation: &str, input: &Value) -> Result<CallBody, CallError> {
        self.call_with(operation, input, &CallOptions::default())
            .await
    }

    /// Calls a query or mutation, waiting for a connection within the time of `options`. The client tries queries
    /// again up to three times when that may help, over another connection if need be. It does the same with
    /// mutations that take an idempotency key, and they run once all the same.
    ///
    /// # Errors
    /// The last error of the operation; `UNAVAILABLE` where no connection came in time.
    pub async fn call_with(
        &self,
        operation: &str,
        input: &(impl Serialize + Sync + ?Sized),
        options: &CallOptions,
    ) -> Result<CallBody, CallError> {
        let deadline = options.deadline();
        let mut options = options.clone();
        let mut retries = RetryCount::default();
        loop {
            let connection = self.connection_by(deadline).await?;
            options.timeout = left(deadline);
            let error = match attempt(&connection, operation, input, &mut options).await {
                CallAttemptResult::Done(outcome) => return outcome,
                CallAttemptResult::Failed(error) => error,
            };
            match retries.next(&error, left(deadline), random()) {
                Some(delay) => tokio::time::sleep(delay).await,
                None => return Err(error),
            }
        }
    }

    /// Starts a subscription.
    ///
    /// # Errors
    /// The errors of [`subscribe_with`](Self::subscribe_with).
    pub async fn subscribe(
        &self,
        operation: &str,
        input: &Value,
    ) -> Result<ResumingSubscription, CallError> {
        self.subscribe_with(operation, input, &CallOptions::subscription())
            .await
    }

    /// Starts a subscription. Where the operation is resumable, it goes on after the last event over the next
    /// connection; any other ends with `UNAVAILABLE` when its connection does.
    ///
    /// # Errors
    /// The client gave up, or lost the connection while the subscription began.
    pub async fn subscribe_with(
        &self,
        operation: &str,
        input: &Value,
        options: &CallOptions,
    ) -> Result<ResumingSubscription, CallError> {
        let connection = self.connection().await?;
        let habits = connection.habits(operation).await?;
        let subscription = connection.subscribe_with(operation, input, options).await?;
        Ok(ResumingSubscription {
            peer: self.clone(),
            operation: operation.to_owned(),
            input: input.clone(),
            options: options.clone(),
            // The cursor becomes a member of the input, which therefore has to be an object or null.
            resumable: habits.resumable && (input.is_object() || input.is_null()),
            cursor: None,
            tries: 0,
            phase: ResumePhase::Running(subscription),
        })
    }
}

/// A task that ends with its owner.
#[derive(Debug)]
struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How one try ended.
enum CallAttemptResult {
    Done(Result<CallBody, CallError>),
    /// The client may try again.
    Failed(CallError),
}

async fn attempt(
    connection: &CallConnection,
    operation: &str,
    input: &(impl Serialize + Sync + ?Sized),
    options: &mut CallOptions,
) -> CallAttemptResult {
    // The call has not been sent when this fails, so the client may try again, whatever the call is.
    let habits = match connection.habits(operation).await {
        Ok(habits) => habits,
        Err(error) => return CallAttemptResult::Failed(error),
    };
    if let Err(error) = habits.prepare(options) {
        return CallAttemptResult::Done(Err(error));
    }
    match connection.call_with(operation, input, options).await {
        Err(error) if habits.repeat != RetrySafety::No => CallAttemptResult::Failed(error),
        outcome => CallAttemptResult::Done(outcome),
    }
}

/// A subscription over as many connections as it takes. Dropping it aborts.
pub struct ResumingSubscription {
    peer: ReconnectingClient,
    operation: String,
    input: Value,
    options: CallOptions,
    resumable: bool,
    cursor: Option<Value>,
    /// How often it was resumed since the last event.
    tries: u32,
    phase: ResumePhase,
}

enum ResumePhase {
    Ended,
    Lost(CallError),
    Running(Subscription),
}

impl ResumingSubscription {
    /// The next event; `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<SubscriptionEvent, CallError>> {
        loop {
            match &mut self.phase {
                ResumePhase::Ended => return None,
                ResumePhase::Running(subscription) => match subscription.next().await {
                    Some(Ok(event)) => {
                        self.record(&event);
                        return Some(Ok(event));
                    }
                    Some(Err(error)) => self.phase = ResumePhase::Lost(error),
                    None => self.phase = ResumePhase::Ended,
                },
                ResumePhase::Lost(error) => {
                    let error = error.clone();
                    match self.resume(&error).await {
                        Ok(subscription) => self.phase = ResumePhase::Running(subscription),
                        Err(error) => {
                            self.phase = ResumePhase::Ended;
                            return Some(Err(error));
                        }
                    }
                }
            }
        }
    }

    fn record(&mut self, event: &SubscriptionEvent) {
        // An event shows that the connection works again.
        self.tries = 0;
        if let Some(cursor) = &event.cursor {
            self.cursor = Some(cursor.value().clone());
        }
    }

    async fn resume(&mut self, error: &CallError) -> Result<Subscription, CallError> {
        let lost = error.code == ErrorCode::Unavailable;
        if !lost || !self.resumable || self.tries >= RETRIES_MAX {
            return Err(error.clone());
        }
        loop {
            let connection = self.peer.connection().await?;
            let input = self.input_behind_cursor();
            let started = connection
                .subscribe_with(&self.operation, &input, &self.options)
                .await;
            match started {
                // The connection ended again before the subscription began: another one comes, or the client reports
                // the end.
                Err(error)
                    if error.code == ErrorCode::Unavailable
                        && (connection.is_closed() || connection.is_draining()) => {}
                started => {
                    self.tries += 1;
                    return started;
                }
            }
        }
    }

    fn input_behind_cursor(&self) -> Value {
        let Some(cursor) = &self.cursor else {
            return self.input.clone();
        };
        let mut members = match &self.input {
            Value::Object(members) => members.clone(),
            _ => Map::new(),
        };
        members.insert("cursor".to_owned(), cursor.clone());
        Value::Object(members)
    }
}

impl fmt::Debug for ResumingSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResumingSubscription")
            .field("operation", &self.operation)
            .finish_non_exhaustive()
    }
}

/// The task that keeps the connection up.
struct ReconnectTask {
    client: CallClient,
    addr: PeerAddr,
    credentials: DialCredentials,
    on_connect: Option<OnConnect>,
    state: watch::Sender<ReconnectState>,
}

impl ReconnectTask {
    async fn run(self, mut backoff: Backoff) {
        loop {
            match self.once(&mut backoff).await {
                Ok(at_least) => tokio::time::sleep(backoff.next(random()).max(at_least)).await,
                Err(error) => {
                    tracing::warn!(peer = %self.addr, %error, "not dialled again");
                    self.state.send_replace(ReconnectState::Ended(error));
                    return;
                }
            }
        }
    }

    /// One connection from dial to end. Returns how long to wait at least before the next.
    async fn once(&self, backoff: &mut Backoff) -> Result<Duration, CallError> {
        let connection = match self.connect().await {
            Ok(connection) => connection,
            // Dialling again would fail until an administrator changes something.
            Err(error) if error.is_permanent() => return Err(error.into()),
            Err(error) => {
                tracing::debug!(peer = %self.addr, %error, "cannot connect");
                self.state
                    .send_replace(ReconnectState::Connecting(Some(error.to_string())));
                return Ok(Duration::ZERO);
            }
        };
        let since = Instant::now();
        self.state
            .send_replace(ReconnectState::Connected(connection.clone()));
        let reason = connection.closed().await;
        self.state
            .send_replace(ReconnectState::Connecting(Some(reason.to_string())));
        tracing::debug!(peer = %self.addr, %reason, "the connection ended");
        // A connection that held long enough shows that the peer works again.
        if since.elapsed() >= BACKOFF_RESET {
            backoff.reset();
        }
        reason.pause().ok_or_else(|| CallError {
            retryable: false,
            ..CallError::unavailable(reason.to_string())
        })
    }

    async fn connect(&self) -> Result<CallConnection, ConnectError> {
        let connection = self.client.connect(&self.addr, &self.credentials).await?;
        let Some(on_connect) = &self.on_connect else {
            return Ok(connection);
        };
        if let Err(error) = on_connect(connection.clone()).await {
            // An unprepared connection must not reach a caller.
            connection.close(CloseCode::Normal, "");
            // Whatever the error was, the peer may serve something else next time.
            return Err(ConnectError::Prepare(error));
        }
        Ok(connection)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use alknet_core::{DialError, DialErrorKind, DialRequest, DialedConnection, Dialer};

    use super::*;

    /// Refuses every dial as unreachable, and counts the attempts.
    #[derive(Debug, Default)]
    struct NoRouteDialer(AtomicUsize);

    impl Dialer for NoRouteDialer {
        fn connect(
            &self,
            _request: DialRequest,
        ) -> BoxFuture<'_, Result<DialedConnection, DialError>> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Box::pin(async {
                // A dial over a network yields, too: a caller that dials without a pause must not keep the thread.
                tokio::task::yield_now().await;
                Err(DialError::new(DialErrorKind::Unreachable, "no route"))
            })
        }
    }

    /// From a few thousandths of the usual pause they double: half a second has about ten dials, and a few more where
    /// a busy machine makes a moment long. Without pauses it has hundreds.
    #[tokio::test]
    async fn a_peer_that_is_not_there_is_dialled_with_pauses_that_double() {
        let dialer = Arc::new(NoRouteDialer::default());
        let (sender, state) = watch::channel(ReconnectState::Connecting(None));
        let worker = ReconnectTask {
            client: CallClient::without_operations().with_dialer(Arc::clone(&dialer) as _),
            addr: "node.test".parse().expect("an address"),
            credentials: DialCredentials::default(),
            on_connect: None,
            state: sender,
        };
        let pauses = Backoff::new(BACKOFF_FIRST / 200, BACKOFF_MAX);
        let _peer = ReconnectingClient::begin(worker, state, pauses);
        tokio::time::sleep(Duration::from_millis(500)).await;
        let dials = dialer.0.load(Ordering::SeqCst);
        assert!((1..30).contains(&dials), "{dials} dials");
    }

    #[test]
    fn pauses_double_up_to_half_a_minute() {
        let mut pauses = PAUSES;
        let bounds: Vec<_> = (0..10).map(|_| pauses.next(u32::MAX).as_millis()).collect();
        let doubled = [200, 400, 800, 1_600, 3_200, 6_400, 12_800, 25_600];
        assert_eq!(bounds[..8], doubled);
        assert_eq!(bounds[8..], [30_000, 30_000]);
    }
}
