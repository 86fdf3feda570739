//! The common path of all requests over HTTP: the gateway's own paths, tools of models, pages, and routes of
//! applications that embed this crate.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use alknet_call::{
    CallError, CallOutput, LocalCallError, LocalCaller, LocalEvent, LocalEvents, LocalRequest,
    ResolvedOperation,
};
use alknet_core::{AuthToken, Identity, Metrics, MountRequestBudget};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http::StatusCode;
use sha2::{Digest, Sha256};

use crate::caller::HttpCaller;
use crate::error::{ApiError, Code};
use crate::limits::{
    BATCH_CALLS_MAX, BATCH_ID_BYTES_MAX, BATCH_ITEM_BYTES, BATCH_PARALLEL, BATCH_TIMEOUT,
};
use crate::memory::MemoryLease;
use crate::rate_limit::{CallerQuota, ConcurrencyPermit, HttpRateLimiter, Quota};
use crate::wire::{
    BatchMode, BatchResult, GatewayCall, OperationDescription, SearchPage, SearchQuery,
    SearchSummary,
};

/// The gateway of a node.
#[derive(Debug, Default)]
pub struct Gateway {
    rate_limiter: HttpRateLimiter,
    /// Requests since the start.
    requests: AtomicU64,
}

/// The identity of a caller, and its proof.
#[derive(Clone, Debug, Default)]
pub struct CallerIdentity {
    /// The identity that the token, or otherwise the connection's key, proved.
    pub identity: Option<Arc<Identity>>,
    /// The token that proved the identity.
    pub token: Option<Arc<AuthToken>>,
}

/// A permit of a running call or stream; dropping it returns the permit.
#[derive(Debug)]
pub struct GatewayPermit {
    _permit: ConcurrencyPermit,
}

/// The events of an operation.
#[derive(Debug)]
pub struct GatewaySubscription {
    events: LocalEvents,
    _running: GatewayPermit,
    caller: HttpCaller,
}

impl Gateway {
    /// A gateway with the limits of `quota`.
    #[must_use]
    pub fn new(quota: Quota) -> Self {
        Self {
            rate_limiter: HttpRateLimiter::new(quota),
            requests: AtomicU64::new(0),
        }
    }

    /// Changes the limits from now on.
    pub fn set_quota(&self, quota: Quota) {
        self.rate_limiter.set_quota(quota);
    }

    /// The number of requests since the node started.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The number of running calls and streams.
    #[must_use]
    pub fn running(&self) -> (u32, u32) {
        self.rate_limiter.running()
    }

    /// The identity of a token or, without a token, the identity that the connection proved.
    ///
    /// It takes the same work for a request without a token, with a token, and with a malformed one, so an attacker
    /// cannot learn from the time what a path accepts.
    ///
    /// # Errors
    /// The token belongs to no identity; 429 if the network made too many wrong guesses. The caller counts the guess
    /// with [`LocalCaller::guessed`] once the response is sent.
    pub fn authenticate(
        &self,
        gate: &LocalCaller,
        token: Option<&str>,
    ) -> Result<CallerIdentity, ApiError> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        // The penalty is looked up for every request, like everything else that takes time.
        let penalty = gate.penalty();
        let Some(token) = token else {
            check_dummy_token(gate);
            return Ok(CallerIdentity {
                identity: gate.identity(),
                token: None,
            });
        };
        let token = AuthToken::new(token.to_owned());
        match gate.resolve_token(&token) {
            Ok(identity) => {
                gate.authenticated(&identity);
                Ok(CallerIdentity {
                    identity: Some(identity),
                    token: Some(Arc::new(token)),
                })
            }
            Err(error) => {
                if token.hash().is_err() {
                    // The malformed token was copied and refused, but neither hashed nor looked up, so this does the
                    // same work.
                    let found = gate.is_known_token(&DUMMY_TOKEN) || DUMMY_TOKEN.hash().is_err();
                    std::hint::black_box(found);
                }
                // For a request without a token the connection's identity is looked up; this does the same work.
                std::hint::black_box(gate.identity());
                Err(match penalty {
                    None if token.expose().is_empty() => ApiError::unauthenticated(EMPTY_TOKEN),
                    None => wrong_token_error(error),
                    Some(refused) => too_many(refused),
                })
            }
        }
    }

    /// Counts a request against its caller's limits.
    ///
    /// # Errors
    /// The caller sent too many requests lately.
    pub fn admit(&self, caller: &HttpCaller) -> Result<(), ApiError> {
        self.rate_limiter
            .request(&self.quota_of(caller), caller.began)
    }

    /// Counts a request to a mount with a budget of its own: an identity has the budget apart from its other requests, and
    /// unknown peers have none.
    ///
    /// # Errors
    /// The caller sent too many requests to the mount lately.
    pub fn admit_to_mount(
        &self,
        caller: &HttpCaller,
        mount: (&'static str, MountRequestBudget),
    ) -> Result<(), ApiError> {
        self.rate_limiter
            .mount_request(&self.quota_of(caller), mount, caller.began)
    }

    /// The quota against which the requests of `identity`, or of an unknown peer at `remote`, count. The server of a
    /// connection may look it up once for all its requests.
    #[must_use]
    pub fn account(
        &self,
        identity: Option<&Identity>,
        remote: Option<SocketAddr>,
    ) -> Arc<CallerQuota> {
        let id = identity.map(|identity| &identity.id);
        self.rate_limiter
            .account(id, remote.map(|remote| remote.ip()))
    }

    fn quota_of<'a>(&self, caller: &'a HttpCaller) -> Cow<'a, Arc<CallerQuota>> {
        match &caller.account {
            Some(account) => Cow::Borrowed(account),
            None => Cow::Owned(self.account(caller.identity.as_deref(), caller.remote)),
        }
    }

    /// The operations that the caller may call.
    #[must_use]
    pub fn list(&self, caller: &HttpCaller, query: &SearchQuery) -> SearchPage {
        let (visible, _) = caller.gate.visible(caller.identity.as_deref());
        let found = visible.iter().filter(|one| query.finds(one.spec()));
        let limit = query.limit();
        // One operation above the limit shows whether there is a next page.
        let mut operations: Vec<_> = found
            .take(limit + 1)
            .map(|one| SearchSummary::from_spec(one.spec()))
            .collect();
        let more = operations.len() > limit;
        operations.truncate(limit);
        let last = operations.last().filter(|_| more);
        SearchPage {
            next: last.map(|last| last.operation.clone()),
            operations,
        }
    }

    /// The whole description of one operation.
    ///
    /// # Errors
    /// No operation has that name, or the caller may not know of it.
    pub fn describe(
        &self,
        caller: &HttpCaller,
        operation: &str,
    ) -> Result<OperationDescription, ApiError> {
        let found = self.find(caller, operation)?;
        Ok(OperationDescription::from_spec(found.spec()))
    }

    /// One operation as it is registered.
    ///
    /// # Errors
    /// The errors of [`describe`](Self::describe).
    pub fn find(
        &self,
        caller: &HttpCaller,
        operation: &str,
    ) -> Result<ResolvedOperation, ApiError> {
        let found = caller.gate.spec(caller.identity.as_deref(), operation);
        found.ok_or_else(|| {
            let name = operation.strip_prefix('/').unwrap_or(operation);
            // The name comes from the caller, and an error must stay short.
            let shown: String = name.chars().take(128).collect();
            ApiError::not_found(format!("there is no operation '/{shown}'"))
        })
    }

    /// A tag that changes when the operations that the caller sees may have changed.
    #[must_use]
    pub fn etag(&self, caller: &HttpCaller) -> String {
        let digest = caller.gate.dispatcher().registry().digest();
        let mut hash = Sha256::new();
        hash.update(digest);
        if let Some(identity) = &caller.identity {
            hash.update(identity.id.as_str());
            // The rights of an identity may change while its id stays the same.
            hash.update(format!("{:?}{:?}", identity.scopes, identity.resources));
        }
        let hash = hash.finalize();
        let short: String = hash.iter().take(12).map(|b| format!("{b:02x}")).collect();
        // The tag is weak (RFC 9110 section 8.8.1): it identifies the callable operations, not the bytes of a
        // response.
        format!("W/\"{short}\"")
    }

    /// Calls a query or mutation. Dropping the future aborts the call and its nested calls.
    ///
    /// # Errors
    /// The error of the call.
    pub async fn invoke(
        &self,
        caller: &HttpCaller,
        call: GatewayCall,
    ) -> Result<CallOutput, ApiError> {
        let _permit = self.rate_limiter.call(&self.quota_of(caller))?;
        let incoming = incoming(caller, &call, caller.request_id.as_str());
        let outcome = caller.gate.call(incoming).await;
        outcome.map_err(|refused| unknown_operation(caller, &call, refuse(caller, refused)))
    }

    /// Runs several calls. The results have the order of the calls; a call that could not begin in time, or came
    /// after a failed one in a mode that stops, gets `NOT_RUN`. Outputs count against `answers`; an output without
    /// room is replaced by an error. A call without room for the smallest response does not run.
    ///
    /// # Errors
    /// There are too many calls, their ids are invalid, or there is no memory for the frame of the response.
    pub async fn batch(
        &self,
        caller: &HttpCaller,
        calls: Vec<(String, Result<GatewayCall, ApiError>)>,
        mode: BatchMode,
        answers: &MemoryLease,
    ) -> Result<Vec<BatchResult>, ApiError> {
        check_ids(&calls)?;
        // Each result has a frame, even if its call fails.
        answers.more(calls.len() * BATCH_ITEM_BYTES)?;
        let deadline = tokio::time::Instant::from_std(Instant::now() + BATCH_TIMEOUT);
        let ids: Vec<_> = calls.iter().map(|(id, _)| id.clone()).collect();
        let mut outcomes: Vec<Option<Result<CallOutput, ApiError>>> = Vec::new();
        outcomes.resize_with(ids.len(), || None);
        let at_once = match mode {
            BatchMode::Parallel => BATCH_PARALLEL,
            BatchMode::Sequential | BatchMode::StopOnError => 1,
        };
        let runs = calls
            .into_iter()
            .enumerate()
            .map(|(n, (_, call))| async move {
                let outcome = match call {
                    Ok(call) => self.invoke_leased(caller, call, answers).await,
                    Err(error) => Err(error),
                };
                (n, outcome)
            });
        let mut runs = stream::iter(runs).buffer_unordered(at_once);
        while let Ok(Some((n, outcome))) = tokio::time::timeout_at(deadline, runs.next()).await {
            let failed = outcome.is_err();
            outcomes[n] = Some(outcome);
            // Leaving the loop aborts the calls after the failed one.
            if failed && mode == BatchMode::StopOnError {
                break;
            }
        }
        // Calls that are still running are aborted before their results say that they did not run.
        drop(runs);
        let late = tokio::time::Instant::now() >= deadline;
        let not_run = || not_run(late);
        Ok(ids
            .into_iter()
            .zip(outcomes)
            .map(|(id, outcome)| BatchResult {
                id,
                outcome: outcome.unwrap_or_else(|| Err(not_run())),
            })
            .collect())
    }

    /// Runs one call whose output waits for the others'.
    async fn invoke_leased(
        &self,
        caller: &HttpCaller,
        call: GatewayCall,
        answers: &MemoryLease,
    ) -> Result<CallOutput, ApiError> {
        let reserve = answers.reserve()?;
        let text = text(self.invoke(caller, call).await?);
        // The output counts twice, because it is also copied into the whole response.
        reserve.answer(2 * text.len())?;
        Ok(CallOutput::Raw(text))
    }

    /// A lease of memory for the caller's request and response, of which nothing is taken yet.
    #[must_use]
    pub fn lease(&self, caller: &HttpCaller) -> MemoryLease {
        self.rate_limiter.lease(&self.quota_of(caller))
    }

    /// Like `lease`, for the caller of a quota.
    #[must_use]
    pub fn lease_of(&self, account: &Arc<CallerQuota>) -> MemoryLease {
        self.rate_limiter.lease(account)
    }

    /// Bytes of requests and responses under way.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.rate_limiter.bytes()
    }

    /// Adds the bytes of requests and responses to the node's metrics.
    pub fn collect(&self, into: &mut Metrics) {
        let [now, peak, most] = self.rate_limiter.granted_bytes();
        for (name, help, bytes) in [
            (
                "alknet_http_bytes",
                "Bytes of requests and answers over HTTP that are under way.",
                now,
            ),
            (
                "alknet_http_bytes_max",
                "How many there may be at once.",
                most,
            ),
            (
                "alknet_http_peak_bytes",
                "The most that there were at once since the node started.",
                peak,
            ),
        ] {
            into.gauge(name, help, &[], bytes as f64);
        }
    }

    /// Starts a subscription. Dropping it ends the work behind it.
    ///
    /// # Errors
    /// The error of a subscription that does not begin.
    pub fn subscribe(
        &self,
        caller: HttpCaller,
        call: GatewayCall,
    ) -> Result<GatewaySubscription, ApiError> {
        let permit = self.rate_limiter.stream(&self.quota_of(&caller))?;
        let incoming = incoming(&caller, &call, caller.request_id.as_str());
        let events = caller.gate.subscribe(incoming);
        let events = events.map_err(|refused| refuse(&caller, refused))?;
        Ok(GatewaySubscription {
            events,
            _running: GatewayPermit { _permit: permit },
            caller,
        })
    }

    /// A permit among the caller's streams of events, for other kinds of events.
    ///
    /// # Errors
    /// The caller has the maximum number of streams.
    pub fn stream(&self, caller: &HttpCaller) -> Result<GatewayPermit, ApiError> {
        let _permit = self.rate_limiter.stream(&self.quota_of(caller))?;
        Ok(GatewayPermit { _permit })
    }
}

/// Least similarity (Jaro-Winkler) at which an operation is offered for another name.
const SIMILAR_MIN: f64 = 0.85;

/// A token as long as a real one, which belongs to no identity. Requests without a token cause the same work with it.
pub const NO_TOKEN: &str = "alk_00000000_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// The message for a header without a token, which a script sends whose variable is empty.
const EMPTY_TOKEN: &str =
    "the header has no token after 'Bearer': send 'Authorization: Bearer alk_…'";

/// The work of a wrong token, step by step: it is copied, looked up, checked for its form, and its error is made.
/// Only the guess is not counted.
fn check_dummy_token(gate: &LocalCaller) {
    let token = AuthToken::new(std::hint::black_box(NO_TOKEN).to_owned());
    let found = gate.is_known_token(&token) || token.hash().is_err();
    std::hint::black_box((found, wrong_token_error(CallError::bad_token())));
}

/// The token that is looked up if there is nothing to look up.
static DUMMY_TOKEN: LazyLock<AuthToken> = LazyLock::new(|| AuthToken::new(NO_TOKEN.to_owned()));

/// The response to a wrong token, with the error of the call protocol.
fn wrong_token_error(error: CallError) -> ApiError {
    let mut refused = ApiError::unauthenticated(error.message.clone());
    refused.error = Box::new(error);
    refused
}

/// Like `wrong_token_error`, if the network made too many guesses.
fn too_many(refused: CallError) -> ApiError {
    let mut answer = ApiError::overloaded(refused.message.clone(), 0);
    answer.error = Box::new(refused);
    answer
}

fn incoming<'a>(
    caller: &'a HttpCaller,
    call: &'a GatewayCall,
    request_id: &'a str,
) -> LocalRequest<'a> {
    LocalRequest {
        input: call.input.clone(),
        memory: call.memory.clone(),
        identity: caller.identity.clone(),
        token: caller.token.as_ref(),
        proved_by: caller.proved_by,
        timeout: call.timeout,
        idempotency_key: call.idempotency_key.as_deref(),
        peer: call.peer.as_deref(),
        ..LocalRequest::new(request_id, &call.operation)
    }
}

fn refuse(caller: &HttpCaller, refused: LocalCallError) -> ApiError {
    ApiError::of_call(refused, caller.identity.is_some(), &caller.request_id)
}

/// The error for an operation that the node does not have for this caller says which one was probably meant, and where
/// it finds all. Every other error stays as it is.
fn unknown_operation(caller: &HttpCaller, call: &GatewayCall, mut error: ApiError) -> ApiError {
    let name = call.operation.trim_start_matches('/');
    if call.peer.is_some() || error.error.message != CallError::not_found(name).message {
        return error;
    }
    let (visible, _) = caller.gate.visible(caller.identity.as_deref());
    let likeness = |found: &ResolvedOperation| {
        let known = &found.spec().name;
        (strsim::jaro_winkler(known, name), known.clone())
    };
    let near = visible.iter().map(likeness);
    let near = near.filter(|(likeness, _)| *likeness > SIMILAR_MIN);
    let meant = match near.max_by(|a, b| a.0.total_cmp(&b.0)) {
        Some((_, known)) => format!("did you mean '{known}'? "),
        None => String::new(),
    };
    error.error.message = format!(
        "there is no operation '{name}'; {meant}GET /search, or the tool 'search' over MCP, finds those that you may \
         call"
    );
    error
}

/// The text of an output.
fn text(output: CallOutput) -> Bytes {
    match output {
        CallOutput::Raw(text) => text,
        other => {
            let mut text = Vec::new();
            other.append_to(&mut text);
            text.into()
        }
    }
}

fn check_ids(calls: &[(String, Result<GatewayCall, ApiError>)]) -> Result<(), ApiError> {
    if calls.len() > BATCH_CALLS_MAX {
        let message = format!("a batch has at most {BATCH_CALLS_MAX} calls");
        return Err(ApiError::malformed("/calls", message));
    }
    // A caller finds its results by id, so each id must be unique.
    let mut seen = std::collections::HashSet::new();
    for (n, (id, _)) in calls.iter().enumerate() {
        let at = format!("/calls/{n}/id");
        if id.is_empty() || id.len() > BATCH_ID_BYTES_MAX {
            let message = format!("an id has 1 to {BATCH_ID_BYTES_MAX} bytes");
            return Err(ApiError::malformed(&at, message));
        }
        if !seen.insert(id) {
            let message = "another call of the batch has this id";
            return Err(ApiError::malformed(&at, message));
        }
    }
    Ok(())
}

fn not_run(late: bool) -> ApiError {
    let why = if late {
        "the time of the batch was over before it could begin or end"
    } else {
        "a call before it failed"
    };
    let mut error = ApiError::new(
        StatusCode::UNPROCESSABLE_ENTITY,
        Code::Operation("NOT_RUN".into()),
        why,
    );
    error.error.retryable = true;
    error
}

impl GatewaySubscription {
    /// The next event; after an error the stream ends.
    pub async fn next(&mut self) -> Option<Result<LocalEvent, ApiError>> {
        let event = self.events.next().await?;
        Some(event.map_err(|refused| refuse(&self.caller, refused)))
    }

    /// The caller of the subscription.
    #[must_use]
    pub fn caller(&self) -> &HttpCaller {
        &self.caller
    }
}

impl Stream for GatewaySubscription {
    type Item = Result<LocalEvent, ApiError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let event = std::task::ready!(self.events.poll_next_unpin(cx));
        let event = event.map(|event| event.map_err(|refused| refuse(&self.caller, refused)));
        std::task::Poll::Ready(event)
    }
}
